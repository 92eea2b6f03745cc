//! The linear system inside S4 (Gu et al. 2022, arXiv 2111.00396) and S4D (arXiv 2206.11893): read under its published
//! names, discretised for any rate, and seen as a recurrence or as a convolution.
//!
//! Each of H features is a system of its own, `x'(t) = A x + B u`, `y = C x + D u`, with A diagonal, or diagonal minus a
//! product of low rank (`diag(Λ) - Σ_r P_r P_r*`). Of each pair of conjugate states one is stored, so
//! `y = 2 Re(C x) + D u`.
//!
//! The step of a system with low rank is upstream's "linear" one in other words: with the bilinear rule, `D = 1/(2/dt - Λ)`,
//! `E = 2/dt + Λ`, `Q = P̄` and `R = (1 + 2 Re(Q D Pᵀ))⁻¹ Q D`, it comes to `Ā = diag(D E) - Σ_r p_r t_rᵀ` over both halves
//! of the pairs, where `p_r = D P_r` and `t_r = Q_r + R_r E - Σ_s 2 Re(R_r P_sᵀ) Q_s`. Diagonalising Ā would save the
//! correction, but its eigenvectors are useless for HiPPO matrices: in LegS they have entries up to 2^(4N/3) (S4 paper,
//! Lemma 3.2).

use crate::checkpoint::Reader;
use crate::config::{bad, field, flag};
use crate::dense;
use crate::error::Error;
use num_complex::Complex64;
use serde_json::Value;
use ssm_kernels::s4d::{Coefficients, LANES, MAX_RANK, Part, Sizes, s4d};
use ssm_kernels::{Cx, Mat, MatMut};
use std::sync::{Arc, Mutex, PoisonError};

/// States of a feature whose C can be recovered, at most: it takes products of matrices of twice their size.
const MAX_PREPARED: usize = 256;
/// Multiply-adds to recover C at most: some minutes.
const MAX_WORK: u64 = 1 << 38;

/// How the continuous system becomes one of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disc {
    /// Input held between steps: exp(dt A), A⁻¹ (exp(dt A) - 1) B.
    Zoh,
    /// Trapezoid rule: (1 - dt A/2)⁻¹ (1 + dt A/2), (1 - dt A/2)⁻¹ dt B.
    Bilinear,
}

/// The function that makes a positive number of a stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transform {
    None,
    Exp,
    Relu,
    Sigmoid,
    Softplus,
}

impl Transform {
    fn of(self, x: f64) -> f64 {
        match self {
            Self::None => x,
            Self::Exp => x.exp(),
            // Upstream keeps away from 0.
            Self::Relu => x.max(0.0) + 1e-4,
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        }
    }
}

/// What tensors do not say about a system; names as upstream's constructor has them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) disc: Disc,
    pub(crate) dt_transform: Transform,
    pub(crate) dt_fast: bool,
    pub(crate) real_transform: Transform,
    pub(crate) imag_transform: Transform,
    pub(crate) bandlimit: Option<f64>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            disc: Disc::Zoh,
            dt_transform: Transform::Exp,
            dt_fast: false,
            real_transform: Transform::Exp,
            imag_transform: Transform::None,
            bandlimit: None,
        }
    }
}

impl Rules {
    pub(crate) fn read(config: Option<&Value>, file: &str) -> Result<Self, Error> {
        let default = Self::default();
        let transform = |name: &str, default: Transform| match field(config, name) {
            None => Ok(default),
            Some(v) => match v.as_str() {
                Some("none") => Ok(Transform::None),
                Some("exp") => Ok(Transform::Exp),
                Some("relu") => Ok(Transform::Relu),
                Some("sigmoid") => Ok(Transform::Sigmoid),
                Some("softplus") => Ok(Transform::Softplus),
                _ => Err(bad(file, name, "none, exp, relu, sigmoid or softplus", v)),
            },
        };
        let disc = match field(config, "disc") {
            None => default.disc,
            Some(v) => match v.as_str() {
                Some("zoh") => Disc::Zoh,
                Some("bilinear") => Disc::Bilinear,
                Some("dss") => {
                    return Err(bad(
                        file,
                        "disc",
                        "zoh or bilinear",
                        "\"dss\", whose kernel depends on the length of the whole clip and has no steps",
                    ));
                }
                _ => return Err(bad(file, "disc", "zoh or bilinear", v)),
            },
        };
        let bandlimit = match field(config, "bandlimit") {
            None => None,
            Some(v) => Some(v.as_f64().ok_or_else(|| bad(file, "bandlimit", "a number", v))?),
        };
        Ok(Self {
            disc,
            dt_transform: transform("dt_transform", default.dt_transform)?,
            dt_fast: flag(config, "dt_fast", false, file)?,
            real_transform: transform("real_transform", default.real_transform)?,
            imag_transform: transform("imag_transform", default.imag_transform)?,
            bandlimit,
        })
    }
}

