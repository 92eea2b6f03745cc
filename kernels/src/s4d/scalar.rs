use super::{Coefficients, Io, LANES, MAX_RANK};
use crate::TINY;

/// The recurrence as its equation stands, feature by feature.
pub(super) fn run(w: &Coefficients, block: usize, io: &Io<'_>) {
    let s = w.sizes;
    let coefficients = &w.packed[block * s.block()..][..s.block()];
    let (rows, outputs) = coefficients.split_at(s.states * s.row());
    let (cs, skips) = outputs.split_at(s.channels * s.states * 2 * LANES);
    // Number `i` of row `n` (0: a, 1: b, then p and t of each rank).
    let pair = |v: &[f32], at: usize| (v[at], v[at + LANES]);
    for feature in block * LANES..(block * LANES + LANES).min(s.features) {
        let lane = feature % LANES;
        let coefficient = |n: usize, i: usize| pair(rows, n * s.row() + i * 2 * LANES + lane);
        for t in 0..io.u.rows() {
            let u = io.u.row(t)[feature];
            let state = |n: usize| {
                let at = s.place(feature, n);
                // SAFETY: a place of a state lies inside it, its imaginary part LANES after it; this part owns the
                // block.
                unsafe { (&mut *io.z.add(at), &mut *io.z.add(at + LANES)) }
            };
            let mut q = [0f32; MAX_RANK];
            for (r, q) in q.iter_mut().enumerate().take(s.rank) {
                for n in 0..s.states {
                    let ((t_re, t_im), (re, im)) = (coefficient(n, 3 + 2 * r), state(n));
                    *q += t_re * *re - t_im * *im;
                }
                *q *= 2.0;
            }
            for n in 0..s.states {
                let (re, im) = state(n);
                let ((a_re, a_im), (b_re, b_im)) = (coefficient(n, 0), coefficient(n, 1));
                let mut new_re = a_re * *re - a_im * *im + (b_re * u + TINY);
                let mut new_im = a_re * *im + a_im * *re + (b_im * u + TINY);
                for (r, q) in q.iter().enumerate().take(s.rank) {
                    let (p_re, p_im) = coefficient(n, 2 + 2 * r);
                    new_re -= p_re * q;
                    new_im -= p_im * q;
                }
                (*re, *im) = (new_re, new_im);
            }
            for ch in 0..io.channels {
                let mut y = skips[ch * LANES + lane] * u;
                for n in 0..s.states {
                    let ((c_re, c_im), (re, im)) = (pair(cs, (ch * s.states + n) * 2 * LANES + lane), state(n));
                    y += c_re * *re - c_im * *im;
                }
                // SAFETY: t < len and the column is below channels · H: inside the output, and this part owns the
                // feature.
                unsafe { *io.y.add(t * io.y_stride + ch * s.features + feature) = y };
            }
        }
    }
}
