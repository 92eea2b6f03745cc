use crate::error::Error;
use ssm_kernels::cuda::Card;
use ssm_kernels::cuda::card::Memory;
use std::sync::Arc;

/// A row's input that lies on a card, complete: nothing that is queued writes it any more.
#[derive(Clone)]
pub struct CardInput {
    card: Arc<Card>,
    memory: Arc<Memory>,
}

impl CardInput {
    /// Room for `len` values on the card of this queue.
    pub(crate) fn new(card: Arc<Card>, len: usize) -> Result<Self, Error> {
        let memory = Arc::new(card.memory(len)?);
        Ok(Self { card, memory })
    }

    /// Where it lies.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The card's index.
    pub(crate) fn index(&self) -> u32 {
        self.card.index()
    }

    /// Copies the values from the card.
    pub(crate) fn fetch(&self, x: &mut [f32]) -> Result<(), Error> {
        let mut staging = self.card.staging(x.len())?;
        self.card.read(&self.memory, 0, &mut staging, 0..x.len())?;
        x.copy_from_slice(staging.values()?);
        Ok(())
    }
}
