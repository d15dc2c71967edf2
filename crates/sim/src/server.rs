//! Engines behind HTTP, in real time: what a client or a proxy sees of a model server.
//!
//! HTTP/1.1 and HTTP/2 in clear text on one port. Paths:
//!
//! - `POST /v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/messages`: text, whole or streamed.
//! - `POST /v1/embeddings`, `/tokenize`; `GET /v1/models`, `/health`, `/ping`, `/version`.
//! - `POST /v1/load_lora_adapter`, `/v1/unload_lora_adapter`.
//! - `GET /metrics` (and `/prometheus/metrics`): the page of the engine that it pretends to be.
//! - `GET /sim/requests`: the last requests as they arrived ([`Received`]); `POST /sim/faults`: see [`Faults`].
//!
//! Every answer carries `x-sim-server: NAME`. Invariants: a client that goes away takes its request out of the engine
//! at once; cancelling the token that a server was started with ends it as killing its process would, and leaves no
//! task behind.

mod config;
mod dialect;
mod driver;
mod error;
mod faults;
mod generate;
mod journal;
mod models;
mod page;
mod prompt;
mod text;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::{body::Incoming, service::Service};
use hyper_util::{rt::TokioIo, server::conn::auto, service::TowerToHyperService};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use twox_hash::XxHash3_64;

pub use self::{
    config::{EngineKind, ServerConfig, TrtLlmPage, UnknownName},
    faults::{FaultError, Faults, MetricsFault},
    journal::{REQUESTS_MAX, Received},
};
use self::{
    driver::Driver,
    error::{ApiError, json_response},
    generate::{Api, generate},
    journal::Journal,
};
use crate::engine::{self, Engine};

/// Longest request body; one that is longer is answered 413.
pub const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Streams that one HTTP/2 connection may have open.
const STREAMS_MAX: u32 = 1024;
/// Pause after a connection could not be accepted (no file descriptor left), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// A server that runs until [`SimServer::stop`] or its token ends it. Dropping this does not.
#[derive(Debug, Clone)]
pub struct SimServer {
    shared: Arc<Shared>,
    addr: SocketAddr,
    cancel: CancellationToken,
}

/// What the handlers of one server share.
#[derive(Debug)]
pub(crate) struct Shared {
    config: ServerConfig,
    /// The engine's configuration as it is in force.
    engine: engine::Config,
    driver: Arc<Driver>,
    faults: Mutex<Faults>,
    journal: Journal,
    adapters: Mutex<Vec<Arc<str>>>,
    /// Seconds since 1970 when the engine's time began.
    began_unix: f64,
    requests: AtomicU64,
}

/// Starts one server on `listen` (port 0 takes a free one). Its tasks run on `tasks` until `cancel`.
///
/// # Errors
/// Whatever binding the address gives: in use, not ours, not allowed.
pub async fn start(
    config: ServerConfig,
    listen: SocketAddr,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> io::Result<SimServer> {
    let listener = TcpListener::bind(listen).await?;
    let addr = listener.local_addr()?;
    let seed = config.seed;
    Ok(serve(config, seed, listener, addr, tasks, cancel))
}

/// Starts `count` servers on `base` and the ports after it (port 0: on free ones), named `NAME-0` and so on, each
/// with jitter of its own.
///
/// # Errors
/// As [`start`], or when the ports run out above 65535; then none is left running.
pub async fn start_many(
    config: &ServerConfig,
    count: u16,
    base: SocketAddr,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> io::Result<Vec<SimServer>> {
    // All ports are bound before the first server runs.
    let mut listeners = Vec::with_capacity(count.into());
    for index in 0..count {
        let port = match base.port() {
            0 => 0,
            port => port.checked_add(index).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, format!("no port {index} after {port}"))
            })?,
        };
        let listener = TcpListener::bind(SocketAddr::new(base.ip(), port)).await?;
        let addr = listener.local_addr()?;
        listeners.push((listener, addr));
    }
    let servers = listeners.into_iter().zip(0_u64..).map(|((listener, addr), index)| {
        let config = ServerConfig { name: format!("{}-{index}", config.name), ..config.clone() };
        let seed = config.seed.wrapping_add(index);
        serve(config, seed, listener, addr, tasks, cancel)
    });
    Ok(servers.collect())
}

