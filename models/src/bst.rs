//! Block-State Transformer (Fathi et al. 2023, arXiv 2306.09539, Figure 2): a transformer over windows of a stream whose
//! BST layers also attend to the outputs of a state space model, which carry what lies before the window.
//!
//! Three ways to choose that context, each from the S4D of the layer: SH, one output per step seen by all heads; MH, an
//! output of its own for each head; MF, S filters read once at the end of the window before. SH and MH see the outputs of
//! their own window up to now (`context` aligned) or the last S of the window before (`prev`). There is no published
//! code; names and numerics are this project's.

use crate::checkpoint::{Checkpoint, Reader};
use crate::error::Error;
use crate::families::{Family, Options};
use crate::golden::Golden;
use crate::mixer::sub;
use crate::model::{Facts, Info, Model, Row, Scratch, Signal, carve, embed, line};
use crate::s4_core::{Core, Rules, bad, field};
use crate::state::{State, StateLayout};
use serde_json::Value;
use ssm_kernels::attention::{Bias, Query, Sizes, attend, remember};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::norm::{Kind, Norm, norm};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};
use std::ops::Range;
use std::sync::Arc;

pub(crate) const FAMILY: Family = Family {
    name: "bst",
    detect: |f| f.shape("embed.weight").is_some() && f.shape("layers.0.attn.rel_embedding").is_some(),
    open: |file, options| Ok(Arc::new(Bst::load(file, options)?)),
    verify,
};

/// Where the context of a BST layer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// One output per step.
    Sh,
    /// One output per step and head.
    Mh,
    /// S filters, read at the end of a window.
    Mf,
}

/// Which steps' outputs are the context (SH and MH).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Context {
    /// Those of the same window up to now.
    Aligned,
    /// The last S of the window before.
    Prev,
}

/// First distance of each bucket of the position bias from the 16th on; below 16 each distance has its own.
const BUCKETS: [usize; 16] = [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113];

/// Bytes of a stream's state at most: the window comes from a configuration, which nothing else bounds.
const MAX_STATE: usize = 1 << 30;

/// The bucket of a distance into the past.
fn bucket(distance: usize) -> usize {
    if distance < 16 { distance } else { 15 + BUCKETS.iter().filter(|b| **b <= distance).count() }
}

/// Sizes and options, named as in the files' `config`.
#[derive(Clone, Debug)]
struct Config {
    d_model: usize,
    n_layers: usize,
    n_heads: usize,
    head_dim: usize,
    mlp_dim: usize,
    window: usize,
    num_states: usize,
    variant: Variant,
    context: Context,
    xl_cache: bool,
    norm_eps: f32,
    qk_norm_eps: f32,
}

impl Config {
    /// What the tensors at the reader's place and `config` say of layers of width `d_model`.
    fn read(w: &Reader<'_>, d_model: usize, config: Option<&Value>, path: &str) -> Result<Self, Error> {
        let dim = |name: &str, i: usize| w.shape(name).and_then(|s| s.get(i)).copied().unwrap_or(0);
        let n_heads = dim("layers.0.attn.scale", 0);
        let rows = dim("layers.0.attn.q.weight", 0);
        if n_heads == 0 || rows == 0 || !rows.is_multiple_of(n_heads) {
            let expected = "as many rows for each head of attn.scale";
            return Err(bad(path, "layers.0.attn.q.weight", expected, format!("{rows} rows, {n_heads} heads")));
        }
        let n_layers = (0..).take_while(|i| w.shape(&format!("layers.{i}.attn.rel_embedding")).is_some()).count();
        for (name, only) in [("rel_buckets", 32), ("rel_max_distance", 128)] {
            if let Some(v) = field(config, name).filter(|v| v.as_u64() != Some(only)) {
                return Err(bad(path, name, only, v));
            }
        }
        let window = match field(config, "window") {
            None => 512,
            Some(v) => match v.as_u64() {
                Some(steps @ 1..=65_536) => steps as usize,
                _ => return Err(bad(path, "window", "1 to 65536", v)),
            },
        };
        // The tensors of the first BST layer say what the config leaves open.
        let first = (0..n_layers).map(|i| format!("layers.{i}.")).find(|p| w.shape(&format!("{p}ssm.D")).is_some());
        let first = first.unwrap_or_default();
        let (channels, num_states) = (dim(&format!("{first}ssm.D"), 0), dim(&format!("{first}ctx_pos"), 0));
        let variant = match field(config, "variant").map(|v| (v, v.as_str())) {
            Some((_, Some("SH"))) => Variant::Sh,
            Some((_, Some("MH"))) => Variant::Mh,
            Some((_, Some("MF"))) => Variant::Mf,
            Some((v, _)) => return Err(bad(path, "variant", "SH, MH or MF", v)),
            None if channels <= 1 => Variant::Sh,
            None if num_states == 0 => Variant::Mh,
            None if channels != num_states => Variant::Mh,
            None if channels != n_heads => Variant::Mf,
            None => return Err(bad(path, "variant", "MH or MF (give it in config.json)", "tensors that fit both")),
        };
        let context = match field(config, "context").map(|v| (v, v.as_str())) {
            _ if variant == Variant::Mf => Context::Prev,
            Some((_, Some("aligned"))) => Context::Aligned,
            Some((_, Some("prev"))) => Context::Prev,
            Some((v, _)) => return Err(bad(path, "context", "aligned or prev", v)),
            None if num_states > 0 => Context::Prev,
            None => Context::Aligned,
        };
        if let Some(v) = field(config, "num_states")
            && num_states > 0
            && v.as_u64() != Some(num_states as u64)
        {
            return Err(bad(path, "num_states", num_states, v));
        }
        if context == Context::Prev && variant != Variant::Mf && num_states > window {
            return Err(bad(path, "ctx_pos", format!("{window} rows at most, as the window"), num_states));
        }
        if dim("layers.0.ffn.hidden0.weight", 0) == 0 {
            return Err(bad(path, "layers.0.ffn.hidden0.weight", "no empty axis", "axis 0 empty"));
        }
        let eps = |name: &str| field(config, name).and_then(Value::as_f64).unwrap_or(1e-6) as f32;
        Ok(Self {
            d_model,
            n_layers,
            n_heads,
            head_dim: rows / n_heads,
            mlp_dim: dim("layers.0.ffn.hidden0.weight", 0),
            window,
            num_states,
            variant,
            context,
            xl_cache: field(config, "xl_cache").and_then(Value::as_bool).unwrap_or(false),
            norm_eps: eps("norm_eps"),
            qk_norm_eps: eps("qk_norm_eps"),
        })
    }

