//! `ssm serve`: results of a stream in a browser, as they come: a timeline, the newest picture, what happened.
//!
//! `/events` is a stream of server-sent events: `result` (a line of JSON as `ssmjson` writes it), `picture` (the number of
//! the newest one, to be had from `/picture`), `end`. Who comes later gets the results of the last while first; who does
//! not read in time is let go, and the browser comes back by itself.

use crate::Failure;
use crate::element::{self, Finder, Media};
use crate::signals;
use gst::prelude::*;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  ssm serve film.mp4
  ssm serve v4l2src --element 'ssmclassify model=vim_t.pth labels-file=imagenet.txt'
  ssm serve rtsp://camera.local/stream --listen 127.0.0.1:9000
  ssm serve autoaudiosrc --element ssmvad
  ssm serve 'videotestsrc is-live=true'

Open the address that it prints. It listens on this machine only, unless --listen names another address: then whoever
reaches that address sees the pictures, so put a proxy that asks for a password before it.";

#[derive(clap::Args)]
pub struct Args {
    /// File, address (rtsp://, http://, file://), or a source as for gst-launch-1.0.
    source: String,
    /// The element with its properties, as for gst-launch-1.0.
    #[arg(long, default_value = "ssmevents")]
    element: String,
    /// What the element shall take, where it takes both.
    #[arg(long)]
    media: Option<Media>,
    /// Address to listen on; port 0: one that is free.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// As fast as it goes, not as fast as it plays.
    #[arg(long)]
    fast: bool,
}

/// Lines that who comes later gets.
const RECENT: usize = 2000;
/// Events that a browser may be behind.
const BEHIND: usize = 4 * RECENT;
/// Pages that are open at a time, and connections beside them.
const PAGES: usize = 32;
const CONNECTIONS: usize = 64;
/// Bytes of a request at most, and how long a browser may take to send it or to take what it gets.
const REQUEST: usize = 8192;
const PATIENCE: Duration = Duration::from_secs(10);
/// Width of the picture in pixels.
const WIDTH: usize = 480;

const PAGE: &str = include_str!("serve/page.html");
const SCRIPT: &str = include_str!("serve/page.js");
const STYLE: &str = include_str!("serve/page.css");

/// What the pipeline gives and the pages get.
#[derive(Default)]
struct Hub {
    pages: Vec<SyncSender<Arc<str>>>,
    recent: VecDeque<Arc<str>>,
    picture: Arc<[u8]>,
    pictures: u64,
    ended: bool,
}

impl Hub {
    fn send(&mut self, event: &Arc<str>) {
        self.pages.retain(|page| page.try_send(event.clone()).is_ok());
    }

    fn result(&mut self, line: &str) {
        let event: Arc<str> = format!("event: result\ndata: {line}\n\n").into();
        self.send(&event);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(event);
    }

    fn picture(&mut self, jpeg: &[u8]) {
        self.picture = jpeg.into();
        self.pictures += 1;
        let number = self.pictures;
        self.send(&format!("event: picture\ndata: {number}\n\n").into());
    }

    fn end(&mut self) {
        self.ended = true;
        self.send(&"event: end\ndata: \n\n".into());
    }

    /// A new page: first what it missed.
    fn join(&mut self) -> Receiver<Arc<str>> {
        let (to, from) = sync_channel(BEHIND);
        for event in &self.recent {
            let _ = to.try_send(event.clone());
        }
        if self.pictures > 0 {
            let _ = to.try_send(format!("event: picture\ndata: {}\n\n", self.pictures).into());
        }
        if self.ended {
            let _ = to.try_send("event: end\ndata: \n\n".into());
        }
        self.pages.push(to);
        from
    }
}

fn lock(hub: &Mutex<Hub>) -> MutexGuard<'_, Hub> {
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts something as long as it lasts.
struct Turn(Arc<AtomicUsize>);

impl Turn {
    fn take(count: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let taken = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < most).then_some(n + 1));
        taken.is_ok().then(|| Self(count.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a browser asks for.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    method: String,
    path: String,
    host: String,
}

impl Request {
    /// Reads a request up to its empty line; what may come behind is not looked at. `None`: it is none.
    fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let (mut bytes, mut filled) = ([0; REQUEST], 0);
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut request = httparse::Request::new(&mut headers);
            match request.parse(&bytes[..filled]) {
                Ok(httparse::Status::Complete(_)) => {
                    let host = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case("host"));
                    let host = host.and_then(|h| std::str::from_utf8(h.value).ok()).unwrap_or_default();
                    let (Some(method), Some(path)) = (request.method, request.path) else { return Ok(None) };
                    return Ok(Some(Self { method: method.into(), path: path.into(), host: host.trim().into() }));
                }
                Ok(httparse::Status::Partial) if filled < REQUEST => match from.read(&mut bytes[filled..])? {
                    0 => return Ok(None),
                    n => filled += n,
                },
                _ => return Ok(None),
            }
        }
    }

    /// Whether the browser means this machine. A page of elsewhere could have its own name point here, and read along.
    fn local(&self) -> bool {
        let port = |(_, port): &(&str, &str)| port.parse::<u16>().is_ok();
        let name = self.host.rsplit_once(':').filter(port).map_or(&*self.host, |(name, _)| name);
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        name.trim_end_matches('.').eq_ignore_ascii_case("localhost") || address.is_ok_and(loopback)
    }
}

