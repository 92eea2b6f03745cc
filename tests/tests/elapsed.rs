//! Time in elements: results stand at the time that they are of, states age in the model's own steps, and a model takes as
//! many steps a second as in its training, whatever the caps say of frames.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use gstssm::Results;
use serde_json::json;
use ssm_models::kernels::CpuLevel;
use ssm_models::{Engine, Listener, Signal};
use ssm_tests::Rng;
use ssm_tests::audio::{Listening, bytes};
use ssm_tests::element::{Folder, complaint, make};
use ssm_tests::fabricate::{Fabricated, composite};
use std::collections::BTreeMap;
use std::time::Duration;

const WIDTH: usize = 32;
const HEIGHT: usize = 18;
const LOOK_AHEAD: usize = 3;

/// A random composite of frames, trained at 25 steps a second, and its file.
fn eye(folder: &Folder) -> String {
    let mut rng = Rng::new(11);
    let head = json!({
        "kind": "linear", "classes": ["cut", "dissolve", "fade"], "activation": "sigmoid", "look_ahead": LOOK_AHEAD
    });
    let mut f = composite::scoring(&mut rng, "conv", 3.0, head);
    f.config["step_rate"] = json!(25.0);
    f.config["input"] = json!({ "height": 9, "width": 16, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2] });
    write(folder, "eye", &f)
}

fn write(folder: &Folder, name: &str, f: &Fabricated) -> String {
    let path = folder.file(&format!("{name}.safetensors"));
    std::fs::write(&path, f.bytes()).expect("a temporary file");
    path
}

/// A picture that depends on its time alone.
fn picture(ms: u64) -> Vec<u8> {
    let mut rng = Rng::new(ms / 40);
    (0..WIDTH * HEIGHT * 3).map(|_| rng.range(0, 255) as u8).collect()
}

/// Frames at times in ms through an element; what it found, and how many steps it took.
fn look(
    properties: &[(&str, &str)],
    factory: &str,
    rate: &str,
    duration: Option<u64>,
    times: &[u64],
) -> (Vec<Results>, u64) {
    let element = make(factory, properties);
    let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
    h.set_src_caps_str(&format!("video/x-raw,format=RGB,width={WIDTH},height={HEIGHT},framerate={rate}"));
    let mut found = Vec::new();
    for ms in times {
        let mut buffer = gst::Buffer::from_mut_slice(picture(*ms));
        let edit = buffer.get_mut().expect("a new buffer");
        edit.set_pts(ClockTime::from_mseconds(*ms));
        edit.set_duration(duration.map(ClockTime::from_mseconds));
        h.push(buffer).expect("flows");
        found.extend(Results::of(&h.pull().expect("a frame comes out")));
    }
    let steps = element.property("steps");
    found.extend(at_the_end(&mut h));
    (found, steps)
}

/// Ends the stream; the results that no buffer carries.
fn at_the_end(h: &mut Harness) -> Vec<Results> {
    h.push_event(gst::event::Eos::new());
    let mut found = Vec::new();
    while let Some(event) = h.try_pull_event() {
        found.extend(event.structure().and_then(Results::of_late).unwrap_or_default());
    }
    found
}

/// Scores of each class by the time that they are of.
fn scores(results: &[Results]) -> BTreeMap<u64, Vec<(u32, i64)>> {
    let of = |r: &Results| {
        let mut classes: Vec<_> = r.classes.iter().map(|c| (c.index, (c.score * 1e5).round() as i64)).collect();
        classes.sort();
        (r.pts.expect("a time"), classes)
    };
    results.iter().filter(|r| r.kind == "classes").map(of).collect()
}

fn every(step: u64, n: u64) -> Vec<u64> {
    (0..n).map(|i| i * step).collect()
}

#[test]
fn classes_stand_at_the_frames_that_they_are_of() {
    let folder = Folder::new("elapsed-classes");
    let model = ("model", &*eye(&folder));
    let times = every(40, 20);
    let told = scores(&look(&[model, ("top-k", "9")], "ssmclassify", "25/1", Some(40), &times).0);
    // The element that has always done so.
    let events = scores(&look(&[model], "ssmevents", "25/1", Some(40), &times).0);
    assert_eq!(events.len(), times.len(), "those that the end of the stream decides, too");
    for (pts, scores) in &events {
        assert_eq!(told.get(pts), Some(scores), "at {pts} ns");
    }
    assert_eq!(told.len(), times.len(), "the last frames are told, too");
    // Each class for itself, as the file says, and the shares of one, as the property says.
    let sum = |of: &[(u32, i64)]| of.iter().map(|c| c.1).sum::<i64>();
    assert!(told.values().any(|s| (sum(s) - 100_000).abs() > 1000), "{told:?}");
    let shares = [model, ("top-k", "9"), ("activation", "softmax")];
    let shares = scores(&look(&shares, "ssmclassify", "25/1", Some(40), &times).0);
    assert!(shares.values().all(|s| (sum(s) - 100_000).abs() < 10), "{shares:?}");
    // A vector of features is of a frame as well.
    let vectors = look(&[model], "ssmembed", "25/1", Some(40), &times).0;
    let at: Vec<u64> = vectors.iter().map(|r| r.pts.expect("a time") / 1_000_000).collect();
    assert_eq!(at, times);
}

