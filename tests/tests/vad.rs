//! `ssmvad` as an application meets it: probabilities, turns, times, the life of its state, bad input.

use gst::ClockTime;
use gst::prelude::*;
use gstssm::Results;
use ssm_models::checkpoint::Checkpoint;
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Options, Output, Row, Scratch, Signal, open};
use ssm_tests::Rng;
use ssm_tests::audio::{Listening, bytes};
use ssm_tests::element::{Folder, complaint, make, run};

const RATE: usize = 16_000;

/// A second of speech between two seconds that are almost silent.
fn speech() -> Vec<f32> {
    let file = Checkpoint::open(&ssm_tests::golden().join("attenuate_speech.safetensors")).expect("it is there");
    let mut samples = Rng::new(1).normals(RATE, 1e-4);
    samples.extend(file.f32("__input__").expect("16384 samples of speech"));
    samples.extend(Rng::new(2).normals(RATE, 1e-4));
    samples
}

fn vad(properties: &[(&str, &str)]) -> Listening {
    Listening::new("ssmvad", properties, "F32LE", RATE as u32, 1)
}

/// State, place and running time of each turn, in ms.
fn turns(v: &Listening) -> Vec<(String, u64, u64)> {
    let ms = |s: &gst::Structure, name: &str| s.get::<u64>(name).expect("a time") / 1_000_000;
    let turns = v.messages("ssm-vad");
    turns.iter().map(|s| (s.get("state").expect("a state"), ms(s, "pts"), ms(s, "running-time"))).collect()
}

/// What the model itself says of a clip, filled up to whole hops.
fn direct(model: &str, samples: &[f32]) -> Vec<f32> {
    let model = open(model, &Options { output: Output::Speech, ..Options::default() }).expect("it opens");
    let hop = model.info().input.len();
    let hops = samples.len() / hop;
    let mut rows = [Row::new(&*model, hops)];
    rows[0].x.copy_from_slice(&samples[..hops * hop]);
    model.forward(&Cx::at(CpuLevel::best(), 1), &mut rows, hops, &mut Scratch::default());
    rows[0].y.iter().map(|y| 1.0 / (1.0 + (-y).exp())).collect()
}

#[test]
fn real_speech_is_found_where_it_is() {
    let samples = speech();
    let mut v = vad(&[]);
    v.pieces(&bytes(&samples), &[1600; 30][..samples.len() / 1600], ClockTime::from_seconds(5));
    assert!(v.out == bytes(&samples[..v.out.len() / 4]), "the audio passes untouched");
    let turns = turns(&v);
    assert_eq!(turns.iter().map(|t| &*t.0).collect::<Vec<_>>(), ["start", "end"], "{turns:?}");
    assert!(turns[0].1.abs_diff(6000) < 60 && turns[1].1.abs_diff(7024) < 80, "{turns:?}");
    assert!(turns.iter().all(|t| t.1 == t.2), "the segment begins at 0");
}

#[test]
fn results_are_the_models_own_at_exact_times_however_cut() {
    let samples = speech();
    let want = direct("builtin:denoise", &samples);
    let mut rng = Rng::new(3);
    let start = ClockTime::from_nseconds(1_234_567_891);
    let mut first: Option<(Vec<Results>, Vec<gst::Structure>)> = None;
    for cuts in [vec![samples.len()], rng.cuts(samples.len()), rng.cuts(samples.len()), vec![160; samples.len() / 160]]
    {
        let mut v = vad(&[]);
        v.element.set_property("name", "v");
        v.pieces(&bytes(&samples), &cuts, start);
        v.h.push_event(gst::event::Eos::new());
        assert_eq!(v.results.len(), want.len());
        for (i, (r, want)) in v.results.iter().zip(&want).enumerate() {
            assert_eq!((r.speech, r.step, &*r.kind), (Some(f64::from(*want)), i as u64 + 1, "speech"));
            // The hop in the middle of the frame of two.
            let at = |n: usize| start + v.time((160 * n).saturating_sub(80));
            assert_eq!(r.pts, Some(at(i).nseconds()), "step {i}");
            assert_eq!(r.pts.zip(r.duration).map(|(p, d)| p + d), Some(at(i + 1).nseconds()));
        }
        let got = (v.results.clone(), v.messages("ssm-vad"));
        let want = first.get_or_insert_with(|| got.clone());
        assert!(*want == got, "the cut changed something");
    }
}

