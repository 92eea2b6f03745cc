//! S4 and S4D on a card.

use super::{Activation, Block, Encoder, S4};
use crate::card::{At, Dense, Network, NormAt, Pass, Rows, Weights};
use crate::error::Error;
use ssm_kernels::Act;
use ssm_kernels::cuda::{Kind, complex_scan};
use ssm_kernels::norm::{self, Norm};
use ssm_kernels::s4d::Sizes;
use std::ops::Range;

/// States of a feature and rank of the correction that there is code for.
const MOST: (usize, usize) = (128, 4);

/// A function that a card knows: of one value, or the gated unit.
#[derive(Clone, Copy)]
enum Function {
    Of(Act),
    Glu,
}

/// A layer's weights on a card.
pub(crate) struct BlockNet {
    input_linear: Option<Dense>,
    coefficients: At,
    sizes: Sizes,
    activation: Function,
    mult_act: Act,
    output_linear: Option<Dense>,
    final_act: Function,
}

impl Activation {
    fn on_card(self) -> Option<Function> {
        match self {
            Self::Of(act) => Some(Function::Of(act)),
            Self::Glu => Some(Function::Glu),
            Self::Tanh | Self::Elu => None,
        }
    }
}

impl Function {
    /// Applies it to `m` rows of `n` columns, which may be those of `out`.
    fn queue(self, p: &Pass<'_>, x: Rows, out: Rows, m: u32, n: u32) -> Result<(), Error> {
        match self {
            Self::Of(act) => p.gate(x, 1, None, act, out, m, n),
            Self::Glu => p.gate(x, 1, Some(x.columns(n / 2)), Act::Sigmoid, out, m, n / 2),
        }
    }
}

impl Block {
    /// Its weights for a card, at the trained rate; `None` where it is not written for one.
    pub(crate) fn on_card(&self, w: &mut Weights) -> Option<BlockNet> {
        let sizes = self.core.sizes();
        let swaps = self.swap_channels && sizes.channels > 1;
        let Activation::Of(mult_act) = self.mult_act else { return None };
        if swaps || sizes.states > MOST.0 || sizes.rank > MOST.1 {
            return None;
        }
        Some(BlockNet {
            activation: self.activation.on_card()?,
            final_act: self.final_act.on_card()?,
            mult_act,
            input_linear: self.input_linear.as_ref().map(|linear| w.dense(linear)),
            coefficients: w.put(self.core.trained().packed()),
            sizes,
            output_linear: self.output_linear.as_ref().map(|linear| w.dense(linear)),
        })
    }
}

impl BlockNet {
    /// As [`Block::forward`]: x of 32-bit numbers.
    pub(crate) fn queue(&self, p: &Pass<'_>, x: Rows, at: &Range<usize>, out: Rows) -> Result<(), Error> {
        p.scope(|| self.queue_in(p, x, at, out))
    }

    fn queue_in(&self, p: &Pass<'_>, x: Rows, at: &Range<usize>, out: Rows) -> Result<(), Error> {
        let (m, rows) = (p.rows(), p.rows() as usize);
        let (h, channels) = (self.sizes.features as u32, self.sizes.channels as u32);
        let width = h * channels;
        // u = input_linear x
        let u = match &self.input_linear {
            None => x,
            Some(w) => {
                let u = p.take(rows, h, Kind::F32);
                p.linear(x, w, Act::None, u, m, false)?;
                u
            }
        };
        // v = activation(C x + D u), channel after channel
        let v = p.take(rows, width, Kind::F32);
        let scan = complex_scan::S4d {
            coefficients: p.at(self.coefficients),
            u: u.at,
            y: v.at,
            state: p.state(at),
            slots: p.place().slots,
            state_stride: p.place().stride,
            u_stride: u.stride,
            y_stride: v.stride,
            batch: p.batch(),
            len: p.len(),
            features: h,
            n: self.sizes.states as u32,
            channels,
            rank: self.sizes.rank as u32,
            read: 1,
            ..complex_scan::S4d::default()
        };
        p.try_launch(&scan, scan.launch())?;
        self.activation.queue(p, v, v, m, width)?;
        let inner = if matches!(self.activation, Function::Glu) { width / 2 } else { width };
        if self.mult_act != Act::None {
            p.gate(v, 1, None, self.mult_act, v, m, inner)?;
        }
        // out = final_act(output_linear v)
        match (&self.output_linear, self.final_act) {
            (None, _) => p.gate(v, 1, None, Act::None, out, m, inner),
            (Some(w), Function::Of(act)) => p.linear(v, w, act, out, m, false),
            (Some(w), glu) => {
                let t = p.take(rows, w.n, Kind::F32);
                p.linear(v, w, Act::None, t, m, false)?;
                glu.queue(p, t, out, m, w.n)
            }
        }
    }
}

