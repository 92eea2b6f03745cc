//! `ssm publish`: lines of results to an MQTT broker, each acknowledged (QoS 1).
//!
//! A stream does not wait for a broker: lines that wait are bounded in number, and where there is no room the oldest one goes
//! and is counted. A line is kept until the broker acknowledged it; after a lost connection those that were not are sent
//! again, in their order. So nothing within the bound is lost, and a line may arrive twice.

use crate::Failure;
use rumqttc::{Client, Event, MqttOptions, Packet, QoS, RecvTimeoutError};
use std::collections::VecDeque;
use std::io::BufRead;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  gst-launch-1.0 -q v4l2src ! videoconvert ! ssmevents ! ssmjson ! fdsink | ssm publish --topic cameras/door
  ssm publish --broker mqtt.local:1883 --topic films/a < found/a.mp4.jsonl

Name and password are read from the environment, MQTT_USERNAME and MQTT_PASSWORD. The connection is not encrypted: to go
over a network that others share, have a broker on this machine pass the lines on (a bridge, in mosquitto's words).";

#[derive(clap::Args)]
pub struct Args {
    /// Host and port.
    #[arg(long, default_value = "127.0.0.1:1883")]
    broker: String,
    /// Topic of every line.
    #[arg(long)]
    topic: String,
    /// Name of this client; two of one name push each other out.
    #[arg(long)]
    id: Option<String>,
    /// Lines that are kept at most while the broker is away or slow.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    buffer: u32,
    /// Seconds to go on trying after the last line.
    #[arg(long, default_value_t = 30)]
    linger: u64,
}

/// Lines on their way at a time.
const WINDOW: u16 = 100;
/// Bytes of a line at most.
const LINE: usize = 1 << 20;
/// Waits between attempts to connect.
const BACKOFF: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(5)];

/// Lines that wait, and those that were sent and are not acknowledged.
#[derive(Debug, Default)]
struct Outbox {
    waiting: VecDeque<String>,
    flying: VecDeque<String>,
    capacity: usize,
    sent: u64,
    dropped: u64,
    closed: bool,
}

impl Outbox {
    fn push(&mut self, line: String) {
        if line.len() > LINE {
            self.dropped += 1;
            return;
        }
        if self.waiting.len() + self.flying.len() >= self.capacity {
            self.dropped += 1;
            // What flies cannot be taken back: then the new one goes.
            if self.waiting.pop_front().is_none() {
                return;
            }
        }
        self.waiting.push_back(line);
    }

    /// Sends what there is room for.
    fn pump(&mut self, mut send: impl FnMut(&str) -> bool) {
        while self.flying.len() < usize::from(WINDOW) {
            let Some(line) = self.waiting.pop_front() else { return };
            if !send(&line) {
                return self.waiting.push_front(line);
            }
            self.flying.push_back(line);
        }
    }

    /// The broker has the oldest one. It acknowledges in order (MQTT 3.1.1, 4.6).
    fn acknowledged(&mut self) {
        if self.flying.pop_front().is_some() {
            self.sent += 1;
        }
    }

    /// What was not acknowledged is to be sent again, first.
    fn lost(&mut self) {
        while let Some(line) = self.flying.pop_back() {
            self.waiting.push_front(line);
        }
    }

    fn left(&self) -> usize {
        self.waiting.len() + self.flying.len()
    }
}

/// The lines, and the client while there is a connection.
#[derive(Default)]
struct Post {
    outbox: Outbox,
    client: Option<Client>,
}

impl Post {
    fn pump(&mut self, topic: &str) {
        if let Some(client) = &self.client {
            self.outbox.pump(|line| client.try_publish(topic, QoS::AtLeastOnce, false, line.as_bytes()).is_ok());
        }
    }
}

fn lock(post: &Mutex<Post>) -> MutexGuard<'_, Post> {
    post.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(post: &Mutex<Post>, topic: &str) {
    for line in std::io::stdin().lock().split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line).into_owned();
        if !line.is_empty() {
            let mut post = lock(post);
            post.outbox.push(line);
            post.pump(topic);
        }
    }
    lock(post).outbox.closed = true;
}

fn options(args: &Args) -> Result<MqttOptions, Failure> {
    let parsed = args.broker.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let (host, port) =
        parsed.ok_or_else(|| Failure::Usage(format!("--broker: expected HOST:PORT, got {:?}", args.broker)))?;
    if args.topic.is_empty() || args.topic.contains(['#', '+', '\0']) {
        return Err(Failure::Usage(format!("--topic: expected one without # and +, got {:?}", args.topic)));
    }
    let id = args.id.clone().unwrap_or_else(|| format!("ssm-{}", std::process::id()));
    let mut options = MqttOptions::new(id, host, port);
    options.set_keep_alive(Duration::from_secs(5)).set_inflight(WINDOW).set_max_packet_size(LINE, LINE + 4096);
    if let (Ok(name), Ok(password)) = (std::env::var("MQTT_USERNAME"), std::env::var("MQTT_PASSWORD")) {
        options.set_credentials(name, password);
    }
    Ok(options)
}

