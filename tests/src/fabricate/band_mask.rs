//! The denoiser by bands: any bands, any widths, any frame.

use super::Fabricated;
use super::composite::{CORES, core_of};
use super::mixer::{Sizes, mamba};
use crate::Rng;
use serde_json::json;

/// A random denoiser.
pub fn random(rng: &mut Rng) -> Fabricated {
    let mut f = Fabricated::default();
    let (d, u) = (rng.range(2, 12), rng.range(2, 12));
    let wide = bands(&mut f, rng, d);
    for i in 0..rng.range(1, 2) {
        let (band, full) = (format!("blocks.{i}.band."), format!("blocks.{i}.full."));
        f.ones(rng, &format!("{band}norm.weight"), &[d]);
        mixer(&mut f, rng, &format!("{band}mixer."), d);
        f.ones(rng, &format!("{full}norm.weight"), &[d]);
        f.weight(rng, &format!("{full}in_proj.weight"), &[u, wide]);
        f.normal(rng, &format!("{full}in_proj.bias"), &[u], 0.2);
        f.ones(rng, &format!("{full}norm_full.weight"), &[u]);
        mixer(&mut f, rng, &format!("{full}mixer."), u);
        f.weight(rng, &format!("{full}out_proj.weight"), &[wide, u]);
        f.normal(rng, &format!("{full}out_proj.bias"), &[wide], 0.2);
    }
    ends(&mut f, rng, d, u);
    f
}

/// A random denoiser of one path with a core.
pub fn with_core(rng: &mut Rng) -> Fabricated {
    let mut f = Fabricated::default();
    let d = rng.range(2, 12);
    let wide = bands(&mut f, rng, d);
    let core = rng.pick(&CORES);
    let u = core_of(&mut f, rng, core, None);
    f.weight(rng, "in_proj.weight", &[u, wide]);
    f.normal(rng, "in_proj.bias", &[u], 0.2);
    f.weight(rng, "out_proj.weight", &[wide, u]);
    f.normal(rng, "out_proj.bias", &[wide], 0.2);
    ends(&mut f, rng, d, u);
    f
}

/// Bands and what is made of their bins; returns the width of all of them.
fn bands(f: &mut Fabricated, rng: &mut Rng, d: usize) -> usize {
    let mut bands: Vec<usize> = (0..rng.range(1, 5)).map(|_| rng.range(1, 9)).collect();
    bands[0] += 1;
    let bins: usize = bands.iter().sum();
    let window = 2 * (bins - 1);
    f.normal(rng, "input_norm.mean", &[3, bins], 2.0);
    f.ones(rng, "input_norm.scale", &[3, bins]);
    for (k, width) in bands.iter().enumerate() {
        f.weight(rng, &format!("encode.{k}.weight"), &[d, 3 * width]);
        f.normal(rng, &format!("encode.{k}.bias"), &[d], 0.2);
        f.weight(rng, &format!("decode.{k}.weight"), &[2 * width, d]);
        f.normal(rng, &format!("decode.{k}.bias"), &[2 * width], 0.5);
    }
    f.config = json!({ "sample_rate": 16_000, "hop": rng.range(1, window / 2), "window": window });
    bands.len() * d
}

/// The last norm, and in most the head of speech.
fn ends(f: &mut Fabricated, rng: &mut Rng, d: usize, u: usize) {
    f.ones(rng, "norm_f.weight", &[d]);
    if rng.range(0, 3) > 0 {
        f.weight(rng, "vad.weight", &[1, u]);
        f.normal(rng, "vad.bias", &[1], 0.5);
    }
}

fn mixer(f: &mut Fabricated, rng: &mut Rng, prefix: &str, d_model: usize) {
    let sizes = Sizes {
        d_model,
        d_inner: rng.range(1, 24),
        d_state: rng.range(1, 17),
        d_conv: rng.range(2, 4),
        dt_rank: rng.range(1, 4),
    };
    mamba(f, rng, prefix, &sizes);
}
