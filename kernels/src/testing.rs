//! What the `agree` tests share.

use crate::CpuLevel;

/// Levels to test: all present; a level named in `SSM_REQUIRE` (comma separated) and absent is a failure.
pub(crate) fn levels() -> Vec<CpuLevel> {
    let present: Vec<_> = CpuLevel::present().collect();
    for word in std::env::var("SSM_REQUIRE").unwrap_or_default().split(',').filter(|w| !w.is_empty()) {
        if let Ok(level) = word.parse::<CpuLevel>() {
            assert!(present.contains(&level), "SSM_REQUIRE: this machine has no {level}");
        }
    }
    for level in CpuLevel::ALL.iter().filter(|l| !present.contains(l)) {
        eprintln!("SKIP {level}: not on this machine");
    }
    present
}

/// A small seeded generator (xorshift64*, Vigna 2016).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform in [0, 1).
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Normal with variance 1 (sum of twelve uniforms).
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }

    pub(crate) fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Largest absolute difference; NaN anywhere gives infinity.
pub(crate) fn max_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() }).fold(0.0, f32::max)
}
