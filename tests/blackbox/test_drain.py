"""Draining on SIGTERM (cli.md): who is being served is served to the end within `--drain`, nobody else is let in, and everybody is told."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from harness.frames import Frames, Kind
from harness.http1 import Malformed, Wire
from harness.wait import is_refused, until

BODY = b'{"model":"tiny","prompt":"a"}'
STREAMED = b'{"model":"tiny","prompt":"a","stream":true}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
WHOLE = HEAD % len(BODY) + BODY
WHOLE_STREAMED = HEAD % len(STREAMED) + STREAMED


@pytest.fixture
def door(start, upstreams):
    """Starts a gateway with the flags given before one server whose answers take a second."""

    def door(*flags):
        (server,) = upstreams(1)
        server.answers(tokens=10, token_interval_s=0.1, first_byte_s=0.3)
        return start("--endpoint", server.address, *flags), server

    return door


def readyz(pointsman) -> int:
    try:
        return pointsman.admin_get("/readyz").status_code
    except httpx.TransportError:
        return 0


def test_streams_of_both_protocols_end_well_and_then_the_program_does(door):
    pointsman, server = door()
    assert readyz(pointsman) == 200
    with Frames(pointsman.gateway, polite=True) as second, ThreadPoolExecutor(2) as clients:
        first = clients.submit(pointsman.client.post, "/v1/completions", content=STREAMED)
        whole = clients.submit(pointsman.complete)
        second.ask(1, body=STREAMED)
        until(lambda: server.in_flight == 3, within=5, what="all are in flight")
        pointsman.terminate()
        assert second.answer(1)[":status"] == "200"
        data = b""
        while b"[DONE]" not in data:
            found = second.read()
            assert found is not None, "the stream was cut"
            data += found.payload if found.kind == Kind.DATA else b""
        second.to_the_end()
        assert second.last_stream == 1, "GOAWAY says that it was served"
        assert first.result().text.endswith("data: [DONE]\n\n")
        assert whole.result().status_code == 200
    assert pointsman.wait(within=5) == 0


def test_readyz_says_so_at_once_and_healthz_does_not(door):
    pointsman, server = door()
    server.answers(tokens=30)
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(pointsman.client.post, "/v1/completions", content=STREAMED)
        until(lambda: server.in_flight == 1, within=5, what="one is in flight")
        pointsman.terminate()
        until(lambda: readyz(pointsman) == 503, within=0.5, what="readyz is 503")
        assert pointsman.admin_get("/healthz").status_code == 200
        assert answer.result().text.endswith("data: [DONE]\n\n")
    assert pointsman.wait(within=5) == 0


def test_new_connections_are_refused_while_old_ones_are_served(door):
    pointsman, server = door()
    server.answers(tokens=30)
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(pointsman.client.post, "/v1/completions", content=STREAMED)
        until(lambda: server.in_flight == 1, within=5, what="one is in flight")
        pointsman.terminate()
        until(lambda: is_refused(pointsman.gateway), within=1, what="connections are refused")
        assert not answer.done(), "the old one is still served"
        assert answer.result().text.endswith("data: [DONE]\n\n")
    assert pointsman.wait(within=5) == 0


def test_a_request_that_is_on_its_way_is_answered_and_told_to_close(door):
    pointsman, _ = door()
    with Wire.to(pointsman.gateway) as client:
        client.send(WHOLE)
        head, _ = client.read_answer()
        assert (head.status, head.header("connection")) == (200, None)
        pointsman.terminate()
        time.sleep(0.2)
        client.send(WHOLE)
        head, body = client.read_answer()
        assert (head.status, head.header("connection")) == (200, "close")
        assert body
        assert client.ended()
    assert pointsman.wait(within=5) == 0


def test_streams_that_http2_opens_after_goaway_are_not_lost_in_silence(door):
    """Those below the last stream of the final GOAWAY are answered; the others a client may send again."""
    pointsman, server = door()
    with Frames(pointsman.gateway, polite=True) as client:
        client.ask(1, body=BODY)
        until(lambda: server.in_flight == 1, within=5, what="one is in flight")
        pointsman.terminate()
        time.sleep(0.1)
        client.ask(3, body=BODY)
        heads = {found.stream for found in client.to_the_end() if found.kind == Kind.HEADERS}
    assert client.last_stream is not None
    assert heads == {stream for stream in (1, 3) if stream <= client.last_stream}
    assert pointsman.wait(within=5) == 0


@pytest.mark.parametrize("idle", ["nothing said", "kept alive", "HTTP/2", "HTTP/2 that answers nothing"])
def test_idle_connections_hold_nothing_up(idle, door):
    pointsman, server = door()
    server.answers(tokens=1, first_byte_s=0, token_interval_s=0)
    clients = []
    for _ in range(20):
        if idle.startswith("HTTP/2"):
            client = Frames(pointsman.gateway, polite=idle == "HTTP/2")
            client.ask(1, body=BODY)
            client.answer(1)
            threading.Thread(target=client.to_the_end, daemon=True).start()
        else:
            client = Wire.to(pointsman.gateway)
            if idle == "kept alive":
                client.send(WHOLE)
                assert client.read_answer()[0].status == 200
        clients.append(client)
    pointsman.terminate()
    # GOAWAY is told for good only when the client has answered, or 5 s later.
    assert pointsman.wait(within=8 if "nothing" in idle else 3) == 0
    for client in clients:
        client.socket.close()


HALF_BODY = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{"


@pytest.mark.parametrize("stalled", [b"POST /v1/comp", HALF_BODY], ids=["head", "body"])
def test_who_rests_in_the_middle_of_a_request_holds_the_end_up_no_longer_than_the_drain(stalled, door):
    pointsman, _ = door("--drain", "1s")
    with Wire.to(pointsman.gateway) as client:
        client.send(stalled)
        time.sleep(0.1)
        begin = time.monotonic()
        pointsman.terminate()
        assert pointsman.wait(within=5) == 0
        assert time.monotonic() - begin < 3


def test_a_stream_that_is_longer_than_the_drain_is_cut_and_seen_to_be(door):
    pointsman, server = door("--drain", "1s")
    server.answers(tokens=1000)
    with Wire.to(pointsman.gateway) as first, Frames(pointsman.gateway, polite=True) as second:
        first.send(WHOLE_STREAMED)
        second.ask(1, body=STREAMED)
        until(lambda: server.in_flight == 2, within=5, what="both are in flight")
        time.sleep(0.5)
        begin = time.monotonic()
        pointsman.terminate()
        assert pointsman.wait(within=5) == 0
        assert 0.9 < time.monotonic() - begin < 3.5
        text = b"".join(found.payload for found in second.to_the_end() if found.kind == Kind.DATA)
        assert b"word0" in text and b"[DONE]" not in text
        try:
            _, body = first.read_answer()
            assert b"error" in body, "a whole answer that ends early must say so"
        except (ConnectionError, Malformed):
            pass
    until(lambda: server.in_flight == 0, within=2, what="both are cancelled at the server")


def test_a_second_signal_cuts_at_once(door):
    pointsman, server = door()
    server.answers(tokens=1000)
    with Wire.to(pointsman.gateway) as client:
        client.send(WHOLE_STREAMED)
        until(lambda: server.in_flight == 1, within=5, what="one is in flight")
        pointsman.terminate()
        until(lambda: is_refused(pointsman.gateway), within=2, what="it drains")
        pointsman.terminate(signal.SIGINT)
        pointsman.wait(within=3)


def test_during_the_drain_delay_connections_are_still_taken(door):
    pointsman, server = door("--drain-delay", "1s")
    server.answers(tokens=1, first_byte_s=0, token_interval_s=0)
    pointsman.terminate()
    until(lambda: readyz(pointsman) == 503, within=0.5, what="readyz is 503")
    assert httpx.post(pointsman.gateway + "/v1/completions", content=BODY).status_code == 200
    until(lambda: is_refused(pointsman.gateway), within=3, what="then they are not")
    assert pointsman.wait(within=5) == 0
