//! AuM: Audio Mamba (Erol et al. 2024, arXiv 2406.03344, Figures 1 and 2).
//!
//! A clip of log-mel frames is cut into patches, a class token is set among them, and a stack of Mamba blocks runs over
//! the sequence: one way (Fo-Fo), two ways with one set of projections (Fo-Bi) or two ways with two (Bi-Bi). Every
//! published size loads under its own names; sizes and the kind of block are read off the tensors. What they do not say
//! (grid, stride, place of a single class token, halving, eps, the front end's mean and deviation) comes from the file's
//! `config`, else from the published models.
//!
//! How it stands on a stream ([`Listen`]):
//!
//! * `Clip`: a step is a whole clip of normalised frames (T, F), and nothing is remembered: upstream's function. With
//!   [`Options::carry`] the forward scans go on from the clip before.
//! * `Frames`, `Samples`: a step is some frames, or the samples of as many hops, and gives the scores of the clip that
//!   ends there. The state keeps the last T frames (and the samples of a frame that is not complete), and the network
//!   runs over all of them at every step: memory and cost of a step are constant. While fewer than T frames have come, the
//!   clip is padded as upstream pads a short one, so the scores are upstream's for what was heard so far.
//! * A Fo-Fo network whose tokens are ordered by time (`transpose_token_sequence`, or a single row of patches) and whose
//!   class token stands at the end is a true recurrence. In `Frames` and `Samples` it keeps each block's convolution tail
//!   and h instead of frames, runs over new columns of patches only, and then looks at the class token without
//!   remembering it: after T frames the scores equal the clip's, and the stream goes on without end. Columns past the
//!   trained ones have the last column's position.

use crate::checkpoint::{Checkpoint, Reader};
use crate::error::Error;
use crate::families::{Family, Listen, Options};
use crate::frontend::audio::AudioFrontend;
use crate::golden::Golden;
use crate::mixer::{Mixer, MixerState};
use crate::model::{Info, Model, Row, Scratch, Signal, carve, line};
use crate::state::{State, StateLayout};
use serde_json::Value;
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::norm::{Kind, Norm, add_norm};
use ssm_kernels::patch::count;
use ssm_kernels::resize::bilinear_grid;
use ssm_kernels::{Act, Cx, Mat, MatMut};
use std::ops::Range;
use std::sync::Arc;

pub(crate) const FAMILY: Family = Family {
    name: "aum",
    detect: |f| {
        f.shape("patch_embed.proj.weight").is_some_and(|s| s.get(1) == Some(&1))
            && f.shape("layers.0.mixer.A_log").is_some()
            && f.shape("pos_embed").is_none()
    },
    open: |file, options| Ok(Arc::new(Aum::load(file, options)?)),
    verify,
};

/// Frames from one result of a sliding clip to the next, unless another number is asked for: a second.
const EVERY: usize = 100;

/// Most frames of a step.
const MAX_EVERY: usize = 1 << 16;

/// Steps after which a stream no longer counts.
const MAX_STEPS: u64 = 1 << 36;

/// Where the class token stands among N patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Before patch N/2.
    Middle,
    /// In front.
    Head,
    /// After the last patch.
    End,
    /// One in front, one at the end; the head sees their mean.
    Double,
    /// Nowhere.
    None,
}

/// What the head sees when there is no class token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    Mean,
    Last,
    Max,
    All,
}

/// Frequency and time of a patch, a stride, a grid or a clip.
type Size = (usize, usize);

/// Sizes and options.
#[derive(Clone, Debug)]
struct Config {
    embed_dim: usize,
    depth: usize,
    patch: Size,
    strides: Size,
    /// Patches that the position embedding was trained for.
    trained: Size,
    /// Mel bins and frames of a clip.
    clip: Size,
    class: Class,
    pool: Pool,
    transpose_token_sequence: bool,
    if_devide_out: bool,
    norm_eps: f32,
    num_classes: usize,
}

impl Class {
    /// Number of class tokens.
    fn tokens(self) -> usize {
        match self {
            Class::Middle | Class::Head | Class::End => 1,
            Class::Double => 2,
            Class::None => 0,
        }
    }

    /// Row of the (first) class token among `patches` patches.
    fn row(self, patches: usize) -> usize {
        match self {
            Class::Middle => patches / 2,
            Class::End => patches,
            _ => 0,
        }
    }

    /// Row of the patch that comes `i`-th.
    fn patch_row(self, i: usize, patches: usize) -> usize {
        match self {
            Class::Middle => i + usize::from(i >= patches / 2),
            Class::Head | Class::Double => i + 1,
            Class::End | Class::None => i,
        }
    }
}

