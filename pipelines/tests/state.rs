//! `ssm state` with a store that is a folder: what goes in comes out, and nothing else does.
#![cfg(feature = "store")]

use ssm_models::{Snapshot, SnapshotHeader, State};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ssm-state-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// A state of the model that ships, after so many steps.
    fn snapshot(&self, name: &str, steps: u64) -> Vec<u8> {
        let model = ssm_models::open("builtin:shots", &ssm_models::Options::default()).expect("it opens");
        let mut state = State::new(model.layout());
        state.steps = steps;
        let snapshot = Snapshot { states: vec![state], pending: Vec::new(), header: SnapshotHeader::default() };
        let bytes = snapshot.save(model.info(), model.layout()).expect("a snapshot");
        std::fs::write(self.0.join(name), &bytes).expect("written");
        bytes
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn state(args: &[&str]) -> (Option<i32>, String) {
    let done: Output =
        Command::new(env!("CARGO_BIN_EXE_ssm")).arg("state").args(args).output().expect("the command runs");
    (done.status.code(), String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr))
}

#[test]
fn a_snapshot_goes_through_a_store() {
    let folder = Folder::new("through");
    let url = format!("file://{}", folder.file("hall of mirrors/camera.state").replace(' ', "%20"));
    let (there, back) = (folder.file("there"), folder.file("back"));
    // A store that is away is no first start.
    let (code, told) = state(&["get", &url, &back]);
    assert!(code == Some(1) && told.contains("camera.state"), "{code:?} {told}");
    folder.snapshot("there", 0);
    let (code, told) = state(&["put", &there, &url]);
    assert!(code == Some(1) && told.contains("camera.state: expected its folder to be there"), "{code:?} {told}");
    std::fs::remove_file(&there).expect("it was there");
    std::fs::create_dir(folder.file("hall of mirrors")).expect("a folder");
    assert_eq!(state(&["get", &url, &back]), (Some(3), format!("ssm: {url}: no such state\n")));
    assert!(!Path::new(&back).exists());
    for steps in [120, 240] {
        let bytes = folder.snapshot("there", steps);
        assert_eq!(state(&["put", &there, &url]), (Some(0), String::new()));
        assert_eq!(state(&["get", &url, &back]), (Some(0), String::new()));
        assert_eq!(std::fs::read(&back).expect("it is there"), bytes);
    }
    let names = |path: &str| {
        let names = std::fs::read_dir(path).expect("a folder").map(|e| e.expect("an entry").file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    assert_eq!(names(&folder.file("hall of mirrors")), ["camera.state"]);
    assert_eq!(names(&folder.file("")), ["back", "hall of mirrors", "there"], "nothing half done is left");
}

#[test]
fn what_is_no_snapshot_is_refused_and_changes_nothing() {
    let folder = Folder::new("refused");
    let (good, other) = (folder.file("good"), folder.file("other"));
    let url = format!("file://{}", folder.file("stored"));
    let bytes = folder.snapshot("good", 1);
    assert_eq!(state(&["put", &good, &url]).0, Some(0));
    std::fs::write(&other, "text").expect("written");
    let (code, told) = state(&["put", &other, &url]);
    assert!(
        code == Some(1) && told.contains("other: state: file: expected a safetensors file of format ssm-state"),
        "{told}"
    );
    assert_eq!(std::fs::read(folder.file("stored")).expect("it is there"), bytes);
    std::fs::write(folder.file("stored"), &bytes[..20]).expect("written");
    let (code, told) = state(&["get", &url, &good]);
    assert!(code == Some(1) && told.contains("stored: state: file: expected"), "{told}");
    assert_eq!(std::fs::read(&good).expect("it is there"), bytes);
    // One bit of a value.
    let mut flipped = bytes.clone();
    *flipped.last_mut().expect("values") ^= 1;
    std::fs::write(&other, &flipped).expect("written");
    let (code, told) = state(&["put", &other, &url]);
    assert!(code == Some(1) && told.contains("other: state: sha256: expected"), "{told}");
    let absent = state(&["put", &folder.file("absent"), &url]);
    assert!(absent.0 == Some(1) && absent.1.contains("absent: No such file"), "{}", absent.1);
}

#[test]
fn addresses_that_name_no_state_are_told() {
    let folder = Folder::new("address");
    let good = folder.file("good");
    folder.snapshot("good", 1);
    for (url, part) in [
        ("camera.state", "expected s3://BUCKET/KEY or file:///PATH"),
        ("file://camera.state", "expected s3://BUCKET/KEY or file:///PATH"),
        ("ftp://host/camera.state", "expected s3://BUCKET/KEY or file:///PATH"),
        ("s3://bucket", "expected s3://BUCKET/KEY"),
        ("s3:///key", "expected s3://BUCKET/KEY"),
        ("file:///", "got a folder"),
        ("file:///tmp/", "got a folder"),
        ("file:///tmp/../etc/x", "ath"),
    ] {
        for args in [["put", &good, url], ["get", url, &good]] {
            let (code, told) = state(&args);
            assert!(code == Some(1) && told.contains(part), "{args:?}: {code:?} {told}");
        }
    }
    if cfg!(not(feature = "s3")) {
        assert!(state(&["put", &good, "s3://bucket/key"]).1.contains("this build has no feature s3"));
    }
}
