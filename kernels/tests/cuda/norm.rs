use crate::machine::{self, Memory, Numbers, Schedule, close, every_schedule, launch, rounded};
use crate::testing::Rng;
use ssm_kernels::activation::silu;
use ssm_kernels::cuda::norm::Args;
use ssm_kernels::cuda::{Kind, Ptr};
use ssm_kernels::norm::{Kind as NormKind, Norm, add_norm, norm};
use ssm_kernels::{CpuLevel, Cx, Mat, MatMut};

/// What is done beside the norm.
#[derive(Clone, Copy, Debug)]
struct With {
    parts: usize,
    residual: bool,
    /// Gate on the input (true) or on the result.
    gate: Option<bool>,
    x_kind: Kind,
    y_kind: Kind,
}

const PLAIN: With = With { parts: 1, residual: false, gate: None, x_kind: Kind::F32, y_kind: Kind::F32 };

#[test]
fn agrees_with_scalar() {
    let mut rng = Rng::new(11);
    for (rows, d) in [(0, 4), (1, 1), (3, 31), (2, 32), (5, 33), (4, 192), (1, 1000), (2, 5000)] {
        for with in [
            PLAIN,
            With { residual: true, y_kind: Kind::Bf16, ..PLAIN },
            With { residual: true, parts: 2, x_kind: Kind::Bf16, ..PLAIN },
            With { parts: 4, gate: Some(true), ..PLAIN },
            With { gate: Some(false), x_kind: Kind::F16, y_kind: Kind::F16, ..PLAIN },
        ] {
            for kind in [NormKind::Rms, NormKind::Layer] {
                check(&mut rng, rows, d, with, kind);
            }
        }
    }
}

fn check(rng: &mut Rng, rows: usize, d: usize, with: With, kind: NormKind) {
    let what = format!("{rows}x{d} {kind:?} {with:?}");
    // Of one channel LayerNorm leaves rounding over the root of eps.
    let eps = if d == 1 { 0.1 } else { 1e-5 };
    let w = Norm::new(kind, rng.vec(d), Some(rng.vec(d)), eps);
    let x = rounded(with.x_kind, &machine::rows(rng, with.parts * rows, d));
    let z = rounded(with.x_kind, &machine::rows(rng, rows, d));
    let (residual, old) = (machine::rows(rng, rows, d), rounded(with.y_kind, &machine::rows(rng, rows, d)));

    let mut input = vec![0.0; rows * (d + 1)];
    for part in x.chunks_exact((rows * (d + 1)).max(1)) {
        input.iter_mut().zip(part).for_each(|(i, x)| *i += x);
    }
    if with.gate == Some(true) {
        input.iter_mut().zip(&z).for_each(|(i, z)| *i *= silu(*z));
    }
    let (mut want_residual, mut want) = (residual.clone(), old.clone());
    let mat = |v| Mat::strided(v, rows, d, d + 1);
    let y = MatMut::strided(&mut want, rows, d, d + 1);
    if with.residual {
        let r = MatMut::strided(&mut want_residual, rows, d, d + 1);
        add_norm(&Cx::at(CpuLevel::Scalar, 1), &w, mat(&input), r, y);
    } else {
        norm(&Cx::at(CpuLevel::Scalar, 1), &w, mat(&input), y);
    }
    if with.gate == Some(false) {
        want.iter_mut().zip(&z).enumerate().filter(|(i, _)| i % (d + 1) < d).for_each(|(_, (y, z))| *y *= silu(*z));
    }

    let run = |schedule: Schedule| {
        let [x, z] = [&x, &z].map(|v| Numbers::new(schedule, with.x_kind, v));
        let y = Numbers::new(schedule, with.y_kind, &old);
        let [residual, weight, bias] = [&residual, &w.weight, &w.bias].map(|v| Memory::new(schedule, v));
        let stride = d as u32 + 1;
        let args = Args {
            x: x.ptr(),
            z: if with.gate.is_some() { z.ptr() } else { Ptr::NONE },
            residual: if with.residual { residual.ptr() } else { Ptr::NONE },
            weight: weight.ptr(),
            bias: bias.ptr(),
            y: y.ptr(),
            part_stride: (rows * (d + 1)) as u64,
            x_stride: stride,
            z_stride: stride,
            residual_stride: stride,
            y_stride: stride,
            x_kind: with.x_kind,
            y_kind: with.y_kind,
            parts: with.parts as u32,
            rows: rows as u32,
            d: d as u32,
            layer: u32::from(kind == NormKind::Layer),
            gate_first: u32::from(with.gate == Some(true)),
            eps,
        };
        launch(schedule, &args.launch().map_err(|e| e.to_string())?, &args)?;
        Ok(vec![y.read(), residual.read()])
    };
    let got = every_schedule(run).unwrap_or_else(|e| panic!("{what}: {e}"));
    close(&what, with.y_kind, 5e-6, &got[0], &want);
    close(&what, Kind::F32, 1e-7, &got[1], &want_residual);
}
