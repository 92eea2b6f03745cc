//! aTENNuate: a U-Net of state-space layers on the waveform (Pei et al. 2024, arXiv 2409.03377, Figure 1).
//!
//! Level i holds frames of `channels[i]` values, one for every R_i samples. Going down, each level runs a block and
//! gathers r_i frames to one of the next level; at the bottom two more blocks run; going up, each frame is spread over
//! r_i frames, what the level held on the way down is added, and another block runs. Two blocks of one channel finish. A
//! block: depthwise convolution over three frames, one of them to come; a layer of complex poles
//! (`s ← λ s + Δ B x`, `y = C Re s`); LayerNorm and SiLU. One-channel blocks have neither convolution nor norm.
//!
//! The stream form computes each value once, as soon as what it needs is there. Every convolution lets its level lag by
//! a frame, which adds up to 1012 samples for the published sizes (63 ms; with the block of 256 samples that has to be
//! complete, 79 ms). What a level held waits for the way up in a delay line. The result is the offline network's on the
//! clip padded with zeros to whole blocks; at the end of the stream every convolution sees a zero in its own level, not
//! what silence would have become by then.

use crate::checkpoint::{Checkpoint, Reader};
use crate::config::{Fields, whole};
use crate::error::Error;
use crate::families::{Family, Options};
use crate::golden::Golden;
use crate::model::{Facts, Info, Model, Row, Scratch, Signal, carve, line};
use crate::state::{State, StateLayout};
use serde_json::Value;
use ssm_kernels::activation::apply;
use ssm_kernels::causal_conv1d::{Conv, Time, causal_conv1d};
use ssm_kernels::complex_scan::{Poles, complex_filter, complex_scan};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::norm::{Kind, Norm, norm};
use ssm_kernels::{Act, Cx, Mat, MatMut};
use std::ops::Range;
use std::sync::Arc;

pub(crate) const FAMILY: Family = Family {
    name: "attenuate",
    detect: |f| f.shape("down_ssms.0.1.weight").is_some() && f.shape("up_ssms.0.0.weight").is_some(),
    open: |file, options| Ok(Arc::new(Attenuate::load(file, options)?)),
    verify,
};

/// Hz of the published file.
const RATE: u32 = 16_000;
/// Levels that a file may have.
const MAX_LEVELS: usize = 12;
/// Samples of a block at most.
const MAX_HOP: usize = 1 << 14;
/// Blocks that are run together, however many a call brings.
const TOGETHER: usize = 8;
/// Blocks after which a stream no longer counts; every stage has long had its full lag.
const MAX_STEPS: u64 = 1 << 40;
/// Frames whose states are computed together: they stay in the second-level cache.
const STRIP: usize = 64;

/// A layer of complex poles.
struct Ssm {
    poles: Poles,
    /// ln λ, for gaps.
    log_poles: Vec<(f64, f64)>,
    map: Map,
}

/// Maps to the states and back.
struct Both {
    b: Linear, // (n, c)
    c: Linear, // (c, n)
}

enum Map {
    /// One channel in and out: Δ B C of each state.
    One(Vec<f32>),
    /// B, scaled by Δ, and C.
    Many(Box<Both>),
}

struct Block {
    pre_conv: Option<Conv>,
    ssm: Ssm,
    layer_norm: Option<Norm>,
    act: Act,
    channels: usize,
    /// The convolution's last two frames, the poles' state.
    tail: Range<usize>,
    s: Range<usize>,
}

struct Down {
    block: Block,
    map: Linear, // (c', r · c), columns (frame, channel)
    factor: usize,
    /// Frames after the block that do not make one of the next level yet: (r - 1, c).
    pending: Range<usize>,
    /// What went into the block and waits for the way up.
    skip: Range<usize>,
}

struct Up {
    map: Linear, // (r · c, c'), rows (frame, channel)
    block: Block,
    factor: usize,
}

struct Attenuate {
    info: Info,
    layout: StateLayout,
    hop: usize,
    down: Vec<Down>,
    hid: Vec<Block>,
    up: Vec<Up>,
    last: Vec<Block>,
}

/// What can be looked at on the way: frames of a level, (frames, channels).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tap {
    Down(usize),
    Hid,
    Up(usize),
}

