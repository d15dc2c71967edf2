"""Every annotation: what it does, that it is hot, and what a bad value does (annotations.md, section 1)."""

import itertools
import random

import pytest

from harness import pages
from harness.manifests import (
    BLOCK_SIZE,
    ENV,
    LRU_CAPACITY,
    MAX_BLOCKS,
    OVERLAY,
    QUEUE_CAPACITY,
    QUEUE_TTL,
    QUEUEING,
    ROUTING,
    RUNTIME,
    STRATEGY,
    pool_v1,
    pool_v1alpha2,
)
from harness.pointsman import Pointsman
from harness.traffic import Traffic
from harness.upstream import counts, forget, scraped_again
from harness.wait import IN_FORCE_S, holds, until

VERSIONS = pytest.mark.parametrize("version", [pool_v1, pool_v1alpha2], ids=["v1", "v1alpha2"])

_numbers = itertools.count()


def text(size_bytes: int) -> str:
    """A prompt of that many bytes that shares no block with any other."""
    return random.Random(next(_numbers)).randbytes(size_bytes).hex()[:size_bytes]


def invalid_settings(pointsman: Pointsman) -> float:
    return pointsman.metrics().value("pointsman_invalid_settings")


def index_blocks(pointsman: Pointsman) -> float:
    return pointsman.metrics().value("inference_extension_prefix_indexer_size")


def blocks_of(pointsman: Pointsman, prompt: str) -> float:
    """Blocks that one new prompt puts into the index."""
    before = index_blocks(pointsman)
    assert pointsman.complete(prompt).status_code == 200
    return index_blocks(pointsman) - before


def sticks(pointsman: Pointsman, servers: list, times: int = 8) -> bool:
    """Whether one new prompt, asked again and again, goes to one of several idle servers alone."""
    prompt = text(2000)
    forget(servers)
    for _ in range(times):
        assert pointsman.complete(prompt).status_code == 200
    return sorted(counts(servers))[:-1] == [0] * (len(servers) - 1)


@VERSIONS
def test_prefix_cache_sends_a_prompt_to_the_server_that_holds_it_and_default_does_not(
    version, start, upstreams, pool_file
):
    servers = upstreams(4)
    file = pool_file(servers)
    file.make_pool = version
    file.save()
    pointsman = start("-f", file.path)
    assert not sticks(pointsman, servers)
    file.annotate({STRATEGY: "PREFIX_CACHE"})
    until(lambda: sticks(pointsman, servers), within=IN_FORCE_S, what="PREFIX_CACHE is in force")
    assert all(sticks(pointsman, servers) for _ in range(5))
    file.annotate({STRATEGY: "DEFAULT"})
    until(lambda: not sticks(pointsman, servers), within=IN_FORCE_S, what="DEFAULT is in force")
    file.annotate({STRATEGY: "PREFIX_CACHE"})
    until(lambda: sticks(pointsman, servers), within=IN_FORCE_S, what="PREFIX_CACHE is in force again")
    file.annotate({STRATEGY: None})
    until(lambda: not sticks(pointsman, servers), within=IN_FORCE_S, what="absent is DEFAULT")


@pytest.mark.parametrize("strategy", ["DEFAULT", "PREFIX_CACHE"])
def test_equal_endpoints_share_requests_evenly(strategy, start, upstreams, pool_file):
    servers = upstreams(4)
    pointsman = start("-f", pool_file(servers, {STRATEGY: strategy}).path)
    for _ in range(200):
        assert pointsman.complete(text(300)).status_code == 200
    # At random 50 each, give or take 6: four such steps away would be a wonder.
    assert min(counts(servers)) >= 25, counts(servers)


@VERSIONS
def test_block_size_is_the_bytes_of_a_block_and_a_shorter_tail_is_ignored(version, start, upstreams, pool_file):
    file = pool_file(upstreams(1), {STRATEGY: "PREFIX_CACHE"})
    file.make_pool = version
    file.save()
    pointsman = start("-f", file.path)
    assert blocks_of(pointsman, text(640)) == 10, "64 is the default"
    assert blocks_of(pointsman, text(703)) == 10
    assert blocks_of(pointsman, text(63)) == 0
    file.annotate({BLOCK_SIZE: "100"})
    until(lambda: index_blocks(pointsman) == 0, within=IN_FORCE_S, what="another block size empties the index")
    assert blocks_of(pointsman, text(640)) == 6
    assert blocks_of(pointsman, text(99)) == 0
    file.annotate({BLOCK_SIZE: None})
    until(lambda: index_blocks(pointsman) == 0, within=IN_FORCE_S, what="the default is in force again")
    assert blocks_of(pointsman, text(640)) == 10


