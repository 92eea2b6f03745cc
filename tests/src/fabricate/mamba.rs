//! Mamba and Mamba-2: language models under both spellings, tied or not, with any of the optional parts, and single
//! mixers.

use super::Fabricated;
use super::mixer::{Sizes, mamba, mamba2};
use crate::Rng;
use serde_json::json;

/// A random Mamba.
pub fn random(rng: &mut Rng) -> Fabricated {
    draw(rng, false)
}

/// A random Mamba-2.
pub fn random2(rng: &mut Rng) -> Fabricated {
    draw(rng, true)
}

fn draw(rng: &mut Rng, second: bool) -> Fabricated {
    let mut f = Fabricated { config: json!({}), ..Fabricated::default() };
    let d = rng.range(2, 40);
    let mut sizes = Sizes {
        d_model: d,
        d_inner: rng.range(1, 70),
        d_state: rng.range(1, 20),
        d_conv: rng.range(1, 5),
        dt_rank: rng.range(1, 4),
    };
    let (groups, heads, head_dim) = (rng.range(1, 3), rng.range(1, 3), rng.range(1, 20));
    if second {
        sizes.d_inner = groups * heads * head_dim;
        f.config["ssm_cfg"] = json!({ "ngroups": groups, "headdim": head_dim, "d_state": sizes.d_state });
        if rng.range(0, 3) == 0 {
            f.config["time_step_limit"] = json!([0.1, "inf"]);
        }
    }
    let mixer = |f: &mut Fabricated, rng: &mut Rng, prefix: &str| {
        if second {
            mamba2(f, rng, prefix, &sizes, groups * heads, groups);
        } else {
            mamba(f, rng, prefix, &sizes);
        }
    };
    if rng.range(0, 3) == 0 {
        mixer(&mut f, rng, "");
        return f;
    }
    let prefix = rng.pick(&["backbone.", "backbone.", ""]);
    let embedding = rng.pick(&["embedding", "embeddings"]);
    let (vocab, layer_norm, mlp) = (rng.range(2, 60), rng.range(0, 1) == 1, rng.range(0, 2) == 0);
    let norm = |f: &mut Fabricated, rng: &mut Rng, name: &str| {
        f.ones(rng, &format!("{prefix}{name}.weight"), &[d]);
        if layer_norm {
            f.normal(rng, &format!("{prefix}{name}.bias"), &[d], 0.2);
        }
    };
    let layers = rng.range(1, 3);
    for i in 0..layers {
        norm(&mut f, rng, &format!("layers.{i}.norm"));
        mixer(&mut f, rng, &format!("{prefix}layers.{i}.mixer."));
        if mlp {
            let wide = rng.range(1, 50);
            norm(&mut f, rng, &format!("layers.{i}.norm2"));
            f.weight(rng, &format!("{prefix}layers.{i}.mlp.fc1.weight"), &[2 * wide, d]);
            f.weight(rng, &format!("{prefix}layers.{i}.mlp.fc2.weight"), &[d, wide]);
        }
    }
    norm(&mut f, rng, "norm_f");
    let tied = rng.range(0, 2);
    if tied != 2 {
        f.normal(rng, &format!("{prefix}{embedding}.weight"), &[vocab, d], 1.0);
    }
    if tied != 1 {
        f.normal(rng, "lm_head.weight", &[vocab, d], 0.3);
    }
    f.config["n_layer"] = json!(layers);
    f
}
