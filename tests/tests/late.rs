//! Frames that cannot wait: late ones (QoS) and those whose engine is busy pass without inference, the state ages, and
//! the element tells.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use gstssm::Results;
use serde_json::json;
use ssm_models::frontend::image::{ImagePlan, PixelFormat, Plane};
use ssm_models::kernels::{CpuLevel, Cx, activation::softmax};
use ssm_models::{Engine, Facts, Info, Model, Options, Row, Scratch, Signal, StateLayout, open};
use ssm_tests::Rng;
use ssm_tests::element::{Folder, make, rgb};
use ssm_tests::fabricate::composite;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SIDE: usize = 24;

fn time(frame: u64) -> ClockTime {
    ClockTime::from_mseconds(40 * frame)
}

/// Frames go in, and come out as they were.
struct Bench {
    h: Harness,
    element: gst::Element,
    bus: gst::Bus,
}

impl Bench {
    fn new(factory: &str, properties: &[(&str, &str)]) -> Self {
        let element = make(factory, properties);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        let caps = rgb(SIDE, SIDE);
        h.set_caps(caps.clone(), caps);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        Self { h, element, bus }
    }

    fn push(&mut self, n: u64) -> Vec<Results> {
        let bytes = picture(n);
        let mut buffer = gst::Buffer::from_mut_slice(bytes.clone());
        let edit = buffer.get_mut().expect("a new buffer");
        edit.set_pts(time(n));
        edit.set_duration(time(1));
        self.h.push(buffer).expect("flows");
        let buffer = self.h.pull().expect("each frame comes out");
        assert!(*buffer.map_readable().expect("readable") == *bytes && buffer.pts() == Some(time(n)));
        Results::of(&buffer)
    }

    /// The sink is so far behind: frames up to `until` are late.
    fn behind(&mut self, until: ClockTime) {
        let event = gst::event::Qos::builder(gst::QOSType::Underflow, 1.5, until.nseconds() as i64 - 1_000);
        self.h.push_upstream_event(event.timestamp(ClockTime::from_nseconds(1_000)).build());
    }

    fn count(&self, name: &str) -> u64 {
        self.element.property(name)
    }
}

fn picture(n: u64) -> Vec<u8> {
    let mut rng = Rng::new(n);
    (0..SIDE * SIDE * 3).map(|_| rng.range(0, 255) as u8).collect()
}

/// The classes of frames that a model sees (true) or that it only lets go by.
fn judge(path: &str, seen: &[bool]) -> Vec<Option<Vec<f64>>> {
    let model = open(path, &Options { carry: true, ..Options::default() }).expect("it opens");
    let Signal::Image { height, width, .. } = model.info().input else { panic!("no frames") };
    let (rgb, facts) = (PixelFormat::Rgb, &model.info().facts);
    let mut plan =
        ImagePlan::with_pixels((SIDE, SIDE), rgb, (height, width), &facts.pixels).expect("the sizes are fine");
    let (cx, mut rows) = (Cx::at(CpuLevel::best(), 1), [Row::new(&*model, 1)]);
    let of = |(n, seen): (usize, &bool)| {
        if !seen {
            model.gap(&mut rows[0].state, 1.0);
            return None;
        }
        plan.run(&cx, &[Plane { data: &picture(n as u64), stride: SIDE * 3 }], &mut rows[0].x).expect("a whole frame");
        model.forward(&cx, &mut rows, 1, &mut Scratch::default());
        let mut y = rows[0].y.clone();
        softmax(&mut y);
        Some(y.iter().map(|v| f64::from(*v)).collect())
    };
    seen.iter().enumerate().map(of).collect()
}

fn by_class(results: &[Results]) -> Option<Vec<f64>> {
    let mut classes = results.first()?.classes.clone();
    classes.sort_by_key(|c| c.index);
    Some(classes.iter().map(|c| c.score).collect())
}

#[test]
fn late_frames_pass_without_inference() {
    let folder = Folder::new("late");
    let (_, path) = folder.model("vim", 3);
    for qos in [true, false] {
        let properties =
            [("model", &*path), ("carry", "true"), ("top-k", "1000"), ("qos", if qos { "true" } else { "false" })];
        let mut b = Bench::new("ssmclassify", &properties);
        let mut got = vec![by_class(&b.push(0))];
        b.behind(time(3));
        got.extend((1..7).map(|n| by_class(&b.push(n))));
        let seen = [true, !qos, !qos, !qos, true, true, true];
        assert_eq!(got, judge(&path, &seen), "qos {qos}");
        assert_eq!((b.count("steps"), b.count("dropped")), if qos { (4, 3) } else { (7, 0) });
        let event = std::iter::from_fn(|| b.h.try_pull_upstream_event()).find(|e| e.type_() == gst::EventType::Qos);
        assert!(event.is_some(), "elements upstream hear of it");
        let mut told = vec![];
        while let Some(message) = b.bus.pop() {
            if let gst::MessageView::Qos(q) = message.view() {
                assert_eq!(q.duration(), Some(time(1)));
                assert_eq!(q.values().1, 1.5);
                told.push((q.timestamp(), q.values().0));
            }
        }
        let want = [1, 2, 3].map(|n| (Some(time(n)), (time(3) - time(n)).nseconds() as i64));
        assert_eq!(told, if qos { &want[..] } else { &[] }, "messages");
        // A flush begins a new count of time.
        b.behind(time(50));
        b.h.push_event(gst::event::FlushStart::new());
        b.h.push_event(gst::event::FlushStop::new(true));
        b.h.push_event(gst::event::Segment::new(gst::FormattedSegment::<ClockTime>::new().upcast_ref()));
        assert!(!b.push(8).is_empty(), "not late any more");
    }
}

