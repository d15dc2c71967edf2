"""Where the picker sends what comes at once, and how soon its settings change (issue 5, annotations.md)."""

import json
from collections import Counter

import pytest

from harness.epp import picking, servers
from harness.ext_proc import BUFFERED_PARTIAL, FULL_DUPLEX, Outcome, request_body, request_headers
from harness.manifests import BLOCK_SIZE, STRATEGY
from harness.upstream import scraped_again
from harness.wait import IN_FORCE_S, until

LONG = "the same beginning of a prompt, again and again. " * 100


def body(prompt: str) -> bytes:
    return json.dumps({"model": "tiny", "prompt": prompt}).encode()


def crowd(peer, prompts: list[str], mode: int) -> Counter:
    """The first endpoint of each pick, when all ask before anyone is answered for."""
    streams = [peer.stream(request_headers(mode=mode)) for _ in prompts]
    if mode != FULL_DUPLEX:
        for stream in streams:
            stream.answer("request_headers")
    for stream, prompt in zip(streams, prompts):
        stream.send(request_body(body(prompt)))
    firsts = Counter(stream.settled(Outcome(), last="request_body").pick[0] for stream in streams)
    for stream in streams:
        stream.cancel()
    return firsts


@pytest.mark.parametrize("strategy", ["DEFAULT", "PREFIX_CACHE"])
@pytest.mark.parametrize("mode", [BUFFERED_PARTIAL, FULL_DUPLEX], ids=["BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED"])
@pytest.mark.parametrize("same", [True, False], ids=["one prompt", "different prompts"])
def test_64_requests_at_once_onto_8_idle_endpoints_are_spread_within_one_of_even(same, mode, strategy, tmp_path):
    """No endpoint holds the prefix when they come."""
    prompts = [LONG if same else f"{number} {LONG}" for number in range(64)]
    with picking(tmp_path, servers(8), annotations={STRATEGY: strategy}) as (picker, file), picker.peer() as peer:
        firsts = crowd(peer, prompts, mode)
        assert len(firsts) == 8
        assert max(firsts.values()) - min(firsts.values()) <= 1, firsts


def follows(picker, prompt: str) -> bool:
    """Whether eight requests for one prompt, one after the other, go to one endpoint."""
    return len({picker.ask(body(prompt)).pick[0] for _ in range(8)}) == 1


def test_a_prefix_is_followed_in_every_mode_and_from_one_to_the_other(tmp_path):
    with picking(tmp_path, servers(4), annotations={STRATEGY: "PREFIX_CACHE"}) as (picker, _):
        assert follows(picker, LONG)
        home = picker.ask(body(LONG + "and more"), mode=BUFFERED_PARTIAL).pick[0]
        assert picker.ask(body(LONG), mode=FULL_DUPLEX).pick[0] == home
        assert not follows(picker, "short"), "shorter than a block"


def test_a_prefix_is_followed_where_only_the_pick_is_asked_for(tmp_path):
    """Envoy shows no answer and sends no log: streams end cleanly right after the pick."""
    with picking(tmp_path, servers(4), annotations={STRATEGY: "PREFIX_CACHE"}) as (picker, _), picker.peer() as peer:
        firsts = set()
        for _ in range(8):
            stream, outcome = peer.ask(body(LONG), mode=BUFFERED_PARTIAL)
            firsts.add(outcome.pick[0])
            stream.half_close()
            stream.end()
        assert len(firsts) == 1


def test_a_setting_is_in_force_within_a_second_of_its_write_and_no_stream_is_lost(tmp_path):
    with picking(tmp_path, servers(4)) as (picker, file), picker.peer() as peer:
        assert not follows(picker, LONG)
        stands = peer.stream(request_headers(), request_body(body(LONG)[:100], end=False))
        file.annotate({STRATEGY: "PREFIX_CACHE"})
        until(lambda: follows(picker, LONG), within=IN_FORCE_S, what="prefixes are followed")
        file.annotate({BLOCK_SIZE: "65536"})
        until(lambda: not follows(picker, LONG), within=IN_FORCE_S, what="it is shorter than a block")
        file.annotate({STRATEGY: None, BLOCK_SIZE: None})
        stands.send(request_body(body(LONG)[100:]))
        assert stands.settled(Outcome(), last="request_body").pick
        stands.cancel()


def test_a_bad_setting_changes_nothing_and_is_told(tmp_path):
    with picking(tmp_path, servers(4), annotations={STRATEGY: "PREFIX_CACHE"}) as (picker, file):
        file.annotate({STRATEGY: "PREFIXCACHE"})
        until(lambda: picker.metrics().value("pointsman_invalid_settings") == 1, within=5, what="it is seen")
        assert follows(picker, LONG)
        file.write_text("kind: [")
        until(lambda: picker.metrics().value("pointsman_manifest_reload_failures_total") >= 1, within=5, what="it is seen")
        assert follows(picker, LONG) and picker.log_lines("pool")


def test_load_that_others_brought_is_seen(tmp_path):
    pool = servers(3)
    with picking(tmp_path, pool) as (picker, _):
        pool[0].load.waiting = pool[1].load.waiting = 20
        scraped_again(pool)
        assert {picker.ask().pick[0] for _ in range(4)} == {pool[2].address}
