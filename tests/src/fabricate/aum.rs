//! Audio Mamba: every kind of block, any place of the class token, any grid, clips, frames and samples.

use super::Fabricated;
use super::mixer::{Sizes, direction, mamba};
use crate::Rng;
use serde_json::json;
use ssm_models::Listen;

/// A random Audio Mamba with random ears.
pub fn random(rng: &mut Rng) -> Fabricated {
    let mut f = Fabricated::default();
    let (d, depth, patch) = (rng.range(3, 20), rng.range(1, 3), (rng.range(1, 4), rng.range(1, 4)));
    let strides = (rng.range(1, patch.0), rng.range(1, patch.1));
    let (bins, frames) = (rng.range(patch.0, 10), rng.range(patch.1, 12));
    let grid = ((bins - patch.0) / strides.0 + 1) * ((frames - patch.1) / strides.1 + 1);
    let class = rng.pick(&["middle", "head", "end", "end", "double", "none"]);
    let classes = ["none", "double"].iter().position(|c| *c == class).map_or(1, |i| 2 * i);
    f.weight(rng, "patch_embed.proj.weight", &[d, 1, patch.0, patch.1]);
    f.normal(rng, "patch_embed.proj.bias", &[d], 0.3);
    if rng.range(0, 3) > 0 {
        f.normal(rng, "pos_embed.pos_embed", &[1, grid + classes, d], 0.5);
    }
    match classes {
        0 => {}
        1 => f.normal(rng, "cls_token", &[1, 1, d], 0.5),
        _ => {
            f.normal(rng, "cls_token_head", &[1, 1, d], 0.5);
            f.normal(rng, "cls_token_tail", &[1, 1, d], 0.5);
        }
    }
    let sizes = Sizes {
        d_model: d,
        d_inner: rng.range(2, 40),
        d_state: rng.pick(&[1, 3, 8, 16]),
        d_conv: rng.range(2, 4),
        dt_rank: rng.range(1, 3),
    };
    let bimamba = rng.pick(&["none", "none", "v1", "v2"]);
    for i in 0..depth {
        let prefix = format!("layers.{i}.mixer.");
        mamba(&mut f, rng, &prefix, &sizes);
        match bimamba {
            "none" => {}
            "v1" => f.normal(rng, &format!("{prefix}A_b_log"), &[sizes.d_inner, sizes.d_state], 0.7),
            _ => direction(&mut f, rng, &prefix, "_b", &sizes),
        }
        f.ones(rng, &format!("layers.{i}.norm.weight"), &[d]);
    }
    f.ones(rng, "norm_f.weight", &[d]);
    let outputs = rng.range(1, 9);
    f.weight(rng, "head.weight", &[outputs, d]);
    f.normal(rng, "head.bias", &[outputs], 0.2);
    let kind = rng.pick(&["kaldi_fbank", "librosa"]);
    f.config = json!({
        "mel_bins": bins,
        "frames": frames,
        "strides": [strides.0, strides.1],
        "bimamba_type": bimamba,
        "cls_token": class,
        "transpose_token_sequence": rng.range(0, 2) > 0,
        "if_devide_out": rng.range(0, 1) == 1,
        "final_pool_type": rng.pick(&["mean", "none", "max", "all"]),
        "frontend": { "kind": kind, "sample_rate": 4000, "mean": -4.3, "std": 4.6 },
    });
    let every = rng.range(0, 5);
    f.options.listen = rng.pick(&[Listen::Clip, Listen::Frames(every), Listen::Samples(every)]);
    f.options.carry = f.options.listen == Listen::Clip && rng.range(0, 1) == 1;
    f
}

/// Names and shapes of a published model: its size, kind of block, classes and frames of a clip.
pub fn published(size: &str, kind: &str, classes: usize, frames: usize) -> Vec<(String, Vec<usize>)> {
    let d = match size {
        "base" => 768,
        "small" => 384,
        _ => 192,
    };
    let (e, n, r, depth) = (2 * d, 16, d / 16, 24);
    let mut shapes = vec![
        ("patch_embed.proj.weight".into(), vec![d, 1, 16, 16]),
        ("patch_embed.proj.bias".into(), vec![d]),
        ("pos_embed.pos_embed".into(), vec![1, 8 * (frames / 16) + 1, d]),
        ("cls_token".into(), vec![1, 1, d]),
        ("norm_f.weight".into(), vec![d]),
        ("head.weight".into(), vec![classes, d]),
        ("head.bias".into(), vec![classes]),
    ];
    for i in 0..depth {
        shapes.push((format!("layers.{i}.norm.weight"), vec![d]));
        let mut add = |name: &str, shape: &[usize]| shapes.push((format!("layers.{i}.mixer.{name}"), shape.to_vec()));
        add("in_proj.weight", &[2 * e, d]);
        add("out_proj.weight", &[d, e]);
        let directions: &[&str] = if kind == "Bi-Bi" { &["", "_b"] } else { &[""] };
        for b in directions {
            add(&format!("conv1d{b}.weight"), &[e, 1, 4]);
            add(&format!("conv1d{b}.bias"), &[e]);
            add(&format!("x_proj{b}.weight"), &[r + 2 * n, e]);
            add(&format!("dt_proj{b}.weight"), &[e, r]);
            add(&format!("dt_proj{b}.bias"), &[e]);
            add(&format!("D{b}"), &[e]);
        }
        add("A_log", &[e, n]);
        if kind != "Fo-Fo" {
            add("A_b_log", &[e, n]);
        }
    }
    shapes
}
