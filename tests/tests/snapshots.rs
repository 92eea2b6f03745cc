//! Saved states on their way through files: where they are written, and what is refused of what is read.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use ssm_tests::audio::{bytes, caps};
use ssm_tests::element::{Folder, complaint, make};
use std::os::unix::fs::FileTypeExt;

/// A denoiser that has heard a little and writes its state when it stops.
fn denoiser(model: &str, properties: &[(&str, &str)]) -> (Harness, gst::Bus) {
    let element = make("ssmdenoise", &[&[("model", model)], properties].concat());
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
    h.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
    let mut buffer = gst::Buffer::from_slice(bytes(&[0.25; 500]));
    buffer.get_mut().expect("a new buffer").set_pts(ClockTime::ZERO);
    h.push(buffer).expect("flows");
    (h, bus)
}

/// A device of this test's own, so that a mistake harms nobody: a node in the folder, else a link to the machine's.
fn device(folder: &Folder, name: &str, minor: &str) -> String {
    let path = folder.file(name);
    let node = std::process::Command::new("mknod").args([&path, "c", "1", minor]).output();
    let made = node.is_ok_and(|made| made.status.success());
    if !made || std::fs::OpenOptions::new().write(true).open(&path).is_err() {
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink(format!("/dev/{name}"), &path).expect("a link");
    }
    path
}

#[test]
fn devices_and_pipes_stay_what_they_are() {
    let folder = Folder::new("devices");
    let (_, model) = folder.model("spec_mamba", 3);
    for (name, minor) in [("null", "3"), ("full", "7")] {
        let path = device(&folder, name, minor);
        let (mut h, bus) = denoiser(&model, &[("state-out", &path)]);
        h.push_event(gst::event::Eos::new());
        drop(h);
        let is_device = std::fs::metadata(&path).is_ok_and(|m| m.file_type().is_char_device());
        assert!(is_device, "{name} was replaced");
        if name == "full" {
            let text = complaint(&bus, gst::MessageType::Error);
            assert!(text.contains(&format!("state-out: {path}: No space left")), "{text}");
        } else {
            assert!(bus.pop_filtered(&[gst::MessageType::Error]).is_none());
        }
    }
    // A pipe that nobody reads is refused and not waited for.
    let pipe = folder.file("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    for path in [pipe.clone(), folder.file("")] {
        let (mut h, bus) = denoiser(&model, &[("state-out", &path)]);
        h.push_event(gst::event::Eos::new());
        let text = complaint(&bus, gst::MessageType::Error);
        assert!(text.contains(&format!("state-out: {path}: expected a file or a device")), "{text}");
    }
    assert!(std::fs::metadata(&pipe).is_ok_and(|m| m.file_type().is_fifo()));
}

#[test]
fn a_link_stays_a_link_and_a_failure_leaves_the_old_file() {
    let folder = Folder::new("links");
    let (_, model) = folder.model("spec_mamba", 3);
    let [file, link] = ["state", "link"].map(|name| folder.file(name));
    std::fs::write(&file, "old").expect("room for files");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    drop(denoiser(&model, &[("state-out", &link)]));
    assert!(std::fs::symlink_metadata(&link).is_ok_and(|m| m.is_symlink()));
    assert!(std::fs::read(&file).is_ok_and(|bytes| bytes.len() > 100), "the linked file has the state");
    assert!(std::fs::metadata(format!("{file}.part")).is_err(), "the neighbouring file is gone");
    // No file can take the neighbouring name.
    std::fs::write(&file, "old").expect("room for files");
    std::fs::create_dir(format!("{file}.part")).expect("a folder");
    let (h, bus) = denoiser(&model, &[("state-out", &file)]);
    drop(h);
    assert!(complaint(&bus, gst::MessageType::Error).contains("state-out"));
    assert!(std::fs::read(&file).is_ok_and(|bytes| bytes == b"old"));
}

#[test]
fn files_that_cannot_be_a_state_are_told() {
    let folder = Folder::new("endless");
    let (_, model) = folder.model("spec_mamba", 3);
    let large = folder.file("large");
    std::fs::File::create(&large).and_then(|f| f.set_len(1 << 28)).expect("a file of holes");
    let absent = folder.file("absent");
    for (path, reason) in [(&large, "expected fewer than"), (&absent, "No such file")] {
        let element = make("ssmdenoise", &[("model", &model), ("state-in", path)]);
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        assert!(element.set_state(gst::State::Paused).is_err(), "{path}");
        let text = complaint(&bus, gst::MessageType::Error);
        assert!(text.contains(&format!("state-in: {path}: {reason}")), "{text}");
        element.set_state(gst::State::Null).expect("back to NULL");
    }
}
