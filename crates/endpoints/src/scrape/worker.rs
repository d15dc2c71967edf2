//! The two tasks of one endpoint: its metrics and its models.

use std::sync::Arc;
use std::time::Duration;

use pool::MetricsScheme;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::client::{Connection, FetchError, Origin, Security};
use super::lag::Lag;
use super::tls::TlsConfigs;
use super::{Pace, ScrapeConfig, ScrapeError, changed};
use crate::clock::Clock;
use crate::endpoint::Endpoint;
use crate::metrics::{EngineMetrics, PageReader};
use crate::models::{ModelList, ModelsError};
use crate::set::Update;
use crate::snapshot::Scraped;

/// The largest metrics page, in bytes.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The largest model list, in bytes.
const MODELS_BYTES_MAX: usize = 1024 * 1024;
/// An endpoint that fails and recovers all the time is logged at most once in this time.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What each task gets of its own.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    pub(super) pace: Pace,
    pub(super) clock: Clock,
    pub(super) config: watch::Receiver<ScrapeConfig>,
    pub(super) tls: Arc<TlsConfigs>,
    pub(super) updates: mpsc::Sender<Update>,
    pub(super) models_wanted: watch::Receiver<Option<Duration>>,
    pub(super) room_wanted: watch::Receiver<bool>,
}

/// Keeps endpoints that were added together from being asked together.
struct Jitter(u64);

/// Says once that scrapes began to fail, and once that they work again.
#[derive(Default)]
struct FailureLog {
    warned: bool,
    warned_at: Option<Duration>,
}

#[derive(Debug, thiserror::Error)]
enum ReadModelsError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Models(#[from] ModelsError),
}

impl Worker {
    /// Scrapes the endpoint's metrics until nobody wants them.
    pub(super) async fn scrape_for_ever(mut self, endpoint: Arc<Endpoint>) {
        let mut connection: Option<Connection> = None;
        let mut jitter = Jitter::new(&endpoint);
        let mut log = FailureLog::default();
        let mut lag = Lag::default();
        loop {
            let config = self.config.borrow_and_update().clone();
            let connection = self.towards(metrics_origin(&endpoint, &config), &mut connection);
            let (sent, booked) = (Instant::now(), endpoint.ledger.last_booked());
            let (ours_then, unanswered) = (endpoint.ledger.requests(), endpoint.ledger.unanswered());
            let page = self.within_timeout(read_page(connection, &config)).await;
            let (at, took) = (self.clock.now(), sent.elapsed());
            let in_flight_then = ours_then.max(endpoint.ledger.requests());
            let last_booked = endpoint.ledger.last_booked();
            log.note(&endpoint, &page, at);
            match &page {
                Ok(_) => endpoint.scrapes.succeeded(at, took),
                Err(error) => endpoint.scrapes.failed_with(error, at),
            }
            let unanswered = unanswered.min(endpoint.ledger.unanswered());
            let mut unseen = 0;
            let scraped = page.ok().map(|metrics| {
                let counted = metrics.running.saturating_add(metrics.waiting);
                unseen = unanswered.saturating_sub(counted);
                let never_shown = lag.note(at, counted, unanswered);
                Arc::new(Scraped { at, metrics, in_flight_then, last_booked, never_shown })
            });
            let update = Update::Scrape { id: endpoint.id, runtime: config.runtime, scraped };
            if self.updates.send(update).await.is_err() {
                return;
            }
            let share = jitter.share();
            // Never more than half the time under load: an engine that answers slowly is asked less.
            let busy = self.pace.busy.mul_f64(share).max(took * 2);
            let next_if_booked = async {
                endpoint.ledger.booked_after(booked).await;
                sleep_until(sent + busy).await;
            };
            let next_if_wanted = async {
                // Whoever could want room is gone: so is the pool, and the scrape ends with it.
                let _ = self.room_wanted.wait_for(|wanted| *wanted).await;
                sleep_until(sent + busy).await;
            };
            tokio::select! {
                () = sleep_until(sent + self.pace.idle.mul_f64(share)) => {}
                () = next_if_booked => {}
                () = next_if_wanted => {}
                // The page will show them any moment.
                () = sleep_until(sent + busy), if unseen > 0 => {}
                () = changed(&mut self.config) => {}
            }
        }
    }

