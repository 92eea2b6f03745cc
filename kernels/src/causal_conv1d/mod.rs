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
    let io = Io { w, x, tail, act, row: &row };
    match cx.level.here() {
        CpuLevel::Scalar => io.scalar(&mut y),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `here` bounds the level by what the machine has; every shape was checked above.
        CpuLevel::Avx2 => unsafe { x86::avx2(&io, &mut y) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        CpuLevel::Avx512 => unsafe { x86::avx512(&io, &mut y) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => io.scalar(&mut y),
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

/// One call: what is read, and which row belongs to a step.
struct Io<'a, R> {
    w: &'a Conv,
    x: Mat<'a>,
    tail: &'a [f32],
    act: Act,
    row: R,
}

impl<R: Fn(usize) -> usize> Io<'_, R> {
    /// The row that tap `j` meets at step `t`: from the tail while t - K + 1 + j < 0.
    #[inline(always)]
    fn source(&self, t: usize, j: usize) -> &[f32] {
        match (t + j).checked_sub(self.w.width() - 1) {
            Some(t) => self.x.row((self.row)(t)),
            None => &self.tail[(t + j) * self.w.d..][..self.w.d],
        }
    }

    fn scalar(&self, y: &mut MatMut<'_>) {
        let w = self.w;
        for t in 0..self.x.rows() {
            let out = y.row((self.row)(t));
            out.copy_from_slice(&w.bias);
            for (j, taps) in w.taps.chunks_exact(w.d).enumerate() {
                out.iter_mut().zip(taps).zip(self.source(t, j)).for_each(|((o, a), b)| *o += a * b);
            }
            out.iter_mut().for_each(|o| *o = self.act.scalar(*o));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! A row at a time, its K sources side by side, activation and all in one pass.
    //!
    //! Against the scalar form: multiply-adds round once, activations are those of `simd.rs`.

    use super::Io;
    use crate::activation::x86::act;
    use crate::array::MatMut;
    use crate::simd::{Simd, Wide};
    use std::arch::x86_64::{__m256, __m512};

    /// Channels from `e` of a step, as many as S holds and `left` allows; returns their number.
    ///
    /// # Safety
    /// S's features; every source, the weights and `out` have `left` values from `e` on.
    #[inline(always)]
    unsafe fn step<S: Simd, R>(io: &Io<'_, R>, sources: &[*const f32], out: *mut f32, e: usize, left: usize) -> usize {
        let (lanes, d) = (S::LANES.min(left), io.w.d);
        // SAFETY: the caller's bounds; a row of taps is d values.
        unsafe {
            let load = |p: *const f32| if lanes == S::LANES { S::load(p.add(e)) } else { S::load_n(p.add(e), lanes) };
            let mut sum = load(io.w.bias.as_ptr());
            for (j, source) in sources.iter().enumerate() {
                sum = load(io.w.taps.as_ptr().add(j * d)).mul_add(load(*source), sum);
            }
            let y = act(io.act, sum);
            if lanes == S::LANES { y.store(out.add(e)) } else { y.store_n(out.add(e), lanes) }
        }
        lanes
    }

    /// # Safety
    /// S's features; the shapes as `causal_conv1d` checked them.
    #[inline(always)]
    unsafe fn rows<S: Simd, R: Fn(usize) -> usize>(io: &Io<'_, R>, y: &mut MatMut<'_>) {
        const MOST: usize = 16;
        let (d, k) = (io.w.d, io.w.width());
        let mut sources = [std::ptr::null(); MOST];
        for t in 0..io.x.rows() {
            let out = y.row((io.row)(t)).as_mut_ptr();
            if k > MOST {
                // SAFETY: one channel at a time needs no list of sources.
                (0..d).for_each(|c| unsafe {
                    let sum = (0..k).fold(io.w.bias[c], |sum, j| io.w.taps[j * d + c].mul_add(io.source(t, j)[c], sum));
                    *out.add(c) = io.act.scalar(sum);
                });
                continue;
            }
            sources.iter_mut().zip(0..k).for_each(|(s, j)| *s = io.source(t, j).as_ptr());
            let mut e = 0;
            while e < d {
                // SAFETY: e < d, the length of every row here.
                e += unsafe {
                    if d - e > S::LANES {
                        step::<Wide<S, 2>, R>(io, &sources[..k], out, e, d - e)
                    } else {
                        step::<S, R>(io, &sources[..k], out, e, d - e)
                    }
                };
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2<R: Fn(usize) -> usize>(io: &Io<'_, R>, y: &mut MatMut<'_>) {
        // SAFETY: this function has the features of __m256; `causal_conv1d` checked the shapes.
        unsafe { rows::<__m256, R>(io, y) }
    }

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
    pub(super) fn avx512<R: Fn(usize) -> usize>(io: &Io<'_, R>, y: &mut MatMut<'_>) {
        // SAFETY: this function has the features of __m512; `causal_conv1d` checked the shapes.
        unsafe { rows::<__m512, R>(io, y) }
    }
}
