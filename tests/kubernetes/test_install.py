"""`pointsman controller --install`, the Helm chart, the definitions of kinds, and what they grant, on a real API server."""

import json
import os
import subprocess

import pytest
import yaml

from harness.cluster import CACHE, CONTROLLERS, CRDS, Cluster, installation
from harness.manifests import pool_v1, pool_v1alpha2
from harness.pointsman import ROOT, run
from harness.wait import until

HELM = os.environ.get("POINTSMAN_HELM", CACHE / "helm/helm")
X = "inference.networking.x-k8s.io/v1alpha2"
PENDING = [{"lastTransitionTime": "1970-01-01T00:00:00Z", "message": "Waiting for controller", "reason": "Pending", "status": "Unknown"}]


@pytest.fixture
def installed(cluster: Cluster):
    """Applied as it is printed, by the kubectl of somebody who reads the README; taken away but for the kinds."""
    text = run("controller", "--install").stdout
    said = cluster.kubectl("apply", "--validate=strict", "-f", "-", stdin=text)
    yield said
    for document in yaml.safe_load_all(text):
        if document["kind"] not in ("Namespace", "CustomResourceDefinition"):
            cluster.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=yaml.safe_dump(document))


def test_what_is_printed_is_applied_as_it_stands_and_the_controller_gets_ready(cluster, installed):
    assert len(installed.splitlines()) == 17
    cluster.kubectl("rollout", "status", "deployment/pointsman-controller", "-n", CONTROLLERS, "--timeout=60s")
    text = run("controller", "--install").stdout

    def versions() -> list[tuple]:
        there = json.loads(cluster.kubectl("get", "-o", "json", "-f", "-", stdin=text))["items"]
        about = [(object["kind"], object["metadata"]) for object in there]
        return [(kind, of["name"], of.get("generation") or of["resourceVersion"]) for kind, of in about]

    before = versions()
    cluster.kubectl("apply", "-f", "-", stdin=text)
    assert versions() == before, "applied once more it changes nothing"


