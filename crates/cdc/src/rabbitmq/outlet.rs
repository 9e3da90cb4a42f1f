//! A connection that only publishes: one channel with confirms, one buffer for all that is to be sent.
//!
//! What is published is appended to the buffer and sent, many messages at once, whenever
//! [`Outlet::hear`] runs; that never waits for the one while the other could go on, so a broker that
//! takes nothing can still say why. Ends with an error; whoever holds it makes a new one.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::frames::{self, Content, Heard, Limits};
use super::{Address, Trouble, TroubleKind};

/// How long a broker may take to let us in.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(2);
/// Read at once.
const READ_BYTES: usize = 16 * 1024;
/// Kept of the buffer when all of it was sent.
const KEPT_BYTES: usize = 256 * 1024;

/// What there is to know from a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// A message, by its number from 1 on, or all up to it, is safe.
    Confirmed { tag: u64, is_multiple: bool },
    /// It takes nothing for now, and says why.
    Blocked(String),
    /// It takes messages again.
    Unblocked,
}

/// See the module.
pub(super) struct Outlet {
    stream: TcpStream,
    limits: Limits,
    exchange: Vec<u8>,
    /// Bytes to be sent, and how many of them were.
    out: Vec<u8>,
    sent: usize,
    /// Bytes that came, and how many of them were taken.
    input: Vec<u8>,
    taken: usize,
    sent_at: Instant,
    heard_at: Instant,
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").finish_non_exhaustive()
    }
}

