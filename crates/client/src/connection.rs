//! One connection and the task behind it: writes what waits, hands out replies, connects again.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flux_wire::flux::{
    Asking, Credentials, FrameDecoder, Goaway, Kind, PREFACE_BYTES, Preface, REQUEST_IDS, Response,
    STALE_READS, control,
};
use flux_wire::reserve_for_read;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::config::Config;
use crate::error::Error;
use crate::request::{Answer, Failure, Request};

/// Requests that may wait in front of a connection.
const QUEUE_MAX: usize = 1024;
/// Bytes of requests encoded ahead of the socket.
const UNSENT_BYTES_MAX: usize = 1024 * 1024;
/// A node that is this late with a reply, past the deadline, is taken for gone.
const GRACE: Duration = Duration::from_secs(5);
/// Correlation id of the authentication; requests are numbered from 1.
const GREETING: u64 = 0;
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The caller's side of a connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) queue: mpsc::Sender<Request>,
    /// Why the last attempt to connect failed, while there is no connection.
    pub(crate) trouble: Arc<Mutex<Option<Arc<io::Error>>>>,
    /// Whether the node understands request ids.
    takes_request_ids: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Whether the node understands request ids, as far as its last connection has told.
    pub(crate) fn takes_request_ids(&self) -> bool {
        self.takes_request_ids.load(Ordering::Relaxed)
    }

    /// Connects, and starts the task that keeps the connection.
    pub(crate) async fn open(config: Arc<Config>) -> Result<Self, Error> {
        let stream = connect(&config).await?;
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        let trouble = Arc::new(Mutex::new(None));
        let takes_request_ids = Arc::new(AtomicBool::new(stream.takes_request_ids));
        let keeper = Keeper {
            config,
            queue: receiver,
            trouble: Arc::clone(&trouble),
            takes_request_ids: Arc::clone(&takes_request_ids),
        };
        let task = tokio::spawn(keeper.run(stream));
        Ok(Self {
            queue,
            trouble,
            takes_request_ids,
            task,
        })
    }
}

/// Connects and authenticates, within the time that the settings give it.
async fn connect(config: &Config) -> Result<Stream, Error> {
    let failed = |source: io::Error| Error::Connect {
        address: config.address.clone(),
        source: Arc::new(source),
    };
    match timeout(config.connect_timeout, Stream::open(config)).await {
        Ok(Ok(Ok(stream))) => Ok(stream),
        Ok(Ok(Err(source))) => Err(Error::Refused {
            address: config.address.clone(),
            source,
        }),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
    }
}

/// A socket with what has arrived and what is to be sent.
struct Stream {
    socket: TcpStream,
    received: BytesMut,
    unsent: BytesMut,
    decoder: FrameDecoder,
    /// Longest payload that the node accepts, as it said in its preface.
    payload_bytes_max: usize,
    /// Whether the node understands request ids, as it said in its preface.
    takes_request_ids: bool,
    /// Whether it understands requests for stale reads.
    takes_stale_reads: bool,
}

/// What a node sends.
enum Incoming {
    /// The answer to a request.
    Answer(u64, Answer),
    /// It will close.
    GoAway(Goaway),
}

impl Stream {
    /// Exchanges prefaces and, where there is a password, authenticates.
    async fn open(config: &Config) -> io::Result<Result<Self, flux_types::Error>> {
        let socket = TcpStream::connect(&config.address).await?;
        socket.set_nodelay(true)?;
        let mut stream = Self {
            socket,
            received: BytesMut::new(),
            unsent: BytesMut::new(),
            decoder: FrameDecoder::new(config.frame_bytes_max),
            payload_bytes_max: 0,
            takes_request_ids: false,
            takes_stale_reads: false,
        };
        stream
            .unsent
            .extend_from_slice(&Preface::announce(config.frame_bytes_max).encode());
        if let Some(password) = &config.password {
            let credentials = Credentials {
                user: Bytes::new(),
                password: Bytes::from(password.clone()),
            };
            credentials
                .write(&mut stream.unsent, GREETING)
                .map_err(io::Error::other)?;
        }
        stream.socket.write_all_buf(&mut stream.unsent).await?;
        stream.read_preface().await?;
        if config.password.is_none() {
            return Ok(Ok(stream));
        }
        loop {
            match stream.next().map_err(io::Error::other)? {
                Some(Incoming::Answer(_, Err(refusal))) => return Ok(Err(refusal)),
                Some(Incoming::Answer(_, Ok(_))) => return Ok(Ok(stream)),
                Some(Incoming::GoAway(goaway)) => return Err(io::Error::other(goaway.message)),
                None => stream.read().await?,
            }
        }
    }

