//! WAV files as one channel of `f32` samples in -1..1.

use crate::{Failure, output};
use std::path::Path;

/// What a sample may be at most, full scale being 1: sums of squares stay finite.
const LOUDEST: f32 = 1e6;

/// Reads a file; several channels are averaged. Returns samples and Hz.
pub fn read(path: &Path) -> Result<(Vec<f32>, u32), Failure> {
    let fail = |e: hound::Error| Failure::File { path: path.into(), reason: e.to_string() };
    let mut reader = hound::WavReader::open(path).map_err(fail)?;
    let spec = reader.spec();
    let scale = 1.0 / (1u64 << (spec.bits_per_sample.clamp(1, 32) - 1)) as f32;
    let samples: Vec<f32> = match spec.sample_format {
        hound::SampleFormat::Float => reader.samples::<f32>().collect::<Result<_, _>>().map_err(fail)?,
        hound::SampleFormat::Int => {
            reader.samples::<i32>().map(|s| s.map(|s| s as f32 * scale)).collect::<Result<_, _>>().map_err(fail)?
        }
    };
    if spec.sample_rate == 0 {
        return Err(Failure::File { path: path.into(), reason: "expected a rate of 1 Hz or more, got 0 Hz".into() });
    }
    let channels = usize::from(spec.channels.max(1));
    if let Some(at) = samples.iter().position(|s| !s.is_finite()) {
        let reason = format!("sample {}: expected a finite number, got {}", at / channels, samples[at]);
        return Err(Failure::File { path: path.into(), reason });
    }
    if let Some(at) = samples.iter().position(|s| s.abs() > LOUDEST) {
        let reason = format!("sample {}: expected {LOUDEST} at most, got {}", at / channels, samples[at]);
        return Err(Failure::File { path: path.into(), reason });
    }
    let mono = samples.chunks_exact(channels).map(|c| c.iter().sum::<f32>() / channels as f32).collect();
    Ok((mono, spec.sample_rate))
}

/// Writes one channel of 16-bit samples.
pub fn write(path: &Path, samples: &[f32], rate: u32) -> Result<(), Failure> {
    let fail = |e: hound::Error| Failure::File { path: path.into(), reason: e.to_string() };
    let spec =
        hound::WavSpec { channels: 1, sample_rate: rate, bits_per_sample: 16, sample_format: hound::SampleFormat::Int };
    let mut bytes = std::io::Cursor::new(Vec::new());
    let mut writer = hound::WavWriter::new(&mut bytes, spec).map_err(fail)?;
    for s in samples {
        writer.write_sample((s * 32768.0).round().clamp(-32768.0, 32767.0) as i16).map_err(fail)?;
    }
    writer.finalize().map_err(fail)?;
    output::write(path, bytes.get_ref())
}
