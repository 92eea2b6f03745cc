//! Spectral mask by Mamba: our own small speech denoiser.
//!
//! ```text
//! X = STFT(x)  ->  ln|X|²  ->  linear  ->  L x ( x + Mamba(RMSNorm(x)) )  ->  RMSNorm  ->  mask M  ->  ISTFT(M · X)
//! ```
//!
//! One Mamba (Gu & Dao 2023) runs over time with all bins of a frame as its input; its state is all that the network
//! knows of the past. The mask is complex with a magnitude below 1, `M = (u + i v) tanh(r) / r`, `r = |u + i v|`
//! (the bounded ratio mask of Hu et al. 2020, section 2.3), so nothing is ever made louder. A frame is two hops long: the
//! output lags by one hop, and a sample is complete one frame (20 ms) after it came in.
//!
//! From the vector before the mask a second head tells speech ([`Output::Speech`]): one score for each frame, of the hop in
//! its middle. Mask and synthesis are left out then.

use crate::checkpoint::{Checkpoint, Reader};
use crate::error::Error;
use crate::families::{Family, Options, Output};
use crate::golden::Golden;
use crate::mixer::{Mixer, MixerState};
use crate::model::{Facts, Info, Model, Row, Scratch, Signal, carve, line};
use crate::state::{State, StateLayout};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::norm::{Kind, Norm, add_norm};
use ssm_kernels::stft::Stft;
use ssm_kernels::{Act, Cx, Mat, MatMut};
use std::ops::Range;
use std::sync::Arc;

pub(crate) const FAMILY: Family = Family {
    name: "spec_mamba",
    detect: |f| f.shape("input_norm.mean").is_some() && f.shape("mask.weight").is_some(),
    open: |file, options| Ok(Arc::new(SpecMamba::load(file, options)?)),
    verify,
};

/// Hz of the published files; another one may stand in the config.
const RATE: u32 = 16_000;
/// Added to a bin's power before the logarithm.
const FLOOR: f32 = 1e-7;
const EPS: f32 = 1e-5;

struct Layer {
    norm: Norm,
    mixer: Mixer,
}

/// Places in the state.
struct Places {
    /// The last hop of samples.
    tail: Range<usize>,
    /// The half of the last output frame that the next one completes; empty where no samples come out.
    overlap: Range<usize>,
    layers: Vec<MixerState>,
}

/// What is made of the normed vectors (D).
enum Head {
    /// Samples, by a mask.
    Mask(Linear), // (2F, D): u, v
    /// The score of speech.
    Speech(Linear), // (1, D)
    /// Nothing.
    Features,
}

struct SpecMamba {
    info: Info,
    layout: StateLayout,
    places: Places,
    stft: Stft,
    mean: Vec<f32>,  // (F), of ln|X|²
    scale: Vec<f32>, // (F)
    in_proj: Linear, // (D, F)
    layers: Vec<Layer>,
    norm_f: Norm,
    head: Head,
}

