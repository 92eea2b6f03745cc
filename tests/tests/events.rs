//! `ssmevents` as an application meets it: scores at their frames, events in messages and results, hand-over, resets.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use gstssm::Results;
use serde_json::json;
use ssm_models::frontend::image::{ImagePlan, PixelFormat, Plane};
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Row, Scratch, Signal};
use ssm_tests::Rng;
use ssm_tests::element::{Folder, complaint, make, run};
use ssm_tests::fabricate::{Fabricated, composite};

const WIDTH: usize = 32;
const HEIGHT: usize = 18;
const LOOK_AHEAD: usize = 3;
const FRAME: ClockTime = ClockTime::from_mseconds(40);

/// A random composite whose scores move, and its file.
fn model(folder: &Folder) -> (Fabricated, String) {
    let mut rng = Rng::new(11);
    let head = json!({
        "kind": "linear", "classes": ["cut", "dissolve", "fade"], "activation": "sigmoid", "look_ahead": LOOK_AHEAD
    });
    let mut f = composite::scoring(&mut rng, "conv", 3.0, head);
    f.config["input"] = json!({ "height": 9, "width": 16, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2] });
    let path = folder.file("events.safetensors");
    std::fs::write(&path, f.bytes()).expect("a temporary file");
    (f, path)
}

/// Frames of random blocks that change now and then.
fn frames(n: usize) -> Vec<Vec<u8>> {
    let mut rng = Rng::new(5);
    let mut frame = vec![0u8; WIDTH * HEIGHT * 3];
    (0..n)
        .map(|_| {
            if rng.range(0, 4) == 0 {
                let level = rng.range(0, 255);
                frame.iter_mut().for_each(|v| *v = (level + rng.range(0, 60)).min(255) as u8);
            }
            frame.clone()
        })
        .collect()
}

/// Probabilities of each frame, from the model itself: the last frame stands for those that do not come.
fn direct(model: &Fabricated, frames: &[Vec<u8>]) -> Vec<Vec<f64>> {
    every(model, frames, &vec![0.0; frames.len()])
}

/// As [`direct`] where before each frame some are missing.
fn every(model: &Fabricated, frames: &[Vec<u8>], missing: &[f64]) -> Vec<Vec<f64>> {
    let model = model.open(CpuLevel::best()).expect("it opens");
    let Signal::Image { height, width, .. } = model.info().input else { panic!("no frames") };
    let pixels = &model.info().facts.pixels;
    let mut plan =
        ImagePlan::with_pixels((HEIGHT, WIDTH), PixelFormat::Rgb, (height, width), pixels).expect("the sizes are fine");
    let (cx, mut scratch, mut rows) = (Cx::at(CpuLevel::best(), 1), Scratch::default(), [Row::new(&*model, 1)]);
    let last = std::iter::repeat_n(frames.last().expect("a frame"), LOOK_AHEAD);
    let mut scores = Vec::new();
    for (i, frame) in frames.iter().chain(last).enumerate() {
        model.gap(&mut rows[0].state, missing.get(i).copied().unwrap_or(0.0));
        plan.run(&cx, &[Plane { data: frame, stride: WIDTH * 3 }], &mut rows[0].x).expect("a whole frame");
        model.forward(&cx, &mut rows, 1, &mut scratch);
        scores.push(rows[0].y.iter().map(|y| f64::from(1.0 / (1.0 + (-y).exp()))).collect());
    }
    scores.split_off(LOOK_AHEAD)
}

/// An event of a message: kind, start, end, score.
type Told = (String, u64, u64, f64);

struct Bench {
    h: Harness,
    bus: gst::Bus,
    element: gst::Element,
}

impl Bench {
    fn new(properties: &[(&str, &str)]) -> Self {
        let element = make("ssmevents", properties);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_src_caps_str("video/x-raw,format=RGB,width=32,height=18,framerate=25/1");
        Self { h, bus, element }
    }