/// A system and its discretisations.
pub(crate) struct Core {
    sizes: Sizes,
    disc: Disc,
    dt: Vec<f64>,      // (H, N)
    a: Vec<Complex64>, // (H, N), Λ where there is a correction
    b: Vec<Complex64>, // (H, N)
    p: Vec<Complex64>, // (rank, H, N)
    c: Vec<Complex64>, // (channels, H, N)
    d: Vec<f32>,       // (channels, H)
    /// Coefficients at the trained rate.
    trained: Arc<Coefficients>,
    /// Coefficients at other rates that were asked for, latest last.
    others: Mutex<Vec<(u32, Arc<Coefficients>)>>,
}

/// Rates whose coefficients are kept.
const RATES: usize = 8;

/// A system with steps, in f64.
pub(crate) struct Discrete {
    pub(crate) a: Vec<Complex64>, // (H, N)
    pub(crate) b: Vec<Complex64>, // (H, N)
    pub(crate) p: Vec<Complex64>, // (rank, H, N)
    pub(crate) t: Vec<Complex64>, // (rank, H, N)
}

fn complex(v: &[f32]) -> Vec<Complex64> {
    v.chunks_exact(2).map(|z| Complex64::new(z[0].into(), z[1].into())).collect()
}

impl Core {
    /// Reads the V4 names: `D`, `kernel.{inv_dt, A_real, A_imag, B, C}`, and `kernel.{P, l_kernel}` for low rank.
    pub(crate) fn load(w: &Reader<'_>, rules: &Rules, file: &str) -> Result<Self, Error> {
        w.require(&["D", "kernel.C", "kernel.inv_dt", "kernel.A_real", "kernel.B"])?;
        let dims = |name: &str| w.shape(name).unwrap_or_default().to_vec();
        let (c_dims, dt_dims, a_dims) = (dims("kernel.C"), dims("kernel.inv_dt"), dims("kernel.A_real"));
        let real = !w.has("kernel.A_imag");
        if real && dims("kernel.C").len() == 4 {
            // C is complex, and so is A.
            w.require(&["kernel.A_imag"])?;
        }
        let last: &[usize] = if real { &[] } else { &[2] };
        let wrong = |name: &str, expected: &str, got: &[usize]| bad(file, name, expected, format!("{got:?}"));
        if c_dims.len() != 3 + last.len() || c_dims[3..] != *last {
            let expected = if real { "[channels, H, N]" } else { "[channels, H, N, 2]" };
            return Err(wrong("kernel.C", expected, &c_dims));
        }
        let (channels, h, n) = (c_dims[0], c_dims[1], c_dims[2]);
        if channels == 0 || h == 0 || n == 0 {
            return Err(wrong("kernel.C", "no empty axis", &c_dims));
        }
        let s = a_dims.first().copied().unwrap_or(0);
        if s == 0 || !h.is_multiple_of(s) {
            return Err(wrong("kernel.A_real", &format!("[n_ssm, {n}] with n_ssm a divisor of {h}"), &a_dims));
        }
        let d_dims = dims("D");
        if d_dims.first().is_some_and(|d| 2 * d == channels) {
            return Err(bad(
                file,
                "kernel.C",
                format!("{} channels, as D has", d_dims[0]),
                format!("{channels}: a bidirectional layer, which cannot run on a stream"),
            ));
        }
        let d = w.take("D", &[channels, h])?;
        let tied = dt_dims != [h, n];
        let stored = w.take("kernel.inv_dt", &[h, if tied { 1 } else { n }])?;
        let dt = (0..h * n).map(|k| {
            let v = f64::from(if tied { stored[k / n] } else { stored[k] });
            rules.dt_transform.of(if rules.dt_fast { v.sinh() } else { v })
        });
        let shape = |front: usize| [&[front, s, n][..], last].concat();
        let numbers = |v: Vec<f32>| -> Vec<Complex64> {
            if real { v.iter().map(|v| Complex64::from(f64::from(*v))).collect() } else { complex(&v) }
        };
        let a_real = w.take("kernel.A_real", &[s, n])?;
        let a_imag = if real { vec![0.0; s * n] } else { w.take("kernel.A_imag", &[s, n])? };
        let imag = |v: f32| if real { 0.0 } else { rules.imag_transform.of(v.into()) };
        let a: Vec<Complex64> = a_real
            .iter()
            .zip(&a_imag)
            .map(|(re, im)| Complex64::new(-rules.real_transform.of(f64::from(*re)), -imag(*im)))
            .collect();
        let b = numbers(w.take("kernel.B", &shape(1))?);
        let c = numbers(w.take("kernel.C", &c_dims)?);
        let p_dims = dims("kernel.P");
        let rank = p_dims.first().copied().unwrap_or(0);
        if rank > MAX_RANK || (w.has("kernel.P") && (rank == 0 || real)) {
            return Err(wrong("kernel.P", &format!("1 to {MAX_RANK} complex rows"), &p_dims));
        }
        let p = if rank > 0 { numbers(w.take("kernel.P", &shape(rank))?) } else { Vec::new() };
        let l_kernel = match w.take_optional("kernel.l_kernel", &[])? {
            Some(l) if rank > 0 => {
                let l = l.first().copied().unwrap_or(0.0);
                if !(0.0..16_777_216.0).contains(&l) || l.fract() != 0.0 {
                    return Err(bad(file, "kernel.l_kernel", "a length below 2^24", l));
                }
                if l > 0.0 && n > MAX_PREPARED {
                    return Err(bad(file, "kernel.C", format!("{MAX_PREPARED} states at most to recover"), n));
                }
                l as u64
            }
            None if rank > 0 => {
                // Without its length nobody knows whether C is C: taking it says that it is missing.
                w.take("kernel.l_kernel", &[])?;
                0
            }
            Some(l) if l.first().is_some_and(|l| *l > 0.0) => {
                // Only where there is a low rank C is prepared for a length.
                w.take("kernel.P", &shape(1))?;
                0
            }
            _ => 0,
        };
        // Feature h has row h mod S of what features share.
        let tile = |v: &[Complex64], front: usize| -> Vec<Complex64> {
            (0..front * h * n).map(|k| v[(k / (h * n) * s + k / n % h % s) * n + k % n]).collect()
        };
        let mut core = Self {
            sizes: Sizes { features: h, states: n, channels, rank },
            disc: if rank > 0 { Disc::Bilinear } else { rules.disc },
            dt: dt.collect(),
            a: tile(&a, 1),
            b: tile(&b, 1),
            p: tile(&p, rank),
            c,
            d,
            trained: Arc::new(Coefficients::pack(Sizes::default(), |_, _, _| (0.0, 0.0), |_, _| 0.0)),
            others: Mutex::new(Vec::with_capacity(RATES)),
        };
        if let Some(limit) = rules.bandlimit {
            for (k, c) in core.c.iter_mut().enumerate() {
                let k = k % (h * n);
                if core.dt[k] * core.a[k].im.abs() / (2.0 * std::f64::consts::PI) >= limit / 2.0 {
                    *c = Complex64::ZERO;
                }
            }
        }
        // Powers of matrices, by squaring: hours of them would fit in a small file.
        let products = 2 * u64::from(u64::BITS - l_kernel.leading_zeros());
        let work = (h as u64).saturating_mul((2 * n as u64).saturating_pow(3)).saturating_mul(products);
        if work > MAX_WORK {
            let expected = format!("{MAX_WORK} multiply-adds at most to recover C");
            return Err(bad(file, "kernel.l_kernel", expected, format!("{work} for {h} features of {n} states")));
        }
        if l_kernel > 0 && !core.recover_c(l_kernel) {
            return Err(bad(file, "kernel.C", "an output matrix that can be recovered from the stored one", "none"));
        }
        core.ready(file)
    }

