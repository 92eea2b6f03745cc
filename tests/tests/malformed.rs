//! Golden files whose data have another shape than the configuration and the weights say: refused or failed by name,
//! never a panic.

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use ssm_models::Device;
use ssm_models::golden::{Chunks, Verdict, VerifyOptions, verify};
use ssm_models::kernels::CpuLevel;
use std::panic::catch_unwind;
use std::path::PathBuf;

type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// Another shape for a tensor, and its bytes.
fn reshaped(shape: &[usize], bytes: &[u8], how: usize) -> Option<(Vec<usize>, Vec<u8>)> {
    let count = shape.iter().product::<usize>();
    let size = bytes.len().checked_div(count)?;
    match how {
        // Without dimensions.
        0 if shape.len() > 1 => Some((vec![count], bytes.to_vec())),
        // The last dimension one shorter, perhaps nothing left.
        1 => {
            let mut shape = shape.to_vec();
            let last = shape.last_mut()?;
            *last -= 1;
            let left = shape.iter().product::<usize>();
            Some((shape, bytes[..left * size].to_vec()))
        }
        // One dimension more in front.
        2 => Some(([&[1], shape].concat(), bytes.to_vec())),
        // The first dimension empty.
        3 => Some(([&[0], shape.get(1..)?].concat(), vec![])),
        _ => None,
    }
}

