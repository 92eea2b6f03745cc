//! Functions of one value, applied to many.

mod agree;

use crate::CpuLevel;
use crate::array::MatMut;

/// What is applied to a value after a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    None,
    /// `max(x, 0)`.
    Relu,
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x/2 (1 + erf(x/√2))`, the exact form.
    Gelu,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `ln(1 + exp(x))`, x itself above 20 (PyTorch's threshold).
    Softplus,
}

impl Act {
    /// The function of one value, in plain arithmetic: what the vector forms are judged by.
    pub fn scalar(self, x: f32) -> f32 {
        match self {
            Act::None => x,
            Act::Relu => {
                if x > 0.0 || x.is_nan() {
                    x
                } else {
                    0.0
                }
            }
            Act::Silu => silu(x),
            Act::Gelu => (0.5 * f64::from(x) * (1.0 + erf(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2))) as f32,
            Act::Sigmoid => sigmoid(x),
            Act::Softplus => softplus(x),
        }
    }
}

/// `1 / (1 + exp(-x))`.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `x / (1 + exp(-x))`.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// `ln(1 + exp(x))`, x itself above 20.
pub fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// The error function to about 1e-12: its Maclaurin series up to |x| = 3.5, a continued fraction beyond.
pub fn erf(x: f64) -> f64 {
    let v = x.abs();
    let y = if v < 3.5 {
        let (mut term, mut sum, mut n) = (v, v, 0.0);
        while f64::abs(term) > 1e-17 * sum && n < 120.0 {
            n += 1.0;
            term *= -v * v / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let mut f = v;
        for n in (1..60).rev() {
            f = v + f64::from(n) / 2.0 / f;
        }
        1.0 - (-v * v).exp() / (f * std::f64::consts::PI.sqrt())
    };
    if x < 0.0 { -y } else { y }
}

/// Applies `act` to every value of `x`.
pub fn apply(level: CpuLevel, act: Act, x: &mut [f32]) {
    match level.here() {
        _ if act == Act::None => {}
        CpuLevel::Scalar => x.iter_mut().for_each(|v| *v = act.scalar(*v)),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `here` bounds the level by what the machine has.
        CpuLevel::Avx2 => unsafe { x86::avx2(act, x) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        CpuLevel::Avx512 => unsafe { x86::avx512(act, x) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => x.iter_mut().for_each(|v| *v = act.scalar(*v)),
    }
}

/// Gated linear unit in place: in each row the first half becomes `first * sigmoid(second)`; the second half is left as
/// it was.
///
/// # Panics
/// The rows have an odd number of columns.
pub fn glu(level: CpuLevel, mut x: MatMut<'_>) {
    assert!(x.cols().is_multiple_of(2), "glu: expected an even number of columns, got {}", x.cols());
    let half = x.cols() / 2;
    for r in 0..x.rows() {
        let (a, b) = x.row(r).split_at_mut(half);
        gate(level, Act::Sigmoid, a, b);
    }
}

/// Gate: `a *= act(b)`, value by value.
///
/// # Panics
/// The slices differ in length.
pub fn gate(level: CpuLevel, act: Act, a: &mut [f32], b: &[f32]) {
    assert!(a.len() == b.len(), "gate: {} values and {} gates", a.len(), b.len());
    match level.here() {
        CpuLevel::Scalar => a.iter_mut().zip(b).for_each(|(a, b)| *a *= act.scalar(*b)),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `here` bounds the level by what the machine has.
        CpuLevel::Avx2 => unsafe { x86::gate_avx2(act, a, b) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        CpuLevel::Avx512 => unsafe { x86::gate_avx512(act, a, b) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => a.iter_mut().zip(b).for_each(|(a, b)| *a *= act.scalar(*b)),
    }
}

/// Softmax in place, the maximum subtracted first. An empty slice stays empty.
pub fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for v in x.iter_mut() {
        *v = (*v - max).exp();
        sum += *v;
    }
    x.iter_mut().for_each(|v| *v /= sum);
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use super::Act;
    use crate::simd::{self, Simd};
    use std::arch::x86_64::{__m256, __m512};

    /// `act` of a vector.
    #[inline(always)]
    pub(crate) unsafe fn act<S: Simd>(act: Act, x: S) -> S {
        // SAFETY: the caller has the features of S.
        unsafe {
            match act {
                Act::None => x,
                Act::Relu => x.keep_nan(x.max(S::splat(0.0))),
                Act::Silu => simd::silu(x),
                Act::Gelu => simd::gelu(x),
                Act::Sigmoid => simd::sigmoid(x),
                Act::Softplus => simd::softplus(x),
            }
        }
    }

    #[inline(always)]
    unsafe fn map<S: Simd>(a: Act, x: &mut [f32]) {
        let (p, n) = (x.as_mut_ptr(), x.len());
        let mut i = 0;
        // SAFETY: i + LANES <= n, then i + rest == n: all within `x`.
        unsafe {
            while i + S::LANES <= n {
                act(a, S::load(p.add(i))).store(p.add(i));
                i += S::LANES;
            }
            if i < n {
                act(a, S::load_n(p.add(i), n - i)).store_n(p.add(i), n - i);
            }
        }
    }

    #[inline(always)]
    unsafe fn gate<S: Simd>(f: Act, a: &mut [f32], b: &[f32]) {
        let n = a.len().min(b.len());
        let (p, q) = (a.as_mut_ptr(), b.as_ptr());
        let mut i = 0;
        // SAFETY: i + LANES <= n, then i + rest == n: within both slices.
        unsafe {
            while i + S::LANES <= n {
                S::load(p.add(i)).mul(act(f, S::load(q.add(i)))).store(p.add(i));
                i += S::LANES;
            }
            if i < n {
                let m = n - i;
                S::load_n(p.add(i), m).mul(act(f, S::load_n(q.add(i), m))).store_n(p.add(i), m);
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2(a: Act, x: &mut [f32]) {
        // SAFETY: this function has the features of __m256.
        unsafe { map::<__m256>(a, x) }
    }

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
    pub(super) fn avx512(a: Act, x: &mut [f32]) {
        // SAFETY: this function has the features of __m512.
        unsafe { map::<__m512>(a, x) }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn gate_avx2(f: Act, a: &mut [f32], b: &[f32]) {
        // SAFETY: this function has the features of __m256.
        unsafe { gate::<__m256>(f, a, b) }
    }

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
    pub(super) fn gate_avx512(f: Act, a: &mut [f32], b: &[f32]) {
        // SAFETY: this function has the features of __m512.
        unsafe { gate::<__m512>(f, a, b) }
    }
}
