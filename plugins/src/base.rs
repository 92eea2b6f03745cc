//! What every element with a model holds and does alike: its open engine, its counters, its snapshots, its pads.

use crate::model::{Counters, ModelSettings};
use crate::state;
use gst::prelude::*;
use ssm_models::{Engine, Error, Snapshot};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An error for GLib, whose texts end at a zero byte: names in a file may hold one.
pub(crate) fn text(error: &impl std::fmt::Display) -> String {
    error.to_string().replace('\0', "\\0")
}

/// A property's text; bytes that are no UTF-8, which the name of a file may have, are replaced.
pub(crate) fn words(value: &glib::Value) -> Option<Arc<str>> {
    let path = value.get::<Option<std::path::PathBuf>>().ok().flatten();
    path.map(|path| path.to_string_lossy().into())
}

/// Locks; what a panic left behind is used as it is.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The part of an element that does not depend on what its model is for.
#[derive(Default)]
pub(crate) struct Base {
    /// Open from READY to NULL; queries read it and never wait for a forward pass.
    engine: Mutex<Option<Arc<Engine>>>,
    /// A snapshot to begin with, and where it comes from: `state-in` and its file, or the signal `load-state`.
    restore: Mutex<Option<(String, Vec<u8>)>>,
    reset: AtomicBool,
    pub(crate) counters: Counters,
    /// Warnings and errors that wait until no lock is held.
    unsaid: Mutex<Vec<gst::Message>>,
    /// Why caps were refused last.
    refused: Mutex<String>,
}

impl Base {
    /// Puts an engine in the place of the open one. Says whether it is another one.
    pub(crate) fn replace(&self, engine: &Arc<Engine>) -> bool {
        self.counters.state_bytes.store(engine.model().layout().bytes() as u64, Ordering::Relaxed);
        let before = lock(&self.engine).replace(engine.clone());
        before.is_none_or(|before| !Arc::ptr_eq(&before, engine))
    }

    /// The open engine.
    pub(crate) fn engine(&self) -> Option<Arc<Engine>> {
        lock(&self.engine).clone()
    }

    /// Lets the engine go.
    pub(crate) fn close(&self) {
        *lock(&self.engine) = None;
    }

    /// Warns of the stream once [`Base::speak`] is called. A handler on the bus may ask the element for its state, so nothing
    /// is posted while a lock is held.
    pub(crate) fn warn(&self, obj: &gst::Element, text: &str) {
        self.warn_as(obj, gst::StreamError::Decode, text);
    }

    fn warn_as(&self, obj: &gst::Element, kind: impl gst::MessageErrorDomain, text: &str) {
        gst::warning!(crate::CAT, obj = obj, "{text}");
        lock(&self.unsaid).push(gst::message::Warning::builder(kind, text).src(obj).build());
    }

    /// As [`Base::warn`], an error; returns what ends the stream.
    pub(crate) fn fail(&self, obj: &gst::Element, kind: impl gst::MessageErrorDomain, text: &str) -> gst::FlowError {
        gst::error!(crate::CAT, obj = obj, "{text}");
        lock(&self.unsaid).push(gst::message::Error::builder(kind, text).src(obj).build());
        gst::FlowError::Error
    }

    /// As [`Base::fail`] where a buffer comes and no caps came before. Where they came and were refused, that was said.
    pub(crate) fn before_caps(&self, obj: &gst::Element) -> gst::FlowError {
        if lock(&self.refused).is_empty() {
            let _ = self.fail(obj, gst::CoreError::Negotiation, "buffer before caps");
        }
        gst::FlowError::NotNegotiated
    }

    /// Says why caps are refused, once: whoever pushes may offer them again with every buffer.
    pub(crate) fn refuse_caps(&self, obj: &gst::Element, why: &str) {
        let known = std::mem::replace(&mut *lock(&self.refused), why.to_owned()) == why;
        if !known {
            gst::element_error!(obj, gst::CoreError::Negotiation, ("{why}"));
        }
    }

    /// Posts what was to be said.
    pub(crate) fn speak(&self, obj: &gst::Element) {
        let unsaid = std::mem::take(&mut *lock(&self.unsaid));
        unsaid.into_iter().for_each(|message| _ = obj.post_message(message));
    }

    /// Value of a common property.
    pub(crate) fn property(&self, settings: &ModelSettings, pspec: &glib::ParamSpec) -> glib::Value {
        let own = settings.get(pspec.name());
        own.or_else(|| self.counters.get(pspec.name(), settings, self.engine().as_deref()))
            .unwrap_or_else(|| pspec.default_value().clone())
    }

    /// Counts that a stream has a fresh state, if it is one.
    pub(crate) fn count_reset(&self, obj: &gst::Element, fresh: bool) {
        if fresh {
            Counters::add(&self.counters.resets, 1);
            gst::debug!(crate::CAT, obj = obj, "the state is a fresh one");
        }
    }

