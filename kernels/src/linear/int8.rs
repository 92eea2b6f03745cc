//! 8-bit integers in fours: four in one 32-bit value, the first in its lowest byte.
//!
//! Weights are scaled by output so that the largest becomes 127, inputs by row; inputs are held 128 higher, since the
//! processors' products take one factor without a sign, and what that adds to a sum is known beforehand.

use crate::array::Mat;

/// The largest integer of either sign.
const MOST: f32 = 127.0;
/// Held for 0.
const ZERO: u8 = 128;
/// Adding it rounds a float below 2^22 to an integer, to even, in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Number `i` of a four.
#[inline(always)]
pub(super) fn get(four: f32, i: usize) -> u8 {
    (four.to_bits() >> (8 * i)) as u8
}

/// A four with number `i` of it replaced.
pub(super) fn put(four: f32, i: usize, v: i8) -> f32 {
    let shift = 8 * i;
    f32::from_bits(four.to_bits() & !(0xff << shift) | u32::from(v.cast_unsigned()) << shift)
}

/// What 1 stands for in values whose largest is given.
pub(super) fn unit(largest: f32) -> f32 {
    largest / MOST
}

/// The integer nearest to `v / unit`.
#[inline(always)]
pub(super) fn whole(v: f32, per_unit: f32) -> i8 {
    (v * per_unit + ROUND).to_bits() as i8
}

/// How many units a value of 1 is; 0 where all values are 0.
#[inline(always)]
pub(super) fn per_unit(unit: f32) -> f32 {
    if unit > 0.0 { 1.0 / unit } else { 0.0 }
}

/// What the sum of a product has too much for inputs held 128 higher, for weights that sum to `sum`.
pub(super) fn offset(sum: i32) -> f32 {
    f32::from_bits((i32::from(ZERO) * sum).cast_unsigned())
}

/// A sum of products as a float, before the units.
#[inline(always)]
pub(super) fn value(sum: i32, offset: f32) -> f32 {
    (sum - offset.to_bits().cast_signed()) as f32
}

/// The largest magnitude of a row; NaN if a value is not finite.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let (mut most, mut finite) = ([0f32; 32], [0f32; 32]);
    let (chunks, rest) = x.as_chunks::<32>();
    for c in chunks {
        for i in 0..32 {
            most[i] = if c[i].abs() > most[i] { c[i].abs() } else { most[i] };
            finite[i] += c[i] * 0.0;
        }
    }
    for (i, v) in rest.iter().enumerate() {
        most[i] = if v.abs() > most[i] { v.abs() } else { most[i] };
        finite[i] += v * 0.0;
    }
    most.iter().fold(0.0, |a: f32, b| a.max(*b)) + finite.iter().sum::<f32>()
}

/// The rows of `x` as bytes, each in whole fours, and their units.
#[inline(always)]
pub(super) fn rows(x: Mat<'_>, out: &mut [u8], units: &mut [f32]) {
    let width = x.cols().next_multiple_of(4);
    for (r, (out, u)) in out.chunks_exact_mut(width).zip(units).enumerate() {
        let x = x.row(r);
        *u = unit(largest(x));
        let n = per_unit(*u);
        let (whole_part, rest) = out.split_at_mut(x.len());
        whole_part.iter_mut().zip(x).for_each(|(o, v)| *o = whole(*v, n).cast_unsigned() ^ ZERO);
        rest.fill(ZERO);
    }
}
