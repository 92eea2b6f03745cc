//! `ssm serve` as a browser meets it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

struct Page {
    child: Child,
    address: String,
}

impl Page {
    fn new(args: &[&str]) -> Self {
        Self::of(Command::new(env!("CARGO_BIN_EXE_ssm")), args)
    }

    fn of(mut command: Command, args: &[&str]) -> Self {
        command.args(["serve", "--listen", "127.0.0.1:0", "--fast"]).args(args).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the command runs");
        let mut line = String::new();
        let out = child.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("it tells its address");
        let address = line.trim().strip_prefix("http://").expect("an address").to_owned();
        Self { child, address }
    }

    fn signal(&self, kind: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([kind, &id]).status().expect("kill runs").success());
    }

    /// A request; the stream after it.
    fn ask(&self, method: &str, path: &str, host: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("it reads");
        BufReader::new(stream)
    }

    fn get(&self, path: &str) -> (String, Vec<u8>) {
        let mut all = vec![];
        self.ask("GET", path, &self.address).read_to_end(&mut all).expect("it answers");
        let at = all.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
        (String::from_utf8_lossy(&all[..at]).into_owned(), all[at + 4..].to_vec())
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The events of the page until the stream ends, as (name, data).
fn events(page: &Page) -> Vec<(String, String)> {
    let mut found = vec![];
    let mut name = String::new();
    for line in page.ask("GET", "/events", &page.address).lines() {
        let line = line.expect("it goes on");
        if let Some(event) = line.strip_prefix("event: ") {
            name = event.to_owned();
        } else if let Some(data) = line.strip_prefix("data: ") {
            found.push((name.clone(), data.to_owned()));
            if name == "end" {
                break;
            }
        }
    }
    found
}

#[test]
fn a_browser_gets_the_page_the_results_and_the_picture() {
    let page = Page::new(&["videotestsrc num-buffers=60"]);
    let found = events(&page);
    let results = || found.iter().filter(|(name, _)| name == "result");
    let steps: Vec<u64> = results()
        .map(|(_, data)| serde_json::from_str::<serde_json::Value>(data).expect("a line of JSON"))
        .filter_map(|line| line["step"].as_u64())
        .collect();
    assert!(steps.len() > 40 && steps.is_sorted(), "{steps:?}");
    assert!(found.iter().any(|(name, data)| name == "picture" && data != "0"));

    // Who comes when all is over gets the same.
    let late = events(&page);
    let late: Vec<_> = late.iter().filter(|(name, _)| name == "result").collect();
    assert!(late.iter().copied().eq(results()));

    let (head, body) = page.get("/");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("Content-Security-Policy: default-src 'self'"), "{head}");
    let body = String::from_utf8_lossy(&body);
    for path in ["/page.js", "/page.css"] {
        assert!(body.contains(path) && page.get(path).0.starts_with("HTTP/1.1 200"), "{path}");
    }
    let (head, picture) = page.get("/picture?1");
    assert!(head.contains("image/jpeg") && picture.starts_with(&[0xff, 0xd8]), "{head}");
    assert!(page.get("/../secret").0.starts_with("HTTP/1.1 404"));
}

#[test]
fn sound_has_no_picture_and_strangers_get_nothing() {
    let page = Page::new(&["audiotestsrc num-buffers=30", "--element", "ssmvad"]);
    let speech = events(&page).iter().filter(|(_, data)| data.contains("\"speech\":")).count();
    assert!(speech > 40, "{speech}");
    assert!(page.get("/picture").0.starts_with("HTTP/1.1 404"));
    let first = |method: &str, host: &str| {
        let mut line = String::new();
        page.ask(method, "/", host).read_line(&mut line).expect("it answers");
        line
    };
    // A page of elsewhere whose name was made to point here.
    assert!(first("GET", "films.example:80").contains(" 403 "));
    assert!(first("POST", &page.address).contains(" 405 "));
    assert!(first("GET", "localhost").contains(" 200 "));
}

#[test]
fn a_connection_ends_nobody_elses() {
    let mut page = Page::new(&["videotestsrc num-buffers=10"]);
    let send = |text: &str| {
        let mut stream = TcpStream::connect(&page.address).expect("it listens");
        stream.write_all(text.as_bytes()).expect("it reads");
        stream
    };
    // A body that is said to be larger than any memory; requests behind one that does not end; one that does not end itself.
    let host = &page.address;
    let mut held = vec![send(&format!("GET / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99999999999999999\r\n\r\n"))];
    let more = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").repeat(40);
    held.push(send(&format!("GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n{more}")));
    held.extend((0..40).map(|_| send("GET /aaaa")));
    assert!(page.get("/").0.starts_with("HTTP/1.1 200"));
    drop(held);
    assert!(page.get("/").0.starts_with("HTTP/1.1 200"));
    assert!(page.child.try_wait().expect("asked").is_none(), "it lives");
}

#[test]
fn signals_end_it_but_for_those_it_was_started_to_ignore() {
    let endless = ["videotestsrc is-live=true"];
    for kind in ["-HUP", "-INT", "-TERM"] {
        // These tests may run under nohup themselves, or in the background of a shell, which ignores SIGINT.
        let mut heard = Command::new("env");
        heard.args(["--default-signal=HUP,INT,TERM", env!("CARGO_BIN_EXE_ssm")]);
        let mut page = Page::of(heard, &endless);
        page.signal(kind);
        let status = page.child.wait().expect("it ends");
        assert!(status.code().is_some(), "{kind}: in good order, not {status}");
    }
    // As nohup does.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_ssm")]);
    let mut page = Page::of(shell, &endless);
    page.signal("-HUP");
    assert!(page.get("/").0.starts_with("HTTP/1.1 200"));
    page.signal("-TERM");
    assert!(page.child.wait().expect("it ends").code().is_some());
}

#[test]
fn what_is_no_source_is_told() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ssm"));
    let done = command.args(["serve", "absent.mp4"]).output().expect("the command runs");
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success() && told.contains("absent.mp4: expected a file"), "{told}");
}
