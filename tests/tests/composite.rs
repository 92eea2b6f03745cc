//! Composites: what they compute is what their parts compute apart, and a file that does not fit is refused by name.

use serde_json::{Value, json};
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Activation, Model, Options, Output, Pixels, Row, Scratch, Signal};
use ssm_tests::Rng;
use ssm_tests::fabricate::Fabricated;
use ssm_tests::fabricate::composite::{CORES, composite};

const ENCODERS: [&str; 5] = ["none", "vim", "vmamba", "conv", "mel"];

fn open(f: &Fabricated) -> std::sync::Arc<dyn Model> {
    f.open(CpuLevel::best()).unwrap_or_else(|e| panic!("{e}\n{:#}", f.config))
}

/// The tensors under `prefix`, under what follows it.
fn below(f: &Fabricated, prefix: &str) -> Fabricated {
    let inside = f.tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone())));
    Fabricated { tensors: inside.collect(), ..Fabricated::default() }
}

/// The outputs of `len` steps of a fresh stream.
fn run(model: &dyn Model, x: &[f32], tokens: &[u32], len: usize) -> Vec<f32> {
    let mut row = Row::new(model, len);
    row.x.copy_from_slice(x);
    row.tokens.copy_from_slice(tokens);
    let mut rows = [row];
    model.forward(&Cx::at(CpuLevel::best(), 1), &mut rows, len, &mut Scratch::default());
    let [row] = rows;
    row.y
}

/// `W x + b` in f64.
fn affine(f: &Fabricated, name: &str, x: &[f32]) -> Vec<f32> {
    let (shape, w) = &f.tensors[&format!("{name}.weight")];
    let bias = f.tensors.get(&format!("{name}.bias"));
    let sum = |i: usize| -> f64 {
        let row = &w[i * shape[1]..][..shape[1]];
        row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum()
    };
    (0..shape[0]).map(|i| (sum(i) + bias.map_or(0.0, |b| f64::from(b.1[i]))) as f32).collect()
}

/// The features by the encoder's own family, `in_proj` by hand, core and head as a language model whose token t is the
/// vector of step t.
#[test]
fn the_parts_done_apart_give_the_same() {
    let mut rng = Rng::new(71);
    for (encoder, core) in [("vim", "mamba"), ("vmamba", "mamba"), ("vim", "mamba2"), ("vmamba", "mamba2")] {
        for difference in [false, true] {
            let mut f = composite(&mut rng, encoder, core);
            let wanted = |f: &Fabricated| {
                f.config["head"]["kind"] == "linear"
                    && f.config["encoder"]["difference"] == difference
                    && f.tensors.contains_key("in_proj.weight")
                    && f.tensors.keys().any(|n| n.starts_with("encoder.") && n.contains("head.weight"))
            };
            while !wanted(&f) {
                f = composite(&mut rng, encoder, core);
            }
            let (model, len) = (open(&f), 7);
            let x = rng.normals(len * model.info().input.len(), 1.0);
            let got = run(&*model, &x, &[], len);

            let mut net = below(&f, "encoder.");
            net.config = json!({ "model": f.config["encoder"]["model"] });
            let side = |name: &str| f.config["input"][name].as_u64().expect("a side") as usize;
            net.options = Options {
                output: Output::Features,
                carry: f.config["encoder"]["carry"] == true,
                image: Some((side("height"), side("width"))),
                ..Options::default()
            };
            let net = open(&net);
            assert_eq!(net.info().family, encoder);
            let features = run(&*net, &x, &[], len);
            let width = net.info().output.len();
            let silent = vec![0.0; width];
            let table: Vec<f32> = (0..len)
                .flat_map(|t| {
                    let now = &features[t * width..][..width];
                    let at = |k: usize| if k > t { &silent[..] } else { &features[(t - k) * width..][..width] };
                    let dot =
                        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
                    let length = |a: &[f32]| (dot(a, a) + 1e-12).sqrt();
                    let lags = f.config["encoder"]["similarity"].as_u64().unwrap_or(0) as usize;
                    let like = |k: usize| (dot(now, at(k)) / length(now) / length(at(k))) as f32;
                    let like: Vec<f32> = (1..=lags).map(like).collect();
                    affine(&f, "in_proj", &[now, if difference { at(1) } else { &[] }, &like].concat())
                })
                .collect();

            let mut lm = below(&f, "core.");
            let d = table.len() / len;
            let (shape, mut head) = f.tensors["head.weight"].clone();
            let classes = shape[0];
            let vocab = len.max(classes);
            head.resize(vocab * d, 0.0);
            lm.values("lm_head.weight", &[vocab, d], head);
            lm.values("embedding.weight", &[vocab, d], [table, vec![0.5; (vocab - len) * d]].concat());
            lm.config = json!({ "n_groups": f.config["core"]["n_groups"], "tie_embeddings": false });
            let lm = open(&lm);
            assert_eq!(lm.info().family, core);
            let tokens: Vec<u32> = (0..len as u32).collect();
            let scores = run(&*lm, &[], &tokens, len);
            let bias = &f.tensors["head.bias"].1;
            let largest = got.iter().fold(0f32, |m, v| m.max(v.abs()));
            for t in 0..len {
                for c in 0..classes {
                    let (got, want) = (got[t * classes + c], scores[t * vocab + c] + bias[c]);
                    let near = (got - want).abs() <= 1e-4 * largest.max(1.0);
                    assert!(near, "{encoder} {core}, step {t}, class {c}: expected {want}, got {got}");
                }
            }
        }
    }
}

