"""`pointsman controller`: pools in, pickers out (annotations.md, sections 3 and 4), on a real API server, with kubectl."""

import json
import os
import random
import time
from collections import Counter

import pytest
import yaml

from harness.api_faults import ApiFaults
from harness.cluster import Namespace
from harness.manifests import OVERLAY, QUEUE_TTL, STRATEGY, pool_v1, pool_v1alpha2
from harness.wait import holds, until

MADE_S = 5
"""Within this what was asked for is there, on this machine and under load."""
KILLS = int(os.environ.get("POINTSMAN_KILLS", "30"))
CONTAINER = "inference-gateway-ext-proc"
KINDS = ("deployment", "service", "poddisruptionbudget", "serviceaccount")


class House:
    """A pool's namespace and the gateway's."""

    def __init__(self, namespace: Namespace, gateways: Namespace) -> None:
        self.pools, self.gateways, self.cluster = namespace, gateways, namespace.cluster

    def labels(self, pool: str = "pool") -> str:
        return f"inference-pool={pool},inference-pool-namespace={self.pools.name}"

    def made(self, kind: str, pool: str = "pool") -> list[dict]:
        of = self.pools if kind in ("role", "rolebinding") else self.gateways
        return self.cluster.get(kind, "-n", of.name, "-l", self.labels(pool))["items"]

    def one(self, kind: str = "deployment", pool: str = "pool") -> dict:
        (found,) = until(lambda: self.made(kind, pool), within=MADE_S, what=f"a {kind} of {pool}")
        return found

    def spec(self) -> dict:
        return self.one()["spec"]

    def picker(self) -> dict:
        (container,) = self.spec()["template"]["spec"]["containers"]
        return container

    def pool(self, kind: str = "inferencepools.inference.networking.k8s.io") -> dict:
        return self.cluster.get(kind, "pool", "-n", self.pools.name)

    def condition(self, of: str) -> dict:
        status = self.pool().get("status", {})
        entries = [entry for entry in status.get("parents", []) if entry["parentRef"].get("kind") == "Deployment"]
        return next((one for entry in entries for one in entry["conditions"] if one["type"] == of), {})

    def events(self, reason: str, kind: str = "InferencePool") -> list[dict]:
        found = self.cluster.get("events", "-n", self.pools.name, "--field-selector", f"reason={reason},involvedObject.kind={kind}")
        return found["items"]

    def overlay(self, name: str = "shape", **data: object) -> None:
        """The ConfigMap as it is from now on."""
        data = {key: value if isinstance(value, str) else yaml.safe_dump(value) for key, value in data.items()}
        self.pools.kubectl("delete", "configmap", name, "--ignore-not-found")
        self.pools.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})


@pytest.fixture
def house(namespace, gateways) -> House:
    return House(namespace, gateways)


def test_a_pool_gets_a_picker_that_gets_ready_and_goes_with_it(house, control):
    control()
    house.pools.apply(pool_v1())
    for kind in (*KINDS, "role", "rolebinding"):
        assert len([house.one(kind)]) == 1
    assert house.picker()["name"] == CONTAINER
    house.gateways.kubectl("rollout", "status", "deployment", "-l", house.labels(), "--timeout=60s")
    ready = until(lambda: house.condition("PickerReady").get("status") == "True", within=MADE_S, what="its status says so")
    assert ready
    assert house.condition("SettingsValid")["status"] == house.condition("OverlayApplied")["status"] == "True"
    house.pools.kubectl("delete", "inferencepool", "pool")
    for kind in (*KINDS, "role", "rolebinding"):
        until(lambda kind=kind: not house.made(kind), within=20, what=f"its {kind} is gone")


