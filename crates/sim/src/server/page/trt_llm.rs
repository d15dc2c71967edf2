//! TensorRT-LLM's two pages: Triton's, written in C++ with whole numbers, and that of `trtllm-serve`.

use super::{Facts, writer::Page};

/// What Triton calls the model that runs, whatever it is called outside.
const TRITON_MODEL: &str = "tensorrt_llm";

/// Prints Triton's page.
pub(super) fn print_triton(facts: &Facts<'_>, page: &mut Page) {
    let (engine, snapshot) = (facts.engine, facts.snapshot);
    let (running, waiting) = (snapshot.running as u64, snapshot.waiting as u64);
    let (used, max) = (u64::from(snapshot.kv_blocks_used), u64::from(engine.num_gpu_blocks));
    let mut family = |name: &str, help: &str, label: &'static str, samples: &[(&str, u64)]| {
        page.family(name, "gauge", help);
        for (value, number) in samples {
            page.whole(name, &triton_labels((label, value)), *number);
        }
    };
    family(
        "nv_trt_llm_request_metrics",
        "TRT LLM request metrics",
        "request_type",
        &[
            ("waiting", waiting),
            ("context", 0),
            ("scheduled", running),
            ("max", u64::from(engine.max_num_seqs)),
            ("active", running),
        ],
    );
    family(
        "nv_trt_llm_runtime_memory_metrics",
        "TRT LLM runtime memory metrics",
        "memory_type",
        &[("pinned", 0), ("gpu", 1_610_236), ("cpu", 0)],
    );
    let blocks = "nv_trt_llm_kv_cache_block_metrics";
    let geometry =
        [("tokens_per", u64::from(engine.block_size)), ("used", used), ("free", max - used), ("max", max)];
    family(blocks, "TRT LLM KV cache block metrics", "kv_cache_block_type", &geometry);
    page.sample(blocks, &triton_labels(("kv_cache_block_type", "fraction")), used as f64 / max as f64);
    let general = "nv_trt_llm_general_metrics";
    page.family(general, "gauge", "General TRT LLM metrics");
    let iterations = snapshot.stats.step_tokens.count();
    page.whole(general, &triton_labels(("general_type", "iteration_counter")), iterations);
    page.whole(general, &triton_labels(("general_type", "timestamp")), facts.now_unix as u64);
    let success = "nv_inference_request_success";
    page.family(success, "counter", "Number of successful inference requests, all batch sizes");
    page.whole(success, &[("model", TRITON_MODEL), ("version", "1")], snapshot.stats.request.count());
    let pending = "nv_inference_pending_request_count";
    page.family(pending, "gauge", "Instantaneous number of pending requests awaiting execution per-model.");
    page.whole(pending, &[("model", TRITON_MODEL), ("version", "1")], waiting);
}

/// Prints the page of `trtllm-serve`.
pub(super) fn print_serve(facts: &Facts<'_>, page: &mut Page) {
    let (engine, snapshot) = (facts.engine, facts.snapshot);
    let stats = &snapshot.stats;
    // It does not know them where it prints.
    let labels = [("engine_type", "undefined"), ("model_name", "undefined")];
    let (used, max) = (f64::from(snapshot.kv_blocks_used), f64::from(engine.num_gpu_blocks));
    for (name, help, value) in [
        ("num_requests_running", "Number of requests being processed.", snapshot.running as f64),
        ("num_requests_waiting", "Number of requests waiting to be processed.", snapshot.waiting as f64),
        ("kv_cache_utilization", "KV cache utilization.", used / max),
        (
            "kv_cache_hit_rate",
            "KV cache hit rate.",
            stats.prefix_hits as f64 / (stats.prefix_queries as f64).max(1.0),
        ),
        ("kv_cache_tokens_per_block", "Tokens per KV cache block.", f64::from(engine.block_size)),
        ("kv_cache_max_blocks", "Maximum number of KV cache blocks.", max),
        ("kv_cache_used_blocks", "Number of KV cache blocks in use.", used),
        ("kv_cache_free_blocks", "Number of free KV cache blocks.", max - used),
    ] {
        page.gauge(&format!("trtllm_{name}"), help, &labels, value);
    }
    let success = "trtllm_request_success_total";
    page.family(success, "counter", "Count of successfully processed requests.");
    for (reason, count) in [("length", stats.finished_length), ("stop", stats.finished_stop)] {
        let labels = [("engine_type", "undefined"), ("finished_reason", reason), ("model_name", "undefined")];
        page.sample(success, &labels, count as f64);
    }
    for (name, help, histogram) in [
        (
            "e2e_request_latency_seconds",
            "Histogram of end to end request latency in seconds.",
            &stats.request,
        ),
        ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", &stats.first_token),
        (
            "time_per_output_token_seconds",
            "Histogram of time per output token in seconds.",
            &stats.per_output_token,
        ),
        ("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", &stats.queue),
    ] {
        let name = format!("trtllm_{name}");
        page.family(&name, "histogram", help);
        page.buckets(&name, &labels, histogram);
    }
}

/// Sorted by name, as Triton prints them.
fn triton_labels<'a>(label: (&'a str, &'a str)) -> [(&'a str, &'a str); 3] {
    let mut labels = [("model", TRITON_MODEL), label, ("version", "1")];
    labels.sort_unstable();
    labels
}
