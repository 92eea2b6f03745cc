//! `ssm run`: an archive of files to files of JSON lines. What is finished is not done again, what was interrupted goes on.

use crate::Failure;
use crate::element::{self, Finder, Media};
use crate::job::{Job, Outcome};
use crate::signals;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::io::{BufRead, ErrorKind, IsTerminal};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  ssm run 'films/*.mp4' --output found
  ssm run --list films.txt --output classes --element 'ssmclassify model=vim_t.pth top-k=3' --jobs 2
  ssm run 'calls/**/*.wav' --output speech --element ssmvad
  ssm run 'films/*.mp4' --output found --shard 3/16        # the fourth of sixteen machines

films/a.mp4 gives found/films/a.mp4.jsonl, which is there once it is whole. A folder holds the lines of one element. Stopped by Ctrl-C or SIGTERM, or killed, it goes
on from its last state when it is started again. It ends with 0 if every output is there, and else names what failed.";

#[derive(clap::Args)]
pub struct Args {
    /// Files, or patterns such as 'films/**/*.mp4' (quoted).
    files: Vec<OsString>,
    /// File with one name or pattern a line; `-` is the standard input.
    #[arg(long)]
    list: Option<PathBuf>,
    /// Folder for the lines; the inputs' own folders are made in it.
    #[arg(short, long)]
    output: PathBuf,
    /// The element with its properties, as for gst-launch-1.0.
    #[arg(long, default_value = "ssmevents frame-scores=false")]
    element: String,
    /// What the element shall take, where it takes both.
    #[arg(long)]
    media: Option<Media>,
    /// Files at a time; they share the model and its batches.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Only the files of one machine of several, as `INDEX/OF`, from 0.
    #[arg(long, value_parser = shard)]
    shard: Option<(usize, usize)>,
    /// Seconds of media between two states.
    #[arg(long, default_value_t = 60)]
    state_every: u32,
    /// Do what is finished once more; an output is replaced once the new one is whole.
    #[arg(long)]
    force: bool,
}

fn shard(text: &str) -> Result<(usize, usize), String> {
    let parsed = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    parsed
        .filter(|(i, n): &(usize, usize)| i < n)
        .ok_or_else(|| format!("expected INDEX/OF, such as 0/4, got {text:?}"))
}

