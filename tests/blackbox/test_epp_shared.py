"""`pointsman epp --all-pools`: one picker of many pools; each stream names its own."""

import json
from collections.abc import Iterator

import pytest

from harness.epp import Picker, servers
from harness.manifests import BLOCK_SIZE, LABELS, QUEUE_TTL, STRATEGY, ManifestFile, pool_v1, pool_v1alpha2, slice_of
from harness.pointsman import run
from harness.wait import until

IN_FORCE_S = 3


class Pools:
    """Pools of two servers each, in one file."""

    def __init__(self, folder, *names: str) -> None:
        self.file = ManifestFile(folder / "pools.yaml")
        self.servers = {name: servers(2) for name in names}
        self.annotations: dict[str, dict] = {}
        self.save()
        self.picker = Picker(folder, "-f", self.file.path, "--all-pools")

    def save(self) -> None:
        documents = []
        for id, upstreams in self.servers.items():
            namespace, name = id.split("/")
            pool = pool_v1(self.annotations.get(id), name=name, selector={"matchLabels": {**LABELS, "of": name}})
            pool["metadata"]["namespace"] = namespace
            documents += [pool, *(slice_of(one, labels={**LABELS, "of": name}, namespace=namespace) for one in upstreams)]
        self.file.write(*documents)

    def of(self, id: str) -> set[str]:
        return {upstream.address for upstream in self.servers[id]}

    def close(self) -> None:
        self.picker.close()
        for upstreams in self.servers.values():
            for upstream in upstreams:
                upstream.down()


@pytest.fixture
def pools(tmp_path) -> Iterator[Pools]:
    pools = Pools(tmp_path, "a/one", "a/two", "b/one")
    yield pools
    pools.picker.at_rest()
    pools.close()


def message(outcome) -> str:
    return json.loads(outcome.immediate.body)["error"]["message"]


def test_each_stream_gets_an_endpoint_of_the_pool_that_it_names(pools):
    for id in pools.servers:
        picked = {pools.picker.ask(pool=id).pick[0] for _ in range(8)}
        assert picked == pools.of(id)


def test_a_stream_that_names_no_pool_or_none_that_is_there_is_told_so(pools):
    for named, said in ((None, "does not say for which InferencePool"), ("", "does not say"), ("a/none", "no InferencePool a/none"), ("one", "no InferencePool one")):
        outcome = pools.picker.ask(pool=named)
        assert outcome.status == 503 and outcome.headers["x-pointsman-reason"] == "no_endpoint"
        assert said in message(outcome)
    assert pools.picker.ask(pool="b/one").status == 200


def test_pools_come_change_and_go_without_the_others_noticing(pools):
    pools.annotations["a/two"] = {QUEUE_TTL: "7s", BLOCK_SIZE: "32"}
    gone = pools.servers.pop("a/one")
    pools.servers["c/new"] = gone
    pools.save()
    until(lambda: pools.picker.ask(pool="c/new").status == 200, within=IN_FORCE_S, what="a new one is served")
    assert pools.picker.ask(pool="a/one").status == 503
    assert pools.picker.ask(pool="b/one").status == 200
    shown = {(pool["namespace"], pool["name"]): pool for pool in pools.picker.admin_get("/state").json()["pools"]}
    assert set(shown) == {("a", "two"), ("b", "one"), ("c", "new")}
    ttl = {id: {setting["key"]: setting["value"] for setting in pool["settings"]}[QUEUE_TTL] for id, pool in shown.items()}
    assert ttl[("a", "two")] == "7s" and ttl[("b", "one")] != "7s", "each has its own settings"


def test_what_one_pool_was_asked_the_others_have_not_seen(pools):
    """The same decisions as of a picker of its own: a prefix is found again in its pool alone."""
    pools.annotations = {id: {STRATEGY: "PREFIX_CACHE"} for id in pools.servers}
    pools.save()
    body = json.dumps({"model": "tiny", "prompt": "The quick brown fox. " * 200}).encode()

    def blocks() -> dict[tuple, int]:
        return {(pool["namespace"], pool["name"]): pool["prefix_index_blocks"] for pool in pools.picker.admin_get("/state").json()["pools"]}

    until(lambda: pools.picker.ask(body, pool="a/one").status == 200 and blocks()[("a", "one")] > 0, within=IN_FORCE_S, what="it is remembered")
    (first,) = {pools.picker.ask(body, pool="a/one").pick[0] for _ in range(6)}
    assert first in pools.of("a/one")
    assert blocks()[("a", "two")] == blocks()[("b", "one")] == 0


def test_its_metrics_tell_the_pools_apart(pools):
    for id in pools.servers:
        assert pools.picker.ask(pool=id).status == 200
    page = pools.picker.metrics()
    assert {dict(labels)["name"] for labels in page.series("inference_pool_ready_pods")} == set(pools.servers)
    assert sum(page.series("pointsman_requests_total").values()) == 3


def test_without_a_pool_it_is_as_ready_as_it_will_be_and_says_what_is_missing(tmp_path):
    file = ManifestFile(tmp_path / "none.yaml")
    file.write({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}})
    picker = Picker(tmp_path, "-f", file.path, "--all-pools")
    assert picker.ask(pool="a/one").status == 503
    file.write(pool_v1alpha2())
    until(lambda: "no InferencePool" not in message(picker.ask(pool="default/pool")), within=IN_FORCE_S, what="it comes")
    picker.close()


def test_all_and_one_are_not_asked_for_together():
    outcome = run("epp", "--all-pools", "--pool-name", "p")
    assert outcome.returncode == 2 and "--all-pools" in outcome.stderr