impl Outlet {
    /// Connects and asks for confirms; the broker shows `name` to its operators.
    ///
    /// # Errors
    /// What kept it from opening.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub(super) async fn open(
        address: &Address,
        name: &str,
        exchange: &str,
    ) -> Result<Self, Trouble> {
        tokio::time::timeout(PATIENCE, Self::enter(address, name, exchange))
            .await
            .map_err(|_| Trouble::silent("the opening of a connection"))?
    }

    async fn enter(address: &Address, name: &str, exchange: &str) -> Result<Self, Trouble> {
        let uri = address.uri();
        let host = (uri.authority.host.as_str(), uri.authority.port);
        let stream = TcpStream::connect(host).await.map_err(of_io)?;
        stream.set_nodelay(true).map_err(of_io)?;
        let now = Instant::now();
        let mut outlet = Self {
            stream,
            limits: Limits {
                channels: 0,
                frame_bytes: frames::FRAME_BYTES_MAX,
                heartbeat_seconds: 0,
            },
            exchange: exchange.as_bytes().to_vec(),
            out: frames::GREETING.to_vec(),
            sent: 0,
            input: Vec::new(),
            taken: 0,
            sent_at: now,
            heard_at: now,
        };
        loop {
            match outlet.next().await? {
                Heard::Start => {
                    let user = &uri.authority.userinfo;
                    frames::start_ok(&mut outlet.out, name, &user.username, &user.password);
                }
                Heard::Tune(limits) => {
                    let heartbeat = uri.query.heartbeat.unwrap_or_default();
                    outlet.limits = limits.agreed(heartbeat);
                    frames::tune_ok_and_open(&mut outlet.out, outlet.limits, &uri.vhost);
                }
                Heard::Open => frames::channel_open(&mut outlet.out),
                Heard::ChannelOpen => frames::confirm_select(&mut outlet.out),
                Heard::Confirming => return Ok(outlet),
                heard @ (Heard::Confirm { .. }
                | Heard::Returned { .. }
                | Heard::Blocked(_)
                | Heard::Unblocked
                | Heard::Closed { .. }
                | Heard::Gone
                | Heard::Other) => drop(outlet.take(heard)?),
            }
        }
    }

    /// Takes a message to be sent.
    pub(super) fn publish(&mut self, routing_key: &[u8], properties: &[u8], body: &[u8]) {
        let content = Content {
            exchange: &self.exchange,
            routing_key,
            properties,
            body,
        };
        frames::publish(&mut self.out, content, self.limits.frame_bytes);
    }

    /// Sends what waits, and tells what the broker says.
    ///
    /// # Errors
    /// Why the connection has ended, or that a message was returned or refused.
    ///
    /// # Cancellation
    /// Safe to drop: nothing is lost.
    pub(super) async fn hear(&mut self) -> Result<Told, Trouble> {
        loop {
            let heard = self.next().await?;
            if let Some(told) = self.take(heard)? {
                return Ok(told);
            }
        }
    }

    /// What the broker has said already.
    ///
    /// # Errors
    /// As [`Self::hear`].
    pub(super) fn heard(&mut self) -> Result<Option<Told>, Trouble> {
        while let Some(heard) = self.parse()? {
            if let Some(told) = self.take(heard)? {
                return Ok(Some(told));
            }
        }
        Ok(None)
    }

    /// Shows now and then that this side lives, and notes if the other does not.
    ///
    /// # Errors
    /// If nothing was heard for too long.
    pub(super) fn beat(&mut self, now: Instant) -> Result<(), Trouble> {
        let interval = Duration::from_secs(self.limits.heartbeat_seconds.into());
        if interval.is_zero() {
            return Ok(());
        }
        if interval * 2 < now.saturating_duration_since(self.heard_at) {
            let detail = "no heartbeat";
            return Err(Trouble::new(TroubleKind::Unreachable, detail));
        }
        if interval / 2 <= now.saturating_duration_since(self.sent_at) && self.out.is_empty() {
            frames::heartbeat(&mut self.out);
        }
        Ok(())
    }

    /// Says farewell, for as long as that makes sense.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub(super) async fn close(mut self) {
        // A broker that does not answer will notice by itself.
        drop(tokio::time::timeout(FAREWELL, self.farewell()).await);
    }

    /// Says so, and waits for the answer. RabbitMQ leaves it to this side to end the connection.
    async fn farewell(&mut self) {
        frames::close(&mut self.out);
        while !matches!(self.next().await, Ok(Heard::Gone) | Err(_)) {}
    }

    /// What a frame tells whoever publishes.
    fn take(&mut self, heard: Heard) -> Result<Option<Told>, Trouble> {
        Ok(Some(match heard {
            Heard::Confirm {
                tag,
                is_multiple,
                is_refused: false,
            } => Told::Confirmed { tag, is_multiple },
            Heard::Confirm { .. } => {
                let detail = "the broker refused it, as a full queue does";
                return Err(Trouble::new(TroubleKind::Rejected, detail));
            }
            Heard::Returned { text, routing_key } => {
                // The rest of the key may name a client's data.
                let known: Vec<_> = routing_key.split('.').take(3).collect();
                let exchange = String::from_utf8_lossy(&self.exchange);
                let detail = format!("{text} for {} at exchange {exchange}", known.join("."));
                return Err(Trouble::new(TroubleKind::Unroutable, detail));
            }
            Heard::Blocked(reason) => Told::Blocked(reason),
            Heard::Unblocked => Told::Unblocked,
            Heard::Closed { code, text, is_all } => {
                if is_all {
                    frames::close_ok(&mut self.out);
                }
                return Err(Trouble::of_reply(code, text));
            }
            Heard::Start
            | Heard::Tune(_)
            | Heard::Open
            | Heard::ChannelOpen
            | Heard::Confirming
            | Heard::Gone
            | Heard::Other => return Ok(None),
        }))
    }

    /// The next frame, sending meanwhile.
    async fn next(&mut self) -> Result<Heard, Trouble> {
        loop {
            if let Some(heard) = self.parse()? {
                return Ok(heard);
            }
            self.send()?;
            let interest = if self.out.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            let ready = self.stream.ready(interest).await.map_err(of_io)?;
            if ready.is_readable() {
                self.receive()?;
            }
        }
    }

    fn parse(&mut self) -> Result<Option<Heard>, Trouble> {
        let waiting = self.input.get(self.taken..).unwrap_or_default();
        let read = frames::read(waiting, self.limits.frame_bytes);
        let read =
            read.map_err(|error| Trouble::new(TroubleKind::Unreachable, error.to_string()))?;
        let Some((heard, length)) = read else {
            self.input.drain(..self.taken);
            self.taken = 0;
            return Ok(None);
        };
        self.taken += length;
        Ok(Some(heard))
    }

    fn send(&mut self) -> Result<(), Trouble> {
        while let Some(waiting) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.try_write(waiting) {
                Ok(0) => return Err(closed()),
                Ok(length) => self.sent += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(of_io(error)),
            }
            self.sent_at = Instant::now();
        }
        self.out.clear();
        self.out.shrink_to(KEPT_BYTES);
        self.sent = 0;
        Ok(())
    }

    fn receive(&mut self) -> Result<(), Trouble> {
        let mut bytes = [0; READ_BYTES];
        match self.stream.try_read(&mut bytes) {
            Ok(0) => Err(closed()),
            Ok(length) => {
                self.input
                    .extend_from_slice(bytes.get(..length).unwrap_or_default());
                self.heard_at = Instant::now();
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(of_io(error)),
        }
    }
}

fn closed() -> Trouble {
    Trouble::new(TroubleKind::Unreachable, "the connection is closed")
}

