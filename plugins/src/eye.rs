//! Video frames before a model: formats, preprocessing, the time between frames.

use crate::base::{Base, bad_caps};
use crate::cuda;
use crate::model::{Counters, ModelSettings};
use crate::timeline::{Follows, GapPolicy, ResetOn, follows};
use gst::ClockTime;
use gst::prelude::*;
use gst_video::prelude::*;
use gst_video::{VideoCapsBuilder, VideoColorMatrix, VideoFormat, VideoFrameRef, VideoInfo};
use ssm_models::frontend::image::{CardPlan, CardPlane, ImagePlan, PixelFormat, Plane, Yuv};
use ssm_models::kernels::Cx;
use ssm_models::{Device, Engine, Error, Row, Signal, Snapshot, SnapshotHeader, State, Stream};
use std::sync::Arc;

/// Frame time where caps say none.
const DEFAULT_FRAME: ClockTime = ClockTime::from_mseconds(40);

/// The formats that the front end reads.
const FORMATS: [VideoFormat; 17] = [
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
    VideoFormat::Yv12,
    VideoFormat::Nv21,
    VideoFormat::Yuy2,
    VideoFormat::Uyvy,
];

/// How many of them are read on a card, too: those before the packed ones.
const ON_CARD: usize = 15;

/// Caps of frames in the machine's memory.
pub(crate) fn caps() -> gst::Caps {
    VideoCapsBuilder::new().format_list(FORMATS).build()
}

/// Elements that take frames as the caps describe them get no larger ones with a rectangle in a meta: whoever cuts them out
/// copies them then.
pub(crate) fn whole_frames_only(query: &mut gst::query::Allocation) {
    if let Some(crop) = query.find_allocation_meta::<gst_video::VideoCropMeta>() {
        query.remove_nth_allocation_meta(crop);
    }
}

/// Caps that are read: frames in the machine's memory, or on a card.
pub(crate) fn either() -> gst::Caps {
    let mut caps = caps();
    caps.merge(
        VideoCapsBuilder::new().features([cuda::FEATURE]).format_list(FORMATS[..ON_CARD].iter().copied()).build(),
    );
    caps
}

/// Whether frames of these caps lie on a card.
fn on_card(caps: &gst::CapsRef) -> bool {
    caps.features(0).is_some_and(|features| features.contains(cuda::FEATURE))
}

/// The front end's name of a format; `None` for one that is not in [`FORMATS`].
fn pixels(info: &VideoInfo) -> Option<PixelFormat> {
    let colour = info.colorimetry();
    let full = colour.range() == gst_video::VideoColorRange::Range0_255;
    let yuv = match (colour.matrix(), full) {
        (VideoColorMatrix::Bt709, true) => Yuv::Bt709Full,
        (VideoColorMatrix::Bt709, false) => Yuv::Bt709Limited,
        (VideoColorMatrix::Bt2020, true) => Yuv::Bt2020Full,
        (VideoColorMatrix::Bt2020, false) => Yuv::Bt2020Limited,
        (VideoColorMatrix::Smpte240m, true) => Yuv::Smpte240mFull,
        (VideoColorMatrix::Smpte240m, false) => Yuv::Smpte240mLimited,
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
        VideoFormat::Yv12 => PixelFormat::Yv12(yuv),
        VideoFormat::Nv21 => PixelFormat::Nv21(yuv),
        VideoFormat::Yuy2 => PixelFormat::Yuy2(yuv),
        VideoFormat::Uyvy => PixelFormat::Uyvy(yuv),
        _ => return None,
    })
}

