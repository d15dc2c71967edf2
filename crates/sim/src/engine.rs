//! One inference engine in virtual time: continuous batching, chunked prefill, a paged KV cache with prefix reuse.
//!
//! Pure and deterministic: no clock, no threads, no I/O. Time is a [`Duration`] since the engine began and only moves
//! when the caller says so; the same configuration, seed and calls give the same events.
//!
//! The engine works in *steps*, as vLLM's v1 scheduler does. At the start of a step running sequences get their
//! tokens first, oldest first, under the step's token budget; one that finds no KV block throws out the youngest,
//! which is computed again later. Then waiting requests are admitted in order of arrival, each starting behind the
//! longest prefix that the cache holds. At the end of the step every sequence whose tokens are all computed has one
//! token more. A step costs, in time:
//!
//! ```text
//! step_base + prefill tokens x prefill_per_token + decoding sequences x decode_per_seq + adapters loaded x lora_load
//! ```
//!
//! Invariants: every request submitted ends exactly once, as finished or cancelled; a block is referred to only by
//! running sequences; while there is work there is a next event.
//!
//! One difference from vLLM is deliberate: a block can be shared from the end of the step that computes it, where
//! vLLM lets a later request of the same step share it already.

mod config;
mod kv;
mod lora;
mod sequence;
mod stats;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

pub use self::{
    config::Config,
    lora::LoraState,
    stats::{Histogram, Stats},
};
use self::{
    kv::BlockPool,
    lora::{Residence, Slots},
    sequence::{Sequence, Step},
};

/// What a request asks of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the caller; names the request in events. Not checked: two requests in flight with one id cannot be
    /// told apart.
    pub id: u64,
    /// Length of the prompt in tokens; zero counts as one.
    pub prompt_tokens: u32,
    /// Tokens that will be generated, exactly. Zero (an embedding) ends when the prompt is computed.
    pub output_tokens: u32,
    /// Chained hashes of the full blocks of the prompt and then of the output, as far as the caller knows them:
    /// equal hashes mean equal content up to there. Blocks beyond the last hash are never shared.
    pub block_hashes: Vec<u64>,
    /// The LoRA adapter, none for the base model. (Its name should also be part of the hashes.)
    pub adapter: Option<Arc<str>>,
    /// Why the output ends where it does, for the counters.
    pub end: End,
}

/// Why a request's output ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Stop,
    /// At the limit that the client set.
    Length,
}

/// Something that happened to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Event {
    /// When, since the engine began.
    pub at: Duration,
    /// To which request.
    pub id: u64,
    /// What.
    pub kind: EventKind,
}

/// What happened to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The first token is there. `cached_tokens` of the prompt did not have to be computed.
    FirstToken {
        /// Prompt tokens that came from the cache.
        cached_tokens: u32,
    },
    /// One token more.
    Token,
    /// The last token has come (an event of its own, after the token's).
    Finished {
        /// Prompt tokens that came from the cache.
        cached_tokens: u32,
    },
}

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Prompt and output are more than the model or the KV cache holds; will never fit.
    #[error("{tokens} tokens of prompt and output do not fit into a context of {tokens_max}")]
    TooLong {
        /// Prompt and output of the request.
        tokens: u64,
        /// What fits.
        tokens_max: u32,
    },
    /// As many requests wait as may; try again later.
    #[error("{waiting} requests wait already, which is the most")]
    QueueFull {
        /// Requests that wait.
        waiting: usize,
    },
}

/// One engine. See the module for the model.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    pool: BlockPool,
    slots: Slots,
    /// In order of admission, oldest first.
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    /// Of the waiting, those passed over for want of an adapter slot when the last step began.
    deferred: usize,
    clock: Duration,
    /// When the step in progress ends.
    step_ends_at: Option<Duration>,
    /// Happened, and not yet handed to the caller.
    events: Vec<Event>,
    stats: Stats,
    lora_history: Vec<LoraState>,
    /// Whether any request ever asked for an adapter.
    lora_used: bool,
    random: u64,
}

impl Engine {
    /// An idle engine with an empty cache at time zero. `seed` decides the jitter and nothing else.
    pub fn new(config: Config, seed: u64) -> Self {
        let config = config.sound();
        Self {
            pool: BlockPool::new(config.num_gpu_blocks),
            slots: Slots::new(config.max_loras),
            stats: Stats::new(config.max_model_len),
            running: Vec::new(),
            waiting: VecDeque::new(),
            deferred: 0,
            clock: Duration::ZERO,
            step_ends_at: None,
            events: Vec::new(),
            lora_history: Vec::new(),
            lora_used: false,
            random: seed,
            config,
        }
    }

