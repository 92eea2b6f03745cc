//! Selective scan, the recurrence of Mamba (Gu & Dao 2023, Algorithm 2 and equation 2).
//!
//! ```text
//! Δ_t = s · softplus(dt_t + dt_bias)              [d]      s: step scale, 1 unless the stream has another rate
//! h_t = exp(Δ_t a) h_{t-1} + (Δ_t u_t) b_t + ε    [n, d]     ε: 1e-30, see [`crate::TINY`]
//! y_t = Σ_n c_t[n] h_t[n] + d u_t                 [d]
//! y_t = y_t · silu(z_t)                           if z is given
//! ```
//!
//! Rows are steps, columns channels. The state and `a` are `[n, d]`: channels innermost, transposed from the
//! checkpoint's `[d, n]`, because the vector runs over channels.

mod agree;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::array::{Mat, MatMut};
use crate::{CpuLevel, Cx};

/// The order in which the steps of a call read and write rows.
#[derive(Clone, Copy, Debug)]
pub enum Order<'a> {
    /// First row first.
    Forward,
    /// Last row first.
    Reverse,
    /// Step `t` is row `rows[t]`; every row once (cross-scan).
    Rows(&'a [u32]),
}

/// One call of the scan: `len` steps of `d` channels with `n` states each.
pub struct Scan<'a> {
    /// Input, (len, d).
    pub u: Mat<'a>,
    /// Step size before bias and softplus, (len, d).
    pub dt: Mat<'a>,
    /// Bias of the step size, d values, or none.
    pub dt_bias: Option<&'a [f32]>,
    /// Whether softplus is applied to the biased step size (in every published model it is).
    pub softplus: bool,
    /// Scale of the step size, applied after softplus.
    pub scale: f32,
    /// `-exp(A_log)`, transposed: n rows of d.
    pub a: &'a [f32],
    /// Input matrix, (len, groups · n): channel c belongs to group `c / (d / groups)`.
    pub b: Mat<'a>,
    /// Output matrix, shaped as `b`.
    pub c: Mat<'a>,
    /// Skip, d values, or none.
    pub d: Option<&'a [f32]>,
    /// Gate, (len, d), or none.
    pub z: Option<Mat<'a>>,
    /// Order of the steps.
    pub order: Order<'a>,
    /// Whether the result is added to `y` (as the second direction of a bidirectional scan is) or replaces it.
    pub add: bool,
}

/// Runs the scan from state `h` (n rows of d, updated in place) and writes `y`, (len, d).
///
/// Zero steps change nothing. Channels are independent, and steps run strictly in order: any cut of the steps gives the
/// same bits.
///
/// # Panics
/// A shape does not fit.
pub fn selective_scan(cx: &Cx, s: &Scan<'_>, h: &mut [f32], mut y: MatMut<'_>) {
    let (len, d) = (s.u.rows(), s.u.cols());
    if d == 0 {
        return;
    }
    let n = s.a.len() / d;
    assert!(n > 0 && s.a.len() == n * d, "selective_scan: a has {} values for {d} channels", s.a.len());
    assert!(h.len() == n * d, "selective_scan: expected a state of {n}x{d}, got {}", h.len());
    let fits = |name: &str, m: &Mat<'_>| {
        assert!(
            m.rows() == len && m.cols() == d,
            "selective_scan: {name}: expected {len}x{d}, got {}x{}",
            m.rows(),
            m.cols()
        );
    };
    fits("dt", &s.dt);
    fits("y", &y.as_mat());
    if let Some(z) = &s.z {
        fits("z", z);
    }
    let groups = s.b.cols() / n;
    assert!(
        groups > 0 && s.b.cols() == groups * n && s.c.cols() == s.b.cols() && d.is_multiple_of(groups),
        "selective_scan: b has {} columns and c {} for {n} states and {d} channels",
        s.b.cols(),
        s.c.cols()
    );
    assert!(s.b.rows() == len && s.c.rows() == len, "selective_scan: b and c need {len} rows");
    for (name, v) in [("dt_bias", s.dt_bias), ("d", s.d)] {
        assert!(v.is_none_or(|v| v.len() == d), "selective_scan: {name}: expected {d} values");
    }
    if let Order::Rows(rows) = s.order {
        assert!(
            rows.len() == len && rows.iter().all(|r| (*r as usize) < len),
            "selective_scan: the order names rows that are not there"
        );
    }
    // Channels in blocks of whole vectors inside one group; blocks are shared among the threads.
    let per_group = d / groups;
    // The blocks are of about one size, in whole cache lines.
    let parts = if per_group * len * n < 1 << 14 { 1 } else { per_group.div_ceil(BLOCK) };
    let block = per_group.div_ceil(parts).next_multiple_of(16);
    let blocks = per_group.div_ceil(block);
    let io = Io { h: h.as_mut_ptr(), y: y.ptr(), y_stride: y.stride() };
    cx.team.split(groups * blocks, |part| {
        let (group, first) = (part / blocks, part % blocks * block);
        let channels = group * per_group + first..group * per_group + (first + block).min(per_group);
        match cx.level.here() {
            CpuLevel::Scalar => scalar::scan(s, group, channels, &io),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `here` bounds the level by what the machine has; every shape was checked above.
            CpuLevel::Avx2 => unsafe { x86::avx2(s, group, channels, &io) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            CpuLevel::Avx512 => unsafe { x86::avx512(s, group, channels, &io) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => scalar::scan(s, group, channels, &io),
        }
    });
}

/// Channels of one task at most.
const BLOCK: usize = 64;

/// State and output of a call; each part owns its channels of both.
struct Io {
    h: *mut f32,
    y: *mut f32,
    y_stride: usize,
}

// SAFETY: the parts of one call touch disjoint channels of exclusively borrowed memory.
unsafe impl Sync for Io {}

impl Order<'_> {
    /// The row of step `t` of `len`.
    #[inline(always)]
    pub fn row(&self, t: usize, len: usize) -> usize {
        match self {
            Order::Forward => t,
            Order::Reverse => len - 1 - t,
            Order::Rows(rows) => rows[t] as usize,
        }
    }
}
