//! Every level against plain loops in f64.
#![cfg(test)]

use super::*;
use crate::testing::{Rng, levels, max_diff};

/// |x|·|w| grows the rounding of a k-term sum by k/2 half-ulps at worst; measured far below this.
const TOLERANCE: f32 = 2e-6;

#[test]
fn levels_agree() {
    let mut rng = Rng::new(3);
    for level in levels() {
        for threads in [1, 2] {
            let cx = Cx::at(level, threads);
            for (m, n, k) in [
                (0, 5, 3),
                (1, 1, 1),
                (1, 33, 7),
                (1, 200, 64),
                (2, 97, 12),
                (3, 16, 5),
                (5, 31, 192),
                (7, 32, 1),
                (12, 33, 20),
                (13, 17, 9),
                (50, 70, 33),
                (197, 100, 192),
                (1, 5, 0),
                (130, 384, 44),
            ] {
                for (act, store) in
                    [(Act::None, Store::Set), (Act::None, Store::Add), (Act::Silu, Store::Add), (Act::Relu, Store::Set)]
                {
                    let (w, bias) = (rng.vec(n * k), rng.vec(n));
                    // x has a stride and NaN between its rows: reading past a row shows.
                    let sx = k + 3;
                    let mut x = vec![f32::NAN; m * sx + 1];
                    (0..m).for_each(|r| x[r * sx..r * sx + k].copy_from_slice(&rng.vec(k)));
                    let sy = n + 2;
                    let old: Vec<f32> = rng.vec(m * sy + 1);
                    let mut y = old.clone();
                    let packed = Linear::pack(level, &w, n, k, Some(&bias));
                    linear(&cx, Mat::strided(&x, m, k, sx), &packed, act, store, MatMut::strided(&mut y, m, n, sy));
                    for r in 0..m {
                        for c in 0..sy {
                            let got = y[r * sy + c];
                            if c >= n {
                                assert_eq!(got, old[r * sy + c], "{level}: wrote between the rows");
                                continue;
                            }
                            let (mut sum, mut size) = (0f64, 1f64);
                            for i in 0..k {
                                let t = f64::from(x[r * sx + i]) * f64::from(w[c * k + i]);
                                sum += t;
                                size += t.abs();
                            }
                            let mut e = act.scalar((sum + f64::from(bias[c])) as f32);
                            if store == Store::Add {
                                e += old[r * sy + c];
                            }
                            let tol = TOLERANCE * size as f32;
                            assert!((got - e).abs() <= tol, "{level} {m}x{n}x{k} {act:?}: expected {e}, got {got}");
                        }
                    }
                }
            }
        }
    }
}

/// A value as bfloat16 holds it, by way of the definition: the nearest of its neighbours with 8 bits of mantissa.
fn bf16(v: f32) -> f64 {
    let step = 2f64.powi(f64::from(v).abs().max(1e-30).log2().floor() as i32 - 7);
    let n = f64::from(v) / step;
    n.round_ties_even() * step
}

#[test]
fn bf16_is_the_product_of_rounded_factors() {
    let mut rng = Rng::new(12);
    for level in levels() {
        for (m, n, k) in
            [(1, 33, 7), (1, 200, 64), (2, 97, 12), (5, 31, 192), (13, 17, 9), (50, 70, 33), (197, 100, 192)]
        {
            let (w, bias, x) = (rng.vec(n * k), rng.vec(n), rng.vec(m * k));
            let mut packed = Linear::pack(level, &w, n, k, Some(&bias));
            packed.lower(Precision::Bf16);
            let mut y = vec![0.0; m * n];
            linear(&Cx::at(level, 2), Mat::new(&x, m, k), &packed, Act::None, Store::Set, MatMut::new(&mut y, m, n));
            for (i, got) in y.iter().enumerate() {
                let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                let terms = x.iter().zip(w).map(|(x, w)| bf16(*x) * bf16(*w));
                let (sum, size) = terms.fold((0.0, 1.0), |(sum, size), t| (sum + t, size + t.abs()));
                let off = (f64::from(*got) - sum - f64::from(bias[i % n])).abs();
                assert!(off <= f64::from(TOLERANCE) * size, "{level} {m}x{n}x{k}: off by {off}");
            }
            let mut row = vec![0.0; k];
            packed.row(n - 1, &mut row);
            assert!(row.iter().zip(&w[(n - 1) * k..]).all(|(got, w)| f64::from(*got) == bf16(*w)), "{level}: row");
        }
    }
}

