//! `flux cdc-consumer` in front of a real RabbitMQ: what it prints, keeps, acknowledges and survives.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use flux_cdc::rabbitmq::{Address, Link, Topology};
use lapin::BasicProperties;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use rustix::process::Signal;

use crate::harness::rabbit::Broker;
use crate::harness::{FLUX, command, run, wait_until};

/// What a test does with the broker itself.
struct Desk {
    runtime: tokio::runtime::Runtime,
    link: Link,
    topology: Topology,
}

impl Desk {
    fn open(broker: &Broker, queue: &str) -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let topology = Topology {
            queue: queue.to_owned(),
            bindings: vec![format!("kv.0.set.{queue}")],
            ..Topology::default()
        };
        let address = Address::parse(&broker.url("%2f")).expect("a URL");
        let link = runtime.block_on(async {
            let link = Link::open(&address, "test")
                .await
                .expect("the broker is up");
            topology
                .prepare(&link.channel)
                .await
                .expect("what is declared");
            let confirms = ConfirmSelectOptions::default();
            link.channel
                .confirm_select(confirms)
                .await
                .expect("confirms");
            link
        });
        Self {
            runtime,
            link,
            topology,
        }
    }

    /// Publishes bodies, and waits until the queue holds them. A queue that has no leader yet, as
    /// just after a start of the broker, refuses them: they are sent again.
    fn publish(&self, bodies: impl IntoIterator<Item = Vec<u8>>) {
        let mut left: Vec<Vec<u8>> = bodies.into_iter().collect();
        wait_until("the queue takes everything", || {
            left = self
                .runtime
                .block_on(self.publish_once(std::mem::take(&mut left)));
            left.is_empty()
        });
    }

    /// Publishes bodies, and returns those that were refused.
    async fn publish_once(&self, bodies: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let key = format!("kv.0.set.{}", self.topology.queue);
        let mut confirms = Vec::new();
        for body in bodies {
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_content_type("application/cloudevents+json".into());
            let options = BasicPublishOptions {
                mandatory: true,
                ..BasicPublishOptions::default()
            };
            let exchange = self.topology.exchange.as_str().into();
            let channel = &self.link.channel;
            let confirm =
                channel.basic_publish(exchange, key.as_str().into(), options, &body, properties);
            let confirm = confirm.await.expect("it is sent");
            confirms.push((body, confirm));
        }
        let mut refused = Vec::new();
        for (body, confirm) in confirms {
            let confirm = confirm.await.expect("the broker answers");
            if !confirm.is_ack() || confirm.take_message().is_some() {
                refused.push(body);
            }
        }
        refused
    }

    /// Messages that wait in a queue.
    fn waiting(&self, queue: &str) -> u32 {
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let channel = &self.link.channel;
        let declared = channel.queue_declare(queue.into(), passive, FieldTable::default());
        self.runtime
            .block_on(declared)
            .expect("the queue is there")
            .message_count()
    }

    /// Takes one message for good.
    fn take(&self, queue: &str) -> Option<Vec<u8>> {
        let options = BasicGetOptions { no_ack: true };
        let got = self.link.channel.basic_get(queue.into(), options);
        let got = self.runtime.block_on(got).expect("the queue is there");
        got.map(|message| message.delivery.data)
    }
}

fn event(revision: u64) -> Vec<u8> {
    serde_json::json!({
        "specversion": "1.0", "id": format!("0:1:{revision}"), "source": "/flux/test/shards/0",
        "type": "io.fluxkv.kv.set.v1", "subject": "k", "time": "2026-11-23T01:33:23.241281Z",
        "data": {
            "op": "c", "after": {"key": "k", "value": revision.to_string(), "encoding": "utf8"},
            "source": {"shard": 0, "revision": revision.to_string()},
        },
    })
    .to_string()
    .into_bytes()
}

fn consumer(broker: &Broker, folder: &Path, args: &[&str]) -> std::process::Command {
    let mut command = command(FLUX);
    command
        .arg("cdc-consumer")
        .args(args)
        .env("FLUX_AMQP", broker.url("%2f"))
        .current_dir(folder);
    command
}

/// The revisions in a file of events, in their order.
fn revisions(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).expect("a whole line of JSON");
        let id = event["id"].as_str().expect("an id");
        id.rsplit(':')
            .next()
            .and_then(|text| text.parse().ok())
            .expect("a revision")
    });
    lines.collect()
}

struct Running(Child);

impl Running {
    fn start(command: &mut std::process::Command) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Self(child.expect("the binary starts"))
    }

    fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_raw(self.0.id().cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("it runs");
    }

    /// The end, with what it said last on standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let stderr = self.0.stderr.take().expect("piped");
        let lines: Vec<String> = BufReader::new(stderr)
            .lines()
            .map_while(Result::ok)
            .collect();
        let status = self.0.wait().expect("a child can be waited for");
        (status.code(), lines.last().cloned().unwrap_or_default())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Most have ended by themselves.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn the_consumer_hands_on_each_event_once_whatever_kills_it() {
    let Some(mut broker) = Broker::start("cdc_consumer") else {
        return;
    };
    prints_what_comes(&broker);
    sets_aside_what_is_no_event(&broker);
    survives_kills(&broker);
    stops_in_order(&broker);
    waits_for_a_broker_that_is_away(&mut broker);
}