/// That each plane lies inside the memory that is mapped for it: a meta may say anything.
pub(crate) fn planes_within(buffer: &gst::BufferRef, info: &VideoInfo) -> Result<(), String> {
    let Some(meta) = buffer.meta::<gst_video::VideoMeta>() else { return Ok(()) };
    // Frames may be larger in memory than they are shown, as those of decoders.
    if meta.format() != info.format() || meta.width() < info.width() || meta.height() < info.height() {
        let of = |format: VideoFormat, width, height| format!("{width}x{height} {}", format.to_str());
        let expected = of(info.format(), info.width(), info.height());
        return Err(format!("video meta: expected {expected}, got {}", of(meta.format(), meta.width(), meta.height())));
    }
    for (i, (offset, stride)) in meta.offset().iter().zip(meta.stride()).enumerate().take(info.n_planes() as usize) {
        // The components of a packed plane may be of different widths.
        let inside = (0..info.n_components() as u8).filter(|c| info.comp_plane(*c) as usize == i);
        let format = info.format_info();
        let rows = inside.clone().map(|c| u64::from(format.scale_height(c, meta.height()))).max().unwrap_or(0);
        let bytes =
            |c: u8| u64::from(format.scale_width(c, meta.width())) * u64::from(info.comp_pstride(c).unsigned_abs());
        let row = inside.map(bytes).max().unwrap_or(0);
        let Some(stride) = u64::try_from(*stride).ok().filter(|stride| *stride >= row) else {
            return Err(format!("plane {i}: expected a stride of {row} bytes or more, got {stride}"));
        };
        let end = (*offset as u64).saturating_add(rows.saturating_sub(1).saturating_mul(stride)).saturating_add(row);
        // Of a buffer in several memories only the one in which the plane begins is mapped.
        let first = if *offset < buffer.size() { buffer.find_memory(*offset..=*offset) } else { None };
        let limit = first.map_or(0, |(memories, skip)| offset - skip + buffer.peek_memory(memories.start).size());
        if end > limit as u64 {
            return Err(format!(
                "plane {i}: expected it within one memory, which ends at {limit}, got its end at {end}"
            ));
        }
    }
    Ok(())
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// The model took a step.
    Step,
    /// It had no turn, or what the model said was no number.
    Pass,
    /// It had its turn, but was late, or the engine was busy.
    Drop,
}

/// Where frames become input.
enum Sight {
    Here(Box<ImagePlan>, Cx),
    Card(Box<CardPlan>),
}

impl Sight {
    /// A frame's input, to a row. The outer error says what the buffer is, the inner one what went wrong with a frame.
    fn see(&mut self, buffer: &gst::BufferRef, info: &VideoInfo, row: &mut Row) -> Result<Result<(), Error>, String> {
        match self {
            Self::Here(plan, cx) => {
                planes_within(buffer, info)?;
                let frame = VideoFrameRef::from_buffer_ref_readable(buffer, info)
                    .map_err(|_| format!("expected {} bytes, got {}", info.size(), buffer.size()))?;
                let mut planes = [Plane { data: &[], stride: 0 }; 3];
                for (i, plane) in planes.iter_mut().enumerate().take(frame.n_planes() as usize) {
                    plane.data = frame.plane_data(i as u32).unwrap_or_default();
                    plane.stride = usize::try_from(frame.plane_stride()[i]).unwrap_or(0);
                }
                row.there = None;
                Ok(plan.run(cx, &planes[..frame.n_planes() as usize], &mut row.x))
            }
            Self::Card(plan) => {
                let frame = cuda::Frame::map(buffer, info)?;
                let mut planes = [CardPlane::default(); 3];
                let count = frame.planes().zip(&mut planes).map(|(from, to)| *to = from).count();
                Ok(plan.run(&planes[..count], &frame.context).map(|input| row.there = Some(input)))
            }
        }
    }
}

/// How a frame follows the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It goes on, perhaps after a gap.
    On,
    /// A stream with a fresh state begins.
    Anew,
    /// Another place of the stream, with the state as it is.
    Elsewhere,
}

