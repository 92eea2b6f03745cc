//! Samples in any number in, as many samples out: what stands between buffers of any length and a model's hops.

use crate::engine::{Engine, Stream};
use crate::error::Error;
use crate::model::Signal;
use crate::snapshot::{Snapshot, SnapshotHeader, of_layout};
use std::fmt;
use std::sync::Arc;

/// Hops that one forward pass takes at most; longer input is run in several.
const HOPS: usize = 16;

/// Interleaved audio through a model of samples, a stream of the engine for each channel.
///
/// Output frame `n` belongs to input frame `n`: what the model's delay puts in front is thrown away, and
/// [`AudioStream::drain`] gives what is still inside, so as many frames come out as went in. Cutting the input
/// differently changes no bit. (A frame here is one sample of every channel.)
///
/// A hop for which a channel's model gives values that are not finite becomes silence, and that channel goes on with a
/// fresh state.
pub struct AudioStream {
    /// One a channel; the samples that do not fill a hop yet lie at the front of its row's input.
    streams: Vec<Stream>,
    hop: usize,
    delay: usize,
    rate: u32,
    /// Samples a channel that do not fill a hop yet.
    held: usize,
    /// Output frames still to be thrown away.
    discard: usize,
    /// Hops that became silence.
    silenced: u64,
}

impl AudioStream {
    /// Fresh streams of an engine for `channels` channels.
    ///
    /// # Errors
    /// The engine's model does not turn samples into samples, or there is no channel.
    pub fn new(engine: &Arc<Engine>, channels: usize) -> Result<Self, Error> {
        let info = engine.info();
        let (Signal::Samples { hop, rate }, Signal::Samples { .. }) = (info.input, info.output) else {
            return Err(Error::Input {
                expected: "a model that turns samples into samples".into(),
                got: format!("{} (from {} to {})", info.family, info.input, info.output),
            });
        };
        if channels == 0 {
            return Err(Error::Input { expected: "one channel or more".into(), got: "none".into() });
        }
        let streams = (0..channels).map(|_| engine.stream(HOPS)).collect();
        Ok(Self { streams, hop, delay: info.delay, rate, held: 0, discard: info.delay, silenced: 0 })
    }

    /// Frames by which the output lags behind the input at most: the model's delay and one hop.
    pub fn latency(&self) -> usize {
        self.delay + self.hop
    }

