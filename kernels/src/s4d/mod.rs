//! The recurrence of S4 and S4D (Gu et al. 2022, arXiv 2111.00396 and 2206.11893): complex states that decay and turn,
//! each on its own, with or without a correction of low rank that couples them.
//!
//! ```text
//! q_r  = 2 Re Σ_n t_r[n] z[n]                        r < rank; nothing in S4D
//! z[n] ← a[n] z[n] + b[n] u + ε - Σ_r p_r[n] q_r     complex, one z per feature and n; ε: see [`crate::TINY`]
//! y_c  = Re Σ_n c_c[n] z[n] + d_c u                  of the new z, per output channel c
//! ```
//!
//! `a`, `b`, `p`, `t` are discretised. Of each conjugate pair of states one is kept: `c` is then twice the model's C.
//!
//! Features come in blocks of [`LANES`], the last one filled up with zeros: a state is (blocks, N, 2, LANES), real parts
//! before imaginary parts, so that all that a vector of features needs lies together.

mod agree;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::array::{Mat, MatMut, Slab};
use crate::{CpuLevel, Cx};

/// Features of a block.
pub const LANES: usize = 16;

/// Ranks of the correction that there is code for.
pub const MAX_RANK: usize = 4;

/// Sizes of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Features H.
    pub features: usize,
    /// States N per feature.
    pub states: usize,
    /// Output channels. None: the state is advanced and nothing is read.
    pub channels: usize,
    /// Rank of the correction; 0 in S4D.
    pub rank: usize,
}

impl Sizes {
    /// Blocks of features.
    pub fn blocks(&self) -> usize {
        self.features.div_ceil(LANES)
    }

    /// Values of a state.
    pub fn state_len(&self) -> usize {
        self.blocks() * self.states * 2 * LANES
    }

    /// Shape of a state.
    pub fn state_shape(&self) -> [usize; 4] {
        [self.blocks(), self.states, 2, LANES]
    }

    /// Place of the real part of state `n` of a feature; the imaginary part lies [`LANES`] after it.
    pub fn place(&self, feature: usize, n: usize) -> usize {
        (feature / LANES * self.states + n) * 2 * LANES + feature % LANES
    }

    /// Values of a row: a, b, then p and t of each rank, each real and imaginary.
    fn row(&self) -> usize {
        (2 + 2 * self.rank) * 2 * LANES
    }

    /// Values of a block's coefficients: its rows, then c (channels, N, 2, LANES), then d (channels, LANES).
    fn block(&self) -> usize {
        self.states * self.row() + self.channels * (self.states * 2 + 1) * LANES
    }
}

/// Which coefficient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What a state keeps of itself.
    A,
    /// What a state takes of the input.
    B,
    /// Left side of the correction of this rank.
    P(usize),
    /// Right side of the correction of this rank.
    T(usize),
    /// Output weight of this channel.
    C(usize),
}

/// The discretised coefficients of a layer, packed.
#[derive(Clone)]
pub struct Coefficients {
    sizes: Sizes,
    packed: Slab,
}

impl Coefficients {
    /// Packs what `get(part, feature, n)` gives, (re, im), and the skips `d(channel, feature)`.
    ///
    /// # Panics
    /// The rank is above [`MAX_RANK`].
    pub fn pack(sizes: Sizes, get: impl Fn(Part, usize, usize) -> (f32, f32), d: impl Fn(usize, usize) -> f32) -> Self {
        assert!(sizes.rank <= MAX_RANK, "s4d: rank {}, at most {MAX_RANK}", sizes.rank);
        let mut packed = Slab::zeros(sizes.blocks() * sizes.block());
        for f in 0..sizes.features {
            let (block, lane) = (&mut packed[f / LANES * sizes.block()..][..sizes.block()], f % LANES);
            let (rows, outputs) = block.split_at_mut(sizes.states * sizes.row());
            let (c, skips) = outputs.split_at_mut(sizes.channels * sizes.states * 2 * LANES);
            for n in 0..sizes.states {
                let corrections = (0..sizes.rank).flat_map(|r| [Part::P(r), Part::T(r)]);
                for (i, part) in [Part::A, Part::B].into_iter().chain(corrections).enumerate() {
                    let at = n * sizes.row() + i * 2 * LANES + lane;
                    (rows[at], rows[at + LANES]) = get(part, f, n);
                }
                for ch in 0..sizes.channels {
                    let at = (ch * sizes.states + n) * 2 * LANES + lane;
                    (c[at], c[at + LANES]) = get(Part::C(ch), f, n);
                }
            }
            for ch in 0..sizes.channels {
                skips[ch * LANES + lane] = d(ch, f);
            }
        }
        Self { sizes, packed }
    }

    /// Sizes.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// The coefficients block by block: of each state in turn a, b, then p and t of each rank, every one (2, [`LANES`]);
    /// then c, (channels, N, 2, LANES); then the skips, (channels, LANES).
    pub fn packed(&self) -> &[f32] {
        &self.packed
    }
}

/// Runs the recurrence over `u` (len, H) from state `z`, which is updated in place, and writes `y`, (len, channels · H),
/// channel after channel.
///
/// With `read` off the state is advanced and `y`, which then has no columns, is left alone: for layers whose output is
/// not asked for at every step. Features are independent and steps run strictly in order: any cut of the steps gives the
/// same bits.
///
/// # Panics
/// A shape does not fit.
pub fn s4d(cx: &Cx, w: &Coefficients, u: Mat<'_>, z: &mut [f32], read: bool, mut y: MatMut<'_>) {
    let (len, sizes) = (u.rows(), w.sizes);
    let columns = if read { sizes.channels * sizes.features } else { 0 };
    assert!(u.cols() == sizes.features, "s4d: expected {} features, got {}", sizes.features, u.cols());
    assert!(z.len() == sizes.state_len(), "s4d: expected a state of {}, got {}", sizes.state_len(), z.len());
    assert!(
        y.rows() == len && y.cols() == columns,
        "s4d: expected output {len}x{columns}, got {}x{}",
        y.rows(),
        y.cols()
    );
    if len == 0 {
        return;
    }
    let io =
        Io { u, z: z.as_mut_ptr(), y: y.ptr(), y_stride: y.stride(), channels: if read { sizes.channels } else { 0 } };
    let blocks = sizes.blocks();
    // A few blocks a part; small calls stay on one thread.
    let many = if sizes.features * len * sizes.states < 1 << 14 { blocks } else { 4.min(blocks) };
    cx.team.split(blocks.div_ceil(many.max(1)), |part| {
        for block in part * many..(part * many + many).min(blocks) {
            match cx.level.here() {
                CpuLevel::Scalar => scalar::run(w, block, &io),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `here` bounds the level by what the machine has; every shape was checked above.
                CpuLevel::Avx2 => unsafe { x86::avx2(w, block, &io) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                CpuLevel::Avx512 => unsafe { x86::avx512(w, block, &io) },
                #[cfg(not(target_arch = "x86_64"))]
                _ => scalar::run(w, block, &io),
            }
        }
    });
}

/// Input, state and output of a call; each part owns its blocks of features of the latter two.
struct Io<'a> {
    u: Mat<'a>,
    z: *mut f32,
    y: *mut f32,
    y_stride: usize,
    /// Channels that are read.
    channels: usize,
}

// SAFETY: the parts of one call touch disjoint features of exclusively borrowed memory.
unsafe impl Sync for Io<'_> {}
