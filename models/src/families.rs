//! The families of networks and how a file is matched to one.

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::error::Error;
use crate::golden::Golden;
use crate::model::{Model, Signal};
use serde_json::Value;
use ssm_kernels::CpuLevel;
use ssm_kernels::linear::Precision;
use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

/// Builds a network from tensors.
pub type Open = fn(&Checkpoint, &Options) -> Result<Arc<dyn Model>, Error>;

/// A family: how its files are known and opened.
pub struct Family {
    /// Name, as `ssm inspect` prints it.
    pub name: &'static str,
    /// Whether these tensors are the family's.
    pub detect: fn(&Checkpoint) -> bool,
    /// Builds the network.
    pub open: Open,
    /// Runs a golden file of the family.
    pub(crate) verify: fn(&mut Golden<'_>) -> Result<(), Error>,
}

/// Every family. Order matters only where one family's names contain another's; the first that knows a file has it.
pub const FAMILIES: &[Family] = &[
    crate::vim::FAMILY,
    crate::vmamba::FAMILY,
    crate::cleanumamba::FAMILY,
    crate::mamba::MAMBA,
    crate::mamba::MAMBA2,
    crate::moe_mamba::FAMILY,
    crate::s4::FAMILY,
    crate::bst::FAMILY,
    crate::band_mask::FAMILY,
    crate::aum::FAMILY,
    crate::attenuate::FAMILY,
    crate::composite::FAMILY,
];

/// How a denoiser's running level is made from the samples so far.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum LevelRule {
    /// What the file's `level_rule` says, else [`LevelRule::Smoothed`].
    #[default]
    Model,
    /// Mean of all power so far in a window that grows to some seconds: follows the speaker, does not pump.
    Smoothed,
    /// The published streaming rule: mean of the standard deviations of all frames so far.
    Upstream,
    /// A constant divisor.
    Fixed(f32),
}

/// How a Vim's position embedding is fitted to a frame size it was not trained for (vim.md 5.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PosRule {
    /// The class row is taken out of the middle, the grid interpolated, the row put back.
    #[default]
    MiddleAware,
    /// The first row is kept apart and the others are taken for a square grid, as the published code does.
    Upstream,
}

/// What an audio classifier takes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Listen {
    /// Whole clips of normalised frames, one a step, as upstream does.
    #[default]
    Clip,
    /// A stream of normalised frames, so many a step; 0: the family's own number.
    Frames(usize),
    /// A stream of samples, those of so many frames a step; 0: the family's own number.
    Samples(usize),
}

/// What a model is opened to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Output {
    /// What it was trained for: clean samples, class scores, tokens.
    #[default]
    Task,
    /// One score for each step: above 0 where there is speech (denoisers that were trained to tell).
    Speech,
    /// The vector that the head would see.
    Features,
}

/// What a user may choose when opening a model.
#[derive(Clone, Debug)]
pub struct Options {
    /// Instruction level the weights are packed for.
    pub level: CpuLevel,
    /// Precision of the large products (Vim, VMamba, Mamba); everything else stays f32.
    pub precision: Precision,
    /// Frame height and width; `None`: the size the network was trained for.
    pub image: Option<(usize, usize)>,
    /// Position embedding at another frame size (Vim).
    pub pos_rule: PosRule,
    /// Whether the forward scans continue from the frame before (Vim, VMamba); off reproduces upstream.
    pub carry: bool,
    /// What comes in (audio classifiers).
    pub listen: Listen,
    /// Frames and mel bins of a clip (audio classifiers); `None`: those the network was trained for.
    pub clip: Option<(usize, usize)>,
    /// What comes out.
    pub output: Output,
    /// Running level (denoisers).
    pub level_rule: LevelRule,
    /// Share of the input's amplitude that stays in whatever is taken out (denoisers by a mask), 0 to 1.
    pub floor: f32,
    /// Configuration: the file's `config` metadata, overlaid by a `config.json` beside it.
    pub config: Option<Value>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            level: CpuLevel::best(),
            precision: Precision::F32,
            image: None,
            pos_rule: PosRule::default(),
            carry: false,
            listen: Listen::default(),
            clip: None,
            output: Output::default(),
            level_rule: LevelRule::default(),
            floor: 0.0,
            config: None,
        }
    }
}

