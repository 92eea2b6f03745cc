//! Input that cannot be: numbers out of all bounds, torn buffers, impossible times. No panic, nothing lost, and one
//! warning where something was made up.

use gst::ClockTime;
use gst::prelude::*;
use ssm_tests::Rng;
use ssm_tests::audio::{Listening, bytes};
use ssm_tests::element::{Folder, complaint};
use ssm_tests::fabricate::Fabricated;

const RATE: u32 = 16_000;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// A bench for elements that give other samples than they take.
struct Denoising {
    h: gst_check::Harness,
    element: gst::Element,
    bus: gst::Bus,
}

impl Denoising {
    fn new(model: &str, channels: i32, properties: &[(&str, &str)]) -> Self {
        let element = ssm_tests::element::make("ssmdenoise", &[&[("model", model)], properties].concat());
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let mut h = gst_check::Harness::with_element(&element, Some("sink"), Some("src"));
        let caps = ssm_tests::audio::caps("F32LE", RATE, channels);
        h.set_caps(caps.clone(), caps);
        Self { h, element, bus }
    }

    fn push(&mut self, samples: &[f32], pts: Option<ClockTime>) {
        let mut buffer = gst::Buffer::from_slice(bytes(samples));
        buffer.get_mut().expect("a new buffer").set_pts(pts);
        self.h.push(buffer).expect("flows");
    }

    fn pull(&mut self) -> Vec<f32> {
        let mut out = Vec::new();
        while let Some(buffer) = self.h.try_pull() {
            out.extend(floats(&buffer.map_readable().expect("readable")));
        }
        out
    }

    fn end(&mut self) -> Vec<f32> {
        self.h.push_event(gst::event::Eos::new());
        self.pull()
    }

    fn warnings(&self) -> usize {
        std::iter::from_fn(|| self.bus.pop_filtered(&[gst::MessageType::Warning])).count()
    }

    fn not_finite(&self) -> u64 {
        self.element.property::<gst::Structure>("stats").get("not-finite").expect("a counter")
    }
}

/// A denoiser whose network gives numbers beyond all bounds for any sound but silence.
fn explosive(folder: &Folder, seed: u64) -> String {
    let (mut model, _) = folder.model("band_mask", seed);
    let (_, mask) = model.tensors.get_mut("decode.0.weight").expect("it has a mask");
    mask.iter_mut().for_each(|w| *w = 3e38 * w.signum());
    write(folder, &model, &format!("explosive-{seed}"))
}

fn write(folder: &Folder, model: &Fabricated, name: &str) -> String {
    let path = folder.file(name);
    std::fs::write(&path, model.bytes()).expect("room for files");
    path
}

