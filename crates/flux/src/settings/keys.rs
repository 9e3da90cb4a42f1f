//! The table of settings: one row for each, from which come the flag, the environment variable,
//! the key of the file, the help text, and the line in `flux config`.

use std::net::IpAddr;
use std::path::PathBuf;

use super::{Part, Settings};
use super::{cluster, registry, telemetry, value};
use flux_server::{EventFormat, Fsync};

/// What a key of the file must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A string.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`; its flag takes no value.
    Switch,
    /// `true` or `false`; its flag takes one of the two.
    Truth,
}

/// One setting.
#[derive(Debug)]
pub(crate) struct Key {
    /// Its key in the file, with the section: `node.port`.
    pub(crate) name: &'static str,
    /// Its flag without dashes: `port`.
    pub(crate) flag: &'static str,
    /// Its environment variable.
    pub(crate) variable: &'static str,
    /// What stands for the value in the help.
    pub(crate) placeholder: &'static str,
    /// What the file must hold.
    pub(crate) form: Form,
    /// The parts that look at it.
    pub(crate) parts: &'static [Part],
    /// One line of help.
    pub(crate) help: &'static str,
    /// Reads a value; the error is what follows the name of the setting.
    pub(crate) set: fn(&mut Settings, &str) -> Result<(), String>,
    /// Writes the value as the file would hold it, without quotes.
    pub(crate) show: fn(&Settings) -> String,
}

impl Key {
    /// The value as a line of TOML.
    pub(crate) fn line(&self, settings: &Settings) -> String {
        let key = self.name.rsplit('.').next().unwrap_or(self.name);
        let value = (self.show)(settings);
        match self.form {
            Form::Text => format!("{key} = {value:?}"),
            Form::Number | Form::Switch | Form::Truth => format!("{key} = {value}"),
        }
    }

    /// The section of the file it stands in; empty for the top.
    pub(crate) fn section(&self) -> &'static str {
        self.name
            .rsplit_once('.')
            .map_or("", |(section, _)| section)
    }
}

pub(super) const ALL: &[Part] = &[Part::Node, Part::Gateway, Part::Registration];
const BOTH: &[Part] = &[Part::Node, Part::Gateway];
pub(super) const NODE: &[Part] = &[Part::Node];
const GATEWAY: &[Part] = &[Part::Gateway];
/// Who withdraws something when it stops.
pub(super) const DRAINING: &[Part] = &[Part::Node, Part::Registration];

