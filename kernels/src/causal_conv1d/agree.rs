//! Every level against the definition in f64; any cut against the whole.
#![cfg(test)]

use super::*;
use crate::testing::{Rng, levels};

#[test]
fn levels_agree_with_the_definition() {
    let mut rng = Rng::new(9);
    for level in levels() {
        let cx = Cx::at(level, 1);
        for (len, d, k) in [(0, 3, 4), (1, 1, 1), (2, 5, 4), (3, 17, 4), (9, 33, 2), (40, 7, 7), (20, 35, 18)] {
            for time in [Time::Forward, Time::Reverse] {
                let (w, bias, x) = (rng.vec(d * k), rng.vec(d), rng.vec(len * d));
                let old = rng.vec((k - 1) * d);
                let conv = Conv::new(&w, d, Some(&bias));
                let (mut tail, mut y) = (old.clone(), vec![0.0; len * d]);
                causal_conv1d(
                    &cx,
                    &conv,
                    Mat::new(&x, len, d),
                    Act::Silu,
                    time,
                    &mut tail,
                    MatMut::new(&mut y, len, d),
                );
                // One line of all rows in time order, the old tail first.
                let line: Vec<&[f32]> = (0..k - 1)
                    .map(|i| &old[i * d..][..d])
                    .chain(
                        (0..len).map(|t| if time == Time::Forward { t } else { len - 1 - t }).map(|r| &x[r * d..][..d]),
                    )
                    .collect();
                for t in 0..len {
                    let r = if time == Time::Forward { t } else { len - 1 - t };
                    for c in 0..d {
                        let sum: f64 = (0..k).map(|j| f64::from(w[c * k + j]) * f64::from(line[t + j][c])).sum();
                        let e = Act::Silu.scalar((sum + f64::from(bias[c])) as f32);
                        assert!((y[r * d + c] - e).abs() < 1e-5, "{level} {len}x{d} K {k} {time:?}");
                    }
                }
                let kept: Vec<f32> = line[len..].concat();
                assert_eq!(tail, kept, "{level} {len}x{d} K {k} {time:?}: tail");
            }
        }
    }
}

#[test]
fn any_cut_gives_the_same_bits() {
    let mut rng = Rng::new(10);
    for level in levels() {
        let cx = Cx::at(level, 1);
        let (len, d, k) = (50, 19, 4);
        let conv = Conv::new(&rng.vec(d * k), d, None);
        let x = rng.vec(len * d);
        let (mut tail, mut whole) = (vec![0.0; conv.tail_len()], vec![0.0; len * d]);
        let run = |x: &[f32], n: usize, tail: &mut [f32], y: &mut [f32]| {
            causal_conv1d(&cx, &conv, Mat::new(x, n, d), Act::None, Time::Forward, tail, MatMut::new(y, n, d));
        };
        run(&x, len, &mut tail, &mut whole);
        let (mut t2, mut y2, mut at) = (vec![0.0; conv.tail_len()], vec![0.0; len * d], 0);
        while at < len {
            let n = rng.below(6).min(len - at);
            run(&x[at * d..], n, &mut t2, &mut y2[at * d..(at + n) * d]);
            at += n;
        }
        assert_eq!((whole, tail), (y2, t2), "{level}");
    }
}
