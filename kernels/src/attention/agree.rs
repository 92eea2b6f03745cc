//! Every level against the definition in f64 over keys in the order of time, rings that have come round among them.
#![cfg(test)]

use super::*;
use crate::testing::{Rng, levels, max_diff};

/// `steps` keys and values written to a fresh memory; the rest of it holds NaN.
fn filled(sizes: Sizes, keys: &[f32], values: &[f32], steps: usize) -> (Vec<f32>, Vec<f32>) {
    let w = sizes.width();
    let (mut k, mut v) = (vec![f32::NAN; sizes.k_len()], vec![f32::NAN; sizes.v_len()]);
    for t in 0..steps {
        remember(sizes, t % sizes.slots, &keys[t * w..][..w], &values[t * w..][..w], &mut k, &mut v);
    }
    (k, v)
}

#[test]
fn levels_agree_with_the_definition() {
    let mut rng = Rng::new(61);
    for level in levels() {
        let cx = Cx::at(level, 2);
        for (heads, dim, slots, steps) in [
            (1, 1, 1, 1),
            (1, 1, 1, 5),
            (4, 8, 8, 3),
            (2, 16, 24, 24),
            (3, 33, 17, 40),
            (8, 128, 512, 700),
            (2, 40, 100, 7),
        ] {
            let sizes = Sizes { heads, dim, slots };
            let w = sizes.width();
            let (keys, values, q) = (rng.vec(steps * w), rng.vec(steps * w), rng.vec(w));
            let (scale, biases) = (rng.vec(heads), rng.vec(heads * slots));
            let bias = Bias::new(sizes, |head, age| biases[head * slots + age]);
            let (k, v) = filled(sizes, &keys, &values, steps);
            for with_bias in [false, true] {
                let newest = (steps - 1) % slots;
                let query = Query {
                    sizes,
                    q: &q,
                    k: &k,
                    v: &v,
                    filled: steps.min(slots),
                    scale: &scale,
                    bias: with_bias.then_some((&bias, newest)),
                };
                let mut y = vec![f32::NAN; w];
                attend(&cx, &query, &mut vec![f32::NAN; sizes.scratch_len()], &mut y);
                let mut want = vec![0f32; w];
                for head in 0..heads {
                    let ages = 0..steps.min(slots);
                    let at = |age: usize, d: usize| (steps - 1 - age) * w + head * dim + d;
                    let dot = |age: usize| {
                        (0..dim).map(|d| f64::from(q[head * dim + d]) * f64::from(keys[at(age, d)])).sum::<f64>()
                    };
                    let extra = |age: usize| if with_bias { f64::from(biases[head * slots + age]) } else { 0.0 };
                    let a: Vec<f64> =
                        ages.clone().map(|age| (dot(age) + extra(age)) * f64::from(scale[head])).collect();
                    let max = a.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = a.iter().map(|a| (a - max).exp()).sum();
                    for d in 0..dim {
                        let y: f64 = ages.clone().map(|age| (a[age] - max).exp() * f64::from(values[at(age, d)])).sum();
                        want[head * dim + d] = (y / sum) as f32;
                    }
                }
                // Rounding of the scores, which reach some tens, passes through the exponential.
                let diff = max_diff(&y, &want);
                assert!(diff < 3e-5, "{level} {heads}x{dim}, {steps} of {slots}, bias {with_bias}: off by {diff}");
            }
        }
    }
}

#[test]
fn nan_stays_in_its_head() {
    let mut rng = Rng::new(62);
    let sizes = Sizes { heads: 3, dim: 8, slots: 20 };
    let (mut keys, values) = (rng.vec(11 * 24), rng.vec(11 * 24));
    keys[4 * 24 + 9] = f32::NAN;
    let (k, v) = filled(sizes, &keys, &values, 11);
    for level in levels() {
        let query = Query { sizes, q: &keys[..24], k: &k, v: &v, filled: 11, scale: &[1.0; 3], bias: None };
        let mut y = [0.0; 24];
        attend(&Cx::at(level, 1), &query, &mut vec![0.0; sizes.scratch_len()], &mut y);
        for (i, y) in y.iter().enumerate() {
            assert_eq!(y.is_nan(), i / 8 == 1, "{level} at {i}");
        }
    }
}

#[test]
fn a_key_is_read_back() {
    let sizes = Sizes { heads: 2, dim: 3, slots: 5 };
    let keys: Vec<f32> = (0..30).map(|v| v as f32).collect();
    let (k, _) = filled(sizes, &keys, &keys, 5);
    assert_eq!(sizes.key(&k, 3).collect::<Vec<_>>(), keys[18..24]);
}

#[test]
#[should_panic(expected = "sizes that fit in memory")]
fn sizes_whose_product_wraps_are_refused() {
    let sizes = Sizes { heads: 16, dim: 1 << 60, slots: 1 };
    let query = Query { sizes, q: &[], k: &[], v: &[], filled: 1, scale: &[1.0; 16], bias: None };
    attend(&Cx::at(levels()[0], 1), &query, &mut vec![0.0; 16 * 16], &mut []);
}
