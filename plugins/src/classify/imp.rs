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

use crate::model::{Counters, ModelSettings};
use crate::results::{ClassScore, Results};
use crate::state::{self, Stateful};
use crate::timeline::{Follows, GapPolicy, follows};
use gst::ClockTime;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;
use gst_video::{VideoCapsBuilder, VideoFormat, VideoFrameRef, VideoInfo};
use ssm_models::frontend::image::{ImagePlan, PixelFormat, Plane, Yuv};
use ssm_models::kernels::Cx;
use ssm_models::kernels::activation::softmax;
use ssm_models::{Engine, Error, Options, Signal, Snapshot, SnapshotHeader, Stream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("ssmclassify", gst::DebugColorFlags::empty(), Some("State-space video classifier"))
});

/// Frame time where caps say none.
const DEFAULT_FRAME: ClockTime = ClockTime::from_mseconds(40);

#[derive(Clone)]
struct Settings {
    model: ModelSettings,
    labels_file: Option<String>,
    threshold: f64,
    top_k: u32,
    inference_interval: u32,
    carry: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: ModelSettings::new(None, 0),
            labels_file: None,
            threshold: 0.0,
            top_k: 5,
            inference_interval: 1,
            carry: false,
        }
    }
}

/// What is open from READY to NULL.
struct Open {
    engine: Arc<Engine>,
    labels: Option<Arc<[String]>>,
}

/// What flows between two caps.
struct Flow {
    info: VideoInfo,
    plan: ImagePlan,
    cx: Cx,
    stream: Stream,
    labels: Option<Arc<[String]>>,
    /// When the next frame is expected.
    expected: Option<ClockTime>,
    /// Frames since the last inference.
    waited: u32,
    warned: bool,
    scores: Vec<f32>,
    order: Vec<u32>,
}

#[derive(Default)]
pub struct Classify {
    settings: Mutex<Settings>,
    open: Mutex<Option<Open>>,
    flow: Mutex<Option<Flow>>,
    restore: Mutex<Option<Vec<u8>>>,
    reset: AtomicBool,
    counters: Counters,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The formats that the front end reads.
const FORMATS: [VideoFormat; 13] = [
    VideoFormat::Rgb,
    VideoFormat::Bgr,
    VideoFormat::Rgbx,
    VideoFormat::Bgrx,
    VideoFormat::Xrgb,
    VideoFormat::Xbgr,
    VideoFormat::Rgba,
    VideoFormat::Bgra,
    VideoFormat::Argb,
    VideoFormat::Abgr,
    VideoFormat::Gray8,
    VideoFormat::I420,
    VideoFormat::Nv12,
];

/// The front end's name of a format; `None` for one that is not in [`FORMATS`].
fn pixels(info: &VideoInfo) -> Option<PixelFormat> {
    let colour = info.colorimetry();
    let full = colour.range() == gst_video::VideoColorRange::Range0_255;
    let yuv = match (colour.matrix(), full) {
        (gst_video::VideoColorMatrix::Bt709, true) => Yuv::Bt709Full,
        (gst_video::VideoColorMatrix::Bt709, false) => Yuv::Bt709Limited,
        (_, true) => Yuv::Bt601Full,
        (_, false) => Yuv::Bt601Limited,
    };
    Some(match info.format() {
        VideoFormat::Rgb => PixelFormat::Rgb,
        VideoFormat::Bgr => PixelFormat::Bgr,
        VideoFormat::Rgbx => PixelFormat::Rgbx,
        VideoFormat::Bgrx => PixelFormat::Bgrx,
        VideoFormat::Xrgb => PixelFormat::Xrgb,
        VideoFormat::Xbgr => PixelFormat::Xbgr,
        VideoFormat::Rgba => PixelFormat::Rgba,
        VideoFormat::Bgra => PixelFormat::Bgra,
        VideoFormat::Argb => PixelFormat::Argb,
        VideoFormat::Abgr => PixelFormat::Abgr,
        VideoFormat::Gray8 => PixelFormat::Gray8,
        VideoFormat::I420 => PixelFormat::I420(yuv),
        VideoFormat::Nv12 => PixelFormat::Nv12(yuv),
        _ => return None,
    })
}

impl Classify {
    /// Opens the engine that the settings ask for, unless it is open already.
    fn open(&self) -> Result<(), Error> {
        let settings = lock(&self.settings).clone();
        let engine = settings.model.engine(Options { carry: settings.carry, ..Options::default() })?;
        let (Signal::Image { .. }, Signal::Logits { classes }) = (engine.info().input, engine.info().output) else {
            let info = engine.info();
            return Err(Error::Config {
                file: settings.model.model.unwrap_or_default(),
                field: "family".into(),
                expected: "a model from frames to class scores".into(),
                got: format!("{} ({:?} to {:?})", info.family, info.input, info.output),
            });
        };
        let labels = settings.labels_file.as_deref().map(|file| labels(file, classes)).transpose()?;
        let mut open = lock(&self.open);
        let known = open.as_ref().is_some_and(|open| Arc::ptr_eq(&open.engine, &engine));
        if !known {
            self.counters.state_bytes.store(engine.model().layout().bytes() as u64, Ordering::Relaxed);
            if settings.model.post_messages {
                let _ = self.obj().post_message(settings.model.message(self.obj().upcast_ref(), &engine));
            }
        }
        *open = Some(Open { engine, labels });
        Ok(())
    }

