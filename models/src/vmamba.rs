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
use crate::error::Error;
use crate::families::{Family, Options, Output, lowered};
use crate::mixer::sub;
use crate::model::{Facts, Info, Model, Row, Scratch, Signal, carve, line};
use crate::state::{State, StateLayout};
use ssm_kernels::activation::{apply, gate, softplus};
use ssm_kernels::conv2d::{Conv2d, Depthwise, conv2d, depthwise};
use ssm_kernels::cross_scan::CrossScan;
use ssm_kernels::linear::{Linear, Precision, Store, linear};
use ssm_kernels::norm::{Kind, Norm, norm};
use ssm_kernels::patch::merge;
use ssm_kernels::resize::bicubic_grid;
use ssm_kernels::selective_scan::{Scan, selective_scan};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};
use std::ops::Range;
use std::sync::Arc;

mod card;
mod config;
#[cfg(test)]
mod tests;
mod verify;

pub(crate) use card::VMambaNet;
use config::{Config, Fields, OutNormKind};

pub(crate) const FAMILY: Family = Family {
    name: "vmamba",
    detect: |f| ["op", "self_attention"].iter().any(|op| f.shape(&format!("layers.0.blocks.0.{op}.A_logs")).is_some()),
    open: |file, options| Ok(Arc::new(VMamba::load(file, options)?)),
    verify: verify::verify,
};

/// Scan orders of a block.
const ORDERS: usize = 4;

/// Pixels of a frame after the patch embedding, at most.
const MAX_PIXELS: usize = 1 << 18;

/// The first of two names for which `{name}{ending}` is there; the first if neither is.
fn name_of<'n>(w: &Reader<'_>, new: &'n str, old: &'n str, ending: &str) -> &'n str {
    let has = |name: &str| w.has(&format!("{name}{ending}"));
    if !has(new) && has(old) { old } else { new }
}

/// [`name_of`] for a module with a weight.
fn name<'n>(w: &Reader<'_>, new: &'n str, old: &'n str) -> &'n str {
    name_of(w, new, old, ".weight")
}

/// A LayerNorm over `c` channels.
fn take_norm(w: &Reader<'_>, name: &str, c: usize) -> Result<Norm, Error> {
    let weight = w.take(&format!("{name}.weight"), &[c])?;
    let bias = w.take(&format!("{name}.bias"), &[c])?;
    Ok(Norm::new(Kind::Layer, weight, Some(bias), 1e-5))
}

/// A linear weight, stored `[out, in]` or, by a channel-first network, `[out, in, 1, 1]`.
fn take_linear(
    w: &Reader<'_>,
    level: CpuLevel,
    name: &str,
    [out, inn]: [usize; 2],
    bias: bool,
) -> Result<Linear, Error> {
    let weight = format!("{name}.weight");
    let as_conv = [out, inn, 1, 1];
    let values = w.take(&weight, if w.shape(&weight) == Some(&as_conv) { &as_conv } else { &as_conv[..2] })?;
    let bias = if bias { Some(w.take(&format!("{name}.bias"), &[out])?) } else { None };
    Ok(Linear::pack(level, &values, out, inn, bias.as_deref()))
}

/// A convolution and the norm behind it.
struct ConvNorm {
    conv: Conv2d,
    norm: Option<Norm>,
}

impl ConvNorm {
    /// Reads a convolution with bias, `[out, in, kernel, kernel]`, and its norm.
    fn load(
        w: &Reader<'_>,
        level: CpuLevel,
        (conv, norm): (&str, Option<&str>),
        [out, inn, kernel]: [usize; 3],
        (stride, padding): (usize, usize),
    ) -> Result<Self, Error> {
        let weight = w.take(&format!("{conv}.weight"), &[out, inn, kernel, kernel])?;
        let bias = w.take(&format!("{conv}.bias"), &[out])?;
        Ok(Self {
            conv: Conv2d::pack(level, &weight, [out, inn, kernel], (stride, padding), Some(&bias)),
            norm: norm.map(|n| take_norm(w, n, out)).transpose()?,
        })
    }

