//! What must hold of any bytes, for the fuzz targets in `fuzz/` and the test that replays their
//! corpus. Not for use by other rooms.

use flux_types::UnixMillis;

use crate::batch::{BatchView, BatchWriter, FactRef};
use crate::store::{Store, StoreConfig};

/// Patches beyond this offset are parsed but not applied: they are right, and large.
const OFFSET_MAX: u32 = 1 << 16;

fn store(hash_seed: u64) -> Store {
    Store::new(StoreConfig {
        stripes: 2,
        hash_seed,
        ..StoreConfig::default()
    })
}

/// Any bytes as a batch: refused, or written back as the same bytes and applied, once or twice
/// with the same end.
///
/// # Panics
/// When that does not hold.
pub fn batch(input: &[u8]) {
    let Ok(view) = BatchView::parse(input) else {
        return;
    };
    let mut writer = BatchWriter::new(view.term(), view.at(), view.first_revision());
    let mut facts = view.facts();
    let mut in_group = false;
    while let Some((_, fact, more)) = facts.step() {
        if !in_group {
            writer.begin_traced_group(facts.trace());
        }
        writer.push(fact);
        in_group = more;
    }
    let mut written = writer.finish().unwrap_or_default().to_vec();
    if let Some(version) = written.first_mut() {
        // What version 1 could say, version 2 says in the same bytes.
        *version = view.version();
    }
    assert_eq!(written, input, "one encoding of each batch");
    let is_large = |(_, fact): (_, FactRef<'_>)| matches!(fact, FactRef::Patch { offset, .. } if OFFSET_MAX < offset);
    if view.facts().any(is_large) {
        return;
    }
    let (once, twice) = (store(1), store(2));
    once.apply(&view);
    twice.apply(&view);
    twice.apply(&view);
    assert_eq!(once.digest(), twice.digest(), "applying again does nothing");
    assert_eq!(once.revision(), view.last_revision());
    let due = once.due(UnixMillis::MAX, usize::MAX);
    assert!(due.len() <= once.deadlines(), "an item stands for one key");
}

/// Any bytes as a block of a snapshot: refused, or loaded.
pub fn block(input: &[u8]) {
    let store = store(1);
    let mut loader = store.loader();
    // Either is fine; it must not panic.
    drop(loader.load_block(input));
}
