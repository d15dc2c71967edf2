"""Where requests go: by live load, by adapters, by shared prefixes; evenly among equals."""

import time
from collections import Counter

import pytest

from contract import pages
from contract.harness import RUNTIME, STRATEGY, at_once, eventually, served_by, spread

PREFIX_CACHE = {STRATEGY: "PREFIX_CACHE"}
ENGINES = {
    "vllm": ("vllm", pages.vllm),
    "vllm-old": ("vllm", pages.vllm_old),
    "sglang": ("sglang", pages.sglang),
    "triton": ("trt-llm", pages.triton),
    "trtllm-serve": ("trt-llm", pages.trtllm_serve),
}


@pytest.mark.parametrize("strategy", ["DEFAULT", "PREFIX_CACHE"])
def test_a_burst_of_64_onto_8_idle_equal_endpoints_spreads_within_one(strategy, pool):
    pointsman, _, servers = pool(8, {STRATEGY: strategy})
    for server in servers:
        server.gate.clear()

    def arrived():
        return sum(len(server.requests) for server in servers)

    def ask_then_open(number):
        if number < 64:
            return pointsman.chat(f"{number} is the number").status_code
        try:
            eventually(lambda: arrived() == 64, 10)
        finally:
            for server in servers:
                server.gate.set()
        return 200

    assert set(at_once(ask_then_open, 65)) == {200}
    counts = [len(server.requests) for server in servers]
    assert max(counts) - min(counts) <= 1, counts


def settles(pointsman, server):
    """Waits until the load is known and all requests go to the server; then they must stay there."""
    only = {server.address: 12}
    eventually(lambda: spread(pointsman, 12) == only, 3)
    assert spread(pointsman, 12) == only


@pytest.mark.parametrize("load", [{"waiting": 20, "running": 8}, {"kv": 0.97, "running": 8}])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_loaded_server_is_avoided_by_each_engines_own_metrics(engine, load, pool):
    runtime, page = ENGINES[engine]
    pointsman, _, (idle, busy) = pool(2, {RUNTIME: runtime}, page=page())
    busy.page = page(**load)
    settles(pointsman, idle)


@pytest.mark.parametrize("engine", ENGINES)
def test_when_the_load_moves_the_requests_move(engine, pool):
    runtime, page = ENGINES[engine]
    pointsman, _, (first, second) = pool(2, {RUNTIME: runtime}, page=page())
    first.page = page(waiting=20)
    settles(pointsman, second)
    first.page, second.page = page(), page(waiting=20)
    settles(pointsman, first)


def test_a_server_that_runs_the_adapter_is_preferred(pool):
    models = ("base", "french", "former")
    pointsman, _, servers = pool(3, page=pages.vllm(adapters=[]), models=models)
    servers[1].show(pages.vllm(adapters=["french"]))
    asked = Counter(served_by(pointsman.chat(model="french")) for _ in range(12))
    assert asked == {servers[1].address: 12}


def test_only_the_newest_adapter_series_counts(pool):
    models = ("base", "french", "former")
    pointsman, _, servers = pool(2, page=pages.vllm(adapters=["french"]), models=models)
    # `former` is in an older series of both pages; only the second says that it runs now.
    servers[1].show(pages.vllm(adapters=["former"]))
    asked = Counter(served_by(pointsman.chat(model="former")) for _ in range(12))
    assert asked == {servers[1].address: 12}


HTML = "<!doctype html><html><body><h1>It works!</h1></body></html>"
LIES = {
    "waiting NaN": pages.vllm(waiting="NaN"),
    "waiting negative": pages.vllm(waiting=-1000),
    "waiting huge": pages.vllm(waiting=1e30),
    "waiting infinite": pages.vllm(waiting="+Inf"),
    "kv NaN": pages.vllm(kv="NaN"),
    "kv negative": pages.vllm(kv=-1e30),
    "kv huge": pages.vllm(kv=1e30),
    "html": HTML,
    "empty": "",
    "truncated": pages.vllm()[:300],
}


@pytest.mark.parametrize("lie", [*LIES, "hang", "500"])
def test_a_lying_server_is_never_the_emptiest(lie, pool):
    pointsman, _, (honest, liar) = pool(2)
    if lie in LIES:
        liar.page = LIES[lie]
    else:
        liar.page_mode = lie
    # What was known of the liar is stale after 3 s; until then it may count as idle, and be equal.
    stale = time.monotonic() + 3.2

    def honest_is_preferred():
        return spread(pointsman, 10)[liar.address] <= 2

    eventually(lambda: time.monotonic() > stale or honest_is_preferred(), 5)
    for _ in range(2):
        assert honest_is_preferred()


def test_a_lying_server_is_not_taken_for_full_either(pool):
    pointsman, _, (honest, liar) = pool(2)
    liar.page = HTML
    honest.show(pages.vllm(waiting=50, kv=0.99))
    eventually(lambda: spread(pointsman, 10)[liar.address] >= 8)


def test_a_long_prefix_sticks_to_one_server(pool):
    pointsman, _, _ = pool(4, PREFIX_CACHE)
    for head in ("alpha", "beta", "gamma"):
        first = served_by(pointsman.chat(f"{head} " * 600))
        rest = spread(pointsman, 8, lambda number: f"{head} " * 600 + f"question {number}")
        assert rest == {first: 8}


def test_a_short_shared_head_makes_no_hot_spot(pool):
    pointsman, _, servers = pool(4, PREFIX_CACHE)
    system = "You are a helpful assistant who answers in one short sentence, and politely. "
    shares = spread(pointsman, 80, lambda number: system * 2 + f"{number:03} " * 1000)
    assert len(shares) == 4, shares
    assert max(shares.values()) <= 40, shares


@pytest.mark.parametrize("tools_first", [True, False])
def test_tools_count_as_the_head_of_the_prompt_wherever_they_stand(tools_first, pool):
    pointsman, _, _ = pool(4, PREFIX_CACHE)

    def ask(tool, number):
        function = {"name": tool, "description": f"{tool} does this and that. " * 100}
        tools = {"tools": [{"type": "function", "function": function}]}
        messages = {"messages": [{"role": "user", "content": f"question {number}"}]}
        parts = [tools, messages] if tools_first else [messages, tools]
        body = {"model": "base", **parts[0], **parts[1]}
        return served_by(pointsman.http.post("/v1/chat/completions", json=body))

    same_tools = Counter(ask("weather", number) for number in range(10))
    assert len(same_tools) == 1, same_tools
    other_tools = Counter(ask(f"tool{number}", 0) for number in range(40))
    assert len(other_tools) == 4, other_tools


@pytest.mark.parametrize("strategy", ["DEFAULT", "PREFIX_CACHE"])
def test_equal_endpoints_share_evenly(strategy, pool):
    pointsman, _, servers = pool(4, {STRATEGY: strategy})
    shares = spread(pointsman, 120, lambda number: f"{number} bottles")
    assert len(shares) == 4, shares
    assert 12 <= min(shares.values()) and max(shares.values()) <= 50, shares
