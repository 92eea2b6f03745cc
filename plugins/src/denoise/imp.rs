//! # ssmdenoise
//!
//! Takes noise out of speech. Any checkpoint of the CleanUMamba family runs; without one the builtin network does.
//!
//! ```text
//! gst-launch-1.0 filesrc location=noisy.wav ! wavparse ! audioconvert ! audioresample ! ssmdenoise ! \
//!     audioconvert ! wavenc ! filesink location=clean.wav
//! ```
//!
//! The element negotiates the model's own rate (16 kHz for all published files), `F32LE` or `S16LE`, any number of
//! channels; each channel is a stream of its own. As many samples come out as go in; each keeps its time. The latency is
//! constant, answered to LATENCY queries, and never depends on how the input is cut.
//!
//! State: fresh at caps; aged over gaps of the timestamps up to `max-gap` as `gap-policy` says; fresh again after a
//! flush, a new segment, a longer gap, a jump back, or the signal `reset-state`. At end of stream what is still inside
//! comes out, unless `state-out` is set: then it goes into the snapshot, and a run that starts with it as `state-in`
//! continues to the bit.

use super::flow::Flow;
use crate::base::{Base, lock, metadata, templates, text};
use crate::ear::{self, TOLERANCE};
use crate::model::{Counters, ModelSettings};
use crate::reload::{self, Holds, Modelled, Reload};
use crate::results::{RESET, Results};
use crate::state::{self, Stateful};
use crate::timeline::{self, Clock, Follows, GapPolicy, ResetOn, follows};
use gst::ClockTime;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_audio::AudioInfo;
use ssm_models::{AudioStream, Engine, Error, LevelRule, Options, Signal, SnapshotHeader};
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, Mutex};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("ssmdenoise", gst::DebugColorFlags::empty(), Some("State-space speech denoiser"))
});

const DEFAULT_MODEL: &str = "builtin:denoise";

/// How the level that the network divides by is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstSsmLevelRule")]
enum Level {
    #[default]
    #[enum_value(name = "Model: what the file says, else smoothed", nick = "model")]
    Model,
    #[enum_value(name = "Smoothed: power of the last seconds", nick = "smoothed")]
    Smoothed,
    #[enum_value(name = "Upstream: mean of the frames' deviations since the start", nick = "upstream")]
    Upstream,
    #[enum_value(name = "Fixed: the property level", nick = "fixed")]
    Fixed,
}

#[derive(Clone)]
struct Settings {
    model: ModelSettings,
    level_rule: Level,
    level: f32,
    /// In dB; [`NO_LIMIT`] and more is none.
    attenuation_limit: f32,
}

/// What no ear and no sample of 16 bits knows from silence, in dB.
const NO_LIMIT: f32 = 100.0;

impl Default for Settings {
    fn default() -> Self {
        Self {
            model: ModelSettings::new(Some(DEFAULT_MODEL), 1),
            level_rule: Level::default(),
            level: 0.1,
            attenuation_limit: NO_LIMIT,
        }
    }
}

pub struct Denoise {
    sink: gst::Pad,
    src: gst::Pad,
    settings: Mutex<Settings>,
    base: Base,
    reload: Reload<ClockTime>,
    /// Held while samples are computed, never while they are pushed.
    flow: Mutex<Option<Flow>>,
    segment: Mutex<Option<gst::Event>>,
}

impl Holds for Denoise {
    /// The latency.
    type Fit = ClockTime;

    fn base(&self) -> &Base {
        &self.base
    }

    fn reload(&self) -> &Reload<ClockTime> {
        &self.reload
    }

    fn with_model<R>(&self, change: impl FnOnce(&mut ModelSettings) -> R) -> R {
        change(&mut lock(&self.settings).model)
    }
}

impl Modelled for Denoise {
    fn options(&self) -> Options {
        let settings = lock(&self.settings);
        let level_rule = match settings.level_rule {
            Level::Model => LevelRule::Model,
            Level::Smoothed => LevelRule::Smoothed,
            Level::Upstream => LevelRule::Upstream,
            Level::Fixed => LevelRule::Fixed(settings.level),
        };
        let limit = settings.attenuation_limit;
        let floor = if limit < NO_LIMIT { 10f32.powf(-limit / 20.0) } else { 0.0 };
        Options { level_rule, floor, ..Options::default() }
    }

