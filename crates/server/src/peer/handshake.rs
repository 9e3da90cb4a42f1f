//! How two nodes make sure of each other before anything else is said (`docs/replication.md`,
//! "Handshake").
//!
//! Greeting, challenge, proof, welcome. Both prove that they know the node's password, by an HMAC
//! over everything that was said before, so that the password itself is never sent and nothing can
//! be replayed. Whoever belongs to another cluster, or is not who was looked for, is refused with
//! a reason. Until it is over frames are small, and it has a deadline.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use flux_raft::network::frame::{FrameKind, PeerDecoder, PeerFrame, write_peer_frame};
use flux_types::{ClusterId, NodeId, limits};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::field::{Malformed, Reader};
use crate::context::same_bytes;

/// The version of everything that nodes say to each other.
pub(crate) const VERSION: u16 = 1;
/// First bytes of a greeting, so that a stranger is told from a node at once.
const MAGIC: [u8; 4] = *b"FLXP";
/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(3);
/// Bytes of a nonce, and of a proof.
const SECRET_BYTES: usize = 32;
/// Longest reason of a refusal, in bytes.
const REASON_BYTES_MAX: usize = 1024;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// Small messages that must not wait: heartbeats, votes, news.
    Control,
    /// Entries and forwarded commands.
    Data,
    /// One snapshot.
    Snapshot,
}

/// Who calls, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) lane: Lane,
    /// A shard that it will carry: tells the receiver on which of its threads it is best served.
    pub(crate) shard: u32,
    /// The cluster of the caller; 0: none yet.
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    /// Whom it looks for; 0: whoever is there.
    pub(crate) wanted: NodeId,
    pub(crate) nonce: [u8; SECRET_BYTES],
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
}

/// Why two nodes do not talk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// What came is not of our protocol.
    #[error("it does not speak the protocol of nodes: {0}")]
    Protocol(String),
    /// It said no.
    #[error("it refused: {0}")]
    Refused(String),
    /// It does not know our password.
    #[error("it does not have the same password")]
    Password,
    /// It took too long.
    #[error("it did not answer in time")]
    Timeout,
}

impl From<Malformed> for HandshakeError {
    fn from(malformed: Malformed) -> Self {
        Self::Protocol(malformed.to_string())
    }
}

impl Greeting {
    fn write(&self, out: &mut BytesMut) {
        out.put_slice(&MAGIC);
        out.put_u16_le(VERSION);
        out.put_u8(match self.lane {
            Lane::Control => 0,
            Lane::Data => 1,
            Lane::Snapshot => 2,
        });
        out.put_u32_le(self.shard);
        out.put_u64_le(self.cluster.get());
        out.put_u64_le(self.node.get());
        out.put_u64_le(self.wanted.get());
        out.put_slice(&self.nonce);
    }

    fn read(payload: Bytes) -> Result<Self, HandshakeError> {
        let mut reader = Reader::new(payload);
        if reader.array::<4>("magic")? != MAGIC {
            return Err(Malformed("magic").into());
        }
        let version = reader.u16("version")?;
        if version != VERSION {
            let problem = format!("version {version}, this node speaks {VERSION}");
            return Err(HandshakeError::Protocol(problem));
        }
        let greeting = Self {
            lane: match reader.u8("lane")? {
                0 => Lane::Control,
                1 => Lane::Data,
                2 => Lane::Snapshot,
                _ => return Err(Malformed("lane").into()),
            },
            shard: reader.u32("shard")?,
            cluster: ClusterId::new(reader.u64("cluster")?),
            node: NodeId::new(reader.u64("node")?),
            wanted: NodeId::new(reader.u64("wanted")?),
            nonce: reader.array("nonce")?,
        };
        reader.end()?;
        Ok(greeting)
    }
}

/// HMAC-SHA256 of two parts.
fn proof(password: &str, role: &[u8], transcript: &[u8]) -> [u8; SECRET_BYTES] {
    const BLOCK_BYTES: usize = 64;
    let mut key = [0_u8; BLOCK_BYTES];
    let long;
    let bytes = if password.len() > BLOCK_BYTES {
        long = Sha256::digest(password.as_bytes());
        long.as_slice()
    } else {
        password.as_bytes()
    };
    key.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    let inner = Sha256::new()
        .chain_update(key.map(|byte| byte ^ 0x36))
        .chain_update(role)
        .chain_update(transcript)
        .finalize();
    Sha256::new()
        .chain_update(key.map(|byte| byte ^ 0x5c))
        .chain_update(inner)
        .finalize()
        .into()
}

const CALLER: &[u8] = b"flux-kv peer, who calls";
const ANSWERER: &[u8] = b"flux-kv peer, who answers";

