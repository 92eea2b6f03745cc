//! One file of an archive through one element, to a file of JSON lines that is whole or not there.
//!
//! Beside the output `NAME.jsonl` lie, while it is not finished, the lines so far (`NAME.jsonl.part`) and a state
//! (`NAME.jsonl.state`): a line of JSON, then the element's snapshot. The state says how many buffers the element had seen
//! and how long the lines were then, so a later run cuts the lines there, decodes up to that buffer without looking, and
//! goes on. The file comes out as if it had never been interrupted.

use crate::Failure;
use crate::element::{self, Finder, Media};
use crate::output::{beside, replace};
use gst::glib;
use gst::prelude::*;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A file to look through, and how.
pub struct Job<'a> {
    /// The element.
    pub finder: &'a Finder,
    /// The media.
    pub input: &'a Path,
    /// The lines.
    pub output: &'a Path,
    /// Media time between two states, in ns.
    pub every: u64,
    /// Does it though the output is there, and replaces that in the end.
    pub force: bool,
    /// Whether all is to end: where no buffer comes that could be asked about, it ends with the last state.
    pub quit: &'a AtomicBool,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The output is there now. `resumed`: buffers that an earlier run had seen already.
    Done { lines: u64, resumed: u64 },
    /// The output was there before.
    Skipped,
    /// Another process is at it.
    Busy,
    /// `go_on` said no. What was found so far is kept.
    Stopped,
}

/// What a state file begins with.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Header {
    /// What the state is of: the element with its properties, and the input's size and time. Another one is no use.
    of: String,
    /// Buffers that the element has seen.
    buffers: u64,
    /// Length of the lines in bytes.
    bytes: u64,
    /// How many they are.
    lines: u64,
    /// Checksum of the lines.
    sum: u32,
    /// Checksum of this header.
    check: u32,
}

impl Header {
    /// The checksum that belongs into `check`.
    fn checksum(&self) -> u32 {
        let Self { of, buffers, bytes, lines, sum, check: _ } = self;
        crc32fast::hash(format!("{of}\n{buffers} {bytes} {lines} {sum}").as_bytes())
    }
}

/// Between the end of a buffer and the next one, in ns, at most, where they belong together.
const SEAM: u64 = 1_000_000;
/// Buffers that a state waits at most for two that belong together.
const PUT_OFF: u32 = 50;

/// How long a file may give no buffer: to begin with, and when all is to end.
const STANDSTILL: Duration = Duration::from_secs(60);
const FAREWELL: Duration = Duration::from_secs(2);

/// What the two ends of the element share.
struct Progress {
    header: Header,
    /// Of the lines so far.
    sum: crc32fast::Hasher,
    /// The snapshot of the element after `header.buffers` buffers.
    out: BufWriter<File>,
    /// Time of the last state in ns, or of the first buffer.
    saved: Option<u64>,
    /// Where the buffer before ended, in ns.
    expected: Option<u64>,
    /// Buffers since a state was wanted.
    put_off: u32,
    stopped: bool,
    error: Option<io::Error>,
}

/// An error of a file.
fn at(path: &Path) -> impl FnOnce(io::Error) -> Failure + use<> {
    let path = path.to_owned();
    move |e| Failure::File { path, reason: e.to_string() }
}

/// What belongs to the input: a state of another file of the same name would be nonsense.
fn stamp(finder: &Finder, input: &Path) -> io::Result<String> {
    let file = fs::metadata(input)?;
    let time = file.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{}; {} bytes of {} ns", finder.line, file.len(), time.as_nanos()))
}

/// What an earlier run left: header, checksum of the lines, snapshot.
type Left = (Header, crc32fast::Hasher, Vec<u8>);

/// The state that an earlier run left, if it is of the same job and the lines are those it was saved with.
fn resume(path: &Path, of: &str, mut lines: &File) -> Option<Left> {
    let mut file = BufReader::new(File::open(path).ok()?);
    let (mut line, mut snapshot) = (Vec::new(), Vec::new());
    // A header has no more than a path's and an element's length.
    (&mut file).take(1 << 20).read_until(b'\n', &mut line).ok()?;
    let header: Header = serde_json::from_slice(&line).ok()?;
    file.read_to_end(&mut snapshot).ok()?;
    if header.of != of || header.check != header.checksum() {
        return None;
    }
    lines.rewind().ok()?;
    let (mut sum, mut lines, mut left) = (crc32fast::Hasher::new(), BufReader::new(lines.take(header.bytes)), 0);
    while let Some(read) = lines.fill_buf().ok().filter(|read| !read.is_empty()) {
        sum.update(read);
        let n = read.len();
        left += n as u64;
        lines.consume(n);
    }
    (left == header.bytes && sum.clone().finalize() == header.sum).then_some((header, sum, snapshot))
}

