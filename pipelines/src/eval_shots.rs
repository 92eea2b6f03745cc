//! `ssm eval-shots`: how well a model finds the transitions of videos whose truth is known, through `ssmevents`.
//!
//! Beside each `NAME.mp4` or `NAME.webm` lies `NAME.json`:
//! `{"fps": "24/1", "frames": n, "transitions": [{"start": f, "end": f, "kind": "cut"}, …], "ignore": [[first, last], …]}`.
//! Frames count from 0 in the order of decoding; `start` is the last frame wholly of the old shot, `end` the first wholly of
//! the new one. A detection (a cut's first new frame, else the middle) matches a transition when it lies in
//! `start - 1 ..= end + 2`, one each; every further one is a false alarm; inside `ignore` nothing counts.

use crate::element::{self, play};
use crate::{Failure, number};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  ssm eval-shots films --verbose        # beside films/a.mp4 lies films/a.json";

#[derive(clap::Args)]
pub struct Args {
    /// Folder with videos and their truth.
    folder: PathBuf,
    /// The model.
    #[arg(long, default_value = "builtin:shots")]
    model: String,
    /// Probability that an event reaches at least.
    #[arg(long, value_parser = number::within(0.0, 1.0))]
    threshold: Option<f64>,
    /// Print every event, and what it was taken for.
    #[arg(long)]
    verbose: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Transition {
    start: f64,
    end: f64,
    cut: bool,
}

#[derive(Default)]
struct Truth {
    transitions: Vec<Transition>,
    ignore: Vec<(f64, f64)>,
}

/// Transitions found and missed, cuts and gradual ones apart, and false alarms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    cuts: (usize, usize),
    gradual: (usize, usize),
    false_alarms: usize,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.cuts = (self.cuts.0 + other.cuts.0, self.cuts.1 + other.cuts.1);
        self.gradual = (self.gradual.0 + other.gradual.0, self.gradual.1 + other.gradual.1);
        self.false_alarms += other.false_alarms;
    }

    /// Precision, recall, F1; 1 where there is nothing to find.
    fn rates(&self) -> (f64, f64, f64) {
        let hits = self.cuts.0 + self.gradual.0;
        let (told, all) = (hits + self.false_alarms, self.cuts.1 + self.gradual.1);
        let share = |n: usize, of: usize| if of == 0 { 1.0 } else { n as f64 / of as f64 };
        (share(hits, told), share(hits, all), share(2 * hits, told + all))
    }

    fn line(&self, name: &str) -> String {
        let (precision, recall, f1) = self.rates();
        format!(
            "{name:<32} precision {precision:.3}  recall {recall:.3}  F1 {f1:.3}  cuts {}/{}  gradual {}/{}  false {}",
            self.cuts.0, self.cuts.1, self.gradual.0, self.gradual.1, self.false_alarms
        )
    }
}

