//! Shared helpers of the test files: random models of every family, a seeded generator, paths.
#![forbid(unsafe_code)]

pub mod audio;
pub mod element;
pub mod fabricate;
pub mod reference;
pub mod schema;

use std::path::{Path, PathBuf};

/// The golden files that the repository carries.
pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// A small seeded generator (xorshift64*, Vigna 2016).
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Normal with variance 1 (sum of twelve uniforms).
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }

    /// `n` normal values of standard deviation `scale`.
    pub fn normals(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| scale * self.normal()).collect()
    }

    /// A whole number in `from..=to`.
    pub fn range(&mut self, from: usize, to: usize) -> usize {
        from + (self.next() % (to - from + 1) as u64) as usize
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.range(0, choices.len() - 1)]
    }

    /// `len` cut at random places: empty pieces, single steps and longer ones.
    pub fn cuts(&mut self, len: usize) -> Vec<usize> {
        let (mut cuts, mut left) = (Vec::new(), len);
        while left > 0 {
            let n = match self.range(0, 5) {
                0 => 0,
                1 | 2 => 1,
                _ => self.range(0, len / 3 + 1).min(left),
            };
            cuts.push(n);
            left -= n;
        }
        cuts
    }
}
