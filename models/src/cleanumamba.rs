//! CleanUMamba: a causal U-Net on the waveform with Mamba at its bottom (Groot et al. 2025, arXiv 2410.11062, Figure 1).
//!
//! Every level of the encoder halves the time axis (convolution of width 4, stride 2), every level of the decoder doubles
//! it. With E levels a hop is 2^E samples and a frame, the input that one hop of output needs, is 3·2^E - 2. The stream
//! form computes each value once: what an encoder gave waits in a delay line until the decoder comes round to it (the
//! last two rows are also what the next encoder's convolution reaches back to), and a decoder keeps the two rows in which
//! neighbouring frames overlap.
//!
//! The network was trained on clips divided by their standard deviation. A stream has no whole clip: see [`LevelRule`].

use crate::checkpoint::{Checkpoint, Reader};
use crate::config::{Fields, whole};
use crate::error::Error;
use crate::families::{Family, LevelRule, Options};
use crate::golden::{Golden, largest};
use crate::mixer::MixerState;
use crate::mixer2;
use crate::mixers::AnyMixer;
use crate::model::{Facts, Info, Model, Row, Scratch, Signal, carve, line};
use crate::state::{State, StateLayout};
use ssm_kernels::activation::glu;
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::norm::{Kind, Norm, add_norm};
use ssm_kernels::{Act, Cx, Mat, MatMut};
use std::ops::Range;
use std::sync::Arc;

pub(crate) const FAMILY: Family = Family {
    name: "cleanumamba",
    detect: |f| f.shape("encoder.0.0.weight").is_some() && f.shape("tsfm_conv1.weight").is_some(),
    open: |file, options| Ok(Arc::new(CleanUMamba::load(file, options)?)),
    verify,
};

/// Hz of every published file.
const RATE: u32 = 16_000;
/// Added to the level, so that silence is not blown up.
const FLOOR: f32 = 1e-3;
/// Horizon of the smoothed level in seconds.
const HORIZON: f32 = 10.0;
/// Frames over which upstream's level is a mean, at most: f32 still has the last one's share.
const MEAN_FRAMES: f32 = (1 << 22) as f32;

/// Down: convolution 4/2, ReLU, 1x1, GLU.
struct Encoder {
    conv: Linear,    // (H, 4 · Cin), columns (tap, channel)
    squeeze: Linear, // (2 · Cout, H)
}

/// Up: 1x1, GLU, transposed convolution 4/2.
struct Decoder {
    expand: Linear, // (2 · C, Cin)
    conv: Linear,   // (4 · Cout, C), rows (tap, channel)
    bias: Vec<f32>, // (Cout)
    out_channels: usize,
}

struct Layer {
    norm: Norm,
    mixer: AnyMixer,
}

/// Places in the state.
struct Places {
    /// The last 2 · hop raw samples.
    raw: Range<usize>,
    /// Running level: value, number of hops it stands for.
    level: Range<usize>,
    /// Outputs of each encoder that the decoder has not come to yet.
    skips: Vec<Range<usize>>,
    /// Last two rows of each decoder, without bias, to be overlapped.
    overlap: Vec<Range<usize>>,
    layers: Vec<MixerState>,
}

struct CleanUMamba {
    info: Info,
    layout: StateLayout,
    places: Places,
    rule: LevelRule,
    hop: usize,
    encoder: Vec<Encoder>,
    conv1: Linear, // (D, C)
    layers: Vec<Layer>,
    norm_f: Norm,
    conv2: Linear, // (C, D)
    decoder: Vec<Decoder>,
}

