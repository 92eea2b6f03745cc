//! Elements that look or listen and let the media pass untouched: what they have in common, as functions over one trait.

use crate::base::{Base, lock, text};
use crate::ear::{Ear, Heard};
use crate::eye::{Arrival, Eye, Look};
use crate::pace::{Pace, Zero, every};
use crate::reload::{self, Modelled, Reload};
use crate::results::{RESET, Results};
use crate::timeline::{ResetOn, same};
use gst::ClockTime;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;
use ssm_models::{Error, Signal, SnapshotHeader};
use std::sync::Mutex;
#[cfg(feature = "v1_26")]
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

/// What a snapshot's header calls the [`Pace`].
const PACE: &str = "pace";

/// What flows between two caps.
pub(crate) enum Sense {
    Eye(Box<Eye>),
    Ear(Box<Ear>),
}

/// The part of an analyser that does not depend on what it looks for.
pub(crate) struct Shared<F> {
    pub(crate) base: Base,
    pub(crate) reload: Reload<F>,
    /// Held while something is computed, never while it is pushed or posted.
    sense: Mutex<Option<Sense>>,
    /// Results of steps that were completed between two buffers; the next one carries them.
    pending: Mutex<Vec<Results>>,
    /// Between the steps of the model and what is told of them.
    pace: Mutex<Pace>,
    /// Empty, with the room that the last buffer's needed.
    found: Mutex<Found>,
    /// What a sink said last about frames that came late.
    qos: Mutex<Qos>,
    /// The segment as it came; the base class's own one moves with the stream.
    segment: Mutex<Option<gst::Segment>>,
    tally: Mutex<Tally>,
    /// Number of classes whose probabilities the caps announce as a tensor.
    #[cfg(feature = "v1_26")]
    announced: AtomicUsize,
}

/// What came of the stream so far.
#[derive(Default)]
struct Tally {
    /// Findings.
    told: u64,
    /// The counters `steps` and `dropped` when it began.
    steps: u64,
    dropped: u64,
}

/// Where the sink is. Frames before it are late.
#[derive(Clone, Copy, Default)]
struct Qos {
    /// Running time.
    earliest: Option<ClockTime>,
    proportion: f64,
}

impl<F> Default for Shared<F> {
    fn default() -> Self {
        Self {
            base: Base::default(),
            reload: Reload::default(),
            sense: Mutex::default(),
            pending: Mutex::default(),
            pace: Mutex::default(),
            found: Mutex::default(),
            qos: Mutex::default(),
            segment: Mutex::default(),
            tally: Mutex::default(),
            #[cfg(feature = "v1_26")]
            announced: AtomicUsize::default(),
        }
    }
}

#[cfg(feature = "v1_26")]
impl<F> Shared<F> {
    /// Whether a tensor with the probabilities of so many classes may lie on a buffer: where caps announce tensors, they must
    /// announce this one.
    pub(crate) fn takes(&self, classes: usize) -> bool {
        cfg!(not(feature = "v1_28")) || self.announced.load(Ordering::Relaxed) == classes
    }
}

/// What was found: results for the buffer, and structures for the bus with their time.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) results: Vec<Results>,
    pub(crate) messages: Vec<(gst::Structure, Option<ClockTime>)>,
    /// What else of the results goes on the buffer.
    #[cfg(feature = "v1_26")]
    pub(crate) tensors: Vec<gst_analytics::Tensor>,
}

/// An element that lets the media pass.
pub(crate) trait Analyser: BaseTransformImpl + Modelled {
    /// Name of the factory, and of the messages with results.
    const FACTORY: &'static str;
    /// Whether it finds out by itself of what time an output is.
    const OWN_TIME: bool = false;

