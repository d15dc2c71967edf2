"""Requests that proxies and servers have been known to read differently: what a server behind the gateway gets is sound, or nothing.

The corpus of HTTP/1.1 is in data/smuggling, that of HTTP/2 below. All of it is sent at once; each test looks at what became of one case.
"""

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.frames import END_HEADERS, END_STREAM, Frames, Kind, frame
from harness.http1 import Head, Malformed, RawServer, Wire, send_answer
from harness.pointsman import Pointsman

CORPUS = Path(__file__).parent.parent / "data/smuggling"
BODY = b'{"prompt":"a"}'
PATHS = ["/v1/completions", "/v1/anything-else"]
"""One whose bodies are looked into, one whose bodies are passed on unread."""
FIRST_ANSWER_S_MAX = 5
"""Then the client ends its side: who waits for more bytes must be told that none come."""
QUIET_S = 0.3
"""Nothing more comes after an answer."""


@dataclass
class Case:
    """One case, as sent on one path."""

    name: str
    expected: str
    text: str
    path: str
    number: int

    @property
    def sent(self) -> bytes:
        words = {
            "SMUGGLED": f"GET /smuggled/{self.number} HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n",
            "PATH": f"{self.path}?case={self.number}",
            "BODY": BODY.decode(),
            "NUMBER": str(self.number),
            "ZEROS": "0" * 1000,
        }
        lines = re.sub("|".join(words), lambda word: words[word.group()], self.text).splitlines()
        text = "".join(line[:-1] if line.endswith("\\") else line + r"\r\n" for line in lines)
        return text.encode().decode("unicode_escape").encode("latin-1")


@dataclass
class Outcome:
    """What became of a case."""

    statuses: list[int] = field(default_factory=list)
    closed: bool = False
    received: bytes = b""


@dataclass
class World:
    """The gateway, a server that takes nothing but HTTP/1.1 to the letter, and what was sent through both."""

    pointsman: Pointsman
    server: RawServer
    requests: list[tuple[Head, bytes]]
    outcomes: dict[int, Outcome]

    def reached(self, case: Case) -> list[tuple[Head, bytes]]:
        return [seen for seen in self.requests if str(case.number) in (seen[0].target.split("=")[-1], seen[0].header("x-case"))]


def corpus() -> Iterator[Case]:
    number = 100
    for file in sorted(CORPUS.glob("*.txt")):
        _, *blocks = re.split("^=== ", file.read_text(), flags=re.MULTILINE)
        for block in blocks:
            title, _, text = block.partition("\n")
            name, expected = title.rsplit(": ", 1)
            # Blocks are set apart by a blank line; those of a head or a trailer are ended by their own.
            text = text.removesuffix("\n\n") + "\n" if text.endswith("\\\n\n") else text
            for path in PATHS:
                yield Case(name, expected, text, path, number)
                number += 1


CASES = list(corpus())


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    requests = []

    def serve(wire: Wire, head: Head) -> None:
        requests.append((head, wire.read_body(head)))
        send_answer(wire, b"" if head.method == "HEAD" else b'{"choices":[]}')

    server = RawServer(serve)
    pointsman = Pointsman(tmp_path_factory.mktemp("smuggling"), "--endpoint", server.address)
    with ThreadPoolExecutor(32) as clients:
        outcomes = dict(zip((case.number for case in CASES), clients.map(lambda case: sent_to(pointsman, case), CASES)))
    yield World(pointsman, server, requests, outcomes)
    pointsman.close()
    server.close()


def sent_to(pointsman: Pointsman, case: Case) -> Outcome:
    outcome = Outcome()
    with Wire.to(pointsman.gateway, timeout_s=FIRST_ANSWER_S_MAX) as client:
        client.try_send(case.sent)
        try:
            read_answers(client, outcome)
        except Malformed:
            # HTTP/2's answer to HTTP/2's preface.
            outcome.closed = client.ended() or b"\x00\x00\x00\x04" in client.received
        outcome.received = bytes(client.received)
    return outcome


