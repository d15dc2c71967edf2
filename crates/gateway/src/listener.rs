//! The listener: accepts connections within a bound, speaks HTTP/1.1 and HTTP/2, in the clear or over TLS, and drains
//! on shutdown.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use telemetry::{Limit, Metrics};
use tls::ServingCertificate;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connections::{Connection, Connections, Fate, Member, Noted};
use crate::handler::{Client, Gateway};
use crate::hang_up::{Attended, ClientStream};
use crate::limits::Limits;

/// The protocols of a TLS listener, for [`ServingCertificate::open`].
pub const ALPN: [&str; 2] = ["h2", "http/1.1"];

/// What an HTTP/2 client may send ahead of what we take: on one stream, and on all of a connection.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 256 << 10;
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// What waits in memory for an HTTP/2 client that reads slowly, for each stream.
const HTTP2_SEND_BYTES_MAX: usize = 64 << 10;
/// What waits in memory for an HTTP/1.1 connection, in each direction.
const HTTP1_BUFFER_BYTES_MAX: usize = 128 << 10;
/// Pause after a failed accept (out of file descriptors, say): the cause needs time to go away.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// While stopping, the listener is closed when no connection has come for so long.
const LAST_ACCEPT: Duration = Duration::from_millis(5);
/// … and at the latest after this.
const LAST_ACCEPTS: Duration = Duration::from_millis(100);
/// While draining, how long an HTTP/1.1 connection without a request is kept for one that may be on its way; it is
/// answered with `connection: close`. HTTP/2 needs no such grace: GOAWAY says which requests count.
const LAST_REQUEST: Duration = Duration::from_secs(1);
/// How long what was cut off may take to end.
const CUT_MAX: Duration = Duration::from_secs(1);
/// How long a connection may take to close as the protocol has it.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Where connections of clients come from.
pub trait Listen: Send + 'static {
    /// One client's connection.
    type Stream: ClientStream;

    /// The next connection, and who it is from.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        // Fails only on a connection that is gone already.
        let _ = stream.set_nodelay(true);
        Ok((stream, peer))
    }
}

/// What a connection is served with.
struct Service {
    /// For connections in the clear, which tell by their first bytes what they speak.
    either: Builder<Tracked>,
    http1: Builder<Tracked>,
    http2: Builder<Tracked>,
    gateway: Arc<Gateway>,
    limits: Limits,
    certificate: Option<Arc<ServingCertificate>>,
    draining: CancellationToken,
}

/// Runs the streams of HTTP/2 connections where they are waited for.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}

/// Serves `listener` until `shutdown`, over TLS where there is a `certificate`; then lets the requests in flight end
/// for at most `drain`. True when all ended by themselves.
pub async fn serve<L: Listen>(
    mut listener: L,
    certificate: Option<Arc<ServingCertificate>>,
    gateway: Arc<Gateway>,
    shutdown: CancellationToken,
    drain: Duration,
) -> bool {
    let limits = gateway.limits();
    let connections = Connections::new(limits, Arc::clone(gateway.metrics()));
    let (tracker, abandon, ended) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
    let service = Arc::new(Service {
        http1: builder(&limits, &tracker).http1_only(),
        http2: builder(&limits, &tracker).http2_only(),
        either: builder(&limits, &tracker),
        gateway: Arc::clone(&gateway),
        limits,
        certificate,
        draining: shutdown.clone(),
    });
    let sweep = Arc::clone(&connections).sweep();
    let until = ended.clone();
    let sweeping = TaskTracker::new();
    sweeping.spawn(async move { until.run_until_cancelled(sweep).await });
    let mut begin = |stream, peer, member| {
        let (service, abandon) = (Arc::clone(&service), abandon.clone());
        tracker.spawn(async move {
            tokio::select! {
                biased;
                () = service.connection(stream, peer, &member) => {}
                () = abandon.cancelled() => {}
            }
        });
    };
    shutdown.run_until_cancelled(accept_all(&mut listener, &connections, &mut begin)).await;
    // Closing the listener would reset those that the kernel has accepted for us.
    let rest = async {
        while let Ok(Ok((stream, peer))) = timeout(LAST_ACCEPT, listener.accept()).await {
            begin(stream, peer, connections.admit(connections.room().await));
        }
    };
    let _ = timeout(LAST_ACCEPTS, rest).await;
    drop(listener);
    tracker.close();
    let drained = timeout(drain, tracker.wait()).await.is_ok();
    if !drained {
        gateway.cut_off();
    }
    abandon.cancel();
    // Streams of a connection that was cut off learn of it at once.
    let _ = timeout(CUT_MAX, tracker.wait()).await;
    ended.cancel();
    sweeping.close();
    sweeping.wait().await;
    drained
}