    fn shared(&self) -> &Shared<Self::Fit>;
    /// Every how many frames the model looks.
    fn interval(&self) -> u32 {
        1
    }
    /// The property `inference-interval` where it says every how many steps of audio one is told, and what 0 stands for.
    fn every(&self) -> (u32, Zero) {
        (0, Zero::Each)
    }
    /// Whether each result is posted on the bus, too.
    fn posts_results(&self) -> bool {
        true
    }
    /// Number of classes whose probabilities lie on the buffers as a tensor, by the open model.
    #[cfg(feature = "v1_28")]
    fn tensor(&self) -> Option<usize> {
        None
    }
    /// Why steps may have told nothing.
    fn silence(&self) -> String {
        "the model's output was no number".into()
    }
    /// Makes results of the model's output, which is of the time that it comes with, or of `buffer`.
    fn heard(&self, heard: Heard<'_>, buffer: Option<&gst::BufferRef>, found: &mut Found);
    /// Says something of a buffer of audio itself; its `samples` are one channel's, of full scale 1.
    fn mark(&self, _buffer: &mut gst::BufferRef, _samples: &[f32]) {}
    /// Adds what the element itself remembers to a snapshot.
    fn keep(&self, _header: &mut SnapshotHeader) {}
    /// Goes on from what [`Analyser::keep`] kept; an empty header: from nothing.
    ///
    /// # Errors
    /// That is not what it kept.
    fn resume(&self, _header: &SnapshotHeader) -> Result<(), Error> {
        Ok(())
    }
}

fn element<T: Analyser>(imp: &T) -> gst::Element {
    transform(imp).upcast()
}

fn transform<T: Analyser>(imp: &T) -> gst_base::BaseTransform {
    imp.obj().clone().upcast()
}

/// Caps that the open model takes, else those of the template.
fn allowed(base: &Base, template: gst::Caps) -> gst::Caps {
    let Some(engine) = base.engine() else { return template };
    match engine.info().input {
        Signal::Samples { rate, .. } => {
            let mut caps = crate::ear::caps();
            caps.make_mut().iter_mut().for_each(|s| s.set("rate", rate as i32));
            caps.intersect(&template)
        }
        // Frames on a card, where the model is there, too.
        _ if engine.model().card().is_some() && crate::cuda::present() => crate::eye::either().intersect(&template),
        _ => crate::eye::caps().intersect(&template),
    }
}

/// Opens on the way up, closes on the way down.
pub(crate) fn change_state<T: Analyser>(
    imp: &T,
    transition: gst::StateChange,
) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
    reload::before(imp, transition)?;
    let done = imp.parent_change_state(transition).inspect_err(|_| reload::stopped(imp))?;
    reload::after(imp, transition);
    Ok(done)
}

pub(crate) fn save<T: Analyser>(imp: &T) -> Option<Vec<u8>> {
    // Held to the end: what the element remembers and the engine's layout must be the state's.
    let mut sense = lock(&imp.shared().sense);
    let mut header = SnapshotHeader::default();
    imp.keep(&mut header);
    let pace = lock(&imp.shared().pace).clone();
    if let (false, Ok(text)) = (pace.is_fresh(), serde_json::to_string(&pace)) {
        header.extra.insert(PACE.into(), text);
    }
    let snapshot = match sense.as_mut()? {
        Sense::Eye(eye) => eye.snapshot(header),
        Sense::Ear(ear) => ear.snapshot(header),
    };
    imp.shared().base.bytes(&crate::CAT, &snapshot)
}

/// Goes on from what a snapshot's header keeps for the element.
fn resume<T: Analyser>(imp: &T, header: &SnapshotHeader) -> Result<(), Error> {
    let pace = header.extra.get(PACE).map_or_else(|| Ok(Pace::default()), |text| Pace::parse(text));
    *lock(&imp.shared().pace) = pace.map_err(|got| Error::Config {
        file: "snapshot".into(),
        field: PACE.into(),
        expected: "steps under way".into(),
        got,
    })?;
    imp.resume(header)
}

pub(crate) fn load<T: Analyser>(imp: &T, bytes: &[u8]) -> bool {
    let shared = imp.shared();
    let done = {
        let mut sense = lock(&shared.sense);
        shared.base.load(&element(imp), bytes, |snapshot| {
            sense.as_mut().map(|sense| {
                let header = match sense {
                    Sense::Eye(eye) => eye.restore(snapshot),
                    Sense::Ear(ear) => ear.restore(snapshot),
                };
                header.and_then(|header| resume(imp, &header))
            })
        })
    };
    shared.base.speak(&element(imp));
    done
}

