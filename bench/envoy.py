"""What a request pays for being picked, Envoy and the picker alone on one machine: by how Envoy is told of the pick, and by how much of a
body Envoy keeps to send it again.

    cargo build --release -p pointsman && cargo xtask install
    ~/.cache/pointsman/blackbox/bin/python bench/envoy.py path | kept

Real Envoy with one worker, the configurations of examples/envoy, three simulated model servers that answer at once. Ways are asked in turn, one
request after the other on a connection each; CPU is each process's own (/proc/PID/stat) for each request.
"""

import http.client
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
os.environ.setdefault("POINTSMAN_BIN", str(ROOT / "target/release/pointsman"))
sys.path.insert(0, str(ROOT / "tests"))

from harness.envoy import MODEL, Process, Sims, Stand, replaced, stand  # noqa: E402
from harness.usage import cpu_s  # noqa: E402

KIB = 1024
FAST = ("--prefill-us-per-token", "0", "--step-base-us", "1", "--decode-us-per-seq", "0")


def without_picker(config: str) -> str:
    """The same Envoy with no ext_proc filter: its cluster's own balancing."""
    tree = yaml.safe_load(config)
    manager = tree["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"] = manager["http_filters"][-1:]
    del manager["access_log"]
    return yaml.safe_dump(tree)


def keeping(limit: int) -> Callable[[str], str]:
    return replaced("request_body_buffer_limit: 65536", f"request_body_buffer_limit: {limit}")


class Way:
    """One stand, a connection to its Envoy, and what was seen."""

    def __init__(self, name: str, house: Stand) -> None:
        self.name, self.house = name, house
        self.connection = http.client.HTTPConnection(house.envoy.url.removeprefix("http://"))
        self.begin()

    def begin(self) -> None:
        self.seconds: list[float] = []
        self._used = [cpu_s(process.process.pid) for process in self._processes()]

    def ask(self, body: str) -> int:
        begin = time.monotonic()
        self.connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        answer = self.connection.getresponse()
        answer.read()
        self.seconds.append(time.monotonic() - begin)
        return answer.status

    def cpu_us(self) -> list[float]:
        """Of Envoy and of the picker, for each request."""
        now = [cpu_s(process.process.pid) for process in self._processes()]
        return [1e6 * (after - before) / len(self.seconds) for before, after in zip(self._used, now)]

    def p(self, share: float) -> float:
        """Milliseconds."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def _processes(self) -> tuple[Process, Process]:
        return self.house.envoy, self.house.picker


def resident_max_mb(process: Process) -> float:
    lines = Path(f"/proc/{process.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1000


def prompt(size: int) -> str:
    """A body of that many bytes. More than the simulated model's context stands beside the prompt, as images do."""
    text = ("track " * (size // 6 + 1))[: size - 80]
    return json.dumps({"model": MODEL, "max_tokens": 1, "prompt": text[: 220 * KIB], "user": text[220 * KIB :]})


def stands(stack: ExitStack, addresses: list[str], ways: dict[str, tuple[str, Callable[[str], str]]]) -> list[Way]:
    made = []
    for name, (example, edit) in ways.items():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made.append(Way(name, stack.enter_context(stand(folder, example, addresses, edit=edit))))
    return made


def path(stack: ExitStack, addresses: list[str]) -> None:
    same = lambda config: config
    ways = {
        "no picker": ("buffered-partial", without_picker),
        "BUFFERED_PARTIAL, metadata, override_host (ours)": ("buffered-partial", keeping(1024 * KIB)),
        "FULL_DUPLEX_STREAMED, header, ORIGINAL_DST": ("full-duplex", same),
    }
    made = stands(stack, addresses, ways)
    print("| body | | p50, ms | p99, ms | added at p50, ms | CPU of Envoy, us | of the picker, us |\n|---|---|---|---|---|---|---|")
    for size, requests in ((1 * KIB, 3000), (32 * KIB, 2000), (220 * KIB, 1000), (900 * KIB, 300)):
        rounds(made, prompt(size), requests)
        for way in made:
            added = way.p(0.5) - made[0].p(0.5)
            envoy, picker = way.cpu_us()
            print(f"| {size // KIB} KB | {way.name} | {way.p(0.5):.2f} | {way.p(0.99):.2f} | {added:.2f} | {envoy:.0f} | {picker:.0f} |", flush=True)


def rounds(made: list[Way], body: str, requests: int) -> None:
    for _ in range(20):
        assert {way.ask(body) for way in made} == {200}
    for way in made:
        way.begin()
    for _ in range(requests):
        for way in made:
            assert way.ask(body) == 200


def kept(stack: ExitStack, addresses: list[str]) -> None:
    """Two servers that answer and one that refuses every second request, by 503, when it has read it."""
    refusing = Refusing()
    addresses = [*addresses[:2], refusing.address]
    limits = {f"{limit} KiB": ("buffered-partial", keeping(limit * KIB)) for limit in (64, 1024, 16 * 1024)}
    made = stands(stack, addresses, limits)
    print("| kept | body | refused by a server, of these by Envoy | p50, ms | p99, ms | CPU of Envoy, us | of the picker, us |\n|---|---|---|---|---|---|---|")
    for size, requests in ((32 * KIB, 600), (220 * KIB, 400), (900 * KIB, 200), (3000 * KIB, 60)):
        body = prompt(size)
        for way in made:
            way.begin()
        outcomes = {way.name: [0, 0] for way in made}
        for _ in range(requests):
            for way in made:
                before = refusing.refused
                status = way.ask(body)
                outcomes[way.name][0] += refusing.refused > before
                outcomes[way.name][1] += status != 200
        for way in made:
            envoy, picker = way.cpu_us()
            first, last = outcomes[way.name]
            print(f"| {way.name} | {size // KIB} KB | {first}, {last} | {way.p(0.5):.2f} | {way.p(0.99):.2f} | {envoy:.0f} | {picker:.0f} |", flush=True)
    print("\n| kept | 32 bodies of 3 MB at once: Envoy's peak, MB | the picker's |\n|---|---|---|")
    for way in made:
        at_once(way, prompt(3000 * KIB), 32)
        print(f"| {way.name} | {resident_max_mb(way.house.envoy):.0f} | {resident_max_mb(way.house.picker):.0f} |", flush=True)


def at_once(way: Way, body: str, clients: int) -> None:
    def ask() -> None:
        connection = http.client.HTTPConnection(way.house.envoy.url.removeprefix("http://"))
        for _ in range(4):
            connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            connection.getresponse().read()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Refusing:
    """A model server that is full at every second request."""

    def __init__(self) -> None:
        self.seen, self.refused = 0, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.seen += 1
                if self.headers.get("transfer-encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        self.rfile.read(size + 2)
                    self.rfile.readline()
                else:
                    self.rfile.read(int(self.headers["content-length"]))
                if outer.seen % 2:
                    return self.answer(200, b'{"object":"text_completion","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}')
                outer.refused += 1
                self.answer(503, b"full")

            def do_GET(self) -> None:
                page = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n"
                models = b'{"object":"list","data":[{"id":"%s","object":"model"}]}' % MODEL.encode()
                self.answer(200, models if self.path.startswith("/v1/models") else page)

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.address = f"127.0.0.1:{server.server_port}"


def main() -> None:
    parts = {"path": path, "kept": kept}
    what = (sys.argv[1:] or [""])[0]
    if what not in parts:
        sys.exit(__doc__)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = Sims(folder, 3, 1000, *FAST)
        stack.callback(servers.close)
        parts[what](stack, servers.addresses)


if __name__ == "__main__":
    main()
