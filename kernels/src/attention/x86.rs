//! Attention with a vector over slots for the scores and over a value's numbers for the result.
//!
//! Against the scalar form: multiply-adds round once, exp is the polynomial of `simd.rs` (2 ulp), the sum of the
//! exponentials runs lane by lane, and the result is divided once at the end.

// Loops over arrays of vectors by index: through iterators the compiler keeps them in memory.
#![allow(clippy::needless_range_loop)]

use super::Query;
use crate::simd::{self, Simd};
use std::arch::x86_64::{__m256, __m512};

/// The scores of G vectors of slots from `slot`.
///
/// # Safety
/// S's features; the slots within the padded ones.
#[inline(always)]
unsafe fn scores<S: Simd, const G: usize>(x: &Query<'_>, head: usize, slot: usize, out: *mut f32) {
    let (dim, padded) = (x.sizes.dim, x.sizes.padded());
    // SAFETY: row head · dim + d < width of the keys; slot + G vectors <= padded.
    unsafe {
        let (q, k) = (x.q.as_ptr().add(head * dim), x.k.as_ptr().add(head * dim * padded + slot));
        let mut sum = [S::splat(0.0); G];
        for d in 0..dim {
            let q = S::splat(*q.add(d));
            for g in 0..G {
                sum[g] = q.mul_add(S::load(k.add(d * padded + g * S::LANES)), sum[g]);
            }
        }
        for g in 0..G {
            sum[g].store(out.add(slot + g * S::LANES));
        }
    }
}

/// Numbers `d .. d + G vectors` of the result, before division; the last vector has `lanes` of them.
///
/// # Safety
/// S's features; the numbers within a value.
#[inline(always)]
unsafe fn values<S: Simd, const G: usize>(x: &Query<'_>, head: usize, p: *const f32, d: usize, lanes: usize) -> [S; G] {
    let s = x.sizes;
    // SAFETY: slot < filled <= slots; d + the lanes within the head's part of a value.
    unsafe {
        let v = x.v.as_ptr().add(head * s.dim + d);
        let mut sum = [S::splat(0.0); G];
        for slot in 0..x.filled {
            let (p, v) = (S::splat(*p.add(slot)), v.add(slot * s.width()));
            for g in 0..G {
                let v = v.add(g * S::LANES);
                let v = if g + 1 == G && lanes < S::LANES { S::load_n(v, lanes) } else { S::load(v) };
                sum[g] = p.mul_add(v, sum[g]);
            }
        }
        sum
    }
}

/// # Safety
/// S's features; the lengths as `attend` checked them.
#[inline(always)]
unsafe fn run<S: Simd>(x: &Query<'_>, head: usize, out: &mut [f32], y: &mut [f32]) {
    let (filled, dim) = (x.filled, x.sizes.dim);
    let vectors = filled.div_ceil(S::LANES);
    // SAFETY: vectors of slots below `filled` rounded up lie within the padded slots, which `out` has.
    unsafe {
        let p = out.as_mut_ptr();
        let mut at = 0;
        while at < vectors {
            at += match vectors - at {
                4.. => {
                    scores::<S, 4>(x, head, at * S::LANES, p);
                    4
                }
                2..=3 => {
                    scores::<S, 2>(x, head, at * S::LANES, p);
                    2
                }
                _ => {
                    scores::<S, 1>(x, head, at * S::LANES, p);
                    1
                }
            };
        }
        if let Some((new, old)) = x.biases(head) {
            let (first, rest) = out[..filled].split_at_mut(new.len().min(filled));
            first.iter_mut().zip(new).for_each(|(s, b)| *s += b);
            rest.iter_mut().zip(old).for_each(|(s, b)| *s += b);
        }
        // Slots that are not filled weigh nothing.
        out[filled..vectors * S::LANES].fill(f32::NEG_INFINITY);
        let scale = x.scale[head];
        let mut max = f32::NEG_INFINITY;
        for s in &mut out[..filled] {
            *s *= scale;
            // NaN passes on through the sum below.
            max = max.max(*s);
        }
        let (p, top) = (out.as_mut_ptr(), S::splat(max));
        let mut total = S::splat(0.0);
        for i in 0..vectors {
            let at = p.add(i * S::LANES);
            let e = simd::exp_neg(S::load(at).sub(top));
            let left = filled - i * S::LANES;
            if left < S::LANES {
                e.store(at);
                for lane in left..S::LANES {
                    *at.add(lane) = 0.0;
                }
                total = total.add(S::load(at));
            } else {
                e.store(at);
                total = total.add(e);
            }
        }
        let mut lanes = [0f32; 16];
        total.store(lanes.as_mut_ptr());
        let sum: f32 = lanes[..S::LANES].iter().sum();
        let scale = S::splat(1.0 / sum);
        let mut d = 0;
        while d < dim {
            let left = dim - d;
            if left >= 4 * S::LANES {
                let sum = values::<S, 4>(x, head, p, d, S::LANES);
                for g in 0..4 {
                    sum[g].mul(scale).store(y.as_mut_ptr().add(d + g * S::LANES));
                }
                d += 4 * S::LANES;
            } else {
                let lanes = left.min(S::LANES);
                let [sum] = values::<S, 1>(x, head, p, d, lanes);
                sum.mul(scale).store_n(y.as_mut_ptr().add(d), lanes);
                d += lanes;
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn avx2(x: &Query<'_>, head: usize, scores: &mut [f32], y: &mut [f32]) {
    // SAFETY: this function has the features of __m256; `attend` checked the lengths.
    unsafe { run::<__m256>(x, head, scores, y) }
}

#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
pub(super) fn avx512(x: &Query<'_>, head: usize, scores: &mut [f32], y: &mut [f32]) {
    // SAFETY: this function has the features of __m512; `attend` checked the lengths.
    unsafe { run::<__m512>(x, head, scores, y) }
}
