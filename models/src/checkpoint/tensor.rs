//! Numbers in bytes: types, strides, conversion.

use half::{bf16, f16};

/// Longest side of a tensor.
const MAX_SIDE: usize = 1 << 31;

/// Number type of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Dtype {
    Bool,
    U8,
    I8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F16,
    BF16,
    F32,
    F64,
}

impl Dtype {
    /// Whether it is a weight's: not a whole number's.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
    }

    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Dtype::Bool | Dtype::U8 | Dtype::I8 => 1,
            Dtype::I16 | Dtype::U16 | Dtype::F16 | Dtype::BF16 => 2,
            Dtype::I32 | Dtype::U32 | Dtype::F32 => 4,
            Dtype::I64 | Dtype::U64 | Dtype::F64 => 8,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// Where a tensor's numbers lie: a strided view of one of the file's storages. Views may overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// In numbers, one per dimension.
    stride: Vec<usize>,
    /// First number's place in the storage, in bytes.
    offset: usize,
    pub(super) storage: usize,
}

/// Why a view was refused: what would fit, what it asks for.
pub(super) struct Misfit {
    pub(super) expected: String,
    pub(super) got: String,
}

impl Tensor {
    /// A view of `shape` with `stride` from byte `offset` of a storage of `bytes` bytes.
    pub(super) fn new(
        dtype: Dtype,
        shape: Vec<usize>,
        stride: Vec<usize>,
        offset: usize,
        (storage, bytes): (usize, usize),
    ) -> Result<Self, Misfit> {
        let misfit = |got: String| Misfit { expected: format!("a view inside {bytes} bytes"), got };
        if shape.len() != stride.len() {
            return Err(misfit(format!("{} sizes and {} strides", shape.len(), stride.len())));
        }
        // A tensor without values fits anywhere, so its sizes are bounded here; those of others by their bytes, too.
        if shape.iter().any(|s| *s > MAX_SIDE)
            || shape.iter().try_fold(1usize, |n, s| n.checked_mul((*s).max(1))).is_none()
        {
            return Err(misfit(format!("{dtype} {shape:?}")));
        }
        let end = || {
            let last = shape
                .iter()
                .zip(&stride)
                .try_fold(0usize, |n, (len, step)| n.checked_add(len.saturating_sub(1).checked_mul(*step)?))?;
            last.checked_add(1)?.checked_mul(dtype.size())?.checked_add(offset)
        };
        if !shape.contains(&0) && end().is_none_or(|end| end > bytes) {
            return Err(misfit(format!("{dtype} {shape:?}, strides {stride:?}, at byte {offset}")));
        }
        Ok(Self { dtype, shape, stride, offset, storage })
    }

    /// A dense row-major view.
    pub(super) fn dense(
        dtype: Dtype,
        shape: Vec<usize>,
        offset: usize,
        storage: (usize, usize),
    ) -> Result<Self, Misfit> {
        let mut stride = vec![1usize; shape.len()];
        for i in (1..shape.len()).rev() {
            // A product that overflows belongs to a shape that `new` refuses, or to an empty one.
            stride[i - 1] = stride[i].saturating_mul(shape[i]);
        }
        Self::new(dtype, shape, stride, offset, storage)
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        if self.shape.contains(&0) { 0 } else { self.shape.iter().product() }
    }

    /// What tells views apart: storage, offset, shape.
    pub(super) fn place(&self) -> (usize, usize, &[usize]) {
        (self.storage, self.offset, &self.shape)
    }

