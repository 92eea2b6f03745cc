//! What one core can do at most: the sum of the fastest loops that were found.

use crate::{race, values};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};
use std::hint::black_box;
use std::time::Instant;

/// Rates of one core.
pub struct Roof {
    /// f32 operations a second, a multiply-add being two.
    pub flops: f64,
    /// Bytes read a second from memory that no cache holds.
    pub read: f64,
}

/// Independent multiply-adds, `N` vectors of `W` lanes that stay in registers.
#[inline(always)]
fn chains<const N: usize, const W: usize>(turns: usize, x: f32) -> f32 {
    let mut sums = [[x; W]; N];
    for _ in 0..turns {
        for sum in &mut sums {
            for s in sum.iter_mut() {
                *s = s.mul_add(0.999_9, 1e-6);
            }
        }
    }
    sums.iter().flatten().sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn chains_avx2(turns: usize, x: f32) -> f32 {
    chains::<12, 8>(turns, x)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,fma")]
fn chains_avx512(turns: usize, x: f32) -> f32 {
    chains::<12, 16>(turns, x)
}

fn chain(level: CpuLevel, turns: usize, x: f32) -> (f32, usize) {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level is what the machine has.
        CpuLevel::Avx512 => (unsafe { chains_avx512(turns, x) }, 12 * 16),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        CpuLevel::Avx2 => (unsafe { chains_avx2(turns, x) }, 12 * 8),
        _ => (chains::<4, 4>(turns, x), 16),
    }
}

/// Measures both.
pub fn measure() -> Roof {
    const TURNS: usize = 100_000;
    let level = CpuLevel::best();
    let mut lanes = 0;
    // The fastest of all runs: clocks go up and down.
    let mut seconds = f64::MAX;
    for _ in 0..400 {
        let begin = Instant::now();
        lanes = black_box(chain(level, TURNS, black_box(0.5))).1;
        seconds = seconds.min(begin.elapsed().as_secs_f64());
    }
    let mut flops = (TURNS * lanes * 2) as f64 / seconds;
    // A product that stays in the first cache can only be below the truth, never above it.
    let cx = Cx::at(level, 1);
    let (m, n, k) = (48, 64, 64);
    let w = Linear::pack(level, &values(n * k, 0.1), n, k, None);
    let (x, mut y) = (values(m * k, 1.0), vec![0.0; m * n]);
    let product = race(
        0.3,
        &mut [&mut || {
            linear(&cx, Mat::new(&x, m, k), &w, Act::None, Store::Set, MatMut::new(&mut y, m, n));
        }],
    )[0];
    flops = flops.max((2 * m * n * k) as f64 / product);
    let big = vec![1u64; 32 << 20];
    let seconds = race(
        1.0,
        &mut [&mut || {
            black_box(big.as_chunks::<8>().0.iter().fold([0u64; 8], |mut sum, c| {
                sum.iter_mut().zip(c).for_each(|(s, c)| *s = s.wrapping_add(*c));
                sum
            }));
        }],
    )[0];
    Roof { flops, read: (big.len() * 8) as f64 / seconds }
}
