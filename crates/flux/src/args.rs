//! The command line: subcommands and flags, from the table of settings where they are settings.
//!
//! Flags without a subcommand belong to `start`, so that a bare `flux` is the whole thing on one
//! machine. Values stay text here; [`crate::settings`] reads them together with the file and the
//! environment, so that every mistake is reported in one form and at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use flux_types::hold::{self, MoveStep};

use crate::cmd::admin::{self, Admin};
use crate::settings::{Form, KEYS, Part, Settings};

/// What the process was asked to do.
#[derive(Debug)]
pub(crate) enum Task {
    /// Run a node, a gateway or both.
    Run(Run),
    /// `flux cli`.
    Cli(Cli),
    /// `flux admin …`.
    Admin(Admin),
    /// `flux log …`.
    Log(LogTask, PathBuf),
    /// `flux config`.
    Config(Run, ConfigView),
    /// `flux cdc-consumer`.
    CdcConsumer(Box<ArgMatches>),
    /// `flux health`.
    Health(Run),
    /// `flux register`.
    Register(Register),
    /// `flux version`.
    Version,
}

/// Parts with the settings given on the command line.
#[derive(Debug)]
pub(crate) struct Run {
    /// What runs.
    pub(crate) parts: &'static [Part],
    /// `--config`.
    pub(crate) config: Option<OsString>,
    /// Flags that name settings.
    pub(crate) flags: BTreeMap<&'static str, OsString>,
    /// `--nodes`: how many nodes this process runs, for trying.
    pub(crate) nodes: u32,
    /// `--chaos`: their leaders are killed while clients work on them.
    pub(crate) has_chaos: bool,
    /// `--hold-moves-at`, for tests: shards that move rest there.
    pub(crate) moves_held_at: Option<MoveStep>,
}

/// What `flux config` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConfigView {
    /// The settings in effect, each with its origin.
    Effective,
    /// Only whether there is a mistake.
    Check,
    /// The shipped file with every default.
    Defaults,
}

/// What `flux log` does with a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogTask {
    /// Checks every record.
    Verify,
    /// Describes segments, shards and damage.
    Inspect,
    /// Prints every record.
    Dump,
}

/// `flux cli`, with redis-cli's flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cli {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) password: Option<String>,
    pub(crate) json: bool,
    /// Whether the node that is asked answers reads from its own replica.
    pub(crate) stale: bool,
    /// `--raw` and `--no-raw`; `None`: raw unless standard output is a terminal.
    pub(crate) raw: Option<bool>,
    /// The command and its arguments; none: read them from standard input.
    pub(crate) words: Vec<OsString>,
}

/// `flux register`.
#[derive(Debug)]
pub(crate) struct Register {
    /// Where to register.
    pub(crate) run: Run,
    /// Full names of the services.
    pub(crate) services: Vec<String>,
    /// `host:port` at which they can be called.
    pub(crate) address: String,
    /// The instance's id; `None`: made of the address.
    pub(crate) id: Option<String>,
    /// The program that serves them, and its arguments; none: somebody else runs it.
    pub(crate) words: Vec<OsString>,
}

const HOLD_MOVES_AT: &str = "hold-moves-at";
const NODE_AND_GATEWAY: &[Part] = &[Part::Node, Part::Gateway];

/// Reads the command line.
///
/// # Errors
/// clap's error, which is also how it asks for help or the version to be printed.
pub(crate) fn read(words: impl IntoIterator<Item = OsString>) -> Result<Task, clap::Error> {
    let matches = command().try_get_matches_from(words)?;
    task(&matches)
}

