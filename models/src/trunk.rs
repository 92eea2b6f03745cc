//! What Vim and Audio Mamba share: class tokens, the blocks, and what their head sees.

use crate::checkpoint::{Checkpoint, Reader};
use crate::config::Fields;
use crate::error::Error;
use crate::mixer::{Mixer, MixerState};
use crate::model::Row;
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::norm::{Kind, Norm, add_norm};
use ssm_kernels::{Act, Cx, Mat, MatMut};

/// Values of a sequence (tokens times width) at most: a small file could ask for more memory than there is.
pub(crate) const MAX_SEQUENCE: usize = 1 << 26;

/// Refuses a file whose configuration says another way of scanning (`bimamba_type`) than its tensors show.
pub(crate) fn agree_directions(file: &Checkpoint, fields: &Fields<'_>) -> Result<(), Error> {
    let kind = match ["D_b", "A_b_log"].map(|n| file.shape(&format!("layers.0.mixer.{n}")).is_some()) {
        [true, _] => "v2",
        [false, true] => "v1",
        _ => "none",
    };
    match fields.word(&["bimamba_type"])?.filter(|said| said != kind) {
        Some(said) => Err(fields.bad("bimamba_type", format!("{kind}, as the tensors have it"), said)),
        None => Ok(()),
    }
}

/// Where the class token stands among M patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Before patch M/2.
    Middle,
    /// In front.
    Head,
    /// After the last patch.
    End,
    /// One in front, one at the end; the head sees their mean.
    Double,
    /// Nowhere.
    None,
}

impl Class {
    /// Number of class tokens.
    pub(crate) fn tokens(self) -> usize {
        match self {
            Self::Middle | Self::Head | Self::End => 1,
            Self::Double => 2,
            Self::None => 0,
        }
    }

    /// Row of the (first) class token among `patches` patches.
    pub(crate) fn row(self, patches: usize) -> usize {
        match self {
            Self::Middle => patches / 2,
            Self::End => patches,
            _ => 0,
        }
    }

    /// Row of the patch that comes `i`-th.
    pub(crate) fn patch_row(self, i: usize, patches: usize) -> usize {
        match self {
            Self::Middle => i + usize::from(i >= patches / 2),
            Self::Head | Self::Double => i + 1,
            Self::End | Self::None => i,
        }
    }

    /// Adds the class tokens of a file to their rows of a position embedding (M + class tokens, D).
    pub(crate) fn add(self, w: &Reader<'_>, pos_embed: &mut [f32], d: usize) -> Result<(), Error> {
        let patches = pos_embed.len() / d - self.tokens();
        let rows: &[(&str, usize)] = match self {
            Self::Double => &[("cls_token_head", 0), ("cls_token_tail", patches + 1)],
            Self::None => &[],
            one => &[("cls_token", one.row(patches))],
        };
        for (name, row) in rows {
            let token = w.take(name, &[1, 1, d])?;
            pos_embed[row * d..][..d].iter_mut().zip(&token).for_each(|(p, t)| *p += t);
        }
        Ok(())
    }
}

/// What the head sees when there is no class token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    Mean,
    Last,
    Max,
    All,
}

impl Pool {
    /// The pooling that a configuration names, the mean where a class token stands anyway.
    pub(crate) fn read(fields: &Fields<'_>, class: Class) -> Result<Self, Error> {
        let pool = match fields.word(&["final_pool_type"])?.as_deref() {
            Some("none") => Self::Last,
            Some("max") => Self::Max,
            Some("all") => Self::All,
            Some("mean") | None => Self::Mean,
            Some(other) => return Err(fields.bad("final_pool_type", "mean, none, max or all", other)),
        };
        Ok(if class == Class::None { pool } else { Self::Mean })
    }

    /// Whether every token has a result of its own. Upstream pools by the largest score behind its head, so its features
    /// are those of all tokens.
    pub(crate) fn apart(self, class: Class, features: bool) -> bool {
        class == Class::None && (self == Self::All || self == Self::Max && features)
    }
}

/// A block: `residual += hidden`, `hidden = mixer(norm(residual))`.
pub(crate) struct Layer {
    pub(crate) norm: Norm,
    pub(crate) mixer: Mixer,
}

/// What can be looked at on the way, all rows of a batch together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tap {
    PatchEmbed,
    Tokens,
    Hidden(usize),
    Residual(usize),
    Features,
}

/// Looks at nothing.
pub(crate) fn no_tap(_: Tap, _: &[f32]) {}

/// The three streams of a pass, (tokens, D) each: residual, hidden, normed.
pub(crate) type Streams<'a> = [&'a mut [f32]; 3];