#[test]
fn channels_are_mixed_and_sixteen_bits_do() {
    let samples: Vec<i16> = speech().iter().map(|s| (s * 32767.0) as i16).collect();
    let mono: Vec<f32> = samples.iter().map(|s| f32::from(*s) / 32768.0).collect();
    let want = direct("builtin:denoise", &mono);
    let three: Vec<u8> = samples.iter().flat_map(|s| [*s; 3]).flat_map(i16::to_le_bytes).collect();
    let mut v = Listening::new("ssmvad", &[], "S16LE", RATE as u32, 3);
    v.pieces(&three, &Rng::new(4).cuts(samples.len()), ClockTime::ZERO);
    let off = v.results.iter().zip(&want).map(|(r, w)| (r.speech.unwrap_or(9.0) - f64::from(*w)).abs());
    assert!(v.results.len() == want.len() && off.fold(0.0, f64::max) < 1e-3);
}

/// What happens to a stream, and when it goes on.
type Event<'a> = (&'a str, &'a dyn Fn(&mut Listening), ClockTime);

/// Everything that ends a stream closes what is open; what follows is heard afresh.
#[test]
fn every_start_has_its_end() {
    let samples = speech();
    let (head, tail) = (&samples[..24_000], &samples[24_000..]);
    let fresh = direct("builtin:denoise", tail);
    let events: [Event<'_>; 7] = [
        ("flush", &|v| v.flush(), ClockTime::from_seconds(3)),
        (
            "segment",
            &|v| {
                let mut segment = gst::FormattedSegment::<ClockTime>::new();
                segment.set_start(ClockTime::from_seconds(1));
                v.h.push_event(gst::event::Segment::new(segment.upcast_ref()));
            },
            ClockTime::from_mseconds(1500),
        ),
        ("signal", &|v| v.element.emit_by_name::<()>("reset-state", &[]), ClockTime::from_mseconds(1500)),
        (
            "event",
            &|v| {
                let reset = gst::Structure::new_empty("ssm-reset");
                v.h.push_event(gst::event::CustomDownstream::builder(reset).build());
            },
            ClockTime::from_mseconds(1500),
        ),
        ("long gap", &|_| (), ClockTime::from_seconds(9)),
        ("jump back", &|_| (), ClockTime::ZERO),
        (
            "caps",
            &|v| {
                let caps = ssm_tests::audio::caps("F32LE", RATE as u32, 1);
                let mut other = caps.clone();
                other.make_mut().set("channel-mask", gst::Bitmask::new(4));
                v.h.push_event(gst::event::Caps::new(&other));
            },
            ClockTime::from_mseconds(1500),
        ),
    ];
    for (what, event, next) in events {
        let mut v = vad(&[("min-silence", "0"), ("min-speech", "0")]);
        v.pieces(&bytes(head), &[24_000], ClockTime::ZERO);
        let before = turns(&v);
        assert_eq!(before.last().map(|t| &*t.0), Some("start"), "{what}: speech is going on");
        event(&mut v);
        v.results.clear();
        v.pieces(&bytes(tail), &[tail.len()], next);
        let after = turns(&v);
        assert_eq!((&*after[0].0, after[0].1), ("end", 1500), "{what}: {after:?}");
        let steps: Vec<f64> = v.results.iter().rev().take(fresh.len()).rev().filter_map(|r| r.speech).collect();
        assert!(steps.iter().zip(&fresh).all(|(a, b)| *a == f64::from(*b)), "{what}: the state is not fresh");
        v.h.push_event(gst::event::Eos::new());
        let all = after.len() + turns(&v).len();
        assert_eq!(all % 2, 1, "{what}: an end is missing");
        if what != "caps" {
            assert!(v.element.property::<u64>("resets") > 0, "{what}");
        }
    }
}

#[test]
fn a_gap_is_silence_and_ages_the_state() {
    let samples = speech();
    let mut kept = vec![];
    for by_event in [false, true] {
        for policy in ["step", "hold", "reset"] {
            let mut v = vad(&[("gap-policy", policy)]);
            v.pieces(&bytes(&samples[..24_000]), &[24_000], ClockTime::ZERO);
            let gap = ClockTime::from_mseconds(300);
            if by_event {
                v.h.push_event(gst::event::Gap::builder(ClockTime::from_mseconds(1500)).duration(gap).build());
                let now = v.h.pull_event();
                drop(now);
            }
            v.results.clear();
            v.pieces(&bytes(&samples[24_000..]), &[samples.len() - 24_000], ClockTime::from_mseconds(1800));
            let turns = turns(&v);
            let states: Vec<&str> = turns.iter().map(|t| &*t.0).collect();
            assert_eq!(states, ["start", "end", "start", "end"], "{policy}: {turns:?}");
            assert_eq!(turns[1].1, 1500, "{policy}");
            assert!(turns[2].1 >= 1795, "{policy}: time goes on behind the gap");
            kept.push(v.results.iter().filter_map(|r| r.speech).collect::<Vec<_>>());
        }
    }
    assert!(kept[0] != kept[1] && kept[1] != kept[2] && kept[0] != kept[2], "the policies differ");
    assert!(kept[..3] == kept[3..], "a GAP event is a gap");
}

