//! Networks on a driver that runs the kernels on this processor: golden files, the split law, batches, states that come
//! and go.

use gst::prelude::*;
use ssm_kernels::cuda::{Card, CardError};
use ssm_kernels::linear::Precision;
use ssm_kernels::{CpuLevel, Cx};
use ssm_models::golden::{Chunks, Verdict, VerifyOptions, verify};
use ssm_models::{Device, Engine, Error, Model, OnCard, Options, Row, Scratch, Snapshot, open};
use ssm_runner::{Driver, SCHEDULES};
use ssm_tests::element::{self, Folder};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn driver() -> Driver {
    Driver::new(SCHEDULES[0], 1 << 30)
}

/// Passes each file on the card, whole and cut.
fn pass(files: &[&str]) {
    for (order, file) in files.iter().enumerate() {
        let driver = Driver::new(SCHEDULES[order % SCHEDULES.len()], 1 << 30);
        for chunks in [Chunks::Whole, Chunks::Random(3)] {
            let before = driver.launches();
            let options = VerifyOptions {
                level: CpuLevel::best(),
                threads: 1,
                tol: None,
                device: Device::Cuda(0),
                chunks,
                search: Vec::new(),
            };
            let outcome = verify(&golden(file), &options);
            eprintln!("{chunks:?}: {outcome}");
            assert_eq!(outcome.verdict, Verdict::Pass, "{chunks:?}: {outcome}");
            assert!(driver.launches() > before, "{file}: it ran on the card");
        }
        assert_eq!(driver.objects(), 0, "{file}: nothing is left on the card");
    }
}

#[test]
fn vim_golden_files_pass() {
    pass(&[
        "vim_tiny_cfg_a.safetensors",
        "vim_carry_cfg_a.safetensors",
        "vim_meanpool_rect_cfg_c.safetensors",
        "vim_headcls_cfg_d.safetensors",
        "vim_doublecls_cfg_e.safetensors",
    ]);
}

#[test]
fn vmamba_golden_files_pass() {
    pass(&[
        "vmamba_variant_no_conv.safetensors",
        "vmamba_variant_v051d_unidi.safetensors",
        "vmamba_v052d_bidi_cfg_e.safetensors",
        "vmamba_variant_ondwconv3.safetensors",
        "vmamba_variant_oncnorm.safetensors",
        "vmamba_variant_onsigmoid.safetensors",
        "vmamba_variant_onnone_posembed.safetensors",
        "vmamba_variant_v0seq.safetensors",
    ]);
}

#[test]
fn composite_golden_files_pass() {
    pass(&[
        "composite_conv_mamba.safetensors",
        "composite_similarity.safetensors",
        "composite_core_mamba2.safetensors",
        "composite_core_moe_mamba.safetensors",
        "composite_shots.safetensors",
    ]);
}

#[test]
fn moe_mamba_golden_files_pass() {
    pass(&["moe_mamba_tiny.safetensors", "moe_mamba_parallel_top2.safetensors", "moe_mamba_router_geglu.safetensors"]);
}

#[test]
fn band_mask_golden_files_pass() {
    pass(&[
        "band_mask_tiny.safetensors",
        "band_mask_denoise.safetensors",
        "band_mask_mamba.safetensors",
        "band_mask_mamba2.safetensors",
        "band_mask_s4d.safetensors",
        "band_mask_moe_mamba.safetensors",
    ]);
}

#[test]
fn s4_golden_files_pass() {
    pass(&[
        "s4d_zoh_tiny.safetensors",
        "s4d_bilinear_shared_tiny.safetensors",
        "s4d_real_tiny.safetensors",
        "s4d_untied_tiny.safetensors",
        "s4d_minimal_tiny.safetensors",
        "s4_dplr_legs_tiny.safetensors",
        "s4_dplr_legt_rank2_tiny.safetensors",
        "s4_dplr_shared_tiny.safetensors",
    ]);
}

#[test]
fn mamba_golden_files_pass() {
    pass(&[
        "mamba_lm_tiny_hf.safetensors",
        "mamba_lm_bias_untied_hf.safetensors",
        "mamba_lm_layernorm_mlp.safetensors",
        "mamba_block_tiny.safetensors",
    ]);
}

