//! Ten hours of edited video through one `ssmevents`: what a frame costs and the resident memory from hour to hour, and
//! whether what is found depends on when buffers arrive.
//!
//! ```text
//! cargo run --release -p ssm-tests --bin hours -- --hours 10 --seed 1
//! ```
//!
//! 30 frames a second of 48 x 27, shots of drawn pictures that a camera pans over, joined by cuts and dissolves. The last
//! line begins with PASS or FAIL. It fails if resident memory moves by more than 1 MiB after the first hour; if at the end
//! the stream's frames take 10 % more or less processor time than those of a fresh stream in turns with it; or if the
//! first hour, played again with pauses, bursts and times that jitter by a quarter of a frame, gives other events.
#![forbid(unsafe_code)]

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use ssm_tests::Rng;
use ssm_tests::element::make;
use std::process::ExitCode;
use std::time::Duration;

const WIDTH: usize = 48;
const HEIGHT: usize = 27;
const RATE: u64 = 30;
/// How far resident memory may move, in KiB.
const MOVED: u64 = 1024;
/// Frames of a turn of two streams at the end, and turns.
const TURN: u64 = 1000;
const TURNS: usize = 31;

/// A video without end: the same for the same seed.
struct Film {
    rng: Rng,
    pictures: Vec<Vec<u8>>,
    /// Picture and pace of this shot and of the next.
    shot: (usize, [f32; 2]),
    next: (usize, [f32; 2]),
    at: usize,
    len: usize,
    /// Frames at the end of the shot in which the next one comes in.
    blend: usize,
    frames: u64,
}

impl Film {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let pictures = (0..24).map(|_| picture(&mut rng)).collect();
        let mut film =
            Self { rng, pictures, shot: (0, [0.0; 2]), next: (1, [0.0; 2]), at: 0, len: 60, blend: 0, frames: 0 };
        film.choose();
        film
    }

    fn choose(&mut self) {
        self.shot = self.next;
        let other = self.rng.range(1, self.pictures.len() - 1);
        let pace = [self.rng.uniform() - 0.5, 0.5 * (self.rng.uniform() - 0.5)];
        self.next = ((self.shot.0 + other) % self.pictures.len(), pace);
        self.len = self.rng.range(25, 300);
        self.blend = if self.rng.range(0, 3) == 0 { self.rng.range(4, 24) } else { 0 };
        self.at = 0;
    }

    /// A pixel row by row of the part of a picture that the camera sees.
    fn seen(&self, shot: (usize, [f32; 2]), at: usize) -> impl Iterator<Item = &u8> {
        // To and fro within the picture, which is twice as wide and high.
        let fro = |pace: f32, room: usize| {
            let way = (pace.abs() * at as f32) as usize % (2 * room);
            way.min(2 * room - way)
        };
        let (x, y) = (fro(shot.1[0], WIDTH), fro(shot.1[1], HEIGHT));
        let rows = (y..y + HEIGHT).map(move |y| (y * 2 * WIDTH + x) * 3);
        rows.flat_map(move |from| &self.pictures[shot.0][from..from + 3 * WIDTH])
    }

    fn frame(&mut self) -> Vec<u8> {
        if self.at == self.len {
            self.choose();
        }
        let into = (self.at + self.blend).saturating_sub(self.len);
        let now = self.seen(self.shot, self.at);
        let frame = if into == 0 {
            now.copied().collect()
        } else {
            let share = into as u32 * 256 / (self.blend as u32 + 1);
            let mix = |(a, b): (&u8, &u8)| ((u32::from(*a) * (256 - share) + u32::from(*b) * share) >> 8) as u8;
            now.zip(self.seen(self.next, 0)).map(mix).collect()
        };
        self.at += 1;
        self.frames += 1;
        frame
    }
}

/// Blocks of colours, twice the size of a frame.
fn picture(rng: &mut Rng) -> Vec<u8> {
    let mut out = vec![rng.range(0, 255) as u8; 4 * WIDTH * HEIGHT * 3];
    for _ in 0..30 {
        let (x, y) = (rng.range(0, 2 * WIDTH - 4), rng.range(0, 2 * HEIGHT - 4));
        let (w, h) = (rng.range(3, 40).min(2 * WIDTH - x), rng.range(3, 24).min(2 * HEIGHT - y));
        let colour = [rng.range(0, 255) as u8, rng.range(0, 255) as u8, rng.range(0, 255) as u8];
        for row in y..y + h {
            for pixel in out[(row * 2 * WIDTH + x) * 3..][..3 * w].as_chunks_mut::<3>().0 {
                *pixel = colour;
            }
        }
    }
    out
}

/// An event: kind, first and last frame.
type Told = (String, u64, u64);

/// An element, and what it told.
struct Playing {
    h: Harness,
    bus: gst::Bus,
    film: Film,
    told: Vec<Told>,
    /// How buffers arrive, if not at once and on time.
    upset: Option<Rng>,
}

