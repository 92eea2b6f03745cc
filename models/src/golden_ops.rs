//! Golden files of single operations (`ops_*`).

use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::frontend::audio::AudioFrontend;
use crate::frontend::image::{ImagePlan, PixelFormat, Plane};
use crate::golden::{Golden, largest};
use serde_json::Value;
use ssm_kernels::causal_conv1d::{Conv, Time, causal_conv1d};
use ssm_kernels::cross_scan::{CrossScan, Mode};
use ssm_kernels::norm::{Kind, Norm, add_norm, norm};
use ssm_kernels::patch::merge;
use ssm_kernels::resize::{self, Crop, Resize};
use ssm_kernels::selective_scan::{Order, Scan, selective_scan};
use ssm_kernels::{Act, Mat, MatMut};
use std::collections::BTreeSet;

/// An operation with golden data.
pub(crate) struct Op {
    pub(crate) name: &'static str,
    detect: fn(&Checkpoint) -> bool,
    pub(crate) verify: fn(&mut Golden<'_>) -> Result<(), Error>,
}

/// Every operation, known by the tensors its files hold.
const OPS: &[Op] = &[
    Op { name: "selective_scan", detect: |f| ends(f, &[".delta", ".A", ".u"]), verify: scan },
    Op { name: "causal_conv1d", detect: |f| ends(f, &[".weight", ".x", ".final_state"]), verify: conv },
    Op { name: "cross_scan", detect: |f| ends(f, &[".source_index", ".scanned"]), verify: cross_scan },
    Op { name: "patch_merge_ln2d", detect: |f| ends(f, &["pm4x6.in"]) || ends(f, &["ln2d.in"]), verify: patch_merge },
    Op { name: "add_norm", detect: |f| f.shape("rms_x").is_some(), verify: add_norms },
    Op { name: "bicubic_grid", detect: |f| ends(f, &[".in", ".out"]), verify: bicubic },
    Op { name: "fbank", detect: waveform_only, verify: fbank },
    Op { name: "preprocess", detect: |f| ends(f, &[".image_u8", ".cropped_u8"]), verify: preprocess },
];

/// Whether for each ending some name has it.
fn ends(f: &Checkpoint, endings: &[&str]) -> bool {
    endings.iter().all(|e| f.names().any(|n| n.ends_with(e)))
}

/// Whether the file goes from samples to frames and holds no network.
fn waveform_only(f: &Checkpoint) -> bool {
    f.shape("__waveform__").is_some() && f.names().all(|n| n.starts_with("__"))
}

/// The operation that a file is about.
pub(crate) fn find(file: &Checkpoint, config: &Value) -> Option<&'static Op> {
    if config.get("family").is_some() || config.get("model").is_some() || config.get("arch").is_some() {
        return None;
    }
    let said = config.get("op").and_then(Value::as_str).unwrap_or_default();
    let named = said.starts_with("patch_merging").then_some("patch_merge_ln2d");
    OPS.iter().find(|op| named.map_or_else(|| (op.detect)(file), |name| op.name == name))
}

/// Names up to their last dot, for names with the given ending.
fn cases(g: &Golden<'_>, ending: &str) -> BTreeSet<String> {
    g.names_with("").iter().filter_map(|n| n.strip_suffix(ending)).map(str::to_owned).collect()
}

/// `[B, rows, L]` to per-row `[L, rows]` of batch `b`.
fn time_major(x: &[f32], b: usize, rows: usize, len: usize) -> Vec<f32> {
    (0..len * rows).map(|i| x[(b * rows + i % rows) * len + i / rows]).collect()
}

/// Back to `[rows, L]`.
fn channel_major(x: &[f32], rows: usize, len: usize) -> Vec<f32> {
    (0..len * rows).map(|i| x[i % len.max(1) * rows + i / len.max(1)]).collect()
}

/// B or C of a scan: constant `[D, N]`, or `[B, N, L]`, or in groups `[B, G, N, L]`.
struct Matrix {
    values: Vec<f32>,
    constant: bool,
    groups: usize,
    n: usize,
    len: usize,
}

