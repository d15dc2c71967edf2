"""TLS on the listener and to model servers: protocols by ALPN, certificates replaced while it runs, and clients that speak something else."""

import socket
import ssl
import threading
import time

import httpx
import pytest

from harness.frames import Frames, Kind
from harness.http1 import Head, RawServer, Wire, send_answer
from harness.manifests import ManifestFile, pool_v1, slice_of
from harness.pointsman import run
from harness.tls import Authority, name_served
from harness.wait import holds, until

BODY = b'{"model":"tiny","prompt":"a"}'
WHOLE = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
REPLACED_S = 2
"""A new certificate is served within this time."""


@pytest.fixture
def authority(tmp_path):
    folder = tmp_path / "tls"
    folder.mkdir()
    return Authority(folder)


@pytest.fixture
def door(start, upstreams, authority):
    """Starts a gateway that speaks TLS, with more flags, before one server."""

    def door(*flags):
        (server,) = upstreams(1)
        return start("--endpoint", server.address, *authority.flags(), *flags), server

    return door


def connect(pointsman, context: ssl.SSLContext) -> Wire:
    host, port = pointsman.gateway.split("://")[1].split(":")
    return Wire(context.wrap_socket(socket.create_connection((host, int(port)), timeout=10), server_hostname=host))


# ---- protocols


def test_the_ready_line_names_https(door):
    pointsman, _ = door()
    assert pointsman.gateway.startswith("https://") and pointsman.admin.startswith("http://")


@pytest.mark.parametrize("http2", [False, True])
def test_both_protocols_are_served_as_alpn_settles(http2, door, authority):
    pointsman, server = door()
    with httpx.Client(base_url=pointsman.gateway, http1=not http2, http2=http2, verify=authority.client(), trust_env=False) as client:
        answer = client.post("/v1/completions", content=BODY)
        assert (answer.status_code, answer.http_version) == (200, "HTTP/2" if http2 else "HTTP/1.1")
        text = client.post("/v1/completions", json={"prompt": "a", "stream": True}).text
        assert text.endswith("data: [DONE]\n\n")
    assert server.requests[0].body == BODY
    assert server.requests[0].header("x-forwarded-proto") == "https"


def test_what_the_client_offers_decides(door, authority):
    pointsman, _ = door()
    for offers, settled in ((("h2", "http/1.1"), "h2"), (("http/1.1", "h2"), "h2"), (("http/1.1",), "http/1.1"), ((), None)):
        with connect(pointsman, authority.client(*offers)) as client:
            assert client.socket.selected_alpn_protocol() == settled
            if settled != "h2":
                client.send(WHOLE)
                assert client.read_answer()[0].status == 200


def test_a_protocol_that_nobody_speaks_ends_the_handshake(door, authority):
    pointsman, _ = door()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(pointsman, authority.client("smtp")).close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions_1_2_and_1_3_are_served(version, door, authority):
    pointsman, _ = door()
    context = authority.client()
    context.minimum_version = context.maximum_version = version
    with connect(pointsman, context) as client:
        client.send(WHOLE)
        assert client.read_answer()[0].status == 200


def test_large_bodies_go_through_in_both_directions(start, authority):
    size = 8 << 20

    def serve(wire: Wire, head: Head) -> None:
        assert wire.read_body(head) == b"x" * size
        send_answer(wire, b"y" * size)

    server = RawServer(serve)
    pointsman = start("--endpoint", server.address, *authority.flags())
    with httpx.Client(base_url=pointsman.gateway, http2=True, verify=authority.client(), trust_env=False, timeout=30) as client:
        assert client.post("/v1/anything-else", content=b"x" * size).content == b"y" * size
    server.close()


# ---- clients that speak something else