#[test]
fn a_second_process_goes_on_as_if_nothing_had_been() {
    let folder = Folder::new("vad-handover");
    let samples = speech();
    let mut rng = Rng::new(5);
    let whole = {
        let mut v = vad(&[]);
        v.element.set_property("name", "v");
        v.pieces(&bytes(&samples), &[samples.len()], ClockTime::from_mseconds(77));
        v.h.push_event(gst::event::Eos::new());
        (v.results.clone(), v.messages("ssm-vad"))
    };
    for cut in [0, 1, 16_100, 20_001, 24_000, samples.len()] {
        let state = folder.file("state");
        let mut a = vad(&[("state-out", &state)]);
        a.element.set_property("name", "v");
        a.pieces(&bytes(&samples[..cut]), &rng.cuts(cut), ClockTime::from_mseconds(77));
        a.h.push_event(gst::event::Eos::new());
        let mut got = (a.results.clone(), a.messages("ssm-vad"));
        drop(a);
        let mut b = vad(&[("state-in", &state)]);
        b.element.set_property("name", "v");
        let start = ClockTime::from_mseconds(77) + b.time(cut);
        b.pieces(&bytes(&samples[cut..]), &[samples.len() - cut], start);
        b.h.push_event(gst::event::Eos::new());
        got.0.extend(b.results.clone());
        got.1.extend(b.messages("ssm-vad"));
        assert_eq!(got.1, whole.1, "cut at {cut}");
        assert!(got.0 == whole.0, "cut at {cut}: probabilities differ");
    }
}

#[test]
fn odd_sizes_and_numbers_that_are_none_are_told() {
    let mut v = Listening::new("ssmvad", &[], "F32LE", RATE as u32, 2);
    v.push(&[], Some(ClockTime::ZERO)).expect("an empty buffer flows");
    let mut samples = Rng::new(6).normals(3200, 0.1);
    samples[100] = f32::NAN;
    samples[101] = f32::INFINITY;
    samples[1600] = f32::NAN;
    v.push(&bytes(&samples), Some(ClockTime::ZERO)).expect("flows");
    let text = complaint(v.bus(), gst::MessageType::Warning);
    assert!(text.contains("sample 100") && text.contains("NaN"), "{text}");
    assert!(v.results.len() == 10 && v.results.iter().all(|r| r.speech.is_some_and(f64::is_finite)));
    v.element.set_property_from_str("max-gap", "18446744073709551614");
    let far = ClockTime::from_nseconds(u64::MAX - 2);
    v.push(&bytes(&samples), Some(far)).expect("times near the end of time flow");
    v.h.push_event(gst::event::Gap::builder(far).duration(far).build());
    assert_eq!(v.push(&[0; 13], Some(ClockTime::from_mseconds(100))), Err(gst::FlowError::Error));
    let text = complaint(v.bus(), gst::MessageType::Error);
    assert!(text.contains("multiple of 8") && text.contains("13"), "{text}");
}

#[test]
fn a_model_that_does_not_tell_speech_is_an_error_that_names_it() {
    let folder = Folder::new("vad-models");
    let (_, silent) = (0..)
        .map(|seed| folder.model("band_mask", seed))
        .find(|(f, _)| !f.tensors.contains_key("vad.weight"))
        .expect("one without");
    let (_, audio) = folder.model("cleanumamba", 1);
    let (_, vision) = folder.model("vim", 1);
    for (model, parts) in [
        ("/nowhere/vad.pth", vec!["/nowhere/vad.pth"]),
        (&*silent, vec!["vad.weight"]),
        (&*audio, vec!["output", "a model that tells speech", "cleanumamba"]),
        (&*vision, vec!["speech", "vim"]),
        ("builtin:nothing", vec!["builtin", "nothing"]),
    ] {
        let element = make("ssmvad", &[("model", model)]);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        assert!(element.set_state(gst::State::Ready).is_err(), "{model} was taken");
        let text = complaint(&bus, gst::MessageType::Error);
        assert!(parts.iter().all(|p| text.contains(p)), "{text:?} lacks one of {parts:?}");
        element.set_state(gst::State::Null).expect("back to NULL");
    }
}