impl CleanUMamba {
    fn load(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let level = options.level;
        let w = Reader::new(file);
        // At least 1: an empty tensor is of the wrong shape then.
        let dim = |name: &str, i: usize| w.shape(name).and_then(|s| s.get(i)).copied().unwrap_or(0).max(1);
        let levels = (0..MAX_LEVELS).take_while(|i| w.has(&format!("encoder.{i}.0.weight"))).count();
        let mut channels = dim("encoder.0.0.weight", 1);
        if channels != 1 {
            return Err(Error::Config {
                file: file.path.display().to_string(),
                field: "encoder.0.0.weight".into(),
                expected: "one input channel".into(),
                got: channels.to_string(),
            });
        }
        let (mut encoder, mut skip_channels) = (Vec::new(), Vec::new());
        for i in 0..levels {
            let w = w.at(&format!("encoder.{i}."));
            let rows = |name: &str| w.shape(name).and_then(|s| s.first()).copied().unwrap_or(0);
            let (inner, out) = (rows("0.weight").max(1), (rows("2.weight") / 2).max(1));
            let conv = w.take("0.weight", &[inner, channels, 4])?;
            let squeeze = w.take("2.weight", &[2 * out, inner, 1])?;
            let (b0, b2) = (w.take("0.bias", &[inner])?, w.take("2.bias", &[2 * out])?);
            let c = channels;
            encoder.push(Encoder {
                conv: Linear::pack_with(level, inner, 4 * c, Some(&b0), |o, k| conv[(o * c + k % c) * 4 + k / c]),
                squeeze: Linear::pack(level, &squeeze, 2 * out, inner, Some(&b2)),
            });
            channels = out;
            skip_channels.push(out);
        }
        w.require(&["norm_f.weight"])?;
        let d = dim("norm_f.weight", 0);
        let conv1 = w.take("tsfm_conv1.weight", &[d, channels, 1])?;
        let conv1_bias = w.take("tsfm_conv1.bias", &[d])?;
        let norm = |w: &Reader<'_>, name: &str| -> Result<Norm, Error> {
            let weight = w.take(&format!("{name}.weight"), &[d])?;
            Ok(Norm::new(Kind::Layer, weight, Some(w.take(&format!("{name}.bias"), &[d])?), 1e-5))
        };
        let fields = Fields::new(options.config.as_ref(), file.path.display().to_string());
        let mut layers = Vec::new();
        while w.has(&format!("tsfm_Mamba_layers.{}.norm.weight", layers.len())) {
            let w = w.at(&format!("tsfm_Mamba_layers.{}.", layers.len()));
            let mixer = AnyMixer::load(&w.at("mixer."), level, d, &fields)?;
            layers.push(Layer { norm: norm(&w, "norm")?, mixer });
        }
        let network = options.config.as_ref().map(|c| c.get("network_config").unwrap_or(c));
        let said = Fields::new(network, file.path.display().to_string());
        // The stride is not to be seen in the tensors, and the published networks have one.
        if let Some((_, stride)) = said.get(&["stride"]).filter(|(_, v)| whole(v) != Some(2)) {
            return Err(said.bad("stride", "2, as the published networks have", stride));
        }
        let sizes = [("tsfm_n_layers", layers.len()), ("encoder_n_layers", levels), ("kernel_size", 4)];
        sizes.into_iter().try_for_each(|(name, size)| said.agree(&[name], size))?;
        let norm_f = norm(&w, "norm_f")?;
        let conv2 = w.take("tsfm_conv2.weight", &[channels, d, 1])?;
        let conv2_bias = w.take("tsfm_conv2.bias", &[channels])?;
        let mut decoder = Vec::new();
        for j in 0..levels {
            let w = w.at(&format!("decoder.{j}."));
            let inner = w.shape("0.weight").and_then(|s| s.first()).copied().unwrap_or(0) / 2;
            let out = w.shape("2.weight").and_then(|s| s.get(1)).copied().unwrap_or(0);
            // What comes out meets the skip of the next level up; what comes out last is the waveform.
            let meets = if j + 1 < levels { skip_channels[levels - 2 - j] } else { 1 };
            let expand = w.take("0.weight", &[2 * inner, channels, 1])?;
            let conv = w.take("2.weight", &[inner, meets, 4])?;
            let (b0, b2) = (w.take("0.bias", &[2 * inner])?, w.take("2.bias", &[meets])?);
            decoder.push(Decoder {
                expand: Linear::pack(level, &expand, 2 * inner, channels, Some(&b0)),
                conv: Linear::pack_with(level, 4 * out, inner, None, |o, k| conv[(k * out + o % out) * 4 + o / out]),
                bias: b2,
                out_channels: out,
            });
            channels = out;
        }
        w.finish()?;

