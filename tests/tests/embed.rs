//! `ssmembed` as an application meets it: vectors of frames and of audio, in the meta and in JSON; bad input.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use gstssm::Results;
use ssm_models::frontend::image::{ImagePlan, PixelFormat, Plane};
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Listen, Options, Output, Row, Scratch, Signal, open};
use ssm_tests::Rng;
use ssm_tests::audio::{Listening, bytes};
use ssm_tests::element::{Folder, complaint, make, rgb, run};

const WIDTH: usize = 40;
const HEIGHT: usize = 30;

fn vector(r: &Results) -> Vec<f32> {
    r.vector.as_ref().expect("a vector").numbers().collect()
}

/// The features of one frame, from the model itself.
fn direct(path: &str, frame: &[u8]) -> Vec<f32> {
    let model = open(path, &Options { output: Output::Features, ..Options::default() }).expect("it opens");
    let Signal::Image { height, width, .. } = model.info().input else { panic!("no frames") };
    let (cx, mut rows) = (Cx::at(CpuLevel::best(), 1), [Row::new(&*model, 1)]);
    let mut plan = ImagePlan::new((HEIGHT, WIDTH), PixelFormat::Rgb, (height, width)).expect("the sizes are fine");
    plan.run(&cx, &[Plane { data: frame, stride: WIDTH * 3 }], &mut rows[0].x).expect("a whole frame");
    model.forward(&cx, &mut rows, 1, &mut Scratch::default());
    rows[0].y.clone()
}

#[test]
fn frames_pass_with_the_models_features() {
    let folder = Folder::new("embed-frames");
    for (family, seed) in [("vim", 1), ("vim", 2), ("vim", 3), ("vmamba", 1), ("vmamba", 2)] {
        let (_, path) = folder.model(family, seed);
        let mut rng = Rng::new(seed);
        let element = make("ssmembed", &[("model", &path)]);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        let caps = rgb(WIDTH, HEIGHT);
        h.set_caps(caps.clone(), caps);
        for i in 0..3 {
            let frame: Vec<u8> = (0..WIDTH * HEIGHT * 3).map(|_| rng.range(0, 255) as u8).collect();
            let mut buffer = gst::Buffer::from_mut_slice(frame.clone());
            buffer.get_mut().expect("a new buffer").set_pts(ClockTime::from_mseconds(40 * i));
            h.push(buffer).expect("flows");
            let buffer = h.pull().expect("a buffer comes out");
            assert!(*buffer.map_readable().expect("readable") == *frame, "pixels changed");
            let results = Results::of(&buffer);
            assert_eq!((results.len(), &*results[0].kind, results[0].step), (1, "vector", i + 1));
            let want = direct(&path, &frame);
            assert_eq!(vector(&results[0]), want, "{family} {seed}, frame {i}");
        }
    }
}

#[test]
fn vectors_of_length_one_on_request() {
    let folder = Folder::new("embed-length");
    let (_, path) = folder.model("aum", 4);
    let model = open(&path, &Options { listen: Listen::Samples(2), ..Options::default() }).expect("it opens");
    let Signal::Samples { hop, rate } = model.info().input else { panic!("no samples") };
    let samples = Rng::new(1).normals(hop * 5, 0.1);
    let mut kept = vec![];
    for normalise in ["false", "true"] {
        let properties = [("model", &*path), ("inference-interval", "2"), ("normalise", normalise)];
        let mut l = Listening::new("ssmembed", &properties, "F32LE", rate, 1);
        l.pieces(&bytes(&samples), &Rng::new(2).cuts(samples.len()), ClockTime::ZERO);
        assert_eq!(l.results.len(), 5);
        assert_eq!(l.results[1].pts, Some(l.time(hop).nseconds()));
        assert_eq!(l.messages("ssmembed").len(), 5);
        kept.push(l.results.iter().map(vector).collect::<Vec<_>>());
    }
    for (a, b) in kept[0].iter().zip(&kept[1]) {
        let length = a.iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((b.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(a.iter().zip(b).all(|(a, b)| (a / length - b).abs() < 1e-5));
    }
}

#[test]
fn the_builtin_denoiser_has_features_too() {
    let mut l = Listening::new("ssmembed", &[("model", "builtin:denoise")], "S16LE", 16_000, 2);
    l.push(&[0; 4 * 1600], Some(ClockTime::ZERO)).expect("flows");
    assert!(l.results.len() == 10 && l.results.iter().all(|r| vector(r).len() == 128));
}

#[test]
fn json_writes_numbers_or_base64() {
    let folder = Folder::new("embed-json");
    let (_, path) = folder.model("vim", 1);
    let mut kept = vec![];
    for format in ["numbers", "base64"] {
        let out = folder.file(format);
        run(&format!(
            "videotestsrc num-buffers=3 ! video/x-raw,format=I420,width=40,height=30 ! ssmembed model={path} ! \
             queue ! ssmjson format={format} ! filesink location={out}"
        ));
        let text = std::fs::read_to_string(&out).expect("the file is there");
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
        assert!(lines.len() == 3 && lines.iter().all(|l| l["kind"] == "vector"));
        let numbers = lines.iter().map(|l| match &l["vector"] {
            serde_json::Value::String(text) => {
                let bytes = glib::base64_decode(text);
                bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
            numbers => {
                let numbers = numbers.as_array().expect("an array").iter();
                numbers.map(|v| v.as_f64().expect("a number") as f32).collect()
            }
        });
        kept.push(numbers.collect::<Vec<Vec<f32>>>());
    }
    assert!(!kept[0][0].is_empty() && kept[0] == kept[1], "both hold the same bits");
}

#[test]
fn what_cannot_be_is_told() {
    let folder = Folder::new("embed-wrong");
    let (_, audio) = folder.model("cleanumamba", 1);
    let (_, language) = (0..)
        .map(|seed| folder.model("mamba", seed))
        .find(|(f, _)| matches!(f.open(CpuLevel::best()).map(|m| m.info().input), Ok(Signal::Vector { .. })))
        .expect("a block of vectors");
    for (model, parts) in [
        ("/nowhere/vim.pth", vec!["/nowhere/vim.pth"]),
        (&*audio, vec!["output", "features", "cleanumamba"]),
        (&*language, vec!["frames or samples", "mamba"]),
    ] {
        let element = make("ssmembed", &[("model", model)]);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        assert!(element.set_state(gst::State::Ready).is_err(), "{model} was taken");
        let text = complaint(&bus, gst::MessageType::Error);
        assert!(parts.iter().all(|p| text.contains(p)), "{text:?} lacks one of {parts:?}");
        element.set_state(gst::State::Null).expect("back to NULL");
    }
    // A model of frames does not take audio.
    let (_, path) = folder.model("vim", 1);
    let element = make("ssmembed", &[("model", &path)]);
    element.set_state(gst::State::Ready).expect("it opens");
    let allowed = element.static_pad("sink").expect("a sink").query_caps(None);
    assert!(!ssm_tests::audio::caps("F32LE", 16_000, 1).can_intersect(&allowed), "{allowed}");
    element.set_state(gst::State::Null).expect("back to NULL");
}
