//! The answering side: connections of other nodes.
//!
//! Bounds: few may be in their handshake at once; a connection's requests under way are bounded by
//! count and bytes, and beyond that it is not read. A snapshot's blocks wait for the disk one by
//! one, so that the sender is slowed down and not this node's memory filled.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flux_raft::network::SnapshotTransfer;
use flux_raft::network::frame::{FrameKind, PeerDecoder, PeerFrame, write_peer_frame};
use flux_raft::network::message::{Message, SnapshotBegin};
use flux_raft::{PeerError, Shard, Submission};
use flux_types::{Answer, Error, ErrorCode, limits};
use flux_wire::forward::{Forwarded, write_answers};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Peers;
use super::handshake::{self, Greeting, HandshakeError, Lane};
use super::history;
use super::news::News;
use super::traffic::{Traffic, Way};
use crate::exec::busy;

/// Connections that may be in their handshake at once.
const STRANGERS_MAX: usize = 64;
/// Requests of one connection under way.
const UNDER_WAY_MAX: usize = 4096;
/// Bytes of requests of one connection under way, beyond which it is not read.
const UNDER_WAY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Pause after a failed accept: it fails when descriptors have run out, and would again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Blocks of a snapshot that wait for the disk.
const BLOCKS_AHEAD: usize = 2;
/// Longest deadline that is believed.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// Accepts other nodes until the node ends.
///
/// # Cancellation
/// Safe to drop.
pub(crate) async fn accept(peers: Arc<Peers>, listener: TcpListener) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    loop {
        let accepted = tokio::select! {
            () = peers.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let Ok(permit) = Arc::clone(&strangers).try_acquire_owned() else {
                    tracing::debug!(%from, "too many nodes are in their handshake");
                    continue;
                };
                let peers = Arc::clone(&peers);
                // Owned by itself: it ends with the connection or the node.
                drop(tokio::spawn(async move {
                    let let_in = let_in(&peers, stream).await;
                    drop(permit);
                    if matches!(
                        let_in,
                        Err(HandshakeError::Refused(_) | HandshakeError::Password)
                    ) {
                        peers.traffics.refused.add(Way::In, 1);
                    }
                    match let_in {
                        Ok(()) => {}
                        Err(error @ HandshakeError::Refused(_)) => {
                            tracing::info!(%from, reason = %error, "a node was refused");
                        }
                        Err(error) => tracing::debug!(%from, %error, "no handshake"),
                    }
                }));
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Makes sure who calls, and gives the connection to the thread of its shards.
async fn let_in(peers: &Arc<Peers>, mut stream: TcpStream) -> Result<(), HandshakeError> {
    stream.set_nodelay(true)?;
    let mut arrived = BytesMut::new();
    let judge = |greeting: &Greeting| peers.book.judge(greeting);
    let greeting = handshake::answer(&mut stream, &mut arrived, &peers.password, judge).await?;
    peers.is_back(greeting.node);
    let stream = stream.into_std()?;
    let runtime = peers.places.handle(peers.places.of_shard(greeting.shard));
    let peers = Arc::clone(peers);
    // Owned by its runtime; ends with the connection or the node.
    runtime.spawn(async move {
        let stop = peers.stop.clone();
        let traffic = peers.traffics.of(greeting.node.physical());
        let _connected = traffic.connected(Way::In);
        let serving = async {
            match TcpStream::from_std(stream) {
                Ok(stream) if greeting.lane == Lane::Snapshot => {
                    receive_snapshot(&peers, &greeting, stream, arrived).await
                }
                Ok(stream) => serve(&peers, &greeting, stream, arrived).await,
                Err(error) => Err(error),
            }
        };
        tokio::select! {
            ended = serving => if let Err(error) = ended {
                tracing::debug!(node = greeting.node.physical(), %error, "connection of a node broke");
            },
            () = stop.cancelled() => {}
        }
    });
    Ok(())
}

/// What became of a request.
struct Done {
    call: u64,
    bytes: usize,
    result: Result<Bytes, PeerError>,
}

/// Answers requests until the connection ends.
async fn serve(
    peers: &Arc<Peers>,
    greeting: &Greeting,
    stream: TcpStream,
    mut arrived: BytesMut,
) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let decoder = PeerDecoder::new(limits::PEER_FRAME_BYTES_MAX);
    let mut out = BytesMut::new();
    let mut under_way = FuturesUnordered::new();
    let mut bytes_under_way = 0_usize;
    let (mut is_over, mut has_said_goodbye) = (false, false);
    let traffic = peers.traffics.of(greeting.node.physical());
    loop {
        // A node may begin another life under a caller that still looks for the former one.
        peers.book.judge(greeting).map_err(io::Error::other)?;
        while under_way.len() < UNDER_WAY_MAX && bytes_under_way < UNDER_WAY_BYTES_MAX {
            let frame = decoder.next(&mut arrived).map_err(io::Error::other)?;
            let Some(frame) = frame else { break };
            traffic.carried(Way::In, 0, 1);
            let (call, bytes) = (frame.call, frame.payload.len());
            bytes_under_way += bytes;
            let answering = answer(Arc::clone(peers), greeting.clone(), frame);
            under_way.push(async move {
                let result = answering.await;
                Done {
                    call,
                    bytes,
                    result,
                }
            });
        }
        if is_over && under_way.is_empty() && out.is_empty() {
            return Ok(());
        }
        let has_room = under_way.len() < UNDER_WAY_MAX && bytes_under_way < UNDER_WAY_BYTES_MAX;
        let wanted = decoder.wanted(&arrived);
        flux_wire::reserve_for_read(&mut arrived, wanted);
        tokio::select! {
            Some(done) = under_way.next(), if !under_way.is_empty() => {
                let mut count = 1;
                bytes_under_way -= done.bytes;
                write_done(&mut out, done);
                // What else is ready goes out in the same write.
                while let Some(Some(done)) = under_way.next().now_or_never() {
                    count += 1;
                    bytes_under_way -= done.bytes;
                    write_done(&mut out, done);
                }
                traffic.carried(Way::Out, 0, count);
            }
            written = writer.write_buf(&mut out), if !out.is_empty() => {
                let count = written?;
                if count == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                traffic.carried(Way::Out, count, 0);
            }
            read = reader.read_buf(&mut arrived), if has_room && !is_over => {
                let count = read?;
                traffic.carried(Way::In, count, 0);
                is_over = count == 0;
            }
            () = peers.leaving.cancelled(), if !has_said_goodbye => {
                has_said_goodbye = true;
                write_peer_frame(&mut out, FrameKind::Goodbye, 0, 0, |_| {});
            }
        }
    }
}

fn write_done(out: &mut BytesMut, done: Done) {
    match done.result {
        Ok(payload) => write_peer_frame(out, FrameKind::Reply, 0, done.call, |out| {
            out.extend_from_slice(&payload);
        }),
        Err(error) => write_peer_frame(out, FrameKind::Failed, 0, done.call, |out| {
            out.extend_from_slice(error.to_string().as_bytes());
        }),
    }
}

fn broken(error: impl ToString) -> PeerError {
    PeerError::Broken(error.to_string())
}

fn encoded(message: &impl Message) -> Bytes {
    let mut out = BytesMut::new();
    message.write(&mut out);
    out.freeze()
}

/// Answers one request.
fn answer(
    peers: Arc<Peers>,
    greeting: Greeting,
    frame: PeerFrame,
) -> BoxFuture<'static, Result<Bytes, PeerError>> {
    async move {
        if frame.kind == FrameKind::Ping {
            return Ok(Bytes::new());
        }
        if frame.kind == FrameKind::News {
            let news = News::read(frame.payload).map_err(broken)?;
            peers.book.hear(&news);
            let mut out = BytesMut::new();
            let map = peers.book.map_for(news.map_version);
            let answer = News {
                map,
                ..peers.book.news(peers.leaders())
            };
            answer.write(&mut out);
            return Ok(out.freeze());
        }
        if greeting.cluster != peers.book.cluster() || greeting.cluster.get() == 0 {
            return Err(broken("the two nodes do not belong to one cluster"));
        }
        let shard = meant(&peers, &greeting, frame.shard).map_err(broken)?;
        answer_for_shard(&peers, &shard, frame).await
    }
    .boxed()
}

