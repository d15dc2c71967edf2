"""InferenceModel and InferenceModelRewrite: the model a request becomes, and the answer that reads as was asked (annotations.md, resources.md)."""

import json
from collections import Counter
from contextlib import closing

import pytest

from harness.http1 import RawServer, Wire
from harness.manifests import ManifestFile, pool_v1, slice_of
from harness.upstream import Fault
from harness.wait import until

GROUP = "inference.networking.x-k8s.io/v1alpha2"


def inference_model(name: str, *targets: tuple[str, int | None], created: str | None = None, object_name: str | None = None, **spec) -> dict:
    target_models = [{"name": target, **({} if weight is None else {"weight": weight})} for target, weight in targets]
    return {
        "apiVersion": GROUP,
        "kind": "InferenceModel",
        "metadata": {"name": object_name or name, "namespace": "default", **({"creationTimestamp": created} if created else {})},
        "spec": {"modelName": name, "poolRef": {"name": "pool"}, **({"targetModels": target_models} if targets else {}), **spec},
    }


def rewrite(name: str, *rules: tuple[str | None, str], created: str | None = None) -> dict:
    def rule(model: str | None, target: str) -> dict:
        matches = {"matches": [{"model": {"type": "Exact", "value": model}}]} if model else {}
        return {**matches, "targets": [{"modelRewrite": target, "weight": 1}]}

    return {
        "apiVersion": GROUP,
        "kind": "InferenceModelRewrite",
        "metadata": {"name": name, "namespace": "default", **({"creationTimestamp": created} if created else {})},
        "spec": {"poolRef": {"name": "pool"}, "rules": [rule(*each) for each in rules]},
    }


@pytest.fixture
def house(tmp_path, start, upstreams):
    """A gateway before one server, with documents beside the pool; they may be written again."""

    def house(*documents: dict, servers: int = 1):
        made = upstreams(servers, models=("tiny",))
        file = ManifestFile(tmp_path / "pool.yaml")
        write = lambda *documents: file.write(pool_v1(), *map(slice_of, made), *documents)
        write(*documents)
        return start("-f", file.path), made, write

    return house


def asked_for(server) -> Counter:
    return Counter(seen.json()["model"] for seen in server.requests)


def test_a_model_is_split_over_its_targets_by_weight(house):
    pointsman, (server,), _ = house(inference_model("food", ("food-v1", 9), ("food-v2", 1)))
    for _ in range(100):
        answer = pointsman.complete(model="food")
        assert (answer.status_code, answer.json()["model"]) == (200, "food")
    assert set(asked_for(server)) == {"food-v1", "food-v2"}
    assert 5 <= asked_for(server)["food-v2"] <= 15


def test_without_weights_evenly(house):
    pointsman, (server,), _ = house(inference_model("food", ("a", None), ("b", None)))
    for _ in range(40):
        assert pointsman.complete(model="food").status_code == 200
    assert asked_for(server).keys() == {"a", "b"} and min(asked_for(server).values()) >= 15


def test_nothing_but_the_name_is_changed_in_a_request(house):
    pointsman, (server,), _ = house(inference_model("food", ("the \"new\" one – ü", 1)))
    before = b'{ "prompt" : "model\\u00e9 \\"model\\": \\"food\\"" ,\n "model" : "food" , "x": [1.50, {"model": "food"}] }'
    answer = pointsman.client.post("/v1/completions", content=before, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["model"]) == (200, "food")
    (seen,) = server.requests
    after = b'"model" : ' + json.dumps("the \"new\" one – ü", ensure_ascii=False).encode() + b" ,"
    assert seen.body == before.replace(b'"model" : "food" ,', after, 1)
    assert seen.header("content-length") == str(len(seen.body))


def test_a_long_body_in_chunks_is_changed_as_well(house):
    pointsman, (server,), _ = house(inference_model("food", ("food-v1", 1)))
    long = "word " * 200_000
    body = json.dumps({"prompt": long, "model": "food"}).encode()
    chunks = (body[at : at + 50_000] for at in range(0, len(body), 50_000))
    assert pointsman.client.post("/v1/completions", content=chunks, headers={"content-type": "application/json"}).status_code == 200
    assert server.requests[0].json() == {"prompt": long, "model": "food-v1"}


def test_a_stream_reads_as_the_client_asked(house):
    pointsman, (server,), _ = house(inference_model("food", ("food-v1", 1)))
    answer = pointsman.complete(model="food", stream=True)
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert len(events) == 5 and {json.loads(event)["model"] for event in events[:-1]} == {"food"}
    assert asked_for(server) == {"food-v1": 1}


