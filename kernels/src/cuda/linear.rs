//! Launches of [`linear`](crate::linear()) on a device, with the weights as PyTorch stores them.

use super::{GRID, Kind, Launch, Ptr, TooLarge, bound};

/// Arguments of the kernels, as `LinearArgs` in `linear.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Args {
    /// Input, (m, k) of `x_kind`; rows may overlap.
    pub x: Ptr,
    /// Weights, (n, k) of `w_kind`.
    pub w: Ptr,
    /// Bias, n values, or none.
    pub bias: Ptr,
    /// Output, (m, n) of `y_kind`.
    pub y: Ptr,
    /// Values between batches of rows of x.
    pub x_batch: u64,
    /// Values between batches of rows of y.
    pub y_batch: u64,
    /// Values between rows of x.
    pub x_stride: u32,
    /// Values between rows of y.
    pub y_stride: u32,
    /// Values between rows of w.
    pub w_stride: u32,
    /// Rows of a batch: m where all rows are evenly apart.
    pub batch_rows: u32,
    /// Kind of x.
    pub x_kind: Kind,
    /// Kind of w.
    pub w_kind: Kind,
    /// Kind of y.
    pub y_kind: Kind,
    /// Rows.
    pub m: u32,
    /// Outputs.
    pub n: u32,
    /// Inputs.
    pub k: u32,
    /// Activation, [`act`](super::act).
    pub act: u32,
    /// 1: the result is added to y.
    pub add: u32,
    /// First row of y of each expert, and the row after the last, u32 (experts + 1); else none.
    pub starts: Ptr,
    /// Row of x that each row of y is made of, u32, or none: its own.
    pub from: Ptr,
    /// Values between the experts' weights.
    pub w_expert: u64,
    /// Experts.
    pub experts: u32,
}

impl Args {
    /// The product: in blocks of 128 where those keep `processors` processors busy, else of 64, and column by column
    /// for up to 8 rows. On the tensor cores where x and w are of the same 16-bit kind, rows begin at 16 bytes and k is
    /// a multiple of 8.
    ///
    /// # Errors
    /// More rows than there is code for.
    pub fn launch(&self, processors: u32) -> Result<Launch, TooLarge> {
        if self.m <= 8 {
            return Ok(Launch { kernel: "linear_rows", grid: [self.n.div_ceil(4), 1, 1], block: 128, shared: 0 });
        }
        let blocks = |side: u32| [self.n.div_ceil(side), self.m.div_ceil(side), 1];
        let large = u64::from(blocks(128)[0]) * u64::from(blocks(128)[1]) >= u64::from(processors);
        let kind = if self.for_tensor_cores() { self.x_kind } else { Kind::F32 };
        let (kernel, side, shared) = match (kind, large) {
            (Kind::F32, false) => ("linear_64", 64, 4 * 16 * (65 + 65)),
            (Kind::F32, true) => ("linear_128", 128, 4 * 8 * (129 + 129)),
            (Kind::Bf16, false) => ("linear_64_bf16", 64, 2 * 40 * (64 + 64)),
            (Kind::Bf16, true) => ("linear_128_bf16", 128, 2 * 40 * (128 + 128)),
            (Kind::F16, false) => ("linear_64_f16", 64, 2 * 40 * (64 + 64)),
            (Kind::F16, true) => ("linear_128_f16", 128, 2 * 40 * (128 + 128)),
        };
        bound("linear", "rows", side as usize * GRID, self.m as usize)?;
        Ok(Launch { kernel, grid: blocks(side), block: 256, shared })
    }

    fn for_tensor_cores(&self) -> bool {
        let strides = [u64::from(self.x_stride), u64::from(self.w_stride), self.x_batch, u64::from(self.k)];
        self.x_kind == self.w_kind
            && self.x_kind != Kind::F32
            && [self.x, self.w].iter().all(|p| p.0.is_multiple_of(16))
            && strides.iter().all(|s| s.is_multiple_of(8))
    }

    /// The product of each row with the weights of its expert; the grid holds however the rows are shared out.
    ///
    /// # Errors
    /// More rows than there is code for.
    pub fn grouped(&self) -> Result<Launch, TooLarge> {
        let tiles = self.m / 64 + self.experts.min(self.m);
        bound("linear", "blocks of rows", GRID, tiles as usize)?;
        let grid = [self.n.div_ceil(64), tiles, 1];
        Ok(Launch { kernel: "linear_experts", grid, block: 256, shared: 4 * 16 * (65 + 65) })
    }
}
