//! `element FILE [--threads N] [--seconds S]`: `ssmclassify` beside its bare model, what a frame's way through a pipeline
//! adds. A program of its own, so that `ssm-bench` runs where GStreamer is missing.

use gst::prelude::*;
use ssm_bench::{option, processor, race_by, values};
use ssm_kernels::{CpuLevel, Cx};
use ssm_models::frontend::image::{ImagePlan, PixelFormat, Plane};
use ssm_models::{Error, Model, Options, Row, Scratch, Signal, open};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// `appsrc ! ssmclassify ! fakesink`, and its next frame.
struct Pipeline {
    pipeline: gst::Pipeline,
    source: gst_app::AppSrc,
    done: Receiver<()>,
    frame: gst::Buffer,
    pts: gst::ClockTime,
}

impl Pipeline {
    /// Of RGB frames of `side` x `side`.
    fn new(model: &str, threads: usize, side: usize) -> Result<Self, Box<dyn std::error::Error>> {
        let caps = format!("video/x-raw,format=RGB,width={side},height={side},framerate=25/1");
        let line = format!(
            "appsrc name=in format=time caps={caps} ! ssmclassify name=it threads={threads} ! fakesink name=out \
             signal-handoffs=true"
        );
        let pipeline = gst::parse::launch(&line)?.downcast::<gst::Pipeline>().map_err(|_| "expected a pipeline")?;
        let part = |name: &str| pipeline.by_name(name).ok_or_else(|| format!("no element {name}"));
        part("it")?.set_property("model", model);
        let (ready, done) = channel();
        part("out")?.connect("handoff", false, move |_| {
            let _ = ready.send(());
            None
        });
        let source = part("in")?.downcast::<gst_app::AppSrc>().map_err(|_| "expected an appsrc")?;
        // Nobody reads the results.
        let bus = pipeline.bus().ok_or("expected a bus")?;
        bus.set_sync_handler(|_, message| {
            if let gst::MessageView::Error(error) = message.view() {
                eprintln!("{error:?}");
            }
            gst::BusSyncReply::Drop
        });
        pipeline.set_state(gst::State::Playing)?;
        let frame = gst::Buffer::from_slice(pixels(side));
        Ok(Self { pipeline, source, done, frame, pts: gst::ClockTime::ZERO })
    }

    /// Takes one frame through.
    fn push(&mut self) {
        let mut frame = self.frame.copy();
        if let Some(frame) = frame.get_mut() {
            frame.set_pts(self.pts);
        }
        self.pts += gst::ClockTime::from_mseconds(40);
        assert!(self.source.push_buffer(frame).is_ok(), "the pipeline takes no frame");
        assert!(self.done.recv_timeout(Duration::from_secs(60)).is_ok(), "no frame comes out");
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

/// What the element does before the model: pixels to values.
struct Front {
    plan: ImagePlan,
    frame: Vec<u8>,
    side: usize,
    x: Vec<f32>,
}

impl Front {
    fn new(model: &dyn Model, side: usize, size: (usize, usize)) -> Result<Self, Error> {
        let plan = ImagePlan::with_pixels((side, side), PixelFormat::Rgb, size, &model.info().facts.pixels)?;
        Ok(Self { plan, frame: pixels(side), side, x: vec![0.0; model.info().input.len()] })
    }

    fn run(&mut self, cx: &Cx) {
        let plane = Plane { data: &self.frame, stride: self.side * 3 };
        assert!(self.plan.run(cx, &[plane], &mut self.x).is_ok(), "the front end refuses a frame of its own size");
    }
}

/// A frame of noise, RGB.
fn pixels(side: usize) -> Vec<u8> {
    values(side * side * 3, 127.0).iter().map(|v| (v + 128.0) as u8).collect()
}

/// Frames of the model's own size, and of the size of which it takes the middle without scaling. Processor time is of all
/// threads, and says something on a busy machine, too.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let file = args.first().ok_or("expected a file")?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = option(&args, "--threads").map_or(Ok(cores), |n| n.parse())?;
    let seconds = option(&args, "--seconds").map_or(Ok(10.0), |s| s.parse())?;
    gst::init()?;
    gstssm::plugin_register_static()?;
    let level = CpuLevel::from_env()?;
    let model = open(file, &Options { level, ..Options::default() })?;
    let Signal::Image { height, width, .. } = model.info().input else {
        return Err("expected a model of frames".into());
    };
    let unscaled = height * 8 / 7;
    let (cx, one, mut scratch) = (Cx::at(level, threads), Cx::at(level, 1), Scratch::default());
    let mut rows = [Row::new(&*model, 1)];
    let front = |side| Front::new(&*model, side, (height, width));
    let (mut front_scaled, mut front_cut) = (front(height)?, front(unscaled)?);
    front_scaled.run(&one);
    rows[0].x.copy_from_slice(&front_scaled.x);
    let (mut scaled, mut cut) = (Pipeline::new(file, threads, height)?, Pipeline::new(file, threads, unscaled)?);
    let times = race_by(
        &processor,
        seconds,
        &mut [
            &mut || model.forward(&cx, &mut rows, 1, &mut scratch),
            &mut || scaled.push(),
            &mut || cut.push(),
            &mut || front_scaled.run(&one),
            &mut || front_cut.run(&one),
        ],
    );
    let [model, scaled, cut, front_scaled, front_cut] = times[..] else { return Err("expected five times".into()) };
    let percent = |a: f64, b: f64| (a / b - 1.0) * 100.0;
    println!("\nssmclassify beside its bare model, {threads} threads: the model {:.2} ms a frame", model.0 * 1e3);
    for (side, all, front) in [(height, scaled, front_scaled), (unscaled, cut, front_cut)] {
        println!(
            "frames of {side} x {side}: {:.2} ms, {:+.2} % of the model, in processor time {:+.2} %; pixels to values take \
             {:.3} ms of it",
            all.0 * 1e3,
            percent(all.0, model.0),
            percent(all.1, model.1),
            front.0 * 1e3
        );
    }
    Ok(())
}
