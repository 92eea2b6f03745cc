//! Launches of what is applied value by value or row by row: [`activation`](crate::activation), pooling, tokens.

use super::{GRID, Kind, Launch, Ptr, TooLarge, bound, each};

/// Arguments of `gate`, as `GateArgs` in `activation.cu`: `y = Σ parts x · act(gate)`, or `act(Σ parts x)`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Gate {
    /// Input, (parts, rows, d) of `kind`.
    pub x: Ptr,
    /// Gate, (rows, d) of `kind`, or none.
    pub gate: Ptr,
    /// Output, (rows, d) of `y_kind`; may be the input or the gate.
    pub y: Ptr,
    /// Values between parts.
    pub part_stride: u64,
    /// Values between rows of x.
    pub x_stride: u32,
    /// Values between rows of the gate.
    pub gate_stride: u32,
    /// Values between rows of y.
    pub y_stride: u32,
    /// Kind of x and the gate.
    pub kind: Kind,
    /// Kind of y.
    pub y_kind: Kind,
    /// Parts of the input.
    pub parts: u32,
    /// Rows.
    pub rows: u32,
    /// Columns.
    pub d: u32,
    /// Activation, [`act`](super::act).
    pub act: u32,
}

/// Arguments of `softmax` and `pool`, as `RowArgs` in `activation.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Rows {
    /// Input, (batch, len, d) of `x_kind`.
    pub x: Ptr,
    /// Output of `y_kind`: (batch, len, d) of softmax, which may be x; (batch, d) of pooling.
    pub y: Ptr,
    /// Values between batches of x.
    pub x_batch: u64,
    /// Values between batches of y.
    pub y_batch: u64,
    /// Values between rows of x.
    pub x_stride: u32,
    /// Values between rows of y.
    pub y_stride: u32,
    /// Kind of x.
    pub x_kind: Kind,
    /// Kind of y.
    pub y_kind: Kind,
    /// Batches.
    pub batch: u32,
    /// Rows of a batch.
    pub len: u32,
    /// Columns.
    pub d: u32,
    /// 1: pooling takes the largest of each column; 0: the mean.
    pub max: u32,
}

/// Arguments of `tokens`, as `TokenArgs` in `activation.cu`: patches and class tokens with what belongs to their
/// places.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Tokens {
    /// Patches, (batch, len less the class tokens, d) of `kind`.
    pub patches: Ptr,
    /// What each place adds, (len, d); in a class token's row, the token as well.
    pub places: Ptr,
    /// Tokens, (batch, len, d) of `y_kind`.
    pub y: Ptr,
    /// Kind of the patches.
    pub kind: Kind,
    /// Kind of y.
    pub y_kind: Kind,
    /// Images.
    pub batch: u32,
    /// Tokens of an image.
    pub len: u32,
    /// Width.
    pub d: u32,
    /// Rows of class tokens, ascending; `len` where there is none.
    pub classes: [u32; 2],
}

impl Gate {
    /// The launch.
    ///
    /// # Errors
    /// More values than there is code for.
    pub fn launch(&self) -> Result<Launch, TooLarge> {
        each("gate", u64::from(self.rows) * u64::from(self.d))
    }
}

impl Rows {
    /// Softmax of each row.
    pub fn softmax(&self) -> Launch {
        Launch { kernel: "softmax", grid: [(self.batch * self.len).div_ceil(4), 1, 1], block: 128, shared: 0 }
    }

    /// The mean, or the largest, of each column of a batch.
    ///
    /// # Errors
    /// More batches than there is code for.
    pub fn pool(&self) -> Result<Launch, TooLarge> {
        bound("pool", "batches", GRID, self.batch as usize)?;
        Ok(Launch { kernel: "pool", grid: [self.d.div_ceil(32), self.batch, 1], block: 256, shared: 4 * 256 })
    }
}

impl Tokens {
    /// The launch.
    ///
    /// # Errors
    /// More values than there is code for.
    pub fn launch(&self) -> Result<Launch, TooLarge> {
        each("tokens", u64::from(self.batch) * u64::from(self.len) * u64::from(self.d))
    }
}
