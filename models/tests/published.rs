//! Every published configuration, made of names and shapes alone: its family is known and its size is the published one.
//!
//! A new family adds a list: names and shapes of its tensors per published model, and the number of parameters that the
//! publication gives.

use ssm_models::checkpoint::Checkpoint;
use ssm_models::{Options, family, open_checkpoint};

/// Tensors by name and shape.
#[derive(Default)]
struct Tensors(Vec<(String, Vec<usize>)>);

impl Tensors {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push((name.into(), shape.to_vec()));
    }

    /// A layer with bias.
    fn with_bias(&mut self, name: &str, shape: &[usize]) {
        self.add(format!("{name}.weight"), shape);
        self.add(format!("{name}.bias"), &shape[..1]);
    }

    /// One direction of a Mamba mixer with d_conv 4 and N 16: all but what the directions share.
    fn direction(&mut self, prefix: &str, b: &str, e: usize, r: usize) {
        self.with_bias(&format!("{prefix}conv1d{b}"), &[e, 1, 4]);
        self.add(format!("{prefix}x_proj{b}.weight"), &[r + 32, e]);
        self.with_bias(&format!("{prefix}dt_proj{b}"), &[e, r]);
        let (a, d) = if b.is_empty() { ("A_log", "D") } else { ("A_b_log", "D_b") };
        self.add(format!("{prefix}{a}"), &[e, 16]);
        self.add(format!("{prefix}{d}"), &[e]);
    }

    fn mixer(&mut self, prefix: &str, d: usize, directions: &[&str]) {
        self.add(format!("{prefix}in_proj.weight"), &[4 * d, d]);
        self.add(format!("{prefix}out_proj.weight"), &[d, 2 * d]);
        directions.iter().for_each(|b| self.direction(prefix, b, 2 * d, d.div_ceil(16)));
    }
}

struct Published {
    family: &'static str,
    name: &'static str,
    parameters: u64,
    tensors: Tensors,
}

/// vim.md 1: width and tokens.
fn vim() -> Vec<Published> {
    let models = [
        ("Vim-Ti", 192, 197, 7_148_008),
        ("Vim-Ti+", 192, 730, 7_250_344),
        ("Vim-S", 384, 197, 25_796_584),
        ("Vim-S+", 384, 730, 26_001_256),
        ("Vim-B", 768, 197, 97_598_440),
    ];
    let model = |(name, d, tokens, parameters)| {
        let mut t = Tensors::default();
        t.add("cls_token", &[1, 1, d]);
        t.add("pos_embed", &[1, tokens, d]);
        t.with_bias("patch_embed.proj", &[d, 3, 16, 16]);
        for i in 0..24 {
            t.mixer(&format!("layers.{i}.mixer."), d, &["", "_b"]);
            t.add(format!("layers.{i}.norm.weight"), &[d]);
        }
        t.add("norm_f.weight", &[d]);
        t.with_bias("head", &[1000, d]);
        Published { family: "vim", name, parameters, tensors: t }
    };
    models.map(model).into()
}