/// Every setting, in the order of `etc/flux.toml`.
pub(crate) const KEYS: &[Key] = &[
    Key {
        name: "bind",
        flag: "bind",
        variable: "FLUX_BIND",
        placeholder: "ADDRESS",
        form: Form::Text,
        parts: BOTH,
        help: "Address of every listener; beyond loopback a password is required",
        set: |settings, text| {
            settings.bind = text
                .parse::<IpAddr>()
                .map_err(|_| format!("{text:?} is not an IP address such as 127.0.0.1 or ::1"))?;
            Ok(())
        },
        show: |settings| settings.bind.to_string(),
    },
    Key {
        name: "admin-port",
        flag: "admin-port",
        variable: "FLUX_ADMIN_PORT",
        placeholder: "PORT",
        form: Form::Number,
        parts: BOTH,
        help: "Port of /metrics, /healthz and /readyz (`gateway`: 9181)",
        set: |settings, text| {
            settings.admin_port = Some(value::port(text)?);
            Ok(())
        },
        show: |settings| settings.admin_port.unwrap_or(9180).to_string(),
    },
    Key {
        name: "password",
        flag: "password",
        variable: "FLUX_PASSWORD",
        placeholder: "PASSWORD",
        form: Form::Text,
        parts: BOTH,
        help: "Password that clients must give; empty: none. Prefer the variable: flags are public",
        set: |settings, text| {
            settings.password = some_text(text);
            Ok(())
        },
        show: |settings| settings.password.clone().unwrap_or_default(),
    },
    Key {
        name: "insecure",
        flag: "insecure",
        variable: "FLUX_INSECURE",
        placeholder: "",
        form: Form::Switch,
        parts: BOTH,
        help: "Allow a bind beyond loopback without a password",
        set: |settings, text| {
            settings.insecure = value::boolean(text)?;
            Ok(())
        },
        show: |settings| settings.insecure.to_string(),
    },
    Key {
        name: "request-timeout",
        flag: "request-timeout",
        variable: "FLUX_REQUEST_TIMEOUT",
        placeholder: "DURATION",
        form: Form::Text,
        parts: BOTH,
        help: "Deadline of every request that brings none",
        set: |settings, text| {
            let timeout = value::duration(text)?;
            if timeout.is_zero() {
                return Err("must be longer than 0ms".to_owned());
            }
            settings.request_timeout = timeout;
            Ok(())
        },
        show: |settings| value::show_duration(settings.request_timeout),
    },
    Key {
        name: "drain-timeout",
        flag: "drain-timeout",
        variable: "FLUX_DRAIN_TIMEOUT",
        placeholder: "DURATION",
        form: Form::Text,
        parts: BOTH,
        help: "How long a stop waits for requests in hand",
        set: |settings, text| {
            settings.drain_timeout = value::duration(text)?;
            Ok(())
        },
        show: |settings| value::show_duration(settings.drain_timeout),
    },
    Key {
        name: "ready-file",
        flag: "ready-file",
        variable: "FLUX_READY_FILE",
        placeholder: "PATH",
        form: Form::Text,
        parts: BOTH,
        help: "File that names the addresses, written once everything is ready; empty: none",
        set: |settings, text| {
            settings.ready_file = some_text(text).map(PathBuf::from);
            Ok(())
        },
        show: |settings| show_path(settings.ready_file.as_ref()),
    },
    Key {
        name: "log-level",
        flag: "log-level",
        variable: "FLUX_LOG_LEVEL",
        placeholder: "LEVEL",
        form: Form::Text,
        parts: ALL,
        help: "off, error, warn, info, debug or trace; or parts such as info,flux_raft=debug",
        set: |settings, text| {
            settings.log_level = value::log_level(text)?;
            Ok(())
        },
        show: |settings| settings.log_level.clone(),
    },
    Key {
        name: "node.data-dir",
        flag: "data-dir",
        variable: "FLUX_DATA_DIR",
        placeholder: "DIR",
        form: Form::Text,
        parts: NODE,
        help: "Folder of log and snapshots; one process at a time",
        set: |settings, text| {
            let path = some_text(text).ok_or("must not be empty")?;
            settings.node.data_dir = PathBuf::from(path);
            Ok(())
        },
        show: |settings| settings.node.data_dir.display().to_string(),
    },
    Key {
        name: "node.port",
        flag: "port",
        variable: "FLUX_PORT",
        placeholder: "PORT",
        form: Form::Number,
        parts: NODE,
        help: "Port of RESP and FLUX, told apart by their first bytes",
        set: |settings, text| {
            settings.node.port = value::port(text)?;
            Ok(())
        },
        show: |settings| settings.node.port.to_string(),
    },
    Key {
        name: "node.grpc-port",
        flag: "grpc-port",
        variable: "FLUX_GRPC_PORT",
        placeholder: "PORT",
        form: Form::Number,
        parts: NODE,
        help: "Port of gRPC",
        set: |settings, text| {
            settings.node.grpc_port = value::port(text)?;
            Ok(())
        },
        show: |settings| settings.node.grpc_port.to_string(),
    },
    Key {
        name: "node.fsync",
        flag: "fsync",
        variable: "FLUX_FSYNC",
        placeholder: "POLICY",
        form: Form::Text,
        parts: NODE,
        help: "always, everysec or never; with each, kill -9 loses nothing acknowledged",
        set: |settings, text| {
            settings.node.fsync = parse_fsync(text)?;
            Ok(())
        },
        show: |settings| settings.node.fsync.as_str().to_owned(),
    },
    Key {
        name: "node.shards",
        flag: "shards",
        variable: "FLUX_SHARDS",
        placeholder: "COUNT",
        form: Form::Number,
        parts: NODE,
        help: "Shards of a new data folder, which remembers it (`server`: 4)",
        set: |settings, text| {
            let max = flux_types::limits::SHARDS_MAX;
            settings.node.shards = match text.parse::<u32>() {
                Ok(count) if 0 < count && count <= max => Some(count),
                Ok(_) | Err(_) => return Err(format!("{text:?} is not a count from 1 to {max}")),
            };
            Ok(())
        },
        show: |settings| settings.node.shards.unwrap_or(1).to_string(),
    },
    Key {
        name: "node.max-memory",
        flag: "max-memory",
        variable: "FLUX_MAX_MEMORY",
        placeholder: "SIZE",
        form: Form::Text,
        parts: NODE,
        help: "Memory of the data after which writes are refused; 0: no limit",
        set: |settings, text| {
            settings.node.max_memory = value::size(text)?;
            Ok(())
        },
        show: |settings| value::show_size(settings.node.max_memory),
    },
    Key {
        name: "node.threads",
        flag: "threads",
        variable: "FLUX_THREADS",
        placeholder: "COUNT",
        form: Form::Number,
        parts: NODE,
        help: "Threads of connections and shards; 0: one for each core",
        set: |settings, text| {
            settings.node.threads = value::count(text)?;
            Ok(())
        },
        show: |settings| settings.node.threads.to_string(),
    },
    Key {
        name: "node.connections-max",
        flag: "connections-max",
        variable: "FLUX_CONNECTIONS_MAX",
        placeholder: "COUNT",
        form: Form::Number,
        parts: NODE,
        help: "Most connections to the port of RESP and FLUX",
        set: |settings, text| {
            settings.node.connections_max = value::count(text)?;
            Ok(())
        },
        show: |settings| settings.node.connections_max.to_string(),
    },
    Key {
        name: "node.idle-timeout",
        flag: "idle-timeout",
        variable: "FLUX_IDLE_TIMEOUT",
        placeholder: "DURATION",
        form: Form::Text,
        parts: NODE,
        help: "A connection that is silent for so long is closed; 0s: never",
        set: |settings, text| {
            settings.node.idle_timeout = value::duration(text)?;
            Ok(())
        },
        show: |settings| value::show_duration(settings.node.idle_timeout),
    },
    Key {
        name: "node.value-size-max",
        flag: "value-size-max",
        variable: "FLUX_VALUE_SIZE_MAX",
        placeholder: "SIZE",
        form: Form::Text,
        parts: NODE,
        help: "Longest value, at most 64MiB",
        set: |settings, text| {
            settings.node.value_size_max = value::size(text)?;
            Ok(())
        },
        show: |settings| value::show_size(settings.node.value_size_max),
    },
    Key {
        name: "node.output-buffer-size-max",
        flag: "output-buffer-size-max",
        variable: "FLUX_OUTPUT_BUFFER_SIZE_MAX",
        placeholder: "SIZE",
        form: Form::Text,
        parts: NODE,
        help: "Unsent replies after which a connection is closed",
        set: |settings, text| {
            settings.node.output_buffer_size_max = value::size(text)?;
            Ok(())
        },
        show: |settings| value::show_size(settings.node.output_buffer_size_max),
    },
    Key {
        name: "node.snapshot-log-size",
        flag: "snapshot-log-size",
        variable: "FLUX_SNAPSHOT_LOG_SIZE",
        placeholder: "SIZE",
        form: Form::Text,
        parts: NODE,
        help: "Log of a shard after which it is snapshotted",
        set: |settings, text| {
            settings.node.snapshot_log_size = value::size(text)?;
            Ok(())
        },
        show: |settings| value::show_size(settings.node.snapshot_log_size),
    },
    Key {
        name: "node.segment-size",
        flag: "segment-size",
        variable: "FLUX_SEGMENT_SIZE",
        placeholder: "SIZE",
        form: Form::Text,
        parts: NODE,
        help: "Size of a log segment, 1MiB to 1GiB",
        set: |settings, text| {
            settings.node.segment_size = value::size(text)?;
            Ok(())
        },
        show: |settings| value::show_size(settings.node.segment_size),
    },
    Key {
        name: "node.name",
        flag: "node-name",
        variable: "FLUX_NODE_NAME",
        placeholder: "NAME",
        form: Form::Text,
        parts: NODE,
        help: "How the registry tells this node from others; empty: its number in the data folder",
        set: |settings, text| {
            text.clone_into(&mut settings.node.name);
            Ok(())
        },
        show: |settings| settings.node.name.clone(),
    },
    Key {
        name: "node.advertise",
        flag: "advertise",
        variable: "FLUX_ADVERTISE",
        placeholder: "HOST",
        form: Form::Text,
        parts: NODE,
        help: "Host under which others reach this node; empty: the address of bind",
        set: |settings, text| {
            text.clone_into(&mut settings.node.advertise);
            Ok(())
        },
        show: |settings| settings.node.advertise.clone(),
    },
    Key {
        name: "node.standby",
        flag: "standby",
        variable: "FLUX_STANDBY",
        placeholder: "",
        form: Form::Switch,
        parts: NODE,
        help: "Register only as being there, so that nobody calls this node",
        set: |settings, text| {
            settings.node.standby = value::boolean(text)?;
            Ok(())
        },
        show: |settings| settings.node.standby.to_string(),
    },
    cluster::RESP_CLUSTER,
    cluster::NODE_ID,
    cluster::PEER_PORT,
    cluster::ADVERTISE_PEER_PORT,
    cluster::JOIN,
    cluster::REPLICAS,
    cluster::WEIGHT,
    cluster::ZONE,
    cluster::REPLACE_AFTER,
    cluster::MOVE_RATE,
    cluster::READS,
    cluster::ACCEPT_LOSS,
    Key {
        name: "cdc.retention-bytes",
        flag: "retention-bytes",
        variable: "FLUX_RETENTION_BYTES",
        placeholder: "SIZE",
        form: Form::Text,
        parts: NODE,
        help: "Old log kept for readers of the change stream",
        set: |settings, text| {
            settings.node.cdc.retention_bytes = value::size(text)?;
            Ok(())
        },
        show: |settings| value::show_size(settings.node.cdc.retention_bytes),
    },
    Key {
        name: "cdc.retention-age",
        flag: "retention-age",
        variable: "FLUX_RETENTION_AGE",
        placeholder: "DURATION",
        form: Form::Text,
        parts: NODE,
        help: "How long it is kept at most",
        set: |settings, text| {
            settings.node.cdc.retention_age = value::duration(text)?;
            Ok(())
        },
        show: |settings| value::show_duration(settings.node.cdc.retention_age),
    },
    Key {
        name: "cdc.pinned-bytes-max",
        flag: "pinned-bytes-max",
        variable: "FLUX_PINNED_BYTES_MAX",
        placeholder: "SIZE",
        form: Form::Text,
        parts: NODE,
        help: "Kept instead while a known sink needs it",
        set: |settings, text| {
            settings.node.cdc.pinned_bytes_max = value::size(text)?;
            Ok(())
        },
        show: |settings| value::show_size(settings.node.cdc.pinned_bytes_max),
    },
    Key {
        name: "cdc.event-value-max",
        flag: "event-value-max",
        variable: "FLUX_EVENT_VALUE_MAX",
        placeholder: "SIZE",
        form: Form::Text,
        parts: NODE,
        help: "Longest value that is put into an event",
        set: |settings, text| {
            settings.node.cdc.event_value_max = value::size(text)?;
            Ok(())
        },
        show: |settings| value::show_size(settings.node.cdc.event_value_max),
    },
    Key {
        name: "cdc.rabbitmq.url",
        flag: "amqp",
        variable: "FLUX_AMQP",
        placeholder: "URL",
        form: Form::Text,
        parts: NODE,
        help: "RabbitMQ that changes are published to, as amqp://USER:PASSWORD@HOST:PORT/VHOST; empty: none. Prefer the variable: flags are public",
        set: |settings, text| {
            text.clone_into(&mut settings.node.cdc.rabbitmq.url);
            Ok(())
        },
        show: |settings| settings.node.cdc.rabbitmq.url.clone(),
    },
    Key {
        name: "cdc.rabbitmq.exchange",
        flag: "amqp-exchange",
        variable: "FLUX_AMQP_EXCHANGE",
        placeholder: "NAME",
        form: Form::Text,
        parts: NODE,
        help: "Topic exchange that changes are published to",
        set: |settings, text| {
            text.clone_into(&mut settings.node.cdc.rabbitmq.exchange);
            Ok(())
        },
        show: |settings| settings.node.cdc.rabbitmq.exchange.clone(),
    },
    Key {
        name: "cdc.rabbitmq.queue",
        flag: "amqp-queue",
        variable: "FLUX_AMQP_QUEUE",
        placeholder: "NAME",
        form: Form::Text,
        parts: NODE,
        help: "Quorum queue for the consumer",
        set: |settings, text| {
            text.clone_into(&mut settings.node.cdc.rabbitmq.queue);
            Ok(())
        },
        show: |settings| settings.node.cdc.rabbitmq.queue.clone(),
    },
    Key {
        name: "cdc.rabbitmq.declare",
        flag: "amqp-declare",
        variable: "FLUX_AMQP_DECLARE",
        placeholder: "true|false",
        form: Form::Truth,
        parts: NODE,
        help: "Whether to declare exchange and queues, or only check that the exchange is there",
        set: |settings, text| {
            settings.node.cdc.rabbitmq.declare = value::boolean(text)?;
            Ok(())
        },
        show: |settings| settings.node.cdc.rabbitmq.declare.to_string(),
    },
    Key {
        name: "cdc.rabbitmq.format",
        flag: "amqp-format",
        variable: "FLUX_AMQP_FORMAT",
        placeholder: "FORMAT",
        form: Form::Text,
        parts: NODE,
        help: "structured (the whole event as JSON) or binary (the bare value, the rest in headers)",
        set: |settings, text| {
            settings.node.cdc.rabbitmq.format = parse_event_format(text)?;
            Ok(())
        },
        show: |settings| settings.node.cdc.rabbitmq.format.as_str().to_owned(),
    },
    Key {
        name: "cdc.rabbitmq.window",
        flag: "amqp-window",
        variable: "FLUX_AMQP_WINDOW",
        placeholder: "COUNT",
        form: Form::Number,
        parts: NODE,
        help: "Events published and not yet confirmed, at most",
        set: |settings, text| {
            settings.node.cdc.rabbitmq.window = value::count(text)?;
            Ok(())
        },
        show: |settings| settings.node.cdc.rabbitmq.window.to_string(),
    },
    Key {
        name: "cdc.rabbitmq.rate-max",
        flag: "amqp-rate-max",
        variable: "FLUX_AMQP_RATE_MAX",
        placeholder: "COUNT",
        form: Form::Number,
        parts: NODE,
        help: "Events published each second, at most; 0: no cap",
        set: |settings, text| {
            let rate = value::count(text)?;
            settings.node.cdc.rabbitmq.rate_max =
                u32::try_from(rate).map_err(|_| format!("{text:?} is too many for a second"))?;
            Ok(())
        },
        show: |settings| settings.node.cdc.rabbitmq.rate_max.to_string(),
    },
    Key {
        name: "cdc.rabbitmq.queue-size-max",
        flag: "amqp-queue-size-max",
        variable: "FLUX_AMQP_QUEUE_SIZE_MAX",
        placeholder: "SIZE",
        form: Form::Text,
        parts: NODE,
        help: "Bytes that a declared queue holds before it refuses more",
        set: |settings, text| {
            settings.node.cdc.rabbitmq.queue_size_max = value::size(text)?;
            Ok(())
        },
        show: |settings| value::show_size(settings.node.cdc.rabbitmq.queue_size_max),
    },
    Key {
        name: "cdc.rabbitmq.from",
        flag: "amqp-from",
        variable: "FLUX_AMQP_FROM",
        placeholder: "PLACE",
        form: Form::Text,
        parts: NODE,
        help: "Where publishing begins for the first time: earliest, now or snapshot",
        set: |settings, text| {
            text.clone_into(&mut settings.node.cdc.rabbitmq.from);
            Ok(())
        },
        show: |settings| settings.node.cdc.rabbitmq.from.clone(),
    },
    registry::KIND,
    registry::ETCD,
    registry::ETCD_USER,
    registry::ETCD_PASSWORD,
    registry::FILE,
    registry::PREFIX,
    registry::TTL,
    registry::DRAIN_DELAY,
    Key {
        name: "telemetry.otlp",
        flag: "otlp",
        variable: "FLUX_OTLP",
        placeholder: "URL",
        form: Form::Text,
        parts: BOTH,
        help: "OTLP/gRPC collector that gets traces, such as http://127.0.0.1:4317; empty: none",
        set: |settings, text| {
            settings.telemetry.otlp = telemetry::otlp(text)?;
            Ok(())
        },
        show: |settings| settings.telemetry.otlp.clone().unwrap_or_default(),
    },
    Key {
        name: "telemetry.trace-sample",
        flag: "trace-sample",
        variable: "FLUX_TRACE_SAMPLE",
        placeholder: "SHARE",
        form: Form::Text,
        parts: BOTH,
        help: "Share of the traces that begin here that are recorded",
        set: |settings, text| {
            settings.telemetry.trace_sample = telemetry::ratio(text)?;
            Ok(())
        },
        show: |settings| telemetry::show_ratio(settings.telemetry.trace_sample),
    },
    Key {
        name: "telemetry.log-format",
        flag: "log-format",
        variable: "FLUX_LOG_FORMAT",
        placeholder: "FORMAT",
        form: Form::Text,
        parts: ALL,
        help: "auto (pretty on a terminal, else json), json or pretty",
        set: |settings, text| {
            settings.telemetry.log_format = telemetry::log_format(text)?;
            Ok(())
        },
        show: |settings| settings.telemetry.log_format.as_str().to_owned(),
    },
    Key {
        name: "gateway.http-port",
        flag: "http-port",
        variable: "FLUX_HTTP_PORT",
        placeholder: "PORT",
        form: Form::Number,
        parts: GATEWAY,
        help: "Port of HTTP",
        set: |settings, text| {
            settings.http_port = value::port(text)?;
            Ok(())
        },
        show: |settings| settings.http_port.to_string(),
    },
    Key {
        name: "gateway.upstream",
        flag: "upstream",
        variable: "FLUX_UPSTREAM",
        placeholder: "HOST:PORT",
        form: Form::Text,
        parts: GATEWAY,
        help: "gRPC address behind the gateway; empty: this process's node",
        set: |settings, text| {
            settings.upstream = match some_text(text) {
                Some(text) => Some(value::host_and_port(&text)?),
                None => None,
            };
            Ok(())
        },
        show: |settings| settings.upstream.clone().unwrap_or_default(),
    },
    Key {
        name: "gateway.rate-limit",
        flag: "rate-limit",
        variable: "FLUX_RATE_LIMIT",
        placeholder: "RATE",
        form: Form::Text,
        parts: GATEWAY,
        help: "Requests over all clients, such as 1000/s; more are answered 429; empty: no limit",
        set: |settings, text| {
            settings.rate_limit = text.parse()?;
            Ok(())
        },
        show: |settings| settings.rate_limit.to_string(),
    },
    Key {
        name: "gateway.upstream-password",
        flag: "upstream-password",
        variable: "FLUX_UPSTREAM_PASSWORD",
        placeholder: "PASSWORD",
        form: Form::Text,
        parts: GATEWAY,
        help: "What the gateway gives the node for requests without authorization; empty: nothing",
        set: |settings, text| {
            settings.upstream_password = some_text(text);
            Ok(())
        },
        show: |settings| settings.upstream_password.clone().unwrap_or_default(),
    },
];

fn parse_event_format(text: &str) -> Result<EventFormat, String> {
    let formats = [EventFormat::Structured, EventFormat::Binary];
    value::one_of(text, &formats, EventFormat::as_str)
}

fn parse_fsync(text: &str) -> Result<Fsync, String> {
    let policies = [Fsync::Always, Fsync::EverySec, Fsync::Never];
    value::one_of(text, &policies, Fsync::as_str)
}

pub(super) fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) fn show_path(path: Option<&PathBuf>) -> String {
    path.map_or_else(String::new, |path| path.display().to_string())
}