/// Hands every connection that comes to `begin`, within the bound.
async fn accept_all<L: Listen>(
    listener: &mut L,
    connections: &Arc<Connections>,
    mut begin: impl FnMut(L::Stream, SocketAddr, Member),
) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => begin(stream, peer, connections.admit(connections.room().await)),
            Err(error) if is_of_one_connection(&error) => {
                tracing::debug!(%error, "a connection broke before it was accepted");
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether the next connection may be fine all the same.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

fn builder(limits: &Limits, tracker: &TaskTracker) -> Builder<Tracked> {
    let mut builder = Builder::new(Tracked(tracker.clone()));
    // Ours are the limits that clients are told of, in JSON. Those of the codec are twice as wide.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(limits.headers_max.saturating_mul(2))
        .max_buf_size(HTTP1_BUFFER_BYTES_MAX.max(limits.header_bytes_max.saturating_mul(2)));
    let header_bytes = u32::try_from(limits.header_bytes_max.saturating_mul(2)).unwrap_or(u32::MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(header_bytes)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(HTTP2_SEND_BYTES_MAX)
        // Who has begun a head and does not end it cannot answer a ping either.
        .keep_alive_interval(limits.header_read)
        .keep_alive_timeout(limits.header_read);
    builder
}

impl Service {
    /// Serves one connection to its end.
    async fn connection(&self, stream: impl ClientStream, peer: SocketAddr, member: &Member) {
        let connection = member.connection();
        let stream = Attended::new(stream, Arc::clone(connection));
        let Some(certificate) = &self.certificate else {
            let stream = Noted::new(stream, Arc::clone(connection));
            return self.speak_http(&self.either, stream, Client::new(peer, false), connection).await;
        };
        let handshake = TlsAcceptor::from(certificate.config()).accept(stream);
        match timeout(self.limits.header_read, handshake).await {
            Ok(Ok(stream)) => {
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let builder = if is_http2 { &self.http2 } else { &self.http1 };
                let stream = Noted::new(stream, Arc::clone(connection));
                self.speak_http(builder, stream, Client::new(peer, true), connection).await;
            }
            Ok(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
            Err(_) => self.metrics().limits.reached(Limit::HeaderRead),
        }
    }

    async fn speak_http<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &self,
        builder: &Builder<Tracked>,
        stream: Noted<S>,
        client: Client,
        connection: &Arc<Connection>,
    ) {
        let service = service_fn(|request| {
            let client = Client { draining: self.draining.is_cancelled(), ..client };
            // Boxed: else every connection at rest would hold the room that a request needs.
            Box::pin(Arc::clone(&self.gateway).handle(request, client, connection.serve()))
        });
        let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let closing = async {
            tokio::select! {
                biased;
                fate = connection.fate(false) => fate,
                () = self.drained(connection) => Fate::Close,
            }
        };
        let fate = tokio::select! {
            biased;
            ended = serving.as_mut() => return self.tell(client, ended),
            fate = closing => fate,
        };
        if fate == Fate::Cut {
            return;
        }
        serving.as_mut().graceful_shutdown();
        let overdue = async {
            loop {
                sleep(CLOSE_MAX).await;
                if connection.is_without_request() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            ended = serving.as_mut() => self.tell(client, ended),
            _ = connection.fate(true) => {}
            () = overdue => {}
        }
    }

    /// Resolves when the process drains and a last request has had its chance.
    async fn drained(&self, connection: &Connection) {
        self.draining.cancelled().await;
        if !connection.is_http2() {
            sleep(LAST_REQUEST).await;
        }
    }

    fn tell(&self, client: Client, ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
        let Err(error) = ended else { return };
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse_too_large) {
            self.metrics().limits.reached(Limit::HeaderBytes);
        }
        tracing::debug!(peer = %client.peer, %error, "a connection ended badly");
    }

    fn metrics(&self) -> &Metrics {
        self.gateway.metrics()
    }
}
