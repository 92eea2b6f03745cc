//! What every element with a model has in common: the properties that choose it, opening it, and its counters.

use crate::base::words;
use crate::timeline::{GapPolicy, ResetOn};
use glib::prelude::*;
use gst::ClockTime;
use gst::prelude::*;
use ssm_models::kernels::{Cx, linear};
use ssm_models::{Device, Engine, EngineKey, Error, Options, Placed, Signal, open};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Longest gap that a state is aged over by default.
const DEFAULT_MAX_GAP: ClockTime = ClockTime::from_seconds(1);

/// Precision of the model's large products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstSsmPrecision")]
pub(crate) enum Precision {
    #[default]
    #[enum_value(name = "32-bit floats, as published", nick = "f32")]
    F32,
    #[enum_value(name = "bfloat16: Vim, VMamba and Mamba, faster, rounded to 3 digits", nick = "bf16")]
    Bf16,
    #[enum_value(name = "8-bit integers: Vim, VMamba and Mamba, fastest, rounded to 2 digits", nick = "int8")]
    Int8,
}

/// The common properties. Texts are shared: streaming threads copy this for each buffer.
#[derive(Clone, Debug)]
pub(crate) struct ModelSettings {
    pub(crate) model: Option<Arc<str>>,
    pub(crate) allow_reload: bool,
    device: Arc<str>,
    precision: Precision,
    instance: Option<Arc<str>>,
    threads: u32,
    batch_size: u32,
    batch_timeout: u64,
    pub(crate) post_messages: bool,
    pub(crate) max_gap: ClockTime,
    pub(crate) gap_policy: GapPolicy,
    reset_on: ResetOn,
    /// Of elements that look at frames.
    max_wait: ClockTime,
    pub(crate) state_in: Option<Arc<str>>,
    pub(crate) state_out: Option<Arc<str>>,
}

impl ModelSettings {
    /// Defaults; `model` and `threads` differ between elements.
    pub(crate) fn new(model: Option<&str>, threads: u32) -> Self {
        Self {
            model: model.map(Arc::from),
            allow_reload: false,
            device: "auto".into(),
            precision: Precision::F32,
            instance: None,
            threads,
            batch_size: 16,
            batch_timeout: 0,
            post_messages: true,
            max_gap: DEFAULT_MAX_GAP,
            gap_policy: GapPolicy::default(),
            reset_on: ResetOn::default(),
            max_wait: ClockTime::ZERO,
            state_in: None,
            state_out: None,
        }
    }

