//! # ssmevents
//!
//! Events in video, with their beginning and end: a model of frames with carried state scores every frame, and where the
//! scores rise something happened. The frames pass untouched.
//!
//! ```text
//! gst-launch-1.0 -m filesrc location=film.mp4 ! decodebin ! videoconvert ! ssmevents ! fakesink
//! ```
//!
//! Without a `model` the builtin network finds shot transitions: cuts, dissolves, fades, wipes. Any model from frames to
//! class scores runs, above all composites (docs/composites.md). The class `cut` marks single
//! frames, `none` and `background` mark nothing, every other class lasts (`labels-file` names those of a model that does not). A cut is told where its probability is at
//! `threshold` or above and the largest of five frames, `cooldown` after the cut before at the earliest. Of the lasting
//! classes an event is a stretch of frames whose largest probability is at `low-threshold` or above and reaches
//! `threshold`; the class with the most of it names it. Events do not overlap: the one with the larger score stands.
//!
//! A message `ssm-event` tells each event once it can no longer change: `kind` (the class's name), `class` (its index),
//! `score`, `start` (`pts` of the last frame wholly of what was before), `end` (`pts` of the first frame wholly of what
//! comes after), `pts` (a cut's `end`, else the middle), `duration`, `stream-time` and `running-time` of `pts`, all in ns.
//! The same goes as a result of kind `event` with the buffer that decided it, and with `frame-scores` a result of kind
//! `classes` of each frame, under that frame's time. The model's look-ahead and two frames pass from an event's end to its
//! message; the frames themselves are not held back.
//!
//! A model that was trained at so many steps a second gets every second frame of a video twice as fast, and so on
//! (`inference-interval` = 0).
//!
//! State: as in `ssmclassify`. At the end of stream the last frame stands for those that the look-ahead still wants and
//! what is open is told; with `state-out` it goes into the snapshot instead. A flush, a new segment and every reset tell
//! what is known.

use super::finder::{Event, Finder, Kinds, Mark, Rules};
use crate::analyser::{self, Analyser, Found, Shared};
use crate::base::{lock, metadata, templates, unfit};
use crate::classes::{ClassSettings, Ranking};
use crate::ear::Heard;
use crate::model::ModelSettings;
use crate::reload::{self, Modelled};
use crate::results::{EventResult, Results};
use crate::{eye, state};
use gst::ClockTime;
use gst::prelude::*;
use gst::subclass::prelude::*;
use ssm_models::{Engine, Error, Options, Signal, SnapshotHeader};
use std::sync::{Arc, LazyLock, Mutex};

const DEFAULT_MODEL: &str = "builtin:shots";

#[derive(Clone)]
struct Settings {
    model: ModelSettings,
    classes: ClassSettings,
    rules: Rules,
    frame_scores: bool,
    inference_interval: u32,
    carry: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let rules = Rules { threshold: 0.5, low: 0.25, cooldown: ClockTime::from_mseconds(200).nseconds() };
        Self {
            model: ModelSettings::new(Some(DEFAULT_MODEL), 1),
            classes: ClassSettings::all(),
            rules,
            frame_scores: true,
            inference_interval: 0,
            carry: false,
        }
    }
}

/// What belongs to the open model.
#[derive(Default)]
pub struct Fit {
    kinds: Kinds,
    ranking: Ranking,
    look_ahead: usize,
}

/// What belongs to the open model and to the stream.
#[derive(Default)]
struct Track {
    finder: Finder,
    fit: Fit,
}

#[derive(Default)]
pub struct Events {
    shared: Shared<Fit>,
    settings: Mutex<Settings>,
    track: Mutex<Track>,
}

