//! Checkpoints that are wrapped or trained in another way than the published ones, and files that must be refused by name.

use serde_json::json;
use ssm_models::checkpoint::Checkpoint;
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Error, Options, Row, Scratch, open, open_checkpoint};
use ssm_tests::Rng;
use ssm_tests::element::Folder;
use ssm_tests::fabricate::{FAMILIES, Fabricated};

/// A random model of a family.
fn drawn(family: &str, seed: u64) -> Fabricated {
    let (_, draw) = FAMILIES.iter().find(|(name, _)| *name == family).expect("a known family");
    draw(&mut Rng::new(seed))
}

/// A random Vim whose mixers scan `directions`: 0 one, 1 both with an own A, 2 both with own weights.
fn vim(directions: usize) -> Fabricated {
    let kind = |f: &Fabricated| ["D_b", "A_b_log"].map(|n| f.tensors.contains_key(&format!("layers.0.mixer.{n}")));
    let wanted = [[false, false], [false, true], [true, true]][directions];
    (0..).map(|seed| drawn("vim", seed)).find(|f| kind(f) == wanted).expect("every kind is drawn")
}

/// What a model makes of one step of noise.
fn output(file: &Checkpoint, f: &Fabricated) -> Vec<f32> {
    let options = Options { level: CpuLevel::best(), config: Some(f.config.clone()), ..f.options.clone() };
    let model = open_checkpoint(file, &options).expect("the checkpoint opens");
    let (mut rows, mut scratch) = ([Row::new(&*model, 1)], Scratch::default());
    let noise = Rng::new(5).normals(rows[0].x.len(), 1.0);
    rows[0].x.copy_from_slice(&noise);
    model.forward(&Cx::at(CpuLevel::best(), 1), &mut rows, 1, &mut scratch);
    rows[0].y.clone()
}

/// The error of a checkpoint that must not open.
fn refused(f: &Fabricated) -> String {
    f.open(CpuLevel::best()).expect_err("a checkpoint that must not open").to_string()
}

#[test]
fn a_layer_scale_multiplies_what_a_vim_mixer_gives() {
    for directions in 0..3 {
        let plain = vim(directions);
        let (mut scaled, mut folded) = (plain.clone(), plain.clone());
        let depth = plain.tensors.keys().filter(|n| n.ends_with(".mixer.D")).count();
        for i in 0..depth {
            let name = |n: &str| format!("layers.{i}.mixer.{n}");
            let d = plain.tensors[&name("out_proj.weight")].0[0];
            // Powers of two, so that it does not matter where they are multiplied.
            let gamma: Vec<f32> = (0..d).map(|k| [0.5, 4.0, -2.0][k % 3]).collect();
            for n in ["out_proj.weight", "out_proj.bias"] {
                if let Some((shape, values)) = folded.tensors.get_mut(&name(n)) {
                    let each = values.len() / shape[0];
                    values.iter_mut().enumerate().for_each(|(k, v)| *v *= gamma[k / each]);
                }
            }
            scaled.values(&name("gamma"), &[d], gamma);
        }
        let [a, b, c] = [&plain, &scaled, &folded].map(|f| output(&f.checkpoint(), f));
        assert_eq!(b, c, "{directions}");
        assert_ne!(a, b, "{directions}");
    }
}

#[test]
fn a_vim_without_position_embedding_adds_none() {
    let mut zeros = drawn("vim", 3);
    zeros.tensors.get_mut("pos_embed").expect("it has one").1.fill(0.0);
    let mut none = zeros.clone();
    none.tensors.remove("pos_embed");
    assert_eq!(output(&zeros.checkpoint(), &zeros), output(&none.checkpoint(), &none));
}

#[test]
fn the_prefix_of_parallel_training_is_taken_off() {
    for (family, _) in FAMILIES {
        let f = drawn(family, 7);
        let mut wrapped = f.clone();
        wrapped.tensors = f.tensors.iter().map(|(n, t)| (format!("module.{n}"), t.clone())).collect();
        // What a golden file keeps beside the weights has no prefix.
        wrapped.values("__input__", &[1], vec![0.0]);
        assert_eq!(output(&f.checkpoint(), &f), output(&wrapped.checkpoint(), &f), "{family}");
    }
}

#[test]
fn a_backward_scan_is_refused_where_time_is_causal() {
    for (family, tail) in [("mamba", "mixer.A_log"), ("moe_mamba", "A_log"), ("band_mask", "mixer.A_log")] {
        let mut f = (0..).map(|seed| drawn(family, seed)).find(|f| {
            // In another layer than the first, by which families are told apart.
            f.tensors.keys().filter(|n| n.ends_with(tail)).count() > 1
        });
        let f = f.as_mut().expect("one of several layers");
        let a_log = f.tensors.keys().rfind(|n| n.ends_with(tail)).expect("there are some").clone();
        let (shape, values) = f.tensors[&a_log].clone();
        let backward = a_log.replace("A_log", "A_b_log");
        f.values(&backward, &shape, values);
        let message = refused(f);
        assert!(message.contains(&backward), "{family}: {message}");
    }
}

