"""Routing by live load: every engine's names, LoRA adapters, bursts, and servers that lie (resources.md)."""

import itertools
import math

import pytest

from harness import pages
from harness.manifests import METRICS_PATH, METRICS_PORT, RUNTIME, pool_v1, pool_v1alpha2
from harness.pages import Load
from harness.traffic import burst
from harness.upstream import MetricsFault, counts, forget, scraped_again
from harness.wait import IN_FORCE_S, holds, until

ENGINES = [
    pytest.param("vllm", pages.vllm, id="vllm 0.32"),
    pytest.param("vllm", pages.vllm_0_17, id="vllm 0.17"),
    pytest.param("vllm", pages.vllm_v0, id="vllm v0"),
    pytest.param("sglang", pages.sglang, id="sglang"),
    pytest.param("trt-llm", pages.triton, id="trt-llm by Triton"),
    pytest.param("trt-llm", pages.trtllm_serve, id="trtllm-serve"),
]
BUSY = {
    "waiting": Load(waiting=20, running=16, kv_usage=0.5),
    "running": Load(running=40),
    "KV cache": Load(kv_usage=0.98),
}


def ask(pointsman, times: int, **fields) -> None:
    """One after the other, each done before the next."""
    for number in range(times):
        assert pointsman.complete(f"prompt {number}", **fields).status_code == 200


def known(pointsman, servers) -> None:
    """Waits until the load of each is known."""
    until(
        lambda: all(
            pointsman.metrics().value("pointsman_endpoint_standing", endpoint=server.address, standing="fresh")
            for server in servers
        ),
        within=5,
        what="each is scraped",
    )


@pytest.mark.parametrize("busy", BUSY.values(), ids=BUSY.keys())
@pytest.mark.parametrize("runtime, page", ENGINES)
def test_a_loaded_endpoint_is_avoided(runtime, page, busy, start, upstreams, pool_file):
    servers = upstreams(3, page=page)
    servers[1].load = busy
    pointsman = start("-f", pool_file(servers, {RUNTIME: runtime}).path)
    known(pointsman, servers)
    ask(pointsman, 20)
    assert servers[1].requests == []
    assert all(counts(servers)[::2])


@pytest.mark.parametrize("runtime, page", ENGINES)
def test_load_that_moves_moves_the_requests(runtime, page, start, upstreams, pool_file):
    servers = upstreams(2, page=page)
    pointsman = start("-f", pool_file(servers, {RUNTIME: runtime}).path)
    for idle, busy in (servers, servers[::-1]):
        idle.load, busy.load = Load(), Load(waiting=30, running=16, kv_usage=0.9)
        scraped_again(servers)
        forget(servers)
        ask(pointsman, 10)
        assert counts([idle, busy]) == [10, 0]


@pytest.mark.parametrize("version", [pool_v1, pool_v1alpha2], ids=["v1", "v1alpha2"])
def test_a_shorter_queue_wins_on_both_versions(version, start, upstreams, pool_file):
    servers = upstreams(3)
    for server, waiting in zip(servers, (9, 3, 6), strict=True):
        server.load = Load(waiting=waiting, running=16)
    file = pool_file(servers)
    file.make_pool = version
    file.save()
    pointsman = start("-f", file.path)
    known(pointsman, servers)
    ask(pointsman, 10)
    assert counts(servers) == [0, 10, 0]


def test_metrics_may_be_on_another_port_and_path(start, upstreams, pool_file):
    """Settings of ours: docs/settings.md."""
    exporter = upstreams(1, metrics_path="/custom/metrics", host="127.0.0.1", load=Load(waiting=30, running=20))[0]
    (elsewhere,) = upstreams(1, host="127.0.0.2", metrics_path="/custom/metrics", port=exporter.port)
    silent = upstreams(1, metrics_path="/nowhere")[0]
    served = upstreams(1, host="127.0.0.2", metrics_path="/nowhere")[0]
    file = pool_file([silent, served])
    pointsman = start("-f", file.path)
    file.annotate({METRICS_PORT: str(exporter.port), METRICS_PATH: "/custom/metrics"})
    until(lambda: exporter.scrapes and elsewhere.scrapes, within=2, what="the other port is read")
    known(pointsman, [silent, served])
    ask(pointsman, 10)
    assert counts([silent, served]) == [0, 10]


