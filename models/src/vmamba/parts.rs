//! What stands around the scans: patch embedding, MLP, and the way from one stage to the next.

use super::config::{Config, Fields};
use crate::checkpoint::Reader;
use crate::error::Error;
use crate::model::{carve, line};
use ssm_kernels::activation::{apply, gate};
use ssm_kernels::conv2d::{Conv2d, conv2d};
use ssm_kernels::linear::{Linear, Precision, Store, linear};
use ssm_kernels::norm::{Kind, Norm, norm};
use ssm_kernels::patch::merge;
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};

/// The first of two names for which `{name}{ending}` is there; the first if neither is.
pub(super) fn name_of<'n>(w: &Reader<'_>, new: &'n str, old: &'n str, ending: &str) -> &'n str {
    let has = |name: &str| w.has(&format!("{name}{ending}"));
    if !has(new) && has(old) { old } else { new }
}

/// [`name_of`] for a module with a weight.
pub(super) fn name<'n>(w: &Reader<'_>, new: &'n str, old: &'n str) -> &'n str {
    name_of(w, new, old, ".weight")
}

/// A LayerNorm over `c` channels.
pub(super) fn take_norm(w: &Reader<'_>, name: &str, c: usize) -> Result<Norm, Error> {
    let weight = w.take(&format!("{name}.weight"), &[c])?;
    let bias = w.take(&format!("{name}.bias"), &[c])?;
    Ok(Norm::new(Kind::Layer, weight, Some(bias), 1e-5))
}

/// A linear weight, stored `[out, in]` or, by a channel-first network, `[out, in, 1, 1]`.
pub(super) fn take_linear(
    w: &Reader<'_>,
    level: CpuLevel,
    name: &str,
    [out, inn]: [usize; 2],
    bias: bool,
) -> Result<Linear, Error> {
    let weight = format!("{name}.weight");
    let as_conv = [out, inn, 1, 1];
    let values = w.take(&weight, if w.shape(&weight) == Some(&as_conv) { &as_conv } else { &as_conv[..2] })?;
    let bias = if bias { Some(w.take(&format!("{name}.bias"), &[out])?) } else { None };
    Ok(Linear::pack(level, &values, out, inn, bias.as_deref()))
}

/// A convolution and the norm behind it.
pub(super) struct ConvNorm {
    pub(super) conv: Conv2d,
    pub(super) norm: Option<Norm>,
}

impl ConvNorm {
    /// Reads a convolution with bias, `[out, in, kernel, kernel]`, and its norm.
    pub(super) fn load(
        w: &Reader<'_>,
        level: CpuLevel,
        (conv, norm): (&str, Option<&str>),
        [out, inn, kernel]: [usize; 3],
        (stride, padding): (usize, usize),
    ) -> Result<Self, Error> {
        let weight = w.take(&format!("{conv}.weight"), &[out, inn, kernel, kernel])?;
        let bias = w.take(&format!("{conv}.bias"), &[out])?;
        Ok(Self {
            conv: Conv2d::pack(level, &weight, [out, inn, kernel], (stride, padding), Some(&bias)),
            norm: norm.map(|n| take_norm(w, n, out)).transpose()?,
        })
    }

    pub(super) fn out_len(&self, size: (usize, usize)) -> usize {
        let (h, w) = self.conv.out_size(size);
        h * w * self.conv.out_channels()
    }

    pub(super) fn scratch_len(&self, size: (usize, usize), threads: usize) -> usize {
        line(self.conv.scratch_len(threads)) + line(self.out_len(size))
    }

    pub(super) fn forward(&self, cx: &Cx, x: Mat<'_>, size: (usize, usize), mut work: &mut [f32], out: &mut [f32]) {
        let (c, len) = (self.conv.out_channels(), self.out_len(size));
        let m = len / c;
        let scratch = carve(&mut work, self.conv.scratch_len(cx.team.threads()));
        match &self.norm {
            None => conv2d(cx, &self.conv, x, size, Act::None, scratch, MatMut::new(out, m, c)),
            Some(w) => {
                let plain = carve(&mut work, len);
                conv2d(cx, &self.conv, x, size, Act::None, scratch, MatMut::new(plain, m, c));
                norm(cx, w, Mat::new(plain, m, c), MatMut::new(out, m, c));
            }
        }
    }
}

/// From a frame to the first stage's pixels.
pub(super) struct PatchEmbed {
    /// v2: a convolution before the other, with GELU between them.
    pub(super) stem: Option<ConvNorm>,
    pub(super) proj: ConvNorm,
}

