//! Matrix product with packed weights: `y = act(x Wᵀ + bias)`.
//!
//! Each output value is one chain of multiply-adds over `k` in ascending order, then the bias: whatever the number of
//! rows, their place in the tile or the number of threads. So a row's result does not depend on the rows that happen to
//! be computed beside it, which is what makes cutting a stream and batching streams exact.

mod agree;

use crate::activation::Act;
use crate::array::{Mat, MatMut, Slab};
use crate::{CpuLevel, Cx};

/// Weights of a linear map from `k` to `n` values, packed for one instruction level.
///
/// Layout: panels of P output columns (P = 8 scalar, 16 AVX2, 32 AVX-512), each panel `k` rows of P weights, zeros in
/// the columns past `n`.
#[derive(Clone)]
pub struct Linear {
    level: CpuLevel,
    n: usize,
    k: usize,
    packed: Slab,
    bias: Slab,
}

/// What happens to the old content of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// It is replaced.
    Set,
    /// The result is added to it.
    Add,
}

impl Linear {
    /// Packs `w`, row-major `[n, k]` as PyTorch stores it, and an optional bias of `n` values.
    ///
    /// # Panics
    /// A slice has another length.
    pub fn pack(level: CpuLevel, w: &[f32], n: usize, k: usize, bias: Option<&[f32]>) -> Self {
        assert!(w.len() == n * k, "linear: expected {n}x{k} weights, got {}", w.len());
        Self::pack_with(level, n, k, bias, |row, col| w[row * k + col])
    }

    /// Packs the weights that `w(output, input)` gives: for matrices stored in another order.
    ///
    /// # Panics
    /// The bias has not `n` values.
    pub fn pack_with(
        level: CpuLevel,
        n: usize,
        k: usize,
        bias: Option<&[f32]>,
        w: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let level = level.min(CpuLevel::best());
        let p = level.panel();
        let panels = n.div_ceil(p);
        let mut packed = Slab::zeros(panels * k * p);
        for col in 0..n {
            let panel = &mut packed[col / p * k * p..][..k * p];
            for i in 0..k {
                panel[i * p + col % p] = w(col, i);
            }
        }
        let mut padded = Slab::zeros(panels * p);
        if let Some(b) = bias {
            assert!(b.len() == n, "linear: expected {n} bias values, got {}", b.len());
            padded[..n].copy_from_slice(b);
        }
        Self { level, n, k, packed, bias: padded }
    }

    /// Number of outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Number of inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The weights of output `col` as they were packed, `k` values: a row of `[n, k]`.
    ///
    /// # Panics
    /// There is no such output, or `out` has not `k` values.
    pub fn row(&self, col: usize, out: &mut [f32]) {
        assert!(col < self.n && out.len() == self.k, "linear: row {col} of {}, {} values", self.n, out.len());
        let p = self.level.panel();
        let panel = &self.packed[col / p * self.k * p..];
        out.iter_mut().enumerate().for_each(|(i, v)| *v = panel[i * p + col % p]);
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        4 * (self.packed.len() + self.bias.len())
    }
}