impl Ssm {
    /// Reads the layer at the reader's place; `name` is the block's, for errors.
    fn load(w: &Reader<'_>, options: &Options, c: usize, name: &str) -> Result<Self, Error> {
        let n = w.shape("log_dt").and_then(|s| s.first()).copied().unwrap_or(0);
        let log_dt = w.take("log_dt", &[n])?;
        let a = w.take("A", &[n, 2])?;
        let (b, out) = (w.take("B", &[n, c])?, w.take("C", &[c, n])?);
        let dt: Vec<f64> = log_dt.iter().map(|v| f64::from(*v).exp()).collect();
        // λ = exp(Δ (-softplus(a₀) + i a₁))
        let log_poles: Vec<(f64, f64)> = dt
            .iter()
            .zip(a.chunks_exact(2))
            .map(|(dt, a)| {
                let a0 = f64::from(a[0]);
                let rate = if a0 > 20.0 { a0 } else { a0.exp().ln_1p() };
                (-dt * rate, dt * f64::from(a[1]))
            })
            .collect();
        let wild = |v: f64| !v.is_finite() || v.abs() > 1e15;
        if let Some(i) = (0..n).find(|i| wild(dt[*i]) || wild(log_poles[*i].0) || wild(log_poles[*i].1)) {
            return Err(Error::Config {
                file: name.into(),
                field: "log_dt".into(),
                expected: "steps that give finite poles".into(),
                got: format!("{} at state {i}", log_dt[i]),
            });
        }
        let poles = Poles::new(log_poles.iter().map(|(re, im)| (re.exp() * im.cos(), re.exp() * im.sin())));
        let map = if c == 1 {
            let gain = |i: usize| (dt[i] * f64::from(b[i]) * f64::from(out[i])) as f32;
            Map::One((0..n).map(gain).collect())
        } else {
            Map::Many(Box::new(Both {
                b: Linear::pack_with(options.level, n, c, None, |i, k| (dt[i] * f64::from(b[i * c + k])) as f32),
                c: Linear::pack(options.level, &out, c, n, None),
            }))
        };
        Ok(Self { poles, log_poles, map })
    }

    /// `m` frames of `x`, in place.
    fn run(&self, cx: &Cx, s: &mut [f32], x: &mut [f32], channels: usize, states: &mut [f32], y: &mut [f32]) {
        match &self.map {
            Map::One(gain) => {
                let y = &mut y[..x.len()];
                complex_filter(cx.level, &self.poles, gain, s, x, y);
                x.copy_from_slice(y);
            }
            Map::Many(both) => {
                let Both { b, c } = &**both;
                let n = self.poles.n();
                for x in x.chunks_mut(STRIP * channels) {
                    // u = Δ B x; u = Re s; y = C u
                    let m = x.len() / channels;
                    let u = &mut states[..m * n];
                    linear(cx, Mat::new(x, m, channels), b, Act::None, Store::Set, MatMut::new(u, m, n));
                    complex_scan(cx.level, &self.poles, s, MatMut::new(u, m, n));
                    linear(cx, Mat::new(u, m, n), c, Act::None, Store::Set, MatMut::new(x, m, channels));
                }
            }
        }
    }

    /// The state fades over `frames` frames.
    fn gap(&self, s: &mut [f32], frames: f64) {
        let (re, im) = s.split_at_mut(self.poles.n());
        for ((re, im), (log_r, angle)) in re.iter_mut().zip(im).zip(&self.log_poles) {
            let (r, (sin, cos)) = ((log_r * frames).exp(), (angle * frames).sin_cos());
            let (a, b) = (f64::from(*re), f64::from(*im));
            (*re, *im) = ((r * (cos * a - sin * b)) as f32, (r * (cos * b + sin * a)) as f32);
        }
    }
}