        let bottom = skip_channels.last().copied().unwrap_or(1);
        let hop = 1usize << levels;
        let mut layout = StateLayout::new();
        let places = Places {
            raw: layout.add("raw", &[2 * hop]),
            level: layout.add("level", &[2]),
            skips: (0..levels)
                .map(|i| layout.add(format!("encoder.{i}.skip"), &[waiting(levels, i), skip_channels[i]]))
                .collect(),
            overlap: decoder
                .iter()
                .enumerate()
                .map(|(j, l)| layout.add(format!("decoder.{j}.overlap"), &[2, l.out_channels]))
                .collect(),
            layers: layers
                .iter()
                .enumerate()
                .map(|(i, l)| l.mixer.state(&mut layout, &format!("tsfm_Mamba_layers.{i}")))
                .collect(),
        };
        let said = options.config.as_ref().and_then(|c| c.get("level_rule")).and_then(|v| v.as_str());
        let rule = match (options.level_rule, said) {
            (LevelRule::Model, Some("none")) => LevelRule::Fixed(1.0),
            (LevelRule::Model, Some("upstream")) => LevelRule::Upstream,
            (LevelRule::Model, None | Some("smoothed")) => LevelRule::Smoothed,
            (LevelRule::Model, Some(other)) => {
                return Err(Error::Config {
                    file: file.path.display().to_string(),
                    field: "level_rule".into(),
                    expected: "none, smoothed or upstream".into(),
                    got: other.into(),
                });
            }
            (chosen, _) => chosen,
        };
        let inner: Vec<String> = layers.iter().map(|l| format!("({})", l.mixer.sizes())).collect();
        let info = Info {
            family: FAMILY.name,
            facts: Facts { levelled: true, ..Facts::default() },
            sizes: format!(
                "{levels} levels, d_model {d}, mixers {}, frame {}, hop {hop}, {RATE} Hz",
                inner.join(" "),
                3 * hop - 2
            ),
            parameters: file.parameters(),
            input: Signal::Samples { hop, rate: RATE },
            output: Signal::Samples { hop, rate: RATE },
            delay: 2 * hop,
            hash: file.hash(&format!("level={rule:?} {:?}", mixer2::Config::read(&fields)?)),
        };
        Ok(Self {
            conv1: Linear::pack(level, &conv1, d, bottom, Some(&conv1_bias)),
            conv2: Linear::pack(level, &conv2, bottom, d, Some(&conv2_bias)),
            info,
            layout,
            places,
            rule,
            hop,
            encoder,
            layers,
            norm_f,
            decoder,
        })
    }

    /// Samples of a frame.
    fn frame(&self) -> usize {
        3 * self.hop - 2
    }

    /// Rows that encoder `i` gives for `hops` hops.
    fn rows(&self, i: usize, hops: usize) -> usize {
        (hops * self.hop) >> (i + 1)
    }

    /// Rows of encoder `i`'s output that wait for the decoder between two hops: 62, 30, 14, 6, 2, 0 for six levels.
    fn waiting(&self, i: usize) -> usize {
        waiting(self.encoder.len(), i)
    }

    /// Values of the widest intermediate of a pass of `hops` hops.
    fn widest(&self, hops: usize) -> usize {
        let rows = |i| self.waiting(i) + self.rows(i, hops);
        let down = self.encoder.iter().enumerate().map(|(i, e)| rows(i) * e.conv.n().max(e.squeeze.n()));
        let up = self.decoder.iter().enumerate().map(|(j, d)| {
            let rows = rows(self.encoder.len() - 1 - j);
            (rows * d.expand.n().max(d.conv.n()).max(d.expand.k())).max((2 * rows + 2) * d.out_channels)
        });
        down.chain(up).max().unwrap_or(0)
    }

    /// Working memory of a pass of `hops` hops of one stream.
    fn scratch_len(&self, hops: usize) -> usize {
        let skips: usize = (0..self.encoder.len())
            .map(|i| line((self.waiting(i) + self.rows(i, hops)) * self.encoder[i].squeeze.n() / 2))
            .sum();
        let mixer = self.layers.iter().map(|l| l.mixer.scratch_len(hops)).max().unwrap_or(0);
        line((hops + 2) * self.hop)
            + line(3 * self.hop)
            + line(hops)
            + skips
            + 4 * line(self.widest(hops))
            + 3 * line(hops * self.norm_f.weight.len())
            + mixer
    }

    /// The divisor of the hop whose frame is given, after the running level has taken the frame in.
    fn divisor(&self, level: &mut [f32], frame: &[f32]) -> f32 {
        let mean_of = |x: &[f32], f: &dyn Fn(f32) -> f32| x.iter().map(|x| f(*x)).sum::<f32>() / x.len() as f32;
        match self.rule {
            LevelRule::Fixed(level) => level,
            LevelRule::Upstream => {
                let mean = mean_of(frame, &|x| x);
                let n = frame.len() as f32;
                let std = (mean_of(frame, &|x| (x - mean) * (x - mean)) * n / (n - 1.0)).sqrt();
                // Behind as many frames as f32 can tell apart, older ones fade.
                level[1] = (level[1] + 1.0).min(MEAN_FRAMES);
                level[0] += (std - level[0]) / level[1];
                level[0] + FLOOR
            }
            LevelRule::Smoothed | LevelRule::Model => {
                let power = |x: &[f32]| mean_of(x, &|x| x * x);
                if level[1] == 0.0 {
                    (level[0], level[1]) = (power(frame), 3.0);
                } else {
                    level[1] = (level[1] + 1.0).min(HORIZON * RATE as f32 / self.hop as f32);
                    level[0] += (power(&frame[frame.len() - self.hop..]) - level[0]) / level[1];
                }
                level[0].max(0.0).sqrt() + FLOOR
            }
        }
    }

    /// The divisor of the newest hop, without taking anything in.
    fn last_divisor(&self, level: &[f32]) -> f32 {
        match self.rule {
            LevelRule::Fixed(level) => level,
            LevelRule::Upstream => level[0] + FLOOR,
            LevelRule::Smoothed | LevelRule::Model => level[0].max(0.0).sqrt() + FLOOR,
        }
    }

    /// `hops` hops of one stream: `x` is taken in, `y` is what the frames that are now complete give. `padded`: `x` is
    /// no input but zeros behind its end, which the running level is not to see.
    fn pass(&self, cx: &Cx, row: &mut Row, x: &[f32], y: &mut [f32], padded: bool, mut scratch: &mut [f32]) {
        let (hop, frame, depth) = (self.hop, self.frame(), self.encoder.len());
        let hops = x.len() / hop;
        let first = row.state.steps == 2;
        row.state.steps += hops as u64;
        let s = &mut scratch;
        let buffer = carve(s, (hops + 2) * hop);
        let (scaled, divisors) = (carve(s, 3 * hop), carve(s, hops));
        let state = &mut row.state.data;
        buffer[..2 * hop].copy_from_slice(&state[self.places.raw.clone()]);
        buffer[2 * hop..].copy_from_slice(x);
        state[self.places.raw.clone()].copy_from_slice(&buffer[hops * hop..]);

        // Each encoder's output behind what of it still waits; the first pass of a stream fills the delay lines too.
        let mut outputs: [&mut [f32]; MAX_LEVELS] = Default::default();
        for (i, out) in outputs.iter_mut().enumerate().take(depth) {
            let (c, rows) = (self.encoder[i].squeeze.n() / 2, self.waiting(i) + self.rows(i, hops));
            *out = carve(s, rows * c);
            if !first {
                out[..self.waiting(i) * c].copy_from_slice(&state[self.places.skips[i].clone()]);
            }
        }
        let widest = self.widest(hops);
        let (t1, t2) = (carve(s, widest), carve(s, widest));
        for i in 0..depth {
            let e = &self.encoder[i];
            let (inner, c) = (e.conv.n(), e.squeeze.n() / 2);
            let fresh = if first { 0 } else { self.waiting(i) };
            let rows = self.waiting(i) + self.rows(i, hops) - fresh;
            if i == 0 {
                let mut done = 0;
                for h in 0..hops {
                    let whole = &buffer[h * hop..][..frame];
                    let level = &mut state[self.places.level.clone()];
                    let divisor =
                        if padded && level[1] > 0.0 { self.last_divisor(level) } else { self.divisor(level, whole) };
                    divisors[h] = divisor;
                    let part = if first && h == 0 { whole } else { &whole[frame - hop - 2..] };
                    scaled.iter_mut().zip(part).for_each(|(s, x)| *s = x / divisor);
                    let n = (part.len() - 2) / 2;
                    let out = MatMut::new(&mut t1[done * inner..], n, inner);
                    linear(cx, Mat::windows(scaled, n, 4, 2), &e.conv, Act::Relu, Store::Set, out);
                    done += n;
                }
            } else {
                let cin = e.conv.k() / 4;
                // The convolution reaches two rows back, into what the encoder above gave before.
                let from = if first { 0 } else { self.waiting(i - 1) - 2 };
                let input = Mat::windows(&outputs[i - 1][from * cin..], rows, 4 * cin, 2 * cin);
                linear(cx, input, &e.conv, Act::Relu, Store::Set, MatMut::new(t1, rows, inner));
            }
            linear(cx, Mat::new(t1, rows, inner), &e.squeeze, Act::None, Store::Set, MatMut::new(t2, rows, 2 * c));
            glu(cx.level, MatMut::new(t2, rows, 2 * c));
            for (out, t2) in outputs[i][fresh * c..].chunks_exact_mut(c).zip(t2.chunks_exact(2 * c)) {
                out.copy_from_slice(&t2[..c]);
            }
            let wait = outputs[i].len() - self.waiting(i) * c;
            state[self.places.skips[i].clone()].copy_from_slice(&outputs[i][wait..]);
        }

        // The bottom: 1x1, Mamba blocks on a running residual, norm, 1x1.
        let d = self.norm_f.weight.len();
        let (residual, hidden, normed) = (carve(s, hops * d), carve(s, hops * d), carve(s, hops * d));
        let bottom = Mat::new(outputs[depth - 1], hops, self.conv1.k());
        linear(cx, bottom, &self.conv1, Act::None, Store::Set, MatMut::new(hidden, hops, d));
        residual.fill(0.0);
        let norm = |norm: &Norm, hidden: &[f32], residual: &mut [f32], normed: &mut [f32]| {
            let (r, n) = (MatMut::new(residual, hops, d), MatMut::new(normed, hops, d));
            add_norm(cx, norm, Mat::new(hidden, hops, d), r, n);
        };
        for (layer, at) in self.layers.iter().zip(&self.places.layers) {
            norm(&layer.norm, hidden, residual, normed);
            let (x, out) = (Mat::new(normed, hops, d), MatMut::new(hidden, hops, d));
            layer.mixer.forward(cx, x, std::slice::from_mut(row), hops, at, s, out);
        }
        norm(&self.norm_f, hidden, residual, normed);
        let (up, next) = (carve(s, widest), carve(s, widest));
        let out = MatMut::new(up, hops, self.conv2.n());
        linear(cx, Mat::new(normed, hops, d), &self.conv2, Act::None, Store::Set, out);

        let skips: [&[f32]; MAX_LEVELS] = outputs.map(|o| &*o);
        let wave = self.decode(cx, &mut row.state, &skips, hops, false, [up, next, t1, t2]);
        for ((y, x), divisor) in y.chunks_exact_mut(hop).zip(wave.chunks_exact(hop)).zip(&*divisors) {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = x * divisor);
        }
    }

    /// The decoder: `rows` rows of the bottom lie in `buffers[0]`, each level's skips in `skips`. `last`: the stream ends
    /// here, and what overlaps with frames that will not come is given out as well.
    fn decode<'a>(
        &self,
        cx: &Cx,
        state: &mut State,
        skips: &[&[f32]; MAX_LEVELS],
        mut rows: usize,
        last: bool,
        [mut x, mut next, t1, t2]: [&'a mut [f32]; 4],
    ) -> &'a [f32] {
        for (j, layer) in self.decoder.iter().enumerate() {
            let (cin, inner, cout) = (layer.expand.k(), layer.conv.k(), layer.out_channels);
            let skip = skips[self.decoder.len() - 1 - j];
            x[..rows * cin].iter_mut().zip(skip).for_each(|(x, s)| *x += s);
            let out = MatMut::new(t1, rows, 2 * inner);
            linear(cx, Mat::new(x, rows, cin), &layer.expand, Act::None, Store::Set, out);
            glu(cx.level, MatMut::new(t1, rows, 2 * inner));
            let gated = Mat::new(t1, rows, 2 * inner).columns(0..inner);
            linear(cx, gated, &layer.conv, Act::None, Store::Set, MatMut::new(t2, rows, 4 * cout));
            // Row t gives rows 2t .. 2t + 4, which overlap with its neighbours'.
            let overlap = &mut state.data[self.places.overlap[j].clone()];
            let sum = &mut next[..(2 * rows + 2) * cout];
            sum.fill(0.0);
            sum[..2 * cout].copy_from_slice(overlap);
            for (t, row) in t2[..rows * 4 * cout].chunks_exact(4 * cout).enumerate() {
                sum[2 * t * cout..][..4 * cout].iter_mut().zip(row).for_each(|(s, r)| *s += r);
            }
            overlap.copy_from_slice(&sum[2 * rows * cout..]);
            rows = 2 * rows + if last { 2 } else { 0 };
            let waveform = j + 1 == self.decoder.len();
            for row in sum[..rows * cout].chunks_exact_mut(cout) {
                for (v, b) in row.iter_mut().zip(&layer.bias) {
                    *v += b;
                    if !waveform {
                        *v = v.max(0.0);
                    }
                }
            }
            std::mem::swap(&mut x, &mut next);
        }
        &x[..rows]
    }
}