    fn push(&mut self, frames: &[Vec<u8>], first: u64) -> Vec<Results> {
        let mut results = Vec::new();
        for (i, frame) in frames.iter().enumerate() {
            let mut buffer = gst::Buffer::from_mut_slice(frame.clone());
            let edit = buffer.get_mut().expect("a new buffer");
            edit.set_pts(FRAME * (first + i as u64));
            edit.set_duration(FRAME);
            self.h.push(buffer).expect("flows");
            let out = self.h.pull().expect("a buffer comes out");
            assert_eq!(out.map_readable().expect("readable").as_slice(), frame, "pixels changed");
            results.extend(Results::of(&out));
        }
        results
    }

    fn messages(&self) -> Vec<Told> {
        let mut found = Vec::new();
        while let Some(message) = self.bus.pop() {
            let gst::MessageView::Element(e) = message.view() else { continue };
            let s = e.structure().expect("a structure");
            if s.name() == "ssm-event" {
                let time = |name: &str| s.get::<u64>(name).expect("a time");
                let (start, end) = (time("start"), time("end"));
                assert_eq!((time("stream-time"), time("running-time")), (time("pts"), time("pts")));
                assert!(start < time("pts") && time("pts") <= end, "{s}");
                found.push((s.get("kind").expect("a kind"), start, end, s.get("score").expect("a score")));
            }
        }
        found
    }
}

/// Probabilities that a tenth of the frames reach, as text.
fn threshold(scores: &[Vec<f64>]) -> String {
    let mut largest: Vec<f64> = scores.iter().map(|s| s.iter().copied().fold(0.0, f64::max)).collect();
    largest.sort_by(f64::total_cmp);
    format!("{:.3}", largest[largest.len() * 8 / 10])
}

#[test]
fn scores_are_told_at_the_frames_that_they_are_of() {
    let folder = Folder::new("events-scores");
    let (fabricated, path) = model(&folder);
    let frames = frames(30);
    let want = direct(&fabricated, &frames);
    let mut b = Bench::new(&[("model", &path)]);
    let results = b.push(&frames, 0);
    let classes: Vec<&Results> = results.iter().filter(|r| r.kind == "classes").collect();
    assert_eq!(classes.len(), frames.len() - LOOK_AHEAD);
    for (i, (result, want)) in classes.iter().zip(&want).enumerate() {
        assert_eq!(result.pts, Some((FRAME * i as u64).nseconds()));
        for c in &result.classes {
            assert!((c.score - want[c.index as usize]).abs() < 1e-6, "frame {i}, {c:?}, expected {want:?}");
            assert_eq!(c.label.as_deref(), Some(["cut", "dissolve", "fade"][c.index as usize]));
        }
    }
}

#[test]
fn events_come_as_messages_and_results_and_at_the_end_of_stream() {
    let folder = Folder::new("events-messages");
    let (fabricated, path) = model(&folder);
    let frames = frames(120);
    let scores = direct(&fabricated, &frames);
    let (high, n) = (threshold(&scores), frames.len());
    let mut b = Bench::new(&[("model", &path), ("threshold", &high), ("low-threshold", &high), ("cooldown", "0")]);
    let results = b.push(&frames, 0);
    let early = b.messages();
    assert!(b.h.push_event(gst::event::Eos::new()));
    let late = b.messages();
    assert!(early.len() > 2, "{early:?}");
    let events: Vec<Told> =
        results.iter().filter_map(|r| r.event.as_ref()).map(|e| (e.kind.clone(), e.start, e.end, e.score)).collect();
    assert_eq!(events, early, "the buffers' results and the messages tell the same");
    // What the scores say, frame by frame: lasting classes reach the threshold inside of their events and nowhere else,
    // unless a cut of more stands there.
    let high: f64 = high.parse().expect("a number");
    let told: Vec<Told> = early.into_iter().chain(late).collect();
    let frame = |ns: u64| (ns / FRAME.nseconds()) as usize;
    // Nothing can come before the first frame.
    for (t, p) in scores.iter().enumerate().skip(1) {
        let lasting = p[1].max(p[2]);
        let at = told.iter().find(|e| frame(e.1) < t && t < frame(e.2).max(frame(e.1) + 2));
        if lasting >= high && !told.iter().any(|e| e.0 == "cut" && e.3 > lasting && frame(e.2).abs_diff(t) < 40) {
            assert!(at.is_some_and(|e| e.0 != "cut") || t + 1 == n, "frame {t} of {p:?} is in none of {told:?}");
        }
    }
    for (kind, start, end, score) in &told {
        // What is there from the first frame on has nothing before it.
        let first = if *start == 0 { 0 } else { frame(*start) + 1 };
        let inside = first..frame(*end).max(frame(*start) + 2).min(n);
        let column = |i: usize| scores[inside.clone()].iter().map(|p| p[i]).fold(0.0, f64::max);
        let largest = if kind == "cut" { column(0) } else { column(1).max(column(2)) };
        assert!((largest - score).abs() < 1e-6, "{kind} {start} {end}: {score}, expected {largest}");
    }
}

