"""HTTP/1.1 that proxies and servers have been known to read differently: what a server behind the gateway gets is sound, or nothing.

The corpus is in data/smuggling. All of it is sent at once; each test looks at what became of one case.
"""

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

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
