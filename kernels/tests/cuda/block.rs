//! The kernels together: one block of Vim (Zhu et al. 2024, Algorithm 1), launch by launch as a host would.

use crate::machine::{Memory, Schedule, after, close, every_schedule, launch};
use crate::scalar;
use crate::testing::Rng;
use ssm_kernels::causal_conv1d::{Conv, Time, causal_conv1d};
use ssm_kernels::cuda::activation::Gate;
use ssm_kernels::cuda::selective_scan as scans;
use ssm_kernels::cuda::selective_scan::order;
use ssm_kernels::cuda::{Kind, Ptr, TooLarge, act, causal_conv1d as conv, linear as product, norm as norms};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::norm::{Kind as NormKind, Norm, add_norm};
use ssm_kernels::selective_scan::{Order, Scan, selective_scan};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};

/// Sequences, steps, width, inner width, states, rank, taps.
const B: usize = 2;
const L: usize = 19;
const D: usize = 12;
const E: usize = 40;
const N: usize = 16;
const R: usize = 3;
const K: usize = 4;
/// Rows; columns of the projection to dt, b and c.
const M: usize = B * L;
const P: usize = R + 2 * N;

/// The weights; those of both directions one after the other.
struct Weights {
    norm: Vec<f32>,    // (D)
    in_proj: Vec<f32>, // (2E, D)
    taps: Vec<f32>,    // (2, K, E)
    conv_bias: Vec<f32>,
    x_proj: Vec<f32>,   // (2, P, E)
    dt_proj: Vec<f32>,  // (2, E, R)
    dt_bias: Vec<f32>,  // (2, E)
    a: Vec<f32>,        // (2, N, E)
    skip: Vec<f32>,     // (2, E)
    out_proj: Vec<f32>, // (D, E)
}

impl Weights {
    fn new(rng: &mut Rng) -> Self {
        let mut of = |n: usize, size: f32| rng.vec(n).iter().map(|v| v * size).collect::<Vec<_>>();
        let a = of(2 * N * E, 1.0).iter().map(|v| -v.exp()).collect();
        Self {
            norm: of(D, 1.0),
            in_proj: of(2 * E * D, 0.3),
            taps: of(2 * K * E, 0.5),
            conv_bias: of(2 * E, 1.0),
            x_proj: of(2 * P * E, 0.2),
            dt_proj: of(2 * E * R, 0.5),
            dt_bias: of(2 * E, 1.0),
            a,
            skip: of(2 * E, 1.0),
            out_proj: of(D * E, 0.2),
        }
    }
}

/// The block as the models run it: hidden and residual streams.
fn judge(w: &Weights, hidden: &[f32], residual: &[f32]) -> [Vec<f32>; 2] {
    let cx = scalar();
    let pack = |w: &[f32], n: usize| Linear::pack(CpuLevel::Scalar, w, n, w.len() / n, None);
    let apply = |x: Mat<'_>, w: &[f32], n: usize, y: &mut [f32]| {
        linear(&cx, x, &pack(w, n), Act::None, Store::Set, MatMut::new(y, M, n));
    };
    let (mut residual, mut normed) = (residual.to_vec(), vec![0.0; M * D]);
    let norm = Norm::new(NormKind::Rms, w.norm.clone(), None, 1e-5);
    let r = MatMut::new(&mut residual, M, D);
    add_norm(&Cx::at(CpuLevel::Scalar, 1), &norm, Mat::new(hidden, M, D), r, MatMut::new(&mut normed, M, D));
    let mut xz = vec![0.0; M * 2 * E];
    apply(Mat::new(&normed, M, D), &w.in_proj, 2 * E, &mut xz);
    let xz = Mat::new(&xz, M, 2 * E);
    let (mut c, mut dbc, mut dt, mut y) = (vec![0.0; M * E], vec![0.0; M * P], vec![0.0; M * E], vec![0.0; M * E]);
    for (k, time) in [Time::Forward, Time::Reverse].into_iter().enumerate() {
        let taps = &w.taps[k * K * E..][..K * E];
        let taps: Vec<f32> = (0..K * E).map(|i| taps[i % K * E + i / K]).collect();
        let conv = Conv::new(&taps, E, Some(&w.conv_bias[k * E..][..E]));
        for b in 0..B {
            let x = xz.sub_rows(b * L..(b + 1) * L).columns(0..E);
            let y = MatMut::new(&mut c[b * L * E..], L, E);
            causal_conv1d(&cx, &conv, x, Act::Silu, time, &mut vec![0.0; (K - 1) * E], y);
        }
        apply(Mat::new(&c, M, E), &w.x_proj[k * P * E..][..P * E], P, &mut dbc);
        apply(Mat::new(&dbc, M, P).columns(0..R), &w.dt_proj[k * E * R..][..E * R], E, &mut dt);
        for b in 0..B {
            let dbc = Mat::new(&dbc[b * L * P..], L, P);
            let scan = Scan {
                u: Mat::new(&c[b * L * E..], L, E),
                dt: Mat::new(&dt[b * L * E..], L, E),
                dt_bias: Some(&w.dt_bias[k * E..][..E]),
                softplus: true,
                scale: 1.0,
                a: &w.a[k * N * E..][..N * E],
                b: dbc.columns(R..R + N),
                c: dbc.columns(R + N..P),
                d: Some(&w.skip[k * E..][..E]),
                z: Some(xz.sub_rows(b * L..(b + 1) * L).columns(E..2 * E)),
                order: if time == Time::Forward { Order::Forward } else { Order::Reverse },
                add: time == Time::Reverse,
            };
            let y = MatMut::new(&mut y[b * L * E..], L, E);
            selective_scan(&cx, &scan, &mut vec![0.0; N * E], y);
        }
    }
    let mut hidden = vec![0.0; M * D];
    apply(Mat::new(&y, M, E), &w.out_proj, D, &mut hidden);
    [hidden, residual]
}

