//! What a command prints. `println!` panics when nobody reads any more (`ssm verify tests/golden | head`), or when the disk is
//! full; these end the command instead.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// The code by which a shell tells that SIGPIPE ended a tool (128 + 13). Rust ignores that signal.
const NOBODY_READS: i32 = 141;

/// Names and texts of a file, which shall neither speak to the terminal nor make lines of their own.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// `println!` for the results of a command.
macro_rules! say {
    ($($text:tt)*) => { crate::say::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// `eprintln!` for what is beside the results.
macro_rules! warn {
    ($($text:tt)*) => { crate::say::complain(format_args!($($text)*)) };
}

/// Writes to the standard output, or ends the process: quietly if nobody reads it, with a message and code 1 otherwise.
pub fn print(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(NOBODY_READS);
    }
    warn!("ssm: standard output: {error}");
    std::process::exit(1);
}

/// Writes a line to the standard error. Where that cannot be, nobody can be told, and the work goes on.
pub fn complain(text: Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