    fn new_flow(&self, caps: &gst::Caps) -> Result<Flow, Error> {
        let bad = |field: &str, expected: String, got: String| Error::Config {
            file: "caps".into(),
            field: field.into(),
            expected,
            got,
        };
        let info = VideoInfo::from_caps(caps).map_err(|e| bad("video/x-raw", "whole caps".into(), e.to_string()))?;
        let format =
            pixels(&info).ok_or_else(|| bad("format", "one of the template".into(), info.format().to_string()))?;
        let open = lock(&self.open);
        let Some(Open { engine, labels }) = &*open else {
            return Err(bad("model", "an open model".into(), "none".into()));
        };
        let Signal::Image { height, width, channels } = engine.info().input else {
            return Err(bad("model", "a model of frames".into(), engine.info().family.into()));
        };
        if channels != 3 {
            return Err(bad("model", "three colour planes".into(), channels.to_string()));
        }
        let size = (info.height() as usize, info.width() as usize);
        let plan = ImagePlan::new(size, format, (height, width))?;
        let mut stream = engine.stream(1);
        if let Some(bytes) = lock(&self.restore).take() {
            let mut snapshot = Snapshot::load(&bytes, engine.info(), engine.model().layout())?;
            if let Some(state) = snapshot.states.pop() {
                *stream.state() = state;
            }
        }
        Ok(Flow {
            info,
            plan,
            cx: Cx::new(1)?,
            stream,
            labels: labels.clone(),
            expected: None,
            waited: u32::MAX,
            warned: false,
            scores: Vec::new(),
            order: Vec::new(),
        })
    }