/// Blocks, the last norm and the head.
pub(crate) struct Trunk {
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm_f: Norm,
    pub(crate) head: Option<Linear>, // (classes, D); none where the features are the result
    pub(crate) class: Class,
    pub(crate) pool: Pool,
}

impl Trunk {
    /// A norm of width D.
    pub(crate) fn norm(w: &Reader<'_>, name: &str, d: usize, eps: f32) -> Result<Norm, Error> {
        let weight = w.take(&format!("{name}.weight"), &[d])?;
        let bias = w.take_optional(&format!("{name}.bias"), &[d])?;
        let kind = if bias.is_some() { Kind::Layer } else { Kind::Rms };
        Ok(Norm::new(kind, weight, bias, eps))
    }

    /// Working memory of the blocks over m tokens.
    pub(crate) fn scratch_len(&self, m: usize) -> usize {
        self.layers.iter().map(|l| l.mixer.scratch_len(m)).max().unwrap_or(0)
    }

    /// The blocks, over `rows.len()` sequences of as many tokens each that lie in `hidden`. Where there are `states`, each
    /// row's scans go on from its own.
    pub(crate) fn blocks(
        &self,
        cx: &Cx,
        rows: &mut [Row],
        states: &[MixerState],
        [residual, hidden, normed]: Streams<'_>,
        s: &mut [f32],
        mut tap: impl FnMut(Tap, &[f32]),
    ) {
        let d = self.norm_f.weight.len();
        let m = hidden.len() / d;
        residual.fill(0.0);
        for (i, layer) in self.layers.iter().enumerate() {
            let (h, r) = (Mat::new(hidden, m, d), MatMut::new(residual, m, d));
            add_norm(cx, &layer.norm, h, r, MatMut::new(normed, m, d));
            let out = MatMut::new(hidden, m, d);
            layer.mixer.forward(cx, Mat::new(normed, m, d), rows, m / rows.len().max(1), states.get(i), s, out);
            tap(Tap::Residual(i), residual);
            tap(Tap::Hidden(i), hidden);
        }
    }

    /// From the last block's two streams to the scores of one sequence. `pooled` has D values, `scores` as many as there are
    /// classes.
    pub(crate) fn score(
        &self,
        cx: &Cx,
        [residual, hidden, normed]: Streams<'_>,
        (pooled, scores): (&mut [f32], &mut [f32]),
        y: &mut [f32],
        mut tap: impl FnMut(Tap, &[f32]),
    ) {
        let (d, k) = (self.norm_f.weight.len(), scores.len());
        let l = hidden.len() / d;
        let mut norm_row = |row: usize, out: &mut [f32]| {
            let x = Mat::new(&hidden[row * d..], 1, d);
            add_norm(cx, &self.norm_f, x, MatMut::new(&mut residual[row * d..], 1, d), MatMut::new(out, 1, d));
        };
        let head = |x: &[f32], rows: usize, y: &mut [f32]| match &self.head {
            Some(head) => linear(cx, Mat::new(x, rows, d), head, Act::None, Store::Set, MatMut::new(y, rows, k)),
            None => y.copy_from_slice(&x[..rows * d]),
        };
        match (self.class, self.pool) {
            (Class::Double, _) => {
                norm_row(0, pooled);
                norm_row(l - 1, &mut normed[..d]);
                pooled.iter_mut().zip(&*normed).for_each(|(p, n)| *p = 0.5 * (*p + n));
            }
            (Class::None, Pool::Last) => norm_row(l - 1, pooled),
            (Class::None, pool) => {
                (0..l).for_each(|row| norm_row(row, &mut normed[row * d..][..d]));
                match pool {
                    Pool::Max if self.head.is_some() => {
                        tap(Tap::Features, normed);
                        y.fill(f32::NEG_INFINITY);
                        for row in normed.chunks_exact(d) {
                            head(row, 1, scores);
                            y.iter_mut().zip(&*scores).for_each(|(y, s)| *y = y.max(*s));
                        }
                        return;
                    }
                    Pool::Max | Pool::All => {
                        tap(Tap::Features, normed);
                        return head(normed, l, y);
                    }
                    _ => {
                        pooled.fill(0.0);
                        for row in normed.chunks_exact(d) {
                            pooled.iter_mut().zip(row).for_each(|(p, r)| *p += r / l as f32);
                        }
                    }
                }
            }
            (class, _) => norm_row(class.row(l - 1), pooled),
        }
        tap(Tap::Features, pooled);
        head(pooled, 1, y);
    }
}
