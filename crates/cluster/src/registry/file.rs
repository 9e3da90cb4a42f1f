//! A registry in a JSON file: for one machine, or a shared folder.
//!
//! The file can be written by hand: `{"services":{"pkg.Svc":{"any-id":{"addr":"host:port"}}}}`. Who
//! registers adds itself with a deadline, `until`, which it moves on for as long as it lives; an
//! entry past its deadline counts as gone, and goes with the next write. Writers take turns by a
//! lock beside the file and replace it by a rename, so that a reader sees one state or the next.
//! Readers look twice a second.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flux_env::{Clock, Disk, OpenMode};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{info, warn};

use super::backoff::Complaint;
use super::endpoint::{Endpoint, WEIGHT_DEFAULT};
use super::held::Held;
use super::layout::{NodeEntry, Registration, check_address};
use super::status::{Publish, Status};

const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Times a writer asks for its turn, and how long it waits in between.
const TURNS_MAX: u32 = 100;
const TURN_PAUSE: Duration = Duration::from_millis(20);
/// An entry is renewed this many times before its deadline.
const RENEWALS_PER_TTL: u32 = 3;

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Contents {
    /// By service, then by id.
    services: BTreeMap<String, BTreeMap<String, Entry>>,
    /// By id.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    nodes: BTreeMap<String, NodeLine>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    addr: String,
    #[serde(default = "weight_default")]
    weight: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    zone: String,
    /// Milliseconds since the Unix epoch; without it the entry stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct NodeLine {
    #[serde(flatten)]
    node: NodeEntry,
    until: u64,
}

const fn weight_default() -> u32 {
    WEIGHT_DEFAULT
}

impl Contents {
    fn parse(text: &[u8]) -> Result<Self, String> {
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        let contents: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        for (service, entries) in &contents.services {
            for (id, entry) in entries {
                check_address(&entry.addr)
                    .map_err(|problem| format!("{service:?}, {id:?}: {problem}"))?;
            }
        }
        Ok(contents)
    }

    fn endpoints(&self, service: &str, now_millis: u64) -> Vec<Endpoint> {
        let entries = self.services.get(service).into_iter().flatten();
        entries
            .filter(|(_, entry)| entry.until.is_none_or(|until| now_millis < until))
            .map(|(_, entry)| Endpoint {
                address: entry.addr.clone(),
                weight: entry.weight.max(1),
                zone: entry.zone.clone(),
            })
            .collect()
    }

    fn put(&mut self, registration: &Registration, until: u64) {
        let node = registration.node.as_ref();
        for service in &registration.services {
            let entry = Entry {
                addr: registration.address.clone(),
                weight: node.map_or(WEIGHT_DEFAULT, |node| node.weight.max(1)),
                zone: node.map(|node| node.zone.clone()).unwrap_or_default(),
                until: Some(until),
            };
            let entries = self.services.entry(service.clone()).or_default();
            entries.insert(registration.id.clone(), entry);
        }
        if let Some(node) = node {
            let node = node.clone();
            self.nodes
                .insert(registration.id.clone(), NodeLine { node, until });
        }
    }

    fn remove(&mut self, registration: &Registration) {
        for service in &registration.services {
            if let Some(entries) = self.services.get_mut(service) {
                entries.remove(&registration.id);
            }
        }
        self.nodes.remove(&registration.id);
        self.services.retain(|_, entries| !entries.is_empty());
    }