pub(crate) fn stop<T: Analyser>(imp: &T) {
    let shared = imp.shared();
    let written = shared.base.write_state(&element(imp), &imp.model(), || save(imp));
    if !written && began(shared) {
        end(imp, false, true);
    }
    shared.base.clear();
    *lock(&shared.segment) = None;
    *lock(&shared.sense) = None;
    lock(&shared.pending).clear();
    begin_tally(shared);
}

pub(crate) fn transform_caps<T: Analyser>(
    imp: &T,
    #[cfg_attr(not(feature = "v1_28"), expect(unused_variables, reason = "caps know of tensors from 1.28 on"))]
    direction: gst::PadDirection,
    caps: &gst::Caps,
    filter: Option<&gst::Caps>,
) -> Option<gst::Caps> {
    let template = transform(imp).sink_pad().pad_template_caps();
    let first = gst::CapsIntersectMode::First;
    let caps = caps.intersect_with_mode(&allowed(&imp.shared().base, template), first);
    #[cfg(feature = "v1_28")]
    let caps = crate::analytics::negotiate(imp.tensor(), direction, caps);
    Some(filter.map_or(caps.clone(), |f| f.intersect_with_mode(&caps, first)))
}

pub(crate) fn set_caps<T: Analyser>(imp: &T, caps: &gst::Caps) -> Result<(), gst::LoggableError> {
    #[cfg(feature = "v1_28")]
    {
        let own = imp.tensor().filter(|_| !crate::analytics::announced(caps));
        imp.shared().announced.store(own.unwrap_or(0), Ordering::Relaxed);
    }
    // The stream goes on; what is announced downstream is another tensor.
    if lock(&imp.shared().sense).is_some() && transform(imp).sink_pad().current_caps().as_ref() == Some(caps) {
        return Ok(());
    }
    let fresh = imp.model().resets(ResetOn::CAPS);
    // What came before is another stream, or goes on in another form.
    if began(imp.shared()) {
        restart(imp, true, fresh);
    }
    let new = || {
        let base = &imp.shared().base;
        let engine = base.engine().ok_or_else(|| crate::base::bad_caps("model", "an open model", "none"))?;
        let goes_on = || {
            Some(match lock(&imp.shared().sense).as_mut()? {
                Sense::Eye(eye) => eye.snapshot(SnapshotHeader::default()),
                Sense::Ear(ear) => ear.snapshot(SnapshotHeader::default()),
            })
        };
        let restored = base.restored(&engine)?.or_else(|| if fresh { None } else { goes_on() });
        let (sense, header) = match engine.info().input {
            Signal::Samples { .. } => {
                let (ear, header) = Ear::new(&engine, caps, restored)?;
                (Sense::Ear(Box::new(ear)), header)
            }
            _ => {
                let (eye, header) = Eye::new(&engine, caps, restored)?;
                (Sense::Eye(Box::new(eye)), header)
            }
        };
        resume(imp, &header.unwrap_or_default())?;
        base.begun();
        Ok::<_, Error>(sense)
    };
    match new() {
        Ok(sense) => {
            *lock(&imp.shared().sense) = Some(sense);
            Ok(())
        }
        Err(error) => {
            let error = text(&imp.shared().base.of_state(error));
            imp.shared().base.refuse_caps(&element(imp), &error);
            Err(gst::loggable_error!(crate::CAT, "{error}"))
        }
    }
}

fn begin_tally<F>(shared: &Shared<F>) {
    let count = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed);
    let counters = &shared.base.counters;
    *lock(&shared.tally) = Tally { told: 0, steps: count(&counters.steps), dropped: count(&counters.dropped) };
}

