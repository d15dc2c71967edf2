"""Pointsman behind Envoy Gateway on a real node: what a request pays for being picked, and how soon a pod is in and out.

    cargo xtask cluster test                       # starts the node and installs Pointsman
    export KUBECONFIG=~/.cache/pointsman/cluster-run/admin.kubeconfig KUBECTL=~/.cache/pointsman/kubernetes/kubectl
    ~/.cache/pointsman/blackbox/bin/python bench/cluster.py latency | endpoints | ready

The baseline of `latency` is the same Envoy, listener and pods behind a plain Service, asked in turn with the pool.
"""

import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from harness import site  # noqa: E402
from harness.node import Node  # noqa: E402
from harness.wait import until  # noqa: E402

SAMPLES = 100
GATEWAYS = "envoy-gateway-system"


def told(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    p = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000
    print(f"| {name} | {len(ordered)} | {p(0.5):.2f} | {p(0.9):.2f} | {p(0.99):.2f} | {ordered[-1] * 1000:.2f} |", flush=True)


def head() -> None:
    print("| | samples | p50, ms | p90, ms | p99, ms | worst, ms |\n|---|---|---|---|---|---|")


# ---- latency


def latency(node: Node) -> None:
    """One request after the other on one connection, pool and Service in turn."""
    there = site.open_site(node)
    node.apply(site.service("qwen"), site.route_to_service("qwen", "service.example"))
    until(lambda: there.status("service.example") == 200, within=30, what="the Service answers")
    address = there.client.base_url.host
    hosts = {"behind a Service": "service.example", "behind a pool": "qwen.example"}
    for size in (1_000, 32_000, 220_000):
        prompt = "word " * (size // 5)
        body = json.dumps({"model": "sim", "prompt": prompt, "max_tokens": 1})
        head()
        seen: dict[str, list[float]] = {name: [] for name in hosts}
        connections = {name: http.client.HTTPConnection(address) for name in hosts}
        for _ in range(2_000 if size < 100_000 else 500):
            for name, host in hosts.items():
                seen[name].append(timed(connections[name], host, body))
        for name, seconds in seen.items():
            told(f"{size // 1000} KB, {name}", seconds[50:])
        added = statistics.median(seen["behind a pool"]) - statistics.median(seen["behind a Service"])
        print(f"added at p50: {added * 1000:.2f} ms")


def timed(connection: http.client.HTTPConnection, host: str, body: str) -> float:
    begin = time.monotonic()
    connection.request("POST", "/v1/completions", body, {"host": host, "content-type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200, answer.status
    return time.monotonic() - begin


# ---- endpoints


def endpoints(node: Node) -> None:
    """From a pod's label, in or out of the pool, to Envoy's list of its hosts."""
    there = site.open_site(node)
    pod = there.pods("qwen")[0]
    name, ip = pod["metadata"]["name"], pod["status"]["podIP"]
    # A label that the pool reads and the Deployment does not: it would make up for a pod that leaves.
    label = lambda value, *pods: node.kubectl("-n", node.name, "label", "--overwrite", "pod", *pods, f"in={value}")
    label("yes", "-l", "app=qwen")
    select = {"spec": {"selector": {"matchLabels": {"in": "yes"}}}}
    node.kubectl("-n", node.name, "patch", f"inferencepools.{site.POOL}/qwen", "--type=merge", "-p", json.dumps(select))
    with envoys_admin(node) as admin:
        host = f"httproute/{node.name}/qwen/rule/0/pool/{node.name}/qwen::{ip}:8000::"
        until(lambda: host in clusters(admin), within=10, what="the pod is in")
        seen: dict[str, list[float]] = {}
        for _ in range(SAMPLES):
            for way, value, wanted in (("out", "no", False), ("in", "yes", True)):
                begin = time.monotonic()
                label(value, name)
                returned = time.monotonic()
                while (host in clusters(admin)) != wanted:
                    assert time.monotonic() < returned + 30, "Envoy does not hear of it"
                end = time.monotonic()
                seen.setdefault(f"{way} since kubectl began", []).append(end - begin)
                seen.setdefault(f"{way} since kubectl returned", []).append(end - returned)
                time.sleep(0.15)
    head()
    for what, seconds in seen.items():
        told(what, seconds)


@contextmanager
def envoys_admin(node: Node) -> Iterator[http.client.HTTPConnection]:
    """Envoy's admin page listens in its pod alone."""
    of = ("-n", GATEWAYS, "-l", f"gateway.envoyproxy.io/owning-gateway-namespace={node.name}")
    (pod,) = node.items("pods", *of)
    command = [os.environ["KUBECTL"], "-n", GATEWAYS, "port-forward", pod["metadata"]["name"], ":19000"]
    forward = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    port = int(forward.stdout.readline().split("127.0.0.1:")[1].split(" ")[0])
    yield http.client.HTTPConnection("127.0.0.1", port)
    forward.terminate()


def clusters(admin: http.client.HTTPConnection) -> str:
    admin.request("GET", "/clusters")
    return admin.getresponse().read().decode()


# ---- ready


def ready(node: Node) -> None:
    """From the moment that the API server tells of a Ready pod to the first request that it has served, under a steady load."""
    there = site.open_site(node)
    scale = lambda replicas: node.kubectl("-n", node.name, "scale", "deployment/qwen", f"--replicas={replicas}")
    columns = "{.metadata.name} {.status.podIP} {.status.conditions[?(@.type=='Ready')].status}{'\\n'}"
    command = [os.environ["KUBECTL"], "-n", node.name, "get", "pods", "-l", "app=qwen", "--watch", "-o", f"jsonpath={columns}"]
    seen, known = [], {pod["metadata"]["name"] for pod in there.pods("qwen")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch, site.Load(there, "qwen.example") as load:
        for _ in range(SAMPLES):
            scale(4)
            for line in watch.stdout:
                name, address, *is_ready = line.split(" ")
                if name not in known and is_ready == ["True\n"]:
                    break
            begin = time.monotonic()
            served = lambda: site.metric(f"{address}:8000", "vllm:request_success_total")
            until(served, within=30, what="it serves")
            seen.append(time.monotonic() - begin)
            known.add(name)
            node.kubectl("-n", node.name, "annotate", "pod", name, "controller.kubernetes.io/pod-deletion-cost=-1")
            scale(3)
            until(lambda: len(there.pods("qwen")) == 3, within=30, what="it goes")
        watch.terminate()
    head()
    told("Ready at the API server -> first request served", seen)
    print(f"requests meanwhile: {dict(load.outcomes)}")


def main() -> None:
    parts = {"latency": latency, "endpoints": endpoints, "ready": ready}
    what = (sys.argv[1:] or [""])[0]
    if what not in parts:
        sys.exit(__doc__)
    node = Node()
    try:
        parts[what](node)
    finally:
        node.close()


if __name__ == "__main__":
    main()