fn task(matches: &ArgMatches) -> Result<Task, clap::Error> {
    let Some((name, inner)) = matches.subcommand() else {
        return Ok(Task::Run(run_or_try(matches)?));
    };
    Ok(match name {
        "server" => Task::Run(run(inner, &[Part::Node])),
        "gateway" => Task::Run(run(inner, &[Part::Gateway])),
        "cli" => Task::Cli(cli(inner)?),
        "admin" => Task::Admin(admin::read(inner)),
        "log" => {
            let (verb, inner) = inner.subcommand().unwrap_or(("verify", inner));
            let task = match verb {
                "inspect" => LogTask::Inspect,
                "dump" => LogTask::Dump,
                _ => LogTask::Verify,
            };
            Task::Log(
                task,
                inner.get_one::<PathBuf>("dir").cloned().unwrap_or_default(),
            )
        }
        "config" => {
            let view = if inner.get_flag("check") {
                ConfigView::Check
            } else if inner.get_flag("defaults") {
                ConfigView::Defaults
            } else {
                ConfigView::Effective
            };
            Task::Config(run(inner, NODE_AND_GATEWAY), view)
        }
        "cdc-consumer" => Task::CdcConsumer(Box::new(inner.clone())),
        "health" => Task::Health(run(inner, NODE_AND_GATEWAY)),
        "register" => Task::Register(register(inner)),
        "version" => Task::Version,
        // `start`: clap knows no other name.
        _ => Task::Run(run_or_try(inner)?),
    })
}

/// What `start` does: a node and a gateway, or a whole cluster for trying.
fn run_or_try(matches: &ArgMatches) -> Result<Run, clap::Error> {
    let has_chaos = matches.get_flag("chaos");
    let nodes = matches.get_one::<u32>("nodes").copied();
    if has_chaos && nodes == Some(1) {
        return Err(clap::Error::raw(
            clap::error::ErrorKind::ArgumentConflict,
            "--chaos kills leaders, and with --nodes 1 nobody is left to take over: choose 3, 5 or 7\n",
        ));
    }
    Ok(Run {
        nodes: nodes.unwrap_or(if has_chaos { 3 } else { 1 }),
        has_chaos,
        ..run(matches, NODE_AND_GATEWAY)
    })
}

/// Reads `--nodes`: majorities want odd numbers.
fn node_count(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count @ (1 | 3 | 5 | 7)) => Ok(count),
        _ => Err("choose 1, 3, 5 or 7".to_owned()),
    }
}

fn run(matches: &ArgMatches, parts: &'static [Part]) -> Run {
    let mut flags = BTreeMap::new();
    for key in KEYS {
        match key.form {
            Form::Switch => {
                if matches.try_get_one::<bool>(key.flag).ok().flatten() == Some(&true) {
                    flags.insert(key.flag, OsString::from("true"));
                }
            }
            Form::Text | Form::Number | Form::Truth => {
                if let Ok(Some(value)) = matches.try_get_one::<OsString>(key.flag) {
                    flags.insert(key.flag, value.clone());
                }
            }
        }
    }
    let config = matches
        .try_get_one::<OsString>("config")
        .ok()
        .flatten()
        .cloned();
    Run {
        parts,
        config,
        flags,
        nodes: 1,
        has_chaos: false,
        moves_held_at: matches
            .try_get_one::<MoveStep>(HOLD_MOVES_AT)
            .ok()
            .flatten()
            .copied(),
    }
}

/// Reads the number of a step of a move.
fn move_step(text: &str) -> Result<MoveStep, String> {
    let number = text.parse().ok();
    let step = number.and_then(MoveStep::of_number);
    step.ok_or_else(|| format!("a move has the steps 1 to {}", MoveStep::ALL.len()))
}

/// What tests tell a node, in a build that has it.
fn test_args() -> Option<Arg> {
    hold::IS_THERE.then(|| {
        Arg::new(HOLD_MOVES_AT)
            .long(HOLD_MOVES_AT)
            .value_name("STEP")
            .value_parser(move_step)
            .hide(true)
            .help("For tests: no shard that moves goes beyond this step")
    })
}

fn register(matches: &ArgMatches) -> Register {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    Register {
        run: run(matches, &[Part::Registration]),
        services: matches
            .get_many::<String>("service")
            .map(|names| names.cloned().collect())
            .unwrap_or_default(),
        address: text("addr").unwrap_or_default(),
        id: text("id"),
        words: matches
            .get_many::<OsString>("words")
            .map(|words| words.cloned().collect())
            .unwrap_or_default(),
    }
}

