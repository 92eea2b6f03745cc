//! `ssm generate`: continue a sequence of token ids, the likeliest one each time.
//!
//! The stream's state is all that is carried: time and memory per token do not grow with the length.

use crate::{Failure, number};
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Device, Error, Model, Options, Row, Scratch, Signal, open};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Steps of the prompt that go in together.
const CHUNK: usize = 16;

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  ssm generate mamba-130m --tokens 510,5347,273 --count 64
  ssm generate mamba-130m --prompt-file prompt.txt --count 0 --stats";

#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint of a language model.
    model: String,
    /// Prompt: token ids separated by commas.
    #[arg(long, value_delimiter = ',', required_unless_present = "prompt_file", conflicts_with = "prompt_file")]
    tokens: Vec<u32>,
    /// Prompt: file of token ids separated by commas or white space.
    #[arg(long)]
    prompt_file: Option<PathBuf>,
    /// Tokens to generate; 0: until the reader goes away.
    #[arg(long, default_value_t = 32)]
    count: u64,
    /// Print time per token and resident memory to the standard error, now and then.
    #[arg(long)]
    stats: bool,
    /// Tokens between two lines of `--stats`.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    stats_every: u64,
    /// Where the model runs: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads.
    #[arg(long, default_value_t = 1, value_parser = number::threads())]
    threads: usize,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let device = args.device.parse::<Device>()?.resolve()?;
    let options = Options { level: CpuLevel::from_env().map_err(Error::from)?, ..Options::default() };
    let model = device.place(open(&args.model, &options)?)?.model;
    let info = model.info();
    let (Signal::Token { vocab }, Signal::Logits { classes }) = (info.input, info.output) else {
        let expected = "a model of tokens that scores the next one".into();
        let got = format!("{} (from {} to {})", info.family, info.input, info.output);
        return Err(Error::Input { expected, got }.into());
    };
    let mut prompt: Box<dyn Iterator<Item = Result<u32, Failure>>> = match args.prompt_file {
        Some(path) => {
            let file = File::open(&path).map_err(|e| failed(&path, e))?;
            Box::new(Ids { bytes: BufReader::new(file).bytes(), path })
        }
        None => Box::new(args.tokens.into_iter().map(Ok)),
    };
    let mut writer = Writer {
        model: &*model,
        cx: Cx::new(args.threads).map_err(Error::from)?,
        scratch: Scratch::default(),
        rows: [Row::new(&*model, CHUNK)],
    };
    let mut stats = Stats::new(args.stats, args.stats_every);

    let (mut waiting, mut last, mut taken) = (0, 0, 0);
    loop {
        let id = prompt.next().transpose()?;
        if let Some(id) = id {
            if id as usize >= vocab {
                return Err(Error::Input { expected: format!("token ids below {vocab}"), got: id.to_string() }.into());
            }
            writer.rows[0].tokens[waiting] = id;
            waiting += 1;
            taken += 1;
        }
        if waiting == CHUNK || id.is_none() && waiting > 0 {
            writer.forward(waiting)?;
            (last, waiting) = (waiting - 1, 0);
        }
        if id.is_none() {
            break;
        }
    }
    if taken == 0 {
        return Err(Failure::Usage("expected a prompt of one token or more, got none".into()));
    }
    stats.prompt(taken);

    let mut done = 0;
    while args.count == 0 || done < args.count {
        let id = likeliest(&writer.rows[0].y[last * classes..][..classes])?;
        say!("{id}");
        done += 1;
        if done != args.count {
            writer.rows[0].tokens[0] = id;
            writer.forward(1)?;
            last = 0;
        }
        stats.token(done);
    }
    stats.end(done);
    Ok(ExitCode::SUCCESS)
}

/// A stream of the model.
struct Writer<'a> {
    model: &'a dyn Model,
    cx: Cx,
    scratch: Scratch,
    rows: [Row; 1],
}

impl Writer<'_> {
    fn forward(&mut self, len: usize) -> Result<(), Failure> {
        Ok(self.model.run(&self.cx, &mut self.rows, len, &mut self.scratch)?)
    }
}

