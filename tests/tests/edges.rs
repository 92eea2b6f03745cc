//! What elements meet in the field: lost packets, streams played backwards, holes told by events, files that are none,
//! metas that lie.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use ssm_tests::Rng;
use ssm_tests::audio::{bytes, caps};
use ssm_tests::element::{Folder, complaint, make, rgb};

const RATE: u64 = 16_000;

fn ms(n: u64) -> ClockTime {
    ClockTime::from_mseconds(n)
}

/// The denoiser in a harness, with a segment of this rate.
fn denoiser(rate: f64, properties: &[(&str, &str)]) -> (Harness, gst::Element) {
    let element = make("ssmdenoise", properties);
    let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
    h.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
    let mut segment = gst::FormattedSegment::<ClockTime>::new();
    segment.set_rate(rate);
    segment.set_stop(ms(10_000));
    h.push_event(gst::event::Segment::new(segment.upcast_ref()));
    (h, element)
}

fn audio(at: u64, length: u64, flags: gst::BufferFlags) -> gst::Buffer {
    let samples = Rng::new(at).normals((length * RATE / 1000) as usize, 0.1);
    let mut buffer = gst::Buffer::from_mut_slice(bytes(&samples));
    let edit = buffer.get_mut().expect("a new buffer");
    edit.set_pts(ms(at));
    edit.set_duration(ms(length));
    edit.set_flags(flags);
    buffer
}

/// Begin, end and samples of what comes out.
fn out(h: &mut Harness) -> Vec<(u64, u64, usize)> {
    let mut found = Vec::new();
    while let Some(b) = h.try_pull() {
        let pts = b.pts().expect("a time").nseconds();
        found.push((pts, pts + b.duration().expect("a duration").nseconds(), b.size() / 4));
    }
    found
}

#[test]
fn a_stream_played_backwards_keeps_each_buffers_time() {
    for length in [10, 20, 100] {
        let (mut h, element) = denoiser(-1.0, &[]);
        let times: Vec<u64> = (0..12).rev().map(|i| i * length).collect();
        let mut got = Vec::new();
        for at in &times {
            h.push(audio(*at, length, gst::BufferFlags::empty())).expect("flows");
            got.extend(out(&mut h));
        }
        h.push_event(gst::event::Eos::new());
        got.extend(out(&mut h));
        let want: Vec<_> = times
            .iter()
            .map(|at| (ms(*at).nseconds(), ms(at + length).nseconds(), (length * RATE / 1000) as usize))
            .collect();
        assert_eq!(got, want, "buffers of {length} ms");
        assert!(element.property::<u64>("resets") >= 12);
    }
}

#[test]
fn speech_played_backwards_is_judged_buffer_by_buffer() {
    let element = make("ssmvad", &[]);
    let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
    h.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
    let mut segment = gst::FormattedSegment::<ClockTime>::new();
    segment.set_rate(-1.0);
    segment.set_stop(ms(10_000));
    h.push_event(gst::event::Segment::new(segment.upcast_ref()));
    for i in (0..20).rev() {
        h.push(audio(i * 20, 20, gst::BufferFlags::empty())).expect("flows");
        let buffer = h.pull().expect("it passes");
        for result in gstssm::Results::of(&buffer) {
            let at = result.pts.expect("a time") / 1_000_000;
            // A step of the buffer before ends when this one comes.
            assert!((i * 20..i * 20 + 60).contains(&at), "a result at {at} ms with the buffer at {}", i * 20);
        }
    }
    assert!(element.property::<u64>("resets") > 10);
}

#[test]
fn a_lost_packet_that_is_flagged_moves_no_time() {
    let (mut h, element) = denoiser(1.0, &[]);
    let (before, mut got) = (element.property::<u64>("resets"), Vec::new());
    for i in 0..40 {
        if i % 10 == 9 {
            continue;
        }
        let flags = if i > 0 && i % 10 == 0 { gst::BufferFlags::DISCONT } else { gst::BufferFlags::empty() };
        h.push(audio(i * 20, 20, flags)).expect("flows");
        got.extend(out(&mut h));
    }
    h.push_event(gst::event::Eos::new());
    got.extend(out(&mut h));
    // Each sample stands where it came from: stretches of nine packets with holes of one between them.
    let mut stretches: Vec<(u64, u64)> = Vec::new();
    for (begin, end, samples) in got {
        assert_eq!((end - begin) * RATE, samples as u64 * 1_000_000_000);
        match stretches.last_mut() {
            Some(last) if last.1 == begin => last.1 = end,
            _ => stretches.push((begin, end)),
        }
    }
    let want: Vec<_> = (0..4).map(|i| (ms(i * 200).nseconds(), ms(i * 200 + 180).nseconds())).collect();
    assert_eq!(stretches, want);
    assert_eq!(element.property::<u64>("resets"), before);
}

