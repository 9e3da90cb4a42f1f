//! What a row of the command table is made of.

use std::fmt;

use flux_types::{Command, Error};

use super::parse::Arguments;

/// Everything known about a command or subcommand.
#[derive(Debug)]
pub struct Spec {
    /// Lower case; of a subcommand, only its own word.
    pub name: &'static str,
    /// The command this is a subcommand of.
    pub container: Option<&'static str>,
    /// Arguments with the name (and the subcommand's): exactly `n`, or, negative, at least `-n`.
    pub arity: i64,
    /// What the command does, for authorization and COMMAND.
    pub flags: Flags,
    /// Where its keys are.
    pub keys: KeyRange,
    /// The chapter it is documented in.
    pub group: Group,
    /// The version of Redis it appeared in.
    pub since: &'static str,
    /// How its cost grows.
    pub complexity: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Its arguments in Redis's notation.
    pub usage: &'static str,
    /// Its subcommands.
    pub subcommands: &'static [Spec],
    /// What becomes of its arguments.
    pub(super) action: Action,
}

impl Spec {
    /// The name as errors, statistics and COMMAND spell it: `get`, `client|id`.
    #[must_use]
    pub fn full_name(&self) -> FullName<'_> {
        FullName(self)
    }

    /// Whether so many arguments, counted with the name, may be given.
    #[must_use]
    pub const fn accepts(&self, arguments: usize) -> bool {
        let wanted = self.arity.unsigned_abs();
        let given = arguments as u64;
        if self.arity < 0 {
            given >= wanted
        } else {
            given == wanted
        }
    }
}

/// See [`Spec::full_name`].
#[derive(Clone, Copy, Debug)]
pub struct FullName<'a>(&'a Spec);

impl fmt::Display for FullName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(container) = self.0.container {
            write!(f, "{container}|")?;
        }
        f.write_str(self.0.name)
    }
}

/// What becomes of a command's arguments.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    /// They become a data command.
    Data(fn(&mut Arguments) -> Result<Command, Error>),
    /// The session answers.
    Session(SessionCommand),
    /// Behind a request id they are a command of their own.
    Once,
    /// The first of them names a subcommand.
    Container,
}

/// Where the keys of a command are, counted with the name as 0: `first`, every `step`th, up to
/// `last`, which counts from the end where negative. All 0: it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key.
    pub first: i64,
    /// The last key.
    pub last: i64,
    /// From one key to the next.
    pub step: i64,
}

impl KeyRange {
    /// The positions of the keys among so many arguments, counted with the name.
    pub fn positions(self, arguments: usize) -> impl Iterator<Item = usize> {
        let first = usize::try_from(self.first).unwrap_or(0);
        let step = usize::try_from(self.step).unwrap_or(0);
        let last = match usize::try_from(self.last) {
            Ok(last) => last.min(arguments.saturating_sub(1)),
            Err(_) => arguments.saturating_sub(usize::try_from(-self.last).unwrap_or(0)),
        };
        let end = if first == 0 || step == 0 { 0 } else { last + 1 };
        (first..end).step_by(step.max(1))
    }
}

/// What a command does, as a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// May change data.
    pub const WRITE: Self = Self(1);
    /// Reads data.
    pub const READONLY: Self = Self(1 << 1);
    /// Refused when memory is full.
    pub const DENYOOM: Self = Self(1 << 2);
    /// For administrators.
    pub const ADMIN: Self = Self(1 << 3);
    /// Not in scripts.
    pub const NOSCRIPT: Self = Self(1 << 4);
    /// Answered while the node is still loading.
    pub const LOADING: Self = Self(1 << 5);
    /// Answered by a stale replica.
    pub const STALE: Self = Self(1 << 6);
    /// Constant or logarithmic time.
    pub const FAST: Self = Self(1 << 7);
    /// Allowed before authentication.
    pub const NO_AUTH: Self = Self(1 << 8);

    /// Names and Redis's spelling, in Redis's order.
    const NAMES: [(Self, &'static str); 9] = [
        (Self::WRITE, "write"),
        (Self::READONLY, "readonly"),
        (Self::DENYOOM, "denyoom"),
        (Self::ADMIN, "admin"),
        (Self::NOSCRIPT, "noscript"),
        (Self::LOADING, "loading"),
        (Self::STALE, "stale"),
        (Self::FAST, "fast"),
        (Self::NO_AUTH, "no_auth"),
    ];

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of those in this set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .into_iter()
            .filter(move |(flag, _)| self.contains(*flag))
            .map(|(_, name)| name)
    }
}

/// A chapter of the command reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Values.
    String,
    /// Keys of any type.
    Generic,
    /// MULTI and what belongs to it.
    Transactions,
    /// The connection itself.
    Connection,
    /// The node.
    Server,
    /// What cluster clients ask.
    Cluster,
}

impl Group {
    /// All chapters in reading order.
    pub const ALL: [Self; 6] = [
        Self::String,
        Self::Generic,
        Self::Transactions,
        Self::Connection,
        Self::Server,
        Self::Cluster,
    ];

    /// The name COMMAND DOCS gives it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Generic => "generic",
            Self::Transactions => "transactions",
            Self::Connection => "connection",
            Self::Server => "server",
            Self::Cluster => "cluster",
        }
    }
}

/// A command about the connection or the node, which the session answers. Its arity has been
/// checked; its arguments come without the name and without the subcommand's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "each is named as its command; the table says what it does"
)]
pub enum SessionCommand {
    // Transactions.
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    FluxSession,
    // The connection.
    Hello,
    Auth,
    Ping,
    Echo,
    Select,
    Quit,
    Reset,
    ClientId,
    ClientInfo,
    ClientList,
    ClientGetName,
    ClientSetName,
    ClientSetInfo,
    ClientReply,
    ClientKill,
    ClientPause,
    ClientUnpause,
    ClientNoEvict,
    ClientNoTouch,
    ClientGetRedir,
    ClientTracking,
    ClientTrackingInfo,
    ClientCaching,
    ClientUnblock,
    ClientHelp,
    // The node.
    Command,
    CommandCount,
    CommandDocs,
    CommandInfo,
    CommandList,
    CommandGetKeys,
    CommandGetKeysAndFlags,
    CommandHelp,
    ConfigGet,
    ConfigSet,
    ConfigResetStat,
    ConfigRewrite,
    ConfigHelp,
    Info,
    Time,
    Role,
    Wait,
    Lolwut,
    SlowLogGet,
    SlowLogLen,
    SlowLogReset,
    SlowLogHelp,
    LatencyLatest,
    LatencyHistory,
    LatencyReset,
    LatencyHelp,
    // The cluster.
    ClusterSlots,
    ClusterShards,
    ClusterNodes,
    ClusterInfo,
    ClusterMyId,
    ClusterMyShardId,
    ClusterLinks,
    ClusterKeySlot,
    ClusterCountKeysInSlot,
    ClusterGetKeysInSlot,
    ClusterHelp,
    ReadOnly,
    ReadWrite,
    Asking,
    FluxTopology,
    // Keys, as seen by people.
    MemoryUsage,
    MemoryDoctor,
    MemoryStats,
    MemoryHelp,
    ObjectEncoding,
    ObjectFreq,
    ObjectIdleTime,
    ObjectRefCount,
    ObjectHelp,
    DebugSleep,
    DebugObject,
    DebugHelp,
}
