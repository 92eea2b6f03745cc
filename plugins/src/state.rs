//! How an application reaches a stream's state: three action signals, and files.

use glib::object::ObjectSubclassIs;
use glib::prelude::*;
use glib::subclass::Signal;
use glib::subclass::prelude::*;
use std::fs;
use std::io::{self, Read, Write};
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
    T::Type: IsA<gst::Element> + ObjectSubclassIs<Subclass = T>,
{
    fn element<T: ObjectSubclass>(values: &[glib::Value]) -> Option<T::Type>
    where
        T::Type: IsA<gst::Element>,
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
            .class_handler(|values| {
                let state = element::<T>(values).and_then(|element| element.imp().save());
                Some(state.map(glib::Bytes::from_owned).to_value())
            })
            .build(),
        Signal::builder("load-state")
            .action()
            .param_types([glib::Bytes::static_type()])
            .return_type::<bool>()
            .class_handler(|values| {
                let bytes = values.get(1).and_then(|value| value.get::<Option<glib::Bytes>>().ok().flatten());
                let loaded = element::<T>(values).is_some_and(|element| {
                    let loaded = bytes.as_ref().map(|bytes| element.imp().load(bytes));
                    loaded.unwrap_or_else(|| {
                        gst::element_warning!(
                            element.upcast_ref::<gst::Element>(),
                            gst::ResourceError::Settings,
                            ("load-state: expected the bytes of a state, got NULL")
                        );
                        false
                    })
                });
                // GLib ends the process of a handler that gives back nothing.
                Some(loaded.to_value())
            })
            .build(),
    ]
}

/// Bytes that a file with a state or labels has at most: a device may have no end.
const MAX_BYTES: u64 = 1 << 28;

/// Reads a file of a size that can be.
///
/// # Errors
/// The file system refuses, the file does not end, or `path` is a pipe, a socket or a folder: opening a pipe would wait for
/// its writer.
pub(crate) fn read(path: &str) -> io::Result<Vec<u8>> {
    let found = fs::metadata(path)?;
    if !found.is_file() && !device(&found) {
        return Err(neither());
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == MAX_BYTES {
        return Err(io::Error::other(format!("expected fewer than {MAX_BYTES} bytes, got more")));
    }
    Ok(bytes)
}

/// Writes a snapshot. A file is written under a neighbouring name first, which then takes its place, so that a reader
/// never sees half of one and a full disk leaves the old one. A device stays the device that it is and is written to.
///
/// # Errors
/// The file system refuses (the old file is then as it was), or `path` is a pipe, a socket or a folder: opening a pipe
/// would wait for its reader.
pub(crate) fn write(path: &str, bytes: &[u8]) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if device(&found) => fs::OpenOptions::new().write(true).open(path)?.write_all(bytes),
        Ok(found) if !found.is_file() => Err(neither()),
        _ => replace(Path::new(path), |file| file.write_all(bytes)),
    }
}

/// The error of a name that is neither file nor device.
fn neither() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "expected a file or a device, got something else")
}

#[cfg(unix)]
fn device(found: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    found.file_type().is_char_device()
}

#[cfg(not(unix))]
fn device(_: &fs::Metadata) -> bool {
    false
}

/// Whether a name still means an open file: between its opening and its lock another process may have moved it.
#[cfg(unix)]
pub fn still_named(file: &fs::File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |data: io::Result<fs::Metadata>| data.map(|data| (data.dev(), data.ino())).ok();
    id(file.metadata()) == id(fs::metadata(path))
}

/// Whether a name still means an open file, as far as it can be seen here.
#[cfg(not(unix))]
pub fn still_named(_: &fs::File, path: &Path) -> bool {
    path.exists()
}

/// The file that is to become another one, empty, once no other writer has it.
fn part(path: &Path) -> io::Result<fs::File> {
    loop {
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        // Some file systems have no locks: there one writer has to be the only one.
        while file.lock().is_err_and(|e| e.kind() == io::ErrorKind::Interrupted) {}
        if still_named(&file, path) {
            file.set_len(0)?;
            return Ok(file);
        }
    }
}

/// Writes a file under a neighbouring name, then puts it in its place: who reads that meanwhile has the old one, and so has
/// who comes after a crash. Several writers take turns. A link leads on to its file, whose rights stay.
///
/// # Errors
/// The file system refuses; the old file is then as it was.
pub fn replace(path: &Path, write: impl FnOnce(&mut fs::File) -> io::Result<()>) -> io::Result<()> {
    let old = fs::metadata(path).ok();
    let path = if old.is_some() { fs::canonicalize(path)? } else { path.to_owned() };
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let mut file = part(Path::new(&name))?;
    let written = || {
        write(&mut file)?;
        if let Some(old) = &old {
            file.set_permissions(old.permissions())?;
        }
        // Without it the new name could outlive a loss of power, and the bytes not.
        file.sync_all()?;
        fs::rename(&name, &path)
    };
    written().inspect_err(|_| _ = fs::remove_file(&name))
}