#[test]
fn a_segment_that_was_played_further_begins_nothing() {
    for factory in ["ssmdenoise", "ssmvad"] {
        let element = make(factory, &[]);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
        for i in 0..10 {
            let mut segment = gst::FormattedSegment::<ClockTime>::new();
            segment.set_position(ms(i * 20));
            h.push_event(gst::event::Segment::new(segment.upcast_ref()));
            h.push(audio(i * 20, 20, gst::BufferFlags::empty())).expect("flows");
        }
        assert_eq!(element.property::<u64>("resets"), 0, "{factory}");
        let mut segment = gst::FormattedSegment::<ClockTime>::new();
        segment.set_start(ms(100));
        h.push_event(gst::event::Segment::new(segment.upcast_ref()));
        assert_eq!(element.property::<u64>("resets"), 1, "{factory}: another segment");
    }
}

#[test]
fn a_gap_event_counts_from_where_the_stream_stands() {
    for factory in ["ssmdenoise", "ssmvad"] {
        for (at, length, resets) in [(100, 20, 0), (500, 20, 0), (5000, 20, 1), (40, 60, 0)] {
            let element = make(factory, &[]);
            let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
            h.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
            h.push(audio(0, 100, gst::BufferFlags::empty())).expect("flows");
            h.push_event(gst::event::Gap::builder(ms(at)).duration(ms(length)).build());
            let end = (at + length).max(100);
            h.push(audio(end, 100, gst::BufferFlags::empty())).expect("flows");
            assert_eq!(element.property::<u64>("resets"), resets, "{factory}: a gap of {length} ms at {at}");
            h.push_event(gst::event::Eos::new());
            let got = out(&mut h);
            let samples: usize = got.iter().map(|b| b.2).sum();
            assert_eq!(samples, 3200, "{factory}: a gap of {length} ms at {at}");
            let last = got.last().expect("it came out").1;
            assert_eq!(last, ms(end + 100).nseconds(), "{factory}: a gap of {length} ms at {at}");
        }
    }
}