impl PatchEmbed {
    pub(super) fn load(w: &Reader<'_>, level: CpuLevel, config: &Config, f: &Fields<'_>) -> Result<Self, Error> {
        let v2 = w.has("patch_embed.5.weight");
        f.agree("patchembed_version", if v2 { "v2" } else { "v1" })?;
        let first = name(w, "patch_embed.0", "patch_embed.proj");
        let norm = |name| config.patch_norm.then_some(name);
        let shape = |name: &str| w.shape(&format!("{name}.weight")).unwrap_or_default().to_vec();
        let [out, inn, kernel, _] = shape(first)[..] else {
            // Reports the name, missing or with another rank.
            w.take(&format!("{first}.weight"), &[0, config.in_chans, 4, 4])?;
            return Err(f.bad(first, "[C, channels, P, P]", "no weights"));
        };
        if out == 0 || inn == 0 || kernel == 0 || (v2 && kernel == 1) {
            return Err(f.bad(first, "[C, channels, P, P]", format!("{:?}", shape(first))));
        }
        let norms = norm(name(w, "patch_embed.2", "patch_embed.norm"));
        if !v2 {
            let proj = ConvNorm::load(w, level, (first, norms), [out, inn, kernel], (kernel, 0))?;
            return Ok(Self { stem: None, proj });
        }
        let stem = ConvNorm::load(w, level, (first, norms), [out, inn, kernel], (kernel - 1, 1))?;
        let dim = shape("patch_embed.5").first().copied().unwrap_or(0);
        let names = ("patch_embed.5", norm("patch_embed.7"));
        let proj = ConvNorm::load(w, level, names, [dim, out, kernel], (kernel - 1, 1))?;
        Ok(Self { stem: Some(stem), proj })
    }

    pub(super) fn out_size(&self, size: (usize, usize)) -> (usize, usize) {
        self.proj.conv.out_size(self.stem.as_ref().map_or(size, |s| s.conv.out_size(size)))
    }

    /// Working memory for one frame of `channels` planes.
    pub(super) fn scratch_len(&self, channels: usize, size: (usize, usize), threads: usize) -> usize {
        let pixels = line(channels * size.0 * size.1);
        pixels
            + match &self.stem {
                None => self.proj.scratch_len(size, threads),
                Some(stem) => {
                    let proj = self.proj.scratch_len(stem.conv.out_size(size), threads);
                    line(stem.out_len(size)) + stem.scratch_len(size, threads).max(proj)
                }
            }
    }

    /// One frame, plane by plane, to pixels.
    pub(super) fn forward(&self, cx: &Cx, image: &[f32], size: (usize, usize), mut work: &mut [f32], out: &mut [f32]) {
        let (len, c) = (size.0 * size.1, image.len() / (size.0 * size.1));
        let pixels = carve(&mut work, image.len());
        let parts = cx.team.free();
        MatMut::new(pixels, len, c).each_row(&cx.team, parts, |i, pixel| {
            pixel.iter_mut().zip(image.iter().skip(i).step_by(len)).for_each(|(p, v)| *p = *v);
        });
        let pixels = Mat::new(pixels, len, c);
        let Some(stem) = &self.stem else { return self.proj.forward(cx, pixels, size, work, out) };
        let half = carve(&mut work, stem.out_len(size));
        stem.forward(cx, pixels, size, work, half);
        let (size, c) = (stem.conv.out_size(size), stem.conv.out_channels());
        let pixels = MatMut::new(half, size.0 * size.1, c);
        pixels.each_row(&cx.team, parts, |_, pixel| apply(cx.level, Act::Gelu, pixel));
        self.proj.forward(cx, Mat::new(half, size.0 * size.1, c), size, work, out);
    }
}

/// Pixels that go through an MLP together: what it makes of them stays in the cache of the thread.
const TOGETHER: usize = 60;

/// Bands of m pixels that take an MLP each on a thread of its own, and the pixels of a band that go together. Few pixels
/// are one band, of whose products each thread takes a part.
fn bands(m: usize, threads: usize) -> (usize, usize) {
    if threads > 1 && m < TOGETHER / 2 * threads { (1, m) } else { (threads, TOGETHER.min(m.div_ceil(threads))) }
}

/// Norm and MLP of a block.
pub(super) struct Mlp {
    pub(super) norm2: Norm, // (C)
    pub(super) fc1: Linear, // (hidden, C); (2·hidden, C) if gated
    pub(super) fc2: Linear, // (C, hidden)
    pub(super) act: Act,
    pub(super) gated: bool, // the second half of fc1 gates the first (gmlp)
}

impl Mlp {
    /// Reads norm and MLP of a block of width `c`; the hidden width is read off `fc2` unless the configuration says it.
    pub(super) fn load(w: &Reader<'_>, level: CpuLevel, config: &Config, c: usize) -> Result<Self, Error> {
        let dim = |name: &str, i: usize| w.shape(name).and_then(|s| s.get(i)).copied().unwrap_or(0);
        let hidden = config.mlp_ratio.map_or(dim("mlp.fc2.weight", 1), |r| (c as f64 * r) as usize);
        let gated = hidden > 0 && dim("mlp.fc1.weight", 0) == 2 * hidden;
        Ok(Self {
            norm2: take_norm(w, "norm2", c)?,
            fc1: take_linear(w, level, "mlp.fc1", [if gated { 2 * hidden } else { hidden }, c], true)?,
            fc2: take_linear(w, level, "mlp.fc2", [c, hidden], true)?,
            act: config.mlp_act_layer,
            gated,
        })
    }

    pub(super) fn lower(&mut self, precision: Precision) {
        [&mut self.fc1, &mut self.fc2].into_iter().for_each(|w| w.lower(precision));
    }