    /// Asks the streaming thread for a fresh state.
    pub(crate) fn ask_reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
    }

    /// Whether a fresh state was asked for since the last call.
    pub(crate) fn take_reset(&self) -> bool {
        self.reset.swap(false, Ordering::Relaxed)
    }

    /// Reads `state-in`, if it is set.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read_state(&self, settings: &ModelSettings) -> Result<(), gst::ErrorMessage> {
        if let Some(path) = &settings.state_in {
            let bytes = state::read(path)
                .map_err(|e| gst::error_msg!(gst::ResourceError::NotFound, ("state-in: {path}: {e}")))?;
            *lock(&self.restore) = Some((format!("state-in: {path}"), bytes));
            // What was asked for before does not undo it.
            self.take_reset();
        }
        // Known only at the end of a long stream, it would be lost.
        let folder = settings.state_out.as_deref().and_then(|path| Path::new(path).parent());
        match folder.filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
            Some(folder) => {
                let path = settings.state_out.as_deref().unwrap_or_default();
                let text = format!("state-out: {path}: expected a folder {}, got none", folder.display());
                Err(gst::error_msg!(gst::ResourceError::NotFound, ("{text}")))
            }
            None => Ok(()),
        }
    }

    /// The snapshot to begin with, until [`Base::forget`].
    ///
    /// # Errors
    /// It belongs to another model, or is damaged.
    pub(crate) fn restored(&self, engine: &Engine) -> Result<Option<Snapshot>, Error> {
        let bytes = lock(&self.restore);
        bytes.as_ref().map(|(_, bytes)| Snapshot::load(bytes, engine.info(), engine.model().layout())).transpose()
    }

    /// An error of beginning with a snapshot, as one of where it comes from.
    pub(crate) fn of_state(&self, error: Error) -> Error {
        match (error, &*lock(&self.restore)) {
            (Error::Snapshot { field, expected, got }, Some((origin, _))) => {
                Error::Config { file: format!("{origin}: state"), field, expected, got }
            }
            (error, _) => error,
        }
    }

    /// Lets the snapshot to begin with go.
    fn forget(&self) {
        *lock(&self.restore) = None;
    }

    /// A stream has begun with the caps that came.
    pub(crate) fn begun(&self) {
        self.forget();
        lock(&self.refused).clear();
    }

    /// Nothing that was asked of a stream outlives it.
    pub(crate) fn clear(&self) {
        self.take_reset();
        self.forget();
        lock(&self.refused).clear();
    }

    /// The bytes of a snapshot of the open model.
    pub(crate) fn bytes(&self, cat: &gst::DebugCategory, snapshot: &Snapshot) -> Option<Vec<u8>> {
        let engine = self.engine()?;
        match snapshot.save(engine.info(), engine.model().layout()) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                gst::error!(cat, "{error}");
                None
            }
        }
    }

    /// Goes on from a snapshot: now, by `restore`, or, where that gives `None` because nothing flows yet, when caps come.
    /// A snapshot of another model is refused with a warning, which [`Base::speak`] posts; without an open model it is judged
    /// later.
    pub(crate) fn load(
        &self,
        obj: &gst::Element,
        bytes: &[u8],
        restore: impl FnOnce(Snapshot) -> Option<Result<(), Error>>,
    ) -> bool {
        let snapshot = self.engine().map(|e| Snapshot::load(bytes, e.info(), e.model().layout()));
        let done = match snapshot {
            Some(Ok(snapshot)) => restore(snapshot),
            Some(Err(error)) => Some(Err(error)),
            None => None,
        };
        match done {
            Some(Ok(())) => {
                // What was asked for before does not undo it.
                self.take_reset();
                true
            }
            Some(Err(error)) => {
                self.warn_as(obj, gst::ResourceError::Settings, &format!("load-state: {}", text(&error)));
                false
            }
            None => {
                *lock(&self.restore) = Some(("load-state".into(), bytes.to_vec()));
                self.take_reset();
                true
            }
        }
    }

    /// Writes `state-out`, if it is set and there is a state. Says whether it is set; where it cannot be written, what is
    /// inside shall come out instead.
    pub(crate) fn write_state(
        &self,
        obj: &gst::Element,
        settings: &ModelSettings,
        save: impl FnOnce() -> Option<Vec<u8>>,
    ) -> bool {
        let Some(path) = &settings.state_out else { return false };
        let Some(bytes) = save() else { return true };
        if let Err(error) = state::write(path, &bytes) {
            gst::element_error!(obj, gst::ResourceError::Write, ("state-out: {path}: {error}"));
            return false;
        }
        true
    }
}

/// Always-pads `sink` and `src`.
pub(crate) fn templates(sink: &gst::Caps, src: &gst::Caps) -> Vec<gst::PadTemplate> {
    [("sink", gst::PadDirection::Sink, sink), ("src", gst::PadDirection::Src, src)]
        .into_iter()
        .filter_map(|(name, direction, caps)| {
            gst::PadTemplate::new(name, direction, gst::PadPresence::Always, caps).ok()
        })
        .collect()
}

/// What `gst-inspect-1.0` says of an element.
pub(crate) fn metadata(name: &str, class: &str, does: &str) -> gst::subclass::ElementMetadata {
    gst::subclass::ElementMetadata::new(name, class, does, "gst-plugin-ssm developers")
}

/// A model that is for something else.
pub(crate) fn unfit(settings: &ModelSettings, expected: &str, engine: &Engine) -> Error {
    let info = engine.info();
    Error::Config {
        file: settings.model.as_deref().unwrap_or_default().into(),
        field: "family".into(),
        expected: expected.into(),
        got: format!("{} (from {} to {})", info.family, info.input, info.output),
    }
}

/// Caps that an element cannot follow.
pub(crate) fn bad_caps(field: &str, expected: impl ToString, got: impl ToString) -> Error {
    Error::Config { file: "caps".into(), field: field.into(), expected: expected.to_string(), got: got.to_string() }
}