/// Opens a model from a file or by builtin name (`builtin:denoise`).
///
/// # Errors
/// The file cannot be read, belongs to no family, or lacks, misshapes or adds tensors.
pub fn open(model: &str, options: &Options) -> Result<Arc<dyn Model>, Error> {
    let file = read(model)?;
    open_checkpoint(&file, &configure(&file, options)?)
}

/// What a precision adds to a model's hash.
pub(crate) fn lowered(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "",
        Precision::Bf16 => " bf16",
        Precision::Int8 => " int8",
    }
}

/// Reads the tensors of a file, a folder or a builtin name.
///
/// # Errors
/// They cannot be read.
pub fn read(model: &str) -> Result<Checkpoint, Error> {
    match model.strip_prefix("builtin:") {
        Some(name) => crate::builtin::checkpoint(name),
        None => Ok(Checkpoint::open(Path::new(model))?),
    }
}

/// Options with the configuration that belongs to a file, where they have none of their own.
///
/// # Errors
/// The configuration is no JSON.
pub fn configure(file: &Checkpoint, options: &Options) -> Result<Options, Error> {
    let mut options = options.clone();
    if options.config.is_none() {
        options.config = config(file)?;
    }
    Ok(options)
}

/// State of a stream in bytes, at most: a few numbers of a file could ask for more than any machine has.
pub(crate) const MAX_STATE: usize = 1 << 30;

/// Opens a model from tensors already read.
///
/// # Errors
/// As [`open`]; the model cannot give the output, or run in the precision, that the options ask for.
pub fn open_checkpoint(file: &Checkpoint, options: &Options) -> Result<Arc<dyn Model>, Error> {
    alike(file)?;
    let model = (family(file)?.open)(file, options)?;
    let info = model.info();
    if model.layout().bytes() > MAX_STATE {
        return Err(Error::Config {
            file: file.path.display().to_string(),
            field: "state".into(),
            expected: format!("{} MiB a stream at most", MAX_STATE >> 20),
            got: format!("{} MiB ({})", model.layout().bytes() >> 20, info.sizes),
        });
    }
    if info.facts.precision != options.precision {
        return Err(Error::Config {
            file: file.path.display().to_string(),
            field: "precision".into(),
            expected: format!("{} for models of family {}", info.facts.precision, info.family),
            got: options.precision.to_string(),
        });
    }
    if !(0.0..=1.0).contains(&options.floor) || !info.facts.masks && options.floor > 0.0 {
        return Err(Error::Config {
            file: file.path.display().to_string(),
            field: "attenuation-limit".into(),
            expected: format!("none ({} cannot limit it)", info.family),
            got: format!("{:.0} dB", -20.0 * options.floor.log10()),
        });
    }
    if !info.facts.levelled && options.level_rule != LevelRule::Model {
        return Err(Error::Config {
            file: file.path.display().to_string(),
            field: "level-rule".into(),
            expected: format!("model ({} divides its input by no level)", info.family),
            got: format!("{:?}", options.level_rule).to_lowercase(),
        });
    }
    let (expected, fits) = match (options.output, model.info().output) {
        (Output::Task, _) => return Ok(model),
        (Output::Speech, got) => ("a model that tells speech", got == Signal::Logits { classes: 1 }),
        (Output::Features, got) => ("a model that gives its features", matches!(got, Signal::Vector { .. })),
    };
    if fits {
        return Ok(model);
    }
    let info = model.info();
    Err(Error::Config {
        file: file.path.display().to_string(),
        field: "output".into(),
        expected: expected.into(),
        got: format!("{} (from {} to {})", info.family, info.input, info.output),
    })
}