def test_flags_reach_the_controller_that_is_installed():
    flags = ("--epp-image", "registry.example/p:1", "--pickers", "managed", "--allow-overlay", "deployment.spec.paused")
    (deployment,) = installation("Deployment", flags=(*flags, "--gateway-namespace", "edge", "--log", "debug"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/p:1"
    expected = {"--epp-image=registry.example/p:1", "--pickers=managed", "--allow-overlay=deployment.spec.paused"}
    assert expected | {"--leader-elect", "--gateway-namespace=edge", "--log=debug"} <= set(container["args"])
    namespaces = {document["metadata"]["name"] for document in installation("Namespace", flags=("--gateway-namespace", "edge"))}
    assert namespaces == {CONTROLLERS, "edge"}


def test_the_chart_makes_what_is_printed():
    """With its defaults, and with values in the place of flags."""
    cases = (
        ((), ()),
        (("--pickers", "managed"), ("pickers=managed",)),
        (("--allow-overlay", "deployment.spec.paused", "--allow-overlay", "service.spec.type"), ("allowOverlay={deployment.spec.paused,service.spec.type}",)),
        (("--gateway-namespace", "edge", "--epp-image", "r/p:1"), ("gatewayNamespace=edge", "image=r/p:1")),
        (("--epp-mode", "shared", "--log", "debug"), ("eppMode=shared", "log=debug")),
    )
    for flags, values in cases:
        sets = [word for value in values for word in ("--set", value)]
        command = [HELM, "template", "pointsman", ROOT / "charts/pointsman", "--namespace", CONTROLLERS, "--include-crds", "--kube-version", "1.34.4", *sets]
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert outcome.returncode == 0, outcome.stderr
        chart = [document for document in yaml.safe_load_all(outcome.stdout) if document]
        printed = [document for document in installation(flags=flags) if document["kind"] != "Namespace"]
        assert sorted(map(json.dumps, chart)) == sorted(map(json.dumps, printed))


def test_the_chart_is_sound():
    outcome = subprocess.run([HELM, "lint", "--strict", ROOT / "charts/pointsman"], capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0, outcome.stdout


def without_prose(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_prose(one) for key, one in value.items() if key != "description" or not isinstance(one, str)}
    return [without_prose(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("file", sorted(CRDS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_definitions_of_kinds_are_those_that_upstream_published(file):
    """All but their prose: names, limits, defaults, rules, columns. Of which release they are says the pool of v1 alone."""
    published = without_prose(yaml.safe_load(file.read_text()))
    name = published["metadata"]["name"]
    (ours,) = [crd for crd in installation("CustomResourceDefinition") if crd["metadata"]["name"] == name]
    for of in (published, ours):
        of.pop("status", None)
        annotations = of["metadata"].setdefault("annotations", {})
        annotations.pop("controller-gen.kubebuilder.io/version", None)
        if name.endswith("x-k8s.io"):
            annotations.pop("inference.networking.k8s.io/bundle-version", None)
        annotations or of["metadata"].pop("annotations")
    assert without_prose(ours) == published


def model(**spec: object) -> dict:
    reference = {"name": "pool"}
    return {"apiVersion": X, "kind": "InferenceModel", "metadata": {"name": "m"}, "spec": {"modelName": "m", "poolRef": reference, **spec}}


def rewrite(*rules: dict) -> dict:
    spec = {"poolRef": {"name": "pool"}, "rules": list(rules)}
    return {"apiVersion": X, "kind": "InferenceModelRewrite", "metadata": {"name": "r"}, "spec": spec}


def objective(**spec: object) -> dict:
    return {"apiVersion": X, "kind": "InferenceObjective", "metadata": {"name": "o"}, "spec": {"poolRef": {"name": "pool"}, **spec}}


def older(**spec: object) -> dict:
    pool = pool_v1alpha2()
    pool["spec"].update(spec)
    return pool


def targets(count: int, **more: object) -> list[dict]:
    return [{"name": f"t{number}", **more} for number in range(count)]


REFUSED = {
    "eleven targets": (model(targetModels=targets(11)), "10 items"),
    "weights for some": (model(targetModels=targets(1) + targets(1, weight=1)), "Weights should be set for all models, or none"),
    "weight of nothing": (model(targetModels=targets(1, weight=0)), "greater than or equal to 1"),
    "weight beyond all": (model(targetModels=targets(1, weight=1_000_001)), "less than or equal to 1000000"),
    "criticality": (model(criticality="Urgent"), '"Critical", "Standard", "Sheddable"'),
    "a long model name": (model(modelName="m" * 257), "256"),
    "a model of no pool": (model(poolRef={}), "spec.poolRef.name: Required"),
    "null for an optional field": (model(criticality=None, targetModels=[{"name": "t", "weight": "1"}]), "must be of type integer"),
    "a rule without targets": (rewrite({"targets": []}), "at least 1 items"),
    "a match that is no word": (rewrite({"matches": [{"model": {"type": "Regex", "value": "m"}}]}), '"Exact"'),
    "a match of nothing": (rewrite({"matches": [{"model": {"value": ""}}]}), "at least 1 chars"),
    "rules that are left out": ({**rewrite(), "spec": {"poolRef": {"name": "pool"}}}, "spec.rules: Required"),
    "priority that is no number": (objective(priority="high"), "must be of type integer"),
    "a port beyond all": (older(targetPortNumber=65536), "less than or equal to 65535"),
    "a label that is none": (older(selector={"app": "-"}), "spec.selector.app"),
    "a failure mode": (older(extensionRef={"name": "epp", "failureMode": "Open"}), '"FailOpen", "FailClose"'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_api_server_refuses_what_upstream_s_would_and_check_too(name, cluster, tmp_path):
    document, said = REFUSED[name]
    assert said in cluster.refused("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(document))
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump(document))
    assert run("check", "-f", file).returncode == 1, "what a cluster refuses is a fault offline too"


def test_what_is_left_out_gets_its_default(cluster, namespace):
    namespace.apply(model(), objective(), rewrite({"matches": [{"model": {"value": "m"}}], "targets": [{"modelRewrite": "other"}]}), older())
    spec = {kind: cluster.get(kind, name, "-n", namespace.name)["spec"] for kind, name in (("inferencemodel", "m"), ("inferenceobjective", "o"), ("inferencemodelrewrite", "r"))}
    assert spec["inferencemodel"]["poolRef"] == {"name": "pool", "group": "inference.networking.x-k8s.io", "kind": "InferencePool"}
    assert spec["inferenceobjective"]["poolRef"] == {"name": "pool", "group": "inference.networking.k8s.io", "kind": "InferencePool"}
    assert spec["inferencemodelrewrite"]["rules"][0]["matches"] == [{"model": {"type": "Exact", "value": "m"}}]
    pool = cluster.get("xinfpool", "pool", "-n", namespace.name)
    assert pool["spec"]["extensionRef"] == {"name": "epp", "group": "", "kind": "Service", "failureMode": "FailClose"}
    (parent,) = pool["status"]["parent"]
    assert parent == {"parentRef": {"group": "gateway.networking.k8s.io", "kind": "Status", "name": "default"}, "conditions": [{**PENDING[0], "type": "Accepted"}]}


def test_a_model_s_name_cannot_change(namespace, cluster):
    namespace.apply(model())
    said = cluster.refused("patch", "inferencemodel", "m", "-n", namespace.name, "--type=merge", "-p", '{"spec":{"modelName":"n"}}')
    assert "modelName is immutable" in said


def can(cluster: Cluster, account: str, *what: object) -> bool:
    return cluster._kubectl("auth", "can-i", f"--as=system:serviceaccount:{account}", *what).stdout.strip() == "yes"


def test_a_picker_may_read_what_it_needs_and_nothing_else(cluster, namespace, gateways, control, pick, tmp_path):
    """The picker runs as what the controller made for it, the controller as what the installation made for it."""
    namespace.apply(pool_v1(), pool_v1(name="other"))
    namespace.pod("only", "127.0.1.1")
    control()
    labels = ("-l", f"inference-pool=pool,inference-pool-namespace={namespace.name}")
    found = lambda: cluster.get("serviceaccount", "-n", gateways.name, *labels)["items"]
    (account,) = until(found, within=5, what="its account")
    name = account["metadata"]["name"]
    until(lambda: cluster.get("rolebinding", "-n", namespace.name, *labels)["items"], within=5, what="its rights")
    picker = pick(kubeconfig=cluster.with_token_of(gateways.name, name, tmp_path / "picker.kubeconfig"))
    until(lambda: picker.ask().status == 200, within=10, what="it serves")
    assert not picker.log_lines("RBAC denies")
    account = f"{gateways.name}:{name}"
    pools = "inferencepools.inference.networking.k8s.io"
    here, elsewhere = ("-n", namespace.name), ("-n", "default")
    assert can(cluster, account, "watch", "pods", *here) and can(cluster, account, "get", f"{pools}/pool", *here)
    for what in (
        ("get", "secrets", *here),
        ("get", "configmaps", *here),
        ("get", f"{pools}/other", *here),
        ("patch", f"{pools}/pool", *here),
        ("delete", "pods", *here),
        ("create", "pods", "--subresource=exec", *here),
        ("list", "pods", *elsewhere),
        ("list", "pods", "-n", gateways.name),
        ("list", "pods", "-A"),
    ):
        assert not can(cluster, account, *what), what
    namespace.gone("only")


def test_the_controller_may_make_pickers_and_nothing_else(cluster, gateways, tmp_path):
    cluster.as_controller(gateways.name, tmp_path / "controller")
    account = f"{CONTROLLERS}:pointsman-controller"
    assert can(cluster, account, "patch", "deployments.apps", "-n", gateways.name)
    for what in (
        ("get", "secrets", "-A"),
        ("patch", "deployments.apps", "-n", "default"),
        ("create", "pods", "-n", gateways.name),
        ("create", "clusterroles.rbac.authorization.k8s.io"),
        ("escalate", "roles.rbac.authorization.k8s.io", "-n", "default"),
        ("bind", "roles.rbac.authorization.k8s.io", "-n", "default"),
        ("impersonate", "serviceaccounts", "-n", "default"),
        ("patch", "inferencepools.inference.networking.k8s.io", "-n", "default"),
        ("patch", "configmaps", "-n", "default"),
    ):
        assert not can(cluster, account, *what), what
