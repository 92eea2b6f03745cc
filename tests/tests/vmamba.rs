//! What VMamba carries from frame to frame: where a network has nothing but forward scans to mix its pixels, frames one
//! after the other are one tall frame.

use serde_json::json;
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Model, Row, Scratch};
use ssm_tests::Rng;
use ssm_tests::fabricate::Fabricated;

const C: usize = 6;
const DI: usize = 21;
const R: usize = 2;

/// Two blocks without convolutions, as a backbone that gives its pixels. Orders from `forward` on say nothing.
fn network(rng: &mut Rng, forward_type: &str, n: usize, forward: usize) -> Fabricated {
    let mut f = Fabricated::default();
    let norm = |f: &mut Fabricated, rng: &mut Rng, name: &str, c: usize| {
        f.ones(rng, &format!("{name}.weight"), &[c]);
        f.normal(rng, &format!("{name}.bias"), &[c], 0.2);
    };
    f.weight(rng, "patch_embed.0.weight", &[C, 3, 2, 2]);
    f.normal(rng, "patch_embed.0.bias", &[C], 0.2);
    norm(&mut f, rng, "patch_embed.2", C);
    for j in 0..2 {
        let (block, op) = (format!("layers.0.blocks.{j}"), format!("layers.0.blocks.{j}.op"));
        norm(&mut f, rng, &format!("{block}.norm"), C);
        f.weight(rng, &format!("{op}.in_proj.weight"), &[2 * DI, C]);
        f.weight(rng, &format!("{op}.x_proj_weight"), &[4, R + 2 * n, DI]);
        f.weight(rng, &format!("{op}.dt_projs_weight"), &[4, DI, R]);
        f.normal(rng, &format!("{op}.dt_projs_bias"), &[4, DI], 1.0);
        f.normal(rng, &format!("{op}.A_logs"), &[4 * DI, n], 0.7);
        f.normal(rng, &format!("{op}.Ds"), &[4 * DI], 1.0);
        norm(&mut f, rng, &format!("{op}.out_norm"), DI);
        f.weight(rng, &format!("{op}.out_proj.weight"), &[C, DI]);
        // y_k = c·h + d·u is 0 where c and d are.
        let rows = R + 2 * n;
        for (i, v) in f.tensors.get_mut(&format!("{op}.x_proj_weight")).expect("just made").1.iter_mut().enumerate() {
            if i / DI / rows >= forward && i / DI % rows >= R + n {
                *v = 0.0;
            }
        }
        f.tensors.get_mut(&format!("{op}.Ds")).expect("just made").1[forward * DI..].fill(0.0);
    }
    norm(&mut f, rng, "outnorm0", C);
    f.config = json!({ "model": { "forward_type": forward_type, "ssm_conv": 1 } });
    f
}

/// Runs frames one after the other; returns each frame's planes and the stream's end.
fn run(model: &dyn Model, cx: &Cx, frames: &[Vec<f32>]) -> (Vec<Vec<f32>>, Row) {
    let (mut rows, mut scratch) = ([Row::new(model, 1)], Scratch::default());
    let mut out = Vec::new();
    for frame in frames {
        rows[0].x.copy_from_slice(frame);
        model.forward(cx, &mut rows, 1, &mut scratch);
        out.push(rows[0].y.clone());
    }
    let [row] = rows;
    (out, row)
}

/// Frames of three planes under each other.
fn stack(frames: &[Vec<f32>], planes: usize) -> Vec<f32> {
    let plane = |f: &Vec<f32>, p: usize| f[p * f.len() / planes..(p + 1) * f.len() / planes].to_vec();
    (0..planes).flat_map(|p| frames.iter().flat_map(move |f| plane(f, p))).collect()
}

#[test]
fn carried_frames_are_one_tall_frame() {
    let mut rng = Rng::new(31);
    // Orders by columns are those by rows where a line is one pixel.
    for (forward_type, forward, width) in [("v051d", 4, 6), ("v052d", 2, 8), ("v05", 2, 2), ("v0", 2, 2)] {
        for n in [1, 3, 16] {
            let mut f = network(&mut rng, forward_type, n, forward);
            if forward_type == "v0" {
                // The first version always has a convolution: one that passes its pixel on.
                let tap = (0..9 * DI).map(|i| if i % 9 == 4 { 1.0 } else { 0.0 }).collect::<Vec<f32>>();
                for j in 0..2 {
                    f.values(&format!("layers.0.blocks.{j}.op.conv2d.weight"), &[DI, 1, 3, 3], tap.clone());
                    f.normal(&mut rng, &format!("layers.0.blocks.{j}.op.conv2d.bias"), &[DI], 0.2);
                }
            }
            let frames: Vec<Vec<f32>> = (0..3).map(|_| rng.normals(3 * 4 * width, 1.0)).collect();
            for level in CpuLevel::present() {
                let what = format!("{forward_type} N {n} at {level}");
                let cx = Cx::at(level, 2);
                let open = |height: usize, carry: bool| {
                    let mut f = f.clone();
                    (f.options.image, f.options.carry) = (Some((height, width)), carry);
                    f.open(level).unwrap_or_else(|e| panic!("{what}: {e}"))
                };
                let (short, tall, alone) = (open(4, true), open(12, true), open(4, false));
                let (parts, end) = run(&*short, &cx, &frames);
                let (whole, tall_end) = run(&*tall, &cx, &[stack(&frames, 3)]);
                assert_eq!(stack(&parts, C), whole[0], "{what}");
                assert_eq!(end.state.data[..], tall_end.state.data[..], "{what}: state");
                // The default forgets.
                let (again, _) = run(&*alone, &cx, &frames);
                assert_eq!(again[0], parts[0], "{what}: first frame");
                assert_ne!(again[1], parts[1], "{what}: second frame");
                assert!(alone.layout().is_empty(), "{what}");

                let state = short.upstream_state(&end.state, "layers.0.blocks.1.ssm").expect("a state");
                assert_eq!(state.0, [forward, DI, n], "{what}");
                let span = short.layout().span("layers.0.blocks.1.h").expect("a span");
                let h = &end.state.data[span.range()];
                assert_eq!(state.1[n + (n - 1)], h[(n - 1) * DI + 1], "{what}: channel 1, last state");

                // Frames that are missing: two at once as one after the other, and a long time forgets all.
                let (mut once, mut twice) = (end.state.clone(), end.state.clone());
                short.gap(&mut once, 2.0);
                (0..2).for_each(|_| short.gap(&mut twice, 1.0));
                for ((a, b), from) in once.data.iter().zip(&twice.data[..]).zip(&end.state.data[..]) {
                    assert!((a - b).abs() <= 1e-6 * from.abs() && a.abs() <= from.abs(), "{what}: gap");
                }
                short.gap(&mut once, 1e9);
                assert!(once.data.iter().all(|v| *v == 0.0), "{what}: a long gap");
            }
        }
    }
}
