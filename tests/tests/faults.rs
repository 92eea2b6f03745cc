//! Input that cannot be: numbers out of all bounds, torn buffers, impossible times. No panic, nothing lost, and one
//! warning where something was made up.

use gst::ClockTime;
use gst::prelude::*;
use ssm_tests::Rng;
use ssm_tests::audio::{Listening, bytes};
use ssm_tests::element::{Folder, complaint};
use ssm_tests::fabricate::Fabricated;

const RATE: u32 = 16_000;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// A bench for elements that give other samples than they take.
struct Denoising {
    h: gst_check::Harness,
    element: gst::Element,
    bus: gst::Bus,
}

impl Denoising {
    fn new(model: &str, channels: i32, properties: &[(&str, &str)]) -> Self {
        let element = ssm_tests::element::make("ssmdenoise", &[&[("model", model)], properties].concat());
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let mut h = gst_check::Harness::with_element(&element, Some("sink"), Some("src"));
        let caps = ssm_tests::audio::caps("F32LE", RATE, channels);
        h.set_caps(caps.clone(), caps);
        Self { h, element, bus }
    }

    fn push(&mut self, samples: &[f32], pts: Option<ClockTime>) {
        let mut buffer = gst::Buffer::from_slice(bytes(samples));
        buffer.get_mut().expect("a new buffer").set_pts(pts);
        self.h.push(buffer).expect("flows");
    }

    fn pull(&mut self) -> Vec<f32> {
        let mut out = Vec::new();
        while let Some(buffer) = self.h.try_pull() {
            out.extend(floats(&buffer.map_readable().expect("readable")));
        }
        out
    }

    fn end(&mut self) -> Vec<f32> {
        self.h.push_event(gst::event::Eos::new());
        self.pull()
    }

    fn warnings(&self) -> usize {
        std::iter::from_fn(|| self.bus.pop_filtered(&[gst::MessageType::Warning])).count()
    }

    fn not_finite(&self) -> u64 {
        self.element.property::<gst::Structure>("stats").get("not-finite").expect("a counter")
    }
}

/// A denoiser whose network gives numbers beyond all bounds for any sound but silence.
fn explosive(folder: &Folder, seed: u64) -> String {
    let (mut model, _) = folder.model("spec_mamba", seed);
    let (_, mask) = model.tensors.get_mut("mask.weight").expect("it has a mask");
    mask.iter_mut().for_each(|w| *w = 3e38 * w.signum());
    write(folder, &model, &format!("explosive-{seed}"))
}

fn write(folder: &Folder, model: &Fabricated, name: &str) -> String {
    let path = folder.file(name);
    std::fs::write(&path, model.bytes()).expect("room for files");
    path
}

