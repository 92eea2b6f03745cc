use crate::machine::{self, Memory, Schedule, close, every_schedule, launch};
use crate::scalar;
use crate::testing::Rng;
use ssm_kernels::complex_scan::{Poles, complex_filter, complex_scan};
use ssm_kernels::cuda::complex_scan::{Args, S4d};
use ssm_kernels::cuda::{Kind, Ptr};
use ssm_kernels::s4d::{Coefficients, Part, Sizes, s4d};
use ssm_kernels::{CpuLevel, Mat, MatMut};

/// Random poles with |λ| from 0.4 to 0.99.
fn poles(rng: &mut Rng, n: usize) -> Vec<(f32, f32)> {
    (0..n)
        .map(|_| {
            let (r, a) = (1.0 - 0.6 * rng.uniform().powi(4).max(1e-2), 6.2 * rng.uniform());
            (r * a.cos(), r * a.sin())
        })
        .collect()
}

/// States sum some hundred steps.
const TOLERANCE: f32 = 1e-5;

#[test]
fn scan_and_filter_agree_with_scalar() {
    let mut rng = Rng::new(31);
    for (batch, len, n) in
        [(1, 0, 5), (1, 1, 1), (2, 3, 7), (1, 17, 31), (3, 33, 33), (1, 65, 64), (2, 40, 100), (1, 9, 256)]
    {
        let lambda = poles(&mut rng, n);
        let packed = Poles::new(lambda.iter().map(|(re, im)| (f64::from(*re), f64::from(*im))));
        let (re, im): (Vec<f32>, Vec<f32>) = lambda.iter().copied().unzip();
        let (gain, u, x) = (rng.vec(n), machine::rows(&mut rng, batch * len, n), machine::rows(&mut rng, batch, len));
        let slot_len = 2 * n + 1;
        let (pool, slots) = (rng.vec(batch * slot_len), (0..batch as u32).rev().collect::<Vec<_>>());

        let (mut want_u, mut want_pool) = (u.clone(), [pool.clone(), pool.clone()]);
        let mut want_y = x.clone();
        for b in 0..batch {
            let slot = slots[b] as usize * slot_len;
            let rows = MatMut::strided(&mut want_u[b * len * (n + 1)..], len, n, n + 1);
            complex_scan(CpuLevel::Scalar, &packed, &mut want_pool[0][slot..][..2 * n], rows);
            let (from, to) = (&x[b * (len + 1)..][..len], &mut want_y[b * (len + 1)..][..len]);
            complex_filter(CpuLevel::Scalar, &packed, &gain, &mut want_pool[1][slot..][..2 * n], from, to);
        }

        let run = |schedule: Schedule| {
            let single = |v: &[f32]| Memory::new(schedule, v);
            let (re, im, gain, slots) = (single(&re), single(&im), single(&gain), Memory::new(schedule, &slots));
            let (u, x, pools) = (single(&u), single(&x), [single(&pool), single(&pool)]);
            // Both in place.
            let args = Args {
                re: re.ptr(),
                im: im.ptr(),
                gain: gain.ptr(),
                x: u.ptr(),
                y: u.ptr(),
                state: pools[0].ptr(),
                slots: slots.ptr(),
                state_stride: slot_len as u64,
                x_batch: (len * (n + 1)) as u64,
                y_batch: (len * (n + 1)) as u64,
                x_stride: n as u32 + 1,
                y_stride: n as u32 + 1,
                batch: batch as u32,
                len: len as u32,
                n: n as u32,
            };
            launch(schedule, &args.scan().map_err(|e| e.to_string())?, &args)?;
            let (batch, x_stride, y_stride) = (len as u64 + 1, 1, 1);
            let (x_ptr, state) = (x.ptr(), pools[1].ptr());
            let args = Args { x: x_ptr, y: x_ptr, state, x_batch: batch, y_batch: batch, x_stride, y_stride, ..args };
            launch(schedule, &args.filter().map_err(|e| e.to_string())?, &args)?;
            Ok(vec![u.read(), pools[0].read(), x.read(), pools[1].read()])
        };
        let what = format!("{batch}x{len}, {n} states");
        let got = every_schedule(run).unwrap_or_else(|e| panic!("{what}: {e}"));
        for (got, want) in got.iter().zip([&want_u, &want_pool[0], &want_y, &want_pool[1]]) {
            close(&what, Kind::F32, TOLERANCE, got, want);
        }
    }
}

