//! What tests of elements share: the plugin, temporary folders, messages.

use crate::Rng;
use crate::fabricate::{FAMILIES, Fabricated};
use gst::ClockTime;
use gst::prelude::*;
use std::path::PathBuf;
use std::sync::Once;

/// Starts GStreamer with the plugin of this build.
pub fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        gst::init().expect("GStreamer starts");
        gstssm::plugin_register_static().expect("the plugin registers");
    });
}

/// An element with properties given as text.
pub fn make(factory: &str, properties: &[(&str, &str)]) -> gst::Element {
    init();
    let element = gst::ElementFactory::make(factory).build().expect("the element is registered");
    for (name, value) in properties {
        element.set_property_from_str(name, value);
    }
    element
}

/// A folder of one test that goes when the value does.
pub struct Folder(PathBuf);

impl Folder {
    /// An empty folder.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ssm-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    /// Path of a file in it.
    pub fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Writes a random model of a family; returns it and its path.
    pub fn model(&self, family: &str, seed: u64) -> (Fabricated, String) {
        let draw = FAMILIES.iter().find(|f| f.0 == family).expect("the family is there").1;
        let model = draw(&mut Rng::new(seed));
        let path = self.file(&format!("{family}-{seed}.safetensors"));
        std::fs::write(&path, model.bytes()).expect("a temporary file");
        (model, path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The text of the next error or warning on a bus.
pub fn complaint(bus: &gst::Bus, kind: gst::MessageType) -> String {
    let message = bus.timed_pop_filtered(ClockTime::from_seconds(10), &[kind]).expect("a message on the bus");
    match message.view() {
        gst::MessageView::Error(e) => e.error().to_string(),
        gst::MessageView::Warning(w) => w.error().to_string(),
        _ => unreachable!("filtered"),
    }
}

/// Runs a pipeline to its end and returns its element messages.
///
/// # Panics
/// As [`messages`].
pub fn run(line: &str) -> Vec<gst::Structure> {
    let structure = |m: gst::Message| match m.view() {
        gst::MessageView::Element(e) => e.structure().map(|s| s.to_owned()),
        _ => None,
    };
    messages(line).into_iter().filter_map(structure).collect()
}

/// Caps of RGB frames, 25 a second.
pub fn rgb(width: usize, height: usize) -> gst::Caps {
    gst::Caps::builder("video/x-raw")
        .field("format", "RGB")
        .field("width", width as i32)
        .field("height", height as i32)
        .field("framerate", gst::Fraction::new(25, 1))
        .build()
}

/// Runs a pipeline to its end and returns all messages before that.
///
/// # Panics
/// It posts an error, or does not end within a minute.
pub fn messages(line: &str) -> Vec<gst::Message> {
    init();
    play(&gst::parse::launch(line).expect("the line parses"), line)
}

/// As [`messages`], of a pipeline that was made from `line`.
///
/// # Panics
/// As [`messages`].
pub fn play(pipeline: &gst::Element, line: &str) -> Vec<gst::Message> {
    let bus = pipeline.bus().expect("a pipeline has a bus");
    pipeline.set_state(gst::State::Playing).ok();
    let mut found = Vec::new();
    loop {
        let message = bus.timed_pop(ClockTime::from_seconds(60)).expect("the pipeline ends within a minute");
        match message.view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(e) => panic!("{line}: {} ({:?})", e.error(), e.debug()),
            _ => found.push(message),
        }
    }
    pipeline.set_state(gst::State::Null).expect("back to NULL");
    found
}
