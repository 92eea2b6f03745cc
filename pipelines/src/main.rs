//! The `ssm` command line.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
mod say;

mod completions;
mod element;
mod eval_denoise;
mod eval_shots;
mod generate;
mod inspect;
mod job;
mod mix;
mod number;
mod output;
#[cfg(any(feature = "mqtt", feature = "kafka"))]
mod publish;
mod quality;
mod random;
mod run;
mod score;
mod serve;
mod shots;
mod signals;
mod spectrogram;
#[cfg(feature = "store")]
mod state;
mod verify;
mod wav;

use clap::{Parser, Subcommand};
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
    /// Say what a checkpoint is: family, sizes, input and output, state, hash.
    #[command(after_help = inspect::EXAMPLES)]
    Inspect(inspect::Args),
    /// Run an archive of files through an element, to a file of JSON lines each.
    #[command(after_help = run::EXAMPLES)]
    Run(run::Args),
    /// Show the results of a stream in a browser, as they come.
    #[command(after_help = serve::EXAMPLES)]
    Serve(serve::Args),
    /// Send lines of results to an MQTT broker or to Kafka.
    #[cfg(any(feature = "mqtt", feature = "kafka"))]
    #[command(after_help = publish::EXAMPLES)]
    Publish(publish::Args),
    /// Put the state of a stream into a store, or get it from there.
    #[cfg(feature = "store")]
    #[command(after_help = state::EXAMPLES)]
    State(state::Args),
    /// Run golden files: weights, inputs and the published code's outputs in one file.
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::Args),
    /// Continue a sequence of token ids, the likeliest one each time.
    #[command(after_help = generate::EXAMPLES)]
    Generate(generate::Args),
    /// Find the shots of a video, as a table and a contact sheet.
    #[command(after_help = shots::EXAMPLES)]
    Shots(shots::Args),
    /// Find the transitions of videos and compare them with the truth.
    #[command(after_help = eval_shots::EXAMPLES)]
    EvalShots(eval_shots::Args),
    /// Take the noise out of pairs of noisy and clean speech and say how well.
    #[command(after_help = eval_denoise::EXAMPLES)]
    EvalDenoise(eval_denoise::Args),
    /// Mix speech and noise.
    #[command(after_help = mix::EXAMPLES)]
    Mix(mix::Args),
    /// Ratio of signal to distortion against a clean sound.
    #[command(after_help = score::EXAMPLES)]
    Score(score::Args),
    /// Draw sounds as a picture.
    #[command(after_help = spectrogram::EXAMPLES)]
    Spectrogram(spectrogram::Args),
    /// Write untrained weights of a published size, made from a seed.
    #[command(after_help = random::EXAMPLES)]
    Random(random::Args),
    /// Print what a shell completes `ssm` by.
    #[command(after_help = completions::EXAMPLES)]
    Completions(completions::Args),
    /// Write the pages for `man` into a folder.
    #[command(hide = true)]
    Man(completions::ManArgs),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A model or golden file.
    #[error(transparent)]
    Model(#[from] ssm_models::Error),
    /// Another file.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Arguments that do not go together.
    #[error("{0}")]
    Usage(String),
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(args),
        Command::Mix(args) => mix::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Score(args) => score::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Spectrogram(args) => spectrogram::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Random(args) => random::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Generate(args) => generate::run(args),
        Command::Shots(args) => shots::run(&args),
        Command::EvalShots(args) => eval_shots::run(&args),
        Command::EvalDenoise(args) => eval_denoise::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Serve(args) => serve::run(&args),
        #[cfg(any(feature = "mqtt", feature = "kafka"))]
        Command::Publish(args) => publish::run(&args),
        #[cfg(feature = "store")]
        Command::State(args) => state::run(&args),
        Command::Completions(args) => {
            completions::run(&args);
            Ok(ExitCode::SUCCESS)
        }
        Command::Man(args) => completions::man(&args).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        warn!("ssm: {error}");
        ExitCode::FAILURE
    })
}
