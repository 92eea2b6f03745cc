//! CUDA kernels: their PTX, their arguments, and how each is launched. Only [`card`] talks to a device.
//!
//! A primitive is a source `<op>.cu` beside a file `<op>.rs`: the same argument block in both languages, and a function
//! that says which kernel runs with which grid. The PTX is made from the source by `make ptx`, committed, and embedded
//! here; the driver compiles it for the card at hand. `docs/cuda.md` says how the sources are written and tested
//! without a card.
//!
//! Pointers are addresses of the device; what they point to is said beside each field. Wherever a table of slots is
//! given, the row of a batch finds its state at slot `slots[row]` of a pool, so that streams come and go without a
//! copy.

pub mod activation;
pub mod attention;
pub mod bands;
pub mod card;
pub mod causal_conv1d;
pub mod complex_scan;
pub mod conv2d;
pub mod image;
pub mod linear;
pub mod moe_route;
pub mod norm;
pub mod selective_scan;
pub mod similarity;
pub mod ssd;

use crate::Act;
pub use card::{Card, CardError};

/// An address on the device; [`Ptr::NONE`] where there is nothing.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ptr(pub u64);

impl Ptr {
    /// Nothing.
    pub const NONE: Self = Self(0);
}

/// How numbers lie in memory. Arithmetic is f32 whatever the kind.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// 32-bit floats.
    #[default]
    F32 = 0,
    /// bfloat16.
    Bf16 = 1,
    /// IEEE half precision.
    F16 = 2,
}

/// The number by which kernels know an activation.
pub fn act(act: Act) -> u32 {
    match act {
        Act::None => 0,
        Act::Relu => 1,
        Act::Silu => 2,
        Act::Gelu => 3,
        Act::Sigmoid => 4,
        Act::Softplus => 5,
    }
}

/// A kernel and the grid it is launched with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Name of the kernel in its module.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of shared memory.
    pub shared: u32,
}

/// Compiled kernels of one source.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Name of the source, without its ending.
    pub name: &'static str,
    /// PTX text.
    pub ptx: &'static str,
    /// The kernels in it.
    pub kernels: &'static [&'static str],
}

/// A call that no kernel can run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{op}: {what}: at most {most}, got {got}")]
pub struct TooLarge {
    /// The primitive.
    pub op: &'static str,
    /// Which of its sizes.
    pub what: &'static str,
    /// The largest there is code for.
    pub most: usize,
    /// What was asked for.
    pub got: usize,
}

macro_rules! modules {
    ($($name:ident: [$($kernel:literal),* $(,)?]),* $(,)?) => {
        /// Every kernel.
        pub const MODULES: &[Module] = &[$(Module {
            name: stringify!($name),
            ptx: include_str!(concat!("../../ptx/", stringify!($name), ".ptx")),
            kernels: &[$($kernel),*],
        }),*];
    };
}

modules! {
    activation: ["gate", "softmax", "pool", "tokens"],
    attention: ["attention"],
    bands: ["bands_signal", "bands_features", "bands_masks", "bands_overlap"],
    causal_conv1d: ["causal_conv1d_k4", "causal_conv1d_k8"],
    complex_scan: [
        "complex_scan", "complex_filter_64", "complex_filter_256", "s4d_32", "s4d_128", "s4_32", "s4_128",
    ],
    conv2d: ["depthwise_3", "depthwise_any", "windows", "overlap_add"],
    image: ["resize_columns", "resize_rows", "patches"],
    linear: [
        "linear_64", "linear_128", "linear_64_bf16", "linear_128_bf16", "linear_64_f16", "linear_128_f16",
        "linear_experts", "linear_rows",
    ],
    moe_route: ["moe_choose", "moe_count", "moe_place", "moe_combine"],
    norm: ["norm"],
    selective_scan: [
        "selective_scan_n1", "selective_scan_n16", "selective_scan_n64", "selective_scan_n128", "selective_scan_join",
    ],
    similarity: ["similarity"],
    ssd: ["ssd_n16", "ssd_n64", "ssd_n128"],
}

/// Blocks along y and z of a grid at most.
const GRID: usize = 65535;

/// Fails if a size is beyond what there is code for.
fn bound(op: &'static str, what: &'static str, most: usize, got: usize) -> Result<(), TooLarge> {
    if got > most { Err(TooLarge { op, what, most, got }) } else { Ok(()) }
}

/// A thread for each of so many values.
fn each(kernel: &'static str, values: u64) -> Result<Launch, TooLarge> {
    let blocks = values.div_ceil(256);
    bound(kernel, "blocks", i32::MAX as usize, usize::try_from(blocks).unwrap_or(usize::MAX))?;
    Ok(Launch { kernel, grid: [blocks as u32, 1, 1], block: 256, shared: 0 })
}
