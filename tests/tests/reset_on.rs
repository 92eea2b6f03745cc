//! The property `reset-on`: by default everything that begins a stream anew gives it a fresh state; what is left out lets
//! the state go on, and nothing else.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use gstssm::Results;
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{AudioStream, Engine, Listener, Options, Output, open};
use ssm_tests::Rng;
use ssm_tests::audio::{bytes, caps};
use ssm_tests::element::{Folder, make};
use std::sync::Arc;
use std::time::Duration;

const ALL: [&str; 6] = ["flush", "segment", "jump", "caps", "eos", "discont"];
/// Those that are set by default.
const DEFAULT: &str = "flush+segment+jump+caps+eos";
/// Where the second part of a stream begins if nothing is missing.
const NEXT: ClockTime = ClockTime::from_mseconds(100);

fn segment(start: ClockTime) -> gst::Event {
    let mut segment = gst::FormattedSegment::<ClockTime>::new();
    segment.set_start(start);
    gst::event::Segment::new(segment.upcast_ref())
}

/// What happens between the two parts of a stream. Returns the time of the second part.
fn happen(h: &mut Harness, what: &str, caps: &gst::Caps) -> ClockTime {
    match what {
        "flush" => {
            h.push_event(gst::event::FlushStart::new());
            h.push_event(gst::event::FlushStop::new(true));
            h.push_event(segment(ClockTime::ZERO));
        }
        "segment" => _ = h.push_event(segment(ClockTime::from_mseconds(7))),
        "caps" => h.set_caps(caps.clone(), caps.clone()),
        "eos" => {
            h.push_event(gst::event::Eos::new());
            h.push_event(gst::event::StreamStart::new("more"));
            h.push_event(segment(ClockTime::ZERO));
        }
        _ => {}
    }
    if what == "jump" { ClockTime::from_seconds(50) } else { NEXT }
}

fn buffer(bytes: Vec<u8>, pts: ClockTime, discont: bool) -> gst::Buffer {
    let mut buffer = gst::Buffer::from_mut_slice(bytes);
    let edit = buffer.get_mut().expect("a new buffer");
    edit.set_pts(pts);
    if discont {
        edit.set_flags(gst::BufferFlags::DISCONT);
    }
    buffer
}

/// Each event, with the values of `reset-on` that must reset (true) or let the state go on (false).
fn cases() -> Vec<(&'static str, String, bool)> {
    let mut cases = vec![];
    for what in ALL {
        let others: Vec<&str> = ALL.into_iter().filter(|o| *o != what).collect();
        cases.push((what, DEFAULT.into(), what != "discont"));
        cases.push((what, ALL.join("+"), true));
        cases.push((what, what.into(), true));
        cases.push((what, others.join("+"), false));
    }
    cases
}

fn engine(path: &str, options: &Options) -> Arc<Engine> {
    Engine::start(open(path, options).expect("it opens"), Cx::at(CpuLevel::best(), 1), 1, Duration::ZERO)
}

#[test]
fn the_default_is_what_was_always_so() {
    let element = make("ssmdenoise", &[]);
    let value = element.property_value("reset-on");
    let (_, flags) = glib::FlagsValue::from_value(&value).expect("flags");
    assert_eq!(flags.iter().map(|f| f.nick()).collect::<Vec<_>>().join("+"), DEFAULT);
}

#[test]
fn denoised_samples() {
    let folder = Folder::new("reset-on-denoise");
    let (_, path) = folder.model("cleanumamba", 4);
    let mut rng = Rng::new(1);
    let first = rng.normals(1600, 0.1);
    // Samples that 16 bits hold, too: other caps are those of another format.
    let ints: Vec<i16> = rng.normals(777, 3000.0).iter().map(|s| *s as i16).collect();
    let second: Vec<f32> = ints.iter().map(|s| f32::from(*s) / 32768.0).collect();
    let short = |samples: &[i16]| samples.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<u8>>();
    for (what, flags, fresh) in cases() {
        let element = make("ssmdenoise", &[("model", &path), ("reset-on", &flags)]);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        let form = caps("F32LE", 16_000, 1);
        h.set_caps(form.clone(), form.clone());
        h.push(buffer(bytes(&first), ClockTime::ZERO, true)).expect("flows");
        let pts = happen(&mut h, what, &caps("S16LE", 16_000, 1));
        let bytes_of_second = if what == "caps" { short(&ints) } else { bytes(&second) };
        h.push(buffer(bytes_of_second, pts, what == "discont")).expect("flows");
        h.push_event(gst::event::Eos::new());
        let mut got = vec![];
        while let Some(buffer) = h.try_pull() {
            got.extend_from_slice(&buffer.map_readable().expect("readable"));
        }
        let (mut judge, mut want) =
            (AudioStream::new(&engine(&path, &Options::default()), 1).expect("samples"), vec![]);
        judge.push(&first, &mut want).expect("runs");
        match (fresh, what) {
            (true, _) => judge.drain(&mut want),
            // Nothing happens at all.
            (false, "discont") => {}
            (false, _) => judge.gap(0, &mut want),
        }
        judge.push(&second, &mut want).expect("runs");
        judge.drain(&mut want);
        assert_eq!(want.len(), 2377, "the judge loses nothing");
        let rounded = want[1600..].iter().map(|s| (s * 32768.0).round().clamp(-32768.0, 32767.0) as i16);
        let want = match what {
            "flush" => bytes(&want[1600..]),
            "caps" => [bytes(&want[..1600]), short(&rounded.collect::<Vec<_>>())].concat(),
            _ => bytes(&want),
        };
        assert!(got.ends_with(&want), "{what} with {flags}");
        assert!(what == "flush" || got.len() == want.len(), "{what} with {flags}: samples are missing");
        let counted = element.property::<u64>("resets") > 0;
        assert!(counted == fresh || what == "caps" || what == "eos", "{what} with {flags}: {counted}");
    }
}

