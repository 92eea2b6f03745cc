use super::{Io, Scan};
use crate::TINY;
use crate::activation::{silu, softplus};
use std::ops::Range;

/// The recurrence as the paper writes it, channel by channel.
pub(super) fn scan(s: &Scan<'_>, group: usize, channels: Range<usize>, io: &Io) {
    let (len, d) = (s.u.rows(), s.u.cols());
    let n = s.a.len() / d;
    for e in channels {
        for t in 0..len {
            let row = s.order.row(t, len);
            let u = s.u.row(row)[e];
            let dt = s.dt.row(row)[e] + s.dt_bias.map_or(0.0, |b| b[e]);
            let delta = s.scale * if s.softplus { softplus(dt) } else { dt };
            let mut y = 0.0;
            for i in 0..n {
                let (b, c) = (s.b.row(row)[group * n + i], s.c.row(row)[group * n + i]);
                // SAFETY: i < n and e < d: inside the state, and this part owns channel e.
                let h = unsafe { &mut *io.h.add(i * d + e) };
                *h = (delta * s.a[i * d + e]).exp() * *h + (delta * u * b + TINY);
                y += *h * c;
            }
            y += s.d.map_or(0.0, |d| d[e]) * u;
            if let Some(z) = &s.z {
                y *= silu(z.row(row)[e]);
            }
            // SAFETY: row < len and e < d: inside the output, and this part owns channel e.
            let out = unsafe { &mut *io.y.add(row * io.y_stride + e) };
            *out = if s.add { *out + y } else { y };
        }
    }
}
