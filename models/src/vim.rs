//! Vim: Vision Mamba (Zhu et al. 2024, arXiv 2401.09417, Figure 2 and Algorithm 1).
//!
//! A frame is cut into patches, a class token is set among them, and a stack of bidirectional Mamba blocks runs over the
//! sequence. Every published size loads under its own names; sizes are read off the tensors. What the tensors do not say
//! (stride, place of a single class token, pooling, halving, eps) comes from the file's `config`, else from the published
//! models.

mod card;
#[cfg(test)]
mod tests;

pub(crate) use card::VimNet;

use crate::card::{Network, Weights};
use crate::checkpoint::{Checkpoint, Reader};
use crate::config::{Fields, arguments};
use crate::error::Error;
use crate::families::{Family, Options, Output, PosRule, lowered};
use crate::golden::Golden;
use crate::mixer::{Mixer, MixerState};
use crate::model::{Facts, Info, Model, Row, Scratch, Signal, carve, line};
use crate::state::{State, StateLayout};
use crate::trunk::{Class, Layer, MAX_SEQUENCE, Pool, Tap, Trunk, agree_directions, no_tap};
use serde_json::Value;
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::patch::{count, patches};
use ssm_kernels::resize::bicubic_grid;
use ssm_kernels::{Act, Cx, Mat, MatMut};
use std::sync::Arc;

pub(crate) const FAMILY: Family = Family {
    name: "vim",
    detect: |f| {
        f.shape("patch_embed.proj.weight").is_some()
            && f.shape("layers.0.mixer.A_log").is_some()
            // Without a position embedding it is an Audio Mamba's where it has one channel.
            && (f.shape("pos_embed").is_some() || f.shape("patch_embed.proj.weight").is_some_and(|s| s.get(1) != Some(&1)))
    },
    open: |file, options| Ok(Arc::new(Vim::load(file, options)?)),
    verify,
};

/// Sizes and options; names as upstream's constructor has them.
#[derive(Clone, Debug)]
struct Config {
    embed_dim: usize,
    depth: usize,
    channels: usize,
    patch_size: usize,
    stride: usize,
    /// Rows and columns of patches that `pos_embed` was trained for.
    trained: (usize, usize),
    /// Height and width of the frames.
    image: (usize, usize),
    class: Class,
    pool: Pool,
    if_divide_out: bool,
    norm_epsilon: f32,
    num_classes: usize,
}

