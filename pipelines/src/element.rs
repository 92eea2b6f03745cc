//! Pipelines that commands run: started with the plugin of this build, to their end, errors as values.

use crate::Failure;
use gst::glib;
use gst::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What a pipeline left behind.
pub struct Run {
    /// Structures of all element messages, in order.
    pub messages: Vec<gst::Structure>,
    /// Times in ns of the buffers that the watched element got.
    pub times: Vec<u64>,
}

fn failed(what: impl std::fmt::Display) -> Failure {
    Failure::Usage(what.to_string())
}

/// Starts GStreamer.
pub fn init() -> Result<(), Failure> {
    gst::init().map_err(failed)?;
    gstssm::plugin_register_static().map_err(failed)
}

/// The files of a folder with one of these endings, by name.
pub fn files(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, Failure> {
    let fail = |e: std::io::Error| Failure::File { path: folder.to_owned(), reason: e.to_string() };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A pipeline of a description.
pub fn launch(line: &str) -> Result<gst::Pipeline, Failure> {
    let pipeline = gst::parse::launch(line).map_err(failed)?;
    pipeline.downcast::<gst::Pipeline>().map_err(|_| failed(format!("{line}: expected a pipeline")))
}

/// Plays a pipeline until it ends, posts an error, or `on` says `false`. `on` gets the structure of each element message,
/// and `None` a few times a second.
pub fn follow(
    pipeline: &gst::Pipeline,
    line: &str,
    mut on: impl FnMut(Option<&gst::StructureRef>) -> bool,
) -> Result<(), Failure> {
    let bus = pipeline.bus().ok_or_else(|| failed("a pipeline without a bus"))?;
    let started = pipeline.set_state(gst::State::Playing);
    let outcome = loop {
        let message = bus.timed_pop(gst::ClockTime::from_mseconds(200));
        let on = match message.as_ref().map(|m| m.view()) {
            Some(gst::MessageView::Eos(_)) => break Ok(()),
            Some(gst::MessageView::Error(e)) => {
                let from = e.src().map_or_else(String::new, |s| s.name().to_string());
                break Err(failed(format!("{from}: {}", e.error())));
            }
            Some(gst::MessageView::Element(e)) => on(e.structure()),
            Some(_) => true,
            None => on(None),
        };
        if !on {
            break Ok(());
        }
        if started.is_err() && bus.peek().is_none() {
            break Err(failed(format!("{line}: it does not start")));
        }
    };
    let _ = pipeline.set_state(gst::State::Null);
    outcome
}

/// Makes an error of a pipeline one of the file that it read.
pub fn of(path: &Path) -> impl FnOnce(Failure) -> Failure + use<> {
    let path = path.to_owned();
    move |failure| Failure::File { path, reason: failure.to_string() }
}

/// Elements that find something.
const FINDERS: [&str; 5] = ["ssmevents", "ssmclassify", "ssmvad", "ssmaudiotag", "ssmembed"];

/// Refuses `PROPERTY=VALUE` with a value out of the property's range, which GLib would warn of and leave at its default.
fn in_range(element: &gst::Element, word: &str) -> Result<(), Failure> {
    let Some((name, text)) = word.split_once('=') else { return Ok(()) };
    if name == "name" {
        return Err(failed("--element: name: expected none, the element has its factory's"));
    }
    let Some(pspec) = element.find_property(name) else { return Ok(()) };
    macro_rules! check {
        ($($kind:ident: $number:ty),*) => {
            $(if let Some(spec) = pspec.downcast_ref::<glib::$kind>() {
                let (low, high) = (spec.minimum(), spec.maximum());
                // What does not read as a number, parsing the line tells.
                let text = text.trim_matches('"');
                let inside = text.parse::<$number>().is_ok_and(|number| (low..=high).contains(&number));
                return match text.parse::<f64>() {
                    Ok(_) if !inside => {
                        Err(failed(format!("--element: {name}: expected {low} to {high}, got {text}")))
                    }
                    _ => Ok(()),
                };
            })*
        };
    }
    check!(ParamSpecDouble: f64, ParamSpecFloat: f32, ParamSpecUInt: u32, ParamSpecUInt64: u64, ParamSpecInt: i32);
    Ok(())
}

/// What an element takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Media {
    /// Frames.
    Video,
    /// Sound.
    Audio,
}

/// An element of the plugin that finds something, with its properties, as a command names it.
#[derive(Clone, Debug)]
pub struct Finder {
    /// Name of the factory, and of the element in the lines that it writes.
    pub name: String,
    /// Its part of a pipeline's description.
    pub line: String,
    /// What it takes.
    pub media: Media,
}

impl Finder {
    /// Reads `FACTORY [PROPERTY=VALUE…]`, as `gst-launch-1.0` does. `media`: what it shall take where it takes both.
    pub fn new(text: &str, media: Option<Media>) -> Result<Self, Failure> {
        let mut words = text.split_whitespace();
        let name = words.next().unwrap_or_default();
        let found = gst::ElementFactory::find(name).filter(|_| FINDERS.contains(&name));
        let factory =
            found.ok_or_else(|| failed(format!("--element: expected one of {}, got {name:?}", FINDERS.join(", "))))?;
        if words.clone().any(|w| w == "!") {
            return Err(failed(format!("--element: expected one element, got {text:?}")));
        }
        let caps = |media: &str| {
            factory.static_pad_templates().iter().any(|t| {
                t.direction() == gst::PadDirection::Sink && t.caps().iter().any(|s| s.name().as_str() == media)
            })
        };
        let media = match (caps("video/x-raw"), caps("audio/x-raw"), media) {
            (true, false, None | Some(Media::Video)) => Media::Video,
            (false, true, None | Some(Media::Audio)) => Media::Audio,
            (true, true, Some(media)) => media,
            (true, true, None) => return Err(failed(format!("{name} takes frames and sound: say --media"))),
            (_, _, media) => {
                let other = if media == Some(Media::Video) { "video" } else { "audio" };
                return Err(failed(format!("{name} does not take --media {other}")));
            }
        };
        if let Ok(element) = factory.create().build() {
            words.clone().try_for_each(|word| in_range(&element, word))?;
        }
        let rest = words.collect::<Vec<_>>().join(" ");
        Ok(Self { name: name.into(), line: format!("{name} name={name} {rest}"), media })
    }

    /// Elements that bring any decoded media into a form that it takes.
    pub fn convert(&self) -> &'static str {
        match self.media {
            Media::Video => "videoconvert ! video/x-raw,format=(string){RGB,I420,NV12}",
            Media::Audio => "audioconvert ! audioresample",
        }
    }
}

