//! # ssmoverlay
//!
//! Draws the results that elements before it found on the frames: a row for each class with its label, a bar and its
//! probability, and at the bottom a timeline that scrolls.
//!
//! ```text
//! gst-launch-1.0 filesrc location=video.mp4 ! decodebin ! videoconvert ! \
//!     ssmclassify model=vim_t_midclstok_76p1acc.pth labels-file=imagenet.txt ! ssmoverlay ! videoconvert ! autovideosink
//! ```
//!
//! Letters and bars grow with the frame's height. In the timeline each element before has a lane: its height is the
//! probability of the best class, its colour that of the class in the rows; the right edge is now. Results without
//! probabilities (vectors) are not drawn. A frame without results shows the last ones, for five seconds at most. A flush
//! clears everything.

use super::canvas::{Brush, Canvas};
use super::panel::{Panel, ROWS, Show};
use crate::base::{bad_caps, lock, metadata, templates};
use crate::{eye, results::META_NAME};
use gst::ClockTime;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::{VideoFrameRef, VideoInfo};
use std::sync::{LazyLock, Mutex};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("ssmoverlay", gst::DebugColorFlags::empty(), Some("Results drawn on frames"))
});

const DEFAULT_SHOW: Show = Show { rows: 5, timeline: true, span: ClockTime::from_seconds(10) };

struct Flow {
    info: VideoInfo,
    brush: Brush,
    /// Time of the last frame, for frames without one.
    now: ClockTime,
    /// Whether frames that cannot be drawn on are coming, so that a stretch of them warns once.
    odd: bool,
}

pub struct Overlay {
    show: Mutex<Show>,
    flow: Mutex<Option<Flow>>,
    panel: Mutex<Panel>,
}

impl Default for Overlay {
    fn default() -> Self {
        Self { show: Mutex::new(DEFAULT_SHOW), flow: Mutex::default(), panel: Mutex::default() }
    }
}

#[glib::object_subclass]
impl ObjectSubclass for Overlay {
    const NAME: &'static str = "GstSsmOverlay";
    type Type = super::Overlay;
    type ParentType = gst_base::BaseTransform;
}

impl ObjectImpl for Overlay {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            vec![
                glib::ParamSpecUInt::builder("rows")
                    .nick("Rows")
                    .blurb("Classes shown of each element at most (0: no rows)")
                    .maximum(ROWS as u32)
                    .default_value(DEFAULT_SHOW.rows as u32)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecBoolean::builder("timeline")
                    .nick("Timeline")
                    .blurb("Draw the course of the best class's probability at the bottom")
                    .default_value(DEFAULT_SHOW.timeline)
                    .mutable_playing()
                    .build(),
                glib::ParamSpecUInt64::builder("timeline-span")
                    .nick("Timeline span")
                    .blurb("Time from the left edge of the timeline to the right one, in ns")
                    .minimum(ClockTime::from_mseconds(100).nseconds())
                    .maximum(ClockTime::from_seconds(3600).nseconds())
                    .default_value(DEFAULT_SHOW.span.nseconds())
                    .mutable_playing()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut show = lock(&self.show);
        match pspec.name() {
            "rows" => show.rows = value.get::<u32>().map_or(show.rows, |n| n as usize),
            "timeline" => show.timeline = value.get().unwrap_or(show.timeline),
            _ => show.span = value.get().map_or(show.span, ClockTime::from_nseconds),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let show = *lock(&self.show);
        match pspec.name() {
            "rows" => (show.rows as u32).to_value(),
            "timeline" => show.timeline.to_value(),
            _ => show.span.nseconds().to_value(),
        }
    }
}

impl GstObjectImpl for Overlay {}

impl ElementImpl for Overlay {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            metadata(
                "State-space results overlay",
                "Filter/Editor/Video",
                "Draws the results of state-space elements on frames: labels, bars and a timeline",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| templates(&eye::caps(), &eye::caps()));
        &TEMPLATES
    }
}

impl BaseTransformImpl for Overlay {
    const MODE: gst_base::subclass::BaseTransformMode = gst_base::subclass::BaseTransformMode::AlwaysInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        *lock(&self.flow) = None;
        lock(&self.panel).clear();
        Ok(())
    }

    fn set_caps(&self, incaps: &gst::Caps, _outcaps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let info = VideoInfo::from_caps(incaps).map_err(|e| {
            let error = bad_caps("video/x-raw", "whole caps", e);
            gst::element_imp_error!(self, gst::CoreError::Negotiation, ("{error}"));
            gst::loggable_error!(CAT, "caps {incaps}: {error}")
        })?;
        let brush = Brush::new(&info);
        *lock(&self.flow) = Some(Flow { info, brush, now: ClockTime::ZERO, odd: false });
        Ok(())
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        if event.type_() == gst::EventType::FlushStop {
            lock(&self.panel).clear();
        }
        self.parent_sink_event(event)
    }

    fn propose_allocation(
        &self,
        decided: Option<&gst::query::Allocation>,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        self.parent_propose_allocation(decided, query)?;
        eye::whole_frames_only(query);
        Ok(())
    }

    fn transform_ip(&self, buffer: &mut gst::BufferRef) -> Result<gst::FlowSuccess, gst::FlowError> {
        let show = *lock(&self.show);
        let mut flow = lock(&self.flow);
        let Some(Flow { info, brush, now, odd }) = flow.as_mut() else {
            gst::element_imp_error!(self, gst::CoreError::Negotiation, ("frame before caps"));
            return Err(gst::FlowError::NotNegotiated);
        };
        *now = buffer.pts().unwrap_or(*now);
        let mut panel = lock(&self.panel);
        if let Ok(meta) = gst::meta::CustomMeta::from_buffer(buffer, META_NAME) {
            panel.note(meta.structure(), *now);
        }
        let (at, size, within) = (buffer.pts().display(), buffer.size(), eye::planes_within(buffer, info));
        let within = within.map_err(|what| format!("frame at {at}: {what}"));
        let frame = within.and_then(|()| {
            let wrong = |_| format!("frame at {at}: expected {} bytes, got {size}", info.size());
            VideoFrameRef::from_buffer_ref_writable(buffer, info).map_err(wrong)
        });
        let mut frame = match frame {
            Ok(frame) => frame,
            Err(text) => {
                // One stray frame ends no stream.
                if !std::mem::replace(odd, true) {
                    gst::element_imp_warning!(self, gst::StreamError::Format, ("{text}; nothing is drawn on it"));
                }
                return Ok(gst::FlowSuccess::Ok);
            }
        };
        *odd = false;
        panel.draw(&mut Canvas::new(brush, &mut frame), brush, &show, *now);
        Ok(gst::FlowSuccess::Ok)
    }
}
