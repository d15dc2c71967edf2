"""What Pointsman tells of itself (resources.md): names, both Prometheus parsers, bounded labels."""

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families

from harness.manifests import RUNTIME, STRATEGY
from harness.pages import Load
from harness.pointsman import Metrics
from harness.upstream import Fault, scraped_again
from harness.wait import until

OBJECTIVE = [
    "request_total",
    "request_error_total",
    "request_duration_seconds",
    "request_sizes",
    "response_sizes",
    "input_tokens",
    "output_tokens",
    "running_requests",
    "normalized_time_per_output_token_seconds",
]
UPSTREAM_NAMES = [
    *(f"inference_objective_{name}" for name in OBJECTIVE),
    *(f"inference_model_{name}" for name in OBJECTIVE),
    "inference_pool_average_kv_cache_utilization",
    "inference_pool_average_queue_size",
    "inference_pool_per_pod_queue_size",
    "inference_pool_ready_pods",
    "inference_extension_scheduler_e2e_duration_seconds",
    "inference_extension_prefix_indexer_size",
    "inference_extension_prefix_indexer_hit_ratio",
    "inference_extension_prefix_indexer_hit_bytes",
    "inference_extension_flow_control_queue_size",
    "inference_extension_flow_control_queue_bytes",
    "inference_extension_flow_control_pool_saturation",
    "inference_extension_info",
    "pointsman_invalid_settings",
    "pointsman_endpoint_in_flight_requests",
]


@pytest.fixture
def served(start, upstreams, pool_file):
    """A gateway that has seen a bit of everything, and its servers."""
    servers = upstreams(2)
    servers[0].load = Load(waiting=2, running=4, kv_usage=0.25)
    servers[1].load = Load(waiting=4, running=4, kv_usage=0.75)
    for server in servers:
        server.answers(prompt_tokens=30, cached_tokens=16, tokens=5)
    pointsman = start("-f", pool_file(servers, {STRATEGY: "PREFIX_CACHE"}).path)
    scraped_again(servers)
    for _ in range(4):
        assert pointsman.complete("a" * 640).status_code == 200
        assert pointsman.complete("a" * 640, stream=True, stream_options={"include_usage": True}).status_code == 200
    pointsman.client.post("/v1/completions", content=b"{")
    return pointsman, servers


def names(page: str) -> set[str]:
    """Names of samples, and of their families."""
    families = list(parser.text_string_to_metric_families(page))
    return {sample.name for family in families for sample in family.samples} | {family.name for family in families}


def test_every_name_that_dashboards_know_is_there(served):
    pointsman, _ = served
    there = names(pointsman.metrics().text)
    missing = [name for name in UPSTREAM_NAMES if name not in there]
    assert missing == []


@pytest.mark.parametrize(
    "accept", [None, "text/plain", "application/openmetrics-text; version=1.0.0", "application/openmetrics-text", "*/*"]
)
def test_both_of_prometheus_parsers_take_the_page(accept, served):
    pointsman, _ = served
    answer = pointsman.admin_get("/metrics", headers={"accept": accept} if accept else {})
    assert answer.status_code == 200
    content_type = answer.headers["content-type"]
    assert content_type.startswith(("text/plain", "application/openmetrics-text")), content_type
    as_text = {family.name for family in parser.text_string_to_metric_families(answer.text)}
    assert len(as_text) > 30
    if content_type.startswith("application/openmetrics-text"):
        families = list(openmetrics_families(answer.text))
        assert {family.name for family in families} <= {name.removesuffix("_total") for name in as_text}
        assert all(family.documentation for family in families)


def test_requests_tokens_and_sizes_are_counted(served):
    pointsman, servers = served
    metrics = pointsman.metrics()
    for family in ("inference_objective", "inference_model"):
        tiny = {"model_name": "tiny", "target_model_name": "tiny"}
        assert metrics.value(f"{family}_request_total", **tiny) == 8
        assert metrics.value(f"{family}_request_duration_seconds_count", **tiny) == 8
        assert metrics.value(f"{family}_request_sizes_sum", **tiny) == sum(
            len(seen.body) for server in servers for seen in server.requests
        )
        assert metrics.value(f"{family}_response_sizes_count", **tiny) == 8
        assert metrics.value(f"{family}_input_tokens_sum", **tiny) == 8 * 30
        assert metrics.value(f"{family}_output_tokens_sum", **tiny) == 8 * 5
        assert metrics.value(f"{family}_normalized_time_per_output_token_seconds_count", **tiny) == 8
        assert metrics.value(f"{family}_running_requests", model_name="tiny") == 0
        assert metrics.value(f"{family}_request_error_total") == 1
    assert metrics.value("pointsman_input_tokens_total") == 240
    assert metrics.value("pointsman_cached_input_tokens_total") == 8 * 16
    assert metrics.value("pointsman_output_tokens_total") == 40
    assert metrics.value("pointsman_time_to_first_token_seconds_count") == 8
    assert metrics.value("inference_extension_scheduler_e2e_duration_seconds_count") == 8


