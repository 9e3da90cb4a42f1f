//! Rows of the commands about the connection.

use super::super::spec::{
    Action::{Container, Session},
    Group, SessionCommand as Command, Spec,
};
use super::row;

const GROUP: Group = Group::Connection;
const CONTAINER: Option<&str> = None;

pub(super) const ROWS: &[Spec] = &[
    row!("hello" "[protover [AUTH username password] [SETNAME clientname]]", -1,
        [NOSCRIPT LOADING STALE FAST NO_AUTH], (0 0 0), "6.0.0", "O(1)",
        "Chooses RESP2 or RESP3, authenticates, and tells about the node.", Session(Command::Hello)),
    row!("auth" "[username] password", -2, [NOSCRIPT LOADING STALE FAST NO_AUTH], (0 0 0), "1.0.0", "O(1)",
        "Authenticates the connection.", Session(Command::Auth)),
    row!("ping" "[message]", -1, [FAST], (0 0 0), "1.0.0", "O(1)",
        "Answers PONG, or the message.", Session(Command::Ping)),
    row!("echo" "message", 2, [LOADING STALE FAST], (0 0 0), "1.0.0", "O(1)",
        "Answers the message.", Session(Command::Echo)),
    row!("select" "index", 2, [LOADING STALE FAST], (0 0 0), "1.0.0", "O(1)",
        "Chooses a database. There is one, 0.", Session(Command::Select)),
    row!("quit" "", -1, [NOSCRIPT LOADING STALE FAST NO_AUTH], (0 0 0), "1.0.0", "O(1)",
        "Closes the connection.", Session(Command::Quit)),
    row!("reset" "", 1, [NOSCRIPT LOADING STALE FAST NO_AUTH], (0 0 0), "6.2.0", "O(1)",
        "Puts the connection back to how it began.", Session(Command::Reset)),
    row!("client" "subcommand", -2, [NONE], (0 0 0), "2.4.0", "Depends on the subcommand.",
        "Tells about and steers connections.", Container, client::ROWS),
];

mod client {
    use super::super::super::spec::{Action::Session, Group, SessionCommand as Command, Spec};
    use super::super::row;

    const GROUP: Group = Group::Connection;
    const CONTAINER: Option<&str> = Some("client");

    pub(super) const ROWS: &[Spec] = &[
        row!("id" "", 2, [NOSCRIPT LOADING STALE], (0 0 0), "5.0.0", "O(1)",
            "Returns the number of this connection.", Session(Command::ClientId)),
        row!("info" "", 2, [NOSCRIPT LOADING STALE], (0 0 0), "6.2.0", "O(1)",
            "Describes this connection.", Session(Command::ClientInfo)),
        row!("list" "[TYPE type] [ID client-id [client-id ...]]", -2, [ADMIN NOSCRIPT LOADING STALE], (0 0 0), "2.4.0", "O(N) in the connections",
            "Describes all connections.", Session(Command::ClientList)),
        row!("getname" "", 2, [NOSCRIPT LOADING STALE], (0 0 0), "2.6.9", "O(1)",
            "Returns the name of this connection.", Session(Command::ClientGetName)),
        row!("setname" "connection-name", 3, [NOSCRIPT LOADING STALE], (0 0 0), "2.6.9", "O(1)",
            "Names this connection.", Session(Command::ClientSetName)),
        row!("setinfo" "LIB-NAME libname | LIB-VER libver", 4, [NOSCRIPT LOADING STALE], (0 0 0), "7.2.0", "O(1)",
            "Says which client library this connection uses.", Session(Command::ClientSetInfo)),
        row!("reply" "ON | OFF | SKIP", 3, [NOSCRIPT LOADING STALE], (0 0 0), "3.2.0", "O(1)",
            "Chooses whether this connection is answered.", Session(Command::ClientReply)),
        row!("kill" "addr | [ID client-id] [ADDR addr] [LADDR addr] [USER username] [SKIPME <YES | NO>]", -3, [ADMIN NOSCRIPT LOADING STALE], (0 0 0), "2.4.0", "O(N) in the connections",
            "Closes connections.", Session(Command::ClientKill)),
        row!("pause" "timeout [WRITE | ALL]", -3, [ADMIN NOSCRIPT LOADING STALE], (0 0 0), "3.0.0", "O(1)",
            "Holds back commands of all connections for some milliseconds.", Session(Command::ClientPause)),
        row!("unpause" "", 2, [ADMIN NOSCRIPT LOADING STALE], (0 0 0), "6.2.0", "O(1)",
            "Ends a pause.", Session(Command::ClientUnpause)),
        row!("no-evict" "ON | OFF", 3, [ADMIN NOSCRIPT LOADING STALE], (0 0 0), "7.0.0", "O(1)",
            "Spares this connection when memory is short.", Session(Command::ClientNoEvict)),
        row!("no-touch" "ON | OFF", 3, [NOSCRIPT LOADING STALE], (0 0 0), "7.2.0", "O(1)",
            "Chooses whether this connection's reads mark keys as used.", Session(Command::ClientNoTouch)),
        row!("getredir" "", 2, [NOSCRIPT LOADING STALE], (0 0 0), "6.0.0", "O(1)",
            "Returns where invalidations go: nowhere.", Session(Command::ClientGetRedir)),
        row!("tracking" "ON | OFF", -3, [NOSCRIPT LOADING STALE], (0 0 0), "6.0.0", "O(1)",
            "Takes OFF; refuses ON: keys are not tracked.", Session(Command::ClientTracking)),
        row!("trackinginfo" "", 2, [NOSCRIPT LOADING STALE], (0 0 0), "6.2.0", "O(1)",
            "Returns how keys are tracked: not at all.", Session(Command::ClientTrackingInfo)),
        row!("caching" "YES | NO", 3, [NOSCRIPT LOADING STALE], (0 0 0), "6.0.0", "O(1)",
            "Refused: keys are not tracked.", Session(Command::ClientCaching)),
        row!("unblock" "client-id [TIMEOUT | ERROR]", -3, [ADMIN NOSCRIPT LOADING STALE], (0 0 0), "5.0.0", "O(1)",
            "Returns 0: no command blocks.", Session(Command::ClientUnblock)),
        row!("help" "", 2, [LOADING STALE], (0 0 0), "5.0.0", "O(1)",
            "Lists the subcommands.", Session(Command::ClientHelp)),
    ];
}