/// A stream of frames of one size and format.
pub(crate) struct Eye {
    info: VideoInfo,
    sight: Sight,
    stream: Stream,
    /// When the next frame is expected.
    expected: Option<ClockTime>,
    /// Time of the last frame that had one.
    last: Option<ClockTime>,
    /// Frames since the last inference; the first frame waits for none.
    waited: u32,
    /// Steps that went by since the last turn, by the time that the frames stand.
    passed: f64,
    /// When the next step is due, where only times tell how far apart frames are.
    due: Option<ClockTime>,
    /// Steps without inference by which the state has not aged yet: it does so once, before the next step.
    missing: f64,
    /// Whether the state is a snapshot's and no frame has come since.
    resumed: bool,
    /// Whether the state was lost at the last frame.
    broken: bool,
    warned: bool,
    /// Whether frames that are none of the caps are coming, likewise.
    odd: bool,
}

impl Eye {
    /// A stream of frames of `caps`. Returns the snapshot's header with it.
    ///
    /// # Errors
    /// The caps or the model are for something else, or the snapshot does not fit.
    pub(crate) fn new(
        engine: &Arc<Engine>,
        caps: &gst::CapsRef,
        restored: Option<Snapshot>,
    ) -> Result<(Self, Option<SnapshotHeader>), Error> {
        let info = VideoInfo::from_caps(caps).map_err(|e| bad_caps("video/x-raw", "whole caps", e))?;
        let mut eye = Self::of(engine, info, on_card(caps))?;
        let header = restored.map(|snapshot| eye.restore(snapshot)).transpose()?;
        Ok((eye, header))
    }

    fn of(engine: &Arc<Engine>, info: VideoInfo, on_card: bool) -> Result<Self, Error> {
        let format = pixels(&info).ok_or_else(|| bad_caps("format", "one of the template", info.format()))?;
        let Signal::Image { height, width, channels } = engine.info().input else {
            return Err(bad_caps("model", "a model of frames", engine.info().family));
        };
        if channels != 3 {
            return Err(bad_caps("model", "three colour planes", channels));
        }
        let size = (info.height() as usize, info.width() as usize);
        let plan = ImagePlan::with_pixels(size, format, (height, width), &engine.info().facts.pixels)?;
        let sight = match (on_card, engine.device().0) {
            (false, _) => Sight::Here(Box::new(plan), Cx::new(1)?),
            (true, Device::Cuda(index)) => Sight::Card(Box::new(CardPlan::new(index, plan)?)),
            // A model that took the place of one on the card.
            (true, _) => Sight::Card(Box::new(CardPlan::new(0, plan)?)),
        };
        Ok(Self {
            info,
            sight,
            stream: engine.stream(1),
            expected: None,
            last: None,
            waited: u32::MAX,
            passed: 0.0,
            due: None,
            missing: 0.0,
            resumed: false,
            broken: false,
            warned: false,
            odd: false,
        })
    }

    /// The same stream under another engine, with its state (`kept`) or without.
    ///
    /// # Errors
    /// The model is for something else.
    pub(crate) fn heir(&mut self, engine: &Arc<Engine>, kept: bool) -> Result<Self, Error> {
        let mut heir = Self::of(engine, self.info.clone(), matches!(self.sight, Sight::Card(_)))?;
        (heir.expected, heir.last) = (self.expected, self.last);
        if kept {
            let (old, new) = (self.stream.row(), heir.stream.row());
            new.state.clone_from(&old.state);
            // The last frame, for the end of stream.
            if old.settle().is_ok() && new.x.len() == old.x.len() {
                new.x.clone_from(&old.x);
            }
            (heir.waited, heir.passed, heir.due) = (self.waited, self.passed, self.due);
            (heir.missing, heir.resumed) = (self.missing, self.resumed);
        }
        Ok(heir)
    }

    /// How long a frame stands, where the buffer or the caps say so.
    fn said_time(&self, buffer: &gst::BufferRef) -> Option<ClockTime> {
        let said = buffer.duration().filter(|t| !t.is_zero()).or_else(|| {
            let fps = self.info.fps();
            let (num, den) = (u64::try_from(fps.numer()).ok()?, u64::try_from(fps.denom()).ok()?);
            (num > 0).then(|| ClockTime::from_nseconds(ClockTime::SECOND.nseconds() * den / num))
        });
        said.filter(|t| !t.is_zero())
    }

