//! Short-time Fourier transform of frames that overlap by half, and back.
//!
//! ```text
//! X = RFFT(w · x),   y = v · IRFFT(Y)
//! ```
//!
//! Of [`Stft::new`] both windows are the root of a periodic Hann window, `w[n] = v[n] = √(½ - ½ cos(2π n / N))`, those of
//! [`Stft::low_delay`] have a Hann window of two hops as their product. Either way they overlap to 1: frames taken every
//! hop, transformed forth and back and added, give the samples again (Griffin & Lim 1984). A frame's
//! spectrum is N/2 + 1 pairs (re, im). Each frame is computed alone: its bits do not depend on its neighbours.

mod agree;

use realfft::num_complex::Complex32;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use std::sync::Arc;

/// Plans and windows for frames of one length.
#[derive(Clone)]
pub struct Stft {
    analysis: Vec<f32>,  // (N)
    synthesis: Vec<f32>, // of the last samples of a frame, all or fewer
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
}

impl Stft {
    /// Plans for frames of `len` samples that overlap by half; an odd length is rounded up.
    pub fn new(len: usize) -> Self {
        let len = len.max(2).next_multiple_of(2);
        let window: Vec<f32> = (0..len)
            .map(|n| (0.5 - 0.5 * (std::f64::consts::TAU * n as f64 / len as f64).cos()).sqrt() as f32)
            .collect();
        Self::plan(window.clone(), window)
    }

    /// Plans for frames of `len` samples every `hop`, of which only the last two hops come out again: the spectrum is as
    /// fine as the frame is long, the delay that of two hops (Mauler & Martin 2007).
    ///
    /// ```text
    /// w[n] = sin(π/2 (n + ½) / (N - H)) up to n = N - H, then cos(π/2 (n - N + H + ½) / H)
    /// v[m] = sin²(π (m + ½) / 2H) / w[N - 2H + m],  m = 0 … 2H - 1
    /// ```
    ///
    /// # Panics
    /// `len` is odd or shorter than two hops, or there is no hop.
    pub fn low_delay(len: usize, hop: usize) -> Self {
        assert!(hop > 0 && len.is_multiple_of(2) && len >= 2 * hop, "stft: frames of {len} samples every {hop}");
        let (rise, quarter) = (len - hop, std::f64::consts::FRAC_PI_2);
        let analysis: Vec<f64> = (0..len)
            .map(|n| {
                let at = n as f64 + 0.5;
                if n < rise {
                    (quarter * at / rise as f64).sin()
                } else {
                    (quarter * (at - rise as f64) / hop as f64).cos()
                }
            })
            .collect();
        let synthesis = analysis[len - 2 * hop..]
            .iter()
            .enumerate()
            .map(|(m, w)| ((quarter * (m as f64 + 0.5) / hop as f64).sin().powi(2) / w) as f32)
            .collect();
        Self::plan(analysis.iter().map(|w| *w as f32).collect(), synthesis)
    }

    fn plan(analysis: Vec<f32>, synthesis: Vec<f32>) -> Self {
        let mut planner = RealFftPlanner::new();
        let len = analysis.len();
        Self { analysis, synthesis, forward: planner.plan_fft_forward(len), inverse: planner.plan_fft_inverse(len) }
    }

    /// Samples of a frame, N.
    pub fn len(&self) -> usize {
        self.analysis.len()
    }

    /// Samples of a frame that [`Stft::synthesise`] gives.
    pub fn out_len(&self) -> usize {
        self.synthesis.len()
    }

    /// Never: a frame has two samples or more.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Bins of a spectrum, N/2 + 1.
    pub fn bins(&self) -> usize {
        self.len() / 2 + 1
    }

    /// The transform forth as the weights of a product, (2 · bins, N): `spectrum = W x`.
    pub fn forward_weights(&self) -> Vec<f32> {
        let turn = std::f64::consts::TAU / self.len() as f64;
        let wave = |i: usize, n: usize| {
            let angle = turn * (i / 2 * n % self.len()) as f64;
            let wave = if i.is_multiple_of(2) { angle.cos() } else { -angle.sin() };
            (wave * f64::from(self.analysis[n])) as f32
        };
        (0..2 * self.bins()).flat_map(|i| (0..self.len()).map(move |n| wave(i, n))).collect()
    }

