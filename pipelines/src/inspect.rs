//! `ssm inspect`: what a file is. Sizes, input and output, state, hash, and what the file says about itself; for a file
//! of no known family, its tensors.

use crate::Failure;
use crate::say::plain;
use serde_json::{Map, Value, json};
use ssm_models::checkpoint::Checkpoint;
use ssm_models::kernels::CpuLevel;
use ssm_models::{Device, FAMILIES, Model, Options, Signal, configure, family, open_checkpoint, read};
use std::process::ExitCode;

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  ssm inspect builtin:shots
  ssm inspect vim_t_midclstok_76p1acc.pth --json";

#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint, folder with one, or `builtin:NAME`.
    model: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print the tensors of known families, too.
    #[arg(long)]
    tensors: bool,
    /// Put the model on a device, too, and say what it takes there: auto, cpu, cuda or cuda:N.
    #[arg(long)]
    device: Option<Device>,
}

/// Metadata that is longer is cut for people, not in JSON.
const LINE: usize = 160;

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let file = read(&args.model)?;
    let mut facts = facts(&file, args.tensors)?;
    let known = facts["family"].is_string() && facts.get("error").is_none();
    if let (Some(device), true, Value::Object(facts)) = (args.device, known, &mut facts) {
        facts.extend(placed(&file, device)?);
    }
    if args.json {
        say!("{facts:#}");
    } else {
        crate::say::print(format_args!("{}", lines(&facts)));
    }
    // So that a script can ask whether a file is a model.
    Ok(if known { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where the model runs and what it takes there.
fn placed(file: &Checkpoint, device: Device) -> Result<Map<String, Value>, Failure> {
    let options = Options { level: CpuLevel::from_env().map_err(ssm_models::Error::from)?, ..Options::default() };
    let placed = device.place(open_checkpoint(file, &configure(file, &options)?)?)?;
    let mut facts = Map::new();
    facts.insert("device".into(), json!(placed.model.device().to_string()));
    if let Some(note) = placed.note {
        facts.insert("device_note".into(), json!(note));
    }
    if let Some(card) = placed.model.card() {
        facts.insert("card".into(), json!(card.name()));
        facts.insert("device_bytes".into(), json!(card.bytes()));
    }
    Ok(facts)
}

/// What there is to say.
fn facts(file: &Checkpoint, tensors: bool) -> Result<Value, Failure> {
    let mut facts = Map::new();
    let mut say = |key: &str, value: Value| _ = facts.insert(key.into(), value);
    say("file", json!(file.path.display().to_string()));
    say("format", json!(file.format()));
    let options = Options { level: CpuLevel::from_env().map_err(ssm_models::Error::from)?, ..Options::default() };
    let family = family(file).ok();
    say("family", json!(family.map(|family| family.name)));
    let opened = family.map(|_| open_checkpoint(file, &configure(file, &options)?));
    let whole = matches!(opened, Some(Ok(_)));
    match opened {
        Some(Ok(model)) => {
            let info = model.info();
            say("sizes", json!(info.sizes));
            say("parameters", json!(info.parameters));
            say("input", signal(&info.input));
            say("output", signal(&info.output));
            say("delay", json!(info.delay));
            let facts = &info.facts;
            if !facts.parts.is_empty() {
                let parts = facts.parts.iter().map(|(name, kind)| ((*name).to_owned(), json!(kind)));
                say("parts", Value::Object(parts.collect()));
                say("look_ahead", json!(facts.look_ahead));
                if let Some(rate) = facts.step_rate {
                    say("step_rate", json!(rate));
                }
            }
            if !facts.labels.is_empty() {
                say("labels", json!(facts.labels));
                say("activation", json!(facts.activation.name()));
            }
            say("state_bytes", json!(model.layout().bytes()));
            say("state", spans(&*model));
            say("hash", json!(info.hash));
        }
        other => {
            match other {
                Some(Err(error)) => say("error", json!(error.to_string())),
                _ => say("families", json!(FAMILIES.iter().map(|f| f.name).collect::<Vec<_>>())),
            }
            say("parameters", json!(file.parameters()));
        }
    }
    say("sha256", json!(file.sha256()));
    // JSON inside metadata (config, args) stays JSON.
    let metadata = file
        .metadata
        .iter()
        .map(|(key, text)| (key.clone(), serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()))));
    say("metadata", Value::Object(metadata.collect()));
    // They tell why it is no model, or one that does not open.
    if tensors || !whole {
        let tensors = file.names().map(|name| {
            let dtype = file.dtype(name).map(|d| d.to_string());
            (name.to_owned(), json!({ "dtype": dtype, "shape": file.shape(name) }))
        });
        say("tensors", Value::Object(tensors.collect()));
    }
    Ok(Value::Object(facts))
}

fn signal(signal: &Signal) -> Value {
    match *signal {
        Signal::Image { channels, height, width } => {
            json!({ "kind": "image", "channels": channels, "height": height, "width": width })
        }
        Signal::Samples { hop, rate } => json!({ "kind": "samples", "hop": hop, "rate": rate }),
        Signal::Clip { frames, bins } => json!({ "kind": "clip", "frames": frames, "bins": bins }),
        Signal::Vector { dim } => json!({ "kind": "vector", "dim": dim }),
        Signal::Token { vocab } => json!({ "kind": "token", "vocab": vocab }),
        Signal::Logits { classes } => json!({ "kind": "logits", "classes": classes }),
    }
}

/// The state's parts by name.
fn spans(model: &dyn Model) -> Value {
    Value::Object(model.layout().spans().iter().map(|s| (s.name.clone(), json!(s.shape))).collect())
}