fn cli(matches: &ArgMatches) -> Result<Cli, clap::Error> {
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    let database = matches.get_one::<u32>("database").copied().unwrap_or(0);
    if database != 0 {
        return Err(clap::Error::raw(
            clap::error::ErrorKind::ValueValidation,
            "-n: database 0 is the only one\n",
        ));
    }
    Ok(Cli {
        host: text("host").unwrap_or_else(|| "127.0.0.1".to_owned()),
        port: matches.get_one::<u16>("port").copied().unwrap_or(7379),
        password: text("password"),
        json: matches.get_flag("json"),
        stale: matches.get_flag("stale"),
        raw: match (matches.get_flag("raw"), matches.get_flag("no-raw")) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        },
        words: matches
            .get_many::<OsString>("words")
            .map(|words| words.cloned().collect())
            .unwrap_or_default(),
    })
}

/// The whole command line; tests check it for contradictions.
pub(crate) fn command() -> Command {
    Command::new("flux")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Flux-KV: a key-value store and an HTTP to gRPC gateway in one binary")
        .after_help("Without a subcommand: start. Every flag has a FLUX_* variable and a key in the file of --config.")
        .args(settings_args(NODE_AND_GATEWAY))
        .args(trial_args())
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .subcommand(
            Command::new("start")
                .about("Run a node and a gateway in one process (the default)")
                .args(settings_args(NODE_AND_GATEWAY))
                .args(trial_args()),
        )
        .subcommand(
            Command::new("server")
                .about("Run a node alone")
                .args(settings_args(&[Part::Node]))
                .args(test_args()),
        )
        .subcommand(
            Command::new("gateway")
                .about("Run a gateway alone, in front of --upstream HOST:PORT or what --etcd knows")
                .args(settings_args(&[Part::Gateway])),
        )
        .subcommand(cli_command())
        .subcommand(crate::cmd::cdc_consumer::command())
        .subcommand(admin::command())
        .subcommand(log_command())
        .subcommand(
            Command::new("config")
                .about("Print the settings in effect, each with its origin")
                .arg(switch("check", "Print nothing but mistakes; exit 2 if there are any"))
                .arg(switch("defaults", "Print the shipped file: every setting with its default"))
                .args(settings_args(NODE_AND_GATEWAY)),
        )
        .subcommand(
            Command::new("health")
                .about("Exit 0 if the process on the admin port is ready, else 1")
                .args(settings_args(NODE_AND_GATEWAY)),
        )
        .subcommand(register_command())
        .subcommand(Command::new("version").about("Print the version"))
}

fn settings_args(parts: &[Part]) -> Vec<Arg> {
    let defaults = Settings::default();
    let config = Arg::new("config")
        .long("config")
        .value_name("PATH")
        .value_parser(value_parser!(OsString))
        .help("A TOML file of settings [env: FLUX_CONFIG]");
    let mut args = vec![config];
    for key in KEYS
        .iter()
        .filter(|key| key.parts.iter().any(|part| parts.contains(part)))
    {
        let default = (key.show)(&defaults);
        let default = if default.is_empty() {
            String::new()
        } else {
            format!(" [default: {default}]")
        };
        let arg = Arg::new(key.flag).long(key.flag);
        args.push(if key.form == Form::Switch {
            arg.action(ArgAction::SetTrue)
                .help(format!("{} [env: {}]", key.help, key.variable))
        } else {
            arg.value_name(key.placeholder)
                .value_parser(value_parser!(OsString))
                .allow_hyphen_values(key.form == Form::Number)
                .help(format!("{} [env: {}]{default}", key.help, key.variable))
        });
    }
    args
}

/// What only a whole cluster in one process has.
fn trial_args() -> [Arg; 2] {
    [
        Arg::new("nodes")
            .long("nodes")
            .value_name("COUNT")
            .value_parser(node_count)
            .help("Run so many replicating nodes in this process, for trying: 1, 3, 5 or 7 [default: 1]"),
        switch(
            "chaos",
            "With --nodes: kill a leader every ten seconds and judge what clients see [nodes: 3]",
        ),
    ]
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(help)
}

