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
use crate::config::Fields;
use crate::error::Error;
use crate::families::{Family, Listen, Options, Output};
use crate::mixer::Mixer;
use crate::model::{Facts, Info, Model, Row, Scratch, Signal, carve, line};
use crate::state::{State, StateLayout};
use crate::trunk::{Layer, Tap, Trunk, no_tap};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::resize::bilinear_grid;
use ssm_kernels::{Act, Cx, Mat, MatMut};
use std::sync::Arc;

mod config;
mod ears;
mod verify;

use config::{Config, Size};
use ears::Ears;

pub(crate) const FAMILY: Family = Family {
    name: "aum",
    detect: |f| {
        f.shape("patch_embed.proj.weight").is_some_and(|s| s.get(1) == Some(&1))
            && f.shape("layers.0.mixer.A_log").is_some()
            && f.shape("pos_embed").is_none()
    },
    open: |file, options| Ok(Arc::new(Aum::load(file, options)?)),
    verify: verify::verify,
};

/// An audio classifier.
struct Aum {
    config: Config,
    info: Info,
    layout: StateLayout,
    ears: Ears,
    patch_embed: Linear, // (D, time · frequency)
    pos_embed: Vec<f32>, // (L, D) in the order of the sequence, the class tokens' own values added to their rows
    trunk: Trunk,
}

impl Aum {
    fn load(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let config = Config::read(file, options)?;
        let (d, level, (pf, pt)) = (config.embed_dim, options.level, config.patch);
        let w = Reader::new(file);
        let norm = |w: &Reader<'_>, name: &str| Trunk::norm(w, name, d, config.norm_eps);
        let proj = w.take("patch_embed.proj.weight", &[d, 1, pf, pt])?;
        let proj_bias = w.take("patch_embed.proj.bias", &[d])?;
        let rows = config.trained.0 * config.trained.1 + config.class.tokens();
        let stored = w.take_optional("pos_embed.pos_embed", &[1, rows, d])?;
        let mut pos_embed = match stored {
            Some(stored) => sequence_pos_embed(&stored, &config),
            None => vec![0.0; config.tokens() * d],
        };
        config.class.add(&w, &mut pos_embed, d)?;
        let mut layers = Vec::with_capacity(config.depth);
        for i in 0..config.depth {
            let w = w.at(&format!("layers.{i}."));
            let mixer = Mixer::load_both(&w.at("mixer."), level, d, config.if_devide_out)?;
            layers.push(Layer { norm: norm(&w, "norm")?, mixer });
        }
        let norm_f = norm(&w, "norm_f")?;
        let head = w.take("head.weight", &[config.num_classes, d])?;
        let head_bias = w.take("head.bias", &[config.num_classes])?;
        w.finish()?;
        let fields = Fields::new(options.config.as_ref(), file.path.display().to_string());
        layers.iter().try_for_each(|layer| layer.mixer.agree(&fields))?;

        let (mut layout, path) = (StateLayout::new(), file.path.display().to_string());
        let ears = Ears::open(&config, options, &path, layers.iter().map(|l| &l.mixer), &mut layout)?;
        let mixer = layers.first().map(|l| &l.mixer);
        let kind = match (mixer.is_some_and(Mixer::is_bidirectional), mixer.is_some_and(Mixer::has_own_backward)) {
            (_, true) => "Bi-Bi",
            (true, false) => "Fo-Bi",
            _ => "Fo-Fo",
        };
        let features = options.output == Output::Features;
        let results = if config.pool.apart(config.class, features) { config.tokens() } else { 1 };
        let what = if features { " features" } else { "" };
        let info = Info {
            family: FAMILY.name,
            facts: Facts { paced: true, ..Facts::default() },
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
            input: ears.input(),
            output: match features {
                true => Signal::Vector { dim: results * d },
                false => Signal::Logits { classes: results * config.num_classes },
            },
            delay: 0,
            hash: file.hash(&format!("{config:?} {:?} {:?} carry={}{what}", options.listen, ears.front, options.carry)),
        };
        let column = |o: usize, k: usize| proj[(o * pf + k % pf) * pt + k / pf];
        Ok(Self {
            patch_embed: Linear::pack_with(level, d, pt * pf, Some(&proj_bias), column),
            trunk: Trunk {
                layers,
                norm_f,
                head: (!features).then(|| Linear::pack(level, &head, config.num_classes, d, Some(&head_bias))),
                class: config.class,
                pool: config.pool,
            },
            info,
            layout,
            ears,
            pos_embed,
            config,
        })
    }

    /// Working memory of `batch` sequences of `tokens` tokens each.
    fn network_len(&self, batch: usize, tokens: usize) -> usize {
        let c = &self.config;
        let m = batch * tokens;
        let embed = line(tokens * c.patch.0 * c.patch.1);
        3 * line(m * c.embed_dim) + embed.max(self.trunk.scratch_len(m)) + line(c.embed_dim) + line(c.num_classes)
    }

