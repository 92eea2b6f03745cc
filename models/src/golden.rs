//! Runs golden files: tensors made by the published code, with weights, inputs, outputs and states in one file.
//!
//! Names between double underscores are data (`__input__`, `__output__`, `__state__.layer0.ssm`, …), the others are
//! weights under their upstream names; the metadata's `config` holds the configuration.

use crate::checkpoint::Checkpoint;
use crate::engine::Device;
use crate::error::Error;
use crate::families::{FAMILIES, Family, Options, family, open_checkpoint};
use crate::model::{Model, Row, Scratch, Signal};
use crate::state::State;
use serde_json::Value;
use ssm_kernels::{CpuLevel, Cx};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How golden files are run.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Instruction level.
    pub level: CpuLevel,
    /// Threads.
    pub threads: usize,
    /// Tolerance in place of each family's own (absolute).
    pub tol: Option<f32>,
    /// Where models run. On a card a value may be off by 5e-4 of the largest, where the family's tolerance is tighter.
    pub device: Device,
    /// How the input of streaming families is cut.
    pub chunks: Chunks,
    /// Further folders with checkpoints that golden files name without holding them.
    pub search: Vec<PathBuf>,
}

/// How an input is cut into pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunks {
    /// Not at all.
    Whole,
    /// Into pieces of this length.
    Size(usize),
    /// At places drawn from this seed, empty and single steps among them.
    Random(u64),
}

/// What came of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything agrees.
    Pass,
    /// Something does not.
    Fail(String),
    /// The file cannot be judged, and why.
    Unsupported(String),
}

/// One file's result.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// File name.
    pub name: String,
    /// Family, or `?`.
    pub family: String,
    /// Largest difference, of the comparison that came closest to its tolerance (or exceeded it most).
    pub max_abs: f32,
    /// The tolerance of that comparison.
    pub tol: f32,
    /// Verdict.
    pub verdict: Verdict,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}  {}  max_abs={:.1e}  tol={:.1e}  ", self.name, self.family, self.max_abs, self.tol)?;
        match &self.verdict {
            Verdict::Pass => f.write_str("PASS"),
            Verdict::Fail(why) => write!(f, "FAIL {why}"),
            Verdict::Unsupported(why) => write!(f, "UNSUPPORTED({why})"),
        }
    }
}

/// What is left of nothing: kernels add far less to a state, so that it never fades away ([`ssm_kernels`]).
const NOTHING: f32 = 1e-12;

/// A golden file under way.
pub struct Golden<'a> {
    /// Inputs and expected outputs.
    data: &'a Checkpoint,
    /// Weights: the same file, or one that it names.
    weights: &'a Checkpoint,
    /// Configuration.
    pub(crate) config: Value,
    options: &'a VerifyOptions,
    cx: Cx,
    scratch: Scratch,
    random: u64,
    worst: (f32, f32),
    /// Whether the model that was opened last runs on a card.
    on_card: Cell<bool>,
    compared: usize,
    failed: Option<String>,
}

/// Runs one file.
pub fn verify(path: &Path, options: &VerifyOptions) -> Outcome {
    let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
    let mut outcome =
        Outcome { name, family: "?".into(), max_abs: 0.0, tol: 0.0, verdict: Verdict::Unsupported(String::new()) };
    outcome.verdict = match run(path, options, &mut outcome) {
        Ok(verdict) => verdict,
        Err(Error::Device { reason, .. }) => Verdict::Unsupported(reason),
        Err(error) => Verdict::Fail(error.to_string()),
    };
    outcome
}

