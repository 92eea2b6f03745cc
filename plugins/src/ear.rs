//! Audio before a model that gives something else than audio: formats, mixing to mono, the time of every step.

use crate::base::{Base, bad_caps};
use crate::model::{Counters, ModelSettings};
use crate::timeline::{Clock, Follows, GapPolicy, ResetOn, follows};
use gst::ClockTime;
use gst::prelude::*;
use gst_audio::{AudioCapsBuilder, AudioFormat, AudioInfo};
use ssm_models::{Engine, Error, Listener, Snapshot, SnapshotHeader};
use std::sync::Arc;

/// Differences between timestamps and the count of samples that are taken for jitter: what audio sinks allow, too.
pub(crate) const TOLERANCE: ClockTime = ClockTime::from_mseconds(40);
/// The same where something is said to be missing, or where the next buffer lies before the last one: containers round to
/// whole milliseconds.
const CLOSE: ClockTime = ClockTime::from_mseconds(2);
/// Channels that caps may have.
const MAX_CHANNELS: i32 = 64;

/// Caps that are read, at any rate.
pub(crate) fn caps() -> gst::Caps {
    AudioCapsBuilder::new_interleaved()
        .format_list([AudioFormat::F32le, AudioFormat::S16le])
        .channels_range(1..=MAX_CHANNELS)
        .build()
}

/// What caps say.
///
/// # Errors
/// They do not say all.
pub(crate) fn info(caps: &gst::CapsRef) -> Result<AudioInfo, Error> {
    AudioInfo::from_caps(caps).map_err(|error| {
        let s = caps.structure(0);
        match s.and_then(|s| s.get::<i32>("channels").ok()) {
            Some(n) if n > 2 && s.is_some_and(|s| !s.has_field("channel-mask")) => {
                bad_caps("channel-mask", format!("the places of {n} channels, or 0 for no places"), "none")
            }
            _ => bad_caps("audio/x-raw", "whole caps", error),
        }
    })
}

/// Samples beyond this, 120 dB above full scale, are no sound: they come from uninitialised memory and broken decoders.
const LOUDEST: f32 = 1e6;

/// Makes a buffer's bytes samples, full scale 1; what is not finite or beyond [`LOUDEST`] becomes zero. Returns the first
/// such sample.
pub(crate) fn read(format: AudioFormat, bytes: &[u8], samples: &mut Vec<f32>) -> Option<(usize, f32)> {
    let mut bad = None;
    samples.clear();
    if format == AudioFormat::F32le {
        samples.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        for (i, s) in samples.iter_mut().enumerate().filter(|(_, s)| !(-LOUDEST..=LOUDEST).contains(*s)) {
            bad.get_or_insert((i, *s));
            *s = 0.0;
        }
    } else {
        samples.extend(bytes.as_chunks::<2>().0.iter().map(|b| f32::from(i16::from_le_bytes(*b)) / 32768.0));
    }
    bad
}

/// What is jitter between a buffer and its `expected` time, in a segment that perhaps plays `backwards`.
pub(crate) fn tolerance(buffer: &gst::BufferRef, expected: Option<ClockTime>, backwards: bool) -> ClockTime {
    let later = buffer.flags().contains(gst::BufferFlags::DISCONT) && buffer.pts() > expected;
    if backwards || later { CLOSE } else { TOLERANCE }
}

/// Says that a buffer does not hold whole frames.
pub(crate) fn whole_frames(
    obj: &gst::Element,
    base: &Base,
    buffer: &gst::BufferRef,
    bpf: usize,
) -> Result<(), gst::FlowError> {
    if buffer.size().is_multiple_of(bpf) {
        return Ok(());
    }
    let expected = format!("a multiple of {bpf} bytes (one sample of each channel)");
    let text = format!("buffer: expected {expected}, got {}", buffer.size());
    Err(base.fail(obj, gst::StreamError::Format, &text))
}

