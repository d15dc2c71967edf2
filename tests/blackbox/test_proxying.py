"""What a client sends and gets: bytes, headers, streams, cancelling, HTTP/2, `/v1/models` (cli.md)."""

import asyncio
import json
import re
import socket
import time

import httpx
import pytest

from harness import pages
from harness.http2 import Http2, Http2Server
from harness.manifests import RUNTIME, ManifestFile, pool_v1, slice_of
from harness.pages import Load
from harness.upstream import Fault, counts
from harness.wait import holds, until

JSON = {"content-type": "application/json"}


@pytest.fixture
def door(start, upstreams):
    """A gateway before one server."""
    (server,) = upstreams(1)
    return start("--endpoint", server.address), server


# ---- bytes

BODIES = {
    "spaces": b'{ "model" :\t"tiny" ,\r\n  "messages":[ {"role":"user","content":"a"} ] }\n\n',
    "model last": b'{"messages":[{"role":"user","content":"a"}],"temperature":0.10,"model":"tiny"}',
    "escapes": rb'{"model":"t\u0069ny","messages":[{"role":"user","content":"\u00e9\ud83d\ude00\n\/"}]}',
    "UTF-8": '{"model":"tiny","messages":[{"role":"user","content":"é😀\u2028"}]}'.encode(),
    "numbers": b'{"model":"tiny","prompt":"a","seed":12345678901234567890,"temperature":1.0e-2,"top_p":1.00}',
    "unknown keys": b'{"x":{"y":[null,true,{"z":[]}]},"model":"tiny","prompt":"a","":0}',
    "duplicate keys": b'{"model":"tiny","prompt":"a","prompt":"b"}',
    "tokens": b'{"model":"tiny","prompt":[1,2,3,4,5]}',
    "many prompts": b'{"model":"tiny","prompt":["a","b"]}',
    "parts": b'{"model":"tiny","messages":[{"role":"user","content":[{"type":"text","text":"a"},'
    b'{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}]}',
    "tools": b'{"tools":[{"type":"function","function":{"name":"f","parameters":{}}}],"messages":[{"role":"user","content":"a"}],"model":"tiny"}',
    "nothing but a prompt": b'{"prompt":"a"}',
    "nested": b'{"model":"tiny","prompt":"a","x":' + b"[" * 100 + b"]" * 100 + b"}",
    "5 MB": b'{"model":"tiny","prompt":"' + b"0123456789abcdef" * 312_500 + b'","seed":1}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_body_arrives_byte_for_byte(body, door):
    pointsman, server = door
    path = "/v1/chat/completions" if b"messages" in body else "/v1/completions"
    answer = pointsman.client.post(path, content=body, headers=JSON)
    assert answer.status_code == 200, answer.text
    (seen,) = server.requests
    assert seen.body == body
    assert seen.header("content-type") == "application/json"


@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
def test_a_body_in_pieces_arrives_byte_for_byte(size, door):
    pointsman, server = door
    body = json.dumps({"model": "tiny", "prompt": "é😀 \\ \" \u2028" * (size // 2 + 10)}).encode()
    pieces = (body[begin : begin + size] for begin in range(0, len(body), size))
    answer = pointsman.client.post("/v1/completions", content=pieces, headers=JSON)
    assert answer.status_code == 200, answer.text
    assert server.requests[0].body == body


def test_an_answer_arrives_as_the_server_sent_it(door):
    pointsman, server = door
    server.answers(headers=(("x-engine", "tiny"), ("set-cookie", "a=1"), ("set-cookie", "b=2")))
    direct = httpx.post(f"http://{server.address}/v1/completions", json={"model": "tiny", "prompt": "a"})
    answer = pointsman.client.post("/v1/completions", json={"model": "tiny", "prompt": "a"})
    assert answer.content == direct.content
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert answer.headers["x-engine"] == "tiny"


API = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/completions": {"prompt": "a"},
    "/v1/embeddings": {"input": "a"},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]},
}


@pytest.mark.parametrize("path", API)
def test_each_api_is_passed_on(path, door):
    pointsman, server = door
    answer = pointsman.client.post(path, json={"model": "tiny", **API[path]})
    assert answer.status_code == 200, answer.text
    assert server.requests[0].target == path


def test_the_query_is_passed_on(door):
    pointsman, server = door
    assert pointsman.client.post("/v1/completions?api-version=1&x=%2F", json={"prompt": "a"}).status_code == 200
    assert server.requests[0].target == "/v1/completions?api-version=1&x=%2F"


# ---- headers


def test_a_clients_request_id_is_kept_and_else_one_is_made(door):
    pointsman, server = door
    named = pointsman.complete(headers={"x-request-id": "mine-1"})
    pointsman.complete()
    pointsman.complete()
    kept, made, other = [seen.header("x-request-id") for seen in server.requests]
    assert kept == "mine-1"
    assert made and other and made != other
    assert named.headers.get("x-request-id", "mine-1") == "mine-1"


def test_forwarded_headers_tell_who_asks_and_how(door):
    pointsman, server = door
    pointsman.complete()
    pointsman.complete(headers={"x-forwarded-for": "198.18.0.1", "x-forwarded-proto": "https"})
    plain, through_a_proxy = server.requests
    assert plain.header("x-forwarded-for") == "127.0.0.1"
    assert plain.header("x-forwarded-proto") == "http"
    assert re.fullmatch(r"(198\.18\.0\.1, ?)?127\.0\.0\.1", through_a_proxy.header("x-forwarded-for"))
    assert through_a_proxy.header("x-forwarded-proto") in ("http", "https")


def test_headers_of_the_client_are_passed_on_and_those_of_the_hop_are_not(door):
    pointsman, server = door
    host, port = pointsman.gateway.removeprefix("http://").split(":")
    body = b'{"model":"tiny","prompt":"a"}'
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: example.com\r\nauthorization: Bearer secret\r\n"
            b"x-twice: 1\r\nx-twice: 2\r\nconnection: keep-alive, x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n"
            b"te: trailers\r\nproxy-authorization: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    (seen,) = server.requests
    assert seen.header("authorization") == "Bearer secret"
    assert [value for name, value in seen.headers if name == "x-twice"] == ["1", "2"]
    for name in ("x-hop", "keep-alive", "proxy-authorization"):
        assert seen.header(name) is None, name


def test_a_clients_own_destination_header_does_not_steer(start, upstreams):
    servers = upstreams(2)
    pointsman = start(*(word for server in servers for word in ("--endpoint", server.address)))
    for _ in range(40):
        pointsman.complete(headers={"x-gateway-destination-endpoint": servers[0].address})
    assert min(counts(servers)) > 5


# ---- streams


def test_events_are_passed_on_as_they_come(door):
    pointsman, server = door
    server.answers(tokens=8, token_interval_s=0.15)
    body = {"model": "tiny", "prompt": "a", "stream": True}
    begin, arrivals = time.monotonic(), []
    with pointsman.client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        for line in answer.iter_lines():
            if "word" in line:
                arrivals.append(time.monotonic() - begin)
    assert len(arrivals) == 8
    for number, at in enumerate(arrivals):
        assert at >= 0.14 * number
    # The first came long before the last was made.
    assert arrivals[0] < 0.5 and arrivals[-1] >= 1.0


def test_a_stream_is_byte_for_byte_that_of_the_server(door):
    pointsman, server = door
    server.answers(tokens=50)
    body = {"model": "tiny", "prompt": "a", "stream": True, "stream_options": {"include_usage": True}}
    direct = httpx.post(f"http://{server.address}/v1/completions", json=body)
    assert pointsman.client.post("/v1/completions", json=body).content == direct.content


@pytest.mark.parametrize("fault", [Fault.RESET_MID_ANSWER, Fault.CLOSE_MID_ANSWER])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_that_breaks_ends_with_an_error_event(fault, path, door):
    pointsman, server = door
    server.answers(tokens=6, fault=fault)
    body = {"model": "tiny", **API[path], "stream": True}
    with pointsman.client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200
        text = answer.read().decode()
    events = [event for event in text.split("\n\n") if event]
    assert len(events) == 4, "what was sent, then the error"
    assert all("word" in event for event in events[:3])
    (data,) = [line.removeprefix("data: ") for line in events[3].split("\n") if line.startswith("data: ")]
    error = json.loads(data)["error"]
    assert error["message"] and error["type"] and "code" in error
    assert "[DONE]" not in text
    assert len(server.requests) == 1, "a stream that has begun is not begun again"


def test_a_whole_answer_that_breaks_is_seen_to_be_incomplete(door):
    pointsman, server = door
    server.answers(fault=Fault.RESET_MID_ANSWER)
    with pytest.raises(httpx.TransportError):
        pointsman.complete()
    assert len(server.requests) == 1


# ---- the client goes away


@pytest.mark.parametrize("stream", [True, False], ids=["mid-stream", "before the first byte"])
def test_a_client_that_is_gone_cancels_the_upstream_request_at_once(stream, door):
    pointsman, server = door
    server.answers(tokens=600, token_interval_s=0.1, first_byte_s=0 if stream else 60)
    host, port = pointsman.gateway.removeprefix("http://").split(":")
    body = json.dumps({"model": "tiny", "prompt": "a", "stream": stream}).encode()
    client = socket.create_connection((host, int(port)), timeout=5)
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    until(lambda: server.in_flight == 1, within=5, what="the request is in flight")
    if stream:
        received = b""
        while b"word1" not in received:
            received += client.recv(4096)
    gone = time.monotonic()
    client.close()
    until(lambda: server.requests[0].gone_at, within=1, what="the upstream request is cancelled")
    assert server.requests[0].gone_at - gone < 0.5
    ledger = "pointsman_endpoint_in_flight_requests"
    until(lambda: pointsman.metrics().value(ledger) == 0, within=1, what="nothing is booked any more")
    until(
        lambda: pointsman.metrics().value("pointsman_requests_total", reason="client_gone") == 1,
        within=1,
        what="it is counted as gone",
    )


def test_a_client_that_leaves_its_upload_halfway_leaves_nothing_behind(door):
    pointsman, server = door
    host, port = pointsman.gateway.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=5)
    client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n" + b'{"model":"tiny","prompt":"aa')
    time.sleep(0.2)
    client.close()
    ledger = "pointsman_endpoint_in_flight_requests"
    until(lambda: pointsman.metrics().value(ledger) == 0, within=2, what="nothing is booked")
    assert server.requests == []
    assert pointsman.complete().status_code == 200


