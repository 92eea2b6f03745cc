//! Launches of [`complex_scan`](crate::complex_scan()) and [`s4d`](crate::s4d()) on a device.

use super::{GRID, Launch, Ptr, TooLarge, bound};

/// Arguments of `complex_scan` and `complex_filter_*`, as `ComplexArgs` in `complex_scan.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Args {
    /// Real parts of the poles, n values.
    pub re: Ptr,
    /// Their imaginary parts.
    pub im: Ptr,
    /// Gains of the filter, n values.
    pub gain: Ptr,
    /// Input, (batch, len, n); of the filter (batch, len).
    pub x: Ptr,
    /// Output, shaped as the input; may be the input.
    pub y: Ptr,
    /// Pool of states, (2, n) each.
    pub state: Ptr,
    /// Slot of each sequence, u32, or none.
    pub slots: Ptr,
    /// Values between slots.
    pub state_stride: u64,
    /// Values between sequences of x.
    pub x_batch: u64,
    /// Values between sequences of y.
    pub y_batch: u64,
    /// Values between steps of x.
    pub x_stride: u32,
    /// Values between steps of y.
    pub y_stride: u32,
    /// Sequences.
    pub batch: u32,
    /// Steps.
    pub len: u32,
    /// States; of the filter 256 at most.
    pub n: u32,
}

impl Args {
    /// The real part of every state after every step.
    ///
    /// # Errors
    /// More sequences than there is code for.
    pub fn scan(&self) -> Result<Launch, TooLarge> {
        bound("complex_scan", "sequences", GRID, self.batch as usize)?;
        Ok(Launch { kernel: "complex_scan", grid: [self.n.div_ceil(64), self.batch, 1], block: 64, shared: 0 })
    }

    /// The filter of one channel.
    ///
    /// # Errors
    /// More states than there is code for.
    pub fn filter(&self) -> Result<Launch, TooLarge> {
        bound("complex_filter", "states", 256, self.n as usize)?;
        let kernel = if self.n <= 64 { "complex_filter_64" } else { "complex_filter_256" };
        Ok(Launch { kernel, grid: [self.batch, 1, 1], block: 32, shared: 0 })
    }
}

/// Arguments of `s4d_*` and `s4_*`, as `S4dArgs` in `complex_scan.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct S4d {
    /// Sets of coefficients, each as [`Coefficients::packed`](crate::s4d::Coefficients::packed) gives them.
    pub coefficients: Ptr,
    /// Input, (batch, len, features).
    pub u: Ptr,
    /// Output, (batch, len, channels · features).
    pub y: Ptr,
    /// Pool of states, as [`Sizes::state_shape`](crate::s4d::Sizes::state_shape) says.
    pub state: Ptr,
    /// Slot of each sequence, u32, or none.
    pub slots: Ptr,
    /// Set of coefficients of each sequence, u32, or none: the first.
    pub sets: Ptr,
    /// Values between slots.
    pub state_stride: u64,
    /// Values between sets.
    pub set_stride: u64,
    /// Values between rows of u.
    pub u_stride: u32,
    /// Values between rows of y.
    pub y_stride: u32,
    /// Sequences.
    pub batch: u32,
    /// Steps.
    pub len: u32,
    /// Features.
    pub features: u32,
    /// States of a feature, 128 at most.
    pub n: u32,
    /// Output channels.
    pub channels: u32,
    /// Rank of the correction, 4 at most.
    pub rank: u32,
    /// 0: the state is advanced, and y left alone.
    pub read: u32,
}

impl S4d {
    /// The recurrence.
    ///
    /// # Errors
    /// More states, ranks or sequences than there is code for.
    pub fn launch(&self) -> Result<Launch, TooLarge> {
        bound("s4d", "states", 128, self.n as usize)?;
        bound("s4d", "ranks", 4, self.rank as usize)?;
        bound("s4d", "sequences", GRID, self.batch as usize)?;
        let kernel = match (self.rank, self.n) {
            (0, ..=32) => "s4d_32",
            (0, _) => "s4d_128",
            (_, ..=32) => "s4_32",
            _ => "s4_128",
        };
        Ok(Launch { kernel, grid: [self.features.div_ceil(4), self.batch, 1], block: 128, shared: 0 })
    }
}
