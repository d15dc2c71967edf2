//! vLLM 0.32's page: every family of its own that a real server prints, in its order. Tests hold it against captures.

use super::{Facts, writer::Page};
use crate::engine::{Histogram, LoraState};

/// A counter's or gauge's series: the labels beside `engine` and `model_name`, and the value.
type Series<'a> = (&'a [(&'a str, &'a str)], f64);

/// Prints the page.
pub(super) fn print(facts: &Facts<'_>, page: &mut Page) {
    let mut vllm = Vllm { facts, page };
    vllm.load();
    vllm.tokens();
    vllm.ends();
    vllm.histograms();
    if facts.lora {
        vllm.lora();
    }
    vllm.cache_config();
}

struct Vllm<'a, 'p> {
    facts: &'a Facts<'a>,
    page: &'p mut Page,
}

impl Vllm<'_, '_> {
    fn load(&mut self) {
        let snapshot = self.facts.snapshot;
        let (waiting, deferred) = (snapshot.waiting as f64, snapshot.waiting_deferred as f64);
        let usage = f64::from(snapshot.kv_blocks_used) / f64::from(self.facts.engine.num_gpu_blocks);
        for (what, help) in [
            (
                "flops",
                "Estimated number of floating point operations per GPU (for Model Flops Utilization calculations).",
            ),
            (
                "read_bytes",
                "Estimated number of bytes read from memory per GPU (for Model Flops Utilization calculations).",
            ),
            (
                "write_bytes",
                "Estimated number of bytes written to memory per GPU (for Model Flops Utilization calculations).",
            ),
        ] {
            self.counter(&format!("estimated_{what}_per_gpu"), help, &[(&[], 0.0)]);
        }
        let running = snapshot.running as f64;
        self.gauge(
            "num_requests_running",
            "Number of requests in model execution batches.",
            &[(&[], running)],
        );
        self.gauge("num_requests_waiting", "Number of requests waiting to be processed.", &[(&[], waiting)]);
        self.gauge(
            "num_requests_waiting_by_reason",
            "Number of waiting requests by reason.",
            &[(&[("reason", "capacity")], waiting - deferred), (&[("reason", "deferred")], deferred)],
        );
        self.gauge(
            "engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake.",
            &[
                (&[("sleep_state", "awake")], 1.0),
                (&[("sleep_state", "weights_offloaded")], 0.0),
                (&[("sleep_state", "discard_all")], 0.0),
            ],
        );
        self.gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", &[(&[], usage)]);
    }

    fn tokens(&mut self) {
        let stats = &self.facts.snapshot.stats;
        let computed = (stats.prompt_tokens - stats.cached_tokens) as f64;
        let cached = stats.cached_tokens as f64;
        for (name, help, value) in [
            (
                "prefix_cache_queries",
                "Prefix cache queries, in terms of number of queried tokens.",
                stats.prefix_queries,
            ),
            (
                "prefix_cache_hits",
                "Prefix cache hits, in terms of number of cached tokens.",
                stats.prefix_hits,
            ),
            (
                "external_prefix_cache_queries",
                "External prefix cache queries, in number of queried tokens.",
                0,
            ),
            ("external_prefix_cache_hits", "External prefix cache hits, in number of cached tokens.", 0),
            ("mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items.", 0),
            ("mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items.", 0),
            ("num_preemptions", "Cumulative number of preemption from the engine.", stats.preemptions),
            ("prompt_tokens", "Number of prefill tokens processed.", stats.prompt_tokens),
        ] {
            self.counter(name, help, &[(&[], value as f64)]);
        }
        self.counter(
            "prompt_tokens_by_source",
            "Number of prompt tokens by source.",
            &[
                (&[("source", "local_compute")], computed),
                (&[("source", "local_cache_hit")], cached),
                (&[("source", "external_kv_transfer")], 0.0),
            ],
        );
        self.counter(
            "prompt_tokens_cached",
            "Number of cached prompt tokens (local + external).",
            &[(&[], cached)],
        );
        self.counter(
            "prompt_tokens_cached_by_source",
            "Prefix-cache hit tokens by the cache tier that supplied them.",
            &[
                (&[("source", "device")], cached),
                (&[("source", "host")], 0.0),
                (&[("source", "p2p")], 0.0),
                (&[("source", "disk")], 0.0),
                (&[("source", "external_unspecified")], 0.0),
            ],
        );
        let generated = stats.generation_tokens as f64;
        self.counter("generation_tokens", "Number of generation tokens processed.", &[(&[], generated)]);
    }

