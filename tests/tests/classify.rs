//! `ssmclassify` and `ssmjson` as an application meets them: results, their places, formats, state, bad input.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use gstssm::Results;
use ssm_models::frontend::image::{ImagePlan, PixelFormat, Plane};
use ssm_models::kernels::cuda::CardError;
use ssm_models::kernels::cuda::card::count;
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Row, Scratch, Signal};
use ssm_tests::Rng;
use ssm_tests::element::{Folder, complaint, make, run};
use ssm_tests::fabricate::Fabricated;

const WIDTH: usize = 37;
const HEIGHT: usize = 29;

fn caps(format: &str) -> gst::Caps {
    gst::Caps::builder("video/x-raw")
        .field("format", format)
        .field("width", WIDTH as i32)
        .field("height", HEIGHT as i32)
        .field("framerate", gst::Fraction::new(25, 1))
        .build()
}

fn time(frame: u64) -> ClockTime {
    ClockTime::from_mseconds(40 * frame)
}

/// A frame of random pixels, R, G, B without padding.
fn picture(rng: &mut Rng) -> Vec<[u8; 3]> {
    (0..WIDTH * HEIGHT).map(|_| std::array::from_fn(|_| rng.range(0, 255) as u8)).collect()
}

/// Pixels in a format's order, rows padded to four bytes as GStreamer does.
fn pack(pixels: &[[u8; 3]], bytes: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    for row in pixels.chunks(WIDTH) {
        for p in row {
            out.extend(bytes.iter().map(|b| p.get(*b).copied().unwrap_or(99)));
        }
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

struct Bench {
    h: Harness,
    element: gst::Element,
}

impl Bench {
    fn new(model: &str, properties: &[(&str, &str)], format: &str) -> Self {
        let element = make("ssmclassify", &[&[("model", model)], properties].concat());
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_caps(caps(format), caps(format));
        Self { h, element }
    }

    fn push(&mut self, bytes: Vec<u8>, pts: ClockTime) -> Result<gst::Buffer, gst::FlowError> {
        let mut buffer = gst::Buffer::from_mut_slice(bytes);
        let edit = buffer.get_mut().expect("a new buffer");
        edit.set_pts(pts);
        edit.set_duration(ClockTime::from_mseconds(40));
        self.h.push(buffer)?;
        Ok(self.h.pull().expect("a buffer comes out"))
    }

    /// Scores of one RGB frame, by class.
    fn scores(&mut self, pixels: &[[u8; 3]], pts: ClockTime) -> Vec<f64> {
        let buffer = self.push(pack(pixels, &[0, 1, 2]), pts).expect("flows");
        by_class(&Results::of(&buffer)[0])
    }
}

fn by_class(results: &Results) -> Vec<f64> {
    let mut classes = results.classes.clone();
    classes.sort_by_key(|c| c.index);
    classes.iter().map(|c| c.score).collect()
}

/// What the model itself says of frames that follow each other.
fn direct(model: &Fabricated, carry: bool, frames: &[Vec<[u8; 3]>]) -> Vec<Vec<f64>> {
    let mut model = model.clone();
    model.options.carry = carry;
    let model = model.open(CpuLevel::best()).expect("it opens");
    let Signal::Image { height, width, .. } = model.info().input else { panic!("no frames") };
    let mut plan = ImagePlan::new((HEIGHT, WIDTH), PixelFormat::Rgb, (height, width)).expect("the sizes are fine");
    let (cx, mut scratch, mut rows) = (Cx::at(CpuLevel::best(), 1), Scratch::default(), [Row::new(&*model, 1)]);
    let mut run = |pixels: &Vec<[u8; 3]>| {
        let bytes: Vec<u8> = pixels.iter().flatten().copied().collect();
        let plane = Plane { data: &bytes, stride: WIDTH * 3 };
        plan.run(&cx, &[plane], &mut rows[0].x).expect("a whole frame");
        model.forward(&cx, &mut rows, 1, &mut scratch);
        let mut y = rows[0].y.clone();
        ssm_models::kernels::activation::softmax(&mut y);
        y.iter().map(|v| f64::from(*v)).collect()
    };
    frames.iter().map(&mut run).collect()
}

/// A random Vim that remembers when it is told to: its frames must have more than one token.
fn vim(folder: &Folder, seed: u64) -> (Fabricated, String) {
    folder.model("vim", seed)
}

const ALL: (&str, &str) = ("top-k", "1000");

#[test]
fn results_are_the_models_own_and_pixels_pass_untouched() {
    let folder = Folder::new("classify");
    let mut rng = Rng::new(1);
    for seed in 0..5 {
        let (model, path) = vim(&folder, seed);
        let frames: Vec<_> = (0..4).map(|_| picture(&mut rng)).collect();
        for carry in [false, true] {
            let want = direct(&model, carry, &frames);
            let mut b = Bench::new(&path, &[ALL, ("carry", if carry { "true" } else { "false" })], "RGB");
            for (i, (frame, want)) in frames.iter().zip(&want).enumerate() {
                let bytes = pack(frame, &[0, 1, 2]);
                let buffer = b.push(bytes.clone(), time(i as u64)).expect("flows");
                assert_eq!(buffer.map_readable().expect("readable").as_slice(), bytes, "pixels changed");
                let results = Results::of(&buffer);
                assert_eq!(results.len(), 1);
                let r = &results[0];
                assert_eq!((r.version, &*r.kind, r.step), (1, "classes", i as u64 + 1));
                assert_eq!((r.pts, r.duration), (Some(time(i as u64).nseconds()), Some(40_000_000)));
                assert!(r.classes.windows(2).all(|c| c[0].score >= c[1].score), "best first");
                assert_eq!(&by_class(r), want, "seed {seed}, carry {carry}, frame {i}");
            }
        }
    }
}

#[test]
fn every_byte_order_gives_the_same() {
    let folder = Folder::new("formats");
    let (_, path) = vim(&folder, 2);
    let frame = picture(&mut Rng::new(2));
    let want = Bench::new(&path, &[ALL], "RGB").scores(&frame, ClockTime::ZERO);
    for (format, order) in [
        ("BGR", vec![2, 1, 0]),
        ("RGBx", vec![0, 1, 2, 3]),
        ("BGRx", vec![2, 1, 0, 3]),
        ("xRGB", vec![3, 0, 1, 2]),
        ("xBGR", vec![3, 2, 1, 0]),
        ("RGBA", vec![0, 1, 2, 3]),
        ("BGRA", vec![2, 1, 0, 3]),
        ("ARGB", vec![3, 0, 1, 2]),
        ("ABGR", vec![3, 2, 1, 0]),
    ] {
        let mut b = Bench::new(&path, &[ALL], format);
        let buffer = b.push(pack(&frame, &order), ClockTime::ZERO).expect("flows");
        assert_eq!(by_class(&Results::of(&buffer)[0]), want, "{format}");
    }
    let grey: Vec<[u8; 3]> = frame.iter().map(|p| [p[0]; 3]).collect();
    let want = Bench::new(&path, &[ALL], "RGB").scores(&grey, ClockTime::ZERO);
    let mut b = Bench::new(&path, &[ALL], "GRAY8");
    let buffer = b.push(pack(&grey, &[0]), ClockTime::ZERO).expect("flows");
    assert_eq!(by_class(&Results::of(&buffer)[0]), want, "GRAY8");
}

#[test]
fn planar_formats_agree_with_videoconvert() {
    let folder = Folder::new("planar");
    let (_, path) = vim(&folder, 2);
    let scores = |format: &str| {
        let line = format!(
            "videotestsrc num-buffers=1 pattern=smpte ! video/x-raw,format=I420,width=64,height=48,colorimetry=bt601 ! \
             videoconvert ! video/x-raw,format={format} ! ssmclassify model={path} top-k=1000 ! fakesink"
        );
        let found = run(&line);
        let message = found.iter().find(|s| s.name() == "ssmclassify").expect("a result").clone();
        by_class(&Results::from_structure(&message).expect("whole fields"))
    };
    let rgb = scores("RGB");
    for format in ["I420", "NV12"] {
        for (a, b) in rgb.iter().zip(scores(format)) {
            // videoconvert interpolates the colour planes, the front end repeats them.
            assert!((a - b).abs() < 0.05, "{format}: {a} against {b}");
        }
    }
}

#[test]
fn flush_jumps_and_the_signal_reset_a_carried_state() {
    let folder = Folder::new("carry");
    let mut rng = Rng::new(3);
    let (model, path) = vim(&folder, 3);
    let frames: Vec<_> = (0..2).map(|_| picture(&mut rng)).collect();
    let fresh = direct(&model, true, &frames[1..])[0].clone();
    let carried = direct(&model, true, &frames)[1].clone();
    assert_ne!(fresh, carried, "this model remembers");
    let second = |event: &dyn Fn(&mut Bench), pts: ClockTime| {
        let mut b = Bench::new(&path, &[ALL, ("carry", "true")], "RGB");
        b.scores(&frames[0], ClockTime::ZERO);
        event(&mut b);
        b.scores(&frames[1], pts)
    };
    assert_eq!(second(&|_| (), time(1)), carried);
    let reset = |b: &mut Bench| b.element.emit_by_name::<()>("reset-state", &[]);
    assert_eq!(second(&reset, time(1)), fresh, "signal");
    let event = |b: &mut Bench| {
        let reset = gst::Structure::new_empty("ssm-reset");
        b.h.push_event(gst::event::CustomDownstream::builder(reset).build());
    };
    assert_eq!(second(&event, time(1)), fresh, "event");
    let flush = |b: &mut Bench| {
        b.h.push_event(gst::event::FlushStart::new());
        b.h.push_event(gst::event::FlushStop::new(true));
        b.h.push_event(gst::event::Segment::new(gst::FormattedSegment::<ClockTime>::new().upcast_ref()));
    };
    assert_eq!(second(&flush, time(1)), fresh, "flush");
    let segment = |b: &mut Bench| {
        let mut segment = gst::FormattedSegment::<ClockTime>::new();
        segment.set_start(ClockTime::from_mseconds(20));
        b.h.push_event(gst::event::Segment::new(segment.upcast_ref()));
    };
    assert_eq!(second(&segment, time(1)), fresh, "segment");
    assert_eq!(second(&|_| (), ClockTime::from_seconds(9)), fresh, "long gap");
    let aged = second(&|_| (), time(2));
    assert!(aged != fresh && aged != carried, "a gap of one frame ages the state");
    let saved = std::cell::RefCell::new(None);
    second(&|b| *saved.borrow_mut() = b.element.emit_by_name::<Option<glib::Bytes>>("save-state", &[]), time(1));
    let saved = saved.into_inner().expect("there is a state");
    let mut b = Bench::new(&path, &[ALL, ("carry", "true")], "RGB");
    assert!(b.element.emit_by_name::<bool>("load-state", &[&saved]));
    assert_eq!(b.scores(&frames[1], time(1)), carried, "restored");
}

#[test]
fn top_k_threshold_labels_and_interval() {
    let folder = Folder::new("options");
    let (model, path) = vim(&folder, 1);
    let Signal::Logits { classes } = model.open(CpuLevel::best()).expect("it opens").info().output else {
        panic!("no classes")
    };
    let labels = folder.file("labels.txt");
    // With the mark that editors of Windows put in front.
    let names = (0..classes).map(|i| format!("class {i}\r\n"));
    std::fs::write(&labels, ["\u{feff}".to_owned()].into_iter().chain(names).collect::<String>()).expect("a file");
    let frame = picture(&mut Rng::new(4));
    let mut b = Bench::new(&path, &[("labels-file", &labels), ("top-k", "2"), ("inference-interval", "3")], "RGB");
    for i in 0..7 {
        let buffer = b.push(pack(&frame, &[0, 1, 2]), time(i)).expect("flows");
        let results = Results::of(&buffer);
        assert_eq!(results.len(), usize::from(i % 3 == 0), "frame {i}");
        for class in results.iter().flat_map(|r| &r.classes) {
            assert_eq!(class.label.as_deref(), Some(&*format!("class {}", class.index)));
        }
        assert!(results.iter().all(|r| r.classes.len() == 2.min(classes)));
    }
    assert_eq!(b.element.property::<u64>("dropped"), 4);
    assert_eq!(b.element.property::<u64>("steps"), 3);
    b.element.set_property("threshold", 1.0);
    b.element.set_property("inference-interval", 1u32);
    let buffer = b.push(pack(&frame, &[0, 1, 2]), time(7)).expect("flows");
    assert!(Results::of(&buffer)[0].classes.is_empty(), "nothing is that sure");
}

#[test]
fn json_lines_hold_the_results_in_order() {
    let folder = Folder::new("json");
    let (_, path) = vim(&folder, 1);
    let out = folder.file("lines.jsonl");
    let found = run(&format!(
        "videotestsrc num-buffers=6 ! video/x-raw,format=RGB,width=40,height=30,framerate=10/1 ! \
         ssmclassify name=a model={path} top-k=1 ! queue ! videoconvert ! \
         ssmclassify name=b model={path} top-k=2 inference-interval=2 ! ssmjson ! filesink location={out}"
    ));
    assert_eq!(found.iter().filter(|s| s.name() == "ssmclassify").count(), 9);
    assert_eq!(found.iter().filter(|s| s.name() == "ssm-model").count(), 2);
    let text = std::fs::read_to_string(&out).expect("the file is there");
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(lines.len(), 9);
    let place = |v: &serde_json::Value| (v["pts"].as_u64().expect("a time"), v["element"].as_str().map(str::to_owned));
    let places: Vec<_> = lines.iter().map(place).collect();
    assert!(places.is_sorted(), "in order of time, then of the elements: {places:?}");
    assert!(lines.iter().all(|l| l["version"] == 1 && l["kind"] == "classes" && l["duration"] == 100_000_000));
}

#[test]
fn what_cannot_be_is_told() {
    let folder = Folder::new("wrong");
    let (_, path) = vim(&folder, 1);
    let (_, audio) = folder.model("cleanumamba", 1);
    let labels = folder.file("labels.txt");
    std::fs::write(&labels, "only one\n\n\n").expect("a file");
    for (properties, parts) in [
        (vec![], vec!["model", "expected"]),
        (vec![("model", "/nowhere/vim.pth")], vec!["/nowhere/vim.pth"]),
        (vec![("model", &*audio)], vec!["expected a model from frames", "cleanumamba"]),
        (vec![("model", &*path), ("labels-file", &*labels)], vec!["labels-file", "1 lines"]),
        (vec![("model", &*path), ("device", "cuda:99")], vec!["cuda:99"]),
        (vec![("model", &*path), ("device", "toaster")], vec!["toaster", "expected"]),
    ] {
        let element = make("ssmclassify", &properties);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        assert!(element.set_state(gst::State::Ready).is_err(), "{properties:?} was taken");
        let text = complaint(&bus, gst::MessageType::Error);
        assert!(parts.iter().all(|p| text.contains(p)), "{text:?} lacks one of {parts:?}");
        element.set_state(gst::State::Null).expect("back to NULL");
    }
    let mut b = Bench::new(&path, &[], "RGB");
    let bus = gst::Bus::new();
    b.element.set_bus(Some(&bus));
    b.push(vec![0; 100], ClockTime::ZERO).expect("it passes");
    let text = complaint(&bus, gst::MessageType::Warning);
    assert!(text.contains("expected") && text.contains("100"), "{text}");
}

#[test]
fn without_a_driver_auto_is_the_processor_and_cuda_an_error() {
    if count() != Err(CardError::NoDriver) {
        eprintln!("SKIP no driver: this machine has one");
        return;
    }
    let folder = Folder::new("nodriver");
    let (_, path) = vim(&folder, 1);
    let element = make("ssmclassify", &[("model", &*path), ("device", "cuda")]);
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    assert!(element.set_state(gst::State::Ready).is_err());
    let text = complaint(&bus, gst::MessageType::Error);
    assert!(text.contains("cuda:0") && text.contains("no CUDA driver") && text.contains("device=auto"), "{text}");
    element.set_state(gst::State::Null).expect("back to NULL");
    for device in ["auto", "cpu"] {
        element.set_property("device", device);
        element.set_state(gst::State::Ready).expect("the processor");
        let message = bus.timed_pop_filtered(ClockTime::from_seconds(10), &[gst::MessageType::Element]);
        let said = message.as_ref().and_then(|m| m.structure()).expect("ssm-model");
        assert_eq!((said.get::<String>("device").as_deref(), said.has_field("device-note")), (Ok("cpu"), false));
        element.set_state(gst::State::Null).expect("back to NULL");
    }
    let stats = element.property::<gst::Structure>("stats");
    assert_eq!((stats.get::<u64>("launches"), stats.get::<u64>("device-bytes")), (Ok(0), Ok(0)));
}

#[test]
fn frames_of_any_size_are_taken() {
    let folder = Folder::new("sizes");
    let (_, path) = vim(&folder, 4);
    for (width, height) in [(1, 1), (1, 300), (300, 1), (2, 2), (641, 7), (4096, 16)] {
        for format in ["RGB", "I420", "NV12"] {
            let found = run(&format!(
                "videotestsrc num-buffers=2 ! video/x-raw,format={format},width={width},height={height} ! \
                 ssmclassify model={path} ! fakesink"
            ));
            assert_eq!(found.iter().filter(|s| s.name() == "ssmclassify").count(), 2, "{format} {width}x{height}");
        }
    }
}
