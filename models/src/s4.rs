//! S4 (Gu et al. 2022, arXiv 2111.00396) and S4D (Gu et al. 2022, arXiv 2206.11893), as layers and as whole models.
//!
//! A layer runs one linear system per feature ([`crate::s4_core`]), a non-linearity on each value, and a linear map that
//! mixes the features. It loads under the names of `state-spaces/s4`, version 4: a lone `S4Block`, the tutorial's minimal
//! module, the example classifier, and the repository's stack of residual layers. What the tensors do not say comes from
//! the file's `config`, else from upstream's defaults.

mod card;
mod verify;

pub(crate) use card::BlockNet;

use crate::card::{Network, Weights};
use crate::checkpoint::{Checkpoint, Reader};
use crate::config::{Fields, bad, field, flag, present};
use crate::error::Error;
use crate::families::{Family, Options};
use crate::mixer::sub;
use crate::model::{Facts, Info, Model, Row, Scratch, Signal, carve, embed, line};
use crate::s4_core::{Core, Rules};
use crate::state::{State, StateLayout};
use serde_json::Value;
use ssm_kernels::activation::{apply, glu};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::norm::{Kind, Norm, norm};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};
use std::ops::Range;
use std::sync::Arc;

/// Steps over which a mean is taken at most: f32 still has the last one's share.
const MEAN_STEPS: u64 = 1 << 22;

pub(crate) const FAMILY: Family = Family {
    name: "s4",
    detect: |f| Form::of(f).is_some(),
    open: |file, options| Ok(Arc::new(S4::load(file, options)?)),
    verify: verify::verify,
};

/// Which of the published forms a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `layer.*`, `output_linear.*`.
    Block,
    /// `kernel.log_dt`, …: the tutorial's module.
    Minimal,
    /// `encoder`, `s4_layers.i`, `norms.i`, `decoder`.
    Classifier,
    /// `layers.i.layer.*`, `layers.i.norm.norm`, `norm.norm`, behind this prefix.
    Stack(&'static str),
    /// The names of version 3, which are refused.
    Old,
}

impl Form {
    fn of(f: &Checkpoint) -> Option<Self> {
        let has = |name: &str| f.shape(name).is_some();
        let old = |n: &str| n.ends_with("kernel.kernel.inv_w_real") || n.ends_with("kernel.kernel.w_imag");
        Some(match () {
            () if has("layer.D") && has("layer.kernel.C") => Self::Block,
            () if has("kernel.log_dt") && has("kernel.log_A_real") => Self::Minimal,
            () if has("s4_layers.0.D") || has("s4_layers.0.layer.D") => Self::Classifier,
            () if has("layers.0.layer.layer.D") => Self::Stack(""),
            () if has("model.layers.0.layer.layer.D") => Self::Stack("model."),
            () if f.names().any(old) => Self::Old,
            () => return None,
        })
    }
}

/// A function of one value, or the gated unit that halves a row.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Activation {
    Of(Act),
    Tanh,
    Elu,
    Glu,
}

impl Activation {
    /// The activation of a name; `None` is no activation.
    fn named(name: Option<&str>) -> Option<Self> {
        Some(match name {
            None | Some("id" | "identity" | "linear" | "none") => Self::Of(Act::None),
            Some("relu") => Self::Of(Act::Relu),
            Some("gelu") => Self::Of(Act::Gelu),
            Some("swish" | "silu") => Self::Of(Act::Silu),
            Some("sigmoid") => Self::Of(Act::Sigmoid),
            Some("softplus") => Self::Of(Act::Softplus),
            Some("tanh") => Self::Tanh,
            Some("elu") => Self::Elu,
            Some("glu") => Self::Glu,
            Some(_) => return None,
        })
    }

    /// What `config` says under `name`, else `default`.
    fn read(config: Option<&Value>, name: &str, default: &str, file: &str) -> Result<Self, Error> {
        // A field that is there and null is Python's None: no activation.
        let said = match present(config, name) {
            Some(Value::Null) => None,
            Some(v) => Some(v.as_str().unwrap_or("?")),
            None => Some(default),
        };
        let known = "id, relu, gelu, silu, sigmoid, softplus, tanh, elu or glu";
        Self::named(said).ok_or_else(|| bad(file, name, known, said.unwrap_or_default()))
    }

