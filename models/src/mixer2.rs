//! The mixer of the Mamba-2 block (Dao & Gu 2024, Figure 6): one decay per head, B and C beside x through the
//! convolution, a gated RMSNorm before the last projection.

mod card;

pub(crate) use card::Mixer2Net;

use crate::checkpoint::Reader;
use crate::config::Fields;
use crate::error::Error;
use crate::mixer::{MixerState, shift_tail, sub};
use crate::model::{Row, carve, line};
use crate::state::StateLayout;
use ssm_kernels::activation::{gate, softplus};
use ssm_kernels::causal_conv1d::{Conv, Time, causal_conv1d};
use ssm_kernels::linear::{Linear, Precision, Store, linear};
use ssm_kernels::norm::{Kind, Norm, norm};
use ssm_kernels::ssd::{Ssd, ssd};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};

/// What the tensors of a mixer do not say.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Groups of heads that share B and C (`n_groups`, `ngroups`); from `d_state` if that is given, else 1.
    n_groups: Option<usize>,
    d_state: Option<usize>,
    head_dim: Option<usize>,
    /// Bounds of the step size (`time_step_limit`, `dt_limit`).
    dt_limit: (f32, f32),
    norm_before_gate: bool,
    eps: f32,
}

impl Config {
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, Error> {
        Ok(Self {
            n_groups: fields.size(&["n_groups", "ngroups"])?,
            d_state: fields.size(&["state_size", "d_state"])?,
            head_dim: fields.size(&["head_dim", "headdim"])?,
            dt_limit: fields.pair(&["time_step_limit", "dt_limit"])?.unwrap_or((0.0, f32::INFINITY)),
            // transformers wrote it into its configurations, and gates first all the same.
            norm_before_gate: fields.flag(&["norm_before_gate"])?.unwrap_or(false)
                && !fields.together(&["norm_before_gate", "hidden_size"]),
            eps: fields.eps(&["layer_norm_epsilon"], 1e-5)?,
        })
    }
}

/// Weights of one mixer. E = heads · P channels go through the recurrence; `d_mlp` further ones (none in published
/// models) through a plain gate.
pub(crate) struct Mixer2 {
    in_proj: Linear, // (2·d_mlp + E + (E + 2GN) + H, D): z0, x0, z, xBC, dt
    conv1d: Conv,    // (E + 2GN)
    dt_bias: Vec<f32>,
    dt_limit: (f32, f32),
    a: Vec<f32>,      // (H), -exp(A_log)
    d: Vec<f32>,      // (E), a head's value for each of its channels
    norm: Vec<Norm>,  // one of E / G channels per group; none: only gated
    norm_first: bool, // the norm before the gate
    out_proj: Linear, // (D, d_mlp + E)
    e: usize,
    n: usize,
    groups: usize,
    d_mlp: usize,
}

impl Mixer2 {
    /// Whether a Mamba-2 mixer lies at the reader's place.
    pub(crate) fn detect(w: &Reader<'_>) -> bool {
        w.has("dt_bias") && w.has("A_log") && w.has("in_proj.weight")
    }

