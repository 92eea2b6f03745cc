//! Small dense matrices in f64, row-major: what loading and the memories of `hippo` need. Nothing here runs per step of a
//! network.

use num_complex::Complex64;

/// `a b` of n × n matrices.
pub(crate) fn product(a: &[f64], b: &[f64], n: usize, out: &mut [f64]) {
    out.fill(0.0);
    for (row, a) in out.chunks_exact_mut(n).zip(a.chunks_exact(n)) {
        for (a, b) in a.iter().zip(b.chunks_exact(n)) {
            row.iter_mut().zip(b).for_each(|(o, b)| *o += a * b);
        }
    }
}

/// `m^power` of an n × n matrix, by squaring.
pub(crate) fn power(m: &[f64], n: usize, mut power: u64) -> Vec<f64> {
    let mut result = identity(n);
    let (mut square, mut spare) = (m.to_vec(), vec![0.0; n * n]);
    while power > 0 {
        if power & 1 == 1 {
            product(&square, &result, n, &mut spare);
            std::mem::swap(&mut result, &mut spare);
        }
        power >>= 1;
        if power > 0 {
            product(&square, &square, n, &mut spare);
            std::mem::swap(&mut square, &mut spare);
        }
    }
    result
}

/// The n × n identity.
pub(crate) fn identity(n: usize) -> Vec<f64> {
    let mut m = vec![0.0; n * n];
    m.iter_mut().step_by(n + 1).for_each(|v| *v = 1.0);
    m
}

/// Solves `m X = rhs` by Gaussian elimination with the largest pivot of each column; `rhs` is n × k and becomes X. `m` is
/// spent. False if `m` is singular or not finite.
pub(crate) fn solve(m: &mut [f64], n: usize, rhs: &mut [f64], k: usize) -> bool {
    for col in 0..n {
        let pivot = (col..n).max_by(|a, b| m[a * n + col].abs().total_cmp(&m[b * n + col].abs())).unwrap_or(col);
        if m[pivot * n + col] == 0.0 || !m[pivot * n + col].is_finite() {
            return false;
        }
        if pivot != col {
            (0..n).for_each(|i| m.swap(pivot * n + i, col * n + i));
            (0..k).for_each(|i| rhs.swap(pivot * k + i, col * k + i));
        }
        for row in col + 1..n {
            let factor = m[row * n + col] / m[col * n + col];
            if factor != 0.0 {
                (col..n).for_each(|i| m[row * n + i] -= factor * m[col * n + i]);
                (0..k).for_each(|i| rhs[row * k + i] -= factor * rhs[col * k + i]);
            }
        }
    }
    for row in (0..n).rev() {
        for i in 0..k {
            let known: f64 = (row + 1..n).map(|j| m[row * n + j] * rhs[j * k + i]).sum();
            rhs[row * k + i] = (rhs[row * k + i] - known) / m[row * n + row];
        }
    }
    rhs.iter().all(|v| v.is_finite())
}

/// Eigenvalues, ascending, and orthonormal eigenvectors (columns) of a Hermitian n × n matrix: Jacobi's rotations, swept
/// until what is off the diagonal is below rounding.
pub(crate) fn hermitian_eigen(mut m: Vec<Complex64>, n: usize) -> (Vec<f64>, Vec<Complex64>) {
    let mut v = vec![Complex64::ZERO; n * n];
    v.iter_mut().step_by(n + 1).for_each(|v| *v = Complex64::ONE);
    let size: f64 = m.iter().map(|z| z.norm_sqr()).sum();
    for _ in 0..60 {
        let off: f64 = (0..n * n).filter(|i| i / n != i % n).map(|i| m[i].norm_sqr()).sum();
        if off <= 1e-30 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                let b = m[p * n + q];
                if b.norm_sqr() <= 1e-34 * size / (n * n) as f64 {
                    continue;
                }
                // The rotation that makes m[p][q] vanish: tan 2θ = 2|b| / (m[q][q] - m[p][p]), with b's phase taken out.
                let phase = b / b.norm();
                let tau = (m[q * n + q].re - m[p * n + p].re) / (2.0 * b.norm());
                let t = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
                let t = if tau == 0.0 { 1.0 } else { t };
                let c = 1.0 / (1.0 + t * t).sqrt();
                let s = phase * (t * c);
                for i in 0..n {
                    let (x, y) = (m[i * n + p], m[i * n + q]);
                    (m[i * n + p], m[i * n + q]) = (x * c - y * s.conj(), x * s + y * c);
                    let (x, y) = (v[i * n + p], v[i * n + q]);
                    (v[i * n + p], v[i * n + q]) = (x * c - y * s.conj(), x * s + y * c);
                }
                for i in 0..n {
                    let (x, y) = (m[p * n + i], m[q * n + i]);
                    (m[p * n + i], m[q * n + i]) = (x * c - y * s, x * s.conj() + y * c);
                }
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| m[a * n + a].re.total_cmp(&m[b * n + b].re));
    let values = order.iter().map(|i| m[i * n + i].re).collect();
    let vectors = (0..n * n).map(|i| v[i / n * n + order[i % n]]).collect();
    (values, vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_and_solutions_fit() {
        let m = [0.5, 0.2, -0.1, 0.3, 0.0, 0.7, -0.4, 0.1, 0.9];
        let mut by_hand = identity(3);
        for _ in 0..13 {
            let mut next = vec![0.0; 9];
            product(&m, &by_hand, 3, &mut next);
            by_hand = next;
        }
        for (a, b) in power(&m, 3, 13).iter().zip(&by_hand) {
            assert!((a - b).abs() < 1e-13);
        }
        assert_eq!(power(&m, 3, 0), identity(3));
        let mut x = vec![1.0, -1.0, 2.0, 0.5, 0.0, 3.0];
        let rhs = x.clone();
        assert!(solve(&mut m.to_vec(), 3, &mut x, 2));
        for (i, want) in rhs.iter().enumerate() {
            let got: f64 = (0..3).map(|j| m[i / 2 * 3 + j] * x[j * 2 + i % 2]).sum();
            assert!((got - want).abs() < 1e-13);
        }
        assert!(!solve(&mut [1.0, 2.0, 2.0, 4.0], 2, &mut [1.0, 1.0], 1));
    }

    #[test]
    fn eigenvectors_are_orthonormal_and_belong_to_their_values() {
        let n = 7;
        let at = |i: usize, j: usize| Complex64::new(((i * j) as f64).sin(), (i as f64 - j as f64) * 0.3);
        let m: Vec<Complex64> = (0..n * n).map(|k| at(k / n, k % n)).collect();
        let (values, v) = hermitian_eigen(m.clone(), n);
        assert!(values.is_sorted());
        for k in 0..n {
            for i in 0..n {
                let mv: Complex64 = (0..n).map(|j| m[i * n + j] * v[j * n + k]).sum();
                assert!((mv - v[i * n + k] * values[k]).norm() < 1e-12);
            }
            for l in 0..n {
                let dot: Complex64 = (0..n).map(|i| v[i * n + k].conj() * v[i * n + l]).sum();
                assert!((dot - f64::from(u8::from(k == l))).norm() < 1e-12);
            }
        }
    }
}
