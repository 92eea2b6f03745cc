//! Many streams on one engine: each gives, bit for bit, what it gives alone; streams come and go while others play; a
//! stream that stands still holds nobody up.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use gstssm::Results;
use ssm_models::kernels::{CpuLevel, Cx};
use ssm_models::{Engine, Signal};
use ssm_tests::Rng;
use ssm_tests::audio::{bytes, caps};
use ssm_tests::element::{Folder, init, make};
use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::time::Duration;

/// What one stream gives: its media and its results.
type Output = (Vec<u8>, Vec<Results>);

/// An element playing, with caps.
struct Player {
    h: Harness,
    element: gst::Element,
    video: bool,
}

impl Player {
    fn new(factory: &str, properties: &[(&str, &str)]) -> Self {
        let element = make(factory, properties);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        let video = factory == "ssmclassify";
        if video {
            h.set_src_caps_str("video/x-raw,format=RGB,width=20,height=30,framerate=25/1");
        } else {
            h.set_caps(caps("F32LE", 16_000, 2), caps("F32LE", 16_000, 2));
        }
        Self { h, element, video }
    }

    /// The media of a seed, in pieces.
    fn play(&mut self, seed: u64, pieces: u64) -> Output {
        let (mut out, mut results, mut rng) = (vec![], vec![], Rng::new(seed));
        let mut at = ClockTime::ZERO;
        for _ in 0..pieces {
            let (data, duration) = if self.video {
                ((0..20 * 30 * 3).map(|_| rng.range(0, 255) as u8).collect(), ClockTime::from_mseconds(40))
            } else {
                let frames = rng.range(1, 700);
                (bytes(&rng.normals(2 * frames, 0.1)), ClockTime::from_nseconds(62_500 * frames as u64))
            };
            let mut buffer = gst::Buffer::from_mut_slice::<Vec<u8>>(data);
            buffer.get_mut().expect("a new buffer").set_pts(at);
            at += duration;
            self.h.push(buffer).expect("flows");
        }
        self.h.push_event(gst::event::Eos::new());
        while let Some(buffer) = self.h.try_pull() {
            out.extend_from_slice(&buffer.map_readable().expect("readable"));
            results.extend(Results::of(&buffer));
        }
        results.iter_mut().for_each(|r| r.element = Default::default());
        (out, results)
    }
}

/// Elements and their models.
fn cases(folder: &Folder) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
    let (_, vim) = folder.model("vim", 3);
    vec![
        ("ssmdenoise", vec![]),
        ("ssmvad", vec![]),
        ("ssmclassify", vec![("model", vim), ("carry", "true".into()), ("threads", "1".into())]),
    ]
}

fn player(factory: &str, own: &[(&str, String)], shared: &[(&str, &str)]) -> Player {
    let own = own.iter().map(|(name, value)| (*name, &**value));
    Player::new(factory, &own.chain(shared.iter().copied()).collect::<Vec<_>>())
}

#[test]
fn sixteen_streams_of_one_engine_equal_sixteen_alone() {
    init();
    let folder = Folder::new("sixteen");
    for (factory, own) in cases(&folder) {
        let alone: Vec<Output> = (0..16).map(|seed| player(factory, &own, &[]).play(seed, 12)).collect();
        assert_ne!(alone[0], alone[1], "{factory}: the streams differ");
        let shared = [("model-instance-id", "sixteen"), ("batch-size", "16"), ("batch-timeout", "200000")];
        let start = Barrier::new(16);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|seed| {
                    let (start, own) = (&start, &own);
                    scope.spawn(move || {
                        let mut p = player(factory, own, &shared);
                        start.wait();
                        let output = p.play(seed, 12);
                        start.wait();
                        // All have played on the engine that this one sees.
                        let stats = p.element.property::<gst::Structure>("stats");
                        (output, stats.get::<u64>("engine-rows").expect("a counter"))
                    })
                })
                .collect();
            let outputs: Vec<_> = threads.into_iter().map(|t| t.join().expect("no panic")).collect();
            for (seed, ((output, rows), alone)) in outputs.iter().zip(&alone).enumerate() {
                assert!(output == alone, "{factory}: stream {seed} differs from the stream alone");
                assert_eq!(*rows, outputs[0].1, "{factory}: one engine");
            }
        });
    }
}