    /// What the network says of one frame; `None` if it was not asked.
    fn infer(
        &self,
        flow: &mut Flow,
        settings: &Settings,
        buffer: &gst::BufferRef,
    ) -> Result<Option<Results>, gst::FlowError> {
        let frame_time = buffer.duration().or_else(|| {
            let fps = flow.info.fps();
            let (num, den) = (u64::try_from(fps.numer()).ok()?, u64::try_from(fps.denom()).ok()?);
            (num > 0).then(|| ClockTime::from_nseconds(ClockTime::SECOND.nseconds() * den / num))
        });
        let frame_time = frame_time.filter(|t| !t.is_zero()).unwrap_or(DEFAULT_FRAME);
        if self.reset.swap(false, Ordering::Relaxed) {
            self.reset_state(flow);
        }
        let tolerance = frame_time / 2;
        match follows(flow.expected, buffer.pts(), tolerance, settings.model.max_gap.max(tolerance)) {
            Follows::On => {}
            Follows::Jump => self.reset_state(flow),
            Follows::Gap(missing) => match settings.model.gap_policy {
                GapPolicy::Step => flow.stream.gap(missing.nseconds() as f64 / frame_time.nseconds() as f64),
                GapPolicy::Hold => {}
                GapPolicy::Reset => self.reset_state(flow),
            },
        }
        flow.expected = buffer.pts().or(flow.expected).map(|t| t + frame_time);
        flow.waited = flow.waited.saturating_add(1);
        if flow.waited < settings.inference_interval {
            flow.stream.gap(1.0);
            Counters::add(&self.counters.dropped, 1);
            return Ok(None);
        }
        flow.waited = 0;
        let frame = VideoFrameRef::from_buffer_ref_readable(buffer, &flow.info).map_err(|_| {
            gst::element_imp_error!(
                self,
                gst::StreamError::Format,
                ("frame at {}: expected {} bytes, got {}", buffer.pts().display(), flow.info.size(), buffer.size())
            );
            gst::FlowError::Error
        })?;
        let mut planes = [Plane { data: &[], stride: 0 }; 3];
        for (i, plane) in planes.iter_mut().enumerate().take(frame.n_planes() as usize) {
            plane.data = frame.plane_data(i as u32).unwrap_or_default();
            plane.stride = usize::try_from(frame.plane_stride()[i]).unwrap_or(0);
        }
        let planes = &planes[..frame.n_planes() as usize];
        let done = flow.plan.run(&flow.cx, planes, &mut flow.stream.row().x).and_then(|()| flow.stream.run(1));
        if let Err(error) = done {
            gst::element_imp_error!(self, gst::StreamError::Failed, ("{error}"));
            return Err(gst::FlowError::Error);
        }
        Counters::add(&self.counters.steps, 1);
        flow.scores.clear();
        flow.scores.extend_from_slice(&flow.stream.row().y);
        if let Some(i) = flow.scores.iter().position(|s| !s.is_finite()) {
            Counters::add(&self.counters.not_finite, 1);
            if !std::mem::replace(&mut flow.warned, true) {
                let (value, at) = (flow.scores[i], buffer.pts().display());
                gst::element_imp_warning!(
                    self,
                    gst::StreamError::Decode,
                    ("frame at {at}: expected a finite score of class {i}, got {value}; the state is reset")
                );
            }
            self.reset_state(flow);
            return Ok(None);
        }
        flow.warned = false;
        softmax(&mut flow.scores);
        let k = (settings.top_k as usize).min(flow.scores.len());
        let scores = &flow.scores;
        flow.order.clear();
        flow.order.extend(0..scores.len() as u32);
        let better = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
        if k < flow.order.len() {
            flow.order.select_nth_unstable_by(k, better);
        }
        flow.order[..k].sort_unstable_by(better);
        let classes = flow.order[..k].iter().map(|i| ClassScore {
            index: *i,
            label: flow.labels.as_ref().and_then(|l| l.get(*i as usize).cloned()),
            score: f64::from(scores[*i as usize]),
        });
        let classes = classes.filter(|c| c.score >= settings.threshold).collect();
        let step = self.counters.steps.load(Ordering::Relaxed);
        Ok(Some(Results::classes(&self.obj().name(), buffer, step, classes)))
    }

    fn reset_state(&self, flow: &mut Flow) {
        flow.stream.reset();
        flow.expected = None;
        Counters::add(&self.counters.resets, 1);
    }

