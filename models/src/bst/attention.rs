//! The steps of a stream through the attentions of a layer, one by one.

use super::config::{Config, Context};
use super::layers::{Layer, Layers, Places};
use crate::model::Row;
use ssm_kernels::attention::{Query, attend, remember};
use ssm_kernels::norm::norm;
use ssm_kernels::{Cx, Mat, MatMut};
use std::ops::Range;

/// Where a stream stands; the same for all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// Steps of the current window, 0 to W.
    pub(super) step: usize,
    /// Keys that are remembered.
    pub(super) filled: usize,
    /// Whether the first window's context is in place.
    pub(super) started: bool,
    /// Outputs in the tail.
    pub(super) tail: usize,
}

impl Position {
    pub(super) fn read(state: &[f32]) -> Self {
        Self { step: state[0] as usize, filled: state[1] as usize, started: state[2] != 0.0, tail: state[3] as usize }
    }

    pub(super) fn write(self, state: &mut [f32]) {
        let values = [self.step as f32, self.filled as f32, f32::from(u8::from(self.started)), self.tail as f32];
        state.copy_from_slice(&values);
    }

    /// The position within the limits that a state of any origin has to keep.
    pub(super) fn within(mut self, c: &Config) -> Self {
        self.step = self.step.min(c.window);
        self.filled = self.filled.min(c.window).max(self.step);
        self.tail = self.tail.min(c.num_states);
        self
    }
}

/// What a layer has computed for all steps of a row before the steps go one by one.
pub(super) struct Ready<'a> {
    /// The layer's input, (len, D).
    pub(super) x: Mat<'a>,
    /// q, k, cross q at unit length, (len, 2 or 3 · Hh · hd).
    pub(super) unit: Mat<'a>,
    /// Values, (len, Hh · hd).
    pub(super) v: Mat<'a>,
    /// Outputs of the state space model, (len, channels · D); MF reads none here.
    pub(super) outputs: Mat<'a>,
    /// Keys and values of the contexts (aligned).
    pub(super) ctx_k: Mat<'a>,
    pub(super) ctx_v: Mat<'a>,
}

/// Working memory of the steps of a row.
pub(super) struct Room<'a> {
    pub(super) outputs: &'a mut [f32],
    pub(super) contexts: &'a mut [f32],
    pub(super) kv: &'a mut [f32],
    pub(super) unit_k: &'a mut [f32],
    pub(super) scores: &'a mut [f32],
}

