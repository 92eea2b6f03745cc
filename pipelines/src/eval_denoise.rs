//! `ssm eval-denoise`: how well a model takes noise out of speech, through `ssmdenoise`.
//!
//! The folder holds pairs `NAME_noisy.wav` and `NAME_clean.wav` (or `.flac`) of the same length. Each noisy sound goes
//! through the element as a stream of its own; everything is compared at 16 kHz, in one channel: SI-SDR here, PESQ (wide
//! band), STOI and ESTOI by the Python packages pesq and pystoi.

use crate::Failure;
use crate::element::{self, play};
use crate::quality::Quality;
use crate::score::si_sdr;
use crate::wav;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// Hz at which sounds are compared.
const RATE: u32 = 16_000;
const ENDINGS: [&str; 2] = ["wav", "flac"];
/// Samples that the two sounds of a pair may differ in: the end of a resampler.
const SLACK: usize = 32;

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  ssm eval-denoise pairs                # pairs/a_noisy.wav and pairs/a_clean.wav, and so on
  ssm eval-denoise pairs --judge out-of-another-program";

#[derive(clap::Args)]
pub struct Args {
    /// Folder with the pairs.
    folder: PathBuf,
    /// The model.
    #[arg(long, default_value = "builtin:denoise")]
    model: String,
    /// Where to write what came out, as `NAME.wav` at 16 kHz.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Judge the sounds `NAME.wav` (or `.flac`) of this folder, by another program, instead of running a model.
    #[arg(long, conflicts_with_all = ["model", "out"])]
    judge: Option<PathBuf>,
    /// Python with the packages pesq and pystoi; without it `.venv/bin/python`, where there is one, or `python3`.
    #[arg(long)]
    python: Option<PathBuf>,
}

/// A noisy sound and what it should be.
struct Pair {
    name: String,
    noisy: PathBuf,
    clean: PathBuf,
}

/// `NAME` of `NAME_part.wav`.
fn name_of<'a>(path: &'a Path, part: &str) -> Option<&'a str> {
    path.file_stem()?.to_str()?.strip_suffix(part)
}

/// The pairs of a folder, by name. A sound without its partner is an error.
fn pairs(folder: &Path) -> Result<Vec<Pair>, Failure> {
    let files = element::files(folder, &ENDINGS)?;
    let partner = |of: &Path, name: &str, part: &str| {
        let found = files.iter().find(|f| name_of(f, part) == Some(name)).cloned();
        let reason = || format!("expected {name}{part}.wav or {name}{part}.flac beside it, got none");
        found.ok_or_else(|| Failure::File { path: of.to_owned(), reason: reason() })
    };
    let mut found = Vec::new();
    for file in &files {
        if let Some(name) = name_of(file, "_noisy") {
            let clean = partner(file, name, "_clean")?;
            found.push(Pair { name: name.into(), noisy: file.clone(), clean });
        } else if let Some(name) = name_of(file, "_clean") {
            partner(file, name, "_noisy")?;
        }
    }
    if found.is_empty() {
        let path = folder.to_owned();
        return Err(Failure::File { path, reason: "expected NAME_noisy.wav and NAME_clean.wav, got none".into() });
    }
    Ok(found)
}

/// The samples of a file at RATE, one channel, after `through`.
fn samples(file: &Path, through: &str, properties: &[(&str, &str, &str)]) -> Result<Vec<f32>, Failure> {
    let line = format!(
        "filesrc name=file ! decodebin ! audioconvert ! audio/x-raw,channels=1 ! {through} audioresample ! audioconvert ! \
         audio/x-raw,format=F32LE,rate={RATE},channels=1 ! fakesink name=out sync=false"
    );
    let found = Arc::new(Mutex::new(Vec::new()));
    let place = file.to_string_lossy();
    let mut all = vec![("file", "location", &*place)];
    all.extend(properties);
    let keep = found.clone();
    play(&line, &all, "out", move |buffer| {
        if let Ok(map) = buffer.map_readable() {
            let values = map.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            keep.lock().unwrap_or_else(PoisonError::into_inner).extend(values);
        }
    })
    .map_err(element::of(file))?;
    let samples = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
    if samples.is_empty() {
        return Err(Failure::File { path: file.to_owned(), reason: "expected sound, got none".into() });
    }
    if let Some(at) = samples.iter().position(|s| !s.is_finite()) {
        let reason = format!("sample {at}: expected a finite number, got {}", samples[at]);
        return Err(Failure::File { path: file.to_owned(), reason });
    }
    Ok(samples)
}

