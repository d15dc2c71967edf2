"""Clients and servers that rest, hang up, or do not read: they cost themselves only, and the other side learns of it at once."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.endless import Endless
from harness.errors import assert_error, response
from harness.frames import END_HEADERS, PREFACE, Frames, Kind, frame, settings, window_update
from harness.http1 import Head, RawServer, Wire, send_answer
from harness.upstream import Fault
from harness.wait import holds, until

BODY = b'{"model":"tiny","prompt":"a"}'
STREAMED = b'{"model":"tiny","prompt":"a","stream":true}'
AT_ONCE_S = 0.5
"""A hang-up gets through within milliseconds; the rest is for slow machines."""
SWEEP_S = 1.5
"""Timeouts are met within half a second; the rest is for slow machines."""
KERNEL_BYTES_MAX = 16 << 20
"""What buffers of the kernel may take of an answer that nobody reads, on the way through four of them."""


def head(length: int, path: bytes = b"/v1/completions") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (path, length)


def whole(body: bytes) -> bytes:
    return head(len(body)) + body


@pytest.fixture
def door(start, upstreams):
    """Starts a gateway with the flags given before so many servers."""

    def door(*flags, count: int = 1):
        servers = upstreams(count)
        return start(*(word for server in servers for word in ("--endpoint", server.address)), *flags), servers

    return door


def warm_rss_bytes(pointsman) -> int:
    """Resident memory once it has served."""
    for _ in range(20):
        assert pointsman.complete().status_code == 200
    return pointsman.rss_bytes()


def reached(pointsman, limit: str) -> float:
    return pointsman.metrics().value("pointsman_limit_reached_total", limit=limit)


def at_rest(pointsman) -> None:
    metrics = ("pointsman_endpoint_in_flight_requests", "pointsman_bodies_bytes")
    until(lambda: all(pointsman.metrics().value(name) == 0 for name in metrics), within=5, what="nothing is booked or held")


# ---- clients that rest


def closes_within(client: Wire, least_s: float, most_s: float) -> None:
    begin = time.monotonic()
    client.socket.settimeout(most_s + SWEEP_S)
    assert client.ended()
    took_s = time.monotonic() - begin
    assert least_s - 0.1 <= took_s <= most_s + SWEEP_S, f"closed after {took_s:.2f} s"


HALF_HEADS = {
    "half a line": b"POST /v1/compl",
    "half a head": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n",
    "half of HTTP/2's preface": PREFACE[:9],
}


@pytest.mark.parametrize("sent", HALF_HEADS.values(), ids=HALF_HEADS.keys())
def test_a_head_that_does_not_come_to_its_end_closes_the_connection(sent, door):
    pointsman, _ = door("--header-read-timeout", "1s")
    with Wire.to(pointsman.gateway) as client:
        client.send(sent)
        closes_within(client, 0.5, 1)
    assert reached(pointsman, "header_read") == 1


def test_a_head_byte_by_byte_has_no_more_time_than_another(door):
    pointsman, _ = door("--header-read-timeout", "1s")
    begin = time.monotonic()
    with Wire.to(pointsman.gateway) as client:
        while client.try_send(b"X") and time.monotonic() - begin < 5:
            time.sleep(0.05)
    assert time.monotonic() - begin < 1 + SWEEP_S


def test_a_head_of_http2_that_does_not_come_to_its_end_closes_the_connection(door):
    """Nothing may come between its frames, no answer to a ping either: the first ping that is not answered ends it."""
    pointsman, _ = door("--header-read-timeout", "1s")
    with Frames(pointsman.gateway) as client:
        begin = time.monotonic()
        client.send(frame(Kind.HEADERS, 0, 1, client.block()))
        client.to_the_end()
        assert time.monotonic() - begin < 2 + SWEEP_S


def test_a_connection_that_says_nothing_has_three_times_as_long(door):
    pointsman, _ = door("--header-read-timeout", "700ms")
    with Wire.to(pointsman.gateway) as client:
        closes_within(client, 1.5, 2.1)
    assert reached(pointsman, "header_read") == 1


def test_an_idle_connection_is_closed_and_one_that_is_used_is_not(door):
    pointsman, _ = door("--idle-timeout", "1s")
    with Wire.to(pointsman.gateway) as idle, Wire.to(pointsman.gateway) as used:
        for client in (idle, used):
            client.send(whole(BODY))
            assert client.read_answer()[0].status == 200
        for _ in range(8):
            time.sleep(0.4)
            used.send(whole(BODY))
            assert used.read_answer()[0].status == 200
        assert idle.ended()
    assert reached(pointsman, "idle") == 1


def test_an_idle_http2_connection_is_told_to_go(door):
    pointsman, _ = door("--idle-timeout", "1s")
    with Frames(pointsman.gateway) as client:
        client.ask(1, body=BODY)
        assert client.answer(1)[":status"] == "200"
        assert client.until(Kind.GOAWAY).number == 0
    assert reached(pointsman, "idle") == 1


def test_a_long_generation_is_neither_idle_nor_stalled(door):
    flags = ("--idle-timeout", "1s", "--header-read-timeout", "1s", "--body-stall-timeout", "1s", "--answer-stall-timeout", "1s")
    pointsman, (server,) = door(*flags)
    server.answers(first_byte_s=4)
    with Frames(pointsman.gateway, polite=True) as second, ThreadPoolExecutor(1) as clients:
        second.ask(1, body=BODY)
        first = clients.submit(pointsman.complete)
        assert second.answer(1)[":status"] == "200"
        assert first.result().status_code == 200


@pytest.mark.parametrize("part", [b"", b'{"mod', b'{"model":"tiny","prompt":"' + b"a" * 200_000], ids=["nothing", "a little", "much"])
def test_a_body_that_stops_is_408(part, door):
    pointsman, (server,) = door("--body-stall-timeout", "1s")
    with Wire.to(pointsman.gateway) as client:
        client.send(head(300_000) + part)
        begin = time.monotonic()
        answer = response(client.read_answer())
        assert 0.9 < time.monotonic() - begin < 1 + SWEEP_S
        assert_error(answer, 408, "client_too_slow")
        assert client.ended()
    assert reached(pointsman, "body_stall") == 1
    assert server.requests == []
    at_rest(pointsman)


def test_a_body_of_http2_that_stops_is_408_and_its_connection_lives_on(door):
    pointsman, (server,) = door("--body-stall-timeout", "1s")
    with Frames(pointsman.gateway) as client:
        client.send(frame(Kind.HEADERS, END_HEADERS, 1, client.block()) + frame(Kind.DATA, 0, 1, b'{"model'))
        answer = client.answer(1)
        assert (answer[":status"], answer["x-pointsman-reason"]) == ("408", "client_too_slow")
        client.ask(3, body=BODY)
        assert client.answer(3)[":status"] == "200"
    at_rest(pointsman)


def test_a_body_that_trickles_is_taken_as_long_as_it_does(door):
    pointsman, (server,) = door("--body-stall-timeout", "1s")
    with Wire.to(pointsman.gateway) as client:
        client.send(head(len(BODY)))
        for byte in BODY:
            client.send(bytes([byte]))
            time.sleep(0.1)
        assert client.read_answer()[0].status == 200
    assert server.requests[0].body == BODY


@pytest.mark.parametrize("trickle", [b"0", b"1;" + b"a" * 100], ids=["zeros of a chunk's size", "extensions"])
def test_bytes_that_bring_no_byte_of_the_body_are_no_body(trickle, door):
    pointsman, (server,) = door("--body-stall-timeout", "1s")
    with Wire.to(pointsman.gateway) as client:
        client.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + trickle[:2])
        begin = time.monotonic()
        while client.try_send(trickle[-1:]) and time.monotonic() - begin < 6:
            time.sleep(0.05)
        assert time.monotonic() - begin < 1 + SWEEP_S + 1
    assert reached(pointsman, "body_stall") == 1
    assert server.requests == []


# ---- servers that rest


def test_a_stream_that_rests_too_long_ends_with_an_error_event(door):
    pointsman, (server,) = door("--stream-idle-timeout", "1s")
    server.answers(tokens=4, token_interval_s=3600)
    begin = time.monotonic()
    text = pointsman.client.post("/v1/completions", content=STREAMED).text
    assert time.monotonic() - begin < 1 + SWEEP_S + 1
    assert '"error"' in text.split("\n\n")[-2] and "[DONE]" not in text
    assert reached(pointsman, "stream_idle") == 1
    until(lambda: server.requests[0].gone_at, within=1, what="it is cancelled at the server")
    at_rest(pointsman)


def test_a_stream_whose_tokens_take_less_than_that_is_whole(door):
    pointsman, (server,) = door("--stream-idle-timeout", "1s")
    server.answers(tokens=6, token_interval_s=0.6)
    assert "[DONE]" in pointsman.client.post("/v1/completions", content=STREAMED).text
    assert reached(pointsman, "stream_idle") == 0


def test_a_server_that_never_begins_is_counted(door):
    pointsman, (server,) = door("--first-byte-timeout", "500ms")
    server.answers(fault=Fault.HANG)
    assert_error(pointsman.client.post("/v1/completions", content=STREAMED), 504, "upstream_timeout")
    assert reached(pointsman, "first_byte") >= 1
    until(lambda: server.in_flight == 0, within=1, what="it is cancelled at the server")
    at_rest(pointsman)


def test_a_server_that_takes_no_connection_costs_the_connect_timeout_at_most(start, upstreams):
    (server,) = upstreams(1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        host, port = deaf.getsockname()
        # Beyond its backlog the kernel answers nobody.
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex((host, port))
        pointsman = start("--endpoint", server.address, "--endpoint", f"{host}:{port}", "--connect-timeout", "500ms")
        for _ in range(10):
            begin = time.monotonic()
            assert pointsman.complete().status_code == 200
            assert time.monotonic() - begin < 0.5 + SWEEP_S
        for client in waiting:
            client.close()


# ---- clients that hang up


def send_http1(pointsman, body: bytes):
    client = Wire.to(pointsman.gateway)
    client.send(whole(body))
    return client.close


def send_http2(pointsman, body: bytes):
    client = Frames(pointsman.gateway)
    client.ask(1, body=body)
    return client.socket.close


def send_http1_and_reset(pointsman, body: bytes):
    client = Wire.to(pointsman.gateway)
    client.send(whole(body))
    return client.reset


SENDERS = [send_http1, send_http1_and_reset, send_http2]


@pytest.mark.parametrize("send", SENDERS)
@pytest.mark.parametrize("body", [BODY, STREAMED], ids=["whole", "streamed"])
def test_a_client_that_leaves_before_the_first_byte_cancels_at_the_server_at_once(send, body, door):
    pointsman, (server,) = door()
    server.answers(first_byte_s=60)
    leave = send(pointsman, body)
    until(lambda: server.in_flight == 1, within=5, what="it is in flight")
    gone = time.monotonic()
    leave()
    until(lambda: server.requests[0].gone_at, within=5, what="it is cancelled")
    assert server.requests[0].gone_at - gone < AT_ONCE_S
    at_rest(pointsman)
    assert pointsman.metrics().value("pointsman_requests_total", reason="client_gone") == 1


def test_a_client_that_leaves_in_mid_upload_cancels_at_the_server_at_once(start):
    begun, gone = threading.Event(), []

    def serve(wire: Wire, _head: Head) -> None:
        begun.set()
        try:
            wire.to_the_end()
        finally:
            gone.append(time.monotonic())

    server = RawServer(serve)
    pointsman = start("--endpoint", server.address)
    for leave in (Wire.close, Wire.reset):
        begun.clear()
        gone.clear()
        client = Wire.to(pointsman.gateway)
        client.send(head(1 << 20, b"/v1/anything-else") + bytes(100_000))
        assert begun.wait(5)
        left = time.monotonic()
        leave(client)
        until(lambda: gone, within=5, what="the upload is cancelled")
        assert gone[0] - left < AT_ONCE_S
    at_rest(pointsman)
    server.close()


def test_a_client_that_leaves_while_others_are_tried_ends_the_trying(door):
    """Half of the servers hang, the others fail: wherever it was, nothing goes on."""
    pointsman, servers = door("--first-byte-timeout", "300ms", count=4)
    for server in servers:
        server.answers(fault=Fault.HANG)
    with Wire.to(pointsman.gateway) as client:
        client.send(whole(STREAMED))
        until(lambda: sum(len(server.requests) for server in servers) >= 2, within=5, what="a second one is tried")
    until(lambda: all(server.in_flight == 0 for server in servers), within=5, what="all are cancelled")
    asked = sum(len(server.requests) for server in servers)
    time.sleep(0.7)
    assert sum(len(server.requests) for server in servers) == asked, "no other is tried for one who left"
    at_rest(pointsman)


def test_a_client_that_leaves_while_its_answer_waits_cancels_at_the_server(start):
    server = Endless()
    pointsman = start("--endpoint", server.address)
    client = Wire.to(pointsman.gateway, receive_buffer_bytes=4096)
    client.send(whole(STREAMED))
    until(lambda: server.taken_bytes, within=5, what="it streams")
    until(server.stands_still, within=20, what="the buffers are full")
    left = time.monotonic()
    client.reset()
    until(lambda: server.gone == 1, within=5, what="it is cancelled")
    assert time.monotonic() - left < AT_ONCE_S
    at_rest(pointsman)
    server.close()


# ---- who does not read


def test_an_answer_that_nobody_reads_stops_the_server_and_is_closed_in_time(start):
    server = Endless()
    pointsman = start("--endpoint", server.address, "--answer-stall-timeout", "3s")
    before_bytes = warm_rss_bytes(pointsman)
    with Wire.to(pointsman.gateway, receive_buffer_bytes=4096) as client:
        client.send(whole(STREAMED))
        until(lambda: server.taken_bytes, within=5, what="it streams")
        until(server.stands_still, within=20, what="the server is not read from any more")
        assert server.taken_bytes < KERNEL_BYTES_MAX
        assert pointsman.rss_bytes() - before_bytes < 12 << 20
        until(lambda: server.gone == 1, within=10, what="the one who does not read is let go")
    assert reached(pointsman, "answer_stall") == 1
    at_rest(pointsman)
    server.close()


def test_an_http2_stream_that_nobody_reads_stops_its_server_and_no_other(start):
    server = Endless()
    pointsman = start("--endpoint", server.address)
    with Frames(pointsman.gateway) as client:
        client.ask(1, body=STREAMED)
        until(lambda: server.taken_bytes, within=5, what="it streams")
        until(server.stands_still, within=20, what="the window is used up")
        assert server.taken_bytes < KERNEL_BYTES_MAX
        client.send(frame(Kind.WINDOW_UPDATE, 0, 0, (1 << 20).to_bytes(4, "big")))
        client.ask(3, body=BODY)
        assert client.answer(3)[":status"] == "200"
    until(lambda: server.gone == 1, within=5, what="it is cancelled")
    at_rest(pointsman)
    server.close()


def test_an_http2_client_that_takes_nothing_of_its_answers_is_let_go_and_one_that_takes_a_little_is_not(door):
    pointsman, _ = door("--answer-stall-timeout", "1s")
    begin = PREFACE + settings(initial_window_size=0)
    with Frames(pointsman.gateway, begin=begin, polite=True) as stalled, Frames(pointsman.gateway, begin=begin, polite=True) as slow:
        started = time.monotonic()
        for client in (stalled, slow):
            client.ask(1, body=BODY)
            assert client.answer(1)[":status"] == "200"
        received = b""
        while time.monotonic() - started < 3:
            slow.send(window_update(1, 1))
            received += slow.until(Kind.DATA, 1).payload
            time.sleep(0.3)
        assert len(received) >= 8
        stalled.to_the_end()
        slow.send(window_update(1, 1 << 20))
        assert slow.until(Kind.DATA, 1).payload
    assert reached(pointsman, "answer_stall") == 1
    at_rest(pointsman)


def test_a_client_that_reads_slowly_gets_all(start):
    """Slower than the server sends, faster than the stall timeout."""
    size = 24 << 20

    def serve(wire: Wire, head: Head) -> None:
        wire.read_body(head)
        send_answer(wire, bytes(size), "application/octet-stream")

    server = RawServer(serve)
    pointsman = start("--endpoint", server.address, "--answer-stall-timeout", "1s")
    before_bytes = warm_rss_bytes(pointsman)
    with Wire.to(pointsman.gateway, receive_buffer_bytes=65536) as client:
        client.send(whole(BODY))
        received = 0
        while received < size:
            received += len(client.socket.recv(200_000))
            time.sleep(0.01)
    assert pointsman.rss_bytes() - before_bytes < 12 << 20
    assert reached(pointsman, "answer_stall") == 0
    server.close()


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_a_server_that_does_not_read_stops_the_client(http2, start):
    over = threading.Event()

    def serve(wire: Wire, head: Head) -> None:
        if head.target == "/v1/completions":
            wire.read_body(head)
            return send_answer(wire)
        over.wait(60)

    server = RawServer(serve, receive_buffer_bytes=4096)
    pointsman = start("--endpoint", server.address)
    before_bytes = warm_rss_bytes(pointsman)
    sent_bytes = 0
    if http2:
        # Where pings stayed unanswered the connection would end before a slow machine's buffers are full.
        with Frames(pointsman.gateway, polite=True) as client:
            windows = first_windows(client)
            client.send(frame(Kind.HEADERS, END_HEADERS, 1, client.block("/v1/anything-else")))
            while min(windows) >= 16384:
                client.send(frame(Kind.DATA, 0, 1, bytes(16384)))
                sent_bytes, windows = sent_bytes + 16384, [window - 16384 for window in windows]
                if min(windows) < 16384:
                    grow(windows, client)
    else:
        with Wire.to(pointsman.gateway, timeout_s=1.5) as client:
            client.send(head(30 << 20, b"/v1/anything-else"))
            try:
                while True:
                    sent_bytes += client.socket.send(bytes(65536))
            except TimeoutError:
                pass
    assert sent_bytes < KERNEL_BYTES_MAX
    assert pointsman.rss_bytes() - before_bytes < 12 << 20
    over.set()
    server.close()


def first_windows(client: Frames) -> list[int]:
    """What may be sent on the connection and on its first stream before anything is taken."""
    rows = client.until(Kind.SETTINGS).payload
    told = {int.from_bytes(rows[at : at + 2], "big"): int.from_bytes(rows[at + 2 : at + 6], "big") for at in range(0, len(rows), 6)}
    return [65535, told.get(4, 65535)]


def grow(windows: list[int], client: Frames) -> None:
    """Adds what was told in the last moment."""
    client.socket.settimeout(0.3)
    try:
        while (found := client.read()) is not None:
            if found.kind == Kind.WINDOW_UPDATE:
                windows[found.stream] += found.number
                client.socket.settimeout(0.01)
    except TimeoutError:
        return
    raise AssertionError("the connection ended")


def test_slow_clients_slow_nobody_else_down(door):
    """Twenty who trickle their bodies and twenty who do not read, and one who measures."""
    pointsman, (server,) = door()
    trickling = [Wire.to(pointsman.gateway) for _ in range(20)]
    for client in trickling:
        client.send(head(1000) + b"{")
    not_reading = [Frames(pointsman.gateway, begin=PREFACE + settings(initial_window_size=0)) for _ in range(20)]
    for client in not_reading:
        client.ask(1, body=BODY)
    until(lambda: len(server.requests) == 20, within=5, what="all are asked")
    with ThreadPoolExecutor(4) as clients:
        begin = time.monotonic()
        answers = list(clients.map(lambda _: pointsman.complete(), range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert time.monotonic() - begin < 5
    holds(lambda: trickling[0].try_send(b" "), over=0.2, what="those who trickle are still served")