/// Levels that a file may have: a hop of 2^15 samples.
const MAX_LEVELS: usize = 15;

/// Rows of encoder `i` of `levels` that wait for the decoder between two hops.
fn waiting(levels: usize, i: usize) -> usize {
    (2 << (levels - 1 - i)) - 2
}

impl Model for CleanUMamba {
    fn info(&self) -> &Info {
        &self.info
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) {
        for row in rows {
            let (x, mut y) = (std::mem::take(&mut row.x), std::mem::take(&mut row.y));
            // Two hops have to be in before the first frame is complete.
            let fill = len.min(2usize.saturating_sub(row.state.steps.min(2) as usize));
            for x in x[..fill * self.hop].chunks_exact(self.hop) {
                let raw = &mut row.state.data[self.places.raw.clone()];
                raw.copy_within(self.hop.., 0);
                raw[self.hop..].copy_from_slice(x);
                row.state.steps += 1;
            }
            y[..fill * self.hop].fill(0.0);
            let part = fill * self.hop..len * self.hop;
            if !part.is_empty() {
                let s = scratch.take(self.scratch_len(len));
                self.pass(cx, row, &x[part.clone()], &mut y[part], false, s);
            }
            (row.x, row.y) = (x, y);
        }
    }

    fn gap(&self, state: &mut State, periods: f64) {
        for (layer, at) in self.layers.iter().zip(&self.places.layers) {
            layer.mixer.gap(&mut state.data, at, periods);
        }
    }

