//! Who is connected: the list behind `CLIENT LIST`, `CLIENT KILL` and a clean shutdown.
//!
//! A session writes its own entry and anyone may read it. What changes on every turn is atomic;
//! what changes rarely is behind a lock. Asking a session to end sets a flag and wakes it: it ends
//! where it waits for input, never in the middle of a command.
//!
//! Lock order: the list's lock, then an entry's; both leaves otherwise.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;

use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, RwLock};

/// All sessions of a node.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    entries: RwLock<BTreeMap<u64, Arc<Client>>>,
    last_id: AtomicU64,
    /// Set once the node drains: a session that comes late is asked to end at once.
    is_draining: AtomicBool,
}

/// How a session was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It was not.
    None,
    /// When it has answered everything it was asked.
    Drain,
    /// Before the next command.
    Kill,
}

/// One session, as others see it.
#[derive(Debug)]
pub(crate) struct Client {
    /// Its number, never used again.
    pub(crate) id: u64,
    /// The peer, if it is a socket.
    pub(crate) peer: Option<SocketAddr>,
    /// Our end.
    pub(crate) local: Option<SocketAddr>,
    /// Milliseconds of the node's clock when it connected.
    pub(crate) since_millis: u64,
    ending: AtomicU8,
    waker: AtomicWaker,
    /// Milliseconds of the node's clock at the last command.
    active_millis: AtomicU64,
    /// Protocol version: 2 or 3, or 0 for FLUX.
    protocol: AtomicU8,
    /// Commands queued by MULTI, plus one; 0 outside.
    queued: AtomicUsize,
    /// Keys watched.
    watched: AtomicUsize,
    /// Unsent reply bytes.
    unsent: AtomicUsize,
    /// The last command's container, if it has one, and its name.
    command: Mutex<(&'static str, &'static str)>,
    labels: Mutex<Labels>,
}

/// What a client says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Labels {
    /// CLIENT SETNAME.
    pub(crate) name: String,
    /// CLIENT SETINFO LIB-NAME.
    pub(crate) library: String,
    /// CLIENT SETINFO LIB-VER.
    pub(crate) library_version: String,
    /// CLIENT NO-EVICT ON.
    pub(crate) no_evict: bool,
    /// CLIENT NO-TOUCH ON.
    pub(crate) no_touch: bool,
}

impl Clients {
    /// Registers a session.
    pub(crate) fn register(
        &self,
        peer: Option<SocketAddr>,
        local: Option<SocketAddr>,
        now_millis: u64,
    ) -> Arc<Client> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let client = Arc::new(Client {
            id,
            peer,
            local,
            since_millis: now_millis,
            ending: AtomicU8::new(NONE),
            waker: AtomicWaker::new(),
            active_millis: AtomicU64::new(now_millis),
            protocol: AtomicU8::new(2),
            queued: AtomicUsize::new(0),
            watched: AtomicUsize::new(0),
            unsent: AtomicUsize::new(0),
            command: Mutex::new(("", "NULL")),
            labels: Mutex::new(Labels::default()),
        });
        self.entries.write().insert(id, Arc::clone(&client));
        if self.is_draining.load(Ordering::SeqCst) {
            client.end(Ending::Drain);
        }
        client
    }

    /// Forgets a session that has ended.
    pub(crate) fn remove(&self, id: u64) {
        self.entries.write().remove(&id);
    }

    /// A session by its number.
    #[must_use]
    pub(crate) fn get(&self, id: u64) -> Option<Arc<Client>> {
        self.entries.read().get(&id).cloned()
    }

    /// All sessions, oldest first.
    #[must_use]
    pub(crate) fn all(&self) -> Vec<Arc<Client>> {
        self.entries.read().values().cloned().collect()
    }

    /// Number of sessions.
    #[must_use]
    pub(crate) fn count(&self) -> usize {
        self.entries.read().len()
    }

    /// Asks all sessions, present and future, to end when they have answered.
    pub(crate) fn drain(&self) {
        // First the flag: whoever registers after it asks itself.
        self.is_draining.store(true, Ordering::SeqCst);
        for client in self.entries.read().values() {
            client.end(Ending::Drain);
        }
    }
}

const NONE: u8 = 0;
const DRAIN: u8 = 1;
const KILL: u8 = 2;

impl Client {
    /// Asks the session to end.
    pub(crate) fn end(&self, ending: Ending) {
        let ending = match ending {
            Ending::None => return,
            Ending::Drain => DRAIN,
            Ending::Kill => KILL,
        };
        self.ending.fetch_max(ending, Ordering::SeqCst);
        self.waker.wake();
    }

    /// How the session was asked to end.
    #[must_use]
    pub(crate) fn ending(&self) -> Ending {
        match self.ending.load(Ordering::SeqCst) {
            NONE => Ending::None,
            DRAIN => Ending::Drain,
            _ => Ending::Kill,
        }
    }

    /// Wakes this task when the session is asked to end. Look at [`Client::ending`] after it.
    pub(crate) fn register_waker(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }

