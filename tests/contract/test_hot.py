"""Every setting is a hot update: in force within a second of the write, no request fails."""

import re
import threading

import pytest

from contract import pages
from contract.harness import (
    BLOCK_SIZE,
    LRU_CAPACITY,
    OVERLAY,
    PREFIX_BLOCKS_MAX,
    QUEUE_CAPACITY,
    QUEUE_TTL,
    QUEUEING,
    RUNTIME,
    STRATEGY,
    at_once,
    eventually,
    spread,
    traffic,
)

IN_FORCE_S = 1.0
FULL = pages.vllm(waiting=50, running=50, kv=0.99)
INDEX = "inference_extension_prefix_indexer_size"
WAITING = "inference_extension_flow_control_queue_size"


@pytest.fixture
def prompts():
    """Prompts of 4096 bytes, no two alike in their first block, however small."""
    made = iter(range(1000))
    return lambda: (f"{next(made):04} " * 1000)[:4096]


def sticks(pointsman, prompt):
    """Whether ten equal requests go to one of the servers."""
    return len(spread(pointsman, 10, prompt)) == 1


def blocks_of(pointsman, prompt):
    """How many blocks the index learns from a prompt that it does not know."""
    before = pointsman.metric(INDEX)
    assert pointsman.complete(prompt).status_code == 200
    return pointsman.metric(INDEX) - before


@pytest.mark.parametrize("version", ["v1", "v1alpha2"])
def test_routing_strategy(version, pool, prompts):
    pointsman, file, _ = pool(3, version=version)
    with traffic(pointsman):
        assert not sticks(pointsman, prompts())
        file.annotate(STRATEGY, "PREFIX_CACHE")
        eventually(lambda: sticks(pointsman, prompts()), IN_FORCE_S)
        file.annotate(STRATEGY, "DEFAULT")
        eventually(lambda: not sticks(pointsman, prompts()), IN_FORCE_S)


def test_block_size_and_a_change_empties_the_index(pool, prompts):
    pointsman, file, _ = pool(2, {STRATEGY: "PREFIX_CACHE"})
    with traffic(pointsman):
        assert blocks_of(pointsman, prompts()) == 4096 / 64
        file.annotate(BLOCK_SIZE, "256")
        eventually(lambda: pointsman.metric(INDEX) == 0, IN_FORCE_S)
        assert blocks_of(pointsman, prompts()) == 4096 / 256


def test_max_prefix_blocks(pool, prompts):
    pointsman, file, _ = pool(2, {STRATEGY: "PREFIX_CACHE"})
    with traffic(pointsman):
        assert blocks_of(pointsman, prompts()) == 64
        file.annotate(PREFIX_BLOCKS_MAX, "5")
        eventually(lambda: blocks_of(pointsman, prompts()) == 5, IN_FORCE_S)


def test_a_lower_lru_capacity_evicts_at_once_and_holds_for_each_endpoint(pool, prompts):
    pointsman, file, _ = pool(2, {STRATEGY: "PREFIX_CACHE"})
    with traffic(pointsman):
        for _ in range(8):
            pointsman.complete(prompts())
        assert pointsman.metric(INDEX) == 8 * 64
        file.annotate(LRU_CAPACITY, "10")
        eventually(lambda: 0 < pointsman.metric(INDEX) <= 2 * 10, IN_FORCE_S)


def test_queueing_on_holds_requests_back_and_off_sends_them_on(pool):
    pointsman, file, _ = pool(2, page=FULL)
    with traffic(pointsman, clients=3) as served:
        eventually(lambda: served.total() > 10)
        file.annotate(QUEUEING, "enabled")
        eventually(lambda: pointsman.metric(WAITING) == 3, IN_FORCE_S)
        file.annotate(QUEUEING, "disabled")
        eventually(lambda: pointsman.metric(WAITING) == 0, IN_FORCE_S)
        before = served.total()
        eventually(lambda: served.total() > before)


def refused_once_full(pool, key, value):
    """What a request gets that waits, or would, when the setting is written while it is queued."""
    pointsman, file, _ = pool(2, {QUEUEING: "enabled"}, page=FULL)
    answers = []
    waits = threading.Thread(target=lambda: answers.append(pointsman.chat()))
    waits.start()
    eventually(lambda: pointsman.metric(WAITING) == 1)
    file.annotate(key, value)
    eventually(lambda: answers, 2 * IN_FORCE_S)
    waits.join()
    return answers[0]


def test_a_new_queue_ttl_holds_for_what_already_waits(pool):
    answer = refused_once_full(pool, QUEUE_TTL, "200ms")
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 0
    assert answer.json()["error"]["message"]


def test_total_queue_capacity_refuses_what_cannot_fit(pool):
    pointsman, file, servers = pool(2, {QUEUEING: "enabled", QUEUE_TTL: "100ms"}, page=FULL)
    by_ttl = pointsman.chat()
    file.annotate(QUEUE_CAPACITY, "10")

    def refused_otherwise():
        answer = pointsman.chat()
        assert answer.status_code == 429
        return answer.headers["x-pointsman-reason"] != by_ttl.headers["x-pointsman-reason"]

    eventually(refused_otherwise, IN_FORCE_S)


