//! What is known about the registry itself: whether it answers, what was lost; for `/readyz` and
//! `/metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flux_telemetry::checks::{Checks, Finding, Need};
use flux_telemetry::{Kind, Registry as Metrics};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::endpoint::Endpoints;

/// What every task of a registry reports to.
#[derive(Debug, Default)]
pub(crate) struct Status {
    /// By who reports (`registration of n1`, `watch of a.B`): the problem, or none.
    roles: Mutex<BTreeMap<String, Option<String>>>,
    pub(crate) lease_renewals: AtomicU64,
    pub(crate) lease_losses: AtomicU64,
    pub(crate) resnapshots: AtomicU64,
    /// Version of the cluster map that this process shows; 0: none.
    pub(crate) map_version: AtomicU64,
    pub(crate) map_writes: AtomicU64,
    services: Mutex<BTreeMap<String, Endpoints>>,
}

impl Status {
    /// `role` had an answer.
    pub(crate) fn well(&self, role: &str) {
        self.set(role, None);
    }

    /// `role` had none, or a refusal.
    pub(crate) fn failing(&self, role: &str, problem: &str) {
        self.set(role, Some(problem.to_owned()));
    }

    /// `role` has ended in order.
    pub(crate) fn forget(&self, role: &str) {
        self.roles.lock().remove(role);
    }

    fn set(&self, role: &str, problem: Option<String>) {
        let mut roles = self.roles.lock();
        match roles.get_mut(role) {
            Some(known) => *known = problem,
            None => {
                roles.insert(role.to_owned(), problem);
            }
        }
    }

    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn watched(&self, service: &str, endpoints: Endpoints) {
        self.services.lock().insert(service.to_owned(), endpoints);
    }

    /// The first problem there is, else what goes well.
    pub(crate) fn finding(&self) -> Finding {
        let roles = self.roles.lock();
        let problem = roles
            .iter()
            .find_map(|(role, problem)| problem.as_ref().map(|problem| (role, problem)));
        if let Some((role, problem)) = problem {
            return Finding::Failed(format!("{role}: {problem}"));
        }
        let roles: Vec<&str> = roles.keys().map(String::as_str).collect();
        Finding::Ok(roles.join(", "))
    }

    fn is_connected(&self) -> bool {
        matches!(self.finding(), Finding::Ok(_))
    }

    /// Shows this to whoever asks the process.
    pub(crate) fn publish(self: &Arc<Self>, name: &str, metrics: &Metrics, checks: &Checks) {
        let status = Arc::clone(self);
        checks.add(name, Need::Optional, move || status.finding());
        let status = Arc::clone(self);
        metrics.collect(
            "flux_discovery_connected",
            "1 while the registry answers, 0 while it is away or refuses",
            Kind::Gauge,
            &[],
            move |samples| samples.push(&[], status.is_connected()),
        );
        let status = Arc::clone(self);
        metrics.collect(
            "flux_discovery_endpoints",
            "Endpoints known of each service that is looked for",
            Kind::Gauge,
            &["service"],
            move |samples| {
                for (service, endpoints) in status.services.lock().iter() {
                    samples.push(&[service], endpoints.borrow().len());
                }
            },
        );
        let status = Arc::clone(self);
        metrics.collect(
            "flux_discovery_map_version",
            "Version of the cluster map that this process shows in the registry; 0: it shows none",
            Kind::Gauge,
            &[],
            move |samples| samples.push(&[], status.map_version.load(Ordering::Relaxed)),
        );
        type Read = fn(&Status) -> &AtomicU64;
        let counters: [(&str, &str, Read); 4] = [
            (
                "flux_discovery_lease_renewals",
                "Registration leases kept alive",
                |status| &status.lease_renewals,
            ),
            (
                "flux_discovery_lease_lost",
                "Registration leases that had to be replaced",
                |status| &status.lease_losses,
            ),
            (
                "flux_discovery_resnapshots",
                "Times everything was read anew because the history had a gap",
                |status| &status.resnapshots,
            ),
            (
                "flux_discovery_map_writes",
                "Times a cluster map was written into the registry",
                |status| &status.map_writes,
            ),
        ];
        for (name, help, read) in counters {
            let status = Arc::clone(self);
            metrics.collect(name, help, Kind::Counter, &[], move |samples| {
                samples.push(&[], read(&status).load(Ordering::Relaxed));
            });
        }
    }
}

/// Tells whoever looks for a service; nobody needs to.
pub(crate) type Publish = watch::Sender<Arc<[super::Endpoint]>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Endpoint;

    #[test]
    fn one_that_fails_is_enough_and_is_named() {
        let status = Arc::new(Status::default());
        let (metrics, checks) = (Metrics::new(), Checks::new());
        status.publish("etcd", &metrics, &checks);
        let sender = Publish::new(Arc::new([Endpoint::at("a:1"), Endpoint::at("b:1")]));
        status.watched("a.B", sender.subscribe());
        status.well("watch of a.B");
        status.well("registration of n1");
        Status::count(&status.lease_losses);
        assert_eq!(
            checks.reports()[0].to_string(),
            "[+]etcd ok: registration of n1, watch of a.B"
        );
        let text = metrics.encode();
        for line in [
            "flux_discovery_connected 1",
            "flux_discovery_endpoints{service=\"a.B\"} 2",
            "flux_discovery_lease_lost_total 1",
            "flux_discovery_lease_renewals_total 0",
            "flux_discovery_resnapshots_total 0",
            "flux_discovery_map_version 0",
            "flux_discovery_map_writes_total 0",
        ] {
            assert!(
                text.lines().any(|written| written == line),
                "{line}\n{text}"
            );
        }
        status.failing("registration of n1", "no answer");
        assert_eq!(
            checks.reports()[0].to_string(),
            "[-]etcd failed (serving goes on): registration of n1: no answer"
        );
        assert!(metrics.encode().contains("flux_discovery_connected 0"));
        status.forget("registration of n1");
        assert!(checks.reports()[0].is_ok());
    }
}