impl Layers {
    /// The steps of one row through one layer's attentions: `y` gets the heads of all of them, (len, Hh · hd or twice
    /// that). Returns where the stream stands then.
    pub(super) fn attention(
        &self,
        cx: &Cx,
        layer: &Layer,
        at: &Places,
        row: &mut Row,
        ready: &Ready<'_>,
        room: &mut Room<'_>,
        mut y: MatMut<'_>,
    ) -> Position {
        let (c, len) = (&self.config, ready.x.rows());
        let (width, own, cross) = (c.width(), c.own(), c.cross());
        let mut pos = Position::read(&row.state.data[self.window.clone()]).within(c);
        let tail_before = pos.tail;
        let spans = [&at.k, &at.v, &at.ssm, &at.ctx_k, &at.ctx_v, &at.tail].map(Range::clone);
        let Ok([k, v, ssm, ctx_k, ctx_v, tail]) = row.state.data.get_disjoint_mut(spans) else { return pos };
        if let Some(b) = &layer.block_state
            && !pos.started
            && c.context == Context::Prev
        {
            ctx_k.copy_from_slice(&b.init_k);
            ctx_v.copy_from_slice(&b.init_v);
        }
        pos.started = true;
        // Steps that the state space model has taken (MF).
        let mut taken = 0;
        for t in 0..len {
            if pos.step == c.window {
                pos.step = 0;
            }
            let (slot, unit, heads) = (pos.step, ready.unit.row(t), y.row(t));
            pos.step += 1;
            pos.filled = if c.xl_cache { (pos.filled + 1).min(c.window) } else { pos.step };
            remember(own, slot, &unit[width..2 * width], ready.v.row(t), k, v);
            let query = Query {
                sizes: own,
                q: &unit[..width],
                k,
                v,
                filled: pos.filled,
                scale: &layer.attn_scale,
                bias: Some((&layer.bias, slot)),
            };
            attend(cx, &query, room.scores, &mut heads[..width]);
            let Some(b) = &layer.block_state else { continue };
            let aligned = c.context == Context::Aligned;
            if aligned {
                remember(cross, slot, ready.ctx_k.row(t), ready.ctx_v.row(t), ctx_k, ctx_v);
            }
            let query = Query {
                sizes: cross,
                q: &unit[2 * width..],
                k: ctx_k,
                v: ctx_v,
                filled: if aligned { pos.step } else { cross.slots },
                scale: &b.cross_scale,
                bias: None,
            };
            attend(cx, &query, room.scores, &mut heads[width..]);
            if aligned || pos.step < c.window {
                continue;
            }
            // The window is full: its outputs are the context of the next one.
            let (n, columns) = (c.num_states, self.contexts_len() / c.num_states);
            if c.every_step() {
                for (i, to) in room.outputs[..n * columns].chunks_exact_mut(columns).enumerate() {
                    let from = match (t + 1 + i).checked_sub(n) {
                        Some(step) => ready.outputs.row(step),
                        None => &tail[(tail_before + t + 1 + i).saturating_sub(n) * columns..][..columns],
                    };
                    to.copy_from_slice(from);
                }
            } else {
                // MF: all filters, of the last step alone.
                let before = ready.x.sub_rows(taken..t);
                b.ssm.run(cx, before, ssm, row.rate, false, MatMut::new(&mut [], t - taken, 0));
                let out = MatMut::new(room.outputs, 1, n * columns);
                b.ssm.run(cx, ready.x.sub_rows(t..t + 1), ssm, row.rate, true, out);
                taken = t + 1;
            }
            // c = rms(s) + ctx_pos, every channel on its own
            let vectors = n * columns / c.d_model;
            let raw = Mat::new(room.outputs, vectors, c.d_model);
            norm(cx, &b.cross_norm, raw, MatMut::new(room.contexts, vectors, c.d_model));
            for (ctx, pos) in room.contexts.chunks_exact_mut(columns).zip(b.ctx_pos.chunks_exact(c.d_model)) {
                for ctx in ctx.chunks_exact_mut(c.d_model) {
                    ctx.iter_mut().zip(pos).for_each(|(c, p)| *c += p);
                }
            }
            let ctx = Mat::new(room.contexts, n, columns);
            b.keys_values(cx, c, &self.unit, ctx, room.kv, room.unit_k);
            for slot in 0..n {
                let (key, value) = (&room.unit_k[slot * width..][..width], &room.kv[(2 * slot + 1) * width..][..width]);
                remember(cross, slot, key, value, ctx_k, ctx_v);
            }
        }
        if let Some(b) = &layer.block_state {
            if !c.every_step() {
                let rest = ready.x.sub_rows(taken..len);
                b.ssm.run(cx, rest, ssm, row.rate, false, MatMut::new(&mut [], len - taken, 0));
            } else if c.context == Context::Prev {
                let (n, columns) = (c.num_states, c.channels() * c.d_model);
                let kept = pos.tail.min(n.saturating_sub(len));
                tail.copy_within((pos.tail - kept) * columns..pos.tail * columns, 0);
                let fresh = len.min(n);
                for i in 0..fresh {
                    tail[(kept + i) * columns..][..columns].copy_from_slice(ready.outputs.row(len - fresh + i));
                }
            }
        }
        pos.tail = (pos.tail + len).min(c.num_states);
        pos
    }
}
