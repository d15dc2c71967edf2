"""A Gateway with two InferencePools on the node of `cargo xtask cluster up`, as a user with kubectl and an HTTP client meets them."""

import os
import threading
import time
from collections import Counter

import httpx

from harness.wait import until

POOL = "inference.networking.k8s.io"
IMAGE = os.environ.get("POINTSMAN_IMAGE", "local/pointsman:1")
SOON_S = 30
PROMPT = "A pointsman sets the points of a railway so that each train takes the right track. " * 40


def model_servers(name: str, replicas: int, *flags: str) -> dict:
    container = {
        "name": "model-server",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": ["sim", "--count", "1", "--listen", "0.0.0.0:8000", "--speed", "20", *flags],
        "ports": [{"containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
        # As docs/envoy-gateway.md advises: what is under way ends before the server does.
        "lifecycle": {"preStop": {"sleep": {"seconds": 4}}},
    }
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 10},
    }
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def pool(name: str, fail: str = "FailClose", **annotations: str) -> dict:
    picker = {"name": f"{name}-epp", "port": {"number": 9002}, "failureMode": fail}
    return {
        "apiVersion": f"{POOL}/v1",
        "kind": "InferencePool",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"selector": {"matchLabels": {"app": name}}, "targetPorts": [{"number": 8000}], "endpointPickerRef": picker},
    }


def route(name: str, host: str, *weights: tuple[str, int]) -> dict:
    backends = [{"group": POOL, "kind": "InferencePool", "name": name, "weight": weight} for name, weight in weights]
    spec = {"parentRefs": [{"name": "gateway"}], "hostnames": [host], "rules": [{"backendRefs": backends}]}
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name}, "spec": spec}


def service(name: str) -> dict:
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8000}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def route_to_service(name: str, host: str) -> dict:
    made = route(name, host)
    made["spec"]["rules"] = [{"backendRefs": [{"name": name, "port": 80}]}]
    made["metadata"]["name"] = f"{name}-service"
    return made


class Site:
    """A Gateway, two pools with their model servers, and a client."""

    def __init__(self, node) -> None:
        self.node = node
        address = node.gateway(
            model_servers("qwen", 3),
            model_servers("llama", 1),
            pool("qwen", "FailOpen"),
            pool("llama"),
            route("qwen", "qwen.example", ("qwen", 1)),
            route("llama", "llama.example", ("llama", 1)),
        )
        for name in ("qwen", "llama"):
            node.kubectl("-n", node.name, "rollout", "status", f"deployment/{name}", "--timeout=90s")
            self.picker_rolled_out(name)
        self.client = httpx.Client(base_url=f"http://{address}", timeout=30, trust_env=False)

    def labels(self, name: str) -> str:
        return f"inference-pool={name},inference-pool-namespace={self.node.name}"

    def picker_rolled_out(self, name: str) -> None:
        of = ("-n", "envoy-gateway-system", "-l", self.labels(name))
        until(lambda: self.node.items("deployments", *of), within=SOON_S, what=f"a picker of {name}")
        self.node.kubectl("rollout", "status", "deployment", *of, "--timeout=90s")

    def ask(self, host: str, prompt: str = "Which track?", **fields: object) -> httpx.Response:
        body = {"model": "sim", "prompt": prompt, "max_tokens": 4, **fields}
        return self.client.post("/v1/completions", json=body, headers={"host": host})

    def status(self, host: str) -> int | str:
        try:
            return self.ask(host).status_code
        except httpx.TransportError as error:
            return repr(error)

    def pods(self, app: str) -> list[dict]:
        found = self.node.get("pods", "-l", f"app={app}")["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def served(self, app: str) -> Counter:
        """Requests that each model server of the pool says it served."""
        counts = Counter()
        for pod in self.pods(app):
            counts[pod["metadata"]["name"]] = metric(f"{pod['status']['podIP']}:8000", "vllm:request_success_total")
        return counts

    def picks(self, name: str) -> float:
        of = ("-n", "envoy-gateway-system", "-l", self.labels(name))
        pods = [pod for pod in self.node.items("pods", *of) if pod["status"].get("podIP")]
        return sum(metric(f"{pod['status']['podIP']}:9090", "pointsman_picks_total") for pod in pods)

    def parents(self, name: str) -> dict[str, dict[str, tuple[str, str]]]:
        """Of each parent in the pool's status the conditions."""
        status = self.node.get(f"inferencepools.{POOL}", name).get("status", {})
        return {
            entry["parentRef"]["kind"]: {one["type"]: (one["status"], one["reason"]) for one in entry["conditions"]}
            for entry in status.get("parents", [])
        }


def metric(address: str, name: str) -> float:
    page = httpx.get(f"http://{address}/metrics", timeout=10, trust_env=False).text
    lines = (line for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def open_site(node) -> Site:
    """A site whose two pools answer."""
    site = Site(node)
    for host in ("qwen.example", "llama.example"):
        until(lambda: site.status(host) == 200, within=60, what=f"{host} answers")
    return site


BROKEN = "broken after its first byte"


class Load:
    """Requests, a few at once, every second one a stream, until the block ends; how each ended and how long the slowest took."""

    def __init__(self, site: Site, host: str, at_once: int = 4) -> None:
        self.site, self.host, self.at_once = site, host, at_once
        self.outcomes: Counter = Counter()
        self.longest_s = 0.0
        self._stop = threading.Event()

    @property
    def lost(self) -> int:
        """Requests that did not end well, other than streams that had begun."""
        return sum(number for outcome, number in self.outcomes.items() if outcome not in (200, BROKEN))

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._run) for _ in range(self.at_once)]
        for thread in self._threads:
            thread.start()
        return self

    def _run(self) -> None:
        with httpx.Client(base_url=self.site.client.base_url, timeout=30, trust_env=False) as client:
            stream = False
            while not self._stop.is_set():
                stream = not stream
                begin = time.monotonic()
                outcome = self._ask(client, stream)
                self.longest_s = max(self.longest_s, time.monotonic() - begin)
                self.outcomes[outcome] += 1

    def _ask(self, client: httpx.Client, stream: bool) -> int | str:
        body = {"model": "sim", "prompt": PROMPT, "max_tokens": 64 if stream else 8, "stream": stream}
        seen = b""
        try:
            with client.stream("POST", "/v1/completions", json=body, headers={"host": self.host}) as answer:
                if answer.status_code != 200:
                    return answer.status_code
                for chunk in answer.iter_bytes():
                    seen += chunk
        except httpx.TransportError as error:
            return BROKEN if seen else repr(error)
        if stream and not seen.endswith(b"data: [DONE]\n\n"):
            return BROKEN if seen else "an empty stream"
        return 200

    def __exit__(self, *_) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
