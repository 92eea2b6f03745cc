//! What outlives a stream: nothing. An element that played, stopped, was flushed or renegotiated gives what a fresh one
//! gives; results that no buffer carries are not lost; threads and files do not pile up.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use gstssm::Results;
use ssm_tests::Rng;
use ssm_tests::audio::{bytes, caps};
use ssm_tests::element::{Folder, make};
use std::process::Command;

const RULES: [(&str, &str); 3] = [("threshold", "0.01"), ("low-threshold", "0.005"), ("cooldown", "0")];

/// A frame of a colour and size, at its time.
fn frame(shade: usize, height: usize, at: u64) -> gst::Buffer {
    let mut buffer = gst::Buffer::from_mut_slice(vec![(shade * 61 % 256) as u8; 32 * 3 * height]);
    buffer.get_mut().expect("a new buffer").set_pts(ClockTime::from_mseconds(40 * at));
    buffer
}

struct Watching {
    h: Harness,
    element: gst::Element,
    bus: gst::Bus,
}

impl Watching {
    fn new(factory: &str, properties: &[(&str, &str)]) -> Self {
        let element = make(factory, properties);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let h = Harness::with_element(&element, Some("sink"), Some("src"));
        let mut w = Self { h, element, bus };
        w.size(18);
        w
    }

    fn size(&mut self, height: usize) {
        self.h.set_src_caps_str(&format!("video/x-raw,format=RGB,width=32,height={height},framerate=25/1"));
    }

    /// Pushes frames whose shade changes every seven, and gives their results without names.
    fn look(&mut self, frames: std::ops::Range<usize>, height: usize) -> Vec<Results> {
        let mut results = vec![];
        for i in frames {
            self.h.push(frame(i / 7, height, i as u64)).expect("flows");
            results.extend(Results::of(&self.h.pull().expect("a frame comes out")));
        }
        results.iter_mut().for_each(|r| r.element = Default::default());
        results
    }

    /// Stops and starts, and begins the stream again.
    fn cycle(&mut self) {
        for state in [gst::State::Ready, gst::State::Playing] {
            self.element.set_state(state).expect("it changes");
        }
        self.h.push_event(gst::event::StreamStart::new("again"));
        self.size(18);
    }

    fn flush(&mut self) {
        self.h.push_event(gst::event::FlushStart::new());
        self.h.push_event(gst::event::FlushStop::new(true));
        self.h.push_event(gst::event::Segment::new(&gst::FormattedSegment::<ClockTime>::new()));
    }

    /// Results that went ahead of events.
    fn late(&mut self) -> Vec<Results> {
        let events = std::iter::from_fn(|| self.h.try_pull_event());
        let results = events.filter_map(|e| Results::of_late(e.structure()?)).flatten();
        results.map(|r| Results { element: Default::default(), ..r }).collect()
    }

    fn told(&self) -> usize {
        let messages = std::iter::from_fn(|| self.bus.pop_filtered(&[gst::MessageType::Element]));
        messages.filter(|m| m.structure().is_some_and(|s| s.name() == "ssm-event")).count()
    }
}

#[test]
fn a_second_stream_is_as_the_first() {
    let folder = Folder::new("second");
    let (_, vim) = folder.model("vim", 3);
    let rules: Vec<(&str, &str)> = [&RULES[..], &[("inference-interval", "3")]].concat();
    for (factory, properties) in
        [("ssmevents", &RULES[..]), ("ssmevents", &rules), ("ssmclassify", &[("model", &vim), ("carry", "true")])]
    {
        let fresh = Watching::new(factory, properties).look(0..30, 18);
        assert!(!fresh.is_empty());
        for (what, again) in [
            ("stop and start", Box::new(Watching::cycle) as Box<dyn Fn(&mut Watching)>),
            ("a flush", Box::new(Watching::flush)),
            (
                "end of stream, then a flush",
                Box::new(|w: &mut Watching| {
                    w.h.push_event(gst::event::Eos::new());
                    w.flush();
                }),
            ),
            (
                "other caps and back",
                Box::new(|w: &mut Watching| {
                    w.size(20);
                    w.look(23..28, 20);
                    w.size(18);
                }),
            ),
        ] {
            let mut w = Watching::new(factory, properties);
            w.look(0..23, 18);
            again(&mut w);
            w.late();
            assert_eq!(w.look(0..30, 18), fresh, "{factory} {properties:?} after {what}");
        }
    }
}

/// What a renegotiation, a segment or a reset decides has no buffer left, and goes ahead of it.
#[test]
fn what_is_decided_between_buffers_is_not_lost() {
    let caps = |w: &mut Watching| w.size(20);
    let reset = |w: &mut Watching| {
        let reset = gst::Structure::new_empty("ssm-reset");
        w.h.push_event(gst::event::CustomDownstream::new(reset));
    };
    let segment = |w: &mut Watching| {
        let mut segment = gst::FormattedSegment::<ClockTime>::new();
        segment.set_start(ClockTime::from_seconds(9));
        w.h.push_event(gst::event::Segment::new(&segment));
    };
    for (what, event) in [("caps", &caps as &dyn Fn(&mut Watching)), ("reset", &reset), ("segment", &segment)] {
        let mut w = Watching::new("ssmevents", &RULES);
        let found = w.look(0..30, 18).iter().filter(|r| r.event.is_some()).count();
        w.late();
        event(&mut w);
        let late = w.late().iter().filter(|r| r.event.is_some()).count();
        assert!(late > 0, "{what}: nothing was open");
        assert_eq!(found + late, w.told(), "{what}: every message has its result");
    }
}

