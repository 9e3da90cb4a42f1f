//! etcd's API as far as the registry needs it: one call at a time, each with a deadline, at
//! whichever endpoint answers.
//!
//! An endpoint that does not answer is left for the next one. A token that etcd does not know
//! anymore, as after its restart, is replaced once per call. Errors say what to do about them
//! ([`Problem`]); whether to try again is decided elsewhere.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_stream::StreamExt as _;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use super::proto::auth_client::AuthClient;
use super::proto::compare::{CompareResult, CompareTarget, TargetUnion};
use super::proto::kv_client::KvClient;
use super::proto::lease_client::LeaseClient;
use super::proto::request_op::Request as Operation;
use super::proto::response_op::Response as Answer;
use super::proto::watch_client::WatchClient;
use super::proto::watch_request::RequestUnion;
use super::proto::{
    AuthenticateRequest, Compare, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
    WatchCreateRequest, WatchRequest, WatchResponse,
};
use crate::registry::layout::Entry;
use crate::registry::lease::LeaseId;
use crate::registry::map_keeper::Writing;
use crate::registry::watch::Revision;

/// Deadline of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection with a watch on it is tested this often; etcd allows one ping in five seconds.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// Most keys of one service.
const KEYS_MAX: i64 = 10_000;
/// Largest answer: as many keys with their values.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Name and password of an etcd user.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl fmt::Debug for Credentials {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Why a call has no answer that could be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    /// Nobody answered, or not in time: the call may have happened or not.
    #[error("{0}")]
    Away(String),
    /// etcd answered that it will not.
    #[error("etcd refuses: {0}")]
    Refused(String),
    /// etcd does not know the lease.
    #[error("the lease is gone")]
    LeaseLost,
}

/// See the module. All tasks share one.
#[derive(Debug)]
pub(crate) struct Client {
    endpoints: Vec<(String, Endpoint)>,
    credentials: Option<Credentials>,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    /// Which endpoint is in use.
    index: usize,
    session: Option<Session>,
    /// Counts changes, so that of many calls that failed together one moves on for all.
    generation: u64,
}

#[derive(Clone, Debug)]
struct Session {
    name: String,
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    generation: u64,
}

/// All keys below a prefix, at one revision.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) revision: Revision,
    pub(crate) entries: Vec<(String, Vec<u8>)>,
    /// Whether there are more than anybody should have.
    pub(crate) is_cut: bool,
}

impl Client {
    /// A client of `host:port` endpoints; it connects when it is first used.
    ///
    /// # Errors
    /// An endpoint that is not one.
    pub(crate) fn new(
        endpoints: &[String],
        credentials: Option<Credentials>,
    ) -> Result<Self, String> {
        let endpoints = endpoints
            .iter()
            .map(|name| {
                let endpoint = Endpoint::from_shared(format!("http://{name}"))
                    .map_err(|_| format!("{name:?} is not host:port"))?
                    .connect_timeout(CONNECT_TIMEOUT)
                    .http2_keep_alive_interval(PING_INTERVAL)
                    .keep_alive_timeout(PING_TIMEOUT)
                    .tcp_nodelay(true);
                Ok((name.clone(), endpoint))
            })
            .collect::<Result<Vec<_>, String>>()?;
        if endpoints.is_empty() {
            return Err("there is no endpoint".to_owned());
        }
        Ok(Self {
            endpoints,
            credentials,
            current: Mutex::new(Current {
                index: 0,
                session: None,
                generation: 0,
            }),
        })
    }

    /// Asks for a lease; returns the time to live that etcd gives it.
    pub(crate) async fn grant(&self, ttl: Duration) -> Result<(LeaseId, Duration), Problem> {
        let seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        let message = LeaseGrantRequest {
            ttl: seconds,
            id: 0,
        };
        let send =
            |channel, request| async move { LeaseClient::new(channel).lease_grant(request).await };
        let granted = self.call(message, send).await?.into_inner();
        if !granted.error.is_empty() || granted.ttl <= 0 {
            return Err(Problem::Refused(granted.error));
        }
        Ok((granted.id, seconds_of(granted.ttl)))
    }

