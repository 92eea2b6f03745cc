//! The laws every family obeys, on random models, lengths and cuts.
//!
//! Split law: any cut of a stream gives the same bits. Snapshot law: a stream saved and restored goes on as if nothing
//! had been. Batch law: a row among others gives the same bits as the row alone.

use ssm_models::kernels::linear::Precision;
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Model, Output, Row, Scratch, Signal, Snapshot, SnapshotHeader};
use ssm_tests::Rng;
use ssm_tests::fabricate::FAMILIES;
use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

/// Models drawn per family.
const DRAWS: u64 = 12;

/// Input of `len` steps.
#[derive(Clone)]
struct Input {
    x: Vec<f32>,
    tokens: Vec<u32>,
    step: usize,
}

impl Input {
    fn random(rng: &mut Rng, model: &dyn Model, len: usize) -> Self {
        match model.info().input {
            Signal::Token { vocab } => {
                let tokens = (0..len).map(|_| rng.range(0, vocab - 1) as u32).collect();
                Self { x: vec![], tokens, step: 0 }
            }
            signal => Self { x: rng.normals(len * signal.len(), 0.5), tokens: vec![], step: signal.len() },
        }
    }

    fn load(&self, row: &mut Row, from: usize, len: usize) {
        if self.step == 0 {
            row.tokens[..len].copy_from_slice(&self.tokens[from..from + len]);
        } else {
            row.x[..len * self.step].copy_from_slice(&self.x[from * self.step..(from + len) * self.step]);
        }
    }
}

struct Bench {
    model: Arc<dyn Model>,
    cx: Cx,
    scratch: Scratch,
    len: usize,
}

impl Bench {
    /// Runs `input` from `row`'s state in the given pieces and returns the output.
    fn run(&mut self, row: Row, input: &Input, from: usize, cuts: &[usize]) -> (Row, Vec<f32>) {
        let (mut rows, mut y, mut at) = ([row], Vec::new(), from);
        for &n in cuts {
            input.load(&mut rows[0], at, n);
            self.model.forward(&self.cx, &mut rows, n, &mut self.scratch);
            y.extend_from_slice(&rows[0].y[..n * self.model.info().output.len()]);
            at += n;
        }
        let [row] = rows;
        (row, y)
    }

    fn row(&self) -> Row {
        Row::new(&*self.model, self.len)
    }
}

fn same(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}: lengths differ");
    if let Some(i) = a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits()) {
        panic!("{what}: value {i} of {} is {} against {}", a.len(), a[i], b[i]);
    }
}

/// Calls `law` with random models of every family, at every level of the machine, on one and on two threads.
fn each(seed: u64, law: impl Fn(&str, &mut Rng, &mut Bench)) {
    for (f, (name, draw)) in FAMILIES.iter().enumerate() {
        for i in 0..DRAWS {
            let mut rng = Rng::new(seed + 1000 * f as u64 + i);
            let mut fabricated = draw(&mut rng);
            // Every third gives its features or speech instead, where the family can.
            fabricated.options.output = match *name {
                "vim" | "vmamba" | "aum" | "band_mask" | "composite" if i % 6 == 2 => Output::Features,
                "band_mask" if fabricated.tensors.contains_key("vad.weight") && i % 2 == 1 => Output::Speech,
                _ => Output::Task,
            };
            // Every fourth in a lower precision, where the family has one; a mixer alone has not.
            let alone = fabricated.tensors.contains_key("in_proj.weight");
            if matches!(*name, "vim" | "vmamba" | "mamba" | "mamba2") && !alone && i % 4 == 3 {
                fabricated.options.precision = if i % 8 == 3 { Precision::Bf16 } else { Precision::Int8 };
            }
            let levels: Vec<CpuLevel> = CpuLevel::present().collect();
            let (level, threads) = (levels[i as usize % levels.len()], 1 + i as usize / 2 % 2);
            let model = fabricated.open(level).unwrap_or_else(|e| panic!("{name} {i}: {e}"));
            assert_eq!(model.info().family, *name, "draw {i}");
            let len = match model.info().input {
                Signal::Image { .. } => rng.range(1, 5),
                _ => rng.range(1, 60),
            };
            let mut bench = Bench { model, cx: Cx::at(level, threads), scratch: Scratch::default(), len };
            // A family may stand in the list more than once.
            law(&format!("{name} ({f}) draw {i} at {level} on {threads} threads, {len} steps"), &mut rng, &mut bench);
        }
    }
}

#[test]
fn any_cut_gives_the_same_bits() {
    each(1, |what, rng, b| {
        let input = Input::random(rng, &*b.model, b.len);
        let (end, whole) = b.run(b.row(), &input, 0, &[b.len]);
        assert!(whole.iter().all(|v| v.is_finite()), "{what}: output is not finite");
        for cuts in [rng.cuts(b.len), vec![1; b.len]] {
            let (row, y) = b.run(b.row(), &input, 0, &cuts);
            same(&format!("{what}, cut {cuts:?}, output"), &whole, &y);
            same(&format!("{what}, cut {cuts:?}, state"), &end.state.data, &row.state.data);
            assert_eq!(end.state.steps, row.state.steps, "{what}: steps");
        }
    });
}

#[test]
fn a_restored_stream_goes_on_as_if_nothing_had_been() {
    each(2, |what, rng, b| {
        let input = Input::random(rng, &*b.model, b.len);
        let cut = rng.range(0, b.len);
        let (row, head) = b.run(b.row(), &input, 0, &[cut]);
        let header = SnapshotHeader::default();
        let saved = Snapshot { states: vec![row.state.clone()], pending: vec![], header }
            .save(b.model.info(), b.model.layout())
            .expect("a state can be saved");
        let mut restored = Snapshot::load(&saved, b.model.info(), b.model.layout()).expect("it is the same model's");
        let state = restored.states.pop().expect("one stream was saved");
        let (end, tail) = b.run(Row { state, ..b.row() }, &input, cut, &[b.len - cut]);
        let (want_end, want) = b.run(b.row(), &input, 0, &[b.len]);
        same(&format!("{what}, restored at {cut}, output"), &want, &[head, tail].concat());
        same(&format!("{what}, restored at {cut}, state"), &want_end.state.data, &end.state.data);
    });
}

