//! Softmax attention of one query over a bounded number of remembered keys: a window, or the last W steps of a stream.
//!
//! ```text
//! a[s] = (Σ_d q[d] k[s][d] + bias[age(s)]) · scale         per head, for the slots s that are filled
//! y[d] = Σ_s softmax(a)[s] v[s][d]                         the largest a is subtracted first
//! ```
//!
//! Slots are written in the order 0, 1, …, and over again: a key's slot follows from its place in the stream alone, and
//! sums run over slots. So the result does not depend on how the stream is cut, and the cost is bounded by the slots.
//!
//! Keys lie transposed, (heads, dim, slots filled up to [`LANES`]), because the vector runs over slots; values lie as
//! they come, (slots, heads · dim).

mod agree;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::{CpuLevel, Cx};

/// Slots come in multiples of this.
pub const LANES: usize = 16;

/// Sizes of a memory of keys and values.
///
/// # Panics
/// All that is computed from them, if a product overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Heads.
    pub heads: usize,
    /// Values of a key.
    pub dim: usize,
    /// Keys that are remembered at most.
    pub slots: usize,
}

/// A length, of which no product wraps: what is unsafe below relies on it.
fn times(a: usize, b: usize) -> usize {
    a.checked_mul(b).expect("attention: sizes that fit in memory")
}

impl Sizes {
    /// Slots filled up to whole vectors.
    pub fn padded(&self) -> usize {
        self.slots.checked_next_multiple_of(LANES).expect("attention: slots that fit in memory")
    }

    /// Columns of a query, of all keys or values of a step, and of a result.
    pub fn width(&self) -> usize {
        times(self.heads, self.dim)
    }

    /// Shape of the keys.
    pub fn k_shape(&self) -> [usize; 3] {
        [self.heads, self.dim, self.padded()]
    }

    /// Shape of the values.
    pub fn v_shape(&self) -> [usize; 2] {
        [self.slots, self.width()]
    }

    /// Working memory of [`attend`].
    pub fn scratch_len(&self) -> usize {
        times(self.heads, self.padded())
    }

    fn k_len(&self) -> usize {
        times(self.width(), self.padded())
    }

    fn v_len(&self) -> usize {
        times(self.slots, self.width())
    }

    /// The key of a slot, head by head.
    pub fn key<'a>(&self, k: &'a [f32], slot: usize) -> impl Iterator<Item = f32> + 'a {
        k.iter().skip(slot).step_by(self.padded()).take(self.width()).copied()
    }
}

/// A bias by age, for each head: made once, read at every step.
#[derive(Clone)]
pub struct Bias {
    /// (heads, slots), oldest first.
    table: Vec<f32>,
}

impl Bias {
    /// The bias `of(head, age)`; age 0 is the newest key.
    pub fn new(sizes: Sizes, of: impl Fn(usize, usize) -> f32) -> Self {
        let n = sizes.slots;
        Self { table: (0..times(sizes.heads, n)).map(|i| of(i / n, n - 1 - i % n)).collect() }
    }
}

/// Writes a step's key and value (all heads) to a slot.
///
/// # Panics
/// A length does not fit, or there is no such slot.
pub fn remember(sizes: Sizes, slot: usize, key: &[f32], value: &[f32], k: &mut [f32], v: &mut [f32]) {
    let width = sizes.width();
    assert!(slot < sizes.slots, "attention: slot {slot} of {}", sizes.slots);
    assert!(key.len() == width && value.len() == width, "attention: expected a key and a value of {width}");
    assert!(k.len() == sizes.k_len() && v.len() == sizes.v_len(), "attention: a memory of another size");
    k.iter_mut().skip(slot).step_by(sizes.padded()).zip(key).for_each(|(k, x)| *k = *x);
    v[slot * width..][..width].copy_from_slice(value);
}

