//! Every level against the equation in f64, any cut against the whole, and the invariants of the recurrence.
#![cfg(test)]

use super::*;
use crate::testing::{Rng, levels, max_diff};

struct Case {
    sizes: Sizes,
    u: Vec<f32>,
    /// a, b, p, t, c, (rows, H): real and imaginary parts.
    w: [(Vec<f32>, Vec<f32>); 5],
    d: Vec<f32>,
    /// Start, (N, H).
    z: (Vec<f32>, Vec<f32>),
    packed: Coefficients,
}

impl Case {
    fn new(rng: &mut Rng, len: usize, h: usize, n: usize, channels: usize, rank: usize) -> Self {
        let mut planes = |rows: usize| (rng.vec(rows * h), rng.vec(rows * h));
        let mut w = [n, n, rank * n, rank * n, channels * n].map(&mut planes);
        let z = planes(n);
        for (re, im) in w[0].0.iter_mut().zip(&mut w[0].1) {
            // Inside the unit circle.
            let (size, angle) = (0.999 - 0.5 * im.abs().min(1.9), *re * 3.0);
            (*re, *im) = (size * angle.cos(), size * angle.sin());
        }
        // A correction small enough that the whole stays stable.
        let small = 0.02 / (n * rank.max(1)) as f32;
        w[2].0.iter_mut().chain(&mut w[2].1).for_each(|v| *v *= small);
        let (u, d) = (rng.vec(len * h), rng.vec(channels * h));
        let sizes = Sizes { features: h, states: n, channels, rank };
        let get = |part: Part, f: usize, i: usize| {
            let (which, row) = match part {
                Part::A => (0, i),
                Part::B => (1, i),
                Part::P(r) => (2, r * n + i),
                Part::T(r) => (3, r * n + i),
                Part::C(ch) => (4, ch * n + i),
            };
            (w[which].0[row * h + f], w[which].1[row * h + f])
        };
        let packed = Coefficients::pack(sizes, get, |ch, f| d[ch * h + f]);
        Self { sizes, u, w, d, z, packed }
    }

    /// The start as the kernel lays it out.
    fn start(&self) -> Vec<f32> {
        let mut z = vec![0.0; self.sizes.state_len()];
        for f in 0..self.sizes.features {
            for n in 0..self.sizes.states {
                let (at, from) = (self.sizes.place(f, n), n * self.sizes.features + f);
                (z[at], z[at + LANES]) = (self.z.0[from], self.z.1[from]);
            }
        }
        z
    }

    fn run(&self, cx: &Cx, from: usize, to: usize, z: &mut [f32], y: &mut [f32]) {
        let (h, width) = (self.sizes.features, self.sizes.channels * self.sizes.features);
        let u = Mat::new(&self.u[from * h..], to - from, h);
        s4d(cx, &self.packed, u, z, true, MatMut::new(y, to - from, width));
    }

    /// Outputs and state in f64.
    fn exact(&self, len: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let Sizes { features: h, states: n, channels, rank } = self.sizes;
        let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let w = self.w.each_ref().map(|(re, im)| (wide(re), wide(im)));
        let [a, b, p, t, c] = &w;
        let (mut re, mut im) = (wide(&self.z.0), wide(&self.z.1));
        let mut y = vec![0.0; len * channels * h];
        for step in 0..len {
            for e in 0..h {
                let u = f64::from(self.u[step * h + e]);
                let q: Vec<f64> = (0..rank)
                    .map(|r| {
                        let k = |i| (r * n + i) * h + e;
                        (0..n).map(|i| t.0[k(i)] * re[i * h + e] - t.1[k(i)] * im[i * h + e]).sum::<f64>() * 2.0
                    })
                    .collect();
                for i in 0..n {
                    let k = i * h + e;
                    let (x, v) = (re[k], im[k]);
                    re[k] = a.0[k] * x - a.1[k] * v + b.0[k] * u;
                    im[k] = a.0[k] * v + a.1[k] * x + b.1[k] * u;
                    for (r, q) in q.iter().enumerate() {
                        re[k] -= p.0[(r * n + i) * h + e] * q;
                        im[k] -= p.1[(r * n + i) * h + e] * q;
                    }
                }
                for ch in 0..channels {
                    let k = |i| (ch * n + i) * h + e;
                    let sum: f64 = (0..n).map(|i| c.0[k(i)] * re[i * h + e] - c.1[k(i)] * im[i * h + e]).sum();
                    y[(step * channels + ch) * h + e] = sum + f64::from(self.d[ch * h + e]) * u;
                }
            }
        }
        (y, re, im)
    }
}

