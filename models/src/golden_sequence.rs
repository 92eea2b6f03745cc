//! Golden files of causal sequence models: one input and its continuation, states between and after, other rates.

use crate::error::Error;
use crate::golden::Golden;
use crate::model::{Model, Row, Signal};

/// Streams under way: one per row of the file's batch.
pub(crate) struct Streams {
    rows: Vec<Row>,
    /// Values of one step: in, out.
    step: (usize, usize),
}

impl Streams {
    /// Fresh streams for `batch` rows and passes of at most `len` steps.
    pub(crate) fn new(model: &dyn Model, batch: usize, len: usize, rate: f32) -> Self {
        let rows = (0..batch).map(|_| Row { rate, ..Row::new(model, len) }).collect();
        Self { rows, step: (model.info().input.len(), model.info().output.len()) }
    }

    /// Steps `from .. to` of `x`, (batch, len, step), cut as the options say; returns (batch, to - from, out).
    pub(crate) fn run(
        &mut self,
        g: &mut Golden<'_>,
        model: &dyn Model,
        (x, len): (&[f32], usize),
        (from, to): (usize, usize),
    ) -> Vec<f32> {
        let (step, out) = self.step;
        let token = matches!(model.info().input, Signal::Token { .. });
        let mut y = vec![0.0; self.rows.len() * (to - from) * out];
        let mut at = from;
        for n in g.cuts(to - from) {
            for (b, row) in self.rows.iter_mut().enumerate() {
                let x = &x[(b * len + at) * step..][..n * step];
                if token {
                    row.tokens.iter_mut().zip(x).for_each(|(t, x)| *t = *x as u32);
                } else {
                    row.x[..x.len()].copy_from_slice(x);
                }
            }
            g.forward(model, &mut self.rows, n);
            for (b, row) in self.rows.iter().enumerate() {
                y[(b * (to - from) + at - from) * out..][..n * out].copy_from_slice(&row.y[..n * out]);
            }
            at += n;
        }
        y
    }

    /// Compares every stream's state with the tensors that begin with `prefix`, within `tol` of each one's largest value.
    pub(crate) fn check(&self, g: &mut Golden<'_>, prefix: &str, model: &dyn Model, tol: f32) -> Result<(), Error> {
        for (b, row) in self.rows.iter().enumerate() {
            g.check_state_relative(prefix, model, &row.state, b, tol)?;
        }
        Ok(())
    }
}

/// The input `name` as (batch, length, values), its sizes and ids checked against the model.
pub(crate) fn input(g: &Golden<'_>, model: &dyn Model, name: &str) -> Result<(usize, usize, Vec<f32>), Error> {
    let (shape, x) = g.tensor(name)?;
    let bad = |expected: String, got: String| Err(Error::Input { expected: format!("{name}: {expected}"), got });
    match (model.info().input, &shape[..]) {
        _ if shape.contains(&0) => bad("no empty axis".into(), format!("{shape:?}")),
        (Signal::Token { vocab }, &[b, t]) => match x.iter().find(|id| !(0.0..vocab as f32).contains(*id)) {
            Some(id) => bad(format!("token ids below {vocab}"), id.to_string()),
            None => Ok((b, t, x)),
        },
        (Signal::Vector { dim }, &[b, t, d]) if d == dim => Ok((b, t, x)),
        (Signal::Image { channels, height, width }, &[b, t, c, h, w]) if (c, h, w) == (channels, height, width) => {
            Ok((b, t, x))
        }
        (Signal::Samples { hop, .. }, &[b, t, n]) if n == hop => Ok((b, t, x)),
        (signal, shape) => bad(format!("batch, steps and {signal:?}"), format!("{shape:?}")),
    }
}

/// Runs what the file holds: `__input__` -> `__output__`, then `__cont_input__` from the carried state, the states after
/// each; without a continuation, `__state__` is the state after the configuration's `split` steps and `__cont_state__`
/// the one at the end. `__output__.dt_scale_S` is the output with every step S times as long. `tol` is relative to the
/// largest value of each tensor.
pub(crate) fn verify(g: &mut Golden<'_>, tol: f32) -> Result<(), Error> {
    let model = &*g.open(&g.open_options())?;
    let (batch, len, x) = input(g, model, "__input__")?;
    let cont = if g.has("__cont_input__") { Some(input(g, model, "__cont_input__")?) } else { None };
    let longest = len.max(cont.as_ref().map_or(0, |c| c.1));
    let mut streams = Streams::new(model, batch, longest, 1.0);

    let split = g.config["split"].as_u64().and_then(|s| usize::try_from(s).ok()).filter(|s| *s <= len);
    let split = if cont.is_none() { split.unwrap_or(len) } else { len };
    let mut parts = vec![streams.run(g, model, (&x, len), (0, split))];
    streams.check(g, "__state__.", model, tol)?;
    if split < len {
        parts.push(streams.run(g, model, (&x, len), (split, len)));
        streams.check(g, "__cont_state__.", model, tol)?;
    }
    let out = model.info().output.len();
    let y: Vec<f32> = (0..batch)
        .flat_map(|b| parts.iter().flat_map(move |p| p.chunks((p.len() / batch).max(1)).nth(b).unwrap_or_default()))
        .copied()
        .collect();
    debug_assert_eq!(y.len(), batch * len * out);
    g.check_relative("__output__", &y, tol)?;

    if let Some((b, n, x)) = cont {
        if b != batch {
            return Err(Error::Input { expected: format!("{batch} rows to go on with"), got: b.to_string() });
        }
        let y = streams.run(g, model, (&x, n), (0, n));
        g.check_relative("__cont_output__", &y, tol)?;
        streams.check(g, "__cont_state__.", model, tol)?;
    }
    for name in g.names_with("__output__.dt_scale_") {
        let rate = name
            .trim_start_matches("__output__.dt_scale_")
            .parse()
            .map_err(|_| Error::Input { expected: "a number after dt_scale_".into(), got: name.clone() })?;
        let y = Streams::new(model, batch, len, rate).run(g, model, (&x, len), (0, len));
        g.check_relative(&name, &y, tol)?;
    }
    Ok(())
}
