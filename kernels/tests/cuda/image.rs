use crate::machine::{Memory, Numbers, Schedule, close, every_schedule, launch};
use crate::scalar;
use crate::testing::Rng;
use ssm_kernels::MatMut;
use ssm_kernels::cuda::image::{Patches, columns, rows};
use ssm_kernels::cuda::{Kind, Ptr};
use ssm_kernels::patch::patches;
use ssm_kernels::resize::{Crop, Resize};

fn bytes(rng: &mut Rng, n: usize) -> Vec<u8> {
    (0..n).map(|_| rng.below(256) as u8).collect()
}

#[test]
fn resize_gives_the_bytes_of_scalar() {
    let mut rng = Rng::new(5);
    let all = |height, width| Crop { top: 0, left: 0, height, width };
    for (channels, from, to, crop) in [
        (1, (1, 1), (1, 1), all(1, 1)),
        (3, (7, 9), (5, 6), all(5, 6)),
        (4, (5, 4), (9, 13), all(9, 13)),
        (2, (31, 17), (8, 8), Crop { top: 2, left: 3, height: 4, width: 5 }),
        (3, (40, 60), (12, 18), Crop { top: 1, left: 3, height: 10, width: 12 }),
    ] {
        let plan = Resize::new(channels, from, to, crop);
        let stride = from.1 * channels + 5;
        let image = bytes(&mut rng, (from.0 - 1) * stride + from.1 * channels);
        let (mut scratch, mut want) = (vec![0; plan.scratch_len()], vec![0; plan.out_len()]);
        plan.run(&scalar(), &image, stride, &mut scratch, &mut want);
        let run = |schedule: Schedule| {
            let plan_of = |(first, weights): (&[usize], &[i32])| {
                let first: Vec<u32> = first.iter().map(|f| *f as u32).collect();
                (Memory::new(schedule, &first), Memory::new(schedule, weights))
            };
            let (column_plan, row_plan) = (plan_of(plan.columns_plan()), plan_of(plan.rows_plan()));
            let image = Memory::new(schedule, &image);
            let [between, out] = [plan.scratch_len(), plan.out_len()].map(|n| Memory::new(schedule, &vec![0xa5u8; n]));
            let fail = |e: ssm_kernels::cuda::TooLarge| e.to_string();
            let (first, weights) = (column_plan.0.ptr(), column_plan.1.ptr());
            let (args, l) = columns(&plan, image.ptr(), stride as u32, first, weights, between.ptr()).map_err(fail)?;
            launch(schedule, &l, &args)?;
            let (args, l) = rows(&plan, between.ptr(), row_plan.0.ptr(), row_plan.1.ptr(), out.ptr()).map_err(fail)?;
            launch(schedule, &l, &args)?;
            Ok(vec![out.read().iter().map(|v| f32::from(*v)).collect()])
        };
        let got = every_schedule(run).unwrap_or_else(|e| panic!("{from:?} to {to:?}: {e}"));
        let want: Vec<f32> = want.iter().map(|v| f32::from(*v)).collect();
        assert_eq!(got[0], want, "{channels} channels, {from:?} to {to:?} {crop:?}");
    }
}

