//! Log-mel frames of audio, clip by clip or as the samples come.
//!
//! ```text
//! f   = x[t·hop - lead ..][..frame]           samples before the first count as 0
//! f   = f - mean(f)                           if remove_mean
//! f_i = f_i - p·f_{i-1},  f_0 = f_0 - p·f_0   pre-emphasis p
//! s_k = |Σ_i w_i f_i e^{-2πi·ik/fft}|         k = 0 ..= fft/2, squared or not
//! y_m = ln(max(Σ_k M_mk s_k, floor))          or ln(Σ_k M_mk s_k + floor)
//! ```
//!
//! [`Config::kaldi`] is Kaldi's `fbank` (Povey et al. 2011) with the options that audio transformers use it with,
//! [`Config::librosa`] librosa's centred short-time transform with the HTK mel bank. Everything is computed in f64 and
//! rounded once at the end. The transform is planned once; a frame allocates nothing. Samples that are no numbers make
//! the frames they lie in silent.

mod agree;
mod bank;

use bank::Bank;
use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};
use std::f64::consts::TAU;
use std::sync::Arc;

/// Largest transform that is planned.
const MAX_FFT: usize = 1 << 16;

/// Shape of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// `0.5 - 0.5 cos(2π i / (frame - 1))`: both ends are 0.
    HannSymmetric,
    /// `0.5 - 0.5 cos(2π i / frame)`: one period.
    HannPeriodic,
}

/// What is summed under a mel triangle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spectrum {
    /// Squared magnitude.
    Power,
    /// Magnitude.
    Magnitude,
}

/// Where a triangle's edges are straight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mel {
    /// On the mel axis, `1127 ln(1 + f/700)`; the bin at half the rate is left out.
    Kaldi,
    /// On the frequency axis, between points equally spaced in `2595 log10(1 + f/700)`.
    Htk,
}

/// What keeps the logarithm finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Floor {
    /// Smaller energies are raised to this value.
    Max(f64),
    /// This value is added.
    Add(f64),
}

impl Floor {
    /// The logarithm of an energy; one that is no number counts as silence.
    fn ln(self, energy: f64) -> f64 {
        match self {
            Floor::Max(floor) => energy.max(floor).ln(),
            Floor::Add(floor) => (energy.max(0.0) + floor).ln(),
        }
    }
}

/// How frames are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Hz.
    pub sample_rate: f64,
    /// Samples of a frame.
    pub frame: usize,
    /// Samples from one frame to the next; `frame` at most.
    pub hop: usize,
    /// Values of the transform; the frame is followed by zeros.
    pub fft: usize,
    /// Zeros before the first sample: half a frame where frames are centred.
    pub lead: usize,
    /// Window.
    pub window: Window,
    /// Whether each frame's own mean is subtracted.
    pub remove_mean: bool,
    /// Pre-emphasis; 0 for none.
    pub preemphasis: f64,
    /// Power or magnitude.
    pub spectrum: Spectrum,
    /// Form of the triangles.
    pub mel: Mel,
    /// Number of triangles.
    pub bins: usize,
    /// Lower edge of the first triangle in Hz.
    pub low: f64,
    /// Upper edge of the last triangle in Hz.
    pub high: f64,
    /// Floor of the logarithm.
    pub floor: Floor,
}

impl Config {
    /// Kaldi's `fbank`: 25 ms every 10 ms, symmetric Hann window, pre-emphasis 0.97, power, 20 Hz to half the rate, no
    /// padding at the edges, floor 2^-23.
    pub fn kaldi(sample_rate: f64, bins: usize) -> Self {
        let frame = (sample_rate * 0.025) as usize;
        Self {
            sample_rate,
            frame,
            hop: (sample_rate * 0.01) as usize,
            fft: frame.min(MAX_FFT).next_power_of_two(),
            lead: 0,
            window: Window::HannSymmetric,
            remove_mean: true,
            preemphasis: 0.97,
            spectrum: Spectrum::Power,
            mel: Mel::Kaldi,
            bins,
            low: 20.0,
            high: sample_rate / 2.0,
            floor: Floor::Max(f64::from(f32::EPSILON)),
        }
    }

    /// librosa's `stft` and `filters.mel(htk=True, norm=None)`: 10 ms every 5 ms, centred, periodic Hann window,
    /// magnitude, 0 Hz to half the rate, 1e-6 added (the front end of Epic-Sounds at 24 kHz).
    pub fn librosa(sample_rate: f64, bins: usize) -> Self {
        let frame = (sample_rate * 0.01).round() as usize;
        Self {
            sample_rate,
            frame,
            hop: (sample_rate * 0.005).round() as usize,
            fft: 2048,
            lead: frame / 2,
            window: Window::HannPeriodic,
            remove_mean: false,
            preemphasis: 0.0,
            spectrum: Spectrum::Magnitude,
            mel: Mel::Htk,
            bins,
            low: 0.0,
            high: sample_rate / 2.0,
            floor: Floor::Add(1e-6),
        }
    }

