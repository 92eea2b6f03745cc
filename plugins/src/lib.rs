//! GStreamer elements that run state-space models on live video and audio.
//!
//! | element | does |
//! |---|---|
//! | `ssmclassify` | classes of each video frame (pixels untouched) |
//! | `ssmevents` | events in video, with beginning and end |
//! | `ssmdenoise` | audio in, clean audio out, with a fixed, declared latency |
//! | `ssmvad` | where there is speech in audio |
//! | `ssmaudiotag` | classes of what is heard |
//! | `ssmembed` | vectors of features of frames or audio |
//! | `ssmoverlay` | results of the others drawn on frames |
//! | `ssmjson` | results of the others as lines of JSON |
#![deny(unsafe_code)]

mod analyser;
#[cfg(feature = "v1_24")]
mod analytics;
mod audiotag;
mod base;
mod classes;
mod classify;
mod cuda;
mod denoise;
mod ear;
mod embed;
mod events;
mod eye;
mod json;
mod line;
mod model;
mod overlay;
mod pace;
mod reload;
mod results;
mod state;
mod timeline;
mod vad;

pub use results::{ClassScore, EventResult, META_NAME, Results, Vector};
pub use state::{replace, still_named};

/// Debug category of what elements have in common.
pub(crate) static CAT: std::sync::LazyLock<gst::DebugCategory> = std::sync::LazyLock::new(|| {
    gst::DebugCategory::new("ssm", gst::DebugColorFlags::empty(), Some("State-space elements"))
});

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    results::register_meta();

    audiotag::register(plugin)?;
    classify::register(plugin)?;
    denoise::register(plugin)?;
    embed::register(plugin)?;
    events::register(plugin)?;
    json::register(plugin)?;
    overlay::register(plugin)?;
    vad::register(plugin)?;
    Ok(())
}

/// What the macro makes has no words of its own.
#[allow(missing_docs)]
mod definition {
    use super::plugin_init;

    gst::plugin_define!(
        ssm,
        env!("CARGO_PKG_DESCRIPTION"),
        plugin_init,
        concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
        "MIT/X11",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_REPOSITORY"),
        env!("BUILD_REL_DATE")
    );
}

pub use definition::plugin_register_static;