    /// All heads side by side.
    fn width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Memory of self-attention.
    fn own(&self) -> Sizes {
        Sizes { heads: self.n_heads, dim: self.head_dim, slots: self.window }
    }

    /// Memory of cross-attention.
    fn cross(&self) -> Sizes {
        let slots = if self.context == Context::Aligned { self.window } else { self.num_states };
        Sizes { slots, ..self.own() }
    }

    /// Outputs of the state space model.
    fn channels(&self) -> usize {
        match self.variant {
            Variant::Sh => 1,
            Variant::Mh => self.n_heads,
            Variant::Mf => self.num_states,
        }
    }

    /// Whether the outputs are read at every step.
    fn every_step(&self) -> bool {
        self.variant != Variant::Mf
    }
}

/// What a BST layer has beside a plain one.
struct BlockState {
    ssm: Core,
    cross_norm: Norm,
    /// Keys and values of a context vector: of all heads, or of each head by itself (MH), keys first.
    cross_kv: Vec<Linear>, // (2 · Hh · hd, D), or 2 · Hh times (hd, D)
    cross_scale: Vec<f32>,
    ctx_pos: Vec<f32>, // (S, D); empty for aligned
    /// Keys and values of the learned context of the first window, as the state lays them out.
    init_k: Vec<f32>,
    init_v: Vec<f32>,
}

struct Layer {
    attn_norm: Norm,
    /// q, k, the query of the cross-attention (BST), v.
    qkv: Linear, // (3 or 4 · Hh · hd, D)
    attn_scale: Vec<f32>,
    bias: Bias,
    proj: Linear, // (D, Hh · hd or twice that)
    ffn_norm: Norm,
    hidden0: Linear, // (M, D)
    output: Linear,  // (D, M)
    block_state: Option<BlockState>,
}

/// Where a layer's part of the state lies; what a layer does not have is empty.
struct Places {
    k: Range<usize>,
    v: Range<usize>,
    ssm: Range<usize>,
    ctx_k: Range<usize>,
    ctx_v: Range<usize>,
    /// The last S outputs, (S, channels · D), oldest first (`prev` of SH and MH).
    tail: Range<usize>,
}

/// Where a stream stands; the same for all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    /// Steps of the current window, 0 to W.
    step: usize,
    /// Keys that are remembered.
    filled: usize,
    /// Whether the first window's context is in place.
    started: bool,
    /// Outputs in the tail.
    tail: usize,
}

impl Position {
    fn read(state: &[f32]) -> Self {
        Self { step: state[0] as usize, filled: state[1] as usize, started: state[2] != 0.0, tail: state[3] as usize }
    }

    fn write(self, state: &mut [f32]) {
        let values = [self.step as f32, self.filled as f32, f32::from(u8::from(self.started)), self.tail as f32];
        state.copy_from_slice(&values);
    }

    /// The position within the limits that a state of any origin has to keep.
    fn within(mut self, c: &Config) -> Self {
        self.step = self.step.min(c.window);
        self.filled = self.filled.min(c.window).max(self.step);
        self.tail = self.tail.min(c.num_states);
        self
    }
}

/// The layers and the norm behind them, D to D.
pub(crate) struct Layers {
    config: Config,
    rules: Rules,
    window: Range<usize>,
    places: Vec<Places>,
    layers: Vec<Layer>,
    /// Divides each head of a query or key by its length.
    unit: Norm,
    final_norm: Norm,
}

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

