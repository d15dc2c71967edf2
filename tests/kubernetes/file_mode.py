"""InferencePools on a real Envoy Gateway without a cluster: `cargo xtask test --envoy-gateway`. The API server, the controller, pickers, Envoy
Gateway and its Envoy are real; model servers are played.

What users declare is told twice, since Envoy Gateway reads a file here and the controller the API server."""

import tarfile
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
import yaml

from harness.envoy import free_port
from harness.file_mode import CACHE, EnvoyGateway, gateway
from harness.load import Load
from harness.picked_pool import WITHIN_S, PickedPool
from harness.upstream import Upstream
from harness.wait import holds, until

GROUP = "inference.networking.k8s.io"
BODY = {"model": "tiny", "prompt": "Which track?", "max_tokens": 4}


@pytest.fixture(scope="module")
def gateway_api(cluster) -> None:
    """The Gateway API's CRDs, of Envoy Gateway's chart."""
    (chart,) = (CACHE / "envoy-gateway-chart").glob("gateway-helm-*.tgz")
    with tarfile.open(chart) as files:
        crds = files.extractfile("gateway-helm/charts/crds/crds/gatewayapi-crds.yaml").read().decode()
    crds = [each for each in yaml.safe_load_all(crds) if each and each["kind"] == "CustomResourceDefinition"]
    cluster.apply(*crds)
    for each in crds:
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", each["metadata"]["name"])


class Site:
    """Two pools, `qwen` that fails open and `llama`, a server that is in none, and an Envoy Gateway."""

    def __init__(self, cluster, namespace, gateways, start_controller, folder) -> None:
        self.namespace, self.start_controller = namespace, start_controller
        self.controller = start_controller()
        self.qwen = PickedPool(cluster, namespace, gateways, folder, "qwen", network=1, fail_open=True)
        self.llama = PickedPool(cluster, namespace, gateways, folder, "llama", network=2)
        self.plain = Upstream(host="127.0.3.1").up()
        self.ports = {"http": free_port(), "other": free_port()}
        self.declared: dict[tuple[str, str], dict] = {}
        self.gateway = EnvoyGateway(folder, self.controller.extension)
        self.client = httpx.Client(timeout=30, trust_env=False)
        for pool in (self.qwen, self.llama):
            self.declared["InferencePool", pool.name] = pool.manifest

    def declare(self, *documents: dict) -> None:
        """To the API server, and to Envoy Gateway with all that it knows."""
        for document in documents:
            document["metadata"]["namespace"] = self.namespace.name
            self.declared[document["kind"], document["metadata"]["name"]] = document
        routes = [each for each in documents if each["kind"] == "HTTPRoute"]
        if routes:
            self.namespace.apply(*routes)
        self.gateway.declare(*gateway(self.namespace.name, **self.ports), self.backend(), *self.declared.values())

    def backend(self) -> dict:
        """The server that is in no pool, as Envoy Gateway's file mode has Services."""
        host, port = self.plain.address.rsplit(":", 1)
        return {
            "apiVersion": "gateway.envoyproxy.io/v1alpha1",
            "kind": "Backend",
            "metadata": {"name": "plain", "namespace": self.namespace.name},
            "spec": {"endpoints": [{"ip": {"address": host, "port": int(port)}}]},
        }

    def ask(self, path: str, listener: str = "http", **headers: str) -> httpx.Response:
        url = f"http://127.0.0.1:{self.ports[listener]}{path}/v1/completions"
        return self.client.post(url, json=BODY, headers=headers)

    def status(self, path: str, listener: str = "http") -> int | str:
        try:
            return self.ask(path, listener).status_code
        except httpx.TransportError as error:
            return type(error).__name__

    def answers(self, path: str, status: int = 200, listener: str = "http") -> None:
        until(lambda: self.status(path, listener) == status, within=WITHIN_S, what=f"{path} answers {status}")

    def close(self) -> None:
        self.client.close()
        self.gateway.close()
        for pool in (self.qwen, self.llama):
            pool.close()
        self.plain.down()


@pytest.fixture
def site(cluster, gateway_api, namespace, gateways, start_controller, tmp_path) -> Iterator[Site]:
    site = Site(cluster, namespace, gateways, start_controller, tmp_path)
    yield site
    site.close()


def to(name: str, weight: int = 1) -> dict:
    if name == "plain":
        return {"group": "gateway.envoyproxy.io", "kind": "Backend", "name": name, "weight": weight}
    return {"group": GROUP, "kind": "InferencePool", "name": name, "weight": weight}


def route(name: str, *backends: dict, listener: str | None = "http", **rule: object) -> dict:
    """By the path of its name, which is taken away."""
    parent = {"name": "gateway", **({"sectionName": listener} if listener else {})}
    rewrite = {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}}
    matches = [{"path": {"type": "PathPrefix", "value": f"/{name}/"}}]
    made = {"matches": matches, "filters": [rewrite], "backendRefs": list(backends), **rule}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name},
        "spec": {"parentRefs": [parent], "rules": [made]},
    }


