//! A span: the guard that its owner holds, and what becomes of it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Tracer;
use crate::context::TraceContext;

/// Which part of Flux-KV made a span: a collector shows each as a service of its own, also where
/// one process runs several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// The HTTP gateway.
    Gateway,
    /// A key-value node.
    Node,
    /// The program that consumes changes.
    Consumer,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Gateway, Self::Node, Self::Consumer];

    /// Its `service.name`, unless the process was given another.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "flux-gateway",
            Self::Node => "flux-node",
            Self::Consumer => "flux-cdc-consumer",
        }
    }
}

/// What a span is to those around it, as OpenTelemetry defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Work within one service.
    Internal,
    /// Answers a request.
    Server,
    /// Sends a request and waits for the answer.
    Client,
    /// Sends a message that is processed later.
    Producer,
    /// Processes a message.
    Consumer,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A text.
    Text(Cow<'static, str>),
    /// A whole number.
    Whole(i64),
    /// Yes or no.
    Flag(bool),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Whole(number)
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Whole(i64::from(number))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Whole(i64::from(number))
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Whole(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Whole(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

/// A span that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Who made it.
    pub service: Service,
    /// What it is called: of few different values.
    pub name: Cow<'static, str>,
    /// What it is to those around it.
    pub kind: Kind,
    /// Its trace and its own identifier.
    pub context: TraceContext,
    /// The span that caused it; none for the first of a trace.
    pub parent: Option<u64>,
    /// Whether another process made that.
    pub parent_is_remote: bool,
    /// Nanoseconds since the Unix epoch.
    pub begun_at: u64,
    /// The same; not before `begun_at`.
    pub ended_at: u64,
    /// What is known of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// Spans that it has to do with, without being caused by them.
    pub links: Vec<TraceContext>,
    /// Why it failed, if it did.
    pub error: Option<Cow<'static, str>>,
}

/// Attributes and links of one span; more are left out.
const ATTRIBUTES_MAX: usize = 64;
const LINKS_MAX: usize = 128;

/// A span that goes on until it is dropped. There is one only for what is recorded.
pub struct Span {
    context: TraceContext,
    tracer: Arc<Tracer>,
    /// Taken when dropped.
    open: Mutex<Option<Box<Finished>>>,
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Span").field(&self.context).finish()
    }
}

impl Span {
    pub(super) fn new(tracer: Arc<Tracer>, open: Finished) -> Self {
        Self {
            context: open.context,
            tracer,
            open: Mutex::new(Some(Box::new(open))),
        }
    }

    /// What to send on, so that what it causes is recorded below it.
    #[must_use]
    pub const fn context(&self) -> TraceContext {
        self.context
    }

    /// A span below this one.
    pub fn child<N: Into<Cow<'static, str>>>(
        &self,
        service: Service,
        kind: Kind,
        name: impl FnOnce() -> N,
    ) -> Self {
        self.tracer.child_of(self.context, service, kind, name)
    }

    /// Says something about it. Never a key, a value or a password.
    pub fn set(&self, name: &'static str, value: impl Into<Value>) {
        self.change(|open| {
            if open.attributes.len() < ATTRIBUTES_MAX {
                open.attributes.push((name, value.into()));
            }
        });
    }

    /// Gives it another name, once more is known.
    pub fn rename(&self, name: impl Into<Cow<'static, str>>) {
        self.change(|open| open.name = name.into());
    }

    /// Names a span that this one has to do with.
    pub fn link(&self, to: TraceContext) {
        self.change(|open| {
            if open.links.len() < LINKS_MAX {
                open.links.push(to);
            }
        });
    }

    /// Marks it as failed. `why` becomes `error.type`: a word of a closed set.
    pub fn fail(&self, why: impl Into<Cow<'static, str>>) {
        let why = why.into();
        self.set("error.type", Value::Text(why.clone()));
        self.change(|open| open.error = Some(why));
    }

    fn change(&self, change: impl FnOnce(&mut Finished)) {
        if let Some(open) = self.open.lock().as_deref_mut() {
            change(open);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(open) = self.open.get_mut().take() {
            self.tracer.finish(*open);
        }
    }
}