    /// The properties, with this value's fields as defaults.
    pub(crate) fn properties(&self) -> Vec<glib::ParamSpec> {
        let text = |name: &'static str, nick: &'static str, blurb: &'static str, default: Option<&str>| {
            glib::ParamSpecString::builder(name).nick(nick).blurb(blurb).default_value(default).mutable_ready().build()
        };
        vec![
            glib::ParamSpecString::builder("model")
                .nick("Model")
                .blurb("Checkpoint file, or builtin:NAME; while playing it can be changed with allow-reload only")
                .default_value(self.model.as_deref())
                .mutable_playing()
                .build(),
            glib::ParamSpecBoolean::builder("allow-reload")
                .nick("Allow reload")
                .blurb("Setting the model while playing opens it in the background and goes on with it")
                .default_value(self.allow_reload)
                .mutable_playing()
                .build(),
            text("device", "Device", "Where the model runs: auto, cpu, cuda or cuda:N", Some(&self.device)),
            glib::ParamSpecEnum::builder_with_default("precision", self.precision)
                .nick("Precision")
                .blurb("Precision of the large products of Vim, VMamba, Mamba and Mamba-2; other models refuse all but f32")
                .mutable_ready()
                .build(),
            text(
                "model-instance-id",
                "Model instance",
                "Elements with the same model and instance share one engine and run in one batch",
                None,
            ),
            glib::ParamSpecUInt::builder("threads")
                .nick("Threads")
                .blurb("Threads of one forward pass (0: all of the machine)")
                .maximum(256)
                .default_value(self.threads)
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt::builder("batch-size")
                .nick("Batch size")
                .blurb("Streams that one forward pass serves at most")
                .minimum(1)
                .maximum(1024)
                .default_value(self.batch_size)
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt64::builder("batch-timeout")
                .nick("Batch timeout")
                .blurb("Longest wait for other streams to fill a batch, in ns; counts as latency")
                .maximum(ClockTime::SECOND.nseconds())
                .default_value(self.batch_timeout)
                .mutable_ready()
                .build(),
            glib::ParamSpecBoolean::builder("post-messages")
                .nick("Post messages")
                .blurb("Post results and facts of the model on the bus")
                .default_value(self.post_messages)
                .mutable_playing()
                .build(),
            glib::ParamSpecUInt64::builder("max-gap")
                .nick("Longest gap")
                .blurb("A gap in the timestamps up to this long is treated by gap-policy, a longer one resets, in ns")
                .maximum(u64::MAX - 1)
                .default_value(self.max_gap.nseconds())
                .mutable_playing()
                .build(),
            glib::ParamSpecEnum::builder_with_default("gap-policy", self.gap_policy)
                .nick("Gap policy")
                .blurb("What happens to the state where input is missing")
                .mutable_playing()
                .build(),
            glib::ParamSpecFlags::builder("reset-on")
                .default_value(self.reset_on)
                .nick("Reset on")
                .blurb("What gives the stream a fresh state; over all else the state goes on")
                .mutable_playing()
                .build(),
            text("state-in", "State in", "File with a saved state to go on from", None),
            text("state-out", "State out", "File that the state is saved to at end of stream and on stop", None),
            read_only("latency-ns", "Latency", "Latency that the element adds, in ns (the model's is known from READY on)"),
            read_only("state-bytes", "State bytes", "Bytes of one stream's state (known from READY on)"),
            read_only("steps", "Steps", "Steps that the model has taken"),
            read_only("resets", "Resets", "Times that the state was reset while playing"),
            read_only("dropped", "Dropped", "Buffers that passed without inference"),
            glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
                .nick("Statistics")
                .blurb("All counters at once, and those of the engine")
                .read_only()
                .build(),
        ]
    }

    /// A property of elements that look at frames.
    pub(crate) fn max_wait_property(&self) -> glib::ParamSpec {
        glib::ParamSpecUInt64::builder("max-wait")
            .nick("Longest wait")
            .blurb(
                "A frame passes without inference if the engine is busy with other streams for longer than this, in ns (0: \
                 it waits)",
            )
            .maximum(ClockTime::from_seconds(3600).nseconds())
            .default_value(self.max_wait.nseconds())
            .mutable_playing()
            .build()
    }

    /// How long a frame waits for the engine at most.
    pub(crate) fn patience(&self) -> Option<Duration> {
        (!self.max_wait.is_zero()).then(|| self.max_wait.into())
    }

    /// Sets a property of [`ModelSettings::properties`]; `false` if it is none of these.
    pub(crate) fn set(&mut self, name: &str, value: &glib::Value) -> bool {
        let text = || words(value).filter(|s| !s.is_empty());
        match name {
            "model" => self.model = text(),
            "allow-reload" => self.allow_reload = value.get().unwrap_or(self.allow_reload),
            "device" => self.device = text().unwrap_or_else(|| "auto".into()),
            "precision" => self.precision = value.get().unwrap_or(self.precision),
            "model-instance-id" => self.instance = text(),
            "threads" => self.threads = value.get().unwrap_or(self.threads),
            "batch-size" => self.batch_size = value.get().unwrap_or(self.batch_size),
            "batch-timeout" => self.batch_timeout = value.get().unwrap_or(self.batch_timeout),
            "post-messages" => self.post_messages = value.get().unwrap_or(self.post_messages),
            "max-gap" => self.max_gap = value.get().map_or(self.max_gap, ClockTime::from_nseconds),
            "gap-policy" => self.gap_policy = value.get().unwrap_or(self.gap_policy),
            "reset-on" => self.reset_on = value.get().unwrap_or(self.reset_on),
            "max-wait" => self.max_wait = value.get().map_or(self.max_wait, ClockTime::from_nseconds),
            "state-in" => self.state_in = text(),
            "state-out" => self.state_out = text(),
            _ => return false,
        }
        true
    }

    /// Whether this gives the stream a fresh state.
    pub(crate) fn resets(&self, on: ResetOn) -> bool {
        self.reset_on.contains(on)
    }

    /// Value of a property that [`ModelSettings::set`] sets; `None` if it is none of these.
    pub(crate) fn get(&self, name: &str) -> Option<glib::Value> {
        Some(match name {
            "model" => self.model.as_deref().to_value(),
            "allow-reload" => self.allow_reload.to_value(),
            "device" => (*self.device).to_value(),
            "precision" => self.precision.to_value(),
            "model-instance-id" => self.instance.as_deref().to_value(),
            "threads" => self.threads.to_value(),
            "batch-size" => self.batch_size.to_value(),
            "batch-timeout" => self.batch_timeout.to_value(),
            "post-messages" => self.post_messages.to_value(),
            "max-gap" => self.max_gap.nseconds().to_value(),
            "gap-policy" => self.gap_policy.to_value(),
            "reset-on" => self.reset_on.to_value(),
            "max-wait" => self.max_wait.nseconds().to_value(),
            "state-in" => self.state_in.as_deref().to_value(),
            "state-out" => self.state_out.as_deref().to_value(),
            _ => return None,
        })
    }

    /// How long a step may wait for those of other streams.
    pub(crate) fn batch_wait(&self) -> ClockTime {
        ClockTime::from_nseconds(if self.batch_size > 1 { self.batch_timeout } else { 0 })
    }

    /// What the element adds to the latency of a stream.
    pub(crate) fn latency(&self, own: ClockTime) -> ClockTime {
        own.saturating_add(self.batch_wait())
    }

    /// Answers a LATENCY query with what is before the element, what it takes itself, and how long a batch may wait.
    pub(crate) fn answer_latency(
        &self,
        query: &mut gst::query::Latency,
        upstream: &gst::query::Latency,
        own: ClockTime,
    ) {
        let (live, min, max) = upstream.result();
        let own = self.latency(own);
        query.set(live, min.saturating_add(own), max.map(|max| max.saturating_add(own)));
    }

    /// The engine of these settings: a running one if another element has the same, else a new one.
    ///
    /// # Errors
    /// No model is set, or it cannot be opened or run on the device.
    pub(crate) fn engine(&self, mut options: Options) -> Result<Arc<Engine>, Error> {
        let name = self.model.as_deref().ok_or_else(|| Error::Config {
            file: "element".into(),
            field: "model".into(),
            expected: "a checkpoint file or builtin:NAME".into(),
            got: "nothing (the property model is not set)".into(),
        })?;
        let device = self.device.parse::<Device>()?.resolve()?;
        let threads = match self.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n as usize,
        };
        let cx = Cx::new(threads)?;
        options.level = cx.level;
        options.precision = match self.precision {
            Precision::F32 => linear::Precision::F32,
            Precision::Bf16 => linear::Precision::Bf16,
            Precision::Int8 => linear::Precision::Int8,
        };
        let written = written(Path::new(name));
        let file = std::fs::canonicalize(name).unwrap_or_else(|_| PathBuf::from(name));
        let key = EngineKey {
            model: format!("{} {written:?} {options:?}", file.display()),
            instance: self.instance.as_deref().unwrap_or_default().into(),
            device,
            threads,
            batch_size: self.batch_size as usize,
            batch_timeout: Duration::from_nanos(self.batch_timeout),
        };
        Engine::shared(key, || Ok((opened(name, &options, device)?, cx)))
    }

    /// The message that tells what is running: structure `ssm-model` with `file`, `family`, `sizes`, `parameters`,
    /// `input`, `classes` (of classifiers), `device`, `device-note` (why not the card that is there), `state-bytes`. Of a
    /// model that took the place of another one also `reloaded` = true, and `state`, what became of the stream's state:
    /// `kept` or `reset`.
    pub(crate) fn message(&self, src: &gst::Element, engine: &Engine, state: Option<&str>) -> gst::Message {
        let info = engine.info();
        let input = match info.input {
            Signal::Image { channels, height, width } => format!("{width}x{height}x{channels}"),
            Signal::Samples { hop, rate } => format!("{hop} samples at {rate} Hz"),
            other => other.to_string(),
        };
        let (device, note) = engine.device();
        let classes = if let Signal::Logits { classes } = info.output { Some(classes as u32) } else { None };
        let structure = gst::Structure::builder("ssm-model")
            .field("file", self.model.as_deref().unwrap_or_default())
            .field("family", info.family)
            .field("sizes", &info.sizes)
            .field("parameters", info.parameters)
            .field("input", input)
            .field_if_some("classes", classes)
            .field("device", device.to_string())
            .field_if_some("device-note", note)
            .field("state-bytes", engine.model().layout().bytes() as u64)
            .field_if("reloaded", true, state.is_some())
            .field_if_some("state", state)
            .build();
        gst::message::Element::builder(structure).src(src).build()
    }
}

