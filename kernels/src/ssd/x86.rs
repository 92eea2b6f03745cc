//! The recurrence with vectors over a head's channels and the states in registers.
//!
//! Steps run in strips: Δ·x of a strip is computed once, then its states in groups of G, each group going through the
//! strip with its part of the state in registers and adding to the strip's y. Up to four vectors of channels go together,
//! so that a loaded b and c serves them all and single steps have independent chains. Against the scalar form:
//! multiply-adds round once; the order of every sum is the same.

use super::{Io, Ssd};
use crate::TINY;
use crate::simd::{self, Simd};
use std::arch::x86_64::{__m256, __m512};

/// Steps of a strip: its arrays stay in the first-level cache.
const STRIP: usize = 32;

/// V vectors of channels starting at channel `e`, the last of them with `lanes` channels.
struct Strip<S, const V: usize> {
    da: [f32; STRIP],
    /// Δ · x.
    dx: [[S; V]; STRIP],
    y: [[S; V]; STRIP],
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

/// States `i .. i + G` through the strip that starts at step `t0`.
///
/// # Safety
/// S's features; i + G <= n; the strip's channels lie in one head; `lanes` is S::LANES unless V is 1.
#[inline(always)]
unsafe fn states<S: Simd, const V: usize, const G: usize>(
    w: &Ssd<'_>,
    io: &Io,
    strip: &mut Strip<S, V>,
    (t0, column, i): (usize, usize, usize),
    (e, lanes): (usize, usize),
) {
    let d = w.x.cols();
    // SAFETY: the state holds n rows of d; rows of b and c hold groups · n columns.
    unsafe {
        let mut s = [[S::splat(0.0); V]; G];
        for (g, s) in s.iter_mut().enumerate() {
            for (v, s) in s.iter_mut().enumerate() {
                *s = load(io.s.add((i + g) * d + e + v * S::LANES), lanes);
            }
        }
        for t in 0..strip.steps {
            let (da, tiny) = (S::splat(strip.da[t]), S::splat(TINY));
            let (dx, mut y) = (strip.dx[t], strip.y[t]);
            let b = w.b.ptr().add((t0 + t) * w.b.stride() + column + i);
            let c = w.c.ptr().add((t0 + t) * w.c.stride() + column + i);
            for (g, s) in s.iter_mut().enumerate() {
                let (b, c) = (S::splat(*b.add(g)), S::splat(*c.add(g)));
                for v in 0..V {
                    s[v] = da.mul_add(s[v], dx[v].mul_add(b, tiny));
                    y[v] = s[v].mul_add(c, y[v]);
                }
            }
            strip.y[t] = y;
        }
        for (g, s) in s.iter().enumerate() {
            for (v, s) in s.iter().enumerate() {
                store(*s, io.s.add((i + g) * d + e + v * S::LANES), lanes);
            }
        }
    }
}

/// All steps of V vectors of channels from `e` on.
///
/// # Safety
/// As [`states`].
#[inline(always)]
unsafe fn channels<S: Simd, const V: usize>(w: &Ssd<'_>, head: usize, io: &Io, e: usize, lanes: usize) {
    let (len, column) = (w.x.rows(), head / io.per_group * io.n);
    // SAFETY: t < len and the channels e .. e + (V - 1) · LANES + lanes bound every access.
    unsafe {
        let zero = [S::splat(0.0); V];
        let mut strip = Strip { da: [0.0; STRIP], dx: [zero; STRIP], y: [zero; STRIP], steps: 0 };
        let mut t0 = 0;
        while t0 < len {
            strip.steps = STRIP.min(len - t0);
            for t in 0..strip.steps {
                let (delta, da) = w.step(t0 + t, head);
                strip.da[t] = da;
                for v in 0..V {
                    let x: S = load(w.x.ptr().add((t0 + t) * w.x.stride() + e + v * S::LANES), lanes);
                    strip.dx[t][v] = S::splat(delta).mul(x);
                    strip.y[t][v] = S::splat(0.0);
                }
            }
            let mut i = 0;
            while i + 2 <= io.n {
                states::<S, V, 2>(w, io, &mut strip, (t0, column, i), (e, lanes));
                i += 2;
            }
            if i < io.n {
                states::<S, V, 1>(w, io, &mut strip, (t0, column, i), (e, lanes));
            }
            for t in 0..strip.steps {
                for v in 0..V {
                    let at = e + v * S::LANES;
                    let x: S = load(w.x.ptr().add((t0 + t) * w.x.stride() + at), lanes);
                    let mut y = load::<S>(w.d.as_ptr().add(at), lanes).mul_add(x, strip.y[t][v]);
                    if let Some(z) = &w.z {
                        y = y.mul(simd::silu(load::<S>(z.ptr().add((t0 + t) * z.stride() + at), lanes)));
                    }
                    store(y, io.y.add((t0 + t) * io.y_stride + at), lanes);
                }
            }
            t0 += strip.steps;
        }
    }
}

/// # Safety
/// S's features; the shapes as `ssd` checked them.
#[inline(always)]
unsafe fn head<S: Simd>(w: &Ssd<'_>, head: usize, io: &Io) {
    let p = w.x.cols() / w.a.len();
    let (mut e, end) = (head * p, (head + 1) * p);
    while e < end {
        // SAFETY: the channels taken end at `end`.
        unsafe {
            e += match (end - e) / S::LANES {
                4.. => {
                    channels::<S, 4>(w, head, io, e, S::LANES);
                    4 * S::LANES
                }
                2..=3 => {
                    channels::<S, 2>(w, head, io, e, S::LANES);
                    2 * S::LANES
                }
                _ => {
                    let lanes = S::LANES.min(end - e);
                    channels::<S, 1>(w, head, io, e, lanes);
                    lanes
                }
            };
        }
    }
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn avx2(w: &Ssd<'_>, head_index: usize, io: &Io) {
    // SAFETY: this function has the features of __m256; `ssd` checked the shapes.
    unsafe { head::<__m256>(w, head_index, io) }
}

#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
pub(super) fn avx512(w: &Ssd<'_>, head_index: usize, io: &Io) {
    // SAFETY: this function has the features of __m512; `ssd` checked the shapes.
    unsafe { head::<__m512>(w, head_index, io) }
}