#[test]
fn requests_do_not_outlive_their_stream() {
    let folder = Folder::new("requests");
    let (_, model) = folder.model("band_mask", 3);
    let state = folder.file("state");
    let samples = Rng::new(1).normals(3000, 0.1);
    let run = |element: &gst::Element, h: &mut Harness, part: &[f32]| {
        h.push_event(gst::event::StreamStart::new("again"));
        h.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
        h.push(gst::Buffer::from_slice(bytes(part))).expect("flows");
        h.push_event(gst::event::Eos::new());
        element.set_state(gst::State::Ready).expect("it stops");
        let pieces = std::iter::from_fn(|| h.try_pull());
        pieces.flat_map(|b| b.map_readable().expect("readable").to_vec()).collect::<Vec<u8>>()
    };
    let start = |properties: &[(&str, &str)]| {
        let element = make("ssmdenoise", &[&[("model", &*model)], properties].concat());
        let h = Harness::with_element(&element, Some("sink"), Some("src"));
        (element, h)
    };
    let (element, mut h) = start(&[]);
    let whole = run(&element, &mut h, &samples);
    let fresh = {
        element.set_state(gst::State::Playing).expect("it plays");
        run(&element, &mut h, &samples[1500..])
    };
    let (element, mut h) = start(&[("state-out", &state)]);
    let first = run(&element, &mut h, &samples[..1500]);
    let (element, mut h) = start(&[("state-in", &state)]);
    // Asked of a stream that never came.
    element.emit_by_name::<()>("reset-state", &[]);
    element.set_state(gst::State::Ready).expect("it stops");
    element.set_state(gst::State::Playing).expect("it plays");
    let second = run(&element, &mut h, &samples[1500..]);
    assert!([first, second].concat() == whole, "a reset of the stream before undid the state");
    // A state that no stream took is not the next one's.
    let (element, mut h) = start(&[("state-in", &state)]);
    element.set_state(gst::State::Ready).expect("it stops");
    element.set_property("state-in", None::<&str>);
    element.set_state(gst::State::Playing).expect("it plays");
    assert!(run(&element, &mut h, &samples[1500..]) == fresh, "the state of the stream before was taken");
}

#[test]
fn the_same_caps_again_begin_nothing() {
    let folder = Folder::new("same-caps");
    let (_, model) = folder.model("band_mask", 3);
    let samples = Rng::new(2).normals(2000, 0.1);
    let run = |again: bool| {
        let element = make("ssmdenoise", &[("model", &model)]);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
        for part in samples.chunks(333) {
            h.push(gst::Buffer::from_slice(bytes(part))).expect("flows");
            if again {
                h.push_event(gst::event::Caps::new(&caps("F32LE", 16_000, 1)));
            }
        }
        h.push_event(gst::event::Eos::new());
        let pieces = std::iter::from_fn(|| h.try_pull());
        pieces.flat_map(|b| b.map_readable().expect("readable").to_vec()).collect::<Vec<u8>>()
    };
    assert!(run(true) == run(false));
}

/// Threads of ours, and open files. GStreamer keeps some of its own threads for later.
fn threads_and_files() -> (usize, usize) {
    let list = |folder| std::fs::read_dir(folder).expect("a Linux system").flatten();
    let ours = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("ssm"))
    };
    (list("/proc/self/task").filter(ours).count(), list("/proc/self/fd").count())
}

/// In a process of its own, where no other test opens files and starts threads.
#[test]
fn fifty_cycles_leave_no_thread_and_no_file() {
    const ALONE: &str = "SSM_TEST_CYCLES";
    if std::env::var_os(ALONE).is_none() {
        let test = std::env::current_exe().expect("this test has a file");
        let child = Command::new(test)
            .args(["--exact", "fifty_cycles_leave_no_thread_and_no_file", "--test-threads=1"])
            .env(ALONE, "1")
            .output()
            .expect("a second process");
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        return;
    }
    let folder = Folder::new("cycles");
    let (_, vim) = folder.model("vim", 3);
    let state = folder.file("state");
    let line = format!(
        "audiotestsrc num-buffers=8 ! audio/x-raw,format=F32LE,rate=16000,channels=2 ! ssmvad name=vad state-out={state} ! \
         ssmdenoise ! fakesink videotestsrc num-buffers=3 ! video/x-raw,format=RGB,width=32,height=18 ! \
         ssmclassify model={vim} threads=2 ! ssmevents ! ssmoverlay ! ssmjson ! fakesink"
    );
    ssm_tests::element::init();
    let pipeline = gst::parse::launch(&line).expect("the line parses");
    let bus = pipeline.bus().expect("a pipeline has a bus");
    let mut before = (0, 0);
    for cycle in 0..50 {
        // Some end by themselves, some in the middle.
        pipeline.set_state(gst::State::Playing).expect("it plays");
        let kinds: &[_] = if cycle % 2 == 0 {
            &[gst::MessageType::Eos, gst::MessageType::Error]
        } else {
            &[gst::MessageType::AsyncDone, gst::MessageType::Error]
        };
        let message = bus.timed_pop_filtered(ClockTime::from_seconds(60), kinds).expect("it goes on");
        assert_ne!(message.type_(), gst::MessageType::Error, "{message:?}");
        let down = if cycle % 3 == 0 { gst::State::Null } else { gst::State::Ready };
        pipeline.set_state(down).expect("it stops");
        bus.set_flushing(true);
        bus.set_flushing(false);
        if cycle == 9 {
            pipeline.set_state(gst::State::Null).expect("it stops");
            before = threads_and_files();
        }
    }
    pipeline.set_state(gst::State::Null).expect("it stops");
    let after = threads_and_files();
    assert!(after.0 == 0 && after.1 <= before.1, "threads and files: {before:?}, then {after:?}");
}
