//! What it costs to send a request to an endpoint, in one unit: prompt tokens that the endpoint would have to compute
//! before the request's first token comes.
//!
//! One unit instead of weighted ranks: a match of 30 tokens saves 30 tokens and cannot outweigh a request in flight,
//! a match of 8,000 tokens is worth a queue, and no weight has to be tuned to make it so. The terms are sums of
//! integers, so equal endpoints cost exactly the same.

use endpoints::{Entry, Load, LoadStanding};

/// A request in flight shares the engine's steps with ours: each is worth this many tokens.
pub(crate) const REQUEST_TOKENS: u32 = 256;
/// A waiting request has to be let in before ours, on top of being in flight.
pub(crate) const WAITING_TOKENS: u32 = 1024;
/// A full KV cache against an empty one, below the knee: what is cached there is a little more likely to go.
pub(crate) const KV_TOKENS: u32 = 1024;
/// Above this share of the KV cache engines begin to preempt requests and to make new ones wait.
pub(crate) const KV_KNEE_RATIO: f32 = 0.8;
/// What the way from the knee to a full cache costs.
pub(crate) const KV_FULL_TOKENS: u32 = 16_384;
/// An adapter that is not active yet is read and put in place first: some 100 ms, at ten to twenty tokens a ms.
pub(crate) const ADAPTER_LOAD_TOKENS: u32 = 2048;
/// With all adapter places taken the request waits until another adapter's requests have ended.
pub(crate) const ADAPTER_WAIT_TOKENS: u32 = 8192;
/// What it costs not to know an endpoint's load, on top of taking it for as loaded as the most loaded known one.
pub(crate) const UNKNOWN_TOKENS: u32 = 4 * REQUEST_TOKENS;
/// Prompt bytes to a token: English text and code on today's tokenizers; the same estimate as the reference's
/// block of 64 bytes for 16 tokens.
pub(crate) const BYTES_PER_TOKEN: u32 = 4;

/// The estimated work ahead of a request on one endpoint, by scorer. All in prompt tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// The request's own prompt, less what the endpoint's prefix cache holds of it.
    pub uncached: u32,
    /// Prompts booked there whose answers have not begun.
    pub prefill: u32,
    /// Requests in flight there.
    pub in_flight: u32,
    /// Requests in the engine's waiting queue.
    pub waiting: u32,
    /// Use of the KV cache.
    pub kv: u32,
    /// Making the request's LoRA adapter active.
    pub adapter: u32,
    /// Not knowing the load.
    pub unknown: u32,
}

/// The largest of each measure among the endpoints whose load is known: what an unknown one is taken for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WorstKnown {
    in_flight: u32,
    waiting: u32,
    kv: u32,
}

impl Cost {
    /// The sum of all terms.
    #[must_use]
    #[inline]
    pub fn total(&self) -> u64 {
        [self.uncached, self.prefill, self.in_flight, self.waiting, self.kv, self.adapter, self.unknown]
            .iter()
            .map(|&tokens| u64::from(tokens))
            .sum()
    }

    /// The cost of the load alone; the terms of the request itself are left at zero.
    #[inline]
    pub(crate) fn of_load(load: &Load, worst: &WorstKnown) -> Self {
        let mut cost = Self {
            prefill: load.prefill_tokens,
            in_flight: load.in_flight.saturating_mul(REQUEST_TOKENS),
            waiting: load.waiting.saturating_mul(WAITING_TOKENS),
            kv: kv_tokens(load.kv_usage_ratio),
            ..Self::default()
        };
        if load.standing == LoadStanding::Unknown {
            cost.in_flight = cost.in_flight.max(worst.in_flight);
            cost.waiting = cost.waiting.max(worst.waiting);
            cost.kv = worst.kv;
            cost.unknown = UNKNOWN_TOKENS;
        }
        cost
    }
}

impl WorstKnown {
    #[inline]
    pub(crate) fn see(&mut self, load: &Load) {
        if load.standing == LoadStanding::Fresh {
            let cost = Cost::of_load(load, self);
            self.in_flight = self.in_flight.max(cost.in_flight);
            self.waiting = self.waiting.max(cost.waiting);
            self.kv = self.kv.max(cost.kv);
        }
    }
}

/// What it takes until the adapter `model` is active on the endpoint; nothing if it is, or is the base model.
pub(crate) fn adapter_tokens(entry: &Entry, model: &str) -> u32 {
    let Some(metrics) = entry.scraped.as_deref().map(|scraped| &scraped.metrics) else {
        return ADAPTER_LOAD_TOKENS;
    };
    if metrics.model_name.as_deref() == Some(model) {
        return 0;
    }
    match &metrics.lora {
        Some(lora) if lora.active.iter().any(|active| **active == *model) => 0,
        Some(lora) if lora.active.len() >= lora.max as usize => ADAPTER_WAIT_TOKENS,
        _ => ADAPTER_LOAD_TOKENS,
    }
}

/// A gentle slope, and a steep one above the knee. What is no ratio counts as full.
#[inline]
fn kv_tokens(usage_ratio: f32) -> u32 {
    let usage = if (0.0..=1.0).contains(&usage_ratio) { usage_ratio } else { 1.0 };
    let above_knee = (usage - KV_KNEE_RATIO).max(0.0) / (1.0 - KV_KNEE_RATIO);
    (usage * KV_TOKENS as f32 + above_knee * KV_FULL_TOKENS as f32) as u32
}
