"""Real Envoy as a model server's front: both protocols, trailers, and the 503 of an Envoy whose own servers are gone."""

import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import anthropic
import openai
import pytest

from harness.manifests import ManifestFile, pool_v1, slice_of

from harness.wait import until

CACHE = Path(os.environ.get("POINTSMAN_CACHE", Path.home() / ".cache/pointsman"))
INSTALLED = CACHE / "programs/lib"
ENVOY = os.environ.get("POINTSMAN_ENVOY") or next(map(str, INSTALLED.glob("python3.*/site-packages/envoy/_bin/envoy")), "")
PROTOCOLS = ["http/1.1", "h2c"]


class Envoy:
    """Envoy before one address, as an endpoint of a pool."""

    host = "127.0.0.1"

    def __init__(self, folder: Path, to: str, protocol: str) -> None:
        with socket.socket() as probe:
            probe.bind((self.host, 0))
            self.port = probe.getsockname()[1]
        self.address = f"{self.host}:{self.port}"
        self.protocol = protocol
        file = folder / f"envoy-{self.port}.json"
        file.write_text(json.dumps(self._config(*to.split(":"))))
        self.process = subprocess.Popen(
            [ENVOY, "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c", str(file)]
        )
        until(self._listens, within=20, what="Envoy listens")

    def _listens(self) -> bool:
        assert self.process.poll() is None, "Envoy ended"
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0

    def _config(self, host: str, port: str) -> dict:
        def at(host: str, port: int) -> dict:
            return {"socket_address": {"address": host, "port_value": port}}

        kinds = "type.googleapis.com/envoy.extensions"
        manager = {
            "@type": f"{kinds}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "door",
            "codec_type": "HTTP1" if self.protocol == "http/1.1" else "HTTP2",
            "http_protocol_options": {"enable_trailers": True},
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "server", "timeout": "0s"}}],
                    }
                ]
            },
            "http_filters": [
                {"name": "router", "typed_config": {"@type": f"{kinds}.filters.http.router.v3.Router"}}
            ],
        }
        cluster = {
            "name": "server",
            "type": "STATIC",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": f"{kinds}.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http_protocol_options": {"enable_trailers": True}},
                }
            },
            "load_assignment": {
                "cluster_name": "server",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(host, int(port))}}]}],
            },
        }
        filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        listener = {"name": "door", "address": at(self.host, self.port), "filter_chains": [{"filters": filters}]}
        return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def before_envoys(start, tmp_path):
    """A gateway before one Envoy for each server."""
    assert ENVOY, "Envoy is missing: `cargo xtask install` installs it"
    made: list[Envoy] = []

    def before_envoys(addresses: list[str], protocol: str, *arguments: object):
        envoys = [Envoy(tmp_path, address, protocol) for address in addresses]
        made.extend(envoys)
        file = ManifestFile(tmp_path / "pool.yaml")
        spec = {"appProtocol": "kubernetes.io/h2c"} if protocol == "h2c" else {}
        file.write(pool_v1(**spec), *map(slice_of, envoys))
        return start("-f", file.path, *arguments)

    yield before_envoys
    for envoy in made:
        envoy.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers_come_through_streamed_and_not_and_large_bodies_whole(protocol, before_envoys, upstreams):
    servers = upstreams(2)
    pointsman = before_envoys([server.address for server in servers], protocol)
    for number in range(20):
        prompt = f"{number} " + "word " * (50_000 if number % 5 == 0 else 20)
        answer = pointsman.complete(prompt, stream=number % 2 == 0)
        assert answer.status_code == 200 and "word" in answer.text
    prompts = [seen.json()["prompt"] for server in servers for seen in server.requests]
    assert len(prompts) == 20 and max(map(len, prompts)) > 200_000


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_envoy_that_has_lost_its_server_costs_no_client_an_error(protocol, before_envoys, upstreams):
    lost, sound = servers = upstreams(2)
    pointsman = before_envoys([server.address for server in servers], protocol)
    until(lambda: pointsman.complete().status_code == 200, within=10, what="a request is served")
    lost.down()
    assert [pointsman.complete().status_code for _ in range(30)] == [200] * 30
    assert pointsman.metrics().value("pointsman_retries_total") > 0
    assert len(sound.requests) >= 30


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_that_leaves_frees_the_server_behind_envoy(protocol, before_envoys, upstreams):
    (server,) = upstreams(1)
    server.answers(tokens=1000, token_interval_s=0.02)
    pointsman = before_envoys([server.address], protocol)
    body = {"model": "tiny", "prompt": "w", "stream": True}
    with pointsman.client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_bytes())
    until(lambda: server.requests[0].gone_at is not None, within=5, what="the server sees that nobody waits")


class TrailingServer:
    """Answers every request with a stream that ends in a trailer."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:{}".format(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as incoming:
            while incoming.readline():
                length = 0
                while (row := incoming.readline().lower()) not in (b"\r\n", b""):
                    length = int(row.split(b":")[1]) if row.startswith(b"content-length") else length
                incoming.read(length)
                client.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"
                    b"trailer: x-checksum\r\n\r\n2\r\n{}\r\n0\r\nx-checksum: abc\r\n\r\n"
                )

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_trailers_reach_the_client(protocol, before_envoys):
    server = TrailingServer()
    try:
        pointsman = before_envoys([server.address], protocol)
        host, port = pointsman.gateway.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            body = b'{"model":"tiny","prompt":"w"}'
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nte: trailers\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            received = b""
            deadline = time.monotonic() + 10
            while b"\r\n0\r\n" not in received or not received.endswith(b"\r\n\r\n"):
                assert time.monotonic() < deadline, received
                received += client.recv(65536)
    finally:
        server.close()
    assert received.startswith(b"HTTP/1.1 200")
    assert b"x-checksum: abc" in received.lower()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_official_clients_are_served_through_envoy(protocol, before_envoys, start, tmp_path):
    sims = start("--sim", 2)
    pointsman = before_envoys([sims.gateway.removeprefix("http://")], protocol)
    client = openai.OpenAI(base_url=pointsman.gateway + "/v1", api_key="unused", max_retries=0)
    ask = {"model": "sim", "messages": [{"role": "user", "content": "Which track?"}], "max_tokens": 8}
    assert client.chat.completions.create(**ask).usage.completion_tokens == 8
    chunks = list(client.chat.completions.create(**ask, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    other = anthropic.Anthropic(base_url=pointsman.gateway, api_key="unused", max_retries=0)
    assert other.messages.create(**ask).content[0].text
    with other.messages.stream(**ask) as stream:
        assert "".join(stream.text_stream)
        assert stream.get_final_message().usage.output_tokens == 8