    /// How long a frame stands.
    fn frame_time(&self, buffer: &gst::BufferRef) -> ClockTime {
        self.said_time(buffer).unwrap_or(DEFAULT_FRAME)
    }

    /// Compares a frame's time with those before it, and takes note of what is missing.
    pub(crate) fn arrive(&mut self, base: &Base, settings: &ModelSettings, buffer: &gst::BufferRef) -> Arrival {
        let discont = buffer.flags().contains(gst::BufferFlags::DISCONT) && settings.resets(ResetOn::DISCONT);
        if base.take_reset() || discont && self.began() {
            return Arrival::Anew;
        }
        // Half a frame is jitter. Frames may come closer than they say that they last; a step back is one that comes
        // before the last one.
        let frame_time = self.frame_time(buffer);
        let tolerance = frame_time / 2;
        let onward = buffer.pts() >= self.last;
        let expected = self.last.and(self.expected).map(|t| {
            let now = buffer.pts().unwrap_or(t);
            // Up to the next step nothing is missing, however short frames are said to be.
            let due = self.due.map_or(ClockTime::ZERO, |due| due.min(now));
            if onward { t.min(now).max(due) } else { t }
        });
        match follows(expected, buffer.pts(), tolerance, settings.max_gap.max(tolerance)) {
            Follows::On => {}
            Follows::Jump if settings.resets(ResetOn::JUMP) => return Arrival::Anew,
            Follows::Jump => return Arrival::Elsewhere,
            Follows::Gap(missing) => {
                gst::debug!(crate::CAT, "at {}: {missing} missing", buffer.pts().display());
                match settings.gap_policy {
                    GapPolicy::Step => self.missing += self.steps(missing, frame_time),
                    GapPolicy::Hold => {}
                    GapPolicy::Reset => return Arrival::Anew,
                }
            }
        }
        Arrival::On
    }

    /// Shows one frame to the model, unless it is `late`. What the model says lies in [`Eye::output`] then.
    pub(crate) fn look(
        &mut self,
        obj: &gst::Element,
        base: &Base,
        settings: &ModelSettings,
        interval: u32,
        late: bool,
        buffer: &gst::BufferRef,
    ) -> Result<Look, gst::FlowError> {
        let frame_time = self.frame_time(buffer);
        let apart = buffer.pts().zip(self.last).and_then(|(now, last)| now.checked_sub(last));
        self.broken = false;
        if self.resumed && buffer.pts() != self.expected {
            // Another clock, or a time that nobody saw.
            self.due = None;
        }
        // Frames without times count from 0.
        self.expected = Some(buffer.pts().or(self.expected).unwrap_or_default().saturating_add(frame_time));
        self.last = buffer.pts().or(self.last);
        self.resumed = false;
        self.waited = self.waited.saturating_add(1);
        self.passed += self.steps(frame_time, frame_time);
        if !self.has_turn(interval, buffer, apart) {
            Counters::add(&base.counters.dropped, 1);
            return Ok(Look::Pass);
        }
        self.waited = 0;
        let passed = std::mem::take(&mut self.passed);
        // Steps of the usual length are those of the training: nothing is missing between them.
        if interval != 0 {
            self.missing += (passed - 1.0).max(0.0);
        }
        if late {
            return Ok(self.drop(base));
        }
        let seen = match self.sight.see(buffer, &self.info, self.stream.row()) {
            Ok(seen) => seen,
            Err(what) => {
                // One stray frame ends no stream.
                if !std::mem::replace(&mut self.odd, true) {
                    base.warn(obj, &format!("frame at {}: {what}; it passes unseen", buffer.pts().display()));
                }
                return Ok(self.drop(base));
            }
        };
        self.odd = false;
        self.age();
        let done = seen.and_then(|()| match settings.patience() {
            Some(patience) => self.stream.run_within(1, patience),
            None => self.stream.run(1).map(|()| true),
        });
        match done {
            Ok(true) => {}
            Ok(false) => return Ok(self.drop(base)),
            Err(error) => return Err(base.fail(obj, gst::StreamError::Failed, &error.to_string())),
        }
        Counters::add(&base.counters.steps, 1);
        if let Some(i) = self.stream.row().y.iter().position(|s| !s.is_finite()) {
            Counters::add(&base.counters.not_finite, 1);
            if !std::mem::replace(&mut self.warned, true) {
                let (value, at) = (self.stream.row().y[i], buffer.pts().display());
                let expected = format!("a finite score of class {i}");
                base.warn(obj, &format!("frame at {at}: expected {expected}, got {value}; the state is reset"));
            }
            self.reset();
            base.count_reset(obj, true);
            return Ok(Look::Pass);
        }
        self.warned = false;
        Ok(Look::Step)
    }

