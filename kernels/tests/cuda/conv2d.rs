use crate::machine::{self, Memory, Numbers, Schedule, close, every_schedule, launch, rounded};
use crate::scalar;
use crate::testing::Rng;
use ssm_kernels::conv2d::{Conv2d, Depthwise, conv2d, depthwise};
use ssm_kernels::cuda::conv2d as cuda;
use ssm_kernels::cuda::linear::Args as Linear;
use ssm_kernels::cuda::{Kind, act};
use ssm_kernels::patch::merge;
use ssm_kernels::{Act, CpuLevel, Mat, MatMut};

#[test]
fn depthwise_agrees_with_scalar() {
    let mut rng = Rng::new(41);
    for (batch, height, width, d, kernel) in [
        (1, 1, 1, 1, 3),
        (2, 3, 5, 7, 3),
        (1, 2, 9, 33, 3),
        (1, 8, 4, 100, 3),
        (2, 4, 6, 5, 5),
        (1, 3, 2, 3, 1),
        (1, 1, 13, 4, 7),
    ] {
        for kind in [Kind::F32, Kind::Bf16] {
            let (pixels, area) = (height * width, kernel * kernel);
            let x = rounded(kind, &machine::rows(&mut rng, batch * pixels, d));
            let (w, bias) = (rng.vec(d * area), rng.vec(d));
            let packed = Depthwise::new(&w, d, kernel, Some(&bias));
            let taps: Vec<f32> = (0..area * d).map(|i| w[i % d * area + i / d]).collect();
            let old = rounded(kind, &machine::rows(&mut rng, batch * pixels, d));
            let mut want = old.clone();
            for b in 0..batch {
                let at = b * pixels * (d + 1);
                let x = Mat::strided(&x[at..], pixels, d, d + 1);
                let y = MatMut::strided(&mut want[at..], pixels, d, d + 1);
                depthwise(&scalar(), &packed, x, (height, width), Act::Silu, y);
            }
            let run = |schedule: Schedule| {
                let [x, y] = [&x, &old].map(|v| Numbers::new(schedule, kind, v));
                let (taps, bias) = (Memory::new(schedule, &taps), Memory::new(schedule, &bias));
                let args = cuda::Depthwise {
                    x: x.ptr(),
                    taps: taps.ptr(),
                    bias: bias.ptr(),
                    y: y.ptr(),
                    x_stride: d as u32 + 1,
                    y_stride: d as u32 + 1,
                    kind,
                    batch: batch as u32,
                    height: height as u32,
                    width: width as u32,
                    d: d as u32,
                    kernel: kernel as u32,
                    act: act(Act::Silu),
                };
                launch(schedule, &args.launch().map_err(|e| e.to_string())?, &args)?;
                Ok(vec![y.read()])
            };
            let what = format!("{batch}x{height}x{width}x{d}, kernel {kernel}, {kind:?}");
            let got = every_schedule(run).unwrap_or_else(|e| panic!("{what}: {e}"));
            close(&what, kind, 2e-6, &got[0], &want);
        }
    }
}

#[test]
fn windows_and_a_product_are_a_convolution() {
    let mut rng = Rng::new(42);
    for ([out, channels, kernel], (stride, padding), (height, width)) in [
        ([3, 2, 3], (1, 1), (4, 5)),
        ([17, 3, 3], (2, 1), (7, 8)),
        ([5, 1, 1], (1, 0), (3, 3)),
        ([9, 4, 2], (2, 0), (5, 6)),
        ([2, 1, 5], (1, 0), (3, 9)),
    ] {
        let k = kernel * kernel * channels;
        let (w, bias) = (rng.vec(out * k), rng.vec(out));
        let packed = Conv2d::pack(CpuLevel::Scalar, &w, [out, channels, kernel], (stride, padding), Some(&bias));
        let (down, across) = packed.out_size((height, width));
        let (batch, pixels, windows) = (2, height * width, down * across);
        let x = machine::rows(&mut rng, batch * pixels, channels);
        // (line, column, channel), as the windows have it.
        let area = kernel * kernel;
        let rows: Vec<f32> = (0..out * k).map(|i| w[i / k * k + i % k % channels * area + i % k / channels]).collect();
        let mut want = vec![0.0; batch * windows * out];
        let mut scratch = vec![0.0; packed.scratch_len(1)];
        for b in 0..batch {
            let x = Mat::strided(&x[b * pixels * (channels + 1)..], pixels, channels, channels + 1);
            let y = MatMut::new(&mut want[b * windows * out..], windows, out);
            conv2d(&scalar(), &packed, x, (height, width), Act::Gelu, &mut scratch, y);
        }
        let run = |schedule: Schedule| {
            let (x, rows, bias) =
                (Memory::new(schedule, &x), Memory::new(schedule, &rows), Memory::new(schedule, &bias));
            let between = Memory::new(schedule, &vec![f32::NAN; batch * windows * k]);
            let y = Memory::new(schedule, &vec![f32::NAN; want.len()]);
            let args = cuda::Windows {
                x: x.ptr(),
                y: between.ptr(),
                x_stride: channels as u32 + 1,
                y_stride: k as u32,
                batch: batch as u32,
                height: height as u32,
                width: width as u32,
                d: channels as u32,
                kernel: kernel as u32,
                stride: stride as u32,
                padding: padding as u32,
                ..cuda::Windows::default()
            }
            .counted();
            assert_eq!((args.down as usize, args.across as usize), (down, across));
            launch(schedule, &args.launch().map_err(|e| e.to_string())?, &args)?;
            let product = Linear {
                x: between.ptr(),
                w: rows.ptr(),
                bias: bias.ptr(),
                y: y.ptr(),
                x_stride: k as u32,
                y_stride: out as u32,
                w_stride: k as u32,
                batch_rows: (batch * windows).max(1) as u32,
                m: (batch * windows) as u32,
                n: out as u32,
                k: k as u32,
                act: act(Act::Gelu),
                ..Linear::default()
            };
            launch(schedule, &product.launch(1000).map_err(|e| e.to_string())?, &product)?;
            Ok(vec![y.read()])
        };
        let what = format!("{out}x{channels}x{kernel}, stride {stride}, padding {padding}, {height}x{width}");
        let got = every_schedule(run).unwrap_or_else(|e| panic!("{what}: {e}"));
        close(&what, Kind::F32, 2e-6, &got[0], &want);
    }
}

