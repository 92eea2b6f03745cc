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
