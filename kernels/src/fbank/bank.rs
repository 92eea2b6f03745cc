use super::{Config, Mel};

/// Mel triangles over the bins of a transform, each only as long as it is above 0.
pub(super) struct Bank {
    triangles: Vec<Triangle>,
}

struct Triangle {
    first: usize,
    weights: Vec<f64>,
}

impl Bank {
    pub(super) fn new(c: &Config) -> Self {
        let mel = |f: f64| match c.mel {
            Mel::Kaldi => 1127.0 * (1.0 + f / 700.0).ln(),
            Mel::Htk => 2595.0 * (1.0 + f / 700.0).log10(),
        };
        let (low, high) = (mel(c.low), mel(c.high));
        // Edge i of bins + 2, where the triangle's sides are straight: in mel, or in Hz.
        let edge = |i: usize| {
            let m = low + (high - low) * i as f64 / (c.bins + 1) as f64;
            match c.mel {
                Mel::Kaldi => m,
                Mel::Htk => 700.0 * (10f64.powf(m / 2595.0) - 1.0),
            }
        };
        let place = |k: usize| {
            let f = k as f64 * c.sample_rate / c.fft as f64;
            if c.mel == Mel::Kaldi { mel(f) } else { f }
        };
        let ends = if c.mel == Mel::Kaldi { c.fft / 2 } else { c.fft / 2 + 1 };
        let triangle = |m: usize| {
            let (left, centre, right) = (edge(m), edge(m + 1), edge(m + 2));
            let weight = |k: usize| {
                let x = place(k);
                ((x - left) / (centre - left)).min((right - x) / (right - centre)).max(0.0)
            };
            let first = (0..ends).find(|k| weight(*k) > 0.0).unwrap_or(ends);
            Triangle { first, weights: (first..ends).map(weight).take_while(|w| *w > 0.0).collect() }
        };
        Self { triangles: (0..c.bins).map(triangle).collect() }
    }

    /// What lies under triangle `m`.
    pub(super) fn energy(&self, m: usize, spectrum: &[f64]) -> f64 {
        let t = &self.triangles[m];
        t.weights.iter().zip(&spectrum[t.first..]).map(|(w, s)| w * s).sum()
    }

    /// The bank as a matrix of `columns` bins a row.
    pub(super) fn dense(&self, columns: usize) -> Vec<f64> {
        let mut out = vec![0.0; self.triangles.len() * columns];
        for (row, t) in out.chunks_exact_mut(columns).zip(&self.triangles) {
            row[t.first..][..t.weights.len()].copy_from_slice(&t.weights);
        }
        out
    }
}
