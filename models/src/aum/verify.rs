//! Runs the golden files of Audio Mamba.

use super::Aum;
use super::ears::front_end;
use crate::error::Error;
use crate::families::{Listen, Options, Output};
use crate::golden::Golden;
use crate::model::Row;
use crate::trunk::{Class, Tap};

/// Golden files: the clip with all that lies on the way, the states at its end, the front end before it, and the same
/// clip as a stream of frames and of samples.
pub(super) fn verify(g: &mut Golden<'_>) -> Result<(), Error> {
    const LOGITS: f32 = 5e-5;
    const TAPS: f32 = 5e-4;
    let (shape, x) = g.tensor("__input__")?;
    let &[batch, frames, bins] = &shape[..] else {
        return Err(Error::Input { expected: "__input__ of (B, T, F)".into(), got: format!("{shape:?}") });
    };
    let options = Options { clip: Some((frames, bins)), ..g.open_options() };

    // The clip, every row a stream of its own.
    let carried = g.has("__state__.layer0.ssm");
    let model = Aum::load(g.weights(), &Options { carry: carried, ..options.clone() })?;
    let mut rows: Vec<Row> =
        x.chunks_exact(frames * bins).map(|x| Row { x: x.to_vec(), ..Row::new(&model, 1) }).collect();
    let mut taps: Vec<(String, Vec<f32>)> = vec![];
    let (cx, scratch) = g.bench();
    model.clip_step(cx, &mut rows, 0, scratch, |tap, values| {
        let name = match tap {
            Tap::PatchEmbed => "__tap__.patch_embed".to_owned(),
            Tap::Tokens => "__tap__.pos_embed".to_owned(),
            Tap::Hidden(i) => format!("__tap__.layer{i}.hidden"),
            Tap::Residual(i) => format!("__tap__.layer{i}.residual"),
            Tap::Features => "__tap__.features".to_owned(),
        };
        match taps.iter_mut().find(|(n, _)| *n == name) {
            Some((_, got)) => got.extend_from_slice(values),
            None => taps.push((name, values.to_vec())),
        }
    });
    let y: Vec<f32> = rows.iter().flat_map(|r| r.y.clone()).collect();
    g.check("__output__", &y, LOGITS)?;
    for (name, got) in &taps {
        if g.has(name) {
            // Both are taken before the tokens are put in the order of time.
            let by_frequency = match name.as_str() {
                "__tap__.patch_embed" => model.by_frequency(got, batch, false),
                "__tap__.pos_embed" => model.by_frequency(got, batch, true),
                _ => got.clone(),
            };
            g.check(name, &by_frequency, TAPS)?;
        }
    }
    for (i, row) in rows.iter().enumerate() {
        g.check_state("__state__.", &model, &row.state, i, TAPS)?;
    }
    if g.has("__tap__.features") {
        let y = g.run_frames(&Aum::load(g.weights(), &Options { output: Output::Features, ..options.clone() })?, &x)?;
        g.check("__tap__.features", &y, TAPS)?;
    }

    // The samples it was made from.
    if g.has("__waveform__") {
        let (shape, waves) = g.tensor("__waveform__")?;
        let n = shape.last().copied().unwrap_or(0).max(1);
        let front = front_end(&model.config, &options, "config")?;
        let fbank = front.fbank();
        let (mut raw, mut inputs) = (vec![], vec![]);
        for wave in waves.chunks(n) {
            let (mut state, mut work) = (vec![0.0; fbank.state_len()], fbank.work());
            fbank.push(&mut state, wave, &mut work, |frame| raw.extend_from_slice(frame));
            fbank.finish(&mut state, &mut work, |frame| raw.extend_from_slice(frame));
            inputs.extend(front.clip(wave, frames));
        }
        if g.has("__fbank__") {
            g.check("__fbank__", &raw, 5e-3)?;
        }
        g.check("__input__", &inputs, 5e-3)?;
        let mut y = vec![];
        for input in inputs.chunks(frames * bins) {
            y.extend(g.run_frames(&model, input)?);
        }
        g.check("__output__", &y, 5e-3)?;
        // A stream of samples, a frame at a time as far as the samples go, gives the scores of the clip heard so far.
        let hops = n / front.hop();
        let every = (1..=hops.div_ceil(8).max(1)).rev().find(|k| hops.is_multiple_of(*k)).unwrap_or(1);
        let listen = Listen::Samples(every);
        let stream = Aum::load(g.weights(), &Options { listen, ..options.clone() })?;
        // A clip is cut at its end, a stream forgets its beginning.
        let fits = fbank.frames(n as u64) <= frames as u64;
        let same = hops * front.hop() == n && fbank.frames(n as u64) == fbank.clip_frames(n as u64);
        if fits && same && !stream.ears.causal {
            let mut y = vec![];
            for wave in waves.chunks(n) {
                y.extend(g.run_last(&stream, wave));
            }
            g.check("__output__", &y, 5e-3)?;
        }
    }

    // The clip as a stream of frames.
    let step = if model.config.class == Class::End { model.config.strides.1 } else { frames.div_ceil(4) };
    let every = (1..=step).rev().find(|k| frames.is_multiple_of(*k)).unwrap_or(1);
    let stream = Aum::load(g.weights(), &Options { listen: Listen::Frames(every), ..options })?;
    let mut y = vec![];
    for clip in x.chunks_exact(frames * bins) {
        y.extend(g.run_last(&stream, clip));
    }
    g.check("__output__", &y, LOGITS)
}

impl Aum {
    /// Tokens of `batch` clips, brought from the order of the sequence to the order by frequency.
    fn by_frequency(&self, x: &[f32], batch: usize, with_class: bool) -> Vec<f32> {
        let (c, d, n) = (&self.config, self.config.embed_dim, self.config.patches());
        let per = if with_class { c.tokens() } else { n };
        let mut out = x.to_vec();
        for b in 0..batch {
            for i in 0..n {
                let (f, t) = c.place(i);
                let by_frequency = f * c.grid().1 + t;
                let row = |i: usize| b * per + if with_class { c.class.patch_row(i, n) } else { i };
                out[row(by_frequency) * d..][..d].copy_from_slice(&x[row(i) * d..][..d]);
            }
        }
        out
    }
}
