//! What a composite's configuration says: every field checked, unknown ones refused.

use crate::config::Section;
use crate::cores;
use crate::error::Error;
use crate::model::{Activation, Facts, Pixels};
use serde_json::{Value, json};
use std::collections::HashSet;

/// Longest side of a frame.
const MAX_SIDE: usize = 4096;
/// Most samples of a step: ten seconds at 192 kHz.
const MAX_HOP: usize = 1_920_000;
/// Most values of a vector.
const MAX_DIM: usize = 1 << 16;
/// Most classes, and steps of look-ahead.
const MAX_CLASSES: usize = 1 << 16;
/// Most steps that a vector is likened to.
const MAX_LAGS: usize = 1024;
/// Longest name of a class in bytes.
const MAX_LABEL: usize = 256;
/// Most cells of a pooling grid in each direction.
const MAX_CELLS: usize = 64;

/// Most bins of a log-mel frame.
const MAX_BINS: usize = 1024;
/// Fields of a front end of samples; the rate is the input's.
const FRONTEND: [&str; 11] = [
    "kind",
    "num_mel_bins",
    "frame_length_ms",
    "frame_shift_ms",
    "low_freq",
    "high_freq",
    "preemphasis",
    "remove_dc_offset",
    "use_power",
    "mean",
    "std",
];

/// What makes a vector of a step's input.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Encoder {
    None,
    /// Pooled features of a Vim; upstream's constructor fields.
    Vim {
        carry: bool,
        model: Value,
    },
    /// Pooled features of a VMamba; upstream's constructor fields.
    Vmamba {
        carry: bool,
        model: Value,
    },
    /// Convolutions, then means over the whole frame and over a grid of (rows, columns).
    Conv {
        pool: (usize, usize),
    },
    /// Log-mel frames; the front end's fields.
    Mel {
        front: Value,
    },
}

impl Encoder {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Vim { .. } => "vim",
            Self::Vmamba { .. } => "vmamba",
            Self::Conv { .. } => "conv",
            Self::Mel { .. } => "mel",
        }
    }
}

/// What comes in at each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Image { height: usize, width: usize },
    Samples { hop: usize, rate: u32 },
    Vector { dim: usize },
}

/// A whole configuration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Config {
    pub(super) input: Input,
    pub(super) encoder: Encoder,
    /// Whether the vector of the step before stands behind the present one.
    pub(super) difference: bool,
    /// How many of the last steps' vectors the present one is likened to.
    pub(super) similarity: usize,
    pub(super) core: cores::Kind,
    /// The core's fields, as its family reads them.
    pub(super) core_fields: Value,
    /// Whether scores come out; else the core's vectors.
    pub(super) head: bool,
    pub(super) facts: Facts,
}

impl Config {
    /// What of it a saved state depends on. What only says how results are to be read is no part of that.
    pub(super) fn function(&self) -> String {
        let Self { input, encoder, difference, similarity, core, core_fields, head, facts } = self;
        let Facts { step_rate, look_ahead, pixels, .. } = facts;
        let front = format!("input={input:?} pixels={pixels:?} encoder={encoder:?}");
        let back = format!("core={core:?} {core_fields} head={head} look_ahead={look_ahead} step_rate={step_rate:?}");
        format!("{front} difference={difference} similarity={similarity} {back}")
    }

    /// Reads the configuration of the file `path`.
    pub(super) fn read(config: Option<&Value>, path: &str) -> Result<Self, Error> {
        let top = Section::top(config, path)?;
        top.word("family", &["composite"])?;
        top.size("version", 1..=1)?;
        let part = top.section("encoder")?;
        let (encoder, difference) = read_encoder(&part)?;
        let similarity = part.size_or("similarity", 0, 0..=MAX_LAGS)?;
        let (input, pixels) = read_input(&top.section("input")?, &encoder)?;
        let encoder = match encoder {
            Encoder::Vim { carry, mut model } => {
                // The position embedding is of the frames' size unless something else is said.
                if let (Input::Image { height, width }, Value::Object(fields)) = (input, &mut model) {
                    fields.entry("img_size").or_insert(json!([height, width]));
                }
                Encoder::Vim { carry, model }
            }
            Encoder::Mel { mut front } => {
                if let (Input::Samples { rate, .. }, Value::Object(fields)) = (input, &mut front) {
                    fields.insert("sample_rate".into(), json!(rate));
                }
                Encoder::Mel { front }
            }
            other => other,
        };
        let part = top.section("core")?;
        let core = cores::Kind::read(&part)?;
        let (head, labels, activation, look_ahead) = read_head(&top.section("head")?)?;
        // Samples say it themselves.
        let implied = match input {
            Input::Samples { hop, rate } => Some(f64::from(rate) / hop as f64),
            _ => None,
        };
        let step_rate = match (top.number("step_rate")?, implied) {
            (Some(v), _) if !(v > 0.0 && v <= 1e6) => return Err(top.bad("step_rate", "above 0, 1e6 at most", v)),
            (Some(v), Some(own)) if (v / own - 1.0).abs() > 1e-6 => {
                return Err(top.bad("step_rate", format!("{own}, as input.rate and input.hop make it"), v));
            }
            (said, implied) => implied.or(said),
        };
        let mut encoder_words = encoder.kind().to_owned() + if difference { ", difference" } else { "" };
        if similarity > 0 {
            encoder_words += &format!(", similarity to {similarity} steps");
        }
        let facts = Facts {
            parts: vec![
                ("encoder", encoder_words),
                ("core", core.kind().to_owned()),
                ("head", if head { "linear" } else { "none" }.to_owned()),
            ],
            labels,
            activation,
            step_rate,
            look_ahead,
            pixels,
            ..Facts::default()
        };
        let core_fields = part.value();
        Ok(Self { input, encoder, difference, similarity, core, core_fields, head, facts })
    }
}

