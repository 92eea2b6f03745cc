//! Encoders on a card.

use super::{CHANNELS, Conv, Encoder};
use crate::card::{At, ConvNet, Dense, Pass, Rows, Weights};
use crate::error::Error;
use crate::vim::VimNet;
use crate::vmamba::VMambaNet;
use ssm_kernels::Act;
use ssm_kernels::cuda::Kind;
use ssm_kernels::linear::Linear;

/// Weights of the map behind the convolutions, at most: 64 MiB.
const FOLDED: usize = 1 << 24;

/// An encoder's weights on a card.
pub(in crate::composite) enum EncoderNet {
    None(u32),
    Vim(VimNet),
    Vmamba(VMambaNet),
    Conv(ConvEncoderNet),
}

/// Convolutions, then one linear map of all that they leave: means over cells are linear.
pub(in crate::composite) struct ConvEncoderNet {
    convs: Vec<ConvNet>,
    size: (u32, u32),
    proj: Dense, // (F, height · width · C)
}

impl Encoder {
    /// The encoder for a card; `None` where it is not written for one.
    pub(in crate::composite) fn on_card(&self, w: &mut Weights) -> Option<EncoderNet> {
        Some(match self {
            Self::None(dim) => EncoderNet::None(*dim as u32),
            Self::Vim(vim) => EncoderNet::Vim(vim.on_card(w)),
            Self::Vmamba(vmamba) => EncoderNet::Vmamba(vmamba.on_card(w)?),
            Self::Conv(conv) => EncoderNet::Conv(conv.on_card(w)?),
            Self::Mel(_) => return None,
        })
    }
}

impl Conv {
    fn on_card(&self, w: &mut Weights) -> Option<ConvEncoderNet> {
        let channels = self.convs.last().map_or(CHANNELS, |c| c.out_channels());
        let size = self.sizes[self.convs.len()];
        let k = size.0 * size.1 * channels;
        if k == 0 || k * self.proj.n() > FOLDED {
            return None;
        }
        // What each pixel of each channel adds to the pooled values, multiplied by the map behind them.
        let mut row = vec![0.0; self.proj.k()];
        let mut folded = Vec::with_capacity(self.proj.n() * k);
        let mut pooled = vec![0.0; self.proj.k()];
        let mut pixel = vec![0.0; k];
        let mut shares = Vec::with_capacity(size.0 * size.1);
        for at in 0..size.0 * size.1 {
            pixel.fill(0.0);
            pixel[at * channels] = 1.0;
            self.pool(&pixel, channels, &mut pooled);
            // The same in all channels: the mean's share, and that of each cell.
            let cells = (pooled.len() - channels) / channels;
            shares.push([&pooled[..1], &pooled[channels..channels + cells]].concat());
        }
        for f in 0..self.proj.n() {
            self.proj.row(f, &mut row);
            let (mean, cells) = row.split_at(channels);
            let per_channel = cells.len() / channels;
            for share in &shares {
                folded.extend((0..channels).map(|c| {
                    let own = &cells[c * per_channel..][..per_channel];
                    share[0] * mean[c] + share[1..].iter().zip(own).map(|(s, w)| s * w).sum::<f32>()
                }));
            }
        }
        let proj = Linear::pack(ssm_kernels::CpuLevel::Scalar, &folded, self.proj.n(), k, Some(self.proj.bias()));
        let convs = self.convs.iter().enumerate().map(|(i, conv)| match i {
            0 => ConvNet::planes(w, conv),
            _ => ConvNet::pixels(w, conv),
        });
        let convs = convs.collect();
        let first = self.sizes[0];
        Some(ConvEncoderNet { convs, size: (first.0 as u32, first.1 as u32), proj: w.dense(&proj) })
    }
}

impl EncoderNet {
    /// Whether a pass has one step.
    pub(in crate::composite) fn single_steps(&self) -> bool {
        matches!(self, Self::Vim(_) | Self::Vmamba(_))
    }

    /// The vectors of all steps, rows of `out`.
    pub(in crate::composite) fn queue(&self, p: &Pass<'_>, out: Rows) -> Result<(), Error> {
        let planes = p.input(0);
        match self {
            Self::None(dim) => p.gate(p.input(*dim), 1, None, Act::None, out, p.rows(), *dim),
            Self::Vim(vim) => p.scope(|| vim.frames(p, planes, out)),
            Self::Vmamba(vmamba) => p.scope(|| vmamba.frames(p, planes, out)),
            Self::Conv(conv) => p.scope(|| conv.queue(p, planes, out)),
        }
    }
}

impl ConvEncoderNet {
    fn queue(&self, p: &Pass<'_>, planes: Rows, out: Rows) -> Result<(), Error> {
        let images = p.rows();
        let (mut x, mut size) = (planes, self.size);
        for (i, conv) in self.convs.iter().enumerate() {
            let to = conv.out_size(size);
            let m = images * to.0 * to.1;
            let y = p.take(m as usize, conv.out(), Kind::F32);
            conv.queue(p, x, images, size, if i > 0 { Act::Silu } else { Act::None }, y)?;
            if i == 0 {
                p.gate(y, 1, None, Act::Silu, y, m, conv.out())?;
            }
            (x, size) = (y, to);
        }
        p.linear(Rows { stride: self.proj.k, ..x }, &self.proj, Act::None, out, images, false)
    }
}

/// The vector of the step before, as a convolution of two taps over time.
pub(in crate::composite) fn taps_of_before(w: &mut Weights, f: usize) -> (At, At) {
    (w.put(&[vec![1.0; f], vec![0.0; f]].concat()), w.put(&vec![0.0; f]))
}
