//! `ssm generate` on a golden file: its prompt, its scores, its state.

use ssm_models::checkpoint::Checkpoint;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/mamba_lm_tiny_mamba_ssm.safetensors")
}

fn ssm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ssm")).arg("generate").arg(golden()).args(args).output().unwrap()
}

fn ids(output: &Output) -> Vec<u32> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(|l| l.parse().unwrap()).collect()
}

#[test]
fn the_first_token_is_what_upstream_scores_highest() {
    let file = Checkpoint::open(&golden()).unwrap();
    let [batch, len] = file.shape("__input__").unwrap() else { panic!("two axes") };
    let (prompts, scores) = (file.f32("__input__").unwrap(), file.f32("__output__").unwrap());
    let vocab = scores.len() / prompts.len();
    for b in 0..*batch {
        let prompt: Vec<String> = prompts[b * len..][..*len].iter().map(f32::to_string).collect();
        let last = &scores[((b + 1) * len - 1) * vocab..][..vocab];
        let best = (0..vocab).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap() as u32;
        let whole = ids(&ssm(&["--tokens", &prompt.join(","), "--count", "12"]));
        assert_eq!((whole.len(), whole[0]), (12, best));

        // What was generated, fed back as a prompt, goes on in the same way; the file may spread over lines.
        let fed: Vec<String> = prompt.iter().cloned().chain(whole[..7].iter().map(u32::to_string)).collect();
        let file = std::env::temp_dir().join(format!("ssm-prompt-{}-{b}.txt", std::process::id()));
        std::fs::write(&file, fed.join("\n")).unwrap();
        let rest = ids(&ssm(&["--prompt-file", file.to_str().unwrap(), "--count", "5", "--threads", "2", "--stats"]));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(rest, whole[7..]);
    }
}

#[test]
fn bad_prompts_are_errors() {
    for args in [&["--tokens", "96"][..], &["--prompt-file", "/nonexistent"], &["--tokens", "1,x"], &[]] {
        let output = ssm(args);
        assert!(!output.status.success() && !output.stderr.is_empty(), "{args:?}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{args:?}");
    }
}