fn cli_switches() -> [Arg; 4] {
    [
        switch("json", "Print replies as JSON"),
        switch(
            "stale",
            "Reads are answered by the node that is asked, without a majority: they may be old",
        ),
        switch(
            "raw",
            "Print replies bare (the default when output is not a terminal)",
        ),
        switch(
            "no-raw",
            "Print replies with their types (the default on a terminal)",
        ),
    ]
}

fn cli_command() -> Command {
    Command::new("cli")
        .about("Talk to a node: a prompt, commands from standard input, or one command")
        .after_help(
            "flux cli SET key value    one command\n\
             flux cli < commands.txt   one command per line\n\
             flux cli                  a prompt with history, completion and hints\n\
             flux cli demo             write, read, expire and delete, and say what is seen\n\
             flux cli watch PREFIX     changes as they happen; --from, --count, --grpc-port",
        )
        .disable_help_flag(true)
        .arg(
            Arg::new("help")
                .long("help")
                .action(ArgAction::Help)
                .help("Print help"),
        )
        .arg(
            Arg::new("host")
                .short('h')
                .long("host")
                .value_name("HOST")
                .help("Host of the node [default: 127.0.0.1]"),
        )
        .arg(
            Arg::new("port")
                .short('p')
                .long("port")
                .value_name("PORT")
                .value_parser(value_parser!(u16))
                .help("Port of the node [default: 7379]"),
        )
        .arg(
            Arg::new("password")
                .short('a')
                .long("pass")
                .value_name("PASSWORD")
                .help("Password of the node [env: FLUX_PASSWORD]"),
        )
        .arg(
            Arg::new("database")
                .short('n')
                .value_name("NUMBER")
                .value_parser(value_parser!(u32))
                .help("Database; 0 is the only one"),
        )
        .arg(
            Arg::new("resp3")
                .short('3')
                .action(ArgAction::SetTrue)
                .help("Accepted for redis-cli's sake: FLUX carries every type by itself"),
        )
        .args(cli_switches())
        .arg(
            Arg::new("words")
                .value_name("COMMAND")
                .value_parser(value_parser!(OsString))
                .num_args(0..)
                .trailing_var_arg(true)
                .allow_hyphen_values(true)
                .help("A command and its arguments"),
        )
}

fn register_command() -> Command {
    Command::new("register")
        .about("Register any gRPC server for as long as a program runs")
        .after_help(
            "flux register --etcd localhost:2379 --service pkg.Svc --addr localhost:50061 -- ./server\n\n\
             It is registered once something listens at the address, and withdrawn before the\n\
             program is told to stop. Signals are passed on; the exit code is the program's.\n\
             Without a program it is registered at once, until a signal comes.",
        )
        .arg(
            Arg::new("service")
                .long("service")
                .value_name("PACKAGE.SERVICE")
                .required(true)
                .action(ArgAction::Append)
                .help("Full name of a service; may be given several times"),
        )
        .arg(
            Arg::new("addr")
                .long("addr")
                .value_name("HOST:PORT")
                .required(true)
                .help("Where clients reach it"),
        )
        .arg(
            Arg::new("id")
                .long("id")
                .value_name("ID")
                .help("Tells it from other instances [default: HOST:PORT]"),
        )
        .args(settings_args(&[Part::Registration]))
        .arg(
            Arg::new("words")
                .value_name("CMD")
                .value_parser(value_parser!(OsString))
                .num_args(0..)
                .last(true)
                .help("The program and its arguments, after --"),
        )
}