fn truth(path: &Path) -> Result<Truth, Failure> {
    let bad = |reason: String| Failure::File { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    let list = |name: &str| value.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if value.get("transitions").and_then(Value::as_array).is_none() {
        return Err(bad("transitions: expected an array, got none".into()));
    }
    if value.get("ignore").is_some_and(|v| !v.is_array()) {
        return Err(bad(format!("ignore: expected an array, got {}", value["ignore"])));
    }
    let mut truth = Truth::default();
    for (i, t) in list("transitions").iter().enumerate() {
        let frame = |name: &str| {
            let frame = t.get(name).and_then(Value::as_f64);
            frame.ok_or_else(|| bad(format!("transitions[{i}].{name}: expected a frame, got {t}")))
        };
        let (start, end) = (frame("start")?, frame("end")?);
        if start > end {
            return Err(bad(format!("transitions[{i}]: expected an end that is not before its start, got {t}")));
        }
        let kind = t.get("kind").and_then(Value::as_str).unwrap_or("");
        truth.transitions.push(Transition { start, end, cut: kind == "cut" || end - start <= 1.0 });
    }
    for (i, span) in list("ignore").iter().enumerate() {
        match (span.get(0).and_then(Value::as_f64), span.get(1).and_then(Value::as_f64)) {
            (Some(a), Some(b)) => truth.ignore.push((a, b)),
            _ => return Err(bad(format!("ignore[{i}]: expected two frames, got {span}"))),
        }
    }
    Ok(truth)
}

/// Matches detections (frames, ascending) with the truth.
fn judge(truth: &Truth, found: &[f64], mut tell: impl FnMut(f64, Option<&Transition>)) -> Tally {
    let ignored = |frame: f64| truth.ignore.iter().any(|(a, b)| (*a..=*b).contains(&frame));
    let mut open: Vec<&Transition> =
        truth.transitions.iter().filter(|t| !ignored(t.start) || !ignored(t.end)).collect();
    let all = |open: &[&Transition], cut: bool| open.iter().filter(|t| t.cut == cut).count();
    let mut tally = Tally { cuts: (0, all(&open, true)), gradual: (0, all(&open, false)), false_alarms: 0 };
    for at in found.iter().copied() {
        match open.iter().position(|t| (t.start - 1.0..=t.end + 2.0).contains(&at)) {
            Some(i) => {
                let hit = open.remove(i);
                if hit.cut {
                    tally.cuts.0 += 1
                } else {
                    tally.gradual.0 += 1
                }
                tell(at, Some(hit));
            }
            None if ignored(at) => {}
            None => {
                tally.false_alarms += 1;
                tell(at, None);
            }
        }
    }
    tally
}

/// Events of a video as (start, end) frames.
fn events(args: &Args, video: &Path) -> Result<Vec<(f64, f64)>, Failure> {
    let threshold = args.threshold.map_or(String::new(), |t| format!(" threshold={t}"));
    let line = format!(
        "filesrc name=file ! decodebin ! videoconvert ! \
         video/x-raw,format=(string){{RGB,I420,NV12}} ! ssmevents name=events frame-scores=false{threshold} ! \
         fakesink sync=false"
    );
    let (mut times, mut found) = (Vec::new(), Vec::new());
    let run = play(
        &line,
        &[("file", "location", &video.to_string_lossy()), ("events", "model", &args.model)],
        "events",
        |_| (),
    )
    .map_err(element::of(video))?;
    times.extend(run.times);
    times.sort_unstable();
    for s in run.messages.iter().filter(|s| s.name() == "ssm-event") {
        let frame = |name: &str| s.get::<u64>(name).ok().map(|t| times.partition_point(|x| *x < t) as f64);
        if let (Some(start), Some(end)) = (frame("start"), frame("end")) {
            found.push((start, end));
        }
    }
    Ok(found)
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    element::init()?;
    let videos = element::files(&args.folder, &["mp4", "webm", "mkv", "avi", "mov"])?;
    let (mut total, mut seen) = (Tally::default(), 0);
    for video in videos {
        let path = video.with_extension("json");
        if !path.is_file() {
            continue;
        }
        let truth = truth(&path)?;
        let mut detections: Vec<f64> = Vec::new();
        for (start, end) in events(args, &video)? {
            detections.push(if end - start <= 1.0 { end } else { (start + end) / 2.0 });
        }
        detections.sort_by(f64::total_cmp);
        let tally = judge(&truth, &detections, |at, hit| {
            if args.verbose {
                let what = hit.map_or("false alarm".into(), |t| format!("{}-{}", t.start, t.end));
                say!("  {at}: {what}");
            }
        });
        let name = video.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        say!("{}", tally.line(&name));
        total.add(tally);
        seen += 1;
    }
    if seen == 0 {
        return Err(Failure::Usage(format!(
            "{}: expected videos with a .json beside them, got none",
            args.folder.display()
        )));
    }
    say!("{}", total.line(&format!("{seen} videos")));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth() -> Truth {
        let t = |start: f64, end: f64| Transition { start, end, cut: end - start <= 1.0 };
        Truth { transitions: vec![t(9.0, 10.0), t(40.0, 60.0), t(99.0, 100.0)], ignore: vec![(90.0, 120.0)] }
    }

    #[test]
    fn each_transition_is_found_once_within_its_bounds() {
        for (found, want) in [
            (vec![10.0, 50.0], (1, 1, 0)),
            (vec![8.0], (1, 0, 0)),
            (vec![12.0], (1, 0, 0)),
            (vec![7.9], (0, 0, 1)),
            (vec![12.1], (0, 0, 1)),
            (vec![10.0, 10.0], (1, 0, 1)),
            (vec![39.0, 62.0], (0, 1, 1)),
            (vec![95.0, 100.0, 110.0], (0, 0, 0)),
        ] {
            let tally = judge(&truth(), &found, |_, _| ());
            assert_eq!(
                (tally.cuts, tally.gradual, tally.false_alarms),
                ((want.0, 1), (want.1, 1), want.2),
                "{found:?}"
            );
        }
    }

    #[test]
    fn rates_are_those_of_the_field() {
        let tally = Tally { cuts: (6, 8), gradual: (2, 4), false_alarms: 2 };
        let (precision, recall, f1) = tally.rates();
        assert!((precision - 0.8).abs() < 1e-9 && (recall - 8.0 / 12.0).abs() < 1e-9);
        assert!((f1 - 2.0 * precision * recall / (precision + recall)).abs() < 1e-9);
    }
}