/// The replica a caller means: of the life it looked for (rule 13). A later life knows nothing of
/// what the former one acknowledged or voted, and must not answer in its name.
///
/// # Errors
/// Why there is none.
fn meant(peers: &Peers, greeting: &Greeting, shard: u32) -> Result<Shard, String> {
    let shard = peers.shard(shard);
    // Asked after the shard was taken: once shards are served, the life does not change any more.
    peers.book.check_life(greeting.wanted)?;
    shard.ok_or_else(|| "this node does not serve the shard yet".to_owned())
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "every other kind is no request, whatever is added"
)]
async fn answer_for_shard(
    peers: &Peers,
    shard: &Shard,
    frame: PeerFrame,
) -> Result<Bytes, PeerError> {
    let handler = shard.peer_handler();
    let payload = frame.payload;
    Ok(match frame.kind {
        FrameKind::Append => encoded(
            &handler
                .append(Message::read(payload).map_err(broken)?)
                .await?,
        ),
        FrameKind::Vote => encoded(
            &handler
                .vote(Message::read(payload).map_err(broken)?)
                .await?,
        ),
        FrameKind::PreVote => encoded(
            &handler
                .pre_vote(Message::read(payload).map_err(broken)?)
                .await?,
        ),
        FrameKind::Transfer => encoded(
            &handler
                .transfer(Message::read(payload).map_err(broken)?)
                .await?,
        ),
        FrameKind::Forward => {
            let forwarded = Forwarded::read(payload).map_err(broken)?;
            let answers = execute(peers, shard, forwarded).await;
            let mut out = BytesMut::new();
            write_answers(&mut out, &answers);
            out.freeze()
        }
        FrameKind::History => history::answer(peers, shard, payload).await?,
        other => return Err(broken(format!("{other:?} is not a request"))),
    })
}

