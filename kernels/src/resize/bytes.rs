//! Pillow's bicubic resize of bytes (its `ImagingResample` for 8 bits per channel), planned once per pair of sizes.
//!
//! The plan holds, per axis and output place, the first input place and the weights in fixed point. Columns first, as
//! Pillow does (from version 13 it does rows first where they shrink by more than twice as many pixels).

use super::cubic;
use crate::{CpuLevel, Cx};
use std::ops::Range;

/// Bits after the point of a weight: a byte times a weight, summed, stays inside 32 bits.
pub(super) const PRECISION: u32 = 32 - 8 - 2;

/// The part of a resized image that is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// Weights of one axis for the output places that are made.
pub(super) struct Axis {
    /// First input place of each output place.
    first: Vec<usize>,
    /// Weights of each output place, `taps` of them, zeros after (or before) those that count.
    weights: Vec<i32>,
    pub(super) taps: usize,
}

impl Axis {
    /// Output places `made` of `to`, which divide `part` of the input's `len` places among them. The number of taps is a
    /// multiple of `lanes`, so far as the input is long enough.
    fn new(len: usize, part: Range<f64>, to: usize, made: Range<usize>, lanes: usize) -> Self {
        let scale = (part.end - part.start) / to as f64;
        let shrink = scale.max(1.0);
        let support = 2.0 * shrink;
        let mut windows: Vec<(usize, Vec<i32>)> = made
            .map(|i| {
                let centre = part.start + (i as f64 + 0.5) * scale;
                let first = (centre - support + 0.5).max(0.0) as usize;
                let last = ((centre + support + 0.5) as usize).min(len);
                let weight = |j: usize| cubic((j as f64 - centre + 0.5) * (1.0 / shrink), -0.5);
                let sum: f64 = (first..last).map(weight).sum();
                let fixed = |w: f64| {
                    let w = w / sum * f64::from(1u32 << PRECISION);
                    (if w < 0.0 { w - 0.5 } else { w + 0.5 }) as i32
                };
                let mut weights: Vec<i32> = (first..last).map(|j| fixed(weight(j))).collect();
                // Zeros at both ends weigh nothing.
                let zeros = weights.iter().take_while(|w| **w == 0).count().min(weights.len().saturating_sub(1));
                weights.drain(..zeros);
                weights.truncate(weights.iter().rposition(|w| *w != 0).map_or(1, |last| last + 1));
                (first + zeros, weights)
            })
            .collect();
        let most = windows.iter().map(|w| w.1.len()).max().unwrap_or(1);
        let taps = most.next_multiple_of(lanes).min(len);
        for (first, weights) in &mut windows {
            // All windows get the same number of taps; near the end they begin earlier.
            let earlier = (*first + taps).saturating_sub(len);
            *first -= earlier;
            weights.splice(..0, std::iter::repeat_n(0, earlier));
            weights.resize(taps, 0);
        }
        let weights = windows.iter().flat_map(|w| w.1.iter().copied()).collect();
        Self { first: windows.iter().map(|w| w.0).collect(), weights, taps }
    }

    /// Input places that are read.
    fn span(&self) -> Range<usize> {
        let first = self.first.iter().min().copied().unwrap_or(0);
        first..self.first.iter().max().map_or(first, |last| last + self.taps)
    }

    fn window(&self, i: usize) -> (usize, &[i32]) {
        (self.first[i], &self.weights[i * self.taps..][..self.taps])
    }

    pub(super) fn windows(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.first.iter().copied().zip(self.weights.chunks_exact(self.taps))
    }
}

/// A resize of interleaved bytes from one size to another, planned: weights are computed once, and a call allocates
/// nothing.
pub struct Resize {
    channels: usize,
    from: (usize, usize),
    crop: Crop,
    pub(super) columns: Axis,
    rows: Axis,
    /// Weights of `columns` spread over the channels of the pixels that share a vector; empty where the input is too
    /// narrow for vectors.
    pub(super) spread: Vec<i32>,
}

/// Pixels of 1, 2, 3 or 4 channels that share a vector of eight; three channels take the room of four.
pub(super) const fn pixels(channels: usize) -> usize {
    match channels {
        1 => 8,
        2 => 4,
        _ => 2,
    }
}

