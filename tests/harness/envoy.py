"""Real Envoy in front of `pointsman epp`, with the configurations of examples/envoy on free ports."""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import yaml

from harness.manifests import ManifestFile
from harness.pointsman import ROOT, Metrics, command
from harness.wait import until

EXAMPLES = ROOT / "examples/envoy"
CACHE = Path(os.environ.get("POINTSMAN_CACHE", Path.home() / ".cache/pointsman"))
ENVOY = os.environ.get("POINTSMAN_ENVOY") or next(
    map(str, (CACHE / "programs").glob("lib/*/site-packages/envoy/_bin/envoy")), "envoy"
)
MODES = {"buffered-partial": (), "full-duplex": ("--fallback-endpoints", "0")}
"""The examples, and the picker's flags that each wants."""
EXAMPLE_PORTS = ("8001", "8002", "8003")
"""Of the model servers, in order."""
COMPLETIONS = "/v1/completions"
MODEL = "tiny"
"""Of the simulated servers, as of the scripted ones."""
WITHIN_S = 20.0
"""For what takes a moment, on a machine that does other things too."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A program with a line that says it is ready. Killed at the end, also when it is stopped by SIGSTOP."""

    def __init__(self, log: Path, *arguments: object) -> None:
        self.log_file = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                list(map(str, arguments)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, text=True
            )

    def ready(self, pattern: str) -> tuple[str, ...]:
        line = self.process.stdout.readline()
        found = re.match(pattern, line)
        assert found, f"it is not ready: {line!r}\n{self.log()}"
        return found.groups()

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self, within: float) -> int:
        """Asks it to stop; the exit code."""
        self.send(signal.SIGTERM)
        return self.process.wait(within)

    def close(self) -> None:
        self.kill()
        self.process.stdout.close()
        assert "panicked" not in self.log(), self.log()


class Sims(Process):
    """Simulated model servers, all in one process."""

    def __init__(self, folder: Path, count: int = 3, speed: int = 50, *flags: object) -> None:
        sim = command("sim", "--model", MODEL, "--count", count, "--listen", "127.0.0.1:0", "--speed", speed, *flags)
        super().__init__(folder / "sim.log", *sim)
        (urls,) = self.ready(r"ready servers=(\S+)")
        self.urls = urls.split(",")
        self.addresses = [url.removeprefix("http://") for url in self.urls]

    def running(self) -> float:
        """Requests that they say they compute."""
        pages = (httpx.get(f"{url}/metrics", timeout=WITHIN_S, trust_env=False).text for url in self.urls)
        return sum(Metrics(page).value("vllm:num_requests_running") for page in pages)


class Picker(Process):
    """`pointsman epp`, its gRPC port over TLS as by default."""

    def __init__(self, folder: Path, pool: Path, port: int, *flags: object) -> None:
        epp = command("epp", "-f", pool, "--bind", "127.0.0.1", "--grpc-port", port, *flags)
        super().__init__(folder / f"epp-{port}.log", *epp, "--grpc-health-port", "0", "--metrics-port", "0")
        grpc, self.metrics_address = self.ready(r"ready grpc=\S+:(\d+) health=\S+ metrics=(\S+)")
        self.port = int(grpc)

    def metrics(self) -> Metrics:
        page = httpx.get(f"http://{self.metrics_address}/metrics", timeout=WITHIN_S, trust_env=False)
        return Metrics(page.text)

    def picks(self) -> float:
        return self.metrics().value("pointsman_picks_total")

    def in_flight(self) -> float:
        return self.metrics().value("pointsman_endpoint_in_flight_requests")

    def rests(self) -> None:
        """Waits until nothing is booked."""
        until(lambda: self.in_flight() == 0, within=WITHIN_S, what="the ledger is at rest")


