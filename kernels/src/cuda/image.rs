//! Launches that make rows of patches of frames: [`resize`](crate::resize), colours, [`patch`](crate::patch).

use super::{Kind, Launch, Ptr, TooLarge, bound, each};
use crate::patch::count;
use crate::resize::Resize;

/// Bytes that a pass of a resize counts at most.
const BYTES: usize = 1 << 31;

/// Arguments of `resize_columns` and `resize_rows`, as `ResizeArgs` in `image.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ResizeArgs {
    /// Input, rows of `x_stride` bytes.
    pub x: Ptr,
    /// Output, dense rows.
    pub y: Ptr,
    /// First input place of each output place, u32.
    pub first: Ptr,
    /// Weights of each output place, i32.
    pub weights: Ptr,
    /// Bytes between rows of x.
    pub x_stride: u32,
    /// Bytes of an output row.
    pub row: u32,
    /// Output rows.
    pub rows: u32,
    /// Weights of an output place.
    pub taps: u32,
    /// Bytes of a pixel.
    pub channels: u32,
    /// First row that is read, as the plan counts.
    pub from: u32,
}

/// The columns' pass of a planned resize: the image at `x`, then the bytes between the passes at `y`, of
/// [`Resize::scratch_len`] bytes; `first` and `weights` hold [`Resize::columns_plan`].
///
/// # Errors
/// More bytes than there is code for.
pub fn columns(
    plan: &Resize,
    x: Ptr,
    x_stride: u32,
    first: Ptr,
    weights: Ptr,
    y: Ptr,
) -> Result<(ResizeArgs, Launch), TooLarge> {
    let span = plan.rows_read();
    let (_, weight) = plan.columns_plan();
    let row = plan.out_len() / plan.crop().height;
    let args = ResizeArgs {
        x,
        y,
        first,
        weights,
        x_stride,
        row: row as u32,
        rows: span.len() as u32,
        taps: (weight.len() / plan.crop().width) as u32,
        channels: (row / plan.crop().width) as u32,
        from: span.start as u32,
    };
    bound("resize_columns", "bytes", BYTES, row * span.len())?;
    Ok((args, each("resize_columns", (row * span.len()) as u64)?))
}

/// The rows' pass of a planned resize, after [`columns`]: from its `y` at `x` to the crop's bytes at `y`, of
/// [`Resize::out_len`] bytes; `first` and `weights` hold [`Resize::rows_plan`].
///
/// # Errors
/// More bytes than there is code for.
pub fn rows(plan: &Resize, x: Ptr, first: Ptr, weights: Ptr, y: Ptr) -> Result<(ResizeArgs, Launch), TooLarge> {
    let (_, weight) = plan.rows_plan();
    let height = plan.crop().height;
    let row = plan.out_len() / height;
    let args = ResizeArgs {
        x,
        y,
        first,
        weights,
        x_stride: row as u32,
        row: row as u32,
        rows: height as u32,
        taps: (weight.len() / height) as u32,
        channels: (row / plan.crop().width) as u32,
        from: plan.rows_read().start as u32,
    };
    bound("resize_rows", "bytes", BYTES, plan.out_len())?;
    Ok((args, each("resize_rows", plan.out_len() as u64)?))
}

/// Arguments of `patches`, as `PatchArgs` in `image.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Patches {
    /// First byte of R, G and B, or of Y, U and V; planes of the image's size.
    pub channel: [Ptr; 3],
    /// Value of each byte of R, G and B, (3, 256), or none: Y, U and V, as the numbers below say.
    pub table: Ptr,
    /// Output of `kind`, (batch · patches, 3 · lines · patch): one patch of the image's size is the image in planes.
    pub y: Ptr,
    /// Bytes between images.
    pub image: u64,
    /// Bytes between pixels; R, G and B share the first.
    pub step: [u32; 3],
    /// Lines of the image.
    pub height: u32,
    /// Pixels of a line.
    pub width: u32,
    /// Lines of a patch.
    pub lines: u32,
    /// Pixels of each of them.
    pub patch: u32,
    /// Pixels between patches.
    pub stride: u32,
    /// Images.
    pub batch: u32,
    /// Kind of y.
    pub kind: Kind,
    /// Luma of black.
    pub black: f32,
    /// What a step of luma is worth, of 255.
    pub luma: f32,
    /// What a step of U is worth in R, G and B.
    pub wu: [f32; 3],
    /// What a step of V is worth in R, G and B.
    pub wv: [f32; 3],
    /// Mean of R, G and B, of 1.
    pub mean: [f32; 3],
    /// Their deviation.
    pub deviation: [f32; 3],
}

impl Patches {
    /// Rows of the output.
    pub fn rows(&self) -> usize {
        let side = |side, patch| count(side as usize, patch as usize, self.stride as usize);
        self.batch as usize * side(self.height, self.lines) * side(self.width, self.patch)
    }

    /// The launch; the image holds a patch at least.
    ///
    /// # Errors
    /// More values than there is code for.
    pub fn launch(&self) -> Result<Launch, TooLarge> {
        each("patches", self.rows() as u64 * 3 * u64::from(self.lines * self.patch))
    }
}