#[test]
fn mamba2_golden_files_pass() {
    pass(&[
        "mamba2_lm_tiny_hf.safetensors",
        "mamba2_lm_groups_mlp.safetensors",
        "mamba2_lm_groups_hf.safetensors",
        "mamba2_lm_limit_hf.safetensors",
        "mamba2_block_mlp_skips.safetensors",
        "mamba2_block_gated_only.safetensors",
        "mamba2_block_norm_first.safetensors",
    ]);
}

/// A model on the card, and on the processor.
fn both(file: &str, options: &Options) -> (Arc<dyn Model>, Arc<dyn Model>) {
    let here = open(&golden(file).display().to_string(), options).expect("a model");
    let there = Device::Cuda(0).place(here.clone()).expect("a network for cards").model;
    assert_eq!((there.device(), here.device()), (Device::Cuda(0), Device::Cpu));
    (there, here)
}

/// A stream's input.
fn row(model: &dyn Model, len: usize, seed: u32) -> Row {
    let mut row = Row::new(model, len);
    let wave = |i: usize| ((i as f32 * 0.37 + seed as f32) * 1.7).sin();
    row.x.iter_mut().enumerate().for_each(|(i, v)| *v = wave(i));
    row.tokens.iter_mut().enumerate().for_each(|(i, t)| *t = (i as u32 * 7 + seed) % 11);
    row
}

fn run(model: &dyn Model, rows: &mut [Row], len: usize) {
    model.run(&Cx::at(CpuLevel::best(), 1), rows, len, &mut Scratch::default()).expect("nothing goes wrong");
}

#[track_caller]
fn close(what: &str, got: &[f32], want: &[f32]) {
    let size = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    let off = got.iter().zip(want).fold(0f32, |m, (g, w)| m.max((g - w).abs()));
    assert!(got.len() == want.len() && off <= 5e-4 * size, "{what}: off by {off}, largest {size}");
}

/// The steps of `row` in pieces.
fn cut(model: &dyn Model, row: &Row, pieces: &[usize]) -> Row {
    let (n, out) = (model.info().input.len(), model.info().output.len());
    let (mut state, mut at, mut y) = (row.state.clone(), 0, Vec::new());
    for len in pieces {
        let mut part = [Row::new(model, *len)];
        part[0].state = state;
        match row.tokens.is_empty() {
            true => part[0].x.copy_from_slice(&row.x[at * n..(at + len) * n]),
            false => part[0].tokens.copy_from_slice(&row.tokens[at..at + len]),
        }
        run(model, &mut part, *len);
        y.extend_from_slice(&part[0].y[..len * out]);
        let [done] = part;
        (state, at) = (done.state, at + len);
    }
    Row { state, y, ..Row::new(model, 0) }
}

#[test]
fn a_stream_on_the_card_may_be_cut_anywhere_and_is_the_processors() {
    let driver = driver();
    let carry = Options { carry: true, ..Options::default() };
    for (file, options) in [
        ("mamba_lm_tiny_hf.safetensors", Options::default()),
        ("vim_tiny_cfg_a.safetensors", carry),
        ("s4_dplr_legs_tiny.safetensors", Options::default()),
        ("moe_mamba_tiny.safetensors", Options::default()),
        ("composite_similarity.safetensors", Options::default()),
    ] {
        let (there, here) = both(file, &options);
        let input = row(&*there, 9, 3);
        let mut whole = [Row { state: input.state.clone(), ..row(&*there, 9, 3) }];
        run(&*here, &mut whole, 9);
        for pieces in [&[9][..], &[1; 9], &[0, 4, 0, 1, 3, 1]] {
            let got = cut(&*there, &input, pieces);
            close(&format!("{file}, {pieces:?}"), &got.y, &whole[0].y);
            close(&format!("{file}, {pieces:?}, state"), &got.state.clone().data, &whole[0].state.data);
            assert_eq!(got.state.steps, 9);
        }
    }
    assert_eq!(driver.objects(), 0);
}

