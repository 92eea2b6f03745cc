//! Short-time Fourier transform of frames that overlap by half, and back.
//!
//! ```text
//! X = RFFT(w · x),   y = w · IRFFT(Y),   w[n] = √(½ - ½ cos(2π n / N))
//! ```
//!
//! The window is the root of a periodic Hann window, so that analysis and synthesis together overlap to 1: frames taken
//! every N/2 samples, transformed forth and back and added, give the samples again (Griffin & Lim 1984). A frame's
//! spectrum is N/2 + 1 pairs (re, im). Each frame is computed alone: its bits do not depend on its neighbours.

mod agree;

use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use std::sync::Arc;

/// Plans and window for frames of one length.
#[derive(Clone)]
pub struct Stft {
    window: Vec<f32>,
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
}

impl Stft {
    /// Plans for frames of `len` samples; an odd length is rounded up.
    pub fn new(len: usize) -> Self {
        let len = len.max(2).next_multiple_of(2);
        let mut planner = RealFftPlanner::new();
        let window = (0..len)
            .map(|n| (0.5 - 0.5 * (std::f64::consts::TAU * n as f64 / len as f64).cos()).sqrt() as f32)
            .collect();
        Self { window, forward: planner.plan_fft_forward(len), inverse: planner.plan_fft_inverse(len) }
    }

    /// Samples of a frame.
    pub fn len(&self) -> usize {
        self.window.len()
    }

    /// Never: a frame has two samples or more.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Bins of a spectrum, N/2 + 1.
    pub fn bins(&self) -> usize {
        self.window.len() / 2 + 1
    }

    /// Values of working memory that both directions need.
    pub fn work_len(&self) -> usize {
        self.window.len() + 2 * self.forward.get_scratch_len().max(self.inverse.get_scratch_len())
    }

    /// `spectrum = RFFT(w · x)`: N samples to 2 (N/2 + 1) values.
    ///
    /// # Panics
    /// A slice has another length, or `work` fewer than [`Stft::work_len`] values.
    pub fn analyse(&self, x: &[f32], spectrum: &mut [f32], work: &mut [f32]) {
        self.check(x.len(), spectrum.len(), work.len());
        let (frame, scratch) = work.split_at_mut(self.len());
        for ((f, x), w) in frame.iter_mut().zip(x).zip(&self.window) {
            *f = x * w;
        }
        let scratch = &mut complex(scratch)[..self.forward.get_scratch_len()];
        let done = self.forward.process_with_scratch(frame, complex(spectrum), scratch);
        debug_assert!(done.is_ok(), "the lengths were checked");
    }

    /// `y = w · IRFFT(spectrum)`: the frame's share, to be added to its neighbours'. The imaginary parts of the first and
    /// the last bin, which no real signal has, are ignored. `spectrum` is used up.
    ///
    /// # Panics
    /// As [`Stft::analyse`].
    pub fn synthesise(&self, spectrum: &mut [f32], y: &mut [f32], work: &mut [f32]) {
        self.check(y.len(), spectrum.len(), work.len());
        let last = spectrum.len() - 1;
        (spectrum[1], spectrum[last]) = (0.0, 0.0);
        let scratch = &mut complex(&mut work[self.len()..])[..self.inverse.get_scratch_len()];
        let done = self.inverse.process_with_scratch(complex(spectrum), y, scratch);
        debug_assert!(done.is_ok(), "the lengths were checked and the outer bins are real");
        let scale = 1.0 / self.len() as f32;
        y.iter_mut().zip(&self.window).for_each(|(y, w)| *y *= w * scale);
    }

    fn check(&self, samples: usize, spectrum: usize, work: usize) {
        let (n, bins) = (self.len(), self.bins());
        assert!(samples == n, "stft: expected {n} samples, got {samples}");
        assert!(spectrum == 2 * bins, "stft: expected {} spectrum values, got {spectrum}", 2 * bins);
        assert!(work >= self.work_len(), "stft: expected {} values of work, got {work}", self.work_len());
    }
}

/// Pairs of floats as complex numbers; an odd one at the end is left out.
fn complex(x: &mut [f32]) -> &mut [Complex32] {
    // SAFETY: Complex32 is repr(C) of two f32 and has their alignment; len / 2 of them lie within the exclusive borrow.
    unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), x.len() / 2) }
}
