//! Rows of the commands about the node.

use super::super::parse;
use super::super::spec::{
    Action::{Container, Data, Session},
    Group, SessionCommand as Command, Spec,
};
use super::row;

const GROUP: Group = Group::Server;
const CONTAINER: Option<&str> = None;

pub(super) const ROWS: &[Spec] = &[
    row!("dbsize" "", 1, [READONLY FAST], (0 0 0), "1.0.0", "O(1)",
        "Returns the number of keys.", Data(parse::count)),
    row!("flushall" "[ASYNC | SYNC]", -1, [WRITE], (0 0 0), "1.0.0", "O(N) in the number of keys",
        "Deletes all keys.", Data(parse::clear)),
    row!("flushdb" "[ASYNC | SYNC]", -1, [WRITE], (0 0 0), "1.0.0", "O(N) in the number of keys",
        "Deletes all keys: there is one database.", Data(parse::clear)),
    row!("info" "[section [section ...]]", -1, [LOADING STALE], (0 0 0), "1.0.0", "O(1)",
        "Describes the node.", Session(Command::Info)),
    row!("time" "", 1, [LOADING STALE FAST], (0 0 0), "2.6.0", "O(1)",
        "Returns the node's time: Unix seconds, and microseconds.", Session(Command::Time)),
    row!("role" "", 1, [NOSCRIPT LOADING STALE FAST], (0 0 0), "2.8.12", "O(1)",
        "Returns the role of the node in replication.", Session(Command::Role)),
    row!("lolwut" "[VERSION version]", -1, [READONLY FAST], (0 0 0), "5.0.0", "O(1)",
        "Shows the version.", Session(Command::Lolwut)),
    row!("command" "[subcommand]", -1, [LOADING STALE], (0 0 0), "2.8.13", "O(N) in the number of commands",
        "Describes all commands.", Session(Command::Command), command::ROWS),
    row!("config" "subcommand", -2, [NONE], (0 0 0), "2.0.0", "Depends on the subcommand.",
        "Reads and changes settings.", Container, config::ROWS),
    row!("memory" "subcommand", -2, [NONE], (0 0 0), "4.0.0", "Depends on the subcommand.",
        "Tells about memory.", Container, memory::ROWS),
    row!("slowlog" "subcommand", -2, [NONE], (0 0 0), "2.2.12", "Depends on the subcommand.",
        "Tells about what took long.", Container, slowlog::ROWS),
    row!("latency" "subcommand", -2, [NONE], (0 0 0), "2.8.13", "Depends on the subcommand.",
        "Answers tools that ask for latency events; there are none.", Container, latency::ROWS),
    row!("debug" "subcommand", -2, [NONE], (0 0 0), "1.0.0", "Depends on the subcommand.",
        "For tests of the node.", Container, debug::ROWS),
];

mod command {
    use super::super::super::spec::{Action::Session, Group, SessionCommand as Command, Spec};
    use super::super::row;

    const GROUP: Group = Group::Server;
    const CONTAINER: Option<&str> = Some("command");

    pub(super) const ROWS: &[Spec] = &[
        row!("count" "", 2, [LOADING STALE], (0 0 0), "2.8.13", "O(1)",
            "Returns the number of commands.", Session(Command::CommandCount)),
        row!("docs" "[command-name [command-name ...]]", -2, [LOADING STALE], (0 0 0), "7.0.0", "O(N) in the commands described",
            "Documents commands.", Session(Command::CommandDocs)),
        row!("info" "[command-name [command-name ...]]", -2, [LOADING STALE], (0 0 0), "2.8.13", "O(N) in the commands described",
            "Describes commands.", Session(Command::CommandInfo)),
        row!("list" "[FILTERBY <MODULE module-name | ACLCAT category | PATTERN pattern>]", -2, [LOADING STALE], (0 0 0), "7.0.0", "O(N) in the number of commands",
            "Returns the names of commands.", Session(Command::CommandList)),
        row!("getkeys" "command [arg ...]", -3, [LOADING STALE], (0 0 0), "2.8.13", "O(N) in the arguments",
            "Returns the keys of a command.", Session(Command::CommandGetKeys)),
        row!("getkeysandflags" "command [arg ...]", -3, [LOADING STALE], (0 0 0), "7.0.0", "O(N) in the arguments",
            "Returns the keys of a command and how it uses them.", Session(Command::CommandGetKeysAndFlags)),
        row!("help" "", 2, [LOADING STALE], (0 0 0), "5.0.0", "O(1)",
            "Lists the subcommands.", Session(Command::CommandHelp)),
    ];
}

mod config {
    use super::super::super::spec::{Action::Session, Group, SessionCommand as Command, Spec};
    use super::super::row;

    const GROUP: Group = Group::Server;
    const CONTAINER: Option<&str> = Some("config");

