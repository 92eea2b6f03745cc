//! The model of an element: opening it, and another one in its place while the element plays. That one is opened in a
//! thread of its own and takes over between two buffers, so that no buffer waits for a file.

use crate::base::{Base, lock, text};
use crate::model::ModelSettings;
use gst::prelude::*;
use gst::subclass::prelude::*;
use ssm_models::{Engine, Error, Options, Signal};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Where an element with a model holds what all of these have.
pub(crate) trait Holds: ElementImpl {
    /// What the element makes of a model that fits.
    type Fit: Send + 'static;

    fn base(&self) -> &Base;
    fn reload(&self) -> &Reload<Self::Fit>;
    /// Reads or changes the common properties.
    fn with_model<R>(&self, change: impl FnOnce(&mut ModelSettings) -> R) -> R;

    /// The common properties.
    fn model(&self) -> ModelSettings {
        self.with_model(|model| model.clone())
    }
}

/// An element with a model.
pub(crate) trait Modelled: Holds {
    /// How the model is opened.
    fn options(&self) -> Options;
    /// Refuses a model that is for something else; `model` is what it was opened with.
    fn fits(&self, engine: &Arc<Engine>, model: &ModelSettings) -> Result<Self::Fit, Error>;
    /// The model of this fit is at work from now on.
    fn adopt(&self, fit: Self::Fit);
}

/// A model that takes the place of the open one at the next buffer.
pub(crate) struct Next<F> {
    pub(crate) engine: Arc<Engine>,
    pub(crate) settings: ModelSettings,
    pub(crate) fit: F,
}

#[derive(Default)]
struct Requests {
    /// Whether one waits to be looked at.
    wanted: bool,
    /// Whether a thread looks at them.
    opening: bool,
}

/// What is on its way.
pub(crate) struct Reload<F> {
    /// Whether buffers may come: between READY and PAUSED.
    flowing: AtomicBool,
    /// Number of the last request; older ones are given up.
    asked: AtomicU64,
    requests: Mutex<Requests>,
    next: Mutex<Option<Next<F>>>,
    /// Value of `model` that the open engine came from.
    running: Mutex<Option<Arc<str>>>,
}

impl<F> Default for Reload<F> {
    fn default() -> Self {
        Self {
            flowing: AtomicBool::default(),
            asked: AtomicU64::default(),
            requests: Mutex::default(),
            next: Mutex::new(None),
            running: Mutex::default(),
        }
    }
}

impl<F> Reload<F> {
    /// The model that takes over now, if there is one.
    pub(crate) fn take(&self) -> Option<Next<F>> {
        lock(&self.next).take()
    }

    /// Forgets what is on its way.
    fn give_up(&self) {
        let mut requests = lock(&self.requests);
        self.asked.fetch_add(1, Ordering::AcqRel);
        requests.wanted = false;
        drop(requests);
        lock(&self.next).take();
    }
}

fn element<T: Modelled>(imp: &T) -> gst::Element {
    imp.obj().clone().upcast()
}

/// Opens the engine that the settings ask for, unless it is open already.
fn open<T: Modelled>(imp: &T) -> Result<(), Error> {
    let model = imp.model();
    let engine = model.engine(imp.options())?;
    imp.adopt(imp.fits(&engine, &model)?);
    lock(&imp.reload().running).clone_from(&model.model);
    gst::info!(crate::CAT, obj = element(imp), "opened {}", model.model.as_deref().unwrap_or_default());
    if imp.base().replace(&engine) && model.post_messages {
        let obj = element(imp);
        let _ = obj.post_message(model.message(&obj, &engine, None));
    }
    Ok(())
}

/// What a change of state means for the model, on its way up: it is opened.
///
/// # Errors
/// It cannot be; the element has said so.
pub(crate) fn before<T: Modelled>(imp: &T, transition: gst::StateChange) -> Result<(), gst::StateChangeError> {
    use gst::StateChange::{NullToReady, ReadyToPaused};
    let flowing = &imp.reload().flowing;
    if transition == ReadyToPaused {
        // Of a setting that was on its way when all stopped.
        imp.reload().give_up();
        flowing.store(true, Ordering::Relaxed);
    }
    if matches!(transition, NullToReady | ReadyToPaused)
        && let Err(error) = open(imp)
    {
        flowing.store(false, Ordering::Relaxed);
        gst::element_error!(element(imp), gst::ResourceError::OpenRead, ("{}", text(&error)));
        return Err(gst::StateChangeError);
    }
    Ok(())
}

/// What a change of state means for the model, on its way down: it is let go.
pub(crate) fn after<T: Modelled>(imp: &T, transition: gst::StateChange) {
    use gst::StateChange::{PausedToReady, ReadyToNull};
    if matches!(transition, PausedToReady | ReadyToNull) {
        stopped(imp);
    }
    if transition == ReadyToNull {
        imp.base().close();
    }
}

/// Nothing flows any longer, or will: the change of state that was to begin it failed.
pub(crate) fn stopped<T: Modelled>(imp: &T) {
    imp.reload().flowing.store(false, Ordering::Relaxed);
    imp.reload().give_up();
}

