//! What the protocol remembers of a session between requests.

use flux_types::{Command, Watch};
use flux_wire::resp::{SessionCommand, Version};

use bytes::Bytes;

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    /// RESP2 until HELLO 3.
    pub(super) version: Version,
    /// Whether commands other than AUTH and its like are taken.
    pub(super) is_authenticated: bool,
    /// Set by QUIT: nothing more is taken.
    pub(super) is_closing: bool,
    /// CLIENT REPLY.
    pub(super) replies: Replies,
    /// What MULTI has queued; `None` outside.
    pub(super) transaction: Option<Queue>,
    /// What the next EXEC depends on.
    pub(super) watches: Vec<Watch>,
    /// Whether the client has asked which node serves which slots.
    pub(super) knows_cluster: bool,
    /// READONLY: whether reads may be answered by a replica, which may be behind.
    pub(super) is_readonly: bool,
}

/// Whether replies are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replies {
    /// They are.
    On,
    /// Not the next one.
    SkipNext,
    /// None.
    Off,
}

/// Whether the reply to this request is kept back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mute {
    /// It is.
    Yes,
    /// It is sent.
    No,
}

/// The requests between MULTI and EXEC.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) items: Vec<Item>,
    /// Bytes of the requests as they arrived.
    pub(super) bytes: usize,
    /// A request could not be queued: EXEC will refuse.
    pub(super) is_doomed: bool,
}

/// One request between MULTI and EXEC.
#[derive(Debug)]
pub(super) enum Item {
    /// For the shard.
    Data(Command),
    /// For the session.
    Session(SessionCommand, Vec<Bytes>),
}

impl State {
    pub(super) const fn new(is_authenticated: bool) -> Self {
        Self {
            version: Version::Resp2,
            is_authenticated,
            is_closing: false,
            replies: Replies::On,
            transaction: None,
            watches: Vec::new(),
            knows_cluster: false,
            is_readonly: false,
        }
    }

    /// Whether the reply to the request at hand is kept back; the request is then accounted for.
    pub(super) const fn take_mute(&mut self) -> Mute {
        match self.replies {
            Replies::On => Mute::No,
            Replies::Off => Mute::Yes,
            Replies::SkipNext => {
                self.replies = Replies::On;
                Mute::Yes
            }
        }
    }

    /// RESET: as the connection began.
    pub(super) fn reset(&mut self, is_authenticated: bool) {
        *self = Self::new(is_authenticated);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reply_is_skipped_or_all_are() {
        let mut state = State::new(true);
        assert_eq!(state.take_mute(), Mute::No);
        state.replies = Replies::SkipNext;
        assert_eq!(state.take_mute(), Mute::Yes);
        assert_eq!(state.take_mute(), Mute::No);
        state.replies = Replies::Off;
        assert_eq!(state.take_mute(), Mute::Yes);
        assert_eq!(state.take_mute(), Mute::Yes);
        state.reset(true);
        assert_eq!(state.take_mute(), Mute::No);
    }
}
