//! A mixer on a card: both directions in one launch, as far as they have the same input.

use super::{Backward, Branch, Mixer, MixerState};
use crate::card::{At, Dense, Pass, Rows, Weights};
use crate::error::Error;
use ssm_kernels::Act;
use ssm_kernels::cuda::selective_scan::{self, order};
use ssm_kernels::cuda::{Kind, Ptr, act, causal_conv1d};
use std::ops::Range;

/// A mixer's weights on a card.
pub(crate) struct MixerNet {
    in_proj: Dense,
    /// Of each direction that has a convolution and projections of its own.
    projections: Vec<(Dense, Dense)>, // x_proj, dt_proj
    taps: At,      // (own directions, K, E)
    conv_bias: At, // (own directions, E)
    dt_bias: At,   // (directions, E)
    a: At,         // (directions, N, E)
    d: At,         // (directions, E)
    out_proj: Dense,
    directions: u32,
    e: u32,
    n: u32,
    r: u32,
    k: u32,
}

impl Mixer {
    /// Its weights for a card.
    pub(crate) fn on_card(&self, w: &mut Weights) -> MixerNet {
        let forward = &self.forward;
        let (own, second): (Vec<&Branch>, Option<(&Branch, &[f32])>) = match &self.backward {
            Backward::None => (vec![forward], None),
            Backward::OwnA(a) => (vec![forward], Some((forward, a))),
            Backward::Own(b) => (vec![forward, b], Some((b, &b.a))),
        };
        let both: Vec<(&Branch, &[f32])> = [(forward, &forward.a[..])].into_iter().chain(second).collect();
        MixerNet {
            in_proj: w.dense(&self.in_proj),
            projections: own.iter().map(|b| (w.dense(&b.x_proj), w.dense(&b.dt_proj))).collect(),
            taps: w.put_all(own.iter().map(|b| b.conv1d.taps())),
            conv_bias: w.put_all(own.iter().map(|b| b.conv1d.bias())),
            dt_bias: w.put_all(both.iter().map(|(b, _)| &b.dt_bias[..])),
            a: w.put_all(both.iter().map(|(_, a)| *a)),
            d: w.put_all(both.iter().map(|(b, _)| &b.d[..])),
            out_proj: w.dense(&self.out_proj),
            directions: both.len() as u32,
            e: self.e as u32,
            n: self.n as u32,
            r: self.r as u32,
            k: forward.conv1d.width() as u32,
        }
    }
}

impl MixerNet {
    /// The kind of numbers between its products.
    pub(crate) fn kind(&self) -> Kind {
        self.in_proj.kind
    }

    /// As [`Mixer::forward`].
    pub(crate) fn queue(&self, p: &Pass<'_>, x: Rows, state: Option<&MixerState>, out: Rows) -> Result<(), Error> {
        self.queue_lanes(p, x, 1, state, out)
    }

    /// As [`Mixer::forward_lanes`]: of more than one lane forward only.
    pub(crate) fn queue_lanes(
        &self,
        p: &Pass<'_>,
        x: Rows,
        lanes: u32,
        state: Option<&MixerState>,
        out: Rows,
    ) -> Result<(), Error> {
        p.scope(|| self.queue_in(p, x, lanes, state, out))
    }

    fn queue_in(&self, p: &Pass<'_>, x: Rows, lanes: u32, state: Option<&MixerState>, out: Rows) -> Result<(), Error> {
        let (e, n, r, m) = (self.e, self.n, self.r, p.rows() * lanes);
        let (own, kind) = (self.projections.len() as u32, self.kind());
        let (rows, part) = (m as usize, u64::from(m) * u64::from(e));
        let (place, carried) = (*p.place(), u32::from(state.is_some()));
        // A lane's part of a state.
        let of = |span: &Range<usize>, lane: usize| {
            let each = span.len() / lanes as usize;
            p.state(&(span.start + lane * each..span.start + (lane + 1) * each))
        };

        // [x | z] = in_proj u
        let xz = p.take(rows, 2 * e, kind);
        p.linear(x, &self.in_proj, Act::None, xz, m, false)?;
        // c = silu(conv1d(x)); [dt | b | c] = x_proj c; dt = dt_proj dt
        let c = p.take(own as usize * rows, e, kind);
        let conv = causal_conv1d::Args {
            taps: p.at(self.taps),
            bias: p.at(self.conv_bias),
            slots: place.slots,
            y_dir: part,
            tail_stride: place.stride,
            x_stride: lanes * xz.stride,
            y_stride: lanes * e,
            kind,
            batch: p.batch(),
            len: p.len(),
            d: e,
            k: self.k,
            act: act(Act::Silu),
            reversed: 0b10,
            carried,
            ..causal_conv1d::Args::default()
        };
        for lane in 0..lanes as usize {
            let conv = causal_conv1d::Args {
                x: xz.skip_rows(lane).at,
                y: c.skip_rows(lane).at,
                tail: state.map_or(Ptr::NONE, |s| of(&s.conv, lane)),
                ..conv
            };
            p.try_launch(&conv, conv.launch(own))?;
        }
        let wide = r + 2 * n;
        let (dbc, dt) = (p.take(own as usize * rows, wide, Kind::F32), p.take(own as usize * rows, e, Kind::F32));
        for (i, (x_proj, dt_proj)) in self.projections.iter().enumerate() {
            let from = i * rows;
            p.linear(c.skip_rows(from), x_proj, Act::None, dbc.skip_rows(from), m, false)?;
            p.linear(dbc.skip_rows(from), dt_proj, Act::None, dt.skip_rows(from), m, false)?;
        }
        // y = scan(c) · silu(z), a part for each direction
        let y = p.take(self.directions as usize * rows, e, kind);
        let apart = |values: u64| if own > 1 { values } else { 0 };
        let scan = selective_scan::Args {
            dt_bias: p.at(self.dt_bias),
            a: p.at(self.a),
            skip: p.at(self.d),
            scale: place.rates,
            slots: place.slots,
            u_dir: apart(part),
            dt_dir: apart(part),
            bc_dir: apart(u64::from(m) * u64::from(wide)),
            y_dir: part,
            state_stride: place.stride,
            u_stride: lanes * e,
            dt_stride: lanes * e,
            bc_stride: lanes * wide,
            z_stride: lanes * xz.stride,
            y_stride: lanes * e,
            kind,
            batch: p.batch(),
            len: p.len(),
            d: e,
            n,
            per_group: e,
            orders: order::pack(&[order::FORWARD, order::REVERSE]),
            carried,
            softplus: 1,
            ..selective_scan::Args::default()
        };
        for lane in 0..lanes as usize {
            let scan = selective_scan::Args {
                u: c.skip_rows(lane).at,
                dt: dt.skip_rows(lane).at,
                b: dbc.skip_rows(lane).columns(r).at,
                c: dbc.skip_rows(lane).columns(r + n).at,
                z: xz.skip_rows(lane).columns(e).at,
                y: y.skip_rows(lane).at,
                state: state.map_or(Ptr::NONE, |s| of(&s.h, lane)),
                ..scan
            };
            p.scope(|| p.scan(scan, self.directions))?;
        }
        if self.directions > 1 {
            p.gate(y, self.directions, None, Act::None, y, m, e)?;
        }
        p.linear(y, &self.out_proj, Act::None, out, m, false)
    }
}
