//! Worker threads, each with connections of its own; a listener that deals them out.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use h2::server::{Builder, SendResponse};
use h2::{Ping, PingPong, RecvStream};
use http::Request;
use socket2::{SockRef, TcpKeepalive};
use tls::ServingCertificate;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::call::Call;
use crate::rope::Rope;

/// Connections dealt to a worker that it has not begun with.
const DEALT_MAX: usize = 64;
/// Pause after a failed accept (out of file descriptors, say): the cause needs time to go away.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// While stopping, the listener is closed when no connection has come for so long.
const LAST_ACCEPT: Duration = Duration::from_millis(5);
/// … and at the latest after this.
const LAST_ACCEPTS: Duration = Duration::from_millis(100);
/// A TLS or HTTP/2 handshake that takes longer is given up.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How often a silent peer is asked whether it is there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(10);
const PONG_MAX: Duration = Duration::from_secs(10);
/// For a peer whose machine vanished.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long what was cut off may take to end.
const CUT_MAX: Duration = Duration::from_secs(1);
/// Clients that give a call up before we saw it are ordinary (their own clients hung up); a flood of them is not.
const RESETS_PENDING_MAX: usize = 1024;

/// Larger frames are fewer: Envoy cuts a body as its buffers come.
const FRAME_BYTES_MAX: u32 = 128 << 10;
/// gRPC calls have small heads.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// What waits in memory on one call for a peer that reads slowly.
const SEND_BYTES_MAX: usize = 1 << 20;

/// What serves calls.
pub trait Service: Send + Sync + 'static {
    /// Serves one call to its end. Dropped when the peer's connection ends, or when the drain time is over.
    fn serve(&self, call: Call) -> impl Future<Output = ()> + Send;
}

/// Bounds of a server.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Threads that serve connections; at least 1.
    pub threads: usize,
    /// Bytes of one message.
    pub message_bytes_max: usize,
    /// Calls open at once on one connection.
    pub streams_max: u32,
    /// Connections open at once on a thread; more are closed at once.
    pub connections_max: usize,
    /// What a peer may send ahead of what is taken, on one call.
    pub stream_window_bytes: u32,
    /// The same, on all of a connection.
    pub connection_window_bytes: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            threads: 1,
            message_bytes_max: 4 << 20,
            streams_max: 8192,
            connections_max: 4096,
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 16 << 20,
        }
    }
}

/// A gRPC server.
pub struct Server<S> {
    service: Arc<S>,
    settings: Settings,
    certificate: Option<Arc<ServingCertificate>>,
}

/// What a worker thread works with.
struct Worker<S> {
    server: Arc<Server<S>>,
    tracker: TaskTracker,
    draining: CancellationToken,
    abandon: CancellationToken,
    open: Arc<AtomicUsize>,
}

/// A worker thread, as the listener sees it.
struct Dealt {
    connections: mpsc::Sender<std::net::TcpStream>,
    open: Arc<AtomicUsize>,
    thread: JoinHandle<bool>,
}

impl<S: Service> Server<S> {
    /// Serves `service`, over TLS where there is a `certificate` (its ALPN must name `h2`).
    #[must_use]
    pub fn new(
        service: Arc<S>,
        settings: Settings,
        certificate: Option<Arc<ServingCertificate>>,
    ) -> Arc<Server<S>> {
        Arc::new(Server { service, settings, certificate })
    }