#[test]
fn samples_beyond_all_bounds_are_silence() {
    let folder = Folder::new("absurd");
    let (_, model) = folder.model("band_mask", 3);
    let mut rng = Rng::new(1);
    let good = rng.normals(3000, 0.1);
    let (mut bad, mut silent) = (good.clone(), good.clone());
    let absurd = [1e38, -1e38, 1.1e6, f32::MAX, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    for (i, value) in absurd.iter().cycle().take(200).enumerate() {
        (bad[1000 + i], silent[1000 + i]) = (*value, 0.0);
    }
    // Denormals and 120 dB above full scale are numbers as any.
    for signal in [&mut bad, &mut silent] {
        (signal[10], signal[11], signal[12]) = (1e-42, -f32::MIN_POSITIVE / 3.0, 9.9e5);
    }
    let run = |samples: &[f32]| {
        let mut b = Denoising::new(&model, 1, &[]);
        for piece in samples.chunks(50) {
            b.push(piece, None);
        }
        let mut out = b.pull();
        out.extend(b.end());
        (out, b.warnings(), b.not_finite())
    };
    let (want, none, _) = run(&silent);
    let (got, warnings, counted) = run(&bad);
    assert!(got.iter().all(|s| s.is_finite()));
    assert_eq!(got, want, "they are taken for silence");
    assert_eq!((none, warnings, counted), (0, 1, 4), "one warning for a stretch, a count for each buffer");
}

#[test]
fn a_network_beyond_all_bounds_gives_silence_and_as_many_samples() {
    let folder = Folder::new("explosive");
    let mut rng = Rng::new(2);
    for seed in [3, 5, 8] {
        let model = explosive(&folder, seed);
        // The second channel is silent for a while: it stays as it is while the first one explodes.
        let mut samples = rng.normals(2 * 2500, 0.1);
        samples.iter_mut().skip(1).step_by(2).take(1200).for_each(|s| *s = 0.0);
        let run = |rng: &mut Rng, samples: &[f32], channels: usize| {
            let mut b = Denoising::new(&model, channels as i32, &[]);
            let mut at = 0;
            for n in rng.cuts(samples.len() / channels) {
                b.push(&samples[at * channels..(at + n) * channels], None);
                at += n;
            }
            let mut out = b.pull();
            out.extend(b.end());
            (out, b.warnings(), b.not_finite())
        };
        let (out, warnings, counted) = run(&mut rng, &samples, 2);
        assert_eq!(out.len(), samples.len(), "seed {seed}: as many samples out as in");
        assert!(out.iter().all(|s| s.is_finite()), "seed {seed}");
        assert_eq!(warnings, 1, "seed {seed}: one warning for a stretch");
        assert!(counted > 2, "seed {seed}: {counted} hops were counted");
        let (again, ..) = run(&mut rng, &samples, 2);
        assert_eq!(out, again, "seed {seed}: the cut changes nothing");
        let second: Vec<f32> = samples.iter().skip(1).step_by(2).copied().collect();
        let (alone, ..) = run(&mut rng, &second, 1);
        assert!(out.iter().skip(1).step_by(2).eq(&alone), "seed {seed}: channels do not affect each other");
    }
}

#[test]
fn short_pieces_and_gaps_give_as_many_samples_of_every_channel() {
    let folder = Folder::new("short");
    let mut rng = Rng::new(3);
    for (family, seed) in [("band_mask", 3), ("band_mask", 4), ("cleanumamba", 1), ("cleanumamba", 2)] {
        let (_, model) = folder.model(family, seed);
        for frames in [0, 1, 2, 7, 100] {
            for gaps in 0..3 {
                let mut b = Denoising::new(&model, 2, &[]);
                let samples = rng.normals(2 * frames, 0.1);
                b.push(&samples, Some(ClockTime::ZERO));
                for i in 0..gaps {
                    let event = gst::event::Gap::builder(ClockTime::from_mseconds(10 * i + 10));
                    b.h.push_event(event.duration(ClockTime::from_mseconds(10)).build());
                }
                let mut out = b.pull();
                out.extend(b.end());
                assert_eq!(out.len(), samples.len(), "{family} {seed}, {frames} frames, {gaps} gaps");
            }
        }
    }
}

/// Steps of a listener are dropped one by one where they cannot be, and those after it are told, however it is cut.
#[test]
fn a_listener_beyond_all_bounds_goes_on() {
    let folder = Folder::new("listener");
    let (mut model, _) = folder.model("band_mask", 3);
    model.tensors.insert("vad.weight".into(), {
        let d = model.tensors["blocks.0.full.norm_full.weight"].0[0];
        (vec![1, d], (0..d).map(|i| if i % 2 == 0 { 3e38 } else { -3e38 }).collect())
    });
    model.tensors.insert("vad.bias".into(), (vec![1], vec![0.0]));
    let path = write(&folder, &model, "loud-vad");
    let mut rng = Rng::new(4);
    let samples = rng.normals(3000, 0.1);
    let run = |cuts: &[usize]| {
        let mut b = Listening::new("ssmvad", &[("model", &path)], "F32LE", RATE, 1);
        b.pieces(&bytes(&samples), cuts, ClockTime::ZERO);
        b.h.push_event(gst::event::Eos::new());
        let warnings = std::iter::from_fn(|| b.bus().pop_filtered(&[gst::MessageType::Warning])).count();
        (b.results.iter().map(|r| (r.pts, r.step, r.speech)).collect::<Vec<_>>(), warnings)
    };
    let (whole, warnings) = run(&[3000]);
    assert!(warnings > 0, "the network is as bad as it should be");
    let cuts = rng.cuts(3000);
    assert_eq!(run(&cuts).0, whole);
}

#[test]
fn torn_buffers_are_told() {
    let folder = Folder::new("torn");
    let (_, model) = folder.model("band_mask", 3);
    for (factory, size) in [("ssmdenoise", 13), ("ssmvad", 7), ("ssmdenoise", 1)] {
        let mut b = Listening::new(factory, &[("model", &model)], "F32LE", RATE, 2);
        assert_eq!(b.push(&vec![0; size], None), Err(gst::FlowError::Error));
        let text = complaint(b.bus(), gst::MessageType::Error);
        assert!(text.contains("multiple of 8 bytes") && text.contains(&format!("got {size}")), "{text}");
    }
}

/// Bytes of a frame as GStreamer lays it out.
fn frame_size(caps: &gst::Caps) -> usize {
    let s = caps.structure(0).expect("caps");
    let side = |name| s.get::<i32>(name).expect("a side") as usize;
    let (w, h, even) = (side("width"), side("height"), |n: usize| n.next_multiple_of(2));
    let four = |n: usize| n.next_multiple_of(4);
    match s.get::<&str>("format").expect("a format") {
        "RGB" => four(3 * w) * h,
        "RGBA" => 4 * w * h,
        "GRAY8" => four(w) * h,
        "I420" => four(w) * even(h) + 2 * four(even(w) / 2) * even(h) / 2,
        "NV12" => four(w) * even(h) + four(w) * even(h) / 2,
        other => panic!("{other}"),
    }
}

#[test]
fn frames_of_any_size_pass_or_are_refused() {
    let folder = Folder::new("sizes");
    let (_, vim) = folder.model("vim", 3);
    let mut passed = 0;
    for (factory, properties) in [
        ("ssmclassify", vec![("model", &*vim)]),
        ("ssmembed", vec![("model", &vim)]),
        ("ssmevents", vec![]),
        ("ssmoverlay", vec![]),
    ] {
        for format in ["RGB", "RGBA", "GRAY8", "I420", "NV12"] {
            for (width, height) in [(1, 1), (1, 2), (2, 1), (3, 5), (1, 2000), (4000, 2), (1, 32000), (32767, 1)] {
                let what = format!("{factory} {format} {width}x{height}");
                let element = ssm_tests::element::make(factory, &properties);
                let bus = gst::Bus::new();
                element.set_bus(Some(&bus));
                let mut h = gst_check::Harness::with_element(&element, Some("sink"), Some("src"));
                let caps = format!("video/x-raw,format={format},width={width},height={height},framerate=25/1");
                h.set_src_caps_str(&caps);
                let caps: gst::Caps = caps.parse().expect("caps");
                let push = |h: &mut gst_check::Harness, size: usize| {
                    h.push(gst::Buffer::from_mut_slice(vec![77u8; size])).map(|_| ())
                };
                let size = frame_size(&caps);
                let refused = push(&mut h, size).is_err();
                let text = bus.pop_filtered(&[gst::MessageType::Error]).map(|m| match m.view() {
                    gst::MessageView::Error(e) => e.error().to_string(),
                    _ => unreachable!("filtered"),
                });
                let text = text.unwrap_or_default();
                assert!(!text.to_lowercase().contains("panic"), "{what}: {text}");
                // Only sizes that scale beyond all bounds are refused, and by name.
                assert_eq!(refused, text.contains("frames that scale to a size"), "{what}: {text}");
                if refused {
                    assert!(width.max(height) / width.min(height) >= 1000, "{what}: {text}");
                    continue;
                }
                assert_eq!(h.pull().expect("it passes").size(), size, "{what}");
                passed += 1;
                push(&mut h, size - 1).expect("a stray frame passes");
                let text = complaint(&bus, gst::MessageType::Warning);
                assert!(text.contains(&format!("expected {size} bytes, got {}", size - 1)), "{what}: {text}");
            }
        }
    }
    assert!(passed > 100, "{passed} sizes passed");
}

#[test]
fn labels_may_be_anything_or_are_refused_by_name() {
    let folder = Folder::new("labels");
    let (fabricated, vim) = folder.model("vim", 3);
    let classes = fabricated.open(ssm_models::kernels::CpuLevel::best()).expect("it opens").info().output.len();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.file(name);
        std::fs::write(&path, bytes).expect("room for files");
        path
    };
    let large = folder.file("large");
    std::fs::File::create(&large).and_then(|f| f.set_len(1 << 28)).expect("a file of holes");
    for path in [
        file("empty", b""),
        file("binary", &[0xff, 0xfe, 0x00, 0xd8]),
        file("zero", "a\0b\n".repeat(classes).as_bytes()),
        file("short", "one\n".repeat(classes - 1).as_bytes()),
        file("long", "one\n".repeat(classes + 1).as_bytes()),
        folder.file("absent"),
        folder.file(""),
        large,
    ] {
        let element = ssm_tests::element::make("ssmclassify", &[("model", &vim), ("labels-file", &path)]);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        assert!(element.set_state(gst::State::Ready).is_err(), "{path} was taken");
        let text = complaint(&bus, gst::MessageType::Error);
        assert!(text.contains(&path) && text.contains("labels-file: expected"), "{text}");
        element.set_state(gst::State::Null).expect("back to NULL");
    }
    for hostile in ["\"},{\"", "\u{202e}\u{1}\u{7f}", &"x".repeat(1 << 16), "; drop, (string)x;", "[ 1, 2 ]", ""] {
        let labels = file("hostile", format!("{hostile}\n").repeat(classes).replace("\n", "|\n").as_bytes());
        let lines = folder.file("lines.jsonl");
        ssm_tests::element::run(&format!(
            "videotestsrc num-buffers=2 ! video/x-raw,format=RGB,width=32,height=18 ! ssmclassify model={vim} \
             labels-file={labels} ! ssmoverlay ! ssmjson ! filesink location={lines}"
        ));
        let text = std::fs::read_to_string(&lines).expect("lines");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["classes"][0]["label"], format!("{hostile}|"), "{hostile:?}");
    }
}

