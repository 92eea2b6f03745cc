//! The head recurrence of Mamba-2 (Dao & Gu 2024, section 6 and equation 16), called SSD there: one decay per head.
//!
//! ```text
//! Δ_t[h]      = s · clamp(softplus(dt_t[h] + dt_bias[h]))      s: step scale, 1 unless the stream has another rate
//! S_t[h,p,n]  = exp(Δ_t[h] a[h]) S_{t-1}[h,p,n] + Δ_t[h] x_t[h,p] b_t[g,n] + ε      ε: see [`crate::TINY`]
//! y_t[h,p]    = Σ_n S_t[h,p,n] c_t[g,n] + d[h,p] x_t[h,p]      then · silu(z_t[h,p]) if z is given
//! ```
//!
//! Rows are steps; the H·P channels of a row are the heads one after the other, and head h reads group
//! `h / (H / groups)`. The state is `[n, H·P]`: channels innermost, because the vector runs over channels. Steps run in
//! order, one after the other, so any cut of a stream gives the same bits; the chunked matrix form of the paper does not.

mod agree;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::activation::softplus;
use crate::array::{Mat, MatMut};
use crate::{CpuLevel, Cx};

/// One call: `len` steps of H heads with P channels and N states each.
pub struct Ssd<'a> {
    /// Input, (len, H·P).
    pub x: Mat<'a>,
    /// Step size before bias and softplus, (len, H).
    pub dt: Mat<'a>,
    /// Bias of the step size, H values.
    pub dt_bias: &'a [f32],
    /// Bounds of the step size after softplus; `(0, ∞)` in every published model.
    pub dt_limit: (f32, f32),
    /// Scale of the step size, applied last.
    pub scale: f32,
    /// `-exp(A_log)`, H values.
    pub a: &'a [f32],
    /// Input vectors, (len, groups · N).
    pub b: Mat<'a>,
    /// Output vectors, shaped as `b`.
    pub c: Mat<'a>,
    /// Skip, H·P values (a model with one value per head repeats it).
    pub d: &'a [f32],
    /// Gate, (len, H·P), or none.
    pub z: Option<Mat<'a>>,
}

/// Runs the recurrence from state `s` (N rows of H·P, updated in place) and writes `y`, (len, H·P).
///
/// Zero steps change nothing. Heads are independent, and steps run strictly in order: any cut of the steps gives the
/// same bits.
///
/// # Panics
/// A shape does not fit.
pub fn ssd(cx: &Cx, w: &Ssd<'_>, s: &mut [f32], mut y: MatMut<'_>) {
    let (len, d, heads) = (w.x.rows(), w.x.cols(), w.a.len());
    if d == 0 {
        return;
    }
    assert!(heads > 0 && d.is_multiple_of(heads), "ssd: {d} channels for {heads} heads");
    let n = s.len() / d;
    assert!(n > 0 && s.len() == n * d, "ssd: a state of {} values for {d} channels", s.len());
    let groups = w.b.cols() / n;
    assert!(
        groups > 0 && w.b.cols() == groups * n && w.c.cols() == w.b.cols() && heads.is_multiple_of(groups),
        "ssd: b has {} columns and c {} for {n} states and {heads} heads",
        w.b.cols(),
        w.c.cols()
    );
    assert!(w.b.rows() == len && w.c.rows() == len, "ssd: b and c need {len} rows");
    assert!(w.dt.rows() == len && w.dt.cols() == heads, "ssd: dt: expected {len}x{heads}");
    assert!(w.dt_bias.len() == heads, "ssd: dt_bias: expected {heads} values, got {}", w.dt_bias.len());
    assert!(w.d.len() == d, "ssd: d: expected {d} values, got {}", w.d.len());
    assert!(y.rows() == len && y.cols() == d, "ssd: y: expected {len}x{d}, got {}x{}", y.rows(), y.cols());
    assert!(w.z.is_none_or(|z| z.rows() == len && z.cols() == d), "ssd: z: expected {len}x{d}");
    let io = Io { s: s.as_mut_ptr(), n, y: y.ptr(), y_stride: y.stride(), per_group: heads / groups };
    // Heads are shared among the threads; a small call stays on one.
    let block = if len * n * d < 1 << 15 { heads } else { heads.div_ceil(4 * cx.team.threads()) };
    cx.team.split(heads.div_ceil(block), |part| {
        for head in part * block..(part * block + block).min(heads) {
            match cx.level.here() {
                CpuLevel::Scalar => scalar::head(w, head, &io),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `here` bounds the level by what the machine has; every shape was checked above.
                CpuLevel::Avx2 => unsafe { x86::avx2(w, head, &io) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                CpuLevel::Avx512 => unsafe { x86::avx512(w, head, &io) },
                #[cfg(not(target_arch = "x86_64"))]
                _ => scalar::head(w, head, &io),
            }
        }
    });
}

/// State and output of a call; each part owns its heads' channels of both.
struct Io {
    s: *mut f32,
    n: usize,
    y: *mut f32,
    y_stride: usize,
    /// Heads of a group.
    per_group: usize,
}

// SAFETY: the parts of one call touch disjoint channels of exclusively borrowed memory.
unsafe impl Sync for Io {}

impl Ssd<'_> {
    /// Δ and exp(Δ a) of a head at a step: the same operations at every level.
    fn step(&self, t: usize, head: usize) -> (f32, f32) {
        let (low, high) = self.dt_limit;
        let delta = softplus(self.dt.row(t)[head] + self.dt_bias[head]);
        // Not `clamp`: it panics on a NaN bound and on low > high.
        let delta = self.scale
            * if delta < low {
                low
            } else if delta > high {
                high
            } else {
                delta
            };
        (delta, (delta * self.a[head]).exp())
    }
}
