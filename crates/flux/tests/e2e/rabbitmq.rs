//! The sink for RabbitMQ in front of a real one: nothing that was acknowledged is missing, nothing
//! else is there, and every trouble is told and mended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::cluster;
use crate::harness::rabbit::{Broker, PASSWORD};
use crate::harness::resp::{Connection, Value, encode};
use crate::harness::{
    FLUX, PATIENCE, Process, Start, command, python, repository, run, stdout, wait_until,
};

const WRITERS: u64 = 4;
const WRITES: u64 = 5_000;
const PIPELINE: u64 = 50;

fn node(broker: &Broker, vhost: &str) -> Start {
    Start::node()
        .args(&["--shards", "2"])
        .variable("FLUX_AMQP", &broker.url(vhost))
}

/// What the admin port says.
fn admin(process: &Process, path: &str) -> String {
    let url = format!("http://{}{path}", process.admin());
    let mut curl = command("curl");
    curl.args(["-sS", "--max-time", "20", &url]);
    stdout(&run(&mut curl, b""))
}

fn metric(process: &Process, name: &str) -> f64 {
    let value = crate::harness::metric(process, name);
    value.unwrap_or_else(|| panic!("{name} is missing"))
}

/// Waits for a state of the sink, as `/readyz` tells it.
fn wait_for_state(process: &Process, state: &str) {
    let deadline = Instant::now() + PATIENCE * 2;
    loop {
        let text = admin(process, "/readyz?verbose");
        assert!(
            text.starts_with("ready\n"),
            "no broker keeps the node from serving: {text}"
        );
        let line = text.lines().find(|line| line.contains("cdc-rabbitmq"));
        if line.is_some_and(|line| line.contains(state)) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "still waiting for {state:?}: {text}"
        );
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

pub(crate) struct Consumer(Child);

impl Consumer {
    pub(crate) fn start(broker: &Broker, vhost: &str, folder: &Path) -> Self {
        let child = command(FLUX)
            .args([
                "cdc-consumer",
                "--sink",
                "file:events",
                "--checkpoint",
                "mark",
                "--quiet",
            ])
            .env("FLUX_AMQP", broker.url(vhost))
            .current_dir(folder)
            .stdin(Stdio::null())
            .spawn();
        Self(child.expect("the binary starts"))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// An event, as far as these tests look at it.
#[derive(Debug)]
pub(crate) struct Seen {
    id: String,
    source: String,
    revision: u64,
    pub(crate) key: String,
    value: String,
}

pub(crate) fn events(folder: &Path) -> Vec<Seen> {
    let text = fs::read_to_string(folder.join("events")).unwrap_or_default();
    // The last line may be in the making.
    let whole = text
        .rfind('\n')
        .map_or("", |end| text.get(..end).unwrap_or_default());
    let lines = whole.lines().map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        Seen {
            id: text(&event["id"]),
            source: text(&event["source"]),
            revision: text(&event["sequence"]).parse().expect("a revision"),
            key: text(&event["subject"]),
            value: text(&event["data"]["after"]["value"]),
        }
    });
    lines.collect()
}

fn count(folder: &Path) -> usize {
    let text = fs::read(folder.join("events")).unwrap_or_default();
    text.iter().filter(|byte| **byte == b'\n').count()
}

/// What writers and the test tell each other.
#[derive(Default)]
pub(crate) struct Load {
    pub(crate) address: parking::Address,
    /// Writes that were answered.
    done: AtomicU64,
    /// Writes after which the writers pause.
    limit: AtomicU64,
}

impl Load {
    pub(crate) fn of(percent: u64) -> u64 {
        WRITERS * WRITES * percent / 100
    }

    /// Lets the writers go on to a part of all writes.
    pub(crate) fn allow(&self, percent: u64) {
        self.limit.store(Self::of(percent), Ordering::SeqCst);
    }

    /// Waits until a part of all writes was answered.
    pub(crate) fn wait(&self, percent: u64) {
        wait_long("a part of the writes", || {
            self.done.load(Ordering::SeqCst) >= Self::of(percent)
        });
    }

    /// Lets all writers begin, each on a thread of its own.
    pub(crate) fn begin(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let begin = |writer| {
            let load = Arc::clone(self);
            std::thread::spawn(move || load.write_all(writer))
        };
        (0..WRITERS).map(begin).collect()
    }

    /// One writer's keys: each is written once, or again with the same value if nobody answered.
    fn write_all(&self, writer: u64) {
        let mut next = 0;
        while next < WRITES {
            let pause = Duration::from_millis(5);
            let Some(mut connection) = self.address.connect() else {
                std::thread::park_timeout(pause);
                continue;
            };
            while next < WRITES {
                if self.done.load(Ordering::SeqCst) >= self.limit.load(Ordering::SeqCst) {
                    std::thread::park_timeout(pause);
                    continue;
                }
                let batch: Vec<u8> = (next..next + PIPELINE)
                    .flat_map(|number| {
                        let key = format!("w{writer}:{number}");
                        encode(&["SET", &key, &format!("{key}={number}")])
                    })
                    .collect();
                if connection.send(&batch).is_err() {
                    break;
                }
                let mut replies = (0..PIPELINE).map(|_| connection.reply());
                if !replies.all(|reply| reply.is_ok_and(|reply| reply == Value::ok())) {
                    break;
                }
                next += PIPELINE;
                self.done.fetch_add(PIPELINE, Ordering::SeqCst);
            }
        }
    }
}

/// As `wait_until`, for what a busy machine needs minutes for.
pub(crate) fn wait_long(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE * 4;
    while !condition() {
        assert!(Instant::now() < deadline, "still waiting for: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Where the node is now; its successor has another port.
pub(crate) mod parking {
    use std::net::{SocketAddr, TcpStream};

    use super::Connection;

    #[derive(Default)]
    pub(crate) struct Address(std::sync::atomic::AtomicU64);

    impl Address {
        pub(crate) fn set(&self, address: SocketAddr) {
            self.0.store(
                u64::from(address.port()),
                std::sync::atomic::Ordering::SeqCst,
            );
        }

        pub(super) fn connect(&self) -> Option<Connection> {
            let port = self.0.load(std::sync::atomic::Ordering::SeqCst);
            let port = u16::try_from(port).ok().filter(|port| *port > 0)?;
            let stream = TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).ok()?;
            Some(Connection::over(stream))
        }
    }
}

/// Twenty thousand writes, while the broker is killed twice, the node once and the consumer once.
fn nothing_is_lost(broker: &mut Broker) {
    let folder = tempfile::tempdir().expect("a folder");
    let consumer = Consumer::start(broker, "%2f", folder.path());
    let mut process = node(broker, "%2f").ready();
    let load = Arc::new(Load::default());
    load.address.set(process.resp());
    let writers = load.begin();
    load.allow(25);
    load.wait(10);
    wait_long("some events", || count(folder.path()) > 0);
    broker.wait_queues_durable();
    broker.kill();
    load.allow(40);
    load.wait(40);
    broker.restart();
    load.allow(60);
    wait_long("more events", || count(folder.path()) as u64 > Load::of(30));
    drop(consumer);
    load.allow(75);
    load.wait(65);
    let data = process.kill();
    process = node(broker, "%2f").over(data).ready();
    load.address.set(process.resp());
    let _consumer = Consumer::start(broker, "%2f", folder.path());
    load.allow(90);
    load.wait(80);
    broker.kill();
    load.allow(100);
    for writer in writers {
        writer.join().expect("a writer's assertions");
    }
    broker.restart();
    let mut connection = process.connect();
    let Value::Integer(keys) = connection.line("DBSIZE") else {
        panic!("DBSIZE is a number");
    };
    assert_eq!(keys.cast_unsigned(), WRITERS * WRITES);
    let all = || {
        events(folder.path())
            .into_iter()
            .map(|event| event.key)
            .collect::<BTreeSet<_>>()
    };
    wait_long("every change at the consumer", || {
        count(folder.path()) as u64 >= WRITERS * WRITES && all().len() as u64 >= WRITERS * WRITES
    });
    check_events(&events(folder.path()), 2);
    wait_long("no lag", || {
        metric(&process, "flux_cdc_rabbitmq_lag_events") == 0.0
    });
    assert!(metric(&process, "flux_cdc_rabbitmq_cursor_commits_total") >= 1.0);
    resumes_where_it_was(broker, process, folder.path());
}

/// Each key, with its value; no id twice; each of so many shards in order.
pub(crate) fn check_events(events: &[Seen], shards: usize) {
    let ids: BTreeSet<&str> = events.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids.len(), events.len(), "an id came twice");
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    for event in events {
        let number = event.key.split_once(':').map_or("", |(_, number)| number);
        assert_eq!(
            event.value,
            format!("{}={number}", event.key),
            "a value nobody wrote"
        );
        let before = last.insert(&event.source, event.revision).unwrap_or(0);
        assert!(before < event.revision, "{before} before {event:?}");
    }
    assert_eq!(last.len(), shards, "all shards have had a part");
}

/// An orderly restart of the node repeats nothing: its cursor is in its own data.
fn resumes_where_it_was(broker: &Broker, process: Process, folder: &Path) {
    let before = count(folder);
    let data = process.stop();
    let process = node(broker, "%2f").over(data).ready();
    wait_for_state(&process, "connected, 0 changes behind");
    let mut connection = process.connect();
    assert_eq!(connection.line("SET last one"), Value::ok());
    wait_until("the last change", || count(folder) > before);
    let published = metric(&process, "flux_cdc_rabbitmq_published_total");
    assert!(published <= 1.0, "{published} messages for one change");
    process.stop();
}

/// Writes the changes of the troubles, each key once.
#[derive(Default)]
struct Writer(u64);

impl Writer {
    fn write(&mut self, process: &Process) {
        self.0 += 1;
        let number = self.0;
        let line = format!("SET trouble:{number} trouble:{number}={number}");
        assert_eq!(process.connect().line(&line), Value::ok());
    }
}

const OWN: &[&str] = &["--amqp-exchange", "own", "--amqp-queue", "own.queue"];

fn troubled_node(data: Option<TempDir>, url: &str, args: &[&str]) -> Process {
    let start = Start::node().args(args).variable("FLUX_AMQP", url);
    match data {
        Some(data) => start.over(data),
        None => start.args(&["--shards", "2"]),
    }
    .ready()
}

/// Each trouble is visible, harms no write, and loses nothing once it is mended.
fn troubles_are_told_and_mended(broker: &Broker) {
    let mut writer = Writer::default();
    let mut data = None;
    let passive = [OWN, &["--amqp-declare", "false"]].concat();
    for (url, args, state, kind) in [
        (
            "amqp://127.0.0.1:1/".to_owned(),
            OWN,
            "connection refused",
            "unreachable",
        ),
        (
            broker.url_with("wr0ng", "other"),
            OWN,
            "wrong user or password",
            "login",
        ),
        (broker.url("missing"), OWN, "virtual host missing", "vhost"),
        (broker.url("locked"), OWN, "virtual host missing", "vhost"),
        (
            broker.url("other"),
            &passive[..],
            "exchange or queue missing",
            "topology",
        ),
    ] {
        let process = troubled_node(data, &url, args);
        writer.write(&process);
        wait_for_state(&process, state);
        let family = format!("flux_cdc_rabbitmq_trouble{{kind=\"{kind}\"}}");
        assert!((metric(&process, &family) - 1.0).abs() < 0.1, "{kind}");
        let log = process.stderr();
        assert!(log.contains(state), "{log}");
        assert!(!log.contains(PASSWORD) && !log.contains("wr0ng"), "{log}");
        data = Some(process.stop());
    }
    // The exchange is there, and no queue.
    declare_exchange(broker);
    let process = troubled_node(data, &broker.url("other"), &passive);
    writer.write(&process);
    wait_for_state(&process, "no queue is bound");
    assert!(metric(&process, "flux_cdc_rabbitmq_returned_total") >= 1.0);
    a_consumer_mends_it(broker, &process, &mut writer);
    process.stop();
}

/// A consumer brings its queue; then everything comes, from the first change on.
fn a_consumer_mends_it(broker: &Broker, process: &Process, writer: &mut Writer) {
    let folder = tempfile::tempdir().expect("a folder");
    let consumer = command(FLUX)
        .args(["cdc-consumer", "--exchange", "own", "--queue", "own.queue"])
        .args(["--quiet", "--sink", "file:events"])
        .env("FLUX_AMQP", broker.url("other"))
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .spawn();
    let _consumer = Consumer(consumer.expect("the binary starts"));
    writer.write(process);
    wait_until("every change", || count(folder.path()) >= 7);
    wait_for_state(process, "connected, 0 changes behind");
    let keys: BTreeSet<String> = events(folder.path())
        .into_iter()
        .map(|event| event.key)
        .collect();
    let expected = (1..=7).map(|number| format!("trouble:{number}")).collect();
    assert_eq!(keys, expected);
    stands_a_broker_that_blocks_or_hangs(broker, process, folder.path(), writer);
}

fn declare_exchange(broker: &Broker) {
    use flux_cdc::rabbitmq::{Address, Link};
    let address = Address::parse(&broker.url("other")).expect("a URL");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let link = Link::open(&address, "test")
            .await
            .expect("the broker is up");
        let durable = lapin::options::ExchangeDeclareOptions {
            durable: true,
            ..Default::default()
        };
        let kind = lapin::ExchangeKind::Topic;
        let declared =
            link.channel
                .exchange_declare("own".into(), kind, durable, Default::default());
        declared.await.expect("an exchange");
        link.close().await;
    });
}