    /// Runs a future until the session is asked to end; `None` if it was.
    ///
    /// # Cancellation
    /// As the future's.
    pub(crate) async fn unless_ended<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        poll_fn(|context| {
            self.register_waker(context.waker());
            if self.ending() != Ending::None {
                return Poll::Ready(None);
            }
            future.as_mut().poll(context).map(Some)
        })
        .await
    }

    /// Notes a command by its name.
    pub(crate) fn note_command(&self, name: &'static str, now_millis: u64) {
        self.note_subcommand("", name, now_millis);
    }

    /// Notes a command by its name and the container it is a subcommand of, which may be empty.
    pub(crate) fn note_subcommand(
        &self,
        container: &'static str,
        name: &'static str,
        now_millis: u64,
    ) {
        self.active_millis.store(now_millis, Ordering::Relaxed);
        *self.command.lock() = (container, name);
    }

    /// Milliseconds of the node's clock at the last command.
    #[must_use]
    pub(crate) fn active_millis(&self) -> u64 {
        self.active_millis.load(Ordering::Relaxed)
    }

    /// Notes the protocol: 2 or 3, or 0 for FLUX.
    pub(crate) fn set_protocol(&self, version: u8) {
        self.protocol.store(version, Ordering::Relaxed);
    }

    /// Notes how many commands MULTI has queued; none outside of MULTI.
    pub(crate) fn set_queued(&self, count: Option<usize>) {
        let queued = count.map_or(0, |count| count + 1);
        self.queued.store(queued, Ordering::Relaxed);
    }

    /// Notes how many keys are watched.
    pub(crate) fn set_watched(&self, count: usize) {
        self.watched.store(count, Ordering::Relaxed);
    }

    /// Notes how many reply bytes the peer has not taken yet.
    pub(crate) fn set_unsent(&self, bytes: usize) {
        self.unsent.store(bytes, Ordering::Relaxed);
    }

    /// What the client says of itself.
    #[must_use]
    pub(crate) fn labels(&self) -> Labels {
        self.labels.lock().clone()
    }

    /// Changes what the client says of itself.
    pub(crate) fn change_labels(&self, change: impl FnOnce(&mut Labels)) {
        change(&mut self.labels.lock());
    }

    /// The line of `CLIENT LIST`, without its end, in the fields of Redis 7.2.
    #[must_use]
    pub(crate) fn describe(&self, now_millis: u64) -> String {
        let labels = self.labels();
        let address =
            |address: Option<SocketAddr>| address.map_or_else(String::new, |a| a.to_string());
        let queued = self.queued.load(Ordering::Relaxed);
        let unsent = self.unsent.load(Ordering::Relaxed);
        let flags = match (self.ending(), queued) {
            (Ending::Kill, _) => "A",
            (Ending::Drain, _) => "c",
            (Ending::None, 0) if labels.no_evict => "e",
            (Ending::None, 0) if labels.no_touch => "T",
            (Ending::None, 0) => "N",
            (Ending::None, _) => "x",
        };
        let (container, name) = *self.command.lock();
        let separator = if container.is_empty() { "" } else { "|" };
        let seconds = |since: u64| now_millis.saturating_sub(since) / 1000;
        let multi = if queued == 0 {
            "-1".to_owned()
        } else {
            (queued - 1).to_string()
        };
        format!(
            "id={} addr={} laddr={} fd=-1 name={} age={} idle={} flags={flags} db=0 sub=0 psub=0 \
             ssub=0 multi={multi} watch={} qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 \
             obl=0 oll=0 omem={unsent} tot-mem={unsent} events=r cmd={container}{separator}{name} user=default redir=-1 \
             resp={} lib-name={} lib-ver={}",
            self.id,
            address(self.peer),
            address(self.local),
            labels.name,
            seconds(self.since_millis),
            seconds(self.active_millis()),
            self.watched.load(Ordering::Relaxed),
            self.protocol.load(Ordering::Relaxed),
            labels.library,
            labels.library_version,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_session_is_never_merely_drained() {
        let clients = Clients::default();
        let client = clients.register(None, None, 0);
        assert_eq!(client.ending(), Ending::None);
        client.end(Ending::Kill);
        clients.drain();
        assert_eq!(client.ending(), Ending::Kill);
    }

    #[test]
    fn who_comes_while_the_node_drains_is_asked_to_end() {
        let clients = Clients::default();
        clients.drain();
        assert_eq!(clients.register(None, None, 0).ending(), Ending::Drain);
    }

    #[test]
    fn sessions_are_listed_until_they_end() {
        let clients = Clients::default();
        let first = clients.register(None, None, 0);
        let second = clients.register(Some("127.0.0.1:5".parse().unwrap()), None, 1000);
        second.change_labels(|labels| labels.name = "app".to_owned());
        second.set_queued(Some(2));
        assert_eq!(clients.count(), 2);
        clients.remove(first.id);
        let all = clients.all();
        assert_eq!(all.len(), 1);
        let line = all[0].describe(5000);
        assert!(line.starts_with("id=2 addr=127.0.0.1:5 laddr= "), "{line}");
        assert!(line.contains(" name=app age=4 idle=4 flags=x "), "{line}");
        assert!(line.contains(" multi=2 "), "{line}");
    }
}