/// The facts that people read, in order.
const ORDER: [&str; 24] = [
    "file",
    "format",
    "family",
    "error",
    "families",
    "parts",
    "sizes",
    "parameters",
    "input",
    "output",
    "labels",
    "activation",
    "delay",
    "look_ahead",
    "step_rate",
    "state_bytes",
    "device",
    "device_note",
    "card",
    "device_bytes",
    "hash",
    "sha256",
    "metadata",
    "tensors",
];

/// The facts for people: a key and a value per line.
fn lines(facts: &Value) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        out += &format!("{key:<14}{}\n", plain(&value));
    };
    for (key, value) in ORDER.iter().filter_map(|key| Some((*key, facts.get(key)?))) {
        match (key, value) {
            ("family", Value::Null) => line(key, "none".into()),
            ("families", Value::Array(names)) => {
                line("known", names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "));
            }
            ("input" | "output", value) => line(key, words(value)),
            ("parts", Value::Object(parts)) => {
                parts.iter().for_each(|(name, kind)| line(name, kind.as_str().unwrap_or_default().to_owned()));
            }
            ("labels", Value::Array(names)) => {
                line("labels", names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "));
            }
            ("delay" | "look_ahead", value) if *value == 0 => {}
            ("look_ahead", value) => line(key, format!("{value} steps")),
            ("step_rate", value) => line(key, format!("{value} steps a second")),
            ("delay", value) => line(key, format!("{value} samples")),
            ("state_bytes", value) => line("state", format!("{value} bytes per stream")),
            ("metadata", Value::Object(entries)) => {
                for (name, value) in entries {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    let cut = text.char_indices().nth(LINE).map_or(text.len(), |(at, _)| at);
                    line(key, format!("{name} = {}{}", &text[..cut], if cut < text.len() { "…" } else { "" }));
                }
            }
            ("tensors", Value::Object(tensors)) => {
                for (name, t) in tensors {
                    line("tensor", format!("{name} {} {}", t["dtype"].as_str().unwrap_or("?"), t["shape"]));
                }
            }
            (_, Value::String(text)) => line(key, text.clone()),
            (_, other) => line(key, other.to_string()),
        }
    }
    out
}

/// A signal in words.
fn words(signal: &Value) -> String {
    match signal["kind"].as_str() {
        Some("image") => format!("frames of {}x{}, {} channels", signal["width"], signal["height"], signal["channels"]),
        Some("samples") => format!("blocks of {} samples at {} Hz", signal["hop"], signal["rate"]),
        Some("clip") => format!("clips of {} frames, {} bins", signal["frames"], signal["bins"]),
        Some("vector") => format!("vectors of {} values", signal["dim"]),
        Some("token") => format!("tokens, {} ids", signal["vocab"]),
        _ => format!("{} classes", signal["classes"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn golden(name: &str) -> Checkpoint {
        Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)).unwrap()
    }

    #[test]
    fn a_model_in_words_and_as_json() {
        let file = golden("vim_train_style.pth");
        let facts = facts(&file, false).unwrap();
        assert_eq!(facts["family"], "vim");
        assert_eq!(facts["format"], "torch zip");
        assert_eq!(facts["input"]["kind"], "image");
        assert_eq!(facts["output"], json!({ "kind": "logits", "classes": facts["output"]["classes"] }));
        assert_eq!(facts["parameters"], file.parameters());
        assert_eq!(facts["state_bytes"], 0);
        assert_eq!(facts["sha256"].as_str().map(str::len), Some(64));
        assert!(facts["metadata"]["torch.args"].is_object(), "{facts:#}");
        assert!(facts.get("tensors").is_none());
        let forged = lines(&json!({ "metadata": { "note": "x\nfamily        mamba\u{1b}[2J" } }));
        assert_eq!(forged, "metadata      note = x\\nfamily        mamba\\u{1b}[2J\n");
        let text = lines(&facts);
        assert!(text.starts_with("file          ") && text.find("\nfamily") < text.find("\nhash"), "{text}");
        for line in ["family        vim\n", "state         0 bytes per stream\n", "metadata      torch.args = {"] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn a_composite_tells_its_parts_and_labels() {
        let facts = facts(&golden("composite_conv_mamba.safetensors"), false).unwrap();
        assert_eq!(facts["parts"], json!({ "encoder": "conv, difference", "core": "mamba", "head": "linear" }));
        let text = lines(&facts);
        for line in [
            "encoder       conv, difference\n",
            "core          mamba\n",
            "head          linear\n",
            "labels        none, cut, dissolve\n",
            "activation    softmax\n",
            "look_ahead    2 steps\n",
            "step_rate     25.0 steps a second\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn a_model_that_does_not_open_lists_its_tensors_too() {
        let bytes = fs::read(golden("vim_train_style.safetensors").path).unwrap();
        let from: &[u8] = b"norm_f.weight";
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        let damaged = [&bytes[..at], b"norm_g.weight", &bytes[at + from.len()..]].concat();
        let facts = facts(&Checkpoint::from_bytes("damaged", damaged).unwrap(), false).unwrap();
        assert_eq!(facts["family"], "vim");
        let text = lines(&facts);
        assert!(text.contains("\nerror ") && text.contains("tensor        norm_g.weight F32 [16]"), "{text}");
    }

    #[test]
    fn a_file_of_no_family_lists_its_tensors() {
        let text = lines(&facts(&golden("ops_add_norm.safetensors"), false).unwrap());
        let known = FAMILIES.iter().map(|f| f.name).collect::<Vec<_>>().join(", ");
        for line in
            ["family        none\n".to_owned(), format!("known         {known}\n"), "tensor        rms_x F32 [".into()]
        {
            assert!(text.contains(&line), "{text}");
        }
    }
}
