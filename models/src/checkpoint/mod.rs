//! Files of named tensors: safetensors, and what `torch.save` writes.
//!
//! A file is not trusted. It is read, not mapped; a pickle is parsed as data and never run; every size it names is
//! compared with the bytes that are there before memory is taken for it. What the file holds beside tensors (a training
//! run's arguments, epoch, configuration) becomes metadata.

mod error;
mod pickle;
mod reader;
mod safetensors;
mod tensor;
#[cfg(test)]
mod tests;
mod torch;

pub use error::CheckpointError;
pub use reader::Reader;
pub use tensor::Dtype;

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tensor::Tensor;

/// Tensors by name.
type Tensors = BTreeMap<String, Tensor>;
/// What a file says beside its tensors, by key.
type Metadata = BTreeMap<String, String>;

/// The tensors of a file by name, and what the file says about itself.
pub struct Checkpoint {
    /// The file, or `builtin:…`.
    pub path: PathBuf,
    /// safetensors: its metadata. torch: entries of the container that are plain values, as JSON, under `torch.` and
    /// their key (`torch.epoch`, `torch.args`, `torch.network_config`).
    pub metadata: BTreeMap<String, String>,
    format: &'static str,
    tensors: Tensors,
    storages: Arc<Vec<Vec<u8>>>,
    sha256: String,
    /// What stands before every name in the file.
    prefix: String,
}

/// What a file is, by its first bytes.
enum Kind {
    Safetensors,
    TorchZip,
    TorchLegacy,
}

/// Bytes that [`Kind::of`] wants to see.
const HEAD: usize = 16;

impl Kind {
    fn of(file: &Path, head: &[u8]) -> Result<Self, CheckpointError> {
        match head {
            // First: the length of a header may begin with any bytes, those of a pickle among them.
            [_, _, _, _, _, 0, 0, 0, b'{', ..] => Ok(Self::Safetensors),
            [b'P', b'K', 3, 4, ..] => Ok(Self::TorchZip),
            [0x80, 2..=5, ..] => Ok(Self::TorchLegacy),
            _ => Err(CheckpointError::Format {
                file: file.into(),
                part: "file".into(),
                expected: "safetensors, a torch zip archive or a torch pickle".into(),
                got: match head {
                    [] => "an empty file".into(),
                    _ if head.starts_with(b"version https:/") => "a pointer of git-lfs (fetch the file itself)".into(),
                    _ => format!("a file that begins with {}", head[..head.len().min(8)].escape_ascii()),
                },
            }),
        }
    }
}

/// The tensors without the prefix `module.` if all have it, but for those whose names begin with `__`: golden files keep
/// inputs and outputs beside the weights.
fn without_module(tensors: Tensors) -> Tensors {
    const MODULE: &str = "module.";
    let weight = |name: &&String| !name.starts_with("__");
    if !tensors.keys().any(|n| n.starts_with(MODULE)) || !tensors.keys().filter(weight).all(|n| n.starts_with(MODULE)) {
        return tensors;
    }
    let short = |name: String| name.strip_prefix(MODULE).map(str::to_owned).unwrap_or(name);
    tensors.into_iter().map(|(name, t)| (short(name), t)).collect()
}