    /// A frame passes that had its turn: its step's time goes by.
    fn drop(&mut self, base: &Base) -> Look {
        self.missing += 1.0;
        Counters::add(&base.counters.dropped, 1);
        Look::Drop
    }

    /// The state ages by the frames without inference.
    fn age(&mut self) {
        if self.missing > 0.0 {
            self.stream.gap(std::mem::take(&mut self.missing));
        }
    }

    /// The number of the last step, and what the model said.
    pub(crate) fn output(&mut self) -> (u64, &mut [f32]) {
        let row = self.stream.row();
        (row.state.steps, &mut row.y)
    }

    /// Steps a second that the model was trained at.
    fn trained(&self) -> Option<f64> {
        self.stream.engine().info().facts.step_rate
    }

    /// Steps of the model in a time; where nothing says how long one is, it is a frame.
    fn steps(&self, time: ClockTime, frame_time: ClockTime) -> f64 {
        let time = time.nseconds() as f64;
        self.trained().map_or(time / frame_time.nseconds() as f64, |rate| time * 1e-9 * rate)
    }

    /// Whether the frame at `pts`, so far `apart` from the one before, is one that the model sees: every `interval`-th, or
    /// about as many a second as in its training.
    fn has_turn(&mut self, interval: u32, buffer: &gst::BufferRef, apart: Option<ClockTime>) -> bool {
        let Some(rate) = self.trained().filter(|_| interval == 0) else { return self.waited >= interval };
        let step = ClockTime::from_nseconds((1e9 / rate).min(1e18) as u64);
        // The frame that is nearest to its time takes the turn.
        let (pts, said, near) = (buffer.pts(), self.said_time(buffer), apart.unwrap_or_default() / 2);
        // A due time of another clock says nothing.
        let due = self.due.filter(|due| pts.is_none_or(|pts| *due <= pts.saturating_add(step)));
        let turn = match (said, pts) {
            // So many frames, but no fewer steps than the times want: caps may say more frames than come.
            (Some(frame), _) => {
                let frames = (step.nseconds() as f64 / frame.nseconds() as f64).round().clamp(1.0, 1e6);
                f64::from(self.waited) >= frames
                    || due.zip(pts).is_some_and(|(due, pts)| pts.saturating_add(near.min(step / 4)) >= due)
            }
            // Only times tell how far apart frames are.
            (None, Some(pts)) => due.is_none_or(|due| pts.saturating_add(near) >= due),
            (None, None) => true,
        };
        if turn {
            let after = |pts: ClockTime| match due {
                Some(due) if said.is_none() && pts < due.saturating_add(step) => due.saturating_add(step),
                _ => pts.saturating_add(step),
            };
            self.due = pts.map(after);
        }
        turn
    }

    /// The state, for [`Eye::put_back`].
    pub(crate) fn kept(&mut self) -> (State, f64) {
        (self.stream.state().clone(), self.missing)
    }

    /// Goes on from a state of [`Eye::kept`]; the next frame may have any time.
    pub(crate) fn put_back(&mut self, (state, missing): (State, f64)) {
        *self.stream.state() = state;
        self.missing = missing;
        (self.expected, self.last, self.due, self.resumed) = (None, None, None, true);
    }