impl Matrix {
    fn read(g: &Golden<'_>, name: &str, (batch, d, n, len): (usize, usize, usize, usize)) -> Result<Self, Error> {
        let shape = g.tensor(name)?.0;
        let (constant, groups, expected) = match shape.len() {
            2 => (true, d, vec![d, n]),
            4 => (false, shape[1], vec![batch, shape[1], n, len]),
            _ => (false, 1, vec![batch, n, len]),
        };
        if groups == 0 || !d.is_multiple_of(groups) {
            return Err(Error::Input {
                expected: format!("{name} in groups that divide {d}"),
                got: format!("{shape:?}"),
            });
        }
        Ok(Self { values: g.shaped(name, &expected)?, constant, groups, n, len })
    }

    /// Of batch `b`, a row of `groups` times N for every step; `groups` is a multiple of the matrix's own.
    fn rows(&self, b: usize, groups: usize) -> Vec<f32> {
        let own = self.groups * self.n;
        let rows =
            if self.constant { self.values.repeat(self.len) } else { time_major(&self.values, b, own, self.len) };
        let wide = |group: &[f32]| group.repeat(groups / self.groups);
        rows.chunks(self.n).flat_map(wide).collect()
    }
}

fn scan(g: &mut Golden<'_>) -> Result<(), Error> {
    for case in cases(g, ".delta") {
        let name = |t: &str| format!("{case}.{t}");
        let ([batch, d, len], u) = g.sized(&name("u"))?;
        let ([_, n], _) = g.sized(&name("A"))?;
        let a = g.shaped(&name("A"), &[d, n])?;
        if d * n == 0 {
            return Err(Error::Input { expected: format!("channels and states in {case}"), got: format!("{d}, {n}") });
        }
        let a: Vec<f32> = (0..n * d).map(|i| a[i % d * n + i / d]).collect();
        let delta = g.shaped(&name("delta"), &[batch, d, len])?;
        let z = g.shaped_optional(&name("z"), &[batch, d, len])?;
        let (dt_bias, skip) = (g.shaped_optional(&name("delta_bias"), &[d])?, g.shaped_optional(&name("D"), &[d])?);
        let softplus = g.config["cases"][&case]["delta_softplus"].as_bool().unwrap_or(true);
        let sizes = (batch, d, n, len);
        let (b, c) = (Matrix::read(g, &name("B"), sizes)?, Matrix::read(g, &name("C"), sizes)?);
        let groups = b.groups.max(c.groups);
        if !groups.is_multiple_of(b.groups) || !groups.is_multiple_of(c.groups) {
            let got = format!("{} and {}", b.groups, c.groups);
            return Err(Error::Input { expected: format!("groups of {case}.B and .C that divide"), got });
        }
        let columns = groups * n;
        let (mut y, mut states) = (vec![], vec![]);
        let mut splits = vec![];
        for i in 0..batch {
            let (u, delta) = (time_major(&u, i, d, len), time_major(&delta, i, d, len));
            let (b, c, z) = (b.rows(i, groups), c.rows(i, groups), z.as_ref().map(|z| time_major(z, i, d, len)));
            let (mut h, mut out) = (vec![0.0; n * d], vec![0.0; len * d]);
            let split = g.config["cases"][&case]["split"].as_u64().map(|s| s as usize);
            let mut at = 0;
            let mut cuts = g.cuts(len);
            if let Some(s) = split.filter(|s| *s < len) {
                cuts = vec![s, len - s];
            }
            for n_steps in cuts {
                let rows = at..at + n_steps;
                let scan = Scan {
                    u: Mat::new(&u, len, d).sub_rows(rows.clone()),
                    dt: Mat::new(&delta, len, d).sub_rows(rows.clone()),
                    dt_bias: dt_bias.as_deref(),
                    softplus,
                    scale: 1.0,
                    a: &a,
                    b: Mat::new(&b, len, columns).sub_rows(rows.clone()),
                    c: Mat::new(&c, len, columns).sub_rows(rows.clone()),
                    d: skip.as_deref(),
                    z: z.as_ref().map(|z| Mat::new(z, len, d).sub_rows(rows.clone())),
                    order: Order::Forward,
                    add: false,
                };
                selective_scan(g.cx(), &scan, &mut h, MatMut::new(&mut out[at * d..], n_steps, d));
                at += n_steps;
                if split == Some(at) {
                    splits.extend(channel_major(&h, d, n));
                }
            }
            y.extend(channel_major(&out, d, len));
            states.extend(channel_major(&h, d, n));
        }
        let size = largest(&g.tensor(&name("out"))?.1).max(1.0);
        let out = if g.has(&name("out_f64")) { name("out_f64") } else { name("out") };
        g.check(&out, &y, 1e-6 * size.max(5.0))?;
        if g.has(&name("last_state")) {
            g.check(&name("last_state"), &states, (1e-5 * largest(&states)).max(5e-6))?;
        }
        if g.has(&name("state_at_split")) {
            g.check(&name("state_at_split"), &splits, (1e-5 * largest(&splits)).max(5e-6))?;
        }
    }
    Ok(())
}

