//! Every level against the definition in f64, on one and on two threads.
#![cfg(test)]

use super::*;
use crate::testing::{Rng, levels, max_diff};

/// Σ over the taps inside the image, for one output pixel and channel.
fn definition(
    x: &[f32],
    (h, w, c): (usize, usize, usize),
    top: isize,
    left: isize,
    weight: impl Fn(usize, usize, usize) -> f32,
    k: usize,
) -> f64 {
    let mut sum = 0.0;
    for i in 0..k {
        for j in 0..k {
            let (y, xx) = (top + i as isize, left + j as isize);
            if y >= 0 && xx >= 0 && (y as usize) < h && (xx as usize) < w {
                for ch in 0..c {
                    sum += f64::from(weight(ch, i, j)) * f64::from(x[(y as usize * w + xx as usize) * c + ch]);
                }
            }
        }
    }
    sum
}

#[test]
fn dense_levels_agree_with_the_definition() {
    let mut rng = Rng::new(21);
    for level in levels() {
        for (h, w, c, o, k, s, p) in [
            (0, 3, 2, 4, 3, 2, 1),
            (1, 1, 3, 5, 3, 2, 1),
            (2, 5, 3, 9, 3, 2, 1),
            (7, 4, 5, 17, 2, 2, 0),
            (9, 10, 3, 8, 4, 4, 0),
            (23, 22, 4, 33, 3, 2, 1),
            (6, 6, 1, 3, 3, 1, 1),
        ] {
            let (weight, bias, x) = (rng.vec(o * c * k * k), rng.vec(o), rng.vec(h * w * c));
            let conv = Conv2d::pack(level, &weight, [o, c, k], (s, p), Some(&bias));
            let (oh, ow) = conv.out_size((h, w));
            let mut want = Vec::new();
            for pixel in 0..oh * ow {
                let (top, left) = ((pixel / ow * s) as isize - p as isize, (pixel % ow * s) as isize - p as isize);
                for out in 0..o {
                    let weight = |ch, i, j| weight[((out * c + ch) * k + i) * k + j];
                    let sum = definition(&x, (h, w, c), top, left, weight, k) + f64::from(bias[out]);
                    want.push(Act::Gelu.scalar(sum as f32));
                }
            }
            let mut runs = Vec::new();
            for threads in [1, 2] {
                let cx = Cx::at(level, threads);
                let (mut y, mut scratch) = (vec![f32::NAN; oh * ow * o], vec![f32::NAN; conv.scratch_len(threads)]);
                let out = MatMut::new(&mut y, oh * ow, o);
                conv2d(&cx, &conv, Mat::new(&x, h * w, c), (h, w), Act::Gelu, &mut scratch, out);
                assert!(max_diff(&y, &want) < 2e-5, "{level} {h}x{w}x{c} -> {o}, kernel {k}/{s}/{p}");
                runs.push(y);
            }
            assert_eq!(runs[0], runs[1], "{level} {h}x{w}: threads change the result");
        }
    }
}

#[test]
fn depthwise_levels_agree_with_the_definition() {
    let mut rng = Rng::new(22);
    for level in levels() {
        for (h, w, d, k) in [
            (0, 3, 2, 3),
            (1, 1, 1, 3),
            (1, 7, 8, 3),
            (7, 1, 17, 3),
            (2, 2, 33, 3),
            (5, 6, 40, 3),
            (20, 23, 37, 3),
            (6, 5, 9, 5),
            (4, 4, 9, 1),
        ] {
            let (weight, bias) = (rng.vec(d * k * k), rng.vec(d));
            // Columns of a wider matrix, NaN around them.
            let stride = d + 3;
            let mut x = vec![f32::NAN; h * w * stride];
            for row in x.chunks_mut(stride) {
                row[..d].copy_from_slice(&rng.vec(d));
            }
            let plain: Vec<f32> = x.chunks(stride).flat_map(|r| r[..d].to_vec()).collect();
            for with_bias in [false, true] {
                let conv = Depthwise::new(&weight, d, k, with_bias.then_some(&bias[..]));
                let mut want = Vec::new();
                for pixel in 0..h * w {
                    for c in 0..d {
                        let one: Vec<f32> = plain.iter().skip(c).step_by(d).copied().collect();
                        let (top, left) = ((pixel / w) as isize, (pixel % w) as isize);
                        let half = (k / 2) as isize;
                        let weight = |_, i, j| weight[(c * k + i) * k + j];
                        let sum = definition(&one, (h, w, 1), top - half, left - half, weight, k);
                        want.push(Act::Silu.scalar((sum + f64::from(if with_bias { bias[c] } else { 0.0 })) as f32));
                    }
                }
                let mut runs = Vec::new();
                for threads in [1, 2] {
                    let (cx, mut y) = (Cx::at(level, threads), vec![f32::NAN; h * w * d]);
                    let x = Mat::strided(&x, h * w, d, stride);
                    depthwise(&cx, &conv, x, (h, w), Act::Silu, MatMut::new(&mut y, h * w, d));
                    assert!(max_diff(&y, &want) < 1e-5, "{level} {h}x{w}x{d}, kernel {k}, bias {with_bias}");
                    runs.push(y);
                }
                assert_eq!(runs[0], runs[1], "{level} {h}x{w}x{d}: threads change the result");
            }
        }
    }
}
