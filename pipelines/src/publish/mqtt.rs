//! MQTT 3.1.1 with QoS 1. The broker acknowledges in the order in which it got the lines (4.6).

use super::{End, LINE, Post, Transport, WINDOW, lock};
use crate::Failure;
use rumqttc::{Client, Event, MqttOptions, Packet, QoS};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bytes of a topic at most.
const TOPIC: usize = 1024;

/// Where lines go.
pub struct Mqtt {
    options: MqttOptions,
    topic: String,
}

impl Mqtt {
    pub fn new(broker: &str, topic: &str, id: String) -> Result<Self, Failure> {
        let parsed = broker.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        let (host, port) =
            parsed.ok_or_else(|| Failure::Usage(format!("--broker: expected HOST:PORT, got {broker:?}")))?;
        if topic.is_empty() || topic.len() > TOPIC || topic.contains(['#', '+', '\0']) {
            let expected = format!("1 to {TOPIC} bytes without # and +");
            return Err(Failure::Usage(format!("--topic: expected {expected}, got {topic:?}")));
        }
        let mut options = MqttOptions::new(id, host, port);
        options.set_keep_alive(Duration::from_secs(5)).set_inflight(WINDOW).set_max_packet_size(LINE, LINE + 2 * TOPIC);
        match (std::env::var("MQTT_USERNAME"), std::env::var("MQTT_PASSWORD")) {
            (Ok(name), password) => _ = options.set_credentials(name, password.unwrap_or_default()),
            (Err(_), Ok(_)) => return Err(Failure::Usage("MQTT_PASSWORD is set, MQTT_USERNAME is not".into())),
            (Err(_), Err(_)) => {}
        }
        Ok(Self { options, topic: topic.to_owned() })
    }
}

impl Transport for Mqtt {
    fn connect(&self, post: &Arc<Mutex<Post>>, end: &mut End) -> Option<String> {
        let (client, mut connection) = Client::new(self.options.clone(), usize::from(WINDOW));
        // A thread of its own: a wait that is given up would take half a connection, or half a line, with it.
        let (tell, events) = channel();
        let listen = move || {
            for event in connection.iter() {
                let lost = event.is_err();
                if tell.send(event).is_err() || lost {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("mqtt".into()).spawn(listen) {
            return Some(error.to_string());
        }
        loop {
            match events.recv_timeout(Duration::from_millis(100)) {
                Ok(Ok(Event::Incoming(Packet::ConnAck(_)))) => {
                    // A broker may take connections and refuse lines.
                    if lock(post).outbox.left() == 0 {
                        end.tries = 0;
                    }
                    let (client, topic) = (client.clone(), self.topic.clone());
                    let send = move |line: &str| client.try_publish(&topic, QoS::AtLeastOnce, false, line).is_ok();
                    lock(post).send = Some(Box::new(send));
                }
                Ok(Ok(Event::Incoming(Packet::PubAck(_)))) => {
                    end.tries = 0;
                    lock(post).outbox.acknowledged();
                }
                Ok(Ok(_)) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Err(error)) => return Some(error.to_string()),
                Err(RecvTimeoutError::Disconnected) => return Some("the connection has ended".into()),
            }
            let mut post = lock(post);
            post.pump();
            if end.is_here(&post.outbox) {
                return None;
            }
        }
    }
}
