//! S4 and S4D: all published forms, shared systems, channels, every option, systems from HiPPO so that they are stable.

use super::{Fabricated, mixer};
use crate::Rng;
use serde_json::json;
use ssm_models::hippo::{Diagonal, Measure};

/// A random S4 model.
pub fn random(rng: &mut Rng) -> Fabricated {
    let mut f = Fabricated::default();
    let d = rng.range(1, 20);
    match rng.range(0, 3) {
        0 => {
            let (activation, channels) = rng.pick(&[("gelu", 1), ("glu", 2), ("tanh", 3), ("silu", 1)]);
            f.config = json!({
                "activation": activation,
                "disc": rng.pick(&["zoh", "bilinear"]),
                "dt_transform": rng.pick(&["exp", "softplus"]),
                "swap_channels": rng.pick(&[true, false]),
                "final_act": rng.pick(&["glu", "relu", "id", "elu"]),
            });
            block(&mut f, rng, "", &Sizes { d_model: d, channels, halved: activation == "glu", any_rank: true });
        }
        1 => minimal(&mut f, rng, "", d),
        2 => {
            let columns = rng.range(1, 5);
            f.weight(rng, "encoder.weight", &[d, columns]);
            f.normal(rng, "encoder.bias", &[d], 0.2);
            for i in 0..rng.range(1, 3) {
                minimal(&mut f, rng, &format!("s4_layers.{i}."), d);
                f.ones(rng, &format!("norms.{i}.weight"), &[d]);
                f.normal(rng, &format!("norms.{i}.bias"), &[d], 0.2);
            }
            let classes = rng.range(1, 6);
            f.weight(rng, "decoder.weight", &[classes, d]);
            f.normal(rng, "decoder.bias", &[classes], 0.2);
            f.config = json!({ "prenorm": rng.pick(&[true, false]) });
        }
        _ => {
            f.config = json!({ "final_act": rng.pick(&["glu", "gelu"]), "pool": rng.pick(&["none", "mean"]) });
            let vocab = rng.range(2, 30);
            f.normal(rng, "encoder.0.weight", &[vocab, d], 1.0);
            for i in 0..rng.range(1, 3) {
                let sizes = Sizes { d_model: d, channels: 1, halved: false, any_rank: true };
                block(&mut f, rng, &format!("model.layers.{i}.layer."), &sizes);
                f.ones(rng, &format!("model.layers.{i}.norm.norm.weight"), &[d]);
                f.normal(rng, &format!("model.layers.{i}.norm.norm.bias"), &[d], 0.2);
            }
            f.ones(rng, "model.norm.norm.weight", &[d]);
            f.normal(rng, "model.norm.norm.bias", &[d], 0.2);
        }
    }
    f
}

/// Sizes of an `S4Block`.
pub struct Sizes {
    /// Width of the stream.
    pub d_model: usize,
    /// Channels of each feature, doubled for a glu.
    pub channels: usize,
    /// Whether the activation is a glu.
    pub halved: bool,
    /// Whether the system may have a correction of low rank.
    pub any_rank: bool,
}

