//! A Mamba-2 mixer on a card.

use super::Mixer2;
use crate::card::{At, Dense, NormAt, Pass, Rows, Weights};
use crate::error::Error;
use crate::mixer::MixerState;
use ssm_kernels::Act;
use ssm_kernels::cuda::{Kind, Ptr, act, causal_conv1d, ssd};

/// A Mamba-2 mixer's weights on a card.
pub(crate) struct Mixer2Net {
    in_proj: Dense,
    taps: At,
    conv_bias: At,
    dt_bias: At,
    dt_limit: (f32, f32),
    a: At,
    d: At,
    norm: Vec<NormAt>,
    norm_first: bool,
    out_proj: Dense,
    e: u32,
    n: u32,
    heads: u32,
    groups: u32,
    k: u32,
    d_mlp: u32,
}

impl Mixer2 {
    /// Its weights for a card.
    pub(crate) fn on_card(&self, w: &mut Weights) -> Mixer2Net {
        Mixer2Net {
            in_proj: w.dense(&self.in_proj),
            taps: w.put(self.conv1d.taps()),
            conv_bias: w.put(self.conv1d.bias()),
            dt_bias: w.put(&self.dt_bias),
            dt_limit: self.dt_limit,
            a: w.put(&self.a),
            d: w.put(&self.d),
            norm: self.norm.iter().map(|norm| w.norm(norm)).collect(),
            norm_first: self.norm_first,
            out_proj: w.dense(&self.out_proj),
            e: self.e as u32,
            n: self.n as u32,
            heads: self.a.len() as u32,
            groups: self.groups as u32,
            k: self.conv1d.width() as u32,
            d_mlp: self.d_mlp as u32,
        }
    }
}

impl Mixer2Net {
    /// The kind of numbers that its products multiply. In between all is f32: step sizes, B and C come from the same
    /// product as x.
    pub(crate) fn kind(&self) -> Kind {
        self.in_proj.kind
    }

    /// As [`Mixer2::forward`].
    pub(crate) fn queue(&self, p: &Pass<'_>, x: Rows, at: &MixerState, out: Rows) -> Result<(), Error> {
        p.scope(|| self.queue_in(p, x, at, out))
    }

    fn queue_in(&self, p: &Pass<'_>, x: Rows, at: &MixerState, out: Rows) -> Result<(), Error> {
        let (e, gn, d_mlp, m) = (self.e, self.groups * self.n, self.d_mlp, p.rows());
        let (wide, channels, d_inner, rows) = (self.in_proj.n, e + 2 * gn, d_mlp + e, m as usize);
        let place = *p.place();
        let (zx, c) = (p.take(rows, wide, Kind::F32), p.take(rows, channels, Kind::F32));
        let (y, v) = (p.take(rows, e, Kind::F32), p.take(rows, d_inner, self.out_proj.kind));
        // [z0 | x0 | z | x | B | C | dt] = in_proj u
        p.linear(x, &self.in_proj, Act::None, zx, m, false)?;
        let z = zx.columns(2 * d_mlp);
        // x, B, C = silu(conv1d(xBC)); y = recurrence · silu(z)
        let conv = causal_conv1d::Args {
            x: zx.columns(2 * d_mlp + e).at,
            taps: p.at(self.taps),
            bias: p.at(self.conv_bias),
            y: c.at,
            tail: p.state(&at.conv),
            slots: place.slots,
            tail_stride: place.stride,
            x_stride: wide,
            y_stride: channels,
            batch: p.batch(),
            len: p.len(),
            d: channels,
            k: self.k,
            act: act(Act::Silu),
            carried: 1,
            ..causal_conv1d::Args::default()
        };
        p.try_launch(&conv, conv.launch(1))?;
        let gate_in_scan = self.norm.is_empty() || !self.norm_first;
        let scan = ssd::Args {
            x: c.at,
            dt: zx.columns(wide - self.heads).at,
            dt_bias: p.at(self.dt_bias),
            a: p.at(self.a),
            b: c.columns(e).at,
            c: c.columns(e + gn).at,
            skip: p.at(self.d),
            z: if gate_in_scan { z.at } else { Ptr::NONE },
            y: y.at,
            scale: place.rates,
            state: p.state(&at.h),
            slots: place.slots,
            state_stride: place.stride,
            x_stride: channels,
            dt_stride: wide,
            bc_stride: channels,
            z_stride: wide,
            y_stride: e,
            kind: Kind::F32,
            batch: p.batch(),
            len: p.len(),
            heads: self.heads,
            p: e / self.heads,
            n: self.n,
            per_group: self.heads / self.groups,
            low: self.dt_limit.0,
            high: self.dt_limit.1,
        };
        p.try_launch(&scan, scan.launch())?;
        // v = [silu(z0) · x0 | norm(y)]
        if d_mlp > 0 {
            p.gate(zx.columns(d_mlp), 1, Some(zx), Act::Silu, v, m, d_mlp)?;
        }
        if self.norm.is_empty() {
            p.gate(y, 1, None, Act::None, v.columns(d_mlp), m, e)?;
        }
        let per_group = e / self.groups;
        for (g, norm) in self.norm.iter().enumerate() {
            let from = g as u32 * per_group;
            let after = (!gate_in_scan).then(|| z.columns(from));
            p.norm_gated(y.columns(from), 1, norm, after, v.columns(d_mlp + from), m, per_group)?;
        }
        p.linear(v, &self.out_proj, Act::None, out, m, false)
    }
}