#[test]
fn merging_agrees_with_scalar() {
    let mut rng = Rng::new(43);
    for (batch, height, width, d, kind) in
        [(1, 1usize, 1usize, 1, Kind::F32), (2, 3, 4, 5, Kind::F32), (1, 6, 7, 33, Kind::Bf16), (2, 2, 2, 8, Kind::F16)]
    {
        let (pixels, windows) = (height * width, height.div_ceil(2) * width.div_ceil(2));
        let x = rounded(kind, &machine::rows(&mut rng, batch * pixels, d));
        let old = rounded(kind, &machine::rows(&mut rng, batch * windows, 4 * d));
        let mut want = old.clone();
        for b in 0..batch {
            let x = Mat::strided(&x[b * pixels * (d + 1)..], pixels, d, d + 1);
            let y = MatMut::strided(&mut want[b * windows * (4 * d + 1)..], windows, 4 * d, 4 * d + 1);
            merge(x, (height, width), y);
        }
        let run = |schedule: Schedule| {
            let [x, y] = [&x, &old].map(|v| Numbers::new(schedule, kind, v));
            let args = cuda::Windows {
                x: x.ptr(),
                y: y.ptr(),
                x_stride: d as u32 + 1,
                y_stride: 4 * d as u32 + 1,
                kind,
                batch: batch as u32,
                height: height as u32,
                width: width as u32,
                d: d as u32,
                ..cuda::Windows::default()
            }
            .merging();
            launch(schedule, &args.launch().map_err(|e| e.to_string())?, &args)?;
            Ok(vec![y.read()])
        };
        let what = format!("{batch}x{height}x{width}x{d}, {kind:?}");
        let got = every_schedule(run).unwrap_or_else(|e| panic!("{what}: {e}"));
        close(&what, Kind::F32, 0.0, &got[0], &want);
    }
}

#[test]
fn overlapping_rows_are_summed() {
    let mut rng = Rng::new(44);
    for (batch, len, d, stride, last) in
        [(1, 0, 3, 2, 0), (1, 0, 3, 2, 1), (2, 1, 1, 2, 0), (1, 5, 7, 2, 1), (3, 4, 65, 2, 0), (2, 3, 2, 4, 1)]
    {
        let (half, out) = (stride * d, (len + last) * stride * d);
        let (x, bias) = (machine::rows(&mut rng, batch * len, 2 * half), rng.vec(d));
        let (slot_len, slots) = (half + 2, (0..batch as u32).rev().collect::<Vec<_>>());
        let pool = rng.vec(batch * slot_len);
        let (mut want, mut want_pool) = (vec![f32::NAN; batch * (out + 3)], pool.clone());
        for b in 0..batch {
            let state = &mut want_pool[slots[b] as usize * slot_len..][..half];
            let mut sum = vec![0.0; (len + 1) * half];
            sum[..half].copy_from_slice(state);
            for t in 0..len {
                let row = &x[(b * len + t) * (2 * half + 1)..][..2 * half];
                sum[t * half..][..2 * half].iter_mut().zip(row).for_each(|(s, r)| *s += r);
            }
            state.copy_from_slice(&sum[len * half..]);
            for (i, y) in want[b * (out + 3)..][..out].iter_mut().enumerate() {
                *y = Act::Relu.scalar(sum[i] + bias[i % d]);
            }
        }
        let run = |schedule: Schedule| {
            let single = |v: &[f32]| Memory::new(schedule, v);
            let (x, bias, pool, slots) = (single(&x), single(&bias), single(&pool), Memory::new(schedule, &slots));
            let y = single(&vec![f32::NAN; want.len()]);
            let args = cuda::Overlap {
                x: x.ptr(),
                bias: bias.ptr(),
                y: y.ptr(),
                state: pool.ptr(),
                slots: slots.ptr(),
                state_stride: slot_len as u64,
                y_batch: out as u64 + 3,
                x_stride: 2 * half as u32 + 1,
                kind: Kind::F32,
                batch: batch as u32,
                len: len as u32,
                d: d as u32,
                stride: stride as u32,
                act: act(Act::Relu),
                last: last as u32,
            };
            launch(schedule, &args.launch().map_err(|e| e.to_string())?, &args)?;
            Ok(vec![y.read(), pool.read()])
        };
        let what = format!("{batch}x{len}x{d}, stride {stride}, last {last}");
        let got = every_schedule(run).unwrap_or_else(|e| panic!("{what}: {e}"));
        close(&what, Kind::F32, 1e-7, &got[0], &want);
        close(&what, Kind::F32, 0.0, &got[1], &want_pool);
    }
}