impl Layers {
    /// Reads `layers.I.…` and `final_norm` at the reader's place; their state goes to spans `{prefix}window` and
    /// `{prefix}layers.I.…`.
    pub(crate) fn load(
        w: &Reader<'_>,
        level: CpuLevel,
        d: usize,
        config: Option<&Value>,
        path: &str,
        layout: &mut StateLayout,
        prefix: &str,
    ) -> Result<Self, Error> {
        let c = Config::read(w, d, config, path)?;
        let (width, heads) = (c.width(), c.n_heads);
        let rms = |w: &Reader<'_>, name: &str| -> Result<Norm, Error> {
            Ok(Norm::new(Kind::Rms, w.take(&format!("{name}.scale"), &[d])?, None, c.norm_eps))
        };
        // a / sqrt(Σ a² + eps) = a / sqrt(mean(a²) + eps/n) / sqrt(n)
        let n = c.head_dim as f32;
        let unit = Norm::new(Kind::Rms, vec![n.sqrt().recip(); c.head_dim], None, c.qk_norm_eps / n);
        let rules = Rules::read(config, path)?;
        let window = layout.add(format!("{prefix}window"), &[4]);
        let (mut layers, mut places): (Vec<Layer>, Vec<Places>) = (Vec::new(), Vec::new());
        for i in 0..c.n_layers {
            let w = w.at(&format!("layers.{i}."));
            let matrix = |name: &str, rows: usize, columns: usize| w.take(&format!("{name}.weight"), &[rows, columns]);
            let pack = |m: &[f32], rows: usize, columns: usize| Linear::pack(level, m, rows, columns, None);
            let bst = w.has("ssm.D");
            let mut qkv = matrix("attn.q", width, d)?;
            qkv.extend(matrix("attn.k", width, d)?);
            if bst {
                qkv.extend(matrix("cross.q", width, d)?);
            }
            qkv.extend(matrix("attn.v", width, d)?);
            let rel = w.take("attn.rel_embedding", &[heads, 32])?;
            let block_state = if bst { Some(BlockState::load(&w, &c, &rules, level, &unit, path)?) } else { None };
            let y = if bst { 2 * width } else { width };
            layers.push(Layer {
                attn_norm: rms(&w, "attn_norm")?,
                qkv: pack(&qkv, qkv.len() / d.max(1), d),
                attn_scale: w.take("attn.scale", &[heads])?,
                bias: Bias::new(c.own(), |head, age| rel[head * 32 + bucket(age)]),
                proj: pack(&matrix("proj", d, y)?, d, y),
                ffn_norm: rms(&w, "ffn_norm")?,
                hidden0: pack(&matrix("ffn.hidden0", c.mlp_dim, d)?, c.mlp_dim, d),
                output: pack(&matrix("ffn.output", d, c.mlp_dim)?, d, c.mlp_dim),
                block_state,
            });
            let name = |what: &str| format!("{prefix}layers.{i}.{what}");
            let mut at = Places {
                k: layout.add(name("k"), &c.own().k_shape()),
                v: layout.add(name("v"), &c.own().v_shape()),
                ssm: 0..0,
                ctx_k: 0..0,
                ctx_v: 0..0,
                tail: 0..0,
            };
            if let Some(b) = layers.last().and_then(|l| l.block_state.as_ref()) {
                at.ssm = layout.add(name("ssm"), &b.ssm.sizes().state_shape());
                at.ctx_k = layout.add(name("ctx_k"), &c.cross().k_shape());
                at.ctx_v = layout.add(name("ctx_v"), &c.cross().v_shape());
                if c.every_step() && c.context == Context::Prev {
                    at.tail = layout.add(name("tail"), &[c.num_states, c.channels() * d]);
                }
            }
            places.push(at);
        }
        if layout.bytes() > MAX_STATE {
            let got = format!("{}, whose state takes {} MiB", c.window, layout.bytes() >> 20);
            return Err(bad(path, "window", format!("a window whose state fits {} MiB", MAX_STATE >> 20), got));
        }
        let final_norm = rms(w, "final_norm")?;
        Ok(Self { config: c, rules, window, places, layers, unit, final_norm })
    }

    /// Sizes in a line.
    pub(crate) fn sizes(&self) -> String {
        let c = &self.config;
        let which: Vec<String> =
            (0..c.n_layers).filter(|i| self.layers[*i].block_state.is_some()).map(|i| i.to_string()).collect();
        format!(
            "{:?} {:?}, D {}, {} layers (BST: {}), {} heads x {}, W {}, S {}{}",
            c.variant,
            c.context,
            c.d_model,
            c.n_layers,
            which.join(" "),
            c.n_heads,
            c.head_dim,
            c.window,
            c.num_states,
            if c.xl_cache { ", sliding" } else { "" }
        )
    }

    /// What changes the function beside the weights, for hashes.
    pub(crate) fn options(&self) -> String {
        format!("{:?} {:?}", self.config, self.rules)
    }

    /// Working memory for `m` rows.
    pub(crate) fn scratch_len(&self, m: usize) -> usize {
        let c = &self.config;
        let width = c.width();
        line(m * 4 * width) * 2
            + line(m * 2 * width)
            + line(m * c.mlp_dim)
            + line(self.outputs_len(m)) * 2
            + line(self.contexts_len())
            + line(m.max(c.num_states) * 2 * width)
            + line(m.max(c.num_states) * width)
            + line(c.own().scratch_len().max(c.cross().scratch_len()))
    }

    /// Values of the outputs that are read in a pass of `m` steps, or of one window's contexts.
    fn outputs_len(&self, m: usize) -> usize {
        let c = &self.config;
        if c.every_step() { (m * c.channels() * c.d_model).max(self.contexts_len()) } else { self.contexts_len() }
    }

    /// Values of one window's contexts.
    fn contexts_len(&self) -> usize {
        let c = &self.config;
        c.num_states * c.d_model * if c.every_step() { c.channels() } else { 1 }
    }
}