def read_answers(client: Wire, outcome: Outcome) -> None:
    waiting = True
    while True:
        try:
            answer = client.read_answer()
        except TimeoutError:
            if outcome.statuses or not waiting:
                return
            waiting = False
            client.socket.shutdown(socket.SHUT_WR)
            continue
        except ConnectionError:
            answer = None
        if answer is None:
            outcome.closed = True
            return
        outcome.statuses.append(answer[0].status)
        client.socket.settimeout(QUIET_S)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.path}")
def test_a_request_reaches_the_server_well_formed_or_not_at_all(case: Case, world: World):
    outcome, reached = world.outcomes[case.number], world.reached(case)
    told = f"{case.sent!r}\nwas answered {outcome.received!r}\nand reached the server as {reached}"
    assert case.expected in ("refused", "passes", "pipelined", "either"), case.expected
    bounds = {"refused": (0, 0), "either": (0, 1), "passes": (1, 1), "pipelined": (2, 2)}[case.expected]
    assert bounds[0] <= len(reached) <= bounds[1], told
    assert outcome.statuses.count(200) >= len(reached), told
    if not reached:
        assert outcome.statuses or outcome.closed, f"neither answered nor closed: {told}"
        assert all(400 <= status < 500 or status in (501, 505) for status in outcome.statuses[:1]), told


def test_no_request_was_smuggled_and_all_that_came_was_well_formed(world: World):
    smuggled = [head.target for head, _ in world.requests if "/smuggled/" in head.target]
    names = [case for case in CASES if any(target.endswith(f"/{case.number}") for target in smuggled)]
    assert not names, "\n".join(f"{case.name} {case.path}" for case in names)
    assert world.server.malformed == []


def test_what_reached_the_server_carries_nothing_of_the_hop(world: World):
    for head, _ in world.requests:
        for name in ("connection", "transfer-encoding", "content-length", "upgrade", "te", "http2-settings"):
            assert len(head.all(name)) <= 1, head
        assert head.header("upgrade") is None and head.header("http2-settings") is None, head


def test_the_hosts_of_an_address_and_of_its_field_never_differ_behind_the_gateway(world: World):
    (case, *_) = [case for case in CASES if case.name == "the whole address and another host"]
    assert all(head.header("host") == "b" for head, _ in world.reached(case))


