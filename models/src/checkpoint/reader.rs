use super::{Checkpoint, CheckpointError, Dtype};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Takes a network's weights out of a checkpoint and knows which are left.
pub struct Reader<'a> {
    file: &'a Checkpoint,
    prefix: String,
    taken: Rc<RefCell<BTreeSet<String>>>,
}

impl<'a> Reader<'a> {
    /// A reader at the top of the names, with nothing taken.
    pub fn new(file: &'a Checkpoint) -> Self {
        Self { file, prefix: String::new(), taken: Rc::default() }
    }

    /// The same reader below a prefix, such as `layers.0.`; what is taken here is taken there.
    pub fn at(&self, prefix: &str) -> Self {
        Self { file: self.file, prefix: self.full(prefix), taken: self.taken.clone() }
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The values of a tensor, row-major.
    ///
    /// # Errors
    /// It is missing, has another shape, is of no type of numbers, or holds a value that is not finite.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let (tensor, file) = (self.full(name), || self.file.path.clone());
        match self.file.shape(&tensor) {
            None => {
                let tensor = self.file.named(&tensor);
                return Err(CheckpointError::Missing { file: file(), tensor, expected: shape.to_vec() });
            }
            Some(got) if got != shape => {
                let (tensor, expected, got) = (self.file.named(&tensor), shape.to_vec(), got.to_vec());
                return Err(CheckpointError::Shape { file: file(), tensor, expected, got });
            }
            // A single number may be a counter that upstream keeps beside the weights.
            Some(_) if shape.is_empty() || self.file.dtype(&tensor).is_some_and(Dtype::is_float) => {}
            Some(_) => {
                let got = self.file.dtype(&tensor).map_or_else(String::new, |dtype| dtype.to_string());
                let (tensor, expected) = (self.file.named(&tensor), "F16, BF16, F32 or F64".into());
                return Err(CheckpointError::Type { file: file(), tensor, expected, got });
            }
        }
        let values = self.file.f32(&tensor)?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let mut index = vec![0; shape.len()];
            shape.iter().zip(&mut index).rev().fold(at, |rest, (len, i)| {
                *i = rest % len;
                rest / len
            });
            let tensor = self.file.named(&tensor);
            return Err(CheckpointError::NotFinite { file: file(), tensor, index, got: values[at] });
        }
        self.taken.borrow_mut().insert(tensor);
        Ok(values)
    }

    /// As [`Reader::take`] where the file has the tensor, else `None`.
    ///
    /// # Errors
    /// As [`Reader::take`], but not that it is missing.
    pub fn take_optional(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, CheckpointError> {
        if self.has(name) { self.take(name, shape).map(Some) } else { Ok(None) }
    }

    /// Counts everything below the reader's place as taken: another reader answers for it.
    pub(crate) fn leave(&self) {
        let below = self.file.names().filter(|n| n.starts_with(&self.prefix)).map(str::to_owned);
        self.taken.borrow_mut().extend(below);
    }

    /// Refuses a part that lacks one of the tensors that its sizes are read off.
    ///
    /// # Errors
    /// One is missing.
    pub(crate) fn require(&self, names: &[&str]) -> Result<(), CheckpointError> {
        let missing = names.iter().find(|name| !self.has(name));
        let absent = |name: &&str| {
            let tensor = self.file.named(&self.full(name));
            Err(CheckpointError::Absent { file: self.file.path.clone(), tensor })
        };
        missing.map_or(Ok(()), absent)
    }

    /// A tensor's shape, without taking it.
    pub fn shape(&self, name: &str) -> Option<&'a [usize]> {
        self.file.shape(&self.full(name))
    }

    /// Whether the file has a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.shape(name).is_some()
    }

    /// Ends the reading: every tensor of the file must have been taken, data (`__…`) apart.
    ///
    /// # Errors
    /// Some are left.
    pub fn finish(self) -> Result<(), CheckpointError> {
        let taken = self.taken.borrow();
        let tensors: Vec<String> = self
            .file
            .names()
            .filter(|n| !n.starts_with("__") && !taken.contains(*n))
            .map(|n| self.file.named(n))
            .collect();
        if tensors.is_empty() {
            Ok(())
        } else {
            Err(CheckpointError::Surplus { file: self.file.path.clone(), tensors })
        }
    }
}
