//! Complex mask by bands: our speech denoiser.
//!
//! ```text
//! X = STFT(x)
//! f = normalised [ln P | Re X · P^-0.35 | Im X · P^-0.35],  P = |X|² + 1e-7                 (3, F)
//! x_k = encode_k f_k                                          band k of K, each with its own weights, to (K, D)
//! I times:  x_k = x_k + mixer(RMSNorm(x_k))                   the same weights for every band, a state for each
//!           u = in_proj RMSNorm(x),  u = u + mixer(RMSNorm(u)),  x = x + out_proj silu(u)    over all bands
//! or once:  u = core(in_proj x),  x = x + out_proj silu(u)    a core of any kind, of its own norms
//! M_k = decode_k RMSNorm(x_k)  ->  y = ISTFT(M · X)
//! ```
//!
//! The bands are run in turn along time and across (Luo & Yu 2023, "Band-split RNN"), with a Mamba (Gu & Dao 2023) in the
//! place of its recurrences; across the bands goes a narrow path that knows the whole frame. The mask is complex with a
//! magnitude below 1, `M = (u + i v) tanh(r) / r`, `r = |u + i v|`, so nothing is ever made louder. A frame is longer than
//! the two hops that come out of it ([`Stft::low_delay`]): the output lags by one hop, and a sample is complete two hops
//! (20 ms) after it came in.
//!
//! From the path over all bands a second head tells speech ([`Output::Speech`]): one score for each frame, of the hop before
//! the newest. What only the mask needs is left out then.

mod card;

use crate::card::{Network, Weights};
use crate::checkpoint::{Checkpoint, Reader};
use crate::config::{Fields, Section};
use crate::cores::{Core, Kind as CoreKind};
use crate::error::Error;
use crate::families::{Family, Options, Output};
use crate::golden::Golden;
use crate::mixer::{Mixer, MixerState};
use crate::model::{Facts, Info, Model, Row, Scratch, Signal, carve, line};
use crate::state::{State, StateLayout};
use serde_json::Value;
use ssm_kernels::activation::apply;
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::norm::{Kind, Norm, add_norm, norm};
use ssm_kernels::stft::Stft;
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};
use std::ops::Range;
use std::sync::Arc;

pub(crate) const FAMILY: Family = Family {
    name: "band_mask",
    detect: |f| f.shape("encode.0.weight").is_some() && f.shape("decode.0.weight").is_some(),
    open: |file, options| Ok(Arc::new(BandMask::load(file, options)?)),
    verify,
};

/// Hz of the published files; another one may stand in the config.
const RATE: usize = 16_000;
/// Added to a bin's power.
const FLOOR: f32 = 1e-7;
/// Power by which the parts of a bin are scaled, so that their magnitude is |X|^0.3.
const COMPRESSION: f32 = -0.35;
/// Features of a bin.
const FEATURES: usize = 3;
const EPS: f32 = 1e-5;
/// Most bands, and bins of all of them.
const MOST: usize = 1 << 13;

/// The same weights for every band.
struct Along {
    norm: Norm,
    mixer: Mixer,
}

/// The path over all bands.
struct Across {
    norm: Norm,       // (D)
    in_proj: Linear,  // (U, K D)
    norm_full: Norm,  // (U)
    mixer: Mixer,     // U
    out_proj: Linear, // (K D, U)
}

/// One path over all bands.
struct Whole {
    in_proj: Linear, // (U, K D)
    core: Core,
    /// Its configuration.
    said: Value,
    out_proj: Linear, // (K D, U)
}

/// What runs over time.
enum Body {
    /// In turn along the bands and across them.
    Bands(Vec<(Along, Across)>),
    Whole(Box<Whole>),
}

/// Places in the state; a core knows its own.
struct Places {
    /// The samples before the next hop that its frame begins with.
    tail: Range<usize>,
    /// The half of the last output that the next one completes; empty where no samples come out.
    overlap: Range<usize>,
    blocks: Vec<(MixerState, MixerState)>,
}

/// What is made of it all.
enum Head {
    /// Samples, by a mask: for each band (2 bins, D), u and v.
    Mask { norm: Norm, decode: Vec<Linear> },
    /// The score of speech.
    Speech(Linear), // (1, U)
    /// The path over all bands as it is.
    Features,
}

