//! Composites: every encoder before every core, with and without differences, projection and head.

use super::mixer::{self, mamba, mamba2};
use super::{Fabricated, bst, moe_mamba, s4, vim, vmamba};
use crate::Rng;
use serde_json::{Value, json};

/// A random composite of vectors.
pub fn bare(rng: &mut Rng) -> Fabricated {
    random(rng, "none")
}

/// A random composite with a Vim.
pub fn with_vim(rng: &mut Rng) -> Fabricated {
    random(rng, "vim")
}

/// A random composite with a VMamba.
pub fn with_vmamba(rng: &mut Rng) -> Fabricated {
    random(rng, "vmamba")
}

/// A random composite with convolutions.
pub fn with_conv(rng: &mut Rng) -> Fabricated {
    random(rng, "conv")
}

/// A random composite of log-mel frames.
pub fn with_mel(rng: &mut Rng) -> Fabricated {
    random(rng, "mel")
}

/// The cores there are.
pub const CORES: [&str; 5] = ["mamba", "mamba2", "s4d", "moe_mamba", "bst"];

fn random(rng: &mut Rng, encoder: &str) -> Fabricated {
    let core = rng.pick(&CORES);
    composite(rng, encoder, core)
}

/// A random composite of the kinds asked for.
pub fn composite(rng: &mut Rng, encoder: &str, core: &str) -> Fabricated {
    let mut f = Fabricated { config: json!({ "family": "composite", "version": 1 }), ..Fabricated::default() };
    let width = match encoder {
        "vim" | "vmamba" => vision(&mut f, rng, encoder),
        "conv" => conv(&mut f, rng),
        "mel" => mel(&mut f, rng),
        _ => {
            let dim = rng.range(1, 20);
            f.config["encoder"] = json!({ "kind": "none" });
            f.config["input"] = json!({ "dim": dim });
            dim
        }
    };
    let difference = rng.range(0, 2) == 0;
    f.config["encoder"]["difference"] = json!(difference);
    let similarity = rng.pick(&[0, 0, 1, 3]);
    f.config["encoder"]["similarity"] = json!(similarity);
    let joined = if difference { 2 * width } else { width } + similarity;
    let plain = core != "bst" && joined < 80 && rng.range(0, 3) == 0;
    let d = core_of(&mut f, rng, core, plain.then_some(joined));
    if !plain {
        f.weight(rng, "in_proj.weight", &[d, joined]);
        if rng.range(0, 1) == 1 {
            f.normal(rng, "in_proj.bias", &[d], 0.2);
        }
    }
    if rng.range(0, 3) > 0 {
        let classes = rng.range(1, 6);
        f.weight(rng, "head.weight", &[classes, d]);
        f.normal(rng, "head.bias", &[classes], 0.2);
        let names: Vec<String> = (0..classes).map(|i| format!("class {i}")).collect();
        let activation = rng.pick(&["softmax", "sigmoid"]);
        f.config["head"] =
            json!({ "kind": "linear", "classes": names, "activation": activation, "look_ahead": rng.range(0, 4) });
    } else {
        f.config["head"] = json!({ "kind": "none" });
    }
    f
}

/// A random composite with a Mamba and this head, whose scores of the classes that it names move by about `scale`.
pub fn scoring(rng: &mut Rng, encoder: &str, scale: f32, head: Value) -> Fabricated {
    let mut f = composite(rng, encoder, "mamba");
    let (d, classes) = (f.tensors["core.norm_f.weight"].0[0], head["classes"].as_array().map_or(0, Vec::len));
    f.normal(rng, "head.weight", &[classes, d], scale);
    f.normal(rng, "head.bias", &[classes], 0.1);
    f.config["head"] = head;
    f
}

/// A core of the kind asked for, of width `d` where that is given, which a Block-State Transformer chooses itself; returns
/// its width.
pub fn core_of(f: &mut Fabricated, rng: &mut Rng, core: &str, d: Option<usize>) -> usize {
    if core == "bst" {
        return block_state(f, rng);
    }
    let d = d.unwrap_or_else(|| rng.range(2, 30));
    layers(f, rng, core, d);
    d
}

/// Adds the tensors of another model under `prefix`, those that `keep` wants.
fn nest(f: &mut Fabricated, inner: Fabricated, prefix: &str, keep: impl Fn(&str) -> bool) {
    let kept = inner.tensors.into_iter().filter(|(name, _)| keep(name));
    f.tensors.extend(kept.map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
}

/// A vision network, with its head or without; returns the width of its features.
fn vision(f: &mut Fabricated, rng: &mut Rng, kind: &str) -> usize {
    let pooled =
        |f: &Fabricated| f.tensors.contains_key("classifier.norm.weight") || f.tensors.contains_key("norm.weight");
    let mut net = if kind == "vim" { vim::random(rng) } else { vmamba::random(rng) };
    while kind == "vmamba" && !pooled(&net) {
        net = vmamba::random(rng);
    }
    if kind == "vim" {
        // One vector, whatever the number of tokens.
        net.config["model"]["final_pool_type"] = json!(rng.pick(&["mean", "none"]));
    }
    let (h, w) = match &net.config["model"]["img_size"] {
        Value::Array(hw) => (hw[0].clone(), hw[1].clone()),
        _ => net.options.image.map_or_else(Default::default, |(h, w)| (json!(h), json!(w))),
    };
    f.config["input"] = json!({ "height": h, "width": w, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3] });
    f.config["encoder"] = json!({ "kind": kind, "carry": net.options.carry, "model": net.config["model"] });
    let head = ["head.weight", "head.bias", "classifier.head.weight", "classifier.head.bias"];
    let width = head.iter().find_map(|n| net.tensors.get(*n)).map_or(0, |(shape, _)| shape[1]);
    let with_head = rng.range(0, 1) == 1;
    nest(f, net, "encoder.", |name| with_head || !head.contains(&name));
    width
}

