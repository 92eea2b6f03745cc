//! The pages of the reference are those of this build, and nothing of what was promised is gone.

use gst::prelude::*;
use ssm_tests::reference::{factories, interface, interface_file, page, pages_folder};
use std::collections::BTreeSet;

#[test]
fn pages_are_of_this_build() {
    let mut names = BTreeSet::from(["README.md".to_owned()]);
    for factory in factories() {
        let path = pages_folder().join(format!("{}.md", factory.name()));
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        let page = page(&factory);
        let differ = written.lines().zip(page.lines()).find(|(a, b)| a != b);
        assert!(written == page, "{}: make reference writes it anew; {differ:?}", path.display());
        names.insert(format!("{}.md", factory.name()));
    }
    let there = std::fs::read_dir(pages_folder()).expect("the pages").map(|e| e.expect("a page").file_name());
    let there: BTreeSet<String> = there.map(|n| n.to_string_lossy().into_owned()).collect();
    assert_eq!(there, names);
}

#[test]
fn what_was_promised_is_there() {
    let promised = std::fs::read_to_string(interface_file()).expect("the list");
    let promised: BTreeSet<String> = promised.lines().map(str::to_owned).collect();
    let now = interface();
    let gone: Vec<_> = promised.difference(&now).collect();
    let new: Vec<_> = now.difference(&promised).collect();
    assert!(
        gone.is_empty(),
        "docs/stability.md promises what is not there any more:\n{gone:#?}\nin its place:\n{new:#?}"
    );
    assert!(new.is_empty(), "make reference adds them:\n{new:#?}");
    let kinds: BTreeSet<&str> = now.iter().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(kinds, BTreeSet::from(["event", "message", "pad", "property", "result", "signal"]));
}
