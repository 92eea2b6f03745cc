//! Pre-norm residual layers: what Mamba, MoE-Mamba and our composites have between input and last norm.
//!
//! ```text
//! x = x + Σ part(norm(x))     part: a mixer, experts, a gated MLP
//! ```

mod card;

pub(crate) use card::StackNet;

use crate::checkpoint::Reader;
use crate::config::Fields;
use crate::error::Error;
use crate::mixer::MixerState;
use crate::mixers::AnyMixer;
use crate::model::{Row, carve, line};
use crate::state::StateLayout;
use ssm_kernels::activation::gate;
use ssm_kernels::linear::{Linear, Precision, Store, linear};
use ssm_kernels::moe_route::{Experts, moe_route};
use ssm_kernels::norm::{Kind, Norm, add_norm};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};

/// `fc2(a · silu(b))`, `[a | b] = fc1(x)`: the second half of a layer with `d_intermediate > 0`.
pub(crate) struct GatedMlp {
    fc1: Linear, // (2F, D)
    fc2: Linear, // (D, F)
}

impl GatedMlp {
    /// Reads `fc1` and `fc2` at the reader's place.
    pub(crate) fn load(w: &Reader<'_>, level: CpuLevel, d: usize) -> Result<Self, Error> {
        let f = w.shape("fc2.weight").and_then(|s| s.get(1)).copied().unwrap_or(0).max(1);
        let (fc1, fc2) = (w.take("fc1.weight", &[2 * f, d])?, w.take("fc2.weight", &[d, f])?);
        let (b1, b2) = (w.take_optional("fc1.bias", &[2 * f])?, w.take_optional("fc2.bias", &[d])?);
        Ok(Self {
            fc1: Linear::pack(level, &fc1, 2 * f, d, b1.as_deref()),
            fc2: Linear::pack(level, &fc2, d, f, b2.as_deref()),
        })
    }

    fn lower(&mut self, precision: Precision) {
        [&mut self.fc1, &mut self.fc2].into_iter().for_each(|w| w.lower(precision));
    }

    fn scratch_len(&self, rows: usize) -> usize {
        line(rows * self.fc1.n())
    }

    fn forward(&self, cx: &Cx, x: Mat<'_>, mut scratch: &mut [f32], store: Store, out: MatMut<'_>) {
        let (m, f) = (x.rows(), self.fc2.k());
        let h = carve(&mut scratch, m * 2 * f);
        linear(cx, x, &self.fc1, Act::None, Store::Set, MatMut::new(h, m, 2 * f));
        for row in h.chunks_exact_mut(2 * f) {
            let (a, b) = row.split_at_mut(f);
            gate(cx.level, Act::Silu, a, b);
        }
        linear(cx, Mat::new(h, m, 2 * f).columns(0..f), &self.fc2, Act::None, store, out);
    }
}

/// RMSNorm (`weight`) or LayerNorm (`weight`, `bias`).
pub(crate) fn load_norm(w: &Reader<'_>, name: &str, d: usize, eps: f32) -> Result<Norm, Error> {
    let weight = w.take(&format!("{name}.weight"), &[d])?;
    let bias = w.take_optional(&format!("{name}.bias"), &[d])?;
    let kind = if bias.is_some() { Kind::Layer } else { Kind::Rms };
    Ok(Norm::new(kind, weight, bias, eps))
}

/// One residual layer. Parts that are there see the same norm and are added up.
pub(crate) struct Layer {
    pub(crate) norm: Norm,
    pub(crate) mixer: Option<(AnyMixer, MixerState)>,
    pub(crate) experts: Option<Experts>,
    pub(crate) mlp: Option<GatedMlp>,
}

impl Layer {
    /// A layer without parts.
    pub(crate) fn new(norm: Norm) -> Self {
        Self { norm, mixer: None, experts: None, mlp: None }
    }

    fn scratch_len(&self, m: usize) -> usize {
        let mixer = self.mixer.as_ref().map_or(0, |(mixer, _)| mixer.scratch_len(m));
        let experts = self.experts.as_ref().map_or(0, |e| line(e.scratch_len(m)));
        mixer.max(experts).max(self.mlp.as_ref().map_or(0, |mlp| mlp.scratch_len(m)))
    }
}

/// Layers of width D, in order.
pub(crate) struct Stack {
    pub(crate) layers: Vec<Layer>,
    d: usize,
}

impl Stack {
    /// No layers yet.
    pub(crate) fn new(d: usize) -> Self {
        Self { layers: Vec::new(), d }
    }

