//! What a VMamba's configuration and tensors say about its function.

use super::parts::{name, name_of};
use super::ss2d::ORDERS;
use crate::checkpoint::{Checkpoint, Reader};
use crate::config::{self, arguments, whole};
use crate::error::Error;
use crate::families::Options;
use serde_json::Value;
use ssm_kernels::Act;
use ssm_kernels::cross_scan::Mode;

/// What follows the sum of the four scans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutNormKind {
    /// LayerNorm, the published one.
    Layer,
    /// Nothing (`_onnone`).
    None,
    /// A depthwise 3 x 3 convolution (`_ondwconv3`).
    Conv,
    /// LayerNorm and then the convolution (`_oncnorm`).
    LayerConv,
    /// Softmax over the pixels of each channel (`_onsoftmax`).
    Softmax,
    /// The logistic function (`_onsigmoid`).
    Sigmoid,
}

/// A `forward_type`, as far as it changes the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ForwardType {
    pub(super) mode: Mode,
    /// Whether half of `in_proj` gates the result.
    pub(super) gated: bool,
    /// Whether SiLU (the SSM's activation) is applied to the gate.
    pub(super) gate_act: bool,
    /// Whether GELU follows the norm.
    pub(super) out_act: bool,
    pub(super) out_norm: OutNormKind,
}

impl ForwardType {
    /// Reads upstream's grammar: a stem and endings, each taken off at most once and in this order.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut stem = text;
        let mut ending = |tag: &str| match stem.strip_suffix(tag) {
            Some(rest) => {
                stem = rest;
                true
            }
            None => false,
        };
        let [_, out_act, no_gate, no_gate_act] = ["_no32", "_oact", "_noz", "_nozact"].map(&mut ending);
        let norms = [
            ("_onnone", OutNormKind::None),
            ("_ondwconv3", OutNormKind::Conv),
            ("_oncnorm", OutNormKind::LayerConv),
            ("_onsoftmax", OutNormKind::Softmax),
            ("_onsigmoid", OutNormKind::Sigmoid),
        ]
        .map(|(tag, kind)| ending(tag).then_some(kind));
        // Upstream asks for cnorm before dwconv3.
        let out_norm = [0, 2, 1, 3, 4].into_iter().find_map(|i| norms[i]).unwrap_or(OutNormKind::Layer);
        let mode = match stem {
            "v01" | "v02" | "v03" | "v04" | "v05" | "v2" | "v3" => Mode::Cross2d,
            "v051d" => Mode::Unidi,
            "v052d" => Mode::Bidi,
            "v0" | "v0seq" if stem == text => Mode::Cross2d,
            _ => return None,
        };
        Some(Self { mode, gated: !no_gate, gate_act: !no_gate_act, out_act, out_norm })
    }
}

/// Sizes and options; names as upstream's constructor has them.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// Height and width of the frames.
    pub(super) image: (usize, usize),
    pub(super) in_chans: usize,
    pub(super) depths: Vec<usize>,
    pub(super) forward_type: ForwardType,
    /// Whether upstream's layout is channels first (`ln2d`).
    pub(super) channel_first: bool,
    pub(super) ssm_act_layer: Act,
    pub(super) mlp_act_layer: Act,
    pub(super) patch_norm: bool,
    /// Taps of the depthwise convolution in each direction; 1: there is none.
    pub(super) ssm_conv: usize,
    pub(super) ssm_conv_bias: Option<bool>,
    /// Whether blocks end in an MLP.
    pub(super) mlp: bool,
    /// Hidden width of the MLP over the stage's width, if the config says it.
    pub(super) mlp_ratio: Option<f64>,
}

