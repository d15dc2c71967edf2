"""What the tests start and talk to: the program, fake model servers, manifest files, traffic."""

import json
import os
import queue
import re
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

import httpx
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from contract import pages

REPOSITORY = Path(__file__).parents[2]
BINARY = Path(os.environ.get("POINTSMAN_BIN", REPOSITORY / "target/debug/pointsman"))

STRATEGY = "inference.networking.x-k8s.io/routing-strategy"
QUEUEING = "inference.networking.x-k8s.io/queueing"
RUNTIME = "inference.networking.x-k8s.io/model-server-runtime"
OVERLAY = "inference.networking.x-k8s.io/epp-overlay"
BLOCK_SIZE = "inference-epp-env.networking.x-k8s.io/prefix-cache-hash-block-size"
PREFIX_BLOCKS_MAX = "inference-epp-env.networking.x-k8s.io/prefix-cache-max-prefix-blocks"
LRU_CAPACITY = "inference-epp-env.networking.x-k8s.io/prefix-cache-lru-capacity"
QUEUE_CAPACITY = "inference-epp-env.networking.x-k8s.io/total-queue-capacity"
QUEUE_TTL = "inference-epp-env.networking.x-k8s.io/queue-ttl"


def eventually(holds, within_s=5.0, every_s=0.02):
    """Waits until `holds()` is true and returns what it gave; fails when no try begun in time is."""
    deadline = time.monotonic() + within_s
    while True:
        begun = time.monotonic()
        result = holds()
        if result:
            return result
        assert begun < deadline, f"still {result!r} after {within_s} s"
        time.sleep(every_s)


class Process:
    """A program that runs until it is stopped; its output is collected line by line."""

    def __init__(self, *arguments):
        self.child = subprocess.Popen(
            [BINARY, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = []
        self._stdout = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=(self.child.stdout, self._stdout.put)),
            threading.Thread(target=self._read, args=(self.child.stderr, self.log.append)),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe, put):
        for line in pipe:
            put(line.rstrip("\n"))

    def line(self, within_s=15.0):
        """The next line on stdout."""
        try:
            return self._stdout.get(timeout=within_s)
        except queue.Empty:
            raise AssertionError("nothing on stdout; the log:\n" + "\n".join(self.log)) from None

    def logged(self, *parts):
        """The lines of the log that have all the parts."""
        return [line for line in self.log if all(part in line for part in parts)]

    def stop(self, within_s=10.0):
        """SIGTERM, then the exit status."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(within_s)
        finally:
            self.child.kill()
            for reader in self._readers:
                reader.join()


class Pointsman(Process):
    """`pointsman up` on free ports, ready to be asked."""

    def __init__(self, *arguments):
        super().__init__(
            "up", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--drain", "5s", *arguments
        )
        ready = self.line()
        found = re.fullmatch(r"ready gateway=(http://\S+) admin=(http://\S+)", ready)
        assert found, ready
        self.gateway, self.admin = found.groups()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self.http = httpx.Client(
            base_url=self.gateway, timeout=20, limits=limits, trust_env=False, verify=False
        )

    def chat(self, content="hello", model="base", headers=None, **fields):
        body = {"model": model, "messages": [{"role": "user", "content": content}], **fields}
        return self.http.post("/v1/chat/completions", json=body, headers=headers)

    def complete(self, prompt, model="base"):
        return self.http.post("/v1/completions", json={"model": model, "prompt": prompt})

    def page(self):
        answer = self.http.get(self.admin + "/metrics")
        assert answer.status_code == 200
        return answer.text

    def metrics(self):
        """All samples of the metrics page, by name: lists of (labels, value)."""
        samples = {}
        for family in text_string_to_metric_families(self.page()):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
        return samples

    def metric(self, name):
        """A sample's value, summed over its labels; 0 when there is none yet."""
        return sum(value for _, value in self.metrics().get(name, []))

    def state(self):
        return self.http.get(self.admin + "/state").raise_for_status().json()

    def stop(self, within_s=10.0):
        self.http.close()
        return super().stop(within_s)