def test_the_pools_load_is_told(served):
    pointsman, servers = served
    metrics = pointsman.metrics()
    assert metrics.value("inference_pool_ready_pods", name="pool") == 2
    assert metrics.value("inference_pool_average_kv_cache_utilization", name="pool") == pytest.approx(0.5)
    assert metrics.value("inference_pool_average_queue_size", name="pool") == pytest.approx(3)
    by_pod = metrics.series("inference_pool_per_pod_queue_size", name="pool")
    assert sorted(by_pod.values()) == [2, 4]


def test_prefix_hits_are_told(served):
    pointsman, _ = served
    metrics = pointsman.metrics()
    assert metrics.value("inference_extension_prefix_indexer_size") == 10
    assert metrics.value("inference_extension_prefix_indexer_hit_bytes_sum") == 7 * 640
    assert metrics.value("inference_extension_prefix_indexer_hit_ratio_sum") == pytest.approx(7)
    assert metrics.value("inference_extension_prefix_indexer_hit_ratio_count") == 8


def test_picks_are_told_by_endpoint_and_reason(served):
    pointsman, servers = served
    metrics = pointsman.metrics()
    assert metrics.value("pointsman_picks_total") == 8
    assert metrics.value("pointsman_picks_total", reason="prefix") == 7
    for server in servers:
        assert metrics.value("pointsman_picks_total", endpoint=server.address) == len(server.requests)


def test_what_is_in_flight_is_told_and_is_0_at_rest_whatever_happened(start, upstreams):
    (server,) = upstreams(1)
    pointsman = start("--endpoint", server.address)
    for fault in (None, Fault.RESET_AT_ONCE, Fault.RESET_MID_ANSWER, Fault.CLOSE_MID_ANSWER):
        server.answers(fault=fault)
        for stream in (True, False):
            try:
                pointsman.complete(stream=stream)
            except Exception:
                pass
    metrics = until(
        lambda: (m := pointsman.metrics()).value("pointsman_endpoint_in_flight_requests") == 0 and m,
        within=1,
        what="nothing is in flight",
    )
    assert metrics.value("inference_objective_running_requests") == 0
    assert metrics.value("pointsman_requests_total") == 8


def test_scrapes_and_their_failures_are_told(start, upstreams, pool_file):
    good, bad = servers = upstreams(2)
    bad.page = lambda load: "<html>"
    pointsman = start("-f", pool_file(servers, {RUNTIME: "vllm"}).path)
    scraped_again(servers)
    metrics = pointsman.metrics()
    assert metrics.value("pointsman_scrapes_total", endpoint=good.address) >= 2
    assert metrics.value("pointsman_scrape_failures_total", endpoint=bad.address) >= 2
    assert 0 <= metrics.value("pointsman_scrape_age_seconds", endpoint=good.address) < 2


def test_series_of_an_endpoint_that_is_gone_are_gone(start, upstreams, pool_file):
    servers = upstreams(2)
    file = pool_file(servers)
    pointsman = start("-f", file.path)
    for _ in range(10):
        pointsman.complete()
    gone = servers[0].address
    assert gone in pointsman.metrics().text
    file.upstreams = servers[1:]
    file.save()
    until(lambda: gone not in pointsman.metrics().text, within=2, what="nothing is told of it any more")


def test_label_values_that_clients_choose_are_capped(start, upstreams):
    (server,) = upstreams(1, models=None)
    pointsman = start("--endpoint", server.address)
    for number in range(1100):
        assert pointsman.complete(model=f"model-{number}").status_code == 200
    metrics: Metrics = pointsman.metrics()
    series = metrics.series("inference_objective_request_total")
    assert sum(series.values()) == 1100
    labels = {dict(labels)["model_name"] for labels in series}
    assert len(labels) <= 1001 and "other" in labels
    assert metrics.value("inference_objective_request_total", model_name="other") >= 100


def test_hostile_model_names_do_not_break_the_page(start, upstreams):
    (server,) = upstreams(1, models=None)
    pointsman = start("--endpoint", server.address)
    for name in ['a"b', "a\nb", "a\\b", "é😀", "\u0000", "{x}", "", "x" * 100_000]:
        pointsman.complete(model=name)
    page = pointsman.metrics().text
    names(page)
    assert len(page) < 1_000_000
