//! Samples in any number in, as many samples out: what stands between buffers of any length and a model's hops.

use crate::engine::{Engine, Stream};
use crate::error::Error;
use crate::model::Signal;
use crate::snapshot::{Snapshot, SnapshotHeader};
use std::sync::Arc;

/// Hops that one forward pass takes at most; longer input is run in several.
const HOPS: usize = 16;

/// One channel of audio through a model of samples.
///
/// Output sample `n` belongs to input sample `n`: what the model's delay puts in front is thrown away, and
/// [`AudioStream::drain`] gives what is still inside, so as many samples come out as went in. Cutting the input
/// differently changes no bit.
pub struct AudioStream {
    stream: Stream,
    hop: usize,
    delay: usize,
    /// Samples that do not fill a hop yet.
    pending: Vec<f32>,
    /// Output samples still to be thrown away.
    discard: usize,
}

impl AudioStream {
    /// A fresh stream of an engine.
    ///
    /// # Errors
    /// The engine's model does not turn samples into samples.
    pub fn new(engine: &Arc<Engine>) -> Result<Self, Error> {
        let info = engine.info();
        let (Signal::Samples { hop, .. }, Signal::Samples { .. }) = (info.input, info.output) else {
            return Err(Error::Input {
                expected: "a model that turns samples into samples".into(),
                got: format!("{} ({:?} to {:?})", info.family, info.input, info.output),
            });
        };
        let delay = info.delay;
        Ok(Self { stream: engine.stream(HOPS), hop, delay, pending: Vec::with_capacity(HOPS * hop), discard: delay })
    }

    /// Samples by which the output lags behind the input at most: the model's delay and one hop.
    pub fn latency(&self) -> usize {
        self.delay + self.hop
    }

    /// The stream inside.
    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// Takes `input` in and appends what is complete to `out`.
    ///
    /// # Errors
    /// The forward pass failed; the stream is then a fresh one.
    pub fn push(&mut self, mut input: &[f32], out: &mut Vec<f32>) -> Result<(), Error> {
        while !input.is_empty() {
            let room = HOPS * self.hop - self.pending.len();
            let (now, later) = input.split_at(input.len().min(room));
            self.pending.extend_from_slice(now);
            input = later;
            let hops = self.pending.len() / self.hop;
            if hops == 0 {
                break;
            }
            let n = hops * self.hop;
            self.stream.row().x[..n].copy_from_slice(&self.pending[..n]);
            self.pending.drain(..n);
            if let Err(error) = self.stream.run(hops) {
                self.reset();
                return Err(error);
            }
            let skip = self.discard.min(n);
            self.discard -= skip;
            out.extend_from_slice(&self.stream.row().y[skip..n]);
        }
        Ok(())
    }

    /// Ends the stream: appends what is still inside to `out`. The stream is then a fresh one.
    pub fn drain(&mut self, out: &mut Vec<f32>) {
        let partial = self.pending.len();
        self.stream.row().x[..partial].copy_from_slice(&self.pending);
        out.extend_from_slice(self.stream.drain(partial));
        self.reset();
    }

    /// Makes the stream a fresh one; what is inside is lost.
    pub fn reset(&mut self) {
        self.stream.reset();
        self.pending.clear();
        self.discard = self.delay;
    }

    /// Lets `samples` samples pass for which there is no input.
    pub fn gap(&mut self, samples: u64) {
        self.stream.gap(samples as f64 / self.hop as f64);
    }

    /// Samples taken in whose output has not come out yet.
    pub fn inside(&self) -> usize {
        self.pending.len() + self.delay - self.discard
    }

    /// What the stream remembers, pending samples included.
    pub fn snapshot(&mut self, mut header: SnapshotHeader) -> Snapshot {
        header.extra.insert("discard".into(), self.discard.to_string());
        Snapshot { state: self.stream.state().clone(), pending: self.pending.clone(), header }
    }

    /// Goes on from a snapshot of the same model.
    ///
    /// # Errors
    /// The snapshot's pending samples or discard count cannot be.
    pub fn restore(&mut self, snapshot: Snapshot) -> Result<(), Error> {
        let bad = |field: &str, expected: String, got: String| Error::Snapshot { field: field.into(), expected, got };
        let discard = snapshot.header.extra.get("discard").cloned().unwrap_or_default();
        let discard: usize = discard
            .parse()
            .ok()
            .filter(|d| *d <= self.delay)
            .ok_or_else(|| bad("discard", format!("0 to {}", self.delay), format!("{discard:?}")))?;
        if snapshot.pending.len() >= self.hop {
            return Err(bad("pending", format!("fewer than {} samples", self.hop), snapshot.pending.len().to_string()));
        }
        *self.stream.state() = snapshot.state;
        self.pending.clear();
        self.pending.extend_from_slice(&snapshot.pending);
        self.discard = discard;
        Ok(())
    }
}
