//! The registry: where services are written down with their addresses, and found.
//!
//! [`Registry::register`] writes a [`Registration`] and keeps it alive; [`Registry::watch`] gives the
//! [`Endpoints`] of a service, now and after every change. Behind both is a memory of this process,
//! a file, or etcd. A registry is a hint: when it is away, what was found last stays in use, what
//! is registered is registered again by itself once it is back, and nobody stops serving.
//!
//! [`Registry::show_map`] shows a cluster's map there, for others to look at.
//!
//! Read in this order: `layout` and `map_hint` say what is written, `lease`, `map_keeper` and `watch`
//! decide, `held` says what is handed out; `etcd`, `file` and `memory` act.

mod backoff;
mod endpoint;
#[cfg(feature = "etcd")]
mod etcd;
mod file;
mod held;
mod layout;
#[cfg(feature = "etcd")]
mod lease;
mod map_hint;
#[cfg(feature = "etcd")]
mod map_keeper;
mod memory;
mod status;
#[cfg(test)]
mod tests;
#[cfg(feature = "etcd")]
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flux_env::{Clock, Disk, Rng, SeededRng};
use flux_telemetry::{Checks, Registry as Metrics};
use flux_types::ClusterId;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch as channel;
use tokio::task::JoinHandle;

pub use endpoint::{Endpoint, Endpoints, WEIGHT_DEFAULT, fixed};
pub use layout::{
    NodeEntry, Registration, address_of, check_address, check_id, check_prefix, check_service,
};
pub use map_hint::{MapHint, Rank};

use file::FileRegistry;
use memory::Memory;
use status::Status;

/// Shortest time to live of a registration: etcd gives no shorter one.
pub const TTL_MIN: Duration = Duration::from_secs(2);
/// Longest: a node that died would be called for as long.
pub const TTL_MAX: Duration = Duration::from_secs(600);
/// How long a set of endpoints is kept that the registry suddenly knows nothing of.
const STALE_GRACE: Duration = Duration::from_secs(30);
/// A map that is shown is looked after this many times in a registration's time to live.
#[cfg(feature = "etcd")]
const LOOKS_PER_TTL: u32 = 3;
/// How long a withdrawal may take.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(3);

/// Which map a process is to show now; none, if another one should.
pub type Maps = channel::Receiver<Option<Arc<MapHint>>>;

/// Where registrations are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// In this process.
    #[default]
    Memory,
    /// In a JSON file.
    File,
    /// In etcd.
    Etcd,
}

impl Kind {
    /// The word for it in configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::File => "file",
            Self::Etcd => "etcd",
        }
    }
}

/// Which registry, and how.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// Where registrations are kept.
    pub kind: Kind,
    /// `host:port` of each member of etcd that may be asked.
    pub etcd: Vec<String>,
    /// Name of an etcd user; empty: etcd asks nobody.
    pub user: String,
    /// The user's password.
    pub password: String,
    /// The registry's file.
    pub file: PathBuf,
    /// What all keys begin with, without slashes at its ends.
    pub prefix: String,
    /// How long a registration lives when its process does not.
    pub ttl: Duration,
}

impl fmt::Debug for Config {
    /// Shows everything but the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("kind", &self.kind)
            .field("etcd", &self.etcd)
            .field("user", &self.user)
            .field("file", &self.file)
            .field("prefix", &self.prefix)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kind: Kind::Memory,
            etcd: Vec::new(),
            user: String::new(),
            password: String::new(),
            file: PathBuf::new(),
            prefix: "flux".to_owned(),
            ttl: Duration::from_secs(10),
        }
    }
}

/// What a registry stands on.
#[derive(Debug)]
pub struct Parts {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Spreads what many do at once.
    pub seed: u64,
    /// Where it is counted what happens.
    pub metrics: Metrics,
    /// Where it is said whether the registry answers.
    pub checks: Checks,
}

/// Why a registry cannot be used, or a registration not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// An address of etcd that is not one.
    #[error("etcd: {problem}")]
    Endpoint {
        /// What is wrong with it.
        problem: String,
    },
    /// This program was built without it.
    #[error("this program was built without etcd")]
    WithoutEtcd,
    /// A registration with an impossible name or address.
    #[error("cannot be registered: {problem}")]
    Registration {
        /// What is wrong with it.
        problem: String,
    },
}

