"""What pools with routes cost on a real node, by their number: the controllers, the pickers of all pools, Envoy Gateway and Envoy beside them.

    cargo xtask cluster test                       # starts the node and installs Pointsman
    export KUBECONFIG=~/.cache/pointsman/cluster-run/admin.kubeconfig KUBECTL=~/.cache/pointsman/kubernetes/kubectl
    ~/.cache/pointsman/blackbox/bin/python bench/pools.py [POOLS...]

Installs Pointsman anew with `--epp-mode shared` (a picker for each of 100 pools does not fit the node). Each pool selects the same three model
servers, which the pickers scrape once a pool. The baseline is the first row: one pool.
"""

import http.client
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from harness import node_processes, site  # noqa: E402
from harness.node import Node  # noqa: E402
from harness.usage import cpu_s, rss_bytes  # noqa: E402
from harness.wait import until  # noqa: E402

SIZES = tuple(map(int, sys.argv[1:])) or (1, 10, 100)
SETTLES_S, MEASURED_S = 15, 30
REQUESTS_A_SECOND = 50
GATEWAYS, SYSTEM = "envoy-gateway-system", "pointsman-system"


def install(node: Node) -> None:
    """A picker of all pools, and controllers that know of it."""
    command = [ROOT / "target/image/pointsman", "controller", "--install", "--epp-image", site.IMAGE, "--epp-mode", "shared"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    node.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=printed)
    for namespace, name in ((SYSTEM, "pointsman-controller"), (GATEWAYS, "pointsman-picker")):
        node.kubectl("-n", namespace, "rollout", "status", f"deployment/{name}", "--timeout=90s")


def watched(node: Node) -> dict[str, list[int]]:
    """Processes by what they are."""
    pods = {
        "controllers, two": node.items("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=controller"),
        "pickers, two": node.items("pods", "-n", GATEWAYS, "-l", "app.kubernetes.io/component=shared-endpoint-picker"),
        "Envoy Gateway": node.items("pods", "-n", GATEWAYS, "-l", "control-plane=envoy-gateway"),
        "Envoy": node.items("pods", "-n", GATEWAYS, "-l", f"gateway.envoyproxy.io/owning-gateway-namespace={node.name}"),
    }
    found = {name: [process for pod in of for process in node_processes.of_pod(pod)] for name, of in pods.items()}
    assert all(found.values()), found
    return found


def used_ms(processes: dict[str, list[int]], meanwhile) -> dict[str, float]:
    """CPU a second while that runs."""
    before, began = {name: sum(map(cpu_s, all)) for name, all in processes.items()}, time.monotonic()
    meanwhile()
    took = time.monotonic() - began
    return {name: (sum(map(cpu_s, all)) - before[name]) / took * 1000 for name, all in processes.items()}


def load(address: str, hosts: list[str]) -> None:
    """Requests at a steady rate, to each pool in turn."""
    connection = http.client.HTTPConnection(address)
    body = json.dumps({"model": "sim", "prompt": site.PROMPT, "max_tokens": 1})
    began = time.monotonic()
    for number in range(MEASURED_S * REQUESTS_A_SECOND):
        time.sleep(max(0, began + number / REQUESTS_A_SECOND - time.monotonic()))
        headers = {"host": hosts[number % len(hosts)], "content-type": "application/json"}
        connection.request("POST", "/v1/completions", body, headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status


def main() -> None:
    node = Node()
    try:
        install(node)
        address = node.gateway(site.model_servers("all", 3))
        node.kubectl("-n", node.name, "rollout", "status", "deployment/all", "--timeout=90s")
        print("| pools | | resident, MB | CPU at rest, ms a s | CPU at 50 requests a second, ms a s |\n|---|---|---|---|---|")
        hosts: list[str] = []
        took_s = {}
        for size in SIZES:
            new = [f"many-{number}" for number in range(len(hosts), size)]
            began = time.monotonic()
            documents = []
            for name in new:
                pool = site.pool(name)
                pool["spec"]["selector"] = {"matchLabels": {"app": "all"}}
                documents += [pool, site.route(name, f"{name}.example", (name, 1))]
            node.apply(*documents)
            hosts += [f"{name}.example" for name in new]
            for host in hosts:
                until(lambda: answers(address, host), within=60, what=f"{host} answers")  # noqa: B023
            took_s[size] = time.monotonic() - began
            time.sleep(SETTLES_S)
            processes = watched(node)
            rest = used_ms(processes, lambda: time.sleep(MEASURED_S))
            busy = used_ms(processes, lambda: load(address, hosts))
            for name, all in processes.items():
                print(f"| {size} | {name} | {sum(map(rss_bytes, all)) / 1e6:.0f} | {rest[name]:.1f} | {busy[name]:.1f} |", flush=True)
        print("applied -> all of them answer, s:", {size: round(took, 1) for size, took in took_s.items()})
    finally:
        node.close()
        # Whoever installs without `--epp-mode shared` after this has no use for it.
        node.kubectl("-n", GATEWAYS, "delete", "deployment,pdb,serviceaccount", "pointsman-picker", "--ignore-not-found")
        node.kubectl("delete", "clusterrole,clusterrolebinding", "pointsman-picker", "--ignore-not-found")


def answers(address: str, host: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=10)
    body = json.dumps({"model": "sim", "prompt": "a", "max_tokens": 1})
    connection.request("POST", "/v1/completions", body, {"host": host, "content-type": "application/json"})
    return connection.getresponse().status == 200


if __name__ == "__main__":
    main()
