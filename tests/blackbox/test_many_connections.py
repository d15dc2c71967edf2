"""Thousands of clients at once who cost little and get in nobody's way: idle ones, slow uploads, slow readers."""

import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from harness.bystander import Bystander
from harness.endless import Endless
from harness.frames import PREFACE, settings
from harness.http1 import Wire
from harness.wait import until

MANY = 10_000
READERS = 1_000
PART = b'{"model":"tiny","prompt":"a'
ENDING = b'"}'
UPLOAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n" + PART
STREAM = b'{"model":"tiny","prompt":"a","stream":true}'


@pytest.fixture(scope="module", autouse=True)
def open_files() -> None:
    """Clients are in this process, the gateway in its own: each has the machine's limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < 2 * MANY:
        pytest.skip(f"{2 * MANY} open files are needed, {most} may be had (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@pytest.fixture
def server(upstreams):
    (server,) = upstreams(1)
    return server


@contextmanager
def crowd(url: str, count: int, *, receive_buffer_bytes: int | None = None) -> Iterator[list[Wire]]:
    clients = []
    try:
        for _ in range(count):
            clients.append(Wire.to(url, receive_buffer_bytes=receive_buffer_bytes))
        yield clients
    finally:
        for client in clients:
            client.close()


def cost(bystander: Bystander, count: int, what: str, bytes_max: int) -> None:
    """Prints and bounds what each client held of resident memory at the most."""
    each = bystander.growth_bytes / count
    print(f"{count} {what}: {each / 1024:.1f} KiB each")
    assert each < bytes_max


def connections(pointsman) -> float:
    return pointsman.metrics().value("pointsman_connections")


def at_rest(pointsman) -> None:
    until(lambda: connections(pointsman) < 50, within=10, what="they are forgotten")
    metrics = ("pointsman_endpoint_in_flight_requests", "pointsman_bodies_bytes")
    until(lambda: all(pointsman.metrics().value(name) == 0 for name in metrics), within=10, what="nothing is booked or held")


SAID = {
    "who said nothing": lambda client: None,
    "with half a head": lambda client: client.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX-Half: "),
    "kept alive": lambda client: client.send(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"),
    "of HTTP/2": lambda client: client.send(PREFACE + settings()),
}


@pytest.mark.parametrize("what", SAID)
def test_ten_thousand_idle_connections_cost_kilobytes_each_and_others_nothing(what, server, start):
    pointsman = start("--endpoint", server.address, "--header-read-timeout", "60s")
    say: Callable[[Wire], None] = SAID[what]
    with Bystander(pointsman, growth_bytes_max=MANY * (64 << 10), requests=50, slowest_s_max=10) as bystander:
        with crowd(pointsman.gateway, MANY) as clients:
            for client in clients:
                say(client)
            until(lambda: connections(pointsman) >= MANY, within=20, what="all are taken in")
            if what == "kept alive":
                assert all(client.read_answer()[0].status == 200 for client in clients)
    cost(bystander, MANY, what, 64 << 10)
    at_rest(pointsman)


def test_ten_thousand_slow_uploads_cost_kilobytes_each_and_others_nothing(server, start):
    pointsman = start("--endpoint", server.address)
    with Bystander(pointsman, growth_bytes_max=MANY * (64 << 10), requests=50, slowest_s_max=10) as bystander:
        with crowd(pointsman.gateway, MANY) as clients:
            for client in clients:
                client.send(UPLOAD)
            sent = len(PART)
            for _ in range(5):
                for client in clients:
                    client.send(b"a")
                sent += 1
            assert connections(pointsman) >= MANY
            assert server.in_flight <= 2, "none of them is sent on yet"
            # Some come to their end: as slow as they were, they are answered.
            for client in clients[:200]:
                client.send(b"a" * (1000 - sent - len(ENDING)) + ENDING)
            for client in clients[:200]:
                assert client.read_answer()[0].status == 200
    cost(bystander, MANY, "slow uploads", 64 << 10)
    at_rest(pointsman)


def test_a_thousand_slow_readers_hold_little_memory_and_others_nothing(start):
    # Its thousand threads are slow to answer the honest ones, too.
    server = Endless()
    pointsman = start("--endpoint", server.address)
    ask = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(STREAM), STREAM)
    with Bystander(pointsman, growth_bytes_max=READERS * (600 << 10), requests=20, slowest_s_max=15) as bystander:
        with crowd(pointsman.gateway, READERS, receive_buffer_bytes=4096) as clients:
            for client in clients:
                client.send(ask)
            until(lambda: server.begun >= READERS, within=30, what="all answers have begun")
            for _ in range(5):
                for client in clients:
                    assert client.socket.recv(1000)
                time.sleep(0.2)
    cost(bystander, READERS, "slow readers", 600 << 10)
    at_rest(pointsman)
    until(lambda: server.gone >= READERS, within=10, what="all are cancelled at the server")
    server.close()


def test_more_connections_than_may_be_are_taken_in_turn_and_others_are_served(server, start):
    pointsman = start("--endpoint", server.address, "--connections-max", 1000)
    with Bystander(pointsman, growth_bytes_max=100 << 20, requests=50):
        with crowd(pointsman.gateway, 5000) as clients:
            assert connections(pointsman) <= 1000
            until(lambda: are_closed(clients[:1000]) > 500, within=30, what="those idle longest make room")
    assert pointsman.metrics().value("pointsman_limit_reached_total", limit="connections") >= 1
    at_rest(pointsman)


def are_closed(clients: list[Wire]) -> int:
    closed = 0
    for client in clients:
        client.socket.setblocking(False)
        try:
            closed += client.socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            pass
        except ConnectionError:
            closed += 1
    return closed
