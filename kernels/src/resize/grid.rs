//! Grids of floats (position embeddings), as PyTorch resamples them. Runs at load: plain loops.
//!
//! Places and weights are in f32, with the fused steps that PyTorch's build has: exact ones are five times further from
//! its results.

/// Which values make an output value, and how much of each.
struct Tap {
    at: usize,
    weight: f32,
}

/// Resamples `planes` grids of `from` = (rows, columns) to `to`, bicubic with a = -0.75 and repeated edges, as
/// `torch.nn.functional.interpolate(x, size, mode="bicubic", align_corners=False)` does.
///
/// # Panics
/// `x` or `y` has another length than its grids, or a grid has no values.
pub fn bicubic_grid(x: &[f32], planes: usize, from: (usize, usize), to: (usize, usize), y: &mut [f32]) {
    resample(x, planes, from, to, y, |from, to| {
        let scale = from as f32 / to as f32;
        let taps = |i: usize| {
            let at = scale.mul_add(i as f32 + 0.5, -0.5);
            let first = at.floor();
            let t = (at - first).clamp(0.0, 1.0);
            (-1..3).map(move |j| {
                let weight = cubic(j as f32 - t);
                Tap { at: (first as isize + j).clamp(0, from as isize - 1) as usize, weight }
            })
        };
        (0..to).map(|i| taps(i).collect()).collect()
    });
}

/// The cubic kernel of PyTorch, in f32.
fn cubic(x: f32) -> f32 {
    const A: f32 = -0.75;
    let x = x.abs();
    if x <= 1.0 {
        ((A + 2.0).mul_add(x, -(A + 3.0)) * x).mul_add(x, 1.0)
    } else {
        A.mul_add(x, -5.0 * A).mul_add(x, 8.0 * A).mul_add(x, -4.0 * A)
    }
}

/// Resamples `planes` grids of `from` = (rows, columns) to `to`, bilinear, averaging where it shrinks, as
/// `torch.nn.functional.interpolate(x, size, mode="bilinear", antialias=True)` does.
///
/// # Panics
/// As [`bicubic_grid`].
pub fn bilinear_grid(x: &[f32], planes: usize, from: (usize, usize), to: (usize, usize), y: &mut [f32]) {
    resample(x, planes, from, to, y, |from, to| {
        let scale = from as f32 / to as f32;
        let support = scale.max(1.0);
        let taps = |i: usize| {
            let centre = scale * (i as f32 + 0.5);
            let first = ((centre - support + 0.5) as usize).min(from - 1);
            let last = ((centre + support + 0.5) as usize).clamp(first + 1, from);
            let weight = |j: usize| (1.0 - ((j as f32 - centre + 0.5) / support).abs()).max(0.0);
            let sum: f32 = (first..last).map(weight).sum();
            (first..last).map(move |at| Tap { at, weight: weight(at) / sum }).collect()
        };
        (0..to).map(taps).collect()
    });
}

/// Both axes, columns first, with the taps that `taps(from, to)` gives for each output place of an axis.
fn resample(
    x: &[f32],
    planes: usize,
    from: (usize, usize),
    to: (usize, usize),
    y: &mut [f32],
    taps: impl Fn(usize, usize) -> Vec<Vec<Tap>>,
) {
    let (cells, out) = (from.0 * from.1, to.0 * to.1);
    assert!(cells > 0 && out > 0, "resize: expected grids, got {from:?} to {to:?}");
    assert!(x.len() == planes * cells, "resize: {planes} grids of {from:?}: got {} values", x.len());
    assert!(y.len() == planes * out, "resize: {planes} grids of {to:?}: got {} values of output", y.len());
    let (rows, columns) = (taps(from.0, to.0), taps(from.1, to.1));
    let mut wide = vec![0.0; from.0 * to.1];
    for (x, y) in x.chunks_exact(cells).zip(y.chunks_exact_mut(out)) {
        for (x, wide) in x.chunks_exact(from.1).zip(wide.chunks_exact_mut(to.1)) {
            for (v, taps) in wide.iter_mut().zip(&columns) {
                *v = taps.iter().map(|t| t.weight * x[t.at]).sum();
            }
        }
        for (y, taps) in y.chunks_exact_mut(to.1).zip(&rows) {
            for (c, v) in y.iter_mut().enumerate() {
                *v = taps.iter().map(|t| t.weight * wide[t.at * to.1 + c]).sum();
            }
        }
    }
}