    fn out_len(&self, size: (usize, usize)) -> usize {
        let (h, w) = self.conv.out_size(size);
        h * w * self.conv.out_channels()
    }

    fn scratch_len(&self, size: (usize, usize), threads: usize) -> usize {
        line(self.conv.scratch_len(threads)) + line(self.out_len(size))
    }

    fn forward(&self, cx: &Cx, x: Mat<'_>, size: (usize, usize), mut work: &mut [f32], out: &mut [f32]) {
        let (c, len) = (self.conv.out_channels(), self.out_len(size));
        let m = len / c;
        let scratch = carve(&mut work, self.conv.scratch_len(cx.team.threads()));
        match &self.norm {
            None => conv2d(cx, &self.conv, x, size, Act::None, scratch, MatMut::new(out, m, c)),
            Some(w) => {
                let plain = carve(&mut work, len);
                conv2d(cx, &self.conv, x, size, Act::None, scratch, MatMut::new(plain, m, c));
                norm(cx.level, w, Mat::new(plain, m, c), MatMut::new(out, m, c));
            }
        }
    }
}

/// From a frame to the first stage's pixels.
struct PatchEmbed {
    /// v2: a convolution before the other, with GELU between them.
    stem: Option<ConvNorm>,
    proj: ConvNorm,
}

impl PatchEmbed {
    fn load(w: &Reader<'_>, level: CpuLevel, config: &Config, f: &Fields<'_>) -> Result<Self, Error> {
        let v2 = w.has("patch_embed.5.weight");
        f.agree("patchembed_version", if v2 { "v2" } else { "v1" })?;
        let first = name(w, "patch_embed.0", "patch_embed.proj");
        let norm = |name| config.patch_norm.then_some(name);
        let shape = |name: &str| w.shape(&format!("{name}.weight")).unwrap_or_default().to_vec();
        let [out, inn, kernel, _] = shape(first)[..] else {
            // Reports the name, missing or with another rank.
            w.take(&format!("{first}.weight"), &[0, config.in_chans, 4, 4])?;
            return Err(f.bad(first, "[C, channels, P, P]", "no weights"));
        };
        if out == 0 || inn == 0 || kernel == 0 || (v2 && kernel == 1) {
            return Err(f.bad(first, "[C, channels, P, P]", format!("{:?}", shape(first))));
        }
        let norms = norm(name(w, "patch_embed.2", "patch_embed.norm"));
        if !v2 {
            let proj = ConvNorm::load(w, level, (first, norms), [out, inn, kernel], (kernel, 0))?;
            return Ok(Self { stem: None, proj });
        }
        let stem = ConvNorm::load(w, level, (first, norms), [out, inn, kernel], (kernel - 1, 1))?;
        let dim = shape("patch_embed.5").first().copied().unwrap_or(0);
        let names = ("patch_embed.5", norm("patch_embed.7"));
        let proj = ConvNorm::load(w, level, names, [dim, out, kernel], (kernel - 1, 1))?;
        Ok(Self { stem: Some(stem), proj })
    }

    fn out_size(&self, size: (usize, usize)) -> (usize, usize) {
        self.proj.conv.out_size(self.stem.as_ref().map_or(size, |s| s.conv.out_size(size)))
    }

    /// Working memory for one frame of `channels` planes.
    fn scratch_len(&self, channels: usize, size: (usize, usize), threads: usize) -> usize {
        let pixels = line(channels * size.0 * size.1);
        pixels
            + match &self.stem {
                None => self.proj.scratch_len(size, threads),
                Some(stem) => {
                    let proj = self.proj.scratch_len(stem.conv.out_size(size), threads);
                    line(stem.out_len(size)) + stem.scratch_len(size, threads).max(proj)
                }
            }
    }