def test_a_pool_of_v1alpha2_too_and_one_of_v1_rules(house, control):
    control()
    house.pools.apply(pool_v1alpha2())
    assert "--pool-group=inference.networking.x-k8s.io" in house.picker()["args"]
    ours = lambda: [one for one in house.pool("xinfpool").get("status", {}).get("parent", []) if one["parentRef"]["kind"] == "Deployment"]
    until(ours, within=MADE_S, what="its status says how it went")
    house.pools.apply(pool_v1())
    until(lambda: "--pool-group=inference.networking.k8s.io" in house.picker()["args"], within=MADE_S, what="v1 rules")
    until(lambda: house.events("ShadowedByV1"), within=MADE_S, what="that is told")
    until(lambda: not ours(), within=MADE_S, what="and its status says nothing of a picker any more")
    assert len(house.made("deployment")) == 1
    house.pools.kubectl("delete", "inferencepools.inference.networking.k8s.io", "pool")
    until(lambda: "--pool-group=inference.networking.x-k8s.io" in house.picker()["args"], within=MADE_S, what="the other is left")


def test_pools_that_were_there_before_get_theirs(house, control):
    house.pools.apply(pool_v1(name="pool"), pool_v1(name="a.b"), pool_v1(name="a-b"), pool_v1(name="x" * 200))
    control()
    pickers = [house.one(pool=pool)["metadata"]["name"] for pool in ("pool", "a.b", "a-b")]
    assert len(set(pickers)) == 3
    long = "x" * 50
    every = lambda: [made["metadata"] for made in house.cluster.get("deployment", "-n", house.gateways.name)["items"]]
    of_long = lambda: [made for made in every() if made["labels"]["inference-pool"].startswith(long) and made["annotations"]["pointsman.dev/inference-pool"] == f"{house.pools.name}/{'x' * 200}"]
    until(of_long, within=MADE_S, what="one of the long name")


def test_what_somebody_edits_or_deletes_is_put_back_and_a_neighbours_fields_stay(house, control):
    control()
    house.pools.apply(pool_v1())
    name = house.one()["metadata"]["name"]
    for kind in ("deployment", "service", "poddisruptionbudget", "serviceaccount", "role", "rolebinding"):
        before = house.one(kind)["metadata"]["uid"]
        of = house.pools if kind.startswith("role") else house.gateways
        of.kubectl("delete", kind, name)
        until(lambda kind=kind, before=before: [one for one in house.made(kind) if one["metadata"]["uid"] != before], within=MADE_S, what=f"{kind} is back")
    house.gateways.kubectl("set", "image", f"deployment/{name}", f"{CONTAINER}=evil")
    house.gateways.kubectl("scale", f"deployment/{name}", "--replicas=7")
    house.gateways.kubectl("annotate", f"deployment/{name}", "neighbour=here")
    until(lambda: house.picker()["image"].startswith("pointsman:") and house.spec()["replicas"] == 2, within=MADE_S, what="as it should be")
    assert house.one()["metadata"]["annotations"]["neighbour"] == "here"
    house.gateways.kubectl("patch", "service", name, "--type=merge", "-p", '{"spec":{"selector":{"inference-pool":"other"}}}')
    until(lambda: house.one("service")["spec"]["selector"]["inference-pool"] == "pool", within=MADE_S, what="its pods are its own")
    house.pools.kubectl("patch", "role", name, "--type=json", "-p", '[{"op":"add","path":"/rules/-","value":{"apiGroups":[""],"resources":["secrets"],"verbs":["*"]}}]')
    until(lambda: "secrets" not in json.dumps(house.one("role")["rules"]), within=MADE_S, what="no secrets")


