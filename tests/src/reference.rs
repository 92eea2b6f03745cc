//! What the plugin promises, read off its registry and off pipelines that run: the pages of `docs/reference` and the lines of
//! `docs/interface.txt`.

use crate::audio::caps;
use crate::element::{Folder, init, make, play};
use glib::prelude::*;
use gst::prelude::*;
use ssm_models::kernels::CpuLevel;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The folder of the pages.
pub fn pages_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference")
}

/// The file of the lines.
pub fn interface_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/interface.txt")
}

/// The elements of the plugin, by name.
pub fn factories() -> Vec<gst::ElementFactory> {
    init();
    let mut found: Vec<_> = gst::Registry::get()
        .features_by_plugin("ssm")
        .into_iter()
        .filter_map(|f| f.downcast::<gst::ElementFactory>().ok())
        .collect();
    found.sort_by_key(|f| f.name().to_string());
    found
}

/// A property as a user sees it.
struct Property {
    name: String,
    kind: String,
    default: String,
    /// Range of a number, or the words there are with what they mean.
    range: String,
    when: &'static str,
    blurb: String,
}

fn text(value: &glib::Value) -> String {
    if let Some((_, flags)) = glib::FlagsValue::from_value(value) {
        return flags.iter().map(|f| f.nick()).collect::<Vec<_>>().join("+");
    }
    match value.get::<Option<String>>() {
        Ok(text) => text.unwrap_or_else(|| "none".into()),
        Err(_) => value.serialize().map_or_else(|_| "none".into(), |s| s.to_string()),
    }
}

/// Words of an enumeration or of flags: nick and name.
fn words(kind: glib::Type) -> Vec<(String, String)> {
    if let Some(class) = glib::EnumClass::with_type(kind) {
        return class.values().iter().map(|v| (v.nick().to_owned(), v.name().to_owned())).collect();
    }
    let class = glib::FlagsClass::with_type(kind);
    class.iter().flat_map(|c| c.values()).map(|v| (v.nick().to_owned(), v.name().to_owned())).collect()
}

/// A type in the words of `gst-launch-1.0` users.
fn kind(name: &str) -> &str {
    match name {
        "gchararray" => "text",
        "gboolean" => "true, false",
        "guint" | "guint64" | "gint" => "whole number",
        "gfloat" | "gdouble" => "number",
        "GstStructure" => "structure",
        _ => "word",
    }
}

fn range(spec: &glib::ParamSpec) -> String {
    macro_rules! number {
        ($($kind:ty),*) => {
            $(if let Some(s) = spec.downcast_ref::<$kind>() {
                return format!("{} … {}", s.minimum(), s.maximum());
            })*
        };
    }
    number!(
        glib::ParamSpecUInt,
        glib::ParamSpecUInt64,
        glib::ParamSpecInt,
        glib::ParamSpecFloat,
        glib::ParamSpecDouble
    );
    words(spec.value_type()).into_iter().map(|(nick, _)| nick).collect::<Vec<_>>().join(", ")
}

