//! The `ssm` command line as a user meets it: what it prints, how it ends, what it says of bad input.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn ssm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ssm")).args(args).output().expect("the command runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn golden(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name).display().to_string()
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ssm-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn verify_passes_good_files_and_ends_with_failure_otherwise() {
    let good = golden("vim_tiny_cfg_a.safetensors");
    let done =
        ssm(&["verify", &good, &golden("mamba_block_tiny.safetensors"), "--chunks", "random:5", "--threads", "2"]);
    assert!(done.status.success(), "{}", text(&done));
    let lines = text(&done);
    assert!(lines.lines().next().is_some_and(|l| l.contains("vim  max_abs=") && l.ends_with("PASS")), "{lines}");
    assert_eq!(lines.lines().last(), Some("2 passed, 0 failed, 0 unsupported"));

    let strict = ssm(&["verify", &good, "--tol", "1e-12"]);
    assert!(!strict.status.success());
    assert!(text(&strict).contains("FAIL __output_f64__: off by"), "{}", text(&strict));

    let folder = Folder::new("verify");
    let bytes = std::fs::read(&good).expect("the golden file is there");
    for (name, bytes) in [("cut.safetensors", &bytes[..bytes.len() - 1]), ("text.pth", b"hello"), ("empty.pth", b"")] {
        std::fs::write(folder.file(name), bytes).expect("a temporary file");
        let done = ssm(&["verify", &folder.file(name)]);
        assert!(!done.status.success());
        assert!(text(&done).contains("0 passed, 1 failed") && text(&done).contains(name), "{}", text(&done));
    }
    let absent = ssm(&["verify", &folder.file("absent.pth")]);
    assert!(!absent.status.success() && text(&absent).contains("absent.pth"), "{}", text(&absent));
}

#[test]
fn a_level_that_is_none_is_told() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ssm"));
    let done =
        command.args(["verify", &golden("ops_add_norm.safetensors")]).env("SSM_CPU", "mmx").output().expect("runs");
    assert!(!done.status.success());
    assert!(text(&done).contains("SSM_CPU: expected scalar, avx2 or avx512, got \"mmx\""), "{}", text(&done));
    let cuda = ssm(&["verify", &golden("ops_add_norm.safetensors"), "--device", "cuda"]);
    assert!(!cuda.status.success() && text(&cuda).contains("cuda"), "{}", text(&cuda));
}

#[test]
fn mix_score_and_spectrogram_work_on_what_mix_made() {
    let folder = Folder::new("sound");
    let (speech, noise) = (folder.file("speech.wav"), folder.file("noise.wav"));
    let write = |path: &str, f: &dyn Fn(u32) -> f32| {
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: 16_000,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut writer = hound::WavWriter::create(path, spec).expect("a temporary file");
        (0..16_000).for_each(|i| writer.write_sample((8000.0 * f(i)) as i16).expect("written"));
        writer.finalize().expect("written");
    };
    write(&speech, &|i| (i as f32 * 0.05).sin());
    write(&noise, &|i| if i.wrapping_mul(2_654_435_761) >> 31 == 0 { 1.0 } else { -1.0 });
    let (mixed, clean, picture) = (folder.file("mixed.wav"), folder.file("clean.wav"), folder.file("picture.png"));
    let args = ["mix", "--speech", &speech, "--noise", &noise, "--snr", "-3", "-o", &mixed, "--clean", &clean];
    let done = ssm(&args);
    assert!(done.status.success(), "{}", text(&done));
    let score = text(&ssm(&["score", &clean, &mixed]));
    let decibels: f32 = score.split("SI-SDR ").nth(1).and_then(|s| s.split(' ').next()?.parse().ok()).expect("a score");
    assert!((decibels + 3.0).abs() < 0.5, "mixed at -3 dB: {score}");
    let done = ssm(&["spectrogram", &mixed, &clean, "-o", &picture, "--width", "200"]);
    assert!(done.status.success(), "{}", text(&done));
    let bytes = std::fs::read(&picture).expect("the picture is there");
    assert!(bytes.starts_with(b"\x89PNG") && bytes[16..24] == [0, 0, 0, 200, 0, 0, 2, 6], "200 x 518 pixels");
    let done = ssm(&["score", &clean, &folder.file("absent.wav")]);
    assert!(!done.status.success() && text(&done).contains("absent.wav"));
}

#[test]
fn random_weights_are_a_model_and_say_that_they_are_untrained() {
    let folder = Folder::new("random");
    let file = folder.file("vim.safetensors");
    let done = ssm(&["random", "vim-tiny", "--seed", "3", "-o", &file]);
    assert!(done.status.success() && text(&done).contains("untrained"), "{}", text(&done));
    let seen = text(&ssm(&["inspect", &file]));
    assert!(seen.contains("vim") && seen.contains("7148008"), "{seen}");
}
