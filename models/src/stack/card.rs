//! Residual layers on a card.

use super::{GatedMlp, Stack};
use crate::card::{Dense, ExpertsNet, NormAt, Pass, Rows, Weights};
use crate::error::Error;
use crate::mixer::MixerState;
use crate::mixers::AnyMixerNet;
use ssm_kernels::Act;
use ssm_kernels::cuda::{Kind, act, activation};

struct MlpNet {
    fc1: Dense,
    fc2: Dense,
}

struct Layer {
    norm: NormAt,
    mixer: Option<(AnyMixerNet, MixerState)>,
    experts: Option<ExpertsNet>,
    mlp: Option<MlpNet>,
}

/// The weights of residual layers on a card.
pub(crate) struct StackNet {
    layers: Vec<Layer>,
    d: u32,
}

impl GatedMlp {
    fn on_card(&self, w: &mut Weights) -> MlpNet {
        MlpNet { fc1: w.dense(&self.fc1), fc2: w.dense(&self.fc2) }
    }
}

impl MlpNet {
    fn queue(&self, p: &Pass<'_>, x: Rows, out: Rows, add: bool) -> Result<(), Error> {
        let (m, f, kind) = (p.rows(), self.fc2.k, self.fc1.kind);
        p.scope(|| {
            let (h, y) = (p.take(m as usize, 2 * f, kind), p.take(m as usize, f, kind));
            p.linear(x, &self.fc1, Act::None, h, m, false)?;
            let gate = activation::Gate {
                x: h.at,
                gate: h.columns(f).at,
                y: y.at,
                x_stride: h.stride,
                gate_stride: h.stride,
                y_stride: f,
                kind,
                y_kind: kind,
                parts: 1,
                rows: m,
                d: f,
                act: act(Act::Silu),
                ..activation::Gate::default()
            };
            p.try_launch(&gate, gate.launch())?;
            p.linear(y, &self.fc2, Act::None, out, m, add)
        })
    }
}

impl Stack {
    /// The layers for a card; `None` where one of them is not written for it.
    pub(crate) fn on_card(&self, w: &mut Weights) -> Option<StackNet> {
        let layers = self.layers.iter().map(|layer| {
            let mixer = match &layer.mixer {
                None => None,
                Some((mixer, at)) => Some((mixer.on_card(w)?, at.clone())),
            };
            Some(Layer {
                norm: w.norm(&layer.norm),
                mixer,
                experts: layer.experts.as_ref().map(|experts| ExpertsNet::new(w, experts)),
                mlp: layer.mlp.as_ref().map(|mlp| mlp.on_card(w)),
            })
        });
        Some(StackNet { layers: layers.collect::<Option<_>>()?, d: self.d as u32 })
    }
}

impl StackNet {
    /// Runs the layers over the stream `residual`, to which the last layer's `hidden` is still to be added afterwards.
    pub(crate) fn queue(&self, p: &Pass<'_>, residual: Rows, hidden: Rows) -> Result<(), Error> {
        let (m, d) = (p.rows(), self.d);
        for (i, layer) in self.layers.iter().enumerate() {
            // residual += hidden; hidden = Σ part(norm(residual))
            let kind = match (&layer.mixer, &layer.mlp) {
                // Experts are f32.
                _ if layer.experts.is_some() => Kind::F32,
                (Some((mixer, _)), _) => mixer.kind(),
                (None, Some(mlp)) => mlp.fc1.kind,
                (None, None) => Kind::F32,
            };
            p.scope(|| {
                let normed = p.take(m as usize, d, kind);
                p.add_norm((i > 0).then_some(hidden), residual, &layer.norm, normed, m, d)?;
                if let Some((mixer, at)) = &layer.mixer {
                    mixer.queue(p, normed, at, hidden)?;
                }
                let mut add = layer.mixer.is_some();
                if let Some(experts) = &layer.experts {
                    p.scope(|| experts.queue(p, normed, m, hidden, add))?;
                    add = true;
                }
                match &layer.mlp {
                    Some(mlp) => mlp.queue(p, normed, hidden, add),
                    None => Ok(()),
                }
            })?;
        }
        Ok(())
    }

    /// Whether a mixer knows steps of the trained length only.
    pub(crate) fn trained_rate(&self) -> bool {
        self.layers.iter().filter_map(|layer| layer.mixer.as_ref()).any(|(mixer, _)| mixer.trained_rate())
    }

    /// Whether there are no layers: then `hidden` is not written.
    pub(crate) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}