    /// Columns that `n` columns become.
    fn columns(self, n: usize) -> usize {
        if self == Self::Glu { n / 2 } else { n }
    }

    /// Applies it in place to dense rows of `n` columns; of the gated unit the first half of each row is left.
    fn apply(self, level: CpuLevel, x: &mut [f32], n: usize) {
        match self {
            Self::Of(act) => apply(level, act, x),
            Self::Tanh => x.iter_mut().for_each(|v| *v = v.tanh()),
            Self::Elu => x.iter_mut().for_each(|v| *v = if *v > 0.0 { *v } else { v.exp_m1() }),
            Self::Glu => {
                let rows = x.len() / n.max(1);
                glu(level, MatMut::new(x, rows, n));
            }
        }
    }
}

/// One layer: `S4Block`, or the minimal module.
pub(crate) struct Block {
    input_linear: Option<Linear>, // (H, D)
    core: Core,
    swap_channels: bool,
    activation: Activation,
    mult_act: Activation,
    output_linear: Option<Linear>, // (D or 2D, channels · H)
    final_act: Activation,
    d_input: usize,
    d_output: usize,
}

impl Block {
    /// Whether a layer lies at the reader's place.
    pub(crate) fn detect(w: &Reader<'_>) -> bool {
        (w.has("layer.D") && w.has("layer.kernel.C")) || (w.has("kernel.log_dt") && w.has("kernel.log_A_real"))
    }

    /// Reads a layer at the reader's place.
    pub(crate) fn load(w: &Reader<'_>, level: CpuLevel, config: Option<&Value>, file: &str) -> Result<Self, Error> {
        let minimal = w.has("kernel.log_dt");
        for (field, why) in [
            ("bidirectional", "false: a stream has no later samples to go back from"),
            ("gate", "null (upstream cannot build one either)"),
            ("bottleneck", "null"),
        ] {
            let said = crate::config::field(config, field).filter(|v| v.as_bool() != Some(false));
            if let Some(said) = said {
                return Err(bad(file, field, why, said));
            }
        }
        let core = if minimal {
            Core::load_minimal(w, file)?
        } else {
            Core::load(&w.at("layer."), &Rules::read(config, file)?, file)?
        };
        let (h, width) = (core.sizes().features, core.sizes().features * core.sizes().channels);
        for gate in ["input_gate.weight", "input_gate.0.weight"] {
            if w.has(gate) {
                return Err(bad(file, gate, "no gate (upstream cannot build one either)", "a tensor"));
            }
        }
        let (activation, mult_act, last) = if minimal {
            (Activation::Of(Act::Gelu), Activation::Of(Act::None), Activation::Glu)
        } else {
            (
                Activation::read(config, "activation", "gelu", file)?,
                Activation::read(config, "mult_act", "id", file)?,
                Activation::read(config, "final_act", "glu", file)?,
            )
        };
        if activation == Activation::Glu && width % 2 == 1 || mult_act == Activation::Glu {
            return Err(bad(file, "activation", "a glu over an even number of channels", format!("{width} columns")));
        }
        let shape = |name: &str| w.shape(name).unwrap_or_default();
        let mut d_input = h;
        let input_linear = match *shape("input_linear.weight") {
            [_, d] if d > 0 => {
                d_input = d;
                let weight = w.take("input_linear.weight", &[h, d])?;
                let bias = w.take_optional("input_linear.bias", &[h])?;
                Some(Linear::pack(level, &weight, h, d, bias.as_deref()))
            }
            _ => None,
        };
        let inner = activation.columns(width);
        let (mut d_output, mut final_act) = (inner, Activation::Of(Act::None));
        let left_out = !minimal && present(config, "final_act").is_none_or(|v| v.is_null() || v == "none");
        let output_linear = match w.shape("output_linear.0.weight") {
            None if left_out => None,
            None => return Err(bad(file, "output_linear.0.weight", "a tensor, since final_act is not null", "none")),
            Some(dims) => {
                // The convolution of width 1 in the minimal module has a third axis.
                let n = dims.first().copied().unwrap_or(0);
                let dims = if dims.len() == 3 { vec![n, inner, 1] } else { vec![n, inner] };
                let weight = w.take("output_linear.0.weight", &dims)?;
                let bias = w.take_optional("output_linear.0.bias", &[n])?;
                if n == 0 || (last == Activation::Glu && n % 2 == 1) {
                    return Err(bad(file, "output_linear.0.weight", "an even number of rows for a glu", n));
                }
                (d_output, final_act) = (last.columns(n), last);
                Some(Linear::pack(level, &weight, n, inner, bias.as_deref()))
            }
        };
        Ok(Self {
            input_linear,
            swap_channels: flag(config, "swap_channels", false, file)?,
            core,
            activation,
            mult_act,
            output_linear,
            final_act,
            d_input,
            d_output,
        })
    }

