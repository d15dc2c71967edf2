"""Envoy's body modes (ext-proc.md): what is answered when, in which order, and bodies that come back as they were sent."""

import hashlib
import random

import pytest

from harness.epp import BODY, picking, servers
from harness.ext_proc import (
    BUFFERED,
    BUFFERED_PARTIAL,
    CHUNK_BYTES_MAX,
    FULL_DUPLEX,
    NONE,
    STREAMED,
    Outcome,
    chunks,
    kind,
    picked,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    response_trailers,
)
from harness.manifests import MAX_BLOCKS, STRATEGY

MIB = 1 << 20
MULTIPART = [("content-type", "multipart/form-data; boundary=b")]


@pytest.fixture(scope="module")
def picker(tmp_path_factory):
    with picking(tmp_path_factory.mktemp("epp"), servers(3)) as (picker, _):
        yield picker


@pytest.fixture(scope="module")
def peer(picker):
    with picker.peer() as peer:
        yield peer


def prompt_of(size: int) -> bytes:
    """A request of exactly so many bytes; the prompt is its last value."""
    frame = b'{"model":"tiny","max_tokens":4,"prompt":"%s"}'
    return frame % (b"a" * (size - len(frame) + 2))


def echoed(outcome: Outcome) -> bytes:
    """The body that came back: in pieces of at most 62,000 bytes, of which the last alone says that it is."""
    parts = outcome.body_chunks
    assert [part.end_of_stream for part in parts] == [False] * (len(parts) - 1) + [True]
    assert max(len(part.body) for part in parts) <= CHUNK_BYTES_MAX
    return b"".join(part.body for part in parts)


# ---- NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL


@pytest.mark.parametrize("mode", [NONE, STREAMED], ids=["NONE", "STREAMED"])
def test_where_headers_cannot_wait_the_pick_is_made_at_once(mode, peer):
    with peer.stream(request_headers(mode=mode)) as stream:
        assert picked(stream.answer("request_headers"))


@pytest.mark.parametrize("mode", [BUFFERED, BUFFERED_PARTIAL], ids=["BUFFERED", "BUFFERED_PARTIAL"])
def test_where_the_body_comes_in_one_message_each_message_is_answered_once(mode, peer):
    with peer.stream(request_headers(mode=mode)) as stream:
        stream.answer("request_headers")
        assert stream.is_silent()
        stream.send(request_body(BODY))
        assert picked(stream.answer("request_body"))
        stream.half_close()
        stream.end()


@pytest.mark.parametrize("size", [100, 65_536, 10 * MIB])
@pytest.mark.parametrize("mode", [BUFFERED, STREAMED], ids=["BUFFERED", "STREAMED"])
def test_a_body_that_nobody_rewrites_is_let_pass_as_it_is(mode, size, peer):
    stream, outcome = peer.ask(prompt_of(size), mode=mode, chunk=1 * MIB)
    with stream:
        assert len(outcome.pick) == 3
        for answer in outcome.answers:
            if kind(answer) == "request_body":
                assert not answer.request_body.response.HasField("body_mutation")


def test_the_beginning_of_a_body_is_enough_in_buffered_partial(peer):
    """Envoy sends what it buffered, not the end, and no more messages."""
    with peer.stream(request_headers(mode=BUFFERED_PARTIAL)) as stream:
        stream.answer("request_headers")
        stream.send(request_body(prompt_of(MIB)[:65_536], end=False))
        answer = stream.answer("request_body")
        assert picked(answer) and not answer.request_body.response.HasField("body_mutation")
        stream.half_close()
        stream.end()


def test_chunks_in_streamed_mode_are_answered_one_by_one(peer):
    with peer.stream(request_headers(mode=STREAMED)) as stream:
        stream.answer("request_headers")
        for message in chunks(prompt_of(50_000), 10_000):
            stream.send(message)
            assert kind(stream.answer()) == "request_body"