    /// Writes `state-out`, if it is set.
    fn write_state(&self) {
        let Some(path) = lock(&self.settings).model.state_out.clone() else { return };
        let Some(bytes) = self.save() else { return };
        if let Err(error) = state::write(&path, &bytes) {
            gst::element_imp_error!(self, gst::ResourceError::Write, ("state-out: {path}: {error}"));
        }
    }
}

/// Names of `classes` classes, one a line.
fn labels(file: &str, classes: usize) -> Result<Arc<[String]>, Error> {
    let bad =
        |expected: String, got: String| Error::Config { file: file.into(), field: "labels-file".into(), expected, got };
    let text = std::fs::read_to_string(file).map_err(|e| bad("a text file".into(), e.to_string()))?;
    let lines: Vec<String> = text.trim_end().lines().map(|l| l.trim().to_owned()).collect();
    if lines.len() != classes {
        return Err(bad(format!("{classes} lines (the model's classes)"), format!("{} lines", lines.len())));
    }
    Ok(lines.into())
}

#[glib::object_subclass]
impl ObjectSubclass for Classify {
    const NAME: &'static str = "GstSsmClassify";
    type Type = super::Classify;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for Classify {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let defaults = Settings::default();
            let mut properties = defaults.model.properties();
            properties.extend([
                glib::ParamSpecString::builder("labels-file")
                    .nick("Labels file")
                    .blurb("Names of the classes, one a line")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecDouble::builder("threshold")
                    .nick("Threshold")
                    .blurb("Classes of a lower probability are not told")
                    .minimum(0.0)
                    .maximum(1.0)
                    .default_value(defaults.threshold)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt::builder("top-k")
                    .nick("Top k")
                    .blurb("Classes told for each frame at most, best first")
                    .minimum(1)
                    .default_value(defaults.top_k)
                    .mutable_playing()
                    .build(),
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
        let mut settings = lock(&self.settings);
        match pspec.name() {
            "labels-file" => settings.labels_file = value.get().ok().flatten(),
            "threshold" => settings.threshold = value.get().unwrap_or(settings.threshold),
            "top-k" => settings.top_k = value.get().unwrap_or(settings.top_k),
            "inference-interval" => settings.inference_interval = value.get().unwrap_or(settings.inference_interval),
            "carry" => settings.carry = value.get().unwrap_or(settings.carry),
            name => {
                settings.model.set(name, value);
            }
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let engine = lock(&self.open).as_ref().map(|o| o.engine.clone());
        let settings = lock(&self.settings);
        match pspec.name() {
            "labels-file" => settings.labels_file.to_value(),
            "threshold" => settings.threshold.to_value(),
            "top-k" => settings.top_k.to_value(),
            "inference-interval" => settings.inference_interval.to_value(),
            "carry" => settings.carry.to_value(),
            name => settings
                .model
                .get(name)
                .or_else(|| self.counters.get(name, engine.as_deref()))
                .unwrap_or_else(|| pspec.default_value().clone()),
        }
    }

    fn signals() -> &'static [glib::subclass::Signal] {
        static SIGNALS: LazyLock<Vec<glib::subclass::Signal>> = LazyLock::new(state::signals::<Classify>);
        &SIGNALS
    }
}

impl Stateful for Classify {
    fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    fn save(&self) -> Option<Vec<u8>> {
        let mut flow = lock(&self.flow);
        let flow = flow.as_mut()?;
        let mut header = SnapshotHeader::default();
        if let Some(pts) = flow.expected {
            header.extra.insert("pts".into(), pts.nseconds().to_string());
        }
        let engine = flow.stream.engine().clone();
        let snapshot = Snapshot { states: vec![flow.stream.state().clone()], pending: vec![], header };
        match snapshot.save(engine.info(), engine.model().layout()) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                gst::error!(CAT, imp = self, "{error}");
                None
            }
        }
    }