    /// Puts a request into the queue at `now` (never before the latest time the engine was told).
    pub fn submit(&mut self, now: Duration, mut request: Request) -> Result<(), SubmitError> {
        // Requests of one instant share a step, so time only runs when it has moved.
        if now > self.clock {
            self.run_until(now);
        }
        request.prompt_tokens = request.prompt_tokens.max(1);
        let tokens = u64::from(request.prompt_tokens) + u64::from(request.output_tokens);
        if tokens > u64::from(self.config.max_model_len) {
            return Err(SubmitError::TooLong { tokens, tokens_max: self.config.max_model_len });
        }
        if self.waiting.len() >= self.config.max_num_queued_reqs as usize {
            self.stats.queue_refusals += 1;
            return Err(SubmitError::QueueFull { waiting: self.waiting.len() });
        }
        self.lora_used |= request.adapter.is_some();
        self.waiting.push_back(Sequence::new(request, self.clock));
        Ok(())
    }

    /// Takes a request out and frees its blocks at once; no event follows. Returns whether it was in flight.
    pub fn cancel(&mut self, now: Duration, id: u64) -> bool {
        if now > self.clock {
            self.run_until(now);
        }
        let cancelled = if let Some(at) = self.running.iter().position(|sequence| sequence.request.id == id) {
            let mut sequence = self.running.remove(at);
            self.pool.release(&mut sequence.blocks);
            true
        } else if let Some(at) = self.waiting.iter().position(|sequence| sequence.request.id == id) {
            self.waiting.remove(at);
            true
        } else {
            false
        };
        self.stats.finished_abort += u64::from(cancelled);
        cancelled
    }

    /// When [`Engine::advance`] has something to do next; `None` while idle.
    pub fn next_event_at(&self) -> Option<Duration> {
        match self.step_ends_at {
            _ if !self.events.is_empty() => Some(self.clock),
            None if self.has_work() => Some(self.clock),
            ends_at => ends_at,
        }
    }

    /// Moves time to `now` and appends what happened up to then, in order of time, to `events`.
    pub fn advance(&mut self, now: Duration, events: &mut Vec<Event>) {
        self.run_until(now.max(self.clock));
        events.append(&mut self.events);
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Sequences in the batch.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Requests in the queue.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Of the waiting, those that wait for an adapter slot rather than for room.
    pub fn waiting_deferred(&self) -> usize {
        self.deferred.min(self.waiting.len())
    }

    /// KV blocks that running sequences refer to.
    pub fn kv_blocks_used(&self) -> u32 {
        self.pool.total() - self.pool.free()
    }

    /// The same as a share of all blocks, 0 to 1. Blocks that are only cached count as free.
    pub fn kv_usage_ratio(&self) -> f64 {
        f64::from(self.kv_blocks_used()) / f64::from(self.pool.total())
    }

    /// Leading blocks of `hashes` that a request arriving now would find in the cache.
    pub fn cached_blocks(&self, hashes: &[u64]) -> u32 {
        self.pool.matched(hashes).blocks
    }

    /// Counters and histograms since the engine began.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Which adapters ran and waited, and when last (at most 64 combinations); empty until one is asked for.
    pub fn lora_history(&self) -> &[LoraState] {
        &self.lora_history
    }

    fn has_work(&self) -> bool {
        !(self.running.is_empty() && self.waiting.is_empty())
    }

    fn run_until(&mut self, now: Duration) {
        loop {
            match self.step_ends_at {
                Some(ends_at) if ends_at <= now => {
                    self.clock = ends_at;
                    self.finish_step();
                    self.start_step();
                }
                Some(_) => break,
                None => {
                    self.start_step();
                    if self.step_ends_at.is_none() {
                        break;
                    }
                }
            }
        }
        self.clock = now;
    }

    fn start_step(&mut self) {
        self.step_ends_at = None;
        if self.has_work() {
            let mut step = Step {
                tokens_left: self.config.max_num_batched_tokens,
                prefill_tokens: 0,
                decoding: 0,
                loads: 0,
            };
            let room = self.schedule_running(&mut step);
            if room {
                self.admit(&mut step);
            }
            let tokens = step.prefill_tokens + step.decoding;
            if tokens > 0 {
                self.stats.step_tokens.observe(f64::from(tokens), 1);
                self.step_ends_at = Some(self.clock + self.cost(&step));
            }
        }
        self.note_adapters();
    }

    /// Gives running sequences their tokens, oldest first. Returns whether none had to be thrown out.
    fn schedule_running(&mut self, step: &mut Step) -> bool {
        let (mut index, mut room) = (0, true);
        while index < self.running.len() && step.tokens_left > 0 {
            let want = self.running[index].missing().min(step.tokens_left);
            while let Some(sequence) = self.running.get_mut(index)
                && !sequence.grow(want, self.config.block_size, &mut self.pool)
            {
                room = false;
                self.preempt_youngest();
            }
            if let Some(sequence) = self.running.get_mut(index) {
                step.schedule(sequence, want);
            }
            index += 1;
        }
        room
    }

    fn preempt_youngest(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            self.pool.release(&mut sequence.blocks);
            (sequence.computed, sequence.scheduled, sequence.published) = (0, 0, 0);
            sequence.preemptions += 1;
            self.stats.preemptions += 1;
            self.waiting.push_front(sequence);
        }
    }