struct BandMask {
    info: Info,
    layout: StateLayout,
    places: Places,
    stft: Stft,
    mean: Vec<f32>,      // (3, F)
    scale: Vec<f32>,     // (3, F)
    encode: Vec<Linear>, // (D, 3 bins) of each band
    body: Body,
    head: Head,
    /// Widths: of a band's vector, of the path over all bands.
    d: usize,
    u: usize,
    hop: usize,
    /// [`Options::floor`].
    floor: f32,
}

/// An RMSNorm.
fn rms(w: &Reader<'_>, name: &str, width: usize) -> Result<Norm, Error> {
    Ok(Norm::new(Kind::Rms, w.take(&format!("{name}.weight"), &[width])?, None, EPS))
}

/// A linear map (n, k) with its bias.
fn full(w: &Reader<'_>, level: CpuLevel, name: &str, n: usize, k: usize) -> Result<Linear, Error> {
    let (weight, bias) = (w.take(&format!("{name}.weight"), &[n, k])?, w.take(&format!("{name}.bias"), &[n])?);
    Ok(Linear::pack(level, &weight, n, k, Some(&bias)))
}

/// `out = w silu(path)`, path (M, U); `narrow` is memory of the same size.
fn spread(cx: &Cx, w: &Linear, path: &[f32], narrow: &mut [f32], out: MatMut<'_>) {
    narrow.copy_from_slice(path);
    apply(cx.level, Act::Silu, narrow);
    linear(cx, Mat::new(narrow, path.len() / w.k(), w.k()), w, Act::None, Store::Set, out);
}

impl Body {
    /// Reads what runs over time, and the places of the blocks' states.
    fn load(
        w: &Reader<'_>,
        level: CpuLevel,
        fields: &Fields<'_>,
        [bands, d, u]: [usize; 3],
        layout: &mut StateLayout,
    ) -> Result<(Self, Vec<(MixerState, MixerState)>), Error> {
        let wide = bands * d;
        if w.has("in_proj.weight") {
            let path = fields.file();
            let part = Section::of(fields.whole(), path, "core")?;
            let (kind, said) = (CoreKind::read(&part)?, part.value());
            let whole = Whole {
                in_proj: full(w, level, "in_proj", u, wide)?,
                core: Core::load(&w.at("core."), level, u, (kind, &said), path, layout)?,
                said,
                out_proj: full(w, level, "out_proj", wide, u)?,
            };
            return Ok((Self::Whole(Box::new(whole)), Vec::new()));
        }
        let (mut blocks, mut places) = (Vec::new(), Vec::new());
        while blocks.is_empty() || w.has(&format!("blocks.{}.band.norm.weight", blocks.len())) {
            let i = blocks.len();
            let (band, across) = (w.at(&format!("blocks.{i}.band.")), w.at(&format!("blocks.{i}.full.")));
            let along = Along { norm: rms(&band, "norm", d)?, mixer: Mixer::load(&band.at("mixer."), level, d)? };
            let across = Across {
                norm: rms(&across, "norm", d)?,
                in_proj: full(&across, level, "in_proj", u, wide)?,
                norm_full: rms(&across, "norm_full", u)?,
                mixer: Mixer::load(&across.at("mixer."), level, u)?,
                out_proj: full(&across, level, "out_proj", wide, u)?,
            };
            let at = along.mixer.state_of(bands, layout, &format!("blocks.{i}.band"));
            places.push((at, across.mixer.state(layout, &format!("blocks.{i}.full"))));
            blocks.push((along, across));
        }
        Ok((Self::Bands(blocks), places))
    }

    /// Sizes in a few words.
    fn sizes(&self, d: usize, u: usize) -> String {
        match self {
            Self::Bands(blocks) => {
                let size = |mixer: &Mixer| format!("E {}, N {}", mixer.d_inner(), mixer.d_state());
                let each = |(along, across): &(Along, Across)| (size(&along.mixer), size(&across.mixer));
                let (band, path) = blocks.first().map(each).unwrap_or_default();
                format!("{} blocks, D {d} ({band}), U {u} ({path})", blocks.len())
            }
            Self::Whole(whole) => format!("D {d} each; {}", whole.core.sizes(u)),
        }
    }

    /// What changes the function beside the weights, for hashes.
    fn options(&self) -> String {
        match self {
            Self::Bands(_) => String::new(),
            Self::Whole(whole) => format!(" {}", whole.said),
        }
    }
}

