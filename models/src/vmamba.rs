//! VMamba: Visual State Space Model (Liu et al. 2024, arXiv 2401.10166, Figures 2 and 3).
//!
//! A frame is cut into patches and runs through stages of blocks; between two stages it shrinks by two. A block scans the
//! pixels in four orders at once (SS2D) and then mixes channels (MLP). Every published file loads under its own names, the
//! older ones included; sizes are read off the tensors. What the tensors do not say (scan orders, activations, the layout
//! that patch merging pads in) comes from the file's `config`, else from the published models.
//!
//! Pixels are rows here, line by line, channels innermost: what upstream calls channel last. Its channel-first networks
//! are the same functions.

use crate::card::{Network, Weights};
use crate::checkpoint::{Checkpoint, Reader};
use crate::config::arguments;
use crate::error::Error;
use crate::families::{Family, Options, Output, lowered};
use crate::model::{Facts, Info, Model, Row, Scratch, Signal, carve, line};
use crate::state::{State, StateLayout};
use ssm_kernels::activation::softplus;
use ssm_kernels::cross_scan::CrossScan;
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::norm::{Norm, norm};
use ssm_kernels::resize::bicubic_grid;
use ssm_kernels::{Act, Cx, Mat, MatMut};
use std::ops::Range;
use std::sync::Arc;

mod card;
mod config;
mod parts;
mod ss2d;
#[cfg(test)]
mod tests;
mod verify;

pub(crate) use card::VMambaNet;
use config::{Config, Fields};
use parts::{Downsample, Mlp, PatchEmbed, name, name_of, take_norm};
use ss2d::{ORDERS, Ss2d};

pub(crate) const FAMILY: Family = Family {
    name: "vmamba",
    detect: |f| ["op", "self_attention"].iter().any(|op| f.shape(&format!("layers.0.blocks.0.{op}.A_logs")).is_some()),
    open: |file, options| Ok(Arc::new(VMamba::load(file, options)?)),
    verify: verify::verify,
};

/// Pixels of a frame after the patch embedding, at most.
const MAX_PIXELS: usize = 1 << 18;

struct Block {
    norm: Norm, // (C)
    op: Ss2d,
    mlp: Option<Mlp>,
    /// Where the end states of the forward orders lie, (orders, N, Di); only if frames are carried.
    carried: Option<Range<usize>>,
}

struct Stage {
    dim: usize, // C
    size: (usize, usize),
    blocks: Vec<Block>,
    scans: CrossScan,
    /// Norm of the stage's own output; only in backbones of dense tasks.
    outnorm: Option<Norm>,
    downsample: Option<Downsample>,
}

impl Stage {
    /// Values of a frame between blocks.
    fn len(&self) -> usize {
        self.size.0 * self.size.1 * self.dim
    }

    fn scratch_len(&self, batch: usize, threads: usize) -> usize {
        let m = batch * self.size.0 * self.size.1;
        let blocks = self.blocks.iter().map(|b| {
            let op = line(m * self.dim) + b.op.scratch_len(m);
            b.mlp.as_ref().map_or(op, |mlp| op.max(mlp.scratch_len(m, threads)))
        });
        let downsample = self.downsample.as_ref().map_or(0, |d| d.scratch_len(self.size, threads));
        blocks.max().unwrap_or(0).max(downsample).max(line(self.len()))
    }

    /// The stage's blocks over x, the pixels of the frames of `rows`.
    fn forward(
        &self,
        cx: &Cx,
        i: usize,
        x: &mut [f32],
        rows: &mut [Row],
        work: &mut [f32],
        tap: &mut dyn FnMut(Place, Tap, &[f32]),
    ) {
        let (c, m) = (self.dim, rows.len() * self.size.0 * self.size.1);
        for (j, block) in self.blocks.iter().enumerate() {
            let mut tap = |what: Tap, x: &[f32]| tap((i, j), what, x);
            tap(Tap::Input, x);
            // x += op(norm(x)); x += mlp(norm2(x))
            let mut s = &mut *work;
            let normed = carve(&mut s, m * c);
            norm(cx, &block.norm, Mat::new(x, m, c), MatMut::new(normed, m, c));
            tap(Tap::Norm, normed);
            let (normed, out) = (Mat::new(normed, m, c), MatMut::new(x, m, c));
            block.op.forward(cx, normed, rows, self, block.carried.as_ref(), s, out, &mut tap);
            tap(Tap::Mixed, x);
            if let Some(mlp) = &block.mlp {
                mlp.forward(cx, x, m, work);
            }
            tap(Tap::Block, x);
        }
    }
}

