//! `make bench`: kernels against the machine's own roof and against other crates, whole models, and a stream of a
//! million steps. With the argument `long` only the last; with `streams` only sixteen streams at once, with
//! `scans` only the scan, with `model FILE` only that file.
//!
//! Every figure is the median of runs that alternate with their peers in one sitting. A rate above the measured roof is a
//! mistake of the benchmark and ends it.

mod kernels;
mod long;
mod models;
mod roof;
mod streams;

use ssm_kernels::linear::Precision;
use std::time::Instant;

/// Median seconds of one call of each of `runs`, in turns, for about `budget` seconds in all.
pub fn race(budget: f64, runs: &mut [&mut dyn FnMut()]) -> Vec<f64> {
    let mut times: Vec<Vec<f64>> = runs.iter_mut().map(|_| Vec::new()).collect();
    runs.iter_mut().for_each(|run| run());
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < budget || times[0].len() < 5 {
        for (run, times) in runs.iter_mut().zip(&mut times) {
            // Calls of less than a tenth of a millisecond are timed together.
            let (begin, mut calls) = (Instant::now(), 0);
            while calls == 0 || begin.elapsed().as_secs_f64() < 1e-4 {
                run();
                calls += 1;
            }
            times.push(begin.elapsed().as_secs_f64() / f64::from(calls));
        }
    }
    times
        .iter_mut()
        .map(|t| {
            t.sort_by(f64::total_cmp);
            t[t.len() / 2]
        })
        .collect()
}

/// Values that no compiler can foresee.
pub fn values(n: usize, scale: f32) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64 ^ n as u64;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
        })
        .collect()
}

/// The value after `name` on the command line.
fn option(args: &[String], name: &str) -> Option<String> {
    args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or(": unknown").to_owned();
    println!("machine{}, {cores} cores, level {}", model.trim_start(), ssm_kernels::CpuLevel::best());
    let steps = option(&args, "--steps").map_or(Ok(1_000_000), |s| s.parse())?;
    let file = option(&args, "--plot");
    if args.first().is_some_and(|a| a == "long") {
        return long::run(steps, file.as_deref());
    }
    if args.first().is_some_and(|a| a == "model") {
        let file = args.get(1).ok_or("model: expected a file")?;
        let threads = option(&args, "--threads").map_or(Ok(cores), |n| n.parse())?;
        let seconds = option(&args, "--seconds").map_or(Ok(2.0), |s| s.parse())?;
        let precision = match option(&args, "--precision").as_deref() {
            None | Some("f32") => Precision::F32,
            Some("bf16") => Precision::Bf16,
            Some("int8") => Precision::Int8,
            Some(other) => return Err(format!("--precision: expected f32, bf16 or int8, got {other}").into()),
        };
        let device = option(&args, "--device").as_deref().unwrap_or("cpu").parse()?;
        let batch = option(&args, "--batch").map_or(Ok(1), |b| b.parse())?;
        let input = option(&args, "--input");
        let how = models::One { threads, device, batch, seconds, precision, input: input.as_deref() };
        return models::one(file, &how);
    }
    if args.first().is_some_and(|a| a == "streams") {
        let seconds = option(&args, "--seconds").map_or(Ok(3.0), |s| s.parse())?;
        return match &args[1..] {
            [way, file, ..] if way == "shared" || way == "separate" => streams::child(way, file, seconds),
            _ => streams::run(seconds),
        };
    }
    let roof = roof::measure();
    if args.first().is_some_and(|a| a == "scans") {
        kernels::scans();
        return Ok(());
    }
    println!(
        "roof of one core: {:.0} GFLOP/s (f32 multiply-add), {:.1} GB/s (read)",
        roof.flops / 1e9,
        roof.read / 1e9
    );
    kernels::run(&roof, cores);
    models::run(cores);
    streams::run(3.0)?;
    long::run(steps, file.as_deref())
}