impl Resize {
    /// Plans the resize of images of `from` = (rows, columns) pixels to `to`, of which `crop` is made.
    ///
    /// # Panics
    /// A size is zero, `crop` reaches beyond `to`, or `channels` is not 1 to 4.
    pub fn new(channels: usize, from: (usize, usize), to: (usize, usize), crop: Crop) -> Self {
        Self::of_part(channels, from, (0.0..from.0 as f64, 0.0..from.1 as f64), to, crop)
    }

    /// As [`Resize::new`], with the image's edges at other places of the input than its own: a chroma plane of half the
    /// size has `0.0..height / 2`, whole or not.
    ///
    /// # Panics
    /// As [`Resize::new`]; a part reaches beyond the input or is empty.
    pub fn of_part(
        channels: usize,
        from: (usize, usize),
        (rows, columns): (Range<f64>, Range<f64>),
        to: (usize, usize),
        crop: Crop,
    ) -> Self {
        assert!((1..=4).contains(&channels), "resize: expected 1 to 4 channels, got {channels}");
        assert!(
            from.0 > 0 && from.1 > 0 && crop.height > 0 && crop.width > 0,
            "resize: expected images, got {from:?} and {crop:?}"
        );
        assert!(
            crop.top + crop.height <= to.0 && crop.left + crop.width <= to.1,
            "resize: expected a part of {to:?}, got {crop:?}"
        );
        for (part, len) in [(&rows, from.0), (&columns, from.1)] {
            assert!(
                0.0 <= part.start && part.start < part.end && part.end <= len as f64,
                "resize: expected a part of {len}, got {part:?}"
            );
        }
        let columns = Axis::new(from.1, columns, to.1, crop.left..crop.left + crop.width, pixels(channels));
        let rows = Axis::new(from.0, rows, to.0, crop.top..crop.top + crop.height, 1);
        let spread = spread(channels, &columns);
        Self { channels, from, crop, columns, rows, spread }
    }

    /// The part of the resized image that is made.
    pub fn crop(&self) -> Crop {
        self.crop
    }

    /// Bytes of working memory that a call needs.
    pub fn scratch_len(&self) -> usize {
        self.rows.span().len() * self.row_len()
    }

    /// Bytes of the output.
    pub fn out_len(&self) -> usize {
        self.crop.height * self.row_len()
    }

    /// First input column and weights (2²² is 1) of each output column, as many weights for each.
    pub fn columns_plan(&self) -> (&[usize], &[i32]) {
        (&self.columns.first, &self.columns.weights)
    }

    /// First input row and weights of each output row, as many weights for each.
    pub fn rows_plan(&self) -> (&[usize], &[i32]) {
        (&self.rows.first, &self.rows.weights)
    }

    /// Input rows that are read.
    pub fn rows_read(&self) -> Range<usize> {
        self.rows.span()
    }

    fn row_len(&self) -> usize {
        self.crop.width * self.channels
    }