# ---- HTTP/2


def test_http2_works_with_many_requests_on_one_connection(start, upstreams):
    servers = upstreams(2)
    for server in servers:
        server.answers(first_byte_s=0.2)
    pointsman = start(*(word for server in servers for word in ("--endpoint", server.address)))

    async def ask_all() -> list[httpx.Response]:
        # Not from threads: httpcore takes a stream's number and uses it in two steps, with no lock around them.
        async with httpx.AsyncClient(
            base_url=pointsman.gateway, http1=False, http2=True, timeout=30, trust_env=False
        ) as client:
            bodies = [
                {"model": "tiny", "prompt": f"prompt {number}", "stream": number % 2 == 0} for number in range(20)
            ]
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))

    begin = time.monotonic()
    answers = asyncio.run(ask_all())
    assert time.monotonic() - begin < 3, "one does not wait for the other"
    assert [(answer.status_code, answer.http_version) for answer in answers] == [(200, "HTTP/2")] * 20
    assert min(counts(servers)) >= 5


def test_an_http2_stream_that_is_cancelled_leaves_the_others_alone(door):
    pointsman, server = door
    server.answers(tokens=15, token_interval_s=0.1)
    client = Http2(pointsman.gateway)
    body = b'{"model":"tiny","prompt":"a","stream":true}'
    staying, leaving = client.post("/v1/completions", body), client.post("/v1/completions", body)
    client.read_until(leaving, b"word1 ")
    client.cancel(leaving)
    gone = until(
        lambda: [seen for seen in server.requests if seen.gone_at], within=1, what="it is cancelled upstream too"
    )
    assert len(gone) == 1
    client.read_until(staying, b"[DONE]")
    client.close()