/// At the end of a stream of which nothing was told: says why.
fn tell_of_nothing<T: Analyser>(imp: &T) {
    let (counters, hop) = (&imp.shared().base.counters, imp.shared().base.engine().map(|e| e.info().input));
    let (told, steps, dropped) = {
        let tally = lock(&imp.shared().tally);
        let since = |c: &std::sync::atomic::AtomicU64, then: u64| c.load(Ordering::Relaxed).saturating_sub(then);
        (tally.told, since(&counters.steps, tally.steps), since(&counters.dropped, tally.dropped))
    };
    begin_tally(imp.shared());
    let why = match (told, steps, hop) {
        (1.., ..) => return,
        (0, 1.., _) => format!("{} in {steps} steps", imp.silence()),
        (0, 0, Some(Signal::Samples { hop, rate })) => {
            format!("the model took no step: a step is {hop} samples at {rate} Hz, fewer came")
        }
        _ => format!("the model took no step: {dropped} frames passed without inference"),
    };
    let text = format!("nothing was found up to the end of stream: {why}");
    // gst-launch-1.0 prints of an INFO message what is meant for debugging only.
    gst::element_info!(element(imp), gst::StreamError::Failed, ("{text}"), ["{text}"]);
}

/// Posts messages, their times in the current segment, and what else was to be said.
fn post<T: Analyser>(imp: &T, found: &mut Found) {
    imp.shared().base.speak(&element(imp));
    let told = match imp.posts_results() {
        true => found.results.iter().filter(|r| !r.is_empty()).count(),
        false => found.messages.len(),
    };
    lock(&imp.shared().tally).told += told as u64;
    if !imp.model().post_messages {
        found.messages.clear();
        return;
    }
    let (obj, segment) = (element(imp), transform(imp).segment());
    if imp.posts_results() {
        for result in &found.results {
            let _ = obj.post_message(result.message(&obj, T::FACTORY, Some(&segment)));
        }
    }
    for (mut structure, at) in found.messages.drain(..) {
        crate::results::set_times(&mut structure, at, Some(&segment));
        let _ = obj.post_message(gst::message::Element::builder(structure).src(&obj).build());
    }
}

/// Ends the stream: what is inside is completed with silence (`whole`) or thrown away; the state is a `fresh` one then, or
/// goes on. Returns the results that no buffer has carried.
fn end<T: Analyser>(imp: &T, whole: bool, fresh: bool) -> Vec<Results> {
    let (shared, mut found) = (imp.shared(), Found::default());
    match lock(&shared.sense).as_mut() {
        Some(Sense::Eye(eye)) => {
            let at = eye.now();
            let kept = (!fresh).then(|| eye.kept());
            if whole {
                look_ahead(imp, eye, &mut found);
            }
            hear(imp, Heard::End { at }, None, &mut found);
            match kept {
                // The frames that stood for those to come are no part of the stream.
                Some(kept) => eye.put_back(kept),
                None => eye.reset(),
            }
        }
        Some(Sense::Ear(ear)) => {
            let heard = &mut |heard: Heard<'_>| hear(imp, heard, None, &mut found);
            if whole {
                let _ = ear.end(&element(imp), &shared.base, fresh, heard);
            } else {
                ear.cut(fresh, heard);
            }
        }
        None => {}
    }
    post(imp, &mut found);
    let mut results = std::mem::take(&mut *lock(&shared.pending));
    results.append(&mut found.results);
    results
}

/// Ends the stream while the element plays on: results that no buffer has carried go ahead of what comes next.
fn finish<T: Analyser>(imp: &T, fresh: bool) {
    tell_late(imp, &end(imp, true, fresh));
}

/// Pushes results for which there is no buffer.
fn tell_late<T: Analyser>(imp: &T, results: &[Results]) {
    if !results.is_empty() {
        transform(imp).src_pad().push_event(Results::late(results));
    }
}

/// Steps by which the model's output lags.
fn lag<F>(shared: &Shared<F>) -> usize {
    shared.base.engine().map_or(0, |e| e.info().facts.look_ahead)
}

