//! Whole models, by the files that ship or that lie in `demo-out`; or one file, for scripts that time peers beside it.

use ssm_bench::{memory, race, values};
use ssm_kernels::linear::Precision;
use ssm_kernels::{CpuLevel, Cx};
use ssm_models::{Device, Options, Row, Scratch, Signal, open};
use std::error::Error;
use std::time::Instant;

/// What `make demo` makes: Vim-Ti with random weights.
pub const VIM: &str = "demo-out/vim-tiny-random.safetensors";

pub fn run(level: CpuLevel, cores: usize, seconds: f64) {
    println!("\nmodels");
    let (f32, bf16) = (Precision::F32, Precision::Bf16);
    for (file, what, precision) in [
        (VIM, "Vim-Ti 224, a frame", f32),
        (VIM, "the same in bf16", bf16),
        ("builtin:denoise", "denoiser, a hop", f32),
        ("builtin:denoise-mamba", "  one path, mamba", f32),
        ("builtin:denoise-mamba2", "  one path, mamba2", f32),
        ("builtin:denoise-s4d", "  one path, s4d", f32),
        ("builtin:denoise-moe-mamba", "  one path, moe", f32),
        ("builtin:denoise-bst", "  one path, bst", f32),
    ] {
        let options = Options { level, precision, ..Options::default() };
        let model = match open(file, &options) {
            Ok(model) => model,
            Err(error) => {
                println!("SKIP {what}: {error}");
                continue;
            }
        };
        for threads in if cores > 1 { vec![1, cores] } else { vec![1] } {
            let (cx, mut scratch) = (Cx::at(level, threads), Scratch::default());
            let mut rows = [Row::new(&*model, 1)];
            let input = values(rows[0].x.len(), 0.1);
            rows[0].x.copy_from_slice(&input);
            let time = race(seconds, &mut [&mut || model.forward(&cx, &mut rows, 1, &mut scratch)])[0];
            assert!(rows[0].y.iter().all(|v| v.is_finite()));
            print!("{what:<20} {threads} threads: {:>8.3} ms", time * 1e3);
            if let Signal::Samples { hop, rate } = model.info().input {
                print!(", {:.4} processor seconds a second of audio", time * f64::from(rate) / hop as f64);
            }
            println!();
        }
    }
}

/// How `ssm-bench model` runs its file.
pub struct One<'a> {
    /// Threads on the processor.
    pub threads: usize,
    /// Where the model runs.
    pub device: Device,
    /// Streams of a pass.
    pub batch: usize,
    /// Steps of a pass.
    pub steps: usize,
    /// Time to take.
    pub seconds: f64,
    /// Precision.
    pub precision: Precision,
    /// File with the input, passes in a row, the same for all streams: little-endian 32-bit floats, or token ids.
    pub input: Option<&'a str>,
    /// Whether to wait for a line on standard input before each timing.
    pub turns: bool,
}

/// Resident memory of this process, MiB: its peak since [`forget_peak`].
fn peak() -> f64 {
    memory("VmHWM:")
}

/// What is resident now becomes the peak. Where the system does not let it, the peak is that of the whole process.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Input of one pass.
enum Input {
    Values(Vec<f32>),
    Tokens(Vec<u32>),
}

impl Input {
    fn give(&self, rows: &mut [Row]) {
        for row in rows {
            match self {
                Self::Values(x) => row.x.copy_from_slice(x),
                Self::Tokens(ids) => row.tokens.copy_from_slice(ids),
            }
        }
    }
}

/// The input of each pass: of a file, or one pass of values that nobody has chosen.
fn inputs(file: Option<&str>, signal: &Signal, steps: usize) -> Result<Vec<Input>, Box<dyn Error>> {
    let vocab = if let Signal::Token { vocab } = *signal { Some(vocab) } else { None };
    let pass = steps * if vocab.is_some() { 1 } else { signal.len() };
    let Some(file) = file else {
        return Ok(vec![match vocab {
            Some(vocab) => Input::Tokens((0..pass).map(|i| (i * 7919 % vocab) as u32).collect()),
            None => Input::Values(values(pass, 1.0)),
        }]);
    };
    let bytes = std::fs::read(file)?;
    let words = bytes.as_chunks::<4>().0;
    if words.is_empty() || !words.len().is_multiple_of(pass) {
        return Err(format!("--input: expected a multiple of {pass} values, got {}", words.len()).into());
    }
    let of = |words: &[[u8; 4]]| match vocab {
        Some(vocab) => {
            let ids: Vec<u32> = words.iter().map(|b| u32::from_le_bytes(*b)).collect();
            match ids.iter().find(|id| **id as usize >= vocab) {
                Some(id) => Err(format!("--input: expected token ids below {vocab}, got {id}")),
                None => Ok(Input::Tokens(ids)),
            }
        }
        None => Ok(Input::Values(words.iter().map(|b| f32::from_le_bytes(*b)).collect())),
    };
    Ok(words.chunks_exact(pass).map(of).collect::<Result<_, _>>()?)
}

/// `ssm-bench model FILE [--threads N] [--device D] [--batch B] [--steps L] [--seconds S] [--precision bf16]
/// [--input RAW] [--turns]`: lines of JSON. The first has the median milliseconds of a pass and the first stream's last
/// output after the passes of the input. With `--turns` it comes without a time, and each line on standard input, a
/// number of seconds, is answered with the time of passes that take about as long: so a script can take peers in turns.
/// `resident` is the peak of resident MiB while the model ran, less what was resident before it was opened.
pub fn one(file: &str, how: &One<'_>) -> Result<(), Box<dyn Error>> {
    let level = CpuLevel::from_env()?;
    let before = memory("VmRSS:");
    let model = open(file, &Options { level, precision: how.precision, ..Options::default() })?;
    let model = how.device.place(model)?.model;
    forget_peak();
    let steps = how.steps.max(1);
    let (cx, mut scratch) = (Cx::at(level, how.threads), Scratch::default());
    let mut rows: Vec<Row> = (0..how.batch.max(1)).map(|_| Row::new(&*model, steps)).collect();
    let inputs = inputs(how.input, &model.info().input, steps)?;
    for input in &inputs {
        input.give(&mut rows);
        model.run(&cx, &mut rows, steps, &mut scratch)?;
    }
    let output = rows[0].y[rows[0].y.len() / steps * (steps - 1)..].to_vec();
    let (device, bytes) = (model.device().to_string(), model.card().map_or(0, |card| card.bytes()));
    let mut failed = None;
    let mut pass = || failed = model.run(&cx, &mut rows, steps, &mut scratch).err().or(failed.take());
    if how.turns {
        println!("{}", serde_json::json!({ "device": device, "output": output }));
        for line in std::io::stdin().lines() {
            let time = turn(line?.trim().parse()?, &mut pass);
            println!("{}", serde_json::json!({ "milliseconds": time * 1e3, "resident": peak() - before }));
        }
    } else {
        let time = race(how.seconds, &mut [&mut pass])[0];
        let resident = peak() - before;
        println!(
            "{}",
            serde_json::json!({ "milliseconds": time * 1e3, "device": device, "device_bytes": bytes, "output": output, "resident": resident })
        );
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// Median seconds of a pass, for about `seconds`; one pass at least.
fn turn(seconds: f64, pass: &mut dyn FnMut()) -> f64 {
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.is_empty() || start.elapsed().as_secs_f64() < seconds {
        let begin = Instant::now();
        pass();
        times.push(begin.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