/// Runs what another node has forwarded; it goes no further from here.
async fn execute(peers: &Peers, shard: &Shard, forwarded: Forwarded) -> Vec<Answer> {
    let Forwarded {
        timeout_ms,
        routing,
        commands,
        traces,
    } = forwarded;
    let count = commands.len();
    let timeout = Duration::from_millis(u64::from(timeout_ms)).min(TIMEOUT_MAX);
    let deadline = peers.clock.now() + timeout;
    let (reply, answers) = oneshot::channel();
    let submission = Submission {
        traces,
        routing,
        is_forwarded: true,
        ..Submission::new(commands, deadline, reply)
    };
    if shard.submit(submission).is_err() {
        return vec![busy(); count];
    }
    answers.await.unwrap_or_else(|_| {
        let lost = Error::unknown(
            ErrorCode::Unavailable,
            "the shard ended before it answered; the outcome is unknown",
        );
        vec![Answer::error(lost); count]
    })
}

/// Receives one snapshot and answers with this replica's vote.
async fn receive_snapshot(
    peers: &Arc<Peers>,
    greeting: &Greeting,
    mut stream: TcpStream,
    mut arrived: BytesMut,
) -> io::Result<()> {
    let traffic = peers.traffics.of(greeting.node.physical());
    let begin = next_frame(&mut stream, &mut arrived, &traffic).await?;
    let malformed = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    if begin.kind != FrameKind::SnapshotBegin {
        return Err(malformed("a snapshot was expected"));
    }
    let SnapshotBegin { vote, info } =
        SnapshotBegin::read(begin.payload).map_err(io::Error::other)?;
    let shard = meant(peers, greeting, begin.shard).map_err(io::Error::other)?;
    let (tell, waiting) = mpsc::channel(BLOCKS_AHEAD);
    let transfer = SnapshotTransfer {
        vote,
        info,
        blocks: Box::new(Blocks(Some(waiting))),
    };
    let handler = shard.peer_handler();
    let receiving = async {
        // Dropped with this block, whatever happens: the installer must not wait for more.
        let tell = tell;
        let mut count = 0;
        loop {
            let frame = next_frame(&mut stream, &mut arrived, &traffic).await?;
            if frame.kind == FrameKind::SnapshotBlock && frame.call == count + 1 {
                count += 1;
                let bytes = frame.payload.len() as u64;
                traffic.snapshot_bytes.add(Way::In, bytes);
                if tell.send(Block::Some(frame.payload)).await.is_err() {
                    // Nobody installs it any more; the answer says why.
                    return Ok(());
                }
            } else if frame.kind == FrameKind::SnapshotEnd && frame.call == count {
                let _is_heard = tell.send(Block::End).await.is_ok();
                return Ok(());
            } else {
                return Err(malformed("a snapshot's blocks came out of order"));
            }
        }
    };
    // The installer ends with an error when the blocks end without their end.
    let (received, result) = tokio::join!(receiving, handler.snapshot(transfer));
    received?;
    let mut out = BytesMut::new();
    traffic.snapshots.add(Way::In, u64::from(result.is_ok()));
    let result = result.map(|vote| encoded(&vote));
    write_done(
        &mut out,
        Done {
            call: 0,
            bytes: 0,
            result,
        },
    );
    stream.write_all(&out).await?;
    traffic.carried(Way::Out, out.len(), 1);
    stream.shutdown().await
}

