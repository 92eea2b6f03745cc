//! `ssm run` as a user meets it: what it does with good, bad and finished files, and how it ends.

use std::path::PathBuf;
use std::process::{Command, Output};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ssm-run-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    fn sound(&self, name: &str) {
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: 16_000,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut writer = hound::WavWriter::create(self.0.join(name), spec).expect("a temporary file");
        (0..8000i32).for_each(|i| writer.write_sample((i * 7919 % 4001 - 2000) as i16).expect("written"));
        writer.finalize().expect("written");
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ssm"));
        command.current_dir(&self.0).arg("run").args(args);
        for (name, value) in [("--output", "out"), ("--element", "ssmvad")] {
            if !args.contains(&name) {
                command.args([name, value]);
            }
        }
        command.output().expect("the command runs")
    }

    fn lines(&self, name: &str) -> usize {
        std::fs::read_to_string(self.0.join("out").join(name)).map_or(0, |text| text.lines().count())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn an_archive_is_done_once_and_failures_are_named() {
    let folder = Folder::new("archive");
    for name in ["a.wav", "b.wav", "c [x].wav"] {
        folder.sound(name);
    }
    std::fs::write(folder.0.join("bad.wav"), b"RIFF of nothing").expect("written");
    let first = folder.run(&["*.wav", "absent.wav", "--jobs", "2"]);
    let told = text(&first);
    assert!(!first.status.success(), "{told}");
    assert!(told.contains("3 done") && told.contains("0 finished before, 2 failed, 0 left"), "{told}");
    assert!(told.contains("failed: bad.wav: ") && told.contains("failed: absent.wav: "), "{told}");
    // Half a second has 50 steps of 10 ms.
    for name in ["a.wav.jsonl", "b.wav.jsonl", "c [x].wav.jsonl"] {
        assert!((48..=50).contains(&folder.lines(name)), "{name}: {} lines", folder.lines(name));
    }
    for name in ["out/bad.wav.jsonl", "out/bad.wav.jsonl.part"] {
        assert!(!folder.0.join(name).exists(), "{name}");
    }
    let deaf = folder.run(&["a.wav", "--output", "seen", "--element", "ssmevents"]);
    assert!(!deaf.status.success() && text(&deaf).contains("no video of it reached ssmevents"), "{}", text(&deaf));

    let again = folder.run(&["a.wav", "b.wav"]);
    assert!(again.status.success() && text(&again).contains("0 done (0 lines), 2 finished before"), "{}", text(&again));
    // Lines of another element would be taken for these.
    let other = folder.run(&["a.wav", "--element", "ssmvad threads=2 threshold=0.7"]);
    let told = text(&other);
    assert!(
        !other.status.success()
            && told.contains("out: expected \"ssmvad\"")
            && told.contains("got \"ssmvad threshold=0.7\""),
        "{told}"
    );
    // Made anew in part they are of both; as a whole, of the new one.
    let louder = ["--element", "ssmvad threshold=0.7"];
    let part = folder.run(&[&["a.wav", "--force"], &louder[..]].concat());
    assert!(part.status.success(), "{}", text(&part));
    for element in ["ssmvad", louder[1]] {
        let told = text(&folder.run(&["b.wav", "--element", element]));
        assert!(told.contains("expected \"ssmvad, in part ssmvad threshold=0.7\""), "{told}");
    }
    let names = ["a.wav", "b.wav", "c [x].wav", "--force"];
    assert!(folder.run(&[&names[..], &louder].concat()).status.success());
    assert!(text(&folder.run(&[&names[..1], &louder].concat())).contains("1 finished before"));
    assert!(folder.run(&names).status.success());
    let same = folder.run(&["a.wav", "--element", "ssmvad threads=2"]);
    assert!(same.status.success() && text(&same).contains("1 finished before"), "{}", text(&same));
    let vain = folder.run(&["a.wav", "b.wav", "--force", "--element", "ssmvad threshold=loud"]);
    assert!(!vain.status.success() && folder.lines("a.wav.jsonl") > 0, "what is there stays until there is another");
    let forced = folder.run(&["a.wav", "b.wav", "--force"]);
    assert!(forced.status.success() && text(&forced).contains("2 done"), "{}", text(&forced));
}

#[test]
fn machines_share_a_list() {
    let folder = Folder::new("shards");
    let names: Vec<String> = (0..5).map(|i| format!("{i}.wav")).collect();
    names.iter().for_each(|name| folder.sound(name));
    std::fs::write(folder.0.join("list.txt"), names.join("\n") + "\n\n").expect("written");
    for (shard, done) in [("0/2", "3 done"), ("1/2", "2 done")] {
        let output = folder.run(&["--list", "list.txt", "--shard", shard]);
        assert!(output.status.success() && text(&output).contains(done), "{shard}: {}", text(&output));
    }
    assert!(names.iter().all(|name| folder.lines(&format!("{name}.jsonl")) > 0));
    let nothing = folder.run(&["*.mp3"]);
    assert!(
        !nothing.status.success() && text(&nothing).contains("*.mp3: expected files of this pattern"),
        "{}",
        text(&nothing)
    );
    let bad = folder.run(&["0.wav", "--output", "other", "--element", "ssmvad threshold=loud"]);
    assert!(!bad.status.success() && text(&bad).contains("could not set property \"threshold\""), "{}", text(&bad));
}

#[cfg(unix)]
#[test]
fn names_are_bytes_and_what_is_no_file_is_told() {
    use std::os::unix::ffi::OsStrExt;
    let folder = Folder::new("names");
    folder.sound("a.wav");
    let odd = std::ffi::OsStr::from_bytes(b"caf\xe9.wav");
    std::fs::copy(folder.0.join("a.wav"), folder.0.join(odd)).expect("copied");
    let run = |args: &[&std::ffi::OsStr]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ssm"));
        command.current_dir(&folder.0).args(["run", "--output", "out", "--element", "ssmvad"]).args(args);
        command.output().expect("the command runs")
    };
    let done = run(&[odd]);
    assert!(done.status.success() && text(&done).contains("1 done"), "{}", text(&done));
    std::fs::write(folder.0.join("list"), b"caf\xe9.wav\r\n\n").expect("written");
    let done = run(&["--list".as_ref(), "list".as_ref()]);
    assert!(text(&done).contains("1 finished before"), "{}", text(&done));
    // A pattern that means nothing, beside one that does.
    let done = folder.run(&["nothing*.wav", "a.wav"]);
    assert!(!done.status.success() && text(&done).contains("nothing*.wav: expected files"), "{}", text(&done));
    assert!(Command::new("mkfifo").arg(folder.0.join("pipe.wav")).status().expect("a tool of every system").success());
    let done = folder.run(&["pipe.wav"]);
    assert!(!done.status.success() && text(&done).contains("pipe.wav: expected a file"), "{}", text(&done));
    std::os::unix::fs::symlink("nowhere", folder.0.join("link.wav")).expect("linked");
    let done = folder.run(&["link*.wav"]);
    assert!(!done.status.success() && text(&done).contains("1 failed"), "{}", text(&done));
}