    /// The system inside.
    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// Columns that go in.
    pub(crate) fn d_input(&self) -> usize {
        self.d_input
    }

    /// Columns that come out.
    pub(crate) fn d_output(&self) -> usize {
        self.d_output
    }

    /// Adds this layer's span to a layout.
    pub(crate) fn state(&self, layout: &mut StateLayout, name: impl Into<String>) -> Range<usize> {
        layout.add(name, &self.core.sizes().state_shape())
    }

    /// Working memory for `m` rows.
    pub(crate) fn scratch_len(&self, m: usize) -> usize {
        let s = self.core.sizes();
        let out = self.output_linear.as_ref().map_or(0, Linear::n);
        line(m * s.features) + 2 * line(m * s.features * s.channels) + line(m * out)
    }

    /// `out = layer(x)` for `rows.len()` sequences of `len` steps, x and out (rows · len, D); each row goes on from its
    /// state at `at`.
    pub(crate) fn forward(
        &self,
        cx: &Cx,
        x: Mat<'_>,
        rows: &mut [Row],
        len: usize,
        at: &Range<usize>,
        mut scratch: &mut [f32],
        mut out: MatMut<'_>,
    ) {
        let (h, channels) = (self.core.sizes().features, self.core.sizes().channels);
        let (m, width) = (rows.len() * len, h * channels);
        let s = &mut scratch;
        let (u, v) = (carve(s, m * h), carve(s, m * width));
        // u = input_linear x
        let u = match &self.input_linear {
            Some(w) => {
                linear(cx, x, w, Act::None, Store::Set, MatMut::new(u, m, h));
                Mat::new(u, m, h)
            }
            None => x,
        };
        // v = activation(C x + D u), channel after channel
        for (i, row) in rows.iter_mut().enumerate() {
            let y = MatMut::new(&mut v[i * len * width..], len, width);
            self.core.run(cx, sub(u, i * len, len), &mut row.state.data[at.clone()], row.rate, true, y);
        }
        let mut v = v;
        if self.swap_channels && channels > 1 {
            let swapped = carve(s, m * width);
            for (to, from) in swapped.chunks_exact_mut(width).zip(v.chunks_exact(width)) {
                for (k, to) in to.iter_mut().enumerate() {
                    *to = from[k % channels * h + k / channels];
                }
            }
            v = swapped;
        }
        self.activation.apply(cx.level, v, width);
        let inner = self.activation.columns(width);
        if self.mult_act != Activation::Of(Act::None) {
            v.chunks_exact_mut(width).for_each(|v| self.mult_act.apply(cx.level, &mut v[..inner], inner));
        }
        let v = Mat::new(v, m, width).columns(0..inner);
        // out = final_act(output_linear v)
        match (&self.output_linear, self.final_act) {
            (None, _) => copy(v, &mut out),
            (Some(w), Activation::Of(act)) => linear(cx, v, w, act, Store::Set, out),
            (Some(w), act) => {
                let t = carve(s, m * w.n());
                linear(cx, v, w, Act::None, Store::Set, MatMut::new(t, m, w.n()));
                act.apply(cx.level, t, w.n());
                copy(Mat::new(t, m, w.n()).columns(0..act.columns(w.n())), &mut out);
            }
        }
    }
}