/// Hands on what the model said, with the time that it is of.
fn hear<T: Analyser>(imp: &T, heard: Heard<'_>, buffer: Option<&gst::BufferRef>, found: &mut Found) {
    let Some(engine) = imp.shared().base.engine().filter(|_| !T::OWN_TIME) else {
        return imp.heard(heard, buffer, found);
    };
    let (lag, every) = (engine.info().facts.look_ahead, every(engine.info(), imp.every()));
    let span = |(start, end)| (ClockTime::from_nseconds(start), ClockTime::from_nseconds(end));
    let mut pace = lock(&imp.shared().pace);
    let heard = match heard {
        Heard::Step { start, end, step, y } => {
            let told = pace.step((lag, every), (start.nseconds(), end.nseconds()), step);
            let Some((start, end)) = told.map(span) else { return };
            Heard::Step { start, end, step, y }
        }
        Heard::After { y } => {
            let Some((told, step)) = pace.after(every) else { return };
            let (start, end) = span(told);
            Heard::Step { start, end, step, y }
        }
        Heard::End { at } => {
            *pace = Pace::default();
            Heard::End { at }
        }
        gap @ Heard::Gap { .. } => gap,
    };
    drop(pace);
    imp.heard(heard, buffer.filter(|_| lag == 0), found);
}

/// Gives the model the last frame as often as its output lags.
fn look_ahead<T: Analyser>(imp: &T, eye: &mut Eye, found: &mut Found) {
    for _ in 0..lag(imp.shared()) {
        let Some(y) = eye.again() else { return };
        hear(imp, Heard::After { y }, None, found);
    }
}

/// Whether something has come since the caps.
fn began<F>(shared: &Shared<F>) -> bool {
    match lock(&shared.sense).as_ref() {
        Some(Sense::Eye(eye)) => eye.began(),
        Some(Sense::Ear(ear)) => ear.began(),
        None => false,
    }
}

/// Whether there is nothing to end: no buffer has come since the caps, nor before a snapshot.
fn is_fresh<F>(shared: &Shared<F>) -> bool {
    match lock(&shared.sense).as_ref() {
        Some(Sense::Eye(eye)) => eye.is_fresh(),
        Some(Sense::Ear(ear)) => ear.is_fresh(),
        None => true,
    }
}

/// As [`finish`], or for a flush as [`end`], and counted.
fn restart<T: Analyser>(imp: &T, whole: bool, fresh: bool) {
    if whole {
        finish(imp, fresh);
    } else {
        end(imp, false, fresh);
    }
    imp.shared().base.count_reset(&element(imp), fresh);
}

/// Whoever asks for the driver's context gets that of the model's card.
pub(crate) fn query<T: Analyser>(imp: &T, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
    let engine = imp.shared().base.engine();
    if let gst::QueryViewMut::Latency(q) = query.view_mut()
        && direction == gst::PadDirection::Src
        && !imp.model().batch_wait().is_zero()
    {
        let mut upstream = gst::query::Latency::new();
        return transform(imp).sink_pad().peer_query(&mut upstream) && {
            imp.model().answer_latency(q, &upstream, ClockTime::ZERO);
            true
        };
    }
    let card = engine.as_ref().and_then(|engine| engine.model().card());
    card.is_some_and(|card| crate::cuda::answer(&element(imp), query, card))
        || BaseTransformImplExt::parent_query(imp, direction, query)
}

/// QoS events go on upstream past the base class, which would drop late frames: they pass without inference.
pub(crate) fn src_event<T: Analyser>(imp: &T, event: gst::Event) -> bool {
    let gst::EventView::Qos(e) = event.view() else { return imp.parent_src_event(event) };
    let (_, proportion, diff, timestamp) = e.get();
    let earliest = timestamp.and_then(|t| t.nseconds().checked_add_signed(diff)).map(ClockTime::from_nseconds);
    *lock(&imp.shared().qos) = Qos { earliest, proportion };
    transform(imp).sink_pad().push_event(event)
}