#[test]
fn streams_in_a_batch_come_and_go_and_do_not_meet() {
    let driver = driver();
    {
        let (there, here) = both("mamba_lm_tiny_hf.safetensors", &Options::default());
        let alone = |seed: u32, steps: usize| {
            let mut row = [row(&*here, steps, seed)];
            run(&*here, &mut row, steps);
            row
        };
        // More streams than the pool begins with, in another order each time.
        let mut rows: Vec<Row> = (0..13).map(|seed| row(&*there, 2, seed)).collect();
        run(&*there, &mut rows, 2);
        rows.reverse();
        drop(rows.split_off(9));
        let used = driver.used();
        for seed in [20, 21] {
            rows.push(row(&*there, 2, seed));
        }
        rows[8].state.reset();
        rows[1].rate = 2.0;
        let second: Vec<Vec<u32>> = rows.iter().map(|r| r.tokens.clone()).collect();
        run(&*there, &mut rows, 2);
        assert_eq!(driver.used(), used, "slots are used again");
        for (i, (row, seed)) in rows.iter().zip([12, 11, 10, 9, 8, 7, 6, 5, 4, 20, 21]).enumerate() {
            let mut want = alone(seed, 2);
            if i < 8 {
                want[0].tokens.copy_from_slice(&second[i]);
                want[0].rate = row.rate;
                run(&*here, &mut want, 2);
            }
            close(&format!("stream {i}"), &row.y, &want[0].y);
            close(&format!("stream {i}, state"), &row.state.clone().data, &want[0].state.data);
        }
    }
    assert_eq!(driver.objects(), 0);
}

#[test]
fn a_state_changed_here_goes_to_the_card_and_comes_back() {
    let _driver = driver();
    let (there, here) = both("mamba_lm_tiny_hf.safetensors", &Options::default());
    let (mut a, mut b) = ([row(&*there, 3, 1)], [row(&*here, 3, 1)]);
    for (model, row) in [(&there, &mut a), (&here, &mut b)] {
        run(&**model, row, 3);
        model.gap(&mut row[0].state, 2.5);
        run(&**model, row, 3);
    }
    close("after a gap", &a[0].y, &b[0].y);
    a[0].state.settle().expect("the card gives it back");
    close("settled", &a[0].state.data, &b[0].state.data);
    // Of another model's card: it moves.
    let (other, _) = both("mamba_lm_tiny_hf.safetensors", &Options::default());
    run(&*other, &mut a, 3);
    run(&*here, &mut b, 3);
    close("on another card", &a[0].y, &b[0].y);
    a[0].state.reset();
    run(&*other, &mut a, 3);
    let mut fresh = [row(&*here, 3, 1)];
    run(&*here, &mut fresh, 3);
    close("after a reset", &a[0].y, &fresh[0].y);
}

#[test]
fn what_comes_again_is_replayed() {
    let driver = driver();
    let (there, _) = both("mamba_lm_tiny_hf.safetensors", &Options::default());
    let mut rows = [row(&*there, 2, 1)];
    let mut seen = Vec::new();
    let card = there.card().expect("it runs on a card");
    for _ in 0..4 {
        let before = (card.launches(), driver.launches());
        rows[0].state.reset();
        run(&*there, &mut rows, 2);
        seen.push((card.launches() - before.0, driver.launches() - before.1, rows[0].y.clone()));
    }
    assert!(seen[0].0 > 10 && seen[0].0 as usize == seen[0].1, "what is counted has run");
    assert!(seen.iter().all(|s| *s == seen[0]), "a graph does what its launches did");
    // A larger pass moves the buffers, more streams the pool: graphs that know the old ones are not used again.
    for (streams, len) in [(1, 40), (13, 2)] {
        let mut others: Vec<Row> = (0..streams).map(|seed| row(&*there, len, seed)).collect();
        run(&*there, &mut others, len);
        for _ in 0..3 {
            rows[0].state.reset();
            run(&*there, &mut rows, 2);
            assert_eq!(rows[0].y, seen[0].2, "after {streams} streams of {len} steps");
        }
    }
}