    /// One frame, plane by plane, to pixels.
    fn forward(&self, cx: &Cx, image: &[f32], size: (usize, usize), mut work: &mut [f32], out: &mut [f32]) {
        let (len, c) = (size.0 * size.1, image.len() / (size.0 * size.1));
        let pixels = carve(&mut work, image.len());
        for (ch, plane) in image.chunks_exact(len).enumerate() {
            pixels.iter_mut().skip(ch).step_by(c).zip(plane).for_each(|(p, v)| *p = *v);
        }
        let pixels = Mat::new(pixels, len, c);
        let Some(stem) = &self.stem else { return self.proj.forward(cx, pixels, size, work, out) };
        let half = carve(&mut work, stem.out_len(size));
        stem.forward(cx, pixels, size, work, half);
        apply(cx.level, Act::Gelu, half);
        let (size, c) = (stem.conv.out_size(size), stem.conv.out_channels());
        self.proj.forward(cx, Mat::new(half, size.0 * size.1, c), size, work, out);
    }
}

/// What follows the sum of the four scans, over Di channels.
enum OutNorm {
    Layer(Norm),
    None,
    Conv(Depthwise),
    LayerConv(Norm, Depthwise),
    Softmax,
    Sigmoid,
}

/// SS2D: the block's token mixer (Figure 3, d).
struct Ss2d {
    in_proj: Linear,            // (Di, C); (2·Di, C) if gated: x, z
    conv2d: Option<Depthwise>,  // (Di, 1, 3, 3)
    x_proj: Linear,             // (4·(R + 2N), Di): dt, b, c of each order
    dt_projs: [Linear; ORDERS], // (Di, R), the bias is added in the scan
    dt_projs_bias: Vec<f32>,    // (4, Di)
    a: Vec<f32>,                // (4, N, Di), -exp(A_logs)
    ds: Vec<f32>,               // (4, Di)
    out_norm: OutNorm,          // (Di)
    out_proj: Linear,           // (C, Di)
    act: Act,
    gate_act: Act,
    out_act: Act,
    d_inner: usize, // Di
    d_state: usize, // N
    dt_rank: usize, // R
}

impl Ss2d {
    /// Reads an SS2D of width `c` at the reader's place; Di, N and R are read off the tensors.
    fn load(w: &Reader<'_>, level: CpuLevel, config: &Config, c: usize, f: &Fields<'_>) -> Result<Self, Error> {
        let dim = |name: &str, i: usize| w.shape(name).and_then(|s| s.get(i)).copied().unwrap_or(0);
        let (di, n, r) = (dim("Ds", 0) / ORDERS, dim("A_logs", 1), dim("dt_projs_weight", 2));
        let ds = w.take("Ds", &[ORDERS * di])?;
        let a_logs = w.take("A_logs", &[ORDERS * di, n])?;
        if di == 0 || n == 0 || r == 0 {
            return Err(f.bad("Ds, A_logs, dt_projs_weight", "widths of 1 or more", format!("Di {di}, N {n}, R {r}")));
        }
        let t = &config.forward_type;
        let conv = |name: &str, k: usize, bias: Option<bool>| -> Result<Depthwise, Error> {
            let weight = w.take(&format!("{name}.weight"), &[di, 1, k, k])?;
            let name = format!("{name}.bias");
            let bias = match bias {
                Some(true) => Some(w.take(&name, &[di])?),
                Some(false) => None,
                None => w.take_optional(&name, &[di])?,
            };
            Ok(Depthwise::new(&weight, di, k, bias.as_deref()))
        };
        let out_norm = match t.out_norm {
            OutNormKind::Layer => OutNorm::Layer(take_norm(w, "out_norm", di)?),
            OutNormKind::None => OutNorm::None,
            OutNormKind::Conv => OutNorm::Conv(conv("out_norm.1", 3, Some(false))?),
            OutNormKind::LayerConv => {
                OutNorm::LayerConv(take_norm(w, "out_norm.0", di)?, conv("out_norm.2", 3, Some(false))?)
            }
            OutNormKind::Softmax => OutNorm::Softmax,
            OutNormKind::Sigmoid => OutNorm::Sigmoid,
        };
        let (k, bias) = (config.ssm_conv, config.ssm_conv_bias);
        let x_proj = w.take("x_proj_weight", &[ORDERS, r + 2 * n, di])?;
        let dt_projs = w.take("dt_projs_weight", &[ORDERS, di, r])?;
        Ok(Self {
            in_proj: take_linear(w, level, "in_proj", [if t.gated { 2 * di } else { di }, c], false)?,
            conv2d: if k > 1 { Some(conv("conv2d", k, bias)?) } else { None },
            x_proj: Linear::pack(level, &x_proj, ORDERS * (r + 2 * n), di, None),
            dt_projs: std::array::from_fn(|k| Linear::pack(level, &dt_projs[k * di * r..][..di * r], di, r, None)),
            dt_projs_bias: w.take("dt_projs_bias", &[ORDERS, di])?,
            // From (4·Di, N) to (4, N, Di).
            a: (0..ORDERS * n * di).map(|i| -a_logs[(i / (n * di) * di + i % di) * n + i / di % n].exp()).collect(),
            ds,
            out_norm,
            out_proj: take_linear(w, level, "out_proj", [c, di], false)?,
            act: config.ssm_act_layer,
            gate_act: if t.gate_act { config.ssm_act_layer } else { Act::None },
            out_act: if t.out_act { Act::Gelu } else { Act::None },
            d_inner: di,
            d_state: n,
            dt_rank: r,
        })
    }

