//! Connections to model servers: kept alive, and never kept longer than the servers keep them.

use std::time::Duration;

use director::{AppProtocol, Endpoint, Failure};
use http::{Request, Response, Uri, Version, header, uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};

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

/// How long an attempt may take until it counts as failed.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until a connection stands.
    pub connect: Duration,
    /// Until the first byte of a streamed answer's body, from when the endpoint has the whole request: queueing and
    /// prefill in the engine are part of it.
    pub first_byte: Duration,
    /// Until the first byte of an answer that is not streamed, which comes when all of it is generated.
    pub unstreamed: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(2),
            first_byte: Duration::from_secs(300),
            unstreamed: Duration::from_secs(3600),
        }
    }
}

/// The clients for both protocols that endpoints may speak.
pub(crate) struct Upstream {
    http1: Client<HttpConnector, Attempt>,
    http2: Client<HttpConnector, Attempt>,
}

impl Upstream {
    pub(crate) fn new(timeouts: Timeouts) -> Upstream {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(timeouts.connect));
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE));
        connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        #[cfg(target_os = "linux")]
        connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
        let mut builder = Client::builder(TokioExecutor::new());
        builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_TIMEOUT);
        Upstream { http1: builder.build(connector.clone()), http2: builder.http2_only(true).build(connector) }
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
                self.http2.request(request).await
            }
        };
        sent.map_err(|error| failure_of(&error))
    }
}

fn absolute(relative: &Uri, endpoint: &Endpoint) -> Result<Uri, Failure> {
    let path = relative.path_and_query().cloned().unwrap_or(uri::PathAndQuery::from_static("/"));
    Uri::builder()
        .scheme(uri::Scheme::HTTP)
        .authority(endpoint.authority())
        .path_and_query(path)
        .build()
        .map_err(|_| Failure::Connect)
}

fn failure_of(error: &Error) -> Failure {
    if error.is_connect() { Failure::Connect } else { Failure::Reset }
}
