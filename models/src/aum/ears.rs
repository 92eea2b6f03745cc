//! How an Audio Mamba hears: clips, frames or samples, and what a stream of them keeps.

use super::config::Config;
use crate::config::Fields;
use crate::error::Error;
use crate::families::{Listen, Options};
use crate::frontend::audio::AudioFrontend;
use crate::mixer::{Mixer, MixerState};
use crate::model::{Row, Signal};
use crate::state::{State, StateLayout};
use crate::trunk::Class;
use serde_json::Value;
use ssm_kernels::fbank::Work;
use std::ops::Range;

/// Frames from one result of a sliding clip to the next, unless another number is asked for: a second.
const EVERY: usize = 100;

/// Most frames of a step.
const MAX_EVERY: usize = 1 << 16;

/// What comes in, and where a stream's part of it lies in the state.
pub(super) struct Ears {
    pub(super) listen: Listen,
    /// Frames of a step.
    pub(super) every: usize,
    /// Whether the stream is a recurrence over columns of patches.
    pub(super) causal: bool,
    pub(super) front: AudioFrontend,
    /// Samples that do not make a frame yet.
    samples: Range<usize>,
    /// The last frames: a whole clip, or those of a column of patches that is not complete.
    pub(super) frames: Range<usize>,
    /// Each block's tail and h, where they are kept.
    pub(super) layers: Vec<MixerState>,
    /// The slab from the first of them to the last.
    pub(super) kept: Range<usize>,
    /// Frames and samples of a step: one of them is what comes in.
    step: (usize, usize),
    patch: usize,
    stride: usize,
}

impl Ears {
    /// The ears that the options ask for, their state added to `layout`.
    pub(super) fn open<'a>(
        c: &Config,
        options: &Options,
        path: &str,
        mixers: impl Iterator<Item = &'a Mixer> + Clone,
        layout: &mut StateLayout,
    ) -> Result<Self, Error> {
        let fields = Fields::new(None, "options");
        let (patch, stride) = (c.patch.1, c.strides.1);
        let one_way = !mixers.clone().any(Mixer::is_bidirectional);
        let by_time = c.transpose_token_sequence || c.grid().0 == 1;
        let recurrent = one_way && by_time && c.class == Class::End && stride <= patch;
        let causal = recurrent && options.listen != Listen::Clip;
        if options.carry && options.listen != Listen::Clip {
            return Err(fields.bad("carry", "off where a stream of frames or samples is taken in", "on"));
        }
        let front = front_end(c, options, path)?;
        let every = match options.listen {
            Listen::Clip => c.clip.1,
            Listen::Frames(n) | Listen::Samples(n) if n > 0 => n,
            _ if causal => stride,
            _ => EVERY.min(c.clip.1),
        };
        if every > MAX_EVERY {
            return Err(fields.bad("listen", format!("{MAX_EVERY} frames a step at most"), every));
        }
        let samples = match options.listen {
            Listen::Samples(_) => layout.add("samples", &[front.fbank().state_len()]),
            _ => 0..0,
        };
        let frames = match options.listen {
            Listen::Clip => 0..0,
            _ => layout.add("frames", &[if causal { patch } else { c.clip.1 }, c.clip.0]),
        };
        let mut layers = Vec::new();
        if options.carry || causal {
            layers.extend(mixers.enumerate().map(|(i, m)| m.state(layout, &format!("layers.{i}"))));
        }
        let kept = match (layers.first(), layers.last()) {
            (Some(first), Some(last)) => first.conv.start..last.h.end,
            _ => 0..0,
        };
        let step = (every, every * front.hop());
        Ok(Self { listen: options.listen, every, causal, front, samples, frames, layers, kept, step, patch, stride })
    }

    /// What a step takes in.
    pub(super) fn input(&self) -> Signal {
        match self.listen {
            Listen::Samples(_) => Signal::Samples { hop: self.step.1, rate: self.front.sample_rate() as u32 },
            _ => Signal::Clip { frames: self.every, bins: self.front.bins() },
        }
    }

    /// Frames that a step completes at most.
    pub(super) fn fresh(&self) -> usize {
        let c = self.front.fbank().config();
        self.every + c.frame.div_ceil(c.hop)
    }

    /// Frames that a stream has taken in after `steps` steps.
    pub(super) fn frames_after(&self, steps: u64) -> u64 {
        match self.listen {
            Listen::Samples(_) => self.front.fbank().frames(steps.saturating_mul(self.step.1 as u64)),
            _ => steps.saturating_mul(self.step.0 as u64),
        }
    }

    /// Columns of patches that are complete after `frames` frames.
    pub(super) fn columns_after(&self, frames: u64) -> u64 {
        frames.checked_sub(self.patch as u64).map_or(0, |rest| rest / self.stride as u64 + 1)
    }

    /// The frames of step `step` of the row's input, or those that its samples complete, at the front of `fresh`;
    /// returns their number.
    pub(super) fn hear(&self, row: &mut Row, step: usize, work: &mut Work, fresh: &mut [f32]) -> usize {
        let n = self.input().len();
        let x = &row.x[step * n..][..n];
        match self.listen {
            Listen::Samples(_) => self.front.push(&mut row.state.data[self.samples.clone()], x, work, fresh),
            _ => {
                fresh[..n].copy_from_slice(x);
                self.every
            }
        }
    }

    /// Lets `steps` steps of silence pass in what was heard; returns the columns of patches that went by.
    pub(super) fn silence(&self, state: &mut State, steps: u64) -> u64 {
        let before = self.frames_after(state.steps);
        state.steps = state.steps.saturating_add(steps);
        let after = self.frames_after(state.steps);
        if matches!(self.listen, Listen::Samples(_)) {
            let samples = &mut state.data[self.samples.clone()];
            samples.fill(0.0);
            let (heard, used) = (state.steps.saturating_mul(self.step.1 as u64), after * self.front.hop() as u64);
            samples[0] = heard.wrapping_sub(used) as i64 as f32;
        }
        let bins = self.front.bins();
        let held = &mut state.data[self.frames.clone()];
        let new = (after - before).min((held.len() / bins) as u64) as usize * bins;
        let silence = self.front.normalise(self.front.fbank().config().silence());
        if self.causal {
            held.fill(silence);
        } else {
            held.copy_within(new.., 0);
            let at = held.len() - new;
            held[at..].fill(silence);
        }
        self.columns_after(after) - self.columns_after(before)
    }
}

/// The front end that a file's configuration describes.
pub(super) fn front_end(c: &Config, options: &Options, path: &str) -> Result<AudioFrontend, Error> {
    let said = options.config.as_ref().and_then(|c| c.get("frontend")).unwrap_or(&Value::Null);
    let front = AudioFrontend::from_config(said, c.clip.0, path)?;
    let fields = Fields::new(Some(said), path);
    if front.bins() != c.clip.0 {
        return Err(fields.bad("frontend.num_mel_bins", c.clip.0, front.bins()));
    }
    let described = fields.get(&["mean", "norm_mean", "kind"]).is_some();
    if matches!(options.listen, Listen::Samples(_)) && !described {
        let published = "the training set's mean and std, as AudioSet's -4.2677393 and 4.5689974 (config.json)";
        return Err(fields.bad("frontend.mean", published, "nothing"));
    }
    Ok(front)
}
