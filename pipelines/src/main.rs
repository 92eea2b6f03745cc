//! The `ssm` command line.

mod generate;

use clap::{Parser, Subcommand};
use ssm_models::golden::{Chunks, Verdict, VerifyOptions, verify};
use ssm_models::kernels::CpuLevel;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "ssm", version, about = "State-space models on live streams: inspect, verify and run them")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run golden files: weights, inputs and the published code's outputs in one file.
    Verify(VerifyArgs),
    /// Continue a sequence of token ids, the likeliest one each time.
    Generate(generate::Args),
}

#[derive(clap::Args)]
struct VerifyArgs {
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

fn main() -> ExitCode {
    let run = match Args::parse().command {
        Command::Verify(args) => run_verify(args),
        Command::Generate(args) => generate::run(args),
    };
    run.unwrap_or_else(|error| {
        eprintln!("ssm: {error}");
        ExitCode::FAILURE
    })
}

fn run_verify(args: VerifyArgs) -> Result<ExitCode, ssm_models::Error> {
    args.device.parse::<ssm_models::Device>()?.resolve()?;
    let mut search = args.checkpoints;
    search.extend(std::env::var_os("SSM_CHECKPOINTS").map(PathBuf::from));
    let options = VerifyOptions {
        level: CpuLevel::from_env()?,
        threads: args.threads,
        tol: args.tol,
        chunks: args.chunks,
        search,
    };
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
