//! Launches of cosines with the vectors of the steps before.

use super::{Launch, Ptr, TooLarge, bound};

/// Arguments of `similarity`, as `SimilarityArgs` in `similarity.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Args {
    /// Vectors, (batch, len, d).
    pub x: Ptr,
    /// Cosines, (batch, len, lags).
    pub y: Ptr,
    /// Pool of states, (lags, d) each: the vectors of the steps before, of length 1, the newest first.
    pub state: Ptr,
    /// Slot of each stream, u32, or none.
    pub slots: Ptr,
    /// Values between slots.
    pub state_stride: u64,
    /// Values between rows of x.
    pub x_stride: u32,
    /// Values between rows of y.
    pub y_stride: u32,
    /// Streams.
    pub batch: u32,
    /// Steps.
    pub len: u32,
    /// Values of a vector.
    pub d: u32,
    /// Steps that are looked back.
    pub lags: u32,
}

impl Args {
    /// The launch.
    ///
    /// # Errors
    /// More streams than there is code for.
    pub fn launch(&self) -> Result<Launch, TooLarge> {
        bound("similarity", "streams", i32::MAX as usize, self.batch as usize)?;
        Ok(Launch { kernel: "similarity", grid: [self.batch, 1, 1], block: 256, shared: 0 })
    }
}
