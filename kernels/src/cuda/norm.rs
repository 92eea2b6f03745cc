//! Launches of [`norm`](crate::norm) on a device.

use super::{Kind, Launch, Ptr, TooLarge, bound};

/// Arguments of the kernel, as `NormArgs` in `norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Args {
    /// Input, (parts, rows, d) of `x_kind`: the parts are summed.
    pub x: Ptr,
    /// Gate, (rows, d) of `x_kind`, or none: its SiLU multiplies the input or the result.
    pub z: Ptr,
    /// Residual stream, (rows, d), f32, or none: the input is added to it, and it is what is normalised.
    pub residual: Ptr,
    /// Scale, d values.
    pub weight: Ptr,
    /// Shift, d values.
    pub bias: Ptr,
    /// Output, (rows, d) of `y_kind`.
    pub y: Ptr,
    /// Values between parts.
    pub part_stride: u64,
    /// Values between rows of x.
    pub x_stride: u32,
    /// Values between rows of z.
    pub z_stride: u32,
    /// Values between rows of the residual stream.
    pub residual_stride: u32,
    /// Values between rows of y.
    pub y_stride: u32,
    /// Kind of x and z.
    pub x_kind: Kind,
    /// Kind of y.
    pub y_kind: Kind,
    /// Parts of the input.
    pub parts: u32,
    /// Rows.
    pub rows: u32,
    /// Channels.
    pub d: u32,
    /// 1: LayerNorm; 0: RMSNorm.
    pub layer: u32,
    /// 1: the gate multiplies the input; 0: the result.
    pub gate_first: u32,
    /// Added under the root.
    pub eps: f32,
}

impl Args {
    /// The normalisation.
    ///
    /// # Errors
    /// More channels than there is code for.
    pub fn launch(&self) -> Result<Launch, TooLarge> {
        // 48 KiB of shared memory hold the rows of a block.
        bound("norm", "channels", 12288, self.d as usize)?;
        let warps = (12288 / self.d.max(1)).clamp(1, 4);
        let grid = [self.rows.div_ceil(warps), 1, 1];
        Ok(Launch { kernel: "norm", grid, block: 32 * warps, shared: 4 * warps * self.d })
    }
}
