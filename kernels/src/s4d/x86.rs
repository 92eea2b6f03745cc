//! The recurrence with a vector over features.
//!
//! Without a correction the states of a feature do not see each other: steps run in strips, and the states go through a
//! strip four at a time with their z in registers, each four adding to the strip's outputs. With a correction every step
//! needs all of them: steps are outermost and z stays in the first-level cache. Against the scalar form: multiply-adds
//! round once, and sums run in another, fixed order.

// Loops over arrays of vectors by index: through iterators the compiler keeps them in memory.
#![allow(clippy::needless_range_loop)]

use super::{Coefficients, Io, LANES, MAX_RANK};
use crate::TINY;
use crate::simd::Simd;
use std::arch::x86_64::{__m256, __m512};
use std::ops::Range;

/// Steps of a strip: its outputs stay in the first-level cache while the states come by.
const STRIP: usize = 64;

/// One vector of a block: its coefficients, its state, its columns of input and output.
struct Vector {
    /// The block's rows, from this vector's first lane.
    rows: *const f32,
    row: usize,
    /// The block's c, (channels, N, 2, LANES), from this vector's first lane.
    c: *const f32,
    d: *const f32,
    z: *mut f32,
    u: *const f32,
    u_stride: usize,
    y: *mut f32,
    y_stride: usize,
    /// Distance of two channels in a row of y.
    features: usize,
    states: usize,
    channels: usize,
    /// Lanes that are features.
    lanes: usize,
}

#[inline(always)]
unsafe fn load<S: Simd>(p: *const f32, lanes: usize) -> S {
    // SAFETY: the caller has S's features and `lanes` floats at p.
    unsafe { if lanes == S::LANES { S::load(p) } else { S::load_n(p, lanes) } }
}

#[inline(always)]
unsafe fn store<S: Simd>(v: S, p: *mut f32, lanes: usize) {
    // SAFETY: the caller has S's features and `lanes` floats at p.
    unsafe { if lanes == S::LANES { v.store(p) } else { v.store_n(p, lanes) } }
}

/// Real and imaginary parts at `p`.
#[inline(always)]
unsafe fn pair<S: Simd>(p: *const f32) -> (S, S) {
    // SAFETY: the caller has S's features; imaginary parts lie LANES after the real ones.
    unsafe { (S::load(p), S::load(p.add(LANES))) }
}

#[inline(always)]
unsafe fn put<S: Simd>(v: (S, S), p: *mut f32) {
    // SAFETY: as `pair`.
    unsafe {
        v.0.store(p);
        v.1.store(p.add(LANES));
    }
}

/// `a z + b u + ε`.
#[inline(always)]
unsafe fn turn<S: Simd>(a: (S, S), b: (S, S), z: (S, S), u: S) -> (S, S) {
    // SAFETY: the caller has S's features.
    unsafe {
        let tiny = S::splat(TINY);
        let re = a.0.mul_add(z.0, a.1.neg_mul_add(z.1, b.0.mul_add(u, tiny)));
        let im = a.0.mul_add(z.1, a.1.mul_add(z.0, b.1.mul_add(u, tiny)));
        (re, im)
    }
}

/// `sum + Re(c z)`.
#[inline(always)]
unsafe fn read<S: Simd>(c: (S, S), z: (S, S), sum: S) -> S {
    // SAFETY: the caller has S's features.
    unsafe { c.1.neg_mul_add(z.1, c.0.mul_add(z.0, sum)) }
}

