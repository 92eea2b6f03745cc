//! Frames that lie on the card, with GStreamer's own elements for cards, on a driver that runs on this processor.

use gst::prelude::*;
use ssm_runner::{Driver, SCHEDULES};
use ssm_tests::element::{self, Folder};
use std::process::Command;

const FEATURE: &str = "memory:CUDAMemory";

/// The driver, and `cudaupload`; `None` where GStreamer has none, or, in a process of its own, nothing of it is to be found.
fn driver() -> Option<Driver> {
    let driver = Driver::new(SCHEDULES[0], 1 << 30);
    element::init();
    let found = gst::Registry::get().find_plugin("nvcodec").and_then(|plugin| plugin.filename());
    // It looks for a driver when it is loaded, and the registry remembers that there was none.
    let loaded = found.is_some_and(|file| gst::Plugin::load_file(file).is_ok());
    if loaded && gst::ElementFactory::find("cudaupload").is_some() {
        return Some(driver);
    }
    assert!(!std::env::var("SSM_REQUIRE").is_ok_and(|r| r.contains("gstcuda")), "GStreamer has no cudaupload");
    eprintln!("SKIP frames on the card: GStreamer has no cudaupload (gstreamer1.0-plugins-bad)");
    None
}

/// Runs an element over frames, and gives its lines of JSON.
fn lines(folder: &Folder, frames: &str, element: &str, prepare: impl FnOnce(&gst::Bin)) -> Vec<serde_json::Value> {
    let out = folder.file("out.jsonl");
    let line = format!("{frames} ! {element} name=e ! ssmjson ! filesink location={out}");
    element::init();
    let pipeline = gst::parse::launch(&line).expect("the line parses");
    prepare(pipeline.downcast_ref().expect("a pipeline"));
    element::play(&pipeline, &line);
    let text = std::fs::read_to_string(&out).expect("the file is there");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The same but for the last digits of numbers.
#[track_caller]
fn same(what: &str, got: &serde_json::Value, want: &serde_json::Value) {
    use serde_json::Value::{Array, Number, Object};
    match (got, want) {
        (Array(a), Array(b)) if a.len() == b.len() => a.iter().zip(b).for_each(|(a, b)| same(what, a, b)),
        (Object(a), Object(b)) if a.len() == b.len() => {
            a.iter().for_each(|(k, v)| same(&format!("{what}.{k}"), v, b.get(k).unwrap_or(&serde_json::Value::Null)));
        }
        (Number(a), Number(b)) => {
            let (a, b) = (a.as_f64().unwrap_or(f64::NAN), b.as_f64().unwrap_or(f64::NAN));
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{what}: {a}, not {b}");
        }
        _ => assert_eq!(got, want, "{what}"),
    }
}

/// Whether the element's sink pad, once there are caps, takes frames on the card.
fn watch(bin: &gst::Bin) -> std::sync::Arc<std::sync::Mutex<Option<gst::Caps>>> {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(None));
    let pad = bin.by_name("e").and_then(|e| e.static_pad("sink")).expect("a pad");
    let to = seen.clone();
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, _| {
        *to.lock().expect("nobody panicked") = pad.current_caps();
        gst::PadProbeReturn::Ok
    });
    seen
}

fn source(format: &str, pattern: &str) -> String {
    format!(
        "videotestsrc num-buffers=5 pattern={pattern} ! \
         video/x-raw,format={format},width=53,height=39,framerate=10/1"
    )
}

