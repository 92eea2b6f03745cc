use crate::machine::{self, Memory, Schedule, close, every_schedule, launch};
use crate::scalar;
use crate::testing::Rng;
use ssm_kernels::cuda::activation::Gate;
use ssm_kernels::cuda::linear::Args as Linear;
use ssm_kernels::cuda::moe_route::Args;
use ssm_kernels::cuda::{Kind, Ptr, act};
use ssm_kernels::linear::Store;
use ssm_kernels::moe_route::{Experts, Tensors, moe_route};
use ssm_kernels::{Act, CpuLevel, Mat, MatMut};

#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: usize,
    experts: usize,
    k: usize,
    d: usize,
    f: usize,
    d_out: usize,
    gated: bool,
    add: bool,
}

fn check(rng: &mut Rng, s: Shape) {
    let Shape { rows, experts, k, d, f, d_out, gated, add } = s;
    // Experts in pairs that score the same.
    let mut router = rng.vec(d * experts);
    router.chunks_exact_mut(experts).flat_map(|row| row.chunks_exact_mut(2)).for_each(|pair| pair[1] = pair[0]);
    let (lin1, gate) = (rng.vec(experts * d * f), rng.vec(experts * d * f));
    let lin2 = rng.vec(experts * f * d_out);
    let gate = gated.then_some(&gate[..]);
    let tensors = Tensors { experts, d, f, d_out, router: &router, lin1: &lin1, gate, lin2: &lin2 };
    let packed = Experts::pack(CpuLevel::Scalar, &tensors, Act::Silu, k);
    let (mut x, old) = (machine::rows(rng, rows, d), machine::rows(rng, rows, d_out));
    if add {
        // A row without a score.
        x[0] = f32::NAN;
    }
    let mut want = old.clone();
    let mut scratch = vec![0.0; packed.scratch_len(rows)];
    let store = if add { Store::Add } else { Store::Set };
    let y = MatMut::strided(&mut want, rows, d_out, d_out + 1);
    let chosen = moe_route(&scalar(), &packed, Mat::strided(&x, rows, d, d + 1), &mut scratch, store, y).to_vec();

    // Output-major, as the device reads them; the gate's rows after those of lin1.
    let hidden = if gated { 2 * f } else { f };
    let first = |e: usize, o: usize, i: usize| {
        let from = if o < f { &lin1[..] } else { gate.unwrap_or(&lin1) };
        from[(e * d + i) * f + o % f]
    };
    let w1: Vec<f32> = (0..experts * hidden * d).map(|j| first(j / d / hidden, j / d % hidden, j % d)).collect();
    let w2: Vec<f32> =
        (0..experts * d_out * f).map(|j| lin2[(j / f / d_out * f + j % f) * d_out + j / f % d_out]).collect();
    let wr: Vec<f32> = (0..experts * d).map(|j| router[j % d * experts + j / d]).collect();

    let run = |schedule: Schedule| {
        let single = |v: &[f32]| Memory::new(schedule, v);
        let room = |n: usize| Memory::new(schedule, &vec![f32::NAN; n]);
        let numbers = |n: usize| Memory::new(schedule, &vec![u32::MAX; n]);
        let (wr, w1, w2, x, y) = (single(&wr), single(&w1), single(&w2), single(&x), single(&old));
        let routed = rows * k;
        let (scores, values, inner, outputs) =
            (room(rows * experts), room(routed), room(routed * hidden), room(routed * d_out));
        let (chosen, counts, starts) = (numbers(routed), numbers(experts), numbers(experts + 1));
        let (place, from) = (numbers(routed), numbers(routed));
        let fail = |e: ssm_kernels::cuda::TooLarge| e.to_string();
        let product = Linear {
            x: x.ptr(),
            w: wr.ptr(),
            y: scores.ptr(),
            x_stride: d as u32 + 1,
            y_stride: experts as u32,
            w_stride: d as u32,
            batch_rows: rows as u32,
            m: rows as u32,
            n: experts as u32,
            k: d as u32,
            ..Linear::default()
        };
        launch(schedule, &product.launch(1000).map_err(fail)?, &product)?;
        let args = Args {
            scores: scores.ptr(),
            chosen: chosen.ptr(),
            values: values.ptr(),
            counts: counts.ptr(),
            starts: starts.ptr(),
            place: place.ptr(),
            from: from.ptr(),
            outputs: outputs.ptr(),
            y: y.ptr(),
            outputs_stride: d_out as u32,
            y_stride: d_out as u32 + 1,
            outputs_kind: Kind::F32,
            y_kind: Kind::F32,
            rows: rows as u32,
            experts: experts as u32,
            k: k as u32,
            d: d_out as u32,
            add: u32::from(add),
        };
        launch(schedule, &args.choose().map_err(fail)?, &args)?;
        launch(schedule, &args.count(), &args)?;
        launch(schedule, &args.place(), &args)?;
        let product = Linear {
            w: w1.ptr(),
            y: inner.ptr(),
            y_stride: hidden as u32,
            m: routed as u32,
            n: hidden as u32,
            act: if gated { 0 } else { act(Act::Silu) },
            starts: starts.ptr(),
            from: from.ptr(),
            w_expert: (hidden * d) as u64,
            experts: experts as u32,
            batch_rows: routed as u32,
            ..product
        };
        launch(schedule, &product.grouped().map_err(fail)?, &product)?;
        if gated {
            let gate = Gate {
                x: inner.ptr(),
                gate: Ptr(inner.ptr().0 + 4 * f as u64),
                y: inner.ptr(),
                x_stride: hidden as u32,
                gate_stride: hidden as u32,
                y_stride: hidden as u32,
                parts: 1,
                rows: routed as u32,
                d: f as u32,
                act: act(Act::Silu),
                ..Gate::default()
            };
            launch(schedule, &gate.launch().map_err(fail)?, &gate)?;
        }
        let product = Linear {
            x: inner.ptr(),
            w: w2.ptr(),
            y: outputs.ptr(),
            x_stride: hidden as u32,
            y_stride: d_out as u32,
            w_stride: f as u32,
            n: d_out as u32,
            k: f as u32,
            act: 0,
            from: Ptr::NONE,
            w_expert: (d_out * f) as u64,
            ..product
        };
        launch(schedule, &product.grouped().map_err(fail)?, &product)?;
        launch(schedule, &args.combine().map_err(fail)?, &args)?;
        Ok(vec![y.read(), chosen.read().iter().map(|e| *e as f32).collect()])
    };
    let got = every_schedule(run).unwrap_or_else(|e| panic!("{s:?}: {e}"));
    assert_eq!(got[1], chosen.iter().map(|e| *e as f32).collect::<Vec<_>>(), "{s:?}: who goes where");
    close(&format!("{s:?}"), Kind::F32, 4e-6, &got[0], &want);
}

#[test]
fn agrees_with_scalar() {
    let mut rng = Rng::new(61);
    for (rows, experts, k, d, f, d_out) in
        [(1, 1, 1, 1, 1, 1), (9, 4, 1, 5, 7, 3), (40, 33, 2, 8, 6, 9), (130, 3, 2, 4, 5, 66), (20, 70, 3, 3, 65, 2)]
    {
        for (gated, add) in [(false, false), (true, true)] {
            check(&mut rng, Shape { rows, experts, k, d, f, d_out, gated, add });
        }
    }
}