#[test]
fn a_second_element_goes_on_with_what_is_open() {
    let folder = Folder::new("events-hand-over");
    let (fabricated, path) = model(&folder);
    let frames = frames(90);
    let high = threshold(&direct(&fabricated, &frames));
    let rules = [("model", &*path), ("threshold", &*high), ("low-threshold", &*high)];
    let whole = {
        let mut b = Bench::new(&rules);
        let results = b.push(&frames, 0);
        b.h.push_event(gst::event::Eos::new());
        (results, b.messages())
    };
    assert!(whole.1.len() > 2);
    for cut in [1, 17, 44, 88] {
        let state = folder.file(&format!("state-{cut}"));
        let (mut results, mut messages) = {
            let mut b = Bench::new(&[&rules[..], &[("state-out", &state)]].concat());
            let results = b.push(&frames[..cut], 0);
            b.h.push_event(gst::event::Eos::new());
            (results, b.messages())
        };
        let mut b = Bench::new(&[&rules[..], &[("state-in", &state)]].concat());
        results.extend(b.push(&frames[cut..], cut as u64));
        b.h.push_event(gst::event::Eos::new());
        messages.extend(b.messages());
        assert_eq!(messages, whole.1, "cut at {cut}");
        let strip = |r: &[Results]| r.iter().map(|r| (r.pts, r.classes.clone(), r.event.clone())).collect::<Vec<_>>();
        assert_eq!(strip(&results), strip(&whole.0), "cut at {cut}");
    }
}

#[test]
fn a_flush_begins_anew() {
    let folder = Folder::new("events-flush");
    let (_, path) = model(&folder);
    let frames = frames(20);
    let mut b = Bench::new(&[("model", &path)]);
    let first = b.push(&frames, 0);
    b.h.push_event(gst::event::FlushStart::new());
    b.h.push_event(gst::event::FlushStop::new(true));
    b.h.push_event(gst::event::Segment::new(&gst::FormattedSegment::<ClockTime>::new()));
    let second = b.push(&frames, 0);
    let strip = |r: &[Results]| r.iter().map(|r| (r.pts, r.classes.clone(), r.event.clone())).collect::<Vec<_>>();
    assert_eq!(strip(&first), strip(&second));
    assert!(b.element.property::<u64>("resets") > 0);
}

/// By all frames without inference, those of a hole in the stream among them.
#[test]
fn the_state_ages_by_the_frames_without_inference() {
    let folder = Folder::new("events-interval");
    let (fabricated, path) = model(&folder);
    let frames = frames(61);
    let (seen, mut missing) = (frames.iter().step_by(4).cloned().collect::<Vec<_>>(), vec![3.0; 16]);
    // Five frames do not come at all, behind the first that the model sees of the second part.
    (missing[0], missing[9]) = (0.0, 8.0);
    let want = every(&fabricated, &seen, &missing);
    let mut b = Bench::new(&[("model", &path), ("inference-interval", "4")]);
    let mut results = b.push(&frames[..33], 0);
    results.extend(b.push(&frames[33..], 38));
    let classes: Vec<&Results> = results.iter().filter(|r| r.kind == "classes").collect();
    assert_eq!(classes.len(), seen.len() - LOOK_AHEAD);
    for (i, (result, want)) in classes.iter().zip(&want).enumerate() {
        for c in &result.classes {
            assert!((c.score - want[c.index as usize]).abs() < 1e-5, "step {i}, {c:?}, expected {want:?}");
        }
    }
}

