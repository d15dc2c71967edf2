//! Many engines in one virtual time, and traces to feed them: for benchmarks of routing that need no server.
//!
//! The caller owns the loop, because what happens between two events is the caller's to decide:
//!
//! ```
//! use std::time::Duration;
//! use sim::{engine::{Config, Event}, replay::{Cluster, TraceRequest}};
//!
//! let mut cluster = Cluster::new(&Config::default(), 2, 7);
//! let mut events: Vec<(usize, Event)> = Vec::new();
//! let line = r#"{"timestamp": 0, "input_length": 700, "output_length": 3, "hash_ids": [4, 9]}"#;
//! let request: TraceRequest = serde_json::from_str(line)?;
//! let arrives_at = Duration::from_millis(request.timestamp);
//! cluster.advance(arrives_at, &mut events);
//! cluster.submit(1, arrives_at, request.into_request(0, 16))?;
//! while let Some(at) = cluster.next_event_at() {
//!     cluster.advance(at, &mut events);
//! }
//! assert_eq!(events.len(), 4, "three tokens and the end");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::engine::{Config, End, Engine, Event, Request, SubmitError};

/// Tokens of prompt that one id of a Mooncake trace stands for.
pub const TRACE_BLOCK_TOKENS: u32 = 512;

/// Engines that share a clock and nothing else.
#[derive(Debug)]
pub struct Cluster {
    engines: Vec<Engine>,
    scratch: Vec<Event>,
}

impl Cluster {
    /// `count` idle engines of one configuration, seeded `seed`, `seed + 1` and so on.
    pub fn new(config: &Config, count: usize, seed: u64) -> Self {
        let engines = (0..count as u64).map(|index| Engine::new(config.clone(), seed.wrapping_add(index)));
        Self { engines: engines.collect(), scratch: Vec::new() }
    }

    /// The engines, to look at their load and caches.
    pub fn engines(&self) -> &[Engine] {
        &self.engines
    }

    /// Submits to engine `index`, which must be below the count; see [`Engine::submit`].
    pub fn submit(&mut self, index: usize, now: Duration, request: Request) -> Result<(), SubmitError> {
        self.engines[index].submit(now, request)
    }

    /// Cancels on engine `index`, which must be below the count; see [`Engine::cancel`].
    pub fn cancel(&mut self, index: usize, now: Duration, id: u64) -> bool {
        self.engines[index].cancel(now, id)
    }

    /// The earliest time at which any engine has something to do; `None` when all are idle.
    pub fn next_event_at(&self) -> Option<Duration> {
        self.engines.iter().filter_map(Engine::next_event_at).min()
    }

    /// Moves all engines to `now` and appends what happened with the engine's index, by time, then by index.
    pub fn advance(&mut self, now: Duration, events: &mut Vec<(usize, Event)>) {
        let begin = events.len();
        for (index, engine) in self.engines.iter_mut().enumerate() {
            engine.advance(now, &mut self.scratch);
            events.extend(self.scratch.drain(..).map(|event| (index, event)));
        }
        events[begin..].sort_by_key(|(_, event)| event.at);
    }
}

/// One line of a Mooncake trace (FAST'25): no text, but which prefixes are equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRequest {
    /// Arrival since the trace began, in milliseconds.
    pub timestamp: u64,
    /// Prompt, in tokens.
    pub input_length: u32,
    /// Answer, in tokens.
    pub output_length: u32,
    /// One id per [`TRACE_BLOCK_TOKENS`] tokens of prompt; an id stands for everything up to there.
    pub hash_ids: Vec<u64>,
}

impl TraceRequest {
    /// The request for an engine whose blocks hold `block_size` tokens (a divisor of 512, or blocks straddle ids and
    /// count as the id they begin in). The answer's blocks are not in the trace and are not shared.
    pub fn into_request(self, id: u64, block_size: u32) -> Request {
        let block_size = block_size.max(1);
        let blocks = self.input_length / block_size;
        let hash = |block: u32| {
            let trace_block =
                (u64::from(block) * u64::from(block_size) / u64::from(TRACE_BLOCK_TOKENS)) as usize;
            let id = self.hash_ids.get(trace_block)?;
            Some(XxHash3_64::oneshot_with_seed(*id, &block.to_le_bytes()))
        };
        Request {
            id,
            prompt_tokens: self.input_length,
            output_tokens: self.output_length,
            block_hashes: (0..blocks).map_while(hash).collect(),
            adapter: None,
            end: End::Stop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EventKind;

    fn trace(input_length: u32, hash_ids: &[u64]) -> TraceRequest {
        TraceRequest { timestamp: 0, input_length, output_length: 2, hash_ids: hash_ids.to_vec() }
    }

    #[test]
    fn equal_ids_are_equal_blocks_and_the_input_bounds_them() {
        let one = trace(1100, &[1, 2, 3]).into_request(0, 16);
        let other = trace(1100, &[1, 2, 9]).into_request(1, 16);
        assert_eq!(one.block_hashes.len(), 68, "1100 / 16");
        assert_eq!(one.block_hashes[..64], other.block_hashes[..64]);
        assert!(one.block_hashes[64..].iter().zip(&other.block_hashes[64..]).all(|(a, b)| a != b));
        assert_eq!(trace(1100, &[1]).into_request(0, 16).block_hashes.len(), 32, "ids run out first");
    }

    #[test]
    fn a_warm_engine_answers_a_long_prompt_sooner_than_a_cold_one() {
        let mut cluster = Cluster::new(&Config::default(), 2, 1);
        let mut events = Vec::new();
        let mut run = |cluster: &mut Cluster, index, at, id| {
            cluster
                .submit(index, at, trace(6000, &(0..12).collect::<Vec<_>>()).into_request(id, 16))
                .unwrap();
            events.clear();
            while let Some(at) = cluster.next_event_at() {
                cluster.advance(at, &mut events);
            }
            let first =
                events.iter().find(|(_, event)| matches!(event.kind, EventKind::FirstToken { .. })).unwrap();
            first.1.at - at
        };
        let cold = run(&mut cluster, 0, Duration::ZERO, 0);
        let warm = run(&mut cluster, 0, Duration::from_secs(10), 1);
        let elsewhere = run(&mut cluster, 1, Duration::from_secs(20), 2);
        assert!(warm * 10 < cold, "{warm:?} and {cold:?}");
        assert!(elsewhere * 10 > cold * 9, "the other engine knows nothing of it: {elsewhere:?}");
    }

    #[test]
    fn events_of_all_engines_come_in_order_of_time() {
        let mut cluster = Cluster::new(&Config::default(), 3, 1);
        for id in 0..9 {
            cluster
                .submit(id as usize % 3, Duration::from_millis(id), trace(100, &[id]).into_request(id, 16))
                .unwrap();
        }
        let mut events = Vec::new();
        cluster.advance(Duration::from_secs(60), &mut events);
        assert!(events.is_sorted_by_key(|(_, event)| event.at));
        assert_eq!(events.len(), 9 * 3);
        assert_eq!(cluster.next_event_at(), None);
    }
}
