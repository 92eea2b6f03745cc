//! Image patches as rows, so that a patch embedding is one product.

use crate::array::MatMut;

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
}