def test_a_name_that_is_cut_by_chunks_is_put_back(tmp_path, start):
    event = b'data: {"id":"1","model":"food-v1","choices":[{"text":"\\"model\\":\\"food-v1\\""}]}\n\n'

    def answer(wire: Wire, head) -> None:
        if b"prompt" not in wire.read_body(head):
            return wire.send(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        wire.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for byte in event + b"data: [DONE]\n\n":
            wire.send(b"1\r\n" + bytes([byte]) + b"\r\n")
        wire.send(b"0\r\n\r\n")

    with closing(RawServer(answer)) as server:
        file = ManifestFile(tmp_path / "pool.yaml")
        file.write(pool_v1(), slice_of(server), inference_model("food", ("food-v1", 1)))
        text = start("-f", file.path).complete(model="food", stream=True).text
    assert text.encode() == event.replace(b'"model":"food-v1",', b'"model":"food",', 1) + b"data: [DONE]\n\n"


def test_a_request_that_is_tried_again_is_renamed_there_too(house):
    pointsman, servers, _ = house(inference_model("food", ("food-v1", 1)), servers=2)
    for server in servers:
        server.answers(fault=Fault.RESET_AT_ONCE)
    servers[1].answers(fault=None)
    for _ in range(6):
        assert pointsman.complete(model="food").status_code == 200
    assert asked_for(servers[1]) == {"food-v1": 6}
    assert set(asked_for(servers[0])) == {"food-v1"}


def test_a_model_without_targets_and_one_that_nobody_names_pass_through(house):
    pointsman, (server,), _ = house(inference_model("food"))
    body = b'{"model":"tiny","prompt":"x"}'
    pointsman.client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert server.requests[0].body == body
    assert pointsman.complete(model="food").status_code == 200, "the operator names it: it is for the server to know"
    assert pointsman.complete(model="nobody").status_code == 404


def test_the_oldest_model_has_the_name(house):
    new = inference_model("food", ("new", 1), created="2026-02-01T00:00:00Z", object_name="newer")
    old = inference_model("food", ("old", 1), created="2025-02-01T00:00:00Z", object_name="older")
    pointsman, (server,), _ = house(new, old)
    assert pointsman.complete(model="food").status_code == 200
    assert asked_for(server) == {"old": 1}


def test_a_rewrite_beats_the_header_and_the_header_beats_a_model(house):
    pointsman, (server,), _ = house(
        inference_model("food", ("by-model", 1)),
        inference_model("both", ("by-model", 1)),
        rewrite("newer", ("both", "by-newer"), (None, "any-newer"), created="2026-01-01T00:00:00Z"),
        rewrite("older", ("both", "by-older"), ("both", "second"), created="2025-01-01T00:00:00Z"),
    )
    assert pointsman.complete(model="both", headers={"x-gateway-model-name-rewrite": "tiny"}).status_code == 200
    assert pointsman.complete(model="other", headers={"x-gateway-model-name-rewrite": "tiny"}).status_code == 200
    assert asked_for(server) == {"by-older": 1, "any-newer": 1}


@pytest.mark.parametrize("header", ["x-gateway-model-name-rewrite", "x-llm-d-model-name-rewrite"])
def test_a_client_may_ask_for_another_model_by_header(header, house):
    pointsman, (server,), _ = house(inference_model("food", ("by-model", 1)))
    answer = pointsman.complete(model="food", headers={header: "tiny"})
    assert (answer.status_code, answer.json()["model"]) == (200, "food")
    assert asked_for(server) == {"tiny": 1} and server.requests[0].header(header) is None
    unknown = pointsman.complete(model="food", headers={header: "nobody"})
    assert unknown.status_code == 404 and "nobody" in unknown.json()["error"]["message"]


def test_a_change_is_in_force_without_a_restart(house):
    pointsman, (server,), write = house(inference_model("food", ("one", 1)))
    assert pointsman.complete(model="food").status_code == 200
    write(inference_model("food", ("two", 1)))

    def asked_for_two() -> bool:
        assert pointsman.complete(model="food").json()["model"] == "food"
        return "two" in asked_for(server)

    until(asked_for_two, within=5, what="the change is in force")
    write()
    until(lambda: pointsman.complete(model="food").status_code == 404, within=15, what="nobody names it any more")


def test_metrics_tell_what_was_asked_and_what_it_became(house):
    pointsman, _, _ = house(inference_model("food", ("food-v1", 1)))
    pointsman.complete(model="food")
    until(
        lambda: pointsman.metrics().value("inference_objective_request_total", model_name="food", target_model_name="food-v1") == 1,
        within=5,
        what="the request is counted",
    )