fn check_s4d(rng: &mut Rng, batch: usize, len: usize, sizes: Sizes, read: bool) {
    let what = format!("{batch}x{len}, {sizes:?}, read {read}");
    let (h, n) = (sizes.features, sizes.states);
    // Two sets of coefficients; the corrections are small, so that the states stay bounded.
    let sets: Vec<Coefficients> = (0..2)
        .map(|_| {
            let a = poles(rng, h * n);
            let parts = rng.vec(h * n * 2 * (1 + 2 * sizes.rank + sizes.channels));
            let skips = rng.vec(sizes.channels * h);
            let get = |part: Part, f: usize, i: usize| {
                let at = |which: usize, size: f32| {
                    let from = (which * h * n + f * n + i) * 2;
                    (size * parts[from], size * parts[from + 1])
                };
                match part {
                    Part::A => a[f * n + i],
                    Part::B => at(0, 1.0),
                    Part::P(r) => at(1 + 2 * r, 0.05 / n as f32),
                    Part::T(r) => at(2 + 2 * r, 0.05),
                    Part::C(ch) => at(1 + 2 * sizes.rank + ch, 1.0),
                }
            };
            Coefficients::pack(sizes, get, |ch, f| skips[ch * h + f])
        })
        .collect();
    let columns = if read { sizes.channels * h } else { 0 };
    let (u, old) = (machine::rows(rng, batch * len, h), machine::rows(rng, batch * len, sizes.channels * h));
    let (slot_len, slots) = (sizes.state_len() + 1, (0..batch as u32).rev().collect::<Vec<_>>());
    let which: Vec<u32> = (0..batch as u32).map(|b| b % 2).collect();
    // Places of features that are not there hold zeros.
    let mut pool = vec![0.0; batch * slot_len];
    for b in 0..batch {
        for (f, i) in (0..h * n).map(|k| (k / n, k % n)) {
            let place = b * slot_len + sizes.place(f, i);
            (pool[place], pool[place + 16]) = (rng.normal(), rng.normal());
        }
    }

    let (mut want, mut want_pool) = (old.clone(), pool.clone());
    for b in 0..batch {
        let stride = sizes.channels * h + 1;
        let state = &mut want_pool[slots[b] as usize * slot_len..][..sizes.state_len()];
        let u = Mat::strided(&u[b * len * (h + 1)..], len, h, h + 1);
        let y = MatMut::strided(&mut want[b * len * stride..], len, columns, stride);
        s4d(&scalar(), &sets[which[b] as usize], u, state, read, y);
    }
    let packed: Vec<f32> = sets.iter().flat_map(|s| s.packed().iter().copied()).collect();
    let run = |schedule: Schedule| {
        let single = |v: &[f32]| Memory::new(schedule, v);
        let (packed, u, y, pool) = (single(&packed), single(&u), single(&old), single(&pool));
        let (slots, which) = (Memory::new(schedule, &slots), Memory::new(schedule, &which));
        let args = S4d {
            coefficients: packed.ptr(),
            u: u.ptr(),
            y: if read { y.ptr() } else { Ptr::NONE },
            state: pool.ptr(),
            slots: slots.ptr(),
            sets: which.ptr(),
            state_stride: slot_len as u64,
            set_stride: sets[0].packed().len() as u64,
            u_stride: h as u32 + 1,
            y_stride: (sizes.channels * h) as u32 + 1,
            batch: batch as u32,
            len: len as u32,
            features: h as u32,
            n: n as u32,
            channels: sizes.channels as u32,
            rank: sizes.rank as u32,
            read: u32::from(read),
        };
        launch(schedule, &args.launch().map_err(|e| e.to_string())?, &args)?;
        Ok(vec![y.read(), pool.read()])
    };
    let got = every_schedule(run).unwrap_or_else(|e| panic!("{what}: {e}"));
    close(&format!("{what}: y"), Kind::F32, TOLERANCE, &got[0], &want);
    close(&format!("{what}: state"), Kind::F32, TOLERANCE, &got[1], &want_pool);
}

#[test]
fn s4d_agrees_with_scalar() {
    let mut rng = Rng::new(32);
    for (features, states, channels) in [(1, 1, 1), (17, 32, 1), (5, 33, 2), (16, 8, 3), (4, 100, 1), (3, 128, 0)] {
        for rank in [0, 1, 2, 4] {
            for (batch, len) in [(1, 0), (1, 1), (2, 9)] {
                let sizes = Sizes { features, states, channels, rank };
                check_s4d(&mut rng, batch, len, sizes, channels > 0 && len != 1);
            }
        }
    }
}
