"""Calls that no Envoy makes: each is refused by itself, says why, and the next is served (ext-proc.md)."""

import contextlib
import random
import socket

import pytest

from harness.epp import BODY, picking, servers
from harness.ext_proc import PROCESS, request_headers
from harness.frames import END_STREAM, Frames, Kind, frame, reset
from harness.grpc_frames import data, head, hear, message, said
from harness.wait import until

INVALID_ARGUMENT, UNIMPLEMENTED = "3", "12"
ACCESS_LOG = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
BODY_BYTES_MAX = 32 << 20
FRAMING_BYTES_MAX = 1 << 20


@pytest.fixture(scope="module")
def picker(tmp_path_factory):
    with picking(tmp_path_factory.mktemp("epp"), servers(1)) as (picker, _):
        yield picker


@pytest.fixture(autouse=True)
def serves_on(picker):
    yield
    assert picker.ask(BODY).pick, "the next one is served"


def call(picker, sent: bytes, path: str = PROCESS, **more: object):
    with Frames(picker.gateway, polite=True) as client:
        client.send(head(client, path=path, **more) + data(sent, end=True))
        return hear(client)


@pytest.mark.parametrize(
    "sent, why",
    [
        (message(b"\xff\xff\xff"), "no ProcessingRequest"),
        (message(b"\x12\x7f\x00"), "no ProcessingRequest"),
        (message(b"abc", flag=1), "compressed"),
        (message(b"abc", flag=255), "compressed"),
        (message(b"abc", length=0xFFFF_FFFF), "4294967295 bytes"),
        (message(b"", length=BODY_BYTES_MAX + 2 * FRAMING_BYTES_MAX), "at most"),
        (message(b"abcdef", length=7), "inside a message"),
        (b"\x00\x00", "inside a message"),
        (said(request_headers()) + message(b"\xff"), "no ProcessingRequest"),
    ],
    ids=["garbage", "a field cut short", "compressed", "no such flag", "4 GiB", "over the limit", "cut short", "half a frame", "garbage later"],
)
def test_what_is_no_message_is_refused_with_the_reason(picker, sent, why):
    heard = call(picker, sent)
    assert heard.fields["grpc-status"] == INVALID_ARGUMENT
    assert why in heard.fields["grpc-message"]


@pytest.mark.parametrize("path", ["/", "/x/y", PROCESS + "x", REFLECTION])
def test_there_are_no_other_methods_and_no_reflection(picker, path):
    assert call(picker, message(b""), path).fields["grpc-status"] == UNIMPLEMENTED


def test_garbage_for_the_access_log_is_refused(picker):
    assert call(picker, message(b"\xff"), ACCESS_LOG).fields["grpc-status"] == INVALID_ARGUMENT


@pytest.mark.parametrize("sent", [b"", message(b"")], ids=["nothing", "an empty message"])
def test_a_call_that_asks_nothing_ends_well(picker, sent):
    assert not call(picker, sent).refused


def test_any_bytes_for_messages_take_nothing_down(picker):
    chance = random.Random(20261123)
    for _ in range(200):
        payload = chance.randbytes(chance.randrange(200))
        heard = call(picker, said(request_headers()) + message(payload))
        assert heard.fields.get("grpc-status") in ("0", INVALID_ARGUMENT)


def test_any_bytes_for_frames_take_nothing_down(picker):
    chance = random.Random(20261123)
    for _ in range(100):
        with Frames(picker.gateway) as client:
            if client.try_send(head(client) + data(said(request_headers()))):
                client.try_send(chance.randbytes(chance.randrange(9, 400)))


def test_another_protocol_is_not_served(picker):
    for sent in (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", random.Random(1).randbytes(300), b"\x16\x03\x01\x02\x00\x01"):
        with Frames(picker.gateway, begin=sent) as client:
            # It may have hung up already.
            with contextlib.suppress(OSError):
                client.socket.shutdown(socket.SHUT_WR)
            client.to_the_end()


def test_streams_that_are_reset_as_fast_as_they_begin_leave_nothing(picker):
    """Rapid reset (CVE-2023-44487): the connection is ended, or all are forgotten."""
    with Frames(picker.gateway) as client:
        for stream in range(1, 4000, 2):
            if not client.try_send(head(client, stream) + data(said(request_headers()), stream) + reset(stream)):
                break
    until(lambda: sum(picker.in_flight().values()) == 0, within=10, what="nothing is booked")


def test_a_stream_on_which_nothing_comes_holds_nobody_up(picker):
    with Frames(picker.gateway, polite=True) as client:
        client.send(head(client, 1) + data(message(b"abc", length=1000)[:6], 1))
        client.send(head(client, 3) + frame(Kind.DATA, END_STREAM, 3, said(request_headers())))
        assert not hear(client, 3).refused