@pytest.mark.parametrize(
    "sent",
    [WHOLE, b"\x00" * 1000, b"\x16\x03\x01\x00\x05hello", b"\x16\x03\x01\xff\xff" + b"a" * 70000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    ids=["HTTP", "zeros", "no handshake", "a huge record", "HTTP/2"],
)
def test_what_is_no_tls_is_let_go_and_harms_nobody(sent, door, authority):
    pointsman, server = door()
    host, port = pointsman.gateway.split("://")[1].split(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(sent)
        received = b""
        try:
            while more := client.recv(4096):
                received += more
        except ConnectionError:
            pass
    assert b"HTTP/1.1 200" not in received
    assert server.requests == []
    with connect(pointsman, authority.client()) as client:
        client.send(WHOLE)
        assert client.read_answer()[0].status == 200


def test_a_handshake_that_does_not_come_to_its_end_is_let_go(door, authority):
    pointsman, _ = door("--header-read-timeout", "1s")
    host, port = pointsman.gateway.split("://")[1].split(":")
    hello = ssl.MemoryBIO()
    half = authority.client().wrap_bio(ssl.MemoryBIO(), hello, server_hostname=host)
    with pytest.raises(ssl.SSLWantReadError):
        half.do_handshake()
    first = hello.read()
    for sent in (first[:50], first):
        with socket.create_connection((host, int(port)), timeout=10) as client:
            begin = time.monotonic()
            client.sendall(sent)
            try:
                while client.recv(4096):
                    pass
            except ConnectionError:
                pass
            assert time.monotonic() - begin < 3
    assert pointsman.metrics().value("pointsman_limit_reached_total", limit="header_read") >= 1


def test_many_handshakes_that_are_never_finished_harm_nobody(door, authority):
    pointsman, _ = door()
    host, port = pointsman.gateway.split("://")[1].split(":")
    clients = [socket.create_connection((host, int(port)), timeout=5) for _ in range(500)]
    for client in clients:
        client.sendall(b"\x16\x03\x01\x02\x00\x01")
    begin = time.monotonic()
    for _ in range(20):
        with connect(pointsman, authority.client()) as client:
            client.send(WHOLE)
            assert client.read_answer()[0].status == 200
    assert time.monotonic() - begin < 5
    for client in clients:
        client.close()


# ---- certificates


def test_a_new_certificate_is_served_soon_and_connections_that_stand_are_kept(door, authority):
    pointsman, server = door()
    assert name_served(pointsman.gateway, authority.client()) == "first"
    server.answers(tokens=30, token_interval_s=0.1)
    with connect(pointsman, authority.client()) as first, Frames(pointsman.gateway, tls=authority.client("h2"), polite=True) as second:
        streamed = b'{"prompt":"a","stream":true}'
        first.send(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(streamed), streamed))
        second.ask(1, body=streamed)
        until(lambda: server.in_flight == 2, within=5, what="two streams run")
        for name in ("second", "third"):
            authority.issue(name)
            until(
                lambda: name_served(pointsman.gateway, authority.client()) == name, within=REPLACED_S, what=f"the {name} is served"
            )
        assert server.in_flight == 2, "nothing was cut"
        data = b""
        while b"[DONE]" not in data:
            data += second.until(Kind.DATA, 1).payload
        assert first.read_answer()[1].endswith(b"data: [DONE]\n\n")


BROKEN = {
    "no PEM": lambda authority: authority.certificate.write_text("nonsense"),
    "empty": lambda authority: authority.certificate.write_text(""),
    "cut off": lambda authority: authority.certificate.write_bytes(authority.certificate.read_bytes()[:200]),
    "gone": lambda authority: authority.certificate.unlink(),
    "another's key": lambda authority: authority.key.write_bytes((authority.root.parent / "root.key").read_bytes()),
    "a key that is none": lambda authority: authority.key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
    "a folder": lambda authority: (authority.key.unlink(), authority.key.mkdir()),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_certificate_changes_nothing_and_is_told_once(spoil, door, authority):
    pointsman, _ = door()
    known = len(pointsman.log().splitlines())
    spoil(authority)

    def told() -> list[str]:
        return [line for line in pointsman.log().splitlines()[known:] if "server.pem" in line or "server.key" in line]

    until(told, within=REPLACED_S + 1, what="the log says so")
    holds(lambda: name_served(pointsman.gateway, authority.client()) == "first", over=1.2, what="the old one is served")
    assert len(told()) <= 2, told()
    if authority.key.is_dir():
        authority.key.rmdir()
    authority.issue("mended")
    until(
        lambda: name_served(pointsman.gateway, authority.client()) == "mended", within=REPLACED_S, what="the mended one is served"
    )


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_certificate_at_the_start_is_exit_2(spoil, authority, upstreams):
    (server,) = upstreams(1)
    spoil(authority)
    flags = ("--endpoint", server.address, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", *authority.flags())
    outcome = run("up", *flags)
    assert outcome.returncode == 2
    assert "server.pem" in outcome.stderr or "server.key" in outcome.stderr, outcome.stderr


def test_new_certificates_under_load_fail_no_request(door, authority):
    pointsman, _ = door()
    over, failures, answered = threading.Event(), [], []

    def ask() -> None:
        context = authority.client()
        while not over.is_set():
            try:
                with connect(pointsman, context) as client:
                    client.send(WHOLE)
                    assert client.read_answer()[0].status == 200
                answered.append(1)
            except (OSError, AssertionError) as error:
                failures.append(repr(error))

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    for number in range(4):
        authority.issue(f"number {number}")
        time.sleep(0.6)
    over.set()
    for client in clients:
        client.join()
    assert failures == [] and len(answered) > 20


# ---- model servers


class TlsServer(RawServer):
    """A model server that speaks TLS only, with HTTP/1.1."""

    def __init__(self, authority: Authority) -> None:
        self._context = authority.server()
        self._context.set_alpn_protocols(["http/1.1"])
        self.names: list[str | None] = []
        """What clients called it, by SNI."""
        self._context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        self.requests: list[tuple[Head, bytes]] = []
        super().__init__(self._answer)

    def _connection(self, wire: Wire) -> None:
        try:
            wire.socket = self._context.wrap_socket(wire.socket, server_side=True)
        except OSError:
            return wire.close()
        super()._connection(wire)

    def _answer(self, wire: Wire, head: Head) -> None:
        self.requests.append((head, wire.read_body(head)))
        send_answer(wire)


@pytest.fixture
def tls_server(authority):
    server = TlsServer(authority)
    yield server
    server.close()


def test_a_model_server_with_tls_is_reached_and_scraped(start, tls_server, authority):
    pointsman = start("--endpoint", f"https://{tls_server.address}", "--upstream-ca", authority.root)
    for _ in range(5):
        assert pointsman.complete().status_code == 200
    assert len(tls_server.requests) == 5
    fresh = {"standing": "fresh", "endpoint": tls_server.address}
    until(lambda: pointsman.metrics().value("pointsman_endpoint_standing", **fresh) == 1, within=5, what="its metrics are read")
    assert [model["id"] for model in pointsman.client.get("/v1/models").json()["data"]] == ["tiny"]


def test_an_endpoint_slice_whose_port_says_https_is_reached_by_tls(start, tls_server, authority, tmp_path):
    file = ManifestFile(tmp_path / "pool.yaml")
    declared = slice_of(tls_server)
    declared["ports"][0]["appProtocol"] = "https"
    file.write(pool_v1(), declared)
    pointsman = start("-f", file.path, "--upstream-ca", authority.root)
    assert pointsman.complete().status_code == 200


def test_a_model_server_that_nobody_vouches_for_is_502_unless_any_will_do(start, tls_server, authority):
    stranger = start("--endpoint", f"https://{tls_server.address}")
    answer = stranger.complete()
    assert (answer.status_code, answer.headers["x-pointsman-reason"]) == (502, "upstream_unreachable")
    assert tls_server.requests == []
    trusting = start("--endpoint", f"https://{tls_server.address}", "--upstream-insecure-skip-verify")
    assert trusting.complete().status_code == 200


def test_a_model_server_that_speaks_no_tls_after_all_is_502(start, upstreams, authority):
    (server,) = upstreams(1)
    pointsman = start("--endpoint", f"https://{server.address}", "--upstream-ca", authority.root)
    assert pointsman.complete().status_code == 502
    assert server.requests == []


def test_a_client_that_leaves_cancels_at_a_server_with_tls(start, authority):
    gone = threading.Event()

    class Hanging(TlsServer):
        def _answer(self, wire: Wire, head: Head) -> None:
            self.requests.append((head, wire.read_body(head)))
            wire.ended()
            gone.set()

    server = Hanging(authority)
    pointsman = start("--endpoint", f"https://{server.address}", "--upstream-ca", authority.root)
    with Wire.to(pointsman.gateway) as client:
        client.send(WHOLE)
        until(lambda: server.requests, within=5, what="it is in flight")
    assert gone.wait(2)
    server.close()