def test_an_overlay_is_hot_and_undone_field_by_field(house, control):
    control()
    house.pools.apply(pool_v1({OVERLAY: "shape"}))
    house.one()
    until(lambda: house.events("OverlayMissing"), within=MADE_S, what="it is not there")
    assert house.condition("OverlayApplied")["reason"] == "OverlayMissing"
    house.overlay(
        deployment={"spec": {"replicas": 5, "template": {"spec": {"nodeSelector": {"a": "b"}, "containers": [{"name": CONTAINER, "env": [{"name": "A", "value": "1"}]}]}}}},
        service={"spec": {"sessionAffinity": "ClientIP"}},
        podDisruptionBudget={"spec": {"minAvailable": 1}},
    )
    until(lambda: house.spec()["replicas"] == 5, within=MADE_S, what="it is applied")
    assert house.picker()["env"] == [{"name": "A", "value": "1"}]
    until(lambda: house.one("service")["spec"]["sessionAffinity"] == "ClientIP", within=MADE_S, what="the service too")
    budget = until(lambda: house.one("poddisruptionbudget")["spec"].get("minAvailable") and house.one("poddisruptionbudget"), within=MADE_S, what="and the budget")
    assert "maxUnavailable" not in budget["spec"]
    until(lambda: house.condition("OverlayApplied").get("reason") == "Applied", within=MADE_S, what="its status says so")
    house.pools.kubectl("patch", "configmap", "shape", "--type=merge", "-p", json.dumps({"data": {"deployment": "spec: {template: {spec: {nodeSelector: {a: b}}}}"}}))
    until(lambda: house.spec()["replicas"] == 2 and "env" not in house.picker(), within=MADE_S, what="what is no longer there is undone")
    assert house.spec()["template"]["spec"]["nodeSelector"] == {"a": "b"}
    house.pools.kubectl("annotate", "inferencepool", "pool", f"{OVERLAY}-")
    until(lambda: "nodeSelector" not in house.spec()["template"]["spec"], within=MADE_S, what="the default")
    until(lambda: house.one("service")["spec"]["sessionAffinity"] == "None", within=MADE_S, what="of the service")
    assert house.one("poddisruptionbudget")["spec"]["maxUnavailable"] == 1


def test_a_broken_overlay_leaves_what_runs_and_says_where_and_why(house, control):
    controller = control()
    house.pools.apply(pool_v1({OVERLAY: "shape"}))
    house.overlay(deployment={"spec": {"replicas": 3}})
    until(lambda: house.one()["spec"]["replicas"] == 3, within=MADE_S, what="it is applied")
    for broken, said in [
        ("spec:\n  replicas: many", "deployment:2:13: spec.replicas"),
        ("spec: {template: {spec: {hostNetwork: true}}}", "hostNetwork: it is not open"),
        ("spec: [", "deployment:1:"),
        (f"spec: {{template: {{spec: {{containers: [{{name: {CONTAINER}, resources: {{requests: {{cpu: 5}}, limits: {{cpu: 1}}}}}}]}}}}}}", "the API server rejects it"),
        ("spec:\n  replicas: -1", "deployment:2:3: spec.replicas: the API server rejects it: Invalid value: -1"),
    ]:
        house.pools.kubectl("patch", "configmap", "shape", "--type=merge", "-p", json.dumps({"data": {"deployment": broken, "service": "spec: {sessionAffinity: ClientIP}"}}))
        until(lambda said=said: said in house.condition("OverlayApplied").get("message", ""), within=MADE_S, what=f"the status says {said}")
        for kind in ("InferencePool", "ConfigMap"):
            assert any(said in event["message"] for event in house.events("InvalidOverlay", kind)), kind
        assert house.condition("OverlayApplied")["status"] == "False"
        assert house.spec()["replicas"] == 3
        assert house.one("service")["spec"]["sessionAffinity"] == "None", "no part of it"
    # Who breaks an overlay does not keep what is edited or deleted by hand from being put back.
    deployment = house.one()["metadata"]["name"]
    house.gateways.kubectl("set", "image", f"deployment/{deployment}", f"{CONTAINER}=evil:1")
    until(lambda: house.picker()["image"] != "evil:1", within=MADE_S, what="the image is put back")
    house.gateways.kubectl("delete", "deployment", deployment)
    until(lambda: [made["spec"]["replicas"] for made in house.made("deployment")] == [3], within=MADE_S, what="as the last good overlay has it")
    controller.close()
    until(control().is_listed, within=10, what="another one has seen all of it")
    holds(lambda: house.spec()["replicas"] == 3, over=2, what="what runs, after a restart too")
    house.overlay(deployment={"spec": {"replicas": 4}})
    until(lambda: house.spec()["replicas"] == 4, within=MADE_S, what="it is mended")
    until(lambda: house.condition("OverlayApplied")["status"] == "True", within=MADE_S, what="and its status says so")


