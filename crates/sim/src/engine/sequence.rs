//! A request on its way through the engine, and the step that carries it.

use std::time::Duration;

use super::{
    Config, End, Event, EventKind, Request, Stats,
    kv::{BlockId, BlockPool},
    stats::seconds,
};

/// A request on its way.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) request: Request,
    pub(super) blocks: Vec<BlockId>,
    /// Tokens whose KV is in the cache.
    pub(super) computed: u32,
    pub(super) generated: u32,
    /// Tokens computed by the step in progress.
    pub(super) scheduled: u32,
    /// Leading blocks that others can share.
    pub(super) published: usize,
    pub(super) preemptions: u32,
    pub(super) cached_tokens: u32,
    pub(super) arrived: Duration,
    pub(super) admitted: Option<Duration>,
    pub(super) first_token: Duration,
    pub(super) last_token: Duration,
}

/// A step as it is put together.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) tokens_left: u32,
    pub(super) prefill_tokens: u32,
    pub(super) decoding: u32,
    pub(super) loads: u32,
}

impl Sequence {
    /// A request that has just arrived.
    pub(super) fn new(request: Request, arrived: Duration) -> Self {
        Self {
            request,
            blocks: Vec::new(),
            computed: 0,
            generated: 0,
            scheduled: 0,
            published: 0,
            preemptions: 0,
            cached_tokens: 0,
            arrived,
            admitted: None,
            first_token: Duration::ZERO,
            last_token: Duration::ZERO,
        }
    }

    /// Prompt and what has been generated.
    pub(super) fn tokens(&self) -> u32 {
        self.request.prompt_tokens + self.generated
    }

    /// Tokens whose KV is still to be computed before the next one comes.
    pub(super) fn missing(&self) -> u32 {
        self.tokens() - self.computed
    }

    /// Gets blocks for `want` more tokens. All or none.
    pub(super) fn grow(&mut self, want: u32, block_size: u32, pool: &mut BlockPool) -> bool {
        let needed = (self.computed + want).div_ceil(block_size).saturating_sub(self.blocks.len() as u32);
        pool.allocate(needed, &mut self.blocks)
    }

    /// Lets others share the blocks that are now full.
    pub(super) fn publish(&mut self, config: &Config, pool: &mut BlockPool) {
        let full = (self.computed / config.block_size) as usize;
        let known = full.min(self.request.block_hashes.len());
        if config.enable_prefix_caching {
            for index in self.published..known {
                pool.publish(self.blocks[index], self.request.block_hashes[index]);
            }
            self.published = self.published.max(known);
        }
    }

    /// Appends one token.
    pub(super) fn generate(&mut self, now: Duration, stats: &mut Stats, events: &mut Vec<Event>) {
        self.generated += 1;
        stats.generation_tokens += 1;
        let kind = if self.generated == 1 {
            self.first_token = now;
            stats.prompt_tokens += u64::from(self.request.prompt_tokens);
            stats.cached_tokens += u64::from(self.cached_tokens);
            stats.first_token.observe(seconds(self.arrived, now), 1);
            EventKind::FirstToken { cached_tokens: self.cached_tokens }
        } else {
            stats.inter_token.observe(seconds(self.last_token, now), 1);
            EventKind::Token
        };
        self.last_token = now;
        events.push(Event { at: now, id: self.request.id, kind });
    }

    /// Counts a sequence that has ended by itself.
    pub(super) fn count(&self, now: Duration, stats: &mut Stats) {
        match self.request.end {
            End::Stop => stats.finished_stop += 1,
            End::Length => stats.finished_length += 1,
        }
        let admitted = self.admitted.unwrap_or(self.arrived);
        let first_token = if self.generated == 0 { now } else { self.first_token };
        let decode = seconds(first_token, now);
        stats.request.observe(seconds(self.arrived, now), 1);
        stats.queue.observe(seconds(self.arrived, admitted), 1);
        stats.inference.observe(seconds(admitted, now), 1);
        stats.prefill.observe(seconds(admitted, first_token), 1);
        stats.decode.observe(decode, 1);
        if self.generated > 1 {
            stats.per_output_token.observe(decode / f64::from(self.generated - 1), 1);
        }
        stats.request_prompt_tokens.observe(f64::from(self.request.prompt_tokens), 1);
        stats.request_generation_tokens.observe(f64::from(self.generated), 1);
        let computed = self.request.prompt_tokens - self.cached_tokens;
        stats.request_prefill_computed_tokens.observe(f64::from(computed), 1);
        stats.request_preemptions.observe(f64::from(self.preemptions), 1);
    }
}

impl Step {
    /// Gives `sequence` `want` of the step's tokens.
    pub(super) fn schedule(&mut self, sequence: &mut Sequence, want: u32) {
        let decodes = sequence.generated > 0 && sequence.missing() == 1;
        if decodes {
            self.decoding += 1;
        } else {
            self.prefill_tokens += want;
        }
        sequence.scheduled = want;
        self.tokens_left -= want;
    }
}