fn run(path: &Path, options: &VerifyOptions, outcome: &mut Outcome) -> Result<Verdict, Error> {
    let data = Checkpoint::open(path)?;
    let parse = |file: &Checkpoint| {
        let text = file.metadata.get("config").map_or("{}", String::as_str);
        crate::config::parse(text).map_err(|e| Error::Config {
            file: path.display().to_string(),
            field: "config".into(),
            expected: "JSON".into(),
            got: e.to_string(),
        })
    };
    let config = parse(&data)?;
    let own = data.names().any(|n| !n.starts_with("__"));
    if let Some(op) = crate::golden_ops::find(&data, &config) {
        outcome.family = format!("op {}", op.name);
        if matches!(options.device, Device::Cuda(_)) {
            return Ok(Verdict::Unsupported("an op of the processor".into()));
        }
        let mut golden = Golden::new(&data, &data, config, options);
        (op.verify)(&mut golden)?;
        return Ok(golden.finish(outcome));
    }
    if !data.names().any(|n| n.starts_with("__")) {
        return twin(path, &data, options, outcome);
    }
    let other;
    let weights = if own {
        &data
    } else {
        match named_weights(path, &config, options)? {
            Ok(found) => {
                other = found;
                &other
            }
            Err(why) => return Ok(Verdict::Unsupported(why)),
        }
    };
    let Ok(family) = family(weights) else {
        return Ok(Verdict::Unsupported("no family knows these tensors".into()));
    };
    judge(family, &data, weights, config, options, outcome)
}

fn judge(
    family: &Family,
    data: &Checkpoint,
    weights: &Checkpoint,
    config: Value,
    options: &VerifyOptions,
    outcome: &mut Outcome,
) -> Result<Verdict, Error> {
    outcome.family = family.name.into();
    let mut golden = Golden::new(data, weights, config, options);
    (family.verify)(&mut golden)?;
    Ok(golden.finish(outcome))
}

/// A checkpoint without data: judged by the data of a golden file beside it that holds the same shapes, its own
/// namesake first.
fn twin(path: &Path, weights: &Checkpoint, options: &VerifyOptions, outcome: &mut Outcome) -> Result<Verdict, Error> {
    let Ok(family) = family(weights) else {
        return Ok(Verdict::Unsupported("no family knows these tensors".into()));
    };
    outcome.family = family.name.into();
    let model = open_checkpoint(weights, &Options { level: options.level, ..Options::default() });
    let namesake = path.with_extension("safetensors");
    let mut beside: Vec<PathBuf> = std::fs::read_dir(path.parent().unwrap_or(Path::new(".")))
        .map(|dir| dir.flatten().map(|e| e.path()).collect())
        .unwrap_or_default();
    beside.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
    beside.sort_by_key(|p| (*p != namesake, p.clone()));
    let mut first = None;
    for file in beside {
        let Ok(data) = Checkpoint::open(&file) else { continue };
        let same_family = FAMILIES.iter().find(|f| (f.detect)(&data)).is_some_and(|f| f.name == family.name);
        if !same_family || data.parameters() != weights.parameters() {
            continue;
        }
        let text = data.metadata.get("config").cloned().unwrap_or_default();
        let config = crate::config::parse(&text).unwrap_or(Value::Null);
        let mut trial = outcome.clone();
        // Networks of one shape may lie beside each other: the data of one of them fits.
        let judged = judge(family, &data, weights, config, options, &mut trial);
        if let Ok(Verdict::Pass) = judged {
            *outcome = trial;
            return judged;
        }
        first = first.or(Some((trial, judged)));
    }
    if let Some((trial, judged)) = first {
        *outcome = trial;
        return judged;
    }
    model.map(|_| Verdict::Unsupported("loads, but no golden file with the same weights lies beside it".into()))
}

/// The weights that a golden file names without holding them: a file beside it, or a checkpoint by SHA-256.
fn named_weights(path: &Path, config: &Value, options: &VerifyOptions) -> Result<Result<Checkpoint, String>, Error> {
    if let Some(name) = config.get("weights_from").and_then(Value::as_str) {
        return Ok(Ok(Checkpoint::open(&path.with_file_name(name))?));
    }
    let Some(name) = config.get("checkpoint").and_then(Value::as_str) else {
        return Ok(Err("the file holds no weights and names none".into()));
    };
    let base = Path::new(name).file_name().unwrap_or_default();
    let wanted = config.get("checkpoint_sha256").and_then(Value::as_str);
    // Where the caller says, then in folders `checkpoints` beside the file or above it.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let above = path.ancestors().skip(1).take(4).map(|folder| folder.join("checkpoints"));
    for folder in options.search.iter().cloned().chain(above) {
        for file in files_named(&folder, base, 2) {
            let file = Checkpoint::open(&file)?;
            if wanted.is_none_or(|h| h == file.sha256()) {
                return Ok(Ok(file));
            }
        }
    }
    Ok(Err(format!("checkpoint {name} not found; name its folder with --checkpoints or SSM_CHECKPOINTS")))
}