    /// Adds the layers at the reader's place, `layers.I.norm` and `layers.I.mixer`, with `layers.I.norm2` and
    /// `layers.I.mlp` behind them where those are; their state goes to spans `{prefix}layers.I.…`. Returns the number of
    /// mixers.
    pub(crate) fn load(
        &mut self,
        w: &Reader<'_>,
        level: CpuLevel,
        eps: f32,
        fields: &Fields<'_>,
        layout: &mut StateLayout,
        prefix: &str,
    ) -> Result<usize, Error> {
        let mut count = 0;
        while w.has(&format!("layers.{count}.norm.weight")) {
            let w = w.at(&format!("layers.{count}."));
            self.push_mixer(&w, level, eps, fields, layout, &format!("{prefix}layers.{count}"))?;
            self.push_mlp(&w, level, eps)?;
            count += 1;
        }
        Ok(count)
    }

    /// Adds a layer of `norm2` and `mlp` at the reader's place, if there is one.
    pub(crate) fn push_mlp(&mut self, w: &Reader<'_>, level: CpuLevel, eps: f32) -> Result<(), Error> {
        if w.has("mlp.fc1.weight") || w.has("norm2.weight") {
            let mut layer = Layer::new(load_norm(w, "norm2", self.d, eps)?);
            layer.mlp = Some(GatedMlp::load(&w.at("mlp."), level, self.d)?);
            self.layers.push(layer);
        }
        Ok(())
    }

    /// Adds a layer of `norm` and `mixer` at the reader's place, its state at `{prefix}.…`.
    pub(crate) fn push_mixer(
        &mut self,
        w: &Reader<'_>,
        level: CpuLevel,
        eps: f32,
        fields: &Fields<'_>,
        layout: &mut StateLayout,
        prefix: &str,
    ) -> Result<(), Error> {
        let mut layer = Layer::new(load_norm(w, "norm", self.d, eps)?);
        let mixer = AnyMixer::load(&w.at("mixer."), level, self.d, fields)?;
        let at = mixer.state(layout, prefix);
        layer.mixer = Some((mixer, at));
        self.layers.push(layer);
        Ok(())
    }

    /// Rounds the weights of mixers and gated MLPs to a precision.
    pub(crate) fn lower(&mut self, precision: Precision) {
        for layer in &mut self.layers {
            layer.mixer.iter_mut().for_each(|(mixer, _)| mixer.lower(precision));
            layer.mlp.iter_mut().for_each(|mlp| mlp.lower(precision));
        }
    }

    /// The mixers and their places in the state, in order.
    pub(crate) fn mixers(&self) -> impl Iterator<Item = &(AnyMixer, MixerState)> {
        self.layers.iter().filter_map(|l| l.mixer.as_ref())
    }

    /// The first layer of experts.
    pub(crate) fn experts(&self) -> Option<&Experts> {
        self.layers.iter().find_map(|l| l.experts.as_ref())
    }

    /// Working memory for `m` rows.
    pub(crate) fn scratch_len(&self, m: usize) -> usize {
        self.layers.iter().map(|l| l.scratch_len(m)).max().unwrap_or(0)
    }

    /// Runs `rows.len()` sequences of `len` steps through the layers, each from its state. The stream, (rows · len, D), is
    /// `residual + hidden`, before and after; `normed` is memory of the same size. `routed` is told the chosen experts of
    /// each layer of experts in turn.
    pub(crate) fn forward(
        &self,
        cx: &Cx,
        [residual, hidden, normed]: [&mut [f32]; 3],
        rows: &mut [Row],
        len: usize,
        scratch: &mut [f32],
        routed: &mut dyn FnMut(&[u32]),
    ) {
        let (m, d) = (rows.len() * len, self.d);
        for layer in &self.layers {
            // residual += hidden; hidden = Σ part(norm(residual))
            let (r, n) = (MatMut::new(residual, m, d), MatMut::new(normed, m, d));
            add_norm(cx, &layer.norm, Mat::new(hidden, m, d), r, n);
            let x = Mat::new(normed, m, d);
            let mut store = Store::Set;
            if let Some((mixer, at)) = &layer.mixer {
                mixer.forward(cx, x, rows, len, at, scratch, MatMut::new(hidden, m, d));
                store = Store::Add;
            }
            if let Some(experts) = &layer.experts {
                routed(moe_route(cx, experts, x, scratch, store, MatMut::new(hidden, m, d)));
                store = Store::Add;
            }
            if let Some(mlp) = &layer.mlp {
                mlp.forward(cx, x, scratch, store, MatMut::new(hidden, m, d));
            }
        }
    }

    /// `periods` steps without input, by each mixer's rule.
    pub(crate) fn gap(&self, state: &mut [f32], periods: f64) {
        self.mixers().for_each(|(mixer, at)| mixer.gap(state, at, periods));
    }

    /// The state `layerI.what` of mixer I in upstream's layout.
    pub(crate) fn upstream_state(&self, state: &[f32], name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let (i, what) = name.strip_prefix("layer")?.split_once('.')?;
        let (mixer, at) = self.mixers().nth(i.parse().ok()?)?;
        mixer.upstream_state(state, at, what)
    }
}
