//! # ssmclassify
//!
//! Classes of each video frame by a vision network (Vim, VMamba). The pixels pass untouched; the results travel as a
//! meta on the buffer and as a message on the bus.
//!
//! ```text
//! gst-launch-1.0 -m filesrc location=video.mp4 ! decodebin ! videoconvert ! \
//!     ssmclassify model=vim_t_midclstok_76p1acc.pth labels-file=imagenet.txt top-k=3 ! fakesink
//! ```
//!
//! The frame is scaled so that the shorter side is the network's size over 0.875 (bicubic, as Pillow does it), cut out of
//! the middle and normalised with ImageNet's mean and deviation, straight from the caps' format.
//!
//! State: by default each frame stands alone, as the published weights were trained. With `carry=true` the forward scans
//! go on from frame to frame; then the state is fresh at caps, aged over gaps up to `max-gap`, and fresh again after a
//! flush, a new segment, a longer gap, a jump back, or the signal `reset-state`.

use crate::analyser::{self, Analyser, Found, Shared};
use crate::base::{lock, metadata, templates, unfit};
use crate::classes::{ClassSettings, Ranking};
use crate::ear::Heard;
use crate::model::ModelSettings;
use crate::reload::{self, Modelled};
use crate::results::Results;
use crate::{eye, state};
use gst::prelude::*;
use gst::subclass::prelude::*;
use ssm_models::{Engine, Error, Options, Signal};
use std::sync::{Arc, LazyLock, Mutex};

#[derive(Clone)]
struct Settings {
    model: ModelSettings,
    classes: ClassSettings,
    inference_interval: u32,
    carry: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let classes = ClassSettings::default();
        Self { model: ModelSettings::new(None, 0), classes, inference_interval: 1, carry: false }
    }
}

#[derive(Default)]
pub struct Classify {
    shared: Shared<Ranking>,
    settings: Mutex<Settings>,
    ranking: Mutex<Ranking>,
}

impl Modelled for Classify {
    fn options(&self) -> Options {
        Options { carry: lock(&self.settings).carry, ..Options::default() }
    }

    fn fits(&self, engine: &Arc<Engine>, model: &ModelSettings) -> Result<Self::Fit, Error> {
        let (Signal::Image { .. }, Signal::Logits { classes }) = (engine.info().input, engine.info().output) else {
            return Err(unfit(model, "a model from frames to class scores", engine));
        };
        Ranking::new(&lock(&self.settings).classes, &engine.info().facts, classes)
    }

    fn adopt(&self, ranking: Ranking) {
        *lock(&self.ranking) = ranking;
    }
}

impl Analyser for Classify {
    const FACTORY: &'static str = "ssmclassify";

    fn shared(&self) -> &Shared<Self::Fit> {
        &self.shared
    }

    fn interval(&self) -> u32 {
        lock(&self.settings).inference_interval
    }

    #[cfg(feature = "v1_28")]
    fn tensor(&self) -> Option<usize> {
        let engine = self.shared.base.engine()?;
        match engine.info().output {
            // A tensor is of the buffer that it lies on.
            Signal::Logits { classes } if engine.info().facts.look_ahead == 0 => Some(classes),
            _ => None,
        }
    }

    fn silence(&self) -> String {
        lock(&self.settings).classes.silence()
    }

    fn heard(&self, heard: Heard<'_>, buffer: Option<&gst::BufferRef>, found: &mut Found) {
        let Heard::Step { start, end, step, y } = heard else { return };
        let settings = lock(&self.settings).classes.clone();
        let ranking = &mut *lock(&self.ranking);
        ranking.shares(&settings, y);
        #[cfg(feature = "v1_26")]
        if buffer.is_some() && self.shared.takes(y.len()) {
            found.tensors.push(crate::analytics::probabilities(y));
        }
        let classes = ranking.best(&settings, y);
        let time = crate::results::time_of(buffer, start, end);
        found.results.push(Results::classes(self.obj().name(), time, step, classes));
    }
}

analyser::hand_on!(Classify, Ranking);

#[glib::object_subclass]
impl ObjectSubclass for Classify {
    const NAME: &'static str = "GstSsmClassify";
    type Type = super::Classify;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for Classify {
    #[cfg(feature = "v1_28")]
    fn constructed(&self) {
        self.parent_constructed();
        // Else the caps of downstream, with the tensor in them, would be offered upstream as they are.
        gst_base::prelude::BaseTransformExt::set_prefer_passthrough(&*self.obj(), false);
    }

    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let defaults = Settings::default();
            let mut properties = defaults.model.properties();
            properties.push(defaults.model.max_wait_property());
            properties.extend(defaults.classes.properties());
            properties.extend([
                glib::ParamSpecUInt::builder("inference-interval")
                    .nick("Inference interval")
                    .blurb("Every how many frames the model runs; the others pass without results")
                    .minimum(1)
                    .default_value(defaults.inference_interval)
                    .mutable_playing()
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
                "inference-interval" => {
                    settings.inference_interval = value.get().unwrap_or(settings.inference_interval)
                }
                "carry" => settings.carry = value.get().unwrap_or(settings.carry),
                name => _ = settings.classes.set(name, value) || settings.model.set(name, value),
            }
        }
        reload::changed(self, pspec.name());
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = lock(&self.settings).clone();
        match pspec.name() {
            "inference-interval" => settings.inference_interval.to_value(),
            "carry" => settings.carry.to_value(),
            name => settings.classes.get(name).unwrap_or_else(|| self.shared.base.property(&settings.model, pspec)),
        }
    }

    fn signals() -> &'static [glib::subclass::Signal] {
        static SIGNALS: LazyLock<Vec<glib::subclass::Signal>> = LazyLock::new(state::signals::<Classify>);
        &SIGNALS
    }
}

impl ElementImpl for Classify {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            metadata(
                "State-space video classifier",
                "Filter/Analyzer/Video",
                "Classes of each frame by a vision state-space network (Vim, VMamba); pixels pass untouched",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| templates(&eye::either(), &eye::either()));
        &TEMPLATES
    }

    fn change_state(&self, transition: gst::StateChange) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        analyser::change_state(self, transition)
    }
}