    /// Drops what is past its deadline.
    fn sweep(&mut self, now_millis: u64) {
        for entries in self.services.values_mut() {
            entries.retain(|_, entry| entry.until.is_none_or(|until| now_millis < until));
        }
        self.services.retain(|_, entries| !entries.is_empty());
        self.nodes.retain(|_, line| now_millis < line.until);
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct FileRegistry {
    pub(crate) path: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) status: Arc<Status>,
    pub(crate) ttl: Duration,
    pub(crate) grace: Duration,
}

impl FileRegistry {
    /// Reads the file; one that is not there is empty.
    fn read(&self) -> Result<Contents, String> {
        let shown = |error: io::Error| format!("{}: {error}", self.path.display());
        if !self.disk.exists(&self.path) {
            return Ok(Contents::default());
        }
        let file = self.disk.open(&self.path, OpenMode::Read).map_err(shown)?;
        let size = file.size_bytes().map_err(shown)?;
        if size > FILE_BYTES_MAX {
            return Err(format!("{}: more than 4 MiB", self.path.display()));
        }
        let mut text = vec![0; usize::try_from(size).unwrap_or_default()];
        let read = file.read_at(&mut text, 0).map_err(shown)?;
        text.truncate(read);
        Contents::parse(&text).map_err(|problem| format!("{}: {problem}", self.path.display()))
    }

    /// Changes the file under its lock; `None` if it is another writer's turn.
    fn change(&self, change: impl FnOnce(&mut Contents)) -> Result<Option<()>, String> {
        let shown = |error: io::Error| format!("{}: {error}", self.path.display());
        let lock = with_suffix(&self.path, ".lock");
        let Some(_turn) = self.disk.lock(&lock).map_err(shown)? else {
            return Ok(None);
        };
        let mut contents = self.read()?;
        contents.sweep(self.clock.unix_millis());
        change(&mut contents);
        let mut text =
            serde_json::to_string_pretty(&contents).map_err(|error| error.to_string())?;
        text.push('\n');
        let temporary = with_suffix(&self.path, ".tmp");
        if self.disk.exists(&temporary) {
            // Left behind by a writer that was killed; it is our turn now.
            self.disk.remove(&temporary).map_err(shown)?;
        }
        let file = self
            .disk
            .open(&temporary, OpenMode::CreateNew)
            .map_err(shown)?;
        file.write_all_at(text.as_bytes(), 0).map_err(shown)?;
        file.sync_all().map_err(shown)?;
        self.disk.rename(&temporary, &self.path).map_err(shown)?;
        Ok(Some(()))
    }

    /// [`Self::change`] off the runtime's threads, when it is our turn.
    async fn changed(
        &self,
        change: impl Fn(&mut Contents) + Clone + Send + 'static,
    ) -> Result<(), String> {
        for _ in 0..TURNS_MAX {
            let (registry, change) = (self.clone(), change.clone());
            let turn = tokio::task::spawn_blocking(move || registry.change(change));
            if turn.await.map_err(|error| error.to_string())??.is_some() {
                return Ok(());
            }
            tokio::time::sleep(TURN_PAUSE).await;
        }
        Err(format!("{}: somebody keeps its lock", self.path.display()))
    }

    /// Keeps a registration until told to withdraw it.
    pub(crate) async fn keep(
        self,
        registration: Registration,
        role: String,
        mut withdraw: watch::Receiver<bool>,
    ) {
        let registration = Arc::new(registration);
        let mut complaint = Complaint::default();
        let mut is_new = true;
        loop {
            let now = self.clock.unix_millis();
            let until = now.saturating_add(u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX));
            let ours = Arc::clone(&registration);
            match self
                .changed(move |contents| contents.put(&ours, until))
                .await
            {
                Ok(()) => {
                    complaint.is_over();
                    self.status.well(&role);
                    Status::count(&self.status.lease_renewals);
                    if std::mem::take(&mut is_new) {
                        info!(role, "registered");
                    }
                }
                Err(problem) => {
                    self.status.failing(&role, &problem);
                    if complaint.is_due(self.clock.now()) {
                        warn!(role, problem, "the registry's file cannot be changed");
                    }
                }
            }
            tokio::select! {
                biased;
                _ = withdraw.wait_for(|is_wanted| *is_wanted) => break,
                () = tokio::time::sleep(self.ttl / RENEWALS_PER_TTL) => {}
            }
        }
        let ours = Arc::clone(&registration);
        match self.changed(move |contents| contents.remove(&ours)).await {
            Ok(()) => info!(role, "withdrawn"),
            Err(problem) => warn!(role, problem, "not withdrawn; it ends with its deadline"),
        }
        self.status.forget(&role);
    }

