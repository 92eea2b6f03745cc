//! Every level against the scalar form, any cut against the whole, and the invariants of the recurrence.
#![cfg(test)]

use super::*;
use crate::testing::{Rng, levels, max_diff};

struct Case {
    d: usize,
    n: usize,
    groups: usize,
    u: Vec<f32>,
    dt: Vec<f32>,
    dt_bias: Vec<f32>,
    a: Vec<f32>,
    bc: Vec<f32>,
    skip: Vec<f32>,
    z: Vec<f32>,
    h: Vec<f32>,
    rows: Vec<u32>,
}

impl Case {
    fn new(rng: &mut Rng, len: usize, d: usize, n: usize, groups: usize) -> Self {
        let mut rows: Vec<u32> = (0..len as u32).collect();
        for i in (1..len).rev() {
            rows.swap(i, rng.below(i + 1));
        }
        Self {
            d,
            n,
            groups,
            u: rng.vec(len * d),
            dt: rng.vec(len * d),
            dt_bias: rng.vec(d),
            a: (0..n * d).map(|_| -(rng.normal().exp()) * 4.0).collect(),
            bc: rng.vec(len * 2 * groups * n),
            skip: rng.vec(d),
            z: rng.vec(len * d),
            h: rng.vec(n * d),
            rows,
        }
    }

    /// Steps `from..to` from state `h`; `variant` chooses order and options.
    fn run(&self, cx: &Cx, variant: usize, from: usize, to: usize, h: &mut [f32], y: &mut [f32]) {
        let (len, d, gn) = (to - from, self.d, self.groups * self.n);
        let bc = Mat::new(&self.bc[from * 2 * gn..], len, 2 * gn);
        // Without softplus a step is as long as it says, and never less than nothing.
        let steps: Vec<f32> = self.dt.iter().map(|v| if variant == 4 { v.abs() } else { *v }).collect();
        let scan = Scan {
            u: Mat::new(&self.u[from * d..], len, d),
            dt: Mat::new(&steps[from * d..], len, d),
            dt_bias: (variant != 1 && variant != 4).then_some(&self.dt_bias),
            softplus: variant != 4,
            scale: if variant == 2 { 0.5 } else { 1.0 },
            a: &self.a,
            b: bc.columns(0..gn),
            c: bc.columns(gn..2 * gn),
            d: (variant != 1).then_some(&self.skip),
            z: (variant != 2).then_some(Mat::new(&self.z[from * d..], len, d)),
            order: match variant {
                2 => Order::Reverse,
                3 => Order::Rows(&self.rows),
                _ => Order::Forward,
            },
            add: variant == 3,
        };
        selective_scan(cx, &scan, h, MatMut::new(y, len, d));
    }
}

#[test]
fn levels_agree() {
    let mut rng = Rng::new(5);
    for level in levels() {
        let (cx, judge) = (Cx::at(level, 2), Cx::at(CpuLevel::Scalar, 1));
        for (len, d, n, groups) in [
            (0, 4, 16, 1),
            (1, 1, 1, 1),
            (1, 17, 16, 1),
            (33, 6, 16, 1),
            (65, 8, 3, 1),
            (30, 12, 1, 4),
            (21, 8, 4, 2),
            (64, 33, 8, 1),
            (7, 15, 13, 3),
            (197, 70, 16, 1),
            (128, 136, 14, 1),
            (9, 16, 1, 1),
            (50, 75, 1, 1),
            (300, 101, 1, 1),
            (33, 80, 1, 2),
        ] {
            for variant in 0..5 {
                let case = Case::new(&mut rng, len, d, n, groups);
                let (mut h0, mut h1) = (case.h.clone(), case.h.clone());
                let old = rng.vec(len * d);
                let (mut y0, mut y1) = (old.clone(), old);
                case.run(&judge, variant, 0, len, &mut h0, &mut y0);
                case.run(&cx, variant, 0, len, &mut h1, &mut y1);
                // The recurrence forgets, so errors of exp stay at a few ulp of the largest value seen.
                let size = y0.iter().chain(&h0).fold(1f32, |m, v| m.max(v.abs()));
                let (dy, dh) = (max_diff(&y0, &y1), max_diff(&h0, &h1));
                assert!(
                    dy <= 4e-6 * size && dh <= 4e-6 * size,
                    "{level} len {len} d {d} n {n} variant {variant}: y off by {dy}, h by {dh}, size {size}"
                );
            }
        }
    }
}