@dataclass
class Recorded:
    """A request as it reached a model server."""

    path: str
    headers: dict
    body: bytes


class Upstream:
    """A model server whose every move a test decides. Attributes may change while it runs.

    mode: `json` (or SSE where the client asks for a stream), `503`, `reset` (before the first byte),
        `hang` (no answer until the client goes), `break` (a stream that ends in its midst).
    gate: an answer (of a stream: all but its first event) waits until it is set.
    """

    def __init__(self, page=None, models=("base",), mode="json", events=3):
        self.page = pages.vllm() if page is None else page
        self.page_mode = "ok"  # or `hang`, or a status such as `500`
        self.models = list(models)
        self.mode = mode
        self.events = events
        self.gate = threading.Event()
        self.gate.set()
        self.requests = []
        self.cancelled = 0
        self.scrapes = 0
        self.stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"upstream": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.port = self._server.server_port
        self.address = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,)).start()

    def show(self, page):
        """Changes the metrics page; returns once it has been read."""
        self.page = page
        self.scraped()

    def scraped(self, times=2):
        """Waits for scrapes that began after this call, the last but one of them digested."""
        before = self.scrapes
        eventually(lambda: self.scrapes >= before + times)

    def stop(self):
        self.stopped.set()
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def server_bind(self):
        TCPServer.server_bind(self)  # HTTPServer's asks the DNS for this machine's name
        self.server_port = self.server_address[1]

    def handle_error(self, request, client_address):
        pass  # connections that the other side ends are part of the tests


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    upstream = None

    def log_message(self, *_):
        pass

    def do_GET(self):
        upstream = self.upstream
        if self.path == "/metrics":
            upstream.scrapes += 1
            if upstream.page_mode == "hang":
                upstream.stopped.wait()
            elif upstream.page_mode == "ok":
                self._send(200, upstream.page.encode(), "text/plain; version=0.0.4; charset=utf-8")
            else:
                self._send(int(upstream.page_mode), b"no metrics today", "text/plain")
        elif self.path == "/v1/models":
            data = [{"id": name, "object": "model", "owned_by": "test"} for name in upstream.models]
            self._send_json(200, {"object": "list", "data": data})
        else:
            self._send_json(404, {"error": {"message": "no such page"}})

    def do_POST(self):
        upstream, body = self.upstream, self._body()
        upstream.requests.append(Recorded(self.path, dict(self.headers.items()), body))
        try:
            stream = json.loads(body).get("stream", False)
        except ValueError:
            stream = False
        if upstream.mode == "reset":
            self._reset()
        elif upstream.mode == "503":
            self._send_json(503, {"error": {"message": "out of memory"}})
        elif upstream.mode == "hang":
            self._wait_for(upstream.stopped)
        elif stream:
            self._stream()
        elif self._wait_for(upstream.gate):
            self._send_json(200, self._completion())

    def _body(self):
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status, body, content_type):
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_json(self, status, value):
        self._send(status, json.dumps(value).encode(), "application/json")

    def _completion(self):
        text = "Track two."
        choice = {"index": 0, "finish_reason": "stop"}
        if self.path == "/v1/chat/completions":
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        return {
            "id": "cmpl-1",
            "object": "chat.completion",
            "created": 1700000000,
            "model": "base",
            "system_fingerprint": self.upstream.address,
            "choices": [choice],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }

    def _stream(self):
        upstream = self.upstream
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for number in range(upstream.events):
                if number > 0 and not self._wait_for(upstream.gate):
                    return
                if number > 1 and upstream.mode == "break":
                    self._reset()
                    return
                self._event(
                    {
                        "id": "cmpl-1",
                        "object": "chat.completion.chunk",
                        "created": 1700000000,
                        "model": "base",
                        "system_fingerprint": upstream.address,
                        "choices": [{"index": 0, "delta": {"content": f"word{number} "}}],
                    }
                )
            usage = {"prompt_tokens": 7, "completion_tokens": upstream.events, "total_tokens": 10}
            self._event({"id": "cmpl-1", "object": "chat.completion.chunk", "created": 1700000000,
                         "model": "base", "choices": [], "usage": usage})
            self._chunk(b"data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            upstream.cancelled += 1
            self.close_connection = True

    def _event(self, value):
        self._chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _wait_for(self, event):
        """Waits for the event; false when the client went away before."""
        while not event.is_set():
            readable, _, _ = select.select([self.connection], [], [], 0.02)
            try:
                gone = readable and self.connection.recv(1, socket.MSG_PEEK) == b""
            except OSError:
                gone = True
            if gone:
                self.upstream.cancelled += 1
                self.close_connection = True
                return False
        return True

    def _reset(self):
        """Ends the connection with a TCP reset."""
        self.close_connection = True
        linger_none = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
        os.close(self.connection.detach())


class PoolFile:
    """A manifest file with one InferencePool and the EndpointSlice of its servers."""

    def __init__(self, path, servers, annotations=None, version="v1"):
        self.path = path
        self.servers = list(servers)
        self.annotations = dict(annotations or {})
        self.version = version
        self.target_port = 8000
        self.slice_has_port = True
        self.write()

    def annotate(self, key, value):
        self.annotations[key] = value
        self.write()

    def write(self):
        self.write_text(yaml.safe_dump_all([self._pool(), *self._slices()], sort_keys=False))

    def write_text(self, text):
        """Replaces the file in one step, as editors do."""
        beside = self.path.with_name("." + self.path.name)
        beside.write_text(text)
        beside.replace(self.path)

    def _pool(self):
        metadata = {"name": "pool", "namespace": "default", "annotations": self.annotations}
        if self.version == "v1":
            group = "inference.networking.k8s.io"
            spec = {
                "selector": {"matchLabels": {"app": "model"}},
                "targetPorts": [{"number": self.target_port}],
                "endpointPickerRef": {"name": "picker", "port": {"number": 9002}},
            }
        else:
            group = "inference.networking.x-k8s.io"
            spec = {
                "selector": {"app": "model"},
                "targetPortNumber": self.target_port,
                "extensionRef": {"name": "picker"},
            }
        version = f"{group}/{self.version}"
        return {"apiVersion": version, "kind": "InferencePool", "metadata": metadata, "spec": spec}

    def _slices(self):
        """One slice for each server: the fake ones differ in their port, not in their address."""
        for number, server in enumerate(self.servers):
            piece = {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"slice-{number}",
                    "namespace": "default",
                    "labels": {"app": "model"},
                },
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}],
            }
            if self.slice_has_port:
                piece["ports"] = [{"port": server.port}]
            yield piece