    /// Rounds the weights of the large products; the step sizes' stay as they are.
    fn lower(&mut self, precision: Precision) {
        [&mut self.in_proj, &mut self.x_proj, &mut self.out_proj].into_iter().for_each(|w| w.lower(precision));
    }

    fn scratch_len(&self, m: usize) -> usize {
        let (di, p) = (self.d_inner, self.x_proj.n());
        line(m * self.in_proj.n()) + line(m * p) + 3 * line(m * di) + line(self.d_state.max(2) * di)
    }

    /// `out += op(x)` for the frames of `rows`, pixels of `size` in x (rows · pixels, C). With `carried`, the forward
    /// orders go on from each row's state and leave their ends there; all else starts from zero.
    fn forward(
        &self,
        cx: &Cx,
        x: Mat<'_>,
        rows: &mut [Row],
        stage: &Stage,
        carried: Option<&Range<usize>>,
        mut work: &mut [f32],
        out: MatMut<'_>,
        tap: &mut dyn FnMut(Tap, &[f32]),
    ) {
        let (di, n, r) = (self.d_inner, self.d_state, self.dt_rank);
        let (m, len) = (x.rows(), stage.size.0 * stage.size.1);
        let (width, step) = (self.in_proj.n(), r + 2 * n);
        let s = &mut work;
        let (xz, p) = (carve(s, m * width), carve(s, m * ORDERS * step));
        let (u, dt, y, fresh) = (carve(s, m * di), carve(s, m * di), carve(s, m * di), carve(s, n.max(2) * di));

        // [x | z] = in_proj x; u = act(conv2d(x))
        linear(cx, x, &self.in_proj, Act::None, Store::Set, MatMut::new(xz, m, width));
        let xz = Mat::new(xz, m, width);
        for i in 0..rows.len() {
            let (x, u) = (sub(xz, i * len, len).columns(0..di), &mut u[i * len * di..][..len * di]);
            match &self.conv2d {
                Some(conv) => depthwise(cx, conv, x, stage.size, self.act, MatMut::new(u, len, di)),
                None => {
                    u.chunks_exact_mut(di).enumerate().for_each(|(p, u)| u.copy_from_slice(x.row(p)));
                    apply(cx.level, self.act, u);
                }
            }
        }
        // Per order: [dt | b | c] = x_proj u. A linear map of each pixel is the same in every order of the pixels.
        linear(cx, Mat::new(u, m, di), &self.x_proj, Act::None, Store::Set, MatMut::new(p, m, ORDERS * step));
        let p = Mat::new(p, m, ORDERS * step);
        // y = Σ_k scan_k(u), orders 0 and 2 first, as upstream adds.
        for (turn, k) in [0, 2, 1, 3].into_iter().enumerate() {
            let p = p.columns(k * step..(k + 1) * step);
            linear(cx, p.columns(0..r), &self.dt_projs[k], Act::None, Store::Set, MatMut::new(dt, m, di));
            for (i, row) in rows.iter_mut().enumerate() {
                let scan = Scan {
                    u: sub(Mat::new(u, m, di), i * len, len),
                    dt: sub(Mat::new(dt, m, di), i * len, len),
                    dt_bias: Some(&self.dt_projs_bias[k * di..][..di]),
                    softplus: true,
                    // Pixels are no steps of time: the rate of the frames does not matter to them.
                    scale: 1.0,
                    a: &self.a[k * n * di..][..n * di],
                    b: sub(p, i * len, len).columns(r..r + n),
                    c: sub(p, i * len, len).columns(r + n..step),
                    d: Some(&self.ds[k * di..][..di]),
                    z: None,
                    order: stage.scans.order(k),
                    add: turn > 0,
                };
                let h = match carried {
                    Some(at) if (k + 1) * n * di <= at.len() => &mut row.state.data[at.clone()][k * n * di..][..n * di],
                    _ => {
                        fresh.fill(0.0);
                        &mut fresh[..n * di]
                    }
                };
                selective_scan(cx, &scan, h, MatMut::new(&mut y[i * len * di..], len, di));
            }
        }
        tap(Tap::Merged, y);
        // y = act(out_norm(y)) · act(z)
        let frames = (0..rows.len()).map(|i| i * len * di..(i + 1) * len * di);
        let y = match &self.out_norm {
            OutNorm::None => y,
            OutNorm::Layer(w) => {
                norm(cx.level, w, Mat::new(y, m, di), MatMut::new(u, m, di));
                u
            }
            OutNorm::Conv(w) => {
                for at in frames {
                    let x = Mat::new(&y[at.clone()], len, di);
                    depthwise(cx, w, x, stage.size, Act::None, MatMut::new(&mut u[at], len, di));
                }
                u
            }
            OutNorm::LayerConv(w, conv) => {
                norm(cx.level, w, Mat::new(y, m, di), MatMut::new(dt, m, di));
                for at in frames {
                    let x = Mat::new(&dt[at.clone()], len, di);
                    depthwise(cx, conv, x, stage.size, Act::None, MatMut::new(&mut u[at], len, di));
                }
                u
            }
            OutNorm::Softmax => {
                frames.for_each(|at| softmax_pixels(&mut y[at], di, &mut fresh[..2 * di]));
                y
            }
            OutNorm::Sigmoid => {
                apply(cx.level, Act::Sigmoid, y);
                y
            }
        };
        tap(Tap::OutNorm, y);
        apply(cx.level, self.out_act, y);
        if width > di {
            for (i, y) in y.chunks_exact_mut(di).enumerate() {
                gate(cx.level, self.gate_act, y, &xz.row(i)[di..]);
            }
        }
        linear(cx, Mat::new(y, m, di), &self.out_proj, Act::None, Store::Add, out);
    }
}

