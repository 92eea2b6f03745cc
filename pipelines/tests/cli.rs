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
    std::fs::write(folder.file("whole.safetensors"), &bytes).expect("a temporary file");
    let all = ssm(&["verify", &folder.file("."), "--chunks", "random"]);
    assert!(text(&all).contains("1 passed, 3 failed"), "{}", text(&all));

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
    for command in ["verify", "inspect"] {
        let cuda = ssm(&[command, &golden("vim_tiny_cfg_a.safetensors"), "--device", "cuda:99"]);
        assert!(!cuda.status.success() && text(&cuda).contains("cuda:99"), "{}", text(&cuda));
    }
}

#[test]
fn a_card_is_used_where_there_is_one() {
    let on_card = |args: &[&str], more: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ssm"));
        command.env("LD_LIBRARY_PATH", ssm_runner::install()).envs(more.iter().copied()).args(args);
        let done = command.output().expect("the command runs");
        (done.status.success(), text(&done))
    };
    let (vim, other) = (golden("vim_tiny_cfg_a.safetensors"), golden("aum_fofo_tiny.safetensors"));
    let (passed, said) = on_card(&["verify", &vim, "--device", "cuda"], &[]);
    assert!(passed && said.contains("1 passed, 0 failed, 0 unsupported"), "{said}");
    let (_, said) = on_card(&["verify", &other, "--device", "cuda"], &[]);
    assert!(said.contains("UNSUPPORTED(nothing of it runs on a card)"), "{said}");
    let (passed, said) = on_card(&["inspect", &vim, "--device", "auto"], &[]);
    assert!(passed && said.contains("device        cuda:0\ncard          runner\n"), "{said}");
    let (passed, said) = on_card(&["inspect", &other, "--device", "auto"], &[]);
    assert!(passed && said.contains("device        cpu\ndevice_note   this aum model"), "{said}");
    for (what, value, part) in [
        ("SSM_RUNNER_VERSION", "11080", "the CUDA driver is of version 11.8, 12.0 is needed"),
        ("SSM_RUNNER_DEVICES", "0", "no card 0: there are 0"),
        ("SSM_RUNNER_BYTES", "1000", "out of memory on the card"),
    ] {
        let (passed, said) = on_card(&["inspect", &vim, "--device", "cuda"], &[(what, value)]);
        assert!(!passed && said.contains("cuda:0") && said.contains(part), "{said}");
        let (passed, said) = on_card(&["inspect", &vim, "--device", "auto"], &[(what, value)]);
        assert!(passed && said.contains("device        cpu"), "{said}");
    }
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

/// One channel of 16-bit samples of `f` at `rate`.
fn write(path: &str, rate: u32, seconds: u32, f: &dyn Fn(f32) -> f32) {
    let spec =
        hound::WavSpec { channels: 1, sample_rate: rate, bits_per_sample: 16, sample_format: hound::SampleFormat::Int };
    let mut writer = hound::WavWriter::create(path, spec).expect("a temporary file");
    for i in 0..seconds * rate {
        writer.write_sample((8000.0 * f(i as f32 / rate as f32)) as i16).expect("written");
    }
    writer.finalize().expect("written");
}

