//! The bytes of a FLUX session: what has arrived, what has not left yet.
//!
//! Hot path. An idle session holds no buffer: reads go into a buffer of the thread and what arrived
//! is copied once. Only for the rest of a long frame is there room in the session's own buffer.

use std::cell::RefCell;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use crate::clients::{Client, Ending};

/// Size of a thread's read buffer.
const THREAD_BUFFER_BYTES: usize = 64 * 1024;
/// A buffer of up to this size is kept while it is empty.
const BYTES_KEPT: usize = 8 * 1024;

thread_local! {
    static THREAD_BUFFER: RefCell<Box<[u8]>> =
        RefCell::new(vec![0; THREAD_BUFFER_BYTES].into_boxed_slice());
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// More bytes.
    Some,
    /// The end, by the peer's will or by an error.
    Ended,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pipe<S> {
    stream: S,
    /// Arrived and not consumed.
    pub(super) input: BytesMut,
    /// Not sent yet.
    pub(super) output: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Pipe<S> {
    pub(super) fn new(stream: S, input: BytesMut) -> Self {
        Self {
            stream,
            input,
            output: BytesMut::new(),
        }
    }

    /// Receives what is there. `wanted` more bytes are known to be missing of the frame in hand.
    pub(super) fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Received> {
        let received = if wanted > THREAD_BUFFER_BYTES {
            flux_wire::reserve_for_read(&mut self.input, wanted);
            pin!(self.stream.read_buf(&mut self.input)).poll(context)
        } else {
            self.poll_receive_shared(context)
        };
        received.map(|received| match received {
            Ok(1..) => Received::Some,
            Ok(0) | Err(_) => Received::Ended,
        })
    }

    fn poll_receive_shared(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        THREAD_BUFFER.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            let polled = Pin::new(&mut self.stream).poll_read(context, &mut buffer);
            polled.map_ok(|()| {
                self.input.extend_from_slice(buffer.filled());
                buffer.filled().len()
            })
        })
    }

    /// Sends as much as the socket takes now.
    ///
    /// # Errors
    /// The peer is gone.
    pub(super) fn poll_send(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        while !self.output.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, &self.output) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => self.output.advance(count),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(()),
            }
        }
        self.output.clear();
        if self.output.capacity() > BYTES_KEPT {
            self.output = BytesMut::new();
        }
        Ok(())
    }

    /// Sends what is left and closes. Gives up when the client is killed.
    pub(super) async fn finish(&mut self, client: &Client) {
        poll_fn(|context| {
            client.register_waker(context.waker());
            if client.ending() == Ending::Kill || self.poll_send(context).is_err() {
                return Poll::Ready(());
            }
            if !self.output.is_empty() {
                return Poll::Pending;
            }
            // What the peer makes of it does not matter any more.
            Pin::new(&mut self.stream).poll_shutdown(context).map(drop)
        })
        .await;
    }
}
