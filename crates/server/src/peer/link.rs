//! A link: one connection to another node on which this node asks and the other answers.
//!
//! It connects when something is to be sent, and again after a break. Everything that is asked in
//! one turn of the runtime's loop goes out in one write. A call that was not sent says
//! *unreachable*; one that was, and whose answer did not come, says *broken*: what became of it is
//! then not known. A peer that is silent while answers are due is asked for a sign of life, and
//! the connection is given up if none comes: TCP alone would wait for minutes.
//!
//! Lock order: the outbox's lock is a leaf.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flux_env::{Clock, Instant};
use flux_raft::PeerError;
use flux_raft::network::frame::{FrameKind, PeerDecoder, PeerFrame, write_peer_frame};
use flux_types::{NodeId, limits};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::dial::dial;
use super::handshake::{self, Greeting, HandshakeError, Welcome};
use super::traffic::{Traffic, Way};

/// Pause after a connection that did not come about, doubled up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Silence, while answers are due, after which a sign of life is asked for, and after which the
/// connection is given up.
const PING_AFTER: Duration = Duration::from_millis(500);
const DEAD_AFTER: Duration = Duration::from_millis(2000);
/// How often silence is looked for.
const WATCH: Duration = Duration::from_millis(100);
/// Unsent bytes after which nothing more is taken.
const OUTBOX_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A buffer that has grown beyond this is not kept.
const BUFFER_BYTES_KEPT: usize = 1024 * 1024;
/// Call of a frame that nobody waits for.
const NO_CALL: u64 = 0;

/// Where a link leads. Asked anew for every connection, because nodes move.
pub(crate) trait Target: fmt::Debug + Send + Sync + 'static {
    /// Where to connect to, if that is known.
    fn address(&self) -> Option<String>;
    /// What to say first.
    fn greeting(&self) -> Greeting;
    /// The password of this node.
    fn password(&self) -> &str;
    /// Judges who has answered.
    ///
    /// # Errors
    /// Why it is not the one that was looked for.
    fn judge(&self, welcome: Welcome) -> Result<(), String>;
    /// Where to count what goes to and fro, if that is still of interest.
    fn traffic(&self, node: NodeId) -> Option<Arc<Traffic>>;
    /// Told that the other end would not talk.
    fn refused(&self);
    /// Told why no connection came about.
    fn failed(&self, reason: &str);
}

/// See the module. Clones are the same link.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    outbox: Mutex<Outbox>,
    /// Told when something is to be sent.
    wake: Notify,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

type Waiter = oneshot::Sender<Result<PeerFrame, PeerError>>;

struct Outbox {
    /// Frames that nobody has begun to send.
    unsent: BytesMut,
    /// Who waits for which call.
    waiting: BTreeMap<u64, Waiter>,
    /// The number of the next call; never 0.
    next_call: u64,
    /// Calls below this one may have been sent.
    sent_below: u64,
    /// Until then no connection is tried.
    down_until: Instant,
    is_closed: bool,
}

/// Forgets a call whose caller has gone.
struct Ask<'a> {
    shared: &'a Shared,
    call: u64,
}

impl Drop for Ask<'_> {
    fn drop(&mut self) {
        drop(self.shared.outbox.lock().waiting.remove(&self.call));
    }
}

fn unreachable(reason: &str) -> PeerError {
    PeerError::Unreachable(reason.to_owned())
}

impl Link {
    /// A link whose task runs on `runtime` until `stop`.
    pub(crate) fn start(
        target: Arc<dyn Target>,
        clock: Arc<dyn Clock>,
        runtime: &tokio::runtime::Handle,
        stop: CancellationToken,
    ) -> Self {
        let shared = Arc::new(Shared {
            outbox: Mutex::new(Outbox {
                unsent: BytesMut::new(),
                waiting: BTreeMap::new(),
                next_call: NO_CALL + 1,
                sent_below: NO_CALL + 1,
                down_until: Instant::from_nanos(0),
                is_closed: false,
            }),
            wake: Notify::new(),
            clock,
        });
        let task = Task {
            shared: Arc::clone(&shared),
            target,
            pause: PAUSE_MIN,
        };
        // Owned by the node: `stop` ends it, at the latest the end of the runtime.
        runtime.spawn(async move {
            let closing = Arc::clone(&task.shared);
            tokio::select! {
                () = task.run() => {}
                () = stop.cancelled() => {}
            }
            closing.close();
        });
        Self { shared }
    }

