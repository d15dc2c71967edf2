//! A pool to decide in: endpoints under load, a router whose index is full, requests.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use endpoints::{Booking, Endpoint, EndpointSet, EngineMetrics, Scraped, Snapshot, Update};
use pool::{EndpointSpec, PoolPolicy, PrefixCachePolicy, RoutingStrategy, Runtime};
use routing::{Request, Router};
use sim::replay::TraceRequest;

use crate::trace;

/// Requests in flight on each endpoint.
const IN_FLIGHT_EACH: usize = 4;
/// The moment of all decisions: scrapes are fresh.
const NOW: Duration = Duration::from_secs(1);

/// A request as the door hands it over.
pub(crate) struct Asked {
    pub(crate) blocks: Vec<u64>,
    pub(crate) prompt_tokens: u32,
}

pub(crate) struct World {
    pub(crate) set: EndpointSet,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) policy: PoolPolicy,
    pub(crate) router: Router,
    in_flight: VecDeque<Booking>,
    in_flight_max: usize,
}

impl World {
    pub(crate) fn new(endpoints: usize, prefix_blocks_max: u32, lru_capacity_blocks: u32) -> Self {
        let prefix_cache =
            PrefixCachePolicy { prefix_blocks_max, lru_capacity_blocks, ..PrefixCachePolicy::default() };
        let router = Router::new(&prefix_cache, 1);
        let policy = PoolPolicy {
            routing_strategy: RoutingStrategy::PrefixCache,
            prefix_cache,
            ..PoolPolicy::default()
        };
        let set = EndpointSet::new();
        let added = set.reconcile(&specs(endpoints)).added;
        set.apply(added.iter().map(|endpoint| scrape(endpoint)));
        let snapshot = set.snapshot();
        let in_flight_max = IN_FLIGHT_EACH * endpoints;
        Self { set, snapshot, policy, router, in_flight: VecDeque::new(), in_flight_max }
    }

    /// One day of the trace, all prompts of which are new to the index.
    pub(crate) fn day(&self, trace: &[TraceRequest], day: u64) -> Vec<Asked> {
        let prefix = &self.policy.prefix_cache;
        let asked = |request: &TraceRequest| Asked {
            blocks: trace::blocks(
                request,
                trace::mix(day),
                prefix.block_size_bytes,
                prefix.prefix_blocks_max as usize,
            ),
            prompt_tokens: request.input_length,
        };
        trace.iter().map(asked).collect()
    }

    /// What a request does to routing: it is decided, booked, recorded; and the oldest in flight ends.
    pub(crate) fn route(&mut self, asked: &Asked) {
        let Some(pick) = self.decide(asked) else { return };
        let endpoint = &self.snapshot.entries[pick.entry as usize].endpoint;
        self.in_flight.push_back(self.set.book(endpoint, pick.cost.uncached));
        let _ = self.router.record(endpoint, &asked.blocks);
        if self.in_flight.len() > self.in_flight_max {
            self.in_flight.pop_front();
        }
    }

    /// The decision alone, loads read live.
    pub(crate) fn decide(&mut self, asked: &Asked) -> Option<routing::Ranked> {
        let decision = self.router.pick(&asked.request(), &self.snapshot, &self.policy, NOW, 2)?;
        decision.ranked.first().copied()
    }

    /// Routes whole days until every endpoint has forgotten something; the first day that is new to the index.
    pub(crate) fn fill(&mut self, trace: &[TraceRequest]) -> u64 {
        let mut held = 0;
        for day in 1.. {
            self.day(trace, day).iter().for_each(|asked| self.route(asked));
            let now = self.router.index().blocks_held();
            if now <= held + held / 100 {
                return day + 1;
            }
            held = now;
        }
        0
    }
}

impl Asked {
    pub(crate) fn request(&self) -> Request<'_> {
        Request { blocks: &self.blocks, prompt_tokens: self.prompt_tokens, ..Request::default() }
    }
}

/// Endpoints `10.0.x.y:8000`.
pub(crate) fn specs(endpoints: usize) -> Vec<EndpointSpec> {
    let spec = |number: usize| {
        let host = format!("10.0.{}.{}", number / 250, number % 250);
        EndpointSpec { name: host.as_str().into(), host: host.as_str().into(), port: 8000, tls: false }
    };
    (0..endpoints).map(spec).collect()
}

/// A good scrape of an endpoint that is a little busy, each differently.
fn scrape(endpoint: &Endpoint) -> Update {
    let random = trace::mix(u64::from(endpoint.slot.get()));
    let metrics = EngineMetrics {
        running: (random % 4) as u32,
        kv_usage_ratio: (random >> 8 & 0xff) as f32 / 400.0,
        ..EngineMetrics::default()
    };
    let scraped =
        Some(Arc::new(Scraped { at: NOW, metrics, in_flight_then: 0, last_booked: 0, never_shown: 0 }));
    Update::Scrape { id: endpoint.id, runtime: Runtime::Vllm, scraped }
}