class Envoy(Process):
    """Envoy with one worker; it listens where it likes. `listener` names one of several."""

    def __init__(self, folder: Path, config: str, *, program: object = ENVOY, listener: str | None = None) -> None:
        self._listener = listener
        self.file, admin = folder / "envoy.yaml", folder / "envoy-admin"
        self.file.write_text(config)
        admin.unlink(missing_ok=True)
        flags = ("-c", self.file, "--admin-address-path", admin, "--log-level", "error")
        # Dies with the tests, and shares no memory with another Envoy of this machine.
        alone = ("--use-dynamic-base-id", "--concurrency", "1")
        super().__init__(folder / "envoy.log", "setpriv", "--pdeathsig", "KILL", program, *flags, *alone)
        until(lambda: self._lives() and admin.exists() and admin.read_text(), within=WITHIN_S, what="Envoy's admin")
        self.admin = f"http://{admin.read_text()}"
        self.url = "http://" + until(self._listens, within=WITHIN_S, what="Envoy listens")

    def stat(self, name: str) -> int:
        """A counter or gauge of Envoy's own."""
        answer = httpx.get(f"{self.admin}/stats", params={"filter": f"^{re.escape(name)}$"}, trust_env=False)
        found = re.fullmatch(r".*: (\d+)\n", answer.text)
        assert found, f"Envoy has no {name}"
        return int(found[1])

    def healthy_pickers(self) -> int:
        return self.stat("cluster.picker.membership_healthy")

    def _lives(self) -> bool:
        assert self.process.poll() is None, f"Envoy ended:\n{self.log()}"
        return True

    def _listens(self) -> str | None:
        """The listener's address, once the clusters are known and it takes connections."""
        assert self._lives()
        if httpx.get(f"{self.admin}/ready", trust_env=False).status_code != 200:
            return None
        listeners = json.loads(httpx.get(f"{self.admin}/listeners?format=json", trust_env=False).text)["listener_statuses"]
        [listener] = [each for each in listeners if self._listener in (None, each["name"])]
        address = listener["local_address"]["socket_address"]
        return f"{address['address']}:{address['port_value']}"


class Stand:
    """Envoy and a picker or two, in front of the model servers at these addresses."""

    def __init__(self, folder: Path, example: str, addresses: list[str], edit: Callable[[str], str], *flags: object) -> None:
        self.folder, self._flags = folder, (*MODES[example], *flags)
        self._file = ManifestFile(folder / "pool.yaml")
        # As many of the three that the examples name as there are servers.
        ports = dict(zip(EXAMPLE_PORTS, (address.rsplit(":", 1)[1] for address in addresses)))
        self._pool, self._slice = yaml.safe_load_all((EXAMPLES / "pool.yaml").read_text())
        self._slice["ports"] = [{"port": int(port)} for port in ports.values()]
        self.declare()
        self._stack = ExitStack()
        try:
            self.picker = self.start_picker(0)
            self.second_port = free_port()
            ports |= {"10000": "0", "9901": "0", "9002": str(self.picker.port), "9012": str(self.second_port)}
            config = (EXAMPLES / f"{example}.yaml").read_text()
            for port in set(EXAMPLE_PORTS) - ports.keys():
                config = re.sub(rf".*port_value: {port}\b.*\n", "", config)
            self.envoy = Envoy(folder, edit(_ports(config, ports)))
            self._stack.callback(self.envoy.close)
            self.client = self.new_client()
        except BaseException:
            self.close()
            raise

    def declare(self, *documents: dict, annotations: dict[str, str] | None = None) -> None:
        """Writes the pool with these annotations beside its own, its servers, and what else is given."""
        metadata = self._pool["metadata"]
        metadata = {**metadata, "annotations": {**metadata["annotations"], **(annotations or {})}}
        self._file.write({**self._pool, "metadata": metadata}, self._slice, *documents)

    def start_picker(self, port: int, *flags: object) -> Picker:
        """One more, at that port; ended with the stand at the latest."""
        picker = Picker(self.folder, self._file.path, port, *self._flags, *flags)
        self._stack.callback(picker.close)
        return picker

    def restart_picker(self, *flags: object) -> None:
        """A new process at the port of the one that was."""
        self.picker = self.start_picker(self.picker.port, *flags)

    def new_client(self, **options: object) -> httpx.Client:
        """A client of Envoy's."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        client = httpx.Client(base_url=self.envoy.url, timeout=60, limits=limits, trust_env=False, **options)
        self._stack.callback(client.close)
        return client

    def complete(self, prompt: str = "Which track?", headers: dict | None = None, **fields: object) -> httpx.Response:
        return self.client.post(COMPLETIONS, json={"model": MODEL, "prompt": prompt, "max_tokens": 4, **fields}, headers=headers)

    def close(self) -> None:
        self._stack.close()


@contextmanager
def stand(
    folder: Path, example: str, addresses: Iterable[str], *flags: object, edit: Callable[[str], str] = lambda config: config
) -> Iterator[Stand]:
    """A stand for up to three servers; `edit` changes Envoy's configuration, the flags are the picker's."""
    house = Stand(folder, example, list(addresses), edit, *flags)
    try:
        yield house
    finally:
        house.close()


def replaced(old: str, new: str) -> Callable[[str], str]:
    """An edit of the one place that reads so."""

    def edit(config: str) -> str:
        assert config.count(old) == 1, f"{old!r} is there {config.count(old)} times"
        return config.replace(old, new)

    return edit


def _ports(config: str, ports: dict[str, str]) -> str:
    """Other ports for those written; every one that is there must have another."""
    return re.sub(r"(port_value: )(\d+)\b", lambda found: found[1] + ports[found[2]], config)
