//! Every level against the recurrence in f64, and any cut against the whole.
#![cfg(test)]

use super::*;
use crate::testing::{Rng, levels};

/// Random poles with |λ| from 0.4 to 0.999.
fn poles(rng: &mut Rng, n: usize) -> Vec<(f64, f64)> {
    (0..n)
        .map(|_| {
            let (r, a) = (1.0 - 0.6 * f64::from(rng.uniform()).powi(4).max(1e-3), 6.2 * f64::from(rng.uniform()));
            // What is computed with is in f32.
            (f64::from((r * a.cos()) as f32), f64::from((r * a.sin()) as f32))
        })
        .collect()
}

/// The states' real parts after each step, and the last states.
fn judge(poles: &[(f64, f64)], s: &[f32], u: impl Fn(usize, usize) -> f32, len: usize) -> (Vec<f64>, Vec<f64>) {
    let n = poles.len();
    let mut s: Vec<f64> = s.iter().map(|v| f64::from(*v)).collect();
    let mut out = vec![];
    for t in 0..len {
        for (i, (lr, li)) in poles.iter().enumerate() {
            let (sr, si) = (s[i], s[n + i]);
            s[i] = lr * sr - li * si + f64::from(u(t, i));
            s[n + i] = lr * si + li * sr;
            out.push(s[i]);
        }
    }
    (out, s)
}

fn off(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| {
        let d = (f64::from(*a) - b).abs();
        if d.is_nan() { f64::INFINITY } else { f64::max(m, d) }
    })
}

#[test]
fn levels_agree_with_the_recurrence() {
    let mut rng = Rng::new(31);
    for level in levels() {
        for (len, n) in [(0, 5), (1, 1), (3, 7), (17, 8), (64, 31), (65, 32), (130, 33), (200, 256), (9, 100)] {
            let p = poles(&mut rng, n);
            let packed = Poles::new(p.iter().copied());
            let start = rng.vec(2 * n);
            // A stride with NaN between the rows: reading past a row shows.
            let stride = n + 3;
            let u: Vec<f32> =
                (0..len * stride + 1).map(|i| if i % stride < n { rng.normal() } else { f32::NAN }).collect();
            let (want, end) = judge(&p, &start, |t, i| u[t * stride + i], len);
            let (mut s, mut got) = (start.clone(), u.clone());
            complex_scan(level, &packed, &mut s, MatMut::strided(&mut got, len, n, stride));
            let rows: Vec<f32> = (0..len * n).map(|i| got[i / n * stride + i % n]).collect();
            // Rounding noise of a resonance of 1000 steps, on values of some tens.
            assert!(off(&rows, &want) < 2e-4 && off(&s, &end) < 2e-4, "{level} {len}x{n}: {}", off(&rows, &want));
            assert!(got.iter().enumerate().all(|(i, v)| i % stride < n || v.is_nan()), "{level}: wrote between rows");

            let (x, gain) = (rng.vec(len), rng.vec(n));
            let (want, end) = judge(&p, &start, |t, _| x[t], len);
            let sum = |row: &[f64]| row.iter().zip(&gain).map(|(s, g)| s * f64::from(*g)).sum::<f64>();
            let want: Vec<f64> = want.chunks(n).map(sum).collect();
            let (mut s, mut y) = (start.clone(), vec![f32::NAN; len]);
            complex_filter(level, &packed, &gain, &mut s, &x, &mut y);
            let size = want.iter().fold(10f64, |m, v| m.max(v.abs()));
            assert!(off(&y, &want) < 2e-5 * size && off(&s, &end) < 2e-4, "{level} {len}x{n}: {}", off(&y, &want));
        }
    }
}

#[test]
fn any_cut_gives_the_same_bits() {
    let mut rng = Rng::new(32);
    for level in levels() {
        let (len, n) = (300, 45);
        let packed = Poles::new(poles(&mut rng, n).into_iter());
        let (start, gain, x, u) = (rng.vec(2 * n), rng.vec(n), rng.vec(len), rng.vec(len * n));
        let (mut s, mut whole) = ([start.clone(), start.clone()], (u.clone(), vec![0.0; len]));
        complex_scan(level, &packed, &mut s[0], MatMut::new(&mut whole.0, len, n));
        complex_filter(level, &packed, &gain, &mut s[1], &x, &mut whole.1);
        for _ in 0..5 {
            let (mut r, mut part, mut at) = ([start.clone(), start.clone()], (u.clone(), vec![0.0; len]), 0);
            while at < len {
                let m = rng.below(90).min(len - at);
                complex_scan(level, &packed, &mut r[0], MatMut::new(&mut part.0[at * n..], m, n));
                complex_filter(level, &packed, &gain, &mut r[1], &x[at..at + m], &mut part.1[at..at + m]);
                at += m;
            }
            assert!(part == whole && r == s, "{level}");
        }
    }
}