impl SimServer {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it calls itself in `x-sim-server`.
    pub fn name(&self) -> &str {
        &self.shared.config.name
    }

    /// Requests in the batch and in the queue, as the metrics page would say.
    pub fn load(&self) -> (usize, usize) {
        let snapshot = self.shared.driver.snapshot();
        (snapshot.running, snapshot.waiting)
    }

    /// The last requests as they arrived, oldest first.
    pub fn requests(&self) -> Vec<Received> {
        self.shared.journal.entries()
    }

    /// Replaces its faults.
    ///
    /// # Errors
    /// Faults that make no sense; nothing changes then.
    pub fn set_faults(&self, faults: Faults) -> Result<(), FaultError> {
        *self.shared.faults.lock() = faults.checked()?;
        Ok(())
    }

    /// Ends it at once, as if its process had been killed: the port closes, connections break.
    pub fn stop(&self) {
        self.cancel.cancel();
    }
}

fn serve(
    config: ServerConfig,
    engine_seed: u64,
    listener: TcpListener,
    addr: SocketAddr,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> SimServer {
    let cancel = cancel.child_token();
    let engine = Engine::new(config.engine.clone(), engine_seed);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let shared = Arc::new(Shared {
        engine: engine.config().clone(),
        driver: Driver::new(engine),
        faults: Mutex::default(),
        journal: Journal::default(),
        adapters: Mutex::new(config.adapters.iter().map(|name| Arc::from(name.as_str())).collect()),
        began_unix: now.as_secs_f64(),
        requests: AtomicU64::new(0),
        config,
    });
    tasks.spawn(shared.driver.clone().run(cancel.clone()));
    tasks.spawn(accept(shared.clone(), listener, tasks.clone(), cancel.clone()));
    SimServer { shared, addr, cancel }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, tasks: TaskTracker, cancel: CancellationToken) {
    let router = router(shared.clone());
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(shared.clone(), router.clone(), stream, tasks.clone());
                tasks.spawn(cancel.clone().run_until_cancelled_owned(connection));
            }
            Err(error) => {
                tracing::warn!(%error, server = shared.config.name, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(shared: Arc<Shared>, router: Router, stream: TcpStream, tasks: TaskTracker) {
    let mut builder = auto::Builder::new(Tracked(tasks));
    builder.http2().max_concurrent_streams(STREAMS_MAX);
    let router = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let refused = shared.faults.lock().refuse && !is_control(request.uri().path());
        let answer = (!refused).then(|| router.call(request));
        async move {
            match answer {
                Some(answer) => answer.await.map_err(|infallible: Infallible| match infallible {}),
                None => Err(Refused),
            }
        }
    });
    let _ = stream.set_nodelay(true);
    // That a client breaks off is everyday life here.
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(error, "a connection broke");
    }
}

/// A connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("refused on purpose")]
struct Refused;