    /// What the model says of the last frame once more; `None` before the first.
    pub(crate) fn again(&mut self) -> Option<&mut [f32]> {
        if self.is_fresh() {
            return None;
        }
        self.age();
        self.stream.run(1).ok()?;
        let y = &mut self.stream.row().y;
        y.iter().all(|v| v.is_finite()).then_some(y)
    }

    /// When the next frame is expected.
    pub(crate) fn now(&self) -> ClockTime {
        self.expected.unwrap_or_default()
    }

    /// Whether frames have come since the caps, a snapshot or a reset.
    pub(crate) fn began(&self) -> bool {
        !self.resumed && self.expected.is_some()
    }

    /// Whether no frame has come since the caps or a reset, nor before a snapshot.
    pub(crate) fn is_fresh(&self) -> bool {
        !self.began() && !self.resumed
    }

    /// Whether the state was lost at the last frame: what came before it is complete.
    pub(crate) fn broken(&self) -> bool {
        self.broken
    }

    /// Makes the state a fresh one.
    pub(crate) fn reset(&mut self) {
        self.stream.reset();
        (self.expected, self.last, self.due) = (None, None, None);
        (self.waited, self.resumed) = (u32::MAX, false);
        (self.missing, self.passed) = (0.0, 0.0);
        self.broken = true;
    }

    /// The state, when the next frame is expected, and the last frame if the end of stream still needs it.
    pub(crate) fn snapshot(&mut self, mut header: SnapshotHeader) -> Snapshot {
        if let Some(pts) = self.expected {
            header.extra.insert("pts".into(), pts.nseconds().to_string());
        }
        header.extra.insert("waited".into(), self.waited.to_string());
        header.extra.insert("missing".into(), self.missing.to_string());
        header.extra.insert("passed".into(), self.passed.to_string());
        if let Some(due) = self.due {
            header.extra.insert("due".into(), due.nseconds().to_string());
        }
        let needed = !self.is_fresh() && self.stream.engine().info().facts.look_ahead > 0;
        let row = self.stream.row();
        let pending = if needed && row.settle().is_ok() { row.x.clone() } else { vec![] };
        Snapshot { states: vec![row.state.clone()], pending, header }
    }

    /// Goes on from a snapshot; the next frame may have any time. Returns its header.
    ///
    /// # Errors
    /// It holds another number of states than one, or a frame of another size.
    pub(crate) fn restore(&mut self, snapshot: Snapshot) -> Result<SnapshotHeader, Error> {
        let bad = |field: &str, expected: String, got: usize| Error::Snapshot {
            field: field.into(),
            expected,
            got: got.to_string(),
        };
        let [state] = <[State; 1]>::try_from(snapshot.states).map_err(|s| bad("streams", "1".into(), s.len()))?;
        let row = self.stream.row();
        let frame = snapshot.pending;
        if frame.len() == row.x.len() {
            (row.x, row.there) = (frame, None);
        } else if !frame.is_empty() {
            return Err(bad("pending", format!("0 or {} values", row.x.len()), frame.len()));
        }
        row.state = state;
        let said = |name: &str| snapshot.header.extra.get(name);
        let steps = |name: &str| {
            let steps = said(name).and_then(|n| n.parse().ok());
            steps.filter(|n: &f64| n.is_finite() && *n >= 0.0).unwrap_or(0.0)
        };
        let time = |name: &str| {
            let time = said(name).and_then(|n| n.parse().ok()).filter(|ns: &u64| *ns < 1 << 62);
            time.map(ClockTime::from_nseconds)
        };
        (self.missing, self.passed, self.due) = (steps("missing"), steps("passed"), time("due"));
        // A frame with a time may have any; frames without go on counting.
        self.expected = time("pts");
        let waited = said("waited").and_then(|n| n.parse().ok());
        (self.last, self.waited, self.resumed) = (None, waited.unwrap_or(u32::MAX), true);
        Ok(snapshot.header)
    }
}