impl Config {
    fn read(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let config = options.config.as_ref();
        let fields = Fields::new(config.map(arguments), file.path.display().to_string());
        let bad = |field: &str, expected: String, got: String| fields.bad(field, expected, got);
        let flag = |name: &str, default: bool| Ok::<_, Error>(fields.flag(&[name])?.unwrap_or(default));
        // Options of upstream's constructor that no published model uses and that would change the function.
        for name in ["if_bidirectional", "if_rope", "if_rope_residual"] {
            if flag(name, false)? {
                return Err(fields.bad(name, "false", "true"));
            }
        }
        let patch = file.shape("patch_embed.proj.weight").unwrap_or_default();
        let &[embed_dim, channels, patch_size, width] = patch else {
            return Err(bad("patch_embed.proj.weight", "[D, channels, P, P]".into(), format!("{patch:?}")));
        };
        if patch_size != width || patch_size == 0 || embed_dim == 0 {
            return Err(bad("patch_embed.proj.weight", "square patches".into(), format!("{patch:?}")));
        }
        let class = match (file.shape("cls_token").is_some(), file.shape("cls_token_head").is_some()) {
            (_, true) => Class::Double,
            (true, _) if flag("use_middle_cls_token", true)? => Class::Middle,
            (true, _) => Class::Head,
            _ => Class::None,
        };
        // The size trained for: said by the config, else square, and of stride P unless only half of it makes 224.
        let side = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| (1..1 << 16).contains(v));
        let size = |v: &Value| match v.as_array().map(Vec::as_slice) {
            Some([h, w]) => side(h).zip(side(w)),
            Some(_) => None,
            None => side(v).map(|s| (s, s)),
        };
        let said = match config.and_then(|c| c.get("source_img_size")).or(fields.get(&["img_size"]).map(|f| f.1)) {
            Some(v) => {
                Some(size(v).ok_or_else(|| bad("img_size", "pixels, or [height, width]".into(), v.to_string()))?)
            }
            None => None,
        };
        let said_stride = fields.size(&["stride"])?;
        if said_stride == Some(0) {
            return Err(bad("stride", "at least 1".into(), "0".into()));
        }
        let grid_of = |(h, w), stride| (count(h, patch_size, stride), count(w, patch_size, stride));
        let cells = |size, stride| {
            let (h, w) = grid_of(size, stride);
            h * w
        };
        let (trained, stored_stride, stride) = match file.shape("pos_embed").map(|s| s.get(1).copied().unwrap_or(0)) {
            None => {
                let stride = said_stride.unwrap_or(patch_size);
                (said.or(options.image).unwrap_or((224, 224)), stride, stride)
            }
            Some(rows) => {
                let patches = rows.saturating_sub(class.tokens());
                let grid = patches.isqrt().max(1);
                let stride = said_stride.unwrap_or({
                    let half = patch_size / 2;
                    let makes_224 = |s: usize| patches > 0 && (grid - 1) * s + patch_size == 224;
                    if said.is_none() && half > 0 && !makes_224(patch_size) && makes_224(half) {
                        half
                    } else {
                        patch_size
                    }
                });
                let edge = (grid - 1).saturating_mul(stride).saturating_add(patch_size);
                let trained = said.unwrap_or((edge, edge));
                // Fine-tuning at half the stride began with the embedding of whole ones.
                let source = config.is_some_and(|c| c.get("source_img_size").is_some());
                let stored = if source && cells(trained, stride) != patches { patch_size } else { stride };
                if cells(trained, stored) != patches || patches == 0 {
                    return Err(bad(
                        "pos_embed",
                        format!(
                            "{} rows for a {}x{} frame",
                            cells(trained, stride) + class.tokens(),
                            trained.0,
                            trained.1
                        ),
                        format!("{rows} rows (give img_size and stride in config.json)"),
                    ));
                }
                (trained, stored, stride)
            }
        };
        let image = options.image.unwrap_or(trained);
        if cells(image, stride) == 0 || cells(image, stride) > 1 << 16 {
            return Err(bad(
                "frame size",
                format!("{patch_size}x{patch_size} pixels or more"),
                format!("{}x{}", image.0, image.1),
            ));
        }
        if cells(image, stride).saturating_mul(embed_dim) > MAX_SEQUENCE {
            return Err(bad(
                "frame size",
                format!("{MAX_SEQUENCE} values at most in a sequence"),
                format!("{} patches of {embed_dim}", cells(image, stride)),
            ));
        }
        let depth = file.numbered("layers.");
        let num_classes = file.shape("head.weight").and_then(|s| s.first()).copied();
        for (name, tensors) in [("embed_dim", embed_dim), ("channels", channels), ("patch_size", patch_size)] {
            fields.agree(&[name], tensors)?;
        }
        agree_directions(file, &fields)?;
        for (name, tensors) in [
            ("if_cls_token", class != Class::None),
            ("use_double_cls_token", class == Class::Double),
            ("if_abs_pos_embed", file.shape("pos_embed").is_some()),
            ("rms_norm", file.shape("norm_f.bias").is_none()),
        ] {
            fields.agree_flag(name, tensors)?;
        }
        if let Some(n) = num_classes {
            fields.agree(&["num_classes"], n)?;
        }
        Ok(Self {
            embed_dim,
            depth,
            channels,
            patch_size,
            stride,
            trained: grid_of(trained, stored_stride),
            image,
            class,
            pool: Pool::read(&fields, class)?,
            if_divide_out: flag("if_divide_out", true)?,
            norm_epsilon: fields.eps(&["norm_epsilon"], 1e-5)?,
            num_classes: num_classes.unwrap_or(0),
        })
    }

    /// Rows and columns of patches of a frame.
    fn grid(&self, (h, w): (usize, usize)) -> (usize, usize) {
        (count(h, self.patch_size, self.stride), count(w, self.patch_size, self.stride))
    }

    /// Tokens of a frame, class tokens included.
    fn tokens(&self) -> usize {
        let (gh, gw) = self.grid(self.image);
        gh * gw + self.class.tokens()
    }
}