impl BlockState {
    fn load(
        w: &Reader<'_>,
        c: &Config,
        rules: &Rules,
        level: CpuLevel,
        unit: &Norm,
        path: &str,
    ) -> Result<Self, Error> {
        let (d, width, heads, dim) = (c.d_model, c.width(), c.n_heads, c.head_dim);
        let ssm = Core::load(&w.at("ssm."), rules, path)?;
        let s = ssm.sizes();
        if (s.features, s.channels, s.rank) != (d, c.channels(), 0) {
            let expected = format!("{} channels of {d} features", c.channels());
            return Err(bad(path, "ssm", expected, format!("{} of {}, rank {}", s.channels, s.features, s.rank)));
        }
        let (k, v) = (w.take("cross.k.weight", &[width, d])?, w.take("cross.v.weight", &[width, d])?);
        let row = |m: &[f32], row: usize, column: usize| m[row * d + column];
        let all =
            |level| {
                Linear::pack_with(level, 2 * width, d, None, |r, i| {
                    if r < width { row(&k, r, i) } else { row(&v, r - width, i) }
                })
            };
        let cross_kv = if c.variant == Variant::Mh {
            let of = |m: &[f32], head: usize| Linear::pack(level, &m[head * dim * d..][..dim * d], dim, d, None);
            (0..heads).map(|head| of(&k, head)).chain((0..heads).map(|head| of(&v, head))).collect()
        } else {
            vec![all(level)]
        };
        let cross_norm = Norm::new(Kind::Rms, w.take("cross_norm.scale", &[d])?, None, c.norm_eps);
        let (mut ctx_pos, mut init_k, mut init_v) = (Vec::new(), Vec::new(), Vec::new());
        if c.context == Context::Prev {
            let (n, sizes) = (c.num_states, c.cross());
            if n == 0 {
                return Err(bad(path, "ctx_pos", "[S, D]", "none"));
            }
            ctx_pos = w.take("ctx_pos", &[n, d])?;
            let init = w.take("init_context", &[n, d])?;
            // ck = l2(cross.k c), cv = cross.v c with c = rms(init_context) + ctx_pos: every head sees the same.
            let (cx, mut ctx, mut kv) = (Cx::at(level, 1), vec![0.0; n * d], vec![0.0; n * 2 * width]);
            norm(level, &cross_norm, Mat::new(&init, n, d), MatMut::new(&mut ctx, n, d));
            ctx.iter_mut().zip(&ctx_pos).for_each(|(c, p)| *c += p);
            let out = MatMut::new(&mut kv, n, 2 * width);
            linear(&cx, Mat::new(&ctx, n, d), &all(level), Act::None, Store::Set, out);
            init_k = vec![0.0; sizes.k_shape().iter().product()];
            init_v = vec![0.0; sizes.v_shape().iter().product()];
            let mut key = vec![0.0; width];
            for (slot, kv) in kv.chunks_exact(2 * width).enumerate() {
                norm(level, unit, Mat::new(kv, heads, dim), MatMut::new(&mut key, heads, dim));
                remember(sizes, slot, &key, &kv[width..], &mut init_k, &mut init_v);
            }
        }
        let cross_scale = w.take("cross.scale", &[heads])?;
        Ok(Self { ssm, cross_norm, cross_kv, cross_scale, ctx_pos, init_k, init_v })
    }

    /// Keys and values side by side, (n, 2 · Hh · hd), of n contexts (n, channels · D), and the keys at unit length,
    /// (n, Hh · hd). MH reads a channel for each head.
    fn keys_values(&self, cx: &Cx, c: &Config, unit: &Norm, ctx: Mat<'_>, kv: &mut [f32], unit_k: &mut [f32]) {
        let (n, d, width, heads, dim) = (ctx.rows(), c.d_model, c.width(), c.n_heads, c.head_dim);
        if n == 0 {
            return;
        }
        for (i, w) in self.cross_kv.iter().enumerate() {
            let out = MatMut::strided(&mut kv[i * dim..], n, w.n(), 2 * width);
            let head = i % heads;
            let ctx = if self.cross_kv.len() == 1 { ctx } else { ctx.columns(head * d..(head + 1) * d) };
            linear(cx, ctx, w, Act::None, Store::Set, out);
        }
        for (kv, unit_k) in kv.chunks_exact(2 * width).zip(unit_k.chunks_exact_mut(width)).take(n) {
            norm(cx.level, unit, Mat::new(kv, heads, dim), MatMut::new(unit_k, heads, dim));
        }
    }
}

/// What a layer has computed for all steps of a row before the steps go one by one.
struct Ready<'a> {
    /// The layer's input, (len, D).
    x: Mat<'a>,
    /// q, k, cross q at unit length, (len, 2 or 3 · Hh · hd).
    unit: Mat<'a>,
    /// Values, (len, Hh · hd).
    v: Mat<'a>,
    /// Outputs of the state space model, (len, channels · D); MF reads none here.
    outputs: Mat<'a>,
    /// Keys and values of the contexts (aligned).
    ctx_k: Mat<'a>,
    ctx_v: Mat<'a>,
}

/// Working memory of the steps of a row.
struct Room<'a> {
    outputs: &'a mut [f32],
    contexts: &'a mut [f32],
    kv: &'a mut [f32],
    unit_k: &'a mut [f32],
    scores: &'a mut [f32],
}

