"""What happens on the worst day, on a real node: each case breaks something under load and says what requests noticed.

`cargo xtask cluster worst-day` runs all of it and prints a table. Nothing may be lost but the streams that a dead pod was serving, and what a
pool that fails closed refuses while it has no picker. Kills are SIGKILL to the process, unless the case says otherwise.
"""

import signal
import time
from collections.abc import Iterator

import pytest

from harness import node_processes
from harness.site import BROKEN, POOL, SOON_S, Load, Site, open_site, route_to_service, service
from harness.wait import until

pytestmark = pytest.mark.timeout(400)

SYSTEM, GATEWAYS = "pointsman-system", "envoy-gateway-system"


class Day:
    """The site, and the table of what it went through."""

    def __init__(self, site: Site) -> None:
        self.site, self.node, self.rows = site, site.node, []

    def record(self, case: str, load: Load) -> None:
        refused = ", ".join(f"{number} x {outcome}" for outcome, number in load.outcomes.items() if outcome not in (200, BROKEN))
        total = sum(load.outcomes.values())
        self.rows.append(f"| {case} | {total} | {refused or 0} | {load.outcomes[BROKEN]} | {load.longest_s:.1f} |")

    def table(self) -> str:
        head = ["| what happens | requests | lost | streams broken after their first byte | slowest request, s |", "|---|---|---|---|---|"]
        return "\n".join(head + self.rows)

    def pickers(self, name: str) -> list[dict]:
        return self.running("-n", GATEWAYS, "-l", self.site.labels(name))

    def running(self, *of: str) -> list[dict]:
        pods = self.node.items("pods", *of)
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] == "Running"]

    def runs_again(self, killed: dict) -> bool:
        """Whether the pod's containers were started anew since, and are ready."""
        name = killed["metadata"]["name"]
        (now,) = [pod for pod in self.node.items("pods", "-n", killed["metadata"]["namespace"]) if pod["metadata"]["name"] == name]
        containers = lambda pod: pod["status"]["containerStatuses"]
        return all(each["ready"] and each["restartCount"] > was["restartCount"] for each, was in zip(containers(now), containers(killed)))

    def ready(self, deployment: str, namespace: str | None = None) -> None:
        self.node.kubectl("-n", namespace or self.node.name, "rollout", "status", f"deployment/{deployment}", "--timeout=90s")


@pytest.fixture(scope="module")
def day(node, request) -> Iterator[Day]:
    day = Day(open_site(node))
    yield day
    day.site.client.close()
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\n\n{day.table()}\n", flush=True)


@pytest.fixture
def case(day, request):
    """The load of a case: `with case("what happens", "qwen.example") as load`. Its row is written however the case ends."""
    told = []

    def case(what: str, host: str) -> Load:
        load = Load(day.site, host)
        told.append((what, load))
        return load

    yield case
    for what, load in told:
        day.record(what, load)
    for host in ("qwen.example", "llama.example"):
        until(lambda: day.site.status(host) == 200, within=60, what=f"{host} answers again")


# ---- pickers


@pytest.mark.parametrize("name, mode", [("qwen", "FailOpen"), ("llama", "FailClose")])
def test_one_picker_of_two_is_killed(day, case, name, mode):
    with case(f"one picker of two killed, then the other ({mode})", f"{name}.example") as load:
        for round in range(2):
            time.sleep(2)
            killed = day.pickers(name)[round]
            node_processes.kill([killed])
            until(lambda: day.runs_again(killed), within=60, what="it runs again")
            # Until Envoy's health check has found it.
            time.sleep(3)
    assert load.lost == 0 and load.outcomes[BROKEN] == 0, load.outcomes


@pytest.mark.parametrize("name, mode, outcomes", [("qwen", "FailOpen", {200}), ("llama", "FailClose", {200, 503})])
def test_all_pickers_are_killed(day, case, name, mode, outcomes):
    with case(f"all pickers killed at once ({mode})", f"{name}.example") as load:
        time.sleep(2)
        killed = day.pickers(name)
        node_processes.kill(killed)
        until(lambda: all(map(day.runs_again, killed)), within=60, what="they run again")
        time.sleep(2)
    assert load.outcomes.keys() == outcomes, load.outcomes


