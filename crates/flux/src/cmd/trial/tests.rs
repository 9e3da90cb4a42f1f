//! What a cluster for trying takes over from the settings, and what it refuses.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::*;
use crate::settings::{Layers, resolve};

const PARTS: &[Part] = &[Part::Node, Part::Gateway];

fn resolved(flags: &[(&'static str, &str)], file: Option<&str>) -> Resolved {
    let flags = flags
        .iter()
        .map(|(flag, value)| (*flag, OsString::from(value)));
    let layers = Layers {
        file: file.map(|text| ("flux.toml".into(), text.to_owned())),
        variables: BTreeMap::new(),
        flags: flags.collect(),
    };
    resolve(&layers, PARTS).unwrap()
}

fn refusal(flags: &[(&'static str, &str)], file: Option<&str>) -> Option<String> {
    match review(&resolved(flags, file), 3) {
        Ok(()) => None,
        Err(Failure::Mistake(problem)) => Some(problem),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn what_names_one_node_is_refused_for_several_with_where_it_comes_from() {
    let file = "[node]\nname = \"here\"\nreads = \"read-index\"\n";
    let problem = refusal(&[("advertise", "kv1"), ("peer-port", "7400")], Some(file)).unwrap();
    let begin = "--nodes 3 gives each of its nodes a name, an address and a peer port of its own: ";
    let rest = problem.strip_prefix(begin).unwrap();
    assert_eq!(
        rest,
        "leave out node.name (flux.toml:2), --advertise, --peer-port"
    );
    let flags = [("node-id", "1"), ("join", "a:1,b:1,c:1")];
    let problem = refusal(&flags, None).unwrap();
    assert!(
        problem.ends_with("leave out --node-id, --join"),
        "{problem}"
    );
    let problem = refusal(&[("replicas", "5")], None).unwrap();
    assert!(problem.ends_with("leave out --replicas"), "{problem}");
}

#[test]
fn defaults_that_are_written_out_and_what_all_nodes_share_are_taken() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../etc/flux.toml");
    let shipped = std::fs::read_to_string(path).unwrap();
    assert_eq!(refusal(&[], Some(&shipped)), None);
    assert_eq!(refusal(&[("fsync", "never"), ("port", "0")], None), None);
    assert_eq!(refusal(&[("bind", "::1")], None), None);
}

#[test]
fn an_address_that_others_can_reach_is_refused() {
    let flags = [("bind", "0.0.0.0"), ("password", "sesame")];
    let problem = refusal(&flags, None).unwrap();
    assert!(problem.starts_with("--bind 0.0.0.0: "), "{problem}");
}

#[test]
fn the_first_node_has_the_ports_that_were_set_and_all_have_what_else_was() {
    let flags = [
        ("port", "7001"),
        ("bind", "::1"),
        ("threads", "2"),
        ("password", "sesame"),
    ];
    let base = resolved(&flags, None).settings.node(PARTS);
    let join: Vec<SocketAddr> = ["[::1]:1", "[::1]:2", "[::1]:3"]
        .map(|a| a.parse().unwrap())
        .into();
    let configs: Vec<Config> = (1..)
        .zip(&join)
        .map(|(number, address)| config(&base, number, *address, &join))
        .collect();
    for (config, number) in configs.iter().zip(1..) {
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(
            (config.node_id, config.replicas, config.threads),
            (number, 3, 2)
        );
        assert_eq!(
            (config.bind, config.password.as_str()),
            (base.bind, "sesame")
        );
        assert_eq!(config.join, ["[::1]:1", "[::1]:2", "[::1]:3"]);
        assert_eq!(
            config.data_dir,
            base.data_dir.join(format!("node-{number}"))
        );
        assert_eq!(u32::from(config.peer_port), number);
    }
    let ports = configs
        .iter()
        .map(|config| (config.port, config.admin_port));
    assert_eq!(ports.collect::<Vec<_>>(), [(7001, 9180), (0, 0), (0, 0)]);
}

#[test]
fn the_folder_of_one_node_or_of_more_is_not_that_of_several() {
    let refused = |folder: &Path, count| match review_folder(folder, count) {
        Ok(()) => None,
        Err(Failure::Mistake(problem)) => Some(problem),
        Err(other) => panic!("{other:?}"),
    };
    let folder = tempfile::tempdir().unwrap();
    for number in 1..=5 {
        std::fs::create_dir(folder.path().join(format!("node-{number}"))).unwrap();
    }
    assert_eq!(refused(folder.path(), 5), None);
    assert_eq!(refused(folder.path(), 7), None);
    let problem = refused(folder.path(), 3).unwrap();
    assert!(
        problem.contains("of 5 nodes: start it with --nodes 5"),
        "{problem}"
    );
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(refused(folder.path(), 3), None);
    std::fs::create_dir(folder.path().join("IDENTITY")).unwrap();
    assert!(refused(folder.path(), 3).is_some());
}

#[tokio::test]
async fn the_first_failure_of_any_node_is_told() {
    let trial = Trial {
        others: Arc::default(),
        failure: Failures(watch::Sender::new(None)),
    };
    let waiting = trial.failed();
    trial
        .failure
        .tell("node 2: the log cannot be written".to_owned());
    trial.failure.tell("node 3: of no consequence".to_owned());
    assert_eq!(waiting.await, "node 2: the log cannot be written");
    // Whoever asks later hears it too.
    assert_eq!(trial.failed().await, "node 2: the log cannot be written");
}
