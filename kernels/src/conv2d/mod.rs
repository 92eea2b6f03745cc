//! Convolution over images whose pixels are rows.
//!
//! An image is a matrix: one row per pixel, line by line, one column per channel; the width of a line is given beside it.
//!
//! Dense, stride s, padding p:
//!
//! ```text
//! y[Y,X][o] = act(bias[o] + Σ_{i,j,c} w[o,c,i,j] x[Y·s - p + i, X·s - p + j][c])
//! ```
//!
//! as a product of gathered windows with packed weights. Depthwise, stride 1, same size (k odd, padding k/2):
//!
//! ```text
//! y[Y,X][c] = act(bias[c] + Σ_{i,j} w[c,i,j] x[Y - k/2 + i, X - k/2 + j][c])
//! ```
//!
//! Outside the image x is 0. A pixel's result does not depend on the number of threads.

mod agree;

use crate::activation::Act;
use crate::array::{Bands, Mat, MatMut};
use crate::linear::{Linear, Store, linear};
use crate::{CpuLevel, Cx};
use std::ops::Range;

/// Weights of a dense convolution with a square kernel.
pub struct Conv2d {
    weights: Linear, // (out, kernel · kernel · channels), columns in the order (line, column, channel)
    channels: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

/// Pixels whose windows are gathered at a time: they stay in the second-level cache.
const BAND: usize = 96;

impl Conv2d {
    /// Packs `w`, `[out, channels, kernel, kernel]` as PyTorch stores it, and a bias of `out` values.
    ///
    /// # Panics
    /// A slice has another length, or the kernel or the stride is 0.
    pub fn pack(
        level: CpuLevel,
        w: &[f32],
        [out, channels, kernel]: [usize; 3],
        (stride, padding): (usize, usize),
        bias: Option<&[f32]>,
    ) -> Self {
        let (area, k) = (kernel * kernel, kernel * kernel * channels);
        assert!(kernel > 0 && stride > 0, "conv2d: kernel {kernel}, stride {stride}");
        assert!(w.len() == out * k, "conv2d: expected {out}x{channels}x{kernel}x{kernel} weights, got {}", w.len());
        let weights = Linear::pack_with(level, out, k, bias, |o, i| w[o * k + i % channels * area + i / channels]);
        Self { weights, channels, kernel, stride, padding }
    }

    /// The weights, (out, kernel · kernel · channels), columns in the order (line, column, channel).
    pub fn weights(&self) -> &Linear {
        &self.weights
    }

    /// Side of the kernel, pixels between windows, zeros around the image.
    pub fn geometry(&self) -> (usize, usize, usize) {
        (self.kernel, self.stride, self.padding)
    }

    /// Channels of the input.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Height and width of the result; 0 where the kernel does not fit.
    pub fn out_size(&self, (h, w): (usize, usize)) -> (usize, usize) {
        let side = |n: usize| crate::patch::count(n + 2 * self.padding, self.kernel, self.stride);
        (side(h), side(w))
    }

    /// Channels of the result.
    pub fn out_channels(&self) -> usize {
        self.weights.n()
    }

