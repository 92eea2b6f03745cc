use super::{Io, Ssd};
use crate::TINY;
use crate::activation::silu;

/// The recurrence of one head as the paper writes it.
pub(super) fn head(w: &Ssd<'_>, head: usize, io: &Io) {
    let (len, d) = (w.x.rows(), w.x.cols());
    let (p, g) = (d / w.a.len(), head / io.per_group);
    for t in 0..len {
        let (delta, da) = w.step(t, head);
        let (b, c) = (&w.b.row(t)[g * io.n..][..io.n], &w.c.row(t)[g * io.n..][..io.n]);
        for e in head * p..(head + 1) * p {
            let x = w.x.row(t)[e];
            let mut y = 0.0;
            for i in 0..io.n {
                // SAFETY: i < n and e < d: inside the state, and this part owns channel e.
                let s = unsafe { &mut *io.s.add(i * d + e) };
                *s = da * *s + (delta * x * b[i] + TINY);
                y += *s * c[i];
            }
            y += w.d[e] * x;
            if let Some(z) = &w.z {
                y *= silu(z.row(t)[e]);
            }
            // SAFETY: t < len and e < d: inside the output, and this part owns channel e.
            unsafe { *io.y.add(t * io.y_stride + e) = y };
        }
    }
}
