//! Ways to choose an endpoint, ours and others'.

use std::sync::Arc;
use std::time::Duration;

use endpoints::{Endpoint, Snapshot};
use pool::{PoolPolicy, PrefixCachePolicy, RoutingStrategy};
use routing::{PrefixIndex, Request, Router};

use crate::trace;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    Random,
    RoundRobin,
    /// The fewest of our own requests in flight, ties in turn.
    LeastInFlight,
    /// The rule that llm-d's picker published: a weighted sum of ranks from the last scrape (queue 2, KV cache 2, prefix 3).
    WeightedSum,
    Default,
    PrefixCache,
}

/// A policy and what it remembers.
pub(crate) struct Chooser {
    policy: Policy,
    pool_policy: PoolPolicy,
    router: Router,
    index: PrefixIndex,
    matched: Vec<u32>,
    picks: u64,
}

/// Where a request goes, and how much of its prompt is expected to be computed there.
pub(crate) struct Choice {
    pub(crate) engine: usize,
    pub(crate) uncached: u64,
}

impl Policy {
    pub(crate) const ALL: [Self; 6] = [
        Self::Random,
        Self::RoundRobin,
        Self::LeastInFlight,
        Self::WeightedSum,
        Self::Default,
        Self::PrefixCache,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::RoundRobin => "round robin",
            Self::LeastInFlight => "least in flight",
            Self::WeightedSum => "queue 2, KV 2, prefix 3 (llm-d's published rule)",
            Self::Default => "ours, DEFAULT",
            Self::PrefixCache => "ours, PREFIX_CACHE",
        }
    }

    /// How old a scrape gets: what each project does under load.
    pub(crate) fn scrape_interval(self) -> Duration {
        Duration::from_millis(if self == Self::WeightedSum { 50 } else { 120 })
    }
}

impl Chooser {
    pub(crate) fn new(policy: Policy, prefix_blocks_max: u32) -> Self {
        let prefix_cache = PrefixCachePolicy { prefix_blocks_max, ..PrefixCachePolicy::default() };
        let routing_strategy = match policy {
            Policy::PrefixCache => RoutingStrategy::PrefixCache,
            _ => RoutingStrategy::Default,
        };
        Self {
            policy,
            router: Router::new(&prefix_cache, 1),
            index: PrefixIndex::new(prefix_cache.lru_capacity_blocks as usize),
            pool_policy: PoolPolicy { routing_strategy, prefix_cache, ..PoolPolicy::default() },
            matched: Vec::new(),
            picks: 0,
        }
    }

    pub(crate) fn prefix_cache(&self) -> &PrefixCachePolicy {
        &self.pool_policy.prefix_cache
    }

    pub(crate) fn choose(&mut self, request: &Request<'_>, snapshot: &Snapshot, now: Duration) -> Choice {
        self.picks += 1;
        let engines = snapshot.entries.len();
        let turn = self.picks as usize % engines;
        let whole = u64::from(request.prompt_tokens);
        let engine = match self.policy {
            Policy::Random => trace::mix(self.picks) as usize % engines,
            Policy::RoundRobin => turn,
            Policy::LeastInFlight => {
                let in_flight = |engine: &usize| snapshot.entries[*engine].endpoint.ledger.requests();
                let in_turn = (0..engines).map(|offset| (turn + offset) % engines);
                in_turn.min_by_key(in_flight).unwrap_or(turn)
            }
            Policy::WeightedSum => self.weighted_sum(request, snapshot),
            Policy::Default | Policy::PrefixCache => {
                return self.ours(request, snapshot, now).unwrap_or(Choice { engine: turn, uncached: whole });
            }
        };
        Choice { engine, uncached: whole }
    }

    fn ours(&mut self, request: &Request<'_>, snapshot: &Snapshot, now: Duration) -> Option<Choice> {
        let decision = self.router.pick(request, snapshot, &self.pool_policy, now, 2)?;
        let pick = decision.ranked.first()?;
        let endpoint: &Arc<Endpoint> = &snapshot.entries[pick.entry as usize].endpoint;
        if self.policy == Policy::PrefixCache {
            let _ = self.router.record(endpoint, request.blocks);
        }
        Some(Choice { engine: pick.entry as usize, uncached: pick.cost.uncached })
    }

    fn weighted_sum(&mut self, request: &Request<'_>, snapshot: &Snapshot) -> usize {
        self.index.matches(request.blocks, &mut self.matched);
        self.matched.resize(snapshot.entries.len(), 0);
        let page =
            |engine: usize| snapshot.entries[engine].scraped.as_deref().map(|scraped| &scraped.metrics);
        let waiting = |engine: usize| page(engine).map_or(0.0, |page| f64::from(page.waiting));
        let all = || 0..snapshot.entries.len();
        let longest = all().map(waiting).fold(0.0, f64::max);
        let shortest = all().map(waiting).fold(f64::MAX, f64::min);
        let score = |engine: usize| {
            let spread = longest - shortest;
            let queue = if spread > 0.0 { (longest - waiting(engine)) / spread } else { 1.0 };
            let free = 1.0 - page(engine).map_or(0.0, |page| f64::from(page.kv_usage_ratio));
            let prefix = f64::from(self.matched[engine]) / request.blocks.len().max(1) as f64;
            2.0 * queue + 2.0 * free + 3.0 * prefix
        };
        let random = |engine: usize| trace::mix(self.picks << 8 | engine as u64);
        let better =
            |a: &usize, b: &usize| score(*a).total_cmp(&score(*b)).then_with(|| random(*a).cmp(&random(*b)));
        let engine = all().max_by(better).unwrap_or(0);
        let endpoint = &snapshot.entries[engine].endpoint;
        let _ = self.index.record(endpoint.slot, endpoint.id, request.blocks);
        engine
    }
}
