//! What makes a vector of a step's input: a vision network's features, convolutions, log-mel frames, or nothing.

mod card;

pub(super) use card::{EncoderNet, taps_of_before};

use super::config::{self, Input};
use crate::checkpoint::{Checkpoint, Reader};
use crate::config::bad;
use crate::error::Error;
use crate::families::{Options, Output};
use crate::frontend::audio::AudioFrontend;
use crate::mixer::shift_tail;
use crate::model::{Info, Model, Row, Signal, carve, line};
use crate::state::{State, StateLayout};
use crate::trunk::no_tap;
use crate::vim::Vim;
use crate::vmamba::VMamba;
use serde_json::{Value, json};
use ssm_kernels::conv2d::{Conv2d, conv2d};
use ssm_kernels::fbank::{Fbank, Work};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};
use std::ops::Range;

/// Colour planes of a frame: R, G, B.
pub(super) const CHANNELS: usize = 3;

/// An encoder: F values a step.
pub(super) enum Encoder {
    /// The vector that comes in.
    None(usize),
    Vim(Box<Vim>),
    Vmamba(Box<VMamba>),
    Conv(Conv),
    Mel(Mel),
}

impl Encoder {
    /// Reads `encoder.…`; what it remembers is added to `layout`, which is empty so far.
    pub(super) fn load(
        file: &Checkpoint,
        w: &Reader<'_>,
        config: &config::Config,
        options: &Options,
        layout: &mut StateLayout,
    ) -> Result<Self, Error> {
        let path = file.path.display().to_string();
        match (&config.encoder, config.input) {
            (config::Encoder::Vim { carry, model }, Input::Image { height, width }) => {
                w.leave();
                let options = trunk(options, *carry, model, (height, width));
                let net = Vim::load(&file.part("encoder."), &options)?;
                nest(&path, net.info(), net.layout(), layout)?;
                Ok(Self::Vim(Box::new(net)))
            }
            (config::Encoder::Vmamba { carry, model }, Input::Image { height, width }) => {
                w.leave();
                let options = trunk(options, *carry, model, (height, width));
                let net = VMamba::load(&file.part("encoder."), &options)?;
                if !net.is_pooled() {
                    return Err(bad(&path, "encoder.classifier.norm", "the norm before the pooling", "none"));
                }
                nest(&path, net.info(), net.layout(), layout)?;
                Ok(Self::Vmamba(Box::new(net)))
            }
            (config::Encoder::Conv { pool }, Input::Image { height, width }) => {
                Ok(Self::Conv(Conv::load(w, options.level, (height, width), *pool)?))
            }
            (config::Encoder::Mel { front }, Input::Samples { hop, .. }) => {
                Ok(Self::Mel(Mel::load(w, options.level, front, hop, &path, layout)?))
            }
            (config::Encoder::None, Input::Vector { dim }) => Ok(Self::None(dim)),
            (encoder, input) => {
                Err(bad(&path, "encoder.kind", "an encoder of the input", format!("{encoder:?}, {input:?}")))
            }
        }
    }

    /// Values of a step, F.
    pub(super) fn width(&self) -> usize {
        match self {
            Self::None(dim) => *dim,
            Self::Vim(e) => e.info().output.len(),
            Self::Vmamba(e) => e.info().output.len(),
            Self::Conv(e) => e.proj.n(),
            Self::Mel(e) => e.proj.n(),
        }
    }

    /// Sizes in a few words.
    pub(super) fn sizes(&self) -> String {
        match self {
            Self::None(dim) => format!("vectors of {dim}"),
            Self::Vim(e) => format!("vim {}", e.info().sizes),
            Self::Vmamba(e) => format!("vmamba {}", e.info().sizes),
            Self::Conv(e) => {
                let channels: Vec<String> = e.convs.iter().map(|c| c.out_channels().to_string()).collect();
                format!("convolutions {}, pool 1+{}x{}", channels.join("-"), e.pool.0, e.pool.1)
            }
            Self::Mel(e) => format!("{} frames of {} bins", e.frames, e.front.bins()),
        }
    }