    /// Asks, and waits for the answer: a frame of kind `Reply`.
    ///
    /// # Errors
    /// [`PeerError::Unreachable`] if it was never sent; [`PeerError::Broken`] if it may have been,
    /// or the other end could not answer. There is no deadline here: the caller has one.
    ///
    /// # Cancellation
    /// Safe to drop; what was sent may be done.
    pub(crate) async fn ask(
        &self,
        kind: FrameKind,
        shard: u32,
        fill: impl FnOnce(&mut BytesMut),
    ) -> Result<Bytes, PeerError> {
        let (tell, answer) = oneshot::channel();
        let call = {
            let mut outbox = self.shared.outbox.lock();
            if outbox.is_closed {
                return Err(unreachable("this node is shutting down"));
            }
            if self.shared.clock.now() < outbox.down_until {
                return Err(unreachable("the last connection has just failed"));
            }
            if OUTBOX_BYTES_MAX < outbox.unsent.len() {
                return Err(unreachable("too much waits to be sent"));
            }
            let call = outbox.next_call;
            outbox.next_call += 1;
            write_peer_frame(&mut outbox.unsent, kind, shard, call, fill);
            outbox.waiting.insert(call, tell);
            call
        };
        let _forgotten = Ask {
            shared: &self.shared,
            call,
        };
        self.shared.wake.notify_one();
        let frame = answer
            .await
            .unwrap_or_else(|_| Err(PeerError::Broken("the link has ended".to_owned())))?;
        if frame.kind == FrameKind::Reply {
            return Ok(frame.payload);
        }
        let reason = String::from_utf8_lossy(&frame.payload);
        Err(PeerError::Broken(reason.into_owned()))
    }

    /// The other end is known to be there: the next call need not wait until the pause after a
    /// connection that failed is over.
    pub(crate) fn forget_failure(&self) {
        self.shared.outbox.lock().down_until = Instant::from_nanos(0);
    }
}

impl Shared {
    /// Answers everybody who waits: those whose call was never sent can be sure of that.
    fn fail_all(&self, reason: &str, down_until: Instant) {
        let (waiting, sent_below) = {
            let mut outbox = self.outbox.lock();
            outbox.unsent.clear();
            outbox.down_until = down_until;
            let sent_below = outbox.sent_below;
            outbox.sent_below = outbox.next_call;
            (std::mem::take(&mut outbox.waiting), sent_below)
        };
        for (call, waiter) in waiting {
            let error = if call < sent_below {
                PeerError::Broken(reason.to_owned())
            } else {
                unreachable(reason)
            };
            // Who has gone needs no answer.
            drop(waiter.send(Err(error)));
        }
    }

    fn close(&self) {
        self.outbox.lock().is_closed = true;
        self.fail_all("this node is shutting down", self.clock.now());
    }

    fn has_unsent(&self) -> bool {
        !self.outbox.lock().unsent.is_empty()
    }

    /// Takes what is to be sent; how many frames that are.
    fn take_unsent(&self, out: &mut BytesMut) -> u64 {
        let mut outbox = self.outbox.lock();
        let count = outbox.next_call - outbox.sent_below;
        outbox.sent_below = outbox.next_call;
        if out.is_empty() && out.capacity() <= BUFFER_BYTES_KEPT {
            std::mem::swap(out, &mut outbox.unsent);
        } else {
            *out = outbox.unsent.split();
        }
        count
    }

    /// Whether an answer is due to something that was sent.
    fn awaits_sent(&self) -> bool {
        let outbox = self.outbox.lock();
        let first = outbox.waiting.keys().next();
        first.is_some_and(|call| *call < outbox.sent_below)
    }

    fn is_waited_for(&self) -> bool {
        !self.outbox.lock().waiting.is_empty()
    }