#[test]
fn lower_precision_is_close() {
    let driver = driver();
    let options = Options { precision: Precision::Bf16, ..Options::default() };
    for file in ["vim_tiny_cfg_a.safetensors", "mamba_lm_tiny_hf.safetensors"] {
        let (there, here) = both(file, &options);
        let (mut a, mut b) = ([row(&*there, 1, 1)], [row(&*here, 1, 1)]);
        run(&*there, &mut a, 1);
        run(&*here, &mut b, 1);
        let size = b[0].y.iter().fold(0f32, |m, v| m.max(v.abs()));
        let off = a[0].y.iter().zip(&b[0].y).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        // Rounding to 8 bits in some places more than on the processor.
        assert!(off > 0.0 && off < 0.05 * size, "{file}: off by {off}, largest {size}");
    }
    assert_eq!(driver.objects(), 0);
}

#[test]
fn what_a_card_cannot_do_is_an_error() {
    let driver = Driver::new(SCHEDULES[0], 100_000);
    let file = golden("mamba_lm_tiny_hf.safetensors").display().to_string();
    let model = open(&file, &Options::default()).expect("a model");
    let error = Device::Cuda(0).place(model.clone()).err().expect("no room").to_string();
    assert!(error.contains("cuda:0") && error.contains("out of memory"), "{error}");
    let placed = Device::Auto.place(model.clone()).expect("the processor");
    assert!(placed.model.device() == Device::Cpu && placed.note.is_some_and(|n| n.contains("out of memory")));
    let error = Device::Cuda(1).place(model.clone()).err().expect("one card").to_string();
    assert!(error.contains("no card 1"), "{error}");
    drop(driver);

    let driver = Driver::new(SCHEDULES[0], 1 << 30);
    let other = open(&golden("bst_sh_tiny.safetensors").display().to_string(), &Options::default()).expect("a model");
    let error = Device::Cuda(0).place(other.clone()).err().expect("not on cards").to_string();
    assert!(error.contains("bst") && error.contains("device=cpu"), "{error}");
    assert!(Device::Auto.place(other).expect("the processor").note.is_some());
    let auto = Device::Auto.place(model.clone()).expect("the card");
    assert!(auto.model.device() == Device::Cuda(0) && auto.note.is_none());
    let cpu = Device::Cpu.place(model.clone()).expect("the processor");
    assert_eq!(cpu.model.device(), Device::Cpu);
    drop((auto, cpu));

    // Room for the weights, not for what a pass needs.
    let card = Card::open(0).expect("a card");
    let there = OnCard::new(card, model).expect("room").expect("a network");
    let tight = driver.used() + 1000;
    driver.limit(tight);
    let mut rows = [row(&there, 50, 1)];
    let error = there.run(&Cx::at(CpuLevel::best(), 1), &mut rows, 50, &mut Scratch::default());
    assert!(matches!(error, Err(Error::Card(CardError::OutOfMemory { .. }))), "{error:?}");
    driver.limit(1 << 30);
    run(&there, &mut rows, 50);
    drop((rows, there));
    assert_eq!(driver.objects(), 0);
}

/// Lines of `ssmclassify` on a device, and the device that it says it runs on.
fn classified(folder: &Folder, model: &str, device: &str) -> (Vec<Vec<(u64, f64)>>, String) {
    let out = folder.file(&format!("{device}.jsonl"));
    let found = element::run(&format!(
        "videotestsrc num-buffers=4 pattern=ball ! video/x-raw,format=RGB,width=40,height=30,framerate=10/1 ! \
         ssmclassify model={model} device={device} ! ssmjson ! filesink location={out}"
    ));
    let said = found.iter().find(|s| s.name() == "ssm-model").expect("a message");
    let device = said.get::<String>("device").expect("a device");
    let text = std::fs::read_to_string(&out).expect("the file is there");
    let class = |c: &serde_json::Value| (c["index"].as_u64().expect("an index"), c["score"].as_f64().expect("a score"));
    let line = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        line["classes"].as_array().expect("classes").iter().map(class).collect()
    };
    (text.lines().map(line).collect(), device)
}