    fn ends(&mut self) {
        let stats = &self.facts.snapshot.stats;
        self.counter(
            "request_success",
            "Count of successfully processed requests.",
            &[
                (&[("finished_reason", "stop")], stats.finished_stop as f64),
                (&[("finished_reason", "length")], stats.finished_length as f64),
                (&[("finished_reason", "abort")], stats.finished_abort as f64),
                (&[("finished_reason", "error")], 0.0),
                (&[("finished_reason", "repetition")], 0.0),
            ],
        );
        let refusals = stats.queue_refusals as f64;
        let began = self.facts.began_unix;
        self.rejections("total", "counter", [refusals, 0.0]);
        self.rejections("created", "gauge", [began, began]);
    }

    /// The one family that has no `engine`.
    fn rejections(&mut self, suffix: &str, kind: &str, values: [f64; 2]) {
        let name = format!("vllm:admission_rejections_{suffix}");
        self.page.family(&name, kind, "Number of admission attempts rejected by a queue limit, by reason.");
        for (reason, value) in ["max_num_queued_reqs", "max_num_queued_tokens"].into_iter().zip(values) {
            self.page.sample(&name, &[("model_name", self.facts.model), ("reason", reason)], value);
        }
    }

    fn histograms(&mut self) {
        let stats = &self.facts.snapshot.stats;
        let mut ones = Histogram { bounds: vec![1.0, 2.0, 5.0, 10.0, 20.0], counts: vec![0; 6], sum: 0.0 };
        ones.observe(1.0, stats.request.count());
        for (name, help, histogram) in [
            ("request_prompt_tokens", "Number of prefill tokens processed.", &stats.request_prompt_tokens),
            (
                "request_generation_tokens",
                "Number of generation tokens processed.",
                &stats.request_generation_tokens,
            ),
            ("iteration_tokens_total", "Histogram of number of tokens per engine_step.", &stats.step_tokens),
            (
                "request_max_num_generation_tokens",
                "Histogram of maximum number of requested generation tokens.",
                &stats.request_generation_tokens,
            ),
            ("request_params_n", "Histogram of the n request parameter.", &ones),
            (
                "request_params_max_tokens",
                "Histogram of the max_tokens request parameter.",
                &stats.request_generation_tokens,
            ),
            (
                "time_to_first_token_seconds",
                "Histogram of time to first token in seconds.",
                &stats.first_token,
            ),
            (
                "inter_token_latency_seconds",
                "Histogram of inter-token latency in seconds.",
                &stats.inter_token,
            ),
            (
                "request_time_per_output_token_seconds",
                "Histogram of time_per_output_token_seconds per request.",
                &stats.per_output_token,
            ),
            ("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", &stats.request),
            (
                "request_queue_time_seconds",
                "Histogram of time spent in WAITING phase for request.",
                &stats.queue,
            ),
            (
                "request_inference_time_seconds",
                "Histogram of time spent in RUNNING phase for request.",
                &stats.inference,
            ),
            (
                "request_prefill_time_seconds",
                "Histogram of time spent in PREFILL phase for request.",
                &stats.prefill,
            ),
            (
                "request_decode_time_seconds",
                "Histogram of time spent in DECODE phase for request.",
                &stats.decode,
            ),
            (
                "request_num_preemptions",
                "Histogram of the number of times a request was preempted.",
                &stats.request_preemptions,
            ),
            (
                "request_prefill_kv_computed_tokens",
                "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
                &stats.request_prefill_computed_tokens,
            ),
        ] {
            self.histogram(name, help, histogram);
        }
    }

