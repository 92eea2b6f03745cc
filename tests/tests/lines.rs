//! Every `gst-launch-1.0` line of the README, the guide and the elements' pages runs as it stands, but for files,
//! devices and endless sources, which are put in their place.

use ssm_models::kernels::CpuLevel;
use ssm_tests::element::{Folder, init, run};
use ssm_tests::fabricate::Fabricated;
use std::path::{Path, PathBuf};

/// Launch lines of a text, continued lines joined; where each begins.
fn lines(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut rows = text.lines().map(|l| l.trim_start().trim_start_matches("//!").trim()).enumerate();
    while let Some((number, row)) = rows.next() {
        let Some(row) = row.strip_prefix("gst-launch-1.0 ") else { continue };
        let mut line = row.to_owned();
        while let Some(open) = line.strip_suffix('\\') {
            line = format!("{} {}", open.trim_end(), rows.next().map_or("", |r| r.1));
        }
        // What a shell gives the output to is another program.
        if let Some((launched, _)) = line.split_once(" | ") {
            line.truncate(launched.len());
        }
        found.push((number + 1, line));
    }
    found
}

fn texts() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = vec![root.join("README.md")];
    let mut folders = vec![root.join("docs"), root.join("plugins/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of the project") {
            let path = entry.expect("a readable folder").path();
            match path.extension().and_then(|e| e.to_str()) {
                _ if path.is_dir() => folders.push(path),
                Some("md" | "rs") => files.push(path),
                _ => {}
            }
        }
    }
    files.sort();
    files
}

/// What takes the place of a device or of the network, and of what unpacks what comes from there; it has its own
/// properties.
fn stand_in(element: &str) -> Option<&'static str> {
    Some(match element {
        "autoaudiosrc" | "pulsesrc" | "alsasrc" => "audiotestsrc num-buffers=20",
        "v4l2src" | "autovideosrc" | "rtspsrc" => "videotestsrc num-buffers=4",
        "rtph264depay" | "h264parse" | "avdec_h264" => "identity",
        "autoaudiosink" | "autovideosink" | "fdsink" | "ximagesink" | "pulsesink" => "fakesink",
        _ => return None,
    })
}

/// The files that the lines read.
struct Stage {
    folder: Folder,
    wav: String,
    video: String,
}

impl Stage {
    fn new() -> Self {
        let folder = Folder::new("lines");
        let [wav, video] = ["in.wav", "in.mp4"].map(|f| folder.file(f));
        run(&format!("audiotestsrc num-buffers=20 ! audioconvert ! wavenc ! filesink location={wav}"));
        run(&format!("videotestsrc num-buffers=4 ! jpegenc ! qtmux ! filesink location={video}"));
        Self { folder, wav, video }
    }

    /// A random model that an element takes, and its file.
    fn model(&self, element: &str) -> (Fabricated, String) {
        let family = match element {
            "ssmdenoise" => "cleanumamba",
            "ssmaudiotag" => "aum",
            _ => "vim",
        };
        self.folder.model(family, 3)
    }

    /// A word of a line with what this machine lacks put in its place.
    fn word(&self, word: &str, element: &str) -> String {
        if let Some(other) = stand_in(element).filter(|_| word != "!") {
            return if word == element { other.into() } else { String::new() };
        }
        let Some((name, value)) = word.split_once('=') else { return word.into() };
        let value = match (element, name, Path::new(value).extension().and_then(|e| e.to_str())) {
            ("filesrc", "location", Some("wav")) => self.wav.clone(),
            ("filesrc", "location", _) => self.video.clone(),
            ("filesink", "location", _) => self.folder.file(value),
            (_, "labels-file", _) => {
                let model = self.model(element).0.open(CpuLevel::best()).expect("a random model opens");
                let path = self.folder.file("labels.txt");
                std::fs::write(&path, "a name\n".repeat(model.info().output.len())).expect("room for files");
                path
            }
            (_, "model", Some(_)) => self.model(element).1,
            (_, "state-in" | "state-out", _) => self.folder.file(value),
            _ => return word.into(),
        };
        format!("{name}={value}")
    }

    fn staged(&self, line: &str) -> String {
        let (mut element, mut fresh, mut out) = (String::new(), true, Vec::new());
        for word in line.split_whitespace() {
            let flag = word.starts_with('-') && element.is_empty();
            if flag {
                continue;
            }
            if word == "!" || word.ends_with('.') {
                fresh = true;
            } else if std::mem::take(&mut fresh) || !word.contains('=') && !word.contains(',') {
                element = word.to_owned();
            }
            out.push(self.word(word, &element));
        }
        out.join(" ")
    }
}

#[test]
fn lines_of_the_documents_run() {
    init();
    let stage = Stage::new();
    let mut ran = 0;
    for file in texts() {
        let text = std::fs::read_to_string(&file).expect("a text");
        for (number, line) in lines(&text) {
            let staged = stage.staged(&line);
            println!("{}:{number}: {staged}", file.display());
            run(&staged);
            ran += 1;
        }
    }
    assert!(ran >= 8, "only {ran} lines were found");
}

#[test]
fn continued_lines_are_joined() {
    let text = "x\n//! gst-launch-1.0 -m a b=1 ! \\\n//!     c\n\ngst-launch-1.0 d | e f\n";
    assert_eq!(lines(text), [(2, "-m a b=1 ! c".to_owned()), (5, "d".to_owned())]);
}
