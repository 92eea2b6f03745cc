//! Every level against Pillow's algorithm as it is written down, and against images that Pillow resized.
#![cfg(test)]

use super::*;
use crate::testing::{Rng, levels};
use crate::{CpuLevel, Cx};

/// `ImagingResample` over the whole image, axis by axis.
fn pillow(src: &[u8], channels: usize, from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    let axis = |x: &[u8], len: usize, out: usize, step: usize| -> Vec<u8> {
        let scale = len as f64 / out as f64;
        let filter_scale = scale.max(1.0);
        let support = 2.0 * filter_scale;
        (0..out)
            .flat_map(|i| {
                let centre = (i as f64 + 0.5) * scale;
                let min = ((centre - support + 0.5) as i64).max(0) as usize;
                let max = ((centre + support + 0.5) as i64).min(len as i64) as usize;
                let w: Vec<f64> = (min..max).map(|j| cubic((j as f64 - centre + 0.5) / filter_scale, -0.5)).collect();
                let total: f64 = w.iter().sum();
                (0..step)
                    .map(|c| {
                        let sum = (min..max).zip(&w).fold(1i64 << 21, |sum, (j, w)| {
                            let w = w / total * f64::from(1 << 22);
                            sum + i64::from(x[j * step + c]) * (w + 0.5f64.copysign(w)) as i64
                        });
                        (sum >> 22).clamp(0, 255) as u8
                    })
                    .collect::<Vec<u8>>()
            })
            .collect()
    };
    let wide: Vec<u8> = src.chunks_exact(from.1 * channels).flat_map(|r| axis(r, from.1, to.1, channels)).collect();
    axis(&wide, from.0, to.0, to.1 * channels)
}

#[test]
fn every_level_resizes_as_pillow_does() {
    let mut rng = Rng::new(21);
    let sizes = [
        ((1, 1), (1, 1)),
        ((1, 1), (5, 3)),
        ((3, 2), (7, 9)),
        ((5, 7), (5, 7)),
        ((17, 40), (8, 8)),
        ((40, 17), (41, 16)),
        ((97, 131), (32, 43)),
        ((64, 301), (9, 60)),
        ((20, 900), (10, 12)),
    ];
    for (from, to) in sizes {
        for channels in 1..=4 {
            let stride = from.1 * channels + rng.below(9);
            // Noise hits both limits of a byte, where the kernel overshoots.
            let noise = |rng: &mut Rng| [0, 255, rng.below(256) as u8][rng.below(3)];
            let image: Vec<u8> = (0..from.0 * from.1 * channels).map(|_| noise(&mut rng)).collect();
            let mut src = vec![77; (from.0 - 1) * stride + from.1 * channels];
            for (r, row) in image.chunks_exact(from.1 * channels).enumerate() {
                src[r * stride..][..row.len()].copy_from_slice(row);
            }
            let whole = pillow(&image, channels, from, to);
            let (top, left) = (rng.below(to.0), rng.below(to.1));
            let part = Crop { top, left, height: 1 + rng.below(to.0 - top), width: 1 + rng.below(to.1 - left) };
            for crop in [Crop { top: 0, left: 0, height: to.0, width: to.1 }, part] {
                let want: Vec<u8> = (crop.top..crop.top + crop.height)
                    .flat_map(|r| &whole[(r * to.1 + crop.left) * channels..][..crop.width * channels])
                    .copied()
                    .collect();
                let plan = Resize::new(channels, from, to, crop);
                for cx in levels().into_iter().flat_map(|level| [Cx::at(level, 1), Cx::at(level, 3)]) {
                    let (mut scratch, mut out) = (vec![9; plan.scratch_len()], vec![9; plan.out_len()]);
                    plan.run(&cx, &src, stride, &mut scratch, &mut out);
                    assert!(out == want, "{}: {channels} channels, {from:?} to {to:?}, {crop:?}", cx.level);
                }
            }
        }
    }
}