/// Files of a name in a folder and `depth` levels of folders below it.
fn files_named(folder: &Path, name: &std::ffi::OsStr, depth: usize) -> Vec<PathBuf> {
    let mut found = vec![folder.join(name)];
    found.retain(|f| f.is_file());
    if depth > 0 {
        let mut below: Vec<PathBuf> =
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        below.sort();
        found.extend(below.iter().filter(|p| p.is_dir()).flat_map(|p| files_named(p, name, depth - 1)));
    }
    found
}

impl<'a> Golden<'a> {
    fn new(data: &'a Checkpoint, weights: &'a Checkpoint, config: Value, options: &'a VerifyOptions) -> Self {
        let random = if let Chunks::Random(seed) = options.chunks { seed } else { 0 };
        Self {
            data,
            weights,
            config,
            options,
            cx: Cx::at(options.level, options.threads),
            scratch: Scratch::default(),
            random: random.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            worst: (0.0, 0.0),
            compared: 0,
            on_card: Cell::new(false),
            failed: None,
        }
    }

    fn finish(self, outcome: &mut Outcome) -> Verdict {
        (outcome.max_abs, outcome.tol) = self.worst;
        match self.failed {
            Some(why) => Verdict::Fail(why),
            None if matches!(self.options.device, Device::Cuda(_)) && !self.on_card.get() => {
                Verdict::Unsupported("nothing of it runs on a card".into())
            }
            None if self.compared == 0 => Verdict::Unsupported("nothing in the file could be compared".into()),
            None => Verdict::Pass,
        }
    }

