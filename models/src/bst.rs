//! Block-State Transformer (Fathi et al. 2023, arXiv 2306.09539, Figure 2): a transformer over windows of a stream whose
//! BST layers also attend to the outputs of a state space model, which carry what lies before the window.
//!
//! Three ways to choose that context, each from the S4D of the layer: SH, one output per step seen by all heads; MH, an
//! output of its own for each head; MF, S filters read once at the end of the window before. SH and MH see the outputs of
//! their own window up to now (`context` aligned) or the last S of the window before (`prev`). There is no published
//! code; names and numerics are this project's.

mod attention;
mod config;
mod layers;
#[cfg(test)]
mod tests;

pub(crate) use layers::Layers;

use crate::checkpoint::{Checkpoint, Reader};
use crate::config::bad;
use crate::error::Error;
use crate::families::{Family, Options};
use crate::golden::{Golden, largest};
use crate::mixer::sub;
use crate::model::{Facts, Info, Model, Row, Scratch, Signal, carve, embed, line};
use crate::state::{State, StateLayout};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::{Act, Cx, Mat, MatMut};
use std::sync::Arc;

pub(crate) const FAMILY: Family = Family {
    name: "bst",
    detect: |f| f.shape("embed.weight").is_some() && f.shape("layers.0.attn.rel_embedding").is_some(),
    open: |file, options| Ok(Arc::new(Bst::load(file, options)?)),
    verify,
};

/// A language model.
struct Bst {
    info: Info,
    layout: StateLayout,
    vocab: usize,
    embed: Vec<f32>, // (V, D)
    core: Layers,
    lm_head: Linear, // (V, D)
}

impl Bst {
    fn load(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let path = file.path.display().to_string();
        let w = Reader::new(file);
        let dim = |i: usize| w.shape("embed.weight").and_then(|s| s.get(i)).copied().unwrap_or(0);
        let (vocab, d) = (dim(0), dim(1));
        if vocab == 0 || d == 0 {
            let got = format!("axis {} empty", usize::from(vocab != 0));
            return Err(bad(&path, "embed.weight", "no empty axis", got));
        }
        let embed = w.take("embed.weight", &[vocab, d])?;
        let mut layout = StateLayout::new();
        let core = Layers::load(&w, options.level, d, options.config.as_ref(), &path, &mut layout, "")?;
        let head = w.take("lm_head.weight", &[vocab, d])?;
        w.finish()?;
        let info = Info {
            family: FAMILY.name,
            facts: Facts::default(),
            sizes: core.sizes(),
            parameters: file.parameters(),
            input: Signal::Token { vocab },
            output: Signal::Logits { classes: vocab },
            delay: 0,
            hash: file.hash(&core.options()),
        };
        let lm_head = Linear::pack(options.level, &head, vocab, d, None);
        Ok(Self { info, layout, vocab, embed, core, lm_head })
    }
}

impl Model for Bst {
    fn info(&self) -> &Info {
        &self.info
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) {
        let (d, m) = (self.lm_head.k(), rows.len() * len);
        if m == 0 {
            return;
        }
        let s = &mut scratch.take(2 * line(m * d) + self.core.scratch_len(m));
        let (x, h) = (carve(s, m * d), carve(s, m * d));
        // x = embed[token]
        for (row, x) in rows.iter().zip(x.chunks_exact_mut(len * d)) {
            embed(&self.embed, d, &row.tokens, x);
        }
        // logits = lm_head rms(layers(x))
        self.core.forward(cx, x, h, rows, len, s);
        for (r, row) in rows.iter_mut().enumerate() {
            let y = MatMut::new(&mut row.y, len, self.vocab);
            linear(cx, sub(Mat::new(h, m, d), r * len, len), &self.lm_head, Act::None, Store::Set, y);
            row.state.steps += len as u64;
        }
    }

    fn gap(&self, state: &mut State, periods: f64) {
        self.core.gap(&mut state.data, periods);
    }

    fn upstream_state(&self, state: &State, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        self.core.upstream_state(&state.data, name)
    }
}

/// Golden files: logits, states, and the stream going on from them.
fn verify(g: &mut Golden<'_>) -> Result<(), Error> {
    let model = g.open(&g.open_options())?;
    let model = &*model;
    let mut rows: Vec<Row> = Vec::new();
    for (input, output, state) in
        [("__input__", "__output__", "__state__."), ("__cont_input__", "__cont_output__", "__cont_state__.")]
    {
        if !g.has(input) {
            continue;
        }
        let (shape, ids) = g.tensor(input)?;
        let &[batch, len] = &shape[..] else {
            return Err(Error::Input { expected: "[batch, steps] of ids".into(), got: format!("{input} {shape:?}") });
        };
        let vocab = model.info().output.len();
        if let Some(id) = ids.iter().find(|id| !(0.0..vocab as f32).contains(*id)) {
            return Err(Error::Input { expected: format!("ids below {vocab}"), got: id.to_string() });
        }
        rows = (0..batch)
            .map(|b| Row {
                state: rows.get(b).map_or(State::new(model.layout()), |r| r.state.clone()),
                ..Row::new(model, len)
            })
            .collect();
        let (mut y, mut at) = (vec![Vec::new(); batch], 0);
        for n in g.cuts(len) {
            for (b, row) in rows.iter_mut().enumerate() {
                let part = &ids[b * len + at..][..n];
                row.tokens.iter_mut().zip(part).for_each(|(t, id)| *t = *id as u32);
            }
            g.forward(model, &mut rows, n);
            for (y, row) in y.iter_mut().zip(&rows) {
                y.extend_from_slice(&row.y[..n * vocab]);
            }
            at += n;
        }
        let tol = 2e-5 * g.tensor(output)?.1.iter().fold(0f32, |m, v| m.max(v.abs()));
        g.check(output, &y.concat(), tol)?;
        for (b, row) in rows.iter().enumerate() {
            g.compare_state(state, model, &row.state, b, |want| tol.max(2e-5 * largest(want)))?;
        }
    }
    Ok(())
}
