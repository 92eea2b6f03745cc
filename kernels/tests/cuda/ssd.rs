use crate::machine::{self, Memory, Numbers, Schedule, after, close, every_schedule, launch, rounded};
use crate::scalar;
use crate::testing::Rng;
use ssm_kernels::cuda::ssd::Args;
use ssm_kernels::cuda::{Kind, Ptr};
use ssm_kernels::ssd::{Ssd, ssd};
use ssm_kernels::{Mat, MatMut};

/// Heads, channels of a head, states, groups.
type Shape = (usize, usize, usize, usize);

/// Checks a call, of one sequence made in pieces that end at `cuts`, and gives what it wrote.
///
/// Options: 0 plain, 1 gated, 2 another scale and a clamped step, 3 from nothing.
fn check(
    rng: &mut Rng,
    batch: usize,
    len: usize,
    (heads, p, n, groups): Shape,
    variant: usize,
    kind: Kind,
    cuts: &[usize],
) -> Vec<f32> {
    let what = format!("{batch}x{len}, {heads} heads of {p}, {n} states, {groups} groups, {variant} {kind:?}");
    let (rows, d, gn) = (batch * len, heads * p, groups * n);
    let [x, z, old] = std::array::from_fn(|_| rounded(kind, &machine::rows(rng, rows, d)));
    let (dt, bc) = (machine::rows(rng, rows, heads), machine::rows(rng, rows, 2 * gn));
    let (dt_bias, skip) = (rng.vec(heads), rng.vec(d));
    let a: Vec<f32> = (0..heads).map(|_| -rng.normal().exp()).collect();
    let scale: Vec<f32> = (0..batch).map(|b| 0.5 + b as f32).collect();
    let slot_len = n * d + 3;
    let (pool, slots) =
        (rng.vec((batch + 1) * slot_len), (0..batch as u32).map(|b| batch as u32 - b).collect::<Vec<_>>());
    let (low, high) = if variant == 2 { (0.3, 1.1) } else { (0.0, f32::INFINITY) };

    let (mut want, mut want_pool) = (old.clone(), pool.clone());
    for b in 0..batch {
        let mat = |v, cols: usize| -> Mat<'_> {
            let v: &Vec<f32> = v;
            Mat::strided(&v[b * len * (cols + 1)..], len, cols, cols + 1)
        };
        let bc = mat(&bc, 2 * gn);
        let call = Ssd {
            x: mat(&x, d),
            dt: mat(&dt, heads),
            dt_bias: &dt_bias,
            dt_limit: (low, high),
            scale: if variant == 2 { scale[b] } else { 1.0 },
            a: &a,
            b: bc.columns(0..gn),
            c: bc.columns(gn..2 * gn),
            d: &skip,
            z: (variant == 1).then(|| mat(&z, d)),
        };
        let mut zeros = vec![0.0; n * d];
        let own = &mut want_pool[slots[b] as usize * slot_len..][..n * d];
        let state = if variant == 3 { &mut zeros } else { own };
        ssd(&scalar(), &call, state, MatMut::strided(&mut want[b * len * (d + 1)..], len, d, d + 1));
    }

    let run = |schedule: Schedule| {
        let single = |v: &[f32]| Memory::new(schedule, v);
        let [x, z, y] = [&x, &z, &old].map(|v| Numbers::new(schedule, kind, v));
        let (dt, bc, dt_bias, a, skip) = (single(&dt), single(&bc), single(&dt_bias), single(&a), single(&skip));
        let (scale, pool, slots) = (single(&scale), single(&pool), Memory::new(schedule, &slots));
        let given = |yes: bool, p: Ptr| if yes { p } else { Ptr::NONE };
        let args = Args {
            x: x.ptr(),
            dt: dt.ptr(),
            dt_bias: dt_bias.ptr(),
            a: a.ptr(),
            b: bc.ptr(),
            c: Ptr(bc.ptr().0 + 4 * gn as u64),
            skip: skip.ptr(),
            z: given(variant == 1, z.ptr()),
            y: y.ptr(),
            scale: given(variant == 2, scale.ptr()),
            state: given(variant != 3, pool.ptr()),
            slots: slots.ptr(),
            state_stride: slot_len as u64,
            x_stride: d as u32 + 1,
            dt_stride: heads as u32 + 1,
            bc_stride: 2 * gn as u32 + 1,
            z_stride: d as u32 + 1,
            y_stride: d as u32 + 1,
            kind,
            batch: batch as u32,
            len: len as u32,
            heads: heads as u32,
            p: p as u32,
            n: n as u32,
            per_group: (heads / groups) as u32,
            low,
            high,
        };
        let mut from = 0;
        for to in cuts.iter().copied().chain([len]) {
            let part = Args {
                x: after(args.x, from, args.x_stride),
                dt: after(args.dt, from, args.dt_stride),
                b: after(args.b, from, args.bc_stride),
                c: after(args.c, from, args.bc_stride),
                z: after(args.z, from, args.z_stride),
                y: after(args.y, from, args.y_stride),
                len: (to - from) as u32,
                ..args
            };
            launch(schedule, &part.launch().map_err(|e| e.to_string())?, &part)?;
            from = to;
        }
        Ok(vec![y.read(), pool.read()])
    };
    let got = every_schedule(run).unwrap_or_else(|e| panic!("{what}: {e}"));
    // exp by way of base 2, sums in another order, a few steps of feedback.
    close(&format!("{what}: y"), kind, 1e-5, &got[0], &want);
    close(&format!("{what}: state"), Kind::F32, 1e-5, &got[1], &want_pool);
    // Behind the rows and between the slots lies NaN.
    got.concat().into_iter().filter(|v| !v.is_nan()).collect()
}

#[test]
fn agrees_with_scalar() {
    let mut rng = Rng::new(21);
    for shape in
        [(1, 1, 1, 1), (4, 16, 16, 1), (6, 5, 7, 3), (2, 64, 128, 1), (2, 33, 40, 2), (3, 24, 3, 1), (2, 70, 5, 1)]
    {
        for (len, batch) in [(0, 1), (1, 2), (17, 1), (33, 2)] {
            for variant in 0..4 {
                // The large ones once.
                if shape.2 < 100 || variant == 1 {
                    check(&mut rng, batch, len, shape, variant, Kind::F32, &[]);
                }
            }
        }
    }
    check(&mut rng, 2, 18, (2, 20, 16, 1), 1, Kind::Bf16, &[]);
    check(&mut rng, 1, 18, (2, 20, 64, 1), 1, Kind::F16, &[]);
}

#[test]
fn too_many_states_are_an_error() {
    let args = Args { n: 129, heads: 1, p: 1, batch: 1, ..Args::default() };
    assert_eq!(args.launch().unwrap_err().to_string(), "ssd: states: at most 128, got 129");
}

#[test]
fn any_cut_gives_the_same_bits() {
    for shape in [(2, 20, 16, 1), (1, 33, 64, 1), (2, 16, 100, 1)] {
        let of = |cuts: &[usize]| check(&mut Rng::new(22), 1, 50, shape, 1, Kind::F32, cuts);
        let whole = of(&[]);
        for cuts in [&[1][..], &[0, 7, 7, 8, 40], &[16, 32, 49]] {
            assert!(of(cuts) == whole, "{shape:?} {cuts:?}");
        }
    }
}
