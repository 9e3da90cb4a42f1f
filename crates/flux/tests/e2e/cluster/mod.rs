//! Three real processes as one cluster: how they find each other, and what failures they survive.

mod admin;
mod chaos;
mod clients;
mod growth;
mod guide;
mod history;
mod load;
mod nodes;
mod power;
pub(crate) mod published;
mod rebuilt;
mod retries;
mod sdk;
mod shown;
mod split;
mod stale;
mod steps;
mod trial;

use std::time::Duration;

use flux_history::Demands;
use rustix::process::Signal;

use self::load::Load;
use self::nodes::{Nodes, fixed_port, insist};
use crate::harness::resp::Value;
use crate::harness::{Start, get, get_json, metric, wait_until};

/// How long a cluster may take to go on after its leader died. The aim is two seconds; the
/// machine may be busy.
const FAILOVER: Duration = Duration::from_secs(20);

/// What a short run must contain to prove anything.
const SOME: Demands = Demands {
    completed_min: 300,
    values_read_min: 60,
    overlapping_min: 10,
    unknown_percent_max: 20,
};

#[test]
fn nodes_started_in_any_order_form_one_cluster_and_each_takes_any_request() {
    let mut nodes = Nodes::new(3, &[]);
    for index in [2, 0, 1] {
        nodes.spawn(index);
    }
    nodes.wait_ready();
    for index in 0..3 {
        let peer = nodes.peer_port(index);
        let text = std::fs::read_to_string(nodes.process(index).ready_file()).expect("it is ready");
        assert!(
            text.contains(&format!("\"peer\":\"127.0.0.1:{peer}\"")),
            "{text}"
        );
    }
    // Written through each, read through each: keys of all shards.
    for writer in 0..3 {
        let mut connection = nodes.connect(writer);
        for number in 0..20 {
            let (key, value) = (format!("k{number}"), format!("{writer}.{number}"));
            assert_eq!(connection.command(&["SET", &key, &value]), Value::ok());
        }
        for reader in 0..3 {
            let mut connection = nodes.connect(reader);
            for number in 0..20 {
                let expected = Value::bulk(&format!("{writer}.{number}"));
                assert_eq!(connection.line(&format!("GET k{number}")), expected);
            }
        }
    }
    assert_eq!(nodes.connect(1).line("DBSIZE"), Value::Integer(20));
    assert_eq!(nodes.connect(2).line("MSET {t}a 1 {t}b 2"), Value::ok());
    let mut connection = nodes.connect(0);
    for line in ["MULTI", "INCR {t}a", "INCR {t}b", "EXEC"] {
        let reply = connection.line(line);
        if line == "EXEC" {
            let both = vec![Value::Integer(2), Value::Integer(3)];
            assert_eq!(reply, Value::Array(both));
        }
    }
    nodes.assert_equal();
    // Each has told each other of all that.
    for index in 0..3 {
        let process = nodes.process(index);
        for other in (1..=3).filter(|other| *other != index + 1) {
            for name in ["connections", "bytes_total", "frames_total"] {
                for direction in ["out", "in"] {
                    let series =
                        format!("flux_peer_{name}{{node=\"{other}\",direction=\"{direction}\"}}");
                    wait_until(&series, || metric(process, &series) > Some(0.0));
                }
            }
            let age = format!("flux_peer_heard_age_seconds{{node=\"{other}\"}}");
            let round_trip = format!("flux_peer_round_trip_seconds{{node=\"{other}\"}}");
            wait_until(&age, || metric(process, &age).is_some_and(|age| age < 1.5));
            assert!(metric(process, &round_trip) > Some(0.0));
        }
    }
}

#[test]
fn a_killed_leader_is_replaced_and_returns_and_nothing_is_lost() {
    let mut nodes = Nodes::started(3, &["--shards", "1"]);
    let load = Load::start(nodes.addresses(), 6);
    load.wait_done(200, FAILOVER);
    let leader = nodes.leader(0);
    nodes.kill(leader);
    let outage = load.wait_done(50, FAILOVER);
    eprintln!("writes go on {outage:?} after the leader was killed");
    nodes.spawn(leader);
    nodes.wait_node(leader);
    load.wait_done(200, FAILOVER);
    load.judge(&SOME);
    nodes.assert_equal();
}

