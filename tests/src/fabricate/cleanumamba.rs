//! CleanUMamba: any depth, irregular widths as pruning leaves them.

use super::Fabricated;
use super::mixer::{Sizes, mamba, mamba2};
use super::s4;
use crate::Rng;
use serde_json::json;

/// A random CleanUMamba with a random rule for its level.
pub fn random(rng: &mut Rng) -> Fabricated {
    let mut f = Fabricated::default();
    let levels = rng.range(1, 5);
    let mut skips = Vec::new();
    let mut channels = 1;
    for i in 0..levels {
        let (inner, out) = (rng.range(1, 20), rng.range(1, 20));
        f.weight(rng, &format!("encoder.{i}.0.weight"), &[inner, channels, 4]);
        f.normal(rng, &format!("encoder.{i}.0.bias"), &[inner], 0.2);
        f.weight(rng, &format!("encoder.{i}.2.weight"), &[2 * out, inner, 1]);
        f.normal(rng, &format!("encoder.{i}.2.bias"), &[2 * out], 0.2);
        channels = out;
        skips.push(out);
    }
    let d = rng.range(2, 24);
    f.weight(rng, "tsfm_conv1.weight", &[d, channels, 1]);
    f.normal(rng, "tsfm_conv1.bias", &[d], 0.2);
    for i in 0..rng.range(1, 3) {
        f.ones(rng, &format!("tsfm_Mamba_layers.{i}.norm.weight"), &[d]);
        f.normal(rng, &format!("tsfm_Mamba_layers.{i}.norm.bias"), &[d], 0.2);
        let heads = rng.range(1, 4);
        let sizes = Sizes {
            d_model: d,
            d_inner: heads * rng.range(1, 8),
            d_state: rng.range(1, 17),
            d_conv: rng.range(2, 4),
            dt_rank: rng.range(1, 4),
        };
        let name = format!("tsfm_Mamba_layers.{i}.mixer.");
        match rng.range(0, 2) {
            0 => s4::mixer(&mut f, rng, &name, &sizes),
            1 => mamba2(&mut f, rng, &name, &sizes, heads, 1),
            _ => mamba(&mut f, rng, &name, &sizes),
        }
    }
    f.ones(rng, "norm_f.weight", &[d]);
    f.normal(rng, "norm_f.bias", &[d], 0.2);
    f.weight(rng, "tsfm_conv2.weight", &[channels, d, 1]);
    f.normal(rng, "tsfm_conv2.bias", &[channels], 0.2);
    for j in 0..levels {
        let inner = rng.range(1, 20);
        let out = if j + 1 < levels { skips[levels - 2 - j] } else { 1 };
        f.weight(rng, &format!("decoder.{j}.0.weight"), &[2 * inner, channels, 1]);
        f.normal(rng, &format!("decoder.{j}.0.bias"), &[2 * inner], 0.2);
        f.weight(rng, &format!("decoder.{j}.2.weight"), &[inner, out, 4]);
        f.normal(rng, &format!("decoder.{j}.2.bias"), &[out], 0.2);
        channels = out;
    }
    f.config = json!({ "level_rule": rng.pick(&["none", "smoothed", "upstream"]) });
    f
}
