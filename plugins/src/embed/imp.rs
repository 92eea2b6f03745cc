//! # ssmembed
//!
//! The vector that a network's head would see, of each video frame (Vim, VMamba) or each step of audio (Audio Mamba, the
//! builtin denoiser). The media passes untouched; the vector travels in the buffer's meta.
//!
//! ```text
//! gst-launch-1.0 filesrc location=video.mp4 ! decodebin ! videoconvert ! \
//!     ssmembed model=vim_t_midclstok_76p1acc.pth normalise=true ! ssmjson format=base64 ! filesink location=v.jsonl
//! ```
//!
//! What pads take follows from the model: frames as in `ssmclassify`, or audio as in `ssmaudiotag`. The numbers are those
//! of the published `forward_features`: the normed class token, or the mean over the tokens or pixels. Networks that
//! pool all tokens behind the head give the normed tokens one after the other.
//!
//! State: as in `ssmclassify` for frames (with `carry`), as in `ssmvad` for audio.

use crate::analyser::{self, Analyser, Found, Shared};
use crate::base::{lock, metadata, templates, unfit};
use crate::ear::Heard;
use crate::model::ModelSettings;
use crate::pace::Zero;
use crate::reload::{self, Modelled};
use crate::results::Results;
use crate::{ear, eye, state};
use gst::prelude::*;
use gst::subclass::prelude::*;
use ssm_models::{Engine, Error, Listen, Options, Output, Signal};
use std::sync::{Arc, LazyLock, Mutex};

#[derive(Clone)]
struct Settings {
    model: ModelSettings,
    normalise: bool,
    inference_interval: u32,
    carry: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { model: ModelSettings::new(None, 0), normalise: false, inference_interval: 0, carry: false }
    }
}

#[derive(Default)]
pub struct Embed {
    shared: Shared<()>,
    settings: Mutex<Settings>,
}

impl Modelled for Embed {
    fn options(&self) -> Options {
        let Settings { inference_interval, carry, .. } = *lock(&self.settings);
        // Of these each family looks at its own.
        let listen = Listen::Samples(inference_interval as usize);
        Options { output: Output::Features, listen, carry, ..Options::default() }
    }

    fn fits(&self, engine: &Arc<Engine>, model: &ModelSettings) -> Result<Self::Fit, Error> {
        match engine.info().input {
            Signal::Image { .. } | Signal::Samples { .. } => Ok(()),
            _ => Err(unfit(model, "a model of frames or samples", engine)),
        }
    }

    fn adopt(&self, (): ()) {}
}

impl Analyser for Embed {
    const FACTORY: &'static str = "ssmembed";

    fn shared(&self) -> &Shared<Self::Fit> {
        &self.shared
    }

    fn interval(&self) -> u32 {
        lock(&self.settings).inference_interval.max(1)
    }

    fn every(&self) -> (u32, Zero) {
        (lock(&self.settings).inference_interval, Zero::Each)
    }

    fn heard(&self, heard: Heard<'_>, buffer: Option<&gst::BufferRef>, found: &mut Found) {
        let Heard::Step { start, end, step, y } = heard else { return };
        if lock(&self.settings).normalise {
            let length = y.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() as f32;
            if length > 0.0 {
                y.iter_mut().for_each(|v| *v /= length);
            }
        }
        let time = crate::results::time_of(buffer, start, end);
        found.results.push(Results::vector(self.obj().name(), time, step, y));
    }
}

analyser::hand_on!(Embed, ());

#[glib::object_subclass]
impl ObjectSubclass for Embed {
    const NAME: &'static str = "GstSsmEmbed";
    type Type = super::Embed;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for Embed {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let defaults = Settings::default();
            let mut properties = defaults.model.properties();
            properties.push(defaults.model.max_wait_property());
            properties.extend([
                glib::ParamSpecBoolean::builder("normalise")
                    .nick("Normalise")
                    .blurb("Divide each vector by its length, so that a product of two is their cosine")
                    .default_value(defaults.normalise)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("inference-interval")
                    .nick("Inference interval")
                    .blurb(
                        "Every how many frames (video, or the audio front end's) there is a vector; 0: the model's own",
                    )
                    .maximum(1 << 16)
                    .default_value(defaults.inference_interval)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecBoolean::builder("carry")
                    .nick("Carry")
                    .blurb("Forward scans go on from frame to frame (published weights were trained without)")
                    .default_value(defaults.carry)
                    .mutable_ready()
                    .build(),
            ]);
            properties
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        {
            let settings = &mut *lock(&self.settings);
            match pspec.name() {
                "normalise" => settings.normalise = value.get().unwrap_or(settings.normalise),
                "inference-interval" => {
                    settings.inference_interval = value.get().unwrap_or(settings.inference_interval)
                }
                "carry" => settings.carry = value.get().unwrap_or(settings.carry),
                name => _ = settings.model.set(name, value),
            }
        }
        reload::changed(self, pspec.name());
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = lock(&self.settings).clone();
        match pspec.name() {
            "normalise" => settings.normalise.to_value(),
            "inference-interval" => settings.inference_interval.to_value(),
            "carry" => settings.carry.to_value(),
            _ => self.shared.base.property(&settings.model, pspec),
        }
    }

    fn signals() -> &'static [glib::subclass::Signal] {
        static SIGNALS: LazyLock<Vec<glib::subclass::Signal>> = LazyLock::new(state::signals::<Embed>);
        &SIGNALS
    }
}

impl ElementImpl for Embed {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            metadata(
                "State-space embedding",
                "Filter/Analyzer/Video/Audio",
                "Vectors of features of frames or audio by a state-space network; the media passes untouched",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let mut caps = eye::either();
            caps.merge(ear::caps());
            templates(&caps, &caps)
        });
        &TEMPLATES
    }

    fn change_state(&self, transition: gst::StateChange) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        analyser::change_state(self, transition)
    }
}
