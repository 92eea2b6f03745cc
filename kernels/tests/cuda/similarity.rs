use crate::machine::{self, Memory, Schedule, close, every_schedule, launch};
use crate::testing::Rng;
use ssm_kernels::cuda::Kind;
use ssm_kernels::cuda::similarity::Args;

/// One step after the other, as the models' composites do it.
fn scalar(x: &[f32], d: usize, last: &mut [f32], y: &mut [f32]) {
    let lags = last.len() / d;
    for (v, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(lags)) {
        let scale = 1.0 / (v.iter().map(|v| v * v).sum::<f32>() + 1e-12).sqrt();
        for (before, y) in last.chunks_exact(d).zip(y) {
            *y = before.iter().zip(v).map(|(b, v)| b * v).sum::<f32>() * scale;
        }
        last.copy_within(..(lags - 1) * d, d);
        last[..d].iter_mut().zip(v).for_each(|(l, v)| *l = v * scale);
    }
}

#[test]
fn agrees_with_scalar_and_any_cut_gives_the_same_bits() {
    let mut rng = Rng::new(71);
    for (batch, len, d, lags) in [(1, 0, 3, 2), (1, 1, 1, 1), (3, 9, 33, 4), (2, 3, 40, 7), (2, 20, 70, 20)] {
        let what = format!("{batch} streams of {len} steps of {d}, {lags} back");
        let mut x = machine::rows(&mut rng, batch * len, d);
        // A vector without a length.
        x.iter_mut().take(d).for_each(|v| *v = 0.0);
        let slots: Vec<u32> = (0..batch as u32).rev().collect();
        let stride = lags * d + 5;
        let mut state: Vec<f32> = rng.vec(batch * stride);
        for b in 0..batch {
            state[b * stride + lags * d..][..5].fill(f32::NAN);
        }
        let (mut want, mut want_state) = (Vec::new(), state.clone());
        for b in 0..batch {
            let rows: Vec<f32> =
                x[b * len * (d + 1)..][..len * (d + 1)].chunks_exact(d + 1).flat_map(|row| row[..d].to_vec()).collect();
            let mut y = vec![0.0; len * lags];
            scalar(&rows, d, &mut want_state[(batch - 1 - b) * stride..][..lags * d], &mut y);
            want.extend(y.chunks_exact(lags).flat_map(|row| [row, &[f32::NAN]].concat()));
        }
        let run = |schedule: Schedule, pieces: &[usize]| {
            let (slots, pool) = (Memory::new(schedule, &slots), Memory::new(schedule, &state));
            let (mut at, mut all) = (0, vec![f32::NAN; batch * len * (lags + 1)]);
            for piece in pieces {
                // The same steps of every stream, in memory of their own.
                let part: Vec<f32> =
                    (0..batch).flat_map(|b| x[(b * len + at) * (d + 1)..][..piece * (d + 1)].to_vec()).collect();
                let part = Memory::new(schedule, &part);
                let y = Memory::new(schedule, &vec![f32::NAN; batch * piece * (lags + 1)]);
                let args = Args {
                    x: part.ptr(),
                    y: y.ptr(),
                    state: pool.ptr(),
                    slots: slots.ptr(),
                    state_stride: stride as u64,
                    x_stride: d as u32 + 1,
                    y_stride: lags as u32 + 1,
                    batch: batch as u32,
                    len: *piece as u32,
                    d: d as u32,
                    lags: lags as u32,
                };
                launch(schedule, &args.launch().map_err(|e| e.to_string())?, &args)?;
                for (b, y) in y.read().chunks_exact((piece * (lags + 1)).max(1)).enumerate() {
                    all[(b * len + at) * (lags + 1)..][..y.len()].copy_from_slice(y);
                }
                at += piece;
            }
            Ok(vec![all, pool.read()])
        };
        let got = every_schedule(|s| run(s, &[len])).unwrap_or_else(|e| panic!("{what}: {e}"));
        close(&what, Kind::F32, 2e-6, &got[0], &want);
        close(&what, Kind::F32, 2e-6, &got[1], &want_state);
        let pieces = [len / 3, 0, len - len / 3 - len.min(1), len.min(1)];
        let cut = every_schedule(|s| run(s, &pieces)).unwrap_or_else(|e| panic!("{what}: {e}"));
        let bits = |v: &[Vec<f32>]| v.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&got), bits(&cut), "{what}: cut");
    }
}