#[test]
fn steps_of_audio() {
    let mut rng = Rng::new(2);
    let (first, second) = (rng.normals(1650, 0.1), rng.normals(800, 0.1));
    let judge = engine("builtin:denoise", &Options { output: Output::Speech, ..Options::default() });
    for (what, flags, fresh) in cases() {
        let element = make("ssmvad", &[("reset-on", &flags)]);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
        h.push(buffer(bytes(&first), ClockTime::ZERO, true)).expect("flows");
        let pts = happen(&mut h, what, &caps("F32LE", 16_000, 2));
        // Two equal channels are mixed to the same samples.
        let twice: Vec<f32> = second.iter().flat_map(|s| [*s, *s]).collect();
        let samples = if what == "caps" { &twice } else { &second };
        h.push(buffer(bytes(samples), pts, what == "discont")).expect("flows");
        let (mut got, mut late) = (vec![], vec![]);
        while let Some(buffer) = h.try_pull() {
            got.extend(Results::of(&buffer));
        }
        while let Some(event) = h.try_pull_event() {
            late.extend(event.structure().and_then(Results::of_late).unwrap_or_default());
        }
        let (mut listener, mut want) = (Listener::new(&judge).expect("it tells speech"), vec![]);
        listener.push(&first, &mut want).expect("runs");
        match what {
            "flush" => listener.forget(),
            "discont" if !fresh => {}
            _ => listener.complete(&mut want).expect("runs"),
        }
        if fresh {
            listener.reset();
        }
        listener.push(&second, &mut want).expect("runs");
        // What the event completed came ahead of it, without a buffer.
        assert_eq!(late.len(), usize::from(["segment", "caps", "eos"].contains(&what)), "{what} with {flags}");
        got.splice(10..10, late);
        let want: Vec<f64> = want.iter().map(|y| f64::from(1.0 / (1.0 + (-y).exp()))).collect();
        let got: Vec<f64> = got.iter().filter_map(|r| r.speech).collect();
        assert_eq!(got, want, "{what} with {flags}");
    }
}

#[test]
fn frames() {
    let folder = Folder::new("reset-on-frames");
    let (_, path) = folder.model("vim", 3);
    let form = |rate: i32| {
        gst::Caps::builder("video/x-raw")
            .field("format", "RGB")
            .field("width", 16)
            .field("height", 16)
            .field("framerate", gst::Fraction::new(rate, 1))
            .build()
    };
    let mut rng = Rng::new(3);
    let pictures: Vec<Vec<u8>> = (0..2).map(|_| (0..16 * 16 * 3).map(|_| rng.range(0, 255) as u8).collect()).collect();
    let scores = |what: &str, flags: &str, frames: &[Vec<u8>]| {
        let properties = [("model", &*path), ("carry", "true"), ("top-k", "1000"), ("reset-on", flags)];
        let element = make("ssmclassify", &properties);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_caps(form(10), form(10));
        let (last, before) = frames.split_last().expect("a frame");
        for frame in before {
            h.push(buffer(frame.clone(), ClockTime::ZERO, true)).expect("flows");
            h.pull().expect("a frame comes out");
        }
        let pts = happen(&mut h, what, &form(20));
        h.push(buffer(last.clone(), pts, what == "discont")).expect("flows");
        let mut classes = Results::of(&h.pull().expect("a frame comes out")).remove(0).classes;
        classes.sort_by_key(|c| c.index);
        classes.iter().map(|c| c.score).collect::<Vec<_>>()
    };
    let (alone, after) = (scores("", DEFAULT, &pictures[1..]), scores("", DEFAULT, &pictures));
    assert_ne!(alone, after, "this model remembers");
    for (what, flags, fresh) in cases() {
        assert_eq!(scores(what, &flags, &pictures), if fresh { &*alone } else { &*after }, "{what} with {flags}");
    }
}

#[test]
fn the_same_segment_again_begins_nothing() {
    for (factory, form) in
        [("ssmevents", "video/x-raw,format=RGB,width=32,height=18,framerate=25/1"), ("ssmvad", ""), ("ssmdenoise", "")]
    {
        let element = make(factory, &[]);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        if form.is_empty() {
            h.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
        } else {
            h.set_src_caps_str(form);
        }
        h.push_event(segment(ClockTime::ZERO));
        let mut resets = vec![];
        for i in 0..10 {
            let data = if form.is_empty() { bytes(&[0.1; 640]) } else { vec![9; 32 * 18 * 3] };
            h.push(buffer(data, ClockTime::from_mseconds(40 * i), false)).expect("flows");
            if i == 7 {
                resets.push(element.property::<u64>("resets"));
            }
            let start = ClockTime::from_mseconds(u64::from(i == 8));
            h.push_event(segment(start));
        }
        resets.push(element.property::<u64>("resets"));
        // Another one does, and the one after that.
        assert_eq!(resets, [0, 2], "{factory}");
    }
}
