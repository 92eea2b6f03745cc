use ssm_kernels::Slab;
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
#[derive(Clone)]
pub struct State {
    /// The values, laid out by the model's [`StateLayout`].
    pub data: Slab,
    /// Steps taken since the reset.
    pub steps: u64,
}

impl State {
    /// The state of a stream that has seen nothing.
    pub fn new(layout: &StateLayout) -> Self {
        Self { data: Slab::zeros(layout.len()), steps: 0 }
    }

    /// Makes this state a fresh one, in the memory it has.
    pub fn reset(&mut self) {
        self.data.fill(0.0);
        self.steps = 0;
    }
}
