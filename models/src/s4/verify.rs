//! Golden files of S4 and S4D: outputs and states, whole and cut, other rates, the discrete system itself.

use super::S4;
use crate::config::bad;
use crate::engine::Device;
use crate::error::Error;
use crate::golden::{Golden, largest};
use crate::model::{Model, Row, Signal};
use std::sync::Arc;

/// A model, and the same where it is to run.
type Both<'a> = (&'a S4, &'a dyn Model);

/// A clip of a batch through streams that go on from where they are.
struct Run {
    rows: Vec<Row>,
    /// Outputs so far, stream by stream, step by step.
    y: Vec<Vec<f32>>,
    /// Each layer's outputs so far, likewise.
    taps: Vec<Vec<Vec<f32>>>,
}

impl Run {
    fn new(model: &S4, batch: usize, len: usize, rate: f32) -> Self {
        let row = || Row { rate, ..Row::new(model, len) };
        let taps = vec![vec![Vec::new(); batch]; model.layers.len()];
        Self { rows: (0..batch).map(|_| row()).collect(), y: vec![Vec::new(); batch], taps }
    }

    /// `len` steps from step `from` of the clip, cut as the options say.
    fn go(&mut self, g: &mut Golden<'_>, (model, placed): Both<'_>, clip: &Clip, from: usize, len: usize) {
        let mut at = from;
        for n in g.cuts(len) {
            for (row, x) in self.rows.iter_mut().zip(&clip.x) {
                let part = at * clip.step..(at + n) * clip.step;
                if matches!(model.info.input, Signal::Token { .. }) {
                    row.tokens.iter_mut().zip(&x[part]).for_each(|(t, x)| *t = *x as u32);
                } else {
                    row.x[..part.len()].copy_from_slice(&x[part]);
                }
            }
            let taps = &mut self.taps;
            if placed.device() == Device::Cpu {
                let (cx, scratch) = g.bench();
                model.run(cx, &mut self.rows, n, scratch, &mut |layer, x| {
                    let per_stream = x.len() / taps[layer].len();
                    for (tap, x) in taps[layer].iter_mut().zip(x.chunks_exact(per_stream.max(1))) {
                        tap.extend_from_slice(x);
                    }
                });
            } else {
                // Nobody sees the layers of a card.
                taps.clear();
                g.forward(placed, &mut self.rows, n);
            }
            for (y, row) in self.y.iter_mut().zip(&self.rows) {
                y.extend_from_slice(&row.y[..n * model.outputs]);
            }
            at += n;
        }
    }
}

/// An input of a golden file: per stream, step by step.
struct Clip {
    x: Vec<Vec<f32>>,
    len: usize,
    step: usize,
}

/// `rows × columns` to `columns × rows`.
fn turn(x: &[f32], rows: usize) -> Vec<f32> {
    let columns = x.len() / rows.max(1);
    (0..x.len()).map(|i| x[i % rows * columns + i / rows]).collect()
}

impl Clip {
    /// Reads a tensor (batch, len, step), (batch, step, len) if `transposed`, or (batch, len) of tokens.
    fn read(g: &Golden<'_>, name: &str, model: &S4, transposed: bool) -> Result<Self, Error> {
        let (shape, x) = g.tensor(name)?;
        let step = model.info.input.len();
        let batch = shape.first().copied().unwrap_or(0);
        let per_stream = x.len() / batch.max(1);
        let axis = if transposed { shape.get(1) } else { shape.get(2) };
        if batch == 0 || per_stream == 0 || axis.copied().unwrap_or(1) != step {
            return Err(Error::Input { expected: format!("steps of {step} values"), got: format!("{name} {shape:?}") });
        }
        let x = x.chunks_exact(per_stream).map(|x| if transposed { turn(x, step) } else { x.to_vec() }).collect();
        Ok(Self { x, len: per_stream / step, step })
    }
}

