//! Mixers on a card.

use super::AnyMixer;
use crate::card::{Pass, Rows, Weights};
use crate::error::Error;
use crate::mixer::{MixerNet, MixerState};
use crate::mixer_s4::MixerS4Net;
use crate::mixer2::Mixer2Net;
use crate::s4::BlockNet;
use ssm_kernels::cuda::Kind;

/// A causal mixer on a card.
pub(crate) enum AnyMixerNet {
    Mamba(MixerNet),
    Mamba2(Box<Mixer2Net>),
    S4(MixerS4Net),
    S4d(BlockNet),
}

impl AnyMixer {
    /// Its weights for a card; `None` where it is not written for one.
    pub(crate) fn on_card(&self, w: &mut Weights) -> Option<AnyMixerNet> {
        Some(match self {
            Self::Mamba(m) => AnyMixerNet::Mamba(m.on_card(w)),
            Self::Mamba2(m) => AnyMixerNet::Mamba2(Box::new(m.on_card(w))),
            Self::S4(m) => AnyMixerNet::S4(m.on_card(w)?),
            Self::S4d(m) => AnyMixerNet::S4d(m.on_card(w)?),
        })
    }
}

impl AnyMixerNet {
    /// The kind of numbers that it reads.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Mamba(m) => m.kind(),
            Self::Mamba2(m) => m.kind(),
            Self::S4(_) | Self::S4d(_) => Kind::F32,
        }
    }

    /// Whether it knows steps of the trained length only.
    pub(crate) fn trained_rate(&self) -> bool {
        matches!(self, Self::S4(_) | Self::S4d(_))
    }

    /// As [`AnyMixer::forward`].
    pub(crate) fn queue(&self, p: &Pass<'_>, x: Rows, at: &MixerState, out: Rows) -> Result<(), Error> {
        match self {
            Self::Mamba(m) => m.queue(p, x, Some(at), out),
            Self::Mamba2(m) => m.queue(p, x, at, out),
            Self::S4(m) => m.queue(p, x, at, out),
            Self::S4d(m) => m.queue(p, x, &at.h, out),
        }
    }
}
