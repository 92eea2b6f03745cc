//! The denoiser by bands: any bands, any widths, any frame.

use super::Fabricated;
use super::mixer::{Sizes, mamba};
use crate::Rng;
use serde_json::json;

/// A random denoiser.
pub fn random(rng: &mut Rng) -> Fabricated {
    let mut f = Fabricated::default();
    let (d, u) = (rng.range(2, 12), rng.range(2, 12));
    let mut bands: Vec<usize> = (0..rng.range(1, 5)).map(|_| rng.range(1, 9)).collect();
    bands[0] += 1;
    let (bins, wide): (usize, usize) = (bands.iter().sum(), bands.len() * d);
    let window = 2 * (bins - 1);
    f.normal(rng, "input_norm.mean", &[3, bins], 2.0);
    f.ones(rng, "input_norm.scale", &[3, bins]);
    for (k, width) in bands.iter().enumerate() {
        f.weight(rng, &format!("encode.{k}.weight"), &[d, 3 * width]);
        f.normal(rng, &format!("encode.{k}.bias"), &[d], 0.2);
        f.weight(rng, &format!("decode.{k}.weight"), &[2 * width, d]);
        f.normal(rng, &format!("decode.{k}.bias"), &[2 * width], 0.5);
    }
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
    f.ones(rng, "norm_f.weight", &[d]);
    if rng.range(0, 3) > 0 {
        f.weight(rng, "vad.weight", &[1, u]);
        f.normal(rng, "vad.bias", &[1], 0.5);
    }
    let hop = rng.range(1, window / 2);
    f.config = json!({ "sample_rate": 16_000, "hop": hop, "window": window });
    f
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