/// Golden files: outputs of every form and rate, layers, states at a cut and at the end, the discretised system, the
/// convolution kernel.
pub(super) fn verify(g: &mut Golden<'_>) -> Result<(), Error> {
    let model = Arc::new(S4::load(g.weights(), &g.open_options())?);
    let placed = g.place(model.clone())?;
    let (model, both) = (&*model, (&*model, &*placed));
    let transposed = g.config["transposed"] == true || g.config["layout"] == "B,H,L";
    let low_rank = model.layers.iter().any(|l| l.block.core().sizes().rank > 0);
    // Recovering C amplifies rounding where modes hardly decay.
    let relative = if low_rank { 1e-4 } else { 2e-5 };
    let clip = Clip::read(g, "__input__", model, transposed)?;
    let batch = clip.x.len();
    let size = largest(&g.tensor("__output__")?.1);
    let tol = relative * size;

    // The clip, in two parts if there is a state at a cut.
    let split = g.config["split"].as_u64().map_or(clip.len, |s| (s as usize).min(clip.len));
    let mut run = Run::new(model, batch, clip.len, 1.0);
    run.go(g, both, &clip, 0, split);
    states(g, both.1, "__state__", &run, relative, tol)?;
    run.go(g, both, &clip, split, clip.len - split);
    let (y, taps) = (run.y.clone(), run.taps.clone());
    if g.has("__cont_input__") {
        let more = Clip::read(g, "__cont_input__", model, transposed)?;
        let mut next = Run { y: vec![Vec::new(); batch], ..Run::new(model, batch, more.len, 1.0) };
        next.rows.iter_mut().zip(&run.rows).for_each(|(to, from)| to.state = from.state.clone());
        next.go(g, both, &more, 0, more.len);
        outputs(g, "__cont_output__", &next.y, model, transposed, tol)?;
        run = next;
    }
    states(g, both.1, "__cont_state__", &run, relative, tol)?;

    for name in g.names_with("__output__") {
        let what = name.trim_start_matches("__output__");
        match what.strip_prefix(".rate_") {
            // Upstream's convolution keeps what it prepared for another rate: for information.
            Some(rate) if rate.ends_with("_conv") && low_rank => {}
            Some(rate) => {
                let Ok(rate) = rate.split('_').next().unwrap_or_default().parse() else {
                    return Err(bad(&name, "rate", "a number", rate));
                };
                let mut run = Run::new(model, batch, clip.len, rate);
                run.go(g, both, &clip, 0, clip.len);
                outputs(g, &name, &run.y, model, transposed, tol)?;
            }
            None => {
                // Upstream recovers C in single precision; the file says how far its steps are from its convolution.
                let theirs = if low_rank { noted(g, what.trim_start_matches('.')) } else { 0.0 };
                outputs(g, &name, &y, model, transposed, tol + 2.0 * theirs)?;
            }
        }
    }
    for (i, tap) in taps.iter().enumerate() {
        let name = format!("__dbg__.layer{i}.out");
        if g.has(&name) {
            let tol = relative * largest(&g.tensor(&name)?.1).max(size);
            g.check(&name, &tap.concat(), tol)?;
        }
    }
    system(g, model, relative, tol)
}

/// A number that the file's maker noted among its `checks`, else 0.
fn noted(g: &Golden<'_>, name: &str) -> f32 {
    g.config["checks"][name].as_f64().unwrap_or(0.0) as f32
}

/// Compares outputs of all steps, or of the last one where the file holds one per stream.
fn outputs(
    g: &mut Golden<'_>,
    name: &str,
    y: &[Vec<f32>],
    model: &S4,
    transposed: bool,
    tol: f32,
) -> Result<(), Error> {
    let (shape, want) = g.tensor(name)?;
    let one = shape.iter().product::<usize>() == y.len() * model.outputs;
    // Upstream's convolution, which is what stands under the plain name, cuts its kernel off there.
    let most = crate::config::field(Some(&g.config), "l_max").and_then(serde_json::Value::as_u64).filter(|n| *n > 0);
    let most = most.filter(|_| name == "__output__" && !one).map_or(usize::MAX, |n| n as usize);
    let rows = y.iter().map(|y| match (one, transposed) {
        (true, _) => y[y.len().saturating_sub(model.outputs)..].to_vec(),
        (false, true) => turn(y, y.len() / model.outputs),
        (false, false) => y.clone(),
    });
    let mut rows: Vec<f32> = rows.flatten().collect();
    let len = y.first().map_or(1, |y| (y.len() / model.outputs).max(1));
    let step = |i: usize| if transposed { i % len } else { i / model.outputs % len };
    let cut = rows.iter_mut().zip(&want).enumerate().filter(|(i, _)| step(*i) >= most);
    cut.for_each(|(_, (v, w))| *v = *w);
    g.check(name, &rows, tol)
}

