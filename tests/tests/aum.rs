//! Audio Mamba: published sizes, and what a stream hears against what a clip holds.

use serde_json::json;
use ssm_models::frontend::audio::AudioFrontend;
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Listen, Model, Options, Row, Scratch, open_checkpoint};
use ssm_tests::Rng;
use ssm_tests::fabricate::Fabricated;
use ssm_tests::fabricate::aum::{published, random};
use std::sync::Arc;

#[test]
fn published_sizes_have_the_published_parameters() {
    // audio-mamba.md 2: AudioSet, VGGSound, VoxCeleb, Speech Commands v2 (a clip of 128 frames), Epic-Sounds.
    let sets = [(527, 1024), (309, 1024), (1251, 1024), (35, 128), (44, 1024)];
    for (size, kind, counts) in [
        ("base", "Fo-Fo", [91_517_711, 91_350_069, 92_074_467, 90_795_299, 91_146_284]),
        ("base", "Fo-Bi", [92_107_535, 91_939_893, 92_664_291, 91_385_123, 91_736_108]),
        ("base", "Bi-Bi", [97_084_175, 96_916_533, 97_640_931, 96_361_763, 96_712_748]),
        ("small", "Fo-Bi", [23_935_631, 23_851_701, 24_214_371, 23_574_179, 23_749_676]),
        ("small", "Bi-Bi", [25_539_215, 25_455_285, 25_817_955, 25_177_763, 25_353_260]),
        ("tiny", "Fo-Fo", [6_291_023, 6_248_949, 6_430_755, 6_110_051, 6_197_804]),
        ("tiny", "Fo-Bi", [6_438_479, 6_396_405, 6_578_211, 6_257_507, 6_345_260]),
        ("tiny", "Bi-Bi", [7_019_087, 6_977_013, 7_158_819, 6_838_115, 6_925_868]),
    ] {
        for ((classes, frames), want) in sets.into_iter().zip(counts) {
            let shapes = published(size, kind, classes, frames);
            let count: usize = shapes.iter().map(|(_, s)| s.iter().product::<usize>()).sum();
            assert_eq!(count, want, "{size} {kind} {classes} classes");
        }
    }
    // And they load, every tensor used, without a word of configuration.
    for (kind, classes, frames, tokens) in [("Fo-Bi", 35, 128, 65), ("Bi-Bi", 527, 1024, 513)] {
        let mut f = Fabricated { config: json!({}), ..Fabricated::default() };
        for (name, shape) in published("tiny", kind, classes, frames) {
            let n = shape.iter().product();
            f.values(&name, &shape, vec![0.0; n]);
        }
        let model = f.open(CpuLevel::best()).unwrap();
        let sizes = &model.info().sizes;
        assert!(sizes.starts_with(kind) && sizes.ends_with(&format!("{frames} frames of 128 bins, {tokens} tokens")));
        assert_eq!(model.info().parameters, if kind == "Fo-Bi" { 6_257_507 } else { 7_019_087 });
    }
}

fn open(f: &Fabricated, listen: Listen, clip: Option<(usize, usize)>) -> Arc<dyn Model> {
    let options = Options { listen, clip, carry: false, config: Some(f.config.clone()), ..Options::default() };
    open_checkpoint(&f.checkpoint(), &options).unwrap()
}

/// The output of every step.
fn run(model: &dyn Model, x: &[f32]) -> Vec<Vec<f32>> {
    let (n, classes) = (model.info().input.len(), model.info().output.len());
    let steps = x.len() / n;
    let mut rows = [Row::new(model, steps)];
    rows[0].x.copy_from_slice(&x[..steps * n]);
    model.forward(&Cx::at(CpuLevel::best(), 1), &mut rows, steps, &mut Scratch::default());
    rows[0].y.chunks(classes).map(<[f32]>::to_vec).collect()
}

fn close(what: &str, a: &[f32], b: &[f32]) {
    let size = a.iter().chain(b).fold(1f32, |m, v| m.max(v.abs()));
    let off = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(a.len() == b.len() && off <= 1e-5 * size, "{what}: off by {off}: {a:?} {b:?}");
}

