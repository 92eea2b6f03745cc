//! Mamba (Gu & Dao 2023, arXiv 2312.00752, Figure 3) and Mamba-2 (Dao & Gu 2024, arXiv 2405.21060, Figure 6): language
//! models, and single mixers on vectors.
//!
//! A language model loads under the names of mamba_ssm or of transformers; the two differ in `embedding` against
//! `embeddings` only. Sizes are read off the tensors, and each layer's mixer is what its tensors are. What they do not say
//! (groups and step limits of Mamba-2, eps) comes from the configuration in either spelling.

mod card;

use crate::card::{Network, Weights};
use crate::checkpoint::{Checkpoint, Reader};
use crate::config::Fields;
use crate::error::Error;
use crate::families::{Family, Options, lowered};
use crate::golden::Golden;
use crate::golden_sequence;
use crate::mixer::MixerState;
use crate::mixer2;
use crate::mixers::AnyMixer;
use crate::model::{Facts, Info, Model, Row, Scratch, Signal, carve, line};
use crate::stack::{Stack, load_norm};
use crate::state::{State, StateLayout};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::norm::{Norm, add_norm};
use ssm_kernels::{Act, Cx, Mat, MatMut};
use std::sync::Arc;

pub(crate) const MAMBA: Family = Family {
    name: "mamba",
    detect: |f| place(f).is_some_and(|p| f.shape(&format!("{}x_proj.weight", p.mixer())).is_some()),
    open,
    verify,
};

pub(crate) const MAMBA2: Family = Family {
    name: "mamba2",
    detect: |f| place(f).is_some_and(|p| f.shape(&format!("{}dt_bias", p.mixer())).is_some()),
    open,
    verify,
};

/// What a file holds, and under which prefix.
#[derive(Clone, Copy)]
enum Place {
    /// A language model: embedding and layers behind this prefix, `lm_head` without one.
    Lm(&'static str),
    /// One mixer, its names without prefix.
    Mixer,
}

impl Place {
    /// Prefix of the (first) mixer.
    fn mixer(self) -> String {
        match self {
            Place::Lm(prefix) => format!("{prefix}layers.0.mixer."),
            Place::Mixer => String::new(),
        }
    }
}

fn place(f: &Checkpoint) -> Option<Place> {
    let has = |name: &str| f.shape(name).is_some();
    // Scanned both ways, it is a Vim's or an Audio Mamba's.
    let causal = |mixer: &str| {
        ["A_log", "in_proj.weight", "conv1d.weight", "out_proj.weight"].iter().all(|n| has(&format!("{mixer}{n}")))
            && !has(&format!("{mixer}A_b_log"))
    };
    let embedded = |prefix: &str| has("lm_head.weight") || EMBEDDING.iter().any(|n| has(&format!("{prefix}{n}")));
    let lm = ["backbone.", ""].into_iter().find(|p| embedded(p) && causal(&Place::Lm(p).mixer()));
    lm.map(Place::Lm).or_else(|| causal("").then_some(Place::Mixer))
}

/// Names of the embedding: mamba_ssm, transformers.
const EMBEDDING: [&str; 2] = ["embedding.weight", "embeddings.weight"];

fn open(file: &Checkpoint, options: &Options) -> Result<Arc<dyn Model>, Error> {
    match place(file) {
        Some(Place::Lm(prefix)) => Ok(Arc::new(MambaLm::load(file, options, prefix)?)),
        _ => Ok(Arc::new(Single::load(file, options)?)),
    }
}

/// Refuses what none of the networks here computes.
fn check_config(fields: &Fields<'_>) -> Result<(), Error> {
    // Falcon-Mamba has Mamba's tensors and norms without weights on B, C and the step.
    let falcon = fields.word(&["model_type"])?.is_some_and(|kind| kind == "falcon_mamba");
    if falcon || fields.get(&["mixer_rms_eps"]).is_some() || fields.flag(&["use_bcdt_rms"])? == Some(true) {
        return Err(fields.bad("model_type", "mamba or mamba2", "falcon_mamba, which norms B, C and the step"));
    }
    if let Some((name, layers)) = fields.get(&["attn_layer_idx"])
        && layers.as_array().is_none_or(|layers| !layers.is_empty())
    {
        return Err(fields.bad(&name, "no layers of attention", layers));
    }
    let known = |v: &str| matches!(v, "silu" | "swish");
    match fields.get(&["hidden_act", "activation"]) {
        Some((name, act)) if !act.as_str().is_some_and(known) => Err(fields.bad(&name, "silu", act)),
        _ => Ok(()),
    }
}

/// The family's name of a mixer.
fn family(mixer: Option<&AnyMixer>) -> &'static str {
    if let Some(AnyMixer::Mamba2(_)) = mixer { MAMBA2.name } else { MAMBA.name }
}