    /// Frames a second.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.streams.len()
    }

    /// Steps that each channel's model has taken since the reset.
    pub fn steps(&mut self) -> u64 {
        self.streams[0].steps()
    }

    /// Hops of a channel that became silence since the streams were made.
    pub fn silenced(&self) -> u64 {
        self.silenced
    }

    /// Takes whole frames of interleaved `input` in and appends what is complete to `out`.
    ///
    /// # Errors
    /// The forward pass failed; the streams are then fresh ones.
    pub fn push(&mut self, mut input: &[f32], out: &mut Vec<f32>) -> Result<(), Error> {
        let channels = self.streams.len();
        while input.len() >= channels {
            let room = HOPS * self.hop - self.held;
            let (now, later) = input.split_at(room.min(input.len() / channels) * channels);
            for (c, stream) in self.streams.iter_mut().enumerate() {
                let x = &mut stream.row().x[self.held..];
                x.iter_mut().zip(now[c..].iter().step_by(channels)).for_each(|(x, s)| *x = *s);
            }
            self.held += now.len() / channels;
            input = later;
            let hops = self.held / self.hop;
            if hops > 0 {
                self.run(hops, out)?;
            }
        }
        Ok(())
    }

    /// Runs the hops that are complete, all channels in one batch.
    fn run(&mut self, hops: usize, out: &mut Vec<f32>) -> Result<(), Error> {
        let (n, held, channels) = (hops * self.hop, self.held, self.streams.len());
        let mut result = Ok(());
        for stream in &mut self.streams {
            result = result.and(stream.submit(hops));
        }
        for stream in &mut self.streams {
            result = result.and(stream.wait());
        }
        for stream in &mut self.streams {
            let mended = result.and_then(|()| mend(stream, (self.hop, self.hop), hops, 0.0));
            result = mended.map(|silenced| self.silenced += silenced);
        }
        if result.is_err() {
            self.reset();
            return result;
        }
        let skip = self.discard.min(n);
        self.discard -= skip;
        let start = out.len();
        out.resize(start + (n - skip) * channels, 0.0);
        for (c, stream) in self.streams.iter_mut().enumerate() {
            let row = stream.row();
            out[start..].iter_mut().skip(c).step_by(channels).zip(&row.y[skip..n]).for_each(|(o, y)| *o = *y);
            row.x.copy_within(n..held, 0);
        }
        self.held -= n;
        Ok(())
    }

    /// Ends the streams: appends what is still inside to `out`. The streams are then fresh ones.
    pub fn drain(&mut self, out: &mut Vec<f32>) {
        let (channels, start, held, inside) = (self.streams.len(), out.len(), self.held, self.inside());
        out.resize(start + inside * channels, 0.0);
        for (c, stream) in self.streams.iter_mut().enumerate() {
            // A state that is younger than the delay gives less, one from before a gap more: of both the end counts.
            let tail = stream.drain(held);
            let tail = &tail[tail.len().saturating_sub(inside)..];
            let out = out[start..].iter_mut().skip(c).step_by(channels).skip(inside - tail.len());
            let finite = tail.iter().all(|y| y.is_finite());
            out.zip(tail).for_each(|(o, y)| *o = if finite { *y } else { 0.0 });
            self.silenced += u64::from(!finite);
        }
        self.reset();
    }

    /// Makes the streams fresh ones; what is inside is lost.
    pub fn reset(&mut self) {
        self.streams.iter_mut().for_each(Stream::reset);
        self.held = 0;
        self.discard = self.delay;
    }

    /// Lets `frames` frames pass for which there is no input: what is inside is completed with silence and appended to
    /// `out`, then the state ages by the model's rule. The next input is taken to follow `frames` frames later.
    pub fn gap(&mut self, frames: u64, out: &mut Vec<f32>) {
        let states: Vec<_> = self.streams.iter_mut().map(|s| s.state().clone()).collect();
        self.drain(out);
        for (stream, state) in self.streams.iter_mut().zip(states) {
            *stream.state() = state;
            stream.gap(frames as f64 / self.hop as f64);
        }
    }

    /// Frames taken in whose output has not come out yet.
    pub fn inside(&self) -> usize {
        self.held + self.delay - self.discard
    }

    /// What the streams remember, held samples included.
    pub fn snapshot(&mut self, mut header: SnapshotHeader) -> Snapshot {
        header.extra.insert("discard".into(), self.discard.to_string());
        let held = self.held;
        let pending = self.streams.iter_mut().flat_map(|s| s.row().x[..held].to_vec()).collect();
        Snapshot { states: self.streams.iter_mut().map(|s| s.state().clone()).collect(), pending, header }
    }

    /// Goes on from a snapshot of the same model.
    ///
    /// # Errors
    /// The snapshot has another number of channels, or held samples or a discard count that cannot be.
    pub fn restore(&mut self, snapshot: Snapshot) -> Result<(), Error> {
        let bad = |field: &str, expected: String, got: String| Error::Snapshot { field: field.into(), expected, got };
        let channels = self.streams.len();
        if snapshot.states.len() != channels {
            return Err(bad("streams", format!("{channels} (one a channel)"), snapshot.states.len().to_string()));
        }
        let discard = snapshot.header.extra.get("discard").cloned().unwrap_or_default();
        let discard: usize = discard
            .parse()
            .ok()
            .filter(|d| *d <= self.delay)
            .ok_or_else(|| bad("discard", format!("0 to {}", self.delay), format!("{discard:?}")))?;
        let held = snapshot.pending.len() / channels;
        if held >= self.hop || held * channels != snapshot.pending.len() {
            let expected = format!("fewer than {} samples for each of {channels} channels", self.hop);
            return Err(bad("pending", expected, snapshot.pending.len().to_string()));
        }
        of_layout(&snapshot.states, self.streams[0].engine().model().layout())?;
        for (c, (stream, state)) in self.streams.iter_mut().zip(snapshot.states).enumerate() {
            *stream.state() = state;
            stream.row().x[..held].copy_from_slice(&snapshot.pending[c * held..][..held]);
        }
        (self.held, self.discard) = (held, discard);
        Ok(())
    }
}

impl fmt::Debug for AudioStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AudioStream").field("streams", &self.streams).field("inside", &self.inside()).finish()
    }
}

/// Fills each step of a stream's output that is not finite with `fill`, and takes the steps after it from a fresh state.
/// `width`: values of a step's input and output. Returns how many there were.
fn mend(stream: &mut Stream, width: (usize, usize), steps: usize, fill: f32) -> Result<u64, Error> {
    let (x_width, y_width) = width;
    let finite = |y: &[f32]| y.iter().all(|y| y.is_finite());
    let first = stream.row().y[..steps * y_width].chunks_exact(y_width).position(|y| !finite(y));
    let Some(first) = first else { return Ok(0) };
    let (x, mut y, mut bad) = (stream.row().x.clone(), stream.row().y.clone(), 1);
    stream.reset();
    y[first * y_width..][..y_width].fill(fill);
    for i in first + 1..steps {
        stream.row().x[..x_width].copy_from_slice(&x[i * x_width..][..x_width]);
        stream.run(1)?;
        let step = &mut y[i * y_width..][..y_width];
        step.copy_from_slice(&stream.row().y[..y_width]);
        if !finite(step) {
            step.fill(fill);
            stream.reset();
            bad += 1;
        }
    }
    let row = stream.row();
    row.x.copy_from_slice(&x);
    row.y.copy_from_slice(&y);
    Ok(bad)
}

