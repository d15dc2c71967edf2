"""Metrics pages of engines: real captures of vLLM with gauges replaced; SGLang and TensorRT-LLM by the names they print."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

DATA = Path(__file__).parent.parent / "data"


@dataclass
class Load:
    """What an engine says about itself."""

    waiting: float = 0
    running: float = 0
    kv_usage: float = 0.0
    loras_running: tuple[str, ...] = ()
    loras_waiting: tuple[str, ...] = ()
    max_lora: int = 0
    """0: adapters are not enabled, and nothing is said of them."""


def vllm(load: Load) -> str:
    """vLLM 0.32, the whole page."""
    return _vllm("vllm-0.32-metrics.txt", load)


def vllm_0_17(load: Load) -> str:
    """vLLM 0.17.1, the whole page."""
    return _vllm("vllm-0.17-metrics.txt", load)


def vllm_v0(load: Load) -> str:
    """The v0 engine: the older name of the KV cache's use."""
    return vllm_0_17(load).replace("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")


def sglang(load: Load) -> str:
    labels = '{model_name="tiny",engine_type="unified",tp_rank="0"}'
    return (
        _gauge("sglang:num_running_reqs", "The number of running requests.", labels, load.running)
        + _gauge("sglang:num_used_tokens", "The number of used tokens.", labels, 123)
        + _gauge("sglang:token_usage", "The token usage.", labels, load.kv_usage)
        + _gauge("sglang:num_queue_reqs", "The number of requests in the waiting queue.", labels, load.waiting)
        + _gauge("sglang:cache_config_info", "Cache configuration.", '{page_size="16",num_pages="4096"}', 1)
    )


def triton(load: Load) -> str:
    """TensorRT-LLM behind Triton: one family, told apart by labels."""
    requests, blocks = "nv_trt_llm_request_metrics", "nv_trt_llm_kv_cache_block_metrics"

    def row(family: str, label: str, word: str, value: float) -> str:
        return f'{family}{{model="tensorrt_llm",{label}="{word}",version="1"}} {value}\n'

    return (
        f"# HELP {requests} TRT LLM request metrics\n# TYPE {requests} gauge\n"
        + row(requests, "request_type", "context", 0)
        + row(requests, "request_type", "scheduled", load.running)
        + row(requests, "request_type", "max", 512)
        + row(requests, "request_type", "active", load.running + load.waiting)
        + row(requests, "request_type", "waiting", load.waiting)
        + f"# HELP {blocks} TRT LLM KV cache block metrics\n# TYPE {blocks} gauge\n"
        + row(blocks, "kv_cache_block_type", "fraction", load.kv_usage)
        + row(blocks, "kv_cache_block_type", "tokens_per", 64)
        + row(blocks, "kv_cache_block_type", "used", 10)
        + row(blocks, "kv_cache_block_type", "free", 6239)
        + row(blocks, "kv_cache_block_type", "max", 6249)
    )


def trtllm_serve(load: Load) -> str:
    labels = '{model_name="tiny",engine_type="trtllm"}'
    return (
        _gauge("trtllm_num_requests_running", "Running requests.", labels, load.running)
        + _gauge("trtllm_num_requests_waiting", "Waiting requests.", labels, load.waiting)
        + _gauge("trtllm_kv_cache_utilization", "KV cache utilization.", labels, load.kv_usage)
        + _gauge("trtllm_kv_cache_tokens_per_block", "Tokens in a block.", labels, 32)
        + _gauge("trtllm_kv_cache_max_blocks", "Blocks.", labels, 4096)
    )


def _vllm(capture: str, load: Load) -> str:
    return _template(capture).format(waiting=load.waiting, running=load.running, kv_usage=load.kv_usage) + _lora_info(load)


@lru_cache
def _template(capture: str) -> str:
    """The captured page with places for the gauges; made once, since pages are asked for all the time."""
    page = (DATA / capture).read_text().replace("{", "{{").replace("}", "}}")
    for family, place in (
        ("vllm:num_requests_waiting", "waiting"),
        ("vllm:num_requests_running", "running"),
        ("vllm:kv_cache_usage_perc", "kv_usage"),
    ):
        page, count = re.subn(rf"^({family}\{{\{{.*\}}\}}) .*$", rf"\g<1> {{{place}}}", page, flags=re.MULTILINE)
        assert count == 1, f"{family} is in the capture {count} times"
    return page


def _lora_info(load: Load) -> str:
    """As vLLM prints it: one series for each state there ever was, the value is the time of it, the newest rules."""
    if not load.max_lora:
        return ""
    family = "vllm:lora_requests_info"
    running, waiting = ",".join(load.loras_running), ",".join(load.loras_waiting)

    def row(running: str, waiting: str, time: float) -> str:
        return (
            f'{family}{{max_lora="{load.max_lora}",running_lora_adapters="{running}",waiting_lora_adapters="{waiting}"}} {time!r}\n'
        )

    return (
        f"# HELP {family} Running stats on lora requests.\n# TYPE {family} gauge\n"
        + row("long-gone", "", 1.7953659290723882e09)
        + row(running, waiting, 1.7953659303473663e09)
        + row("", "", 1.7953659290723881e09)
    )


def _gauge(name: str, help_text: str, labels: str, value: float) -> str:
    return f"# HELP {name} {help_text}\n# TYPE {name} gauge\n{name}{labels} {value}\n"
