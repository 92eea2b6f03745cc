//! The Mamba block's mixer (Gu & Dao 2023, Figure 3): the part that Mamba, Vim, Audio Mamba, MoE-Mamba and CleanUMamba
//! share. Plain, or scanned in both directions as Vim does (Zhu et al. 2024, Algorithm 1).

mod card;

pub(crate) use card::MixerNet;

use crate::checkpoint::{CheckpointError, Reader};
use crate::model::{Row, carve, line};
use crate::state::StateLayout;
use ssm_kernels::causal_conv1d::{Conv, Time, causal_conv1d};
use ssm_kernels::linear::{Linear, Precision, Store, linear};
use ssm_kernels::selective_scan::{Order, Scan, selective_scan};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};
use std::ops::Range;

/// One direction's own weights.
struct Branch {
    conv1d: Conv,
    x_proj: Linear,  // (R + 2N, E)
    dt_proj: Linear, // (E, R), its bias is added in the scan
    dt_bias: Vec<f32>,
    a: Vec<f32>, // (N, E), -exp(A_log)
    d: Vec<f32>, // (E)
}

/// How the sequence is scanned a second time, last row first.
enum Backward {
    /// Not at all.
    None,
    /// With its own A; convolution, projections and D shared (`bimamba_type` v1).
    OwnA(Vec<f32>),
    /// With its own convolution, projections, A and D (`bimamba_type` v2).
    Own(Box<Branch>),
}

/// Weights of one mixer.
pub(crate) struct Mixer {
    in_proj: Linear, // (2E, D): x, z
    forward: Branch,
    backward: Backward,
    out_proj: Linear, // (D, E)
    e: usize,
    n: usize,
    r: usize,
}

/// Where a layer's part of the state lies: the convolution's tail (K-1, E) and h (N, E).
#[derive(Clone)]
pub(crate) struct MixerState {
    pub(crate) conv: Range<usize>,
    pub(crate) h: Range<usize>,
}

/// Part `i` of `n` equal ones of a range.
fn part(range: &Range<usize>, i: usize, n: usize) -> Range<usize> {
    let each = range.len() / n;
    range.start + i * each..range.start + (i + 1) * each
}

/// What a mixer computes on its way, a row per step.
pub(crate) struct Taps<'a> {
    /// `silu(conv1d(x))`, (E).
    pub(crate) conv: Mat<'a>,
    /// Gate before its silu, (E).
    pub(crate) z: Mat<'a>,
    /// Input vector, (N).
    pub(crate) b: Mat<'a>,
    /// Output vector, (N).
    pub(crate) c: Mat<'a>,
    /// Step size before bias and softplus, (E).
    pub(crate) dt: Mat<'a>,
    /// Result of the scan, gated, (E).
    pub(crate) y: Mat<'a>,
}

/// `-exp(A_log)`, transposed from the file's (E, N) to (N, E).
fn a_of(a_log: &[f32], e: usize, n: usize) -> Vec<f32> {
    (0..n * e).map(|i| -a_log[i % e * n + i / e].exp()).collect()
}

impl Branch {
    /// Reads the tensors of one direction; `b` is `""` or `"_b"`.
    fn load(w: &Reader<'_>, level: CpuLevel, b: &str, e: usize, n: usize, r: usize) -> Result<Self, CheckpointError> {
        let k = w.shape(&format!("conv1d{b}.weight")).and_then(|s| s.get(2)).copied().unwrap_or(4).max(1);
        let conv = w.take(&format!("conv1d{b}.weight"), &[e, 1, k])?;
        let conv_bias = w.take_optional(&format!("conv1d{b}.bias"), &[e])?;
        let x_proj = w.take(&format!("x_proj{b}.weight"), &[r + 2 * n, e])?;
        let dt_proj = w.take(&format!("dt_proj{b}.weight"), &[e, r])?;
        let dt_bias = w.take(&format!("dt_proj{b}.bias"), &[e])?;
        let (a_log, d) = if b.is_empty() { ("A_log", "D") } else { ("A_b_log", "D_b") };
        Ok(Self {
            conv1d: Conv::new(&conv, e, conv_bias.as_deref()),
            x_proj: Linear::pack(level, &x_proj, r + 2 * n, e, None),
            dt_proj: Linear::pack(level, &dt_proj, e, r, None),
            dt_bias,
            a: a_of(&w.take(a_log, &[e, n])?, e, n),
            d: w.take(d, &[e])?,
        })
    }
}