#[test]
fn a_gap_ages_the_state_by_the_models_steps() {
    let folder = Folder::new("elapsed-gap");
    let model = [("model", &*eye(&folder))];
    // 0.2 s of frames, 0.4 s of nothing, 0.6 s of frames.
    let times =
        |step: u64| -> Vec<u64> { every(step, 1200 / step).into_iter().filter(|t| !(200..600).contains(t)).collect() };
    let (whole, _) = look(&model, "ssmevents", "25/1", Some(40), &times(40));
    let want = scores(&whole);
    assert!(want.len() > 15);
    for (rate, step) in [("50/1", 20), ("100/1", 10)] {
        let got = scores(&look(&model, "ssmevents", rate, Some(step), &times(step)).0);
        assert_eq!(got, want, "{rate}");
    }
    // Asked for every second frame of 25 a second, a step is missing between two.
    let other =
        scores(&look(&[model[0], ("inference-interval", "4")], "ssmevents", "50/1", Some(20), &every(20, 60)).0);
    let same = scores(&look(&[model[0], ("inference-interval", "2")], "ssmevents", "25/1", Some(40), &every(40, 30)).0);
    assert_eq!(other, same);
}

#[test]
fn steps_follow_times_where_caps_say_nothing_or_too_much() {
    let folder = Folder::new("elapsed-rate");
    let model = [("model", &*eye(&folder))];
    let run = |rate: &str, duration, times: &[u64]| {
        let (found, steps) = look(&model, "ssmevents", rate, duration, times);
        (scores(&found), steps)
    };
    let want = run("25/1", Some(40), &every(40, 30));
    assert_eq!(want.1, 30);
    for (rate, duration, step) in [
        ("50/1", Some(20), 20),
        ("50/1", None, 20),
        ("0/1", None, 20),
        ("0/1", Some(20), 20),
        ("0/1", None, 40),
        ("0/1", None, 10),
        // Containers that count in milliseconds.
        ("1000/1", None, 40),
        ("1000/1", Some(40), 40),
    ] {
        assert_eq!(run(rate, duration, &every(step, 1200 / step)), want, "{rate}, {duration:?}, every {step} ms");
    }
}

#[test]
fn tags_of_a_composite_come_at_the_interval_and_at_their_time() {
    let folder = Folder::new("elapsed-tags");
    let mut rng = Rng::new(3);
    let head = json!({ "kind": "linear", "classes": ["a", "b"], "activation": "sigmoid", "look_ahead": LOOK_AHEAD });
    let f = composite::scoring(&mut rng, "mel", 2.0, head);
    let path = write(&folder, "ear", &f);
    let model = f.open(CpuLevel::best()).expect("it opens");
    let Signal::Samples { hop, rate } = model.info().input else { panic!("no samples") };
    let samples = rng.normals(hop * 41 + hop / 2, 0.1);

    // From the model itself, with silence for what does not come.
    let cx = ssm_models::kernels::Cx::at(CpuLevel::best(), 1);
    let mut listener = Listener::new(&Engine::start(model, cx, 1, Duration::ZERO)).expect("a model of samples");
    let mut direct = Vec::new();
    listener.push(&samples, &mut direct).expect("it runs");
    listener.complete(&mut direct).expect("it runs");
    listener.push(&vec![0.0; LOOK_AHEAD * hop], &mut direct).expect("it runs");
    let direct: Vec<Vec<f32>> = direct.chunks(2).skip(LOOK_AHEAD).map(<[f32]>::to_vec).collect();
    assert_eq!(direct.len(), 42);

    let mut by_interval = Vec::new();
    for (interval, every) in [("1", 1), ("5", 5), ("0", (rate as usize / hop).max(1))] {
        let properties = [("model", &*path), ("inference-interval", interval), ("name", "t")];
        let mut l = Listening::new("ssmaudiotag", &properties, "F32LE", rate, 1);
        l.pieces(&bytes(&samples), &[hop * 3 + 1, hop * 20, samples.len() - hop * 23 - 1], ClockTime::ZERO);
        let mut found = std::mem::take(&mut l.results);
        found.extend(at_the_end(&mut l.h));
        let want: Vec<usize> = (0..42).filter(|t| (t + 1) % every == 0).collect();
        assert_eq!(found.len(), want.len(), "every {every}");
        for (r, t) in found.iter().zip(&want) {
            assert_eq!(r.pts, Some(l.time(t * hop).nseconds()), "every {every}, step {t}");
            for c in &r.classes {
                let want = 1.0 / (1.0 + f64::from(-direct[*t][c.index as usize]).exp());
                assert!((c.score - want).abs() < 1e-5, "every {every}, step {t}: expected {want}, got {c:?}");
            }
        }
        by_interval.push(found.len());
    }
    assert!(by_interval[0] > by_interval[1]);
}

