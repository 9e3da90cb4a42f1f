//! The service `flux.cdc.v1.Watch`: changes as messages, one event each.
//!
//! The stream is pulled: nothing is read before the client's window has room for it, but for a few
//! messages that are made together.

use std::pin::Pin;
use std::time::Duration;

use flux_cdc::CdcError;
use flux_proto::cdc::watch_server::Watch;
use flux_proto::cdc::{CursorFailure, WatchRequest, WatchResponse};
use flux_proto::status;
use flux_types::{Error, ErrorCode};
use futures_util::stream::{self, Stream, StreamExt as _};
use prost::Message as _;
use tonic::{Code, Request, Response, Status};

use crate::changes::{Asked, Changes, Ready, WatchError, Watcher, cursor_failure, metered};

/// Messages are made ahead up to so many bytes.
const TURN_BYTES: usize = 16 * 1024;
/// How often what it costs to make a message, it costs to make and send it.
const COST_FACTOR: u32 = 2;
/// What sending them costs however few they are, wakes included.
const SEND_COST: Duration = Duration::from_micros(20);

type Messages = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send + 'static>>;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct WatchApi {
    pub(super) changes: Changes,
}

#[tonic::async_trait]
impl Watch for WatchApi {
    type WatchStream = Messages;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Messages>, Status> {
        let WatchRequest {
            prefix,
            from,
            cursor,
        } = request.into_inner();
        let asked = Asked {
            prefix,
            from,
            cursor,
        };
        let watcher = self.changes.watch(&asked).await;
        let watcher = watcher.map_err(|error| watch_status(&error))?;
        Ok(Response::new(Box::pin(messages(watcher))))
    }
}

/// What is sent next.
enum State {
    Watching(Box<Watcher>),
    Failing(Status),
    Ended,
}

type Sent = Result<WatchResponse, Status>;

fn messages(watcher: Watcher) -> impl Stream<Item = Sent> + Send {
    let begin = State::Watching(Box::new(watcher));
    let turns = stream::unfold(begin, |state| async move {
        match state {
            State::Watching(mut watcher) => {
                let (turn, cost) = metered(turn(&mut watcher)).await;
                watcher.spent(cost * COST_FACTOR + SEND_COST);
                Some(match turn {
                    Ok((messages, Ready::Events)) => (messages, State::Watching(watcher)),
                    Ok((messages, Ready::Last)) => {
                        let ends = watch_status(&WatchError::Draining);
                        (messages, State::Failing(ends))
                    }
                    Err(error) => (vec![Err(cdc_status(&error))], State::Ended),
                })
            }
            State::Failing(status) => Some((vec![Err(status)], State::Ended)),
            State::Ended => None,
        }
    });
    turns.flat_map(stream::iter)
}

/// The next messages, as many as are ready and not too large together.
async fn turn(watcher: &mut Watcher) -> Result<(Vec<Sent>, Ready), CdcError> {
    let ready = watcher.ready().await?;
    let (mut messages, mut size) = (Vec::new(), 0);
    while size < TURN_BYTES
        && let Some(message) = watcher.message()
    {
        size += message.encoded_len();
        messages.push(Ok(message));
    }
    Ok((messages, ready))
}

fn watch_status(error: &WatchError) -> Status {
    let code = match error {
        WatchError::Busy => ErrorCode::Busy,
        WatchError::Draining => ErrorCode::ShuttingDown,
        WatchError::LongPrefix => ErrorCode::Invalid,
        WatchError::Cdc(error) => return cdc_status(error),
    };
    super::to_status(&Error::not_done(code, error.to_string()))
}

fn cdc_status(error: &CdcError) -> Status {
    let Some((reason, oldest)) = cursor_failure(error) else {
        return super::to_status(&Error::not_done(ErrorCode::Unavailable, error.to_string()));
    };
    let code = match error {
        CdcError::Compacted { .. } => Code::OutOfRange,
        CdcError::Diverged { .. } => Code::FailedPrecondition,
        CdcError::Cursor(_)
        | CdcError::Behind { .. }
        | CdcError::Log { .. }
        | CdcError::Batch { .. }
        | CdcError::Stopped { .. } => Code::InvalidArgument,
    };
    let detail = CursorFailure {
        reason: reason.to_owned(),
        oldest: oldest.map(ToString::to_string).unwrap_or_default(),
    };
    status::to_tonic(&status::with_detail(
        code,
        &error.to_string(),
        "flux.cdc.v1.CursorFailure",
        &detail,
    ))
}
