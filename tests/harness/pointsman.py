"""The program under test, started as a user starts it."""

import os
import queue
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from harness.usage import rss_bytes

ROOT = Path(__file__).parent.parent.parent
BINARY = Path(os.environ.get("POINTSMAN_BIN", ROOT / "target/debug/pointsman"))
READY = re.compile(r"ready gateway=(https?://\S+) admin=(http://\S+)\n")
START_S_MAX = 20.0


def command(*arguments: object) -> list[str]:
    """The program with arguments; it is killed should the tests die."""
    return ["setpriv", "--pdeathsig", "KILL", str(BINARY), *map(str, arguments)]


def run(*arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess:
    """Runs a subcommand that ends by itself."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=30, input=stdin)


class Pointsman:
    """`pointsman up` on free ports."""

    def __init__(self, folder: Path, *arguments: object, listen: str = "127.0.0.1:0") -> None:
        self.log_file = folder / f"pointsman-{time.monotonic_ns()}.log"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command("up", "--listen", listen, "--admin", "127.0.0.1:0", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        ready = READY.fullmatch(self._first_line())
        assert ready, f"it is not ready:\n{self.log()}"
        self.gateway, self.admin = ready.groups()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self.client = httpx.Client(base_url=self.gateway, timeout=30, limits=limits, trust_env=False)

    def _first_line(self) -> str:
        """The line that it prints once it serves; empty if it ends first."""
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=lambda: lines.put(self.process.stdout.readline().decode()), daemon=True).start()
        try:
            return lines.get(timeout=START_S_MAX)
        except queue.Empty:
            self.process.kill()
            raise AssertionError(f"no ready line within {START_S_MAX} s:\n{self.log()}") from None

    def log(self) -> str:
        return self.log_file.read_text()

    def log_lines(self, *words: str) -> list[str]:
        """Lines of the log that hold all the words."""
        return [line for line in self.log().splitlines() if all(word in line for word in words)]

    def complete(self, prompt: str = "Which track?", model: str = "tiny", **fields: object) -> httpx.Response:
        """A completion, and the whole answer to it."""
        headers = fields.pop("headers", None)
        body = {"model": model, "prompt": prompt, "max_tokens": 4, **fields}
        return self.client.post("/v1/completions", json=body, headers=headers)

    def chat(self, content: str = "Which track?", model: str = "tiny", **fields: object) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def admin_get(self, path: str, **options: object) -> httpx.Response:
        return httpx.get(self.admin + path, timeout=10, trust_env=False, **options)

    def metrics(self) -> "Metrics":
        page = self.admin_get("/metrics")
        assert page.status_code == 200, page.text
        return Metrics(page.text)

    def rss_bytes(self) -> int:
        """Memory that is resident now."""
        return rss_bytes(self.process.pid)

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, within: float) -> int:
        """The exit code."""
        return self.process.wait(within)

    def close(self) -> None:
        """Ends it, however it is. A panic is a failure of any test."""
        self.client.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        assert "panicked" not in self.log(), self.log()


@dataclass
class Metrics:
    """A metrics page, read by Prometheus' own parser."""

    text: str

    def value(self, name: str, /, **labels: str) -> float:
        """The sum over the series of that name with these labels; 0 where there is none."""
        return sum(self.series(name, **labels).values())

    def series(self, name: str, /, **labels: str) -> dict[tuple[tuple[str, str], ...], float]:
        found = {}
        for family in text_string_to_metric_families(self.text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    found[tuple(sorted(sample.labels.items()))] = sample.value
        return found