    async fn read_preface(&mut self) -> io::Result<()> {
        while self.received.len() < PREFACE_BYTES {
            self.read().await?;
        }
        let bytes = self.received.split_to(PREFACE_BYTES);
        let bytes = bytes.first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
        let preface = Preface::decode(bytes).map_err(io::Error::other)?;
        preface.agrees().map_err(io::Error::other)?;
        self.payload_bytes_max = usize::try_from(preface.payload_bytes_max).unwrap_or(usize::MAX);
        self.takes_request_ids = preface.capabilities & REQUEST_IDS != 0;
        self.takes_stale_reads = preface.capabilities & STALE_READS != 0;
        Ok(())
    }

    async fn read(&mut self) -> io::Result<()> {
        if self.socket.read_buf(&mut self.received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// The next whole frame of what has arrived that means something to a client.
    fn next(&mut self) -> Result<Option<Incoming>, String> {
        while let Some(frame) = self
            .decoder
            .next(&mut self.received)
            .map_err(|error| error.to_string())?
        {
            let id = frame.header.correlation;
            match frame.header.kind {
                Kind::Response => {
                    let answer = Response::decode(frame).map_err(|error| error.to_string())?;
                    return Ok(Some(Incoming::Answer(id, answer)));
                }
                Kind::Goaway => {
                    let goaway =
                        Goaway::decode(frame.payload).map_err(|error| error.to_string())?;
                    return Ok(Some(Incoming::GoAway(goaway)));
                }
                Kind::Ping => control::write_pong(&mut self.unsent, id, &frame.payload),
                // Answers to pings that we never sent, and what only servers are told.
                Kind::Pong
                | Kind::Event
                | Kind::Request
                | Kind::Credit
                | Kind::Cancel
                | Kind::Auth => {}
            }
        }
        reserve_for_read(&mut self.received, self.decoder.wanted());
        Ok(None)
    }
}

/// Why a connection ended.
enum End {
    /// Nobody can ask any more.
    Closed,
    /// It was lost, or is of no more use.
    Lost(String),
}

/// The task behind a link.
struct Keeper {
    config: Arc<Config>,
    queue: mpsc::Receiver<Request>,
    trouble: Arc<Mutex<Option<Arc<io::Error>>>>,
    takes_request_ids: Arc<AtomicBool>,
}

impl Keeper {
    /// Serves requests over one connection after the other, until every handle is gone.
    async fn run(mut self, first: Stream) {
        let mut stream = first;
        loop {
            let mut session = Session::new(stream, &self.config);
            let end = session.serve(&mut self.queue).await;
            match end {
                End::Closed => return,
                End::Lost(problem) => session.fail(&problem),
            }
            let Some(next) = self.reconnect().await else {
                return;
            };
            stream = next;
        }
    }

    /// Tries until it succeeds, with pauses that double; `None` once every handle is gone. What
    /// waits in the queue goes on waiting: it has not been sent, and its deadline is its caller's.
    async fn reconnect(&mut self) -> Option<Stream> {
        let mut pause = self.config.backoff_min;
        loop {
            match connect(&self.config).await {
                Ok(stream) => {
                    let takes = stream.takes_request_ids;
                    self.takes_request_ids.store(takes, Ordering::Relaxed);
                    *self.trouble.lock() = None;
                    return Some(stream);
                }
                Err(error) => {
                    *self.trouble.lock() = Some(Arc::new(io::Error::other(cause(&error))))
                }
            }
            if self.queue.is_closed() {
                return None;
            }
            sleep(pause).await;
            pause = pause.saturating_mul(2).min(self.config.backoff_max);
        }
    }
}

fn cause(error: &Error) -> String {
    if let Error::Connect { source, .. } = error {
        source.to_string()
    } else {
        error.to_string()
    }
}

/// One connection's life.
struct Session<'a> {
    stream: Stream,
    config: &'a Config,
    pending: HashMap<u64, Request>,
    next_id: u64,
    is_leaving: bool,
}

impl<'a> Session<'a> {
    fn new(stream: Stream, config: &'a Config) -> Self {
        // Identifier 0 is the greeting's.
        Self {
            stream,
            config,
            pending: HashMap::new(),
            next_id: 1,
            is_leaving: false,
        }
    }

