//! Mamba language models and single mixers on a card.

use super::{MambaLm, Single};
use crate::card::{Dense, Network, NormAt, Pass, Weights};
use crate::error::Error;
use crate::mixer::MixerState;
use crate::mixers::AnyMixerNet;
use crate::stack::StackNet;
use ssm_kernels::Act;
use ssm_kernels::cuda::Kind;

/// A language model's weights on a card.
struct LmNet {
    stack: StackNet,
    norm_f: NormAt,
    lm_head: Dense,
}

/// One mixer on a card.
struct SingleNet {
    mixer: AnyMixerNet,
    state: MixerState,
    d: u32,
}

impl MambaLm {
    /// The network for a card.
    pub(super) fn on_card(&self, w: &mut Weights) -> Option<Box<dyn Network>> {
        let stack = self.stack.on_card(w)?;
        Some(Box::new(LmNet { stack, norm_f: w.norm(&self.norm_f), lm_head: w.dense(&self.lm_head) }))
    }
}

impl Single {
    /// The network for a card.
    pub(super) fn on_card(&self, w: &mut Weights) -> Option<Box<dyn Network>> {
        Some(Box::new(SingleNet { mixer: self.mixer.on_card(w)?, state: self.state.clone(), d: self.d as u32 }))
    }
}

impl Network for LmNet {
    fn input_len(&self) -> usize {
        self.lm_head.k as usize
    }

    fn trained_rate(&self) -> bool {
        self.stack.trained_rate()
    }

    fn queue(&self, p: &Pass<'_>) -> Result<(), Error> {
        let (m, d, vocab) = (p.rows(), self.lm_head.k, self.lm_head.n);
        // The tokens' vectors are the residual stream.
        let (residual, hidden) = (p.input(d), p.take(m as usize, d, Kind::F32));
        self.stack.queue(p, residual, hidden)?;
        let normed = p.take(m as usize, d, self.lm_head.kind);
        p.add_norm((!self.stack.is_empty()).then_some(hidden), residual, &self.norm_f, normed, m, d)?;
        p.linear(normed, &self.lm_head, Act::None, p.output(vocab), m, false)
    }
}

impl Network for SingleNet {
    fn input_len(&self) -> usize {
        self.d as usize
    }

    fn trained_rate(&self) -> bool {
        self.mixer.trained_rate()
    }

    fn queue(&self, p: &Pass<'_>) -> Result<(), Error> {
        self.mixer.queue(p, p.input(self.d), &self.state, p.output(self.d))
    }
}
