//! Tests of the layers.

use expect_test::{Expect, expect};

use std::net::SocketAddr;

use flux_cluster::registry::Kind;

use super::*;

const ALL: &[Part] = &[Part::Node, Part::Gateway];
const SHIPPED: &str = include_str!("../../../../etc/flux.toml");

fn layers(
    file: &str,
    variables: &[(&'static str, &str)],
    flags: &[(&'static str, &str)],
) -> Layers {
    Layers {
        file: Some((PathBuf::from("my.toml"), file.to_owned())),
        variables: variables
            .iter()
            .map(|(name, value)| (*name, value.into()))
            .collect(),
        flags: flags
            .iter()
            .map(|(name, value)| (*name, value.into()))
            .collect(),
    }
}

fn check_mistakes(layers: &Layers, parts: &[Part], expected: &Expect) {
    expected.assert_eq(&resolve(layers, parts).unwrap_err().to_string());
}

#[test]
fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
    let layers = layers(
        "request-timeout = \"1s\"\n[node]\nport = 1\ngrpc-port = 2\nshards = 3\n",
        &[("FLUX_GRPC_PORT", "20"), ("FLUX_SHARDS", "30")],
        &[("shards", "31")],
    );
    let Resolved {
        settings, origins, ..
    } = resolve(&layers, ALL).unwrap();
    assert_eq!(settings.request_timeout, Duration::from_secs(1));
    assert_eq!(
        (
            settings.node.port,
            settings.node.grpc_port,
            settings.node.shards
        ),
        (1, 20, Some(31))
    );
    assert_eq!(settings.http_port, 8080);
    assert_eq!(origins["node.port"], Origin::File("my.toml".into(), 3));
    assert_eq!(
        origins["node.grpc-port"],
        Origin::Variable("FLUX_GRPC_PORT")
    );
    assert_eq!(origins["node.shards"], Origin::Flag("shards"));
    assert_eq!(origins.get("gateway.http-port"), None);
}

#[test]
fn all_mistakes_of_all_layers_are_reported_at_once() {
    let layers = layers(
        "colour = 1\nlog-level = 3\n\n[node]\nprot = 7379\nshards = 0\nfsync = \"sometimes\"\n[gatewy]\n",
        &[
            ("FLUX_PORT", "tcp://10.0.0.1:7379"),
            ("FLUX_INSECURE", "perhaps"),
        ],
        &[("drain-timeout", "soon"), ("max-memory", "1GB")],
    );
    check_mistakes(
        &layers,
        ALL,
        &expect![[r#"
        my.toml:1: colour is not a setting
        my.toml:2: log-level: must be a string in quotes
        my.toml:5: node.prot is not a setting; did you mean node.port?
        my.toml:6: node.shards: "0" is not a count from 1 to 64
        my.toml:7: node.fsync: "sometimes" is not always, everysec or never
        my.toml:8: gatewy is not a setting
        FLUX_INSECURE: "perhaps" is neither true nor false
        FLUX_PORT: "tcp://10.0.0.1:7379" is not a port from 0 to 65535 (0: any free one)
        --drain-timeout: "soon" is not a duration such as 150ms, 10s, 5m or 1h
        --max-memory: "1GB" is not a size such as 512KiB, 64MiB or 2GiB"#]],
    );
}

#[test]
fn a_file_that_is_not_toml_names_its_lines() {
    check_mistakes(
        &layers("bind = \n[node\nport = 1\n", &[], &[]),
        ALL,
        &expect![[r#"
            my.toml:2: unclosed table, expected `]`
            my.toml:1: string values must be quoted, expected literal string"#]],
    );
    check_mistakes(
        &layers("node = 1\nbind = 1\nbind = 2", &[], &[]),
        ALL,
        &expect!["my.toml:3: duplicate key"],
    );
}

#[test]
fn relations_between_settings_are_checked() {
    let flags = [("http-port", "7379"), ("bind", "0.0.0.0")];
    check_mistakes(
        &layers("", &[], &flags),
        ALL,
        &expect![[r#"
        --port and --http-port are both 7379: change one of them
        --bind 0.0.0.0: beyond loopback a --password (FLUX_PASSWORD) is required, or --insecure"#]],
    );
    assert!(
        resolve(
            &layers("", &[], &[("bind", "0.0.0.0"), ("insecure", "true")]),
            ALL
        )
        .is_ok()
    );
    assert!(resolve(&layers("", &[], &[("bind", "::"), ("password", "x")]), ALL).is_ok());
    check_mistakes(
        &layers("", &[], &[]),
        &[Part::Gateway],
        &expect![
            "--upstream HOST:PORT is required: the gRPC address behind the gateway; or --etcd HOST:PORT, to find it there"
        ],
    );
}

#[test]
fn a_registry_is_implied_or_named_and_must_be_reachable() {
    let kind = |flags: &[(&'static str, &str)]| {
        let resolved = resolve(&layers("", &[], flags), ALL);
        resolved.map(|resolved| resolved.settings.registry.kind())
    };
    assert_eq!(kind(&[]), Ok(Kind::Memory));
    assert_eq!(kind(&[("etcd", "h:1, http://i:2/")]), Ok(Kind::Etcd));
    assert_eq!(kind(&[("registry-file", "r.json")]), Ok(Kind::File));
    assert_eq!(
        kind(&[("etcd", "h:1"), ("registry", "memory")]),
        Ok(Kind::Memory)
    );
    let alone = &[Part::Gateway];
    assert!(resolve(&layers("", &[("FLUX_ETCD", "h:1")], &[]), alone).is_ok());
    check_mistakes(
        &layers("", &[], &[("registry", "etcd"), ("etcd-password", "x")]),
        ALL,
        &expect![[r#"
            --registry etcd: name its members with --etcd HOST:PORT,HOST:PORT (FLUX_ETCD)
            --etcd-password: it belongs to an --etcd-user, which is missing"#]],
    );
    let flags = [("etcd", "h:1"), ("bind", "0.0.0.0"), ("insecure", "true")];
    check_mistakes(
        &layers("", &[], &flags),
        ALL,
        &expect![
            "--bind 0.0.0.0: with a registry, --advertise HOST (FLUX_ADVERTISE) must say under which name others reach this node"
        ],
    );
    check_mistakes(
        &layers("", &[], &[]),
        &[Part::Registration],
        &expect![
            "--etcd HOST:PORT (FLUX_ETCD) or --registry-file PATH is required: where to register"
        ],
    );
    let flags = [
        ("registry", "consul"),
        ("etcd", "https://h:1"),
        ("registry-prefix", "/flux"),
        ("registry-ttl", "1s"),
    ];
    check_mistakes(
        &layers("", &[], &flags),
        ALL,
        &expect![[r#"
            --registry: "consul" is not memory, file or etcd
            --etcd: "https://h:1": etcd behind TLS is not supported
            --registry-prefix: "/flux" is not a prefix such as "flux" or "prod/flux": no slash at its ends
            --registry-ttl: must be 2s to 10m, in whole seconds"#]],
    );
}

#[test]
fn the_gateway_judges_its_own_keys_and_every_mistake_has_its_line() {
    let text = r#"
[gateway]
worker = 1
headers-max = 5000
json = { depth-max = 1000 }

[[gateway.upstreams]]
name = "other"
endpoints = ["localhost"]

[[gateway.routes]]
http = "GET v1"
rpc = "a.B/C"

[[gateway.routes]]
nonsense = 1

[[gateway.routes]]
timeout = "soon"
"#;
    check_mistakes(
        &layers(text, &[], &[]),
        ALL,
        &expect![[r#"
        my.toml:3: gateway.worker is not a setting; did you mean gateway.workers?
        my.toml:16: gateway.routes: unknown field `nonsense`, expected one of `http`, `rpc`, `upstream`, `body`, `response-body`, `timeout`, `required`, `stream`, `sse-id`, `sse-event`, `last-event-id`, `defaults`, `response`, `limit`, `client-limit`, `in-flight-max`, `breaker`, `coalesce`, `fallback`
        my.toml:19: gateway.routes: "soon" is not a duration: write a number and ms, s, m or h, as in "150ms""#]],
    );
    let text: String = text.split("worker = 1").collect();
    let text: String = text
        .lines()
        .filter(|line| !line.contains("nonsense") && !line.contains("soon"))
        .map(|line| format!("{line}\n"))
        .collect();
    check_mistakes(
        &layers(&text, &[], &[]),
        ALL,
        &expect![[r#"
        my.toml:4: gateway.headers-max: 5000 is out of range; choose 1 to 1000
        my.toml:5: gateway.json.depth-max: 1000 is out of range; choose 1 to 100
        my.toml:9: gateway.upstreams[0].endpoints[0]: "localhost" is not host:port; write it as in "127.0.0.1:50052"
        my.toml:12: gateway.routes[0].http: path template "v1": must begin with /; write it as in "GET /v1/things/{name}"
        my.toml:15: gateway.routes[1].http: "" is not a method and a path; write it as in "GET /v1/things/{name}"
        my.toml:15: gateway.routes[1].rpc: "" is not an rpc; write it as in "package.Service/Method"
        my.toml:17: gateway.routes[2].http: "" is routed already; remove one of the two
        my.toml:17: gateway.routes[2].http: "" is not a method and a path; write it as in "GET /v1/things/{name}"
        my.toml:17: gateway.routes[2].rpc: "" is not an rpc; write it as in "package.Service/Method""#]],
    );
    // A node alone does not look at them together, but still at each.
    assert!(resolve(&layers(&text, &[], &[]), &[Part::Node]).is_ok());
}

#[test]
fn the_node_judges_its_own_settings_together() {
    let text = "[node]\nsegment-size = \"1KiB\"\nvalue-size-max = \"1GiB\"\n";
    let variables = [("FLUX_THREADS", "1000")];
    let flags = [("drain-timeout", "2h")];
    check_mistakes(
        &layers(text, &variables, &flags),
        ALL,
        &expect![[r#"
            FLUX_THREADS: node.threads: must be at most 256
            --drain-timeout: must be at most 1h
            my.toml:3: node.value-size-max: must be 1 to 64MiB
            my.toml:2: node.segment-size: must be 1MiB to 1GiB"#]],
    );
    assert!(resolve(&layers(text, &[], &[("upstream", "a:1")]), &[Part::Gateway]).is_ok());
}

#[test]
fn shards_are_one_for_everything_and_four_for_a_node_alone() {
    let node = |parts: &[Part], flags: &[(&'static str, &str)]| {
        resolve(&layers("", &[], flags), parts)
            .unwrap()
            .settings
            .node(parts)
    };
    assert_eq!(
        (node(ALL, &[]).shards, node(ALL, &[]).shards_initial),
        (None, 1)
    );
    assert_eq!(node(&[Part::Node], &[]).shards_initial, 4);
    assert_eq!(node(&[Part::Node], &[("shards", "2")]).shards, Some(2));
}

#[test]
fn port_zero_may_be_given_to_every_listener() {
    let flags = [
        ("port", "0"),
        ("grpc-port", "0"),
        ("http-port", "0"),
        ("admin-port", "0"),
    ];
    assert!(resolve(&layers("", &[], &flags), ALL).is_ok());
}

#[test]
fn variables_of_another_part_are_not_looked_at() {
    let layers = layers("", &[("FLUX_HTTP_PORT", "nonsense")], &[]);
    assert!(resolve(&layers, &[Part::Node]).is_ok());
    assert!(resolve(&layers, ALL).is_err());
}

#[test]
fn the_shipped_file_holds_every_setting_with_its_default() {
    let resolved = resolve(&layers(SHIPPED, &[], &[]), ALL).unwrap();
    let missing: Vec<_> = KEYS
        .iter()
        .map(|key| key.name)
        .filter(|key| !resolved.origins.contains_key(key))
        .collect();
    // Their defaults depend on the subcommand, so they stand there as comments.
    assert_eq!(missing, ["admin-port", "node.shards"]);
    assert_eq!(
        resolved.settings,
        Settings {
            gateway_tables: resolved.settings.gateway_tables.clone(),
            ..Settings::default()
        }
    );
    let gateway = &resolved.settings.gateway_tables;
    assert!(
        gateway::keys().all(|key| gateway.contains_key(&key)),
        "{gateway:?}"
    );
    let listen = SocketAddr::from(([127, 0, 0, 1], 8080));
    let upstream = Upstream::Other("node:1".to_owned());
    let built = gateway::config(&resolved.settings, listen, &upstream).unwrap();
    assert_eq!(
        built,
        gateway::config(&Settings::default(), listen, &upstream).unwrap()
    );
    // Beside the shipped routes and their option, the file repeats the gateway's own defaults.
    let bare = flux_gateway::Config {
        routes: built.routes.clone(),
        upstreams: built.upstreams.clone(),
        text_bytes_option: built.text_bytes_option.clone(),
        ..flux_gateway::Config::default()
    };
    assert_eq!(built, bare);
    assert_eq!(built.routes.len(), 4);
    for key in KEYS {
        let line = key.line(&Settings::default());
        let found = SHIPPED
            .lines()
            .any(|have| have.trim_start_matches("# ").starts_with(&line));
        assert!(found, "{}: no line `{line}`", key.name);
    }
}

/// A value for every setting, other than its default.
const VALUES: &[(&str, &str)] = &[
    ("bind", "::1"),
    ("admin-port", "1"),
    ("password", "secret"),
    ("insecure", "true"),
    ("request-timeout", "150ms"),
    ("drain-timeout", "1m"),
    ("ready-file", "/tmp/ready"),
    ("log-level", "warn,flux_raft=trace"),
    ("node.data-dir", "/var/lib/flux"),
    ("node.port", "2"),
    ("node.grpc-port", "3"),
    ("node.fsync", "everysec"),
    ("node.resp-cluster", "moved"),
    ("node.shards", "64"),
    ("node.max-memory", "2GiB"),
    ("node.threads", "3"),
    ("node.connections-max", "100"),
    ("node.idle-timeout", "5m"),
    ("node.value-size-max", "1MiB"),
    ("node.output-buffer-size-max", "2MiB"),
    ("node.snapshot-log-size", "8MiB"),
    ("node.segment-size", "4MiB"),
    ("cdc.retention-bytes", "1GiB"),
    ("cdc.retention-age", "2h"),
    ("cdc.pinned-bytes-max", "3GiB"),
    ("cdc.event-value-max", "4KiB"),
    ("cdc.rabbitmq.url", "amqp://a:b@h:1/v"),
    ("cdc.rabbitmq.exchange", "x"),
    ("cdc.rabbitmq.queue", "q"),
    ("cdc.rabbitmq.declare", "false"),
    ("cdc.rabbitmq.format", "binary"),
    ("cdc.rabbitmq.window", "64"),
    ("cdc.rabbitmq.rate-max", "1000"),
    ("cdc.rabbitmq.queue-size-max", "2GiB"),
    ("cdc.rabbitmq.from", "snapshot"),
    ("node.name", "n1"),
    ("node.advertise", "kv1"),
    ("node.standby", "true"),
    ("node.node-id", "7"),
    ("node.peer-port", "1"),
    ("node.advertise-peer-port", "1"),
    ("node.join", "a:1,b:2,c:3"),
    ("node.replicas", "1"),
    ("node.weight", "50"),
    ("node.zone", "rack-1"),
    ("node.replace-after", "1h"),
    ("node.move-rate", "1MiB"),
    ("node.reads", "read-index"),
    ("node.accept-loss", "true"),
    ("registry.kind", "etcd"),
    ("registry.etcd", "a:1,b:2"),
    ("registry.etcd-user", "flux"),
    ("registry.etcd-password", "secret"),
    ("registry.file", "/var/lib/flux/registry.json"),
    ("registry.prefix", "prod/flux"),
    ("registry.ttl", "30s"),
    ("registry.drain-delay", "3s"),
    ("gateway.http-port", "4"),
    ("gateway.upstream", "node:50052"),
    ("gateway.rate-limit", "1000/s"),
    ("gateway.upstream-password", "secret"),
    ("telemetry.otlp", "http://jaeger:4317"),
    ("telemetry.trace-sample", "12.5%"),
    ("telemetry.log-format", "json"),
];

#[test]
fn every_setting_shows_what_it_was_set_to() {
    let values: BTreeMap<&str, &str> = VALUES.iter().copied().collect();
    for key in KEYS {
        let mut settings = Settings::default();
        (key.set)(&mut settings, values[key.name]).unwrap();
        assert_eq!((key.show)(&settings), values[key.name], "{}", key.name);
        assert_eq!(
            key.variable,
            format!("FLUX_{}", key.flag.to_uppercase().replace('-', "_"))
        );
        // The broker is named by its protocol, as people know it: --amqp, --amqp-queue.
        let of_broker = key
            .name
            .strip_prefix("cdc.rabbitmq.")
            .map(|last| match last {
                "url" => "amqp".to_owned(),
                last => format!("amqp-{last}"),
            });
        // Else the flag is the end of the name; only the kind of a section goes by the section's.
        let dashed = key.name.replace('.', "-");
        let is_end = dashed.ends_with(key.flag) || key.flag == key.section();
        assert!(
            of_broker.map_or(is_end, |flag| flag == key.flag),
            "{}",
            key.name
        );
    }
}

#[test]
fn what_is_shown_can_be_read_again_and_hides_the_password() {
    let flags = [
        ("password", "secret"),
        ("upstream-password", "secret"),
        ("port", "1"),
        ("shards", "2"),
    ];
    let resolved = resolve(&layers("[node]\nfsync = \"never\"\n", &[], &flags), ALL).unwrap();
    let text = show(&resolved);
    assert!(!text.contains("secret"), "{text}");
    assert!(
        text.contains("# --port") && text.contains("# my.toml:2") && text.contains("# default")
    );
    let secrets = [("password", "secret"), ("upstream-password", "secret")];
    let again = resolve(&layers(&text, &[], &secrets), ALL).unwrap();
    assert_eq!(
        again.settings,
        Settings {
            admin_port: Some(9180),
            ..resolved.settings
        }
    );
}

#[test]
fn the_password_of_a_broker_is_never_shown() {
    for (url, shown) in [
        (
            "amqp://flux:s3cret@h:1/v?heartbeat=5",
            "amqp://flux:***@h:1/v?heartbeat=5",
        ),
        ("amqp://flux:s3@cret@h/", "amqp://flux:***@h/"),
        ("amqp://flux:s3/cret@h/", "(set, not shown)"),
        ("s3cret", "(set, not shown)"),
        ("amqp://h:1/v", "amqp://h:1/v"),
    ] {
        assert_eq!(without_password(url), shown);
    }
}

#[test]
fn who_asks_a_gateway_how_it_is_needs_not_say_where_a_node_would_be() {
    let variables = [
        ("FLUX_BIND", "0.0.0.0"),
        ("FLUX_INSECURE", "true"),
        ("FLUX_ETCD", "etcd:2379"),
    ];
    let layers = layers("", &variables, &[]);
    assert!(resolve(&layers, ALL).is_err(), "a node would have to");
    let read = resolve_each(&layers, ALL).unwrap().settings;
    assert_eq!(read.bind.to_string(), "0.0.0.0");
}
