//! One kept connection to one endpoint, one `GET` at a time, driven by the task that asks: no task per connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, USER_AGENT};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::stats::FailureReason;
use super::tls::TlsConfigs;
use crate::endpoint::authority;

/// The most that hyper holds of an answer's head or of a body not yet taken, in bytes.
const READ_BUFFER_BYTES_MAX: usize = 16 * 1024;

/// Why an answer did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The name does not resolve, or nobody accepts the connection.
    #[error("cannot connect to {authority}: {source}")]
    Connect {
        /// To whom.
        authority: String,
        /// Why.
        source: io::Error,
    },
    /// The TLS handshake failed.
    #[error("cannot speak TLS with {authority}: {source}")]
    Tls {
        /// With whom.
        authority: String,
        /// Why.
        source: io::Error,
    },
    /// It took too long, connecting included.
    #[error("no whole answer within {after_ms} ms")]
    Timeout {
        /// The bound, in milliseconds.
        after_ms: u64,
    },
    /// The connection broke, or what came is no HTTP.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// The path cannot be asked for.
    #[error("{0}: the path is not that of a URL")]
    Path(#[from] http::Error),
    /// The status is not 200.
    #[error("status is {0}: expected 200")]
    Status(StatusCode),
    /// The body is larger than its bound.
    #[error("body is larger than {body_bytes_max} bytes")]
    TooLarge {
        /// The bound, in bytes.
        body_bytes_max: usize,
    },
}

/// Where a connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) host: Arc<str>,
    pub(crate) port: u16,
    pub(crate) security: Security,
}

/// What protects a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Security {
    Clear,
    Tls { verify: bool },
}

/// A connection that is made when needed and kept as long as the other side does.
#[derive(Debug)]
pub(crate) struct Connection {
    origin: Origin,
    tls: Arc<TlsConfigs>,
    live: Option<Live>,
}

struct Live {
    sender: SendRequest<Empty<Bytes>>,
    driver: Driver,
}

/// What moves bytes between the socket and hyper; it does so while [`drive`](Self::drive) runs, and rests in between.
struct Driver {
    connection: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
}

impl Connection {
    pub(crate) fn new(origin: Origin, tls: Arc<TlsConfigs>) -> Self {
        Self { origin, tls, live: None }
    }

    /// Where it goes.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Asks for `path` and gives the body, as it comes, to `sink`. Dropping the future drops the connection, and so does
    /// any error.
    pub(crate) async fn get<E: From<FetchError>>(
        &mut self,
        path: &str,
        body_bytes_max: usize,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut live, answer) = self.ask(path).await?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status(answer.status()).into());
        }
        let too_large = FetchError::TooLarge { body_bytes_max };
        let mut body = answer.into_body();
        if body.size_hint().lower() > body_bytes_max as u64 {
            return Err(too_large.into());
        }
        let mut left = body_bytes_max;
        while let Some(frame) = live.driver.drive(body.frame()).await {
            let Ok(data) = frame.map_err(FetchError::from)?.into_data() else { continue };
            let Some(rest) = left.checked_sub(data.len()) else { return Err(too_large.into()) };
            left = rest;
            sink(&data)?;
        }
        self.live = Some(live);
        Ok(())
    }

    /// Sends the request and waits for the answer's head: over the kept connection, or a new one if the other side has
    /// closed that meanwhile.
    async fn ask(&mut self, path: &str) -> Result<(Live, Response<Incoming>), FetchError> {
        if let Some(mut live) = self.live.take()
            && let Ok(answer) = live.send(self.origin.request(path)?).await
        {
            return Ok((live, answer));
        }
        let mut live = self.origin.connect(&self.tls).await?;
        let answer = live.send(self.origin.request(path)?).await?;
        Ok((live, answer))
    }
}

impl Origin {
    fn request(&self, path: &str) -> Result<Request<Empty<Bytes>>, FetchError> {
        let uri = Uri::try_from(path).map_err(http::Error::from)?;
        let request = Request::get(uri)
            .header(HOST, authority(&self.host, self.port))
            .header(USER_AGENT, HeaderValue::from_static(concat!("pointsman/", env!("CARGO_PKG_VERSION"))))
            .header(ACCEPT, HeaderValue::from_static("*/*"));
        Ok(request.body(Empty::new())?)
    }

    async fn connect(&self, tls: &TlsConfigs) -> Result<Live, FetchError> {
        let Self { host, port, security } = self;
        let name = || authority(host, *port);
        let stream = TcpStream::connect((&**host, *port))
            .await
            .map_err(|source| FetchError::Connect { authority: name(), source })?;
        match *security {
            Security::Clear => Live::begin(TokioIo::new(stream)).await,
            Security::Tls { verify } => {
                let stream = tls.handshake(stream, host, verify).await;
                let stream = stream.map_err(|source| FetchError::Tls { authority: name(), source })?;
                Live::begin(TokioIo::new(stream)).await
            }
        }
    }
}

impl Live {
    async fn begin(io: impl Read + Write + Send + Unpin + 'static) -> Result<Self, FetchError> {
        let mut builder = http1::Builder::new();
        let (sender, connection) = builder.max_buf_size(READ_BUFFER_BYTES_MAX).handshake(io).await?;
        // How the connection ended is told by the exchange that it ended.
        let connection = Box::pin(async { connection.await.unwrap_or_default() });
        Ok(Self { sender, driver: Driver { connection, ended: false } })
    }

    async fn send(&mut self, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, hyper::Error> {
        let sender = &mut self.sender;
        let exchange = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        self.driver.drive(exchange).await
    }
}

impl Driver {
    /// Runs `exchange` to its end and the connection under it as far as that takes.
    async fn drive<T>(&mut self, exchange: impl Future<Output = T>) -> T {
        let mut exchange = std::pin::pin!(exchange);
        loop {
            tokio::select! {
                biased;
                outcome = &mut exchange => return outcome,
                // The exchange learns of the end from hyper and ends too.
                () = &mut self.connection, if !self.ended => self.ended = true,
            }
        }
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("ended", &self.driver.ended).finish_non_exhaustive()
    }
}

impl FetchError {
    pub(super) fn reason(&self) -> FailureReason {
        match self {
            Self::Connect { .. } => FailureReason::Connect,
            Self::Tls { .. } => FailureReason::Tls,
            Self::Timeout { .. } => FailureReason::Timeout,
            Self::Http(_) | Self::Path(_) => FailureReason::Http,
            Self::Status(_) => FailureReason::Status,
            Self::TooLarge { .. } => FailureReason::TooLarge,
        }
    }
}