/// At 50 frames a second a model of 25 looks at every second one.
#[test]
fn fast_video_is_seen_at_the_trained_rate() {
    let folder = Folder::new("events-rate");
    let (_, path) = model(&folder);
    let frames = frames(20);
    let mut b = Bench::new(&[("model", &path)]);
    let slow = b.push(&frames, 0);
    let mut fast = Bench::new(&[("model", &path)]);
    fast.h.set_src_caps_str("video/x-raw,format=RGB,width=32,height=18,framerate=50/1");
    let mut results = Vec::new();
    for (i, frame) in frames.iter().flat_map(|f| [f, f]).enumerate() {
        let mut buffer = gst::Buffer::from_mut_slice(frame.clone());
        buffer.get_mut().expect("a new buffer").set_pts(FRAME * i as u64 / 2);
        fast.h.push(buffer).expect("flows");
        results.extend(Results::of(&fast.h.pull().expect("a buffer comes out")));
    }
    let strip = |r: &[Results]| r.iter().map(|r| (r.pts, r.classes.clone(), r.event.clone())).collect::<Vec<_>>();
    assert_eq!(strip(&slow), strip(&results));
}

#[test]
fn a_model_of_sound_is_refused() {
    let folder = Folder::new("events-refused");
    let (_, path) = folder.model("cleanumamba", 3);
    let element = make("ssmevents", &[("model", &path)]);
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    assert!(element.set_state(gst::State::Ready).is_err());
    let text = complaint(&bus, gst::MessageType::Error);
    assert!(text.contains("expected a model from frames to class scores"), "{text}");
}

/// What the end of stream decides is written as a line, too.
#[test]
fn every_event_is_a_line() {
    let folder = Folder::new("events-lines");
    let (_, path) = model(&folder);
    for n in [7, 8, 9, 10, 11, 30] {
        let lines = folder.file("lines.jsonl");
        let messages = run(&format!(
            "videotestsrc num-buffers={n} pattern=smpte100 ! video/x-raw,format=RGB,width=32,height=18,framerate=25/1 ! \
             ssmevents model={path} threshold=0.01 low-threshold=0.005 cooldown=0 frame-scores=false ! ssmjson ! \
             filesink location={lines}"
        ));
        let messages = messages.iter().filter(|s| s.name() == "ssm-event");
        let told: Vec<(u64, u64)> =
            messages.map(|s| (s.get("start").expect("ns"), s.get("end").expect("ns"))).collect();
        let text = std::fs::read_to_string(&lines).expect("lines");
        let values: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
        let steps = values.iter().map(|v| v["step"].as_u64().expect("a number"));
        assert!(steps.into_iter().all(|step| (1..=n).contains(&step)), "{n} frames: {text}");
        let written: Vec<(u64, u64)> = values
            .iter()
            .map(|v| (v["event"]["start"].as_u64().expect("ns"), v["event"]["end"].as_u64().expect("ns")))
            .collect();
        assert!(!told.is_empty(), "{n} frames");
        assert_eq!(written, told, "{n} frames");
    }
}

/// The frames before a reset are whole: those that the scores have not come to are looked at as at the end of stream.
#[test]
fn a_reset_first_tells_what_is_inside() {
    let folder = Folder::new("events-reset");
    let (fabricated, path) = model(&folder);
    let frames = frames(30);
    let threshold = threshold(&direct(&fabricated, &frames));
    let properties = [("model", path.as_str()), ("threshold", threshold.as_str()), ("cooldown", "0")];
    let mut told = 0;
    for n in 20..30 {
        let mut whole = Bench::new(&properties);
        whole.push(&frames[..n], 0);
        whole.h.push_event(gst::event::Eos::new());
        let want = whole.messages();
        let mut b = Bench::new(&properties);
        b.push(&frames[..n], 0);
        let before = b.messages();
        b.element.emit_by_name::<()>("reset-state", &[]);
        b.push(&frames[..1], n as u64);
        let behind = b.messages();
        told += behind.len();
        assert_eq!([before, behind].concat(), want, "after {n} frames");
    }
    assert!(told > 0, "nothing was inside");
}
