//! A stream of a million steps through blocks that carry state, beside causal attention that keeps all keys and values.
//!
//! `ssm-bench long [--steps N] [--plot FILE.svg]`. Ends with an error if a state-space block is not flat: resident memory
//! within 1 MiB from the hundredth part of the stream to its end, the time of a step at its end within 10 % of a fresh
//! stream's, in turns with it. The first and the last tenth are told, too; what else runs on the machine moves them.

use crate::plot::{Side, plot};
use plotters::style::RGBColor;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use ssm_bench::{memory, race, values};
use ssm_kernels::attention::{Query, Sizes, attend, remember};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::norm::{Kind, Norm, norm};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};
use ssm_models::checkpoint::Checkpoint;
use ssm_models::{Model, Options, Row, Scratch, open_checkpoint};
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

/// Width of every block.
const D: usize = 256;
/// Heads of the attention.
const HEADS: usize = 4;
/// Steps timed together.
const SLICE: usize = 1000;

type Tensor = (&'static str, Vec<usize>, Vec<f32>);

/// A point of a curve: step, microseconds a step there, resident MiB.
type Point = (f64, f64, f64);

/// Resident memory of this process, MiB.
pub fn resident() -> f64 {
    memory("VmRSS:")
}

fn weight(name: &'static str, shape: &[usize]) -> Tensor {
    let fan_in = shape[1..].iter().product::<usize>().max(1) as f32;
    (name, shape.to_vec(), values(shape.iter().product(), (3.0 / fan_in).sqrt()))
}

/// A Mamba mixer: D 256, inner 512, N 16, 4 taps.
fn mamba() -> Vec<Tensor> {
    let (e, n, r) = (2 * D, 16, D / 16);
    let a = (0..e * n).map(|i| ((i % n + 1) as f32).ln()).collect();
    vec![
        weight("in_proj.weight", &[2 * e, D]),
        weight("conv1d.weight", &[e, 1, 4]),
        ("conv1d.bias", vec![e], vec![0.0; e]),
        weight("x_proj.weight", &[r + 2 * n, e]),
        weight("dt_proj.weight", &[e, r]),
        ("dt_proj.bias", vec![e], values(e, 1.0).iter().map(|v| v - 4.0).collect()),
        ("A_log", vec![e, n], a),
        ("D", vec![e], vec![1.0; e]),
        weight("out_proj.weight", &[D, e]),
    ]
}

/// An S4D layer: D 256, 32 pairs of states (N 64), S4D-Lin.
fn s4d() -> Vec<Tensor> {
    let n = 32;
    vec![
        ("D", vec![D], vec![1.0; D]),
        ("kernel.C", vec![D, n, 2], values(D * n * 2, 0.5)),
        ("kernel.log_dt", vec![D], values(D, 1.5).iter().map(|v| v - 5.0).collect()),
        ("kernel.log_A_real", vec![D, n], vec![0.5f32.ln(); D * n]),
        ("kernel.A_imag", vec![D, n], (0..D * n).map(|i| std::f32::consts::PI * (i % n) as f32).collect()),
        weight("output_linear.0.weight", &[2 * D, D, 1]),
        ("output_linear.0.bias", vec![2 * D], vec![0.0; 2 * D]),
    ]
}

fn build(name: &str, tensors: &[Tensor]) -> Result<Arc<dyn Model>, Box<dyn Error>> {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| t.2.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let mut views = Vec::new();
    for ((name, shape, _), bytes) in tensors.iter().zip(&bytes) {
        views.push((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?));
    }
    let file = Checkpoint::from_bytes(name, safetensors::serialize(views, None)?)?;
    Ok(open_checkpoint(&file, &Options { level: CpuLevel::best(), ..Options::default() })?)
}

/// A stream of `steps` through a block, one step a call, one thread: its curve, and how many times as long as a fresh
/// stream's its steps take at the end.
fn stream(model: &dyn Model, steps: usize) -> (Vec<Point>, f64) {
    let (cx, mut scratch) = (Cx::at(CpuLevel::best(), 1), Scratch::default());
    let (mut old, mut young) = ([Row::new(model, 1)], [Row::new(model, 1)]);
    let input = values(4096 * D, 1.0);
    let mut slice = |rows: &mut [Row], from: usize| {
        for i in from..from + SLICE {
            let at = i % 4096 * D;
            rows[0].x.copy_from_slice(&input[at..at + D]);
            model.forward(&cx, rows, 1, &mut scratch);
        }
        assert!(rows[0].y.iter().all(|v| v.is_finite()));
    };
    let mut timed = |rows: &mut [Row], from: usize| {
        let begin = Instant::now();
        slice(rows, from);
        (from as f64, begin.elapsed().as_secs_f64() * 1e6 / SLICE as f64, resident())
    };
    let curve = (0..steps / SLICE).map(|i| timed(&mut old, i * SLICE)).collect();
    let turns = (0..40).map(|i| (timed(&mut old, steps + i * SLICE), timed(&mut young, i * SLICE)));
    let (end, begin): (Vec<Point>, Vec<Point>) = turns.unzip();
    (curve, quarter(&end) / quarter(&begin))
}

/// One step of a pre-norm transformer layer (attention, then a perceptron four times as wide) that remembers `steps`
/// keys and values: microseconds, and the resident memory with the memory filled.
fn transformer(steps: usize) -> Point {
    let (level, cx) = (CpuLevel::best(), Cx::at(CpuLevel::best(), 1));
    let pack = |n: usize, k: usize| Linear::pack(level, &values(n * k, (3.0 / k as f32).sqrt()), n, k, None);
    let (qkv, out, up, down) = (pack(3 * D, D), pack(D, D), pack(4 * D, D), pack(D, 4 * D));
    let scales = Norm::new(Kind::Layer, vec![1.0; D], Some(vec![0.0; D]), 1e-5);
    let sizes = Sizes { heads: HEADS, dim: D / HEADS, slots: steps };
    let mut k = values(D * sizes.padded(), 1.0);
    let mut v = values(D * steps, 1.0);
    let mut scratch = vec![0.0; sizes.scratch_len()];
    let scale = [1.0 / ((D / HEADS) as f32).sqrt(); HEADS];
    let (x, mut y, mut wide) = (values(D, 1.0), vec![0.0; D], vec![0.0; 4 * D]);
    let mut rest = x.clone();
    let mut step = || {
        norm(&cx, &scales, Mat::new(&rest, 1, D), MatMut::new(&mut y, 1, D));
        linear(&cx, Mat::new(&y, 1, D), &qkv, Act::None, Store::Set, MatMut::new(&mut wide[..3 * D], 1, 3 * D));
        remember(sizes, steps - 1, &wide[D..2 * D], &wide[2 * D..3 * D], &mut k, &mut v);
        let query = Query { sizes, q: &wide[..D], k: &k, v: &v, filled: steps, scale: &scale, bias: None };
        attend(&cx, &query, &mut scratch, &mut y);
        rest.copy_from_slice(&x);
        linear(&cx, Mat::new(&y, 1, D), &out, Act::None, Store::Add, MatMut::new(&mut rest, 1, D));
        norm(&cx, &scales, Mat::new(&rest, 1, D), MatMut::new(&mut y, 1, D));
        linear(&cx, Mat::new(&y, 1, D), &up, Act::Gelu, Store::Set, MatMut::new(&mut wide, 1, 4 * D));
        linear(&cx, Mat::new(&wide, 1, 4 * D), &down, Act::None, Store::Add, MatMut::new(&mut rest, 1, D));
    };
    let seconds = race(0.4, &mut [&mut step])[0];
    let memory = resident();
    assert!(rest.iter().all(|v| v.is_finite()));
    (steps as f64, seconds * 1e6, memory)
}

/// The time that a quarter of the slices stay below: what else runs on the machine only ever adds.
fn quarter(points: &[Point]) -> f64 {
    let mut times: Vec<f64> = points.iter().map(|p| p.1).collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 4]
}

