//! `ssm spectrogram`: sound as a picture, several files one above the other on one scale.

use crate::{Failure, output, wav};
use clap::builder::RangedU64ValueParser;
use std::path::PathBuf;

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  ssm spectrogram noisy.wav denoised.wav --output picture.png";

#[derive(clap::Args)]
pub struct Args {
    /// Sounds (WAV).
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Picture (PNG).
    #[arg(short, long)]
    output: PathBuf,
    /// Width of the picture in pixels, 16 to 16384.
    #[arg(long, default_value_t = 1200, value_parser = RangedU64ValueParser::<usize>::new().range(16..=1 << 14))]
    width: usize,
}

/// Samples of a window (32 ms at 16 kHz) and so twice the rows of a panel.
const WINDOW: usize = 512;
/// Decibels between black and white.
const RANGE: f32 = 80.0;
/// Decibels that are white at the least: silence is black.
const QUIET: f32 = -100.0;
/// Rows between two panels.
const LINE: usize = 6;

/// Power in dB: `width` columns of WINDOW/2 bins, low frequencies first; quiet bins are floored at -200.
fn analyse(samples: &[f32], width: usize) -> Vec<Vec<f32>> {
    let fft = realfft::RealFftPlanner::<f32>::new().plan_fft_forward(WINDOW);
    let (mut frame, mut spectrum) = (fft.make_input_vec(), fft.make_output_vec());
    let hann = |i: usize| 0.5 - 0.5 * (std::f32::consts::TAU * i as f32 / WINDOW as f32).cos();
    (0..width)
        .map(|column| {
            let centre = (column * 2 + 1) * samples.len() / (2 * width);
            for (i, f) in frame.iter_mut().enumerate() {
                let at = (centre + i).checked_sub(WINDOW / 2);
                *f = at.and_then(|at| samples.get(at)).map_or(0.0, |s| s * hann(i));
            }
            if fft.process(&mut frame, &mut spectrum).is_err() {
                return vec![-200.0; WINDOW / 2];
            }
            spectrum[..WINDOW / 2].iter().map(|c| 10.0 * (c.norm_sqr() + 1e-20).log10()).collect()
        })
        .collect()
}

/// A colour for 0..1: black, violet, orange, pale yellow, its lightness rising evenly.
fn colour(v: f32) -> [u8; 3] {
    const STOPS: [[f32; 3]; 5] =
        [[0.0, 0.0, 4.0], [87.0, 16.0, 110.0], [188.0, 55.0, 84.0], [249.0, 142.0, 9.0], [252.0, 255.0, 164.0]];
    let x = v.clamp(0.0, 1.0) * (STOPS.len() - 1) as f32;
    let i = (x as usize).min(STOPS.len() - 2);
    std::array::from_fn(|c| (STOPS[i][c] + (STOPS[i + 1][c] - STOPS[i][c]) * (x - i as f32)) as u8)
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let width = args.width;
    let mut rate = 0;
    let mut panel = |file: &PathBuf| {
        let (samples, r) = wav::read(file)?;
        let bad = |reason: String| Err(Failure::File { path: file.clone(), reason });
        if samples.is_empty() {
            return bad("expected samples, got none".into());
        }
        if rate != 0 && r != rate {
            return bad(format!("expected {rate} Hz as the files before it, got {r} Hz"));
        }
        rate = r;
        Ok(analyse(&samples, width))
    };
    let panels = args.files.iter().map(&mut panel).collect::<Result<Vec<_>, Failure>>()?;
    let top = panels.iter().flatten().flatten().copied().fold(QUIET, f32::max);
    let rows = WINDOW / 2;
    let height = panels.len() * (rows + LINE) - LINE;
    let mut pixels = vec![255u8; width * height * 3];
    for (p, panel) in panels.iter().enumerate() {
        for (x, column) in panel.iter().enumerate() {
            for (bin, db) in column.iter().enumerate() {
                let y = p * (rows + LINE) + rows - 1 - bin;
                pixels[(y * width + x) * 3..][..3].copy_from_slice(&colour(1.0 + (db - top) / RANGE));
            }
        }
    }
    output::png(&args.output, &pixels, width, height)?;
    say!("{}: {} panels of {rows} rows, 0 Hz at the bottom, {RANGE} dB", args.output.display(), panels.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_is_a_line_at_its_frequency() {
        let tone: Vec<f32> =
            (0..16_000).map(|i| (std::f32::consts::TAU * 1000.0 * i as f32 / 16_000.0).sin()).collect();
        for column in &analyse(&tone, 50)[2..48] {
            let best = (0..WINDOW / 2).max_by(|a, b| column[*a].total_cmp(&column[*b]));
            assert_eq!(best, Some(1000 * WINDOW / 16_000));
            assert!(column[best.unwrap_or(0)] - column[200] > 60.0);
        }
        assert_eq!(colour(-1.0), [0, 0, 4]);
        assert_eq!(colour(2.0), [252, 255, 164]);
    }
}
