//! The signals that ask a process to end.

use crate::Failure;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::process::exit;

/// The code of a shell for a program that Ctrl-C ended (128 + 2).
const INTERRUPTED: i32 = 130;

/// Signals that the process was started to ignore, a bit each from 1 on: under `nohup` SIGHUP is among them.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Calls `end`, on a thread of its own, at the first of Ctrl-C, SIGTERM and SIGHUP; at a second one the process ends.
///
/// # Errors
/// The system gives no thread or no handler.
pub fn at_end(end: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let ignored = ignored();
    let heard = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0);
    let fail = |e: std::io::Error| Failure::Usage(format!("signals: {e}"));
    let mut signals = Signals::new(heard).map_err(fail)?;
    let listen = move || {
        let mut coming = signals.forever();
        if coming.next().is_some() {
            end();
        }
        if coming.next().is_some() {
            exit(INTERRUPTED);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(fail)?;
    Ok(())
}
