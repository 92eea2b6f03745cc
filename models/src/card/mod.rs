//! Networks on a card.
//!
//! A family that can run there gives a [`Network`]: where its weights lie in one slab, and the launches of a forward pass in
//! the order of its figure. Everything else is here: the slab, working memory, the streams' states in a pool by slots,
//! copies, and a graph for each (streams, steps) that comes again. [`OnCard`] is such a network as a [`Model`].

mod experts;
mod home;
mod input;
mod ops;
mod pass;
mod weights;

pub(crate) use experts::ExpertsNet;
pub use home::OnCard;
pub(crate) use home::{Seat, upload};
pub use input::CardInput;
pub(crate) use ops::{ConvNet, DepthwiseNet};
pub use pass::{Pass, Place};
pub(crate) use pass::{Rows, after};
pub use weights::Weights;
pub(crate) use weights::{At, Dense, NormAt};

use crate::engine::Device;
use crate::error::Error;
use crate::model::Model;
use ssm_kernels::cuda::{Card, CardError, card};
use ssm_kernels::linear::Precision;
use std::sync::Arc;

/// A forward pass as launches.
pub trait Network: Send + Sync {
    /// Values of a step as [`Model::embed`] gives them.
    fn input_len(&self) -> usize;

    /// Whether a pass has one step: then longer calls are several passes.
    fn single_steps(&self) -> bool {
        false
    }

    /// Whether steps always have the trained length: at another rate the processor takes over.
    fn trained_rate(&self) -> bool {
        false
    }

    /// Queues a pass. The same launches for the same (streams, steps), whatever the streams hold: they may be recorded.
    ///
    /// # Errors
    /// A size that no kernel can run, or the card refuses.
    fn queue(&self, pass: &Pass<'_>) -> Result<(), Error>;
}

/// A model where it really runs.
pub struct Placed {
    /// The model.
    pub model: Arc<dyn Model>,
    /// Why it runs on the processor though a card was not ruled out and is there.
    pub note: Option<String>,
}

impl Device {
    /// `auto` becomes the processor where there is no card.
    #[must_use]
    pub fn present(self) -> Self {
        if self == Self::Auto && !matches!(card::count(), Ok(1..)) { Self::Cpu } else { self }
    }

    /// Puts a model where it is to run. `auto` is the first card, if there is one and the model can run there.
    ///
    /// # Errors
    /// A card was asked for by name and there is none, or the model cannot run there.
    pub fn place(self, model: Arc<dyn Model>) -> Result<Placed, Error> {
        let index = match self.present() {
            Self::Cpu => return Ok(Placed { model, note: None }),
            Self::Auto => 0,
            Self::Cuda(index) => index,
        };
        let integers = model.info().facts.precision == Precision::Int8;
        let why = match Card::open(index).and_then(|card| OnCard::new(card, model.clone())) {
            Ok(_) if integers => "precision=int8 runs on the processor only: device=cpu, or precision=bf16".to_owned(),
            Ok(Some(model)) => return Ok(Placed { model: Arc::new(model), note: None }),
            Ok(None) => format!("this {} model runs on the processor only: device=cpu", model.info().family),
            Err(CardError::NoDriver) => format!("{}; use device=cpu or device=auto", CardError::NoDriver),
            Err(error) => error.to_string(),
        };
        if self == Self::Auto {
            return Ok(Placed { model, note: Some(why) });
        }
        Err(Error::Device { asked: self.to_string(), reason: why })
    }
}
