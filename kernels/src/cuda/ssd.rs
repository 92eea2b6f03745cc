//! Launches of [`ssd`](crate::ssd()) on a device.

use super::{GRID, Kind, Launch, Ptr, TooLarge, bound};

/// Arguments of the kernels, as `SsdArgs` in `ssd.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Args {
    /// Input, (batch, len, heads · p) of `kind`.
    pub x: Ptr,
    /// Step size before bias and softplus, (batch, len, heads), f32.
    pub dt: Ptr,
    /// Bias of the step size, a value per head.
    pub dt_bias: Ptr,
    /// `-exp(A_log)`, a value per head.
    pub a: Ptr,
    /// Input vectors, (batch, len, groups · n), f32.
    pub b: Ptr,
    /// Output vectors, shaped as `b`.
    pub c: Ptr,
    /// Skip, heads · p values.
    pub skip: Ptr,
    /// Gate, (batch, len, heads · p) of `kind`, or none.
    pub z: Ptr,
    /// Output, (batch, len, heads · p) of `kind`.
    pub y: Ptr,
    /// Scale of the step size, (batch), or none: 1.
    pub scale: Ptr,
    /// Pool of states, (n, heads · p) each; none: every sequence begins from nothing.
    pub state: Ptr,
    /// Slot of each sequence, u32, or none.
    pub slots: Ptr,
    /// Values between slots.
    pub state_stride: u64,
    /// Values between rows of x.
    pub x_stride: u32,
    /// Values between rows of dt.
    pub dt_stride: u32,
    /// Values between rows of b, and c.
    pub bc_stride: u32,
    /// Values between rows of z.
    pub z_stride: u32,
    /// Values between rows of y.
    pub y_stride: u32,
    /// Kind of x, z and y.
    pub kind: Kind,
    /// Sequences.
    pub batch: u32,
    /// Steps.
    pub len: u32,
    /// Heads.
    pub heads: u32,
    /// Channels of a head.
    pub p: u32,
    /// States of a channel, 128 at most.
    pub n: u32,
    /// Heads of a group.
    pub per_group: u32,
    /// Least step size after softplus.
    pub low: f32,
    /// Largest step size after softplus.
    pub high: f32,
}

/// Kernel, channels of a block, lanes of a channel, states there is room for.
const SHAPES: [(&str, u32, u32, u32); 3] = [("ssd_n16", 64, 2, 16), ("ssd_n64", 32, 8, 64), ("ssd_n128", 16, 16, 128)];

/// Steps of a tile.
const TILE: u32 = 16;

impl Args {
    /// The recurrence.
    ///
    /// # Errors
    /// More states or sequences than there is code for.
    pub fn launch(&self) -> Result<Launch, TooLarge> {
        bound("ssd", "sequences", GRID, self.batch as usize)?;
        let too_large = TooLarge { op: "ssd", what: "states", most: 128, got: self.n as usize };
        let &(kernel, c, s, n) = SHAPES.iter().find(|shape| self.n <= shape.3).ok_or(too_large)?;
        Ok(Launch {
            kernel,
            grid: [self.heads * self.p.div_ceil(c), self.batch, 1],
            block: c * s,
            shared: 4 * TILE * (2 + 2 * c + 2 * n),
        })
    }
}
