//! System data: what the node itself keeps in a shard's replicated state, by name, such as how far a
//! sink has got. They are no keys: clients do not see them, they are in no count, a clear spares
//! them, and no change of them is published. Snapshots hold them.

use std::collections::BTreeMap;

use bytes::Bytes;
use flux_types::Revision;

use crate::batch::FactRef;
use crate::store::Store;

/// All system data of a shard. Few, so one lock is enough; it is taken last.
#[derive(Clone, Debug, Default)]
pub(crate) struct System {
    entries: BTreeMap<Bytes, SystemEntry>,
}

/// The data under one name.
#[derive(Clone, Debug)]
pub(crate) struct SystemEntry {
    pub(crate) revision: Revision,
    pub(crate) value: Bytes,
}

impl System {
    /// Makes a fact about system data true, unless what is there is newer.
    pub(crate) fn apply(&mut self, revision: Revision, fact: &FactRef<'_>) {
        if let FactRef::SystemPut { name, value } = *fact {
            self.put(revision, name, value);
        } else if let FactRef::SystemDelete { name } = *fact
            && self.is_older(name, revision)
        {
            self.entries.remove(name);
        }
    }

    pub(crate) fn put(&mut self, revision: Revision, name: &[u8], value: &[u8]) {
        if self.is_older(name, revision) {
            let value = Bytes::copy_from_slice(value);
            self.entries.insert(
                Bytes::copy_from_slice(name),
                SystemEntry { revision, value },
            );
        }
    }

    fn is_older(&self, name: &[u8], revision: Revision) -> bool {
        let entry = self.entries.get(name);
        entry.is_none_or(|entry| entry.revision < revision)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Bytes, &SystemEntry)> {
        self.entries.iter()
    }
}

impl Store {
    /// Makes a fact true that is about what the node keeps for itself.
    pub(crate) fn apply_system(&self, revision: Revision, fact: &FactRef<'_>) {
        if let FactRef::Request { .. } | FactRef::ForgetSessions { .. } = fact {
            self.requests.lock().apply(fact);
        } else {
            self.system.lock().apply(revision, fact);
        }
    }

    /// The system data under a name.
    #[must_use]
    pub fn system(&self, name: &[u8]) -> Option<Bytes> {
        let system = self.system.lock();
        system.entries.get(name).map(|entry| entry.value.clone())
    }

    /// How many names have system data.
    #[must_use]
    pub fn system_len(&self) -> usize {
        self.system.lock().entries.len()
    }
}
