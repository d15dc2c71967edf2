"""The life of a request in the picker's ledger: booked from the pick on, for as long as it is in flight and not longer, however it ends."""

import json
import socket
import struct

import pytest

from harness.epp import BODY, picking, servers
from harness.ext_proc import (
    BUFFERED_PARTIAL,
    FULL_DUPLEX,
    NONE,
    STREAMED,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
)
from harness.frames import Frames
from harness.grpc_frames import data, head, hear, said
from harness.wait import until

EVENTS = {"content-type": "text/event-stream"}


@pytest.fixture(scope="module")
def picker(tmp_path_factory):
    with picking(tmp_path_factory.mktemp("epp"), servers(3)) as (picker, _):
        yield picker


@pytest.fixture(scope="module")
def peer(picker):
    with picker.peer() as peer:
        yield peer


@pytest.fixture(autouse=True)
def at_rest(picker):
    """Before and after each of these."""
    picker.at_rest()
    yield
    picker.at_rest()


# ---- booked


@pytest.mark.parametrize("mode", [NONE, STREAMED, BUFFERED_PARTIAL, FULL_DUPLEX])
def test_a_request_is_booked_where_it_was_picked_for_until_its_stream_ends(mode, picker, peer):
    stream, outcome = peer.ask(BODY, mode=mode)
    assert picker.in_flight() == {outcome.pick[0]: 1}
    stream.send(response_headers())
    stream.answer("response_headers")
    assert picker.in_flight() == {outcome.pick[0]: 1}
    stream.half_close()
    stream.end()
    picker.at_rest()


def test_a_request_that_is_refused_is_not_booked(picker, peer):
    stream, outcome = peer.ask(b"{")
    with stream:
        assert outcome.status == 400
        assert picker.in_flight() == {}


@pytest.mark.parametrize("fallback", [1, 2])
def test_the_booking_moves_to_the_endpoint_that_served(fallback, picker, peer):
    """Envoy retried, and says so when the answer begins."""
    stream, outcome = peer.ask(BODY)
    with stream:
        served = outcome.pick[fallback]
        stream.send(response_headers(served=served))
        stream.answer("response_headers")
        assert picker.in_flight() == {served: 1}


@pytest.mark.parametrize("served", ["127.0.0.1:1", "nonsense", ""])
def test_an_endpoint_that_nobody_knows_may_have_served(served, picker, peer):
    """Envoy's own fallback chose, or the endpoint is gone."""
    stream, _ = peer.ask(BODY)
    with stream:
        stream.send(response_headers(served=served))
        stream.answer("response_headers")
        assert sum(picker.in_flight().values()) <= 1


def test_next_requests_go_where_less_is_booked(picker, peer):
    booked = [peer.ask(BODY) for _ in range(6)]
    assert set(picker.in_flight().values()) == {2}
    first = booked[0][1].pick[0]
    for stream, outcome in booked:
        if outcome.pick[0] == first:
            stream.cancel()
    until(lambda: first not in picker.in_flight(), within=5, what="two are gone")
    for expected in (1, 2):
        stream, outcome = peer.ask(BODY)
        booked.append((stream, outcome))
        assert outcome.pick[0] == first and picker.in_flight()[first] == expected
    for stream, _ in booked:
        stream.cancel()


# ---- ended

HEAD = request_headers(response_mode=FULL_DUPLEX)
ASKED = [HEAD, request_body(BODY)]
STEPS = {
    "nothing said": ([], 0),
    "a head": ([HEAD], 0),
    "a half body": ([HEAD, request_body(BODY[:20], end=False)], 0),
    "a body": (ASKED, 2),
    "a body and trailers": ([HEAD, request_body(BODY, end=False), request_trailers()], 3),
    "an answer's head": ([*ASKED, response_headers()], 3),
    "a half answer": ([*ASKED, response_headers(), response_body(b"data: half an eve")], 4),
    "a whole answer": ([*ASKED, response_headers(), response_body(b"{}", end=True)], 4),
    "an answer's trailers": ([*ASKED, response_headers(), response_body(b"{}"), response_trailers()], 5),
}
"""What Envoy has said, and how many answers that brings."""
at_each_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())


