//! The examples as who tries them runs them, on test sources. `cargo test` builds those in Rust before.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ssm-examples-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A command that finds the plugin of this build, and no other.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let plugins = self.file("plugins");
        std::fs::create_dir_all(&plugins).expect("a temporary folder");
        let plugin = plugins.join("libgstssm.so");
        if !plugin.exists() {
            // Beside it lie libraries that are no plugins.
            std::os::unix::fs::symlink(deps().join("libgstssm.so"), plugin).expect("a link");
        }
        let mut command = Command::new(program);
        command.env("GST_PLUGIN_PATH", plugins).env("GST_REGISTRY", self.file("registry")).current_dir(&self.0);
        command
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where this build's libraries lie.
fn deps() -> PathBuf {
    std::env::current_exe().expect("this test has a file").parent().expect("in a folder").to_owned()
}

fn example(name: &str) -> PathBuf {
    let path = deps().with_file_name("examples").join(name);
    assert!(path.exists(), "{}: cargo build -p ssm-pipelines --examples", path.display());
    path
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(path)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn signal(kind: &str, id: u32) {
    assert!(Command::new("kill").args([kind, &id.to_string()]).status().expect("kill runs").success());
}

/// Width and height of a PNG.
fn size(path: &Path) -> (u32, u32) {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(bytes.starts_with(b"\x89PNG"), "{}", path.display());
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    (number(16), number(20))
}

/// How many colours the left and the right half of a PNG have.
fn colours(path: &Path) -> [usize; 2] {
    let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut reader = png::Decoder::new(BufReader::new(file)).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    let info = reader.next_frame(&mut pixels).expect("a picture");
    let bytes = info.line_size / info.width as usize;
    let half = info.line_size / 2;
    let count = |from: usize| {
        let rows = pixels.chunks_exact(info.line_size).flat_map(|row| row[from..from + half].chunks_exact(bytes));
        rows.collect::<std::collections::BTreeSet<_>>().len()
    };
    [count(0), count(half)]
}

#[test]
fn the_application_in_rust_goes_on_where_it_was_stopped() {
    let folder = Folder::new("rust");
    let sound: Vec<u8> =
        (0..32_000i32).flat_map(|i| ((i * 7919 % 4001 - 2000) as f32 / 8000.0).to_le_bytes()).collect();
    let start = |states: &str| {
        let states = folder.file(states);
        std::fs::create_dir_all(&states).expect("a temporary folder");
        let mut command = folder.command(example("resume"));
        command.arg(states).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the example runs")
    };
    let whole = |states: &str, bytes: &[u8]| {
        let mut child = start(states);
        let mut input = child.stdin.take().expect("a pipe");
        let (mut output, bytes) = (child.stdout.take().expect("a pipe"), bytes.to_vec());
        let feed = std::thread::spawn(move || input.write_all(&bytes));
        let mut out = vec![];
        output.read_to_end(&mut out).expect("it writes");
        feed.join().expect("no panic").expect("it reads");
        let done = child.wait_with_output().expect("it ends");
        assert!(done.status.success() && text(&done).contains("model: builtin:denoise"), "{}", text(&done));
        out
    };
    let once = whole("once", &sound);
    let (first, second) = sound.split_at(16_000 * 4);
    let halves = [whole("twice", first), whole("twice", second)];
    assert!(!halves[0].is_empty() && once == halves.concat(), "the end of the input");

    let mut child = start("signal");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(first).expect("it reads");
    // All that can come out of so much has come, so all of it is inside.
    let mut out = vec![0; halves[0].len()];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut out).expect("it writes");
    signal("-INT", child.id());
    let done = child.wait_with_output().expect("it ends");
    assert!(done.status.success() && done.stdout.is_empty(), "{}", text(&done));
    out.extend(whole("signal", second));
    assert!(once == out, "a signal");
}

