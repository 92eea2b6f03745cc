//! The layers: their weights, what runs over all steps of a pass, what a gap leaves.

use super::attention::{Position, Ready, Room};
use super::config::{Config, Context, Variant, bucket};
use crate::checkpoint::Reader;
use crate::config::bad;
use crate::error::Error;
use crate::families::MAX_STATE;
use crate::mixer::sub;
use crate::model::{Row, carve, line};
use crate::s4_core::{Core, Rules};
use crate::state::StateLayout;
use serde_json::Value;
use ssm_kernels::attention::{Bias, Sizes, remember};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::norm::{Kind, Norm, norm};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};
use std::ops::Range;

/// What a BST layer has beside a plain one.
pub(super) struct BlockState {
    pub(super) ssm: Core,
    pub(super) cross_norm: Norm,
    /// Keys and values of a context vector: of all heads, or of each head by itself (MH), keys first.
    pub(super) cross_kv: Vec<Linear>, // (2 · Hh · hd, D), or 2 · Hh times (hd, D)
    pub(super) cross_scale: Vec<f32>,
    pub(super) ctx_pos: Vec<f32>, // (S, D); empty for aligned
    /// Keys and values of the learned context of the first window, as the state lays them out.
    pub(super) init_k: Vec<f32>,
    pub(super) init_v: Vec<f32>,
}

pub(super) struct Layer {
    pub(super) attn_norm: Norm,
    /// q, k, the query of the cross-attention (BST), v.
    pub(super) qkv: Linear, // (3 or 4 · Hh · hd, D)
    pub(super) attn_scale: Vec<f32>,
    pub(super) bias: Bias,
    pub(super) proj: Linear, // (D, Hh · hd or twice that)
    pub(super) ffn_norm: Norm,
    hidden0: Linear,           // (M, D)
    pub(super) output: Linear, // (D, M)
    pub(super) block_state: Option<BlockState>,
}

/// Where a layer's part of the state lies; what a layer does not have is empty.
pub(super) struct Places {
    pub(super) k: Range<usize>,
    pub(super) v: Range<usize>,
    pub(super) ssm: Range<usize>,
    pub(super) ctx_k: Range<usize>,
    pub(super) ctx_v: Range<usize>,
    /// The last S outputs, (S, channels · D), oldest first (`prev` of SH and MH).
    pub(super) tail: Range<usize>,
}

/// The layers and the norm behind them, D to D.
pub(crate) struct Layers {
    pub(super) config: Config,
    pub(super) rules: Rules,
    pub(super) window: Range<usize>,
    pub(super) places: Vec<Places>,
    pub(super) layers: Vec<Layer>,
    /// Divides each head of a query or key by its length.
    pub(super) unit: Norm,
    pub(super) final_norm: Norm,
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
        // Before anything of the kind is made: heads and window are but two numbers.
        let state = [&c.own().k_shape()[..], &c.cross().k_shape()[..]]
            .map(|shape| shape.iter().try_fold(8 * c.n_layers, |all, n| all.checked_mul(*n)).unwrap_or(usize::MAX));
        if state.iter().any(|bytes| *bytes > MAX_STATE) {
            let got = format!("{} with {heads} heads in {} layers", c.window, c.n_layers);
            return Err(bad(path, "window", format!("a window whose state fits {} MiB", MAX_STATE >> 20), got));
        }
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
    pub(super) fn contexts_len(&self) -> usize {
        let c = &self.config;
        c.num_states * c.d_model * if c.every_step() { c.channels() } else { 1 }
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
            norm(cx, &layer.attn_norm, Mat::new(x, m, d), MatMut::new(h, m, d));
            linear(cx, Mat::new(h, m, d), &layer.qkv, Act::None, Store::Set, MatMut::new(raw, m, parts * width));
            let heads = (parts - 1) * c.n_heads;
            for (raw, unit) in raw.chunks_exact(parts * width).zip(unit.chunks_exact_mut((parts - 1) * width)).take(m) {
                let out = MatMut::new(unit, heads, c.head_dim);
                norm(cx, &self.unit, Mat::new(raw, heads, c.head_dim), out);
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
                    norm(cx, &b.cross_norm, Mat::new(outputs, vectors, d), out);
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
            norm(cx, &layer.ffn_norm, Mat::new(x, m, d), MatMut::new(h, m, d));
            let out = MatMut::new(hidden, m, c.mlp_dim);
            linear(cx, Mat::new(h, m, d), &layer.hidden0, Act::Relu, Store::Set, out);
            linear(cx, Mat::new(hidden, m, c.mlp_dim), &layer.output, Act::None, Store::Add, MatMut::new(x, m, d));
        }
        norm(cx, &self.final_norm, Mat::new(x, m, d), MatMut::new(h, m, d));
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
            norm(&cx, &cross_norm, Mat::new(&init, n, d), MatMut::new(&mut ctx, n, d));
            ctx.iter_mut().zip(&ctx_pos).for_each(|(c, p)| *c += p);
            let out = MatMut::new(&mut kv, n, 2 * width);
            linear(&cx, Mat::new(&ctx, n, d), &all(level), Act::None, Store::Set, out);
            init_k = vec![0.0; sizes.k_shape().iter().product()];
            init_v = vec![0.0; sizes.v_shape().iter().product()];
            let mut key = vec![0.0; width];
            for (slot, kv) in kv.chunks_exact(2 * width).enumerate() {
                norm(&cx, unit, Mat::new(kv, heads, dim), MatMut::new(&mut key, heads, dim));
                remember(sizes, slot, &key, &kv[width..], &mut init_k, &mut init_v);
            }
        }
        let cross_scale = w.take("cross.scale", &[heads])?;
        Ok(Self { ssm, cross_norm, cross_kv, cross_scale, ctx_pos, init_k, init_v })
    }

    /// Keys and values side by side, (n, 2 · Hh · hd), of n contexts (n, channels · D), and the keys at unit length,
    /// (n, Hh · hd). MH reads a channel for each head.
    pub(super) fn keys_values(
        &self,
        cx: &Cx,
        c: &Config,
        unit: &Norm,
        ctx: Mat<'_>,
        kv: &mut [f32],
        unit_k: &mut [f32],
    ) {
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
            norm(cx, unit, Mat::new(kv, heads, dim), MatMut::new(unit_k, heads, dim));
        }
    }
}
