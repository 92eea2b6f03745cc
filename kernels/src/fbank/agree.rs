//! Frames against a plain transform, any cut against the whole, the ends of clips, the edges of the bank.
#![cfg(test)]

use super::*;
use crate::testing::Rng;

/// The definition, with a plain sum in place of the fast transform and the whole bank in place of its triangles.
fn plain(f: &Fbank, x: &[f32], t: usize) -> Vec<f64> {
    let c = f.config();
    let at = |i: usize| (t * c.hop + i).checked_sub(c.lead).and_then(|n| x.get(n)).map_or(0.0, |v| f64::from(*v));
    let mean = if c.remove_mean { (0..c.frame).map(at).sum::<f64>() / c.frame as f64 } else { 0.0 };
    let windowed: Vec<f64> = (0..c.frame)
        .map(|i| (at(i) - mean - c.preemphasis * (at(i.saturating_sub(1)) - mean)) * f.window()[i])
        .collect();
    let spectrum: Vec<f64> = (0..=c.fft / 2)
        .map(|k| {
            let angle = |i: usize| -TAU * (i * k % c.fft) as f64 / c.fft as f64;
            let re: f64 = windowed.iter().enumerate().map(|(i, w)| w * angle(i).cos()).sum();
            let im: f64 = windowed.iter().enumerate().map(|(i, w)| w * angle(i).sin()).sum();
            if c.spectrum == Spectrum::Power { re * re + im * im } else { re.hypot(im) }
        })
        .collect();
    let bank = f.mel_bank();
    bank.chunks(c.fft / 2 + 1).map(|row| c.floor.ln(row.iter().zip(&spectrum).map(|(w, s)| w * s).sum())).collect()
}

fn stream(f: &Fbank, x: &[f32], cuts: impl Iterator<Item = usize>, end: bool) -> (Vec<f32>, Vec<f32>) {
    let (mut state, mut work) = (vec![0.0; f.state_len()], f.work());
    let (mut out, mut at) = (Vec::new(), 0);
    for n in cuts {
        f.push(&mut state, &x[at..at + n], &mut work, |row| out.extend_from_slice(row));
        at += n;
    }
    assert_eq!(at, x.len());
    assert_eq!(out.len() as u64, f.frames(x.len() as u64) * f.config().bins as u64);
    if end {
        f.finish(&mut state, &mut work, |row| out.extend_from_slice(row));
        assert_eq!(out.len() as u64, f.clip_frames(x.len() as u64) * f.config().bins as u64);
    }
    (out, state)
}

fn kinds() -> Vec<Fbank> {
    let odd = Config { hop: 30, frame: 100, fft: 128, lead: 20, ..Config::librosa(8000.0, 12) };
    [Config::kaldi(16000.0, 128), Config::librosa(24000.0, 128), Config::kaldi(8000.0, 23), odd]
        .into_iter()
        .map(|c| Fbank::new(c).unwrap())
        .collect()
}

#[test]
fn frames_agree_with_a_plain_transform() {
    let mut rng = Rng::new(21);
    for f in kinds() {
        let c = *f.config();
        for len in [0, 1, c.hop, c.frame - 1, c.frame, c.frame + c.hop - 1, c.frame + c.hop, 5 * c.frame + 7] {
            let x = rng.vec(len);
            let (got, _) = stream(&f, &x, std::iter::once(len), true);
            for (t, got) in got.chunks(c.bins).enumerate() {
                for (m, (got, want)) in got.iter().zip(plain(&f, &x, t)).enumerate() {
                    assert!((f64::from(*got) - want).abs() < 2e-6, "{c:?} len {len} frame {t} bin {m}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn any_cut_gives_the_same_bits() {
    let mut rng = Rng::new(22);
    for f in kinds() {
        let x = rng.vec(4000);
        let (whole, state) = stream(&f, &x, std::iter::once(x.len()), false);
        for _ in 0..5 {
            let mut left = x.len();
            let mut cuts = Vec::new();
            while left > 0 {
                let n = [0, 1, rng.below(50), rng.below(900)][rng.below(4)].min(left);
                cuts.push(n);
                left -= n;
            }
            let (y, end) = stream(&f, &x, cuts.into_iter(), false);
            assert!(y == whole, "{:?}", f.config());
            let waiting = state[0] as isize + f.config().lead as isize;
            assert_eq!(state[..1 + waiting as usize], end[..1 + waiting as usize]);
        }
    }
}

#[test]
fn silence_is_the_floor_and_a_tone_is_where_it_should_be() {
    let f = Fbank::new(Config::kaldi(16000.0, 128)).unwrap();
    let (y, _) = stream(&f, &[0.0; 800], std::iter::once(800), true);
    assert!(y.iter().all(|v| *v == f.config().silence()) && (f.config().silence() + 15.942_385).abs() < 1e-6);
    let tone: Vec<f32> = (0..400).map(|i| (TAU * 1000.0 * f64::from(i) / 16000.0).sin() as f32).collect();
    let (y, _) = stream(&f, &tone, std::iter::once(400), true);
    let mel = |f: f64| 1127.0 * (1.0 + f / 700.0).ln();
    let want = (mel(1000.0) - mel(20.0)) / (mel(8000.0) - mel(20.0)) * 129.0 - 1.0;
    let loudest = y.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    assert!((loudest as f64 - want).abs() < 1.0, "{loudest} {want}");
}

#[test]
fn impossible_configurations_are_refused() {
    let good = Config::kaldi(16000.0, 80);
    for (field, bad) in [
        ("sample_rate", Config { sample_rate: f64::NAN, ..good }),
        ("frame", Config { frame: 1, ..good }),
        ("frame", Config { fft: 256, ..good }),
        ("fft", Config { fft: 1 << 20, ..good }),
        ("fft", Config { fft: 513, ..good }),
        ("hop", Config { hop: 0, ..good }),
        ("hop", Config { hop: 401, ..good }),
        ("bins", Config { bins: 0, ..good }),
        ("high", Config { high: 9000.0, ..good }),
        ("high", Config { low: 9000.0, ..good }),
    ] {
        assert_eq!(Fbank::new(bad).err().map(|e| e.field), Some(field));
    }
}
