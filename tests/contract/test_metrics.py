"""The metrics page: names that dashboards know, readable by both parsers, zero when at rest."""

import pytest
from prometheus_client import openmetrics
from prometheus_client import parser as text
import prometheus_client.openmetrics.parser  # noqa: F401

from contract.harness import STRATEGY, at_once, eventually

PER_MODEL = (
    "request_total",
    "request_error_total",
    "request_duration_seconds",
    "request_sizes",
    "response_sizes",
    "input_tokens",
    "output_tokens",
    "running_requests",
    "normalized_time_per_output_token_seconds",
)
POOL = ("average_kv_cache_utilization", "average_queue_size", "per_pod_queue_size", "ready_pods")
EXTENSION = (
    "scheduler_e2e_duration_seconds",
    "prefix_indexer_size",
    "prefix_indexer_hit_ratio",
    "prefix_indexer_hit_bytes",
    "flow_control_queue_size",
    "flow_control_queue_bytes",
    "flow_control_pool_saturation",
    "flow_control_request_queue_duration_seconds",
    "info",
)
NAMES = [
    *(f"{prefix}_{name}" for prefix in ("inference_objective", "inference_model") for name in PER_MODEL),
    *(f"inference_pool_{name}" for name in POOL),
    *(f"inference_extension_{name}" for name in EXTENSION),
    "pointsman_invalid_settings",
]


@pytest.fixture
def after_traffic(pool):
    """A gateway that has seen plain, streamed and failed requests: (pointsman, servers)."""
    pointsman, _, servers = pool(2, {STRATEGY: "PREFIX_CACHE"})
    for _ in range(5):
        assert pointsman.chat("word " * 200).status_code == 200
        assert pointsman.chat("word " * 200, stream=True).status_code == 200
    eventually(lambda: pointsman.http.get("/v1/models").json()["data"])
    assert pointsman.chat(model="nobody").status_code == 404
    return pointsman, servers


def test_the_names_that_dashboards_know_are_there_after_traffic(after_traffic):
    pointsman, _ = after_traffic
    samples = pointsman.metrics()
    missing = [name for name in NAMES if name not in samples and name + "_count" not in samples]
    assert not missing, missing


def test_both_parsers_accept_the_page_and_read_the_same_values(after_traffic):
    pointsman, _ = after_traffic
    page = pointsman.page()

    def values(parser):
        return {
            (sample.name, *sorted(sample.labels.items()))
            for family in parser.text_string_to_metric_families(page)
            for sample in family.samples
            if "le" not in sample.labels  # the parsers write its numbers differently
        }

    assert values(openmetrics.parser) == values(text)


def test_requests_errors_and_tokens_are_counted(after_traffic):
    pointsman, _ = after_traffic
    assert pointsman.metric("inference_objective_request_total") == 11
    assert pointsman.metric("inference_objective_request_error_total") == 1
    assert pointsman.metric("inference_objective_input_tokens_sum") == 10 * 7
    assert pointsman.metric("inference_objective_output_tokens_sum") == 10 * 3
    assert pointsman.metric("inference_pool_ready_pods") == 2


def test_the_ledger_counts_what_is_in_flight_and_is_zero_at_rest(pool):
    pointsman, _, servers = pool(2)
    for server in servers:
        server.gate.clear()

    def in_flight():
        assert pointsman.metric("inference_objective_running_requests") in range(9)
        return pointsman.metric("pointsman_endpoint_in_flight_requests")

    def ask_or_look(number):
        if number < 8:
            return pointsman.chat(stream=bool(number % 2)).status_code
        try:
            eventually(lambda: in_flight() == 8)
        finally:
            for server in servers:
                server.gate.set()
        return 200

    assert set(at_once(ask_or_look, 9)) == {200}
    eventually(lambda: in_flight() == 0)
    assert pointsman.metric("inference_objective_running_requests") == 0
    assert pointsman.metric("pointsman_endpoint_prefill_pending_tokens") == 0


def test_labels_that_come_from_clients_are_capped(pool):
    pointsman, _, servers = pool(1, models=())

    def ask(worker):
        for number in range(130):
            pointsman.chat(model=f"model-{worker}-{number}")

    at_once(ask, 8)
    samples = pointsman.metrics()["inference_objective_request_total"]
    models = {labels["model_name"] for labels, _ in samples}
    assert len(models) <= 1001
    assert sum(value for _, value in samples) == 8 * 130
