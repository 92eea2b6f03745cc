use crate::machine::{self, Memory, Numbers, Schedule, close, every_schedule, launch, rounded};
use crate::testing::Rng;
use ssm_kernels::Act;
use ssm_kernels::activation::softmax;
use ssm_kernels::cuda::activation::{Gate, Rows, Tokens};
use ssm_kernels::cuda::{Kind, Ptr, act};

const ACTS: [Act; 6] = [Act::None, Act::Relu, Act::Silu, Act::Gelu, Act::Sigmoid, Act::Softplus];

#[test]
fn parts_are_summed_and_gated() {
    let mut rng = Rng::new(2);
    for (rows, d) in [(0, 3), (1, 1), (3, 5), (7, 100), (2, 256)] {
        for (i, function) in ACTS.into_iter().enumerate() {
            for (gated, parts, kind) in [(false, 1, Kind::F32), (true, 2, Kind::F32), (true, 4, Kind::Bf16)] {
                let x: Vec<f32> = machine::rows(&mut rng, parts * rows, d).iter().map(|v| 3.0 * v).collect();
                let (x, z) = (rounded(kind, &x), rounded(kind, &machine::rows(&mut rng, rows, d)));
                let old = rounded(kind, &machine::rows(&mut rng, rows, d));
                let mut want = old.clone();
                for at in (0..rows * (d + 1)).filter(|at| at % (d + 1) < d) {
                    let sum: f32 = (0..parts).map(|p| x[p * rows * (d + 1) + at]).sum();
                    want[at] = if gated { sum * function.scalar(z[at]) } else { function.scalar(sum) };
                }
                let run = |schedule: Schedule| {
                    let [x, z, y] = [&x, &z, &old].map(|v| Numbers::new(schedule, kind, v));
                    let stride = d as u32 + 1;
                    let args = Gate {
                        x: x.ptr(),
                        gate: if gated { z.ptr() } else { Ptr::NONE },
                        y: y.ptr(),
                        part_stride: (rows * (d + 1)) as u64,
                        x_stride: stride,
                        gate_stride: stride,
                        y_stride: stride,
                        kind,
                        y_kind: kind,
                        parts: parts as u32,
                        rows: rows as u32,
                        d: d as u32,
                        act: act(function),
                    };
                    launch(schedule, &args.launch().map_err(|e| e.to_string())?, &args)?;
                    Ok(vec![y.read()])
                };
                let what = format!("{rows}x{d} {function:?} ({i}) {gated} {parts} {kind:?}");
                let got = every_schedule(run).unwrap_or_else(|e| panic!("{what}: {e}"));
                close(&what, kind, 1e-6, &got[0], &want);
            }
        }
    }
}

/// Batches of rows with room between both; what softmax and pooling leave of them.
fn rows_case(rng: &mut Rng, batch: usize, len: usize, d: usize, kind: Kind) {
    let (x_batch, y_batch) = (len * (d + 1) + 2, len.max(1) * (d + 1) + 3);
    let x: Vec<f32> = rng.vec(batch * x_batch).iter().map(|v| 4.0 * v).collect();
    let x = rounded(kind, &x);
    let old = rng.vec(batch * y_batch);
    let row = |b: usize, r: usize| &x[b * x_batch + r * (d + 1)..][..d];
    let mut want = [old.clone(), old.clone(), old.clone()];
    for b in 0..batch {
        for r in 0..len {
            let y = &mut want[0][b * y_batch + r * (d + 1)..][..d];
            y.copy_from_slice(row(b, r));
            softmax(y);
        }
        for e in 0..d {
            want[1][b * y_batch + e] = ((0..len).map(|r| f64::from(row(b, r)[e])).sum::<f64>() / len as f64) as f32;
            want[2][b * y_batch + e] = (0..len).map(|r| row(b, r)[e]).fold(f32::NEG_INFINITY, f32::max);
        }
    }
    let run = |schedule: Schedule| {
        let mut results = Vec::new();
        for what in 0..3 {
            let (x, y) = (Numbers::new(schedule, kind, &x), Memory::new(schedule, &old));
            let args = Rows {
                x: x.ptr(),
                y: y.ptr(),
                x_batch: x_batch as u64,
                y_batch: y_batch as u64,
                x_stride: d as u32 + 1,
                y_stride: d as u32 + 1,
                x_kind: kind,
                y_kind: Kind::F32,
                batch: batch as u32,
                len: len as u32,
                d: d as u32,
                max: u32::from(what == 2),
            };
            let l = if what == 0 { args.softmax() } else { args.pool().map_err(|e| e.to_string())? };
            launch(schedule, &l, &args)?;
            results.push(y.read());
        }
        Ok(results)
    };
    let got = every_schedule(run).unwrap_or_else(|e| panic!("{batch}x{len}x{d}: {e}"));
    for ((got, want), what) in got.iter().zip(&want).zip(["softmax", "mean", "max"]) {
        close(&format!("{what} {batch}x{len}x{d}"), Kind::F32, 1e-6, got, want);
    }
}

#[test]
fn softmax_and_pools_agree_with_scalar() {
    let mut rng = Rng::new(3);
    for (batch, len, d) in [(1, 1, 1), (2, 3, 31), (1, 8, 32), (3, 9, 33), (1, 5, 200), (2, 20, 7)] {
        for kind in [Kind::F32, Kind::F16] {
            rows_case(&mut rng, batch, len, d, kind);
        }
    }
}

#[test]
fn tokens_go_to_their_places() {
    let mut rng = Rng::new(4);
    for (batch, len, d) in [(1, 1, 1), (2, 5, 7), (3, 10, 64), (1, 50, 33)] {
        for classes in [vec![], vec![len / 2], vec![0], vec![0, len - 1]] {
            if classes.len() > 1 && len < 3 {
                continue;
            }
            let many = len - classes.len();
            let (patches, places) = (rng.vec(batch * many * d), rng.vec(len * d));
            let mut want = Vec::new();
            for b in 0..batch {
                let mut patch = patches[b * many * d..][..many * d].chunks_exact(d);
                for (row, place) in places.chunks_exact(d).enumerate() {
                    let zeros = vec![0.0; d];
                    let add = if classes.contains(&row) { &zeros[..] } else { patch.next().expect("a patch") };
                    want.extend(place.iter().zip(add).map(|(a, b)| a + b));
                }
            }
            let run = |schedule: Schedule| {
                let (patches, places) = (Memory::new(schedule, &patches), Memory::new(schedule, &places));
                let y = Memory::new(schedule, &vec![f32::NAN; batch * len * d]);
                let class = |i: usize| classes.get(i).map_or(len as u32, |row| *row as u32);
                let args = Tokens {
                    patches: patches.ptr(),
                    places: places.ptr(),
                    y: y.ptr(),
                    kind: Kind::F32,
                    y_kind: Kind::F32,
                    batch: batch as u32,
                    len: len as u32,
                    d: d as u32,
                    classes: [class(0), class(1)],
                };
                launch(schedule, &args.launch().map_err(|e| e.to_string())?, &args)?;
                Ok(vec![y.read()])
            };
            let got = every_schedule(run).unwrap_or_else(|e| panic!("{batch}x{len}x{d} {classes:?}: {e}"));
            assert_eq!(got[0], want, "{batch}x{len}x{d} {classes:?}");
        }
    }
}