#[test]
fn frames_on_the_card_tell_what_frames_here_tell() {
    let Some(driver) = driver() else { return };
    let folder = Folder::new("card-frames");
    let (_, vim) = folder.model("vim", 1);
    for (element, format) in [
        (format!("ssmclassify model={vim} device=cuda"), "RGB"),
        (format!("ssmclassify model={vim} device=cuda"), "NV12"),
        (format!("ssmclassify model={vim} device=auto carry=true"), "I420"),
        (format!("ssmclassify model={vim} device=cuda inference-interval=2"), "BGRx"),
        (format!("ssmembed model={vim} device=cuda"), "ARGB"),
    ] {
        let want = lines(&folder, &source(format, "ball"), &element, |_| {});
        let (brought, launches, mut seen) = (driver.brought(), driver.launches(), None);
        let there = format!("{} ! cudaupload", source(format, "ball"));
        // Else what can take both may choose either.
        let there = format!("{there} ! video/x-raw({FEATURE})");
        let got = lines(&folder, &there, &element, |bin| seen = Some(watch(bin)));
        let seen = seen.expect("watched").lock().expect("nobody panicked").take().expect("caps");
        assert!(seen.features(0).is_some_and(|f| f.contains(FEATURE)), "{seen}");
        assert!(want.len() >= 3 && want.len() == got.len() && driver.launches() > launches, "{element}, {format}");
        same(&format!("{element}, {format}"), &got.into(), &want.into());
        assert_eq!(driver.brought(), brought, "{format}: the frames lie in the model's context");
    }
    assert_eq!(driver.objects(), 0, "nothing is left on the card");
}