impl BandMask {
    fn load(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let level = options.level;
        let fields = Fields::new(options.config.as_ref(), file.path.display().to_string());
        let w = Reader::new(file);
        // At least 1: an empty tensor is of the wrong shape then.
        let dim = |name: &str, i: usize| w.shape(name).and_then(|s| s.get(i)).copied().unwrap_or(0).max(1);
        let into = if w.has("in_proj.weight") { "in_proj.weight" } else { "blocks.0.full.in_proj.weight" };
        let (d, u) = (dim("encode.0.weight", 0), dim(into, 0));

        let (mut encode, mut bins) = (Vec::new(), 0);
        while encode.is_empty() || w.has(&format!("encode.{}.weight", encode.len())) {
            let name = format!("encode.{}", encode.len());
            let width = dim(&format!("{name}.weight"), 1).div_ceil(FEATURES);
            bins += width;
            if bins > MOST {
                return Err(fields.bad(&name, format!("at most {MOST} bins in all bands"), bins));
            }
            encode.push(full(&w, level, &name, d, FEATURES * width)?);
        }
        if bins < 2 {
            return Err(fields.bad("encode", "two bins or more in all bands", bins));
        }
        let (bands, window) = (encode.len(), 2 * (bins - 1));
        fields.agree(&["window"], window)?;
        let hop = fields.size(&["hop"])?.unwrap_or(window / 2);
        if hop == 0 || hop > window / 2 {
            return Err(fields.bad(
                "hop",
                format!("1 to {}: half of the frame that {bins} bins make", window / 2),
                hop,
            ));
        }
        let said = fields.size(&["sample_rate"])?.unwrap_or(RATE);
        let rate = u32::try_from(said).ok().filter(|r| (1000..=192_000).contains(r));
        let rate = rate.ok_or_else(|| fields.bad("sample_rate", "1000 to 192000 Hz", said))?;
        let features = &[FEATURES, bins];
        let (mean, scale) = (w.take("input_norm.mean", features)?, w.take("input_norm.scale", features)?);

        let mut layout = StateLayout::new();
        let tail = layout.add("tail", &[window - hop]);
        let samples = options.output == Output::Task;
        let overlap = if samples { layout.add("overlap", &[hop]) } else { 0..0 };
        let (body, blocks) = Body::load(&w, level, &fields, [bands, d, u], &mut layout)?;
        let places = Places { tail, overlap, blocks };
        let norm_f = rms(&w, "norm_f", d)?;
        let mut decode = Vec::new();
        for (k, e) in encode.iter().enumerate() {
            decode.push(full(&w, level, &format!("decode.{k}"), 2 * (e.k() / FEATURES), d)?);
        }
        let head = match options.output {
            Output::Speech => Head::Speech(full(&w, level, "vad", 1, u)?),
            other => {
                w.take_optional("vad.weight", &[1, u])?;
                w.take_optional("vad.bias", &[1])?;
                if other == Output::Features { Head::Features } else { Head::Mask { norm: norm_f, decode } }
            }
        };
        w.finish()?;
        // (output, delay, what the hash says): the windows weigh most what lies a hop before a frame's end.
        let (output, delay, what) = match head {
            Head::Mask { .. } => (Signal::Samples { hop, rate }, hop, "band_mask"),
            Head::Speech(_) => (Signal::Logits { classes: 1 }, hop / 2, "band_mask speech"),
            Head::Features => (Signal::Vector { dim: u }, hop / 2, "band_mask features"),
        };
        let info = Info {
            family: FAMILY.name,
            facts: Facts { masks: samples, ..Facts::default() },
            sizes: format!("{bins} bins in {bands} bands, {}, frame {window}, hop {hop}, {rate} Hz", body.sizes(d, u)),
            parameters: file.parameters(),
            input: Signal::Samples { hop, rate },
            output,
            delay,
            hash: file.hash(&format!("{what} {hop}{}", body.options())),
        };
        Ok(Self {
            stft: Stft::low_delay(window, hop),
            info,
            layout,
            places,
            mean,
            scale,
            encode,
            body,
            head,
            d,
            u,
            hop,
            floor: options.floor,
        })
    }

    fn bins(&self) -> usize {
        self.stft.bins()
    }