fn copy(from: Mat<'_>, to: &mut MatMut<'_>) {
    (0..from.rows()).for_each(|r| to.row(r).copy_from_slice(from.row(r)));
}

/// What turns input into the width of the layers.
enum Encoder {
    None,
    Linear(Linear),      // (D, d_input)
    Embedding(Vec<f32>), // (vocab, D)
}

struct Layer {
    norm: Option<Norm>,
    block: Block,
    at: Range<usize>,
}

/// A layer alone or a network of residual layers.
struct S4 {
    info: Info,
    layout: StateLayout,
    encoder: Encoder,
    layers: Vec<Layer>,
    /// Whether the layers are residual ones.
    residual: bool,
    /// Whether a layer's norm stands before it.
    prenorm: bool,
    norm: Option<Norm>,
    /// Place of the running mean, if the steps are averaged.
    mean: Option<Range<usize>>,
    decoder: Option<Linear>, // (classes, D)
    d_model: usize,
    outputs: usize,
}

impl S4 {
    fn load(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let path = file.path.display().to_string();
        let (level, config) = (options.level, options.config.as_ref());
        let form = Form::of(file).ok_or_else(|| bad(&path, "layer.D", "an S4 layer", "none"))?;
        if form == Form::Old {
            let got = "names of version 3 (convert the file with upstream's port_v3_to_v4 script)";
            return Err(bad(&path, "kernel", "names of version 4", got));
        }
        let all = Reader::new(file);
        let w = all.at(if let Form::Stack(prefix) = form { prefix } else { "" });
        let load_norm = |w: &Reader<'_>, name: &str, d: usize| -> Result<Option<Norm>, Error> {
            let Some(weight) = w.take_optional(&format!("{name}.weight"), &[d])? else { return Ok(None) };
            Ok(Some(Norm::new(Kind::Layer, weight, Some(w.take(&format!("{name}.bias"), &[d])?), 1e-5)))
        };
        let mut layout = StateLayout::new();
        let mut layers: Vec<Layer> = Vec::new();
        let place = |i: usize| match form {
            Form::Classifier => (format!("s4_layers.{i}."), format!("norms.{i}")),
            Form::Stack(_) => (format!("layers.{i}.layer."), format!("layers.{i}.norm.norm")),
            _ => (String::new(), String::new()),
        };
        loop {
            let i = layers.len();
            let (prefix, norm) = place(i);
            let here = w.at(&prefix);
            let more = here.has("D") || here.has("layer.D");
            if !more || (prefix.is_empty() && i == 1) {
                break;
            }
            let block = Block::load(&here, level, config, &path)?;
            let at = block.state(&mut layout, format!("layers.{i}.ssm"));
            let norm = if prefix.is_empty() { None } else { load_norm(&w, &norm, block.d_input())? };
            layers.push(Layer { norm, block, at });
        }
        let (d_model, last) = match (layers.first(), layers.last()) {
            (Some(first), Some(last)) => (first.block.d_input(), last.block.d_output()),
            _ => return Err(bad(&path, "layers", "at least one layer", 0)),
        };
        if let Some(i) = layers.iter().position(|l| l.norm.is_none())
            && (form == Form::Classifier || layers.iter().any(|l| l.norm.is_some()))
        {
            return Err(bad(&path, &format!("{}.weight", place(i).1), "a tensor, as of every layer", "none"));
        }
        let fields = Fields::new(config, path.clone());
        fields.agree(&["d_model"], d_model)?;
        let residual = matches!(form, Form::Classifier | Form::Stack(_));
        let fits = |l: &Layer| l.block.d_input() == d_model && l.block.d_output() == d_model;
        if residual && !layers.iter().all(fits) {
            return Err(bad(&path, "layers", format!("layers from {d_model} to {d_model} columns"), "another width"));
        }
        let norm = if matches!(form, Form::Stack(_)) { load_norm(&w, "norm.norm", d_model)? } else { None };
        let prenorm = flag(config, "prenorm", norm.is_some(), &path)?;

