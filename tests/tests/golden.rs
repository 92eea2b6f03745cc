//! Every golden file of the repository, at every level of this machine, whole and cut, on one and on two threads.

use ssm_models::Device;
use ssm_models::golden::{Chunks, Verdict, VerifyOptions, verify};
use ssm_models::kernels::CpuLevel;
use std::path::{Path, PathBuf};

/// Golden files there are at least, and those of them that need published checkpoints.
const FILES: usize = 110;
const SKIPPED: usize = 4;

fn files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(ssm_tests::golden())
        .expect("tests/golden is there")
        .map(|e| e.expect("a readable folder").path())
        .filter(|p| p.extension().is_some_and(|e| e != "md"))
        .collect();
    files.sort();
    files
}

/// Where the published checkpoints that must not be copied into the repository may lie.
fn checkpoints() -> PathBuf {
    std::env::var_os("SSM_CHECKPOINTS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/checkpoints/audio"), PathBuf::from)
}

fn run(level: CpuLevel, threads: usize, chunks: Chunks) {
    let options = VerifyOptions { level, threads, tol: None, device: Device::Cpu, chunks, search: vec![checkpoints()] };
    let (mut passed, mut bad) = (0, Vec::new());
    for file in files() {
        let outcome = verify(&file, &options);
        match &outcome.verdict {
            Verdict::Pass => passed += 1,
            Verdict::Unsupported(why) if why.contains("not found") && !checkpoints().is_dir() => {
                println!("SKIP {}: {why}", outcome.name);
            }
            _ => bad.push(outcome.to_string()),
        }
    }
    assert!(bad.is_empty(), "at {level}, {threads} threads, {chunks:?}:\n{}", bad.join("\n"));
    assert!(passed + SKIPPED >= FILES, "only {passed} files passed, of {FILES}");
}

#[test]
fn whole_at_every_level() {
    for level in CpuLevel::present() {
        run(level, 1, Chunks::Whole);
    }
}

#[test]
fn cut_at_random_on_two_threads() {
    for (seed, level) in CpuLevel::present().enumerate() {
        run(level, 2, Chunks::Random(seed as u64 + 1));
    }
}

#[test]
fn step_by_step() {
    run(CpuLevel::best(), 1, Chunks::Size(1));
}
