//! The Mamba mixer, which several families hold.

use super::Fabricated;
use crate::Rng;

/// Sizes of a mixer.
pub struct Sizes {
    /// Width of the stream.
    pub d_model: usize,
    /// Width inside.
    pub d_inner: usize,
    /// States per channel.
    pub d_state: usize,
    /// Taps of the convolution.
    pub d_conv: usize,
    /// Rank of the step projection.
    pub dt_rank: usize,
}

/// Adds a Mamba-1 mixer under `prefix` (with its final dot).
pub fn mamba(f: &mut Fabricated, rng: &mut Rng, prefix: &str, s: &Sizes) {
    let name = |n: &str| format!("{prefix}{n}");
    f.weight(rng, &name("in_proj.weight"), &[2 * s.d_inner, s.d_model]);
    f.weight(rng, &name("out_proj.weight"), &[s.d_model, s.d_inner]);
    direction(f, rng, prefix, "", s);
}

/// Adds what one direction has for itself: `b` is `""` or `"_b"`.
pub fn direction(f: &mut Fabricated, rng: &mut Rng, prefix: &str, b: &str, s: &Sizes) {
    let name = |n: &str| format!("{prefix}{n}");
    f.weight(rng, &name(&format!("conv1d{b}.weight")), &[s.d_inner, 1, s.d_conv]);
    f.normal(rng, &name(&format!("conv1d{b}.bias")), &[s.d_inner], 0.2);
    f.weight(rng, &name(&format!("x_proj{b}.weight")), &[s.dt_rank + 2 * s.d_state, s.d_inner]);
    f.weight(rng, &name(&format!("dt_proj{b}.weight")), &[s.d_inner, s.dt_rank]);
    f.normal(rng, &name(&format!("dt_proj{b}.bias")), &[s.d_inner], 1.0);
    let (a, d) = if b.is_empty() { ("A_log", "D") } else { ("A_b_log", "D_b") };
    f.normal(rng, &name(a), &[s.d_inner, s.d_state], 0.7);
    f.normal(rng, &name(d), &[s.d_inner], 1.0);
}

/// Adds a Mamba-2 mixer under `prefix` (with its final dot), sometimes without its norm, with further gated channels or
/// a skip per channel; `dt_rank` counts for nothing.
pub fn mamba2(f: &mut Fabricated, rng: &mut Rng, prefix: &str, s: &Sizes, heads: usize, groups: usize) {
    let name = |n: &str| format!("{prefix}{n}");
    let d_mlp = if rng.range(0, 3) == 0 { rng.range(1, 10) } else { 0 };
    let channels = s.d_inner + 2 * groups * s.d_state;
    f.weight(rng, &name("in_proj.weight"), &[2 * d_mlp + s.d_inner + channels + heads, s.d_model]);
    f.weight(rng, &name("conv1d.weight"), &[channels, 1, s.d_conv]);
    f.normal(rng, &name("conv1d.bias"), &[channels], 0.2);
    f.normal(rng, &name("dt_bias"), &[heads], 1.0);
    f.normal(rng, &name("A_log"), &[heads], 0.7);
    let skips = if rng.range(0, 3) == 0 { s.d_inner } else { heads };
    f.normal(rng, &name("D"), &[skips], 1.0);
    if rng.range(0, 3) > 0 {
        f.ones(rng, &name("norm.weight"), &[s.d_inner]);
    }
    f.weight(rng, &name("out_proj.weight"), &[s.d_model, d_mlp + s.d_inner]);
}