impl Events {
    /// Events as results, and as messages without their times in the segment.
    fn report(&self, track: &Track, step: u64, events: &[Event], found: &mut Found) {
        for event in events {
            let name = track.fit.ranking.labels().get(event.kind);
            let kind = name.map_or_else(|| format!("class {}", event.kind), |name| name.to_string());
            // A start that lies ahead is of another clock: the state came from another process.
            let (end, pts) = (event.end.pts, event.pts());
            let start = event.start.pts.min(end);
            let time = (Some(ClockTime::from_nseconds(pts)), Some(ClockTime::from_nseconds(end.saturating_sub(start))));
            let message = gst::Structure::builder("ssm-event")
                .field("kind", &kind)
                .field("class", event.kind as u32)
                .field("score", event.score)
                .field("start", start)
                .field("end", end)
                .field("pts", pts)
                .field("duration", end.saturating_sub(start));
            found.messages.push((message.build(), time.0));
            let result = EventResult { kind, class: event.kind as u32, score: event.score, start, end };
            found.results.push(Results::event(self.obj().name(), time, step, result));
        }
    }
}

impl Modelled for Events {
    fn options(&self) -> Options {
        Options { carry: lock(&self.settings).carry, ..Options::default() }
    }

    fn fits(&self, engine: &Arc<Engine>, model: &ModelSettings) -> Result<Self::Fit, Error> {
        let info = engine.info();
        let (Signal::Image { .. }, Signal::Logits { classes }) = (info.input, info.output) else {
            return Err(unfit(model, "a model from frames to class scores", engine));
        };
        let ranking = Ranking::new(&lock(&self.settings).classes, &info.facts, classes)?;
        let kinds = Kinds::new(ranking.labels(), classes);
        Ok(Fit { kinds, ranking, look_ahead: info.facts.look_ahead })
    }

    fn adopt(&self, fit: Fit) {
        lock(&self.track).fit = fit;
    }
}

impl Analyser for Events {
    const FACTORY: &'static str = "ssmevents";
    const OWN_TIME: bool = true;

    fn shared(&self) -> &Shared<Self::Fit> {
        &self.shared
    }

    fn interval(&self) -> u32 {
        lock(&self.settings).inference_interval
    }

    fn posts_results(&self) -> bool {
        false
    }

    fn silence(&self) -> String {
        format!("no event reached threshold={}", lock(&self.settings).rules.threshold)
    }

    fn heard(&self, heard: Heard<'_>, _buffer: Option<&gst::BufferRef>, found: &mut Found) {
        let settings = lock(&self.settings).clone();
        let track = &mut *lock(&self.track);
        let (rules, look_ahead) = (&settings.rules, track.fit.look_ahead);
        let Track { finder, fit: Fit { kinds, ranking, .. } } = track;
        // What is told after the last frame is told of its step.
        let (mut events, mut step) = (Vec::new(), finder.taken);
        // Frames of which no scores are known yet are told later.
        let scored = match heard {
            Heard::Step { start, end, step: number, y } => {
                (step, finder.taken) = (number, number);
                ranking.shares(&settings.classes, y);
                let frame = (start.nseconds(), end.nseconds());
                finder.step(rules, kinds, look_ahead, frame, y, &mut events).map(|frame| (frame, y))
            }
            Heard::After { y } => {
                ranking.shares(&settings.classes, y);
                finder.score(rules, kinds, y, &mut events).map(|frame| (frame, y))
            }
            Heard::End { .. } => {
                finder.end(rules, kinds, &mut events);
                None
            }
            Heard::Gap { .. } => None,
        };
        if let Some((Mark { pts, end, .. }, y)) = scored.filter(|_| settings.frame_scores) {
            let mut all = ranking.best(&settings.classes, y);
            all.sort_by_key(|c| c.index);
            let long = end.checked_sub(pts).filter(|ns| *ns > 0);
            let time = (Some(ClockTime::from_nseconds(pts)), long.map(ClockTime::from_nseconds));
            found.results.push(Results::classes(self.obj().name(), time, step, all));
        }
        self.report(track, step, &events, found);
    }

    fn keep(&self, header: &mut SnapshotHeader) {
        if let Ok(text) = serde_json::to_string(&lock(&self.track).finder) {
            header.extra.insert("finder".into(), text);
        }
    }