fn log_command() -> Command {
    let verb = |name: &'static str, about: &'static str| {
        Command::new(name).about(about).arg(
            Arg::new("dir")
                .value_name("DIR")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("The data directory of a node that is not running"),
        )
    };
    Command::new("log")
        .about("Look at the log of a data directory")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(verb(
            "verify",
            "Check every record; exit 3 if any is damaged",
        ))
        .subcommand(verb(
            "inspect",
            "Describe segments, shards and what is around damage",
        ))
        .subcommand(verb("dump", "Print every record"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Task, clap::Error> {
        read(line.split_whitespace().map(OsString::from))
    }

    fn parts_of(line: &str) -> &'static [Part] {
        let Task::Run(run) = parse(line).unwrap() else {
            panic!("{line} runs nothing");
        };
        run.parts
    }

    #[test]
    fn the_command_line_does_not_contradict_itself() {
        command().debug_assert();
    }

    #[test]
    fn no_subcommand_is_start() {
        assert_eq!(parts_of("flux"), NODE_AND_GATEWAY);
        assert_eq!(parts_of("flux --port 0 --insecure"), NODE_AND_GATEWAY);
        assert_eq!(parts_of("flux start --port 0"), NODE_AND_GATEWAY);
        assert_eq!(parts_of("flux server"), [Part::Node]);
        assert_eq!(parts_of("flux gateway --upstream a:1"), [Part::Gateway]);
    }

    #[test]
    fn every_setting_has_a_flag_and_a_part_only_its_own() {
        for key in KEYS {
            let value = if key.form == Form::Switch { "" } else { "x" };
            let Task::Run(run) = parse(&format!("flux start --{} {value}", key.flag)).unwrap()
            else {
                panic!("not a run");
            };
            assert!(run.flags.contains_key(key.flag), "{}", key.flag);
        }
        assert!(parse("flux server --http-port 1").is_err());
        assert!(parse("flux gateway --shards 1").is_err());
        assert!(parse("flux --prot 1").is_err());
        assert!(parse("flux nonsense").is_err());
        let Task::Run(run) = parse("flux --port -1 --config x.toml").unwrap() else {
            panic!("not a run");
        };
        assert_eq!(run.flags["port"], "-1");
        assert_eq!(run.config, Some("x.toml".into()));
    }

    #[test]
    fn the_client_takes_the_flags_of_redis_cli() {
        let Task::Cli(cli) = parse("flux cli -h example -p 1 -a pw -n 0 -3 set a -1").unwrap()
        else {
            panic!("not the client");
        };
        assert_eq!(
            (cli.host.as_str(), cli.port, cli.password.as_deref()),
            ("example", 1, Some("pw"))
        );
        assert_eq!(cli.words, ["set", "a", "-1"]);
        assert!(parse("flux cli -n 1").is_err());
    }

    #[test]
    fn a_registration_names_services_an_address_and_perhaps_a_program() {
        let line =
            "flux register --service a.B --service a.C --addr h:1 --etcd e:1 -- run -x --addr";
        let Task::Register(task) = parse(line).unwrap() else {
            panic!("not a registration");
        };
        assert_eq!(task.services, ["a.B", "a.C"]);
        assert_eq!((task.address.as_str(), task.id), ("h:1", None));
        assert_eq!(task.words, ["run", "-x", "--addr"]);
        assert_eq!(task.run.flags["etcd"], "e:1");
        assert!(parse("flux register --service a.B").is_err());
        assert!(parse("flux register --addr h:1").is_err());
        assert!(parse("flux register --service a.B --addr h:1 --http-port 1").is_err());
    }

    #[test]
    fn a_cluster_for_trying_has_an_odd_number_of_nodes_and_chaos_somebody_who_is_left() {
        let tried = |line: &str| {
            let Task::Run(run) = parse(line).unwrap() else {
                panic!("{line} runs nothing");
            };
            (run.nodes, run.has_chaos)
        };
        assert_eq!(tried("flux"), (1, false));
        assert_eq!(tried("flux --nodes 1"), (1, false));
        assert_eq!(tried("flux start --nodes 7"), (7, false));
        assert_eq!(tried("flux start --chaos"), (3, true));
        assert_eq!(tried("flux --nodes 5 --chaos"), (5, true));
        for count in ["0", "2", "4", "8", "9", "-1", "x", ""] {
            let line = format!("flux start --nodes={count}");
            let problem = parse(&line).unwrap_err().to_string();
            assert!(problem.contains("choose 1, 3, 5 or 7"), "{problem}");
        }
        let problem = parse("flux start --nodes 1 --chaos").unwrap_err();
        assert!(problem.to_string().contains("choose 3, 5 or 7"));
    }

    #[test]
    fn log_needs_a_verb_and_a_folder() {
        assert!(matches!(
            parse("flux log dump d"),
            Ok(Task::Log(LogTask::Dump, _))
        ));
        assert!(parse("flux log").is_err() && parse("flux log verify").is_err());
    }
}
