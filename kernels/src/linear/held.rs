//! Weights of precision f32 that lie in memory as 16 bits, where that loses nothing.

use super::Linear;
#[cfg(target_arch = "x86_64")]
use super::{Out, x86};
use ::half::{bf16, f16};
use std::sync::OnceLock;
#[cfg(target_arch = "x86_64")]
use {
    crate::CpuLevel,
    crate::array::{Mat, Slab},
    std::cell::RefCell,
    std::ops::Range,
};

/// How a weight lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    F32,
    F16,
    Bf16,
}

impl Held {
    /// The narrowest that holds every one of `weights` to the bit.
    pub(super) fn of(weights: &[f32]) -> Self {
        let all = |back: fn(f32) -> f32| weights.iter().all(|w| back(*w).to_bits() == w.to_bits());
        if all(|w| bf16::from_f32(w).to_f32()) {
            Self::Bf16
        } else if widens() && all(|w| f16::from_f32(w).to_f32()) {
            Self::F16
        } else {
            Self::F32
        }
    }

    /// Values of 32 bits that `weights` of them take.
    pub(super) fn values(self, weights: usize) -> usize {
        match self {
            Self::F32 => weights,
            _ => weights.div_ceil(2),
        }
    }

    /// Weight `at`.
    pub(super) fn get(self, packed: &[f32], at: usize) -> f32 {
        let half = || (packed[at / 2].to_bits() >> (16 * (at % 2))) as u16;
        match self {
            Self::F32 => packed[at],
            Self::F16 => f16::from_bits(half()).to_f32(),
            Self::Bf16 => bf16::from_bits(half()).to_f32(),
        }
    }

    /// Makes `w`, which it holds to the bit, weight `at` of `packed`, which was zero.
    pub(super) fn put(self, packed: &mut [f32], at: usize, w: f32) {
        let half = match self {
            Self::F32 => return packed[at] = w,
            Self::F16 => f16::from_f32(w).to_bits(),
            Self::Bf16 => bf16::from_f32(w).to_bits(),
        };
        let pair = &mut packed[at / 2];
        *pair = f32::from_bits(pair.to_bits() | u32::from(half) << (16 * (at % 2)));
    }
}

/// Whether every vector level of this machine can widen f16. All processors with AVX2 can; a virtual one may hide it.
fn widens() -> bool {
    static WIDENS: OnceLock<bool> = OnceLock::new();
    #[cfg(target_arch = "x86_64")]
    return *WIDENS.get_or_init(|| std::arch::is_x86_feature_detected!("f16c"));
    #[cfg(not(target_arch = "x86_64"))]
    *WIDENS.get_or_init(|| true)
}

/// Rows from which on a panel is widened once before it is used.
#[cfg(target_arch = "x86_64")]
pub(super) const MANY: usize = 24;

#[cfg(target_arch = "x86_64")]
thread_local! {
    /// A panel in 32 bits; grown to the longest and kept.
    static WIDE: RefCell<Slab> = RefCell::new(Slab::zeros(0));
}

/// The product of many rows, a panel after the other in 32 bits.
#[cfg(target_arch = "x86_64")]
pub(super) fn widened(w: &Linear, x: Mat<'_>, rows: Range<usize>, panels: Range<usize>, out: &Out<'_>) {
    let len = w.depth() * w.level.panel();
    let mut slab = WIDE.replace(Slab::zeros(0));
    if slab.len() < len {
        slab = Slab::zeros(len);
    }
    for panel in panels {
        let wide = &mut slab[..len];
        // SAFETY: `pack_with` bounds the level by what the machine has, and holds f16 only where it can be widened; a panel
        // has `len` weights, a multiple of the vectors' width; `linear` checked the shapes.
        unsafe {
            let widen = match (w.level == CpuLevel::Avx512, w.held) {
                (true, Held::F16) => x86::widen_avx512_f16,
                (true, _) => x86::widen_avx512_brain,
                (false, Held::F16) => x86::widen_avx2_f16,
                (false, _) => x86::widen_avx2_brain,
            };
            widen(w.panel(panel), wide);
            let product = if w.level == CpuLevel::Avx512 { x86::avx512 } else { x86::avx2 };
            product(x, w, wide.as_ptr(), rows.clone(), panel..panel + 1, out);
        }
    }
    WIDE.set(slab);
}