#[test]
fn a_pipe_is_no_file() {
    let folder = Folder::new("edges-pipe");
    let pipe = folder.file("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    let model = folder.model("vim", 2).1;
    for (factory, properties) in
        [("ssmdenoise", &[("state-in", &*pipe)][..]), ("ssmclassify", &[("model", &*model), ("labels-file", &*pipe)])]
    {
        let element = make(factory, properties);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        assert!(element.set_state(gst::State::Playing).is_err(), "{factory}");
        let text = complaint(&bus, gst::MessageType::Error);
        assert!(text.contains("expected a file") && text.contains(&pipe), "{factory}: {text}");
        element.set_state(gst::State::Null).expect("it stops");
    }
}

#[test]
fn where_no_state_can_be_written_the_last_samples_come_out() {
    let element = make("ssmdenoise", &[("state-out", "/nonexistent/state")]);
    let early = gst::Bus::new();
    element.set_bus(Some(&early));
    assert!(element.set_state(gst::State::Paused).is_err(), "known from the start");
    let text = complaint(&early, gst::MessageType::Error);
    assert!(text.contains("state-out: /nonexistent/state: expected a folder /nonexistent, got none"), "{text}");
    element.set_state(gst::State::Null).expect("it stops");

    let folder = Folder::new("edges-unwritable");
    std::fs::create_dir(folder.file("out")).expect("a folder");
    let (mut h, element) = denoiser(1.0, &[("state-out", &folder.file("out/state"))]);
    std::fs::remove_dir(folder.file("out")).expect("it is empty");
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    for i in 0..5 {
        h.push(audio(i * 20, 20, gst::BufferFlags::empty())).expect("flows");
    }
    h.push_event(gst::event::Eos::new());
    assert_eq!(out(&mut h).iter().map(|b| b.2).sum::<usize>(), 1600);
    assert!(complaint(&bus, gst::MessageType::Error).contains("state-out"));
}

#[test]
fn planes_that_a_meta_puts_outside_of_the_buffer_are_refused() {
    let folder = Folder::new("edges-planes");
    let model = folder.model("vim", 2).1;
    // One that reads, one that writes.
    planes("ssmclassify", &[("model", &*model)]);
    planes("ssmoverlay", &[]);
}

fn planes(factory: &str, properties: &[(&str, &str)]) {
    let element = make(factory, properties);
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
    h.set_caps(rgb(32, 18), rgb(32, 18));
    let mut frame = |memories: &[usize], offset: usize, stride: i32| {
        let mut buffer = gst::Buffer::new();
        let edit = buffer.get_mut().expect("a new buffer");
        memories.iter().for_each(|size| edit.append_memory(gst::Memory::from_mut_slice(vec![0u8; *size])));
        let flags = gst_video::VideoFrameFlags::empty();
        let lines = if memories == [32 * 20 * 3] { 20 } else { 18 };
        gst_video::VideoMeta::add_full(edit, flags, gst_video::VideoFormat::Rgb, 32, lines, &[offset], &[stride])
            .expect("a meta");
        h.push(buffer)
    };
    frame(&[1728], 0, 96).expect("it fits");
    // As a decoder has it: more lines in memory than are shown.
    frame(&[32 * 20 * 3], 0, 96).expect("it fits");
    // A plane in the second memory.
    frame(&[100, 1728], 100, 96).expect("it fits");
    for (memories, offset, stride, part) in [
        (&[1728][..], 1 << 20, 96, "within one memory, which ends at 0, got its end at 1050304"),
        (&[1728], 1, 96, "within one memory, which ends at 1728, got its end at 1729"),
        (&[1728], 0, 4096, "got its end at 69728"),
        (&[1000, 1728], 0, 96, "within one memory, which ends at 1000, got its end at 1728"),
        (&[1000, 1728], 1010, 96, "within one memory, which ends at 2728, got its end at 2738"),
        (&[1728], 0, -96, "a stride of 96 bytes or more, got -96"),
        (&[1728], 0, 95, "a stride of 96 bytes or more, got 95"),
    ] {
        // It passes as it is, and the next one of its kind says nothing.
        frame(memories, offset, stride).expect("it passes");
        frame(memories, offset, stride).expect("it passes");
        let text = complaint(&bus, gst::MessageType::Warning);
        assert!(bus.pop_filtered(&[gst::MessageType::Warning, gst::MessageType::Error]).is_none(), "{factory}: once");
        frame(&[1728], 0, 96).expect("it fits");
        assert!(text.contains("plane 0: expected") && text.contains(part), "{factory}: {text}");
    }
}

#[test]
fn what_is_wrong_with_a_state_is_said_once() {
    let folder = Folder::new("edges-once");
    let junk = folder.file("junk");
    std::fs::write(&junk, b"no state at all").expect("a temporary file");
    for factory in ["ssmdenoise", "ssmvad"] {
        ssm_tests::element::init();
        let line =
            format!("audiotestsrc num-buffers=5 ! audio/x-raw,rate=16000 ! {factory} state-in={junk} ! fakesink");
        let pipeline = gst::parse::launch(&line).expect("the line parses");
        let bus = pipeline.bus().expect("a pipeline has a bus");
        let _ = pipeline.set_state(gst::State::Playing);
        let mut told = Vec::new();
        while let Some(message) = bus.timed_pop_filtered(ms(500), &[gst::MessageType::Error, gst::MessageType::Eos]) {
            if let gst::MessageView::Error(e) = message.view()
                && message.src().is_some_and(|src| src.name().starts_with("ssm"))
            {
                told.push(e.error().to_string());
            }
        }
        pipeline.set_state(gst::State::Null).expect("it stops");
        assert_eq!(told.len(), 1, "{factory}: {told:?}");
        assert!(told[0].contains("snapshot") || told[0].contains("state"), "{told:?}");
    }
}

#[test]
fn results_that_were_copied_are_written_once() {
    let folder = Folder::new("edges-copies");
    let lines = folder.file("lines");
    ssm_tests::element::run(&format!(
        "videotestsrc num-buffers=30 ! video/x-raw,framerate=25/1,width=64,height=36 ! ssmevents ! videorate ! \
         video/x-raw,framerate=100/1 ! ssmjson ! filesink location={lines}"
    ));
    let text = std::fs::read_to_string(&lines).expect("lines were written");
    let all: Vec<&str> = text.lines().collect();
    let distinct: std::collections::BTreeSet<&str> = all.iter().copied().collect();
    assert!(all.len() > 15, "{}", all.len());
    assert_eq!(all.len(), distinct.len());

    // What another element adds makes no copy new.
    let model = folder.model("vim", 2).1;
    ssm_tests::element::run(&format!(
        "videotestsrc num-buffers=12 ! video/x-raw,framerate=25/1,width=64,height=36 ! ssmclassify name=a model={model} ! \
         videorate ! video/x-raw,framerate=50/1 ! ssmclassify name=b model={model} ! ssmjson ! filesink location={lines}"
    ));
    let text = std::fs::read_to_string(&lines).expect("lines were written");
    let of = |name: &str| text.lines().filter(|l| l.contains(&format!("\"element\":\"{name}\""))).count();
    assert_eq!(of("a"), 12, "{text}");
    assert!(of("b") > 20, "{text}");
}

#[test]
fn what_is_drawn_on_a_clear_layer_is_seen() {
    ssm_tests::element::init();
    let line = "videotestsrc num-buffers=40 pattern=solid-color foreground-color=0 ! \
                video/x-raw,format=RGBA,width=320,height=180,framerate=25/1 ! ssmevents ! ssmoverlay ! appsink name=end sync=false";
    let pipeline = gst::parse::launch(line).expect("the line parses").downcast::<gst::Pipeline>().expect("a pipeline");
    let end = pipeline.by_name("end").expect("it has an end");
    pipeline.set_state(gst::State::Playing).expect("it plays");
    let mut seen = false;
    for _ in 0..40 {
        let Some(sample) = end.emit_by_name::<Option<gst::Sample>>("pull-sample", &[]) else { break };
        let buffer = sample.buffer().expect("a frame");
        let map = buffer.map_readable().expect("readable");
        let drawn = map.chunks(4).filter(|p| p[..3] != [0, 0, 0]).count();
        let hidden = map.chunks(4).filter(|p| p[..3] == [255, 255, 255] && p[3] == 0).count();
        assert_eq!(hidden, 0, "letters that nobody sees");
        seen |= drawn > 100;
    }
    pipeline.set_state(gst::State::Null).expect("it stops");
    assert!(seen, "nothing was drawn");
}

#[test]
fn frames_need_no_copy_for_lines() {
    let element = make("ssmjson", &[]);
    let mut query = gst::query::Allocation::new(Some(&rgb(32, 18)), false);
    assert!(element.static_pad("sink").expect("it has a pad").query(query.query_mut()));
    assert!(query.find_allocation_meta::<gst_video::VideoMeta>().is_some());
}

#[test]
fn signals_and_names_that_are_nothing_end_no_process() {
    use std::os::unix::ffi::OsStrExt;
    let name = std::path::Path::new(std::ffi::OsStr::from_bytes(b"/nowhere/caf\xe9.safetensors")).to_value();
    for factory in ["ssmdenoise", "ssmvad", "ssmclassify", "ssmaudiotag", "ssmevents", "ssmembed"] {
        let element = make(factory, &[]);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let none: Option<glib::Bytes> = element.emit_by_name("save-state", &[]);
        assert!(none.is_none() && !element.emit_by_name::<bool>("load-state", &[&none]), "{factory}");
        assert!(complaint(&bus, gst::MessageType::Warning).contains("load-state: expected"), "{factory}");
        // A name of a file is bytes.
        for property in ["model", "state-in", "labels-file"] {
            if element.find_property(property).is_some() {
                element.set_property_from_value(property, &name);
            }
        }
        assert!(element.set_state(gst::State::Ready).is_err());
        let text = complaint(&bus, gst::MessageType::Error);
        assert!(text.contains("/nowhere/caf"), "{factory}: {text}");
        element.set_bus(None::<&gst::Bus>);
        let _ = element.set_state(gst::State::Null);
    }
}

#[test]
fn the_same_result_of_another_stretch_is_written_again() {
    let mut vad = Harness::with_element(&make("ssmvad", &[]), Some("sink"), Some("src"));
    vad.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
    vad.push(audio(0, 100, gst::BufferFlags::empty())).expect("flows");
    let heard = vad.pull().expect("what was heard");
    let element = make("ssmjson", &[]);
    let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
    h.set_src_caps(caps("F32LE", 16_000, 1));
    let lines = |h: &mut Harness| {
        h.push(heard.clone()).expect("flows");
        h.push(heard.clone()).expect("flows");
        std::iter::from_fn(|| h.try_pull()).count()
    };
    assert_eq!(lines(&mut h), 1);
    assert_eq!(lines(&mut h), 0);
    for event in [
        gst::event::FlushStop::new(true),
        gst::event::StreamStart::new("other"),
        gst::event::Segment::new(gst::FormattedSegment::<ClockTime>::new().upcast_ref()),
        gst::event::CustomDownstream::new(gst::Structure::new_empty("ssm-reset")),
    ] {
        let what = format!("{event:?}");
        if event.type_() == gst::EventType::FlushStop {
            h.push_event(gst::event::FlushStart::new());
        }
        h.push_event(event);
        if what.contains("flush") {
            h.push_event(gst::event::Segment::new(gst::FormattedSegment::<ClockTime>::new().upcast_ref()));
        }
        assert_eq!(lines(&mut h), 1, "{what}");
    }
}

#[test]
fn a_state_that_is_refused_leaves_the_stream_as_it_was() {
    let other: Option<glib::Bytes> = {
        let element = make("ssmdenoise", &[]);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_caps(caps("F32LE", 16_000, 2), caps("F32LE", 16_000, 2));
        h.push(audio(0, 100, gst::BufferFlags::empty())).expect("flows");
        element.emit_by_name("save-state", &[])
    };
    let run = |load: bool| {
        let (mut h, element) = denoiser(1.0, &[("gap-policy", "reset")]);
        h.push(audio(0, 100, gst::BufferFlags::empty())).expect("flows");
        if load {
            assert!(!element.emit_by_name::<bool>("load-state", &[&other]), "a state of two channels");
        }
        h.push(audio(600, 100, gst::BufferFlags::empty())).expect("flows");
        h.push_event(gst::event::Eos::new());
        (out(&mut h), element.property::<u64>("resets"))
    };
    // At the hole and at the end.
    assert_eq!(run(false).1, 2);
    assert_eq!(run(true), run(false));
}

#[test]
fn a_reset_hides_no_jump_of_time() {
    let run = |reset: bool, discont: gst::BufferFlags, at: u64| {
        let (mut h, element) = denoiser(1.0, &[("reset-on", "caps+segment+eos+jump+discont")]);
        h.push(audio(0, 100, gst::BufferFlags::empty())).expect("flows");
        if reset {
            element.emit_by_name::<()>("reset-state", &[]);
        }
        h.push(audio(at, 100, discont)).expect("flows");
        let new = std::iter::from_fn(|| h.try_pull()).filter(|b| b.flags().contains(gst::BufferFlags::DISCONT));
        new.map(|b| b.pts().map_or(0, ClockTime::mseconds)).collect::<Vec<_>>()
    };
    let none = gst::BufferFlags::empty();
    for (reset, flags) in [(false, none), (true, none), (false, gst::BufferFlags::DISCONT)] {
        assert_eq!(run(reset, flags, 5000), [0, 5000], "reset {reset}, {flags:?}");
        assert_eq!(run(reset, flags, 100), [0], "reset {reset}, {flags:?}");
    }
}

#[test]
fn caps_are_refused_in_words_each_time() {
    let errors = |element: &gst::Element, good: &gst::Caps, bad: &gst::Caps, word: &str| {
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let mut h = Harness::with_element(element, Some("sink"), Some("src"));
        h.play();
        for caps in [bad, good, bad] {
            h.push_event(gst::event::StreamStart::new("one"));
            h.push_event(gst::event::Caps::new(caps));
        }
        let errors = std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::Error])).map(|m| match m.view() {
            gst::MessageView::Error(e) => e.error().to_string(),
            _ => String::new(),
        });
        let errors: Vec<_> = errors.collect();
        assert!(errors.len() == 2 && errors.iter().all(|e| e.contains(word)), "{}: {errors:?}", element.name());
    };
    let four = gst::Caps::builder("audio/x-raw").field("format", "F32LE").field("layout", "interleaved");
    let four = four.field("rate", 16_000).field("channels", 4).build();
    errors(&make("ssmvad", &[]), &caps("F32LE", 16_000, 1), &four, "channel-mask: expected the places of 4 channels");
    errors(
        &make("ssmdenoise", &[]),
        &caps("F32LE", 16_000, 1),
        &four,
        "channel-mask: expected the places of 4 channels",
    );
    let frames = |mode: &str| {
        let caps = gst::Caps::builder("video/x-raw").field("format", "I420").field("width", 32).field("height", 18);
        caps.field("framerate", gst::Fraction::new(25, 1)).field("interlace-mode", mode).build()
    };
    errors(&make("ssmoverlay", &[]), &frames("progressive"), &frames("alternate"), "expected whole caps");
}

