//! What the benchmarks share: turns, values, and what the system says of this process.

use rustix::time::{ClockId, clock_gettime};
use std::time::Instant;

/// Median seconds of one call of each of `runs`, in turns, for about `budget` seconds in all.
pub fn race(budget: f64, runs: &mut [&mut dyn FnMut()]) -> Vec<f64> {
    race_by(&|| 0.0, budget, runs).into_iter().map(|(time, _)| time).collect()
}

/// As [`race`], and what `clock` goes on by in a call, the median as well.
pub fn race_by(clock: &dyn Fn() -> f64, budget: f64, runs: &mut [&mut dyn FnMut()]) -> Vec<(f64, f64)> {
    let mut times: Vec<Vec<(f64, f64)>> = runs.iter_mut().map(|_| Vec::new()).collect();
    runs.iter_mut().for_each(|run| run());
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < budget || times[0].len() < 5 {
        for (run, times) in runs.iter_mut().zip(&mut times) {
            // Calls of less than a tenth of a millisecond are timed together.
            let (begin, since, mut calls) = (Instant::now(), clock(), 0);
            while calls == 0 || begin.elapsed().as_secs_f64() < 1e-4 {
                run();
                calls += 1;
            }
            times.push((begin.elapsed().as_secs_f64() / f64::from(calls), (clock() - since) / f64::from(calls)));
        }
    }
    let median = |times: &[(f64, f64)], pick: fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = times.iter().map(pick).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    times.iter().map(|t| (median(t, |t| t.0), median(t, |t| t.1))).collect()
}

/// Processor seconds of all threads of this process.
pub fn processor() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
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

/// A line of this process's status in MiB: `VmRSS:` what is resident, `VmHWM:` the most that was.
pub fn memory(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
}

/// The value after `name` on the command line.
pub fn option(args: &[String], name: &str) -> Option<String> {
    args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned()
}
