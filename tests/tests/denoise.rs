//! `ssmdenoise` as an application meets it: samples, times, latency, the life of its state, bad input.

use gst::prelude::*;
use gst::{Caps, ClockTime};
use gst_check::Harness;
use ssm_tests::Rng;
use ssm_tests::element::{Folder, complaint, init, make};

const RATE: u64 = 16_000;

/// Seeds from here on draw a spectral network, those before a network of the waveform.
const SPECTRAL: u64 = 100;

/// A small random network and its latency in samples.
fn model(folder: &Folder, seed: u64) -> (String, u64) {
    let family = if seed < SPECTRAL { "cleanumamba" } else { "band_mask" };
    let (model, path) = folder.model(family, seed);
    let opened = model.open(ssm_models::kernels::CpuLevel::best()).expect("it opens");
    let ssm_models::Signal::Samples { hop, .. } = opened.info().input else { panic!("no samples") };
    (path, (hop + opened.info().delay) as u64)
}

fn caps(format: &str, channels: i32) -> Caps {
    let mask = if channels > 2 { gst::Bitmask::new((1 << channels) - 1) } else { gst::Bitmask::new(3) };
    let caps = Caps::builder("audio/x-raw")
        .field("format", format)
        .field("rate", RATE as i32)
        .field("channels", channels)
        .field("layout", "interleaved");
    if channels > 1 { caps.field("channel-mask", mask).build() } else { caps.build() }
}

fn element(model: &str, properties: &[(&str, &str)]) -> gst::Element {
    make("ssmdenoise", &[&[("model", model)], properties].concat())
}

/// Time, duration and frames of a buffer.
type Piece = (Option<ClockTime>, Option<ClockTime>, usize);

struct Bench {
    h: Harness,
    bpf: usize,
}

impl Bench {
    fn new(model: &str, properties: &[(&str, &str)], format: &str, channels: i32) -> Self {
        let element = element(model, properties);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_caps(caps(format, channels), caps(format, channels));
        let bpf = channels as usize * if format == "F32LE" { 4 } else { 2 };
        Self { h, bpf }
    }

    fn mono(model: &str) -> Self {
        Self::new(model, &[], "F32LE", 1)
    }

    fn push(&mut self, bytes: &[u8], pts: Option<ClockTime>) -> Result<gst::FlowSuccess, gst::FlowError> {
        let mut buffer = gst::Buffer::from_slice(bytes.to_vec());
        buffer.get_mut().expect("a new buffer").set_pts(pts);
        self.h.push(buffer)
    }

    /// Pushes samples in pieces, times counted from `start`.
    fn pieces(&mut self, bytes: &[u8], cuts: &[usize], start: ClockTime) {
        let mut at = 0;
        for n in cuts {
            let pts = start + time(at as u64);
            self.push(&bytes[at * self.bpf..(at + n) * self.bpf], Some(pts)).expect("flows");
            at += n;
        }
    }

    /// What has come out so far: bytes, and for each buffer its time and its frames.
    fn pull(&mut self) -> (Vec<u8>, Vec<Piece>) {
        let (mut bytes, mut times) = (Vec::new(), Vec::new());
        while let Some(buffer) = self.h.try_pull() {
            times.push((buffer.pts(), buffer.duration(), buffer.size() / self.bpf));
            bytes.extend_from_slice(&buffer.map_readable().expect("readable"));
        }
        (bytes, times)
    }

    fn end(&mut self) -> Vec<u8> {
        self.h.push_event(gst::event::Eos::new());
        self.pull().0
    }

    fn count(&self, name: &str) -> u64 {
        self.h.element().expect("an element").property(name)
    }
}

fn time(frames: u64) -> ClockTime {
    ClockTime::from_nseconds(frames * 1_000_000_000 / RATE)
}

