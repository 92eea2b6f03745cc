//! The test of the tests: the runner finds mistakes planted in `planted.cu`, and nothing in the same without them.

use crate::machine::{Memory, every_schedule, launch};
use crate::testing::Rng;
use ssm_kernels::cuda::{Launch, Ptr};

#[repr(C)]
#[derive(Clone, Copy)]
struct Args {
    x: Ptr,
    y: Ptr,
    n: u32,
}

/// What the runner says of a planted kernel over `n` values in blocks of 128 threads.
fn run(kernel: &'static str, n: usize) -> Result<Vec<f32>, String> {
    let x = Rng::new(1).vec(n).iter().map(|v| v * v.exp2()).collect::<Vec<_>>();
    let outputs = every_schedule(|schedule| {
        let (x, y) = (Memory::new(schedule, &x), Memory::new(schedule, &vec![0f32; n]));
        let l = Launch { kernel, grid: [n.div_ceil(128) as u32, 1, 1], block: 128, shared: 512 };
        launch(schedule, &l, &Args { x: x.ptr(), y: y.ptr(), n: n as u32 })?;
        Ok(vec![y.read()])
    })?;
    let y = outputs.concat();
    match y.iter().position(|v| v.is_nan()) {
        Some(at) => Err(format!("NaN at {at}")),
        None => Ok(y),
    }
}

#[track_caller]
fn found(kernel: &'static str, n: usize, what: &str) {
    let said = run(kernel, n).expect_err(kernel);
    assert!(said.contains(what), "{kernel}: expected '{what}', got '{said}'");
}

#[test]
fn a_missing_barrier_is_found() {
    found("planted_no_barrier", 128, "NaN and");
    found("planted_one_barrier", 128, "output 0 at");
    found("planted_in_step", 128, "NaN");
    for right in ["planted_none_of_barrier", "planted_none_of_rounds", "planted_none_of_in_step"] {
        run(right, 128).expect(right);
    }
}

#[test]
fn an_off_by_one_is_found() {
    found("planted_off_by_one", 300, "access outside a buffer");
    found("planted_off_by_one_below", 300, "access outside a buffer");
    run("planted_none_of_off_by_one", 300).expect("no mistake");
}

#[test]
fn a_missing_lane_guard_is_found() {
    found("planted_no_guard", 300, "access outside a buffer");
    run("planted_none_of_guard", 300).expect("no mistake");
    found("planted_small_shared", 128, "access outside a buffer");
}

#[test]
fn a_race_is_found() {
    found("planted_race", 512, "output 0 at 0");
    found("planted_lost_update", 128, "output 0 at 0");
}

#[test]
fn misuse_of_barriers_and_memory_is_found() {
    found("planted_uninitialised", 128, "NaN at 0");
    found("planted_left_early", 128, "a barrier or an exchange that not all threads reach");
    found("planted_lanes_left", 128, "an exchange with a lane that is not there");
    found("planted_misaligned", 128, "a misaligned access");
    found("planted_beyond_registers", 128, "an index");
    found("planted_division_by_zero", 128, "a division by zero");
}
