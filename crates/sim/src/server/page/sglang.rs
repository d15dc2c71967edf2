//! SGLang's page. It runs Python's client over several processes, which leaves the `_created` series out.

use super::{Facts, writer::Page};

/// Prints the page.
pub(super) fn print(facts: &Facts<'_>, page: &mut Page) {
    let (engine, snapshot) = (facts.engine, facts.snapshot);
    let stats = &snapshot.stats;
    let labels = [
        ("engine_type", "unified"),
        ("model_name", facts.model),
        ("moe_ep_rank", "0"),
        ("pp_rank", "0"),
        ("tp_rank", "0"),
    ];
    let block_size = f64::from(engine.block_size);
    let used_tokens = f64::from(snapshot.kv_blocks_used) * block_size;
    let total_tokens = f64::from(engine.num_gpu_blocks) * block_size;
    let hit_rate = stats.prefix_hits as f64 / (stats.prefix_queries as f64).max(1.0);
    for (name, help, value) in [
        ("num_running_reqs", "The number of running requests.", snapshot.running as f64),
        ("num_used_tokens", "The number of used tokens.", used_tokens),
        // SGLang rounds it so.
        ("token_usage", "The token usage.", (used_tokens / total_tokens * 100.0).round() / 100.0),
        ("num_queue_reqs", "The number of requests in the waiting queue.", snapshot.waiting as f64),
        ("cache_hit_rate", "The prefix cache hit rate.", hit_rate),
        ("max_total_num_tokens", "Maximum total number of tokens in the KV cache pool.", total_tokens),
    ] {
        page.gauge(&format!("sglang:{name}"), help, &labels, value);
    }
    let (page_size, num_pages) = (engine.block_size.to_string(), engine.num_gpu_blocks.to_string());
    let geometry: Vec<_> =
        labels.into_iter().chain([("num_pages", &*num_pages), ("page_size", &*page_size)]).collect();
    page.gauge("sglang:cache_config_info", "Information of the cache config.", &geometry, 1.0);
    for (name, help, value) in [
        ("prompt_tokens", "Number of prefill tokens processed.", stats.prompt_tokens),
        ("generation_tokens", "Number of generation tokens processed.", stats.generation_tokens),
        ("cached_tokens", "Number of cached prompt tokens.", stats.cached_tokens),
        ("num_requests", "Number of requests processed.", stats.request.count()),
        ("num_aborted_requests", "Number of requests aborted.", stats.finished_abort),
    ] {
        let name = format!("sglang:{name}_total");
        page.family(&name, "counter", help);
        page.sample(&name, &labels, value as f64);
    }
    for (name, help, histogram) in [
        ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", &stats.first_token),
        ("e2e_request_latency_seconds", "Histogram of End-to-end request latency in seconds", &stats.request),
        ("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", &stats.inter_token),
        ("queue_time_seconds", "Histogram of queueing time in seconds.", &stats.queue),
    ] {
        let name = format!("sglang:{name}");
        page.family(&name, "histogram", help);
        page.buckets(&name, &labels, histogram);
    }
}