    fn answered(&self, frame: PeerFrame) {
        let waiter = self.outbox.lock().waiting.remove(&frame.call);
        if let Some(waiter) = waiter {
            // Who has gone needs no answer.
            drop(waiter.send(Ok(frame)));
        }
    }
}

/// A connection on which both ends know each other.
struct Connection {
    stream: TcpStream,
    /// What has come behind the handshake.
    arrived: BytesMut,
    traffic: Arc<Traffic>,
}

struct Task {
    shared: Arc<Shared>,
    target: Arc<dyn Target>,
    pause: Duration,
}

impl Task {
    async fn run(mut self) {
        loop {
            while !self.shared.has_unsent() {
                self.shared.wake.notified().await;
            }
            let (reason, was_connected) = match self.connect().await {
                Ok(Connection {
                    stream,
                    arrived,
                    traffic,
                }) => {
                    self.pause = PAUSE_MIN;
                    let connected = traffic.connected(Way::Out);
                    let reason = self.carry(stream, arrived, &traffic).await;
                    drop(connected);
                    (reason, true)
                }
                Err(reason) => {
                    self.target.failed(&reason);
                    (reason, false)
                }
            };
            tracing::debug!(target = ?self.target, %reason, was_connected, "link down");
            let until = self.shared.clock.now() + self.pause;
            self.pause = PAUSE_MAX.min(self.pause * 2);
            self.shared.fail_all(&reason, until);
        }
    }

    async fn connect(&self) -> Result<Connection, String> {
        let address = self.target.address().ok_or("its address is not known")?;
        let problem = |error: &dyn fmt::Display| format!("{address}: {error}");
        let mut stream = dial(&address).await.map_err(|error| problem(&error))?;
        let mut arrived = BytesMut::new();
        let greeting = self.target.greeting();
        let shaking = handshake::call(&mut stream, &mut arrived, greeting, self.target.password());
        let welcome = shaking.await.map_err(|error| {
            if matches!(error, HandshakeError::Refused(_) | HandshakeError::Password) {
                self.target.refused();
            }
            problem(&error)
        })?;
        let node = welcome.node;
        self.target.judge(welcome)?;
        Ok(Connection {
            stream,
            arrived,
            traffic: self.target.traffic(node).unwrap_or_default(),
        })
    }

