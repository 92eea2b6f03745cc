//! What a composite's configuration says: every field checked, unknown ones refused.

use crate::error::Error;
use crate::model::{Activation, Facts, Pixels};
use serde_json::{Map, Value, json};
use std::ops::RangeInclusive;

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

/// What runs over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Core {
    Mamba,
    Mamba2,
    S4d,
    MoeMamba,
    Bst,
}

const CORES: [(&str, Core); 5] = [
    ("mamba", Core::Mamba),
    ("mamba2", Core::Mamba2),
    ("s4d", Core::S4d),
    ("moe_mamba", Core::MoeMamba),
    ("bst", Core::Bst),
];

impl Core {
    pub(super) fn kind(self) -> &'static str {
        CORES.iter().find(|(_, core)| *core == self).map_or("", |(word, _)| word)
    }

    /// Fields beside `kind` that this core reads.
    fn fields(self) -> &'static [&'static str] {
        const S4D: &[&str] = &[
            "norm_epsilon",
            "disc",
            "dt_transform",
            "dt_fast",
            "real_transform",
            "imag_transform",
            "bandlimit",
            "activation",
            "mult_act",
            "final_act",
            "swap_channels",
        ];
        match self {
            Self::Mamba => &["norm_epsilon"],
            Self::Mamba2 => &["norm_epsilon", "n_groups", "d_state", "head_dim", "time_step_limit", "norm_before_gate"],
            Self::S4d => S4D,
            Self::MoeMamba => &["norm_epsilon", "expert", "activation_type", "routing_top_k"],
            Self::Bst => &[
                "variant",
                "context",
                "xl_cache",
                "window",
                "num_states",
                "rel_buckets",
                "rel_max_distance",
                "norm_eps",
                "qk_norm_eps",
                "disc",
                "dt_transform",
                "dt_fast",
                "real_transform",
                "imag_transform",
                "bandlimit",
            ],
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
    pub(super) core: Core,
    /// The core's fields, as its family reads them.
    pub(super) core_fields: Value,
    /// Whether scores come out; else the core's vectors.
    pub(super) head: bool,
    pub(super) facts: Facts,
}

impl Config {
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
        let word = part.word("kind", &CORES.map(|(word, _)| word))?;
        let core = CORES.iter().find(|(name, _)| *name == word).map_or(Core::Mamba, |(_, core)| *core);
        part.only(&[&["kind"], core.fields()].concat())?;
        if let Some(v) = part.number("norm_epsilon")?.filter(|v| !(1e-12..=1.0).contains(v)) {
            return Err(part.bad("norm_epsilon", "1e-12 to 1", v));
        }
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
        let core_fields = Value::Object(part.map.clone());
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
    let mut labels: Vec<String> = Vec::new();
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
            Some(word) if labels.iter().any(|l| l == word) => {
                return Err(s.bad("classes", "each name once", name));
            }
            Some(word) => labels.push(word.to_owned()),
            None => return Err(s.bad("classes", "names", name)),
        }
    }
    Ok((true, labels, activation, look_ahead))
}

/// An object of the configuration and its name in errors.
struct Section<'a> {
    path: &'a str,
    name: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    fn top(config: Option<&'a Value>, path: &'a str) -> Result<Self, Error> {
        match config {
            Some(Value::Object(map)) => Ok(Self { path, name: "", map }),
            other => Err(Error::Config {
                file: path.into(),
                field: "config".into(),
                expected: "an object in the file's metadata or in config.json".into(),
                got: other.map_or("nothing".into(), Value::to_string),
            }),
        }
    }

    fn section(&self, name: &'a str) -> Result<Self, Error> {
        match self.map.get(name) {
            Some(Value::Object(map)) => Ok(Self { path: self.path, name, map }),
            other => Err(self.bad(name, "an object", other.map_or("nothing".into(), Value::to_string))),
        }
    }

    fn bad(&self, field: &str, expected: impl ToString, got: impl ToString) -> Error {
        let field = if self.name.is_empty() { field.into() } else { format!("{}.{field}", self.name) };
        let mut got = got.to_string();
        if let Some((at, _)) = got.char_indices().nth(200) {
            got.truncate(at);
            got.push('…');
        }
        Error::Config { file: self.path.into(), field, expected: expected.to_string(), got }
    }

    /// Refuses fields of other names.
    fn only(&self, known: &[&str]) -> Result<(), Error> {
        match self.map.keys().find(|k| !known.contains(&k.as_str())) {
            Some(key) => Err(self.bad(key, format!("one of {}", known.join(", ")), "an unknown field")),
            None => Ok(()),
        }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    fn required(&self, name: &str, expected: impl ToString) -> Result<&'a Value, Error> {
        self.get(name).ok_or_else(|| self.bad(name, expected, "nothing"))
    }

    fn word(&self, name: &str, known: &[&'static str]) -> Result<&'static str, Error> {
        let v = self.required(name, known.join(", "))?;
        let found = known.iter().find(|k| v.as_str() == Some(**k));
        found.copied().ok_or_else(|| self.bad(name, known.join(", "), v))
    }

    fn whole(&self, name: &str, v: &Value, range: &RangeInclusive<usize>) -> Result<usize, Error> {
        let n = v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n));
        n.ok_or_else(|| self.bad(name, format!("a whole number, {} to {}", range.start(), range.end()), v))
    }

    fn size(&self, name: &str, range: RangeInclusive<usize>) -> Result<usize, Error> {
        let v = self.required(name, format!("a whole number, {} to {}", range.start(), range.end()))?;
        self.whole(name, v, &range)
    }

    fn size_or(&self, name: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize, Error> {
        self.get(name).map_or(Ok(default), |v| self.whole(name, v, &range))
    }

    fn pair(&self, name: &str, range: RangeInclusive<usize>) -> Result<Option<(usize, usize)>, Error> {
        match self.get(name).map(|v| (v, v.as_array().map(Vec::as_slice))) {
            None => Ok(None),
            Some((_, Some([a, b]))) => Ok(Some((self.whole(name, a, &range)?, self.whole(name, b, &range)?))),
            Some((v, _)) => Err(self.bad(name, "two whole numbers", v)),
        }
    }

    fn triple(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<[f32; 3]>, Error> {
        let Some(v) = self.get(name) else { return Ok(None) };
        let expected = || format!("three numbers of {} to {}", range.start(), range.end());
        let one = |v: &Value| v.as_f64().filter(|v| range.contains(v)).map(|v| v as f32);
        match v.as_array().map(Vec::as_slice) {
            Some([a, b, c]) => match (one(a), one(b), one(c)) {
                (Some(a), Some(b), Some(c)) => Ok(Some([a, b, c])),
                _ => Err(self.bad(name, expected(), v)),
            },
            _ => Err(self.bad(name, expected(), v)),
        }
    }

    fn number(&self, name: &str) -> Result<Option<f64>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(v) => v.as_f64().map(Some).ok_or_else(|| self.bad(name, "a number", v)),
        }
    }

    fn flag(&self, name: &str) -> Result<bool, Error> {
        match self.get(name) {
            None => Ok(false),
            Some(v) => v.as_bool().ok_or_else(|| self.bad(name, "true or false", v)),
        }
    }
}
