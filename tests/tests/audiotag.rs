//! `ssmaudiotag` as an application meets it: results, times, properties, the life of its state, bad input.

use gst::ClockTime;
use gst::prelude::*;
use gstssm::Results;
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Listen, Options, Row, Scratch, Signal, open};
use ssm_tests::Rng;
use ssm_tests::audio::{Listening, bytes};
use ssm_tests::element::{Folder, complaint, make, run};

const ALL: (&str, &str) = ("top-k", "1000");

/// A random Audio Mamba: its path, hop, rate, and the scores of every step of a clip.
struct Tagger {
    path: String,
    hop: usize,
    rate: u32,
    classes: usize,
    every: usize,
}

impl Tagger {
    fn new(folder: &Folder, seed: u64) -> Self {
        let (_, path) = folder.model("aum", seed);
        let every = Rng::new(seed).range(1, 5);
        let options = Options { listen: Listen::Samples(every), ..Options::default() };
        let model = open(&path, &options).expect("it opens");
        let (Signal::Samples { hop, rate }, classes) = (model.info().input, model.info().output.len()) else {
            panic!("no samples")
        };
        Self { path, hop, rate, classes, every }
    }

    fn direct(&self, samples: &[f32]) -> Vec<Vec<f32>> {
        let options = Options { listen: Listen::Samples(self.every), ..Options::default() };
        let model = open(&self.path, &options).expect("it opens");
        let steps = samples.len() / self.hop;
        let mut rows = [Row::new(&*model, steps)];
        rows[0].x.copy_from_slice(&samples[..steps * self.hop]);
        model.forward(&Cx::at(CpuLevel::best(), 1), &mut rows, steps, &mut Scratch::default());
        rows[0].y.chunks(self.classes).map(<[f32]>::to_vec).collect()
    }

    fn listening(&self, properties: &[(&str, &str)]) -> Listening {
        let every = self.every.to_string();
        let own = [("model", &*self.path), ("inference-interval", &*every), ("name", "t")];
        Listening::new("ssmaudiotag", &[&own, properties].concat(), "F32LE", self.rate, 1)
    }
}

fn by_class(r: &Results) -> Vec<f32> {
    let mut classes = r.classes.clone();
    classes.sort_by_key(|c| c.index);
    classes.iter().map(|c| c.score as f32).collect()
}

fn softmax(y: &[f32]) -> Vec<f32> {
    let mut y = y.to_vec();
    ssm_models::kernels::activation::softmax(&mut y);
    y
}

#[test]
fn results_are_the_models_own_at_exact_times_however_cut() {
    let folder = Folder::new("tag-cut");
    for seed in 0..12 {
        let (t, mut rng) = (Tagger::new(&folder, seed), Rng::new(seed));
        let n = t.hop * rng.range(1, 40);
        let samples = rng.normals(n, 0.1);
        let want = t.direct(&samples);
        let start = ClockTime::from_mseconds(333);
        let mut messages = None;
        for cuts in [vec![n], rng.cuts(n), rng.cuts(n)] {
            let mut l = t.listening(&[ALL]);
            l.pieces(&bytes(&samples), &cuts, start);
            assert!(l.out == bytes(&samples), "the audio passes untouched");
            assert_eq!(l.results.len(), want.len(), "seed {seed}");
            for (i, (r, want)) in l.results.iter().zip(&want).enumerate() {
                assert_eq!((r.step, &*r.kind), (i as u64 + 1, "classes"));
                assert_eq!(by_class(r), softmax(want), "seed {seed}, step {i}");
                assert!(r.classes.windows(2).all(|c| c[0].score >= c[1].score), "best first");
                assert_eq!(r.pts, Some((start + l.time(i * t.hop)).nseconds()));
                assert_eq!(
                    r.pts.zip(r.duration).map(|(p, d)| p + d),
                    Some((start + l.time((i + 1) * t.hop)).nseconds())
                );
            }
            let told = l.messages("ssmaudiotag");
            assert_eq!(told.len(), want.len());
            assert_eq!(told[0].get::<u64>("running-time"), Ok(start.nseconds()));
            assert_eq!(*messages.get_or_insert_with(|| told.clone()), told, "the cut changed something");
            // What does not fill a step is told at the end.
            l.push(&bytes(&[0.5]), Some(start + l.time(n))).expect("flows");
            l.h.push_event(gst::event::Eos::new());
            assert_eq!(l.messages("ssmaudiotag").len(), 1, "seed {seed}: one more at the end");
        }
    }
}

#[test]
fn activation_threshold_labels_and_top_k() {
    let folder = Folder::new("tag-options");
    let t = Tagger::new(&folder, 3);
    let samples = Rng::new(3).normals(t.hop, 0.1);
    let want = t.direct(&samples);
    let labels = folder.file("labels.txt");
    std::fs::write(&labels, (0..t.classes).map(|i| format!("sound {i}\n")).collect::<String>()).expect("a file");
    let mut l = t.listening(&[ALL, ("activation", "sigmoid"), ("labels-file", &labels)]);
    l.pieces(&bytes(&samples), &[t.hop], ClockTime::ZERO);
    let sigmoid: Vec<f32> = want[0].iter().map(|y| 1.0 / (1.0 + (-y).exp())).collect();
    assert_eq!(by_class(&l.results[0]), sigmoid);
    assert!(l.results[0].classes.iter().all(|c| c.label.as_deref() == Some(&*format!("sound {}", c.index))));
    let mut l = t.listening(&[("top-k", "1"), ("post-messages", "false")]);
    l.pieces(&bytes(&samples), &[t.hop], ClockTime::ZERO);
    assert_eq!(l.results[0].classes.len(), 1);
    assert!(l.messages("ssmaudiotag").is_empty());
    let mut l = t.listening(&[("threshold", "1")]);
    l.pieces(&bytes(&samples), &[t.hop], ClockTime::ZERO);
    assert!(t.classes == 1 || l.results[0].classes.is_empty());
}