    /// Reads a mixer of width `d` at the reader's place.
    pub(crate) fn load(
        w: &Reader<'_>,
        level: CpuLevel,
        d: usize,
        config: &Config,
        fields: &Fields<'_>,
    ) -> Result<Self, Error> {
        w.require(&["in_proj.weight", "conv1d.weight", "A_log", "out_proj.weight"])?;
        let dim = |name: &str, i: usize| w.shape(name).and_then(|s| s.get(i)).copied().unwrap_or(0).max(1);
        let (heads, channels, k) = (dim("A_log", 0), dim("conv1d.weight", 0), dim("conv1d.weight", 2));
        let (rows, d_inner) = (dim("in_proj.weight", 0), dim("out_proj.weight", 1));
        // rows = 2·d_mlp + E + channels + heads and d_inner = d_mlp + E give both.
        let e = (2 * d_inner + channels + heads).checked_sub(rows).filter(|e| *e > 0 && *e <= d_inner);
        let e = e.ok_or_else(|| {
            fields.bad(
                "in_proj.weight",
                format!(
                    "z, x, B, C, dt: {} rows for d_inner {d_inner}, {channels} convolved channels and {heads} heads",
                    d_inner + channels + heads
                ),
                format!("{rows} rows"),
            )
        })?;
        let d_mlp = d_inner - e;
        let bad = |field: &str, expected: String, got: usize| Err(fields.bad(field, expected, got));
        let gn = channels.saturating_sub(e) / 2;
        if gn == 0 || channels != e + 2 * gn {
            return bad("conv1d.weight", format!("{e} channels of x and as many of B as of C"), channels);
        }
        if e % heads != 0 || config.head_dim.is_some_and(|p| p * heads != e) {
            let p = config.head_dim.map_or_else(String::new, |p| format!(" of {p}"));
            return bad("A_log", format!("heads{p} that make up {e} channels"), heads);
        }
        let groups = match (config.n_groups, config.d_state) {
            (Some(groups), _) => groups,
            (None, Some(n)) if n == 0 || !gn.is_multiple_of(n) => {
                return bad("d_state", format!("a divisor of {gn} columns of B"), n);
            }
            (None, Some(n)) => gn / n,
            _ => 1,
        };
        if groups == 0 || gn % groups != 0 || heads % groups != 0 {
            return bad("n_groups", format!("a divisor of {heads} heads and of {gn} columns of B"), groups);
        }
        let n = gn / groups;
        if config.d_state.is_some_and(|said| said != n) {
            return bad("d_state", format!("{n}: {gn} columns of B in {groups} groups"), config.d_state.unwrap_or(0));
        }

        let in_proj = w.take("in_proj.weight", &[rows, d])?;
        let in_bias = w.take_optional("in_proj.bias", &[rows])?;
        let conv = w.take("conv1d.weight", &[channels, 1, k])?;
        let conv_bias = w.take_optional("conv1d.bias", &[channels])?;
        let out_proj = w.take("out_proj.weight", &[d, d_inner])?;
        let out_bias = w.take_optional("out_proj.bias", &[d])?;
        let skip = if w.shape("D") == Some(&[e]) && e != heads {
            w.take("D", &[e])?
        } else {
            let skip = w.take("D", &[heads])?;
            (0..e).map(|i| skip[i / (e / heads)]).collect()
        };
        let per_group = |v: &[f32]| {
            let parts = v.chunks_exact(e / groups);
            parts.map(|v| Norm::new(Kind::Rms, v.to_vec(), None, config.eps)).collect::<Vec<_>>()
        };
        Ok(Self {
            in_proj: Linear::pack(level, &in_proj, rows, d, in_bias.as_deref()),
            conv1d: Conv::new(&conv, channels, conv_bias.as_deref()),
            dt_bias: w.take("dt_bias", &[heads])?,
            dt_limit: config.dt_limit,
            a: w.take("A_log", &[heads])?.iter().map(|v| -v.exp()).collect(),
            d: skip,
            norm: w.take_optional("norm.weight", &[e])?.map_or_else(Vec::new, |v| per_group(&v)),
            norm_first: config.norm_before_gate,
            out_proj: Linear::pack(level, &out_proj, d, d_inner, out_bias.as_deref()),
            e,
            n,
            groups,
            d_mlp,
        })
    }

    /// Refuses a configuration that says other sizes than the tensors have, beyond what [`Mixer2::load`] has looked at.
    pub(crate) fn agree(&self, fields: &Fields<'_>) -> Result<(), Error> {
        fields.agree(&["conv_kernel", "d_conv"], self.conv1d.width())?;
        fields.agree(&["num_heads", "nheads"], self.a.len())
    }

    /// Rounds the weights of both projections to a precision.
    pub(crate) fn lower(&mut self, precision: Precision) {
        [&mut self.in_proj, &mut self.out_proj].into_iter().for_each(|w| w.lower(precision));
    }

    /// Adds this layer's spans to a layout under the names `{prefix}.conv` and `{prefix}.h`: the convolution's tail
    /// (K-1, E + 2GN) and the heads' state (N, E).
    pub(crate) fn state(&self, layout: &mut StateLayout, prefix: &str) -> MixerState {
        let (k, channels) = (self.conv1d.width(), self.channels());
        MixerState {
            conv: layout.add(format!("{prefix}.conv"), &[k - 1, channels]),
            h: layout.add(format!("{prefix}.h"), &[self.n, self.e]),
        }
    }

    /// Channels of the convolution: x, B, C.
    fn channels(&self) -> usize {
        self.e + 2 * self.groups * self.n
    }

    /// Sizes in a few words.
    pub(crate) fn sizes(&self) -> String {
        let heads = self.a.len();
        format!("E {}, {heads} heads of {}, N {}, G {}", self.e, self.e / heads, self.n, self.groups)
    }

    /// Working memory for `rows` rows.
    pub(crate) fn scratch_len(&self, rows: usize) -> usize {
        line(rows * self.in_proj.n())
            + line(rows * self.channels())
            + line(rows * self.e)
            + line(rows * (self.d_mlp + self.e))
    }