/// Softmax over the pixels of each of `d` channels, in place; `work` holds 2·d values.
fn softmax_pixels(y: &mut [f32], d: usize, work: &mut [f32]) {
    let (max, sum) = work.split_at_mut(d);
    max.fill(f32::NEG_INFINITY);
    sum.fill(0.0);
    for row in y.chunks_exact(d) {
        max.iter_mut().zip(row).for_each(|(m, v)| *m = m.max(*v));
    }
    for row in y.chunks_exact_mut(d) {
        for ((v, m), s) in row.iter_mut().zip(&*max).zip(&mut *sum) {
            *v = (*v - m).exp();
            *s += *v;
        }
    }
    for row in y.chunks_exact_mut(d) {
        row.iter_mut().zip(&*sum).for_each(|(v, s)| *v /= s);
    }
}

/// Norm and MLP of a block.
struct Mlp {
    norm2: Norm, // (C)
    fc1: Linear, // (hidden, C); (2·hidden, C) if gated
    fc2: Linear, // (C, hidden)
    act: Act,
    gated: bool, // the second half of fc1 gates the first (gmlp)
}

impl Mlp {
    /// Reads norm and MLP of a block of width `c`; the hidden width is read off `fc2` unless the configuration says it.
    fn load(w: &Reader<'_>, level: CpuLevel, config: &Config, c: usize) -> Result<Self, Error> {
        let dim = |name: &str, i: usize| w.shape(name).and_then(|s| s.get(i)).copied().unwrap_or(0);
        let hidden = config.mlp_ratio.map_or(dim("mlp.fc2.weight", 1), |r| (c as f64 * r) as usize);
        let gated = hidden > 0 && dim("mlp.fc1.weight", 0) == 2 * hidden;
        Ok(Self {
            norm2: take_norm(w, "norm2", c)?,
            fc1: take_linear(w, level, "mlp.fc1", [if gated { 2 * hidden } else { hidden }, c], true)?,
            fc2: take_linear(w, level, "mlp.fc2", [c, hidden], true)?,
            act: config.mlp_act_layer,
            gated,
        })
    }

