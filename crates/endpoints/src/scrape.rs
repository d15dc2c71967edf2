//! Reading the endpoints' metrics and model lists, for as long as they are members, harming nobody.
//!
//! Two tasks for each endpoint, one request under way in each, so an endpoint that hangs, trickles or lies costs its own
//! two tasks at most their time and byte bounds. What they read goes through one bounded queue to one publisher, which
//! publishes what came together once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pool::{MetricsTarget, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::endpoint::EndpointId;
use crate::metrics::PageError;
use crate::set::{EndpointSet, Update};

mod client;
mod lag;
mod stats;
mod tls;
mod worker;

pub use client::FetchError;
pub use stats::{FailureReason, ScrapeFailure, ScrapeStats};

use tls::TlsConfigs;
use worker::Worker;

/// What is scraped, and where. May change at any time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrapeConfig {
    /// Whose metric names are read.
    pub runtime: Runtime,
    /// Where the page is.
    pub target: MetricsTarget,
}

/// Why a scrape failed. The last good one stays in force until it is stale.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// The page did not come.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The page came and tells no load.
    #[error(transparent)]
    Page(#[from] PageError),
}

/// How often and how long. The defaults are what the contract says; tests hurry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// The longest time from the beginning of one scrape to that of the next.
    idle: Duration,
    /// The same while requests are booked.
    busy: Duration,
    /// The longest time from one reading of the models to the next.
    models: Duration,
    /// The longest a scrape or a reading may take, connecting included.
    timeout: Duration,
    /// The shortest time between two publications.
    publish: Duration,
}

/// Updates that may wait for the publisher; a scraper that finds the queue full waits.
const UPDATES_MAX: usize = 1024;

/// Scrapes the members of `set` until `cancel`; its tasks run on `tracker`.
///
/// `config` may change: another target is read from at once; another runtime makes all loads unknown until the first
/// good scrape by its names. An idle endpoint is scraped about each 0.8 s, one that requests were booked on since its
/// last scrape, or that requests wait for, about each 0.1 s; model lists are read about each 4 s.
pub fn spawn(
    set: Arc<EndpointSet>,
    config: watch::Receiver<ScrapeConfig>,
    clock: Clock,
    tracker: &TaskTracker,
    cancel: CancellationToken,
) {
    spawn_at(Pace::default(), set, config, clock, tracker, cancel);
}

fn spawn_at(
    pace: Pace,
    set: Arc<EndpointSet>,
    config: watch::Receiver<ScrapeConfig>,
    clock: Clock,
    tracker: &TaskTracker,
    cancel: CancellationToken,
) {
    let (updates, received) = mpsc::channel(UPDATES_MAX);
    tracker.spawn(publish(Arc::clone(&set), received, pace.publish));
    let (models_wanted, room_wanted) = (set.watch_models_wanted(), set.watch_room_wanted());
    let tls = Arc::new(TlsConfigs::default());
    let worker = Worker { pace, clock, config, tls, updates, models_wanted, room_wanted };
    tracker.spawn(supervise(worker, set, tracker.clone(), cancel));
}

/// Keeps two tasks running for each member.
async fn supervise(
    mut worker: Worker,
    set: Arc<EndpointSet>,
    tracker: TaskTracker,
    cancel: CancellationToken,
) {
    let mut membership = set.watch_membership();
    let mut running: HashMap<EndpointId, CancellationToken> = HashMap::new();
    while !cancel.is_cancelled() {
        membership.mark_unchanged();
        set.use_runtime(worker.config.borrow_and_update().runtime);
        let snapshot = set.snapshot();
        let mut gone = std::mem::take(&mut running);
        for entry in &snapshot.entries {
            let endpoint = &entry.endpoint;
            let token = gone.remove(&endpoint.id).unwrap_or_else(|| {
                let token = cancel.child_token();
                let scraping = worker.clone().scrape_for_ever(Arc::clone(endpoint));
                tracker.spawn(token.clone().run_until_cancelled_owned(scraping));
                let reading = worker.clone().read_models_for_ever(Arc::clone(endpoint));
                tracker.spawn(token.clone().run_until_cancelled_owned(reading));
                token
            });
            running.insert(endpoint.id, token);
        }
        gone.values().for_each(CancellationToken::cancel);
        tokio::select! {
            () = cancel.cancelled() => {}
            () = changed(&mut membership) => {}
            () = changed(&mut worker.config) => {}
        }
    }
}

/// Publishes what was read until the last reader is gone.
async fn publish(set: Arc<EndpointSet>, mut received: mpsc::Receiver<Update>, gap: Duration) {
    let mut batch = Vec::new();
    while received.recv_many(&mut batch, UPDATES_MAX).await > 0 {
        set.apply(batch.drain(..));
        // What comes meanwhile shares the next publication: a thousand endpoints are not a thousand snapshots a second.
        sleep(gap).await;
    }
}

/// Resolves at the next change; never, once nobody can make one.
async fn changed<T>(value: &mut watch::Receiver<T>) {
    if value.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl ScrapeError {
    /// The reason as a metric's label.
    #[must_use]
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Fetch(error) => error.reason(),
            Self::Page(PageError::Line(_) | PageError::Malformed { .. }) => FailureReason::Malformed,
            Self::Page(PageError::MissingSeries { .. }) => FailureReason::MissingSeries,
            Self::Page(
                PageError::BadValue { .. } | PageError::BadLabel { .. } | PageError::TooManyRanks { .. },
            ) => FailureReason::BadValue,
        }
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            // Below a second, so that it is a second with the scrape's own time.
            idle: Duration::from_millis(950),
            busy: Duration::from_millis(120),
            models: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            publish: Duration::from_millis(5),
        }
    }
}

#[cfg(test)]
mod tests;
