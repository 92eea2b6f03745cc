//! `ssm mix`: speech and noise of a chosen ratio, for listening and for tests.

use crate::{Failure, number, wav};
use std::path::PathBuf;

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  ssm mix --speech voice.wav --noise street.wav --snr 3 --output noisy.wav --clean clean.wav";

#[derive(clap::Args)]
pub struct Args {
    /// Speech (WAV), played one after the other with short pauses.
    #[arg(long, required = true, num_args = 1..)]
    speech: Vec<PathBuf>,
    /// Noise (WAV), played one after the other until the speech ends.
    #[arg(long, required = true, num_args = 1..)]
    noise: Vec<PathBuf>,
    /// Power of the speech over power of the noise in dB, over the whole clip.
    #[arg(long, default_value_t = 5.0, allow_negative_numbers = true, value_parser = number::within(-200.0, 200.0))]
    snr: f64,
    /// Seconds of speech before it begins again or is cut; default: all of it once.
    #[arg(long, value_parser = number::within(0.001, 86_400.0))]
    seconds: Option<f64>,
    /// Mixture (WAV).
    #[arg(short, long)]
    output: PathBuf,
    /// Where to write the speech alone (WAV), as long as the mixture.
    #[arg(long)]
    clean: Option<PathBuf>,
}

/// Seconds of silence between two pieces of speech.
const PAUSE: f32 = 0.4;

/// The files one after the other, all of one rate, `pause` seconds apart.
fn join(files: &[PathBuf], pause: f32) -> Result<(Vec<f32>, u32), Failure> {
    let (mut all, mut rate) = (Vec::new(), 0);
    for file in files {
        let (samples, r) = wav::read(file)?;
        if rate != 0 && r != rate {
            let reason = format!("expected {rate} Hz as the files before it, got {r} Hz");
            return Err(Failure::File { path: file.clone(), reason });
        }
        rate = r;
        all.resize(all.len() + (pause * r as f32) as usize, 0.0);
        all.extend(samples);
    }
    Ok((all, rate))
}

fn power(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len().max(1) as f64
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if args.clean.as_ref() == Some(&args.output) {
        return Err(Failure::Usage("--clean: expected another file than --output, got the same".into()));
    }
    let (mut speech, rate) = join(&args.speech, PAUSE)?;
    let (noise, noise_rate) = join(&args.noise, 0.0)?;
    if noise_rate != rate {
        let reason = format!("expected {rate} Hz as the speech, got {noise_rate} Hz");
        return Err(Failure::File { path: args.noise[0].clone(), reason });
    }
    if speech.is_empty() || noise.is_empty() {
        return Err(Failure::Usage("expected speech and noise with samples, got none".into()));
    }
    if let Some(seconds) = args.seconds {
        speech = speech.iter().copied().cycle().take((seconds * f64::from(rate)) as usize).collect();
    }
    let noise: Vec<f32> = noise.iter().copied().cycle().take(speech.len()).collect();
    let (loud, soft) = (power(&speech), power(&noise));
    if loud <= 0.0 || soft <= 0.0 {
        return Err(Failure::Usage("expected speech and noise with sound, got silence".into()));
    }
    let gain = (loud / soft / 10f64.powf(args.snr / 10.0)).sqrt() as f32;
    let mut mixed: Vec<f32> = speech.iter().zip(&noise).map(|(s, n)| s + gain * n).collect();
    // Both by the same factor, so that the mixture does not clip.
    let peak = mixed.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = if peak > 0.95 { 0.95 / peak } else { 1.0 };
    mixed.iter_mut().chain(&mut speech).for_each(|v| *v *= scale);
    wav::write(&args.output, &mixed, rate)?;
    if let Some(clean) = &args.clean {
        wav::write(clean, &speech, rate)?;
    }
    say!("{}: {:.1} s at {rate} Hz, {} dB", args.output.display(), mixed.len() as f32 / rate as f32, args.snr);
    Ok(())
}
