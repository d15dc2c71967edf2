"""The shape of an error that a client gets from Pointsman itself (cli.md)."""

import re

import httpx

from harness.http1 import Head
from harness.pointsman import ROOT


def documented_reasons() -> set[str]:
    """The words of the table in the operators' handbook."""
    table = (ROOT / "docs/operations.md").read_text()
    return set(re.findall(r"^\| \d{3}[^|]*\| `([a-z_]+)` \|", table, re.MULTILINE))


def assert_error(answer: httpx.Response, status: int, reason: str | None = None) -> str:
    """Asserts the shape of an error of ours; gives its message."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    word = answer.headers["x-pointsman-reason"]
    assert word in documented_reasons()
    assert reason in (None, word)
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["param"] is None
    assert body["error"]["message"] and body["error"]["type"]
    if status in (429, 503):
        assert re.fullmatch(r"[1-9]\d*", answer.headers["retry-after"])
    return body["error"]["message"]


def response(answer: tuple[Head, bytes] | None) -> httpx.Response:
    """What was read by hand, as httpx has it."""
    assert answer, "the connection was closed without an answer"
    head, body = answer
    return httpx.Response(head.status, headers=head.headers, content=body)
