//! Inputs in the precision of the weights.

use super::{Linear, Precision, ROWS, half, int8};
use crate::CpuLevel;
use crate::array::{Mat, Slab, as_bytes};
use std::cell::RefCell;

thread_local! {
    /// Inputs of a block of rows, pairs or fours in a value, and what 1 stands for in each row; large enough from the start
    /// for all but the widest products, then grown and kept.
    static LOWERED: RefCell<(Slab, Slab)> = RefCell::new((Slab::zeros(0), Slab::zeros(0)));
}

/// Calls `f` with the rows of `x`, at most [`ROWS`], as the panels of `w` hold theirs, and in int8 their units.
pub(super) fn lowered(w: &Linear, x: Mat<'_>, f: impl FnOnce(Mat<'_>, &[f32])) {
    let (m, depth) = (x.rows(), w.depth());
    let (mut slab, mut units) = LOWERED.replace((Slab::zeros(0), Slab::zeros(0)));
    if slab.len() < m * depth {
        slab = Slab::zeros((m * depth).max(ROWS * 2048));
    }
    if units.len() < m {
        units = Slab::zeros(m.max(ROWS));
    }
    let (out, u) = (&mut slab[..m * depth], &mut units[..m]);
    match w.level {
        _ if depth == 0 => u.fill(0.0),
        CpuLevel::Scalar => rows(w.precision, x, out, u),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level of packed weights is one that the machine has.
        CpuLevel::Avx2 => unsafe { rows_avx2(w.precision, x, out, u) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        CpuLevel::Avx512 => unsafe { rows_avx512(w.precision, x, out, u) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => rows(w.precision, x, out, u),
    }
    f(Mat::new(&slab[..m * depth], m, depth), &units[..m]);
    LOWERED.set((slab, units));
}

/// Inlined into each level's function, whose vectors the compiler then takes for the loops.
#[inline(always)]
fn rows(precision: Precision, x: Mat<'_>, out: &mut [f32], units: &mut [f32]) {
    match precision {
        Precision::Int8 => int8::rows(x, as_bytes(out), units),
        _ => half::rows(x, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn rows_avx2(precision: Precision, x: Mat<'_>, out: &mut [f32], units: &mut [f32]) {
    rows(precision, x, out, units);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
fn rows_avx512(precision: Precision, x: Mat<'_>, out: &mut [f32], units: &mut [f32]) {
    rows(precision, x, out, units);
}