impl Mixer {
    /// Reads a mixer of width `d` at the reader's place; every other size is read off the tensors. `divide`: whether two
    /// directions with weights of their own are averaged (`if_divide_out`) instead of added.
    pub(crate) fn load(w: &Reader<'_>, level: CpuLevel, d: usize, divide: bool) -> Result<Self, CheckpointError> {
        // At least 1: an empty tensor is of the wrong shape then.
        let dim = |name: &str, i: usize| w.shape(name).and_then(|s| s.get(i)).copied().unwrap_or(0).max(1);
        let (e, n) = (dim("A_log", 0), dim("A_log", 1));
        let r = dim("dt_proj.weight", 1);
        let in_proj = w.take("in_proj.weight", &[2 * e, d])?;
        let in_bias = w.take_optional("in_proj.bias", &[2 * e])?;
        let mut out_proj = w.take("out_proj.weight", &[d, e])?;
        let out_bias = w.take_optional("out_proj.bias", &[d])?;
        let backward = if w.has("D_b") {
            if divide {
                // The mean of both directions, folded into the product after it; halving is exact.
                out_proj.iter_mut().for_each(|v| *v *= 0.5);
            }
            Backward::Own(Box::new(Branch::load(w, level, "_b", e, n, r)?))
        } else if w.has("A_b_log") {
            Backward::OwnA(a_of(&w.take("A_b_log", &[e, n])?, e, n))
        } else {
            Backward::None
        };
        Ok(Self {
            in_proj: Linear::pack(level, &in_proj, 2 * e, d, in_bias.as_deref()),
            forward: Branch::load(w, level, "", e, n, r)?,
            backward,
            out_proj: Linear::pack(level, &out_proj, d, e, out_bias.as_deref()),
            e,
            n,
            r,
        })
    }

    /// Rounds the weights of the large products to a precision. The step sizes' projection stays as it is: they are
    /// exponents.
    pub(crate) fn lower(&mut self, precision: Precision) {
        [&mut self.in_proj, &mut self.forward.x_proj, &mut self.out_proj].into_iter().for_each(|w| w.lower(precision));
        if let Backward::Own(branch) = &mut self.backward {
            branch.x_proj.lower(precision);
        }
    }

    /// Adds this layer's spans to a layout under the names `{prefix}.conv` and `{prefix}.h`.
    pub(crate) fn state(&self, layout: &mut StateLayout, prefix: &str) -> MixerState {
        let k = self.forward.conv1d.width();
        MixerState {
            conv: layout.add(format!("{prefix}.conv"), &[k - 1, self.e]),
            h: layout.add(format!("{prefix}.h"), &[self.n, self.e]),
        }
    }

    /// The same for `lanes` sequences of a stream side by side: (lanes, K-1, E) and (lanes, N, E).
    pub(crate) fn state_of(&self, lanes: usize, layout: &mut StateLayout, prefix: &str) -> MixerState {
        let k = self.forward.conv1d.width();
        MixerState {
            conv: layout.add(format!("{prefix}.conv"), &[lanes, k - 1, self.e]),
            h: layout.add(format!("{prefix}.h"), &[lanes, self.n, self.e]),
        }
    }

    /// Width E of the inner stream.
    pub(crate) fn d_inner(&self) -> usize {
        self.e
    }

    /// States N per channel.
    pub(crate) fn d_state(&self) -> usize {
        self.n
    }

    /// Whether the sequence is scanned a second time, last row first.
    pub(crate) fn is_bidirectional(&self) -> bool {
        !matches!(self.backward, Backward::None)
    }

    /// Whether the second scan has projections of its own.
    pub(crate) fn has_own_backward(&self) -> bool {
        matches!(self.backward, Backward::Own(_))
    }

    /// Rank R of the step projection.
    pub(crate) fn dt_rank(&self) -> usize {
        self.r
    }