fn loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn reply(to: &mut TcpStream, status: &str, kind: &str, body: &[u8]) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\nContent-Security-Policy: default-src 'self'; frame-ancestors 'none'\r\n\r\n",
        body.len()
    );
    to.write_all(&[head.as_bytes(), body].concat())
}

/// Ends a connection: what was sent and not read would take the answer along.
fn finish(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    io::copy(&mut stream.take(1 << 16), &mut io::sink()).map(|_| ())
}

/// Who serves: what there is to see, and who sees it.
struct Desk {
    hub: Arc<Mutex<Hub>>,
    /// Whether only browsers of this machine are answered.
    only_local: bool,
    pages: Arc<AtomicUsize>,
}

impl Desk {
    /// Answers one request of a connection; of `/events`, until the browser goes or does not read in time.
    fn answer(&self, to: &mut TcpStream) -> io::Result<()> {
        to.set_read_timeout(Some(PATIENCE))?;
        to.set_write_timeout(Some(PATIENCE))?;
        let Some(request) = Request::read(to)? else {
            return reply(to, "400 Bad Request", "text/plain", b"no request\n");
        };
        if self.only_local && !request.local() {
            return reply(to, "403 Forbidden", "text/plain", b"this page is for this machine\n");
        }
        if request.method != "GET" {
            return reply(to, "405 Method Not Allowed", "text/plain", b"GET only\n");
        }
        match request.path.split('?').next().unwrap_or_default() {
            "/" => reply(to, "200 OK", "text/html; charset=utf-8", PAGE.as_bytes()),
            "/page.js" => reply(to, "200 OK", "text/javascript; charset=utf-8", SCRIPT.as_bytes()),
            "/page.css" => reply(to, "200 OK", "text/css; charset=utf-8", STYLE.as_bytes()),
            "/picture" => {
                let picture = lock(&self.hub).picture.clone();
                reply(to, if picture.is_empty() { "404 Not Found" } else { "200 OK" }, "image/jpeg", &picture)
            }
            // Browsers ask for it by themselves, and complain of a 404.
            "/favicon.ico" => reply(to, "200 OK", "image/x-icon", b""),
            "/events" => match Turn::take(&self.pages, PAGES) {
                Some(_turn) => self.events(to),
                None => reply(to, "503 Service Unavailable", "text/plain", b"too many pages are open\n"),
            },
            _ => reply(to, "404 Not Found", "text/plain", b"not here\n"),
        }
    }

