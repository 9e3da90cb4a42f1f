//! Descriptors: where they come from, and the route table that is built from them.

pub(crate) mod catalog;

pub(crate) mod http_rule;

pub(crate) mod reflection;

pub(crate) mod refresh;

pub(crate) mod route;

pub(crate) mod source;
