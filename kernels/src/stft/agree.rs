//! Against the sum that defines the transform, and back again.
#![cfg(test)]

use super::*;
use crate::testing::{Rng, max_diff};

#[test]
fn a_frame_is_the_defining_sum() {
    let mut rng = Rng::new(31);
    for n in [2, 4, 10, 320, 512] {
        let stft = Stft::new(n);
        let (x, mut work) = (rng.vec(n), vec![f32::NAN; stft.work_len()]);
        let mut got = vec![f32::NAN; 2 * stft.bins()];
        stft.analyse(&x, &mut got, &mut work);
        let want: Vec<f32> = (0..stft.bins())
            .flat_map(|k| {
                let mut sum = (0.0, 0.0);
                for (i, x) in x.iter().enumerate() {
                    let window = (0.5 - 0.5 * (std::f64::consts::TAU * i as f64 / n as f64).cos()).sqrt();
                    let angle = -std::f64::consts::TAU * ((i * k) % n) as f64 / n as f64;
                    sum.0 += f64::from(*x) * window * angle.cos();
                    sum.1 += f64::from(*x) * window * angle.sin();
                }
                [sum.0 as f32, sum.1 as f32]
            })
            .collect();
        // The sums grow with the root of n; the transform errs by a few ulp of them.
        assert!(max_diff(&got, &want) < 1e-6 * (n as f32).sqrt(), "n {n}: off by {}", max_diff(&got, &want));
    }
}

#[test]
fn forth_and_back_overlaps_to_the_samples() {
    let mut rng = Rng::new(32);
    for n in [2, 6, 320] {
        let stft = Stft::new(n);
        let hop = n / 2;
        let (x, mut work) = (rng.vec(hop * 9), vec![f32::NAN; stft.work_len()]);
        let (mut sum, mut spectrum, mut y) = (vec![0.0; x.len()], vec![0.0; 2 * stft.bins()], vec![0.0; n]);
        for at in (0..=x.len() - n).step_by(hop) {
            stft.analyse(&x[at..at + n], &mut spectrum, &mut work);
            stft.synthesise(&mut spectrum, &mut y, &mut work);
            sum[at..at + n].iter_mut().zip(&y).for_each(|(s, y)| *s += y);
        }
        // The first and the last half frame have one share only.
        let inner = hop..x.len() - hop;
        assert!(max_diff(&sum[inner.clone()], &x[inner]) < 3e-6);
    }
}

#[test]
fn low_delay_frames_overlap_to_the_samples() {
    let mut rng = Rng::new(33);
    for (n, hop) in [(2, 1), (8, 3), (10, 5), (512, 160)] {
        let stft = Stft::low_delay(n, hop);
        assert_eq!(stft.out_len(), 2 * hop);
        let (x, mut work) = (rng.vec(n + hop * 9), vec![f32::NAN; stft.work_len()]);
        let (mut sum, mut spectrum, mut y) = (vec![0.0; x.len()], vec![0.0; 2 * stft.bins()], vec![0.0; 2 * hop]);
        let mut end = n;
        while end <= x.len() {
            stft.analyse(&x[end - n..end], &mut spectrum, &mut work);
            stft.synthesise(&mut spectrum, &mut y, &mut work);
            sum[end - 2 * hop..end].iter_mut().zip(&y).for_each(|(s, y)| *s += y);
            end += hop;
        }
        // The first and the last hop have one share only.
        let inner = n - hop..n + hop * 8;
        assert!(max_diff(&sum[inner.clone()], &x[inner]) < 5e-6, "{n}, {hop}");
    }
}

#[test]
fn products_with_the_waves_are_the_transforms() {
    let mut rng = Rng::new(34);
    for stft in [Stft::new(2), Stft::new(10), Stft::low_delay(8, 3), Stft::low_delay(512, 160)] {
        let product = |w: &[f32], x: &[f32]| -> Vec<f32> {
            w.chunks_exact(x.len())
                .map(|w| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32)
                .collect()
        };
        let (n, mut work) = (stft.len(), vec![f32::NAN; stft.work_len()]);
        let (x, mut want) = (rng.vec(n), vec![f32::NAN; 2 * stft.bins()]);
        stft.analyse(&x, &mut want, &mut work);
        let off = max_diff(&product(&stft.forward_weights(), &x), &want);
        assert!(off < 1e-6 * (n as f32).sqrt(), "{n} samples, forth: off by {off}");
        let (mut spectrum, mut want) = (rng.vec(2 * stft.bins()), vec![f32::NAN; stft.out_len()]);
        let got = product(&stft.inverse_weights(), &spectrum);
        stft.synthesise(&mut spectrum, &mut want, &mut work);
        let off = max_diff(&got, &want);
        assert!(off < 2e-6, "{n} samples, back: off by {off}");
    }
}