    /// Reads the minimal module's names: `D`, `kernel.{C, log_dt, log_A_real, A_imag}`; B is 1, the other half of each
    /// pair is stored.
    pub(crate) fn load_minimal(w: &Reader<'_>, file: &str) -> Result<Self, Error> {
        let (h, n) = match w.shape("kernel.log_A_real") {
            Some(&[h, n]) if h > 0 && n > 0 => (h, n),
            other => return Err(bad(file, "kernel.log_A_real", "[H, N]", format!("{:?}", other.unwrap_or_default()))),
        };
        let d = w.take("D", &[h])?;
        let log_dt = w.take("kernel.log_dt", &[h])?;
        let re = w.take("kernel.log_A_real", &[h, n])?;
        let im = w.take("kernel.A_imag", &[h, n])?;
        let number = |re: f32, im: f32| Complex64::new(-f64::from(re).exp(), im.into());
        let core = Self {
            sizes: Sizes { features: h, states: n, channels: 1, rank: 0 },
            disc: Disc::Zoh,
            dt: (0..h * n).map(|k| f64::from(log_dt[k / n]).exp()).collect(),
            a: re.iter().zip(&im).map(|(re, im)| number(*re, *im)).collect(),
            b: vec![Complex64::ONE; h * n],
            p: Vec::new(),
            c: complex(&w.take("kernel.C", &[h, n, 2])?),
            d,
            trained: Arc::new(Coefficients::pack(Sizes::default(), |_, _, _| (0.0, 0.0), |_, _| 0.0)),
            others: Mutex::new(Vec::with_capacity(RATES)),
        };
        core.ready(file)
    }

