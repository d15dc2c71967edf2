"""Errors to clients: OpenAI's shape, a reason of a closed set, `Retry-After` (cli.md)."""

import socket
import threading
import time

import httpx
import pytest

from harness.errors import assert_error
from harness.manifests import STRATEGY
from harness.upstream import Fault, forget
from harness.wait import until

JSON = {"content-type": "application/json"}


@pytest.fixture
def door(start, upstreams):
    """A gateway before one server, both shared by the requests of a test."""
    (server,) = upstreams(1)
    return start("--endpoint", server.address, "--body-bytes-max", 1 << 20), server


def post(pointsman, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    return pointsman.client.post(path, content=body, headers={**JSON, **headers})


MALFORMED = {
    "empty": b"",
    "cut off": b'{"model":"tiny","messages":[{"role":"user","content":"hel',
    "no JSON": b"Which track?",
    "no object": b'["tiny"]',
    "a number": b"17",
    "two values": b'{"model":"tiny","messages":[]}{"a":1}',
    "trailing comma": b'{"model":"tiny","messages":[],}',
    "bare word": b'{"model":tiny}',
    "bad escape": rb'{"model":"tiny","messages":[{"role":"user","content":"\x"}]}',
    "control character": b'{"model":"tiny","messages":[{"role":"user","content":"a\nb"}]}',
    "no UTF-8": b'{"model":"tiny","messages":[{"role":"user","content":"\xff\xfe"}]}',
    "deep nesting": b'{"model":"tiny","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "NaN": b'{"model":"tiny","temperature":NaN,"messages":[{"role":"user","content":"a"}]}',
}


@pytest.mark.parametrize("strategy", ["DEFAULT", "PREFIX_CACHE"])
@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_json_is_a_clear_400(body, strategy, start, upstreams, pool_file):
    """By us, or by the server where we had decided before the fault came."""
    (server,) = upstreams(1)
    pointsman = start("-f", pool_file([server], {STRATEGY: strategy}).path)
    answer = post(pointsman, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    if not server.requests:
        assert_error(answer, 400)
    assert pointsman.chat().status_code == 200, "the next request is served"


@pytest.mark.parametrize("body", [b"", b"Which track?", b'["tiny"]', b"17", b"{", b"{'model': 1}", b'{"model":tiny}'])
def test_what_is_no_json_object_reaches_no_server(body, door):
    pointsman, server = door
    assert_error(post(pointsman, body), 400)
    assert server.requests == []


def test_a_request_without_a_prompt_is_400_where_the_prompt_decides(start, upstreams, pool_file):
    (server,) = upstreams(1)
    pointsman = start("-f", pool_file([server], {STRATEGY: "PREFIX_CACHE"}).path)
    assert "messages" in assert_error(post(pointsman, b'{"model":"tiny"}'), 400)
    assert "prompt" in assert_error(post(pointsman, b'{"model":"tiny"}', "/v1/completions"), 400)
    assert server.requests == []


def test_an_unknown_model_is_404_when_the_endpoints_told_theirs(door):
    pointsman, server = door
    message = assert_error(pointsman.chat(model="gigantic"), 404)
    assert "gigantic" in message
    assert server.requests == []


def test_an_unknown_model_passes_when_the_endpoints_do_not_tell_theirs(start, upstreams):
    (server,) = upstreams(1, models=None)
    assert start("--endpoint", server.address).chat(model="gigantic").status_code == 200


def test_a_model_that_one_of_the_endpoints_has_is_sent_there(start, upstreams):
    small, large = upstreams(1, models=["small"])[0], upstreams(1, models=["small", "large"])[0]
    pointsman = start("--endpoint", small.address, "--endpoint", large.address)
    for _ in range(20):
        assert pointsman.chat(model="large").status_code == 200
    assert len(large.requests) == 20
    forget([small, large])
    for _ in range(40):
        assert pointsman.chat(model="small").status_code == 200
    assert small.requests and large.requests


def test_a_model_is_known_as_soon_as_a_server_has_it(door):
    pointsman, server = door
    assert pointsman.chat(model="adapter").status_code == 404
    server.models = ["tiny", "adapter"]
    until(lambda: pointsman.chat(model="adapter").status_code == 200, within=10, what="a list is at most 10 s old")


def test_a_body_that_is_too_large_is_413(door):
    pointsman, server = door
    body = b'{"model":"tiny","prompt":"' + b"x" * (1 << 20) + b'"}'
    assert_error(post(pointsman, body, "/v1/completions"), 413)
    chunks = (body[begin : begin + 65536] for begin in range(0, len(body), 65536))
    answer = pointsman.client.post("/v1/completions", content=chunks, headers=JSON)
    assert_error(answer, 413)
    assert pointsman.chat().status_code == 200
    assert all(len(seen.body) < 1 << 20 for seen in server.requests)


def test_an_announced_length_beyond_the_limit_is_413_before_the_body_is_read(start, upstreams):
    pointsman = start("--endpoint", upstreams(1)[0].address)
    host, port = pointsman.gateway.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"content-length: 1099511627776\r\n\r\n"
        )
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_body_below_the_limit_passes(door):
    pointsman, server = door
    body = b'{"model":"tiny","prompt":"' + b"x" * 1_000_000 + b'"}'
    assert post(pointsman, body, "/v1/completions").status_code == 200
    assert server.requests[-1].body == body


def test_no_endpoint_is_503_at_once(start, pool_file):
    pointsman = start("-f", pool_file([]).path)
    begin = time.monotonic()
    assert_error(pointsman.chat(), 503)
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("fault", ["refuses", "resets"])
def test_servers_that_fail_before_the_first_byte_are_502(fault, start, upstreams):
    servers = upstreams(2)
    for server in servers:
        server.answers(fault=Fault.RESET_AT_ONCE)
    pointsman = start(*(word for server in servers for word in ("--endpoint", server.address)))
    if fault == "refuses":
        for server in servers:
            server.down()
    assert_error(pointsman.chat(), 502)


@pytest.mark.parametrize("order", ["stream first", "stream last"])
def test_a_server_that_never_begins_a_stream_is_504(order, start, upstreams):
    (server,) = upstreams(1)
    server.answers(fault=Fault.HANG)
    pointsman = start("--endpoint", server.address, "--first-byte-timeout", "500ms")
    pointsman.client.timeout = httpx.Timeout(5)
    fields = [("model", "tiny"), ("messages", [{"role": "user", "content": "a"}])]
    fields.insert(0 if order == "stream first" else 2, ("stream", True))
    assert_error(pointsman.client.post("/v1/chat/completions", json=dict(fields)), 504)
    until(lambda: server.requests[0].gone_at, within=1, what="the upstream request is cancelled")


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500])
def test_a_servers_own_error_is_passed_on_as_it_is(status, door):
    pointsman, server = door
    server.answers(status=status, headers=(("retry-after", "7"),))
    answer = pointsman.chat()
    assert answer.status_code == status
    assert answer.json()["error"]["message"] == f"{server.address} says {status}"
    assert answer.headers["retry-after"] == "7"