/// Where a file's lines go: its own name and folders, inside `folder`.
fn place(folder: &Path, input: &Path) -> PathBuf {
    let mut place = folder.to_owned();
    for part in input.components() {
        match part {
            Component::Normal(name) => place.push(name),
            // Outside it would be a surprise; left out, two files could have one place.
            Component::ParentDir => place.push("__"),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    let mut name = place.into_os_string();
    name.push(".jsonl");
    name.into()
}

/// The files that names and patterns mean, each once, in order, with where their lines go.
fn expand(words: &[OsString], folder: &Path) -> Result<Vec<(PathBuf, PathBuf)>, Failure> {
    let mut found = BTreeMap::new();
    for word in words {
        let path = Path::new(word);
        let mut add = |path: PathBuf| -> Result<(), Failure> {
            let place = place(folder, &path);
            match found.insert(place.clone(), path.clone()) {
                Some(other) if other != path => Err(Failure::Usage(format!(
                    "{} and {} would both be written to {}",
                    other.display(),
                    path.display(),
                    place.display()
                ))),
                _ => Ok(()),
            }
        };
        // A name may have the letters of a pattern in it.
        let pattern = word.to_str().filter(|w| w.contains(['*', '?', '[']) && !path.exists());
        let Some(pattern) = pattern else {
            add(path.to_owned())?;
            continue;
        };
        let mut some = false;
        let bad = |reason: String| Failure::File { path: path.to_owned(), reason };
        for entry in glob::glob(pattern).map_err(|e| bad(e.to_string()))? {
            let entry = entry.map_err(|e| bad(e.to_string()))?;
            // A link that leads nowhere fails when its turn comes.
            if !entry.is_dir() {
                some = true;
                add(entry)?;
            }
        }
        if !some {
            return Err(bad("expected files of this pattern, got none".into()));
        }
    }
    Ok(found.into_iter().map(|(place, path)| (path, place)).collect())
}

fn words(args: &Args) -> Result<Vec<OsString>, Failure> {
    let mut words = args.files.clone();
    if let Some(path) = &args.list {
        let bad = |e: std::io::Error| Failure::File { path: path.clone(), reason: e.to_string() };
        let lines: Box<dyn BufRead> = if path.as_os_str() == "-" {
            Box::new(std::io::stdin().lock())
        } else {
            Box::new(std::io::BufReader::new(std::fs::File::open(path).map_err(bad)?))
        };
        for line in lines.split(b'\n') {
            let line = line.map_err(bad)?;
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            words.extend(Some(line).filter(|l| !l.trim_ascii().is_empty()).map(name_of));
        }
    }
    Ok(words)
}

/// A name as the system has it.
fn name_of(bytes: &[u8]) -> OsString {
    #[cfg(unix)]
    return std::os::unix::ffi::OsStringExt::from_vec(bytes.to_vec());
    #[cfg(not(unix))]
    String::from_utf8_lossy(bytes).into_owned().into()
}

/// File in the output's folder that says what its files were made with.
const MADE: &str = ".ssm-run";
/// Properties that change no line.
const NEUTRAL: [&str; 5] = ["batch-size", "batch-timeout", "model-instance-id", "post-messages", "threads"];

/// What the files of a folder are made with. A file that is there says nothing of that itself, and would be taken for
/// finished.
struct Made {
    path: PathBuf,
    /// What to note once there is a file, and once there is every file.
    first: Option<String>,
    last: Option<String>,
    written: Once,
}

impl Made {
    /// `before`: whether some of the files are there.
    ///
    /// # Errors
    /// Another element made them, and they are not to be made anew (`force`).
    fn new(folder: &Path, element: &str, force: bool, before: bool) -> Result<Self, Failure> {
        let counts = |word: &&str| word.split_once('=').is_none_or(|(name, _)| !NEUTRAL.contains(&name));
        let with = element.split_whitespace().filter(counts).collect::<Vec<_>>().join(" ");
        let path = folder.join(MADE);
        let (first, last) = match std::fs::read_to_string(&path) {
            Ok(made) if made == with => (None, None),
            // Until the last one is made there are files of both.
            Ok(made) if force => (Some(format!("{made}, in part {with}")), Some(with)),
            Ok(made) => {
                let reason = format!("expected {made:?}, which its files were made with, got {with:?}");
                let reason = reason + "; name another --output, or --force";
                return Err(Failure::File { path: folder.to_owned(), reason });
            }
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Failure::File { path, reason: e.to_string() }),
            // Of those that are there nobody knows.
            Err(_) if before && !force => (None, None),
            Err(_) if before => (None, Some(with)),
            Err(_) => (Some(with), None),
        };
        Ok(Self { path, first, last, written: Once::new() })
    }

    /// Notes it. Without the note all is as before there were any.
    fn write(&self, text: Option<&String>) {
        text.into_iter().for_each(|text| _ = crate::output::write(&self.path, text.as_bytes()));
    }

    /// There is a file now.
    fn one(&self) {
        self.written.call_once(|| self.write(self.first.as_ref()));
    }

    /// All of `files` are there now, and perhaps others.
    fn all(&self, files: &[(PathBuf, PathBuf)]) {
        let known: HashSet<&Path> = files.iter().map(|(_, output)| &**output).collect();
        let folder = self.path.parent().map(|folder| glob::Pattern::escape(&folder.display().to_string()));
        let mut found =
            folder.and_then(|folder| glob::glob(&format!("{folder}/**/*.jsonl")).ok()).into_iter().flatten();
        if self.last.is_some() && found.all(|path| path.is_ok_and(|path| known.contains(&*path))) {
            self.write(self.last.as_ref());
        }
    }
}

/// How the files ended.
#[derive(Default)]
struct Tally {
    done: usize,
    skipped: usize,
    lines: u64,
    failed: Vec<(PathBuf, String)>,
    left: Vec<PathBuf>,
}

impl Tally {
    fn add(&mut self, input: &Path, outcome: Result<Outcome, Failure>) -> String {
        let name = input.display();
        match outcome {
            Ok(Outcome::Done { lines, resumed }) => {
                self.done += 1;
                self.lines += lines;
                let from = if resumed > 0 { format!(", gone on from buffer {resumed}") } else { String::new() };
                format!("{name}: {lines} lines{from}")
            }
            Ok(Outcome::Skipped) => {
                self.skipped += 1;
                format!("{name}: finished before")
            }
            Ok(outcome) => {
                self.left.push(input.to_owned());
                format!("{name}: {}", if outcome == Outcome::Busy { "another process is at it" } else { "stopped" })
            }
            Err(error) => {
                // The name is said once.
                let reason = match error {
                    Failure::File { path, reason } if path == input => reason,
                    error => error.to_string(),
                };
                self.failed.push((input.to_owned(), reason.clone()));
                format!("{name}: {reason}")
            }
        }
    }
}

/// Bars for people; nothing where nobody looks.
struct Bars {
    all: MultiProgress,
    files: ProgressBar,
    shown: bool,
}

impl Bars {
    fn new(files: usize) -> Self {
        let all = MultiProgress::new();
        let bar = all.add(ProgressBar::new(files as u64));
        bar.set_style(style("{bar:30} {pos}/{len} files, {elapsed_precise}, left about {eta}"));
        Self { all, files: bar, shown: std::io::stderr().is_terminal() }
    }

    fn say(&self, line: &str) {
        if self.shown {
            self.files.suspend(|| say!("{line}"));
        } else {
            say!("{line}");
        }
    }

    fn file(&self, input: &Path) -> ProgressBar {
        let bar = self.all.add(ProgressBar::new(1));
        bar.set_style(style("  {bar:28} {percent:>3} % {msg}"));
        bar.set_message(input.display().to_string());
        bar
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    element::init()?;
    let finder = Finder::new(&args.element, args.media)?;
    let words = words(args)?;
    let mut files = expand(&words, &args.output)?;
    if files.is_empty() {
        return Err(Failure::Usage(format!("expected files, got none of {words:?}")));
    }
    if let Some((index, of)) = args.shard {
        files = files.into_iter().skip(index).step_by(of).collect();
    }
    let before = files.iter().any(|(_, output)| output.exists());
    let made = Made::new(&args.output, &args.element, args.force, before)?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    signals::at_end(move || flag.store(true, Ordering::Release))?;

    let (next, bars, tally) = (AtomicUsize::new(0), Bars::new(files.len()), Mutex::new(Tally::default()));
    let work = || {
        while let Some((input, output)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let every = u64::from(args.state_every) * 1_000_000_000;
            let job = Job { finder: &finder, input, output, every, force: args.force, quit: &stop };
            let bar = bars.file(input);
            let flag = stop.clone();
            let outcome = if stop.load(Ordering::Acquire) {
                Ok(Outcome::Stopped)
            } else {
                job.run(
                    move |_| !flag.load(Ordering::Acquire),
                    |position, length| {
                        // Some files do not tell their length.
                        if length > 0 {
                            bar.set_length(length / 1_000_000);
                            bar.set_position(position / 1_000_000);
                        }
                    },
                )
            };
            bar.finish_and_clear();
            bars.files.inc(1);
            if matches!(outcome, Ok(Outcome::Done { .. })) {
                made.one();
            }
            let line = tally.lock().unwrap_or_else(PoisonError::into_inner).add(input, outcome);
            bars.say(&line);
        }
    };
    std::thread::scope(|scope| (0..args.jobs).for_each(|_| _ = scope.spawn(work)));
    bars.files.finish_and_clear();

    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    let Tally { done, skipped, lines, failed, left } = tally;
    say!("{done} done ({lines} lines), {skipped} finished before, {} failed, {} left", failed.len(), left.len());
    for (path, reason) in &failed {
        warn!("failed: {}: {reason}", path.display());
    }
    if failed.is_empty() && left.is_empty() {
        made.all(&files);
    }
    if !left.is_empty() {
        let again = if args.force { "begins with the first one again" } else { "goes on with them" };
        warn!("left: {} files; the same command {again}", left.len());
    }
    Ok(if failed.is_empty() && left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_its_place() {
        for (input, want) in [
            ("a.mp4", "out/a.mp4.jsonl"),
            ("./films/a.mp4", "out/films/a.mp4.jsonl"),
            ("/films/a.mp4", "out/films/a.mp4.jsonl"),
            ("../a.mp4", "out/__/a.mp4.jsonl"),
        ] {
            assert_eq!(place(Path::new("out"), Path::new(input)), Path::new(want), "{input}");
        }
        let two = expand(&["/films/a".into(), "films/a".into()], Path::new("out"));
        assert!(two.is_err_and(|e| e.to_string().contains("both be written to out/films/a.jsonl")));
        let one = expand(&["a".into(), "a".into()], Path::new("out"));
        assert_eq!(one.map(|f| f.len()).ok(), Some(1));
        assert_eq!((shard("1/4"), shard("4/4").is_err(), shard("1").is_err()), (Ok((1, 4)), true, true));
    }
}
