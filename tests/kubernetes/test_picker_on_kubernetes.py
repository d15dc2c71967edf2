"""`pointsman epp --pool-name NAME`: the pool, its pods and its models, as a real API server has them (cli.md, resources.md)."""

import json
import time

import pytest

from harness.epp import BODY
from harness.manifests import QUEUE_TTL, STRATEGY, pool_v1, pool_v1alpha2
from harness.pointsman import run
from harness.relay import Relay
from harness.upstream import Upstream
from harness.wait import holds, until

X = "inference.networking.x-k8s.io/v1alpha2"
IN_FORCE_S = 1.0
"""A change is in force within this; what kubectl takes itself comes before."""


@pytest.fixture
def servers():
    """Model servers at addresses of their own, all on one port, as pods are."""
    made: list[Upstream] = []

    def servers(*hosts: str, port: int = 0) -> list[Upstream]:
        for host in hosts:
            made.append(Upstream(host=host, port=made[0].port if made and not port else port).up())
        return made

    yield servers
    for server in made:
        server.down()


def v1(port: int, annotations: dict | None = None, **spec: object) -> dict:
    reference = {"name": "epp", "port": {"number": 9002}}
    return pool_v1(annotations, port=port, endpointPickerRef=reference, **spec)


def setting(picker, key: str) -> tuple[str, str]:
    """Its value, and where that is from."""
    (pool,) = picker.admin_get("/state").json()["pools"]
    (found,) = [setting for setting in pool["settings"] if setting["key"] == key]
    return found["value"], found["origin"]


def endpoints(picker) -> dict[str, str]:
    """Names by address."""
    pools = picker.admin_get("/state").json()["pools"]
    return {endpoint["address"]: endpoint["name"] for pool in pools for endpoint in pool["endpoints"]}


def health(picker) -> str:
    with picker.peer() as peer:
        return peer.health("readiness")


def test_pods_that_are_ready_are_picked_and_only_those(namespace, pick, servers):
    ours = servers("127.0.1.1", "127.0.1.2", "127.0.1.3")
    port = ours[0].port
    namespace.apply(v1(port))
    namespace.pod("first", "127.0.1.1")
    namespace.pod("second", "127.0.1.2", ready=False)
    picker = pick()
    assert endpoints(picker) == {f"127.0.1.1:{port}": "first-rank-0"}
    assert picker.ask().pick[0] == f"127.0.1.1:{port}"
    namespace.status("second", "127.0.1.2", ready=True)
    until(lambda: len(endpoints(picker)) == 2, within=IN_FORCE_S, what="the second is ready")
    namespace.pod("third", "127.0.1.3")
    until(lambda: len(endpoints(picker)) == 3, within=IN_FORCE_S, what="the third came")
    # It terminates: its object is there, and ready, for as long as its requests may take.
    namespace.kubectl("delete", "pod", "first", "--wait=false", "--grace-period=30")
    until(lambda: f"127.0.1.1:{port}" not in endpoints(picker), within=IN_FORCE_S, what="the first terminates")
    namespace.status("second", "127.0.1.2", ready=False)
    until(lambda: list(endpoints(picker)) == [f"127.0.1.3:{port}"], within=IN_FORCE_S, what="the third is left")
    for pod in ("first", "second", "third"):
        namespace.gone(pod)


def test_a_pod_is_an_endpoint_for_each_port_that_it_serves(namespace, pick):
    ports = [{"number": 8000}, {"number": 8001}, {"number": 8002}]
    namespace.apply({**v1(8000), "spec": {**v1(8000)["spec"], "targetPorts": ports}})
    key = "inference.networking.k8s.io/active-ports"
    namespace.pod("all", "127.0.1.1")
    namespace.pod("some", "127.0.1.2", annotations={key: "8000, 8002"})
    picker = pick()
    ranks = {f"127.0.1.1:800{rank}": f"all-rank-{rank}" for rank in range(3)}
    some = {"127.0.1.2:8000": "some-rank-0", "127.0.1.2:8002": "some-rank-2"}
    until(lambda: endpoints(picker) == {**ranks, **some}, within=IN_FORCE_S, what="those ports")
    namespace.kubectl("annotate", "pod", "some", f"{key}=8001", "--overwrite")
    until(lambda: endpoints(picker) == {**ranks, "127.0.1.2:8001": "some-rank-1"}, within=IN_FORCE_S, what="another")
    for pod in ("all", "some"):
        namespace.gone(pod)


