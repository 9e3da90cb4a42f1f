//! The admin port of a whole node.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::TestNode;

pub(crate) async fn fetch(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("the port accepts");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let sent = stream.write_all(request.as_bytes()).await;
    sent.expect("it reads");
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer).await;
    read.expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.lines().next().expect("a status");
    (status.to_owned(), body.to_owned())
}

#[tokio::test]
async fn a_node_tells_that_it_is_ready_and_what_it_has_done() {
    let node = TestNode::with_shards(2).await;
    let addresses = node.node.addresses();
    let (status, body) = fetch(addresses.admin, "/readyz?verbose").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert_eq!(body.lines().count(), 3, "{body}");
    assert!(body.contains("[+]shard-1 ok: leader of term"), "{body}");

    let mut redis = TcpStream::connect(addresses.resp).await.unwrap();
    redis
        .write_all(b"SET foo 1\r\nSET hello 1\r\nGET foo\r\n")
        .await
        .unwrap();
    let mut answer = [0; 17];
    redis.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"+OK\r\n+OK\r\n$1\r\n1\r\n");

    let (status, body) = fetch(addresses.admin, "/metrics").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    for line in [
        r#"flux_server_commands_total{command="set",result="ok"} 2"#,
        r#"flux_server_commands_total{command="get",result="ok"} 1"#,
        r#"flux_server_connections{protocol="resp"} 1"#,
        r#"flux_raft_writable{shard="0"} 1"#,
        r#"flux_raft_writable{shard="1"} 1"#,
        // The slots of foo and hello are 12182 and 866.
        r#"flux_store_keys{shard="0"} 1"#,
        r#"flux_store_keys{shard="1"} 1"#,
        "flux_log_full 0",
        "flux_log_failed 0",
    ] {
        assert!(
            body.lines().any(|written| written == line),
            "{line} is missing in\n{body}"
        );
    }
}
