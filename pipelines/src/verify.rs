//! `ssm verify`: golden files against this build.

use crate::say::plain;
use crate::{Failure, number};
use ssm_models::golden::{Chunks, Verdict, VerifyOptions, verify};
use ssm_models::kernels::CpuLevel;
use std::path::PathBuf;
use std::process::ExitCode;

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  ssm verify tests/golden
  ssm verify tests/golden/vim_tiny_cfg_a.safetensors --tol 1e-5";

#[derive(clap::Args)]
pub struct Args {
    /// Golden files, or folders of them.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Tolerance in place of each family's own (absolute).
    #[arg(long, value_parser = number::within(0.0, 1e9))]
    tol: Option<f64>,
    /// Cut the input of streaming families: `whole`, a length, `random`, or `random:SEED`.
    #[arg(long, default_value = "whole", value_parser = chunks)]
    chunks: Chunks,
    /// Where models run: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads.
    #[arg(long, default_value_t = 1, value_parser = number::threads())]
    threads: usize,
    /// Folder with checkpoints that golden files name without holding them (also SSM_CHECKPOINTS).
    #[arg(long)]
    checkpoints: Vec<PathBuf>,
}

fn chunks(word: &str) -> Result<Chunks, String> {
    let bad = || format!("expected whole, a length, random or random:SEED, got {word:?}");
    if word == "random" {
        return Ok(Chunks::Random(1));
    }
    match word.strip_prefix("random:") {
        Some(seed) => seed.parse().map(Chunks::Random).map_err(|_| bad()),
        None if word == "whole" => Ok(Chunks::Whole),
        None => word.parse().ok().filter(|n| *n > 0).map(Chunks::Size).ok_or_else(bad),
    }
}

/// The files, those of a folder in the order of their names.
fn files(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path);
            continue;
        }
        let failure = |reason: String| Failure::File { path: path.clone(), reason };
        let entries = std::fs::read_dir(&path).map_err(|e| failure(e.to_string()))?;
        let golden = |p: &PathBuf| p.extension().is_some_and(|e| e == "safetensors" || e == "pth");
        let mut found: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(golden).collect();
        if found.is_empty() {
            return Err(failure("expected golden files (*.safetensors, *.pth), got none".into()));
        }
        found.sort();
        files.append(&mut found);
    }
    Ok(files)
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let device = args.device.parse::<ssm_models::Device>()?.resolve()?;
    let mut search = args.checkpoints;
    search.extend(std::env::var_os("SSM_CHECKPOINTS").map(PathBuf::from));
    let level = CpuLevel::from_env().map_err(ssm_models::Error::from)?;
    let tol = args.tol.map(|tol| tol as f32);
    let options = VerifyOptions { level, threads: args.threads, tol, device, chunks: args.chunks, search };
    let (mut passed, mut failed, mut unsupported) = (0, 0, 0);
    for file in files(args.files)? {
        let outcome = verify(&file, &options);
        say!("{}", plain(&outcome.to_string()));
        match outcome.verdict {
            Verdict::Pass => passed += 1,
            Verdict::Fail(_) => failed += 1,
            Verdict::Unsupported(_) => unsupported += 1,
        }
    }
    say!("{passed} passed, {failed} failed, {unsupported} unsupported");
    Ok(if failed + unsupported == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
