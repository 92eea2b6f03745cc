//! `ssm completions` and `ssm man`: what shells and `man` read, made from the same description as `--help`.

use crate::Failure;
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::PathBuf;

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  ssm completions bash > ~/.local/share/bash-completion/completions/ssm
  ssm completions zsh > ~/.zfunc/_ssm
  ssm completions fish > ~/.config/fish/completions/ssm.fish";

#[derive(clap::Args)]
pub struct Args {
    /// The shell.
    shell: Shell,
}

#[derive(clap::Args)]
pub struct ManArgs {
    /// Folder for the pages.
    folder: PathBuf,
}

pub fn run(args: &Args) {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Args::command(), "ssm", &mut script);
    crate::say::print(format_args!("{}", String::from_utf8_lossy(&script)));
}

pub fn man(args: &ManArgs) -> Result<(), Failure> {
    let bad = |e: std::io::Error| Failure::File { path: args.folder.clone(), reason: e.to_string() };
    std::fs::create_dir_all(&args.folder).map_err(bad)?;
    clap_mangen::generate_to(crate::Args::command(), &args.folder).map_err(bad)
}