def policy(name: str, **spec: object) -> dict:
    target = {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": name}
    return {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "BackendTrafficPolicy",
        "metadata": {"name": name},
        "spec": {"targetRefs": [target], **spec},
    }


def gets_requests(*servers: Upstream) -> bool:
    """Whether requests come now."""
    before = [len(server.requests) for server in servers]
    time.sleep(0.5)
    return [len(server.requests) for server in servers] != before


def in_turn(site: Site, path: str, count: int) -> list[int]:
    """So many requests, one after the other; how many each server of `qwen` got."""
    before = site.qwen.served()
    assert {site.status(path) for _ in range(count)} == {200}
    return [after - was for after, was in zip(site.qwen.served(), before)]


def test_requests_go_where_the_picker_says(site):
    site.declare(route("sole", to("qwen")), route("closed", to("llama")), route("plain", to("plain")))
    for path in ("/sole", "/closed", "/plain"):
        site.answers(path)
    assert in_turn(site, "/sole", 8) == [4, 4], "by the picker, in turn"
    last = site.qwen.servers[0].requests[-1]
    assert last.header("x-gateway-destination-endpoint").split(",")[0] == site.qwen.servers[0].address
    # What leads to no pool asks no picker.
    assert site.ask("/plain").status_code == 200
    assert "x-gateway-destination-endpoint" not in dict(site.plain.requests[-1].headers)
    # A pod that leaves is out at once, and Envoy Gateway is not asked.
    site.qwen.select(0, selected=False)
    until(lambda: in_turn(site, "/sole", 4) == [0, 4], within=1, what="it is out")


def test_weights_are_the_routes_and_change_without_a_lost_request(site):
    """From and to 0, and from a server without a pool to a pool: Envoy has a pool's cluster before its first request comes."""
    site.declare(route("canary", to("qwen", 1), to("llama", 0)), route("migrate", to("plain", 1), to("llama", 0)))
    site.answers("/canary")
    site.answers("/migrate")
    with Load(lambda: site.status("/canary")) as canary, Load(lambda: site.status("/migrate")) as migrate:
        for qwen, llama in ((3, 1), (0, 1), (1, 1), (1, 0), (3, 1)):
            weights = ("llama", llama)
            site.declare(route("canary", to("qwen", qwen), to(*weights)), route("migrate", to("plain", qwen), to(*weights)))
            shared = lambda: (gets_requests(site.plain), gets_requests(*site.llama.servers)) == (qwen > 0, llama > 0)
            until(shared, within=WITHIN_S, what=f"weights {qwen} and {llama} are in force")
    assert canary.outcomes.keys() == {200} and migrate.outcomes.keys() == {200}, (canary.outcomes, migrate.outcomes)
    counts = [sum(site.qwen.served()), sum(site.llama.served())]
    assert {site.status("/canary") for _ in range(200)} == {200}
    share = (sum(site.llama.served()) - counts[1]) / 200
    assert 0.12 < share < 0.4, share


def test_a_missing_pool_loses_its_own_share_alone(site):
    site.declare(route("half", to("qwen"), to("nowhere")), route("sole", to("llama")))
    site.answers("/sole")
    site.answers("/half")
    outcomes = Counter(site.status("/half") for _ in range(100))
    assert outcomes.keys() == {200, 500} and 25 < outcomes[200] < 75, outcomes


def test_policies_of_envoy_gateway_hold_on_routes_to_pools(site):
    limit = {"type": "Local", "local": {"rules": [{"limit": {"requests": 3, "unit": "Hour"}}]}}
    site.declare(
        route("limited", to("qwen")),
        policy("limited", rateLimit=limit),
        route("short", to("llama")),
        policy("short", timeout={"http": {"requestTimeout": "700ms"}}),
        route("free", to("qwen")),
    )
    site.answers("/free")
    site.answers("/limited", 429)
    site.answers("/short")
    for server in site.llama.servers:
        server.answers(first_byte_s=2)
    assert site.status("/short") == 504
    assert {site.status("/free") for _ in range(5)} == {200}


def test_several_listeners(site):
    site.declare(route("here", to("qwen")), route("there", to("llama"), listener="other"), route("both", to("qwen"), listener=None))
    site.answers("/here")
    site.answers("/there", listener="other")
    site.answers("/both")
    site.answers("/both", listener="other")
    assert site.status("/here", "other") == site.status("/there") == 404


def test_without_a_controller_nothing_is_lost_and_nothing_changes(site):
    site.declare(route("sole", to("qwen")))
    site.answers("/sole")
    site.controller.close()
    with Load(lambda: site.status("/sole")) as load:
        site.declare(route("later", to("llama")))
        holds(lambda: site.status("/later") == 404, over=6, what="Envoy Gateway waits")
        site.start_controller()
        site.answers("/later")
    assert load.outcomes.keys() == {200}, load.outcomes
