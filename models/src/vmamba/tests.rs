//! The grammar of forward types; the published files by their shapes; what is refused.

use super::config::{ForwardType, OutNormKind};
use super::parts::Mlp;
use super::{FAMILY, VMamba};
use crate::checkpoint::Checkpoint;
use crate::families::{Options, family};
use crate::model::{Model, Signal};
use serde_json::json;
use ssm_kernels::activation::gate;
use ssm_kernels::cross_scan::Mode;
use ssm_kernels::linear::{Linear, Precision, Store, linear};
use ssm_kernels::norm::{Kind, Norm, norm};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};

#[test]
fn forward_types_are_read_as_upstream_strips_them() {
    let read = |text: &str| ForwardType::parse(text).map(|t| (t.mode, t.gated, t.gate_act, t.out_act, t.out_norm));
    use OutNormKind::{Conv, Layer, LayerConv, None as No, Sigmoid, Softmax};
    let cross = Mode::Cross2d;
    for (text, want) in [
        ("v0", (cross, true, true, false, Layer)),
        ("v05_noz", (cross, false, true, false, Layer)),
        ("v03", (cross, true, true, false, Layer)),
        ("v2_no32", (cross, true, true, false, Layer)),
        ("v05_oact", (cross, true, true, true, Layer)),
        ("v01_noz_oact_no32", (cross, false, true, true, Layer)),
        ("v051d_nozact", (Mode::Unidi, true, false, false, Layer)),
        ("v052d_onsoftmax_nozact_noz", (Mode::Bidi, false, false, false, Softmax)),
        ("v3_onnone", (cross, true, true, false, No)),
        ("v04_ondwconv3_noz", (cross, false, true, false, Conv)),
        ("v05_oncnorm", (cross, true, true, false, LayerConv)),
        ("v05_onsigmoid_oact", (cross, true, true, true, Sigmoid)),
        // Several selectors: all are taken off, the first in upstream's order of questions counts.
        ("v05_onsigmoid_onnone", (cross, true, true, false, No)),
        ("v05_oncnorm_ondwconv3", (cross, true, true, false, LayerConv)),
    ] {
        assert_eq!(read(text), Some(want), "{text}");
    }
    // Endings in another order, twice, or unknown; other stems.
    for text in
        ["v05_oact_noz", "v05_noz_noz", "v05_noz_onnone", "v0_noz", "v06", "v052dc", "xv1a", "m0_noz", "", "_noz"]
    {
        assert_eq!(read(text), None, "{text}");
    }
}

/// What a published configuration says.
#[derive(Clone)]
struct Published {
    dims: usize,
    depths: [usize; 4],
    ratio: usize,
    parameters: u64,
}

/// `s1` and `s2` are v05_noz with MLP, `v` is the vanilla v0.
const PUBLISHED: [(&str, Published); 9] = [
    ("T s1l8", Published { dims: 96, depths: [2, 2, 8, 2], ratio: 1, parameters: 30_249_064 }),
    ("S s1l20", Published { dims: 96, depths: [2, 2, 20, 2], ratio: 1, parameters: 49_012_840 }),
    ("B s1l20", Published { dims: 128, depths: [2, 2, 20, 2], ratio: 1, parameters: 86_614_504 }),
    ("T s2l5", Published { dims: 96, depths: [2, 2, 5, 2], ratio: 2, parameters: 30_705_832 }),
    ("S s2l15", Published { dims: 96, depths: [2, 2, 15, 2], ratio: 2, parameters: 50_147_752 }),
    ("B s2l15", Published { dims: 128, depths: [2, 2, 15, 2], ratio: 2, parameters: 88_557_800 }),
    ("T v", Published { dims: 96, depths: [2, 2, 9, 2], ratio: 2, parameters: 22_893_448 }),
    ("S v", Published { dims: 96, depths: [2, 2, 27, 2], ratio: 2, parameters: 44_417_416 }),
    ("B v", Published { dims: 128, depths: [2, 2, 27, 2], ratio: 2, parameters: 76_254_056 }),
];

