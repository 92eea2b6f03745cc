//! HiPPO (Gu et al. 2020, arXiv 2008.07669): systems whose state is the best polynomial (or Fourier) approximation of the
//! input so far, and the starts of S4 and S4D layers that are made from them (Gu et al. 2022, arXiv 2206.12037 and
//! 2206.11893).
//!
//! A measure says which part of the past counts: all of it, evenly ([`Measure::LegS`]), or the last unit of time
//! ([`Measure::LegT`], [`Measure::Fourier`]). Its system is `x'(t) = A x(t) + B u(t)` in units of half the remembered span;
//! for LegS `x'(t) = (A x + B u) / t`, although layers use its A and B without the 1/t.

use crate::dense;
use num_complex::Complex64;
use std::f64::consts::PI;

/// Which part of the past is remembered, and in which functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Everything so far, evenly, in Legendre polynomials.
    LegS,
    /// The last unit of time, in Legendre polynomials.
    LegT,
    /// The last unit of time, in sines and cosines.
    Fourier,
}

/// A diagonal start of a layer (S4D, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diagonal {
    /// The diagonal part of [`Measure::LegS`].
    LegS,
    /// -1/2 + i π n.
    Lin,
    /// -1/2 + i N/π (N/(2n+1) - 1), N the full state size.
    Inv,
    /// -(n+1).
    Real,
}

/// Start of a layer in diagonal (plus low rank) form: of each conjugate pair the half with the negative imaginary part.
#[derive(Clone, Debug)]
pub struct Start {
    /// Eigenvalues, N/2; the state matrix is `diag(a) - Σ_r p_r p_r*`.
    pub a: Vec<Complex64>,
    /// Input weights, N/2.
    pub b: Vec<Complex64>,
    /// Correction, one vector of N/2 per rank; empty for a diagonal start.
    pub p: Vec<Vec<Complex64>>,
}

impl Measure {
    /// The system's A, n × n row-major, and B.
    pub fn transition(self, n: usize) -> (Vec<f64>, Vec<f64>) {
        let root = |i: usize| ((2 * i + 1) as f64).sqrt();
        type Entries = Box<dyn Fn(usize, usize) -> f64>;
        let (a, b): (Entries, Vec<f64>) = match self {
            Self::LegS => (
                Box::new(move |i, j| match i.cmp(&j) {
                    std::cmp::Ordering::Greater => -root(i) * root(j),
                    std::cmp::Ordering::Equal => -((i + 1) as f64),
                    std::cmp::Ordering::Less => 0.0,
                }),
                (0..n).map(root).collect(),
            ),
            Self::LegT => (
                Box::new(move |i, j| {
                    let sign = if i < j && (j - i) % 2 == 1 { -1.0 } else { 1.0 };
                    -0.5 * sign * root(i) * root(j)
                }),
                (0..n).map(|i| 0.5 * root(i)).collect(),
            ),
            Self::Fourier => {
                let b: Vec<f64> = (0..n).map(fourier_ends).collect();
                let ends = b.clone();
                (
                    Box::new(move |i, j| {
                        // Cosine 2k and sine 2k+1 of frequency k turn into each other.
                        let turn = match (i, j) {
                            (i, j) if i + 1 == j && i % 2 == 0 => -PI * (i / 2) as f64,
                            (i, j) if j + 1 == i && j % 2 == 0 => PI * (j / 2) as f64,
                            _ => 0.0,
                        };
                        turn - ends[i] * ends[j]
                    }),
                    b,
                )
            }
        };
        ((0..n * n).map(|k| a(k / n, k % n)).collect(), b)
    }

    /// The vectors `p_r` (n values each) for which `A + Σ p_r p_rᵀ` is normal.
    pub fn correction(self, n: usize) -> Vec<Vec<f64>> {
        match self {
            Self::LegS => vec![(0..n).map(|i| (i as f64 + 0.5).sqrt()).collect()],
            Self::LegT => [1, 0]
                .map(|parity| (0..n).map(|i| if i % 2 == parity { (i as f64 + 0.5).sqrt() } else { 0.0 }).collect())
                .into(),
            Self::Fourier => vec![(0..n).map(fourier_ends).collect()],
        }
    }

