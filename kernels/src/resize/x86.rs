//! The sums of `bytes.rs` in vectors of eight 32-bit integers (AVX2; wider ones would be mostly empty).
//!
//! Columns: the bytes of two, four or eight neighbouring pixels meet their weights, each spread over the pixel's
//! channels, and what belongs to one channel is added at the end. Rows: a run of bytes meets one weight. The same
//! integers in another order: the same sums.

use super::bytes::{HALF, PRECISION, Resize, column, pixels, run};
use std::arch::x86_64::*;

/// Bytes in the four lanes, clamped.
#[target_feature(enable = "avx2")]
fn narrow(sums: __m128i) -> [u8; 4] {
    let sums = _mm_srai_epi32::<{ PRECISION as i32 }>(_mm_add_epi32(sums, _mm_set1_epi32(HALF)));
    let words = _mm_packs_epi32(sums, sums);
    _mm_cvtsi128_si32(_mm_packus_epi16(words, words)).to_le_bytes()
}

/// One row's columns.
#[target_feature(enable = "avx2")]
pub(super) fn columns<const C: usize>(plan: &Resize, src: &[u8], out: &mut [u8]) {
    let (taps, step) = (plan.columns.taps, pixels(C) * C);
    let groups = taps / pixels(C);
    // Two pixels of three channels, each to four lanes.
    let apart = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    let windows = plan.columns.windows().zip(plan.spread.chunks_exact(groups * 8));
    for (((first, weights), spread), out) in windows.zip(out.chunks_exact_mut(C)) {
        let from = &src[first * C..];
        if from.len() < (groups - 1) * step + 8 {
            // The end of a row of three channels: a load would go two bytes beyond it.
            column(C, from, weights, out);
            continue;
        }
        let mut sums = _mm256_setzero_si256();
        for g in 0..groups {
            // SAFETY: g · step + 8 bytes of `from` (checked above) and g · 8 + 8 weights of `spread` are there.
            let (bytes, weights) = unsafe {
                let bytes = _mm_loadl_epi64(from.as_ptr().add(g * step).cast());
                (bytes, _mm256_loadu_si256(spread.as_ptr().add(g * 8).cast()))
            };
            let bytes = if C == 3 { _mm_shuffle_epi8(bytes, apart) } else { bytes };
            sums = _mm256_add_epi32(sums, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), weights));
        }
        let mut sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        if C <= 2 {
            sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b01_00_11_10>(sums));
        }
        if C == 1 {
            sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b10_11_00_01>(sums));
        }
        out.copy_from_slice(&narrow(sums)[..C]);
    }
}

/// `out[i] = Σ_k weights[k] · src[k · len + i]`.
#[target_feature(enable = "avx2")]
pub(super) fn rows(src: &[u8], len: usize, weights: &[i32], out: &mut [u8]) {
    const RUN: usize = 32;
    assert!(out.len() >= len && (weights.is_empty() || src.len() >= weights.len() * len), "resize: rows");
    let mut at = 0;
    while at + RUN <= len {
        let mut sums = [_mm256_set1_epi32(HALF); RUN / 8];
        for (k, w) in weights.iter().enumerate() {
            let w = _mm256_set1_epi32(*w);
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: k · len + at + RUN <= weights · len, which the assertion compares with src.
                let bytes = unsafe { _mm_loadl_epi64(src.as_ptr().add(k * len + at + 8 * i).cast()) };
                *sum = _mm256_add_epi32(*sum, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), w));
            }
        }
        let [a, b, c, d] = sums.map(|s| _mm256_srai_epi32::<{ PRECISION as i32 }>(s));
        // Packing works in halves of a vector; the permutation puts the quarters of each back in order.
        let words = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        let bytes = _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        // SAFETY: at + RUN <= len <= out.len().
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(at).cast(), bytes) };
        at += RUN;
    }
    run(src, len, weights, at, out);
}
