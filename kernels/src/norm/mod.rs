//! Normalisation over channels.
//!
//! RMSNorm: `y = x / sqrt(mean(x²) + eps) · w + b`; LayerNorm: `y = (x - mean(x)) / sqrt(var(x) + eps) · w + b`.
//! Statistics in f32, summed in a fixed order per row, so that a row's result does not depend on other rows.

mod agree;

use crate::array::{Mat, MatMut};
use crate::{CpuLevel, Cx};

/// Values from which on two threads are faster than one.
const WORTH_TWO: usize = 1 << 14;

/// Which statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Root mean square.
    Rms,
    /// Mean and variance.
    Layer,
}

/// A norm's weights.
#[derive(Clone)]
pub struct Norm {
    /// Which statistics.
    pub kind: Kind,
    /// Scale per channel.
    pub weight: Vec<f32>,
    /// Shift per channel; zeros where the model has none.
    pub bias: Vec<f32>,
    /// Added under the root.
    pub eps: f32,
}

impl Norm {
    /// A norm over `weight.len()` channels.
    ///
    /// # Panics
    /// The bias has another length than the weight.
    pub fn new(kind: Kind, weight: Vec<f32>, bias: Option<Vec<f32>>, eps: f32) -> Self {
        let bias = bias.unwrap_or_else(|| vec![0.0; weight.len()]);
        assert!(bias.len() == weight.len(), "norm: {} weights and {} shifts", weight.len(), bias.len());
        Self { kind, weight, bias, eps }
    }
}

/// `y = norm(x)`, row by row.
///
/// # Panics
/// A shape does not fit.
pub fn norm(cx: &Cx, w: &Norm, x: Mat<'_>, y: MatMut<'_>) {
    check(w, x.rows(), x.cols(), &y);
    let parts = if x.rows() * x.cols() < WORTH_TWO { 1 } else { cx.team.free() };
    y.each_row(&cx.team, parts, |r, y| row(cx.level, w, x.row(r), y));
}

/// `residual += x; y = norm(residual)`, row by row: the step between two layers of a pre-norm network.
///
/// # Panics
/// A shape does not fit.
pub fn add_norm(cx: &Cx, w: &Norm, x: Mat<'_>, residual: MatMut<'_>, y: MatMut<'_>) {
    check(w, x.rows(), x.cols(), &y);
    check(w, x.rows(), x.cols(), &residual);
    if cx.team.free() == 1 || x.rows() * x.cols() < WORTH_TWO {
        return add_norm_rows(cx.level, w, x, residual, y);
    }
    let half = x.rows() / 2;
    let ((r0, r1), (y0, y1)) = (residual.split_rows(half), y.split_rows(half));
    cx.team.both(
        || add_norm_rows(cx.level, w, x.sub_rows(0..half), r0, y0),
        || add_norm_rows(cx.level, w, x.sub_rows(half..x.rows()), r1, y1),
    );
}

fn add_norm_rows(level: CpuLevel, w: &Norm, x: Mat<'_>, mut residual: MatMut<'_>, mut y: MatMut<'_>) {
    for r in 0..x.rows() {
        let sum = residual.row(r);
        sum.iter_mut().zip(x.row(r)).for_each(|(s, x)| *s += x);
        row(level, w, sum, y.row(r));
    }
}

fn check(w: &Norm, rows: usize, cols: usize, y: &MatMut<'_>) {
    let d = w.weight.len();
    assert!(
        cols == d && y.rows() == rows && y.cols() == d,
        "norm: expected {rows}x{d}, got input of {cols} columns and output {}x{}",
        y.rows(),
        y.cols()
    );
}

fn row(level: CpuLevel, w: &Norm, x: &[f32], y: &mut [f32]) {
    match level.here() {
        CpuLevel::Scalar => scalar(w, x, y),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `here` bounds the level by what the machine has.
        CpuLevel::Avx2 => unsafe { avx2(w, x, y) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        CpuLevel::Avx512 => unsafe { avx512(w, x, y) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => scalar(w, x, y),
    }
}

fn scalar(w: &Norm, x: &[f32], y: &mut [f32]) {
    let n = x.len() as f32;
    let mean = if w.kind == Kind::Layer { x.iter().sum::<f32>() / n } else { 0.0 };
    let var = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
    let scale = 1.0 / (var + w.eps).sqrt();
    for (((y, x), g), b) in y.iter_mut().zip(x).zip(&w.weight).zip(&w.bias) {
        *y = (x - mean) * scale * g + b;
    }
}

/// The scalar form with 32 running sums, which the compiler keeps in vectors.
#[inline(always)]
fn vector(w: &Norm, x: &[f32], y: &mut [f32]) {
    #[inline(always)]
    fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
        let mut lanes = [0f32; 32];
        let chunks = x.chunks_exact(32);
        let rest = chunks.remainder();
        for c in chunks {
            for (l, x) in lanes.iter_mut().zip(c) {
                *l += f(*x);
            }
        }
        for (l, x) in lanes.iter_mut().zip(rest) {
            *l += f(*x);
        }
        let mut width = 16;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }
    let n = x.len() as f32;
    let mean = if w.kind == Kind::Layer { sum(x, |x| x) / n } else { 0.0 };
    let var = sum(x, |x| (x - mean) * (x - mean)) / n;
    let scale = 1.0 / (var + w.eps).sqrt();
    for (((y, x), g), b) in y.iter_mut().zip(x).zip(&w.weight).zip(&w.bias) {
        *y = (x - mean) * scale * g + b;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(w: &Norm, x: &[f32], y: &mut [f32]) {
    vector(w, x, y);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
fn avx512(w: &Norm, x: &[f32], y: &mut [f32]) {
    vector(w, x, y);
}
