"""InferencePools behind Envoy Gateway on a real node: from a user's seat, with kubectl and HTTP alone."""

import concurrent.futures
import json
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from harness.site import BROKEN, POOL, PROMPT, SOON_S, Load, Site, open_site, route, service
from harness.wait import until


@pytest.fixture(scope="module")
def site(node) -> Iterator[Site]:
    site = open_site(node)
    yield site
    site.client.close()


def test_requests_go_where_the_picker_says(site):
    before, picks = site.served("qwen"), site.picks("qwen")
    assert all(site.ask("qwen.example", f"{number} {PROMPT}").status_code == 200 for number in range(12))
    after = site.served("qwen")
    assert sum(after.values()) - sum(before.values()) == 12
    assert site.picks("qwen") - picks == 12
    assert all(after[pod] > before[pod] for pod in after), (before, after)


def test_an_annotation_is_in_force_without_envoy_gateway(site):
    key = "inference.networking.x-k8s.io/routing-strategy"
    site.node.kubectl("-n", site.node.name, "annotate", "--overwrite", f"inferencepools.{POOL}/qwen", f"{key}=PREFIX_CACHE")
    time.sleep(1)
    assert site.ask("qwen.example", PROMPT).status_code == 200
    before = site.served("qwen")
    for _ in range(8):
        assert site.ask("qwen.example", PROMPT).status_code == 200
    served = site.served("qwen") - before
    assert len(served) <= 2, f"one prompt, two pickers that each know what they saw: {served}"


def test_a_pools_status_says_what_gateways_and_its_picker_say(site):
    ready = {"Deployment", "Gateway"}
    until(lambda: site.parents("qwen").keys() == ready, within=SOON_S, what="an entry for each")
    parents = site.parents("qwen")
    assert parents["Gateway"] == {"Accepted": ("True", "Accepted"), "ResolvedRefs": ("True", "ResolvedRefs")}
    assert parents["Deployment"]["PickerReady"][0] == "True"


def test_two_pools_share_by_weight(site):
    site.node.apply(route("canary", "canary.example", ("qwen", 3), ("llama", 1)))
    until(lambda: site.status("canary.example") == 200, within=SOON_S, what="the canary answers")
    before = sum(site.served("llama").values())
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: site.status("canary.example"), range(400))) == {200}
    share = (sum(site.served("llama").values()) - before) / 400
    assert 0.15 < share < 0.35, share
    # The weights are the HTTPRoute's, whenever they change.
    site.node.apply(route("canary", "canary.example", ("qwen", 1), ("llama", 0)))
    time.sleep(3)
    before = sum(site.served("llama").values())
    assert {site.status("canary.example") for _ in range(40)} == {200}
    assert sum(site.served("llama").values()) == before


def test_weights_change_without_a_lost_request(site):
    site.node.apply(route("canary", "canary.example", ("qwen", 1), ("llama", 0)))
    until(lambda: site.status("canary.example") == 200, within=SOON_S, what="the canary answers")
    time.sleep(1)
    with Load(site, "canary.example") as load:
        for weights in ((9, 1), (1, 9), (0, 1), (1, 1), (1, 0)) * 3:
            site.node.apply(route("canary", "canary.example", *zip(("qwen", "llama"), weights)))
            time.sleep(1)
    assert load.lost == 0 and load.outcomes[BROKEN] == 0, load.outcomes


def test_a_service_leaves_a_rule_with_a_pool_without_a_lost_request(site):
    """By a weight of 0, and altogether: Envoy Gateway takes its endpoints away at once."""
    site.node.apply(service("llama"))

    def share(*services: dict) -> None:
        shared = route("shared", "shared.example", ("qwen", 1))
        shared["spec"]["rules"][0]["backendRefs"] += services
        site.node.apply(shared)
        time.sleep(2)

    beside = {"name": "llama", "port": 80, "weight": 1}
    share(beside)
    until(lambda: site.status("shared.example") == 200, within=SOON_S, what="the rule answers")
    with Load(site, "shared.example") as load:
        for left in ([{**beside, "weight": 0}], []) * 3:
            share(*left)
            share(beside)
    site.node.kubectl("-n", site.node.name, "delete", "httproute/shared", "service/llama")
    assert load.lost == 0 and load.outcomes[BROKEN] == 0, load.outcomes


def test_a_missing_pool_loses_its_own_share_alone(site):
    site.node.apply(route("half", "half.example", ("qwen", 1), ("nowhere", 1)))
    until(lambda: site.status("half.example") == 200, within=SOON_S, what="half of it answers")
    outcomes = Counter(site.status("half.example") for _ in range(100))
    assert outcomes.keys() == {200, 500}
    assert 25 < outcomes[200] < 75, outcomes
    assert site.status("qwen.example") == 200
    site.node.kubectl("-n", site.node.name, "delete", "httproute", "half")


