//! `ssm serve`: results of a stream in a browser, as they come: a timeline, the newest picture, what happened.
//!
//! `/events` is a stream of server-sent events: `result` (a line of JSON as `ssmjson` writes it), `picture` (the number of
//! the newest one, to be had from `/picture`), `end`. Who comes later gets the results of the last while first; who does
//! not read in time is let go, and the browser comes back by itself.

use crate::Failure;
use crate::element::{self, Finder, Media};
use gst::prelude::*;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tiny_http::{Header, Method, Request, Response, Server};

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
/// Requests at a time. Each open page is one.
const REQUESTS: usize = 32;
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

/// Counts a request as long as it lasts.
struct Turn(Arc<AtomicUsize>);

impl Turn {
    fn take(count: &Arc<AtomicUsize>) -> Option<Self> {
        let taken = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < REQUESTS).then_some(n + 1));
        taken.is_ok().then(|| Self(count.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn header(name: &str, value: &str) -> Option<Header> {
    Header::from_bytes(name, value).ok()
}

fn reply(request: Request, code: u16, kind: &str, body: &[u8]) -> io::Result<()> {
    let mut response = Response::from_data(body).with_status_code(code);
    for (name, value) in [
        ("Content-Type", kind),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'"),
    ] {
        if let Some(header) = header(name, value) {
            response.add_header(header);
        }
    }
    request.respond(response)
}

/// Whether the browser means this machine. A page of elsewhere could have its own name point here, and read along.
fn local(request: &Request) -> bool {
    let host = request.headers().iter().find(|h| h.field.equiv("Host")).map(|h| h.value.as_str()).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    ["localhost", "127.0.0.1", "[::1]"].contains(&name)
}

/// Answers a request; of `/events`, until the browser goes.
fn answer(request: Request, hub: &Mutex<Hub>, only_local: bool) -> io::Result<()> {
    if only_local && !local(&request) {
        return reply(request, 403, "text/plain", b"this page is for this machine\n");
    }
    if *request.method() != Method::Get {
        return reply(request, 405, "text/plain", b"GET only\n");
    }
    match request.url().split('?').next().unwrap_or_default() {
        "/" => reply(request, 200, "text/html; charset=utf-8", PAGE.as_bytes()),
        "/page.js" => reply(request, 200, "text/javascript; charset=utf-8", SCRIPT.as_bytes()),
        "/page.css" => reply(request, 200, "text/css; charset=utf-8", STYLE.as_bytes()),
        "/picture" => {
            let picture = lock(hub).picture.clone();
            let code = if picture.is_empty() { 404 } else { 200 };
            reply(request, code, "image/jpeg", &picture)
        }
        // Browsers ask for it by themselves, and complain of a 404.
        "/favicon.ico" => reply(request, 204, "image/x-icon", b""),
        "/events" => {
            let events = lock(hub).join();
            // A response of the server would be held back until it fills a piece.
            let mut page = request.into_writer();
            page.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
            )?;
            page.flush()?;
            loop {
                match events.recv_timeout(Duration::from_secs(15)) {
                    Ok(event) => page.write_all(event.as_bytes())?,
                    // A comment: it finds out whether the browser is still there.
                    Err(RecvTimeoutError::Timeout) => page.write_all(b":\n\n")?,
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
                page.flush()?;
            }
        }
        _ => reply(request, 404, "text/plain", b"not here\n"),
    }
}

fn serve(server: &Server, hub: &Arc<Mutex<Hub>>, only_local: bool) {
    let requests = Arc::new(AtomicUsize::new(0));
    for request in server.incoming_requests() {
        let Some(turn) = Turn::take(&requests) else {
            let _ = reply(request, 503, "text/plain", b"too many pages are open\n");
            continue;
        };
        let hub = hub.clone();
        std::thread::spawn(move || {
            // An error is a browser that has gone.
            let _ = answer(request, &hub, only_local);
            drop(turn);
        });
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
    let server = Server::http(args.listen).map_err(|e| bad(&e))?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Release)).map_err(|e| bad(&e))?;

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
    tell(format_args!("http://{}", server.server_addr()));
    let (to, only_local) = (hub.clone(), args.listen.ip().is_loopback());
    std::thread::spawn(move || serve(&server, &to, only_local));
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
