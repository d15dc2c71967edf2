"""One process hands its port over to another (`--reuse-port`): under load, without a failed request."""

import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest

from harness.frames import Frames, Kind
from harness.http1 import Wire
from harness.pointsman import READY, Pointsman, command
from harness.wait import until

BODY = b'{"model":"tiny","prompt":"a"}'
STREAMED = b'{"model":"tiny","prompt":"a","stream":true}'
WHOLE = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
ROUNDS = 6


class Crowd:
    """Clients that ask all the time: with a new connection for each request, on kept ones that they open anew when they are told to, and over HTTP/2.
    Only what GOAWAY says was never taken is asked again; anything else that goes wrong is a failure."""

    def __init__(self, url: str, clients: int = 4) -> None:
        self._url = url
        self._over = threading.Event()
        self.answered: dict[str, int] = {"new": 0, "kept": 0, "http2": 0, "streamed": 0}
        self.failures: list[str] = []
        kinds = {"new": self._new, "kept": self._kept, "http2": self._http2, "streamed": self._streamed}
        self._threads = [
            threading.Thread(target=self._run, args=(name, ask)) for name, ask in kinds.items() for _ in range(clients)
        ]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def more(self) -> None:
        """Waits until each kind has had some more answers."""
        before = dict(self.answered)
        until(
            lambda: all(self.answered[kind] >= before[kind] + 10 for kind in before),
            within=20,
            what=f"all kinds of clients are answered: {before} -> {self.answered}, {self.failures[:3]}",
        )

    def _run(self, kind: str, ask) -> None:
        while not self._over.is_set():
            try:
                ask(kind)
            except (OSError, httpx.HTTPError, AssertionError) as error:
                self.failures.append(f"{kind}: {error!r}")

    def _new(self, kind: str) -> None:
        with Wire.to(self._url) as client:
            client.send(WHOLE)
            answer = client.read_answer()
            assert answer and answer[0].status == 200, answer
        self.answered[kind] += 1

    def _streamed(self, kind: str) -> None:
        with Wire.to(self._url) as client:
            client.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(STREAMED), STREAMED))
            answer = client.read_answer()
            assert answer and answer[1].endswith(b"data: [DONE]\n\n"), answer
        self.answered[kind] += 1

    def _kept(self, kind: str) -> None:
        with Wire.to(self._url) as client:
            while not self._over.is_set():
                client.send(WHOLE)
                answer = client.read_answer()
                assert answer and answer[0].status == 200, answer
                self.answered[kind] += 1
                if answer[0].header("connection") == "close":
                    return

    def _http2(self, kind: str) -> None:
        """Asks until it is told to go away; what it asked beyond what counts, it asks again elsewhere."""
        with Frames(self._url, polite=True) as client:
            for stream in range(1, 2001, 2):
                client.ask(stream, body=BODY)
                while client.last_stream is None or client.last_stream >= stream:
                    found = client.read()
                    assert found is not None, "the connection ended without an answer"
                    if found.kind == Kind.HEADERS:
                        assert client.fields(found)[":status"] == "200"
                    if found.kind == Kind.DATA and found.flags & 1:
                        self.answered[kind] += 1
                        break
                if client.last_stream is not None or self._over.is_set():
                    return


@pytest.fixture
def server(upstreams):
    (server,) = upstreams(1)
    server.answers(tokens=3, token_interval_s=0.02)
    return server


def up(folder: Path, server, listen: str) -> Pointsman:
    return Pointsman(folder, "--endpoint", server.address, "--reuse-port", listen=listen)


def test_the_port_goes_from_process_to_process_without_a_failed_request(tmp_path, server):
    old = Pointsman(tmp_path, "--endpoint", server.address, "--reuse-port")
    listen = old.gateway.split("://")[1]
    try:
        with Crowd(old.gateway) as crowd:
            for _ in range(ROUNDS):
                crowd.more()
                new = up(tmp_path, server, listen)
                crowd.more()
                old.terminate()
                assert old.wait(within=20) == 0
                old.close()
                old = new
            crowd.more()
    finally:
        old.close()
    total = sum(crowd.answered.values())
    assert crowd.failures == [], f"{len(crowd.failures)} of {total}: {crowd.failures[:5]}"
    print(f"{total} requests over {ROUNDS} handovers: {crowd.answered}")


def test_from_its_ready_line_on_the_new_process_takes_all_new_connections(tmp_path, server):
    old = Pointsman(tmp_path, "--endpoint", server.address, "--reuse-port")
    new = up(tmp_path, server, old.gateway.split("://")[1])
    served = "pointsman_requests_total"
    before = old.metrics().value(served)
    for _ in range(50):
        assert httpx.post(new.gateway + "/v1/completions", content=BODY).status_code == 200
    taken = new.metrics().value(served)
    assert (taken, old.metrics().value(served) - before) == (50, 0)
    new.close()
    old.close()


def test_a_new_process_that_dies_gives_the_port_back(tmp_path, server):
    old = Pointsman(tmp_path, "--endpoint", server.address, "--reuse-port")
    new = up(tmp_path, server, old.gateway.split("://")[1])
    new.terminate(signal.SIGKILL)
    new.process.wait()

    def all_answered() -> bool:
        return all(httpx.post(old.gateway + "/v1/completions", content=BODY).status_code == 200 for _ in range(10))

    def serves() -> bool:
        try:
            return all_answered()
        except httpx.HTTPError:
            return False

    until(serves, within=5, what="the old process serves again")
    assert all_answered()
    new.close()
    old.close()


@pytest.mark.parametrize("flags", [((), ()), (("--reuse-port",), ()), ((), ("--reuse-port",))], ids=["neither", "the first", "the second"])
def test_unless_both_say_so_a_port_in_use_is_exit_2(flags, tmp_path, server):
    first, second = flags
    old = Pointsman(tmp_path, "--endpoint", server.address, *first)
    listen = old.gateway.split("://")[1]
    outcome = subprocess.run(
        command("up", "--endpoint", server.address, "--admin", "127.0.0.1:0", "--listen", listen, *second),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert outcome.returncode == 2, outcome
    assert "in use" in outcome.stderr and listen in outcome.stderr
    assert not READY.search(outcome.stdout)
    assert old.complete().status_code == 200
    old.close()


def test_a_connection_that_stands_stays_with_the_old_process(tmp_path, server):
    old = Pointsman(tmp_path, "--endpoint", server.address, "--reuse-port")
    with Wire.to(old.gateway) as client:
        client.send(WHOLE)
        assert client.read_answer()[0].status == 200
        new = up(tmp_path, server, old.gateway.split("://")[1])
        for _ in range(5):
            client.send(WHOLE)
            assert client.read_answer()[0].status == 200
            time.sleep(0.05)
        assert old.metrics().value("pointsman_requests_total") == 6
        assert new.metrics().value("pointsman_requests_total") == 0
    new.close()
    old.close()