#[test]
fn int8_is_the_exact_product_of_integers() {
    let mut rng = Rng::new(21);
    for level in levels() {
        for (m, n, k) in
            [(1, 33, 7), (1, 200, 64), (2, 97, 12), (5, 31, 192), (13, 17, 9), (50, 70, 33), (197, 100, 192)]
        {
            let (w, bias, mut x) = (rng.vec(n * k), rng.vec(n), rng.vec(m * k));
            // Rows of different sizes, one of zeros.
            x.chunks_exact_mut(k).enumerate().for_each(|(r, x)| x.iter_mut().for_each(|v| *v *= (r % 5) as f32));
            let mut packed = Linear::pack(level, &w, n, k, Some(&bias));
            packed.lower(Precision::Int8);
            let mut y = vec![0.0; m * n];
            linear(&Cx::at(level, 2), Mat::new(&x, m, k), &packed, Act::None, Store::Set, MatMut::new(&mut y, m, n));
            let integers = |v: &[f32]| {
                let unit = v.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
                let whole = move |v: &f32| if unit > 0.0 { (v * (1.0 / unit)).round_ties_even() as i64 } else { 0 };
                (unit, v.iter().map(whole).collect::<Vec<i64>>())
            };
            for (i, got) in y.iter().enumerate() {
                let ((xu, x), (wu, w)) = (integers(&x[i / n * k..][..k]), integers(&w[i % n * k..][..k]));
                let sum: i64 = x.iter().zip(&w).map(|(x, w)| x * w).sum();
                let want = sum as f32 * (wu * xu) + bias[i % n];
                assert_eq!(*got, want, "{level} {m}x{n}x{k} at {i}");
            }
            let mut row = vec![0.0; k];
            packed.row(n - 1, &mut row);
            let (unit, whole) = integers(&w[(n - 1) * k..]);
            assert!(row.iter().zip(whole).all(|(got, w)| *got == w as f32 * unit), "{level}: row");
        }
    }
}

#[test]
fn int8_keeps_what_is_not_finite() {
    for level in levels() {
        let mut packed = Linear::pack(level, &[1.0; 40 * 5], 40, 5, None);
        packed.lower(Precision::Int8);
        for bad in [f32::NAN, f32::INFINITY] {
            let x = [1.0, bad, 0.0, 2.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0];
            let mut y = vec![0.0; 80];
            let x = Mat::new(&x, 2, 5);
            linear(&Cx::at(level, 1), x, &packed, Act::None, Store::Set, MatMut::new(&mut y, 2, 40));
            assert!(y[..40].iter().all(|v| v.is_nan()), "{level}: {bad} is lost");
            assert!(y[40..].iter().all(|v| (v - 5.0).abs() < 1e-4), "{level}: the row beside it");
        }
    }
}

/// The same weights in 32 bits.
fn widened(w: &Linear) -> Linear {
    let mut wide = w.clone();
    wide.packed = Slab::zeros(w.n.div_ceil(w.level.panel()) * w.level.panel() * w.k);
    wide.packed.iter_mut().enumerate().for_each(|(at, v)| *v = w.held.get(&w.packed, at));
    wide.held = Held::F32;
    wide
}

#[test]
fn weights_of_16_bits_give_the_bits_of_wide_ones() {
    let mut rng = Rng::new(31);
    let f16 = |v| ::half::f16::from_f32(v).to_f32();
    let bf16 = |v| ::half::bf16::from_f32(v).to_f32();
    for (level, held) in levels().into_iter().flat_map(|l| [Held::F16, Held::Bf16].map(|held| (l, held))) {
        let round = |v| if held == Held::F16 { f16(v) } else { bf16(v) };
        for (m, n, k) in [(1, 33, 7), (1, 200, 64), (2, 97, 12), (5, 31, 192), (13, 17, 9), (50, 70, 33)] {
            let (bias, x) = (rng.vec(n), rng.vec(m * k));
            let mut w: Vec<f32> = rng.vec(n * k).into_iter().map(round).collect();
            // The smallest and the largest of f16, its least normal number but one, and a zero with a sign.
            let edges = [2f32.powi(-24), -65504.0, 2f32.powi(-14) - 2f32.powi(-24), -0.0];
            edges.into_iter().enumerate().for_each(|(i, v)| w[i * 5] = round(v));
            let mut narrow = Linear::pack(level, &w, n, k, Some(&bias));
            let mut wide = widened(&narrow);
            assert_eq!((narrow.held, wide.held), (held, Held::F32), "{level} {m}x{n}x{k}");
            assert!(narrow.bytes() < wide.bytes() * 3 / 4, "{level}: {} of {} bytes", narrow.bytes(), wide.bytes());
            let mut row = vec![0.0; k];
            for (i, w) in w.chunks_exact(k).enumerate() {
                narrow.row(i, &mut row);
                assert!(row.iter().zip(w).all(|(a, b)| a.to_bits() == b.to_bits()), "{level}: row {i}");
            }
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                let product = |w: &mut Linear| {
                    w.lower(precision);
                    let (mut y, cx) = (vec![0.5; m * n], Cx::at(level, 2));
                    linear(&cx, Mat::new(&x, m, k), w, Act::Silu, Store::Add, MatMut::new(&mut y, m, n));
                    linear(&cx, Mat::new(&x, m, k), w, Act::None, Store::Set, MatMut::new(&mut y[..m * n], m, n));
                    y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                let (got, want) = (product(&mut narrow.clone()), product(&mut wide));
                assert_eq!(got, want, "{level} {m}x{n}x{k} {held:?} {precision}");
                wide = widened(&narrow);
            }
            // One weight that does not fit: all are wide.
            w[0] = 1.0 + 2f32.powi(-20);
            assert_eq!(Linear::pack(level, &w, n, k, None).held, Held::F32, "{level} {m}x{n}x{k}");
            narrow.lower(Precision::F32);
            assert_eq!(narrow.held, held, "{level}: f32 leaves weights as they are");
        }
    }
}

