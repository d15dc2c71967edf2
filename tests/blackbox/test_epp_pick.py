"""The pick (ext-proc.md): how it is told to Envoy, which endpoints it may name, and what a client has no say in."""

import pytest

from harness.epp import BODY, picking, servers
from harness.ext_proc import (
    BUFFERED,
    BUFFERED_PARTIAL,
    DESTINATION,
    FULL_DUPLEX,
    NONE,
    STREAMED,
    SUBSET,
    headers_set,
    metadata,
    mutation,
)
from harness.pages import Load
from harness.wait import until

MODES = {
    "NONE": NONE,
    "STREAMED": STREAMED,
    "BUFFERED": BUFFERED,
    "BUFFERED_PARTIAL": BUFFERED_PARTIAL,
    "FULL_DUPLEX_STREAMED": FULL_DUPLEX,
}
in_every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())


@pytest.fixture(scope="module")
def picker(tmp_path_factory):
    """One for the pool of four servers."""
    with picking(tmp_path_factory.mktemp("epp"), servers(4)) as (picker, file):
        picker.addresses = [server.address for server in file.upstreams]
        yield picker


def subset(value) -> dict[str, object]:
    """What Envoy says of the candidates."""
    return {"context": metadata(envoy__lb__subset_hint={SUBSET: value})}


# ---- the list


@in_every_mode
def test_header_and_metadata_name_the_same_endpoints_of_the_pool(mode, picker):
    pick = picker.ask(mode=mode).pick
    assert len(pick) == 3, "one and two to fall back on, by default"
    assert set(pick) < set(picker.addresses) and len(set(pick)) == 3


@pytest.mark.parametrize("fallbacks", [0, 1, 2, 7])
def test_as_many_endpoints_are_named_as_there_are_and_asked_for_and_the_least_loaded_first(fallbacks, tmp_path):
    pool = servers(4)
    for waiting, server in enumerate(pool):
        server.load = Load(waiting=10 * waiting)
    with picking(tmp_path, pool, "--fallback-endpoints", fallbacks) as (picker, _):
        expected = [server.address for server in pool][: fallbacks + 1]
        assert [picker.ask(mode=mode).pick for mode in (FULL_DUPLEX, NONE)] == [expected] * 2


def test_endpoints_of_ipv6_are_named_in_brackets(tmp_path):
    with picking(tmp_path, servers(2, host="::1")) as (picker, file):
        pick = picker.ask().pick
        assert sorted(pick) == sorted(f"[::1]:{server.port}" for server in file.upstreams)
        assert picker.ask(**subset([pick[1]])).pick == [pick[1]]


def test_equal_endpoints_take_turns(picker):
    picks = [picker.ask().pick[0] for _ in range(8)]
    assert sorted(picks) == sorted(2 * picker.addresses)


def test_a_pick_recomputes_the_route_and_its_header_replaces_what_is_there(picker):
    answer = picker.ask().picker
    assert answer.request_headers.response.clear_route_cache
    (option,) = [option for option in mutation(answer).set_headers if option.header.key == DESTINATION]
    assert option.append_action == option.OVERWRITE_IF_EXISTS_OR_ADD


# ---- candidates


@pytest.mark.parametrize("shape", ["a list", "comma-separated", "with spaces", "with what nobody knows", "named twice"])
def test_only_endpoints_of_the_subset_are_named(shape, picker):
    first, second = picker.addresses[1:3]
    value = {
        "a list": [first, second],
        "comma-separated": f"{first},{second}",
        "with spaces": f" {first} , {second} ",
        "with what nobody knows": ["127.0.0.1:1", first, "nonsense", second, ""],
        "named twice": [first, second, first],
    }[shape]
    seen = [picker.ask(**subset(value)).pick for _ in range(4)]
    assert all(sorted(pick) == sorted([first, second]) for pick in seen)
    assert {pick[0] for pick in seen} == {first, second}, "they take turns"


