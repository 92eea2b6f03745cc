//! `ssm shots`: the shots of a video as a table and as a contact sheet, through `ssmevents`.

use crate::element::{self, play};
use crate::{Failure, number, output};
use gstssm::{EventResult, Results};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  ssm shots film.mp4 --sheet shots.png
  ssm shots film.mp4 --threshold 0.7";

#[derive(clap::Args)]
pub struct Args {
    /// The video.
    video: PathBuf,
    /// The model.
    #[arg(long, default_value = "builtin:shots")]
    model: String,
    /// Probability that a transition reaches at least.
    #[arg(long, value_parser = number::within(0.0, 1.0))]
    threshold: Option<f64>,
    /// Picture (PNG) with the first frame of each shot, framed in the colour of what led to it: white a cut, blue a
    /// dissolve, orange a fade, green a wipe.
    #[arg(long)]
    sheet: Option<PathBuf>,
}

const WIDTH: usize = 160;
const HEIGHT: usize = 90;
/// Pictures in a row of the sheet, and the frame around each.
const COLUMNS: usize = 6;
const BORDER: usize = 4;
/// Frames that are kept back for the beginning of a shot whose transition is still under way.
const RECENT: usize = 512;
/// Shots on a sheet at most.
const SHOTS: usize = 600;

type Picture = Vec<u8>;

/// Collects the first frames of shots while the video runs.
#[derive(Default)]
struct Sheet {
    recent: VecDeque<(u64, Picture)>,
    shots: Vec<(String, Picture)>,
}

impl Sheet {
    fn frame(&mut self, pts: u64, picture: Picture) {
        if self.shots.is_empty() {
            self.shots.push((String::new(), picture.clone()));
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((pts, picture));
    }

    fn event(&mut self, kind: &str, end: u64) {
        let first = self.recent.iter().find(|(pts, _)| *pts >= end).or(self.recent.back());
        if let Some((_, picture)) = first
            && self.shots.len() < SHOTS
        {
            self.shots.push((kind.to_owned(), picture.clone()));
        }
    }

    /// Rows of pixels, and their width and height.
    fn draw(&self) -> (Vec<u8>, usize, usize) {
        let (w, h) = (WIDTH + 2 * BORDER, HEIGHT + 2 * BORDER);
        let columns = self.shots.len().clamp(1, COLUMNS);
        let (width, height) = (columns * w, self.shots.len().div_ceil(COLUMNS).max(1) * h);
        let mut out = vec![24u8; width * height * 3];
        for (i, (kind, picture)) in self.shots.iter().enumerate() {
            let (left, top) = (i % COLUMNS * w, i / COLUMNS * h);
            let colour: [u8; 3] = match kind.as_str() {
                "" => [90, 90, 90],
                "cut" => [235, 235, 235],
                "dissolve" => [80, 150, 255],
                "fade" => [255, 160, 60],
                _ => [110, 220, 110],
            };
            for y in 0..h {
                for x in 0..w {
                    let inside = (BORDER..BORDER + HEIGHT).contains(&y) && (BORDER..BORDER + WIDTH).contains(&x);
                    let from = if inside { ((y - BORDER) * WIDTH + x - BORDER) * 3 } else { usize::MAX };
                    let edge = x > 0 && y > 0 && x + 1 < w && y + 1 < h;
                    let pixel = match picture.get(from..from.saturating_add(3)) {
                        Some(rgb) if inside => [rgb[0], rgb[1], rgb[2]],
                        _ if edge => colour,
                        _ => continue,
                    };
                    out[((top + y) * width + left + x) * 3..][..3].copy_from_slice(&pixel);
                }
            }
        }
        (out, width, height)
    }
}

fn clock(ns: u64) -> String {
    let ms = ns / 1_000_000;
    format!("{}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    element::init()?;
    let threshold = args.threshold.map_or(String::new(), |t| format!(" threshold={t}"));
    let line = format!(
        "filesrc name=file ! decodebin ! videoconvert ! video/x-raw,format=(string){{RGB,I420,NV12}} ! \
         ssmevents name=events frame-scores=false{threshold} ! videoconvert ! videoscale ! \
         video/x-raw,format=RGB,width={WIDTH},height={HEIGHT} ! fakesink name=out sync=false"
    );
    let sheet = Arc::new(Mutex::new(Sheet::default()));
    let watched = sheet.clone();
    let look = move |buffer: &gst::BufferRef| {
        let mut sheet = watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(pts), Ok(map)) = (buffer.pts(), buffer.map_readable()) {
            sheet.frame(pts.nseconds(), map.as_slice().to_vec());
        }
        for EventResult { kind, end, .. } in Results::of(buffer).into_iter().filter_map(|r| r.event) {
            sheet.event(&kind, end);
        }
    };
    let file = args.video.to_string_lossy();
    let properties = [("file", "location", &*file), ("events", "model", &args.model)];
    let run = play(&line, &properties, "out", look).map_err(element::of(&args.video))?;
    let events = run.messages.iter().filter(|s| s.name() == "ssm-event");
    let mut told = 0;
    say!("{:<14} {:<14} {:<10} score", "old shot ends", "new begins", "kind");
    for s in events {
        let time = |name: &str| s.get::<u64>(name).map(clock).unwrap_or_default();
        let (kind, score) = (s.get::<&str>("kind").unwrap_or_default(), s.get::<f64>("score").unwrap_or(0.0));
        say!("{:<14} {:<14} {kind:<10} {score:.2}", time("start"), time("end"));
        told += 1;
    }
    let mut sheet = sheet.lock().unwrap_or_else(PoisonError::into_inner);
    // What the end of the video decided came with no frame.
    for s in run.messages.iter().filter(|s| s.name() == "ssm-event").skip(sheet.shots.len().saturating_sub(1)) {
        sheet.event(s.get("kind").unwrap_or_default(), s.get("end").unwrap_or(u64::MAX));
    }
    say!("{told} transitions, {} frames", run.times.len());
    if let Some(path) = &args.sheet {
        let (pixels, width, height) = sheet.draw();
        output::png(path, &pixels, width, height)?;
        say!("{}: {} shots", path.display(), sheet.shots.len());
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shot_begins_with_the_frame_of_its_event() {
        let mut sheet = Sheet::default();
        for i in 0..20u8 {
            sheet.frame(u64::from(i) * 40, vec![i; WIDTH * HEIGHT * 3]);
        }
        sheet.event("cut", 200);
        sheet.event("fade", 5000);
        let firsts: Vec<u8> = sheet.shots.iter().map(|s| s.1[0]).collect();
        assert_eq!(firsts, [0, 5, 19]);
        let (pixels, width, height) = sheet.draw();
        assert_eq!((width, height, pixels.len()), (504, 98, 504 * 98 * 3));
        let at = |x: usize, y: usize| pixels[(y * width + x) * 3];
        assert_eq!((at(168 + 84, 49), at(168 + 2, 49), at(0, 0)), (5, 235, 24));
    }

    #[test]
    fn times_are_read_by_people() {
        assert_eq!(clock(3_723_004_999_999), "1:02:03.004");
    }
}
