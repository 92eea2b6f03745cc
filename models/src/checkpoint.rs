//! stub
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
/// e
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// e
    #[error("{0}")]
    Any(String),
}
/// c
pub struct Checkpoint {
    /// p
    pub path: PathBuf,
    /// m
    pub metadata: BTreeMap<String, String>,
    bytes: Vec<u8>,
    tensors: BTreeMap<String, (safetensors::Dtype, Vec<usize>, std::ops::Range<usize>)>,
}
impl Checkpoint {
    /// o
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::from_bytes(
            &path.display().to_string(),
            std::fs::read(path).map_err(|e| CheckpointError::Any(format!("{path:?} {e}")))?,
        )
    }
    /// f
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self, CheckpointError> {
        let any = |e: safetensors::SafeTensorError| CheckpointError::Any(e.to_string());
        let (n, head) = safetensors::SafeTensors::read_metadata(&bytes).map_err(any)?;
        let metadata = head.metadata().clone().unwrap_or_default().into_iter().collect();
        let tensors = head
            .tensors()
            .into_iter()
            .map(|(k, t)| (k, (t.dtype, t.shape.clone(), n + 8 + t.data_offsets.0..n + 8 + t.data_offsets.1)))
            .collect();
        Ok(Self { path: name.into(), metadata, bytes, tensors })
    }
    /// n
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(|s| s.as_str())
    }
    /// s
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| &t.1[..])
    }
    /// f
    pub fn f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let (d, _, r) = self.tensors.get(name).ok_or_else(|| CheckpointError::Any(format!("missing {name}")))?;
        let b = &self.bytes[r.clone()];
        Ok(match d {
            safetensors::Dtype::F32 => b.chunks(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect(),
            safetensors::Dtype::F64 => {
                b.chunks(8).map(|c| f64::from_le_bytes(c.try_into().unwrap_or_default()) as f32).collect()
            }
            safetensors::Dtype::I64 => {
                b.chunks(8).map(|c| i64::from_le_bytes(c.try_into().unwrap_or_default()) as f32).collect()
            }
            _ => return Err(CheckpointError::Any(format!("dtype {name}"))),
        })
    }
}
impl Checkpoint {
    /// d
    pub fn f64(&self, name: &str) -> Result<Vec<f64>, CheckpointError> {
        Ok(match self.tensors.get(name) {
            Some((safetensors::Dtype::F64, _, r)) => {
                self.bytes[r.clone()].chunks(8).map(|c| f64::from_le_bytes(c.try_into().unwrap_or_default())).collect()
            }
            Some((safetensors::Dtype::I32, _, r)) => self.bytes[r.clone()]
                .chunks(4)
                .map(|c| i32::from_le_bytes(c.try_into().unwrap_or_default()) as f64)
                .collect(),
            _ => self.f32(name)?.iter().map(|v| *v as f64).collect(),
        })
    }
    /// u
    pub fn u8(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        Ok(self.tensors.get(name).map(|t| self.bytes[t.2.clone()].to_vec()).unwrap_or_default())
    }
    /// p
    pub fn parameters(&self) -> u64 {
        self.tensors
            .iter()
            .filter(|(k, _)| !k.starts_with("__"))
            .map(|(_, t)| t.1.iter().product::<usize>() as u64)
            .sum()
    }
    /// h
    pub fn sha256(&self) -> String {
        String::new()
    }
    /// h
    pub fn hash(&self, extra: &str) -> String {
        extra.into()
    }
}
/// r
pub struct Reader<'a> {
    ck: &'a Checkpoint,
    prefix: String,
    taken: std::rc::Rc<std::cell::RefCell<std::collections::BTreeSet<String>>>,
}
impl<'a> Reader<'a> {
    /// n
    pub fn new(ck: &'a Checkpoint) -> Self {
        Self { ck, prefix: String::new(), taken: Default::default() }
    }
    /// a
    pub fn at(&self, prefix: &str) -> Self {
        Self { ck: self.ck, prefix: format!("{}{prefix}", self.prefix), taken: self.taken.clone() }
    }
    /// t
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let name = format!("{}{name}", self.prefix);
        if self.ck.shape(&name) != Some(shape) {
            return Err(CheckpointError::Any(format!("{name}: {shape:?} {:?}", self.ck.shape(&name))));
        }
        self.taken.borrow_mut().insert(name.clone());
        self.ck.f32(&name)
    }
    /// t
    pub fn take_optional(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, CheckpointError> {
        if self.has(name) { self.take(name, shape).map(Some) } else { Ok(None) }
    }
    /// s
    pub fn shape(&self, name: &str) -> Option<&'a [usize]> {
        self.ck.shape(&format!("{}{name}", self.prefix))
    }
    /// h
    pub fn has(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }
    /// f
    pub fn finish(self) -> Result<(), CheckpointError> {
        let t = self.taken.borrow();
        match self.ck.names().find(|n| !n.starts_with("__") && !t.contains(*n)) {
            Some(n) => Err(CheckpointError::Any(format!("surplus {n}"))),
            None => Ok(()),
        }
    }
}
