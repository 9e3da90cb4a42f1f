//! A registry within one process: what is registered is found at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Maps;
use super::endpoint::{Endpoint, Endpoints};
use super::layout::Registration;
use super::map_hint::MapHint;
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
    /// The newest map that was shown, by its key.
    maps: BTreeMap<String, Arc<MapHint>>,
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

    /// Shows every map that is told, until nobody tells any more.
    pub(crate) async fn follow(self, prefix: String, mut maps: Maps) {
        loop {
            let told = maps.borrow_and_update().clone();
            if let Some(told) = told {
                self.show(told.key(&prefix), told);
            }
            if maps.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes a map in, if it is newer than the one that is there.
    pub(crate) fn show(&self, key: String, told: Arc<MapHint>) {
        let mut shared = self.shared.lock();
        let known = shared.maps.entry(key).or_insert_with(|| Arc::clone(&told));
        if known.rank < told.rank {
            *known = told;
        }
    }

    /// The map that is shown under a key.
    #[cfg(test)]
    pub(crate) fn shown(&self, key: &str) -> Option<Arc<MapHint>> {
        self.shared.lock().maps.get(key).cloned()
    }
}
