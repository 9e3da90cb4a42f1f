//! What a person reads when everything is ready: where things are, and what to try first.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::ready::Addresses;

/// What the banner says besides addresses.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) addresses: &'a Addresses,
    /// Folder, fsync policy and shard count of the node, if there is one.
    pub(crate) node: Option<(&'a Path, &'static str, u32)>,
    /// What is behind the gateway, if it runs alone.
    pub(crate) upstream: Option<&'a str>,
    /// Where services are registered and found, if others look there too.
    pub(crate) registry: Option<&'a str>,
    /// How this program is called from the folder it was started in.
    pub(crate) program: &'a str,
    pub(crate) with_password: bool,
}

/// The banner, with a line break at its end.
pub(crate) fn banner(facts: &Facts<'_>) -> String {
    let Addresses {
        resp,
        grpc,
        http,
        admin,
        peer,
    } = facts.addresses;
    let mut text = format!("Flux-KV {} is ready.\n\n", env!("CARGO_PKG_VERSION"));
    let mut row = |name: &str, value: &str| text.push_str(&format!("  {name:<11} {value}\n"));
    if let Some(address) = resp {
        row("RESP, FLUX", &address.to_string());
    }
    if let Some(address) = grpc {
        row("gRPC", &address.to_string());
    }
    if let Some(address) = http {
        row("HTTP", &format!("http://{address}"));
    }
    if let Some(address) = admin {
        row("admin", &format!("http://{address}"));
    }
    if let Some(address) = peer {
        row("peers", &address.to_string());
    }
    if let Some((folder, fsync, shards)) = facts.node {
        let plural = if shards == 1 { "shard" } else { "shards" };
        row(
            "data",
            &format!("{} (fsync {fsync}, {shards} {plural})", folder.display()),
        );
    }
    if let Some(upstream) = facts.upstream {
        row("upstream", upstream);
    }
    if let Some(registry) = facts.registry {
        row("registry", registry);
    }
    let commands = commands(facts);
    if !commands.is_empty() {
        text.push_str("\nTry:\n\n");
        for command in commands {
            text.push_str(&format!("  {command}\n"));
        }
    }
    text.push_str("\nCtrl-C stops it.\n");
    text
}

/// The three commands to paste.
fn commands(facts: &Facts<'_>) -> Vec<String> {
    let mut commands = Vec::new();
    if let Some(address) = facts.addresses.http {
        let host = match (reachable(address, "localhost"), address.is_ipv6()) {
            (host, true) if host != "localhost" => format!("[{host}]"),
            (host, _) => host,
        };
        commands.push(format!(
            "curl -X POST -d \"key=hello&value=world\" http://{host}:{}/api/v1/kv",
            address.port()
        ));
    }
    if let Some(address) = facts.addresses.resp {
        let host = match reachable(address, "") {
            host if host.is_empty() => String::new(),
            host => format!(" -h {host}"),
        };
        let password = if facts.with_password {
            " -a \"$FLUX_PASSWORD\""
        } else {
            ""
        };
        let port = address.port();
        let flags = |default: bool| {
            let port = if default {
                String::new()
            } else {
                format!(" -p {port}")
            };
            format!("{host}{port}{password}")
        };
        commands.push(format!("redis-cli{} GET hello", flags(false)));
        commands.push(format!(
            "{} cli{} GET hello",
            facts.program,
            flags(port == 7379)
        ));
    }
    commands
}

/// A host under which the listener is reached from this machine; `local` for loopback and "any".
fn reachable(address: SocketAddr, local: &str) -> String {
    let ip = address.ip();
    if ip.is_unspecified() || ip == IpAddr::V4(Ipv4Addr::LOCALHOST) {
        return local.to_owned();
    }
    ip.to_string()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn at(port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    #[test]
    fn a_whole_process_names_its_addresses_and_three_commands() {
        let addresses = Addresses {
            resp: at(7379),
            grpc: at(50052),
            http: at(8080),
            admin: at(9180),
            peer: None,
        };
        let facts = Facts {
            addresses: &addresses,
            node: Some((Path::new("/srv/flux-data"), "always", 1)),
            upstream: None,
            registry: None,
            program: "target/release/flux",
            with_password: false,
        };
        expect![[r#"
            Flux-KV 0.1.0 is ready.

              RESP, FLUX  127.0.0.1:7379
              gRPC        127.0.0.1:50052
              HTTP        http://127.0.0.1:8080
              admin       http://127.0.0.1:9180
              data        /srv/flux-data (fsync always, 1 shard)

            Try:

              curl -X POST -d "key=hello&value=world" http://localhost:8080/api/v1/kv
              redis-cli -p 7379 GET hello
              target/release/flux cli GET hello

            Ctrl-C stops it.
        "#]]
        .assert_eq(&banner(&facts));
    }

    #[test]
    fn a_gateway_alone_names_its_upstream() {
        let addresses = Addresses {
            http: at(1),
            admin: at(2),
            ..Addresses::default()
        };
        let facts = Facts {
            addresses: &addresses,
            node: None,
            upstream: Some("node:50052"),
            registry: None,
            program: "flux",
            with_password: false,
        };
        expect![[r#"
            Flux-KV 0.1.0 is ready.

              HTTP        http://127.0.0.1:1
              admin       http://127.0.0.1:2
              upstream    node:50052

            Try:

              curl -X POST -d "key=hello&value=world" http://localhost:1/api/v1/kv

            Ctrl-C stops it.
        "#]]
        .assert_eq(&banner(&facts));
    }

    #[test]
    fn other_addresses_ports_and_passwords_appear_in_the_commands() {
        let addresses = Addresses {
            resp: "10.0.0.7:1".parse().ok(),
            ..Addresses::default()
        };
        let facts = Facts {
            addresses: &addresses,
            node: Some((Path::new("d"), "never", 4)),
            upstream: None,
            registry: None,
            program: "flux",
            with_password: true,
        };
        expect![[r#"
            Flux-KV 0.1.0 is ready.

              RESP, FLUX  10.0.0.7:1
              data        d (fsync never, 4 shards)

            Try:

              redis-cli -h 10.0.0.7 -p 1 -a "$FLUX_PASSWORD" GET hello
              flux cli -h 10.0.0.7 -p 1 -a "$FLUX_PASSWORD" GET hello

            Ctrl-C stops it.
        "#]]
        .assert_eq(&banner(&facts));
    }
}
