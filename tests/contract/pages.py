"""Metrics pages as model servers print them, with the load that a test wants to show.

Names, labels and order follow captures of real engines; families that routing must not confuse with
those it reads (`…_by_reason`, histograms) are there too.
"""


def vllm(waiting=0, running=0, kv=0.0, adapters=None, max_adapters=2, kv_name="kv_cache_usage_perc"):
    """vLLM's page. `adapters` are those that run; None is a server without LoRA."""
    labels = '{engine="0",model_name="base"}'
    lines = [
        "# HELP vllm:num_requests_running Number of requests in model execution batches.",
        "# TYPE vllm:num_requests_running gauge",
        f"vllm:num_requests_running{labels} {running}",
        "# HELP vllm:num_requests_waiting Number of requests waiting to be processed.",
        "# TYPE vllm:num_requests_waiting gauge",
        f"vllm:num_requests_waiting{labels} {waiting}",
        "# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason.",
        "# TYPE vllm:num_requests_waiting_by_reason gauge",
        'vllm:num_requests_waiting_by_reason{engine="0",model_name="base",reason="deferred"} 0.0',
        f"# HELP vllm:{kv_name} KV-cache usage. 1 means 100 percent usage.",
        f"# TYPE vllm:{kv_name} gauge",
        f"vllm:{kv_name}{labels} {kv}",
        "# TYPE vllm:time_to_first_token_seconds histogram",
        'vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="base"} 1.0',
        f"vllm:time_to_first_token_seconds_count{labels} 1.0",
        f"vllm:time_to_first_token_seconds_sum{labels} 0.1",
        "# TYPE vllm:cache_config_info gauge",
        'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="8192"} 1.0',
    ]
    if adapters is not None:
        lines.append("# TYPE vllm:lora_requests_info gauge")
        # The value is a timestamp: an older series tells of adapters that were there once.
        for names, time_s in ((("former",), "1.7953659290723882e+09"), (adapters, "1.795365931e+09")):
            lines.append(
                f'vllm:lora_requests_info{{max_lora="{max_adapters}",'
                f'running_lora_adapters="{",".join(names)}",waiting_lora_adapters=""}} {time_s}'
            )
    return "\n".join(lines) + "\n"


def vllm_old(waiting=0, running=0, kv=0.0):
    """vLLM before the KV cache's gauge was renamed."""
    return vllm(waiting, running, kv, kv_name="gpu_cache_usage_perc")


def sglang(waiting=0, running=0, kv=0.0):
    labels = '{engine_type="unified",model_name="base",pp_rank="0",tp_rank="0"}'
    return f"""# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{labels} {running}
# HELP sglang:token_usage The token usage.
# TYPE sglang:token_usage gauge
sglang:token_usage{labels} {kv}
# HELP sglang:num_queue_reqs The number of requests in the waiting queue.
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{labels} {waiting}
# TYPE sglang:cache_config_info gauge
sglang:cache_config_info{{page_size="16",num_pages="8192"}} 1.0
"""


def triton(waiting=0, running=0, kv=0.0):
    """TensorRT-LLM behind Triton."""

    def requests(kind, value):
        return f'nv_trt_llm_request_metrics{{model="base",request_type="{kind}",version="1"}} {value}\n'

    def blocks(kind, value):
        labels = f'{{kv_cache_block_type="{kind}",model="base",version="1"}}'
        return f"nv_trt_llm_kv_cache_block_metrics{labels} {value}\n"

    return (
        "# HELP nv_trt_llm_request_metrics TRT LLM request metrics\n"
        "# TYPE nv_trt_llm_request_metrics gauge\n"
        + requests("waiting", waiting)
        + requests("context", 0)
        + requests("scheduled", running)
        + requests("max", 512)
        + requests("active", running)
        + "# HELP nv_trt_llm_kv_cache_block_metrics TRT LLM KV cache block metrics\n"
        "# TYPE nv_trt_llm_kv_cache_block_metrics gauge\n"
        + blocks("fraction", kv)
        + blocks("tokens_per", 64)
        + blocks("max", 6239)
    )


def trtllm_serve(waiting=0, running=0, kv=0.0):
    return f"""# HELP trtllm_num_requests_waiting Number of requests waiting.
# TYPE trtllm_num_requests_waiting gauge
trtllm_num_requests_waiting{{model_name="base"}} {waiting}
# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{{model_name="base"}} {running}
# TYPE trtllm_kv_cache_utilization gauge
trtllm_kv_cache_utilization{{model_name="base"}} {kv}
# TYPE trtllm_kv_cache_tokens_per_block gauge
trtllm_kv_cache_tokens_per_block{{model_name="base"}} 32
# TYPE trtllm_kv_cache_max_blocks gauge
trtllm_kv_cache_max_blocks{{model_name="base"}} 4096
"""
