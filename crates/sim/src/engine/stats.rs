//! What an engine counts, in the buckets that vLLM prints.

use std::time::Duration;

/// Bounds of request-long times, in seconds.
const REQUEST_SECONDS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
/// Bounds of the time to the first token, in seconds.
const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Bounds of the time between tokens, in seconds.
const TOKEN_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Bounds of the tokens in a step.
const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
/// Bounds of the preemptions of a request.
const PREEMPTIONS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];

/// Values in buckets with inclusive upper bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Upper bounds, ascending; what is above the last goes to an unnamed bucket.
    pub bounds: Vec<f64>,
    /// Values per bucket, not cumulative; one more than there are bounds.
    pub counts: Vec<u64>,
    /// Sum of the values.
    pub sum: f64,
}

impl Histogram {
    fn new(bounds: &[f64]) -> Self {
        Self { bounds: bounds.to_vec(), counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// Bounds 1, 2, 5, 10, 20, 50 … up to `value_max`, as vLLM makes them for token counts.
    fn one_two_five(value_max: u32) -> Self {
        let steps = (0..).flat_map(|power| [1_u64, 2, 5].map(|digit| digit * 10_u64.pow(power)));
        let bounds: Vec<f64> =
            steps.take_while(|bound| *bound <= u64::from(value_max)).map(|bound| bound as f64).collect();
        Self::new(&bounds)
    }

    /// Counts `value` `times` times.
    pub fn observe(&mut self, value: f64, times: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] += times;
        self.sum += value * times as f64;
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Counters and histograms since the engine began. Times are the engine's own, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Sequences thrown out of the KV cache to make room, to be computed again.
    pub preemptions: u64,
    /// Requests refused because the queue was full.
    pub queue_refusals: u64,
    /// Prompt tokens of requests that have got their first token, cached ones included.
    pub prompt_tokens: u64,
    /// Those of them that came from the cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Requests that ended by themselves.
    pub finished_stop: u64,
    /// Requests that ended at their limit.
    pub finished_length: u64,
    /// Requests whose client went away.
    pub finished_abort: u64,
    /// Prompt tokens per finished request.
    pub request_prompt_tokens: Histogram,
    /// Generated tokens per finished request.
    pub request_generation_tokens: Histogram,
    /// Prompt tokens computed, not cached, per finished request.
    pub request_prefill_computed_tokens: Histogram,
    /// Preemptions per finished request.
    pub request_preemptions: Histogram,
    /// Tokens per step.
    pub step_tokens: Histogram,
    /// Arrival to first token.
    pub first_token: Histogram,
    /// Token to token.
    pub inter_token: Histogram,
    /// Mean time per output token after the first, per finished request.
    pub per_output_token: Histogram,
    /// Arrival to last token.
    pub request: Histogram,
    /// Arrival to admission.
    pub queue: Histogram,
    /// Admission to last token.
    pub inference: Histogram,
    /// Admission to first token.
    pub prefill: Histogram,
    /// First to last token.
    pub decode: Histogram,
}

impl Stats {
    pub(super) fn new(max_model_len: u32) -> Self {
        let tokens = || Histogram::one_two_five(max_model_len);
        Self {
            prefix_queries: 0,
            prefix_hits: 0,
            preemptions: 0,
            queue_refusals: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
            generation_tokens: 0,
            finished_stop: 0,
            finished_length: 0,
            finished_abort: 0,
            request_prompt_tokens: tokens(),
            request_generation_tokens: tokens(),
            request_prefill_computed_tokens: tokens(),
            request_preemptions: Histogram::new(PREEMPTIONS),
            step_tokens: Histogram::new(STEP_TOKENS),
            first_token: Histogram::new(FIRST_TOKEN_SECONDS),
            inter_token: Histogram::new(TOKEN_SECONDS),
            per_output_token: Histogram::new(TOKEN_SECONDS),
            request: Histogram::new(REQUEST_SECONDS),
            queue: Histogram::new(REQUEST_SECONDS),
            inference: Histogram::new(REQUEST_SECONDS),
            prefill: Histogram::new(REQUEST_SECONDS),
            decode: Histogram::new(REQUEST_SECONDS),
        }
    }
}

/// Seconds from `from` to `to`, zero when they are the other way round.
pub(super) fn seconds(from: Duration, to: Duration) -> f64 {
    to.saturating_sub(from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_include_their_value_and_the_last_bucket_takes_the_rest() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        for value in [1.0, 1.5, 2.0, 9.0] {
            histogram.observe(value, 1);
        }
        assert_eq!(histogram.counts, [1, 2, 1]);
        assert_eq!((histogram.count(), histogram.sum), (4, 13.5));
    }

    #[test]
    fn token_bounds_are_those_of_a_real_page_for_4096() {
        let bounds = Histogram::one_two_five(4096).bounds;
        assert_eq!(bounds, [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0]);
    }
}
