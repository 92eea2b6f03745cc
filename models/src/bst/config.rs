//! Sizes and options, from tensors and configuration.

use crate::checkpoint::Reader;
use crate::config::{Fields, bad, field, flag};
use crate::error::Error;
use serde_json::Value;
use ssm_kernels::attention::Sizes;

/// Where the context of a BST layer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// One output per step.
    Sh,
    /// One output per step and head.
    Mh,
    /// S filters, read at the end of a window.
    Mf,
}

/// Which steps' outputs are the context (SH and MH).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Context {
    /// Those of the same window up to now.
    Aligned,
    /// The last S of the window before.
    Prev,
}

/// First distance of each bucket of the position bias from the 16th on; below 16 each distance has its own.
pub(super) const BUCKETS: [usize; 16] = [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113];

/// The bucket of a distance into the past.
pub(super) fn bucket(distance: usize) -> usize {
    if distance < 16 { distance } else { 15 + BUCKETS.iter().filter(|b| **b <= distance).count() }
}

/// Sizes and options, named as in the files' `config`.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) d_model: usize,
    pub(super) n_layers: usize,
    pub(super) n_heads: usize,
    pub(super) head_dim: usize,
    pub(super) mlp_dim: usize,
    pub(super) window: usize,
    pub(super) num_states: usize,
    pub(super) variant: Variant,
    pub(super) context: Context,
    pub(super) xl_cache: bool,
    pub(super) norm_eps: f32,
    pub(super) qk_norm_eps: f32,
}

impl Config {
    /// What the tensors at the reader's place and `config` say of layers of width `d_model`.
    pub(super) fn read(w: &Reader<'_>, d_model: usize, config: Option<&Value>, path: &str) -> Result<Self, Error> {
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
        let (fields, mlp_dim) = (Fields::new(config, path), dim("layers.0.ffn.hidden0.weight", 0));
        for (name, tensors) in [
            ("n_layers", n_layers),
            ("d_model", d_model),
            ("n_heads", n_heads),
            ("head_dim", rows / n_heads),
            ("mlp_dim", mlp_dim),
        ] {
            fields.agree(&[name], tensors)?;
        }
        Ok(Self {
            d_model,
            n_layers,
            n_heads,
            head_dim: rows / n_heads,
            mlp_dim,
            window,
            num_states,
            variant,
            context,
            xl_cache: flag(config, "xl_cache", false, path)?,
            norm_eps: fields.eps(&["norm_eps"], 1e-6)?,
            qk_norm_eps: fields.eps(&["qk_norm_eps"], 1e-6)?,
        })
    }

    /// All heads side by side.
    pub(super) fn width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Memory of self-attention.
    pub(super) fn own(&self) -> Sizes {
        Sizes { heads: self.n_heads, dim: self.head_dim, slots: self.window }
    }

    /// Memory of cross-attention.
    pub(super) fn cross(&self) -> Sizes {
        let slots = if self.context == Context::Aligned { self.window } else { self.num_states };
        Sizes { slots, ..self.own() }
    }

    /// Outputs of the state space model.
    pub(super) fn channels(&self) -> usize {
        match self.variant {
            Variant::Sh => 1,
            Variant::Mh => self.n_heads,
            Variant::Mf => self.num_states,
        }
    }

    /// Whether the outputs are read at every step.
    pub(super) fn every_step(&self) -> bool {
        self.variant != Variant::Mf
    }
}
