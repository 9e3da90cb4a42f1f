//! What the stores of the shards count themselves, read at every scrape.

use std::sync::Arc;

use flux_store::{Stats, Store};
use flux_telemetry::{Kind, Registry, Value};
use flux_types::{ShardId, UnixMillis};

/// A family of one number for each shard.
struct PerShard {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    value: fn(&Stats) -> Value,
}

const FAMILIES: [PerShard; 10] = [
    PerShard {
        name: "flux_store_keys",
        help: "Keys held",
        kind: Kind::Gauge,
        value: |stats| stats.keys.into(),
    },
    PerShard {
        name: "flux_store_keys_with_deadline",
        help: "Keys held that will expire",
        kind: Kind::Gauge,
        value: |stats| stats.keys_with_deadline.into(),
    },
    PerShard {
        name: "flux_store_entry_bytes",
        help: "Memory of entries: header, key and value",
        kind: Kind::Gauge,
        value: |stats| stats.entry_bytes.into(),
    },
    PerShard {
        name: "flux_store_table_bytes",
        help: "Memory of hash tables",
        kind: Kind::Gauge,
        value: |stats| stats.table_bytes.into(),
    },
    PerShard {
        name: "flux_store_expiry_index_bytes",
        help: "Memory of the expiry index",
        kind: Kind::Gauge,
        value: |stats| stats.expiry_index_bytes.into(),
    },
    PerShard {
        name: "flux_store_puts",
        help: "Values written",
        kind: Kind::Counter,
        value: |stats| stats.puts.into(),
    },
    PerShard {
        name: "flux_store_deletes",
        help: "Keys deleted by clients",
        kind: Kind::Counter,
        value: |stats| stats.deletes.into(),
    },
    PerShard {
        name: "flux_store_expired",
        help: "Keys deleted because their deadline had passed",
        kind: Kind::Counter,
        value: |stats| stats.expired.into(),
    },
    PerShard {
        name: "flux_store_evicted",
        help: "Keys deleted for want of memory",
        kind: Kind::Counter,
        value: |stats| stats.evicted.into(),
    },
    PerShard {
        name: "flux_store_refused_writes",
        help: "Writes refused for want of memory",
        kind: Kind::Counter,
        value: |stats| stats.refused_memory.into(),
    },
];

/// Adds what the stores tell, all that there are at the scrape. `now` is the clock by which keys expire.
pub(crate) fn register_stores(
    registry: &Registry,
    stores: impl Fn() -> Vec<(ShardId, Arc<Store>)> + Clone + Send + Sync + 'static,
    now: impl Fn() -> UnixMillis + Send + Sync + 'static,
) {
    for family in FAMILIES {
        let stores = stores.clone();
        let PerShard {
            name,
            help,
            kind,
            value,
        } = family;
        registry.collect(name, help, kind, &["shard"], move |samples| {
            for (shard, store) in stores() {
                samples.push(&[&shard.to_string()], value(&store.stats()));
            }
        });
    }
    registry.collect(
        "flux_store_expiry_lag_seconds",
        "How long ago the deadline passed of the key that has waited longest for its deletion",
        Kind::Gauge,
        &["shard"],
        move |samples| {
            for (shard, store) in stores() {
                let lag_millis = store.expiry_lag(now());
                samples.push(&[&shard.to_string()], seconds(lag_millis));
            }
        },
    );
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a lag beyond 2^53 milliseconds loses digits that nobody reads"
)]
fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use flux_store::{BatchView, Store, StoreConfig};
    use flux_telemetry::Registry;
    use flux_types::{Command, Expiry, Set, ShardId, Term, UnixMillis, WriteCommand};

    use super::register_stores;

    #[test]
    fn the_stores_are_read_at_the_scrape() {
        let store = Arc::new(Store::new(StoreConfig::default()));
        let registry = Registry::new();
        let held = Arc::clone(&store);
        let stores = move || vec![(ShardId::new(3), Arc::clone(&held))];
        register_stores(&registry, stores, || UnixMillis::new(5_000));
        let mut evaluation = store.evaluation(UnixMillis::new(1_000), Term::new(1));
        let mut set = Set::plain(Bytes::from_static(b"k"), Bytes::from_static(b"v"));
        set.expiry = Expiry::In(500);
        drop(evaluation.command(&Command::Write(WriteCommand::Set(set))));
        let batch = evaluation.finish().unwrap();
        store.apply(&BatchView::parse(&batch).unwrap());
        let text = registry.encode();
        for line in [
            "flux_store_keys{shard=\"3\"} 1",
            "flux_store_keys_with_deadline{shard=\"3\"} 1",
            "flux_store_puts_total{shard=\"3\"} 1",
            "flux_store_expiry_lag_seconds{shard=\"3\"} 3.5",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