/// The bindings take a text for one of C's, which ends at a zero byte.
#[test]
fn zero_bytes_in_names_reach_no_message() {
    let folder = Folder::new("zero");
    let tensor = |name: &str| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).expect("four bytes");
        safetensors::serialize([(name.to_owned(), view)], None).expect("a file")
    };
    let refused = |property: &str, path: &str| {
        ssm_tests::element::init();
        let line = format!(
            "audiotestsrc num-buffers=2 ! audioconvert ! audioresample ! ssmdenoise {property}={path} ! fakesink"
        );
        let pipeline = gst::parse::launch(&line).expect("the line parses");
        _ = pipeline.set_state(gst::State::Playing);
        let text = complaint(&pipeline.bus().expect("a pipeline has a bus"), gst::MessageType::Error);
        pipeline.set_state(gst::State::Null).expect("back to NULL");
        text
    };
    let model = folder.file("model.safetensors");
    std::fs::write(&model, tensor("a\0b")).expect("a temporary file");
    let text = refused("model", &model);
    assert!(text.contains("no known model family") && text.contains("known: vim"), "{text}");

    let state = folder.file("state");
    let metadata = Some([("format".to_owned(), "ssm\0state".to_owned())].into());
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &[0; 4]).expect("four bytes");
    std::fs::write(&state, safetensors::serialize([("x", view)], metadata).expect("a file")).expect("a temporary file");
    let text = refused("state-in", &state);
    assert!(text.contains("format: expected ssm-state, got ssm") && text.ends_with("state"), "{text}");
}

