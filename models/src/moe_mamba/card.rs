//! MoE-Mamba on a card.

use super::MoeMamba;
use crate::card::{Dense, Network, NormAt, Pass, Weights};
use crate::error::Error;
use crate::stack::StackNet;
use ssm_kernels::Act;
use ssm_kernels::cuda::Kind;
use ssm_kernels::norm::{self, Norm};

/// A MoE-Mamba's weights on a card.
struct MoeNet {
    stack: StackNet,
    /// Of which only the sum before it is used: no norm stands before the head.
    sum: NormAt,
    head: Dense,
}

impl MoeMamba {
    /// The network for a card; `None` where a layer is not written for one.
    pub(super) fn on_card(&self, w: &mut Weights) -> Option<Box<dyn Network>> {
        let sum = Norm::new(norm::Kind::Rms, vec![1.0; self.head.k()], None, 1e-5);
        Some(Box::new(MoeNet { stack: self.stack.on_card(w)?, sum: w.norm(&sum), head: w.dense(&self.head) }))
    }
}

impl Network for MoeNet {
    fn input_len(&self) -> usize {
        self.head.k as usize
    }

    fn queue(&self, p: &Pass<'_>) -> Result<(), Error> {
        let (m, d) = (p.rows(), self.head.k);
        // The tokens' vectors are the residual stream.
        let (residual, hidden) = (p.input(d), p.take(m as usize, d, Kind::F32));
        self.stack.queue(p, residual, hidden)?;
        if !self.stack.is_empty() {
            p.add_norm(Some(hidden), residual, &self.sum, hidden, m, d)?;
        }
        p.linear(residual, &self.head, Act::None, p.output(self.head.n), m, false)
    }
}