def test_bodies_arrive_as_they_were_meant(world: World):
    allowed = {b"", BODY} | {f"GET /smuggled/{case.number} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for case in CASES}
    assert {body for _, body in world.requests} <= allowed


def test_the_gateway_serves_on(world: World):
    assert world.pointsman.complete().status_code == 200


def test_pieces_of_a_request_are_the_request(world: World):
    """Byte by byte: no state of the parser depends on where packets end."""
    (case,) = [case for case in CASES if case.name == "a chunk extension" and case.path == PATHS[0]]
    before = len(world.reached(case))
    with Wire.to(world.pointsman.gateway) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in case.sent:
            client.send(bytes([byte]))
        answer = client.read_answer()
    assert answer and answer[0].status == 200
    assert world.reached(case)[before:][0][1] == BODY


# ---- HTTP/2 in front, HTTP/1.1 behind: what only one of them can say

SMUGGLED = b"GET /smuggled/2 HTTP/1.1\r\nHost: a\r\n\r\n"
Fields = list[tuple[bytes, bytes]]


def fields(*more: tuple[bytes, bytes], **pseudo: bytes | None) -> Fields:
    """A request's head; `path=None` leaves `:path` out."""
    first = {"method": b"POST", "scheme": b"http", "authority": b"a", "path": b"/v1/anything-else", **pseudo}
    return [(b":" + name.encode(), value) for name, value in first.items() if value is not None] + list(more)


HTTP2_REFUSED = {
    "a request in a value": fields((b"x", b"1\r\n\r\n" + SMUGGLED)),
    "LF in a value": fields((b"x", b"1\ntransfer-encoding: chunked")),
    "CR in a value": fields((b"x", b"1\rtransfer-encoding: chunked")),
    "NUL in a value": fields((b"x", b"1\x002")),
    "a request in a name": fields((b"x: 1\r\n\r\n" + SMUGGLED, b"1")),
    "a colon in a name": fields((b"transfer-encoding: chunked\r\nx", b"1")),
    "a blank in a name": fields((b"content-length ", b"0")),
    "a blank before a name": fields((b" transfer-encoding", b"chunked")),
    "large letters in a name": fields((b"Transfer-Encoding", b"chunked")),
    "an empty name": fields((b"", b"1")),
    "a name that is not ASCII": fields(("é".encode(), b"1")),
    "NUL in a name": fields((b"x\x00", b"1")),
    "transfer-encoding": fields((b"transfer-encoding", b"chunked")),
    "connection": fields((b"connection", b"keep-alive, content-length")),
    "keep-alive": fields((b"keep-alive", b"timeout=5")),
    "proxy-connection": fields((b"proxy-connection", b"keep-alive")),
    "upgrade": fields((b"upgrade", b"h2c")),
    "te": fields((b"te", b"gzip")),
    "a length below the body's": fields((b"content-length", b"2")),
    "a length above the body's": fields((b"content-length", b"99")),
    "two lengths": fields((b"content-length", b"14"), (b"content-length", b"2")),
    "two lengths in one": fields((b"content-length", b"14, 2")),
    "a length with a plus": fields((b"content-length", b"+14")),
    "a length with a blank inside": fields((b"content-length", b"1 4")),
    "a hexadecimal length": fields((b"content-length", b"0xe")),
    "a request in the path": fields(path=b"/x HTTP/1.1\r\nhost: a\r\n\r\n" + SMUGGLED),
    "a blank in the path": fields(path=b"/x HTTP/1.1"),
    "LF in the path": fields(path=b"/x\ny"),
    "NUL in the path": fields(path=b"/x\x00"),
    "an empty path": fields(path=b""),
    "a path that is none": fields(path=b"v1/x"),
    "two paths": fields((b":path", b"/smuggled/2")),
    "no path": fields(path=None),
    "a request in the method": fields(method=b"GET /smuggled/2 HTTP/1.1\r\nhost: a\r\n\r\nPOST"),
    "a blank in the method": fields(method=b"GET /smuggled/2"),
    "an empty method": fields(method=b""),
    "CONNECT": fields(method=b"CONNECT", path=None, scheme=None),
    "CONNECT with a protocol": fields((b":protocol", b"websocket"), method=b"CONNECT"),
    "a field in the authority": fields(authority=b"a\r\nx: 1"),
    "a blank in the authority": fields(authority=b"a b"),
    "a path in the authority": fields(authority=b"a/smuggled"),
    "a user in the authority": fields(authority=b"b@a"),
    "two authorities": fields((b":authority", b"b")),
    "two hosts and an authority": fields((b"host", b"a"), (b"host", b"b")),
    "two hosts": fields((b"host", b"a"), (b"host", b"b"), authority=None),
    "a request in the scheme": fields(scheme=b"http\r\n\r\n" + SMUGGLED),
    "a pseudo-field behind a field": [*fields(path=None), (b"x", b"1"), (b":path", b"/v1/anything-else")],
    "a pseudo-field that nobody knows": fields((b":smuggled", b"1")),
    "a pseudo-field of answers": fields((b":status", b"200")),
}
HTTP2_EITHER = {
    "another host than the authority": fields((b"host", b"b")),
    "a host alone": fields((b"host", b"a"), authority=None),
    "neither host nor authority": fields(authority=None),
    "the same length twice": fields((b"content-length", b"14"), (b"content-length", b"14")),
    "blanks around a value": fields((b"x", b" 1 ")),
    "bytes that are not ASCII in a value": fields((b"x", b"\xff\xfe")),
    "bytes that are not ASCII in the path": fields(path="/é".encode()),
    "a fragment": fields(path=b"/x#smuggled"),
    "a whole address as path": fields(path=b"http://b/x"),
    "a method in small letters": fields(method=b"post"),
    "another scheme": fields(scheme=b"ftp"),
    "trailers are welcome": fields((b"te", b"trailers")),
    "an expectation": fields((b"expect", b"100-continue")),
    "a body that is a request": fields((b"content-type", b"text/plain")),
}
TRAILERS = {
    "a length": (b"content-length", b"2"),
    "an encoding": (b"transfer-encoding", b"chunked"),
    "a host": (b"host", b"b"),
    "a request in a value": (b"x", b"1\r\n\r\n" + SMUGGLED),
    "a path": (b":path", b"/smuggled/2"),
}


@dataclass
class Asked:
    """What became of a request by HTTP/2."""

    status: int | None
    """None: it was reset, or the connection ended."""
    reached: list[tuple[Head, bytes]]


@pytest.fixture
def ask(world: World):
    def ask(head: Fields, body: bytes = BODY, trailer: tuple[bytes, bytes] | None = None) -> Asked:
        before, malformed = len(world.requests), len(world.server.malformed)
        with Frames(world.pointsman.gateway, polite=True) as client:
            client.send(frame(Kind.HEADERS, END_HEADERS, 1, client.encode(head)))
            client.send(frame(Kind.DATA, 0 if trailer else END_STREAM, 1, body))
            if trailer:
                client.try_send(frame(Kind.HEADERS, END_HEADERS | END_STREAM, 1, client.encode([trailer])))
            status = None
            while (found := client.read()) is not None and found.kind not in (Kind.RST_STREAM, Kind.GOAWAY):
                if found.kind == Kind.HEADERS and status is None:
                    status = int(client.fields(found)[":status"])
                if status and found.flags & END_STREAM and found.kind in (Kind.HEADERS, Kind.DATA):
                    break
        # What was smuggled comes behind what was asked.
        assert world.pointsman.complete().status_code == 200
        assert world.server.malformed[malformed:] == []
        reached = [(head, body) for head, body in world.requests[before:] if head.target != "/v1/completions"]
        assert [head.target for head, _ in reached if "smuggled/2" in head.target] == []
        return Asked(status, reached)

    return ask


@pytest.mark.parametrize("head", HTTP2_REFUSED.values(), ids=HTTP2_REFUSED.keys())
def test_what_only_http2_could_say_is_refused(head: Fields, ask):
    asked = ask(head)
    assert asked.reached == []
    assert asked.status is None or 400 <= asked.status < 500


@pytest.mark.parametrize("head", HTTP2_EITHER.values(), ids=HTTP2_EITHER.keys())
def test_what_is_odd_on_http2_is_refused_or_reaches_the_server_well_formed(head: Fields, ask, world: World):
    body = SMUGGLED if (b"content-type", b"text/plain") in head else BODY
    asked = ask(head, body)
    if asked.status == 200:
        ((reached, received),) = asked.reached
        assert received == body
        known = (b"host", b"a") in head or (b":authority", b"a") in head
        assert reached.header("host") == ("a" if known else world.server.address), "the authority rules"
        assert reached.header("te") in (None, "trailers") and reached.header("connection") in (None, "te")
        assert reached.header("expect") is None
    else:
        assert asked.reached == []
        assert asked.status is None or 400 <= asked.status < 500


@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS.keys())
def test_trailers_of_http2_change_nothing_of_the_request(trailer: tuple[bytes, bytes], ask):
    asked = ask(fields(), trailer=trailer)
    assert [(reached.header("host"), body) for reached, body in asked.reached] in ([], [("a", BODY)])


def test_cookies_that_http2_splits_are_one_field_on_http1(ask):
    """RFC 9113, section 8.2.3."""
    asked = ask(fields((b"cookie", b"a=1"), (b"cookie", b"b=2")))
    assert asked.status == 200
    assert asked.reached[0][0].all("cookie") == ["a=1; b=2"]
