//! Simulated engines behind the real endpoint set and a policy, in one virtual time.

use std::sync::Arc;
use std::time::Duration;

use endpoints::{Booking, Endpoint, EndpointSet, EngineMetrics, Scraped, Update};
use hashbrown::HashMap;
use pool::Runtime;
use routing::Request;
use sim::engine::{Config, Engine, Event, EventKind};
use sim::replay::{Cluster, TraceRequest};

use super::policy::{Chooser, Policy};
use crate::{trace, world};

/// Tokens in an engine's KV block.
const BLOCK_TOKENS: u32 = 16;

pub(crate) struct Fleet {
    cluster: Cluster,
    set: EndpointSet,
    endpoints: Vec<Arc<Endpoint>>,
    chooser: Chooser,
    scrape_interval: Duration,
    in_flight: HashMap<u64, (Booking, Duration)>,
    outcome: Outcome,
}

/// What became of all requests.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) first_tokens: Vec<Duration>,
    pub(crate) end_to_end: Duration,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) makespan: Duration,
}

impl Fleet {
    pub(crate) fn new(config: &Config, engines: usize, policy: Policy, prefix_blocks_max: u32) -> Self {
        let set = EndpointSet::new();
        let endpoints = set.reconcile(&world::specs(engines)).added;
        Self {
            cluster: Cluster::new(config, engines, 1),
            set,
            endpoints,
            chooser: Chooser::new(policy, prefix_blocks_max),
            scrape_interval: policy.scrape_interval(),
            in_flight: HashMap::new(),
            outcome: Outcome::default(),
        }
    }

    /// Plays the whole trace, `speed` times as fast as it was recorded.
    pub(crate) fn play(mut self, trace: &[TraceRequest], speed: f64) -> Outcome {
        let mut arrivals = trace.iter().enumerate().peekable();
        let mut scrape_at = Duration::ZERO;
        let mut events = Vec::new();
        loop {
            let arrival_at = arrivals.peek().map(|(_, request)| arrival(request, speed));
            let event_at = self.cluster.next_event_at();
            if arrival_at.is_none() && event_at.is_none() {
                return self.outcome;
            }
            let now =
                [arrival_at, event_at, Some(scrape_at)].into_iter().flatten().min().unwrap_or(scrape_at);
            self.cluster.advance(now, &mut events);
            events.drain(..).for_each(|(_, event)| self.observe(&event));
            if now == scrape_at {
                self.scrape(now);
                scrape_at += self.scrape_interval;
            }
            while let Some((id, request)) = arrivals.next_if(|(_, request)| arrival(request, speed) <= now) {
                self.route(id as u64, request, now);
            }
        }
    }

    fn route(&mut self, id: u64, request: &TraceRequest, now: Duration) {
        let prefix = self.chooser.prefix_cache();
        let blocks = trace::blocks(request, 0, prefix.block_size_bytes, prefix.prefix_blocks_max as usize);
        let asked = Request { blocks: &blocks, prompt_tokens: request.input_length, ..Request::default() };
        let choice = self.chooser.choose(&asked, &self.set.snapshot(), now);
        let engine_request = request.clone().into_request(id, BLOCK_TOKENS);
        if self.cluster.submit(choice.engine, now, engine_request).is_ok() {
            let booking = self.set.book(&self.endpoints[choice.engine], choice.uncached);
            self.in_flight.insert(id, (booking, now));
            self.outcome.prompt_tokens += u64::from(request.input_length);
        }
    }

    fn observe(&mut self, event: &Event) {
        match event.kind {
            EventKind::FirstToken { cached_tokens } => {
                let Some((booking, since)) = self.in_flight.get_mut(&event.id) else { return };
                booking.first_byte();
                self.outcome.first_tokens.push(event.at - *since);
                self.outcome.cached_tokens += u64::from(cached_tokens);
            }
            EventKind::Token => {}
            EventKind::Finished { .. } => {
                let Some((_, since)) = self.in_flight.remove(&event.id) else { return };
                self.outcome.end_to_end += event.at - since;
                self.outcome.makespan = event.at;
            }
        }
    }

    fn scrape(&self, now: Duration) {
        let pages = self.cluster.engines().iter().zip(&self.endpoints);
        self.set.apply(pages.map(|(engine, endpoint)| page(engine, endpoint, now)));
    }
}

fn arrival(request: &TraceRequest, speed: f64) -> Duration {
    Duration::from_millis(request.timestamp).div_f64(speed)
}

fn page(engine: &Engine, endpoint: &Endpoint, at: Duration) -> Update {
    let metrics = EngineMetrics {
        running: engine.running() as u32,
        waiting: engine.waiting() as u32,
        kv_usage_ratio: engine.kv_usage_ratio() as f32,
        ..EngineMetrics::default()
    };
    let scraped =
        Scraped { at, metrics, in_flight_then: endpoint.ledger.requests(), last_booked: 0, never_shown: 0 };
    Update::Scrape { id: endpoint.id, runtime: Runtime::Vllm, scraped: Some(Arc::new(scraped)) }
}