    /// The start of an S4 layer of full state size `n`: the system in the basis in which its normal part is diagonal. The
    /// phases of the basis are free; they are chosen so that B is real (upstream takes those of its eigenvalue routine
    /// and then holds the imaginary parts of B within ±2).
    ///
    /// # Panics
    /// `n` is odd.
    pub fn start(self, n: usize) -> Start {
        assert!(n.is_multiple_of(2), "hippo: expected an even state size, got {n}");
        let (mut normal, b) = self.transition(n);
        let p = self.correction(n);
        for v in &p {
            (0..n * n).for_each(|k| normal[k] += v[k / n] * v[k % n]);
        }
        // normal = re I + skew: -i skew is Hermitian, its eigenvalues are the imaginary parts.
        let re = (0..n).map(|i| normal[i * n + i]).sum::<f64>() / n as f64;
        let skew = |i: usize, j: usize| (normal[i * n + j] - normal[j * n + i]) / 2.0;
        let hermitian = (0..n * n).map(|k| Complex64::new(0.0, -skew(k / n, k % n))).collect();
        let (values, mut v) = dense::hermitian_eigen(hermitian, n);
        let half = n / 2;
        if half > 0 && values[half - 1].abs() < 1e-9 * values[0].abs().max(1.0) {
            // Fourier's frequency 0 is there twice, on the first two coordinates: the pair is made conjugate.
            for i in 0..n {
                v[i * n + half - 1] = match i {
                    0 => Complex64::new(0.5f64.sqrt(), 0.0),
                    1 => Complex64::new(0.0, 0.5f64.sqrt()),
                    _ => Complex64::ZERO,
                };
            }
        }
        let map = |x: &[f64]| -> Vec<Complex64> {
            (0..half).map(|k| (0..n).map(|i| v[i * n + k].conj() * x[i]).sum()).collect()
        };
        let (b, p): (Vec<Complex64>, Vec<Vec<Complex64>>) = (map(&b), p.iter().map(|p| map(p)).collect());
        let phase = |k: usize| if b[k].norm() > 0.0 { b[k].conj() / b[k].norm() } else { Complex64::ONE };
        Start {
            a: values[..half].iter().map(|im| Complex64::new(re, *im)).collect(),
            p: p.iter().map(|p| p.iter().enumerate().map(|(k, z)| z * phase(k)).collect()).collect(),
            b: b.iter().map(|z| z.norm().into()).collect(),
        }
    }

    /// The remembered functions' values at `s` in 0..=1 of the remembered span (0 its oldest end, 1 now), n of them: the
    /// input there is about `Σ_i x_i g_i(s)`.
    pub fn basis(self, n: usize, s: f64) -> Vec<f64> {
        match self {
            Self::LegS | Self::LegT => {
                // P_{k+1} = ((2k+1) z P_k - k P_{k-1}) / (k+1)
                let (z, mut before, mut now) = (2.0 * s - 1.0, 0.0, 1.0);
                (0..n)
                    .map(|k| {
                        let value = now * ((2 * k + 1) as f64).sqrt();
                        let next = ((2 * k + 1) as f64 * z * now - k as f64 * before) / (k + 1) as f64;
                        (before, now) = (now, next);
                        value
                    })
                    .collect()
            }
            Self::Fourier => (0..n)
                .map(|i| {
                    let angle = 2.0 * PI * (i / 2) as f64 * (1.0 - s);
                    match i {
                        0 => 1.0,
                        _ if i % 2 == 0 => 2f64.sqrt() * angle.cos(),
                        _ => 2f64.sqrt() * angle.sin(),
                    }
                })
                .collect(),
        }
    }
}

/// The Fourier functions' values where the remembered span ends, which are also those where it begins.
fn fourier_ends(i: usize) -> f64 {
    match i {
        0 => 1.0,
        _ if i.is_multiple_of(2) => 2f64.sqrt(),
        _ => 0.0,
    }
}

impl Diagonal {
    /// The start of an S4D layer of full state size `n`.
    ///
    /// # Panics
    /// `n` is odd.
    pub fn start(self, n: usize) -> Start {
        if self == Self::LegS {
            return Start { p: Vec::new(), ..Measure::LegS.start(n) };
        }
        assert!(n.is_multiple_of(2), "hippo: expected an even state size, got {n}");
        let full = n as f64;
        let a = (0..n / 2).map(|k| match (self, k as f64) {
            (Self::Real, k) => Complex64::new(-(k + 1.0), 0.0),
            (Self::Inv, k) => Complex64::new(-0.5, -full / PI * (full / (2.0 * k + 1.0) - 1.0)),
            (_, k) => Complex64::new(-0.5, -PI * k),
        });
        Start { a: a.collect(), b: vec![Complex64::ONE; n / 2], p: Vec::new() }
    }
}

/// A signal remembered as it comes in: n coefficients from which its past can be drawn again.
pub struct Memory {
    measure: Measure,
    n: usize,
    /// A and B; for the sliding measures already discretised.
    a: Vec<f64>,
    b: Vec<f64>,
    x: Vec<f64>,
    old: Vec<f64>,
    steps: u64,
}