/// A handle on the registry. Cheap to clone; the work ends with the last clone.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: Kind,
    backend: Backend,
    config: Config,
    clock: Arc<dyn Clock>,
    status: Arc<Status>,
    runtime: Handle,
    seeds: Mutex<SeededRng>,
    watches: Mutex<BTreeMap<String, (Endpoints, JoinHandle<()>)>>,
}

#[derive(Debug)]
enum Backend {
    Memory(Memory),
    File(FileRegistry),
    #[cfg(feature = "etcd")]
    Etcd(Arc<etcd::Client>),
}

impl Registry {
    /// Makes a handle; nobody is asked yet. Its tasks run on the runtime that calls this.
    ///
    /// # Errors
    /// An address that is not one, or a kind that this program was built without.
    ///
    /// # Panics
    /// Outside of a tokio runtime, or if `parts.metrics` has a registry's metrics already.
    pub fn open(config: Config, parts: Parts) -> Result<Self, RegistryError> {
        let status = Arc::new(Status::default());
        let backend = match config.kind {
            Kind::Memory => Backend::Memory(Memory::default()),
            Kind::File => Backend::File(FileRegistry {
                path: config.file.clone(),
                disk: parts.disk,
                clock: Arc::clone(&parts.clock),
                status: Arc::clone(&status),
                ttl: config.ttl,
                grace: STALE_GRACE,
            }),
            Kind::Etcd => etcd_backend(&config)?,
        };
        let check = match config.kind {
            Kind::Memory => "registry",
            Kind::File => "registry-file",
            Kind::Etcd => "etcd",
        };
        status.publish(check, &parts.metrics, &parts.checks);
        Ok(Self {
            inner: Arc::new(Inner {
                kind: config.kind,
                backend,
                config,
                clock: parts.clock,
                status,
                runtime: Handle::current(),
                seeds: Mutex::new(SeededRng::new(parts.seed)),
                watches: Mutex::default(),
            }),
        })
    }

