//! Vim on a card.

use super::{Config, Vim};
use crate::card::{At, ConvNet, Dense, Network, NormAt, Pass, Rows, Weights};
use crate::error::Error;
use crate::mixer::{MixerNet, MixerState};
use crate::trunk::{Class, Pool};
use ssm_kernels::Act;
use ssm_kernels::cuda::{Kind, activation};

struct Layer {
    norm: NormAt,
    mixer: MixerNet,
    state: Option<MixerState>,
}

/// A Vim's weights on a card.
pub(crate) struct VimNet {
    config: Config,
    patch_embed: ConvNet,
    pos_embed: At,
    layers: Vec<Layer>,
    norm_f: NormAt,
    head: Option<Dense>,
}

impl Vim {
    /// The network for a card.
    pub(crate) fn on_card(&self, w: &mut Weights) -> VimNet {
        let layers = self.trunk.layers.iter().enumerate().map(|(i, layer)| Layer {
            norm: w.norm(&layer.norm),
            mixer: layer.mixer.on_card(w),
            state: self.state.get(i).cloned(),
        });
        VimNet {
            layers: layers.collect(),
            config: self.config.clone(),
            patch_embed: {
                let c = &self.config;
                ConvNet::patches(w, &self.patch_embed, c.channels, c.patch_size, c.stride)
            },
            pos_embed: w.put(&self.pos_embed),
            norm_f: w.norm(&self.trunk.norm_f),
            head: self.trunk.head.as_ref().map(|head| w.dense(head)),
        }
    }
}

impl Network for VimNet {
    fn input_len(&self) -> usize {
        self.config.channels * self.config.image.0 * self.config.image.1
    }

    // Frames are scanned on their own, and carried streams one after the other.
    fn single_steps(&self) -> bool {
        true
    }

    fn queue(&self, p: &Pass<'_>) -> Result<(), Error> {
        let c = &self.config;
        // Where all tokens are the result they lie in rows of their own.
        let width = if self.head.is_some() { c.num_classes } else { c.embed_dim };
        self.frames(p, p.input(0), p.output(width as u32))
    }
}

impl VimNet {
    /// The features of all frames, or their scores, from planes.
    pub(crate) fn frames(&self, p: &Pass<'_>, planes: Rows, out: Rows) -> Result<(), Error> {
        let (d, l, batch) = (self.config.embed_dim as u32, self.config.tokens() as u32, p.batch());
        let (p, m) = (&p.of_len(l), batch * l);
        let kind = self.patch_embed.kind();
        let (residual, hidden) = (p.take(m as usize, d, Kind::F32), p.take(m as usize, d, Kind::F32));
        let normed = p.take(m as usize, d, kind);
        p.scope(|| self.tokens(p, planes, residual))?;
        for (i, layer) in self.layers.iter().enumerate() {
            // residual += hidden; hidden = mixer(norm(residual))
            p.add_norm((i > 0).then_some(hidden), residual, &layer.norm, normed, m, d)?;
            layer.mixer.queue(p, normed, layer.state.as_ref(), hidden)?;
        }
        p.scope(|| self.score(p, hidden, residual, out))
    }

    /// Tokens of all frames: patches, class tokens and position embedding.
    fn tokens(&self, p: &Pass<'_>, planes: Rows, out: Rows) -> Result<(), Error> {
        let c = &self.config;
        let (d, batch) = (c.embed_dim as u32, p.batch());
        let size = (c.image.0 as u32, c.image.1 as u32);
        let (down, across) = self.patch_embed.out_size(size);
        let embedded = p.take((batch * down * across) as usize, d, Kind::F32);
        self.patch_embed.queue(p, planes, batch, size, Act::None, embedded)?;
        let l = p.len();
        let last = l - 1;
        let classes = match c.class {
            Class::Double => [0, last],
            Class::None => [l, l],
            one => [one.row(last as usize) as u32, l],
        };
        let tokens = activation::Tokens {
            patches: embedded.at,
            places: p.at(self.pos_embed),
            y: out.at,
            kind: Kind::F32,
            y_kind: Kind::F32,
            batch,
            len: l,
            d,
            classes,
        };
        p.try_launch(&tokens, tokens.launch())
    }

    /// From the last layer's two streams to the scores of each frame.
    fn score(&self, p: &Pass<'_>, hidden: Rows, residual: Rows, out: Rows) -> Result<(), Error> {
        let c = &self.config;
        let (d, l, k, batch) = (c.embed_dim as u32, p.len(), c.num_classes as u32, p.batch());
        let b = batch as usize;
        // What the head reads, `rows` of each frame; without a head the output itself.
        let kind = self.head.map_or(Kind::F32, |head| head.kind);
        let seen = |rows: u32| match self.head {
            Some(_) => p.take(b * rows as usize, d, kind),
            None => out,
        };
        let pick = |row: u32, y: Rows| {
            let of = |rows: Rows| Rows { stride: l * d, ..rows.skip_rows(row as usize) };
            p.add_norm(Some(of(hidden)), of(residual), &self.norm_f, y, batch, d)
        };
        let every = |y: Rows| p.add_norm(Some(hidden), residual, &self.norm_f, y, batch * l, d);
        let head = |x: Rows, rows: u32, y: Rows| match &self.head {
            Some(head) => p.linear(x, head, Act::None, y, rows, false),
            None => Ok(()),
        };
        match (c.class, c.pool) {
            (Class::Double, _) => {
                let (x, two) = (seen(1), p.take(2 * b, d, Kind::F32));
                pick(0, Rows { stride: 2 * d, ..two })?;
                pick(l - 1, Rows { stride: 2 * d, ..two.skip_rows(1) })?;
                p.pool(two, 2, d, false, x)?;
                head(x, batch, out)
            }
            (Class::None, Pool::Max) if self.head.is_some() => {
                let (x, scores) = (seen(l), p.take(b * l as usize, k, Kind::F32));
                every(x)?;
                head(x, batch * l, scores)?;
                p.pool(scores, l, k, true, out)
            }
            (Class::None, Pool::All | Pool::Max) => {
                let x = seen(l);
                every(x)?;
                head(x, batch * l, out)
            }
            (Class::None, Pool::Mean) => {
                let (x, all) = (seen(1), p.take(b * l as usize, d, Kind::F32));
                every(all)?;
                p.pool(all, l, d, false, x)?;
                head(x, batch, out)
            }
            (class, _) => {
                let x = seen(1);
                pick(if class == Class::None { l - 1 } else { class.row(l as usize - 1) as u32 }, x)?;
                head(x, batch, out)
            }
        }
    }
}