#[test]
fn what_is_left_of_a_loaded_state_has_a_time() {
    let save =
        |element: &gst::Element| element.emit_by_name::<Option<glib::Bytes>>("save-state", &[]).expect("a state");
    let load = |element: &gst::Element, bytes: &glib::Bytes| {
        assert!(element.emit_by_name::<bool>("load-state", &[bytes]), "it is taken");
    };
    let reset = || gst::event::CustomDownstream::new(gst::Structure::new_empty("ssm-reset"));
    for end in [gst::event::Eos::new(), reset()] {
        let (mut h, element) = denoiser(1.0, &[]);
        (0..8).for_each(|i| _ = h.push(audio(i * 25, 25, gst::BufferFlags::empty())).expect("flows"));
        load(&element, &save(&element));
        let before = out(&mut h).last().expect("it came out").1;
        h.push_event(end);
        // `out` asks each one for its time.
        let rest = out(&mut h);
        assert!(rest.iter().all(|b| b.0 >= before && b.1 <= ms(200).nseconds()), "{before}: {rest:?}");
        assert!(!rest.is_empty());
    }
    // What follows a state of another place jumps.
    let (mut h, element) = denoiser(1.0, &[]);
    h.push(audio(0, 29, gst::BufferFlags::empty())).expect("flows");
    let early = save(&element);
    h.push(audio(29, 31, gst::BufferFlags::empty())).expect("flows");
    load(&element, &early);
    while h.try_pull().is_some() {}
    h.push(audio(60, 25, gst::BufferFlags::empty())).expect("flows");
    assert!(h.pull().expect("it came out").flags().contains(gst::BufferFlags::DISCONT));
    // Another segment before the first buffer: what is left lies in the one that downstream has.
    let folder = Folder::new("edges-segments");
    std::fs::write(folder.file("state"), &early[..]).expect("a temporary file");
    let (mut h, _element) = denoiser(1.0, &[("state-in", &folder.file("state"))]);
    let mut segment = gst::FormattedSegment::<ClockTime>::new();
    segment.set_start(ClockTime::from_seconds(3600));
    h.push_event(gst::event::Segment::new(segment.upcast_ref()));
    assert!(out(&mut h).iter().all(|b| b.0 < ms(100).nseconds()));
    // Of a stream that ends before it begins it comes out, in a segment of its own.
    let folder = Folder::new("edges-left");
    std::fs::write(folder.file("state"), &early[..]).expect("a temporary file");
    let element = make("ssmdenoise", &[("state-in", &folder.file("state"))]);
    let mut h = Harness::with_element(&element, Some("sink"), None);
    h.add_element_src_pad(&element.static_pad("src").expect("a pad"));
    h.play();
    h.push_event(gst::event::StreamStart::new("left"));
    h.push_event(gst::event::Caps::new(&caps("F32LE", 16_000, 1)));
    h.push_event(gst::event::Eos::new());
    let events: Vec<_> = std::iter::from_fn(|| h.try_pull_event()).map(|event| event.type_()).collect();
    let at = |kind| events.iter().position(|event| *event == kind);
    assert!(
        at(gst::EventType::Segment).is_some() && at(gst::EventType::Segment) < at(gst::EventType::Eos),
        "{events:?}"
    );
    assert!(!out(&mut h).is_empty());
}

#[test]
fn lines_that_nobody_reads_are_told_before_the_first_one() {
    let element = make("ssmjson", &[]);
    let mut h = Harness::with_element(&element, Some("sink"), None);
    h.set_src_caps(rgb(32, 18));
    h.play();
    h.push_event(gst::event::Segment::new(gst::FormattedSegment::<ClockTime>::new().upcast_ref()));
    let mut frame = gst::Buffer::from_mut_slice(vec![0u8; 1728]);
    frame.get_mut().expect("a new buffer").set_pts(ms(0));
    assert_eq!(h.push(frame), Err(gst::FlowError::NotLinked));
}