def test_a_stream_that_breaks_on_http2_ends_with_an_error_event(door):
    pointsman, server = door
    server.answers(tokens=6, fault=Fault.RESET_MID_ANSWER)
    body = {"model": "tiny", "prompt": "a", "stream": True}
    with httpx.Client(base_url=pointsman.gateway, http1=False, http2=True, timeout=30, trust_env=False) as client:
        text = client.post("/v1/completions", json=body).text
    assert '"error"' in text.split("\n\n")[-2]


def test_a_pool_with_h2c_reaches_its_servers_over_http2(start, tmp_path):
    pages_by_path = {"/metrics": pages.sglang(Load()).encode(), "/v1/models": b'{"object":"list","data":[{"id":"tiny"}]}'}
    server = Http2Server(lambda path: pages_by_path.get(path, b'{"choices":[]}'))
    file = ManifestFile(tmp_path / "pool.yaml")
    annotations = {RUNTIME: "sglang"}
    file.write(pool_v1(annotations, appProtocol="kubernetes.io/h2c"), slice_of(server))
    pointsman = start("-f", file.path)
    for _ in range(5):
        assert pointsman.complete().status_code == 200
    assert server.posts == 5
    server.close()


# ---- models


def model_ids(pointsman) -> list[str]:
    answer = pointsman.client.get("/v1/models")
    assert answer.status_code == 200, answer.text
    assert answer.json()["object"] == "list"
    return sorted(model["id"] for model in answer.json()["data"])


