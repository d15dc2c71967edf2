"""An API server that fails: a proxy that answers some requests with errors, cuts some short, and lets others pass."""

import contextlib
import http.client
import json
import random
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from harness.cluster import PROGRAMS, Cluster

GONE = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "message": "too old resource version", "code": 410}


def status(code: int, reason: str) -> dict:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": f"injected: {reason}", "code": code}


class ApiFaults:
    """Between a program and the real API server. `rate` of all requests meet a fault."""

    def __init__(self, cluster: Cluster, folder: Path, seed: int = 1) -> None:
        self.rate, self.met = 0.0, Counter()
        self._fatal: tuple[int, bool, Callable[[], None]] | None = None
        self._writes = threading.Lock()
        self.random = random.Random(seed)
        self._passing: set[BaseHTTPRequestHandler] = set()
        command = [PROGRAMS / "kubectl", "--kubeconfig", cluster.kubeconfig, "proxy", "--port=0", "--accept-hosts=.*"]
        self._proxy = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, text=True)
        # "Starting to serve on 127.0.0.1:PORT"
        self._upstream = self._proxy.stdout.readline().rsplit(" ", 1)[1].strip()
        faults = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                faults.handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "faults",
            "contexts": [{"name": "faults", "context": {"cluster": "faults", "user": "faults"}}],
            "clusters": [{"name": "faults", "cluster": {"server": f"http://127.0.0.1:{self._server.server_port}"}}],
            "users": [{"name": "faults", "user": {}}],
        }
        self.kubeconfig = folder / "faults.kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._proxy.kill()
        self._proxy.wait()
        self._proxy.stdout.close()

    def kill_at_write(self, number: int, done: bool, kill: Callable[[], None]) -> None:
        """Kills who asks at its write of that number from now on: before it is done, or after and before that is known."""
        self._fatal = (number, done, kill)

    def _is_fatal(self) -> tuple[bool, Callable[[], None]] | None:
        with self._writes:
            if self._fatal is None:
                return None
            number, done, kill = self._fatal
            self._fatal = (number - 1, done, kill) if number > 1 else None
            return (done, kill) if number == 1 else None

    def break_watches(self) -> None:
        """Ends every answer that is under way."""
        for request in list(self._passing):
            with contextlib.suppress(OSError):
                request.connection.shutdown(socket.SHUT_RDWR)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        is_watch = "watch=true" in request.path or "watch=1" in request.path
        if request.command != "GET" and (fatal := self._is_fatal()):
            done, kill = fatal
            if not done:
                kill()
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._pass_on(request, body, 0) if done else request.connection.close()
            if done:
                kill()
            return
        fault = None
        if self.random.random() < self.rate:
            of_all = ("429", "500", "503", "reset", "slow", "cut")
            own = ("expired",) * 6 if is_watch else ("lost",) if request.command != "GET" else ()
            fault = self.random.choice((*of_all, *own))
            self.met[fault] += 1
        with contextlib.suppress(OSError, http.client.HTTPException):
            match fault:
                case "429":
                    self._answer(request, 429, status(429, "TooManyRequests"), [("retry-after", "1")])
                case "500":
                    self._answer(request, 500, status(500, "InternalError"))
                case "503":
                    self._answer(request, 503, status(503, "ServiceUnavailable"))
                case "reset":
                    request.close_connection = True
                    request.connection.close()
                case "expired":
                    self._answer(request, 200, {"type": "ERROR", "object": GONE})
                case "slow":
                    time.sleep(self.random.uniform(0.2, 1.5))
                    self._pass_on(request, body, None)
                case "lost":
                    # It is done, and nobody is told.
                    self._pass_on(request, body, 0)
                case "cut":
                    self._pass_on(request, body, self.random.randint(1, 3000))
                case _:
                    self._pass_on(request, body, None)

    def _answer(self, request: BaseHTTPRequestHandler, code: int, body: dict, more: list[tuple[str, str]] | None = None) -> None:
        text = json.dumps(body).encode() + b"\n"
        request.send_response(code)
        for name, value in [("content-type", "application/json"), ("content-length", str(len(text))), *(more or [])]:
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(text)

    def _pass_on(self, request: BaseHTTPRequestHandler, body: bytes, most: int | None) -> None:
        """`most`: bytes of the answer that come through before the connection breaks."""
        upstream = http.client.HTTPConnection(self._upstream, timeout=120)
        self._passing.add(request)
        try:
            headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "accept-encoding", "connection")}
            upstream.request(request.command, request.path, body, headers)
            answer = upstream.getresponse()
            if most == 0:
                answer.read()
                raise ConnectionError
            request.send_response(answer.status)
            request.send_header("content-type", answer.getheader("content-type", "application/json"))
            request.send_header("transfer-encoding", "chunked")
            request.end_headers()
            while data := answer.read1(65536):
                if most is not None:
                    data, most = data[:most], most - len(data)
                request.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                request.wfile.flush()
                if most is not None and most <= 0:
                    raise ConnectionError
            request.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            request.close_connection = True
            with contextlib.suppress(OSError):
                request.connection.close()
        finally:
            self._passing.discard(request)
            upstream.close()