/// What is made of the last stage.
struct Classifier {
    norm: Norm,           // (C)
    head: Option<Linear>, // (classes, C); none where the features are the result
}

/// A place in a forward pass that golden files know: of a block, or of a stage (the block is then 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tap {
    PatchEmbed,
    /// A block's input.
    Input,
    Norm,
    /// The sum of the four scans.
    Merged,
    OutNorm,
    /// A block's input with the SSM's output added.
    Mixed,
    /// A block's output.
    Block,
    /// The next stage's input.
    Downsampled,
    Features,
}

/// Stage and block.
type Place = (usize, usize);

/// A VMamba: a classifier, or the backbone of a dense task.
pub(crate) struct VMamba {
    config: Config,
    info: Info,
    layout: StateLayout,
    patch_embed: PatchEmbed,
    pos_embed: Option<Vec<f32>>, // (pixels, C)
    stages: Vec<Stage>,
    /// `None`: the normed outputs of the stages are the result.
    classifier: Option<Classifier>,
}

impl VMamba {
    pub(crate) fn load(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let config = Config::read(file, options)?;
        let f = Fields { file, model: options.config.as_ref().map(arguments) };
        let (w, level) = (Reader::new(file), options.level);
        let patch_embed = PatchEmbed::load(&w, level, &config, &f)?;
        let (mut size, mut dim) = (patch_embed.out_size(config.image), patch_embed.proj.conv.out_channels());
        let fits = |stage: usize, (h, w): (usize, usize), dim: usize| {
            if h == 0 || w == 0 || h.saturating_mul(w) > MAX_PIXELS {
                let (expected, got) = (format!("1 to {MAX_PIXELS} pixels in stage {stage}"), format!("{h}x{w} pixels"));
                return Err(f.bad("frame size", expected, got));
            }
            if dim == 0 {
                return Err(f.bad("dims", format!("channels in stage {stage}"), "none"));
            }
            Ok(())
        };
        fits(0, size, dim)?;
        let pos_embed = if w.has("pos_embed") || f.flag("posembed")? == Some(true) {
            let grid = match w.shape("pos_embed") {
                Some(&[_, _, h, w]) if h > 0 && w > 0 => (h, w),
                Some(&[_, _, h, w]) => return Err(f.bad("pos_embed", "rows and columns", format!("{h}x{w}"))),
                _ => size,
            };
            Some(fit_pos_embed(&w.take("pos_embed", &[1, dim, grid.0, grid.1])?, dim, grid, size))
        } else {
            None
        };

        let said = f.said();
        said.agree(&["in_chans"], config.in_chans)?;

        let mode = config.forward_type.mode;
        let forward_orders = (0..ORDERS).filter(|k| mode.is_forward(*k)).count();
        let mut layout = StateLayout::new();
        let mut stages: Vec<Stage> = Vec::with_capacity(config.depths.len());
        for (i, depth) in config.depths.iter().enumerate() {
            f.agree_dim(i, dim)?;
            let layer = w.at(&format!("layers.{i}."));
            let mut blocks = Vec::with_capacity(*depth);
            for j in 0..*depth {
                let block = layer.at(&format!("blocks.{j}."));
                let op = block.at(&format!("{}.", name_of(&block, "op", "self_attention", ".A_logs")));
                let mut op = Ss2d::load(&op, level, &config, dim, &f)?;
                op.lower(options.precision);
                said.agree(&["ssm_d_state"], op.d_state)?;
                said.agree(&["ssm_dt_rank"], op.dt_rank)?;
                said.agree_ratio("ssm_ratio", dim, op.d_inner)?;
                let mut mlp = if config.mlp { Some(Mlp::load(&block, level, &config, dim)?) } else { None };
                mlp.iter_mut().for_each(|mlp| mlp.lower(options.precision));
                let shape = [forward_orders, op.d_state, op.d_inner];
                blocks.push(Block {
                    norm: take_norm(&block, name(&block, "norm", "ln_1"), dim)?,
                    op,
                    mlp,
                    carried: options.carry.then(|| layout.add(format!("layers.{i}.blocks.{j}.h"), &shape)),
                });
            }
            let outnorm = format!("outnorm{i}");
            let outnorm = w.has(&format!("{outnorm}.weight")).then(|| take_norm(&w, &outnorm, dim)).transpose()?;
            let scans = CrossScan::new(mode, size.0, size.1);
            let mut stage = Stage { dim, size, blocks, scans, outnorm, downsample: None };
            if i + 1 < config.depths.len() {
                let mut downsample = Downsample::load(&layer.at("downsample."), level, dim, &f)?;
                if let Downsample::Merge { reduction, .. } = &mut downsample {
                    reduction.lower(options.precision);
                }
                let odd = size.0 % 2 == 1 || size.1 % 2 == 1;
                if odd && config.channel_first && matches!(downsample, Downsample::Merge { .. }) {
                    // Upstream pads other axes there and fails.
                    let got = format!("{}x{} pixels in stage {i}", size.0, size.1);
                    return Err(f.bad("frame size", "even stages for patch merging with channels first", got));
                }
                (size, dim) = (downsample.out_size(size), downsample.out_channels());
                fits(i + 1, size, dim)?;
                stage.downsample = Some(downsample);
            }
            stages.push(stage);
        }
        // A classifier ends in its head, the backbone of a dense task in the norms of its stages.
        let (norm, head) = (name(&w, "classifier.norm", "norm"), name(&w, "classifier.head", "head"));
        let has_head = [norm, head].iter().any(|n| w.has(&format!("{n}.weight")));
        let classifier = if !has_head && stages.iter().any(|s| s.outnorm.is_some()) {
            None
        } else {
            let classes = w.shape(&format!("{head}.weight")).and_then(|s| s.first()).copied();
            if let Some(classes) = classes {
                said.agree(&["num_classes"], classes)?;
            }
            let classes = classes.unwrap_or(1);
            let head = if options.output == Output::Features {
                // Of no use then, and a trunk may come without.
                w.take_optional(&format!("{head}.weight"), &[classes, dim])?;
                w.take_optional(&format!("{head}.bias"), &[classes])?;
                None
            } else {
                let weight = w.take(&format!("{head}.weight"), &[classes, dim])?;
                let bias = w.take(&format!("{head}.bias"), &[classes])?;
                if classes == 0 {
                    return Err(f.bad(head, "one class or more", "none"));
                }
                let mut head = Linear::pack(level, &weight, classes, dim, Some(&bias));
                head.lower(options.precision);
                Some(head)
            };
            Some(Classifier { norm: take_norm(&w, norm, dim)?, head })
        };
        w.finish()?;

        let headless = classifier.as_ref().is_some_and(|c| c.head.is_none());
        let features = if headless { " features" } else { "" };
        let info = Info {
            family: FAMILY.name,
            facts: Facts { precision: options.precision, ..Facts::default() },
            sizes: sizes(&config, &stages),
            parameters: file.parameters(),
            input: Signal::Image { channels: config.in_chans, height: config.image.0, width: config.image.1 },
            output: match &classifier {
                Some(Classifier { head: Some(head), .. }) => Signal::Logits { classes: head.n() },
                Some(c) => Signal::Vector { dim: c.norm.weight.len() },
                None => Signal::Vector { dim: stages.iter().filter(|s| s.outnorm.is_some()).map(Stage::len).sum() },
            },
            delay: 0,
            hash: file.hash(&format!("{config:?} carry={}{features}{}", options.carry, lowered(options.precision))),
        };
        Ok(Self { config, info, layout, patch_embed, pos_embed, stages, classifier })
    }

