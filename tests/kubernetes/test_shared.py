"""`--epp-mode shared`: one picker of the installation serves the pools that have no overlay."""

from collections.abc import Callable, Iterator

import pytest

from harness.cluster import CONTROLLERS, Cluster, Namespace, installation
from harness.epp import Picker
from harness.manifests import OVERLAY, QUEUE_TTL, pool_v1, pool_v1alpha2
from harness.wait import holds, until

WITHIN_S = 5
SHARED = "pointsman-picker"


@pytest.fixture
def other(cluster: Cluster) -> Iterator[Namespace]:
    namespace = Namespace(cluster, "shared-other")
    yield namespace
    namespace.close()


@pytest.fixture
def shared(cluster: Cluster, gateways: Namespace, tmp_path) -> Iterator[Callable[..., Picker]]:
    """Starts the picker of all pools, with the rights that the installation gives it."""
    flags = ("--epp-mode", "shared", "--gateway-namespace", gateways.name)
    kinds = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding")
    cluster.apply(*(one for one in installation(*kinds, flags=flags) if one["metadata"]["name"] == SHARED))
    started = []

    def shared() -> Picker:
        config = cluster.with_token_of(gateways.name, SHARED, tmp_path / "shared.kubeconfig")
        started.append(Picker(tmp_path, "--kubeconfig", config, "--all-pools"))
        return started[-1]

    yield shared
    for picker in started:
        picker.close()


def pick(picker: Picker, pool: str) -> str:
    outcome = picker.ask(pool=pool)
    return outcome.pick[0] if outcome.status == 200 else str(outcome.status)


def test_one_picker_serves_the_pools_of_all_namespaces(namespace, other, shared):
    namespace.apply(pool_v1(), pool_v1(name="second", selector={"matchLabels": {"app": "nobody"}}))
    other.apply(pool_v1alpha2(port=9000))
    namespace.pod("here", "127.0.1.1")
    other.pod("there", "127.0.2.1")
    picker = shared()
    here, second, there = f"{namespace.name}/pool", f"{namespace.name}/second", f"{other.name}/pool"
    assert pick(picker, here) == "127.0.1.1:8000" and pick(picker, there) == "127.0.2.1:9000"
    assert pick(picker, second) == "503", "it has no endpoint"
    assert not picker.log_lines("RBAC denies")
    # A pod changes pools with its labels, and goes; a pool too.
    namespace.kubectl("label", "pod", "here", "app=nobody", "--overwrite")
    until(lambda: pick(picker, second) == "127.0.1.1:8000", within=WITHIN_S, what="the pod is the other pool's")
    assert pick(picker, here) == "503"
    other.status("there", "127.0.2.1", ready=False)
    until(lambda: pick(picker, there) == "503", within=WITHIN_S, what="it is not ready")
    namespace.annotate("inferencepool/second", **{QUEUE_TTL: "9s"})

    def ttl() -> str:
        (pool,) = [one for one in picker.admin_get("/state").json()["pools"] if one["name"] == "second"]
        return {setting["key"]: setting["value"] for setting in pool["settings"]}[QUEUE_TTL]

    until(lambda: ttl() == "9s", within=WITHIN_S, what="its settings are hot")
    namespace.kubectl("delete", "inferencepool", "second")
    until(lambda: picker.log_lines("gone", second), within=WITHIN_S, what="the pool is gone")
    assert pick(picker, second) == "503"
    namespace.gone("here"), other.gone("there")


def deployment_of(gateways: Namespace, *names: str) -> dict:
    """The installation's picker, made of kwok's pods."""
    flags = ("--epp-mode", "shared", "--gateway-namespace", gateways.name)
    (found,) = [one for one in installation("Deployment", flags=flags) if one["metadata"]["name"] == SHARED]
    return found


def test_a_pool_is_left_to_it_and_gets_its_own_with_an_overlay(cluster, namespace, gateways, shared, control):
    flags = ("--epp-mode", "shared", "--gateway-namespace", gateways.name)
    labels = ("-l", f"inference-pool=pool,inference-pool-namespace={namespace.name}", "-n", gateways.name)
    made = lambda kind: cluster.get(kind, *labels)["items"]
    service = lambda: [one["spec"]["selector"].get("app.kubernetes.io/component") for one in made("service")]

    def ready() -> str:
        status = cluster.get("inferencepools.inference.networking.k8s.io", "pool", "-n", namespace.name).get("status", {})
        entries = [one for one in status.get("parents", []) if one["parentRef"].get("kind") == "Deployment"]
        return next((f"{one['status']} {entry['parentRef']['name']}" for entry in entries for one in entry["conditions"] if one["type"] == "PickerReady"), "")

    namespace.apply(pool_v1())
    controller = control("--epp-mode", "shared")
    until(lambda: service() == ["shared-endpoint-picker"], within=WITHIN_S, what="it has a Service")
    until(lambda: ready() == f"False {SHARED}", within=WITHIN_S, what="nobody serves yet, and that is said")
    assert made("deployment") == made("serviceaccount") == made("poddisruptionbudget") == []
    cluster.apply(deployment_of(gateways))
    until(lambda: ready() == f"True {SHARED}", within=60, what="the installation's picker is ready")
    # An overlay shapes a picker of its own; requests go there when it serves, and not before.
    namespace.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shape"}, "data": {"deployment": "spec: {replicas: 0}"}})
    namespace.annotate("inferencepool/pool", **{OVERLAY: "shape"})
    until(lambda: made("deployment"), within=WITHIN_S, what="its own")
    holds(lambda: service() == ["shared-endpoint-picker"], over=1, what="the one that serves is asked")
    namespace.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shape"}, "data": {"deployment": "spec: {replicas: 1}"}})
    until(lambda: service() == [None], within=60, what="its own is asked")
    until(lambda: ready().startswith("True epp-"), within=WITHIN_S, what="that is said")
    # Back again.
    namespace.annotate("inferencepool/pool", **{OVERLAY: None})
    until(lambda: service() == ["shared-endpoint-picker"] and not made("deployment"), within=WITHIN_S, what="the default again")
    role = ("-n", namespace.name, "-l", "inference-pool=pool")
    until(lambda: not cluster.get("role", *role)["items"], within=WITHIN_S, what="nothing of its own is left")
    controller.close()
    # Another mode, another picker.
    control()
    until(lambda: made("deployment") and service() == [None], within=60, what="one of its own")