/// The best score's index, the lowest of equal ones.
fn likeliest(scores: &[f32]) -> Result<u32, Failure> {
    let mut best = 0;
    for (i, score) in scores.iter().enumerate() {
        if !score.is_finite() {
            return Err(Failure::Usage(format!("expected finite scores, got {score} for token {i}")));
        }
        if *score > scores[best] {
            best = i;
        }
    }
    Ok(best as u32)
}

fn failed(path: impl Into<PathBuf>, reason: impl ToString) -> Failure {
    Failure::File { path: path.into(), reason: reason.to_string() }
}

/// Token ids as the bytes of a file come.
struct Ids<B> {
    bytes: B,
    path: PathBuf,
}

impl<B: Iterator<Item = std::io::Result<u8>>> Iterator for Ids<B> {
    type Item = Result<u32, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut id: Option<u32> = None;
        let bad = |path: &PathBuf, got: String| {
            failed(path, format!("expected token ids separated by commas or white space, got {got}"))
        };
        for byte in &mut self.bytes {
            match byte {
                Ok(b @ b'0'..=b'9') => {
                    let digit = u32::from(b - b'0');
                    match id.unwrap_or(0).checked_mul(10).and_then(|v| v.checked_add(digit)) {
                        Some(v) => id = Some(v),
                        None => return Some(Err(bad(&self.path, "a number of 2^32 or more".into()))),
                    }
                }
                Ok(b) if b == b',' || b.is_ascii_whitespace() => {
                    if id.is_some() {
                        break;
                    }
                }
                Ok(b) => return Some(Err(bad(&self.path, format!("{:?}", char::from(b))))),
                Err(e) => return Some(Err(failed(&self.path, e))),
            }
        }
        id.map(Ok)
    }
}

/// Time and memory, on the standard error.
struct Stats {
    on: bool,
    every: u64,
    start: Instant,
    /// Time and count at the last line.
    last: (Instant, u64),
}

impl Stats {
    fn new(on: bool, every: u64) -> Self {
        let now = Instant::now();
        Self { on, every, start: now, last: (now, 0) }
    }

    fn prompt(&mut self, tokens: u64) {
        let now = Instant::now();
        if self.on {
            let ms = (now - self.start).as_secs_f64() * 1e3;
            warn!("prompt of {tokens}: {ms:.1} ms, {:.3} ms/token, resident {}", ms / tokens as f64, resident());
        }
        (self.start, self.last) = (now, (now, 0));
    }

    fn token(&mut self, done: u64) {
        if self.on && done.is_multiple_of(self.every) {
            let now = Instant::now();
            let ms = (now - self.last.0).as_secs_f64() * 1e3 / (done - self.last.1) as f64;
            warn!("tokens {done}: {ms:.3} ms/token, resident {}", resident());
            self.last = (now, done);
        }
    }

    fn end(&self, done: u64) {
        if self.on && done > 1 {
            // The last token is not fed back.
            let ms = self.start.elapsed().as_secs_f64() * 1e3 / (done - 1) as f64;
            warn!("generated {done}: {ms:.3} ms/token on the whole, resident {}", resident());
        }
    }
}

/// Resident memory of this process.
fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kib.map_or_else(|| "unknown".into(), |kib| format!("{:.1} MiB", kib / 1024.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Result<Vec<u32>, Failure> {
        Ids { bytes: text.bytes().map(Ok), path: "f".into() }.collect()
    }

    #[test]
    fn ids_are_read_with_any_separator() {
        assert_eq!(ids("1,2, 30\n\n4,,5\t6").unwrap(), [1, 2, 30, 4, 5, 6]);
        assert!(ids(" \n").unwrap().is_empty());
        assert!(ids("1,x").is_err() && ids("-1").is_err() && ids("4294967296").is_err());
    }

    #[test]
    fn the_lowest_of_equal_scores_wins() {
        assert_eq!(likeliest(&[0.0, 2.0, 2.0, -1.0]).unwrap(), 1);
        assert!(likeliest(&[0.0, f32::NAN]).is_err());
    }
}
