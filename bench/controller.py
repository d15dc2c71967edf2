"""The controller against a real API server: from a pool to its picker, from an annotation to its effect, and what it costs to stand by.

    cargo build --release -p pointsman && cargo xtask api up
    ~/.cache/pointsman/blackbox/bin/python bench/controller.py

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

SIZES = (10, 100, 1000)
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


def cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pool(name: str, namespace: str) -> dict:
    made = pool_v1(name=name)
    made["metadata"]["namespace"] = namespace
    return made


def applies(cluster: Cluster) -> float:
    """Writes of the sort that a controller of ours makes. Kubernetes' own put."""
    resources = ("deployments", "services", "poddisruptionbudgets", "serviceaccounts", "roles", "rolebindings", "inferencepools")
    return sum(cluster.requests(verb, resource) for verb in ("APPLY", "PATCH", "DELETE") for resource in resources)


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

    print(f"\n| pools | | resident, MB | CPU at rest, ms a s | writes in {AT_REST_S} s at rest | until all Deployments exist, s | writes a pool |\n|---|---|---|---|---|---|---|")
    there = 0
    for size in SIZES:
        for number in range(there, size):
            api("POST", path, pool(f"many-{number}", pools.name))
        there = size
        # The baseline first: it takes away what an earlier one made.
        for name, flags in (("watching only", ("--pickers", "self-hosted")), ("ours", ())):
            before = applies(cluster)
            controller = Controller(folder, cluster.kubeconfig, gateways.name, *flags)
            within(controller.is_listed, 120)
            took = writes = None
            if not flags:
                count = lambda: len(api("GET", deployments.split("?")[0]).get("items", []))
                began = time.monotonic()
                while count() < size:
                    time.sleep(0.05)
                took = time.monotonic() - began
                time.sleep(10)
                writes = (applies(cluster) - before) / size
            else:
                within(lambda: not api("GET", deployments.split("?")[0]).get("items"), 300)
                time.sleep(10)
            written, used = applies(cluster), cpu_s(controller.process.pid)
            time.sleep(AT_REST_S)
            rest = (cpu_s(controller.process.pid) - used) / AT_REST_S * 1000
            shown = [f"{controller.rss_bytes() / 1e6:.0f}", f"{rest:.1f}", f"{applies(cluster) - written:.0f}"]
            more = [f"{took:.1f}" if took is not None else "", f"{writes:.1f}" if writes is not None else ""]
            print(f"| {size} | {name} | {' | '.join(shown + more)} |", flush=True)
            controller.close()
    pools.close()
    gateways.close()


if __name__ == "__main__":
    main()
