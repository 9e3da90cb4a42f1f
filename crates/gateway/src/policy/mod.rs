//! What decides whether, where and how often an upstream is called: state machines over values.
//!
//! Nothing here does I/O or reads a clock: time comes in as an [`flux_env::Instant`], so each can be
//! asked a million times a second from a simulated clock. `serve::pipeline` asks them, one line for
//! each. No lock is held across a call, and none while another is taken.

pub(crate) mod gcra;

pub(crate) mod limit;

pub(crate) mod breaker;

pub(crate) mod bulkhead;

pub(crate) mod balance;

pub(crate) mod health;

pub(crate) mod budget;

pub(crate) mod flight;

pub(crate) mod stale;

pub(crate) mod route;