fn stands_a_broker_that_blocks_or_hangs(
    broker: &Broker,
    process: &Process,
    folder: &Path,
    writer: &mut Writer,
) {
    let before = count(folder);
    let limit = |share| stdout(&broker.control(&["set_vm_memory_high_watermark", share]));
    limit("0.000001");
    writer.write(process);
    wait_for_state(process, "blocked by the broker");
    assert!((metric(process, "flux_cdc_rabbitmq_blocked") - 1.0).abs() < 0.1);
    limit("0.6");
    wait_until("the change behind the block", || count(folder) > before);
    broker.signal(Signal::STOP);
    writer.write(process);
    writer.write(process);
    wait_until("a lag", || {
        metric(process, "flux_cdc_rabbitmq_lag_events") >= 2.0
    });
    broker.signal(Signal::CONT);
    wait_until("the changes behind the pause", || {
        count(folder) >= before + 3
    });
    wait_for_state(process, "connected, 0 changes behind");
}

/// Both forms, read by libraries that others wrote.
fn others_can_read_it(broker: &Broker) {
    let Some(python) = python("rabbit_consumer.py") else {
        return;
    };
    let script = repository().join("crates/flux/tests/e2e/python/rabbit_consumer.py");
    for format in ["structured", "binary"] {
        let names = [
            "--amqp-exchange",
            format,
            "--amqp-queue",
            format,
            "--amqp-format",
            format,
        ];
        let process = node(broker, "other").args(&names).ready();
        // Its queue is there then.
        wait_for_state(&process, "connected");
        let mut connection = process.connect();
        for line in [
            "SET user:1 grün",
            "SET user:2 x PX 100000",
            "DEL user:1",
            "SET n 5",
        ] {
            assert!(!matches!(connection.line(line), Value::Error(_)), "{line}");
        }
        let mut consumer = command(&python);
        consumer
            .arg(&script)
            .args([&broker.url("other"), format, "4"]);
        let text = stdout(&run(&mut consumer, b""));
        let read: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let of = |key: &str| -> Vec<&serde_json::Value> {
            read.iter()
                .filter(|event| event["subject"] == key)
                .collect()
        };
        let first = of("user:1");
        assert_eq!(first.len(), 2, "{text}");
        assert_eq!(first[0]["type"], "io.fluxkv.kv.set.v1");
        assert_eq!(first[0]["routing_key"], "kv.0.set.user");
        assert_eq!(first[1]["type"], "io.fluxkv.kv.delete.v1");
        let value = if format == "binary" {
            &first[0]["data"]
        } else {
            &first[0]["data"]["after"]["value"]
        };
        assert_eq!(value, "grün", "{text}");
        assert_eq!(of("n")[0]["routing_key"], "kv.0.set.n");
        process.stop();
    }
}