/// A Vim classifier, or its trunk.
pub(crate) struct Vim {
    config: Config,
    info: Info,
    layout: StateLayout,
    patch_embed: Linear, // (D, channels · P · P)
    pos_embed: Vec<f32>, // (L, D), the class tokens' own values added to their rows
    trunk: Trunk,
    state: Vec<MixerState>, // empty unless frames are carried
}

impl Vim {
    pub(crate) fn load(file: &Checkpoint, options: &Options) -> Result<Self, Error> {
        let config = Config::read(file, options)?;
        let (d, level) = (config.embed_dim, options.level);
        let w = Reader::new(file);
        let norm = |w: &Reader<'_>, name: &str| Trunk::norm(w, name, d, config.norm_epsilon);
        let p = config.patch_size;
        let proj = w.take("patch_embed.proj.weight", &[d, config.channels, p, p])?;
        let proj_bias = w.take("patch_embed.proj.bias", &[d])?;
        let (gh, gw) = config.trained;
        let mut pos_embed = match w.take_optional("pos_embed", &[1, gh * gw + config.class.tokens(), d])? {
            Some(stored) => fit_pos_embed(&stored, &config, options.pos_rule)?,
            None => vec![0.0; config.tokens() * d],
        };
        config.class.add(&w, &mut pos_embed, d)?;
        let mut layers = Vec::with_capacity(config.depth);
        for i in 0..config.depth {
            let w = w.at(&format!("layers.{i}."));
            let mut mixer = Mixer::load_both(&w.at("mixer."), level, d, config.if_divide_out)?;
            mixer.lower(options.precision);
            layers.push(Layer { norm: norm(&w, "norm")?, mixer });
        }
        let norm_f = norm(&w, "norm_f")?;
        let features = options.output == Output::Features;
        let head = if features {
            // Of no use then, and a trunk may come without.
            w.take_optional("head.weight", &[config.num_classes, d])?;
            w.take_optional("head.bias", &[config.num_classes])?;
            None
        } else {
            w.require(&["head.weight"])?;
            let weight = w.take("head.weight", &[config.num_classes, d])?;
            let bias = w.take("head.bias", &[config.num_classes])?;
            let mut head = Linear::pack(level, &weight, config.num_classes, d, Some(&bias));
            head.lower(options.precision);
            Some(head)
        };
        w.finish()?;
        let fields = Fields::new(options.config.as_ref().map(arguments), file.path.display().to_string());
        fields.agree(&["depth"], config.depth)?;
        layers.iter().try_for_each(|layer| layer.mixer.agree(&fields))?;

        let mut layout = StateLayout::new();
        let state = if options.carry {
            layers.iter().enumerate().map(|(i, l)| l.mixer.state(&mut layout, &format!("layers.{i}"))).collect()
        } else {
            Vec::new()
        };
        let (h, width) = config.image;
        let mixer = layers.first().map(|l| &l.mixer);
        let rows = if config.pool.apart(config.class, features) { config.tokens() } else { 1 };
        let info = Info {
            family: FAMILY.name,
            facts: Facts { precision: options.precision, ..Facts::default() },
            sizes: format!(
                "D {d}, {} layers, E {}, N {}, R {}, patch {p}/{}, frame {h}x{width}, {} tokens",
                config.depth,
                mixer.map_or(0, Mixer::d_inner),
                mixer.map_or(0, Mixer::d_state),
                mixer.map_or(0, Mixer::dt_rank),
                config.stride,
                config.tokens(),
            ),
            parameters: file.parameters(),
            input: Signal::Image { channels: config.channels, height: h, width },
            output: match features {
                true => Signal::Vector { dim: rows * d },
                false => Signal::Logits { classes: rows * config.num_classes },
            },
            delay: 0,
            hash: file.hash(&format!(
                "{:?} carry={}{}{}",
                config,
                options.carry,
                lowered(options.precision),
                if features { " features" } else { "" }
            )),
        };
        let mut patch_embed = Linear::pack(level, &proj, d, config.channels * p * p, Some(&proj_bias));
        patch_embed.lower(options.precision);
        let trunk = Trunk { layers, norm_f, head, class: config.class, pool: config.pool };
        Ok(Self { patch_embed, info, layout, pos_embed, trunk, state, config })
    }