impl Config {
    fn read(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let bad = |field: &str, expected: String, got: String| Error::Config {
            file: file.path.display().to_string(),
            field: field.into(),
            expected,
            got,
        };
        let none = Value::Null;
        let config = options.config.as_ref().unwrap_or(&none);
        let flag = |name: &str, default: bool| config.get(name).and_then(Value::as_bool).unwrap_or(default);
        let size = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| (1..1 << 16).contains(v));
        let pair = |name: &str| match config.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match v.as_array().map_or(&[][..], Vec::as_slice) {
                [a, b] => size(a).zip(size(b)),
                _ => size(v).map(|s| (s, s)),
            }
            .map(Some)
            .ok_or_else(|| bad(name, "two sizes".into(), v.to_string())),
        };

        let shape = file.shape("patch_embed.proj.weight").unwrap_or_default();
        let &[embed_dim, 1, pf, pt] = shape else {
            return Err(bad("patch_embed.proj.weight", "[D, 1, frequency, time]".into(), format!("{shape:?}")));
        };
        if embed_dim == 0 || pf == 0 || pt == 0 {
            return Err(bad("patch_embed.proj.weight", "patches of a pixel or more".into(), format!("{shape:?}")));
        }
        let patch = (pf, pt);
        let strides = pair("strides")?.unwrap_or(patch);
        let cells = |(bins, frames): Size| (count(bins, pf, strides.0), count(frames, pt, strides.1));

        // Options of upstream's constructor that no published model uses and that would change the function.
        for name in ["if_rope", "if_bidirectional", "must_square"] {
            if flag(name, false) {
                return Err(bad(name, "false".into(), "true".into()));
            }
        }
        let own = file.shape("layers.0.mixer.D_b").is_some();
        let kind = match (own, file.shape("layers.0.mixer.A_b_log").is_some()) {
            (true, _) => "v2",
            (false, true) => "v1",
            _ => "none",
        };
        if let Some(said) = config.get("bimamba_type").and_then(Value::as_str)
            && said != kind
        {
            return Err(bad("bimamba_type", format!("{kind}, as the tensors have it"), said.into()));
        }

        let class = match (file.shape("cls_token").is_some(), file.shape("cls_token_head").is_some()) {
            (_, true) => Class::Double,
            (false, false) => Class::None,
            (true, false) => match config.get("cls_token").and_then(Value::as_str) {
                Some("middle" | "mid") => Class::Middle,
                Some("head" | "front" | "start") => Class::Head,
                Some("end" | "tail") => Class::End,
                Some(other) => return Err(bad("cls_token", "middle, head or end".into(), other.into())),
                None if flag("use_middle_cls_token", true) => Class::Middle,
                None if flag("use_end_cls_token", false) => Class::End,
                None => Class::Head,
            },
        };
        let pool = match config.get("final_pool_type").and_then(Value::as_str) {
            Some("none") => Pool::Last,
            Some("max") => Pool::Max,
            Some("all") => Pool::All,
            Some("mean") | None => Pool::Mean,
            Some(other) => return Err(bad("final_pool_type", "mean, none, max or all".into(), other.into())),
        };

        // The grid trained for: the first of these that makes the number of patches.
        let said = |bins: &str, frames: &str| {
            let get = |name: &str| config.get(name).and_then(size);
            get(bins).zip(get(frames))
        };
        let source = pair("source_spectrogram_size")?.or(said("source_mel_bins", "source_frames"));
        let target = pair("spectrogram_size")?.or(said("mel_bins", "frames"));
        let rows = match file.shape("pos_embed.pos_embed") {
            Some(&[1, rows, _]) => Some(rows.saturating_sub(class.tokens())),
            Some(other) => return Err(bad("pos_embed.pos_embed", "[1, N, D]".into(), format!("{other:?}"))),
            None => None,
        };
        let bins = target.or(source).map_or(128, |t| t.0);
        let trained = match rows {
            None => cells(options.clip.map(|(t, f)| (f, t)).or(target).unwrap_or((128, 1024))),
            Some(n) => {
                let along = |bins: usize| {
                    let f = count(bins, pf, strides.0);
                    (f, n.checked_div(f).unwrap_or(0))
                };
                let grids = [source.map(cells), target.map(cells), Some(along(bins)), Some(along(128))];
                let fits = |g: &Size| n > 0 && g.0.checked_mul(g.1) == Some(n);
                grids.into_iter().flatten().find(fits).ok_or_else(|| {
                    bad(
                        "pos_embed.pos_embed",
                        "a grid of patches (give mel_bins and frames)".into(),
                        format!("{n} rows"),
                    )
                })?
            }
        };
        if trained.0 * trained.1 == 0 {
            return Err(bad("clip", format!("{pt} frames of {pf} bins or more"), "less".into()));
        }
        let natural = ((trained.0 - 1) * strides.0 + pf, (trained.1 - 1) * strides.1 + pt);
        let fits = |clip: &Size| cells(*clip) == trained;
        let clip = options.clip.map(|(t, f)| (f, t)).or(target);
        let clip = clip.unwrap_or(if fits(&(128, natural.1)) { (128, natural.1) } else { natural });
        let grid = cells(clip);
        if grid.0 * grid.1 == 0 || grid.0 * grid.1 > 1 << 16 {
            return Err(bad("clip", format!("{pt} frames of {pf} bins or more"), format!("{} of {}", clip.1, clip.0)));
        }
        Ok(Self {
            embed_dim,
            depth: (0..).take_while(|i| file.shape(&format!("layers.{i}.mixer.A_log")).is_some()).count(),
            patch,
            strides,
            trained,
            clip,
            class,
            pool: if class == Class::None { pool } else { Pool::Mean },
            transpose_token_sequence: flag("transpose_token_sequence", false),
            if_devide_out: flag("if_devide_out", true),
            norm_eps: config
                .get("norm_eps")
                .or(config.get("norm_epsilon"))
                .and_then(Value::as_f64)
                .filter(|e| (0.0..1.0).contains(e))
                .unwrap_or(1e-5) as f32,
            num_classes: file.shape("head.weight").and_then(|s| s.first()).copied().unwrap_or(0),
        })
    }

    /// Patches of a clip: along frequency, along time.
    fn grid(&self) -> Size {
        (count(self.clip.0, self.patch.0, self.strides.0), count(self.clip.1, self.patch.1, self.strides.1))
    }

    /// Patches of a clip.
    fn patches(&self) -> usize {
        let (f, t) = self.grid();
        f * t
    }

    /// Tokens of a clip, class tokens included.
    fn tokens(&self) -> usize {
        self.patches() + self.class.tokens()
    }

    /// Place in the grid of the patch that comes `i`-th in the sequence.
    fn place(&self, i: usize) -> Size {
        let (f, t) = self.grid();
        if self.transpose_token_sequence { (i % f, i / f) } else { (i / t, i % t) }
    }
}

