//! The registry as a whole, with the backends that need no other program.

use flux_env::{RealClock, RealDisk};

use super::*;

fn open(config: Config) -> (Registry, Checks) {
    let checks = Checks::new();
    let parts = Parts {
        clock: Arc::new(RealClock::new()),
        disk: Arc::new(RealDisk),
        seed: 1,
        metrics: Metrics::new(),
        checks: checks.clone(),
    };
    (Registry::open(config, parts).unwrap(), checks)
}

fn registration(id: &str, address: &str) -> Registration {
    Registration {
        id: id.to_owned(),
        services: vec!["a.B".to_owned(), "a.C".to_owned()],
        address: address.to_owned(),
        node: None,
    }
}

/// Waits until the endpoints are these.
async fn wait_for(endpoints: &mut Endpoints, expected: &[&str]) {
    let is_it = |shown: &Arc<[Endpoint]>| {
        shown
            .iter()
            .map(|shown| shown.address.as_str())
            .eq(expected.iter().copied())
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), endpoints.wait_for(is_it)).await;
    waited
        .expect("the endpoints come in time")
        .expect("somebody tells of them");
}

async fn what_is_registered_is_found_until_it_is_withdrawn(config: Config) {
    let (registry, checks) = open(config);
    let mut found = registry.watch("a.B");
    let first = registry.register(registration("n1", "h:1")).unwrap();
    let second = registry.register(registration("n2", "[::1]:2")).unwrap();
    wait_for(&mut found, &["[::1]:2", "h:1"]).await;
    wait_for(&mut registry.watch("a.C"), &["[::1]:2", "h:1"]).await;
    assert!(registry.watch("a.D").borrow().is_empty());
    assert!(checks.reports()[0].is_ok(), "{:?}", checks.reports());
    first.withdraw().await;
    wait_for(&mut found, &["[::1]:2"]).await;
    second.withdraw().await;
    assert!(registry.register(registration("n/1", "h:1")).is_err());
    assert!(registry.register(registration("n1", "h")).is_err());
}

#[tokio::test]
async fn memory_keeps_what_this_process_registers() {
    what_is_registered_is_found_until_it_is_withdrawn(Config::default()).await;
}

#[tokio::test]
async fn a_file_keeps_what_many_processes_register() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        kind: Kind::File,
        file: folder.path().join("registry.json"),
        ..Config::default()
    };
    what_is_registered_is_found_until_it_is_withdrawn(config.clone()).await;
    // Two handles stand for two processes.
    let ((one, _), (other, _)) = (open(config.clone()), open(config));
    let mine = one.register(registration("n1", "h:1")).unwrap();
    wait_for(&mut other.watch("a.B"), &["h:1"]).await;
    mine.withdraw().await;
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_told_and_the_endpoints_stay() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("registry.json");
    let write = |text: &str| {
        let disk = RealDisk;
        let temporary = folder.path().join("new");
        let new = disk
            .open(&temporary, flux_env::OpenMode::CreateNew)
            .unwrap();
        new.write_all_at(text.as_bytes(), 0).unwrap();
        disk.rename(&temporary, &file).unwrap();
    };
    write(r#"{"services":{"a.B":{"x":{"addr":"h:1"}}}}"#);
    let (registry, checks) = open(Config {
        kind: Kind::File,
        file: file.clone(),
        ..Config::default()
    });
    let mut found = registry.watch("a.B");
    wait_for(&mut found, &["h:1"]).await;
    write("{ nonsense");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while checks.reports()[0].is_ok() {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let told = checks.reports()[0].to_string();
    assert!(told.starts_with("[-]registry-file failed"), "{told}");
    assert_eq!(found.borrow().len(), 1);
    write(r#"{"services":{"a.B":{"x":{"addr":"h:2"}}}}"#);
    wait_for(&mut found, &["h:2"]).await;
    assert!(checks.reports()[0].is_ok());
}

/// A map of one shard on one node, in this version, shown by the leader of a term.
fn hint(version: u64, term: u64) -> Arc<MapHint> {
    let node = flux_types::NodeNumber::new(1);
    let members = vec![crate::placement::Member::new(node)];
    let slots = crate::SlotMap::even(1).unwrap();
    let map = crate::ClusterMap::found(members, 1, slots, Vec::new()).unwrap();
    Arc::new(MapHint {
        cluster: ClusterId::new(7),
        rank: Rank {
            version,
            term,
            count: 1,
        },
        controller: node,
        leaders: vec![Some(node)],
        map: Arc::new(map),
    })
}

#[tokio::test]
async fn memory_shows_the_newest_map_of_whichever_controller() {
    let (registry, _) = open(Config::default());
    let Backend::Memory(memory) = &registry.inner.backend else {
        panic!("memory is the default");
    };
    let key = map_hint::map_key("flux", ClusterId::new(7));
    let rank = || Some(memory.shown(&key)?.rank);
    let wait_for = async |expected: Rank| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while rank() != Some(expected) {
            assert!(tokio::time::Instant::now() < deadline, "{:?}", rank());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (older, told) = channel::channel(None);
    let _older_is_shown = registry.show_map(ClusterId::new(7), told);
    older.send_replace(Some(hint(1, 1)));
    wait_for(hint(1, 1).rank).await;
    let (newer, told) = channel::channel(Some(hint(2, 2)));
    let _newer_is_shown = registry.show_map(ClusterId::new(7), told);
    wait_for(hint(2, 2).rank).await;
    // One that has not heard yet that it is no controller any more.
    memory.show(key.clone(), hint(2, 1));
    assert_eq!(rank(), Some(hint(2, 2).rank));
    newer.send_replace(Some(hint(3, 2)));
    wait_for(hint(3, 2).rank).await;
    // What was shown last stays.
    newer.send_replace(None);
    drop(newer);
    assert_eq!(rank(), Some(hint(3, 2).rank));
}
