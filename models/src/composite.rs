//! Our composites: an encoder makes a vector of each step's input, a causal core runs over the vectors, a head scores what
//! comes out.
//!
//! ```text
//! v_t = encoder(input_t)                     vim, vmamba, conv, mel, or the input itself
//! x_t = in_proj [v_t | v_{t-1} | s_t]        the step before only with `difference`; v is 0 before the stream
//! s_t[k] = v_t · v_{t-k} / (|v_t| |v_{t-k}|)   only with `similarity`, k = 1 … K; 0 where a length is 0
//! y   = norm_f(core(x))                      mamba, mamba2, s4d, moe_mamba, bst
//! score_t = head y_t                         about step t - look_ahead
//! ```
//!
//! One file format of this project (docs/composites.md): tensors `encoder.…`, `in_proj.…`, `core.…`, `head.…`, the parts
//! under the names of their own families, and the configuration in the metadata. Between steps only the core, the vectors
//! of the steps before and the samples of an unfinished frame are remembered, so any cut of a stream gives the same bits.

mod card;
mod config;
mod encoder;

use crate::card::{Network, Weights};
use crate::checkpoint::{Checkpoint, Reader};
use crate::config::bad;
use crate::cores::Core;
use crate::error::Error;
use crate::families::{Family, Options, Output};
use crate::golden::Golden;
use crate::golden_sequence;
use crate::mamba::{head, head_scratch_len};
use crate::model::{Info, Model, Row, Scratch, Signal, carve, line};
use crate::state::{State, StateLayout};
use config::{Config, Input};
use encoder::{CHANNELS, Encoder};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::{Act, Cx, Mat, MatMut};
use std::ops::Range;
use std::sync::Arc;

pub(crate) const FAMILY: Family = Family {
    name: "composite",
    detect: |f| {
        let says = || {
            let config = f.metadata.get("config").and_then(|text| crate::config::parse(text).ok());
            config.is_some_and(|c| c.get("family").and_then(|v| v.as_str()) == Some("composite"))
        };
        let (core, front) = ("core.layers.0.", ["encoder.", "in_proj.", "head."]);
        let named = |prefix: &str| f.names().any(|n| n.starts_with(prefix));
        says() || named(core) && front.into_iter().any(named)
    },
    open: |file, options| Ok(Arc::new(Composite::load(file, options)?)),
    verify,
};

struct Composite {
    info: Info,
    layout: StateLayout,
    encoder: Encoder,
    /// Place of the vector of the step before.
    previous: Option<Range<usize>>,
    /// Place of the last steps' vectors, each of length 1 (or 0), the newest first: (K, F).
    last: Option<Range<usize>>,
    in_proj: Option<Linear>, // (D, F or 2F, + K); none: the vectors are of width D
    core: Core,
    head: Option<Linear>, // (classes, D)
    d: usize,
}

impl Composite {
    fn load(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let path = file.path.display().to_string();
        let config = Config::read(options.config.as_ref(), &path)?;
        let (w, level) = (Reader::new(file), options.level);
        let mut layout = StateLayout::new();
        let encoder = Encoder::load(file, &w.at("encoder."), &config, options, &mut layout)?;
        let f = encoder.width();
        let previous = config.difference.then(|| layout.add("previous", &[f]));
        let last = (config.similarity > 0).then(|| layout.add("last", &[config.similarity, f]));
        let joined = if config.difference { 2 * f } else { f } + config.similarity;
        let (mut in_proj, mut d) = (None, joined);
        if w.has("in_proj.weight") {
            // At least 1: an empty tensor is of the wrong shape then.
            d = w.shape("in_proj.weight").and_then(|s| s.first()).copied().unwrap_or(0).max(1);
            let (weight, bias) = (w.take("in_proj.weight", &[d, joined])?, w.take_optional("in_proj.bias", &[d])?);
            in_proj = Some(Linear::pack(level, &weight, d, joined, bias.as_deref()));
        }
        let core = Core::load(&w.at("core."), level, d, (config.core, &config.core_fields), &path, &mut layout)?;
        let classes = config.facts.labels.len();
        let head = if config.head {
            let (weight, bias) = (w.take("head.weight", &[classes, d])?, w.take_optional("head.bias", &[classes])?);
            let features = options.output == Output::Features;
            (!features).then(|| Linear::pack(level, &weight, classes, d, bias.as_deref()))
        } else {
            None
        };
        w.finish()?;
        if let (Some((h, wide)), Input::Image { height, width }) = (options.image, config.input)
            && (h, wide) != (height, width)
        {
            return Err(bad(&path, "frame size", format!("{height}x{width}, as input says"), format!("{h}x{wide}")));
        }
        let input = match config.input {
            Input::Image { height, width } => Signal::Image { channels: CHANNELS, height, width },
            Input::Samples { hop, rate } => Signal::Samples { hop, rate },
            Input::Vector { dim } => Signal::Vector { dim },
        };
        let info = Info {
            family: FAMILY.name,
            sizes: format!("{} to {f}; {}", encoder.sizes(), core.sizes(d)),
            parameters: file.parameters(),
            input,
            output: if head.is_some() { Signal::Logits { classes } } else { Signal::Vector { dim: d } },
            delay: 0,
            hash: file.hash(&format!("{} carry={} head={}", config.function(), options.carry, head.is_some())),
            facts: config.facts,
        };
        Ok(Self { info, layout, encoder, previous, last, in_proj, core, head, d })
    }

