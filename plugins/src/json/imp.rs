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
use crate::line::{Format, Line};
use crate::results::{LATE, META_NAME, RESET, each};
use gst::prelude::*;
use gst::subclass::prelude::*;
use std::sync::{LazyLock, Mutex};

static CAT: LazyLock<gst::DebugCategory> =
    LazyLock::new(|| gst::DebugCategory::new("ssmjson", gst::DebugColorFlags::empty(), Some("Results as JSON")));

pub struct Json {
    sink: gst::Pad,
    src: gst::Pad,
    format: Mutex<Format>,
    lines: Mutex<Lines>,
}

/// Room for the lines of a buffer.
#[derive(Default)]
struct Lines {
    /// All of them.
    all: Vec<u8>,
    /// Those of the buffer before: elements that cut or repeat buffers copy their metas. None where a stretch begins.
    before: Vec<u8>,
    /// Those that are no copies.
    new: Vec<u8>,
}

impl Json {
    /// A buffer with a line for each result in the structure that the buffer before did not have, and the time of the last
    /// one; `None` if there is none. An error is posted.
    fn lines(
        &self,
        structure: &gst::StructureRef,
    ) -> Result<Option<(gst::Buffer, Option<gst::ClockTime>)>, gst::FlowError> {
        let format = *lock(&self.format);
        let Lines { all, before, new } = &mut *lock(&self.lines);
        std::mem::swap(all, before);
        all.clear();
        new.clear();
        let mut pts = None;
        for line in each(structure).into_iter().flatten().filter_map(|s| Line::new(s, format)) {
            let from = all.len();
            serde_json::to_writer(&mut *all, &line).map_err(|error| {
                gst::element_imp_error!(self, gst::StreamError::Encode, ("result of {}: {error}", line.element));
                gst::FlowError::Error
            })?;
            all.push(b'\n');
            // Without a time it may be the same and another one.
            if line.pts.is_some() && before.split_inclusive(|b| *b == b'\n').any(|old| *old == all[from..]) {
                continue;
            }
            new.extend_from_slice(&all[from..]);
            pts = line.pts.filter(|ns| *ns < u64::MAX).map(gst::ClockTime::from_nseconds);
        }
        if new.is_empty() {
            return Ok(None);
        }
        let filled = gst::Buffer::with_size(new.len()).and_then(|mut buffer| {
            buffer.make_mut().copy_from_slice(0, new).map_err(|_| glib::bool_error!("no room"))?;
            Ok(buffer)
        });
        let buffer = filled.map_err(|error| {
            gst::element_imp_error!(self, gst::ResourceError::NoSpaceLeft, ("{} bytes of lines: {error}", new.len()));
            gst::FlowError::Error
        })?;
        Ok(Some((buffer, pts)))
    }

    fn chain(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let lines = match gst::meta::CustomMeta::from_buffer(&buffer, META_NAME) {
            Ok(meta) => self.lines(meta.structure())?,
            Err(_) => None,
        };
        let Some((mut out, _)) = lines else {
            let gap = |pts| gst::event::Gap::builder(pts).duration(buffer.duration()).build();
            let taken = buffer.pts().is_none_or(|pts| self.src.push_event(gap(pts)));
            // Lines may come late; that nobody would read them is told at once.
            let flags = self.src.pad_flags();
            return match () {
                () if taken => Ok(gst::FlowSuccess::Ok),
                () if flags.contains(gst::PadFlags::FLUSHING) => Err(gst::FlowError::Flushing),
                () if flags.contains(gst::PadFlags::EOS) => Err(gst::FlowError::Eos),
                () if !self.src.is_linked() => Err(gst::FlowError::NotLinked),
                () => Ok(gst::FlowSuccess::Ok),
            };
        };
        let edit = out.make_mut();
        edit.set_pts(buffer.pts());
        edit.set_duration(buffer.duration());
        self.src.push(out)
    }

    fn sink_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        // What comes behind these may be the same once more, and is no copy.
        let anew = match event.view() {
            gst::EventView::StreamStart(_) | gst::EventView::Segment(_) | gst::EventView::FlushStop(_) => true,
            gst::EventView::CustomDownstream(e) => e.structure().is_some_and(|s| s.name() == RESET),
            _ => false,
        };
        if anew {
            lock(&self.lines).all.clear();
        }
        match event.view() {
            gst::EventView::Caps(_) => {
                gst::debug!(CAT, imp = self, "results of {event:?}");
                self.src.push_event(gst::event::Caps::new(&self.src.pad_template_caps()))
            }
            gst::EventView::CustomDownstream(e) => match e.structure().filter(|s| s.name() == LATE) {
                // What the end of stream decided: its lines have the time of the last of them.
                Some(late) => match self.lines(late) {
                    Ok(Some((mut out, pts))) => {
                        out.make_mut().set_pts(pts);
                        self.src.push(out).is_ok()
                    }
                    Ok(None) => true,
                    Err(_) => false,
                },
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
                // It reads no pixel: they may lie as they like, and nobody has to copy them for it.
                gst::QueryViewMut::Allocation(q) => {
                    q.add_allocation_meta::<gst_video::VideoMeta>(None);
                    true
                }
                _ => gst::Pad::query_default(pad, parent, query),
            })
            .build();
        let src = pad("src").flags(gst::PadFlags::FIXED_CAPS).build();
        Self { sink, src, format: Mutex::default(), lines: Mutex::default() }
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
