//! The complex mask by bands on a card. The transforms are products with waves as weights.

use super::{BandMask, Body, COMPRESSION, FEATURES, FLOOR, Head};
use crate::card::{At, Dense, Network, NormAt, Pass, Rows, Weights};
use crate::cores::Core;
use crate::error::Error;
use crate::mixer::{MixerNet, MixerState};
use crate::stack::StackNet;
use ssm_kernels::cuda::{Kind, bands, linear};
use ssm_kernels::linear::Linear;
use ssm_kernels::{Act, CpuLevel};
use std::ops::Range;

/// The same weights for every band.
struct AlongNet {
    norm: NormAt,
    mixer: MixerNet,
    state: MixerState,
}

/// The path over all bands.
struct AcrossNet {
    norm: NormAt,
    in_proj: Dense,
    norm_full: NormAt,
    mixer: MixerNet,
    out_proj: Dense,
    state: MixerState,
}

enum BodyNet {
    Bands(Vec<(AlongNet, AcrossNet)>),
    Whole { in_proj: Dense, stack: StackNet, norm_f: NormAt, out_proj: Dense },
}

enum HeadNet {
    Mask { norm: NormAt, decode: Vec<Dense>, inverse: Dense },
    Speech(Dense),
    Features,
}

/// A band mask's weights on a card.
struct BandNet {
    forward: Dense,
    /// Columns of features and masks, as bits of 32-bit numbers.
    place: At,
    mean: At,
    scale: At,
    encode: Vec<Dense>,
    body: BodyNet,
    head: HeadNet,
    tail: Range<usize>,
    overlap: Range<usize>,
    bins: u32,
    hop: u32,
    d: u32,
    u: u32,
}

impl BandMask {
    /// The network for a card; `None` where a part is not written for one.
    pub(super) fn on_card(&self, w: &mut Weights) -> Option<Box<dyn Network>> {
        let (bins, window) = (self.bins(), self.stft.len());
        // Of a band k with its bins from b on: features from 3 b on, part by part; masks from 2 b on.
        let mut place = vec![0; 5 * bins];
        let mut from = 0;
        for band in &self.encode {
            let width = band.k() / FEATURES;
            for i in 0..width {
                (0..FEATURES).for_each(|j| place[j * bins + from + i] = FEATURES * from + j * width + i);
                (0..2).for_each(|j| place[(FEATURES + j) * bins + from + i] = 2 * from + j * width + i);
            }
            from += width;
        }
        let place: Vec<f32> = place.iter().map(|p| f32::from_bits(*p as u32)).collect();
        let pack = |n: usize, k: usize, weight: &[f32]| Linear::pack(CpuLevel::Scalar, weight, n, k, None);
        let forward = pack(2 * bins, window, &self.stft.forward_weights());
        let head = match &self.head {
            Head::Mask { norm, decode } => HeadNet::Mask {
                norm: w.norm(norm),
                decode: decode.iter().map(|linear| w.dense(linear)).collect(),
                inverse: w.dense(&pack(self.stft.out_len(), 2 * bins, &self.stft.inverse_weights())),
            },
            Head::Speech(vad) => HeadNet::Speech(w.dense(vad)),
            Head::Features => HeadNet::Features,
        };
        let body = match &self.body {
            Body::Bands(blocks) => {
                let blocks = blocks.iter().zip(&self.places.blocks).map(|((along, across), (band, full))| {
                    let along =
                        AlongNet { norm: w.norm(&along.norm), mixer: along.mixer.on_card(w), state: band.clone() };
                    let across = AcrossNet {
                        norm: w.norm(&across.norm),
                        in_proj: w.dense(&across.in_proj),
                        norm_full: w.norm(&across.norm_full),
                        mixer: across.mixer.on_card(w),
                        out_proj: w.dense(&across.out_proj),
                        state: full.clone(),
                    };
                    (along, across)
                });
                BodyNet::Bands(blocks.collect())
            }
            Body::Whole(whole) => {
                let Core::Stack { stack, norm_f } = &whole.core else { return None };
                BodyNet::Whole {
                    in_proj: w.dense(&whole.in_proj),
                    stack: stack.on_card(w)?,
                    norm_f: w.norm(norm_f),
                    out_proj: w.dense(&whole.out_proj),
                }
            }
        };
        Some(Box::new(BandNet {
            forward: w.dense(&forward),
            place: w.put(&place),
            mean: w.put(&self.mean),
            scale: w.put(&self.scale),
            encode: self.encode.iter().map(|linear| w.dense(linear)).collect(),
            body,
            head,
            tail: self.places.tail.clone(),
            overlap: self.places.overlap.clone(),
            bins: bins as u32,
            hop: self.hop as u32,
            d: self.d as u32,
            u: self.u as u32,
        }))
    }
}

impl Network for BandNet {
    fn input_len(&self) -> usize {
        self.hop as usize
    }

    fn trained_rate(&self) -> bool {
        match &self.body {
            BodyNet::Bands(_) => false,
            BodyNet::Whole { stack, .. } => stack.trained_rate(),
        }
    }

