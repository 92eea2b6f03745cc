//! The `ssm` command line.
fn main() {}
