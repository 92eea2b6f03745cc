//! What one core can do at most: the fastest loops that were found.

use ssm_bench::race;
use ssm_kernels::CpuLevel;
use std::hint::black_box;

/// Rates of one core.
pub struct Roof {
    /// f32 operations a second, a multiply-add being two.
    pub flops: f64,
    /// Bytes read a second from memory that no cache holds.
    pub read: f64,
}

/// Independent multiply-adds, `N` vectors of `W` lanes that stay in registers; `FUSED` where that is one instruction.
#[inline(always)]
fn chains<const N: usize, const W: usize, const FUSED: bool>(turns: usize, x: f32) -> f32 {
    let mut sums = [[x; W]; N];
    for _ in 0..turns {
        for sum in &mut sums {
            for s in sum.iter_mut() {
                *s = if FUSED { s.mul_add(0.999_9, 1e-6) } else { *s * 0.999_9 + 1e-6 };
            }
        }
    }
    sums.iter().flatten().sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn chains_avx2(turns: usize, x: f32) -> f32 {
    chains::<12, 8, true>(turns, x)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
fn chains_avx512(turns: usize, x: f32) -> f32 {
    chains::<12, 16, true>(turns, x)
}

/// `turns` of multiply-adds that depend on nothing but themselves, as many a cycle as the core has. Returns their
/// operations.
pub fn chain(level: CpuLevel, turns: usize) -> f64 {
    let x = black_box(0.5);
    let (sum, lanes) = match level.min(CpuLevel::best()) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level is what the machine has.
        CpuLevel::Avx512 => (unsafe { chains_avx512(turns, x) }, 12 * 16),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        CpuLevel::Avx2 => (unsafe { chains_avx2(turns, x) }, 12 * 8),
        #[cfg(target_arch = "aarch64")]
        _ => (chains::<20, 4, true>(turns, x), 20 * 4),
        #[cfg(not(target_arch = "aarch64"))]
        _ => (chains::<8, 4, false>(turns, x), 8 * 4),
    };
    black_box(sum);
    (turns * lanes * 2) as f64
}

/// Measures both, medians.
pub fn measure(level: CpuLevel) -> Roof {
    let mut ops = 0.0;
    let big = vec![1u64; 32 << 20];
    let mut read = || {
        black_box(big.as_chunks::<8>().0.iter().fold([0u64; 8], |mut sum, c| {
            sum.iter_mut().zip(c).for_each(|(s, c)| *s = s.wrapping_add(*c));
            sum
        }));
    };
    let seconds = race(2.0, &mut [&mut || ops = chain(level, 100_000), &mut read]);
    Roof { flops: ops / seconds[0], read: (big.len() * 8) as f64 / seconds[1] }
}