#[test]
fn every_encoder_stands_before_every_core() {
    let mut rng = Rng::new(72);
    for encoder in ENCODERS {
        for core in CORES {
            let f = composite(&mut rng, encoder, core);
            let model = open(&f);
            let facts = &model.info().facts;
            let part = |name: &str| facts.parts.iter().find(|p| p.0 == name).map(|p| p.1.clone()).unwrap_or_default();
            assert!(part("encoder").starts_with(encoder) && part("core") == core, "{:?}", facts.parts);
            let y = run(&*model, &rng.normals(3 * model.info().input.len(), 0.5), &[], 3);
            assert!(y.iter().all(|v| v.is_finite()), "{encoder} {core}");
            let names = f.config["head"]["classes"].as_array().map_or(0, Vec::len);
            assert_eq!((facts.labels.len(), names), (names, names));
            match model.info().output {
                Signal::Logits { classes } => assert_eq!(classes, names),
                other => assert_eq!((part("head"), other), ("none".into(), Signal::Vector { dim: y.len() / 3 })),
            }
        }
    }
}

/// A composite of convolutions, Mamba and a head of two classes.
fn known() -> Fabricated {
    let mut rng = Rng::new(73);
    loop {
        let mut f = composite(&mut rng, "conv", "mamba");
        if f.config["head"]["kind"] == "linear" && f.config["encoder"]["pool"].is_array() {
            let classes = f.tensors["head.weight"].0[0];
            let names: Vec<String> = (0..classes).map(|i| format!("kind {i}")).collect();
            f.config["head"] = json!({ "kind": "linear", "classes": names, "activation": "sigmoid", "look_ahead": 3 });
            f.config["input"]["mean"] = json!([0.1, 0.2, 0.3]);
            f.config["input"]["std"] = json!([1, 1, 0.5]);
            f.config["input"]["crop"] = json!(1.0);
            f.config["step_rate"] = json!(12.5);
            return f;
        }
    }
}