struct Layer {
    norm: Norm,
    mixer: Mixer,
}

/// What a stream remembers, and where.
struct Places {
    /// Samples that do not make a frame yet.
    samples: Range<usize>,
    /// The last frames: a whole clip, or those of a column of patches that is not complete.
    frames: Range<usize>,
    /// Each block's tail and h, where they are kept.
    layers: Vec<MixerState>,
    /// The slab from the first of them to the last.
    kept: Range<usize>,
}

/// An audio classifier.
struct Aum {
    config: Config,
    listen: Listen,
    /// Frames of a step.
    every: usize,
    /// Whether the stream is a recurrence over columns of patches.
    causal: bool,
    info: Info,
    layout: StateLayout,
    places: Places,
    front: AudioFrontend,
    patch_embed: Linear, // (D, time · frequency)
    pos_embed: Vec<f32>, // (L, D) in the order of the sequence, the class tokens' own values added to their rows
    layers: Vec<Layer>,
    norm_f: Norm,
    head: Linear, // (classes, D)
}

/// What can be looked at on the way through the network, all rows of a batch together.
enum Tap {
    PatchEmbed,
    PosEmbed,
    Hidden(usize),
    Residual(usize),
    Features,
}

/// Looks at nothing.
fn no_tap(_: Tap, _: &[f32]) {}

impl Aum {
    fn load(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let config = Config::read(file, options)?;
        let (d, level, (pf, pt)) = (config.embed_dim, options.level, config.patch);
        let w = Reader::new(file);
        let norm = |w: &Reader<'_>, name: &str| -> Result<Norm, Error> {
            let weight = w.take(&format!("{name}.weight"), &[d])?;
            let bias = w.take_optional(&format!("{name}.bias"), &[d])?;
            let kind = if bias.is_some() { Kind::Layer } else { Kind::Rms };
            Ok(Norm::new(kind, weight, bias, config.norm_eps))
        };
        let proj = w.take("patch_embed.proj.weight", &[d, 1, pf, pt])?;
        let proj_bias = w.take("patch_embed.proj.bias", &[d])?;
        let rows = config.trained.0 * config.trained.1 + config.class.tokens();
        let stored = w.take_optional("pos_embed.pos_embed", &[1, rows, d])?;
        let mut pos_embed = match stored {
            Some(stored) => sequence_pos_embed(&stored, &config),
            None => vec![0.0; config.tokens() * d],
        };
        let n = config.patches();
        let class_rows: &[(&str, usize)] = match config.class {
            Class::Double => &[("cls_token_head", 0), ("cls_token_tail", n + 1)],
            Class::None => &[],
            one => &[("cls_token", one.row(n))],
        };
        for (name, row) in class_rows {
            let token = w.take(name, &[1, 1, d])?;
            pos_embed[row * d..][..d].iter_mut().zip(&token).for_each(|(p, t)| *p += t);
        }
        let mut layers = Vec::with_capacity(config.depth);
        for i in 0..config.depth {
            let w = w.at(&format!("layers.{i}."));
            let mixer = Mixer::load(&w.at("mixer."), level, d, config.if_devide_out)?;
            layers.push(Layer { norm: norm(&w, "norm")?, mixer });
        }
        let norm_f = norm(&w, "norm_f")?;
        let head = w.take("head.weight", &[config.num_classes, d])?;
        let head_bias = w.take("head.bias", &[config.num_classes])?;
        w.finish()?;