    /// Working memory of a pass of `m` frames of all streams together.
    fn scratch_len(&self, m: usize) -> usize {
        let (f, wide, tokens) = (self.bins(), self.encode.len() * self.d, m * self.encode.len());
        let body = match &self.body {
            Body::Bands(blocks) => {
                let mixers = |(along, across): &(Along, Across)| {
                    along.mixer.scratch_len(tokens).max(across.mixer.scratch_len(m))
                };
                blocks.iter().map(mixers).max().unwrap_or(0)
            }
            Body::Whole(whole) => whole.core.scratch_len(m, self.u),
        };
        line(self.stft.len()) // frame
            + line(self.stft.out_len())
            + line(self.stft.work_len())
            + line(m * 2 * f) // spectra
            + line(m * FEATURES * f) // features, then masks
            + 3 * line(m * wide)
            + 3 * line(m * self.u)
            + body
    }

    /// `X = STFT(x)` and the features of `len` hops of a stream, those of a band side by side.
    fn analyse(
        &self,
        x: &[f32],
        tail: &mut [f32],
        [frame, work]: [&mut [f32]; 2],
        spectra: &mut [f32],
        features: &mut [f32],
    ) {
        let (f, hop) = (self.bins(), self.hop);
        let outs = spectra.chunks_exact_mut(2 * f).zip(features.chunks_exact_mut(FEATURES * f));
        for (x, (spectrum, features)) in x.chunks_exact(hop).zip(outs) {
            let kept = tail.len();
            frame[..kept].copy_from_slice(tail);
            frame[kept..].copy_from_slice(x);
            tail.copy_from_slice(&frame[hop..]);
            self.stft.analyse(frame, spectrum, work);
            let (mut bin, mut rest) = (0, features);
            for band in &self.encode {
                let (mine, others) = rest.split_at_mut(band.k());
                rest = others;
                let width = mine.len() / FEATURES;
                for i in 0..width {
                    let [re, im] = [spectrum[2 * (bin + i)], spectrum[2 * (bin + i) + 1]];
                    let log = (re * re + im * im + FLOOR).ln();
                    let scale = (COMPRESSION * log).exp();
                    for (j, value) in [log, re * scale, im * scale].into_iter().enumerate() {
                        let at = j * f + bin + i;
                        mine[j * width + i] = (value - self.mean[at]) * self.scale[at];
                    }
                }
                bin += width;
            }
        }
    }

    /// `y = ISTFT((floor + (1 - floor) M) · X)` of `len` hops of a stream.
    fn synthesise(
        &self,
        masks: &[f32],
        spectra: &mut [f32],
        overlap: &mut [f32],
        [shares, work]: [&mut [f32]; 2],
        y: &mut [f32],
    ) {
        let (f, hop, keep) = (self.bins(), self.hop, 1.0 - self.floor);
        let ins = spectra.chunks_exact_mut(2 * f).zip(masks.chunks_exact(2 * f));
        for (y, (spectrum, mask)) in y.chunks_exact_mut(hop).zip(ins) {
            let (mut bins, mut rest) = (spectrum.as_chunks_mut::<2>().0.iter_mut(), mask);
            for band in &self.encode {
                let width = band.k() / FEATURES;
                let (mine, others) = rest.split_at(2 * width);
                rest = others;
                let (u, v) = mine.split_at(width);
                for ((u, v), x) in u.iter().zip(v).zip(bins.by_ref()) {
                    let radius = (u * u + v * v + 1e-12).sqrt();
                    let bound = radius.tanh() / radius;
                    let (a, b) = (self.floor + keep * u * bound, keep * v * bound);
                    *x = [a * x[0] - b * x[1], a * x[1] + b * x[0]];
                }
            }
            self.stft.synthesise(spectrum, shares, work);
            y.iter_mut().zip(&*overlap).zip(&*shares).for_each(|((y, o), s)| *y = o + s);
            overlap.copy_from_slice(&shares[hop..]);
        }
    }
}