def test_block_size_counts_bytes_of_utf8_and_not_characters(start, upstreams, pool_file):
    file = pool_file(upstreams(1), {STRATEGY: "PREFIX_CACHE"})
    pointsman = start("-f", file.path)
    # Two bytes each, and escaped as \u00e9 in the body that httpx sends or not: the prompt is the same.
    assert blocks_of(pointsman, "é" * 64) == 2
    escaped = b'{"model":"tiny","prompt":"' + rb"\u00f6" * 64 + b'"}'
    before = index_blocks(pointsman)
    answer = pointsman.client.post("/v1/completions", content=escaped, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert index_blocks(pointsman) - before == 2


@VERSIONS
def test_max_prefix_blocks_limits_the_blocks_of_one_request(version, start, upstreams, pool_file):
    servers = upstreams(4)
    file = pool_file(servers, {STRATEGY: "PREFIX_CACHE"})
    file.make_pool = version
    file.save()
    pointsman = start("-f", file.path)
    assert blocks_of(pointsman, text(64 * 300)) == 128, "128 is the default"
    file.annotate({MAX_BLOCKS: "5"})
    until(lambda: blocks_of(pointsman, text(64 * 300)) == 5, within=IN_FORCE_S, what="at most 5 blocks")
    file.annotate({MAX_BLOCKS: "300"})
    until(lambda: blocks_of(pointsman, text(64 * 400)) == 300, within=IN_FORCE_S, what="at most 300 blocks")


@VERSIONS
def test_lru_capacity_is_blocks_for_each_endpoint_least_recently_used_out_first(version, start, upstreams, pool_file):
    servers = upstreams(2)
    file = pool_file(servers, {STRATEGY: "PREFIX_CACHE"})
    file.make_pool = version
    file.save()
    pointsman = start("-f", file.path)
    for _ in range(40):
        assert pointsman.complete(text(64 * 10)).status_code == 200
    assert index_blocks(pointsman) == 400
    file.annotate({LRU_CAPACITY: "50"})
    until(lambda: index_blocks(pointsman) == 100, within=IN_FORCE_S, what="the surplus is evicted at once")
    file.annotate({LRU_CAPACITY: "1000"})
    until(lambda: blocks_of(pointsman, text(64 * 10)) == 10, within=IN_FORCE_S, what="there is room again")
    assert index_blocks(pointsman) >= 110, "raising it keeps all"


def test_what_was_used_least_recently_is_forgotten_first(start, upstreams, pool_file):
    file = pool_file(upstreams(1), {STRATEGY: "PREFIX_CACHE", LRU_CAPACITY: "30"})
    pointsman = start("-f", file.path)

    def hit_bytes() -> float:
        return pointsman.metrics().value("inference_extension_prefix_indexer_hit_bytes_sum")

    def hit_by(prompt: str) -> float:
        before = hit_bytes()
        assert pointsman.complete(prompt).status_code == 200
        return hit_bytes() - before

    old, used, new = text(640), text(640), text(640)
    for prompt in (old, used, new):
        assert hit_by(prompt) == 0
    assert hit_by(old) == 640
    # `used` is now the oldest, and goes for the next.
    assert hit_by(text(640)) == 0
    assert hit_by(old) == 640
    assert hit_by(new) == 640
    assert hit_by(used) == 0


@VERSIONS
def test_model_server_runtime_says_whose_metrics_are_read(version, start, upstreams, pool_file):
    by_vllm, by_sglang, by_trt = servers = upstreams(3)
    idle, busy = pages.Load(), pages.Load(waiting=60, running=30, kv_usage=0.9)
    for server, free in ((by_vllm, pages.vllm), (by_sglang, pages.sglang), (by_trt, pages.triton)):
        # Each server is idle by one engine's names and busy by the others'.
        server.page = lambda _, free=free: "".join(
            page(idle if page is free else busy) for page in (pages.vllm, pages.sglang, pages.triton)
        )
    file = pool_file(servers)
    file.make_pool = version
    file.save()
    pointsman = start("-f", file.path)

    def all_go_to(server) -> bool:
        forget(servers)
        for _ in range(6):
            assert pointsman.complete(text(50)).status_code == 200
        return len(server.requests) == 6

    until(lambda: all_go_to(by_vllm), within=IN_FORCE_S, what="vllm is the default")
    for runtime, server in (("sglang", by_sglang), ("trt-llm", by_trt), ("vllm", by_vllm)):
        file.annotate({RUNTIME: runtime})
        until(lambda server=server: all_go_to(server), within=2 * IN_FORCE_S, what=f"{runtime} is in force and read")
        assert all_go_to(server)


def test_a_runtime_that_the_servers_do_not_speak_leaves_them_unknown_and_in_use(start, upstreams, pool_file):
    servers = upstreams(2)
    file = pool_file(servers)
    pointsman = start("-f", file.path)
    with Traffic(lambda number: pointsman.complete(text(50))) as traffic:
        traffic.more()
        file.annotate({RUNTIME: "sglang"})
        traffic.more(200)
        traffic.assert_unharmed()
    assert all(counts(servers))


def test_every_annotation_changes_under_traffic_and_no_request_fails(start, upstreams, pool_file):
    servers = upstreams(3)
    for server in servers:
        server.answers(first_byte_s=0.01)
    file = pool_file(servers)
    pointsman = start("-f", file.path)
    changes = [
        {STRATEGY: "PREFIX_CACHE"},
        {BLOCK_SIZE: "16"},
        {BLOCK_SIZE: "65536"},
        {BLOCK_SIZE: "64", MAX_BLOCKS: "1"},
        {MAX_BLOCKS: "65536"},
        {LRU_CAPACITY: "1"},
        {LRU_CAPACITY: "10000000"},
        {QUEUEING: "enabled"},
        {QUEUE_CAPACITY: "1"},
        {QUEUE_TTL: "1ns"},
        {QUEUE_CAPACITY: "1099511627776", QUEUE_TTL: "2h45m"},
        {QUEUEING: "disabled"},
        {RUNTIME: "trt-llm"},
        {RUNTIME: "vllm"},
        {OVERLAY: "custom-epp"},
        {STRATEGY: "DEFAULT"},
        {STRATEGY: "nonsense", BLOCK_SIZE: "0", QUEUE_TTL: "soon"},
        dict.fromkeys([STRATEGY, BLOCK_SIZE, MAX_BLOCKS, LRU_CAPACITY, QUEUE_CAPACITY, QUEUE_TTL, OVERLAY]),
    ]
    with Traffic(lambda number: pointsman.complete("shared head " * 40 + text(200), stream=number % 2 == 0)) as traffic:
        for change in changes:
            file.annotate(change)
            traffic.more(60)
        traffic.assert_unharmed()


# Keys with what is taken and what is not. The durations are a choice; `check` has the long list.
BAD_VALUES = [
    (STRATEGY, "PREFIX_CACHE", ["prefix_cache", "ROUND_ROBIN", ""]),
    (BLOCK_SIZE, "32", ["0", "65537", "-1", "64.0", "0x40", "6_4", "sixty-four", "", "1e3"]),
    (MAX_BLOCKS, "7", ["0", "65537", "+-1", "9223372036854775808", ""]),
    (LRU_CAPACITY, "99", ["0", "10000001", ""]),
    (QUEUEING, "enabled", ["true", "Enabled", ""]),
    (QUEUE_CAPACITY, "1024", ["0", "1099511627777", "100Mi", ""]),
    (QUEUE_TTL, "5s", ["0s", "-1s", "5", "1d", ""]),
    (RUNTIME, "sglang", ["vLLM", "tgi", ""]),
]


@pytest.mark.parametrize("key, valid, bad_values", BAD_VALUES, ids=[key.split("/")[1] for key, _, _ in BAD_VALUES])
def test_a_bad_value_is_counted_told_once_and_never_takes_the_pool_down(
    key, valid, bad_values, start, upstreams, pool_file
):
    servers = upstreams(2, page=lambda load: pages.vllm(load) + pages.sglang(load))
    file = pool_file(servers, {key: valid})
    pointsman = start("-f", file.path)
    assert invalid_settings(pointsman) == 0
    with Traffic(lambda number: pointsman.complete(text(50)), clients=1) as traffic:
        for bad in bad_values:
            file.annotate({key: bad})
            words = f'"{bad}"' if bad else "empty"
            told = until(lambda words=words: pointsman.log_lines(key, words), within=IN_FORCE_S, what=f"{bad!r} is told")
            assert len(told) == 1, told
            assert "expected" in told[0] and f"using {valid}" in told[0], told[0]
            assert invalid_settings(pointsman) == 1
        traffic.assert_unharmed()
    file.annotate({key: valid})
    until(lambda: invalid_settings(pointsman) == 0, within=IN_FORCE_S, what="all is well again")
    assert len(pointsman.log_lines(key, "expected")) == len(bad_values), "each was told once"


def test_a_fault_is_told_once_though_the_file_is_written_again(start, upstreams, pool_file):
    servers = upstreams(2)
    file = pool_file(servers[:1], {STRATEGY: "ROUND_ROBIN"})
    pointsman = start("-f", file.path)
    assert len(pointsman.log_lines(STRATEGY)) == 1
    file.upstreams = servers
    file.save()
    until(lambda: servers[1].scrapes, within=IN_FORCE_S, what="the change beside the fault is in force")
    holds(lambda: len(pointsman.log_lines(STRATEGY)) == 1, over=0.5, what="another endpoint does not change the fault")


def test_a_fault_is_told_once_though_it_moves_in_its_file(start, upstreams, pool_file):
    file = pool_file(upstreams(1), {STRATEGY: "DEFAULT", BLOCK_SIZE: "64"})
    pointsman = start("-f", file.path)
    file.annotate({BLOCK_SIZE: "0"})
    until(lambda: pointsman.log_lines(BLOCK_SIZE), within=IN_FORCE_S, what="the fault is told")
    file.write_text("# a comment above\n" + file.path.read_text().replace("DEFAULT", "PREFIX_CACHE"))
    until(lambda: blocks_of(pointsman, text(640)) == 10, within=IN_FORCE_S, what="the change beside it is in force")
    assert len(pointsman.log_lines(BLOCK_SIZE)) == 1, pointsman.log()


def test_with_a_bad_value_the_last_valid_one_stays_in_force(start, upstreams, pool_file):
    file = pool_file(upstreams(1), {STRATEGY: "PREFIX_CACHE", BLOCK_SIZE: "100", MAX_BLOCKS: "3"})
    pointsman = start("-f", file.path)
    assert blocks_of(pointsman, text(1000)) == 3
    file.annotate({MAX_BLOCKS: "none", BLOCK_SIZE: "200"})
    until(lambda: invalid_settings(pointsman) == 1, within=IN_FORCE_S, what="the bad value is seen")
    assert blocks_of(pointsman, text(1000)) == 3, "the bad setting keeps its last valid value"
    assert blocks_of(pointsman, text(450)) == 2, "the other setting of the same change is in force"


def test_a_value_that_is_bad_at_the_start_means_the_default(start, upstreams, pool_file):
    file = pool_file(upstreams(1), {STRATEGY: "PREFIX_CACHE", BLOCK_SIZE: "zero", MAX_BLOCKS: "0"})
    pointsman = start("-f", file.path)
    assert invalid_settings(pointsman) == 2
    assert blocks_of(pointsman, text(64 * 200)) == 128


def test_values_are_trimmed_and_numbers_may_have_a_plus(start, upstreams, pool_file):
    file = pool_file(upstreams(1), {STRATEGY: " \tPREFIX_CACHE\n", BLOCK_SIZE: " +100 ", QUEUE_TTL: " 1.5h "})
    pointsman = start("-f", file.path)
    assert invalid_settings(pointsman) == 0, pointsman.log()
    assert blocks_of(pointsman, text(640)) == 6


@pytest.mark.parametrize(
    "unknown, nearest",
    [
        (ROUTING + "routing-stratgy", STRATEGY),
        (ENV + "prefix-cache-block-size", BLOCK_SIZE),
        (ROUTING + "queue", QUEUEING),
    ],
)
def test_an_unknown_annotation_of_ours_is_told_with_the_nearest_known(unknown, nearest, start, upstreams, pool_file):
    file = pool_file(upstreams(1), {"example.com/routing-stratgy": "not ours"})
    pointsman = start("-f", file.path)
    file.annotate({unknown: "1"})
    (line,) = until(lambda: pointsman.log_lines(unknown), within=IN_FORCE_S, what="it is told")
    assert nearest in line
    assert not pointsman.log_lines("example.com"), "others' annotations are nobody's business"
    assert pointsman.complete().status_code == 200


def test_metrics_of_all_endpoints_are_read_at_least_once_a_second(start, upstreams, pool_file):
    servers = upstreams(3)
    start("-f", pool_file(servers).path)
    scraped_again(servers)
    scraped_again(servers)
    gaps = [later - earlier for server in servers for earlier, later in itertools.pairwise(server.scrapes)]
    assert max(gaps) < 1.5, gaps