#[test]
fn convolutions_of_two_widths_are_refused() {
    let mut f = vim(2);
    let (shape, _) = &f.tensors["layers.0.mixer.conv1d.weight"];
    let (e, k) = (shape[0], shape[2]);
    f.values("layers.0.mixer.conv1d_b.weight", &[e, 1, k - 1], vec![0.1; e * (k - 1)]);
    let message = refused(&f);
    assert!(message.contains("layers.0.mixer.conv1d_b.weight"), "{message}");
}

#[test]
fn options_that_would_change_the_function_are_refused() {
    for (field, value) in [
        ("if_bidirectional", json!(true)),
        ("if_rope", json!(true)),
        ("if_divide_out", json!("yes")),
        ("norm_epsilon", json!("small")),
        ("img_size", json!("large")),
        ("stride", json!(0)),
        ("final_pool_type", json!(3)),
    ] {
        let mut f = drawn("vim", 3);
        f.config["model"][field] = value;
        let message = refused(&f);
        assert!(message.contains(field), "{field}: {message}");
    }
}

#[test]
fn networks_deeper_or_emptier_than_any_are_refused() {
    let mut deep = drawn("cleanumamba", 1);
    let levels = deep.tensors.keys().filter(|n| n.starts_with("encoder.") && n.ends_with(".0.weight")).count();
    for i in levels..16 {
        for name in ["0.weight", "0.bias", "2.weight", "2.bias"] {
            let tensor = deep.tensors[&format!("encoder.{}.{name}", levels - 1)].clone();
            deep.tensors.insert(format!("encoder.{i}.{name}"), tensor);
        }
    }
    let message = refused(&deep);
    assert!(message.contains("encoder."), "{message}");
    let mut empty = drawn("cleanumamba", 1);
    let inner = empty.tensors["encoder.0.2.weight"].0[1];
    empty.values("encoder.0.2.weight", &[0, inner, 1], vec![]);
    let message = refused(&empty);
    assert!(message.contains("encoder.0.2.weight"), "{message}");
}

#[test]
fn a_state_that_no_machine_has_room_for_is_refused() {
    // A megabyte of weights; the state of a head is the product of two of their axes.
    let (wide, states) = (1 << 15, 1 << 15);
    let config = json!({ "ssm_cfg": { "ngroups": 1, "headdim": wide, "d_state": states } });
    let mut f = Fabricated { config, ..Fabricated::default() };
    let channels = wide + 2 * states;
    for (name, shape) in [
        ("in_proj.weight", &[wide + channels + 1, 1][..]),
        ("conv1d.weight", &[channels, 1, 2]),
        ("conv1d.bias", &[channels]),
        ("dt_bias", &[1]),
        ("A_log", &[1]),
        ("D", &[1]),
        ("norm.weight", &[wide]),
        ("out_proj.weight", &[1, wide]),
    ] {
        f.values(name, shape, vec![0.1; shape.iter().product()]);
    }
    let message = refused(&f);
    assert!(message.contains("state: expected 1024 MiB a stream at most, got 4096 MiB"), "{message}");
}

#[test]
fn a_configuration_beside_a_file_is_laid_over_its_own() {
    let folder = Folder::new("variants-config");
    let mut f = vim(2);
    f.config["model"]["if_divide_out"] = json!(false);
    let path = folder.file("model.safetensors");
    std::fs::write(&path, f.bytes()).expect("room to write");
    let open = || open(&path, &Options { carry: f.options.carry, ..Options::default() });
    let hash = || open().map(|m| m.info().hash.clone());
    let before = hash().expect("it opens");
    // One field of the nested object; the others, without which the file does not open, stay.
    std::fs::write(folder.file("config.json"), r#"{"model": {"if_divide_out": true}}"#).expect("room to write");
    let after = hash().expect("it opens");
    assert_ne!(before, after);
    std::fs::write(folder.file("config.json"), r#"{"model": {"if_divide_out": false}}"#).expect("room to write");
    assert_eq!(hash().expect("it opens"), before);
    std::fs::write(folder.file("config.json"), r#"{"model": {"stride": "wide"}}"#).expect("room to write");
    let Err(error @ Error::Config { .. }) = hash() else { panic!("a stride that is a word was taken") };
    assert!(error.to_string().contains("stride"), "{error}");
}