    /// Values of working memory that [`conv2d`] needs on `threads` threads.
    pub fn scratch_len(&self, threads: usize) -> usize {
        threads * BAND * self.weights.k()
    }
}

/// Convolves x, an image of `size` (height, width), into y.
///
/// # Panics
/// A shape does not fit, or the scratch is shorter than [`Conv2d::scratch_len`].
pub fn conv2d(cx: &Cx, w: &Conv2d, x: Mat<'_>, size: (usize, usize), act: Act, scratch: &mut [f32], y: MatMut<'_>) {
    let (oh, ow) = w.out_size(size);
    let (m, k) = (oh * ow, w.weights.k());
    check("conv2d", &x, size.0 * size.1, w.channels);
    check("conv2d: output", &y.as_mat(), m, w.weights.n());
    let threads = cx.team.threads();
    assert!(scratch.len() >= w.scratch_len(threads), "conv2d: scratch of {} values", scratch.len());
    let parts = threads.min(m.div_ceil(BAND));
    y.in_bands(&cx.team, MatMut::new(scratch, parts, BAND * k), |pixels, mut rest, windows| {
        for from in pixels.clone().step_by(BAND) {
            let here = from..(from + BAND).min(pixels.end);
            gather(w, x, size, ow, here.clone(), windows);
            let (y, behind) = rest.split_rows(here.len());
            linear(cx, Mat::new(windows, here.len(), k), &w.weights, act, Store::Set, y);
            rest = behind;
        }
    });
}

/// Copies the windows of some output pixels to rows.
fn gather(w: &Conv2d, x: Mat<'_>, (h, width): (usize, usize), ow: usize, pixels: Range<usize>, rows: &mut [f32]) {
    let (k, c) = (w.kernel, w.channels);
    for (pixel, row) in pixels.zip(rows.chunks_exact_mut((k * k * c).max(1))) {
        let (top, left) = (pixel / ow * w.stride, pixel % ow * w.stride);
        for (tap, out) in row.chunks_exact_mut(c).enumerate() {
            let line = (top + tap / k).checked_sub(w.padding).filter(|v| *v < h);
            let column = (left + tap % k).checked_sub(w.padding).filter(|v| *v < width);
            match (line, column) {
                (Some(line), Some(column)) => out.copy_from_slice(x.row(line * width + column)),
                _ => out.fill(0.0),
            }
        }
    }
}

/// Weights of a depthwise convolution.
pub struct Depthwise {
    taps: Vec<f32>, // (kernel · kernel, channels)
    bias: Vec<f32>, // (channels)
    kernel: usize,
}

impl Depthwise {
    /// From `w`, `[channels, 1, kernel, kernel]` as stored, and a bias of `channels` values.
    ///
    /// # Panics
    /// A slice has another length, or the kernel is even.
    pub fn new(w: &[f32], channels: usize, kernel: usize, bias: Option<&[f32]>) -> Self {
        let area = kernel * kernel;
        assert!(kernel % 2 == 1, "depthwise: expected an odd kernel, got {kernel}");
        assert!(w.len() == channels * area, "depthwise: {} weights for {channels} channels", w.len());
        assert!(bias.is_none_or(|b| b.len() == channels), "depthwise: expected {channels} bias values");
        let taps = (0..area).flat_map(|t| (0..channels).map(move |c| w[c * area + t])).collect();
        Self { taps, bias: bias.map_or_else(|| vec![0.0; channels], <[f32]>::to_vec), kernel }
    }

    /// The taps, (kernel · kernel, channels).
    pub fn taps(&self) -> &[f32] {
        &self.taps
    }