/// A query to a memory.
pub struct Query<'a> {
    /// Sizes.
    pub sizes: Sizes,
    /// The query, all heads.
    pub q: &'a [f32],
    /// The keys.
    pub k: &'a [f32],
    /// The values.
    pub v: &'a [f32],
    /// Slots that are filled, from slot 0.
    pub filled: usize,
    /// Scale of each head.
    pub scale: &'a [f32],
    /// Bias by age, and the slot of the newest key.
    pub bias: Option<(&'a Bias, usize)>,
}

/// Answers a query: `y` gets (heads · dim) values.
///
/// # Panics
/// A length does not fit, or no slot is filled.
pub fn attend(cx: &Cx, x: &Query<'_>, scratch: &mut [f32], y: &mut [f32]) {
    let s = x.sizes;
    assert!(x.q.len() == s.width() && y.len() == s.width(), "attention: expected a query of {} values", s.width());
    assert!(x.k.len() == s.k_len() && x.v.len() == s.v_len(), "attention: a memory of another size");
    assert!(x.filled > 0 && x.filled <= s.slots, "attention: {} of {} slots filled", x.filled, s.slots);
    assert!(x.scale.len() == s.heads, "attention: expected {} scales, got {}", s.heads, x.scale.len());
    assert!(scratch.len() >= s.scratch_len(), "attention: expected {} values of scratch", s.scratch_len());
    if let Some((bias, newest)) = x.bias {
        assert!(bias.table.len() == times(s.heads, s.slots) && newest < x.filled, "attention: a bias of another size");
    }
    let io = Io { scores: scratch.as_mut_ptr(), y: y.as_mut_ptr() };
    let io = &io;
    let head = |head: usize| {
        // SAFETY: each head has its own part of both, inside the lengths checked above.
        let (scores, y) = unsafe {
            (
                std::slice::from_raw_parts_mut(io.scores.add(head * s.padded()), s.padded()),
                std::slice::from_raw_parts_mut(io.y.add(head * s.dim), s.dim),
            )
        };
        match cx.level.here() {
            CpuLevel::Scalar => scalar(x, head, scores, y),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `here` bounds the level by what the machine has; every length was checked above.
            CpuLevel::Avx2 => unsafe { x86::avx2(x, head, scores, y) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            CpuLevel::Avx512 => unsafe { x86::avx512(x, head, scores, y) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => scalar(x, head, scores, y),
        }
    };
    if x.filled * s.width() < 1 << 15 {
        (0..s.heads).for_each(head);
    } else {
        cx.team.split(s.heads, head);
    }
}

/// Where the heads write.
struct Io {
    scores: *mut f32,
    y: *mut f32,
}

// SAFETY: the heads of one call touch disjoint parts of exclusively borrowed memory.
unsafe impl Sync for Io {}

impl Query<'_> {
    /// The biases of this head's slots in two runs: of slots 0 ..= newest, then of those after it, which are older.
    fn biases(&self, head: usize) -> Option<(&[f32], &[f32])> {
        self.bias.map(|(bias, newest)| {
            let table = &bias.table[head * self.sizes.slots..][..self.sizes.slots];
            (&table[self.sizes.slots - 1 - newest..], &table[..self.filled - 1 - newest])
        })
    }
}

/// The definition, head by head.
fn scalar(x: &Query<'_>, head: usize, scores: &mut [f32], y: &mut [f32]) {
    let s = x.sizes;
    let scores = &mut scores[..x.filled];
    for (slot, score) in scores.iter_mut().enumerate() {
        *score = (0..s.dim).map(|d| x.q[head * s.dim + d] * x.k[(head * s.dim + d) * s.padded() + slot]).sum();
    }
    if let Some((new, old)) = x.biases(head) {
        scores.iter_mut().zip(new.iter().chain(old)).for_each(|(score, b)| *score += b);
    }
    scores.iter_mut().for_each(|score| *score *= x.scale[head]);
    crate::activation::softmax(scores);
    y.fill(0.0);
    for (slot, p) in scores.iter().enumerate() {
        let v = &x.v[slot * s.width() + head * s.dim..][..s.dim];
        y.iter_mut().zip(v).for_each(|(y, v)| *y += p * v);
    }
}