impl Layers {
    /// The steps of one row through one layer's attentions: `y` gets the heads of all of them, (len, Hh · hd or twice
    /// that). Returns where the stream stands then.
    fn attention(
        &self,
        cx: &Cx,
        layer: &Layer,
        at: &Places,
        row: &mut Row,
        ready: &Ready<'_>,
        room: &mut Room<'_>,
        mut y: MatMut<'_>,
    ) -> Position {
        let (c, len) = (&self.config, ready.x.rows());
        let (width, own, cross) = (c.width(), c.own(), c.cross());
        let mut pos = Position::read(&row.state.data[self.window.clone()]).within(c);
        let tail_before = pos.tail;
        let spans = [&at.k, &at.v, &at.ssm, &at.ctx_k, &at.ctx_v, &at.tail].map(Range::clone);
        let Ok([k, v, ssm, ctx_k, ctx_v, tail]) = row.state.data.get_disjoint_mut(spans) else { return pos };
        if let Some(b) = &layer.block_state
            && !pos.started
            && c.context == Context::Prev
        {
            ctx_k.copy_from_slice(&b.init_k);
            ctx_v.copy_from_slice(&b.init_v);
        }
        pos.started = true;
        // Steps that the state space model has taken (MF).
        let mut taken = 0;
        for t in 0..len {
            if pos.step == c.window {
                pos.step = 0;
            }
            let (slot, unit, heads) = (pos.step, ready.unit.row(t), y.row(t));
            pos.step += 1;
            pos.filled = if c.xl_cache { (pos.filled + 1).min(c.window) } else { pos.step };
            remember(own, slot, &unit[width..2 * width], ready.v.row(t), k, v);
            let query = Query {
                sizes: own,
                q: &unit[..width],
                k,
                v,
                filled: pos.filled,
                scale: &layer.attn_scale,
                bias: Some((&layer.bias, slot)),
            };
            attend(cx, &query, room.scores, &mut heads[..width]);
            let Some(b) = &layer.block_state else { continue };
            let aligned = c.context == Context::Aligned;
            if aligned {
                remember(cross, slot, ready.ctx_k.row(t), ready.ctx_v.row(t), ctx_k, ctx_v);
            }
            let query = Query {
                sizes: cross,
                q: &unit[2 * width..],
                k: ctx_k,
                v: ctx_v,
                filled: if aligned { pos.step } else { cross.slots },
                scale: &b.cross_scale,
                bias: None,
            };
            attend(cx, &query, room.scores, &mut heads[width..]);
            if aligned || pos.step < c.window {
                continue;
            }
            // The window is full: its outputs are the context of the next one.
            let (n, columns) = (c.num_states, self.contexts_len() / c.num_states);
            if c.every_step() {
                for (i, to) in room.outputs[..n * columns].chunks_exact_mut(columns).enumerate() {
                    let from = match (t + 1 + i).checked_sub(n) {
                        Some(step) => ready.outputs.row(step),
                        None => &tail[(tail_before + t + 1 + i).saturating_sub(n) * columns..][..columns],
                    };
                    to.copy_from_slice(from);
                }
            } else {
                // MF: all filters, of the last step alone.
                let before = ready.x.sub_rows(taken..t);
                b.ssm.run(cx, before, ssm, row.rate, false, MatMut::new(&mut [], t - taken, 0));
                let out = MatMut::new(room.outputs, 1, n * columns);
                b.ssm.run(cx, ready.x.sub_rows(t..t + 1), ssm, row.rate, true, out);
                taken = t + 1;
            }
            // c = rms(s) + ctx_pos, every channel on its own
            let vectors = n * columns / c.d_model;
            let raw = Mat::new(room.outputs, vectors, c.d_model);
            norm(cx.level, &b.cross_norm, raw, MatMut::new(room.contexts, vectors, c.d_model));
            for (ctx, pos) in room.contexts.chunks_exact_mut(columns).zip(b.ctx_pos.chunks_exact(c.d_model)) {
                for ctx in ctx.chunks_exact_mut(c.d_model) {
                    ctx.iter_mut().zip(pos).for_each(|(c, p)| *c += p);
                }
            }
            let ctx = Mat::new(room.contexts, n, columns);
            b.keys_values(cx, c, &self.unit, ctx, room.kv, room.unit_k);
            for slot in 0..n {
                let (key, value) = (&room.unit_k[slot * width..][..width], &room.kv[(2 * slot + 1) * width..][..width]);
                remember(cross, slot, key, value, ctx_k, ctx_v);
            }
        }
        if let Some(b) = &layer.block_state {
            if !c.every_step() {
                let rest = ready.x.sub_rows(taken..len);
                b.ssm.run(cx, rest, ssm, row.rate, false, MatMut::new(&mut [], len - taken, 0));
            } else if c.context == Context::Prev {
                let (n, columns) = (c.num_states, c.channels() * c.d_model);
                let kept = pos.tail.min(n.saturating_sub(len));
                tail.copy_within((pos.tail - kept) * columns..pos.tail * columns, 0);
                let fresh = len.min(n);
                for i in 0..fresh {
                    tail[(kept + i) * columns..][..columns].copy_from_slice(ready.outputs.row(len - fresh + i));
                }
            }
        }
        pos.tail = (pos.tail + len).min(c.num_states);
        pos
    }

