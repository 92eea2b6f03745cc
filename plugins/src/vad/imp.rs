//! # ssmvad
//!
//! Tells where there is speech, by the second head of a denoiser (`builtin:denoise` has one). The audio passes untouched.
//!
//! ```text
//! gst-launch-1.0 -m filesrc location=talk.wav ! wavparse ! audioconvert ! audioresample ! ssmvad ! fakesink
//! ```
//!
//! `F32LE` or `S16LE` at the model's rate (16 kHz for the builtin), any number of channels, which are mixed. The network
//! sees a frame of 32 ms every 10 ms, most of it where it is 10 ms old, and gives the probability that there is speech. It
//! stands for the 10 ms around that place, so it is known 15 ms after these begin. Each is a result in the meta of the buffer
//! that completed its frame.
//!
//! A message `ssm-vad` tells each start and each end of speech: `state` (`start` or `end`), `pts`, `running-time` and
//! `stream-time` of the place, at the end also `start` (`pts` of the start) and `duration`, all in ns. Speech begins where
//! the probability has been at `threshold` or above for `min-speech`, and ends where it has been below for `min-silence`.
//! Every start has its end: the end of stream, a flush and every reset close what is open. Probabilities and messages do
//! not depend on how the audio is cut into buffers.
//!
//! State: as in `ssmdenoise`. A gap counts as silence. With `state-out` an open stretch goes into the snapshot at the end
//! of stream and is closed by the run that goes on from it.

use super::segments::{Rules, Segments, Turn};
use crate::analyser::{self, Analyser, Found, Shared};
use crate::base::{lock, metadata, templates, unfit};
use crate::classes::sigmoid;
use crate::ear::Heard;
use crate::model::ModelSettings;
use crate::reload::{self, Modelled};
use crate::results::Results;
use crate::{ear, state};
use gst::ClockTime;
use gst::prelude::*;
use gst::subclass::prelude::*;
use ssm_models::{Engine, Error, Options, Output, Signal, SnapshotHeader};
use std::sync::{Arc, LazyLock, Mutex};

const DEFAULT_MODEL: &str = "builtin:denoise";

#[derive(Clone)]
struct Settings {
    model: ModelSettings,
    rules: Rules,
    audio_level_meta: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let (min_speech, min_silence) = (ClockTime::from_mseconds(50), ClockTime::from_mseconds(200));
        let rules = Rules { threshold: 0.5, min_speech, min_silence };
        Self { model: ModelSettings::new(Some(DEFAULT_MODEL), 1), rules, audio_level_meta: false }
    }
}

#[derive(Default)]
pub struct Vad {
    shared: Shared<()>,
    settings: Mutex<Settings>,
    segments: Mutex<Segments>,
}

/// Level as RFC 6464 counts it (section 3): decibels of the root mean square below full scale, 127 for silence.
fn level(samples: &[f32]) -> u8 {
    let power = samples.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>() / samples.len().max(1) as f64;
    (-10.0 * power.log10()).round().clamp(0.0, 127.0) as u8
}

/// A turn as a message without its times in the segment, and its place.
fn message(turn: Turn) -> (gst::Structure, Option<ClockTime>) {
    let message = |state: &str, at: ClockTime| {
        gst::Structure::builder("ssm-vad").field("state", state).field("pts", at.nseconds())
    };
    match turn {
        Turn::Start(at) => (message("start", at).build(), Some(at)),
        Turn::End(start, at) => {
            let duration = at.saturating_sub(start).nseconds();
            let message = message("end", at).field("start", start.nseconds()).field("duration", duration);
            (message.build(), Some(at))
        }
    }
}

impl Modelled for Vad {
    fn options(&self) -> Options {
        Options { output: Output::Speech, ..Options::default() }
    }

    fn fits(&self, engine: &Arc<Engine>, model: &ModelSettings) -> Result<Self::Fit, Error> {
        let Signal::Samples { .. } = engine.info().input else {
            return Err(unfit(model, "a model from samples to speech scores", engine));
        };
        Ok(())
    }

    fn adopt(&self, (): ()) {}
}

impl Analyser for Vad {
    const FACTORY: &'static str = "ssmvad";

    fn shared(&self) -> &Shared<Self::Fit> {
        &self.shared
    }

    fn posts_results(&self) -> bool {
        false
    }

    fn silence(&self) -> String {
        let Rules { threshold, min_speech, .. } = lock(&self.settings).rules;
        format!("there was no speech of threshold={threshold} for min-speech={min_speech}")
    }

    fn heard(&self, heard: Heard<'_>, _buffer: Option<&gst::BufferRef>, found: &mut Found) {
        let rules = lock(&self.settings).rules;
        let mut segments = lock(&self.segments);
        let turn = match heard {
            Heard::Step { start, end, step, y } => {
                let probability = y.first().map_or(0.0, |y| f64::from(sigmoid(*y)));
                let time = (Some(start), Some(end.saturating_sub(start)));
                found.results.push(Results::speech(self.obj().name(), time, step, probability));
                segments.step(&rules, probability, start, end)
            }
            Heard::Gap { from, to } => segments.gap(&rules, from, to),
            Heard::After { .. } => None,
            Heard::End { at } => segments.end(at),
        };
        found.messages.extend(turn.map(message));
    }

