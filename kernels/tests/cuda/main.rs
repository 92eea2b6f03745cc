//! The CUDA kernels without a card: each source, run on this processor under several orders of its threads, against the
//! scalar form; the committed PTX against what the sources give now.

mod activation;
mod attention;
mod block;
mod causal_conv1d;
mod complex_scan;
mod conv2d;
mod image;
mod linear;
mod machine;
mod moe_route;
mod norm;
mod planted;
mod ptx;
mod selective_scan;
mod ssd;
#[allow(dead_code)]
#[path = "../../src/testing.rs"]
mod testing;

use ssm_kernels::{CpuLevel, Cx};

/// The judge.
fn scalar() -> Cx {
    Cx::at(CpuLevel::Scalar, 1)
}