fn conv(g: &mut Golden<'_>) -> Result<(), Error> {
    for case in cases(g, ".final_state") {
        let name = |t: &str| format!("{case}.{t}");
        let ([batch, d, len], x) = g.sized(&name("x"))?;
        let ([_, width], _) = g.sized(&name("weight"))?;
        let w = g.shaped(&name("weight"), &[d, width])?;
        if d * width == 0 {
            return Err(Error::Input {
                expected: format!("channels and taps in {case}"),
                got: format!("{d}, {width}"),
            });
        }
        let keep = width - 1;
        let bias = g.shaped_optional(&name("bias"), &[d])?;
        let act = match &g.config["cases"][&case]["activation"] {
            Value::Null => Act::None,
            // Upstream has both names for one function.
            Value::String(name) if matches!(name.as_str(), "silu" | "swish") => Act::Silu,
            other => {
                let expected = format!("silu, swish or null as activation of {case}");
                return Err(Error::Input { expected, got: other.to_string() });
            }
        };
        let weights = Conv::new(&w, d, bias.as_deref());
        let start = g.shaped_optional(&name("initial_state"), &[batch, d, keep])?;
        let step = if g.has(&name("step_x")) {
            let ([_, _, steps], _) = g.sized(&name("step_x"))?;
            Some((steps, g.shaped(&name("step_x"), &[batch, d, steps])?))
        } else {
            None
        };
        let (mut out, mut tails, mut step_out, mut step_tails) = (vec![], vec![], vec![], vec![]);
        for i in 0..batch {
            let mut tail = start.as_ref().map_or_else(|| vec![0.0; keep * d], |s| time_major(s, i, d, keep));
            let run = |g: &mut Golden<'_>, x: &[f32], len: usize, cuts: Vec<usize>, tail: &mut [f32]| {
                let (mut y, mut at) = (vec![0.0; len * d], 0);
                for n in cuts {
                    let x = Mat::new(x, len, d).sub_rows(at..at + n);
                    let y = MatMut::new(&mut y[at * d..], n, d);
                    causal_conv1d(g.cx(), &weights, x, act, Time::Forward, tail, y);
                    at += n;
                }
                channel_major(&y, d, len)
            };
            let cuts = g.cuts(len);
            out.extend(run(g, &time_major(&x, i, d, len), len, cuts, &mut tail));
            tails.extend(channel_major(&tail, d, keep));
            if let Some((steps, x)) = &step {
                let steps = *steps;
                step_out.extend(run(g, &time_major(x, i, d, steps), steps, vec![1; steps], &mut tail));
                step_tails.extend(channel_major(&tail, d, keep));
            }
        }
        g.check(&name("out"), &out, 2e-6)?;
        g.check(&name("final_state"), &tails, 0.0)?;
        if step.is_some() {
            g.check(&name("step_out"), &step_out, 2e-6)?;
            g.check(&name("step_state"), &step_tails, 0.0)?;
        }
    }
    Ok(())
}