/// What waits for its output goes on in another element.
#[test]
fn a_second_element_tells_what_the_first_had_not() {
    let folder = Folder::new("elapsed-hand-over");
    let path = eye(&folder);
    let times = every(40, 20);
    let model = [("model", &*path), ("top-k", "9")];
    let want = scores(&look(&model, "ssmclassify", "25/1", Some(40), &times).0);
    let state = folder.file("half.state");
    let (first, _) = look(&[model[0], model[1], ("state-out", &state)], "ssmclassify", "25/1", Some(40), &times[..9]);
    let (second, _) = look(&[model[0], model[1], ("state-in", &state)], "ssmclassify", "25/1", Some(40), &times[9..]);
    assert_eq!(first.len(), 9 - LOOK_AHEAD);
    assert_eq!(scores(&[first, second].concat()), want);
}

#[test]
fn a_labels_file_names_the_events() {
    let folder = Folder::new("elapsed-labels");
    let path = eye(&folder);
    let labels = folder.file("labels.txt");
    std::fs::write(&labels, "left\nright\nnone\n").expect("a temporary file");
    let properties = [("model", &*path), ("labels-file", &*labels), ("threshold", "0.3"), ("low-threshold", "0.2")];
    let (found, _) = look(&properties, "ssmevents", "25/1", Some(40), &every(40, 100));
    let kinds: Vec<&str> = found.iter().filter_map(|r| r.event.as_ref()).map(|e| &*e.kind).collect();
    assert!(!kinds.is_empty() && kinds.iter().all(|k| ["left", "right"].contains(k)), "{kinds:?}");
    let labelled = found
        .iter()
        .flat_map(|r| &r.classes)
        .all(|c| c.label.as_deref() == Some(["left", "right", "none"][c.index as usize]));
    assert!(labelled);
    std::fs::write(&labels, "left\nright\n").expect("a temporary file");
    let element = make("ssmevents", &properties);
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    assert!(element.set_state(gst::State::Paused).is_err());
    let text = complaint(&bus, gst::MessageType::Error);
    assert!(text.contains("labels-file") && text.contains("3 lines"), "{text}");
    element.set_state(gst::State::Null).expect("it stops");
}

#[test]
fn the_end_of_stream_is_no_reset_and_other_caps_are() {
    let folder = Folder::new("elapsed-resets");
    let eye = eye(&folder);
    for (factory, properties, caps) in [
        (
            "ssmevents",
            &[("model", &*eye)][..],
            [
                "video/x-raw,format=RGB,width=32,height=18,framerate=25/1",
                "video/x-raw,format=RGB,width=30,height=20,framerate=25/1",
            ],
        ),
        (
            "ssmclassify",
            &[("model", &*eye)],
            [
                "video/x-raw,format=RGB,width=32,height=18,framerate=25/1",
                "video/x-raw,format=RGB,width=30,height=20,framerate=25/1",
            ],
        ),
        (
            "ssmvad",
            &[],
            [
                "audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved",
                "audio/x-raw,format=S16LE,rate=16000,channels=1,layout=interleaved",
            ],
        ),
        (
            "ssmdenoise",
            &[],
            [
                "audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved",
                "audio/x-raw,format=S16LE,rate=16000,channels=1,layout=interleaved",
            ],
        ),
    ] {
        let element = make(factory, properties);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_src_caps_str(caps[0]);
        let mut buffer = gst::Buffer::from_mut_slice(vec![
            0u8;
            if factory == "ssmvad" || factory == "ssmdenoise" {
                6400
            } else {
                32 * 18 * 3
            }
        ]);
        buffer.get_mut().expect("a new buffer").set_pts(ClockTime::ZERO);
        h.push(buffer).expect("flows");
        assert_eq!(element.property::<u64>("resets"), 0, "{factory}: nothing has happened");
        h.set_src_caps_str(caps[1]);
        assert_eq!(element.property::<u64>("resets"), 1, "{factory}: other caps");
        let size = if factory == "ssmvad" || factory == "ssmdenoise" { 3200 } else { 30 * 20 * 3 + 40 };
        let mut buffer = gst::Buffer::from_mut_slice(vec![0u8; size]);
        buffer.get_mut().expect("a new buffer").set_pts(ClockTime::ZERO);
        h.push(buffer).expect("flows");
        h.push_event(gst::event::Eos::new());
        assert_eq!(element.property::<u64>("resets"), 1, "{factory}: the end of stream");
    }
}