    /// Working memory for m pixels at once.
    fn room(&self, m: usize) -> usize {
        line(m * self.norm2.weight.len()) + line(m * self.fc1.n())
    }

    pub(super) fn scratch_len(&self, m: usize, threads: usize) -> usize {
        let (bands, pixels) = bands(m, threads);
        bands * self.room(pixels)
    }

    /// `x += fc2(act(fc1(norm2(x))))` for m pixels.
    pub(super) fn forward(&self, cx: &Cx, x: &mut [f32], m: usize, mut work: &mut [f32]) {
        let (bands, pixels) = bands(m, cx.team.threads());
        let room = MatMut::new(carve(&mut work, bands * self.room(pixels)), bands, self.room(pixels));
        MatMut::new(x, m, self.norm2.weight.len()).in_bands(&cx.team, room, |band, mut rest, room| {
            let (len, turns) = (band.len(), band.len().div_ceil(pixels));
            for turn in 0..turns {
                let (x, behind) = rest.split_rows(len * (turn + 1) / turns - len * turn / turns);
                self.few(cx, x, room);
                rest = behind;
            }
        });
    }

    /// `forward` for pixels whose values fit in `work`.
    fn few(&self, cx: &Cx, x: MatMut<'_>, mut work: &mut [f32]) {
        let m = x.rows();
        let (c, wide, hidden) = (self.norm2.weight.len(), self.fc1.n(), self.fc2.k());
        let (normed, h) = (carve(&mut work, m * c), carve(&mut work, m * wide));
        norm(cx, &self.norm2, x.as_mat(), MatMut::new(normed, m, c));
        let act = if self.gated { Act::None } else { self.act };
        linear(cx, Mat::new(normed, m, c), &self.fc1, act, Store::Set, MatMut::new(h, m, wide));
        if self.gated {
            for h in h.chunks_exact_mut(wide) {
                let (x, z) = h.split_at_mut(hidden);
                gate(cx.level, self.act, x, z);
            }
        }
        let h = Mat::strided(h, m, hidden, wide);
        linear(cx, h, &self.fc2, Act::None, Store::Add, x);
    }
}

/// From one stage to the next.
pub(super) enum Downsample {
    /// v1: four pixels side by side, norm, linear.
    Merge { norm: Norm, reduction: Linear },
    /// v2, v3: convolution, norm.
    Conv(ConvNorm),
}

impl Downsample {
    /// Reads what leads from pixels of width `c` to the next stage; its version is read off the tensors.
    pub(super) fn load(w: &Reader<'_>, level: CpuLevel, c: usize, f: &Fields<'_>) -> Result<Self, Error> {
        let dim = |name: &str, i: usize| w.shape(name).and_then(|s| s.get(i)).copied();
        if w.has("reduction.weight") {
            f.agree("downsample_version", "v1")?;
            let out = dim("reduction.weight", 0).unwrap_or(0);
            let norm = take_norm(w, "norm", 4 * c)?;
            return Ok(Self::Merge { norm, reduction: take_linear(w, level, "reduction", [out, 4 * c], false)? });
        }
        let (version, kernel, padding) = if dim("1.weight", 2) == Some(2) { ("v2", 2, 0) } else { ("v3", 3, 1) };
        f.agree("downsample_version", version)?;
        let out = dim("1.weight", 0).unwrap_or(2 * c);
        ConvNorm::load(w, level, ("1", Some("3")), [out, c, kernel], (2, padding)).map(Self::Conv)
    }

    pub(super) fn out_size(&self, (h, w): (usize, usize)) -> (usize, usize) {
        match self {
            Self::Merge { .. } => (h.div_ceil(2), w.div_ceil(2)),
            Self::Conv(c) => c.conv.out_size((h, w)),
        }
    }

    pub(super) fn out_channels(&self) -> usize {
        match self {
            Self::Merge { reduction, .. } => reduction.n(),
            Self::Conv(c) => c.conv.out_channels(),
        }
    }

    pub(super) fn scratch_len(&self, size: (usize, usize), threads: usize) -> usize {
        match self {
            Self::Merge { reduction, .. } => {
                let (h, w) = self.out_size(size);
                2 * line(h * w * reduction.k())
            }
            Self::Conv(c) => c.scratch_len(size, threads),
        }
    }

    /// The pixels of one frame, of `size`, to those of the next stage.
    pub(super) fn forward(&self, cx: &Cx, x: Mat<'_>, size: (usize, usize), mut work: &mut [f32], out: &mut [f32]) {
        match self {
            Self::Conv(conv) => conv.forward(cx, x, size, work, out),
            Self::Merge { norm: w, reduction } => {
                let (h, width) = self.out_size(size);
                let (m, c) = (h * width, reduction.k());
                let (merged, normed) = (carve(&mut work, m * c), carve(&mut work, m * c));
                merge(x, size, MatMut::new(merged, m, c));
                norm(cx, w, Mat::new(merged, m, c), MatMut::new(normed, m, c));
                let out = MatMut::new(out, m, reduction.n());
                linear(cx, Mat::new(normed, m, c), reduction, Act::None, Store::Set, out);
            }
        }
    }
}
