//! Clients that see what is on the wire: raw HTTP/1.1 over a socket, and HTTP/2 with prior knowledge.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Nothing in these tests takes that long; a test that waits longer has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A response as a test wants to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Reply {
    /// Status and body in one line.
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.status, self.body)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.line()))
    }
}

/// Sends `GET /path`, or a request with a body and its content type.
pub(crate) async fn send(address: SocketAddr, request: &str, body: Option<(&str, &str)>) -> Reply {
    let head = match body {
        Some((kind, body)) => format!(
            "{request} HTTP/1.1\r\nhost: lab\r\nconnection: close\r\ncontent-type: {kind}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        ),
        None => format!("{request} HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n\r\n"),
    };
    raw(address, head.as_bytes()).await
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Reply {
    send(address, &format!("GET {path}"), None).await
}

pub(crate) async fn post_json(address: SocketAddr, path: &str, body: &str) -> Reply {
    send(
        address,
        &format!("POST {path}"),
        Some(("application/json", body)),
    )
    .await
}

/// Sends bytes as they are, and reads until the peer closes.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> Reply {
    parse(raw_text(address, bytes).await.as_bytes())
}

/// All that the peer answers, as it is on the wire.
pub(crate) async fn raw_text(address: SocketAddr, bytes: &[u8]) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The peer may answer and close before it has read everything.
        drop(stream.write_all(bytes).await);
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
        answer
    };
    let answer = tokio::time::timeout(PATIENCE, exchange)
        .await
        .expect("an answer in time");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Parses one HTTP/1.1 response.
pub(crate) fn parse(answer: &[u8]) -> Reply {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Reply {
            status: 0,
            headers: BTreeMap::new(),
            body: text.into_owned(),
        };
    };
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .unwrap_or("0");
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let body = if headers
        .get("transfer-encoding")
        .is_some_and(|coding| coding == "chunked")
    {
        unchunk(body)
    } else {
        body.to_owned()
    };
    Reply {
        status: status.parse().unwrap(),
        headers,
        body,
    }
}

fn unchunk(mut rest: &str) -> String {
    let mut out = String::new();
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        out.push_str(&tail[..size]);
        rest = tail[size..].trim_start_matches("\r\n");
        if size == 0 {
            break;
        }
    }
    out
}

/// One HTTP/2 connection with prior knowledge.
#[derive(Clone, Debug)]
pub(crate) struct Http2 {
    sender: http2::SendRequest<Full<Bytes>>,
}

impl Http2 {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        drop(tokio::spawn(connection));
        Self { sender }
    }

    pub(crate) async fn send(&self, request: http::Request<Full<Bytes>>) -> Reply {
        self.try_send(request).await.unwrap()
    }

    /// # Errors
    /// If the peer resets the stream or closes the connection.
    pub(crate) async fn try_send(
        &self,
        request: http::Request<Full<Bytes>>,
    ) -> Result<Reply, hyper::Error> {
        let mut sender = self.sender.clone();
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let headers = head
            .headers
            .iter()
            .map(|(name, value)| {
                (
                    name.to_string(),
                    String::from_utf8_lossy(value.as_bytes()).into(),
                )
            })
            .collect();
        Ok(Reply {
            status: head.status.as_u16(),
            headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    pub(crate) async fn post_json(&self, path: &str, body: &str) -> Reply {
        let request = http::Request::post(format!("http://lab{path}"))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .unwrap();
        self.send(request).await
    }
}