#[test]
fn eval_denoise_runs_pairs_through_the_element_and_tells_what_is_missing() {
    let folder = Folder::new("denoise");
    let tone = |t: f32| (t * 1200.0).sin() * (t * 9.0).sin().max(0.0);
    // The first pair is at another rate than the model's.
    for (name, rate) in [("a", 44_100), ("b", 16_000)] {
        write(&folder.file(&format!("{name}_clean.wav")), rate, 2, &tone);
        let noisy = |t: f32| tone(t) + 0.2 * (t * 91_357.0).sin() * (t * 33_331.0).cos();
        write(&folder.file(&format!("{name}_noisy.wav")), rate, 2, &noisy);
    }
    let place = folder.0.display().to_string();
    let run = |more: &[&str]| ssm(&[&["eval-denoise", &place, "--python", "no-such-python"], more].concat());
    let out = folder.file("out");
    let done = run(&["--out", &out]);
    assert!(done.status.success(), "{}", text(&done));
    let lines = text(&done);
    let numbers = |name: &str| -> Vec<f64> {
        let line = lines.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_whitespace().filter_map(|w| w.parse().ok()).collect()
    };
    // Without Python there are two numbers a line: SI-SDR before and after.
    let (a, b, both) = (numbers("a "), numbers("b "), numbers("mean of"));
    assert!(a.len() == 2 && b.len() == 2 && both.len() == 3 && both[0] == 2.0, "{lines}");
    assert!((both[2] - (a[1] + b[1]) / 2.0).abs() < 0.02, "{lines}");
    assert!(lines.contains("no-such-python") && lines.contains("make quality"), "{lines}");

    // What was written is judged to be as good, and the clean sound itself perfect.
    let judged = text(&run(&["--judge", &out]));
    let after = judged.lines().find(|l| l.starts_with("b ")).and_then(|l| l.split_whitespace().nth(2)?.parse().ok());
    assert!(after.is_some_and(|v: f64| (v - b[1]).abs() < 0.02), "{judged}\n{lines}");
    for name in ["a", "b"] {
        std::fs::copy(folder.file(&format!("{name}_clean.wav")), folder.file(&format!("out/{name}.wav")))
            .expect("copied");
    }
    let perfect = text(&run(&["--judge", &out]));
    let after =
        perfect.lines().last().filter(|l| l.starts_with("PESQ")).and(perfect.lines().find(|l| l.starts_with("mean")));
    let after: Option<f64> = after.and_then(|l| l.split_whitespace().nth(4)?.parse().ok());
    assert!(after.is_some_and(|v| v > 60.0), "{perfect}");

    std::fs::remove_file(folder.file("out/b.wav")).expect("removed");
    let done = run(&["--judge", &out]);
    assert!(!done.status.success() && text(&done).contains("expected b.wav or b.flac"), "{}", text(&done));
    write(&folder.file("b_clean.wav"), 16_000, 1, &tone);
    let done = run(&[]);
    let want = "b_noisy.wav: expected 16000 samples";
    assert!(!done.status.success() && text(&done).contains(want), "{}", text(&done));
    std::fs::remove_file(folder.file("b_noisy.wav")).expect("removed");
    let done = run(&[]);
    let want = "b_clean.wav: expected b_noisy.wav or b_noisy.flac";
    assert!(!done.status.success() && text(&done).contains(want), "{}", text(&done));
    std::fs::write(folder.file("b_noisy.wav"), b"no sound").expect("written");
    let done = run(&[]);
    assert!(!done.status.success() && text(&done).contains("b_noisy.wav"), "{}", text(&done));
}