/// Whether the element's model takes a snapshot: another file may lie under its name by now.
fn fits(finder: &gst::Element, snapshot: &[u8]) -> bool {
    // Only an open model can tell. One that does not open says so when the pipeline starts.
    let fits = finder.set_state(gst::State::Ready).is_err()
        || finder.emit_by_name::<bool>("load-state", &[&glib::Bytes::from(snapshot)]);
    let _ = finder.set_state(gst::State::Null);
    fits
}

fn write_state(path: &Path, header: &Header, snapshot: &[u8]) -> io::Result<()> {
    replace(path, |file| {
        serde_json::to_writer(&mut *file, header)?;
        file.write_all(b"\n")?;
        file.write_all(snapshot)
    })
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job<'_> {
    /// Does it, or what is left of it. `go_on` is asked before each buffer, with its number; `tell` gets the position in
    /// the media and its length in ns, a few times a second.
    ///
    /// # Errors
    /// The input does not decode, the element refuses it, or the output cannot be written.
    pub fn run(
        &self,
        go_on: impl Fn(u64) -> bool + Send + Sync + 'static,
        mut tell: impl FnMut(u64, u64),
    ) -> Result<Outcome, Failure> {
        if self.output.is_file() && !self.force {
            return Ok(Outcome::Skipped);
        }
        // Opening a pipe would wait for its writer.
        if !fs::metadata(self.input).map_err(at(self.input))?.is_file() {
            return Err(at(self.input)(io::Error::other("expected a file, got something else")));
        }
        if let Some(folder) = self.output.parent() {
            fs::create_dir_all(folder).map_err(at(folder))?;
        }
        let (part, state) = (beside(self.output, ".part"), beside(self.output, ".state"));
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&part).map_err(at(&part))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(Outcome::Busy),
            Err(fs::TryLockError::Error(e)) => return Err(at(&part)(e)),
        }
        // Between its opening and the lock another process may have made it its output.
        if !gstssm::still_named(&file, &part) {
            return Ok(Outcome::Busy);
        }
        // Finished by another process between the first look and the lock.
        if self.output.exists() && !self.force {
            let _ = fs::remove_file(&part);
            return Ok(Outcome::Skipped);
        }
        let line = format!(
            "filesrc name=file ! decodebin ! {} ! {} ! ssmjson ! appsink name=lines sync=false",
            self.finder.convert(),
            self.finder.line
        );
        let pipeline = element::launch(&line)?;
        let part_of =
            |name: &str| pipeline.by_name(name).ok_or_else(|| Failure::Usage(format!("{line}: no element {name}")));
        let finder = part_of(&self.finder.name)?;

        let of = stamp(self.finder, self.input).map_err(at(self.input))?;
        let (header, sum, snapshot) = match resume(&state, &of, &file).filter(|left| fits(&finder, &left.2)) {
            Some((header, sum, snapshot)) => (header, sum, Some(glib::Bytes::from_owned(snapshot))),
            None => (Header { of, ..Header::default() }, crc32fast::Hasher::new(), None),
        };
        let resumed = header.buffers;
        file.set_len(header.bytes).and_then(|()| file.seek(SeekFrom::End(0))).map_err(at(&part))?;
        let out = BufWriter::new(file);
        let progress =
            Progress { header, sum, out, saved: None, expected: None, put_off: 0, stopped: false, error: None };
        let progress = Arc::new(Mutex::new(progress));

        part_of("file")?.set_property("location", self.input);
        let (position, seen) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let watch = Watch {
            progress: progress.clone(),
            position: position.clone(),
            seen: seen.clone(),
            stop: stop.clone(),
            state: state.clone(),
            every: self.every,
            skip: resumed,
            snapshot,
        };
        watch.install(&finder, go_on)?;
        let sink = part_of("lines")?.downcast::<gst_app::AppSink>();
        let sink = sink.map_err(|_| Failure::Usage(format!("{line}: expected an appsink")))?;
        let lines = progress.clone();
        let write = move |sink: &gst_app::AppSink| {
            let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
            let map = sample.buffer().and_then(|b| b.map_readable().ok()).ok_or(gst::FlowError::Error)?;
            let mut lines = lock(&lines);
            if let Err(error) = lines.add(&map) {
                lines.error = Some(error);
                return Err(gst::FlowError::Error);
            }
            Ok(gst::FlowSuccess::Ok)
        };
        sink.set_callbacks(gst_app::AppSinkCallbacks::builder().new_sample(write).build());

        let mut duration = None;
        let (mut last, mut since, mut stands) = (0, Instant::now(), false);
        let played = element::follow(&pipeline, &line, |structure| {
            if structure.is_none() {
                duration = duration.or_else(|| pipeline.query_duration::<gst::ClockTime>());
                tell(position.load(Ordering::Relaxed), duration.map_or(0, gst::ClockTime::nseconds));
            }
            let count = seen.load(Ordering::Relaxed);
            if count != last {
                (last, since) = (count, Instant::now());
            }
            // A decoder may lose the error of a damaged file; then nothing comes, and nothing says so.
            stands = count == 0 && since.elapsed() > STANDSTILL;
            let parting = self.quit.load(Ordering::Acquire) && since.elapsed() > FAREWELL;
            if parting {
                lock(&progress).stopped = true;
            }
            !stop.load(Ordering::Acquire) && !stands && !parting
        });
        let played = match played {
            Ok(()) if stands => Err(Failure::Usage(format!("it gave nothing in {} s", STANDSTILL.as_secs()))),
            played => played,
        };
        let mut progress = lock(&progress);
        let outcome = self.finish(&mut progress, played, &part, &state, resumed);
        // Threads of the pipeline that are about to end may hold the file still.
        progress.stopped = true;
        let _ = progress.out.flush();
        let _ = progress.out.get_ref().unlock();
        outcome
    }

    /// What came of it, once nothing flows any longer.
    fn finish(
        &self,
        progress: &mut Progress,
        played: Result<(), Failure>,
        part: &Path,
        state: &Path,
        resumed: u64,
    ) -> Result<Outcome, Failure> {
        if let Some(error) = progress.error.take() {
            return Err(at(part)(error));
        }
        if let Err(error) = played {
            // Nothing to go on from.
            if !state.exists() {
                let _ = fs::remove_file(part);
            }
            let media = if self.finder.media == Media::Video { "video" } else { "sound" };
            return Err(match progress.saved {
                None => Failure::Usage(format!("{error}; no {media} of it reached {}", self.finder.name)),
                Some(_) => error,
            });
        }
        if progress.stopped {
            return Ok(Outcome::Stopped);
        }
        progress.out.flush().and_then(|()| progress.out.get_ref().sync_all()).map_err(at(part))?;
        fs::rename(part, self.output).map_err(at(self.output))?;
        // Harmless where they stay: nothing looks at them once the output is there.
        let _ = fs::remove_file(state);
        let _ = fs::remove_file(beside(state, ".part"));
        Ok(Outcome::Done { lines: progress.header.lines, resumed })
    }
}

