"""Envoy's gRPC access log (ext-proc.md): how the picker learns that a request ended whose stream ended with the pick."""

import pytest
from envoy.config.core.v3.base_pb2 import Metadata
from envoy.data.accesslog.v3.accesslog_pb2 import AccessLogCommon, HTTPAccessLogEntry

from harness.epp import BODY, picking, servers
from harness.ext_proc import BUFFERED_PARTIAL, FULL_DUPLEX, NONE, STREAMED, Outcome, entry_for, response_headers, struct
from harness.wait import holds, until


@pytest.fixture(scope="module")
def picker(tmp_path_factory):
    with picking(tmp_path_factory.mktemp("epp"), servers(3)) as (picker, _):
        yield picker


@pytest.fixture
def peer(picker):
    with picker.peer() as peer:
        yield peer
    picker.at_rest()


@pytest.fixture
def log(picker, peer):
    """A log that is known to be open: a request stays booked."""
    log = peer.log()
    until(lambda: stays_booked(picker, peer, log), within=10, what="the log is open")
    picker.at_rest()
    return log


def picked(peer, **head):
    """A request whose stream ends cleanly right after the pick."""
    stream, outcome = peer.ask(BODY, **{"mode": BUFFERED_PARTIAL, **head})
    stream.half_close()
    stream.end()
    return outcome


def stays_booked(picker, peer, log) -> bool:
    outcome = picked(peer)
    if not picker.in_flight():
        return False
    log.entries(entry_for(outcome))
    return True


def entry_with(metadata: dict[str, dict]) -> HTTPAccessLogEntry:
    named = {name: struct(value) for name, value in metadata.items()}
    return HTTPAccessLogEntry(common_properties=AccessLogCommon(metadata=Metadata(filter_metadata=named)))


# ---- with a log, and without


def test_without_a_log_the_streams_end_is_the_requests(picker, peer):
    picked(peer)
    assert picker.in_flight() == {}


@pytest.mark.parametrize("mode", [NONE, STREAMED, BUFFERED_PARTIAL, FULL_DUPLEX])
def test_with_a_log_a_request_stays_booked_until_its_entry_comes(mode, picker, peer, log):
    first, second = picked(peer, mode=mode), picked(peer, mode=mode)
    assert picker.in_flight() == {first.pick[0]: 1, second.pick[0]: 1}
    log.entries(entry_for(first))
    until(lambda: picker.in_flight() == {second.pick[0]: 1}, within=5, what="the first is released")
    log.entries(entry_for(second))
    picker.at_rest()


def test_many_entries_in_one_message_release_all(picker, peer, log):
    outcomes = [picked(peer) for _ in range(100)]
    assert sum(picker.in_flight().values()) == 100
    log.entries(*map(entry_for, outcomes))
    picker.at_rest()


def test_an_entry_releases_its_request_once(picker, peer, log):
    first, second = picked(peer), picked(peer)
    log.entries(*[entry_for(first)] * 5)
    until(lambda: picker.in_flight() == {second.pick[0]: 1}, within=5, what="the first is released")
    holds(lambda: picker.in_flight() == {second.pick[0]: 1}, over=0.2, what="the second stays")
    log.entries(entry_for(second))


def test_a_request_is_counted_once_with_a_log(picker, peer, log):
    before = picker.metrics().value("pointsman_requests_total")
    outcome = picked(peer)
    log.entries(entry_for(outcome))
    picker.at_rest()
    assert picker.metrics().value("pointsman_requests_total") == before + 1


def test_the_end_of_an_answer_that_is_seen_needs_no_entry(picker, peer, log):
    stream, _ = peer.ask(BODY, mode=FULL_DUPLEX)
    stream.send(response_headers(end=True))
    stream.answer("response_headers")
    stream.half_close()
    stream.end()
    picker.at_rest()


# ---- picks that Envoy did not take


def left_as_the_pick_came(peer):
    """A request whose client left while its pick was on the way: Envoy has read no answer but the one to the head, and closes the stream as
    after any pick."""
    stream, outcome = peer.ask(BODY, mode=BUFFERED_PARTIAL)
    stream.half_close()
    stream.end()
    return Outcome(outcome.answers[:1]), outcome


def test_a_request_that_was_given_up_as_its_pick_came_is_released(picker, peer, log):
    taken, all_that_came = left_as_the_pick_came(peer)
    assert picker.in_flight() == {all_that_came.pick[0]: 1}
    log.entries(entry_for(taken, status=0))
    picker.at_rest()
    assert picker.metrics().value("pointsman_requests_total", reason="client_gone") > 0


def test_without_a_log_an_answer_to_the_head_says_nothing(picker, peer):
    taken, _ = left_as_the_pick_came(peer)
    assert taken.metadata == {} and taken.answers[0].request_headers.ByteSize() == 0


# ---- entries that are none of ours


FOREIGN = {
    "without metadata": {},
    "of another filter": {"envoy.filters.http.rbac": {"allowed": True}},
    "with a pick alone": {"envoy.lb": {"x-gateway-destination-endpoint": "127.0.0.1:1"}},
    "with words for numbers": {"envoy.lb": {"x-pointsman-request": "nonsense"}},
    "with a number": {"envoy.lb": {"x-pointsman-request": 1}},
    "with a list": {"envoy.lb": {"x-pointsman-request": [1, {"a": None}]}},
}


@pytest.mark.parametrize("metadata", FOREIGN.values(), ids=FOREIGN.keys())
def test_an_entry_that_is_none_of_ours_does_nothing(metadata, picker, peer, log):
    outcome = picked(peer)
    log.entries(entry_with(metadata), HTTPAccessLogEntry())
    holds(lambda: picker.in_flight() == {outcome.pick[0]: 1}, over=0.2, what="it stays booked")
    log.entries(entry_for(outcome))
    picker.at_rest()


# ---- the log's end


@pytest.mark.parametrize("leave", ["half_close", "cancel"])
def test_the_end_of_the_last_log_releases_what_waited_for_it(leave, picker, peer, log):
    picked(peer)
    picked(peer)
    assert sum(picker.in_flight().values()) == 2
    getattr(log, leave)()
    picker.at_rest()
    picked(peer)
    assert picker.in_flight() == {}, "as without a log"


def test_the_end_of_the_logs_connection_releases_what_waited_for_it(picker):
    with picker.peer() as peer:
        log = peer.log()
        until(lambda: stays_booked(picker, peer, log), within=10, what="the log is open")
        picked(peer)
        assert sum(picker.in_flight().values()) >= 1
    picker.at_rest()