#[test]
fn streams_come_and_go_while_others_play() {
    init();
    let folder = Folder::new("come-and-go");
    for (factory, own) in cases(&folder) {
        let alone: Vec<Output> = (0..6).map(|seed| player(factory, &own, &[]).play(seed, 10)).collect();
        let shared = [("model-instance-id", "come-and-go"), ("batch-timeout", "100000")];
        std::thread::scope(|scope| {
            for (seed, alone) in (0..).zip(&alone) {
                let own = &own;
                scope.spawn(move || {
                    // Every other thread keeps its element and flushes; the others join and leave.
                    let mut kept = (seed % 2 == 0).then(|| player(factory, own, &shared));
                    for turn in 0..4 {
                        let got = match &mut kept {
                            Some(p) => {
                                let got = p.play(seed, 10);
                                p.h.push_event(gst::event::FlushStart::new());
                                p.h.push_event(gst::event::FlushStop::new(true));
                                p.h.push_event(gst::event::Segment::new(&gst::FormattedSegment::<ClockTime>::new()));
                                got
                            }
                            None => player(factory, own, &shared).play(seed, 10),
                        };
                        // Steps count on in an element, not in a stream.
                        assert!(got == *alone, "{factory}: stream {seed}, turn {turn}");
                    }
                });
            }
        });
    }
}

#[test]
fn a_stalled_stream_stalls_no_other() {
    init();
    let folder = Folder::new("stalled");
    for (factory, own) in cases(&folder) {
        let alone: Vec<Output> = (0..2).map(|seed| player(factory, &own, &[]).play(seed, 10)).collect();
        let shared = [("model-instance-id", "stalled"), ("batch-size", "2")];
        let (mut a, mut b) = (player(factory, &own, &shared), player(factory, &own, &shared));
        let (blocked, wait) = channel();
        let pad = a.element.static_pad("src").expect("a source pad");
        let probe = pad
            .add_probe(gst::PadProbeType::BLOCK | gst::PadProbeType::BUFFER, move |_, _| {
                let _ = blocked.send(());
                gst::PadProbeReturn::Ok
            })
            .expect("a probe");
        std::thread::scope(|scope| {
            let stalled = scope.spawn(move || a.play(0, 10));
            wait.recv_timeout(Duration::from_secs(60)).expect("the first stream stands still");
            assert!(b.play(1, 10) == alone[1], "{factory}: the second stream plays to its end");
            pad.remove_probe(probe);
            assert!(stalled.join().expect("no panic") == alone[0], "{factory}: the first goes on where it stood");
        });
    }
}

/// An answer that nobody fetches waits; the engine does not.
#[test]
fn an_answer_that_is_not_fetched_waits() {
    let folder = Folder::new("unfetched");
    let (fabricated, _) = folder.model("mamba", 3);
    let model = fabricated.open(CpuLevel::best()).expect("it opens");
    let engine = Engine::start(model, Cx::at(CpuLevel::best(), 1), 4, Duration::ZERO);
    let (mut idle, mut busy) = (engine.stream(1), engine.stream(1));
    let token = matches!(engine.info().input, Signal::Token { .. });
    let load = |stream: &mut ssm_models::Stream| {
        let row = stream.row();
        if token { row.tokens[0] = 1 } else { row.x.fill(0.5) }
    };
    load(&mut idle);
    idle.submit(1).expect("it is taken");
    for _ in 0..100 {
        load(&mut busy);
        busy.run(1).expect("it runs");
    }
    idle.wait().expect("the answer is there");
    let first = idle.row().y.clone();
    let mut fresh = engine.stream(1);
    load(&mut fresh);
    fresh.run(1).expect("it runs");
    assert_eq!(fresh.row().y, first);
    // A stream that goes with its answer under way takes nothing with it.
    load(&mut idle);
    idle.submit(1).expect("it is taken");
    drop(idle);
    load(&mut fresh);
    fresh.run(1).expect("it runs");
}