impl Block {
    fn load(
        w: &Reader<'_>,
        options: &Options,
        channels: usize,
        active: bool,
        layout: &mut StateLayout,
        name: &str,
    ) -> Result<Self, Error> {
        let pre_conv = if w.has("0.weight") {
            let (weight, bias) = (w.take("0.weight", &[channels, 1, 3])?, w.take_optional("0.bias", &[channels])?);
            Some(Conv::new(&weight, channels, bias.as_deref()))
        } else {
            None
        };
        let at = usize::from(pre_conv.is_some());
        let ssm = Ssm::load(&w.at(&format!("{at}.")), options, channels, name)?;
        let after = w.at(&format!("{}.layer_norm.", at + 1));
        let layer_norm = if after.has("weight") {
            let (weight, bias) = (after.take("weight", &[channels])?, after.take("bias", &[channels])?);
            Some(Norm::new(Kind::Layer, weight, Some(bias), 1e-5))
        } else {
            None
        };
        // A block of several channels is active if it has a norm; one of one channel says nothing about itself.
        let active = if channels > 1 { layer_norm.is_some() } else { active };
        Ok(Self {
            tail: layout.add(format!("{name}.tail"), &[pre_conv.as_ref().map_or(0, |_| 2), channels]),
            s: layout.add(format!("{name}.s"), &[2, ssm.poles.n()]),
            act: if active { Act::Silu } else { Act::None },
            pre_conv,
            ssm,
            layer_norm,
            channels,
        })
    }

    /// Frames by which the block lags behind its input.
    fn lag(&self) -> u64 {
        u64::from(self.pre_conv.is_some())
    }

    /// Frames that the block has given after `frames` frames; at the end of the stream, all.
    fn after(&self, frames: u64, ended: bool) -> u64 {
        if ended { frames } else { frames.saturating_sub(self.lag()) }
    }

    /// Takes `m` frames from the front of `x`, after `before` frames, and leaves those that are now complete there;
    /// returns their number. At the end of the stream the last frame is followed by zeros. `x` and `t` have room for a
    /// frame more.
    fn run(
        &self,
        cx: &Cx,
        state: &mut [f32],
        before: u64,
        mut m: usize,
        ended: bool,
        x: &mut [f32],
        (t, states): (&mut [f32], &mut [f32]),
    ) -> usize {
        let c = self.channels;
        if let Some(conv) = &self.pre_conv
            && before + m as u64 > 0
        {
            if ended {
                x[m * c..][..c].fill(0.0);
                m += 1;
            }
            let (input, out) = (Mat::new(x, m, c), MatMut::new(t, m, c));
            causal_conv1d(cx, conv, input, Act::None, Time::Forward, &mut state[self.tail.clone()], out);
            // The causal form gives frame k - 1 at step k: what it gives first belongs to no frame.
            let first = usize::from(before == 0).min(m);
            m -= first;
            x[..m * c].copy_from_slice(&t[first * c..][..m * c]);
        }
        let x = &mut x[..m * c];
        self.ssm.run(cx, &mut state[self.s.clone()], x, c, states, t);
        if let Some(layer_norm) = &self.layer_norm {
            t[..m * c].copy_from_slice(x);
            norm(cx, layer_norm, Mat::new(t, m, c), MatMut::new(x, m, c));
        }
        apply(cx.level, self.act, x);
        m
    }

    fn gap(&self, state: &mut [f32], frames: f64) {
        self.ssm.gap(&mut state[self.s.clone()], frames);
    }
}

/// Frames that every stage has taken in after so many samples.
#[derive(Clone, Copy, Default)]
struct Counts {
    /// Into each level's block on the way down.
    down: [u64; MAX_LEVELS],
    /// Out of it.
    gathered: [u64; MAX_LEVELS],
    /// Into each block at the bottom; MAX_LEVELS of them at most.
    hid: [u64; MAX_LEVELS],
    /// Into each level's block on the way up.
    up: [u64; MAX_LEVELS],
    /// Out of the network.
    out: u64,
}

