//! Whole files, against what torch holds and against candle's reader.

use super::*;
use crate::checkpoint::Dtype;
use candle_core::{DType, Device, Tensor, pickle};
use std::collections::BTreeMap;

#[test]
fn every_variant_that_torch_writes_holds_the_same() {
    let truth = open(&data("variants.safetensors"));
    // Files of a torch that had no such types.
    let old = |name: &str| !["variants.pth", "variants_deflated.pth", "variants_bare.pth"].contains(&name);
    for name in [
        "variants.pth",
        "variants_deflated.pth",
        "variants_bare.pth",
        "variants_legacy.pth",
        "variants_legacy_protocol5.pth",
        "variants_protocol4.pth",
        "variants_nocrc.pth",
        "variants_big_endian.pth",
    ] {
        let mut want = contents(&truth);
        want.retain(|(n, ..)| !(old(name) && n.starts_with("uint")));
        let file = open(&data(name));
        let got = contents(&file);
        assert_eq!(got.len(), want.len(), "{name}");
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(got, want, "{name}");
            assert_eq!(file.dtype(&got.0), truth.dtype(&got.0), "{name}: {}", got.0);
        }
        assert!(file.metadata.is_empty(), "{name}: {:?}", file.metadata);
    }
    assert_eq!(truth.f32("half").unwrap(), truth.f64("half").unwrap().iter().map(|v| *v as f32).collect::<Vec<_>>());
    assert_eq!(truth.dtype("bfloat16"), Some(Dtype::BF16));
    assert_eq!(truth.u8("byte").unwrap(), [0, 255]);
    assert_eq!(truth.u8("bool").unwrap(), [1, 0, 1]);
    assert_eq!(truth.f64("long").unwrap(), [-(2f64.powi(40)), 3.0, 2f64.powi(31), -1.0]);
}

#[test]
fn golden_files_of_torch_hold_what_their_safetensors_hold() {
    for (torch, plain) in [
        ("vim_tiny_cfg_a.pth", "vim_tiny_cfg_a.safetensors"),
        ("vim_train_style.pth", "vim_train_style.safetensors"),
        ("vim_legacy_nonzip.pth", "vim_train_style.safetensors"),
        ("vmamba_train_style.pth", "vmamba_train_style.safetensors"),
        ("vmamba_v05_cfg_a.pth", "vmamba_v05_cfg_a.safetensors"),
    ] {
        let got: BTreeMap<_, _> =
            contents(&open(&golden(torch))).into_iter().map(|(n, shape, v)| (n, (shape, v))).collect();
        let want: BTreeMap<_, _> = contents(&open(&golden(plain)))
            .into_iter()
            .filter(|(n, ..)| !n.starts_with("__"))
            .map(|(n, shape, v)| (n, (shape, v)))
            .collect();
        assert!(got.keys().eq(want.keys()), "{torch}");
        for (name, (shape, values)) in &want {
            // Among them linear weights that the published code keeps as 1 x 1 convolutions.
            let (got_shape, got_values) = &got[name];
            let pointwise = [&shape[..], &[1, 1]].concat();
            assert!(got_shape == shape || *got_shape == pointwise, "{torch}: {name}: {got_shape:?}, not {shape:?}");
            assert!(got_values == values, "{torch}: {name}");
        }
    }
}

/// Where candle reads it at all: it knows neither the old format nor dicts of a class of their own.
#[test]
fn candle_reads_the_same() {
    let values = |t: &Tensor| t.to_dtype(DType::F64).and_then(|t| t.flatten_all()?.to_vec1::<f64>()).unwrap();
    for (name, key) in [
        ("vim_tiny_cfg_a.pth", Some("model")),
        ("vim_train_style.pth", Some("model")),
        ("vmamba_v05_cfg_a.pth", Some("model")),
        ("vim_tiny_cfg_a.safetensors", None),
    ] {
        let path = golden(name);
        let file = open(&path);
        let theirs: Vec<(String, Tensor)> = match name.ends_with(".pth") {
            true => pickle::read_all_with_key(&path, key).unwrap(),
            false => candle_core::safetensors::load(&path, &Device::Cpu).unwrap().into_iter().collect(),
        };
        assert_eq!(theirs.len(), file.names().count(), "{name}");
        for (tensor, theirs) in theirs {
            assert_eq!(file.shape(&tensor), Some(theirs.dims()), "{name}: {tensor}");
            assert_eq!(file.f64(&tensor).unwrap(), values(&theirs), "{name}: {tensor}");
        }
    }
}

#[test]
fn a_container_gives_its_weights_its_metadata_and_on_request_its_average() {
    let truth = open(&data("variants.safetensors"));
    let file = open(&data("container.pth"));
    let mut want = contents(&truth);
    want.retain(|(n, ..)| !n.starts_with("uint"));
    assert_eq!(contents(&file), want);
    let said: Vec<(&str, &str)> = file.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let args = r#"{"lr":0.5,"name":"tiny","nested":{"flag":true},"none":null,"sizes":[1,2]}"#;
    assert_eq!(said[0], ("torch.args", args));
    assert_eq!(said[1], ("torch.best", "\"NaN\""));
    assert_eq!(said[2], ("torch.big", "\"a long integer\""));
    assert!(["[\"cat\",\"dog\"]", "[\"dog\",\"cat\"]"].contains(&file.metadata["torch.classes"].as_str()));
    assert_eq!(file.metadata["torch.epoch"], "12");
    assert!(!file.metadata.contains_key("torch.optimizer"), "tensors are no metadata");

    let average = Checkpoint::open_entry(&data("container.pth"), "ema").unwrap_or_else(|e| panic!("{e}"));
    let doubled: Vec<f64> = truth.f64("transposed").unwrap().iter().map(|v| 2.0 * v).collect();
    assert_eq!(average.f64("transposed").unwrap(), doubled);
    let error = Checkpoint::open_entry(&data("container.pth"), "model_ema").err().unwrap().to_string();
    assert!(error.contains("model_ema: expected a dict of this name, got entries epoch, best, state_dict"), "{error}");
    // The published files keep an average beside the weights; it must not be taken for them.
    let (weights, average) = (open(&golden("vim_train_style.pth")), "model_ema");
    let average = Checkpoint::open_entry(&golden("vim_train_style.pth"), average).unwrap_or_else(|e| panic!("{e}"));
    assert!(weights.names().eq(average.names()));
    assert_ne!(weights.f32("head.weight").unwrap(), average.f32("head.weight").unwrap());
}