    /// One series per combination of adapters seen, valued with the time when it was last so.
    fn lora(&mut self) {
        let name = "vllm:lora_requests_info";
        self.page.family(name, "gauge", "Running stats on lora requests.");
        let max_lora = self.facts.engine.max_loras.to_string();
        for LoraState { running, waiting, at } in &self.facts.snapshot.lora_history {
            let labels = [
                ("max_lora", max_lora.as_str()),
                ("running_lora_adapters", &running.join(",")),
                ("waiting_lora_adapters", &waiting.join(",")),
            ];
            self.page.sample(name, &labels, self.facts.began_unix + at.as_secs_f64());
        }
    }

    fn cache_config(&mut self) {
        let engine = self.facts.engine;
        let (block_size, blocks) = (engine.block_size.to_string(), engine.num_gpu_blocks.to_string());
        let total = engine.block_size.saturating_mul(engine.num_gpu_blocks);
        let tokens = total.to_string();
        let concurrency = format!("{:?}", f64::from(total) / f64::from(engine.max_model_len));
        let caching = if engine.enable_prefix_caching { "True" } else { "False" };
        let labels = [
            ("_block_size_resolved", "True"),
            ("block_size", &block_size),
            ("cache_dtype", "auto"),
            ("cache_hit_alignment_tokens", "None"),
            ("effective_attention_block_size", &block_size),
            ("enable_mamba_shared_prefix_checkpoint", "False"),
            ("enable_prefix_caching", caching),
            ("engine", "0"),
            ("gpu_memory_utilization", "0.92"),
            ("hash_block_size", "None"),
            ("is_attention_free", "False"),
            ("kv_cache_dtype_skip_layers", "[]"),
            ("kv_cache_layout", "None"),
            ("kv_cache_max_concurrency", &concurrency),
            ("kv_cache_memory_bytes", "None"),
            ("kv_cache_size_tokens", &tokens),
            ("kv_offloading_backend", "native"),
            ("kv_offloading_size", "None"),
            ("kv_sharing_fast_prefill", "False"),
            ("mamba_block_size", "None"),
            ("mamba_cache_dtype", "auto"),
            ("mamba_cache_mode", "none"),
            ("mamba_page_size_padded", "None"),
            ("mamba_ssm_cache_dtype", "float32"),
            ("num_cpu_blocks", "None"),
            ("num_gpu_blocks", &blocks),
            ("num_gpu_blocks_override", "None"),
            ("prefix_cache_retention_interval", "0"),
            ("prefix_caching_hash_algo", "sha256"),
            ("prefix_match_unit", "None"),
            ("replayssm_buffer_len", "16"),
            ("skip_page_size_padded", "None"),
            ("sliding_window", "None"),
            ("swa_bounded_replay", "True"),
            ("use_kda_recoverssm", "False"),
            ("use_replayssm", "False"),
            ("user_specified_block_size", "False"),
        ];
        let help = "Information of the LLMEngine CacheConfig";
        self.page.gauge("vllm:cache_config_info", help, &labels, 1.0);
    }

    fn gauge(&mut self, name: &str, help: &str, series: &[Series<'_>]) {
        self.series(&format!("vllm:{name}"), "gauge", help, series);
    }

    fn counter(&mut self, name: &str, help: &str, series: &[Series<'_>]) {
        self.series(&format!("vllm:{name}_total"), "counter", help, series);
        let created: Vec<Series<'_>> =
            series.iter().map(|(labels, _)| (*labels, self.facts.began_unix)).collect();
        self.series(&format!("vllm:{name}_created"), "gauge", help, &created);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        let name = format!("vllm:{name}");
        let labels = [("engine", "0"), ("model_name", self.facts.model)];
        self.page.family(&name, "histogram", help);
        self.page.buckets(&name, &labels, histogram);
        self.page.gauge(&format!("{name}_created"), help, &labels, self.facts.began_unix);
    }

    fn series(&mut self, name: &str, kind: &str, help: &str, series: &[Series<'_>]) {
        self.page.family(name, kind, help);
        for (labels, value) in series {
            let mut all = vec![("engine", "0"), ("model_name", self.facts.model)];
            all.extend_from_slice(labels);
            all.sort_unstable();
            self.page.sample(name, &all, *value);
        }
    }
}
