//! aTENNuate: the stream, from its first sample to its last, against the offline network written as plain sums in f64.

use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Model, Row, Scratch, Signal};
use ssm_tests::Rng;
use ssm_tests::fabricate::Fabricated;
use ssm_tests::fabricate::attenuate::random;

/// Frames of a level: (frames, channels).
type Frames = Vec<Vec<f64>>;

struct Offline<'a>(&'a Fabricated);

impl Offline<'_> {
    fn get(&self, name: &str) -> (&[usize], Vec<f64>) {
        let (shape, values) = &self.0.tensors[name];
        (shape, values.iter().map(|v| f64::from(*v)).collect())
    }

    fn has(&self, name: &str) -> bool {
        self.0.tensors.contains_key(name)
    }

    /// `y_t = C Re Σ_k λ^k Δ B x_{t-k}`: the layer as a sum over the whole past.
    fn ssm(&self, at: &str, x: &Frames) -> Frames {
        let (dt, a) = (self.get(&format!("{at}log_dt")).1, self.get(&format!("{at}A")).1);
        let (b, c) = (self.get(&format!("{at}B")).1, self.get(&format!("{at}C")).1);
        let (n, channels) = (dt.len(), x.first().map_or(1, Vec::len));
        let mut y = vec![vec![0.0; channels]; x.len()];
        for i in 0..n {
            let dt = dt[i].exp();
            let (decay, angle) = (-dt * a[2 * i].exp().ln_1p(), dt * a[2 * i + 1]);
            let u: Vec<f64> = x
                .iter()
                .map(|x| dt * x.iter().enumerate().map(|(k, x)| b[i * channels + k] * x).sum::<f64>())
                .collect();
            for t in 0..x.len() {
                let past = |k: usize| (decay * k as f64).exp() * (angle * k as f64).cos() * u[t - k];
                let re: f64 = (0..=t).map(past).sum();
                (0..channels).for_each(|ch| y[t][ch] += c[ch * n + i] * re);
            }
        }
        y
    }

    fn block(&self, at: &str, x: &Frames, active: bool) -> Frames {
        let channels = x.first().map_or(1, Vec::len);
        let (mut x, mut part) = (x.clone(), 0);
        if self.has(&format!("{at}0.weight")) {
            let (w, bias) = (self.get(&format!("{at}0.weight")).1, self.get(&format!("{at}0.bias")).1);
            let value = |t: isize, c: usize| usize::try_from(t).ok().and_then(|t| x.get(t)).map_or(0.0, |f| f[c]);
            let frame = |t: usize| {
                let tap = |c: usize, j: usize| w[3 * c + j] * value(t as isize + j as isize - 1, c);
                (0..channels).map(|c| bias[c] + (0..3).map(|j| tap(c, j)).sum::<f64>()).collect()
            };
            x = (0..x.len()).map(frame).collect();
            part = 1;
        }
        let mut y = self.ssm(&format!("{at}{part}."), &x);
        let norm = format!("{at}{}.layer_norm.", part + 1);
        for frame in y.iter_mut().filter(|_| active) {
            if self.has(&format!("{norm}weight")) {
                let (g, b) = (self.get(&format!("{norm}weight")).1, self.get(&format!("{norm}bias")).1);
                let mean = frame.iter().sum::<f64>() / channels as f64;
                let var = frame.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / channels as f64;
                for (c, v) in frame.iter_mut().enumerate() {
                    *v = (*v - mean) / (var + 1e-5).sqrt() * g[c] + b[c];
                }
            }
            frame.iter_mut().for_each(|v| *v /= 1.0 + (-*v).exp());
        }
        y
    }

    fn run(&self, samples: &[f32], hop: usize) -> Vec<f64> {
        let padded = samples.len().next_multiple_of(hop);
        let mut x: Frames = (0..padded).map(|t| vec![samples.get(t).map_or(0.0, |v| f64::from(*v))]).collect();
        let mut skips = vec![];
        for i in (0..).take_while(|i| self.has(&format!("down_ssms.{i}.1.weight"))) {
            skips.push(x.clone());
            x = self.block(&format!("down_ssms.{i}.0."), &x, true);
            let (shape, w) = self.get(&format!("down_ssms.{i}.1.weight"));
            let &[c, d, r] = shape else { panic!("a weight of three sides") };
            let sum = |f: &[Vec<f64>], o: usize| -> f64 {
                (0..c * r).map(|k| f[k % r][k / r] * w[(k / r * d + o) * r + k % r]).sum()
            };
            x = x.chunks(r).map(|f| (0..d).map(|o| sum(f, o)).collect()).collect();
        }
        for i in 0..3 {
            let at = format!("hid_ssms.{i}.");
            if self.has(&format!("{at}0.weight")) || self.has(&format!("{at}0.log_dt")) {
                x = self.block(&at, &x, true);
            }
        }
        for (i, skip) in skips.iter().enumerate().rev() {
            let (shape, w) = self.get(&format!("up_ssms.{i}.0.weight"));
            let &[c, d, r] = shape else { panic!("a weight of three sides") };
            let frame = |t: usize| -> Vec<f64> {
                let sum = |o: usize| (0..c).map(|k| x[t / r][k] * w[(k * d + o) * r + t % r]).sum::<f64>();
                (0..d).map(|o| sum(o) + skip[t][o]).collect()
            };
            let y: Frames = (0..x.len() * r).map(frame).collect();
            x = self.block(&format!("up_ssms.{i}.1."), &y, true);
        }
        let last = (0..).take_while(|i| self.has(&format!("last_ssms.{i}.0.log_dt"))).count();
        for i in 0..last {
            x = self.block(&format!("last_ssms.{i}."), &x, i + 1 < last);
        }
        x.iter().take(samples.len()).map(|f| f[0]).collect()
    }
}

