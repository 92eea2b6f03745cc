use crate::card::{CardInput, Network, Weights};
use crate::engine::Device;
use crate::error::Error;
use crate::state::{State, StateLayout};
use ssm_kernels::cuda::Card;
use ssm_kernels::fbank::{Fbank, Work};
use ssm_kernels::linear::Precision;
use ssm_kernels::{Cx, Slab};
use std::fmt;
use std::ops::Range;

/// What one step of a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A frame, normalised, channel by channel (CHW).
    Image {
        /// Colour planes.
        channels: usize,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// A block of mono samples in -1..1.
    Samples {
        /// Samples of a block.
        hop: usize,
        /// Hz.
        rate: u32,
    },
    /// Frames of a spectrogram, frame by frame (TF), normalised.
    Clip {
        /// Frames.
        frames: usize,
        /// Values of a frame.
        bins: usize,
    },
    /// A vector.
    Vector {
        /// Its values.
        dim: usize,
    },
    /// A token id below `vocab`, given in [`Row::tokens`].
    Token {
        /// Number of ids.
        vocab: usize,
    },
    /// Scores of classes before softmax.
    Logits {
        /// Number of classes.
        classes: usize,
    },
}

impl std::fmt::Display for Signal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Signal::Image { channels, height, width } => write!(f, "frames of {width}x{height} in {channels} channels"),
            Signal::Samples { hop, rate } => write!(f, "blocks of {hop} samples at {rate} Hz"),
            Signal::Clip { frames, bins } => write!(f, "clips of {frames} frames of {bins} bins"),
            Signal::Vector { dim } => write!(f, "vectors of {dim}"),
            Signal::Token { vocab } => write!(f, "tokens of {vocab}"),
            Signal::Logits { classes } => write!(f, "scores of {classes} classes"),
        }
    }
}

impl Signal {
    /// Values of one step.
    pub fn len(&self) -> usize {
        match *self {
            Signal::Image { channels, height, width } => channels * height * width,
            Signal::Samples { hop, .. } => hop,
            Signal::Clip { frames, bins } => frames * bins,
            Signal::Vector { dim } => dim,
            Signal::Token { .. } => 1,
            Signal::Logits { classes } => classes,
        }
    }

    /// Whether a step holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What is applied to scores before people see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Activation {
    /// One class of all: the shares add up to 1.
    #[default]
    Softmax,
    /// Each class for itself.
    Sigmoid,
}

impl Activation {
    /// Its word in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Softmax => "softmax",
            Self::Sigmoid => "sigmoid",
        }
    }
}

/// How frames become a model's input: `(v / 255 - mean) / std` for each channel of a middle part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pixels {
    /// Mean of R, G, B, of 1.
    pub mean: [f32; 3],
    /// Standard deviation of R, G, B, of 1.
    pub std: [f32; 3],
    /// Share of a scaled frame's side that the model sees.
    pub crop: f64,
}

impl Default for Pixels {
    /// ImageNet's, as the published vision models were trained.
    fn default() -> Self {
        Self { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], crop: 0.875 }
    }
}

/// What a file says about its input, its results and its time; defaults where it says nothing.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Facts {
    /// The parts of a network that is put together, by name, such as `encoder` and `conv`.
    pub parts: Vec<(&'static str, String)>,
    /// Names of the classes; empty where there are none.
    pub labels: Vec<String>,
    /// What makes shares of the scores.
    pub activation: Activation,
    /// Steps a second that the model was trained at.
    pub step_rate: Option<f64>,
    /// The output of step t is about step t - `look_ahead`.
    pub look_ahead: usize,
    /// Whether [`crate::Options::listen`] says how long a step is.
    pub paced: bool,
    /// Whether the input is divided by a level, so that [`crate::Options::level_rule`] counts.
    pub levelled: bool,
    /// Whether the output is the input by a mask, so that [`crate::Options::floor`] counts.
    pub masks: bool,
    /// Precision of the large products.
    pub precision: Precision,
    /// How frames are normalised ([`Signal::Image`] only).
    pub pixels: Pixels,
}

