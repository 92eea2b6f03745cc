//! An application with sound of its own: samples in, clean samples out, and speech told on the way. Stopped and started
//! again it goes on where it was, to the bit.
//!
//! ```sh
//! cargo run --release --example resume -- STATES < noisy.f32 > clean.f32
//! ```
//!
//! Reads mono 32-bit floats at 16 kHz from the standard input and writes them to the standard output, all but the last
//! 20 ms, which wait in the state for what follows. `STATES` is a folder.
//! At the end of the input, and at Ctrl-C or SIGTERM, both elements leave their states there; the next start goes on from
//! them. The plugin is linked in: nothing needs to be installed but GStreamer.

use gst::prelude::*;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::error::Error;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Samples of a buffer: 20 ms. Any number gives the same bytes.
const SAMPLES: usize = 320;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: resume STATES < noisy.f32 > clean.f32")?;
    gst::init()?;
    gstssm::plugin_register_static()?;

    let pipeline = gst::parse::launch(
        "appsrc name=in format=time caps=audio/x-raw,format=F32LE,rate=16000,channels=1,layout=interleaved ! \
         ssmdenoise name=denoise ! ssmvad name=vad ! appsink name=out sync=false",
    )?;
    let pipeline = pipeline.downcast::<gst::Pipeline>().map_err(|_| "not a pipeline")?;
    std::fs::create_dir_all(&folder)?;
    for name in ["denoise", "vad"] {
        let element = pipeline.by_name(name).ok_or("no such element")?;
        let file = Path::new(&folder).join(name);
        element.set_property("state-out", file.to_str().ok_or("a name that is no text")?);
        // The first time there is none yet.
        if file.exists() {
            element.set_property("state-in", file.to_str());
        }
    }
    let source = pipeline.by_name("in").and_downcast::<gst_app::AppSrc>().ok_or("no appsrc")?;
    let sink = pipeline.by_name("out").and_downcast::<gst_app::AppSink>().ok_or("no appsink")?;
    // As much as waits before this application does.
    source.set_property("block", true);
    source.set_max_bytes(1 << 16);
    sink.set_callbacks(
        gst_app::AppSinkCallbacks::builder()
            .new_sample(|sink| {
                let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
                let map = sample.buffer().and_then(|b| b.map_readable().ok()).ok_or(gst::FlowError::Error)?;
                let mut out = std::io::stdout().lock();
                out.write_all(&map).and_then(|()| out.flush()).map_err(|_| gst::FlowError::Eos)?;
                Ok(gst::FlowSuccess::Ok)
            })
            .build(),
    );

    let stop = Arc::new(AtomicBool::new(false));
    let (flag, input) = (stop.clone(), source.clone());
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            flag.store(true, Ordering::Release);
            // What was pushed goes through, then the states are written.
            let _ = input.end_of_stream();
        }
    });
    pipeline.set_state(gst::State::Playing)?;
    let feed = std::thread::spawn(move || feed(&source, &stop));

    let bus = pipeline.bus().ok_or("no bus")?;
    let outcome = loop {
        let Some(message) = bus.timed_pop(gst::ClockTime::NONE) else { break Ok(()) };
        match message.view() {
            gst::MessageView::Eos(_) => break Ok(()),
            gst::MessageView::Error(e) => break Err(format!("{} ({:?})", e.error(), e.debug())),
            gst::MessageView::Warning(w) => eprintln!("warning: {}", w.error()),
            gst::MessageView::Element(e) => {
                if let Some(s) = e.structure() {
                    tell(s);
                }
            }
            _ => {}
        }
    };
    pipeline.set_state(gst::State::Null)?;
    outcome?;
    // After a signal the thread may wait for input that never comes.
    if feed.is_finished() {
        feed.join().map_err(|_| "the reading thread failed")??;
    }
    Ok(())
}

/// Pushes the standard input until it ends.
fn feed(source: &gst_app::AppSrc, stop: &AtomicBool) -> std::io::Result<()> {
    let mut input = std::io::stdin().lock();
    while !stop.load(Ordering::Acquire) {
        let mut bytes = Vec::with_capacity(SAMPLES * 4);
        input.by_ref().take(SAMPLES as u64 * 4).read_to_end(&mut bytes)?;
        bytes.truncate(bytes.len() / 4 * 4);
        if bytes.is_empty() {
            break;
        }
        // Without times the elements count from where the state left off.
        if source.push_buffer(gst::Buffer::from_mut_slice(bytes)).is_err() {
            break;
        }
    }
    let _ = source.end_of_stream();
    Ok(())
}

/// What the elements say.
fn tell(s: &gst::StructureRef) {
    match s.name().as_str() {
        "ssm-model" => eprintln!("model: {}", s.get::<String>("file").unwrap_or_default()),
        "ssm-vad" => {
            let time = s.get::<u64>("pts").unwrap_or(0) as f64 / 1e9;
            eprintln!("speech {} at {time:.2} s", s.get::<String>("state").unwrap_or_default());
        }
        _ => {}
    }
}