def test_an_overlay_s_name_that_cannot_be_one_leaves_the_last_in_force(house, control):
    control()
    house.overlay(deployment={"spec": {"replicas": 3}})
    house.pools.apply(pool_v1({OVERLAY: "shape"}))
    until(lambda: house.one()["spec"]["replicas"] == 3, within=MADE_S, what="it is applied")
    house.pools.annotate("inferencepool/pool", **{OVERLAY: "shape/"})
    until(lambda: house.condition("SettingsValid")["status"] == "False", within=MADE_S, what="it is told")
    holds(lambda: house.spec()["replicas"] == 3, over=2, what="the last valid one")


def test_a_pool_that_begins_with_a_broken_overlay_gets_the_default(house, control):
    house.overlay(deployment="spec: {replicas: many}")
    control()
    house.pools.apply(pool_v1({OVERLAY: "shape"}))
    assert house.one()["spec"]["replicas"] == 2
    until(lambda: house.condition("OverlayApplied").get("status") == "False", within=MADE_S, what="that is told")


def test_an_administrator_opens_fields(house, control):
    control("--allow-overlay", "deployment.spec.template.spec.dnsPolicy")
    house.overlay(deployment={"spec": {"template": {"spec": {"dnsPolicy": "Default"}}}})
    house.pools.apply(pool_v1({OVERLAY: "shape"}))
    assert house.spec()["template"]["spec"]["dnsPolicy"] == "Default"


def test_what_is_wrong_with_annotations_is_an_event_and_a_condition(house, control):
    control()
    house.pools.apply(pool_v1({STRATEGY: "PREFIX_CACHE"}))
    until(lambda: house.condition("SettingsValid").get("status") == "True", within=MADE_S, what="all is well")
    house.pools.kubectl("annotate", "inferencepool", "pool", f"{QUEUE_TTL}=soon", "inference.networking.x-k8s.io/routing-stratgy=X")
    until(lambda: house.condition("SettingsValid").get("status") == "False", within=MADE_S, what="it is not")
    (invalid,) = house.events("InvalidAnnotation")
    assert QUEUE_TTL in invalid["message"] and "soon" in invalid["message"] and invalid["type"] == "Warning"
    (unknown,) = house.events("UnknownAnnotation")
    assert "routing-strategy" in unknown["message"], "the nearest known one"
    holds(lambda: sum(event["count"] for event in house.events("InvalidAnnotation")) == 1, over=3, what="it is told once")
    described = house.pools.kubectl("describe", "inferencepool", "pool")
    assert "SettingsValid" in described and "InvalidAnnotation" in described


def test_hundreds_of_wrong_annotations_are_told_by_few_events(house, control):
    control()
    wrong = {f"inference.networking.x-k8s.io/nonsense-{number}": "x" for number in range(200)}
    house.pools.apply(pool_v1(wrong))
    until(lambda: house.condition("SettingsValid").get("status") == "False", within=MADE_S, what="it is told")
    assert len(house.events("UnknownAnnotation")) == 16
    message = house.condition("SettingsValid")["message"]
    *shown, more = message.splitlines()
    assert "nonsense-0" in shown[0] and more == f"… and {200 - len(shown)} more"


