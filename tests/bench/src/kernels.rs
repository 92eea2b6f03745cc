//! The matrix product and the scan at the shapes of the networks.

use crate::roof;
use ssm_bench::{race, values};
use ssm_kernels::linear::{Linear, Store, linear};
use ssm_kernels::selective_scan::{Order, Scan, selective_scan};
use ssm_kernels::{Act, CpuLevel, Cx, Mat, MatMut};
use std::cell::Cell;

/// Rows, outputs, inputs and what the product is.
const PRODUCTS: &[(usize, usize, usize, &str)] = &[
    (197, 768, 192, "Vim-Ti in_proj"),
    (197, 44, 384, "Vim-Ti x_proj"),
    (197, 384, 12, "Vim-Ti dt_proj"),
    (197, 192, 384, "Vim-Ti out_proj"),
    (196, 192, 768, "Vim-Ti patches"),
    (3136, 384, 96, "VMamba-T fc1"),
    (60, 384, 96, "  of 60 pixels"),
    (60, 96, 384, "  fc2 of 60 pixels"),
    (16, 256, 128, "denoiser, 16 hops"),
    (1, 256, 128, "denoiser, 1 hop"),
    (1, 3072, 768, "Mamba-130m step"),
];

/// Times that a rate above the roof is looked at again.
const DOUBTS: usize = 3;

fn products(level: CpuLevel, threads: usize) {
    println!("\nmatrix product y = x Wᵀ, {threads} threads: GFLOP/s, share of the roof, against other crates and with weights of 16 bits");
    println!("{:>5} {:>5} {:>5}  {:<18} {:>7} {:>6} {:>8} {:>8} {:>8}", "m", "n", "k", "", "ours", "roof", "gemm", "matmul", "16 bits");
    let cx = Cx::at(level, threads);
    for &(m, n, k, what) in PRODUCTS {
        let (x, wt) = (values(m * k, 1.0), values(n * k, 0.1));
        let packed = Linear::pack(cx.level, &wt, n, k, None);
        // The scale of `values` lets no float of 32 bits fit into 16; these do.
        let narrow = Linear::pack_with(cx.level, n, k, None, |c, i| (wt[c * k + i] * 1024.0).round() / 1024.0);
        let mut y_narrow = vec![0.0; m * n];
        // matrixmultiply stays on one thread.
        let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
        let (mut y, mut y_gemm, mut y_mm) = (vec![0.0; m * n], vec![0.0; m * n], vec![0.0; m * n]);
        let ops = Cell::new(0.0);
        let mut turns = || {
            race(
                0.4,
                &mut [
                    &mut || linear(&cx, Mat::new(&x, m, k), &packed, Act::None, Store::Set, MatMut::new(&mut y, m, n)),
                    // SAFETY: the matrices have the sizes and strides given.
                    &mut || unsafe {
                        gemm::gemm(
                            m,
                            n,
                            k,
                            y_gemm.as_mut_ptr(),
                            1,
                            n as isize,
                            false,
                            x.as_ptr(),
                            1,
                            k as isize,
                            wt.as_ptr(),
                            k as isize,
                            1,
                            0.0f32,
                            1.0,
                            false,
                            false,
                            false,
                            parallelism,
                        )
                    },
                    // SAFETY: as above.
                    &mut || unsafe {
                        matrixmultiply::sgemm(
                            m,
                            k,
                            n,
                            1.0,
                            x.as_ptr(),
                            k as isize,
                            1,
                            wt.as_ptr(),
                            1,
                            k as isize,
                            0.0,
                            y_mm.as_mut_ptr(),
                            n as isize,
                            1,
                        )
                    },
                    &mut || ops.set(roof::chain(level, 3_000)),
                    &mut || {
                        linear(&cx, Mat::new(&x, m, k), &narrow, Act::None, Store::Set, MatMut::new(&mut y_narrow, m, n))
                    },
                ],
            )
        };
        // The roof is measured in turns with the products: on a busy machine it comes and goes. What is above it then by
        // chance is not so again and again.
        let rate = |s: f64| (2 * m * n * k) as f64 / s;
        let (mut seconds, mut share) = (Vec::new(), f64::MAX);
        for _ in 0..DOUBTS {
            seconds = turns();
            share = rate(seconds[0]) / (ops.get() / seconds[3] * threads as f64);
            if share < 1.1 {
                break;
            }
        }
        assert!(share < 1.1, "{what}: {:.0} GFLOP/s is above the roof", rate(seconds[0]) / 1e9);
        for (name, other) in [("gemm", &y_gemm), ("matrixmultiply", &y_mm)] {
            let worst = y.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-3, "{what}: {name} and ours differ by {worst}");
        }
        println!(
            "{m:>5} {n:>5} {k:>5}  {what:<18} {:>7.1} {:>5.0}% {:>7.2}x {:>7.2}x {:>7.2}x",
            rate(seconds[0]) / 1e9,
            100.0 * share,
            seconds[1] / seconds[0],
            seconds[2] / seconds[0],
            seconds[4] / seconds[0]
        );
    }
}

pub fn scans(most: CpuLevel) {
    println!("\nselective scan, one thread: microseconds, 10⁹ state updates a second");
    for (len, d, n, what) in [(197, 384, 16, "Vim-Ti"), (3136, 96, 1, "VMamba-T"), (1, 1536, 16, "Mamba-130m step")] {
        let (u, dt, z) = (values(len * d, 1.0), values(len * d, 1.0), values(len * d, 1.0));
        let (bias, skip) = (values(d, 1.0), values(d, 1.0));
        let a: Vec<f32> = (0..n * d).map(|i| -((i / d + 1) as f32)).collect();
        let bc = values(len * 2 * n, 1.0);
        let (mut h, mut y) = (vec![0.0; n * d], vec![0.0; len * d]);
        print!("{len:>5} x {d:>4} x {n:>2}  {what:<16}");
        for level in CpuLevel::present().filter(|l| *l <= most) {
            let cx = Cx::at(level, 1);
            let bc = Mat::new(&bc, len, 2 * n);
            let scan = Scan {
                u: Mat::new(&u, len, d),
                dt: Mat::new(&dt, len, d),
                dt_bias: Some(&bias),
                softplus: true,
                scale: 1.0,
                a: &a,
                b: bc.columns(0..n),
                c: bc.columns(n..2 * n),
                d: Some(&skip),
                z: Some(Mat::new(&z, len, d)),
                order: Order::Forward,
                add: false,
            };
            let seconds = race(
                0.3,
                &mut [&mut || {
                    h.fill(0.0);
                    selective_scan(&cx, &scan, &mut h, MatMut::new(&mut y, len, d));
                }],
            )[0];
            print!("  {level} {:>8.1} us {:>5.2}", seconds * 1e6, (len * d * n) as f64 / seconds / 1e9);
        }
        println!();
    }
}

pub fn run(level: CpuLevel, cores: usize) {
    products(level, 1);
    if cores > 1 {
        products(level, cores);
    }
    scans(level);
}