    /// Values between blocks, in the stage that has most, for one frame.
    fn stream_len(&self) -> usize {
        self.stages.iter().map(Stage::len).max().unwrap_or(0)
    }

    /// Features and scores of a classifier.
    fn head_len(&self) -> (usize, usize) {
        let width = |c: &Classifier| (c.norm.weight.len(), c.head.as_ref().map_or(0, Linear::n));
        self.classifier.as_ref().map_or((0, 0), width)
    }

    /// Working memory of a pass over `batch` frames on `threads` threads.
    pub(crate) fn scratch_len(&self, batch: usize, threads: usize) -> usize {
        let embed = self.patch_embed.scratch_len(self.config.in_chans, self.config.image, threads);
        let stages = self.stages.iter().map(|s| s.scratch_len(batch, threads)).max().unwrap_or(0);
        let (features, scores) = self.head_len();
        let head = line(batch * features) + line(batch * scores);
        2 * line(batch * self.stream_len()) + head + embed.max(stages)
    }

    /// One frame of every row, to its output.
    fn frame(
        &self,
        cx: &Cx,
        rows: &mut [Row],
        frame: usize,
        scratch: &mut Scratch,
        tap: &mut dyn FnMut(Place, Tap, &[f32]),
    ) {
        let s = scratch.take(self.scratch_len(rows.len(), cx.team.threads()));
        self.frame_to(cx, rows, frame, s, None, tap);
        rows.iter_mut().for_each(|row| row.state.steps += 1);
    }

