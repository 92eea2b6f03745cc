//! In steady state nothing is allocated for a buffer: neither by the networks and the engine, nor by the elements between
//! the pads. Of results only what they hold may be, their metas and messages are GStreamer's.

use gst::ClockTime;
use gst::prelude::*;
use gstssm::META_NAME;
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{AudioStream, Engine, Listen, Listener, Options, Row, Scratch, Signal};
use ssm_tests::Rng;
use ssm_tests::audio::{bytes, caps};
use ssm_tests::element::{Folder, init, make};
use ssm_tests::fabricate::FAMILIES;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Counts what all threads allocate while it is told to.
struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);
static ON: AtomicBool = AtomicBool::new(false);

// SAFETY: all is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(u64::from(ON.load(Ordering::Relaxed)), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(u64::from(ON.load(Ordering::Relaxed)), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of all threads while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.load(Ordering::SeqCst);
    ON.store(true, Ordering::SeqCst);
    work();
    ON.store(false, Ordering::SeqCst);
    COUNT.load(Ordering::SeqCst) - before
}

fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1u8; 100]))), 1);
}

/// A thread allocates when it starts, and nobody waits for it: gives the team work until all its threads took of it.
fn wait_for_the_workers(cx: &Cx) {
    let seen = Mutex::new(HashSet::new());
    while seen.lock().expect("no panic").len() < cx.team.threads() {
        cx.team.split(8, |_| {
            seen.lock().expect("no panic").insert(std::thread::current().id());
            std::thread::sleep(Duration::from_micros(50));
        });
    }
}

fn forward_passes_allocate_nothing() {
    for (name, draw) in FAMILIES {
        for (seed, threads) in [(1, 1), (2, 2), (3, 1)] {
            let mut rng = Rng::new(seed);
            let model = draw(&mut rng).open(CpuLevel::best()).expect("it opens");
            let (cx, mut scratch) = (Cx::at(CpuLevel::best(), threads), Scratch::default());
            wait_for_the_workers(&cx);
            let len = if matches!(model.info().input, Signal::Image { .. }) { 2 } else { 7 };
            let mut rows = [Row::new(&*model, len), Row::new(&*model, len)];
            let mut pass = |rows: &mut [Row]| model.forward(&cx, rows, len, &mut scratch);
            (0..30).for_each(|_| pass(&mut rows));
            let made = allocations(|| (0..20).for_each(|_| pass(&mut rows)));
            assert_eq!(made, 0, "{name} seed {seed}, {threads} threads");
        }
    }
}

fn streams_of_the_engine_allocate_nothing() {
    let folder = Folder::new("no-allocations");
    let mut rng = Rng::new(1);
    let start = |family, seed, output| {
        let mut fabricated = folder.model(family, seed).0;
        fabricated.options.output = output;
        let model = fabricated.open(CpuLevel::best()).expect("it opens");
        Engine::start(model, Cx::at(CpuLevel::best(), 1), 4, Duration::ZERO)
    };
    for (family, seed) in [("band_mask", 3), ("cleanumamba", 1), ("attenuate", 1)] {
        let engine = start(family, seed, ssm_models::Output::Task);
        let mut audio = AudioStream::new(&engine, 2).expect("samples to samples");
        let pieces: Vec<Vec<f32>> = (0..40).map(|_| rng.normals(2 * 480, 0.1)).collect();
        let mut out = Vec::with_capacity(1 << 16);
        let mut push = |pieces: &[Vec<f32>]| {
            for piece in pieces {
                out.clear();
                audio.push(piece, &mut out).expect("it runs");
            }
        };
        push(&pieces);
        // A queue allocates when a thread first has to wait at it, whenever that is; a buffer would in every turn.
        let fewest = (0..5).map(|_| allocations(|| push(&pieces))).min();
        assert_eq!(fewest, Some(0), "{family}");
    }
    let engine = start("band_mask", 3, ssm_models::Output::Features);
    let mut listener = Listener::new(&engine).expect("samples to vectors");
    let samples = rng.normals(16_000, 0.1);
    let mut out = Vec::with_capacity(1 << 20);
    let mut push = || {
        for piece in samples.chunks(333) {
            out.clear();
            listener.push(piece, &mut out).expect("it runs");
        }
    };
    push();
    assert_eq!((0..5).map(|_| allocations(&mut push)).min(), Some(0), "a listener");
}

/// What an element is fed with.
#[derive(Clone, Copy)]
enum Feed {
    /// Two channels.
    Audio {
        rate: u32,
        frames: usize,
    },
    Video,
    /// Frames with a result of each kind but events.
    Results,
}

impl Feed {
    fn size(self) -> usize {
        match self {
            Self::Audio { frames, .. } => 8 * frames,
            Self::Video | Self::Results => 64 * 36 * 3,
        }
    }

    fn time(self) -> ClockTime {
        match self {
            Self::Audio { rate, frames } => ClockTime::from_nseconds(frames as u64 * 1_000_000_000 / u64::from(rate)),
            Self::Video | Self::Results => ClockTime::from_mseconds(40),
        }
    }