# ---- bursts


@pytest.mark.parametrize("prompts", ["different prompts", "one prompt"])
def test_a_burst_of_64_onto_8_idle_equal_endpoints_spreads_within_one(prompts, start, upstreams, pool_file):
    servers = upstreams(8)
    pointsman = start("-f", pool_file(servers).path)
    known(pointsman, servers)
    same = prompts == "one prompt"
    burst(servers, [lambda n=n: pointsman.complete("the same" if same else f"prompt {n}") for n in range(64)])
    assert sum(counts(servers)) == 64
    assert max(counts(servers)) - min(counts(servers)) <= 1, counts(servers)


def test_what_is_in_flight_counts_between_two_scrapes(start, upstreams, pool_file):
    busy, idle = servers = upstreams(2)
    file = pool_file([busy])
    pointsman = start("-f", file.path)
    ledger = "pointsman_endpoint_in_flight_requests"

    def meanwhile() -> None:
        assert pointsman.metrics().value(ledger, endpoint=busy.address) == 6
        file.upstreams = servers
        file.save()
        known(pointsman, servers)
        ask(pointsman, 5)

    burst([busy], [pointsman.complete] * 6, meanwhile)
    assert counts(servers) == [6, 5]
    until(lambda: pointsman.metrics().value(ledger) == 0, within=1, what="the ledger is 0 at rest")


# ---- servers that lie

LIES = {
    "NaN": lambda load: pages.vllm(Load(math.nan, math.nan, math.nan)).replace(" nan\n", " NaN\n"),
    "negative": lambda load: pages.vllm(Load(-5, -5, -0.5)),
    "1e30": lambda load: pages.vllm(Load(1e30, 1e30, 1e30)),
    "infinite": lambda load: pages.vllm(Load(math.inf, math.inf, math.inf)).replace(" inf\n", " +Inf\n"),
    "minus infinite": lambda load: pages.vllm(Load(-math.inf, 0, 0)).replace(" -inf\n", " -Inf\n"),
    "HTML": lambda load: "<!DOCTYPE html><html><body>Welcome to nginx!</body></html>",
    "nothing": lambda load: "",
    "no text": lambda load: b"\x00\xff" * 5000,
    "another engine": pages.sglang,
    "queue missing": lambda load: "".join(
        line for line in pages.vllm(load).splitlines(keepends=True) if "num_requests_waiting{" not in line
    ),
    "usage over 1": lambda load: pages.vllm(Load(0, 0, 55.0)),
    "words": lambda load: pages.vllm(load).replace('vllm:num_requests_waiting{engine="0",model_name="tiny"} 0', "vllm:num_requests_waiting many"),
    "a line of 5 MB": lambda load: "# " + "x" * 5_000_000 + "\n" + pages.vllm(Load(-1, 0, 0)),
}
FAULTS = {fault.name: fault for fault in MetricsFault}


def honest_and_liar(start, upstreams, pool_file):
    """Two honest idle servers and one that a test will make lie, in force."""
    servers = upstreams(3)
    return start("-f", pool_file(servers).path), servers[:2], servers[2]


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_lying_endpoint_is_never_taken_for_the_emptiest(lie, start, upstreams, pool_file):
    servers = upstreams(3)
    *honest, liar = servers
    for server in honest:
        server.load = Load(running=3, kv_usage=0.2)
    liar.page = lie
    pointsman = start("-f", pool_file(servers).path)
    failures = "pointsman_scrape_failures_total"
    known(pointsman, honest)
    until(lambda: pointsman.metrics().value(failures, endpoint=liar.address), within=5, what="the liar was heard")
    ask(pointsman, 20)
    assert counts(servers)[2] == 0, counts(servers)
    assert pointsman.metrics().value(failures, endpoint=honest[0].address) == 0


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_an_endpoint_whose_metrics_fail_harms_nobody(fault, start, upstreams, pool_file):
    servers = upstreams(3)
    *honest, bad = servers
    for server in honest:
        server.load = Load(running=3, kv_usage=0.2)
    bad.metrics_fault = fault
    pointsman = start("-f", pool_file(servers).path)
    memory = pointsman.rss_bytes()
    until(lambda: len(bad.scrapes) >= 2, within=10, what="it is asked again")
    ask(pointsman, 20)
    assert counts(servers)[2] == 0, counts(servers)
    # Others are scraped as if nothing were, and memory stays.
    scraped_again(honest)
    gaps = [later - earlier for server in honest for earlier, later in itertools.pairwise(server.scrapes)]
    assert max(gaps) < 1.5, gaps
    assert pointsman.rss_bytes() - memory < 40_000_000


