//! What one simulated engine can do: limits by the names of vLLM's own flags, costs by ours.

use serde::{Deserialize, Serialize};

/// Limits and costs of one engine. The defaults are an 8-billion-parameter model in bf16 on one A100-class card
/// of 40 GB, from first principles rather than from a measurement of ours:
///
/// - A decode step reads all weights once: 16 GB at about 1.6 TB/s is 10 ms (`step_base_us`).
/// - Prefill is bound by arithmetic: 16 GFLOP per token at half of 312 TFLOP/s is about 100 µs per token.
/// - A decoding sequence adds its own attention and sampling: tens of microseconds.
/// - What is left of 40 GB after weights and activations holds about 131,072 tokens of KV cache at 128 KiB a token
///   (32 layers x 8 KV heads x 128 dimensions x 2 x 2 bytes).
///
/// Sources of the shape: continuous batching from Orca (OSDI'22), the paged KV cache from vLLM's paper (SOSP'23),
/// chunked prefill under a token budget from Sarathi-Serve (OSDI'24), the scheduling order from vLLM's v1 scheduler.
///
/// Values that would make no sense (zero blocks, a speed of NaN) are lifted to the nearest that does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Tokens in one KV block.
    pub block_size: u32,
    /// Blocks in the KV cache.
    pub num_gpu_blocks: u32,
    /// Whether computed blocks are kept and matched by later prompts.
    pub enable_prefix_caching: bool,
    /// Sequences that may run at once.
    pub max_num_seqs: u32,
    /// Tokens computed in one step over all sequences: the budget that chunks long prefills.
    pub max_num_batched_tokens: u32,
    /// Prompt and output of one request, in tokens; never more than the KV cache holds.
    pub max_model_len: u32,
    /// Requests that may wait; one more is refused.
    pub max_num_queued_reqs: u32,
    /// LoRA adapters resident at once.
    pub max_loras: u32,
    /// Cost of a step that computes nothing, in microseconds.
    pub step_base_us: f64,
    /// Cost of one prompt token that is not in the cache, in microseconds.
    pub prefill_us_per_token: f64,
    /// Cost of one sequence that decodes in the step, in microseconds.
    pub decode_us_per_seq: f64,
    /// Cost of making an adapter resident, in milliseconds, paid by the step that admits its first request.
    pub lora_load_ms: f64,
    /// Each step's cost is scaled by a factor drawn evenly from `1 ± jitter_ratio`.
    pub jitter_ratio: f64,
    /// How many times faster than the costs say: 1 is real time.
    pub speed: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            block_size: 16,
            num_gpu_blocks: 8192,
            enable_prefix_caching: true,
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            max_model_len: 131_072,
            max_num_queued_reqs: 65_536,
            max_loras: 4,
            step_base_us: 10_000.0,
            prefill_us_per_token: 100.0,
            decode_us_per_seq: 50.0,
            lora_load_ms: 100.0,
            jitter_ratio: 0.02,
            speed: 1.0,
        }
    }
}

impl Config {
    /// The same with every value in the range in which the engine makes progress.
    pub(super) fn sound(mut self) -> Self {
        let positive =
            |value: f64, otherwise: f64| if value.is_finite() && value >= 0.0 { value } else { otherwise };
        let standard = Self::default();
        self.block_size = self.block_size.clamp(1, 1 << 16);
        self.num_gpu_blocks = self.num_gpu_blocks.clamp(1, 1 << 24);
        self.max_num_seqs = self.max_num_seqs.max(1);
        self.max_num_batched_tokens = self.max_num_batched_tokens.max(1);
        self.max_loras = self.max_loras.max(1);
        self.max_model_len = self.max_model_len.clamp(1, self.block_size.saturating_mul(self.num_gpu_blocks));
        self.step_base_us = positive(self.step_base_us, standard.step_base_us);
        self.prefill_us_per_token = positive(self.prefill_us_per_token, standard.prefill_us_per_token);
        self.decode_us_per_seq = positive(self.decode_us_per_seq, standard.decode_us_per_seq);
        self.lora_load_ms = positive(self.lora_load_ms, standard.lora_load_ms);
        self.jitter_ratio = positive(self.jitter_ratio, 0.0).min(0.99);
        self.speed = if self.speed.is_finite() && self.speed > 0.0 { self.speed } else { 1.0 };
        self
    }
}
