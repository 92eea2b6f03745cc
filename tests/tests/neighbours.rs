//! What elements owe those before and behind them: results pass, whole frames come, ends come in time, latency is told.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use ssm_tests::Rng;
use ssm_tests::audio::{Listening, bytes, caps};
use ssm_tests::element::{Folder, init, make, messages, rgb};
use ssm_tests::fabricate::Fabricated;

const HOP: usize = 160;

/// `ssmdenoise` in a harness, with caps.
fn denoiser(properties: &[(&str, &str)]) -> Harness {
    let mut h = Harness::with_element(&make("ssmdenoise", properties), Some("sink"), Some("src"));
    h.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
    h
}

fn push(h: &mut Harness, frames: usize, pts: Option<ClockTime>) {
    let mut buffer = gst::Buffer::from_slice(bytes(&Rng::new(frames as u64).normals(frames, 0.1)));
    buffer.get_mut().expect("a new buffer").set_pts(pts);
    h.push(buffer).expect("it flows");
}

/// Times and frames of what has come out.
fn pull(h: &mut Harness) -> Vec<(Option<ClockTime>, usize)> {
    std::iter::from_fn(|| h.try_pull()).map(|b| (b.pts(), b.size() / 4)).collect()
}

fn ms(n: u64) -> ClockTime {
    ClockTime::from_mseconds(n)
}

#[test]
fn results_pass_through_the_denoiser() {
    // 50 hops of 10 ms, one result each; the last buffers of a stream come out at its end.
    let line = "audiotestsrc num-buffers=10 samplesperbuffer=800 wave=white-noise volume=0.1 ! \
                audio/x-raw,rate=16000,channels=1 ! ssmvad post-messages=false ! ssmdenoise ! ssmjson ! \
                appsink name=lines sync=false";
    init();
    let pipeline = gst::parse::launch(line).expect("it parses").downcast::<gst::Pipeline>().expect("a pipeline");
    let sink = pipeline.by_name("lines").and_then(|s| s.downcast::<gst_app::AppSink>().ok()).expect("a sink");
    pipeline.set_state(gst::State::Playing).expect("it plays");
    let mut steps = vec![];
    while let Ok(sample) = sink.pull_sample() {
        let map = sample.buffer().expect("a buffer").map_readable().expect("readable");
        for line in String::from_utf8_lossy(&map).lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            steps.push(line["step"].as_u64().expect("a step"));
        }
    }
    pipeline.set_state(gst::State::Null).expect("it stops");
    assert_eq!(steps, (1..=50).collect::<Vec<_>>());
}

#[test]
fn frames_come_whole_and_not_as_a_rectangle_of_larger_ones() {
    let folder = Folder::new("crop");
    let (_, vim) = folder.model("vim", 1);
    for (factory, model) in [("ssmclassify", Some(&*vim)), ("ssmevents", None), ("ssmoverlay", None)] {
        let element = make(factory, &model.map(|m| ("model", m)).into_iter().collect::<Vec<_>>());
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_caps(rgb(32, 24), rgb(32, 24));
        // A sink that takes both.
        element.static_pad("src").expect("a pad").add_probe(gst::PadProbeType::QUERY_DOWNSTREAM, |_, info| {
            let Some(gst::QueryViewMut::Allocation(q)) = info.query_mut().map(|q| q.view_mut()) else {
                return gst::PadProbeReturn::Ok;
            };
            q.add_allocation_meta::<gst_video::VideoMeta>(None);
            q.add_allocation_meta::<gst_video::VideoCropMeta>(None);
            gst::PadProbeReturn::Handled
        });
        let mut query = gst::query::Allocation::new(Some(&rgb(32, 24)), false);
        assert!(element.static_pad("sink").expect("a pad").query(&mut query), "{factory}");
        assert!(query.find_allocation_meta::<gst_video::VideoMeta>().is_some(), "{factory}: planes may lie anywhere");
        assert!(query.find_allocation_meta::<gst_video::VideoCropMeta>().is_none(), "{factory}");
    }
}

#[test]
fn how_long_a_batch_may_wait_is_latency() {
    let folder = Folder::new("wait");
    let (_, vim) = folder.model("vim", 1);
    let wait = ("batch-timeout", "5000000");
    let own = denoiser(&[]);
    let own = own.query_latency().expect("it answers");
    let h = denoiser(&[wait]);
    assert_eq!(h.query_latency(), Some(own + ms(5)));
    let h = denoiser(&[wait, ("batch-size", "1")]);
    assert_eq!(h.query_latency(), Some(own));
    let element = make("ssmclassify", &[("model", &vim), wait]);
    let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
    h.set_caps(rgb(32, 24), rgb(32, 24));
    h.set_upstream_latency(ms(7));
    assert_eq!(h.query_latency(), Some(ms(12)));
}