/// The `model` object of a configuration.
pub(super) struct Fields<'a> {
    pub(super) file: &'a Checkpoint,
    pub(super) model: Option<&'a Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn bad(&self, field: &str, expected: impl Into<String>, got: impl Into<String>) -> Error {
        let file = self.file.path.display().to_string();
        Error::Config { file, field: field.into(), expected: expected.into(), got: got.into() }
    }

    fn get<T>(&self, field: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, Error> {
        match self.model.and_then(|m| m.get(field)) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => read(v).map(Some).ok_or_else(|| self.bad(field, expected, v.to_string())),
        }
    }

    fn text(&self, field: &str) -> Result<Option<&'a str>, Error> {
        self.get(field, "a word", Value::as_str)
    }

    pub(super) fn flag(&self, field: &str) -> Result<Option<bool>, Error> {
        self.get(field, "true or false", Value::as_bool)
    }

    fn size(&self, field: &str) -> Result<Option<usize>, Error> {
        self.get(field, "a size", |v| whole(v).and_then(|v| usize::try_from(v).ok()).filter(|v| *v < 1 << 16))
    }

    /// Whether the configuration, if it has the field, says what the tensors show.
    pub(super) fn agree(&self, field: &str, found: &str) -> Result<(), Error> {
        match self.text(field)? {
            Some(said) if said != found => Err(self.bad(field, said, format!("tensors of {found}"))),
            _ => Ok(()),
        }
    }

    /// The same, to be compared with the tensors.
    pub(super) fn said(&self) -> config::Fields<'a> {
        config::Fields::new(self.model, self.file.path.display().to_string())
    }

    /// Refuses a configuration whose `dims` say another width of stage `i`: one number, doubled from stage to stage, or a
    /// list.
    pub(super) fn agree_dim(&self, i: usize, found: usize) -> Result<(), Error> {
        let size = |v: &Value| whole(v).and_then(|v| usize::try_from(v).ok());
        let said = self.get("dims", "a size, or a list of one for each stage", |v| match v {
            Value::Array(all) => all.get(i).and_then(size),
            _ => size(v)?.checked_mul(1 << i),
        })?;
        match said.filter(|said| *said != found) {
            Some(said) => Err(self.said().contradiction("dims", said, found)),
            None => Ok(()),
        }
    }

    fn act(&self, field: &str, default: Act) -> Result<Act, Error> {
        match self.text(field)?.map(str::to_lowercase).as_deref() {
            None => Ok(default),
            Some("silu") => Ok(Act::Silu),
            Some("gelu") => Ok(Act::Gelu),
            Some("relu") => Ok(Act::Relu),
            Some("sigmoid") => Ok(Act::Sigmoid),
            Some(other) => Err(self.bad(field, "silu, gelu, relu or sigmoid", other)),
        }
    }
}

/// Blocks of each stage, counted by their names.
fn depths(file: &Checkpoint) -> Vec<usize> {
    let mut depths = Vec::new();
    let places = file.names().filter_map(|n| {
        let (stage, rest) = n.strip_prefix("layers.")?.split_once(".blocks.")?;
        let (block, _) = rest.split_once('.')?;
        Some((stage.parse::<usize>().ok()?, block.parse::<usize>().ok()?))
    });
    // A file cannot have more blocks than names; numbers beyond are left to the check for surplus tensors.
    let most = file.names().count();
    for (stage, block) in places.filter(|(s, b)| *s < most && *b < most) {
        if depths.len() <= stage {
            depths.resize(stage + 1, 0);
        }
        depths[stage] = depths[stage].max(block + 1);
    }
    depths
}