/// Refuses a file in which the mixers of some layers, or some of a layer's two directions, have a bias that others lack.
fn alike(file: &Checkpoint) -> Result<(), Error> {
    let mut first: HashMap<String, (&str, bool)> = HashMap::new();
    for name in file.names() {
        let Some(place) = name.strip_suffix(".weight") else { continue };
        let part = place.rsplit('.').next().unwrap_or_default();
        if !["conv1d", "conv1d_b", "in_proj", "out_proj"].contains(&part) || !place.contains("mixer") {
            continue;
        }
        let layer = |word: &str| if word.bytes().all(|b| b.is_ascii_digit()) { "*".into() } else { word.to_owned() };
        let of_all: Vec<String> = place.trim_end_matches("_b").split('.').map(layer).collect();
        let biased = file.shape(&format!("{place}.bias")).is_some();
        let &mut (other, has) = first.entry(of_all.join(".")).or_insert((place, biased));
        if has != biased {
            let lacking = if biased { other } else { place };
            return Err(CheckpointError::Absent { file: file.path.clone(), tensor: format!("{lacking}.bias") }.into());
        }
    }
    Ok(())
}

/// The family of a file: the one that its configuration names, else the one whose tensors it has.
///
/// # Errors
/// None knows it.
pub fn family(file: &Checkpoint) -> Result<&'static Family, Error> {
    let config = file.metadata.get("config").and_then(|text| crate::config::parse(text).ok()).unwrap_or_default();
    let named = match (config["family"].as_str(), config["model"].as_str()) {
        (Some(name), _) => name,
        (None, Some("audio-mamba")) => "aum",
        _ => "",
    };
    let named = FAMILIES.iter().find(|f| f.name == named);
    named.or_else(|| FAMILIES.iter().find(|f| (f.detect)(file))).ok_or_else(|| Error::UnknownFamily {
        path: file.path.clone(),
        first: file.names().take(3).collect::<Vec<_>>().join(", "),
        known: FAMILIES.iter().map(|f| f.name).collect::<Vec<_>>().join(", "),
    })
}

/// `over` laid over `base`, object by object.
fn overlay(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                overlay(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// Bytes of a configuration at most; those of published models have some thousands.
const MAX_CONFIG: u64 = 1 << 24;

/// The text of a file. A pipe would wait for its writer, and a device may have no end.
fn text_of(path: &Path) -> io::Result<String> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("something else"));
    }
    let mut text = String::new();
    if fs::File::open(path)?.take(MAX_CONFIG).read_to_string(&mut text)? as u64 == MAX_CONFIG {
        return Err(io::Error::other(format!("{MAX_CONFIG} bytes or more")));
    }
    Ok(text)
}

/// The configuration that belongs to a file: its `config` metadata, overlaid by `config.json` in the same folder. What was
/// read from memory lies in no folder.
fn config(file: &Checkpoint) -> Result<Option<Value>, Error> {
    let bad = |file: String, expected: &str, got: String| Error::Config {
        file,
        field: "config".into(),
        expected: expected.into(),
        got,
    };
    let parse = |name: String, text: &str| match crate::config::parse(text) {
        Ok(config @ (Value::Object(_) | Value::Null)) => Ok(config),
        Ok(other) => Err(bad(name, "an object", other.to_string().chars().take(80).collect())),
        Err(error) => Err(bad(name, "JSON", error.to_string())),
    };
    let mut config = match file.metadata.get("config") {
        Some(text) => Some(parse(format!("{}: metadata", file.path.display()), text)?).filter(Value::is_object),
        None => None,
    };
    let beside = file.path.with_file_name("config.json");
    if file.path.is_file() {
        match text_of(&beside) {
            Ok(text) => {
                let over = parse(beside.display().to_string(), &text)?;
                if over.is_object() {
                    overlay(config.get_or_insert(Value::Null), over);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(bad(beside.display().to_string(), "a file that can be read", error.to_string())),
        }
    }
    Ok(config)
}
