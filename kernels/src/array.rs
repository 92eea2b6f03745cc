use crate::Team;
use std::ops::{Deref, DerefMut, Range};

/// A read-only row-major matrix: `rows` rows of `cols` values, row `r` starting at `r * stride`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

/// A writable row-major matrix with the layout of [`Mat`].
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

fn check(len: usize, rows: usize, cols: usize, stride: usize) {
    assert!(rows <= 1 || cols <= stride, "matrix: rows of {cols} values overlap at a stride of {stride}");
    let need = if rows == 0 || cols == 0 { 0 } else { (rows - 1).saturating_mul(stride).saturating_add(cols) };
    assert!(len >= need, "matrix: {rows} rows of {cols} at stride {stride} need {need} values, got {len}");
}

impl<'a> Mat<'a> {
    /// `rows` dense rows of `cols` values.
    ///
    /// # Panics
    /// `data` is shorter than `rows * cols`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows of `cols` values, `stride` apart. Rows may overlap only in a read-only view made by [`Mat::windows`].
    ///
    /// # Panics
    /// The last row does not fit in `data`, or rows overlap.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        check(data.len(), rows, cols, stride);
        Self { data, rows, cols, stride }
    }

    /// Overlapping windows: `rows` windows of `cols` values, each `hop` values after the one before.
    ///
    /// # Panics
    /// The last window does not fit in `data`.
    pub fn windows(data: &'a [f32], rows: usize, cols: usize, hop: usize) -> Self {
        let need = if rows == 0 { 0 } else { (rows - 1).saturating_mul(hop).saturating_add(cols) };
        assert!(data.len() >= need, "windows: {rows} of {cols} every {hop} need {need} values, got {}", data.len());
        Self { data, rows, cols, stride: hop }
    }

    /// Columns `range` of every row.
    pub fn columns(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.cols, "columns {range:?} of {}", self.cols);
        let start = range.start.min(self.data.len());
        Self { data: &self.data[start..], rows: self.rows, cols: range.len(), stride: self.stride }
    }

    /// Rows `range`.
    pub fn sub_rows(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let start = (range.start * self.stride).min(self.data.len());
        Self { data: &self.data[start..], rows: range.len(), cols: self.cols, stride: self.stride }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between the starts of two rows, in values.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Row `r`.
    pub fn row(&self, r: usize) -> &'a [f32] {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        &self.data[r * self.stride..][..self.cols]
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn ptr(&self) -> *const f32 {
        self.data.as_ptr()
    }
}

impl<'a> MatMut<'a> {
    /// `rows` dense rows of `cols` values.
    ///
    /// # Panics
    /// `data` is shorter than `rows * cols`.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows of `cols` values, `stride` apart.
    ///
    /// # Panics
    /// The last row does not fit in `data`, or rows overlap.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        check(data.len(), rows, cols, stride);
        Self { data, rows, cols, stride }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between the starts of two rows, in values.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Row `r`.
    pub fn row(&mut self, r: usize) -> &mut [f32] {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        &mut self.data[r * self.stride..][..self.cols]
    }

    /// The same matrix, read-only.
    pub fn as_mat(&self) -> Mat<'_> {
        Mat { data: self.data, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// Rows `.. at` and the rest.
    ///
    /// # Panics
    /// There are fewer rows.
    pub fn split_rows(self, at: usize) -> (MatMut<'a>, MatMut<'a>) {
        assert!(at <= self.rows, "row {at} of {}", self.rows);
        // A lone row may be longer than the stride.
        let cut = if at == self.rows { self.data.len() } else { at * self.stride };
        let (front, back) = self.data.split_at_mut(cut);
        let of = |data, rows| MatMut { data, rows, cols: self.cols, stride: self.stride };
        (of(front, at), of(back, self.rows - at))
    }

    /// Calls `f` with as many bands of rows as `room` has rows, threads taking them in turns: the numbers of the rows, the
    /// rows, and the band's own row of `room`. Fewer bands where there are fewer rows.
    pub fn in_bands(
        mut self,
        team: &Team,
        mut room: MatMut<'_>,
        f: impl Fn(Range<usize>, MatMut<'_>, &mut [f32]) + Sync,
    ) {
        let (m, parts) = (self.rows, room.rows.min(self.rows));
        let (bands, rooms) = (Bands::new(&mut self), Bands::new(&mut room));
        team.split(parts, |part| {
            let rows = m * part / parts..m * (part + 1) / parts;
            // SAFETY: every part has a range of rows and a row of the room of its own.
            let (band, mut room) = unsafe { (bands.rows(rows.clone()), rooms.rows(part..part + 1)) };
            f(rows, band, room.row(0));
        });
    }

    /// Calls `f` with every row and its number, `parts` bands of them on different threads.
    pub fn each_row(self, team: &Team, parts: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
        self.in_bands(team, MatMut::new(&mut [], parts, 0), |rows, mut band, _| {
            let first = rows.start;
            rows.for_each(|r| f(r, band.row(r - first)));
        });
    }

    pub(crate) fn ptr(&mut self) -> *mut f32 {
        self.data.as_mut_ptr()
    }
}

/// Working memory as bytes, which overwrite what it held.
pub(crate) fn as_bytes(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: a float is four plain bytes, every pattern of bits is one, and the exclusive borrow passes on.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), 4 * values.len()) }
}

/// Working memory as places for whole numbers; their bits overwrite what it held.
pub(crate) fn as_indices(values: &mut [f32]) -> &mut [u32] {
    // SAFETY: f32 and u32 have the same size and alignment, every pattern of bits is a value of both, and the exclusive
    // borrow passes on.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len()) }
}

/// A matrix whose rows are written by several threads, each its own.
pub(crate) struct Bands<'a> {
    ptr: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    life: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: `rows` hands out memory under the contract that no two threads hold the same row.
unsafe impl Sync for Bands<'_> {}

impl<'a> Bands<'a> {
    pub(crate) fn new(m: &'a mut MatMut<'_>) -> Self {
        let (rows, cols, stride) = (m.rows, m.cols, m.stride);
        Self { ptr: m.ptr(), rows, cols, stride, life: std::marker::PhantomData }
    }

    /// Rows `range`.
    ///
    /// # Safety
    /// No row of the range is in another matrix handed out and still alive.
    pub(crate) unsafe fn rows(&self, range: Range<usize>) -> MatMut<'a> {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let (n, cols, stride) = (range.len(), self.cols, self.stride);
        if n == 0 || cols == 0 {
            return MatMut { data: &mut [], rows: n, cols, stride };
        }
        // SAFETY: the rows lie inside the exclusively borrowed matrix whose length was checked when it was made; the
        // slice ends with its last row's last column, so bands of whole rows do not meet.
        let data =
            unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start * stride), (n - 1) * stride + cols) };
        MatMut { data, rows: n, cols, stride }
    }
}

/// One cache line of floats; the unit that gives [`Slab`] its alignment.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A contiguous, zero-initialised run of `f32` aligned to 64 bytes.
#[derive(Clone)]
pub struct Slab {
    lines: Vec<Line>,
    len: usize,
}

impl Slab {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self { lines: vec![Line([0.0; 16]); len.div_ceil(16)], len }
    }

    /// A copy of `values`.
    pub fn from_slice(values: &[f32]) -> Self {
        let mut slab = Self::zeros(values.len());
        slab.copy_from_slice(values);
        slab
    }
}

impl Deref for Slab {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `lines` holds at least `len` initialised floats in one allocation (`Line` is repr(C), 16 floats, no
        // padding: its size, 64, equals its alignment).
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Slab {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`; the exclusive borrow of `self` makes the slice exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