async fn next_frame(
    stream: &mut TcpStream,
    arrived: &mut BytesMut,
    traffic: &Traffic,
) -> io::Result<PeerFrame> {
    let decoder = PeerDecoder::new(limits::PEER_FRAME_BYTES_MAX);
    loop {
        if let Some(frame) = decoder.next(arrived).map_err(io::Error::other)? {
            traffic.carried(Way::In, 0, 1);
            return Ok(frame);
        }
        flux_wire::reserve_for_read(arrived, decoder.wanted(arrived));
        let count = stream.read_buf(arrived).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        traffic.carried(Way::In, count, 0);
    }
}

enum Block {
    Some(Bytes),
    End,
}

/// Blocks as they arrive; read on a thread that may block.
struct Blocks(Option<mpsc::Receiver<Block>>);

impl Iterator for Blocks {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        let waiting = self.0.as_mut()?;
        match waiting.blocking_recv() {
            Some(Block::Some(block)) => Some(Ok(block)),
            Some(Block::End) => {
                self.0 = None;
                None
            }
            None => {
                self.0 = None;
                Some(Err(io::ErrorKind::UnexpectedEof.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use flux_env::RealClock;
    use flux_types::{ClusterId, NodeId};

    use super::super::Parts;
    use super::super::book::Book;
    use super::super::news::{Card, Decision, Standing};
    use super::*;
    use crate::cores::Cores;

    const CLUSTER: ClusterId = ClusterId::new(4);
    const PASSWORD: &str = "secret";

    fn life(incarnation: u32) -> NodeId {
        NodeId::of_incarnation(1, incarnation)
    }

    fn peers(cores: &Cores) -> Arc<Peers> {
        let clock: Arc<dyn flux_env::Clock> = Arc::new(RealClock::new());
        let own = News {
            card: Card {
                node: life(1),
                ..Card::default()
            },
            standing: Standing::Suspect,
            decision: Some(Decision {
                cluster: CLUSTER,
                voters: vec![vec![life(1)]],
            }),
            ..News::default()
        };
        Peers::new(Parts {
            book: Book::new(Arc::clone(&clock), own, Vec::new()),
            clock,
            password: Arc::from(PASSWORD),
            places: Arc::clone(cores.places()),
            takes_host_from_list: false,
            replace_after: Duration::from_secs(600),
            move_rate: 0,
            replicas: 3,
        })
    }

    async fn connected(address: SocketAddr, lane: Lane, wanted: NodeId) -> (TcpStream, BytesMut) {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let mut arrived = BytesMut::new();
        let greeting = Greeting {
            lane,
            shard: 0,
            cluster: CLUSTER,
            node: NodeId::of_incarnation(2, 1),
            wanted,
            nonce: [0; 32],
        };
        let shaken = handshake::call(&mut stream, &mut arrived, greeting, PASSWORD).await;
        shaken.expect("let in");
        (stream, arrived)
    }

    /// What a node says to one frame: its answer, or nothing before it closes.
    async fn said(stream: &mut TcpStream, arrived: &mut BytesMut, kind: FrameKind) -> Vec<String> {
        let mut out = BytesMut::new();
        write_peer_frame(&mut out, kind, 0, 1, |_| {});
        // It may have closed already.
        let _is_sent = stream.write_all(&out).await.is_ok();
        let mut said = Vec::new();
        while let Ok(frame) = next_frame(stream, arrived, &Traffic::default()).await {
            said.push(String::from_utf8_lossy(&frame.payload).into_owned());
        }
        said
    }

    #[tokio::test]
    async fn rule_13_a_later_life_does_not_answer_who_was_let_in_to_the_former() {
        let cores = Cores::start(1).expect("a thread");
        let peers = peers(&cores);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        drop(tokio::spawn(accept(Arc::clone(&peers), listener)));
        let mut former = Vec::new();
        for lane in [Lane::Control, Lane::Data] {
            former.push(connected(address, lane, life(1)).await);
        }
        peers.book.tell(|own| own.card.node = life(2));
        for (stream, arrived) in &mut former {
            let said = said(stream, arrived, FrameKind::Append).await;
            assert_eq!(said, Vec::<String>::new(), "closed without a word");
        }
        let greeting = Greeting {
            lane: Lane::Data,
            shard: 0,
            cluster: CLUSTER,
            node: NodeId::of_incarnation(2, 1),
            wanted: life(1),
            nonce: [0; 32],
        };
        let problem = meant(&peers, &greeting, 0).expect_err("refused");
        assert!(problem.contains("another life"), "{problem}");
        peers.stop();
    }
}