/// Convolutions and their pooling; returns the width.
fn conv(f: &mut Fabricated, rng: &mut Rng) -> usize {
    let (mut channels, width) = (3, rng.range(1, 20));
    for i in 0..rng.range(1, 3) {
        let out = rng.range(1, 12);
        f.weight(rng, &format!("encoder.convs.{i}.weight"), &[out, channels, 3, 3]);
        f.normal(rng, &format!("encoder.convs.{i}.bias"), &[out], 0.2);
        channels = out;
    }
    let pool = rng.pick(&[None, Some((1, 2)), Some((2, 3)), Some((4, 4))]);
    let cells = pool.map_or(0, |(h, w)| h * w);
    f.weight(rng, "encoder.proj.weight", &[width, channels * (1 + cells)]);
    f.normal(rng, "encoder.proj.bias", &[width], 0.2);
    f.config["encoder"] = json!({ "kind": "conv", "pool": pool });
    f.config["input"] = json!({ "height": rng.range(1, 20), "width": rng.range(1, 20) });
    f.config["step_rate"] = json!(25);
    width
}

/// Log-mel frames, one or several a step; returns the width.
fn mel(f: &mut Fabricated, rng: &mut Rng) -> usize {
    let (frames, bins, width) = (rng.range(1, 3), rng.range(2, 12), rng.range(1, 20));
    f.weight(rng, "encoder.proj.weight", &[width, frames * bins]);
    f.normal(rng, "encoder.proj.bias", &[width], 0.2);
    f.config["encoder"] = json!({ "kind": "mel", "frontend": {
        "kind": rng.pick(&["kaldi_fbank", "librosa"]),
        "num_mel_bins": bins,
        "frame_length_ms": 25,
        "frame_shift_ms": 10,
        "mean": -4,
        "std": 4,
    }});
    f.config["input"] = json!({ "rate": 8000, "hop": 80 * frames });
    width
}

/// Residual layers of any of the stacked cores.
fn layers(f: &mut Fabricated, rng: &mut Rng, core: &str, d: usize) {
    f.config["core"] = json!({ "kind": core });
    let layer_norm = rng.range(0, 1) == 1;
    let norm = |f: &mut Fabricated, rng: &mut Rng, name: &str| {
        f.ones(rng, &format!("core.{name}.weight"), &[d]);
        if layer_norm {
            f.normal(rng, &format!("core.{name}.bias"), &[d], 0.2);
        }
    };
    let mut sizes = mixer::Sizes {
        d_model: d,
        d_inner: rng.range(1, 40),
        d_state: rng.range(1, 16),
        d_conv: rng.range(1, 4),
        dt_rank: rng.range(1, 3),
    };
    let (groups, heads, head_dim) = (rng.range(1, 2), rng.range(1, 3), rng.range(1, 10));
    if core == "mamba2" {
        sizes.d_inner = groups * heads * head_dim;
        f.config["core"]["n_groups"] = json!(groups);
    }
    let (experts, expert) = (rng.range(1, 6), rng.pick(&["relu", "swi_glu", "geglu"]));
    if core == "moe_mamba" {
        f.config["core"]["expert"] = json!(expert);
        f.config["core"]["routing_top_k"] = json!(rng.range(1, experts.min(2)));
    }
    let (mlp, tutorial) = (rng.range(0, 2) == 0, rng.range(0, 1) == 1);
    for i in 0..rng.range(1, 3) {
        let name = |n: &str| format!("core.layers.{i}.{n}");
        norm(f, rng, &format!("layers.{i}.norm"));
        match core {
            "mamba2" => mamba2(f, rng, &name("mixer."), &sizes, groups * heads, groups),
            "s4d" if tutorial => s4::minimal(f, rng, &name("mixer."), d),
            "s4d" => {
                let sizes = s4::Sizes { d_model: d, channels: rng.range(1, 2), halved: false, any_rank: false };
                s4::block(f, rng, &name("mixer."), &sizes);
            }
            _ => mamba(f, rng, &name("mixer."), &sizes),
        }
        if core == "moe_mamba" {
            norm(f, rng, &format!("layers.{i}.norm2"));
            moe_mamba::experts(f, rng, &name("feedforward."), [d, experts], expert != "relu", "gating.gate");
        } else if mlp {
            let wide = rng.range(1, 20);
            norm(f, rng, &format!("layers.{i}.norm2"));
            f.weight(rng, &name("mlp.fc1.weight"), &[2 * wide, d]);
            f.weight(rng, &name("mlp.fc2.weight"), &[d, wide]);
        }
    }
    norm(f, rng, "norm_f");
}

/// Layers of a Block-State Transformer; returns their width.
fn block_state(f: &mut Fabricated, rng: &mut Rng) -> usize {
    let net = bst::random(rng);
    f.config["core"] = net.config.clone();
    f.config["core"]["kind"] = json!("bst");
    let d = net.tensors["embed.weight"].0[1];
    nest(f, net, "core.", |name| name != "embed.weight" && name != "lm_head.weight");
    d
}
