//! The bytes of a session over pipes in memory: what arrives, what leaves, how it ends.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::pipe::{Event, Pipe};
use crate::clients::{Clients, Ending};

/// Larger than what is written at once in these tests.
const ROOM: usize = 1024 * 1024;

#[tokio::test]
async fn what_arrives_is_added_to_what_was_left() {
    let clients = Clients::default();
    let client = clients.register(None, None, 0);
    let (mut peer, own) = duplex(ROOM);
    let mut pipe = Pipe::new(own, BytesMut::from(&b"*1\r\n"[..]));
    peer.write_all(b"$4\r\n").await.unwrap();
    assert_eq!(pipe.wait(&client, 0).await, Event::Arrived);
    assert_eq!(&pipe.input[..], b"*1\r\n$4\r\n");
    peer.write_all(b"PING\r\n").await.unwrap();
    assert_eq!(pipe.wait(&client, 6).await, Event::Arrived);
    assert_eq!(&pipe.input[..], b"*1\r\n$4\r\nPING\r\n");
    drop(pipe.input.split());
    peer.write_all(b"next").await.unwrap();
    assert_eq!(pipe.wait(&client, 0).await, Event::Arrived);
    assert_eq!(&pipe.input[..], b"next");
}

#[tokio::test]
async fn reading_goes_on_while_the_peer_does_not_read() {
    let clients = Clients::default();
    let client = clients.register(None, None, 0);
    let (mut peer, own) = duplex(16);
    let mut pipe = Pipe::new(own, BytesMut::new());
    pipe.output.extend_from_slice(&[b'r'; 100]);
    peer.write_all(b"more").await.unwrap();
    assert_eq!(pipe.wait(&client, 0).await, Event::Arrived);
    assert_eq!(&pipe.input[..], b"more");
    assert_eq!(pipe.output.len(), 84, "the peer's buffer is full");
    assert!(client.describe(0).contains(" omem=84 "));
    let mut replies = vec![0; 100];
    let (read, event) = tokio::join!(peer.read_exact(&mut replies), async {
        // Nothing arrives, but what waits is sent.
        tokio::time::timeout(Duration::from_millis(50), pipe.wait(&client, 0)).await
    });
    assert_eq!(read.unwrap(), 100);
    assert!(event.is_err());
    assert!(pipe.output.is_empty());
}

#[tokio::test]
async fn a_peer_that_sends_no_more_still_gets_its_replies() {
    let clients = Clients::default();
    let client = clients.register(None, None, 0);
    let (mut peer, own) = duplex(16);
    let mut pipe = Pipe::new(own, BytesMut::new());
    pipe.output.extend_from_slice(&[b'r'; 100]);
    peer.shutdown().await.unwrap();
    let mut replies = vec![0; 100];
    let (read, event) = tokio::join!(peer.read_exact(&mut replies), pipe.wait(&client, 0));
    assert_eq!(read.unwrap(), 100);
    assert_eq!(event, Event::Over);
}

#[tokio::test]
async fn who_is_drained_gets_its_replies_and_who_is_killed_does_not() {
    for (ending, sent) in [(Ending::Drain, 100), (Ending::Kill, 0)] {
        let clients = Clients::default();
        let client = clients.register(None, None, 0);
        let (mut peer, own) = duplex(ROOM);
        let mut pipe = Pipe::new(own, BytesMut::new());
        pipe.output.extend_from_slice(&[b'r'; 100]);
        client.end(ending);
        assert_eq!(pipe.wait(&client, 0).await, Event::Over);
        drop(pipe);
        let mut replies = Vec::new();
        peer.read_to_end(&mut replies).await.unwrap();
        assert_eq!(replies.len(), sent, "{ending:?}");
    }
}

#[tokio::test]
async fn an_idle_session_is_woken_when_it_is_asked_to_end() {
    let clients = Clients::default();
    let client = clients.register(None, None, 0);
    let (_peer, own) = duplex(ROOM);
    let mut pipe = Pipe::new(own, BytesMut::new());
    let (event, ()) = tokio::join!(pipe.wait(&client, 0), async {
        tokio::task::yield_now().await;
        clients.drain();
    });
    assert_eq!(event, Event::Over);
}