@pytest.mark.parametrize("name, mode", [("qwen", "FailOpen"), ("llama", "FailClose")])
def test_a_picker_hangs(day, case, name, mode):
    with case(f"one picker of two stopped for 5 s, alive and silent ({mode})", f"{name}.example") as load:
        time.sleep(2)
        hung = day.pickers(name)[:1]
        node_processes.kill(hung, signal.SIGSTOP)
        time.sleep(5)
        node_processes.kill(hung, signal.SIGCONT)
        time.sleep(2)
    # What waited for its pick there is not picked: of four clients each once in 2 s, until Envoy's health check has found it.
    assert load.outcomes.keys() <= {200, 503} and load.lost <= (0 if mode == "FailOpen" else 16), load.outcomes


@pytest.mark.parametrize("name, mode", [("qwen", "FailOpen"), ("llama", "FailClose")])
def test_an_overlay_rolls_a_picker_out(day, case, name, mode):
    annotate = ("-n", day.node.name, "annotate", "--overwrite", f"inferencepools.{POOL}/{name}")
    shape = {"deployment": "spec: {template: {metadata: {annotations: {team: serving}}}}"}
    day.node.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shape"}, "data": shape})
    with case(f"the picker rolled out by an overlay, and back ({mode})", f"{name}.example") as load:
        for change in ("inference.networking.x-k8s.io/epp-overlay=shape", "inference.networking.x-k8s.io/epp-overlay-"):
            before = {pod["metadata"]["name"] for pod in day.pickers(name)}
            day.node.kubectl(*annotate, change)
            renewed = lambda: before.isdisjoint(pod["metadata"]["name"] for pod in day.pickers(name))
            until(renewed, within=60, what="every picker is another")
            day.site.picker_rolled_out(name)
    assert load.lost == 0 and load.outcomes[BROKEN] == 0, load.outcomes


# ---- what stands behind


def test_controllers_are_killed(day, case):
    with case("both controllers killed; a model server is replaced meanwhile", "qwen.example") as load:
        time.sleep(2)
        node_processes.kill(day.running("-n", SYSTEM, "-l", "app.kubernetes.io/component=controller"))
        day.node.kubectl("-n", day.node.name, "delete", "pod", "--wait=false", day.site.pods("qwen")[0]["metadata"]["name"])
        day.ready("qwen")
        day.ready("pointsman-controller", SYSTEM)
        time.sleep(8)
    assert load.lost == 0 and load.outcomes[BROKEN] == 0, load.outcomes


def test_envoy_gateway_is_killed(day, case):
    with case("Envoy Gateway killed; model servers scaled 3 -> 4 -> 3 meanwhile", "qwen.example") as load:
        time.sleep(2)
        node_processes.kill(day.running("-n", GATEWAYS, "-l", "control-plane=envoy-gateway"))
        day.node.kubectl("-n", day.node.name, "scale", "deployment/qwen", "--replicas=4")
        day.ready("qwen")
        day.node.kubectl("-n", day.node.name, "scale", "deployment/qwen", "--replicas=3")
        day.ready("envoy-gateway", GATEWAYS)
        time.sleep(8)
    assert load.lost == 0 and load.outcomes[BROKEN] == 0, load.outcomes


def test_the_control_plane_is_away(day, case):
    with case("no control plane (API server, controller manager, scheduler) for 120 s", "qwen.example") as load:
        time.sleep(2)
        with node_processes.control_plane_away():
            time.sleep(120)
        until(lambda: answers(day), within=60, what="the API server is back")
        time.sleep(30)
    assert load.lost == 0 and load.outcomes[BROKEN] == 0, load.outcomes


def answers(day: Day) -> bool:
    try:
        return bool(day.node.items("pods", "-n", day.node.name))
    except AssertionError:
        return False