/// Random bits for one handshake.
fn nonce() -> std::io::Result<[u8; SECRET_BYTES]> {
    let mut nonce = [0; SECRET_BYTES];
    for part in nonce.chunks_exact_mut(8) {
        part.copy_from_slice(&flux_env::entropy_u64()?.to_le_bytes());
    }
    Ok(nonce)
}

async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    kind: FrameKind,
    fill: impl FnOnce(&mut BytesMut),
) -> std::io::Result<()> {
    let mut out = BytesMut::new();
    write_peer_frame(&mut out, kind, 0, 0, fill);
    stream.write_all(&out).await
}

async fn receive<S: AsyncRead + Unpin>(
    stream: &mut S,
    arrived: &mut BytesMut,
) -> Result<PeerFrame, HandshakeError> {
    let decoder = PeerDecoder::new(limits::PEER_GREETING_BYTES_MAX);
    loop {
        match decoder.next(arrived) {
            Ok(Some(frame)) => return Ok(frame),
            Ok(None) => {}
            Err(error) => return Err(HandshakeError::Protocol(error.to_string())),
        }
        if stream.read_buf(arrived).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
    }
}

fn unexpected(frame: &PeerFrame) -> HandshakeError {
    if frame.kind == FrameKind::Refused {
        let reason = frame
            .payload
            .get(..REASON_BYTES_MAX)
            .unwrap_or(&frame.payload);
        return HandshakeError::Refused(String::from_utf8_lossy(reason).into_owned());
    }
    HandshakeError::Protocol(format!("{:?} came unexpected", frame.kind))
}

/// The caller's side. `arrived` is empty afterwards, but for what came right behind the welcome.
///
/// # Errors
/// See [`HandshakeError`].
///
/// # Cancellation
/// Safe to drop, with the stream.
pub(crate) async fn call<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    arrived: &mut BytesMut,
    mut greeting: Greeting,
    password: &str,
) -> Result<Welcome, HandshakeError> {
    greeting.nonce = nonce()?;
    let talking = async {
        let mut transcript = BytesMut::new();
        greeting.write(&mut transcript);
        let said = transcript.clone();
        send(stream, FrameKind::Greeting, |out| out.put_slice(&said)).await?;
        let challenge = receive(stream, arrived).await?;
        if challenge.kind != FrameKind::Challenge || challenge.payload.len() != SECRET_BYTES {
            return Err(unexpected(&challenge));
        }
        transcript.put_slice(&challenge.payload);
        let own = proof(password, CALLER, &transcript);
        send(stream, FrameKind::Proof, |out| out.put_slice(&own)).await?;
        let welcome = receive(stream, arrived).await?;
        if welcome.kind != FrameKind::Welcome {
            return Err(unexpected(&welcome));
        }
        let mut reader = Reader::new(welcome.payload);
        let answered = Welcome {
            cluster: ClusterId::new(reader.u64("cluster")?),
            node: NodeId::new(reader.u64("node")?),
        };
        transcript.put_u64_le(answered.cluster.get());
        transcript.put_u64_le(answered.node.get());
        let theirs: [u8; SECRET_BYTES] = reader.array("proof")?;
        reader.end()?;
        if !same_bytes(&theirs, &proof(password, ANSWERER, &transcript)) {
            return Err(HandshakeError::Password);
        }
        Ok(answered)
    };
    match tokio::time::timeout(LIMIT, talking).await {
        Ok(result) => result,
        Err(_) => Err(HandshakeError::Timeout),
    }
}

/// The other side: `judge` says who we are, or why the caller is not let in.
///
/// # Errors
/// See [`HandshakeError`]; the caller was told.
///
/// # Cancellation
/// Safe to drop, with the stream.
pub(crate) async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    arrived: &mut BytesMut,
    password: &str,
    judge: impl FnOnce(&Greeting) -> Result<Welcome, String>,
) -> Result<Greeting, HandshakeError> {
    let challenge = nonce()?;
    let talking = async {
        let frame = receive(stream, arrived).await?;
        if frame.kind != FrameKind::Greeting {
            return Err(unexpected(&frame));
        }
        let mut transcript = BytesMut::from(&frame.payload[..]);
        let greeting = match Greeting::read(frame.payload) {
            Ok(greeting) => greeting,
            Err(error) => {
                refuse(stream, &error.to_string()).await?;
                return Err(error);
            }
        };
        send(stream, FrameKind::Challenge, |out| {
            out.put_slice(&challenge)
        })
        .await?;
        transcript.put_slice(&challenge);
        let frame = receive(stream, arrived).await?;
        if frame.kind != FrameKind::Proof {
            return Err(unexpected(&frame));
        }
        if !same_bytes(&frame.payload, &proof(password, CALLER, &transcript)) {
            refuse(stream, "the password of this node is another").await?;
            return Err(HandshakeError::Password);
        }
        let welcome = match judge(&greeting) {
            Ok(welcome) => welcome,
            Err(reason) => {
                refuse(stream, &reason).await?;
                return Err(HandshakeError::Refused(reason));
            }
        };
        transcript.put_u64_le(welcome.cluster.get());
        transcript.put_u64_le(welcome.node.get());
        let own = proof(password, ANSWERER, &transcript);
        send(stream, FrameKind::Welcome, |out| {
            out.put_u64_le(welcome.cluster.get());
            out.put_u64_le(welcome.node.get());
            out.put_slice(&own);
        })
        .await?;
        Ok(greeting)
    };
    match tokio::time::timeout(LIMIT, talking).await {
        Ok(result) => result,
        Err(_) => Err(HandshakeError::Timeout),
    }
}

