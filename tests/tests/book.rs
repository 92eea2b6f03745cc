//! The documents agree with the tree: links lead somewhere, blocks of code are what they say, every page is in the book, and
//! every message is explained. What runs `gst-launch-1.0` lines is `lines.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the tree is there")
}

/// Files of an ending below folders of the tree, without what was built.
fn files(folders: &[&str], ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = folders.iter().map(|f| root().join(f)).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let hidden =
                |p: &Path| p.file_name().is_some_and(|n| n == "target" || n.as_encoded_bytes().starts_with(b"."));
            let entries = std::fs::read_dir(&path).expect("a folder of the project");
            open.extend(entries.map(|e| e.expect("a readable folder").path()).filter(|p| !hidden(p)));
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn documents() -> Vec<PathBuf> {
    let folders =
        ["README.md", "CHANGELOG.md", "SECURITY.md", "docs", "models", "pipelines", "plugins", "kernels", "tests"];
    files(&folders, "md")
}

/// A fenced block: its language, the line it begins in, its text.
type Block = (String, usize, String);

/// A document without its blocks of code, and the blocks.
fn parts(text: &str) -> (String, Vec<Block>) {
    let (mut prose, mut blocks, mut open) = (String::new(), Vec::new(), None::<Block>);
    for (i, line) in text.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => blocks.push(block),
            (Some(language), None) => open = Some((language.trim().to_owned(), i + 1, String::new())),
            (None, Some((language, at, block))) => open = Some((language, at, block + line + "\n")),
            (None, None) => prose += &(line.to_owned() + "\n"),
        }
    }
    assert!(open.is_none(), "a block of code has no end: {text}");
    (prose, blocks)
}

/// Prose without what stands between backticks.
fn without_code(prose: &str) -> String {
    prose.split("\n\n").map(|p| p.split('`').step_by(2).collect::<String>() + "\n\n").collect()
}

