//! `ssm random`: weights from a seed, of the sizes that were published. They classify nothing; they show speed, memory
//! and that the pipeline runs, where no trained file is at hand.

use crate::Failure;
use std::collections::HashMap;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Which network.
    network: Network,
    /// Seed of the weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File to write (safetensors).
    #[arg(short, long)]
    output: PathBuf,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Network {
    /// Vim-Ti at 224x224, 7.1 M parameters.
    #[value(name = "vim-tiny")]
    Tiny,
    /// Vim-S at 224x224, 25.8 M parameters.
    #[value(name = "vim-small")]
    Small,
    /// Vim-B at 224x224, 97.6 M parameters.
    #[value(name = "vim-base")]
    Base,
}

/// Uniform values in -1..1 from a seed (xorshift64*, Vigna 2016).
struct Uniform(u64);

impl Uniform {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Tensors of a Vim (Zhu et al. 2024) with its usual initialisation: name, shape, values.
fn vim(d: usize, seed: u64) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let (depth, n, e, r, classes, tokens) = (24, 16, 2 * d, d.div_ceil(16), 1000, 197);
    let mut random = Uniform(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize], value: &mut dyn FnMut(usize, f32) -> f32| {
        let values = (0..shape.iter().product()).map(|i| value(i, random.next())).collect();
        tensors.push((name, shape.to_vec(), values));
    };
    // Uniform within ±1/√inputs, as PyTorch starts linear maps and convolutions.
    let within = |inputs: usize| move |_: usize, u: f32| u / (inputs as f32).sqrt();
    add("cls_token".into(), &[1, 1, d], &mut |_, u| 0.03 * u);
    add("pos_embed".into(), &[1, tokens, d], &mut |_, u| 0.03 * u);
    add("patch_embed.proj.weight".into(), &[d, 3, 16, 16], &mut within(768));
    add("patch_embed.proj.bias".into(), &[d], &mut within(768));
    for i in 0..depth {
        let name = |n: &str| format!("layers.{i}.mixer.{n}");
        add(name("in_proj.weight"), &[2 * e, d], &mut within(d));
        add(name("out_proj.weight"), &[d, e], &mut within(e));
        for b in ["", "_b"] {
            add(name(&format!("conv1d{b}.weight")), &[e, 1, 4], &mut within(4));
            add(name(&format!("conv1d{b}.bias")), &[e], &mut within(4));
            add(name(&format!("x_proj{b}.weight")), &[r + 2 * n, e], &mut within(e));
            add(name(&format!("dt_proj{b}.weight")), &[e, r], &mut within(r));
            // softplus of the bias is a step between 0.001 and 0.1, evenly in its logarithm.
            let step = |u: f32| (0.01 * 10f32.powf(u)).exp_m1().ln();
            add(name(&format!("dt_proj{b}.bias")), &[e], &mut |_, u| step(u));
            let (a, skip) = if b.is_empty() { ("A_log", "D") } else { ("A_b_log", "D_b") };
            add(name(a), &[e, n], &mut |i, _| ((i % n + 1) as f32).ln());
            add(name(skip), &[e], &mut |_, _| 1.0);
        }
        add(format!("layers.{i}.norm.weight"), &[d], &mut |_, _| 1.0);
    }
    add("norm_f.weight".into(), &[d], &mut |_, _| 1.0);
    add("head.weight".into(), &[classes, d], &mut within(d));
    add("head.bias".into(), &[classes], &mut |_, _| 0.0);
    tensors
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let (name, d) = match args.network {
        Network::Tiny => ("Vim-Ti", 192),
        Network::Small => ("Vim-S", 384),
        Network::Base => ("Vim-B", 768),
    };
    let tensors = vim(d, args.seed);
    let parameters: usize = tensors.iter().map(|t| t.2.len()).sum();
    let fail = |reason: String| Failure::File { path: args.output.clone(), reason };
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| t.2.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).map(|v| (name, v))
    });
    let views: Vec<_> = views.collect::<Result<_, _>>().map_err(|e| fail(e.to_string()))?;
    let note = format!("random weights of seed {}, untrained", args.seed);
    let metadata = HashMap::from([("note".to_owned(), note.clone())]);
    safetensors::serialize_to_file(views, Some(metadata), &args.output).map_err(|e| fail(e.to_string()))?;
    println!("{}: {name}, {parameters} parameters, {note}: its classes mean nothing", args.output.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_published_ones() {
        for (d, parameters) in [(192, 7_148_008), (384, 25_796_584)] {
            assert_eq!(vim(d, 1).iter().map(|t| t.2.len()).sum::<usize>(), parameters);
        }
        let (a, b) = (vim(192, 1), vim(192, 2));
        assert!(a[0].2 != b[0].2 && a[0].2 == vim(192, 1)[0].2);
    }
}