fn cross_scan(g: &mut Golden<'_>) -> Result<(), Error> {
    for case in cases(g, ".source_index") {
        let name = |t: &str| format!("{case}.{t}");
        let mode = match case.rsplit('.').next() {
            Some("unidi") => Mode::Unidi,
            Some("bidi") => Mode::Bidi,
            _ => Mode::Cross2d,
        };
        let ([batch, c, h, w], x) = g.sized(&name("x"))?;
        let len = h * w;
        let scans = CrossScan::new(mode, h, w);
        let orders: Vec<Vec<usize>> = (0..4).map(|k| (0..len).map(|t| scans.order(k).row(t, len)).collect()).collect();
        let flat: Vec<f32> = orders.iter().flatten().map(|i| *i as f32).collect();
        g.check(&name("source_index"), &flat, 0.0)?;
        let y = g.shaped(&name("y"), &[batch, 4, c, len])?;
        let (mut scanned, mut merged) = (vec![], vec![0.0; batch * c * len]);
        for i in 0..batch {
            for (k, order) in orders.iter().enumerate() {
                for ch in 0..c {
                    let plane = &x[(i * c + ch) * len..][..len];
                    scanned.extend(order.iter().map(|p| plane[*p]));
                    for (t, p) in order.iter().enumerate() {
                        merged[(i * c + ch) * len + p] += y[((i * 4 + k) * c + ch) * len + t];
                    }
                }
            }
        }
        g.check(&name("scanned"), &scanned, 0.0)?;
        g.check(&name("merged"), &merged, 1e-6)?;
    }
    Ok(())
}

fn patch_merge(g: &mut Golden<'_>) -> Result<(), Error> {
    for case in cases(g, ".in") {
        let name = |t: &str| format!("{case}.{t}");
        let (shape, x) = g.sized::<4>(&name("in"))?;
        if g.has(&name("weight")) {
            // LayerNorm over channels of [B, C, H, W].
            let (b, c, len) = (shape[0], shape[1], shape[2] * shape[3]);
            let (weight, bias) = (g.shaped(&name("weight"), &[c])?, g.shaped(&name("bias"), &[c])?);
            let w = Norm::new(Kind::Layer, weight, Some(bias), 1e-5);
            let mut out = vec![];
            for i in 0..b {
                let (rows, mut y) = (time_major(&x, i, c, len), vec![0.0; len * c]);
                norm(g.cx(), &w, Mat::new(&rows, len, c), MatMut::new(&mut y, len, c));
                out.extend(channel_major(&y, c, len));
            }
            g.check(&name("out"), &out, 2e-6)?;
        } else {
            // [B, H, W, C].
            let (size, c) = ((shape[1], shape[2]), shape[3]);
            let (m, pixels) = (size.0.div_ceil(2) * size.1.div_ceil(2), size.0 * size.1);
            let mut out = vec![0.0; shape[0] * m * 4 * c];
            for (x, out) in x.chunks_exact((pixels * c).max(1)).zip(out.chunks_exact_mut((m * 4 * c).max(1))) {
                merge(Mat::new(x, pixels, c), size, MatMut::new(out, m, 4 * c));
            }
            g.check(&name("out"), &out, 0.0)?;
        }
    }
    Ok(())
}