    fn fits(&self, engine: &Arc<Engine>, _: &ModelSettings) -> Result<ClockTime, Error> {
        let audio = AudioStream::new(engine, 1)?;
        let latency = (audio.latency() as u64).mul_div_ceil(*ClockTime::SECOND, u64::from(audio.rate()));
        Ok(ClockTime::from_nseconds(latency.unwrap_or(0)))
    }

    fn adopt(&self, latency: ClockTime) {
        self.base.counters.latency_ns.store(latency.nseconds(), Ordering::Relaxed);
    }
}

impl Denoise {
    /// Goes on with the model that was opened to take over, if there is one. Where the state cannot be kept, what is
    /// inside comes out of the old one first, before the buffer at `pts`. Returns what is to be posted.
    fn exchange(
        &self,
        flow: &mut Flow,
        pts: Option<ClockTime>,
    ) -> Result<Vec<gst::Message>, Box<(ModelSettings, Error)>> {
        let (Some(next), Some(old)) = (self.reload.take(), self.base.engine()) else { return Ok(vec![]) };
        let kept = reload::agree(&old, &next.engine);
        let heir = AudioStream::new(&next.engine, flow.audio.channels()).and_then(|mut heir| {
            if kept {
                heir.restore(flow.audio.snapshot(SnapshotHeader::default()))?;
            }
            Ok(heir)
        });
        let heir = heir.map_err(|error| Box::new((next.settings.clone(), error)))?;
        if !kept {
            let silenced = flow.audio.silenced();
            if let (false, Some(pts)) = (flow.clock.has_time(), pts.or(flow.after)) {
                flow.begin(pts);
            }
            flow.audio.drain(&mut flow.out);
            self.note_silence(flow, silenced, 0);
            self.base.count_reset(self.obj().upcast_ref(), true);
        }
        flow.audio = heir;
        let latency = next.fit;
        let other = self.base.counters.latency_ns.load(Ordering::Relaxed) != latency.nseconds();
        let told = reload::install(self, next, kept);
        let latency = other.then(|| gst::message::Latency::builder().src(&*self.obj()).build());
        Ok(told.into_iter().chain(latency).collect())
    }

    /// Caps that the model runs at.
    fn allowed(&self) -> gst::Caps {
        let mut caps = self.sink.pad_template_caps();
        if let Some(Signal::Samples { rate, .. }) = self.base.engine().map(|e| e.info().input) {
            caps.make_mut().iter_mut().for_each(|s| s.set("rate", rate as i32));
        }
        caps
    }

    /// Caps that `pad` can take, given what the other pad's peer can.
    fn caps(&self, pad: &gst::Pad, filter: Option<&gst::CapsRef>) -> gst::Caps {
        let other = if *pad == self.sink { &self.src } else { &self.sink };
        let allowed = self.allowed();
        let caps = other.peer_query_caps(Some(&allowed)).intersect_with_mode(&allowed, gst::CapsIntersectMode::First);
        match filter {
            Some(filter) => filter.intersect_with_mode(&caps, gst::CapsIntersectMode::First),
            None => caps,
        }
    }

