//! etcd as the registry: a small client of our own, and the loops that decide nothing.
//!
//! `client` speaks to whichever of the endpoints answers; `keeper` carries out what
//! [`super::lease::LeaseKeeper`] decides, `watcher` what [`super::watch::WatchLoop`] does, `teller`
//! what [`super::map_keeper::MapKeeper`] does. Why the client is our own is in
//! `docs/design/0011-etcd-client.md`.

mod client;
mod keeper;
mod proto;
mod teller;
mod watcher;

pub(crate) use client::{Client, Credentials};
pub(crate) use keeper::Keeper;
pub(crate) use teller::Teller;
pub(crate) use watcher::Watcher;