    /// The bias, a value per channel; zeros where there is none.
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Side of the kernel.
    pub fn kernel(&self) -> usize {
        self.kernel
    }
}

/// Convolves each channel of x, an image of `size` (height, width), into the same channel of y.
///
/// # Panics
/// A shape does not fit.
pub fn depthwise(cx: &Cx, w: &Depthwise, x: Mat<'_>, size: (usize, usize), act: Act, mut y: MatMut<'_>) {
    let (h, width) = size;
    let d = w.bias.len();
    check("depthwise", &x, h * width, d);
    check("depthwise: output", &y.as_mat(), h * width, d);
    if d == 0 || width == 0 {
        return;
    }
    let parts = if h * width * d < 1 << 14 { 1 } else { h.min(8 * cx.team.threads()) };
    let out = Bands::new(&mut y);
    cx.team.split(parts, |part| {
        for line in h * part / parts..h * (part + 1) / parts {
            // SAFETY: every line of the image is written by one part.
            let y = unsafe { out.rows(line * width..(line + 1) * width) };
            match cx.level.here() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `here` bounds the level by what the machine has; the shapes were checked above.
                CpuLevel::Avx2 if w.kernel == 3 => unsafe { x86::avx2(w, x, size, line, act, y) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                CpuLevel::Avx512 if w.kernel == 3 => unsafe { x86::avx512(w, x, size, line, act, y) },
                _ => scalar(w, x, size, line, act, y),
            }
        }
    });
}

/// One line of the result, as the sum is written.
fn scalar(w: &Depthwise, x: Mat<'_>, (h, width): (usize, usize), line: usize, act: Act, mut y: MatMut<'_>) {
    let (k, d) = (w.kernel, w.bias.len());
    for column in 0..width {
        let out = y.row(column);
        out.copy_from_slice(&w.bias);
        for tap in 0..k * k {
            let from = (line + tap / k).checked_sub(k / 2).filter(|v| *v < h);
            let at = (column + tap % k).checked_sub(k / 2).filter(|v| *v < width);
            if let (Some(from), Some(at)) = (from, at) {
                let (x, taps) = (x.row(from * width + at), &w.taps[tap * d..][..d]);
                out.iter_mut().zip(taps).zip(x).for_each(|((o, w), x)| *o += w * x);
            }
        }
        out.iter_mut().for_each(|v| *v = act.scalar(*v));
    }
}

fn check(what: &str, m: &Mat<'_>, rows: usize, cols: usize) {
    assert!(m.rows() == rows && m.cols() == cols, "{what}: expected {rows}x{cols}, got {}x{}", m.rows(), m.cols());
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Depthwise 3 x 3 with a vector over channels, its nine taps in registers along a line. Against the scalar form:
    //! multiply-adds round once; the order of the sum is the same, taps outside the image are left out.

    use super::Depthwise;
    use crate::activation::{Act, x86::act};
    use crate::array::{Mat, MatMut};
    use crate::simd::Simd;
    use std::arch::x86_64::{__m256, __m512};
    use std::ops::Range;

    /// # Safety
    /// S's features; x is h·width x d, y width x d, line < h.
    #[inline(always)]
    unsafe fn row<S: Simd>(
        w: &Depthwise,
        x: Mat<'_>,
        (h, width): (usize, usize),
        line: usize,
        a: Act,
        mut y: MatMut<'_>,
    ) {
        let d = w.bias.len();
        let (stride, out, out_stride) = (x.stride(), y.ptr(), y.stride());
        // Taps of one side that meet the image, for a place on that side.
        let taps = |at: usize, len: usize| -> Range<usize> { usize::from(at == 0)..3 - usize::from(at + 1 == len) };
        let lines = taps(line, h);
        let mut e = 0;
        // SAFETY: e + lanes <= d; the lines and columns that a tap meets lie inside the image by `taps`.
        unsafe {
            while e < d {
                let lanes = S::LANES.min(d - e);
                let load = |p: *const f32| if lanes == S::LANES { S::load(p) } else { S::load_n(p, lanes) };
                let mut tap = [S::splat(0.0); 9];
                for (t, v) in tap.iter_mut().enumerate() {
                    *v = load(w.taps.as_ptr().add(t * d + e));
                }
                let bias = load(w.bias.as_ptr().add(e));
                // The pixel that tap (i, j) of the output at `column` meets.
                let at = |i: usize, j: usize, column: usize| {
                    x.ptr().add(((line + i - 1) * width + column + j - 1) * stride + e)
                };
                for column in 0..width {
                    let mut sum = bias;
                    if lines.len() == 3 && column > 0 && column + 1 < width && lanes == S::LANES {
                        for i in 0..3 {
                            for j in 0..3 {
                                sum = tap[3 * i + j].mul_add(S::load(at(i, j, column)), sum);
                            }
                        }
                    } else {
                        for i in lines.clone() {
                            for j in taps(column, width) {
                                sum = tap[3 * i + j].mul_add(load(at(i, j, column)), sum);
                            }
                        }
                    }
                    let p = out.add(column * out_stride + e);
                    let v = act(a, sum);
                    if lanes == S::LANES { v.store(p) } else { v.store_n(p, lanes) }
                }
                e += lanes;
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(w: &Depthwise, x: Mat<'_>, size: (usize, usize), line: usize, act: Act, y: MatMut<'_>) {
        // SAFETY: this function has the features of __m256; `depthwise` checked the shapes.
        unsafe { row::<__m256>(w, x, size, line, act, y) }
    }

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
    pub(super) fn avx512(w: &Depthwise, x: Mat<'_>, size: (usize, usize), line: usize, act: Act, y: MatMut<'_>) {
        // SAFETY: this function has the features of __m512; `depthwise` checked the shapes.
        unsafe { row::<__m512>(w, x, size, line, act, y) }
    }
}
