//! The scan with a vector over channels and the states in registers.
//!
//! Steps run in strips: the step sizes of a strip are computed once, then its states in groups of eight, each group
//! going through the strip with its part of h in registers and adding to the strip's y. Against the scalar form:
//! multiply-adds round once, exp and softplus are the polynomials of `simd.rs` (2 ulp), and the sum over states runs in
//! groups; h itself sees the same operations in the same order.

use super::{Io, Scan};
use crate::TINY;
use crate::simd::{self, Simd, Wide};
use std::arch::x86_64::{__m256, __m512};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Steps of a strip: its three arrays stay in the first-level cache.
const STRIP: usize = 64;

/// One vector of `lanes` channels starting at `e`, through a strip.
struct Strip<S> {
    delta: [S; STRIP],
    /// Δ · u.
    du: [S; STRIP],
    y: [S; STRIP],
    row: [usize; STRIP],
    steps: usize,
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

/// States `i .. i + G` of the vector at channel `e` through the strip.
///
/// # Safety
/// S's features; i + G <= n; e + lanes within the group's channels.
#[inline(always)]
unsafe fn states<S: Simd, const G: usize>(
    s: &Scan<'_>,
    io: &Io,
    strip: &mut Strip<S>,
    group: usize,
    i: usize,
    e: usize,
    lanes: usize,
) {
    let d = s.u.cols();
    let n = s.a.len() / d;
    // SAFETY: a and h hold n rows of d; b and c rows hold groups · n; strip rows are < len.
    unsafe {
        let mut h = [S::splat(0.0); G];
        let mut a = [S::splat(0.0); G];
        for (g, (h, a)) in h.iter_mut().zip(&mut a).enumerate() {
            *h = load(io.h.add((i + g) * d + e), lanes);
            *a = load::<S>(s.a.as_ptr().add((i + g) * d + e), lanes).mul(S::splat(LOG2_E));
        }
        let (column, tiny) = (group * n + i, S::splat(TINY));
        for t in 0..strip.steps {
            let (delta, du) = (strip.delta[t], strip.du[t]);
            let b = s.b.ptr().add(strip.row[t] * s.b.stride() + column);
            let c = s.c.ptr().add(strip.row[t] * s.c.stride() + column);
            let mut y = strip.y[t];
            for g in 0..G {
                let da = delta.mul(a[g]).exp2_neg();
                h[g] = da.mul_add(h[g], du.mul_add(S::splat(*b.add(g)), tiny));
                y = h[g].mul_add(S::splat(*c.add(g)), y);
            }
            strip.y[t] = y;
        }
        for (g, h) in h.iter().enumerate() {
            store(*h, io.h.add((i + g) * d + e), lanes);
        }
    }
}

/// # Safety
/// S's features; the shapes as `selective_scan` checked them.
#[inline(always)]
unsafe fn scan<S: Simd>(s: &Scan<'_>, group: usize, channels: Range<usize>, io: &Io) {
    let (len, d) = (s.u.rows(), s.u.cols());
    let n = s.a.len() / d;
    // SAFETY: e + lanes <= channels.end <= d and rows < len bound every access.
    unsafe {
        let zero = S::splat(0.0);
        let mut strip = Strip { delta: [zero; STRIP], du: [zero; STRIP], y: [zero; STRIP], row: [0; STRIP], steps: 0 };
        let mut e = channels.start;
        while e < channels.end {
            let lanes = S::LANES.min(channels.end - e);
            let bias = s.dt_bias.map_or(zero, |b| load(b.as_ptr().add(e), lanes));
            let skip = s.d.map_or(zero, |d| load(d.as_ptr().add(e), lanes));
            let scale = S::splat(s.scale);
            let mut t0 = 0;
            while t0 < len {
                strip.steps = STRIP.min(len - t0);
                for t in 0..strip.steps {
                    let row = s.order.row(t0 + t, len);
                    let u: S = load(s.u.ptr().add(row * s.u.stride() + e), lanes);
                    let dt: S = load::<S>(s.dt.ptr().add(row * s.dt.stride() + e), lanes).add(bias);
                    let delta = scale.mul(if s.softplus { simd::softplus(dt) } else { dt });
                    strip.row[t] = row;
                    strip.delta[t] = delta;
                    strip.du[t] = delta.mul(u);
                    strip.y[t] = zero;
                }
                let mut i = 0;
                while i < n {
                    i += match n - i {
                        8.. => {
                            states::<S, 8>(s, io, &mut strip, group, i, e, lanes);
                            8
                        }
                        4..=7 => {
                            states::<S, 4>(s, io, &mut strip, group, i, e, lanes);
                            4
                        }
                        2..=3 => {
                            states::<S, 2>(s, io, &mut strip, group, i, e, lanes);
                            2
                        }
                        _ => {
                            states::<S, 1>(s, io, &mut strip, group, i, e, lanes);
                            1
                        }
                    };
                }
                for t in 0..strip.steps {
                    let row = strip.row[t];
                    let u: S = load(s.u.ptr().add(row * s.u.stride() + e), lanes);
                    let mut y = skip.mul_add(u, strip.y[t]);
                    if let Some(z) = &s.z {
                        y = y.mul(simd::silu(load::<S>(z.ptr().add(row * z.stride() + e), lanes)));
                    }
                    let out = io.y.add(row * io.y_stride + e);
                    if s.add {
                        y = y.add(load(out, lanes));
                    }
                    store(y, out, lanes);
                }
                t0 += strip.steps;
            }
            e += lanes;
        }
    }
}

/// `scan` for one state per channel: step by step over the channels of the part, h in memory. The rows of a step are read
/// whole and once, and four vectors run in turns, so that nothing waits for the chain through softplus, exp and h. Each
/// channel sees the operations of `scan` in their order.
///
/// # Safety
/// As `scan`; a and h hold one row of d.
#[inline(always)]
unsafe fn scan_one<S: Simd>(s: &Scan<'_>, group: usize, channels: Range<usize>, io: &Io) {
    let len = s.u.rows();
    for t in 0..len {
        let row = s.order.row(t, len);
        let mut e = channels.start;
        while e < channels.end {
            let left = channels.end - e;
            // SAFETY: row < len, e + lanes <= channels.end; the vectors have the caller's features.
            e += unsafe {
                if left > 2 * S::LANES {
                    step_one::<Wide<S, 4>>(s, group, row, e, left, io)
                } else if left > S::LANES {
                    step_one::<Wide<S, 2>>(s, group, row, e, left, io)
                } else {
                    step_one::<S>(s, group, row, e, left, io)
                }
            };
        }
    }
}

/// One step of the channels from `e`, as many as S holds and `left` allows; returns their number.
///
/// # Safety
/// As `scan_one`; row < len, e + left <= d.
#[inline(always)]
unsafe fn step_one<S: Simd>(s: &Scan<'_>, group: usize, row: usize, e: usize, left: usize, io: &Io) -> usize {
    let lanes = S::LANES.min(left);
    // SAFETY: every access is to row `row` of a matrix of len rows, or to channels e .. e + lanes <= d.
    unsafe {
        let (zero, scale) = (S::splat(0.0), S::splat(s.scale));
        let b = S::splat(*s.b.ptr().add(row * s.b.stride() + group));
        let c = S::splat(*s.c.ptr().add(row * s.c.stride() + group));
        let u: S = load(s.u.ptr().add(row * s.u.stride() + e), lanes);
        let bias = s.dt_bias.map_or(zero, |b| load(b.as_ptr().add(e), lanes));
        let skip = s.d.map_or(zero, |d| load(d.as_ptr().add(e), lanes));
        let dt = load::<S>(s.dt.ptr().add(row * s.dt.stride() + e), lanes).add(bias);
        let delta = scale.mul(if s.softplus { simd::softplus(dt) } else { dt });
        let da = delta.mul(S::splat(LOG2_E)).mul(load(s.a.as_ptr().add(e), lanes)).exp2_neg();
        let h = da.mul_add(load(io.h.add(e), lanes), delta.mul(u).mul_add(b, S::splat(TINY)));
        store(h, io.h.add(e), lanes);
        let mut y = skip.mul_add(u, h.mul_add(c, zero));
        if let Some(z) = &s.z {
            y = y.mul(simd::silu(load::<S>(z.ptr().add(row * z.stride() + e), lanes)));
        }
        let out = io.y.add(row * io.y_stride + e);
        if s.add {
            y = y.add(load(out, lanes));
        }
        store(y, out, lanes);
    }
    lanes
}

/// # Safety
/// As `scan`.
#[inline(always)]
unsafe fn run<S: Simd>(s: &Scan<'_>, group: usize, channels: Range<usize>, io: &Io) {
    // SAFETY: as the caller's; one state per channel means that a holds d values.
    unsafe {
        if s.a.len() == s.u.cols() { scan_one::<S>(s, group, channels, io) } else { scan::<S>(s, group, channels, io) }
    }
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn avx2(s: &Scan<'_>, group: usize, channels: Range<usize>, io: &Io) {
    // SAFETY: this function has the features of __m256; `selective_scan` checked the shapes.
    unsafe { run::<__m256>(s, group, channels, io) }
}

#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
pub(super) fn avx512(s: &Scan<'_>, group: usize, channels: Range<usize>, io: &Io) {
    // SAFETY: this function has the features of __m512; `selective_scan` checked the shapes.
    unsafe { run::<__m512>(s, group, channels, io) }
}