    /// Where registrations are kept.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.inner.kind
    }

    /// The endpoints of a service, now and after every change. Asking again gives the same.
    #[must_use]
    pub fn watch(&self, service: &str) -> Endpoints {
        let inner = &self.inner;
        let mut watches = inner.watches.lock();
        if let Some((endpoints, _)) = watches.get(service) {
            return endpoints.clone();
        }
        let role = format!("watch of {service}");
        let publish = status::Publish::new(Arc::new([]));
        let mut endpoints = publish.subscribe();
        let task = match &inner.backend {
            Backend::Memory(memory) => {
                endpoints = memory.watch(service);
                // The memory itself tells of changes.
                inner.runtime.spawn(async {})
            }
            Backend::File(file) => {
                let follow = file.clone().follow(service.to_owned(), role, publish);
                inner.runtime.spawn(follow)
            }
            #[cfg(feature = "etcd")]
            Backend::Etcd(client) => {
                let watcher = etcd::Watcher {
                    client: Arc::clone(client),
                    clock: Arc::clone(&inner.clock),
                    status: Arc::clone(&inner.status),
                    machine: watch::WatchLoop::new(inner.seed()),
                    held: held::Held::new(STALE_GRACE),
                    publish,
                    prefix: layout::service_prefix(&inner.config.prefix, service),
                    role,
                    complaint: backoff::Complaint::default(),
                    unreadable: std::collections::BTreeSet::new(),
                };
                inner.runtime.spawn(watcher.run())
            }
        };
        inner.status.watched(service, endpoints.clone());
        watches.insert(service.to_owned(), (endpoints.clone(), task));
        endpoints
    }

    /// Registers, and keeps registered until the returned handle withdraws it. It need not be
    /// written yet when this returns, and is written again by itself whenever it is lost.
    ///
    /// # Errors
    /// A name or an address that cannot be registered.
    pub fn register(&self, registration: Registration) -> Result<Registered, RegistryError> {
        registration
            .validate()
            .map_err(|problem| RegistryError::Registration { problem })?;
        let inner = &self.inner;
        let role = format!("registration of {}", registration.id);
        let (withdraw, told) = channel::channel(false);
        let task = match &inner.backend {
            Backend::Memory(memory) => {
                let (memory, id) = (memory.clone(), registration.id.clone());
                memory.put(registration);
                inner.status.well(&role);
                let status = Arc::clone(&inner.status);
                inner.runtime.spawn(async move {
                    let mut told = told;
                    // A sender that is gone withdraws as well: there is no lease to wait for.
                    drop(told.wait_for(|is_wanted| *is_wanted).await);
                    memory.remove(&id);
                    status.forget(&role);
                })
            }
            Backend::File(file) => {
                let keep = file.clone().keep(registration, role, told);
                inner.runtime.spawn(keep)
            }
            #[cfg(feature = "etcd")]
            Backend::Etcd(client) => {
                let keeper = etcd::Keeper {
                    client: Arc::clone(client),
                    clock: Arc::clone(&inner.clock),
                    status: Arc::clone(&inner.status),
                    machine: lease::LeaseKeeper::new(inner.config.ttl, inner.seed()),
                    ttl: inner.config.ttl,
                    entries: registration.entries(&inner.config.prefix),
                    role,
                };
                inner.runtime.spawn(keeper.run(told))
            }
        };
        Ok(Registered {
            withdraw,
            task: Some(task),
        })
    }

    /// Shows a cluster's map, now and after every change, until the returned handle is dropped: for
    /// whoever is interested, and nobody obeys it. An older map never takes the place of a newer one.
    /// What was shown last stays. A registry in a file shows none: who can read it can ask a node.
    #[must_use]
    pub fn show_map(&self, cluster: ClusterId, maps: Maps) -> Showing {
        let inner = &self.inner;
        Showing(match &inner.backend {
            Backend::Memory(memory) => {
                let prefix = inner.config.prefix.clone();
                inner.runtime.spawn(memory.clone().follow(prefix, maps))
            }
            Backend::File(_) => inner.runtime.spawn(async {}),
            #[cfg(feature = "etcd")]
            Backend::Etcd(client) => {
                let interval = inner.config.ttl / LOOKS_PER_TTL;
                let teller = etcd::Teller {
                    client: Arc::clone(client),
                    clock: Arc::clone(&inner.clock),
                    status: Arc::clone(&inner.status),
                    machine: map_keeper::MapKeeper::new(interval, inner.seed()),
                    prefix: inner.config.prefix.clone(),
                    role: format!("map of {:016x}", cluster.get()),
                };
                inner.runtime.spawn(teller.run(maps))
            }
        })
    }
}

/// A map that is shown for as long as this lives.
#[derive(Debug)]
pub struct Showing(JoinHandle<()>);

impl Drop for Showing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(feature = "etcd")]
fn etcd_backend(config: &Config) -> Result<Backend, RegistryError> {
    let credentials = (!config.user.is_empty()).then(|| etcd::Credentials {
        user: config.user.clone(),
        password: config.password.clone(),
    });
    etcd::Client::new(&config.etcd, credentials)
        .map(|client| Backend::Etcd(Arc::new(client)))
        .map_err(|problem| RegistryError::Endpoint { problem })
}

#[cfg(not(feature = "etcd"))]
fn etcd_backend(_: &Config) -> Result<Backend, RegistryError> {
    Err(RegistryError::WithoutEtcd)
}

impl Inner {
    #[cfg(feature = "etcd")]
    fn seed(&self) -> u64 {
        self.seeds.lock().next_u64()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for (_, task) in self.watches.get_mut().values() {
            task.abort();
        }
    }
}

/// A registration that is kept alive. Dropped without [`Registered::withdraw`], it ends as that of
/// a process that was killed: when its lease does.
#[derive(Debug)]
pub struct Registered {
    withdraw: channel::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl Registered {
    /// Takes the registration back: when this returns, nobody finds it anymore, or the registry did
    /// not answer for some seconds, and it ends with its lease.
    ///
    /// # Cancellation
    /// Safe to drop; the withdrawal may then not have happened yet.
    pub async fn withdraw(mut self) {
        self.withdraw.send_replace(true);
        if let Some(task) = self.task.take() {
            let abort = task.abort_handle();
            if tokio::time::timeout(WITHDRAW_TIMEOUT, task).await.is_err() {
                abort.abort();
            }
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
