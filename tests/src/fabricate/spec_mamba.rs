//! The spectral denoiser: any width, any frame.

use super::Fabricated;
use super::mixer::{Sizes, mamba};
use crate::Rng;
use serde_json::json;

/// A random denoiser.
pub fn random(rng: &mut Rng) -> Fabricated {
    let mut f = Fabricated::default();
    let (hop, d) = (rng.range(1, 40), rng.range(2, 24));
    let bins = hop + 1;
    f.normal(rng, "input_norm.mean", &[bins], 2.0);
    f.ones(rng, "input_norm.scale", &[bins]);
    f.weight(rng, "in_proj.weight", &[d, bins]);
    f.normal(rng, "in_proj.bias", &[d], 0.2);
    for i in 0..rng.range(1, 3) {
        f.ones(rng, &format!("layers.{i}.norm.weight"), &[d]);
        let sizes = Sizes {
            d_model: d,
            d_inner: rng.range(1, 40),
            d_state: rng.range(1, 17),
            d_conv: rng.range(2, 4),
            dt_rank: rng.range(1, 4),
        };
        mamba(&mut f, rng, &format!("layers.{i}.mixer."), &sizes);
    }
    f.ones(rng, "norm_f.weight", &[d]);
    f.weight(rng, "mask.weight", &[2 * bins, d]);
    f.normal(rng, "mask.bias", &[2 * bins], 0.5);
    if rng.range(0, 1) == 1 {
        f.weight(rng, "vad.weight", &[1, d]);
        f.normal(rng, "vad.bias", &[1], 0.5);
    }
    f.config = json!({ "sample_rate": 16_000, "hop": hop, "window": 2 * hop });
    f
}