/// Targets of links and pictures.
fn links(prose: &str) -> Vec<String> {
    let prose = without_code(prose);
    prose.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// The anchors of a document's headings, as forges and mdBook make them.
fn anchors(prose: &str) -> BTreeSet<String> {
    let mut seen = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for heading in prose.lines().filter(|l| l.starts_with('#')) {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let count = seen.entry(slug.clone()).or_insert(0);
        anchors.insert(if *count == 0 { slug } else { format!("{slug}-{count}") });
        *count += 1;
    }
    anchors
}

#[test]
fn links_lead_somewhere() {
    let (mut dead, mut followed) = (Vec::new(), 0);
    for file in documents() {
        let (prose, _) = parts(&read_to_string(&file).expect("a text"));
        for link in links(&prose) {
            if link.contains("://") {
                continue;
            }
            followed += 1;
            let (path, anchor) = link.split_once('#').map_or((&*link, None), |(p, a)| (p, Some(a)));
            let folder = file.parent().expect("a file has a folder");
            let target = if path.is_empty() { file.clone() } else { folder.join(path) };
            let inside = target.canonicalize().is_ok_and(|t| t.starts_with(root()));
            let there = inside
                && anchor
                    .is_none_or(|a| read_to_string(&target).is_ok_and(|text| anchors(&parts(&text).0).contains(a)));
            if !there {
                dead.push(format!("{}: {link}", file.display()));
            }
        }
    }
    assert!(followed > 60, "only {followed} links were found");
    assert!(dead.is_empty(), "{dead:#?}");
}

#[test]
fn anchors_are_as_forges_make_them() {
    let text = "# A `b_c` d!\n## A, b\n## A, b\n";
    assert_eq!(anchors(text), ["a-b_c-d", "a-b", "a-b-1"].map(str::to_owned).into());
    assert_eq!(links("[a](b.md#c) `[x](y)` ![p](q.png)"), ["b.md#c", "q.png"]);
    assert_eq!(parts("a\n```sh\nb\n```\nc\n"), ("a\nc\n".into(), vec![("sh".into(), 2, "b\n".into())]));
}

#[test]
fn every_page_is_in_the_book_once() {
    let folder = root().join("docs");
    let (prose, _) = parts(&read_to_string(folder.join("SUMMARY.md")).expect("the summary"));
    let listed: Vec<PathBuf> = links(&prose).iter().map(|l| folder.join(l)).collect();
    let mut pages: Vec<PathBuf> = files(&["docs"], "md");
    pages.retain(|p| !p.ends_with("SUMMARY.md"));
    let mut sorted = listed.clone();
    sorted.sort();
    assert_eq!(sorted, pages);
}

/// Whether the lines of a block stand one after the other in a file, whatever their indentation.
fn stands_in(block: &str, file: &str) -> bool {
    let squeeze = |text: &str| text.lines().map(|l| l.trim().to_owned() + "\n").collect::<String>();
    squeeze(file).contains(&squeeze(block))
}

/// First words of lines that are not ours to check.
const TOOLS: [&str; 7] = ["gst-inspect-1.0", "pactl", "export", "cd", "python", "python3", "cargo"];

#[test]
fn blocks_of_code_are_what_they_say() {
    let makefile = read_to_string(root().join("Makefile")).expect("the Makefile");
    let examples = |ending: &str| -> Vec<String> {
        files(&["pipelines"], ending).iter().map(|f| read_to_string(f).expect("a text")).collect()
    };
    let mut wrong = Vec::new();
    for file in documents() {
        for (language, at, block) in parts(&read_to_string(&file).expect("a text")).1 {
            let mut fault = |what: String| wrong.push(format!("{}:{at}: {what}", file.display()));
            match &*language {
                "sh" => {
                    let joined = block.replace("\\\n", " ");
                    for line in joined.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
                        let mut words = line.split_whitespace();
                        match words.next().unwrap_or_default() {
                            // These are run by lines.rs and by the tests of the command.
                            "gst-launch-1.0" | "ssm" => {}
                            "make" => {
                                let target = words.find(|w| !w.contains('='));
                                if !target.is_some_and(|t| makefile.contains(&format!("\n{t}:"))) {
                                    fault(format!("no such target: {line}"));
                                }
                            }
                            script if script.contains('/') => {
                                if !root().join(script).exists() {
                                    fault(format!("no such script: {line}"));
                                }
                            }
                            tool if TOOLS.contains(&tool) => {}
                            _ => fault(format!("nothing checks this line: {line}")),
                        }
                    }
                }
                "json" => {
                    let values = serde_json::Deserializer::from_str(&block).into_iter::<serde_json::Value>();
                    values.filter_map(Result::err).for_each(|error| fault(error.to_string()));
                }
                "rust" | "c" | "python" => {
                    let ending = match &*language {
                        "rust" => "rs",
                        "python" => "py",
                        other => other,
                    };
                    if !examples(ending).iter().any(|e| stands_in(&block, e)) {
                        fault(format!("it stands in no example:\n{block}"));
                    }
                }
                // Drawings, output, and pieces of lines that only a newer GStreamer runs.
                "text" | "" => {}
                other => fault(format!("a language that nothing checks: {other}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A format string with `…` for each value.
fn template(format: &str) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some((before, inside)) = rest.split_once('{') {
        out += before;
        out.push('…');
        rest = inside.split_once('}').map_or("", |(_, after)| after);
    }
    out + rest
}

/// The text literals of Rust code as templates. Long ones that are broken by a backslash are joined.
fn literals(code: &str) -> Vec<(usize, String)> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(open) = code[at..].find('"').map(|i| at + i) {
        let mut close = open + 1;
        while let Some(i) = code[close..].find(['"', '\\']).map(|i| close + i) {
            close = i;
            if code.as_bytes()[i] == b'"' {
                break;
            }
            close += 2;
        }
        found.push((open, template(&code[open + 1..close.min(code.len())])));
        at = close + 1;
        if at >= code.len() {
            break;
        }
    }
    found
}

#[test]
fn every_message_is_explained() {
    let page = read_to_string(root().join("docs/troubleshooting.md")).expect("the page");
    let explained: BTreeSet<String> =
        page.lines().filter_map(|l| l.strip_prefix("### `")?.strip_suffix('`')).map(str::to_owned).collect();
    let (mut needed, mut all) = (BTreeSet::new(), BTreeSet::new());
    for file in files(&["kernels/src", "models/src", "plugins/src", "pipelines/src"], "rs") {
        let code = read_to_string(&file).expect("a text");
        // A character that is a quotation mark would open a text.
        let code = code.replace("'\"'", "' '");
        for (at, text) in literals(&code) {
            let before = code[..at].trim_end();
            let told = before.strip_suffix('(').map(str::trim_end).is_some_and(|b| {
                let tail = &b[b.len().saturating_sub(120)..];
                let macro_of = tail.rsplit_once("gst::element_").map(|(_, call)| call);
                b.ends_with("#[error") || macro_of.is_some_and(|c| !c.contains(';') && c.ends_with(','))
            });
            // What only passes another message on is explained as that one.
            if told && text != "…" {
                needed.insert(text.clone());
            }
            all.insert(text);
        }
    }
    assert!(needed.len() > 25, "{needed:#?}");
    let missing: Vec<_> = needed.difference(&explained).collect();
    assert!(missing.is_empty(), "docs/troubleshooting.md does not explain {missing:#?}");
    let gone: Vec<_> = explained.iter().filter(|e| !all.contains(*e)).collect();
    assert!(gone.is_empty(), "docs/troubleshooting.md explains what nothing says: {gone:#?}");
}

#[test]
fn texts_in_code_are_found() {
    let code = r#"f("a {b}: {}", "c\"d"); g("{e:?}")"#;
    let found: Vec<String> = literals(code).into_iter().map(|l| l.1).collect();
    assert_eq!(found, ["a …: …", "c\\\"d", "…"]);
}
