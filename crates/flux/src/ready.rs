//! The ready file: how a program that started us learns the addresses, and that they work.
//!
//! It is removed first of all and appears, whole, by a rename, once every listener accepts and
//! every shard can be served. It goes again when the process stops in an orderly way.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::settings::reason;

/// The addresses of a running process; a listener that does not exist is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) resp: Option<SocketAddr>,
    pub(crate) grpc: Option<SocketAddr>,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) peer: Option<SocketAddr>,
}

/// A ready file that is not there yet.
#[derive(Debug)]
pub(crate) struct ReadyFile {
    path: PathBuf,
    written: bool,
}

impl ReadyFile {
    /// Removes what an earlier process left, and checks that the file can be written later.
    ///
    /// # Errors
    /// One line naming the flag.
    pub(crate) fn prepare(path: &Path) -> Result<Self, String> {
        let problem =
            |error: &std::io::Error| format!("--ready-file {}: {}", path.display(), reason(error));
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(problem(&error)),
        }
        let ready = Self {
            path: path.to_path_buf(),
            written: false,
        };
        let probe = ready.temporary();
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&probe)
            .map_err(|error| problem(&error))?;
        std::fs::remove_file(&probe).map_err(|error| problem(&error))?;
        Ok(ready)
    }

    /// Writes the file beside its place and renames it there.
    ///
    /// # Errors
    /// The operation that failed.
    pub(crate) fn write(&mut self, addresses: &Addresses, pid: u32) -> std::io::Result<()> {
        let temporary = self.temporary();
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)?;
        file.write_all(format!("{}\n", json(addresses, pid)).as_bytes())?;
        drop(file);
        std::fs::rename(&temporary, &self.path)?;
        self.written = true;
        Ok(())
    }

    fn temporary(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{}.tmp", std::process::id()));
        PathBuf::from(name)
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if self.written {
            // Whoever removed it already had a reason.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// `{"resp":"127.0.0.1:40001","grpc":"…","http":"…","admin":"…","pid":123}`.
fn json(addresses: &Addresses, pid: u32) -> String {
    let Addresses {
        resp,
        grpc,
        http,
        admin,
        peer,
    } = addresses;
    let mut text = String::from("{");
    for (name, address) in [
        ("resp", resp),
        ("grpc", grpc),
        ("http", http),
        ("admin", admin),
        ("peer", peer),
    ] {
        if let Some(address) = address {
            text.push_str(&format!("\"{name}\":\"{address}\","));
        }
    }
    text.push_str(&format!("\"pid\":{pid}}}"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_names_only_the_listeners_that_exist() {
        let at = |port| Some(SocketAddr::from(([127, 0, 0, 1], port)));
        let all = Addresses {
            resp: at(1),
            grpc: at(2),
            http: at(3),
            admin: at(4),
            peer: at(5),
        };
        assert_eq!(
            json(&all, 5),
            r#"{"resp":"127.0.0.1:1","grpc":"127.0.0.1:2","http":"127.0.0.1:3","admin":"127.0.0.1:4","peer":"127.0.0.1:5","pid":5}"#
        );
        let gateway = Addresses {
            http: at(3),
            admin: at(4),
            ..Addresses::default()
        };
        assert_eq!(
            json(&gateway, 5),
            r#"{"http":"127.0.0.1:3","admin":"127.0.0.1:4","pid":5}"#
        );
    }

    #[test]
    fn an_old_file_goes_first_and_a_new_one_appears_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready.json");
        OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        let mut ready = ReadyFile::prepare(&path).unwrap();
        assert!(!path.exists());
        ready.write(&Addresses::default(), 7).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"pid\":7}\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        drop(ready);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_cannot_be_written_is_a_mistake_in_its_flag() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("absent/ready.json");
        let problem = ReadyFile::prepare(&path).unwrap_err();
        assert!(
            problem.starts_with("--ready-file ") && problem.contains("no such file"),
            "{problem}"
        );
    }
}
