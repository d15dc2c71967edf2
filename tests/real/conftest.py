"""Two real vLLM servers on CPU, and `pointsman up` in front of them, as users start them."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent.parent
CACHE = Path(os.environ.get("POINTSMAN_CACHE", Path.home() / ".cache/pointsman"))
POINTSMAN = os.environ.get("POINTSMAN_BIN", str(ROOT / "target/debug/pointsman"))
VLLM_PYTHON = os.environ.get("POINTSMAN_VLLM_PYTHON", str(CACHE / "vllm-0.32/bin/python"))
MODELS = Path(os.environ.get("POINTSMAN_MODELS", CACHE / "models"))
START_S = 420
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "VLLM_CPU_OMP_THREADS_BIND": "auto",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Vllm:
    """One real server. Its worker processes end with it: it runs on a leash."""

    def __init__(self, log: Path):
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        self.log = log
        command = [VLLM_PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODELS / "tiny")]
        command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", self.address.split(":")[1]]
        command += ["--dtype", "bfloat16", "--max-model-len", "4096", "--block-size", "32"]
        command += ["--enable-prefix-caching", "--enforce-eager", "--max-num-seqs", "4"]
        command += ["--distributed-executor-backend", "uni", "--num-gpu-blocks-override", "512"]
        command += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", "8", "--lora-modules"]
        command += [f"{name}={MODELS / name}" for name in ("lora-a", "lora-b")]
        leash = [sys.executable, str(ROOT / "tests/harness/leash.py")]
        self.process = subprocess.Popen(
            leash + command,
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )

    def wait_until_ready(self):
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"vLLM ended: {self.log.read_text()[-3000:]}"
            try:
                if httpx.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return self._give_way()
            except httpx.HTTPError:
                time.sleep(0.5)
        raise TimeoutError(f"vLLM did not start in {START_S} s: {self.log.read_text()[-3000:]}")

    def _give_way(self):
        """The engine's processes run only while nobody else wants to. They spin while they wait for each other: on two cores
        (Linux 6.18) everything else stood still for seconds, vLLM's own metrics page and the tests among it."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if not (process / "comm").read_text().startswith("VLLM::") or not self._is_mine(int(process.name)):
                    continue
                for thread in (process / "task").iterdir():
                    os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))
            except (ProcessLookupError, FileNotFoundError):
                continue

    def _is_mine(self, process: int) -> bool:
        """The leash is the parent of its session's leader."""
        leader = Path(f"/proc/{os.getsid(process)}/stat").read_text()
        return int(leader.rsplit(")", 1)[1].split()[1]) == self.process.pid

    def counter(self, name: str) -> float:
        """A counter of vLLM's own page, summed over its series."""
        page = httpx.get(f"{self.url}/metrics").text
        rows = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", page, flags=re.MULTILINE)
        assert rows, f"vLLM prints no {name}"
        return sum(map(float, rows))

    def reset_prefix_cache(self):
        httpx.post(f"{self.url}/reset_prefix_cache", timeout=30).raise_for_status()

    def kill(self):
        """All of it at once, as the kernel would when memory is out."""
        self.process.stdin.close()
        self.process.wait(30)


class Pointsman:
    """`pointsman up` in front of these servers."""

    def __init__(self, folder: Path, servers: list[Vllm], strategy: str):
        manifest = folder / f"pool-{strategy}-{time.monotonic_ns()}.yaml"
        manifest.write_text(
            "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata:\n  name: tiny\n"
            f"  annotations: {{inference.networking.x-k8s.io/routing-strategy: {strategy}}}\n"
            "spec:\n  selector: {matchLabels: {app: tiny}}\n  targetPorts: [{number: 8000}]\n"
        )
        command = [POINTSMAN, "up", "-f", str(manifest), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        for server in servers:
            command += ["--endpoint", server.address]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()
        ready = self.process.stdout.readline()
        assert ready.startswith("ready "), f"{ready!r} {self.log}"
        self.url, self.admin = (word.split("=", 1)[1] for word in ready.split()[1:3])

    def state(self) -> dict:
        return httpx.get(f"{self.admin}/state").json()["pools"][0]

    def picks(self) -> dict[tuple[str, str], float]:
        """Picks by endpoint and reason."""
        page = httpx.get(f"{self.admin}/metrics").text
        rows = re.findall(r'^pointsman_picks_total\{endpoint="([^"]+)",reason="([^"]+)"\} (\S+)$', page, re.MULTILINE)
        return {(endpoint, reason): float(count) for endpoint, reason, count in rows}

    def in_flight(self) -> float:
        page = httpx.get(f"{self.admin}/metrics").text
        return sum(map(float, re.findall(r"^pointsman_endpoint_in_flight_requests\{.*\} (\S+)$", page, re.MULTILINE)))

    def retries(self) -> float:
        page = httpx.get(f"{self.admin}/metrics").text
        return sum(map(float, re.findall(r"^pointsman_retries_total\{.*\} (\S+)$", page, re.MULTILINE)))

    def stop(self):
        self.process.terminate()
        assert self.process.wait(40) == 0, self.log


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    servers = [Vllm(folder / f"vllm-{number}.log") for number in range(2)]
    try:
        for server in servers:
            server.wait_until_ready()
        yield servers
    finally:
        for server in servers:
            server.kill()


@pytest.fixture
def pointsman(servers, tmp_path):
    """Starts gateways by strategy; all are stopped, orderly, at the test's end."""
    started = []

    def start(strategy: str) -> Pointsman:
        started.append(Pointsman(tmp_path, servers, strategy))
        return started[-1]

    yield start
    for gateway in started:
        gateway.stop()