def test_a_node_is_drained_of_pickers(day, case):
    drain = ("drain", "--ignore-daemonsets", f"--pod-selector={day.site.labels('qwen')}", "--delete-emptydir-data", "--timeout=20s")
    (name,) = [one["metadata"]["name"] for one in day.node.items("nodes")]
    before = {pod["metadata"]["name"] for pod in day.pickers("qwen")}
    with case("the only node drained: the PodDisruptionBudget keeps one picker until another is ready", "qwen.example") as load:
        try:
            time.sleep(2)
            with pytest.raises(AssertionError, match="disruption budget"):
                day.node.kubectl(*drain, name)
            left = before & {pod["metadata"]["name"] for pod in day.pickers("qwen")}
            assert len(left) == 1, left
        finally:
            day.node.kubectl("uncordon", name)
        day.site.picker_rolled_out("qwen")
        time.sleep(2)
    assert load.lost == 0 and load.outcomes[BROKEN] == 0, load.outcomes


# ---- model servers


def test_a_model_server_is_killed(day, case):
    with case("one model server of three killed, and so each in turn", "qwen.example") as load:
        for killed in day.site.pods("qwen"):
            time.sleep(2)
            node_processes.kill([killed])
            until(lambda: day.runs_again(killed), within=60, what="it runs again")
        time.sleep(2)
    assert load.lost == 0, load.outcomes


def test_a_model_server_hangs(day, case):
    with case("one model server of three stopped for 8 s, alive and silent", "qwen.example") as load:
        time.sleep(2)
        hung = day.site.pods("qwen")[:1]
        node_processes.kill(hung, signal.SIGSTOP)
        time.sleep(8)
        node_processes.kill(hung, signal.SIGCONT)
        day.ready("qwen")
        time.sleep(2)
    assert load.lost == 0 and load.outcomes[BROKEN] == 0, load.outcomes


def test_a_model_server_flaps(day, case):
    node, name = day.node, day.site.pods("qwen")[0]["metadata"]["name"]
    # A label that the pool reads and the Deployment does not: it would make up for a pod that leaves.
    select = lambda more: node.kubectl(
        "-n", node.name, "patch", f"inferencepools.{POOL}/qwen", "--type=merge", f'--patch={{"spec":{{"selector":{{"matchLabels":{{"in":{more}}}}}}}}}'
    )
    label = lambda value, *pods: node.kubectl("-n", node.name, "label", "--overwrite", "pod", *pods, f"in={value}")
    label("yes", "-l", "app=qwen")
    select('"yes"')
    try:
        with case("one model server in and out of the pool, 40 times in some 20 s", "qwen.example") as load:
            time.sleep(2)
            for _ in range(20):
                label("no", name)
                time.sleep(0.3)
                label("yes", name)
                time.sleep(0.3)
            time.sleep(2)
    finally:
        select("null")
    assert load.lost == 0 and load.outcomes[BROKEN] == 0, load.outcomes


# ---- the one answer that cannot be kept


def test_an_envoy_starts_while_no_controller_is_there(day, case):
    """Other routes are served at once, those to pools as soon as a controller is back: nothing but it knows the endpoints."""
    scale = ("-n", SYSTEM, "scale", "deployment/pointsman-controller")
    envoys = ("-n", GATEWAYS, "-l", f"gateway.envoyproxy.io/owning-gateway-namespace={day.node.name}")
    day.node.apply(service("qwen"), route_to_service("qwen", "service.example"))
    until(lambda: day.site.status("service.example") == 200, within=SOON_S, what="the Service's route answers")
    with case("Envoy killed while no controller is there; they come back", "qwen.example"):
        day.node.kubectl(*scale, "--replicas=0")
        until(lambda: not day.running("-n", SYSTEM), within=60, what="no controller is there")
        node_processes.kill(day.running(*envoys))
        began = time.monotonic()
        until(lambda: day.site.status("service.example") == 200, within=SOON_S, what="what goes to a Service is served again")
        day.rows.append(f"| … until the first answer by a route to a Service | | | | {time.monotonic() - began:.1f} |")
        time.sleep(10)
        began = time.monotonic()
        day.node.kubectl(*scale, "--replicas=2")
        until(lambda: day.site.status("qwen.example") == 200, within=SOON_S, what="the pool is served again")
        day.rows.append(f"| … from two controllers asked for until the first answer by the pool | | | | {time.monotonic() - began:.1f} |")