    fn ready(mut self, file: &str) -> Result<Self, Error> {
        let discrete = self.discretise(1.0);
        let all = [&discrete.a, &discrete.b, &discrete.p, &discrete.t, &self.c];
        if all.iter().any(|v| v.iter().any(|z| !z.is_finite())) {
            return Err(bad(file, "kernel", "a system that can be discretised", "coefficients that are not finite"));
        }
        self.trained = Arc::new(self.pack(&discrete));
        Ok(self)
    }

    /// Sizes.
    pub(crate) fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The output matrix, (channels, H, N).
    pub(crate) fn c(&self) -> &[Complex64] {
        &self.c
    }

    /// The system with steps `rate` times as long as the trained ones.
    pub(crate) fn discretise(&self, rate: f64) -> Discrete {
        let Sizes { features: h, states: n, rank, .. } = self.sizes;
        let mut out = Discrete {
            a: vec![Complex64::ZERO; h * n],
            b: vec![Complex64::ZERO; h * n],
            p: vec![Complex64::ZERO; rank * h * n],
            t: vec![Complex64::ZERO; rank * h * n],
        };
        for k in 0..h * n {
            let (dt, a, b) = (self.dt[k] * rate, self.a[k], self.b[k]);
            let z = a * dt;
            (out.a[k], out.b[k]) = match self.disc {
                Disc::Zoh if z == Complex64::ZERO => (Complex64::ONE, b * dt),
                Disc::Zoh => (z.exp(), b * (exp_m1(z) / a)),
                Disc::Bilinear => {
                    let left = 1.0 / (1.0 - z / 2.0);
                    (left * (1.0 + z / 2.0), left * b * dt)
                }
            };
        }
        if rank == 0 {
            return out;
        }
        let at = |r: usize, f: usize, i: usize| (r * h + f) * n + i;
        let mut scaled = vec![Complex64::ZERO; rank * n];
        for f in 0..h {
            let dd = |i: usize| 1.0 / (2.0 / (self.dt[f * n + i] * rate) - self.a[f * n + i]);
            let e = |i: usize| 2.0 / (self.dt[f * n + i] * rate) + self.a[f * n + i];
            let p = |r: usize, i: usize| self.p[at(r, f, i)];
            let both = |g: &dyn Fn(usize) -> Complex64| (0..n).map(|i| 2.0 * g(i).re).sum::<f64>();
            // R = (1 + 2 Re(Q D Pᵀ))⁻¹ Q D, real and imaginary parts side by side.
            let mut left: Vec<f64> = (0..rank * rank)
                .map(|k| {
                    let (r, s) = (k / rank, k % rank);
                    both(&|i| p(r, i).conj() * dd(i) * p(s, i)) + f64::from(u8::from(r == s))
                })
                .collect();
            let mut right: Vec<f64> = (0..rank)
                .flat_map(|r| {
                    let qd: Vec<Complex64> = (0..n).map(|i| p(r, i).conj() * dd(i)).collect();
                    qd.iter().map(|z| z.re).chain(qd.iter().map(|z| z.im)).collect::<Vec<_>>()
                })
                .collect();
            if !dense::solve(&mut left, rank, &mut right, 2 * n) {
                right.fill(f64::NAN);
            }
            for (k, z) in scaled.iter_mut().enumerate() {
                let row = k / n * 2 * n;
                *z = Complex64::new(right[row + k % n], right[row + n + k % n]);
            }
            for r in 0..rank {
                let big_r = |i: usize| scaled[r * n + i];
                for i in 0..n {
                    out.p[at(r, f, i)] = dd(i) * p(r, i);
                    out.t[at(r, f, i)] = p(r, i).conj() + big_r(i) * e(i);
                }
                for s in 0..rank {
                    let m = both(&|i| big_r(i) * p(s, i));
                    for i in 0..n {
                        out.t[at(r, f, i)] -= m * p(s, i).conj();
                    }
                }
                // The input passes through the correction as well.
                let through = both(&|i| big_r(i) * 2.0 * self.b[f * n + i]);
                for i in 0..n {
                    out.b[f * n + i] -= dd(i) * p(r, i) * through;
                }
            }
        }
        out
    }

    fn pack(&self, w: &Discrete) -> Coefficients {
        let Sizes { features: h, states: n, .. } = self.sizes;
        let get = |part: Part, f: usize, i: usize| {
            let at = |front: usize| (front * h + f) * n + i;
            let z = match part {
                Part::A => w.a[at(0)],
                Part::B => w.b[at(0)],
                Part::P(r) => w.p[at(r)],
                Part::T(r) => w.t[at(r)],
                Part::C(ch) => self.c[at(ch)] * 2.0,
            };
            (z.re as f32, z.im as f32)
        };
        Coefficients::pack(self.sizes, get, |ch, f| self.d[ch * h + f])
    }

