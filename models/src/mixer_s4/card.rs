//! A Mamba block around an S4 layer, on a card.

use super::MixerS4;
use crate::card::{At, Dense, Pass, Rows, Weights};
use crate::error::Error;
use crate::mixer::MixerState;
use crate::s4::BlockNet;
use ssm_kernels::Act;
use ssm_kernels::cuda::{Kind, act, causal_conv1d};

/// A mixer's weights on a card.
pub(crate) struct MixerS4Net {
    in_proj: Dense,
    taps: At,
    conv_bias: At,
    ssm: BlockNet,
    out_proj: Dense,
    e: u32,
    k: u32,
}

impl MixerS4 {
    /// Its weights for a card; `None` where its layer is not written for one.
    pub(crate) fn on_card(&self, w: &mut Weights) -> Option<MixerS4Net> {
        Some(MixerS4Net {
            in_proj: w.dense(&self.in_proj),
            taps: w.put(self.conv1d.taps()),
            conv_bias: w.put(self.conv1d.bias()),
            ssm: self.ssm.on_card(w)?,
            out_proj: w.dense(&self.out_proj),
            e: self.e as u32,
            k: self.conv1d.width() as u32,
        })
    }
}

impl MixerS4Net {
    /// As [`MixerS4::forward`].
    pub(crate) fn queue(&self, p: &Pass<'_>, x: Rows, at: &MixerState, out: Rows) -> Result<(), Error> {
        p.scope(|| self.queue_in(p, x, at, out))
    }

    fn queue_in(&self, p: &Pass<'_>, x: Rows, at: &MixerState, out: Rows) -> Result<(), Error> {
        let (e, m, rows) = (self.e, p.rows(), p.rows() as usize);
        let (xz, c, y) = (p.take(rows, 2 * e, Kind::F32), p.take(rows, e, Kind::F32), p.take(rows, e, Kind::F32));
        // [x | z] = in_proj u; c = silu(conv1d(x))
        p.linear(x, &self.in_proj, Act::None, xz, m, false)?;
        let conv = causal_conv1d::Args {
            x: xz.at,
            taps: p.at(self.taps),
            bias: p.at(self.conv_bias),
            y: c.at,
            tail: p.state(&at.conv),
            slots: p.place().slots,
            tail_stride: p.place().stride,
            x_stride: xz.stride,
            y_stride: e,
            batch: p.batch(),
            len: p.len(),
            d: e,
            k: self.k,
            act: act(Act::Silu),
            carried: 1,
            ..causal_conv1d::Args::default()
        };
        p.try_launch(&conv, conv.launch(1))?;
        // y = S4(c) · silu(z)
        self.ssm.queue(p, c, &at.h, y)?;
        p.gate(y, 1, Some(xz.columns(e)), Act::Silu, y, m, e)?;
        p.linear(y, &self.out_proj, Act::None, out, m, false)
    }
}
