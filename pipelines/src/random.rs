//! `ssm random`: weights from a seed, of the sizes that were published. They have learned nothing; they show speed, memory
//! and that the pipeline runs, where no trained file is at hand.

use crate::{Failure, output};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  ssm random vim-tiny --seed 7 --output vim-tiny-random.safetensors";

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
    /// VMamba-T (one layer of states, depths 2, 2, 8, 2) at 224x224, 30.2 M parameters.
    #[value(name = "vmamba-tiny")]
    VmambaTiny,
    /// Mamba, 129 M parameters.
    #[value(name = "mamba-130m")]
    Mamba130m,
    /// Mamba, 372 M parameters.
    #[value(name = "mamba-370m")]
    Mamba370m,
    /// Mamba-2, 129 M parameters.
    #[value(name = "mamba2-130m")]
    Mamba2At130m,
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

/// Tensors drawn one after the other: name, shape, values.
struct Weights {
    random: Uniform,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Weights {
    fn new(seed: u64) -> Self {
        Self { random: Uniform(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1), tensors: Vec::new() }
    }

    /// A tensor of `value(index, uniform in -1..1)`.
    fn add(&mut self, name: String, shape: &[usize], mut value: impl FnMut(usize, f32) -> f32) {
        let values = (0..shape.iter().product()).map(|i| value(i, self.random.next())).collect();
        self.tensors.push((name, shape.to_vec(), values));
    }
}

/// Uniform within ±1/√inputs, as PyTorch starts linear maps and convolutions.
fn within(inputs: usize) -> impl Fn(usize, f32) -> f32 {
    move |_, u| u / (inputs as f32).sqrt()
}

/// A bias whose softplus is a step between 0.001 and 0.1, evenly in its logarithm.
fn step(_: usize, u: f32) -> f32 {
    (0.01 * 10f32.powf(u)).exp_m1().ln()
}

/// Tensors of a Vim (Zhu et al. 2024) with its usual initialisation: name, shape, values.
fn vim(d: usize, seed: u64) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let (depth, n, e, r, classes, tokens) = (24, 16, 2 * d, d.div_ceil(16), 1000, 197);
    let mut w = Weights::new(seed);
    w.add("cls_token".into(), &[1, 1, d], |_, u| 0.03 * u);
    w.add("pos_embed".into(), &[1, tokens, d], |_, u| 0.03 * u);
    w.add("patch_embed.proj.weight".into(), &[d, 3, 16, 16], within(768));
    w.add("patch_embed.proj.bias".into(), &[d], within(768));
    for i in 0..depth {
        let name = |n: &str| format!("layers.{i}.mixer.{n}");
        w.add(name("in_proj.weight"), &[2 * e, d], within(d));
        w.add(name("out_proj.weight"), &[d, e], within(e));
        for b in ["", "_b"] {
            w.add(name(&format!("conv1d{b}.weight")), &[e, 1, 4], within(4));
            w.add(name(&format!("conv1d{b}.bias")), &[e], within(4));
            w.add(name(&format!("x_proj{b}.weight")), &[r + 2 * n, e], within(e));
            w.add(name(&format!("dt_proj{b}.weight")), &[e, r], within(r));
            w.add(name(&format!("dt_proj{b}.bias")), &[e], step);
            let (a, skip) = if b.is_empty() { ("A_log", "D") } else { ("A_b_log", "D_b") };
            w.add(name(a), &[e, n], |i, _| ((i % n + 1) as f32).ln());
            w.add(name(skip), &[e], |_, _| 1.0);
        }
        w.add(format!("layers.{i}.norm.weight"), &[d], |_, _| 1.0);
    }
    w.add("norm_f.weight".into(), &[d], |_, _| 1.0);
    w.add("head.weight".into(), &[classes, d], within(d));
    w.add("head.bias".into(), &[classes], |_, _| 0.0);
    w.tensors
}

/// Sizes of a language model.
struct Lm {
    d: usize,
    layers: usize,
    /// States per channel (Mamba) or per head (Mamba-2).
    n: usize,
    vocab: usize,
    /// Heads of 64 channels; none: Mamba-1.
    second: bool,
}

/// Tensors of a Mamba or Mamba-2 language model with their usual initialisation, head and embedding in one.
fn mamba(lm: &Lm, seed: u64) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let (d, n, e) = (lm.d, lm.n, 2 * lm.d);
    let (r, heads, channels) = (d.div_ceil(16), e / 64, e + 2 * n);
    let mut w = Weights::new(seed);
    w.add("backbone.embedding.weight".into(), &[lm.vocab, d], |_, u| 0.03 * u);
    for i in 0..lm.layers {
        let name = |n: &str| format!("backbone.layers.{i}.mixer.{n}");
        w.add(format!("backbone.layers.{i}.norm.weight"), &[d], |_, _| 1.0);
        if lm.second {
            w.add(name("in_proj.weight"), &[e + channels + heads, d], within(d));
            w.add(name("conv1d.weight"), &[channels, 1, 4], within(4));
            w.add(name("conv1d.bias"), &[channels], within(4));
            w.add(name("dt_bias"), &[heads], step);
            w.add(name("A_log"), &[heads], |_, u| (8.5 + 7.5 * u).ln());
            w.add(name("D"), &[heads], |_, _| 1.0);
            w.add(name("norm.weight"), &[e], |_, _| 1.0);
        } else {
            w.add(name("in_proj.weight"), &[2 * e, d], within(d));
            w.add(name("conv1d.weight"), &[e, 1, 4], within(4));
            w.add(name("conv1d.bias"), &[e], within(4));
            w.add(name("x_proj.weight"), &[r + 2 * n, e], within(e));
            w.add(name("dt_proj.weight"), &[e, r], within(r));
            w.add(name("dt_proj.bias"), &[e], step);
            w.add(name("A_log"), &[e, n], |i, _| ((i % n + 1) as f32).ln());
            w.add(name("D"), &[e], |_, _| 1.0);
        }
        let smaller = (lm.layers as f32).sqrt();
        w.add(name("out_proj.weight"), &[d, e], |_, u| u / (e as f32).sqrt() / smaller);
    }
    w.add("backbone.norm_f.weight".into(), &[d], |_, _| 1.0);
    w.tensors
}

