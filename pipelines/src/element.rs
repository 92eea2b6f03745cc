//! Pipelines that commands run: started with the plugin of this build, to their end, errors as values.

use crate::Failure;
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

/// Runs a pipeline to its end. `properties`: element name, property, value. `watched`: the element whose buffers' times are
/// kept, and which `look` sees.
pub fn play(
    line: &str,
    properties: &[(&str, &str, &str)],
    watched: &str,
    look: impl Fn(&gst::BufferRef) + Send + Sync + 'static,
) -> Result<Run, Failure> {
    let pipeline = gst::parse::launch(line).map_err(failed)?;
    let pipeline = pipeline.downcast::<gst::Pipeline>().map_err(|_| failed(format!("{line}: expected a pipeline")))?;
    for (element, property, value) in properties {
        let element = pipeline.by_name(element).ok_or_else(|| failed(format!("{line}: no element {element}")))?;
        element.set_property_from_str(property, value);
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
    let bus = pipeline.bus().ok_or_else(|| failed("a pipeline without a bus"))?;
    let mut messages = Vec::new();
    let started = pipeline.set_state(gst::State::Playing);
    let outcome = loop {
        let Some(message) = bus.timed_pop(gst::ClockTime::NONE) else { break Ok(()) };
        match message.view() {
            gst::MessageView::Eos(_) => break Ok(()),
            gst::MessageView::Error(e) => {
                let from = e.src().map_or_else(String::new, |s| s.name().to_string());
                break Err(failed(format!("{from}: {}", e.error())));
            }
            gst::MessageView::Element(e) => messages.extend(e.structure().map(ToOwned::to_owned)),
            _ => {}
        }
        if started.is_err() && bus.peek().is_none() {
            break Err(failed(format!("{line}: it does not start")));
        }
    };
    let _ = pipeline.set_state(gst::State::Null);
    outcome?;
    let times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Run { messages, times })
}
