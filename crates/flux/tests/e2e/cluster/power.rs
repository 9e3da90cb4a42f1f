//! Power cuts of all nodes at once: each has a file system of its own that is shut down (ext4's
//! ioctl, without flushing anything), so that only what was synced is there afterwards.
//!
//! [`CUTS`] times, or as often as `FLUX_POWER_CUTS` says. Needs root, a loop device and ext4.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flux_history::Demands;
use rustix::process::Signal;
use tempfile::TempDir;

use super::load::Load;
use super::nodes::Nodes;
use crate::harness::{command, have, python, skip};

/// Cuts of a run in the suite.
const CUTS: u64 = 2;
/// How long a cluster may take to serve everybody.
const HEALING: Duration = Duration::from_secs(30);
const NAME: &str = "power cuts";
/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH` (`fs/ext4/ext4.h` of Linux).
const CUT: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

fn is_done(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// A file system in a file, mounted on a node's folder.
struct Disk {
    image: PathBuf,
    mounted: PathBuf,
}

impl Disk {
    /// Makes one and mounts it on `folder`, which it makes.
    fn new(image: PathBuf, folder: PathBuf) -> Result<Self, String> {
        std::fs::create_dir(&folder).map_err(|error| error.to_string())?;
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(512 << 20).map_err(|error| error.to_string())?;
        is_done(command("mkfs.ext4").arg("-q").arg(&image))?;
        let disk = Self {
            image,
            mounted: folder,
        };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        let mut mount = command("mount");
        is_done(
            mount
                .args(["-o", "loop"])
                .arg(&self.image)
                .arg(&self.mounted),
        )
    }

    /// From now on nothing reaches it.
    fn cut(&self, python: &Path) {
        let cut = is_done(command(python).args(["-c", CUT]).arg(&self.mounted));
        cut.expect("ext4 can be shut down");
    }

    /// What is on it, once the power is back.
    fn back(&self) {
        is_done(command("umount").arg(&self.mounted)).expect("nobody uses it");
        self.mount().expect("it was mounted before");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: what failed may still use it.
        drop(is_done(command("umount").arg("--lazy").arg(&self.mounted)));
        // Its owner could not remove it while it was mounted.
        let folder = self.mounted.parent().unwrap_or(&self.mounted);
        drop(std::fs::remove_dir_all(folder));
    }
}

fn disks(images: &Path, folders: &[TempDir]) -> Option<Vec<Disk>> {
    if !rustix::process::geteuid().is_root() {
        skip(NAME, "only root can mount file systems");
        return None;
    }
    let disks = folders.iter().enumerate().map(|(number, folder)| {
        Disk::new(
            images.join(number.to_string()),
            folder.path().join("flux-data"),
        )
    });
    match disks.collect() {
        Ok(disks) => Some(disks),
        Err(problem) => {
            skip(NAME, &problem);
            None
        }
    }
}

#[test]
fn the_power_of_all_nodes_fails_and_nothing_acknowledged_is_lost() {
    let (Some(python), true) = (python(NAME), have("mkfs.ext4", NAME)) else {
        return;
    };
    let cuts = std::env::var("FLUX_POWER_CUTS").ok();
    let cuts = cuts.map_or(CUTS, |text| text.parse().expect("a number of cuts"));
    let folder = || tempfile::tempdir().expect("a temporary folder");
    let (images, folders) = (folder(), [folder(), folder(), folder()]);
    let Some(disks) = disks(images.path(), &folders) else {
        return;
    };
    let mut nodes = Nodes::in_folders(folders.into(), &["--shards", "2", "--segment-size", "4MiB"]);
    for index in 0..3 {
        nodes.spawn(index);
    }
    nodes.wait_ready();
    for _ in 0..cuts {
        let load = Load::start(nodes.addresses(), 6);
        load.wait_done(300, HEALING);
        // A process must not see the end of a sync that the cut overtakes: as the file system goes
        // down the kernel may call one done that is not (3 of 500 cuts under two more syncers).
        for index in 0..3 {
            nodes.process(index).signal(Signal::STOP);
        }
        for disk in &disks {
            disk.cut(&python);
        }
        for index in 0..3 {
            nodes.kill(index);
        }
        for (index, disk) in disks.iter().enumerate() {
            disk.back();
            nodes.spawn(index);
        }
        nodes.wait_ready();
        load.wait_done(100, HEALING);
        load.judge(&Demands {
            completed_min: 400,
            values_read_min: 60,
            overlapping_min: 10,
            unknown_percent_max: 20,
        });
        nodes.assert_equal();
    }
}
