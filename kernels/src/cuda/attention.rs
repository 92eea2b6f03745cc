//! Launches of [`attention`](crate::attention) on a device.

use super::{GRID, Launch, Ptr, TooLarge, bound};

/// Arguments of the kernel, as `AttentionArgs` in `attention.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Args {
    /// Queries, (batch, len, heads · dim).
    pub q: Ptr,
    /// Keys that the steps add to the memory, shaped as the queries, or none: it is only read.
    pub keys: Ptr,
    /// Values that the steps add, or none.
    pub values: Ptr,
    /// Output, shaped as the queries.
    pub y: Ptr,
    /// Pool of remembered keys, (heads, dim, padded) each.
    pub k: Ptr,
    /// Pool of remembered values, (slots, heads · dim) each.
    pub v: Ptr,
    /// Slot of each sequence in the pools, u32, or none.
    pub pool_slots: Ptr,
    /// Steps that each sequence remembered before, u32; one at least where no keys are added.
    pub positions: Ptr,
    /// Scale of each head.
    pub scale: Ptr,
    /// Bias by age, (heads, slots), oldest first, or none.
    pub bias: Ptr,
    /// Values between the pool's keys.
    pub k_stride: u64,
    /// Values between the pool's values.
    pub v_stride: u64,
    /// Values between rows of queries.
    pub q_stride: u32,
    /// Values between rows of keys.
    pub keys_stride: u32,
    /// Values between rows of values.
    pub values_stride: u32,
    /// Values between rows of y.
    pub y_stride: u32,
    /// Sequences.
    pub batch: u32,
    /// Steps.
    pub len: u32,
    /// Heads.
    pub heads: u32,
    /// Values of a key.
    pub dim: u32,
    /// Keys that are remembered at most.
    pub slots: u32,
    /// Slots filled up, [`Sizes::padded`](crate::attention::Sizes::padded).
    pub padded: u32,
}

impl Args {
    /// The attention of all steps.
    ///
    /// # Errors
    /// A larger memory or more sequences than there is code for.
    pub fn launch(&self) -> Result<Launch, TooLarge> {
        bound("attention", "slots and values of a key", 12288, (self.slots + self.dim) as usize)?;
        bound("attention", "sequences", GRID, self.batch as usize)?;
        let shared = 4 * (self.slots + self.dim);
        Ok(Launch { kernel: "attention", grid: [self.heads, self.batch, 1], block: 32, shared })
    }
}
