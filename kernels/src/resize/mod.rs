//! Images and grids at another size.
//!
//! ```text
//! y[i] = Σ_j w((j + ½ - c_i) / s) x[j] / Σ_j w(…),   c_i = (i + ½) · from / to     per axis, columns first
//! ```
//!
//! [`Resize`]: Pillow's bicubic resize of bytes, bit for bit (w cubic with a = -½, s = max(1, from / to), weights in
//! fixed point, rounded to bytes after each axis). [`bicubic_grid`]: PyTorch's `interpolate(mode="bicubic")` (a = -¾,
//! s = 1, edge values repeated). [`bilinear_grid`]: its `mode="bilinear", antialias=True` (w a triangle, s as
//! Pillow's). Half-pixel centres throughout (`align_corners=False`).

mod agree;
mod bytes;
mod grid;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use bytes::{Crop, Resize};
pub use grid::{bicubic_grid, bilinear_grid};

/// The cubic kernel (Keys 1981) with parameter `a`.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}
