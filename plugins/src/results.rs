//! What the elements find, as it travels: a meta on the buffer, a message on the bus, a line of JSON.

use gst::ClockTime;
use gst::prelude::*;
use serde::Serialize;

/// Name of the custom meta that carries results on a buffer.
pub const META_NAME: &str = "GstSsmResultMeta";

/// Version of the fields below, in messages and JSON.
const VERSION: u32 = 1;

/// Makes the meta known; harmless when done twice.
pub(crate) fn register_meta() {
    if !gst::meta::CustomMeta::is_registered(META_NAME) {
        gst::meta::CustomMeta::register_simple(META_NAME);
    }
}

/// A class and how sure the model is of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassScore {
    /// Index among the model's classes.
    pub index: u32,
    /// Its name, where a labels file gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Probability, 0 to 1; computed in f32, so a line of JSON has no more digits.
    #[serde(serialize_with = "single")]
    pub score: f64,
}

fn single<S: serde::Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f32(*value as f32)
}

/// What one element found in one buffer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Results {
    /// Version of these fields: 1.
    pub version: u32,
    /// Kind of the results: `classes`.
    pub kind: String,
    /// Name of the element that found them.
    pub element: String,
    /// Presentation time of the buffer in ns, in its segment.
    pub pts: Option<u64>,
    /// Duration of the buffer in ns.
    pub duration: Option<u64>,
    /// Steps that the model had taken in this stream, this one included.
    pub step: u64,
    /// The best classes, best first.
    pub classes: Vec<ClassScore>,
}

impl Results {
    /// Classes found in a buffer.
    pub(crate) fn classes(element: &str, buffer: &gst::BufferRef, step: u64, classes: Vec<ClassScore>) -> Self {
        Self {
            version: VERSION,
            kind: "classes".into(),
            element: element.into(),
            pts: buffer.pts().map(ClockTime::nseconds),
            duration: buffer.duration().map(ClockTime::nseconds),
            step,
            classes,
        }
    }

    /// The results as a structure of the given name: `version`, `kind`, `element`, `pts`, `duration`, `step`, and
    /// `classes`, an array of structures `class` with `index`, `label` and `score`.
    pub(crate) fn to_structure(&self, name: &str) -> gst::Structure {
        let classes = self.classes.iter().map(|c| {
            let class = gst::Structure::builder("class").field("index", c.index).field("score", c.score);
            class.field_if_some("label", c.label.as_deref()).build().to_send_value()
        });
        gst::Structure::builder(name)
            .field("version", self.version)
            .field("kind", &self.kind)
            .field("element", &self.element)
            .field_if_some("pts", self.pts)
            .field_if_some("duration", self.duration)
            .field("step", self.step)
            .field("classes", gst::Array::from_values(classes))
            .build()
    }

    /// Reads a structure made by [`Results::to_structure`]; `None` if a field is missing or of another type.
    pub fn from_structure(s: &gst::StructureRef) -> Option<Self> {
        let classes = s.get::<gst::Array>("classes").ok()?;
        let classes = classes.iter().map(|value| {
            let class = value.get::<gst::Structure>().ok()?;
            Some(ClassScore {
                index: class.get("index").ok()?,
                label: class.get_optional("label").ok()?,
                score: class.get("score").ok()?,
            })
        });
        Some(Self {
            version: s.get("version").ok()?,
            kind: s.get("kind").ok()?,
            element: s.get("element").ok()?,
            pts: s.get_optional("pts").ok()?,
            duration: s.get_optional("duration").ok()?,
            step: s.get("step").ok()?,
            classes: classes.collect::<Option<_>>()?,
        })
    }

    /// Adds the results to a buffer, behind those of elements before.
    pub(crate) fn attach(&self, buffer: &mut gst::BufferRef) -> Result<(), glib::BoolError> {
        let value = self.to_structure("result").to_send_value();
        if let Ok(mut meta) = gst::meta::CustomMeta::from_mut_buffer(buffer, META_NAME) {
            let s = meta.mut_structure();
            let before = s.get::<gst::Array>("results").ok();
            let before = before.iter().flat_map(|a| a.iter()).cloned();
            s.set("results", gst::Array::from_values(before.chain([value])));
            return Ok(());
        }
        let mut meta = gst::meta::CustomMeta::add(buffer, META_NAME)?;
        meta.mut_structure().set("results", gst::Array::from_values([value]));
        Ok(())
    }

    /// The results that a buffer carries, in the order in which the elements stood.
    pub fn of(buffer: &gst::BufferRef) -> Vec<Self> {
        let Ok(meta) = gst::meta::CustomMeta::from_buffer(buffer, META_NAME) else { return Vec::new() };
        let Ok(results) = meta.structure().get::<gst::Array>("results") else { return Vec::new() };
        results.iter().filter_map(|v| v.get::<gst::Structure>().ok()).filter_map(|s| Self::from_structure(&s)).collect()
    }

    /// An element message with the results; its structure has the name of the element's factory and, beside the fields
    /// of [`Results::to_structure`], `stream-time` and `running-time` in ns.
    pub(crate) fn message(&self, src: &gst::Element, factory: &str, segment: Option<&gst::Segment>) -> gst::Message {
        let mut s = self.to_structure(factory);
        let segment = segment.and_then(|s| s.downcast_ref::<gst::ClockTime>());
        let pts = self.pts.map(ClockTime::from_nseconds);
        if let (Some(segment), Some(pts)) = (segment, pts) {
            if let Some(time) = segment.to_stream_time(pts) {
                s.set("stream-time", time.nseconds());
            }
            if let Some(time) = segment.to_running_time(pts) {
                s.set("running-time", time.nseconds());
            }
        }
        gst::message::Element::builder(s).src(src).build()
    }
}