#[test]
fn a_part_with_edges_between_pixels() {
    // Two pixels of half the size, of which only one and a half belong to the image: as four of the full size with
    // the last one repeated, the fourth left away.
    let crop = Crop { top: 0, left: 0, height: 1, width: 3 };
    let plan = Resize::of_part(1, (1, 2), (0.0..1.0, 0.0..1.5), (1, 3), crop);
    let (mut scratch, mut out) = (vec![0; plan.scratch_len()], vec![0; 3]);
    plan.run(&Cx::at(CpuLevel::Scalar, 1), &[0, 200], 2, &mut scratch, &mut out);
    // Centres at 0.25, 0.75 and 1.25 between centres 0.5 and 1.5 of the two.
    let at = |x: f64| {
        let (a, b) = (cubic(0.5 - x, -0.5), cubic(1.5 - x, -0.5));
        (200.0 * b / (a + b)).round().clamp(0.0, 255.0) as u8
    };
    assert_eq!(out, [at(0.25), at(0.75), at(1.25)]);
}

#[test]
fn grids_keep_constants_and_stay_themselves_at_their_own_size() {
    let mut rng = Rng::new(22);
    for resample in [bicubic_grid, bilinear_grid] {
        let x = rng.vec(2 * 5 * 4);
        let mut same = vec![0.0; x.len()];
        resample(&x, 2, (5, 4), (5, 4), &mut same);
        assert_eq!(same, x);
        for to in [(1, 1), (3, 9), (16, 5)] {
            let mut y = vec![0.0; 2 * to.0 * to.1];
            resample(&[1.5; 40], 2, (5, 4), to, &mut y);
            assert!(y.iter().all(|v| (v - 1.5).abs() < 3e-6), "{to:?}: {y:?}");
        }
    }
}

/// What comes out, the size before, the size after.
type Case = (&'static [f32], (usize, usize), (usize, usize));

#[test]
fn bilinear_grids_are_pytorchs() {
    // PyTorch 2.15, of squares: a row of six, and a grid of three by four.
    let squares = |n: u16| (0..n).map(|v| f32::from(v * v)).collect::<Vec<f32>>();
    let cases: [Case; 7] = [
        (&[0.375, 3.555_555_6, 10.777_778, 21.625], (1, 6), (1, 4)),
        (&[1.0, 7.0, 18.857_143], (1, 6), (1, 3)),
        (&[0.0, 0.5, 1.5, 3.5, 6.5, 10.166_667, 14.833_333, 20.5, 25.0], (1, 6), (1, 9)),
        (&[8.722_222], (1, 6), (1, 1)),
        (
            &[
                6.0, 7.428_573, 9.714_286, 13.0, 16.571_432, 21.142_859, 24.0, 46.0, 51.0, 59.0, 68.0, 77.285_72,
                87.571_43, 94.0,
            ],
            (3, 4),
            (2, 7),
        ),
        (
            &[1.0, 5.714_286, 9.685_715, 19.428_574, 22.714_285, 40.0, 54.942_867, 79.771_44, 76.428_57, 106.285_71],
            (3, 4),
            (5, 2),
        ),
        (&[0.0, 1.0, 4.0, 9.0, 16.0, 25.0, 36.0, 49.0, 64.0, 81.0, 100.0, 121.0], (3, 4), (3, 4)),
    ];
    for (want, from, to) in cases {
        let mut y = vec![0.0; want.len()];
        bilinear_grid(&squares((from.0 * from.1) as u16), 1, from, to, &mut y);
        let off = y.iter().zip(want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off < 2e-5, "{from:?} to {to:?}: expected {want:?}, got {y:?}");
    }
}

#[test]
fn planes_of_a_grid_are_apart() {
    let x = [1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0];
    let (mut both, mut one) = ([0.0; 12], [0.0; 6]);
    bilinear_grid(&x, 2, (2, 2), (3, 2), &mut both);
    bilinear_grid(&x[4..], 1, (2, 2), (3, 2), &mut one);
    assert_eq!(both[6..], one);
}
