//! The families that requests write to, and their text.

use std::fmt;
use std::sync::Arc;

use hashbrown::{Equivalent, HashMap};
use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

use crate::admin::Page;
use crate::definitions::{self as def, Definition, OLDER_TWIN};
use crate::limits::LimitCounters;

/// How many models, each with what it became, get label values of their own; the next read `other`.
pub const MODEL_LABELS_MAX: usize = 1000;

/// Every family that requests write to. One per process, shared.
pub struct Metrics {
    registry: RwLock<Registry>,
    models: RwLock<HashMap<ModelPair, Arc<ModelMetrics>>>,
    families: Families,
    /// Time of one decision, in seconds.
    pub scheduler_duration: Histogram,
    /// Share of a request's blocks that its endpoint held, 0 to 1.
    pub prefix_hit_ratio: Histogram,
    /// Bytes of a request's prompt that its endpoint held.
    pub prefix_hit_bytes: Histogram,
    /// Time inside Pointsman before a request was sent on, in seconds.
    pub inside_duration: Histogram,
    /// Time that requests waited, in seconds.
    pub queue_duration: Histogram,
    /// Retries that the budget refused.
    pub retries_refused: Counter,
    /// Manifest changes that were refused.
    pub reload_failures: Counter,
    /// How often each limit was reached.
    pub limits: LimitCounters,
    /// Connections of clients open now.
    pub connections: Gauge,
}

/// The handles of one model's families, resolved once.
pub struct ModelMetrics {
    /// Requests that ended.
    pub requests: Counter,
    /// Requests sent on and not ended.
    pub running: Gauge,
    /// Head to end, in seconds.
    pub duration: Histogram,
    /// Bytes of request bodies.
    pub request_bytes: Histogram,
    /// Bytes of answers' bodies.
    pub response_bytes: Histogram,
    /// Prompt tokens a request.
    pub input_tokens: Histogram,
    /// Generated tokens a request.
    pub output_tokens: Histogram,
    /// Duration divided by output tokens, in seconds.
    pub time_per_output_token: Histogram,
    /// Head to first byte, in seconds.
    pub time_to_first_token: Histogram,
    /// Prompt tokens in all.
    pub input_tokens_total: Counter,
    /// Prompt tokens found in prefix caches in all.
    pub cached_tokens_total: Counter,
    /// Generated tokens in all.
    pub output_tokens_total: Counter,
    labels: ModelPair,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelPair {
    model_name: Arc<str>,
    target_model_name: Arc<str>,
}

/// A pair to look up.
#[derive(Clone, Copy, Hash)]
struct Names<'a> {
    model: &'a str,
    target: &'a str,
}

