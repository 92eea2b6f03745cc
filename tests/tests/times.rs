//! Impossible times: at the end of all time, without end, backwards, absent. Every buffer passes, every sample comes
//! out, nothing panics; and times that are merely unusual do not cost the state.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use gstssm::Results;
use ssm_tests::Rng;
use ssm_tests::audio::{bytes, caps};
use ssm_tests::element::{Folder, make};

const FRAME: usize = 32 * 18 * 3;

/// An element with its bus, and what it is fed with.
struct Bench {
    h: Harness,
    element: gst::Element,
    bus: gst::Bus,
    video: bool,
}

impl Bench {
    fn new(factory: &str, properties: &[(&str, &str)], media: &str, rate: &str) -> Self {
        let element = make(factory, properties);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        let video = media == "video";
        if video {
            h.set_src_caps_str(&format!("video/x-raw,format=RGB,width=32,height=18,framerate={rate}"));
        } else {
            h.set_caps(caps("F32LE", 16_000, 2), caps("F32LE", 16_000, 2));
        }
        Self { h, element, bus, video }
    }

    fn push(&mut self, rng: &mut Rng, pts: Option<ClockTime>, duration: Option<ClockTime>) -> usize {
        let data = if self.video {
            vec![rng.range(0, 255) as u8; FRAME]
        } else {
            let frames = rng.range(0, 400);
            bytes(&rng.normals(2 * frames, 0.1))
        };
        let size = data.len();
        let mut buffer = gst::Buffer::from_mut_slice(data);
        let edit = buffer.get_mut().expect("a new buffer");
        edit.set_pts(pts);
        edit.set_duration(duration);
        self.h.push(buffer).expect("flows");
        size
    }

    fn pull(&mut self) -> (usize, Vec<Results>) {
        let (mut size, mut results) = (0, Vec::new());
        while let Some(buffer) = self.h.try_pull() {
            size += buffer.size();
            results.extend(Results::of(&buffer));
        }
        (size, results)
    }

    fn resets(&self) -> u64 {
        self.element.property("resets")
    }
}

/// Elements, what they take, and models for them.
fn elements(folder: &Folder) -> Vec<(&'static str, &'static str, String)> {
    let path = |family, seed| folder.model(family, seed).1;
    let denoiser = folder.file("denoiser.safetensors");
    let (mut model, _) = folder.model("band_mask", 3);
    let d = model.tensors["blocks.0.full.norm_full.weight"].0[0];
    model.normal(&mut Rng::new(1), "vad.weight", &[1, d], 0.5);
    model.values("vad.bias", &[1], vec![0.1]);
    std::fs::write(&denoiser, model.bytes()).expect("room for files");
    vec![
        ("ssmdenoise", "audio", denoiser.clone()),
        ("ssmdenoise", "audio", path("cleanumamba", 1)),
        ("ssmvad", "audio", denoiser.clone()),
        ("ssmembed", "audio", denoiser),
        ("ssmclassify", "video", path("vim", 3)),
        ("ssmembed", "video", path("vim", 3)),
        ("ssmevents", "video", "builtin:shots".into()),
    ]
}

fn anything(rng: &mut Rng, last: &mut u64) -> Option<ClockTime> {
    const END: u64 = u64::MAX - 1;
    let ns = match rng.range(0, 13) {
        0 => return None,
        1 => END,
        2 => END - rng.range(0, 100_000_000) as u64,
        3 => 1 << 63,
        4 => 0,
        5 => last.saturating_sub(1),
        6 => last.saturating_sub(20_000_000),
        7 => last.saturating_sub(7_000_000_000),
        8 => last.saturating_add(300_000_000).min(END),
        9 => last.saturating_add(u64::MAX / 3).min(END),
        _ => last.saturating_add(40_000_000).min(END),
    };
    *last = ns;
    Some(ClockTime::from_nseconds(ns))
}

#[test]
fn no_time_is_too_odd() {
    let folder = Folder::new("times");
    for (factory, media, model) in elements(&folder) {
        for seed in 0..6 {
            let mut rng = Rng::new(seed);
            let policy = rng.pick(&["step", "hold", "reset"]);
            let max_gap = rng.pick(&["0", "1000000000", "18446744073709551614"]);
            let properties = [("model", &*model), ("gap-policy", policy), ("max-gap", max_gap)];
            let rate = rng.pick(&["25/1", "0/1", "1/2147483647", "2147483647/1"]);
            let mut b = Bench::new(factory, &properties, media, rate);
            let what = format!("{factory} {model} {properties:?} {rate} seed {seed}");
            let (mut last, mut other, mut put, mut got) = (0, 0, 0, 0);
            for _ in 0..if b.video { 25 } else { 60 } {
                let pts = anything(&mut rng, &mut last);
                let duration = anything(&mut rng, &mut other);
                if rng.range(0, 4) == 0 {
                    let event = gst::event::Gap::builder(pts.unwrap_or_default());
                    b.h.push_event(event.duration(duration).build());
                } else {
                    put += b.push(&mut rng, pts, duration);
                }
                got += b.pull().0;
            }
            b.h.push_event(gst::event::Eos::new());
            got += b.pull().0;
            assert_eq!(got, put, "{what}: as much out as in");
            let kinds = [gst::MessageType::Error, gst::MessageType::Warning];
            let complaint = b.bus.pop_filtered(&kinds);
            assert!(complaint.is_none(), "{what}: {complaint:?}");
        }
    }
}