    fn queue(&self, p: &Pass<'_>) -> Result<(), Error> {
        let (f, d, u, hop, m) = (self.bins, self.d, self.u, self.hop, p.rows());
        let (lanes, rows, window) = (self.encode.len() as u32, m as usize, self.forward.k);
        let (wide, tokens, kept) = (lanes * d, m * lanes, window - hop);
        let take = |rows: usize, d: u32| p.take(rows, d, Kind::F32);
        // X = STFT(x): frames overlap in the signal
        let signal = take(p.batch() as usize, kept + p.len() * hop);
        let (spectra, features) = (take(rows, 2 * f), take(rows, FEATURES as u32 * f));
        let args = bands::Args {
            x: p.input(hop).at,
            signal: signal.at,
            spectra: spectra.at,
            place: p.at(self.place),
            mean: p.at(self.mean),
            scale: p.at(self.scale),
            features: features.at,
            tail: p.state(&self.tail),
            slots: p.place().slots,
            state_stride: p.place().stride,
            batch: p.batch(),
            len: p.len(),
            hop,
            kept,
            bins: f,
            floor: FLOOR,
            compression: COMPRESSION,
            ..bands::Args::default()
        };
        p.try_launch(&args, args.signal())?;
        let frames = Rows { stride: hop, ..signal };
        let product = linear::Args {
            x_batch: u64::from(signal.stride),
            y_batch: u64::from(p.len()) * u64::from(spectra.stride),
            batch_rows: p.len().max(1),
            ..p.product(frames, &self.forward, spectra, m)
        };
        p.try_launch(&product, product.launch(p.processors()))?;
        p.try_launch(&args, args.features())?;
        // x_k = encode_k f_k: band k is columns k D … of a frame's row
        let (x, hidden, normed) = (take(rows, wide), take(rows, wide), take(rows, wide));
        let (path, change) = (take(rows, u), take(rows, u));
        let mut at = 0;
        for (k, w) in self.encode.iter().enumerate() {
            p.linear(features.columns(at), w, Act::None, x.columns(k as u32 * d), m, false)?;
            at += w.k;
        }
        let each = |rows: Rows| Rows { stride: d, ..rows };
        match &self.body {
            BodyNet::Bands(blocks) => {
                for (i, (along, across)) in blocks.iter().enumerate() {
                    // along time: x_k += mixer(norm(x_k))
                    let before = (i > 0).then_some(each(hidden));
                    p.add_norm(before, each(x), &along.norm, each(normed), tokens, d)?;
                    along.mixer.queue_lanes(p, each(normed), lanes, Some(&along.state), each(hidden))?;
                    // across: u = in_proj norm(x); u += mixer(norm(u)); x += out_proj silu(u)
                    p.add_norm(Some(each(hidden)), each(x), &across.norm, each(normed), tokens, d)?;
                    p.linear(normed, &across.in_proj, Act::None, path, m, false)?;
                    p.scope(|| {
                        let narrow = p.take(rows, u, across.mixer.kind());
                        p.add_norm(None, path, &across.norm_full, narrow, m, u)?;
                        across.mixer.queue(p, narrow, Some(&across.state), change)
                    })?;
                    p.scope(|| {
                        // Of which only the sum in front of it is used.
                        let narrow = p.take(rows, u, Kind::F32);
                        p.add_norm(Some(change), path, &across.norm_full, narrow, m, u)?;
                        p.gate(path, 1, None, Act::Silu, narrow, m, u)?;
                        p.linear(narrow, &across.out_proj, Act::None, hidden, m, false)
                    })?;
                }
            }
            BodyNet::Whole { in_proj, stack, norm_f, out_proj } => {
                // u = core(in_proj x); x += out_proj silu(u)
                let narrow = take(rows, u);
                p.linear(x, in_proj, Act::None, narrow, m, false)?;
                stack.queue(p, narrow, change)?;
                p.add_norm((!stack.is_empty()).then_some(change), narrow, norm_f, path, m, u)?;
                p.gate(path, 1, None, Act::Silu, narrow, m, u)?;
                p.linear(narrow, out_proj, Act::None, hidden, m, false)?;
            }
        }
        let (norm, decode, inverse) = match &self.head {
            HeadNet::Mask { norm, decode, inverse } => (norm, decode, inverse),
            HeadNet::Speech(vad) => return p.linear(path, vad, Act::None, p.output(1), m, false),
            HeadNet::Features => return p.gate(path, 1, None, Act::None, p.output(u), m, u),
        };
        // M_k = decode_k norm(x_k); y = ISTFT(M · X)
        p.add_norm(Some(each(hidden)), each(x), norm, each(normed), tokens, d)?;
        let (masks, shares) = (take(rows, 2 * f), take(rows, 2 * hop));
        let mut at = 0;
        for (k, w) in decode.iter().enumerate() {
            p.linear(normed.columns(k as u32 * d), w, Act::None, masks.columns(at), m, false)?;
            at += w.n;
        }
        let args = bands::Args {
            masks: masks.at,
            shares: shares.at,
            y: p.output(hop).at,
            overlap: p.state(&self.overlap),
            ..args
        };
        p.try_launch(&args, args.masks())?;
        p.linear(spectra, inverse, Act::None, shares, m, false)?;
        p.try_launch(&args, args.overlap())
    }
}
