//! Matrix product with packed weights: `y = act(x Wᵀ + bias)`.
//!
//! Each output value is one chain of multiply-adds over `k` in ascending order, then the bias: whatever the number of
//! rows, their place in the tile or the number of threads. So a row's result does not depend on the rows that happen to
//! be computed beside it, which is what makes cutting a stream and batching streams exact.
//!
//! In [`Precision::Bf16`] both factors are rounded to bfloat16 (8 bits of mantissa), their products are exact and summed in
//! f32, of each pair of inputs the second first: half the weights to read, and twice the rate where the processor has
//! AVX512-BF16. In [`Precision::Int8`] both are integers of 8 bits in units of their row, summed exactly: a quarter of the
//! weights to read, and four times the rate with AVX512-VNNI. Every level gives the same bits then, up to the activation.
//!
//! Weights that all are numbers of 16 bits, as checkpoints often store them, are held in 16 bits and widened as they are
//! read, for many rows a panel at a time: the same results from half the memory.

mod agree;
mod half;
mod held;
mod int8;
mod lower;

use crate::activation::Act;
use crate::array::{Mat, MatMut, Slab};
use crate::{CpuLevel, Cx};
use held::Held;
use std::ops::Range;
#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;

/// Weights of a linear map from `k` to `n` values, packed for one instruction level.
///
/// Layout: panels of P output columns (P = 8 scalar, 16 AVX2, 32 AVX-512), each panel `k` rows of P weights, zeros in
/// the columns past `n`. In bf16 a value holds the weights of two inputs, the first in its low half; in int8 those of four.
/// In f32 a weight takes 32 bits, or 16 if all of them can.
#[derive(Clone)]
pub struct Linear {
    level: CpuLevel,
    precision: Precision,
    held: Held,
    n: usize,
    k: usize,
    packed: Slab,
    bias: Slab,
    /// In int8, of each output: what 1 stands for, and the bits of the integer that its sums have too much.
    unit: Slab,
    offset: Slab,
}

