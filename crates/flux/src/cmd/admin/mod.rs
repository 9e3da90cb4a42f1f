//! `flux admin`: what an operator asks of a cluster, and does about it.
//!
//! One node is asked, any of them; what only another can do it passes on.

mod picture;
mod split;
mod wait;

use std::time::Duration;

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};
use flux_proto::admin::change_map_request::Change;
use flux_proto::admin::cluster_client::ClusterClient;
use flux_proto::admin::{ChangeMapRequest, DescribeRequest, Rebalance, TransferLeadershipRequest};
use flux_types::limits::SHARDS_MAX;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use crate::cmd::cli::password;
use crate::cmd::{innermost, runtime};
use crate::settings::value;
use crate::{Failure, out};
use picture::Picture;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than a node tries to hand a shard over.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// How long shards may take to be split, unless something else is said.
const SPLITTING: Duration = Duration::from_secs(3600);

/// `flux admin cluster …`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Admin {
    address: String,
    password: Option<String>,
    is_json: bool,
    /// How long to wait until every shard is where it is to be.
    wait: Option<Duration>,
    verb: Verb,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    Status,
    Nodes,
    Shards,
    Transfer {
        shard: u32,
        node: u32,
    },
    Change(Change),
    /// Splits the largest shards until there are so many.
    Split {
        into: u32,
    },
}

/// The command line of it.
pub(crate) fn command() -> Command {
    let cluster = Command::new("cluster")
        .about("Look at a cluster, and say who carries what and who leads")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .args(options())
        .subcommands(verbs());
    Command::new("admin")
        .about("Govern a cluster")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(cluster)
}

/// What can be said with every verb.
fn options() -> [Arg; 4] {
    [
        Arg::new("addr")
            .long("addr")
            .global(true)
            .value_name("HOST:PORT")
            .default_value("127.0.0.1:50052")
            .help("gRPC port of any node of the cluster"),
        Arg::new("password")
            .short('a')
            .long("pass")
            .global(true)
            .value_name("PASSWORD")
            .help("Password of the node [env: FLUX_PASSWORD]"),
        Arg::new("json")
            .long("json")
            .global(true)
            .action(ArgAction::SetTrue)
            .help("Print JSON"),
        Arg::new("wait")
            .long("wait")
            .global(true)
            .value_name("DURATION")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("1h")
            .value_parser(|text: &str| value::duration(text))
            .help("Wait until every shard is where it is to be, at most so long [1h]"),
    ]
}

fn verbs() -> [Command; 10] {
    let verb = |name: &'static str, about: &'static str| Command::new(name).about(about);
    let number = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .value_name(name)
            .required(true)
            .value_parser(value_parser!(u32))
            .help(help)
    };
    let status = "Say whether every node is there, every shard led and where it is to be";
    let remove = "Let a node give away all and then not belong to the cluster any more";
    let undo = Arg::new("undo").long("undo").action(ArgAction::SetTrue);
    [
        verb("status", status),
        verb(
            "nodes",
            "List the nodes, where they are and what they carry",
        ),
        verb(
            "shards",
            "List the shards, who leads them and who carries them",
        ),
        verb("transfer", "Let another voter lead a shard")
            .arg(number("SHARD", "The shard, as `shards` counts them"))
            .arg(number("NODE", "The number of the node that is to lead it")),
        verb("drain", "Let a node give away all that it carries")
            .arg(number("NODE", "Its number"))
            .arg(undo.help("Let it carry its share again")),
        verb("remove", remove).arg(number("NODE", "Its number; it may be gone for good")),
        verb(
            "rebalance",
            "Place everything again, leaders that were chosen by hand included",
        ),
        verb(
            "split",
            "Let a shard give the upper half of its slots to a new one",
        )
        .arg(number("SHARD", "The shard, as `shards` counts them").required(false))
        .arg(
            Arg::new("into")
                .long("into")
                .value_name("COUNT")
                .value_parser(value_parser!(u32).range(1..=i64::from(SHARDS_MAX)))
                .help("Split the largest shards until there are so many"),
        )
        .group(
            ArgGroup::new("which")
                .args(["SHARD", "into"])
                .required(true),
        ),
        verb("pause", "Let shards stay where they are for now"),
        verb("resume", "Let shards go where they are to be"),
    ]
}

/// What the command line says.
pub(crate) fn read(matches: &ArgMatches) -> Admin {
    let matches = matches.subcommand().map_or(matches, |(_, cluster)| cluster);
    let (name, inner) = matches.subcommand().unwrap_or(("status", matches));
    let number = |name: &str| inner.get_one::<u32>(name).copied().unwrap_or(0);
    let text = |name: &str| inner.get_one::<String>(name).cloned();
    Admin {
        address: text("addr").unwrap_or_default(),
        password: text("password"),
        is_json: inner.get_flag("json"),
        wait: inner.get_one::<Duration>("wait").copied(),
        verb: match name {
            "nodes" => Verb::Nodes,
            "shards" => Verb::Shards,
            "transfer" => Verb::Transfer {
                shard: number("SHARD"),
                node: number("NODE"),
            },
            "drain" if inner.get_flag("undo") => Verb::Change(Change::Undrain(number("NODE"))),
            "drain" => Verb::Change(Change::Drain(number("NODE"))),
            "remove" => Verb::Change(Change::Remove(number("NODE"))),
            "rebalance" => Verb::Change(Change::Rebalance(Rebalance {})),
            "split" => match inner.get_one::<u32>("into") {
                Some(into) => Verb::Split { into: *into },
                None => Verb::Change(Change::Split(number("SHARD"))),
            },
            "pause" => Verb::Change(Change::Pause(true)),
            "resume" => Verb::Change(Change::Pause(false)),
            // `status`: clap knows no other name.
            _ => Verb::Status,
        },
    }
}