    /// The transform back as the weights of a product, ([`Stft::out_len`], 2 · bins): `y = W spectrum`.
    pub fn inverse_weights(&self) -> Vec<f32> {
        let (len, out, bins) = (self.len(), self.out_len(), self.bins());
        let turn = std::f64::consts::TAU / len as f64;
        let wave = |m: usize, i: usize| {
            let (bin, outer) = (i / 2, i / 2 == 0 || i / 2 == bins - 1);
            let angle = turn * (bin * (len - out + m) % len) as f64;
            let wave = match (i.is_multiple_of(2), outer) {
                (true, true) => angle.cos(),
                (true, false) => 2.0 * angle.cos(),
                (false, true) => 0.0,
                (false, false) => -2.0 * angle.sin(),
            };
            (wave * f64::from(self.synthesis[m]) / len as f64) as f32
        };
        (0..out).flat_map(|m| (0..2 * bins).map(move |i| wave(m, i))).collect()
    }

    /// Values of working memory that both directions need.
    pub fn work_len(&self) -> usize {
        self.len() + 2 * self.forward.get_scratch_len().max(self.inverse.get_scratch_len())
    }

    /// `spectrum = RFFT(w · x)`: N samples to 2 (N/2 + 1) values.
    ///
    /// # Panics
    /// A slice has another length, or `work` fewer than [`Stft::work_len`] values.
    pub fn analyse(&self, x: &[f32], spectrum: &mut [f32], work: &mut [f32]) {
        assert!(x.len() == self.len(), "stft: expected {} samples, got {}", self.len(), x.len());
        self.check(spectrum.len(), work.len());
        let (frame, scratch) = work.split_at_mut(self.len());
        for ((f, x), w) in frame.iter_mut().zip(x).zip(&self.analysis) {
            *f = x * w;
        }
        let scratch = &mut complex(scratch)[..self.forward.get_scratch_len()];
        let done = self.forward.process_with_scratch(frame, complex(spectrum), scratch);
        debug_assert!(done.is_ok(), "the lengths were checked");
    }

    /// `y = v · IRFFT(spectrum)`: the frame's share, to be added to its neighbours'. The imaginary parts of the first and
    /// the last bin, which no real signal has, are ignored. `spectrum` is used up.
    ///
    /// # Panics
    /// `y` has not [`Stft::out_len`] values, or as [`Stft::analyse`].
    pub fn synthesise(&self, spectrum: &mut [f32], y: &mut [f32], work: &mut [f32]) {
        assert!(y.len() == self.out_len(), "stft: expected {} samples, got {}", self.out_len(), y.len());
        self.check(spectrum.len(), work.len());
        let last = spectrum.len() - 1;
        (spectrum[1], spectrum[last]) = (0.0, 0.0);
        let (frame, scratch) = work.split_at_mut(self.len());
        let scratch = &mut complex(scratch)[..self.inverse.get_scratch_len()];
        let done = self.inverse.process_with_scratch(complex(spectrum), frame, scratch);
        debug_assert!(done.is_ok(), "the lengths were checked and the outer bins are real");
        let scale = 1.0 / self.len() as f32;
        let frame = &frame[self.len() - y.len()..];
        y.iter_mut().zip(frame).zip(&self.synthesis).for_each(|((y, x), w)| *y = x * (w * scale));
    }

    fn check(&self, spectrum: usize, work: usize) {
        let bins = self.bins();
        assert!(spectrum == 2 * bins, "stft: expected {} spectrum values, got {spectrum}", 2 * bins);
        assert!(work >= self.work_len(), "stft: expected {} values of work, got {work}", self.work_len());
    }
}

/// Pairs of floats as complex numbers; an odd one at the end is left out.
fn complex(x: &mut [f32]) -> &mut [Complex32] {
    // SAFETY: Complex32 is repr(C) of two f32 and has their alignment; len / 2 of them lie within the exclusive borrow.
    unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), x.len() / 2) }
}
