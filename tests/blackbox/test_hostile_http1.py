"""Hostile HTTP/1.1 clients and hostile bodies: each is told so or let go, memory stays bounded, and others are served."""

import gzip
import json
import socket
import threading
import time

import pytest

from harness.bystander import Bystander
from harness.errors import response
from harness.http1 import Malformed, Wire
from harness.manifests import STRATEGY
from harness.wait import until

BODY = b'{"model":"tiny","prompt":"a"}'
BEGIN = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
CHUNKED = BEGIN + b"Transfer-Encoding: chunked\r\n\r\n"
MIB = 1 << 20


@pytest.fixture
def door(start, upstreams):
    (server,) = upstreams(1)
    return start("--endpoint", server.address), server


def at_rest(pointsman, server) -> None:
    """Nothing is left of an attack."""
    until(lambda: server.in_flight == 0, within=5, what="nothing is in flight at the server")
    metrics = ("pointsman_endpoint_in_flight_requests", "pointsman_bodies_bytes")
    until(lambda: all(pointsman.metrics().value(name) == 0 for name in metrics), within=5, what="nothing is booked or held")


# ---- bombs


def fields(count: int, size: int) -> bytes:
    return b"".join(b"X-%d: %s\r\n" % (number, b"a" * size) for number in range(count))