/// A clip through the stream form, cut at random, ended by a drain.
fn stream(model: &dyn Model, level: CpuLevel, x: &[f32], rng: &mut Rng) -> Vec<f32> {
    let Signal::Samples { hop, .. } = model.info().input else { panic!("a model of samples") };
    let hops = x.len() / hop;
    let (cx, mut scratch) = (Cx::at(level, 1), Scratch::default());
    let (mut rows, mut y, mut at) = ([Row::new(model, hops.max(model.drain_len().div_ceil(hop)))], vec![], 0);
    for n in rng.cuts(hops) {
        rows[0].x[..n * hop].copy_from_slice(&x[at * hop..(at + n) * hop]);
        model.forward(&cx, &mut rows, n, &mut scratch);
        y.extend_from_slice(&rows[0].y[..n * hop]);
        at += n;
    }
    y.drain(..model.info().delay.min(y.len()));
    let rest = &x[hops * hop..];
    rows[0].x[..rest.len()].copy_from_slice(rest);
    let n = model.drain(&cx, &mut rows[0], rest.len(), &mut scratch);
    y.extend_from_slice(&rows[0].y[..n]);
    y
}

#[test]
fn a_stream_equals_the_offline_network_to_its_last_sample() {
    for seed in 0..60 {
        let mut rng = Rng::new(7000 + seed);
        let f = random(&mut rng);
        let levels: Vec<CpuLevel> = CpuLevel::present().collect();
        let level = levels[seed as usize % levels.len()];
        let model = f.open(level).unwrap();
        let Signal::Samples { hop, .. } = model.info().input else { panic!("a model of samples") };
        for len in [0, 1, hop - 1, hop, hop + 1, rng.range(0, 3 * hop), rng.range(0, 400)] {
            let x = rng.normals(len, 0.3);
            let y = stream(&*model, level, &x, &mut rng);
            let want = Offline(&f).run(&x, hop);
            let what = format!("seed {seed}, {} at {level}, {len} samples", model.info().sizes);
            assert_eq!(y.len(), len, "{what}");
            let size = want.iter().fold(1f64, |m, v| m.max(v.abs()));
            let off = y.iter().zip(&want).fold(0.0, |m, (a, b)| f64::max(m, (f64::from(*a) - b).abs()));
            assert!(off <= 2e-4 * size, "{what}: off by {off}, largest {size}");
        }
    }
}