impl Attenuate {
    fn load(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let bad = |field: &str, expected: String, got: String| Error::Config {
            file: file.path.display().to_string(),
            field: field.into(),
            expected,
            got,
        };
        let w = Reader::new(file);
        let fields = Fields::new(options.config.as_ref(), file.path.display().to_string());
        let (level, mut layout) = (options.level, StateLayout::new());
        let levels = (0..).take_while(|i| w.has(&format!("down_ssms.{i}.1.weight"))).count();
        let hids = (0..).take_while(|i| has_block(&w.at(&format!("hid_ssms.{i}.")))).count();
        let lasts = (0..).take_while(|i| has_block(&w.at(&format!("last_ssms.{i}.")))).count();
        if levels == 0 || levels > MAX_LEVELS || hids > MAX_LEVELS {
            return Err(bad("down_ssms", format!("1 to {MAX_LEVELS} levels"), levels.max(hids).to_string()));
        }
        let (mut channels, mut factors) = (vec![1], vec![]);
        for i in 0..levels {
            let name = format!("down_ssms.{i}.1.weight");
            let shape = w.shape(&name).unwrap_or_default();
            let &[c, next, factor] = shape else {
                return Err(bad(&name, "[c, c', r]".into(), format!("{shape:?}")));
            };
            if c != channels[i] || next == 0 || factor == 0 {
                return Err(bad(&name, format!("[{}, c', r]", channels[i]), format!("{shape:?}")));
            }
            channels.push(next);
            factors.push(factor);
        }
        let hop = factors.iter().try_fold(1usize, |a, r| a.checked_mul(*r).filter(|h| *h <= MAX_HOP));
        let hop = hop.ok_or_else(|| bad("down_ssms", format!("{MAX_HOP} samples a block"), format!("{factors:?}")))?;

        let size = |v: &Value| usize::try_from(whole(v)?).ok();
        let sizes = |v: &Value| v.as_array()?.iter().map(size).collect::<Option<Vec<_>>>();
        // The input's one channel may stand in front, or be left out.
        for (name, tensors, front) in [("channels", &channels, 1), ("resample_factors", &factors, 0)] {
            let same = |v: &Value| sizes(v).is_some_and(|said| said == *tensors || said[..] == tensors[front..]);
            if let Some((_, said)) = fields.get(&[name]).filter(|(_, said)| !same(said)) {
                return Err(fields.contradiction(name, said, format!("{tensors:?}")));
            }
        }

        let (mut down, mut up) = (vec![], vec![]);
        // Behind a block that lags the frames of a call are no whole number of the next level's.
        let mut lags = false;
        for (i, &r) in factors.iter().enumerate() {
            let (c, next) = (channels[i], channels[i + 1]);
            let name = format!("down_ssms.{i}");
            let w = w.at(&format!("{name}."));
            let block = Block::load(&w.at("0."), options, c, true, &mut layout, &name)?;
            let map = w.take("1.weight", &[c, next, r])?;
            lags |= block.lag() > 0;
            down.push(Down {
                map: Linear::pack_with(level, next, r * c, None, |o, k| map[(k % c * next + o) * r + k / c]),
                pending: layout.add(format!("{name}.pending"), &[if lags { r - 1 } else { 0 }, c]),
                skip: 0..0,
                factor: r,
                block,
            });
        }
        let block = |kind: &str, i: usize, c: usize, active: bool, layout: &mut StateLayout| {
            let name = format!("{kind}.{i}");
            Block::load(&w.at(&format!("{name}.")), options, c, active, layout, &name)
        };
        let hid = (0..hids).map(|i| block("hid_ssms", i, channels[levels], true, &mut layout));
        let hid = hid.collect::<Result<Vec<_>, _>>()?;
        for (i, &r) in factors.iter().enumerate() {
            let (c, next) = (channels[i], channels[i + 1]);
            let name = format!("up_ssms.{i}");
            let w = w.at(&format!("{name}."));
            let map = w.take("0.weight", &[next, c, r])?;
            up.push(Up {
                map: Linear::pack_with(level, r * c, next, None, |o, k| map[(k * c + o % c) * r + o / c]),
                block: Block::load(&w.at("1."), options, c, true, &mut layout, &name)?,
                factor: r,
            });
        }
        let last = (0..lasts).map(|i| block("last_ssms", i, 1, i + 1 < lasts, &mut layout));
        let last = last.collect::<Result<Vec<_>, _>>()?;
        w.finish()?;
        if let Some(block) = [&down[0].block, &up[0].block].into_iter().chain(&last).find(|b| b.pre_conv.is_some()) {
            return Err(bad("pre_conv", "no convolution of one channel".into(), format!("{} channel", block.channels)));
        }

        let rate = match options.config.as_ref().and_then(|c| c.get("sample_rate")) {
            None | Some(Value::Null) => RATE,
            Some(v) => v
                .as_u64()
                .and_then(|v| u32::try_from(v).ok())
                .filter(|v| *v > 0)
                .ok_or_else(|| bad("sample_rate", "Hz".into(), v.to_string()))?,
        };
        let mut model = Self {
            info: Info {
                family: FAMILY.name,
                facts: Facts::default(),
                sizes: format!("channels {channels:?}, factors {factors:?}, block {hop}, {rate} Hz"),
                parameters: file.parameters(),
                input: Signal::Samples { hop, rate },
                output: Signal::Samples { hop, rate },
                delay: 0,
                hash: file.hash(""),
            },
            layout,
            hop,
            down,
            hid,
            up,
            last,
        };
        // Long after the start every stage lags by as much as it ever will.
        let steady = model.counts(1 << 20, false);
        model.info.delay = ((hop as u64) << 20).saturating_sub(steady.out) as usize;
        for (i, down) in model.down.iter_mut().enumerate() {
            let waiting = (steady.down[i] - steady.up[i]) as usize;
            down.skip = model.layout.add(format!("down_ssms.{i}.skip"), &[waiting, down.block.channels]);
        }
        Ok(model)
    }