def test_models_are_merged_from_the_endpoints_that_answer(start, upstreams):
    one, other = upstreams(1, models=["tiny", "lora-a"])[0], upstreams(1, models=["tiny", "lora-b"])[0]
    (silent,) = upstreams(1, models=None)
    (dead,) = upstreams(1, models=["dead"])
    dead.down()
    servers = [one, other, silent, dead]
    pointsman = start(*(word for server in servers for word in ("--endpoint", server.address)))
    assert model_ids(pointsman) == ["lora-a", "lora-b", "tiny"]
    (tiny,) = [model for model in pointsman.client.get("/v1/models").json()["data"] if model["id"] == "tiny"]
    assert tiny["object"] == "model" and tiny["owned_by"] == "vllm"


def test_the_list_of_models_is_at_most_ten_seconds_old(door):
    pointsman, server = door
    assert model_ids(pointsman) == ["tiny"]
    server.models = ["tiny", "new"]
    until(lambda: model_ids(pointsman) == ["new", "tiny"], within=10, what="the new one is listed")
    server.models = ["new"]
    until(lambda: model_ids(pointsman) == ["new"], within=10, what="the one that is gone is not")


def test_asking_for_the_models_again_and_again_does_not_trouble_the_servers(door):
    pointsman, server = door
    for _ in range(100):
        model_ids(pointsman)
    assert len(server.other) < 10


def test_what_the_engine_serves_beyond_the_api_is_a_clear_answer(door):
    pointsman, _ = door
    answer = pointsman.client.get("/v1/no-such-thing")
    holds(lambda: pointsman.process.poll() is None, over=0.1, what="it runs")
    assert answer.status_code in (404, 405)
