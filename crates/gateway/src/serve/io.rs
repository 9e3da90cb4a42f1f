//! A connection whose first bytes were read to see which protocol it speaks, and are read again.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};

use super::bare;
use super::framing::Framing;

/// How an HTTP/2 connection with prior knowledge begins (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Which HTTP a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// A TCP stream that gives its first bytes again.
#[derive(Debug)]
pub(crate) struct Rewound {
    stream: TcpStream,
    head: [u8; PREFACE.len()],
    /// What is left of the head.
    range: std::ops::Range<usize>,
    /// Watches HTTP/1.1; HTTP/2 has frames of its own.
    framing: Option<Framing>,
    /// What is written in place of an answer without a body, and how much of it is written.
    instead: Option<(Vec<u8>, usize)>,
    write_stall: Duration,
    /// Runs while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// How long a peer may be silent, and how long it may take nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) first_bytes: Duration,
    pub(crate) write_stall: Duration,
}

impl Rewound {
    /// Reads until the protocol is clear.
    ///
    /// # Errors
    /// If the peer closes or stays silent for too long.
    pub(crate) async fn detect(
        stream: TcpStream,
        patience: Patience,
    ) -> io::Result<(Self, Protocol)> {
        let mut rewound = Self {
            stream,
            head: [0; PREFACE.len()],
            range: 0..0,
            framing: None,
            instead: None,
            write_stall: patience.write_stall,
            stalled: None,
        };
        let protocol = timeout(patience.first_bytes, rewound.read_head()).await??;
        rewound.framing = (protocol == Protocol::Http1).then(Framing::new);
        Ok((rewound, protocol))
    }

    async fn read_head(&mut self) -> io::Result<Protocol> {
        loop {
            let read = self.head.get(..self.range.end).unwrap_or_default();
            if !PREFACE.starts_with(read) {
                return Ok(Protocol::Http1);
            }
            let room = self.head.get_mut(self.range.end..).unwrap_or_default();
            if room.is_empty() {
                return Ok(Protocol::Http2);
            }
            match self.stream.read(room).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.range.end += count,
            }
        }
    }
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(framing) = &mut self.framing
            && let Some(instead) = framing.instead(buffer.remaining())
        {
            buffer.put_slice(instead);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        if self.range.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        } else {
            let end = self.range.end.min(self.range.start + buffer.remaining());
            buffer.put_slice(self.head.get(self.range.start..end).unwrap_or_default());
            self.range.start = end;
        }
        if let Some(framing) = &mut self.framing {
            framing.watch(buffer.filled_mut().get_mut(before..).unwrap_or_default());
        }
        Poll::Ready(Ok(()))
    }
}

impl Rewound {
    /// Writes, and fails when the peer takes nothing for too long.
    fn write(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let written = write(Pin::new(&mut self.stream), context);
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.write_stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Writes what stands in place of an answer of `replaced` bytes.
    fn write_instead(
        &mut self,
        context: &mut Context<'_>,
        replaced: usize,
    ) -> Poll<io::Result<usize>> {
        while let Some((answer, written)) = self.instead.take() {
            let rest = answer.get(written..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            let wrote = self.write(context, |stream, context| stream.poll_write(context, rest));
            let count = match &wrote {
                Poll::Ready(Ok(count)) => *count,
                Poll::Ready(Err(_)) | Poll::Pending => 0,
            };
            self.instead = Some((answer, written + count));
            ready!(wrote)?;
        }
        Poll::Ready(Ok(replaced))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.instead.is_some() {
            return self.write_instead(context, bytes.len());
        }
        let bare = self.framing.as_ref().and_then(|_| bare::find(bytes));
        let bytes = match bare {
            Some((0, status)) => {
                self.instead = Some((bare::answer(status), 0));
                return self.write_instead(context, bytes.len());
            }
            // What stands before it first; it is offered again after that.
            Some((before, _)) => bytes.get(..before).unwrap_or_default(),
            None => bytes,
        };
        self.write(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = slices.iter().filter(|slice| !slice.is_empty());
        if let (Some(only), None) = (filled.next(), filled.next()) {
            return self.poll_write(context, only);
        }
        let this = self.get_mut();
        this.write(context, |stream, context| {
            stream.poll_write_vectored(context, slices)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
