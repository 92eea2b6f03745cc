//! Recurrence with complex poles, one for each state: the state-space layer of aTENNuate (Pei et al. 2024,
//! arXiv 2409.03377, equations 1 and 2).
//!
//! ```text
//! s_t = λ s_{t-1} + u_t                        [n] complex, u real
//! u_t ← Re s_t                                 complex_scan: a product before it gives u, one after it takes Re s
//! y_t = Σ_n g[n] Re s_t[n],  u_t[n] = x_t      complex_filter: one channel in and out, all in one pass
//! ```
//!
//! A layer of one channel, `u = b x` and `y = c · Re s`, is the filter with `g = b c`: its states are those of the layer
//! divided by b. A state slice holds n real parts, then n imaginary ones. Steps run strictly in order: any cut gives the
//! same bits.

mod agree;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::CpuLevel;
use crate::TINY;
use crate::array::{MatMut, Slab};

/// Poles λ of a layer.
pub struct Poles {
    re: Slab,
    im: Slab,
}

impl Poles {
    /// From real and imaginary parts, computed in f64.
    pub fn new(poles: impl ExactSizeIterator<Item = (f64, f64)>) -> Self {
        let (mut re, mut im) = (Slab::zeros(poles.len()), Slab::zeros(poles.len()));
        for (i, pole) in poles.enumerate() {
            (re[i], im[i]) = (pole.0 as f32, pole.1 as f32);
        }
        Self { re, im }
    }

    /// Number of states.
    pub fn n(&self) -> usize {
        self.re.len()
    }
}

/// Runs the recurrence from state `s` (2n, updated in place) over the rows of `u` (len, n), each replaced by the real
/// part of the state after it.
///
/// # Panics
/// A shape does not fit.
pub fn complex_scan(level: CpuLevel, poles: &Poles, s: &mut [f32], mut u: MatMut<'_>) {
    let n = poles.n();
    assert!(u.cols() == n, "complex_scan: expected {n} columns, got {}", u.cols());
    let (re, im) = split(s, n);
    match level.here() {
        CpuLevel::Scalar => {
            for t in 0..u.rows() {
                let row = u.row(t);
                for (i, u) in row.iter_mut().enumerate() {
                    step(poles, i, re, im, *u);
                    *u = re[i];
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `here` bounds the level by what the machine has; the shapes were checked above.
        CpuLevel::Avx2 => unsafe { x86::scan_avx2(poles, re, im, u) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        CpuLevel::Avx512 => unsafe { x86::scan_avx512(poles, re, im, u) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => complex_scan(CpuLevel::Scalar, poles, s, u),
    }
}

/// Runs the recurrence over samples `x` from state `s` (2n, updated in place), every state fed with the sample itself,
/// and writes `y_t = Σ g Re s_t`.
///
/// # Panics
/// `gain` has not n values, `s` not 2n, or `y` another length than `x`.
pub fn complex_filter(level: CpuLevel, poles: &Poles, gain: &[f32], s: &mut [f32], x: &[f32], y: &mut [f32]) {
    let n = poles.n();
    assert!(gain.len() == n, "complex_filter: expected {n} gains, got {}", gain.len());
    assert!(x.len() == y.len(), "complex_filter: {} samples in, {} out", x.len(), y.len());
    let (re, im) = split(s, n);
    match level.here() {
        CpuLevel::Scalar => {
            for (x, y) in x.iter().zip(y) {
                *y = 0.0;
                for (i, g) in gain.iter().enumerate() {
                    step(poles, i, re, im, *x);
                    *y += g * re[i];
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `here` bounds the level by what the machine has; the shapes were checked above.
        CpuLevel::Avx2 => unsafe { x86::filter_avx2(poles, gain, re, im, x, y) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        CpuLevel::Avx512 => unsafe { x86::filter_avx512(poles, gain, re, im, x, y) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => complex_filter(CpuLevel::Scalar, poles, gain, s, x, y),
    }
}

/// The real and the imaginary half of a state.
fn split(s: &mut [f32], n: usize) -> (&mut [f32], &mut [f32]) {
    assert!(s.len() == 2 * n, "complex_scan: expected a state of {}, got {}", 2 * n, s.len());
    s.split_at_mut(n)
}

/// `s ← λ s + u + ε` of state `i`.
fn step(poles: &Poles, i: usize, re: &mut [f32], im: &mut [f32], u: f32) {
    let (lr, li, sr, si) = (poles.re[i], poles.im[i], re[i], im[i]);
    re[i] = lr * sr - li * si + (u + TINY);
    im[i] = lr * si + (li * sr + TINY);
}