/// Mean and deviation of each channel.
const NORMAL: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// Runs `patches` over two images of three channels and compares with the scalar form of `values` of a pixel.
fn check(
    rng: &mut Rng,
    (height, width, patch, stride): (usize, usize, usize, usize),
    yuv: bool,
    values: impl Fn([f32; 3]) -> [f32; 3],
) {
    let what = format!("{height}x{width}, {patch} every {stride}, YUV {yuv}");
    let (batch, pixels) = (2, height * width);
    // Luma, then U and V beside each other; or pixels of four bytes, R last.
    let image = if yuv { 3 * pixels } else { 4 * pixels } + 1;
    let memory = bytes(rng, (batch - 1) * image + image - 1);
    let at = |c: usize, pixel: usize| match (yuv, c) {
        (true, 0) => pixel,
        (true, c) => pixels + 2 * pixel + c - 1,
        (false, c) => 4 * pixel + 3 - c,
    };
    let (down, across) = ((height - patch) / stride + 1, (width - patch) / stride + 1);
    let (m, k) = (down * across, 3 * patch * patch);
    let mut want = vec![0.0; batch * m * k];
    for b in 0..batch {
        let mut planes = vec![0.0; 3 * pixels];
        for pixel in 0..pixels {
            let v = values(std::array::from_fn(|c| f32::from(memory[b * image + at(c, pixel)])));
            (0..3).for_each(|c| planes[c * pixels + pixel] = v[c]);
        }
        let out = MatMut::new(&mut want[b * m * k..], m, k);
        patches(&planes, (3, height, width), patch, stride, out);
    }
    let table: Vec<f32> =
        (0..3 * 256).map(|i| ((i % 256) as f32 / 255.0 - NORMAL.0[i / 256]) / NORMAL.1[i / 256]).collect();
    for kind in [Kind::F32, Kind::Bf16] {
        let run = |schedule: Schedule| {
            let (memory, table) = (Memory::new(schedule, &memory), Memory::new(schedule, &table));
            let y = Numbers::new(schedule, kind, &vec![f32::NAN; batch * m * k]);
            let args = Patches {
                channel: std::array::from_fn(|c| Ptr(memory.ptr().0 + at(c, 0) as u64)),
                table: if yuv { Ptr::NONE } else { table.ptr() },
                y: y.ptr(),
                image: image as u64,
                step: if yuv { [1, 2, 2] } else { [4; 3] },
                height: height as u32,
                width: width as u32,
                lines: patch as u32,
                patch: patch as u32,
                stride: stride as u32,
                batch: batch as u32,
                kind,
                black: 16.0,
                luma: 255.0 / 219.0,
                wu: [0.0, -0.39, 2.0],
                wv: [1.6, -0.81, 0.0],
                mean: NORMAL.0,
                deviation: NORMAL.1,
            };
            assert_eq!(args.rows(), batch * m, "{what}");
            launch(schedule, &args.launch().map_err(|e| e.to_string())?, &args)?;
            Ok(vec![y.read()])
        };
        let got = every_schedule(run).unwrap_or_else(|e| panic!("{what}: {e}"));
        close(&what, kind, 1e-6, &got[0], &want);
    }
}

#[test]
fn patches_agree_with_scalar() {
    let mut rng = Rng::new(6);
    for size in [(1, 1, 1, 1), (5, 7, 3, 2), (8, 8, 4, 4), (16, 24, 8, 8), (9, 6, 4, 1)] {
        check(&mut rng, size, false, |v| std::array::from_fn(|c| (v[c] / 255.0 - NORMAL.0[c]) / NORMAL.1[c]));
        check(&mut rng, size, true, |[y, u, v]| {
            let luma = (y - 16.0) * (255.0 / 219.0);
            let (u, v) = (u - 128.0, v - 128.0);
            let rgb = [luma + 1.6 * v, luma - 0.39 * u - 0.81 * v, luma + 2.0 * u];
            std::array::from_fn(|c| (rgb[c].clamp(0.0, 255.0) / 255.0 - NORMAL.0[c]) / NORMAL.1[c])
        });
    }
}

#[test]
fn one_patch_is_the_image_in_planes() {
    let mut rng = Rng::new(7);
    let (height, width) = (5, 7);
    let image = bytes(&mut rng, 3 * height * width);
    let table: Vec<f32> = (0..3 * 256).map(|i| i as f32).collect();
    let run = |schedule: Schedule| {
        let (memory, table) = (Memory::new(schedule, &image), Memory::new(schedule, &table));
        let y = Memory::new(schedule, &vec![f32::NAN; 3 * height * width]);
        let args = Patches {
            channel: std::array::from_fn(|c| Ptr(memory.ptr().0 + c as u64)),
            table: table.ptr(),
            y: y.ptr(),
            step: [3; 3],
            height: height as u32,
            width: width as u32,
            lines: height as u32,
            patch: width as u32,
            stride: 1,
            batch: 1,
            ..Patches::default()
        };
        launch(schedule, &args.launch().map_err(|e| e.to_string())?, &args)?;
        Ok(vec![y.read()])
    };
    let got = every_schedule(run).expect("it runs");
    let pixels = height * width;
    let want: Vec<f32> =
        (0..3 * pixels).map(|i| (i / pixels * 256 + usize::from(image[i % pixels * 3 + i / pixels])) as f32).collect();
    assert_eq!(got[0], want);
}