    fn resume(&self, header: &SnapshotHeader) -> Result<(), Error> {
        let finder = header.extra.get("finder").map_or_else(|| Ok(Finder::default()), |text| Finder::parse(text));
        lock(&self.track).finder = finder.map_err(|got| Error::Config {
            file: "snapshot".into(),
            field: "finder".into(),
            expected: "frames and events under way".into(),
            got,
        })?;
        Ok(())
    }
}

analyser::hand_on!(Events, Fit);

#[glib::object_subclass]
impl ObjectSubclass for Events {
    const NAME: &'static str = "GstSsmEvents";
    type Type = super::Events;
    type ParentType = gst_base::BaseTransform;
}

/// A property between 0 and 1.
fn share(name: &'static str, nick: &'static str, blurb: &'static str, default: f64) -> glib::ParamSpec {
    glib::ParamSpecDouble::builder(name)
        .nick(nick)
        .blurb(blurb)
        .minimum(0.0)
        .maximum(1.0)
        .default_value(default)
        .mutable_playing()
        .build()
}

impl ObjectImpl for Events {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let defaults = Settings::default();
            let mut properties = defaults.model.properties();
            properties.push(defaults.model.max_wait_property());
            properties.extend([
                ClassSettings::labels_property(),
                share("threshold", "Threshold", "Probability that an event reaches at least", defaults.rules.threshold),
                share(
                    "low-threshold",
                    "Lower threshold",
                    "A lasting event goes on down to this probability",
                    defaults.rules.low,
                ),
                glib::ParamSpecUInt64::builder("cooldown")
                    .nick("Cooldown")
                    .blurb("Shortest time from one cut to the next, in ns")
                    .maximum(ClockTime::from_seconds(3600).nseconds())
                    .default_value(defaults.rules.cooldown)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("frame-scores")
                    .nick("Frame scores")
                    .blurb("Put the probabilities of each frame into the buffers' meta, too, not only the events")
                    .default_value(defaults.frame_scores)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("inference-interval")
                    .nick("Inference interval")
                    .blurb("Every how many frames the model runs; 0: so that it runs about as often as in its training")
                    .default_value(defaults.inference_interval)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("carry")
                    .nick("Carry")
                    .blurb("Forward scans of a vision encoder go on from frame to frame")
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
                "threshold" => settings.rules.threshold = value.get().unwrap_or(settings.rules.threshold),
                "low-threshold" => settings.rules.low = value.get().unwrap_or(settings.rules.low),
                "cooldown" => settings.rules.cooldown = value.get().unwrap_or(settings.rules.cooldown),
                "frame-scores" => settings.frame_scores = value.get().unwrap_or(settings.frame_scores),
                "inference-interval" => {
                    settings.inference_interval = value.get().unwrap_or(settings.inference_interval)
                }
                "carry" => settings.carry = value.get().unwrap_or(settings.carry),
                "labels-file" => _ = settings.classes.set("labels-file", value),
                name => _ = settings.model.set(name, value),
            }
        }
        reload::changed(self, pspec.name());
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = lock(&self.settings).clone();
        match pspec.name() {
            "threshold" => settings.rules.threshold.to_value(),
            "low-threshold" => settings.rules.low.to_value(),
            "cooldown" => settings.rules.cooldown.to_value(),
            "frame-scores" => settings.frame_scores.to_value(),
            "inference-interval" => settings.inference_interval.to_value(),
            "carry" => settings.carry.to_value(),
            "labels-file" => settings.classes.get("labels-file").unwrap_or_else(|| None::<&str>.to_value()),
            _ => self.shared.base.property(&settings.model, pspec),
        }
    }

    fn signals() -> &'static [glib::subclass::Signal] {
        static SIGNALS: LazyLock<Vec<glib::subclass::Signal>> = LazyLock::new(state::signals::<Events>);
        &SIGNALS
    }
}

impl ElementImpl for Events {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            metadata(
                "State-space video events",
                "Filter/Analyzer/Video",
                "Events in video, with beginning and end, by a network whose state lives across frames; pixels pass untouched",
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