fn read_only(name: &'static str, nick: &'static str, blurb: &'static str) -> glib::ParamSpec {
    glib::ParamSpecUInt64::builder(name).nick(nick).blurb(blurb).read_only().build()
}

/// Counters that any thread may read while the streaming thread runs.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) latency_ns: AtomicU64,
    pub(crate) state_bytes: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) resets: AtomicU64,
    pub(crate) dropped: AtomicU64,
    /// Samples or pixels that were not finite and were taken for zero.
    pub(crate) not_finite: AtomicU64,
}

impl Counters {
    /// Value of a read-only property; `None` if it is none of these.
    pub(crate) fn get(&self, name: &str, settings: &ModelSettings, engine: Option<&Engine>) -> Option<glib::Value> {
        let counter = |c: &AtomicU64| c.load(Ordering::Relaxed);
        Some(match name {
            "latency-ns" => settings.latency(ClockTime::from_nseconds(counter(&self.latency_ns))).nseconds().to_value(),
            "state-bytes" => counter(&self.state_bytes).to_value(),
            "steps" => counter(&self.steps).to_value(),
            "resets" => counter(&self.resets).to_value(),
            "dropped" => counter(&self.dropped).to_value(),
            "stats" => {
                let (passes, rows) = engine.map_or((0, 0), Engine::counts);
                let (launches, bytes) = engine.map_or((0, 0), Engine::card);
                gst::Structure::builder("stats")
                    .field("steps", counter(&self.steps))
                    .field("resets", counter(&self.resets))
                    .field("dropped", counter(&self.dropped))
                    .field("not-finite", counter(&self.not_finite))
                    .field("engine-passes", passes)
                    .field("engine-rows", rows)
                    .field("launches", launches)
                    .field("device-bytes", bytes)
                    .build()
                    .to_value()
            }
            _ => return None,
        })
    }

    /// Adds to a counter.
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// The model of a file, where it is to run. One that makes the loader panic is refused: the pipeline is to go on.
fn opened(name: &str, options: &Options, device: Device) -> Result<Placed, Error> {
    std::panic::catch_unwind(|| device.place(open(name, options)?)).unwrap_or_else(|_| {
        Err(Error::Config {
            file: name.into(),
            field: "model".into(),
            expected: "a file that can be read".into(),
            got: "one that the loader stumbles over, which is a fault of this plugin".into(),
        })
    })
}

/// When what belongs to a model was written: a file that was replaced since is another model, and so is one with another
/// configuration beside it, or a folder with another file in it.
fn written(path: &Path) -> [Option<SystemTime>; 5] {
    let at = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    [
        at(path),
        at(&path.with_file_name("config.json")),
        at(&path.join("config.json")),
        at(&path.join("model.safetensors")),
        at(&path.join("pytorch_model.bin")),
    ]
}
