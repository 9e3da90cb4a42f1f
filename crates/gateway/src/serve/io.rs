//! A connection whose first bytes were read to see which protocol it speaks, and are read again.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

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
}

impl Rewound {
    /// Reads until the protocol is clear.
    ///
    /// # Errors
    /// If the peer closes or stays silent for `time_max`.
    pub(crate) async fn detect(
        stream: TcpStream,
        time_max: Duration,
    ) -> io::Result<(Self, Protocol)> {
        let mut rewound = Self {
            stream,
            head: [0; PREFACE.len()],
            range: 0..0,
            framing: None,
        };
        let protocol = timeout(time_max, rewound.read_head()).await??;
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

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
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
