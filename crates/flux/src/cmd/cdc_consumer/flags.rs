//! The flags of `flux cdc-consumer`. Each has a `FLUX_*` variable, so that a container needs none.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use flux_cdc::consumer::ConsumerConfig;
use flux_cdc::rabbitmq::{Address, Topology};

use super::watched::Listen;
use crate::Failure;
use crate::settings::{parse_duration, parse_port};

/// Where the broker is if nothing is said.
const AMQP_DEFAULT: &str = "amqp://guest:guest@127.0.0.1:5672/";
const PREFETCH_DEFAULT: u16 = 500;
const ACK_EVERY_DEFAULT: u64 = 100;
const ACK_INTERVAL_DEFAULT: Duration = Duration::from_millis(200);

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Flags {
    pub(crate) config: ConsumerConfig,
    /// `None`: as standard output is.
    pub(crate) format: Option<FormatFlag>,
    /// `None`: standard output.
    pub(crate) file: Option<PathBuf>,
    pub(crate) checkpoint: Option<PathBuf>,
    pub(crate) is_quiet: bool,
    pub(crate) listen: Listen,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FormatFlag {
    Pretty,
    Json,
}

/// Flag, variable, placeholder (none: a switch) and help.
type Row = (&'static str, &'static str, &'static str, &'static str);

const ROWS: &[Row] = &[
    (
        "amqp",
        "FLUX_AMQP",
        "URL",
        "The broker; prefer the variable, flags are public [default: amqp://guest:guest@127.0.0.1:5672/]",
    ),
    (
        "exchange",
        "FLUX_AMQP_EXCHANGE",
        "NAME",
        "The exchange events come from [default: flux.cdc]",
    ),
    (
        "queue",
        "FLUX_AMQP_QUEUE",
        "NAME",
        "The queue to read [default: flux.cdc.default]",
    ),
    (
        "bind",
        "FLUX_CDC_BIND",
        "PATTERN",
        "Bind the queue by this, such as kv.0.set.#; repeatable [default: kv.#,ctl.#]",
    ),
    (
        "format",
        "FLUX_CDC_FORMAT",
        "FORMAT",
        "pretty or json [default: pretty on a terminal, else json]",
    ),
    (
        "sink",
        "FLUX_CDC_SINK",
        "SINK",
        "stdout or file:PATH [default: stdout]",
    ),
    (
        "prefetch",
        "FLUX_CDC_PREFETCH",
        "COUNT",
        "Messages sent ahead, 1 to 65535 [default: 500]",
    ),
    (
        "ack-every",
        "FLUX_CDC_ACK_EVERY",
        "COUNT",
        "Acknowledge after so many events [default: 100]",
    ),
    (
        "ack-interval",
        "FLUX_CDC_ACK_INTERVAL",
        "TIME",
        "Or after so long [default: 200ms]",
    ),
    (
        "checkpoint",
        "FLUX_CDC_CHECKPOINT",
        "FILE",
        "Remember here what was done, so that a restart repeats nothing",
    ),
    ("max", "FLUX_CDC_MAX", "COUNT", "End after so many events"),
    (
        "idle-exit",
        "FLUX_CDC_IDLE_EXIT",
        "TIME",
        "End after so long without an event",
    ),
    (
        "no-retry",
        "FLUX_CDC_NO_RETRY",
        "",
        "End with 69 when the broker is away",
    ),
    (
        "no-declare",
        "FLUX_CDC_NO_DECLARE",
        "",
        "Declare nothing, only read a queue that is there",
    ),
    (
        "admin-port",
        "FLUX_ADMIN_PORT",
        "PORT",
        "Port of /metrics, /healthz and /readyz [default: none]",
    ),
    (
        "admin-bind",
        "FLUX_BIND",
        "ADDRESS",
        "Address of that port [default: 127.0.0.1]",
    ),
    (
        "quiet",
        "FLUX_CDC_QUIET",
        "",
        "Say nothing but events and what ends the process",
    ),
];

/// The flags as clap sees them. Values stay text: what is wrong with one is told without repeating
/// it, because a URL holds a password.
pub(crate) fn command() -> Command {
    let args = ROWS.iter().map(|&(name, variable, value, help)| {
        let arg = Arg::new(name)
            .long(name)
            .env(variable)
            .hide_env_values(true)
            .help(help);
        if value.is_empty() {
            return arg.action(ArgAction::SetTrue);
        }
        let arg = arg.value_name(value);
        if name == "bind" {
            arg.action(ArgAction::Append).value_delimiter(',')
        } else {
            arg
        }
    });
    Command::new("cdc-consumer")
        .about("Follow changes through RabbitMQ: print each, or append it to a file")
        .after_help(
            "Every event is handed on once, then noted in the checkpoint, then acknowledged.\n\
             Exit codes: 0 done or stopped, 1 failed, 2 a mistake in flags, 69 no broker and\n\
             --no-retry, 130 stopped by a second signal.",
        )
        .args(args)
}

/// Reads the flags.
///
/// # Errors
/// All mistakes, one line each.
pub(crate) fn read(matches: &ArgMatches) -> Result<Flags, Failure> {
    let mut reader = Reader {
        matches,
        mistakes: Vec::new(),
    };
    let address = reader.text("amqp").unwrap_or(AMQP_DEFAULT);
    let address = reader.check("amqp", Address::parse(address));
    let topology = reader.topology();
    let prefetch = reader.prefetch();
    let ack_every = reader.count("ack-every").unwrap_or(ACK_EVERY_DEFAULT);
    let ack_interval = reader.time("ack-interval");
    let (max, idle_exit) = (reader.count("max"), reader.time("idle-exit"));
    let (format, file) = (reader.format(), reader.file());
    let checkpoint = reader.text("checkpoint").map(PathBuf::from);
    let listen = reader.listen();
    let (Some(address), true) = (address, reader.mistakes.is_empty()) else {
        return Err(Failure::Mistake(reader.mistakes.join("\n")));
    };
    Ok(Flags {
        config: ConsumerConfig {
            address,
            topology,
            prefetch,
            // The broker sends no more than it may, so a batch that waits for more would never end.
            ack_every: ack_every.min(u64::from(prefetch)),
            ack_interval: ack_interval.unwrap_or(ACK_INTERVAL_DEFAULT),
            max,
            idle_exit,
            retry: !matches.get_flag("no-retry"),
        },
        format,
        file,
        checkpoint,
        is_quiet: matches.get_flag("quiet"),
        listen,
    })
}

struct Reader<'a> {
    matches: &'a ArgMatches,
    mistakes: Vec<String>,
}