/// Points for a plot on a logarithmic axis: over stretches that grow with the step.
fn thinned(points: &[Point]) -> Vec<Point> {
    let (mut out, mut from) = (Vec::new(), 0);
    while from < points.len() {
        let to = (from + from / 4 + 1).min(points.len());
        let part = &points[from..to];
        out.push((part[part.len() / 2].0.max(SLICE as f64 / 2.0), quarter(part), part[part.len() / 2].2));
        from = to;
    }
    out
}

/// Runs the streams, prints the table, draws the plot.
pub fn run(steps: usize, file: Option<&str>) -> Result<(), Box<dyn Error>> {
    if steps < 10 * SLICE {
        return Err(format!("--steps: expected at least {}, got {steps}", 10 * SLICE).into());
    }
    let mut curves = Vec::new();
    let mut bent = Vec::new();
    println!("\na stream of {steps} steps, width {D}, one step a call, one thread");
    for (name, tensors, colour) in [("Mamba", mamba(), RGBColor(188, 55, 84)), ("S4D", s4d(), RGBColor(40, 90, 170))] {
        let model = build(name, &tensors)?;
        let (points, aged) = stream(&*model, steps);
        let tenth = points.len() / 10;
        let (first, last) = (quarter(&points[..tenth]), quarter(&points[points.len() - tenth..]));
        let memory = points.iter().skip(points.len() / 100).map(|p| p.2);
        let (low, high) = memory.fold((f64::MAX, 0f64), |(l, h), v| (l.min(v), h.max(v)));
        let (params, state) = (model.info().parameters, model.layout().bytes());
        println!(
            "{name:<6} {params} parameters, state {state} bytes: {first:.2} us a step over the first tenth, \
             {last:.2} over the last ({:+.1} %); in turns with a fresh stream {:+.1} %; resident {low:.1} to {high:.1} MiB",
            (last / first - 1.0) * 100.0,
            (aged - 1.0) * 100.0
        );
        if (aged - 1.0).abs() > 0.1 || high - low > 1.0 {
            bent.push(name);
        }
        curves.push((name, colour, thinned(&points)));
    }
    let mut points = Vec::new();
    let mut length = SLICE;
    loop {
        points.push(transformer(length));
        if length == steps {
            break;
        }
        length = (length * 4).min(steps);
    }
    for (steps, micros, memory) in &points {
        println!(
            "transformer layer that remembers {steps:>9} steps: {micros:>9.1} us a step, resident {memory:.0} MiB"
        );
    }
    curves.push(("transformer, KV cache", RGBColor(90, 90, 90), points));
    if let Some(file) = file {
        let side = |title, pick: fn(&Point) -> f64| Side {
            title,
            x: "steps of the stream",
            curves: curves.iter().map(|c| (c.0, c.1, c.2.iter().map(|p| (p.0, pick(p))).collect())).collect(),
        };
        plot(file, &[side("microseconds a step", |p| p.1), side("resident memory, MiB", |p| p.2)])?;
        println!("{file}: time and memory over the stream");
    }
    if bent.is_empty() { Ok(()) } else { Err(format!("not flat: {}", bent.join(", ")).into()) }
}