    /// Shows the endpoints of a service until dropped.
    pub(crate) async fn follow(self, service: String, role: String, publish: Publish) {
        let mut held = Held::new(self.grace);
        let mut complaint = Complaint::default();
        loop {
            let registry = self.clone();
            let read = tokio::task::spawn_blocking(move || registry.read()).await;
            let now = self.clock.now();
            let shown = match read.map_err(|error| error.to_string()).flatten() {
                Ok(contents) => {
                    complaint.is_over();
                    self.status.well(&role);
                    let found = contents.endpoints(&service, self.clock.unix_millis());
                    held.offer(found, now)
                }
                Err(problem) => {
                    self.status.failing(&role, &problem);
                    if complaint.is_due(now) {
                        warn!(role, problem, "the last endpoints stay in use");
                    }
                    held.expire(now)
                }
            };
            if let Some(shown) = shown {
                info!(role, endpoints = shown.len(), "endpoints have changed");
                publish.send_replace(shown);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use flux_env::{RealDisk, SimClock};

    use super::*;

    fn registration(id: &str, address: &str) -> Registration {
        Registration {
            id: id.to_owned(),
            services: vec!["a.B".to_owned()],
            address: address.to_owned(),
            node: Some(NodeEntry {
                id: id.to_owned(),
                weight: 2,
                zone: "z".to_owned(),
                ..NodeEntry::default()
            }),
        }
    }

    fn addresses(contents: &Contents, now: u64) -> Vec<String> {
        let found = contents.endpoints("a.B", now).into_iter();
        found.map(|endpoint| endpoint.address).collect()
    }

    #[test]
    fn what_was_written_by_hand_stays_and_what_is_overdue_goes() {
        let text = br#"{"services":{"a.B":{"mine":{"addr":"h:1","weight":3}}}}"#;
        let mut contents = Contents::parse(text).unwrap();
        contents.put(&registration("n1", "h:2"), 1_000);
        assert_eq!(addresses(&contents, 999), ["h:1", "h:2"]);
        assert_eq!(addresses(&contents, 1_000), ["h:1"]);
        contents.sweep(1_000);
        assert!(contents.nodes.is_empty());
        assert_eq!(contents.services["a.B"].len(), 1);
        contents.put(&registration("n1", "h:2"), 2_000);
        contents.remove(&registration("n1", "h:2"));
        assert_eq!(addresses(&contents, 0), ["h:1"]);
        let weights: Vec<_> = contents
            .endpoints("a.B", 0)
            .iter()
            .map(|e| e.weight)
            .collect();
        assert_eq!(weights, [3]);
        assert!(Contents::parse(b" \n").is_ok());
        assert!(Contents::parse(b"{").is_err());
        let wrong = br#"{"services":{"a.B":{"x":{"addr":"nowhere"}}}}"#;
        assert!(Contents::parse(wrong).unwrap_err().contains("host:port"));
    }

    #[test]
    fn writers_replace_the_file_whole_and_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(RealDisk);
        let registry = FileRegistry {
            path: folder.path().join("registry.json"),
            disk: Arc::<RealDisk>::clone(&disk),
            clock: Arc::new(SimClock::new(0)),
            status: Arc::default(),
            ttl: Duration::from_secs(10),
            grace: Duration::from_secs(30),
        };
        assert_eq!(registry.read(), Ok(Contents::default()));
        // One that was killed while writing.
        let leftover = with_suffix(&registry.path, ".tmp");
        disk.open(&leftover, OpenMode::CreateNew).unwrap();
        for id in ["n1", "n2"] {
            let put = |contents: &mut Contents| {
                contents.put(&registration(id, &format!("{id}:1")), 5_000);
            };
            assert_eq!(registry.change(put), Ok(Some(())));
        }
        let contents = registry.read().unwrap();
        assert_eq!(addresses(&contents, 0), ["n1:1", "n2:1"]);
        assert!(!disk.exists(&leftover));
        let turn = disk.lock(&with_suffix(&registry.path, ".lock")).unwrap();
        assert!(turn.is_some());
        assert_eq!(registry.change(|_| ()), Ok(None));
    }
}