@contextmanager
def traffic(pointsman, clients=2):
    """Keeps asking until the block ends; then not one of the requests may have failed."""
    failures, served, done = [], Counter(), threading.Event()

    def ask():
        while not done.is_set():
            try:
                answer = pointsman.chat("hi")
                if answer.status_code == 200:
                    served[served_by(answer)] += 1
                else:
                    failures.append((answer.status_code, answer.text))
            except httpx.HTTPError as error:
                failures.append(repr(error))
            done.wait(0.01)

    workers = [threading.Thread(target=ask) for _ in range(clients)]
    for worker in workers:
        worker.start()
    try:
        yield served
    finally:
        done.set()
        for worker in workers:
            worker.join()
    assert not failures, failures[:3]
    assert served.total() > 0


def served_by(answer):
    """The address of the model server that answered."""
    assert answer.status_code == 200, (answer.status_code, answer.text)
    return answer.json()["system_fingerprint"]


def spread(pointsman, times, content="hello"):
    """Asks one request after the other and counts them by server; `content` may be a function."""
    text = content if callable(content) else lambda _: content
    return Counter(served_by(pointsman.chat(text(number))) for number in range(times))


def at_once(ask, times):
    """Runs `ask(number)` so many times side by side; the results."""
    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(ask, range(times)))


def closed_port():
    """The address of a port on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"
