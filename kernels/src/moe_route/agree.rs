//! Every level against the equations row by row in f64, ties, grouping.
#![cfg(test)]

use super::*;
use crate::testing::{Rng, levels};

struct Case {
    x: usize,
    d: usize,
    f: usize,
    d_out: usize,
    k: usize,
    act: Act,
    router: Vec<f32>,
    lin1: Vec<f32>,
    gate: Option<Vec<f32>>,
    lin2: Vec<f32>,
}

impl Case {
    fn new(rng: &mut Rng, (x, d, f, d_out): (usize, usize, usize, usize), k: usize, act: Act, gated: bool) -> Self {
        Self {
            x,
            d,
            f,
            d_out,
            k,
            act,
            router: rng.vec(d * x),
            lin1: rng.vec(x * d * f),
            gate: gated.then(|| rng.vec(x * d * f)),
            lin2: rng.vec(x * f * d_out),
        }
    }

    fn pack(&self, level: CpuLevel) -> Experts {
        let t = Tensors {
            experts: self.x,
            d: self.d,
            f: self.f,
            d_out: self.d_out,
            router: &self.router,
            lin1: &self.lin1,
            gate: self.gate.as_deref(),
            lin2: &self.lin2,
        };
        Experts::pack(level, &t, self.act, self.k)
    }

    /// One row: the chosen experts and the output.
    fn reference(&self, h: &[f32]) -> (Vec<u32>, Vec<f64>) {
        let dot = |w: &dyn Fn(usize) -> f32, n: usize, v: &dyn Fn(usize) -> f64| -> f64 {
            (0..n).map(|i| v(i) * f64::from(w(i))).sum()
        };
        let h = |i: usize| f64::from(h[i]);
        let logits: Vec<f64> = (0..self.x).map(|e| dot(&|i| self.router[i * self.x + e], self.d, &h)).collect();
        let sum: f64 = logits.iter().map(|l| l.exp()).sum();
        let mut order: Vec<usize> = (0..self.x).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        order.truncate(self.k);
        let act = |v: f64| f64::from(self.act.scalar(v as f32));
        let mut y = vec![0.0; self.d_out];
        for &e in &order {
            let at = |v: &'_ [f32], o: usize, i: usize| v[(e * self.d + i) * self.f + o];
            let inner: Vec<f64> = (0..self.f)
                .map(|o| {
                    let first = dot(&|i| at(&self.lin1, o, i), self.d, &h);
                    match &self.gate {
                        Some(g) => act(dot(&|i| at(g, o, i), self.d, &h)) * first,
                        None => act(first),
                    }
                })
                .collect();
            for (o, y) in y.iter_mut().enumerate() {
                let v = dot(&|i| self.lin2[(e * self.f + i) * self.d_out + o], self.f, &|i| inner[i]);
                *y += logits[e].exp() / sum * v;
            }
        }
        (order.iter().map(|e| *e as u32).collect(), y)
    }
}

fn run(cx: &Cx, w: &Experts, x: &[f32], m: usize) -> (Vec<u32>, Vec<f32>) {
    let mut y = vec![f32::NAN; m * w.d_out()];
    let mut scratch = vec![f32::NAN; w.scratch_len(m)];
    let out = MatMut::new(&mut y, m, w.d_out());
    let chosen = moe_route(cx, w, Mat::new(x, m, w.router.k()), &mut scratch, Store::Set, out).to_vec();
    (chosen, y)
}

#[test]
fn levels_agree_with_the_equations() {
    let mut rng = Rng::new(31);
    for level in levels() {
        for (shape, k) in [((1, 3, 5, 3), 1), ((5, 16, 24, 16), 1), ((5, 16, 24, 16), 3), ((7, 9, 33, 4), 7)] {
            for (act, gated) in [(Act::Relu, false), (Act::Silu, true), (Act::Gelu, true)] {
                let case = Case::new(&mut rng, shape, k, act, gated);
                let w = case.pack(level);
                for m in [0, 1, 2, 40] {
                    let x = rng.vec(m * shape.1);
                    let (chosen, y) = run(&Cx::at(level, 2), &w, &x, m);
                    for r in 0..m {
                        let (want_chosen, want) = case.reference(&x[r * shape.1..][..shape.1]);
                        assert_eq!(chosen[r * k..][..k], want_chosen, "{level} {shape:?} row {r}");
                        let size = want.iter().fold(1.0, |s: f64, v| s.max(v.abs()));
                        for (got, want) in y[r * shape.3..].iter().zip(&want) {
                            let off = (f64::from(*got) - want).abs();
                            assert!(off < 2e-5 * size, "{level} {shape:?} {act:?} row {r}: off by {off} of {size}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let mut rng = Rng::new(32);
    for level in levels() {
        let case = Case::new(&mut rng, (4, 12, 20, 12), 2, Act::Silu, true);
        let w = case.pack(level);
        let (m, d) = (33, 12);
        let x = rng.vec(m * d);
        let whole = run(&Cx::at(level, 2), &w, &x, m);
        let mut from = 0;
        while from < m {
            let n = (1 + rng.below(6)).min(m - from);
            let (chosen, y) = run(&Cx::at(level, 1), &w, &x[from * d..][..n * d], n);
            assert_eq!(chosen, whole.0[from * 2..][..n * 2], "{level}");
            assert_eq!(y, whole.1[from * d..][..n * d], "{level}");
            from += n;
        }
    }
}

#[test]
fn the_lower_index_wins_a_tie() {
    let (mut chosen, mut values) = ([9; 3], [0.0; 3]);
    best(&[0.2, 0.3, 0.3, 0.2], &mut chosen, &mut values);
    assert_eq!((chosen, values), ([1, 2, 0], [0.3, 0.3, 0.2]));
    best(&[f32::NAN, 0.1, f32::NAN], &mut chosen, &mut values);
    assert_eq!(chosen, [1, 0, 2]);
}