/// Facts of a model.
#[derive(Clone, Debug)]
pub struct Info {
    /// Family, as in [`crate::FAMILIES`].
    pub family: &'static str,
    /// What the file says beyond sizes.
    pub facts: Facts,
    /// One line of sizes, such as `D 192, 24 layers, N 16, patch 16/16`.
    pub sizes: String,
    /// Trained values.
    pub parameters: u64,
    /// What goes in at each step.
    pub input: Signal,
    /// What comes out at each step.
    pub output: Signal,
    /// Output samples that come before the first one that belongs to input: they carry nothing and are to be thrown
    /// away. Where samples go in and something else comes out: by how many samples the time that a step's output is of
    /// lies before the step.
    pub delay: usize,
    /// SHA-256 of the file and of the options that change the function: snapshots belong to one hash.
    pub hash: String,
}

impl fmt::Debug for dyn Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Info { family, sizes, input, output, .. } = self.info();
        write!(f, "{family} ({sizes}) from {input} to {output}")
    }
}

/// One stream's part of a forward pass: its state, its input, its output. Moves into the engine and back as a value.
pub struct Row {
    /// What the stream remembers.
    pub state: State,
    /// Input: `len` steps of [`Info::input`] values each.
    pub x: Vec<f32>,
    /// Input of models that take tokens: `len` ids.
    pub tokens: Vec<u32>,
    /// Input that lies on a card: then `x` is older.
    pub there: Option<CardInput>,
    /// Output: `len` steps of [`Info::output`] values each.
    pub y: Vec<f32>,
    /// Time between two steps in units of the model's own: 1 at the trained rate, 2 at half of it.
    pub rate: f32,
}

impl Row {
    /// A row of a fresh stream with room for `len` steps.
    pub fn new(model: &dyn Model, len: usize) -> Self {
        let info = model.info();
        let token = matches!(info.input, Signal::Token { .. });
        Self {
            state: State::new(model.layout()),
            x: vec![0.0; if token { 0 } else { len * info.input.len() }],
            tokens: vec![0; if token { len } else { 0 }],
            there: None,
            y: vec![0.0; len * info.output.len()],
            rate: 1.0,
        }
    }

    /// Whether a forward pass may have the row.
    ///
    /// # Errors
    /// What is not as [`Row::new`] makes it for `len` steps, or no value that a model takes.
    pub(crate) fn check(&self, model: &dyn Model, len: usize) -> Result<(), Error> {
        let refuse = |expected: String, got: String| Err(Error::Input { expected, got });
        let (info, state) = (model.info(), model.layout().len());
        let input = match info.input {
            Signal::Token { .. } => self.tokens.len(),
            signal => self.x.len() / signal.len().max(1),
        };
        let output = self.y.len() / info.output.len().max(1);
        for (what, has) in [("input", input), ("output", output)] {
            if has < len {
                return refuse(format!("a row with {what} of {len} steps"), has.to_string());
            }
        }
        if self.state.data.len() != state {
            return refuse(format!("a state of {state} values"), self.state.data.len().to_string());
        }
        if !(self.rate > 0.0 && self.rate.is_finite()) {
            return refuse("a finite rate above 0".into(), self.rate.to_string());
        }
        match info.input {
            Signal::Token { vocab } => match self.tokens[..len].iter().find(|id| **id as usize >= vocab) {
                Some(id) => refuse(format!("token ids below {vocab}"), id.to_string()),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Brings input that lies on a card to `x`.
    ///
    /// # Errors
    /// The card does not give it.
    pub fn settle(&mut self) -> Result<(), Error> {
        self.there.take().map_or(Ok(()), |there| there.fetch(&mut self.x))
    }
}

/// Working memory of forward passes: one slab, grown to the largest pass seen and then kept.
#[derive(Default)]
pub struct Scratch {
    slab: Option<Slab>,
    fbank: Option<Work>,
}

impl Scratch {
    /// `len` values; what they hold is left over from other passes.
    pub fn take(&mut self, len: usize) -> &mut [f32] {
        if self.slab.as_ref().is_none_or(|s| s.len() < len) {
            self.slab = Some(Slab::zeros(len));
        }
        self.slab.as_mut().map_or(&mut [], |s| &mut s[..len])
    }

    /// Working memory of a front end, and `len` values as [`Scratch::take`] gives them.
    pub(crate) fn with_fbank(&mut self, fbank: &Fbank, len: usize) -> (&mut Work, &mut [f32]) {
        self.take(len);
        self.fbank.take_if(|work| !fbank.fits(work));
        let slab = self.slab.as_mut().map_or(&mut [][..], |s| &mut s[..len]);
        (self.fbank.get_or_insert_with(|| fbank.work()), slab)
    }
}

/// Rows of a table of `d` columns by token id. The engine checks ids; one that is too large is taken for the last.
pub(crate) fn embed<'a>(table: &[f32], d: usize, ids: impl IntoIterator<Item = &'a u32>, out: &mut [f32]) {
    let last = table.len() / d - 1;
    for (id, out) in ids.into_iter().zip(out.chunks_exact_mut(d)) {
        out.copy_from_slice(&table[(*id as usize).min(last) * d..][..d]);
    }
}

/// Cuts `len` values, rounded up to whole cache lines, off the front of `rest`.
///
/// # Panics
/// `rest` is shorter: a model's `scratch_len` is wrong.
pub(crate) fn carve<'a>(rest: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (front, back) = std::mem::take(rest).split_at_mut(line(len));
    *rest = back;
    &mut front[..len]
}

/// `len` rounded up to whole cache lines: what [`carve`] takes.
pub(crate) fn line(len: usize) -> usize {
    len.next_multiple_of(16)
}

/// A network with its weights: immutable, shared, without memory of any stream.
pub trait Model: Send + Sync {
    /// Facts.
    fn info(&self) -> &Info;

