"""Hostile HTTP/2 clients: floods, bombs and window games cost them their connection or nothing, and others nothing."""

import threading
import time
from collections.abc import Callable

import pytest

from harness.bystander import Bystander
from harness.endless import Endless
from harness.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    PREFACE,
    Frames,
    Kind,
    frame,
    reset,
    settings,
    window_update,
)
from harness.http1 import RawServer
from harness.wait import until

BODY = b'{"model":"tiny","prompt":"a"}'
STREAMED = b'{"model":"tiny","prompt":"a","stream":true}'
ATTACK_S = 0.7
"""A flood ends when this is over, or the connection."""
GROWTH_BYTES_MAX = 64 << 20
"""Generous: allocators keep what they had. A flood without a bound brings hundreds of megabytes in that time."""
LOG_BYTES_MAX = 100_000
STREAMS = 256
"""As many as a connection may have."""
STREAM_BYTES_MAX = 384 << 10


@pytest.fixture
def door(start, upstreams):
    (server,) = upstreams(1)
    return start("--endpoint", server.address), server


def at_rest(pointsman, server) -> None:
    """Nothing is left of an attack."""
    until(lambda: server.in_flight == 0, within=5, what="nothing is in flight at the server")
    ledger = "pointsman_endpoint_in_flight_requests"
    until(lambda: pointsman.metrics().value(ledger) == 0, within=5, what="nothing is booked")


# ---- floods of frames


def opened_and_reset(client: Frames, turn: int) -> bytes:
    streams = range(1 + 2 * 100 * turn, 1 + 2 * 100 * (turn + 1), 2)
    return b"".join(
        frame(Kind.HEADERS, END_HEADERS | END_STREAM, stream, client.block(method="GET", path="/v1/anything")) + reset(stream)
        for stream in streams
    )


def opened_and_made_to_be_reset(client: Frames, turn: int) -> bytes:
    """Each stream is a sound request until a frame that makes the gateway reset it."""
    streams = range(1 + 2 * 100 * turn, 1 + 2 * 100 * (turn + 1), 2)
    return b"".join(
        frame(Kind.HEADERS, END_HEADERS | END_STREAM, stream, client.block(method="GET", path="/v1/anything"))
        + window_update(stream, 0)
        for stream in streams
    )


def headers_without_end(client: Frames, turn: int) -> bytes:
    begin = frame(Kind.HEADERS, 0, 1, client.block()) if turn == 0 else b""
    # A literal field without indexing, of 16,000 bytes.
    field = b"\x00\x01x\x7f" + bytes([0x80 | (16000 - 127) & 0x7F, (16000 - 127) >> 7]) + b"a" * 16000
    return begin + frame(Kind.CONTINUATION, 0, 1, field)


FLOODS: dict[str, Callable[[Frames, int], bytes]] = {
    "rapid reset": opened_and_reset,
    "resets that the gateway is made to send": opened_and_made_to_be_reset,
    "CONTINUATION": headers_without_end,
    "empty CONTINUATION": lambda client, turn: (frame(Kind.HEADERS, 0, 1, client.block()) if turn == 0 else b"")
    + frame(Kind.CONTINUATION, 0, 1) * 1000,
    "PING": lambda _client, _round: frame(Kind.PING, 0, 0, b"12345678") * 1000,
    "SETTINGS": lambda _client, _round: settings() * 1000,
    "SETTINGS that change": lambda _client, _round: (
        settings(initial_window_size=1) + settings(initial_window_size=(1 << 31) - 1) + settings(header_table_size=0)
    )
    * 300,
    "acknowledged PING": lambda _client, _round: frame(Kind.PING, ACK, 0, b"12345678") * 1000,
    "acknowledged SETTINGS": lambda _client, _round: frame(Kind.SETTINGS, ACK) * 1000,
    "PRIORITY": lambda _client, turn: b"".join(
        frame(Kind.PRIORITY, 0, stream, bytes([0, 0, 0, 0, 16])) for stream in range(1 + 2000 * turn, 2001 + 2000 * turn, 2)
    ),
    "empty DATA": lambda client, turn: (frame(Kind.HEADERS, END_HEADERS, 1, client.block()) if turn == 0 else b"")
    + frame(Kind.DATA, 0, 1) * 1000,
    "DATA that is all padding": lambda client, turn: (
        frame(Kind.HEADERS, END_HEADERS, 1, client.block()) if turn == 0 else b""
    )
    + frame(Kind.DATA, 0x8, 1, b"\x0f" + bytes(15)) * 1000,
    "WINDOW_UPDATE": lambda _client, _round: window_update(0, 1) * 1000,
    "unknown frames": lambda _client, _round: frame(0x42, 0xFF, 0, bytes(1000)) * 100,
    "GOAWAY": lambda _client, _round: frame(Kind.GOAWAY, 0, 0, bytes(8)) * 1000,
    "one field, thousand times from the table": lambda client, turn: table_bomb(client, 1 + 2 * turn),
}