    /// The file that holds the weights.
    pub(crate) fn weights(&self) -> &'a Checkpoint {
        self.weights
    }

    /// Where the kernels run.
    pub(crate) fn cx(&self) -> &Cx {
        &self.cx
    }

    /// Where the kernels run, and their working memory.
    pub(crate) fn bench(&mut self) -> (&Cx, &mut Scratch) {
        (&self.cx, &mut self.scratch)
    }

    /// Options to open the file's model with.
    pub(crate) fn open_options(&self) -> Options {
        Options { level: self.options.level, config: Some(self.config.clone()), ..Options::default() }
    }

    /// Opens the file's model.
    pub(crate) fn open(&self, options: &Options) -> Result<Arc<dyn Model>, Error> {
        self.place(open_checkpoint(self.weights, options)?)
    }

    /// Puts a model where it is to run.
    pub(crate) fn place(&self, model: Arc<dyn Model>) -> Result<Arc<dyn Model>, Error> {
        let model = self.options.device.place(model)?.model;
        self.on_card.set(model.device() != Device::Cpu);
        Ok(model)
    }

    /// Whether the file holds a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.data.shape(name).is_some()
    }

    /// Names that begin so.
    pub(crate) fn names_with(&self, prefix: &str) -> Vec<String> {
        self.data.names().filter(|n| n.starts_with(prefix)).map(str::to_owned).collect()
    }

    /// Shape and values of a tensor, whatever its number type.
    pub(crate) fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), Error> {
        let values = self.data.f32(name)?;
        Ok((self.data.shape(name).unwrap_or_default().to_vec(), values))
    }

    /// The sizes and values of a tensor that must have `N` dimensions.
    pub(crate) fn sized<const N: usize>(&self, name: &str) -> Result<([usize; N], Vec<f32>), Error> {
        let (shape, values) = self.tensor(name)?;
        let sizes = <[usize; N]>::try_from(&shape[..]);
        let got = || Error::Input { expected: format!("{name} with {N} dimensions"), got: format!("{shape:?}") };
        Ok((sizes.map_err(|_| got())?, values))
    }

    /// The values of a tensor that must have this shape.
    pub(crate) fn shaped(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let (got, values) = self.tensor(name)?;
        if got != shape {
            return Err(Error::Input { expected: format!("{name} {shape:?}"), got: format!("{got:?}") });
        }
        Ok(values)
    }

    /// As [`Golden::shaped`], where the file has the tensor.
    pub(crate) fn shaped_optional(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, Error> {
        if self.has(name) { self.shaped(name, shape).map(Some) } else { Ok(None) }
    }

    /// Values of a tensor in f64.
    pub(crate) fn f64(&self, name: &str) -> Result<Vec<f64>, Error> {
        Ok(self.data.f64(name)?)
    }

    /// A tensor of `u8`.
    pub(crate) fn bytes(&self, name: &str) -> Result<(Vec<usize>, Vec<u8>), Error> {
        let values = self.data.u8(name)?;
        Ok((self.data.shape(name).unwrap_or_default().to_vec(), values))
    }

    /// Compares `got` with the tensor `name`, or with its f64 form (`…_f64__`) where there is one, within `tol`.
    pub(crate) fn check(&mut self, name: &str, got: &[f32], tol: f32) -> Result<(), Error> {
        let want = self.data.f64(&self.exact(name))?;
        self.compare(&self.exact(name), got, &want, tol);
        Ok(())
    }

    /// The name of a tensor's f64 form, where there is one, else its own.
    fn exact(&self, name: &str) -> String {
        let exact = format!("{}_f64__", name.trim_end_matches('_'));
        if name.ends_with("__") && self.has(&exact) { exact } else { name.to_owned() }
    }

    /// As [`Golden::check`], within `tol` times the tensor's largest value.
    pub(crate) fn check_relative(&mut self, name: &str, got: &[f32], tol: f32) -> Result<(), Error> {
        let tol = (tol * largest(&self.data.f64(name)?)).max(NOTHING);
        self.check(name, got, tol)
    }

    /// As [`Golden::check`], within `tol`, or `tol` times the tensor's largest value where that is above 1.
    pub(crate) fn check_scaled(&mut self, name: &str, got: &[f32], tol: f32) -> Result<(), Error> {
        let want = self.data.f64(&self.exact(name))?;
        self.compare(&self.exact(name), got, &want, tol * largest(&want).max(1.0));
        Ok(())
    }

    /// Compares `got` with `want`.
    pub(crate) fn compare(&mut self, what: &str, got: &[f32], want: &[f64], tol: f32) {
        let tol = if self.on_card.get() { tol.max(5e-4 * largest(want)) } else { tol };
        let tol = self.options.tol.unwrap_or(tol);
        self.compared += 1;
        if want.iter().any(|w| !w.is_finite()) {
            self.failed.get_or_insert(format!("{what}: expected finite values in the file, got others"));
        }
        let diff = if got.len() == want.len() {
            got.iter().zip(want).fold(0f64, |m, (g, w)| {
                let d = (f64::from(*g) - w).abs();
                if d.is_nan() { f64::INFINITY } else { m.max(d) }
            }) as f32
        } else {
            self.failed.get_or_insert(format!("{what}: expected {} values, got {}", want.len(), got.len()));
            f32::INFINITY
        };
        if diff > tol {
            self.failed.get_or_insert(format!("{what}: off by {diff:.2e}, tolerance {tol:.1e}"));
        }
        if self.worst.1 == 0.0 || diff / tol > self.worst.0 / self.worst.1 {
            self.worst = (diff, tol);
        }
    }

    /// Compares every state tensor `{prefix}layerI.what` of batch row `row` with a stream's state. Convolution tails are
    /// compared in the columns that matter (upstream keeps one more, the oldest, which nothing reads again).
    pub(crate) fn check_state(
        &mut self,
        prefix: &str,
        model: &dyn Model,
        state: &State,
        row: usize,
        tol: f32,
    ) -> Result<(), Error> {
        self.compare_state(prefix, model, state, row, |_| tol)
    }

    /// As [`Golden::check_state`], within `tol` times each tensor's largest value.
    pub(crate) fn check_state_relative(
        &mut self,
        prefix: &str,
        model: &dyn Model,
        state: &State,
        row: usize,
        tol: f32,
    ) -> Result<(), Error> {
        self.compare_state(prefix, model, state, row, |want| (tol * largest(want)).max(NOTHING))
    }

    /// As [`Golden::check_state`], with the tolerance that `tol` gives for a tensor.
    pub(crate) fn compare_state(
        &mut self,
        prefix: &str,
        model: &dyn Model,
        state: &State,
        row: usize,
        tol: impl Fn(&[f64]) -> f32,
    ) -> Result<(), Error> {
        for name in self.names_with(prefix) {
            let Some((shape, got)) = model.upstream_state(state, &name[prefix.len()..]) else {
                self.failed.get_or_insert(format!("{name}: the family has no such state"));
                continue;
            };
            let want = self.data.f64(&name)?;
            let tol = tol(&want);
            let dims = self.data.shape(&name).unwrap_or_default().to_vec();
            let per_row = want.len() / dims.first().copied().unwrap_or(1).max(1);
            let want = want.get(row * per_row..(row + 1) * per_row).unwrap_or_default();
            let (cols, ours) = (dims.last().copied().unwrap_or(1).max(1), shape.last().copied().unwrap_or(1));
            if name.ends_with(".conv") && cols == ours + 1 {
                let want: Vec<f64> = want.chunks(cols).flat_map(|c| c[1..].iter().copied()).collect();
                self.compare(&name, &got, &want, tol);
            } else {
                self.compare(&name, &got, want, tol);
            }
        }
        Ok(())
    }

    /// Lengths that add up to `len`, as the chunk option says.
    pub(crate) fn cuts(&mut self, len: usize) -> Vec<usize> {
        let mut cuts = Vec::new();
        let mut left = len;
        while left > 0 {
            let n = match self.options.chunks {
                Chunks::Whole => left,
                Chunks::Size(n) => n.clamp(1, left),
                Chunks::Random(_) => {
                    self.random ^= self.random >> 12;
                    self.random ^= self.random << 25;
                    self.random ^= self.random >> 27;
                    let r = (self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize;
                    // A third single steps, some empty, the rest up to a quarter of the whole.
                    match r % 6 {
                        0 => 0,
                        1 | 2 => 1,
                        _ => (r / 6) % (len / 4 + 2),
                    }
                    .min(left)
                }
            };
            cuts.push(n);
            left -= n;
        }
        cuts
    }

    /// One forward pass.
    pub(crate) fn forward(&mut self, model: &dyn Model, rows: &mut [Row], len: usize) {
        if let Err(error) = model.run(&self.cx, rows, len, &mut self.scratch) {
            self.failed.get_or_insert(error.to_string());
        }
    }

    /// Frames of a batch through a frame-by-frame model, each a stream of its own, all in one pass.
    pub(crate) fn run_frames(&mut self, model: &dyn Model, x: &[f32]) -> Result<Vec<f32>, Error> {
        let n = model.info().input.len();
        if n == 0 || !x.len().is_multiple_of(n) {
            return Err(Error::Input { expected: format!("frames of {n} values"), got: format!("{} values", x.len()) });
        }
        let mut rows: Vec<Row> = x.chunks(n).map(|x| Row { x: x.to_vec(), ..Row::new(model, 1) }).collect();
        self.forward(model, &mut rows, 1);
        Ok(rows.into_iter().flat_map(|r| r.y).collect())
    }

    /// A stream through a model, cut as the options say: the output of its last step. What does not fill a step is left
    /// out.
    pub(crate) fn run_last(&mut self, model: &dyn Model, x: &[f32]) -> Vec<f32> {
        let (n, out) = (model.info().input.len().max(1), model.info().output.len());
        let steps = x.len() / n;
        let (mut rows, mut at, mut last) = ([Row::new(model, steps)], 0, vec![]);
        for len in self.cuts(steps) {
            rows[0].x[..len * n].copy_from_slice(&x[at * n..(at + len) * n]);
            self.forward(model, &mut rows, len);
            at += len;
            if len > 0 {
                last = rows[0].y[(len - 1) * out..len * out].to_vec();
            }
        }
        last
    }

    /// A clip through a model of samples, cut as the options say. `whole`: ended by [`Model::drain`], so that as many
    /// samples come out as went in; else what a running stream has given so far. Returns the state before the end.
    pub(crate) fn run_samples(
        &mut self,
        model: &dyn Model,
        x: &[f32],
        whole: bool,
    ) -> Result<(Vec<f32>, State), Error> {
        let Signal::Samples { hop, .. } = model.info().input else {
            return Err(Error::Input { expected: "a model of samples".into(), got: model.info().family.into() });
        };
        let hops = x.len() / hop;
        let mut row = Row::new(model, hops.max(1).max(model.drain_len().div_ceil(hop)));
        let (mut y, mut at) = (Vec::new(), 0);
        for n in self.cuts(hops) {
            let mut part = [row];
            part[0].x[..n * hop].copy_from_slice(&x[at * hop..(at + n) * hop]);
            self.forward(model, &mut part, n);
            [row] = part;
            y.extend_from_slice(&row.y[..n * hop]);
            at += n;
        }
        y.drain(..model.info().delay.min(y.len()));
        let state = row.state.clone();
        if whole {
            let rest = &x[hops * hop..];
            row.x[..rest.len()].copy_from_slice(rest);
            let n = model.drain(&self.cx, &mut row, rest.len(), &mut self.scratch);
            y.extend_from_slice(&row.y[..n]);
        }
        Ok((y, state))
    }
}

/// Largest magnitude.
pub(crate) fn largest<T: Copy + Into<f64>>(values: &[T]) -> f32 {
    values.iter().fold(0.0, |m: f64, v| m.max((*v).into().abs())) as f32
}

/// Runs the golden files of the repository whose names begin so, at every level, in several cuts.
///
/// # Panics
/// One does not pass.
#[cfg(test)]
pub(crate) fn pass(prefix: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let files: Vec<_> =
        files.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix))).collect();
    assert!(!files.is_empty(), "no golden file {prefix}*");
    for level in CpuLevel::present() {
        for chunks in [Chunks::Whole, Chunks::Size(1), Chunks::Random(3), Chunks::Random(4)] {
            for file in &files {
                let options =
                    VerifyOptions { level, threads: 2, tol: None, device: Device::Cpu, chunks, search: Vec::new() };
                let outcome = verify(file, &options);
                eprintln!("{level} {chunks:?}: {outcome}");
                assert_eq!(outcome.verdict, Verdict::Pass, "{level} {chunks:?}: {outcome}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// The tensors of a golden file as `edit` leaves them, judged.
    fn edited(name: &str, edit: impl FnOnce(&mut BTreeMap<String, (Vec<usize>, Vec<f32>)>, &mut Value)) -> Verdict {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/golden/{name}.safetensors"));
        let file = Checkpoint::open(&path).expect("it is there");
        let read = |n: &str| (file.shape(n).expect("a tensor").to_vec(), file.f32(n).expect("numbers"));
        let mut tensors: BTreeMap<_, _> = file.names().map(|n| (n.to_owned(), read(n))).collect();
        let mut config = crate::config::parse(&file.metadata["config"]).expect("JSON");
        edit(&mut tensors, &mut config);
        let bytes: BTreeMap<_, (Vec<usize>, Vec<u8>)> = tensors
            .into_iter()
            .map(|(n, (shape, values))| (n, (shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())))
            .collect();
        let views = bytes.iter().map(|(n, (shape, bytes))| {
            (n, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).expect("whole"))
        });
        let about = std::collections::HashMap::from([("config".to_owned(), config.to_string())]);
        let all = safetensors::serialize(views, Some(about)).expect("it is a file");
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let made = std::env::temp_dir().join(format!("ssm-golden-{}-{number}.safetensors", std::process::id()));
        std::fs::write(&made, all).expect("a temporary file");
        let (level, chunks) = (CpuLevel::best(), Chunks::Whole);
        let options = VerifyOptions { level, threads: 1, tol: None, device: Device::Cpu, chunks, search: Vec::new() };
        let outcome = verify(&made, &options);
        let _ = std::fs::remove_file(made);
        outcome.verdict
    }

    fn failed(verdict: &Verdict, said: &str) -> bool {
        matches!(verdict, Verdict::Fail(why) if why.contains(said))
    }

    #[test]
    fn each_clip_of_a_batch_is_one_by_itself() {
        let twice = |tensors: &mut BTreeMap<String, (Vec<usize>, Vec<f32>)>| {
            for (name, (shape, values)) in tensors.iter_mut().filter(|(n, _)| n.starts_with("__")) {
                let batch = name.starts_with("__state__") || shape.len() > 1;
                if batch {
                    shape[0] *= 2
                } else {
                    shape.insert(0, 2)
                }
                *values = values.repeat(2);
            }
        };
        assert_eq!(edited("cleanumamba_tiny", |t, _| twice(t)), Verdict::Pass);
        let wrong = edited("cleanumamba_tiny", |t, _| {
            twice(t);
            *t.get_mut("__output__").and_then(|o| o.1.last_mut()).expect("samples") += 0.01;
        });
        assert!(failed(&wrong, "__output__"), "{wrong:?}");
        let none = edited("cleanumamba_tiny", |t, _| _ = t.insert("__std__".into(), (vec![0], vec![])));
        assert!(failed(&none, "__std__ of each of 1 clips"), "{none:?}");
    }

    #[test]
    fn a_file_is_of_the_family_that_it_names() {
        // A frame of one channel without positions looks like Audio Mamba's.
        let named = edited("vim_train_style", |t, config| {
            _ = t.remove("layers.0.mixer.A_log");
            config["family"] = "vim".into();
        });
        assert!(failed(&named, "A_log") || failed(&named, "layers.0"), "{named:?}");
        assert_eq!(edited("vim_train_style", |_, _| {}), Verdict::Pass);
        let flat = edited("vim_train_style", |t, _| {
            let x = t.get_mut("__input__").expect("frames");
            x.0 = vec![x.1.len()];
        });
        assert!(failed(&flat, "__input__ with 4 dimensions"), "{flat:?}");
    }

    #[test]
    fn what_a_file_expects_must_be_numbers() {
        let endless = edited("s4d_zoh_tiny", |t, _| t.get_mut("__output__").expect("outputs").1[3] = f32::INFINITY);
        assert!(failed(&endless, "finite"), "{endless:?}");
    }

    #[test]
    fn a_part_that_is_missing_is_named() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
        for (name, missing, said) in [
            ("s4_dplr_legs_tiny", "layer.kernel.l_kernel", "layer.kernel.l_kernel"),
            ("s4_dplr_legs_tiny", "output_linear.", "output_linear.0.weight"),
            ("s4d_minimal_tiny", "output_linear.", "output_linear.0.weight"),
            ("s4d_classifier_tiny", "norms.1.", "norms.1.weight"),
            ("s4d_classifier_tiny", "norms.", "norms.0.weight"),
            (
                "moe_mamba_tiny",
                "encoder.blocks.block_1.block.residual_feedforward.",
                "block_1.block.residual_feedforward",
            ),
            ("moe_mamba_tiny", "encoder.blocks.block_2.", "n_blocks"),
            ("bst_sh_tiny", "layers.2.", "n_layers"),
            ("aum_fofo_tiny", "layers.2.", "depth"),
            ("cleanumamba_tiny", "tsfm_Mamba_layers.1.", "tsfm_n_layers"),
        ] {
            let open = |missing: &str| {
                let file = Checkpoint::open(&folder.join(format!("{name}.safetensors"))).expect("it is there");
                let config = file.metadata.get("config").map(|text| crate::config::parse(text).expect("JSON"));
                let all = file.names().count();
                let file = if missing.is_empty() { file } else { file.without(missing) };
                assert!(missing.is_empty() || file.names().count() < all, "{name} has no {missing}*");
                let weights = file.without("__");
                open_checkpoint(&weights, &Options { config, ..Options::default() }).err().map(|e| e.to_string())
            };
            assert_eq!(open(""), None, "{name}");
            let error = open(missing).unwrap_or_default();
            assert!(error.contains(said), "{name} without {missing}: {error:?}");
        }
    }
}
