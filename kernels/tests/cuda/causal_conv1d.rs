use crate::machine::{self, Memory, Numbers, Schedule, close, every_schedule, launch, rounded};
use crate::scalar;
use crate::testing::Rng;
use ssm_kernels::causal_conv1d::{Conv, Time, causal_conv1d};
use ssm_kernels::cuda::causal_conv1d::Args;
use ssm_kernels::cuda::{Kind, act};
use ssm_kernels::{Act, Mat, MatMut};

#[test]
fn agrees_with_scalar() {
    let mut rng = Rng::new(9);
    for (batch, len, d, k, kind) in [
        (1, 0, 3, 4, Kind::F32),
        (1, 1, 1, 1, Kind::F32),
        (2, 2, 5, 4, Kind::F32),
        (1, 3, 17, 4, Kind::F32),
        (3, 9, 33, 2, Kind::F32),
        (1, 40, 7, 7, Kind::F32),
        (1, 2, 130, 8, Kind::F32),
        (2, 16, 129, 3, Kind::F32),
        (2, 33, 40, 4, Kind::Bf16),
        (1, 17, 9, 5, Kind::F16),
    ] {
        for (reversed, carried) in [(0b10, 0b01), (0b00, 0b11), (0b01, 0b00)] {
            // Two directions; a NaN behind every row, room between slots, slots in another order.
            let (rows, tail_len) = (batch * len, (k - 1) * d);
            let (taps, bias) = (rng.vec(2 * k * d), rng.vec(2 * d));
            let x = rounded(kind, &machine::rows(&mut rng, rows, d));
            let old = rounded(kind, &rng.vec(2 * rows * (d + 1)));
            let (slot_len, slots) = (2 * tail_len + 1, (0..batch as u32).rev().collect::<Vec<_>>());
            let pool = rng.vec(batch * slot_len);

            let (mut want_y, mut want_pool) = (old.clone(), pool.clone());
            for direction in 0..2 {
                // From taps (k, d) to the checkpoint's (d, 1, k).
                let w: Vec<f32> = (0..k * d).map(|i| taps[(direction * k + i % k) * d + i / k]).collect();
                let conv = Conv::new(&w, d, Some(&bias[direction * d..][..d]));
                let time = if reversed >> direction & 1 == 1 { Time::Reverse } else { Time::Forward };
                for b in 0..batch {
                    let mut zeros = vec![0.0; tail_len];
                    let own = &mut want_pool[slots[b] as usize * slot_len + direction * tail_len..][..tail_len];
                    let tail = if carried >> direction & 1 == 1 { own } else { &mut zeros };
                    let x = Mat::strided(&x[b * len * (d + 1)..], len, d, d + 1);
                    let y = MatMut::strided(&mut want_y[(direction * rows + b * len) * (d + 1)..], len, d, d + 1);
                    causal_conv1d(&scalar(), &conv, x, Act::Silu, time, tail, y);
                }
            }

            let run = |schedule: Schedule| {
                let (taps, bias) = (Memory::new(schedule, &taps), Memory::new(schedule, &bias));
                let (x, y) = (Numbers::new(schedule, kind, &x), Numbers::new(schedule, kind, &old));
                let (pool, slots) = (Memory::new(schedule, &pool), Memory::new(schedule, &slots));
                let args = Args {
                    x: x.ptr(),
                    taps: taps.ptr(),
                    bias: bias.ptr(),
                    y: y.ptr(),
                    tail: pool.ptr(),
                    slots: slots.ptr(),
                    y_dir: (rows * (d + 1)) as u64,
                    tail_dir: tail_len as u64,
                    tail_stride: slot_len as u64,
                    x_stride: d as u32 + 1,
                    y_stride: d as u32 + 1,
                    kind,
                    batch: batch as u32,
                    len: len as u32,
                    d: d as u32,
                    k: k as u32,
                    act: act(Act::Silu),
                    reversed,
                    carried,
                };
                launch(schedule, &args.launch(2).map_err(|e| e.to_string())?, &args)?;
                Ok(vec![y.read(), pool.read()])
            };
            let what = format!("{batch}x{len}x{d}, {k} taps, {kind:?}, {reversed:02b} {carried:02b}");
            let got = every_schedule(run).unwrap_or_else(|e| panic!("{what}: {e}"));
            close(&what, kind, 1e-6, &got[0], &want_y);
            assert_eq!(got[1], want_pool, "{what}: tail");
        }
    }
}

#[test]
fn too_many_taps_are_an_error() {
    let args = Args { k: 9, batch: 1, len: 1, d: 1, ..Args::default() };
    assert_eq!(args.launch(1).unwrap_err().to_string(), "causal_conv1d: taps: at most 8, got 9");
}