/// vmamba.md 1: width, blocks per stage, ratio; `vanilla` in the last three.
fn vmamba() -> Vec<Published> {
    let models = [
        ("VMamba-T s1l8", 96, [2, 2, 8, 2], 1, 30_249_064),
        ("VMamba-S s1l20", 96, [2, 2, 20, 2], 1, 49_012_840),
        ("VMamba-B s1l20", 128, [2, 2, 20, 2], 1, 86_614_504),
        ("VMamba-T s2l5", 96, [2, 2, 5, 2], 2, 30_705_832),
        ("VMamba-S s2l15", 96, [2, 2, 15, 2], 2, 50_147_752),
        ("VMamba-B s2l15", 128, [2, 2, 15, 2], 2, 88_557_800),
        ("Vanilla-VMamba-T", 96, [2, 2, 9, 2], 2, 22_893_448),
        ("Vanilla-VMamba-S", 96, [2, 2, 27, 2], 2, 44_417_416),
        ("Vanilla-VMamba-B", 128, [2, 2, 27, 2], 2, 76_254_056),
    ];
    let model = |(name, dims, depths, ratio, parameters): (&'static str, usize, [usize; 4], usize, u64)| {
        let vanilla = name.starts_with("Vanilla");
        let mut t = Tensors::default();
        if vanilla {
            t.with_bias("patch_embed.0", &[dims, 3, 4, 4]);
            t.with_bias("patch_embed.2", &[dims]);
        } else {
            t.with_bias("patch_embed.0", &[dims / 2, 3, 3, 3]);
            t.with_bias("patch_embed.2", &[dims / 2]);
            t.with_bias("patch_embed.5", &[dims, dims / 2, 3, 3]);
            t.with_bias("patch_embed.7", &[dims]);
        }
        for (i, depth) in depths.into_iter().enumerate() {
            let c = dims << i;
            let (di, r, n) = (ratio * c, c.div_ceil(16), if vanilla { 16 } else { 1 });
            for j in 0..depth {
                let block = format!("layers.{i}.blocks.{j}.");
                let op = format!("{block}op.");
                t.with_bias(&format!("{block}norm"), &[c]);
                t.add(format!("{op}in_proj.weight"), &[if vanilla { 2 * di } else { di }, c]);
                t.add(format!("{op}conv2d.weight"), &[di, 1, 3, 3]);
                t.add(format!("{op}x_proj_weight"), &[4, r + 2 * n, di]);
                t.add(format!("{op}dt_projs_weight"), &[4, di, r]);
                t.add(format!("{op}dt_projs_bias"), &[4, di]);
                t.add(format!("{op}A_logs"), &[4 * di, n]);
                t.add(format!("{op}Ds"), &[4 * di]);
                t.with_bias(&format!("{op}out_norm"), &[di]);
                t.add(format!("{op}out_proj.weight"), &[c, di]);
                if vanilla {
                    t.add(format!("{op}conv2d.bias"), &[di]);
                } else {
                    t.with_bias(&format!("{block}norm2"), &[c]);
                    t.with_bias(&format!("{block}mlp.fc1"), &[4 * c, c]);
                    t.with_bias(&format!("{block}mlp.fc2"), &[c, 4 * c]);
                }
            }
            let down = format!("layers.{i}.downsample.");
            match (i, vanilla) {
                (3, _) => {}
                (_, true) => {
                    t.with_bias(&format!("{down}norm"), &[4 * c]);
                    t.add(format!("{down}reduction.weight"), &[2 * c, 4 * c]);
                }
                (_, false) => {
                    t.with_bias(&format!("{down}1"), &[2 * c, c, 3, 3]);
                    t.with_bias(&format!("{down}3"), &[2 * c]);
                }
            }
        }
        t.with_bias("classifier.norm", &[8 * dims]);
        t.with_bias("classifier.head", &[1000, 8 * dims]);
        Published { family: "vmamba", name, parameters, tensors: t }
    };
    models.map(model).into()
}

/// mamba.md 5: width and layers; the head shares the embedding's weights.
fn mamba() -> Vec<Published> {
    let models = [
        ("mamba-130m", 768, 24, 129_135_360),
        ("mamba-370m", 1024, 48, 371_516_416),
        ("mamba-790m", 1536, 48, 793_204_224),
        ("mamba-1.4b", 2048, 48, 1_372_178_432),
        ("mamba-2.8b", 2560, 64, 2_768_345_600),
    ];
    let model = |(name, d, layers, parameters)| {
        let mut t = Tensors::default();
        // Upstream's name, that of transformers, and a tied head saved in place of the embedding.
        t.add(["backbone.embedding.weight", "backbone.embeddings.weight", "lm_head.weight"][d / 256 % 3], &[50_280, d]);
        for i in 0..layers {
            t.mixer(&format!("backbone.layers.{i}.mixer."), d, &[""]);
            t.add(format!("backbone.layers.{i}.norm.weight"), &[d]);
        }
        t.add("backbone.norm_f.weight", &[d]);
        Published { family: "mamba", name, parameters, tensors: t }
    };
    models.map(model).into()
}