    /// Working memory of a step of `batch` streams.
    fn scratch_len(&self, batch: usize) -> usize {
        let c = &self.config;
        let fresh = line(self.ears.fresh() * c.clip.0);
        if self.ears.causal {
            let column = self.network_len(1, c.grid().0.max(1));
            fresh + line(self.ears.kept.len()) + column
        } else {
            fresh + line(c.clip.0 * c.clip.1) + self.network_len(batch, c.tokens())
        }
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
        let (work, slab) = scratch.with_fbank(self.ears.front.fbank(), self.scratch_len(b));
        let s = &mut &mut *slab;
        let (residual, hidden, normed) = (carve(s, m * d), carve(s, m * d), carve(s, m * d));
        let (pooled, scores) = (carve(s, d), carve(s, c.num_classes));
        let (fresh, clip) = (carve(s, self.ears.fresh() * bins), carve(s, bins * c.clip.1));
        for (i, row) in rows.iter_mut().enumerate() {
            let tokens = &mut hidden[i * l * d..][..l * d];
            if self.ears.listen == Listen::Clip {
                self.tokens(cx, &row.x[step * input..][..input], s, normed, tokens);
            } else {
                let heard = self.ears.frames_after(row.state.steps).min(c.clip.1 as u64) as usize;
                let new = self.ears.hear(row, step, work, fresh);
                let given = (heard + new).min(c.clip.1);
                let frames = &mut row.state.data[self.ears.frames.clone()];
                // The newest frames stand at the end.
                let kept = new.min(c.clip.1);
                frames.copy_within(kept * bins.., 0);
                let at = frames.len() - kept * bins;
                frames[at..].copy_from_slice(&fresh[(new - kept) * bins..new * bins]);
                clip[..given * bins].copy_from_slice(&frames[(c.clip.1 - given) * bins..]);
                self.ears.front.pad(clip, given);
                self.tokens(cx, clip, s, normed, tokens);
            }
            tap(Tap::PatchEmbed, &normed[..c.patches() * d]);
            row.state.steps = row.state.steps.saturating_add(1);
        }
        tap(Tap::Tokens, hidden);
        self.trunk.blocks(cx, rows, &self.ears.layers, [&mut *residual, &mut *hidden, &mut *normed], s, &mut tap);
        for (i, row) in rows.iter_mut().enumerate() {
            let part = i * l * d..(i + 1) * l * d;
            let y = &mut row.y[step * output..][..output];
            let streams = [&mut residual[part.clone()], &mut hidden[part.clone()], &mut normed[part]];
            self.trunk.score(cx, streams, (&mut *pooled, &mut *scores), y, &mut tap);
        }
    }

    /// One step of a recurrent stream.
    fn causal_step(&self, cx: &Cx, row: &mut Row, step: usize, scratch: &mut Scratch) {
        let c = &self.config;
        let (d, bins, (grid_f, grid_t)) = (c.embed_dim, c.clip.0, c.grid());
        let output = self.info.output.len();
        let (work, slab) = scratch.with_fbank(self.ears.front.fbank(), self.scratch_len(1));
        let s = &mut &mut *slab;
        let m = grid_f.max(1);
        let (residual, hidden, normed) = (carve(s, m * d), carve(s, m * d), carve(s, m * d));
        let (pooled, scores) = (carve(s, d), carve(s, c.num_classes));
        let (fresh, kept) = (carve(s, self.ears.fresh() * bins), carve(s, self.ears.kept.len()));
        let heard = self.ears.frames_after(row.state.steps);
        let mut column = self.ears.columns_after(heard);
        let mut waiting = (heard - column * c.strides.1 as u64) as usize;
        let new = self.ears.hear(row, step, work, fresh);
        for frame in fresh[..new * bins].chunks_exact(bins) {
            let frames = &mut row.state.data[self.ears.frames.clone()];
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
            self.trunk.blocks(cx, std::slice::from_mut(row), &self.ears.layers, streams, s, no_tap);
        }
        // The class token is looked at and forgotten.
        kept.copy_from_slice(&row.state.data[self.ears.kept.clone()]);
        let [residual, hidden, normed] = [residual, hidden, normed].map(|v| &mut v[..d]);
        hidden.copy_from_slice(&self.pos_embed[c.patches() * d..][..d]);
        let streams = [&mut *residual, &mut *hidden, &mut *normed];
        self.trunk.blocks(cx, std::slice::from_mut(row), &self.ears.layers, streams, s, no_tap);
        row.state.data[self.ears.kept.clone()].copy_from_slice(kept);
        let y = &mut row.y[step * output..][..output];
        self.trunk.score(cx, [residual, hidden, normed], (pooled, scores), y, no_tap);
        row.state.steps = row.state.steps.saturating_add(1);
    }
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
            if self.ears.causal {
                rows.iter_mut().for_each(|row| self.causal_step(cx, row, step, scratch));
            } else {
                self.clip_step(cx, rows, step, scratch, no_tap);
            }
        }
    }

    /// Silence passes: its frames move into the clip, a recurrent stream's h fades.
    fn gap(&self, state: &mut State, periods: f64) {
        let c = &self.config;
        if self.ears.listen == Listen::Clip {
            for (layer, at) in self.trunk.layers.iter().zip(&self.ears.layers) {
                layer.mixer.gap(&mut state.data, at, periods * c.tokens() as f64);
            }
            return;
        }
        // As a whole number of steps, so that frames and patches stay where they would be.
        let steps = periods.round().clamp(0.0, 1e15) as u64;
        if steps > 0 {
            let columns = self.ears.silence(state, steps);
            for (layer, at) in self.trunk.layers.iter().zip(&self.ears.layers) {
                layer.mixer.gap(&mut state.data, at, columns as f64 * c.grid().0 as f64);
            }
        }
    }

    fn upstream_state(&self, state: &State, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let (i, what) = name.strip_prefix("layer")?.split_once('.')?;
        let i: usize = i.parse().ok()?;
        self.trunk.layers.get(i)?.mixer.upstream_state(&state.data, self.ears.layers.get(i)?, what)
    }
}
