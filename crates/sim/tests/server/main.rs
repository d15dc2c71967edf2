//! Servers on loopback, seen through sockets as a client or a proxy sees them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy does not take the helpers of tests for tests")]

mod api;
mod client;
mod faults;
mod metrics;
mod streams;

use sim::{
    engine::Config,
    server::{ServerConfig, SimServer, start},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A server and what it runs on.
struct Running {
    server: SimServer,
    tasks: TaskTracker,
}

impl std::ops::Deref for Running {
    type Target = SimServer;

    fn deref(&self) -> &SimServer {
        &self.server
    }
}

/// A thousand times faster than life, with two adapters.
fn fast() -> ServerConfig {
    ServerConfig {
        model: "tiny".into(),
        adapters: vec!["lora-a".into(), "lora-b".into()],
        engine: Config { speed: 1_000.0, ..Config::default() },
        ..ServerConfig::default()
    }
}

/// As fast as life: what is asked of it takes long enough to be watched.
fn slow() -> ServerConfig {
    ServerConfig { engine: Config { step_base_us: 20_000.0, ..Config::default() }, ..fast() }
}

async fn run(config: ServerConfig) -> Running {
    let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
    let listen = "127.0.0.1:0".parse().unwrap();
    let server = start(config, listen, &tasks, &cancel).await.unwrap();
    Running { server, tasks }
}

/// Looks again and again until `seen` says so; gives up after ten seconds.
async fn eventually(what: &str, seen: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if seen() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("never seen: {what}");
}