/// Everything that may be set, asked and called while playing, from another thread all the time.
#[test]
fn another_thread_may_set_and_ask_anything_while_playing() {
    let folder = Folder::new("threads");
    let (_, vim) = folder.model("vim", 3);
    for (factory, properties) in [
        ("ssmdenoise", vec![]),
        ("ssmvad", vec![]),
        ("ssmclassify", vec![("model", &*vim), ("carry", "true")]),
        ("ssmevents", vec![]),
        ("ssmembed", vec![("model", &*vim)]),
    ] {
        let element = ssm_tests::element::make(factory, &properties);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let mut h = gst_check::Harness::with_element(&element, Some("sink"), Some("src"));
        let audio = ["ssmdenoise", "ssmvad"].contains(&factory);
        if audio {
            h.set_caps(ssm_tests::audio::caps("F32LE", RATE, 1), ssm_tests::audio::caps("F32LE", RATE, 1));
        } else {
            h.set_src_caps_str("video/x-raw,format=RGB,width=32,height=18,framerate=25/1");
        }
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let (mut rng, mut turns) = (Rng::new(1), 0);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) || turns < 50 {
                    turns += 1;
                    for spec in element.list_properties().iter() {
                        let _: glib::Value = element.property_value(spec.name());
                        // Another model warns; `reload.rs` is about it.
                        let settable = spec.flags().contains(gst::PARAM_FLAG_MUTABLE_PLAYING) && spec.name() != "model";
                        if settable && spec.flags().contains(glib::ParamFlags::WRITABLE) && rng.range(0, 3) == 0 {
                            element.set_property_from_value(spec.name(), spec.default_value());
                        }
                    }
                    match rng.range(0, 2) {
                        0 => element.emit_by_name::<()>("reset-state", &[]),
                        _ => {
                            let state: Option<glib::Bytes> = element.emit_by_name("save-state", &[]);
                            if let Some(state) = state {
                                assert!(element.emit_by_name::<bool>("load-state", &[&state]), "{factory}");
                            }
                        }
                    }
                }
            });
            let mut rng = Rng::new(2);
            for i in 0..60u64 {
                let data =
                    if audio { bytes(&rng.normals(160, 0.1)) } else { vec![rng.range(0, 255) as u8; 32 * 18 * 3] };
                let mut buffer = gst::Buffer::from_mut_slice(data);
                let time = if audio { 10 * i } else { 40 * i };
                buffer.get_mut().expect("a new buffer").set_pts(ClockTime::from_mseconds(time));
                h.push(buffer).expect("flows");
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            other.join().expect("no panic");
        });
        let kinds = [gst::MessageType::Error, gst::MessageType::Warning];
        let complaint = bus.pop_filtered(&kinds);
        assert!(complaint.is_none(), "{factory}: {complaint:?}");
    }
}

