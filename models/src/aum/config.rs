//! What an Audio Mamba's configuration and tensors say about its function.

use crate::checkpoint::Checkpoint;
use crate::config::Fields;
use crate::error::Error;
use crate::families::Options;
use crate::trunk::{Class, MAX_SEQUENCE, Pool, agree_directions};
use serde_json::Value;
use ssm_kernels::patch::count;

/// Patches of a clip at most.
const MAX_PATCHES: usize = 1 << 16;

/// Frequency and time of a patch, a stride, a grid or a clip.
pub(super) type Size = (usize, usize);

/// Sizes and options.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) embed_dim: usize,
    pub(super) depth: usize,
    pub(super) patch: Size,
    pub(super) strides: Size,
    /// Patches that the position embedding was trained for.
    pub(super) trained: Size,
    /// Mel bins and frames of a clip.
    pub(super) clip: Size,
    pub(super) class: Class,
    pub(super) pool: Pool,
    pub(super) transpose_token_sequence: bool,
    pub(super) if_devide_out: bool,
    pub(super) norm_eps: f32,
    pub(super) num_classes: usize,
}

/// The place of the class token that tensors and options tell.
fn class(file: &Checkpoint, fields: &Fields<'_>) -> Result<Class, Error> {
    if file.shape("cls_token_head").is_some() {
        return Ok(Class::Double);
    }
    if file.shape("cls_token").is_none() {
        return Ok(Class::None);
    }
    match fields.word(&["cls_token"])?.as_deref() {
        Some("middle" | "mid") => Ok(Class::Middle),
        Some("head" | "front" | "start") => Ok(Class::Head),
        Some("end" | "tail") => Ok(Class::End),
        Some(other) => Err(fields.bad("cls_token", "middle, head or end", other)),
        None if fields.flag(&["use_middle_cls_token"])?.unwrap_or(true) => Ok(Class::Middle),
        None if fields.flag(&["use_end_cls_token"])?.unwrap_or(false) => Ok(Class::End),
        None => Ok(Class::Head),
    }
}

