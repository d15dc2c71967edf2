//! The listener: accepts connections within a bound, speaks HTTP/1.1 and HTTP/2, drains on shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::handler::Gateway;

/// Connections open at once; more wait in the kernel's backlog.
pub const CONNECTIONS_MAX: usize = 16_384;
/// A client that takes longer to send a request's head is let go: on a new connection, in the middle of a head, and
/// on an HTTP/1.1 connection that is kept alive.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// An HTTP/2 client that does not answer a ping is let go.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);
/// Streams open at once on one HTTP/2 connection.
const HTTP2_STREAMS_MAX: u32 = 256;
/// Pause after a failed accept (out of file descriptors, say): the cause needs time to go away.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `listener` until `shutdown`, then lets the requests in flight end for at most `drain`. True when all
/// ended by themselves.
pub async fn serve(
    listener: TcpListener,
    gateway: Arc<Gateway>,
    shutdown: CancellationToken,
    drain: Duration,
) -> bool {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .keep_alive_interval(HTTP2_PING_INTERVAL);
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    let tracker = TaskTracker::new();
    let abandon = CancellationToken::new();
    while let Some((stream, peer, permit)) = accept(&listener, &connections, &shutdown).await {
        let gateway = Arc::clone(&gateway);
        let spoke = Arc::new(AtomicBool::new(false));
        let silent = is_silent(Arc::clone(&spoke));
        let service = service_fn(move |request| {
            spoke.store(true, Relaxed);
            Arc::clone(&gateway).handle(request, peer)
        });
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        let abandon = abandon.clone();
        tracker.spawn(async move {
            let _permit = permit;
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "a connection ended badly");
                },
                () = silent => tracing::debug!(%peer, "a connection brought no request in time"),
                () = abandon.cancelled() => {}
            }
        });
    }
    drop(listener);
    tracker.close();
    let drained = timeout(drain, graceful.shutdown()).await.is_ok();
    abandon.cancel();
    tracker.wait().await;
    drained
}

/// Resolves when a new connection has brought no request in time.
async fn is_silent(spoke: Arc<AtomicBool>) {
    sleep(HEADER_READ_TIMEOUT).await;
    if spoke.load(Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// The next connection; `None` once `shutdown` is asked for.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    loop {
        let next = async {
            let permit = Arc::clone(connections).acquire_owned().await.ok()?;
            Some((listener.accept().await, permit))
        };
        let (accepted, permit) = tokio::select! {
            () = shutdown.cancelled() => return None,
            next = next => next?,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Fails only on a connection that is gone already.
                let _ = stream.set_nodelay(true);
                return Some((stream, peer, permit));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