/// A handler runs where a message is posted: nothing that it may ask for is locked there.
#[test]
fn a_handler_of_a_complaint_may_ask_for_the_state() {
    let nan = bytes(&[f32::NAN; 480]);
    for (factory, torn) in [("ssmdenoise", false), ("ssmdenoise", true), ("ssmvad", false), ("ssmvad", true)] {
        let (said, heard) = std::sync::mpsc::channel();
        let data = if torn { nan[..477].to_vec() } else { nan.clone() };
        // It would wait for ever where the lock is held.
        std::thread::spawn(move || {
            let mut b = ssm_tests::audio::Listening::new(factory, &[], "F32LE", RATE, 1);
            let element = b.element.clone();
            b.bus().set_sync_handler(move |_, message| {
                if matches!(message.type_(), gst::MessageType::Warning | gst::MessageType::Error) {
                    let state: Option<glib::Bytes> = element.emit_by_name("save-state", &[]);
                    let _ = said.send((message.type_(), state.is_some()));
                }
                gst::BusSyncReply::Drop
            });
            let flow = b.push(&data, Some(ClockTime::ZERO));
            assert_eq!(flow.is_err(), torn, "{factory}");
            b.element.set_state(gst::State::Null).expect("stops");
            b.bus().unset_sync_handler();
        });
        let kind = if torn { gst::MessageType::Error } else { gst::MessageType::Warning };
        let first = heard.recv_timeout(std::time::Duration::from_secs(20));
        assert_eq!(first, Ok((kind, true)), "{factory}, torn: {torn}");
    }
}