    /// What every stage has taken in after `blocks` blocks.
    fn counts(&self, blocks: u64, ended: bool) -> Counts {
        let mut n = Counts::default();
        let mut frames = blocks * self.hop as u64;
        for (i, down) in self.down.iter().enumerate() {
            n.down[i] = frames;
            n.gathered[i] = down.block.after(frames, ended);
            frames = n.gathered[i] / down.factor as u64;
        }
        for (i, block) in self.hid.iter().enumerate() {
            n.hid[i] = frames;
            frames = block.after(frames, ended);
        }
        for (i, up) in self.up.iter().enumerate().rev() {
            n.up[i] = frames * up.factor as u64;
            frames = up.block.after(n.up[i], ended);
        }
        n.out = frames;
        n
    }

    /// Blocks by which the network's output lags, rounded up.
    fn lag(&self) -> usize {
        self.info.delay.div_ceil(self.hop)
    }

    /// Frames of level `i` that a pass of `blocks` blocks can meet, what waits included, and two to spare.
    fn room(&self, i: usize, blocks: usize) -> usize {
        let factor: usize = self.down[..i].iter().map(|d| d.factor).product();
        (blocks + self.lag() + 1) * (self.hop / factor) + 2
    }

    /// Values of the widest intermediate of a pass.
    fn widest(&self, blocks: usize) -> usize {
        let bottom = self.down.len();
        let channels = |i: usize| if i < bottom { self.down[i].block.channels } else { self.down[i - 1].map.n() };
        (0..=bottom).map(|i| self.room(i, blocks) * channels(i)).max().unwrap_or(0)
    }

    /// Working memory of a pass of `blocks` blocks of one stream.
    fn scratch_len(&self, blocks: usize) -> usize {
        let skips: usize =
            self.down.iter().enumerate().map(|(i, d)| line(self.room(i, blocks) * d.block.channels)).sum();
        let blocks_of = |up: &[Up]| up.iter().map(|u| u.block.ssm.poles.n()).max().unwrap_or(0);
        let states = self.down.iter().map(|d| d.block.ssm.poles.n());
        let states = states.chain(self.hid.iter().map(|b| b.ssm.poles.n())).chain([blocks_of(&self.up)]).max();
        skips + 3 * line(self.widest(blocks)) + line(STRIP * states.unwrap_or(0))
    }

