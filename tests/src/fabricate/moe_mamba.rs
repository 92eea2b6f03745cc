//! MoE-Mamba: any number of experts, every kind of them, sequential and parallel blocks.

use super::Fabricated;
use super::mixer::{Sizes, mamba};
use crate::Rng;
use serde_json::json;

/// A random MoE-Mamba.
pub fn random(rng: &mut Rng) -> Fabricated {
    let mut f = Fabricated::default();
    let (d, vocab, experts) = (rng.range(2, 40), rng.range(2, 60), rng.range(1, 9));
    let expert = rng.pick(&["relu", "swi_glu", "geglu"]);
    let (rms, parallel, old) = (rng.range(0, 1) == 1, rng.range(0, 2) == 0, rng.range(0, 2) == 0);
    f.config = json!({ "expert": expert, "routing_top_k": rng.range(1, experts.min(3)) });
    f.normal(rng, "embedding_layer.layers.0.weight", &[vocab, d], 1.0);
    let pre_norm = |f: &mut Fabricated, rng: &mut Rng, layer: &str| {
        let (weight, bias) = if rms { ("g", "b") } else { ("weight", "bias") };
        f.ones(rng, &format!("{layer}pre_norm.{weight}"), &[d]);
        f.normal(rng, &format!("{layer}pre_norm.{bias}"), &[d], 0.2);
    };
    for b in 0..rng.range(1, 3) {
        let block = format!("encoder.blocks.block_{b}.block.");
        let layer = |name: &str| format!("{block}residual_{}.layer.", if parallel { "parallel" } else { name });
        let sizes = Sizes {
            d_model: d,
            d_inner: rng.range(1, 50),
            d_state: rng.range(1, 16),
            d_conv: rng.range(2, 4),
            dt_rank: rng.range(1, 4),
        };
        let (first, second) =
            if parallel { ("parallel.layers.0.", "parallel.layers.1.") } else { ("mamba.", "feedforward.") };
        pre_norm(&mut f, rng, &layer("mamba"));
        mamba(&mut f, rng, &format!("{}{first}", layer("mamba")), &sizes);
        if !parallel {
            pre_norm(&mut f, rng, &layer("feedforward"));
        }
        let gate = if old { "router.gate" } else { "gating.gate" };
        let name = format!("{}{second}", layer("feedforward"));
        self::experts(&mut f, rng, &name, [d, experts], expert != "relu", gate);
    }
    f.normal(rng, "head.weight", &[vocab, d], 0.3);
    f
}

/// Adds a layer of experts under `prefix` (with its final dot), its router called `router`.
pub fn experts(f: &mut Fabricated, rng: &mut Rng, prefix: &str, [d, experts]: [usize; 2], gated: bool, router: &str) {
    let width = rng.range(1, 40);
    f.normal(rng, &format!("{prefix}{router}"), &[d, experts], 0.5);
    let inner = format!("{prefix}expert_inner_function.");
    let scale = |inputs: usize| (inputs as f32).powf(-0.5);
    f.normal(rng, &format!("{inner}lin1_weight"), &[experts, d, width], scale(d));
    if gated {
        f.normal(rng, &format!("{inner}gate_weight"), &[experts, d, width], scale(d));
    }
    f.normal(rng, &format!("{inner}lin2_weight"), &[experts, width, d], scale(width));
}
