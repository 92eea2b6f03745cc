//! Hours of streams in minutes: sound and video without a clock through `ssmdenoise`, `ssmvad` and `ssmevents`, with
//! flushes, gaps, seeks, other caps, resets, hand-overs and stops at random places. Nothing may grow.
//!
//! ```text
//! cargo run --release -p ssm-tests --bin soak -- --minutes 30 --hours 24 --seed 1
//! ```
//!
//! `make soak` tells glibc's allocator to give back what is free at once; with its defaults it keeps some megabytes more,
//! step by step.
//! A line for each simulated hour; the last one begins with PASS or FAIL. It ends after the hours or the minutes,
//! whichever come first. What was used after a tenth of the time is the measure for the rest.
#![forbid(unsafe_code)]

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use ssm_tests::Rng;
use ssm_tests::audio::caps;
use ssm_tests::element::make;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Growth of the resident memory that is taken for the allocator's, in KiB.
const GROWTH: u64 = 2048;
/// A turn of each stream, simulated.
const TURN: ClockTime = ClockTime::from_seconds(10);

/// What the process uses.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    resident_kib: u64,
    threads: usize,
    files: usize,
}

impl Usage {
    fn now() -> Self {
        let count = |folder: &str| std::fs::read_dir(folder).map_or(0, Iterator::count);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        Self { resident_kib: resident.unwrap_or(0), threads: count("/proc/self/task"), files: count("/proc/self/fd") }
    }
}

/// An element that plays without end.
struct Stream {
    h: Harness,
    element: gst::Element,
    bus: gst::Bus,
    rng: Rng,
    /// Channels of sound, or the height of video.
    shape: usize,
    video: bool,
    at: ClockTime,
    pieces: u64,
}

impl Stream {
    fn new(factory: &str, video: bool, seed: u64) -> Self {
        let element = make(factory, &[]);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let h = Harness::with_element(&element, Some("sink"), Some("src"));
        let mut stream = Self { h, element, bus, rng: Rng::new(seed), shape: 1, video, at: ClockTime::ZERO, pieces: 0 };
        stream.begin();
        stream
    }

    /// Caps of another shape.
    fn begin(&mut self) {
        if self.video {
            self.shape = self.rng.range(16, 40);
            let caps = format!("video/x-raw,format=RGB,width=32,height={},framerate=25/1", self.shape);
            self.h.set_src_caps_str(&caps);
        } else {
            self.shape = self.rng.range(1, 2);
            let caps = caps("F32LE", 16_000, self.shape as i32);
            self.h.set_caps(caps.clone(), caps);
        }
    }

    fn flush(&mut self) {
        self.h.push_event(gst::event::FlushStart::new());
        self.h.push_event(gst::event::FlushStop::new(true));
        self.h.push_event(gst::event::Segment::new(&gst::FormattedSegment::<ClockTime>::new()));
    }

    /// Something that happens to streams.
    fn upset(&mut self) {
        match self.rng.range(0, 11) {
            0 => self.flush(),
            1 => {
                // A seek.
                self.flush();
                self.at = ClockTime::from_mseconds(self.rng.range(0, 7_200_000) as u64);
            }
            2 => self.at += ClockTime::from_mseconds(self.rng.range(50, 3000) as u64),
            3 => {
                let gap = ClockTime::from_mseconds(self.rng.range(1, 3000) as u64);
                self.h.push_event(gst::event::Gap::builder(self.at).duration(gap).build());
                self.at += gap;
            }
            4 => self.begin(),
            5 => {
                let reset = gst::Structure::new_empty("ssm-reset");
                self.h.push_event(gst::event::CustomDownstream::new(reset));
            }
            6 => {
                let down = self.rng.pick(&[gst::State::Ready, gst::State::Null]);
                for state in [down, gst::State::Playing] {
                    self.element.set_state(state).expect("it changes");
                }
                self.h.push_event(gst::event::StreamStart::new("again"));
                self.begin();
            }
            7 => {
                let state: Option<glib::Bytes> = self.element.emit_by_name("save-state", &[]);
                if let Some(state) = state {
                    assert!(self.element.emit_by_name::<bool>("load-state", &[&state]), "its own state");
                }
            }
            8 => {
                self.h.push_event(gst::event::Eos::new());
                self.flush();
            }
            9 => self.at = self.at.saturating_sub(ClockTime::from_seconds(20)),
            _ => {}
        }
    }

