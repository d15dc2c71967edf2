"""`pointsman sim`: model servers that are not real but answer as real ones do."""

import json
import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from contract.harness import Process, eventually

READ = {
    "vllm": {"vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"},
    "sglang": {"sglang:num_queue_reqs", "sglang:num_running_reqs", "sglang:token_usage"},
    "trt-llm": {"nv_trt_llm_request_metrics", "nv_trt_llm_kv_cache_block_metrics"},
}


@pytest.fixture
def sim():
    """Starts `pointsman sim`; the addresses of its servers."""
    started = []

    def sim(*arguments, count=1):
        process = Process("sim", "--listen", "127.0.0.1:0", "--count", count, *arguments)
        started.append(process)
        found = []
        while len(found) < count:
            found += re.findall(r"http://[\d.]+:\d+", process.line())
        return found

    yield sim
    assert [process.stop() for process in started] == [0] * len(started)


@pytest.fixture
def http():
    with httpx.Client(trust_env=False, verify=False, timeout=10) as client:
        yield client


def model_of(http, address):
    return http.get(address + "/v1/models").raise_for_status().json()["data"][0]["id"]


@pytest.mark.parametrize("engine", READ)
def test_each_server_prints_a_page_in_the_engines_own_names(engine, sim, http):
    addresses = sim("--engine", engine, count=3)
    assert len(set(addresses)) == 3
    for address in addresses:
        assert http.get(address + "/health").status_code == 200
        page = http.get(address + "/metrics").raise_for_status().text
        samples = {sample.name for family in text_string_to_metric_families(page)
                   for sample in family.samples}
        assert READ[engine] <= samples


def test_it_completes_chats_and_prompts(sim, http):
    (address,) = sim("--speed", "20")
    body = {"model": model_of(http, address), "max_tokens": 5}
    messages = [{"role": "user", "content": "Which track?"}]
    chat = http.post(address + "/v1/chat/completions", json={**body, "messages": messages}).json()
    assert chat["choices"][0]["message"]["content"]
    assert 1 <= chat["usage"]["completion_tokens"] <= 5
    plain = http.post(address + "/v1/completions", json={**body, "prompt": "Which track?"}).json()
    assert plain["choices"][0]["text"]


def test_it_streams_events_and_tells_the_usage_last(sim, http):
    (address,) = sim("--speed", "20")
    body = {
        "model": model_of(http, address),
        "messages": [{"role": "user", "content": "Which track?"}],
        "max_tokens": 8,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with http.stream("POST", address + "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    usage = json.loads(events[-2])["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 1 <= usage["completion_tokens"] <= 8


def test_its_page_shows_the_load(sim, http):
    (address,) = sim("--speed", "1")
    body = {"model": model_of(http, address), "prompt": "count " * 50, "max_tokens": 2000}

    def running():
        page = http.get(address + "/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == "vllm:num_requests_running"
        )

    assert running() == 0
    with http.stream("POST", address + "/v1/completions", json={**body, "stream": True}):
        eventually(lambda: running() == 1)
    eventually(lambda: running() == 0)