def test_model_servers_come_and_go_without_a_lost_request(site):
    with Load(site, "qwen.example") as load:
        time.sleep(1)
        site.node.kubectl("-n", site.node.name, "scale", "deployment/qwen", "--replicas=5")
        site.node.kubectl("-n", site.node.name, "rollout", "status", "deployment/qwen", "--timeout=60s")
        site.node.kubectl("-n", site.node.name, "scale", "deployment/qwen", "--replicas=2")
        time.sleep(8)
        site.node.kubectl("-n", site.node.name, "scale", "deployment/qwen", "--replicas=3")
        site.node.kubectl("-n", site.node.name, "rollout", "status", "deployment/qwen", "--timeout=60s")
    assert load.lost == 0, load.outcomes


def test_a_picker_that_serves_nobody_yet_takes_ours_from_nobody(site):
    """Who brings a picker applies its Service and its Deployment at once, and the pods take their time."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "llama-epp"}, "spec": {"ports": [{"port": 9002}]}}
    with Load(site, "llama.example") as load:
        site.node.apply(service)
        time.sleep(8)
        site.node.kubectl("-n", site.node.name, "delete", "service", "llama-epp")
        time.sleep(1)
    assert load.lost == 0 and load.outcomes[BROKEN] == 0, load.outcomes


def test_whose_picker_it_is_changes_without_a_lost_request(site):
    """To one of the user's, here the pickers of another pool, and back to ours, which has to start first."""
    pickers = site.node.items("pods", "-n", "envoy-gateway-system", "-l", site.labels("qwen"))
    site.node.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "users-epp"}, "spec": {"ports": [{"name": "grpc", "port": 9002}]}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "users-epp", "labels": {"kubernetes.io/service-name": "users-epp"}},
            "addressType": "IPv4",
            "ports": [{"name": "grpc", "port": 9002, "protocol": "TCP"}],
            "endpoints": [{"addresses": [pod["status"]["podIP"]], "conditions": {"ready": True}} for pod in pickers],
        },
    )
    ours = lambda: site.node.items("pods", "-n", "envoy-gateway-system", "-l", site.labels("llama"))

    def name_picker(name: str) -> None:
        change = json.dumps({"spec": {"endpointPickerRef": {"name": name}}})
        site.node.kubectl("-n", site.node.name, "patch", f"inferencepools.{POOL}/llama", "--type=merge", "-p", change)

    with Load(site, "llama.example") as load:
        for _ in range(2):
            name_picker("users-epp")
            until(lambda: not ours(), within=90, what="our pickers are gone")
            time.sleep(2)
            name_picker("llama-epp")
            site.picker_rolled_out("llama")
            time.sleep(4)
    assert load.lost == 0 and load.outcomes[BROKEN] == 0, load.outcomes


def test_controllers_are_replaced_without_a_lost_request(site):
    of = ("-n", "pointsman-system", "deployment/pointsman-controller")
    with Load(site, "qwen.example") as load:
        site.node.kubectl("rollout", "restart", *of)
        site.node.kubectl("rollout", "status", *of, "--timeout=90s")
        site.node.kubectl("-n", site.node.name, "rollout", "restart", "deployment/qwen")
        site.node.kubectl("-n", site.node.name, "rollout", "status", "deployment/qwen", "--timeout=90s")
        time.sleep(8)
    assert load.lost == 0, load.outcomes


def test_a_picker_is_replaced_without_a_lost_request(site):
    of = ("-n", "envoy-gateway-system", "-l", site.labels("llama"))
    with Load(site, "llama.example") as load:
        time.sleep(1)
        site.node.kubectl("rollout", "restart", "deployment", *of)
        site.picker_rolled_out("llama")
        time.sleep(5)
    assert load.lost == 0, load.outcomes


@pytest.mark.parametrize("name, outcome", [("qwen", {200}), ("llama", {503})])
def test_without_a_picker_a_pool_fails_as_it_says(site, name, outcome):
    host = f"{name}.example"
    shape = {"deployment": "spec: {replicas: 0}"}
    overlay = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "none"}, "data": shape}
    site.node.apply(overlay)
    annotate = ("-n", site.node.name, "annotate", "--overwrite", f"inferencepools.{POOL}/{name}")
    site.node.kubectl(*annotate, "inference.networking.x-k8s.io/epp-overlay=none")
    of = ("-n", "envoy-gateway-system", "-l", site.labels(name))
    until(lambda: not site.node.items("pods", *of), within=90, what="its pickers are gone")
    time.sleep(2)
    assert {site.status(host) for _ in range(20)} <= outcome
    site.node.kubectl(*annotate, "inference.networking.x-k8s.io/epp-overlay-")
    site.picker_rolled_out(name)
    until(lambda: site.status(host) == 200, within=SOON_S, what="it serves again")