#[test]
fn levels_agree_with_the_equation() {
    let mut rng = Rng::new(41);
    for level in levels() {
        let cx = Cx::at(level, 2);
        for (len, h, n, channels) in [
            (0, 4, 8, 1),
            (1, 1, 1, 1),
            (1, 17, 32, 1),
            (33, 6, 3, 2),
            (65, 8, 6, 1),
            (64, 33, 5, 3),
            (7, 15, 7, 0),
            (200, 70, 32, 1),
            (130, 136, 8, 8),
        ] {
            for rank in 0..=MAX_RANK {
                let case = Case::new(&mut rng, len, h, n, channels, rank);
                let (y0, re, im) = case.exact(len);
                let (mut z, mut y) = (case.start(), vec![f32::NAN; len * channels * h]);
                case.run(&cx, 0, len, &mut z, &mut y);
                // A state decays, so rounding stays at a few ulp of the largest value seen.
                let size = y0.iter().chain(&re).chain(&im).fold(1f64, |m, v| m.max(v.abs())) as f32;
                let near = |got: &[f32], want: &[f64]| {
                    let want: Vec<f32> = want.iter().map(|v| *v as f32).collect();
                    max_diff(got, &want) <= 5e-6 * size
                };
                let places = || (0..n * h).map(|k| case.sizes.place(k % h, k / h));
                let got_re: Vec<f32> = places().map(|at| z[at]).collect();
                let got_im: Vec<f32> = places().map(|at| z[at + LANES]).collect();
                assert!(
                    near(&y, &y0) && near(&got_re, &re) && near(&got_im, &im),
                    "{level} len {len} h {h} n {n} channels {channels} rank {rank}, size {size}"
                );
            }
        }
    }
}

#[test]
fn any_cut_gives_the_same_bits() {
    let mut rng = Rng::new(42);
    for level in levels() {
        let cx = Cx::at(level, 2);
        for (channels, rank) in [(1, 0), (3, 0), (1, 1), (2, 2)] {
            let (len, h) = (150, 40);
            let case = Case::new(&mut rng, len, h, 13, channels, rank);
            let width = channels * h;
            let (mut z, mut whole) = (case.start(), vec![0.0; len * width]);
            case.run(&cx, 0, len, &mut z, &mut whole);
            for _ in 0..20 {
                let (mut g, mut at) = (case.start(), 0);
                while at < len {
                    let n = rng.below(80).min(len - at);
                    let mut y = vec![0.0; n * width];
                    case.run(&cx, at, at + n, &mut g, &mut y);
                    assert_eq!(y, whole[at * width..(at + n) * width], "{level} at {at}");
                    at += n;
                }
                assert_eq!(g, z, "{level}: state");
            }
            // Advancing without reading leaves the same state.
            let mut g = case.start();
            let u = Mat::new(&case.u, len, h);
            s4d(&cx, &case.packed, u, &mut g, false, MatMut::new(&mut [], len, 0));
            assert_eq!(g, z, "{level}: state without reading");
        }
    }
}

#[test]
fn a_state_without_input_only_fades() {
    let mut rng = Rng::new(43);
    for level in levels() {
        let cx = Cx::at(level, 1);
        let mut case = Case::new(&mut rng, 300, 9, 16, 1, 0);
        case.u.fill(0.0);
        let mut z = case.start();
        for t in 0..300 {
            let before = z.clone();
            case.run(&cx, t, t + 1, &mut z, &mut [0.0; 9]);
            for i in 0..9 * 16 {
                let at = case.sizes.place(i % 9, i / 9);
                let size = |z: &[f32]| z[at].hypot(z[at + LANES]);
                assert!(size(&z) <= size(&before) * (1.0 + 1e-6) + 1e-28, "{level} step {t}");
            }
        }
    }
}

#[test]
fn silence_brings_no_denormal_numbers() {
    let mut rng = Rng::new(45);
    for (level, rank) in levels().into_iter().flat_map(|l| [(l, 0), (l, 1)]) {
        let mut case = Case::new(&mut rng, 3000, 9, 16, 1, rank);
        case.u.fill(0.0);
        let (mut z, mut y) = (case.start(), vec![0.0; 3000 * 9]);
        case.run(&Cx::at(level, 1), 0, 3000, &mut z, &mut y);
        for i in 0..9 * 16 {
            let at = case.sizes.place(i % 9, i / 9);
            assert!(
                z[at].is_normal() && z[at + LANES].is_normal(),
                "{level} rank {rank}: {}, {}",
                z[at],
                z[at + LANES]
            );
        }
    }
}

#[test]
fn nan_stays_in_its_feature() {
    let mut rng = Rng::new(44);
    for level in levels() {
        for rank in [0, 1] {
            let mut case = Case::new(&mut rng, 10, 20, 4, 1, rank);
            case.u[3 * 20 + 5] = f32::NAN;
            let (mut z, mut y) = (case.start(), vec![0.0; 200]);
            case.run(&Cx::at(level, 1), 0, 10, &mut z, &mut y);
            for (i, v) in y.iter().enumerate() {
                assert_eq!(v.is_nan(), i % 20 == 5 && i / 20 >= 3, "{level} at {i}");
            }
        }
    }
}