impl SpecMamba {
    fn load(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let level = options.level;
        let w = Reader::new(file);
        let dim = |name: &str, i: usize| w.shape(name).and_then(|s| s.get(i)).copied().unwrap_or(0);
        let (bins, d) = (dim("input_norm.mean", 0), dim("in_proj.weight", 0));
        let bad = |field: &str, expected: &str, got: String| Error::Config {
            file: file.path.display().to_string(),
            field: field.into(),
            expected: expected.into(),
            got,
        };
        if !(2..=1 << 14).contains(&bins) || d == 0 {
            return Err(bad("input_norm.mean", "2 to 16384 bins", format!("{bins} bins, width {d}")));
        }
        let hop = bins - 1;
        let number = |name: &str, default: u64| {
            options.config.as_ref().and_then(|c| c.get(name)).and_then(|v| v.as_u64()).unwrap_or(default)
        };
        if number("window", 2 * hop as u64) != 2 * hop as u64 || number("hop", hop as u64) != hop as u64 {
            let expected = format!("{} and {hop}, as the tensors have", 2 * hop);
            return Err(bad("window, hop", &expected, format!("{}, {}", number("window", 0), number("hop", 0))));
        }
        let rate = u32::try_from(number("sample_rate", RATE.into())).ok().filter(|r| (1000..=192_000).contains(r));
        let rate = rate.ok_or_else(|| bad("sample_rate", "1000 to 192000 Hz", number("sample_rate", 0).to_string()))?;
        let norm = |w: &Reader<'_>, name: &str| -> Result<Norm, Error> {
            Ok(Norm::new(Kind::Rms, w.take(&format!("{name}.weight"), &[d])?, None, EPS))
        };
        let (mean, scale) = (w.take("input_norm.mean", &[bins])?, w.take("input_norm.scale", &[bins])?);
        let in_proj = w.take("in_proj.weight", &[d, bins])?;
        let in_bias = w.take("in_proj.bias", &[d])?;
        let mut layers = Vec::new();
        while w.has(&format!("layers.{}.norm.weight", layers.len())) {
            let w = w.at(&format!("layers.{}.", layers.len()));
            layers.push(Layer { norm: norm(&w, "norm")?, mixer: Mixer::load(&w.at("mixer."), level, d, false)? });
        }
        let norm_f = norm(&w, "norm_f")?;
        let mask = w.take("mask.weight", &[2 * bins, d])?;
        let mask_bias = w.take("mask.bias", &[2 * bins])?;
        let head = if options.output == Output::Speech {
            let vad = w.take("vad.weight", &[1, d])?;
            Head::Speech(Linear::pack(level, &vad, 1, d, Some(&w.take("vad.bias", &[1])?)))
        } else {
            w.take_optional("vad.weight", &[1, d])?;
            w.take_optional("vad.bias", &[1])?;
            match options.output {
                Output::Features => Head::Features,
                _ => Head::Mask(Linear::pack(level, &mask, 2 * bins, d, Some(&mask_bias))),
            }
        };
        w.finish()?;
        // (output, delay, what the hash says): a frame's middle lies a hop before its end.
        let (output, delay, what) = match head {
            Head::Mask(_) => (Signal::Samples { hop, rate }, hop, "spec_mamba"),
            Head::Speech(_) => (Signal::Logits { classes: 1 }, hop / 2, "spec_mamba speech"),
            Head::Features => (Signal::Vector { dim: d }, hop / 2, "spec_mamba features"),
        };

        let mut layout = StateLayout::new();
        let places = Places {
            tail: layout.add("tail", &[hop]),
            overlap: if matches!(head, Head::Mask(_)) { layout.add("overlap", &[hop]) } else { 0..0 },
            layers: layers
                .iter()
                .enumerate()
                .map(|(i, l)| l.mixer.state(&mut layout, &format!("layers.{i}")))
                .collect(),
        };
        let mixer = layers.first().map(|l| &l.mixer);
        let info = Info {
            family: FAMILY.name,
            facts: Facts::default(),
            sizes: format!(
                "{bins} bins, D {d}, {} layers, E {}, N {}, frame {}, hop {hop}, {rate} Hz",
                layers.len(),
                mixer.map_or(0, Mixer::d_inner),
                mixer.map_or(0, Mixer::d_state),
                2 * hop
            ),
            parameters: file.parameters(),
            input: Signal::Samples { hop, rate },
            output,
            delay,
            hash: file.hash(what),
        };
        Ok(Self {
            in_proj: Linear::pack(level, &in_proj, d, bins, Some(&in_bias)),
            head,
            stft: Stft::new(2 * hop),
            info,
            layout,
            places,
            mean,
            scale,
            layers,
            norm_f,
        })
    }

    fn hop(&self) -> usize {
        self.mean.len() - 1
    }

    /// Working memory of a pass of `m` frames of all streams together.
    fn scratch_len(&self, m: usize) -> usize {
        let (f, d) = (self.mean.len(), self.norm_f.weight.len());
        let mixer = self.layers.iter().map(|l| l.mixer.scratch_len(m)).max().unwrap_or(0);
        2 * line(2 * self.hop()) // frame, output frame
            + line(self.stft.work_len())
            + line(m * 2 * f) // spectra
            + line(m * 2 * f) // features, then masks
            + 3 * line(m * d)
            + mixer
    }
}

