//! What only a card can show: how much of its memory's bandwidth the selective scan reaches.

use ssm_bench::option;
use ssm_kernels::cuda::selective_scan::{self, order};
use ssm_kernels::cuda::{Card, CardError, Kind};
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

/// Seconds of one `call`, of as many as take `seconds`, queued together.
fn timed(card: &Arc<Card>, seconds: f64, call: impl Fn() -> Result<(), CardError>) -> Result<f64, CardError> {
    let run = |calls: u32| {
        let begin = Instant::now();
        (0..calls).try_for_each(|_| call())?;
        card.wait()?;
        Ok::<_, CardError>(begin.elapsed().as_secs_f64())
    };
    let mut calls = 1;
    run(1)?;
    while run(calls)? < seconds / 10.0 && calls < 1 << 20 {
        calls *= 2;
    }
    let mut times: Vec<f64> = (0..9).map(|_| run(calls)).collect::<Result<_, _>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[4] / f64::from(calls))
}

/// `ssm-bench card [--batch 64] [--len 197] [--channels 384] [--kind bf16] [--seconds 1]`: the scan of a layer of Vim-Ti,
/// both ways, beside a copy on the card, as a line of JSON.
pub fn scan(args: &[String]) -> Result<(), Box<dyn Error>> {
    let number = |name: &str, default: u32| option(args, name).map_or(Ok(default), |v| v.parse());
    let (batch, len, d) = (number("--batch", 64)?, number("--len", 197)?, number("--channels", 384)?);
    let kind = if option(args, "--kind").is_some_and(|k| k == "bf16") { Kind::Bf16 } else { Kind::F32 };
    let seconds = option(args, "--seconds").map_or(Ok(1.0), |s| s.parse())?;
    let (n, directions, rows) = (16, 2, (batch * len) as usize);
    let card = Card::open(0)?;
    // Values of 32 bits each; half of them is enough for 16 bits.
    let room = |values: usize| card.memory(values);
    let wide = rows * d as usize;
    let (u, z, dt, y) = (room(2 * wide)?, room(wide)?, room(2 * wide)?, room(2 * wide)?);
    let (bc, small) = (room(2 * rows * 2 * n)?, room(2 * n * d as usize)?);
    let scan = selective_scan::Args {
        u: u.ptr(),
        dt: dt.ptr(),
        dt_bias: small.ptr(),
        a: small.ptr(),
        b: bc.ptr(),
        c: bc.ptr(),
        skip: small.ptr(),
        z: z.ptr(),
        y: y.ptr(),
        u_dir: wide as u64,
        dt_dir: wide as u64,
        bc_dir: (rows * 2 * n) as u64,
        y_dir: wide as u64,
        u_stride: d,
        dt_stride: d,
        bc_stride: 2 * n as u32,
        z_stride: d,
        y_stride: d,
        kind,
        batch,
        len,
        d,
        n: n as u32,
        per_group: d,
        orders: order::pack(&[order::FORWARD, order::REVERSE]),
        softplus: 1,
        chunk: len,
        ..selective_scan::Args::default()
    };
    let launch = scan.scan(directions)?;
    let time = timed(&card, seconds, || card.launch(&launch, &scan))?;
    let value = if kind == Kind::F32 { 4 } else { 2 };
    // Read: u, z and dt of both ways, b and c; written: y.
    let bytes = 2 * (wide * (3 * value + 4) + rows * 2 * n * 4);
    let copied = 1 << 28;
    let (from, to) = (room(copied / 4)?, room(copied / 4)?);
    let copy = timed(&card, seconds, || card.copy(&to, 0, &from, 0..copied / 4))?;
    let rate = |bytes: usize, seconds: f64| bytes as f64 / seconds / 1e9;
    let (scan, copy) = (rate(bytes, time), rate(2 * copied, copy));
    println!(
        "{}",
        serde_json::json!({
            "card": card.name(), "batch": batch, "len": len, "channels": d, "microseconds": time * 1e6,
            "scan_gb_s": scan, "copy_gb_s": copy, "share": scan / copy,
        })
    );
    Ok(())
}