    fn buffer(self, rng: &mut Rng, at: ClockTime) -> gst::Buffer {
        let mut buffer = gst::Buffer::with_size(self.size()).expect("memory");
        let edit = buffer.get_mut().expect("a new buffer");
        let data = match self {
            Self::Audio { .. } => bytes(&rng.normals(self.size() / 4, 0.01)),
            Self::Video | Self::Results => vec![rng.range(0, 3) as u8; self.size()],
        };
        edit.copy_from_slice(0, &data).expect("it fits");
        edit.set_pts(at);
        if let Self::Results = self {
            let mut meta = gst::meta::CustomMeta::add(edit, META_NAME).expect("the meta is known");
            meta.mut_structure().set("results", results(rng, at));
        }
        buffer
    }
}

fn results(rng: &mut Rng, at: ClockTime) -> gst::Array {
    let class = |index: u32| {
        let class = gst::Structure::builder("class").field("index", index).field("label", format!("label {index}"));
        class.field("score", f64::from(rng.uniform())).build().to_send_value()
    };
    let classes = gst::Array::from_values((0..4).map(class).collect::<Vec<_>>());
    let base = |kind: &str, element: &str| {
        let result = gst::Structure::builder("result").field("version", 1u32).field("kind", kind);
        result.field("element", element).field("pts", at.nseconds()).field("step", 1u64)
    };
    gst::Array::from_values([
        base("classes", "a").field("classes", classes).build().to_send_value(),
        base("speech", "b").field("speech", 0.5).build().to_send_value(),
        base("vector", "c").field("vector", glib::Bytes::from(&[0; 400])).build().to_send_value(),
    ])
}

/// The bindings copy the name of the meta each time that it is looked for on a buffer.
const LOOK: f64 = 1.0;
/// And when it is added.
const ATTACH: f64 = LOOK + 1.0;

/// Rust allocations of an element per buffer. Buffers are made before, and their bytes and metas are GStreamer's own.
fn per_buffer(factory: &str, properties: &[(&str, &str)], feed: Feed) -> f64 {
    let element = make(factory, properties);
    let mut h = gst_check::Harness::with_element(&element, Some("sink"), Some("src"));
    match feed {
        Feed::Audio { rate, .. } => h.set_caps(caps("F32LE", rate, 2), caps("F32LE", rate, 2)),
        Feed::Video | Feed::Results => h.set_src_caps_str("video/x-raw,format=RGB,width=64,height=36,framerate=25/1"),
    }
    let mut rng = Rng::new(7);
    let mut at = ClockTime::ZERO;
    let mut buffers = |n: usize| {
        let make = |_| {
            let buffer = feed.buffer(&mut rng, at);
            at += feed.time();
            buffer
        };
        (0..n).map(make).collect::<Vec<_>>()
    };
    let mut play = |buffers: Vec<gst::Buffer>| {
        for buffer in buffers {
            h.push(buffer).expect("flows");
            drop(h.try_pull());
        }
    };
    play(buffers(60));
    // A queue allocates when a thread first has to wait at it, whenever that is; a buffer would in every turn.
    let turns = (0..12).map(|_| {
        let mut turn = Some(buffers(40));
        allocations(|| play(turn.take().expect("it is there")))
    });
    turns.min().expect("turns") as f64 / 40.0
}

fn elements_allocate_nothing_between_their_pads() {
    init();
    let folder = Folder::new("no-element-allocations");
    let (vim, aum) = (folder.model("vim", 3).1, folder.model("aum", 4).1);
    let tagger = ssm_models::open(&aum, &Options { listen: Listen::Samples(2), ..Options::default() });
    let tagger = tagger.expect("it opens");
    let Signal::Samples { rate, hop: frames } = tagger.info().input else { panic!("no samples") };
    let labels = folder.file("labels");
    std::fs::write(&labels, "a class\n".repeat(tagger.info().output.len())).expect("a temporary file");
    let sound = Feed::Audio { rate: 16_000, frames: 480 };
    let (quiet, every) = (("post-messages", "false"), ("inference-interval", "4000000000"));
    let vector = vec![quiet, ("model", "builtin:denoise")];
    let tags = vec![quiet, ("model", &*aum), ("inference-interval", "2"), ("labels-file", &*labels)];
    for (factory, properties, feed, unavoidable) in [
        ("ssmdenoise", vec![quiet], sound, 0.0),
        ("ssmclassify", vec![quiet, ("model", &*vim), every], Feed::Video, 0.0),
        (
            "ssmevents",
            vec![quiet, ("frame-scores", "false"), ("threshold", "1"), ("low-threshold", "1")],
            Feed::Video,
            0.0,
        ),
        // Three results in each buffer.
        ("ssmvad", vec![quiet], sound, ATTACH),
        // Of each of three results the numbers, and that they are shared.
        ("ssmembed", vector, sound, ATTACH + 6.0),
        // Of one result the list of its classes.
        ("ssmclassify", vec![quiet, ("model", &*vim)], Feed::Video, ATTACH + 1.0),
        ("ssmevents", vec![quiet, ("threshold", "1"), ("low-threshold", "1")], Feed::Video, ATTACH + 1.0),
        ("ssmaudiotag", tags, Feed::Audio { rate, frames }, ATTACH + 1.0),
        ("ssmoverlay", vec![], Feed::Results, LOOK),
        ("ssmjson", vec![], Feed::Results, LOOK),
    ] {
        assert_eq!(per_buffer(factory, &properties, feed), unavoidable, "{factory}: allocations a buffer");
    }
}

/// One test: the runner's own threads allocate where several end.
#[test]
fn nothing_is_allocated_in_steady_state() {
    the_counter_counts();
    forward_passes_allocate_nothing();
    streams_of_the_engine_allocate_nothing();
    elements_allocate_nothing_between_their_pads();
}
