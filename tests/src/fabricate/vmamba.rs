//! VMamba: every forward type, both layouts, old and new names, classifiers and backbones, odd stages.

use super::Fabricated;
use crate::Rng;
use serde_json::json;

/// A random VMamba, its frames carried or not.
pub fn random(rng: &mut Rng) -> Fabricated {
    let mut f = Fabricated::default();
    let yes = |rng: &mut Rng| rng.range(0, 1) == 1;
    let stages = rng.range(1, 3);
    let (dims, depths): (Vec<usize>, Vec<usize>) = (0..stages).map(|_| (rng.range(3, 14), rng.range(1, 2))).unzip();
    let (h, w) = (rng.range(4, 22), rng.range(4, 22));
    let (old, downsample) = (yes(rng), rng.pick(&["v1", "v2", "v3"]));
    // Patch merging pads in another way with channels first; a 2 x 2 kernel needs two lines.
    let channel_first = downsample != "v1" && yes(rng);
    let downsample = if downsample == "v2" && h.min(w) < 4 << stages { "v3" } else { downsample };
    let forward_type = forward_type(rng);
    // The vanilla type knows channels last only.
    let channel_first = channel_first && forward_type != "v0";
    let patch_norm = rng.range(0, 3) > 0;

    let v2 = yes(rng);
    let (conv, norm) = if old { ("patch_embed.proj", "patch_embed.norm") } else { ("patch_embed.0", "patch_embed.2") };
    let (stem, kernel) = if v2 { (rng.range(2, 7), rng.pick(&[2, 3])) } else { (dims[0], rng.pick(&[1, 2, 4])) };
    f.weight(rng, &format!("{conv}.weight"), &[stem, 3, kernel, kernel]);
    f.normal(rng, &format!("{conv}.bias"), &[stem], 0.2);
    if patch_norm {
        layer_norm(&mut f, rng, norm, stem);
    }
    if v2 {
        f.weight(rng, "patch_embed.5.weight", &[dims[0], stem, kernel, kernel]);
        f.normal(rng, "patch_embed.5.bias", &[dims[0]], 0.2);
        if patch_norm {
            layer_norm(&mut f, rng, "patch_embed.7", dims[0]);
        }
    }
    if rng.range(0, 3) == 0 {
        let (h, w) = (rng.range(1, 5), rng.range(1, 5));
        f.normal(rng, "pos_embed", &[1, dims[0], h, w], 0.5);
    }

    let (n, conv_bias, taps) = (rng.pick(&[1, 1, 2, 5, 16]), yes(rng), rng.pick(&[1, 3, 3, 3, 5]));
    // The vanilla type has no choice here.
    let (conv_bias, taps) = if forward_type == "v0" { (true, 3) } else { (conv_bias, taps) };
    let (mlp, gmlp) = (rng.range(0, 3) > 0, rng.range(0, 3) == 0);
    for i in 0..stages {
        let c = dims[i];
        let (di, r, hidden) = (rng.range(2, 40), rng.range(1, 3), rng.range(1, 30));
        for j in 0..depths[i] {
            let block = format!("layers.{i}.blocks.{j}");
            layer_norm(&mut f, rng, &format!("{block}.{}", if old { "ln_1" } else { "norm" }), c);
            let op = format!("{block}.{}", if old { "self_attention" } else { "op" });
            ss2d(&mut f, rng, &op, &forward_type, channel_first, [c, di, n, r]);
            if taps > 1 {
                f.weight(rng, &format!("{op}.conv2d.weight"), &[di, 1, taps, taps]);
                if conv_bias {
                    f.normal(rng, &format!("{op}.conv2d.bias"), &[di], 0.2);
                }
            }
            if mlp {
                layer_norm(&mut f, rng, &format!("{block}.norm2"), c);
                let wide = if gmlp { 2 * hidden } else { hidden };
                linear(&mut f, rng, &format!("{block}.mlp.fc1"), [wide, c], channel_first);
                f.normal(rng, &format!("{block}.mlp.fc1.bias"), &[wide], 0.2);
                linear(&mut f, rng, &format!("{block}.mlp.fc2"), [c, hidden], channel_first);
                f.normal(rng, &format!("{block}.mlp.fc2.bias"), &[c], 0.2);
            }
        }
        let Some(&next) = dims.get(i + 1) else { break };
        let name = |n: &str| format!("layers.{i}.downsample.{n}");
        if downsample == "v1" {
            layer_norm(&mut f, rng, &name("norm"), 4 * c);
            f.weight(rng, &name("reduction.weight"), &[next, 4 * c]);
        } else {
            let k = if downsample == "v2" { 2 } else { 3 };
            f.weight(rng, &name("1.weight"), &[next, c, k, k]);
            f.normal(rng, &name("1.bias"), &[next], 0.2);
            layer_norm(&mut f, rng, &name("3"), next);
        }
    }
    let c = dims[stages - 1];
    if rng.range(0, 3) == 0 {
        // A backbone gives the stages that have a norm.
        layer_norm(&mut f, rng, &format!("outnorm{}", stages - 1), c);
        if yes(rng) {
            layer_norm(&mut f, rng, "outnorm0", dims[0]);
        }
    } else {
        let classes = rng.range(1, 9);
        let (norm, head) = if old { ("norm", "head") } else { ("classifier.norm", "classifier.head") };
        layer_norm(&mut f, rng, norm, c);
        f.weight(rng, &format!("{head}.weight"), &[classes, c]);
        f.normal(rng, &format!("{head}.bias"), &[classes], 0.2);
    }
    f.config = json!({ "model": {
        "forward_type": forward_type,
        "norm_layer": if channel_first { "ln2d" } else { "LN" },
        "patch_norm": patch_norm,
        "ssm_conv": taps,
        "ssm_act_layer": if forward_type == "v0" { "silu" } else { rng.pick(&["silu", "gelu", "relu", "sigmoid"]) },
        "mlp_act_layer": rng.pick(&["gelu", "silu"]),
        "patchembed_version": if v2 { "v2" } else { "v1" },
    }});
    f.options.image = Some((h, w));
    f.options.carry = yes(rng);
    f
}