fn prints_what_comes(broker: &Broker) {
    let folder = tempfile::tempdir().expect("a folder");
    let desk = Desk::open(broker, "prints");
    desk.publish((1..=5).map(event));
    let args = [
        "--queue",
        "prints",
        "--bind",
        "kv.0.set.prints",
        "--max",
        "3",
        "--format",
        "pretty",
    ];
    let output = run(&mut consumer(broker, folder.path(), &args), b"");
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text.lines().count(), 3, "{text}");
    assert_eq!(
        text.lines().next(),
        Some("01:33:23.241  SET     k = \"1\"  rev=1  shard=0")
    );
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert!(
        stderr.ends_with("flux: 3 events, 0 duplicates skipped\n"),
        "{stderr}"
    );
    assert!(!stderr.contains("flux2026secure"), "{stderr}");
    // The last two were not acknowledged; JSON is what a pipe gets.
    let args = [
        "--queue",
        "prints",
        "--bind",
        "kv.0.set.prints",
        "--idle-exit",
        "1s",
    ];
    let output = run(&mut consumer(broker, folder.path(), &args), b"");
    let expected = [event(4), b"\n".to_vec(), event(5), b"\n".to_vec()].concat();
    assert_eq!(
        String::from_utf8(output.stdout),
        String::from_utf8(expected)
    );
}

fn sets_aside_what_is_no_event(broker: &Broker) {
    let folder = tempfile::tempdir().expect("a folder");
    let desk = Desk::open(broker, "poison");
    desk.publish([event(1), b"poison".to_vec(), event(2), event(1), event(3)]);
    let args = [
        "--queue",
        "poison",
        "--bind",
        "kv.0.set.poison",
        "--max",
        "3",
        "--sink",
        "file:out",
    ];
    let output = run(&mut consumer(broker, folder.path(), &args), b"");
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert!(
        stderr.ends_with("flux: 3 events, 1 duplicates skipped, 1 unreadable messages set aside\n"),
        "{stderr}"
    );
    assert_eq!(revisions(&folder.path().join("out")), [1, 2, 3]);
    wait_until("the dead letter", || {
        desk.take("flux.cdc.dead").as_deref() == Some(b"poison")
    });
    wait_until("all is acknowledged", || desk.waiting("poison") == 0);
}

/// Killed at different moments, with a checkpoint: every event once, in order.
fn survives_kills(broker: &Broker) {
    const COUNT: u64 = 4_000;
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let desk = Desk::open(broker, "kills");
    desk.publish((1..=COUNT).map(event));
    let args = [
        "--queue",
        "kills",
        "--bind",
        "kv.0.set.kills",
        "--sink",
        "file:out",
        "--checkpoint",
        "mark",
        "--ack-every",
        "37",
        "--idle-exit",
        "2s",
    ];
    for part in 1..4 {
        let running = Running::start(&mut consumer(broker, folder.path(), &args));
        let enough = usize::try_from(COUNT * part / 5).expect("small");
        wait_until("a part of the events", || {
            fs::read_to_string(&out).is_ok_and(|text| text.lines().count() > enough)
        });
        running.signal(Signal::KILL);
        running.end();
    }
    let running = Running::start(&mut consumer(broker, folder.path(), &args));
    assert_eq!(running.end().0, Some(0));
    let seen = revisions(&out);
    assert!(seen.iter().copied().eq(1..=COUNT), "{} lines", seen.len());
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len());
    wait_until("all is acknowledged", || desk.waiting("kills") == 0);
}

fn stops_in_order(broker: &Broker) {
    let folder = tempfile::tempdir().expect("a folder");
    let desk = Desk::open(broker, "stops");
    desk.publish((1..=10).map(event));
    let args = [
        "--queue",
        "stops",
        "--bind",
        "kv.0.set.stops",
        "--ack-every",
        "500",
        "--ack-interval",
        "1h",
    ];
    let mut running = Running::start(&mut consumer(broker, folder.path(), &args));
    let stdout = running.0.stdout.take().expect("piped");
    let lines: Vec<_> = BufReader::new(stdout).lines().take(10).collect();
    assert_eq!(lines.len(), 10);
    running.signal(Signal::TERM);
    let (code, last) = running.end();
    assert_eq!(
        (code, last.as_str()),
        (Some(0), "flux: 10 events, 0 duplicates skipped")
    );
    wait_until("all is acknowledged", || desk.waiting("stops") == 0);
}

fn waits_for_a_broker_that_is_away(broker: &mut Broker) {
    let folder = tempfile::tempdir().expect("a folder");
    let queue = ["--queue", "away", "--bind", "kv.0.set.away"];
    let desk = Desk::open(broker, "away");
    desk.publish([event(1)]);
    let args = [&queue[..], &["--max", "2"]].concat();
    let mut running = Running::start(&mut consumer(broker, folder.path(), &args));
    let stdout = running.0.stdout.take().expect("piped");
    let mut lines = BufReader::new(stdout).lines();
    assert!(lines.next().is_some_and(|line| line.is_ok()));
    drop(desk);
    broker.wait_queues_durable();
    broker.kill();
    let once = [&queue[..], &["--no-retry"]].concat();
    let output = run(&mut consumer(broker, folder.path(), &once), b"");
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(69), "{stderr}");
    assert!(
        stderr.ends_with("broker unreachable: connection refused\n"),
        "{stderr}"
    );
    broker.restart();
    Desk::open(broker, "away").publish([event(2)]);
    let (code, last) = running.end();
    assert_eq!(code, Some(0), "{last}");
    let url = broker.url_with("wr0ng", "%2f");
    let wrong = [&queue[..], &["--no-retry", "--amqp", &url]].concat();
    let output = run(&mut consumer(broker, folder.path(), &wrong), b"");
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(69), "{stderr}");
    assert!(
        stderr.contains("wrong user or password") && !stderr.contains("wr0ng"),
        "{stderr}"
    );
}
