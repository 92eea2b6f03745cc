//! Numeric primitives for state-space models.
//!
//! Everything works on plain `f32` slices and row-major views ([`Mat`], [`MatMut`]); nothing here knows a network, a
//! file or GStreamer, and nothing here allocates after its weights are packed. Each op has one safe entry point that
//! checks every length, a scalar form that follows the paper, and faster forms chosen once per call by [`CpuLevel`].
//!
//! | op | equation |
//! |---|---|
//! | [`linear`] | `y = act(x Wᵀ + bias)`, optionally `y += …` |
//! | [`selective_scan`] | `h ← exp(Δa)·h + Δ·b·u`, `y = (c·h + d·u)·silu(z)` |
//! | [`ssd`] | `S ← exp(Δa)·S + Δ·x bᵀ`, `y = S c + d·x`, one decay per head |
//! | [`moe_route`] | `y = Σ_{e in top k} softmax(h G)_e · FFN_e(h)`, without capacity |
//! | [`s4d`] | `z ← a z + b u (- Σ p q)`, `y = Re Σ c z + d u`, complex |
//! | [`causal_conv1d`] | `y_t = act(bias + Σ_j w_j x_{t-K+1+j})`, per channel |
//! | [`conv2d`] | `y = act(bias + Σ w x)` over square windows of an image, dense or per channel |
//! | [`cross_scan`] | the four orders in which an image is scanned |
//! | [`complex_scan`] | `s ← λ s + u`, `y = Re s` or `Σ g Re s`, complex diagonal λ |
//! | [`attention`] | `y = Σ softmax((q·k + bias)·scale) v` over a bounded window |
//! | [`norm`] | RMSNorm and LayerNorm over channels, with the residual add |
//! | [`activation`] | SiLU, sigmoid, GELU (erf), ReLU, GLU, softmax |
//! | [`stft`] | `X = RFFT(w·x)`, `y = w·IRFFT(Y)`, frames that overlap by half |
//! | [`patch`] | image patches to rows, four pixels to one |
//! | [`fbank`] | `y = ln(max(M·|FFT(w·x)|², floor))`, log-mel frames of audio |
//! | [`resize`] | Pillow's 8-bit bicubic resize, PyTorch's bicubic and antialiased bilinear grids |
//! | [`cuda`] | most of these on a card: PTX, arguments, launches |
#![warn(missing_docs)]

mod array;
mod cpu;
#[cfg(target_arch = "x86_64")]
mod simd;
mod team;
#[cfg(test)]
mod testing;

pub mod activation;
pub mod attention;
pub mod causal_conv1d;
pub mod complex_scan;
pub mod conv2d;
pub mod cross_scan;
pub mod cuda;
pub mod fbank;
pub mod linear;
pub mod moe_route;
pub mod norm;
pub mod patch;
pub mod resize;
pub mod s4d;
pub mod selective_scan;
pub mod ssd;
pub mod stft;

pub use activation::Act;
pub use array::{Mat, MatMut, Slab};
pub use cpu::{CpuLevel, LevelError};
pub use team::Team;

/// Added to a recurrent state at each step, so that it never fades into the denormal numbers: they are slow, and a stream
/// that has fallen silent would stay among them for ever. Far below the last bit of any state that matters.
pub(crate) const TINY: f32 = 1e-30;

/// Where a computation runs: the instruction level and the threads that share the work.
pub struct Cx {
    /// Instruction level of every op.
    pub level: CpuLevel,
    /// Threads that split one op.
    pub team: Team,
}

impl Cx {
    /// A context on `threads` threads (at least one) at the best level of this machine, lowered by `SSM_CPU`.
    ///
    /// # Errors
    /// `SSM_CPU` holds a word that is no level or a level this machine does not have.
    pub fn new(threads: usize) -> Result<Self, LevelError> {
        Ok(Self { level: CpuLevel::from_env()?, team: Team::new(threads) })
    }

    /// A context at a given level, lowered to what the machine has.
    pub fn at(level: CpuLevel, threads: usize) -> Self {
        Self { level: level.min(CpuLevel::best()), team: Team::new(threads) }
    }
}
