//! Composites on a card.

use super::Composite;
use super::encoder::{EncoderNet, taps_of_before};
use crate::card::{At, Dense, Network, NormAt, Pass, Weights};
use crate::cores::Core;
use crate::error::Error;
use crate::stack::StackNet;
use ssm_kernels::Act;
use ssm_kernels::cuda::{Kind, act, causal_conv1d, similarity};
use std::ops::Range;

/// A composite's weights on a card.
struct CompositeNet {
    encoder: EncoderNet,
    /// Place of the vector of the step before, and the taps that fetch it.
    previous: Option<(Range<usize>, At, At)>,
    /// Place of the vectors of the last steps.
    last: Option<Range<usize>>,
    in_proj: Option<Dense>,
    stack: StackNet,
    norm_f: NormAt,
    head: Option<Dense>,
    input: usize,
    f: u32,
    joined: u32,
    d: u32,
}

impl Composite {
    /// The network for a card; `None` where a part is not written for one.
    pub(super) fn on_card(&self, w: &mut Weights) -> Option<Box<dyn Network>> {
        let Core::Stack { stack, norm_f } = &self.core else { return None };
        let f = self.encoder.width();
        let encoder = self.encoder.on_card(w)?;
        let previous = self.previous.clone().map(|at| {
            let (taps, bias) = taps_of_before(w, f);
            (at, taps, bias)
        });
        Some(Box::new(CompositeNet {
            encoder,
            previous,
            last: self.last.clone(),
            in_proj: self.in_proj.as_ref().map(|proj| w.dense(proj)),
            stack: stack.on_card(w)?,
            norm_f: w.norm(norm_f),
            head: self.head.as_ref().map(|head| w.dense(head)),
            input: self.info.input.len(),
            f: f as u32,
            joined: self.joined() as u32,
            d: self.d as u32,
        }))
    }
}

impl Network for CompositeNet {
    fn input_len(&self) -> usize {
        self.input
    }

    fn single_steps(&self) -> bool {
        self.encoder.single_steps()
    }

    fn trained_rate(&self) -> bool {
        self.stack.trained_rate()
    }

    fn queue(&self, p: &Pass<'_>) -> Result<(), Error> {
        let (m, d, f) = (p.rows(), self.d, self.f);
        // v = encoder(input); x = in_proj [v | v before | cosines with those before]
        let joined = p.take(m as usize, self.joined, Kind::F32);
        self.encoder.queue(p, joined)?;
        if let Some((at, taps, bias)) = &self.previous {
            let before = causal_conv1d::Args {
                x: joined.at,
                taps: p.at(*taps),
                bias: p.at(*bias),
                y: joined.columns(f).at,
                tail: p.state(at),
                slots: p.place().slots,
                tail_stride: p.place().stride,
                x_stride: joined.stride,
                y_stride: joined.stride,
                batch: p.batch(),
                len: p.len(),
                d: f,
                k: 2,
                act: act(Act::None),
                carried: 1,
                ..causal_conv1d::Args::default()
            };
            p.try_launch(&before, before.launch(1))?;
        }
        if let Some(at) = &self.last {
            let lags = (at.len() / f as usize) as u32;
            let like = similarity::Args {
                x: joined.at,
                y: joined.columns(self.joined - lags).at,
                state: p.state(at),
                slots: p.place().slots,
                state_stride: p.place().stride,
                x_stride: joined.stride,
                y_stride: joined.stride,
                batch: p.batch(),
                len: p.len(),
                d: f,
                lags,
            };
            p.try_launch(&like, like.launch())?;
        }
        let residual = match &self.in_proj {
            None => joined,
            Some(proj) => {
                let x = p.take(m as usize, d, Kind::F32);
                p.linear(joined, proj, Act::None, x, m, false)?;
                x
            }
        };
        // y = norm_f(core(x)); scores = head y
        let hidden = p.take(m as usize, d, Kind::F32);
        self.stack.queue(p, residual, hidden)?;
        let normed = self.head.map_or(p.output(d), |_| p.take(m as usize, d, Kind::F32));
        p.add_norm((!self.stack.is_empty()).then_some(hidden), residual, &self.norm_f, normed, m, d)?;
        match &self.head {
            Some(head) => p.linear(normed, head, Act::None, p.output(head.n), m, false),
            None => Ok(()),
        }
    }
}
