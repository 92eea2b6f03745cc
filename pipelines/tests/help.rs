//! What `ssm` says of itself: `--help` with examples, completions, pages for `man`.

use std::process::{Command, Output};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn every_command_shows_examples_and_shells_complete_them() {
    let ssm = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_ssm")).args(args).output().expect("the command runs");
    let help = text(&ssm(&["--help"]));
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|l| !l.starts_with("Commands:"))
        .skip(1)
        .take_while(|l| l.starts_with("  "))
        .filter_map(|l| l.split_whitespace().next())
        .filter(|c| *c != "help")
        .collect();
    assert!(commands.contains(&"run") && commands.contains(&"serve"), "{help}");
    for command in &commands {
        let help = text(&ssm(&[command, "--help"]));
        assert!(help.contains(&format!("\n  ssm {command} ")) || *command == "publish", "{help}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&ssm(&["completions", shell]));
        assert!(commands.iter().all(|c| script.contains(c)), "{shell}");
    }
    let folder = std::env::temp_dir().join(format!("ssm-man-{}", std::process::id()));
    assert!(ssm(&["man", &folder.display().to_string()]).status.success());
    assert!(commands.iter().all(|c| folder.join(format!("ssm-{c}.1")).exists()));
    std::fs::remove_dir_all(folder).expect("the pages are there");
}