    pub(super) const ROWS: &[Spec] = &[
        row!("get" "parameter [parameter ...]", -3, [ADMIN NOSCRIPT LOADING STALE], (0 0 0), "2.0.0", "O(N) in the settings",
            "Returns settings whose names match patterns.", Session(Command::ConfigGet)),
        row!("set" "parameter value [parameter value ...]", -4, [ADMIN NOSCRIPT LOADING STALE], (0 0 0), "2.0.0", "O(N) in the settings",
            "Changes settings until the node stops.", Session(Command::ConfigSet)),
        row!("resetstat" "", 2, [ADMIN NOSCRIPT LOADING STALE], (0 0 0), "2.0.0", "O(1)",
            "Sets statistics back to zero.", Session(Command::ConfigResetStat)),
        row!("rewrite" "", 2, [ADMIN NOSCRIPT LOADING STALE], (0 0 0), "2.8.0", "O(1)",
            "Refused: the configuration file belongs to its author.", Session(Command::ConfigRewrite)),
        row!("help" "", 2, [LOADING STALE], (0 0 0), "5.0.0", "O(1)",
            "Lists the subcommands.", Session(Command::ConfigHelp)),
    ];
}

mod memory {
    use super::super::super::spec::{Action::Session, Group, SessionCommand as Command, Spec};
    use super::super::row;

    const GROUP: Group = Group::Server;
    const CONTAINER: Option<&str> = Some("memory");

    pub(super) const ROWS: &[Spec] = &[
        row!("usage" "key [SAMPLES count]", -3, [READONLY], (2 2 1), "4.0.0", "O(1)",
            "Returns the bytes a key takes.", Session(Command::MemoryUsage)),
        row!("doctor" "", 2, [NONE], (0 0 0), "4.0.0", "O(1)",
            "Says whether memory is used well.", Session(Command::MemoryDoctor)),
        row!("stats" "", 2, [NONE], (0 0 0), "4.0.0", "O(1)",
            "Returns how memory is used.", Session(Command::MemoryStats)),
        row!("help" "", 2, [LOADING STALE], (0 0 0), "4.0.0", "O(1)",
            "Lists the subcommands.", Session(Command::MemoryHelp)),
    ];
}

mod slowlog {
    use super::super::super::spec::{Action::Session, Group, SessionCommand as Command, Spec};
    use super::super::row;

    const GROUP: Group = Group::Server;
    const CONTAINER: Option<&str> = Some("slowlog");

    pub(super) const ROWS: &[Spec] = &[
        row!("get" "[count]", -2, [ADMIN LOADING STALE], (0 0 0), "2.2.12", "O(N) in the entries returned",
            "Returns the latest slow turns, by the name of their command.", Session(Command::SlowLogGet)),
        row!("len" "", 2, [ADMIN LOADING STALE], (0 0 0), "2.2.12", "O(1)",
            "Returns how many slow turns are kept.", Session(Command::SlowLogLen)),
        row!("reset" "", 2, [ADMIN LOADING STALE], (0 0 0), "2.2.12", "O(N) in the entries kept",
            "Forgets all slow turns.", Session(Command::SlowLogReset)),
        row!("help" "", 2, [LOADING STALE], (0 0 0), "6.2.0", "O(1)",
            "Lists the subcommands.", Session(Command::SlowLogHelp)),
    ];
}

mod latency {
    use super::super::super::spec::{Action::Session, Group, SessionCommand as Command, Spec};
    use super::super::row;

    const GROUP: Group = Group::Server;
    const CONTAINER: Option<&str> = Some("latency");

    pub(super) const ROWS: &[Spec] = &[
        row!("latest" "", 2, [ADMIN NOSCRIPT LOADING STALE], (0 0 0), "2.8.13", "O(1)",
            "Returns an empty array: latencies are in the metrics.", Session(Command::LatencyLatest)),
        row!("history" "event", 3, [ADMIN NOSCRIPT LOADING STALE], (0 0 0), "2.8.13", "O(1)",
            "Returns an empty array: latencies are in the metrics.", Session(Command::LatencyHistory)),
        row!("reset" "[event [event ...]]", -2, [ADMIN NOSCRIPT LOADING STALE], (0 0 0), "2.8.13", "O(1)",
            "Returns 0, the number of events forgotten.", Session(Command::LatencyReset)),
        row!("help" "", 2, [LOADING STALE], (0 0 0), "2.8.13", "O(1)",
            "Lists the subcommands.", Session(Command::LatencyHelp)),
    ];
}

mod debug {
    use super::super::super::spec::{Action::Session, Group, SessionCommand as Command, Spec};
    use super::super::row;

    const GROUP: Group = Group::Server;
    const CONTAINER: Option<&str> = Some("debug");

    pub(super) const ROWS: &[Spec] = &[
        row!("sleep" "seconds", 3, [ADMIN NOSCRIPT LOADING STALE], (0 0 0), "1.0.0", "O(1)",
            "Answers after some time; holds up this connection only.", Session(Command::DebugSleep)),
        row!("object" "key", 3, [ADMIN NOSCRIPT LOADING STALE], (2 2 1), "1.0.0", "O(1)",
            "Describes how a key is kept.", Session(Command::DebugObject)),
        row!("help" "", 2, [LOADING STALE], (0 0 0), "1.0.0", "O(1)",
            "Lists the subcommands.", Session(Command::DebugHelp)),
    ];
}