impl Config {
    pub(super) fn read(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let fields = Fields::new(options.config.as_ref(), file.path.display().to_string());
        let shape = file.shape("patch_embed.proj.weight").unwrap_or_default();
        let (embed_dim, patch) = match shape {
            &[d, 1, f, t] if d > 0 && f > 0 && t > 0 => (d, (f, t)),
            _ => return Err(fields.bad("patch_embed.proj.weight", "[D, 1, frequency, time]", format!("{shape:?}"))),
        };
        let strides = sizes(&fields, &["strides"])?.unwrap_or(patch);
        let cells = |(bins, frames): Size| (count(bins, patch.0, strides.0), count(frames, patch.1, strides.1));

        // Options of upstream's constructor that no published model uses and that would change the function.
        for name in ["if_rope", "if_bidirectional", "must_square"] {
            if fields.flag(&[name])? == Some(true) {
                return Err(fields.bad(name, "false", "true"));
            }
        }
        agree_directions(file, &fields)?;
        let class = class(file, &fields)?;
        let source = spectrogram(&fields, ["source_spectrogram_size", "source_mel_bins", "source_frames"])?;
        let target = spectrogram(&fields, ["spectrogram_size", "mel_bins", "frames"])?;
        let asked = options.clip.map(|(frames, bins)| (bins, frames)).or(target);
        let trained = match file.shape("pos_embed.pos_embed") {
            None => cells(asked.unwrap_or((128, 1024))),
            Some(&[1, rows, _]) => {
                // The first of these that makes as many patches as there are rows.
                let n = rows.saturating_sub(class.tokens());
                let along = |bins: usize| {
                    let f = count(bins, patch.0, strides.0);
                    (f, n.checked_div(f).unwrap_or(0))
                };
                let bins = target.or(source).map_or(128, |t| t.0);
                let grids = [source.map(cells), target.map(cells), Some(along(bins)), Some(along(128))];
                let found = grids.into_iter().flatten().find(|g| g.0.checked_mul(g.1) == Some(n));
                found.ok_or_else(|| {
                    let expected = "rows for a grid of patches (give mel_bins and frames in config.json)";
                    fields.bad("pos_embed.pos_embed", expected, format!("{rows} rows"))
                })?
            }
            Some(other) => return Err(fields.bad("pos_embed.pos_embed", "[1, N, D]", format!("{other:?}"))),
        };
        let side = |n: usize, patch: usize, stride: usize| n.saturating_sub(1) * stride + patch;
        let frames = side(trained.1, patch.1, strides.1);
        let bins = if cells((128, frames)) == trained { 128 } else { side(trained.0, patch.0, strides.0) };
        let clip = asked.unwrap_or((bins, frames));
        let patches = |grid: Size| grid.0.saturating_mul(grid.1);
        for grid in [trained, cells(clip)] {
            if !(1..=MAX_PATCHES).contains(&patches(grid)) {
                let expected = format!("1 to {MAX_PATCHES} patches of {}x{}", patch.0, patch.1);
                return Err(fields.bad("clip", expected, format!("{} frames of {} bins", clip.1, clip.0)));
            }
        }
        if patches(cells(clip)).saturating_mul(embed_dim) > MAX_SEQUENCE {
            let expected = format!("{MAX_SEQUENCE} values at most in a sequence");
            return Err(fields.bad("clip", expected, format!("{} patches of {embed_dim}", patches(cells(clip)))));
        }
        let num_classes = file.shape("head.weight").and_then(|s| s.first()).copied().unwrap_or(0);
        if num_classes == 0 {
            return Err(fields.bad("head.weight", "[classes, D]", "no classes"));
        }
        let depth = file.numbered("layers.");
        for (name, tensors) in [("depth", depth), ("embed_dim", embed_dim), ("num_classes", num_classes)] {
            fields.agree(&[name], tensors)?;
        }
        Ok(Self {
            embed_dim,
            depth,
            patch,
            strides,
            trained,
            clip,
            class,
            pool: Pool::read(&fields, class)?,
            transpose_token_sequence: fields.flag(&["transpose_token_sequence"])?.unwrap_or(false),
            if_devide_out: fields.flag(&["if_devide_out"])?.unwrap_or(true),
            norm_eps: fields.eps(&["norm_eps", "norm_epsilon"], 1e-5)?,
            num_classes,
        })
    }

    /// Patches of a clip: along frequency, along time.
    pub(super) fn grid(&self) -> Size {
        (count(self.clip.0, self.patch.0, self.strides.0), count(self.clip.1, self.patch.1, self.strides.1))
    }

    /// Patches of a clip.
    pub(super) fn patches(&self) -> usize {
        let (f, t) = self.grid();
        f * t
    }

    /// Tokens of a clip, class tokens included.
    pub(super) fn tokens(&self) -> usize {
        self.patches() + self.class.tokens()
    }

    /// Place in the grid of the patch that comes `i`-th in the sequence.
    pub(super) fn place(&self, i: usize) -> Size {
        let (f, t) = self.grid();
        if self.transpose_token_sequence { (i % f, i / f) } else { (i / t, i % t) }
    }
}

/// Two sizes, or one for both.
fn sizes(fields: &Fields<'_>, names: &[&str]) -> Result<Option<Size>, Error> {
    let size = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| (1..1 << 16).contains(v));
    let Some((name, v)) = fields.get(names) else { return Ok(None) };
    let found = match v.as_array().map(Vec::as_slice) {
        Some([f, t]) => size(f).zip(size(t)),
        Some(_) => None,
        None => size(v).map(|s| (s, s)),
    };
    found.map(Some).ok_or_else(|| fields.bad(&name, "two sizes", v))
}

/// Mel bins and frames, said together or one by one.
fn spectrogram(fields: &Fields<'_>, [both, bins, frames]: [&str; 3]) -> Result<Option<Size>, Error> {
    match sizes(fields, &[both])? {
        Some(size) => Ok(Some(size)),
        None => Ok(sizes(fields, &[bins])?.zip(sizes(fields, &[frames])?).map(|(f, t)| (f.0, t.0))),
    }
}
