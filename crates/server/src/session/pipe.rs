//! The bytes of a RESP session: what has arrived, what has not left yet.
//!
//! Hot path. Idle sessions hold no buffer: a read goes into a buffer of the thread, from which the
//! arrived bytes are split off without a copy; only the beginning of an unfinished command is
//! copied into a buffer of the session. Unsent bytes are kept until the peer takes them; while it
//! does not, reading goes on, because a peer may send a long pipeline before it reads its first
//! reply. The session's limit on unsent bytes ends that.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::clients::{Client, Ending};

/// Size of a thread's read buffer.
const THREAD_BUFFER_BYTES: usize = 256 * 1024;
/// Free space that a thread's read buffer must offer.
const THREAD_BUFFER_BYTES_FREE_MIN: usize = 32 * 1024;
/// An output buffer of up to this size is kept between turns.
const OUTPUT_BYTES_KEPT: usize = 8 * 1024;

thread_local! {
    static THREAD_BUFFER: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// What a session waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Bytes have arrived.
    Arrived,
    /// The connection is over: the peer is gone or has all it will get.
    Over,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pipe<S> {
    stream: S,
    /// Arrived and not consumed.
    pub(crate) input: BytesMut,
    /// Replies, not sent yet.
    pub(crate) output: BytesMut,
    /// Whether `input` shares the memory of the thread's buffer.
    is_shared: bool,
    /// The peer sends no more.
    is_ended: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Pipe<S> {
    pub(crate) fn new(stream: S, input: BytesMut) -> Self {
        Self {
            stream,
            input,
            output: BytesMut::new(),
            is_shared: false,
            is_ended: false,
        }
    }

    /// Sends what waits and waits for more to arrive. `wanted` more bytes are known to be missing
    /// of the command in hand. Ends when the client was told to end: at once if killed, when
    /// everything is sent if drained.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub(crate) async fn wait(&mut self, client: &Client, wanted: usize) -> Event {
        self.own_input(wanted);
        poll_fn(|context| {
            client.register_waker(context.waker());
            let ending = client.ending();
            if ending == Ending::Kill {
                return Poll::Ready(Event::Over);
            }
            if !self.output.is_empty() {
                if self.poll_send(context).is_err() {
                    return Poll::Ready(Event::Over);
                }
                client.set_unsent(self.output.len());
            }
            if self.output.is_empty() && (self.is_ended || ending == Ending::Drain) {
                return Poll::Ready(Event::Over);
            }
            if self.is_ended || ending == Ending::Drain {
                return Poll::Pending;
            }
            match self.poll_receive(context) {
                Poll::Ready(Ok(0)) => {
                    self.is_ended = true;
                    if self.output.is_empty() {
                        Poll::Ready(Event::Over)
                    } else {
                        Poll::Pending
                    }
                }
                Poll::Ready(Ok(_)) => Poll::Ready(Event::Arrived),
                Poll::Ready(Err(_)) => Poll::Ready(Event::Over),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Sends what waits, for a last time, and closes. Gives up when the client is killed.
    pub(crate) async fn finish(&mut self, client: &Client) {
        poll_fn(|context| {
            client.register_waker(context.waker());
            if client.ending() == Ending::Kill || self.poll_send(context).is_err() {
                return Poll::Ready(());
            }
            if self.output.is_empty() {
                // What the peer makes of it does not matter anymore.
                return Pin::new(&mut self.stream).poll_shutdown(context).map(drop);
            }
            Poll::Pending
        })
        .await;
    }

    /// Sends as much as the socket takes now.
    fn poll_send(&mut self, context: &mut Context<'_>) -> std::io::Result<()> {
        while !self.output.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, &self.output) {
                Poll::Ready(Ok(0)) => return Err(std::io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => self.output.advance(count),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(()),
            }
        }
        self.output.clear();
        if self.output.capacity() > OUTPUT_BYTES_KEPT {
            self.output = BytesMut::new();
        }
        Ok(())
    }

    /// Receives as much as is there now.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        if !self.input.is_empty() {
            let read = pin!(self.stream.read_buf(&mut self.input));
            return read.poll(context);
        }
        THREAD_BUFFER.with_borrow_mut(|buffer| {
            if buffer.capacity() - buffer.len() < THREAD_BUFFER_BYTES_FREE_MIN {
                buffer.reserve(THREAD_BUFFER_BYTES);
            }
            let read = pin!(self.stream.read_buf(buffer));
            let polled = read.poll(context);
            if let Poll::Ready(Ok(1..)) = polled {
                self.input = buffer.split();
                self.is_shared = true;
            }
            polled
        })
    }

    /// Moves an unfinished command out of the thread's buffer, which it would keep alive, and
    /// makes room for the rest of it.
    fn own_input(&mut self, wanted: usize) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
            self.is_shared = false;
            return;
        }
        if self.is_shared {
            self.input = BytesMut::from(self.input.as_ref());
            self.is_shared = false;
        }
        flux_wire::reserve_for_read(&mut self.input, wanted);
    }
}
