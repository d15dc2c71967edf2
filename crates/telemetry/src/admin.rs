//! The admin door: `/metrics`, `/healthz`, `/readyz`, `/state`, `/log`. For operators, never for clients.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

/// What the admin door shows of the rest of the program.
pub trait Subject: Send + Sync + 'static {
    /// Whether requests are served now; else why not, in a few words.
    ///
    /// # Errors
    /// The reason why not.
    fn ready(&self) -> Result<(), String>;

    /// Pools, endpoints, loads, settings with their origin.
    fn state(&self) -> serde_json::Value;

    /// What is logged now: a level or directives.
    fn log_level(&self) -> String;

    /// Logs by `level` from now on.
    ///
    /// # Errors
    /// What is wrong with it; then nothing changes.
    fn set_log_level(&self, level: &str) -> Result<(), String>;
}

/// What `/metrics` prints.
pub trait Page: Send + Sync + 'static {
    /// OpenMetrics text.
    ///
    /// # Errors
    /// A metric that cannot be written.
    fn encode(&self) -> Result<String, fmt::Error>;
}

struct Door {
    metrics: Arc<dyn Page>,
    subject: Arc<dyn Subject>,
}

/// Serves the admin door on `listener` until `shutdown` resolves.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<dyn Page>,
    subject: Arc<dyn Subject>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/", get(index))
        .route("/metrics", get(page))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/state", get(state))
        .route("/log", get(log_level).put(set_log_level))
        .with_state(Arc::new(Door { metrics, subject }));
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

/// The URL of a bound address, for people: an unspecified address reads as loopback.
#[must_use]
pub fn url(scheme: &str, address: SocketAddr) -> String {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    format!("{scheme}://{address}")
}

async fn index() -> &'static str {
    "Pointsman admin\n\n\
     /metrics  OpenMetrics text\n\
     /healthz  200 while the process lives\n\
     /readyz   200 while requests are served, else 503 and why\n\
     /state    pools, endpoints, loads, settings and where each comes from, limits (JSON)\n\
     /log      what is logged; PUT a level or directives to change it: curl -X PUT -d debug …/log\n"
}

async fn page(State(door): State<Arc<Door>>) -> Response {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match door.metrics.encode() {
        Ok(page) => ([(header::CONTENT_TYPE, OPENMETRICS)], page).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "a metric could not be written\n").into_response(),
    }
}

async fn ready(State(door): State<Arc<Door>>) -> Response {
    match door.subject.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

async fn state(State(door): State<Arc<Door>>) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, format!("{:#}\n", door.subject.state())).into_response()
}

async fn log_level(State(door): State<Arc<Door>>) -> String {
    format!("{}\n", door.subject.log_level())
}

async fn set_log_level(State(door): State<Arc<Door>>, level: String) -> Response {
    match door.subject.set_log_level(level.trim()) {
        Ok(()) => format!("{}\n", door.subject.log_level()).into_response(),
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}