    fn mark(&self, buffer: &mut gst::BufferRef, samples: &[f32]) {
        if lock(&self.settings).audio_level_meta {
            let voice = lock(&self.segments).open.is_some();
            // Readers take the first one: another element's would hide this one.
            while let Some(other) = buffer.meta_mut::<gst_audio::AudioLevelMeta>() {
                if other.remove().is_err() {
                    break;
                }
            }
            gst_audio::AudioLevelMeta::add(buffer, level(samples), voice);
        }
    }

    fn keep(&self, header: &mut SnapshotHeader) {
        let segments = *lock(&self.segments);
        for (name, time) in [("open", segments.open), ("since", segments.since)] {
            if let Some(time) = time {
                header.extra.insert(name.into(), time.nseconds().to_string());
            }
        }
    }

    fn resume(&self, header: &SnapshotHeader) -> Result<(), Error> {
        let time = |name: &str| {
            let ns = header.extra.get(name)?.parse().ok().filter(|ns: &u64| *ns < 1 << 62)?;
            Some(ClockTime::from_nseconds(ns))
        };
        *lock(&self.segments) = Segments { open: time("open"), since: time("since") };
        Ok(())
    }
}

analyser::hand_on!(Vad, ());

#[glib::object_subclass]
impl ObjectSubclass for Vad {
    const NAME: &'static str = "GstSsmVad";
    type Type = super::Vad;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for Vad {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let defaults = Settings::default();
            let time = |name: &'static str, nick: &'static str, blurb: &'static str, default: ClockTime| {
                glib::ParamSpecUInt64::builder(name)
                    .nick(nick)
                    .blurb(blurb)
                    .maximum(ClockTime::from_seconds(3600).nseconds())
                    .default_value(default.nseconds())
                    .mutable_playing()
                    .build()
            };
            let mut properties = defaults.model.properties();
            properties.extend([
                glib::ParamSpecDouble::builder("threshold")
                    .nick("Threshold")
                    .blurb("Steps of this probability or a higher one are speech")
                    .minimum(0.0)
                    .maximum(1.0)
                    .default_value(defaults.rules.threshold)
                    .mutable_playing()
                    .build(),
                time(
                    "min-speech",
                    "Shortest speech",
                    "Shorter stretches of speech are not told, in ns",
                    defaults.rules.min_speech,
                ),
                time(
                    "min-silence",
                    "Shortest silence (hangover)",
                    "Shorter pauses are part of the speech around them, in ns",
                    defaults.rules.min_silence,
                ),
                glib::ParamSpecBoolean::builder("audio-level-meta")
                    .nick("Audio level meta")
                    .blurb("Add a GstAudioLevelMeta with level and voice activity to each buffer (RFC 6464)")
                    .default_value(defaults.audio_level_meta)
                    .mutable_playing()
                    .build(),
            ]);
            properties
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        {
            let Settings { model, rules, audio_level_meta } = &mut *lock(&self.settings);
            match pspec.name() {
                "threshold" => rules.threshold = value.get().unwrap_or(rules.threshold),
                "min-speech" => rules.min_speech = value.get().map_or(rules.min_speech, ClockTime::from_nseconds),
                "min-silence" => rules.min_silence = value.get().map_or(rules.min_silence, ClockTime::from_nseconds),
                "audio-level-meta" => *audio_level_meta = value.get().unwrap_or(*audio_level_meta),
                name => _ = model.set(name, value),
            }
        }
        reload::changed(self, pspec.name());
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let Settings { model, rules, audio_level_meta } = lock(&self.settings).clone();
        match pspec.name() {
            "threshold" => rules.threshold.to_value(),
            "min-speech" => rules.min_speech.nseconds().to_value(),
            "min-silence" => rules.min_silence.nseconds().to_value(),
            "audio-level-meta" => audio_level_meta.to_value(),
            _ => self.shared.base.property(&model, pspec),
        }
    }

    fn signals() -> &'static [glib::subclass::Signal] {
        static SIGNALS: LazyLock<Vec<glib::subclass::Signal>> = LazyLock::new(state::signals::<Vad>);
        &SIGNALS
    }
}

impl ElementImpl for Vad {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            metadata(
                "State-space voice activity detector",
                "Filter/Analyzer/Audio",
                "Tells where there is speech, by a state-space network whose state lives as long as the stream; the audio \
                 passes untouched",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| templates(&ear::caps(), &ear::caps()));
        &TEMPLATES
    }

    fn change_state(&self, transition: gst::StateChange) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        analyser::change_state(self, transition)
    }
}