#[test]
fn misshapen_data_are_no_panic() {
    let options = VerifyOptions {
        level: CpuLevel::best(),
        threads: 1,
        tol: None,
        device: Device::Cpu,
        chunks: Chunks::Size(3),
        search: vec![],
    };
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (mut panics, mut tried) = (Vec::new(), 0);
    for entry in std::fs::read_dir(ssm_tests::golden()).expect("tests/golden is there") {
        let path = entry.expect("a readable folder").path();
        let small = std::fs::metadata(&path).is_ok_and(|m| m.len() < 400_000);
        if !small || path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).expect("a readable file");
        let file = SafeTensors::deserialize(&bytes).expect("a golden file");
        let (_, head) = SafeTensors::read_metadata(&bytes).expect("a golden file");
        let tensors: Vec<(String, Tensor)> =
            file.iter().map(|(n, t)| (n.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect();
        let is_data = |n: &str| n.starts_with("__") || name.starts_with("ops_");
        for (i, (tensor, (dtype, shape, data))) in tensors.iter().enumerate().filter(|(_, (n, _))| is_data(n)) {
            for how in 0..4 {
                let Some((new_shape, new_data)) = reshaped(shape, data, how) else { continue };
                let views = tensors.iter().enumerate().map(|(k, (n, (dtype, shape, data)))| {
                    let view = if k == i {
                        TensorView::new(*dtype, new_shape.clone(), &new_data)
                    } else {
                        TensorView::new(*dtype, shape.clone(), data)
                    };
                    (n.clone(), view.expect("bytes that fit"))
                });
                let bad = folder.join(&name);
                safetensors::serialize_to_file(views, head.metadata().clone(), &bad).expect("room to write");
                tried += 1;
                let what = format!("{name}: {tensor} {shape:?} as {new_shape:?} ({dtype:?})");
                match catch_unwind(|| verify(&bad, &options)) {
                    Err(_) => panics.push(what),
                    // Cutting expected values short or dropping a leading 1 may pass, a changed input may not.
                    Ok(o) if o.verdict == Verdict::Pass && tensor == "__input__" && how == 3 => panics.push(what),
                    Ok(_) => {}
                }
            }
        }
    }
    assert!(tried > 200, "only {tried} files");
    assert!(panics.is_empty(), "{} of {tried}:\n{}", panics.len(), panics.join("\n"));
}

/// A golden file with `field` of its configuration, or of the part that has it, set to `value`.
fn configured(name: &str, field: &str, value: &serde_json::Value) -> PathBuf {
    let bytes = std::fs::read(ssm_tests::golden().join(name)).expect("a readable file");
    let file = SafeTensors::deserialize(&bytes).expect("a golden file");
    let (_, head) = SafeTensors::read_metadata(&bytes).expect("a golden file");
    let mut metadata = head.metadata().clone().expect("metadata");
    let mut config: serde_json::Value = serde_json::from_str(&metadata["config"]).expect("a configuration");
    let parts = ["/ssm_cfg", "/hf_config", "/network_config", "/model", ""];
    let at = parts.iter().find(|at| config.pointer(at).is_some_and(|part| part.get(field).is_some()));
    let part = config.pointer_mut(at.unwrap_or(&"")).and_then(serde_json::Value::as_object_mut).expect("an object");
    part.insert(field.to_owned(), value.clone());
    metadata.insert("config".into(), config.to_string());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{field}_{name}"));
    safetensors::serialize_to_file(file.iter(), Some(metadata), &path).expect("room to write");
    path
}

#[test]
fn a_configuration_that_contradicts_the_tensors_is_refused() {
    for (name, fields) in [
        ("vim_tiny_cfg_a", &["depth", "embed_dim", "channels", "patch_size", "d_state", "num_classes"][..]),
        ("vmamba_v05_cfg_a", &["dims", "in_chans", "ssm_d_state", "ssm_dt_rank", "ssm_ratio", "num_classes"]),
        ("mamba_lm_tiny_mamba_ssm", &["n_layer", "d_model", "d_state", "d_conv", "expand", "dt_rank"]),
        ("mamba_lm_tiny_hf", &["num_hidden_layers", "hidden_size", "state_size", "conv_kernel", "time_step_rank"]),
        ("mamba_lm_tiny_hf", &["intermediate_size"]),
        ("mamba_block_tiny", &["d_model", "d_state", "d_conv", "expand"]),
        ("mamba2_lm_tiny_hf", &["num_hidden_layers", "state_size", "head_dim", "conv_kernel", "num_heads"]),
        ("aum_fobi_tiny", &["depth", "embed_dim", "d_state", "d_conv", "expand", "dt_rank", "num_classes"]),
        (
            "moe_mamba_tiny",
            &["n_blocks", "d_model", "n_experts", "expert_size", "d_state", "d_conv", "dt_rank", "expand"],
        ),
        ("bst_sh_tiny", &["n_layers", "d_model", "n_heads", "head_dim", "mlp_dim"]),
        ("s4d_classifier_tiny", &["n_layers", "d_model", "d_input", "d_output"]),
        ("cleanumamba_tiny", &["tsfm_n_layers", "encoder_n_layers", "kernel_size", "stride"]),
        ("attenuate_tiny", &["channels", "resample_factors"]),
    ] {
        for field in fields {
            let path = configured(&format!("{name}.safetensors"), field, &serde_json::json!(37));
            let error = ssm_models::open(&path.display().to_string(), &ssm_models::Options::default()).err();
            let error = error.map_or_else(|| panic!("{name} with {field} 37 is taken"), |e| e.to_string());
            assert!(error.contains(field) && error.contains("37"), "{name}, {field}: {error}");
        }
    }
    let hop = configured("band_mask_tiny.safetensors", "hop", &serde_json::json!(1u64 << 63));
    let error = ssm_models::open(&hop.display().to_string(), &ssm_models::Options::default()).err();
    assert!(error.expect("a refusal").to_string().contains("hop: expected 1 to"));
    // A width doubles from stage to stage where one number stands for all, or is listed.
    for dims in [serde_json::json!(12), serde_json::json!([12, 24, 48, 96])] {
        let path = configured("vmamba_v05_cfg_a.safetensors", "dims", &dims);
        assert!(ssm_models::open(&path.display().to_string(), &ssm_models::Options::default()).is_ok(), "{dims}");
    }
}

/// A golden file with a configuration of its own.
fn with_config(name: &str, config: &serde_json::Value) -> PathBuf {
    let bytes = std::fs::read(ssm_tests::golden().join(name)).expect("a readable file");
    let file = SafeTensors::deserialize(&bytes).expect("a golden file");
    let (_, head) = SafeTensors::read_metadata(&bytes).expect("a golden file");
    let mut metadata = head.metadata().clone().expect("metadata");
    metadata.insert("config".into(), config.to_string());
    let mark = config.to_string().bytes().fold(0u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{mark}_{name}"));
    safetensors::serialize_to_file(file.iter(), Some(metadata), &path).expect("room to write");
    path
}

#[test]
fn configurations_are_taken_as_upstream_writes_them() {
    use serde_json::json;
    let opened = |name: &str, config: serde_json::Value| {
        let path = with_config(&format!("{name}.safetensors"), &config);
        ssm_models::open(&path.display().to_string(), &ssm_models::Options::default()).map_err(|e| e.to_string())
    };
    for (name, config) in [
        (
            "mamba_lm_tiny_hf",
            json!({ "model_type": "mamba", "hidden_size": 32, "expand": 16, "intermediate_size": 64 }),
        ),
        ("mamba_lm_tiny_mamba_ssm", json!({ "d_model": 32, "vocab_size": 90, "ssm_cfg": {}, "attn_layer_idx": [] })),
        ("mamba_lm_tiny_mamba_ssm", json!({ "d_model": 32.0, "dt_rank": "auto" })),
        ("vim_tiny_cfg_a", json!({ "patch_size": [16, 16], "depth": 4.0, "img_size": 64 })),
        ("vim_tiny_cfg_a", json!({ "model": { "embed_dim": 32, "img_size": 64 } })),
        ("attenuate_tiny", json!({ "channels": [1, 4, 8, 10], "resample_factors": [4, 2, 2] })),
        ("s4d_classifier_tiny", json!({ "n_layers": 1, "n_repeat": 2 })),
    ] {
        assert_eq!(opened(name, config.clone()).err(), None, "{name}: {config}");
    }
    for (name, config, field) in [
        ("mamba_lm_tiny_hf", json!({ "model_type": "falcon_mamba" }), "model_type"),
        ("mamba_lm_tiny_hf", json!({ "mixer_rms_eps": 1e-6 }), "model_type"),
        ("mamba_lm_tiny_hf", json!({ "attn_layer_idx": [1] }), "attn_layer_idx"),
        ("mamba_lm_tiny_hf", json!({ "model": { "n_layer": 77 } }), "n_layer"),
        ("mamba2_lm_tiny_hf", json!({ "d_state": 5 }), "d_state"),
        ("vim_tiny_cfg_a", json!({ "bimamba_type": "v1", "img_size": 64 }), "bimamba_type"),
        ("vim_tiny_cfg_a", json!({ "if_cls_token": false, "img_size": 64 }), "if_cls_token"),
        ("vim_tiny_cfg_a", json!({ "rms_norm": false, "img_size": 64 }), "rms_norm"),
        ("vim_tiny_cfg_a", json!({ "norm_epsilon": -1, "img_size": 64 }), "norm_epsilon"),
        ("vmamba_v05_cfg_a", json!({ "forward_type": "bogus" }), "forward_type"),
        ("moe_mamba_tiny", json!({ "model": { "n_blocks": 77 } }), "n_blocks"),
        ("moe_mamba_tiny", json!({ "router_type": "expert_choice" }), "router_type"),
        ("s4d_classifier_tiny", json!({ "pool": { "_name_": "sample", "pool": 4 } }), "pool"),
        ("s4d_classifier_tiny", json!({ "model": { "n_layers": 99 } }), "n_layers"),
        ("cleanumamba_tiny", json!({ "network_config": { "stride": 4 } }), "stride"),
        ("bst_sh_tiny", json!({ "norm_eps": 2 }), "norm_eps"),
        ("bst_sh_tiny", json!([]), "config"),
    ] {
        let error = opened(name, config.clone()).err().unwrap_or_else(|| panic!("{name}: {config} is taken"));
        assert!(error.contains(&format!("{field}: expected")), "{name}: {config}: {error}");
    }
    // transformers writes `norm_before_gate` and gates first all the same; mamba_ssm means it.
    let options = VerifyOptions {
        level: CpuLevel::best(),
        threads: 1,
        tol: None,
        device: Device::Cpu,
        chunks: Chunks::Whole,
        search: vec![],
    };
    let passes = |config: serde_json::Value| {
        verify(&with_config("mamba2_lm_tiny_hf.safetensors", &config), &options).verdict == Verdict::Pass
    };
    assert!(passes(json!({ "hidden_size": 32, "head_dim": 16, "n_groups": 1, "norm_before_gate": true })));
    assert!(!passes(json!({ "ngroups": 1, "norm_before_gate": true })));
    assert!(passes(json!({ "model": { "ngroups": 1 } })) && !passes(json!({ "model": { "norm_epsilon": 0.5 } })));
}

#[test]
fn whole_numbers_are_no_weights_and_what_sizes_are_read_off_is_missed_by_name() {
    let changed = |name: &str, tensor: &str, ints: bool| {
        let bytes = std::fs::read(ssm_tests::golden().join(name)).expect("a readable file");
        let file = SafeTensors::deserialize(&bytes).expect("a golden file");
        let (_, head) = SafeTensors::read_metadata(&bytes).expect("a golden file");
        let views = file.iter().filter(|(n, _)| ints || *n != tensor).map(|(n, t)| {
            let dtype = if n == tensor { Dtype::I32 } else { t.dtype() };
            (n.to_owned(), TensorView::new(dtype, t.shape().to_vec(), t.data()).expect("bytes that fit"))
        });
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{tensor}_{ints}_{name}"));
        safetensors::serialize_to_file(views, head.metadata().clone(), &path).expect("room to write");
        let opened = ssm_models::open(&path.display().to_string(), &ssm_models::Options::default());
        opened.err().map_or_else(|| panic!("{name} is taken: {tensor}"), |e| e.to_string())
    };
    // Of all layers and directions, or of none.
    for (name, tensor) in [
        ("mamba_lm_tiny_hf", "backbone.layers.1.mixer.conv1d.bias"),
        ("vim_tiny_cfg_a", "layers.0.mixer.conv1d_b.bias"),
        ("mamba2_lm_tiny_hf", "backbone.layers.0.mixer.conv1d.bias"),
        ("s4_dplr_legs_tiny", "layer.kernel.P"),
        ("s4_dplr_legs_tiny", "layer.kernel.A_imag"),
        ("cleanumamba_tiny", "norm_f.weight"),
        ("cleanumamba_s4_tiny", "tsfm_Mamba_layers.0.mixer.conv1d.weight"),
    ] {
        let error = changed(&format!("{name}.safetensors"), tensor, false);
        assert!(error.contains(&format!("missing tensor {tensor}")), "{name}: {error}");
    }
    for (name, tensor) in [
        ("vim_tiny_cfg_a", "layers.1.mixer.A_log"),
        ("vim_tiny_cfg_a", "layers.1.mixer.dt_proj.weight"),
        ("vim_tiny_cfg_a", "layers.1.mixer.conv1d_b.weight"),
        ("vmamba_v05_cfg_a", "layers.0.blocks.0.op.Ds"),
        ("mamba_lm_tiny_hf", "backbone.layers.1.mixer.dt_proj.weight"),
        ("mamba2_lm_tiny_hf", "backbone.layers.1.mixer.A_log"),
        ("aum_fobi_tiny", "layers.1.mixer.dt_proj.weight"),
        ("band_mask_tiny", "blocks.0.full.mixer.A_log"),
        ("s4d_classifier_tiny", "s4_layers.0.D"),
        ("cleanumamba_tiny", "norm_f.weight"),
        ("moe_mamba_tiny", "head.weight"),
        ("bst_sh_tiny", "layers.0.attn.scale"),
    ] {
        let file = format!("{name}.safetensors");
        let error = changed(&file, tensor, true);
        assert!(
            error.contains(&format!("tensor {tensor}: expected F16, BF16, F32 or F64, got I32")),
            "{name}: {error}"
        );
        if tensor.contains("mixer") || tensor.ends_with("Ds") {
            let error = changed(&file, tensor, false);
            assert!(error.contains(&format!("missing tensor {tensor}")), "{name}: {error}");
        }
    }
}

/// A file of tensors of one value each, and what opening it says.
fn refusal(name: &str, config: &serde_json::Value, tensors: &[(&str, &[usize], f32)]) -> String {
    let bytes: Vec<_> =
        tensors.iter().map(|(_, shape, v)| v.to_le_bytes().repeat(shape.iter().product::<usize>())).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("bytes that fit"))
    });
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let metadata = [("config".to_owned(), config.to_string())].into();
    safetensors::serialize_to_file(views, Some(metadata), &path).expect("room to write");
    let opened = catch_unwind(|| ssm_models::open(&path.display().to_string(), &ssm_models::Options::default()));
    let opened = opened.unwrap_or_else(|_| panic!("{name}: a panic"));
    opened.err().map_or_else(|| panic!("{name} is taken"), |e| e.to_string())
}