    /// Makes the streams of new caps; where the state goes on (not `fresh`), they have that of the old ones, if there are
    /// as many.
    fn set_caps(&self, caps: &gst::CapsRef, fresh: bool) -> Result<(), String> {
        let info = ear::info(caps).map_err(|e| e.to_string())?;
        let engine = self.base.engine().ok_or_else(|| "no model is open".to_owned())?;
        let mut audio = AudioStream::new(&engine, info.channels() as usize).map_err(|e| format!("{e}"))?;
        if audio.rate() != info.rate() {
            let rate = audio.rate();
            return Err(format!("rate: expected {rate} Hz (the model's), got {} Hz", info.rate()));
        }
        let goes_on = || {
            let mut flow = lock(&self.flow);
            let old = flow.as_mut().filter(|f| !fresh && f.audio.channels() == audio.channels())?;
            Some(old.audio.snapshot(SnapshotHeader::default()))
        };
        let restored = self.base.restored(&engine).map(|restored| restored.or_else(goes_on));
        if let Err(error) = restored.and_then(|s| s.map_or(Ok(()), |s| audio.restore(s))) {
            return Err(text(&self.base.of_state(error)));
        }
        self.base.begun();
        let flow = Flow {
            clock: Clock::new(info.rate()),
            info,
            audio,
            given: 0,
            taken: 0,
            discont: true,
            warned: false,
            silent: false,
            samples: Vec::new(),
            out: Vec::new(),
            results: Vec::new(),
            after: None,
        };
        *lock(&self.flow) = Some(flow);
        Ok(())
    }