def test_errors_are_counted_by_their_reason(door):
    pointsman, _ = door
    reason = post(pointsman, b"{").headers["x-pointsman-reason"]
    metrics = pointsman.metrics()
    assert metrics.value("pointsman_requests_total", reason=reason) == 1
    assert metrics.value("inference_objective_request_error_total", error_code=reason) == 1


HOSTILE = {
    "no request": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "an endless head": b"GET / HTTP/1.1\r\nx: " + b"a" * 2_000_000,
    "two lengths": b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}    ",
    "length and chunks": b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
    "a chunk that lies": b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
}


@pytest.mark.parametrize("sent", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bytes_are_refused_and_harm_nobody(sent, door):
    pointsman, server = door
    host, port = pointsman.gateway.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        # It may be refused and reset while it is still being sent.
        writer = threading.Thread(target=lambda: _ignore_reset(client.sendall, sent))
        writer.start()
        received = _ignore_reset(client.recv, 65536) or b""
        writer.join()
    assert b" 200 " not in received.split(b"\r\n")[0]
    assert [seen.target for seen in [*server.requests, *server.other] if "smuggled" in seen.target] == []
    assert pointsman.chat().status_code == 200


def _ignore_reset(operation, argument):
    try:
        return operation(argument)
    except OSError:
        return None