/// Follows a property that was set: another `model` for an element that plays is opened, or waits for the next start.
pub(crate) fn changed<T: Modelled>(imp: &T, property: &str) {
    let reload = imp.reload();
    if property != "model" || !reload.flowing.load(Ordering::Relaxed) {
        return;
    }
    let model = imp.model();
    if !model.allow_reload {
        let same = model.model == *lock(&reload.running);
        if !same {
            gst::element_warning!(
                element(imp),
                gst::ResourceError::Settings,
                ("model: the new value counts from READY on; with allow-reload=true it counts while playing, too")
            );
        }
        return;
    }
    {
        let mut requests = lock(&reload.requests);
        reload.asked.fetch_add(1, Ordering::AcqRel);
        requests.wanted = true;
        // One thread opens them, whatever their number: the newest when it comes to it.
        if std::mem::replace(&mut requests.opening, true) {
            return;
        }
    }
    let weak = imp.ref_counted().downgrade();
    let spawned = std::thread::Builder::new().name("ssm-reload".into()).spawn(move || while open_newest(&weak) {});
    if let Err(error) = spawned {
        lock(&reload.requests).opening = false;
        gst::element_warning!(element(imp), gst::ResourceError::Failed, ("model: no thread to open it: {error}"));
    }
}

/// Opens the model that was asked for last, on a thread of its own. Returns whether to look for another one.
fn open_newest<T: Modelled>(weak: &glib::subclass::ObjectImplWeakRef<T>) -> bool {
    let Some(imp) = weak.upgrade() else { return false };
    {
        let mut requests = lock(&imp.reload().requests);
        if !std::mem::take(&mut requests.wanted) {
            requests.opening = false;
            return false;
        }
    }
    let ticket = imp.reload().asked.load(Ordering::Acquire);
    // Behind the ticket: who changes it from here on has a newer one.
    let (model, options) = (imp.model(), imp.options());
    // The element may go meanwhile.
    drop(imp);
    let opened = model.engine(options);
    let Some(imp) = weak.upgrade() else { return false };
    let reload = imp.reload();
    let newest = || reload.asked.load(Ordering::Acquire) == ticket;
    if !newest() {
        return true;
    }
    match opened.and_then(|engine| fitting(&*imp, &model, &engine).map(|fit| (engine, fit))) {
        Ok((engine, fit)) => {
            let mut next = lock(&reload.next);
            // Under the lock that giving up takes afterwards: what was given up meanwhile is not left behind.
            if newest() && reload.flowing.load(Ordering::Relaxed) {
                *next = Some(Next { engine, settings: model, fit });
            }
        }
        Err(error) if newest() => refuse(&*imp, &model, &error),
        Err(_) => {}
    }
    true
}

/// What the element makes of a model that shall take the place of the open one.
fn fitting<T: Modelled>(imp: &T, model: &ModelSettings, engine: &Arc<Engine>) -> Result<T::Fit, Error> {
    let fit = imp.fits(engine, model)?;
    let (new, old) = (engine.info().input, imp.base().engine().map(|e| e.info().input));
    let other = match (old, new) {
        (Some(Signal::Samples { rate: a, .. }), Signal::Samples { rate: b, .. }) => (a != b).then(|| format!("{a} Hz")),
        (Some(Signal::Image { .. }), Signal::Image { .. }) | (None, _) => None,
        (Some(old), _) => Some(old.to_string()),
    };
    match other {
        None => Ok(fit),
        Some(expected) => Err(Error::Config {
            file: model.model.as_deref().unwrap_or_default().into(),
            field: "input".into(),
            expected: format!("{expected}, as the model that is running"),
            got: new.to_string(),
        }),
    }
}

/// Stays with the model that is running instead of the one that was `asked` for, and says so.
pub(crate) fn refuse<T: Modelled>(imp: &T, asked: &ModelSettings, error: &Error) {
    let running = lock(&imp.reload().running).clone();
    let obj = element(imp);
    gst::element_warning!(
        obj,
        gst::ResourceError::OpenRead,
        ("model: {}; {} goes on", text(error), running.as_deref().unwrap_or("the old one"))
    );
    // Another one may have been set since.
    imp.with_model(|model| {
        if model.model == asked.model {
            model.model = running;
        }
    });
    obj.notify("model");
}

/// Puts a model to work: the caller has moved the stream over, with its state (`kept`) or without. Returns what is to be
/// posted when no lock is held.
pub(crate) fn install<T: Modelled>(imp: &T, next: Next<T::Fit>, kept: bool) -> Option<gst::Message> {
    imp.base().replace(&next.engine);
    lock(&imp.reload().running).clone_from(&next.settings.model);
    imp.adopt(next.fit);
    let message = |kept| next.settings.message(&element(imp), &next.engine, Some(kept));
    imp.model().post_messages.then(|| message(if kept { "kept" } else { "reset" }))
}

/// Whether a stream's state under one engine means the same under another one: weights may differ.
pub(crate) fn agree(a: &Engine, b: &Engine) -> bool {
    let (x, y) = (a.info(), b.info());
    let hop = |signal| if let Signal::Samples { hop, .. } = signal { Some(hop) } else { None };
    x.family == y.family
        && a.model().layout() == b.model().layout()
        && (hop(x.input), x.output, x.delay) == (hop(y.input), y.output, y.delay)
        && x.facts.look_ahead == y.facts.look_ahead
}