    fn lower(&mut self, precision: Precision) {
        [&mut self.fc1, &mut self.fc2].into_iter().for_each(|w| w.lower(precision));
    }

    fn scratch_len(&self, m: usize) -> usize {
        line(m * self.norm2.weight.len()) + line(m * self.fc1.n())
    }

    /// `x += fc2(act(fc1(norm2(x))))` for m pixels.
    fn forward(&self, cx: &Cx, x: &mut [f32], m: usize, mut work: &mut [f32]) {
        let (c, wide, hidden) = (self.norm2.weight.len(), self.fc1.n(), self.fc2.k());
        let (normed, h) = (carve(&mut work, m * c), carve(&mut work, m * wide));
        norm(cx.level, &self.norm2, Mat::new(x, m, c), MatMut::new(normed, m, c));
        let act = if self.gated { Act::None } else { self.act };
        linear(cx, Mat::new(normed, m, c), &self.fc1, act, Store::Set, MatMut::new(h, m, wide));
        if self.gated {
            for h in h.chunks_exact_mut(wide) {
                let (x, z) = h.split_at_mut(hidden);
                gate(cx.level, self.act, x, z);
            }
        }
        let h = Mat::strided(h, m, hidden, wide);
        linear(cx, h, &self.fc2, Act::None, Store::Add, MatMut::new(x, m, c));
    }
}

struct Block {
    norm: Norm, // (C)
    op: Ss2d,
    mlp: Option<Mlp>,
    /// Where the end states of the forward orders lie, (orders, N, Di); only if frames are carried.
    carried: Option<Range<usize>>,
}

/// From one stage to the next.
enum Downsample {
    /// v1: four pixels side by side, norm, linear.
    Merge { norm: Norm, reduction: Linear },
    /// v2, v3: convolution, norm.
    Conv(ConvNorm),
}

