//! Every level against the definition in f64, any cut against the whole.
#![cfg(test)]

use super::*;
use crate::testing::{Rng, levels};

struct Case {
    heads: usize,
    p: usize,
    n: usize,
    groups: usize,
    x: Vec<f32>,
    dt: Vec<f32>,
    dt_bias: Vec<f32>,
    a: Vec<f32>,
    bc: Vec<f32>,
    d: Vec<f32>,
    z: Vec<f32>,
    s: Vec<f32>,
}

impl Case {
    fn new(rng: &mut Rng, len: usize, (heads, p, n, groups): (usize, usize, usize, usize)) -> Self {
        Self {
            heads,
            p,
            n,
            groups,
            x: rng.vec(len * heads * p),
            dt: rng.vec(len * heads),
            dt_bias: rng.vec(heads),
            a: (0..heads).map(|_| -rng.normal().exp()).collect(),
            bc: rng.vec(len * 2 * groups * n),
            d: rng.vec(heads * p),
            z: rng.vec(len * heads * p),
            s: rng.vec(n * heads * p),
        }
    }

    /// Options by variant: 0 plain, 1 gated, 2 another scale and a clamped step.
    fn options(variant: usize) -> (bool, f32, (f32, f32)) {
        match variant {
            0 => (false, 1.0, (0.0, f32::INFINITY)),
            1 => (true, 1.0, (0.0, f32::INFINITY)),
            _ => (true, 0.5, (0.3, 1.1)),
        }
    }

    fn run(&self, cx: &Cx, variant: usize, from: usize, to: usize, s: &mut [f32], y: &mut [f32]) {
        let (len, d, gn) = (to - from, self.heads * self.p, self.groups * self.n);
        let bc = Mat::new(&self.bc[from * 2 * gn..], len, 2 * gn);
        let (gate, scale, dt_limit) = Self::options(variant);
        let call = Ssd {
            x: Mat::new(&self.x[from * d..], len, d),
            dt: Mat::new(&self.dt[from * self.heads..], len, self.heads),
            dt_bias: &self.dt_bias,
            dt_limit,
            scale,
            a: &self.a,
            b: bc.columns(0..gn),
            c: bc.columns(gn..2 * gn),
            d: &self.d,
            z: gate.then(|| Mat::new(&self.z[from * d..], len, d)),
        };
        ssd(cx, &call, s, MatMut::new(y, len, d));
    }

    /// The equations in f64.
    fn reference(&self, variant: usize, len: usize) -> (Vec<f64>, Vec<f64>) {
        let (d, gn) = (self.heads * self.p, self.groups * self.n);
        let (gate, scale, (low, high)) = Self::options(variant);
        let mut s: Vec<f64> = self.s.iter().map(|v| f64::from(*v)).collect();
        let mut y = vec![0.0; len * d];
        for t in 0..len {
            for e in 0..d {
                let h = e / self.p;
                let g = h / (self.heads / self.groups);
                let dt = f64::from(self.dt[t * self.heads + h]) + f64::from(self.dt_bias[h]);
                let delta = f64::from(scale) * dt.exp().ln_1p().max(f64::from(low)).min(f64::from(high));
                let x = f64::from(self.x[t * d + e]);
                let mut sum = f64::from(self.d[e]) * x;
                for i in 0..self.n {
                    let b = f64::from(self.bc[t * 2 * gn + g * self.n + i]);
                    let c = f64::from(self.bc[t * 2 * gn + gn + g * self.n + i]);
                    let s = &mut s[i * d + e];
                    *s = (delta * f64::from(self.a[h])).exp() * *s + delta * x * b;
                    sum += *s * c;
                }
                let z = f64::from(self.z[t * d + e]);
                y[t * d + e] = if gate { sum * z / (1.0 + (-z).exp()) } else { sum };
            }
        }
        (y, s)
    }
}

/// Heads, channels per head, states, groups: heads narrower than a vector, of one, two and four vectors, with rests.
const SHAPES: [(usize, usize, usize, usize); 7] =
    [(1, 1, 1, 1), (4, 16, 16, 1), (6, 5, 7, 3), (2, 64, 128, 1), (4, 33, 8, 2), (3, 24, 3, 1), (8, 70, 5, 4)];

/// Rounding of an n-term sum of products of unit normals, over a few steps of feedback.
const TOLERANCE: f64 = 1e-5;

#[test]
fn levels_agree_with_the_definition() {
    let mut rng = Rng::new(21);
    for level in levels() {
        for threads in [1, 2] {
            let cx = Cx::at(level, threads);
            for shape in SHAPES {
                for len in [0, 1, 3, 32, 70] {
                    for variant in 0..3 {
                        let case = Case::new(&mut rng, len, shape);
                        let (mut s, mut y) = (case.s.clone(), vec![f32::NAN; len * shape.0 * shape.1]);
                        case.run(&cx, variant, 0, len, &mut s, &mut y);
                        let (want_y, want_s) = case.reference(variant, len);
                        for (what, got, want) in [("y", &y, &want_y), ("state", &s, &want_s)] {
                            let size = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
                            for (got, want) in got.iter().zip(want) {
                                let off = (f64::from(*got) - want).abs();
                                assert!(off <= TOLERANCE * size, "{level} {shape:?} {len} {variant} {what}: off {off}");
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn any_cut_gives_the_same_bits() {
    let mut rng = Rng::new(22);
    for level in levels() {
        for shape in SHAPES {
            let (len, d) = (75, shape.0 * shape.1);
            let case = Case::new(&mut rng, len, shape);
            let (mut s, mut y) = (case.s.clone(), vec![0.0; len * d]);
            case.run(&Cx::at(level, 2), 2, 0, len, &mut s, &mut y);
            let (mut s2, mut y2, mut at) = (case.s.clone(), vec![0.0; len * d], 0);
            while at < len {
                let n = [0, 1, 1, 2, 40][rng.below(5)].min(len - at);
                case.run(&Cx::at(level, 1), 2, at, at + n, &mut s2, &mut y2[at * d..(at + n) * d]);
                at += n;
            }
            assert_eq!((s, y), (s2, y2), "{level} {shape:?}");
        }
    }
}

#[test]
fn silence_brings_no_denormal_numbers() {
    let mut rng = Rng::new(24);
    for level in levels() {
        let mut case = Case::new(&mut rng, 2000, (4, 16, 8, 1));
        case.x.fill(0.0);
        let (mut s, mut y) = (case.s.clone(), vec![0.0; 2000 * 64]);
        case.run(&Cx::at(level, 1), 0, 0, 2000, &mut s, &mut y);
        assert!(s.iter().all(|s| s.is_normal()), "{level}: {s:?}");
    }
}

/// Without input the state only shrinks, and a huge step forgets it.
#[test]
fn the_state_decays() {
    let mut rng = Rng::new(23);
    for level in levels() {
        let mut case = Case::new(&mut rng, 2, (4, 16, 8, 1));
        case.x.fill(0.0);
        case.dt[4..].fill(1e4);
        let (mut s, mut y) = (case.s.clone(), vec![0.0; 2 * 64]);
        case.run(&Cx::at(level, 1), 0, 0, 1, &mut s, &mut y[..64]);
        assert!(s.iter().zip(&case.s).all(|(new, old)| new.abs() <= old.abs() + 1e-29), "{level}");
        case.run(&Cx::at(level, 1), 0, 1, 2, &mut s, &mut y[64..]);
        assert!(s.iter().chain(&y[64..]).all(|v| v.abs() < 1e-28), "{level}");
    }
}
