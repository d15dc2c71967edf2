//! What it costs to send a request to an endpoint, in one unit: prompt tokens that the endpoint would have to compute
//! before the request's first token comes.
//!
//! One unit instead of weighted ranks: a match of 30 tokens saves 30 tokens and cannot outweigh a request in flight,
//! a match of 8,000 tokens is worth a queue, and no weight has to be tuned to make it so. The terms are sums of
//! integers, so equal endpoints cost exactly the same.

use endpoints::{Entry, Load, LoadStanding};
use pool::PrefixCachePolicy;

/// A request in flight shares the engine's steps with ours. From 0 to 1,024 the Mooncake replays differ by 4 % at most;
/// more costs affinity (questions about documents, 14 a second: first token after 0.36 s at 0, 0.42 s at 256, 0.52 s at
/// 1,024), less leaves bursts of prompts of unlike length uneven.
const REQUEST_TOKENS: u64 = 256;
/// A waiting request has to be let in before ours, on top of being in flight. What waits by our own doing is counted as
/// prefill already, so this is for the load of others; the Mooncake replays, which have none, are the same from 0 to 4,096.
const WAITING_TOKENS: u64 = 1024;
/// A full KV cache against an empty one, below the knee: what is cached there is a little more likely to go. Four
/// requests' worth, as a tie-breaker; the Mooncake replays are the same without it.
const KV_TOKENS: f32 = 1024.0;
/// Above this share of the KV cache engines begin to preempt requests and to make new ones wait.
const KV_KNEE_RATIO: f32 = 0.8;
/// What the whole cache would cost above the knee, so that the way from the knee to full costs 16,384.
const KV_STEEP_TOKENS: f32 = 16_384.0 / (1.0 - KV_KNEE_RATIO);
/// An adapter that is not active yet is read and put in place first: some 100 ms, at ten to twenty tokens a ms.
const ADAPTER_LOAD_TOKENS: u32 = 2048;
/// With all adapter places taken the request waits until another adapter's requests have ended.
const ADAPTER_WAIT_TOKENS: u32 = 8192;
/// What it costs not to know an endpoint's load, on top of taking it for as loaded as the most loaded known one.
const UNKNOWN_TOKENS: u64 = 4 * REQUEST_TOKENS;
/// Prompt bytes to a token: English text and code on today's tokenizers; the same estimate as the reference's
/// block of 64 bytes for 16 tokens.
pub const BYTES_PER_TOKEN: u64 = 4;
/// A match of as many blocks as are ever looked at was cut short by that limit, and most likely goes on: it counts for
/// this many times its length. In the Mooncake trace a prompt whose first 2,048 tokens were seen before shares 77 % of
/// the rest as well, half of them over 3.75 times that length.
const CUT_SHORT_FACTOR: u64 = 3;

/// The estimated work ahead of a request on one endpoint, by scorer. All in prompt tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// The request's own prompt, less what the endpoint's prefix cache holds of it.
    pub uncached: u64,
    /// Prompts booked there whose answers have not begun.
    pub prefill: u64,
    /// Requests in flight there.
    pub in_flight: u64,
    /// Requests in the engine's waiting queue.
    pub waiting: u64,
    /// Use of the KV cache.
    pub kv: u64,
    /// Making the request's LoRA adapter active.
    pub adapter: u64,
    /// Not knowing the load: what lifts it to the worst load that is known, and a little more.
    pub unknown: u64,
}

/// The largest of each measure among endpoints whose load is known: what an unknown one is taken for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WorstKnown {
    in_flight: u32,
    waiting: u32,
    kv_usage_ratio: f32,
}

impl Cost {
    /// The cost of a load as it was read; the other terms are zero.
    #[inline]
    pub(crate) fn of_load(load: &Load) -> Self {
        Self {
            prefill: load.prefill_tokens.into(),
            in_flight: u64::from(load.in_flight) * REQUEST_TOKENS,
            waiting: u64::from(load.waiting) * WAITING_TOKENS,
            kv: kv_tokens(load.kv_usage_ratio),
            ..Self::default()
        }
    }

    /// The sum of all terms.
    #[must_use]
    #[inline]
    pub fn total(&self) -> u64 {
        let Self { uncached, prefill, in_flight, waiting, kv, adapter, unknown } = *self;
        uncached + prefill + in_flight + waiting + kv + adapter + unknown
    }
}

impl WorstKnown {
    /// The worst of those `loads` that are known.
    pub(crate) fn of<'a>(loads: impl Iterator<Item = &'a Load>) -> Self {
        loads.filter(|load| load.standing == LoadStanding::Fresh).fold(Self::default(), |worst, load| Self {
            in_flight: worst.in_flight.max(load.in_flight),
            waiting: worst.waiting.max(load.waiting),
            kv_usage_ratio: worst.kv_usage_ratio.max(load.kv_usage_ratio),
        })
    }

    /// What is added to the cost of an unknown load: unknown is never the emptiest.
    pub(crate) fn unknown_tokens(&self, load: &Load) -> u64 {
        let worst = Load {
            in_flight: self.in_flight.max(load.in_flight),
            waiting: self.waiting.max(load.waiting),
            kv_usage_ratio: self.kv_usage_ratio.max(load.kv_usage_ratio),
            ..*load
        };
        UNKNOWN_TOKENS + Cost::of_load(&worst).total().saturating_sub(Cost::of_load(load).total())
    }
}

/// What a match of so many blocks is expected to save.
#[inline]
pub(crate) fn matched_tokens(blocks: u32, policy: &PrefixCachePolicy) -> u64 {
    let tokens = u64::from(blocks) * u64::from(policy.block_size_bytes) / BYTES_PER_TOKEN;
    if blocks < policy.prefix_blocks_max { tokens } else { CUT_SHORT_FACTOR * tokens }
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

/// A gentle slope, and a steep one above the knee. What is no number counts as full.
#[inline]
fn kv_tokens(usage_ratio: f32) -> u64 {
    // `max` prefers the operand that is a number.
    let used = 1.0 - (1.0 - usage_ratio).max(0.0);
    let above_knee = (used - KV_KNEE_RATIO).max(0.0);
    u64::from((used * KV_TOKENS + above_knee * KV_STEEP_TOKENS) as u32)
}