    fn events(&self, to: &mut TcpStream) -> io::Result<()> {
        let events = lock(&self.hub).join();
        to.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        )?;
        loop {
            match events.recv_timeout(Duration::from_secs(15)) {
                Ok(event) => to.write_all(event.as_bytes())?,
                // A comment: it finds out whether the browser is still there.
                Err(RecvTimeoutError::Timeout) => to.write_all(b":\n\n")?,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }
}

/// Takes connections, one thread each, as long as the process lives.
fn serve(listener: &TcpListener, desk: &Arc<Desk>) {
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        let taken = listener.accept().and_then(|(mut stream, _)| {
            // Beyond that it is let go without a word.
            let Some(turn) = Turn::take(&connections, PAGES + CONNECTIONS) else { return Ok(()) };
            let desk = desk.clone();
            let answer = move || {
                // An error is a browser that has gone.
                let _ = desk.answer(&mut stream).and_then(|()| finish(&mut stream));
                drop(turn);
            };
            std::thread::Builder::new().name("ssm-serve".into()).spawn(answer).map(|_| ())
        });
        if taken.is_err() {
            // No room for another one: there will be.
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The description of the pipeline, and the property of the element `source` that names what there is to see.
fn line(args: &Args, finder: &Finder) -> Result<(String, Option<&'static str>), Failure> {
    let element = |text: &str| text.split_whitespace().next().and_then(gst::ElementFactory::find).is_some();
    let (source, property) = match &args.source {
        file if Path::new(file).is_file() => ("filesrc name=source ! decodebin".into(), Some("location")),
        text if element(text) => (text.clone(), None),
        uri if uri.contains("://") => ("uridecodebin name=source".into(), Some("uri")),
        text => {
            return Err(Failure::Usage(format!("{text}: expected a file, an address, or a source such as v4l2src")));
        }
    };
    let sync = !args.fast;
    let lines = format!("ssmjson ! appsink name=lines sync={sync}");
    let start = format!("{source} ! {} ! {}", finder.convert(), finder.line);
    let line = match finder.media {
        Media::Audio => format!("{start} ! {lines}"),
        // Pictures may be left out, results not.
        Media::Video => format!(
            "{start} ! tee name=tee tee. ! queue ! {lines} \
             tee. ! queue leaky=downstream max-size-buffers=2 ! videoconvert ! videoscale ! \
             video/x-raw,width={WIDTH},pixel-aspect-ratio=1/1 ! jpegenc quality=70 ! appsink name=pictures sync={sync}"
        ),
    };
    Ok((line, property))
}

/// Calls `take` with the bytes of each buffer of an appsink.
fn each(pipeline: &gst::Pipeline, name: &str, take: impl Fn(&[u8]) + Send + 'static) {
    let Some(sink) = pipeline.by_name(name).and_then(|e| e.downcast::<gst_app::AppSink>().ok()) else { return };
    let pull = move |sink: &gst_app::AppSink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        let map = sample.buffer().and_then(|b| b.map_readable().ok()).ok_or(gst::FlowError::Error)?;
        take(&map);
        Ok(gst::FlowSuccess::Ok)
    };
    sink.set_callbacks(gst_app::AppSinkCallbacks::builder().new_sample(pull).build());
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    element::init()?;
    let finder = Finder::new(&args.element, args.media)?;
    let (line, property) = line(args, &finder)?;
    let pipeline = element::launch(&line)?;
    if let Some((source, property)) = pipeline.by_name("source").zip(property) {
        source.set_property(property, &args.source);
    }
    let bad = |e: &dyn std::fmt::Display| Failure::Usage(format!("{}: {e}", args.listen));
    let listener = TcpListener::bind(args.listen).map_err(|e| bad(&e))?;
    let address = listener.local_addr().map_err(|e| bad(&e))?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    signals::at_end(move || flag.store(true, Ordering::Release))?;

    let hub = Arc::new(Mutex::new(Hub::default()));
    let to = hub.clone();
    each(&pipeline, "lines", move |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let mut hub = lock(&to);
        text.lines().for_each(|line| hub.result(line));
    });
    let to = hub.clone();
    each(&pipeline, "pictures", move |jpeg| lock(&to).picture(jpeg));

    // Whoever started this may not read any longer.
    let tell = |line: std::fmt::Arguments<'_>| _ = writeln!(io::stdout(), "{line}");
    tell(format_args!("http://{address}"));
    let desk = Desk { hub: hub.clone(), only_local: loopback(args.listen.ip()), pages: Arc::default() };
    std::thread::spawn(move || serve(&listener, &Arc::new(desk)));
    element::follow(&pipeline, &line, |_| !stop.load(Ordering::Acquire))?;
    lock(&hub).end();
    if !stop.load(Ordering::Acquire) {
        tell(format_args!("the stream has ended; the page stays until Ctrl-C"));
    }
    while !stop.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_anything_else_is_none() {
        let read = |text: &str| Request::read(&mut text.as_bytes()).expect("memory is read");
        let request = read(
            "GET /events?x HTTP/1.1\r\nAccept: */*\r\nhost: localhost:8080\r\nContent-Length: 99999999999999999\r\n\r\n",
        );
        let request = request.expect("a request");
        assert_eq!((&*request.method, &*request.path, &*request.host), ("GET", "/events?x", "localhost:8080"));
        for text in ["", "GET", "GET / HTTP/1.1\r\n", "hello\r\n\r\n", "GET / HTTP/9\r\n\r\n", &"a".repeat(20_000)] {
            assert_eq!(read(text), None, "{}", &text[..text.len().min(40)]);
        }
        assert_eq!(read(&format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(REQUEST))), None);
    }

    #[test]
    fn only_names_of_this_machine_are_local() {
        let local = |host: &str| Request { method: "GET".into(), path: "/".into(), host: host.into() }.local();
        for host in [
            "localhost",
            "LOCALHOST:80",
            "localhost.",
            "127.0.0.1:1",
            "127.0.0.2",
            "[::1]",
            "[::1]:8080",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(local(host), "{host}");
        }
        for host in
            ["", "evil.com", "127.0.0.1.evil.com", "localhost.evil.com:80", "10.0.0.1", "[::2]:80", "localhost:x"]
        {
            assert!(!local(host), "{host}");
        }
        assert!(loopback("::ffff:127.0.0.1".parse().expect("an address")));
    }
}