        let (grid_f, _) = config.grid();
        let one_way = layers.iter().all(|l| !l.mixer.is_bidirectional());
        let by_time = config.transpose_token_sequence || grid_f == 1;
        let recurrent = one_way && by_time && config.class == Class::End && config.strides.1 <= pt;
        let causal = recurrent && options.listen != Listen::Clip;
        if options.carry && options.listen != Listen::Clip {
            return Err(Error::Config {
                file: "options".into(),
                field: "carry".into(),
                expected: "off where a stream of frames or samples is taken in".into(),
                got: "on".into(),
            });
        }
        let path = file.path.display().to_string();
        let front = front_end(&config, options, &path)?;
        let every = match options.listen {
            Listen::Clip => config.clip.1,
            Listen::Frames(n) | Listen::Samples(n) if n > 0 => n,
            _ if causal => config.strides.1,
            _ => EVERY.min(config.clip.1),
        };
        if every > MAX_EVERY {
            return Err(Error::Config {
                file: "options".into(),
                field: "listen".into(),
                expected: format!("{MAX_EVERY} frames a step at most"),
                got: every.to_string(),
            });
        }
        let input = match options.listen {
            Listen::Clip | Listen::Frames(_) => Signal::Clip { frames: every, bins: config.clip.0 },
            Listen::Samples(_) => Signal::Samples { hop: every * front.hop(), rate: front.sample_rate() as u32 },
        };
        let mut layout = StateLayout::new();
        let samples = match options.listen {
            Listen::Samples(_) => layout.add("samples", &[front.fbank().state_len()]),
            _ => 0..0,
        };
        let frames = match options.listen {
            Listen::Clip => 0..0,
            _ => layout.add("frames", &[if causal { pt } else { config.clip.1 }, config.clip.0]),
        };
        let states: Vec<MixerState> = if options.carry || causal {
            layers.iter().enumerate().map(|(i, l)| l.mixer.state(&mut layout, &format!("layers.{i}"))).collect()
        } else {
            Vec::new()
        };
        let kept = match (states.first(), states.last()) {
            (Some(first), Some(last)) => first.conv.start..last.h.end,
            _ => 0..0,
        };
        let mixer = layers.first().map(|l| &l.mixer);
        let kind = match (mixer.is_some_and(Mixer::is_bidirectional), mixer.is_some_and(Mixer::has_own_backward)) {
            (_, true) => "Bi-Bi",
            (true, false) => "Fo-Bi",
            _ => "Fo-Fo",
        };
        let results = if config.pool == Pool::All && config.class == Class::None { config.tokens() } else { 1 };
        let info = Info {
            family: FAMILY.name,
            sizes: format!(
                "{kind}, D {d}, {} layers, E {}, N {}, R {}, patch {pf}x{pt}/{}x{}, {} frames of {} bins, {} tokens",
                config.depth,
                mixer.map_or(0, Mixer::d_inner),
                mixer.map_or(0, Mixer::d_state),
                mixer.map_or(0, Mixer::dt_rank),
                config.strides.0,
                config.strides.1,
                config.clip.1,
                config.clip.0,
                config.tokens(),
            ),
            parameters: file.parameters(),
            input,
            output: Signal::Logits { classes: results * config.num_classes },
            delay: 0,
            hash: file.hash(&format!("{config:?} {:?} carry={}", options.listen, options.carry)),
        };
        let column = |o: usize, k: usize| proj[(o * pf + k % pf) * pt + k / pf];
        Ok(Self {
            patch_embed: Linear::pack_with(level, d, pt * pf, Some(&proj_bias), column),
            head: Linear::pack(level, &head, config.num_classes, d, Some(&head_bias)),
            listen: options.listen,
            places: Places { samples, frames, layers: states, kept },
            every,
            causal,
            info,
            layout,
            front,
            pos_embed,
            layers,
            norm_f,
            config,
        })
    }

    /// Working memory of `batch` sequences of `tokens` tokens each.
    fn network_len(&self, batch: usize, tokens: usize) -> usize {
        let c = &self.config;
        let m = batch * tokens;
        let embed = line(tokens * c.patch.0 * c.patch.1);
        let mixer = self.layers.iter().map(|l| l.mixer.scratch_len(m)).max().unwrap_or(0);
        3 * line(m * c.embed_dim) + embed.max(mixer) + line(c.embed_dim) + line(c.num_classes)
    }

    /// Working memory of a step of `batch` streams.
    fn scratch_len(&self, batch: usize) -> usize {
        let c = &self.config;
        let fresh = line(self.fresh() * c.clip.0);
        if self.causal {
            let column = self.network_len(1, c.grid().0.max(1));
            fresh + line(self.places.kept.len()) + column
        } else {
            fresh + line(c.clip.0 * c.clip.1) + self.network_len(batch, c.tokens())
        }
    }

    /// Frames that a step completes at most.
    fn fresh(&self) -> usize {
        let c = self.front.fbank().config();
        self.every + c.frame.div_ceil(c.hop)
    }

    /// Frames that a stream has taken in after `steps` steps; from some thousand years on, always as many.
    fn frames_after(&self, steps: u64) -> u64 {
        let steps = steps.min(MAX_STEPS);
        match self.listen {
            Listen::Samples(_) => self.front.fbank().frames(steps * self.info.input.len() as u64),
            _ => steps * self.every as u64,
        }
    }

    /// Columns of patches that are complete after `frames` frames.
    fn columns_after(&self, frames: u64) -> u64 {
        let (p, s) = (self.config.patch.1 as u64, self.config.strides.1 as u64);
        if frames < p { 0 } else { (frames - p) / s + 1 }
    }

    /// Embeds the patches at the given places of `frames` (rows of bins), one row each.
    fn embed(&self, cx: &Cx, frames: &[f32], places: impl Iterator<Item = Size>, s: &mut [f32], out: &mut [f32]) {
        let (c, bins) = (&self.config, self.config.clip.0);
        let k = c.patch.0 * c.patch.1;
        let n = out.len() / c.embed_dim;
        for ((f, t), row) in places.zip(s.chunks_exact_mut(k)) {
            for (i, part) in row.chunks_exact_mut(c.patch.0).enumerate() {
                part.copy_from_slice(&frames[(t * c.strides.1 + i) * bins + f * c.strides.0..][..c.patch.0]);
            }
        }
        let out = MatMut::new(out, n, c.embed_dim);
        linear(cx, Mat::new(s, n, k), &self.patch_embed, Act::None, Store::Set, out);
    }

    /// Tokens of a clip: patches, class tokens and position embedding.
    fn tokens(&self, cx: &Cx, clip: &[f32], s: &mut [f32], spare: &mut [f32], out: &mut [f32]) {
        let (c, d, n) = (&self.config, self.config.embed_dim, self.config.patches());
        let embedded = &mut spare[..n * d];
        self.embed(cx, clip, (0..n).map(|i| c.place(i)), s, embedded);
        out.copy_from_slice(&self.pos_embed);
        for (i, patch) in embedded.chunks_exact(d).enumerate() {
            let row = &mut out[c.class.patch_row(i, n) * d..][..d];
            row.iter_mut().zip(patch).for_each(|(o, p)| *o += p);
        }
    }

    /// The blocks, over `rows.len()` sequences of `len` tokens that lie in `hidden`. `kept`: whether each row's scans go
    /// on from its state.
    fn blocks(
        &self,
        cx: &Cx,
        rows: &mut [Row],
        len: usize,
        [residual, hidden, normed]: [&mut [f32]; 3],
        s: &mut [f32],
        mut tap: impl FnMut(Tap, &[f32]),
    ) {
        let (d, m) = (self.config.embed_dim, rows.len() * len);
        residual.fill(0.0);
        for (i, layer) in self.layers.iter().enumerate() {
            // residual += hidden; hidden = mixer(norm(residual))
            let (h, r) = (Mat::new(hidden, m, d), MatMut::new(residual, m, d));
            add_norm(cx.level, &layer.norm, h, r, MatMut::new(normed, m, d));
            let out = MatMut::new(hidden, m, d);
            layer.mixer.forward(cx, Mat::new(normed, m, d), rows, len, self.places.layers.get(i), s, out);
            tap(Tap::Residual(i), residual);
            tap(Tap::Hidden(i), hidden);
        }
    }

    /// From the last block's two streams to the scores of one clip of `l` tokens.
    fn score(
        &self,
        cx: &Cx,
        [residual, hidden, normed]: [&mut [f32]; 3],
        (pooled, scores): (&mut [f32], &mut [f32]),
        y: &mut [f32],
        mut tap: impl FnMut(Tap, &[f32]),
    ) {
        let c = &self.config;
        let (d, k) = (c.embed_dim, c.num_classes);
        let l = hidden.len() / d;
        let mut norm_row = |row: usize, out: &mut [f32]| {
            let x = Mat::new(&hidden[row * d..], 1, d);
            add_norm(cx.level, &self.norm_f, x, MatMut::new(&mut residual[row * d..], 1, d), MatMut::new(out, 1, d));
        };
        let head = |x: &[f32], rows: usize, y: &mut [f32]| {
            linear(cx, Mat::new(x, rows, d), &self.head, Act::None, Store::Set, MatMut::new(y, rows, k));
        };
        match (c.class, c.pool) {
            (Class::Middle | Class::Head | Class::End, _) => norm_row(c.class.row(l - 1), pooled),
            (Class::Double, _) => {
                norm_row(0, pooled);
                norm_row(l - 1, &mut normed[..d]);
                pooled.iter_mut().zip(&*normed).for_each(|(p, n)| *p = 0.5 * (*p + n));
            }
            (Class::None, Pool::Last) => norm_row(l - 1, pooled),
            (Class::None, pool) => {
                (0..l).for_each(|row| norm_row(row, &mut normed[row * d..][..d]));
                match pool {
                    Pool::All => {
                        tap(Tap::Features, normed);
                        return head(normed, l, y);
                    }
                    Pool::Max => {
                        tap(Tap::Features, normed);
                        y.fill(f32::NEG_INFINITY);
                        for row in normed.chunks_exact(d) {
                            head(row, 1, scores);
                            y.iter_mut().zip(&*scores).for_each(|(y, s)| *y = y.max(*s));
                        }
                        return;
                    }
                    _ => {
                        pooled.fill(0.0);
                        for row in normed.chunks_exact(d) {
                            pooled.iter_mut().zip(row).for_each(|(p, r)| *p += r / l as f32);
                        }
                    }
                }
            }
        }
        tap(Tap::Features, pooled);
        head(pooled, 1, y);
    }

    /// The frames of one step: those of the input, or those that its samples complete; at the front of `fresh`.
    fn hear(&self, row: &mut Row, step: usize, work: &mut ssm_kernels::fbank::Work, fresh: &mut [f32]) -> usize {
        let n = self.info.input.len();
        let x = &row.x[step * n..][..n];
        match self.listen {
            Listen::Samples(_) => self.front.push(&mut row.state.data[self.places.samples.clone()], x, work, fresh),
            _ => {
                fresh[..n].copy_from_slice(x);
                self.every
            }
        }
    }

    /// One step of clips, of all rows together.
    fn clip_step(
        &self,
        cx: &Cx,
        rows: &mut [Row],
        step: usize,
        scratch: &mut Scratch,
        mut tap: impl FnMut(Tap, &[f32]),
    ) {
        let c = &self.config;
        let (d, l, b, bins) = (c.embed_dim, c.tokens(), rows.len(), c.clip.0);
        let m = b * l;
        let (input, output) = (self.info.input.len(), self.info.output.len());
        let (work, slab) = scratch.with_fbank(self.front.fbank(), self.scratch_len(b));
        let s = &mut &mut *slab;
        let (residual, hidden, normed) = (carve(s, m * d), carve(s, m * d), carve(s, m * d));
        let (pooled, scores) = (carve(s, d), carve(s, c.num_classes));
        let (fresh, clip) = (carve(s, self.fresh() * bins), carve(s, bins * c.clip.1));
        for (i, row) in rows.iter_mut().enumerate() {
            let tokens = &mut hidden[i * l * d..][..l * d];
            if self.listen == Listen::Clip {
                self.tokens(cx, &row.x[step * input..][..input], s, normed, tokens);
            } else {
                let heard = self.frames_after(row.state.steps).min(c.clip.1 as u64) as usize;
                let new = self.hear(row, step, work, fresh);
                let given = (heard + new).min(c.clip.1);
                let frames = &mut row.state.data[self.places.frames.clone()];
                // The newest frames stand at the end.
                let kept = new.min(c.clip.1);
                frames.copy_within(kept * bins.., 0);
                let at = frames.len() - kept * bins;
                frames[at..].copy_from_slice(&fresh[(new - kept) * bins..new * bins]);
                clip[..given * bins].copy_from_slice(&frames[(c.clip.1 - given) * bins..]);
                self.front.pad(clip, given);
                self.tokens(cx, clip, s, normed, tokens);
            }
            tap(Tap::PatchEmbed, &normed[..c.patches() * d]);
            row.state.steps = row.state.steps.saturating_add(1);
        }
        tap(Tap::PosEmbed, hidden);
        self.blocks(cx, rows, l, [&mut *residual, &mut *hidden, &mut *normed], s, &mut tap);
        for (i, row) in rows.iter_mut().enumerate() {
            let part = i * l * d..(i + 1) * l * d;
            let y = &mut row.y[step * output..][..output];
            let streams = [&mut residual[part.clone()], &mut hidden[part.clone()], &mut normed[part]];
            self.score(cx, streams, (&mut *pooled, &mut *scores), y, &mut tap);
        }
    }

    /// One step of a recurrent stream.
    fn causal_step(&self, cx: &Cx, row: &mut Row, step: usize, scratch: &mut Scratch) {
        let c = &self.config;
        let (d, bins, (grid_f, grid_t)) = (c.embed_dim, c.clip.0, c.grid());
        let output = self.info.output.len();
        let (work, slab) = scratch.with_fbank(self.front.fbank(), self.scratch_len(1));
        let s = &mut &mut *slab;
        let m = grid_f.max(1);
        let (residual, hidden, normed) = (carve(s, m * d), carve(s, m * d), carve(s, m * d));
        let (pooled, scores) = (carve(s, d), carve(s, c.num_classes));
        let (fresh, kept) = (carve(s, self.fresh() * bins), carve(s, self.places.kept.len()));
        let heard = self.frames_after(row.state.steps);
        let mut column = self.columns_after(heard);
        let mut waiting = (heard - column * c.strides.1 as u64) as usize;
        let new = self.hear(row, step, work, fresh);
        for frame in fresh[..new * bins].chunks_exact(bins) {
            let frames = &mut row.state.data[self.places.frames.clone()];
            frames[waiting * bins..][..bins].copy_from_slice(frame);
            waiting += 1;
            if waiting < c.patch.1 {
                continue;
            }
            self.embed(cx, frames, (0..grid_f).map(|f| (f, 0)), s, hidden);
            frames.copy_within(c.strides.1 * bins.., 0);
            waiting -= c.strides.1;
            let at = column.min(grid_t as u64 - 1) as usize * grid_f;
            hidden.iter_mut().zip(&self.pos_embed[at * d..]).for_each(|(h, p)| *h += p);
            column += 1;
            let streams = [&mut *residual, &mut *hidden, &mut *normed];
            self.blocks(cx, std::slice::from_mut(row), grid_f, streams, s, no_tap);
        }
        // The class token is looked at and forgotten.
        kept.copy_from_slice(&row.state.data[self.places.kept.clone()]);
        let [residual, hidden, normed] = [residual, hidden, normed].map(|v| &mut v[..d]);
        hidden.copy_from_slice(&self.pos_embed[c.patches() * d..][..d]);
        let streams = [&mut *residual, &mut *hidden, &mut *normed];
        self.blocks(cx, std::slice::from_mut(row), 1, streams, s, no_tap);
        row.state.data[self.places.kept.clone()].copy_from_slice(kept);
        let y = &mut row.y[step * output..][..output];
        self.score(cx, [residual, hidden, normed], (pooled, scores), y, no_tap);
        row.state.steps = row.state.steps.saturating_add(1);
    }
}