    /// Carries calls and answers until the connection breaks; says why it did.
    async fn carry(&self, stream: TcpStream, mut arrived: BytesMut, traffic: &Traffic) -> String {
        let (mut reader, mut writer) = stream.into_split();
        let decoder = PeerDecoder::new(limits::PEER_FRAME_BYTES_MAX);
        let mut out = BytesMut::new();
        let mut silence = Silence::default();
        let mut is_leaving = false;
        loop {
            // It still answers what it was sent; nothing new goes there.
            if is_leaving && out.is_empty() && !self.shared.awaits_sent() {
                return "the other node is closing".to_owned();
            }
            loop {
                match decoder.next(&mut arrived) {
                    Ok(Some(frame)) => {
                        traffic.carried(Way::In, 0, 1);
                        if frame.kind == FrameKind::Goodbye {
                            is_leaving = true;
                        } else {
                            self.shared.answered(frame);
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return error.to_string(),
                }
            }
            let wanted = decoder.wanted(&arrived);
            flux_wire::reserve_for_read(&mut arrived, wanted);
            tokio::select! {
                read = reader.read_buf(&mut arrived) => match read {
                    Ok(0) => return "the other node closed the connection".to_owned(),
                    Ok(count) => {
                        traffic.carried(Way::In, count, 0);
                        silence = Silence::default();
                    }
                    Err(error) => return error.to_string(),
                },
                written = writer.write_buf(&mut out), if !out.is_empty() => match written {
                    // What gets through shows that somebody takes it.
                    Ok(count) => {
                        traffic.carried(Way::Out, count, 0);
                        silence.progressed();
                    }
                    Err(error) => return error.to_string(),
                },
                () = self.shared.wake.notified(), if out.is_empty() && !is_leaving => {
                    // Whoever is ready in this turn of the loop gets to add its frames.
                    tokio::task::yield_now().await;
                    traffic.carried(Way::Out, 0, self.shared.take_unsent(&mut out));
                }
                () = tokio::time::sleep(WATCH) => {
                    if out.is_empty() && !is_leaving && self.shared.has_unsent() {
                        traffic.carried(Way::Out, 0, self.shared.take_unsent(&mut out));
                    }
                    match silence.passed(self.shared.is_waited_for() || !out.is_empty()) {
                        Sign::None => {}
                        Sign::Ask if out.is_empty() => {
                            write_peer_frame(&mut out, FrameKind::Ping, 0, NO_CALL, |_| {});
                            traffic.carried(Way::Out, 0, 1);
                        }
                        Sign::Ask => {}
                        Sign::Dead => return "the other node has fallen silent".to_owned(),
                    }
                }
            }
        }
    }
}

/// How long nothing was heard while something was due. Counted in looks, so that a process that
/// was stopped itself does not blame the other.
#[derive(Clone, Copy, Debug, Default)]
struct Silence {
    looks: u32,
    has_asked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    None,
    Ask,
    Dead,
}

impl Silence {
    /// Bytes have gone out.
    const fn progressed(&mut self) {
        if !self.has_asked {
            self.looks = 0;
        }
    }

    /// Another [`WATCH`] has passed.
    fn passed(&mut self, is_due: bool) -> Sign {
        if !is_due && !self.has_asked {
            self.looks = 0;
            return Sign::None;
        }
        self.looks += 1;
        let silent = WATCH * self.looks;
        if DEAD_AFTER <= silent {
            Sign::Dead
        } else if PING_AFTER <= silent && !self.has_asked {
            self.has_asked = true;
            Sign::Ask
        } else {
            Sign::None
        }
    }
}

#[cfg(test)]
mod tests {
    use flux_env::SimClock;
    use flux_types::ClusterId;

    use super::*;
    use crate::peer::handshake::Lane;

    #[test]
    fn silence_counts_only_while_something_is_due() {
        let mut silence = Silence::default();
        for _ in 0..100 {
            assert_eq!(silence.passed(false), Sign::None);
        }
        let signs: Vec<Sign> = (0..20).map(|_| silence.passed(true)).collect();
        assert_eq!(signs[3], Sign::None);
        assert_eq!(signs[4], Sign::Ask);
        assert_eq!(signs[5..19], [Sign::None; 14]);
        assert_eq!(signs[19], Sign::Dead);
    }

    /// Another node that is not there.
    #[derive(Debug)]
    struct Nobody(String);

    impl Target for Nobody {
        fn address(&self) -> Option<String> {
            Some(self.0.clone())
        }

        fn greeting(&self) -> Greeting {
            Greeting {
                lane: Lane::Control,
                shard: 0,
                cluster: ClusterId::new(1),
                node: NodeId::new(1),
                wanted: NodeId::new(2),
                nonce: [0; 32],
            }
        }

        fn password(&self) -> &str {
            ""
        }

        fn judge(&self, _: Welcome) -> Result<(), String> {
            Ok(())
        }

        fn traffic(&self, _: NodeId) -> Option<Arc<Traffic>> {
            None
        }

        fn refused(&self) {}

        fn failed(&self, _: &str) {}
    }

    #[tokio::test]
    async fn a_node_that_is_known_to_be_there_is_not_waited_for() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        drop(listener);
        let target = Arc::new(Nobody(address));
        // It stands still: no pause passes by itself.
        let clock = Arc::new(SimClock::new(0));
        let runtime = tokio::runtime::Handle::current();
        let link = Link::start(target, clock, &runtime, CancellationToken::new());
        let ask = async || {
            let asked = link.ask(FrameKind::Append, 0, |_| {}).await;
            asked.expect_err("nobody is there").to_string()
        };
        let refused = ask().await;
        assert!(!refused.contains("just failed"), "{refused}");
        let pausing = ask().await;
        assert!(pausing.contains("just failed"), "{pausing}");
        link.forget_failure();
        assert_eq!(ask().await, refused);
    }

    #[test]
    fn a_slow_transfer_is_no_silence() {
        let mut silence = Silence::default();
        for _ in 0..100 {
            assert_eq!(silence.passed(true), Sign::None);
            silence.progressed();
        }
    }
}