/// Compares the states of every stream: one of each pair, or both (`…_dense`).
fn states(
    g: &mut Golden<'_>,
    model: &dyn Model,
    prefix: &str,
    run: &Run,
    relative: f32,
    tol: f32,
) -> Result<(), Error> {
    for (prefix, both) in [(format!("{prefix}."), false), (format!("{prefix}_dense."), true)] {
        for name in g.names_with(&prefix) {
            let mut got = Vec::new();
            for row in &run.rows {
                let state = model.upstream_state(&row.state, &name[prefix.len()..]).unwrap_or_default();
                got.extend(if both { conjugates(&state.1, &state.0) } else { state.1 });
            }
            let tol = tol.max(relative * largest(&g.tensor(&name)?.1));
            g.check(&name, &got, tol)?;
        }
    }
    Ok(())
}

/// Complex rows, (…, N, 2), with the conjugates behind them, (…, 2N, 2).
fn conjugates(x: &[f32], shape: &[usize]) -> Vec<f32> {
    let n = shape.get(shape.len().saturating_sub(2)).copied().unwrap_or(1).max(1);
    x.chunks(2 * n).flat_map(|row| row.iter().copied().chain(conjugate(row))).collect()
}

fn conjugate(row: &[f32]) -> impl Iterator<Item = f32> {
    row.iter().enumerate().map(|(i, v)| if i % 2 == 1 { -v } else { *v })
}

/// Compares the discretised system and the kernel of the first layer.
fn system(g: &mut Golden<'_>, model: &S4, relative: f32, tol: f32) -> Result<(), Error> {
    let Some(layer) = model.layers.first() else { return Ok(()) };
    let core = layer.block.core();
    let sizes = core.sizes();
    let (h, n) = (sizes.features, sizes.states);
    let w = core.discretise(1.0);
    let pairs = |v: &[num_complex::Complex64]| v.iter().flat_map(|z| [z.re as f32, z.im as f32]).collect::<Vec<_>>();
    for (name, values, rows) in [
        ("__disc__.dA", pairs(&w.a), vec![h, n, 2]),
        ("__disc__.dB", pairs(&w.b), vec![h, n, 2]),
        ("__disc__.C", pairs(core.c()), vec![sizes.channels, h, n, 2]),
    ] {
        if !g.has(name) {
            continue;
        }
        let (shape, want) = g.tensor(name)?;
        let full = want.len() > values.len();
        let got = match name {
            "__disc__.dA" if shape.len() == 4 => dense_step(&w, h, n, sizes.rank),
            _ if full => conjugates(&values, &rows),
            _ => values,
        };
        // A recovered C is loose where modes hardly decay; the outputs and the kernel hold it tight where it matters.
        let loose = sizes.rank > 0 && name.ends_with('C');
        let relative = if loose { 1e-3 } else { relative };
        let tol = relative * largest(&want) + if loose { 2.0 * noted(g, "my_C_vs_upstream") } else { 0.0 };
        g.check(name, &got, tol)?;
    }
    if g.has("__kernel__") {
        let (shape, want) = g.tensor("__kernel__")?;
        if want.is_empty() {
            return Err(Error::Input { expected: "__kernel__: no empty axis".into(), got: format!("{shape:?}") });
        }
        let len = shape.last().copied().unwrap_or(0);
        let got: Vec<f32> = core.kernel(len, 1.0).iter().map(|v| *v as f32).collect();
        g.check("__kernel__", &got, (relative * largest(&want)).max(if sizes.rank > 0 { tol } else { 0.0 }))?;
    }
    Ok(())
}

/// `Ā` over both halves of the pairs, (H, 2N, 2N, 2).
fn dense_step(w: &crate::s4_core::Discrete, h: usize, n: usize, rank: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(8 * h * n * n);
    for f in 0..h {
        for i in 0..2 * n {
            for j in 0..2 * n {
                let half = |v: &[num_complex::Complex64], k: usize, r: usize| {
                    let z = v[(r * h + f) * n + k % n];
                    if k < n { z } else { z.conj() }
                };
                let mut z = if i == j { half(&w.a, i, 0) } else { num_complex::Complex64::ZERO };
                for r in 0..rank {
                    z -= half(&w.p, i, r) * half(&w.t, j, r);
                }
                out.extend([z.re as f32, z.im as f32]);
            }
        }
    }
    out
}
