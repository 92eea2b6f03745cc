//! One body per kernel, several vector widths.
//!
//! A kernel is written once over [`Simd`] as an `#[inline(always)]` function and entered through a
//! `#[target_feature]` function per level, into which everything inlines; so the intrinsics below always run in a
//! function that has their features (the pattern of memchr's `arch/generic`).

use std::arch::x86_64::*;
use std::f32::consts::{LN_2, LOG2_E};

/// A vector of `LANES` floats.
///
/// # Safety
/// Every method needs the CPU features of the implementing type; pointers must be valid for the lanes they name.
pub(crate) trait Simd: Copy {
    const LANES: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    /// The first `n < LANES` floats, zeros after them.
    unsafe fn load_n(p: *const f32, n: usize) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn store_n(self, p: *mut f32, n: usize);
    unsafe fn add(self, o: Self) -> Self;
    unsafe fn sub(self, o: Self) -> Self;
    unsafe fn mul(self, o: Self) -> Self;
    unsafe fn div(self, o: Self) -> Self;
    unsafe fn min(self, o: Self) -> Self;
    /// The larger of both; `o` where either is NaN.
    unsafe fn max(self, o: Self) -> Self;
    /// `self * b + c`, rounded once.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// `c - self * b`, rounded once.
    unsafe fn neg_mul_add(self, b: Self, c: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// `self * 2^k` for 0.5 <= self < 2 and `t` = 1.5 · 2^23 + k with -125 <= k <= 125: `k` moves into the exponent bits.
    unsafe fn scale2_bits(self, t: Self) -> Self;
    /// `2^self` for self <= 0, 2^-125 below -125; NaN stays NaN. For `exp` of a product, log2 e being part of one factor:
    /// off by what that rounds, |x| · 6e-8, and 2 ulp. `2^0` is exactly 1.
    unsafe fn exp2_neg(self) -> Self;
    /// Per lane of two bfloat16: the one in the high half as a float.
    unsafe fn high_half(self) -> Self;
    /// Per lane of two bfloat16: the one in the low half as a float.
    unsafe fn low_half(self) -> Self;
    /// Per lane: `yes` where `self > o`, else `no` (also where NaN).
    unsafe fn select_gt(self, o: Self, yes: Self, no: Self) -> Self;
    /// Per lane: `nan` where `self` is NaN, else `o`.
    unsafe fn keep_nan(self, o: Self) -> Self;
}

/// `V` vectors side by side, taken for one of `V` times the width. The chains of a long function (softplus, then exp) run
/// in turns, so that none waits for its own last step; a lane's result is that of the single vector.
#[derive(Clone, Copy)]
pub(crate) struct Wide<S, const V: usize>([S; V]);

impl<S: Simd, const V: usize> Wide<S, V> {
    #[inline(always)]
    fn map(mut self, f: impl Fn(S) -> S) -> Self {
        for v in &mut self.0 {
            *v = f(*v);
        }
        self
    }

    #[inline(always)]
    fn zip(mut self, o: Self, f: impl Fn(S, S) -> S) -> Self {
        for (v, o) in self.0.iter_mut().zip(o.0) {
            *v = f(*v, o);
        }
        self
    }

