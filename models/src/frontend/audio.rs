//! Samples to the normalised log-mel frames that audio classifiers take in.
//!
//! Upstream's loaders subtract the mean of the whole clip first. A stream cannot know it, and each Kaldi frame loses its
//! own mean anyway, so that step is left out: the results differ by rounding only.

use crate::config::Fields;
use crate::error::Error;
use serde_json::Value;
use ssm_kernels::fbank::{Config, Fbank, Spectrum, Work};

/// What follows a clip that is shorter than the network's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pad {
    /// Frames of zeros, before normalisation.
    Zero,
    /// The last frame, again and again.
    Edge,
}

/// A front end: samples in, normalised frames out.
#[derive(Debug)]
pub struct AudioFrontend {
    fbank: Fbank,
    mean: f32,
    scale: f32,
    pad: Pad,
}

impl AudioFrontend {
    /// The front end that a configuration describes, with `bins` mel bins unless it names a number itself.
    ///
    /// Fields, all optional: `kind` (`kaldi_fbank`, the default, or `librosa`, the front end of Epic-Sounds),
    /// `sample_rate` in Hz (16000; 24000), `num_mel_bins`, `frame_length_ms`, `frame_shift_ms`, `low_freq`, `high_freq`
    /// (Hz, 0 or less: counted from half the rate), `preemphasis`, `remove_dc_offset`, `use_power`, `mean` and `std`
    /// (or `norm_mean`, `norm_std`): frames become `(x - mean) / (2 std)`, or stay as they are without them.
    ///
    /// # Errors
    /// A field has a value that this front end cannot follow; `file` names where it stands.
    pub fn from_config(config: &Value, bins: usize, file: &str) -> Result<Self, Error> {
        Self::read(config, bins, file, false)
    }

    /// As [`AudioFrontend::from_config`], but frame t ends with sample (t + 1) · hop: every hop of samples gives one frame,
    /// with zeros in front of the stream's first sample.
    ///
    /// # Errors
    /// As [`AudioFrontend::from_config`].
    pub fn per_hop(config: &Value, bins: usize, file: &str) -> Result<Self, Error> {
        Self::read(config, bins, file, true)
    }

    fn read(config: &Value, bins: usize, file: &str, per_hop: bool) -> Result<Self, Error> {
        let fields = Fields::new(Some(config), file);
        let number = |names: &[&str]| fields.number(names).map(|v| v.map(f64::from));
        let bins = fields.size(&["num_mel_bins"])?.unwrap_or(bins);
        let rate = number(&["sample_rate"])?;
        let (mut c, pad) = match fields.word(&["kind"])?.as_deref() {
            None | Some("kaldi_fbank") => (Config::kaldi(rate.unwrap_or(16_000.0), bins), Pad::Zero),
            Some(word) if word.starts_with("librosa") => (Config::librosa(rate.unwrap_or(24_000.0), bins), Pad::Edge),
            Some(word) => return Err(fields.bad("kind", "kaldi_fbank or librosa", word)),
        };
        // Kaldi cuts where librosa's user rounded.
        let whole = |samples: f64| if c.lead == 0 { samples as usize } else { samples.round() as usize };
        let samples = |ms: f64| whole(c.sample_rate * ms * 1e-3);
        let (frame, hop) = (number(&["frame_length_ms"])?.map(samples), number(&["frame_shift_ms"])?.map(samples));
        c.hop = hop.unwrap_or(c.hop);
        if let Some(frame) = frame {
            c.frame = frame;
            if c.lead == 0 {
                c.fft = c.frame.min(1 << 16).next_power_of_two();
            } else {
                c.lead = c.frame / 2;
            }
        }
        c.low = number(&["low_freq"])?.unwrap_or(c.low);
        c.high = match fields.get(&["high_freq"]) {
            Some((_, Value::String(word))) if word == "nyquist" => c.sample_rate / 2.0,
            _ => match number(&["high_freq"])? {
                Some(f) if f <= 0.0 => c.sample_rate / 2.0 + f,
                Some(f) => f,
                None => c.high,
            },
        };
        // 0.97 as it is written, not as f32 has it.
        c.preemphasis = fields.get(&["preemphasis"]).and_then(|(_, v)| v.as_f64()).unwrap_or(c.preemphasis);
        c.remove_mean = fields.flag(&["remove_dc_offset"])?.unwrap_or(c.remove_mean);
        if let Some(power) = fields.flag(&["use_power"])? {
            c.spectrum = if power { Spectrum::Power } else { Spectrum::Magnitude };
        }
        // What is fixed here must not be asked for otherwise.
        for field in ["use_log", "snip_edges"] {
            if fields.flag(&[field])? == Some(false) {
                return Err(fields.bad(field, "true", "false"));
            }
        }
        if let Some(dither) = number(&["dither"])?.filter(|d| *d != 0.0) {
            return Err(fields.bad("dither", "0", dither));
        }
        if let Some(window) = fields.word(&["window"])?.filter(|w| !w.starts_with("hann")) {
            return Err(fields.bad("window", "hanning", window));
        }
        let (mean, std) = (fields.number(&["mean", "norm_mean"])?, fields.number(&["std", "norm_std"])?);
        let std = match (mean, std) {
            (Some(_), Some(std)) if std > 0.0 => std,
            (None, None) => 0.5,
            (_, std) => {
                let got = std.map_or("nothing".into(), |v| v.to_string());
                return Err(fields.bad("std", "a number above 0 beside the mean", got));
            }
        };
        if per_hop {
            c.lead = c.frame.saturating_sub(c.hop);
        }
        let fbank = Fbank::new(c).map_err(|e| Error::Config {
            file: file.into(),
            field: e.field.into(),
            expected: e.expected,
            got: e.got,
        })?;
        Ok(Self { fbank, mean: mean.unwrap_or(0.0), scale: 2.0 * std, pad })
    }