/// Whether a buffer comes too late for the sink, with the property `qos`.
fn late<T: Analyser>(imp: &T, buffer: &gst::BufferRef) -> bool {
    let transform = transform(imp);
    let qos = *lock(&imp.shared().qos);
    let segment = transform.segment();
    let time = segment.downcast_ref::<ClockTime>().zip(buffer.pts()).and_then(|(s, pts)| s.to_running_time(pts));
    time.zip(qos.earliest).is_some_and(|(time, earliest)| time <= earliest) && transform.property("qos")
}

/// The message that tells of a frame without inference.
fn dropped<T: Analyser>(imp: &T, buffer: &gst::BufferRef) -> gst::Message {
    let (counters, qos, segment) = (&imp.shared().base.counters, *lock(&imp.shared().qos), transform(imp).segment());
    let segment = segment.downcast_ref::<ClockTime>();
    let place = segment.zip(buffer.pts());
    let running_time = place.and_then(|(s, pts)| s.to_running_time(pts));
    let behind = qos.earliest.zip(running_time).map_or(0, |(e, t)| e.nseconds() as i64 - t.nseconds() as i64);
    let count = |c: &std::sync::atomic::AtomicU64| gst::format::Buffers::from_u64(c.load(Ordering::Relaxed));
    gst::message::Qos::builder(false)
        .running_time(running_time)
        .stream_time(place.and_then(|(s, pts)| s.to_stream_time(pts)))
        .timestamp(buffer.pts())
        .duration(buffer.duration())
        .values(behind, qos.proportion, 1_000_000)
        .stats(count(&counters.steps), count(&counters.dropped))
        .src(&element(imp))
        .build()
}

pub(crate) fn sink_event<T: Analyser>(imp: &T, event: gst::Event) -> bool {
    use gst::EventView;
    let shared = imp.shared();
    match event.view() {
        EventView::FlushStop(_) => {
            *lock(&shared.qos) = Qos::default();
            *lock(&shared.segment) = None;
            restart(imp, false, imp.model().resets(ResetOn::FLUSH));
        }
        // The first segment finds none before it.
        EventView::Segment(e) => {
            let before = lock(&shared.segment).replace(e.segment().clone());
            *lock(&shared.qos) = Qos::default();
            if began(shared) && before.as_ref().is_none_or(|before| !same(before, e.segment())) {
                restart(imp, true, imp.model().resets(ResetOn::SEGMENT));
            }
        }
        EventView::CustomDownstream(e) if e.structure().is_some_and(|s| s.name() == RESET) => {
            restart(imp, true, true);
        }
        // What there is to tell of a stretch goes before its end, and before the next stream.
        EventView::SegmentDone(_) if began(shared) => finish(imp, imp.model().resets(ResetOn::EOS)),
        EventView::StreamStart(_) if began(shared) => restart(imp, true, imp.model().resets(ResetOn::SEGMENT)),
        EventView::Gap(e) => {
            let (pts, duration) = e.get();
            let mut found = Found::default();
            if let Some(Sense::Ear(ear)) = lock(&shared.sense).as_mut() {
                let heard = &mut |heard: Heard<'_>| hear(imp, heard, None, &mut found);
                let missing =
                    duration.and_then(|d| pts.checked_add(d)?.checked_sub(ear.now()?)).filter(|m| !m.is_zero());
                if let Some(missing) = missing {
                    let _ = ear.gap(&element(imp), &shared.base, &imp.model(), missing, heard);
                }
            }
            post(imp, &mut found);
            lock(&shared.pending).append(&mut found.results);
        }
        EventView::Eos(_) => {
            let written = shared.base.write_state(&element(imp), &imp.model(), || save(imp));
            let began = began(shared);
            if !written && !is_fresh(shared) {
                finish(imp, imp.model().resets(ResetOn::EOS));
            } else {
                let pending = std::mem::take(&mut *lock(&shared.pending));
                tell_late(imp, &pending);
            }
            if began {
                tell_of_nothing(imp);
            }
        }
        _ => {}
    }
    imp.parent_sink_event(event)
}

