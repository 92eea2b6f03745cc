//! `make bench`: kernels against the machine's own roof and against other crates, whole models, many streams at
//! once, and a stream of a million steps. With the argument `long` only the last, with `streams` only the many, with
//! `scans` only the scan, with `model FILE` only that file, with `card` only the scan on a card; `--seconds S` and `--steps L` make all of it shorter.
//!
//! Every figure is the median of runs that alternate with their peers in one sitting. A rate above the roof that is
//! measured in turns with it is a mistake of the benchmark and ends it.

mod card;
mod kernels;
mod live;
mod long;
mod models;
mod plot;
mod roof;
mod streams;

use ssm_bench::option;
use ssm_kernels::CpuLevel;
use ssm_kernels::linear::Precision;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let level = CpuLevel::from_env()?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or(": unknown").to_owned();
    println!("machine{}, {cores} cores, level {level}", model.trim_start());
    let seconds = |usual: f64| option(&args, "--seconds").map_or(Ok(usual), |s| s.parse());
    let threads = option(&args, "--threads").map_or(Ok(cores), |n| n.parse())?;
    let steps = option(&args, "--steps").map(|s| s.parse()).transpose()?;
    let plot = option(&args, "--plot");
    match args.first().map(String::as_str) {
        Some("long") => long::run(steps.unwrap_or(LONG), plot.as_deref()),
        Some("model") => {
            let precision = match option(&args, "--precision").as_deref() {
                None | Some("f32") => Precision::F32,
                Some("bf16") => Precision::Bf16,
                Some("int8") => Precision::Int8,
                Some(other) => return Err(format!("--precision: expected f32, bf16 or int8, got {other}").into()),
            };
            let input = option(&args, "--input");
            let how = models::One {
                threads,
                device: option(&args, "--device").as_deref().unwrap_or("cpu").parse()?,
                batch: option(&args, "--batch").map_or(Ok(1), |b| b.parse())?,
                steps: steps.unwrap_or(1),
                seconds: seconds(2.0)?,
                precision,
                input: input.as_deref(),
                turns: args.iter().any(|a| a == "--turns"),
            };
            models::one(args.get(1).ok_or("model: expected a file")?, &how)
        }
        Some("scans") => {
            kernels::scans(level);
            Ok(())
        }
        Some("card") => card::scan(&args),
        Some("live") => live::child(option(&args, "--count").ok_or("expected --count")?.parse()?, seconds(5.0)?),
        Some("streams") => match &args[1..] {
            [way, file, ..] if way == "shared" || way == "separate" => {
                let device = option(&args, "--device").as_deref().unwrap_or("cpu").parse()?;
                let many = option(&args, "--streams").map_or(Ok(streams::STREAMS), |n| n.parse())?;
                streams::child(way, file, seconds(3.0)?, device, many)
            }
            _ => streams::run(seconds(3.0)?).and_then(|()| live::run(seconds(5.0)?, plot.as_deref())),
        },
        _ => all(level, cores, seconds(5.0)?, steps.unwrap_or(LONG), plot.as_deref()),
    }
}

/// Steps of the long stream.
const LONG: usize = 1_000_000;

/// Everything; `seconds` for each of what plays streams.
fn all(
    level: CpuLevel,
    cores: usize,
    seconds: f64,
    steps: usize,
    plot: Option<&str>,
) -> Result<(), Box<dyn std::error::Error>> {
    let roof = roof::measure(level);
    println!(
        "roof of one core: {:.0} GFLOP/s (f32 multiply-add), {:.1} GB/s (read)",
        roof.flops / 1e9,
        roof.read / 1e9
    );
    kernels::run(level, cores);
    models::run(level, cores, seconds.min(2.0));
    streams::run(seconds.min(3.0))?;
    live::run(seconds, None)?;
    long::run(steps, plot)
}
