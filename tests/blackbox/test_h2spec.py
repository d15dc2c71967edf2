"""HTTP/2 by its conformance tool, h2spec: all its cases, the strict ones too."""

import os
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from harness.http1 import Head, RawServer, Wire, send_answer
from harness.tls import Authority

H2SPEC = Path(os.environ.get("POINTSMAN_H2SPEC", Path.home() / ".cache/pointsman/h2spec/h2spec"))
"""`cargo xtask install` builds it."""
ANSWER_S = 0.1
"""Cases of the kind "reset a stream, then send on it" look at the gateway only while the server has not answered."""
CASES_MIN = 146
"""Fewer would mean that h2spec gave up on the way."""

DEVIATIONS_ON_PLAIN_CONNECTIONS = {
    # RFC 9113, section 3.4, lets the preface tell the two protocols apart, and this port speaks both: what does not begin with HTTP/2's
    # preface is HTTP/1.1, a bad one. It gets 400 and a closed connection, where h2spec wants no byte before the close.
    ("http2/3.5", "Sends invalid connection preface"),
}


@pytest.fixture
def server():
    def serve(wire: Wire, head: Head) -> None:
        wire.read_body(head)
        time.sleep(ANSWER_S)
        send_answer(wire)

    server = RawServer(serve)
    yield server
    server.close()


def failures(url: str, report: Path, *arguments: str) -> set[tuple[str, str]]:
    """The cases that failed, by section and title."""
    assert H2SPEC.exists(), f"{H2SPEC} is missing: `cargo xtask install` builds it, POINTSMAN_H2SPEC names another"
    host, port = url.split("://")[1].split(":")
    outcome = subprocess.run(
        [H2SPEC, "--host", host, "--port", port, "--path", "/v1/anything", "--strict", "--junit-report", report, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    cases = list(ElementTree.parse(report).iter("testcase"))
    assert len(cases) >= CASES_MIN, outcome.stdout
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    # Seen when a test fails: what was expected and what came.
    print(outcome.stdout[outcome.stdout.find("Failures:") :])
    return {(case.get("package"), case.get("classname")) for case in failed}


def test_every_case_passes_on_a_plain_connection(start, server, tmp_path):
    pointsman = start("--endpoint", server.address)
    assert failures(pointsman.gateway, tmp_path / "report.xml") == DEVIATIONS_ON_PLAIN_CONNECTIONS
    assert pointsman.complete().status_code == 200


def test_every_case_passes_on_tls(start, server, tmp_path):
    pointsman = start("--endpoint", server.address, *Authority(tmp_path).flags())
    assert failures(pointsman.gateway, tmp_path / "report.xml", "--tls", "--insecure") == set()