fn add_norms(g: &mut Golden<'_>) -> Result<(), Error> {
    let (shape, x) = g.tensor("rms_x")?;
    let d = shape.last().copied().unwrap_or(0);
    let (residual, weight) = (g.shaped("rms_residual", &shape)?, g.shaped("rms_weight", &[d])?);
    let rows = x.len() / d.max(1);
    let eps = g.config["eps"].as_f64().unwrap_or(1e-5) as f32;
    for (kind, prefix) in [(Kind::Rms, "rms"), (Kind::Layer, "ln")] {
        let bias = if kind == Kind::Layer { Some(g.shaped("ln_bias", &[d])?) } else { None };
        let w = Norm::new(kind, weight.clone(), bias, eps);
        let (mut sum, mut y) = (residual.clone(), vec![0.0; x.len()]);
        let (s, out) = (MatMut::new(&mut sum, rows, d), MatMut::new(&mut y, rows, d));
        add_norm(g.cx(), &w, Mat::new(&x, rows, d), s, out);
        g.check(&format!("{prefix}_out"), &y, 2e-6)?;
        g.check(&format!("{prefix}_residual_out"), &sum, 0.0)?;
    }
    Ok(())
}

fn bicubic(g: &mut Golden<'_>) -> Result<(), Error> {
    for case in cases(g, ".in") {
        let (from, x) = g.tensor(&format!("{case}.in"))?;
        let (to, _) = g.tensor(&format!("{case}.out"))?;
        let (&[b, c, h, w], &[_, _, to_h, to_w]) = (&from[..], &to[..]) else {
            return Err(Error::Input { expected: "grids [B, C, H, W]".into(), got: format!("{from:?} and {to:?}") });
        };
        if h * w * to_h * to_w > 0 {
            let mut y = vec![0.0; b * c * to_h * to_w];
            resize::bicubic_grid(&x, b * c, (h, w), (to_h, to_w), &mut y);
            g.check(&format!("{case}.out"), &y, 2e-6)?;
        }
    }
    Ok(())
}

/// The front end of the audio classifiers: window, mel bank, frames, the network's input (audio-mamba.md 4).
fn fbank(g: &mut Golden<'_>) -> Result<(), Error> {
    let front = AudioFrontend::from_config(&g.config, 128, "config")?;
    let f32s = |x: &[f64]| x.iter().map(|v| *v as f32).collect::<Vec<f32>>();
    if g.has("__tap__.window") {
        g.check("__tap__.window", &f32s(front.fbank().window()), 1e-6)?;
    }
    if g.has("__tap__.mel_banks") {
        // In the file the triangles were computed in f32, from values of some thousand mel.
        g.check("__tap__.mel_banks", &f32s(&front.fbank().mel_bank()), 1e-4)?;
    }
    let (shape, waves) = g.tensor("__waveform__")?;
    let samples = shape.last().copied().unwrap_or(0).max(1);
    let (mut raw, mut inputs) = (vec![], vec![]);
    let target = if g.has("__model_input__") { g.tensor("__model_input__")?.0 } else { vec![] };
    let target = target.len().checked_sub(2).map_or(0, |i| target[i]);
    for wave in waves.chunks(samples) {
        let fbank = front.fbank();
        let (mut state, mut work, mut at) = (vec![0.0; fbank.state_len()], fbank.work(), 0);
        for n in g.cuts(wave.len()) {
            fbank.push(&mut state, &wave[at..at + n], &mut work, |frame| raw.extend_from_slice(frame));
            at += n;
        }
        fbank.finish(&mut state, &mut work, |frame| raw.extend_from_slice(frame));
        inputs.extend(front.clip(wave, target));
    }
    // Where little energy is, f32 transforms are noise: the file's own f32 frames differ so much from f64.
    g.check("__output__", &raw, 5e-3)?;
    let exact = if g.has("__output_f64__") { g.f64("__output_f64__")? } else { g.f64("__output__")? };
    let mean = raw.iter().zip(&exact).map(|(a, b)| (f64::from(*a) - b).abs()).sum::<f64>() / exact.len().max(1) as f64;
    g.compare("mean of the frames' differences", &[mean as f32], &[0.0], 5e-5);
    if g.has("__model_input__") {
        g.check("__model_input__", &inputs, 5e-3)?;
    }
    Ok(())
}

/// An image of interleaved values, rows and columns exchanged; `columns` of them before.
fn turn<T: Copy>(image: &[T], columns: usize, channels: usize) -> Vec<T> {
    let rows = image.len() / (columns * channels).max(1);
    let at = |x: usize, y: usize| &image[(y * columns + x) * channels..][..channels];
    (0..columns).flat_map(|x| (0..rows).flat_map(move |y| at(x, y))).copied().collect()
}