    /// Runs `rows.len()` sequences of `len` steps, x (rows · len, D), each from its state: `h` becomes the normed result,
    /// x what the norm saw.
    pub(crate) fn forward(
        &self,
        cx: &Cx,
        x: &mut [f32],
        h: &mut [f32],
        rows: &mut [Row],
        len: usize,
        mut scratch: &mut [f32],
    ) {
        let c = &self.config;
        let (d, width, m) = (c.d_model, c.width(), rows.len() * len);
        let s = &mut scratch;
        let (raw, unit) = (carve(s, m * 4 * width), carve(s, m * 4 * width));
        let (y, hidden) = (carve(s, m * 2 * width), carve(s, m * c.mlp_dim));
        let (outputs, normed) = (carve(s, self.outputs_len(m)), carve(s, self.outputs_len(m)));
        let contexts = carve(s, self.contexts_len());
        let (kv, unit_k) = (carve(s, m.max(c.num_states) * 2 * width), carve(s, m.max(c.num_states) * width));
        let scores = carve(s, c.own().scratch_len().max(c.cross().scratch_len()));
        for (i, (layer, at)) in self.layers.iter().zip(&self.places).enumerate() {
            let parts = layer.qkv.n() / width;
            let columns = layer.proj.k();
            // q, k (and the cross-attention's q) at unit length, v
            norm(cx.level, &layer.attn_norm, Mat::new(x, m, d), MatMut::new(h, m, d));
            linear(cx, Mat::new(h, m, d), &layer.qkv, Act::None, Store::Set, MatMut::new(raw, m, parts * width));
            let heads = (parts - 1) * c.n_heads;
            for (raw, unit) in raw.chunks_exact(parts * width).zip(unit.chunks_exact_mut((parts - 1) * width)).take(m) {
                let out = MatMut::new(unit, heads, c.head_dim);
                norm(cx.level, &self.unit, Mat::new(raw, heads, c.head_dim), out);
            }
            // s = SSM(x); aligned: ck, cv of rms(s)
            let read = c.channels() * d;
            if let Some(b) = layer.block_state.as_ref().filter(|_| c.every_step()) {
                for (r, row) in rows.iter_mut().enumerate() {
                    let out = MatMut::new(&mut outputs[r * len * read..], len, read);
                    let state = &mut row.state.data[at.ssm.clone()];
                    b.ssm.run(cx, sub(Mat::new(x, m, d), r * len, len), state, row.rate, true, out);
                }
                if c.context == Context::Aligned {
                    let vectors = m * c.channels();
                    let out = MatMut::new(normed, vectors, d);
                    norm(cx.level, &b.cross_norm, Mat::new(outputs, vectors, d), out);
                    b.keys_values(cx, c, &self.unit, Mat::new(normed, m, read), kv, unit_k);
                }
            }
            let with = layer.block_state.is_some();
            let early = if with && c.every_step() { read } else { 0 };
            let aligned = if with && c.context == Context::Aligned { width } else { 0 };
            for (r, row) in rows.iter_mut().enumerate() {
                // In the other cases the buffers of the contexts are free for the steps to use.
                let pos = {
                    let (ctx_k, ctx_v, kv, unit_k) = if aligned > 0 {
                        let kv = Mat::new(kv, m, 2 * width).columns(width..2 * width);
                        (Mat::new(unit_k, m, width), kv, &mut [][..], &mut [][..])
                    } else {
                        (Mat::new(&[], m, 0), Mat::new(&[], m, 0), &mut *kv, &mut *unit_k)
                    };
                    let (outputs, gathered) = if early > 0 {
                        (Mat::new(outputs, m, early), &mut *normed)
                    } else {
                        (Mat::new(&[], m, 0), &mut *outputs)
                    };
                    let ready = Ready {
                        x: sub(Mat::new(x, m, d), r * len, len),
                        unit: sub(Mat::new(unit, m, (parts - 1) * width), r * len, len),
                        v: sub(
                            Mat::new(raw, m, parts * width).columns((parts - 1) * width..parts * width),
                            r * len,
                            len,
                        ),
                        outputs: sub(outputs, r * len, len),
                        ctx_k: sub(ctx_k, r * len, len),
                        ctx_v: sub(ctx_v, r * len, len),
                    };
                    let mut room = Room { outputs: gathered, contexts, kv, unit_k, scores };
                    let out = MatMut::new(&mut y[r * len * columns..], len, columns);
                    self.attention(cx, layer, at, row, &ready, &mut room, out)
                };
                if i + 1 == self.layers.len() {
                    pos.write(&mut row.state.data[self.window.clone()]);
                }
            }
            // x += proj [ys | yc]; x += output relu(hidden0 rms(x))
            linear(cx, Mat::new(y, m, columns), &layer.proj, Act::None, Store::Add, MatMut::new(x, m, d));
            norm(cx.level, &layer.ffn_norm, Mat::new(x, m, d), MatMut::new(h, m, d));
            let out = MatMut::new(hidden, m, c.mlp_dim);
            linear(cx, Mat::new(h, m, d), &layer.hidden0, Act::Relu, Store::Set, out);
            linear(cx, Mat::new(hidden, m, c.mlp_dim), &layer.output, Act::None, Store::Add, MatMut::new(x, m, d));
        }
        norm(cx.level, &self.final_norm, Mat::new(x, m, d), MatMut::new(h, m, d));
    }

    /// `periods` steps without input (bst.md 8).
    pub(crate) fn gap(&self, state: &mut [f32], periods: f64) {
        if periods.is_nan() || periods <= 0.0 {
            return;
        }
        for (layer, at) in self.layers.iter().zip(&self.places) {
            if let Some(b) = &layer.block_state {
                b.ssm.gap(&mut state[at.ssm.clone()], periods);
            }
        }
        // Attention knows no time: what is older than the window is forgotten, and a new window begins.
        if periods > self.config.window as f64 {
            let window = &mut state[self.window.clone()];
            let pos = Position::read(window).within(&self.config);
            Position { step: 0, filled: 0, ..pos }.write(window);
        }
    }