/// Runs a pipeline to its end. `properties`: element name, property, value. `watched`: the element whose buffers' times are
/// kept, and which `look` sees.
pub fn play(
    line: &str,
    properties: &[(&str, &str, &str)],
    watched: &str,
    look: impl Fn(&gst::BufferRef) + Send + Sync + 'static,
) -> Result<Run, Failure> {
    let pipeline = launch(line)?;
    for (element, property, value) in properties {
        let element = pipeline.by_name(element).ok_or_else(|| failed(format!("{line}: no element {element}")))?;
        // A text is taken as it is; read as a word, NULL would be none.
        match element.find_property(property) {
            Some(spec) if spec.value_type() == glib::Type::STRING => element.set_property(property, *value),
            _ => element.set_property_from_str(property, value),
        }
    }
    let times = Arc::new(Mutex::new(Vec::new()));
    if let Some(pad) = pipeline.by_name(watched).and_then(|e| e.static_pad("sink")) {
        let times = times.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            if let Some(buffer) = info.buffer() {
                let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
                times.extend(buffer.pts().map(|t| t.nseconds()));
                look(buffer);
            }
            gst::PadProbeReturn::Ok
        });
    }
    let mut messages = Vec::new();
    follow(&pipeline, line, |structure| {
        messages.extend(structure.map(ToOwned::to_owned));
        true
    })?;
    let times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Run { messages, times })
}
