//! Sixteen streams with one engine, beside sixteen engines: throughput and memory.
//!
//! Each way runs in a process of its own, so that resident memory is its own.

use crate::{long, models};
use ssm_bench::values;
use ssm_kernels::Cx;
use ssm_models::{AudioStream, Device, Engine, Options, Signal, open};
use std::error::Error;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const STREAMS: usize = 16;
pub const DENOISER: &str = "builtin:denoise";

/// An engine on as many threads as the elements take: the denoiser one, the others all.
pub fn engine(file: &str, batch: usize, device: Device) -> Result<Arc<Engine>, Box<dyn Error>> {
    let cores = std::thread::available_parallelism()?.get();
    let cx = Cx::new(if file == DENOISER { 1 } else { cores })?;
    let model = device.place(open(file, &Options { level: cx.level, ..Options::default() })?)?.model;
    Ok(Engine::start(model, cx, batch, Duration::ZERO))
}

/// One way: `shared` or `separate`, of so many streams. Prints the steps a second of all streams together, and resident MiB, as JSON.
pub fn child(way: &str, file: &str, seconds: f64, device: Device, many: usize) -> Result<(), Box<dyn Error>> {
    let engines = if way == "shared" {
        vec![engine(file, many, device)?; many]
    } else {
        (0..many).map(|_| engine(file, 1, device)).collect::<Result<_, _>>()?
    };
    let begin = Instant::now();
    let done: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = engines.iter().map(|engine| scope.spawn(move || steps(engine, begin, seconds))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or(0)).collect()
    });
    let rate = done.iter().sum::<u64>() as f64 / begin.elapsed().as_secs_f64();
    println!("{}", serde_json::json!({ "rate": rate, "resident": long::resident() }));
    Ok(())
}

/// Steps that one stream takes until `seconds` have passed since `begin`.
fn steps(engine: &Arc<Engine>, begin: Instant, seconds: f64) -> u64 {
    let mut steps = 0;
    if let Signal::Samples { hop, .. } = engine.info().input {
        let (input, mut out) = (values(hop, 0.1), Vec::new());
        let Ok(mut stream) = AudioStream::new(engine, 1) else { return 0 };
        while begin.elapsed().as_secs_f64() < seconds && stream.push(&input, &mut out).is_ok() {
            out.clear();
            steps += 1;
        }
    } else {
        let mut stream = engine.stream(1);
        let input = values(stream.row().x.len(), 1.0);
        stream.row().x.copy_from_slice(&input);
        while begin.elapsed().as_secs_f64() < seconds && stream.run(1).is_ok() {
            steps += 1;
        }
    }
    steps
}

/// Both ways in turns, three times each, and their ratio.
pub fn run(seconds: f64) -> Result<(), Box<dyn Error>> {
    println!("\n{STREAMS} streams: one engine beside {STREAMS} engines");
    for (file, what) in [(DENOISER, "denoiser"), (models::VIM, "Vim-Ti 224")] {
        if !file.starts_with("builtin:") && !std::path::Path::new(file).is_file() {
            println!("SKIP {what}: no {file}");
            continue;
        }
        let mut found = [(0.0, 0.0); 2];
        let mut rates = [Vec::new(), Vec::new()];
        for _ in 0..3 {
            for (i, way) in ["shared", "separate"].into_iter().enumerate() {
                let own = std::env::current_exe()?;
                let out = Command::new(own).args(["streams", way, file, "--seconds", &seconds.to_string()]).output()?;
                let text = String::from_utf8(out.stdout)?;
                let line =
                    text.lines().last().ok_or_else(|| format!("{way}: {}", String::from_utf8_lossy(&out.stderr)))?;
                let value: serde_json::Value = serde_json::from_str(line)?;
                let number = |key: &str| value[key].as_f64().ok_or_else(|| format!("{way}: no {key}"));
                rates[i].push(number("rate")?);
                found[i].1 = number("resident")?;
            }
        }
        for (rates, found) in rates.iter_mut().zip(&mut found) {
            rates.sort_by(f64::total_cmp);
            found.0 = rates[1];
        }
        let [(rate, memory), (rate_apart, memory_apart)] = found;
        println!(
            "{what:<11} one engine {rate:8.1} steps a second, {memory:6.1} MiB; apart {rate_apart:8.1}, {memory_apart:6.1} \
             MiB: {:.2} x the throughput, {:.2} x the memory",
            rate / rate_apart,
            memory / memory_apart
        );
    }
    Ok(())
}
