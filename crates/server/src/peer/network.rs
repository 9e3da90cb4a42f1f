//! Replication's messages over links: heartbeats and votes on the control lane, entries on the data
//! lane, a snapshot on a connection of its own.

use std::sync::Arc;

use bytes::BytesMut;
use flux_log::Vote;
use flux_raft::network::frame::{FrameKind, PeerDecoder, write_peer_frame};
use flux_raft::network::message::{Message, SnapshotBegin};
use flux_raft::network::{
    AppendReply, AppendRequest, SnapshotTransfer, TransferReply, TransferRequest, VoteReply,
    VoteRequest,
};
use flux_raft::{Network, Peer, PeerError};
use flux_types::{NodeId, ShardId, limits};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::Peers;
use super::dial::dial;
use super::handshake::{self, Lane};
use super::link::Link;
use super::traffic::{Traffic, Way};

/// Blocks of a snapshot that were read from the disk and not yet sent.
const BLOCKS_AHEAD: usize = 2;

/// The network that shards are given.
#[derive(Debug)]
pub(crate) struct PeerNetwork(pub(crate) Arc<Peers>);

impl Network for PeerNetwork {
    fn peer(&self, shard: ShardId, target: NodeId) -> Box<dyn Peer> {
        Box::new(TcpPeer {
            peers: Arc::clone(&self.0),
            control: self.0.link(target, shard, Lane::Control),
            data: self.0.link(target, shard, Lane::Data),
            shard,
            target,
        })
    }
}

#[derive(Debug)]
struct TcpPeer {
    peers: Arc<Peers>,
    control: Link,
    data: Link,
    shard: ShardId,
    target: NodeId,
}

fn broken(error: impl ToString) -> PeerError {
    PeerError::Broken(error.to_string())
}

fn unreachable(error: impl ToString) -> PeerError {
    PeerError::Unreachable(error.to_string())
}

impl TcpPeer {
    fn call<'a, Q, R>(
        &'a self,
        link: &'a Link,
        kind: FrameKind,
        request: Q,
    ) -> BoxFuture<'a, Result<R, PeerError>>
    where
        Q: Message + Send + Sync + 'a,
        R: Message + 'a,
    {
        async move {
            let shard = self.shard.get();
            let answer = link.ask(kind, shard, |out| request.write(out)).await?;
            R::read(answer).map_err(broken)
        }
        .boxed()
    }

    async fn send_snapshot(&self, snapshot: SnapshotTransfer) -> Result<Vote, PeerError> {
        let address = self.peers.book.address(self.target);
        let address = address.ok_or_else(|| unreachable("its address is not known"))?;
        let mut stream = dial(&address).await.map_err(unreachable)?;
        let mut arrived = BytesMut::new();
        let greeting = self
            .peers
            .greeting(self.target, self.shard.get(), Lane::Snapshot);
        let password = &self.peers.password;
        handshake::call(&mut stream, &mut arrived, greeting, password)
            .await
            .map_err(unreachable)?;
        let traffic = self.peers.traffics.of(self.target.physical());
        let _connected = traffic.connected(Way::Out);
        let shard = self.shard.get();
        let SnapshotTransfer { vote, info, blocks } = snapshot;
        let (tell, mut ahead) = mpsc::channel(BLOCKS_AHEAD);
        // The disk blocks; who is gone stops it at the next block.
        let reading = tokio::task::spawn_blocking(move || {
            for block in blocks {
                if tell.blocking_send(block).is_err() {
                    return;
                }
            }
        });
        let mut out = BytesMut::new();
        let begin = SnapshotBegin { vote, info };
        write_peer_frame(&mut out, FrameKind::SnapshotBegin, shard, 0, |out| {
            begin.write(out)
        });
        let mut count = 0;
        while let Some(block) = ahead.recv().await {
            let block = block.map_err(broken)?;
            count += 1;
            write_peer_frame(&mut out, FrameKind::SnapshotBlock, shard, count, |out| {
                out.extend_from_slice(&block);
            });
            let pause = self.peers.pace.take(self.peers.clock.now(), out.len());
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            stream.write_all(&out).await.map_err(broken)?;
            // The first goes out with the beginning.
            traffic.carried(Way::Out, out.len(), if count == 1 { 2 } else { 1 });
            traffic.snapshot_bytes.add(Way::Out, block.len() as u64);
            out.clear();
        }
        reading.await.map_err(broken)?;
        write_peer_frame(&mut out, FrameKind::SnapshotEnd, shard, count, |_| {});
        stream.write_all(&out).await.map_err(broken)?;
        traffic.carried(Way::Out, out.len(), 1);
        let vote = snapshot_answer(&mut stream, &mut arrived, &traffic).await?;
        traffic.snapshots.add(Way::Out, 1);
        Ok(vote)
    }
}

/// What the other node says once it has the whole snapshot.
async fn snapshot_answer(
    stream: &mut TcpStream,
    arrived: &mut BytesMut,
    traffic: &Traffic,
) -> Result<Vote, PeerError> {
    let decoder = PeerDecoder::new(limits::PEER_GREETING_BYTES_MAX);
    loop {
        if let Some(frame) = decoder.next(arrived).map_err(broken)? {
            traffic.carried(Way::In, 0, 1);
            if frame.kind == FrameKind::Reply {
                return Vote::read(frame.payload).map_err(broken);
            }
            return Err(broken(String::from_utf8_lossy(&frame.payload)));
        }
        let count = stream.read_buf(arrived).await.map_err(broken)?;
        if count == 0 {
            return Err(broken("the connection was closed"));
        }
        traffic.carried(Way::In, count, 0);
    }
}

impl Peer for TcpPeer {
    fn append(&self, request: AppendRequest) -> BoxFuture<'_, Result<AppendReply, PeerError>> {
        let link = if request.entries.is_empty() {
            &self.control
        } else {
            &self.data
        };
        self.call(link, FrameKind::Append, request)
    }

    fn vote(&self, request: VoteRequest) -> BoxFuture<'_, Result<VoteReply, PeerError>> {
        self.call(&self.control, FrameKind::Vote, request)
    }

    fn pre_vote(&self, request: VoteRequest) -> BoxFuture<'_, Result<VoteReply, PeerError>> {
        self.call(&self.control, FrameKind::PreVote, request)
    }

    fn snapshot(&self, snapshot: SnapshotTransfer) -> BoxFuture<'_, Result<Vote, PeerError>> {
        self.send_snapshot(snapshot).boxed()
    }

    fn transfer(
        &self,
        request: TransferRequest,
    ) -> BoxFuture<'_, Result<TransferReply, PeerError>> {
        self.call(&self.control, FrameKind::Transfer, request)
    }
}