/// The front end that a file's configuration describes.
fn front_end(config: &Config, options: &Options, path: &str) -> Result<AudioFrontend, Error> {
    let none = Value::Null;
    let said = options.config.as_ref().and_then(|c| c.get("frontend")).unwrap_or(&none);
    let front = AudioFrontend::from_config(said, config.clip.0, path)?;
    let bad = |field: &str, expected: &str, got: String| Error::Config {
        file: path.into(),
        field: field.into(),
        expected: expected.into(),
        got,
    };
    if front.bins() != config.clip.0 {
        return Err(bad("frontend.num_mel_bins", &config.clip.0.to_string(), front.bins().to_string()));
    }
    let normalised = said.get("mean").or(said.get("norm_mean")).is_some();
    if matches!(options.listen, Listen::Samples(_)) && !normalised && said.get("kind").is_none() {
        let published = "the training set's mean and std, as AudioSet's -4.2677393 and 4.5689974 (config.json)";
        return Err(bad("frontend.mean", published, "nothing".into()));
    }
    Ok(front)
}

/// The stored position embedding (class rows first, then the trained grid by frequency) for the clip in use, in the
/// order of the sequence.
fn sequence_pos_embed(stored: &[f32], c: &Config) -> Vec<f32> {
    let (d, classes, n) = (c.embed_dim, c.class.tokens(), c.patches());
    let (from, to) = (c.trained, c.grid());
    let (class_rows, grid) = stored.split_at(classes * d);
    let fitted = if from == to {
        grid.to_vec()
    } else {
        // Channels first for the interpolation, rows last again after it.
        let m = from.0 * from.1;
        let planes: Vec<f32> = (0..d * m).map(|i| grid[i % m * d + i / m]).collect();
        let mut out = vec![0.0; d * n];
        bilinear_grid(&planes, d, from, to, &mut out);
        (0..n * d).map(|i| out[i % d * n + i / d]).collect()
    };
    let mut rows = vec![0.0; c.tokens() * d];
    for i in 0..n {
        let (f, t) = c.place(i);
        rows[c.class.patch_row(i, n) * d..][..d].copy_from_slice(&fitted[(f * to.1 + t) * d..][..d]);
    }
    for (i, row) in class_rows.chunks_exact(d).enumerate() {
        let at = if i == 1 { n + 1 } else { c.class.row(n) };
        rows[at * d..][..d].copy_from_slice(row);
    }
    rows
}

