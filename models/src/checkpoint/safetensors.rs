//! safetensors: a JSON header, then the numbers.

use super::tensor::{Dtype, Misfit, Tensor};
use super::{CheckpointError, Metadata, Tensors};
use ::safetensors::{Dtype as Stored, SafeTensors};
use std::path::Path;

/// The tensors of a whole file, as views of its bytes (storage 0), and its metadata.
pub(super) fn read(file: &Path, bytes: &[u8]) -> Result<(Tensors, Metadata), CheckpointError> {
    let bad = |part: &str, expected: &str, got: String| CheckpointError::Format {
        file: file.into(),
        part: part.into(),
        expected: expected.into(),
        got,
    };
    // `read_metadata` compares the header's length and every tensor's place with the bytes that are there.
    let (header, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|e| bad("header", "a safetensors header and the bytes it describes", e.to_string()))?;
    let mut tensors = Tensors::new();
    for (name, info) in metadata.tensors() {
        let (dtype, complex) = match info.dtype {
            Stored::BOOL => (Dtype::Bool, false),
            Stored::U8 => (Dtype::U8, false),
            Stored::I8 => (Dtype::I8, false),
            Stored::I16 => (Dtype::I16, false),
            Stored::U16 => (Dtype::U16, false),
            Stored::I32 => (Dtype::I32, false),
            Stored::U32 => (Dtype::U32, false),
            Stored::I64 => (Dtype::I64, false),
            Stored::U64 => (Dtype::U64, false),
            Stored::F16 => (Dtype::F16, false),
            Stored::BF16 => (Dtype::BF16, false),
            Stored::F32 => (Dtype::F32, false),
            Stored::F64 => (Dtype::F64, false),
            Stored::C64 => (Dtype::F32, true),
            other => {
                return Err(CheckpointError::Type {
                    file: file.into(),
                    tensor: name,
                    expected: "numbers of 8 to 64 bits (no F4, F6, F8)".into(),
                    got: format!("{other:?}"),
                });
            }
        };
        let shape = info.shape.iter().copied().chain(complex.then_some(2)).collect();
        let tensor = Tensor::dense(dtype, shape, 8 + header + info.data_offsets.0, (0, bytes.len()))
            .map_err(|Misfit { expected, got }| bad(&format!("tensor {name}"), &expected, got))?;
        tensors.insert(name, tensor);
    }
    Ok((tensors, metadata.metadata().clone().unwrap_or_default().into_iter().collect()))
}