    /// `blocks` blocks of samples `x` of a stream that has seen `seen`; what is now complete goes to the front of `y`,
    /// and its number is returned. `ended`: after these blocks nothing will come.
    fn pass(
        &self,
        cx: &Cx,
        state: &mut [f32],
        seen: u64,
        x: &[f32],
        ended: bool,
        y: &mut [f32],
        mut scratch: &mut [f32],
        mut tap: impl FnMut(Tap, &[f32]),
    ) -> usize {
        let blocks = x.len() / self.hop;
        let (from, to) = (self.counts(seen, false), self.counts(seen + blocks as u64, ended));
        let s = &mut scratch;
        let widest = self.widest(blocks);
        let (mut a, mut b, t) = (carve(s, widest), carve(s, widest), carve(s, widest));
        let mut skips: [&mut [f32]; MAX_LEVELS] = Default::default();
        for (i, (skip, down)) in skips.iter_mut().zip(&self.down).enumerate() {
            *skip = carve(s, self.room(i, blocks) * down.block.channels);
        }
        let states = &mut **s;

        a[..x.len()].copy_from_slice(x);
        let mut m = x.len();
        for (i, (down, skip)) in self.down.iter().zip(&mut skips).enumerate() {
            let (c, r) = (down.block.channels, down.factor);
            // Behind what still waits.
            let waiting = (from.down[i] - from.up[i]) as usize * c;
            skip[..waiting].copy_from_slice(&state[down.skip.clone()][..waiting]);
            skip[waiting..][..m * c].copy_from_slice(&a[..m * c]);
            // Behind the frames that did not make one of the next level.
            let pending = (from.gathered[i] % r as u64) as usize;
            m = down.block.run(cx, state, from.down[i], m, ended, a, (&mut *t, &mut *states));
            b[..pending * c].copy_from_slice(&state[down.pending.clone()][..pending * c]);
            b[pending * c..][..m * c].copy_from_slice(&a[..m * c]);
            m = (pending + m) / r;
            let left = (to.gathered[i] % r as u64) as usize * c;
            state[down.pending.clone()][..left].copy_from_slice(&b[m * r * c..][..left]);
            let out = MatMut::new(a, m, down.map.n());
            linear(cx, Mat::new(b, m, r * c), &down.map, Act::None, Store::Set, out);
            tap(Tap::Down(i), &a[..m * down.map.n()]);
        }
        for (i, block) in self.hid.iter().enumerate() {
            m = block.run(cx, state, from.hid[i], m, ended, a, (&mut *t, &mut *states));
        }
        tap(Tap::Hid, &a[..m * self.up.last().map_or(1, |u| u.map.k())]);
        for (i, up) in self.up.iter().enumerate().rev() {
            let (c, down) = (up.block.channels, &self.down[i]);
            linear(cx, Mat::new(a, m, up.map.k()), &up.map, Act::None, Store::Set, MatMut::new(b, m, up.map.n()));
            m *= up.factor;
            b[..m * c].iter_mut().zip(&*skips[i]).for_each(|(x, skip)| *x += skip);
            let waiting = (to.down[i] - to.up[i]) as usize * c;
            state[down.skip.clone()][..waiting].copy_from_slice(&skips[i][m * c..][..waiting]);
            m = up.block.run(cx, state, from.up[i], m, ended, b, (&mut *t, &mut *states));
            tap(Tap::Up(i), &b[..m * c]);
            std::mem::swap(&mut a, &mut b);
        }
        for block in &self.last {
            m = block.run(cx, state, from.out, m, ended, a, (&mut *t, &mut *states));
        }
        y[..m].copy_from_slice(&a[..m]);
        m
    }
}

impl Model for Attenuate {
    fn info(&self) -> &Info {
        &self.info
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) {
        for row in rows {
            let Row { state, x, y, .. } = row;
            for first in (0..len).step_by(TOGETHER) {
                let part = first * self.hop..(first + TOGETHER).min(len) * self.hop;
                let (x, y) = (&x[part.clone()], &mut y[part]);
                let blocks = x.len() / self.hop;
                let s = scratch.take(self.scratch_len(TOGETHER));
                // Only at the start of a stream is less complete than comes in.
                let seen = state.steps.min(MAX_STEPS);
                let given = self.counts(seen + blocks as u64, false).out - self.counts(seen, false).out;
                let start = y.len() - given as usize;
                y[..start].fill(0.0);
                self.pass(cx, &mut state.data, seen, x, false, &mut y[start..], s, |_, _| ());
                state.steps = state.steps.saturating_add(blocks as u64);
            }
        }
    }

    fn gap(&self, state: &mut State, periods: f64) {
        if periods.is_nan() || periods <= 0.0 {
            return;
        }
        let mut frames = periods * self.hop as f64;
        self.last.iter().for_each(|b| b.gap(&mut state.data, frames));
        for (down, up) in self.down.iter().zip(&self.up) {
            down.block.gap(&mut state.data, frames);
            up.block.gap(&mut state.data, frames);
            frames /= down.factor as f64;
        }
        self.hid.iter().for_each(|b| b.gap(&mut state.data, frames));
    }

    fn drain(&self, cx: &Cx, row: &mut Row, partial: usize, scratch: &mut Scratch) -> usize {
        self.finish(cx, row, partial, scratch, |_, _| ())
    }

