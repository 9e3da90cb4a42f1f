//! Cluster clients that others wrote, unmodified, and what they are told.

use std::path::Path;

use super::admin::spread;
use super::nodes::Nodes;
use crate::harness::document::steps;
use crate::harness::resp::{Connection, Value};
use crate::harness::{
    FLUX, Start, command, have, python, repository, run, shell, skip, stdout, wait_until,
};

/// Runs a client of Python against nodes, of which it is given the first port as its seed.
fn python_client(library: &str, ports: &[u16]) {
    let test = format!("the cluster client of {library}");
    let Some(python) = python(&test) else {
        return;
    };
    let import = format!("import {library}");
    if !run(command(&python).args(["-c", &import]), b"")
        .status
        .success()
    {
        skip(
            &test,
            "not in the virtual environment; scripts/test puts it there",
        );
        return;
    }
    let script = repository().join("crates/flux/tests/e2e/python/cluster_clients.py");
    let mut command = command(python);
    command.arg(script).arg(library);
    command.args(ports.iter().map(ToString::to_string));
    let output = run(&mut command, b"");
    // Some write what they log to standard output too.
    assert!(stdout(&output).ends_with("passed\n"), "{output:?}");
}

fn ports(nodes: &Nodes) -> Vec<u16> {
    let addresses = nodes.addresses();
    addresses.iter().map(std::net::SocketAddr::port).collect()
}

#[test]
fn cluster_clients_take_one_node_for_a_cluster() {
    for how in ["auto", "moved", "proxy"] {
        let node = Start::node()
            .args(&["--shards", "4", "--resp-cluster", how])
            .ready();
        for library in ["redis", "valkey", "glide"] {
            python_client(library, &[node.resp().port()]);
        }
    }
}

#[test]
fn cluster_clients_work_with_three_nodes() {
    for how in ["auto", "moved"] {
        let nodes = Nodes::started(3, &["--resp-cluster", how]);
        let ports = ports(&nodes);
        for library in ["redis", "valkey", "glide"] {
            python_client(library, &ports);
        }
    }
}

#[test]
fn redis_cli_and_redis_benchmark_follow_the_cluster() {
    if !have("redis-cli", "redis-cli -c") || !have("redis-benchmark", "redis-benchmark --cluster") {
        return;
    }
    let nodes = Nodes::started(3, &["--resp-cluster", "moved"]);
    // redis-benchmark takes a cluster of one master for none.
    spread(&nodes);
    let port = ports(&nodes)[0].to_string();
    // Keys of all four shards, over one seed.
    for key in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let cli = |words: &[&str]| {
            let mut cli = command("redis-cli");
            cli.args(["-c", "-p", &port]).args(words);
            stdout(&run(&mut cli, b"")).trim().to_owned()
        };
        assert_eq!(cli(&["SET", key, "v"]), "OK");
        assert_eq!(cli(&["GET", key]), "v");
    }
    let mut check = command("redis-cli");
    check.args(["--cluster", "check", &format!("127.0.0.1:{port}")]);
    let said = stdout(&run(&mut check, b""));
    assert!(said.contains("All 16384 slots covered"), "{said}");
    let mut benchmark = command("redis-benchmark");
    benchmark.args(["--cluster", "-p", &port, "-t", "set,get", "-n", "20000"]);
    benchmark.args(["-c", "20", "-r", "10000", "-q"]);
    let said = stdout(&run(&mut benchmark, b""));
    for test in ["SET: ", "GET: "] {
        let last = said.split('\r').chain(said.lines());
        let found = last.filter(|line| line.trim().starts_with(test));
        assert!(
            found
                .filter(|line| line.contains("requests per second"))
                .count()
                > 0,
            "{said}"
        );
    }
}

/// The answer of a node that does not lead, taken apart: slot and address.
fn moved(reply: &Value) -> Option<(u16, String)> {
    let Value::Error(text) = reply else {
        return None;
    };
    let mut words = text.strip_prefix("MOVED ")?.split(' ');
    let slot = words.next()?.parse().ok()?;
    Some((slot, words.next()?.to_owned()))
}

#[test]
fn who_asks_for_slots_is_sent_to_the_leader_and_others_are_served_anywhere() {
    let nodes = Nodes::started(3, &["--shards", "1"]);
    let leader = nodes.leader(0);
    let follower = (leader + 1) % 3;
    let mut plain = nodes.connect(follower);
    assert_eq!(plain.line("SET foo 1"), Value::ok());
    assert_eq!(plain.line("GET foo"), Value::bulk("1"));
    let mut client = nodes.connect(follower);
    assert!(matches!(client.line("CLUSTER SLOTS"), Value::Array(_)));
    let expected = Some((12182, nodes.address(leader).to_string()));
    assert_eq!(moved(&client.line("GET foo")), expected);
    assert_eq!(moved(&client.line("SET foo 2")), expected);
    assert_eq!(client.line("MULTI"), Value::ok());
    assert_eq!(moved(&client.line("INCR foo")), expected);
    assert!(matches!(client.line("EXEC"), Value::Error(text) if text.starts_with("EXECABORT")));
    // A replica answers whoever accepts that it may be behind.
    assert_eq!(client.line("READONLY"), Value::ok());
    wait_until("the replica has it", || {
        client.line("GET foo") == Value::bulk("1")
    });
    assert_eq!(moved(&client.line("SET foo 2")), expected);
    assert_eq!(client.line("READWRITE"), Value::ok());
    assert_eq!(moved(&client.line("GET foo")), expected);
    // With the others gone no leader answers for it, but the replica still tells what it knows.
    let mut alone = nodes.connect(follower);
    assert_eq!(alone.line("READONLY"), Value::ok());
    let mut nodes = nodes;
    nodes.kill(leader);
    nodes.kill(3 - leader - follower);
    assert_eq!(alone.line("GET foo"), Value::bulk("1"));
    wait_until("it sees that it is alone", || {
        info(&mut alone).contains("cluster_state:fail")
    });
    let refused = alone.line("SET foo 3");
    assert!(
        matches!(&refused, Value::Error(text) if text.starts_with("CLUSTERDOWN")),
        "{refused:?}"
    );
}

fn info(connection: &mut Connection) -> String {
    match connection.line("CLUSTER INFO") {
        Value::Bulk(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_command_of_the_guide_to_cluster_clients_does_what_it_says() {
    if !have("redis-cli", "the guide to cluster clients") {
        return;
    }
    let text = std::fs::read_to_string(repository().join("docs/cluster-clients.md"));
    let steps = steps(&text.expect("the page is in the repository"), "sh test");
    assert!(steps.len() >= 4, "the page has commands");
    let nodes = Nodes::started(3, &["--resp-cluster", "moved"]);
    spread(&nodes);
    let port = ports(&nodes)[0].to_string();
    let binaries = Path::new(FLUX).parent().expect("a program is in a folder");
    for step in steps {
        let line = step.command.replace("7379", &port);
        let path = format!("PATH={}:$PATH", binaries.display());
        let said = shell(&format!("export {path}; {line}"));
        if let Some(promise) = step.promise {
            assert_eq!(said.trim(), promise, "{}", step.command);
        }
    }
}