    /// Keeps a lease alive once.
    pub(crate) async fn renew(&self, lease: LeaseId) -> Result<(), Problem> {
        let message = LeaseKeepAliveRequest { id: lease };
        let send = |channel, request: Request<LeaseKeepAliveRequest>| async move {
            let request = request.map(tokio_stream::once);
            let mut answers = LeaseClient::new(channel)
                .lease_keep_alive(request)
                .await?
                .into_inner();
            let answer = answers.message().await?;
            answer
                .map(Response::new)
                .ok_or_else(|| Status::unavailable("no answer to a keepalive"))
        };
        let kept = self.call(message, send).await?.into_inner();
        // Not an error: etcd answers for a lease that it does not know with no time to live.
        if kept.ttl <= 0 {
            return Err(Problem::LeaseLost);
        }
        Ok(())
    }

    /// Ends a lease, and with it everything that was written under it.
    pub(crate) async fn revoke(&self, lease: LeaseId) -> Result<(), Problem> {
        let message = LeaseRevokeRequest { id: lease };
        let send =
            |channel, request| async move { LeaseClient::new(channel).lease_revoke(request).await };
        self.call(message, send).await.map(drop)
    }

    /// Writes everything under a lease, or nothing.
    pub(crate) async fn put(&self, lease: LeaseId, entries: &[Entry]) -> Result<(), Problem> {
        let operation = |(key, value): &Entry| {
            Operation::RequestPut(PutRequest {
                key: key.clone().into_bytes(),
                value: value.clone().into_bytes(),
                lease,
            })
        };
        self.transact(entries.iter().map(operation)).await.map(drop)
    }

    /// Whether every key is there, under this lease.
    pub(crate) async fn is_intact(
        &self,
        lease: LeaseId,
        entries: &[Entry],
    ) -> Result<bool, Problem> {
        let operation = |(key, _): &Entry| {
            Operation::RequestRange(RangeRequest {
                key: key.clone().into_bytes(),
                keys_only: true,
                ..RangeRequest::default()
            })
        };
        let answers = self.transact(entries.iter().map(operation)).await?;
        let is_there = |answer: &Answer| match answer {
            Answer::ResponseRange(range) => range.kvs.iter().any(|found| found.lease == lease),
            Answer::ResponsePut(_) => false,
        };
        Ok(answers.len() == entries.len() && answers.iter().all(is_there))
    }

    /// What stands under a key, and by which writing; by none, if nothing does.
    pub(crate) async fn read(&self, key: &str) -> Result<(Writing, Vec<u8>), Problem> {
        let message = RangeRequest {
            key: key.as_bytes().to_vec(),
            limit: 1,
            ..RangeRequest::default()
        };
        let found = self.range(message).await?.kvs;
        let found = found.into_iter().next();
        Ok(found.map_or((0, Vec::new()), |found| (found.mod_revision, found.value)))
    }