/// A language model.
struct MambaLm {
    info: Info,
    layout: StateLayout,
    /// (V, D) where it is not the head's.
    embedding: Option<Vec<f32>>,
    stack: Stack,
    norm_f: Norm,
    lm_head: Linear, // (V, D)
}

impl MambaLm {
    fn load(file: &Checkpoint, options: &Options, prefix: &str) -> Result<Self, Error> {
        let level = options.level;
        let fields = Fields::new(options.config.as_ref(), file.path.display().to_string());
        check_config(&fields)?;
        let eps = fields.eps(&["layer_norm_epsilon", "norm_epsilon"], 1e-5)?;
        let tie = fields.flag(&["tie_embeddings", "tie_word_embeddings"])?;
        let top = Reader::new(file);
        let w = top.at(prefix);

        let name = EMBEDDING.into_iter().find(|n| w.has(n)).unwrap_or(EMBEDDING[0]);
        let shape = w.shape(name).or(top.shape("lm_head.weight")).unwrap_or_default();
        let &[vocab, d] = shape else {
            return Err(fields.bad(name, "a shape [vocab, d_model]", format!("{shape:?}")));
        };
        let (vocab, d) = (vocab.max(1), d.max(1));
        // Both may be there, or only one that serves for both.
        let (both, untied) = (w.has(name) && top.has("lm_head.weight"), tie == Some(false));
        let head = if top.has("lm_head.weight") || untied {
            top.take("lm_head.weight", &[vocab, d])?
        } else {
            w.take(name, &[vocab, d])?
        };
        let embedding = if both || untied { Some(w.take(name, &[vocab, d])?) } else { None };
        let embedding = embedding.filter(|e| untied || *e != head);
        if embedding.is_some() && tie == Some(true) {
            return Err(fields.bad("tie_embeddings", format!("lm_head.weight equal to {name}"), "other values"));
        }
        let mut lm_head = Linear::pack(level, &head, vocab, d, None);
        lm_head.lower(options.precision);
        drop(head);

        let (mut layout, mut stack) = (StateLayout::new(), Stack::new(d));
        let layers = stack.load(&w, level, eps, &fields, &mut layout, "")?;
        stack.lower(options.precision);
        let norm_f = load_norm(&w, "norm_f", d, eps)?;
        fields.agree(&["n_layer", "num_hidden_layers"], layers)?;
        fields.agree(&["d_model", "hidden_size"], d)?;
        stack.mixers().try_for_each(|(mixer, _)| mixer.agree(&fields))?;
        w.finish()?;

        let first = stack.mixers().next().map(|m| &m.0);
        let values = |name: &str| file.shape(name).map_or(0, |s| s.iter().product::<usize>() as u64);
        let all: u64 = file.names().filter(|n| !n.starts_with("__")).map(values).sum();
        let tied = if embedding.is_none() { "tied" } else { "not tied" };
        let info = Info {
            family: family(first),
            facts: Facts { precision: options.precision, ..Facts::default() },
            sizes: format!(
                "D {d}, {layers} layers, {}, vocabulary {vocab}, {tied}",
                first.map(AnyMixer::sizes).unwrap_or_default()
            ),
            parameters: if both && embedding.is_none() { all - values("lm_head.weight") } else { all },
            input: Signal::Token { vocab },
            output: Signal::Logits { classes: vocab },
            delay: 0,
            hash: file.hash(&format!("eps={eps} {:?}{}", mixer2::Config::read(&fields)?, lowered(options.precision))),
        };
        Ok(Self { info, layout, embedding, stack, norm_f, lm_head })
    }

    /// What a token stands for, D values.
    fn embed_token(&self, id: u32, x: &mut [f32]) {
        match &self.embedding {
            Some(table) => x.copy_from_slice(&table[id as usize * x.len()..][..x.len()]),
            None => self.lm_head.row(id as usize, x),
        }
    }

