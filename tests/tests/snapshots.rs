//! Saved states on their way through files: where they are written, and what is refused of what is read.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use ssm_tests::Rng;
use ssm_tests::audio::{bytes, caps};
use ssm_tests::element::{Folder, complaint, make};
use std::collections::{BTreeMap, HashMap};
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
    let (_, model) = folder.model("band_mask", 3);
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
    let (_, model) = folder.model("band_mask", 3);
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
    let (_, model) = folder.model("band_mask", 3);
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

/// The snapshot of a stream of two channels, and an element of the same model to load it.
fn saved(model: &str) -> (Vec<u8>, Harness, gst::Bus) {
    let element = make("ssmdenoise", &[("model", model)]);
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
    h.set_caps(caps("F32LE", 16_000, 2), caps("F32LE", 16_000, 2));
    h.push(gst::Buffer::from_slice(bytes(&Rng::new(1).normals(2002, 0.1)))).expect("flows");
    let state: Option<glib::Bytes> = element.emit_by_name("save-state", &[]);
    (state.expect("there is a state").to_vec(), h, bus)
}

/// What an element says of a state; `None` if it takes it.
fn verdict(h: &Harness, bus: &gst::Bus, state: &[u8]) -> Option<String> {
    let element = h.element().expect("an element");
    let taken: bool = element.emit_by_name("load-state", &[&glib::Bytes::from(state)]);
    (!taken).then(|| complaint(bus, gst::MessageType::Warning))
}

#[test]
fn every_flipped_bit_is_refused() {
    let folder = Folder::new("bits");
    let (_, model) = folder.model("band_mask", 3);
    let (state, h, bus) = saved(&model);
    assert_eq!(verdict(&h, &bus, &state), None);
    let head = 8 + u64::from_le_bytes(state[..8].try_into().expect("eight bytes")) as usize;
    let mut rng = Rng::new(2);
    // All of the header, and a sample of the data.
    let bits = (0..8 * head).chain((0..400).map(|_| rng.range(8 * head, 8 * state.len() - 1)));
    for bit in bits {
        let mut other = state.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        let text = verdict(&h, &bus, &other).unwrap_or_else(|| panic!("bit {bit} of {} was taken", 8 * state.len()));
        if bit >= 8 * head {
            assert!(text.contains("state: sha256: expected"), "{text}");
        }
    }
    assert_eq!(verdict(&h, &bus, &state), None);
}

/// A snapshot's tensors and metadata, to be changed and put together again with a checksum that fits.
struct Parts {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

impl Parts {
    fn of(state: &[u8]) -> Self {
        let (_, head) = SafeTensors::read_metadata(state).expect("a safetensors file");
        let file = SafeTensors::deserialize(state).expect("a safetensors file");
        Self {
            metadata: head.metadata().clone().expect("metadata").into_iter().collect(),
            tensors: file.iter().map(|(n, t)| (n.into(), (t.shape().to_vec(), t.data().to_vec()))).collect(),
        }
    }

    /// The checksum as docs/state.md gives it.
    fn seal(&mut self) -> Vec<u8> {
        self.metadata.remove("sha256");
        let mut text = Vec::new();
        for part in self.metadata.iter().flat_map(|(name, value)| [name, value]) {
            text.extend([part.as_bytes(), &[0]].concat());
        }
        for (name, (_, data)) in &self.tensors {
            text.extend([name.as_bytes(), &[0], data].concat());
        }
        let sum = glib::compute_checksum_for_data(glib::ChecksumType::Sha256, &text).expect("a checksum");
        self.metadata.insert("sha256".into(), sum.into());
        self.bytes()
    }

    fn bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (shape, data))| {
            (name, TensorView::new(Dtype::F32, shape.clone(), data).expect("shape and length fit"))
        });
        let metadata: HashMap<String, String> = self.metadata.clone().into_iter().collect();
        safetensors::serialize(views, Some(metadata)).expect("tensors can be written")
    }
}

#[test]
fn a_bad_field_is_named() {
    let folder = Folder::new("fields");
    let (_, model) = folder.model("band_mask", 3);
    let (state, h, bus) = saved(&model);
    let whole = || Parts::of(&state);
    assert_eq!(verdict(&h, &bus, &whole().seal()), None, "the checksum is what the page says");
    for name in whole().metadata.keys() {
        let mut without = whole();
        without.metadata.remove(name);
        let sealed = if name == "sha256" { without.bytes() } else { without.seal() };
        match (&**name, verdict(&h, &bus, &sealed)) {
            // Not needed.
            ("pts", None) => {}
            (_, text) => {
                let text = text.unwrap_or_else(|| panic!("without {name}: taken"));
                assert!(text.contains(&format!("state: {name}: expected")), "without {name}: {text}");
            }
        }
    }
    for (name, value) in [
        ("format", "other"),
        ("version", "1"),
        ("version", "3"),
        ("family", "vim"),
        ("model", "0000"),
        ("streams", "1025"),
        ("streams", "18446744073709551615"),
        ("streams", "-2"),
        ("steps", "4"),
        ("steps", "4 x"),
        ("steps", "4 18446744073709551615"),
        ("discard", "9999999"),
        ("discard", ""),
    ] {
        let mut other = whole();
        other.metadata.insert(name.into(), value.into());
        let text = verdict(&h, &bus, &other.seal()).unwrap_or_else(|| panic!("{name} {value} was taken"));
        assert!(text.contains(&format!("state: {name}: expected")), "{name} {value}: {text}");
    }
    for name in whole().tensors.keys() {
        let mut without = whole();
        without.tensors.remove(name);
        let text = verdict(&h, &bus, &without.seal()).unwrap_or_else(|| panic!("without {name}: taken"));
        assert!(text.contains(&format!("state: {name}: expected")), "without {name}: {text}");
        let mut other = whole();
        let (shape, data) = other.tensors.get_mut(name).expect("it is there");
        data.truncate(data.len() - 4);
        *shape = vec![data.len() / 4];
        let text = verdict(&h, &bus, &other.seal()).unwrap_or_else(|| panic!("{name} one value shorter: taken"));
        assert!(text.contains(&format!("state: {name}: expected")), "{name} one value shorter: {text}");
    }
    let mut surplus = whole();
    surplus.tensors.insert("more".into(), (vec![1], vec![0; 4]));
    let text = verdict(&h, &bus, &surplus.seal()).expect("a tensor too many is refused");
    assert!(text.contains("state: more: expected no such tensor"), "{text}");
}

#[test]
fn another_models_state_is_refused_at_the_start() {
    let folder = Folder::new("other");
    let [(_, model), (_, other)] = [3, 4].map(|seed| folder.model("band_mask", seed));
    let state = folder.file("state");
    drop(denoiser(&model, &[("state-out", &state)]));
    let element = make("ssmdenoise", &[("model", &other), ("state-in", &state)]);
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
    h.set_caps(caps("F32LE", 16_000, 1), caps("F32LE", 16_000, 1));
    let text = complaint(&bus, gst::MessageType::Error);
    assert!(text.contains(&format!("state-in: {state}: state: model: expected")), "{text}");
    assert!(h.push(gst::Buffer::from_slice(bytes(&[0.0; 4]))).is_err());
}