def table_bomb(client: Frames, stream: int) -> bytes:
    """One byte brings 4,000: a field that is in the dynamic table, 16,000 times."""
    insert = b"\x40\x01x\x7f" + bytes([0x80 | (3900 - 127) & 0x7F, (3900 - 127) >> 7]) + b"a" * 3900
    pseudo = b"\x83\x86\x84\x41\x01a"
    return frame(Kind.HEADERS, END_STREAM, stream, pseudo + insert) + frame(Kind.CONTINUATION, END_HEADERS, stream, b"\xbe" * 16000)


@pytest.mark.parametrize("reads", [True, False], ids=["reading", "not reading"])
@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_a_flood_costs_others_nothing_and_memory_is_bounded(flood, reads, door):
    pointsman, server = door
    with Bystander(pointsman, growth_bytes_max=GROWTH_BYTES_MAX):
        with Frames(pointsman.gateway) as client:
            if reads:
                threading.Thread(target=swallow, args=(client,), daemon=True).start()
            # Who is not read from any more has lost, too.
            client.socket.settimeout(ATTACK_S)
            begin, turn = time.monotonic(), 0
            while time.monotonic() - begin < ATTACK_S and client.try_send(flood(client, turn)):
                turn += 1
            print(f"{turn} turns in {time.monotonic() - begin:.1f} s")
    assert turn >= 1
    at_rest(pointsman, server)
    assert pointsman.log_file.stat().st_size < LOG_BYTES_MAX, "nobody fills the disk with lines of a log"


def swallow(client: Frames) -> None:
    try:
        while client.socket.recv(1 << 16):
            pass
    except OSError:
        pass


def test_rapid_resets_end_the_connection(door):
    """They cost the gateway more than the client."""
    pointsman, server = door
    with Frames(pointsman.gateway) as client:
        for turn in range(200):
            if not client.try_send(opened_and_reset(client, turn)):
                break
        frames = client.to_the_end()
    (goaway,) = [found for found in frames if found.kind == Kind.GOAWAY]
    assert goaway.number == ENHANCE_YOUR_CALM
    at_rest(pointsman, server)


def test_requests_that_are_reset_at_once_are_cancelled_at_the_server(door):
    pointsman, server = door
    server.answers(first_byte_s=60)
    with Frames(pointsman.gateway) as client:
        for stream in range(1, 20, 2):
            client.ask(stream, body=BODY)
        until(lambda: server.in_flight == 10, within=5, what="all are in flight")
        for stream in range(1, 20, 2):
            client.send(reset(stream))
        until(lambda: server.in_flight == 0, within=1, what="all are cancelled")
        client.send(frame(Kind.PING, 0, 0, b"12345678"))
        assert client.until(Kind.PING).flags & ACK, "the connection lives on"
    at_rest(pointsman, server)


# ---- heads


def test_a_head_that_decodes_to_more_than_its_bound_is_refused_and_the_others_are_served(door):
    pointsman, server = door
    with Frames(pointsman.gateway) as client:
        client.send(table_bomb(client, 1))
        head = client.read()
        while head.kind not in (Kind.HEADERS, Kind.RST_STREAM, Kind.GOAWAY):
            head = client.read()
        if head.kind == Kind.HEADERS:
            assert client.fields(head)[":status"] == "431"
    assert [seen for seen in [*server.requests, *server.other] if seen.target == "/"] == []
    assert pointsman.complete().status_code == 200