impl Model for Aum {
    fn info(&self) -> &Info {
        &self.info
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) {
        for step in 0..len {
            if self.causal {
                rows.iter_mut().for_each(|row| self.causal_step(cx, row, step, scratch));
            } else {
                self.clip_step(cx, rows, step, scratch, no_tap);
            }
        }
    }

    /// Silence passes: its frames move into the clip, a recurrent stream's h fades.
    fn gap(&self, state: &mut State, periods: f64) {
        let c = &self.config;
        if self.listen == Listen::Clip {
            for (layer, at) in self.layers.iter().zip(&self.places.layers) {
                layer.mixer.gap(&mut state.data, at, periods * c.tokens() as f64);
            }
            return;
        }
        // As a whole number of steps, so that frames and patches stay where they would be.
        let steps = periods.round().clamp(0.0, 1e15) as u64;
        if steps == 0 {
            return;
        }
        let before = self.frames_after(state.steps);
        state.steps = state.steps.saturating_add(steps).min(MAX_STEPS);
        let frames = self.frames_after(state.steps);
        if matches!(self.listen, Listen::Samples(_)) {
            let samples = &mut state.data[self.places.samples.clone()];
            samples.fill(0.0);
            let heard = state.steps * self.info.input.len() as u64;
            samples[0] = (heard as i64 - (frames * self.front.hop() as u64) as i64) as f32;
        }
        let silence = self.front.normalise(self.front.fbank().config().silence());
        let held = &mut state.data[self.places.frames.clone()];
        if self.causal {
            let columns = self.columns_after(frames) - self.columns_after(before);
            held.fill(silence);
            for (layer, at) in self.layers.iter().zip(&self.places.layers) {
                layer.mixer.gap(&mut state.data, at, columns as f64 * c.grid().0 as f64);
            }
        } else {
            let new = (frames - before).min(c.clip.1 as u64) as usize * c.clip.0;
            held.copy_within(new.., 0);
            let at = held.len() - new;
            held[at..].fill(silence);
        }
    }