/// The encoder, and whether the vector of the step before is kept beside the present one.
fn read_encoder(s: &Section<'_>) -> Result<(Encoder, bool), Error> {
    let kind = s.word("kind", &["vim", "vmamba", "conv", "mel", "none"])?;
    let difference = s.flag("difference")?;
    let nested = |name: &str| -> Result<Value, Error> {
        match s.map.get(name) {
            None | Some(Value::Null) => Ok(json!({})),
            Some(v @ Value::Object(_)) => Ok(v.clone()),
            Some(v) => Err(s.bad(name, "an object", v)),
        }
    };
    let own: &[&str] = match kind {
        "vim" | "vmamba" => &["carry", "model"],
        "conv" => &["pool"],
        "mel" => &["frontend"],
        _ => &[],
    };
    s.only(&[&["kind", "difference", "similarity"], own].concat())?;
    let encoder = match kind {
        "vim" => Encoder::Vim { carry: s.flag("carry")?, model: nested("model")? },
        "vmamba" => Encoder::Vmamba { carry: s.flag("carry")?, model: nested("model")? },
        "conv" => Encoder::Conv { pool: s.pair("pool", 1..=MAX_CELLS)?.unwrap_or((0, 0)) },
        "mel" => {
            let front = nested("frontend")?;
            let map = front.as_object().ok_or_else(|| s.bad("frontend", "an object", &front))?;
            let part = Section { path: s.path, name: "encoder.frontend", map };
            part.only(&FRONTEND)?;
            part.size("num_mel_bins", 1..=MAX_BINS)?;
            Encoder::Mel { front }
        }
        _ => Encoder::None,
    };
    Ok((encoder, difference))
}

fn read_input(s: &Section<'_>, encoder: &Encoder) -> Result<(Input, Pixels), Error> {
    let mut pixels = Pixels::default();
    let input = match encoder {
        Encoder::Vim { .. } | Encoder::Vmamba { .. } | Encoder::Conv { .. } => {
            s.only(&["height", "width", "mean", "std", "crop"])?;
            pixels.mean = s.triple("mean", -10.0..=10.0)?.unwrap_or(pixels.mean);
            pixels.std = s.triple("std", 1e-6..=1e6)?.unwrap_or(pixels.std);
            pixels.crop = match s.number("crop")? {
                Some(v) if !(0.1..=1.0).contains(&v) => return Err(s.bad("crop", "0.1 to 1", v)),
                said => said.unwrap_or(pixels.crop),
            };
            Input::Image { height: s.size("height", 1..=MAX_SIDE)?, width: s.size("width", 1..=MAX_SIDE)? }
        }
        Encoder::Mel { .. } => {
            s.only(&["rate", "hop"])?;
            let rate = s.size("rate", 1000..=192_000)? as u32;
            Input::Samples { hop: s.size("hop", 1..=MAX_HOP)?, rate }
        }
        Encoder::None => {
            s.only(&["dim"])?;
            Input::Vector { dim: s.size("dim", 1..=MAX_DIM)? }
        }
    };
    Ok((input, pixels))
}

/// Whether there is a head, its labels, what is applied to the scores, the steps that they lag.
fn read_head(s: &Section<'_>) -> Result<(bool, Vec<String>, Activation, usize), Error> {
    let linear = s.word("kind", &["linear", "none"])? == "linear";
    s.only(if linear { &["kind", "classes", "activation", "look_ahead"] } else { &["kind", "look_ahead"] })?;
    let look_ahead = s.size_or("look_ahead", 0, 0..=MAX_CLASSES)?;
    if !linear {
        return Ok((false, Vec::new(), Activation::default(), look_ahead));
    }
    let activation = match s.word("activation", &["softmax", "sigmoid"])? {
        "sigmoid" => Activation::Sigmoid,
        _ => Activation::Softmax,
    };
    let (mut labels, mut known): (Vec<String>, _) = (Vec::new(), HashSet::new());
    let said = s.map.get("classes").unwrap_or(&Value::Null);
    let names = said.as_array().filter(|a| (1..=MAX_CLASSES).contains(&a.len()));
    for name in names.ok_or_else(|| s.bad("classes", format!("1 to {MAX_CLASSES} names"), said))? {
        match name.as_str() {
            Some(word) if word.is_empty() || word.len() > MAX_LABEL => {
                return Err(s.bad("classes", format!("names of 1 to {MAX_LABEL} bytes"), name));
            }
            // GStreamer's texts end at one.
            Some(word) if word.contains('\0') => {
                return Err(s.bad("classes", "names without zero bytes", name));
            }
            Some(word) if !known.insert(word) => {
                return Err(s.bad("classes", "each name once", name));
            }
            Some(word) => labels.push(word.to_owned()),
            None => return Err(s.bad("classes", "names", name)),
        }
    }
    Ok((true, labels, activation, look_ahead))
}
