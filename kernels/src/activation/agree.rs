//! Every level against the scalar functions, and those against f64.
#![cfg(test)]

use super::*;
use crate::testing::{Rng, levels};

const ACTS: [Act; 5] = [Act::Relu, Act::Silu, Act::Gelu, Act::Sigmoid, Act::Softplus];

/// 4 ulp of the exponential, times the few roundings around it; erf of the vector GELU adds 1.5e-7 |x|.
fn tolerance(act: Act, x: f32, y: f32) -> f32 {
    match act {
        Act::Gelu => 3e-7 * x.abs() + 1e-7,
        _ => 1e-6 * y.abs() + 1e-36,
    }
}

#[test]
fn levels_agree() {
    let mut rng = Rng::new(1);
    for level in levels() {
        for n in [0, 1, 7, 8, 9, 15, 16, 17, 33, 1000] {
            for act in ACTS {
                let x: Vec<f32> = (0..n).map(|_| rng.normal() * 12.0).collect();
                let mut y = x.clone();
                y.push(7.0);
                apply(level, act, &mut y[..n]);
                assert_eq!(y[n], 7.0, "{level} {act:?}: wrote past the end");
                for (x, y) in x.iter().zip(&y) {
                    let e = act.scalar(*x);
                    assert!((y - e).abs() <= tolerance(act, *x, e), "{level} {act:?}({x}): expected {e}, got {y}");
                }
            }
        }
    }
}

#[test]
fn extremes_stay_finite_and_nan_stays_nan() {
    for level in levels() {
        for act in ACTS {
            let mut x = [0.0, -0.0, 90.0, -90.0, 200.0, -200.0, 1e30, -1e30, 20.0, 20.01, -17.0, f32::NAN];
            let xs = x;
            apply(level, act, &mut x);
            for (y, x) in x.iter().zip(xs).take(11) {
                let e = act.scalar(x);
                assert!((y - e).abs() <= tolerance(act, x, e), "{level} {act:?}({x}): expected {e}, got {y}");
            }
            assert!(x[11].is_nan(), "{level} {act:?} lost a NaN");
            // Those of a payload, whose bits lie where the vector forms have the exponent.
            for payload in [1, 0x7f, 0x80, 0x3f_ffff] {
                let mut x = [f32::from_bits(0x7fc0_0000 | payload); 3];
                apply(level, act, &mut x);
                assert!(x.iter().all(|x| x.is_nan()), "{level} {act:?} lost a NaN: {x:?}");
            }
        }
    }
}

#[test]
fn erf_matches_known_values() {
    // Abramowitz & Stegun, table 7.1.
    for (x, y) in [(0.0, 0.0), (0.5, 0.5204998778), (1.0, 0.8427007929), (2.0, 0.9953222650), (3.0, 0.9999779095)] {
        assert!((erf(x) - y).abs() < 1e-9 && (erf(-x) + y).abs() < 1e-9, "erf({x})");
    }
    assert!((erf(3.5 - 1e-9) - erf(3.5 + 1e-9)).abs() < 1e-11, "the two forms meet");
}

#[test]
fn glu_gates_the_first_half() {
    let mut rng = Rng::new(2);
    for level in levels() {
        for half in [1, 5, 8, 16, 21] {
            let x = rng.vec(3 * 2 * half);
            let mut y = x.clone();
            glu(level, MatMut::new(&mut y, 3, 2 * half));
            for r in 0..3 {
                for i in 0..half {
                    let (a, b) = (x[r * 2 * half + i], x[r * 2 * half + half + i]);
                    let e = a * sigmoid(b);
                    assert!((y[r * 2 * half + i] - e).abs() <= 1e-6 * e.abs(), "{level} half {half}");
                    assert_eq!(y[r * 2 * half + half + i], b, "the gates stay");
                }
            }
        }
    }
}

#[test]
fn gates_multiply() {
    let mut rng = Rng::new(5);
    for level in levels() {
        for n in [0, 1, 7, 8, 17, 40] {
            for act in ACTS {
                let (a, b) = (rng.vec(n), rng.vec(n));
                let mut y = a.clone();
                gate(level, act, &mut y, &b);
                for i in 0..n {
                    let e = a[i] * act.scalar(b[i]);
                    let tol = a[i].abs() * tolerance(act, b[i], act.scalar(b[i]));
                    assert!((y[i] - e).abs() <= tol + 1e-7 * e.abs(), "{level} {act:?}: expected {e}, got {}", y[i]);
                }
            }
        }
    }
}
