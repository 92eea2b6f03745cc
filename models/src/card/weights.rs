use ssm_kernels::cuda::Kind;
use ssm_kernels::linear::{Linear, Precision};
use ssm_kernels::norm::{Kind as NormKind, Norm};

/// The weights of a network on their way to the card: one slab, each part at a multiple of 256 bytes.
#[derive(Default)]
pub struct Weights {
    /// Values of 32 bits, or pairs of 16.
    words: Vec<u32>,
}

/// Where something lies in the slab, in values of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct At(pub(crate) usize);

/// A linear map: weights (n, k) of a kind, and its bias.
#[derive(Clone, Copy)]
pub(crate) struct Dense {
    pub(crate) w: At,
    pub(crate) bias: Option<At>,
    pub(crate) n: u32,
    pub(crate) k: u32,
    pub(crate) kind: Kind,
}

/// A norm.
#[derive(Clone, Copy)]
pub(crate) struct NormAt {
    pub(crate) weight: At,
    pub(crate) bias: At,
    pub(crate) layer: bool,
    pub(crate) eps: f32,
}

/// The kind of numbers between the large products of a precision.
pub(crate) fn kind(precision: Precision) -> Kind {
    match precision {
        // A model in int8 is not placed on a card (`Device::place`).
        Precision::F32 | Precision::Int8 => Kind::F32,
        Precision::Bf16 => Kind::Bf16,
    }
}

impl Weights {
    /// Bits of the slab.
    pub(crate) fn words(&self) -> &[u32] {
        &self.words
    }

    fn begin(&mut self) -> At {
        self.words.resize(self.words.len().next_multiple_of(64), 0);
        At(self.words.len())
    }

    /// Values as they are.
    pub(crate) fn put(&mut self, values: &[f32]) -> At {
        let at = self.begin();
        self.words.extend(values.iter().map(|v| v.to_bits()));
        at
    }

    /// The values of several parts, one behind the other.
    pub(crate) fn put_all<'a>(&mut self, parts: impl IntoIterator<Item = &'a [f32]>) -> At {
        self.put(&parts.into_iter().flatten().copied().collect::<Vec<_>>())
    }

    /// A linear map, in the precision that it has.
    pub(crate) fn dense(&mut self, w: &Linear) -> Dense {
        self.dense_by(w, |i| i)
    }

    /// A linear map whose input `i` here is its input `from(i)` there.
    pub(crate) fn dense_by(&mut self, w: &Linear, from: impl Fn(usize) -> usize) -> Dense {
        let (n, k, kind) = (w.n(), w.k(), kind(w.precision()));
        let mut row = vec![0.0; k];
        let mut values = Vec::with_capacity(n * k);
        for i in 0..n {
            w.row(i, &mut row);
            values.extend((0..k).map(|i| row[from(i)]));
        }
        let at = match kind {
            Kind::F32 => self.put(&values),
            _ => {
                let at = self.begin();
                // They are rounded already: the lower half of each is zero.
                let half = |v: &f32| v.to_bits() >> 16;
                self.words.extend(values.chunks(2).map(|p| half(&p[0]) | p.get(1).map_or(0, half) << 16));
                at
            }
        };
        let bias = w.bias().iter().any(|b| *b != 0.0).then(|| self.put(w.bias()));
        Dense { w: at, bias, n: n as u32, k: k as u32, kind }
    }

    /// A norm.
    pub(crate) fn norm(&mut self, w: &Norm) -> NormAt {
        let (weight, bias) = (self.put(&w.weight), self.put(&w.bias));
        NormAt { weight, bias, layer: w.kind == NormKind::Layer, eps: w.eps }
    }
}