    /// The front end whose working memory [`Encoder::forward`] wants.
    pub(super) fn fbank(&self) -> Option<&Fbank> {
        if let Self::Mel(e) = self { Some(e.front.fbank()) } else { None }
    }

    /// Working memory of a pass.
    pub(super) fn scratch_len(&self, rows: usize, len: usize, threads: usize) -> usize {
        match self {
            Self::None(_) => 0,
            Self::Vim(e) => e.scratch_len(rows),
            Self::Vmamba(e) => e.scratch_len(rows, threads),
            Self::Conv(e) => e.scratch_len(rows * len, threads),
            Self::Mel(e) => e.scratch_len(rows * len),
        }
    }

    /// The vectors of `len` steps of every row, (rows · len, F).
    pub(super) fn forward(
        &self,
        cx: &Cx,
        rows: &mut [Row],
        len: usize,
        work: Option<&mut Work>,
        scratch: &mut [f32],
        out: &mut [f32],
    ) {
        match (self, work) {
            (Self::None(dim), _) => {
                for (row, out) in rows.iter().zip(out.chunks_exact_mut(len * dim)) {
                    out.copy_from_slice(&row.x[..len * dim]);
                }
            }
            (Self::Vim(e), _) => {
                let (n, f) = (rows.len(), e.info().output.len());
                for frame in 0..len {
                    let out = MatMut::strided(&mut out[frame * f..], n, f, len * f);
                    e.frame(cx, rows, frame, scratch, Some(out), no_tap);
                }
            }
            (Self::Vmamba(e), _) => {
                let (n, f) = (rows.len(), e.info().output.len());
                for frame in 0..len {
                    let out = MatMut::strided(&mut out[frame * f..], n, f, len * f);
                    e.features(cx, rows, frame, scratch, out);
                }
            }
            (Self::Conv(e), _) => e.forward(cx, rows, len, scratch, out),
            (Self::Mel(e), Some(work)) => e.forward(cx, rows, len, work, scratch, out),
            (Self::Mel(_), None) => out.fill(0.0),
        }
    }

    /// `periods` steps without input: of samples, silence; carried frames by their network's rule.
    pub(super) fn gap(&self, state: &mut State, periods: f64) {
        match self {
            Self::None(_) | Self::Conv(_) => {}
            Self::Vim(e) => e.gap(state, periods),
            Self::Vmamba(e) => e.gap(state, periods),
            Self::Mel(e) => e.gap(&mut state.data, periods),
        }
    }
}

/// Options of a vision network inside a composite.
fn trunk(options: &Options, carry: bool, model: &Value, image: (usize, usize)) -> Options {
    Options {
        image: Some(image),
        carry: carry || options.carry,
        output: Output::Features,
        config: Some(json!({ "model": model })),
        ..options.clone()
    }
}

/// Puts the state of a vision network at the front of `layout`, so that its places stay what they are, and checks that it
/// takes colours.
fn nest(path: &str, info: &Info, inner: &StateLayout, layout: &mut StateLayout) -> Result<(), Error> {
    if !matches!(info.input, Signal::Image { channels: CHANNELS, .. }) {
        return Err(bad(path, "encoder", format!("a network of {CHANNELS} colour planes"), info.input.to_string()));
    }
    for span in inner.spans() {
        layout.add(format!("encoder.{}", span.name), &span.shape);
    }
    Ok(())
}

/// Convolutions 3 x 3 of stride 2 with SiLU, means over the frame and over a grid's cells, a linear map.
pub(super) struct Conv {
    convs: Vec<Conv2d>,
    /// Height and width before each convolution, and behind the last.
    sizes: Vec<(usize, usize)>,
    pool: (usize, usize),
    proj: Linear, // (F, C · (1 + cells)), columns (mean of each channel, then channel by channel its cells)
}