    /// Resizes an image whose rows are `stride` bytes apart; `out` gets the crop's rows without gaps.
    ///
    /// # Panics
    /// `src`, `scratch` or `out` is too short, or rows overlap.
    pub fn run(&self, cx: &Cx, src: &[u8], stride: usize, scratch: &mut [u8], out: &mut [u8]) {
        let (height, width) = self.from;
        let line = width * self.channels;
        assert!(stride >= line, "resize: expected rows of {line} bytes, got {stride}");
        let need = (height - 1) * stride + line;
        assert!(src.len() >= need, "resize: expected {need} bytes of image, got {}", src.len());
        assert!(scratch.len() >= self.scratch_len(), "resize: expected {} bytes of scratch", self.scratch_len());
        assert!(out.len() >= self.out_len(), "resize: expected {} bytes of output", self.out_len());
        match cx.level.here() {
            CpuLevel::Scalar => self.passes(cx, src, stride, scratch, out, columns, rows),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `here` bounds the level by what the machine has.
            CpuLevel::Avx2 | CpuLevel::Avx512 => unsafe { self.avx2(cx, src, stride, scratch, out) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => self.passes(cx, src, stride, scratch, out, columns, rows),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn avx2(&self, cx: &Cx, src: &[u8], stride: usize, scratch: &mut [u8], out: &mut [u8]) {
        use super::x86;
        let rows = |src: &[u8], len: usize, weights: &[i32], out: &mut [u8]| x86::rows(src, len, weights, out);
        match (self.spread.is_empty(), self.channels) {
            (true, _) => self.passes(cx, src, stride, scratch, out, columns, rows),
            (_, 1) => self.passes(cx, src, stride, scratch, out, |p, src, out| x86::columns::<1>(p, src, out), rows),
            (_, 2) => self.passes(cx, src, stride, scratch, out, |p, src, out| x86::columns::<2>(p, src, out), rows),
            (_, 3) => self.passes(cx, src, stride, scratch, out, |p, src, out| x86::columns::<3>(p, src, out), rows),
            _ => self.passes(cx, src, stride, scratch, out, |p, src, out| x86::columns::<4>(p, src, out), rows),
        }
    }

    /// Columns of the rows that are needed, then rows, each in bands of rows that the threads share.
    fn passes(
        &self,
        cx: &Cx,
        src: &[u8],
        stride: usize,
        scratch: &mut [u8],
        out: &mut [u8],
        columns: impl Fn(&Self, &[u8], &mut [u8]) + Sync,
        rows: impl Fn(&[u8], usize, &[i32], &mut [u8]) + Sync,
    ) {
        let (span, len) = (self.rows.span(), self.row_len());
        let (wide, out) = (&mut scratch[..self.scratch_len()], &mut out[..self.out_len()]);
        in_bands(cx, wide, len, |row, wide| {
            columns(self, &src[(span.start + row) * stride..][..self.from.1 * self.channels], wide);
        });
        let wide = &*wide;
        in_bands(cx, out, len, |row, out| {
            let (first, weights) = self.rows.window(row);
            rows(&wide[(first - span.start) * len..], len, weights, out);
        });
    }
}

/// Calls `f` with every row of `len` bytes and its number, bands of rows on different threads.
fn in_bands(cx: &Cx, data: &mut [u8], len: usize, f: impl Fn(usize, &mut [u8]) + Sync) {
    /// The rows; each part of the work owns its band of them.
    struct Rows(*mut u8);
    // SAFETY: the parts of one call touch disjoint rows of exclusively borrowed memory.
    unsafe impl Sync for Rows {}
    impl Rows {
        fn at(&self, offset: usize) -> *mut u8 {
            self.0.wrapping_add(offset)
        }
    }
    let rows = data.len() / len;
    let parts = cx.team.threads().min(rows);
    let data = Rows(data.as_mut_ptr());
    cx.team.split(parts, |part| {
        for row in rows * part / parts..rows * (part + 1) / parts {
            // SAFETY: row < rows bounds the slice, and only this part has this row.
            f(row, unsafe { std::slice::from_raw_parts_mut(data.at(row * len), len) });
        }
    });
}

/// A sum in fixed point as a byte.
#[inline(always)]
fn byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

pub(super) const HALF: i32 = 1 << (PRECISION - 1);

/// One output pixel: its window of `src` against `weights`.
pub(super) fn column(channels: usize, src: &[u8], weights: &[i32], out: &mut [u8]) {
    for (c, out) in out.iter_mut().enumerate() {
        let sum = weights.iter().enumerate().map(|(k, w)| w * i32::from(src[k * channels + c])).sum::<i32>();
        *out = byte(HALF + sum);
    }
}

/// One row's columns.
fn columns(plan: &Resize, src: &[u8], out: &mut [u8]) {
    for ((first, weights), out) in plan.columns.windows().zip(out.chunks_exact_mut(plan.channels)) {
        column(plan.channels, &src[first * plan.channels..], weights, out);
    }
}

/// `out[i] = Σ_k weights[k] · src[k · len + i]` for `i` in `from..len`.
pub(super) fn run(src: &[u8], len: usize, weights: &[i32], from: usize, out: &mut [u8]) {
    for (i, out) in out.iter_mut().enumerate().take(len).skip(from) {
        let sum = weights.iter().enumerate().map(|(k, w)| w * i32::from(src[k * len + i])).sum::<i32>();
        *out = byte(HALF + sum);
    }
}

/// One output row.
fn rows(src: &[u8], len: usize, weights: &[i32], out: &mut [u8]) {
    run(src, len, weights, 0, out);
}

/// The weights of `columns` in the order in which vectors of eight meet the bytes; empty where the input is too narrow.
fn spread(channels: usize, columns: &Axis) -> Vec<i32> {
    let (group, lanes) = (pixels(channels), 8 / pixels(channels));
    if !columns.taps.is_multiple_of(group) {
        return Vec::new();
    }
    columns.weights.iter().flat_map(|w| std::iter::repeat_n(*w, lanes)).collect()
}