    /// The logarithm of silence: the smallest value a frame can hold.
    pub fn silence(&self) -> f32 {
        self.floor.ln(0.0) as f32
    }
}

/// A configuration that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fbank: {field}: expected {expected}, got {got}")]
pub struct ConfigError {
    /// The field of [`Config`].
    pub field: &'static str,
    /// What would do.
    pub expected: String,
    /// What was there.
    pub got: String,
}

/// A planned front end: immutable, shared by any number of streams.
pub struct Fbank {
    config: Config,
    window: Vec<f64>,
    bank: Bank,
    transform: Arc<dyn RealToComplex<f64>>,
}

impl std::fmt::Debug for Fbank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.config.fmt(f)
    }
}

/// Working memory of one frame.
pub struct Work {
    buffers: Buffers,
    row: Vec<f32>,
}

struct Buffers {
    time: Vec<f64>,
    freq: Vec<Complex<f64>>,
    scratch: Vec<Complex<f64>>,
    spectrum: Vec<f64>,
}

impl Fbank {
    /// Plans a front end.
    ///
    /// # Errors
    /// A field is out of range; the message names it.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let c = &config;
        let check = |field, holds: bool, expected: String, got: String| {
            if holds { Ok(()) } else { Err(ConfigError { field, expected, got }) }
        };
        let rate = c.sample_rate;
        check("sample_rate", (1.0..=1e9).contains(&rate), "a rate above 1 Hz".into(), rate.to_string())?;
        let frame = 2..=c.fft.min(MAX_FFT);
        check("frame", frame.contains(&c.frame), format!("{frame:?} samples"), c.frame.to_string())?;
        let even = c.fft.is_multiple_of(2) && c.fft <= MAX_FFT;
        check("fft", even, format!("an even number up to {MAX_FFT}"), c.fft.to_string())?;
        check("hop", (1..=c.frame).contains(&c.hop), format!("1 to {} samples", c.frame), c.hop.to_string())?;
        check("lead", c.lead < c.frame, format!("fewer than {} samples", c.frame), c.lead.to_string())?;
        check("bins", (1..=c.fft).contains(&c.bins), format!("1 to {}", c.fft), c.bins.to_string())?;
        let band = 0.0 <= c.low && c.low < c.high && c.high <= rate / 2.0;
        check("high", band, format!("0 <= low < high <= {}", rate / 2.0), format!("{} to {}", c.low, c.high))?;
        let period = if c.window == Window::HannSymmetric { c.frame - 1 } else { c.frame } as f64;
        Ok(Self {
            window: (0..c.frame).map(|i| 0.5 - 0.5 * (TAU * i as f64 / period).cos()).collect(),
            bank: Bank::new(c),
            transform: RealFftPlanner::new().plan_fft_forward(c.fft),
            config,
        })
    }

    /// How frames are made.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The window, `frame` values.
    pub fn window(&self) -> &[f64] {
        &self.window
    }

    /// The mel bank, `bins` rows of `fft/2 + 1` weights.
    pub fn mel_bank(&self) -> Vec<f64> {
        self.bank.dense(self.config.fft / 2 + 1)
    }

    /// Working memory; one per thread that makes frames.
    pub fn work(&self) -> Work {
        let buffers = Buffers {
            time: self.transform.make_input_vec(),
            freq: self.transform.make_output_vec(),
            scratch: self.transform.make_scratch_vec(),
            spectrum: vec![0.0; self.config.fft / 2 + 1],
        };
        Work { buffers, row: vec![0.0; self.config.bins] }
    }

    /// Whether `work` was made for this front end or one of the same sizes.
    pub fn fits(&self, work: &Work) -> bool {
        work.buffers.time.len() == self.transform.len()
            && work.buffers.scratch.len() >= self.transform.get_scratch_len()
            && work.row.len() == self.config.bins
    }

    /// Frames that a stream has given after `samples` samples.
    pub fn frames(&self, samples: u64) -> u64 {
        let (c, n) = (&self.config, samples.saturating_add(self.config.lead as u64));
        if n < c.frame as u64 { 0 } else { 1 + (n - c.frame as u64) / c.hop as u64 }
    }

    /// Frames of a clip of `samples` samples: those of a stream that ends there.
    pub fn clip_frames(&self, samples: u64) -> u64 {
        if self.config.lead == 0 { self.frames(samples) } else { 1 + samples / self.config.hop as u64 }
    }

    /// One frame: `frame` samples to `bins` values.
    ///
    /// # Panics
    /// A length differs, or `work` belongs to other sizes.
    pub fn frame(&self, samples: &[f32], work: &mut Work, out: &mut [f32]) {
        let c = &self.config;
        assert!(samples.len() == c.frame, "fbank: expected {} samples, got {}", c.frame, samples.len());
        assert!(out.len() == c.bins, "fbank: expected {} bins, got {}", c.bins, out.len());
        assert!(self.fits(work), "fbank: working memory of other sizes");
        self.compute(samples, &mut work.buffers, out);
    }

    fn compute(&self, samples: &[f32], work: &mut Buffers, out: &mut [f32]) {
        let c = &self.config;
        let mean =
            if c.remove_mean { samples.iter().map(|x| f64::from(*x)).sum::<f64>() / c.frame as f64 } else { 0.0 };
        let (time, rest) = work.time.split_at_mut(c.frame);
        let mut before = f64::from(samples[0]) - mean;
        for ((t, x), w) in time.iter_mut().zip(samples).zip(&self.window) {
            let x = f64::from(*x) - mean;
            *t = (x - c.preemphasis * before) * w;
            before = x;
        }
        rest.fill(0.0);
        let done = self.transform.process_with_scratch(&mut work.time, &mut work.freq, &mut work.scratch);
        debug_assert!(done.is_ok(), "the lengths were checked");
        for (s, z) in work.spectrum.iter_mut().zip(&work.freq) {
            *s = if c.spectrum == Spectrum::Power { z.norm_sqr() } else { z.norm_sqr().sqrt() };
        }
        for (m, out) in out.iter_mut().enumerate() {
            *out = c.floor.ln(self.bank.energy(m, &work.spectrum)) as f32;
        }
    }

    /// Values of a stream's state: how many samples wait beyond `lead`, then a frame of samples. Zeros are a stream that
    /// has heard nothing.
    pub fn state_len(&self) -> usize {
        1 + self.config.frame
    }

    /// Takes samples in and calls `sink` with every frame that is complete. Any cut of the samples gives the same bits.
    ///
    /// # Panics
    /// The state has another length than [`Fbank::state_len`], or `work` belongs to other sizes.
    pub fn push(&self, state: &mut [f32], mut x: &[f32], work: &mut Work, mut sink: impl FnMut(&[f32])) {
        let c = &self.config;
        let (mut waiting, held) = self.waiting(state);
        assert!(self.fits(work), "fbank: working memory of other sizes");
        while !x.is_empty() {
            let (now, later) = x.split_at(x.len().min(c.frame - waiting));
            held[waiting..][..now.len()].copy_from_slice(now);
            waiting += now.len();
            x = later;
            if waiting == c.frame {
                self.compute(held, &mut work.buffers, &mut work.row);
                sink(&work.row);
                held.copy_within(c.hop.., 0);
                waiting -= c.hop;
            }
        }
        state[0] = waiting as f32 - c.lead as f32;
    }

    /// Ends a stream: calls `sink` with the frames whose centre lies inside it and that reach past its end, zeros in
    /// place of what is missing. Without `lead` there are none. The state is spent afterwards.
    ///
    /// # Panics
    /// As [`Fbank::push`].
    pub fn finish(&self, state: &mut [f32], work: &mut Work, mut sink: impl FnMut(&[f32])) {
        let c = &self.config;
        let (mut waiting, held) = self.waiting(state);
        assert!(self.fits(work), "fbank: working memory of other sizes");
        while c.lead > 0 && waiting >= c.lead {
            held[waiting..].fill(0.0);
            self.compute(held, &mut work.buffers, &mut work.row);
            sink(&work.row);
            held.copy_within(c.hop.., 0);
            waiting = waiting.saturating_sub(c.hop);
        }
        state.fill(0.0);
    }

    /// Samples that wait, `lead` zeros of a fresh stream included, and the memory they lie in. A state from outside
    /// whose count cannot be is taken for a fresh one.
    fn waiting<'a>(&self, state: &'a mut [f32]) -> (usize, &'a mut [f32]) {
        let c = &self.config;
        assert!(
            state.len() == self.state_len(),
            "fbank: expected a state of {}, got {}",
            self.state_len(),
            state.len()
        );
        let (count, held) = state.split_at_mut(1);
        let waiting = f64::from(count[0]) + c.lead as f64;
        let whole = (0.0..c.frame as f64).contains(&waiting);
        (if whole { waiting as usize } else { c.lead }, held)
    }
}
