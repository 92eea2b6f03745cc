//! # ssmaudiotag
//!
//! Classes of what is heard, by an audio network (Audio Mamba). The audio passes untouched.
//!
//! ```text
//! gst-launch-1.0 -m filesrc location=street.wav ! wavparse ! audioconvert ! audioresample ! \
//!     ssmaudiotag model=aum-base_audioset-vggsound.pth labels-file=audioset.txt activation=sigmoid ! fakesink
//! ```
//!
//! `F32LE` or `S16LE` at the model's rate, any number of channels, which are mixed. Every `inference-interval` frames of
//! the model's front end (10 ms each in the published models) there is a result: the scores of the clip that ends there.
//! A clip is what the network was trained on (10.24 s for AudioSet); at the beginning it is padded as in training. A
//! network that reads time in one direction goes on for ever instead. The result's time is that of the newest frames.
//!
//! State: as in `ssmvad`. What does not fill an interval at the end of stream is completed with silence; its result goes
//! ahead of the end of stream as an event `ssm-results`, since there is no buffer left to carry it.

use crate::analyser::{self, Analyser, Found, Shared};
use crate::base::{lock, metadata, templates, unfit};
use crate::classes::{ClassSettings, Ranking};
use crate::ear::Heard;
use crate::model::ModelSettings;
use crate::pace::Zero;
use crate::reload::{self, Modelled};
use crate::results::Results;
use crate::{ear, state};
use gst::prelude::*;
use gst::subclass::prelude::*;
use ssm_models::{Engine, Error, Listen, Options, Signal};
use std::sync::{Arc, LazyLock, Mutex};

#[derive(Clone)]
struct Settings {
    model: ModelSettings,
    classes: ClassSettings,
    inference_interval: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { model: ModelSettings::new(None, 0), classes: ClassSettings::default(), inference_interval: 0 }
    }
}

#[derive(Default)]
pub struct AudioTag {
    shared: Shared<Ranking>,
    settings: Mutex<Settings>,
    ranking: Mutex<Ranking>,
}

impl Modelled for AudioTag {
    fn options(&self) -> Options {
        let frames = lock(&self.settings).inference_interval as usize;
        Options { listen: Listen::Samples(frames), ..Options::default() }
    }

    fn fits(&self, engine: &Arc<Engine>, model: &ModelSettings) -> Result<Self::Fit, Error> {
        let (Signal::Samples { .. }, Signal::Logits { classes }) = (engine.info().input, engine.info().output) else {
            return Err(unfit(model, "a model from samples to class scores", engine));
        };
        Ranking::new(&lock(&self.settings).classes, &engine.info().facts, classes)
    }

    fn adopt(&self, ranking: Ranking) {
        *lock(&self.ranking) = ranking;
    }
}

impl Analyser for AudioTag {
    const FACTORY: &'static str = "ssmaudiotag";

    fn shared(&self) -> &Shared<Self::Fit> {
        &self.shared
    }

    fn every(&self) -> (u32, Zero) {
        (lock(&self.settings).inference_interval, Zero::Second)
    }

    fn silence(&self) -> String {
        lock(&self.settings).classes.silence()
    }

    fn heard(&self, heard: Heard<'_>, _buffer: Option<&gst::BufferRef>, found: &mut Found) {
        let Heard::Step { start, end, step, y } = heard else { return };
        let settings = lock(&self.settings).classes.clone();
        let ranking = &mut *lock(&self.ranking);
        ranking.shares(&settings, y);
        let classes = ranking.best(&settings, y);
        let time = (Some(start), Some(end.saturating_sub(start)));
        found.results.push(Results::classes(self.obj().name(), time, step, classes));
    }
}

analyser::hand_on!(AudioTag, Ranking);

#[glib::object_subclass]
impl ObjectSubclass for AudioTag {
    const NAME: &'static str = "GstSsmAudioTag";
    type Type = super::AudioTag;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for AudioTag {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let defaults = Settings::default();
            let mut properties = defaults.model.properties();
            properties.extend(defaults.classes.properties());
            properties.push(
                glib::ParamSpecUInt::builder("inference-interval")
                    .nick("Inference interval")
                    .blurb(
                        "Frames of the front end (10 ms each in published models) from one result to the next; 0: a \
                         second, or a column of patches where the network reads in one direction",
                    )
                    .maximum(1 << 16)
                    .default_value(defaults.inference_interval)
                    .mutable_ready()
                    .build(),
            );
            properties
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        {
            let Settings { model, classes, inference_interval } = &mut *lock(&self.settings);
            match pspec.name() {
                "inference-interval" => *inference_interval = value.get().unwrap_or(*inference_interval),
                name => _ = classes.set(name, value) || model.set(name, value),
            }
        }
        reload::changed(self, pspec.name());
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let Settings { model, classes, inference_interval } = lock(&self.settings).clone();
        match pspec.name() {
            "inference-interval" => inference_interval.to_value(),
            name => classes.get(name).unwrap_or_else(|| self.shared.base.property(&model, pspec)),
        }
    }

    fn signals() -> &'static [glib::subclass::Signal] {
        static SIGNALS: LazyLock<Vec<glib::subclass::Signal>> = LazyLock::new(state::signals::<AudioTag>);
        &SIGNALS
    }
}

impl ElementImpl for AudioTag {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            metadata(
                "State-space audio classifier",
                "Filter/Analyzer/Audio",
                "Classes of what is heard by an audio state-space network (Audio Mamba); the audio passes untouched",
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