struct Layer {
    norm: Option<NormAt>,
    block: BlockNet,
    at: Range<usize>,
    out: u32,
}

/// A layer alone, or a network of residual layers, on a card.
struct S4Net {
    encoder: Option<Dense>,
    layers: Vec<Layer>,
    residual: bool,
    prenorm: bool,
    norm: Option<NormAt>,
    /// Of which only the sum before it is used.
    sum: NormAt,
    decoder: Option<Dense>,
    d: u32,
}

impl S4 {
    /// The network for a card; `None` where it is not written for one: with a mean over the steps so far, too.
    pub(super) fn on_card(&self, w: &mut Weights) -> Option<Box<dyn Network>> {
        if self.mean.is_some() {
            return None;
        }
        let layers = self.layers.iter().map(|layer| {
            Some(Layer {
                norm: layer.norm.as_ref().map(|norm| w.norm(norm)),
                block: layer.block.on_card(w)?,
                at: layer.at.clone(),
                out: layer.block.d_output() as u32,
            })
        });
        let layers = layers.collect::<Option<_>>()?;
        let encoder = match &self.encoder {
            Encoder::Linear(linear) => Some(w.dense(linear)),
            Encoder::None | Encoder::Embedding(_) => None,
        };
        Some(Box::new(S4Net {
            encoder,
            layers,
            residual: self.residual,
            prenorm: self.prenorm,
            norm: self.norm.as_ref().map(|norm| w.norm(norm)),
            sum: w.norm(&Norm::new(norm::Kind::Rms, vec![1.0; self.d_model], None, 1e-5)),
            decoder: self.decoder.as_ref().map(|decoder| w.dense(decoder)),
            d: self.d_model as u32,
        }))
    }
}

impl Network for S4Net {
    fn input_len(&self) -> usize {
        self.encoder.map_or(self.d, |encoder| encoder.k) as usize
    }

    fn trained_rate(&self) -> bool {
        true
    }

    fn queue(&self, p: &Pass<'_>) -> Result<(), Error> {
        let (m, d, rows) = (p.rows(), self.d, p.rows() as usize);
        let widest = self.layers.iter().map(|l| l.out).fold(d, u32::max);
        let [mut x, mut z, y] = [d, d, widest].map(|d| p.take(rows, d, Kind::F32));
        // x = encoder(input)
        match &self.encoder {
            Some(encoder) => p.linear(p.input(encoder.k), encoder, Act::None, x, m, false)?,
            None => p.gate(p.input(d), 1, None, Act::None, x, m, d)?,
        }
        // The stream is x, plus what the layer before left in y.
        let mut pending = None;
        for layer in &self.layers {
            let of = Rows { stride: layer.out, ..y };
            // x = x + layer(norm(x)), or norm(x + layer(x)); a layer alone: its result
            let input = match &layer.norm {
                Some(norm) if self.prenorm => {
                    p.add_norm(pending.take(), x, norm, z, m, d)?;
                    z
                }
                _ => {
                    if let Some(y) = pending.take() {
                        p.add_norm(Some(y), x, &self.sum, y, m, d)?;
                    }
                    x
                }
            };
            layer.block.queue(p, input, &layer.at, of)?;
            match &layer.norm {
                _ if !self.residual => x = of,
                Some(norm) if !self.prenorm => {
                    p.add_norm(Some(of), x, norm, z, m, d)?;
                    (x, z) = (z, x);
                }
                _ => pending = Some(of),
            }
        }
        if let Some(norm) = &self.norm {
            p.add_norm(pending, x, norm, z, m, d)?;
            x = z;
        } else if let Some(y) = pending {
            p.add_norm(Some(y), x, &self.sum, y, m, d)?;
        }
        match &self.decoder {
            Some(decoder) => p.linear(x, decoder, Act::None, p.output(decoder.n), m, false),
            None => p.gate(x, 1, None, Act::None, p.output(x.stride), m, x.stride),
        }
    }
}