/// Counts buffers with samples that cannot be, and warns once a stretch of them.
pub(crate) fn warn_of(
    bad: Option<(usize, f32)>,
    warned: &mut bool,
    obj: &gst::Element,
    base: &Base,
    buffer: &gst::BufferRef,
) {
    let Some((at, value)) = bad else {
        *warned = false;
        return;
    };
    Counters::add(&base.counters.not_finite, 1);
    if !std::mem::replace(warned, true) {
        let place = format!("sample {at} of the buffer at {}", buffer.pts().display());
        let expected = format!("a number up to {LOUDEST:e}");
        base.warn(obj, &format!("{place}: expected {expected}, got {value}; such samples are taken for silence"));
    }
}

/// What an audio stream has to tell.
pub(crate) enum Heard<'a> {
    /// The model took a step: the time it is of, its number since the reset, its output.
    Step { start: ClockTime, end: ClockTime, step: u64, y: &'a mut [f32] },
    /// At the end of stream: output for the look-ahead, of a step for which nothing came.
    After { y: &'a mut [f32] },
    /// From here to there nothing came.
    Gap { from: ClockTime, to: ClockTime },
    /// The stream ended or begins anew: all that came ended here.
    End { at: ClockTime },
}

/// A stream of audio, as one mono stream of the engine. Times are of the samples: first buffer's time and samples since;
/// buffers without times count from 0.
pub(crate) struct Ear {
    info: AudioInfo,
    listener: Listener,
    clock: Clock,
    /// Samples that the clock counted.
    taken: u64,
    /// Whether the time comes from a snapshot and no buffer has confirmed it.
    resumed: bool,
    /// Whether samples that are not finite are being seen, so that a stretch of them warns once.
    warned: bool,
    /// Whether the last step's scores were not finite.
    lost: bool,
    samples: Vec<f32>,
    /// Samples of a hop that a model before this one did not see whole.
    left: Vec<f32>,
    out: Vec<f32>,
}

impl Ear {
    /// A stream of `caps`. Returns the snapshot's header with it.
    ///
    /// # Errors
    /// The caps or the model are for something else, or the snapshot does not fit.
    pub(crate) fn new(
        engine: &Arc<Engine>,
        caps: &gst::CapsRef,
        restored: Option<Snapshot>,
    ) -> Result<(Self, Option<SnapshotHeader>), Error> {
        let info = info(caps)?;
        let listener = Listener::new(engine)?;
        if listener.rate() != info.rate() {
            let expected = format!("{} Hz (the model's)", listener.rate());
            return Err(bad_caps("rate", expected, format!("{} Hz", info.rate())));
        }
        let mut ear = Self {
            clock: Clock::new(info.rate()),
            info,
            listener,
            taken: 0,
            resumed: false,
            warned: false,
            lost: false,
            samples: Vec::new(),
            left: Vec::new(),
            out: Vec::new(),
        };
        let header = restored.map(|snapshot| ear.restore(snapshot)).transpose()?;
        Ok((ear, header))
    }

    /// The same stream under another engine, with its state (`kept`) or without; then the hop that was begun is begun
    /// anew ([`Ear::take_over`]).
    ///
    /// # Errors
    /// The model is for something else.
    pub(crate) fn heir(&mut self, engine: &Arc<Engine>, kept: bool) -> Result<Self, Error> {
        let mut listener = Listener::new(engine)?;
        let mut snapshot = self.listener.snapshot(SnapshotHeader::default());
        let mut left = Vec::new();
        if kept {
            listener.restore(snapshot)?;
        } else {
            left.append(&mut snapshot.pending);
        }
        let (info, samples, out) = (self.info.clone(), Vec::new(), Vec::new());
        let Self { clock, taken, resumed, warned, .. } = *self;
        Ok(Self { info, listener, clock, taken, resumed, warned, lost: false, samples, left, out })
    }

    /// Gives the model the hop that was begun under the one before.
    ///
    /// # Errors
    /// The engine failed; the element has said so.
    pub(crate) fn take_over(
        &mut self,
        obj: &gst::Element,
        base: &Base,
        heard: &mut dyn FnMut(Heard<'_>),
    ) -> Result<(), gst::FlowError> {
        let left = std::mem::take(&mut self.left);
        let from = self.taken - (left.len() as u64).min(self.taken);
        let steps = self.listener.steps();
        if let Err(error) = self.listener.push(&left, &mut self.out) {
            return Err(self.failed(obj, base, &error));
        }
        self.tell(from, steps, obj, base, heard);
        Ok(())
    }

    /// Where the last whole hop ended.
    pub(crate) fn whole(&self) -> ClockTime {
        self.time(self.taken.saturating_sub(self.listener.held() as u64))
    }

    /// Time of sample `n`.
    fn time(&self, n: u64) -> ClockTime {
        self.clock.time(n).unwrap_or_else(|| self.clock.length(n))
    }

    fn samples_in(&self, time: ClockTime) -> u64 {
        time.nseconds().mul_div_round(u64::from(self.info.rate()), *ClockTime::SECOND).unwrap_or(0)
    }

    /// Begins a new count of time; no hop is under way.
    fn rebase(&mut self, pts: Option<ClockTime>) {
        self.clock.begin(pts, 0);
        (self.taken, self.resumed) = (0, false);
    }

    /// Tells the steps in `out`; the first of them began at sample `from`, after `step` steps of the state.
    fn tell(&mut self, from: u64, step: u64, obj: &gst::Element, base: &Base, heard: &mut dyn FnMut(Heard<'_>)) {
        let (hop, delay) = (self.listener.hop() as u64, self.listener.delay() as u64);
        let (mut out, mut step) = (std::mem::take(&mut self.out), step);
        let width = self.listener.width();
        Counters::add(&base.counters.steps, (out.len() / width) as u64);
        for (i, y) in out.chunks_exact_mut(width).enumerate() {
            let at = from + i as u64 * hop;
            if y.iter().any(|v| !v.is_finite()) {
                Counters::add(&base.counters.not_finite, 1);
                base.count_reset(obj, true);
                if !std::mem::replace(&mut self.lost, true) {
                    let at = self.time(at);
                    base.warn(obj, &format!("audio at {at}: expected finite scores, got others; the state is reset"));
                }
                heard(Heard::End { at: self.time(at) });
                step = 0;
                continue;
            }
            self.lost = false;
            step += 1;
            let (start, end) = (self.time(at.saturating_sub(delay)), self.time((at + hop).saturating_sub(delay)));
            heard(Heard::Step { start, end, step, y });
        }
        out.clear();
        self.out = out;
    }

    fn failed(&mut self, obj: &gst::Element, base: &Base, error: &Error) -> gst::FlowError {
        self.out.clear();
        base.fail(obj, gst::StreamError::Failed, &error.to_string())
    }

    /// Completes the hop that was begun, with silence.
    fn complete(
        &mut self,
        obj: &gst::Element,
        base: &Base,
        heard: &mut dyn FnMut(Heard<'_>),
    ) -> Result<(), gst::FlowError> {
        let from = self.taken - (self.listener.held() as u64).min(self.taken);
        let steps = self.listener.steps();
        if let Err(error) = self.listener.complete(&mut self.out) {
            return Err(self.failed(obj, base, &error));
        }
        self.tell(from, steps, obj, base, heard);
        Ok(())
    }

    /// Gives the model silence as often as its output lags; a hop that was begun is lost.
    ///
    /// # Errors
    /// The engine failed; the element has said so.
    pub(crate) fn look_ahead(
        &mut self,
        obj: &gst::Element,
        base: &Base,
        heard: &mut dyn FnMut(Heard<'_>),
    ) -> Result<(), gst::FlowError> {
        let lag = self.listener.look_ahead();
        if lag == 0 || self.listener.steps() == 0 {
            return Ok(());
        }
        self.listener.forget();
        self.samples.clear();
        self.samples.resize(self.listener.hop(), 0.0);
        for _ in 0..lag {
            if let Err(error) = self.listener.push(&self.samples, &mut self.out) {
                return Err(self.failed(obj, base, &error));
            }
            if self.out.iter().all(|v| v.is_finite()) {
                heard(Heard::After { y: &mut self.out });
            }
            self.out.clear();
        }
        Ok(())
    }

    /// Takes a buffer in, of a segment that perhaps plays `backwards`.
    ///
    /// # Errors
    /// The buffer does not hold whole frames, or the engine failed; the element has said so.
    pub(crate) fn take(
        &mut self,
        obj: &gst::Element,
        base: &Base,
        settings: &ModelSettings,
        backwards: bool,
        buffer: &gst::BufferRef,
        heard: &mut dyn FnMut(Heard<'_>),
    ) -> Result<(), gst::FlowError> {
        whole_frames(obj, base, buffer, self.info.bpf() as usize)?;
        let discont = buffer.flags().contains(gst::BufferFlags::DISCONT) && settings.resets(ResetOn::DISCONT);
        if base.take_reset() || discont && self.began() {
            self.restart(obj, base, true, heard)?;
        }
        let tolerance = tolerance(buffer, self.now(), backwards);
        match follows(self.now(), buffer.pts(), tolerance, settings.max_gap) {
            Follows::On => {
                let samples = buffer.size() / self.info.bpf() as usize;
                self.clock.follow(self.taken, buffer.pts(), samples as u64);
            }
            // A restored stream may go on at any time.
            _ if self.resumed => self.clock.begin(None, 0),
            Follows::Gap(missing) => {
                gst::debug!(crate::CAT, obj = obj, "at {}: {missing} missing", buffer.pts().display());
                self.gap(obj, base, settings, missing, heard)?;
            }
            Follows::Jump => self.restart(obj, base, settings.resets(ResetOn::JUMP), heard)?,
        }
        if !self.clock.has_time() && buffer.pts().is_some() {
            // The hop that was begun lies before this buffer.
            self.taken = self.listener.held() as u64;
            self.clock.begin(buffer.pts(), self.taken);
        }
        self.resumed = false;
        let unmapped = |e| base.fail(obj, gst::StreamError::Failed, &format!("buffer: {e}"));
        let map = buffer.map_readable().map_err(unmapped)?;
        let bad = read(self.info.format(), &map, &mut self.samples);
        warn_of(bad, &mut self.warned, obj, base, buffer);
        let channels = self.info.channels() as usize;
        if channels > 1 {
            let frames = self.samples.len() / channels;
            for i in 0..frames {
                let frame = &self.samples[i * channels..][..channels];
                self.samples[i] = frame.iter().sum::<f32>() / channels as f32;
            }
            self.samples.truncate(frames);
        }
        let from = self.taken - (self.listener.held() as u64).min(self.taken);
        self.taken += self.samples.len() as u64;
        let steps = self.listener.steps();
        if let Err(error) = self.listener.push(&self.samples, &mut self.out) {
            return Err(self.failed(obj, base, &error));
        }
        self.tell(from, steps, obj, base, heard);
        Ok(())
    }

    /// Nothing comes for a time: what is inside is completed with silence, the state ages, stays or starts anew.
    ///
    /// # Errors
    /// The engine failed; the element has said so.
    pub(crate) fn gap(
        &mut self,
        obj: &gst::Element,
        base: &Base,
        settings: &ModelSettings,
        missing: ClockTime,
        heard: &mut dyn FnMut(Heard<'_>),
    ) -> Result<(), gst::FlowError> {
        if missing > settings.max_gap {
            return self.restart(obj, base, settings.resets(ResetOn::JUMP), heard);
        }
        if settings.gap_policy == GapPolicy::Reset {
            return self.restart(obj, base, true, heard);
        }
        let from = self.time(self.taken);
        self.complete(obj, base, heard)?;
        if settings.gap_policy == GapPolicy::Step {
            self.listener.gap(self.samples_in(missing));
        }
        let to = from.saturating_add(missing);
        heard(Heard::Gap { from, to });
        self.rebase(self.clock.has_time().then_some(to));
        Ok(())
    }

    /// The stream ends or begins anew: what is inside is completed with silence; the state is a `fresh` one then, or goes on.
    ///
    /// # Errors
    /// The engine failed; the element has said so.
    pub(crate) fn end(
        &mut self,
        obj: &gst::Element,
        base: &Base,
        fresh: bool,
        heard: &mut dyn FnMut(Heard<'_>),
    ) -> Result<(), gst::FlowError> {
        self.complete(obj, base, heard)?;
        let kept = !fresh && self.listener.look_ahead() > 0;
        let kept = kept.then(|| self.listener.snapshot(SnapshotHeader::default()));
        self.look_ahead(obj, base, heard)?;
        // The silence that stood for what was to come is no part of the stream.
        if let Some(Err(error)) = kept.map(|kept| self.listener.restore(kept)) {
            return Err(self.failed(obj, base, &error));
        }
        self.cut(fresh, heard);
        Ok(())
    }

    /// As [`Ear::end`], and counted.
    fn restart(
        &mut self,
        obj: &gst::Element,
        base: &Base,
        fresh: bool,
        heard: &mut dyn FnMut(Heard<'_>),
    ) -> Result<(), gst::FlowError> {
        base.count_reset(obj, fresh);
        self.end(obj, base, fresh, heard)
    }

    /// The stream begins anew; what is inside is lost. The state is a `fresh` one then, or goes on.
    pub(crate) fn cut(&mut self, fresh: bool, heard: &mut dyn FnMut(Heard<'_>)) {
        heard(Heard::End { at: self.time(self.taken) });
        if fresh {
            self.listener.reset();
        } else {
            self.listener.forget();
        }
        self.rebase(None);
    }

    /// Time of the next sample, once one has come.
    pub(crate) fn now(&self) -> Option<ClockTime> {
        self.clock.time(self.taken)
    }

    /// The samples of the last buffer, mixed to one channel.
    pub(crate) fn samples(&self) -> &[f32] {
        &self.samples
    }

    /// Whether samples have come since the caps or a snapshot.
    pub(crate) fn began(&self) -> bool {
        !self.resumed && (self.taken > 0 || self.clock.has_time())
    }

    /// Whether no sample has come since the caps or a reset, nor before a snapshot.
    pub(crate) fn is_fresh(&self) -> bool {
        !self.began() && !self.resumed
    }

    /// The state with its place in time.
    pub(crate) fn snapshot(&mut self, mut header: SnapshotHeader) -> Snapshot {
        if let Some((origin, before)) = self.clock.place() {
            header.extra.insert("origin".into(), origin.nseconds().to_string());
            header.extra.insert("before".into(), before.to_string());
            header.extra.insert("pts".into(), self.time(self.taken).nseconds().to_string());
        }
        header.extra.insert("taken".into(), self.taken.to_string());
        self.listener.snapshot(header)
    }

    /// Goes on from a snapshot, at the same place in time if the next buffer stands there. Returns its header.
    ///
    /// # Errors
    /// It does not fit.
    pub(crate) fn restore(&mut self, snapshot: Snapshot) -> Result<SnapshotHeader, Error> {
        let header = self.listener.restore(snapshot)?;
        let number = |name: &str| header.extra.get(name).and_then(|v| v.parse::<u64>().ok());
        // Times and counts that cannot be would overflow later.
        let sane = |n: &u64| *n < 1 << 62;
        let count = |name: &str| number(name).filter(|n| *n < 1 << 48).unwrap_or(0);
        let origin = number("origin").filter(sane).map(ClockTime::from_nseconds);
        self.clock.begin(origin, count("before"));
        self.taken = count("taken").max(self.listener.held() as u64);
        self.resumed = true;
        Ok(header)
    }
}
