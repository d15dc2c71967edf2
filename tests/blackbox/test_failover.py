"""Endpoints that fail: the next one, leaving out, trying again, the retry budget (cli.md)."""

import itertools
import time

import pytest

from harness.traffic import Traffic, burst
from harness.upstream import Fault, Upstream, counts, forget
from harness.wait import until

TRIED_AGAIN_S = 10.0


def before(start, servers: list[Upstream], *arguments):
    """A gateway before these servers."""
    return start(*(word for server in servers for word in ("--endpoint", server.address)), *arguments)


def die(server: Upstream, how: str) -> None:
    """Makes a server fail before its first byte."""
    match how:
        case "refuses":
            server.down()
        case "resets":
            server.answers(fault=Fault.RESET_AT_ONCE)
        case "answers 503":
            server.answers(status=503)


HOWS = ["refuses", "resets", "answers 503"]


@pytest.mark.parametrize("how", HOWS)
def test_three_dead_endpoints_of_eight_cost_no_client_an_error(how, start, upstreams):
    servers = upstreams(8)
    pointsman = before(start, servers)
    for server in servers[:3]:
        die(server, how)
    with Traffic(lambda number: pointsman.complete(stream=number % 2 == 0), clients=8) as traffic:
        traffic.more(400)
        traffic.assert_unharmed()


@pytest.mark.parametrize("how", HOWS)
def test_endpoints_that_die_under_traffic_cost_no_client_an_error(how, start, upstreams):
    servers = upstreams(8)
    for server in servers:
        server.answers(first_byte_s=0.02)
    pointsman = before(start, servers)
    with Traffic(lambda number: pointsman.complete(), clients=8) as traffic:
        for server in servers[:3]:
            traffic.more(40)
            die(server, how)
        traffic.more(200)
        traffic.assert_unharmed()


def test_three_dead_endpoints_of_eight_harm_no_burst(start, upstreams):
    servers = upstreams(8)
    pointsman = before(start, servers)
    for server in servers[:3]:
        server.down()
    burst(servers[3:], [pointsman.complete] * 64)


def test_a_large_body_is_sent_again_to_the_next_endpoint_whole(start, upstreams):
    broken, sound = servers = upstreams(2)
    broken.answers(fault=Fault.RESET_AT_ONCE)
    pointsman = before(start, servers)
    prompt = "0123456789" * 50_000
    for _ in range(10):
        assert pointsman.complete(prompt).status_code == 200
    assert broken.requests, "it was tried"
    assert len(sound.requests) == 10
    assert all(seen.json()["prompt"] == prompt for seen in sound.requests)


def test_a_retry_is_counted(start, upstreams):
    broken, sound = servers = upstreams(2)
    broken.answers(fault=Fault.RESET_AT_ONCE)
    pointsman = before(start, servers)
    while not broken.requests:
        assert pointsman.complete().status_code == 200
    metrics = pointsman.metrics()
    assert metrics.value("pointsman_retries_total") == len(broken.requests)
    assert metrics.value("pointsman_picks_total", endpoint=sound.address) == len(sound.requests)


def test_a_failing_endpoint_is_left_out_for_a_growing_while_and_tried_again_within_ten_seconds(start, upstreams):
    broken, sound = servers = upstreams(2)
    broken.answers(fault=Fault.RESET_AT_ONCE)
    pointsman = before(start, servers)
    with Traffic(lambda number: pointsman.complete(), clients=2) as traffic:
        until(lambda: len(broken.requests) >= 5, within=30, what="it is tried again and again")
        pauses = [b.at - a.at for a, b in itertools.pairwise(broken.requests[1:])]
        # Left out sooner or later, and then for longer each time.
        assert max(pauses) > 0.3, pauses
        assert pauses[-1] > pauses[0], pauses
        until(lambda: time.monotonic() - broken.requests[-1].at > 2, within=40, what="it is left out for long")
        broken.answers(fault=None)
        forget(servers)
        until(lambda: len(broken.requests) > 3, within=TRIED_AGAIN_S, what="it is tried again, and used")
        traffic.assert_unharmed()


def test_an_endpoint_that_recovers_gets_its_share_again(start, upstreams):
    servers = upstreams(3)
    pointsman = before(start, servers)
    servers[0].down()
    for _ in range(40):
        assert pointsman.complete().status_code == 200
    servers[0].up()

    def has_its_share() -> bool:
        forget(servers)
        for _ in range(30):
            assert pointsman.complete().status_code == 200
        return min(counts(servers)) >= 3

    until(has_its_share, within=TRIED_AGAIN_S, what="it gets requests again")


def test_retries_have_a_budget(start, upstreams):
    servers = upstreams(6)
    for server in servers:
        server.answers(status=503)
    pointsman = before(start, servers)
    requests = 1000
    for _ in range(requests):
        assert pointsman.complete().status_code == 503
    tries = sum(counts(servers))
    assert requests <= tries + 100, "each is tried once, more or less"
    assert tries < 2 * requests, f"{tries} tries for {requests} requests: every failure is tried again"


def test_a_hanging_endpoint_is_given_up_for_the_next_where_a_stream_was_asked_for(start, upstreams):
    hanging, sound = servers = upstreams(2)
    hanging.answers(fault=Fault.HANG)
    pointsman = before(start, servers, "--first-byte-timeout", "300ms")
    for _ in range(12):
        body = {"stream": True, "model": "tiny", "prompt": "a"}
        assert pointsman.client.post("/v1/completions", json=body).status_code == 200
    assert hanging.requests and len(sound.requests) == 12


def test_a_request_that_a_server_refuses_is_not_sent_to_another(start, upstreams):
    servers = upstreams(3)
    for server in servers:
        server.answers(status=400)
    pointsman = before(start, servers)
    assert pointsman.complete().status_code == 400
    assert sum(counts(servers)) == 1


@pytest.mark.parametrize("how", HOWS)
def test_when_all_are_dead_each_request_is_answered_soon_and_all_is_well_when_they_return(how, start, upstreams):
    servers = upstreams(4)
    pointsman = before(start, servers)
    for server in servers:
        die(server, how)
    for _ in range(20):
        begin = time.monotonic()
        assert pointsman.complete().status_code in (502, 503)
        assert time.monotonic() - begin < 2
    for server in servers:
        if how == "refuses":
            server.up()
        server.answers(fault=None, status=200)
    until(lambda: pointsman.complete().status_code == 200, within=TRIED_AGAIN_S, what="requests are served again")