impl Published {
    /// Names and shapes of the state dict.
    fn shapes(&self, vanilla: bool) -> Vec<(String, Vec<usize>)> {
        let mut all: Vec<(String, Vec<usize>)> = vec![];
        let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
        let norm = |add: &mut dyn FnMut(String, &[usize]), name: &str, c: usize| {
            add(format!("{name}.weight"), &[c]);
            add(format!("{name}.bias"), &[c]);
        };
        let d = self.dims;
        let conv = |add: &mut dyn FnMut(String, &[usize]), name: &str, shape: [usize; 4]| {
            add(format!("{name}.weight"), &shape);
            add(format!("{name}.bias"), &shape[..1]);
        };
        if vanilla {
            conv(&mut add, "patch_embed.0", [d, 3, 4, 4]);
            norm(&mut add, "patch_embed.2", d);
        } else {
            conv(&mut add, "patch_embed.0", [d / 2, 3, 3, 3]);
            norm(&mut add, "patch_embed.2", d / 2);
            conv(&mut add, "patch_embed.5", [d, d / 2, 3, 3]);
            norm(&mut add, "patch_embed.7", d);
        }
        for (i, depth) in self.depths.into_iter().enumerate() {
            let c = d << i;
            let (di, r, n) = (self.ratio * c, c / 16, if vanilla { 16 } else { 1 });
            for j in 0..depth {
                let block = format!("layers.{i}.blocks.{j}");
                norm(&mut add, &format!("{block}.norm"), c);
                let op = format!("{block}.op");
                add(format!("{op}.in_proj.weight"), &[if vanilla { 2 * di } else { di }, c]);
                add(format!("{op}.conv2d.weight"), &[di, 1, 3, 3]);
                if vanilla {
                    add(format!("{op}.conv2d.bias"), &[di]);
                }
                add(format!("{op}.x_proj_weight"), &[4, r + 2 * n, di]);
                add(format!("{op}.dt_projs_weight"), &[4, di, r]);
                add(format!("{op}.dt_projs_bias"), &[4, di]);
                add(format!("{op}.A_logs"), &[4 * di, n]);
                add(format!("{op}.Ds"), &[4 * di]);
                norm(&mut add, &format!("{op}.out_norm"), di);
                add(format!("{op}.out_proj.weight"), &[c, di]);
                if !vanilla {
                    norm(&mut add, &format!("{block}.norm2"), c);
                    conv(&mut add, &format!("{block}.mlp.fc1"), [4 * c, c, 1, 1]);
                    conv(&mut add, &format!("{block}.mlp.fc2"), [c, 4 * c, 1, 1]);
                }
            }
            if i == 3 {
                break;
            }
            if vanilla {
                norm(&mut add, &format!("layers.{i}.downsample.norm"), 4 * c);
                add(format!("layers.{i}.downsample.reduction.weight"), &[2 * c, 4 * c]);
            } else {
                conv(&mut add, &format!("layers.{i}.downsample.1"), [2 * c, c, 3, 3]);
                norm(&mut add, &format!("layers.{i}.downsample.3"), 2 * c);
            }
        }
        norm(&mut add, "classifier.norm", 8 * d);
        add("classifier.head.weight".into(), &[1000, 8 * d]);
        add("classifier.head.bias".into(), &[1000]);
        all
    }
}

/// The name that the vanilla files, which are the oldest, have for a tensor.
fn old_name(name: &str) -> String {
    let name = name.replace(".op.", ".self_attention.").replace(".norm.", ".ln_1.");
    match name.as_str() {
        n if n.starts_with("patch_embed.0.") => n.replace("patch_embed.0.", "patch_embed.proj."),
        n if n.starts_with("patch_embed.2.") => n.replace("patch_embed.2.", "patch_embed.norm."),
        n if n.starts_with("classifier.") => {
            n.replace("classifier.ln_1.", "norm.").replace("classifier.head.", "head.")
        }
        n => n.replace("downsample.ln_1.", "downsample.norm."),
    }
}