def test_annotations_are_in_force_at_once_and_without_a_restart(namespace, pick):
    namespace.apply(v1(8000))
    picker = pick()
    assert setting(picker, STRATEGY) == ("DEFAULT", "default")
    for value in ("PREFIX_CACHE", "DEFAULT", "PREFIX_CACHE"):
        namespace.kubectl("annotate", "inferencepool/pool", f"{STRATEGY}={value}", "--overwrite")
        until(lambda: setting(picker, STRATEGY) == (value, "annotation"), within=IN_FORCE_S, what=value)
    namespace.kubectl("annotate", "inferencepool/pool", f"{QUEUE_TTL}=soon", "--overwrite")
    until(lambda: picker.log_lines(QUEUE_TTL, "soon", "expected"), within=IN_FORCE_S, what="the fault is told")
    assert setting(picker, QUEUE_TTL) == ("30s", "last valid")
    namespace.kubectl("annotate", "inferencepool/pool", f"{STRATEGY}-")
    until(lambda: setting(picker, STRATEGY) == ("DEFAULT", "default"), within=IN_FORCE_S, what="the default")


def test_a_selector_that_changes_selects_other_pods(namespace, pick):
    namespace.apply(v1(8000))
    namespace.pod("one", "127.0.1.1")
    namespace.pod("other", "127.0.1.2")
    namespace.kubectl("label", "pod", "other", "app=other", "--overwrite")
    picker = pick()
    until(lambda: list(endpoints(picker)) == ["127.0.1.1:8000"], within=IN_FORCE_S, what="one")
    namespace.apply(v1(8000, selector={"matchLabels": {"app": "other"}}))
    until(lambda: list(endpoints(picker)) == ["127.0.1.2:8000"], within=IN_FORCE_S, what="the other")
    for pod in ("one", "other"):
        namespace.gone(pod)


def test_objectives_models_and_rewrites_of_the_namespace_count(namespace, pick, servers):
    (server,) = servers("127.0.1.1")
    namespace.apply(v1(server.port))
    namespace.pod("only", "127.0.1.1")
    picker = pick()

    reference = {"name": "pool", "group": "inference.networking.k8s.io", "kind": "InferencePool"}
    model = {"modelName": "food", "criticality": "Critical", "poolRef": reference}
    model["targetModels"] = [{"name": "tiny", "weight": 1}]
    namespace.apply({"apiVersion": X, "kind": "InferenceModel", "metadata": {"name": "food"}, "spec": model})
    until(lambda: model_of(picker, "food") == "tiny", within=IN_FORCE_S, what="the model is known")
    namespace.kubectl("delete", "inferencemodel", "food")
    until(lambda: model_of(picker, "food") != "tiny", within=IN_FORCE_S, what="it is not any more")
    matches = {"matches": [{"model": {"type": "Exact", "value": "old"}}], "targets": [{"modelRewrite": "tiny", "weight": 1}]}
    spec = {"poolRef": reference, "rules": [matches]}
    namespace.apply({"apiVersion": X, "kind": "InferenceModelRewrite", "metadata": {"name": "r"}, "spec": spec})
    until(lambda: model_of(picker, "old") == "tiny", within=IN_FORCE_S, what="the rewrite counts")
    namespace.gone("only")


def model_of(picker, model: str) -> str | None:
    """The model that a request for `model` goes on with; None where it is refused."""
    outcome = picker.ask(BODY.replace(b'"tiny"', f'"{model}"'.encode()))
    if outcome.immediate is not None:
        return None
    return json.loads(b"".join(chunk.body for chunk in outcome.body_chunks))["model"]


def test_a_pool_of_v1alpha2_is_found_by_its_group(namespace, pick):
    namespace.apply(pool_v1alpha2(port=8000))
    namespace.pod("only", "127.0.1.1")
    picker = pick("--pool-group", "inference.networking.x-k8s.io")
    until(lambda: list(endpoints(picker)) == ["127.0.1.1:8000"], within=IN_FORCE_S, what="its pod")
    namespace.gone("only")


def test_a_pool_that_is_not_there_yet_or_not_any_more(namespace, pick):
    picker = pick()
    assert health(picker) == "NOT_SERVING"
    assert picker.admin_get("/readyz").status_code == 503
    assert picker.ask().status == 503
    namespace.apply(v1(8000))
    namespace.pod("only", "127.0.1.1")
    until(lambda: health(picker) == "SERVING" and picker.ask().status == 200, within=5, what="it came")
    namespace.kubectl("delete", "inferencepool", "pool")
    until(lambda: health(picker) == "NOT_SERVING" and picker.ask().status == 503, within=IN_FORCE_S, what="it went")
    assert picker.log_lines("InferencePool", "is gone")
    namespace.apply(v1(8000))
    until(lambda: health(picker) == "SERVING" and picker.ask().status == 200, within=IN_FORCE_S, what="it is back")
    namespace.gone("only")