impl Conv {
    fn load(w: &Reader<'_>, level: CpuLevel, size: (usize, usize), pool: (usize, usize)) -> Result<Self, Error> {
        let (mut convs, mut sizes, mut channels) = (Vec::new(), vec![size], CHANNELS);
        let name = |i: usize, what: &str| format!("convs.{i}.{what}");
        while convs.is_empty() || w.has(&name(convs.len(), "weight")) {
            let weight = name(convs.len(), "weight");
            // At least 1: an empty tensor is of the wrong shape then.
            let out = w.shape(&weight).and_then(|s| s.first()).copied().unwrap_or(0).max(1);
            let kernel = w.take(&weight, &[out, channels, 3, 3])?;
            let bias = w.take_optional(&name(convs.len(), "bias"), &[out])?;
            let conv = Conv2d::pack(level, &kernel, [out, channels, 3], (2, 1), bias.as_deref());
            sizes.push(conv.out_size(sizes[convs.len()]));
            convs.push(conv);
            channels = out;
        }
        let k = channels * (1 + pool.0 * pool.1);
        let n = w.shape("proj.weight").and_then(|s| s.first()).copied().unwrap_or(0).max(1);
        let (proj, bias) = (w.take("proj.weight", &[n, k])?, w.take_optional("proj.bias", &[n])?);
        Ok(Self { convs, sizes, pool, proj: Linear::pack(level, &proj, n, k, bias.as_deref()) })
    }

    /// Values of the largest image on the way.
    fn largest(&self) -> usize {
        let channels = std::iter::once(CHANNELS).chain(self.convs.iter().map(Conv2d::out_channels));
        self.sizes.iter().zip(channels).map(|((h, w), c)| h * w * c).max().unwrap_or(0)
    }

    fn scratch_len(&self, m: usize, threads: usize) -> usize {
        let windows = self.convs.iter().map(|c| c.scratch_len(threads)).max().unwrap_or(0);
        line(m * self.proj.k()) + 2 * line(self.largest()) + line(windows)
    }

    fn forward(&self, cx: &Cx, rows: &[Row], len: usize, mut scratch: &mut [f32], out: &mut [f32]) {
        let (m, k) = (rows.len() * len, self.proj.k());
        let s = &mut scratch;
        let pooled = carve(s, m * k);
        let (mut x, mut y) = (carve(s, self.largest()), carve(s, self.largest()));
        let frame = CHANNELS * self.sizes[0].0 * self.sizes[0].1;
        let frames = rows.iter().flat_map(|row| row.x[..len * frame].chunks_exact(frame));
        for (image, pooled) in frames.zip(pooled.chunks_exact_mut(k)) {
            // Planes to pixels.
            let pixels = frame / CHANNELS;
            for (c, plane) in image.chunks_exact(pixels).enumerate() {
                x.iter_mut().skip(c).step_by(CHANNELS).zip(plane).for_each(|(x, v)| *x = *v);
            }
            let mut channels = CHANNELS;
            for (conv, sizes) in self.convs.iter().zip(self.sizes.windows(2)) {
                let (from, to, n) = (sizes[0], sizes[1], conv.out_channels());
                let input = Mat::new(x, from.0 * from.1, channels);
                conv2d(cx, conv, input, from, Act::Silu, s, MatMut::new(y, to.0 * to.1, n));
                std::mem::swap(&mut x, &mut y);
                channels = n;
            }
            self.pool(x, channels, pooled);
        }
        linear(cx, Mat::new(pooled, m, k), &self.proj, Act::None, Store::Set, MatMut::new(out, m, self.proj.n()));
    }

