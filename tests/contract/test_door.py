"""The gateway's door: errors, headers, bodies, streams, failing servers, models, the end."""

import json
import socket
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from contract.harness import PoolFile, at_once, closed_port, eventually

CHAT = "/v1/chat/completions"


@pytest.fixture
def door(up, servers):
    """A gateway in front of one server: (pointsman, server)."""
    (server,) = servers(1)
    return up("--endpoint", server.address), server


def reason_of(answer, status):
    """The reason of an error in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].split(";")[0] == "application/json"
    error = answer.json()["error"]
    assert error["message"] and error["type"]
    assert {"param", "code"} <= set(error)
    if status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 0
    reason = answer.headers["x-pointsman-reason"]
    assert reason and " " not in reason
    return reason


def stream_of(pointsman, **fields):
    body = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    return pointsman.http.stream("POST", CHAT, json={**body, **fields})


def test_an_unknown_model_is_404(door):
    pointsman, server = door
    eventually(lambda: pointsman.http.get("/v1/models").json()["data"])
    assert reason_of(pointsman.chat(model="nobody"), 404)
    assert server.requests == []


@pytest.mark.parametrize("body", [b"", b"{", b'{"model": "base", }', b"\xff\xfe", b"[" * 100_000])
def test_a_malformed_body_is_400(body, door):
    pointsman, server = door
    headers = {"content-type": "application/json"}
    assert reason_of(pointsman.http.post(CHAT, content=body, headers=headers), 400)
    assert server.requests == []


def test_a_length_beyond_the_limit_is_413_before_the_body_is_read(door):
    pointsman, server = door
    address = urlsplit(pointsman.gateway)
    with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
            b"content-type: application/json\r\ncontent-length: 1099511627776\r\n\r\n"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    assert server.requests == []


def test_no_endpoint_is_503_until_one_appears(tmp_path, up, servers):
    file = PoolFile(tmp_path / "pool.yaml", [])
    pointsman = up("-f", file.path)
    assert reason_of(pointsman.chat(), 503)
    file.servers = servers(1)
    file.write()
    eventually(lambda: pointsman.chat().status_code == 200, 1.0)


def test_servers_that_all_fail_before_the_first_byte_are_502(up, servers):
    resetting = servers(2, mode="reset")
    pointsman = up("--endpoint", resetting[0].address, "--endpoint", resetting[1].address)
    assert reason_of(pointsman.chat(), 502)


def test_a_clients_request_id_is_kept_and_else_one_is_made(door):
    pointsman, server = door
    pointsman.chat(headers={"x-request-id": "mine-1"})
    pointsman.chat()
    pointsman.chat()
    ids = [request.headers.get("x-request-id") for request in server.requests]
    assert ids[0] == "mine-1"
    assert all(ids) and len(set(ids)) == 3, ids


def test_the_server_is_told_who_asks_and_how(door):
    pointsman, server = door
    pointsman.chat()
    assert server.requests[0].headers["x-forwarded-for"] == "127.0.0.1"
    assert server.requests[0].headers["x-forwarded-proto"] == "http"


@pytest.mark.parametrize(
    "body",
    [
        b'{ "messages":[{"role":"user","content":"\\u00e9 \\ud83d\\ude00"}] ,\n"model"\t:"base"}\r\n',
        b'{"model":"base","messages":[],"seed":123456789012345678901234567890,"top_p":1.00e0}',
        '{"model":"base","messages":[{"role":"user","content":"日本 😀"}],"x":1,"x":2}'.encode(),
    ],
)
def test_a_body_passes_byte_for_byte(body, door):
    pointsman, server = door
    headers = {"content-type": "application/json"}
    assert pointsman.http.post(CHAT, content=body, headers=headers).status_code == 200
    assert server.requests[0].body == body


def test_three_dead_endpoints_of_eight_cost_no_client_an_error(up, servers):
    live, resetting = servers(5), servers(1, mode="reset")
    dead = [resetting[0].address, closed_port(), closed_port()]
    endpoints = dead + [server.address for server in live]
    pointsman = up(*(part for address in endpoints for part in ("--endpoint", address)))
    statuses = at_once(lambda _: [pointsman.chat().status_code for _ in range(25)], 8)
    assert {status for some in statuses for status in some} == {200}


def test_models_are_merged_from_the_endpoints_that_answer(up, servers):
    first, second = servers(1, models=["base", "a"])[0], servers(1, models=["base", "b"])[0]
    dead = closed_port()
    pointsman = up(
        "--endpoint", first.address, "--endpoint", dead, "--endpoint", second.address
    )

    def names():
        return [model["id"] for model in pointsman.http.get("/v1/models").json()["data"]]

    eventually(lambda: sorted(names()) == ["a", "b", "base"])


def test_a_stream_arrives_event_by_event(door):
    pointsman, server = door
    server.gate.clear()
    with stream_of(pointsman) as answer:
        lines = answer.iter_lines()
        assert "word0" in next(lines)  # the server does not send the second before the gate opens
        server.gate.set()
        rest = "\n".join(lines)
    assert "word2" in rest and rest.rstrip().endswith("data: [DONE]")


def test_a_stream_that_breaks_ends_with_an_error_event(door):
    pointsman, server = door
    server.mode = "break"
    with stream_of(pointsman) as answer:
        assert answer.status_code == 200
        events = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert "word1" in events[1]
    last = events[-1] if events[-1] != "data: [DONE]" else events[-2]
    assert json.loads(last.removeprefix("data: "))["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_cancels_the_request_on_the_server(stream, door):
    pointsman, server = door
    server.gate.clear()
    body = json.dumps({"model": "base", "messages": [], "stream": stream}).encode()
    address = urlsplit(pointsman.gateway)
    with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        eventually(lambda: server.requests)
        assert server.cancelled == 0
    eventually(lambda: server.cancelled == 1)


def test_sigterm_ends_what_is_in_flight_takes_nothing_new_and_exits_0(door):
    pointsman, server = door
    server.gate.clear()
    with stream_of(pointsman) as answer:
        lines = answer.iter_lines()
        assert "word0" in next(lines)
        pointsman.child.terminate()

        def takes_nothing_new():
            try:
                fresh = httpx.Client(trust_env=False, verify=False, timeout=5)
                with fresh:
                    body = {"model": "base", "messages": []}
                    return fresh.post(pointsman.gateway + CHAT, json=body).status_code == 503
            except httpx.TransportError:
                return True

        # What slips in before the signal is handled would wait at the gate: it is asked once only.
        eventually(lambda: pointsman.logged("stopping") or pointsman.child.poll() is not None)
        assert takes_nothing_new()
        server.gate.set()
        assert "\n".join(lines).rstrip().endswith("data: [DONE]")
    assert pointsman.child.wait(6) == 0


@pytest.fixture
def client(door):
    pointsman, _ = door
    plain = httpx.Client(trust_env=False, verify=False)
    with openai.OpenAI(
        base_url=pointsman.gateway + "/v1", api_key="none", max_retries=0, http_client=plain
    ) as client:
        yield client


MESSAGES = [{"role": "user", "content": "Which track?"}]


def test_the_openai_client_gets_an_answer(client):
    answer = client.chat.completions.create(model="base", messages=MESSAGES)
    assert answer.choices[0].message.content == "Track two."
    assert answer.usage.total_tokens == 10
    assert [model.id for model in client.models.list()] == ["base"]


def test_the_openai_client_gets_a_stream(client):
    chunks = list(
        client.chat.completions.create(
            model="base", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert words == ["word0 ", "word1 ", "word2 "]
    assert chunks[-1].usage.completion_tokens == 3


def test_the_openai_client_gets_its_own_kind_of_error(client, door):
    pointsman, server = door
    eventually(lambda: pointsman.http.get("/v1/models").json()["data"])
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    server.mode = "break"
    with pytest.raises(openai.APIError):
        for _ in client.chat.completions.create(model="base", messages=MESSAGES, stream=True):
            pass