#[test]
fn flush_reset_and_jumps_begin_anew_and_a_snapshot_goes_on() {
    let folder = Folder::new("tag-reset");
    for seed in [1, 2, 5, 8] {
        let (t, mut rng) = (Tagger::new(&folder, seed), Rng::new(seed));
        let (n, m) = (t.hop * 7, t.hop * 9);
        let samples = rng.normals(n + m, 0.1);
        let (whole, fresh) = (t.direct(&samples), t.direct(&samples[n..]));
        let second = |event: &dyn Fn(&mut Listening), pts: Option<ClockTime>| {
            let mut l = t.listening(&[ALL]);
            l.pieces(&bytes(&samples[..n]), &rng.clone().cuts(n), ClockTime::ZERO);
            event(&mut l);
            l.results.clear();
            let start = pts.unwrap_or(l.time(n));
            l.pieces(&bytes(&samples[n..]), &rng.clone().cuts(m), start);
            l.results.iter().map(by_class).collect::<Vec<_>>()
        };
        let soft = |y: &[Vec<f32>]| y.iter().map(|y| softmax(y)).collect::<Vec<_>>();
        assert_eq!(second(&|_| (), None), soft(&whole[7..]), "seed {seed}");
        assert_eq!(second(&|l| l.flush(), None), soft(&fresh), "flush");
        let signal = |l: &mut Listening| l.element.emit_by_name::<()>("reset-state", &[]);
        assert_eq!(second(&signal, None), soft(&fresh), "signal");
        assert_eq!(second(&|_| (), Some(ClockTime::from_seconds(90))), soft(&fresh), "long gap");

        let cut = rng.range(0, n + m);
        let state = folder.file("state");
        let mut a = t.listening(&[ALL, ("state-out", &state)]);
        a.pieces(&bytes(&samples[..cut]), &rng.cuts(cut), ClockTime::ZERO);
        a.h.push_event(gst::event::Eos::new());
        let mut got = a.results.clone();
        drop(a);
        let mut b = t.listening(&[ALL, ("state-in", &state)]);
        let start = b.time(cut);
        b.pieces(&bytes(&samples[cut..]), &rng.cuts(n + m - cut), start);
        got.extend(b.results.clone());
        let mut one = t.listening(&[ALL]);
        one.pieces(&bytes(&samples), &[n + m], ClockTime::ZERO);
        assert!(got == one.results, "seed {seed}, cut at {cut}");
    }
}

#[test]
fn what_cannot_be_is_told() {
    let folder = Folder::new("tag-wrong");
    let t = Tagger::new(&folder, 1);
    let (_, vision) = folder.model("vim", 1);
    let (_, denoiser) = folder.model("cleanumamba", 1);
    for (properties, parts) in [
        (vec![], vec!["model", "expected"]),
        (vec![("model", "/nowhere/aum.pth")], vec!["/nowhere/aum.pth"]),
        (vec![("model", &*vision)], vec!["samples to class scores", "vim"]),
        (vec![("model", &*denoiser)], vec!["samples to class scores", "cleanumamba"]),
        (vec![("model", &*t.path), ("labels-file", "/nowhere/labels.txt")], vec!["labels-file"]),
    ] {
        let element = make("ssmaudiotag", &properties);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        assert!(element.set_state(gst::State::Ready).is_err(), "{properties:?} was taken");
        let text = complaint(&bus, gst::MessageType::Error);
        assert!(parts.iter().all(|p| text.contains(p)), "{text:?} lacks one of {parts:?}");
        element.set_state(gst::State::Null).expect("back to NULL");
    }
    let mut l = t.listening(&[ALL]);
    l.push(&[], Some(ClockTime::ZERO)).expect("an empty buffer flows");
    let mut samples = vec![0.1; t.hop * 3];
    samples[1] = f32::NAN;
    l.push(&bytes(&samples), Some(ClockTime::ZERO)).expect("flows");
    assert!(complaint(l.bus(), gst::MessageType::Warning).contains("sample 1 "));
    assert!(l.results.len() == 3 && l.results.iter().all(|r| r.classes.iter().all(|c| c.score.is_finite())));
    assert_eq!(l.push(&[0; 5], None), Err(gst::FlowError::Error));
    assert!(complaint(l.bus(), gst::MessageType::Error).contains("multiple of 4"));
}

#[test]
fn a_pipeline_plays() {
    let folder = Folder::new("tag-pipeline");
    let t = Tagger::new(&folder, 2);
    let found = run(&format!(
        "audiotestsrc num-buffers=30 ! audioconvert ! audioresample ! ssmaudiotag model={} top-k=1 ! ssmjson ! fakesink",
        t.path
    ));
    assert!(found.iter().filter(|s| s.name() == "ssmaudiotag").count() > 0);
}