/// The lines of `docs/rabbitmq.md` that are marked as tests, as they stand there.
fn the_page_does_what_it_says(broker: &Broker) {
    let page = fs::read_to_string(repository().join("docs/rabbitmq.md")).expect("a page");
    let block = page
        .split("```sh test\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let process = node(broker, "other").ready();
    let folder = tempfile::tempdir().expect("a folder");
    let mut count = 0;
    for line in block.expect("a block of tests").lines() {
        let (line, promise) = line
            .split_once(" # ")
            .expect("each line promises something");
        let line = line
            .replace(
                "flux cli",
                &format!("{FLUX} cli -p {}", process.resp().port()),
            )
            .replace("flux cdc-consumer", &format!("{FLUX} cdc-consumer"))
            .replace("localhost:9180", &process.admin().to_string());
        let mut shell = command("bash");
        shell
            .args(["-euo", "pipefail", "-c", &line])
            .env("FLUX_AMQP", broker.url("other"))
            .current_dir(folder.path());
        assert_eq!(stdout(&run(&mut shell, b"")).trim_end(), promise, "{line}");
        count += 1;
    }
    assert!(count >= 5, "{count} lines");
    process.stop();
}

#[test]
fn changes_reach_rabbitmq_whatever_happens_to_it() {
    let Some(mut broker) = Broker::start("rabbitmq") else {
        return;
    };
    nothing_is_lost(&mut broker);
    cluster::published::splits_lose_nothing(&mut broker);
    troubles_are_told_and_mended(&broker);
    others_can_read_it(&broker);
    the_page_does_what_it_says(&broker);
}