/// Adds the tensors of the system inside a layer, `D` and `kernel.*`.
pub fn system(f: &mut Fabricated, rng: &mut Rng, prefix: &str, h: usize, channels: usize, rank: usize) {
    let n = rng.range(1, 9);
    let shared = if h.is_multiple_of(2) { rng.pick(&[h, h / 2]) } else { h };
    let start = match rank {
        0 => rng.pick(&[Diagonal::Lin, Diagonal::Inv, Diagonal::LegS]).start(2 * n),
        1 => rng.pick(&[Measure::LegS, Measure::Fourier]).start(2 * n),
        _ => Measure::LegT.start(2 * n),
    };
    let name = |n: &str| format!("{prefix}{n}");
    let tiled = |v: Vec<f32>, front: usize| -> Vec<f32> {
        let per_row = v.len() / front;
        v.chunks(per_row).flat_map(|row| row.repeat(shared)).collect()
    };
    let dt = |rng: &mut Rng, columns: usize| rng.normals(h * columns, 1.0).iter().map(|v| v - 3.0).collect();
    let columns = rng.pick(&[1, n]);
    f.normal(rng, &name("D"), &[channels, h], 1.0);
    let values = dt(rng, columns);
    f.values(&name("kernel.inv_dt"), &[h, columns], values);
    let re = start.a.iter().map(|a| (-a.re).max(1e-4).ln() as f32).collect();
    f.values(&name("kernel.A_real"), &[shared, n], tiled(re, 1));
    f.values(&name("kernel.A_imag"), &[shared, n], tiled(start.a.iter().map(|a| -a.im as f32).collect(), 1));
    let pairs = |v: &[_]| -> Vec<f32> { v.iter().flat_map(|(re, im)| [*re as f32, *im as f32]).collect() };
    let b: Vec<(f64, f64)> = start.b.iter().map(|z| (z.re, z.im)).collect();
    f.values(&name("kernel.B"), &[1, shared, n, 2], tiled(pairs(&b), 1));
    f.normal(rng, &name("kernel.C"), &[channels, h, n, 2], 0.5);
    if rank > 0 {
        let p: Vec<(f64, f64)> = start.p.iter().flatten().map(|z| (z.re, z.im)).collect();
        f.values(&name("kernel.P"), &[rank, shared, n, 2], tiled(pairs(&p), rank));
        f.values(&name("kernel.l_kernel"), &[], vec![rng.pick(&[0.0, 16.0])]);
    }
}

/// Adds an `S4Block`.
pub fn block(f: &mut Fabricated, rng: &mut Rng, prefix: &str, s: &Sizes) {
    let rank = if s.any_rank { rng.range(0, 2) } else { 0 };
    system(f, rng, &format!("{prefix}layer."), s.d_model, s.channels, rank);
    let inner = s.d_model * s.channels / if s.halved { 2 } else { 1 };
    let rows = if f.config["final_act"].as_str().is_none_or(|a| a == "glu") { 2 } else { 1 } * s.d_model;
    f.weight(rng, &format!("{prefix}output_linear.0.weight"), &[rows, inner]);
    f.normal(rng, &format!("{prefix}output_linear.0.bias"), &[rows], 0.2);
}

/// Adds a Mamba block with an S4 layer of low rank in the place of its scan.
pub fn mixer(f: &mut Fabricated, rng: &mut Rng, prefix: &str, s: &mixer::Sizes) {
    let name = |n: &str| format!("{prefix}{n}");
    let h = rng.range(1, 6);
    f.weight(rng, &name("in_proj.weight"), &[2 * s.d_inner, s.d_model]);
    f.weight(rng, &name("conv1d.weight"), &[s.d_inner, 1, s.d_conv]);
    f.normal(rng, &name("conv1d.bias"), &[s.d_inner], 0.2);
    f.weight(rng, &name("ssm.input_linear.weight"), &[h, s.d_inner]);
    f.normal(rng, &name("ssm.input_linear.bias"), &[h], 0.2);
    system(f, rng, &name("ssm.layer."), h, 1, 1);
    f.weight(rng, &name("ssm.output_linear.0.weight"), &[2 * s.d_inner, h]);
    f.normal(rng, &name("ssm.output_linear.0.bias"), &[2 * s.d_inner], 0.2);
    f.weight(rng, &name("out_proj.weight"), &[s.d_model, s.d_inner]);
}

/// Adds the tutorial's module.
pub fn minimal(f: &mut Fabricated, rng: &mut Rng, prefix: &str, d: usize) {
    let n = rng.range(1, 9);
    let name = |n: &str| format!("{prefix}{n}");
    f.normal(rng, &name("D"), &[d], 1.0);
    f.normal(rng, &name("kernel.C"), &[d, n, 2], 0.5);
    let dt = rng.normals(d, 1.0).iter().map(|v| v - 3.0).collect();
    f.values(&name("kernel.log_dt"), &[d], dt);
    f.normal(rng, &name("kernel.log_A_real"), &[d, n], 0.7);
    f.normal(rng, &name("kernel.A_imag"), &[d, n], 8.0);
    f.weight(rng, &name("output_linear.0.weight"), &[2 * d, d, 1]);
    f.normal(rng, &name("output_linear.0.bias"), &[2 * d], 0.2);
}