/// Runs itself as a second process, which has nothing of the first but files: the saved states.
#[test]
fn another_process_goes_on_to_the_bit() {
    const FOLDER: &str = "SSM_TEST_HAND_OVER";
    let child = std::env::var_os(FOLDER).map(PathBuf::from);
    let folder = child.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("hand-over"));
    if child.is_none() {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("room for files");
    }
    let bits = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let wanted = RefCell::new(Vec::new());
    each(6, |what, rng, b| {
        let name: String = what.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        let (saved, out) = (folder.join(format!("{name}.state")), folder.join(format!("{name}.out")));
        let input = Input::random(rng, &*b.model, b.len);
        let cut = rng.range(0, b.len);
        if child.is_some() {
            let bytes = std::fs::read(&saved).expect("the first process left a state");
            let mut found = Snapshot::load(&bytes, b.model.info(), b.model.layout()).expect("it is the same model's");
            let state = found.states.pop().expect("one stream was saved");
            let (end, tail) = b.run(Row { state, ..b.row() }, &input, cut, &[b.len - cut]);
            std::fs::write(&out, [bits(&tail), bits(&end.state.data)].concat()).expect("room for files");
            return;
        }
        let (row, _) = b.run(b.row(), &input, 0, &[cut]);
        let snapshot = Snapshot { states: vec![row.state.clone()], pending: vec![], header: SnapshotHeader::default() };
        let bytes = snapshot.save(b.model.info(), b.model.layout()).expect("a state can be saved");
        std::fs::write(&saved, bytes).expect("room for files");
        let (end, tail) = b.run(row, &input, cut, &[b.len - cut]);
        wanted.borrow_mut().push((what.to_owned(), out, [bits(&tail), bits(&end.state.data)].concat()));
    });
    if child.is_some() {
        return;
    }
    let second = Command::new(std::env::current_exe().expect("this test has a file"))
        .args(["--exact", "another_process_goes_on_to_the_bit"])
        .env(FOLDER, &folder)
        .output()
        .expect("a second process");
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stdout));
    for (what, out, want) in wanted.into_inner() {
        assert!(std::fs::read(&out).is_ok_and(|got| got == want), "{what}: the second process has other bits");
    }
    std::fs::remove_dir_all(&folder).expect("the files are ours");
}

#[test]
fn a_row_in_a_batch_equals_the_row_alone() {
    each(3, |what, rng, b| {
        // Rows that already have a past of their own.
        let mut rows: Vec<Row> = (0..3)
            .map(|_| {
                let past = Input::random(rng, &*b.model, b.len);
                let n = rng.range(0, b.len);
                b.run(b.row(), &past, 0, &[n]).0
            })
            .collect();
        let inputs: Vec<Input> = rows.iter().map(|_| Input::random(rng, &*b.model, b.len)).collect();
        let mut alone = Vec::new();
        for (row, input) in rows.iter_mut().zip(&inputs) {
            input.load(row, 0, b.len);
            let copy = Row { state: row.state.clone(), rate: row.rate, ..b.row() };
            alone.push(b.run(copy, input, 0, &[b.len]));
        }
        b.model.forward(&b.cx, &mut rows, b.len, &mut b.scratch);
        for (i, (row, (want, y))) in rows.iter().zip(&alone).enumerate() {
            same(&format!("{what}, row {i}, output"), y, &row.y[..y.len()]);
            same(&format!("{what}, row {i}, state"), &want.state.data, &row.state.data);
        }
    });
}

#[test]
fn a_reset_stream_is_a_fresh_one_and_no_gap_is_nothing() {
    each(4, |what, rng, b| {
        let input = Input::random(rng, &*b.model, b.len);
        let (_, fresh) = b.run(b.row(), &input, 0, &[b.len]);
        let (mut row, _) = b.run(b.row(), &input, 0, &[b.len]);
        row.state.reset();
        let (mut row, again) = b.run(row, &input, 0, &[b.len]);
        same(&format!("{what}, after a reset"), &fresh, &again);
        let before = row.state.data.to_vec();
        b.model.gap(&mut row.state, 0.0);
        same(&format!("{what}, after a gap of nothing"), &before, &row.state.data);
        b.model.gap(&mut row.state, 1e9);
        assert!(row.state.data.iter().all(|v| v.is_finite()), "{what}: a long gap left a value that is not finite");
    });
}

#[test]
fn another_models_snapshot_is_refused() {
    let mut rng = Rng::new(5);
    for (name, draw) in FAMILIES {
        let level = CpuLevel::best();
        let (a, b) = (draw(&mut rng).open(level).expect("opens"), draw(&mut rng).open(level).expect("opens"));
        let state = Row::new(&*a, 1).state;
        let saved = Snapshot { states: vec![state], pending: vec![], header: SnapshotHeader::default() };
        let bytes = saved.save(a.info(), a.layout()).expect("a state can be saved");
        assert!(Snapshot::load(&bytes, b.info(), b.layout()).is_err(), "{name}: took another model's state");
        for cut in [0, 7, 8, bytes.len() / 2, bytes.len().saturating_sub(1)] {
            assert!(Snapshot::load(&bytes[..cut], a.info(), a.layout()).is_err(), "{name}: took {cut} bytes");
        }
    }
}
