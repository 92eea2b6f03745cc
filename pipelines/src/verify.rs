//! `ssm verify`: golden files against this build.

use crate::Failure;
use ssm_models::golden::{Chunks, Verdict, VerifyOptions, verify};
use ssm_models::kernels::CpuLevel;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    /// Golden files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Tolerance in place of each family's own (absolute).
    #[arg(long)]
    tol: Option<f32>,
    /// Cut the input of streaming families: `whole`, a length, or `random:SEED`.
    #[arg(long, default_value = "whole", value_parser = chunks)]
    chunks: Chunks,
    /// Device.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Folder with checkpoints that golden files name without holding them (also SSM_CHECKPOINTS).
    #[arg(long)]
    checkpoints: Vec<PathBuf>,
}

fn chunks(word: &str) -> Result<Chunks, String> {
    let bad = || format!("expected whole, a length or random:SEED, got {word:?}");
    match word.strip_prefix("random:") {
        Some(seed) => seed.parse().map(Chunks::Random).map_err(|_| bad()),
        None if word == "whole" => Ok(Chunks::Whole),
        None => word.parse().ok().filter(|n| *n > 0).map(Chunks::Size).ok_or_else(bad),
    }
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    args.device.parse::<ssm_models::Device>()?.resolve()?;
    let mut search = args.checkpoints;
    search.extend(std::env::var_os("SSM_CHECKPOINTS").map(PathBuf::from));
    let level = CpuLevel::from_env().map_err(ssm_models::Error::from)?;
    let options = VerifyOptions { level, threads: args.threads, tol: args.tol, chunks: args.chunks, search };
    let (mut passed, mut failed, mut unsupported) = (0, 0, 0);
    for file in &args.files {
        let outcome = verify(file, &options);
        println!("{outcome}");
        match outcome.verdict {
            Verdict::Pass => passed += 1,
            Verdict::Fail(_) => failed += 1,
            Verdict::Unsupported(_) => unsupported += 1,
        }
    }
    println!("{passed} passed, {failed} failed, {unsupported} unsupported");
    Ok(if failed + unsupported == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