        let found = |names: &[&'static str]| names.iter().copied().find(|n| all.has(&format!("{n}.weight")));
        let (mut encoder, mut input) = (Encoder::None, Signal::Vector { dim: d_model });
        if residual && let Some(name) = found(&["encoder", "encoder.0"]) {
            let dims = all.shape(&format!("{name}.weight")).unwrap_or_default();
            let columns = dims.get(1).copied().unwrap_or(0);
            if let Some(bias) = all.take_optional(&format!("{name}.bias"), &[d_model])? {
                let weight = all.take(&format!("{name}.weight"), &[d_model, columns])?;
                encoder = Encoder::Linear(Linear::pack(level, &weight, d_model, columns, Some(&bias)));
                input = Signal::Vector { dim: columns };
            } else {
                let vocab = dims.first().copied().unwrap_or(0);
                if vocab == 0 {
                    return Err(bad(&path, &format!("{name}.weight"), "at least one token", 0));
                }
                encoder = Encoder::Embedding(all.take(&format!("{name}.weight"), &[vocab, d_model])?);
                input = Signal::Token { vocab };
            }
        }
        let mut decoder = None;
        if residual && let Some(name) = found(&["decoder", "decoder.0.output_transform", "decoder.output_transform"]) {
            let classes = all.shape(&format!("{name}.weight")).and_then(|s| s.first()).copied().unwrap_or(0);
            let weight = all.take(&format!("{name}.weight"), &[classes, d_model])?;
            let bias = all.take_optional(&format!("{name}.bias"), &[classes])?;
            decoder = Some(Linear::pack(level, &weight, classes, d_model, bias.as_deref()));
        }
        all.finish()?;
        if !place(0).0.is_empty() {
            // A stack has all of its kinds of layers in turn, and all of that so often.
            let kinds = fields.get(&["layer"]).and_then(|(_, v)| v.as_array()).map_or(1, Vec::len);
            let times = kinds * fields.size(&["n_repeat"])?.unwrap_or(1);
            let turns = layers.len() / times.max(1);
            fields.agree(&["n_layers"], if turns * times == layers.len() { turns } else { layers.len() })?;
        }
        if form == Form::Classifier {
            if let Encoder::Linear(encoder) = &encoder {
                fields.agree(&["d_input"], encoder.k())?;
            }
            decoder.as_ref().map_or(Ok(()), |decoder| fields.agree(&["d_output"], decoder.n()))?;
        }
        if let Some(v) = field(config, "pool").filter(|v| !v.is_string()) {
            return Err(bad(&path, "pool", "mean or none", v));
        }
        if matches!(form, Form::Stack(_)) {
            let is = |v: &Value, word: &str| *v == word || v.get("_name_").is_some_and(|name| *name == word);
            for (name, known) in [("residual", "R"), ("norm", "layer")] {
                if let Some(v) = field(config, name).filter(|v| !is(v, known)) {
                    return Err(bad(&path, name, known, v));
                }
            }
        }
        let pool = match field(config, "pool").and_then(Value::as_str) {
            None if form == Form::Classifier => true,
            None | Some("none") => false,
            Some("mean" | "pool") => true,
            Some(other) => return Err(bad(&path, "pool", "mean or none", other)),
        };
        let mean = (residual && pool).then(|| layout.add("mean", &[d_model]));
        let outputs = decoder.as_ref().map_or(last, Linear::n);
        let sizes = layers.first().map(|l| l.block.core().sizes()).unwrap_or_default();
        let kind = match sizes.rank {
            0 => "S4D".to_owned(),
            r => format!("S4 of rank {r}"),
        };
        let info = Info {
            family: FAMILY.name,
            facts: Facts::default(),
            sizes: format!(
                "{kind}, D {d_model}, {} layers, N {}, {} channels, {outputs} outputs",
                layers.len(),
                2 * sizes.states,
                sizes.channels
            ),
            parameters: file.parameters(),
            input,
            output: match decoder {
                Some(_) => Signal::Logits { classes: outputs },
                None => Signal::Vector { dim: outputs },
            },
            delay: 0,
            hash: file.hash(&format!("{form:?} prenorm={prenorm} pool={pool} config={config:?}")),
        };
        Ok(Self { info, layout, encoder, layers, residual, prenorm, norm, mean, decoder, d_model, outputs })
    }