@pytest.mark.parametrize("version", ["v1", "v1alpha2"])
def test_model_server_runtime(version, pool):
    pointsman, file, (first, second) = pool(2, version=version)
    # By vLLM's names the first is full, by SGLang's the second.
    first.page = FULL + pages.sglang()
    second.page = pages.vllm() + pages.sglang(waiting=50, running=50, kv=0.99)
    with traffic(pointsman, clients=1):
        eventually(lambda: set(spread(pointsman, 10)) == {second.address})
        file.annotate(RUNTIME, "sglang")
        eventually(lambda: set(spread(pointsman, 10)) == {first.address}, IN_FORCE_S)


def test_epp_overlay_has_no_meaning_here_and_harms_nothing(pool):
    pointsman, file, _ = pool(2)
    with traffic(pointsman) as served:
        file.annotate(OVERLAY, "custom-epp")
        before = served.total()
        eventually(lambda: served.total() > before + 50)
    assert pointsman.metric("pointsman_invalid_settings") == 0


def test_endpoints_come_and_go(pool, servers):
    pointsman, file, (first, second) = pool(2)
    (third,) = servers(1)
    with traffic(pointsman) as served:
        file.servers = [second, third]
        file.write()
        eventually(lambda: served[third.address] > 0, IN_FORCE_S)
        eventually(lambda: set(spread(pointsman, 10)) <= {second.address, third.address}, 0.5)
        file.servers = [first]
        file.write()
        eventually(lambda: set(spread(pointsman, 10)) == {first.address}, IN_FORCE_S)


@pytest.mark.parametrize("version", ["v1", "v1alpha2"])
def test_the_target_port(version, pool, servers):
    pointsman, file, (first,) = pool(1, version=version)
    (second,) = servers(1)
    file.slice_has_port = False
    file.target_port = first.port
    with traffic(pointsman) as served:
        file.write()
        file.target_port = second.port
        file.write()
        eventually(lambda: served[second.address] > 0, IN_FORCE_S)
        eventually(lambda: set(spread(pointsman, 10)) == {second.address}, 0.5)


@pytest.mark.parametrize("value", ["zero", "", "65537", "64.0"])
def test_an_invalid_value_keeps_the_last_valid_one_is_counted_and_told_once(value, pool, prompts):
    pointsman, file, _ = pool(2, {STRATEGY: "PREFIX_CACHE", BLOCK_SIZE: "256"})
    with traffic(pointsman):
        assert blocks_of(pointsman, prompts()) == 16
        file.annotate(BLOCK_SIZE, value)
        eventually(lambda: pointsman.metric("pointsman_invalid_settings") == 1, IN_FORCE_S)
        assert blocks_of(pointsman, prompts()) == 16
        file.annotate(BLOCK_SIZE, "128")
        eventually(lambda: pointsman.metric("pointsman_invalid_settings") == 0, IN_FORCE_S)
        assert blocks_of(pointsman, prompts()) == 32
    told = pointsman.logged("prefix-cache-hash-block-size", "expected")
    assert len(told) == 1, pointsman.log


def test_an_invalid_value_at_the_start_means_the_default(pool, prompts):
    pointsman, _, _ = pool(2, {STRATEGY: "PREFIX_CACHE", BLOCK_SIZE: "many"})
    assert pointsman.metric("pointsman_invalid_settings") == 1
    assert blocks_of(pointsman, prompts()) == 64


def test_yaml_that_does_not_parse_changes_nothing_and_is_told_with_its_place(pool, prompts):
    pointsman, file, _ = pool(2, {STRATEGY: "PREFIX_CACHE", BLOCK_SIZE: "256"})
    sound = file.path.read_text()
    with traffic(pointsman):
        file.write_text(sound.replace("256", "128") + "\n---\nkind: [InferencePool\nmetadata: {\n")
        line = eventually(lambda: pointsman.logged("pool.yaml"), IN_FORCE_S)[0]
        assert re.search(r"pool\.yaml:\d+:\d+|line.?\d+.*column.?\d+", line), line
        assert blocks_of(pointsman, prompts()) == 16
        file.write_text(sound.replace("256", "512"))
        eventually(lambda: blocks_of(pointsman, prompts()) == 8, IN_FORCE_S)


def test_many_changes_under_a_burst_fail_no_request(pool):
    pointsman, file, _ = pool(4)

    def change_or_ask(number):
        if number == 0:
            for step in range(20):
                file.annotate(STRATEGY, ["DEFAULT", "PREFIX_CACHE"][step % 2])
                file.annotate(BLOCK_SIZE, str(16 + step))
            return 200
        return max(pointsman.chat(f"{number} " * 100).status_code for _ in range(10))

    assert set(at_once(change_or_ask, 16)) == {200}