/// One connection, until it is lost (why) or all is done (`None`).
fn connect(options: &MqttOptions, post: &Mutex<Post>, topic: &str, end: &mut End) -> Option<String> {
    let (client, mut connection) = Client::new(options.clone(), usize::from(WINDOW));
    let why = loop {
        match connection.recv_timeout(Duration::from_millis(100)) {
            Ok(Ok(Event::Incoming(Packet::ConnAck(_)))) => {
                end.tries = 0;
                lock(post).client = Some(client.clone());
            }
            Ok(Ok(Event::Incoming(Packet::PubAck(_)))) => lock(post).outbox.acknowledged(),
            Ok(Ok(_)) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Err(error)) => break error.to_string(),
            Err(RecvTimeoutError::Disconnected) => break "the connection has ended".into(),
        }
        let mut post = lock(post);
        post.pump(topic);
        if end.is_here(&post.outbox) {
            return None;
        }
    };
    let mut post = lock(post);
    post.client = None;
    post.outbox.lost();
    Some(why)
}

/// When to stop trying.
struct End {
    linger: Duration,
    since: Option<Instant>,
    /// Attempts to connect since there was a connection.
    tries: usize,
}

impl End {
    fn is_here(&mut self, outbox: &Outbox) -> bool {
        if !outbox.closed {
            return false;
        }
        outbox.left() == 0 || self.since.get_or_insert_with(Instant::now).elapsed() >= self.linger
    }
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let options = options(args)?;
    let post = Post { outbox: Outbox { capacity: args.buffer as usize, ..Outbox::default() }, client: None };
    let post = Arc::new(Mutex::new(post));
    let (to, topic) = (post.clone(), args.topic.clone());
    std::thread::spawn(move || read(&to, &topic));
    let mut end = End { linger: Duration::from_secs(args.linger), since: None, tries: 0 };
    while let Some(why) = connect(&options, &post, &args.topic, &mut end) {
        let left = lock(&post).outbox.left();
        if end.tries == 0 {
            warn!("ssm: {}: {why}; {left} lines wait, trying again", args.broker);
        }
        std::thread::sleep(BACKOFF[end.tries.min(BACKOFF.len() - 1)]);
        end.tries += 1;
        if end.is_here(&lock(&post).outbox) {
            break;
        }
    }
    let Post { outbox, client } = &mut *lock(&post);
    drop(client.take());
    warn!("{} sent, {} dropped, {} left", outbox.sent, outbox.dropped, outbox.left());
    Ok(if outbox.left() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(capacity: usize, lines: std::ops::Range<usize>) -> Outbox {
        let mut outbox = Outbox { capacity, ..Outbox::default() };
        lines.for_each(|i| outbox.push(i.to_string()));
        outbox
    }

    #[test]
    fn the_oldest_lines_make_room_and_are_counted() {
        let mut outbox = outbox(5, 0..8);
        assert_eq!((outbox.waiting.make_contiguous().join(" "), outbox.dropped), ("3 4 5 6 7".into(), 3));
        outbox.push("x".repeat(LINE + 1));
        assert_eq!((outbox.left(), outbox.dropped), (5, 4));
        outbox.pump(|_| true);
        outbox.push("late".into());
        assert_eq!((outbox.flying.len(), outbox.waiting.len(), outbox.dropped), (5, 0, 5), "all fly: the new one goes");
    }

    #[test]
    fn what_was_not_acknowledged_is_sent_again_in_order() {
        let mut outbox = outbox(500, 0..200);
        let mut sent = vec![];
        outbox.pump(|line| {
            sent.push(line.to_owned());
            true
        });
        assert_eq!(sent.len(), usize::from(WINDOW));
        (0..3).for_each(|_| outbox.acknowledged());
        outbox.lost();
        sent.clear();
        let mut room = 4;
        outbox.pump(|line| {
            room -= 1;
            sent.push(line.to_owned());
            room > 0
        });
        assert_eq!((sent.join(" "), outbox.left(), outbox.sent), ("3 4 5 6".into(), 197, 3));
        assert_eq!(outbox.waiting.front().map(String::as_str), Some("6"), "what had no room waits");
    }
}