impl Playing {
    fn new(seed: u64, upset: Option<Rng>) -> Self {
        // The default cooldown is six frames to the tick, which jitter makes more or less.
        let cooldown = ("cooldown", "180000000");
        let rules = [("threads", "1"), ("frame-scores", "false"), ("inference-interval", "1"), cooldown];
        let element = make("ssmevents", &rules);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_src_caps_str(&format!("video/x-raw,format=RGB,width={WIDTH},height={HEIGHT},framerate={RATE}/1"));
        Self { h, bus, film: Film::new(seed), told: Vec::new(), upset }
    }

    fn play(&mut self, frames: u64) {
        let time = |n: u64| ClockTime::from_nseconds(n * 1_000_000_000 / RATE);
        for _ in 0..frames {
            let n = self.film.frames;
            let mut buffer = gst::Buffer::from_mut_slice(self.film.frame());
            let edit = buffer.get_mut().expect("a new buffer");
            let mut pts = time(n);
            if let Some(rng) = &mut self.upset {
                // The first frame begins the stream.
                let jitter = rng.range(0, 1_000_000_000 / RATE as usize / 4) as u64;
                pts += ClockTime::from_nseconds(if n == 0 { 0 } else { jitter });
                if rng.range(0, 999) == 0 {
                    std::thread::sleep(Duration::from_millis(rng.range(1, 20) as u64));
                }
            }
            edit.set_pts(pts);
            edit.set_duration(time(n + 1) - time(n));
            self.h.push(buffer).expect("flows");
            while self.h.try_pull().is_some() {}
        }
        while self.h.try_pull_event().is_some() || self.h.try_pull_upstream_event().is_some() {}
        while let Some(message) = self.bus.pop() {
            let gst::MessageView::Element(e) = message.view() else { continue };
            let Some(s) = e.structure().filter(|s| s.name() == "ssm-event") else { continue };
            // Half a frame more: times are rounded down, and may jitter.
            let half = 1_000_000_000 / RATE / 2;
            let frame = |name: &str| (s.get::<u64>(name).expect("a time") + half) * RATE / 1_000_000_000;
            self.told.push((s.get("kind").expect("a kind"), frame("start"), frame("end")));
        }
    }
}

/// Processor time of all threads so far in seconds.
fn processor() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let spent = |task: std::fs::DirEntry| -> Option<f64> {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    tasks.filter_map(spent).sum::<f64>() / 1e9
}

/// Resident memory in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}

/// Value of `--name` on the command line.
fn option(name: &str, default: u64) -> u64 {
    let mut words = std::env::args().skip_while(|w| w.strip_prefix("--") != Some(name)).skip(1);
    words.next().and_then(|w| w.parse().ok()).unwrap_or(default)
}

/// Microseconds of processor time a frame.
fn cost(stream: &mut Playing, frames: u64) -> f64 {
    let before = processor();
    stream.play(frames);
    (processor() - before) * 1e6 / frames as f64
}

fn main() -> ExitCode {
    let (hours, seed) = (option("hours", 10).max(1), option("seed", 1));
    let hour = 3600 * RATE;
    let mut stream = Playing::new(seed, None);
    let (mut first, mut last, mut least, mut most) = (0.0, 0.0, u64::MAX, 0);
    for n in 1..=hours {
        stream.told.clear();
        last = cost(&mut stream, hour);
        let kib = resident();
        println!("hour {n}: {last:.1} us of processor time a frame, {kib} KiB resident, {} events", stream.told.len());
        if n == 1 {
            first = last;
        }
        (least, most) = (least.min(kib), most.max(kib));
    }

    let mut fresh = Playing::new(seed + 1, None);
    let mut ratios: Vec<f64> = (0..TURNS).map(|_| cost(&mut stream, TURN) / cost(&mut fresh, TURN)).collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios[TURNS / 2];

    let mut even = Playing::new(seed, None);
    let mut upset = Playing::new(seed, Some(Rng::new(seed + 7)));
    even.play(hour);
    upset.play(hour);
    let apart = |a: &Playing, b: &Playing| a.told.iter().filter(|e| !b.told.contains(e)).cloned().collect::<Vec<_>>();
    let (lost, added) = (apart(&even, &upset), apart(&upset, &even));
    for (what, events) in [("only when buffers come evenly", &lost), ("only when they do not", &added)] {
        events.iter().take(10).for_each(|e| println!("{what}: {e:?}"));
    }
    let differ = lost.len() + added.len();
    let same = differ == 0 && !even.told.is_empty();

    let good = most - least <= MOVED && (ratio - 1.0).abs() <= 0.1 && same;
    println!(
        "{}: {hours} hours, {} frames; first hour {first:.1} us a frame, last {last:.1}; beside a fresh stream {:+.1} %; \
         resident {least} to {most} KiB; {} events of the first hour, {differ} others when buffers come unevenly",
        if good { "PASS" } else { "FAIL" },
        hours * hour,
        100.0 * (ratio - 1.0),
        even.told.len(),
    );
    ExitCode::from(u8::from(!good))
}