impl Equivalent<ModelPair> for Names<'_> {
    fn equivalent(&self, pair: &ModelPair) -> bool {
        *self.model == *pair.model_name && *self.target == *pair.target_model_name
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelName {
    model_name: Arc<str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ErrorLabels {
    model_name: Arc<str>,
    target_model_name: Arc<str>,
    error_code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PickLabels {
    endpoint: Arc<str>,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Version {
    version: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolLabel {
    pool: String,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

struct Families {
    requests: Family<ModelPair, Counter>,
    errors: Family<ErrorLabels, Counter>,
    running: Family<ModelName, Gauge>,
    duration: Histograms<ModelPair>,
    request_bytes: Histograms<ModelPair>,
    response_bytes: Histograms<ModelPair>,
    input_tokens: Histograms<ModelPair>,
    output_tokens: Histograms<ModelPair>,
    time_per_output_token: Histograms<ModelPair>,
    time_to_first_token: Histograms<ModelName>,
    input_tokens_total: Family<ModelName, Counter>,
    cached_tokens_total: Family<ModelName, Counter>,
    output_tokens_total: Family<ModelName, Counter>,
    outcomes: Family<Reason, Counter>,
    picks: Family<PickLabels, Counter>,
    retries: Family<Reason, Counter>,
    queue_left: Family<Reason, Counter>,
    invalid_settings: Family<PoolLabel, Gauge>,
}

impl Metrics {
    /// All families, registered. `version` is what [`def::INFO`] tells.
    #[must_use]
    pub fn new(version: &'static str) -> Metrics {
        let mut registry = Registry::default();
        let families = Families::register(&mut registry);
        let info: Family<Version, Gauge> = Family::default();
        info.get_or_create(&Version { version }).set(1);
        register(&mut registry, &def::INFO, info);
        let limits = LimitCounters::default();
        register(&mut registry, &def::LIMIT_REACHED, limits.family());
        Metrics {
            families,
            limits,
            connections: registered(&mut registry, &def::CONNECTIONS, Gauge::default()),
            models: RwLock::default(),
            scheduler_duration: registered(&mut registry, &def::SCHEDULER_DURATION, decision_buckets()),
            prefix_hit_ratio: registered(&mut registry, &def::PREFIX_HIT_RATIO, ratio_buckets()),
            prefix_hit_bytes: registered(&mut registry, &def::PREFIX_HIT_BYTES, byte_buckets()),
            inside_duration: registered(&mut registry, &def::INSIDE, decision_buckets()),
            queue_duration: registered(&mut registry, &def::FLOW_QUEUE_DURATION, second_buckets()),
            retries_refused: registered(&mut registry, &def::RETRIES_REFUSED, Counter::default()),
            reload_failures: registered(&mut registry, &def::RELOAD_FAILURES, Counter::default()),
            registry: RwLock::new(registry),
        }
    }

    /// Adds gauges that are computed when the page is read.
    pub fn register_collector(&self, collector: Box<dyn Collector>) {
        self.registry.write().register_collector(collector);
    }

    /// The handles of the families of `model`, asked of model servers as `target`; `other` once [`MODEL_LABELS_MAX`] are
    /// known. Resolve once per request.
    #[must_use]
    pub fn model(&self, model: &str, target: &str) -> Arc<ModelMetrics> {
        const OTHER: Names<'static> = Names { model: "other", target: "other" };
        let mut names = Names { model, target };
        {
            let models = self.models.read();
            if models.len() >= MODEL_LABELS_MAX && !models.contains_key(&names) {
                names = OTHER;
            }
            if let Some(known) = models.get(&names) {
                return Arc::clone(known);
            }
        }
        let pair = ModelPair { model_name: names.model.into(), target_model_name: names.target.into() };
        let mut models = self.models.write();
        Arc::clone(
            models.entry(pair).or_insert_with_key(|pair| Arc::new(self.families.model_handles(pair.clone()))),
        )
    }

    /// Counts a request that ended in an error.
    pub fn count_error(&self, model: &ModelMetrics, reason: &'static str) {
        let ModelPair { model_name, target_model_name } = model.labels.clone();
        let labels = ErrorLabels { model_name, target_model_name, error_code: reason };
        self.families.errors.get_or_create(&labels).inc();
    }

    /// Counts how a request ended.
    pub fn count_outcome(&self, reason: &'static str) {
        self.families.outcomes.get_or_create(&Reason { reason }).inc();
    }

    /// Counts a pick.
    pub fn count_pick(&self, endpoint: Arc<str>, reason: &'static str) {
        self.families.picks.get_or_create(&PickLabels { endpoint, reason }).inc();
    }

    /// Drops the labels of an endpoint that is gone, so that churn does not grow the page.
    pub fn forget_endpoint(&self, endpoint: &str, reasons: impl IntoIterator<Item = &'static str>) {
        for reason in reasons {
            self.families.picks.remove(&PickLabels { endpoint: endpoint.into(), reason });
        }
    }

    /// Counts an attempt that went to the next endpoint.
    pub fn count_retry(&self, reason: &'static str) {
        self.families.retries.get_or_create(&Reason { reason }).inc();
    }

    /// Counts a request that waited, by how that ended.
    pub fn count_queue_left(&self, reason: &'static str) {
        self.families.queue_left.get_or_create(&Reason { reason }).inc();
    }

    /// Sets how many settings of a pool are invalid now.
    pub fn set_invalid_settings(&self, pool: &str, count: usize) {
        let labels = PoolLabel { pool: pool.to_owned() };
        self.families.invalid_settings.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Drops a pool that is gone from the gauges.
    pub fn forget_pool(&self, pool: &str) {
        self.families.invalid_settings.remove(&PoolLabel { pool: pool.to_owned() });
    }

    /// The whole page as OpenMetrics text.
    ///
    /// # Errors
    /// When a collector fails.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut page = String::with_capacity(16 * 1024);
        prometheus_client::encoding::text::encode(&mut page, &self.registry.read())?;
        Ok(page)
    }
}

impl Page for Metrics {
    fn encode(&self) -> Result<String, fmt::Error> {
        Metrics::encode(self)
    }
}

impl Families {
    fn register(registry: &mut Registry) -> Families {
        let families = Families {
            requests: Family::default(),
            errors: Family::default(),
            running: Family::default(),
            duration: Family::new_with_constructor(second_buckets),
            request_bytes: Family::new_with_constructor(byte_buckets),
            response_bytes: Family::new_with_constructor(byte_buckets),
            input_tokens: Family::new_with_constructor(token_buckets),
            output_tokens: Family::new_with_constructor(token_buckets),
            time_per_output_token: Family::new_with_constructor(second_buckets),
            time_to_first_token: Family::new_with_constructor(second_buckets),
            input_tokens_total: Family::default(),
            cached_tokens_total: Family::default(),
            output_tokens_total: Family::default(),
            outcomes: Family::default(),
            picks: Family::default(),
            retries: Family::default(),
            queue_left: Family::default(),
            invalid_settings: Family::default(),
        };
        register(registry, &def::REQUESTS, families.requests.clone());
        register(registry, &def::REQUEST_ERRORS, families.errors.clone());
        register(registry, &def::RUNNING_REQUESTS, families.running.clone());
        register(registry, &def::REQUEST_DURATION, families.duration.clone());
        register(registry, &def::REQUEST_SIZES, families.request_bytes.clone());
        register(registry, &def::RESPONSE_SIZES, families.response_bytes.clone());
        register(registry, &def::INPUT_TOKENS, families.input_tokens.clone());
        register(registry, &def::OUTPUT_TOKENS, families.output_tokens.clone());
        register(registry, &def::TIME_PER_OUTPUT_TOKEN, families.time_per_output_token.clone());
        register(registry, &def::TIME_TO_FIRST_TOKEN, families.time_to_first_token.clone());
        register(registry, &def::TOKENS_IN, families.input_tokens_total.clone());
        register(registry, &def::TOKENS_CACHED, families.cached_tokens_total.clone());
        register(registry, &def::TOKENS_OUT, families.output_tokens_total.clone());
        register(registry, &def::OUTCOMES, families.outcomes.clone());
        register(registry, &def::PICKS, families.picks.clone());
        register(registry, &def::RETRIES, families.retries.clone());
        register(registry, &def::QUEUE_LEFT, families.queue_left.clone());
        register(registry, &def::INVALID_SETTINGS, families.invalid_settings.clone());
        families
    }

    fn model_handles(&self, pair: ModelPair) -> ModelMetrics {
        let one = ModelName { model_name: Arc::clone(&pair.model_name) };
        ModelMetrics {
            requests: self.requests.get_or_create_owned(&pair),
            running: self.running.get_or_create_owned(&one),
            duration: self.duration.get_or_create_owned(&pair),
            request_bytes: self.request_bytes.get_or_create_owned(&pair),
            response_bytes: self.response_bytes.get_or_create_owned(&pair),
            input_tokens: self.input_tokens.get_or_create_owned(&pair),
            output_tokens: self.output_tokens.get_or_create_owned(&pair),
            time_per_output_token: self.time_per_output_token.get_or_create_owned(&pair),
            time_to_first_token: self.time_to_first_token.get_or_create_owned(&one),
            input_tokens_total: self.input_tokens_total.get_or_create_owned(&one),
            cached_tokens_total: self.cached_tokens_total.get_or_create_owned(&one),
            output_tokens_total: self.output_tokens_total.get_or_create_owned(&one),
            labels: pair,
        }
    }
}

/// Registers `metric`, and its older twin where upstream had one.
fn register<M: Metric + Clone>(registry: &mut Registry, definition: &Definition, metric: M) {
    let name = definition.base_name();
    if let Some(rest) = name.strip_prefix(OLDER_TWIN.0) {
        registry.register(format!("{}{rest}", OLDER_TWIN.1), definition.help, metric.clone());
    }
    registry.register(name, definition.help, metric);
}

/// Registers `metric` and gives it back.
pub(crate) fn registered<M: Metric + Clone>(
    registry: &mut Registry,
    definition: &Definition,
    metric: M,
) -> M {
    register(registry, definition, metric.clone());
    metric
}

/// 1 ms to about 18 minutes: a long generation is not a hang.
fn second_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 21))
}

/// 0.5 us to about 0.13 s: what is spent inside.
fn decision_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.000_000_5, 2.0, 19))
}