    /// Reads the endpoint's model list until nobody wants it.
    pub(super) async fn read_models_for_ever(mut self, endpoint: Arc<Endpoint>) {
        let mut connection: Option<Connection> = None;
        let mut jitter = Jitter::new(&endpoint);
        let mut was_known = None;
        loop {
            self.models_wanted.mark_unchanged();
            let origin = models_origin(&endpoint, &self.config.borrow_and_update());
            let connection = self.towards(origin, &mut connection);
            let sent = Instant::now();
            let sent_at = self.clock.now();
            let list = self.within_timeout(read_models(connection, self.clock)).await;
            if was_known.replace(list.is_ok()) != Some(list.is_ok())
                && let Err(error) = &list
            {
                let endpoint = endpoint.authority();
                tracing::info!(endpoint, %error, "endpoint gives no model list: unknown models are passed on");
            }
            let list = list.ok().map(Arc::new);
            let update = Update::Models { id: endpoint.id, sent: sent_at, list };
            if self.updates.send(update).await.is_err() {
                return;
            }
            tokio::select! {
                () = sleep_until(sent + self.pace.models.mul_f64(jitter.share())) => {}
                () = changed(&mut self.models_wanted) => {}
                () = changed(&mut self.config) => {}
            }
        }
    }

    /// The kept connection if it goes to `origin`, else a new one in its place.
    fn towards<'a>(&self, origin: Origin, kept: &'a mut Option<Connection>) -> &'a mut Connection {
        if kept.as_ref().is_some_and(|connection| *connection.origin() != origin) {
            *kept = None;
        }
        kept.get_or_insert_with(|| Connection::new(origin, Arc::clone(&self.tls)))
    }

    async fn within_timeout<T, E: From<FetchError>>(
        &self,
        reading: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        timeout(self.pace.timeout, reading).await.unwrap_or_else(|_| {
            let after_ms = u64::try_from(self.pace.timeout.as_millis()).unwrap_or(u64::MAX);
            Err(FetchError::Timeout { after_ms }.into())
        })
    }
}

async fn read_page(connection: &mut Connection, config: &ScrapeConfig) -> Result<EngineMetrics, ScrapeError> {
    let mut page = PageReader::new(config.runtime);
    connection
        .get(&config.target.path, PAGE_BYTES_MAX, |chunk| Ok::<_, ScrapeError>(page.feed(chunk)?))
        .await?;
    Ok(page.finish()?)
}

async fn read_models(connection: &mut Connection, clock: Clock) -> Result<ModelList, ReadModelsError> {
    let mut body = Vec::new();
    let keep = |chunk: &[u8]| {
        body.extend_from_slice(chunk);
        Ok::<_, FetchError>(())
    };
    connection.get("/v1/models", MODELS_BYTES_MAX, keep).await?;
    Ok(ModelList::parse(&body, clock.now())?)
}

fn metrics_origin(endpoint: &Endpoint, config: &ScrapeConfig) -> Origin {
    let target = &config.target;
    let port = target.port.unwrap_or(endpoint.spec.port);
    // What speaks TLS for requests speaks it for whatever is asked on the same port.
    let tls = target.scheme == MetricsScheme::Https || (endpoint.spec.tls && port == endpoint.spec.port);
    let security =
        if tls { Security::Tls { verify: !target.https_insecure_skip_verify } } else { Security::Clear };
    Origin { host: Arc::clone(&endpoint.spec.host), port, security }
}