    /// Says what was to be said and pushes buffers, in order.
    fn push(&self, buffers: impl IntoIterator<Item = gst::Buffer>) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.base.speak(self.obj().upcast_ref());
        buffers.into_iter().try_fold(gst::FlowSuccess::Ok, |_, buffer| self.src.push(buffer))
    }

    fn no_memory(&self, error: glib::BoolError) -> gst::FlowError {
        self.base.fail(self.obj().upcast_ref(), gst::StreamError::Failed, &format!("buffer: {error}"))
    }

    /// Counts hops that became silence since there were `silenced`, at `steps`, and warns once a stretch of them.
    fn note_silence(&self, flow: &mut Flow, silenced: u64, steps: u64) {
        let more = flow.audio.silenced() - silenced;
        Counters::add(&self.base.counters.not_finite, more);
        Counters::add(&self.base.counters.resets, more);
        if more > 0 && !std::mem::replace(&mut flow.silent, true) {
            let at = flow.clock.time(flow.given).display();
            let text = "expected finite ones of the model, got others; they are silence, and the state is reset";
            self.base.warn(self.obj().upcast_ref(), &format!("samples at {at}: {text}"));
        }
        flow.silent &= more > 0 || flow.audio.steps() <= steps;
    }

    /// Where the segment begins; `None` before there is one.
    fn start(&self) -> Option<ClockTime> {
        let segment = lock(&self.segment);
        let gst::EventView::Segment(event) = segment.as_ref()?.view() else { return None };
        Some(event.segment().downcast_ref::<ClockTime>().and_then(|s| s.start()).unwrap_or_default())
    }

    /// Takes what is inside out, completed with silence; the state is a `fresh` one then, or goes on.
    fn drain(&self, fresh: bool) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.drain_in(fresh, self.start())
    }

    /// As [`Denoise::drain`], in the segment that begins at `start`, if there was one.
    fn drain_in(&self, fresh: bool, start: Option<ClockTime>) -> Result<gst::FlowSuccess, gst::FlowError> {
        let segment;
        let (buffer, late) = {
            let mut flow = lock(&self.flow);
            let Some(flow) = flow.as_mut() else { return Ok(gst::FlowSuccess::Ok) };
            let silenced = flow.audio.silenced();
            // Of a snapshot, if nothing came since: the stream begins behind it.
            if flow.taken == 0 {
                flow.after = flow.after.or(start).or(Some(ClockTime::ZERO));
            }
            flow.empty(fresh);
            self.note_silence(flow, silenced, 0);
            let buffer = flow.take().map_err(|e| self.no_memory(e))?;
            segment = (start.is_none() && buffer.is_some())
                .then(|| gst::event::Segment::new(gst::FormattedSegment::<ClockTime>::new().upcast_ref()));
            flow.rebase(None);
            flow.discont = true;
            (buffer, std::mem::take(&mut flow.results))
        };
        // Nothing may be pushed before one.
        segment.into_iter().for_each(|event| _ = self.src.push_event(event));
        let done = self.push(buffer);
        if !late.is_empty() {
            self.src.push_event(Results::late(&late));
        }
        done
    }

    /// Lets time pass: what is inside comes out, the state ages, stays or starts anew.
    fn gap(&self, flow: &mut Flow, frames: u64, policy: GapPolicy) {
        match policy {
            GapPolicy::Step => flow.audio.gap(frames, &mut flow.out),
            GapPolicy::Hold => flow.empty(false),
            GapPolicy::Reset => {
                flow.empty(true);
                self.base.count_reset(self.obj().upcast_ref(), true);
            }
        }
    }

    fn chain(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let out = self.denoise(buffer).inspect_err(|_| self.base.speak(self.obj().upcast_ref()))?;
        self.push(out)
    }

    /// What comes out for a buffer.
    fn denoise(&self, buffer: gst::Buffer) -> Result<impl Iterator<Item = gst::Buffer> + use<>, gst::FlowError> {
        let settings = lock(&self.settings).model.clone();
        let backwards = lock(&self.segment).as_ref().is_some_and(|event| match event.view() {
            gst::EventView::Segment(e) => e.segment().rate() < 0.0,
            _ => false,
        });
        let (before, after, reloaded) = {
            let mut flow = lock(&self.flow);
            let Some(flow) = flow.as_mut() else {
                return Err(self.base.before_caps(self.obj().upcast_ref()));
            };
            ear::whole_frames(self.obj().upcast_ref(), &self.base, &buffer, flow.info.bpf() as usize)?;
            let reloaded = self.exchange(flow, buffer.pts());
            let mut before = None;
            let discont = buffer.flags().contains(gst::BufferFlags::DISCONT) && settings.resets(ResetOn::DISCONT);
            if self.base.take_reset() || discont && flow.taken > 0 {
                flow.empty(true);
                before = flow.take().map_err(|e| self.no_memory(e))?;
                flow.restart();
                self.base.count_reset(self.obj().upcast_ref(), true);
            }
            let rate = u64::from(flow.info.rate());
            // Where it goes backwards, each buffer is a stretch by itself; nothing is inside.
            let expected = flow.clock.time(flow.taken).filter(|_| !backwards);
            if backwards {
                flow.rebase(None);
                flow.discont = true;
            }
            let tolerance = ear::tolerance(&buffer, expected, false);
            match follows(expected, buffer.pts(), tolerance, settings.max_gap) {
                Follows::On => {
                    let frames = buffer.size() / flow.info.bpf() as usize;
                    flow.clock.follow(flow.taken, buffer.pts(), frames as u64);
                }
                gap @ (Follows::Gap(_) | Follows::Jump) => {
                    let (missing, policy) = match gap {
                        Follows::Gap(time) => (time, settings.gap_policy),
                        _ if settings.resets(ResetOn::JUMP) => (ClockTime::ZERO, GapPolicy::Reset),
                        _ => (ClockTime::ZERO, GapPolicy::Hold),
                    };
                    gst::debug!(CAT, imp = self, "at {}: {gap:?}, {policy:?}", buffer.pts().display());
                    let frames = missing.nseconds().mul_div_round(rate, *ClockTime::SECOND).unwrap_or(u64::MAX);
                    self.gap(flow, frames, policy);
                    before = flow.take().map_err(|e| self.no_memory(e))?;
                    flow.rebase(None);
                    flow.discont = true;
                }
            }
            if let (false, Some(pts)) = (flow.clock.has_time(), buffer.pts().or(flow.after)) {
                // A reset does not hide that time has jumped.
                let tolerance = ear::tolerance(&buffer, flow.after, false);
                let jump = !matches!(follows(flow.after, Some(pts), tolerance, ClockTime::MAX), Follows::On);
                flow.discont |= jump;
                flow.begin(pts);
            }
            flow.after = None;
            // To ask for results by name takes memory.
            if buffer.iter_meta::<gst::Meta>().next().is_some() {
                flow.results.extend(Results::of(&buffer));
            }
            let map = buffer.map_readable().map_err(|e| self.no_memory(e))?;
            let bad = ear::read(flow.info.format(), &map, &mut flow.samples);
            ear::warn_of(bad, &mut flow.warned, self.obj().upcast_ref(), &self.base, &buffer);
            flow.taken += (flow.samples.len() / flow.audio.channels()) as u64;
            let (steps, silenced) = (flow.audio.steps(), flow.audio.silenced());
            if let Err(error) = flow.audio.push(&flow.samples, &mut flow.out) {
                return Err(self.base.fail(self.obj().upcast_ref(), gst::StreamError::Failed, &error.to_string()));
            }
            Counters::add(&self.base.counters.steps, flow.audio.steps().saturating_sub(steps));
            self.note_silence(flow, silenced, steps);
            if backwards {
                let fresh = settings.resets(ResetOn::JUMP);
                flow.empty(fresh);
                self.base.count_reset(self.obj().upcast_ref(), fresh);
            }
            (before, flow.take().map_err(|e| self.no_memory(e))?, reloaded)
        };
        match reloaded {
            Ok(messages) => messages.into_iter().for_each(|message| _ = self.obj().post_message(message)),
            Err(refused) => reload::refuse(self, &refused.0, &refused.1),
        }
        Ok(before.into_iter().chain(after))
    }

    /// Whether samples have come since the last ones were taken out to their end.
    fn took(&self) -> bool {
        lock(&self.flow).as_ref().is_some_and(|flow| flow.taken > 0)
    }

    /// Whether there is a stream of these caps.
    fn flows(&self, caps: &gst::CapsRef) -> bool {
        let info = AudioInfo::from_caps(caps);
        info.is_ok_and(|info| lock(&self.flow).as_ref().is_some_and(|flow| flow.info == info))
    }

    /// Writes `state-out`, if it is set. Says whether it is set.
    fn write_state(&self) -> bool {
        let model = lock(&self.settings).model.clone();
        self.base.write_state(self.obj().upcast_ref(), &model, || self.save())
    }

    fn sink_event(&self, pad: &gst::Pad, event: gst::Event) -> bool {
        use gst::EventView;
        match event.view() {
            // Caps that are the same again begin nothing.
            EventView::Caps(e) if self.flows(e.caps()) => self.src.push_event(event),
            EventView::Caps(e) => {
                let fresh = self.model().resets(ResetOn::CAPS);
                self.base.count_reset(self.obj().upcast_ref(), fresh && self.took());
                let _ = self.drain(fresh);
                if let Err(error) = self.set_caps(e.caps(), fresh) {
                    self.base.refuse_caps(self.obj().upcast_ref(), &error);
                    return false;
                }
                let done = self.src.push_event(event);
                let _ = self.obj().post_message(gst::message::Latency::builder().src(&*self.obj()).build());
                done
            }
            EventView::Segment(e) => {
                let start = self.start();
                let known = lock(&self.segment).replace(event.clone());
                let same = known.as_ref().is_some_and(|k| match k.view() {
                    EventView::Segment(k) => timeline::same(k.segment(), e.segment()),
                    _ => false,
                });
                if known.is_some() && !same {
                    let fresh = self.model().resets(ResetOn::SEGMENT);
                    if fresh || self.took() {
                        let _ = self.drain_in(fresh, start);
                    }
                    self.base.count_reset(self.obj().upcast_ref(), fresh);
                }
                self.src.push_event(event)
            }
            EventView::Gap(e) => {
                let (pts, duration) = e.get();
                let (policy, buffer) = {
                    let settings = lock(&self.settings).model.clone();
                    let mut flow = lock(&self.flow);
                    let policy = settings.gap_policy;
                    let buffer = flow.as_mut().and_then(|flow| {
                        let after = flow.after;
                        if !flow.clock.has_time() {
                            flow.begin(pts);
                        }
                        // From where the stream stands, so that a hole before counts and what came twice does not.
                        let end = pts.saturating_add(duration.unwrap_or_default());
                        let now = flow.clock.time(flow.taken).unwrap_or(pts);
                        let missing = end.saturating_sub(now);
                        let frames = missing.nseconds().mul_div_round(u64::from(flow.info.rate()), *ClockTime::SECOND);
                        let policy = match missing > settings.max_gap {
                            true if settings.resets(ResetOn::JUMP) => GapPolicy::Reset,
                            true => GapPolicy::Hold,
                            false => policy,
                        };
                        self.gap(flow, frames.unwrap_or(u64::MAX), policy);
                        let at = flow.clock.time(flow.taken).unwrap_or(end).max(end);
                        let buffer = flow.take();
                        flow.rebase(Some(at));
                        flow.discont |= pts > after.unwrap_or(now).saturating_add(TOLERANCE);
                        buffer.ok().flatten()
                    });
                    (policy, buffer)
                };
                gst::debug!(CAT, imp = self, "gap at {pts} of {}: {policy:?}", duration.display());
                let _ = self.push(buffer);
                self.src.push_event(event)
            }
            EventView::FlushStop(_) => {
                let fresh = self.model().resets(ResetOn::FLUSH);
                if let Some(flow) = lock(&self.flow).as_mut() {
                    flow.empty(fresh);
                    flow.out.clear();
                    flow.results.clear();
                    flow.rebase(None);
                    flow.discont = true;
                }
                *lock(&self.segment) = None;
                self.base.count_reset(self.obj().upcast_ref(), fresh);
                self.src.push_event(event)
            }
            EventView::Eos(_) => {
                if !self.write_state() {
                    let _ = self.drain(self.model().resets(ResetOn::EOS));
                }
                self.src.push_event(event)
            }
            // The end of a stretch goes before what tells that it is over.
            EventView::SegmentDone(_) if self.took() => {
                let _ = self.drain(self.model().resets(ResetOn::EOS));
                self.src.push_event(event)
            }
            EventView::StreamStart(_) if self.took() => {
                let fresh = self.model().resets(ResetOn::SEGMENT);
                let _ = self.drain(fresh);
                self.base.count_reset(self.obj().upcast_ref(), fresh);
                *lock(&self.segment) = None;
                self.src.push_event(event)
            }
            EventView::CustomDownstream(e) if e.structure().is_some_and(|s| s.name() == RESET) => {
                let after = lock(&self.flow).as_ref().and_then(|flow| flow.clock.time(flow.taken).or(flow.after));
                let _ = self.drain(true);
                if let Some(flow) = lock(&self.flow).as_mut() {
                    flow.after = after;
                }
                self.base.count_reset(self.obj().upcast_ref(), true);
                self.src.push_event(event)
            }
            _ => gst::Pad::event_default(pad, Some(&*self.obj()), event),
        }
    }

    fn query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        use gst::QueryViewMut;
        match query.view_mut() {
            QueryViewMut::Caps(q) => {
                let caps = self.caps(pad, q.filter());
                q.set_result(&caps);
                true
            }
            QueryViewMut::Latency(q) if *pad == self.src => {
                let mut upstream = gst::query::Latency::new();
                if !self.sink.peer_query(&mut upstream) {
                    return false;
                }
                let own = ClockTime::from_nseconds(self.base.counters.latency_ns.load(Ordering::Relaxed));
                self.model().answer_latency(q, &upstream, own);
                true
            }
            _ => gst::Pad::query_default(pad, Some(&*self.obj()), query),
        }
    }
}