    #[inline(always)]
    fn zip2(mut self, b: Self, c: Self, f: impl Fn(S, S, S) -> S) -> Self {
        for ((v, b), c) in self.0.iter_mut().zip(b.0).zip(c.0) {
            *v = f(*v, b, c);
        }
        self
    }
}

impl<S: Simd, const V: usize> Simd for Wide<S, V> {
    const LANES: usize = V * S::LANES;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: trait contract, here and in every method below: those of S have the same.
        unsafe { Self([S::splat(x); V]) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: vector i lies in the lanes that the caller names.
        unsafe {
            let mut out = Self::splat(0.0);
            for (i, v) in out.0.iter_mut().enumerate() {
                *v = S::load(p.add(i * S::LANES));
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self {
        // SAFETY: each vector reads at most what is left of the first n floats.
        unsafe {
            let mut out = Self::splat(0.0);
            for (i, v) in out.0.iter_mut().enumerate() {
                let left = n.saturating_sub(i * S::LANES);
                *v = if left >= S::LANES {
                    S::load(p.add(i * S::LANES))
                } else {
                    S::load_n(p.wrapping_add(i * S::LANES), left)
                };
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        for (i, v) in self.0.into_iter().enumerate() {
            // SAFETY: as `load`.
            unsafe { v.store(p.add(i * S::LANES)) }
        }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, n: usize) {
        for (i, v) in self.0.into_iter().enumerate() {
            let left = n.saturating_sub(i * S::LANES);
            // SAFETY: as `load_n`.
            unsafe {
                if left >= S::LANES {
                    v.store(p.add(i * S::LANES))
                } else {
                    v.store_n(p.wrapping_add(i * S::LANES), left)
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        // SAFETY: trait contract.
        self.zip(o, |a, b| unsafe { a.add(b) })
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        // SAFETY: trait contract.
        self.zip(o, |a, b| unsafe { a.sub(b) })
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        // SAFETY: trait contract.
        self.zip(o, |a, b| unsafe { a.mul(b) })
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        // SAFETY: trait contract.
        self.zip(o, |a, b| unsafe { a.div(b) })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        // SAFETY: trait contract.
        self.zip(o, |a, b| unsafe { a.min(b) })
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        // SAFETY: trait contract.
        self.zip(o, |a, b| unsafe { a.max(b) })
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: trait contract.
        self.zip2(b, c, |a, b, c| unsafe { a.mul_add(b, c) })
    }
    #[inline(always)]
    unsafe fn neg_mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: trait contract.
        self.zip2(b, c, |a, b, c| unsafe { a.neg_mul_add(b, c) })
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: trait contract.
        self.map(|a| unsafe { a.abs() })
    }
    #[inline(always)]
    unsafe fn scale2_bits(self, t: Self) -> Self {
        // SAFETY: trait contract.
        self.zip(t, |a, t| unsafe { a.scale2_bits(t) })
    }
    #[inline(always)]
    unsafe fn exp2_neg(self) -> Self {
        // A loop: a closure so long is not inlined, and then without the features.
        let mut out = self;
        for v in &mut out.0 {
            // SAFETY: trait contract.
            *v = unsafe { v.exp2_neg() };
        }
        out
    }
    #[inline(always)]
    unsafe fn high_half(self) -> Self {
        // SAFETY: trait contract.
        self.map(|a| unsafe { a.high_half() })
    }
    #[inline(always)]
    unsafe fn low_half(self) -> Self {
        // SAFETY: trait contract.
        self.map(|a| unsafe { a.low_half() })
    }
    #[inline(always)]
    unsafe fn select_gt(self, o: Self, yes: Self, no: Self) -> Self {
        let mut out = self;
        for (i, v) in out.0.iter_mut().enumerate() {
            // SAFETY: trait contract.
            *v = unsafe { v.select_gt(o.0[i], yes.0[i], no.0[i]) };
        }
        out
    }
    #[inline(always)]
    unsafe fn keep_nan(self, o: Self) -> Self {
        // SAFETY: trait contract.
        self.zip(o, |a, b| unsafe { a.keep_nan(b) })
    }
}

impl Simd for __m256 {
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self {
        // SAFETY: trait contract; a masked-off lane is not read.
        unsafe { _mm256_maskload_ps(p, mask256(n)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: trait contract.
        unsafe { _mm256_storeu_ps(p, self) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, n: usize) {
        // SAFETY: trait contract; a masked-off lane is not written.
        unsafe { _mm256_maskstore_ps(p, mask256(n), self) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm256_add_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm256_sub_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm256_mul_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm256_div_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm256_min_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm256_max_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm256_fmadd_ps(self, b, c) }
    }
    #[inline(always)]
    unsafe fn neg_mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm256_fnmadd_ps(self, b, c) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self) }
    }
    #[inline(always)]
    unsafe fn scale2_bits(self, t: Self) -> Self {
        // SAFETY: trait contract. Shifting drops all of t but the low bits of k.
        unsafe {
            let k = _mm256_slli_epi32::<23>(_mm256_castps_si256(t));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self), k))
        }
    }
    #[inline(always)]
    unsafe fn exp2_neg(self) -> Self {
        // SAFETY: trait contract. `max` returns its second operand on NaN.
        unsafe {
            let x = Self::splat(-125.0).max(self);
            let t = x.add(Self::splat(ROUND));
            exp2_reduced(x.sub(t.sub(Self::splat(ROUND)))).scale2_bits(t)
        }
    }
    #[inline(always)]
    unsafe fn high_half(self) -> Self {
        // SAFETY: trait contract.
        unsafe {
            let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(self), mask))
        }
    }
    #[inline(always)]
    unsafe fn low_half(self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(self))) }
    }
    #[inline(always)]
    unsafe fn select_gt(self, o: Self, yes: Self, no: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_GT_OQ>(self, o)) }
    }
    #[inline(always)]
    unsafe fn keep_nan(self, o: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm256_blendv_ps(o, self, _mm256_cmp_ps::<_CMP_UNORD_Q>(self, self)) }
    }
}

