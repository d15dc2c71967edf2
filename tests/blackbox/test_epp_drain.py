"""The picker's end on SIGTERM (ext-proc.md): told first, then closed, and whoever is being served is served to the end."""

import signal
import time

import grpc
import pytest

from harness.epp import BODY, Picker
from harness.ext_proc import ANSWER_S, BUFFERED_PARTIAL, Peer, health_request, request_body, request_headers, response_headers
from harness.manifests import PoolFile
from harness.wait import is_refused, until

SOON_S = 10
"""Generous: what is waited for comes at once on an idle machine."""


@pytest.fixture
def start(tmp_path, upstreams):
    started = []

    def start(*flags) -> Picker:
        file = PoolFile(tmp_path / "pool.yaml", upstreams(2))
        started.append(Picker(tmp_path, "-f", file.path, *flags))
        return started[-1]

    yield start
    for picker in started:
        picker.close()


def test_health_says_so_at_once_and_new_streams_are_served_until_endpoints_had_time_to_leave(start):
    picker = start("--drain-delay", "60s")
    with picker.peer() as peer, Peer(picker.health) as probe:
        assert probe.health("readiness") == "SERVING"
        picker.terminate()
        until(lambda: probe.health("readiness") == "NOT_SERVING", within=1, what="health is NOT_SERVING")
        assert peer.health("readiness") == "NOT_SERVING", "on the port itself, too"
        assert picker.admin_get("/readyz").status_code == 503
        assert picker.ask().pick, "on a new connection"
        stream, outcome = peer.ask(BODY)
        assert outcome.pick, "and on one that stands"
        stream.half_close()
        stream.end()


def test_after_the_drain_delay_nobody_is_let_in_and_it_ends(start):
    picker = start("--drain-delay", "1s")
    with picker.peer() as peer:
        stream, _ = peer.ask(BODY)
        begin = time.monotonic()
        picker.terminate()
        until(lambda: is_refused(picker.grpc), within=1 + SOON_S, what="nobody is let in")
        assert time.monotonic() - begin > 0.9, "not before its time"
        stream.half_close()
        stream.end()
    assert picker.wait(within=SOON_S) == 0


def test_who_watches_health_is_told(start):
    picker = start("--drain-delay", "1s")
    with Peer(picker.health) as peer:
        states = peer.channel.unary_stream("/grpc.health.v1.Health/Watch")(health_request("readiness"), timeout=ANSWER_S)
        assert next(states) == b"\x08\x01"
        picker.terminate()
        assert next(states) == b"\x08\x02", "NOT_SERVING"
    assert picker.wait(within=1 + SOON_S) == 0


def test_streams_that_stand_end_well_and_then_the_program_does(start):
    picker = start("--drain-delay", "0s")
    with picker.peer() as peer:
        half = peer.stream(request_headers(), request_body(BODY[:20], end=False))
        partial = peer.stream(request_headers(mode=BUFFERED_PARTIAL))
        partial.answer("request_headers")
        whole, outcome = peer.ask(BODY)
        picker.terminate()
        until(lambda: is_refused(picker.grpc), within=SOON_S, what="nobody is let in")
        assert picker.process.poll() is None
        half.send(request_body(BODY[20:]))
        assert half.answer("request_headers")
        partial.send(request_body(BODY))
        assert partial.answer("request_body")
        whole.send(response_headers(served=outcome.pick[0]))
        assert whole.answer("response_headers")
        for stream in (half, partial, whole):
            stream.half_close()
            stream.rest()
            assert stream.end().code == grpc.StatusCode.OK
        assert picker.wait(within=SOON_S) == 0


def test_an_envoy_is_told_to_open_no_more_streams(start):
    """It goes to another picker: by GOAWAY, and this one's listener is closed."""
    picker = start("--drain-delay", "0s")
    with picker.peer() as peer:
        stream, _ = peer.ask(BODY)
        picker.terminate()
        until(lambda: is_refused(picker.grpc), within=SOON_S, what="nobody is let in")

        def refused() -> bool:
            late = peer.stream(request_headers("/v1/models", method="GET", end=True))
            answers = late.rest() if late.half_close() else []
            return answers == [] and late.end().code == grpc.StatusCode.UNAVAILABLE

        until(refused, within=SOON_S, what="new streams go elsewhere")
        stream.half_close()
        stream.end()
    assert picker.wait(within=SOON_S) == 0


def test_streams_that_outlast_the_drain_are_cut(start):
    picker = start("--drain-delay", "0s", "--drain", "1s")
    with picker.peer() as peer:
        stream, _ = peer.ask(BODY)
        begin = time.monotonic()
        picker.terminate()
        stream.rest()
        assert stream.end().code != grpc.StatusCode.OK
        assert picker.wait(within=SOON_S) == 0
        assert time.monotonic() - begin > 0.9, "not before its time"


def test_a_second_signal_cuts_at_once(start):
    picker = start("--drain-delay", "60s", "--drain", "60s")
    with picker.peer() as peer, Peer(picker.health) as probe:
        peer.ask(BODY)
        picker.terminate()
        until(lambda: probe.health("") == "NOT_SERVING", within=SOON_S, what="it drains")
        picker.terminate(signal.SIGINT)
        picker.wait(within=SOON_S)


def test_what_is_open_and_asks_for_nothing_holds_nothing_up(start):
    """An access log, a watch and connections without a stream live as long as Envoy does."""
    picker = start("--drain-delay", "0s", "--drain", "60s")
    with picker.peer() as peer, picker.peer() as idle, Peer(picker.health) as probe:
        peer.log()
        idle.health("")
        states = probe.channel.unary_stream("/grpc.health.v1.Health/Watch")(health_request(""), timeout=ANSWER_S)
        assert next(states)
        stream, _ = peer.ask(BODY)
        stream.half_close()
        stream.end()
        picker.terminate()
        assert picker.wait(within=SOON_S) == 0