/// 64 bytes to 64 MiB.
fn byte_buckets() -> Histogram {
    Histogram::new(exponential_buckets(64.0, 4.0, 11))
}

/// 1 token to about 1 M tokens.
fn token_buckets() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 4.0, 11))
}

fn ratio_buckets() -> Histogram {
    Histogram::new((0..=10).map(|tenths| f64::from(tenths) / 10.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_printed_under_its_name_and_its_older_twin() {
        let metrics = Metrics::new("1.2.3");
        metrics.model("tiny", "tiny").requests.inc();
        let page = metrics.encode().unwrap();
        for prefix in ["inference_objective", "inference_model"] {
            let sample =
                format!("{prefix}_request_total{{model_name=\"tiny\",target_model_name=\"tiny\"}} 1\n");
            assert!(page.contains(&sample), "{page}");
        }
        assert!(page.ends_with("# EOF\n"));
    }

    #[test]
    fn model_names_past_the_bound_read_other() {
        let metrics = Metrics::new("test");
        for number in 0..MODEL_LABELS_MAX + 50 {
            metrics.model(&format!("m{number}"), "m").requests.inc();
        }
        assert_eq!(metrics.models.read().len(), MODEL_LABELS_MAX + 1);
        assert_eq!(metrics.model("yet another", "m").requests.get(), 50);
    }

    #[test]
    fn a_label_from_outside_cannot_break_the_page() {
        let metrics = Metrics::new("test");
        metrics.model("a\"b\\c\nd", "m").requests.inc();
        let page = metrics.encode().unwrap();
        assert!(page.contains(r#"model_name="a\"b\\c\nd""#), "{page}");
    }
}