#[test]
fn random_models_and_rates() {
    let folder = Folder::new("vad-random");
    for seed in 0..20 {
        let (f, path) = folder.model("band_mask", seed);
        if !f.tensors.contains_key("vad.weight") {
            continue;
        }
        let mut rng = Rng::new(seed);
        let samples = rng.normals(1500, 0.1);
        let want = direct(&path, &samples);
        let mut v = vad(&[("model", &path)]);
        v.pieces(&bytes(&samples), &rng.cuts(1500), ClockTime::ZERO);
        let got: Vec<f32> = v.results.iter().filter_map(|r| r.speech).map(|s| s as f32).collect();
        assert!(got == want, "seed {seed}");
    }
    let element = make("ssmvad", &[]);
    element.set_state(gst::State::Ready).expect("it opens");
    let allowed = element.static_pad("sink").expect("a sink").query_caps(None);
    let rate = |rate: i32| gst::Caps::builder("audio/x-raw").field("rate", rate).build();
    assert!(rate(16_000).can_intersect(&allowed) && !rate(48_000).can_intersect(&allowed), "{allowed}");
    element.set_state(gst::State::Null).expect("back to NULL");
    let model = open("builtin:denoise", &Options { output: Output::Speech, ..Options::default() }).expect("it opens");
    assert_eq!(model.info().output, Signal::Logits { classes: 1 });
}

#[test]
fn json_lines_hold_the_probabilities() {
    let folder = Folder::new("vad-json");
    let out = folder.file("lines.jsonl");
    let found = run(&format!(
        "audiotestsrc num-buffers=20 ! audio/x-raw,rate=48000 ! audioconvert ! audioresample ! ssmvad ! ssmjson ! \
         filesink location={out}"
    ));
    assert_eq!(found.iter().filter(|s| s.name() == "ssm-model").count(), 1);
    let text = std::fs::read_to_string(&out).expect("the file is there");
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert!(lines.len() > 30, "{}", lines.len());
    for (i, line) in lines.iter().enumerate() {
        assert!(line["kind"] == "speech" && line["step"] == i + 1 && line["speech"].is_number(), "{line}");
        assert!(line.get("classes").is_none() && line.get("vector").is_none());
    }
}

#[test]
fn level_and_voice_lie_on_the_buffers_where_they_are_asked_for() {
    let samples = speech();
    let seen = |properties: &[(&str, &str)]| -> Vec<Option<(u8, bool)>> {
        let element = ssm_tests::element::make("ssmvad", properties);
        let mut h = gst_check::Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_caps(ssm_tests::audio::caps("F32LE", RATE as u32, 1), ssm_tests::audio::caps("F32LE", RATE as u32, 1));
        let hops = samples.chunks_exact(1600).enumerate().map(|(i, piece)| {
            let mut buffer = gst::Buffer::from_mut_slice(bytes(piece));
            buffer.get_mut().expect("a new buffer").set_pts(ClockTime::from_mseconds(100 * i as u64));
            let out = h.push_and_pull(buffer).expect("it flows");
            out.meta::<gst_audio::AudioLevelMeta>().map(|meta| (meta.level(), meta.voice_activity()))
        });
        hops.collect()
    };
    assert!(seen(&[]).iter().all(Option::is_none));
    let found: Vec<_> = seen(&[("audio-level-meta", "true")]).into_iter().map(|m| m.expect("a meta")).collect();
    // Noise of 1e-4 is at -80 dB; the speech begins after a second and ends a second later.
    assert!(found[..10].iter().all(|(level, voice)| (79..=81).contains(level) && !voice), "{found:?}");
    assert!(
        found[11..19].iter().all(|(_, voice)| *voice) && found[12..16].iter().any(|(level, _)| *level < 40),
        "{found:?}"
    );
    assert!(found.last().is_some_and(|(level, voice)| *level > 60 && !voice), "{found:?}");
    // Another element's is replaced: readers take the first one.
    let mut v = vad(&[("audio-level-meta", "true")]);
    let mut buffer = gst::Buffer::from_mut_slice(bytes(&samples[..1600]));
    gst_audio::AudioLevelMeta::add(buffer.get_mut().expect("a new buffer"), 7, true);
    v.h.push(buffer).expect("flows");
    let out = v.h.pull().expect("it came out");
    let metas: Vec<_> = out.iter_meta::<gst_audio::AudioLevelMeta>().map(|m| (m.level(), m.voice_activity())).collect();
    assert!(metas.len() == 1 && metas[0].0 > 70 && !metas[0].1, "{metas:?}");
}