#[test]
fn small_files_that_ask_for_much_are_refused() {
    use serde_json::json;
    let error = refusal("nothing.safetensors", &json!({ "family": "attenuate" }), &[("a", &[1], 0.0)]);
    assert!(error.contains("down_ssms: expected 1 to"), "{error}");

    // 65,025 tokens of 2000 values.
    let error = refusal(
        "tokens.safetensors",
        &json!({ "img_size": [255, 255], "stride": 1 }),
        &[
            ("patch_embed.proj.weight", &[2000, 3, 1, 1], 0.0),
            ("patch_embed.proj.bias", &[2000], 0.0),
            ("norm_f.weight", &[1], 0.0),
            ("layers.0.mixer.A_log", &[1, 1], 0.0),
            ("pos_embed", &[1, 65_025, 1], 0.0),
        ],
    );
    assert!(error.contains("frame size: expected 67108864 values at most"), "{error}");

    // A power of 48 matrices of 512 x 512 by squaring.
    let error = refusal(
        "power.safetensors",
        &json!({}),
        &[
            ("layer.D", &[1, 48], 1.0),
            ("layer.kernel.inv_dt", &[48, 1], -3.0),
            ("layer.kernel.A_real", &[1, 256], -0.7),
            ("layer.kernel.A_imag", &[1, 256], 1.0),
            ("layer.kernel.B", &[1, 1, 256, 2], 0.5),
            ("layer.kernel.C", &[1, 48, 256, 2], 0.5),
            ("layer.kernel.P", &[1, 1, 256, 2], 0.1),
            ("layer.kernel.l_kernel", &[], 16_777_215.0),
        ],
    );
    assert!(error.contains("l_kernel: expected 274877906944 multiply-adds at most"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_pipe_for_a_configuration_holds_up_nobody() {
    let folder = ssm_tests::element::Folder::new("malformed-pipe");
    let model = folder.model("mamba", 1).1;
    let pipe = std::path::Path::new(&model).with_file_name("config.json");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    let opened = ssm_models::open(&model, &ssm_models::Options::default());
    let error = opened.expect_err("a refusal").to_string();
    assert!(error.contains("config.json: config: expected a file that can be read, got something else"), "{error}");
}
