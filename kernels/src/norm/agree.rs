//! Every level against the definition in f64.
#![cfg(test)]

use super::*;
use crate::testing::{Rng, levels};

#[test]
fn levels_agree_with_the_definition() {
    let mut rng = Rng::new(11);
    for (level, threads) in levels().into_iter().flat_map(|level| [(level, 1), (level, 2)]) {
        let cx = Cx::at(level, threads);
        for (rows, d) in [(0, 4), (1, 1), (3, 31), (2, 32), (5, 33), (4, 192), (1, 1000), (101, 192)] {
            for kind in [Kind::Rms, Kind::Layer] {
                let w = Norm::new(kind, rng.vec(d), Some(rng.vec(d)), 1e-5);
                let x: Vec<f32> = rng.vec(rows * d).iter().map(|v| v + 0.5).collect();
                let start = rng.vec(rows * d);
                let (mut residual, mut y) = (start.clone(), vec![0.0; rows * d]);
                let x_mat = Mat::new(&x, rows, d);
                add_norm(&cx, &w, x_mat, MatMut::new(&mut residual, rows, d), MatMut::new(&mut y, rows, d));
                let mut plain = vec![0.0; rows * d];
                norm(&cx, &w, Mat::new(&residual, rows, d), MatMut::new(&mut plain, rows, d));
                assert_eq!(plain, y, "{level}: norm and add_norm differ");
                for r in 0..rows {
                    let sum: Vec<f64> = (0..d).map(|c| f64::from(x[r * d + c]) + f64::from(start[r * d + c])).collect();
                    let mean = if kind == Kind::Layer { sum.iter().sum::<f64>() / d as f64 } else { 0.0 };
                    let var = sum.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
                    for c in 0..d {
                        let e = (sum[c] - mean) / (var + 1e-5).sqrt() * f64::from(w.weight[c]) + f64::from(w.bias[c]);
                        let got = y[r * d + c];
                        // One channel under LayerNorm is rounding over sqrt(eps): nothing is left to compare.
                        let tol = if d == 1 { 2e-4 } else { 5e-6 };
                        assert!((f64::from(got) - e).abs() < tol, "{level} {kind:?} {d}: expected {e}, got {got}");
                        assert!((f64::from(residual[r * d + c]) - sum[c]).abs() < 1e-6, "{level}: residual");
                    }
                }
            }
        }
    }
}
