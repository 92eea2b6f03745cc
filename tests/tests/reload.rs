//! Another model for an element that plays: no frame and no sample is lost, the state stays where it can, and what cannot
//! take over leaves the old model at work.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use gstssm::Results;
use ssm_models::frontend::image::{ImagePlan, PixelFormat, Plane};
use ssm_models::kernels::{CpuLevel, Cx, activation::softmax};
use ssm_models::{AudioStream, Engine, Listener, Model, Options, Output, Row, Scratch, Signal, SnapshotHeader, open};
use ssm_tests::Rng;
use ssm_tests::audio::{Listening, bytes, caps};
use ssm_tests::element::{Folder, complaint, make, rgb};
use ssm_tests::fabricate::Fabricated;
use std::sync::Arc;
use std::time::Duration;

const WIDTH: usize = 32;
const HEIGHT: usize = 24;
const RELOAD: (&str, &str) = ("allow-reload", "true");

/// The same network with other weights: its state means the same.
fn retrained(model: &Fabricated, folder: &Folder) -> String {
    let mut other = model.clone();
    for (_, values) in other.tensors.values_mut() {
        values.iter_mut().for_each(|v| *v *= 1.01);
    }
    let path = folder.file("retrained.safetensors");
    std::fs::write(&path, other.bytes()).expect("a temporary file");
    path
}

/// A model took over: `kept` or `reset`, and whether a latency was announced with it.
type Switch = (String, bool);

fn took_over(bus: &gst::Bus) -> Option<Switch> {
    let (mut state, mut latency) = (None, false);
    while let Some(message) = bus.pop() {
        latency |= message.type_() == gst::MessageType::Latency;
        let s = message.structure().filter(|s| s.name() == "ssm-model" && s.get("reloaded") == Ok(true));
        if let Some(s) = s {
            assert!(state.replace(s.get("state").expect("what became of the state")).is_none(), "told twice");
        }
    }
    state.map(|state| (state, latency))
}