/// The block by the kernels.
fn run(schedule: Schedule, w: &Weights, hidden: &[f32], residual: &[f32]) -> Result<Vec<Vec<f32>>, String> {
    let fail = |e: TooLarge| e.to_string();
    let single = |v: &[f32]| Memory::new(schedule, v);
    let room = |n: usize| single(&vec![f32::NAN; n]);
    let [norm, zeros, in_proj, taps, conv_bias, x_proj, dt_proj, dt_bias, a, skip, out_proj] = [
        &w.norm,
        &vec![0.0; D],
        &w.in_proj,
        &w.taps,
        &w.conv_bias,
        &w.x_proj,
        &w.dt_proj,
        &w.dt_bias,
        &w.a,
        &w.skip,
        &w.out_proj,
    ]
    .map(|v| single(v));
    let (hidden, residual) = (single(hidden), single(residual));
    let (normed, xz, c, dbc) = (room(M * D), room(M * 2 * E), room(2 * M * E), room(2 * M * P));
    let (dt, y) = (room(2 * M * E), room(2 * M * E));
    let linear = |x: Ptr, stride: usize, w: Ptr, (n, k): (usize, usize), y: Ptr| {
        let args = product::Args {
            x,
            w,
            y,
            x_stride: stride as u32,
            y_stride: n as u32,
            w_stride: k as u32,
            batch_rows: M as u32,
            m: M as u32,
            n: n as u32,
            k: k as u32,
            ..product::Args::default()
        };
        launch(schedule, &args.launch(1000).map_err(fail)?, &args)
    };

    let args = norms::Args {
        x: hidden.ptr(),
        residual: residual.ptr(),
        weight: norm.ptr(),
        bias: zeros.ptr(),
        y: normed.ptr(),
        x_stride: D as u32,
        residual_stride: D as u32,
        y_stride: D as u32,
        parts: 1,
        rows: M as u32,
        d: D as u32,
        eps: 1e-5,
        ..norms::Args::default()
    };
    launch(schedule, &args.launch().map_err(fail)?, &args)?;
    linear(normed.ptr(), D, in_proj.ptr(), (2 * E, D), xz.ptr())?;
    let args = conv::Args {
        x: xz.ptr(),
        taps: taps.ptr(),
        bias: conv_bias.ptr(),
        y: c.ptr(),
        y_dir: (M * E) as u64,
        x_stride: 2 * E as u32,
        y_stride: E as u32,
        batch: B as u32,
        len: L as u32,
        d: E as u32,
        k: K as u32,
        act: act(Act::Silu),
        reversed: 0b10,
        ..conv::Args::default()
    };
    launch(schedule, &args.launch(2).map_err(fail)?, &args)?;
    for k in 0..2 {
        let (c, dbc, dt) =
            (after(c.ptr(), k * M * E, 1), after(dbc.ptr(), k * M * P, 1), after(dt.ptr(), k * M * E, 1));
        linear(c, E, after(x_proj.ptr(), k * P * E, 1), (P, E), dbc)?;
        linear(dbc, P, after(dt_proj.ptr(), k * E * R, 1), (E, R), dt)?;
    }
    let args = scans::Args {
        u: c.ptr(),
        dt: dt.ptr(),
        dt_bias: dt_bias.ptr(),
        a: a.ptr(),
        b: after(dbc.ptr(), R, 1),
        c: after(dbc.ptr(), R + N, 1),
        skip: skip.ptr(),
        z: after(xz.ptr(), E, 1),
        y: y.ptr(),
        u_dir: (M * E) as u64,
        dt_dir: (M * E) as u64,
        bc_dir: (M * P) as u64,
        y_dir: (M * E) as u64,
        u_stride: E as u32,
        dt_stride: E as u32,
        bc_stride: P as u32,
        z_stride: 2 * E as u32,
        y_stride: E as u32,
        batch: B as u32,
        len: L as u32,
        d: E as u32,
        n: N as u32,
        per_group: E as u32,
        orders: order::pack(&[order::FORWARD, order::REVERSE]),
        chunk: L as u32,
        softplus: 1,
        ..scans::Args::default()
    };
    launch(schedule, &args.scan(2).map_err(fail)?, &args)?;
    let args = Gate {
        x: y.ptr(),
        y: y.ptr(),
        part_stride: (M * E) as u64,
        x_stride: E as u32,
        y_stride: E as u32,
        parts: 2,
        rows: M as u32,
        d: E as u32,
        act: act(Act::None),
        ..Gate::default()
    };
    launch(schedule, &args.launch().map_err(fail)?, &args)?;
    linear(y.ptr(), E, out_proj.ptr(), (D, E), hidden.ptr())?;
    Ok(vec![hidden.read(), residual.read()])
}

#[test]
fn a_block_of_vim_agrees_with_scalar() {
    let mut rng = Rng::new(71);
    let w = Weights::new(&mut rng);
    let (hidden, residual) = (rng.vec(M * D), rng.vec(M * D));
    let want = judge(&w, &hidden, &residual);
    let got = every_schedule(|schedule| run(schedule, &w, &hidden, &residual)).unwrap_or_else(|e| panic!("{e}"));
    // Roundings of eight launches.
    close("hidden", Kind::F32, 1e-5, &got[0], &want[0]);
    close("residual", Kind::F32, 0.0, &got[1], &want[1]);
}