impl Model for SpecMamba {
    fn info(&self) -> &Info {
        &self.info
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) {
        let (f, d, hop, m) = (self.mean.len(), self.norm_f.weight.len(), self.hop(), rows.len() * len);
        if m == 0 {
            return;
        }
        let s = &mut scratch.take(self.scratch_len(m));
        let (frame, shares) = (carve(s, 2 * hop), carve(s, 2 * hop));
        let work = carve(s, self.stft.work_len());
        let (spectra, values) = (carve(s, m * 2 * f), carve(s, m * 2 * f));
        let (residual, hidden, normed) = (carve(s, m * d), carve(s, m * d), carve(s, m * d));

        // X = STFT(x), features ln|X|² normalised
        for (r, row) in rows.iter_mut().enumerate() {
            for (t, x) in row.x[..len * hop].chunks_exact(hop).enumerate() {
                let tail = &mut row.state.data[self.places.tail.clone()];
                frame[..hop].copy_from_slice(tail);
                frame[hop..].copy_from_slice(x);
                tail.copy_from_slice(x);
                let spectrum = &mut spectra[(r * len + t) * 2 * f..][..2 * f];
                self.stft.analyse(frame, spectrum, work);
                let features = &mut values[(r * len + t) * f..][..f];
                for ((v, x), (mean, scale)) in
                    features.iter_mut().zip(spectrum.as_chunks::<2>().0).zip(self.mean.iter().zip(&self.scale))
                {
                    *v = ((x[0] * x[0] + x[1] * x[1] + FLOOR).ln() - mean) * scale;
                }
            }
        }

        // The network: linear, Mamba blocks on a running residual, norm, masks
        let features = Mat::new(values, m, f);
        linear(cx, features, &self.in_proj, Act::None, Store::Set, MatMut::new(hidden, m, d));
        residual.fill(0.0);
        let norm = |norm: &Norm, hidden: &[f32], residual: &mut [f32], normed: &mut [f32]| {
            let (r, n) = (MatMut::new(residual, m, d), MatMut::new(normed, m, d));
            add_norm(cx.level, norm, Mat::new(hidden, m, d), r, n);
        };
        for (layer, at) in self.layers.iter().zip(&self.places.layers) {
            norm(&layer.norm, hidden, residual, normed);
            let (x, out) = (Mat::new(normed, m, d), MatMut::new(hidden, m, d));
            layer.mixer.forward(cx, x, rows, len, Some(at), s, out);
        }
        norm(&self.norm_f, hidden, residual, normed);
        rows.iter_mut().for_each(|row| row.state.steps += len as u64);
        let mask = match &self.head {
            Head::Mask(mask) => mask,
            Head::Speech(vad) => {
                for (row, x) in rows.iter_mut().zip(normed.chunks_exact(len * d)) {
                    linear(cx, Mat::new(x, len, d), vad, Act::None, Store::Set, MatMut::new(&mut row.y[..len], len, 1));
                }
                return;
            }
            Head::Features => {
                for (row, x) in rows.iter_mut().zip(normed.chunks_exact(len * d)) {
                    row.y[..len * d].copy_from_slice(x);
                }
                return;
            }
        };
        linear(cx, Mat::new(normed, m, d), mask, Act::None, Store::Set, MatMut::new(values, m, 2 * f));

        // y = ISTFT(M · X)
        for (r, row) in rows.iter_mut().enumerate() {
            for (t, y) in row.y[..len * hop].chunks_exact_mut(hop).enumerate() {
                let spectrum = &mut spectra[(r * len + t) * 2 * f..][..2 * f];
                let (u, v) = values[(r * len + t) * 2 * f..][..2 * f].split_at(f);
                for (x, (u, v)) in spectrum.as_chunks_mut::<2>().0.iter_mut().zip(u.iter().zip(v)) {
                    let radius = (u * u + v * v + 1e-12).sqrt();
                    let bound = radius.tanh() / radius;
                    let (a, b) = (u * bound, v * bound);
                    *x = [a * x[0] - b * x[1], a * x[1] + b * x[0]];
                }
                self.stft.synthesise(spectrum, shares, work);
                let overlap = &mut row.state.data[self.places.overlap.clone()];
                y.iter_mut().zip(&*overlap).zip(&*shares).for_each(|((y, o), s)| *y = o + s);
                overlap.copy_from_slice(&shares[hop..]);
            }
        }
    }

    fn gap(&self, state: &mut State, periods: f64) {
        for (layer, at) in self.layers.iter().zip(&self.places.layers) {
            layer.mixer.gap(&mut state.data, at, periods);
        }
    }

    fn drain(&self, cx: &Cx, row: &mut Row, partial: usize, scratch: &mut Scratch) -> usize {
        if !matches!(self.head, Head::Mask(_)) {
            return 0;
        }
        let hop = self.hop();
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
        if matches!(self.head, Head::Mask(_)) { 4 * self.hop() } else { 0 }
    }

    fn upstream_state(&self, state: &State, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let (i, what) = name.strip_prefix("layer")?.split_once('.')?;
        let i: usize = i.parse().ok()?;
        self.layers.get(i)?.mixer.upstream_state(&state.data, self.places.layers.get(i)?, what)
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