impl Checkpoint {
    /// Reads a file, or the `model.safetensors` or `pytorch_model.bin` of a folder.
    ///
    /// A container of a training run is recognised by its keys, and the weights are what stands under `model`,
    /// `state_dict` or `model_state_dict`. A prefix `module.` of every name is taken off.
    ///
    /// # Errors
    /// The file cannot be read or is not a whole checkpoint.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::open_file(path, None)
    }

    /// As [`Checkpoint::open`], with the weights that stand under another key of a torch container, such as `model_ema`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; the file has no such entry.
    pub fn open_entry(path: &Path, entry: &str) -> Result<Self, CheckpointError> {
        Self::open_file(path, Some(entry))
    }

    fn open_file(path: &Path, entry: Option<&str>) -> Result<Self, CheckpointError> {
        let io = |path: &Path| {
            let file = path.to_owned();
            move |source| CheckpointError::Io { file, source }
        };
        let mut path = path.to_owned();
        let mut about = std::fs::metadata(&path).map_err(io(&path))?;
        if about.is_dir() {
            path = inside(&path)?;
            about = std::fs::metadata(&path).map_err(io(&path))?;
        }
        if !about.is_file() {
            return Err(CheckpointError::Format {
                file: path,
                part: "file".into(),
                expected: "a regular file".into(),
                got: "something else".into(),
            });
        }
        let mut file = File::open(&path).map_err(io(&path))?;
        let mut head = Vec::with_capacity(HEAD);
        (&mut file).take(HEAD as u64).read_to_end(&mut head).map_err(io(&path))?;
        file.seek(SeekFrom::Start(0)).map_err(io(&path))?;
        if let Kind::TorchZip = Kind::of(&path, &head)? {
            // Only what is needed is kept: the weights are often a quarter of the file.
            let mut hasher = Sha256::new();
            let mut buffer = vec![0; 1 << 18];
            loop {
                match file.read(&mut buffer).map_err(io(&path))? {
                    0 => break,
                    n => hasher.update(&buffer[..n]),
                }
            }
            file.seek(SeekFrom::Start(0)).map_err(io(&path))?;
            let found = torch::read_zip(&path, BufReader::new(file), about.len(), entry)?;
            return Ok(Self::of_torch(path, "torch zip", found, hex(&hasher.finalize())));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io(&path))?;
        Self::of_bytes(path, bytes, entry)
    }

    /// Reads a file that is in memory; `name` stands for its path in messages.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self, CheckpointError> {
        Self::of_bytes(name.into(), bytes, None)
    }

    fn of_bytes(path: PathBuf, bytes: Vec<u8>, entry: Option<&str>) -> Result<Self, CheckpointError> {
        let sha256 = hex(&Sha256::digest(&bytes));
        match Kind::of(&path, &bytes[..bytes.len().min(HEAD)])? {
            Kind::TorchZip => {
                let found = torch::read_zip(&path, Cursor::new(&bytes), bytes.len() as u64, entry)?;
                Ok(Self::of_torch(path, "torch zip", found, sha256))
            }
            Kind::TorchLegacy => {
                let found = torch::read_legacy(&path, bytes, entry)?;
                Ok(Self::of_torch(path, "torch legacy", found, sha256))
            }
            Kind::Safetensors if entry.is_some() => Err(CheckpointError::Format {
                file: path,
                part: entry.unwrap_or_default().into(),
                expected: "a torch container".into(),
                got: "safetensors, which has no entries".into(),
            }),
            Kind::Safetensors => {
                let (tensors, metadata) = safetensors::read(&path, &bytes)?;
                Ok(Self {
                    path,
                    metadata,
                    format: "safetensors",
                    tensors: without_module(tensors),
                    storages: Arc::new(vec![bytes]),
                    sha256,
                    prefix: String::new(),
                })
            }
        }
    }

    fn of_torch(path: PathBuf, format: &'static str, found: torch::Found, sha256: String) -> Self {
        let torch::Found { tensors, storages, metadata } = found;
        let tensors = without_module(tensors);
        Self { path, metadata, format, tensors, storages: Arc::new(storages), sha256, prefix: String::new() }
    }

    /// A checkpoint of zeros that takes no room: for tests of names and shapes.
    #[doc(hidden)]
    pub fn of_shapes(name: &str, shapes: impl IntoIterator<Item = (String, Vec<usize>)>) -> Self {
        let (mut tensors, mut storages) = (Tensors::new(), Vec::new());
        for (name, shape) in shapes {
            let stride = vec![0; shape.len()];
            if let Ok(tensor) = Tensor::new(Dtype::F32, shape, stride, 0, (storages.len(), 4)) {
                storages.push(vec![0; 4]);
                tensors.insert(name, tensor);
            }
        }
        let (metadata, sha256) = (Metadata::new(), hex(&Sha256::digest([])));
        let (storages, prefix) = (Arc::new(storages), String::new());
        Self { path: name.into(), metadata, format: "shapes", tensors, storages, sha256, prefix }
    }

    /// The file without the tensors whose names begin with `prefix`.
    #[cfg(test)]
    pub(crate) fn without(mut self, prefix: &str) -> Self {
        self.tensors.retain(|name, _| !name.starts_with(prefix));
        self
    }

    /// The tensors whose names begin with `prefix`, under what follows it; messages name them in full. The numbers are
    /// shared.
    pub fn part(&self, prefix: &str) -> Self {
        let inside = |(name, t): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone()));
        Self {
            path: self.path.clone(),
            metadata: self.metadata.clone(),
            format: self.format,
            tensors: self.tensors.iter().filter_map(inside).collect(),
            storages: self.storages.clone(),
            sha256: self.sha256.clone(),
            prefix: format!("{}{prefix}", self.prefix),
        }
    }

    /// A name as the file has it.
    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// `safetensors`, `torch zip` or `torch legacy`.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Of `{before}0.`, `{before}1.`, … the first ones that names begin with: how many there are.
    pub(crate) fn numbered(&self, before: &str) -> usize {
        let some = |i: &usize| {
            let place = format!("{before}{i}.");
            self.tensors.range(place.clone()..).next().is_some_and(|(name, _)| name.starts_with(&place))
        };
        (0..).take_while(some).count()
    }

    /// A tensor's shape; `None` where the file has no such tensor. Complex numbers have a last axis (re, im).
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| &*t.shape)
    }

    /// A tensor's number type in the file.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|t| t.dtype)
    }

    fn tensor(&self, name: &str) -> Result<(&Tensor, &[u8]), CheckpointError> {
        self.tensors
            .get(name)
            .and_then(|t| Some((t, &**self.storages.get(t.storage)?)))
            .ok_or_else(|| CheckpointError::Absent { file: self.path.clone(), tensor: self.named(name) })
    }

    /// A tensor's values, row-major, whatever their type; f64 and large integers are rounded. Nothing is said about
    /// NaN: data may hold it (weights go through [`Reader::take`]).
    ///
    /// # Errors
    /// The file has no such tensor.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        self.tensor(name).map(|(t, storage)| t.f32(storage))
    }

    /// As [`Checkpoint::f32`] without the rounding (integers are exact up to 53 bits).
    ///
    /// # Errors
    /// The file has no such tensor.
    pub fn f64(&self, name: &str) -> Result<Vec<f64>, CheckpointError> {
        self.tensor(name).map(|(t, storage)| t.f64(storage))
    }

    /// The values of a tensor of bytes or booleans.
    ///
    /// # Errors
    /// The file has no such tensor, or it is of another type.
    pub fn u8(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        match self.tensor(name)? {
            (t, storage) if matches!(t.dtype, Dtype::U8 | Dtype::Bool) => Ok(t.u8(storage)),
            (t, _) => Err(CheckpointError::Type {
                file: self.path.clone(),
                tensor: self.named(name),
                expected: "U8".into(),
                got: t.dtype.to_string(),
            }),
        }
    }

    /// Number of trained values: the file's floating-point tensors without data (`__…`) and running statistics; two
    /// names for the same place count once.
    pub fn parameters(&self) -> u64 {
        let buffer = |name: &str| name.ends_with("running_mean") || name.ends_with("running_var");
        let trained: Vec<_> = self
            .tensors
            .iter()
            .filter(|(n, t)| t.dtype.is_float() && !n.starts_with("__") && !buffer(n))
            .map(|(_, t)| t)
            .collect();
        let mut places: Vec<_> = trained.iter().map(|t| t.place()).collect();
        places.sort_unstable();
        places.dedup();
        places.iter().map(|(_, _, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    /// SHA-256 of the file, in hexadecimal.
    pub fn sha256(&self) -> String {
        self.sha256.clone()
    }

    /// SHA-256 over the file's and `extra` (options that change the function), in hexadecimal.
    pub fn hash(&self, extra: &str) -> String {
        hex(&Sha256::new().chain_update(&self.sha256).chain_update(extra).finalize())
    }
}

/// The checkpoint in a folder.
fn inside(folder: &Path) -> Result<PathBuf, CheckpointError> {
    const NAMES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
    if let Some(file) = NAMES.iter().map(|n| folder.join(n)).find(|f| f.is_file()) {
        return Ok(file);
    }
    let sharded = NAMES.iter().find(|n| folder.join(format!("{n}.index.json")).is_file());
    Err(CheckpointError::Format {
        file: folder.into(),
        part: "folder".into(),
        expected: NAMES.join(" or "),
        got: match sharded {
            Some(name) => format!("{name}.index.json, a checkpoint in several files"),
            None => "neither".into(),
        },
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