    /// Working memory for `rows` rows.
    pub(crate) fn scratch_len(&self, rows: usize) -> usize {
        let (e, k) = (self.e, self.forward.conv1d.width());
        line(rows * 2 * e)
            + 3 * line(rows * e)
            + line(rows * (self.r + 2 * self.n))
            + line((k - 1) * e)
            + line(self.n * e)
    }

    /// `out = mixer(x)` for `rows.len()` sequences of `len` steps each, x and out (rows · len, D). With `state`, each
    /// row's forward direction goes on from there and leaves its end there; without, it starts from zero. A backward
    /// direction always starts from zero at the last step of the call.
    pub(crate) fn forward(
        &self,
        cx: &Cx,
        x: Mat<'_>,
        rows: &mut [Row],
        len: usize,
        state: Option<&MixerState>,
        scratch: &mut [f32],
        out: MatMut<'_>,
    ) {
        self.forward_lanes(cx, x, rows, 1, len, state, scratch, out);
    }

    /// As [`Mixer::forward`] with `lanes` sequences side by side in each row, x and out (rows · len · lanes, D); the state
    /// is that of [`Mixer::state_of`].
    pub(crate) fn forward_lanes(
        &self,
        cx: &Cx,
        x: Mat<'_>,
        rows: &mut [Row],
        lanes: usize,
        len: usize,
        state: Option<&MixerState>,
        mut scratch: &mut [f32],
        out: MatMut<'_>,
    ) {
        let (e, n, r) = (self.e, self.n, self.r);
        let (steps, w3) = (rows.len() * len, self.r + 2 * self.n);
        let m = steps * lanes;
        let s = &mut scratch;
        let (xz, c) = (carve(s, m * 2 * e), carve(s, m * e));
        let (dbc, dt, y) = (carve(s, m * w3), carve(s, m * e), carve(s, m * e));
        let (tail, h) = (carve(s, (self.forward.conv1d.width() - 1) * e), carve(s, n * e));

        // [x | z] = in_proj u
        linear(cx, x, &self.in_proj, Act::None, Store::Set, MatMut::new(xz, m, 2 * e));
        let xz = Mat::new(xz, steps, lanes * 2 * e);
        for time in [Time::Forward, Time::Reverse] {
            let (w, a, fresh) = match (time, &self.backward) {
                (Time::Forward, _) => (&self.forward, &self.forward.a, true),
                (Time::Reverse, Backward::None) => break,
                (Time::Reverse, Backward::OwnA(a)) => (&self.forward, a, false),
                (Time::Reverse, Backward::Own(branch)) => (&**branch, &branch.a, true),
            };
            if fresh {
                // c = silu(conv1d(x)); [dt | b | c] = x_proj c; dt = dt_proj dt
                for (i, row) in rows.iter_mut().enumerate() {
                    for l in 0..lanes {
                        let x = sub(xz, i * len, len).columns(2 * l * e..(2 * l + 1) * e);
                        let c = MatMut::strided(&mut c[(i * len * lanes + l) * e..], len, e, lanes * e);
                        let tail = match (time, state) {
                            (Time::Forward, Some(at)) => &mut row.state.data[part(&at.conv, l, lanes)],
                            _ => {
                                tail.fill(0.0);
                                &mut *tail
                            }
                        };
                        causal_conv1d(cx, &w.conv1d, x, Act::Silu, time, tail, c);
                    }
                }
                let c = Mat::new(c, m, e);
                linear(cx, c, &w.x_proj, Act::None, Store::Set, MatMut::new(dbc, m, w3));
                let dbc = Mat::new(dbc, m, w3);
                linear(cx, dbc.columns(0..r), &w.dt_proj, Act::None, Store::Set, MatMut::new(dt, m, e));
            }
            // y = scan(c) · silu(z), the second direction added to the first
            for (i, row) in rows.iter_mut().enumerate() {
                for l in 0..lanes {
                    // A lane is some columns of a matrix that has a row for each step.
                    let of = |x, width: usize| {
                        sub(Mat::new(x, steps, lanes * width), i * len, len).columns(l * width..(l + 1) * width)
                    };
                    let dbc = of(dbc, w3);
                    let scan = Scan {
                        u: of(c, e),
                        dt: of(dt, e),
                        dt_bias: Some(&w.dt_bias),
                        softplus: true,
                        scale: row.rate,
                        a,
                        b: dbc.columns(r..r + n),
                        c: dbc.columns(r + n..w3),
                        d: Some(&w.d),
                        z: Some(sub(xz, i * len, len).columns((2 * l + 1) * e..(2 * l + 2) * e)),
                        order: if time == Time::Forward { Order::Forward } else { Order::Reverse },
                        add: time == Time::Reverse,
                    };
                    let h = match (time, state) {
                        (Time::Forward, Some(at)) => &mut row.state.data[part(&at.h, l, lanes)],
                        _ => {
                            h.fill(0.0);
                            &mut *h
                        }
                    };
                    let y = MatMut::strided(&mut y[(i * len * lanes + l) * e..], len, e, lanes * e);
                    selective_scan(cx, &scan, h, y);
                }
            }
        }
        linear(cx, Mat::new(y, m, e), &self.out_proj, Act::None, Store::Set, out);
    }