#[test]
fn a_folder_stands_for_the_checkpoint_in_it() {
    let folder = std::env::temp_dir().join(format!("ssm-checkpoint-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let why = || Checkpoint::open(&folder).err().unwrap().to_string();
    assert!(why().ends_with("folder: expected model.safetensors or pytorch_model.bin, got neither"), "{}", why());
    std::fs::write(folder.join("pytorch_model.bin.index.json"), "{}").unwrap();
    assert!(why().ends_with("got pytorch_model.bin.index.json, a checkpoint in several files"), "{}", why());
    std::fs::copy(data("variants.pth"), folder.join("pytorch_model.bin")).unwrap();
    assert_eq!(open(&folder).path, folder.join("pytorch_model.bin"));
    assert_eq!(open(&folder).format(), "torch zip");
    std::fs::copy(data("variants.safetensors"), folder.join("model.safetensors")).unwrap();
    assert_eq!(open(&folder).format(), "safetensors");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn hashes_are_of_the_whole_file() {
    // Published for the file.
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(Checkpoint::of_shapes("x", []).sha256(), empty);
    let (path, bytes) = (data("variants.pth"), bytes(&data("variants.pth")));
    let (file, memory) = (open(&path), Checkpoint::from_bytes("m", bytes).unwrap_or_else(|e| panic!("{e}")));
    assert_eq!(file.sha256(), memory.sha256());
    assert_eq!(file.hash("a"), memory.hash("a"));
    assert_ne!(file.hash("a"), file.hash("b"));
    assert_eq!(file.hash("").len(), 64);
}

#[test]
fn parameters_are_the_trained_values() {
    let shapes = [("a", vec![3, 4]), ("b", vec![12]), ("n.running_mean", vec![7]), ("__x__", vec![100])];
    let file = Checkpoint::of_shapes("x", shapes.map(|(n, s)| (n.to_owned(), s)));
    assert_eq!(file.parameters(), 24);
    let file = open(&data("variants.pth"));
    let float: usize = ["plain", "scalar", "transposed", "rows", "columns", "window", "shared", "permuted"]
        .into_iter()
        .chain(["expanded", "channels_last", "half", "bfloat16", "double", "complex", "parameter"])
        .map(|n| file.shape(n).unwrap().iter().product::<usize>())
        .sum();
    assert_eq!(file.parameters(), float as u64);
}

/// Published denoisers, where they are: SSM_CHECKPOINTS, or beside the repository.
#[test]
fn published_files_open() {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/checkpoints/audio");
    let said = std::env::var_os("SSM_CHECKPOINTS").map(PathBuf::from);
    let Some(folder) = said.into_iter().chain([beside]).find(|f| f.is_dir()) else {
        eprintln!("SKIP published files: no folder with checkpoints (set SSM_CHECKPOINTS)");
        return;
    };
    // Tensors and their values as torch counts them.
    let known = [
        ("weights.pt", "0b973c44737db024887edd92beaad87887692743ae284be1f08c84bcd3a8b681", 124, 844_864),
        ("CleanUMamba-3N-E6_pruned-200k.pkl", "9ccff8e7", 87, 206_565),
        ("CleanUMamba-3N-E6_pruned-500k.pkl", "9b8cb6ef", 87, 456_659),
        ("CleanUMamba-3N-E6_pruned-1M.pkl", "8b78d48d", 87, 997_302),
        ("CleanUMamba-3N-E8_pruned-200K.pkl", "f9b39083", 103, 200_513),
        ("CleanUMamba-3N-E8_pruned-500K.pkl", "e27960f1", 103, 491_655),
        ("Experiment_CleanU_Mamba.pkl", "777f16bf", 103, 441_601),
        ("Experiment_CleanU_Mamba2.pkl", "968865f8", 100, 427_945),
        ("Experiment_CleanU_MambaS4.pkl", "daceeacb", 124, 450_964),
    ];
    for (name, sha256, tensors, parameters) in known {
        let Some(path) = std::fs::read_dir(&folder)
            .unwrap()
            .flatten()
            .map(|sub| sub.path().join(name))
            .chain([folder.join(name)])
            .find(|p| p.is_file())
        else {
            eprintln!("SKIP {name}: not there");
            continue;
        };
        let file = open(&path);
        assert!(file.sha256().starts_with(sha256), "{name}: {}", file.sha256());
        assert_eq!(file.names().count(), tensors, "{name}");
        assert_eq!(file.parameters(), parameters, "{name}");
        assert!(name == "weights.pt" || file.metadata["torch.network_config"].contains("encoder_n_layers"), "{name}");
        for tensor in file.names() {
            assert!(file.f32(tensor).unwrap().iter().all(|v| v.is_finite()), "{name}: {tensor}");
        }
    }
}