impl Memory {
    /// A memory of `n` coefficients. `window`: samples that make the remembered span of a sliding measure; LegS, which
    /// remembers everything, has no use for it.
    ///
    /// # Panics
    /// `window` is not above 0 where it is needed.
    pub fn new(measure: Measure, n: usize, window: f64) -> Self {
        let (mut a, mut b) = measure.transition(n);
        if measure != Measure::LegS {
            assert!(window > 0.0, "hippo: expected a window above 0 samples, got {window}");
            // A and B of both sliding measures are for a span of 2.
            let dt = 2.0 / window;
            // (I - dt/2 A)⁻¹ [I + dt/2 A | dt B]
            let mut left = dense::identity(n);
            let mut right = vec![0.0; n * (n + 1)];
            for i in 0..n {
                for j in 0..n {
                    left[i * n + j] -= dt / 2.0 * a[i * n + j];
                    right[i * (n + 1) + j] = dt / 2.0 * a[i * n + j] + f64::from(u8::from(i == j));
                }
                right[i * (n + 1) + n] = dt * b[i];
            }
            assert!(dense::solve(&mut left, n, &mut right, n + 1), "hippo: a stable system can be discretised");
            for i in 0..n {
                a[i * n..][..n].copy_from_slice(&right[i * (n + 1)..][..n]);
                b[i] = right[i * (n + 1) + n];
            }
        }
        Self { measure, n, a, b, x: vec![0.0; n], old: vec![0.0; n], steps: 0 }
    }

    /// Takes one sample in.
    pub fn push(&mut self, u: f64) {
        self.steps += 1;
        let n = self.n;
        if self.measure == Measure::LegS {
            // Bilinear with A/k and B/k: (I - A/2k) x = (I + A/2k) x + B/k u, solved from the top, A being triangular.
            // The first sample fills the memory: what is remembered is then that constant.
            let k = self.steps as f64;
            if self.steps == 1 {
                self.x.fill(0.0);
                if let Some(x) = self.x.first_mut() {
                    *x = u;
                }
                return;
            }
            // Σ_{j<i} √(2j+1) (x_j + new_j) grows along with i.
            let mut sum = 0.0;
            for i in 0..n {
                let root = ((2 * i + 1) as f64).sqrt();
                let (old, own) = (self.x[i], (i + 1) as f64 / (2.0 * k));
                let new = ((1.0 - own) * old - root * sum / (2.0 * k) + root * u / k) / (1.0 + own);
                self.x[i] = new;
                sum += root * (old + new);
            }
            return;
        }
        std::mem::swap(&mut self.x, &mut self.old);
        for (i, x) in self.x.iter_mut().enumerate() {
            *x = self.b[i] * u + self.a[i * n..][..n].iter().zip(&self.old).map(|(a, x)| a * x).sum::<f64>();
        }
    }

    /// The coefficients.
    pub fn coefficients(&self) -> &[f64] {
        &self.x
    }

    /// What the memory holds at `s` in 0..=1 of the remembered span: 0 its oldest end, 1 now.
    pub fn recall(&self, s: f64) -> f64 {
        self.measure.basis(self.n, s).iter().zip(&self.x).map(|(g, x)| g * x).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Measure; 3] = [Measure::LegS, Measure::LegT, Measure::Fourier];

    #[test]
    fn corrected_matrices_are_a_multiple_of_one_plus_a_turn() {
        for measure in ALL {
            for n in [2, 8, 64] {
                let (mut a, _) = measure.transition(n);
                for p in measure.correction(n) {
                    (0..n * n).for_each(|k| a[k] += p[k / n] * p[k % n]);
                }
                for i in 0..n {
                    assert!((a[i * n + i] - a[0]).abs() < 1e-12, "{measure:?}");
                    for j in 0..i {
                        assert!((a[i * n + j] + a[j * n + i]).abs() < 1e-12 * n as f64, "{measure:?} {i} {j}");
                    }
                }
            }
        }
    }

    /// `Bᵀ (s - A)⁻¹ B` of the real system and of the diagonal one with its correction are the same number.
    #[test]
    fn starts_are_the_same_system_in_another_basis() {
        for measure in ALL {
            let n = 6;
            let start = measure.start(n);
            let (a, b) = measure.transition(n);
            let mut left: Vec<f64> = (0..n * n).map(|k| f64::from(u8::from(k / n == k % n)) * 1.5 - a[k]).collect();
            let mut x = b.clone();
            assert!(dense::solve(&mut left, n, &mut x, 1));
            let want: f64 = b.iter().zip(&x).map(|(b, x)| b * x).sum();
            // (s - diag(a) + P P*)⁻¹ b over both halves of the pairs, real coordinates by conjugate symmetry: with
            // D = 1/(s - a), b*D b - b*D P (1 + P*D P)⁻¹ P*D b.
            let both = |f: &dyn Fn(usize) -> Complex64| (0..n / 2).map(|k| 2.0 * f(k).re).sum::<f64>();
            let d = |k: usize| 1.0 / (1.5 - start.a[k]);
            let r = start.p.len();
            let mut inner: Vec<f64> = (0..r * r)
                .map(|i| {
                    let (p, q) = (&start.p[i / r], &start.p[i % r]);
                    both(&|k| p[k].conj() * d(k) * q[k]) + f64::from(u8::from(i / r == i % r))
                })
                .collect();
            let mut y: Vec<f64> = start.p.iter().map(|p| both(&|k| p[k].conj() * d(k) * start.b[k])).collect();
            assert!(dense::solve(&mut inner, r, &mut y, 1));
            let back: f64 = start.p.iter().zip(&y).map(|(p, y)| y * both(&|k| start.b[k].conj() * d(k) * p[k])).sum();
            let got = both(&|k| start.b[k].conj() * d(k) * start.b[k]) - back;
            assert!((got - want).abs() < 1e-10 * want.abs(), "{measure:?}: expected {want}, got {got}");
        }
    }