/// Tensors of a VMamba-T of the kind `v05_noz` (Liu et al. 2024), published as `vssm1_tiny_0230s`.
fn vmamba_tiny(seed: u64) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut w = Weights::new(seed);
    let norm = |w: &mut Weights, name: &str, d: usize| {
        w.add(format!("{name}.weight"), &[d], |_, _| 1.0);
        w.add(format!("{name}.bias"), &[d], |_, _| 0.0);
    };
    let conv = |w: &mut Weights, name: &str, shape: [usize; 4]| {
        let inputs = shape[1..].iter().product();
        w.add(format!("{name}.weight"), &shape, within(inputs));
        w.add(format!("{name}.bias"), &[shape[0]], within(inputs));
    };
    conv(&mut w, "patch_embed.0", [48, 3, 3, 3]);
    norm(&mut w, "patch_embed.2", 48);
    conv(&mut w, "patch_embed.5", [96, 48, 3, 3]);
    norm(&mut w, "patch_embed.7", 96);
    for (i, depth) in [2, 2, 8, 2].into_iter().enumerate() {
        let d: usize = 96 << i;
        let r = d.div_ceil(16);
        for j in 0..depth {
            let block = format!("layers.{i}.blocks.{j}");
            let op = |n: &str| format!("{block}.op.{n}");
            norm(&mut w, &format!("{block}.norm"), d);
            w.add(op("in_proj.weight"), &[d, d, 1, 1], within(d));
            w.add(op("conv2d.weight"), &[d, 1, 3, 3], within(9));
            w.add(op("x_proj_weight"), &[4, r + 2, d], within(d));
            w.add(op("dt_projs_weight"), &[4, d, r], within(r));
            w.add(op("dt_projs_bias"), &[4, d], step);
            w.add(op("A_logs"), &[4 * d, 1], |_, _| 0.0);
            w.add(op("Ds"), &[4 * d], |_, _| 1.0);
            norm(&mut w, &op("out_norm"), d);
            w.add(op("out_proj.weight"), &[d, d, 1, 1], within(d));
            norm(&mut w, &format!("{block}.norm2"), d);
            conv(&mut w, &format!("{block}.mlp.fc1"), [4 * d, d, 1, 1]);
            conv(&mut w, &format!("{block}.mlp.fc2"), [d, 4 * d, 1, 1]);
        }
        if i < 3 {
            conv(&mut w, &format!("layers.{i}.downsample.1"), [2 * d, d, 3, 3]);
            norm(&mut w, &format!("layers.{i}.downsample.3"), 2 * d);
        }
    }
    norm(&mut w, "classifier.norm", 768);
    w.add("classifier.head.weight".into(), &[1000, 768], within(768));
    w.add("classifier.head.bias".into(), &[1000], within(768));
    w.tensors
}

/// A tensor of f32 on its way into a file.
struct Values<'a> {
    shape: &'a [usize],
    values: &'a [f32],
}

impl safetensors::View for Values<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        safetensors::Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let lm = |d, layers, n, vocab, second| mamba(&Lm { d, layers, n, vocab, second }, args.seed);
    let (name, tensors) = match args.network {
        Network::Tiny => ("Vim-Ti", vim(192, args.seed)),
        Network::Small => ("Vim-S", vim(384, args.seed)),
        Network::Base => ("Vim-B", vim(768, args.seed)),
        Network::VmambaTiny => ("VMamba-T", vmamba_tiny(args.seed)),
        Network::Mamba130m => ("Mamba-130m", lm(768, 24, 16, 50280, false)),
        Network::Mamba370m => ("Mamba-370m", lm(1024, 48, 16, 50280, false)),
        Network::Mamba2At130m => ("Mamba-2-130m", lm(768, 24, 128, 50288, true)),
    };
    let parameters: usize = tensors.iter().map(|t| t.2.len()).sum();
    let fail = |reason: String| Failure::File { path: args.output.clone(), reason };
    let note = format!("random weights of seed {}, untrained", args.seed);
    let metadata = HashMap::from([("note".to_owned(), note.clone())]);
    let views = tensors.iter().map(|(name, shape, values)| (name, Values { shape, values }));
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| fail(e.to_string()))?;
    output::write(&args.output, &bytes)?;
    say!("{}: {name}, {parameters} parameters, {note}: its results mean nothing", args.output.display());
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
        assert_eq!(vmamba_tiny(1).iter().map(|t| t.2.len()).sum::<usize>(), 30_249_064);
        let lm = Lm { d: 768, layers: 24, n: 16, vocab: 50280, second: false };
        assert_eq!(mamba(&lm, 1).iter().map(|t| t.2.len()).sum::<usize>(), 129_135_360);
        let (a, b) = (vim(192, 1), vim(192, 2));
        assert!(a[0].2 != b[0].2 && a[0].2 == vim(192, 1)[0].2);
    }
}