    /// Writes a key, for as long as nobody does so otherwise, if still this writing stands there;
    /// whether it did.
    pub(crate) async fn replace(
        &self,
        key: &str,
        writing: Writing,
        value: String,
    ) -> Result<bool, Problem> {
        let (key, value) = (key.as_bytes().to_vec(), value.into_bytes());
        let unchanged = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(writing)),
        };
        let put = Operation::RequestPut(PutRequest {
            key,
            value,
            lease: 0,
        });
        let message = TxnRequest {
            compare: vec![unchanged],
            success: vec![RequestOp { request: Some(put) }],
        };
        Ok(self.txn(message).await?.succeeded)
    }

    async fn transact(
        &self,
        operations: impl Iterator<Item = Operation>,
    ) -> Result<Vec<Answer>, Problem> {
        let operation = |operation| RequestOp {
            request: Some(operation),
        };
        let message = TxnRequest {
            compare: Vec::new(),
            success: operations.map(operation).collect(),
        };
        let done = self.txn(message).await?;
        Ok(done
            .responses
            .into_iter()
            .filter_map(|response| response.response)
            .collect())
    }

    async fn txn(&self, message: TxnRequest) -> Result<TxnResponse, Problem> {
        let send = |channel, request| async move { KvClient::new(channel).txn(request).await };
        Ok(self.call(message, send).await?.into_inner())
    }

    async fn range(&self, message: RangeRequest) -> Result<RangeResponse, Problem> {
        let send = |channel, request| async move {
            KvClient::new(channel)
                .max_decoding_message_size(ANSWER_BYTES_MAX)
                .range(request)
                .await
        };
        Ok(self.call(message, send).await?.into_inner())
    }

    /// All keys that begin with `prefix`, which ends with a slash.
    pub(crate) async fn snapshot(&self, prefix: &str) -> Result<Snapshot, Problem> {
        let message = RangeRequest {
            key: prefix.as_bytes().to_vec(),
            range_end: end_of(prefix),
            limit: KEYS_MAX,
            ..RangeRequest::default()
        };
        let RangeResponse {
            header, kvs, more, ..
        } = self.range(message).await?;
        let header = header.ok_or_else(|| Problem::Refused("an answer has no header".into()))?;
        Ok(Snapshot {
            revision: header.revision,
            entries: kvs
                .into_iter()
                .map(|found| (text(found.key), found.value))
                .collect(),
            is_cut: more,
        })
    }

    /// Watches all keys that begin with `prefix`, from a revision on; returns the stream and its
    /// first message, which says that the watch has begun, or that it cannot.
    pub(crate) async fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> Result<(WatchResponse, Streaming<WatchResponse>), Problem> {
        let message = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
                key: prefix.as_bytes().to_vec(),
                range_end: end_of(prefix),
                start_revision: from,
                progress_notify: true,
            })),
        };
        let send = |channel, mut request: Request<WatchRequest>| async move {
            // A member that has lost its leader would be silent otherwise.
            let has_leader = MetadataValue::from_static("true");
            request.metadata_mut().insert("hasleader", has_leader);
            // The stream stays open for as long as ours does.
            let request =
                request.map(|first| tokio_stream::once(first).chain(tokio_stream::pending()));
            let answers = WatchClient::new(channel)
                .max_decoding_message_size(ANSWER_BYTES_MAX)
                .watch(request)
                .await?;
            let mut answers = answers.into_inner();
            let first = answers.message().await?;
            first
                .map(|first| Response::new((first, answers)))
                .ok_or_else(|| Status::unavailable("the watch ended at once"))
        };
        self.call(message, send).await.map(Response::into_inner)
    }

    /// One call, with its deadline, its token, and its consequences for the calls after it.
    async fn call<Message, Answer, Send, Answering>(
        &self,
        message: Message,
        send: Send,
    ) -> Result<Response<Answer>, Problem>
    where
        Message: Clone,
        Send: Fn(Channel, Request<Message>) -> Answering,
        Answering: Future<Output = Result<Response<Answer>, Status>>,
    {
        let mut has_new_token = false;
        loop {
            let session = self.session().await?;
            let mut request = Request::new(message.clone());
            if let Some(token) = &session.token {
                request.metadata_mut().insert("token", token.clone());
            }
            let answer = send(session.channel.clone(), request);
            let status = match tokio::time::timeout(CALL_TIMEOUT, answer).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer in time"),
            };
            if is_stale_token(&status) && self.credentials.is_some() && !has_new_token {
                self.leave(&session, false);
                has_new_token = true;
                continue;
            }
            let problem = problem(&session.name, &status);
            if matches!(problem, Problem::Away(_)) {
                self.leave(&session, true);
            }
            return Err(problem);
        }
    }

    /// The connection in use, or a new one with a token of its own.
    async fn session(&self) -> Result<Session, Problem> {
        let mut session = {
            let current = self.current.lock();
            if let Some(session) = &current.session {
                return Ok(session.clone());
            }
            let Some((name, endpoint)) = self.endpoints.get(current.index) else {
                return Err(Problem::Away("there is no endpoint".to_owned()));
            };
            Session {
                name: name.clone(),
                channel: endpoint.connect_lazy(),
                token: None,
                generation: current.generation,
            }
        };
        if let Some(credentials) = &self.credentials {
            session.token = self.authenticate(&session, credentials).await?;
        }
        let mut current = self.current.lock();
        // Whoever was quicker has the connection that all use.
        let in_use = current.session.get_or_insert_with(|| session.clone());
        Ok(in_use.clone())
    }

    async fn authenticate(
        &self,
        session: &Session,
        credentials: &Credentials,
    ) -> Result<Option<MetadataValue<Ascii>>, Problem> {
        let request = AuthenticateRequest {
            name: credentials.user.clone(),
            password: credentials.password.clone(),
        };
        let mut client = AuthClient::new(session.channel.clone());
        let answer = tokio::time::timeout(CALL_TIMEOUT, client.authenticate(request)).await;
        let status = match answer {
            Ok(Ok(answer)) => {
                let token = answer.into_inner().token.parse();
                return token
                    .map(Some)
                    .map_err(|_| Problem::Refused("its token cannot be sent back".to_owned()));
            }
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer in time"),
        };
        // An etcd that asks nobody for a password takes everybody.
        if status.code() == Code::FailedPrecondition && status.message().contains("not enabled") {
            return Ok(None);
        }
        let problem = problem(&session.name, &status);
        if matches!(problem, Problem::Away(_)) {
            self.leave(session, true);
        }
        Err(problem)
    }

    /// Gives up a connection, and with `moves_on` its endpoint too, unless somebody has before.
    fn leave(&self, session: &Session, moves_on: bool) {
        let mut current = self.current.lock();
        if current.generation != session.generation {
            return;
        }
        current.generation += 1;
        current.session = None;
        if moves_on {
            current.index = (current.index + 1)
                .checked_rem(self.endpoints.len())
                .unwrap_or_default();
        }
    }
}