/// How the factors of a product are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16: the upper half of a 32-bit float, rounded to nearest.
    Bf16,
    /// Integers of 8 bits: weights in 127ths of the largest of their output, inputs of the largest of their row.
    Int8,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
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
        let level = level.here();
        let p = level.panel();
        let panels = n.div_ceil(p);
        let mut packed = Slab::zeros(panels * k * p);
        for col in 0..n {
            let panel = &mut packed[col / p * k * p..][..k * p];
            for i in 0..k {
                panel[i * p + col % p] = w(col, i);
            }
        }
        let held = Held::of(&packed);
        if held != Held::F32 {
            let full = std::mem::replace(&mut packed, Slab::zeros(held.values(panels * k * p)));
            full.iter().enumerate().for_each(|(at, w)| held.put(&mut packed, at, *w));
        }
        let mut padded = Slab::zeros(panels * p);
        if let Some(b) = bias {
            assert!(b.len() == n, "linear: expected {n} bias values, got {}", b.len());
            padded[..n].copy_from_slice(b);
        }
        let (unit, offset) = (Slab::zeros(0), Slab::zeros(0));
        Self { level, precision: Precision::F32, held, n, k, packed, bias: padded, unit, offset }
    }

    /// Rounds the weights, once, to a lower precision; f32 leaves them as they are.
    pub fn lower(&mut self, precision: Precision) {
        if precision == Precision::F32 || self.precision != Precision::F32 {
            return;
        }
        let (p, k) = (self.level.panel(), self.k);
        let panels = self.n.div_ceil(p);
        let mut full = Slab::zeros(panels * k * p);
        full.iter_mut().enumerate().for_each(|(at, w)| *w = self.held.get(&self.packed, at));
        if precision == Precision::Int8 {
            (self.unit, self.offset) = (Slab::zeros(panels * p), Slab::zeros(panels * p));
            for column in 0..panels * p {
                let weights = || (0..k).map(|i| full[(column / p * k + i) * p + column % p]);
                let unit = int8::unit(weights().fold(0.0, |most: f32, w| most.max(w.abs())));
                let n = int8::per_unit(unit);
                self.unit[column] = unit;
                self.offset[column] = int8::offset(weights().map(|w| i32::from(int8::whole(w, n))).sum());
            }
        }
        (self.precision, self.held, self.packed) = (precision, Held::F32, Slab::zeros(0));
        let (depth, together) = (self.depth(), self.together());
        let mut packed = Slab::zeros(panels * depth * p);
        for (j, (panel, lower)) in
            full.chunks_exact((k * p).max(1)).zip(packed.chunks_exact_mut((depth * p).max(1))).enumerate()
        {
            for (i, row) in panel.chunks_exact(p).enumerate() {
                for (c, (v, w)) in lower[i / together * p..][..p].iter_mut().zip(row).enumerate() {
                    *v = match precision {
                        Precision::Int8 => {
                            let n = int8::per_unit(self.unit[j * p + c]);
                            int8::put(*v, i % together, int8::whole(*w, n))
                        }
                        _ => half::put(*v, i % together, *w),
                    };
                }
            }
        }
        self.packed = packed;
    }

    /// Inputs whose weights lie in one value.
    fn together(&self) -> usize {
        match self.precision {
            Precision::F32 => 1,
            Precision::Bf16 => 2,
            Precision::Int8 => 4,
        }
    }

    /// Rows of a panel: inputs, or pairs or fours of them.
    fn depth(&self) -> usize {
        self.k.div_ceil(self.together())
    }

    /// Weight of input `i` of output `column`.
    fn weight(&self, column: usize, i: usize) -> f32 {
        let (p, t) = (self.level.panel(), self.together());
        let at = (column / p * self.depth() + i / t) * p + column % p;
        let v = self.held.get(&self.packed, at);
        match self.precision {
            Precision::F32 => v,
            Precision::Bf16 => half::get(v, i % t),
            Precision::Int8 => f32::from(int8::get(v, i % t).cast_signed()) * self.unit[column],
        }
    }

    /// The weights of panel number `panel` and those behind it.
    fn panel(&self, panel: usize) -> *const f32 {
        let weights = panel * self.depth() * self.level.panel();
        self.packed.as_ptr().wrapping_add(self.held.values(weights))
    }

    /// Number of outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Number of inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The weights of output `col` as they are held, `k` values: a row of `[n, k]`.
    ///
    /// # Panics
    /// There is no such output, or `out` has not `k` values.
    pub fn row(&self, col: usize, out: &mut [f32]) {
        assert!(col < self.n && out.len() == self.k, "linear: row {col} of {}, {} values", self.n, out.len());
        out.iter_mut().enumerate().for_each(|(i, v)| *v = self.weight(col, i));
    }

    /// The bias, `n` values; zeros where there is none.
    pub fn bias(&self) -> &[f32] {
        &self.bias[..self.n]
    }

    /// How the weights are held.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        4 * (self.packed.len() + self.bias.len() + self.unit.len() + self.offset.len())
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
    let threads = if m * w.n * w.k < 1 << 17 { 1 } else { cx.team.free() };
    let (row_block, panel_group) = match threads {
        1 => (ROWS, panels),
        _ if m >= 2 * ROWS => (ROWS, (256 / p).max(1)),
        _ => (m, panels.div_ceil(2 * threads)),
    };
    let groups = panels.div_ceil(panel_group);
    let out = Out { ptr: y.ptr(), stride: y.stride(), act, store, units: &[] };
    cx.team.split(m.div_ceil(row_block) * groups, |part| {
        let rows = part / groups * row_block..(part / groups * row_block + row_block).min(m);
        let cols = part % groups * panel_group..(part % groups * panel_group + panel_group).min(panels);
        if w.precision == Precision::F32 {
            return block(x, w, rows, cols, &out);
        }
        // Each part rounds its own rows: several parts may round the same ones, but none waits for another.
        for first in rows.clone().step_by(ROWS) {
            let rows = first..rows.end.min(first + ROWS);
            let (x, here, out) = (x.sub_rows(rows.clone()), 0..rows.len(), out.from(first));
            lower::lowered(w, x, |x, units| block(x, w, here, cols.clone(), &Out { units, ..out }));
        }
    });
}