impl Model for BandMask {
    fn info(&self) -> &Info {
        &self.info
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) {
        let (f, d, u, hop, m) = (self.bins(), self.d, self.u, self.hop, rows.len() * len);
        if m == 0 {
            return;
        }
        let bands = self.encode.len();
        let (wide, tokens) = (bands * d, m * bands);
        let s = &mut scratch.take(self.scratch_len(m));
        let (frame, shares) = (carve(s, self.stft.len()), carve(s, self.stft.out_len()));
        let work = carve(s, self.stft.work_len());
        let (spectra, values) = (carve(s, m * 2 * f), carve(s, m * FEATURES * f));
        let (x, hidden, normed) = (carve(s, m * wide), carve(s, m * wide), carve(s, m * wide));
        let (path, change, narrow) = (carve(s, m * u), carve(s, m * u), carve(s, m * u));

        for (r, row) in rows.iter_mut().enumerate() {
            let tail = &mut row.state.data[self.places.tail.clone()];
            let (spectra, values) = (&mut spectra[r * len * 2 * f..], &mut values[r * len * FEATURES * f..]);
            self.analyse(&row.x[..len * hop], tail, [frame, work], spectra, values);
        }

        // x_k = encode_k f_k: band k is columns k D … of a frame's row
        let mut at = 0;
        for (k, w) in self.encode.iter().enumerate() {
            let mine = Mat::new(values, m, FEATURES * f).columns(at..at + w.k());
            linear(cx, mine, w, Act::None, Store::Set, MatMut::strided(&mut x[k * d..], m, d, wide));
            at += w.k();
        }
        // The stream is x + hidden.
        match &self.body {
            Body::Bands(blocks) => {
                hidden.fill(0.0);
                for ((along, across), (band, full)) in blocks.iter().zip(&self.places.blocks) {
                    // along time: x_k += mixer(norm(x_k))
                    let (sum, n) = (MatMut::new(x, tokens, d), MatMut::new(normed, tokens, d));
                    add_norm(cx, &along.norm, Mat::new(hidden, tokens, d), sum, n);
                    let (n, out) = (Mat::new(normed, tokens, d), MatMut::new(hidden, tokens, d));
                    along.mixer.forward_lanes(cx, n, rows, bands, len, Some(band), s, out);
                    // across: u = in_proj norm(x); u += mixer(norm(u)); x += out_proj silu(u)
                    let (sum, n) = (MatMut::new(x, tokens, d), MatMut::new(normed, tokens, d));
                    add_norm(cx, &across.norm, Mat::new(hidden, tokens, d), sum, n);
                    linear(
                        cx,
                        Mat::new(normed, m, wide),
                        &across.in_proj,
                        Act::None,
                        Store::Set,
                        MatMut::new(path, m, u),
                    );
                    norm(cx, &across.norm_full, Mat::new(path, m, u), MatMut::new(narrow, m, u));
                    across.mixer.forward(
                        cx,
                        Mat::new(narrow, m, u),
                        rows,
                        len,
                        Some(full),
                        s,
                        MatMut::new(change, m, u),
                    );
                    path.iter_mut().zip(&*change).for_each(|(p, c)| *p += c);
                    spread(cx, &across.out_proj, path, narrow, MatMut::new(hidden, m, wide));
                }
            }
            Body::Whole(whole) => {
                // u = core(in_proj x); x += out_proj silu(u)
                linear(cx, Mat::new(x, m, wide), &whole.in_proj, Act::None, Store::Set, MatMut::new(narrow, m, u));
                whole.core.forward(cx, narrow, path, rows, len, s, u);
                spread(cx, &whole.out_proj, path, narrow, MatMut::new(hidden, m, wide));
            }
        }
        rows.iter_mut().for_each(|row| row.state.steps += len as u64);
        let (norm_f, decode) = match &self.head {
            Head::Mask { norm, decode } => (norm, decode),
            Head::Speech(vad) => {
                for (row, x) in rows.iter_mut().zip(path.chunks_exact(len * u)) {
                    linear(cx, Mat::new(x, len, u), vad, Act::None, Store::Set, MatMut::new(&mut row.y[..len], len, 1));
                }
                return;
            }
            Head::Features => {
                for (row, x) in rows.iter_mut().zip(path.chunks_exact(len * u)) {
                    row.y[..len * u].copy_from_slice(x);
                }
                return;
            }
        };
        let (sum, n) = (MatMut::new(x, tokens, d), MatMut::new(normed, tokens, d));
        add_norm(cx, norm_f, Mat::new(hidden, tokens, d), sum, n);
        let (mut at, normed) = (0, Mat::new(normed, m, wide));
        for (k, w) in decode.iter().enumerate() {
            let out = MatMut::strided(&mut values[at..], m, w.n(), 2 * f);
            linear(cx, normed.columns(k * d..(k + 1) * d), w, Act::None, Store::Set, out);
            at += w.n();
        }
        for (r, row) in rows.iter_mut().enumerate() {
            let overlap = &mut row.state.data[self.places.overlap.clone()];
            let (masks, spectra) = (&values[r * len * 2 * f..], &mut spectra[r * len * 2 * f..]);
            self.synthesise(masks, spectra, overlap, [shares, work], &mut row.y[..len * hop]);
        }
    }

