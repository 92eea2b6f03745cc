use crate::machine::{Memory, Numbers, Schedule, close, every_schedule, launch, rounded};
use crate::testing::Rng;
use ssm_kernels::Act;
use ssm_kernels::cuda::linear::Args;
use ssm_kernels::cuda::{Kind, Ptr, act};

#[derive(Clone, Copy, Debug)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    /// Values between the rows of x: fewer than k where they overlap.
    hop: usize,
    /// Batches of rows, with room between them.
    batches: usize,
    bias: bool,
    act: Act,
    add: bool,
    /// Of x, w and y.
    kinds: [Kind; 3],
    /// Of the device: 1 asks for the large blocks.
    processors: u32,
    /// Rows begin where the tensor cores want them.
    even: bool,
}

const F32: [Kind; 3] = [Kind::F32; 3];

/// Checks a product and gives what it wrote.
fn check(rng: &mut Rng, s: Shape) -> Vec<f32> {
    let Shape { m, n, k, hop, batches, kinds, .. } = s;
    let per = (m / batches).max(1);
    let gap = if s.even { 8 } else { 1 };
    let (x_batch, y_batch) = (per * hop + k + gap, per * (n + 2) + 3);
    let x = rounded(kinds[0], &rng.vec(batches * x_batch));
    let x = &x[..x.len() - gap - hop];
    let mut w = vec![f32::NAN; n * (k + gap)];
    w.chunks_exact_mut(k + gap).for_each(|row| row[..k].copy_from_slice(&rng.vec(k)));
    let w = rounded(kinds[1], &w);
    let (bias, old) = (rng.vec(n), rounded(kinds[2], &rng.vec(batches * y_batch)));

    let mut want = old.clone();
    for r in 0..m {
        let (x, y) = (&x[r / per * x_batch + r % per * hop..], r / per * y_batch + r % per * (n + 2));
        for (c, y) in want[y..][..n].iter_mut().enumerate() {
            let terms = x[..k].iter().zip(&w[c * (k + gap)..]);
            let sum: f64 = terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let v = s.act.scalar((sum + if s.bias { f64::from(bias[c]) } else { 0.0 }) as f32);
            *y = if s.add { *y + v } else { v };
        }
    }

    let run = |schedule: Schedule| {
        let [x, w, y] = [(kinds[0], x), (kinds[1], &w), (kinds[2], &old)].map(|(k, v)| Numbers::new(schedule, k, v));
        let bias = Memory::new(schedule, &bias);
        let args = Args {
            x: x.ptr(),
            w: w.ptr(),
            bias: if s.bias { bias.ptr() } else { Ptr::NONE },
            y: y.ptr(),
            x_batch: x_batch as u64,
            y_batch: y_batch as u64,
            x_stride: hop as u32,
            y_stride: n as u32 + 2,
            w_stride: (k + gap) as u32,
            batch_rows: per as u32,
            x_kind: kinds[0],
            w_kind: kinds[1],
            y_kind: kinds[2],
            m: m as u32,
            n: n as u32,
            k: k as u32,
            act: act(s.act),
            add: u32::from(s.add),
            ..Args::default()
        };
        let l = args.launch(s.processors).map_err(|e| e.to_string())?;
        let tensor_cores = l.kernel.ends_with("f16");
        assert_eq!(tensor_cores, s.even && m > 8, "{s:?}: {}", l.kernel);
        launch(schedule, &l, &args)?;
        Ok(vec![y.read()])
    };
    let got = every_schedule(run).unwrap_or_else(|e| panic!("{s:?}: {e}"));
    close(&format!("{s:?}"), kinds[2], 2e-6, &got[0], &want);
    got.concat()
}

#[test]
fn agrees_with_the_definition() {
    let mut rng = Rng::new(3);
    let acts = [Act::None, Act::Relu, Act::Silu, Act::Gelu, Act::Sigmoid, Act::Softplus];
    for (i, (m, n, k)) in [
        (0, 5, 3),
        (1, 1, 1),
        (1, 33, 7),
        (1, 70, 64),
        (3, 16, 5),
        (8, 31, 100),
        (9, 32, 1),
        (13, 17, 9),
        (50, 70, 33),
        (65, 65, 17),
        (64, 64, 16),
        (100, 100, 40),
        (12, 5, 0),
        (130, 140, 20),
        (128, 128, 8),
    ]
    .into_iter()
    .enumerate()
    {
        for processors in if m > 8 { vec![1, 1000] } else { vec![1] } {
            let (act, bias, add) = (acts[i % 6], i % 3 > 0, i % 2 == 0);
            check(
                &mut rng,
                Shape { m, n, k, hop: k + 3, batches: 1, bias, act, add, kinds: F32, processors, even: false },
            );
        }
    }
}

#[test]
fn rows_overlap_and_come_in_batches() {
    let mut rng = Rng::new(4);
    for (m, n, k, hop, batches) in [(4, 5, 4, 2, 2), (36, 20, 8, 3, 3), (150, 130, 12, 4, 2)] {
        for processors in [1, 1000] {
            let s = Shape {
                m,
                n,
                k,
                hop,
                batches,
                bias: true,
                act: Act::None,
                add: false,
                kinds: F32,
                processors,
                even: false,
            };
            check(&mut rng, s);
        }
    }
}

#[test]
fn halves_are_read_and_written() {
    let mut rng = Rng::new(5);
    use Kind::{Bf16, F16, F32};
    for kinds in [[Bf16, Bf16, Bf16], [F16, F16, F16], [F32, Bf16, F32], [Bf16, Bf16, F32]] {
        for (m, processors) in [(2, 1), (70, 1000), (129, 1)] {
            let (n, k, hop, act) = (67, 35, 36, Act::Silu);
            check(
                &mut rng,
                Shape { m, n, k, hop, batches: 1, bias: true, act, add: true, kinds, processors, even: false },
            );
        }
    }
}

#[test]
fn tensor_cores_agree_with_the_definition() {
    let mut rng = Rng::new(6);
    use Kind::{Bf16, F16, F32};
    for (kind, y) in [(Bf16, F32), (F16, F16)] {
        for (m, n, k, hop, batches, processors) in [
            (9, 3, 8, 8, 1, 1000),
            (64, 64, 32, 40, 2, 1000),
            (67, 70, 40, 16, 1, 1000),
            (130, 131, 72, 80, 2, 1),
            (9, 9, 0, 8, 1, 1),
        ] {
            let (kinds, act) = ([kind, kind, y], Act::Silu);
            check(&mut rng, Shape { m, n, k, hop, batches, bias: true, act, add: true, kinds, processors, even: true });
        }
    }
}

/// So a row does not depend on how many are computed beside it.
#[test]
fn blocks_of_both_sizes_give_the_same_bits() {
    use Kind::{Bf16, F32};
    for (kinds, even) in [([F32; 3], false), ([Bf16, Bf16, F32], true)] {
        let (m, n, k, hop, act) = (140, 150, 88, 96, Act::Silu);
        let of = |processors| {
            let s = Shape { m, n, k, hop, batches: 1, bias: true, act, add: false, kinds, processors, even };
            check(&mut Rng::new(7), s)
        };
        assert!(of(1) == of(1000), "{kinds:?}");
    }
}