/// Feeds the element until the new model has taken over, and then some more. Returns which turn was the first under it.
fn feed(bus: &gst::Bus, mut turn: impl FnMut(usize), more: usize) -> (usize, Switch) {
    for n in 0..20_000 {
        turn(n);
        if let Some(switch) = took_over(bus) {
            (n + 1..n + 1 + more).for_each(&mut turn);
            return (n, switch);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the new model never took over");
}

fn bus(element: &gst::Element) -> gst::Bus {
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    bus
}

/// A frame of the `n`th turn.
fn picture(n: usize) -> Vec<u8> {
    let mut rng = Rng::new(n as u64);
    (0..WIDTH * HEIGHT * 3).map(|_| rng.range(0, 255) as u8).collect()
}

/// Frames through a model, on a state that is handed on.
struct Direct {
    model: Arc<dyn Model>,
    rows: [Row; 1],
    plan: ImagePlan,
}

impl Direct {
    fn new(path: &str) -> Self {
        let model = open(path, &Options { carry: true, ..Options::default() }).expect("it opens");
        let Signal::Image { height, width, .. } = model.info().input else { panic!("no frames") };
        let plan = ImagePlan::new((HEIGHT, WIDTH), PixelFormat::Rgb, (height, width)).expect("the sizes are fine");
        Self { rows: [Row::new(&*model, 1)], model, plan }
    }

    fn classes(&mut self, frame: &[u8]) -> Vec<f64> {
        let cx = Cx::at(CpuLevel::best(), 1);
        let plane = Plane { data: frame, stride: WIDTH * 3 };
        self.plan.run(&cx, &[plane], &mut self.rows[0].x).expect("a whole frame");
        self.model.forward(&cx, &mut self.rows, 1, &mut Scratch::default());
        let mut y = self.rows[0].y.clone();
        softmax(&mut y);
        y.iter().map(|v| f64::from(*v)).collect()
    }
}

#[test]
fn frames_go_on_under_another_model() {
    let folder = Folder::new("reload-frames");
    let (a, path) = folder.model("vim", 3);
    let (_, other) = folder.model("vim", 4);
    for (next, expected) in [(retrained(&a, &folder), "kept"), (other, "reset")] {
        let properties = [("model", &*path), ("carry", "true"), ("top-k", "1000"), RELOAD];
        let element = make("ssmclassify", &properties);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        let caps = rgb(WIDTH, HEIGHT);
        h.set_caps(caps.clone(), caps);
        let bus = bus(&element);
        let mut got = vec![];
        let turn = |n: usize| {
            if n == 3 {
                element.set_property("model", &next);
            }
            let mut buffer = gst::Buffer::from_mut_slice(picture(n));
            buffer.get_mut().expect("a new buffer").set_pts(ClockTime::from_mseconds(40 * n as u64));
            h.push(buffer).expect("flows");
            let buffer = h.pull().expect("a frame comes out for each that goes in");
            let mut classes = Results::of(&buffer).remove(0).classes;
            classes.sort_by_key(|c| c.index);
            got.push(classes.iter().map(|c| c.score).collect::<Vec<_>>());
        };
        let (switch, (state, _)) = feed(&bus, turn, 4);
        assert!(state == expected && switch >= 3, "{state}, turn {switch}");
        let (mut old, mut new) = (Direct::new(&path), Direct::new(&next));
        for (n, got) in got.iter().enumerate() {
            if n == switch && expected == "kept" {
                new.rows[0].state.clone_from(&old.rows[0].state);
            }
            let want = if n < switch { old.classes(&picture(n)) } else { new.classes(&picture(n)) };
            assert_eq!(*got, want, "{expected}: frame {n}, the switch was at {switch}");
        }
        assert_eq!(element.property::<u64>("steps"), got.len() as u64);
        assert_eq!(element.property::<u64>("resets"), u64::from(expected == "reset"));
        assert_eq!(element.property::<String>("model"), next);
    }
}

/// Interleaved samples of the `n`th turn: as many as no hop divides.
fn clip(n: usize) -> Vec<f32> {
    Rng::new(n as u64).normals(2 * 97, 0.1)
}

fn audio(path: &str) -> AudioStream {
    let engine = Engine::start(
        open(path, &Options::default()).expect("it opens"),
        Cx::at(CpuLevel::best(), 1),
        1,
        Duration::ZERO,
    );
    AudioStream::new(&engine, 2).expect("samples to samples")
}

#[test]
fn samples_go_on_under_another_model() {
    let folder = Folder::new("reload-samples");
    let (a, path) = folder.model("cleanumamba", 1);
    let (_, other) = folder.model("band_mask", 2);
    for (next, expected) in [(retrained(&a, &folder), "kept"), (other, "reset")] {
        let element = make("ssmdenoise", &[("model", &path), RELOAD]);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_caps(caps("F32LE", 16_000, 2), caps("F32LE", 16_000, 2));
        let bus = bus(&element);
        let before: u64 = element.property("latency-ns");
        let (mut out, mut end, mut turns) = (Vec::new(), ClockTime::ZERO, 0);
        let time = |n: usize| ClockTime::from_nseconds(97 * n as u64 * 1_000_000_000 / 16_000);
        let mut pull = |h: &mut Harness| {
            while let Some(buffer) = h.try_pull() {
                let pts = buffer.pts().expect("a time");
                assert!(pts.absdiff(end) <= ClockTime::from_nseconds(1), "{pts} does not follow {end}");
                end = pts + buffer.duration().expect("a duration");
                out.extend_from_slice(&buffer.map_readable().expect("readable"));
            }
        };
        let turn = |n: usize| {
            if n == 5 {
                element.set_property("model", &next);
            }
            let mut buffer = gst::Buffer::from_slice(bytes(&clip(n)));
            buffer.get_mut().expect("a new buffer").set_pts(time(n));
            h.push(buffer).expect("flows");
            pull(&mut h);
            turns = n + 1;
        };
        let (switch, (state, told)) = feed(&bus, turn, 20);
        assert!(state == expected && switch >= 5, "{state}, turn {switch}");
        h.push_event(gst::event::Eos::new());
        pull(&mut h);
        let (mut old, mut new, mut want) = (audio(&path), audio(&next), Vec::new());
        (0..switch).for_each(|n| old.push(&clip(n), &mut want).expect("runs"));
        if expected == "kept" {
            new.restore(old.snapshot(SnapshotHeader::default())).expect("the states are alike");
        } else {
            old.drain(&mut want);
        }
        (switch..turns).for_each(|n| new.push(&clip(n), &mut want).expect("runs"));
        new.drain(&mut want);
        assert_eq!(want.len(), turns * 2 * 97, "the judge loses nothing");
        assert!(out == bytes(&want), "{expected}: samples differ, the switch was at {switch} of {turns}");
        let after: u64 = element.property("latency-ns");
        assert_eq!(before != after, expected == "reset", "these models differ in latency");
        assert_eq!(told, before != after, "{expected}: another latency is announced");
        assert_eq!(h.query_latency(), Some(ClockTime::from_nseconds(after)));
    }
}

#[test]
fn a_hop_that_was_begun_goes_to_the_new_model_whole() {
    let folder = Folder::new("reload-hops");
    let (_, next) = (0..)
        .map(|seed| folder.model("band_mask", seed))
        .find(|(f, _)| f.tensors.contains_key("vad.weight"))
        .expect("one that tells speech");
    let mut l = Listening::new("ssmvad", &[RELOAD], "F32LE", 16_000, 1);
    let (element, judge) = (l.element.clone(), l.bus().clone());
    let mut taken = vec![];
    let (switch, (state, _)) = feed(
        &judge,
        |n| {
            if n == 5 {
                element.set_property("model", &next);
            }
            let pts = l.time(taken.len());
            taken.extend_from_slice(&clip(n));
            l.push(&bytes(&clip(n)), Some(pts)).expect("flows");
        },
        30,
    );
    assert_eq!(state, "reset");
    let listener = |path: &str| {
        let options = Options { output: Output::Speech, ..Options::default() };
        let model = open(path, &options).expect("it opens");
        Listener::new(&Engine::start(model, Cx::at(CpuLevel::best(), 1), 1, Duration::ZERO)).expect("it tells speech")
    };
    let (mut old, mut new, mut want) = (listener("builtin:denoise"), listener(&next), vec![]);
    old.push(&taken[..switch * 194], &mut want).expect("runs");
    let begun = switch * 194 - old.held();
    let of_old = want.len();
    new.push(&taken[begun..], &mut want).expect("runs");
    let want: Vec<f64> = want.iter().map(|y| f64::from(1.0 / (1.0 + (-y).exp()))).collect();
    let got: Vec<f64> = l.results.iter().map(|r| r.speech.expect("a probability")).collect();
    assert!(old.held() > 0 || switch % 80 == 0, "a hop was under way");
    assert!(got == want, "the switch was at {switch}");
    // The steps of the new one are numbered anew, and begin where the last whole hop of the old one ended.
    assert_eq!(l.results[of_old].step, 1);
    let at = l.time(begun - new.delay()).nseconds();
    assert_eq!(l.results[of_old].pts, Some(at));
}

#[test]
fn what_cannot_take_over_leaves_the_old_one() {
    let folder = Folder::new("reload-bad");
    let (_, audio) = folder.model("cleanumamba", 1);
    let (_, vision) = folder.model("vim", 1);
    let (_, slower) = folder.model("attenuate", 1);
    let cases = [
        ("/nowhere/clean.safetensors".to_owned(), "/nowhere/clean.safetensors"),
        (vision, "vim"),
        ("builtin:nothing".into(), "nothing"),
        (slower, "16000 Hz"),
    ];
    for (next, part) in cases {
        let mut l = Listening::new("ssmdenoise", &[("model", &audio), RELOAD], "F32LE", 16_000, 1);
        let samples = Rng::new(1).normals(3000, 0.1);
        let push = |h: &mut Harness, from: usize, to: usize| {
            let mut buffer = gst::Buffer::from_slice(bytes(&samples[from..to]));
            buffer.get_mut().expect("a new buffer").set_pts(ClockTime::from_nseconds(from as u64 * 62_500));
            h.push(buffer).expect("flows");
        };
        push(&mut l.h, 0, 1000);
        l.element.set_property("model", &next);
        let text = complaint(l.bus(), gst::MessageType::Warning);
        assert!(text.contains(part) && text.contains(&format!("{audio} goes on")), "{text:?} lacks {part}");
        push(&mut l.h, 1000, 3000);
        l.h.push_event(gst::event::Eos::new());
        let (mut got, mut want) = (Vec::new(), Vec::new());
        while let Some(buffer) = l.h.try_pull() {
            got.extend_from_slice(&buffer.map_readable().expect("readable"));
        }
        let mut judge = AudioStream::new(
            &Engine::start(
                open(&audio, &Options::default()).expect("it opens"),
                Cx::at(CpuLevel::best(), 1),
                1,
                Duration::ZERO,
            ),
            1,
        )
        .expect("samples to samples");
        judge.push(&samples, &mut want).expect("runs");
        judge.drain(&mut want);
        assert!(got == bytes(&want), "{next}: the old model goes on as if nothing had been");
        assert_eq!(l.element.property::<String>("model"), audio);
        assert!(took_over(l.bus()).is_none());
    }
}

#[test]
fn without_leave_it_waits_for_the_next_start() {
    let folder = Folder::new("reload-leave");
    let ((_, first), (_, second)) = (folder.model("cleanumamba", 1), folder.model("cleanumamba", 2));
    let element = make("ssmdenoise", &[("model", &first)]);
    let bus = bus(&element);
    let opened = || {
        let message = bus.pop_filtered(&[gst::MessageType::Element]).expect("a model is told");
        message.structure().and_then(|s| s.get::<String>("file").ok()).expect("its file")
    };
    element.set_state(gst::State::Ready).expect("it opens");
    assert_eq!(opened(), first);
    // In READY nothing flows: the next start takes the new one, and nobody is warned.
    element.set_property("model", &second);
    element.set_state(gst::State::Paused).expect("it opens");
    assert_eq!(opened(), second);
    assert!(bus.pop_filtered(&[gst::MessageType::Warning]).is_none());
    element.set_property("model", &first);
    assert!(complaint(&bus, gst::MessageType::Warning).contains("allow-reload"));
    assert!(bus.pop_filtered(&[gst::MessageType::Element]).is_none());
    element.set_state(gst::State::Ready).expect("down");
    element.set_state(gst::State::Paused).expect("up");
    assert_eq!(opened(), first);
    element.set_state(gst::State::Null).expect("back to NULL");
}

#[test]
fn a_file_that_was_replaced_in_its_folder_is_another_model() {
    let folder = Folder::new("reload-folder");
    let (model, _) = folder.model("cleanumamba", 4);
    let place = folder.file("published");
    std::fs::create_dir(&place).expect("a temporary folder");
    std::fs::write(folder.file("published/model.safetensors"), model.bytes()).expect("a temporary file");
    let samples = Rng::new(3).normals(1600, 0.1);
    let start = || {
        let mut h = Harness::with_element(&make("ssmdenoise", &[("model", &place)]), Some("sink"), Some("src"));
        h.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
        h
    };
    let denoised = |h: &mut Harness| {
        h.push(gst::Buffer::from_slice(bytes(&samples))).expect("flows");
        h.pull().expect("something comes out").map_readable().expect("readable").to_vec()
    };
    let (mut first, mut second) = (start(), start());
    let before = denoised(&mut first);
    assert_eq!(denoised(&mut second), before);
    // The folder's own time stays.
    std::fs::copy(retrained(&model, &folder), folder.file("published/model.safetensors")).expect("it is copied");
    let mut third = start();
    assert_ne!(denoised(&mut third), before);
}