/// States `n .. n + G` through steps `steps`, their part of every channel added to y.
///
/// # Safety
/// S's features; n + G <= states; the steps within the call.
#[inline(always)]
unsafe fn states<S: Simd, const G: usize>(v: &Vector, n: usize, steps: Range<usize>) {
    // SAFETY: rows and states n .. n + G, of each channel's c too; steps within u and y.
    unsafe {
        let zero = (S::splat(0.0), S::splat(0.0));
        let (mut a, mut b, mut z) = ([zero; G], [zero; G], [zero; G]);
        for g in 0..G {
            let row = v.rows.add((n + g) * v.row);
            (a[g], b[g]) = (pair(row), pair(row.add(2 * LANES)));
            z[g] = pair(v.z.add((n + g) * 2 * LANES));
        }
        if v.channels == 1 {
            let mut c = [zero; G];
            for g in 0..G {
                c[g] = pair(v.c.add((n + g) * 2 * LANES));
            }
            for t in steps {
                let u = load(v.u.add(t * v.u_stride), v.lanes);
                let y = v.y.add(t * v.y_stride);
                let mut sum: S = load(y, v.lanes);
                for g in 0..G {
                    z[g] = turn(a[g], b[g], z[g], u);
                    sum = read(c[g], z[g], sum);
                }
                store(sum, y, v.lanes);
            }
        } else {
            for t in steps {
                let u = load(v.u.add(t * v.u_stride), v.lanes);
                for g in 0..G {
                    z[g] = turn(a[g], b[g], z[g], u);
                }
                for ch in 0..v.channels {
                    let y = v.y.add(t * v.y_stride + ch * v.features);
                    let mut sum: S = load(y, v.lanes);
                    for g in 0..G {
                        sum = read(pair(v.c.add((ch * v.states + n + g) * 2 * LANES)), z[g], sum);
                    }
                    store(sum, y, v.lanes);
                }
            }
        }
        for g in 0..G {
            put(z[g], v.z.add((n + g) * 2 * LANES));
        }
    }
}

/// Adds to `q` what states `n .. n + G` give, each state to a sum of its own.
///
/// # Safety
/// S's features; R <= rank; n + G <= states; G <= 4.
#[inline(always)]
unsafe fn gather<S: Simd, const R: usize, const G: usize>(v: &Vector, n: usize, q: &mut [[S; 4]; R]) {
    // SAFETY: rows and states n .. n + G.
    unsafe {
        for g in 0..G {
            let (row, z) = (v.rows.add((n + g) * v.row), pair(v.z.add((n + g) * 2 * LANES)));
            for r in 0..R {
                q[r][g] = read(pair(row.add((3 + 2 * r) * 2 * LANES)), z, q[r][g]);
            }
        }
    }
}

/// Moves states `n .. n + G` on and adds to `sum` what the first channel reads of them.
///
/// # Safety
/// S's features; R <= rank; n + G <= states; G <= 4; at least one channel if `one`.
#[inline(always)]
unsafe fn advance<S: Simd, const R: usize, const G: usize>(
    v: &Vector,
    n: usize,
    u: S,
    q: &[S; R],
    one: bool,
    sum: &mut [S; 4],
) {
    // SAFETY: rows, states and c of n .. n + G.
    unsafe {
        for g in 0..G {
            let (row, at) = (v.rows.add((n + g) * v.row), v.z.add((n + g) * 2 * LANES));
            let mut z = turn(pair(row), pair(row.add(2 * LANES)), pair(at), u);
            for r in 0..R {
                let p: (S, S) = pair(row.add((2 + 2 * r) * 2 * LANES));
                z = (p.0.neg_mul_add(q[r], z.0), p.1.neg_mul_add(q[r], z.1));
            }
            put(z, at);
            if one {
                sum[g] = read(pair(v.c.add((n + g) * 2 * LANES)), z, sum[g]);
            }
        }
    }
}