def test_whose_picker_it_is(house, control):
    """By default the pool's where the Service that it names is there."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "epp"}, "spec": {"ports": [{"port": 9002}]}}
    house.pools.apply(service)
    pool = pool_v1(endpointPickerRef={"name": "epp", "port": {"number": 9002}})
    house.pools.apply(pool)
    controller = control()
    until(controller.is_listed, within=10, what="it has looked")
    holds(lambda: not house.made("deployment"), over=2, what="the pool's own is used")
    house.pools.kubectl("delete", "service", "epp")
    house.one()
    (event,) = until(lambda: house.events("PickerManaged"), within=MADE_S, what="the change is told")
    assert f"Service {house.pools.name}/epp, which is not there" in event["message"]
    house.pools.apply(service)
    (event,) = until(lambda: house.events("PickerSelfHosted"), within=MADE_S, what="that is told")
    assert f"Service {house.pools.name}/epp" in event["message"]
    until(lambda: not house.made("deployment"), within=30, what="ours is taken away")
    assert house.condition("PickerReady") == {}, "our entry goes with it"
    house.pools.apply(pool_v1({QUEUE_TTL: "soon"}, endpointPickerRef={"name": "epp", "port": {"number": 9002}}))
    until(lambda: house.events("InvalidAnnotation"), within=MADE_S, what="its annotations are judged all the same")
    house.pools.apply({**service, "metadata": {"name": "other"}}, pool_v1(endpointPickerRef={"name": "other", "port": {"number": 9002}}))
    until(lambda: len(house.events("PickerSelfHosted")) == 2, within=MADE_S, what="another Service is told, too")
    house.pools.apply(pool)
    controller.close()
    controller = control("--pickers", "managed")
    house.one()
    controller.close()
    house.pools.kubectl("delete", "service", "epp")
    control("--pickers", "self-hosted")
    until(lambda: not house.made("deployment"), within=10, what="never ours")


def test_a_quiet_cluster_is_not_written_to_and_a_restart_writes_nothing(house, control):
    house.pools.apply(pool_v1({OVERLAY: "shape", QUEUE_TTL: "soon"}), pool_v1(name="other"))
    house.overlay(deployment={"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": CONTAINER, "resources": {"limits": {"cpu": 4, "memory": "1024Mi"}}}]}}}})
    controller = control()
    for pool in ("pool", "other"):
        house.one(pool=pool)
        house.gateways.kubectl("rollout", "status", "deployment", "-l", house.labels(pool), "--timeout=60s")
    until(lambda: house.condition("PickerReady").get("status") == "True", within=MADE_S, what="it is ready")

    def written() -> tuple[float, list[str]]:
        """Applies of anybody, and which version of everything of ours there is."""
        kinds = "deployments,services,poddisruptionbudgets,serviceaccounts,roles,rolebindings,events,inferencepools"
        objects = (house.cluster.get(kinds, "-n", of.name)["items"] for of in (house.pools, house.gateways))
        ours = (one for some in objects for one in some if one["kind"] != "Event" or one["reportingComponent"].startswith("pointsman"))
        versions = sorted(" ".join([one["kind"], one["metadata"]["name"], one["metadata"]["resourceVersion"]]) for one in ours)
        return sum(house.cluster.requests("APPLY", kind) for kind in kinds.split(",")), versions

    def at_rest() -> bool:
        """Whether also Kubernetes' own controllers are done."""
        before = written()
        time.sleep(4)
        return written() == before

    until(at_rest, within=40, what="all is at rest")
    before = written()
    time.sleep(15)
    assert set(written()[1]) ^ set(before[1]) == set()
    assert written() == before
    controller.close()
    controller = control()
    until(controller.is_listed, within=10, what="it has seen all")
    time.sleep(5)
    assert set(written()[1]) ^ set(before[1]) == set()
    assert written() == before