#[cfg(unix)]
#[test]
fn eval_denoise_shows_what_python_measures() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("quality");
    for name in ["a_clean", "a_noisy", "b_clean", "b_noisy"] {
        write(&folder.file(&format!("{name}.wav")), 16_000, 1, &|t| (t * 1200.0).sin());
    }
    // In place of Python: says `answer` and ends after so many bytes; a pair of a second has 192 004.
    let python = |answer: &str, reads: u32| {
        let path = folder.file("python");
        std::fs::write(&path, format!("#!/bin/sh\nprintf '{answer}'\nhead -c {reads} > /dev/null\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("permitted");
        ssm(&["eval-denoise", &folder.0.display().to_string(), "--python", &path])
    };
    let line = "[[1.5, 0.8, 0.7], [2.5, 0.9, null]]\\n";
    let done = python(&format!("ready\\n{line}{line}"), 1_000_000);
    let lines = text(&done);
    let words: Vec<&str> = lines.lines().last().unwrap_or_default().split_whitespace().collect();
    assert!(done.status.success(), "{lines}");
    assert_eq!(words[5..], ["1.500", "2.500", "0.800", "0.900", "0.700", "-"], "{lines}");
    let short = python(&format!("ready\\n{line}"), 200_000);
    assert!(!short.status.success() && text(&short).contains("PESQ and STOI"), "{}", text(&short));
    let absent = python("No module named pesq\\n", 0);
    assert!(absent.status.success() && text(&absent).contains("No module named pesq"), "{}", text(&absent));
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

/// Arguments of commands that print, and are quick.
fn printing(folder: &Folder) -> Vec<Vec<String>> {
    let (tone, weights) = (folder.file("tone.wav"), folder.file("weights.safetensors"));
    write(&tone, 16_000, 1, &|t| (t * 440.0).sin());
    let model = golden("mamba_lm_tiny_mamba_ssm.safetensors");
    let lines = [
        format!("verify {}", golden("ops_add_norm.safetensors")),
        format!("inspect {model}"),
        format!("inspect --json {model}"),
        format!("score {tone} {tone}"),
        format!("spectrogram {tone} --output {}", folder.file("tone.png")),
        format!("random vim-tiny --output {weights}"),
        "completions bash".into(),
        format!("run {tone} --element ssmvad --output {}", folder.file("found")),
    ];
    lines.iter().map(|l| l.split(' ').map(str::to_owned).collect()).collect()
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let folder = Folder::new("pipe");
    for args in printing(&folder) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_ssm"));
        let done = command.args(&args).stdout(writer).stderr(std::process::Stdio::piped()).output().expect("it runs");
        let told = String::from_utf8_lossy(&done.stderr);
        assert_eq!((done.status.code(), &*told), (Some(141), ""), "{args:?}");
    }
}

#[test]
fn a_full_disk_is_told_and_a_closed_error_output_is_not() {
    let folder = Folder::new("full");
    for args in printing(&folder) {
        let full = std::fs::File::create("/dev/full").expect("a device of Linux");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ssm"));
        let done = command.args(&args).stdout(full).stderr(std::process::Stdio::piped()).output().expect("it runs");
        let told = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{args:?}: {told}");
        assert!(told.starts_with("ssm: standard output: No space left on device"), "{args:?}: {told}");
    }
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let absent = Command::new(env!("CARGO_BIN_EXE_ssm")).args(["inspect", "absent"]).stderr(writer).output();
    assert_eq!(absent.expect("it runs").status.code(), Some(1));
}

#[test]
fn numbers_out_of_their_range_are_refused_in_a_line() {
    let folder = Folder::new("numbers");
    let (sound, out) = (folder.file("sound.wav"), folder.file("out.wav"));
    write(&sound, 16_000, 1, &|t| (600.0 * t).sin());
    let mix = ["mix", "--speech", &sound, "--noise", &sound, "-o", &out];
    let with = |more: &[&str]| [&mix[..], more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
    let all = |args: &[&str]| args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
    let mut lines = vec![
        all(&["verify", &golden("vim_tiny_cfg_a.safetensors"), "--tol", "nan"]),
        all(&["verify", &golden("vim_tiny_cfg_a.safetensors"), "--tol=-1"]),
        all(&["verify", &golden("vim_tiny_cfg_a.safetensors"), "--threads", "99999999"]),
        all(&["generate", &golden("mamba_lm_tiny_hf.safetensors"), "--tokens", "1", "--threads", "0"]),
        all(&["spectrogram", &sound, "-o", &out, "--width", "5"]),
        all(&["shots", &sound, "--threshold", "2"]),
        all(&["eval-shots", &sound, "--threshold", "nan"]),
    ];
    lines.extend(["inf", "nan", "0", "-1", "1e30"].map(|seconds| with(&[&format!("--seconds={seconds}")])));
    lines.push(with(&["--snr=nan"]));
    lines.push(with(&["--clean", &out]));
    for element in [
        "ssmevents threshold=2",
        "ssmvad threshold=nan",
        "ssmvad threshold=\"7\"",
        "ssmvad batch-size=-1",
        "ssmvad name=a",
        "ssmdenoise",
        "ssmjson",
    ] {
        lines.push(all(&["run", &sound, "-o", &folder.file("found"), "--element", element]));
    }
    for args in lines {
        let done = ssm(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let told = text(&done);
        assert!(matches!(done.status.code(), Some(1 | 2)), "{args:?}: {told}");
        assert!(told.contains("expected") || told.contains("invalid value"), "{args:?}: {told}");
        assert!(!told.contains("panicked") && !Path::new(&out).exists(), "{args:?}: {told}");
    }
}

#[test]
fn sounds_that_hold_no_numbers_are_refused() {
    let folder = Folder::new("finite");
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 16_000,
        bits_per_sample: 32,
        sample_format: hound::SampleFormat::Float,
    };
    let float = |name: &str, samples: &[f32]| {
        let path = folder.file(name);
        let mut writer = hound::WavWriter::create(&path, spec).expect("a temporary file");
        samples.iter().for_each(|s| writer.write_sample(*s).expect("written"));
        writer.finalize().expect("written");
        path
    };
    let wave: Vec<f32> = (0..16_000).map(|i| (i as f32 * 0.05).sin() * 0.3).collect();
    let good = float("a_clean.wav", &wave);
    let bad = float("a_noisy.wav", &[&wave[..100], &[f32::NAN], &wave[101..]].concat());
    let (short, none) = (float("short.wav", &wave[..8000]), float("none.wav", &[]));
    let picture = folder.file("picture.png");
    for args in [
        &["score", &good, &bad][..],
        &["spectrogram", &bad, "-o", &picture],
        &["eval-denoise", &folder.file("."), "--python", "no-such-python"],
    ] {
        let told = text(&ssm(args));
        assert!(told.contains("a_noisy.wav: sample 100: expected a finite number, got NaN"), "{args:?}: {told}");
    }
    let silent = float("silent.wav", &[0.0; 16_000]);
    let told = text(&ssm(&["mix", "--speech", &good, "--noise", &silent, "-o", &picture]));
    assert!(told.contains("expected speech and noise with sound, got silence"), "{told}");
    let told = text(&ssm(&["spectrogram", &none, "-o", &picture]));
    assert!(told.contains("none.wav: expected samples, got none"), "{told}");
    let told = text(&ssm(&["score", &good, &none]));
    assert!(told.contains("none.wav: expected samples, got none"), "{told}");
    let told = text(&ssm(&["score", &good, &short]));
    assert!(told.contains("over the first 0.500 s"), "{told}");
}

#[cfg(target_os = "linux")]
#[test]
fn what_lies_where_a_command_writes_stays_what_it_is() {
    use std::os::unix::fs::FileTypeExt;
    let folder = Folder::new("device");
    let (sound, device) = (folder.file("sound.wav"), folder.file("full"));
    write(&sound, 16_000, 1, &|t| (600.0 * t).sin());
    // A folder that cannot be: told under its own name, and nothing is left behind.
    let nowhere = folder.file("nowhere/out");
    for args in [
        vec!["random", "vim-tiny", "-o", &nowhere],
        vec!["spectrogram", &sound, "-o", &nowhere],
        vec!["mix", "--speech", &sound, "--noise", &sound, "-o", &nowhere],
    ] {
        let done = ssm(&args);
        assert_eq!(done.status.code(), Some(1), "{args:?}");
        assert!(text(&done).contains(&format!("{nowhere}: No such file")), "{args:?}: {}", text(&done));
    }
    let found = folder.file("found");
    let done = ssm(&["run", &folder.file("absent.mp4"), "-o", &found, "--element", "ssmevents"]);
    assert!(!done.status.success() && !Path::new(&found).join("absent.mp4.jsonl.part").exists(), "{}", text(&done));
    // A named pipe is written to, not replaced.
    let made = Command::new("mkfifo").arg(&device).status().expect("a tool of every system");
    assert!(made.success());
    let reader = std::thread::spawn({
        let device = device.clone();
        move || std::fs::read(device).expect("readable")
    });
    assert!(ssm(&["spectrogram", &sound, "-o", &device]).status.success());
    assert!(reader.join().expect("it reads").starts_with(b"\x89PNG"));
    assert!(std::fs::symlink_metadata(&device).expect("still there").file_type().is_fifo());
    let told = text(&ssm(&["shots", &folder.file("absent.mp4")]));
    assert!(told.contains("absent.mp4"), "{told}");
}
