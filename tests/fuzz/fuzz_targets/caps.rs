//! Caps and properties from text: what they become is asked of every element, which must answer and not fail.
#![no_main]

use gst::prelude::*;
use std::sync::LazyLock;

static ELEMENTS: LazyLock<Vec<gst::Element>> = LazyLock::new(|| {
    gst::init().expect("GStreamer starts");
    gstssm::plugin_register_static().expect("the plugin registers");
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/vim_tiny_cfg_a.safetensors");
    let names = ["ssmclassify", "ssmevents", "ssmembed", "ssmdenoise", "ssmvad", "ssmjson", "ssmoverlay"];
    let made = names.map(|name| {
        let element = gst::ElementFactory::make(name).build().expect("the element is registered");
        if name == "ssmclassify" || name == "ssmembed" {
            element.set_property("model", golden);
        }
        // Errors on the bus are answers, too; nobody reads them here.
        element.set_state(gst::State::Paused).expect("the model opens");
        element
    });
    made.into()
});

libfuzzer_sys::fuzz_target!(|text: &str| {
    let elements = &*ELEMENTS;
    // C's texts end at one; the bindings refuse it before anything of ours is asked.
    if text.contains('\0') {
        return;
    }
    _ = text.parse::<ssm_models::Device>();
    let Ok(caps) = text.parse::<gst::Caps>() else { return };
    let width = caps.structure(0).and_then(|s| s.get::<i32>("width").ok());
    assert!(!cfg!(feature = "planted") || width != Some(33), "planted");
    for element in elements {
        for pad in element.pads() {
            let able = pad.query_caps(Some(&caps));
            _ = pad.query_accept_caps(&caps);
            // An element may only offer what its template has.
            assert!(able.is_subset(&pad.pad_template_caps()) || able.is_empty(), "{pad:?}: {able}");
        }
        let sink = element.static_pad("sink").expect("every element has one");
        if caps.is_fixed() && !caps.is_any() {
            sink.send_event(gst::event::StreamStart::new("fuzz"));
            sink.send_event(gst::event::Caps::new(&caps));
            sink.send_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
        }
    }
});
