//! What each frame of a client means.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flux_env::Instant;
use flux_types::{Command, Error, ErrorCode};
use flux_wire::flux::control::{PING_BYTES_MAX, write_pong};
use flux_wire::flux::{
    Credentials, Frame, GoawayCode, Header, Kind, Malformed, Op, Operation, Request, response,
    take_request_id,
};
use flux_wire::resp;

use super::flights::Flight;
use super::{Done, Session};
use crate::execute::Execute;
use crate::groups::Asked;
use crate::metrics::CommandCount;

impl<E: Execute> Session<E> {
    /// Acts on a frame that arrived at `now`. What can be answered at once goes to `output`.
    pub(super) fn frame(&mut self, frame: Frame, now: Instant, output: &mut BytesMut) {
        let Frame { header, payload } = frame;
        match header.kind {
            Kind::Request => {
                if let Err(error) = self.request(header, payload, now, output) {
                    response::write_error(output, header.correlation, header.op, &error);
                }
            }
            Kind::Auth => match self.authenticate(payload) {
                Ok(()) => response::write_authenticated(output, header.correlation),
                Err(error) => response::write_error(output, header.correlation, 0, &error),
            },
            Kind::Ping if payload.len() <= PING_BYTES_MAX => {
                write_pong(output, header.correlation, &payload);
            }
            Kind::Ping => self.leave(GoawayCode::Protocol, "a PING frame is too long"),
            // Nothing is asked of the client that it would answer late.
            Kind::Pong => {}
            Kind::Cancel => self.flights.cancel(header.correlation),
            // The client says goodbye: it gets what it has asked for.
            Kind::Goaway => self.is_leaving = true,
            Kind::Response | Kind::Event => {
                self.leave(GoawayCode::Protocol, "only servers send this kind of frame");
            }
            Kind::Credit => {
                self.leave(
                    GoawayCode::Protocol,
                    "version 1 has no streams to give credit to",
                );
            }
        }
    }

    fn authenticate(&mut self, payload: Bytes) -> Result<(), Error> {
        let credentials = Credentials::decode(payload).map_err(|malformed| invalid(&malformed))?;
        let Credentials { user, password } = credentials;
        if !self.parts.desk.is_password(&user, &password) {
            return Err(Error::not_done(
                ErrorCode::WrongPassword,
                "the user or the password is wrong",
            ));
        }
        self.is_authenticated = true;
        let payload_bytes_max = self.parts.limits.frame_bytes_max();
        self.decoder.set_payload_bytes_max(payload_bytes_max);
        Ok(())
    }

    /// Begins a request, or answers it at once.
    fn request(
        &mut self,
        header: Header,
        mut payload: Bytes,
        now: Instant,
        output: &mut BytesMut,
    ) -> Result<(), Error> {
        if !self.is_authenticated {
            return Err(Error::not_done(
                ErrorCode::Unauthenticated,
                "a password is required: send an AUTH frame first",
            ));
        }
        let request = if header.carries_request_id {
            let request = take_request_id(&mut payload);
            Some(request.map_err(|malformed| invalid(&malformed))?)
        } else {
            None
        };
        let once = |command: Command| match request {
            Some(request) => command.once(request),
            None => command,
        };
        let operation = Operation::decode(header.op, payload)?;
        let op = operation.op();
        match operation.into_request(self.parts.limits)? {
            Request::Data(command) => self.begin(header, op, once(command), now),
            Request::Ping(payload) => {
                let bytes_max = self.payload_bytes_max;
                response::write_echo(output, header.correlation, &payload, bytes_max);
            }
            Request::Command(decoded) => match decoded.request {
                resp::Request::Data(command) => self.begin(header, op, once(command), now),
                resp::Request::Session(command, arguments) => {
                    self.answer(header, command, &arguments, output)?;
                }
                resp::Request::Invalid(error) => return Err(error),
            },
        }
        Ok(())
    }

    /// Answers a command about the connection or the node.
    fn answer(
        &mut self,
        header: Header,
        command: resp::SessionCommand,
        arguments: &[Bytes],
        output: &mut BytesMut,
    ) -> Result<(), Error> {
        let start = output.len();
        let mut answered = Ok(());
        let bytes_max = self.payload_bytes_max;
        response::write_value(output, header.correlation, bytes_max, |writer| {
            answered = self.parts.desk.answer(command, arguments, writer);
        });
        if answered.is_err() {
            output.truncate(start);
        }
        answered
    }

    fn begin(&mut self, header: Header, op: Op, command: Command, now: Instant) {
        let is_stale = header.is_stale;
        let timeout = match header.word {
            0 => self.parts.request_timeout,
            millis => Duration::from_millis(u64::from(millis)),
        };
        let flight = self.flights.begin(Flight {
            correlation: header.correlation,
            op,
            counted: CommandCount::of(&command),
            begun: now,
            is_cancelled: false,
        });
        if is_stale {
            // Run when there is room for its reply, as all are.
            let executor = self.parts.executor.clone();
            self.running.push(Box::pin(async move {
                let answers = vec![executor.read_stale(command)];
                let flights = vec![flight];
                Done { flights, answers }
            }));
            return;
        }
        self.asked.push(Asked {
            ticket: flight,
            command,
            deadline: now + timeout,
        });
    }
}

fn invalid(malformed: &Malformed) -> Error {
    Error::not_done(ErrorCode::Invalid, malformed.to_string())
}
