use crate::machine::{Memory, Schedule, close, every_schedule, launch};
use crate::testing::Rng;
use ssm_kernels::cuda::Kind;
use ssm_kernels::cuda::bands::Args;

#[test]
fn each_step_agrees_with_scalar() {
    let mut rng = Rng::new(91);
    for (batch, len, hop, kept, bins) in [(1, 1, 1, 1, 2), (2, 0, 3, 4, 5), (3, 2, 5, 11, 9), (2, 7, 300, 40, 130)] {
        let what = format!("{batch} streams of {len} hops of {hop}, {kept} kept, {bins} bins");
        let rows = batch * len;
        let (x, spectra, masks, shares) =
            (rng.vec(rows * hop), rng.vec(rows * 2 * bins), rng.vec(rows * 2 * bins), rng.vec(rows * 2 * hop));
        let (mean, scale) = (rng.vec(3 * bins), rng.vec(3 * bins));
        // Any order of columns.
        let place: Vec<u32> = (0..3 * bins).rev().chain((0..2 * bins).rev()).map(|p| p as u32).collect();
        let slots: Vec<u32> = (0..batch as u32).rev().collect();
        let stride = kept + hop + 3;
        let state: Vec<f32> =
            (0..batch * stride).map(|i| if i % stride < kept + hop { rng.normal() } else { f32::NAN }).collect();

        let (mut signal, mut features, mut product, mut y) =
            (vec![], vec![0.0; rows * 3 * bins], spectra.clone(), vec![]);
        let mut want_state = state.clone();
        for b in 0..batch {
            let own = &mut want_state[(batch - 1 - b) * stride..][..kept + hop];
            let all = [&own[..kept], &x[b * len * hop..][..len * hop]].concat();
            own[..kept].copy_from_slice(&all[len * hop..]);
            signal.extend(all);
            for t in b * len..(b + 1) * len {
                let share = &shares[t * 2 * hop..][..2 * hop];
                y.extend(own[kept..].iter().zip(share).map(|(o, s)| o + s));
                own[kept..].copy_from_slice(&share[hop..]);
            }
        }
        for r in 0..rows {
            for f in 0..bins {
                let at = r * bins + f;
                let [re, im] = [spectra[2 * at], spectra[2 * at + 1]];
                let log = (re * re + im * im + 1e-7).ln();
                let small = (-0.35 * log).exp();
                for (j, v) in [log, re * small, im * small].into_iter().enumerate() {
                    let i = j * bins + f;
                    features[r * 3 * bins + place[i] as usize] = (v - mean[i]) * scale[i];
                }
                let part = |j: usize| masks[r * 2 * bins + place[(3 + j) * bins + f] as usize];
                let (u, v) = (part(0), part(1));
                let radius = (u * u + v * v + 1e-12f32).sqrt();
                let (a, b) = (u * radius.tanh() / radius, v * radius.tanh() / radius);
                (product[2 * at], product[2 * at + 1]) = (a * re - b * im, a * im + b * re);
            }
        }

        let run = |schedule: Schedule| {
            let single = |v: &[f32]| Memory::new(schedule, v);
            let room = |n: usize| Memory::new(schedule, &vec![f32::NAN; n]);
            let (x, pool, whole, masks, shares) =
                (single(&x), single(&state), single(&spectra), single(&masks), single(&shares));
            let (mean, scale) = (single(&mean), single(&scale));
            let (place, slots) = (Memory::new(schedule, &place), Memory::new(schedule, &slots));
            let (signal, features, y) = (room(batch * (kept + len * hop)), room(rows * 3 * bins), room(rows * hop));
            let args = Args {
                x: x.ptr(),
                signal: signal.ptr(),
                spectra: whole.ptr(),
                place: place.ptr(),
                mean: mean.ptr(),
                scale: scale.ptr(),
                features: features.ptr(),
                masks: masks.ptr(),
                shares: shares.ptr(),
                y: y.ptr(),
                tail: pool.ptr(),
                overlap: ssm_kernels::cuda::Ptr(pool.ptr().0 + 4 * kept as u64),
                slots: slots.ptr(),
                state_stride: stride as u64,
                batch: batch as u32,
                len: len as u32,
                hop: hop as u32,
                kept: kept as u32,
                bins: bins as u32,
                floor: 1e-7,
                compression: -0.35,
            };
            for l in [args.signal(), args.features(), args.masks(), args.overlap()] {
                let l = l.map_err(|e| e.to_string())?;
                if !l.grid.contains(&0) {
                    launch(schedule, &l, &args)?;
                }
            }
            Ok(vec![signal.read(), features.read(), whole.read(), y.read(), pool.read()])
        };
        let got = every_schedule(run).unwrap_or_else(|e| panic!("{what}: {e}"));
        for (i, want) in [&signal, &features, &product, &y, &want_state].into_iter().enumerate() {
            close(&format!("{what}, {i}"), Kind::F32, 2e-5, &got[i], want);
        }
    }
}