fn denoised(noisy: &Path, model: &str) -> Result<Vec<f32>, Failure> {
    let through = "audioresample ! ssmdenoise name=denoise post-messages=false !";
    samples(noisy, through, &[("denoise", "model", model)])
}

/// The measures of one sound: SI-SDR in dB, then those of `Quality`.
type Scores = [Option<f64>; 4];

const COLUMNS: [&str; 4] = ["SI-SDR dB", "PESQ", "STOI", "ESTOI"];

/// Means over the clips, each measure over those that have it.
fn mean(rows: &[Scores]) -> Scores {
    std::array::from_fn(|i| {
        let values: Vec<f64> = rows.iter().filter_map(|r| r[i]).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    })
}

fn line(name: &str, before: &Scores, after: &Scores) -> String {
    let mut line = format!("{name:<28}");
    for i in 0..COLUMNS.len() {
        for value in [before[i], after[i]] {
            let digits = if i == 0 { 2 } else { 3 };
            line += &value.map_or_else(|| format!("{:>9}", "-"), |v| format!("{v:>9.digits$}"));
        }
        line += "  ";
    }
    line.trim_end().into()
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    element::init()?;
    let pairs = pairs(&args.folder)?;
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).map_err(|e| Failure::File { path: out.clone(), reason: e.to_string() })?;
    }
    let mut quality = Quality::start(args.python.as_deref());
    let heads: Vec<String> = COLUMNS.iter().map(|c| format!("{c:>18}  ")).collect();
    say!("{:<28}{}", "before, after", heads.concat().trim_end());
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for pair in &pairs {
        let (clean, noisy) = (samples(&pair.clean, "", &[])?, samples(&pair.noisy, "", &[])?);
        let (result, from) = match &args.judge {
            Some(folder) => {
                let file = ENDINGS.map(|e| folder.join(format!("{}.{e}", pair.name))).into_iter().find(|f| f.is_file());
                let reason = format!("expected {}.wav or {}.flac, got none", pair.name, pair.name);
                let file = file.ok_or_else(|| Failure::File { path: folder.clone(), reason })?;
                (samples(&file, "", &[])?, file)
            }
            None => (denoised(&pair.noisy, &args.model)?, pair.noisy.clone()),
        };
        for (path, sound) in [(&pair.noisy, &noisy), (&from, &result)] {
            if sound.len().abs_diff(clean.len()) > SLACK {
                let want = format!("expected {} samples at {RATE} Hz as {}", clean.len(), pair.clean.display());
                return Err(Failure::File { path: path.clone(), reason: format!("{want}, got {}", sound.len()) });
            }
        }
        let n = clean.len().min(noisy.len()).min(result.len());
        if let Some(out) = &args.out {
            wav::write(&out.join(format!("{}.wav", pair.name)), &result, RATE)?;
        }
        let [old, new] = quality.judge(&clean[..n], [&noisy[..n], &result[..n]])?;
        let all = |x: &[f32], [a, b, c]: [Option<f64>; 3]| [Some(si_sdr(&clean[..n], x)), a, b, c];
        before.push(all(&noisy, old));
        after.push(all(&result, new));
        say!("{}", line(&pair.name, &before[before.len() - 1], &after[after.len() - 1]));
    }
    say!("{}", line(&format!("mean of {}", pairs.len()), &mean(&before), &mean(&after)));
    if let Some(note) = quality.note() {
        warn!("{note}");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_is_over_the_clips_that_have_the_measure() {
        let rows = [[Some(1.0), None, Some(0.5), None], [Some(3.0), Some(2.0), Some(0.7), None]];
        assert_eq!(mean(&rows), [Some(2.0), Some(2.0), Some(0.6), None]);
        assert_eq!(mean(&[]), [None; 4]);
    }

    #[test]
    fn absent_measures_are_dashes() {
        let text = line("a", &[Some(1.234), None, None, None], &[Some(-2.0), Some(1.5), None, None]);
        assert_eq!(
            text.split_whitespace().collect::<Vec<_>>(),
            ["a", "1.23", "-2.00", "-", "1.500", "-", "-", "-", "-"]
        );
    }
}
