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

/// Independent chains of multiply-adds in registers: more than the latency of one takes.
const CHAINS: usize = 12;

/// `turns` of every chain, by an instruction: a compiler may make something slower of plain loops.
macro_rules! chains {
    ($name:ident, $features:literal, $splat:ident, $fused:ident) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name(turns: usize) {
            use std::arch::x86_64::{$fused, $splat};
            let (a, b) = ($splat(0.999_9), $splat(1e-6));
            let mut sums = [$splat(black_box(0.5)); CHAINS];
            for _ in 0..turns {
                for sum in &mut sums {
                    *sum = $fused(*sum, a, b);
                }
            }
            black_box(sums);
        }
    };
}

chains!(chains_avx2, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps);
chains!(chains_avx512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps);

/// The same without vectors of x86.
fn chains_plain(turns: usize) {
    let mut sums = [[black_box(0.5f32); 4]; CHAINS];
    for _ in 0..turns {
        for sum in sums.as_flattened_mut() {
            // Where there is no instruction for both, the fused form is a call.
            *sum = if cfg!(target_arch = "aarch64") { sum.mul_add(0.999_9, 1e-6) } else { *sum * 0.999_9 + 1e-6 };
        }
    }
    black_box(sums);
}

/// `turns` of multiply-adds that depend on nothing but themselves, as many a cycle as the core has. Returns their
/// operations.
pub fn chain(level: CpuLevel, turns: usize) -> f64 {
    let lanes = match level.min(CpuLevel::best()) {
        #[cfg(target_arch = "x86_64")]
        CpuLevel::Avx512 => {
            // SAFETY: the level is what the machine has.
            unsafe { chains_avx512(turns) };
            16
        }
        #[cfg(target_arch = "x86_64")]
        CpuLevel::Avx2 => {
            // SAFETY: as above.
            unsafe { chains_avx2(turns) };
            8
        }
        _ => {
            chains_plain(turns);
            4
        }
    };
    (turns * CHAINS * lanes * 2) as f64
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
