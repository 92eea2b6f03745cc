//! bfloat16 in pairs: two in one 32-bit value, the first in its low half.

use crate::CpuLevel;
use crate::array::{Mat, Slab};
use std::cell::RefCell;

/// A float rounded to bfloat16, to nearest and even; NaN stays NaN.
#[inline(always)]
fn round(v: f32) -> u32 {
    let bits = v.to_bits();
    if v.is_nan() { bits >> 16 | 0x40 } else { bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16 }
}

/// A pair with number `i` of it replaced.
pub(super) fn put(pair: f32, i: usize, v: f32) -> f32 {
    let (kept, shift) = if i == 0 { (0xffff_0000, 0) } else { (0xffff, 16) };
    f32::from_bits(pair.to_bits() & kept | round(v) << shift)
}

/// Number `i` of a pair.
#[inline(always)]
pub(super) fn get(pair: f32, i: usize) -> f32 {
    let bits = pair.to_bits();
    f32::from_bits(if i == 0 { bits << 16 } else { bits & 0xffff_0000 })
}

thread_local! {
    /// Rounded inputs of a block of rows; large enough from the start for all but the widest products, then grown and kept.
    static ROUNDED: RefCell<Slab> = RefCell::new(Slab::zeros(0));
}

/// Rounds the rows of `x` to pairs; an odd last value stands beside a zero. Inlined into each level's function, whose
/// vectors the compiler then takes for the loop.
#[inline(always)]
fn rows(x: Mat<'_>, out: &mut [f32]) {
    let pairs = x.cols().div_ceil(2);
    for (r, out) in out.chunks_exact_mut(pairs).enumerate() {
        let (whole, rest) = x.row(r).as_chunks::<2>();
        for (o, [a, b]) in out.iter_mut().zip(whole) {
            *o = f32::from_bits(round(*a) | round(*b) << 16);
        }
        if let (Some(o), Some(v)) = (out.last_mut(), rest.first()) {
            *o = f32::from_bits(round(*v));
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn rows_avx2(x: Mat<'_>, out: &mut [f32]) {
    rows(x, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
fn rows_avx512(x: Mat<'_>, out: &mut [f32]) {
    rows(x, out);
}

/// Calls `f` with the rows of `x` rounded.
pub(super) fn rounded(level: CpuLevel, x: Mat<'_>, f: impl FnOnce(Mat<'_>)) {
    let (m, k) = (x.rows(), x.cols());
    let pairs = k.div_ceil(2);
    let mut slab = ROUNDED.replace(Slab::zeros(0));
    if slab.len() < m * pairs {
        slab = Slab::zeros((m * pairs).max(super::ROWS * 2048));
    }
    let out = &mut slab[..m * pairs];
    match level {
        _ if pairs == 0 => {}
        CpuLevel::Scalar => rows(x, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level of packed weights is one that the machine has.
        CpuLevel::Avx2 => unsafe { rows_avx2(x, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        CpuLevel::Avx512 => unsafe { rows_avx512(x, out) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => rows(x, out),
    }
    f(Mat::new(&slab[..m * pairs], m, pairs));
    ROUNDED.set(slab);
}