    /// The features of frame `frame` of every row's input, row by row to `out`.
    pub(crate) fn features(&self, cx: &Cx, rows: &mut [Row], frame: usize, scratch: &mut [f32], out: MatMut<'_>) {
        self.frame_to(cx, rows, frame, scratch, Some(out), &mut |_, _, _| ());
    }

    /// Whether the network ends in a mean over its pixels.
    pub(crate) fn is_pooled(&self) -> bool {
        self.classifier.is_some()
    }

    fn frame_to(
        &self,
        cx: &Cx,
        rows: &mut [Row],
        frame: usize,
        mut scratch: &mut [f32],
        mut out: Option<MatMut<'_>>,
        tap: &mut dyn FnMut(Place, Tap, &[f32]),
    ) {
        let batch = rows.len();
        let (input, output) = (self.info.input.len(), self.info.output.len());
        let s = &mut scratch;
        let (mut x, mut next) = (carve(s, batch * self.stream_len()), carve(s, batch * self.stream_len()));
        let head = self.head_len();
        let (features, scores) = (carve(s, batch * head.0), carve(s, batch * head.1));
        let work = &mut **s;

        let first = self.stages.first().map_or(0, Stage::len);
        for (row, x) in rows.iter().zip(x.chunks_exact_mut(first)) {
            self.patch_embed.forward(cx, &row.x[frame * input..][..input], self.config.image, work, x);
        }
        tap((0, 0), Tap::PatchEmbed, &x[..batch * first]);
        if let Some(pos) = &self.pos_embed {
            for x in x[..batch * first].chunks_exact_mut(first) {
                x.iter_mut().zip(pos).for_each(|(x, p)| *x += p);
            }
        }
        let mut at = frame * output;
        for (i, stage) in self.stages.iter().enumerate() {
            let (len, c) = (stage.len(), stage.dim);
            let pixels = len / c;
            stage.forward(cx, i, &mut x[..batch * len], rows, work, tap);
            if let (Some(w), None) = (&stage.outnorm, &self.classifier) {
                for (row, x) in rows.iter_mut().zip(x.chunks_exact(len)) {
                    let normed = &mut work[..len];
                    norm(cx, w, Mat::new(x, pixels, c), MatMut::new(normed, pixels, c));
                    // Planes, as upstream gives them.
                    for (ch, plane) in row.y[at..at + len].chunks_exact_mut(pixels).enumerate() {
                        plane.iter_mut().zip(normed.iter().skip(ch).step_by(c)).for_each(|(y, v)| *y = *v);
                    }
                }
                at += len;
            }
            if let Some(downsample) = &stage.downsample {
                let (h, w) = downsample.out_size(stage.size);
                let small = h * w * downsample.out_channels();
                for (x, next) in x.chunks_exact(len).zip(next.chunks_exact_mut(small)).take(batch) {
                    downsample.forward(cx, Mat::new(x, pixels, c), stage.size, work, next);
                }
                std::mem::swap(&mut x, &mut next);
                tap((i, 0), Tap::Downsampled, &x[..batch * small]);
            }
        }
        if let (Some(w), Some(last)) = (&self.classifier, self.stages.last()) {
            // features = mean over pixels of norm(x); y = head(features)
            let (len, c) = (last.len(), last.dim);
            let m = len / c;
            for (x, features) in x.chunks_exact(len).zip(features.chunks_exact_mut(c)) {
                let normed = &mut work[..len];
                norm(cx, &w.norm, Mat::new(x, m, c), MatMut::new(normed, m, c));
                mean_pixels(normed, last.size.1, c, features);
            }
            tap((0, 0), Tap::Features, features);
            let y = match &w.head {
                Some(head) => {
                    let y = MatMut::new(scores, batch, head.n());
                    linear(cx, Mat::new(features, batch, c), head, Act::None, Store::Set, y);
                    &*scores
                }
                None => &*features,
            };
            for (i, (row, y)) in rows.iter_mut().zip(y.chunks_exact(output)).enumerate() {
                match &mut out {
                    Some(out) => out.row(i).copy_from_slice(y),
                    None => row.y[at..at + output].copy_from_slice(y),
                }
            }
        }
    }
}