    fn drain_len(&self) -> usize {
        (self.lag() + 1) * self.hop
    }
}

impl Attenuate {
    /// Ends a stream; see [`Model::drain`].
    fn finish(
        &self,
        cx: &Cx,
        row: &mut Row,
        partial: usize,
        scratch: &mut Scratch,
        tap: impl FnMut(Tap, &[f32]),
    ) -> usize {
        let seen = row.state.steps.min(MAX_STEPS);
        let left = (seen * self.hop as u64 + partial as u64 - self.counts(seen, false).out) as usize;
        if left == 0 {
            return 0;
        }
        let room = self.drain_len();
        let mut s = scratch.take(self.scratch_len(1) + line(self.hop) + line(room));
        let (x, y) = (carve(&mut s, self.hop), carve(&mut s, room));
        x.fill(0.0);
        x[..partial].copy_from_slice(&row.x[..partial]);
        let x = if partial > 0 { &*x } else { &[] };
        self.pass(cx, &mut row.state.data, seen, x, true, y, s, tap);
        row.y[..left].copy_from_slice(&y[..left]);
        left
    }
}

/// Whether a block lies at the reader's place.
fn has_block(w: &Reader<'_>) -> bool {
    w.has("0.weight") || w.has("0.log_dt")
}

/// Golden files: a clip from its first sample to its last, and what the levels hold on the way.
fn verify(g: &mut Golden<'_>) -> Result<(), Error> {
    const TOL: f32 = 2e-5;
    // Of the largest value: the files' own transforms in f32 are off by 1e-5 inside the network.
    const TAPS: f32 = 1e-4;
    let model = Attenuate::load(g.weights(), &g.open_options())?;
    let (shape, x) = g.tensor("__input__")?;
    let samples = shape.last().copied().unwrap_or(0).max(1);
    let mut y = vec![];
    for x in x.chunks(samples) {
        y.extend(g.run_samples(&model, x, true)?.0);
    }
    g.check_scaled("__output__", &y, TOL)?;

    // The same with a look at the levels, in the order of the file: (B, c, frames).
    let mut taps: Vec<(String, Vec<f32>)> = vec![];
    for x in x.chunks(samples) {
        let hops = samples / model.hop;
        let mut row = Row::new(&model, hops.max(model.drain_len().div_ceil(model.hop)));
        let mut levels: Vec<(Tap, Vec<f32>)> = vec![];
        let mut look = |tap: Tap, frames: &[f32]| match levels.iter_mut().find(|(t, _)| *t == tap) {
            Some((_, got)) => got.extend_from_slice(frames),
            None => levels.push((tap, frames.to_vec())),
        };
        let mut at = 0;
        for n in g.cuts(hops) {
            let (cx, scratch) = g.bench();
            let x = &x[at * model.hop..(at + n) * model.hop];
            let s = scratch.take(model.scratch_len(n));
            model.pass(cx, &mut row.state.data, row.state.steps, x, false, &mut row.y, s, &mut look);
            row.state.steps += n as u64;
            at += n;
        }
        let rest = &x[hops * model.hop..];
        row.x[..rest.len()].copy_from_slice(rest);
        let (cx, scratch) = g.bench();
        model.finish(cx, &mut row, rest.len(), scratch, look);
        for (tap, frames) in levels {
            let (name, c) = match tap {
                Tap::Down(i) => (format!("__tap__.down.{i}"), model.down[i].map.n()),
                Tap::Hid => ("__tap__.hid".into(), model.down.last().map_or(1, |d| d.map.n())),
                Tap::Up(i) => (format!("__tap__.up.{i}"), model.up[i].block.channels),
            };
            let len = frames.len() / c;
            let values = (0..c * len).map(|i| frames[i % len * c + i / len]);
            match taps.iter_mut().find(|(n, _)| *n == name) {
                Some((_, got)) => got.extend(values),
                None => taps.push((name, values.collect())),
            }
        }
    }
    for (name, got) in &taps {
        if g.has(name) {
            let size = g.f64(name)?.iter().fold(1f64, |m, v| m.max(v.abs()));
            g.check(name, got, TAPS * size as f32)?;
        }
    }
    Ok(())
}
