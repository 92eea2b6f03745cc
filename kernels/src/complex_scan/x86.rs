//! Vectors over states, several of them in registers through all the steps of a strip.
//!
//! Against the scalar form: multiply-adds round once; the filter sums over states in groups, lane by lane, and over the
//! lanes at the end.

use super::Poles;
use crate::TINY;
use crate::array::MatMut;
use crate::simd::Simd;
use std::arch::x86_64::{__m256, __m512};

/// Steps of a strip: what the groups of states share stays in the first-level cache.
const STRIP: usize = 64;

/// Vectors of a group: enough independent chains to hide the latency of two multiply-adds.
const GROUP: usize = 4;

/// `G` vectors of states from `i` on; the last has `lanes` states.
struct States<S, const G: usize> {
    lr: [S; G],
    li: [S; G],
    sr: [S; G],
    si: [S; G],
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

impl<S: Simd, const G: usize> States<S, G> {
    /// Lanes of vector `g`.
    #[inline(always)]
    fn width(&self, g: usize) -> usize {
        if g + 1 == G { self.lanes } else { S::LANES }
    }

    /// # Safety
    /// S's features; the states `i .. i + (G - 1) · LANES + lanes` are within n.
    #[inline(always)]
    unsafe fn new(poles: &Poles, re: &[f32], im: &[f32], i: usize, lanes: usize) -> Self {
        // SAFETY: the caller's contract bounds every load.
        unsafe {
            let zero = [S::splat(0.0); G];
            let mut v = Self { lr: zero, li: zero, sr: zero, si: zero, lanes };
            for g in 0..G {
                let (at, w) = (i + g * S::LANES, v.width(g));
                v.lr[g] = load(poles.re.as_ptr().add(at), w);
                v.li[g] = load(poles.im.as_ptr().add(at), w);
                v.sr[g] = load(re.as_ptr().add(at), w);
                v.si[g] = load(im.as_ptr().add(at), w);
            }
            v
        }
    }

    /// # Safety
    /// As [`States::new`].
    #[inline(always)]
    unsafe fn keep(self, re: &mut [f32], im: &mut [f32], i: usize) {
        for g in 0..G {
            let (at, w) = (i + g * S::LANES, self.width(g));
            // SAFETY: the caller's contract bounds every store.
            unsafe {
                store(self.sr[g], re.as_mut_ptr().add(at), w);
                store(self.si[g], im.as_mut_ptr().add(at), w);
            }
        }
    }

