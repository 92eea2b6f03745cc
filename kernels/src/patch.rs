//! Image patches as rows, so that a patch embedding is one product; two-by-two patch merging.

use crate::array::{Mat, MatMut};

/// Patches along one side: `(side - kernel) / stride + 1`, or 0 if the kernel does not fit.
pub fn count(side: usize, kernel: usize, stride: usize) -> usize {
    if side < kernel || stride == 0 { 0 } else { (side - kernel) / stride + 1 }
}

/// Copies each `kernel` × `kernel` patch of a (channels, height, width) image, every `stride` pixels, to one row of
/// `out` in the order (channel, row, column) that a convolution weight `[out, channels, kernel, kernel]` has when it is
/// flattened. Patches run row by row over the image.
///
/// # Panics
/// A shape does not fit.
pub fn patches(
    image: &[f32],
    (channels, height, width): (usize, usize, usize),
    kernel: usize,
    stride: usize,
    mut out: MatMut<'_>,
) {
    let (gh, gw) = (count(height, kernel, stride), count(width, kernel, stride));
    assert!(image.len() == channels * height * width, "patches: expected {channels}x{height}x{width} values");
    assert!(
        out.rows() == gh * gw && out.cols() == channels * kernel * kernel,
        "patches: expected output {}x{}",
        gh * gw,
        channels * kernel * kernel
    );
    for p in 0..gh * gw {
        let (top, left) = (p / gw * stride, p % gw * stride);
        let row = out.row(p);
        for (i, line) in row.chunks_exact_mut(kernel).enumerate() {
            let (c, y) = (i / kernel, i % kernel);
            line.copy_from_slice(&image[(c * height + top + y) * width + left..][..kernel]);
        }
    }
}

/// Sets the four pixels of each 2 x 2 square side by side (Swin's patch merging): x is an image of `size` (height, width)
/// with one row per pixel; a row of `out` is (top left, bottom left, top right, bottom right). At an odd last line or
/// column the missing pixels are zeros.
///
/// # Panics
/// A shape does not fit.
pub fn merge(x: Mat<'_>, (height, width): (usize, usize), mut out: MatMut<'_>) {
    let (c, ow) = (x.cols(), width.div_ceil(2));
    assert!(x.rows() == height * width, "merge: expected {height}x{width} pixels, got {}", x.rows());
    assert!(
        out.rows() == height.div_ceil(2) * ow && out.cols() == 4 * c,
        "merge: expected output {}x{}",
        height.div_ceil(2) * ow,
        4 * c
    );
    for p in 0..out.rows() {
        let row = out.row(p);
        for (i, (dy, dx)) in [(0, 0), (1, 0), (0, 1), (1, 1)].into_iter().enumerate() {
            let (y, xx) = (p / ow * 2 + dy, p % ow * 2 + dx);
            let part = &mut row[i * c..(i + 1) * c];
            if y < height && xx < width { part.copy_from_slice(x.row(y * width + xx)) } else { part.fill(0.0) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_overlap_and_drop_the_rest() {
        // 1 channel, 3 x 4, kernel 2, stride 1 and 2.
        let image: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let mut out = vec![0.0; 6 * 4];
        patches(&image, (1, 3, 4), 2, 1, MatMut::new(&mut out, 6, 4));
        assert_eq!(out[..8], [0.0, 1.0, 4.0, 5.0, 1.0, 2.0, 5.0, 6.0]);
        assert_eq!(out[20..], [6.0, 7.0, 10.0, 11.0]);
        let mut out = vec![0.0; 2 * 4];
        patches(&image, (1, 3, 4), 2, 2, MatMut::new(&mut out, 2, 4));
        assert_eq!(out, [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
        assert_eq!((count(3, 4, 1), count(0, 1, 0)), (0, 0));
    }

    #[test]
    fn merging_pads_with_zeros() {
        // 3 x 3, one channel.
        let image: Vec<f32> = (1..10).map(|v| v as f32).collect();
        let mut out = vec![f32::NAN; 16];
        merge(Mat::new(&image, 9, 1), (3, 3), MatMut::new(&mut out, 4, 4));
        assert_eq!(out[..8], [1.0, 4.0, 2.0, 5.0, 3.0, 6.0, 0.0, 0.0]);
        assert_eq!(out[8..], [7.0, 0.0, 8.0, 0.0, 9.0, 0.0, 0.0, 0.0]);
        merge(Mat::new(&[], 0, 2), (0, 5), MatMut::new(&mut [], 0, 8));
    }
}