/// All-ones in the first `n` of 8 lanes.
#[inline(always)]
unsafe fn mask256(n: usize) -> __m256i {
    const EDGE: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: 8 values starting at 8 - min(n, 8) lie in EDGE; AVX by the trait contract.
    unsafe { _mm256_loadu_si256(EDGE.as_ptr().add(8 - n.min(8)).cast()) }
}

impl Simd for __m512 {
    const LANES: usize = 16;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self {
        // SAFETY: trait contract; a masked-off lane is not read.
        unsafe { _mm512_maskz_loadu_ps(mask512(n), p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: trait contract.
        unsafe { _mm512_storeu_ps(p, self) }
    }
    #[inline(always)]
    unsafe fn store_n(self, p: *mut f32, n: usize) {
        // SAFETY: trait contract; a masked-off lane is not written.
        unsafe { _mm512_mask_storeu_ps(p, mask512(n), self) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm512_add_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm512_sub_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm512_mul_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm512_div_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm512_min_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm512_max_ps(self, o) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm512_fmadd_ps(self, b, c) }
    }
    #[inline(always)]
    unsafe fn neg_mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm512_fnmadd_ps(self, b, c) }
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm512_abs_ps(self) }
    }
    #[inline(always)]
    unsafe fn scale2_bits(self, t: Self) -> Self {
        // SAFETY: trait contract. Shifting drops all of t but the low bits of k.
        unsafe {
            let k = _mm512_slli_epi32::<23>(_mm512_castps_si512(t));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self), k))
        }
    }
    /// By 32nds: `2^x = 2^(k/32) 2^r` with |r| <= 1/64, the first from a table in two registers, the second
    /// `1 + r q(r)`, q of degree 1 fitted for the smallest relative error, 5e-8. Two multiply-adds less than without a table.
    #[inline(always)]
    unsafe fn exp2_neg(self) -> Self {
        // SAFETY: trait contract. `max` returns its second operand on NaN; both loads lie in the table.
        unsafe {
            let x = Self::splat(-125.0).max(self);
            let t = x.add(Self::splat(ROUND_32));
            let r = x.sub(t.sub(Self::splat(ROUND_32)));
            // The series: a slope fitted to two terms would let every slow decay drift the same way.
            let q = Self::splat(0.055_504_1).mul_add(r, Self::splat(0.240_226_5));
            let q = q.mul_add(r, Self::splat(LN_2)).mul_add(r, Self::splat(1.0));
            let k = _mm512_castps_si512(t);
            let (low, high) =
                (_mm512_loadu_si512(STEPS.as_ptr().cast()), _mm512_loadu_si512(STEPS.as_ptr().add(16).cast()));
            // The table has the low five bits of k taken off, which the shifted k brings.
            let step = _mm512_add_epi32(_mm512_permutex2var_epi32(low, k, high), _mm512_slli_epi32::<18>(k));
            _mm512_castsi512_ps(step).mul(q)
        }
    }
    #[inline(always)]
    unsafe fn high_half(self) -> Self {
        // SAFETY: trait contract.
        unsafe {
            let mask = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(self), mask))
        }
    }
    #[inline(always)]
    unsafe fn low_half(self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(self))) }
    }
    #[inline(always)]
    unsafe fn select_gt(self, o: Self, yes: Self, no: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self, o), no, yes) }
    }
    #[inline(always)]
    unsafe fn keep_nan(self, o: Self) -> Self {
        // SAFETY: trait contract.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self, self), o, self) }
    }
}