def test_killed_at_any_write_again_and_again_it_ends_where_it_would_have(house, control, cluster, tmp_path):
    """The first to the ninth write of what it has to do, before that is done or after; `POINTSMAN_KILLS` says how often."""
    chance, met = random.Random(7), Counter()
    faults = ApiFaults(cluster, tmp_path)
    try:
        for turn in range(KILLS):
            match turn % 5:
                case 0:
                    house.pools.apply(pool_v1({OVERLAY: "shape", QUEUE_TTL: "soon"}))
                case 1 | 2:
                    data = {"deployment": json.dumps({"spec": {"replicas": turn % 4}}), "pdb": "spec: {maxUnavailable: 1}"}
                    house.pools.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shape"}, "data": data})
                case 3:
                    house.gateways.kubectl("delete", "deployment,service", "-l", house.labels(), "--wait=false")
                case _:
                    house.pools.kubectl("delete", "inferencepool", "pool", "--ignore-not-found", "--wait=false")
            controller = control(kubeconfig=faults.kubeconfig)
            number, done = chance.randint(1, 9), chance.random() < 0.5
            faults.kill_at_write(number, done, controller.process.kill)
            deadline = time.monotonic() + 0.8
            while controller.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            met["at a write" if controller.process.poll() is not None else "at rest"] += 1
            controller.close()
    finally:
        faults.close()
    assert met["at a write"] > KILLS / 2, met
    house.pools.apply(pool_v1({OVERLAY: "shape"}))
    house.overlay(deployment={"spec": {"replicas": 3}})
    control()
    until(lambda: house.spec()["replicas"] == 3, within=10, what="what was asked for last")
    for kind in (*KINDS, "role", "rolebinding"):
        assert len(house.made(kind)) == 1
    default = {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow"}
    assert {key: house.one("poddisruptionbudget")["spec"][key] for key in default} == default
    house.pools.kubectl("delete", "inferencepool", "pool")
    for kind in (*KINDS, "role", "rolebinding"):
        until(lambda kind=kind: not house.made(kind), within=20, what=f"no {kind} is left")


def test_a_version_of_pools_that_is_installed_later_counts_from_then_on(house, control, cluster):
    cluster.kubectl("delete", "crd", "inferencepools.inference.networking.x-k8s.io")
    controller = control()
    until(controller.is_listed, within=10, what="the other version is enough")
    assert controller.log_lines("inference.networking.x-k8s.io/v1alpha2", "not installed")
    cluster.apply_crds()
    house.pools.apply(pool_v1alpha2())
    (made,) = until(lambda: house.made("deployment"), within=30, what="it has a picker")
    assert "--pool-group=inference.networking.x-k8s.io" in made["spec"]["template"]["spec"]["containers"][0]["args"]


def test_its_metrics_tell_what_it_does(house, control):
    controller = control()
    house.pools.apply(pool_v1({QUEUE_TTL: "soon"}), pool_v1(name="other"))
    house.one("deployment", "other")
    until(lambda: controller.metrics().series("pointsman_controller_pending") == {(): 0}, within=MADE_S, what="nothing is left to do")
    page = controller.metrics()
    one = lambda name: page.series(f"pointsman_controller_{name}")  # noqa: E731
    assert one("leads") == {(): 1} and one("failing") == {(): 0} and one("watches_failing") == {(): 0}
    assert one("pools")[(("version", "v1"),)] >= 2
    assert one("reconciles_total")[(("of", "picker"), ("outcome", "done"))] >= 2
    written = {dict(labels)["kind"]: count for labels, count in one("writes_total").items()}
    assert written["Deployment"] >= 2 and written["Role"] >= 2 and written["Status"] >= 2 and written["Event"] >= 1
    assert one("reconcile_duration_seconds_count")[()] >= 2


def test_of_models_that_claim_one_name_the_oldest_has_it(house, control):
    control()
    house.pools.apply(pool_v1())

    def model(name: str, claims: str) -> dict:
        spec = {"modelName": claims, "poolRef": {"name": "pool", "group": "inference.networking.k8s.io", "kind": "InferencePool"}}
        return {"apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceModel", "metadata": {"name": name}, "spec": spec}

    def accepted(name: str) -> tuple[str, str]:
        conditions = house.cluster.get("inferencemodel", name, "-n", house.pools.name).get("status", {}).get("conditions", [])
        return next(((one["status"], one["reason"]) for one in conditions if one["type"] == "Accepted"), ("", ""))

    house.pools.apply(model("b-first", "m"))
    time.sleep(1.1)
    house.pools.apply(model("a-second", "m"), model("other", "others"))
    until(lambda: accepted("a-second") == ("False", "ModelNameInUse"), within=MADE_S, what="the second is told")
    until(lambda: accepted("b-first") == accepted("other") == ("True", "Accepted"), within=MADE_S, what="the others are told")
    house.pools.kubectl("delete", "inferencemodel", "b-first")
    until(lambda: accepted("a-second") == ("True", "Accepted"), within=MADE_S, what="it has the name now")


def test_of_several_controllers_one_works_and_another_takes_over(house, control):
    first = control("--leader-elect")
    until(first.is_listed, within=10, what="the first leads")
    second = control("--leader-elect")
    until(lambda: second.log_lines("another controller leads"), within=10, what="the second waits")
    until(lambda: second.admin_get("/readyz").status_code == 200, within=10, what="it answers Envoy Gateway all the same")
    assert second.standing() == "waits"
    house.pools.apply(pool_v1())
    house.one()
    first.terminate()
    assert first.wait(10) == 0
    until(second.is_listed, within=6, what="what is given back is taken at once")
    third = control("--leader-elect")
    second.close()
    until(third.is_listed, within=25, what="one that was killed is waited for")
    house.gateways.kubectl("delete", "deployment", "--all")
    house.one()
    holder = house.cluster.get("lease", "pointsman-controller", "-n", house.gateways.name)["spec"]
    assert holder["leaseTransitions"] == 2


def test_one_that_loses_the_lease_stops_to_work(house, control):
    controller = control("--leader-elect")
    until(controller.is_listed, within=10, what="it leads")
    change = {"spec": {"holderIdentity": "thief", "leaseDurationSeconds": 3600}}
    house.gateways.kubectl("patch", "lease", "pointsman-controller", "--type=merge", "-p", json.dumps(change))
    until(lambda: controller.standing() == "waits", within=10, what="it leads no more")
    house.pools.apply(pool_v1())
    holds(lambda: not house.made("deployment"), over=3, what="it does nothing")


def test_an_api_server_that_fails_now_and_then_changes_nothing_in_the_end(house, control, cluster, tmp_path):
    faults = ApiFaults(cluster, tmp_path)
    try:
        controller = control(kubeconfig=faults.kubeconfig)
        until(controller.is_listed, within=10, what="it has seen all")
        faults.rate = 0.3
        for turn in range(1, 9):
            for pool in ("one", "two", "three"):
                house.pools.apply(pool_v1({OVERLAY: "shape"}, name=pool))
            house.overlay(deployment={"spec": {"replicas": turn}})
            if turn % 3 == 0:
                house.pools.kubectl("delete", "inferencepool", "two")
            faults.break_watches()
            time.sleep(2)
        faults.rate = 0.0
        for pool in ("one", "two", "three"):
            replicas = lambda pool=pool: [made["spec"]["replicas"] for made in house.made("deployment", pool)]
            until(lambda: replicas() == [8], within=90, what=f"{pool} is as it should be")  # noqa: B023
            for kind in (*KINDS, "role", "rolebinding"):
                until(lambda kind=kind, pool=pool: len(house.made(kind, pool)) == 1, within=90, what=f"{pool} has its {kind}")
        house.pools.kubectl("delete", "inferencepool", "--all")
        for pool in ("one", "two", "three"):
            until(lambda pool=pool: not house.made("deployment", pool), within=70, what=f"{pool} is gone")
        assert {"429", "500", "503", "reset", "slow", "cut", "expired", "lost"} <= set(faults.met), faults.met
        assert controller.process.poll() is None
    finally:
        faults.close()
