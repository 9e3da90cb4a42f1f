//! Every bound that a peer or a file can push against, each with a name and in one place.
//!
//! Relations between bounds are asserted at compile time, so that raising one cannot silently
//! break another.

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 65_536;
/// Longest value accepted unless configured otherwise, in bytes.
pub const VALUE_BYTES_DEFAULT: usize = 8 * 1024 * 1024;
/// Longest value that can be configured, in bytes.
pub const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What a frame or gRPC message may hold beyond one value: headers, key, options.
pub const FRAME_OVERHEAD_BYTES: usize = 1024 * 1024;
/// Longest frame or gRPC message with the default value limit, in bytes.
pub const FRAME_BYTES_DEFAULT: usize = VALUE_BYTES_DEFAULT + FRAME_OVERHEAD_BYTES;
/// Longest frame that can be configured, in bytes.
pub const FRAME_BYTES_MAX: usize = VALUE_BYTES_MAX + FRAME_OVERHEAD_BYTES;

/// Most arguments in one RESP command.
pub const ARGUMENTS_MAX: usize = 1_048_576;
/// Most bytes in all arguments of one RESP command.
pub const COMMAND_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Longest inline RESP command, in bytes.
pub const INLINE_BYTES_MAX: usize = 64 * 1024;
/// Most arguments before a connection has authenticated.
pub const UNAUTHENTICATED_ARGUMENTS_MAX: usize = 10;
/// Longest argument before a connection has authenticated, in bytes.
pub const UNAUTHENTICATED_BULK_BYTES_MAX: usize = 16 * 1024;
/// Deepest nesting of RESP aggregates that a decoder follows.
pub const NESTING_MAX: usize = 32;

/// Most operations in one proposed batch.
pub const BATCH_OPERATIONS_MAX: usize = 4096;
/// Bytes of facts after which a batch takes no further command. A larger command is a batch alone.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Most operations that may wait in front of one shard's proposer; more are answered *busy*.
pub const PROPOSER_QUEUE_OPERATIONS_MAX: usize = 262_144;
/// Most commands queued by one MULTI.
pub const TRANSACTION_COMMANDS_MAX: usize = 65_536;
/// Most keys watched by one session.
pub const WATCHED_KEYS_MAX: usize = 4096;

/// Most connections of one node.
pub const CONNECTIONS_DEFAULT: usize = 10_000;
/// Most requests in flight on one FLUX connection.
pub const FLUX_IN_FLIGHT_MAX: usize = 4096;
/// Unsent reply bytes of one connection after which it is closed.
pub const OUTPUT_BUFFER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Longest name of system data, in bytes.
pub const SYSTEM_NAME_BYTES_MAX: usize = 256;
/// Longest system data under one name, in bytes.
pub const SYSTEM_VALUE_BYTES_MAX: usize = 16 * 1024;
/// Most names of system data in one shard.
pub const SYSTEM_ENTRIES_MAX: usize = 1024;

/// How far a request's sequence may be above the lowest unanswered one of its session.
pub const REQUEST_WINDOW: u64 = 1024;
/// Longest reply kept for retries of a write, in bytes of its encoding.
pub const REQUEST_REPLY_BYTES_MAX: usize = 1024;
/// Most sessions with request ids that one shard knows; writes of a further one are answered
/// *busy* until others are forgotten.
pub const REQUEST_SESSIONS_MAX: usize = 262_144;
/// Most bytes of what one shard knows of requests; what would exceed them is answered *busy*.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a shard knows a session of which nothing comes, in milliseconds.
pub const REQUEST_SESSION_IDLE_MS: u64 = 10 * 60 * 1000;
/// How long after it began a session may come to a shard for the first time, in milliseconds.
pub const REQUEST_SESSION_BEGIN_MS: u64 = 5 * 60 * 1000;
/// How far a session may seem to begin in the future, in milliseconds: clients' clocks differ.
pub const REQUEST_SESSION_AHEAD_MS: u64 = 60 * 1000;
/// Longest frame between nodes, in bytes: one log entry as large as the largest command makes it.
pub const PEER_FRAME_BYTES_MAX: usize = COMMAND_BYTES_MAX + 16 * 1024 * 1024;
/// Longest frame between nodes that have not authenticated each other, in bytes.
pub const PEER_GREETING_BYTES_MAX: usize = 32 * 1024;
/// Most nodes that a cluster's list may name.
pub const CLUSTER_NODES_MAX: usize = 64;
/// Highest number that a node may have.
pub const NODE_NUMBER_MAX: u32 = 65_535;
/// Most shards that one placement is computed for.
pub const PLACEMENT_SHARDS_MAX: usize = 65_536;
/// Most replicas of a shard.
pub const REPLICAS_MAX: usize = 7;
/// Heaviest weight of a node.
pub const WEIGHT_MAX: u16 = 1000;
/// Longest name of a zone, in bytes.
pub const ZONE_BYTES_MAX: usize = 64;
/// Largest cluster map in its encoding, in bytes: what etcd takes by default is half as much again.
pub const CLUSTER_MAP_BYTES_MAX: usize = 1024 * 1024;
/// Longest host or address of a node, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 255;

/// Most shards of a cluster.
pub const SHARDS_MAX: u32 = 64;
/// Size of a log segment, in bytes.
pub const SEGMENT_BYTES_DEFAULT: usize = 64 * 1024 * 1024;

const _: () = assert!(VALUE_BYTES_DEFAULT <= VALUE_BYTES_MAX);
const _: () = assert!(KEY_BYTES_MAX < FRAME_OVERHEAD_BYTES);
const _: () = assert!(FRAME_BYTES_MAX <= COMMAND_BYTES_MAX);
const _: () = assert!(BATCH_OPERATIONS_MAX <= PROPOSER_QUEUE_OPERATIONS_MAX);
const _: () = assert!(UNAUTHENTICATED_ARGUMENTS_MAX <= ARGUMENTS_MAX);
const _: () = assert!(BATCH_BYTES_MAX < SEGMENT_BYTES_DEFAULT);
// A session that a shard has forgotten must be too old to begin again, whatever the client's clock.
const _: () =
    assert!(REQUEST_SESSION_BEGIN_MS + REQUEST_SESSION_AHEAD_MS < REQUEST_SESSION_IDLE_MS);
const _: () = assert!(REQUEST_REPLY_BYTES_MAX < REQUEST_BYTES_MAX);
const _: () = assert!(SHARDS_MAX as usize <= PLACEMENT_SHARDS_MAX);
const _: () = assert!(CLUSTER_NODES_MAX <= NODE_NUMBER_MAX as usize);
const _: () = assert!(COMMAND_BYTES_MAX < PEER_FRAME_BYTES_MAX);
const _: () = assert!(CLUSTER_NODES_MAX * (ADDRESS_BYTES_MAX + 4) < PEER_GREETING_BYTES_MAX);