/// Output rows `rows` of the panels `panels`. Below f32 `x` holds pairs or fours, as the panels do.
fn block(x: Mat<'_>, w: &Linear, rows: Range<usize>, panels: Range<usize>, out: &Out<'_>) {
    match w.level {
        CpuLevel::Scalar => scalar(x, w, rows, panels, out),
        #[cfg(target_arch = "x86_64")]
        level => {
            let (full, native) = (level == CpuLevel::Avx512, native());
            let product: x86::Block = match (w.precision, w.held) {
                (Precision::F32, Held::F32) if full => x86::avx512,
                (Precision::F32, Held::F32) => x86::avx2,
                (Precision::F32, _) if rows.len() >= held::MANY => return held::widened(w, x, rows, panels, out),
                (Precision::F32, Held::F16) if full => x86::avx512_f16,
                (Precision::F32, Held::F16) => x86::avx2_f16,
                (Precision::F32, Held::Bf16) if full => x86::avx512_brain,
                (Precision::F32, Held::Bf16) => x86::avx2_brain,
                (Precision::Bf16, _) if full && native.bf16 => x86::avx512_bf16,
                (Precision::Bf16, _) if full => x86::avx512_half,
                (Precision::Bf16, _) => x86::avx2_half,
                (Precision::Int8, _) if full && native.vnni => x86::avx512_vnni,
                (Precision::Int8, _) if full => x86::avx512_int8,
                (Precision::Int8, _) => x86::avx2_int8,
            };
            // SAFETY: `pack_with` bounds the level by what the machine has, and holds f16 only where it can be widened;
            // `linear` checked the shapes.
            unsafe { product(x, w, w.panel(panels.start), rows, panels, out) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        _ => scalar(x, w, rows, panels, out),
    }
}

/// Rows that one task takes: a multiple of both tile heights, small enough that they stay in the second-level cache.
const ROWS: usize = 48;

/// Products below f32 that the processor has instructions for.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Native {
    bf16: bool,
    vnni: bool,
}

#[cfg(target_arch = "x86_64")]
fn native() -> Native {
    static NATIVE: OnceLock<Native> = OnceLock::new();
    *NATIVE.get_or_init(|| Native {
        bf16: std::arch::is_x86_feature_detected!("avx512bf16"),
        vnni: std::arch::is_x86_feature_detected!("avx512vnni"),
    })
}

/// Where the parts write: disjoint rectangles of one matrix.
#[derive(Clone, Copy)]
struct Out<'a> {
    ptr: *mut f32,
    stride: usize,
    act: Act,
    store: Store,
    /// In int8, what 1 stands for in each row of inputs.
    units: &'a [f32],
}

impl Out<'_> {
    /// The same with row `first` in place of row 0.
    fn from(&self, first: usize) -> Self {
        Self { ptr: self.ptr.wrapping_add(first * self.stride), ..*self }
    }
}

// SAFETY: each part of `linear` writes only its own rows and columns of the exclusively borrowed output.
unsafe impl Sync for Out<'_> {}