fn of_io(error: io::Error) -> Trouble {
    lapin::Error::from(error).into()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A broker that says what it is told to, whatever it hears.
    struct Broker(TcpStream);

    impl Broker {
        async fn say(&mut self, channel: u16, method: (u16, u16), arguments: &[u8]) {
            let mut out = Vec::new();
            frames::say(&mut out, channel, method, |out| {
                out.extend_from_slice(arguments);
            });
            self.0.write_all(&out).await.unwrap();
        }

        /// Reads until it has heard these bytes.
        async fn hear(&mut self, expected: &[u8]) {
            let (mut heard, mut part) = (Vec::new(), [0; 4096]);
            while !heard.windows(expected.len()).any(|bytes| bytes == expected) {
                let length = self.0.read(&mut part).await.unwrap();
                assert_ne!(length, 0, "{}", String::from_utf8_lossy(&heard));
                heard.extend_from_slice(&part[..length]);
            }
        }
    }

    async fn open() -> (Outlet, Broker) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = Address::parse(&format!("amqp://u:s3cret@127.0.0.1:{port}/v")).unwrap();
        let broker = async {
            let mut broker = Broker(listener.accept().await.unwrap().0);
            broker.hear(frames::GREETING).await;
            broker.say(0, (10, 10), b"\x00\x09").await;
            broker.hear(b"\0u\0s3cret").await;
            broker.say(0, (10, 30), &[0, 9, 0, 0, 16, 0, 0, 1]).await;
            broker.hear(b"\x01v\0\0\xce").await;
            broker.say(0, (10, 41), b"\0").await;
            broker.hear(&[0, 20, 0, 10]).await;
            broker.say(1, (20, 11), &[0; 4]).await;
            broker.hear(&[0, 85, 0, 10]).await;
            broker.say(1, (85, 11), b"").await;
            broker
        };
        let outlet = Outlet::open(&address, "test", "x");
        let (outlet, broker) = tokio::join!(outlet, broker);
        (outlet.unwrap(), broker)
    }

    #[tokio::test]
    async fn what_is_published_is_sent_while_it_listens_and_confirms_come_back() {
        let (mut outlet, mut broker) = open().await;
        outlet.publish(b"kv.0.set.a", &[0, 0], b"first");
        outlet.publish(b"kv.0.set.a", &[0, 0], b"second");
        let confirms = async {
            broker.hear(b"second\xce").await;
            broker.say(1, (60, 80), &[0, 0, 0, 0, 0, 0, 0, 2, 1]).await;
            broker.say(0, (10, 60), b"\x03low").await;
            broker.say(0, (10, 61), b"").await;
        };
        let (told, ()) = tokio::join!(outlet.hear(), confirms);
        let (tag, is_multiple) = (2, true);
        assert_eq!(told, Ok(Told::Confirmed { tag, is_multiple }));
        assert_eq!(outlet.hear().await, Ok(Told::Blocked("low".to_owned())));
        assert_eq!(outlet.hear().await, Ok(Told::Unblocked));
    }

    #[tokio::test]
    async fn a_returned_message_a_refusal_and_an_end_are_troubles() {
        for (channel, method, arguments, kind) in [
            (
                1,
                (60, 50),
                &b"\x01\x38\x08NO_ROUTE\x01x\x0akv.0.set.a"[..],
                TroubleKind::Unroutable,
            ),
            (
                1,
                (60, 120),
                &[0, 0, 0, 0, 0, 0, 0, 1, 0],
                TroubleKind::Rejected,
            ),
            (
                1,
                (20, 40),
                b"\x01\x94\x04gone\x00\x3c\x00\x28",
                TroubleKind::Topology,
            ),
            (
                0,
                (10, 50),
                b"\x01\x40\x03bye\0\0\0\0",
                TroubleKind::Unreachable,
            ),
            (0, (10, 50), b"\x01", TroubleKind::Unreachable),
        ] {
            let (mut outlet, mut broker) = open().await;
            broker.say(channel, method, arguments).await;
            let trouble = outlet.hear().await.unwrap_err();
            assert_eq!(trouble.kind, kind, "{trouble}");
        }
        let (mut outlet, broker) = open().await;
        drop(broker);
        let trouble = outlet.hear().await.unwrap_err();
        assert_eq!(
            trouble.to_string(),
            "broker unreachable: the connection is closed"
        );
    }

    #[tokio::test]
    async fn a_farewell_ends_with_the_brokers_answer_while_the_connection_stands() {
        let (mut outlet, mut broker) = open().await;
        let answer = async {
            broker.hear(b"\x00\xc8\x04done").await;
            broker.say(0, frames::CLOSE_OK, b"").await;
            broker
        };
        // Without an end of its own it would wait for the broker's, which comes only afterwards.
        let ((), _still_there) = tokio::join!(outlet.farewell(), answer);
    }

    #[tokio::test]
    async fn it_beats_when_it_has_nothing_to_say_and_notices_a_silent_broker() {
        let (mut outlet, mut broker) = open().await;
        assert_eq!(outlet.limits.heartbeat_seconds, 1);
        let now = outlet.heard_at;
        outlet.beat(now).unwrap();
        assert!(outlet.out.is_empty());
        outlet.beat(now + Duration::from_millis(900)).unwrap();
        outlet.send().unwrap();
        broker.hear(&[8, 0, 0, 0, 0, 0, 0, 0xce]).await;
        let trouble = outlet.beat(now + Duration::from_millis(2100)).unwrap_err();
        assert_eq!(trouble.to_string(), "broker unreachable: no heartbeat");
    }
}