@at_each_step
@pytest.mark.parametrize("leave", ["half_close", "cancel"])
def test_a_stream_that_ends_when_all_is_answered_leaves_nothing_booked_and_is_counted_once(leave, step, picker, peer):
    messages, answers = step
    before = picker.metrics().value("pointsman_requests_total")
    stream = peer.stream(*messages)
    for _ in range(answers):
        stream.answer()
    getattr(stream, leave)()
    assert stream.rest() == []
    picker.at_rest()
    # Without an answer there is no telling whether a head that was sent has come.
    if answers:
        until(
            lambda: picker.metrics().value("pointsman_requests_total") == before + 1, within=5, what="it is counted once"
        )


@at_each_step
@pytest.mark.parametrize("leave", ["half_close", "cancel"])
def test_a_stream_that_ends_at_once_leaves_nothing_booked(leave, step, peer):
    messages, _ = step
    stream = peer.stream(*messages)
    getattr(stream, leave)()
    stream.rest()


@at_each_step
def test_a_connection_that_is_killed_leaves_nothing_booked(step, picker):
    """The peer's machine is gone: the connection is reset with a stream on it."""
    messages, answers = step
    with Frames(picker.gateway) as client:
        client.send(head(client) + data(said(*messages)))
        assert len(hear(client, answers=answers).answers) == answers
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_all_streams_of_a_connection_that_is_closed_end(picker):
    with picker.peer() as peer:
        for _ in range(50):
            peer.ask(BODY)
        assert sum(picker.in_flight().values()) == 50
    picker.at_rest()


# ---- what answers say


USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 5}}
TOKENS = ("pointsman_input_tokens_total", "pointsman_output_tokens_total", "pointsman_cached_input_tokens_total")


def counted(picker) -> list[float]:
    page = picker.metrics()
    return [page.value(name) for name in TOKENS]


def events(usage: dict) -> bytes:
    words = [{"choices": [{"index": 0, "text": f"word{number} "}]} for number in range(5)]
    texts = [json.dumps(event) for event in [*words, {"choices": [], "usage": usage}]] + ["[DONE]"]
    return b"".join(f"data: {text}\n\n".encode() for text in texts)


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_tokens_are_counted_from_events_however_they_are_cut(size, picker, peer):
    body = b'{"model":"tiny","prompt":"a","stream":true,"stream_options":{"include_usage":true}}'
    before = counted(picker)
    stream, _ = peer.ask(body, response_mode=FULL_DUPLEX)
    sent = events(USAGE)
    stream.send(response_headers(more=EVENTS.items()))
    for at in range(0, len(sent), size):
        stream.send(response_body(sent[at : at + size]))
    stream.send(response_body(b"", end=True)).half_close()
    stream.rest()
    assert [now - then for now, then in zip(counted(picker), before)] == [11, 7, 5]


def test_tokens_are_counted_from_an_answer_in_one_piece(picker, peer):
    before = counted(picker)
    stream, _ = peer.ask(BODY, response_mode=FULL_DUPLEX)
    sent = json.dumps({"choices": [{"index": 0, "text": "word " * 500}], "usage": USAGE}).encode()
    stream.send(response_headers(more=[("content-type", "application/json")]))
    stream.send(response_body(sent[:600]), response_body(sent[600:], end=True)).half_close()
    stream.rest()
    assert [now - then for now, then in zip(counted(picker), before)] == [11, 7, 5]


def test_the_servers_errors_are_told_from_what_was_served(picker, peer):
    for status, reason in ((200, "served"), (404, "rejected_by_server"), (500, "failed_by_server")):
        before = picker.metrics().value("pointsman_requests_total", reason=reason)
        stream, _ = peer.ask(BODY)
        stream.send(response_headers(status, end=True))
        stream.answer("response_headers")
        stream.half_close()
        stream.end()
        until(
            lambda: picker.metrics().value("pointsman_requests_total", reason=reason) == before + 1,
            within=5,
            what=f"one more {reason}",
        )