    /// Working memory of a pass over `rows` streams of `len` steps.
    fn scratch_len(&self, rows: usize, len: usize) -> usize {
        let (m, d) = (rows * len, self.lm_head.k());
        3 * line(m * d) + self.stack.scratch_len(m).max(head_scratch_len(&self.lm_head, rows, len))
    }
}

impl Model for MambaLm {
    fn info(&self) -> &Info {
        &self.info
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) {
        let (m, d) = (rows.len() * len, self.lm_head.k());
        if m == 0 {
            return;
        }
        let s = &mut scratch.take(self.scratch_len(rows.len(), len));
        let (residual, hidden, normed) = (carve(s, m * d), carve(s, m * d), carve(s, m * d));
        let tokens = rows.iter().flat_map(|r| &r.tokens[..len]);
        for (id, x) in tokens.zip(hidden.chunks_exact_mut(d)) {
            self.embed_token(*id, x);
        }
        residual.fill(0.0);
        self.stack.forward(cx, [&mut *residual, &mut *hidden, &mut *normed], rows, len, s, &mut |_| ());
        let (r, n) = (MatMut::new(residual, m, d), MatMut::new(normed, m, d));
        add_norm(cx, &self.norm_f, Mat::new(hidden, m, d), r, n);
        head(cx, &self.lm_head, normed, rows, len, s);
        rows.iter_mut().for_each(|r| r.state.steps += len as u64);
    }

    fn network(&self, weights: &mut Weights) -> Option<Box<dyn Network>> {
        self.on_card(weights)
    }

    fn embed(&self, row: &Row, steps: std::ops::Range<usize>, out: &mut [f32]) {
        let d = self.lm_head.k();
        for (id, x) in row.tokens[steps].iter().zip(out.chunks_exact_mut(d)) {
            self.embed_token(*id, x);
        }
    }

    fn gap(&self, state: &mut State, periods: f64) {
        self.stack.gap(&mut state.data, periods);
    }

    fn upstream_state(&self, state: &State, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        self.stack.upstream_state(&state.data, name)
    }
}

/// Rows of scores of several streams that wait in working memory before they go to their outputs.
const SCORED: usize = 16;

/// Working memory that [`head`] takes for `rows` streams of `len` steps.
pub(crate) fn head_scratch_len(lm_head: &Linear, rows: usize, len: usize) -> usize {
    if rows == 1 { 0 } else { line((rows * len).min(SCORED) * lm_head.n()) }
}

/// Scores of every step, x (rows · len, D), to the streams' outputs. Several streams share each reading of the weights.
pub(crate) fn head(cx: &Cx, lm_head: &Linear, x: &[f32], rows: &mut [Row], len: usize, mut scratch: &mut [f32]) {
    let (m, d, vocab) = (rows.len() * len, lm_head.k(), lm_head.n());
    if let [row] = rows {
        let y = MatMut::new(&mut row.y[..len * vocab], len, vocab);
        return linear(cx, Mat::new(x, len, d), lm_head, Act::None, Store::Set, y);
    }
    let scores = carve(&mut scratch, m.min(SCORED) * vocab);
    for from in (0..m).step_by(SCORED) {
        let n = SCORED.min(m - from);
        let part = Mat::new(&x[from * d..], n, d);
        linear(cx, part, lm_head, Act::None, Store::Set, MatMut::new(scores, n, vocab));
        for (i, scores) in (from..from + n).zip(scores.chunks_exact(vocab)) {
            rows[i / len].y[i % len * vocab..][..vocab].copy_from_slice(scores);
        }
    }
}

/// One mixer: vectors in, vectors out, no norm and no residual around it.
struct Single {
    info: Info,
    layout: StateLayout,
    state: MixerState,
    mixer: AnyMixer,
    d: usize,
}

impl Single {
    fn load(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let fields = Fields::new(options.config.as_ref(), file.path.display().to_string());
        check_config(&fields)?;
        let w = Reader::new(file);
        let d = w.shape("out_proj.weight").and_then(|s| s.first()).copied().unwrap_or(0).max(1);
        let mixer = AnyMixer::load(&w, options.level, d, &fields)?;
        fields.agree(&["d_model", "hidden_size"], d)?;
        mixer.agree(&fields)?;
        w.finish()?;
        let mut layout = StateLayout::new();
        let state = mixer.state(&mut layout, "mixer");
        let info = Info {
            family: family(Some(&mixer)),
            facts: Facts::default(),
            sizes: format!("one mixer, D {d}, {}", mixer.sizes()),
            parameters: file.parameters(),
            input: Signal::Vector { dim: d },
            output: Signal::Vector { dim: d },
            delay: 0,
            hash: file.hash(&format!("{:?}", mixer2::Config::read(&fields)?)),
        };
        Ok(Self { info, layout, state, mixer, d })
    }
}

