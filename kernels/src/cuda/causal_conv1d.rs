//! Launches of [`causal_conv1d`](crate::causal_conv1d()) on a device.

use super::{GRID, Kind, Launch, Ptr, TooLarge, bound};

/// Arguments of the kernels, as `ConvArgs` in `causal_conv1d.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Args {
    /// Input, (batch, len, d) of `kind`, the same for all directions.
    pub x: Ptr,
    /// Taps, (directions, k, d).
    pub taps: Ptr,
    /// Bias, (directions, d).
    pub bias: Ptr,
    /// Output, (batch, len, d) of `kind`.
    pub y: Ptr,
    /// Pool of tails, (k - 1, d) for each direction, or none.
    pub tail: Ptr,
    /// Slot of each sequence, u32, or none.
    pub slots: Ptr,
    /// Values between the directions' outputs.
    pub y_dir: u64,
    /// Values between the directions' tails inside a slot.
    pub tail_dir: u64,
    /// Values between slots.
    pub tail_stride: u64,
    /// Values between rows of x.
    pub x_stride: u32,
    /// Values between rows of y.
    pub y_stride: u32,
    /// Kind of x and y.
    pub kind: Kind,
    /// Sequences.
    pub batch: u32,
    /// Rows of a sequence.
    pub len: u32,
    /// Channels.
    pub d: u32,
    /// Taps, 8 at most.
    pub k: u32,
    /// Activation, [`act`](super::act).
    pub act: u32,
    /// A bit for each direction: the last row is the oldest.
    pub reversed: u32,
    /// A bit for each direction: whether it begins from its tail and leaves its end there, or begins from zeros.
    pub carried: u32,
}

impl Args {
    /// The convolution in all directions.
    ///
    /// # Errors
    /// More taps, rows or sequences than there is code for.
    pub fn launch(&self, directions: u32) -> Result<Launch, TooLarge> {
        let segments = self.len.div_ceil(16).max(1);
        bound("causal_conv1d", "taps", 8, self.k as usize)?;
        bound("causal_conv1d", "rows", 16 * GRID, self.len as usize)?;
        bound("causal_conv1d", "sequences times directions", GRID, (directions * self.batch) as usize)?;
        let kernel = if self.k <= 4 { "causal_conv1d_k4" } else { "causal_conv1d_k8" };
        let grid = [self.d.div_ceil(128), segments, directions * self.batch];
        Ok(Launch { kernel, grid, block: 128, shared: 0 })
    }
}
