//! What `torch.save` writes: a pickle that describes tensors as views of storages, and the storages.

mod legacy;
mod state_dict;
mod zip;

pub(super) use legacy::read as read_legacy;
pub(super) use zip::read as read_zip;

use super::pickle::{Broken, Pickle};
use super::tensor::{Misfit, Tensor};
use super::{CheckpointError, Metadata, Tensors};
use state_dict::{Place, View};
use std::path::Path;

/// What a file holds.
pub(super) struct Found {
    pub(super) tensors: Tensors,
    pub(super) storages: Vec<Vec<u8>>,
    pub(super) metadata: Metadata,
}

/// A file under way: for messages, and what it may still unfold to.
struct Source<'a> {
    file: &'a Path,
    /// Bytes that inflated entries and views may still take. Views of one storage can stand for any number of values, and
    /// deflated zeros for a thousand times their size: a file may ask for many times its own length, but not for all
    /// memory.
    budget: u64,
}

impl<'a> Source<'a> {
    fn new(file: &'a Path, len: u64) -> Self {
        Self { file, budget: len.saturating_mul(64).saturating_add(64 << 20) }
    }

    fn bad(&self, part: &str, expected: impl Into<String>, got: impl Into<String>) -> CheckpointError {
        CheckpointError::Format {
            file: self.file.into(),
            part: part.into(),
            expected: expected.into(),
            got: got.into(),
        }
    }

    fn spend(&mut self, part: &str, bytes: u64) -> Result<(), CheckpointError> {
        match self.budget.checked_sub(bytes) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => {
                let limit = "no more than 64 times the file's length in all";
                Err(self.bad(part, limit, format!("{bytes} bytes beyond it")))
            }
        }
    }

    fn parse<'b>(&self, part: &str, bytes: &'b [u8]) -> Result<Pickle<'b>, CheckpointError> {
        Pickle::parse(bytes)
            .map_err(|Broken { at, why }| self.bad(part, "a whole pickle", format!("at byte {at}: {why}")))
    }

    /// The tensors of views, their storages found by `storage`: its number, where in it the place starts, its length.
    fn tensors(
        &mut self,
        views: Vec<(String, View<'_>)>,
        mut storage: impl FnMut(&mut Self, &Place<'_>) -> Result<(usize, usize, usize), CheckpointError>,
    ) -> Result<Tensors, CheckpointError> {
        let mut tensors = Tensors::new();
        for (name, view) in views {
            let part = format!("tensor {name}");
            let (number, start, len) = storage(self, &view.place)?;
            let misfit = |Misfit { expected, got }: Misfit| self.bad(&part, expected, got);
            let offset =
                view.offset.checked_add(start).ok_or_else(|| self.bad(&part, "a place in the file", "none"))?;
            let tensor = Tensor::new(view.dtype, view.shape, view.stride, offset, (number, len)).map_err(misfit)?;
            self.spend(&part, (tensor.len() as u64).saturating_mul(view.dtype.size() as u64))?;
            tensors.insert(name, tensor);
        }
        Ok(tensors)
    }
}