impl Downsample {
    /// Reads what leads from pixels of width `c` to the next stage; its version is read off the tensors.
    fn load(w: &Reader<'_>, level: CpuLevel, c: usize, f: &Fields<'_>) -> Result<Self, Error> {
        let dim = |name: &str, i: usize| w.shape(name).and_then(|s| s.get(i)).copied();
        if w.has("reduction.weight") {
            f.agree("downsample_version", "v1")?;
            let out = dim("reduction.weight", 0).unwrap_or(0);
            let norm = take_norm(w, "norm", 4 * c)?;
            return Ok(Self::Merge { norm, reduction: take_linear(w, level, "reduction", [out, 4 * c], false)? });
        }
        let (version, kernel, padding) = if dim("1.weight", 2) == Some(2) { ("v2", 2, 0) } else { ("v3", 3, 1) };
        f.agree("downsample_version", version)?;
        let out = dim("1.weight", 0).unwrap_or(2 * c);
        ConvNorm::load(w, level, ("1", Some("3")), [out, c, kernel], (2, padding)).map(Self::Conv)
    }

    fn out_size(&self, (h, w): (usize, usize)) -> (usize, usize) {
        match self {
            Self::Merge { .. } => (h.div_ceil(2), w.div_ceil(2)),
            Self::Conv(c) => c.conv.out_size((h, w)),
        }
    }

    fn out_channels(&self) -> usize {
        match self {
            Self::Merge { reduction, .. } => reduction.n(),
            Self::Conv(c) => c.conv.out_channels(),
        }
    }

    fn scratch_len(&self, size: (usize, usize), threads: usize) -> usize {
        match self {
            Self::Merge { reduction, .. } => {
                let (h, w) = self.out_size(size);
                2 * line(h * w * reduction.k())
            }
            Self::Conv(c) => c.scratch_len(size, threads),
        }
    }

    /// The pixels of one frame, of `size`, to those of the next stage.
    fn forward(&self, cx: &Cx, x: Mat<'_>, size: (usize, usize), mut work: &mut [f32], out: &mut [f32]) {
        match self {
            Self::Conv(conv) => conv.forward(cx, x, size, work, out),
            Self::Merge { norm: w, reduction } => {
                let (h, width) = self.out_size(size);
                let (m, c) = (h * width, reduction.k());
                let (merged, normed) = (carve(&mut work, m * c), carve(&mut work, m * c));
                merge(x, size, MatMut::new(merged, m, c));
                norm(cx.level, w, Mat::new(merged, m, c), MatMut::new(normed, m, c));
                let out = MatMut::new(out, m, reduction.n());
                linear(cx, Mat::new(normed, m, c), reduction, Act::None, Store::Set, out);
            }
        }
    }
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
            b.mlp.as_ref().map_or(op, |mlp| op.max(mlp.scratch_len(m)))
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
            norm(cx.level, &block.norm, Mat::new(x, m, c), MatMut::new(normed, m, c));
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
        let f = Fields { file, model: options.config.as_ref().and_then(|c| c.get("model")) };
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
            let grid = if let Some(&[_, _, h, w]) = w.shape("pos_embed") { (h, w) } else { size };
            Some(fit_pos_embed(&w.take("pos_embed", &[1, dim, grid.0, grid.1])?, dim, grid, size))
        } else {
            None
        };

        let mode = config.forward_type.mode;
        let forward_orders = (0..ORDERS).filter(|k| mode.is_forward(*k)).count();
        let mut layout = StateLayout::new();
        let mut stages: Vec<Stage> = Vec::with_capacity(config.depths.len());
        for (i, depth) in config.depths.iter().enumerate() {
            let layer = w.at(&format!("layers.{i}."));
            let mut blocks = Vec::with_capacity(*depth);
            for j in 0..*depth {
                let block = layer.at(&format!("blocks.{j}."));
                let op = block.at(&format!("{}.", name_of(&block, "op", "self_attention", ".A_logs")));
                let mut op = Ss2d::load(&op, level, &config, dim, &f)?;
                op.lower(options.precision);
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
            let classes = w.shape(&format!("{head}.weight")).and_then(|s| s.first()).copied().unwrap_or(1);
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
                    norm(cx.level, w, Mat::new(x, pixels, c), MatMut::new(normed, pixels, c));
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
                norm(cx.level, &w.norm, Mat::new(x, m, c), MatMut::new(normed, m, c));
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
        if periods <= 0.0 {
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