    /// The coefficients at a rate. They are computed once for each of the last few rates.
    fn at(&self, rate: f32) -> Arc<Coefficients> {
        if rate == 1.0 || !rate.is_finite() || rate <= 0.0 {
            return self.trained.clone();
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = others.iter().find(|(bits, _)| *bits == rate.to_bits()) {
            return found.clone();
        }
        let made = Arc::new(self.pack(&self.discretise(rate.into())));
        if others.len() == RATES {
            others.remove(0);
        }
        others.push((rate.to_bits(), made.clone()));
        made
    }

    /// The coefficients at the trained rate.
    pub(crate) fn trained(&self) -> &Coefficients {
        &self.trained
    }

    /// Runs `u` (len, H) through the recurrence from `state` and writes `y` (len, channels · H); with `read` off only the
    /// state moves, and `y` has no columns.
    pub(crate) fn run(&self, cx: &Cx, u: Mat<'_>, state: &mut [f32], rate: f32, read: bool, y: MatMut<'_>) {
        s4d(cx, &self.at(rate), u, state, read, y);
    }

    /// The same system as a convolution: `K_l = C Ā^l B̄`, (channels, H, len), in f64.
    pub(crate) fn kernel(&self, len: usize, rate: f64) -> Vec<f64> {
        let Sizes { features: h, states: n, channels, rank } = self.sizes;
        let w = self.discretise(rate);
        let mut k = vec![0.0; channels * h * len];
        for f in 0..h {
            let row = |front: usize| (front * h + f) * n..(front * h + f + 1) * n;
            let mut x = w.b[row(0)].to_vec();
            for l in 0..len {
                for ch in 0..channels {
                    let c = &self.c[row(ch)];
                    k[(ch * h + f) * len + l] = c.iter().zip(&x).map(|(c, x)| 2.0 * (c * x).re).sum();
                }
                step(&w, rank, &row, &mut x);
            }
        }
        k
    }

    /// The recurrence's matrix of a feature over real and imaginary parts, 2N × 2N.
    fn matrix(&self, w: &Discrete, f: usize) -> Vec<f64> {
        let Sizes { features: h, states: n, rank, .. } = self.sizes;
        let mut m = vec![0.0; 4 * n * n];
        for i in 0..n {
            let a = w.a[f * n + i];
            m[i * 2 * n + i] = a.re;
            m[i * 2 * n + n + i] = -a.im;
            m[(n + i) * 2 * n + i] = a.im;
            m[(n + i) * 2 * n + n + i] = a.re;
            for r in 0..rank {
                let p = w.p[(r * h + f) * n + i];
                for j in 0..n {
                    let t = w.t[(r * h + f) * n + j];
                    for (row, p) in [(i, p.re), (n + i, p.im)] {
                        m[row * 2 * n + j] -= p * 2.0 * t.re;
                        m[row * 2 * n + n + j] += p * 2.0 * t.im;
                    }
                }
            }
        }
        m
    }

    /// Undoes upstream's preparation of C for convolutions of length `len`, `C (1 - Ā^len)`. False if it cannot be.
    fn recover_c(&mut self, len: u64) -> bool {
        let Sizes { features: h, states: n, channels, .. } = self.sizes;
        let w = self.discretise(1.0);
        for f in 0..h {
            let power = dense::power(&self.matrix(&w, f), 2 * n, len);
            // (1 - Ā^len)ᵀ C = C stored, C over real and imaginary parts being [2 Re C, -2 Im C].
            let mut left = dense::identity(2 * n);
            for i in 0..2 * n {
                for j in 0..2 * n {
                    left[i * 2 * n + j] -= power[j * 2 * n + i];
                }
            }
            let mut right = vec![0.0; 2 * n * channels];
            for ch in 0..channels {
                for i in 0..n {
                    let c = self.c[(ch * h + f) * n + i];
                    right[i * channels + ch] = 2.0 * c.re;
                    right[(n + i) * channels + ch] = -2.0 * c.im;
                }
            }
            if !dense::solve(&mut left, 2 * n, &mut right, channels) {
                return false;
            }
            for ch in 0..channels {
                for i in 0..n {
                    let (re, im) = (right[i * channels + ch] / 2.0, right[(n + i) * channels + ch] / -2.0);
                    self.c[(ch * h + f) * n + i] = Complex64::new(re, im);
                }
            }
        }
        true
    }

    /// `periods` steps without input: `x ← Ā^periods x`. With low rank only whole steps, to which `periods` is rounded.
    pub(crate) fn gap(&self, state: &mut [f32], periods: f64) {
        if periods.is_nan() || periods <= 0.0 {
            return;
        }
        let Sizes { features: h, states: n, rank, .. } = self.sizes;
        let w = self.discretise(1.0);
        let steps = periods.round().min(1e15) as u64;
        for f in 0..h {
            let place = |i: usize| self.sizes.place(f, i);
            let mut x: Vec<Complex64> =
                (0..n).map(|i| Complex64::new(state[place(i)].into(), state[place(i) + LANES].into())).collect();
            let row = |front: usize| (front * h + f) * n..(front * h + f + 1) * n;
            if rank == 0 {
                for (i, x) in x.iter_mut().enumerate() {
                    let log = match self.disc {
                        Disc::Zoh => self.a[f * n + i] * self.dt[f * n + i],
                        Disc::Bilinear => w.a[f * n + i].ln(),
                    };
                    *x *= (log * periods).exp();
                }
            } else if (steps as f64) < (64 - steps.leading_zeros()) as f64 * (n * n) as f64 {
                // One by one costs less than squaring matrices.
                for _ in 0..steps {
                    step(&w, rank, &row, &mut x);
                }
            } else {
                let power = dense::power(&self.matrix(&w, f), 2 * n, steps);
                let old: Vec<f64> = x.iter().map(|x| x.re).chain(x.iter().map(|x| x.im)).collect();
                let new = |i: usize| power[i * 2 * n..][..2 * n].iter().zip(&old).map(|(m, x)| m * x).sum::<f64>();
                x = (0..n).map(|i| Complex64::new(new(i), new(n + i))).collect();
            }
            for (i, x) in x.iter().enumerate() {
                // What has grown beyond measure in an unstable system is no memory any more.
                let x = if x.is_finite() { *x } else { Complex64::ZERO };
                state[place(i)] = x.re as f32;
                state[place(i) + LANES] = x.im as f32;
            }
        }
    }

    /// The state as upstream lays it out: (H, N, 2), real and imaginary parts side by side.
    pub(crate) fn upstream_state(&self, state: &[f32]) -> (Vec<usize>, Vec<f32>) {
        let Sizes { features: h, states: n, .. } = self.sizes;
        let at = |k: usize| self.sizes.place(k / 2 / n, k / 2 % n) + k % 2 * LANES;
        (vec![h, n, 2], (0..2 * h * n).map(|k| state[at(k)]).collect())
    }
}

/// `x ← Ā x` of the feature whose rows `row` gives.
fn step(w: &Discrete, rank: usize, row: &dyn Fn(usize) -> std::ops::Range<usize>, x: &mut [Complex64]) {
    let mut q = [0.0; MAX_RANK];
    for (r, q) in q.iter_mut().enumerate().take(rank) {
        *q = w.t[row(r)].iter().zip(&*x).map(|(t, x)| 2.0 * (t * x).re).sum();
    }
    x.iter_mut().zip(&w.a[row(0)]).for_each(|(x, a)| *x *= a);
    for (r, q) in q.iter().enumerate().take(rank) {
        x.iter_mut().zip(&w.p[row(r)]).for_each(|(x, p)| *x -= p * q);
    }
}

/// `exp(z) - 1` without loss where z is small.
fn exp_m1(z: Complex64) -> Complex64 {
    let half = (z.im / 2.0).sin();
    Complex64::new(z.re.exp_m1() * z.im.cos() - 2.0 * half * half, z.re.exp() * z.im.sin())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::hippo::{Diagonal, Measure};

    /// Tensors as a file.
    pub(crate) fn file(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Checkpoint {
        let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| t.2.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
        let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
            (name.clone(), view.unwrap())
        });
        Checkpoint::from_bytes("test", safetensors::serialize(views, None).unwrap()).unwrap()
    }