/// A camera without a fixed rate gives frames closer than the usual 40 ms; durations may be too long or nothing.
#[test]
fn frames_may_come_closer_than_they_last() {
    let folder = Folder::new("rates");
    let (_, model) = folder.model("vim", 3);
    let ms = ClockTime::from_mseconds;
    for (rate, duration) in [
        ("0/1", None),
        ("25/1", None),
        ("25/1", Some(ms(90_000_000))),
        ("60/1", Some(ClockTime::ZERO)),
        ("60/1", Some(ClockTime::MAX)),
    ] {
        let mut b = Bench::new("ssmclassify", &[("model", &model)], "video", rate);
        for i in 0..10 {
            b.push(&mut Rng::new(i), Some(ms(16 * i)), duration);
        }
        assert_eq!(b.resets(), 0, "{rate} {duration:?}");
        // A frame before the last one is a step back.
        b.push(&mut Rng::new(0), Some(ms(40)), duration);
        assert_eq!(b.resets(), 1, "{rate} {duration:?}");
    }
}

#[test]
fn buffers_without_times_go_on_between_those_with_times() {
    let folder = Folder::new("timeless");
    for (factory, media, model) in elements(&folder) {
        let mut b = Bench::new(factory, &[("model", &model)], media, "25/1");
        let mut rng = Rng::new(1);
        let mut at = ClockTime::ZERO;
        let (mut put, mut got) = (0, 0);
        for i in 0..12 {
            let size = b.push(&mut rng, if i % 3 == 0 { Some(at) } else { None }, None);
            let frames = if b.video { 640 } else { size as u64 / 8 };
            at += ClockTime::from_nseconds(frames * 62_500);
            put += size;
            got += b.pull().0;
        }
        assert_eq!(b.resets(), 0, "{factory}");
        b.h.push_event(gst::event::Eos::new());
        got += b.pull().0;
        assert_eq!(got, put, "{factory}");
    }
}

/// Events of a stream without any times are told at its end, at the times that its rate gives.
#[test]
fn a_stream_without_times_counts_from_nothing() {
    let mut timed = vec![];
    for with_times in [true, false] {
        let properties = [("threshold", "0.01"), ("low-threshold", "0.005"), ("cooldown", "0")];
        let mut b = Bench::new("ssmevents", &properties, "video", "25/1");
        for i in 0..40 {
            let pts = with_times.then(|| ClockTime::from_mseconds(40 * i));
            b.push(&mut Rng::new(i / 10), pts, None);
        }
        b.h.push_event(gst::event::Eos::new());
        let (_, results) = b.pull();
        let events: Vec<_> = results.into_iter().filter_map(|r| r.event).collect();
        let messages = std::iter::from_fn(|| b.bus.pop_filtered(&[gst::MessageType::Element]));
        let told = messages.filter(|m| m.structure().is_some_and(|s| s.name() == "ssm-event")).count();
        assert!(told > 0);
        timed.push((events, told));
    }
    assert_eq!(timed[0], timed[1]);
}

#[test]
fn a_latency_without_end_stays_one() {
    let folder = Folder::new("endless-latency");
    let (_, model) = folder.model("band_mask", 3);
    let mut b = Bench::new("ssmdenoise", &[("model", &model)], "audio", "25/1");
    b.h.set_upstream_latency(ClockTime::MAX);
    assert_eq!(b.h.query_latency(), Some(ClockTime::MAX));
}

/// 900 parts in a million make 90 ms in these 100 s, more than buffers may be off by.
#[test]
fn a_clock_that_drifts_costs_no_state() {
    let folder = Folder::new("drift");
    for (factory, media, model) in elements(&folder).into_iter().filter(|(_, media, _)| *media == "audio") {
        for parts in [-900, 900] {
            let mut b = Bench::new(factory, &[("model", &model)], media, "25/1");
            let sound = bytes(&Rng::new(2).normals(2 * 1600, 0.1));
            let pts = |i: i64| 10_000_000_000 + i * 100_000_000 + i * 100 * parts;
            let mut last = 0;
            for i in 0..1000 {
                let mut buffer = gst::Buffer::from_mut_slice(sound.clone());
                let edit = buffer.get_mut().expect("a new buffer");
                edit.set_pts(ClockTime::from_nseconds(pts(i) as u64));
                b.h.push(buffer).expect("flows");
                while let Some(out) = b.h.try_pull() {
                    last = out.pts().expect("a time").nseconds() as i64;
                }
            }
            assert_eq!(b.resets(), 0, "{factory}, {parts}");
            let off = last - pts(999);
            assert!(
                (-200_000_000..=1_000_000).contains(&off),
                "{factory}, {parts}: {off} ns from the last buffer's time"
            );
        }
    }
}