impl Progress {
    fn add(&mut self, lines: &[u8]) -> io::Result<()> {
        if !self.stopped {
            self.out.write_all(lines)?;
            self.sum.update(lines);
            self.header.bytes += lines.len() as u64;
            self.header.lines += lines.iter().filter(|b| **b == b'\n').count() as u64;
        }
        Ok(())
    }
}

/// What sees each buffer before the element does.
struct Watch {
    progress: Arc<Mutex<Progress>>,
    position: Arc<AtomicU64>,
    /// Buffers that came.
    seen: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    state: PathBuf,
    every: u64,
    /// Buffers that an earlier run has seen.
    skip: u64,
    /// The state after them.
    snapshot: Option<glib::Bytes>,
}

impl Watch {
    fn install(
        self,
        finder: &gst::Element,
        go_on: impl Fn(u64) -> bool + Send + Sync + 'static,
    ) -> Result<(), Failure> {
        let pad = finder.static_pad("sink").ok_or_else(|| Failure::Usage("an element without a sink pad".into()))?;
        let weak = finder.downgrade();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let times = info.buffer().map(|b| [b.pts(), b.duration()].map(|t| t.map(gst::ClockTime::nseconds)));
            let [pts, duration] = times.unwrap_or_default();
            let time = pts.unwrap_or(0);
            self.position.store(time, Ordering::Relaxed);
            let number = self.seen.fetch_add(1, Ordering::Relaxed);
            let goes_on = go_on(number);
            let mut progress = lock(&self.progress);
            if progress.stopped {
                return gst::PadProbeReturn::Handled;
            }
            // A state does not say when its last buffer ended: it is no use right before a hole or a jump, which the element
            // would not see.
            let seamless = progress.expected.zip(pts).is_none_or(|(expected, pts)| pts.abs_diff(expected) <= SEAM);
            progress.expected = pts.zip(duration).map(|(pts, duration)| pts + duration);
            if number < self.skip {
                // What is there already is the state to go on from.
                if !goes_on {
                    progress.stopped = true;
                    self.stop.store(true, Ordering::Release);
                }
                return gst::PadProbeReturn::Handled;
            }
            drop(progress);
            // Caps that came among those buffers have made fresh states.
            if number == self.skip
                && let Some((element, snapshot)) = weak.upgrade().zip(self.snapshot.as_ref())
            {
                element.emit_by_name::<bool>("load-state", &[snapshot]);
            }
            // Nothing is on its way here: the buffer before has gone through to the lines.
            let mut progress = lock(&self.progress);
            let saved = *progress.saved.get_or_insert(time);
            let wanted = !goes_on || time.saturating_sub(saved) >= self.every;
            progress.put_off = if wanted && !seamless { progress.put_off + 1 } else { 0 };
            let wanted = wanted && (seamless || progress.put_off > PUT_OFF);
            progress.stopped = wanted && !goes_on;
            if wanted {
                progress.saved = Some(time);
                let snapshot = weak.upgrade().and_then(|e| e.emit_by_name::<Option<glib::Bytes>>("save-state", &[]));
                if let Some(snapshot) = snapshot {
                    progress.header.buffers = number;
                    progress.header.sum = progress.sum.clone().finalize();
                    progress.header.check = progress.header.checksum();
                    let written = progress.out.flush().and_then(|()| progress.out.get_ref().sync_data());
                    if let Err(error) = written.and_then(|()| write_state(&self.state, &progress.header, &snapshot)) {
                        progress.error = Some(error);
                        progress.stopped = true;
                    }
                }
            }
            if progress.stopped {
                self.stop.store(true, Ordering::Release);
                return gst::PadProbeReturn::Handled;
            }
            gst::PadProbeReturn::Ok
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            element::init().unwrap();
            let path = std::env::temp_dir().join(format!("ssm-job-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn encode(line: &str, to: &Path) {
        element::play(&format!("{line} ! filesink location={}", to.display()), &[], "", |_| ()).unwrap();
    }

    fn run(
        finder: &str,
        input: &Path,
        output: &Path,
        every: u64,
        go_on: impl Fn(u64) -> bool + Send + Sync + 'static,
    ) -> Outcome {
        let finder = Finder::new(finder, None).unwrap();
        Job { finder: &finder, input, output, every, force: false, quit: &AtomicBool::new(false) }
            .run(go_on, |_, _| ())
            .unwrap()
    }

    /// Stopped and killed at any place, the lines are those of one run.
    fn goes_on(folder: &Folder, finder: &str, input: &Path, buffers: u64) {
        let whole = folder.file("whole.jsonl");
        let Outcome::Done { lines, resumed: 0 } = run(finder, input, &whole, u64::MAX, |_| true) else {
            panic!("{finder}: it runs to its end");
        };
        let want = fs::read(&whole).unwrap();
        assert!(lines > 10 && want.iter().filter(|b| **b == b'\n').count() as u64 == lines, "{finder}: {lines} lines");
        assert_eq!(run(finder, input, &whole, 0, |_| panic!("nothing is decoded")), Outcome::Skipped);

        for stop in [0, 1, buffers / 3, buffers / 2 + 1, buffers - 1] {
            let output = folder.file(&format!("{stop}.jsonl"));
            assert_eq!(run(finder, input, &output, u64::MAX, move |n| n < stop), Outcome::Stopped);
            assert!(!output.exists());
            // What a process that was killed had written since.
            let mut part = OpenOptions::new().append(true).open(beside(&output, ".part")).unwrap();
            part.write_all(b"{\"half a li").unwrap();
            drop(part);
            let done = run(finder, input, &output, u64::MAX, |_| true);
            assert_eq!(done, Outcome::Done { lines, resumed: stop });
            assert!(fs::read(&output).unwrap() == want, "{finder}: stopped at {stop}");
            assert!(!beside(&output, ".part").exists() && !beside(&output, ".state").exists());
        }

        // A header or lines that were changed are no use: it begins anew.
        for spoil in ["\"buffers\":", "{\""] {
            let output = folder.file("spoilt.jsonl");
            assert_eq!(run(finder, input, &output, u64::MAX, move |n| n < buffers / 2), Outcome::Stopped);
            let path = beside(&output, if spoil.len() > 2 { ".state" } else { ".part" });
            let mut bytes = fs::read(&path).unwrap();
            let at = bytes.windows(spoil.len()).position(|w| w == spoil.as_bytes()).unwrap() + spoil.len();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert_eq!(run(finder, input, &output, u64::MAX, |_| true), Outcome::Done { lines, resumed: 0 }, "{spoil}");
            assert!(fs::read(&output).unwrap() == want, "{finder}: {spoil}");
            fs::remove_file(&output).unwrap();
        }

        // Without a stop in good order: from the last state.
        let output = folder.file("killed.jsonl");
        let (state, kept) = (beside(&output, ".state"), folder.file("kept"));
        let (from, to) = (state.clone(), kept.clone());
        let stopped = run(finder, input, &output, 1, move |n| {
            if n == buffers / 2 {
                fs::copy(&from, &to).unwrap();
            }
            n < buffers / 2 + 2
        });
        assert_eq!(stopped, Outcome::Stopped);
        fs::rename(&kept, &state).unwrap();
        // Killed while it wrote a state.
        let half = beside(&state, ".part");
        fs::write(&half, b"{").unwrap();
        let done = run(finder, input, &output, u64::MAX, |_| true);
        assert_eq!(done, Outcome::Done { lines, resumed: buffers / 2 - 1 });
        assert!(fs::read(&output).unwrap() == want && !half.exists(), "{finder}: killed");
    }

    #[test]
    fn a_state_goes_on_behind_other_caps() {
        let folder = Folder::new("caps");
        let input = folder.file("a.mjpg");
        let mut all = Vec::new();
        for size in ["width=64,height=48", "width=40,height=30"] {
            let part = folder.file("part.mjpg");
            encode(
                &format!("videotestsrc num-buffers=20 pattern=ball ! video/x-raw,{size},framerate=25/1 ! jpegenc"),
                &part,
            );
            all.append(&mut fs::read(&part).unwrap());
        }
        fs::write(&input, all).unwrap();
        let whole = folder.file("whole.jsonl");
        assert!(matches!(run("ssmevents", &input, &whole, u64::MAX, |_| true), Outcome::Done { resumed: 0, .. }));
        let want = fs::read(&whole).unwrap();
        for stop in [1, 19, 20, 21, 39] {
            let output = folder.file(&format!("{stop}.jsonl"));
            assert_eq!(run("ssmevents", &input, &output, u64::MAX, move |n| n < stop), Outcome::Stopped);
            assert!(
                matches!(run("ssmevents", &input, &output, u64::MAX, |_| true), Outcome::Done { resumed, .. } if resumed == stop)
            );
            assert!(fs::read(&output).unwrap() == want, "stopped at {stop}");
        }
    }

    #[test]
    fn a_state_does_not_lie_at_a_hole() {
        let folder = Folder::new("hole");
        let input = folder.file("a.mkv");
        let part = |offset: u64| {
            format!(
                "videotestsrc num-buffers=30 pattern=ball timestamp-offset={offset} ! \
                 video/x-raw,width=64,height=48,framerate=25/1 ! c."
            )
        };
        let line = "concat name=c adjust-base=false ! jpegenc ! matroskamux ! filesink";
        let line = format!("{} {} {line} location={}", part(0), part(5_000_000_000), input.display());
        element::play(&line, &[], "", |_| ()).unwrap();
        let finder = "ssmevents threshold=0.01 low-threshold=0.001 max-gap=1000000000";
        let whole = folder.file("whole.jsonl");
        assert!(matches!(run(finder, &input, &whole, u64::MAX, |_| true), Outcome::Done { resumed: 0, .. }));
        for (stop, at) in [(29, 29), (30, 31), (31, 31)] {
            let output = folder.file(&format!("{stop}.jsonl"));
            assert_eq!(run(finder, &input, &output, u64::MAX, move |n| n < stop), Outcome::Stopped);
            // Asked to end while it looks for its place, it ends, and keeps that.
            assert_eq!(run(finder, &input, &output, u64::MAX, |n| n < 5), Outcome::Stopped);
            let Outcome::Done { resumed, .. } = run(finder, &input, &output, u64::MAX, |_| true) else {
                panic!("done")
            };
            assert_eq!(resumed, at);
            assert!(fs::read(&output).unwrap() == fs::read(&whole).unwrap(), "stopped at {stop}");
        }
    }

    #[test]
    fn another_model_under_the_same_name_begins_anew() {
        let folder = Folder::new("model");
        let (input, model, output) = (folder.file("a.mkv"), folder.file("m.safetensors"), folder.file("a.jsonl"));
        encode(
            "videotestsrc num-buffers=60 pattern=ball ! video/x-raw,width=64,height=48,framerate=25/1 ! jpegenc ! matroskamux",
            &input,
        );
        let mut weights =
            fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/builtin/shots.safetensors")).unwrap();
        fs::write(&model, &weights).unwrap();
        let finder = format!("ssmevents model={}", model.display());
        assert_eq!(run(&finder, &input, &output, u64::MAX, |n| n < 30), Outcome::Stopped);
        // The last bit of a weight.
        *weights.last_mut().unwrap() ^= 1;
        fs::write(&model, &weights).unwrap();
        let Outcome::Done { resumed: 0, lines } = run(&finder, &input, &output, u64::MAX, |_| true) else {
            panic!("it begins anew and runs to its end");
        };
        assert!(lines > 10);
    }

    #[test]
    fn a_video_goes_on_where_it_was_stopped() {
        let folder = Folder::new("video");
        let input = folder.file("a.mkv");
        encode(
            "videotestsrc num-buffers=60 pattern=ball ! video/x-raw,width=64,height=48,framerate=25/1 ! jpegenc ! matroskamux",
            &input,
        );
        goes_on(&folder, "ssmevents threshold=0.01 low-threshold=0.001", &input, 60);
    }

    #[test]
    fn sound_goes_on_where_it_was_stopped() {
        let folder = Folder::new("sound");
        let input = folder.file("a.wav");
        encode("audiotestsrc num-buffers=30 wave=ticks ! audio/x-raw,rate=16000,channels=1 ! wavenc", &input);
        let decoded = Arc::new(AtomicU64::new(0));
        let count = decoded.clone();
        run("ssmvad", &input, &folder.file("count.jsonl"), u64::MAX, move |n| {
            count.store(n + 1, Ordering::Relaxed);
            true
        });
        goes_on(&folder, "ssmvad", &input, decoded.load(Ordering::Relaxed));
    }

    #[test]
    fn a_state_of_another_job_is_no_use() {
        let folder = Folder::new("other");
        let (input, output) = (folder.file("a.mkv"), folder.file("a.jsonl"));
        encode("videotestsrc num-buffers=20 ! video/x-raw,width=64,height=48 ! jpegenc ! matroskamux", &input);
        let stop = |finder: &str| run(finder, &input, &output, u64::MAX, |n| n < 10);
        assert_eq!(stop("ssmevents"), Outcome::Stopped);
        let done = run("ssmevents threshold=0.4", &input, &output, u64::MAX, |_| true);
        assert!(matches!(done, Outcome::Done { resumed: 0, .. }), "another threshold: {done:?}");
        fs::remove_file(&output).unwrap();
        assert_eq!(stop("ssmevents"), Outcome::Stopped);
        encode("videotestsrc num-buffers=30 ! video/x-raw,width=64,height=48 ! jpegenc ! matroskamux", &input);
        let done = run("ssmevents", &input, &output, u64::MAX, |_| true);
        assert!(matches!(done, Outcome::Done { resumed: 0, .. }), "another video: {done:?}");
    }

    #[test]
    fn two_do_not_write_one_file() {
        let folder = Folder::new("two");
        let (input, output) = (folder.file("a.wav"), folder.file("a.jsonl"));
        encode("audiotestsrc num-buffers=5 ! audio/x-raw,rate=16000 ! wavenc", &input);
        let held = File::create(beside(&output, ".part")).unwrap();
        held.lock().unwrap();
        assert_eq!(run("ssmvad", &input, &output, u64::MAX, |_| true), Outcome::Busy);
        drop(held);
        assert!(matches!(run("ssmvad", &input, &output, u64::MAX, |_| true), Outcome::Done { .. }));
    }

    #[test]
    fn what_is_no_element_is_told() {
        element::init().unwrap();
        let error = |text: &str, media| Finder::new(text, media).map(|_| ()).unwrap_err().to_string();
        assert!(error("identity", None).contains("got \"identity\""));
        assert!(error("ssmvad ! ssmevents", None).contains("one element"));
        assert!(error("ssmembed model=builtin:denoise", None).contains("say --media"));
        assert!(error("ssmvad", Some(Media::Video)).contains("does not take --media video"));
    }
}
