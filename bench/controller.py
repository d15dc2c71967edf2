"""The controller against a real API server: from a pool to its picker, from an annotation to its effect, and what it costs to stand by.

    cargo build --release -p pointsman && cargo xtask api up
    ~/.cache/pointsman/blackbox/bin/python bench/controller.py [POOLS...]

The baseline is the same program with `--pickers self-hosted`: it watches the same things and makes nothing. All of the cluster runs on the same
machine; times include its own.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
os.environ.setdefault("POINTSMAN_BIN", str(ROOT / "target/release/pointsman"))
sys.path.insert(0, str(ROOT / "tests"))

import http.client  # noqa: E402
import ssl  # noqa: E402
import base64  # noqa: E402

from harness.cluster import Cluster, Namespace  # noqa: E402
from harness.controller import Controller  # noqa: E402
from harness.epp import Picker  # noqa: E402
from harness.manifests import QUEUE_TTL, pool_v1  # noqa: E402
from harness.usage import cpu_s  # noqa: E402

SIZES = tuple(map(int, sys.argv[1:])) or (10, 100, 1000)
SAMPLES = 100
AT_REST_S = 60
POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/{}/inferencepools"


class Api:
    """Requests without a kubectl to start for each."""

    def __init__(self, cluster: Cluster) -> None:
        config = cluster.config()
        host, port = cluster.address()
        user, server = config["users"][0]["user"], config["clusters"][0]["cluster"]
        folder = Path(tempfile.mkdtemp())
        for name, text in (("ca", server["certificate-authority-data"]), ("crt", user["client-certificate-data"]), ("key", user["client-key-data"])):
            (folder / name).write_bytes(base64.b64decode(text))
        context = ssl.create_default_context(cafile=folder / "ca")
        context.load_cert_chain(folder / "crt", folder / "key")
        self._connection = http.client.HTTPSConnection(host, port, context=context)

    def __call__(self, method: str, path: str, body: dict | None = None, kind: str = "application/json") -> dict:
        try:
            self._connection.request(method, path, json.dumps(body) if body else None, {"content-type": kind})
        except OSError:
            # It rested for too long. The next request connects anew.
            self._connection.close()
            self._connection.request(method, path, json.dumps(body) if body else None, {"content-type": kind})
        answer = self._connection.getresponse()
        text = answer.read()
        assert answer.status < 300 or answer.status == 404, text
        return json.loads(text) if answer.status < 300 else {}


def within(probe: Callable[[], object], most: float = 60) -> float:
    """Seconds until the probe is true."""
    began = time.monotonic()
    while not probe():
        assert time.monotonic() < began + most, "it takes too long"
        time.sleep(0.002)
    return time.monotonic() - began


def told(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    p = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000
    print(f"| {name} | {len(ordered)} | {statistics.median(ordered) * 1000:.0f} | {p(0.99):.0f} | {ordered[-1] * 1000:.0f} |", flush=True)


def pool(name: str, namespace: str) -> dict:
    made = pool_v1(name=name)
    made["metadata"]["namespace"] = namespace
    return made


def writes(controller: Controller) -> float:
    """What the controller says that it wrote; that it says all is a test's to show."""
    return sum(controller.metrics().series("pointsman_controller_writes_total").values())


def watches(cluster: Cluster) -> int:
    """Watches that the API server has open, by its own count."""
    lines = cluster.kubectl("get", "--raw", "/metrics").splitlines()
    found = (line for line in lines if line.startswith("apiserver_longrunning_requests{") and 'verb="WATCH"' in line)
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in found))


def lists(cluster: Cluster) -> int:
    lines = cluster.kubectl("get", "--raw", "/metrics").splitlines()
    found = (line for line in lines if line.startswith("apiserver_request_total{") and 'verb="LIST"' in line)
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in found))


def settle(count: Callable[[], float]) -> None:
    """Waits until nothing was counted for ten seconds."""
    last, since = count(), time.monotonic()
    while time.monotonic() - since < 10:
        time.sleep(0.5)
        if count() != last:
            last, since = count(), time.monotonic()


def make_pods(api: Api, namespace: str) -> None:
    """Ten pods for each pool, which nobody runs. They are not Ready: nothing is scraped, so what is measured is Kubernetes' part."""
    pods = f"/api/v1/namespaces/{namespace}/pods"
    for number in range(1000):
        labels = {"app": f"many-{number}"}
        change = {"spec": {"selector": {"matchLabels": labels}}}
        api("PATCH", f"{POOLS.format(namespace)}/many-{number}", change, "application/merge-patch+json")
        for rank in range(10):
            spec = {"schedulerName": "nobody", "containers": [{"name": "vllm", "image": "vllm"}]}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"many-{number}-{rank}", "labels": labels}, "spec": spec}
            api("POST", pods, pod)