@pytest.mark.parametrize("lie", [LIES["NaN"], LIES["HTML"]], ids=["NaN", "HTML"])
def test_an_endpoint_that_begins_to_lie_is_unknown_within_the_staleness_limit(lie, start, upstreams, pool_file):
    pointsman, honest, liar = honest_and_liar(start, upstreams, pool_file)
    servers = [*honest, liar]
    ask(pointsman, 30)
    assert liar.requests
    for server in honest:
        server.load = Load(running=3, kv_usage=0.2)
    liar.page = lie
    scraped_again(honest)

    def avoided() -> bool:
        forget(servers)
        ask(pointsman, 10)
        return not liar.requests

    until(avoided, within=4, what="metrics older than 3 s are not believed")
    liar.page = pages.vllm
    until(lambda: not avoided(), within=3, what="an honest page is believed again")


def test_when_no_metrics_are_known_requests_are_shared_by_what_is_in_flight(start, upstreams, pool_file):
    servers = upstreams(4, page=lambda load: "")
    pointsman = start("-f", pool_file(servers).path)
    burst(servers, [lambda n=n: pointsman.complete(f"prompt {n}") for n in range(32)])
    assert max(counts(servers)) - min(counts(servers)) <= 1, counts(servers)


def test_an_unknown_endpoint_is_used_when_the_others_are_full(start, upstreams, pool_file):
    servers = upstreams(3)
    for server in servers[:2]:
        server.load = Load(waiting=500, running=256, kv_usage=1.0)
    servers[2].page = lambda load: ""
    pointsman = start("-f", pool_file(servers).path)
    known(pointsman, servers[:2])
    ask(pointsman, 10)
    assert sum(counts(servers)) == 10
    holds(lambda: pointsman.process.poll() is None, over=0.1, what="it runs")


# ---- LoRA


def test_a_server_that_runs_the_adapter_is_preferred(start, upstreams, pool_file):
    servers = upstreams(4, models=["tiny", "lora-a", "lora-b"])
    servers[1].load = Load(running=1, loras_running=("lora-a",), max_lora=2)
    servers[2].load = Load(running=1, loras_running=("lora-b", "lora-c"), max_lora=2)
    pointsman = start("-f", pool_file(servers).path)
    known(pointsman, servers)
    ask(pointsman, 10, model="lora-a")
    assert counts(servers) == [0, 10, 0, 0]
    forget(servers)
    ask(pointsman, 10, model="lora-b")
    assert counts(servers) == [0, 0, 10, 0]


def test_a_server_with_room_for_an_adapter_beats_one_that_is_full_of_others(start, upstreams, pool_file):
    servers = upstreams(3, models=["tiny", "lora-a"])
    for server in servers[:2]:
        server.load = Load(running=1, loras_running=("lora-x", "lora-y"), max_lora=2)
    servers[2].load = Load(running=1, loras_running=("lora-x",), max_lora=2)
    pointsman = start("-f", pool_file(servers).path)
    known(pointsman, servers)
    ask(pointsman, 5, model="lora-a")
    assert counts(servers)[:2] == [0, 0]


def test_a_server_that_runs_the_adapter_gives_way_when_it_is_overloaded(start, upstreams, pool_file):
    servers = upstreams(3, models=["tiny", "lora-a"])
    servers[1].load = Load(waiting=100, running=64, kv_usage=0.99, loras_running=("lora-a",), max_lora=2)
    pointsman = start("-f", pool_file(servers).path)
    known(pointsman, servers)
    ask(pointsman, 10, model="lora-a")
    assert servers[1].requests == []


def test_requests_for_the_base_model_are_not_drawn_to_adapters(start, upstreams, pool_file):
    servers = upstreams(2, models=["tiny", "lora-a"])
    servers[1].load = Load(loras_running=("lora-a",), max_lora=2)
    pointsman = start("-f", pool_file(servers).path)
    known(pointsman, servers)
    ask(pointsman, 60)
    assert min(counts(servers)) >= 10, counts(servers)
