"""InferencePools behind Envoy Gateway on a real node: from a user's seat, with kubectl and HTTP alone."""

import concurrent.futures
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

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


@pytest.fixture(scope="module")
def site(node) -> Iterator[Site]:
    site = Site(node)
    for host in ("qwen.example", "llama.example"):
        until(lambda: site.status(host) == 200, within=60, what=f"{host} answers")
    yield site
    site.client.close()


class Load:
    """Requests, a few at once, until the block ends; how each ended."""

    def __init__(self, site: Site, host: str, at_once: int = 4) -> None:
        self.site, self.host, self.at_once = site, host, at_once
        self.outcomes: Counter = Counter()
        self._stop = threading.Event()

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._run) for _ in range(self.at_once)]
        for thread in self._threads:
            thread.start()
        return self

    def _run(self) -> None:
        with httpx.Client(base_url=self.site.client.base_url, timeout=30, trust_env=False) as client:
            body = {"model": "sim", "prompt": PROMPT, "max_tokens": 8}
            while not self._stop.is_set():
                try:
                    outcome = client.post("/v1/completions", json=body, headers={"host": self.host}).status_code
                except httpx.TransportError as error:
                    outcome = repr(error)
                self.outcomes[outcome] += 1

    def __exit__(self, *_) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_requests_go_where_the_picker_says(site):
    before, picks = site.served("qwen"), site.picks("qwen")
    assert all(site.ask("qwen.example", within=SOON_S, what=f"{number} {PROMPT}").status_code == 200 for number in range(12))
    after = site.served("qwen")
    assert sum(after.values()) - sum(before.values()) == 12
    assert site.picks("qwen") - picks == 12
    assert all(after[pod] > before[pod] for pod in after), (before, after)


def test_an_annotation_is_in_force_without_envoy_gateway(site):
    key = "inference.networking.x-k8s.io/routing-strategy"
    site.node.kubectl("-n", site.node.name, "annotate", "--overwrite", f"inferencepools.{POOL}/qwen", f"{key}=PREFIX_CACHE")
    time.sleep(1)
    assert site.ask("qwen.example", PROMPT).status_code == 200
    before = site.served("qwen")
    for _ in range(8):
        assert site.ask("qwen.example", PROMPT).status_code == 200
    served = site.served("qwen") - before
    assert len(served) <= 2, f"one prompt, two pickers that each know what they saw: {served}"


def test_a_pools_status_says_what_gateways_and_its_picker_say(site):
    ready = {"Deployment", "Gateway"}
    until(lambda: site.parents("qwen").keys() == ready, within=SOON_S, what="an entry for each")
    parents = site.parents("qwen")
    assert parents["Gateway"] == {"Accepted": ("True", "Accepted"), "ResolvedRefs": ("True", "ResolvedRefs")}
    assert parents["Deployment"]["PickerReady"][0] == "True"


def test_two_pools_share_by_weight(site):
    site.node.apply(route("canary", "canary.example", ("qwen", 3), ("llama", 1)))
    until(lambda: site.status("canary.example") == 200, within=SOON_S, what="the canary answers")
    before = sum(site.served("llama").values())
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: site.status("canary.example"), range(400))) == {200}
    share = (sum(site.served("llama").values()) - before) / 400
    assert 0.15 < share < 0.35, share
    # The weights are the HTTPRoute's, whenever they change.
    site.node.apply(route("canary", "canary.example", ("qwen", 1), ("llama", 0)))
    time.sleep(3)
    before = sum(site.served("llama").values())
    assert {site.status("canary.example") for _ in range(40)} == {200}
    assert sum(site.served("llama").values()) == before


def test_a_missing_pool_loses_its_own_share_alone(site):
    site.node.apply(route("half", "half.example", ("qwen", 1), ("nowhere", 1)))
    until(lambda: site.status("half.example") == 200, within=SOON_S, what="half of it answers")
    outcomes = Counter(site.status("half.example") for _ in range(100))
    assert outcomes.keys() == {200, 500}
    assert 25 < outcomes[200] < 75, outcomes
    assert site.status("qwen.example") == 200
    site.node.kubectl("-n", site.node.name, "delete", "httproute", "half")


def test_model_servers_come_and_go_without_a_lost_request(site):
    with Load(site, "qwen.example") as load:
        time.sleep(1)
        site.node.kubectl("-n", site.node.name, "scale", "deployment/qwen", "--replicas=5")
        site.node.kubectl("-n", site.node.name, "rollout", "status", "deployment/qwen", "--timeout=60s")
        site.node.kubectl("-n", site.node.name, "scale", "deployment/qwen", "--replicas=2")
        time.sleep(8)
        site.node.kubectl("-n", site.node.name, "scale", "deployment/qwen", "--replicas=3")
        site.node.kubectl("-n", site.node.name, "rollout", "status", "deployment/qwen", "--timeout=60s")
    assert load.outcomes.keys() == {200}, load.outcomes


def test_whose_picker_it_is_reaches_envoy_without_a_route_that_changes(site):
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "llama-epp"}, "spec": {"ports": [{"port": 9002}]}}
    site.node.apply(service)
    # Nobody is behind it, and the pool fails closed.
    until(lambda: site.status("llama.example") in (500, 503), within=SOON_S, what="its own picker, which is not there, is asked")
    site.node.kubectl("-n", site.node.name, "delete", "service", "llama-epp")
    site.picker_rolled_out("llama")
    until(lambda: site.status("llama.example") == 200, within=SOON_S, what="ours is asked again")


def test_controllers_are_replaced_without_a_lost_request(site):
    of = ("-n", "pointsman-system", "deployment/pointsman-controller")
    with Load(site, "qwen.example") as load:
        site.node.kubectl("rollout", "restart", *of)
        site.node.kubectl("rollout", "status", *of, "--timeout=90s")
        site.node.kubectl("-n", site.node.name, "rollout", "restart", "deployment/qwen")
        site.node.kubectl("-n", site.node.name, "rollout", "status", "deployment/qwen", "--timeout=90s")
        time.sleep(8)
    assert load.outcomes.keys() == {200}, load.outcomes


def test_a_picker_is_replaced_without_a_lost_request(site):
    of = ("-n", "envoy-gateway-system", "-l", site.labels("llama"))
    with Load(site, "llama.example") as load:
        time.sleep(1)
        site.node.kubectl("rollout", "restart", "deployment", *of)
        site.picker_rolled_out("llama")
        time.sleep(5)
    assert load.outcomes.keys() == {200}, load.outcomes


@pytest.mark.parametrize("name, outcome", [("qwen", {200}), ("llama", {500, 503, 504})])
def test_without_a_picker_a_pool_fails_as_it_says(site, name, outcome):
    host = f"{name}.example"
    shape = {"deployment": "spec: {replicas: 0}"}
    overlay = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "none"}, "data": shape}
    site.node.apply(overlay)
    annotate = ("-n", site.node.name, "annotate", "--overwrite", f"inferencepools.{POOL}/{name}")
    site.node.kubectl(*annotate, "inference.networking.x-k8s.io/epp-overlay=none")
    of = ("-n", "envoy-gateway-system", "-l", site.labels(name))
    until(lambda: not site.node.items("pods", *of), within=90, what="its pickers are gone")
    time.sleep(2)
    assert {site.status(host) for _ in range(20)} <= outcome
    site.node.kubectl(*annotate, "inference.networking.x-k8s.io/epp-overlay-")
    site.picker_rolled_out(name)
    until(lambda: site.status(host) == 200, within=SOON_S, what="it serves again")
