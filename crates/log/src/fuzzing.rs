//! Entry points of the fuzz targets: what must hold of any bytes. The suite replays their corpus.
//! Not for use by other rooms.

use std::path::Path;

use flux_env::{Disk, OpenMode, SimDisk};
use flux_types::{ClusterId, NodeId, UnixMillis};

use crate::record::decode;
use crate::recovery::scan;
use crate::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, segment_name};

/// The salt under which inputs are read.
pub const SALT: u64 = 7;

/// Takes any bytes as the records of a log's only segment, and opens it.
///
/// # Panics
/// If a record reaches beyond its bytes, or if a scan of the same bytes does not say the same twice.
pub fn log_record(input: &[u8]) {
    let mut rest = input;
    while let Ok(record) = decode(rest, SALT) {
        assert!(
            record.size() <= rest.len(),
            "a record reaches beyond its bytes"
        );
        rest = rest.get(record.size()..).unwrap_or_default();
    }
    let header = SegmentHeader {
        number: 1,
        salt: SALT,
        node: NodeId::new(1),
        cluster: ClusterId::new(1),
        created: UnixMillis::ZERO,
    };
    let dir = Path::new("/fuzz");
    let disk = SimDisk::new();
    disk.create_dir_all(&dir.join("log"))
        .expect("a simulated disk");
    let path = dir.join("log").join(segment_name(1));
    let file = disk
        .open(&path, OpenMode::CreateNew)
        .expect("a simulated disk");
    file.write_all_at(&header.encode(), 0)
        .expect("a simulated disk");
    let offset = crate::fields::widen(SEGMENT_HEADER_BYTES);
    file.write_all_at(input, offset).expect("a simulated disk");
    // Once as the boot that wrote it, once as a later one: the two may judge a tail differently.
    for boot_id in [0, 1] {
        let found = scan(&disk, dir, 2, boot_id).map(|image| image.end).ok();
        let again = scan(&disk, dir, 2, boot_id).map(|image| image.end).ok();
        assert_eq!(found, again, "a scan says the same twice");
    }
}