impl Config {
    /// Reads the options' configuration and what the tensors show in its place.
    pub(super) fn read(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let f = Fields { file, model: options.config.as_ref().map(arguments) };
        let depths = depths(file);
        let said = f.get("depths", "a list of sizes", |v| {
            v.as_array()?.iter().map(|v| v.as_u64().and_then(|v| usize::try_from(v).ok())).collect::<Option<Vec<_>>>()
        })?;
        if said.as_ref().is_some_and(|said| *said != depths) || depths.contains(&0) || depths.is_empty() {
            let said = said.map_or("one block or more in every stage".into(), |said| format!("{said:?}"));
            return Err(f.bad("depths", said, format!("tensors of {depths:?} blocks")));
        }
        let v0 = matches!(f.text("forward_type")?, Some("v0" | "v0seq"));
        let forward_type = match f.text("forward_type")? {
            Some(text) => ForwardType::parse(text).ok_or_else(|| {
                let known = "v0, or v01 to v05, v2, v3, v051d, v052d with _on…, _nozact, _noz, _oact, _no32 behind it";
                f.bad("forward_type", known, text)
            })?,
            None => Self::forward_type(&f)?,
        };
        let channel_first = match f.text("norm_layer")?.map(str::to_lowercase).as_deref() {
            None | Some("ln") => false,
            Some("ln2d") if !v0 => true,
            Some(other) => return Err(f.bad("norm_layer", if v0 { "ln" } else { "ln or ln2d" }, other)),
        };
        let first = name(&Reader::new(file), "patch_embed.0", "patch_embed.proj");
        let patch = file.shape(&format!("{first}.weight")).unwrap_or_default();
        let side = f.size("imgsize")?.unwrap_or(224);
        let mlp_ratio = f.get("mlp_ratio", "a ratio", |v| v.as_f64().filter(|r| (-1e3..1e3).contains(r)))?;
        // Upstream makes no convolution of one tap or fewer.
        let none = f.get("ssm_conv", "a size", Value::as_f64)?.is_some_and(|taps| taps < 2.0);
        let ssm_conv = if v0 {
            3
        } else if none {
            1
        } else {
            f.size("ssm_conv")?.unwrap_or(3)
        };
        if ssm_conv % 2 == 0 {
            return Err(f.bad("ssm_conv", "an odd number of taps", ssm_conv.to_string()));
        }
        let image = options.image.unwrap_or((side, side));
        if [image.0, image.1].iter().any(|side| !(1..1 << 16).contains(side)) {
            return Err(f.bad("frame size", "1 to 65535 lines and columns", format!("{}x{}", image.0, image.1)));
        }
        Ok(Self {
            image,
            in_chans: patch.get(1).copied().unwrap_or(0),
            depths,
            forward_type,
            channel_first,
            ssm_act_layer: if v0 { Act::Silu } else { f.act("ssm_act_layer", Act::Silu)? },
            mlp_act_layer: f.act("mlp_act_layer", Act::Gelu)?,
            patch_norm: f.flag("patch_norm")?.unwrap_or(true),
            ssm_conv,
            ssm_conv_bias: if v0 { Some(true) } else { f.flag("ssm_conv_bias")? },
            mlp: mlp_ratio
                .map_or_else(|| file.names().any(|n| n.contains(".norm2.") || n.contains(".mlp.")), |r| r > 0.0),
            mlp_ratio,
        })
    }

    /// The forward type of a file without configuration: what its tensors show, and the published choice of the rest.
    fn forward_type(f: &Fields<'_>) -> Result<ForwardType, Error> {
        let w = Reader::new(f.file).at("layers.0.blocks.0.");
        let op = w.at(&format!("{}.", name_of(&w, "op", "self_attention", ".A_logs")));
        let rows = |name: &str| op.shape(name).and_then(|s| s.first()).copied().unwrap_or(0);
        let out_norm = match ["out_norm.weight", "out_norm.0.weight", "out_norm.1.weight"].map(|n| op.has(n)) {
            [true, _, _] => OutNormKind::Layer,
            [_, true, _] => OutNormKind::LayerConv,
            [_, _, true] => OutNormKind::Conv,
            _ => {
                let expected = "its value in the configuration, as the block has no out_norm tensors";
                return Err(f.bad("forward_type", expected, "no configuration"));
            }
        };
        let gated = rows("in_proj.weight") == 2 * (rows("Ds") / ORDERS);
        Ok(ForwardType { mode: Mode::Cross2d, gated, gate_act: true, out_act: false, out_norm })
    }
}