/// Mono audio through a model that gives scores or a vector for each hop of samples. Cutting the input differently
/// changes no bit of any step. A step whose output is not finite is given as NaN, and the next one begins a fresh state.
pub struct Listener {
    stream: Stream,
    hop: usize,
    rate: u32,
    delay: usize,
    width: usize,
    /// Samples that do not fill a hop yet, at the front of the row's input.
    held: usize,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("stream", &self.stream).field("held", &self.held).finish_non_exhaustive()
    }
}

impl Listener {
    /// A fresh stream of an engine.
    ///
    /// # Errors
    /// The engine's model does not turn samples into scores or vectors.
    pub fn new(engine: &Arc<Engine>) -> Result<Self, Error> {
        let info = engine.info();
        match (info.input, info.output) {
            (Signal::Samples { hop, rate }, Signal::Logits { .. } | Signal::Vector { .. }) => {
                let (delay, width) = (info.delay, info.output.len());
                Ok(Self { stream: engine.stream(HOPS), hop, rate, delay, width, held: 0 })
            }
            (input, output) => Err(Error::Input {
                expected: "a model that turns samples into scores or vectors".into(),
                got: format!("{} ({input:?} to {output:?})", info.family),
            }),
        }
    }

    /// Samples of a step.
    pub fn hop(&self) -> usize {
        self.hop
    }

    /// Samples a second.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Samples by which the time that a step's output is of lies before the step.
    pub fn delay(&self) -> usize {
        self.delay
    }

    /// Steps by which the output lags: that of step t is about step t less so many.
    pub fn look_ahead(&self) -> usize {
        self.stream.engine().info().facts.look_ahead
    }

    /// Values of a step's output.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Samples that wait for their hop to be complete.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Steps that the model has taken since the reset.
    pub fn steps(&mut self) -> u64 {
        self.stream.steps()
    }

    /// Takes samples in and appends the output of every step that they complete to `out`.
    ///
    /// # Errors
    /// The forward pass failed; the stream is then a fresh one.
    pub fn push(&mut self, mut input: &[f32], out: &mut Vec<f32>) -> Result<(), Error> {
        while !input.is_empty() {
            let (now, later) = input.split_at((HOPS * self.hop - self.held).min(input.len()));
            self.stream.row().x[self.held..][..now.len()].copy_from_slice(now);
            self.held += now.len();
            input = later;
            let hops = self.held / self.hop;
            if hops > 0 {
                self.run(hops, out)?;
            }
        }
        Ok(())
    }

    fn run(&mut self, hops: usize, out: &mut Vec<f32>) -> Result<(), Error> {
        let run = self.stream.run(hops);
        if let Err(error) = run.and_then(|()| mend(&mut self.stream, (self.hop, self.width), hops, f32::NAN)) {
            self.reset();
            return Err(error);
        }
        let (used, held, width) = (hops * self.hop, self.held, self.width);
        let row = self.stream.row();
        out.extend_from_slice(&row.y[..hops * width]);
        row.x.copy_within(used..held, 0);
        self.held -= used;
        Ok(())
    }

    /// Completes the hop that was begun with silence, and appends the output of its step to `out`.
    ///
    /// # Errors
    /// As [`Listener::push`].
    pub fn complete(&mut self, out: &mut Vec<f32>) -> Result<(), Error> {
        if self.held == 0 {
            return Ok(());
        }
        let (held, hop) = (self.held, self.hop);
        self.stream.row().x[held..hop].fill(0.0);
        self.held = hop;
        self.run(1, out)
    }

    /// Lets `samples` samples pass for which there is no input, by the model's rule.
    pub fn gap(&mut self, samples: u64) {
        self.stream.gap(samples as f64 / self.hop as f64);
    }

    /// Makes the stream a fresh one; what is inside is lost.
    pub fn reset(&mut self) {
        self.stream.reset();
        self.forget();
    }

    /// Throws away the samples that do not fill a hop yet.
    pub fn forget(&mut self) {
        self.held = 0;
    }

    /// What the stream remembers, held samples included.
    pub fn snapshot(&mut self, header: SnapshotHeader) -> Snapshot {
        let held = self.held;
        let pending = self.stream.row().x[..held].to_vec();
        Snapshot { states: vec![self.stream.state().clone()], pending, header }
    }

    /// Goes on from a snapshot of the same model; returns what its header says.
    ///
    /// # Errors
    /// The snapshot has more than one stream, or more held samples than fit into a hop.
    pub fn restore(&mut self, snapshot: Snapshot) -> Result<SnapshotHeader, Error> {
        let bad = |field: &str, expected: String, got: String| Error::Snapshot { field: field.into(), expected, got };
        let held = snapshot.pending.len();
        if held >= self.hop {
            return Err(bad("pending", format!("fewer than {} samples", self.hop), held.to_string()));
        }
        let mut states = snapshot.states.into_iter();
        let (Some(state), None) = (states.next(), states.next()) else {
            return Err(bad("streams", "1".into(), "another number".into()));
        };
        of_layout(std::slice::from_ref(&state), self.stream.engine().model().layout())?;
        *self.stream.state() = state;
        self.stream.row().x[..held].copy_from_slice(&snapshot.pending);
        self.held = held;
        Ok(snapshot.header)
    }
}
