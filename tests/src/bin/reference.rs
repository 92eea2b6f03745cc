//! Writes `docs/reference` from the registry, and what is new to `docs/interface.txt`. A line that went away stays in that
//! file, and the test `reference` fails by it: taking it out is a break of the promise (`docs/stability.md`).

use gst::prelude::*;
use ssm_tests::reference::{factories, interface, interface_file, page, pages_folder};
use std::collections::BTreeSet;
use std::fs;

fn main() -> std::io::Result<()> {
    for factory in factories() {
        fs::write(pages_folder().join(format!("{}.md", factory.name())), page(&factory))?;
    }
    let known = fs::read_to_string(interface_file()).unwrap_or_default();
    let mut lines: BTreeSet<String> = known.lines().map(str::to_owned).collect();
    lines.extend(interface());
    fs::write(interface_file(), lines.into_iter().map(|l| l + "\n").collect::<String>())
}