    /// The state `layerI.what` as the golden files hold it.
    pub(crate) fn upstream_state(&self, state: &[f32], name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let (i, what) = name.strip_prefix("layer")?.split_once('.')?;
        let i: usize = i.parse().ok()?;
        let (c, layer, at) = (&self.config, self.layers.get(i)?, self.places.get(i)?);
        let pos = Position::read(&state[self.window.clone()]).within(c);
        // Oldest first: the ring starts behind the newest key once it has come round.
        let ring = |filled: usize| {
            let first = if filled == c.window { pos.step % c.window } else { 0 };
            (0..filled).map(move |n| (first + n) % c.window)
        };
        let keys = |sizes: Sizes, span: &Range<usize>, slots: &mut dyn Iterator<Item = usize>| {
            let k = &state[span.clone()];
            slots.flat_map(|slot| sizes.key(k, slot)).collect::<Vec<f32>>()
        };
        let values = |sizes: Sizes, span: &Range<usize>, slots: &mut dyn Iterator<Item = usize>| {
            let v = &state[span.clone()];
            slots.flat_map(|slot| v[slot * sizes.width()..][..sizes.width()].to_vec()).collect::<Vec<f32>>()
        };
        let context = if c.context == Context::Aligned { pos.step } else { c.num_states };
        let shape = |n: usize| vec![n, c.n_heads, c.head_dim];
        match what {
            "k" => Some((shape(pos.filled), keys(c.own(), &at.k, &mut ring(pos.filled)))),
            "v" => Some((shape(pos.filled), values(c.own(), &at.v, &mut ring(pos.filled)))),
            _ if layer.block_state.is_none() => None,
            "ctx_k" => Some((shape(context), keys(c.cross(), &at.ctx_k, &mut (0..context)))),
            "ctx_v" => Some((shape(context), values(c.cross(), &at.ctx_v, &mut (0..context)))),
            "ssm" => layer.block_state.as_ref().map(|b| b.ssm.upstream_state(&state[at.ssm.clone()])),
            "tail" if !at.tail.is_empty() => {
                let tail = &state[at.tail.clone()];
                let columns = c.channels() * c.d_model;
                Some((vec![pos.tail, c.channels(), c.d_model], tail[..pos.tail * columns].to_vec()))
            }
            _ => None,
        }
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
            g.check_state(state, model, &row.state, b, tol)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_files_pass() {
        crate::golden::pass("bst");
    }

    #[test]
    fn buckets_are_those_of_the_table() {
        let all: Vec<usize> = (0..200).map(bucket).collect();
        assert!(all.is_sorted() && all[..16].iter().enumerate().all(|(n, b)| n == *b));
        for (i, first) in BUCKETS.iter().enumerate() {
            assert_eq!((bucket(*first), bucket(first - 1)), (16 + i, 15 + i));
        }
        assert_eq!(all[199], 31);
    }

    /// Tensors of a model of three layers, the middle one BST, without any order in its values.
    fn tensors(variant: Variant, context: Context) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let (v, d, heads, dim, mlp, n, states) = (11, 6, 2, 4, 7, 3, 3);
        let width = heads * dim;
        let channels = match variant {
            Variant::Sh => 1,
            Variant::Mh => heads,
            Variant::Mf => states,
        };
        let mut shapes: Vec<(String, Vec<usize>)> = vec![
            ("embed.weight".into(), vec![v, d]),
            ("final_norm.scale".into(), vec![d]),
            ("lm_head.weight".into(), vec![v, d]),
        ];
        for i in 0..3 {
            let mut add = |name: &str, shape: &[usize]| shapes.push((format!("layers.{i}.{name}"), shape.to_vec()));
            ["q", "k", "v"].iter().for_each(|m| add(&format!("attn.{m}.weight"), &[width, d]));
            ["attn_norm.scale", "ffn_norm.scale"].iter().for_each(|m| add(m, &[d]));
            add("attn.scale", &[heads]);
            add("attn.rel_embedding", &[heads, 32]);
            add("proj.weight", &[d, if i == 1 { 2 * width } else { width }]);
            add("ffn.hidden0.weight", &[mlp, d]);
            add("ffn.output.weight", &[d, mlp]);
            if i == 1 {
                ["q", "k", "v"].iter().for_each(|m| add(&format!("cross.{m}.weight"), &[width, d]));
                add("cross_norm.scale", &[d]);
                add("cross.scale", &[heads]);
                add("ssm.D", &[channels, d]);
                add("ssm.kernel.inv_dt", &[d, 1]);
                add("ssm.kernel.A_real", &[d, n]);
                add("ssm.kernel.A_imag", &[d, n]);
                add("ssm.kernel.B", &[1, d, n, 2]);
                add("ssm.kernel.C", &[channels, d, n, 2]);
                if context == Context::Prev || variant == Variant::Mf {
                    add("ctx_pos", &[states, d]);
                    add("init_context", &[states, d]);
                }
            }
        }
        let value = |i: usize, k: usize| ((i * 31 + k * 7) as f32 * 0.61).sin();
        let fill = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
            let values = (0..shape.iter().product()).map(|k| value(i, k)).collect();
            (name, shape, values)
        };
        shapes.into_iter().enumerate().map(fill).collect()
    }

    fn open(variant: Variant, context: Context, xl_cache: bool) -> Bst {
        let name = format!("{variant:?}").to_uppercase();
        let context = if context == Context::Prev { "prev" } else { "aligned" };
        let said = serde_json::json!({ "variant": name, "context": context, "xl_cache": xl_cache, "window": 5 });
        let file = crate::s4_core::tests::file(&tensors(
            variant,
            if context == "prev" { Context::Prev } else { Context::Aligned },
        ));
        Bst::load(&file, &Options { config: Some(said), ..Options::default() }).unwrap()
    }

    fn every() -> Vec<Bst> {
        let variants = [Variant::Sh, Variant::Mh, Variant::Mf];
        let contexts = [Context::Aligned, Context::Prev];
        let all = variants.iter().flat_map(|v| contexts.iter().map(move |c| (*v, *c)));
        all.flat_map(|(v, c)| [open(v, c, false), open(v, c, true)]).collect()
    }

    fn run(model: &Bst, row: Row, ids: &[u32], cut: usize) -> (Row, Vec<f32>) {
        let (cx, mut scratch) = (Cx::new(1).unwrap(), Scratch::default());
        let (mut rows, mut y) = ([row], Vec::new());
        for part in ids.chunks(cut) {
            rows[0].tokens[..part.len()].copy_from_slice(part);
            model.forward(&cx, &mut rows, part.len(), &mut scratch);
            model.forward(&cx, &mut rows, 0, &mut scratch);
            y.extend_from_slice(&rows[0].y[..part.len() * 11]);
        }
        let [row] = rows;
        (row, y)
    }

    #[test]
    fn any_cut_gives_the_same_bits() {
        let ids: Vec<u32> = (0..38).map(|i| i * i % 11).collect();
        for model in every() {
            let (whole, y) = run(&model, Row::new(&model, 40), &ids, 38);
            for cut in [1, 2, 3, 5, 7, 13] {
                let (row, z) = run(&model, Row::new(&model, 40), &ids, cut);
                assert_eq!(y, z, "{} cut {cut}", model.info.sizes);
                assert_eq!(*row.state.data, *whole.state.data, "{} cut {cut}: state", model.info.sizes);
            }
        }
    }

    #[test]
    fn a_gap_longer_than_the_window_forgets_what_attention_sees() {
        let ids: Vec<u32> = (0..13).map(|i| i * 3 % 11).collect();
        for model in every() {
            let (row, _) = run(&model, Row::new(&model, 40), &ids, 13);
            let position = |s: &State| Position::read(&s.data[model.core.window.clone()]);
            let mut short = row.state.clone();
            model.gap(&mut short, 5.0);
            assert_eq!(position(&short), position(&row.state));
            let mut long = row.state.clone();
            model.gap(&mut long, 5.5);
            assert_eq!((position(&long).step, position(&long).filled), (0, 0));
            assert!(model.upstream_state(&long, "layer0.k").is_some_and(|k| k.1.is_empty()));
            // After a very long one nothing is left of the stream but the context vectors of MF and prev.
            let mut end = row.state.clone();
            model.gap(&mut end, 1e9);
            let (_, y) = run(&model, Row { state: end, ..Row::new(&model, 40) }, &ids, 13);
            let (_, fresh) = run(&model, Row::new(&model, 40), &ids, 13);
            if model.core.config.context == Context::Aligned {
                assert_eq!(y, fresh, "{}", model.info.sizes);
            } else {
                assert_ne!(y, fresh, "{}", model.info.sizes);
            }
        }
    }

    #[test]
    fn a_rate_reaches_the_state_space_model() {
        let ids: Vec<u32> = (0..13).map(|i| i * 3 % 11).collect();
        for model in every() {
            let (_, y) = run(&model, Row::new(&model, 40), &ids, 13);
            let (_, z) = run(&model, Row { rate: 2.0, ..Row::new(&model, 40) }, &ids, 13);
            assert_ne!(y, z, "{}", model.info.sizes);
        }
    }

    #[test]
    fn the_variant_is_read_off_the_tensors() {
        for (variant, context) in [
            (Variant::Sh, Context::Aligned),
            (Variant::Mh, Context::Aligned),
            (Variant::Sh, Context::Prev),
            (Variant::Mh, Context::Prev),
            (Variant::Mf, Context::Prev),
        ] {
            let model =
                Bst::load(&crate::s4_core::tests::file(&tensors(variant, context)), &Options::default()).unwrap();
            assert_eq!((model.core.config.variant, model.core.config.context), (variant, context));
        }
        let file = crate::s4_core::tests::file(&tensors(Variant::Sh, Context::Prev));
        for (config, said) in [
            (serde_json::json!({ "window": 0 }), "window: expected 1 to 65536, got 0"),
            (serde_json::json!({ "window": 2 }), "ctx_pos: expected 2 rows at most"),
            (serde_json::json!({ "window": 65_537 }), "window: expected 1 to 65536, got 65537"),
            (serde_json::json!({ "variant": "XX" }), "variant: expected SH, MH or MF"),
            (serde_json::json!({ "variant": "MH" }), "ssm: expected 2 channels of 6 features"),
            (serde_json::json!({ "rel_buckets": 64 }), "rel_buckets: expected 32"),
        ] {
            let options = Options { config: Some(config), ..Options::default() };
            let error = Bst::load(&file, &options).err().map_or_else(String::new, |e| e.to_string());
            assert!(error.contains(said), "{error:?} should say {said:?}");
        }
    }
}
