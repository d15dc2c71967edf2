"""What real Envoy 1.40 said, message by message, said again to the running picker."""

import pytest

from harness.epp import picking, servers
from harness.ext_proc import ProcessingRequest, kind, picked
from harness.pointsman import ROOT

RECORDINGS = ROOT / "crates/ext-proc/tests/stream/recordings"


@pytest.fixture(scope="module")
def picker(tmp_path_factory):
    with picking(tmp_path_factory.mktemp("epp"), servers(3)) as (picker, _):
        yield picker


def recorded(name: str) -> list[ProcessingRequest]:
    lines = (RECORDINGS / f"{name}.hex").read_text().split()
    return [ProcessingRequest.FromString(bytes.fromhex(line)) for line in lines]


def said(message: ProcessingRequest) -> str:
    return message.WhichOneof("request")


def test_a_chat_that_is_streamed_in_buffered_partial(picker):
    """Every message is answered by one of its kind, and nothing that passes is touched."""
    messages = recorded("buffered-partial")
    assert [said(message) for message in messages[:3]] == ["request_headers", "request_body", "response_headers"]
    with picker.peer() as peer, peer.stream() as stream:
        for message in messages:
            stream.send(message)
            answer = stream.answer(said(message))
            if said(message) == "request_body":
                assert len(picked(answer)) == 3
            if said(message) in ("request_body", "response_body"):
                assert not getattr(answer, kind(answer)).response.HasField("body_mutation")
        stream.half_close()
        stream.end()
    picker.at_rest()


def test_a_chat_that_is_streamed_in_full_duplex(picker):
    """The pick comes after the body's end, then the body, then the answer's pieces one by one; all as they were."""
    messages = recorded("full-duplex-streamed")
    request = b"".join(message.request_body.body for message in messages if said(message) == "request_body")
    answers = [message.response_body for message in messages if said(message) == "response_body"]
    with picker.peer() as peer, peer.stream() as stream:
        stream.send(*(message for message in messages if said(message).startswith("request")))
        assert len(picked(stream.answer("request_headers"))) == 3
        received, ended = b"", False
        while not ended:
            part = stream.answer("request_body").request_body.response.body_mutation.streamed_response
            received, ended = received + part.body, part.end_of_stream
        assert received == request
        stream.send(next(message for message in messages if said(message) == "response_headers"))
        stream.answer("response_headers")
        for message in messages:
            if said(message) == "response_body":
                stream.send(message)
                part = stream.answer("response_body").response_body.response.body_mutation.streamed_response
                assert (part.body, part.end_of_stream) == (message.response_body.body, message.response_body.end_of_stream)
        assert answers[-1].end_of_stream
        stream.half_close()
        stream.end()
    picker.at_rest()


@pytest.mark.parametrize("name", ["buffered-partial", "full-duplex-streamed"])
def test_a_recording_cut_off_anywhere_leaves_nothing_booked(name, picker):
    messages = recorded(name)
    with picker.peer() as peer:
        for length in range(len(messages) + 1):
            for leave in ("half_close", "cancel"):
                with peer.stream(*messages[:length]) as stream:
                    getattr(stream, leave)()
                    stream.rest()
    picker.at_rest()