/// `y = act(x Wᵀ + bias)` or `y += act(x Wᵀ + bias)`; x is (m, k), y is (m, n). The rows of x may overlap (windows).
///
/// # Panics
/// The shapes of `x`, `w` and `y` do not fit.
pub fn linear(cx: &Cx, x: Mat<'_>, w: &Linear, act: Act, store: Store, mut y: MatMut<'_>) {
    let m = x.rows();
    assert!(x.cols() == w.k, "linear: expected {} input columns, got {}", w.k, x.cols());
    assert!(y.rows() == m && y.cols() == w.n, "linear: expected output {m}x{}, got {}x{}", w.n, y.rows(), y.cols());
    if m == 0 || w.n == 0 {
        return;
    }
    let p = w.level.panel();
    let panels = w.n.div_ceil(p);
    // Blocks of rows by groups of panels; small products stay on one thread.
    let (row_block, panel_group) = if cx.team.threads() == 1 || m * w.n * w.k < 1 << 17 {
        (m, panels)
    } else if m >= 2 * ROWS {
        (ROWS, (256 / p).max(1))
    } else {
        (m, panels.div_ceil(2 * cx.team.threads()))
    };
    let groups = panels.div_ceil(panel_group);
    let out = Out { ptr: y.ptr(), stride: y.stride(), act, store };
    cx.team.split(m.div_ceil(row_block) * groups, |part| {
        let rows = part / groups * row_block..(part / groups * row_block + row_block).min(m);
        let cols = part % groups * panel_group..(part % groups * panel_group + panel_group).min(panels);
        match w.level {
            CpuLevel::Scalar => scalar(x, w, rows, cols, &out),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `pack_with` bounds the level by what the machine has; the shapes were checked above.
            CpuLevel::Avx2 => unsafe { x86::avx2(x, w, rows, cols, &out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            CpuLevel::Avx512 => unsafe { x86::avx512(x, w, rows, cols, &out) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => scalar(x, w, rows, cols, &out),
        }
    });
}

/// Rows that one task takes: a multiple of both tile heights, small enough that they stay in the second-level cache.
const ROWS: usize = 48;

/// Where the parts write: disjoint rectangles of one matrix.
struct Out {
    ptr: *mut f32,
    stride: usize,
    act: Act,
    store: Store,
}

// SAFETY: each part of `linear` writes only its own rows and columns of the exclusively borrowed output.
unsafe impl Sync for Out {}

fn scalar(x: Mat<'_>, w: &Linear, rows: std::ops::Range<usize>, panels: std::ops::Range<usize>, out: &Out) {
    let p = w.level.panel();
    for r in rows {
        let x = x.row(r);
        for col in panels.start * p..(panels.end * p).min(w.n) {
            let panel = &w.packed[col / p * w.k * p..];
            let mut sum = 0.0;
            for (i, x) in x.iter().enumerate() {
                sum += x * panel[i * p + col % p];
            }
            let v = out.act.scalar(sum + w.bias[col]);
            // SAFETY: r < m and col < n, inside the output whose shape `linear` checked; see `Out`.
            unsafe {
                let y = out.ptr.add(r * out.stride + col);
                *y = if out.store == Store::Add { *y + v } else { v };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Register tiles: MR rows by NP panels of two vectors each, one broadcast of x per row and k.
    //!
    //! Against the scalar form: multiply-add rounds once instead of twice; nothing else differs, the order over k is the
    //! same. With few rows a tile spans several panels, so that enough independent chains hide the latency.

    use super::{Linear, Out, Store};
    use crate::activation::x86::act;
    use crate::array::Mat;
    use crate::simd::Simd;
    use std::arch::x86_64::{__m256, __m512};
    use std::ops::Range;

    /// # Safety
    /// The features of S; `panel .. panel + NP` are panels of `w`, `row .. row + MR` rows of `x` and of the output.
    #[inline(always)]
    unsafe fn tile<S: Simd, const MR: usize, const NP: usize>(
        x: Mat<'_>,
        w: &Linear,
        row: usize,
        panel: usize,
        out: &Out,
    ) {
        let p = 2 * S::LANES;
        // SAFETY: for i < k the loads lie in x's rows and in w's panels; the stores are bounded by n below.
        unsafe {
            let xs = x.ptr().add(row * x.stride());
            let ws = w.packed.as_ptr().add(panel * w.k * p);
            let mut sum = [[[S::splat(0.0); 2]; MR]; NP];
            for i in 0..w.k {
                for (j, sum) in sum.iter_mut().enumerate() {
                    let wp = ws.add((j * w.k + i) * p);
                    let (w0, w1) = (S::load(wp), S::load(wp.add(S::LANES)));
                    for (r, sum) in sum.iter_mut().enumerate() {
                        let v = S::splat(*xs.add(r * x.stride() + i));
                        sum[0] = v.mul_add(w0, sum[0]);
                        sum[1] = v.mul_add(w1, sum[1]);
                    }
                }
            }
            for (j, sum) in sum.iter().enumerate() {
                for h in 0..2 {
                    let col = (panel + j) * p + h * S::LANES;
                    if col >= w.n {
                        break;
                    }
                    let bias = S::load(w.bias.as_ptr().add(col));
                    for (r, sum) in sum.iter().enumerate() {
                        let mut v = act(out.act, sum[h].add(bias));
                        let y = out.ptr.add((row + r) * out.stride + col);
                        let n = w.n - col;
                        if n >= S::LANES {
                            if out.store == Store::Add {
                                v = v.add(S::load(y));
                            }
                            v.store(y);
                        } else {
                            if out.store == Store::Add {
                                v = v.add(S::load_n(y, n));
                            }
                            v.store_n(y, n);
                        }
                    }
                }
            }
        }
    }

    macro_rules! level {
        ($name:ident, $vector:ty, $features:literal, $wide:literal, $tall:literal, [$($mr:literal),*]) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(x: Mat<'_>, w: &Linear, rows: Range<usize>, panels: Range<usize>, out: &Out) {
                let m = rows.len();
                if m == 0 {
                    return;
                }
                if m <= 2 {
                    let mut panel = panels.start;
                    while panel < panels.end {
                        let many = panels.end - panel >= $wide;
                        // SAFETY: this function has the features; rows and panels are in range by `linear`.
                        unsafe {
                            match (m, many) {
                                (1, true) => tile::<$vector, 1, $wide>(x, w, rows.start, panel, out),
                                (1, false) => tile::<$vector, 1, 1>(x, w, rows.start, panel, out),
                                (_, true) => tile::<$vector, 2, $wide>(x, w, rows.start, panel, out),
                                (_, false) => tile::<$vector, 2, 1>(x, w, rows.start, panel, out),
                            }
                        }
                        panel += if many { $wide } else { 1 };
                    }
                    return;
                }
                // Equal blocks of at most the tile's height instead of full ones and a short rest.
                let blocks = m.div_ceil($tall);
                for panel in panels {
                    let mut row = rows.start;
                    for block in 0..blocks {
                        let end = rows.start + m * (block + 1) / blocks;
                        // SAFETY: as above.
                        unsafe {
                            match end - row {
                                $($mr => tile::<$vector, $mr, 1>(x, w, row, panel, out),)*
                                _ => unreachable!("a block has 1 to {} rows", $tall),
                            }
                        }
                        row = end;
                    }
                }
            }
        };
    }

    level!(avx2, __m256, "avx2,fma", 3, 6, [1, 2, 3, 4, 5, 6]);
    level!(avx512, __m512, "avx512f,avx512vl,avx512bw,avx512dq,fma", 4, 12, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
}