    #[test]
    fn starts_have_the_published_eigenvalues() {
        for n in [4, 16, 64] {
            let legs = Measure::LegS.start(n);
            assert!(legs.a.iter().all(|a| (a.re + 0.5).abs() < 1e-9 && a.im < 0.0));
            assert!(legs.a.is_sorted_by(|a, b| a.im <= b.im), "ascending");
            // S4D paper, section 4.3: the outermost frequency of LegS grows as N²/π.
            let want = (n * n) as f64 / PI;
            assert!((legs.a[0].im + want).abs() < 0.6 * want, "{n}: {}", legs.a[0].im);
            let fourier = Measure::Fourier.start(n);
            for (k, a) in fourier.a.iter().rev().enumerate() {
                assert!((a - Complex64::new(0.0, -PI * k as f64)).norm() < 1e-9, "{n} {k}: {a}");
            }
        }
        assert_eq!(Diagonal::Lin.start(8).a[3], Complex64::new(-0.5, -3.0 * PI));
        assert!((Diagonal::Inv.start(8).a[1].im + 8.0 / PI * (8.0 / 3.0 - 1.0)).abs() < 1e-12);
        assert_eq!(Diagonal::Real.start(4).a[1], Complex64::new(-2.0, 0.0));
        assert!(Diagonal::LegS.start(8).p.is_empty());
    }

    fn smooth(t: f64) -> f64 {
        (3.0 * t).sin() + 0.5 * (7.0 * t + 1.0).cos() + 0.3 * t
    }

    #[test]
    fn legs_holds_the_legendre_coefficients_of_the_whole_past() {
        let (n, samples) = (12, 20_000);
        let mut memory = Memory::new(Measure::LegS, n, 0.0);
        for k in 0..samples {
            memory.push(smooth((k as f64 + 0.5) / samples as f64));
        }
        // x_i = ∫ f(s) √(2i+1) P_i(2s - 1) ds, by the midpoint rule.
        let mut want = vec![0.0; n];
        for k in 0..samples {
            let s = (k as f64 + 0.5) / samples as f64;
            for (w, g) in want.iter_mut().zip(Measure::LegS.basis(n, s)) {
                *w += smooth(s) * g / samples as f64;
            }
        }
        for (i, (got, want)) in memory.coefficients().iter().zip(&want).enumerate() {
            assert!((got - want).abs() < 2e-3, "{i}: expected {want}, got {got}");
        }
        // A constant is held exactly, however long it lasts.
        let mut memory = Memory::new(Measure::LegS, n, 0.0);
        (0..1000).for_each(|_| memory.push(0.75));
        assert!((0..=10).all(|i| (memory.recall(f64::from(i) / 10.0) - 0.75).abs() < 1e-12));
    }

    /// Largest error of a recalled signal over the middle of the span.
    fn error(measure: Measure, n: usize) -> f64 {
        let (window, past) = (4000.0, if measure == Measure::LegS { 4000 } else { 12_000 });
        let mut memory = Memory::new(measure, n, window);
        // Periodic in the window, as Fourier's functions are.
        let signal = |k: f64| {
            let t = 2.0 * PI * k / window;
            t.sin() + 0.5 * (3.0 * t + 1.0).cos() + 0.2 * (5.0 * t).sin()
        };
        (0..past).for_each(|k| memory.push(signal(f64::from(k) + 0.5)));
        (5..=95)
            .map(|i| {
                let s = f64::from(i) / 100.0;
                (memory.recall(s) - signal(f64::from(past) - window * (1.0 - s))).abs()
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn more_coefficients_recall_a_smooth_signal_better() {
        for measure in ALL {
            let errors = [4, 8, 16, 32].map(|n| error(measure, n));
            assert!(errors.is_sorted_by(|a, b| a >= b || *b < 0.02), "{measure:?}: {errors:?}");
            assert!(errors[0] > 0.3 && errors[3] < 0.02, "{measure:?}: {errors:?}");
        }
    }
}