    fn upstream_state(&self, state: &State, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let (i, what) = name.strip_prefix("layer")?.split_once('.')?;
        let i: usize = i.parse().ok()?;
        self.layers.get(i)?.mixer.upstream_state(&state.data, self.places.layers.get(i)?, what)
    }
}

/// Golden files: the clip with all that lies on the way, the states at its end, the front end before it, and the same
/// clip as a stream of frames and of samples.
fn verify(g: &mut Golden<'_>) -> Result<(), Error> {
    const LOGITS: f32 = 5e-5;
    const TAPS: f32 = 5e-4;
    let (shape, x) = g.tensor("__input__")?;
    let &[batch, frames, bins] = &shape[..] else {
        return Err(Error::Input { expected: "__input__ of (B, T, F)".into(), got: format!("{shape:?}") });
    };
    let options = Options { clip: Some((frames, bins)), ..g.open_options() };

    // The clip, every row a stream of its own.
    let carried = g.has("__state__.layer0.ssm");
    let model = Aum::load(g.weights(), &Options { carry: carried, ..options.clone() })?;
    let mut rows: Vec<Row> =
        x.chunks_exact(frames * bins).map(|x| Row { x: x.to_vec(), ..Row::new(&model, 1) }).collect();
    let mut taps: Vec<(String, Vec<f32>)> = vec![];
    let (cx, scratch) = g.bench();
    model.clip_step(cx, &mut rows, 0, scratch, |tap, values| {
        let name = match tap {
            Tap::PatchEmbed => "__tap__.patch_embed".to_owned(),
            Tap::PosEmbed => "__tap__.pos_embed".to_owned(),
            Tap::Hidden(i) => format!("__tap__.layer{i}.hidden"),
            Tap::Residual(i) => format!("__tap__.layer{i}.residual"),
            Tap::Features => "__tap__.features".to_owned(),
        };
        match taps.iter_mut().find(|(n, _)| *n == name) {
            Some((_, got)) => got.extend_from_slice(values),
            None => taps.push((name, values.to_vec())),
        }
    });
    let y: Vec<f32> = rows.iter().flat_map(|r| r.y.clone()).collect();
    g.check("__output__", &y, LOGITS)?;
    for (name, got) in &taps {
        if g.has(name) {
            // Both are taken before the tokens are put in the order of time.
            let by_frequency = match name.as_str() {
                "__tap__.patch_embed" => model.by_frequency(got, batch, false),
                "__tap__.pos_embed" => model.by_frequency(got, batch, true),
                _ => got.clone(),
            };
            g.check(name, &by_frequency, TAPS)?;
        }
    }
    g.check_states("__state__.", &model, &rows, TAPS)?;

    // The samples it was made from.
    if g.has("__waveform__") {
        let (shape, waves) = g.tensor("__waveform__")?;
        let n = shape.last().copied().unwrap_or(0).max(1);
        let front = front_end(&model.config, &options, "config")?;
        let fbank = front.fbank();
        let (mut raw, mut inputs) = (vec![], vec![]);
        for wave in waves.chunks(n) {
            let (mut state, mut work) = (vec![0.0; fbank.state_len()], fbank.work());
            fbank.push(&mut state, wave, &mut work, |frame| raw.extend_from_slice(frame));
            fbank.finish(&mut state, &mut work, |frame| raw.extend_from_slice(frame));
            inputs.extend(front.clip(wave, frames));
        }
        if g.has("__fbank__") {
            g.check("__fbank__", &raw, 5e-3)?;
        }
        g.check("__input__", &inputs, 5e-3)?;
        let mut y = vec![];
        for input in inputs.chunks(frames * bins) {
            y.extend(g.run_frames(&model, input)?);
        }
        g.check("__output__", &y, 5e-3)?;
        // A stream of samples, a frame at a time as far as the samples go, gives the scores of the clip heard so far.
        let hops = n / front.hop();
        let every = (1..=hops.div_ceil(8).max(1)).rev().find(|k| hops.is_multiple_of(*k)).unwrap_or(1);
        let listen = Listen::Samples(every);
        let stream = Aum::load(g.weights(), &Options { listen, ..options.clone() })?;
        if hops * front.hop() == n && fbank.frames(n as u64) == fbank.clip_frames(n as u64) && !stream.causal {
            let mut y = vec![];
            for wave in waves.chunks(n) {
                y.extend(g.run_last(&stream, wave));
            }
            g.check("__output__", &y, 5e-3)?;
        }
    }

    // The clip as a stream of frames.
    let step = if model.config.class == Class::End { model.config.strides.1 } else { frames.div_ceil(4) };
    let every = (1..=step).rev().find(|k| frames.is_multiple_of(*k)).unwrap_or(1);
    let stream = Aum::load(g.weights(), &Options { listen: Listen::Frames(every), ..options })?;
    let mut y = vec![];
    for clip in x.chunks_exact(frames * bins) {
        y.extend(g.run_last(&stream, clip));
    }
    g.check("__output__", &y, LOGITS)
}

impl Aum {
    /// Tokens of `batch` clips, brought from the order of the sequence to the order by frequency.
    fn by_frequency(&self, x: &[f32], batch: usize, with_class: bool) -> Vec<f32> {
        let (c, d, n) = (&self.config, self.config.embed_dim, self.config.patches());
        let per = if with_class { c.tokens() } else { n };
        let mut out = x.to_vec();
        for b in 0..batch {
            for i in 0..n {
                let (f, t) = c.place(i);
                let by_frequency = f * c.grid().1 + t;
                let row = |i: usize| b * per + if with_class { c.class.patch_row(i, n) } else { i };
                out[row(by_frequency) * d..][..d].copy_from_slice(&x[row(i) * d..][..d]);
            }
        }
        out
    }
}