    /// What the last [`Mixer::forward`] of `m` steps of a mixer without backward direction left in its working memory.
    pub(crate) fn taps<'a>(&self, mut scratch: &'a mut [f32], m: usize) -> Taps<'a> {
        let (e, n, r) = (self.e, self.n, self.r);
        let s = &mut scratch;
        let xz = Mat::new(carve(s, m * 2 * e), m, 2 * e);
        let c = Mat::new(carve(s, m * e), m, e);
        let dbc = Mat::new(carve(s, m * (r + 2 * n)), m, r + 2 * n);
        let dt = Mat::new(carve(s, m * e), m, e);
        let y = Mat::new(carve(s, m * e), m, e);
        let (b, c_proj) = (dbc.columns(r..r + n), dbc.columns(r + n..r + 2 * n));
        Taps { conv: c, z: xz.columns(e..2 * e), b, c: c_proj, dt, y }
    }

    /// Δ of a step's `dt` (E values before bias and softplus), at rate 1.
    pub(crate) fn delta(&self, dt: &[f32]) -> Vec<f32> {
        dt.iter().zip(&self.forward.dt_bias).map(|(dt, b)| ssm_kernels::activation::softplus(dt + b)).collect()
    }

    /// `periods` steps without input (mamba.md 7): `h ← exp(a · softplus(dt_bias) · periods) h`, and zeros move into the
    /// convolution's tail.
    pub(crate) fn gap(&self, state: &mut [f32], at: &MixerState, periods: f64) {
        if periods <= 0.0 {
            return;
        }
        let e = self.e;
        for (i, h) in state[at.h.clone()].iter_mut().enumerate() {
            let delta = f64::from(ssm_kernels::activation::softplus(self.forward.dt_bias[i % e]));
            *h *= (f64::from(self.forward.a[i % (self.n * e)]) * delta * periods).exp() as f32;
        }
        let lane = (self.forward.conv1d.width() - 1) * e;
        if lane > 0 {
            state[at.conv.clone()].chunks_exact_mut(lane).for_each(|tail| shift_tail(tail, e, periods));
        }
    }

    /// The layer's state as upstream lays it out: `conv` (E, K-1), `ssm` (E, N).
    pub(crate) fn upstream_state(&self, state: &[f32], at: &MixerState, what: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let range = match what {
            "conv" => at.conv.clone(),
            "ssm" => at.h.clone(),
            _ => return None,
        };
        let (span, e) = (&state[range], self.e);
        let k = span.len() / e;
        Some((vec![e, k], (0..e * k).map(|i| span[i % k * e + i / k]).collect()))
    }
}

/// Moves zeros for `periods` steps into a convolution's tail of rows of `channels` values.
pub(crate) fn shift_tail(tail: &mut [f32], channels: usize, periods: f64) {
    let rows = tail.len() / channels;
    let zeros = periods.ceil().clamp(0.0, rows as f64) as usize * channels;
    tail.copy_within(zeros.., 0);
    let kept = tail.len() - zeros;
    tail[kept..].fill(0.0);
}

/// Rows `from .. from + len` of a matrix.
pub(crate) fn sub(m: Mat<'_>, from: usize, len: usize) -> Mat<'_> {
    m.sub_rows(from..from + len)
}
