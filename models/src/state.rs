use crate::card::Seat;
use crate::error::Error;
use ssm_kernels::Slab;
use std::fmt;
use std::ops::Range;

/// One named part of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Name, such as `layers.0.h`.
    pub name: String,
    /// Shape, row-major.
    pub shape: Vec<usize>,
    /// Where its first value lies in the slab.
    pub offset: usize,
}

impl Span {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the span holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its place in the slab.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// What the values of a model's state mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateLayout {
    spans: Vec<Span>,
    len: usize,
}

impl StateLayout {
    /// A layout without spans: a model that remembers nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a span and returns its place. Spans start at multiples of 16 values, a cache line.
    pub fn add(&mut self, name: impl Into<String>, shape: &[usize]) -> Range<usize> {
        let span = Span { name: name.into(), shape: shape.to_vec(), offset: self.len.next_multiple_of(16) };
        let range = span.range();
        self.len = range.end;
        self.spans.push(span);
        range
    }

    /// The spans in order.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The span of a name.
    pub fn span(&self, name: &str) -> Option<&Span> {
        self.spans.iter().find(|s| s.name == name)
    }

    /// Values in the slab.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of one stream's state.
    pub fn bytes(&self) -> usize {
        4 * self.len
    }
}

/// What one stream remembers. A fresh one is all zeros; resetting a stream is replacing it by a fresh one.
pub struct State {
    /// The values, laid out by the model's [`StateLayout`]. Of a model on a card they are those of the last
    /// [`State::settle`].
    pub data: Slab,
    /// Steps taken since the reset.
    pub steps: u64,
    /// Its place on a card.
    pub(crate) seat: Option<Seat>,
}

impl Clone for State {
    /// Here, wherever the original lies. One that its card does not give back any more becomes a fresh one.
    fn clone(&self) -> Self {
        let mut copy = Self { data: self.data.clone(), steps: self.steps, seat: None };
        if let Some(seat) = self.seat.as_ref().filter(|seat| seat.newer)
            && seat.fetch(&mut copy.data).is_err()
        {
            copy.reset();
        }
        copy
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("steps", &self.steps).field("values", &self.data.len()).finish_non_exhaustive()
    }
}

impl State {
    /// The state of a stream that has seen nothing.
    pub fn new(layout: &StateLayout) -> Self {
        Self { data: Slab::zeros(layout.len()), steps: 0, seat: None }
    }

    /// Makes this state a fresh one, in the memory it has.
    pub fn reset(&mut self) {
        self.data.fill(0.0);
        self.steps = 0;
        if let Some(seat) = &mut self.seat {
            seat.newer = false;
        }
    }

    /// Brings the values here from the card where they are newer; they may be changed then.
    ///
    /// # Errors
    /// The card does not give them.
    pub fn settle(&mut self) -> Result<(), Error> {
        if let Some(seat) = self.seat.as_mut().filter(|seat| seat.newer) {
            seat.fetch(&mut self.data)?;
            seat.newer = false;
        }
        Ok(())
    }

    /// As [`State::settle`]; a state that its card does not give back any more becomes a fresh one.
    pub(crate) fn settle_or_reset(&mut self) {
        if self.settle().is_err() {
            self.reset();
        }
    }
}