/// Models are asked for where requests go; that port speaks TLS if the metrics on the same port do.
fn models_origin(endpoint: &Endpoint, config: &ScrapeConfig) -> Origin {
    let metrics = metrics_origin(endpoint, config);
    let security = if metrics.port == endpoint.spec.port {
        metrics.security
    } else if endpoint.spec.tls {
        Security::Tls { verify: !config.target.https_insecure_skip_verify }
    } else {
        Security::Clear
    };
    Origin { port: endpoint.spec.port, security, ..metrics }
}

impl Jitter {
    fn new(endpoint: &Endpoint) -> Self {
        Self(endpoint.id.get())
    }

    /// A share of an interval, from two thirds to the whole: ±20 % about its middle.
    fn share(&mut self) -> f64 {
        // SplitMix64 (Steele, Lea, Flood 2014): more than enough to keep two timers apart.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        2.0 / 3.0 + (bits >> 11) as f64 / (1_u64 << 53) as f64 / 3.0
    }
}

impl FailureLog {
    fn note(&mut self, endpoint: &Endpoint, page: &Result<EngineMetrics, ScrapeError>, now: Duration) {
        let endpoint = endpoint.authority();
        match page {
            Ok(_) if self.warned => {
                self.warned = false;
                tracing::info!(endpoint, "metrics are read again");
            }
            Err(error) if !self.warned && self.warned_at.is_none_or(|at| now >= at + WARN_EVERY) => {
                self.warned = true;
                self.warned_at = Some(now);
                let reason = error.reason().as_str();
                tracing::warn!(endpoint, reason, %error, "metrics cannot be read: load becomes unknown, not zero");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use pool::EndpointSpec;

    use super::*;
    use crate::endpoint::Slot;

    fn endpoint(port: u16) -> Endpoint {
        Endpoint::new(
            Slot::new(0),
            EndpointSpec { name: "a".into(), host: "10.0.0.1".into(), port, tls: false },
        )
    }

    #[test]
    fn jitter_takes_up_to_a_third_off_and_keeps_endpoints_apart() {
        let mut jitters = [endpoint(1), endpoint(1)].map(|endpoint| Jitter::new(&endpoint));
        let shares: Vec<[f64; 2]> = (0..1000).map(|_| jitters.each_mut().map(Jitter::share)).collect();
        assert!(shares.as_flattened().iter().all(|share| (2.0 / 3.0..1.0).contains(share)));
        assert!(shares.as_flattened().iter().any(|share| *share < 0.68));
        assert!(shares.as_flattened().iter().any(|share| *share > 0.98));
        assert!(shares.iter().all(|[one, other]| one != other));
    }

    #[test]
    fn an_idle_endpoint_is_scraped_at_least_once_a_second() {
        assert!(Pace::default().idle < Duration::from_secs(1));
        assert!(Pace::default().models + Pace::default().timeout < crate::MODELS_FRESH);
    }

    #[test]
    fn models_are_asked_where_requests_go() {
        let endpoint = endpoint(8000);
        let mut config = ScrapeConfig::default();
        config.target.scheme = MetricsScheme::Https;
        config.target.https_insecure_skip_verify = false;
        let tls = Security::Tls { verify: true };
        assert_eq!(
            (models_origin(&endpoint, &config).port, models_origin(&endpoint, &config).security),
            (8000, tls)
        );
        config.target.port = Some(9000);
        assert_eq!(metrics_origin(&endpoint, &config).port, 9000);
        let models = models_origin(&endpoint, &config);
        assert_eq!((models.port, models.security), (8000, Security::Clear));
    }

    #[test]
    fn a_failing_endpoint_is_warned_of_once_and_a_flapping_one_seldom() {
        let (endpoint, mut log, mut warnings) = (endpoint(1), FailureLog::default(), 0);
        let bad = || Err(ScrapeError::Fetch(FetchError::Timeout { after_ms: 2000 }));
        for second in 0..120 {
            for page in [bad(), bad(), Ok(EngineMetrics::default())] {
                let before = log.warned;
                log.note(&endpoint, &page, Duration::from_secs(second));
                warnings += u32::from(log.warned && !before);
            }
        }
        assert_eq!(warnings, 2);
        assert!(!log.warned);
    }
}
