//! Bilinear resize of grids with antialiasing, as PyTorch's `interpolate(mode="bilinear", antialias=True,
//! align_corners=False)` does it: position embeddings at another clip length.
//!
//! Along each axis `y_i = Σ_j w_ij x_j`, `w_ij ∝ max(0, 1 - |j + 0.5 - s (i + 0.5)| / max(s, 1))` with `s = from / to`,
//! the weights of an output summing to 1. Enlarging is plain bilinear interpolation.

/// Resizes `planes` planes of `from` = (rows, columns) to `to`.
///
/// # Panics
/// A slice has another length, or a side is 0.
pub fn bilinear_grid(x: &[f32], planes: usize, from: (usize, usize), to: (usize, usize), y: &mut [f32]) {
    let positive = from.0.min(from.1).min(to.0).min(to.1) > 0;
    assert!(positive, "bilinear: no side of {from:?} and {to:?} may be 0");
    assert!(x.len() == planes * from.0 * from.1, "bilinear: expected {planes} planes of {from:?}, got {}", x.len());
    assert!(y.len() == planes * to.0 * to.1, "bilinear: expected {planes} planes of {to:?}, got {}", y.len());
    let (rows, columns) = (taps(from.0, to.0), taps(from.1, to.1));
    let mut narrow = vec![0.0; from.0 * to.1];
    for (x, y) in x.chunks_exact(from.0 * from.1).zip(y.chunks_exact_mut(to.0 * to.1)) {
        for (x, out) in x.chunks_exact(from.1).zip(narrow.chunks_exact_mut(to.1)) {
            for (out, (first, weights)) in out.iter_mut().zip(&columns) {
                *out = weights.iter().zip(&x[*first..]).map(|(w, x)| w * f64::from(*x)).sum();
            }
        }
        for (out, (first, weights)) in y.chunks_exact_mut(to.1).zip(&rows) {
            for (column, out) in out.iter_mut().enumerate() {
                let source = narrow[first * to.1..].iter().skip(column).step_by(to.1);
                *out = weights.iter().zip(source).map(|(w, x)| w * x).sum::<f64>() as f32;
            }
        }
    }
}

/// For each of `to` outputs the first input that it sees and the weights of it and those after it.
fn taps(from: usize, to: usize) -> Vec<(usize, Vec<f64>)> {
    let scale = from as f64 / to as f64;
    let width = scale.max(1.0);
    let output = |i: usize| {
        let centre = scale * (i as f64 + 0.5);
        let first = (centre - width + 0.5).max(0.0) as usize;
        let last = ((centre + width + 0.5) as usize).min(from);
        let weight = |j: usize| (1.0 - ((j as f64 + 0.5 - centre) / width).abs()).max(0.0);
        let sum: f64 = (first..last).map(weight).sum();
        (first, (first..last).map(|j| weight(j) / sum).collect())
    };
    (0..to).map(output).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out, the size before, the size after.
    type Case = (&'static [f32], (usize, usize), (usize, usize));

    #[test]
    fn known_values() {
        // PyTorch 2.15, of squares: a row of six, and a grid of three by four.
        let squares = |n: u16| (0..n).map(|v| f32::from(v * v)).collect::<Vec<f32>>();
        let cases: [Case; 7] = [
            (&[0.375, 3.555_555_6, 10.777_778, 21.625], (1, 6), (1, 4)),
            (&[1.0, 7.0, 18.857_143], (1, 6), (1, 3)),
            (&[0.0, 0.5, 1.5, 3.5, 6.5, 10.166_667, 14.833_333, 20.5, 25.0], (1, 6), (1, 9)),
            (&[8.722_222], (1, 6), (1, 1)),
            (
                &[
                    6.0, 7.428_573, 9.714_286, 13.0, 16.571_432, 21.142_859, 24.0, 46.0, 51.0, 59.0, 68.0, 77.285_72,
                    87.571_43, 94.0,
                ],
                (3, 4),
                (2, 7),
            ),
            (
                &[
                    1.0, 5.714_286, 9.685_715, 19.428_574, 22.714_285, 40.0, 54.942_867, 79.771_44, 76.428_57,
                    106.285_71,
                ],
                (3, 4),
                (5, 2),
            ),
            (&[0.0, 1.0, 4.0, 9.0, 16.0, 25.0, 36.0, 49.0, 64.0, 81.0, 100.0, 121.0], (3, 4), (3, 4)),
        ];
        for (want, from, to) in cases {
            let mut y = vec![0.0; want.len()];
            bilinear_grid(&squares((from.0 * from.1) as u16), 1, from, to, &mut y);
            let off = y.iter().zip(want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off < 2e-5, "{from:?} to {to:?}: expected {want:?}, got {y:?}");
        }
    }

    #[test]
    fn planes_are_apart() {
        let x = [1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0];
        let (mut both, mut one) = ([0.0; 12], [0.0; 6]);
        bilinear_grid(&x, 2, (2, 2), (3, 2), &mut both);
        bilinear_grid(&x[4..], 1, (2, 2), (3, 2), &mut one);
        assert_eq!(both[6..], one);
    }
}
