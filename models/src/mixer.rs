//! The Mamba block's mixer (Gu & Dao 2023, Figure 3): the part that Mamba, Vim, Audio Mamba, MoE-Mamba and CleanUMamba
//! share. Plain, or scanned in both directions as Vim does (Zhu et al. 2024, Algorithm 1).

mod card;

pub(crate) use card::MixerNet;

use crate::checkpoint::{CheckpointError, Reader};
use crate::config::Fields;
use crate::error::Error;
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

/// Where a pass finds its steps.
struct Place<'a> {
    /// `[x | z]` of every lane, a row for each step of every sequence.
    xz: Mat<'a>,
    lanes: usize,
    len: usize,
}

/// What a direction computes on its way.
struct Room<'a> {
    c: &'a mut [f32],
    dbc: &'a mut [f32],
    dt: &'a mut [f32],
    y: &'a mut [f32],
    /// The convolution's tail and h where no state is carried.
    tail: &'a mut [f32],
    h: &'a mut [f32],
}

/// Where the sequences of a direction begin and end.
enum Ends<'a> {
    /// Forward, from the rows' state if there is one.
    Rows(&'a mut [Row], Option<&'a MixerState>),
    /// Backward from zero, at these rates.
    Backward(&'a [f32]),
}

impl Ends<'_> {
    fn rows(&self) -> usize {
        match self {
            Self::Rows(rows, _) => rows.len(),
            Self::Backward(rates) => rates.len(),
        }
    }

    fn rate(&self, i: usize) -> f32 {
        match self {
            Self::Rows(rows, _) => rows[i].rate,
            Self::Backward(rates) => rates[i],
        }
    }

    fn time(&self) -> Time {
        if matches!(self, Self::Rows(..)) { Time::Forward } else { Time::Reverse }
    }

    /// A span of sequence i's carried state.
    fn span(&mut self, i: usize, span: impl Fn(&MixerState) -> Range<usize>) -> Option<&mut [f32]> {
        match self {
            Self::Rows(rows, Some(at)) => Some(&mut rows[i].state.data[span(at)]),
            _ => None,
        }
    }
}

