//! Kafka, by librdkafka. It connects again and sends again by itself, each line once and in order (an idempotent producer); all
//! lines have one key and so go to one partition, whose broker acknowledges them in order.

use super::{End, LINE, Post, Transport, lock};
use crate::Failure;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where lines go.
pub struct Kafka {
    config: ClientConfig,
    topic: String,
    id: String,
}

impl Kafka {
    pub fn new(brokers: &str, topic: &str, id: String) -> Result<Self, Failure> {
        let port =
            |b: &str| b.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !brokers.split(',').all(port) {
            return Err(Failure::Usage(format!("--broker: expected kafka://HOST:PORT,…, got \"kafka://{brokers}\"")));
        }
        // The names that Kafka allows.
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if topic.is_empty() || topic.len() > 249 || !topic.chars().all(allowed) || [".", ".."].contains(&topic) {
            return Err(Failure::Usage(format!("--topic: expected up to 249 of a-z A-Z 0-9 . _ -, got {topic:?}")));
        }
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("client.id", &id).set("enable.idempotence", "true");
        // How long a line may wait is for the outbox to say.
        config.set("message.timeout.ms", "0").set("message.max.bytes", (LINE + 4096).to_string());
        config.set("linger.ms", "5").set("reconnect.backoff.max.ms", "5000");
        if let (Ok(name), Ok(password)) = (std::env::var("KAFKA_USERNAME"), std::env::var("KAFKA_PASSWORD")) {
            config.set("security.protocol", "SASL_PLAINTEXT").set("sasl.mechanisms", "PLAIN");
            config.set("sasl.username", name).set("sasl.password", password);
        }
        Ok(Self { config, topic: topic.to_owned(), id })
    }
}

/// What librdkafka tells, in `poll`.
struct Told {
    post: Arc<Mutex<Post>>,
    brokers: String,
    /// A loss of the connection was told, and no line has come through since.
    away: AtomicBool,
}

impl ClientContext for Told {
    fn error(&self, error: KafkaError, reason: &str) {
        // What ends the client is seen by `connect`, and of what passes the first is enough.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::Fatal) && !self.away.swap(true, Ordering::Relaxed) {
            let left = lock(&self.post).outbox.left();
            warn!("ssm: kafka://{}: {reason}; {left} lines wait, trying again", self.brokers);
        }
    }
}

impl ProducerContext for Told {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let code = match result {
            Ok(_) => None,
            Err((error, _)) => error.rdkafka_error_code(),
        };
        match code {
            None => {
                self.away.store(false, Ordering::Relaxed);
                let mut post = lock(&self.post);
                post.outbox.acknowledged();
                post.pump();
            }
            // The client goes, and its lines are sent by the next one.
            Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight | RDKafkaErrorCode::Fatal) => {}
            Some(code) => {
                warn!("ssm: kafka://{}: a line was refused: {code}", self.brokers);
                lock(&self.post).outbox.refused();
            }
        }
    }
}

impl Transport for Kafka {
    fn connect(&self, post: &Arc<Mutex<Post>>, end: &mut End) -> Option<String> {
        let brokers = self.config.get("bootstrap.servers").unwrap_or_default().to_owned();
        let told = Told { post: post.clone(), brokers, away: AtomicBool::new(false) };
        let producer: Arc<BaseProducer<Told>> = match self.config.create_with_context(told) {
            Ok(producer) => Arc::new(producer),
            Err(error) => return Some(error.to_string()),
        };
        let (to, topic, key) = (producer.clone(), self.topic.clone(), self.id.clone());
        let send = move |line: &str| to.send(BaseRecord::to(&topic).key(&key).payload(line)).is_ok();
        lock(post).send = Some(Box::new(send));
        loop {
            producer.poll(Duration::from_millis(100));
            if let Some((code, reason)) = producer.client().fatal_error() {
                return Some(format!("{code}: {reason}"));
            }
            let mut post = lock(post);
            post.pump();
            if end.is_here(&post.outbox) {
                return None;
            }
        }
    }
}
