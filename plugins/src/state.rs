//! How an application reaches a stream's state: three action signals, and files.

use glib::object::ObjectSubclassIs;
use glib::prelude::*;
use glib::subclass::Signal;
use glib::subclass::prelude::*;
use std::path::Path;

/// An element that has a state.
pub(crate) trait Stateful: ObjectSubclass {
    /// Makes the state a fresh one before the next buffer.
    fn reset(&self);
    /// The state as a snapshot; `None` before caps.
    fn save(&self) -> Option<Vec<u8>>;
    /// Goes on from a snapshot, now or when caps come; `false` if it belongs to another model.
    fn load(&self, bytes: &[u8]) -> bool;
}

/// `reset-state`, `save-state` -> GBytes (NULL before caps), `load-state`(GBytes) -> boolean.
pub(crate) fn signals<T>() -> Vec<Signal>
where
    T: Stateful,
    T::Type: IsA<glib::Object> + ObjectSubclassIs<Subclass = T>,
{
    fn element<T: ObjectSubclass>(values: &[glib::Value]) -> Option<T::Type>
    where
        T::Type: IsA<glib::Object>,
    {
        values.first()?.get().ok()
    }
    vec![
        Signal::builder("reset-state")
            .action()
            .class_handler(|values| {
                element::<T>(values)?.imp().reset();
                None
            })
            .build(),
        Signal::builder("save-state")
            .action()
            .return_type::<Option<glib::Bytes>>()
            .class_handler(|values| Some(element::<T>(values)?.imp().save().map(glib::Bytes::from_owned).to_value()))
            .build(),
        Signal::builder("load-state")
            .action()
            .param_types([glib::Bytes::static_type()])
            .return_type::<bool>()
            .class_handler(|values| {
                let bytes = values.get(1)?.get::<glib::Bytes>().ok()?;
                Some(element::<T>(values)?.imp().load(&bytes).to_value())
            })
            .build(),
    ]
}

/// Writes a snapshot: to a neighbouring file first, which then takes the name, so that a reader never sees half of one.
///
/// # Errors
/// The file system refuses; the old file is then as it was.
pub(crate) fn write(path: &str, bytes: &[u8]) -> std::io::Result<()> {
    let part = format!("{path}.part");
    let done = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, Path::new(path)));
    if done.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    done
}