#[glib::object_subclass]
impl ObjectSubclass for Denoise {
    const NAME: &'static str = "GstSsmDenoise";
    type Type = super::Denoise;
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
            .query_function(|pad, parent, query| {
                Self::catch_panic_pad_function(parent, || false, |imp| imp.query(pad, query))
            })
            .flags(gst::PadFlags::ACCEPT_INTERSECT)
            .build();
        let src = pad("src")
            .query_function(|pad, parent, query| {
                Self::catch_panic_pad_function(parent, || false, |imp| imp.query(pad, query))
            })
            .build();
        Self {
            sink,
            src,
            settings: Mutex::default(),
            base: Base::default(),
            reload: Reload::default(),
            flow: Mutex::default(),
            segment: Mutex::default(),
        }
    }
}

impl ObjectImpl for Denoise {
    fn constructed(&self) {
        self.parent_constructed();
        let _ = self.obj().add_pad(&self.sink);
        let _ = self.obj().add_pad(&self.src);
    }

    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let defaults = Settings::default();
            let mut properties = defaults.model.properties();
            properties.extend([
                glib::ParamSpecEnum::builder_with_default("level-rule", defaults.level_rule)
                    .nick("Level rule")
                    .blurb("How the level is made that the network divides its input by")
                    .mutable_ready()
                    .build(),
                glib::ParamSpecFloat::builder("level")
                    .nick("Level")
                    .blurb(
                        "Divisor of the input with level-rule=fixed (standard deviation of the speech, full scale 1)",
                    )
                    .minimum(1e-4)
                    .maximum(10.0)
                    .default_value(defaults.level)
                    .mutable_ready()
                    .build(),
                glib::ParamSpecFloat::builder("attenuation-limit")
                    .nick("Attenuation limit")
                    .blurb("Largest attenuation of noise, in dB (100: no limit); 0 passes the delayed input")
                    .minimum(0.0)
                    .maximum(NO_LIMIT)
                    .default_value(defaults.attenuation_limit)
                    .mutable_ready()
                    .build(),
            ]);
            properties
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        {
            let mut settings = lock(&self.settings);
            match pspec.name() {
                "level-rule" => settings.level_rule = value.get().unwrap_or_default(),
                "level" => settings.level = value.get().unwrap_or(settings.level),
                "attenuation-limit" => {
                    settings.attenuation_limit = value.get().unwrap_or(settings.attenuation_limit);
                }
                name => {
                    settings.model.set(name, value);
                }
            }
        }
        reload::changed(self, pspec.name());
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = lock(&self.settings);
        match pspec.name() {
            "level-rule" => settings.level_rule.to_value(),
            "level" => settings.level.to_value(),
            "attenuation-limit" => settings.attenuation_limit.to_value(),
            _ => self.base.property(&settings.model, pspec),
        }
    }

    fn signals() -> &'static [glib::subclass::Signal] {
        static SIGNALS: LazyLock<Vec<glib::subclass::Signal>> = LazyLock::new(state::signals::<Denoise>);
        &SIGNALS
    }
}