    /// Working memory of a pass over `batch` frames.
    pub(crate) fn scratch_len(&self, batch: usize) -> usize {
        let (c, l) = (&self.config, self.config.tokens());
        let m = batch * l;
        let embed = line(l * c.channels * c.patch_size * c.patch_size) + line(l * c.embed_dim);
        3 * line(m * c.embed_dim) + embed.max(self.trunk.scratch_len(m)) + line(c.embed_dim) + line(c.num_classes)
    }

    /// Tokens of one frame: patches, class tokens and position embedding.
    fn tokens(&self, cx: &Cx, image: &[f32], mut scratch: &mut [f32], out: &mut [f32]) {
        let c = &self.config;
        let (d, (gh, gw)) = (c.embed_dim, c.grid(c.image));
        let (m, k) = (gh * gw, c.channels * c.patch_size * c.patch_size);
        let (rows, embedded) = (carve(&mut scratch, m * k), carve(&mut scratch, m * d));
        let size = (c.channels, c.image.0, c.image.1);
        patches(image, size, c.patch_size, c.stride, MatMut::new(rows, m, k));
        linear(cx, Mat::new(rows, m, k), &self.patch_embed, Act::None, Store::Set, MatMut::new(embedded, m, d));
        out.copy_from_slice(&self.pos_embed);
        for (p, patch) in embedded.chunks_exact(d).enumerate() {
            let row = &mut out[c.class.patch_row(p, m) * d..][..d];
            row.iter_mut().zip(patch).for_each(|(o, p)| *o += p);
        }
    }

    /// Frame `frame` of every row's input; the results go to the rows' outputs, or row by row to `out`.
    pub(crate) fn frame(
        &self,
        cx: &Cx,
        rows: &mut [Row],
        frame: usize,
        mut scratch: &mut [f32],
        mut out: Option<MatMut<'_>>,
        mut tap: impl FnMut(Tap, &[f32]),
    ) {
        let (d, l, b) = (self.config.embed_dim, self.config.tokens(), rows.len());
        let m = b * l;
        let (input, output) = (self.info.input.len(), self.info.output.len());
        let s = &mut scratch;
        let (residual, hidden, normed) = (carve(s, m * d), carve(s, m * d), carve(s, m * d));
        let (pooled, scores) = (carve(s, d), carve(s, self.config.num_classes));
        for (row, hidden) in rows.iter().zip(hidden.chunks_exact_mut(l * d)) {
            self.tokens(cx, &row.x[frame * input..][..input], s, hidden);
        }
        tap(Tap::Tokens, hidden);
        self.trunk.blocks(cx, rows, &self.state, [&mut *residual, &mut *hidden, &mut *normed], s, &mut tap);
        for (i, row) in rows.iter_mut().enumerate() {
            let part = i * l * d..(i + 1) * l * d;
            let y = match &mut out {
                Some(out) => out.row(i),
                None => &mut row.y[frame * output..][..output],
            };
            let streams = [&mut residual[part.clone()], &mut hidden[part.clone()], &mut normed[part]];
            self.trunk.score(cx, streams, (&mut *pooled, &mut *scores), y, &mut tap);
        }
    }
}

impl Model for Vim {
    fn info(&self) -> &Info {
        &self.info
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) {
        for frame in 0..len {
            self.frame(cx, rows, frame, scratch.take(self.scratch_len(rows.len())), None, no_tap);
        }
        rows.iter_mut().for_each(|row| row.state.steps += len as u64);
    }