    /// Admits waiting requests in order of arrival until tokens, sequences or blocks run out. One whose adapter finds
    /// no slot is passed over.
    fn admit(&mut self, step: &mut Step) {
        let mut adapters = adapters_of(self.running.iter());
        let mut deferred = VecDeque::new();
        while step.tokens_left > 0 && self.running.len() < self.config.max_num_seqs as usize {
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            let adapter = sequence.request.adapter.clone();
            let residence =
                adapter.as_ref().map_or(Residence::Ready, |adapter| self.slots.residence(adapter, &adapters));
            if residence == Residence::Full {
                deferred.push_back(sequence);
                continue;
            }
            if !self.place(&mut sequence, step) {
                self.waiting.push_front(sequence);
                break;
            }
            if let Some(adapter) = adapter {
                self.slots.take(&adapter, &adapters);
                step.loads += u32::from(residence == Residence::Loadable);
                if !adapters.contains(&adapter) {
                    adapters.push(adapter);
                }
            }
            self.running.push(sequence);
        }
        self.deferred = deferred.len();
        while let Some(sequence) = deferred.pop_back() {
            self.waiting.push_front(sequence);
        }
    }

    /// Finds blocks for the cached prefix and the first chunk of a waiting sequence. All or nothing.
    fn place(&mut self, sequence: &mut Sequence, step: &mut Step) -> bool {
        let block_size = self.config.block_size;
        let tokens = sequence.tokens();
        // The last token is always computed: its logits give the next one.
        let usable = match self.config.enable_prefix_caching {
            true => sequence.request.block_hashes.len().min(((tokens - 1) / block_size) as usize),
            false => 0,
        };
        let prefix = &sequence.request.block_hashes[..usable];
        let found = self.pool.matched(prefix);
        let cached = found.blocks * block_size;
        let want = (tokens - cached).min(step.tokens_left);
        let needed = (cached + want).div_ceil(block_size) - found.blocks;
        if needed + found.free > self.pool.free() {
            return false;
        }
        self.pool.share(prefix, &mut sequence.blocks);
        self.pool.allocate(needed, &mut sequence.blocks);
        (sequence.computed, sequence.published) = (cached, found.blocks as usize);
        if sequence.admitted.is_none() {
            sequence.admitted = Some(self.clock);
            sequence.cached_tokens = cached;
            self.stats.prefix_queries += u64::from(tokens);
            self.stats.prefix_hits += u64::from(cached);
        }
        step.schedule(sequence, want);
        true
    }

    fn finish_step(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            sequence.computed += std::mem::take(&mut sequence.scheduled);
            sequence.publish(&self.config, &mut self.pool);
            if sequence.missing() == 0 {
                if sequence.request.output_tokens > 0 {
                    sequence.generate(self.clock, &mut self.stats, &mut self.events);
                }
                if sequence.generated == sequence.request.output_tokens {
                    let sequence = self.running.remove(index);
                    self.finish(sequence);
                    continue;
                }
            }
            index += 1;
        }
    }

    fn finish(&mut self, mut sequence: Sequence) {
        self.pool.release(&mut sequence.blocks);
        sequence.count(self.clock, &mut self.stats);
        let kind = EventKind::Finished { cached_tokens: sequence.cached_tokens };
        self.events.push(Event { at: self.clock, id: sequence.request.id, kind });
    }

    fn cost(&mut self, step: &Step) -> Duration {
        let config = &self.config;
        let jitter = 1.0 + config.jitter_ratio * (2.0 * next_unit(&mut self.random) - 1.0);
        let us = config.step_base_us
            + f64::from(step.prefill_tokens) * config.prefill_us_per_token
            + f64::from(step.decoding) * config.decode_us_per_seq
            + f64::from(step.loads) * config.lora_load_ms * 1_000.0;
        // At least a microsecond, so that time moves; at most a year, so that it never overflows.
        Duration::from_nanos((us * jitter / config.speed * 1_000.0).clamp(1_000.0, 3.2e16) as u64)
    }

    fn note_adapters(&mut self) {
        if !self.lora_used {
            return;
        }
        let sorted =
            |adapters: Vec<Arc<str>>| adapters.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let running = sorted(adapters_of(self.running.iter()));
        let waiting = sorted(adapters_of(self.waiting.iter()));
        lora::remember(&mut self.lora_history, LoraState { running, waiting, at: self.clock });
    }
}

/// Each adapter of `sequences` once, in order of first use.
fn adapters_of<'a>(sequences: impl Iterator<Item = &'a Sequence>) -> Vec<Arc<str>> {
    let mut adapters: Vec<Arc<str>> = Vec::new();
    for adapter in sequences.filter_map(|sequence| sequence.request.adapter.as_ref()) {
        if !adapters.contains(adapter) {
            adapters.push(adapter.clone());
        }
    }
    adapters
}

/// The next number of the splitmix64 sequence, as a fraction in `0..1`.
fn next_unit(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}