#[test]
fn an_element_gives_on_the_card_what_it_gives_on_the_processor() {
    let driver = driver();
    let folder = Folder::new("card");
    let (_, path) = folder.model("vim", 1);
    let (want, here) = classified(&folder, &path, "cpu");
    assert_eq!((want.len(), &*here, driver.launches()), (4, "cpu", driver.launches()));
    for device in ["cuda", "auto"] {
        let before = driver.launches();
        let (got, there) = classified(&folder, &path, device);
        assert_eq!((got.len(), &*there), (4, "cuda:0"), "{device}");
        assert!(driver.launches() > before, "{device}: it ran on the card");
        for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
            assert!(got.0 == want.0 && (got.1 - want.1).abs() < 5e-4, "{device}: {got:?}, {want:?}");
        }
    }
    // Of a family that is for the processor only.
    let (_, audio) = folder.model("cleanumamba", 1);
    let line = format!("audiotestsrc num-buffers=2 ! audio/x-raw,rate=16000 ! ssmdenoise model={audio} ! fakesink");
    let found = element::run(&line);
    let said = found.iter().find(|s| s.name() == "ssm-model").expect("a message");
    assert_eq!(said.get::<String>("device").as_deref(), Ok("cpu"));
    assert!(said.get::<String>("device-note").is_ok_and(|note| note.contains("cleanumamba")), "{said}");
    let element = element::make("ssmdenoise", &[("model", &*audio), ("device", "cuda:0")]);
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    assert!(element.set_state(gst::State::Ready).is_err());
    let text = element::complaint(&bus, gst::MessageType::Error);
    assert!(text.contains("cuda:0") && text.contains("device=cpu"), "{text}");
    element.set_state(gst::State::Null).expect("back to NULL");
    drop(element);
    assert_eq!(driver.objects(), 0, "elements leave nothing on the card");
}

#[test]
fn a_card_without_memory_ends_the_pass_not_the_process() {
    let driver = driver();
    let (there, _) = both("mamba_lm_tiny_hf.safetensors", &Options::default());
    let engine = Engine::start(there, Cx::at(CpuLevel::best(), 1), 4, Duration::ZERO);
    let mut stream = engine.stream(64);
    stream.run(2).expect("room");
    driver.limit(driver.used());
    let error = stream.run(64).expect_err("no room").to_string();
    assert!(error.contains("out of memory on the card"), "{error}");
    assert_eq!(stream.state().steps, 0, "the stream is a fresh one");
    driver.limit(1 << 30);
    stream.run(64).expect("room again");
    assert_eq!((engine.device(), stream.state().steps), ((Device::Cuda(0), None), 64));
    assert!(engine.card().0 > 0 && engine.card().1 as usize == driver.used());
    drop((stream, engine));
    assert_eq!(driver.objects(), 0);
}

#[test]
fn a_snapshot_moves_between_card_and_processor() {
    let driver = driver();
    let (there, here) = both("mamba_lm_tiny_hf.safetensors", &Options::default());
    let engines = [&there, &here].map(|m| Engine::start(m.clone(), Cx::at(CpuLevel::best(), 1), 4, Duration::ZERO));
    let input = row(&*here, 8, 5);
    let mut whole = [row(&*here, 8, 5)];
    run(&*here, &mut whole, 8);
    let classes = here.info().output.len();
    for (from, to) in [(0, 1), (1, 0)] {
        let mut first = engines[from].stream(8);
        first.row().tokens.copy_from_slice(&input.tokens);
        first.run(5).expect("runs");
        let states = vec![first.state().clone()];
        let (info, layout) = (here.info(), here.layout());
        let saved = Snapshot { states, pending: vec![], header: Default::default() }.save(info, layout).expect("bytes");
        let mut second = engines[to].stream(8);
        second.row().tokens[..3].copy_from_slice(&input.tokens[5..]);
        *second.state() = Snapshot::load(&saved, info, layout).expect("of this model").states.remove(0);
        second.run(3).expect("runs");
        close(&format!("from {from} to {to}"), &second.row().y[..3 * classes], &whole[0].y[5 * classes..]);
        assert_eq!(second.state().steps, 8);
    }
    drop((engines, there));
    assert_eq!(driver.objects(), 0);
}
