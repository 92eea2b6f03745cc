//! Causal depthwise convolution over time with a carried tail.
//!
//! `y_t[c] = act(bias[c] + Σ_{j<K} w[j][c] x_{t-K+1+j}[c])`: tap K-1 meets the newest row, as in every deep-learning
//! framework. Rows before the first come from `tail`, the last K-1 rows of the call before, oldest first; after the call
//! it holds the last K-1 rows of this one.

mod agree;

use crate::activation::Act;
use crate::array::{Mat, MatMut};
use crate::{CpuLevel, Cx};

/// Direction of time over the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// The first row is the oldest.
    Forward,
    /// The last row is the oldest.
    Reverse,
}

/// Weights of a depthwise convolution.
pub struct Conv {
    /// Taps, K rows of d (transposed from the checkpoint's `[d, 1, K]`).
    taps: Vec<f32>,
    bias: Vec<f32>,
    d: usize,
}

impl Conv {
    /// From `w`, `[d, 1, K]` as stored, and an optional bias of d values.
    ///
    /// # Panics
    /// `w` does not hold d rows, or the bias not d values.
    pub fn new(w: &[f32], d: usize, bias: Option<&[f32]>) -> Self {
        let k = w.len() / d.max(1);
        assert!(k > 0 && w.len() == k * d, "causal_conv1d: {} weights for {d} channels", w.len());
        assert!(bias.is_none_or(|b| b.len() == d), "causal_conv1d: expected {d} bias values");
        let taps = (0..k).flat_map(|j| (0..d).map(move |c| w[c * k + j])).collect();
        Self { taps, bias: bias.map_or_else(|| vec![0.0; d], <[f32]>::to_vec), d }
    }

    /// Taps K.
    pub fn width(&self) -> usize {
        self.taps.len() / self.d
    }

    /// The taps, K rows of d values, the newest row's last.
    pub fn taps(&self) -> &[f32] {
        &self.taps
    }

    /// The bias, d values; zeros where there is none.
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Values of the tail: (K - 1) · d.
    pub fn tail_len(&self) -> usize {
        (self.width() - 1) * self.d
    }
}

/// Convolves x (len, d) into y (len, d).
///
/// # Panics
/// A shape does not fit.
pub fn causal_conv1d(cx: &Cx, w: &Conv, x: Mat<'_>, act: Act, time: Time, tail: &mut [f32], mut y: MatMut<'_>) {
    let (len, d, k) = (x.rows(), w.d, w.width());
    assert!(x.cols() == d, "causal_conv1d: expected {d} channels, got {}", x.cols());
    assert!(y.rows() == len && y.cols() == d, "causal_conv1d: expected output {len}x{d}");
    assert!(tail.len() == w.tail_len(), "causal_conv1d: expected a tail of {}, got {}", w.tail_len(), tail.len());
    let row = |t: usize| if time == Time::Forward { t } else { len - 1 - t };
    for t in 0..len {
        let out = y.row(row(t));
        // The K source rows of this output, oldest first: from the tail while t - K + 1 + j < 0.
        out.copy_from_slice(&w.bias);
        for j in 0..k {
            let taps = &w.taps[j * d..][..d];
            let source = match (t + j).checked_sub(k - 1) {
                Some(t) => x.row(row(t)),
                None => &tail[(t + j) * d..][..d],
            };
            add_product(cx.level, out, taps, source);
        }
        crate::activation::apply(cx.level, act, out);
    }
    // New tail: the last K-1 of (old tail, rows).
    let keep = k - 1;
    if len < keep {
        tail.copy_within(len * d.., 0);
    }
    for i in keep.saturating_sub(len)..keep {
        tail[i * d..][..d].copy_from_slice(x.row(row(len + i - keep)));
    }
}

/// `out += a * b`, element by element.
fn add_product(level: CpuLevel, out: &mut [f32], a: &[f32], b: &[f32]) {
    match level {
        CpuLevel::Scalar => out.iter_mut().zip(a).zip(b).for_each(|((o, a), b)| *o += a * b),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Cx` bounds the level by what the machine has.
        CpuLevel::Avx2 => unsafe { avx2(out, a, b) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        CpuLevel::Avx512 => unsafe { avx512(out, a, b) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => out.iter_mut().zip(a).zip(b).for_each(|((o, a), b)| *o += a * b),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(out: &mut [f32], a: &[f32], b: &[f32]) {
    out.iter_mut().zip(a).zip(b).for_each(|((o, a), b)| *o = a.mul_add(*b, *o));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
fn avx512(out: &mut [f32], a: &[f32], b: &[f32]) {
    out.iter_mut().zip(a).zip(b).for_each(|((o, a), b)| *o = a.mul_add(*b, *o));
}