#[test]
fn a_leader_that_stood_still_beyond_its_lease_answers_nothing_stale() {
    let nodes = Nodes::started(3, &["--shards", "1"]);
    let load = Load::start(nodes.addresses(), 6);
    load.wait_done(200, FAILOVER);
    for _ in 0..2 {
        let leader = nodes.leader(0);
        nodes.process(leader).signal(Signal::STOP);
        load.run_for(Duration::from_millis(1500));
        load.wait_done(50, FAILOVER);
        nodes.process(leader).signal(Signal::CONT);
        load.wait_done(100, FAILOVER);
    }
    load.judge(&SOME);
    nodes.assert_equal();
}

#[test]
fn all_nodes_killed_at_once_lose_nothing_that_was_acknowledged() {
    let mut nodes = Nodes::started(3, &[]);
    let load = Load::start(nodes.addresses(), 6);
    load.wait_done(300, FAILOVER);
    for index in 0..3 {
        nodes.process(index).signal(Signal::KILL);
    }
    for index in 0..3 {
        nodes.kill(index);
    }
    for index in [1, 2, 0] {
        nodes.spawn(index);
    }
    nodes.wait_ready();
    load.wait_done(300, FAILOVER);
    load.judge(&SOME);
    nodes.assert_equal();
}

#[test]
fn a_rolling_restart_fails_no_request_of_a_client_that_is_not_cut_off() {
    let mut nodes = Nodes::started(3, &[]);
    for index in 0..3 {
        // Clients of the two others: their connections stay.
        let others = nodes.addresses().into_iter().enumerate();
        let others: Vec<_> = others.filter(|(other, _)| *other != index).collect();
        let load = Load::start(others.into_iter().map(|(_, address)| address).collect(), 4);
        load.wait_done(100, FAILOVER);
        nodes.stop(index);
        load.wait_done(50, FAILOVER);
        nodes.spawn(index);
        nodes.wait_node(index);
        load.wait_done(50, FAILOVER);
        assert_eq!(load.failed(), 0, "{:?}", load.problems());
        let demands = Demands {
            completed_min: 100,
            values_read_min: 10,
            overlapping_min: 1,
            unknown_percent_max: 0,
        };
        load.judge(&demands);
    }
    nodes.assert_equal();
}

#[test]
fn a_node_that_lost_its_disk_joins_again_as_another_and_carries_its_share() {
    let mut nodes = Nodes::started(3, &["--shards", "1", "--snapshot-log-size", "1MiB"]);
    let mut connection = nodes.connect(0);
    // So many entries that the log of the beginning is gone after a snapshot, which leaves 1,024,
    // and then much for it to carry.
    for _ in 0..1500 {
        assert_eq!(connection.line("SET again 1"), Value::ok());
    }
    let value = "v".repeat(100);
    for round in 0..120 {
        let mut batch = Vec::new();
        for number in 0..1000 {
            let key = format!("key:{round}:{number}");
            batch.extend(crate::harness::resp::encode(&["SET", &key, &value]));
        }
        connection.send(&batch).expect("the node is up");
        for _ in 0..1000 {
            assert_eq!(connection.reply().expect("the node is up"), Value::ok());
        }
    }
    nodes.kill(2);
    nodes.wipe(2);
    nodes.spawn(2);
    nodes.wait_node(2);
    // While both lives are in a shard's configuration, a majority of each of the old and the new is
    // needed; the old life is gone once three members are left.
    wait_until("the new life has the votes of the old", || {
        (0..3).all(|index| nodes.members(index) == [(3, 0)])
    });
    let (_, metrics) = get(nodes.process(2).admin(), "/metrics");
    let received = ["1", "2"].iter().any(|node| {
        let name = format!("flux_peer_snapshots_total{{node=\"{node}\",direction=\"in\"}}");
        metrics.contains(&format!("{name} 1\n"))
    });
    assert!(received, "a snapshot was needed\n{metrics}");
    // It carries its share: with the first node gone, it and the second are the majority.
    nodes.kill(0);
    let mut connection = nodes.connect(2);
    assert_eq!(insist(&mut connection, &["SET", "after", "1"]), Value::ok());
    for (round, number) in [(0, 0), (60, 500), (119, 999)] {
        let key = format!("key:{round}:{number}");
        assert_eq!(insist(&mut connection, &["GET", &key]), Value::bulk(&value));
    }
    let count = insist(&mut connection, &["DBSIZE"]);
    assert_eq!(count, Value::Integer(120_002));
}

