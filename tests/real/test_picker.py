"""Real Envoy 1.40 in front of `pointsman epp`, with the configurations of examples/envoy as they stand."""

import json
import socket
import struct
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from harness.envoy import COMPLETIONS, MODEL, MODES, WITHIN_S, Sims, stand
from harness.http1 import Head, RawServer, Wire
from harness.http2 import Http2
from harness.manifests import QUEUE_TTL, QUEUEING
from harness.upstream import scraped_again
from harness.wait import until

PROTOCOLS = ["HTTP/1.1", "HTTP/2"]
GROUP = "inference.networking.x-k8s.io/v1alpha2"
CANARY = {
    "apiVersion": GROUP,
    "kind": "InferenceModel",
    "metadata": {"name": "canary", "namespace": "default"},
    "spec": {"poolRef": {"name": "example"}, "modelName": "canary", "targetModels": [{"name": "tiny", "weight": 1}]},
}
HIGH = {
    "apiVersion": GROUP,
    "kind": "InferenceObjective",
    "metadata": {"name": "high", "namespace": "default"},
    "spec": {"poolRef": {"name": "example"}, "priority": 10},
}


@pytest.fixture(params=MODES)
def example(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def sims(tmp_path_factory):
    sims = Sims(tmp_path_factory.mktemp("sims"))
    yield sims
    sims.close()


def client_of(house, protocol: str) -> httpx.Client:
    return house.new_client(http1=protocol == "HTTP/1.1", http2=protocol == "HTTP/2")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_examples_work_as_they_stand(protocol, example, sims, tmp_path):
    with stand(tmp_path, example, sims.addresses) as house:
        client = client_of(house, protocol)
        ask = {"model": MODEL, "max_tokens": 4}
        for size in (10, 3_000, 50_000):
            answer = client.post(COMPLETIONS, json={**ask, "prompt": "a b " * (size // 4)})
            assert answer.status_code == 200, answer.text
            assert answer.http_version == protocol
            assert answer.json()["usage"]["completion_tokens"] == 4
        stream = client.post(COMPLETIONS, json={**ask, "prompt": "Which track?", "stream": True})
        assert stream.text.rstrip().endswith("data: [DONE]")
        assert client.get("/v1/models").json()["data"][0]["id"] == MODEL
        refused = client.post(COMPLETIONS, content='{"prompt":[', headers={"content-type": "application/json"})
        assert (refused.status_code, refused.headers["x-pointsman-reason"]) == (400, "malformed")
        assert refused.json()["error"]["code"] == "malformed"
        house.picker.rests()
        assert house.picker.picks() >= 5


def test_the_pick_is_obeyed_and_a_clients_header_is_not(example, upstreams, tmp_path):
    servers = upstreams(3)
    with stand(tmp_path, example, [server.address for server in servers]) as house:
        for number in range(12):
            prompt = f"{number % 3} is the beginning of a prompt " * 40
            answer = house.complete(prompt, headers={"x-gateway-destination-endpoint": "127.0.0.1:1"})
            assert answer.status_code == 200, answer.text
        served = {server.address: len(server.requests) for server in servers}
        picked = Counter()
        for labels, count in house.picker.metrics().series("pointsman_picks_total").items():
            picked[dict(labels)["endpoint"]] += count
        assert served == picked
        named = {seen.header("x-gateway-destination-endpoint") for server in servers for seen in server.requests}
        assert "127.0.0.1:1" not in named


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_body_of_10_mb_comes_through_byte_for_byte(protocol, example, upstreams, tmp_path):
    servers = upstreams(3)
    body = json.dumps({"model": "tiny", "prompt": "ä rather long prompt, " * 450_000}, ensure_ascii=False).encode()
    assert len(body) > 10_000_000
    with stand(tmp_path, example, [server.address for server in servers]) as house:
        answer = client_of(house, protocol).post(COMPLETIONS, content=body)
        assert answer.status_code == 200, answer.text
        (seen,) = [seen for server in servers for seen in server.requests]
        assert seen.body == body
        house.picker.rests()


def test_a_body_beyond_the_limit_is_refused(example, sims, tmp_path):
    with stand(tmp_path, example, sims.addresses, "--body-bytes-max", 1_000_000) as house:
        refused = house.complete("a b " * 300_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
        assert house.complete().status_code == 200


def test_trailers_pass_both_ways(example, tmp_path):
    def serve(wire: Wire, head: Head) -> None:
        wire.read_body(head)
        wire.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"
            b"trailer: x-checksum\r\n\r\n2\r\n{}\r\n0\r\nx-checksum: abc\r\n\r\n"
        )

    server = RawServer(serve)
    body = b'{"model":"tiny","prompt":"w"}'
    try:
        with stand(tmp_path, example, [server.address]) as house, Wire.to(house.envoy.url) as client:
            client.send(
                b"POST %s HTTP/1.1\r\nhost: a\r\nte: trailers\r\ncontent-type: application/json\r\n"
                b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\nx-from-client: def\r\n\r\n" % (COMPLETIONS.encode(), len(body), body)
            )
            head, answer = client.read_answer()
            assert (head.status, answer) == (200, b"{}")
            assert b"x-checksum: abc" in client.received.lower()
            asked = next(wire.received for wire in server.wires if b"POST" in wire.received)
            assert body in asked and b"x-from-client: def" in asked.lower()
    finally:
        server.close()


def test_each_token_comes_when_it_is_made(example, upstreams, tmp_path):
    servers = upstreams(3)
    for server in servers:
        server.answers(tokens=4, token_interval_s=0.5)
    with stand(tmp_path, example, [server.address for server in servers]) as house:
        body = {"model": MODEL, "prompt": "Which track?", "stream": True}
        with house.client.stream("POST", COMPLETIONS, json=body) as answer:
            events = answer.iter_lines()
            next(line for line in events if "word0" in line)
            assert all(server.in_flight == len(server.requests) for server in servers), "the first came with the last"
            assert any("[DONE]" in line for line in events)


class Leaver:
    """A client that asks, and leaves when it is told to: by a closed connection, or by a reset stream (httpx resets none)."""

    def __init__(self, url: str, protocol: str, body: bytes) -> None:
        if protocol == "HTTP/1.1":
            wire = Wire.to(url)
            head = "POST {} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"
            wire.send(head.format(COMPLETIONS, len(body)).encode() + body)
            self.leave = wire.close
        else:
            client = Http2(url)
            stream = client.post(COMPLETIONS, body)
            self.leave = lambda: client.cancel(stream)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_that_leaves_frees_server_and_ledger(protocol, example, upstreams, tmp_path):
    servers = upstreams(3)

    def running() -> int:
        return sum(server.in_flight for server in servers)

    with stand(tmp_path, example, [server.address for server in servers]) as house:
        if example == "buffered-partial":
            # Envoy's log begins with the first request's entry; from then on requests are booked until theirs.
            house.complete()
            until(lambda: house.envoy.stat("cluster.picker.upstream_rq_active") == 1, within=WITHIN_S, what="the log begins")
        for server in servers:
            server.answers(tokens=1000, token_interval_s=0.05)
        leaver = Leaver(house.envoy.url, protocol, b'{"model":"tiny","prompt":"in the stream","stream":true}')
        until(lambda: (running(), house.picker.in_flight()) == (1, 1), within=WITHIN_S, what="it runs and is booked")
        leaver.leave()
        until(lambda: running() == 0, within=WITHIN_S, what="the server is freed")
        house.picker.rests()
        for server in servers:
            server.answers(first_byte_s=3600)
        leaver = Leaver(house.envoy.url, protocol, b'{"model":"tiny","prompt":"before the first byte"}')
        until(lambda: (running(), house.picker.in_flight()) == (1, 1), within=WITHIN_S, what="it runs and is booked")
        leaver.leave()
        until(lambda: running() == 0, within=WITHIN_S, what="the server is freed")
        house.picker.rests()


def test_clients_that_leave_as_they_are_picked_for_leave_nothing_booked(example, sims, tmp_path):
    """Within the few milliseconds that a pick takes: Envoy gives up a request whose pick it has not read."""
    body = json.dumps({"model": MODEL, "prompt": "a" * 200, "max_tokens": 4}).encode()
    head = b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    request = head % (COMPLETIONS.encode(), len(body)) + body
    at_once = bytes(struct.pack("ii", 1, 0))

    def leave(number: int) -> None:
        with Wire.to(house.envoy.url) as client:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            client.send(request)
            time.sleep(number % 60 / 10_000)

    with stand(tmp_path, example, sims.addresses) as house, ThreadPoolExecutor(6) as clients:
        assert house.complete().status_code == 200
        list(clients.map(leave, range(1200)))
        house.picker.rests()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_model_is_renamed_and_back(streamed, example, upstreams, tmp_path):
    servers = upstreams(3)
    with stand(tmp_path, example, [server.address for server in servers]) as house:
        house.declare(CANARY)
        until(lambda: house.complete(model="canary").status_code == 200, within=WITHIN_S, what="it is known")
        answer = house.complete(model="canary", stream=streamed)
        assert answer.status_code == 200, answer.text
        seen = max((seen for server in servers for seen in server.requests), key=lambda seen: seen.at)
        assert seen.json()["model"] == "tiny"
        assert '"canary"' in answer.text and '"tiny"' not in answer.text
        assert house.complete(model="unheard-of").json()["error"]["code"] == "model_not_found"
        plain = house.complete(model="tiny", stream=streamed)
        assert plain.status_code == 200 and '"tiny"' in plain.text


class Saturated:
    """Requests of a saturated pool, which wait."""

    def __init__(self, house, servers) -> None:
        self.house, self.servers = house, servers
        self.clients = ThreadPoolExecutor(64)
        self.tell(kv_usage=0.95)
        scraped_again(servers)

    def tell(self, kv_usage: float) -> None:
        for server in self.servers:
            server.load.kv_usage = kv_usage

    def waiting(self) -> float:
        return self.house.picker.metrics().value("inference_extension_flow_control_queue_size")

    def ask(self, prompt: str, **fields: object):
        """Asks, and returns when it waits: so the order is known."""
        before = self.waiting()
        asked = self.clients.submit(self.house.complete, prompt, **fields)
        until(lambda: self.waiting() == before + 1, within=WITHIN_S, what="it waits")
        return asked


def test_requests_wait_while_all_are_saturated_and_the_important_go_first(example, upstreams, tmp_path):
    servers = upstreams(1)
    with stand(tmp_path, example, [server.address for server in servers]) as house:
        house.declare(HIGH, annotations={QUEUEING: "enabled"})
        saturated = Saturated(house, servers)
        asked = [saturated.ask(f"plain {number}") for number in range(3)]
        asked += [saturated.ask(f"high {number}", headers={"x-gateway-inference-objective": "high"}) for number in range(3)]
        time.sleep(4)
        assert saturated.waiting() == 6, "Envoy waits beyond its message_timeout"
        saturated.tell(kv_usage=0.1)
        assert [answer.result().status_code for answer in asked] == [200] * 6
        house.picker.rests()


def test_who_waits_too_long_is_told_so_and_who_leaves_waits_no_more(example, upstreams, tmp_path):
    servers = upstreams(1)
    with stand(tmp_path, example, [server.address for server in servers]) as house:
        house.declare(annotations={QUEUEING: "enabled", QUEUE_TTL: "3s"})
        saturated = Saturated(house, servers)
        refused = saturated.ask("too long").result()
        assert (refused.status_code, refused.headers["x-pointsman-reason"]) == (429, "queue_timeout")
        assert int(refused.headers["retry-after"]) >= 1
        house.declare(annotations={QUEUEING: "enabled", QUEUE_TTL: "30s"})
        leaver = Leaver(house.envoy.url, "HTTP/1.1", b'{"model":"tiny","prompt":"leaves"}')
        until(lambda: saturated.waiting() == 1, within=WITHIN_S, what="it waits")
        leaver.leave()
        until(lambda: saturated.waiting() == 0, within=WITHIN_S, what="it waits no more")
        assert servers[0].requests == []


def test_the_ledger_is_right_also_when_envoy_dies(example, sims, tmp_path):
    with stand(tmp_path, example, sims.addresses) as house:

        def ask() -> None:
            with pytest.raises(httpx.HTTPError):
                house.complete(max_tokens=20_000, ignore_eos=True)

        with ThreadPoolExecutor(4) as clients:
            asked = [clients.submit(ask) for _ in range(4)]
            until(lambda: house.picker.in_flight() == 4, within=WITHIN_S, what="four are in flight")
            house.envoy.kill()
        assert [each.result() for each in asked] == [None] * 4
        house.picker.rests()