impl Model for Single {
    fn info(&self) -> &Info {
        &self.info
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) {
        let (m, d) = (rows.len() * len, self.d);
        if m == 0 {
            return;
        }
        let s = &mut scratch.take(2 * line(m * d) + self.mixer.scratch_len(m));
        let (x, y) = (carve(s, m * d), carve(s, m * d));
        for (row, x) in rows.iter().zip(x.chunks_exact_mut(len * d)) {
            x.copy_from_slice(&row.x[..len * d]);
        }
        self.mixer.forward(cx, Mat::new(x, m, d), rows, len, &self.state, s, MatMut::new(y, m, d));
        for (row, y) in rows.iter_mut().zip(y.chunks_exact(len * d)) {
            row.y[..len * d].copy_from_slice(y);
            row.state.steps += len as u64;
        }
    }

    fn network(&self, weights: &mut Weights) -> Option<Box<dyn Network>> {
        self.on_card(weights)
    }

    fn gap(&self, state: &mut State, periods: f64) {
        self.mixer.gap(&mut state.data, &self.state, periods);
    }

    fn upstream_state(&self, state: &State, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        self.mixer.upstream_state(&state.data, &self.state, name.strip_prefix("layer0.")?)
    }
}

/// Golden files: scores or vectors, states at the split and at the end, the continuation from the carried state, other
/// step lengths, what a single Mamba-1 mixer computes on the way.
fn verify(g: &mut Golden<'_>) -> Result<(), Error> {
    const TOL: f32 = 2e-5;
    golden_sequence::verify(g, TOL)?;
    if g.names_with("__dbg__.").is_empty() || !matches!(place(g.weights()), Some(Place::Mixer)) {
        return Ok(());
    }
    let model = Single::load(g.weights(), &g.open_options())?;
    let AnyMixer::Mamba(mixer) = &model.mixer else { return Ok(()) };
    let (batch, len, x) = golden_sequence::input(g, &model, "__input__")?;
    let (m, d) = (batch * len, model.d);
    let mut rows: Vec<Row> = x.chunks(len * d).map(|x| Row { x: x.to_vec(), ..Row::new(&model, len) }).collect();
    let (mut scratch, mut out) = (vec![0.0; mixer.scratch_len(m)], vec![0.0; m * d]);
    let y = MatMut::new(&mut out, m, d);
    mixer.forward(g.cx(), Mat::new(&x, m, d), &mut rows, len, Some(&model.state), &mut scratch, y);
    let taps = mixer.taps(&mut scratch, m);
    let all = |tap: Mat<'_>| (0..m).flat_map(|r| tap.row(r).to_vec()).collect::<Vec<f32>>();
    let delta = (0..m).flat_map(|r| mixer.delta(taps.dt.row(r))).collect();
    for (name, got) in
        [("conv_out", all(taps.conv)), ("z", all(taps.z)), ("B", all(taps.b)), ("C", all(taps.c)), ("dt", delta)]
    {
        let name = format!("__dbg__.{name}");
        if g.has(&name) {
            g.check_relative(&name, &got, TOL)?;
        }
    }
    // The scan gates as it goes: the file's value is gated here.
    if g.has("__dbg__.scan_out_before_gate") && g.has("__dbg__.z") {
        let (_, scan) = g.tensor("__dbg__.scan_out_before_gate")?;
        let (_, z) = g.tensor("__dbg__.z")?;
        let silu = |z: f64| z / (1.0 + (-z).exp());
        let want: Vec<f64> = scan.iter().zip(&z).map(|(y, z)| f64::from(*y) * silu(f64::from(*z))).collect();
        let largest = want.iter().fold(0.0, |m: f64, v| m.max(v.abs())) as f32;
        g.compare("__dbg__.scan_out_before_gate, gated", &all(taps.y), &want, TOL * largest);
    }
    Ok(())
}