/// The element's own properties: those of GStreamer's base classes are not ours to promise.
fn properties(element: &gst::Element) -> Vec<Property> {
    let own = element.type_();
    let mut found: Vec<_> = element
        .list_properties()
        .iter()
        .filter(|s| s.owner_type() == own)
        .map(|spec| {
            let flags = spec.flags();
            let when = match () {
                () if !flags.contains(glib::ParamFlags::WRITABLE) => "read only",
                () if flags.contains(gst::PARAM_FLAG_MUTABLE_PLAYING) => "always",
                () if flags.contains(gst::PARAM_FLAG_MUTABLE_PAUSED) => "up to PAUSED",
                () => "up to READY",
            };
            Property {
                name: spec.name().into(),
                kind: spec.value_type().name().into(),
                default: if when == "read only" { String::new() } else { text(spec.default_value()) },
                // Numbers that only grow have no range to speak of.
                range: if when == "read only" { String::new() } else { range(spec) },
                when,
                blurb: spec.blurb().unwrap_or_default().into(),
            }
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// The bindings list no signals of a type, so these are looked for by name.
const SIGNALS: [&str; 3] = ["load-state", "reset-state", "save-state"];

fn signals(element: &gst::Element) -> Vec<String> {
    let own = element.type_();
    SIGNALS
        .iter()
        .filter_map(|name| glib::subclass::SignalId::lookup(name, own))
        .map(|id| id.query())
        .map(|q| {
            let types: Vec<_> = q.param_types().iter().map(|t| t.type_().name()).collect();
            format!("{}({}) -> {}", q.signal_name(), types.join(", "), q.return_type().type_().name())
        })
        .collect()
}

/// The page of an element.
pub fn page(factory: &gst::ElementFactory) -> String {
    let element = factory.create().build().expect("a registered element can be made");
    let about = |key| factory.metadata(key).unwrap_or_default().to_owned();
    let mut out = String::new();
    let name = factory.name();
    _ = writeln!(out, "# {name}\n\n{}. Class: {}.\n", about("description"), about("klass"));
    _ = writeln!(
        out,
        "[What it is for and how it behaves](../elements.md#{name}). This page is made from the registry by"
    );
    _ = writeln!(out, "`make reference`.\n\n## Pads\n");
    for template in factory.static_pad_templates() {
        _ = writeln!(out, "`{}`, always there:\n\n```text", template.name_template());
        for (structure, features) in template.caps().iter_with_features() {
            let features = if features.is_any() { "ANY".into() } else { features.to_string() };
            _ = writeln!(out, "{}({features})", structure.name());
            for (field, value) in structure.iter() {
                _ = writeln!(out, "  {field}: {}", value.serialize().expect("caps can be written"));
            }
        }
        _ = writeln!(out, "```\n");
    }
    let cell = |text: &str| text.replace('|', "\\|");
    _ = writeln!(out, "## Properties\n\n| name | type | default | values | may be set | |\n|---|---|---|---|---|---|");
    let mut enumerations = BTreeMap::new();
    for p in properties(&element) {
        _ = writeln!(
            out,
            "| `{}` | {} | {} | {} | {} | {} |",
            p.name,
            kind(&p.kind),
            cell(&p.default),
            cell(&p.range),
            p.when,
            cell(&p.blurb)
        );
        let words = element.find_property(&p.name).map(|s| words(s.value_type())).unwrap_or_default();
        if !words.is_empty() {
            enumerations.insert(p.name, words);
        }
    }
    for (property, words) in enumerations {
        _ = writeln!(out, "\n`{property}`:\n\n| | |\n|---|---|");
        words.iter().for_each(|(nick, name)| _ = writeln!(out, "| `{nick}` | {} |", cell(name)));
    }
    let signals = signals(&element);
    if !signals.is_empty() {
        _ = writeln!(out, "\n## Action signals\n\n```text\n{}\n```", signals.join("\n"));
    }
    out
}

/// Everything that an application can lean on, a line each: properties, signals, pads, and what messages and metas hold in
/// pipelines that bring them forth.
pub fn interface() -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for factory in factories() {
        let (name, element) = (factory.name(), factory.create().build().expect("a registered element can be made"));
        for p in properties(&element) {
            let of =
                |word: &str, value: &str| if value.is_empty() { String::new() } else { format!(", {word} {value}") };
            lines.insert(format!(
                "property {name}.{}: {}{}{}, {}",
                p.name,
                p.kind,
                of("default", &p.default),
                of("of", &p.range),
                p.when
            ));
        }
        lines.extend(signals(&element).into_iter().map(|s| format!("signal {name}.{s}")));
        for template in factory.static_pad_templates() {
            let pad = template.name_template();
            for (structure, _) in template.caps().iter_with_features() {
                let formats =
                    structure.get::<gst::List>("format").map(|l| l.iter().map(|v| text(v)).collect::<Vec<_>>());
                let formats =
                    formats.or_else(|_| structure.get::<String>("format").map(|f| vec![f])).unwrap_or_default();
                let media = structure.name();
                lines.insert(format!("pad {name}.{pad}: {media}"));
                lines.extend(formats.into_iter().map(|f| format!("pad {name}.{pad}: {media}, format {f}")));
            }
        }
    }
    // Where no card is, nothing says why it is not used; and this event comes from applications.
    lines.extend(["message ssm-model.device-note: gchararray", "event ssm-reset"].map(str::to_owned));
    for (name, structure) in told() {
        for (field, value) in structure.iter() {
            lines.insert(format!("{name}.{field}: {}", value.type_().name()));
        }
    }
    lines
}

/// Structures of messages and metas, by what brings them.
fn told() -> Vec<(String, gst::Structure)> {
    let folder = Folder::new("reference");
    let ((model, vim), aum) = (folder.model("vim", 1), folder.model("aum", 4).1);
    let classes = model.open(CpuLevel::best()).expect("a random model opens").info().output.len();
    let labels = folder.file("labels.txt");
    std::fs::write(&labels, "a name\n".repeat(classes)).expect("a temporary file");
    // Long enough for an event to have an end before the stream has.
    let frames = "videotestsrc num-buffers=40 ! video/x-raw,format=RGB,width=32,height=32";
    let audio = "audiotestsrc num-buffers=20 ! audioconvert ! audioresample";
    let mut found = Vec::new();
    for line in [
        format!("{frames} ! ssmclassify model={vim} labels-file={labels}"),
        format!("{frames} ! ssmevents threshold=0 cooldown=0"),
        format!("{frames} ! ssmembed model={vim}"),
        format!("{audio} ! ssmaudiotag model={aum}"),
        format!("{audio} ! ssmvad threshold=0"),
        format!("{audio} ! ssmdenoise"),
    ] {
        let line = format!("{line} ! fakesink name=end");
        let pipeline = gst::parse::launch(&line).expect("the line parses");
        let end = pipeline.downcast_ref::<gst::Bin>().and_then(|b| b.by_name("end")).expect("the line has an end");
        let metas = Arc::new(Mutex::new(Vec::new()));
        let (seen, late) = (metas.clone(), Arc::new(Mutex::new(Vec::new())));
        let after = late.clone();
        let pad = end.static_pad("sink").expect("a sink has a pad");
        pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            let structure = info.event().and_then(|e| e.structure().map(ToOwned::to_owned));
            after.lock().expect("no probe panicked").extend(structure.filter(|s| s.name().starts_with("ssm")));
            gst::PadProbeReturn::Ok
        });
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let meta = info.buffer().and_then(|b| gst::meta::CustomMeta::from_buffer(b, gstssm::META_NAME).ok());
            seen.lock().expect("no probe panicked").extend(meta.map(|m| m.structure().to_owned()));
            gst::PadProbeReturn::Ok
        });
        for message in play(&pipeline, &line) {
            if let gst::MessageView::Element(e) = message.view()
                && let Some(structure) = e.structure()
                && structure.name().starts_with("ssm")
            {
                found.push((format!("message {}", structure.name()), structure.to_owned()));
            }
        }
        for late in late.lock().expect("no probe panicked").drain(..) {
            found.push((format!("event {}", late.name()), late));
        }
        for meta in metas.lock().expect("no probe panicked").iter() {
            within(meta, &mut found);
        }
    }
    found.extend(reloaded());
    found
}