    /// Every value in row-major order, made by `convert` from its bytes.
    fn read<const N: usize, T>(&self, storage: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
        let len = self.len();
        let mut out = Vec::with_capacity(len);
        if len == 0 {
            return out;
        }
        let bytes = &storage[self.offset..];
        // Dimensions of one value, and those that continue the one inside them, need no step of their own.
        let mut dims: Vec<(usize, usize)> = Vec::with_capacity(self.shape.len());
        for (&len, &step) in self.shape.iter().zip(&self.stride).filter(|(len, _)| **len != 1) {
            match dims.last_mut() {
                Some((outer, outer_step)) if *outer_step == len * step => (*outer, *outer_step) = (*outer * len, step),
                _ => dims.push((len, step)),
            }
        }
        let (inner, step) = dims.pop().unwrap_or((1, 1));
        let mut index = vec![0; dims.len()];
        let mut first = 0;
        loop {
            if step == 1 {
                out.extend(bytes[first * N..(first + inner) * N].as_chunks::<N>().0.iter().map(|b| convert(*b)));
            } else {
                out.extend((0..inner).map(|i| {
                    let at = (first + i * step) * N;
                    convert(std::array::from_fn(|k| bytes[at + k]))
                }));
            }
            let mut dim = dims.len();
            loop {
                if dim == 0 {
                    return out;
                }
                dim -= 1;
                let (len, step) = dims[dim];
                index[dim] += 1;
                first += step;
                if index[dim] < len {
                    break;
                }
                first -= len * step;
                index[dim] = 0;
            }
        }
    }

    /// The values as f64: exact but for integers of more than 53 bits.
    pub(super) fn f64(&self, storage: &[u8]) -> Vec<f64> {
        match self.dtype {
            Dtype::Bool | Dtype::U8 => self.read(storage, |[b]| f64::from(b)),
            Dtype::I8 => self.read(storage, |b| f64::from(i8::from_le_bytes(b))),
            Dtype::I16 => self.read(storage, |b| f64::from(i16::from_le_bytes(b))),
            Dtype::U16 => self.read(storage, |b| f64::from(u16::from_le_bytes(b))),
            Dtype::I32 => self.read(storage, |b| f64::from(i32::from_le_bytes(b))),
            Dtype::U32 => self.read(storage, |b| f64::from(u32::from_le_bytes(b))),
            Dtype::I64 => self.read(storage, |b| i64::from_le_bytes(b) as f64),
            Dtype::U64 => self.read(storage, |b| u64::from_le_bytes(b) as f64),
            Dtype::F16 => self.read(storage, |b| f16::from_le_bytes(b).to_f64()),
            Dtype::BF16 => self.read(storage, |b| bf16::from_le_bytes(b).to_f64()),
            Dtype::F32 => self.read(storage, |b| f64::from(f32::from_le_bytes(b))),
            Dtype::F64 => self.read(storage, f64::from_le_bytes),
        }
    }

    /// The values as f32, rounded once where they do not fit.
    pub(super) fn f32(&self, storage: &[u8]) -> Vec<f32> {
        match self.dtype {
            Dtype::Bool | Dtype::U8 => self.read(storage, |[b]| f32::from(b)),
            Dtype::I8 => self.read(storage, |b| f32::from(i8::from_le_bytes(b))),
            Dtype::I16 => self.read(storage, |b| f32::from(i16::from_le_bytes(b))),
            Dtype::U16 => self.read(storage, |b| f32::from(u16::from_le_bytes(b))),
            Dtype::I32 => self.read(storage, |b| i32::from_le_bytes(b) as f32),
            Dtype::U32 => self.read(storage, |b| u32::from_le_bytes(b) as f32),
            Dtype::I64 => self.read(storage, |b| i64::from_le_bytes(b) as f32),
            Dtype::U64 => self.read(storage, |b| u64::from_le_bytes(b) as f32),
            Dtype::F16 => self.read(storage, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => self.read(storage, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F32 => self.read(storage, f32::from_le_bytes),
            Dtype::F64 => self.read(storage, |b| f64::from_le_bytes(b) as f32),
        }
    }

    /// The values of a tensor of bytes or booleans.
    pub(super) fn u8(&self, storage: &[u8]) -> Vec<u8> {
        self.read(storage, |[b]| b)
    }
}