/// Runs the tasks of HTTP/2 streams where they are joined.
#[derive(Debug, Clone)]
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/messages", post(messages))
        .route("/v1/responses", post(responses))
        .route("/v1/embeddings", post(models::embed))
        .route("/v1/models", get(models::list))
        .route("/v1/load_lora_adapter", post(models::load_adapter))
        .route("/v1/unload_lora_adapter", post(models::unload_adapter))
        .route("/tokenize", post(models::tokenize))
        .route("/health", get(|| async {}))
        .route("/ping", get(|| async {}))
        .route("/version", get(|| async { json_response(StatusCode::OK, r#"{"version":"0.32.0"}"#.into()) }))
        .route("/metrics", get(page::metrics))
        .route("/prometheus/metrics", get(page::metrics))
        .route("/sim/requests", get(sim_requests))
        .route("/sim/faults", get(sim_faults).post(set_sim_faults))
        .fallback(|| async { ApiError::of_status(StatusCode::NOT_FOUND, "Not Found") })
        .method_not_allowed_fallback(|| async {
            ApiError::of_status(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
        })
        .layer(from_fn_with_state(shared.clone(), gate))
        // The gate has its own, and reads all bodies.
        .layer(DefaultBodyLimit::disable())
        .with_state(shared)
}

/// Before every handler: faults and the journal; after it: who it was.
async fn gate(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    // The metrics page has faults of its own.
    let mut response = if is_control(path) || path.ends_with("/metrics") {
        next.run(request).await
    } else {
        match received(&shared, request).await {
            Ok(request) => faulty(&shared, request, next).await,
            Err(error) => error.into_response(),
        }
    };
    if let Ok(name) = HeaderValue::from_str(&shared.config.name) {
        response.headers_mut().insert("x-sim-server", name);
    }
    response
}

/// Reads the body and notes the request.
async fn received(shared: &Shared, request: Request) -> Result<Request, ApiError> {
    let (head, body) = request.into_parts();
    let too_large = || {
        let message = format!("the body broke off or is longer than {BODY_BYTES_MAX} bytes");
        ApiError::of_status(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| too_large())?;
    if !matches!(head.uri.path(), "/health" | "/ping") {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        shared.journal.note(&head.method, path, &head.headers, &body);
    }
    Ok(Request::from_parts(head, Body::from(body)))
}

async fn faulty(shared: &Shared, request: Request, next: Next) -> Response {
    let faults = shared.faults.lock().clone();
    if faults.hang {
        std::future::pending::<()>().await;
    }
    if faults.first_byte_delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(faults.first_byte_delay_ms)).await;
    }
    match faults.status.map(StatusCode::from_u16) {
        Some(Ok(status)) => ApiError::of_status(status, "a fault that was ordered").into_response(),
        _ => next.run(request).await,
    }
}

async fn chat(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    generate(&shared, Api::Chat, &headers, &body).await
}

async fn completions(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    generate(&shared, Api::Completions, &headers, &body).await
}

async fn messages(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    generate(&shared, Api::Messages, &headers, &body).await
}

async fn responses(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    generate(&shared, Api::Responses, &headers, &body).await
}

async fn sim_requests(State(shared): State<Arc<Shared>>) -> Response {
    axum::Json(shared.journal.entries()).into_response()
}

async fn sim_faults(State(shared): State<Arc<Shared>>) -> Response {
    let faults = shared.faults.lock().clone();
    axum::Json(faults).into_response()
}

async fn set_sim_faults(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Response, ApiError> {
    let faults: Faults =
        serde_json::from_slice(&body).map_err(|error| ApiError::invalid(error.to_string()))?;
    let faults = faults.checked().map_err(|error| ApiError::invalid(error.to_string()))?;
    *shared.faults.lock() = faults.clone();
    Ok(axum::Json(faults).into_response())
}

/// Paths without faults and without traces.
fn is_control(path: &str) -> bool {
    path.starts_with("/sim/")
}

impl Shared {
    /// Now, in seconds since 1970.
    pub(crate) fn unix_seconds(&self) -> f64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }

    /// The client's `x-request-id` where it is one, as vLLM does; else one of our own.
    pub(crate) fn request_id(&self, headers: &HeaderMap) -> String {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let given = headers.get("x-request-id").and_then(|value| value.to_str().ok());
        let plain = |id: &&str| {
            (1..=128).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        let own = || format!("{:016x}", XxHash3_64::oneshot_with_seed(number, self.config.name.as_bytes()));
        given.filter(plain).map_or_else(own, str::to_owned)
    }
}