    /// Serves `listener` until `shutdown`; then lets calls end for at most `drain`. True when all ended by themselves.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub async fn serve(
        self: Arc<Server<S>>,
        listener: TcpListener,
        shutdown: CancellationToken,
        drain: Duration,
    ) -> io::Result<bool> {
        let draining = CancellationToken::new();
        let workers = (0..self.settings.threads.max(1))
            .map(|number| self.start_worker(number, draining.clone(), drain))
            .collect::<io::Result<Vec<_>>>()?;
        shutdown.run_until_cancelled(self.accept_all(&listener, &workers)).await;
        // Closing the listener would reset those that the kernel has accepted for us.
        let rest = async {
            while let Ok(Ok((stream, _))) = timeout(LAST_ACCEPT, listener.accept()).await {
                self.deal(stream, &workers).await;
            }
        };
        let _ = timeout(LAST_ACCEPTS, rest).await;
        drop(listener);
        draining.cancel();
        let mut drained = true;
        for worker in workers {
            drop(worker.connections);
            // A worker ends within the drain time, and a little.
            let ended = tokio::task::spawn_blocking(|| worker.thread.join()).await;
            drained &= matches!(ended, Ok(Ok(true)));
        }
        Ok(drained)
    }

    async fn accept_all(&self, listener: &TcpListener, workers: &[Dealt]) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.deal(stream, workers).await,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Gives a connection to the worker that has the fewest.
    async fn deal(&self, stream: TcpStream, workers: &[Dealt]) {
        let Some(worker) = workers.iter().min_by_key(|worker| worker.open.load(Relaxed)) else { return };
        if worker.open.load(Relaxed) >= self.settings.connections_max {
            let connections_max = self.settings.connections_max;
            tracing::warn!(connections_max, "a connection is closed: there are too many");
            return;
        }
        worker.open.fetch_add(1, Relaxed);
        let given = match stream.into_std() {
            Ok(stream) => worker.connections.send(stream).await.is_ok(),
            Err(_) => false,
        };
        if !given {
            worker.open.fetch_sub(1, Relaxed);
        }
    }

    fn start_worker(
        self: &Arc<Server<S>>,
        number: usize,
        draining: CancellationToken,
        drain: Duration,
    ) -> io::Result<Dealt> {
        let (connections, dealt) = mpsc::channel(DEALT_MAX);
        let open = Arc::new(AtomicUsize::new(0));
        let worker = Arc::new(Worker {
            server: Arc::clone(self),
            tracker: TaskTracker::new(),
            draining,
            abandon: CancellationToken::new(),
            open: Arc::clone(&open),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name(format!("grpc-{number}"))
            .spawn(move || runtime.block_on(worker.run(dealt, drain)))?;
        Ok(Dealt { connections, open, thread })
    }
}

impl<S: Service> Worker<S> {
    /// Serves what is dealt, until nothing more is; true when all calls ended by themselves.
    async fn run(self: Arc<Self>, mut dealt: mpsc::Receiver<std::net::TcpStream>, drain: Duration) -> bool {
        while let Some(stream) = dealt.recv().await {
            let worker = Arc::clone(&self);
            self.tracker.spawn(async move {
                let abandon = worker.abandon.clone();
                if let Some(Err(error)) = abandon.run_until_cancelled(worker.connection(stream)).await {
                    tracing::debug!(%error, "a connection ended badly");
                }
                worker.open.fetch_sub(1, Relaxed);
            });
        }
        self.tracker.close();
        let drained = timeout(drain, self.tracker.wait()).await.is_ok();
        self.abandon.cancel();
        let _ = timeout(CUT_MAX, self.tracker.wait()).await;
        drained
    }

    async fn connection(self: &Arc<Self>, stream: std::net::TcpStream) -> io::Result<()> {
        let stream = TcpStream::from_std(stream)?;
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let Some(certificate) = &self.server.certificate else { return self.speak_http2(stream).await };
        let handshake = TlsAcceptor::from(certificate.config()).accept(stream);
        let stream = timeout(HANDSHAKE_MAX, handshake).await??;
        self.speak_http2(stream).await
    }

    async fn speak_http2<T: AsyncRead + AsyncWrite + Unpin>(self: &Arc<Self>, stream: T) -> io::Result<()> {
        let settings = self.server.settings;
        let mut builder = Builder::new();
        builder
            .initial_window_size(settings.stream_window_bytes)
            .initial_connection_window_size(settings.connection_window_bytes)
            .max_concurrent_streams(settings.streams_max)
            .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .max_send_buffer_size(SEND_BYTES_MAX);
        let handshake = timeout(HANDSHAKE_MAX, builder.handshake::<T, Rope>(stream)).await?;
        let mut connection = handshake.map_err(io::Error::other)?;
        let Some(pings) = connection.ping_pong() else {
            return Err(io::Error::other("the connection's pings are taken"));
        };
        let mut silent = std::pin::pin!(is_silent(pings));
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                accepted = connection.accept() => match accepted {
                    None => return Ok(()),
                    Some(call) => self.begin(call.map_err(io::Error::other)?),
                },
                () = self.draining.cancelled(), if !told => {
                    told = true;
                    connection.graceful_shutdown();
                }
                () = &mut silent => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    fn begin(self: &Arc<Self>, (request, respond): (Request<RecvStream>, SendResponse<Rope>)) {
        let call = Call::new(request, respond, self.server.settings.message_bytes_max);
        let (service, abandon) = (Arc::clone(&self.server.service), self.abandon.clone());
        self.tracker.spawn(async move { abandon.run_until_cancelled(service.serve(call)).await });
    }
}

/// Resolves when the peer has not answered a ping in time.
async fn is_silent(mut pings: PingPong) {
    loop {
        sleep(PING_EVERY).await;
        if !matches!(timeout(PONG_MAX, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}