    /// An `S4Block` without output map, from HiPPO: H features of N states (stored half), H of them of their own.
    pub(crate) fn layer(seed: u64, rank: usize, h: usize, n: usize, c: usize) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let start = match rank {
            0 => Diagonal::Lin.start(2 * n),
            1 => Measure::LegS.start(2 * n),
            _ => Measure::LegT.start(2 * n),
        };
        let mut seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = |len: usize| -> Vec<f32> {
            (0..len)
                .map(|_| {
                    seed ^= seed >> 12;
                    seed ^= seed << 25;
                    seed ^= seed >> 27;
                    (seed.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
                })
                .collect()
        };
        let pairs =
            |v: &[Complex64]| -> Vec<f32> { (0..h).flat_map(|_| v).flat_map(|z| [z.re as f32, z.im as f32]).collect() };
        let tiled = |f: &dyn Fn(&Complex64) -> f64| -> Vec<f32> {
            (0..h).flat_map(|_| &start.a).map(|a| f(a) as f32).collect()
        };
        let mut tensors = vec![
            ("layer.D".into(), vec![c, h], random(c * h)),
            ("layer.kernel.inv_dt".into(), vec![h, 1], random(h).iter().map(|v| v - 3.0).collect()),
            ("layer.kernel.A_real".into(), vec![h, n], tiled(&|a| (-a.re).max(1e-4).ln())),
            ("layer.kernel.A_imag".into(), vec![h, n], tiled(&|a| -a.im)),
            ("layer.kernel.B".into(), vec![1, h, n, 2], pairs(&start.b)),
            ("layer.kernel.C".into(), vec![c, h, n, 2], random(2 * c * h * n)),
        ];
        if rank > 0 {
            let p = start.p.iter().flat_map(|p| pairs(p)).collect();
            tensors.push(("layer.kernel.P".into(), vec![rank, h, n, 2], p));
            tensors.push(("layer.kernel.l_kernel".into(), vec![], vec![0.0]));
        }
        tensors
    }