impl Stateful for Denoise {
    fn reset(&self) {
        self.base.ask_reset();
    }

    fn save(&self) -> Option<Vec<u8>> {
        let mut flow = lock(&self.flow);
        let flow = flow.as_mut()?;
        let mut header = SnapshotHeader::default();
        if let Some(pts) = flow.clock.time(flow.taken) {
            header.extra.insert("pts".into(), pts.nseconds().to_string());
        }
        self.base.bytes(&CAT, &flow.audio.snapshot(header))
    }

    fn load(&self, bytes: &[u8]) -> bool {
        let obj = self.obj();
        let done = {
            let mut flow = lock(&self.flow);
            self.base.load(obj.upcast_ref(), bytes, |snapshot| {
                let flow = flow.as_mut()?;
                let done = flow.audio.restore(snapshot);
                if done.is_ok() {
                    flow.restart();
                    flow.discont = true;
                }
                Some(done)
            })
        };
        self.base.speak(obj.upcast_ref());
        done
    }
}

impl GstObjectImpl for Denoise {}

impl ElementImpl for Denoise {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            metadata(
                "State-space denoiser",
                "Filter/Effect/Audio",
                "Takes noise out of speech with a state-space network whose state lives as long as the stream",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| templates(&ear::caps(), &ear::caps()));
        &TEMPLATES
    }

    fn change_state(&self, transition: gst::StateChange) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        reload::before(self, transition)?;
        if transition == gst::StateChange::ReadyToPaused {
            let model = lock(&self.settings).model.clone();
            if let Err(error) = self.base.read_state(&model) {
                self.obj().post_error_message(error);
                reload::stopped(self);
                return Err(gst::StateChangeError);
            }
        }
        let done = self.parent_change_state(transition).inspect_err(|_| reload::stopped(self))?;
        if transition == gst::StateChange::PausedToReady {
            self.write_state();
            self.base.clear();
            *lock(&self.flow) = None;
            *lock(&self.segment) = None;
        }
        reload::after(self, transition);
        Ok(done)
    }
}
