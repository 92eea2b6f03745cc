//! Two cameras, one model, one picture: the elements share an engine (and so the weights and the batches), each keeps its
//! own state; the results are drawn on the pictures and printed by camera.
//!
//! ```sh
//! cargo run --release --example wall -- 'v4l2src device=/dev/video0' 'v4l2src device=/dev/video1'
//! cargo run --release --example wall -- --seconds 5 'videotestsrc is-live=true' 'videotestsrc is-live=true pattern=ball'
//! cargo run --release --example wall -- --seconds 5 --sink 'pngenc snapshot=true ! filesink location=wall.png' …
//! ```

use gst::prelude::*;
use std::error::Error;

const WIDTH: i32 = 480;
const HEIGHT: i32 = 270;

struct Args {
    seconds: Option<u64>,
    sink: String,
    cameras: Vec<String>,
}

fn args() -> Result<Args, Box<dyn Error>> {
    let mut args = Args { seconds: None, sink: "autovideosink".into(), cameras: vec![] };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seconds" => args.seconds = Some(words.next().ok_or("--seconds: expected a number")?.parse()?),
            "--sink" => args.sink = words.next().ok_or("--sink: expected a sink")?,
            _ => args.cameras.push(word),
        }
    }
    match args.cameras.len() {
        0 => Err("usage: wall [--seconds N] [--sink SINK] CAMERA CAMERA…".into()),
        _ => Ok(args),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = args()?;
    gst::init()?;
    gstssm::plugin_register_static()?;

    let mut line = String::from("compositor name=wall background=black");
    for i in 0..args.cameras.len() as i32 {
        line += &format!(" sink_{i}::xpos={}", i * WIDTH);
    }
    line += &format!(" ! videoconvert ! {}", args.sink);
    for (i, camera) in args.cameras.iter().enumerate() {
        // A queue for each camera: they wait for the engine in threads of their own, and it takes them together. Where that
        // takes too long, frames that are late are shown without being looked at.
        line += &format!(
            " {camera} ! videoconvert ! videoscale ! video/x-raw,width={WIDTH},height={HEIGHT} ! \
             queue ! ssmevents name=camera{i} batch-timeout=5000000 qos=true ! ssmoverlay ! \
             videoconvert ! queue ! wall.sink_{i}"
        );
    }
    let pipeline = gst::parse::launch(&line)?;
    pipeline.set_state(gst::State::Playing)?;
    let bus = pipeline.bus().ok_or("no bus")?;
    let end = args.seconds.map(|s| std::time::Instant::now() + std::time::Duration::from_secs(s));
    let outcome = loop {
        let message = bus.timed_pop(gst::ClockTime::from_mseconds(100));
        match message.as_ref().map(|m| m.view()) {
            Some(gst::MessageView::Eos(_)) => break Ok(()),
            Some(gst::MessageView::Error(e)) => {
                break Err(format!("{}: {}", e.src().map(|s| s.path_string()).unwrap_or_default(), e.error()));
            }
            Some(gst::MessageView::Element(e)) => {
                if let Some(s) = e.structure().filter(|s| s.name() == "ssm-event") {
                    let camera = e.src().map(|s| s.name()).unwrap_or_default();
                    let time = s.get::<u64>("running-time").unwrap_or(0) as f64 / 1e9;
                    println!("{camera}: {} at {time:.2} s", s.get::<String>("kind").unwrap_or_default());
                }
            }
            _ => {}
        }
        if end.is_some_and(|end| std::time::Instant::now() >= end) {
            // So that a file is finished.
            pipeline.send_event(gst::event::Eos::new());
        }
    };
    if let Some(bin) = pipeline.downcast_ref::<gst::Bin>() {
        for i in 0..args.cameras.len() {
            if let Some(element) = bin.by_name(&format!("camera{i}")) {
                println!("camera{i}: {} steps", element.property::<u64>("steps"));
            }
        }
    }
    pipeline.set_state(gst::State::Null)?;
    Ok(outcome?)
}
