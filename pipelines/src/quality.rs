//! PESQ, STOI and ESTOI by the Python packages pesq and pystoi, in one process for all sounds (quality.py).

use crate::Failure;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const SCRIPT: &str = include_str!("quality.py");
/// Where `make quality` puts the packages.
const HERE: &str = ".venv/bin/python";

/// PESQ (wide band), STOI, ESTOI; none where a measure cannot be had.
pub type Measures = [Option<f64>; 3];

/// The running process, or why there is none.
pub struct Quality {
    running: Option<(Child, ChildStdin, BufReader<ChildStdout>)>,
    note: Option<String>,
}

impl Quality {
    /// Starts Python. Without Python or the packages every measure is none, and `note` says how to get them.
    pub fn start(python: Option<&Path>) -> Self {
        let default = if Path::new(HERE).is_file() { HERE } else { "python3" };
        let python = python.map_or_else(|| PathBuf::from(default), Path::to_owned);
        let absent = |reason: String| Self {
            running: None,
            note: Some(format!("PESQ, STOI: {}: {reason}; `make quality` installs pesq and pystoi", python.display())),
        };
        let command = Command::new(&python).args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = match command {
            Ok(child) => child,
            Err(error) => return absent(error.to_string()),
        };
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return absent("no pipes".into());
        };
        let (mut output, mut first) = (BufReader::new(output), String::new());
        let read = output.read_line(&mut first);
        if read.is_ok() && first.trim() == "ready" {
            return Self { running: Some((child, input, output)), note: None };
        }
        drop(input);
        let _ = child.wait();
        absent(if first.trim().is_empty() { "it gives nothing".into() } else { first.trim().into() })
    }

    /// Why there are no measures.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Measures of two sounds at 16 kHz against the clean one, all of one length.
    ///
    /// # Errors
    ///
    /// When Python ends before its time.
    pub fn judge(&mut self, clean: &[f32], sounds: [&[f32]; 2]) -> Result<[Measures; 2], Failure> {
        let Some((_, input, output)) = &mut self.running else { return Ok([[None; 3]; 2]) };
        let mut bytes = (clean.len() as u32).to_le_bytes().to_vec();
        bytes.extend([clean, sounds[0], sounds[1]].into_iter().flatten().flat_map(|v| v.to_le_bytes()));
        let failed = |reason: String| Failure::Usage(format!("PESQ and STOI: {reason}"));
        input.write_all(&bytes).and_then(|()| input.flush()).map_err(|e| failed(e.to_string()))?;
        let mut answer = String::new();
        output.read_line(&mut answer).map_err(|e| failed(e.to_string()))?;
        let value: Value = serde_json::from_str(&answer).map_err(|e| failed(format!("{e}, got {answer:?}")))?;
        Ok([0, 1].map(|i| [0, 1, 2].map(|k| value.get(i)?.get(k)?.as_f64())))
    }
}

impl Drop for Quality {
    fn drop(&mut self) {
        if let Some((mut child, input, _)) = self.running.take() {
            // End of input ends it.
            drop(input);
            let _ = child.wait();
        }
    }
}
