//! Launches of [`conv2d`](crate::conv2d()), [`depthwise`](crate::conv2d::depthwise) and
//! [`merge`](crate::patch::merge) on a device, and of the overlapping sums of transposed convolutions over time.
//!
//! A dense convolution is [`Windows`], then [`linear`](super::linear) with the weights in the order (line, column,
//! channel).

use super::{GRID, Kind, Launch, Ptr, TooLarge, bound, each};
use crate::patch::count;

/// Arguments of `depthwise_*`, as `DepthwiseArgs` in `conv2d.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Depthwise {
    /// Input, (batch, height · width, d) of `kind`.
    pub x: Ptr,
    /// Taps, (kernel · kernel, d).
    pub taps: Ptr,
    /// Bias, d values.
    pub bias: Ptr,
    /// Output, shaped as the input.
    pub y: Ptr,
    /// Values between pixels of x.
    pub x_stride: u32,
    /// Values between pixels of y.
    pub y_stride: u32,
    /// Kind of x and y.
    pub kind: Kind,
    /// Images.
    pub batch: u32,
    /// Lines.
    pub height: u32,
    /// Pixels of a line.
    pub width: u32,
    /// Channels.
    pub d: u32,
    /// Side of the kernel, odd.
    pub kernel: u32,
    /// Activation, [`act`](super::act).
    pub act: u32,
}

/// Arguments of `windows`, as `WindowArgs` in `conv2d.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Windows {
    /// Input, (batch, height · width, d) of `kind`.
    pub x: Ptr,
    /// Output, (batch · windows, kernel · kernel · d).
    pub y: Ptr,
    /// Values between pixels of x.
    pub x_stride: u32,
    /// Values between windows of y.
    pub y_stride: u32,
    /// Kind of x and y.
    pub kind: Kind,
    /// Images.
    pub batch: u32,
    /// Lines.
    pub height: u32,
    /// Pixels of a line.
    pub width: u32,
    /// Channels.
    pub d: u32,
    /// Side of a window.
    pub kernel: u32,
    /// Pixels between windows.
    pub stride: u32,
    /// Pixels around the image, zeros.
    pub padding: u32,
    /// Windows from top to bottom.
    pub down: u32,
    /// Windows from left to right.
    pub across: u32,
    /// 1: columns in the order (column, line, channel).
    pub transposed: u32,
}

/// Arguments of `overlap_add`, as `OverlapArgs` in `conv2d.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Overlap {
    /// Input, (batch, len, 2 · stride · d) of `kind`.
    pub x: Ptr,
    /// Bias, d values.
    pub bias: Ptr,
    /// Output, (batch, stride · (len + last), d), dense but for the batches.
    pub y: Ptr,
    /// Pool of what still waits, (stride, d) each.
    pub state: Ptr,
    /// Slot of each sequence, u32, or none.
    pub slots: Ptr,
    /// Values between slots.
    pub state_stride: u64,
    /// Values between sequences of y.
    pub y_batch: u64,
    /// Values between rows of x.
    pub x_stride: u32,
    /// Kind of x and y.
    pub kind: Kind,
    /// Sequences.
    pub batch: u32,
    /// Rows of x.
    pub len: u32,
    /// Channels.
    pub d: u32,
    /// Rows of y that a row of x begins after the one before.
    pub stride: u32,
    /// Activation, [`act`](super::act).
    pub act: u32,
    /// 1: the stream ends here, and what waits is given out.
    pub last: u32,
}

impl Depthwise {
    /// The convolution.
    ///
    /// # Errors
    /// More values than there is code for.
    pub fn launch(&self) -> Result<Launch, TooLarge> {
        let lines = u64::from(self.batch) * u64::from(self.height) * u64::from(self.d);
        if self.kernel == 3 {
            return each("depthwise_3", lines * u64::from(self.width.div_ceil(4)));
        }
        each("depthwise_any", lines * u64::from(self.width))
    }
}

impl Windows {
    /// Windows of a dense convolution: `down` and `across` as the other sizes give them.
    #[must_use]
    pub fn counted(self) -> Self {
        let side = |n: u32| count((n + 2 * self.padding) as usize, self.kernel as usize, self.stride as usize) as u32;
        Self { down: side(self.height), across: side(self.width), ..self }
    }

    /// Two by two patch merging, with zeros at an odd last line or column.
    #[must_use]
    pub fn merging(self) -> Self {
        let (down, across) = (self.height.div_ceil(2), self.width.div_ceil(2));
        Self { kernel: 2, stride: 2, padding: 0, transposed: 1, down, across, ..self }
    }

    /// The launch.
    ///
    /// # Errors
    /// More values than there is code for.
    pub fn launch(&self) -> Result<Launch, TooLarge> {
        let rows = u64::from(self.batch) * u64::from(self.down) * u64::from(self.across);
        each("windows", rows * u64::from(self.kernel * self.kernel * self.d))
    }
}

impl Overlap {
    /// The sums.
    ///
    /// # Errors
    /// More sequences than there is code for.
    pub fn launch(&self) -> Result<Launch, TooLarge> {
        bound("overlap_add", "sequences", GRID, self.batch as usize)?;
        let grid = [(self.stride * self.d).div_ceil(128), self.batch, 1];
        Ok(Launch { kernel: "overlap_add", grid, block: 128, shared: 0 })
    }
}