/// What an element says of a model that takes over while it plays.
fn reloaded() -> Option<(String, gst::Structure)> {
    let element = make("ssmvad", &[("allow-reload", "true")]);
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    let mut h = gst_check::Harness::with_element(&element, Some("sink"), Some("src"));
    h.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
    element.set_property("model", "builtin:denoise");
    let told = || {
        let told = bus.pop_filtered(&[gst::MessageType::Element])?;
        told.structure().filter(|s| s.has_field("reloaded")).map(ToOwned::to_owned)
    };
    let mut turns = (0..10_000).map(|_| {
        h.push(gst::Buffer::from_slice([0; 640])).expect("sound flows");
        std::thread::sleep(std::time::Duration::from_millis(1));
        told()
    });
    turns.find_map(|s| s.map(|s| (format!("message {}", s.name()), s)))
}

/// The structures inside a meta, however deep.
fn within(structure: &gst::StructureRef, found: &mut Vec<(String, gst::Structure)>) {
    found.push((format!("result {}", structure.name()), structure.to_owned()));
    for (_, value) in structure.iter() {
        let array = value.get::<gst::Array>();
        let values = array.iter().flat_map(|a| a.iter()).chain([value]);
        values.filter_map(|v| v.get::<gst::Structure>().ok()).for_each(|s| within(&s, found));
    }
}
