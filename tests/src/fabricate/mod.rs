//! Random models of every family: sizes, options and weights drawn from a seed, as checkpoints under upstream names.

use crate::Rng;
use serde_json::Value;
use ssm_models::checkpoint::Checkpoint;
use ssm_models::kernels::CpuLevel;
use ssm_models::{Error, Model, Options, open_checkpoint};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub mod attenuate;
pub mod aum;
mod band_mask;
mod bst;
mod cleanumamba;
pub mod composite;
mod mamba;
mod mixer;
mod moe_mamba;
mod s4;
mod vim;
mod vmamba;

/// Draws a model.
pub type Draw = fn(&mut Rng) -> Fabricated;

/// A family's name and what draws a model of it.
pub const FAMILIES: &[(&str, Draw)] = &[
    ("vim", vim::random),
    ("vmamba", vmamba::random),
    ("cleanumamba", cleanumamba::random),
    ("mamba", mamba::random),
    ("mamba2", mamba::random2),
    ("moe_mamba", moe_mamba::random),
    ("s4", s4::random),
    ("bst", bst::random),
    ("band_mask", band_mask::random),
    ("aum", aum::random),
    ("attenuate", attenuate::random),
    ("composite", composite::bare),
    ("composite", composite::with_vim),
    ("composite", composite::with_vmamba),
    ("composite", composite::with_conv),
    ("composite", composite::with_mel),
    ("band_mask", band_mask::with_core),
];

/// A checkpoint that no file holds.
#[derive(Clone, Default)]
pub struct Fabricated {
    /// Tensors: shape and values by name.
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// What the `config` metadata says.
    pub config: Value,
    /// Options that the family is tested with; level and config are set by [`Fabricated::open`].
    pub options: Options,
}

impl Fabricated {
    /// Adds a tensor of normal values of standard deviation `scale`.
    pub fn normal(&mut self, rng: &mut Rng, name: &str, shape: &[usize], scale: f32) {
        let values = rng.normals(shape.iter().product(), scale);
        self.tensors.insert(name.into(), (shape.to_vec(), values));
    }

    /// Adds a linear or convolution weight: normal values divided by the root of the inputs of one output.
    pub fn weight(&mut self, rng: &mut Rng, name: &str, shape: &[usize]) {
        let inputs: usize = shape[1..].iter().product();
        self.normal(rng, name, shape, (inputs.max(1) as f32).powf(-0.5));
    }

    /// Adds a tensor of values around 1, as a norm's weight has.
    pub fn ones(&mut self, rng: &mut Rng, name: &str, shape: &[usize]) {
        let values = rng.normals(shape.iter().product(), 0.2).iter().map(|v| 1.0 + v).collect();
        self.tensors.insert(name.into(), (shape.to_vec(), values));
    }

    /// Adds a tensor of given values.
    pub fn values(&mut self, name: &str, shape: &[usize], values: Vec<f32>) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        self.tensors.insert(name.into(), (shape.to_vec(), values));
    }

    /// The checkpoint as the bytes of a safetensors file.
    pub fn bytes(&self) -> Vec<u8> {
        let data: BTreeMap<&String, (&Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(k, (shape, v))| (k, (shape, v.iter().flat_map(|x| x.to_le_bytes()).collect())))
            .collect();
        let views = data.iter().map(|(k, (shape, bytes))| {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, (*shape).clone(), bytes);
            (*k, view.expect("shape and length fit"))
        });
        let metadata = HashMap::from([("config".to_owned(), self.config.to_string())]);
        safetensors::serialize(views, Some(metadata)).expect("tensors can be written")
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint::from_bytes("fabricated", self.bytes()).expect("a whole safetensors file")
    }

    /// Opens the model at an instruction level.
    pub fn open(&self, level: CpuLevel) -> Result<Arc<dyn Model>, Error> {
        let options = Options { level, config: Some(self.config.clone()), ..self.options.clone() };
        open_checkpoint(&self.checkpoint(), &options)
    }
}