/// `y += x`.
fn add(y: &mut [f32], x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
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
    fn load(w: &Reader<'_>, level: CpuLevel, b: &str, sizes: Sizes) -> Result<Self, CheckpointError> {
        let Sizes { e, n, r, k } = sizes;
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

/// Sizes of a mixer beside its width.
#[derive(Clone, Copy)]
struct Sizes {
    e: usize,
    n: usize,
    r: usize,
    /// Width of the convolutions.
    k: usize,
}

impl Sizes {
    fn read(w: &Reader<'_>) -> Result<Self, CheckpointError> {
        w.require(&["A_log", "dt_proj.weight", "conv1d.weight"])?;
        // At least 1: an empty tensor is of the wrong shape then.
        let dim = |name: &str, i: usize| w.shape(name).and_then(|s| s.get(i)).copied().unwrap_or(0).max(1);
        Ok(Self { e: dim("A_log", 0), n: dim("A_log", 1), r: dim("dt_proj.weight", 1), k: dim("conv1d.weight", 2) })
    }
}

impl Mixer {
    /// Reads a causal mixer of width `d` at the reader's place; every other size is read off the tensors. What a second
    /// direction has is left in the file.
    pub(crate) fn load(w: &Reader<'_>, level: CpuLevel, d: usize) -> Result<Self, CheckpointError> {
        Self::with(w, level, d, Backward::None, &vec![1.0; d], 1.0)
    }

    /// Reads a mixer that may scan in both directions. `divide`: whether two with weights of their own are averaged
    /// (`if_divide_out`) instead of added. A layer scale (`gamma`) is folded into `out_proj`.
    pub(crate) fn load_both(w: &Reader<'_>, level: CpuLevel, d: usize, divide: bool) -> Result<Self, CheckpointError> {
        let sizes = Sizes::read(w)?;
        let scale = w.take_optional("gamma", &[d])?.unwrap_or_else(|| vec![1.0; d]);
        let (backward, share) = if w.has("D_b") {
            let own = Backward::Own(Box::new(Branch::load(w, level, "_b", sizes)?));
            // The mean of both directions, folded into the product after it; halving is exact.
            (own, if divide { 0.5 } else { 1.0 })
        } else if w.has("A_b_log") {
            let Sizes { e, n, .. } = sizes;
            (Backward::OwnA(a_of(&w.take("A_b_log", &[e, n])?, e, n)), 1.0)
        } else {
            (Backward::None, 1.0)
        };
        Self::with(w, level, d, backward, &scale, share)
    }

    /// Reads what both kinds have; output `i` is `scale[i] (share · out_proj y + bias)`.
    fn with(
        w: &Reader<'_>,
        level: CpuLevel,
        d: usize,
        backward: Backward,
        scale: &[f32],
        share: f32,
    ) -> Result<Self, CheckpointError> {
        let sizes @ Sizes { e, n, r, .. } = Sizes::read(w)?;
        let in_proj = w.take("in_proj.weight", &[2 * e, d])?;
        let in_bias = w.take_optional("in_proj.bias", &[2 * e])?;
        let mut out_proj = w.take("out_proj.weight", &[d, e])?;
        let mut out_bias = w.take_optional("out_proj.bias", &[d])?;
        for (row, scale) in out_proj.chunks_exact_mut(e).zip(scale) {
            row.iter_mut().for_each(|v| *v *= scale * share);
        }
        out_bias.iter_mut().flatten().zip(scale).for_each(|(v, scale)| *v *= scale);
        Ok(Self {
            in_proj: Linear::pack(level, &in_proj, 2 * e, d, in_bias.as_deref()),
            forward: Branch::load(w, level, "", sizes)?,
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

    /// Refuses a configuration that says other sizes than the tensors have. What it does not say stands in the tensors.
    pub(crate) fn agree(&self, fields: &Fields<'_>) -> Result<(), Error> {
        fields.agree(&["state_size", "d_state"], self.n)?;
        fields.agree(&["conv_kernel", "d_conv"], self.forward.conv1d.width())?;
        // The width itself, where it is said, is what counts.
        if fields.get(&["intermediate_size"]).is_none() {
            fields.agree_ratio("expand", self.in_proj.k(), self.e)?;
        }
        fields.agree(&["intermediate_size"], self.e)?;
        fields.agree(&["time_step_rank", "dt_rank"], self.r)
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
        let direction = 3 * line(rows * e) + line(rows * (self.r + 2 * self.n)) + line((k - 1) * e) + line(self.n * e);
        let backward = match self.backward {
            Backward::None => 0,
            // The rates, of at most as many sequences as there are rows.
            Backward::OwnA(_) => line(rows),
            Backward::Own(_) => direction + line(rows),
        };
        line(rows * 2 * e) + direction + backward
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
        let e = self.e;
        let (steps, s) = (rows.len() * len, &mut scratch);
        let m = steps * lanes;
        let xz = carve(s, m * 2 * e);
        let mut room = self.room(s, m);
        let rates = carve(s, if self.is_bidirectional() { rows.len() } else { 0 });
        rates.iter_mut().zip(rows.iter()).for_each(|(rate, row)| *rate = row.rate);

        // [x | z] = in_proj u
        linear(cx, x, &self.in_proj, Act::None, Store::Set, MatMut::new(xz, m, 2 * e));
        let at = Place { xz: Mat::new(xz, steps, lanes * 2 * e), lanes, len };
        match &self.backward {
            Backward::Own(w) if cx.team.threads() == 2 => {
                // Each direction on a thread of its own, which then waits for the other once.
                let mut own = self.room(s, m);
                let (forward, backward) = (&mut room, &mut own);
                cx.team.both(
                    || {
                        self.inputs(cx, &self.forward, &at, Ends::Rows(rows, state), forward);
                        self.scan(cx, &self.forward, &self.forward.a, &at, Ends::Rows(rows, state), false, forward);
                    },
                    || {
                        self.inputs(cx, w, &at, Ends::Backward(rates), backward);
                        self.scan(cx, w, &w.a, &at, Ends::Backward(rates), false, backward);
                    },
                );
                let (y, other, half) = (&mut *room.y, &*own.y, m / 2 * e);
                let (front, back) = y.split_at_mut(half);
                cx.team.both(|| add(front, &other[..half]), || add(back, &other[half..]));
            }
            backward => {
                self.inputs(cx, &self.forward, &at, Ends::Rows(rows, state), &mut room);
                self.scan(cx, &self.forward, &self.forward.a, &at, Ends::Rows(rows, state), false, &mut room);
                let (w, a) = match backward {
                    Backward::None => (None, None),
                    Backward::OwnA(a) => (None, Some(a)),
                    Backward::Own(w) => (Some(&**w), Some(&w.a)),
                };
                if let Some(w) = w {
                    self.inputs(cx, w, &at, Ends::Backward(rates), &mut room);
                }
                if let Some(a) = a {
                    self.scan(cx, w.unwrap_or(&self.forward), a, &at, Ends::Backward(rates), true, &mut room);
                }
            }
        }
        linear(cx, Mat::new(room.y, m, e), &self.out_proj, Act::None, Store::Set, out);
    }

    /// Working memory of a direction, `m` steps.
    fn room<'a>(&self, s: &mut &'a mut [f32], m: usize) -> Room<'a> {
        let e = self.e;
        Room {
            c: carve(s, m * e),
            dbc: carve(s, m * (self.r + 2 * self.n)),
            dt: carve(s, m * e),
            y: carve(s, m * e),
            tail: carve(s, (self.forward.conv1d.width() - 1) * e),
            h: carve(s, self.n * e),
        }
    }

    /// `c = silu(conv1d(x)); [dt | b | c] = x_proj c; dt = dt_proj dt` of a direction.
    fn inputs(&self, cx: &Cx, w: &Branch, at: &Place<'_>, mut ends: Ends<'_>, room: &mut Room<'_>) {
        let (e, r, w3, lanes, len) = (self.e, self.r, self.r + 2 * self.n, at.lanes, at.len);
        let (m, time) = (at.xz.rows() * lanes, ends.time());
        for i in 0..ends.rows() {
            for l in 0..lanes {
                let x = sub(at.xz, i * len, len).columns(2 * l * e..(2 * l + 1) * e);
                let c = MatMut::strided(&mut room.c[(i * len * lanes + l) * e..], len, e, lanes * e);
                let tail = ends.span(i, |at| part(&at.conv, l, lanes)).unwrap_or_else(|| {
                    room.tail.fill(0.0);
                    &mut *room.tail
                });
                causal_conv1d(cx, &w.conv1d, x, Act::Silu, time, tail, c);
            }
        }
        linear(cx, Mat::new(room.c, m, e), &w.x_proj, Act::None, Store::Set, MatMut::new(room.dbc, m, w3));
        let dt = Mat::new(room.dbc, m, w3).columns(0..r);
        linear(cx, dt, &w.dt_proj, Act::None, Store::Set, MatMut::new(room.dt, m, e));
    }

    /// `y = scan(c) · silu(z)` of a direction, or added to y.
    fn scan(&self, cx: &Cx, w: &Branch, a: &[f32], at: &Place<'_>, mut ends: Ends<'_>, add: bool, room: &mut Room<'_>) {
        let (e, n, r, w3, lanes, len) = (self.e, self.n, self.r, self.r + 2 * self.n, at.lanes, at.len);
        let steps = at.xz.rows();
        for i in 0..ends.rows() {
            for l in 0..lanes {
                // A lane is some columns of a matrix that has a row for each step.
                let of = |x, width: usize| {
                    sub(Mat::new(x, steps, lanes * width), i * len, len).columns(l * width..(l + 1) * width)
                };
                let dbc = of(room.dbc, w3);
                let scan = Scan {
                    u: of(room.c, e),
                    dt: of(room.dt, e),
                    dt_bias: Some(&w.dt_bias),
                    softplus: true,
                    scale: ends.rate(i),
                    a,
                    b: dbc.columns(r..r + n),
                    c: dbc.columns(r + n..w3),
                    d: Some(&w.d),
                    z: Some(sub(at.xz, i * len, len).columns((2 * l + 1) * e..(2 * l + 2) * e)),
                    order: if ends.time() == Time::Forward { Order::Forward } else { Order::Reverse },
                    add,
                };
                let h = ends.span(i, |at| part(&at.h, l, lanes)).unwrap_or_else(|| {
                    room.h.fill(0.0);
                    &mut *room.h
                });
                let y = MatMut::strided(&mut room.y[(i * len * lanes + l) * e..], len, e, lanes * e);
                selective_scan(cx, &scan, h, y);
            }
        }
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
        if periods.is_nan() || periods <= 0.0 {
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