    fn network(&self, weights: &mut Weights) -> Option<Box<dyn Network>> {
        Some(Box::new(self.on_card(weights)))
    }

    fn gap(&self, state: &mut State, periods: f64) {
        for (layer, at) in self.trunk.layers.iter().zip(&self.state) {
            layer.mixer.gap(&mut state.data, at, periods * self.config.tokens() as f64);
        }
    }

    fn upstream_state(&self, state: &State, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let (i, what) = name.strip_prefix("layers.")?.split_once('.')?;
        let i: usize = i.parse().ok()?;
        self.trunk.layers.get(i)?.mixer.upstream_state(&state.data, self.state.get(i)?, what)
    }
}

/// The stored position embedding for the frame size in use.
fn fit_pos_embed(stored: &[f32], c: &Config, rule: PosRule) -> Result<Vec<f32>, Error> {
    let (d, from, to) = (c.embed_dim, c.trained, c.grid(c.image));
    if from == to {
        return Ok(stored.to_vec());
    }
    let (m, m2) = (from.0 * from.1, to.0 * to.1);
    let bad = |expected: &str, got: String| Error::Config {
        file: "frame size".into(),
        field: "pos_embed".into(),
        expected: expected.into(),
        got,
    };
    // Rows kept apart, and their new places. Upstream keeps the first rows, wherever the class tokens really are.
    let (kept, placed): (Vec<usize>, Vec<usize>) = match (c.class, rule) {
        (Class::None, _) => (vec![], vec![]),
        (Class::Double, PosRule::Upstream) => (vec![0, 1], vec![0, 1]),
        (Class::Double, _) => (vec![0, m + 1], vec![0, m2 + 1]),
        (Class::Middle, PosRule::Upstream) => (vec![0], vec![0]),
        (class, _) => (vec![class.row(m)], vec![class.row(m2)]),
    };
    if rule == PosRule::Upstream && (from.0 != from.1 || to.0 != to.1) {
        return Err(bad("a square frame for the upstream rule", format!("{}x{}", c.image.0, c.image.1)));
    }
    // Channels first for the interpolation, rows last again after it.
    let grid: Vec<usize> = (0..m + kept.len()).filter(|r| !kept.contains(r)).collect();
    let mut planes = vec![0.0; d * m];
    for (i, row) in grid.iter().enumerate() {
        for ch in 0..d {
            planes[ch * m + i] = stored[row * d + ch];
        }
    }
    let mut fitted = vec![0.0; d * m2];
    bicubic_grid(&planes, d, from, to, &mut fitted);
    let mut out = vec![0.0; (m2 + kept.len()) * d];
    let free: Vec<usize> = (0..m2 + kept.len()).filter(|r| !placed.contains(r)).collect();
    for (i, row) in free.iter().enumerate() {
        for ch in 0..d {
            out[row * d + ch] = fitted[ch * m2 + i];
        }
    }
    for (old, new) in kept.iter().zip(&placed) {
        out[new * d..][..d].copy_from_slice(&stored[old * d..][..d]);
    }
    Ok(out)
}

