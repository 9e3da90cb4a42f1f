//! Nodes and clients for the tests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::BytesMut;
use flux_server::{Config, Fsync, Node};
use flux_wire::resp::{Value, ValueDecoder};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What no step of a test takes, unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Longest string in a reply.
const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A running node and the folder it lives in.
pub(crate) struct TestNode {
    pub(crate) node: Node,
    pub(crate) dir: TempDir,
}

/// Settings for a test: free ports, small files, no waiting for the disk.
pub(crate) fn config(dir: &Path) -> Config {
    Config {
        port: 0,
        grpc_port: 0,
        admin_port: 0,
        data_dir: PathBuf::from(dir),
        fsync: Fsync::Never,
        threads: 2,
        segment_size: 4 * 1024 * 1024,
        request_timeout: PATIENCE,
        ..Config::default()
    }
}

impl TestNode {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub(crate) async fn with_shards(shards: u32) -> Self {
        Self::start_with(|config| config.shards = Some(shards)).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a folder for the node");
        Self::start_in(dir, change).await
    }

    pub(crate) async fn start_in(dir: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(dir.path());
        change(&mut config);
        let node = Node::start(config).await.expect("the node starts");
        node.wait_ready(PATIENCE)
            .await
            .expect("all shards can write");
        Self { node, dir }
    }

    /// Ends the node in order and starts another on its folder.
    pub(crate) async fn restart(self) -> Self {
        let Self { node, dir } = self;
        node.shutdown(PATIENCE).await;
        Self::start_in(dir, |_| ()).await
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.node.addresses().resp).await
    }

    pub(crate) async fn end(self) {
        self.node.shutdown(PATIENCE).await;
    }
}

/// A client that reads whole replies.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    arrived: BytesMut,
    decoder: ValueDecoder,
}

impl Client {
    pub(crate) async fn connect(address: std::net::SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the node listens");
        stream.set_nodelay(true).expect("a socket option");
        Self {
            stream,
            arrived: BytesMut::new(),
            decoder: ValueDecoder::new(REPLY_BYTES_MAX),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the node reads");
    }

    /// The next reply; `None` if the node has closed the connection.
    pub(crate) async fn reply(&mut self) -> Option<Value> {
        let read = async {
            loop {
                if let Some(value) = self.decoder.next(&mut self.arrived).expect("valid RESP") {
                    return Some(value);
                }
                match self.stream.read_buf(&mut self.arrived).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, read)
            .await
            .expect("a reply within the patience of the test")
    }

    /// Sends one command, words separated by spaces, and reads its reply.
    pub(crate) async fn ask(&mut self, command: &str) -> Value {
        let words: Vec<&str> = command.split(' ').collect();
        self.send(&encode(&words)).await;
        self.reply().await.expect("the connection is open")
    }

    /// As [`Client::ask`], shown as text.
    pub(crate) async fn show(&mut self, command: &str) -> String {
        show(&self.ask(command).await)
    }

    /// Whether the node has closed the connection, after whatever it still sends.
    pub(crate) async fn is_closed(&mut self) -> bool {
        while self.reply().await.is_some() {}
        true
    }
}

/// A command as clients send it.
pub(crate) fn encode<A: AsRef<[u8]>>(words: &[A]) -> Vec<u8> {
    let mut out = BytesMut::new();
    flux_wire::resp::encode_command(&mut out, words);
    out.to_vec()
}

/// A reply on one line, for comparison.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::Simple(text) => String::from_utf8_lossy(text).into_owned(),
        Value::Error(text) => format!("-{}", String::from_utf8_lossy(text)),
        Value::Integer(number) => number.to_string(),
        Value::Bulk(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
        Value::Null => "nil".to_owned(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(show).collect();
            format!("[{}]", items.join(", "))
        }
        other => format!("{other:?}"),
    }
}
