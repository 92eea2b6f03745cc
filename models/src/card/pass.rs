use super::weights::{At, Dense, NormAt};
use crate::error::Error;
use ssm_kernels::Act;
use ssm_kernels::cuda::card::Arguments;
use ssm_kernels::cuda::{Card, CardError, Kind, Launch, Ptr, TooLarge, act, linear, norm};
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

/// Where a pass finds what it needs, and where it goes: addresses of the card.
#[derive(Clone, Copy)]
pub struct Place {
    pub(crate) weights: Ptr,
    /// Working memory.
    pub(crate) scratch: Ptr,
    /// Input, (streams, steps, input).
    pub(crate) x: Ptr,
    /// Output, (streams, steps, output).
    pub(crate) y: Ptr,
    /// Pool of states.
    pub(crate) states: Ptr,
    /// Values between states.
    pub(crate) stride: u64,
    /// Slot of each stream.
    pub(crate) slots: Ptr,
    /// Step scale of each stream.
    pub(crate) rates: Ptr,
}

/// A forward pass that is being queued.
pub struct Pass<'a> {
    /// `None`: nothing is launched, working memory is only counted.
    card: Option<&'a Card>,
    processors: u32,
    place: Place,
    batch: u32,
    len: u32,
    memory: Rc<Used>,
}

/// Working memory, in values.
#[derive(Default)]
struct Used {
    now: Cell<usize>,
    most: Cell<usize>,
}

/// Rows of values in memory.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) at: Ptr,
    /// Values between rows.
    pub(crate) stride: u32,
    pub(crate) kind: Kind,
}

impl Rows {
    /// The rows from column `from` on.
    pub(crate) fn columns(self, from: u32) -> Self {
        Self { at: after(self.at, from as usize, self.kind), ..self }
    }

    /// The rows from row `from` on.
    pub(crate) fn skip_rows(self, from: usize) -> Self {
        Self { at: after(self.at, from * self.stride as usize, self.kind), ..self }
    }
}

/// The address `values` values further on.
pub(crate) fn after(at: Ptr, values: usize, kind: Kind) -> Ptr {
    Ptr(at.0 + values as u64 * if kind == Kind::F32 { 4 } else { 2 })
}

impl<'a> Pass<'a> {
    /// A pass of `len` steps of `batch` streams.
    pub(crate) fn new(card: &'a Card, place: Place, batch: u32, len: u32) -> Self {
        Self { card: Some(card), processors: card.processors(), place, batch, len, memory: Rc::default() }
    }

    /// As [`Pass::new`], but nothing is launched: only to ask for [`Pass::most`] afterwards.
    pub(crate) fn counting(card: &Card, place: Place, batch: u32, len: u32) -> Pass<'static> {
        Pass { card: None, processors: card.processors(), place, batch, len, memory: Rc::default() }
    }

    /// The same pass with `len` steps: where a step of a stream is a sequence itself. Working memory is the same.
    pub(crate) fn of_len(&self, len: u32) -> Pass<'_> {
        Pass {
            card: self.card,
            processors: self.processors,
            place: self.place,
            batch: self.batch,
            len,
            memory: self.memory.clone(),
        }
    }

    /// Values of working memory that were in use at once.
    pub(crate) fn most(&self) -> usize {
        self.memory.most.get()
    }

    /// Streams.
    pub(crate) fn batch(&self) -> u32 {
        self.batch
    }

    /// Steps.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Streams times steps.
    pub(crate) fn rows(&self) -> u32 {
        self.batch * self.len
    }

    /// The card's processors.
    pub(crate) fn processors(&self) -> u32 {
        self.processors
    }

    /// Addresses.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The input, rows of `d` values.
    pub(crate) fn input(&self, d: u32) -> Rows {
        Rows { at: self.place.x, stride: d, kind: Kind::F32 }
    }

    /// The output, rows of `d` values.
    pub(crate) fn output(&self, d: u32) -> Rows {
        Rows { at: self.place.y, stride: d, kind: Kind::F32 }
    }

    /// Where weights lie.
    pub(crate) fn at(&self, at: At) -> Ptr {
        after(self.place.weights, at.0, Kind::F32)
    }

    /// A part of the states: that of a stream's own is `stride` values from the next one's.
    pub(crate) fn state(&self, span: &Range<usize>) -> Ptr {
        after(self.place.states, span.start, Kind::F32)
    }

    /// Working memory for `rows` rows of `d` values.
    pub(crate) fn take(&self, rows: usize, d: u32, kind: Kind) -> Rows {
        let words = match kind {
            Kind::F32 => rows * d as usize,
            _ => (rows * d as usize).div_ceil(2),
        };
        let Used { now, most } = &*self.memory;
        let at = after(self.place.scratch, now.get(), Kind::F32);
        now.set(now.get() + words.next_multiple_of(64));
        most.set(most.get().max(now.get()));
        Rows { at, stride: d, kind }
    }

    /// Runs `work` and gives back the working memory that it took.
    pub(crate) fn scope(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let now = self.memory.now.get();
        let done = work();
        self.memory.now.set(now);
        done
    }

    /// Queues a launch.
    pub(crate) fn launch<A: Arguments>(&self, args: &A, launch: Launch) -> Result<(), Error> {
        Ok(self.card.map_or(Ok(()), |card| card.launch(&launch, args))?)
    }

    /// Queues a launch whose sizes were checked.
    pub(crate) fn try_launch<A: Arguments>(&self, args: &A, launch: Result<Launch, TooLarge>) -> Result<(), Error> {
        self.launch(args, launch.map_err(CardError::from)?)
    }

    /// `y = act(x Wᵀ + bias)` of `m` rows, or added to y.
    pub(crate) fn linear(&self, x: Rows, w: &Dense, a: Act, y: Rows, m: u32, add: bool) -> Result<(), Error> {
        let args = linear::Args { act: act(a), add: u32::from(add), ..self.product(x, w, y, m) };
        self.try_launch(&args, args.launch(self.processors))
    }

    /// The arguments of `y = x Wᵀ + bias`.
    pub(crate) fn product(&self, x: Rows, w: &Dense, y: Rows, m: u32) -> linear::Args {
        linear::Args {
            x: x.at,
            w: self.at(w.w),
            bias: w.bias.map_or(Ptr::NONE, |b| self.at(b)),
            y: y.at,
            x_stride: x.stride,
            y_stride: y.stride,
            w_stride: w.k,
            batch_rows: m.max(1),
            x_kind: x.kind,
            w_kind: w.kind,
            y_kind: y.kind,
            m,
            n: w.n,
            k: w.k,
            ..linear::Args::default()
        }
    }

    /// `residual += x; y = norm(residual)` of `m` rows of `d` values; without x the residual stream alone.
    pub(crate) fn add_norm(
        &self,
        x: Option<Rows>,
        residual: Rows,
        w: &NormAt,
        y: Rows,
        m: u32,
        d: u32,
    ) -> Result<(), Error> {
        let from = x.unwrap_or(residual);
        let args = norm::Args {
            x: from.at,
            residual: residual.at,
            weight: self.at(w.weight),
            bias: self.at(w.bias),
            y: y.at,
            x_stride: from.stride,
            residual_stride: residual.stride,
            y_stride: y.stride,
            x_kind: from.kind,
            y_kind: y.kind,
            parts: u32::from(x.is_some()),
            rows: m,
            d,
            layer: u32::from(w.layer),
            eps: w.eps,
            ..norm::Args::default()
        };
        self.try_launch(&args, args.launch())
    }
}
