//! State-space networks, their checkpoints, their streaming state and the engine that serves many streams.
//!
//! A [`Model`] is opened from a checkpoint ([`open`]) and never changes afterwards. What a stream remembers is a value,
//! [`State`]: one slab of `f32` described by a [`StateLayout`]. `forward(p ++ q)` equals `forward(p)` then `forward(q)`
//! on the carried state, for any cut.
#![forbid(unsafe_code)]

pub mod card;
pub mod checkpoint;
pub mod frontend;
pub mod golden;
pub mod hippo;

mod attenuate;
mod audio;
mod aum;
mod band_mask;
mod bst;
mod builtin;
mod cleanumamba;
mod composite;
mod config;
mod cores;
mod dense;
mod engine;
mod error;
mod families;
mod golden_ops;
mod golden_sequence;
mod mamba;
mod mixer;
mod mixer2;
mod mixer_s4;
mod mixers;
mod model;
mod moe_mamba;
mod s4;
mod s4_core;
mod snapshot;
mod stack;
mod state;
mod trunk;
mod vim;
mod vmamba;

pub use audio::{AudioStream, Listener};
pub use card::{CardInput, OnCard, Placed};
pub use engine::{Device, Engine, EngineKey, Stream};
pub use error::Error;
pub use families::{
    FAMILIES, Family, LevelRule, Listen, Options, Output, PosRule, configure, family, open, open_checkpoint, read,
};
pub use model::{Activation, Facts, Info, Model, Pixels, Row, Scratch, Signal};
pub use snapshot::{Snapshot, SnapshotHeader};
pub use ssm_kernels as kernels;
pub use state::{Span, State, StateLayout};