def test_without_a_protocol_config_a_request_is_picked_for(peer):
    """Envoy below 1.32 says nothing of its modes, and knows only those that answer message by message."""
    with peer.stream(request_headers(mode=None), request_body(BODY)) as stream:
        answers = [stream.answer("request_headers"), stream.answer("request_body")]
        assert [len(picked(answer) or []) for answer in answers] in ([3, 0], [0, 3])
        assert not answers[1].request_body.response.body_mutation.HasField("streamed_response")
        stream.half_close()
        stream.end()


# ---- FULL_DUPLEX_STREAMED


@pytest.mark.parametrize("size", [100, 61_999, 62_000, 62_001, 124_001, MIB, 10 * MIB])
@pytest.mark.parametrize("chunk", [16_384, 3 * MIB])
def test_a_streamed_body_comes_back_byte_for_byte_in_pieces_that_envoy_takes(size, chunk, peer):
    body = prompt_of(size)
    stream, outcome = peer.ask(body, chunk=chunk)
    with stream:
        assert len(outcome.pick) == 3
        assert [kind(answer) for answer in outcome.answers][0] == "request_headers"
        assert hashlib.sha256(echoed(outcome)).digest() == hashlib.sha256(body).digest()


def test_a_body_that_is_not_read_comes_back_byte_for_byte(peer):
    body = random.Random(1).randbytes(200_000)
    stream, outcome = peer.ask(body, path="/v1/audio/transcriptions", more=MULTIPART)
    with stream:
        assert echoed(outcome) == body


@pytest.mark.parametrize("body", [b"", b"a"])
def test_a_tiny_body_that_is_not_read_comes_back(body, peer):
    stream, outcome = peer.ask(body, path="/anything")
    with stream:
        assert echoed(outcome) == body and len(outcome.pick) == 3


def test_the_end_in_a_message_of_its_own_is_the_end(peer):
    with peer.stream(request_headers(), request_body(BODY, end=False), request_body(b"")) as stream:
        outcome = stream.settled(Outcome(), last="request_body")
        while not outcome.body_chunks[-1].end_of_stream:
            stream.settled(outcome, last="request_body")
        assert echoed(outcome) == BODY


def test_a_second_end_of_the_body_is_passed_over(peer):
    """Seen from Envoy above 1 MB."""
    stream, outcome = peer.ask(prompt_of(2 * MIB))
    with stream:
        stream.send(request_body(b""))
        stream.send(response_headers())
        assert kind(stream.answer()) == "response_headers", "it is answered by nothing"
        assert len(echoed(outcome)) == 2 * MIB


def test_the_answer_to_the_headers_does_not_wait_for_the_end_of_a_long_prompt(tmp_path):
    """The policy needs the first 8 KB of the prompt; the first 32 KiB of a body are looked through for more (docs/operations.md)."""
    body = prompt_of(640_000)
    with picking(tmp_path, servers(3), annotations={STRATEGY: "PREFIX_CACHE"}) as (picker, _):
        with picker.peer() as peer, peer.stream(request_headers()) as stream:
            stream.send(request_body(body[:33_000], end=False))
            assert picked(stream.answer("request_headers"))
            first = stream.answer("request_body").request_body.response.body_mutation.streamed_response
            assert body.startswith(first.body) and not first.end_of_stream
            stream.send(request_body(body[33_000:]))
            outcome = Outcome()
            while not outcome.body_chunks or not outcome.body_chunks[-1].end_of_stream:
                outcome.answers.append(stream.answer("request_body"))
            assert first.body + echoed(outcome) == body


def test_a_prompt_that_the_policy_has_not_seen_enough_of_is_waited_for(tmp_path):
    settings = {STRATEGY: "PREFIX_CACHE", MAX_BLOCKS: "1000"}
    body = prompt_of(100_000)
    with picking(tmp_path, servers(3), annotations=settings) as (picker, _):
        with picker.peer() as peer, peer.stream(request_headers(), request_body(body[:16_000], end=False)) as stream:
            assert stream.is_silent()
            stream.send(request_body(body[16_000:80_000], end=False))
            assert picked(stream.answer("request_headers"))


