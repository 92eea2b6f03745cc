//! The denoiser in 1 to 64 streams that run at real time through one engine: what each costs, and how long a hop takes.
//!
//! Each number of streams runs in a process of its own, so that processor time is its own.

use crate::plot::{Side, plot};
use crate::streams;
use plotters::style::RGBColor;
use ssm_bench::{processor, values};
use ssm_models::{AudioStream, Device, Signal};
use std::error::Error;
use std::process::Command;
use std::time::{Duration, Instant};

/// Numbers of streams.
const COUNTS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// `count` streams, a thread each. Their hops come evenly spread over the time of one. Prints processor seconds a second
/// of all of them, and milliseconds from when a hop was due until it was done (median, 99 of 100), as JSON.
pub fn child(count: usize, seconds: f64) -> Result<(), Box<dyn Error>> {
    let engine = streams::engine(streams::DENOISER, count, Device::Cpu)?;
    let Signal::Samples { hop, rate } = engine.info().input else { return Err("expected a model of samples".into()) };
    let period = Duration::from_secs_f64(hop as f64 / f64::from(rate));
    let length = Duration::from_secs_f64(seconds).max(period);
    let play = |i: usize, start: Instant| -> Result<Vec<f64>, ssm_models::Error> {
        let (input, mut out) = (values(hop, 0.1), Vec::new());
        let mut stream = AudioStream::new(&engine, 1)?;
        let phase = period.mul_f64(i as f64 / count as f64);
        let mut took = Vec::new();
        // What falls behind real time ends, too.
        while took.is_empty() || start.elapsed() < length {
            let due = start + phase + period * (took.len() as u32 + 1);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            stream.push(&input, &mut out)?;
            took.push(due.elapsed().as_secs_f64() * 1e3);
            out.clear();
        }
        Ok(took)
    };
    let (start, before) = (Instant::now(), processor());
    let played: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|i| scope.spawn(move || play(i, start))).collect();
        threads.into_iter().map(|t| t.join()).collect()
    });
    let cost = (processor() - before) / start.elapsed().as_secs_f64();
    let mut took = Vec::new();
    for stream in played {
        took.extend(stream.map_err(|_| "a stream panicked")??);
    }
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took[((took.len() - 1) as f64 * share).round() as usize];
    println!("{}", serde_json::json!({ "cost": cost, "median": at(0.5), "p99": at(0.99) }));
    Ok(())
}

/// All numbers of streams; the table, and the plot.
pub fn run(seconds: f64, file: Option<&str>) -> Result<(), Box<dyn Error>> {
    println!(
        "\ndenoiser, streams at real time: processor seconds a second of each, milliseconds from a hop's due time"
    );
    let mut points = Vec::new();
    for count in COUNTS {
        let own = std::env::current_exe()?;
        let args = ["live", "--count", &count.to_string(), "--seconds", &seconds.to_string()];
        let out = Command::new(own).args(args).output()?;
        let text = String::from_utf8(out.stdout)?;
        let line = text.lines().last().unwrap_or_default();
        let value: serde_json::Value = serde_json::from_str(line)
            .map_err(|_| format!("{count} streams: {}", String::from_utf8_lossy(&out.stderr)))?;
        let number = |key: &str| value[key].as_f64().ok_or_else(|| format!("{count} streams: no {key}"));
        let (all, median, p99) = (number("cost")?, number("median")?, number("p99")?);
        println!(
            "{count:>3} streams: {:.4} each, {all:.3} in all; median {median:.2} ms, p99 {p99:.2}",
            all / count as f64
        );
        points.push((count as f64, [all / count as f64, all, median, p99]));
    }
    if let Some(file) = file {
        let (red, blue) = (RGBColor(188, 55, 84), RGBColor(40, 90, 170));
        let curve = |name, colour, i: usize| (name, colour, points.iter().map(|p| (p.0, p.1[i])).collect());
        let costs = vec![curve("all streams", red, 1), curve("each", blue, 0)];
        let times = vec![curve("99 of 100 hops", red, 3), curve("median", blue, 2)];
        let side = |title, curves| Side { title, x: "streams at real time", curves };
        plot(file, &[side("processor seconds a second", costs), side("milliseconds a hop takes", times)])?;
        println!("{file}: cost over the number of streams");
    }
    Ok(())
}
