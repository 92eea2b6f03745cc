//! Whole models, by the files that ship or that lie in `demo-out`; or one file, for scripts that time peers beside it.

use crate::{race, values};
use ssm_kernels::linear::Precision;
use ssm_kernels::{CpuLevel, Cx};
use ssm_models::{Device, Options, Row, Scratch, Signal, open};
use std::error::Error;

pub fn run(cores: usize) {
    println!("\nmodels");
    let random = "demo-out/vim-tiny-random.safetensors";
    let (f32, bf16) = (Precision::F32, Precision::Bf16);
    for (file, what, precision) in [
        (random, "Vim-Ti 224, a frame", f32),
        (random, "the same in bf16", bf16),
        ("builtin:denoise", "denoiser, a hop", f32),
    ] {
        let options = Options { level: CpuLevel::best(), precision, ..Options::default() };
        let model = match open(file, &options) {
            Ok(model) => model,
            Err(error) => {
                println!("SKIP {what}: {error}");
                continue;
            }
        };
        for threads in if cores > 1 { vec![1, cores] } else { vec![1] } {
            let (cx, mut scratch) = (Cx::at(CpuLevel::best(), threads), Scratch::default());
            let mut rows = [Row::new(&*model, 1)];
            let input = values(rows[0].x.len(), 0.1);
            rows[0].x.copy_from_slice(&input);
            let seconds = race(2.0, &mut [&mut || model.forward(&cx, &mut rows, 1, &mut scratch)])[0];
            assert!(rows[0].y.iter().all(|v| v.is_finite()));
            print!("{what:<20} {threads} threads: {:>8.3} ms", seconds * 1e3);
            if let Signal::Samples { hop, rate } = model.info().input {
                print!(", {:.4} processor seconds a second of audio", seconds * f64::from(rate) / hop as f64);
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
    /// Time to take.
    pub seconds: f64,
    /// Precision.
    pub precision: Precision,
    /// File with the input as little-endian 32-bit floats, the same for all streams.
    pub input: Option<&'a str>,
}

/// `ssm-bench model FILE [--threads N] [--device D] [--batch B] [--seconds S] [--precision bf16] [--input RAW]`: the median
/// milliseconds of a pass of one step, and the first stream's output, as a line of JSON.
pub fn one(file: &str, how: &One<'_>) -> Result<(), Box<dyn Error>> {
    let level = CpuLevel::from_env()?;
    let model = open(file, &Options { level, precision: how.precision, ..Options::default() })?;
    let model = how.device.place(model)?.model;
    let (cx, mut scratch) = (Cx::at(level, how.threads), Scratch::default());
    let mut rows: Vec<Row> = (0..how.batch.max(1)).map(|_| Row::new(&*model, 1)).collect();
    let x = match how.input {
        Some(file) => std::fs::read(file)?.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        None => values(rows[0].x.len(), 1.0),
    };
    for row in &mut rows {
        if x.len() != row.x.len() {
            return Err(format!("--input: expected {} values, got {}", row.x.len(), x.len()).into());
        }
        row.x.copy_from_slice(&x);
    }
    let mut failed = None;
    let pass = &mut || failed = model.run(&cx, &mut rows, 1, &mut scratch).err().or(failed.take());
    let time = race(how.seconds, &mut [pass])[0];
    if let Some(error) = failed {
        return Err(error.into());
    }
    let output = &rows[0].y;
    println!("{}", serde_json::json!({ "milliseconds": time * 1e3, "device": model.device().to_string(), "output": output }));
    Ok(())
}