    fn scratch_len(&self, m: usize) -> usize {
        let widest = self.layers.iter().map(|l| l.block.d_output()).max().unwrap_or(0).max(self.d_model);
        let block = self.layers.iter().map(|l| l.block.scratch_len(m)).max().unwrap_or(0);
        3 * line(m * widest) + block
    }

    /// The forward pass; `tap` sees each layer's output, (rows · len, D).
    fn run(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch, tap: &mut dyn FnMut(usize, &[f32])) {
        let (d, m) = (self.d_model, rows.len() * len);
        let widest = self.layers.iter().map(|l| l.block.d_output()).max().unwrap_or(0).max(d);
        let s = &mut scratch.take(self.scratch_len(m));
        let (x, z, y) = (carve(s, m * widest), carve(s, m * widest), carve(s, m * widest));
        // x = encoder(input)
        for (row, x) in rows.iter().zip(x.chunks_mut((len * d).max(1))) {
            match &self.encoder {
                Encoder::None => x[..len * d].copy_from_slice(&row.x[..len * d]),
                Encoder::Linear(w) => {
                    let input = Mat::new(&row.x, len, w.k());
                    linear(cx, input, w, Act::None, Store::Set, MatMut::new(x, len, d));
                }
                Encoder::Embedding(table) => embed(table, d, &row.tokens, x),
            }
        }
        let mut width = d;
        for (i, layer) in self.layers.iter().enumerate() {
            let out = layer.block.d_output();
            let of = |x: &[f32], to: &mut [f32]| {
                if let Some(w) = &layer.norm {
                    norm(cx, w, Mat::new(x, m, d), MatMut::new(to, m, d));
                }
            };
            // x = x + layer(norm(x)), or norm(x + layer(x)); a layer alone: x = layer(x)
            let before = self.prenorm && layer.norm.is_some();
            if before {
                of(x, z);
            }
            let input = Mat::new(if before { z } else { x }, m, width);
            layer.block.forward(cx, input, rows, len, &layer.at, s, MatMut::new(y, m, out));
            if self.residual {
                x[..m * d].iter_mut().zip(&*y).for_each(|(x, y)| *x += y);
            } else {
                x[..m * out].copy_from_slice(&y[..m * out]);
            }
            if !self.prenorm && layer.norm.is_some() {
                of(x, z);
                x[..m * d].copy_from_slice(&z[..m * d]);
            }
            width = out;
            tap(i, &x[..m * width]);
        }
        if let Some(w) = &self.norm {
            norm(cx, w, Mat::new(x, m, d), MatMut::new(z, m, d));
            x[..m * d].copy_from_slice(&z[..m * d]);
        }
        for (i, row) in rows.iter_mut().enumerate() {
            let x = &mut x[i * len * width..(i + 1) * len * width];
            // The mean of all steps so far; behind as many as f32 can tell apart, older ones fade.
            if let Some(at) = &self.mean {
                let mean = &mut row.state.data[at.clone()];
                for (t, x) in x.chunks_exact_mut(d).enumerate() {
                    let n = (row.state.steps + t as u64 + 1).min(MEAN_STEPS) as f32;
                    for (mean, x) in mean.iter_mut().zip(x) {
                        *mean += (*x - *mean) / n;
                        *x = *mean;
                    }
                }
            }
            match &self.decoder {
                Some(w) => {
                    let y = MatMut::new(&mut row.y, len, self.outputs);
                    linear(cx, Mat::new(x, len, d), w, Act::None, Store::Set, y);
                }
                None => row.y[..len * width].copy_from_slice(x),
            }
            row.state.steps += len as u64;
        }
    }
}

impl Model for S4 {
    fn info(&self) -> &Info {
        &self.info
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) {
        self.run(cx, rows, len, scratch, &mut |_, _| ());
    }

