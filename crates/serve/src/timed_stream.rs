//! A connection whose client must keep reading.
//!
//! The client has `limits.write_seconds` for every 64 KiB of a reply, and for the last part. A slower client
//! loses its connection.

use crate::connections::ClientConnection;
use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// The bytes that a client has to take within the time limit.
const WRITE_WINDOW_BYTES: usize = 64 << 10;

/// A stream with a time limit on writes.
pub(super) struct TimedStream<S> {
    inner: S,
    connection: Arc<ClientConnection>,
    patience: Duration,
    /// Runs while the client has not taken the next [`WRITE_WINDOW_BYTES`].
    timer: Pin<Box<Sleep>>,
    running: bool,
    /// The bytes taken since the timer was started.
    taken: usize,
}

impl<S> TimedStream<S> {
    pub(super) fn new(inner: S, connection: Arc<ClientConnection>, patience: Duration) -> Self {
        let timer = Box::pin(tokio::time::sleep(patience));
        Self { inner, connection, patience, timer, running: false, taken: 0 }
    }

    fn stop_timer(&mut self) {
        if self.running {
            (self.running, self.taken) = (false, 0);
            self.connection.set_waiting_reader(false);
        }
    }

    fn limit_write_time<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
        taken: impl FnOnce(&T) -> (usize, bool),
    ) -> Poll<io::Result<T>> {
        match polled {
            Poll::Ready(Ok(done)) => {
                let (bytes, all) = taken(&done);
                self.taken += bytes;
                if all || self.taken >= WRITE_WINDOW_BYTES {
                    self.stop_timer();
                }
                Poll::Ready(Ok(done))
            }
            Poll::Pending => {
                if !self.running {
                    (self.running, self.taken) = (true, 0);
                    self.connection.set_waiting_reader(true);
                    self.timer.as_mut().reset(Instant::now() + self.patience);
                }
                match self.timer.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                    Poll::Pending => Poll::Pending,
                }
            }
            failed @ Poll::Ready(Err(_)) => failed,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.limit_write_time(cx, polled, |&taken| (taken, taken == bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
        let all: usize = parts.iter().map(|part| part.len()).sum();
        self.limit_write_time(cx, polled, |&taken| (taken, taken == all))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.limit_write_time(cx, polled, |()| (0, true))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.limit_write_time(cx, polled, |()| (0, true))
    }
}