def test_a_refusal_that_does_not_fit_the_window_of_one_who_leaves_is_forgotten(door):
    pointsman, server = door
    two_hosts = (("host", "a"), ("host", "a"))
    for pause_s in (0, 0.001, 0.01, 0.05):
        with Frames(pointsman.gateway, begin=PREFACE + settings(initial_window_size=1)) as client:
            client.send(frame(Kind.HEADERS, END_HEADERS, 1, client.block(more=two_hosts)))
            time.sleep(pause_s)
    at_rest(pointsman, server)
    until(lambda: pointsman.metrics().value("pointsman_connections") == 0, within=5, what="they are forgotten")
    assert pointsman.metrics().value("pointsman_requests_total", reason="internal") == 0


# ---- windows


def test_an_answer_waits_for_a_window_of_nothing(door):
    pointsman, server = door
    server.answers(tokens=50)
    with Frames(pointsman.gateway, begin=PREFACE + settings(initial_window_size=0)) as client:
        client.ask(1, body=BODY)
        assert client.answer(1)[":status"] == "200"
        client.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.until(Kind.DATA)
        client.socket.settimeout(10)
        client.send(window_update(1, 10))
        assert len(client.until(Kind.DATA).payload) == 10
        client.send(window_update(1, 1 << 20))
        while not (found := client.until(Kind.DATA)).flags & END_STREAM:
            assert found.payload


def test_an_answer_byte_by_byte_is_whole(door):
    pointsman, server = door
    expected = pointsman.complete().content
    received = b""
    with Frames(pointsman.gateway, begin=PREFACE + settings(initial_window_size=1)) as client:
        client.ask(1, body=BODY)
        while len(received) < len(expected):
            received += client.until(Kind.DATA, 1).payload
            client.send(window_update(1, 1) + window_update(0, 1))
    assert received == expected


def test_a_window_that_overflows_is_an_error_of_the_stream_or_the_connection(door):
    pointsman, server = door
    server.held = True
    for stream in (1, 0):
        with Frames(pointsman.gateway) as client:
            client.ask(1, body=BODY)
            client.send(window_update(stream, (1 << 31) - 1) * 2)
            found = client.until(Kind.RST_STREAM if stream else Kind.GOAWAY)
            assert found.number == 0x3, "FLOW_CONTROL_ERROR"
    at_rest(pointsman, server)
    server.held = False
    assert pointsman.complete().status_code == 200


def test_a_body_beyond_the_window_is_an_error(start):
    over = threading.Event()
    server = RawServer(lambda _wire, _head: over.wait(30))
    pointsman = start("--endpoint", server.address)
    with Frames(pointsman.gateway) as client:
        client.send(frame(Kind.HEADERS, END_HEADERS, 1, client.block("/v1/anything-else")))
        threading.Thread(target=lambda: [client.try_send(frame(Kind.DATA, 0, 1, bytes(16384))) for _ in range(2000)]).start()
        found = client.read()
        while found is not None and found.kind not in (Kind.RST_STREAM, Kind.GOAWAY):
            found = client.read()
    assert found is None or found.number == 0x3, "FLOW_CONTROL_ERROR"
    over.set()
    server.close()


@pytest.mark.parametrize("window", [0, (1 << 31) - 1])
def test_streams_of_a_client_that_reads_nothing_hold_little_memory(window, start):
    """As many endless answers as a connection may have, on each of two; with the widest windows the client does not read its socket."""
    server = Endless()
    pointsman = start("--endpoint", server.address)
    begin = PREFACE + settings(initial_window_size=window) + window_update(0, (1 << 31) - 1 - 65535)
    with Bystander(pointsman, growth_bytes_max=2 * STREAMS * STREAM_BYTES_MAX) as bystander:
        clients = [Frames(pointsman.gateway, begin=begin) for _ in range(2)]
        for client in clients:
            for stream in range(1, 2 * STREAMS, 2):
                client.ask(stream, body=STREAMED)
        until(lambda: server.begun == 2 * STREAMS, within=20, what="all answers have begun")
        until(server.stands_still, within=20, what="the server is not read from any more")
    print(f"{bystander.growth_bytes / (2 * STREAMS) / 1024:.0f} KiB a stream")
    for client in clients:
        client.socket.close()
    ledger = "pointsman_endpoint_in_flight_requests"
    until(lambda: pointsman.metrics().value(ledger) == 0, within=10, what="nothing is booked any more")
    server.close()