impl<'a> Reader<'a> {
    /// What was given; an empty variable counts as none.
    fn text(&self, name: &str) -> Option<&'a str> {
        let text = self.matches.get_one::<String>(name)?;
        (!text.is_empty()).then_some(text.as_str())
    }

    fn listen(&mut self) -> Listen {
        let mut listen = Listen::default();
        if let Some(text) = self.text("admin-port") {
            listen.port = self.check("admin-port", parse_port(text));
        }
        if let Some(text) = self.text("admin-bind") {
            let bind = text
                .parse()
                .map_err(|_| format!("{text:?} is not an IP address such as 127.0.0.1 or ::1"));
            listen.bind = self.check("admin-bind", bind).unwrap_or(listen.bind);
        }
        listen
    }

    fn topology(&mut self) -> Topology {
        let defaults = Topology::default();
        let bindings: Vec<String> = self
            .matches
            .get_many::<String>("bind")
            .into_iter()
            .flatten()
            .filter(|pattern| !pattern.is_empty())
            .cloned()
            .collect();
        let named = |name: &str, default: String| self.text(name).map_or(default, str::to_owned);
        let topology = Topology {
            exchange: named("exchange", defaults.exchange),
            queue: named("queue", defaults.queue),
            bindings: if bindings.is_empty() {
                defaults.bindings
            } else {
                bindings
            },
            declare: !self.matches.get_flag("no-declare"),
            ..Topology::default()
        };
        self.check("queue", topology.validate());
        topology
    }

    fn prefetch(&mut self) -> u16 {
        let Some(text) = self.text("prefetch") else {
            return PREFETCH_DEFAULT;
        };
        let count = text.parse::<u16>().ok().filter(|count| *count > 0);
        self.check(
            "prefetch",
            count.ok_or_else(|| "must be 1 to 65535".to_owned()),
        )
        .unwrap_or(PREFETCH_DEFAULT)
    }

    fn format(&mut self) -> Option<FormatFlag> {
        match self.text("format")? {
            "pretty" => Some(FormatFlag::Pretty),
            "json" => Some(FormatFlag::Json),
            _ => self.check("format", Err("must be pretty or json".to_owned())),
        }
    }

    fn file(&mut self) -> Option<PathBuf> {
        let text = self.text("sink").filter(|text| *text != "stdout")?;
        let path = text.strip_prefix("file:").filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| "must be stdout or file:PATH".to_owned());
        self.check("sink", path.map(PathBuf::from))
    }

    fn check<T>(&mut self, name: &str, outcome: Result<T, String>) -> Option<T> {
        outcome
            .map_err(|problem| self.mistakes.push(format!("--{name}: {problem}")))
            .ok()
    }

    fn count(&mut self, name: &str) -> Option<u64> {
        let count = self.text(name)?.parse().ok().filter(|count| *count > 0);
        self.check(
            name,
            count.ok_or_else(|| "must be a count of at least 1".to_owned()),
        )
    }

    fn time(&mut self, name: &str) -> Option<Duration> {
        let outcome = parse_duration(self.text(name)?);
        self.check(name, outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, String> {
        let words = line.split_whitespace();
        let matches = command()
            .try_get_matches_from(words)
            .map_err(|error| error.to_string())?;
        read(&matches).map_err(|failure| {
            let Failure::Mistake(text) = failure else {
                panic!("{failure:?}");
            };
            text
        })
    }

    #[test]
    fn nothing_has_to_be_said() {
        let flags = parse("cdc-consumer").unwrap();
        assert_eq!(flags.config.topology, Topology::default());
        assert_eq!(
            flags.config.address.to_string(),
            "amqp://guest@127.0.0.1:5672/"
        );
        assert_eq!((flags.config.prefetch, flags.config.ack_every), (500, 100));
        assert!(flags.config.retry && flags.file.is_none() && flags.format.is_none());
    }

    #[test]
    fn everything_can_be_said() {
        let flags = parse(
            "cdc-consumer --amqp amqp://a:b@h:1/v --exchange e --queue q --bind kv.0.set.#,ctl.# --bind x \
             --format pretty --sink file:out --prefetch 10 --ack-every 50 --ack-interval 1s --checkpoint c \
             --max 3 --idle-exit 5s --no-retry --no-declare --quiet \
             --admin-port 9 --admin-bind ::1",
        )
        .unwrap();
        assert_eq!(flags.config.topology.bindings, ["kv.0.set.#", "ctl.#", "x"]);
        assert_eq!(
            flags.config.ack_every, 10,
            "more than the broker sends ahead would wait for ever"
        );
        assert_eq!(flags.config.idle_exit, Some(Duration::from_secs(5)));
        assert_eq!(
            (flags.format, flags.config.max),
            (Some(FormatFlag::Pretty), Some(3))
        );
        assert!(!flags.config.retry && !flags.config.topology.declare && flags.is_quiet);
        let listen = Listen {
            bind: "::1".parse().unwrap(),
            port: Some(9),
        };
        assert_eq!(flags.listen, listen);
    }

    #[test]
    fn all_mistakes_are_told_at_once_and_no_password() {
        let problem = parse(
            "cdc-consumer --amqp http://u:s3cret@h --prefetch 0 --ack-every x --idle-exit 5 --format xml --sink x --max 0 --queue amq.x \
             --admin-port x",
        )
        .unwrap_err();
        let lines: Vec<&str> = problem.lines().collect();
        assert_eq!(lines.len(), 9, "{problem}");
        assert!(!problem.contains("s3cret"));
    }
}
