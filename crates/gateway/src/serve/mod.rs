//! Serving: threads, connections and the pipeline that each request passes.

pub(crate) mod bare;

pub(crate) mod body;

pub(crate) mod form;

pub(crate) mod framing;

mod guard;

pub(crate) mod io;

pub(crate) mod listen;

pub(crate) mod pipeline;

pub(crate) mod render;

pub(crate) mod reply;
mod traced;

mod share;

pub(crate) mod stream;

pub(crate) mod vet;

pub(crate) mod worker;