#[inline(always)]
fn mask512(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

/// Adding it rounds a float below 2^22 to an integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Adding it rounds a float below 2^17 to a 32nd, counted in the low bits.
const ROUND_32: f32 = 393_216.0;

/// Bits of `2^(i/32)`, less `i` at the place to which `exp2_neg` shifts it.
const STEPS: [u32; 32] = {
    const POWERS: [f32; 32] = [
        1.0,
        1.021_897_2,
        1.044_273_7,
        1.067_140_5,
        1.090_507_7,
        1.114_386_8,
        1.138_788_6,
        1.163_724_9,
        1.189_207_1,
        1.215_247_4,
        1.241_857_8,
        1.269_051,
        1.296_839_6,
        1.325_236_7,
        1.354_255_6,
        1.383_91,
        std::f32::consts::SQRT_2,
        1.445_180_8,
        1.476_826_2,
        1.509_164_5,
        1.542_210_8,
        1.575_980_9,
        1.610_490_3,
        1.645_755_5,
        1.681_792_9,
        1.718_619_3,
        1.756_252_2,
        1.794_709_1,
        1.834_008_1,
        1.874_167_7,
        1.915_206_6,
        1.957_144_1,
    ];
    let mut steps = [0; 32];
    let mut i = 0;
    while i < 32 {
        steps[i] = POWERS[i].to_bits() - ((i as u32) << 18);
        i += 1;
    }
    steps
};

/// `exp(x)` to about 4 ulp for -86.6 <= x <= 88. NaN stays NaN only without a payload, whose bits reach the exponent.
#[inline(always)]
unsafe fn exp_within<S: Simd>(x: S) -> S {
    // SAFETY: the caller has the features of S.
    unsafe {
        let t = x.mul_add(S::splat(LOG2_E), S::splat(ROUND));
        let r = x.mul_add(S::splat(LOG2_E), S::splat(ROUND).sub(t));
        exp2_reduced(r).scale2_bits(t)
    }
}

/// `exp(x)` to about 4 ulp for -86.6 <= x <= 0, smaller x taken for -86.6; NaN as in `exp_within`.
#[inline(always)]
pub(crate) unsafe fn exp_neg<S: Simd>(x: S) -> S {
    // SAFETY: the caller has the features of S. `max` returns its second operand on NaN.
    unsafe { exp_within(S::splat(-86.6).max(x)) }
}

/// `2^r` for |r| <= 1/2: `1 + r q(r)`, q of degree 4 fitted for the smallest relative error, 9e-8. The form makes `2^0`
/// exactly 1.
#[inline(always)]
#[expect(clippy::approx_constant, reason = "the fit lies beside ln 2")]
unsafe fn exp2_reduced<S: Simd>(r: S) -> S {
    // SAFETY: the caller has the features of S.
    unsafe {
        let mut q = S::splat(0.001_326_472_7);
        for c in [0.009_671_513, 0.055_507_336, 0.240_222_42, 0.693_147, 1.0] {
            q = q.mul_add(r, S::splat(c));
        }
        q
    }
}

/// `ln(1 + exp(x))`, x itself above 20 as PyTorch does.
///
/// `max(x, 0) + log1p(t)` with `t = exp(-|x|)` in (0, 1]; `log1p(t) = t p(t)`, p of degree 8 fitted for the smallest
/// relative error, 3e-8.
#[inline(always)]
pub(crate) unsafe fn softplus<S: Simd>(x: S) -> S {
    const LOG1P: [f32; 9] = [
        0.005_232_694,
        -0.029_505_238,
        0.078_225_955,
        -0.136_632_46,
        0.191_060_07,
        -0.248_429_82,
        0.333_190_98,
        -0.499_994_93,
        0.999_999_94,
    ];
    // SAFETY: the caller has the features of S.
    unsafe {
        let t = exp_neg(S::splat(0.0).sub(x.abs()));
        let mut p = S::splat(LOG1P[0]);
        for c in &LOG1P[1..] {
            p = p.mul_add(t, S::splat(*c));
        }
        let y = p.mul_add(t, x.max(S::splat(0.0)));
        x.keep_nan(x.select_gt(S::splat(20.0), x, y))
    }
}

/// `exp(-x)`, x between -88 and 86 or taken for the nearer bound; NaN as in `exp_within`.
#[inline(always)]
unsafe fn exp_of_negative<S: Simd>(x: S) -> S {
    // SAFETY: the caller has the features of S. `min` and `max` return their second operand on NaN.
    unsafe { exp_within(S::splat(0.0).sub(S::splat(86.0).min(S::splat(-88.0).max(x)))) }
}

/// `1 / (1 + exp(-x))`; NaN stays NaN.
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S) -> S {
    // SAFETY: the caller has the features of S.
    unsafe { x.keep_nan(S::splat(1.0).div(S::splat(1.0).add(exp_of_negative(x)))) }
}

/// `x * sigmoid(x)`; below -88 as at -88, 5e-37.
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S) -> S {
    // SAFETY: the caller has the features of S.
    unsafe { S::splat(-88.0).max(x).div(S::splat(1.0).add(exp_of_negative(x))) }
}

/// `0.5 x (1 + erf(x/√2))`, erf by Abramowitz & Stegun 7.1.26 (off by 1.5e-7 at most).
#[inline(always)]
pub(crate) unsafe fn gelu<S: Simd>(x: S) -> S {
    // SAFETY: the caller has the features of S.
    unsafe {
        let one = S::splat(1.0);
        let v = x.abs().mul(S::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = one.div(v.mul_add(S::splat(0.327_591_1), one));
        let mut p = S::splat(1.061_405_4);
        for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
            p = p.mul_add(t, S::splat(c));
        }
        // erfc(|x|/√2) / 2, then x Φ(x) = x - x·tail for x > 0, x·tail below.
        let tail = p.mul(t).mul(exp_neg(S::splat(0.0).sub(v.mul(v)))).mul(S::splat(0.5));
        let low = x.mul(tail);
        x.select_gt(S::splat(0.0), x.sub(low), low)
    }
}
