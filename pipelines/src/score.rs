//! `ssm score`: how close sounds are to a clean one.

use crate::{Failure, wav};
use std::path::PathBuf;

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  ssm score clean.wav noisy.wav denoised.wav";

#[derive(clap::Args)]
pub struct Args {
    /// The clean sound (WAV).
    clean: PathBuf,
    /// The others (WAV).
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// Scale-invariant ratio of signal to distortion in dB (Le Roux et al. 2019, equation 2): the part of `x` that is a
/// multiple of `clean` over the rest, means taken off.
pub fn si_sdr(clean: &[f32], x: &[f32]) -> f64 {
    let n = clean.len().min(x.len());
    let centred = |x: &[f32]| -> Vec<f64> {
        let mean = x[..n].iter().map(|v| f64::from(*v)).sum::<f64>() / n.max(1) as f64;
        x[..n].iter().map(|v| f64::from(*v) - mean).collect()
    };
    let (s, x) = (centred(clean), centred(x));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = dot(&s, &x) / dot(&s, &s).max(1e-30);
    let rest: f64 = s.iter().zip(&x).map(|(s, x)| (x - scale * s).powi(2)).sum();
    10.0 * (scale * scale * dot(&s, &s) / rest.max(1e-30)).log10()
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let read = |path: &PathBuf| match wav::read(path)? {
        (samples, _) if samples.is_empty() => {
            Err(Failure::File { path: path.clone(), reason: "expected samples, got none".into() })
        }
        found => Ok(found),
    };
    let (clean, rate) = read(&args.clean)?;
    for file in &args.files {
        let (x, r) = read(file)?;
        if r != rate {
            let reason = format!("expected {rate} Hz as {}, got {r} Hz", args.clean.display());
            return Err(Failure::File { path: file.clone(), reason });
        }
        let both = clean.len().min(x.len()) as f32 / rate as f32;
        let note =
            if x.len() == clean.len() { String::new() } else { format!(" over the first {both:.3} s, all of one") };
        say!("{}: SI-SDR {:.1} dB{note}", file.display(), si_sdr(&clean, &x));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_of_a_tenth_is_twenty_decibels_at_any_scale() {
        let clean: Vec<f32> = (0..10_000).map(|i| (i as f32 * 0.1).sin()).collect();
        let noise = (0..10_000).map(|i| (i as f32 * 0.37).sin());
        let x: Vec<f32> = clean.iter().zip(noise).map(|(s, n)| 0.3 * (s + 0.1 * n)).collect();
        assert!((si_sdr(&clean, &x) - 20.0).abs() < 0.1);
        assert!(si_sdr(&clean, &clean) > 100.0);
    }
}