#[test]
fn a_file_says_what_elements_need() {
    let f = known();
    let model = open(&f);
    let facts = model.info().facts.clone();
    assert_eq!(facts.labels[0], "kind 0");
    assert_eq!((facts.activation, facts.look_ahead, facts.step_rate), (Activation::Sigmoid, 3, Some(12.5)));
    assert_eq!(facts.pixels, Pixels { mean: [0.1, 0.2, 0.3], std: [1.0, 1.0, 0.5], crop: 1.0 });
    let trunk = Fabricated { options: Options { output: Output::Features, ..Options::default() }, ..f.clone() };
    let trunk = open(&trunk);
    assert!(matches!(trunk.info().output, Signal::Vector { .. }));
    assert_ne!(trunk.info().hash, model.info().hash);
    let mut mel = composite(&mut Rng::new(74), "mel", "s4d");
    let Signal::Samples { hop, rate } = open(&mel).info().input else { panic!("samples go in") };
    assert_eq!(open(&mel).info().facts.step_rate, Some(f64::from(rate) / hop as f64));
    mel.config["step_rate"] = json!(33.3);
    let said = mel.open(CpuLevel::best()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(said.contains("step_rate: expected") && said.contains("got 33.3"), "{said}");
}

#[test]
fn a_file_that_does_not_fit_is_refused_by_name() {
    let f = known();
    let refused = |change: &dyn Fn(&mut Fabricated), what: &str, expected: &str| {
        let mut f = f.clone();
        change(&mut f);
        let said = f.open(CpuLevel::best()).err().map_or_else(|| "no error".into(), |e| e.to_string());
        assert!(said.contains(what) && said.contains(expected), "expected {what:?} and {expected:?} in {said:?}");
    };
    let set = |pointer: &str, v: Value, what: &str, expected: &str| {
        let (folder, field) = pointer.rsplit_once('/').expect("a pointer");
        let change = |f: &mut Fabricated| f.config.pointer_mut(folder).expect("an object")[field] = v.clone();
        refused(&change, what, expected);
    };
    set("/version", json!(2), "version: expected a whole number, 1 to 1", "got 2");
    set("/family", json!("composit"), "family: expected composite", "composit");
    set("/step_rate", json!(0), "step_rate", "above 0");
    set("/encoder", json!(null), "encoder: expected an object", "null");
    set("/encoder/kind", json!("resnet"), "encoder.kind", "vim, vmamba, conv, mel, none");
    set("/encoder/pool", json!([0, 2]), "encoder.pool", "1 to 64");
    set("/encoder/pool", json!([2]), "encoder.pool", "two whole numbers");
    set("/encoder/difference", json!("yes"), "encoder.difference", "true or false");
    set("/encoder/similarity", json!(1025), "encoder.similarity", "a whole number, 0 to 1024");
    set("/encoder/pol", json!(1), "encoder.pol", "an unknown field");
    set("/input/height", json!(null), "input.height", "got nothing");
    set("/input/height", json!(5000), "input.height", "1 to 4096");
    set("/input/width", json!(-3), "input.width", "got -3");
    set("/input/std", json!([1, 0, 1]), "input.std", "three numbers of 0.000001");
    set("/input/mean", json!([1, 0]), "input.mean", "three numbers");
    set("/input/crop", json!(0), "input.crop", "0.1 to 1");
    set("/input/hop", json!(160), "input.hop", "an unknown field");
    set("/core/kind", json!("lstm"), "core.kind", "mamba, mamba2, s4d, moe_mamba, bst");
    set("/core/kind", json!("mamba2"), "core.kind", "tensors of mamba");
    set("/core/kind", json!("bst"), "core: layers.0.attn.q.weight", "");
    set("/core/kind", json!("moe_mamba"), "core.layers.0", "");
    set("/core/window", json!(4), "core.window", "an unknown field");
    set("/core/norm_epsilon", json!(-1), "core.norm_epsilon", "1e-12 to 1");
    set("/head/classes", json!([]), "head.classes", "1 to 65536 names");
    set("/head/classes", json!([""]), "head.classes", "names of 1 to 256 bytes");
    set("/head/classes", json!(["a", 4]), "head.classes", "got 4");
    set("/head/classes", json!(["a", "a"]), "head.classes", "each name once");
    set("/head/classes", json!(["1", "2", "3", "4", "5", "6", "7", "8", "9"]), "head.weight", "");
    set("/head/activation", json!("tanh"), "head.activation", "softmax, sigmoid");
    set("/head/look_ahead", json!(1.5), "head.look_ahead", "a whole number");
    set("/head/kind", json!("none"), "head.activation", "an unknown field");
    refused(&|f| f.config = json!(null), "config: expected an object", "");
    refused(&|f| _ = f.tensors.remove("encoder.proj.weight"), "encoder.proj.weight", "");
    refused(&|f| _ = f.tensors.remove("core.norm_f.weight"), "core.norm_f.weight", "");
    refused(&|f| f.values("core.extra", &[1], vec![0.0]), "core.extra", "");
    refused(&|f| f.values("other", &[1], vec![0.0]), "other", "");
    refused(
        &|f| f.values("encoder.convs.0.weight", &[1, 1, 3, 3], vec![0.0; 9]),
        "encoder.convs.0.weight",
        "[1, 3, 3, 3]",
    );
    refused(&|f| f.values("head.bias", &[0], vec![]), "head.bias", "");

    // A nested network's own complaints name the tensor as the file does.
    let mut rng = Rng::new(75);
    let mut f = composite(&mut rng, "vim", "mamba");
    f.tensors.remove("encoder.norm_f.weight");
    let said = f.open(CpuLevel::best()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(said.contains("encoder.norm_f.weight"), "{said}");
    f.normal(&mut rng, "encoder.norm_f.weight", &[1, 1], 1.0);
    let said = f.open(CpuLevel::best()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(said.contains("encoder.norm_f.weight") && said.contains("[1, 1]"), "{said}");
    let mut f = composite(&mut rng, "mel", "mamba");
    f.config["input"]["hop"] = json!(100);
    let said = f.open(CpuLevel::best()).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(said.contains("input.hop: expected a multiple of the front end's 80 samples, got 100"), "{said}");
}

/// A stream without input for a while goes on as one that heard silence, where the core's rule is exact.
#[test]
fn a_gap_of_samples_is_silence() {
    let mut rng = Rng::new(76);
    let model = open(&composite(&mut rng, "mel", "s4d"));
    let (step, len) = (model.info().input.len(), 12);
    let cx = Cx::at(CpuLevel::best(), 1);
    let mut row = Row::new(&*model, len);
    row.x.copy_from_slice(&rng.normals(len * step, 0.3));
    let mut rows = [row];
    model.forward(&cx, &mut rows, len, &mut Scratch::default());
    let span = model.layout().span("encoder.samples").expect("samples are kept").range();
    let [row] = &mut rows;
    assert!(row.state.data[span.clone()].iter().any(|v| *v != 0.0));
    let before = row.state.data.to_vec();
    model.gap(&mut row.state, 20.0);
    assert!(row.state.data[span].iter().all(|v| *v == 0.0));
    assert_ne!(before, row.state.data.to_vec());
}
