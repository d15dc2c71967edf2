//! Endpoints, loads and prompts to decide about.

use std::sync::Arc;
use std::time::Duration;

use endpoints::{
    Booking, Endpoint, EndpointSet, EngineMetrics, Entry, Load, LoadStanding, Lora, Scraped, Slot, Snapshot,
    Update,
};
use pool::{EndpointSpec, PoolPolicy, RoutingStrategy, Runtime};
use routing::{Decision, Known, PrefixIndex, Request, Router, Scratch, block_hashes, decide};

pub(crate) const NOW: Duration = Duration::from_secs(10);

pub(crate) fn spec(number: usize) -> EndpointSpec {
    EndpointSpec {
        name: format!("vllm-{number}").into(),
        host: "127.0.0.1".into(),
        port: 8000 + number as u16,
        tls: false,
    }
}

pub(crate) fn policy(routing_strategy: RoutingStrategy) -> PoolPolicy {
    PoolPolicy { routing_strategy, ..PoolPolicy::default() }
}

pub(crate) fn idle() -> Load {
    Load {
        in_flight: 0,
        waiting: 0,
        prefill_tokens: 0,
        kv_usage_ratio: 0.0,
        last_booked: 0,
        standing: LoadStanding::Fresh,
    }
}

pub(crate) fn entry(number: usize, lora: Option<Lora>) -> Entry {
    let metrics = EngineMetrics { lora, model_name: Some("base".into()), ..EngineMetrics::default() };
    Entry {
        endpoint: Arc::new(Endpoint::new(Slot::new(number as u32), spec(number))),
        scraped: Some(Arc::new(Scraped {
            at: NOW,
            metrics,
            in_flight_then: 0,
            last_booked: 0,
            never_shown: 0,
        })),
        models: None,
    }
}

pub(crate) fn snapshot(endpoints: usize) -> Snapshot {
    Snapshot::new((0..endpoints).map(|number| entry(number, None)).collect(), 1)
}

/// Blocks of a prompt, by the default policy.
pub(crate) fn blocks(prompt: &str) -> Vec<u64> {
    let mut blocks = Vec::new();
    block_hashes(prompt.as_bytes(), 0, &PoolPolicy::default().prefix_cache, &mut blocks);
    blocks
}

/// A prompt of `blocks` blocks that shares nothing with that of another `name`.
pub(crate) fn prompt(name: &str, blocks: usize) -> String {
    format!("{name:-<64}").repeat(blocks)
}

/// A decision under `DEFAULT`, with two fallbacks.
pub(crate) fn by_load(snapshot: &Snapshot, loads: &[Load], request: &Request<'_>) -> Decision {
    let (policy, index) = (policy(RoutingStrategy::Default), PrefixIndex::new(1000));
    let known = Known { snapshot, loads, policy: &policy, index: &index };
    decide(request, &known, 2, 1, &mut Scratch::default()).expect("there are candidates")
}

/// A decision under `PREFIX_CACHE`, with two fallbacks.
pub(crate) fn by_prefix(
    snapshot: &Snapshot,
    loads: &[Load],
    index: &PrefixIndex,
    request: &Request<'_>,
) -> Decision {
    let policy = policy(RoutingStrategy::PrefixCache);
    let known = Known { snapshot, loads, policy: &policy, index };
    decide(request, &known, 2, 1, &mut Scratch::default()).expect("there are candidates")
}

pub(crate) fn picked(decision: &Decision) -> usize {
    decision.ranked[0].entry as usize
}

/// A pool in service: a set of endpoints, a router, and the requests in flight.
pub(crate) struct Service {
    pub(crate) set: EndpointSet,
    pub(crate) router: Router,
    pub(crate) policy: PoolPolicy,
}

impl Service {
    /// Idle endpoints, all scraped at [`NOW`].
    pub(crate) fn new(endpoints: usize, strategy: RoutingStrategy, seed: u64) -> Self {
        let policy = policy(strategy);
        let set = EndpointSet::new();
        let added = set.reconcile(&(0..endpoints).map(spec).collect::<Vec<_>>()).added;
        let scraped = Scraped {
            at: NOW,
            metrics: EngineMetrics::default(),
            in_flight_then: 0,
            last_booked: 0,
            never_shown: 0,
        };
        let scraped = Arc::new(scraped);
        set.apply(added.iter().map(|endpoint| Update::Scrape {
            id: endpoint.id,
            runtime: Runtime::Vllm,
            scraped: Some(Arc::clone(&scraped)),
        }));
        Self { router: Router::new(&policy.prefix_cache, seed), set, policy }
    }

    /// Picks, books and records; which endpoint, and the booking.
    pub(crate) fn send(&mut self, prompt: &str) -> (usize, Booking) {
        let blocks = blocks(prompt);
        let request =
            Request { blocks: &blocks, prompt_tokens: prompt.len() as u32 / 4, ..Request::default() };
        let snapshot = self.set.snapshot();
        let decision = self.router.pick(&request, &snapshot, &self.policy, NOW, 2).expect("endpoints");
        let pick = &decision.ranked[0];
        let endpoint = &snapshot.entries[pick.entry as usize].endpoint;
        let _ = self.router.record(endpoint, &blocks);
        (pick.entry as usize, self.set.book(endpoint, pick.cost.uncached))
    }
}
