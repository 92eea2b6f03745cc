//! Launches of [`selective_scan`](crate::selective_scan()) on a device.

use super::{GRID, Kind, Launch, Ptr, TooLarge, bound};

/// Orders of up to four directions, see [`Args::orders`].
pub mod order {
    /// First row first.
    pub const FORWARD: u32 = 0;
    /// Last row first.
    pub const REVERSE: u32 = 1;
    /// An image column by column.
    pub const COLUMNS: u32 = 2;
    /// An image column by column, backwards.
    pub const COLUMNS_REVERSE: u32 = 3;

    /// Orders of directions 0, 1, ….
    pub fn pack(orders: &[u32]) -> u32 {
        orders.iter().enumerate().fold(0, |bits, (i, o)| bits | o << (4 * i))
    }
}

/// Arguments of the kernels, as `ScanArgs` in `selective_scan.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Args {
    /// Input, (batch, len, d) of `kind`.
    pub u: Ptr,
    /// Step size before bias and softplus, (batch, len, d), f32.
    pub dt: Ptr,
    /// Bias of the step size, (directions, d), or none.
    pub dt_bias: Ptr,
    /// `-exp(A_log)`, (directions, n, d).
    pub a: Ptr,
    /// Input matrix, (batch, len, groups · n), f32.
    pub b: Ptr,
    /// Output matrix, shaped as `b`.
    pub c: Ptr,
    /// Skip, (directions, d), or none.
    pub skip: Ptr,
    /// Gate, (batch, len, d) of `kind`, or none.
    pub z: Ptr,
    /// Output, (batch, len, d) of `kind`.
    pub y: Ptr,
    /// Scale of the step size after softplus, (batch), or none: 1.
    pub scale: Ptr,
    /// Pool of states, (n, d) for each direction, or none.
    pub state: Ptr,
    /// Slot of each sequence, u32, or none.
    pub slots: Ptr,
    /// Working memory, (directions, batch, chunks, n + 1, d), where there are chunks.
    pub chunk_state: Ptr,
    /// Values between the directions' inputs.
    pub u_dir: u64,
    /// Values between the directions' step sizes.
    pub dt_dir: u64,
    /// Values between the directions' b, and c.
    pub bc_dir: u64,
    /// Values between the directions' outputs.
    pub y_dir: u64,
    /// Values between the directions' states inside a slot.
    pub state_dir: u64,
    /// Values between slots.
    pub state_stride: u64,
    /// Values between rows of u.
    pub u_stride: u32,
    /// Values between rows of dt.
    pub dt_stride: u32,
    /// Values between rows of b, and c.
    pub bc_stride: u32,
    /// Values between rows of z.
    pub z_stride: u32,
    /// Values between rows of y.
    pub y_stride: u32,
    /// Kind of u, z and y.
    pub kind: Kind,
    /// Sequences.
    pub batch: u32,
    /// Steps.
    pub len: u32,
    /// Channels.
    pub d: u32,
    /// States of a channel, 128 at most.
    pub n: u32,
    /// Channels of a group.
    pub per_group: u32,
    /// Order of each direction, see [`order::pack`].
    pub orders: u32,
    /// Rows of the image where it is read column by column.
    pub height: u32,
    /// Steps of a chunk, a multiple of 16, or `len`; see [`chunk`].
    pub chunk: u32,
    /// A bit for each direction: whether it begins from its state and leaves its end there, or begins from nothing.
    pub carried: u32,
    /// 1: softplus is applied to the biased step size.
    pub softplus: u32,
    /// 1: the result is added to y.
    pub add: u32,
    /// Set by [`Args::ends`].
    pub ends: u32,
}

/// Kernel, channels of a block, lanes of a channel, states there is room for, steps of a tile.
const SHAPES: [(&str, u32, u32, u32, u32); 4] = [
    ("selective_scan_n1", 128, 1, 1, 8),
    ("selective_scan_n16", 32, 4, 16, 16),
    ("selective_scan_n64", 16, 8, 64, 16),
    ("selective_scan_n128", 8, 16, 128, 16),
];

impl Args {
    /// Chunks of time.
    pub fn chunks(&self) -> u32 {
        if self.chunk < self.len { self.len.div_ceil(self.chunk.max(1)) } else { 1 }
    }

    /// Values of `chunk_state` for this many directions.
    pub fn chunk_state_len(&self, directions: u32) -> usize {
        let rows = directions as usize * self.batch as usize * self.chunks() as usize;
        if self.chunks() > 1 { rows * (self.n as usize + 1) * self.d as usize } else { 0 }
    }

    /// The scan itself: all there is to launch where there are no chunks.
    ///
    /// # Errors
    /// More states, chunks or sequences than there is code for.
    pub fn scan(&self, directions: u32) -> Result<Launch, TooLarge> {
        self.launch(directions, self.chunks())
    }

    /// The first of three launches of a scan in chunks, before [`Args::join`] and [`Args::scan`]: arguments and launch.
    ///
    /// # Errors
    /// As [`Args::scan`].
    pub fn ends(&self, directions: u32) -> Result<(Self, Launch), TooLarge> {
        Ok((Self { ends: 1, ..*self }, self.launch(directions, self.chunks() - 1)?))
    }

    /// The second of three launches of a scan in chunks.
    ///
    /// # Errors
    /// As [`Args::scan`].
    pub fn join(&self, directions: u32) -> Result<Launch, TooLarge> {
        bound("selective_scan", "sequences times directions", GRID, (directions * self.batch) as usize)?;
        let grid = [(self.n * self.d).div_ceil(128), directions * self.batch, 1];
        Ok(Launch { kernel: "selective_scan_join", grid, block: 128, shared: 0 })
    }

    fn launch(&self, directions: u32, chunks: u32) -> Result<Launch, TooLarge> {
        let room = SHAPES.iter().find(|s| self.n <= s.3);
        bound("selective_scan", "sequences times directions", GRID, (directions * self.batch) as usize)?;
        bound("selective_scan", "chunks", GRID, chunks as usize)?;
        let too_large = TooLarge { op: "selective_scan", what: "states", most: 128, got: self.n as usize };
        let &(kernel, c, s, n, tile) = room.ok_or(too_large)?;
        let blocks = self.d / self.per_group.max(1) * self.per_group.div_ceil(c);
        Ok(Launch {
            kernel,
            grid: [blocks, chunks, directions * self.batch],
            block: c * s,
            shared: 4 * (3 * tile * c + 2 * tile * n + 3 * tile),
        })
    }
}

/// Steps of a chunk that fill a device of so many processors with `blocks` blocks for each chunk; `len` if one is
/// enough.
pub fn chunk(len: u32, blocks: u32, processors: u32) -> u32 {
    let many = (2 * processors).div_ceil(blocks.max(1)).min(len / 256);
    if many < 2 { len } else { len.div_ceil(many).next_multiple_of(16) }
}
