"""What a client is told when it cannot be served (ext-proc.md, cli.md): immediate answers in OpenAI's shape, with a reason and, where it helps, a time to come again."""

import json

import httpx
import pytest

from harness.epp import BODY, picking, servers
from harness.errors import assert_error
from harness.ext_proc import (
    BUFFERED,
    BUFFERED_PARTIAL,
    FULL_DUPLEX,
    NONE,
    STREAMED,
    Outcome,
    request_body,
    request_headers,
)
from harness.wait import until

READ_MODES = pytest.mark.parametrize(
    "mode", [BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX], ids=["BUFFERED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED"]
)
ALL_MODES = pytest.mark.parametrize(
    "mode",
    [NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX],
    ids=["NONE", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED"],
)
LIMIT = 100_000


@pytest.fixture(scope="module")
def picker(tmp_path_factory):
    """Bodies up to 100,000 bytes; all of them, up to 300,000. The endpoints' models differ: no decision without the model's name."""
    flags = ("--body-bytes-max", LIMIT, "--bodies-bytes-max", 3 * LIMIT)
    pool = [*servers(1, models=("tiny",)), *servers(1, models=("tiny", "other"))]
    with picking(tmp_path_factory.mktemp("epp"), pool, *flags) as (picker, _):
        yield picker


@pytest.fixture(scope="module")
def peer(picker):
    with picker.peer() as peer:
        yield peer


def told(outcome: Outcome) -> httpx.Response:
    """What Envoy makes of an immediate answer."""
    assert outcome.immediate is not None, "it was picked for"
    return httpx.Response(outcome.status, headers=outcome.headers, content=outcome.immediate.body)


def asked(peer, body: bytes, **head) -> httpx.Response:
    stream, outcome = peer.ask(body, **head)
    with stream:
        return told(outcome)


# ---- 400


MALFORMED = {
    "cut off": b'{"model":"tiny","prompt":"a',
    "no JSON": b"nonsense",
    "an array": b"[1,2]",
    "nothing": b"",
    "no prompt": b'{"model":"tiny","max_tokens":4}',
    "two commas": b'{"model":"tiny",,"prompt":"a"}',
    "no UTF-8": b'{"model":"tiny","prompt":"\xff"}',
    "nested too deep": b'{"model":"tiny","prompt":' + b"[" * 500 + b"]" * 500 + b"}",
}


@READ_MODES
@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_body_that_no_server_would_read_is_400(body, mode, peer):
    assert_error(asked(peer, body, mode=mode), 400, "malformed")


@READ_MODES
def test_a_body_without_a_model_is_400_though_no_policy_reads_it(mode, tmp_path):
    with picking(tmp_path, servers(1)) as (picker, _), picker.peer() as peer:
        for body in (b'{"prompt":"a"}', b'{"model":null,"prompt":"a"}'):
            assert "model" in assert_error(asked(peer, body, mode=mode), 400, "malformed")
        stream, outcome = peer.ask(BODY, mode=mode)
        with stream:
            assert outcome.pick


@READ_MODES
def test_a_chat_without_messages_is_400(mode, peer):
    body = b'{"model":"tiny","prompt":"a"}'
    assert_error(asked(peer, body, mode=mode, path="/v1/chat/completions"), 400, "malformed")


def test_the_message_says_where(peer):
    assert "29" in assert_error(asked(peer, b'{"model":"tiny","prompt":"a" "b"}'), 400, "malformed")


def test_a_body_that_is_not_read_is_not_judged(peer):
    for head in ({"path": "/anything"}, {"more": [("content-encoding", "gzip")]}):
        stream, outcome = peer.ask(b"nonsense", **head)
        with stream:
            assert outcome.pick


# ---- 404


def test_a_model_that_no_endpoint_has_is_404_and_the_message_names_those_there_are(picker, peer):
    body = b'{"model":"unheard-of","prompt":"a"}'
    for mode in (FULL_DUPLEX, BUFFERED_PARTIAL):
        message = assert_error(asked(peer, body, mode=mode), 404, "unknown_model")
        assert "unheard-of" in message and "tiny" in message


def test_a_model_is_not_unknown_where_endpoints_do_not_tell_theirs(tmp_path):
    with picking(tmp_path, servers(2, models=None)) as (picker, _):
        assert picker.ask(b'{"model":"unheard-of","prompt":"a"}').pick


# ---- 413


@ALL_MODES
def test_an_announced_length_beyond_the_limit_is_413_at_once(mode, peer):
    with peer.stream(request_headers(mode=mode, more=[("content-length", str(LIMIT + 1))])) as stream:
        assert_error(told(stream.settled(Outcome(), last="never")), 413, "body_too_large")


def test_an_announced_length_of_just_the_limit_is_served(peer):
    frame = b'{"model":"tiny","prompt":""}'
    body = frame[:-2] + b"a" * (LIMIT - len(frame)) + frame[-2:]
    stream, outcome = peer.ask(body, more=[("content-length", str(LIMIT))])
    with stream:
        assert len(body) == LIMIT and outcome.pick


@pytest.mark.parametrize("pieces", ["one message", "many messages"])
def test_a_body_that_grows_beyond_the_limit_is_413(pieces, peer):
    """The model comes last: the body is held until it is seen."""
    body = b'{"prompt":"%s' % (b"a" * 2 * LIMIT)
    with peer.stream(request_headers()) as stream:
        size = len(body) if pieces == "one message" else 10_000
        for at in range(0, len(body), size):
            stream.send(request_body(body[at : at + size], end=False))
        assert_error(told(stream.settled(Outcome(), last="never")), 413, "body_too_large")


# ---- 429


def test_bodies_beyond_the_memory_for_all_are_429_and_give_it_back(picker, peer):
    """A prompt without its end, each: it is held until the model's name is seen."""
    most = b'{"prompt":"%s' % (b"a" * (LIMIT - 10_000))
    held = picker.metrics().value("pointsman_bodies_bytes")
    assert held == 0
    streams = []
    for _ in range(3):
        streams.append(peer.stream(request_headers(), request_body(most, end=False)))
        held = until(lambda: more_than(picker, held + len(most)), within=5, what="one more is held")
    stream = peer.stream(request_headers(), request_body(most, end=False))
    assert_error(told(stream.settled(Outcome(), last="never")), 429, "too_many_bytes")
    for each in (*streams, stream):
        each.cancel()
    until(lambda: not more_than(picker, 1), within=5, what="nothing is held")
    assert picker.ask().pick


def more_than(picker, least: float) -> float:
    """What is held, if that is as much."""
    held = picker.metrics().value("pointsman_bodies_bytes")
    return held if held >= least else 0


def test_more_requests_than_may_be_in_flight_are_429(tmp_path):
    with picking(tmp_path, servers(2), "--requests-max", 3) as (picker, _), picker.peer() as peer:
        streams = [peer.ask(BODY) for _ in range(3)]
        assert_error(asked(peer, BODY), 429, "too_many_requests")
        streams[0][0].cancel()
        until(lambda: picker.ask().status == 200, within=5, what="there is room again")


# ---- 503


@ALL_MODES
def test_without_an_endpoint_it_is_503(mode, tmp_path):
    with picking(tmp_path, []) as (picker, _), picker.peer() as peer:
        assert_error(asked(peer, BODY, mode=mode), 503, "no_endpoint")
        with peer.stream(request_headers("/v1/models", method="GET", end=True, mode=mode)) as stream:
            assert_error(told(stream.settled(Outcome(), last="never")), 503, "no_endpoint")


# ---- the shape


def test_an_immediate_answer_says_why_to_envoys_log_too(peer):
    stream, outcome = peer.ask(b"nonsense")
    with stream:
        assert outcome.immediate.details == json.loads(outcome.immediate.body)["error"]["code"] == "malformed"


def test_a_stream_is_over_once_it_was_refused(peer):
    """What Envoy had sent before it knew changes nothing."""
    stream, outcome = peer.ask(b"nonsense")
    with stream:
        assert outcome.status == 400
        stream.send(request_body(b"more"))
        stream.half_close()
        assert stream.rest() == []


def test_a_refusal_is_counted_by_its_reason(picker, peer):
    before = picker.metrics().value("pointsman_requests_total", reason="malformed")
    asked(peer, b"nonsense")
    until(
        lambda: picker.metrics().value("pointsman_requests_total", reason="malformed") == before + 1,
        within=5,
        what="one more malformed",
    )
