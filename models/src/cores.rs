//! What runs over time in composites and small band masks: layers of one kind, D to D, and the norm behind them.

use crate::bst;
use crate::checkpoint::Reader;
use crate::config::{Fields, Section, bad};
use crate::error::Error;
use crate::model::{Row, carve, line};
use crate::moe_mamba::{Routing, load_experts};
use crate::stack::{Layer, Stack, load_norm};
use crate::state::StateLayout;
use serde_json::Value;
use ssm_kernels::moe_route::Experts;
use ssm_kernels::norm::{Norm, add_norm};
use ssm_kernels::{CpuLevel, Cx, Mat, MatMut};

/// What runs over time, in the words of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Mamba,
    Mamba2,
    S4d,
    MoeMamba,
    Bst,
}

const KINDS: [(&str, Kind); 5] = [
    ("mamba", Kind::Mamba),
    ("mamba2", Kind::Mamba2),
    ("s4d", Kind::S4d),
    ("moe_mamba", Kind::MoeMamba),
    ("bst", Kind::Bst),
];

impl Kind {
    pub(crate) fn kind(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(word, _)| word)
    }

    /// The `kind` of a configuration's section `core`, whose other fields are checked to be known.
    pub(crate) fn read(part: &Section<'_>) -> Result<Self, Error> {
        let word = part.word("kind", &KINDS.map(|(word, _)| word))?;
        let kind = KINDS.iter().find(|(name, _)| *name == word).map_or(Self::Mamba, |(_, kind)| *kind);
        part.only(&[vec!["kind"], kind.fields()].concat())?;
        if let Some(v) = part.number("norm_epsilon")?.filter(|v| !(1e-12..1.0).contains(v)) {
            return Err(part.bad("norm_epsilon", "1e-12 to 1", v));
        }
        Ok(kind)
    }

    /// Fields beside `kind` that this core reads.
    fn fields(self) -> Vec<&'static str> {
        const S4D: [&str; 6] = ["disc", "dt_transform", "dt_fast", "real_transform", "imag_transform", "bandlimit"];
        let own: &[&str] = match self {
            Self::Mamba => &["norm_epsilon"],
            Self::Mamba2 => &["norm_epsilon", "n_groups", "d_state", "head_dim", "time_step_limit", "norm_before_gate"],
            Self::S4d => &["norm_epsilon", "activation", "mult_act", "final_act", "swap_channels"],
            Self::MoeMamba => &["norm_epsilon", "expert", "activation_type", "routing_top_k"],
            Self::Bst => &[
                "variant",
                "context",
                "xl_cache",
                "window",
                "num_states",
                "rel_buckets",
                "rel_max_distance",
                "norm_eps",
                "qk_norm_eps",
            ],
        };
        let inner: &[&str] = if matches!(self, Self::S4d | Self::Bst) { &S4D } else { &[] };
        [own, inner].concat()
    }
}

/// What runs over time, D to D, and the norm behind it.
pub(crate) enum Core {
    Stack { stack: Stack, norm_f: Norm },
    Bst(bst::Layers),
}

impl Core {
    /// Reads the core at the reader's place; its state goes to spans `core.…`.
    pub(crate) fn load(
        w: &Reader<'_>,
        level: CpuLevel,
        d: usize,
        (kind, said): (Kind, &Value),
        path: &str,
        layout: &mut StateLayout,
    ) -> Result<Self, Error> {
        let (said, place) = (Some(said), format!("{path}: core"));
        if kind == Kind::Bst {
            return Ok(Self::Bst(bst::Layers::load(w, level, d, said, &place, layout, "core.")?));
        }
        let fields = Fields::new(said, place);
        let eps = fields.number(&["norm_epsilon"])?.unwrap_or(1e-5);
        let (mut stack, mut count) = (Stack::new(d), 0);
        while count == 0 || w.has(&format!("layers.{count}.norm.weight")) {
            let w = w.at(&format!("layers.{count}."));
            stack.push_mixer(&w, level, eps, &fields, layout, &format!("core.layers.{count}"))?;
            if kind == Kind::MoeMamba {
                let mut layer = Layer::new(load_norm(&w, "norm2", d, eps)?);
                layer.experts = Some(load_experts(&w.at("feedforward."), level, d, &Routing::read(&fields)?, &fields)?);
                stack.layers.push(layer);
            } else {
                stack.push_mlp(&w, level, eps)?;
            }
            count += 1;
        }
        let mixers = if kind == Kind::MoeMamba { Kind::Mamba } else { kind }.kind();
        if let Some((i, (other, _))) = stack.mixers().enumerate().find(|(_, (mixer, _))| mixer.kind() != mixers) {
            let got = format!("{}, whose layer {i} has tensors of {}", kind.kind(), other.kind());
            return Err(bad(path, "core.kind", "the kind of the tensors", got));
        }
        Ok(Self::Stack { stack, norm_f: load_norm(w, "norm_f", d, eps)? })
    }

    pub(crate) fn sizes(&self, d: usize) -> String {
        match self {
            Self::Bst(core) => core.sizes(),
            Self::Stack { stack, .. } => {
                let mixer = stack.mixers().next().map(|(mixer, _)| mixer.sizes()).unwrap_or_default();
                let experts = |e: &Experts| format!(", {} experts of {}, top {}", e.experts(), e.width(), e.top_k());
                let experts = stack.experts().map(experts).unwrap_or_default();
                format!("D {d}, {} layers, {mixer}{experts}", stack.mixers().count())
            }
        }
    }

    pub(crate) fn scratch_len(&self, m: usize, d: usize) -> usize {
        match self {
            Self::Stack { stack, .. } => line(m * d) + stack.scratch_len(m),
            Self::Bst(core) => core.scratch_len(m),
        }
    }

    /// `y = norm_f(core(x))`, x and y (rows · len, D); x is spent.
    pub(crate) fn forward(
        &self,
        cx: &Cx,
        x: &mut [f32],
        y: &mut [f32],
        rows: &mut [Row],
        len: usize,
        mut scratch: &mut [f32],
        d: usize,
    ) {
        let m = rows.len() * len;
        match self {
            Self::Stack { stack, norm_f } => {
                let residual = carve(&mut scratch, m * d);
                residual.fill(0.0);
                stack.forward(cx, [&mut *residual, &mut *x, &mut *y], rows, len, scratch, &mut |_| ());
                let (r, y) = (MatMut::new(residual, m, d), MatMut::new(y, m, d));
                add_norm(cx, norm_f, Mat::new(x, m, d), r, y);
            }
            Self::Bst(core) => core.forward(cx, x, y, rows, len, scratch),
        }
    }

    pub(crate) fn gap(&self, state: &mut [f32], periods: f64) {
        match self {
            Self::Stack { stack, .. } => stack.gap(state, periods),
            Self::Bst(core) => core.gap(state, periods),
        }
    }
}