#[test]
fn a_follower_left_alone_says_so_by_the_deadline() {
    let mut nodes = Nodes::started(3, &["--shards", "1", "--request-timeout", "1s"]);
    let leader = nodes.leader(0);
    let (alone, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let mut connection = nodes.connect(alone);
    assert_eq!(insist(&mut connection, &["SET", "k", "1"]), Value::ok());
    nodes.kill(leader);
    nodes.kill(other);
    for line in ["GET k", "SET k 2"] {
        let Value::Error(text) = connection.line(line) else {
            panic!("{line} needs a majority");
        };
        let is_write = line.starts_with("SET");
        let is_said = text.starts_with("CLUSTERDOWN");
        assert!(
            is_said || (is_write && text.starts_with("UNCERTAIN")),
            "{text}"
        );
    }
    wait_until("it shows", || {
        get_json(nodes.process(alone).admin(), "/readyz")
            .is_some_and(|page| page["status"] == "not ready")
    });
    nodes.spawn(other);
    nodes.wait_node(other);
    assert_eq!(insist(&mut connection, &["GET", "k"]), Value::bulk("1"));
}

#[test]
fn without_a_majority_nothing_hangs_and_nothing_is_pretended() {
    let mut nodes = Nodes::started(3, &["--shards", "1", "--request-timeout", "1s"]);
    let mut connection = nodes.connect(0);
    assert_eq!(insist(&mut connection, &["SET", "k", "1"]), Value::ok());
    nodes.kill(1);
    nodes.kill(2);
    // A leader may have been left alone with its lease for a moment.
    wait_until(
        "the lease is over",
        || matches!(connection.line("GET k"), Value::Error(text) if text.starts_with("CLUSTERDOWN")),
    );
    let Value::Error(text) = connection.line("SET k 2") else {
        panic!("a write needs a majority");
    };
    assert!(
        text.starts_with("CLUSTERDOWN") || text.starts_with("UNCERTAIN"),
        "{text}"
    );
    let health = get_json(nodes.process(0).admin(), "/readyz").expect("it answers");
    assert_eq!(health["status"], "not ready", "{health}");
    let (_, metrics) = get(nodes.process(0).admin(), "/metrics");
    assert!(
        metrics.contains("flux_raft_writable{shard=\"0\"} 0\n"),
        "{metrics}"
    );
    nodes.spawn(1);
    nodes.wait_node(1);
    let mut connection = nodes.connect(0);
    assert!(matches!(
        insist(&mut connection, &["GET", "k"]),
        Value::Bulk(_)
    ));
}

#[test]
fn what_does_not_fit_together_is_refused_with_what_would() {
    // Two nodes with one number.
    let nodes = Nodes::new(2, &["--replicas", "1"]);
    let mut first = nodes.start(0).spawn();
    let mut second = nodes.start_as(1, 1).spawn();
    for process in [&mut first, &mut second] {
        let status = process.wait();
        assert_eq!(status.code(), Some(2), "{}", process.stderr());
        assert!(
            process.stderr().contains("--node-id 1"),
            "{}",
            process.stderr()
        );
    }
    // An even number of replicas.
    let mut process = Nodes::new(2, &["--replicas", "2"]).start(0).spawn();
    assert_eq!(process.wait().code(), Some(2));
    assert!(
        process.stderr().contains("--replicas"),
        "{}",
        process.stderr()
    );
    // A folder that belongs to a node of a cluster, and one that belongs to none.
    let port = fixed_port().to_string();
    let list = format!("127.0.0.1:{port}");
    let words = [
        "--node-id",
        "7",
        "--peer-port",
        &port,
        "--join",
        &list,
        "--replicas",
        "1",
    ];
    let folder = Start::node().args(&words).ready().stop();
    let mut process = Start::node().over(folder).spawn();
    assert_eq!(process.wait().code(), Some(2));
    assert!(
        process.stderr().contains("--node-id 7"),
        "{}",
        process.stderr()
    );
    let mut words = words;
    words[1] = "8";
    let mut process = Start::node()
        .args(&words)
        .over(process.into_folder())
        .spawn();
    assert_eq!(process.wait().code(), Some(2));
    assert!(
        process.stderr().contains("belongs to node 7"),
        "{}",
        process.stderr()
    );
    let folder = Start::node().ready().stop();
    let mut process = Start::node().args(&words).over(folder).spawn();
    assert_eq!(process.wait().code(), Some(2));
    assert!(
        process.stderr().contains("that is alone"),
        "{}",
        process.stderr()
    );
}
