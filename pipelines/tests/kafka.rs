//! `ssm publish` with librdkafka's mock cluster on this machine: every line arrives once and in order, also those of the time
//! without brokers.
#![cfg(feature = "kafka")]

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

fn publish(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ssm"));
    command.arg("publish").args(args).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command runs")
}

fn told(child: Child) -> (bool, String) {
    let done = child.wait_with_output().expect("it ends");
    (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
}

/// What a topic of one partition holds: keys and lines.
struct Reader(BaseConsumer, Vec<String>);

impl Reader {
    fn new(brokers: &str, topic: &str) -> KafkaResult<Self> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("group.id", "reader").set("reconnect.backoff.max.ms", "200");
        let consumer: BaseConsumer = config.create()?;
        let mut place = TopicPartitionList::new();
        place.add_partition_offset(topic, 0, Offset::Beginning)?;
        consumer.assign(&place)?;
        Ok(Self(consumer, vec![]))
    }

    fn wait(&mut self, lines: usize) {
        let start = Instant::now();
        while self.1.len() < lines {
            assert!(start.elapsed() < PATIENCE, "{} of {lines} lines came", self.1.len());
            if let Some(Ok(message)) = self.0.poll(Duration::from_millis(100)) {
                let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
                self.1.push(format!("{} {}", text(message.key()), text(message.payload())));
            }
        }
    }
}

#[test]
fn nothing_is_lost_while_the_brokers_are_away() {
    let cluster: MockCluster<'_, DefaultProducerContext> = MockCluster::new(2).expect("a mock cluster");
    cluster.create_topic("films", 1, 1).expect("a topic");
    let brokers = cluster.bootstrap_servers();
    let mut reader = Reader::new(&brokers, "films").expect("a reader");
    let address = format!("kafka://{brokers}");
    let mut child = publish(&["--broker", &address, "--topic", "films", "--id", "door", "--buffer", "500"]);
    let mut input = child.stdin.take().expect("a pipe");
    let mut write =
        |lines: std::ops::Range<u32>| lines.for_each(|i| writeln!(input, "{{\"n\":{i}}}").expect("it reads"));
    write(0..50);
    reader.wait(50);
    let all = |go: &dyn Fn(i32) -> KafkaResult<()>| (1..=2).for_each(|id| go(id).expect("a broker of the cluster"));
    all(&|id| cluster.broker_down(id));
    write(50..150);
    all(&|id| cluster.broker_up(id));
    reader.wait(150);
    // An answer that does not come through: the broker has the lines or not, and they are sent again.
    let lost = RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT;
    cluster.request_errors(RDKafkaApiKey::Produce, &[lost, lost]);
    write(150..300);
    reader.wait(300);
    drop(input);
    let (good, told) = told(child);
    assert!(good && told.ends_with("300 sent, 0 dropped, 0 left\n"), "{told}");
    let want: Vec<String> = (0..300).map(|i| format!("door {{\"n\":{i}}}")).collect();
    assert_eq!(reader.1, want);
}

#[test]
fn without_brokers_it_says_what_is_left() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let run = |args: &[&str]| {
        let mut child = publish(args);
        // Bad arguments are told before anything is read.
        let _ = child.stdin.take().expect("a pipe").write_all(b"1\n2\n3\n4\n5\n");
        let (good, told) = told(child);
        assert!(!good, "{told}");
        told
    };
    let broker = format!("kafka://127.0.0.1:{port}");
    let told = run(&["--broker", &broker, "--topic", "a", "--linger", "1", "--buffer", "3"]);
    assert!(told.ends_with("0 sent, 2 dropped, 3 left\n"), "{told}");
    assert!(told.contains("lines wait, trying again"), "{told}");
    assert!(run(&["--topic", "a/b", "--broker", &broker]).contains("--topic: expected up to 249"));
    for bad in ["kafka://", "kafka://host", "kafka://host:1,", "kafka://host:99999"] {
        assert!(run(&["--topic", "a", "--broker", bad]).contains("--broker: expected kafka://HOST:PORT"), "{bad}");
    }
}
