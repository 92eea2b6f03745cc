//! SS2D: the token mixer, which scans the pixels in four orders.

use super::config::{Config, Fields, OutNormKind};
use super::parts::{take_linear, take_norm};
use super::{Stage, Tap};
use crate::checkpoint::Reader;
use crate::error::Error;
use crate::mixer::sub;
use crate::model::{Row, carve, line};
use ssm_kernels::activation::{apply, gate};
use ssm_kernels::conv2d::{Depthwise, depthwise};
use ssm_kernels::linear::{Linear, Precision, Store, linear};
use ssm_kernels::norm::{Norm, norm};
use ssm_kernels::selective_scan::{Scan, selective_scan};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};
use std::ops::Range;

/// Scan orders of a block.
pub(super) const ORDERS: usize = 4;

/// What follows the sum of the four scans, over Di channels.
pub(super) enum OutNorm {
    Layer(Norm),
    None,
    Conv(Depthwise),
    LayerConv(Norm, Depthwise),
    Softmax,
    Sigmoid,
}

/// SS2D: the block's token mixer (Figure 3, d).
pub(super) struct Ss2d {
    pub(super) in_proj: Linear,            // (Di, C); (2·Di, C) if gated: x, z
    pub(super) conv2d: Option<Depthwise>,  // (Di, 1, 3, 3)
    pub(super) x_proj: Linear,             // (4·(R + 2N), Di): dt, b, c of each order
    pub(super) dt_projs: [Linear; ORDERS], // (Di, R), the bias is added in the scan
    pub(super) dt_projs_bias: Vec<f32>,    // (4, Di)
    pub(super) a: Vec<f32>,                // (4, N, Di), -exp(A_logs)
    pub(super) ds: Vec<f32>,               // (4, Di)
    pub(super) out_norm: OutNorm,          // (Di)
    pub(super) out_proj: Linear,           // (C, Di)
    pub(super) act: Act,
    pub(super) gate_act: Act,
    pub(super) out_act: Act,
    pub(super) d_inner: usize, // Di
    pub(super) d_state: usize, // N
    pub(super) dt_rank: usize, // R
}

impl Ss2d {
    /// Reads an SS2D of width `c` at the reader's place; Di, N and R are read off the tensors.
    pub(super) fn load(
        w: &Reader<'_>,
        level: CpuLevel,
        config: &Config,
        c: usize,
        f: &Fields<'_>,
    ) -> Result<Self, Error> {
        w.require(&["Ds", "A_logs", "dt_projs_weight"])?;
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
    pub(super) fn lower(&mut self, precision: Precision) {
        [&mut self.in_proj, &mut self.x_proj, &mut self.out_proj].into_iter().for_each(|w| w.lower(precision));
    }

    pub(super) fn scratch_len(&self, m: usize) -> usize {
        let (di, p) = (self.d_inner, self.x_proj.n());
        line(m * self.in_proj.n()) + line(m * p) + 3 * line(m * di) + line(self.d_state.max(2) * di)
    }

    /// `out += op(x)` for the frames of `rows`, pixels of `size` in x (rows · pixels, C). With `carried`, the forward
    /// orders go on from each row's state and leave their ends there; all else starts from zero.
    pub(super) fn forward(
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
                norm(cx, w, Mat::new(y, m, di), MatMut::new(u, m, di));
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
                norm(cx, w, Mat::new(y, m, di), MatMut::new(dt, m, di));
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
pub(super) fn softmax_pixels(y: &mut [f32], d: usize, work: &mut [f32]) {
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
