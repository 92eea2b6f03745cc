//! Vim: both directions, any place of the class token, any pooling, square and oblong frames.

use super::Fabricated;
use super::mixer::{Sizes, direction, mamba};
use crate::Rng;
use serde_json::json;

/// A random Vim, its frames carried or not.
pub fn random(rng: &mut Rng) -> Fabricated {
    let mut f = Fabricated::default();
    let (d, depth, p) = (rng.range(3, 20), rng.range(1, 3), rng.pick(&[2, 4]));
    let stride = rng.pick(&[p, p / 2]);
    let (h, w) = (rng.range(p, 14), rng.range(p, 14));
    let grid = ((h - p) / stride + 1) * ((w - p) / stride + 1);
    let (class, middle) = (rng.range(0, 2), rng.range(0, 1) == 1);
    f.weight(rng, "patch_embed.proj.weight", &[d, 3, p, p]);
    f.normal(rng, "patch_embed.proj.bias", &[d], 0.3);
    f.normal(rng, "pos_embed", &[1, grid + class, d], 0.5);
    match class {
        0 => {}
        1 => f.normal(rng, "cls_token", &[1, 1, d], 0.5),
        _ => {
            f.normal(rng, "cls_token_head", &[1, 1, d], 0.5);
            f.normal(rng, "cls_token_tail", &[1, 1, d], 0.5);
        }
    }
    let layer_norm = rng.range(0, 1) == 1;
    let sizes = Sizes {
        d_model: d,
        d_inner: rng.range(2, 40),
        d_state: rng.pick(&[1, 3, 8, 16]),
        d_conv: rng.range(2, 4),
        dt_rank: rng.range(1, 3),
    };
    let bimamba = rng.range(0, 2);
    for i in 0..depth {
        let prefix = format!("layers.{i}.mixer.");
        mamba(&mut f, rng, &prefix, &sizes);
        match bimamba {
            0 => {}
            1 => f.normal(rng, &format!("{prefix}A_b_log"), &[sizes.d_inner, sizes.d_state], 0.7),
            _ => direction(&mut f, rng, &prefix, "_b", &sizes),
        }
        f.ones(rng, &format!("layers.{i}.norm.weight"), &[d]);
        if layer_norm {
            f.normal(rng, &format!("layers.{i}.norm.bias"), &[d], 0.2);
        }
    }
    f.ones(rng, "norm_f.weight", &[d]);
    if layer_norm {
        f.normal(rng, "norm_f.bias", &[d], 0.2);
    }
    let classes = rng.range(1, 9);
    f.weight(rng, "head.weight", &[classes, d]);
    f.normal(rng, "head.bias", &[classes], 0.2);
    f.config = json!({ "model": {
        "img_size": [h, w],
        "stride": stride,
        "use_middle_cls_token": middle,
        "final_pool_type": rng.pick(&["mean", "none", "max", "all"]),
        "if_divide_out": rng.range(0, 1) == 1,
    }});
    f.options.carry = rng.range(0, 1) == 1;
    f
}
