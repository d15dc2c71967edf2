"""Real Envoy 1.40 in front of `pointsman epp`, with the configurations of examples/envoy."""

import os
import re
import signal
import socket
import subprocess
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from harness.pointsman import command
from harness.wait import until

from conftest import CACHE, ROOT, free_port

ENVOY = os.environ.get("POINTSMAN_ENVOY") or next(
    map(str, (CACHE / "envoy-1.40").glob("lib/*/site-packages/envoy/_bin/envoy")), "envoy"
)
EXAMPLES = ROOT / "examples/envoy"
ASK = {"prompt": "Which track?", "max_tokens": 4}


@contextmanager
def started(*arguments: object, ready: str | None = None):
    """A program, killed at the end; the groups of its ready line."""
    process = subprocess.Popen(
        list(map(str, arguments)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        found = re.match(ready, process.stdout.readline()) if ready else None
        assert found or not ready, "it is not ready"
        yield process, found.groups() if found else ()
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def sims(count: int):
    return started(*command("sim", "--count", count, "--listen", "127.0.0.1:0", "--speed", "50"), ready=r"ready servers=(\S+)")


@contextmanager
def envoy(config: str, folder: Path, port: int):
    file = folder / "envoy.yaml"
    file.write_text(config)
    with started(ENVOY, "-c", file, "--log-level", "error", "--use-dynamic-base-id", "--concurrency", "1") as (process, _):
        until(lambda: is_open(port), within=20, what="Envoy listens")
        yield process


def is_open(port: int) -> bool:
    """A connection and no request: Envoy would show the picker any."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Stand:
    """Simulated servers, the picker, and Envoy in front with a configuration of examples/envoy."""

    def __init__(self, base: str, metrics: str, ports: list[str], picker: subprocess.Popen, envoy_process: subprocess.Popen):
        self.metrics, self.ports, self.picker, self.envoy = metrics, ports, picker, envoy_process
        self.client = httpx.Client(base_url=base, timeout=20, trust_env=False)

    def values(self, name: str) -> dict[str, float]:
        text = httpx.get(f"{self.metrics}/metrics", trust_env=False).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(name + "{")]
        return {series: float(value) for series, value in lines}

    def server_at(self, address: str) -> str:
        """What a simulated server calls itself in `x-sim-server`."""
        return f"sim-{self.ports.index(address.rsplit(':', 1)[1])}"

    def at_rest(self) -> bool:
        return set(self.values("pointsman_endpoint_in_flight_requests").values()) == {0.0}


@contextmanager
def stand(example: str, folder: Path, *flags: object):
    with sims(3) as (_, (urls,)):
        ports = [url.rsplit(":", 1)[1] for url in urls.split(",")]
        pool = (EXAMPLES / "pool.yaml").read_text()
        for number, port in enumerate(ports, 1):
            pool = pool.replace(f"port: 800{number}}}", f"port: {port}}}")
        (folder / "pool.yaml").write_text(pool)
        epp = command("epp", "-f", folder / "pool.yaml", "--bind", "127.0.0.1", "--drain-delay", "0s", *flags)
        epp += ["--grpc-port", "0", "--grpc-health-port", "0", "--metrics-port", "0"]
        with started(*epp, ready=r"ready grpc=\S+:(\d+) health=\S+ metrics=(\S+)") as (picker, (grpc, metrics)):
            config, listen = (EXAMPLES / example).read_text(), free_port()
            for written, real in [(10000, listen), (9901, 0), (9002, grpc), *zip((8001, 8002, 8003), ports)]:
                config = config.replace(f"port_value: {written}}}", f"port_value: {real}}}")
            with envoy(config, folder, listen) as process:
                yield Stand(f"http://127.0.0.1:{listen}", f"http://{metrics}", ports, picker, process)


MODES = [("buffered-partial.yaml",), ("full-duplex.yaml", "--fallback-endpoints", "0")]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode[0])
def test_the_examples_work_as_they_stand(mode, tmp_path):
    with stand(mode[0], tmp_path, *mode[1:]) as house:
        for size in (10, 3_000, 50_000):
            answer = house.client.post("/v1/completions", json={**ASK, "prompt": "a b " * (size // 4)})
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 4
        stream = house.client.post("/v1/completions", json={**ASK, "stream": True})
        assert stream.text.rstrip().endswith("data: [DONE]")
        assert house.client.get("/v1/models").json()["data"][0]["id"] == "sim"
        refused = house.client.post("/v1/completions", content='{"prompt":[', headers={"content-type": "application/json"})
        assert (refused.status_code, refused.headers["x-pointsman-reason"]) == (400, "malformed")
        assert refused.json()["error"]["code"] == "malformed"
        until(house.at_rest, within=10, what="the ledger is at rest")
        assert sum(house.values("pointsman_picks_total").values()) >= 5


def test_the_pick_is_obeyed_and_a_clients_header_is_not(tmp_path):
    with stand("buffered-partial.yaml", tmp_path) as house:
        served = Counter()
        for number in range(12):
            answer = house.client.post(
                "/v1/completions",
                json={**ASK, "prompt": f"{number % 3} is the beginning of a prompt " * 40},
                headers={"x-gateway-destination-endpoint": "127.0.0.1:1"},
            )
            assert answer.status_code == 200
            served[answer.headers["x-sim-server"]] += 1
        picked = Counter()
        for series, count in house.values("pointsman_picks_total").items():
            picked[house.server_at(re.search(r'endpoint="([^"]+)"', series)[1])] += count
        assert served == {server: count for server, count in picked.items() if count}


def test_without_a_picker_requests_go_on(tmp_path):
    with stand("buffered-partial.yaml", tmp_path) as house:
        assert house.client.post("/v1/completions", json=ASK).status_code == 200
        house.picker.send_signal(signal.SIGSTOP)
        assert house.client.post("/v1/completions", json=ASK).status_code == 200, "a picker that hangs"
        house.picker.kill()
        house.picker.wait()
        for _ in range(5):
            assert house.client.post("/v1/completions", json=ASK).status_code == 200, "a picker that is gone"


def test_the_ledger_is_right_also_when_envoy_dies(tmp_path):
    with stand("buffered-partial.yaml", tmp_path) as house:
        def ask() -> None:
            with pytest.raises(httpx.HTTPError):
                house.client.post("/v1/completions", json={**ASK, "max_tokens": 20_000, "ignore_eos": True})

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for thread in asking:
            thread.start()
        in_flight = lambda: sum(house.values("pointsman_endpoint_in_flight_requests").values())
        until(lambda: in_flight() == 4, within=10, what="four are in flight, though their streams have ended")
        house.envoy.kill()
        for thread in asking:
            thread.join()
        until(house.at_rest, within=10, what="the ledger is at rest")