/// The property that the split law and batching stand on.
#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let mut rng = Rng::new(4);
    let all = [Precision::F32, Precision::Bf16, Precision::Int8];
    for (level, precision) in levels().into_iter().flat_map(|l| all.map(|p| (l, p))) {
        let (m, n, k) = (61, 75, 51);
        let (x, w) = (rng.vec(m * k), rng.vec(n * k));
        let mut packed = Linear::pack(level, &w, n, k, None);
        packed.lower(precision);
        let mut whole = vec![0.0; m * n];
        linear(&Cx::at(level, 2), Mat::new(&x, m, k), &packed, Act::Silu, Store::Set, MatMut::new(&mut whole, m, n));
        let one = Cx::at(level, 1);
        let mut from = 0;
        while from < m {
            let rows = (1 + rng.below(9)).min(m - from);
            let mut part = vec![0.0; rows * n];
            let x = Mat::new(&x[from * k..], rows, k);
            linear(&one, x, &packed, Act::Silu, Store::Set, MatMut::new(&mut part, rows, n));
            assert_eq!(part, whole[from * n..(from + rows) * n], "{level}: rows {from}..{}", from + rows);
            from += rows;
        }
    }
}

#[test]
fn windows_overlap() {
    let x: Vec<f32> = (0..10).map(|v| v as f32).collect();
    for level in levels() {
        let w = Linear::pack(level, &[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], 2, 4, None);
        let mut y = vec![0.0; 8];
        let x = Mat::windows(&x, 4, 4, 2);
        linear(&Cx::at(level, 1), x, &w, Act::None, Store::Set, MatMut::new(&mut y, 4, 2));
        assert_eq!(y, [0.0, 3.0, 2.0, 5.0, 4.0, 7.0, 6.0, 9.0], "{level}");
    }
}

#[test]
fn rows_come_back_as_packed() {
    let mut rng = Rng::new(6);
    for level in levels() {
        let (n, k) = (37, 11);
        let w = rng.vec(n * k);
        let packed = Linear::pack(level, &w, n, k, None);
        let mut row = vec![0.0; k];
        for (i, want) in w.chunks_exact(k).enumerate() {
            packed.row(i, &mut row);
            assert_eq!(row, want, "{level} row {i}");
        }
    }
}

#[test]
fn ndarray_gives_the_same_product() {
    let mut rng = Rng::new(77);
    for level in levels() {
        let cx = Cx::at(level, 2);
        for (m, n, k) in [(1, 1, 1), (7, 33, 19), (50, 44, 384), (197, 192, 96)] {
            let (x, w, bias) = (rng.vec(m * k), rng.vec(n * k), rng.vec(n));
            let mut y = vec![0.0; m * n];
            let packed = Linear::pack(level, &w, n, k, Some(&bias));
            linear(&cx, Mat::new(&x, m, k), &packed, Act::None, Store::Set, MatMut::new(&mut y, m, n));
            let view = |v: &[f32], rows, cols| ndarray::Array2::from_shape_vec((rows, cols), v.to_vec()).expect("fits");
            let want = view(&x, m, k).dot(&view(&w, n, k).t()) + ndarray::Array1::from(bias.clone());
            // Sums of k products of variance 1 in another order.
            let off = max_diff(&y, want.as_slice().expect("row-major"));
            assert!(off < 2e-6 * k as f32, "{level} {m}x{n}x{k}: off by {off}");
        }
    }
}
