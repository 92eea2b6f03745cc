//! The CUDA kernels without a card: each source, run on this processor under several orders of its threads, against the
//! scalar form; the committed PTX against what the sources give now.

mod activation;
mod attention;
mod bands;
mod block;
mod card;
mod causal_conv1d;
mod complex_scan;
mod conv2d;
mod image;
mod linear;
mod machine {
    //! The runner, and what these tests make for it.
    use crate::testing::Rng;
    pub use ssm_runner::*;

    /// Random rows of `cols` values, a NaN behind each.
    pub fn rows(rng: &mut Rng, rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * (cols + 1)).map(|i| if i % (cols + 1) < cols { rng.normal() } else { f32::NAN }).collect()
    }
}
mod moe_route;
mod norm;
mod planted;
mod ptx;
mod selective_scan;
mod similarity;
mod ssd;
#[allow(dead_code)]
#[path = "../../src/testing.rs"]
mod testing;

use ssm_kernels::{CpuLevel, Cx};

/// The judge.
fn scalar() -> Cx {
    Cx::at(CpuLevel::Scalar, 1)
}
