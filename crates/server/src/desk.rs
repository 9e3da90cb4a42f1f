//! The node, as FLUX sessions see it.

use std::sync::Arc;

use bytes::Bytes;
use flux_types::Error;
use flux_wire::Limits;
use flux_wire::resp::{SessionCommand, Writer, introspect};

use crate::context::{Context, SessionContext};
use crate::exec::Executor;
use crate::flux_session::{Desk, Parts};
use crate::session::server;

impl Desk for Context {
    fn wants_password(&self) -> bool {
        self.switches.wants_password()
    }

    fn is_password(&self, user: &[u8], password: &[u8]) -> bool {
        let is_known = user.is_empty() || user == b"default";
        is_known && self.switches.is_password(password)
    }

    fn answer(
        &self,
        command: SessionCommand,
        arguments: &[Bytes],
        writer: &mut Writer<'_>,
    ) -> Result<(), Error> {
        match (command, arguments) {
            (SessionCommand::Ping, []) => writer.simple("PONG"),
            (SessionCommand::Ping | SessionCommand::Echo, [message]) => writer.bulk(message),
            (SessionCommand::Select, [database]) if database == "0" => writer.ok(),
            _ if introspect::answer(command, arguments, writer) => {}
            _ => return server::answer(self, command, arguments, writer),
        }
        Ok(())
    }
}

impl SessionContext {
    /// What a FLUX session is made of.
    pub(crate) fn flux_parts(&self) -> Parts<Executor> {
        let config = &self.node.config;
        Parts {
            executor: self.executor.clone(),
            desk: Arc::clone(&self.node) as _,
            clock: Arc::clone(&self.node.clock),
            metrics: self.node.metrics.clone(),
            request_timeout: config.request_timeout,
            limits: self.node.limits(),
        }
    }
}

impl Context {
    /// What a connection may send.
    pub(crate) fn limits(&self) -> Limits {
        let value_bytes_max = usize::try_from(self.config.value_size_max);
        Limits {
            value_bytes_max: value_bytes_max.unwrap_or(usize::MAX),
        }
    }
}
