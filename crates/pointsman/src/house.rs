//! What every server of this program stands on: a director, the files that are watched for it, the admin door, and
//! the order in which all of that stops.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use director::{Clock, Director, Limits};
use operator::{PoolSource, PoolsSource};
use telemetry::Metrics;
use telemetry::admin::{self, Subject};
use tls::ServingCertificate;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::files::Files;
use crate::logging::LogControl;
use crate::shutdown::{self, Signals};

/// How long the first scrape of every endpoint may hold up the start.
const SETTLE_MAX: Duration = Duration::from_millis(1500);

/// How long a cluster that does not tell of the pool may hold up the start.
const KNOWN_MAX: Duration = Duration::from_secs(10);

/// How long before the end of the drain time those that still wait for an endpoint are told so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A director and what runs beside it.
pub(crate) struct House {
    pub(crate) director: Arc<Director>,
    tracker: TaskTracker,
    /// Ends what runs beside the requests.
    background: CancellationToken,
    /// Nothing new should come; from now on the admin door says so.
    pub(crate) stopping: CancellationToken,
    /// Whether a pool is in service.
    pub(crate) known: watch::Receiver<bool>,
    signals: Signals,
}

/// Where the pool is declared.
pub(crate) enum Source {
    /// In files on this machine.
    Files(Files),
    /// On Kubernetes.
    Cluster(Box<PoolSource>),
    /// On Kubernetes, and all of them.
    AllOfCluster(Box<PoolsSource>),
}

/// How long each part of stopping may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    /// After the signal, while new requests are still taken.
    pub(crate) delay: Duration,
    /// For requests in flight.
    pub(crate) drain: Duration,
}

/// The program as the admin door shows it.
struct Program {
    director: Arc<Director>,
    stopping: CancellationToken,
    limits: serde_json::Value,
    log: LogControl,
}

/// Where the tasks of a house run, before there is one.
#[derive(Clone, Default)]
pub(crate) struct Ground {
    pub(crate) tracker: TaskTracker,
    pub(crate) background: CancellationToken,
}

impl House {
    /// Takes in force what `source` declares, waits a moment for the first loads, and follows changes.
    pub(crate) async fn build(ground: Ground, source: Source, limits: Limits) -> anyhow::Result<House> {
        let Ground { tracker, background } = ground;
        let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")));
        let director = Director::new(
            metrics,
            Clock::start(),
            limits,
            director::random_seed(),
            tracker.clone(),
            background.clone(),
        );
        let (tell_known, known) = watch::channel(false);
        let (stopping, signals) = (CancellationToken::new(), Signals::listen()?);
        let mut house = House { director, tracker, background, stopping, known, signals };
        let director = Arc::clone(&house.director);
        match source {
            Source::Files(files) => {
                files.declare(&director)?;
                tell_known.send_replace(true);
                house.beside(files.watch(director));
            }
            Source::Cluster(pool) => {
                let which = pool.pool_in_words();
                house.beside(pool.run(director, tell_known));
                house.until_known(&which).await;
            }
            Source::AllOfCluster(pools) => {
                house.beside(pools.run(director, tell_known));
                house.until_known("InferencePools").await;
            }
        }
        let pools = house.director.pools();
        let settled = futures_util::future::join_all(pools.iter().map(|pool| pool.settled(SETTLE_MAX)));
        settled.await;
        Ok(house)
    }

    /// Waits for the cluster to tell of the pool; not for ever: who is asked before that says why nobody can serve.
    async fn until_known(&mut self, which: &str) {
        let known = self.known.wait_for(|known| *known);
        if timeout(KNOWN_MAX, known).await.is_err() {
            tracing::warn!("nothing is known of {which} yet: requests are refused until it is");
        }
    }

    /// Runs `task` beside the requests, until the process stops.
    pub(crate) fn beside(&self, task: impl Future<Output = ()> + Send + 'static) {
        let until = self.background.clone();
        self.tracker.spawn(async move { until.run_until_cancelled(task).await });
    }

    /// Serves the admin door; `limits` are shown with the director's state.
    pub(crate) fn serve_admin(&self, listener: TcpListener, limits: serde_json::Value, log: LogControl) {
        let director = Arc::clone(&self.director);
        let metrics = Arc::clone(director.metrics());
        let subject = Arc::new(Program { director, stopping: self.stopping.clone(), limits, log });
        let until = self.background.clone().cancelled_owned();
        self.tracker.spawn(async move {
            if let Err(error) = admin::serve(listener, metrics, subject, until).await {
                tracing::error!(%error, "the admin address is no longer served");
            }
        });
    }

    /// Follows changes of the certificate's files.
    pub(crate) fn watch_certificate(&self, certificate: &Arc<ServingCertificate>) {
        self.beside(Arc::clone(certificate).watch());
    }

    /// Waits for `serving`, which says whether it drained, and stops it at the first signal: cancels `accepting` after the
    /// delay. A second signal cuts everything off.
    pub(crate) async fn run(
        mut self,
        serving: impl Future<Output = bool>,
        accepting: CancellationToken,
        stop: Stop,
    ) {
        let stopping = self.stopping.clone();
        let signals = &mut self.signals;
        let director = Arc::clone(&self.director);
        let stopped = async move {
            let signal = signals.next().await;
            tracing::info!(signal, drain = ?stop.drain, "stopping: no new request, those in flight end");
            stopping.cancel();
            tokio::select! {
                () = tokio::time::sleep(stop.delay) => accepting.cancel(),
                signal = signals.next() => return signal,
            }
            tokio::select! {
                () = tokio::time::sleep(stop.drain.saturating_sub(LAST_WORDS)) => director.stop_waiting(),
                signal = signals.next() => return signal,
            }
            signals.next().await
        };
        tokio::select! {
            drained = serving => if !drained {
                tracing::warn!(drain = ?stop.drain, "requests were still in flight when the drain time was over");
            },
            signal = stopped => {
                tracing::warn!(signal, "asked to stop once more: requests in flight are cut off");
                self.director.cut_off();
            }
        }
        self.background.cancel();
        shutdown::finish(&self.tracker).await;
    }
}

impl Subject for Program {
    fn ready(&self) -> Result<(), String> {
        if self.stopping.is_cancelled() {
            return Err("shutting down".into());
        }
        self.director.ready()
    }

    fn state(&self) -> serde_json::Value {
        let mut state = self.director.state();
        state["limits"] = self.limits.clone();
        state
    }

    fn log_level(&self) -> String {
        self.log.level()
    }

    fn set_log_level(&self, level: &str) -> Result<(), String> {
        self.log.set_level(level)
    }
}