    /// The mean of each channel of x, pixels by channels, and then of each channel its means over the cells. A cell spans
    /// the lines `⌊i h / n⌋ .. ⌈(i + 1) h / n⌉`, columns likewise.
    fn pool(&self, x: &[f32], channels: usize, out: &mut [f32]) {
        let (h, w) = self.sizes[self.convs.len()];
        let (mean, cells) = out.split_at_mut(channels);
        let cell = |lines: Range<usize>, columns: Range<usize>, put: &mut dyn FnMut(usize, f32)| {
            let share = 1.0 / (lines.len() * columns.len()) as f32;
            for c in 0..channels {
                let row = |y: usize| columns.clone().map(|x_| x[(y * w + x_) * channels + c]).sum::<f32>();
                put(c, lines.clone().map(row).sum::<f32>() * share);
            }
        };
        cell(0..h, 0..w, &mut |c, v| mean[c] = v);
        let (rows, columns) = self.pool;
        let span = |i: usize, n: usize, size: usize| i * size / n..((i + 1) * size).div_ceil(n);
        for i in 0..rows * columns {
            let at = (span(i / columns, rows, h), span(i % columns, columns, w));
            cell(at.0, at.1, &mut |c, v| cells[c * rows * columns + i] = v);
        }
    }
}

/// The log-mel frames of a step's samples side by side, a linear map.
pub(super) struct Mel {
    front: AudioFrontend,
    /// Samples that the next frame begins with.
    samples: Range<usize>,
    /// Frames of a step.
    frames: usize,
    hop: usize,
    proj: Linear, // (F, frames · bins)
}

impl Mel {
    fn load(
        w: &Reader<'_>,
        level: CpuLevel,
        front: &Value,
        hop: usize,
        path: &str,
        layout: &mut StateLayout,
    ) -> Result<Self, Error> {
        let front = AudioFrontend::per_hop(front, 0, path)?;
        if !hop.is_multiple_of(front.hop()) {
            return Err(bad(path, "input.hop", format!("a multiple of the front end's {} samples", front.hop()), hop));
        }
        let frames = hop / front.hop();
        let k = frames * front.bins();
        let n = w.shape("proj.weight").and_then(|s| s.first()).copied().unwrap_or(0).max(1);
        let (proj, bias) = (w.take("proj.weight", &[n, k])?, w.take_optional("proj.bias", &[n])?);
        let samples = layout.add("encoder.samples", &[front.fbank().state_len()]);
        Ok(Self { front, samples, frames, hop, proj: Linear::pack(level, &proj, n, k, bias.as_deref()) })
    }

    /// Frames that a step completes at most, whatever a state from outside says.
    fn room(&self) -> usize {
        let c = self.front.fbank().config();
        self.frames + c.frame.div_ceil(c.hop) + 1
    }

    fn scratch_len(&self, m: usize) -> usize {
        line(m * self.proj.k()) + line(self.room() * self.front.bins())
    }

    fn forward(
        &self,
        cx: &Cx,
        rows: &mut [Row],
        len: usize,
        work: &mut Work,
        mut scratch: &mut [f32],
        out: &mut [f32],
    ) {
        let (m, k, bins) = (rows.len() * len, self.proj.k(), self.front.bins());
        let s = &mut scratch;
        let (mel, fresh) = (carve(s, m * k), carve(s, self.room() * bins));
        for (row, mel) in rows.iter_mut().zip(mel.chunks_exact_mut(len * k)) {
            for (x, mel) in row.x[..len * self.hop].chunks_exact(self.hop).zip(mel.chunks_exact_mut(k)) {
                let n = self.front.push(&mut row.state.data[self.samples.clone()], x, work, fresh);
                // A hop gives one frame; only a state from elsewhere could give fewer or more.
                let n = n.min(self.frames) * bins;
                mel[..n].copy_from_slice(&fresh[..n]);
                mel[n..].fill(self.front.normalise(self.front.fbank().config().silence()));
            }
        }
        linear(cx, Mat::new(mel, m, k), &self.proj, Act::None, Store::Set, MatMut::new(out, m, self.proj.n()));
    }

    fn gap(&self, state: &mut [f32], periods: f64) {
        if periods.is_nan() || periods <= 0.0 {
            return;
        }
        // Between steps a whole number of hops has been heard: what is held is the frame without its last hop.
        let held = &mut state[self.samples.clone()];
        let waiting = self.front.fbank().config().lead;
        if let Some((held, rest)) = held.get_mut(1..).and_then(|held| held.split_at_mut_checked(waiting)) {
            shift_tail(held, 1, periods * self.hop as f64);
            rest.fill(0.0);
        }
    }
}
