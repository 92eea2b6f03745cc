//! A result where it lies in a structure: read in place, and written as a line of JSON.

use crate::results::{CLASSES, EventResult, Vector};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstSsmVectorFormat")]
pub(crate) enum Format {
    #[default]
    #[enum_value(name = "Numbers: an array of numbers", nick = "numbers")]
    Numbers,
    #[enum_value(name = "Base64: little-endian 32-bit floats as base64", nick = "base64")]
    Base64,
}

/// A class in an array of classes.
#[derive(serde::Serialize)]
pub(crate) struct Class<'a> {
    pub(crate) index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) label: Option<&'a str>,
    #[serde(serialize_with = "single")]
    pub(crate) score: f64,
}

impl<'a> Class<'a> {
    fn new(value: &'a glib::SendValue) -> Option<Self> {
        let class = value.get::<&gst::StructureRef>().ok()?;
        Some(Self {
            index: class.get("index").ok()?,
            label: class.get_optional("label").ok()?,
            score: class.get("score").ok()?,
        })
    }
}

/// Probabilities are computed in f32, so a line of JSON has no more digits.
pub(crate) fn single<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f32(*value as f32)
}

/// The classes of a result.
#[derive(Clone, Copy, Default)]
pub(crate) struct Classes<'a>(&'a [glib::SendValue]);

impl<'a> Classes<'a> {
    pub(crate) fn iter(self) -> impl Iterator<Item = Class<'a>> {
        self.0.iter().filter_map(Class::new)
    }
}

impl Serialize for Classes<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter())
    }
}

/// What one element found in one buffer: the fields of [`crate::Results`].
pub(crate) struct Line<'a> {
    pub(crate) version: u32,
    pub(crate) kind: &'a str,
    pub(crate) element: &'a str,
    pub(crate) pts: Option<u64>,
    pub(crate) duration: Option<u64>,
    pub(crate) step: u64,
    pub(crate) classes: Classes<'a>,
    pub(crate) speech: Option<f64>,
    pub(crate) vector: Option<Vector>,
    pub(crate) event: Option<EventResult>,
    format: Format,
}

impl<'a> Line<'a> {
    /// `None` if a field is missing or of another type.
    pub(crate) fn new(s: &'a gst::StructureRef, format: Format) -> Option<Self> {
        let classes = s.get_optional::<gst::ArrayRef<'a>>("classes").ok()?;
        let classes = classes.map(|c| Classes(c.as_slice())).unwrap_or_default();
        if classes.iter().count() < classes.0.len() {
            return None;
        }
        Some(Self {
            version: s.get("version").ok()?,
            kind: s.get("kind").ok()?,
            element: s.get("element").ok()?,
            pts: s.get_optional("pts").ok()?,
            duration: s.get_optional("duration").ok()?,
            step: s.get("step").ok()?,
            classes,
            speech: s.get_optional("speech").ok()?,
            vector: s.get_optional("vector").ok()?.map(Vector),
            event: match s.get_optional::<&gst::StructureRef>("event").ok()? {
                Some(event) => Some(EventResult::from_structure(event)?),
                None => None,
            },
            format,
        })
    }
}

/// The fields in order, of the last four those of the kind.
impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut line = to.serialize_map(None)?;
        line.serialize_entry("version", &self.version)?;
        line.serialize_entry("kind", self.kind)?;
        line.serialize_entry("element", self.element)?;
        line.serialize_entry("pts", &self.pts)?;
        line.serialize_entry("duration", &self.duration)?;
        line.serialize_entry("step", &self.step)?;
        if self.kind == CLASSES {
            line.serialize_entry("classes", &self.classes)?;
        }
        if let Some(speech) = self.speech {
            line.serialize_entry("speech", &(speech as f32))?;
        }
        match (&self.vector, self.format) {
            (Some(vector), Format::Numbers) => line.serialize_entry("vector", vector)?,
            (Some(vector), Format::Base64) => line.serialize_entry("vector", &*glib::base64_encode(&vector.0))?,
            (None, _) => {}
        }
        if let Some(event) = &self.event {
            line.serialize_entry("event", event)?;
        }
        line.end()
    }
}