#[test]
fn the_application_in_c_reads_results_and_keeps_its_state() {
    let folder = Folder::new("c");
    for name in ["Makefile", "events.c"] {
        std::fs::copy(source("c").join(name), folder.file(name)).expect("copied");
    }
    let made = folder.command("make").env("CFLAGS", "-Wall -Wextra -Werror").output().expect("make runs");
    assert!(made.status.success(), "{}", text(&made));
    let short = |n: u32| {
        let line = format!("videotestsrc num-buffers={n} ! video/x-raw,width=64,height=48,framerate=25/1");
        folder.command(folder.file("events")).args(["state", &line]).output().expect("it runs")
    };
    let done = short(60);
    // The model looks eight frames ahead.
    assert!(done.status.success() && text(&done).contains("step 9, 0.00 s: "), "{}", text(&done));
    assert!(text(&done).contains("60 frames, ") && !text(&done).contains("going on"), "{}", text(&done));

    let mut command = folder.command(folder.file("events"));
    let mut child =
        command.args(["state", "videotestsrc is-live=true"]).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let first = lines.next().expect("a line").expect("text");
    assert!(first.starts_with("step 9, "), "{first}");
    signal("-TERM", child.id());
    let rest: Vec<String> = lines.map(|l| l.expect("text")).collect();
    assert!(child.wait().expect("it ends").success() && rest.iter().any(|l| l == "saved state"), "{rest:?}");

    let done = short(60);
    let told = text(&done);
    assert!(done.status.success() && told.contains("going on from state"), "{told}");
    let step = told.lines().find_map(|l| l.strip_prefix("step ")?.split(',').next()?.parse::<u64>().ok());
    assert!(step.is_some_and(|s| s > 9), "the steps are counted on: {told}");
}

#[test]
fn the_script_in_python_tells_scores_and_plots_them() {
    let folder = Folder::new("python");
    // Debian's own: others do not see its packages.
    let python =
        |code: &str| folder.command("/usr/bin/python3").args(["-c", code]).output().is_ok_and(|o| o.status.success());
    assert!(python("import gi"), "python3-gi is missing: make deps");
    let run = |args: &[&str]| {
        folder.command("/usr/bin/python3").arg(source("python/scores.py")).args(args).output().expect("it runs")
    };
    let done = run(&["--plot", "scores.png"]);
    let told = text(&done);
    assert!(told.contains("4.17 s  cut") && told.contains("cut: 250 scores"), "{told}");
    let plots = python("import matplotlib");
    assert!(done.status.success() == plots && (plots || told.contains("matplotlib is missing")), "{told}");
    if plots {
        let (width, height) = size(&folder.file("scores.png"));
        assert!(width > 600 && height > 200, "{width}x{height}");
    } else {
        println!("SKIP: no matplotlib, no plot");
    }
    let sound = run(&["--element", "ssmvad", "audiotestsrc num-buffers=30"]);
    assert!(sound.status.success() && text(&sound).contains("speech: "), "{}", text(&sound));
    let bad = run(&["filesrc location=absent ! decodebin"]);
    assert!(!bad.status.success(), "{}", text(&bad));
}

#[test]
fn the_walls_show_two_cameras() {
    let folder = Folder::new("wall");
    let cameras = [
        "videotestsrc num-buffers=12 ! video/x-raw,framerate=25/1",
        "videotestsrc num-buffers=12 pattern=ball ! video/x-raw,framerate=25/1",
    ];
    let sink = |name: &str| format!("pngenc snapshot=false ! multifilesink location={name}-%02d.png max-files=100");
    let done = folder.command(example("wall")).args(["--sink", &sink("rust")]).args(cameras).output().expect("it runs");
    let told = text(&done);
    assert!(done.status.success(), "{told}");
    for camera in ["camera0: ", "camera1: "] {
        let line = told.lines().find(|l| l.starts_with(camera) && l.ends_with(" steps")).unwrap_or_default();
        let steps = line.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
        assert!(steps.is_some_and(|n| n > 0), "{told}");
    }
    let script = folder.command(source("wall.sh")).args(cameras).arg(sink("script")).output().expect("it runs");
    assert!(script.status.success(), "{}", text(&script));
    for name in ["rust", "script"] {
        // One of twelve, in the middle: at the ends one camera may be there and the other not.
        let path = folder.file(&format!("{name}-06.png"));
        assert_eq!(size(&path), (960, 270), "{name}");
        for (side, colours) in ["left", "right"].iter().zip(colours(&path)) {
            assert!(colours > 8, "{name}: {colours} colours on the {side}");
        }
    }
}

