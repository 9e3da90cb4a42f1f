//! `flux admin`: what an operator asks of a cluster, and does about it.
//!
//! One node is asked, any of them; what only another can do it passes on.

mod picture;

use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use flux_proto::admin::cluster_client::ClusterClient;
use flux_proto::admin::{DescribeRequest, TransferLeadershipRequest};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use crate::cmd::cli::password;
use crate::cmd::{innermost, runtime};
use crate::{Failure, out};
use picture::Picture;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than a node tries to hand a shard over.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// `flux admin cluster …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admin {
    address: String,
    password: Option<String>,
    is_json: bool,
    verb: Verb,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Status,
    Nodes,
    Shards,
    Transfer { shard: u32, node: u32 },
}

/// The command line of it.
pub(crate) fn command() -> Command {
    let verb = |name: &'static str, about: &'static str| Command::new(name).about(about);
    let number = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .value_name(name)
            .required(true)
            .value_parser(value_parser!(u32))
            .help(help)
    };
    let cluster = Command::new("cluster")
        .about("Look at a cluster, and say who leads")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .arg(
            Arg::new("addr")
                .long("addr")
                .global(true)
                .value_name("HOST:PORT")
                .default_value("127.0.0.1:50052")
                .help("gRPC port of any node of the cluster"),
        )
        .arg(
            Arg::new("password")
                .short('a')
                .long("pass")
                .global(true)
                .value_name("PASSWORD")
                .help("Password of the node [env: FLUX_PASSWORD]"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .global(true)
                .action(ArgAction::SetTrue)
                .help("Print JSON"),
        )
        .subcommand(verb(
            "status",
            "Say whether every node is there and every shard is led",
        ))
        .subcommand(verb(
            "nodes",
            "List the nodes, where they are and what they carry",
        ))
        .subcommand(verb(
            "shards",
            "List the shards, who leads them and who carries them",
        ))
        .subcommand(
            verb("transfer", "Let another voter lead a shard")
                .arg(number("SHARD", "The shard, as `shards` counts them"))
                .arg(number("NODE", "The number of the node that is to lead it")),
        );
    Command::new("admin")
        .about("Govern a cluster")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand(cluster)
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
        verb: match name {
            "nodes" => Verb::Nodes,
            "shards" => Verb::Shards,
            "transfer" => Verb::Transfer {
                shard: number("SHARD"),
                node: number("NODE"),
            },
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
    let described = client.describe(DescribeRequest {}).await;
    let described = described.map_err(|status| said(&status))?;
    let picture = Picture(described.into_inner());
    let text = match (admin.verb, admin.is_json) {
        (Verb::Nodes, true) => picture.nodes_json().to_string(),
        (Verb::Nodes, false) => picture.nodes(),
        (Verb::Shards, true) => picture.shards_json().to_string(),
        (Verb::Shards, false) => picture.shards(),
        (Verb::Status | Verb::Transfer { .. }, true) => picture.status_json().to_string(),
        (Verb::Status | Verb::Transfer { .. }, false) => picture.status(),
    };
    out::line(&text);
    Ok(())
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
                verb: Verb::Transfer { shard: 2, node: 3 },
            };
            assert_eq!(parse(line).expect(line), expected);
        }
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
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