    fn drain(&self, cx: &Cx, row: &mut Row, partial: usize, scratch: &mut Scratch) -> usize {
        let (hop, frame) = (self.hop, self.frame());
        let total = row.state.steps as usize * hop + partial;
        let given = (row.state.steps as usize).saturating_sub(2) * hop;
        let left = total - given;
        if left == 0 {
            return 0;
        }
        // Frames that the padded clip has; the last of them reaches the end.
        let frames = total.saturating_sub(frame).div_ceil(hop) + 1;
        let s = scratch.take(self.scratch_len(1) + line(hop) + line(left + 3 * hop));
        let mut s = s;
        let (x, y) = (carve(&mut s, hop), carve(&mut s, left + 3 * hop));
        x.fill(0.0);
        x[..partial].copy_from_slice(&row.x[..partial]);
        let mut done = given;
        while done < frames * hop {
            if row.state.steps < 2 {
                let raw = &mut row.state.data[self.places.raw.clone()];
                raw.copy_within(hop.., 0);
                raw[hop..].copy_from_slice(x);
                row.state.steps += 1;
            } else {
                self.pass(cx, row, x, &mut y[done - given..][..hop], true, s);
                done += hop;
            }
            x.fill(0.0);
        }
        if done < total {
            let mut outputs: [&[f32]; MAX_LEVELS] = Default::default();
            let widest = self.widest(1);
            let (skips, s) = s.split_at_mut(s.len() - 4 * line(widest));
            let (mut skips, mut s) = (skips, s);
            for (out, at) in outputs.iter_mut().zip(&self.places.skips) {
                let copy = carve(&mut skips, at.len());
                copy.copy_from_slice(&row.state.data[at.clone()]);
                *out = copy;
            }
            let buffers = [(); 4].map(|()| carve(&mut s, widest));
            let wave = self.decode(cx, &mut row.state, &outputs, 0, true, buffers);
            let divisor = self.last_divisor(&row.state.data[self.places.level.clone()]);
            y[done - given..].iter_mut().zip(wave).for_each(|(y, x)| *y = x * divisor);
        }
        row.y[..left].copy_from_slice(&y[..left]);
        left
    }