def test_a_request_without_a_body_is_picked_for_at_once(peer):
    for mode in (NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX):
        with peer.stream(request_headers("/v1/models", method="GET", end=True, mode=mode)) as stream:
            assert picked(stream.answer("request_headers")), mode
            stream.half_close()
            stream.end()


# ---- trailers and answers


def test_trailers_end_a_request_after_its_body(peer):
    with peer.stream(request_headers(), request_body(BODY, end=False), request_trailers()) as stream:
        kinds, body = [], b""
        while "request_trailers" not in kinds:
            answer = stream.answer()
            kinds.append(kind(answer))
            if kinds[-1] == "request_body":
                part = answer.request_body.response.body_mutation.streamed_response
                assert not part.end_of_stream, "the trailers are the end"
                body += part.body
        assert body == BODY
        assert kinds == ["request_headers", *["request_body"] * (len(kinds) - 2), "request_trailers"]


def test_trailers_of_a_buffered_body_are_answered(peer):
    with peer.stream(request_headers(mode=BUFFERED)) as stream:
        stream.answer("request_headers")
        stream.send(request_body(BODY, end=False))
        assert picked(stream.answer("request_body"))
        stream.send(request_trailers())
        stream.answer("request_trailers")


@pytest.mark.parametrize("size", [0, 1, 61_999, 62_000, 62_001, MIB, 10 * MIB])
def test_an_answer_that_is_streamed_passes_byte_for_byte(size, peer):
    sent = random.Random(2).randbytes(size)
    stream, _ = peer.ask(BODY, response_mode=FULL_DUPLEX)
    with stream:
        stream.send(response_headers(more=[("content-type", "application/octet-stream")]))
        stream.answer("response_headers")
        messages = [sent[at : at + 30_000] for at in range(0, size, 30_000)] or [b""]
        for number, part in enumerate(messages):
            stream.send(response_body(part, end=number == len(messages) - 1))
        received, ended = b"", False
        while not ended:
            part = stream.answer("response_body").response_body.response.body_mutation.streamed_response
            assert len(part.body) <= CHUNK_BYTES_MAX
            received, ended = received + part.body, part.end_of_stream
        assert received == sent


def test_each_piece_of_an_answer_is_passed_on_as_it_comes(peer):
    stream, _ = peer.ask(BODY, response_mode=FULL_DUPLEX)
    with stream:
        stream.send(response_headers(more=[("content-type", "text/event-stream")]))
        stream.answer("response_headers")
        for sent in (b"data: {\"choices\":[]}\n\n", b"data: half of an ev", b"ent\n\n"):
            stream.send(response_body(sent))
            part = stream.answer("response_body").response_body.response.body_mutation.streamed_response
            assert part.body == sent and not part.end_of_stream
        stream.send(response_trailers())
        stream.answer("response_trailers")


@pytest.mark.parametrize("mode", [STREAMED, BUFFERED, BUFFERED_PARTIAL], ids=["STREAMED", "BUFFERED", "BUFFERED_PARTIAL"])
def test_an_answer_in_the_older_modes_is_let_pass(mode, peer):
    stream, _ = peer.ask(BODY, response_mode=mode)
    with stream:
        stream.send(response_headers())
        stream.answer("response_headers")
        stream.send(response_body(b"an answer", end=True))
        assert not stream.answer("response_body").response_body.response.HasField("body_mutation")


# ---- observability mode


def test_who_only_lets_it_watch_is_answered_nothing(peer):
    watched = [request_headers(), request_body(BODY), response_headers()]
    for message in watched:
        message.observability_mode = True
    with peer.stream(*watched) as stream:
        assert stream.is_silent()
        stream.half_close()
        stream.end()