def main() -> None:
    cluster = Cluster()
    api, folder = Api(cluster), Path(tempfile.mkdtemp())
    stamp = str(int(time.time()))
    pools, gateways = Namespace(cluster, "bench-" + stamp), Namespace(cluster, "bench-gw-" + stamp)
    path = POOLS.format(pools.name)

    print("| | samples | p50, ms | p99, ms | worst, ms |\n|---|---|---|---|---|")
    controller = Controller(folder, cluster.kubeconfig, gateways.name)
    within(controller.is_listed)
    deployments = f"/apis/apps/v1/namespaces/{gateways.name}/deployments?labelSelector=inference-pool%3D"
    made = []
    for number in range(SAMPLES):
        api("POST", path, pool(f"one-{number}", pools.name))
        made.append(within(lambda: api("GET", f"{deployments}one-{number}").get("items")))  # noqa: B023
    told("pool applied -> its Deployment exists", made)

    picker = Picker(folder, "--kubeconfig", cluster.kubeconfig, "--pool-name", "one-0", "--pool-namespace", pools.name)
    in_force = []
    for number in range(SAMPLES):
        change = {"metadata": {"annotations": {QUEUE_TTL: f"{number + 1}ms"}}}
        api("PATCH", f"{path}/one-0", change, "application/merge-patch+json")

        def is_in_force(value: str = f"{number + 1}ms") -> bool:
            settings = picker.admin_get("/state").json()["pools"][0]["settings"]
            return any(setting["key"] == QUEUE_TTL and setting["value"] == value for setting in settings)

        in_force.append(within(is_in_force))
    told("annotation changed -> in force in the picker", in_force)
    picker.close()
    controller.close()
    for number in range(SAMPLES):
        api("DELETE", f"{path}/one-{number}")

    print(f"\n| pools | | resident, MB | CPU at rest, ms a s | writes in {AT_REST_S} s at rest | until all Deployments exist, s | writes a pool | after a restart: listed in, s | lists | writes |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    there = 0
    for size in SIZES:
        for number in range(there, size):
            api("POST", path, pool(f"many-{number}", pools.name))
        there = size
        # The baseline first: it takes away what an earlier one made.
        for name, flags in (("watching only", ("--pickers", "self-hosted")), ("ours", ())):
            controller = Controller(folder, cluster.kubeconfig, gateways.name, *flags)
            within(controller.is_listed, 120)
            count = lambda: len(api("GET", deployments.split("?")[0]).get("items", []))  # noqa: E731
            began = time.monotonic()
            wanted = 0 if flags else size
            while count() != wanted:
                time.sleep(0.05)
            took = time.monotonic() - began
            settle(lambda: writes(controller))  # noqa: B023
            written, used = writes(controller), cpu_s(controller.process.pid)
            time.sleep(AT_REST_S)
            rest = (cpu_s(controller.process.pid) - used) / AT_REST_S * 1000
            shown = [f"{controller.rss_bytes() / 1e6:.0f}", f"{rest:.1f}", f"{writes(controller) - written:.0f}"]
            shown += ["", ""] if flags else [f"{took:.1f}", f"{written / size:.1f}"]
            controller.close()
            before = lists(cluster)
            began = time.monotonic()
            controller = Controller(folder, cluster.kubeconfig, gateways.name, *flags)
            within(controller.is_listed, 120)
            shown.append(f"{time.monotonic() - began:.2f}")
            time.sleep(5)
            shown += [str(lists(cluster) - before), f"{writes(controller):.0f}"]
            print(f"| {size} | {name} | {' | '.join(shown)} |", flush=True)
            controller.close()

    print("\n| 1,000 pools, 10,000 pods | resident, MB | CPU at rest, ms a s | from its start until it serves, s | watches |\n|---|---|---|---|---|")
    make_pods(api, pools.name)
    for name, flags in (
        ("one picker, of one pool with 10 pods", ("--pool-name", "many-0", "--pool-namespace", pools.name)),
        ("one picker of all", ("--all-pools",)),
        ("the controller", None),
    ):
        open_before, began = watches(cluster), time.monotonic()
        if flags is None:
            program = Controller(folder, cluster.kubeconfig, gateways.name)
            within(program.is_listed, 120)
        else:
            program = Picker(folder, "--kubeconfig", cluster.kubeconfig, *flags)
            within(lambda: program.peer().health("") == "SERVING", 120)  # noqa: B023
        took = time.monotonic() - began
        time.sleep(20)
        used = cpu_s(program.process.pid)
        time.sleep(AT_REST_S)
        rest = (cpu_s(program.process.pid) - used) / AT_REST_S * 1000
        print(f"| {name} | {program.rss_bytes() / 1e6:.0f} | {rest:.1f} | {took:.2f} | {watches(cluster) - open_before} |", flush=True)
        program.close()
    pools.close()
    gateways.close()


if __name__ == "__main__":
    main()
