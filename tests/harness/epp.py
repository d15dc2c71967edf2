"""The endpoint picker as a program: started, asked as Envoy asks, and looked at."""

import json
import queue
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx

from harness.ext_proc import Outcome, Peer, Stream, response_headers
from harness.manifests import PoolFile
from harness.pointsman import Pointsman, command
from harness.upstream import Upstream
from harness.wait import until

READY = re.compile(r"ready grpc=(\S+:\d+) health=(\S+:\d+) metrics=(\S+:\d+)\n")
PORTS = ("--grpc-port", "0", "--grpc-health-port", "0", "--metrics-port", "0")
IN_FLIGHT = "pointsman_endpoint_in_flight_requests"
BODY = b'{"model":"tiny","prompt":"Which track?","max_tokens":4}'
MARGIN_S = 10.0


class Picker(Pointsman):
    """`pointsman epp` on free ports, in the clear unless `secure`."""

    def __init__(self, folder: Path, *arguments: object, bind: str = "127.0.0.1", secure: bool = False) -> None:
        self.log_file = folder / f"epp-{time.monotonic_ns()}.log"
        clear = () if secure else ("--secure-serving=false",)
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command("epp", "--bind", bind, *PORTS, *clear, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        line = self._first_line()
        ready = READY.fullmatch(line)
        assert ready, f"it is not ready: {line!r}\n{self.log()}"
        self.grpc, self.health, metrics = ready.groups()
        self.gateway, self.admin = f"http://{self.grpc}", f"http://{metrics}"
        self.client = httpx.Client(base_url=self.admin, timeout=30, trust_env=False)
        self._secure = secure
        self._peers: queue.SimpleQueue[Peer] = queue.SimpleQueue()

    def peer(self, pool: str | None = None) -> Peer:
        """A new connection of an Envoy."""
        assert not self._secure, "this one needs a certificate"
        return Peer(self.grpc, pool=pool)

    def ask(self, body: bytes = BODY, pool: str | None = None, **head: object) -> Outcome:
        """A request whose answer ends well at once."""
        with self.peer(pool) as peer:
            return served(*peer.ask(body, **head))

    def complete(self, prompt: str = "Which track?", **_: object) -> httpx.Response:
        """As `Pointsman.complete` for those who look on: 200 where an endpoint was picked."""
        try:
            peer = self._peers.get_nowait()
        except queue.Empty:
            peer = self.peer()
        try:
            outcome = served(*peer.ask(json.dumps({"model": "tiny", "prompt": prompt}).encode()))
        except (grpc.RpcError, AssertionError) as error:
            peer.close()
            raise httpx.TransportError(str(error)) from error
        self._peers.put(peer)
        return httpx.Response(outcome.status, content=outcome.immediate.body if outcome.immediate else b"")

    def admin_get(self, path: str, **options: object) -> httpx.Response:
        return self.client.get(path, **options)

    def in_flight(self) -> dict[str, float]:
        """The ledger: requests booked, by endpoint; those with none are left out."""
        series = self.metrics().series(IN_FLIGHT)
        return {dict(labels)["endpoint"]: count for labels, count in series.items() if count}

    def at_rest(self) -> None:
        """Waits until nothing is booked: the truth whenever nobody asks."""
        until(lambda: not self.in_flight(), within=MARGIN_S, what="nothing is booked")

    def close(self) -> None:
        while not self._peers.empty():
            self._peers.get().close()
        super().close()


def served(stream: Stream, outcome: Outcome) -> Outcome:
    """Lets a request that was picked for be answered, without a body, and ends its stream."""
    if outcome.immediate is None:
        stream.send(response_headers(end=True))
        stream.answer("response_headers")
    stream.half_close()
    stream.rest()
    return outcome


@contextmanager
def picking(
    folder: Path, servers: list[Upstream], *flags: object, annotations: dict[str, str] | None = None
) -> Iterator[tuple[Picker, PoolFile]]:
    """A picker for a pool of these servers, which are ended with it. Whatever was done to it, nothing may be booked at the end."""
    file = PoolFile(folder / f"pool-{time.monotonic_ns()}.yaml", servers, annotations)
    picker = Picker(folder, "-f", file.path, *flags)
    try:
        yield picker, file
        if picker.process.poll() is None:
            picker.at_rest()
    finally:
        picker.close()
        for server in servers:
            server.down()


def servers(count: int, **options: object) -> list[Upstream]:
    """Fake model servers; all that a picker asks of them is their metrics and their models."""
    return [Upstream(**options).up() for _ in range(count)]
