//! What the controller counts.

use std::fmt;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::admin::Page;
use crate::definitions as def;
use crate::metrics::registered;

/// Every family of the controller. One per process, shared.
pub struct ControllerMetrics {
    registry: Registry,
    /// Whether this one works.
    pub leads: Gauge,
    /// Pools to be looked at.
    pub pending: Gauge,
    /// Pools to be tried again.
    pub failing: Gauge,
    /// Kinds that cannot be read.
    pub watches_failing: Gauge,
    /// Time of one look, in seconds.
    pub reconcile_duration: Histogram,
    pools: Family<Version, Gauge>,
    reconciles: Family<Reconcile, Counter>,
    writes: Family<Kind, Counter>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Version {
    version: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reconcile {
    of: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

impl Default for ControllerMetrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let all = &mut registry;
        let durations = Histogram::new(exponential_buckets(0.000_1, 2.0, 20));
        Self {
            leads: registered(all, &def::CONTROLLER_LEADS, Gauge::default()),
            pools: registered(all, &def::CONTROLLER_POOLS, Family::default()),
            pending: registered(all, &def::CONTROLLER_PENDING, Gauge::default()),
            failing: registered(all, &def::CONTROLLER_FAILING, Gauge::default()),
            watches_failing: registered(all, &def::CONTROLLER_WATCHES_FAILING, Gauge::default()),
            reconciles: registered(all, &def::CONTROLLER_RECONCILES, Family::default()),
            reconcile_duration: registered(all, &def::CONTROLLER_RECONCILE_DURATION, durations),
            writes: registered(all, &def::CONTROLLER_WRITES, Family::default()),
            registry,
        }
    }
}

impl ControllerMetrics {
    /// So many pools of that API version are known.
    pub fn set_pools(&self, version: &'static str, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.pools.get_or_create(&Version { version }).set(count);
    }

    /// A look at a pool's picker or models ended.
    pub fn count_reconcile(&self, of: &'static str, is_done: bool) {
        let outcome = if is_done { "done" } else { "failed" };
        self.reconciles.get_or_create(&Reconcile { of, outcome }).inc();
    }

    /// An object of that kind was written.
    pub fn count_write(&self, kind: &'static str) {
        self.writes.get_or_create(&Kind { kind }).inc();
    }
}

impl Page for ControllerMetrics {
    fn encode(&self) -> Result<String, fmt::Error> {
        let mut page = String::with_capacity(4 * 1024);
        prometheus_client::encoding::text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}