/// Golden files: logits and features of whole frames, the poolings, both rules of the position embedding, the carry mode.
fn verify(g: &mut Golden<'_>) -> Result<(), Error> {
    const TOL: f32 = 1e-5;
    if g.config["mode"] == "carry" {
        let options = Options { carry: true, ..g.open_options() };
        let model = g.open(&options)?;
        let ([count, ..], x) = g.sized::<4>("__input__")?;
        let mut row = Row::new(&*model, 1);
        if x.len() != count * row.x.len() {
            let expected = format!("{count} frames of {} values", row.x.len());
            return Err(Error::Input { expected, got: format!("{} values in __input__", x.len()) });
        }
        let (mut y, mut states): (Vec<f32>, Vec<Vec<f32>>) = (vec![], vec![]);
        let names = g.names_with("__state__.");
        for frame in x.chunks_exact(row.x.len()) {
            row.x.copy_from_slice(frame);
            g.forward(&*model, std::slice::from_mut(&mut row), 1);
            y.extend(&row.y);
            for (i, name) in names.iter().enumerate() {
                states.resize(names.len(), vec![]);
                let name = name.trim_start_matches("__state__.");
                states[i].extend(model.upstream_state(&row.state, name).map(|s| s.1).unwrap_or_default());
            }
        }
        g.check_scaled("__output__", &y, TOL)?;
        for (name, got) in names.iter().zip(&states) {
            g.check_scaled(name, got, TOL)?;
        }
        if !g.has("__output_reset__") && !g.has("__output_reset_f64__") {
            return Ok(());
        }
        let y = g.run_frames(&*g.open(&g.open_options())?, &x)?;
        return g.check_scaled("__output_reset__", &y, TOL);
    }
    let interpolated = g.config.get("source_img_size").is_some();
    let mut outputs = vec![
        ("__input__", "__output__", PosRule::Upstream),
        ("__input__", "__output_midaware__", PosRule::MiddleAware),
        ("__input_rect__", "__output_midaware_rect__", PosRule::MiddleAware),
    ];
    outputs.retain(|(_, name, _)| g.has(name) || g.has(&name.replace("output", "output_f64")));
    if outputs.is_empty() {
        // A file without any of them lacks the first.
        outputs.push(("__input__", "__output__", PosRule::Upstream));
    }
    for (input, output, rule) in outputs {
        let ([_, _, height, width], x) = g.sized::<4>(input)?;
        let image = interpolated.then_some((height, width));
        let model = g.open(&Options { pos_rule: rule, image, ..g.open_options() })?;
        let y = g.run_frames(&*model, &x)?;
        g.check_scaled(output, &y, if model.info().parameters < 5_000_000 { TOL } else { 3.0 * TOL })?;
        if output == "__output__" && g.has("__tap__.features") {
            let options = Options { pos_rule: rule, image, output: Output::Features, ..g.open_options() };
            let y = g.run_frames(&*g.open(&options)?, &x)?;
            g.check_scaled("__tap__.features", &y, TOL)?;
        }
    }
    for pool in ["none", "max", "all", "mean"] {
        let name = format!("__output_pool_{pool}__");
        if g.has(&name) {
            let mut options = g.open_options();
            if let Some(Value::Object(model)) = options.config.as_mut().and_then(|c| c.get_mut("model")) {
                model.insert("final_pool_type".into(), pool.into());
            }
            let (_, x) = g.tensor("__input__")?;
            let y = g.run_frames(&*g.open(&options)?, &x)?;
            g.check_scaled(&name, &y, TOL)?;
        }
    }
    if g.has("__tap__.tokens") { taps(g) } else { Ok(()) }
}

/// What lies on the way of a golden file's frames.
fn taps(g: &mut Golden<'_>) -> Result<(), Error> {
    const TOL: f32 = 5e-5;
    if !g.has("__input__") {
        return Ok(());
    }
    let ([_, _, height, width], x) = g.sized::<4>("__input__")?;
    let image = g.config.get("source_img_size").is_some().then_some((height, width));
    let pos_rule = if g.has("__output__") { PosRule::Upstream } else { PosRule::MiddleAware };
    let model = Vim::load(g.weights(), &Options { image, pos_rule, ..g.open_options() })?;
    let each = model.info.input.len();
    let mut rows: Vec<Row> = x.chunks_exact(each).map(|x| Row { x: x.to_vec(), ..Row::new(&model, 1) }).collect();
    let known = g.names_with("__tap__.");
    let (cx, scratch) = g.bench();
    let (mut found, len) = (vec![], model.scratch_len(rows.len()));
    model.frame(cx, &mut rows, 0, scratch.take(len), None, |tap, values| {
        let name = match tap {
            Tap::Tokens => "__tap__.tokens".to_owned(),
            Tap::Hidden(i) => format!("__tap__.block{i}"),
            Tap::Residual(i) => format!("__tap__.block{i}.residual"),
            Tap::PatchEmbed | Tap::Features => return,
        };
        found.push((name, values.to_vec()));
    });
    found.iter().filter(|(name, _)| known.contains(name)).try_for_each(|(name, got)| g.check_scaled(name, got, TOL))
}
