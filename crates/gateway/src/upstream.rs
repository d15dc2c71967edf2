//! Connections to model servers: kept alive, and never kept longer than the servers keep them.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use director::{AppProtocol, Endpoint, Failure};
use http::{Request, Response, Uri, Version, header, uri};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tower_service::Service;

use crate::upload::Attempt;

/// Idle connections are closed before uvicorn, which vLLM and SGLang serve with, closes them at 5 s: a request on a
/// connection that the other side is closing would be lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// A node that vanished is noticed after about a minute, also while an answer is awaited or streams.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long an endpoint may leave what was sent to it unread.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);
/// What waits in memory for one connection.
const BUFFER_BYTES_MAX: usize = 128 << 10;

/// A connection to a model server, over whatever network.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

/// A connection that is being made.
pub type Dialling = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// Makes a connection to the authority of a URI.
pub type Dial = Arc<dyn Fn(Uri) -> Dialling + Send + Sync>;

/// The clients for both protocols that endpoints may speak, each in the clear and over TLS.
pub struct Upstream {
    http1: Client<Within, Attempt>,
    http2: Client<Within, Attempt>,
}

/// Makes connections, TLS included, within a time.
#[derive(Clone)]
struct Within {
    connector: HttpsConnector<Dialler>,
    most: Duration,
}

/// [`Dial`] as hyper wants it.
#[derive(Clone)]
struct Dialler(Dial);

impl Upstream {
    /// Over connections that `dial` makes; where an endpoint speaks TLS, with `trust`. A connection must stand within
    /// `connect_timeout`, its TLS handshake included.
    #[must_use]
    pub fn new(dial: &Dial, trust: &ClientConfig, connect_timeout: Duration) -> Upstream {
        let connector = || Within {
            connector: HttpsConnectorBuilder::new()
                .with_tls_config(trust.clone())
                .https_or_http()
                .enable_all_versions()
                .wrap_connector(Dialler(Arc::clone(dial))),
            most: connect_timeout,
        };
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .http1_max_buf_size(BUFFER_BYTES_MAX)
            .http2_keep_alive_interval(KEEPALIVE)
            .http2_keep_alive_timeout(KEEPALIVE * KEEPALIVE_RETRIES);
        Upstream { http1: builder.build(connector()), http2: builder.http2_only(true).build(connector()) }
    }

    /// Sends `request` (its URI has path and query alone) to `endpoint`; resolves with the answer's head.
    ///
    /// # Errors
    /// How the attempt failed.
    pub(crate) async fn send(
        &self,
        mut request: Request<Attempt>,
        endpoint: &Endpoint,
        protocol: AppProtocol,
    ) -> Result<Response<Incoming>, Failure> {
        *request.uri_mut() = absolute(request.uri(), endpoint)?;
        let sent = match protocol {
            AppProtocol::Http => {
                *request.version_mut() = Version::HTTP_11;
                self.http1.request(request).await
            }
            AppProtocol::H2c => {
                *request.version_mut() = Version::HTTP_2;
                request.headers_mut().remove(header::HOST);
                request.headers_mut().remove(header::CONNECTION);
                self.http2.request(request).await
            }
        };
        sent.map_err(|error| failure_of(&error))
    }
}

/// Dials over TCP. Where a name has several addresses each has its share of `connect_timeout`.
#[must_use]
pub fn dial_tcp(connect_timeout: Duration) -> Dial {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(connect_timeout));
    connector.set_nodelay(true);
    connector.set_keepalive(Some(KEEPALIVE));
    connector.set_keepalive_interval(Some(KEEPALIVE));
    connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    #[cfg(target_os = "linux")]
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
    Arc::new(move |uri| {
        let connecting = connector.clone().call(uri);
        Box::pin(async move {
            let stream = connecting.await.map_err(io::Error::other)?;
            Ok(Box::new(stream.into_inner()) as Box<dyn Stream>)
        })
    })
}

impl Service<Uri> for Within {
    type Response = <HttpsConnector<Dialler> as Service<Uri>>::Response;
    type Error = <HttpsConnector<Dialler> as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = timeout(self.most, self.connector.call(uri));
        Box::pin(async move { connecting.await? })
    }
}

impl Service<Uri> for Dialler {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialling = (self.0)(uri);
        Box::pin(async move { Ok(TokioIo::new(dialling.await?)) })
    }
}

impl Connection for Box<dyn Stream> {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

fn absolute(relative: &Uri, endpoint: &Endpoint) -> Result<Uri, Failure> {
    let path = relative.path_and_query().cloned().unwrap_or(uri::PathAndQuery::from_static("/"));
    Uri::builder()
        .scheme(if endpoint.spec.tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP })
        .authority(endpoint.authority())
        .path_and_query(path)
        .build()
        .map_err(|_| Failure::Connect)
}

fn failure_of(error: &Error) -> Failure {
    if error.is_connect() { Failure::Connect } else { Failure::Reset }
}