    fn drain_len(&self) -> usize {
        3 * self.hop
    }

    fn upstream_state(&self, state: &State, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let (i, what) = name.strip_prefix("layer")?.split_once('.')?;
        let i: usize = i.parse().ok()?;
        self.layers.get(i)?.mixer.upstream_state(&state.data, self.places.layers.get(i)?, what)
    }
}

/// Golden files: a whole clip at its own level, the stream at the clip's level and at upstream's running one, the state.
fn verify(g: &mut Golden<'_>) -> Result<(), Error> {
    const TOL: f32 = 5e-6;
    let (shape, x) = g.tensor("__input__")?;
    let clips: Vec<&[f32]> = x.chunks(shape.last().copied().unwrap_or(0).max(1)).collect();
    // The file's numbers hold the floor already.
    let divisors = if g.has("__std__") {
        let (shape, divisors) = g.tensor("__std__")?;
        if divisors.len() != clips.len() {
            let expected = format!("__std__ of each of {} clips", clips.len());
            return Err(Error::Input { expected, got: format!("{shape:?}") });
        }
        divisors
    } else {
        let of = |x: &&[f32]| {
            let n = x.len() as f32;
            let mean = x.iter().sum::<f32>() / n;
            (x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / (n - 1.0)).sqrt() + FLOOR
        };
        clips.iter().map(of).collect()
    };
    for (name, running, whole) in [
        ("__output__", false, true),
        ("__output_stream_fixed_std__", false, false),
        ("__output_stream_running_std__", true, false),
    ] {
        if !g.has(name) {
            continue;
        }
        let mut got = Vec::new();
        for (i, (x, divisor)) in clips.iter().zip(&divisors).enumerate() {
            let level_rule = if running { LevelRule::Upstream } else { LevelRule::Fixed(*divisor) };
            let model = g.open(&Options { level_rule, ..g.open_options() })?;
            // Upstream's stream gives a hop as soon as its frame is there, which is two samples before our hop is full.
            let x = if whole { x.to_vec() } else { [x, &[0.0; 2][..]].concat() };
            let (y, state) = g.run_samples(&*model, &x, whole)?;
            got.extend(y);
            if name == "__output_stream_fixed_std__" {
                // Values inside the network are several times those of the waveform.
                g.compare_state("__state__.", &*model, &state, i, |want| 4.0 * TOL * largest(want).max(1.0))?;
            }
        }
        g.check_scaled(name, &got, TOL)?;
    }
    Ok(())
}