/// Whether the Pillow that made a file resized the rows of this image first: from version 13 on it does so where they become
/// fewer by more than twice as many pixels as the columns (measured).
fn rows_first(config: &Value, case: &str, (rows, columns): (usize, usize)) -> bool {
    let version = config["pillow"].as_str().and_then(|v| v.split('.').next()?.parse().ok()).unwrap_or(0);
    let to = |i: usize| config["cases"][case]["resized"][i].as_i64();
    let (Some(height), Some(width), true) = (to(0), to(1), version >= 13) else { return false };
    let fewer = rows as i64 - height;
    fewer > 0 && fewer > 2 * (columns as i64 - width)
}

fn preprocess(g: &mut Golden<'_>) -> Result<(), Error> {
    let floats = |bytes: &[u8]| bytes.iter().map(|b| f32::from(*b)).collect::<Vec<_>>();
    for case in cases(g, ".image_u8") {
        let name = |t: &str| format!("{case}.{t}");
        let (from, image) = g.bytes(&name("image_u8"))?;
        let to = g.tensor(&name("cropped_u8"))?.0;
        let (&[rows, columns, 3], &[h, w, 3]) = (&from[..], &to[..]) else {
            let got = format!("{from:?} and {to:?}");
            return Err(Error::Input { expected: "images [H, W, 3]".into(), got });
        };
        let turned = rows_first(&g.config, &case, (rows, columns));
        let (image, (rows, columns)) = match turned {
            true => (turn(&image, columns, 3), (columns, rows)),
            false => (image, (rows, columns)),
        };
        let mut plan = ImagePlan::new((rows, columns), PixelFormat::Rgb, if turned { (w, h) } else { (h, w) })?;
        let mut out = vec![0.0; 3 * h * w];
        plan.run(g.cx(), &[Plane { data: &image, stride: 3 * columns }], &mut out)?;
        let cropped = if turned { turn(plan.cropped(), h, 3) } else { plan.cropped().to_vec() };
        if turned {
            out.chunks_exact_mut((h * w).max(1)).for_each(|plane| plane.copy_from_slice(&turn(plane, h, 1)));
        }
        g.check(&name("cropped_u8"), &floats(&cropped), 0.0)?;
        // (v / 255 - mean) / std in the order upstream has it: the same bits but for a fused step there.
        if g.has(&name("normalized")) {
            g.check(&name("normalized"), &out, 1e-6)?;
        }
        if g.has(&name("normalized_corner")) {
            let side = g.tensor(&name("normalized_corner"))?.0;
            let (rows, columns) = (side.get(1).map_or(0, |r| *r.min(&h)), side.get(2).map_or(0, |c| *c.min(&w)));
            let corner = (0..3 * rows).flat_map(|i| &out[(i / rows * h + i % rows) * w..][..columns]);
            let corner: Vec<f32> = corner.copied().collect();
            g.check(&name("normalized_corner"), &corner, 1e-6)?;
        }
        if g.has(&name("resized_u8")) {
            let to = g.tensor(&name("resized_u8"))?.0;
            let (height, width) = (to.first().copied().unwrap_or(0), to.get(1).copied().unwrap_or(0));
            if height * width > 0 {
                let (down, across) = if turned { (width, height) } else { (height, width) };
                let whole = Crop { top: 0, left: 0, height: down, width: across };
                let plan = Resize::new(3, (rows, columns), (down, across), whole);
                let (mut scratch, mut resized) = (vec![0; plan.scratch_len()], vec![0; plan.out_len()]);
                plan.run(g.cx(), &image, 3 * columns, &mut scratch, &mut resized);
                let resized = if turned { turn(&resized, height, 3) } else { resized };
                g.check(&name("resized_u8"), &floats(&resized), 0.0)?;
            }
        }
    }
    Ok(())
}