#[test]
fn any_cut_gives_the_same_bits() {
    let mut rng = Rng::new(6);
    for (level, n) in levels().into_iter().flat_map(|l| [(l, 1), (l, 16)]) {
        let cx = Cx::at(level, 2);
        let case = Case::new(&mut rng, 150, 40, n, 1);
        let (mut h, mut whole) = (case.h.clone(), vec![0.0; 150 * 40]);
        case.run(&cx, 0, 0, 150, &mut h, &mut whole);
        for _ in 0..20 {
            let (mut g, mut at) = (case.h.clone(), 0);
            while at < 150 {
                let len = rng.below(80).min(150 - at);
                let mut y = vec![0.0; len * 40];
                case.run(&cx, 0, at, at + len, &mut g, &mut y);
                assert_eq!(y, whole[at * 40..(at + len) * 40], "{level} at {at}");
                at += len;
            }
            assert_eq!(g, h, "{level}: state");
        }
    }
}

#[test]
fn a_state_without_input_only_fades() {
    let mut rng = Rng::new(7);
    for (level, n) in levels().into_iter().flat_map(|l| [(l, 1), (l, 16)]) {
        let cx = Cx::at(level, 1);
        let mut case = Case::new(&mut rng, 100, 9, n, 1);
        case.u.fill(0.0);
        case.dt.iter_mut().for_each(|v| *v *= 30.0);
        let mut h = case.h.clone();
        for t in 0..100 {
            let before = h.clone();
            case.run(&cx, 0, t, t + 1, &mut h, &mut [0.0; 9]);
            let fades = |(a, b): (&f32, &f32)| a.is_finite() && a.abs() <= b.abs() + 1e-29 && a * b > -1e-28;
            assert!(h.iter().zip(&before).all(fades), "{level} {:?}", h.iter().zip(&before).find(|p| !fades(*p)));
        }
    }
}

#[test]
fn silence_brings_no_denormal_numbers() {
    let mut rng = Rng::new(9);
    for (level, n) in levels().into_iter().flat_map(|l| [(l, 1), (l, 16)]) {
        let mut case = Case::new(&mut rng, 2000, 17, n, 1);
        case.u.fill(0.0);
        let (mut h, mut y) = (case.h.clone(), vec![0.0; 2000 * 17]);
        case.run(&Cx::at(level, 1), 0, 0, 2000, &mut h, &mut y);
        assert!(h.iter().all(|h| h.is_normal() && h.abs() < 1e-20), "{level}: {h:?}");
    }
}

#[test]
fn nan_stays_in_its_channel() {
    let mut rng = Rng::new(8);
    for (level, n) in levels().into_iter().flat_map(|l| [(l, 1), (l, 4)]) {
        let mut case = Case::new(&mut rng, 10, 20, n, 1);
        case.u[3 * 20 + 5] = f32::NAN;
        let (mut h, mut y) = (case.h.clone(), vec![0.0; 200]);
        case.run(&Cx::at(level, 1), 0, 0, 10, &mut h, &mut y);
        for (i, v) in y.iter().enumerate() {
            assert_eq!(v.is_nan(), i % 20 == 5 && i / 20 >= 3, "{level} at {i}");
        }
    }
}

/// What rounding adds to states that hardly decay must go one way as often as the other: a fault of the exponential that
/// went one way would grow with their memory.
#[test]
fn slow_decays_do_not_drift() {
    let (mut rng, len, d, n) = (Rng::new(8), 2000, 64, 16);
    let a: Vec<f32> = (0..n * d).map(|i| -0.001 - 0.009 * (i as f32 / (n * d) as f32)).collect();
    let (ones, bc) = (vec![1.0; len * d], vec![1.0; len * 2 * n]);
    let dt: Vec<f32> = (0..d).map(|_| 0.5 + (rng.below(1000) as f32) / 1000.0).collect();
    let dt = dt.repeat(len);
    let bc = Mat::new(&bc, len, 2 * n);
    for level in levels() {
        let (mut h, mut y) = (vec![0.0; n * d], vec![0.0; len * d]);
        let scan = Scan {
            u: Mat::new(&ones, len, d),
            dt: Mat::new(&dt, len, d),
            dt_bias: None,
            softplus: false,
            scale: 1.0,
            a: &a,
            b: bc.columns(0..n),
            c: bc.columns(n..2 * n),
            d: None,
            z: None,
            order: Order::Forward,
            add: false,
        };
        selective_scan(&Cx::at(level, 1), &scan, &mut h, MatMut::new(&mut y, len, d));
        let off = |i: usize| {
            let dt = f64::from(dt[i % d]);
            let fades = (dt * f64::from(a[i])).exp();
            let want = dt * (1.0 - fades.powi(len as i32)) / (1.0 - fades);
            f64::from(h[i]) / want - 1.0
        };
        let mean = (0..n * d).map(off).sum::<f64>() / (n * d) as f64;
        assert!(mean.abs() < 3e-6, "{level}: states are off by {mean:.1e} on the mean");
    }
}