    fn core(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Core {
        Core::load(&Reader::new(&file(tensors)).at("layer."), &Rules::default(), "test").unwrap()
    }

    /// A feature's whole system over real and imaginary parts, 2N × 2N and 2N, discretised by the textbook's bilinear
    /// rule: nothing of `discretise` is used.
    fn dense_bilinear(core: &Core, f: usize, dt: f64) -> (Vec<f64>, Vec<f64>) {
        let Sizes { features: h, states: n, rank, .. } = core.sizes;
        let m = 2 * n;
        // The map v -> a v + b v̄ as a real one.
        let mut a = vec![0.0; m * m];
        let mut put = |i: usize, j: usize, z: Complex64, conj: f64| {
            a[i * m + j] += z.re;
            a[i * m + n + j] -= z.im * conj;
            a[(n + i) * m + j] += z.im;
            a[(n + i) * m + n + j] += z.re * conj;
        };
        for i in 0..n {
            put(i, i, core.a[f * n + i], 1.0);
            for j in 0..n {
                for r in 0..rank {
                    let (p, q) = (core.p[(r * h + f) * n + i], core.p[(r * h + f) * n + j]);
                    // - P P*: P* holds the conjugates of both halves.
                    put(i, j, -(p * q.conj()), 1.0);
                    put(i, j, -(p * q), -1.0);
                }
            }
        }
        let mut left: Vec<f64> = (0..m * m).map(|k| f64::from(u8::from(k / m == k % m)) - dt / 2.0 * a[k]).collect();
        let mut right = vec![0.0; m * (m + 1)];
        for i in 0..m {
            for j in 0..m {
                right[i * (m + 1) + j] = f64::from(u8::from(i == j)) + dt / 2.0 * a[i * m + j];
            }
            let b = core.b[f * n + i % n];
            right[i * (m + 1) + m] = dt * if i < n { b.re } else { b.im };
        }
        assert!(dense::solve(&mut left, m, &mut right, m + 1));
        let step = (0..m * m).map(|k| right[k / m * (m + 1) + k % m]).collect();
        (step, (0..m).map(|i| right[i * (m + 1) + m]).collect())
    }

    #[test]
    fn the_step_of_low_rank_is_the_dense_one() {
        for rank in 1..=2 {
            let core = core(&layer(5, rank, 3, 6, 1));
            for rate in [1.0, 0.5, 3.0] {
                let w = core.discretise(rate);
                for f in 0..3 {
                    let (step, b) = dense_bilinear(&core, f, core.dt[f * 6] * rate);
                    for (got, want) in core.matrix(&w, f).iter().zip(&step) {
                        assert!((got - want).abs() < 1e-11, "rank {rank} rate {rate}: expected {want}, got {got}");
                    }
                    for i in 0..6 {
                        let got = w.b[f * 6 + i];
                        assert!((got.re - b[i]).abs() < 1e-11 && (got.im - b[6 + i]).abs() < 1e-11);
                    }
                }
            }
        }
    }

    /// C as upstream stores it once it has made a convolution kernel of length `len`: `C (1 - Ā^len)`.
    fn prepared(tensors: &[(String, Vec<usize>, Vec<f32>)], len: u64) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let core = core(tensors);
        let Sizes { features: h, states: n, channels, .. } = core.sizes;
        let m = 2 * n;
        let mut out = tensors.to_vec();
        let stored = &mut out.iter_mut().find(|t| t.0 == "layer.kernel.C").unwrap().2;
        for f in 0..h {
            let (step, _) = dense_bilinear(&core, f, core.dt[f * n]);
            let power = dense::power(&step, m, len);
            for ch in 0..channels {
                let at = (ch * h + f) * n;
                let c: Vec<f64> = (0..m)
                    .map(|i| if i < n { 2.0 * core.c[at + i].re } else { -2.0 * core.c[at + i - n].im })
                    .collect();
                for j in 0..m {
                    let v = c[j] - (0..m).map(|i| c[i] * power[i * m + j]).sum::<f64>();
                    stored[(at + j % n) * 2 + j / n] = if j < n { v / 2.0 } else { -v / 2.0 } as f32;
                }
            }
        }
        out.iter_mut().find(|t| t.0 == "layer.kernel.l_kernel").unwrap().2 = vec![len as f32];
        out
    }