    /// Columns that `in_proj` sees.
    fn joined(&self) -> usize {
        let f = self.encoder.width();
        let lags = self.last.as_ref().map_or(0, |at| at.len() / f.max(1));
        f * if self.previous.is_some() { 2 } else { 1 } + lags
    }

    /// Working memory of a pass over `rows` streams of `len` steps on `threads` threads.
    fn scratch_len(&self, rows: usize, len: usize, threads: usize) -> usize {
        let m = rows * len;
        let head = self.head.as_ref().map_or(0, |h| head_scratch_len(h, rows, len));
        let before = self.encoder.scratch_len(rows, len, threads);
        line(m * self.encoder.width())
            + line(m * self.joined())
            + 2 * line(m * self.d)
            + before.max(self.core.scratch_len(m, self.d)).max(head)
    }

    /// `[v_t | v_{t-1} | s_t]` of every step, and what is remembered of the vectors to the state.
    fn join(&self, rows: &mut [Row], v: &[f32], out: &mut [f32]) {
        let (f, joined) = (self.encoder.width(), self.joined());
        let per_row = v.len() / rows.len().max(1);
        for ((row, v), out) in
            rows.iter_mut().zip(v.chunks_exact(per_row)).zip(out.chunks_exact_mut(per_row / f * joined))
        {
            let state = &mut row.state.data;
            for (v, out) in v.chunks_exact(f).zip(out.chunks_exact_mut(joined)) {
                let (present, mut rest) = out.split_at_mut(f);
                present.copy_from_slice(v);
                if let Some(at) = &self.previous {
                    let before;
                    (before, rest) = rest.split_at_mut(f);
                    before.copy_from_slice(&state[at.clone()]);
                    state[at.clone()].copy_from_slice(v);
                }
                if let Some(at) = &self.last {
                    liken(v, &mut state[at.clone()], rest);
                }
            }
        }
    }
}

/// Cosines of `v` with the vectors of `last`, newest first; then `v` is the newest of them.
fn liken(v: &[f32], last: &mut [f32], out: &mut [f32]) {
    let f = v.len();
    let length = v.iter().map(|v| v * v).sum::<f32>() + 1e-12;
    let scale = 1.0 / length.sqrt();
    for (before, out) in last.chunks_exact(f).zip(out) {
        *out = before.iter().zip(v).map(|(b, v)| b * v).sum::<f32>() * scale;
    }
    last.copy_within(..last.len() - f, f);
    last[..f].iter_mut().zip(v).for_each(|(l, v)| *l = v * scale);
}

impl Model for Composite {
    fn info(&self) -> &Info {
        &self.info
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) {
        let (m, d, f) = (rows.len() * len, self.d, self.encoder.width());
        if m == 0 {
            return;
        }
        let need = self.scratch_len(rows.len(), len, cx.team.threads());
        let (work, mut s) = match self.encoder.fbank() {
            Some(fbank) => {
                let (work, s) = scratch.with_fbank(fbank, need);
                (Some(work), s)
            }
            None => (None, scratch.take(need)),
        };
        let s = &mut s;
        let (v, joined) = (carve(s, m * f), carve(s, m * self.joined()));
        let (x, y) = (carve(s, m * d), carve(s, m * d));
        // v = encoder(input); x = in_proj [v | v before]
        self.encoder.forward(cx, rows, len, work, s, v);
        self.join(rows, v, joined);
        match &self.in_proj {
            Some(w) => {
                linear(cx, Mat::new(joined, m, w.k()), w, Act::None, Store::Set, MatMut::new(x, m, d));
            }
            None => x.copy_from_slice(joined),
        }
        // y = norm_f(core(x)); scores = head y
        self.core.forward(cx, x, y, rows, len, s, d);
        match &self.head {
            Some(w) => head(cx, w, y, rows, len, s),
            None => {
                for (row, y) in rows.iter_mut().zip(y.chunks_exact(len * d)) {
                    row.y[..len * d].copy_from_slice(y);
                }
            }
        }
        rows.iter_mut().for_each(|r| r.state.steps += len as u64);
    }

    fn network(&self, weights: &mut Weights) -> Option<Box<dyn Network>> {
        self.on_card(weights)
    }

    fn gap(&self, state: &mut State, periods: f64) {
        self.encoder.gap(state, periods);
        self.core.gap(&mut state.data, periods);
    }

    /// `previous`: (F); `last`: (K, F); `layerI.…`: those of the core.
    fn upstream_state(&self, state: &State, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        if let ("last", Some(at)) = (name, &self.last) {
            let f = self.encoder.width();
            return Some((vec![at.len() / f, f], state.data[at.clone()].to_vec()));
        }
        match (name, &self.previous, &self.core) {
            ("previous", Some(at), _) => Some((vec![at.len()], state.data[at.clone()].to_vec())),
            (_, _, Core::Stack { stack, .. }) => stack.upstream_state(&state.data, name),
            (_, _, Core::Bst(core)) => core.upstream_state(&state.data, name),
        }
    }
}

/// Golden files: scores of every step, states at the split and at the end, the continuation, other rates.
fn verify(g: &mut Golden<'_>) -> Result<(), Error> {
    golden_sequence::verify(g, 2e-5)
}

#[cfg(test)]
mod tests {
    #[test]
    fn golden_files_pass() {
        crate::golden::pass("composite");
    }
}