    fn network(&self, weights: &mut Weights) -> Option<Box<dyn Network>> {
        // The kernel there knows no floor.
        if self.floor > 0.0 { None } else { self.on_card(weights) }
    }

    fn gap(&self, state: &mut State, periods: f64) {
        match &self.body {
            Body::Bands(blocks) => {
                for ((along, across), (band, full)) in blocks.iter().zip(&self.places.blocks) {
                    along.mixer.gap(&mut state.data, band, periods);
                    across.mixer.gap(&mut state.data, full, periods);
                }
            }
            Body::Whole(whole) => whole.core.gap(&mut state.data, periods),
        }
    }

    fn drain(&self, cx: &Cx, row: &mut Row, partial: usize, scratch: &mut Scratch) -> usize {
        if !matches!(self.head, Head::Mask { .. }) {
            return 0;
        }
        let hop = self.hop;
        let left = partial + if row.state.steps > 0 { hop } else { 0 };
        let mut done = 0;
        // The hop that was begun, then silence that pushes the last one out; before the first hop nothing lags.
        while done < left {
            let given = if done == 0 { partial } else { 0 };
            row.x[given..hop].fill(0.0);
            let fresh = row.state.steps == 0;
            self.forward(cx, std::slice::from_mut(row), 1, scratch);
            if !fresh {
                row.y.copy_within(..hop, (1 + done / hop) * hop);
                done += hop;
            } else {
                row.x[..hop].fill(0.0);
                self.forward(cx, std::slice::from_mut(row), 1, scratch);
                row.y.copy_within(..hop, hop);
                done += hop;
            }
        }
        row.y.copy_within(hop..hop + left, 0);
        left
    }

    fn drain_len(&self) -> usize {
        if matches!(self.head, Head::Mask { .. }) { 4 * self.hop } else { 0 }
    }
}

/// Golden files: a whole clip, made by the training code, and whether there is speech in its frames.
fn verify(g: &mut Golden<'_>) -> Result<(), Error> {
    let (_, x) = g.tensor("__input__")?;
    let model = g.open(&g.open_options())?;
    let (y, _) = g.run_samples(&*model, &x, true)?;
    g.check("__output__", &y, 5e-6)?;
    if g.has("__tap__.vad") {
        let model = g.open(&Options { output: Output::Speech, ..g.open_options() })?;
        // The clip, filled up to whole hops, and the one that the last frame ends with.
        let hop = model.info().input.len();
        let hops = x.len().div_ceil(hop) + 1;
        let mut filled = x;
        filled.resize(hops * hop, 0.0);
        let (mut rows, mut at, mut scores) = ([Row::new(&*model, hops)], 0, vec![]);
        for len in g.cuts(hops) {
            rows[0].x[..len * hop].copy_from_slice(&filled[at * hop..(at + len) * hop]);
            g.forward(&*model, &mut rows, len);
            scores.extend_from_slice(&rows[0].y[..len]);
            at += len;
        }
        g.check("__tap__.vad", &scores, 5e-5)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_files_pass() {
        crate::golden::pass("band_mask");
    }

    #[test]
    fn what_a_core_is_told_is_part_of_the_hash() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/band_mask_bst.safetensors");
        let file = Checkpoint::open(std::path::Path::new(file)).unwrap();
        let hash = |window: u32| {
            let config = serde_json::json!({ "hop": 20, "core": { "kind": "bst", "variant": "SH", "window": window } });
            BandMask::load(&file, &Options { config: Some(config), ..Options::default() }).unwrap().info.hash
        };
        assert_eq!(hash(7), hash(7));
        assert_ne!(hash(7), hash(8));
    }
}