/// One step with a correction of rank R.
///
/// # Safety
/// S's features; R = rank; the step within the call.
#[inline(always)]
unsafe fn coupled<S: Simd, const R: usize>(v: &Vector, t: usize) {
    let whole = v.states / 4 * 4;
    // SAFETY: states below `whole` in fours, then one by one; step t within u and y.
    unsafe {
        let u: S = load(v.u.add(t * v.u_stride), v.lanes);
        // Four running sums each, so that the additions wait less for each other.
        let mut parts = [[S::splat(0.0); 4]; R];
        for n in (0..whole).step_by(4) {
            gather::<S, R, 4>(v, n, &mut parts);
        }
        for n in whole..v.states {
            gather::<S, R, 1>(v, n, &mut parts);
        }
        let mut q = [S::splat(0.0); R];
        for r in 0..R {
            let [a, b, c, d] = parts[r];
            q[r] = a.add(b).add(c.add(d)).mul(S::splat(2.0));
        }
        let one = v.channels == 1;
        let mut sum = [S::splat(0.0); 4];
        if one {
            sum[0] = S::load(v.d).mul(u);
        }
        for n in (0..whole).step_by(4) {
            advance::<S, R, 4>(v, n, u, &q, one, &mut sum);
        }
        for n in whole..v.states {
            advance::<S, R, 1>(v, n, u, &q, one, &mut sum);
        }
        if one {
            let y = sum[0].add(sum[1]).add(sum[2].add(sum[3]));
            return store(y, v.y.add(t * v.y_stride), v.lanes);
        }
        for ch in 0..v.channels {
            let mut sum = S::load(v.d.add(ch * LANES)).mul(u);
            for n in 0..v.states {
                sum = read(pair(v.c.add((ch * v.states + n) * 2 * LANES)), pair(v.z.add(n * 2 * LANES)), sum);
            }
            store(sum, v.y.add(t * v.y_stride + ch * v.features), v.lanes);
        }
    }
}

/// # Safety
/// S's features; the shapes as `s4d` checked them; `block` one of the layer's.
#[inline(always)]
unsafe fn run<S: Simd>(w: &Coefficients, block: usize, io: &Io<'_>) {
    let (s, len) = (w.sizes, io.u.rows());
    // SAFETY: a block's coefficients and state are there in full width; of input and output only lanes that are
    // features are touched.
    unsafe {
        let mut lane = 0;
        while lane < LANES && block * LANES + lane < s.features {
            let feature = block * LANES + lane;
            let rows = w.packed.as_ptr().add(block * s.block() + lane);
            let c = rows.add(s.states * s.row());
            let v = Vector {
                rows,
                row: s.row(),
                c,
                d: c.add(s.channels * s.states * 2 * LANES),
                z: io.z.add(block * s.states * 2 * LANES + lane),
                u: io.u.ptr().add(feature),
                u_stride: io.u.stride(),
                // With nothing to be read there may be no y at all.
                y: io.y.wrapping_add(feature),
                y_stride: io.y_stride,
                features: s.features,
                states: s.states,
                channels: io.channels,
                lanes: S::LANES.min(s.features - feature),
            };
            lane += S::LANES;
            if s.rank > 0 {
                for t in 0..len {
                    match s.rank {
                        1 => coupled::<S, 1>(&v, t),
                        2 => coupled::<S, 2>(&v, t),
                        3 => coupled::<S, 3>(&v, t),
                        _ => coupled::<S, MAX_RANK>(&v, t),
                    }
                }
                continue;
            }
            let mut from = 0;
            while from < len {
                let steps = from..(from + STRIP).min(len);
                from = steps.end;
                for t in steps.clone() {
                    let u: S = load(v.u.add(t * v.u_stride), v.lanes);
                    for ch in 0..v.channels {
                        let y = S::load(v.d.add(ch * LANES)).mul(u);
                        store(y, v.y.add(t * v.y_stride + ch * v.features), v.lanes);
                    }
                }
                let mut n = 0;
                while n < s.states {
                    n += match s.states - n {
                        4.. => {
                            states::<S, 4>(&v, n, steps.clone());
                            4
                        }
                        2..=3 => {
                            states::<S, 2>(&v, n, steps.clone());
                            2
                        }
                        _ => {
                            states::<S, 1>(&v, n, steps.clone());
                            1
                        }
                    };
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn avx2(w: &Coefficients, block: usize, io: &Io<'_>) {
    // SAFETY: this function has the features of __m256; `s4d` checked the shapes.
    unsafe { run::<__m256>(w, block, io) }
}

#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
pub(super) fn avx512(w: &Coefficients, block: usize, io: &Io<'_>) {
    // SAFETY: this function has the features of __m512; `s4d` checked the shapes.
    unsafe { run::<__m512>(w, block, io) }
}
