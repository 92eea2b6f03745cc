//! What `ssm` says of itself: `--help` with examples, completions, pages for `man`.

use std::path::Path;
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

/// The `ssm` lines of the documents: in blocks of shell, and whole pieces of code in the text.
fn lines(text: &str) -> Vec<Vec<String>> {
    let mut found: Vec<String> =
        text.lines().map(str::trim).filter(|l| l.starts_with("ssm ")).map(str::to_owned).collect();
    found.extend(text.split('`').filter(|code| code.starts_with("ssm ") && !code.contains('\n')).map(str::to_owned));
    let words = |line: &String| {
        // What stands in quotation marks is one word.
        let pieces = line.split('\'').enumerate();
        let words = pieces.flat_map(|(i, piece)| match i % 2 {
            0 => piece.split_whitespace().take_while(|w| *w != "#").map(str::to_owned).collect(),
            _ => vec![piece.to_owned()],
        });
        words.collect()
    };
    found.iter().map(words).collect()
}

#[test]
fn the_command_knows_every_line_of_the_documents() {
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")];
    let mut texts = vec![open[0].join("../README.md")];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of the project") {
            let path = entry.expect("a readable folder").path();
            match path.extension() {
                None if path.is_dir() => open.push(path),
                Some(ending) if ending == "md" => texts.push(path),
                _ => {}
            }
        }
    }
    let (mut checked, mut unknown) = (0, Vec::new());
    for path in texts {
        for line in lines(&std::fs::read_to_string(&path).expect("a text")) {
            // Features may be off in this build.
            let publish = cfg!(any(feature = "mqtt", feature = "kafka"));
            if (line[1] == "publish" && !publish) || (line[1] == "state" && cfg!(not(feature = "store"))) {
                continue;
            }
            let help = Command::new(env!("CARGO_BIN_EXE_ssm")).args([&line[1], "--help"]).output().expect("it runs");
            let options: Vec<&str> = line.iter().map(String::as_str).filter(|w| w.starts_with("--")).collect();
            let known = help.status.success() && options.iter().all(|o| *o == "--help" || text(&help).contains(*o));
            checked += 1;
            if !known && line[1] != "--help" {
                unknown.push(format!("{}: {}", path.display(), line.join(" ")));
            }
        }
    }
    assert!(checked > 15, "only {checked} lines were found");
    assert!(unknown.is_empty(), "{unknown:#?}");
}