@in_every_mode
def test_a_subset_holds_in_every_mode(mode, picker):
    assert picker.ask(mode=mode, **subset([picker.addresses[3]])).pick == [picker.addresses[3]]


@pytest.mark.parametrize("value", [[], "", ["127.0.0.1:1"], "127.0.0.1:1,127.0.0.1:2"], ids=repr)
def test_a_subset_without_an_endpoint_of_the_pool_is_503(value, picker):
    outcome = picker.ask(**subset(value))
    assert (outcome.status, outcome.headers["x-pointsman-reason"]) == (503, "no_endpoint")
    assert int(outcome.headers["retry-after"]) >= 1


def test_other_metadata_is_no_subset(picker):
    (first, *_) = picker.addresses
    for context in (metadata(envoy__lb={SUBSET: [first]}), metadata(envoy__lb__subset_hint={"another-key": []})):
        assert len(picker.ask(context=context).pick) == 3


# ---- what a client says


@in_every_mode
def test_a_clients_own_destination_never_steers(mode, picker):
    for value in (picker.addresses[0], "10.0.0.1:80", ""):
        for copies in (1, 2):
            outcome = picker.ask(mode=mode, more=[(DESTINATION, value)] * copies)
            assert headers_set(outcome.picker)[DESTINATION] == ",".join(outcome.pick)
            assert len(outcome.pick) == 3 and set(outcome.pick) < set(picker.addresses)


def test_a_clients_own_destination_does_not_choose_the_first(picker):
    firsts = [picker.ask(more=[(DESTINATION, picker.addresses[0])]).pick[0] for _ in range(8)]
    assert sorted(firsts) == sorted(2 * picker.addresses)


CONTROL = [
    "x-gateway-inference-objective",
    "x-gateway-inference-fairness-id",
    "x-gateway-model-name-rewrite",
    "x-llm-d-inference-objective",
    "x-llm-d-inference-fairness-id",
    "x-llm-d-model-name-rewrite",
]


@in_every_mode
def test_control_headers_are_removed_and_no_others(mode, picker):
    more = [(name, "tiny") for name in [*CONTROL, "x-request-id", "authorization", "x-gateway", "traceparent"]]
    assert picker.ask(mode=mode, more=more).removed == set(CONTROL)


def test_what_only_the_conformance_suite_may_say_is_not_obeyed(picker):
    firsts = {picker.ask(more=[("test-epp-endpoint-selection", picker.addresses[0])]).pick[0] for _ in range(8)}
    assert firsts == set(picker.addresses)


def test_the_conformance_suites_header_is_obeyed_with_its_flag(tmp_path):
    with picking(tmp_path, servers(3), "--conformance") as (picker, file):
        for server in file.upstreams:
            named = [("test-epp-endpoint-selection", server.address)]
            assert picker.ask(more=named).pick[0] == server.address


# ---- while it runs


def test_a_change_of_the_pool_is_in_force_within_a_second(tmp_path):
    pool = servers(3)
    with picking(tmp_path, pool) as (picker, file):
        assert len(picker.ask().pick) == 3
        gone = file.upstreams.pop()
        file.save()
        until(lambda: len(picker.ask().pick) == 2, within=1, what="the third is out")
        assert gone.address not in picker.ask().pick
        file.upstreams.append(gone)
        file.save()
        until(lambda: len(picker.ask().pick) == 3, within=1, what="it is back")
        file.upstreams.clear()
        file.save()
        until(lambda: picker.ask().status == 503, within=1, what="there is none")
        gone.down()


def test_requests_are_counted_by_their_pick(picker):
    before = picker.metrics().value("pointsman_picks_total")
    requests = picker.metrics().value("pointsman_requests_total", reason="served")
    first = picker.ask(body=BODY).pick[0]
    assert picker.metrics().value("pointsman_picks_total") == before + 1
    assert picker.metrics().value("pointsman_picks_total", endpoint=first) >= 1
    assert picker.metrics().value("pointsman_requests_total", reason="served") == requests + 1