    /// `out = mixer(x)` for `rows.len()` sequences of `len` steps each, x and out (rows · len, D); each row goes on from
    /// its state and leaves its end there.
    pub(crate) fn forward(
        &self,
        cx: &Cx,
        x: Mat<'_>,
        rows: &mut [Row],
        len: usize,
        at: &MixerState,
        mut scratch: &mut [f32],
        out: MatMut<'_>,
    ) {
        let (e, gn, heads, d_mlp) = (self.e, self.groups * self.n, self.a.len(), self.d_mlp);
        let (m, wide, channels, d_inner) = (rows.len() * len, self.in_proj.n(), self.channels(), d_mlp + e);
        if m == 0 {
            return;
        }
        let s = &mut scratch;
        let (zx, c) = (carve(s, m * wide), carve(s, m * channels));
        let (y, v) = (carve(s, m * e), carve(s, m * d_inner));

        // [z0 | x0 | z | x | B | C | dt] = in_proj u
        linear(cx, x, &self.in_proj, Act::None, Store::Set, MatMut::new(zx, m, wide));
        let zx = Mat::new(zx, m, wide);
        let z = zx.columns(2 * d_mlp..2 * d_mlp + e);
        let xbc = zx.columns(2 * d_mlp + e..wide - heads);
        let dt = zx.columns(wide - heads..wide);
        let gate_in_scan = self.norm.is_empty() || !self.norm_first;
        for (i, row) in rows.iter_mut().enumerate() {
            // x, B, C = silu(conv1d(xBC)); y = recurrence · silu(z)
            let c = &mut c[i * len * channels..][..len * channels];
            let tail = &mut row.state.data[at.conv.clone()];
            let from = i * len;
            let xbc = sub(xbc, from, len);
            causal_conv1d(cx, &self.conv1d, xbc, Act::Silu, Time::Forward, tail, MatMut::new(c, len, channels));
            let c = Mat::new(c, len, channels);
            let call = Ssd {
                x: c.columns(0..e),
                dt: sub(dt, from, len),
                dt_bias: &self.dt_bias,
                dt_limit: self.dt_limit,
                scale: row.rate,
                a: &self.a,
                b: c.columns(e..e + gn),
                c: c.columns(e + gn..channels),
                d: &self.d,
                z: gate_in_scan.then(|| sub(z, from, len)),
            };
            ssd(cx, &call, &mut row.state.data[at.h.clone()], MatMut::new(&mut y[from * e..], len, e));
        }
        // v = [silu(z0) · x0 | norm(y)]
        let per_group = e / self.groups;
        for (g, w) in self.norm.iter().enumerate() {
            let from = Mat::strided(&y[g * per_group..], m, per_group, e);
            norm(cx, w, from, MatMut::strided(&mut v[d_mlp + g * per_group..], m, per_group, d_inner));
        }
        for (r, v) in v.chunks_exact_mut(d_inner).enumerate() {
            let (plain, v) = v.split_at_mut(d_mlp);
            plain.copy_from_slice(&zx.row(r)[d_mlp..2 * d_mlp]);
            gate(cx.level, Act::Silu, plain, &zx.row(r)[..d_mlp]);
            if self.norm.is_empty() {
                v.copy_from_slice(&y[r * e..][..e]);
            } else if self.norm_first {
                gate(cx.level, Act::Silu, v, z.row(r));
            }
        }
        linear(cx, Mat::new(v, m, d_inner), &self.out_proj, Act::None, Store::Set, out);
    }

    /// `periods` steps without input (mamba.md 7): `S ← exp(a · softplus(dt_bias) · periods) S` per head, and zeros move
    /// into the convolution's tail.
    pub(crate) fn gap(&self, state: &mut [f32], at: &MixerState, periods: f64) {
        if periods.is_nan() || periods <= 0.0 {
            return;
        }
        let p = self.e / self.a.len();
        let (low, high) = self.dt_limit;
        for (i, s) in state[at.h.clone()].iter_mut().enumerate() {
            let head = i % self.e / p;
            let delta = softplus(self.dt_bias[head]).max(low).min(high);
            *s *= (f64::from(self.a[head]) * f64::from(delta) * periods).exp() as f32;
        }
        shift_tail(&mut state[at.conv.clone()], self.channels(), periods);
    }

    /// The layer's state as upstream lays it out: `conv` (E + 2GN, K-1), `ssm` (H, P, N).
    pub(crate) fn upstream_state(&self, state: &[f32], at: &MixerState, what: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let (range, channels) = match what {
            "conv" => (at.conv.clone(), self.channels()),
            "ssm" => (at.h.clone(), self.e),
            _ => return None,
        };
        let span = &state[range];
        let k = span.len() / channels;
        let values = (0..channels * k).map(|i| span[i % k * channels + i / k]).collect();
        let heads = self.a.len();
        Some((if what == "ssm" { vec![heads, self.e / heads, k] } else { vec![channels, k] }, values))
    }
}
