//! `ssm publish` with Debian's mosquitto on this machine: every line arrives, also those of the time without a broker.
#![cfg(feature = "mqtt")]

use rumqttc::{Client, Event, MqttOptions, Packet, QoS};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

struct Broker {
    folder: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Broker {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("ssm-mqtt-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        // What it holds for a client that is away outlives it, in whatever way it ends.
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\nautosave_on_changes true\nautosave_interval 1\npersistence_location {}/\nuser root\n",
            folder.display()
        );
        std::fs::write(folder.join("conf"), text).expect("written");
        Self { folder, port, child: None }
    }

    fn start(&mut self) {
        let program =
            ["/usr/sbin/mosquitto", "mosquitto"].into_iter().find(|p| Path::new(p).exists()).unwrap_or("mosquitto");
        let mut command = Command::new(program);
        command.arg("-c").arg(self.folder.join("conf")).stderr(Stdio::null()).stdout(Stdio::null());
        self.child = Some(command.spawn().expect("mosquitto runs: apt install mosquitto"));
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let ended = self.child.as_mut().and_then(|c| c.try_wait().ok()).flatten();
            assert!(ended.is_none(), "mosquitto ends: {ended:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, kind: &str) {
        let id = self.child.as_ref().map(|c| c.id().to_string()).expect("it runs");
        assert!(Command::new("kill").args([kind, &id]).status().expect("kill runs").success());
    }

    /// In good order, or not.
    fn stop(&mut self, kind: &str) {
        self.signal(kind);
        let _ = self.child.take().expect("it runs").wait();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A client that comes back to its session, and what it gets.
fn subscriber(port: u16) -> Receiver<Option<String>> {
    let mut options = MqttOptions::new("reader", "127.0.0.1", port);
    options.set_clean_session(false).set_keep_alive(Duration::from_secs(5));
    let (client, mut connection) = Client::new(options, 10);
    let (to, from) = channel();
    std::thread::spawn(move || {
        client.subscribe("films/#", QoS::AtLeastOnce).expect("there is room");
        for event in connection.iter() {
            let sent = match event {
                Ok(Event::Incoming(Packet::SubAck(_))) => to.send(None),
                Ok(Event::Incoming(Packet::Publish(p))) => {
                    to.send(Some(format!("{} {}", p.topic, String::from_utf8_lossy(&p.payload))))
                }
                Ok(_) => Ok(()),
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(50));
                    Ok(())
                }
            };
            if sent.is_err() {
                return;
            }
        }
    });
    from
}

const PATIENCE: Duration = Duration::from_secs(60);

/// A broker, and what a client that has subscribed gets of it.
fn subscribed(name: &str) -> (Broker, Receiver<Option<String>>) {
    let mut broker = Broker::new(name);
    broker.start();
    let inbox = subscriber(broker.port);
    assert_eq!(inbox.recv_timeout(PATIENCE), Ok(None), "subscribed");
    (broker, inbox)
}

#[test]
fn nothing_is_lost_while_the_broker_is_away() {
    let (mut broker, inbox) = subscribed("away");
    let address = format!("127.0.0.1:{}", broker.port);
    let mut command = Command::new(env!("CARGO_BIN_EXE_ssm"));
    command.args(["publish", "--broker", &address, "--topic", "films/a", "--buffer", "500"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command runs");
    let mut input = child.stdin.take().expect("a pipe");
    let mut write =
        |lines: std::ops::Range<u32>| lines.for_each(|i| writeln!(input, "{{\"n\":{i}}}").expect("it reads"));
    let mut got = BTreeSet::new();
    let mut await_until = |n: usize| {
        while got.len() < n {
            got.extend(inbox.recv_timeout(PATIENCE).expect("a line arrives"));
        }
        got.clone()
    };
    write(0..50);
    await_until(50);
    broker.stop("-TERM");
    write(50..150);
    broker.start();
    await_until(150);
    // Lines that the broker got and did not take in. Were they not on their way yet, this would only show less.
    broker.signal("-STOP");
    write(150..250);
    std::thread::sleep(Duration::from_millis(300));
    broker.stop("-KILL");
    broker.start();
    await_until(250);
    write(250..300);
    let got = await_until(300);
    drop(input);
    let done = child.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && told.ends_with("300 sent, 0 dropped, 0 left\n"), "{told}");
    let want: BTreeSet<String> = (0..300).map(|i| format!("films/a {{\"n\":{i}}}")).collect();
    assert_eq!(got, want);
}

#[test]
fn a_file_waits_for_the_broker() {
    let (mut broker, inbox) = subscribed("file");
    let lines = broker.folder.join("lines");
    std::fs::write(&lines, (0..3000).map(|i| format!("{i}\n")).collect::<String>()).expect("written");
    let publish = |port: u16, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ssm"));
        command.args(["publish", "--broker", &format!("127.0.0.1:{port}"), "--topic", "films/b", "--buffer", "50"]);
        let done =
            command.args(more).stdin(std::fs::File::open(&lines).expect("it is there")).output().expect("it runs");
        (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let (good, told) = publish(broker.port, &[]);
    assert!(good && told.ends_with("3000 sent, 0 dropped, 0 left\n"), "{told}");
    for i in 0..3000 {
        assert_eq!(inbox.recv_timeout(PATIENCE), Ok(Some(format!("films/b {i}"))));
    }
    broker.stop("-TERM");
    let (good, told) = publish(broker.port, &["--linger", "0"]);
    assert!(!good && told.ends_with("0 sent, 0 dropped, 50 left, and those not read yet\n"), "{told}");
}

#[test]
fn a_signal_ends_it_behind_the_last_line() {
    let (broker, inbox) = subscribed("signal");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ssm"));
    command.args(["publish", "--broker", &format!("127.0.0.1:{}", broker.port), "--topic", "films/c"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command runs");
    let mut input = child.stdin.take().expect("a pipe");
    writeln!(input, "1").expect("it reads");
    assert_eq!(inbox.recv_timeout(PATIENCE), Ok(Some("films/c 1".into())));
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill runs").success());
    writeln!(input, "2").expect("it reads");
    let done = child.wait_with_output().expect("it ends, though its input does not");
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && told.ends_with("2 sent, 0 dropped, 0 left\n"), "{told}");
    drop(input);
}

#[test]
fn without_a_broker_it_says_what_is_left() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ssm"));
        let mut child = command
            .arg("publish")
            .args(args)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command runs");
        let mut input = child.stdin.take().expect("a pipe");
        // Bad arguments are told before anything is read.
        let _ = input.write_all(b"1\n2\n3\n4\n5\n");
        drop(input);
        let done = child.wait_with_output().expect("it ends");
        assert!(!done.status.success());
        String::from_utf8_lossy(&done.stderr).into_owned()
    };
    let told = run(&["--broker", &format!("127.0.0.1:{port}"), "--topic", "a", "--linger", "0", "--buffer", "3"]);
    assert!(told.ends_with("0 sent, 2 dropped, 3 left\n"), "{told}");
    assert!(run(&["--topic", "a/#"]).contains("--topic: expected 1 to 1024 bytes without # and +"));
    assert!(run(&["--topic", "a", "--broker", "nowhere"]).contains("--broker: expected HOST:PORT"));
}