ENDLESS = {
    "one huge field": BEGIN + b"X: " + b"a" * 4 * MIB,
    "many tiny fields": BEGIN + fields(400_000, 1),
    "fields without a value": BEGIN + b"X:\r\n" * MIB,
    "a huge target": b"GET /" + b"a" * 4 * MIB,
    "a huge method": b"A" * 4 * MIB,
    "blank lines": b"\r\n" * 2 * MIB,
    "a huge chunk extension": CHUNKED + b"1;" + b"a" * 4 * MIB,
    "extensions of many chunks": CHUNKED + (b"1;" + b"a" * 1000 + b"\r\na\r\n") * 4000,
    # The codec takes them one by one; what bounds them is the stall timeout (test_stalls.py).
    "a chunk size with many zeros": CHUNKED + b"0" * (MIB // 8),
    "a huge trailer": CHUNKED + b"0\r\nX: " + b"a" * 4 * MIB,
    "many trailers": CHUNKED + b"0\r\n" + fields(400_000, 1),
}


@pytest.mark.parametrize("sent", ENDLESS.values(), ids=ENDLESS.keys())
def test_what_has_no_end_is_refused_and_memory_is_bounded(sent, door):
    """From 30 clients at once; each sends 4 MiB, or as much as is taken."""
    pointsman, server = door
    outcomes = []
    with Bystander(pointsman, growth_bytes_max=30 * MIB):
        attackers = [threading.Thread(target=lambda: outcomes.append(sent_whole(pointsman, sent))) for _ in range(30)]
        for attacker in attackers:
            attacker.start()
        for attacker in attackers:
            attacker.join()
    assert all(status is None or 400 <= status < 500 for status in outcomes), outcomes
    assert all(seen.json()["prompt"] == "Which track?" for seen in server.requests), "those of the bystander alone"
    at_rest(pointsman, server)


def sent_whole(pointsman, sent: bytes) -> int | None:
    """The status of the answer; None where the connection was closed without one, or before all was sent."""
    with Wire.to(pointsman.gateway, timeout_s=3) as client:
        client.try_send(sent)
        client.try_send(b"\r\n\r\n")
        try:
            client.socket.shutdown(socket.SHUT_WR)
            answer = client.read_answer()
        except (OSError, Malformed):
            return None
    return answer[0].status if answer else None


def test_bodies_in_chunks_of_one_byte_hold_memory_within_the_bound(start, upstreams):
    """Each part costs its keeping, too. Held whole, since the model decides and never comes."""
    servers = [*upstreams(1, models=["tiny"]), *upstreams(1, models=["tiny", "other"])]
    flags = [word for server in servers for word in ("--endpoint", server.address)]
    pointsman = start(*flags, "--bodies-bytes-max", 32 * MIB)
    sent = CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"prompt":"' + b"a" * 200_000)
    with Bystander(pointsman, growth_bytes_max=3 * 32 * MIB):
        clients = [Wire.to(pointsman.gateway, timeout_s=5) for _ in range(12)]
        senders = [threading.Thread(target=client.try_send, args=(sent,)) for client in clients]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        refused = "pointsman_requests_total"
        until(lambda: pointsman.metrics().value(refused, reason="too_many_bytes") >= 1, within=5, what="the bound is reached")
    for client in clients:
        client.close()
    for server in servers:
        at_rest(pointsman, server)


def test_thousands_of_requests_at_once_on_one_connection_are_answered_in_order(door):
    pointsman, server = door
    count = 5000
    with Bystander(pointsman, growth_bytes_max=30 * MIB):
        with Wire.to(pointsman.gateway, timeout_s=20) as client:
            asks = b"".join(
                BEGIN + b"X-Request-Id: %d\r\nContent-Length: %d\r\n\r\n%s" % (number, len(BODY), BODY) for number in range(count)
            )
            sender = threading.Thread(target=client.try_send, args=(asks,))
            sender.start()
            for number in range(count):
                head, _ = client.read_answer()
                assert (head.status, head.header("x-request-id")) == (200, str(number))
            sender.join()


def test_connections_that_come_and_go_leave_nothing_behind(door):
    pointsman, server = door
    ways = [b"", b"GET", BEGIN, BEGIN + b"Content-Length: 100\r\n\r\n{", CHUNKED + b"1\r\n", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n\r\n"]
    with Bystander(pointsman, growth_bytes_max=30 * MIB):
        for number in range(3000):
            client = Wire.to(pointsman.gateway)
            client.try_send(ways[number % len(ways)])
            if number % 2:
                client.reset()
            else:
                client.close()
    at_rest(pointsman, server)
    until(lambda: pointsman.metrics().value("pointsman_connections") <= 10, within=5, what="they are forgotten")


# ---- bodies


def test_a_body_that_ends_early_reaches_no_server_as_a_whole(door):
    pointsman, server = door
    for begin, part in [(BEGIN + b"Content-Length: 1000\r\n\r\n", BODY), (CHUNKED, b"1d\r\n" + BODY + b"\r\n"), (CHUNKED, b"1d\r\n{")]:
        with Wire.to(pointsman.gateway) as client:
            client.send(begin + part)
            client.socket.shutdown(socket.SHUT_WR)
            answer = client.read_answer()
        assert answer is None or 400 <= answer[0].status < 500
    time.sleep(0.2)
    assert server.requests == []
    at_rest(pointsman, server)


NESTED = {
    "lists": b"[" * 200_000 + b"]" * 200_000,
    "objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "lists that do not end": b"[" * 2_000_000,
    "objects that do not end": b'{"":' * 1_000_000,
    "in turn": b'[{"a":' * 100_000,
}


@pytest.mark.parametrize("strategy", ["DEFAULT", "PREFIX_CACHE"])
@pytest.mark.parametrize("value", NESTED.values(), ids=NESTED.keys())
def test_deep_nesting_is_a_quick_400(value, strategy, start, upstreams, pool_file):
    (server,) = upstreams(1)
    pointsman = start("-f", pool_file([server], {STRATEGY: strategy}).path)
    for body in (value, b'{"x":' + value + b',"prompt":"a"}', b'{"messages":[{"role":"user","content":' + value + b"}]}"):
        begin = time.monotonic()
        answer = pointsman.client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert time.monotonic() - begin < 5
    assert pointsman.complete().status_code == 200


MANY = {
    "keys": b'{"model":"tiny",' + b"".join(b'"k%d":1,' % number for number in range(500_000)) + b'"prompt":"a"}',
    "one huge key": b'{"' + b"k" * 8 * MIB + b'":1,"model":"tiny","prompt":"a"}',
    "one huge number": b'{"seed":' + b"9" * 4 * MIB + b',"model":"tiny","prompt":"a"}',
    "messages": b'{"model":"tiny","messages":[' + b'{"role":"user","content":""},' * 200_000 + b'{"role":"user","content":"a"}]}',
    "escapes": b'{"model":"tiny","prompt":"' + rb"\u0041" * MIB + b'"}',
    "surrogates": b'{"model":"tiny","prompt":"' + rb"\ud83d\ude00" * MIB + b'"}',
    "blanks": b" " * 8 * MIB + BODY,
    "blanks behind": BODY + b"\n" * 8 * MIB,
    "a huge model": b'{"model":"' + b"m" * 4 * MIB + b'","prompt":"a"}',
    "tokens": b'{"model":"tiny","prompt":[' + b"1," * 2 * MIB + b"1]}",
}


@pytest.mark.parametrize("strategy", ["DEFAULT", "PREFIX_CACHE"])
@pytest.mark.parametrize("body", MANY.values(), ids=MANY.keys())
def test_much_of_anything_is_read_in_bounded_time_and_passed_on_or_refused(body, strategy, start, upstreams, pool_file):
    (server,) = upstreams(1)
    pointsman = start("-f", pool_file([server], {STRATEGY: strategy}).path)
    path = "/v1/chat/completions" if b"messages" in body[:40] else "/v1/completions"
    with Bystander(pointsman, growth_bytes_max=100 * MIB, requests=2):
        begin = time.monotonic()
        answer = pointsman.client.post(path, content=body, headers={"content-type": "application/json"})
        took_s = time.monotonic() - begin
    assert answer.status_code in (200, 400, 404), answer.text[:300]
    assert took_s < 5
    if answer.status_code == 200:
        assert any(seen.body == body for seen in server.requests)
    metrics = pointsman.metrics().text
    assert len(metrics) < MIB, "no label is as long as a client likes"


def test_text_that_is_no_utf8_is_400_or_the_servers_to_judge(start, upstreams, pool_file):
    (server,) = upstreams(1)
    pointsman = start("-f", pool_file([server], {STRATEGY: "PREFIX_CACHE"}).path)
    texts = [b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xf0\x9f\x98", rb"\ud83d", rb"\ude00\ud83d"]
    bodies = [b'{"model":"tiny","prompt":"' + text + b'"}' for text in texts]
    bodies += [BODY.decode().encode("utf-16"), BODY.decode().encode("utf-32"), b"\xef\xbb\xbf" + BODY]
    for body in bodies:
        answer = pointsman.client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400), (body, answer.text)
        if answer.status_code == 200:
            assert server.requests[-1].body == body
        assert "\ufffd" not in answer.text.encode("utf-8", "replace").decode() or answer.status_code == 400
    assert pointsman.complete().status_code == 200


TYPES = [
    *(None, "", "/", "	", "a" * 1000, "text/plain", "application/xml", "application/json; charset=utf-16"),
    *("application/x-www-form-urlencoded", "multipart/form-data; boundary=x"),
]


@pytest.mark.parametrize("content_type", TYPES)
def test_a_wrong_content_type_is_400_or_passed_on_as_it_is(content_type, door):
    pointsman, server = door
    for body in (BODY, b"<xml/>", b"model=tiny&prompt=a", b"--x\r\n\r\n--x--\r\n", bytes(1000)):
        field = b"" if content_type is None else b"Content-Type: " + content_type.encode() + b"\r\n"
        before = len(server.requests)
        with Wire.to(pointsman.gateway) as client:
            client.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n%sContent-Length: %d\r\n\r\n%s" % (field, len(body), body))
            answer = response(client.read_answer())
        if "x-pointsman-reason" in answer.headers:
            assert answer.status_code in (400, 415), answer.text
            assert json.loads(answer.content)["error"]["message"]
            assert len(server.requests) == before
        else:
            assert server.requests[-1].body == body


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate", "identity", "gzip, gzip", "nonsense"])
def test_a_compressed_body_is_passed_on_unread_and_a_bomb_is_only_its_own_size(encoding, door):
    pointsman, server = door
    bomb = gzip.compress(bytes(50 * MIB))
    with Bystander(pointsman, growth_bytes_max=20 * MIB, requests=2):
        headers = {"content-type": "application/json", "content-encoding": encoding}
        answer = pointsman.client.post("/v1/completions", content=bomb, headers=headers)
    assert answer.status_code in (200, 400, 415)
    if "x-pointsman-reason" not in answer.headers:
        assert [seen.header("content-encoding") for seen in server.requests if seen.body == bomb] == [encoding]