/// Tensors of a snapshot.
fn snapshot(file: &str) -> Vec<(String, Vec<f32>)> {
    let bytes = std::fs::read(file).expect("a snapshot");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let values = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let mut all: Vec<_> = tensors.tensors().iter().map(|(n, t)| (n.clone(), values(t.data()))).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn events_of_frames_on_the_card_and_their_snapshot() {
    let Some(driver) = driver() else { return };
    let folder = Folder::new("card-frames-events");
    let shot = |pattern: &str| source("RGB", pattern).replace("num-buffers=5", "num-buffers=12") + " ! c. ";
    let frames = shot("snow") + &shot("red") + "concat name=c ! identity";
    let (here, there) = (folder.file("here"), folder.file("there"));
    let want = lines(&folder, &frames, "ssmevents device=cpu", |_| {});
    assert!(!want.is_empty(), "a cut");
    let uploaded = format!("{frames} ! cudaupload ! video/x-raw({FEATURE})");
    let got = lines(&folder, &uploaded, "ssmevents device=cuda", |_| {});
    same("events", &got.into(), &want.into());
    // A snapshot holds the last frame, for the end of the stream.
    lines(&folder, &frames, &format!("ssmevents device=cpu state-out={here}"), |_| {});
    lines(&folder, &uploaded, &format!("ssmevents device=cuda state-out={there}"), |_| {});
    let (here, there) = (snapshot(&here), snapshot(&there));
    assert!(here.iter().any(|(name, v)| name.contains("pending") && !v.is_empty()));
    for ((name, want), (other, got)) in here.iter().zip(&there) {
        let size = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
        let off = want.iter().zip(got).fold(0f32, |m, (w, g)| m.max((w - g).abs()));
        assert!(name == other && want.len() == got.len() && off < 1e-3 * size, "{name}: off by {off}");
    }
    assert_eq!(driver.objects(), 0, "nothing is left on the card");
}

#[test]
fn frames_of_another_context_are_copied_on_the_card() {
    let Some(driver) = driver() else { return };
    let folder = Folder::new("card-frames-context");
    let (_, vim) = folder.model("vim", 2);
    let element = format!("ssmclassify model={vim} device=cuda");
    let want = lines(&folder, &source("NV12", "smpte"), &element, |_| {});
    let before = driver.brought();
    let there = format!("{} ! cudaupload name=up ! video/x-raw({FEATURE})", source("NV12", "smpte"));
    let got = lines(&folder, &there, &element, |bin| {
        // It hears of nobody's context and makes one.
        let pad = bin.by_name("up").and_then(|e| e.static_pad("src")).expect("a pad");
        pad.add_probe(gst::PadProbeType::QUERY_DOWNSTREAM, |_, info| match info.query().map(|q| q.type_()) {
            Some(gst::QueryType::Context) => gst::PadProbeReturn::Drop,
            _ => gst::PadProbeReturn::Ok,
        });
    });
    same("another context", &got.into(), &want.into());
    assert_eq!(driver.brought() - before, 5 * 2, "two planes of five frames");
    assert_eq!(driver.objects(), 0, "nothing is left on the card");
}

/// Caps that the sink pad of an element takes once its model is open.
fn taken(element: &gst::Element) -> gst::Caps {
    element.set_state(gst::State::Ready).expect("it opens");
    let caps = element.static_pad("sink").expect("a pad").query_caps(None);
    element.set_state(gst::State::Null).expect("it closes");
    caps
}

fn with_feature(caps: &gst::Caps) -> bool {
    (0..caps.size()).any(|i| caps.features(i).is_some_and(|f| f.contains(FEATURE)))
}

#[test]
fn frames_on_the_card_are_taken_where_the_model_is() {
    let Some(_driver) = driver() else { return };
    let folder = Folder::new("card-frames-caps");
    let (_, vim) = folder.model("vim", 3);
    for (device, there) in [("cpu", false), ("cuda", true), ("auto", true)] {
        let element = element::make("ssmclassify", &[("model", &*vim), ("device", device)]);
        assert!(with_feature(&element.pad_template("sink").expect("a template").caps().to_owned()));
        let caps = taken(&element);
        assert_eq!(with_feature(&caps), there, "{device}: {caps}");
        let here = element::rgb(40, 30);
        assert!(caps.can_intersect(&here), "{device}: {caps}");
    }
}

/// What an element says of caps with the feature and buffers without.
fn lie(model: &str, kind: gst::MessageType) -> String {
    let line = format!("appsrc name=src format=time ! ssmclassify model={model} device=cuda ! fakesink");
    element::init();
    let pipeline = gst::parse::launch(&line).expect("the line parses").downcast::<gst::Pipeline>().expect("a pipeline");
    let source = pipeline.by_name("src").expect("a source").downcast::<gst_app::AppSrc>().expect("an appsrc");
    let mut caps = element::rgb(40, 30);
    caps.make_mut().set_features_simple(Some(gst::CapsFeatures::new([FEATURE])));
    source.set_caps(Some(&caps));
    let _ = pipeline.set_state(gst::State::Playing);
    source.push_buffer(gst::Buffer::with_size(40 * 30 * 3).expect("room")).expect("it takes a buffer");
    let text = element::complaint(&pipeline.bus().expect("a bus"), kind);
    pipeline.set_state(gst::State::Null).expect("it stops");
    text
}

#[test]
fn caps_that_lie_about_memory_are_told() {
    let Some(driver) = driver() else { return };
    let folder = Folder::new("card-frames-lie");
    let (_, vim) = folder.model("vim", 4);
    let text = lie(&vim, gst::MessageType::Warning);
    assert!(text.contains("expected memory of a card, got memory of the machine"), "{text}");
    assert_eq!(driver.objects(), 0);
}

/// What `without_libgstcuda…` does in a process of its own.
#[test]
fn inside_without_libgstcuda() {
    if std::env::var_os("SSM_GSTCUDA").is_none() {
        return;
    }
    let _driver = Driver::new(SCHEDULES[0], 1 << 30);
    let folder = Folder::new("card-frames-absent");
    let (_, vim) = folder.model("vim", 5);
    let element = element::make("ssmclassify", &[("model", &*vim), ("device", "cuda")]);
    let caps = taken(&element);
    assert!(!with_feature(&caps), "{caps}");
    // The model is on the card, the frames come through the machine.
    let got = lines(&folder, &source("RGB", "ball"), &format!("ssmclassify model={vim} device=cuda"), |_| {});
    assert_eq!(got.len(), 5);
    // Who insists gets no frames, and is told.
    let text = lie(&vim, gst::MessageType::Error);
    assert!(text.contains("data stream"), "not negotiated: {text}");
    println!("went on without");
}

#[test]
fn without_libgstcuda_frames_come_through_the_machine() {
    let run = |library: &str| {
        let mut command = Command::new(std::env::current_exe().expect("a test binary"));
        command.args(["--exact", "inside_without_libgstcuda", "--nocapture"]).env("SSM_GSTCUDA", library);
        let done = command.output().expect("it runs");
        let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && text.contains("went on without"), "{library}: {text}");
    };
    run("/nowhere/libgstcuda.so");
    // A library that is another one.
    run("libc.so.6");
}
