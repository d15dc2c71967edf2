"""`pointsman sim`: model servers that are not real (cli.md)."""

import json
import re
import subprocess
import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.pointsman import command, run


@pytest.fixture
def sim():
    """Starts simulated servers; their addresses and the process."""
    started = []

    def sim(*arguments, listen="127.0.0.1:0"):
        process = subprocess.Popen(command("sim", "--listen", listen, *arguments), stdout=subprocess.PIPE, text=True)
        started.append(process)
        line = process.stdout.readline()
        addresses = re.findall(r"http://[^\s,]+", line)
        assert addresses, line
        return addresses, process

    yield sim
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def chat(address: str, content: str = "Which track?", **fields) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, **fields}
    return httpx.post(address + "/v1/chat/completions", json=body, timeout=30)


def names(page: str) -> set[str]:
    return {sample.name for family in text_string_to_metric_families(page) for sample in family.samples}


def test_count_servers_listen_on_the_next_ports(sim):
    (first, *_), process = sim("--count", 1)
    process.kill()
    process.wait()
    port = int(first.rpartition(":")[2])
    addresses, _ = sim("--count", 3, listen=f"127.0.0.1:{port}")
    assert addresses == [f"http://127.0.0.1:{port + n}" for n in range(3)]
    for address in addresses:
        assert httpx.get(address + "/health").status_code == 200


ENGINES = {
    "vllm": {"vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:cache_config_info"},
    "sglang": {"sglang:num_queue_reqs", "sglang:num_running_reqs", "sglang:token_usage", "sglang:cache_config_info"},
    "trt-llm": {"nv_trt_llm_request_metrics", "nv_trt_llm_kv_cache_block_metrics"},
}


@pytest.mark.parametrize("engine", ENGINES)
def test_metrics_are_in_the_engines_own_names(engine, sim):
    (address,), _ = sim("--engine", engine)
    page = httpx.get(address + "/metrics").text
    assert ENGINES[engine] <= names(page)
    others = set().union(*(ENGINES[other] for other in ENGINES if other != engine))
    assert not others & names(page)


def test_an_unknown_engine_is_an_error_and_exit_2():
    outcome = run("sim", "--engine", "tgi")
    assert outcome.returncode == 2 and "sglang" in outcome.stderr


def test_it_speaks_the_openai_api(sim):
    (address,), _ = sim()
    (model,) = httpx.get(address + "/v1/models").json()["data"]
    answer = chat(address, model=model["id"]).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 8
    answer = httpx.post(address + "/v1/completions", json={"prompt": "x", "max_tokens": 3}, timeout=30).json()
    assert answer["object"] == "text_completion" and answer["choices"][0]["text"]
    assert chat(address, model="no-such-model").status_code == 404
    assert httpx.post(address + "/v1/chat/completions", content=b"{").status_code == 400


def test_it_streams_server_sent_events_with_usage(sim):
    (address,), _ = sim()
    begin, times, events = time.monotonic(), [], []
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 20,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with httpx.stream("POST", address + "/v1/chat/completions", json=body, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
                times.append(time.monotonic() - begin)
    assert events[-1] == "[DONE]"
    parsed = [json.loads(event) for event in events[:-1]]
    assert parsed[-1]["choices"] == [] and parsed[-1]["usage"]["completion_tokens"] == 20
    assert times[-1] - times[0] > 0.1, "tokens come one after the other"


def test_a_prompt_that_was_seen_is_computed_sooner(sim):
    (address,), _ = sim("--prefill-us-per-token", 400)

    def first_byte_s(content: str) -> float:
        begin = time.monotonic()
        assert chat(address, content, max_tokens=1).status_code == 200
        return time.monotonic() - begin

    prompt = "a long story of tracks and trains " * 200
    cold = first_byte_s(prompt)
    warm = first_byte_s(prompt)
    assert warm < cold / 2, (cold, warm)
    usage = chat(address, prompt, max_tokens=1).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] * 0.8


def test_the_same_seed_gives_the_same_answers(sim):
    (one,), _ = sim("--seed", 7)
    (same,), _ = sim("--seed", 7)
    assert chat(one).json()["choices"] == chat(same).json()["choices"]


def test_it_stops_with_exit_0_on_sigterm(sim):
    _, process = sim()
    process.terminate()
    assert process.wait(5) == 0