#[test]
fn samples_beyond_all_bounds_are_silence() {
    let folder = Folder::new("absurd");
    let (_, model) = folder.model("spec_mamba", 3);
    let mut rng = Rng::new(1);
    let good = rng.normals(3000, 0.1);
    let (mut bad, mut silent) = (good.clone(), good.clone());
    let absurd = [1e38, -1e38, 1.1e6, f32::MAX, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    for (i, value) in absurd.iter().cycle().take(200).enumerate() {
        (bad[1000 + i], silent[1000 + i]) = (*value, 0.0);
    }
    // Denormals and 120 dB above full scale are numbers as any.
    for signal in [&mut bad, &mut silent] {
        (signal[10], signal[11], signal[12]) = (1e-42, -f32::MIN_POSITIVE / 3.0, 9.9e5);
    }
    let run = |samples: &[f32]| {
        let mut b = Denoising::new(&model, 1, &[]);
        for piece in samples.chunks(50) {
            b.push(piece, None);
        }
        let mut out = b.pull();
        out.extend(b.end());
        (out, b.warnings(), b.not_finite())
    };
    let (want, none, _) = run(&silent);
    let (got, warnings, counted) = run(&bad);
    assert!(got.iter().all(|s| s.is_finite()));
    assert_eq!(got, want, "they are taken for silence");
    assert_eq!((none, warnings, counted), (0, 1, 4), "one warning for a stretch, a count for each buffer");
}

#[test]
fn a_network_beyond_all_bounds_gives_silence_and_as_many_samples() {
    let folder = Folder::new("explosive");
    let mut rng = Rng::new(2);
    for seed in [3, 5, 8] {
        let model = explosive(&folder, seed);
        // The second channel is silent for a while: it stays as it is while the first one explodes.
        let mut samples = rng.normals(2 * 2500, 0.1);
        samples.iter_mut().skip(1).step_by(2).take(1200).for_each(|s| *s = 0.0);
        let run = |rng: &mut Rng, samples: &[f32], channels: usize| {
            let mut b = Denoising::new(&model, channels as i32, &[]);
            let mut at = 0;
            for n in rng.cuts(samples.len() / channels) {
                b.push(&samples[at * channels..(at + n) * channels], None);
                at += n;
            }
            let mut out = b.pull();
            out.extend(b.end());
            (out, b.warnings(), b.not_finite())
        };
        let (out, warnings, counted) = run(&mut rng, &samples, 2);
        assert_eq!(out.len(), samples.len(), "seed {seed}: as many samples out as in");
        assert!(out.iter().all(|s| s.is_finite()), "seed {seed}");
        assert_eq!(warnings, 1, "seed {seed}: one warning for a stretch");
        assert!(counted > 2, "seed {seed}: {counted} hops were counted");
        let (again, ..) = run(&mut rng, &samples, 2);
        assert_eq!(out, again, "seed {seed}: the cut changes nothing");
        let second: Vec<f32> = samples.iter().skip(1).step_by(2).copied().collect();
        let (alone, ..) = run(&mut rng, &second, 1);
        assert!(out.iter().skip(1).step_by(2).eq(&alone), "seed {seed}: channels do not affect each other");
    }
}

#[test]
fn short_pieces_and_gaps_give_as_many_samples_of_every_channel() {
    let folder = Folder::new("short");
    let mut rng = Rng::new(3);
    for (family, seed) in [("spec_mamba", 3), ("spec_mamba", 4), ("cleanumamba", 1), ("cleanumamba", 2)] {
        let (_, model) = folder.model(family, seed);
        for frames in [0, 1, 2, 7, 100] {
            for gaps in 0..3 {
                let mut b = Denoising::new(&model, 2, &[]);
                let samples = rng.normals(2 * frames, 0.1);
                b.push(&samples, Some(ClockTime::ZERO));
                for i in 0..gaps {
                    let event = gst::event::Gap::builder(ClockTime::from_mseconds(10 * i + 10));
                    b.h.push_event(event.duration(ClockTime::from_mseconds(10)).build());
                }
                let mut out = b.pull();
                out.extend(b.end());
                assert_eq!(out.len(), samples.len(), "{family} {seed}, {frames} frames, {gaps} gaps");
            }
        }
    }
}

/// Steps of a listener are dropped one by one where they cannot be, and those after it are told, however it is cut.
#[test]
fn a_listener_beyond_all_bounds_goes_on() {
    let folder = Folder::new("listener");
    let (mut model, _) = folder.model("spec_mamba", 3);
    model.tensors.insert("vad.weight".into(), {
        let d = model.tensors["norm_f.weight"].0[0];
        (vec![1, d], (0..d).map(|i| if i % 2 == 0 { 3e38 } else { -3e38 }).collect())
    });
    model.tensors.insert("vad.bias".into(), (vec![1], vec![0.0]));
    let path = write(&folder, &model, "loud-vad");
    let mut rng = Rng::new(4);
    let samples = rng.normals(3000, 0.1);
    let run = |cuts: &[usize]| {
        let mut b = Listening::new("ssmvad", &[("model", &path)], "F32LE", RATE, 1);
        b.pieces(&bytes(&samples), cuts, ClockTime::ZERO);
        b.h.push_event(gst::event::Eos::new());
        let warnings = std::iter::from_fn(|| b.bus().pop_filtered(&[gst::MessageType::Warning])).count();
        (b.results.iter().map(|r| (r.pts, r.step, r.speech)).collect::<Vec<_>>(), warnings)
    };
    let (whole, warnings) = run(&[3000]);
    assert!(warnings > 0, "the network is as bad as it should be");
    let cuts = rng.cuts(3000);
    assert_eq!(run(&cuts).0, whole);
}

#[test]
fn torn_buffers_are_told() {
    let folder = Folder::new("torn");
    let (_, model) = folder.model("spec_mamba", 3);
    for (factory, size) in [("ssmdenoise", 13), ("ssmvad", 7), ("ssmdenoise", 1)] {
        let mut b = Listening::new(factory, &[("model", &model)], "F32LE", RATE, 2);
        assert_eq!(b.push(&vec![0; size], None), Err(gst::FlowError::Error));
        let text = complaint(b.bus(), gst::MessageType::Error);
        assert!(text.contains("multiple of 8 bytes") && text.contains(&format!("got {size}")), "{text}");
    }
}
