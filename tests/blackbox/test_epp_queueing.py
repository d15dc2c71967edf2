"""Waiting at the endpoint picker (annotations.md, section 2): Envoy's request waits, and Envoy with it."""

import json

import pytest

from harness.epp import BODY, Picker, servers
from harness.ext_proc import BUFFERED_PARTIAL, FULL_DUPLEX, Peer, chunks, request_body, request_headers, response_headers
from harness.manifests import QUEUE_TTL, QUEUEING, ManifestFile, pool_v1, slice_of
from harness.upstream import Upstream, scraped_again
from harness.wait import until

GROUP = "inference.networking.x-k8s.io/v1alpha2"
HIGH = {
    "apiVersion": GROUP,
    "kind": "InferenceObjective",
    "metadata": {"name": "high", "namespace": "default"},
    "spec": {"poolRef": {"name": "pool"}, "priority": 10},
}
LOW = {**HIGH, "metadata": {"name": "low", "namespace": "default"}, "spec": {"poolRef": {"name": "pool"}, "priority": -10}}


class House:
    def __init__(self, folder, made: list[Upstream], *flags: object, annotations: dict[str, str]) -> None:
        self.servers = made
        self.file = ManifestFile(folder / "pool.yaml")
        self.annotate(annotations)
        self.picker = Picker(folder, "-f", self.file.path, *flags)
        self.peer = self.picker.peer()

    def annotate(self, annotations: dict[str, str]) -> None:
        self.file.write(pool_v1(annotations), *map(slice_of, self.servers), HIGH, LOW)

    def saturate(self) -> None:
        self.tell(0.9)
        scraped_again(self.servers)

    def tell(self, kv_usage: float, waiting: int = 0) -> None:
        for server in self.servers:
            server.load.kv_usage, server.load.waiting = kv_usage, waiting

    def waiting(self) -> int:
        return int(self.picker.metrics().value("inference_extension_flow_control_queue_size"))

    def ask(self, mode: int = FULL_DUPLEX, *, objective: str | None = None, body: bytes = BODY):
        """A request up to where it waits."""
        before = self.waiting()
        more = [("x-gateway-inference-objective", objective)] if objective else []
        stream = self.peer.stream(request_headers(mode=mode, more=more))
        if mode == FULL_DUPLEX:
            stream.send(*chunks(body, 16_384))
        else:
            stream.answer("request_headers")
            stream.send(request_body(body))
        until(lambda: self.waiting() == before + 1, within=10, what="it waits")
        return stream


@pytest.fixture
def house(tmp_path):
    made: list[House] = []

    def house(*flags: object, annotations: dict[str, str] | None = None) -> House:
        made.append(House(tmp_path, servers(1), *flags, annotations={QUEUEING: "enabled", **(annotations or {})}))
        return made[-1]

    yield house
    for each in made:
        each.peer.close()
        each.picker.close()
        for server in each.servers:
            server.down()


def test_a_request_waits_for_room_and_is_picked_for_then(house):
    house = house()
    house.saturate()
    stream = house.ask()
    assert stream.is_silent()
    house.tell(0.1)
    assert "x-gateway-destination-endpoint" in str(stream.answer("request_headers"))
    assert stream.answer("request_body").request_body.response.body_mutation.streamed_response.body == BODY
    stream.cancel()
    house.picker.at_rest()


def test_envoy_is_asked_for_as_much_time_as_a_request_may_wait(house):
    house = house(annotations={QUEUE_TTL: "40s"})
    house.saturate()
    stream = house.ask(BUFFERED_PARTIAL)
    asked = stream.answer().override_message_timeout
    assert 40 <= asked.seconds + asked.nanos / 1e9 <= 60
    house.tell(0.1)
    assert "x-gateway-destination-endpoint" in str(stream.answer("request_body"))
    stream.cancel()
    house.picker.at_rest()


def test_who_waited_for_its_ttl_is_refused(house):
    house = house(annotations={QUEUE_TTL: "1s"})
    house.saturate()
    refused = house.ask().answer("immediate_response").immediate_response
    assert refused.status.code == 429
    assert json.loads(refused.body)["error"]["code"] == "queue_timeout"
    headers = {option.header.key: option.header.raw_value for option in refused.headers.set_headers}
    assert headers["x-pointsman-reason"] == b"queue_timeout" and int(headers["retry-after"]) >= 1


def test_a_stream_that_is_reset_leaves_the_queue(house):
    house = house()
    house.saturate()
    for end in ("cancel", "half_close"):
        stream = house.ask()
        getattr(stream, end)()
        until(lambda: house.waiting() == 0, within=10, what="it left")
    assert house.picker.metrics().value("pointsman_queue_left_total", reason="client_gone") == 2


def test_what_comes_of_a_long_body_while_it_waits_is_kept_and_passed_on(house):
    house = house()
    house.saturate()
    prompt = "word " * 100_000
    body = json.dumps({"model": "tiny", "prompt": prompt}).encode()
    stream = house.ask(body=body)
    house.tell(0.1)
    stream.answer("request_headers")
    back = b""
    while True:
        chunk = stream.answer("request_body").request_body.response.body_mutation.streamed_response
        back += chunk.body
        if chunk.end_of_stream:
            break
    assert back == body
    stream.send(response_headers(end=True))
    stream.answer("response_headers")
    stream.half_close()
    stream.end()
    house.picker.at_rest()


def test_whoever_waits_when_the_picker_stops_gets_an_answer(house):
    house = house("--drain-delay", "0s", "--drain", "3s")
    house.saturate()
    streams = [house.ask() for _ in range(5)]
    house.picker.terminate()
    for stream in streams:
        assert stream.answer("immediate_response").immediate_response.status.code == 503
        stream.half_close()
    assert house.picker.wait(20) == 0


def test_without_queueing_negative_priority_is_shed(house):
    house = house(annotations={QUEUEING: "disabled"})
    house.saturate()
    with Peer(house.picker.grpc) as peer:
        stream, outcome = peer.ask(BODY, more=[("x-gateway-inference-objective", "low")])
        assert outcome.status == 429 and outcome.headers["x-pointsman-reason"] == "shed"
        stream.cancel()


def test_a_client_that_is_not_believed_is_not_heard(house):
    house = house("--client-headers", "distrust", annotations={QUEUEING: "disabled"})
    house.saturate()
    stream, outcome = house.peer.ask(BODY, more=[("x-gateway-inference-objective", "low")])
    assert outcome.status == 200 and "x-gateway-inference-objective" in outcome.removed
    stream.cancel()
    house.picker.at_rest()