/// Whether a new token would help.
fn is_stale_token(status: &Status) -> bool {
    status.code() == Code::Unauthenticated
        || (status.code() == Code::InvalidArgument
            && status.message().contains("revision of auth store is old"))
}

/// What a status means for the registry.
pub(crate) fn problem(endpoint: &str, status: &Status) -> Problem {
    let message = status.message();
    let message = message.strip_prefix("etcdserver: ").unwrap_or(message);
    match status.code() {
        Code::NotFound if message.contains("lease not found") => Problem::LeaseLost,
        Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::NotFound
        | Code::AlreadyExists
        | Code::OutOfRange => Problem::Refused(message.to_owned()),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => {
            // The innermost cause is what a person can act upon.
            let mut cause = message.to_owned();
            let mut source = status.source();
            while let Some(error) = source {
                cause = error.to_string();
                source = error.source();
            }
            Problem::Away(format!("{endpoint}: {cause}"))
        }
    }
}

/// The first key that does not begin with `prefix`: `a/` → `a0`.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // Prefixes are ASCII and end with a slash, so their last byte can be counted up.
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

pub(super) fn text(key: Vec<u8>) -> String {
    String::from_utf8(key).unwrap_or_else(|error| {
        // Nobody of ours writes such a key; it will not be understood, but be seen in the log.
        String::from_utf8_lossy(error.as_bytes()).into_owned()
    })
}

fn seconds_of(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_what_to_do_about_it() {
        let of = |code, message: &str| problem("e:1", &Status::new(code, message));
        assert_eq!(
            of(Code::NotFound, "etcdserver: requested lease not found"),
            Problem::LeaseLost
        );
        let wrong = "etcdserver: authentication failed, invalid user ID or password";
        assert_eq!(
            of(Code::InvalidArgument, wrong).to_string(),
            "etcd refuses: authentication failed, invalid user ID or password"
        );
        assert_eq!(
            of(Code::Unavailable, "etcdserver: no leader"),
            Problem::Away("e:1: no leader".to_owned())
        );
        let stale = Status::new(Code::Unauthenticated, "etcdserver: invalid auth token");
        assert!(is_stale_token(&stale));
    }

    #[test]
    fn a_range_ends_before_the_next_prefix() {
        assert_eq!(end_of("flux/services/a.B/"), b"flux/services/a.B0");
    }

    #[tokio::test]
    async fn the_next_endpoint_is_asked_when_one_does_not_answer() {
        // Two ports on which nobody listens: held, then given back.
        let ports: Vec<_> = (0..2)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let names: Vec<String> = ports
            .iter()
            .map(|port| port.local_addr().unwrap().to_string())
            .collect();
        drop(ports);
        let client = Client::new(&names, None).unwrap();
        for expected in [&names[0], &names[1], &names[0]] {
            let Err(Problem::Away(problem)) = client.snapshot("a/").await else {
                panic!("somebody answered");
            };
            assert!(problem.starts_with(expected.as_str()), "{problem}");
            assert!(problem.contains("refused"), "{problem}");
        }
        assert!(Client::new(&[], None).is_err());
        assert!(Client::new(&["not a host".to_owned()], None).is_err());
    }

    #[test]
    fn the_password_is_not_shown() {
        let credentials = Credentials {
            user: "flux".to_owned(),
            password: "hunter2".to_owned(),
        };
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