    #[test]
    fn c_is_recovered_from_its_prepared_form() {
        for rank in 1..=2 {
            let plain = layer(6, rank, 3, 6, 2);
            let (want, got) = (core(&plain), core(&prepared(&plain, 48)));
            for (got, want) in got.kernel(100, 1.0).iter().zip(&want.kernel(100, 1.0)) {
                assert!((got - want).abs() < 1e-4, "rank {rank}: expected {want}, got {got}");
            }
        }
    }

    /// The S4 paper's generating function (section 3.2): the kernel's discrete Fourier transform from Cauchy sums over
    /// the stored C, the correction by Woodbury's identity.
    #[test]
    fn the_kernel_is_that_of_the_generating_function() {
        let (h, n, len) = (2, 6, 48);
        for rank in 1..=2 {
            let tensors = prepared(&layer(7, rank, h, n, 1), len as u64);
            let core = core(&tensors);
            let stored = complex(&tensors.iter().find(|t| t.0 == "layer.kernel.C").unwrap().2);
            let kernel = core.kernel(len, 1.0);
            for f in 0..h {
                let dt = core.dt[f * n];
                let p = |r: usize, i: usize| core.p[(r * h + f) * n + i];
                let spectrum: Vec<Complex64> = (0..len)
                    .map(|k| {
                        // Just beside the roots of unity, where ω = -1 would divide by zero.
                        let omega = Complex64::from_polar(1.0, -2.0 * std::f64::consts::PI * k as f64 / len as f64);
                        let omega = if 2 * k == len { Complex64::new(-1.0, 1e-7) } else { omega };
                        let z = 2.0 * (1.0 - omega) / (1.0 + omega);
                        let sum = |g: &dyn Fn(usize) -> Complex64| -> Complex64 {
                            (0..n)
                                .map(|i| {
                                    let a = core.a[f * n + i] * dt;
                                    dt * (g(i) / (z - a) + g(i).conj() / (z - a.conj()))
                                })
                                .sum()
                        };
                        let (b, c) = (|i: usize| core.b[f * n + i], |i: usize| stored[f * n + i]);
                        let mut k = sum(&|i| c(i) * b(i));
                        let r01: Vec<_> = (0..rank).map(|r| sum(&|i| c(i) * p(r, i))).collect();
                        let r10: Vec<_> = (0..rank).map(|r| sum(&|i| p(r, i).conj() * b(i))).collect();
                        let r11 = |r: usize, s: usize| sum(&|i| p(r, i).conj() * p(s, i)) + f64::from(u8::from(r == s));
                        if rank == 1 {
                            k -= r01[0] * r10[0] / r11(0, 0);
                        } else {
                            let det = r11(0, 0) * r11(1, 1) - r11(0, 1) * r11(1, 0);
                            let x0 = (r11(1, 1) * r10[0] - r11(0, 1) * r10[1]) / det;
                            let x1 = (r11(0, 0) * r10[1] - r11(1, 0) * r10[0]) / det;
                            k -= r01[0] * x0 + r01[1] * x1;
                        }
                        k * 2.0 / (1.0 + omega)
                    })
                    .collect();
                for l in 0..len {
                    let turn = |k: usize| 2.0 * std::f64::consts::PI * (k * l % len) as f64 / len as f64;
                    let terms = spectrum.iter().enumerate().map(|(k, s)| s * Complex64::from_polar(1.0, turn(k)));
                    let want = terms.sum::<Complex64>().re / len as f64;
                    let got = kernel[f * len + l];
                    assert!((got - want).abs() < 2e-5, "rank {rank} feature {f} at {l}: expected {want}, got {got}");
                }
            }
        }
    }

    #[test]
    fn a_rate_is_discretised_once() {
        let core = core(&layer(8, 1, 3, 4, 1));
        assert!(Arc::ptr_eq(&core.at(1.0), &core.trained));
        let half = core.at(0.5);
        assert!(Arc::ptr_eq(&half, &core.at(0.5)) && !Arc::ptr_eq(&half, &core.at(2.0)));
        for i in 0..40 {
            core.at(3.0 + i as f32);
        }
        assert_eq!(core.others.lock().unwrap().len(), RATES);
        for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(Arc::ptr_eq(&core.at(wrong), &core.trained));
        }
    }

    #[test]
    fn a_still_system_sums_its_input() {
        // A = 0: Ā = 1, B̄ = dt B, without dividing by zero.
        assert_eq!(exp_m1(Complex64::ZERO), Complex64::ZERO);
        let z = Complex64::new(1e-12, -3e-12);
        assert!((exp_m1(z) / z - 1.0).norm() < 1e-11);
        let z = Complex64::new(-0.7, 2.0);
        assert!((exp_m1(z) - (z.exp() - 1.0)).norm() < 1e-15);
    }
}