/// Asks, and prints what comes back.
///
/// # Errors
/// The node cannot be reached, or refuses.
pub(crate) fn run(admin: Admin) -> Result<(), Failure> {
    runtime()?.block_on(ask(admin))
}

async fn ask(admin: Admin) -> Result<(), Failure> {
    let failed = |problem: &str| Failure::Failed(format!("{}: {problem}", admin.address));
    let said = |status: &Status| failed(status.message());
    let password = admin.password.clone().or_else(password);
    let password: Option<MetadataValue<Ascii>> = match password {
        Some(password) => {
            let value = format!("Bearer {password}").parse();
            Some(value.map_err(|_| failed("the password cannot be sent"))?)
        }
        None => None,
    };
    let endpoint = Endpoint::from_shared(format!("http://{}", admin.address));
    let endpoint = endpoint
        .map_err(|_| Failure::Mistake(format!("--addr {:?} is not HOST:PORT", admin.address)))?
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(REQUEST_TIMEOUT);
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|error| failed(&innermost(&error)))?;
    let mut client = ClusterClient::with_interceptor(channel, move |mut request: Request<()>| {
        if let Some(password) = &password {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", password.clone());
        }
        Ok(request)
    });
    if let Verb::Transfer { shard, node } = admin.verb {
        let asked = TransferLeadershipRequest { shard, node };
        let transferred = client.transfer_leadership(asked).await;
        let led = transferred.map_err(|status| said(&status))?.into_inner();
        out::line(&picture::transferred(shard, &led, admin.is_json));
        return Ok(());
    }
    if let Verb::Split { into } = admin.verb {
        let limit = admin.wait.unwrap_or(SPLITTING);
        let split = split::until(&mut client, into, limit).await;
        let version = split.map_err(|problem| failed(&problem))?;
        if let Some(limit) = admin.wait {
            let waited = wait::until_settled(&mut client, version, limit).await;
            waited.map_err(|problem| failed(&problem))?;
        }
    }
    if let Verb::Change(change) = admin.verb {
        let asked = ChangeMapRequest {
            change: Some(change),
        };
        let changed = client.change_map(asked).await;
        let changed = changed.map_err(|status| said(&status))?.into_inner();
        out::line(&picture::changed(change, &changed, admin.is_json));
        if let Some(limit) = admin.wait {
            let waited = wait::until_settled(&mut client, changed.version, limit).await;
            waited.map_err(|problem| failed(&problem))?;
        }
        return Ok(());
    }
    if let Some(limit) = admin.wait {
        let waited = wait::until_settled(&mut client, 1, limit).await;
        waited.map_err(|problem| failed(&problem))?;
    }
    let described = client.describe(DescribeRequest {}).await;
    let described = described.map_err(|status| said(&status))?;
    let picture = Picture(described.into_inner());
    out::line(&show(&picture, admin.verb, admin.is_json));
    Ok(())
}

/// What is printed of a picture.
fn show(picture: &Picture, verb: Verb, is_json: bool) -> String {
    match (verb, is_json) {
        (Verb::Nodes, true) => picture.nodes_json().to_string(),
        (Verb::Nodes, false) => picture.nodes(),
        (Verb::Shards, true) => picture.shards_json().to_string(),
        (Verb::Shards, false) => picture.shards(),
        (Verb::Status | Verb::Transfer { .. } | Verb::Change(_) | Verb::Split { .. }, true) => {
            picture.status_json().to_string()
        }
        (Verb::Status | Verb::Transfer { .. } | Verb::Change(_) | Verb::Split { .. }, false) => {
            picture.status()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Admin, clap::Error> {
        let matches = command().try_get_matches_from(line.split_whitespace());
        matches.map(|matches| read(&matches))
    }

    #[test]
    fn a_verb_and_where_to_ask_are_read_in_any_order() {
        for line in [
            "admin cluster --addr h:1 --json -a pw transfer 2 3",
            "admin cluster transfer 2 3 --addr h:1 --json -a pw",
        ] {
            let expected = Admin {
                address: "h:1".to_owned(),
                password: Some("pw".to_owned()),
                is_json: true,
                wait: None,
                verb: Verb::Transfer { shard: 2, node: 3 },
            };
            assert_eq!(parse(line).expect(line), expected);
        }
        let waits = |line: &str| parse(line).expect(line).wait;
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(waits("admin cluster drain 1 --wait"), hour);
        let half = Some(Duration::from_secs(30));
        assert_eq!(waits("admin cluster --wait=30s remove 1"), half);
        let undone = parse("admin cluster drain 4 --undo").expect("a verb");
        assert_eq!(undone.verb, Verb::Change(Change::Undrain(4)));
        let one = parse("admin cluster split 3").expect("a verb");
        assert_eq!(one.verb, Verb::Change(Change::Split(3)));
        let many = parse("admin cluster split --into 4").expect("a verb");
        assert_eq!(many.verb, Verb::Split { into: 4 });
        let plain = parse("admin cluster nodes").expect("it needs nothing else");
        assert_eq!(
            (plain.address.as_str(), plain.verb),
            ("127.0.0.1:50052", Verb::Nodes)
        );
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        for line in [
            "admin",
            "admin cluster",
            "admin cluster transfer 1",
            "admin cluster transfer one 2",
            "admin cluster nonsense",
            "admin cluster drain",
            "admin cluster split",
            "admin cluster split 0 --into 4",
            "admin cluster split --into 65",
            "admin cluster remove 1 2",
            "admin cluster status --wait=soon",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