/// audio-mamba.md 2: width, kind of mixer, classes; speech commands are one second long, the others ten.
fn aum() -> Vec<Published> {
    let models = [
        ("AuM-B Fo-Fo AudioSet", 768, "fofo", 527, 91_517_711),
        ("AuM-B Fo-Bi AudioSet", 768, "fobi", 527, 92_107_535),
        ("AuM-B Bi-Bi AudioSet", 768, "bibi", 527, 97_084_175),
        ("AuM-B Fo-Bi VGGSound", 768, "fobi", 309, 91_939_893),
        ("AuM-B Fo-Bi VoxCeleb", 768, "fobi", 1251, 92_664_291),
        ("AuM-B Fo-Bi Speech Commands", 768, "fobi", 35, 91_385_123),
        ("AuM-B Fo-Bi Epic-Sounds", 768, "fobi", 44, 91_736_108),
        ("AuM-S Fo-Bi AudioSet", 384, "fobi", 527, 23_935_631),
        ("AuM-S Bi-Bi VGGSound", 384, "bibi", 309, 25_455_285),
        ("AuM-S Bi-Bi Speech Commands", 384, "bibi", 35, 25_177_763),
        ("AuM-Ti Fo-Fo AudioSet", 192, "fofo", 527, 6_291_023),
        ("AuM-Ti Fo-Bi VoxCeleb", 192, "fobi", 1251, 6_578_211),
        ("AuM-Ti Bi-Bi Epic-Sounds", 192, "bibi", 44, 6_925_868),
    ];
    let model = |(name, d, kind, classes, parameters): (&'static str, usize, &str, usize, u64)| {
        let patches = if name.ends_with("Speech Commands") { 64 } else { 512 };
        let mut t = Tensors::default();
        t.add("cls_token", &[1, 1, d]);
        t.add("pos_embed.pos_embed", &[1, patches + 1, d]);
        t.with_bias("patch_embed.proj", &[d, 1, 16, 16]);
        for i in 0..24 {
            let mixer = format!("layers.{i}.mixer.");
            t.mixer(&mixer, d, if kind == "bibi" { &["", "_b"] } else { &[""] });
            if kind == "fobi" {
                t.add(format!("{mixer}A_b_log"), &[2 * d, 16]);
            }
            t.add(format!("layers.{i}.norm.weight"), &[d]);
        }
        t.add("norm_f.weight", &[d]);
        t.with_bias("head", &[classes, d]);
        Published { family: "aum", name, parameters, tensors: t }
    };
    models.map(model).into()
}

/// moe-mamba.md 5, the paper's 25M: eight blocks of D 512 with 42 experts, an embedding and a head of 50257 each; the
/// paper counts the layers alone, 542 M.
fn moe_mamba() -> Vec<Published> {
    let (d, vocab, experts, width, layers) = (512, 50257, 42, 1536, 542_228_480);
    let mut t = Tensors::default();
    for b in 0..8 {
        let block = format!("encoder.blocks.block_{b}.block.residual_");
        t.with_bias(&format!("{block}mamba.layer.pre_norm"), &[d]);
        t.mixer(&format!("{block}mamba.layer.mamba."), d, &[""]);
        t.with_bias(&format!("{block}feedforward.layer.pre_norm"), &[d]);
        let moe = format!("{block}feedforward.layer.feedforward.");
        t.add(format!("{moe}gating.gate"), &[d, experts]);
        t.add(format!("{moe}expert_inner_function.lin1_weight"), &[experts, d, width]);
        t.add(format!("{moe}expert_inner_function.lin2_weight"), &[experts, width, d]);
    }
    t.add("embedding_layer.layers.0.weight", &[vocab, d]);
    t.add("head.weight", &[vocab, d]);
    vec![Published { family: "moe_mamba", name: "25M", parameters: layers + 2 * (vocab * d) as u64, tensors: t }]
}

/// A level of CleanUMamba: channels of the strided convolution and channels that its gate leaves.
type Level = (usize, usize);