#[test]
fn the_job_of_a_pod_does_its_part_of_the_list() {
    let folder = Folder::new("pod");
    let manifest = std::fs::read_to_string(source("fleet/job.yaml")).expect("the manifest");
    let (_, rest) = manifest.split_once("args:\n            - >-\n").expect("a folded line");
    let (line, _) = rest.split_once("workingDir:").expect("what comes after it");
    let line =
        line.replace("/films", "films").replace("/found", "found").replace("exec ssm", env!("CARGO_BIN_EXE_ssm"));
    std::fs::create_dir_all(folder.file("films")).expect("a folder");
    let films: Vec<String> = (0..20).map(|i| format!("films/{i:02}.mkv")).collect();
    std::fs::write(folder.file("films/list.txt"), films.join("\n")).expect("written");
    let encode = ["videotestsrc", "num-buffers=20", "!", "video/x-raw,width=64,height=48", "!", "jpegenc", "!"];
    let to = ["matroskamux", "!", "filesink", "location=films/02.mkv"];
    let made = folder.command("gst-launch-1.0").arg("-q").args(encode).args(to).output().expect("it runs");
    assert!(made.status.success(), "{}", text(&made));
    std::fs::copy(folder.file("films/02.mkv"), folder.file("films/18.mkv")).expect("copied");
    let pod = folder
        .command("sh")
        .args(["-c", &line.split_whitespace().collect::<Vec<_>>().join(" ")])
        .env("JOB_COMPLETION_INDEX", "2")
        .output()
        .expect("it runs");
    assert!(pod.status.success() && text(&pod).contains("2 done"), "{}", text(&pod));
    assert!(["02", "18"].iter().all(|n| folder.file(&format!("found/films/{n}.mkv.jsonl")).exists()));
}

#[test]
fn a_stream_is_handed_over_through_a_folder() {
    let folder = Folder::new("handover");
    std::fs::create_dir_all(folder.file("store")).expect("a folder");
    let store = folder.file("store").display().to_string();
    handed_over(&folder, &store);
    // A store that is not mounted is no first start.
    let away = handover(&folder, &format!("{store}/away")).args(["start", "videotestsrc"]).output().expect("it runs");
    assert!(!away.status.success() && text(&away).contains("could not be got (1)"), "{}", text(&away));
}

#[cfg(feature = "store")]
#[test]
fn a_stream_is_handed_over_through_a_url() {
    let folder = Folder::new("handover-url");
    std::fs::create_dir_all(folder.file("store")).expect("a folder");
    handed_over(&folder, &format!("file://{}", folder.file("store").display()));
    // What cannot be read is not the same as what is not there.
    std::fs::write(folder.file("store/camera.state"), "no snapshot").expect("written");
    let refused = handover(&folder, &format!("file://{}", folder.file("store").display()))
        .args(["start", "videotestsrc is-live=true"])
        .output()
        .expect("it runs");
    assert!(!refused.status.success() && text(&refused).contains("could not be got (1)"), "{}", text(&refused));
}

/// The script, with the command of this build.
fn handover(folder: &Folder, store: &str) -> Command {
    let ssm = Path::new(env!("CARGO_BIN_EXE_ssm")).parent().expect("a folder").to_owned();
    let path = [ssm.into_os_string(), std::env::var_os("PATH").unwrap_or_default()].join(std::ffi::OsStr::new(":"));
    let mut command = folder.command(source("fleet/handover.sh"));
    command.env("STORE", store).env("TMPDIR", &folder.0).env("PATH", path);
    command
}

fn handed_over(folder: &Folder, store: &str) {
    let script = || handover(folder, store);
    // Looks at some lines and stops: the step of the first and of the last, and what was told.
    let turn = || {
        let mut child = script()
            .args(["start", "videotestsrc is-live=true pattern=ball"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines().map(|l| l.expect("text"));
        let first = lines.next().expect("a line");
        let id = child.id();
        let stop = std::thread::spawn({
            let mut stop = script();
            move || stop.args(["stop", &id.to_string()]).output().expect("it runs")
        });
        let last = lines.last().unwrap_or_else(|| first.clone());
        let done = child.wait_with_output().expect("it ends");
        let stored = stop.join().expect("no panic");
        assert!(done.status.success() && stored.status.success(), "{}{}", text(&done), text(&stored));
        let step = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            line["step"].as_u64().expect("a step")
        };
        (step(&first), step(&last), text(&done))
    };
    let (first, last, told) = turn();
    assert!(first == 9 && !told.contains("going on"), "{first}: {told}");
    let (next, _, told) = turn();
    assert!(next == last + 1 && told.contains("going on from camera.state"), "{next} after {last}: {told}");
}