    /// What a stream's state holds.
    fn layout(&self) -> &StateLayout;

    /// Runs `len` steps of every row from its state, which is updated. Rows do not affect each other: a row in a batch
    /// gives the same bits as the row alone. Once `scratch` has seen the largest `(rows, len)`, nothing is allocated.
    ///
    /// # Panics
    /// A row's input or output has not `len` steps, or its state another layout; the engine checks before.
    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch);

    /// As [`Model::forward`], where the model runs: on a card things can go wrong.
    ///
    /// # Errors
    /// The card refuses; the rows' states are not to be used then.
    fn run(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) -> Result<(), Error> {
        rows.iter_mut().try_for_each(Row::settle)?;
        self.forward(cx, rows, len, scratch);
        Ok(())
    }

    /// Where it runs.
    fn device(&self) -> Device {
        Device::Cpu
    }

    /// The card that it runs on.
    fn card(&self) -> Option<&Card> {
        None
    }

    /// The network for a card, its weights put into `weights`; `None`: this one is for the processor only.
    fn network(&self, _weights: &mut Weights) -> Option<Box<dyn Network>> {
        None
    }

    /// Steps of a row's input as [`Network::queue`] takes them: the values as they are, or what tokens stand for.
    fn embed(&self, row: &Row, steps: Range<usize>, out: &mut [f32]) {
        let n = self.info().input.len();
        out.copy_from_slice(&row.x[steps.start * n..steps.end * n]);
    }

    /// Lets `periods` steps pass for which there is no input, by the rule of the family's specification (the state
    /// fades, nothing comes in). 0 changes nothing. Models that remember nothing ignore it.
    fn gap(&self, _state: &mut State, _periods: f64) {}

    /// Ends the stream of a model with delay: `partial` values (fewer than a step) lie at the front of `row.x`; what is
    /// still to come goes to the front of `row.y`, and its number is returned. The state is spent afterwards. Models
    /// without delay return 0.
    fn drain(&self, _cx: &Cx, _row: &mut Row, _partial: usize, _scratch: &mut Scratch) -> usize {
        0
    }

    /// Values that [`Model::drain`] returns at most.
    fn drain_len(&self) -> usize {
        0
    }

    /// The state of a layer under the upstream's name and layout (`layer0.conv`, `layers.0.ssm`), as the golden files
    /// hold it: shape and values. `None` for a name the family does not have.
    fn upstream_state(&self, _state: &State, _name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        None
    }
}
