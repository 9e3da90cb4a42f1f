//! Serving: threads, connections and the pipeline that each request passes.

pub(crate) mod body;

pub(crate) mod framing;

mod guard;

pub(crate) mod io;

pub(crate) mod listen;

pub(crate) mod pipeline;

pub(crate) mod reply;

pub(crate) mod vet;

pub(crate) mod worker;
