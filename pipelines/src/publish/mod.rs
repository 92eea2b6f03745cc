//! `ssm publish`: lines of results to a broker, MQTT or Kafka, each acknowledged.
//!
//! A stream does not wait for a broker: lines that wait are bounded in number, and where there is no room the oldest one goes
//! and is counted. A file is read as there is room. A line is kept until the broker acknowledged it; after a lost connection
//! those that were not are sent again, in their order. So nothing within the bound is lost, and a line may arrive twice.

#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "mqtt")]
mod mqtt;

use crate::Failure;
use crate::signals;
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io::BufRead;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Examples for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  gst-launch-1.0 -q v4l2src ! videoconvert ! ssmevents ! ssmjson ! fdsink | ssm publish --topic cameras/door
  ssm publish --broker mqtt.local:1883 --topic films/a < found/a.mp4.jsonl
  ssm publish --broker kafka://10.0.0.1:9092,10.0.0.2:9092 --topic films --id camera-7 < found/a.mp4.jsonl

Name and password are read from the environment, MQTT_USERNAME and MQTT_PASSWORD, or KAFKA_USERNAME and KAFKA_PASSWORD (SASL
PLAIN). The connection is not encrypted: to go over a network that others share, have a broker on this machine pass the lines on
(a bridge, in mosquitto's words).";

#[derive(clap::Args)]
pub struct Args {
    /// Host and port of an MQTT broker, or `kafka://` and those of some Kafka brokers, separated by commas.
    #[arg(long, default_value = "127.0.0.1:1883")]
    broker: String,
    /// Topic of every line.
    #[arg(long)]
    topic: String,
    /// Name of this client, by default another one each time. Two of one name push each other out (MQTT); it is the key of every
    /// line, and lines of one key stay in order (Kafka).
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
    /// Of a file there is more that was not read.
    unread: bool,
    /// When the last line was sent.
    flown: Option<Instant>,
    /// Connections that were lost right behind a line, one after another, without one that was acknowledged; since when.
    strikes: u32,
    struck: Option<Instant>,
    /// How long that has to go on before a line is given up.
    grace: Duration,
}

/// Strikes after which one line goes at a time, and after which that one is given up: it may be what the broker ends the
/// connection for.
const ALONE: u32 = 2;
const HOPELESS: u32 = 5;
/// A connection that is ended for a line ends so soon behind it.
const SOON: Duration = Duration::from_secs(2);
/// [`Outbox::grace`]: a broker that starts again and again is not to cost a line.
const GRACE: Duration = Duration::from_secs(60);

impl Outbox {
    fn push(&mut self, line: String) {
        if line.len() > LINE {
            self.dropped += 1;
            return;
        }
        if self.is_full() {
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
        let window = if self.strikes < ALONE { usize::from(WINDOW) } else { 1 };
        while self.flying.len() < window {
            let Some(line) = self.waiting.pop_front() else { return };
            if !send(&line) {
                return self.waiting.push_front(line);
            }
            self.flying.push_back(line);
            self.flown = Some(Instant::now());
        }
    }

    /// The broker has the oldest one. Brokers acknowledge in order.
    fn acknowledged(&mut self) {
        if self.flying.pop_front().is_some() {
            self.sent += 1;
            (self.strikes, self.struck) = (0, None);
        }
    }

    /// The broker will never take the oldest one.
    #[cfg(feature = "kafka")]
    fn refused(&mut self) {
        if self.flying.pop_front().is_some() {
            self.dropped += 1;
        }
    }

    /// What was not acknowledged is to be sent again, first.
    fn lost(&mut self) {
        if !self.flying.is_empty() && self.flown.is_some_and(|at| at.elapsed() < SOON) {
            self.strikes += 1;
            let since = *self.struck.get_or_insert_with(Instant::now);
            if self.strikes >= HOPELESS && since.elapsed() >= self.grace && self.flying.pop_front().is_some() {
                self.dropped += 1;
                (self.strikes, self.struck) = (0, None);
            }
        }
        while let Some(line) = self.flying.pop_back() {
            self.waiting.push_front(line);
        }
    }

    fn is_full(&self) -> bool {
        self.left() >= self.capacity
    }

    fn left(&self) -> usize {
        self.waiting.len() + self.flying.len()
    }
}

/// Gives a line to a connection; no, if there is no room.
type Way = Box<dyn Fn(&str) -> bool + Send>;

/// The lines, and the way out while there is a connection.
#[derive(Default)]
struct Post {
    outbox: Outbox,
    send: Option<Way>,
}

impl Post {
    fn pump(&mut self) {
        if let Some(send) = &self.send {
            self.outbox.pump(send);
        }
    }
}

/// A kind of broker.
trait Transport {
    /// One connection, until it is lost (why) or all is done (`None`).
    fn connect(&self, post: &Arc<Mutex<Post>>, end: &mut End) -> Option<String>;
}

fn transport(args: &Args) -> Result<Box<dyn Transport>, Failure> {
    // Processes in containers have the same numbers.
    let id = args.id.clone().unwrap_or_else(|| format!("ssm-{:012x}", RandomState::new().hash_one(0) >> 16));
    match args.broker.strip_prefix("kafka://") {
        #[cfg(feature = "kafka")]
        Some(brokers) => Ok(Box::new(kafka::Kafka::new(brokers, &args.topic, id)?)),
        #[cfg(not(feature = "kafka"))]
        Some(_) => Err(Failure::Usage(format!("--broker: {}: this build has no feature kafka", args.broker))),
        #[cfg(feature = "mqtt")]
        None => Ok(Box::new(mqtt::Mqtt::new(&args.broker, &args.topic, id)?)),
        #[cfg(not(feature = "mqtt"))]
        None => Err(Failure::Usage(format!("--broker: {}: this build has no feature mqtt", args.broker))),
    }
}

fn lock(post: &Mutex<Post>) -> MutexGuard<'_, Post> {
    post.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the lines. Those of a file wait for room, until for `patience` there was none.
fn read(post: &Mutex<Post>, patience: Duration) {
    let is_file = std::fs::metadata("/dev/stdin").is_ok_and(|m| m.is_file());
    for line in std::io::stdin().lock().split(b'\n') {
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                // What else there was is left.
                warn!("standard input: {error}");
                lock(post).outbox.unread = true;
                break;
            }
        };
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.is_empty() {
            continue;
        }
        let since = Instant::now();
        while is_file && lock(post).outbox.is_full() {
            if since.elapsed() >= patience || lock(post).outbox.closed {
                // So that one is left, as it is.
                lock(post).outbox.unread = true;
                lock(post).outbox.closed = true;
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut post = lock(post);
        if post.outbox.closed {
            // After a signal: whoever writes may never end.
            post.outbox.unread = true;
            return;
        }
        post.outbox.push(line);
        post.pump();
    }
    lock(post).outbox.closed = true;
}

/// At a signal what was written before it is still sent.
fn end_at_signals(post: &Arc<Mutex<Post>>) -> Result<(), Failure> {
    let post = post.clone();
    let close = move || {
        // Whoever writes the lines ends at the same signal, most likely, and its last ones are on the way.
        std::thread::sleep(Duration::from_millis(500));
        lock(&post).outbox.closed = true;
    };
    signals::at_end(move || _ = std::thread::spawn(close))
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
    let transport = transport(args)?;
    let outbox = Outbox { capacity: args.buffer as usize, grace: GRACE, ..Outbox::default() };
    let post = Arc::new(Mutex::new(Post { outbox, send: None }));
    let to = post.clone();
    let linger = Duration::from_secs(args.linger);
    std::thread::spawn(move || read(&to, linger));
    end_at_signals(&post)?;
    let mut end = End { linger, since: None, tries: 0 };
    loop {
        let lost = transport.connect(&post, &mut end);
        // A client that goes may still tell of its lines: it must not find them locked.
        let send = lock(&post).send.take();
        drop(send);
        lock(&post).outbox.lost();
        let Some(why) = lost else { break };
        if end.tries == 0 {
            let left = lock(&post).outbox.left();
            warn!("ssm: {}: {why}; {left} lines wait, trying again", args.broker);
        }
        std::thread::sleep(BACKOFF[end.tries.min(BACKOFF.len() - 1)]);
        end.tries += 1;
        if end.is_here(&lock(&post).outbox) {
            break;
        }
    }
    let outbox = &lock(&post).outbox;
    let more = if outbox.unread { ", and those not read yet" } else { "" };
    warn!("{} sent, {} dropped, {} left{more}", outbox.sent, outbox.dropped, outbox.left());
    let lost = outbox.left() > 0 || outbox.dropped > 0 || outbox.unread;
    Ok(if lost { ExitCode::FAILURE } else { ExitCode::SUCCESS })
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

    #[test]
    fn a_line_that_ends_every_connection_is_given_up() {
        let mut outbox = outbox(500, 0..10);
        let (mut taken, mut connections) = (vec![], 0);
        while outbox.left() > 0 && connections < 50 {
            connections += 1;
            // The broker takes lines up to the one that it ends the connection for.
            let mut flying = vec![];
            loop {
                outbox.pump(|line| {
                    flying.push(line.to_owned());
                    true
                });
                if flying.is_empty() || flying[0] == "3" {
                    break;
                }
                taken.push(flying.remove(0));
                outbox.acknowledged();
            }
            outbox.lost();
        }
        assert_eq!((taken.join(" "), outbox.dropped, outbox.sent), ("0 1 2 4 5 6 7 8 9".into(), 1, 9));
        assert!(connections <= 8, "{connections}");
    }
}
