//! What the elements find, as it travels: a meta on the buffer, a message on the bus, a line of JSON.

use crate::line::{Class, Format, Line, single};
use gst::ClockTime;
use gst::prelude::*;
use serde::Serialize;
use std::borrow::Cow;
use std::sync::Arc;

/// Name of the custom meta that carries results on a buffer.
pub const META_NAME: &str = "GstSsmResultMeta";

/// Name of the event with results that no buffer carries.
pub(crate) const LATE: &str = "ssm-results";
/// The event that gives a stream a fresh state.
pub(crate) const RESET: &str = "ssm-reset";

/// Version of the fields below, in messages and JSON.
const VERSION: u32 = 1;

/// Kind of results that are classes.
pub(crate) const CLASSES: &str = "classes";

/// Start and duration of what a result is of.
pub(crate) type Time = (Option<ClockTime>, Option<ClockTime>);

/// Makes the meta known; harmless when done twice.
pub(crate) fn register_meta() {
    if !gst::meta::CustomMeta::is_registered(META_NAME) {
        gst::meta::CustomMeta::register_simple(META_NAME);
    }
}

/// Time of a result: that of the frame it is of, or of a stretch.
pub(crate) fn time_of(
    frame: Option<&gst::BufferRef>,
    start: ClockTime,
    end: ClockTime,
) -> (Option<ClockTime>, Option<ClockTime>) {
    match frame {
        Some(frame) => (frame.pts(), frame.duration()),
        None => (Some(start), end.checked_sub(start).filter(|long| !long.is_zero())),
    }
}

/// A class and how sure the model is of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassScore {
    /// Index among the model's classes.
    pub index: u32,
    /// Its name, where a labels file gave one.
    pub label: Option<Arc<str>>,
    /// Probability, 0 to 1.
    pub score: f64,
}

/// A vector of features: little-endian 32-bit floats, which all that carries the result shares.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector(pub(crate) glib::Bytes);

impl Vector {
    fn new(numbers: &[f32]) -> Self {
        let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self(glib::Bytes::from_owned(bytes))
    }

    /// The numbers.
    pub fn numbers(&self) -> impl Iterator<Item = f32> {
        self.0.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))
    }
}

impl Serialize for Vector {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.numbers())
    }
}

/// Something that happened, with its beginning and end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventResult {
    /// Name of the class.
    pub kind: String,
    /// Its index among the model's classes.
    pub class: u32,
    /// Largest probability, 0 to 1.
    #[serde(serialize_with = "single")]
    pub score: f64,
    /// Time of the last frame wholly of what was before, in ns.
    pub start: u64,
    /// Time of the first frame wholly of what comes after, in ns.
    pub end: u64,
}

/// What one element found in one buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// Version of these fields: 1.
    pub version: u32,
    /// Kind of the results: `classes`, `speech`, `vector` or `event`; it says which of the last four fields is there.
    pub kind: Cow<'static, str>,
    /// Name of the element that found them.
    pub element: glib::GString,
    /// Time that the result is of in ns, in the buffer's segment: the buffer's own, or a step's within it.
    pub pts: Option<u64>,
    /// Duration of what the result is of in ns.
    pub duration: Option<u64>,
    /// Steps that the model had taken in this stream, this one included.
    pub step: u64,
    /// The best classes, best first.
    pub classes: Vec<ClassScore>,
    /// Probability of speech, 0 to 1.
    pub speech: Option<f64>,
    /// The model's features.
    pub vector: Option<Vector>,
    /// What happened.
    pub event: Option<EventResult>,
}

impl EventResult {
    fn to_structure(&self) -> gst::Structure {
        gst::Structure::builder("event")
            .field("kind", &self.kind)
            .field("class", self.class)
            .field("score", self.score)
            .field("start", self.start)
            .field("end", self.end)
            .build()
    }

    pub(crate) fn from_structure(s: &gst::StructureRef) -> Option<Self> {
        Some(Self {
            kind: s.get("kind").ok()?,
            class: s.get("class").ok()?,
            score: s.get("score").ok()?,
            start: s.get("start").ok()?,
            end: s.get("end").ok()?,
        })
    }
}

impl Results {
    fn new(kind: &'static str, element: glib::GString, time: Time, step: u64) -> Self {
        let (pts, duration) = time;
        Self {
            version: VERSION,
            kind: kind.into(),
            element,
            pts: pts.map(ClockTime::nseconds),
            duration: duration.map(ClockTime::nseconds),
            step,
            classes: Vec::new(),
            speech: None,
            vector: None,
            event: None,
        }
    }

    /// Classes found at a time.
    pub(crate) fn classes(element: glib::GString, time: Time, step: u64, classes: Vec<ClassScore>) -> Self {
        Self { classes, ..Self::new(CLASSES, element, time, step) }
    }

    /// How sure an element is that there is speech.
    pub(crate) fn speech(element: glib::GString, time: Time, step: u64, probability: f64) -> Self {
        Self { speech: Some(probability), ..Self::new("speech", element, time, step) }
    }

    /// A vector of features.
    pub(crate) fn vector(element: glib::GString, time: Time, step: u64, vector: &[f32]) -> Self {
        Self { vector: Some(Vector::new(vector)), ..Self::new("vector", element, time, step) }
    }

    /// Something that happened.
    pub(crate) fn event(element: glib::GString, time: Time, step: u64, event: EventResult) -> Self {
        Self { event: Some(event), ..Self::new("event", element, time, step) }
    }

