//! A client that hangs up while nobody reads from it.
//!
//! While a request is served, HTTP/1.1 reads nothing further once bytes came that belong to a next request, or once the
//! body has filled its buffer. The end of the stream lies behind those bytes, unread, and the request would keep its
//! place in the queue, or its model server, for nobody. The kernel knows of the end all the same.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt as _;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::connections::Connection;

/// A client's stream as the listener gets it.
pub trait ClientStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// The socket beneath; none where there is no kernel beneath.
    fn socket(&self) -> Option<&TcpStream>;
}

impl ClientStream for TcpStream {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

/// A stream that fails once the client of a request in service has hung up.
pub(crate) struct Attended<S> {
    stream: S,
    connection: Arc<Connection>,
    /// Watches for the end beside the reader, who must keep what it knows of unread bytes. Only while there are any.
    watch: Option<TcpStream>,
}

impl<S: ClientStream> Attended<S> {
    pub(crate) fn new(stream: S, connection: Arc<Connection>) -> Attended<S> {
        Attended { stream, connection, watch: None }
    }

    /// Ready once the client has ended its side or the connection broke, however much is unread.
    fn poll_hung_up(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(socket) = self.stream.socket() else { return Poll::Pending };
        if self.watch.is_none() {
            // Nothing to read, so no end either: the next thing that comes wakes.
            let _something = ready!(socket.poll_read_ready(context));
            // Without a file descriptor to spare the end is met by who reads, as ever.
            self.watch =
                SockRef::from(socket).try_clone().and_then(|twin| TcpStream::from_std(twin.into())).ok();
        }
        let Some(watch) = &self.watch else { return Poll::Pending };
        loop {
            if ready!(watch.poll_read_ready(context)).is_err() {
                return Poll::Ready(());
            }
            match watch.ready(Interest::READABLE).now_or_never() {
                Some(Ok(state)) if !state.is_read_closed() => {}
                Some(_) => return Poll::Ready(()),
                None => continue,
            }
            // Only bytes: they are the reader's. What comes next wakes.
            let _seen = watch.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
    }
}

impl<S: ClientStream> AsyncRead for Attended<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: ClientStream> AsyncWrite for Attended<S> {
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

    /// HTTP/1.1 flushes whenever it is woken, after it has read and written: the place to look up.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.connection.is_http2() || self.connection.is_without_request() {
            self.watch = None;
        } else if self.poll_hung_up(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
