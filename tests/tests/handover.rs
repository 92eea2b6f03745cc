//! Process A stops after frame n with `state-out`, process B goes on with `state-in`: the lines of JSON of both, put end
//! to end, are those of one run, byte for byte, wherever the cut is.

use gst::ClockTime;
use gst::prelude::*;
use ssm_tests::Rng;
use ssm_tests::audio::{bytes, caps};
use ssm_tests::element::{Folder, init};
use std::process::Command;

const FOLDER: &str = "SSM_HANDOVER";

/// What is fed to an element: buffers in order, and their caps.
struct Clip {
    caps: gst::Caps,
    buffers: Vec<gst::Buffer>,
}

/// Frames that change now and then, `fps` a second.
fn frames(n: u64, fps: u64) -> Clip {
    let mut rng = Rng::new(3);
    let mut shade = 0;
    let caps = gst::Caps::builder("video/x-raw")
        .field("format", "RGB")
        .field("width", 32)
        .field("height", 18)
        .field("framerate", gst::Fraction::new(fps as i32, 1))
        .build();
    let time = |i: u64| ClockTime::from_nseconds(i * 1_000_000_000 / fps);
    let buffers = (0..n).map(|i| {
        if rng.range(0, 5) == 0 {
            shade = rng.range(0, 200);
        }
        let data = (0..32 * 18 * 3).map(|_| (shade + rng.range(0, 20)) as u8).collect();
        let mut buffer = gst::Buffer::from_mut_slice::<Vec<u8>>(data);
        let edit = buffer.get_mut().expect("a new buffer");
        edit.set_pts(time(i));
        edit.set_duration(time(i + 1) - time(i));
        buffer
    });
    Clip { caps, buffers: buffers.collect() }
}

/// Sound in pieces of any length.
fn sound() -> Clip {
    let mut rng = Rng::new(4);
    let mut at = 0;
    let buffers = (0..40).map(|i| {
        let n = rng.range(1, 500);
        let samples = rng.normals(n, if i / 10 % 2 == 0 { 0.01 } else { 0.4 });
        let mut buffer = gst::Buffer::from_slice(bytes(&samples));
        buffer.get_mut().expect("a new buffer").set_pts(ClockTime::from_nseconds(at * 62_500));
        at += n as u64;
        buffer
    });
    Clip { caps: caps("F32LE", 16_000, 1), buffers: buffers.collect() }
}

/// Elements under test, what they are fed with, and what turns their output into bytes.
fn cases(folder: &Folder) -> Vec<(String, Clip, &'static str)> {
    let rules = "threshold=0.01 low-threshold=0.005 cooldown=0";
    let (_, vim) = folder.model("vim", 3);
    let with_frames = |line: String, n, fps| (line, frames(n, fps), "ssmjson !");
    vec![
        with_frames(format!("ssmevents name=e {rules}"), 40, 25),
        with_frames(format!("ssmevents name=e {rules}"), 40, 50),
        with_frames(format!("ssmevents name=e {rules} inference-interval=3"), 30, 25),
        with_frames(format!("ssmclassify name=e model={vim} carry=true"), 12, 25),
        with_frames(format!("ssmclassify name=e model={vim} inference-interval=2"), 12, 25),
        with_frames(format!("ssmembed name=e model={vim} carry=true"), 12, 25),
        ("ssmvad name=e".into(), sound(), "ssmjson !"),
        ("ssmembed name=e model=builtin:denoise".into(), sound(), "ssmjson !"),
        ("ssmdenoise name=e".into(), sound(), ""),
    ]
}

/// All bytes that the line gives for some of the clip's buffers.
fn run(line: &str, properties: &str, behind: &str, clip: &Clip, part: std::ops::Range<usize>) -> Vec<u8> {
    let line = format!("appsrc name=in format=time ! {line} {properties} ! {behind} appsink name=out sync=false");
    let pipeline = gst::parse::launch(&line).expect("the line parses").downcast::<gst::Bin>().expect("a pipeline");
    let part_of = |name: &str| pipeline.by_name(name).expect("it is in the line");
    let source = part_of("in").downcast::<gst_app::AppSrc>().expect("an appsrc");
    let sink = part_of("out").downcast::<gst_app::AppSink>().expect("an appsink");
    source.set_caps(Some(&clip.caps));
    pipeline.set_state(gst::State::Playing).unwrap_or_else(|_| panic!("{line} does not play"));
    for buffer in &clip.buffers[part] {
        source.push_buffer(buffer.copy_deep().expect("a copy")).expect("it flows");
    }
    source.end_of_stream().expect("it ends");
    let mut out = vec![];
    while let Ok(sample) = sink.pull_sample() {
        out.extend_from_slice(&sample.buffer().expect("a buffer").map_readable().expect("readable"));
    }
    pipeline.set_state(gst::State::Null).expect("back to NULL");
    out
}

#[test]
fn lines_of_two_processes_are_those_of_one() {
    init();
    let folder = Folder::new("handover");
    let child = std::env::var(FOLDER).ok();
    let folder_of = child.clone().unwrap_or_else(|| folder.file(""));
    let mut halves = vec![];
    for (case, (line, clip, behind)) in cases(&folder).into_iter().enumerate() {
        let n = clip.buffers.len();
        let whole = if child.is_none() { run(&line, "", behind, &clip, 0..n) } else { vec![] };
        for cut in [0, 1, 2, 5, n / 2, n / 2 + 1, n - 1, n] {
            let [state, second] = ["state", "second"].map(|kind| format!("{folder_of}/{case}-{cut}.{kind}"));
            if child.is_some() {
                let properties =
                    if std::fs::metadata(&state).is_ok() { format!("state-in={state}") } else { "".into() };
                std::fs::write(second, run(&line, &properties, behind, &clip, cut..n)).expect("room for files");
                continue;
            }
            let first = run(&line, &format!("state-out={state}"), behind, &clip, 0..cut);
            halves.push((format!("{line}, cut at {cut} of {n}"), first, second, whole.clone()));
        }
    }
    if child.is_some() {
        return;
    }
    let process = Command::new(std::env::current_exe().expect("this test has a file"))
        .args(["--exact", "lines_of_two_processes_are_those_of_one"])
        .env(FOLDER, &folder_of)
        .output()
        .expect("a second process");
    assert!(process.status.success(), "{}", String::from_utf8_lossy(&process.stdout));
    for (what, first, second, whole) in halves {
        assert!(!whole.is_empty(), "{what}: there is something to compare");
        let second = std::fs::read(second).expect("the second process wrote it");
        let joint = [first.clone(), second.clone()].concat();
        if joint != whole {
            let at = joint.iter().zip(&whole).position(|(a, b)| a != b).unwrap_or(joint.len().min(whole.len()));
            let around =
                |b: &[u8]| String::from_utf8_lossy(&b[at.saturating_sub(200)..(at + 60).min(b.len())]).into_owned();
            panic!(
                "{what}: byte {at} of {}, the first has {}\n{}\n{}",
                whole.len(),
                first.len(),
                around(&joint),
                around(&whole)
            );
        }
    }
}