#[test]
fn published_files_are_known_by_their_shapes() {
    for (name, published) in &PUBLISHED {
        let vanilla = name.ends_with('v');
        let count =
            |shapes: &[(String, Vec<usize>)]| shapes.iter().map(|s| s.1.iter().product::<usize>() as u64).sum::<u64>();
        let mut shapes = published.shapes(vanilla);
        assert_eq!(count(&shapes), published.parameters, "{name}");
        if *name == "T s1l8" {
            assert_eq!(shapes.len(), 276);
        }
        // The tiny ones whole, of the larger ones a block of each stage.
        if !name.starts_with('T') {
            shapes = Published { depths: [1; 4], ..published.clone() }.shapes(vanilla);
        }
        if vanilla {
            shapes.iter_mut().for_each(|s| s.0 = old_name(&s.0));
        }
        let file = Checkpoint::of_shapes("zeros", shapes.clone());
        assert_eq!(family(&file).expect("known").name, FAMILY.name, "{name}");
        let model = VMamba::load(&file, &Options::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(model.info.parameters, count(&shapes), "{name}");
        assert_eq!(model.info.input, Signal::Image { channels: 3, height: 224, width: 224 }, "{name}");
        assert_eq!(model.info.output, Signal::Logits { classes: 1000 }, "{name}");
        let sizes: Vec<_> = model.stages.iter().map(|s| (s.dim, s.size)).collect();
        let d = published.dims;
        assert_eq!(sizes, [(d, (56, 56)), (2 * d, (28, 28)), (4 * d, (14, 14)), (8 * d, (7, 7))], "{name}");
        for (i, stage) in model.stages.iter().enumerate() {
            let op = &stage.blocks[0].op;
            let (c, n) = (d << i, if vanilla { 16 } else { 1 });
            assert_eq!((op.d_inner, op.d_state, op.dt_rank), (published.ratio * c, n, c / 16), "{name} stage {i}");
            assert_eq!(stage.blocks[0].mlp.is_none(), vanilla, "{name} stage {i}");
        }
        assert_eq!(model.config.forward_type.gated, vanilla, "{name}");
        assert!(model.layout().is_empty(), "{name}: frames are not carried unless asked for");
    }
}

/// A small network, some of its shapes changed.
fn small(change: impl Fn(&str, Vec<usize>) -> Option<Vec<usize>>) -> Checkpoint {
    let small = Published { dims: 16, depths: [1; 4], ratio: 1, parameters: 0 };
    let shapes = small.shapes(false).into_iter();
    Checkpoint::of_shapes("zeros", shapes.filter_map(|(n, s)| change(&n, s).map(|s| (n, s))))
}

#[test]
fn what_does_not_fit_is_named() {
    let refused = |file: &Checkpoint, options: &Options, words: &[&str]| {
        let error = VMamba::load(file, options).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(words.iter().all(|w| error.contains(w)), "expected {words:?} in {error:?}");
    };
    let plain = small(|_, s| Some(s));
    VMamba::load(&plain, &Options::default()).expect("the small network fits");
    // Every tensor missing, and every one misshapen, is an error that names it.
    let names: Vec<String> = plain.names().map(str::to_owned).collect();
    for name in &names {
        let without = small(|n, s| (n != name).then_some(s));
        assert!(VMamba::load(&without, &Options::default()).is_err(), "without {name}");
        let mut wrong = plain.shape(name).expect("it is there").to_vec();
        *wrong.last_mut().expect("no scalars") += 1;
        let misshapen = small(|n, s| Some(if n == name { wrong.clone() } else { s }));
        assert!(VMamba::load(&misshapen, &Options::default()).is_err(), "{name} of {wrong:?}");
    }
    refused(
        &small(|n, s| (n != "layers.2.blocks.0.mlp.fc2.bias").then_some(s)),
        &Options::default(),
        &["mlp.fc2.bias"],
    );
    let options = |model: serde_json::Value| Options { config: Some(json!({ "model": model })), ..Options::default() };
    refused(&plain, &options(json!({ "forward_type": "v052dc" })), &["forward_type", "v052dc", "v05"]);
    refused(&plain, &options(json!({ "forward_type": 5 })), &["forward_type", "a word", "5"]);
    refused(&plain, &options(json!({ "forward_type": "v05" })), &["in_proj"]);
    refused(&plain, &options(json!({ "norm_layer": "bn" })), &["norm_layer", "ln2d", "bn"]);
    refused(&plain, &options(json!({ "depths": [1, 1, 2, 1] })), &["depths", "[1, 1, 2, 1]", "[1, 1, 1, 1]"]);
    refused(&plain, &options(json!({ "downsample_version": "v1" })), &["downsample_version", "v1", "v3"]);
    refused(&plain, &options(json!({ "ssm_conv": 4 })), &["ssm_conv", "odd", "4"]);
    let no_norm = small(|n, s| (!n.contains("out_norm")).then_some(s));
    refused(&no_norm, &Options::default(), &["forward_type", "out_norm"]);
    VMamba::load(&no_norm, &options(json!({ "forward_type": "v05_onsigmoid_noz" })))
        .expect("the configuration says it");
    for image in [(0, 8), (8, 1 << 20), (60_000, 60_000)] {
        refused(&plain, &Options { image: Some(image), ..Options::default() }, &["frame size"]);
    }
}

#[test]
fn bands_of_an_mlp_give_the_bits_of_its_parts() {
    let (c, hidden) = (20, 70);
    let values = |n: usize, seed: usize| -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
    };
    for (gated, precision) in [(false, Precision::F32), (true, Precision::F32), (false, Precision::Int8)] {
        let (level, wide) = (CpuLevel::best(), if gated { 2 * hidden } else { hidden });
        let mut mlp = Mlp {
            norm2: Norm::new(Kind::Layer, values(c, 1), Some(values(c, 2)), 1e-5),
            fc1: Linear::pack(level, &values(wide * c, 3), wide, c, Some(&values(wide, 4))),
            fc2: Linear::pack(level, &values(c * hidden, 5), c, hidden, Some(&values(c, 6))),
            act: Act::Gelu,
            gated,
        };
        mlp.lower(precision);
        for m in [1, 59, 60, 61, 180, 257] {
            let (x, cx) = (values(m * c, 7), Cx::at(level, 1));
            let (mut normed, mut h, mut want) = (vec![0.0; m * c], vec![0.0; m * wide], x.clone());
            norm(&cx, &mlp.norm2, Mat::new(&x, m, c), MatMut::new(&mut normed, m, c));
            let act = if gated { Act::None } else { Act::Gelu };
            linear(&cx, Mat::new(&normed, m, c), &mlp.fc1, act, Store::Set, MatMut::new(&mut h, m, wide));
            for h in h.chunks_exact_mut(wide).filter(|_| gated) {
                let (x, z) = h.split_at_mut(hidden);
                gate(level, Act::Gelu, x, z);
            }
            let h = Mat::strided(&h, m, hidden, wide);
            linear(&cx, h, &mlp.fc2, Act::None, Store::Add, MatMut::new(&mut want, m, c));
            for threads in 1..4 {
                let (mut got, mut work) = (x.clone(), vec![f32::NAN; mlp.scratch_len(m, threads)]);
                mlp.forward(&Cx::at(level, threads), &mut got, m, &mut work);
                assert_eq!(got, want, "{m} pixels on {threads} threads, gated {gated}, {precision}");
            }
        }
    }
}

#[test]
fn patch_merging_with_channels_first_wants_even_stages() {
    let vanilla = Published { dims: 16, depths: [1; 4], ratio: 2, parameters: 0 };
    let file = Checkpoint::of_shapes("zeros", vanilla.shapes(true));
    let open = |norm_layer: &str, image| {
        let config = Some(json!({ "model": { "norm_layer": norm_layer } }));
        VMamba::load(&file, &Options { image: Some(image), config, ..Options::default() }).map(|_| ())
    };
    assert!(open("ln", (56, 72)).is_ok(), "7 x 9 pixels are padded");
    assert!(open("ln2d", (64, 96)).is_ok(), "even all the way");
    let error = open("ln2d", (56, 72)).expect_err("7 x 9 pixels").to_string();
    assert!(error.contains("7x9") && error.contains("channels first"), "{error}");
}

#[test]
fn golden_files_pass() {
    crate::golden::pass("vmamba");
    crate::golden::pass("ops_cross_scan");
    crate::golden::pass("ops_patch_merge");
}
