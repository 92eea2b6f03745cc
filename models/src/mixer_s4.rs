//! The Mamba block with an S4 layer in the place of its selective scan, as CleanUMamba's experiment has it: the layer
//! stands between two linear maps, which take the inner width down to its few features and back.

mod card;

pub(crate) use card::MixerS4Net;

use crate::checkpoint::Reader;
use crate::config::bad;
use crate::error::Error;
use crate::mixer::{MixerState, shift_tail, sub};
use crate::model::{Row, carve, line};
use crate::s4::Block;
use crate::state::StateLayout;
use ssm_kernels::activation::gate;
use ssm_kernels::causal_conv1d::{Conv, Time, causal_conv1d};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};

/// Weights of one mixer.
pub(crate) struct MixerS4 {
    in_proj: Linear,  // (2E, D): x, z
    conv1d: Conv,     // (E)
    ssm: Block,       // E to E
    out_proj: Linear, // (D, E)
    e: usize,
}

impl MixerS4 {
    /// Whether such a mixer lies at the reader's place.
    pub(crate) fn detect(w: &Reader<'_>) -> bool {
        w.has("ssm.layer.D") && w.has("in_proj.weight")
    }

    /// Reads a mixer of width `d` at the reader's place.
    pub(crate) fn load(w: &Reader<'_>, level: CpuLevel, d: usize, file: &str) -> Result<Self, Error> {
        w.require(&["conv1d.weight"])?;
        let dim = |name: &str, i: usize| w.shape(name).and_then(|s| s.get(i)).copied().unwrap_or(0);
        let (e, k) = (dim("conv1d.weight", 0), dim("conv1d.weight", 2));
        let in_proj = w.take("in_proj.weight", &[2 * e, d])?;
        let in_bias = w.take_optional("in_proj.bias", &[2 * e])?;
        let conv = w.take("conv1d.weight", &[e, 1, k])?;
        let conv_bias = w.take_optional("conv1d.bias", &[e])?;
        if e == 0 || k == 0 {
            return Err(bad(file, "conv1d.weight", "[E, 1, K], no axis empty", format!("[{e}, 1, {k}]")));
        }
        // Upstream's defaults; the file's configuration is about the network around.
        let ssm = Block::load(&w.at("ssm."), level, None, file)?;
        if (ssm.d_input(), ssm.d_output()) != (e, e) {
            let got = format!("{} to {}", ssm.d_input(), ssm.d_output());
            return Err(bad(file, "ssm", format!("a layer from {e} to {e} columns"), got));
        }
        let out_proj = w.take("out_proj.weight", &[d, e])?;
        let out_bias = w.take_optional("out_proj.bias", &[d])?;
        Ok(Self {
            in_proj: Linear::pack(level, &in_proj, 2 * e, d, in_bias.as_deref()),
            conv1d: Conv::new(&conv, e, conv_bias.as_deref()),
            ssm,
            out_proj: Linear::pack(level, &out_proj, d, e, out_bias.as_deref()),
            e,
        })
    }

    /// Adds this layer's spans to a layout under the names `{prefix}.conv` and `{prefix}.h`.
    pub(crate) fn state(&self, layout: &mut StateLayout, prefix: &str) -> MixerState {
        MixerState {
            conv: layout.add(format!("{prefix}.conv"), &[self.conv1d.width() - 1, self.e]),
            h: self.ssm.state(layout, format!("{prefix}.h")),
        }
    }

    /// Sizes in a few words.
    pub(crate) fn sizes(&self) -> String {
        let s = self.ssm.core().sizes();
        format!("E {}, S4 of {} features, N {}, rank {}", self.e, s.features, 2 * s.states, s.rank)
    }

    /// Working memory for `rows` rows.
    pub(crate) fn scratch_len(&self, rows: usize) -> usize {
        line(rows * 2 * self.e) + 2 * line(rows * self.e) + self.ssm.scratch_len(rows)
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
        let (e, m) = (self.e, rows.len() * len);
        let s = &mut scratch;
        let (xz, c, y) = (carve(s, m * 2 * e), carve(s, m * e), carve(s, m * e));
        // [x | z] = in_proj u; c = silu(conv1d(x))
        linear(cx, x, &self.in_proj, Act::None, Store::Set, MatMut::new(xz, m, 2 * e));
        let xz = Mat::new(xz, m, 2 * e);
        for (i, row) in rows.iter_mut().enumerate() {
            let out = MatMut::new(&mut c[i * len * e..], len, e);
            let tail = &mut row.state.data[at.conv.clone()];
            causal_conv1d(cx, &self.conv1d, sub(xz, i * len, len).columns(0..e), Act::Silu, Time::Forward, tail, out);
        }
        // y = S4(c) · silu(z)
        self.ssm.forward(cx, Mat::new(c, m, e), rows, len, &at.h, s, MatMut::new(y, m, e));
        for (r, y) in y.chunks_exact_mut(e).enumerate() {
            gate(cx.level, Act::Silu, y, &xz.row(r)[e..]);
        }
        linear(cx, Mat::new(y, m, e), &self.out_proj, Act::None, Store::Set, out);
    }

    /// `periods` steps without input: the S4 layer's state fades (s4.md 7), and zeros move into the convolution's tail.
    pub(crate) fn gap(&self, state: &mut [f32], at: &MixerState, periods: f64) {
        if periods.is_nan() || periods <= 0.0 {
            return;
        }
        self.ssm.core().gap(&mut state[at.h.clone()], periods);
        shift_tail(&mut state[at.conv.clone()], self.e, periods);
    }

    /// The layer's state as upstream lays it out: `conv` (E, K-1), `ssm` (H, N, 2).
    pub(crate) fn upstream_state(&self, state: &[f32], at: &MixerState, what: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        match what {
            "conv" => {
                let (tail, e) = (&state[at.conv.clone()], self.e);
                let k = tail.len() / e;
                Some((vec![e, k], (0..e * k).map(|i| tail[i % k * e + i / k]).collect()))
            }
            "ssm" => Some(self.ssm.core().upstream_state(&state[at.h.clone()])),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn golden_files_pass() {
        crate::golden::pass("cleanumamba_s4");
    }
}