    async fn serve(&mut self, queue: &mut mpsc::Receiver<Request>) -> End {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.is_leaving && self.pending.is_empty() {
                return End::Lost("the node closes its connections".to_owned());
            }
            let may_take = !self.is_leaving
                && self.pending.len() < self.config.in_flight_max
                && self.stream.unsent.len() < UNSENT_BYTES_MAX;
            let (mut reader, mut writer) = self.stream.socket.split();
            // Every arm can be dropped without loss: reading and writing move bytes only when they
            // complete, and a request that was received is kept.
            tokio::select! {
                read = reader.read_buf(&mut self.stream.received) => match read {
                    Ok(0) => return End::Lost("the node closed it".to_owned()),
                    Ok(_) => if let Err(problem) = self.dispatch() {
                        return End::Lost(problem);
                    },
                    Err(error) => return End::Lost(error.to_string()),
                },
                written = writer.write_buf(&mut self.stream.unsent), if !self.stream.unsent.is_empty() => {
                    if let Err(error) = written {
                        return End::Lost(error.to_string());
                    }
                }
                request = queue.recv(), if may_take => match request {
                    Some(request) => self.take(request, queue),
                    None => return End::Closed,
                },
                _ = look.tick(), if !self.pending.is_empty() => {
                    let now = Instant::now();
                    if self.pending.values().any(|request| request.deadline + GRACE < now) {
                        return End::Lost("the node does not answer".to_owned());
                    }
                }
            }
        }
    }

    /// Encodes a request and whatever else waits behind it, to be written in one piece.
    fn take(&mut self, first: Request, queue: &mut mpsc::Receiver<Request>) {
        let mut next = Some(first);
        while let Some(request) = next {
            self.encode(request);
            let has_room = self.pending.len() < self.config.in_flight_max
                && self.stream.unsent.len() < UNSENT_BYTES_MAX;
            next = if has_room {
                queue.try_recv().ok()
            } else {
                None
            };
        }
    }

    fn encode(&mut self, request: Request) {
        if !request.progress.send() {
            return;
        }
        let left = request.deadline.saturating_duration_since(Instant::now());
        // 0 would mean the node's default, which may be longer.
        let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
        let bytes_max = self.stream.payload_bytes_max;
        let asking = Asking {
            correlation: self.next_id,
            deadline_ms,
            request: request.request_id,
            // Of a node that knows no such reads it gets one that is better.
            is_stale: request.is_stale && self.stream.takes_stale_reads,
        };
        if asking.request.is_some() && !self.stream.takes_request_ids {
            // It did until it was restarted as something older. Nothing was sent.
            let gone = Failure::NotSent("the node does not understand request ids".to_owned());
            drop(request.reply.send(Err(gone)));
            return;
        }
        let unsent = &mut self.stream.unsent;
        let written = request.operation.write_asking(unsent, &asking, bytes_max);
        match written {
            Ok(()) => {
                self.pending.insert(self.next_id, request);
                self.next_id += 1;
            }
            // Its caller may have given up.
            Err(too_long) => drop(request.reply.send(Err(Failure::TooLong(too_long)))),
        }
    }

    /// Hands out every reply that has arrived.
    fn dispatch(&mut self) -> Result<(), String> {
        while let Some(incoming) = self.stream.next()? {
            match incoming {
                // A refusal of all that comes, before authentication, is said about no request.
                Incoming::Answer(GREETING, Err(refusal)) => {
                    return Err(refusal.message.into_owned());
                }
                Incoming::Answer(id, answer) => {
                    let request = self.pending.remove(&id).ok_or_else(|| {
                        format!("the node answered request {id}, which nobody made")
                    })?;
                    // Its caller may have given up.
                    drop(request.reply.send(Ok(answer)));
                }
                Incoming::GoAway(goaway) if goaway.drain_ms == 0 => return Err(goaway.message),
                Incoming::GoAway(_) => self.is_leaving = true,
            }
        }
        Ok(())
    }

    /// Gives every request back that was sent and not answered.
    fn fail(&mut self, problem: &str) {
        for (_, request) in self.pending.drain() {
            drop(request.reply.send(Err(Failure::Lost(problem.to_owned()))));
        }
    }
}