#[test]
fn every_element_that_looks_passes_late_frames() {
    let folder = Folder::new("late-all");
    let (_, path) = folder.model("vim", 1);
    for (factory, model) in [("ssmclassify", &*path), ("ssmembed", &*path), ("ssmevents", "builtin:shots")] {
        let mut b = Bench::new(factory, &[("model", model), ("qos", "true"), ("inference-interval", "1")]);
        b.push(0);
        b.behind(time(2));
        (1..6).for_each(|n| _ = b.push(n));
        assert_eq!((b.count("steps"), b.count("dropped")), (4, 2), "{factory}");
    }
}

#[test]
fn a_frame_waits_no_longer_than_it_may() {
    // A network that remembers, and tells of the frame that it sees.
    let folder = Folder::new("late-waits");
    let mut rng = Rng::new(11);
    let head = json!({ "kind": "linear", "classes": ["a", "b", "c", "d"], "activation": "softmax" });
    let mut f = composite::scoring(&mut rng, "conv", 3.0, head);
    f.config["input"] = json!({ "height": 90, "width": 160 });
    let path = &*folder.file("waits.safetensors");
    std::fs::write(path, f.bytes()).expect("a temporary file");
    let properties = [("model", path), ("batch-size", "1"), ("top-k", "1000"), ("post-messages", "false")];
    let mut b = Bench::new("ssmclassify", &[&properties[..], &[("max-wait", "1")]].concat());
    // Other streams of the same engine keep it busy until a frame has passed.
    let done = AtomicBool::new(false);
    let mut got = vec![];
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut other = Bench::new("ssmclassify", &properties);
                (0..).take_while(|_| !done.load(Ordering::Relaxed)).for_each(|n| _ = other.push(n));
                assert_eq!(other.count("dropped"), 0, "those that may wait do");
            });
        }
        while b.count("dropped") == 0 && got.len() < 200_000 {
            got.push(by_class(&b.push(got.len() as u64)));
        }
        done.store(true, Ordering::Relaxed);
    });
    b.element.set_property("max-wait", 0u64);
    for _ in 0..10 {
        got.push(by_class(&b.push(got.len() as u64)));
    }
    let seen: Vec<bool> = got.iter().map(Option::is_some).collect();
    let passed = seen.iter().filter(|s| !**s).count() as u64;
    assert!(passed > 0 && seen[seen.len() - 10..].iter().all(|s| *s), "{passed} frames passed");
    assert_eq!(got, judge(path, &seen));
    assert_eq!((b.count("steps"), b.count("dropped")), (got.len() as u64 - passed, passed));
}

/// Adds what comes in to its state, and gives the sum; a forward pass begins when the test lets it.
struct Gated {
    info: Info,
    layout: StateLayout,
    entered: Mutex<Sender<usize>>,
    gate: Mutex<Receiver<()>>,
}

impl Model for Gated {
    fn info(&self) -> &Info {
        &self.info
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&self, _cx: &Cx, rows: &mut [Row], _len: usize, _scratch: &mut Scratch) {
        self.entered.lock().expect("one worker").send(rows.len()).expect("the test listens");
        self.gate.lock().expect("one worker").recv().expect("the test opens the gate");
        for row in rows {
            row.state.data[0] += row.x[0];
            row.state.steps += 1;
            row.y[0] = row.state.data[0];
        }
    }
}

#[test]
fn a_row_that_waits_is_taken_back_and_one_that_runs_is_waited_for() {
    let ((entered, inside), (open, gate)) = (channel(), channel());
    let mut layout = StateLayout::new();
    layout.add("sum", &[1]);
    let info = Info {
        family: "gated",
        facts: Facts::default(),
        sizes: String::new(),
        parameters: 0,
        input: Signal::Vector { dim: 1 },
        output: Signal::Vector { dim: 1 },
        delay: 0,
        hash: String::new(),
    };
    let model = Arc::new(Gated { info, layout, entered: Mutex::new(entered), gate: Mutex::new(gate) });
    let engine = Engine::start(model, Cx::at(CpuLevel::best(), 1), 8, Duration::ZERO);
    let (mut busy, mut hasty) = (engine.stream(1), engine.stream(1));
    let hurry = Duration::from_millis(1);
    let mut ahead = 0.0;
    for round in 0..2000 {
        busy.row().x[0] = 1.0;
        busy.submit(1).expect("goes in");
        assert_eq!(inside.recv(), Ok(1), "the row that was taken back is not in the batch");
        // The engine is busy with the other stream, however often it is asked.
        for _ in 0..1 + round % 3 {
            hasty.row().x[0] = 100.0;
            assert!(!hasty.run_within(1, if round < 5 { hurry } else { Duration::ZERO }).expect("no error"));
            assert_eq!(hasty.state().data[0], ahead, "the state is as it was");
        }
        open.send(()).expect("the worker waits");
        busy.wait().expect("runs");
        assert_eq!(busy.row().y[0], (round + 1) as f32);
        if round % 2 == 0 {
            // Now it is free: once the pass has begun, it is waited for beyond all patience.
            open.send(()).expect("the worker waits");
            hasty.row().x[0] = 2.0;
            assert!(hasty.run_within(1, Duration::from_secs(600)).expect("no error"));
            assert_eq!(inside.recv(), Ok(1));
            ahead += 2.0;
            assert_eq!(hasty.row().y[0], ahead);
        }
    }
    assert_eq!(engine.counts(), (3000, 3000));
}
