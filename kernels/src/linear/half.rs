//! bfloat16 in pairs: two in one 32-bit value, the first in its low half.

use crate::array::Mat;

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

/// Rounds the rows of `x` to pairs; an odd last value stands beside a zero.
#[inline(always)]
pub(super) fn rows(x: Mat<'_>, out: &mut [f32]) {
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