def test_an_api_server_that_is_away_harms_no_request_and_is_caught_up_with(namespace, cluster, pick, tmp_path):
    relay = Relay(cluster.address())
    namespace.apply(v1(8000))
    namespace.pod("only", "127.0.1.1")
    picker = pick(kubeconfig=cluster.through(relay, tmp_path / "through"))
    assert picker.ask().status == 200
    lists = cluster.requests("LIST", "inferencepools")
    relay.cut()
    until(lambda: len(picker.log_lines("stays in force")) >= 2, within=5, what="that is told")
    namespace.kubectl("annotate", "inferencepool/pool", f"{STRATEGY}=PREFIX_CACHE")
    holds(lambda: picker.ask().status == 200 and health(picker) == "SERVING", over=8, what="requests are picked for")
    assert len(picker.log_lines("stays in force")) <= 5, "once for each kind, not for each try"
    relay.restore()
    until(lambda: setting(picker, STRATEGY)[0] == "PREFIX_CACHE", within=20, what="what changed meanwhile")
    assert picker.log_lines("InferencePools", "read again")
    assert cluster.requests("LIST", "inferencepools") - lists <= 2, "resumed, or listed once"
    namespace.gone("only")


def test_watches_that_break_now_and_then_are_resumed_and_not_told(namespace, cluster, pick, tmp_path):
    relay = Relay(cluster.address())
    namespace.apply(v1(8000))
    picker = pick(kubeconfig=cluster.through(relay, tmp_path / "through"))
    lists = cluster.requests("LIST", "pods")
    for number in range(5):
        relay.reset()
        namespace.kubectl("annotate", "inferencepool/pool", f"{QUEUE_TTL}={number + 1}s", "--overwrite")
        until(lambda: setting(picker, QUEUE_TTL)[0] == f"{number + 1}s", within=5, what="it is seen all the same")
    assert cluster.requests("LIST", "pods") - lists <= 5


def test_what_rbac_denies_is_said_plainly_and_with_what_to_allow(namespace, cluster, pick, tmp_path):
    namespace.apply(v1(8000))
    picker = pick(kubeconfig=cluster.as_account(namespace.name, "nobody", tmp_path / "nobody"))
    until(lambda: picker.log_lines("RBAC denies", "inferencepools", "allow get, list and watch"), within=5, what="it is told")
    assert health(picker) == "NOT_SERVING"
    rights = ["get,list,watch", "--resource=inferencepools.inference.networking.k8s.io,pods", "-n", namespace.name]
    namespace.kubectl("create", "role", "reader", "--verb", *rights)
    namespace.kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace.name}:nobody")
    until(lambda: health(picker) == "SERVING", within=20, what="it may read now")
    assert picker.log_lines("RBAC denies", "inferencemodels"), "what is not needed may stay denied"


def test_kinds_that_are_installed_later_count_from_then_on(namespace, cluster, pick):
    crd = "inferencemodels.inference.networking.x-k8s.io"
    cluster.kubectl("delete", "crd", crd)
    namespace.apply(v1(8000))
    namespace.pod("only", "127.0.1.1")
    picker = pick()
    assert picker.ask().status == 200
    assert picker.log_lines("InferenceModel", "not installed")
    cluster.apply_crds()
    reference = {"name": "pool", "group": "inference.networking.k8s.io", "kind": "InferencePool"}
    spec = {"modelName": "food", "poolRef": reference, "targetModels": [{"name": "tiny", "weight": 1}]}
    namespace.apply({"apiVersion": X, "kind": "InferenceModel", "metadata": {"name": "food"}, "spec": spec})
    until(lambda: model_of(picker, "food") == "tiny", within=30, what="the model is known")
    namespace.gone("only")


def test_bad_objects_change_nothing_for_others(namespace, pick):
    namespace.apply(v1(8000))
    namespace.pod("only", "127.0.1.1")
    picker = pick()
    for key in ("inference.networking.x-k8s.io/routing-stratgy", STRATEGY):
        namespace.kubectl("annotate", "inferencepool/pool", f"{key}=nonsense")
    until(lambda: picker.log_lines("routing-stratgy"), within=IN_FORCE_S, what="the key is told")
    assert picker.ask().status == 200
    namespace.gone("only")


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--pool-name", "p", "--pool-group", "example.com"], "--pool-group"),
        (["--pool-name", "p", "--kubeconfig", "/nonexistent"], "/nonexistent"),
        (["--pool-name", "p", "--kubeconfig", "/dev/null"], "/dev/null"),
        (["--pool-name", "p"], "--kubeconfig"),
        ([], "--pool-name"),
    ],
    ids=["group", "no file", "not one", "no cluster", "no pool"],
)
def test_what_cannot_work_is_an_error_at_the_start(flags, said):
    outcome = run("epp", "--bind", "127.0.0.1", "--grpc-port", "0", "--grpc-health-port", "0", "--metrics-port", "0", *flags)
    assert outcome.returncode == 2 and said in outcome.stderr, outcome


def test_a_first_start_without_an_api_server_is_not_the_end(namespace, cluster, pick, tmp_path):
    relay = Relay(cluster.address())
    kubeconfig = cluster.through(relay, tmp_path / "through")
    relay.cut()
    began = time.monotonic()
    picker = pick(kubeconfig=kubeconfig)
    assert time.monotonic() - began < 15
    assert health(picker) == "NOT_SERVING"
    namespace.apply(v1(8000))
    relay.restore()
    until(lambda: health(picker) == "SERVING", within=20, what="it is found")