fn bytes(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|s| s.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The network's output for a clip, whole.
fn clean(model: &str, samples: &[f32]) -> Vec<u8> {
    let mut b = Bench::mono(model);
    b.pieces(&bytes(samples), &[samples.len()], ClockTime::ZERO);
    let mut out = b.pull().0;
    out.extend(b.end());
    out
}

#[test]
fn any_cut_gives_the_same_samples_with_exact_times() {
    let folder = Folder::new("cut");
    let mut rng = Rng::new(1);
    for seed in (0..6).chain(SPECTRAL..SPECTRAL + 6) {
        let (model, _) = model(&folder, seed);
        let n = rng.range(1, 3000);
        let samples = rng.normals(n, 0.1);
        let whole = clean(&model, &samples);
        assert_eq!(whole.len(), 4 * n, "as many samples out as in");
        assert_ne!(whole, bytes(&samples), "the element did something");
        let start = ClockTime::from_mseconds(1234);
        let mut b = Bench::mono(&model);
        b.pieces(&bytes(&samples), &rng.cuts(n), start);
        let (mut out, mut times) = b.pull();
        b.h.push_event(gst::event::Eos::new());
        let (rest, rest_times) = b.pull();
        out.extend(rest);
        times.extend(rest_times);
        assert!(out == whole, "seed {seed}: the cut changed samples");
        let mut at = 0;
        for (pts, duration, frames) in times {
            assert_eq!(pts, Some(start + time(at)), "seed {seed}: time of frame {at}");
            at += frames as u64;
            assert_eq!(pts.zip(duration).map(|(p, d)| p + d), Some(start + time(at)));
        }
    }
}

#[test]
fn the_latency_query_is_the_measured_delay() {
    let folder = Folder::new("latency");
    for seed in (0..5).chain(SPECTRAL..SPECTRAL + 5) {
        let (model, expected) = model(&folder, seed);
        let mut b = Bench::mono(&model);
        b.h.set_upstream_latency(ClockTime::from_mseconds(7));
        assert_eq!(b.h.query_latency(), Some(ClockTime::from_mseconds(7) + time(expected)), "seed {seed}");
        assert_eq!(b.count("latency-ns"), time(expected).nseconds());
        // One sample at a time: the first comes out when `expected` are in.
        let mut taken = 0;
        while b.h.buffers_in_queue() == 0 {
            b.push(&bytes(&[0.25]), Some(time(taken))).expect("flows");
            taken += 1;
        }
        assert_eq!(taken, expected, "seed {seed}: samples in when the first came out");
    }
}

#[test]
fn channels_are_streams_of_their_own() {
    let folder = Folder::new("channels");
    let (model, _) = model(&folder, 3);
    let mut rng = Rng::new(2);
    let parts: Vec<Vec<f32>> = (0..3).map(|_| rng.normals(1500, 0.1)).collect();
    let mixed: Vec<f32> = (0..1500).flat_map(|i| parts.iter().map(move |p| p[i])).collect();
    let mut b = Bench::new(&model, &[], "F32LE", 3);
    b.pieces(&bytes(&mixed), &rng.cuts(1500), ClockTime::ZERO);
    let mut out = b.pull().0;
    out.extend(b.end());
    let out = floats(&out);
    for (c, part) in parts.iter().enumerate() {
        let alone = floats(&clean(&model, part));
        assert!(out.iter().skip(c).step_by(3).eq(&alone), "channel {c} differs from the channel alone");
    }
}

#[test]
fn sixteen_bit_samples_are_rounded_not_changed() {
    let folder = Folder::new("s16");
    let (model, _) = model(&folder, 2);
    let mut rng = Rng::new(3);
    let ints: Vec<i16> = (0..2000).map(|_| (rng.normal() * 3000.0) as i16).collect();
    let same: Vec<f32> = ints.iter().map(|s| f32::from(*s) / 32768.0).collect();
    let want: Vec<u8> = floats(&clean(&model, &same))
        .iter()
        .flat_map(|s| ((s * 32768.0).round().clamp(-32768.0, 32767.0) as i16).to_le_bytes())
        .collect();
    let mut b = Bench::new(&model, &[], "S16LE", 1);
    let bytes: Vec<u8> = ints.iter().flat_map(|s| s.to_le_bytes()).collect();
    b.pieces(&bytes, &rng.cuts(2000), ClockTime::ZERO);
    let mut out = b.pull().0;
    out.extend(b.end());
    assert!(out == want);
}

/// Runs `first`, then `event`, then `second`, and returns what came out from the event on.
fn after(model: &str, first: &[f32], event: impl FnOnce(&mut Bench), second: &[f32], start: ClockTime) -> Vec<u8> {
    let mut b = Bench::mono(model);
    b.pieces(&bytes(first), &[first.len()], ClockTime::ZERO);
    let head = b.pull().0;
    event(&mut b);
    let between = b.pull().0;
    b.pieces(&bytes(second), &[second.len()], start);
    let mut out = b.pull().0;
    out.extend(b.end());
    // Nothing is lost: what was inside came out with the event, or was thrown away by a flush.
    assert!(head.len() + between.len() + out.len() <= 4 * (first.len() + second.len()));
    out
}

#[test]
fn flush_segment_signal_event_and_jumps_reset() {
    let folder = Folder::new("reset");
    let (model, _) = model(&folder, 4);
    let mut rng = Rng::new(4);
    let (first, second) = (rng.normals(1111, 0.1), rng.normals(900, 0.1));
    let next = time(1111);
    let fresh = clean(&model, &second);
    let went_on = after(&model, &first, |_| (), &second, next);
    assert!(!went_on.ends_with(&fresh[400..]), "without an event the state goes on");
    let check = |what: &str, out: Vec<u8>, resets: u64| {
        assert!(out.ends_with(&fresh), "{what}: the state was not reset");
        assert!(resets > 0, "{what}: the reset was not counted");
    };
    let mut resets = 0;
    let flush = |b: &mut Bench| {
        b.h.push_event(gst::event::FlushStart::new());
        b.h.push_event(gst::event::FlushStop::new(true));
        b.h.push_event(gst::event::Segment::new(gst::FormattedSegment::<ClockTime>::new().upcast_ref()));
        resets = b.count("resets");
    };
    let out = after(&model, &first, flush, &second, ClockTime::ZERO);
    check("flush", out.clone(), resets);
    assert_eq!(out.len(), fresh.len(), "a flush throws away what is inside");
    let segment = |b: &mut Bench| {
        let mut segment = gst::FormattedSegment::<ClockTime>::new();
        segment.set_start(ClockTime::from_seconds(9));
        b.h.push_event(gst::event::Segment::new(segment.upcast_ref()));
        resets = b.count("resets");
    };
    check("segment", after(&model, &first, segment, &second, ClockTime::from_seconds(9)), resets);
    let signal = |b: &mut Bench| b.h.element().expect("an element").emit_by_name::<()>("reset-state", &[]);
    check("signal", after(&model, &first, signal, &second, next), 1);
    let event = |b: &mut Bench| {
        let reset = gst::Structure::new_empty("ssm-reset");
        b.h.push_event(gst::event::CustomDownstream::builder(reset).build());
        resets = b.count("resets");
    };
    check("event", after(&model, &first, event, &second, next), resets);
    let jump = next + ClockTime::from_seconds(5);
    check("long gap", after(&model, &first, |_| (), &second, jump), 1);
    let mut b = Bench::mono(&model);
    b.pieces(&bytes(&first), &[1111], ClockTime::from_seconds(5));
    b.pieces(&bytes(&second), &[900], ClockTime::from_seconds(2));
    let (mut out, times) = b.pull();
    out.extend(b.end());
    check("backwards", out, b.count("resets"));
    assert!(times.iter().any(|t| t.0 == Some(ClockTime::from_seconds(2))), "time begins anew after a jump back");
}

#[test]
fn a_discont_flag_alone_changes_nothing() {
    let folder = Folder::new("discont");
    let (model, _) = model(&folder, 1);
    let samples = Rng::new(5).normals(1000, 0.1);
    let mut b = Bench::mono(&model);
    for (i, part) in samples.chunks(100).enumerate() {
        let mut buffer = gst::Buffer::from_slice(bytes(part));
        let edit = buffer.get_mut().expect("a new buffer");
        edit.set_pts(time(100 * i as u64));
        edit.set_flags(gst::BufferFlags::DISCONT);
        b.h.push(buffer).expect("flows");
    }
    let mut out = b.pull().0;
    out.extend(b.end());
    assert!(out == clean(&model, &samples));
    assert_eq!(b.count("resets"), 0);
}

#[test]
fn a_gap_lets_out_what_is_inside_and_ages_the_state() {
    let folder = Folder::new("gap");
    let (model, latency) = model(&folder, 0);
    let mut rng = Rng::new(6);
    let (first, second) = (rng.normals(1003, 0.1), rng.normals(900, 0.1));
    let gap = ClockTime::from_mseconds(300);
    let mut tails = Vec::new();
    for policy in ["step", "hold", "reset"] {
        let mut b = Bench::new(&model, &[("gap-policy", policy)], "F32LE", 1);
        b.pieces(&bytes(&first), &[1003], ClockTime::ZERO);
        b.pieces(&bytes(&second), &[900], time(1003) + gap);
        let (mut out, times) = b.pull();
        let before: usize = times.iter().take_while(|t| t.0 < Some(time(1003))).map(|t| t.2).sum();
        assert_eq!(before, 1003, "{policy}: all that came before the gap is out before what follows");
        let start = times.iter().map(|t| t.0).find(|t| *t >= Some(time(1003)));
        assert_eq!(start, Some(Some(time(1003) + gap)), "{policy}: time goes on behind the gap");
        out.extend(b.end());
        assert_eq!(out.len(), 4 * 1903, "{policy}");
        let whole = clean(&model, &first);
        assert!(out[..4 * 1003] == whole, "{policy}: the end before the gap is that of a whole clip");
        tails.push(out[4 * 1003..].to_vec());
    }
    assert!(latency < 900);
    assert!(tails[2] == clean(&model, &second), "reset: the state is fresh");
    assert!(tails[0] != tails[1], "step differs from hold");
    assert!(tails[1] != tails[2], "hold differs from reset");
    assert!(tails[0] != tails[2], "step differs from reset");
}

#[test]
fn a_gap_event_is_a_gap() {
    let folder = Folder::new("gapevent");
    let (model, _) = model(&folder, 3);
    let mut rng = Rng::new(7);
    let (first, second) = (rng.normals(1000, 0.1), rng.normals(900, 0.1));
    let gap = ClockTime::from_mseconds(300);
    let by_time = after(&model, &first, |_| (), &second, time(1000) + gap);
    let event = |b: &mut Bench| {
        b.h.push_event(gst::event::Gap::builder(time(1000)).duration(gap).build());
    };
    let by_event = after(&model, &first, event, &second, time(1000) + gap);
    assert!(by_time.ends_with(&by_event) && by_event.len() == 4 * 900);
}

#[test]
fn gaps_that_follow_each_other_give_no_sample_twice() {
    let folder = Folder::new("gaps");
    let mut rng = Rng::new(21);
    for seed in [0, 1, 2, SPECTRAL, SPECTRAL + 1] {
        let (model, _) = model(&folder, seed);
        for policy in ["step", "hold"] {
            let mut b = Bench::new(&model, &[("gap-policy", policy)], "F32LE", 1);
            let (mut at, mut pieces) = (ClockTime::ZERO, vec![]);
            // Long and short pieces, and gaps with nothing between them.
            for n in [1500, 0, 1, 40, 700, 0, 3, 0, 0, 99] {
                b.push(&bytes(&rng.normals(n, 0.1)), Some(at)).expect("flows");
                pieces.push((at, n));
                at += time(n as u64);
                b.h.push_event(gst::event::Gap::builder(at).duration(ClockTime::from_mseconds(100)).build());
                at += ClockTime::from_mseconds(100);
            }
            let mut out = b.pull().1;
            b.h.push_event(gst::event::Eos::new());
            out.extend(b.pull().1);
            for (i, (start, n)) in pieces.iter().enumerate() {
                let end = *start + time(*n as u64);
                let of = out.iter().filter(|(pts, ..)| *pts >= Some(*start) && *pts < Some(end));
                let got: usize = of.map(|(.., frames)| frames).sum();
                assert_eq!(got, *n, "seed {seed}, {policy}: samples of piece {i}");
            }
            assert_eq!(out.iter().map(|o| o.2).sum::<usize>(), 2343, "seed {seed}, {policy}");
        }
    }
}

#[test]
fn a_second_process_goes_on_to_the_byte() {
    let folder = Folder::new("handover");
    let mut rng = Rng::new(8);
    let samples = rng.normals(2500, 0.1);
    let cases = [0, 1, 63, 700, 1999, 2500].map(|cut| [(5, cut), (SPECTRAL, cut)]);
    for (seed, cut) in cases.into_iter().flatten() {
        let (model, _) = model(&folder, seed);
        let whole = clean(&model, &samples);
        let state = folder.file("state");
        let mut a = Bench::new(&model, &[("state-out", &state)], "F32LE", 1);
        a.pieces(&bytes(&samples[..cut]), &rng.cuts(cut), ClockTime::ZERO);
        let mut out = a.pull().0;
        out.extend(a.end());
        drop(a);
        let mut b = Bench::new(&model, &[("state-in", &state)], "F32LE", 1);
        b.pieces(&bytes(&samples[cut..]), &rng.cuts(2500 - cut), time(cut as u64));
        let (rest, times) = b.pull();
        if let Some((pts, ..)) = times.first() {
            assert_eq!(*pts, Some(time(out.len() as u64 / 4)), "cut at {cut}: time goes on");
        }
        out.extend(rest);
        out.extend(b.end());
        assert!(out == whole, "cut at {cut}");
    }
}

#[test]
fn save_and_load_signals_carry_the_state() {
    let folder = Folder::new("signals");
    let (model, _) = model(&folder, 5);
    let samples = Rng::new(9).normals(2000, 0.1);
    let mut a = Bench::mono(&model);
    a.pieces(&bytes(&samples[..1234]), &[1234], ClockTime::ZERO);
    let mut out = a.pull().0;
    let saved: Option<glib::Bytes> = a.h.element().expect("an element").emit_by_name("save-state", &[]);
    let saved = saved.expect("there is a state");
    let mut b = Bench::mono(&model);
    let broken = glib::Bytes::from(&saved[..saved.len() - 3]);
    let element = b.h.element().expect("an element");
    assert!(!element.emit_by_name::<bool>("load-state", &[&broken]), "a truncated state is refused");
    assert!(element.emit_by_name::<bool>("load-state", &[&saved]));
    b.pieces(&bytes(&samples[1234..]), &[766], time(1234));
    out.extend(b.pull().0);
    out.extend(b.end());
    assert!(out == clean(&model, &samples));
}

#[test]
fn a_model_that_cannot_be_opened_is_an_error_that_names_it() {
    init();
    let folder = Folder::new("models");
    let text = folder.file("text.pth");
    std::fs::write(&text, "no checkpoint").expect("a temporary file");
    let vim = ssm_tests::golden().join("vim_tiny_cfg_a.safetensors").display().to_string();
    for (model, parts) in [
        (folder.file("absent.pth"), vec!["absent.pth"]),
        (text, vec!["text.pth"]),
        (vim, vec!["samples", "vim"]),
        ("builtin:nothing".to_owned(), vec!["builtin", "nothing"]),
    ] {
        let element = element(&model, &[]);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        assert!(element.set_state(gst::State::Ready).is_err(), "{model} was opened");
        let text = complaint(&bus, gst::MessageType::Error);
        for part in parts {
            assert!(text.contains(part), "{model}: {text:?} does not name {part:?}");
        }
        element.set_state(gst::State::Null).expect("back to NULL");
    }
}

#[test]
fn odd_sizes_and_numbers_that_are_none_are_told() {
    let folder = Folder::new("odd");
    let (model, _) = model(&folder, 1);
    let mut b = Bench::new(&model, &[], "F32LE", 2);
    let bus = gst::Bus::new();
    b.h.element().expect("an element").set_bus(Some(&bus));
    b.push(&[], Some(ClockTime::ZERO)).expect("an empty buffer flows");
    let mut samples = Rng::new(10).normals(800, 0.1);
    samples[100] = f32::NAN;
    samples[101] = f32::INFINITY;
    b.push(&bytes(&samples), Some(ClockTime::ZERO)).expect("flows");
    let text = complaint(&bus, gst::MessageType::Warning);
    assert!(text.contains("sample 100") && text.contains("NaN"), "{text}");
    let out = floats(&b.pull().0);
    assert!(!out.is_empty() && out.iter().all(|s| s.is_finite()));
    let out = b.push(&[0; 13], Some(time(400)));
    assert_eq!(out, Err(gst::FlowError::Error));
    let text = complaint(&bus, gst::MessageType::Error);
    assert!(text.contains("multiple of 8") && text.contains("13"), "{text}");
}

#[test]
fn other_rates_and_formats_do_not_negotiate() {
    let folder = Folder::new("caps");
    let (model, _) = model(&folder, 1);
    let element = element(&model, &[]);
    element.set_state(gst::State::Ready).expect("it opens");
    let allowed = element.static_pad("sink").expect("a sink").query_caps(None);
    assert!(caps("F32LE", 1).is_subset(&allowed) && caps("S16LE", 8).is_subset(&allowed));
    let other = Caps::builder("audio/x-raw").field("rate", 48_000).build();
    assert!(!other.can_intersect(&allowed), "48 kHz: the model runs at 16 kHz");
    assert!(!caps("S32LE", 1).can_intersect(&allowed));
    element.set_state(gst::State::Null).expect("back to NULL");
}

#[test]
fn the_model_message_comes_once_at_ready() {
    let folder = Folder::new("message");
    let (model, _) = model(&folder, 1);
    let element = element(&model, &[]);
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    for _ in 0..2 {
        element.set_state(gst::State::Ready).expect("it opens");
    }
    let mut told = 0;
    while let Some(message) = bus.pop() {
        if let gst::MessageView::Element(e) = message.view() {
            let s = e.structure().expect("a structure");
            assert_eq!(s.name(), "ssm-model");
            assert_eq!(s.get::<&str>("file").expect("a file"), model);
            assert!(s.get::<u64>("parameters").expect("a number") > 0);
            told += 1;
        }
    }
    assert_eq!(told, 1);
    element.set_state(gst::State::Null).expect("back to NULL");
}

/// What is inside of a model with a latency of more than buffers may be off by has no place before 0.
#[test]
fn a_state_goes_on_where_time_begins_at_nothing() {
    let folder = Folder::new("denoise-zero");
    let late = (0..).find_map(|seed| {
        let mut f = ssm_tests::fabricate::attenuate::random(&mut Rng::new(seed));
        f.config["sample_rate"] = 16_000.into();
        let delay = f.open(ssm_models::kernels::CpuLevel::best()).expect("it opens").info().delay;
        (delay > 800).then_some(f)
    });
    let model = folder.file("late.safetensors");
    std::fs::write(&model, late.expect("one looks far ahead").bytes()).expect("room for a file");
    let samples = Rng::new(8).normals(9599, 0.1);
    let whole = clean(&model, &samples);
    let state = folder.file("state");
    let mut a = Bench::new(&model, &[("state-out", &state)], "F32LE", 1);
    a.pieces(&bytes(&samples[..4799]), &[4799], ClockTime::ZERO);
    let mut out = a.pull().0;
    out.extend(a.end());
    drop(a);
    let mut b = Bench::new(&model, &[("state-in", &state)], "F32LE", 1);
    b.pieces(&bytes(&samples[4799..]), &[160; 30], ClockTime::ZERO);
    assert_eq!(b.count("resets"), 0);
    out.extend(b.pull().0);
    out.extend(b.end());
    assert!(out == whole);
}

#[test]
fn what_is_taken_out_is_limited() {
    let folder = Folder::new("limit");
    let (model_path, _) = model(&folder, SPECTRAL);
    let samples = Rng::new(12).normals(3000, 0.1);
    let run = |limit: &str| {
        let mut b = Bench::new(&model_path, &[("attenuation-limit", limit)], "F32LE", 1);
        b.pieces(&bytes(&samples), &[700, 2300], ClockTime::ZERO);
        let out = [b.pull().0, b.end()].concat();
        floats(&out)
    };
    let (wet, dry, some) = (run("100"), run("0"), run("20"));
    assert_eq!([wet.len(), dry.len(), some.len()], [3000; 3]);
    assert!(wet.iter().zip(&samples).any(|(y, x)| (y - x).abs() > 0.05), "it takes something out");
    for (i, x) in samples.iter().enumerate() {
        assert!((dry[i] - x).abs() < 1e-5, "{i}: {} for {x}", dry[i]);
        let mixed = 0.1 * x + 0.9 * wet[i];
        assert!((some[i] - mixed).abs() < 1e-5, "{i}: {} for {mixed}", some[i]);
    }
    // Networks without a mask, and a level that nobody asks for.
    let waveform = model(&folder, 5).0;
    for (model, property, part) in [
        (
            &*waveform,
            ("attenuation-limit", "12"),
            "attenuation-limit: expected none (cleanumamba cannot limit it), got 12 dB",
        ),
        (
            &*model_path,
            ("level-rule", "smoothed"),
            "level-rule: expected model (band_mask divides its input by no level)",
        ),
    ] {
        let element = element(model, &[property]);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        assert!(element.set_state(gst::State::Ready).is_err(), "{property:?}");
        let text = complaint(&bus, gst::MessageType::Error);
        assert!(text.contains(part), "{text}");
        element.set_state(gst::State::Null).expect("it stops");
    }
}