/// Mean over the pixels of `c` channels: each line is summed for itself, so that many pixels cost few digits. Leaves the
/// sums of the lines in `x`.
fn mean_pixels(x: &mut [f32], width: usize, c: usize, mean: &mut [f32]) {
    let pixels = x.len() / c;
    mean.fill(0.0);
    for row in x.chunks_exact_mut(width * c) {
        let (sum, rest) = row.split_at_mut(c);
        for pixel in rest.chunks_exact(c) {
            sum.iter_mut().zip(pixel).for_each(|(s, v)| *s += v);
        }
        mean.iter_mut().zip(&*sum).for_each(|(m, s)| *m += s);
    }
    mean.iter_mut().for_each(|m| *m /= pixels as f32);
}

/// The stored position embedding (C, height, width), fitted to the first stage's pixels: (pixels, C).
fn fit_pos_embed(stored: &[f32], c: usize, from: (usize, usize), to: (usize, usize)) -> Vec<f32> {
    let m = to.0 * to.1;
    let mut planes = vec![0.0; c * m];
    if from == to {
        planes.copy_from_slice(stored);
    } else {
        bicubic_grid(stored, c, from, to, &mut planes);
    }
    (0..m * c).map(|i| planes[i % c * m + i / c]).collect()
}

/// One line of sizes.
fn sizes(config: &Config, stages: &[Stage]) -> String {
    let join = |values: Vec<usize>| values.iter().map(usize::to_string).collect::<Vec<_>>().join("-");
    let op = stages.first().and_then(|s| s.blocks.first()).map(|b| &b.op);
    let of = |get: fn(&Ss2d) -> usize| op.map_or(0, get);
    format!(
        "C {}, {} blocks, E {}, N {}, R {}, {}{}frame {}x{}",
        join(stages.iter().map(|s| s.dim).collect()),
        join(config.depths.clone()),
        of(|o| o.d_inner),
        of(|o| o.d_state),
        of(|o| o.dt_rank),
        if config.forward_type.gated { "gated, " } else { "" },
        if config.mlp { "MLP, " } else { "" },
        config.image.0,
        config.image.1,
    )
}

impl Model for VMamba {
    fn info(&self) -> &Info {
        &self.info
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) {
        if rows.is_empty() {
            return;
        }
        for frame in 0..len {
            self.frame(cx, rows, frame, scratch, &mut |_, _, _| ());
        }
    }

    fn network(&self, weights: &mut Weights) -> Option<Box<dyn Network>> {
        Some(Box::new(self.on_card(weights)?))
    }

    fn gap(&self, state: &mut State, periods: f64) {
        if periods.is_nan() || periods <= 0.0 {
            return;
        }
        // Every pixel of the frames that are missing is a step without input: h ← exp(a · softplus(dt_bias) · steps) h.
        for stage in &self.stages {
            let steps = periods * (stage.size.0 * stage.size.1) as f64;
            for block in &stage.blocks {
                let (op, Some(at)) = (&block.op, &block.carried) else { continue };
                let per_order = op.d_state * op.d_inner;
                for (i, h) in state.data[at.clone()].iter_mut().enumerate() {
                    let bias = op.dt_projs_bias[i / per_order * op.d_inner + i % op.d_inner];
                    *h *= (f64::from(op.a[i]) * f64::from(softplus(bias)) * steps).exp() as f32;
                }
            }
        }
    }

    /// `layers.I.blocks.J.ssm`: (orders, Di, N), the orders that go forward.
    fn upstream_state(&self, state: &State, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let (i, rest) = name.strip_prefix("layers.")?.split_once(".blocks.")?;
        let j = rest.strip_suffix(".ssm")?;
        let block = self.stages.get(i.parse::<usize>().ok()?)?.blocks.get(j.parse::<usize>().ok()?)?;
        let h = &state.data[block.carried.clone()?];
        let (di, n) = (block.op.d_inner, block.op.d_state);
        let values = (0..h.len()).map(|i| h[i / (n * di) * n * di + i % n * di + i / n % di]).collect();
        Some((vec![h.len() / (n * di), di, n], values))
    }
}