/// Goes on with the model that was opened to take over, if there is one. Returns what is to be posted of it.
fn exchange<T: Analyser>(imp: &T, found: &mut Found) -> Option<gst::Message> {
    let (shared, obj) = (imp.shared(), element(imp));
    let next = shared.reload.take()?;
    let mut sense = lock(&shared.sense);
    let (old, new) = (shared.base.engine()?, next.engine.clone());
    let kept = reload::agree(&old, &new);
    let heir = match sense.as_mut()? {
        Sense::Eye(eye) => eye.heir(&new, kept).map(|heir| Sense::Eye(Box::new(heir))),
        Sense::Ear(ear) => ear.heir(&new, kept).map(|heir| Sense::Ear(Box::new(heir))),
    };
    let heir = match heir {
        Ok(heir) => heir,
        Err(error) => {
            drop(sense);
            reload::refuse(imp, &next.settings, &error);
            return None;
        }
    };
    if !kept {
        shared.base.count_reset(&obj, true);
        let at = match sense.as_mut()? {
            Sense::Eye(eye) => {
                look_ahead(imp, eye, found);
                eye.now()
            }
            Sense::Ear(ear) => {
                let _ = ear.look_ahead(&obj, &shared.base, &mut |heard: Heard<'_>| hear(imp, heard, None, found));
                ear.whole()
            }
        };
        hear(imp, Heard::End { at }, None, found);
    }
    *sense = Some(heir);
    let message = reload::install(imp, next, kept);
    // Another number of classes is another tensor: the next buffer comes with new caps.
    #[cfg(feature = "v1_28")]
    if imp.tensor().is_some_and(|classes| !shared.takes(classes)) {
        transform(imp).reconfigure_src();
    }
    if let Some(Sense::Ear(ear)) = sense.as_mut() {
        let _ = ear.take_over(&obj, &shared.base, &mut |heard: Heard<'_>| hear(imp, heard, None, found));
    }
    message
}

pub(crate) fn transform_ip<T: Analyser>(
    imp: &T,
    buffer: &mut gst::BufferRef,
) -> Result<gst::FlowSuccess, gst::FlowError> {
    let done = analyse(imp, buffer);
    imp.shared().base.speak(&element(imp));
    done
}

/// Gives a buffer to the model and attaches what it found.
fn analyse<T: Analyser>(imp: &T, buffer: &mut gst::BufferRef) -> Result<gst::FlowSuccess, gst::FlowError> {
    let (shared, model, obj) = (imp.shared(), imp.model(), element(imp));
    let mut found = std::mem::take(&mut *lock(&shared.found));
    found.results.append(&mut lock(&shared.pending));
    let reloaded = exchange(imp, &mut found);
    let mut look = Look::Pass;
    match lock(&shared.sense).as_mut() {
        Some(Sense::Eye(eye)) => {
            let at = eye.now();
            let arrival = eye.arrive(&shared.base, &model, buffer);
            if arrival != Arrival::On {
                // What came before is whole.
                let kept = (arrival == Arrival::Elsewhere).then(|| eye.kept());
                look_ahead(imp, eye, &mut found);
                hear(imp, Heard::End { at }, None, &mut found);
                match kept {
                    Some(kept) => eye.put_back(kept),
                    None => {
                        eye.reset();
                        shared.base.count_reset(&obj, true);
                    }
                }
            }
            look = eye.look(&obj, &shared.base, &model, imp.interval(), late(imp, buffer), buffer)?;
            if eye.broken() {
                hear(imp, Heard::End { at }, None, &mut found);
            }
            if look == Look::Step {
                let start = buffer.pts().unwrap_or(at);
                let end = start.saturating_add(buffer.duration().unwrap_or_default());
                let (step, y) = eye.output();
                hear(imp, Heard::Step { start, end, step, y }, Some(buffer), &mut found);
            }
        }
        Some(Sense::Ear(ear)) => {
            let heard = &mut |heard: Heard<'_>| hear(imp, heard, None, &mut found);
            let backwards = transform(imp).segment().rate() < 0.0;
            ear.take(&obj, &shared.base, &model, backwards, buffer, heard)?;
            imp.mark(buffer, ear.samples());
        }
        None => return Err(shared.base.before_caps(&obj)),
    }
    Results::attach(&found.results, buffer).map_err(|error| {
        gst::element_error!(obj, gst::StreamError::Failed, ("results: {error}"));
        gst::FlowError::Error
    })?;
    #[cfg(feature = "v1_24")]
    // What is said there is said of this buffer.
    if imp.posts_results() && lag(shared) == 0 {
        crate::analytics::attach(&found.results, buffer);
    }
    #[cfg(feature = "v1_26")]
    crate::analytics::attach_tensors(&found.results, std::mem::take(&mut found.tensors), buffer);
    let skipped = (look == Look::Drop).then(|| dropped(imp, buffer));
    for message in reloaded.into_iter().chain(skipped) {
        let _ = obj.post_message(message);
    }
    post(imp, &mut found);
    found.results.clear();
    *lock(&shared.found) = found;
    Ok(gst::FlowSuccess::Ok)
}

/// The impls of an [`Analyser`] that only hand on: to its fields `shared` and `settings`, and to the functions above. Called
/// inside the element's `imp`; `fit` is what it makes of a model that fits.
macro_rules! hand_on {
    ($imp:ty, $fit:ty) => {
        impl crate::reload::Holds for $imp {
            type Fit = $fit;

            fn base(&self) -> &crate::base::Base {
                &self.shared.base
            }

            fn reload(&self) -> &crate::reload::Reload<Self::Fit> {
                &self.shared.reload
            }

            fn with_model<R>(&self, change: impl FnOnce(&mut crate::model::ModelSettings) -> R) -> R {
                change(&mut crate::base::lock(&self.settings).model)
            }
        }

        impl crate::state::Stateful for $imp {
            fn reset(&self) {
                crate::analyser::Analyser::shared(self).base.ask_reset();
            }

            fn save(&self) -> Option<Vec<u8>> {
                crate::analyser::save(self)
            }

            fn load(&self, bytes: &[u8]) -> bool {
                crate::analyser::load(self, bytes)
            }
        }

        impl gst::subclass::prelude::GstObjectImpl for $imp {}

        impl gst_base::subclass::prelude::BaseTransformImpl for $imp {
            const MODE: gst_base::subclass::BaseTransformMode = gst_base::subclass::BaseTransformMode::AlwaysInPlace;
            const PASSTHROUGH_ON_SAME_CAPS: bool = false;
            const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

            fn start(&self) -> Result<(), gst::ErrorMessage> {
                let model = crate::reload::Holds::model(self);
                crate::analyser::Analyser::shared(self).base.read_state(&model)
            }

            fn stop(&self) -> Result<(), gst::ErrorMessage> {
                crate::analyser::stop(self);
                Ok(())
            }

            fn transform_caps(
                &self,
                direction: gst::PadDirection,
                caps: &gst::Caps,
                filter: Option<&gst::Caps>,
            ) -> Option<gst::Caps> {
                crate::analyser::transform_caps(self, direction, caps, filter)
            }

            fn set_caps(&self, incaps: &gst::Caps, _outcaps: &gst::Caps) -> Result<(), gst::LoggableError> {
                crate::analyser::set_caps(self, incaps)
            }

            fn sink_event(&self, event: gst::Event) -> bool {
                crate::analyser::sink_event(self, event)
            }

            fn query(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
                crate::analyser::query(self, direction, query)
            }

            fn src_event(&self, event: gst::Event) -> bool {
                crate::analyser::src_event(self, event)
            }

            fn propose_allocation(
                &self,
                decided: Option<&gst::query::Allocation>,
                query: &mut gst::query::Allocation,
            ) -> Result<(), gst::LoggableError> {
                gst_base::subclass::prelude::BaseTransformImplExt::parent_propose_allocation(self, decided, query)?;
                crate::eye::whole_frames_only(query);
                Ok(())
            }

            fn transform_ip(&self, buffer: &mut gst::BufferRef) -> Result<gst::FlowSuccess, gst::FlowError> {
                crate::analyser::transform_ip(self, buffer)
            }
        }
    };
}
pub(crate) use hand_on;