    /// Whether it tells nothing: classes of which none reached the threshold.
    pub fn is_empty(&self) -> bool {
        self.kind == CLASSES && self.classes.is_empty()
    }

    /// The results as a structure of the given name: `version`, `kind`, `element`, `pts`, `duration`, `step`, and by kind
    /// `classes`, an array of structures `class` with `index`, `label` and `score`; `speech`, a double; `vector`, GBytes
    /// of little-endian 32-bit floats; `event`, a structure with `kind`, `class`, `score`, `start` and `end`.
    pub(crate) fn to_structure(&self, name: &str) -> gst::Structure {
        let classes = self.classes.iter().map(|c| {
            let class = gst::Structure::builder("class").field("index", c.index).field("score", c.score);
            class.field_if_some("label", c.label.as_deref()).build().to_send_value()
        });
        gst::Structure::builder(name)
            .field("version", self.version)
            .field("kind", &*self.kind)
            .field("element", &self.element)
            .field_if_some("pts", self.pts)
            .field_if_some("duration", self.duration)
            .field("step", self.step)
            .field_if("classes", gst::Array::from_values(classes), self.kind == CLASSES)
            .field_if_some("speech", self.speech)
            .field_if_some("vector", self.vector.as_ref().map(|v| &v.0))
            .field_if_some("event", self.event.as_ref().map(EventResult::to_structure))
            .build()
    }

    /// Reads a structure made by [`Results::to_structure`]; `None` if a field is missing or of another type.
    pub fn from_structure(s: &gst::StructureRef) -> Option<Self> {
        let line = Line::new(s, Format::default())?;
        let class = |c: Class<'_>| ClassScore { index: c.index, label: c.label.map(Arc::from), score: c.score };
        Some(Self {
            version: line.version,
            kind: line.kind.to_owned().into(),
            element: line.element.into(),
            pts: line.pts,
            duration: line.duration,
            step: line.step,
            classes: line.classes.iter().map(class).collect(),
            speech: line.speech,
            vector: line.vector,
            event: line.event,
        })
    }

    /// Adds results to a buffer, behind those of elements before.
    pub(crate) fn attach(results: &[Self], buffer: &mut gst::BufferRef) -> Result<(), glib::BoolError> {
        if results.is_empty() {
            return Ok(());
        }
        let values = results.iter().map(|r| r.to_structure("result").to_send_value());
        if let Ok(mut meta) = gst::meta::CustomMeta::from_mut_buffer(buffer, META_NAME) {
            let s = meta.mut_structure();
            let before = s.get::<gst::Array>("results").ok();
            let before = before.iter().flat_map(|a| a.iter()).cloned();
            s.set("results", gst::Array::from_values(before.chain(values)));
            return Ok(());
        }
        let mut meta = gst::meta::CustomMeta::add(buffer, META_NAME)?;
        meta.mut_structure().set("results", gst::Array::from_values(values));
        Ok(())
    }

    /// An event with results for which no buffer is left, ahead of the end of stream: a structure `ssm-results` with
    /// `results`, an array as in the meta.
    pub(crate) fn late(results: &[Self]) -> gst::Event {
        let values = results.iter().map(|r| r.to_structure("result").to_send_value());
        let structure = gst::Structure::builder(LATE).field("results", gst::Array::from_values(values)).build();
        gst::event::CustomDownstream::new(structure)
    }

    /// The results of an event made by [`Results::late`]; `None` for any other structure.
    pub fn of_late(structure: &gst::StructureRef) -> Option<Vec<Self>> {
        (structure.name() == LATE).then(|| Self::read(structure))
    }

    fn read(structure: &gst::StructureRef) -> Vec<Self> {
        each(structure).into_iter().flatten().filter_map(Self::from_structure).collect()
    }

    /// The results that a buffer carries, in the order in which the elements stood.
    pub fn of(buffer: &gst::BufferRef) -> Vec<Self> {
        let Ok(meta) = gst::meta::CustomMeta::from_buffer(buffer, META_NAME) else { return Vec::new() };
        Self::read(meta.structure())
    }

    /// An element message with the results; its structure has the name of the element's factory and, beside the fields
    /// of [`Results::to_structure`], `stream-time` and `running-time` in ns.
    pub(crate) fn message(&self, src: &gst::Element, factory: &str, segment: Option<&gst::Segment>) -> gst::Message {
        let mut s = self.to_structure(factory);
        set_times(&mut s, self.pts.map(ClockTime::from_nseconds), segment);
        gst::message::Element::builder(s).src(src).build()
    }
}

/// Sets `stream-time` and `running-time` of a time in a segment, in ns.
pub(crate) fn set_times(s: &mut gst::Structure, at: Option<ClockTime>, segment: Option<&gst::Segment>) {
    let segment = segment.and_then(|s| s.downcast_ref::<gst::ClockTime>());
    let (Some(segment), Some(at)) = (segment, at) else { return };
    if let Some(time) = segment.to_stream_time(at) {
        s.set("stream-time", time.nseconds());
    }
    if let Some(time) = segment.to_running_time(at) {
        s.set("running-time", time.nseconds());
    }
}

/// The structures in the field `results` of a meta or of an event with late results; `None` without that field.
pub(crate) fn each(structure: &gst::StructureRef) -> Option<impl Iterator<Item = &gst::StructureRef>> {
    let results = structure.value("results").ok()?.get::<gst::ArrayRef<'_>>().ok()?;
    Some(results.as_slice().iter().filter_map(|v| v.get::<&gst::StructureRef>().ok()))
}