    /// `s ← λ s + u + ε` of vector `g`.
    ///
    /// # Safety
    /// S's features.
    #[inline(always)]
    unsafe fn step(&mut self, g: usize, u: S) {
        // SAFETY: the caller has S's features.
        unsafe {
            let (lr, li, sr, si) = (self.lr[g], self.li[g], self.sr[g], self.si[g]);
            let tiny = S::splat(TINY);
            self.sr[g] = lr.mul_add(sr, li.neg_mul_add(si, u.add(tiny)));
            self.si[g] = lr.mul_add(si, li.mul_add(sr, tiny));
        }
    }
}

/// # Safety
/// S's features; the states from `i` on are within n = u.cols().
#[inline(always)]
unsafe fn scan_group<S: Simd, const G: usize>(
    poles: &Poles,
    re: &mut [f32],
    im: &mut [f32],
    u: &mut MatMut<'_>,
    i: usize,
    lanes: usize,
) {
    // SAFETY: rows are u.stride() apart and hold n values; the caller bounds the columns.
    unsafe {
        let mut v = States::<S, G>::new(poles, re, im, i, lanes);
        let (len, stride, p) = (u.rows(), u.stride(), u.ptr());
        for t in 0..len {
            let row = p.add(t * stride + i);
            for g in 0..G {
                let (at, w) = (row.add(g * S::LANES), v.width(g));
                v.step(g, load(at, w));
                store(v.sr[g], at, w);
            }
        }
        v.keep(re, im, i);
    }
}

/// # Safety
/// S's features; `gain`, `re` and `im` hold n values.
#[inline(always)]
unsafe fn filter_group<S: Simd, const G: usize>(
    poles: &Poles,
    gain: &[f32],
    re: &mut [f32],
    im: &mut [f32],
    x: &[f32],
    sums: &mut [S; STRIP],
    i: usize,
    lanes: usize,
) {
    // SAFETY: the caller bounds the states; x and sums are walked by iterators.
    unsafe {
        let mut v = States::<S, G>::new(poles, re, im, i, lanes);
        let mut gains = [S::splat(0.0); G];
        for (g, gains) in gains.iter_mut().enumerate() {
            *gains = load(gain.as_ptr().add(i + g * S::LANES), v.width(g));
        }
        for (x, sum) in x.iter().zip(sums) {
            let x = S::splat(*x);
            for g in 0..G {
                v.step(g, x);
            }
            // Two chains, so that the sum is not what the next group waits for.
            let mut y = [*sum, S::splat(0.0)];
            for g in 0..G {
                y[g % 2] = gains[g].mul_add(v.sr[g], y[g % 2]);
            }
            *sum = y[0].add(y[1]);
        }
        v.keep(re, im, i);
    }
}

/// Calls `$group::<S, G>` for all states, in groups of GROUP vectors, then single ones, then part of one.
macro_rules! groups {
    ($s:ident, $n:expr, $group:ident($($before:expr),*; $($after:expr),*)) => {{
        let mut i = 0;
        while i + GROUP * $s::LANES <= $n {
            $group::<$s, GROUP>($($before,)* i, $s::LANES $(, $after)*);
            i += GROUP * $s::LANES;
        }
        while i < $n {
            let lanes = $s::LANES.min($n - i);
            $group::<$s, 1>($($before,)* i, lanes $(, $after)*);
            i += lanes;
        }
    }};
}

/// # Safety
/// S's features; `re` and `im` hold n = u.cols() values.
#[inline(always)]
unsafe fn scan<S: Simd>(poles: &Poles, re: &mut [f32], im: &mut [f32], mut u: MatMut<'_>) {
    let n = poles.n();
    // SAFETY: the groups lie within n.
    unsafe { groups!(S, n, scan_group(poles, re, im, &mut u;)) }
}

/// # Safety
/// S's features; `gain`, `re` and `im` hold n values, `y` as many as `x`.
#[inline(always)]
unsafe fn filter<S: Simd>(poles: &Poles, gain: &[f32], re: &mut [f32], im: &mut [f32], x: &[f32], y: &mut [f32]) {
    let n = poles.n();
    for (x, y) in x.chunks(STRIP).zip(y.chunks_mut(STRIP)) {
        // SAFETY: the groups lie within n; a vector's lanes fit in the array they are stored to.
        unsafe {
            let mut sums = [S::splat(0.0); STRIP];
            groups!(S, n, filter_group(poles, gain, re, im, x, &mut sums;));
            for (y, sum) in y.iter_mut().zip(sums) {
                let mut lanes = [0f32; 16];
                sum.store(lanes.as_mut_ptr());
                let mut width = S::LANES / 2;
                while width > 0 {
                    for l in 0..width {
                        lanes[l] += lanes[l + width];
                    }
                    width /= 2;
                }
                *y = lanes[0];
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn scan_avx2(poles: &Poles, re: &mut [f32], im: &mut [f32], u: MatMut<'_>) {
    // SAFETY: this function has the features of __m256; the caller checked the shapes.
    unsafe { scan::<__m256>(poles, re, im, u) }
}

#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
pub(super) fn scan_avx512(poles: &Poles, re: &mut [f32], im: &mut [f32], u: MatMut<'_>) {
    // SAFETY: this function has the features of __m512; the caller checked the shapes.
    unsafe { scan::<__m512>(poles, re, im, u) }
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn filter_avx2(poles: &Poles, gain: &[f32], re: &mut [f32], im: &mut [f32], x: &[f32], y: &mut [f32]) {
    // SAFETY: this function has the features of __m256; the caller checked the shapes.
    unsafe { filter::<__m256>(poles, gain, re, im, x, y) }
}

#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
pub(super) fn filter_avx512(poles: &Poles, gain: &[f32], re: &mut [f32], im: &mut [f32], x: &[f32], y: &mut [f32]) {
    // SAFETY: this function has the features of __m512; the caller checked the shapes.
    unsafe { filter::<__m512>(poles, gain, re, im, x, y) }
}