    /// Plays for a turn. Returns the first error.
    fn play(&mut self) -> Result<(), String> {
        let end = self.at + TURN;
        while self.at < end {
            let (data, duration) = if self.video {
                let shade = (self.pieces / 40 * 97 % 200) as usize + self.rng.range(0, 20);
                (vec![shade as u8; 32 * 3 * self.shape], ClockTime::from_mseconds(40))
            } else {
                let frames = self.rng.range(1, 3200);
                let loud = [0.01, 0.3][(self.pieces / 30 % 2) as usize];
                let sample = |_| (loud * (2.0 * self.rng.uniform() - 1.0)).to_le_bytes();
                let data = (0..frames * self.shape).flat_map(sample).collect();
                (data, ClockTime::from_nseconds(62_500 * frames as u64))
            };
            let mut buffer = gst::Buffer::from_mut_slice(data);
            buffer.get_mut().expect("a new buffer").set_pts(self.at);
            self.h.push(buffer).map_err(|e| format!("{}: {e:?}", self.element.name()))?;
            self.at += duration;
            self.pieces += 1;
            while self.h.try_pull().is_some() {}
        }
        while self.h.try_pull_event().is_some() || self.h.try_pull_upstream_event().is_some() {}
        while let Some(message) = self.bus.pop() {
            if let gst::MessageView::Error(e) = message.view() {
                return Err(e.error().to_string());
            }
        }
        Ok(())
    }
}

/// Value of `--name` on the command line.
fn option(name: &str, default: f64) -> f64 {
    let mut words = std::env::args().skip_while(|w| w.strip_prefix("--") != Some(name)).skip(1);
    words.next().and_then(|w| w.parse().ok()).unwrap_or(default)
}

fn main() -> ExitCode {
    let (minutes, hours, seed) = (option("minutes", 30.0), option("hours", 24.0), option("seed", 1.0) as u64);
    let (start, limit) = (Instant::now(), Duration::from_secs_f64(60.0 * minutes));
    let mut streams = [("ssmdenoise", false), ("ssmvad", false), ("ssmevents", true)]
        .map(|(factory, video)| Stream::new(factory, video, seed));
    let (mut simulated, mut told) = (ClockTime::ZERO, 0);
    let (mut base, mut most) = (None::<Usage>, Usage::default());
    let mut failed = None;
    while failed.is_none() && start.elapsed() < limit && simulated.seconds() < (3600.0 * hours) as u64 {
        for stream in &mut streams {
            stream.upset();
            failed = failed.or(stream.play().err());
        }
        simulated += TURN;
        let now = Usage::now();
        let warm = start.elapsed() > limit / 10 || simulated.seconds() as f64 > 360.0 * hours;
        if warm {
            base.get_or_insert(now);
            most.resident_kib = most.resident_kib.max(now.resident_kib);
            (most.threads, most.files) = (most.threads.max(now.threads), most.files.max(now.files));
        }
        if simulated.seconds() / 3600 > told {
            told = simulated.seconds() / 3600;
            println!("hour {told}: {now:?} after {:.0} s", start.elapsed().as_secs_f64());
        }
    }
    let base = base.unwrap_or_default();
    let grown =
        most.resident_kib > base.resident_kib + GROWTH || most.threads > base.threads || most.files > base.files;
    let verdict = if failed.is_some() || grown { "FAIL" } else { "PASS" };
    println!(
        "{verdict}: {:.2} simulated hours of {} streams in {:.1} minutes, seed {seed}; warm {base:?}, most {most:?}{}",
        simulated.seconds() as f64 / 3600.0,
        streams.len(),
        start.elapsed().as_secs_f64() / 60.0,
        failed.map_or_else(String::new, |e| format!("; {e}"))
    );
    ExitCode::from(u8::from(verdict == "FAIL"))
}