async fn refuse<S: AsyncWrite + Unpin>(stream: &mut S, reason: &str) -> std::io::Result<()> {
    send(stream, FrameKind::Refused, |out| {
        out.put_slice(
            reason
                .as_bytes()
                .get(..REASON_BYTES_MAX)
                .unwrap_or(reason.as_bytes()),
        );
    })
    .await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    fn greeting() -> Greeting {
        Greeting {
            lane: Lane::Data,
            shard: 3,
            cluster: ClusterId::new(1),
            node: NodeId::new(2),
            wanted: NodeId::new(5),
            nonce: [0; SECRET_BYTES],
        }
    }

    const WELCOME: Welcome = Welcome {
        cluster: ClusterId::new(1),
        node: NodeId::new(5),
    };

    /// Both sides of one handshake.
    async fn shake(
        caller: &str,
        answerer: &str,
        verdict: Result<Welcome, String>,
    ) -> (
        Result<Welcome, HandshakeError>,
        Result<Greeting, HandshakeError>,
    ) {
        let (mut left, mut right) = duplex(1024);
        let (mut in_left, mut in_right) = (BytesMut::new(), BytesMut::new());
        tokio::join!(
            call(&mut left, &mut in_left, greeting(), caller),
            answer(&mut right, &mut in_right, answerer, |_| verdict),
        )
    }

    #[tokio::test]
    async fn nodes_with_one_password_know_each_other() {
        for password in ["", "secret", &"long".repeat(40)] {
            let (called, answered) = shake(password, password, Ok(WELCOME)).await;
            assert_eq!(called.expect("let in"), WELCOME);
            let heard = answered.expect("knows the caller");
            assert_eq!((heard.lane, heard.shard), (Lane::Data, 3));
            assert_eq!((heard.node, heard.wanted), (NodeId::new(2), NodeId::new(5)));
        }
    }

    #[tokio::test]
    async fn another_password_is_refused_and_said() {
        let (called, answered) = shake("secret", "other", Ok(WELCOME)).await;
        assert!(matches!(answered, Err(HandshakeError::Password)));
        let problem = called.expect_err("refused").to_string();
        assert!(problem.contains("password"), "{problem}");
    }

    #[tokio::test]
    async fn a_reason_for_a_refusal_reaches_the_caller() {
        let (called, _) = shake("", "", Err("another cluster".to_owned())).await;
        let problem = called.expect_err("refused").to_string();
        assert_eq!(problem, "it refused: another cluster");
    }

    #[tokio::test]
    async fn whoever_answers_must_prove_itself_too() {
        let (mut left, mut right) = duplex(1024);
        let mut arrived = BytesMut::new();
        let impostor = async {
            let mut heard = BytesMut::new();
            receive(&mut right, &mut heard).await.expect("a greeting");
            send(&mut right, FrameKind::Challenge, |out| {
                out.put_slice(&[7; 32])
            })
            .await
            .expect("sent");
            receive(&mut right, &mut heard).await.expect("a proof");
            send(&mut right, FrameKind::Welcome, |out| {
                out.put_slice(&[1; 48])
            })
            .await
            .expect("sent");
        };
        let (called, ()) = tokio::join!(
            call(&mut left, &mut arrived, greeting(), "secret"),
            impostor
        );
        assert!(matches!(called, Err(HandshakeError::Password)));
    }

    #[tokio::test]
    async fn a_stranger_is_told_what_this_is() {
        let (mut left, mut right) = duplex(1024);
        let mut arrived = BytesMut::new();
        left.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            .await
            .expect("sent");
        let answered = answer(&mut right, &mut arrived, "", |_| Ok(WELCOME)).await;
        assert!(matches!(answered, Err(HandshakeError::Protocol(_))));
    }

    /// RFC 4231, test case 2, with role and transcript as the two parts of its message.
    #[test]
    fn the_proof_is_hmac_sha256() {
        let found = proof("Jefe", b"what do ya want ", b"for nothing?");
        let hex: String = found.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hex, expected);
    }
}
