//! Which mixer a block has: read off the tensors.

mod card;

pub(crate) use card::AnyMixerNet;

use crate::checkpoint::Reader;
use crate::config::{Fields, bad};
use crate::error::Error;
use crate::mixer::{Mixer, MixerState};
use crate::mixer_s4::MixerS4;
use crate::mixer2::{self, Mixer2};
use crate::model::Row;
use crate::s4::Block;
use crate::state::StateLayout;
use ssm_kernels::linear::Precision;
use ssm_kernels::{CpuLevel, Cx, Mat, MatMut};

/// A causal mixer of any kind.
pub(crate) enum AnyMixer {
    Mamba(Mixer),
    Mamba2(Mixer2),
    S4(MixerS4),
    /// A bare S4 or S4D layer: no convolution, no gate around it.
    S4d(Block),
}

impl AnyMixer {
    /// Reads the mixer of width `d` at the reader's place.
    pub(crate) fn load(w: &Reader<'_>, level: CpuLevel, d: usize, fields: &Fields<'_>) -> Result<Self, Error> {
        if Mixer2::detect(w) {
            let config = mixer2::Config::read(fields)?;
            return Ok(Self::Mamba2(Mixer2::load(w, level, d, &config, fields)?));
        }
        if MixerS4::detect(w) {
            return Ok(Self::S4(MixerS4::load(w, level, d, fields.file())?));
        }
        if Block::detect(w) {
            let block = Block::load(w, level, fields.whole(), fields.file())?;
            if (block.d_input(), block.d_output()) != (d, d) {
                let got = format!("{} to {}", block.d_input(), block.d_output());
                return Err(bad(fields.file(), "mixer", format!("a layer from {d} to {d} columns"), got));
            }
            return Ok(Self::S4d(block));
        }
        Ok(Self::Mamba(Mixer::load(w, level, d)?))
    }

    /// Rounds the weights of the large products of a Mamba or Mamba-2 mixer to a precision.
    pub(crate) fn lower(&mut self, precision: Precision) {
        match self {
            Self::Mamba(m) => m.lower(precision),
            Self::Mamba2(m) => m.lower(precision),
            Self::S4(_) | Self::S4d(_) => {}
        }
    }

    /// Refuses a configuration that says other sizes than the tensors of a Mamba or Mamba-2 mixer have.
    pub(crate) fn agree(&self, fields: &Fields<'_>) -> Result<(), Error> {
        match self {
            Self::Mamba(m) => m.agree(fields),
            Self::Mamba2(m) => m.agree(fields),
            Self::S4(_) | Self::S4d(_) => Ok(()),
        }
    }

    /// Its kind in the words of our configurations.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Mamba(_) => "mamba",
            Self::Mamba2(_) => "mamba2",
            Self::S4(_) => "s4 in a mamba block",
            Self::S4d(_) => "s4d",
        }
    }

    /// Adds the layer's spans to a layout under `{prefix}.conv` and `{prefix}.h`.
    pub(crate) fn state(&self, layout: &mut StateLayout, prefix: &str) -> MixerState {
        match self {
            Self::Mamba(m) => m.state(layout, prefix),
            Self::Mamba2(m) => m.state(layout, prefix),
            Self::S4(m) => m.state(layout, prefix),
            Self::S4d(m) => MixerState { conv: 0..0, h: m.state(layout, format!("{prefix}.h")) },
        }
    }

    /// Sizes in a few words.
    pub(crate) fn sizes(&self) -> String {
        match self {
            Self::Mamba(m) => format!("E {}, N {}, R {}", m.d_inner(), m.d_state(), m.dt_rank()),
            Self::Mamba2(m) => m.sizes(),
            Self::S4(m) => m.sizes(),
            Self::S4d(m) => {
                let s = m.core().sizes();
                format!("N {}, {} channels, rank {}", 2 * s.states, s.channels, s.rank)
            }
        }
    }

    /// Working memory for `rows` rows.
    pub(crate) fn scratch_len(&self, rows: usize) -> usize {
        match self {
            Self::Mamba(m) => m.scratch_len(rows),
            Self::Mamba2(m) => m.scratch_len(rows),
            Self::S4(m) => m.scratch_len(rows),
            Self::S4d(m) => m.scratch_len(rows),
        }
    }

    /// `out = mixer(x)` for `rows.len()` sequences of `len` steps each, x and out (rows · len, D); each row goes on from
    /// its state and leaves its end there.
    pub(crate) fn forward(
        &self,
        cx: &Cx,
        x: Mat<'_>,
        rows: &mut [Row],
        len: usize,
        at: &MixerState,
        scratch: &mut [f32],
        out: MatMut<'_>,
    ) {
        match self {
            Self::Mamba(m) => m.forward(cx, x, rows, len, Some(at), scratch, out),
            Self::Mamba2(m) => m.forward(cx, x, rows, len, at, scratch, out),
            Self::S4(m) => m.forward(cx, x, rows, len, at, scratch, out),
            Self::S4d(m) => m.forward(cx, x, rows, len, &at.h, scratch, out),
        }
    }

    /// `periods` steps without input (mamba.md 7).
    pub(crate) fn gap(&self, state: &mut [f32], at: &MixerState, periods: f64) {
        match self {
            Self::Mamba(m) => m.gap(state, at, periods),
            Self::Mamba2(m) => m.gap(state, at, periods),
            Self::S4(m) => m.gap(state, at, periods),
            Self::S4d(m) => m.core().gap(&mut state[at.h.clone()], periods),
        }
    }

    /// The layer's state as upstream lays it out: `conv` (channels, K-1), `ssm` (E, N), (H, P, N) or (H, N, 2).
    pub(crate) fn upstream_state(&self, state: &[f32], at: &MixerState, what: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        match self {
            Self::Mamba(m) => m.upstream_state(state, at, what),
            Self::Mamba2(m) => m.upstream_state(state, at, what),
            Self::S4(m) => m.upstream_state(state, at, what),
            Self::S4d(m) => (what == "ssm").then(|| m.core().upstream_state(&state[at.h.clone()])),
        }
    }
}