/// A stem with any endings, in the order in which upstream takes them off.
fn forward_type(rng: &mut Rng) -> String {
    let stem = rng.pick(&["v0", "v01", "v05", "v05", "v2", "v3", "v051d", "v052d"]);
    let mut text = stem.to_owned();
    if stem != "v0" {
        text += rng.pick(&["", "", "", "_onnone", "_ondwconv3", "_oncnorm", "_onsoftmax", "_onsigmoid"]);
        for ending in ["_nozact", "_noz", "_oact", "_no32"] {
            if rng.range(0, 2) == 0 {
                text += ending;
            }
        }
    }
    text
}

fn ss2d(f: &mut Fabricated, rng: &mut Rng, op: &str, forward_type: &str, conv: bool, [c, di, n, r]: [usize; 4]) {
    let name = |n: &str| format!("{op}.{n}");
    let wide = if forward_type.contains("_noz_") || forward_type.ends_with("_noz") { di } else { 2 * di };
    linear(f, rng, &name("in_proj"), [wide, c], conv);
    linear(f, rng, &name("out_proj"), [c, di], conv);
    f.weight(rng, &name("x_proj_weight"), &[4, r + 2 * n, di]);
    f.weight(rng, &name("dt_projs_weight"), &[4, di, r]);
    f.normal(rng, &name("dt_projs_bias"), &[4, di], 1.0);
    f.normal(rng, &name("A_logs"), &[4 * di, n], 0.7);
    f.normal(rng, &name("Ds"), &[4 * di], 1.0);
    if forward_type.contains("_ondwconv3") {
        f.weight(rng, &name("out_norm.1.weight"), &[di, 1, 3, 3]);
    } else if forward_type.contains("_oncnorm") {
        layer_norm(f, rng, &name("out_norm.0"), di);
        f.weight(rng, &name("out_norm.2.weight"), &[di, 1, 3, 3]);
    } else if !forward_type.contains("_on") {
        layer_norm(f, rng, &name("out_norm"), di);
    }
}

/// A linear weight, with two unit dimensions behind it where it is stored as a convolution's.
fn linear(f: &mut Fabricated, rng: &mut Rng, name: &str, [out, inn]: [usize; 2], conv: bool) {
    let shape = [out, inn, 1, 1];
    f.weight(rng, &format!("{name}.weight"), if conv { &shape } else { &shape[..2] });
}

fn layer_norm(f: &mut Fabricated, rng: &mut Rng, name: &str, c: usize) {
    f.ones(rng, &format!("{name}.weight"), &[c]);
    f.normal(rng, &format!("{name}.bias"), &[c], 0.2);
}
