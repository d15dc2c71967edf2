"""Real vLLM with few sequences at once, asked for three times what it holds, through both doors."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median

import httpx
import pytest

from harness.envoy import MODES, stand
from harness.manifests import LABELS, QUEUE_TTL, QUEUEING, ManifestFile, pool_v1
from harness.pointsman import Metrics
from harness.wait import until

# The first test waits for both servers to start.
pytestmark = pytest.mark.timeout(600)
CHAT = "/v1/chat/completions"
CLASSES = {"critical": 100, "standard": 0, "sheddable": -100}
OF_EACH = 20
FILLERS_MAX = 200
SEQUENCES = 4
"""That a server runs at once (conftest.py)."""
PATIENT = {QUEUEING: "enabled", QUEUE_TTL: "10m"}
"""Who goes first is asked here, and not who waits too long: on a busy machine vLLM takes its time."""
IN_FLIGHT_MAX = 16
"""On a server whose metrics are stale (annotations.md): vLLM on a busy CPU does not always tell them in time."""


def objectives(pool: str) -> list[dict]:
    return [
        {
            "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
            "kind": "InferenceObjective",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"poolRef": {"name": pool}, "priority": priority},
        }
        for name, priority in CLASSES.items()
    ]


@contextmanager
def through_the_gateway(servers, folder, start) -> Iterator[tuple[httpx.Client, Callable[[], Metrics]]]:
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"vllm-{number}", "namespace": "default", "labels": LABELS},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["127.0.0.1"]}],
            "ports": [{"port": int(server.address.split(":")[1])}],
        }
        for number, server in enumerate(servers)
    ]
    file = ManifestFile(folder / "pool.yaml")
    file.write(pool_v1(PATIENT), *slices, *objectives("pool"))
    pointsman = start("-f", file.path)
    yield pointsman.client, pointsman.metrics


@contextmanager
def through_envoy(example: str, servers, folder) -> Iterator[tuple[httpx.Client, Callable[[], Metrics]]]:
    def patient(config: str) -> str:
        return config.replace("max_message_timeout: 60s", "max_message_timeout: 3600s")

    with stand(folder, example, [server.address for server in servers], edit=patient) as house:
        house.declare(*objectives("example"), annotations=PATIENT)
        yield house.client, house.picker.metrics


@pytest.mark.parametrize("door", ["gateway", *MODES])
def test_the_important_go_first_and_little_waits_in_the_engines(door, servers, start, tmp_path):
    house = through_the_gateway(servers, tmp_path, start) if door == "gateway" else through_envoy(door, servers, tmp_path)
    with house as (client, metrics), ThreadPoolExecutor(FILLERS_MAX + 3 * OF_EACH) as clients:
        served: dict[str, list[float]] = {name: [] for name in ("filler", *CLASSES)}

        def ask(name: str) -> None:
            body = {"model": "tiny", "messages": [{"role": "user", "content": name}], "max_tokens": 200, "ignore_eos": True}
            answer = client.post(CHAT, json=body, headers={"x-gateway-inference-objective": name}, timeout=300)
            assert answer.status_code == 200, answer.text
            served[name].append(time.monotonic())

        def waiting() -> float:
            return metrics().value("inference_extension_flow_control_queue_size")

        last_seen: dict[str, float] = {}

        def look_who_waits() -> None:
            page = metrics()
            for name, priority in CLASSES.items():
                if page.value("pointsman_queue_waiting_requests", priority=str(priority)) > 0:
                    last_seen[name] = time.monotonic()

        fillers: list[Future] = []

        def saturated() -> bool:
            fillers.append(clients.submit(ask, "filler"))
            return waiting() > 0

        until(saturated, within=60, what="the servers are saturated")
        asked = [clients.submit(ask, name) for name in ("standard", "critical", "sheddable") for _ in range(OF_EACH)]
        deepest = 0.0
        while not all(request.done() for request in asked):
            look_who_waits()
            deepest = max(deepest, *(server.counter("vllm:num_requests_waiting") for server in servers))
        for request in (*fillers, *asked):
            request.result()
        first, second, third = (median(served[name]) for name in ("critical", "standard", "sheddable"))
        print(f"{door}: standard {second - first:.1f} s, sheddable {third - first:.1f} s after critical; engine queue {deepest}")
        # When they left the queue: an engine that stalls holds up whoever is in it, of any class.
        assert last_seen["critical"] < last_seen["standard"] < last_seen["sheddable"], last_seen
        # An engine that stalls is judged by what was sent to it, and none of that may run.
        assert deepest <= IN_FLIGHT_MAX
        assert waiting() == 0
        until(
            lambda: metrics().value("pointsman_endpoint_in_flight_requests") == 0, within=20, what="the ledger is at rest"
        )


@pytest.mark.parametrize("example", MODES)
def test_envoy_and_the_picker_serve_real_vllm(example, servers, tmp_path):
    with stand(tmp_path, example, [server.address for server in servers]) as house:
        whole = {"model": "tiny", "messages": [{"role": "user", "content": "Which track?"}], "max_tokens": 8, "temperature": 0}
        answer = house.client.post(CHAT, json=whole)
        assert answer.status_code == 200, answer.text
        text = answer.json()["choices"][0]["message"]["content"]
        with house.client.stream("POST", CHAT, json={**whole, "stream": True}) as stream:
            events = [line for line in stream.iter_lines() if line]
        assert events[-1] == "data: [DONE]" and len(events) > 2
        assert text == house.client.post(CHAT, json=whole).json()["choices"][0]["message"]["content"]
        assert house.client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        unknown = house.client.post(CHAT, json={**whole, "model": "tinny"})
        assert unknown.status_code == 404 and "tiny" in unknown.json()["error"]["message"]
        house.picker.rests()