    fn network(&self, weights: &mut Weights) -> Option<Box<dyn Network>> {
        self.on_card(weights)
    }

    fn embed(&self, row: &Row, steps: Range<usize>, out: &mut [f32]) {
        let (n, d) = (self.info.input.len(), self.d_model);
        match &self.encoder {
            Encoder::Embedding(table) => embed(table, d, &row.tokens[steps], out),
            _ => out.copy_from_slice(&row.x[steps.start * n..steps.end * n]),
        }
    }

    fn gap(&self, state: &mut State, periods: f64) {
        for layer in &self.layers {
            layer.block.core().gap(&mut state.data[layer.at.clone()], periods);
        }
    }

    fn upstream_state(&self, state: &State, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let (i, what) = name.strip_prefix("layer")?.split_once('.')?;
        let layer = self.layers.get(i.parse::<usize>().ok()?)?;
        (what == "ssm").then(|| layer.block.core().upstream_state(&state.data[layer.at.clone()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::largest;
    use crate::s4_core::tests::{file, layer};

    #[test]
    fn golden_files_pass() {
        crate::golden::pass("s4");
    }

    /// The error of opening a layer after `change`.
    fn refused(config: Value, change: impl Fn(&mut Vec<(String, Vec<usize>, Vec<f32>)>)) -> String {
        let mut tensors = layer(3, 0, 6, 4, 2);
        change(&mut tensors);
        let options = Options { config: Some(config), ..Options::default() };
        S4::load(&file(&tensors), &options).err().map_or_else(String::new, |e| e.to_string())
    }

    #[test]
    fn what_cannot_run_on_a_stream_is_refused_with_a_reason() {
        let none = serde_json::json!({});
        assert_eq!(refused(none.clone(), |_| ()), "");
        let said = refused(serde_json::json!({ "disc": "dss" }), |_| ());
        assert!(said.contains("disc: expected zoh or bilinear") && said.contains("no steps"), "{said}");
        let said = refused(serde_json::json!({ "dt_transform": "cube" }), |_| ());
        assert!(said.contains("dt_transform") && said.contains("cube"), "{said}");
        let said = refused(none.clone(), |t| {
            let d = t.iter_mut().find(|t| t.0 == "layer.D").unwrap();
            (d.1, d.2) = (vec![1, 6], vec![0.0; 6]);
        });
        assert!(said.contains("bidirectional"), "{said}");
        let said = refused(none.clone(), |t| {
            let a = t.iter_mut().find(|t| t.0 == "layer.kernel.A_real").unwrap();
            (a.1, a.2) = (vec![4, 4], vec![0.0; 16]);
        });
        assert!(said.contains("divisor of 6"), "{said}");
        let said = refused(none.clone(), |t| t.push(("layer.kernel.Q".into(), vec![1], vec![0.0])));
        assert!(said.contains("layer.kernel.Q"), "{said}");
        let said = refused(none, |t| {
            let dt = t.iter_mut().find(|t| t.0 == "layer.kernel.inv_dt").unwrap();
            dt.2[0] = 1000.0;
        });
        assert!(said.contains("kernel: expected a system that can be discretised"), "{said}");
        let old = file(&[("layer.kernel.kernel.inv_w_real".into(), vec![1], vec![0.0])]);
        let said = S4::load(&old, &Options::default()).err().map_or_else(String::new, |e| e.to_string());
        assert!(said.contains("version 3"), "{said}");
    }

    /// One layer seen as a convolution over the whole clip, as a recurrence over the stream, and with its steps halved
    /// over a clip sampled twice as fast.
    #[test]
    fn three_views_of_a_layer_agree() {
        let cx = Cx::new(1).unwrap();
        for rank in 0..=2 {
            let tensors = layer(11, rank, 5, 8, 2);
            let config = serde_json::json!({ "activation": null, "final_act": null });
            let options = Options { config: Some(config), ..Options::default() };
            let model = S4::load(&file(&tensors), &options).unwrap();
            let (h, len) = (5, 120);
            let signal = |f: usize, t: f64| (0.11 * t + f as f64).sin() + 0.4 * (0.023 * t * (f + 1) as f64).cos();
            let run = |rate: f32, len: usize| {
                let mut row = [Row { rate, ..Row::new(&model, len) }];
                for (k, x) in row[0].x.iter_mut().enumerate() {
                    *x = signal(k % h, (k / h) as f64 * f64::from(rate)) as f32;
                }
                model.forward(&cx, &mut row, len, &mut Scratch::default());
                let [row] = row;
                row.y
            };
            let stream = run(1.0, len);
            let size = largest(&stream);
            let core = model.layers[0].block.core();
            let d: &[f32] = &tensors.iter().find(|t| t.0 == "layer.D").unwrap().2;
            for rate in [1.0, 0.5, 2.0] {
                let (k, y) = (core.kernel(len, rate), run(rate as f32, len));
                for (i, got) in y.iter().enumerate() {
                    let (t, ch, f) = (i / (2 * h), i / h % 2, i % h);
                    let x = |t: usize| f64::from(signal(f, t as f64 * rate) as f32);
                    let sum: f64 = (0..=t).map(|l| k[(ch * h + f) * len + l] * x(t - l)).sum();
                    let want = sum + f64::from(d[ch * h + f]) * x(t);
                    let near = (f64::from(*got) - want).abs() < f64::from(2e-5 * size);
                    assert!(near, "rank {rank} rate {rate} step {t}: expected {want}, got {got}");
                }
            }
            // The same signal, twice the samples, half the step: the same output at the same times, as near as the
            // discretisation is.
            let fast = run(0.5, 2 * len);
            let mut far = 0f32;
            for t in 20..len {
                for c in 0..2 * h {
                    far = far.max((fast[2 * t * 2 * h + c] - stream[t * 2 * h + c]).abs());
                }
            }
            let unscaled = {
                let mut row = [Row::new(&model, 2 * len)];
                for (k, x) in row[0].x.iter_mut().enumerate() {
                    *x = signal(k % h, (k / h) as f64 / 2.0) as f32;
                }
                model.forward(&cx, &mut row, 2 * len, &mut Scratch::default());
                (20..len).map(|t| (row[0].y[4 * t * h] - stream[2 * t * h]).abs()).fold(0.0, f32::max)
            };
            assert!(far < 0.12 * size && unscaled > 3.0 * far, "rank {rank}: {far} scaled, {unscaled} not, of {size}");
        }
    }

    #[test]
    fn a_gap_is_as_many_steps_of_silence() {
        let cx = Cx::new(1).unwrap();
        for (rank, disc) in [(0, "zoh"), (0, "bilinear"), (1, "zoh"), (2, "zoh")] {
            let options = Options { config: Some(serde_json::json!({ "disc": disc })), ..Options::default() };
            let model = S4::load(&file(&layer(12, rank, 5, 4, 1)), &options).unwrap();
            let mut row = [Row::new(&model, 50)];
            row[0].x.iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32).sin());
            model.forward(&cx, &mut row, 50, &mut Scratch::default());
            for n in [0, 1, 7, 50, 200, 5000] {
                let (mut a, mut b) = (row[0].state.clone(), [Row::new(&model, 50)]);
                model.gap(&mut a, f64::from(n));
                b[0].state = row[0].state.clone();
                let mut left = n as usize;
                while left > 0 {
                    model.forward(&cx, &mut b, left.min(50), &mut Scratch::default());
                    left -= left.min(50);
                }
                let size = largest(&row[0].state.data);
                for (a, b) in a.data.iter().zip(&*b[0].state.data) {
                    assert!((a - b).abs() < 3e-5 * size, "rank {rank} {disc} gap {n}: {a} against {b}");
                }
            }
            let mut state = row[0].state.clone();
            model.gap(&mut state, f64::NAN);
            model.gap(&mut state, -3.0);
            assert_eq!(*state.data, *row[0].state.data);
            model.gap(&mut state, 1e300);
            assert!(state.data.iter().all(|v| v.is_finite()));
        }
    }
}
