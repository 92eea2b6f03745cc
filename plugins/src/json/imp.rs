//! # ssmjson
//!
//! Turns the results that elements before it attached to buffers into lines of JSON, one a result; the media itself is
//! dropped.
//!
//! ```text
//! gst-launch-1.0 filesrc location=video.mp4 ! decodebin ! videoconvert ! ssmclassify model=vim.pth ! ssmjson ! \
//!     filesink location=classes.jsonl
//! ```
//!
//! A line holds the fields of [`crate::Results`]; a buffer without results gives a GAP event, so that sinks keep time.

use crate::base::{lock, metadata, templates};
use crate::results::Results;
use gst::prelude::*;
use gst::subclass::prelude::*;
use std::sync::{LazyLock, Mutex};

static CAT: LazyLock<gst::DebugCategory> =
    LazyLock::new(|| gst::DebugCategory::new("ssmjson", gst::DebugColorFlags::empty(), Some("Results as JSON")));

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstSsmVectorFormat")]
enum Format {
    #[default]
    #[enum_value(name = "Numbers: an array of numbers", nick = "numbers")]
    Numbers,
    #[enum_value(name = "Base64: little-endian 32-bit floats as base64", nick = "base64")]
    Base64,
}

pub struct Json {
    sink: gst::Pad,
    src: gst::Pad,
    format: Mutex<Format>,
}

impl Json {
    /// A buffer with a line for each result. An error is posted.
    fn lines(
        &self,
        results: Vec<Results>,
        pts: Option<gst::ClockTime>,
        duration: Option<gst::ClockTime>,
    ) -> Result<gst::Buffer, serde_json::Error> {
        let format = *lock(&self.format);
        let mut lines = Vec::new();
        for mut result in results {
            if format == Format::Base64 {
                result.vector = result.vector.map(|v| v.to_base64());
            }
            serde_json::to_writer(&mut lines, &result).inspect_err(|error| {
                gst::element_imp_error!(self, gst::StreamError::Encode, ("result of {}: {error}", result.element));
            })?;
            lines.push(b'\n');
        }
        let mut out = gst::Buffer::from_mut_slice(lines);
        if let Some(out) = out.get_mut() {
            out.set_pts(pts);
            out.set_duration(duration);
        }
        Ok(out)
    }

    fn chain(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let results = Results::of(&buffer);
        if results.is_empty() {
            if let Some(pts) = buffer.pts() {
                self.src.push_event(gst::event::Gap::builder(pts).duration(buffer.duration()).build());
            }
            return Ok(gst::FlowSuccess::Ok);
        }
        let out = self.lines(results, buffer.pts(), buffer.duration()).map_err(|_| gst::FlowError::Error)?;
        self.src.push(out)
    }

    fn sink_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        match event.view() {
            gst::EventView::Caps(_) => {
                gst::debug!(CAT, imp = self, "results of {event:?}");
                self.src.push_event(gst::event::Caps::new(&self.src.pad_template_caps()))
            }
            gst::EventView::CustomDownstream(e) => match e.structure().and_then(Results::of_late) {
                // What the end of stream decided: its lines have the time of the last of them.
                Some(results) => {
                    let pts = results.last().and_then(|r| r.pts).map(gst::ClockTime::from_nseconds);
                    self.lines(results, pts, None).is_ok_and(|out| self.src.push(out).is_ok())
                }
                None => gst::Pad::event_default(pad, Some(&*self.obj()), event),
            },
            _ => gst::Pad::event_default(pad, Some(&*self.obj()), event),
        }
    }
}

#[glib::object_subclass]
impl ObjectSubclass for Json {
    const NAME: &'static str = "GstSsmJson";
    type Type = super::Json;
    type ParentType = gst::Element;

    fn with_class(class: &Self::Class) -> Self {
        let pad = |name: &str| {
            let template = class.pad_template(name).unwrap_or_else(|| unreachable!("pad_templates() has {name}"));
            gst::Pad::builder_from_template(&template)
        };
        let sink = pad("sink")
            .chain_function(|_, parent, buffer| {
                Self::catch_panic_pad_function(parent, || Err(gst::FlowError::Error), |imp| imp.chain(buffer))
            })
            .event_function(|pad, parent, event| {
                Self::catch_panic_pad_function(parent, || false, |imp| imp.sink_event(pad, event))
            })
            .query_function(|pad, parent, query| match query.view_mut() {
                // The two sides have nothing in common but time.
                gst::QueryViewMut::Caps(q) => {
                    let caps = pad.pad_template_caps();
                    let caps = q.filter().map_or(caps.clone(), |f| f.intersect(&caps));
                    q.set_result(&caps);
                    true
                }
                _ => gst::Pad::query_default(pad, parent, query),
            })
            .build();
        let src = pad("src").flags(gst::PadFlags::FIXED_CAPS).build();
        Self { sink, src, format: Mutex::default() }
    }
}

impl ObjectImpl for Json {
    fn constructed(&self) {
        self.parent_constructed();
        let _ = self.obj().add_pad(&self.sink);
        let _ = self.obj().add_pad(&self.src);
    }

    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            vec![
                glib::ParamSpecEnum::builder_with_default("format", Format::default())
                    .nick("Vector format")
                    .blurb("How vectors are written")
                    .mutable_playing()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, _pspec: &glib::ParamSpec) {
        *lock(&self.format) = value.get().unwrap_or_default();
    }

    fn property(&self, _id: usize, _pspec: &glib::ParamSpec) -> glib::Value {
        lock(&self.format).to_value()
    }
}

impl GstObjectImpl for Json {}

impl ElementImpl for Json {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            metadata(
                "Results as JSON",
                "Filter/Converter",
                "Turns the results that state-space elements attached to buffers into lines of JSON",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let any = gst::CapsFeatures::new_any();
            let media = gst::Caps::builder_full()
                .structure_with_features(gst::Structure::new_empty("video/x-raw"), any.clone())
                .structure_with_features(gst::Structure::new_empty("audio/x-raw"), any)
                .build();
            let lines = gst::Caps::builder("application/x-json").field("schema", "ssm-results").build();
            templates(&media, &lines)
        });
        &TEMPLATES
    }
}
