"""Limits (docs/operations.md): each has a flag, a clear error of a closed set, and a counter; and beyond one, others are served."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from harness.errors import assert_error, response
from harness.frames import MAX_CONCURRENT_STREAMS, REFUSED_STREAM, Frames, Kind
from harness.http1 import Wire
from harness.pointsman import run
from harness.upstream import Fault
from harness.wait import until

BODY = b'{"model":"tiny","prompt":"a"}'
JSON = {"content-type": "application/json"}


@pytest.fixture
def door(start, upstreams):
    """Starts a gateway with the flags given before one server."""

    def door(*flags):
        (server,) = upstreams(1)
        return start("--endpoint", server.address, *flags), server

    return door


def reached(pointsman, limit: str) -> float:
    return pointsman.metrics().value("pointsman_limit_reached_total", limit=limit)


def head(*fields: bytes, length: int = len(BODY)) -> bytes:
    lines = [b"POST /v1/completions HTTP/1.1", b"Host: a", b"Content-Length: %d" % length, *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def ask(pointsman, sent: bytes) -> httpx.Response:
    with Wire.to(pointsman.gateway) as client:
        client.try_send(sent)
        return response(client.read_answer())


# ---- heads


def test_a_head_of_too_many_bytes_is_431(door):
    pointsman, server = door("--header-bytes-max", 4096)
    assert_error(ask(pointsman, head(b"X-Large: " + b"a" * 4096) + BODY), 431, "headers_too_large")
    assert_error(ask(pointsman, head(*(b"X-%d: aaaaaaaaaaaaaaaaaaaaaaaaaaaaa" % number for number in range(120))) + BODY), 431)
    assert reached(pointsman, "header_bytes") == 2
    assert server.requests == []
    assert ask(pointsman, head(b"X-Large: " + b"a" * 3900) + BODY).status_code == 200


def test_a_target_counts_as_part_of_the_head(door):
    pointsman, server = door("--header-bytes-max", 4096)
    long = b"POST /v1/completions?x=" + b"a" * 4096 + head().removeprefix(b"POST /v1/completions")
    assert_error(ask(pointsman, long + BODY), 431, "headers_too_large")
    assert server.requests == []


def test_a_head_of_too_many_fields_is_431(door):
    pointsman, server = door("--headers-max", 20)
    fields = [b"X-%d: a" % number for number in range(19)]
    assert_error(ask(pointsman, head(*fields) + BODY), 431, "headers_too_large")
    assert reached(pointsman, "headers") == 1
    assert server.requests == []
    assert ask(pointsman, head(*fields[:18]) + BODY).status_code == 200


def test_by_default_a_head_of_100_fields_and_60_kb_passes(door):
    pointsman, server = door()
    fields = [b"X-%d: %s" % (number, b"a" * 600) for number in range(98)]
    assert ask(pointsman, head(*fields) + BODY).status_code == 200
    assert len(server.requests[0].headers) >= 100


@pytest.mark.parametrize("size", [100_000, 3_000_000])
def test_a_head_far_beyond_is_431_or_a_closed_connection(size, door):
    pointsman, server = door()
    with Wire.to(pointsman.gateway) as client:
        client.try_send(head(b"X-Large: " + b"a" * size) + BODY)
        try:
            answer = client.read_answer()
        except ConnectionError:
            answer = None
    assert answer is None or answer[0].status == 431
    assert server.requests == []
    assert pointsman.complete().status_code == 200


@pytest.mark.parametrize("more, limit", [(5000, "header_bytes"), (0, "headers")], ids=["bytes", "fields"])
def test_heads_of_http2_have_the_same_bounds(more, limit, door):
    pointsman, server = door("--header-bytes-max", 4096, "--headers-max", 20)
    fields = (("x-large", "a" * more),) if more else tuple((f"x-{number}", "a") for number in range(30))
    with Frames(pointsman.gateway) as client:
        client.ask(1, body=BODY, more=fields)
        answer = client.answer(1)
        assert (answer[":status"], answer["x-pointsman-reason"]) == ("431", "headers_too_large")
        client.ask(3, body=BODY)
        assert client.answer(3)[":status"] == "200", "the connection serves on"
    assert reached(pointsman, limit) == 1
    assert len(server.requests) == 1


# ---- bodies


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/anything-else"])
def test_a_body_of_too_many_bytes_is_413_and_counted(announced, path, door):
    pointsman, server = door("--body-bytes-max", 100_000)
    body = b'{"model":"tiny","prompt":"' + b"x" * 100_000 + b'"}'
    content = body if announced else (body[begin : begin + 1000] for begin in range(0, len(body), 1000))
    assert_error(pointsman.client.post(path, content=content, headers=JSON), 413, "body_too_large")
    assert reached(pointsman, "body_bytes") == 1
    assert [seen for seen in [*server.requests, *server.other] if seen.target == path] == []


def test_who_waits_to_be_told_to_send_a_body_that_is_too_large_is_told_not_to(door):
    pointsman, _ = door("--body-bytes-max", 100_000)
    for length, first in ((100_001, b"HTTP/1.1 413 "), (len(BODY), b"HTTP/1.1 100 ")):
        with Wire.to(pointsman.gateway) as client:
            client.send(head(b"Expect: 100-continue", length=length))
            assert client.ended() is False
            assert client.received.startswith(first), client.received
            if length == len(BODY):
                client.send(BODY)
                assert client.read_answer()[0].status == 200


def test_bodies_that_fill_the_memory_for_all_are_429_until_they_are_gone(start, upstreams):
    """Where the model decides and comes last, the whole body is held before anything is sent on."""
    servers = [*upstreams(1, models=["tiny"]), *upstreams(1, models=["tiny", "other"])]
    flags = [word for server in servers for word in ("--endpoint", server.address)]
    pointsman = start(*flags, "--bodies-bytes-max", 1 << 20)
    part = b'{"prompt":"' + b"x" * 400_000
    whole = part + b'","model":"other"}'
    holders = [Wire.to(pointsman.gateway) for _ in range(2)]
    for holder in holders:
        holder.send(head(length=len(whole)) + part)
    held = "pointsman_bodies_bytes"
    until(lambda: pointsman.metrics().value(held) > 800_000, within=10, what="both are held")

    def ask_large() -> httpx.Response:
        return pointsman.client.post("/v1/completions", content=whole, headers=JSON)

    assert_error(ask_large(), 429, "too_many_bytes")
    assert reached(pointsman, "bodies_bytes") == 1
    assert pointsman.complete().status_code == 200, "a small one has room"
    for holder in holders:
        holder.close()
    until(lambda: pointsman.metrics().value(held) == 0, within=10, what="nothing is held any more")
    assert ask_large().status_code == 200
    assert len(servers[1].requests) >= 1


def test_a_body_that_is_on_its_way_passes_also_where_no_memory_is_left_to_keep_it(door):
    pointsman, server = door("--bodies-bytes-max", 1 << 20)
    body = b'{"model":"tiny","prompt":"' + b"x" * 8_000_000 + b'"}'
    with ThreadPoolExecutor(4) as clients:
        sent = [clients.submit(pointsman.client.post, "/v1/completions", content=body, headers=JSON) for _ in range(4)]
        assert [answer.result().status_code for answer in sent] == [200] * 4
    assert all(seen.body == body for seen in server.requests)


# ---- requests, connections, streams


def test_requests_in_flight_beyond_the_limit_are_429(door):
    pointsman, server = door("--requests-max", 2)
    server.held = True
    with ThreadPoolExecutor(2) as clients:
        held = [clients.submit(pointsman.complete) for _ in range(2)]
        until(lambda: server.in_flight == 2, within=5, what="two are in flight")
        assert_error(pointsman.complete(), 429, "too_many_requests")
        assert reached(pointsman, "requests") == 1
        server.held = False
        assert [answer.result().status_code for answer in held] == [200, 200]
    assert pointsman.complete().status_code == 200


def test_streamed_answers_count_as_requests_in_flight_until_they_end(door):
    pointsman, server = door("--requests-max", 1)
    server.answers(tokens=1000, token_interval_s=0.05)
    with pointsman.client.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}) as answer:
        lines = answer.iter_lines()
        assert "word0" in next(lines)
        assert_error(pointsman.complete(), 429, "too_many_requests")
    server.answers(tokens=1, token_interval_s=0)
    until(lambda: pointsman.complete().status_code == 200, within=5, what="the place is free again")


def test_failed_and_left_requests_give_their_place_back(door):
    pointsman, server = door("--requests-max", 2)
    server.answers(fault=Fault.RESET_AT_ONCE)
    assert {pointsman.complete().status_code for _ in range(5)} <= {502, 503}
    server.answers(fault=None, first_byte_s=30)
    for _ in range(5):
        with Wire.to(pointsman.gateway) as client:
            client.send(head() + BODY)
            until(lambda: server.in_flight >= 1, within=15, what="it is in flight")
        until(lambda: server.in_flight == 0, within=5, what="it is cancelled")
    server.answers(first_byte_s=0)
    until(lambda: pointsman.complete().status_code == 200, within=5, what="both places are free")


def test_at_the_bound_of_connections_the_one_idle_longest_makes_room(door):
    pointsman, server = door("--connections-max", 8, "--idle-timeout", "10m")
    server.answers(first_byte_s=1.5)
    busy = Wire.to(pointsman.gateway)
    busy.send(head() + BODY)
    until(lambda: server.in_flight == 1, within=5, what="one is busy")
    idle = []
    for _ in range(7):
        client = Wire.to(pointsman.gateway)
        client.send(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read_answer()[0].status == 200
        idle.append(client)
    newcomer = Wire.to(pointsman.gateway)
    newcomer.send(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
    assert newcomer.read_answer()[0].status == 200
    assert any(client.ended() for client in idle[:2]), "one that idled longest is closed"
    assert busy.read_answer()[0].status == 200, "one that is busy is not"
    assert reached(pointsman, "connections") >= 1


def test_where_no_connection_is_idle_newcomers_wait_for_room(door):
    pointsman, server = door("--connections-max", 4)
    server.held = True
    busy = [Wire.to(pointsman.gateway) for _ in range(4)]
    for client in busy:
        client.send(head() + BODY)
    until(lambda: server.in_flight == 4, within=5, what="all are busy")
    with Wire.to(pointsman.gateway) as newcomer:
        newcomer.send(head() + BODY)
        newcomer.socket.settimeout(0.7)
        with pytest.raises(TimeoutError):
            newcomer.read_answer()
        assert server.in_flight == 4
        server.held = False
        newcomer.socket.settimeout(10)
        assert newcomer.read_answer()[0].status == 200
    for client in busy:
        assert client.read_answer()[0].status == 200
        client.close()


def test_an_http2_connection_is_told_how_many_streams_it_may_open_and_more_are_refused(door):
    pointsman, server = door("--streams-max", 4)
    server.held = True
    with Frames(pointsman.gateway) as client:
        rows = client.until(Kind.SETTINGS).payload
        told = {int.from_bytes(rows[at : at + 2], "big"): int.from_bytes(rows[at + 2 : at + 6], "big") for at in range(0, len(rows), 6)}
        assert told[MAX_CONCURRENT_STREAMS] == 4
        for stream in range(1, 11, 2):
            client.ask(stream, body=BODY)
        refused = client.until(Kind.RST_STREAM)
        assert (refused.stream, refused.number) == (9, REFUSED_STREAM)
        until(lambda: server.in_flight == 4, within=5, what="four are in flight")
        server.held = False
        for stream in range(1, 9, 2):
            assert client.answer(stream)[":status"] == "200"
    assert reached(pointsman, "streams") >= 1
    assert len(server.requests) == 4


# ---- what can be known of them


def test_the_limits_in_force_are_shown(door):
    pointsman, _ = door("--requests-max", 17, "--body-bytes-max", 12345, "--headers-max", 33, "--idle-timeout", "7m")
    shown = json.dumps(pointsman.admin_get("/state").json())
    for value in ("17", "12345", "33"):
        assert value in shown, shown


def test_every_limit_has_its_counter_from_the_start(door):
    pointsman, _ = door()
    labels = {dict(labels)["limit"] for labels in pointsman.metrics().series("pointsman_limit_reached_total")}
    named = "header_bytes headers body_bytes bodies_bytes requests connections streams header_read body_stall idle"
    assert labels >= {*named.split(), "answer_stall", "first_byte", "stream_idle"}


@pytest.mark.parametrize("flag", ["--requests-max", "--connections-max", "--streams-max", "--headers-max"])
def test_a_limit_of_nothing_or_nonsense_is_refused_at_the_start(flag):
    for value in ("-1", "many"):
        outcome = run("up", f"{flag}={value}", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
        assert outcome.returncode == 2 and flag in outcome.stderr, outcome
