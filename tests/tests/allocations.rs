//! In steady state nothing is allocated for a buffer: neither by the networks and the engine, nor by the elements between
//! the pads. Where there are results, they and their metas and messages may be.

use gst::ClockTime;
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{AudioStream, Engine, Listener, Row, Scratch, Signal};
use ssm_tests::Rng;
use ssm_tests::audio::{bytes, caps};
use ssm_tests::element::{Folder, init, make};
use ssm_tests::fabricate::FAMILIES;
use std::alloc::{GlobalAlloc, Layout, System};
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

fn forward_passes_allocate_nothing() {
    for (name, draw) in FAMILIES {
        for (seed, threads) in [(1, 1), (2, 2), (3, 1)] {
            let mut rng = Rng::new(seed);
            let model = draw(&mut rng).open(CpuLevel::best()).expect("it opens");
            let (cx, mut scratch) = (Cx::at(CpuLevel::best(), threads), Scratch::default());
            // A thread allocates when it starts; a turn of the team ends when all its threads have taken it.
            cx.team.split(2, |_| ());
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
    for (family, seed) in [("spec_mamba", 3), ("cleanumamba", 1), ("attenuate", 1)] {
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
    let engine = start("spec_mamba", 3, ssm_models::Output::Features);
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

/// Rust allocations of an element per buffer, results left out as far as the properties allow. Buffers are made before,
/// and their bytes are GStreamer's own.
fn per_buffer(factory: &str, properties: &[(&str, &str)], video: bool) -> f64 {
    let element = make(factory, properties);
    let mut h = gst_check::Harness::with_element(&element, Some("sink"), Some("src"));
    let size = if video {
        h.set_src_caps_str("video/x-raw,format=RGB,width=64,height=36,framerate=25/1");
        64 * 36 * 3
    } else {
        h.set_caps(caps("F32LE", 16_000, 2), caps("F32LE", 16_000, 2));
        8 * 480
    };
    let mut rng = Rng::new(7);
    let step = ClockTime::from_mseconds(if video { 40 } else { 30 });
    let mut at = ClockTime::ZERO;
    let mut buffers = |n: usize| {
        let make = |_| {
            let mut buffer = gst::Buffer::with_size(size).expect("memory");
            let edit = buffer.get_mut().expect("a new buffer");
            let data = if video { vec![rng.range(0, 3) as u8; size] } else { bytes(&rng.normals(size / 4, 0.01)) };
            edit.copy_from_slice(0, &data).expect("it fits");
            edit.set_pts(at);
            at += step;
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
    let (mut few, mut more) = (Some(buffers(20)), Some(buffers(60)));
    // What the vector itself costs stands in both.
    let few = allocations(|| play(few.take().expect("they are there")));
    let more = allocations(|| play(more.take().expect("they are there")));
    (more as f64 - few as f64) / 40.0
}

fn elements_allocate_nothing_between_their_pads() {
    init();
    let folder = Folder::new("no-element-allocations");
    let (_, vim) = folder.model("vim", 3);
    let quiet = ("post-messages", "false");
    for (factory, properties, video) in [
        ("ssmdenoise", vec![quiet], false),
        ("ssmclassify", vec![quiet, ("model", &*vim), ("inference-interval", "4000000000")], true),
        ("ssmevents", vec![quiet, ("frame-scores", "false"), ("threshold", "1"), ("low-threshold", "1")], true),
    ] {
        let made = (0..12).map(|_| per_buffer(factory, &properties, video).abs()).fold(f64::MAX, f64::min);
        assert_eq!(made, 0.0, "{factory}: allocations a buffer");
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
