//! A registry within one process: what is registered is found at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::endpoint::{Endpoint, Endpoints};
use super::layout::Registration;
use super::status::Publish;

/// Registrations by id, and who is told. All clones are one registry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    registrations: BTreeMap<String, Registration>,
    watched: BTreeMap<String, Publish>,
}

impl Shared {
    fn endpoints(&self, service: &str) -> Arc<[Endpoint]> {
        let of_service = self
            .registrations
            .values()
            .filter(|registration| registration.services.iter().any(|name| name == service));
        let by_address: BTreeMap<&str, Endpoint> = of_service
            .map(|found| {
                let mut endpoint = Endpoint::at(&found.address);
                if let Some(node) = &found.node {
                    endpoint.weight = node.weight.max(1);
                    endpoint.zone.clone_from(&node.zone);
                }
                (found.address.as_str(), endpoint)
            })
            .collect();
        by_address.into_values().collect()
    }

    fn tell(&self) {
        for (service, publish) in &self.watched {
            let now = self.endpoints(service);
            publish.send_if_modified(|shown| {
                let has_changed = *shown != now;
                if has_changed {
                    *shown = now;
                }
                has_changed
            });
        }
    }
}

impl Memory {
    pub(crate) fn put(&self, registration: Registration) {
        let mut shared = self.shared.lock();
        shared
            .registrations
            .insert(registration.id.clone(), registration);
        shared.tell();
    }

    pub(crate) fn remove(&self, id: &str) {
        let mut shared = self.shared.lock();
        shared.registrations.remove(id);
        shared.tell();
    }

    pub(crate) fn watch(&self, service: &str) -> Endpoints {
        let mut shared = self.shared.lock();
        let now = shared.endpoints(service);
        shared
            .watched
            .entry(service.to_owned())
            .or_insert_with(|| Publish::new(now))
            .subscribe()
    }
}