    /// The frames before normalisation.
    pub fn fbank(&self) -> &Fbank {
        &self.fbank
    }

    /// Mel bins of a frame.
    pub fn bins(&self) -> usize {
        self.fbank.config().bins
    }

    /// Samples a second.
    pub fn sample_rate(&self) -> f64 {
        self.fbank.config().sample_rate
    }

    /// Samples from one frame to the next.
    pub fn hop(&self) -> usize {
        self.fbank.config().hop
    }

    /// A raw value as the network sees it.
    pub fn normalise(&self, x: f32) -> f32 {
        (x - self.mean) / self.scale
    }

    /// Takes samples in, writes the normalised frames that are complete to the front of `out` and returns their number;
    /// any cut of the samples gives the same frames (see [`Fbank::push`]).
    ///
    /// # Panics
    /// `out` does not hold `x.len() / hop + 1` frames, the state has another length than the front end's, or `work` was
    /// made for another one.
    pub fn push(&self, state: &mut [f32], x: &[f32], work: &mut Work, out: &mut [f32]) -> usize {
        let mut frames = 0;
        self.fbank.push(state, x, work, |frame| self.keep(frame, &mut frames, out));
        frames
    }

    /// Ends a stream: the frames that reach past its end, as [`AudioFrontend::push`] gives frames.
    ///
    /// # Panics
    /// As [`AudioFrontend::push`].
    pub fn finish(&self, state: &mut [f32], work: &mut Work, out: &mut [f32]) -> usize {
        let mut frames = 0;
        self.fbank.finish(state, work, |frame| self.keep(frame, &mut frames, out));
        frames
    }

    fn keep(&self, frame: &[f32], frames: &mut usize, out: &mut [f32]) {
        let out = &mut out[*frames * frame.len()..][..frame.len()];
        out.iter_mut().zip(frame).for_each(|(o, x)| *o = self.normalise(*x));
        *frames += 1;
    }

    /// A whole clip of samples as a network's input: `frames` rows of bins.
    pub fn clip(&self, samples: &[f32], frames: usize) -> Vec<f32> {
        let (fbank, bins) = (&self.fbank, self.bins());
        let total = fbank.clip_frames(samples.len() as u64) as usize;
        let (mut state, mut work) = (vec![0.0; fbank.state_len()], fbank.work());
        let mut out = vec![0.0; (total + 1).max(frames) * bins];
        let given = self.push(&mut state, samples, &mut work, &mut out);
        let last = self.finish(&mut state, &mut work, &mut out[given * bins..]);
        out.truncate(frames * bins);
        self.pad(&mut out, given + last);
        out
    }

    /// Cuts or pads a clip: the first `frames` rows of `clip` hold `given` normalised frames at their front.
    ///
    /// # Panics
    /// `clip` does not hold whole frames.
    pub fn pad(&self, clip: &mut [f32], given: usize) {
        let bins = self.bins();
        assert!(clip.len().is_multiple_of(bins), "clip: {} values are no whole frames of {bins}", clip.len());
        let end = (given * bins).min(clip.len());
        if self.pad == Pad::Edge && end > 0 {
            for at in (end..clip.len()).step_by(bins) {
                clip.copy_within(end - bins..end, at);
            }
        } else {
            clip[end..].fill(self.normalise(0.0));
        }
    }
}