#[test]
fn the_end_of_a_segment_comes_before_what_says_that_it_is_over() {
    for event in [gst::event::SegmentDone::new(ms(100)), gst::event::StreamStart::new("another")] {
        let mut h = denoiser(&[]);
        push(&mut h, 10 * HOP + 7, Some(ClockTime::ZERO));
        let before: usize = pull(&mut h).iter().map(|p| p.1).sum();
        assert!(before < 10 * HOP, "something is inside");
        while h.try_pull_event().is_some() {}
        let kind = event.type_();
        assert!(h.push_event(event));
        let rest: usize = pull(&mut h).iter().map(|p| p.1).sum();
        assert_eq!(before + rest, 10 * HOP + 7, "{kind:?}");
    }
    // What was heard to its end is told.
    let mut l = Listening::new("ssmvad", &[("threshold", "0.01"), ("min-silence", "0")], "F32LE", 16_000, 1);
    l.push(&bytes(&speech()), Some(ClockTime::ZERO)).expect("it flows");
    assert!(l.messages("ssm-vad").iter().all(|m| m.get::<String>("state") != Ok("end".into())), "it is still talking");
    l.h.push_event(gst::event::SegmentDone::new(ms(1000)));
    let told = l.messages("ssm-vad");
    assert!(told.iter().any(|m| m.get::<String>("state") == Ok("end".into())), "{told:?}");
}

/// A second of buzzing that begins at once.
fn speech() -> Vec<f32> {
    (0..16_000).map(|t| ((t % 140) as f32 / 140.0 - 0.5) * (0.6 + 0.4 * (t as f32 / 1200.0).sin())).collect()
}

#[test]
fn buffers_without_times_go_on_behind_a_reset() {
    let mut h = denoiser(&[]);
    push(&mut h, 10 * HOP, Some(ms(500)));
    push(&mut h, 10 * HOP, None);
    pull(&mut h);
    h.element().expect("an element").emit_by_name::<()>("reset-state", &[]);
    for n in [10 * HOP, 10 * HOP] {
        push(&mut h, n, None);
    }
    let times: Vec<_> = pull(&mut h).iter().map(|p| p.0).collect();
    assert!(times.len() >= 3 && times.iter().all(Option::is_some), "{times:?}");
    assert!(times.contains(&Some(ms(700))), "{times:?}");
    // As they do behind one that came with the stream.
    let reset = gst::event::CustomDownstream::new(gst::Structure::new_empty("ssm-reset"));
    h.push_event(reset);
    pull(&mut h);
    push(&mut h, 10 * HOP, None);
    assert_eq!(pull(&mut h)[0].0, Some(ms(900)));
    // Another stream's have none.
    h.push_event(gst::event::StreamStart::new("another"));
    pull(&mut h);
    push(&mut h, 10 * HOP, None);
    assert_eq!(pull(&mut h)[0].0, None);
    // One that has a time begins there.
    h.element().expect("an element").emit_by_name::<()>("reset-state", &[]);
    push(&mut h, 10 * HOP, Some(ms(5000)));
    push(&mut h, 10 * HOP, None);
    assert!(pull(&mut h).iter().any(|p| p.0 == Some(ms(5000))));
}

#[test]
fn a_state_that_was_loaded_outlives_a_reset_that_was_asked_for_before() {
    let run = |h: &mut Harness| {
        push(h, 20 * HOP, Some(ms(1000)));
        let mut out = vec![];
        while let Some(b) = h.try_pull() {
            out.extend_from_slice(&b.map_readable().expect("readable"));
        }
        out
    };
    let mut h = denoiser(&[]);
    push(&mut h, 20 * HOP, Some(ClockTime::ZERO));
    let state: gst::glib::Bytes =
        h.element().expect("an element").emit_by_name::<Option<gst::glib::Bytes>>("save-state", &[]).expect("a state");
    let [with, without] = [true, false].map(|ask| {
        let element = make("ssmdenoise", &[]);
        if ask {
            element.emit_by_name::<()>("reset-state", &[]);
        }
        assert!(element.emit_by_name::<bool>("load-state", &[&state]));
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
        run(&mut h)
    });
    assert!(with == without && with != run(&mut denoiser(&[])), "the reset undid it");
}

#[test]
fn a_model_named_after_a_failed_start_is_opened_by_the_next_one() {
    init();
    let folder = Folder::new("failed");
    let (_, path): (Fabricated, String) = folder.model("band_mask", 1);
    let element = make("ssmdenoise", &[("state-in", &folder.file("absent")), ("allow-reload", "true")]);
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    assert!(element.set_state(gst::State::Paused).is_err());
    element.set_state(gst::State::Null).expect("it stops");
    while bus.pop().is_some() {}
    // Not there yet: an element that plays would go back to the old one, and say so.
    let later = folder.file("later.safetensors");
    element.set_property("model", &later);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(element.property::<String>("model"), later);
    assert!(bus.pop().is_none());
    std::fs::copy(path, &later).expect("copied");
    element.set_property("state-in", None::<String>);
    element.set_state(gst::State::Ready).expect("it opens");
    element.set_state(gst::State::Null).expect("it stops");
}

#[test]
fn a_single_stream_does_not_wait_for_others() {
    // Waiting its whole timeout at each of 200 buffers it would take minutes.
    let line = "audiotestsrc num-buffers=200 samplesperbuffer=160 ! audio/x-raw,rate=16000,channels=1 ! \
                ssmdenoise batch-timeout=1000000000 ! fakesink sync=false";
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(messages(line).len()));
    assert!(wait.recv_timeout(std::time::Duration::from_secs(60)).is_ok_and(|told| told > 0));
}
