"""Models that become others, at the endpoint picker: the body and its length, and the answer (ext-proc.md, resources.md)."""

import json

import pytest

from harness.epp import Picker, picking, served, servers
from harness.ext_proc import (
    BUFFERED,
    BUFFERED_PARTIAL,
    FULL_DUPLEX,
    NONE,
    STREAMED,
    ProcessingMode,
    headers_set,
    mutation,
    request_body,
    request_headers,
    response_body,
    response_headers,
)
from harness.manifests import ManifestFile, pool_v1, slice_of

MODEL = {
    "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
    "kind": "InferenceModel",
    "metadata": {"name": "food", "namespace": "default"},
    "spec": {"modelName": "food", "poolRef": {"name": "pool"}, "targetModels": [{"name": "food-v2", "weight": 1}]},
}
BODY = b'{ "model": "food", "prompt": "Which track?" }'
RENAMED = b'{ "model": "food-v2", "prompt": "Which track?" }'
LENGTH = [("content-length", str(len(BODY)))]


@pytest.fixture(scope="module")
def picker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("epp")
    made = servers(2)
    file = ManifestFile(folder / "pool.yaml")
    file.write(pool_v1(), *map(slice_of, made), MODEL)
    picker = Picker(folder, "-f", file.path)
    yield picker
    picker.at_rest()
    picker.close()
    for server in made:
        server.down()


@pytest.fixture
def peer(picker):
    with picker.peer() as peer:
        yield peer


def test_the_body_is_renamed_and_its_length_told_when_it_is_streamed(picker, peer):
    stream, outcome = peer.ask(BODY, more=LENGTH)
    assert b"".join(chunk.body for chunk in outcome.body_chunks) == RENAMED
    assert headers_set(outcome.picker)["content-length"] == str(len(RENAMED))
    served(stream, outcome)


@pytest.mark.parametrize("mode", [BUFFERED, BUFFERED_PARTIAL])
def test_and_when_it_is_buffered(mode, picker, peer):
    stream = peer.stream(request_headers(mode=mode, more=LENGTH))
    stream.answer("request_headers")
    answer = stream.send(request_body(BODY)).answer("request_body")
    assert answer.request_body.response.body_mutation.body == RENAMED
    assert headers_set(answer)["content-length"] == str(len(RENAMED))
    stream.cancel()


@pytest.mark.parametrize("mode", [FULL_DUPLEX, BUFFERED_PARTIAL])
def test_what_is_not_renamed_is_left_alone(mode, picker, peer):
    body = BODY.replace(b"food", b"tiny")
    stream, outcome = peer.ask(body, mode=mode, more=[("content-length", str(len(body)))])
    assert "content-length" not in headers_set(outcome.picker)
    if mode == FULL_DUPLEX:
        assert b"".join(chunk.body for chunk in outcome.body_chunks) == body
    else:
        assert not any(answer.request_body.response.HasField("body_mutation") for answer in outcome.answers)
    served(stream, outcome)


def answered(stream, parts: list[bytes], kind: str, streamed: bool) -> tuple[object, bytes]:
    """What Envoy is told to send on of an answer in these parts, and the answer to its headers."""
    stream.send(response_headers(more=[("content-type", kind), ("content-length", "999")]))
    headers = stream.answer("response_headers")
    sent = b""
    for number, part in enumerate(parts):
        stream.send(response_body(part, end=number == len(parts) - 1))
        if not streamed:
            sent += stream.answer("response_body").response_body.response.body_mutation.body
            continue
        if number == len(parts) - 1:
            while True:
                chunk = stream.answer("response_body").response_body.response.body_mutation.streamed_response
                sent += chunk.body
                if chunk.end_of_stream:
                    break
    stream.half_close()
    if streamed:
        # Parts that were answered before the last one came.
        assert stream.rest() == []
    return headers, sent


@pytest.mark.parametrize(("response_mode", "streamed"), [(FULL_DUPLEX, True), (STREAMED, False)])
def test_the_answer_reads_as_the_client_asked_however_it_is_cut(response_mode, streamed, picker, peer):
    events = b'data: {"model":"food-v2","choices":[{"text":"food-v2"}]}\n\n' * 2 + b"data: [DONE]\n\n"
    parts = [events[at : at + 7] for at in range(0, len(events), 7)]
    stream, _ = peer.ask(BODY, response_mode=response_mode)
    headers, sent = answered(stream, parts, "text/event-stream", streamed)
    assert sent == events.replace(b'"model":"food-v2"', b'"model":"food"')
    assert "content-length" in mutation(headers).remove_headers


def test_an_answer_in_one_piece(picker, peer):
    answer = json.dumps({"id": "x", "model": "food-v2", "choices": []}).encode()
    stream, _ = peer.ask(BODY, response_mode=BUFFERED)
    _, sent = answered(stream, [answer], "application/json", streamed=False)
    assert json.loads(sent)["model"] == "food"


def test_an_answer_that_is_not_shown_is_asked_for(picker, peer):
    stream, _ = peer.ask(BODY, mode=BUFFERED_PARTIAL, response_mode=NONE)
    stream.send(response_headers(more=[("content-type", "application/json")]))
    assert stream.answer("response_headers").mode_override.response_body_mode == STREAMED
    stream.cancel()


def test_an_answers_head_is_asked_for_before_it_is_known_whether_its_model_is_renamed(picker, peer):
    stream = peer.stream(request_headers(mode=BUFFERED_PARTIAL, response_mode=NONE))
    override = stream.answer("request_headers").mode_override
    assert (override.request_body_mode, override.response_body_mode) == (BUFFERED_PARTIAL, NONE)
    assert override.response_header_mode == ProcessingMode.SEND
    stream.cancel()


def test_an_answers_head_is_not_asked_for_in_a_pool_that_renames_nothing(tmp_path):
    with picking(tmp_path, servers(1)) as (picker, _), picker.peer() as peer:
        stream = peer.stream(request_headers(mode=BUFFERED_PARTIAL, response_mode=NONE))
        assert not stream.answer("request_headers").HasField("mode_override")
        stream.cancel()


def test_and_not_where_nothing_is_renamed(picker, peer):
    stream, _ = peer.ask(BODY.replace(b"food", b"tiny"), mode=BUFFERED_PARTIAL, response_mode=NONE)
    stream.send(response_headers(more=[("content-type", "application/json")]))
    assert not stream.answer("response_headers").HasField("mode_override")
    stream.cancel()


def test_metrics_tell_both_names(picker, peer):
    served(*peer.ask(BODY))
    requests = picker.metrics().value("inference_objective_request_total", model_name="food", target_model_name="food-v2")
    assert requests >= 1