fn scalar(x: Mat<'_>, w: &Linear, rows: Range<usize>, panels: Range<usize>, out: &Out<'_>) {
    let p = w.level.panel();
    for r in rows {
        let x = x.row(r);
        for col in panels.start * p..(panels.end * p).min(w.n) {
            let first = col / p * w.depth() * p + col % p;
            let terms = x.iter().enumerate().map(|(i, x)| (*x, w.held.get(&w.packed, first + i * p)));
            let sum = match w.precision {
                Precision::F32 => terms.fold(0.0, |sum, (x, w)| sum + x * w),
                Precision::Bf16 => terms.fold(0.0, |sum, (x, w)| {
                    let sum = sum + half::get(x, 1) * half::get(w, 1);
                    sum + half::get(x, 0) * half::get(w, 0)
                }),
                Precision::Int8 => {
                    let four = |x, w| {
                        (0..4).map(move |i| i32::from(int8::get(x, i)) * i32::from(int8::get(w, i).cast_signed()))
                    };
                    let sum = terms.flat_map(|(x, w)| four(x, w)).sum();
                    int8::value(sum, w.offset[col]) * (w.unit[col] * out.units[r])
                }
            };
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
    use crate::Act;
    use crate::activation::x86::act;
    use crate::array::Mat;
    use crate::simd::Simd;
    use std::arch::x86_64::*;
    use std::ops::Range;

    /// Rows of the output for panels whose weights lie from the pointer on.
    pub(super) type Block = unsafe fn(Mat<'_>, &Linear, *const f32, Range<usize>, Range<usize>, &Out<'_>);

    /// What one entry of x and a vector of weights add to a vector of sums, and what the sums stand for.
    trait Product<S: Simd> {
        /// # Safety
        /// The features of the product.
        #[inline(always)]
        unsafe fn add(x: S, w: S, sum: S) -> S {
            // SAFETY: the caller's promise.
            unsafe { x.mul_add(w, sum) }
        }

        /// The panel behind `rows` rows of panels.
        #[inline(always)]
        fn panel(first: *const f32, rows: usize) -> *const f32 {
            first.wrapping_add(rows * 2 * S::LANES)
        }

        /// The vector of weights from number `at` of a panel on.
        ///
        /// # Safety
        /// The features of the product; the weights lie in the panel.
        #[inline(always)]
        unsafe fn weights(panel: *const f32, at: usize) -> S {
            // SAFETY: the caller's promise.
            unsafe { S::load(panel.add(at)) }
        }

        /// The sums of row `row` and the outputs from `col` on.
        ///
        /// # Safety
        /// The features of the product; the row is one of the block, the outputs lie in a panel.
        #[inline(always)]
        unsafe fn value(sum: S, _w: &Linear, _col: usize, _out: &Out<'_>, _row: usize) -> S {
            sum
        }
    }

    /// Of floats.
    struct Single;
    /// Of floats, the weights held as f16.
    struct Half;
    /// Of floats, the weights held as bfloat16.
    struct Brain;
    /// Of pairs of bfloat16, taken apart.
    struct Apart;
    /// Of pairs of bfloat16, by AVX512-BF16.
    struct Pairs;
    /// Of fours of bytes, taken apart.
    struct Bytes;
    /// Of fours of bytes, by AVX512-VNNI.
    struct Fours;

    impl<S: Simd> Product<S> for Single {}

    /// Vectors that numbers of 16 bits are widened to.
    trait Widen: Simd {
        /// # Safety
        /// F16C for 8 lanes; `p` is valid for the lanes.
        unsafe fn f16(p: *const u16) -> Self;
        /// # Safety
        /// As of [`Simd`].
        unsafe fn bf16(p: *const u16) -> Self;
    }

    impl Widen for __m256 {
        #[inline(always)]
        unsafe fn f16(p: *const u16) -> Self {
            // SAFETY: trait contract.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        }

        #[inline(always)]
        unsafe fn bf16(p: *const u16) -> Self {
            // SAFETY: trait contract.
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
        }
    }

    impl Widen for __m512 {
        #[inline(always)]
        unsafe fn f16(p: *const u16) -> Self {
            // SAFETY: trait contract.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        }

        #[inline(always)]
        unsafe fn bf16(p: *const u16) -> Self {
            // SAFETY: trait contract.
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
        }
    }

    impl<S: Widen> Product<S> for Half {
        #[inline(always)]
        fn panel(first: *const f32, rows: usize) -> *const f32 {
            first.wrapping_add(rows * S::LANES)
        }

        #[inline(always)]
        unsafe fn weights(panel: *const f32, at: usize) -> S {
            // SAFETY: the caller has S's features and F16C; the weights lie in a panel.
            unsafe { S::f16(panel.cast::<u16>().add(at)) }
        }
    }

    impl<S: Widen> Product<S> for Brain {
        #[inline(always)]
        fn panel(first: *const f32, rows: usize) -> *const f32 {
            first.wrapping_add(rows * S::LANES)
        }

        #[inline(always)]
        unsafe fn weights(panel: *const f32, at: usize) -> S {
            // SAFETY: the caller has S's features; the weights lie in a panel.
            unsafe { S::bf16(panel.cast::<u16>().add(at)) }
        }
    }

    impl<S: Simd> Product<S> for Apart {
        #[inline(always)]
        unsafe fn add(x: S, w: S, sum: S) -> S {
            // SAFETY: the caller has S's features.
            unsafe { x.low_half().mul_add(w.low_half(), x.high_half().mul_add(w.high_half(), sum)) }
        }
    }

    impl Product<__m512> for Pairs {
        #[inline(always)]
        unsafe fn add(x: __m512, w: __m512, sum: __m512) -> __m512 {
            // SAFETY: the caller has AVX512-BF16; both types are 64 plain bytes.
            unsafe {
                let [x, w] = std::mem::transmute::<[__m512; 2], [__m512bh; 2]>([x, w]);
                _mm512_dpbf16_ps(sum, x, w)
            }
        }
    }

    impl Product<__m256> for Bytes {
        #[inline(always)]
        unsafe fn add(x: __m256, w: __m256, sum: __m256) -> __m256 {
            // SAFETY: the caller has AVX2.
            unsafe {
                let (x, w, low) = (_mm256_castps_si256(x), _mm256_castps_si256(w), _mm256_set1_epi16(0xff));
                // Bytes 0 and 2 of each four, then 1 and 3, as 16-bit integers.
                let even =
                    _mm256_madd_epi16(_mm256_and_si256(x, low), _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w)));
                let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(x), _mm256_srai_epi16::<8>(w));
                let sum = _mm256_add_epi32(_mm256_castps_si256(sum), even);
                _mm256_castsi256_ps(_mm256_add_epi32(sum, odd))
            }
        }

        #[inline(always)]
        unsafe fn value(sum: __m256, w: &Linear, col: usize, out: &Out<'_>, row: usize) -> __m256 {
            // SAFETY: the caller has AVX2; a panel's columns all have a unit and an offset, a row its unit.
            unsafe {
                let offset = _mm256_loadu_si256(w.offset.as_ptr().add(col).cast());
                let unit = _mm256_loadu_ps(w.unit.as_ptr().add(col));
                let sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_castps_si256(sum), offset));
                _mm256_mul_ps(sum, _mm256_mul_ps(unit, _mm256_set1_ps(*out.units.get_unchecked(row))))
            }
        }
    }

    impl Product<__m512> for Bytes {
        #[inline(always)]
        unsafe fn add(x: __m512, w: __m512, sum: __m512) -> __m512 {
            // SAFETY: the caller has AVX512BW; as for 256 bits.
            unsafe {
                let (x, w, low) = (_mm512_castps_si512(x), _mm512_castps_si512(w), _mm512_set1_epi16(0xff));
                let even =
                    _mm512_madd_epi16(_mm512_and_si512(x, low), _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(w)));
                let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(x), _mm512_srai_epi16::<8>(w));
                let sum = _mm512_add_epi32(_mm512_castps_si512(sum), even);
                _mm512_castsi512_ps(_mm512_add_epi32(sum, odd))
            }
        }

        #[inline(always)]
        unsafe fn value(sum: __m512, w: &Linear, col: usize, out: &Out<'_>, row: usize) -> __m512 {
            // SAFETY: the caller has AVX512F; as for 256 bits.
            unsafe {
                let offset = _mm512_loadu_si512(w.offset.as_ptr().add(col).cast());
                let unit = _mm512_loadu_ps(w.unit.as_ptr().add(col));
                let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_castps_si512(sum), offset));
                _mm512_mul_ps(sum, _mm512_mul_ps(unit, _mm512_set1_ps(*out.units.get_unchecked(row))))
            }
        }
    }

    impl Product<__m512> for Fours {
        #[inline(always)]
        unsafe fn add(x: __m512, w: __m512, sum: __m512) -> __m512 {
            // SAFETY: the caller has AVX512-VNNI.
            unsafe {
                let (x, w) = (_mm512_castps_si512(x), _mm512_castps_si512(w));
                _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_castps_si512(sum), x, w))
            }
        }

        #[inline(always)]
        unsafe fn value(sum: __m512, w: &Linear, col: usize, out: &Out<'_>, row: usize) -> __m512 {
            // SAFETY: the caller's promise is the same.
            unsafe { <Bytes as Product<__m512>>::value(sum, w, col, out, row) }
        }
    }

    /// The first V vectors of each panel, whose weights lie from `ws` on.
    ///
    /// # Safety
    /// The features of S and P; `panel .. panel + NP` are panels of `w`, `row .. row + MR` rows of `x` and of the output.
    #[inline(always)]
    unsafe fn tile<S: Simd, P: Product<S>, const MR: usize, const NP: usize, const V: usize>(
        x: Mat<'_>,
        w: &Linear,
        ws: *const f32,
        row: usize,
        panel: usize,
        out: &Out<'_>,
    ) {
        let (p, depth) = (2 * S::LANES, w.depth());
        // SAFETY: for i < depth the loads lie in x's rows and in w's panels; the stores are bounded by n below.
        unsafe {
            let xs = x.ptr().add(row * x.stride());
            let mut sum = [[[S::splat(0.0); V]; MR]; NP];
            for i in 0..depth {
                for (j, sum) in sum.iter_mut().enumerate() {
                    let first = (j * depth + i) * p;
                    let mut weights = [S::splat(0.0); V];
                    for (h, w) in weights.iter_mut().enumerate() {
                        *w = P::weights(ws, first + h * S::LANES);
                    }
                    for (r, sum) in sum.iter_mut().enumerate() {
                        let v = S::splat(*xs.add(r * x.stride() + i));
                        for h in 0..V {
                            sum[h] = P::add(v, weights[h], sum[h]);
                        }
                    }
                }
            }
            // Mostly there is nothing else to do, and the sums go from their registers to their places. (With adding to the old
            // content here, too, the compiler keeps the sums of the integer product in memory all along.)
            if out.act == Act::None && out.store == Store::Set && w.n - panel * p >= ((NP - 1) * 2 + V) * S::LANES {
                for (j, sum) in sum.iter().enumerate() {
                    for h in 0..V {
                        let col = (panel + j) * p + h * S::LANES;
                        let bias = S::load(w.bias.as_ptr().add(col));
                        for (r, sum) in sum.iter().enumerate() {
                            let v = P::value(sum[h], w, col, out, row + r).add(bias);
                            v.store(out.ptr.add((row + r) * out.stride + col));
                        }
                    }
                }
                return;
            }
            // Elsewhere they are looked up by number, which only memory can: a copy, which the compiler must not take for the
            // sums themselves, or it clears and keeps those in memory, too.
            let mut kept = [[[S::splat(0.0); V]; MR]; NP];
            for j in 0..NP {
                for r in 0..MR {
                    for h in 0..V {
                        kept[j][r][h] = sum[j][r][h];
                    }
                }
            }
            for (j, sum) in std::hint::black_box(&kept).iter().enumerate() {
                for h in 0..V {
                    let col = (panel + j) * p + h * S::LANES;
                    if col >= w.n {
                        break;
                    }
                    let bias = S::load(w.bias.as_ptr().add(col));
                    for (r, sum) in sum.iter().enumerate() {
                        let mut v = act(out.act, P::value(sum[h], w, col, out, row + r).add(bias));
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

    macro_rules! widen {
        ($name:ident, $vector:ty, $product:ty, $features:literal) => {
            /// The weights of a panel in 32 bits.
            #[target_feature(enable = $features)]
            pub(super) fn $name(panel: *const f32, out: &mut [f32]) {
                let at = (0..out.len()).step_by(<$vector>::LANES);
                for (i, out) in at.zip(out.chunks_exact_mut(<$vector>::LANES)) {
                    // SAFETY: this function has the features; `out` is as long as the panel.
                    unsafe { <$product as Product<$vector>>::weights(panel, i).store(out.as_mut_ptr()) }
                }
            }
        };
    }

    widen!(widen_avx2_f16, __m256, Half, "avx2,fma,f16c");
    widen!(widen_avx2_brain, __m256, Brain, "avx2,fma");
    widen!(widen_avx512_f16, __m512, Half, "avx512f,avx512vl,avx512bw,avx512dq,fma");
    widen!(widen_avx512_brain, __m512, Brain, "avx512f,avx512vl,avx512bw,avx512dq,fma");

    macro_rules! level {
        ($name:ident, $vector:ty, $product:ty, $features:literal, $wide:literal, $tall:literal, [$($mr:literal),*]) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(
                x: Mat<'_>,
                w: &Linear,
                ws: *const f32,
                rows: Range<usize>,
                panels: Range<usize>,
                out: &Out<'_>,
            ) {
                let m = rows.len();
                let at = |panel: usize| <$product as Product<$vector>>::panel(ws, (panel - panels.start) * w.depth());
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
                                (1, true) => tile::<$vector, $product, 1, $wide, 2>(x, w, at(panel), rows.start, panel, out),
                                (1, false) => tile::<$vector, $product, 1, 1, 2>(x, w, at(panel), rows.start, panel, out),
                                (_, true) => tile::<$vector, $product, 2, $wide, 2>(x, w, at(panel), rows.start, panel, out),
                                (_, false) => tile::<$vector, $product, 2, 1, 2>(x, w, at(panel), rows.start, panel, out),
                            }
                        }
                        panel += if many { $wide } else { 1 };
                    }
                    return;
                }
                // Equal blocks of at most the tile's height instead of full ones and a short rest.
                let blocks = m.div_ceil($tall);
                for panel in panels.clone() {
                    let ws = at(panel);
                    let half = w.n - panel * w.level.panel() <= w.level.panel() / 2;
                    let mut row = rows.start;
                    for block in 0..blocks {
                        let end = rows.start + m * (block + 1) / blocks;
                        // SAFETY: as above.
                        unsafe {
                            match (end - row, half) {
                                $(($mr, false) => tile::<$vector, $product, $mr, 1, 2>(x, w, ws, row, panel, out),
                                ($mr, true) => tile::<$vector, $product, $mr, 1, 1>(x, w, ws, row, panel, out),)*
                                _ => unreachable!("a block has 1 to {} rows", $tall),
                            }
                        }
                        row = end;
                    }
                }
            }
        };
    }

    macro_rules! avx512 {
        ($name:ident, $product:ty, $features:literal) => {
            level!($name, __m512, $product, $features, 4, 12, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        };
    }

    level!(avx2, __m256, Single, "avx2,fma", 3, 6, [1, 2, 3, 4, 5, 6]);
    level!(avx2_f16, __m256, Half, "avx2,fma,f16c", 3, 6, [1, 2, 3, 4, 5, 6]);
    level!(avx2_brain, __m256, Brain, "avx2,fma", 3, 6, [1, 2, 3, 4, 5, 6]);
    level!(avx2_int8, __m256, Bytes, "avx2,fma", 3, 6, [1, 2, 3, 4, 5, 6]);
    level!(avx2_half, __m256, Apart, "avx2,fma", 3, 6, [1, 2, 3, 4, 5, 6]);
    avx512!(avx512, Single, "avx512f,avx512vl,avx512bw,avx512dq,fma");
    avx512!(avx512_f16, Half, "avx512f,avx512vl,avx512bw,avx512dq,fma");
    avx512!(avx512_brain, Brain, "avx512f,avx512vl,avx512bw,avx512dq,fma");
    avx512!(avx512_int8, Bytes, "avx512f,avx512vl,avx512bw,avx512dq,fma");
    avx512!(avx512_vnni, Fours, "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,fma");
    avx512!(avx512_half, Apart, "avx512f,avx512vl,avx512bw,avx512dq,fma");
    avx512!(avx512_bf16, Pairs, "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,fma");
}