#[test]
fn a_stream_scores_the_last_clip() {
    for seed in 0..30 {
        let mut rng = Rng::new(4000 + seed);
        let mut f = random(&mut rng);
        // A recurrence is another function once the clip is full.
        if f.config["cls_token"] == "end" {
            f.config["cls_token"] = json!("head");
        }
        let clip = open(&f, Listen::Clip, None);
        let (t, bins) =
            (f.config["frames"].as_u64().unwrap() as usize, f.config["mel_bins"].as_u64().unwrap() as usize);
        let every = rng.range(1, t + 3);
        let front = AudioFrontend::from_config(&f.config["frontend"], bins, "test").unwrap();

        // Frames: before the clip is full, it is padded at its end.
        let frames = rng.normals(bins * every * 6, 1.0);
        for (step, got) in run(&*open(&f, Listen::Frames(every), None), &frames).iter().enumerate() {
            let heard = &frames[..(step + 1) * every * bins];
            let mut last = heard[heard.len().saturating_sub(t * bins)..].to_vec();
            let given = last.len() / bins;
            last.resize(t * bins, 0.0);
            front.pad(&mut last, given);
            close(&format!("seed {seed}, frames, step {step}"), got, &run(&*clip, &last)[0]);
        }

        // Samples: the same, over the frames that are complete.
        let samples = rng.normals(front.hop() * every * 6, 0.1);
        for (step, got) in run(&*open(&f, Listen::Samples(every), None), &samples).iter().enumerate() {
            let heard = &samples[..(step + 1) * every * front.hop()];
            let total = front.fbank().frames(heard.len() as u64) as usize;
            let all = front.clip(heard, total);
            let mut last = all[all.len().saturating_sub(t * bins)..].to_vec();
            last.resize(t * bins, 0.0);
            front.pad(&mut last, total.min(t));
            close(&format!("seed {seed}, samples, step {step}"), got, &run(&*clip, &last)[0]);
        }
    }
}

#[test]
fn a_recurrent_stream_equals_the_clip_so_far() {
    let mut recurrent = 0;
    for seed in 0..60 {
        let mut rng = Rng::new(5000 + seed);
        let mut f = random(&mut rng);
        if f.config["bimamba_type"] != "none" || f.config["cls_token"] != "end" {
            continue;
        }
        recurrent += 1;
        f.config["transpose_token_sequence"] = json!(true);
        // Without a position embedding every length has a clip to be compared with.
        f.tensors.remove("pos_embed.pos_embed");
        let bins = f.config["mel_bins"].as_u64().unwrap() as usize;
        let patch = f.tensors["patch_embed.proj.weight"].0[3];
        let every = rng.range(1, 5);
        let frames = rng.normals(bins * every * 15, 1.0);
        let stream = open(&f, Listen::Frames(every), None);
        assert!(stream.layout().span("layers.0.h").is_some(), "the state holds h");
        for (step, got) in run(&*stream, &frames).iter().enumerate() {
            let n = (step + 1) * every;
            if n >= patch {
                let clip = open(&f, Listen::Clip, Some((n, bins)));
                close(&format!("seed {seed}, step {step}"), got, &run(&*clip, &frames[..n * bins])[0]);
            }
        }
    }
    assert!(recurrent > 5);
}

#[test]
fn what_cannot_be_followed_is_named() {
    let mut rng = Rng::new(6000);
    let f = random(&mut rng);
    let refused = |f: &Fabricated, options: Options, word: &str| {
        let options = Options { config: Some(f.config.clone()), ..options };
        let error = open_checkpoint(&f.checkpoint(), &options).err().map_or_else(String::new, |e| e.to_string());
        assert!(error.contains(word), "expected {word:?} in {error:?}");
    };
    for (field, value) in [
        ("bimamba_type", json!("v1_b")),
        ("strides", json!([0, 1])),
        ("final_pool_type", json!("median")),
        ("if_rope", json!(true)),
        ("frontend", json!({ "kind": "mfcc" })),
        ("frontend", json!({ "sample_rate": "fast" })),
        ("frontend", json!({ "mean": 1.0 })),
        ("frontend", json!({ "num_mel_bins": 77 })),
    ] {
        let mut f = f.clone();
        f.config[field] = value.clone();
        let word = value.as_object().map_or(field, |o| o.keys().next().unwrap());
        refused(&f, Options::default(), if word == "mean" { "std" } else { word });
    }
    let mut bare = f.clone();
    bare.config.as_object_mut().unwrap().remove("frontend");
    refused(&bare, Options { listen: Listen::Samples(0), ..Options::default() }, "mean");
    refused(&f, Options { listen: Listen::Frames(3), carry: true, ..Options::default() }, "carry");
    refused(&f, Options { clip: Some((0, 5)), ..Options::default() }, "clip");
    refused(&f, Options { listen: Listen::Frames(usize::MAX), ..Options::default() }, "listen");
}
