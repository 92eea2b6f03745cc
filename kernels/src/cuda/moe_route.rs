//! Launches of [`moe_route`](crate::moe_route()) on a device: `choose`, `count`, `place`, the products of
//! [`linear::Args::grouped`](super::linear::Args::grouped), `combine`.

use super::{Kind, Launch, Ptr, TooLarge, bound, each};

/// Arguments of the kernels, as `RouteArgs` in `moe_route.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Args {
    /// What the router gives, (rows, experts), f32, before softmax.
    pub scores: Ptr,
    /// Experts of each row, best first, (rows, k), u32.
    pub chosen: Ptr,
    /// Their shares, (rows, k).
    pub values: Ptr,
    /// Rows of each expert, u32.
    pub counts: Ptr,
    /// First place of each expert, and the one after the last, (experts + 1), u32.
    pub starts: Ptr,
    /// Where each row's results lie, (rows, k), u32.
    pub place: Ptr,
    /// Row of each place, (rows · k), u32.
    pub from: Ptr,
    /// Results of the experts, (rows · k, d) of `outputs_kind`.
    pub outputs: Ptr,
    /// Output, (rows, d) of `y_kind`.
    pub y: Ptr,
    /// Values between rows of the results.
    pub outputs_stride: u32,
    /// Values between rows of y.
    pub y_stride: u32,
    /// Kind of the results.
    pub outputs_kind: Kind,
    /// Kind of y.
    pub y_kind: Kind,
    /// Rows.
    pub rows: u32,
    /// Experts, 3072 at most.
    pub experts: u32,
    /// Experts of a row.
    pub k: u32,
    /// Output width.
    pub d: u32,
    /// 1: the result is added to y.
    pub add: u32,
}

impl Args {
    /// Chooses each row's experts.
    ///
    /// # Errors
    /// More experts than there is code for.
    pub fn choose(&self) -> Result<Launch, TooLarge> {
        bound("moe_route", "experts", 3072, self.experts as usize)?;
        let shared = 4 * 4 * self.experts;
        Ok(Launch { kernel: "moe_choose", grid: [self.rows.div_ceil(4), 1, 1], block: 128, shared })
    }

    /// Counts each expert's rows.
    pub fn count(&self) -> Launch {
        Launch { kernel: "moe_count", grid: [self.experts, 1, 1], block: 32, shared: 0 }
    }

    /// Gives each row its places.
    pub fn place(&self) -> Launch {
        Launch { kernel: "moe_place", grid: [self.experts, 1, 1], block: 32, shared: 0 }
    }

    /// Sums each row's results.
    ///
    /// # Errors
    /// More values than there is code for.
    pub fn combine(&self) -> Result<Launch, TooLarge> {
        each("moe_combine", u64::from(self.rows) * u64::from(self.d))
    }
}
