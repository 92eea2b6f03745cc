//! Golden files of VMamba.

use super::{Tap, VMamba};
use crate::engine::Device;
use crate::error::Error;
use crate::families::{Options, Output};
use crate::golden::Golden;
use crate::model::{Row, Scratch};
use std::sync::Arc;

/// Golden files: logits, the places in between that the file holds, the carry mode.
pub(super) fn verify(g: &mut Golden<'_>) -> Result<(), Error> {
    let (shape, x) = g.tensor("__input__")?;
    let (&[batch, channels, h, w], false) = (&shape[..], x.is_empty()) else {
        return Err(Error::Input { expected: "frames [B, C, H, W]".into(), got: format!("{shape:?}") });
    };
    let options = Options { image: Some((h, w)), carry: g.config["mode"] == "carry", ..g.open_options() };
    let model = Arc::new(VMamba::load(g.weights(), &options)?);
    let placed = &*g.place(model.clone())?;
    let tol = if model.info.parameters < 5_000_000 { 1e-5 } else { 2e-5 };
    if model.config.in_chans != channels {
        let expected = format!("frames of {} planes", model.config.in_chans);
        return Err(Error::Input { expected, got: format!("{channels} planes") });
    }
    if options.carry {
        let mut rows = [Row::new(placed, 1)];
        let (mut y, names) = (vec![], g.names_with("__state__."));
        let mut states = vec![vec![]; names.len()];
        for frame in x.chunks_exact(x.len() / batch) {
            rows[0].x.copy_from_slice(frame);
            g.forward(placed, &mut rows, 1);
            y.extend_from_slice(&rows[0].y);
            for (name, states) in names.iter().zip(&mut states) {
                let state = placed.upstream_state(&rows[0].state, name.trim_start_matches("__state__."));
                states.extend(state.map(|s| s.1).unwrap_or_default());
            }
        }
        g.check("__output__", &y, tol)?;
        for (name, states) in names.iter().zip(&states) {
            g.check(name, states, tol)?;
        }
        if g.has("__output_reset__") {
            let y = g.run_frames(&*g.open(&Options { carry: false, ..options })?, &x)?;
            g.check("__output_reset__", &y, tol)?;
        }
        return Ok(());
    }
    let y = g.run_frames(placed, &x)?;
    if model.classifier.is_some() {
        g.check("__output__", &y, tol)?;
        if g.has("__tap__.features") {
            let options = Options { output: Output::Features, ..options.clone() };
            let y = g.run_frames(&*g.open(&options)?, &x)?;
            g.check_relative("__tap__.features", &y, tol)?;
        }
    } else {
        let mut at = 0;
        for (i, stage) in model.stages.iter().enumerate().filter(|(_, s)| s.outnorm.is_some()) {
            let part = at..at + stage.len();
            let frames = y.chunks_exact(model.info.output.len());
            let y: Vec<f32> = frames.flat_map(|y| &y[part.clone()]).copied().collect();
            g.check(&format!("__output_{i}__"), &y, tol)?;
            at = part.end;
        }
    }

    let wanted = g.names_with("__tap__.");
    // What lies in between stays on a card.
    if wanted.is_empty() || placed.device() != Device::Cpu {
        return Ok(());
    }
    // The same frames once more, what the file holds kept; compared in the layout of the file.
    let mut rows: Vec<Row> =
        x.chunks_exact(x.len() / batch).map(|x| Row { x: x.to_vec(), ..Row::new(&*model, 1) }).collect();
    let mut seen: Vec<(String, usize, Vec<f32>)> = vec![];
    let mut keep = |name: String, c: usize, x: &[f32]| {
        let name = format!("__tap__.{name}");
        if wanted.contains(&name) {
            seen.push((name, c, x.to_vec()));
        }
    };
    let mut input = vec![];
    model.frame(g.cx(), &mut rows, 0, &mut Scratch::default(), &mut |(i, j), tap, x| {
        let block = format!("layers.{i}.blocks.{j}");
        let dim = model.stages.get(i).map_or(1, |s| s.dim);
        let last = model.stages.get(i).is_some_and(|s| j + 1 == s.blocks.len());
        let inner = x.len() / (batch * model.stages[i].size.0 * model.stages[i].size.1);
        match tap {
            Tap::PatchEmbed => keep("patch_embed".into(), dim, x),
            Tap::Input => input = x.to_vec(),
            Tap::Norm => keep(format!("{block}.norm"), dim, x),
            Tap::Merged => keep(format!("{block}.op.merged"), inner, x),
            Tap::OutNorm => keep(format!("{block}.op.out_norm"), inner, x),
            Tap::Mixed => {
                let added: Vec<f32> = x.iter().zip(&input).map(|(x, i)| x - i).collect();
                keep(format!("{block}.op.out_proj"), dim, &added);
            }
            Tap::Block => {
                keep(block, dim, x);
                if last {
                    keep(format!("layers.{i}.blocks"), dim, x);
                }
            }
            Tap::Downsampled => {
                let dim = model.stages.get(i + 1).map_or(1, |s| s.dim);
                keep(format!("layers.{i}"), dim, x);
            }
            Tap::Features => keep("features".into(), x.len() / batch, x),
        }
    });
    for (name, c, x) in &seen {
        let shape = g.tensor(name)?.0;
        let pixels = x.len() / (batch * c);
        let planes = shape.len() == 4 && model.config.channel_first;
        let got: Vec<f32> = if planes {
            let at = |i: usize| i / (c * pixels) * c * pixels + i % pixels * c + i / pixels % c;
            (0..x.len()).map(|i| x[at(i)]).collect()
        } else {
            x.clone()
        };
        let size = got.iter().fold(1f32, |m, v| m.max(v.abs()));
        g.check(name, &got, tol * size)?;
    }
    Ok(())
}