/// Name, levels down, levels up, width of the bottom, inner widths of its layers, parameters.
type Pruned = (&'static str, &'static [Level], &'static [Level], usize, [usize; 3], u64);

/// audio-denoisers.md 2: pruned to irregular widths. Encoder from the samples on, decoder from the bottom on, width of the
/// bottom, inner widths of its layers (each N 8, R 32).
fn cleanumamba() -> Vec<Published> {
    let models: [Pruned; 2] = [
        (
            "E6 200k",
            &[(46, 43), (66, 84), (17, 51), (24, 62), (41, 56), (47, 55)],
            &[(45, 56), (40, 62), (36, 51), (28, 84), (90, 43), (62, 1)],
            130,
            [8, 8, 40],
            206_565,
        ),
        (
            "E8 200K",
            &[(55, 46), (37, 88), (11, 51), (18, 53), (22, 59), (31, 75), (30, 64), (32, 67)],
            &[(29, 64), (34, 75), (36, 59), (28, 53), (21, 51), (29, 88), (70, 46), (63, 1)],
            55,
            [8, 8, 48],
            200_513,
        ),
    ];
    let model = |(name, encoder, decoder, d, inner, parameters): (_, &[Level], &[Level], _, [usize; 3], _)| {
        let mut t = Tensors::default();
        let mut from = 1;
        for (i, (wide, out)) in encoder.iter().enumerate() {
            t.with_bias(&format!("encoder.{i}.0"), &[*wide, from, 4]);
            t.with_bias(&format!("encoder.{i}.2"), &[2 * out, *wide, 1]);
            from = *out;
        }
        t.with_bias("tsfm_conv1", &[d, from, 1]);
        for (k, e) in inner.into_iter().enumerate() {
            let layer = format!("tsfm_Mamba_layers.{k}.");
            t.with_bias(&format!("{layer}norm"), &[d]);
            t.add(format!("{layer}mixer.in_proj.weight"), &[2 * e, d]);
            t.with_bias(&format!("{layer}mixer.conv1d"), &[e, 1, 4]);
            t.add(format!("{layer}mixer.x_proj.weight"), &[32 + 16, e]);
            t.with_bias(&format!("{layer}mixer.dt_proj"), &[e, 32]);
            t.add(format!("{layer}mixer.A_log"), &[e, 8]);
            t.add(format!("{layer}mixer.D"), &[e]);
            t.add(format!("{layer}mixer.out_proj.weight"), &[d, e]);
        }
        t.with_bias("norm_f", &[d]);
        t.with_bias("tsfm_conv2", &[from, d, 1]);
        for (j, (gated, out)) in decoder.iter().enumerate() {
            t.with_bias(&format!("decoder.{j}.0"), &[2 * gated, from, 1]);
            t.add(format!("decoder.{j}.2.weight"), &[*gated, *out, 4]);
            t.add(format!("decoder.{j}.2.bias"), &[*out]);
            from = *out;
        }
        Published { family: "cleanumamba", name, parameters, tensors: t }
    };
    models.map(model).into()
}

/// audio-denoisers.md 1: six levels down, two layers at the bottom, six up, two last.
fn attenuate() -> Vec<Published> {
    let (n, channels, factors) = (256, [1, 16, 32, 64, 96, 128, 256], [4, 4, 2, 2, 2, 2]);
    let mut t = Tensors::default();
    let ssm = |t: &mut Tensors, name: String, c: usize| {
        t.add(format!("{name}.log_dt"), &[n]);
        t.add(format!("{name}.A"), &[n, 2]);
        t.add(format!("{name}.B"), &[n, c]);
        t.add(format!("{name}.C"), &[c, n]);
    };
    // A depthwise convolution, the system, a norm; of one channel the system alone.
    let block = |t: &mut Tensors, name: String, c: usize| {
        if c == 1 {
            return ssm(t, format!("{name}.0"), c);
        }
        t.with_bias(&format!("{name}.0"), &[c, 1, 3]);
        ssm(t, format!("{name}.1"), c);
        t.with_bias(&format!("{name}.2.layer_norm"), &[c]);
    };
    for (i, factor) in factors.into_iter().enumerate() {
        let (low, high) = (channels[i], channels[i + 1]);
        block(&mut t, format!("down_ssms.{i}.0"), low);
        t.add(format!("down_ssms.{i}.1.weight"), &[low, high, factor]);
        t.add(format!("up_ssms.{i}.0.weight"), &[high, low, factor]);
        block(&mut t, format!("up_ssms.{i}.1"), low);
    }
    for i in 0..2 {
        block(&mut t, format!("hid_ssms.{i}"), 256);
        block(&mut t, format!("last_ssms.{i}"), 1);
    }
    vec![Published { family: "attenuate", name: "aTENNuate", parameters: 844_864, tensors: t }]
}

#[test]
fn families_and_sizes_are_the_published_ones() {
    for Published { family: expected, name, parameters, tensors } in
        [vim(), vmamba(), mamba(), moe_mamba(), aum(), cleanumamba(), attenuate()].into_iter().flatten()
    {
        let file = Checkpoint::of_shapes(name, tensors.0);
        let family = family(&file).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(family.name, expected, "{name}");
        assert_eq!(file.parameters(), parameters, "{name}");
    }
}

/// All tensors of the small ones are asked for, and no others.
#[test]
fn small_published_models_open() {
    for Published { name, parameters, tensors, .. } in cleanumamba().into_iter().chain(attenuate()) {
        let file = Checkpoint::of_shapes(name, tensors.0);
        let model = open_checkpoint(&file, &Options::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(model.info().parameters, parameters, "{name}");
    }

    let tiny = vim().remove(0);
    let file = Checkpoint::of_shapes(tiny.name, tiny.tensors.0);
    let model = open_checkpoint(&file, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let info = model.info();
    assert_eq!((info.parameters, info.output.len(), info.input.len()), (tiny.parameters, 1000, 3 * 224 * 224));
    assert!(info.sizes.starts_with("D 192, 24 layers, E 384, N 16, R 12, patch 16/16, frame 224x224, 197 tokens"));
}