    fn load(&self, bytes: &[u8]) -> bool {
        let open = lock(&self.open).as_ref().map(|o| o.engine.clone());
        if let Some(engine) = open {
            match Snapshot::load(bytes, engine.info(), engine.model().layout()) {
                Ok(mut snapshot) => {
                    if let (Some(flow), Some(state)) = (lock(&self.flow).as_mut(), snapshot.states.pop()) {
                        *flow.stream.state() = state;
                        flow.expected = None;
                        return true;
                    }
                }
                Err(error) => {
                    gst::element_imp_warning!(self, gst::ResourceError::Settings, ("load-state: {error}"));
                    return false;
                }
            }
        }
        *lock(&self.restore) = Some(bytes.to_vec());
        true
    }
}

impl GstObjectImpl for Classify {}

impl ElementImpl for Classify {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "State-space video classifier",
                "Filter/Analyzer/Video",
                "Classes of each frame by a vision state-space network (Vim, VMamba); pixels pass untouched",
                "gst-plugin-ssm developers",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let caps = VideoCapsBuilder::new().format_list(FORMATS).build();
            [("sink", gst::PadDirection::Sink), ("src", gst::PadDirection::Src)]
                .into_iter()
                .filter_map(|(name, direction)| {
                    gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &caps).ok()
                })
                .collect()
        });
        &TEMPLATES
    }

    fn change_state(&self, transition: gst::StateChange) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        if matches!(transition, gst::StateChange::NullToReady | gst::StateChange::ReadyToPaused)
            && let Err(error) = self.open()
        {
            gst::element_imp_error!(self, gst::ResourceError::OpenRead, ("{error}"));
            return Err(gst::StateChangeError);
        }
        let done = self.parent_change_state(transition)?;
        if transition == gst::StateChange::ReadyToNull {
            *lock(&self.open) = None;
        }
        Ok(done)
    }
}

impl BaseTransformImpl for Classify {
    const MODE: gst_base::subclass::BaseTransformMode = gst_base::subclass::BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let Some(path) = lock(&self.settings).model.state_in.clone() else { return Ok(()) };
        let bytes = std::fs::read(&path)
            .map_err(|e| gst::error_msg!(gst::ResourceError::NotFound, ("state-in: {path}: {e}")))?;
        *lock(&self.restore) = Some(bytes);
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        self.write_state();
        *lock(&self.flow) = None;
        Ok(())
    }

    fn set_caps(&self, incaps: &gst::Caps, _outcaps: &gst::Caps) -> Result<(), gst::LoggableError> {
        match self.new_flow(incaps) {
            Ok(flow) => {
                *lock(&self.flow) = Some(flow);
                Ok(())
            }
            Err(error) => {
                gst::element_imp_error!(self, gst::CoreError::Negotiation, ("{error}"));
                Err(gst::loggable_error!(CAT, "{error}"))
            }
        }
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        use gst::EventView;
        let reset = match event.view() {
            EventView::FlushStop(_) => true,
            EventView::Segment(e) => {
                let current = self.obj().segment();
                // The first segment finds none before it.
                lock(&self.flow).as_ref().is_some_and(|f| f.expected.is_some()) && current != *e.segment()
            }
            EventView::CustomDownstream(e) => e.structure().is_some_and(|s| s.name() == "ssm-reset"),
            EventView::Eos(_) => {
                self.write_state();
                false
            }
            _ => false,
        };
        if reset && let Some(flow) = lock(&self.flow).as_mut() {
            self.reset_state(flow);
        }
        self.parent_sink_event(event)
    }

    fn transform_ip(&self, buffer: &mut gst::BufferRef) -> Result<gst::FlowSuccess, gst::FlowError> {
        let settings = lock(&self.settings).clone();
        let results = {
            let mut flow = lock(&self.flow);
            let Some(flow) = flow.as_mut() else {
                gst::element_imp_error!(self, gst::CoreError::Negotiation, ("frame before caps"));
                return Err(gst::FlowError::NotNegotiated);
            };
            self.infer(flow, &settings, buffer)?
        };
        let Some(results) = results else { return Ok(gst::FlowSuccess::Ok) };
        results.attach(buffer).map_err(|error| {
            gst::element_imp_error!(self, gst::StreamError::Failed, ("results: {error}"));
            gst::FlowError::Error
        })?;
        if settings.model.post_messages {
            let obj = self.obj();
            let _ = obj.post_message(results.message(obj.upcast_ref(), "ssmclassify", Some(&obj.segment())));
        }
        Ok(gst::FlowSuccess::Ok)
    }
}
