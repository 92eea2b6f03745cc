//! The small trained weights that ship inside the library.

use crate::checkpoint::Checkpoint;
use crate::error::Error;

/// Name and file of each.
const BUILTIN: &[(&str, &[u8])] = &[
    ("denoise", include_bytes!("../builtin/denoise.safetensors")),
    ("denoise-mamba", include_bytes!("../builtin/denoise-mamba.safetensors")),
    ("denoise-mamba2", include_bytes!("../builtin/denoise-mamba2.safetensors")),
    ("denoise-s4d", include_bytes!("../builtin/denoise-s4d.safetensors")),
    ("denoise-moe-mamba", include_bytes!("../builtin/denoise-moe-mamba.safetensors")),
    ("denoise-bst", include_bytes!("../builtin/denoise-bst.safetensors")),
    ("shots", include_bytes!("../builtin/shots.safetensors")),
];

/// The checkpoint of a builtin name, given without `builtin:`.
pub(crate) fn checkpoint(name: &str) -> Result<Checkpoint, Error> {
    let (_, bytes) = BUILTIN.iter().find(|(n, _)| *n == name).ok_or_else(|| Error::UnknownBuiltin {
        name: name.into(),
        known: BUILTIN.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", "),
    })?;
    Ok(Checkpoint::from_bytes(&format!("builtin:{name}"), bytes.to_vec())?)
}
