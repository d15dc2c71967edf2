"""What Envoys are given for an InferencePool, and what requests then meet: a real API server, the controller, a picker and real Envoys, of each
version that Envoy Gateway's users have. Envoy Gateway is played from what a real one asked."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import pytest

from harness import envoy
from harness.envoy_gateway import Ads, bootstrap, translate
from harness.manifests import pool_v1
from harness.upstream import Upstream
from harness.wait import until

ENVOYS = {"1.40.0": envoy.ENVOY, "1.39.1": os.environ.get("POINTSMAN_ENVOY_1_39", "")}
"""That of `cargo xtask cluster up`, and the one that Envoy Gateway 1.9.1 names."""
HOST = "198.18.0.2"
"""This machine, as pods see it (tests/kubernetes/cluster.sh)."""
WITHIN_S = 20.0
BODY = {"model": "tiny", "prompt": "Which track?", "max_tokens": 4}


class Site:
    """A pool of two model servers, its picker, and an Envoy with what the controller made for it."""

    def __init__(self, cluster, namespace, gateways, start_controller, folder, program: str, *, fail_open: bool) -> None:
        self.namespace, self._gateways, self._folder, self._cluster = namespace, gateways, folder, cluster
        self.start_controller, self._program = start_controller, program
        self.controller = start_controller()
        self.servers = [Upstream(host="127.0.1.1").up()]
        self.servers.append(Upstream(host="127.0.1.2", port=self.servers[0].port).up())
        reference = {"name": "epp", "port": {"number": 9002}}
        namespace.apply(pool_v1(port=self.servers[0].port, endpointPickerRef=reference))
        for number, server in enumerate(self.servers):
            namespace.pod(f"server-{number}", server.host)
        self.picker = self.start_picker()
        made = translate(self.controller.extension, namespace.name, "pool", fail_open=fail_open)
        self.ads = Ads(made)
        self.envoy = self.new_envoy(folder)
        self.client = httpx.Client(base_url=self.envoy.url, timeout=30, trust_env=False)
        until(lambda: len(self.endpoints()) == 2, within=WITHIN_S, what="Envoy knows both endpoints")

    def new_envoy(self, folder) -> envoy.Envoy:
        return envoy.Envoy(folder, bootstrap(self.ads), program=self._program, listener="default/gw/http")

    def second_envoy(self) -> envoy.Envoy:
        """Beside the first, and without what that one knows."""
        folder = self._folder / "second"
        folder.mkdir()
        return self.new_envoy(folder)

    def start_picker(self):
        """A picker beside those that Kubernetes believes to run, where Envoy finds it: an EndpointSlice of their Service names it."""
        named = ("--pool-name", "pool", "--pool-namespace", self.namespace.name, "--kubeconfig", self._cluster.kubeconfig)
        picker = envoy.Process(
            self._folder / "epp.log",
            *envoy.command("epp", *named, "--bind", HOST, "--grpc-port", 0, "--grpc-health-port", 0, "--metrics-port", 0),
        )
        (port,) = picker.ready(r"ready grpc=\S+:(\d+) health=")
        labels = f"inference-pool=pool,inference-pool-namespace={self.namespace.name}"
        found = lambda: self._cluster.get("services", "-n", self._gateways.name, "-l", labels)["items"]
        (service,) = until(found, within=WITHIN_S, what="the controller made the picker's Service")
        (name,) = [each["name"] for each in service["spec"]["ports"] if each["port"] == 9002]
        self._gateways.apply(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": "here", "labels": {"kubernetes.io/service-name": service["metadata"]["name"]}},
                "addressType": "IPv4",
                "ports": [{"name": name, "port": int(port), "protocol": "TCP"}],
                "endpoints": [{"addresses": [HOST], "conditions": {"ready": True}}],
            }
        )
        return picker

    def endpoints(self) -> set[str]:
        """Of the pool, as Envoy has them."""
        page = httpx.get(f"{self.envoy.admin}/clusters", trust_env=False).text
        lines = (line.split("::") for line in page.splitlines() if line.startswith(f"httproute/default/sole/rule/0/pool/{self.namespace.name}/pool::127."))
        return {line[1] for line in lines}

    def picker_is_healthy(self) -> bool:
        return self.envoy.stat(f"cluster.pointsman/picker/{self.namespace.name}/pool.membership_healthy") == 1

    def ask(self) -> httpx.Response:
        return self.client.post("/v1/completions", json=BODY)

    def close(self) -> None:
        self.client.close()
        self.envoy.close()
        self.ads.close()
        self.picker.close()
        for number, server in enumerate(self.servers):
            self.namespace.gone(f"server-{number}")
            server.down()


@pytest.fixture
def site(cluster, namespace, gateways, control, tmp_path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def site(version: str = "1.40.0", *, fail_open: bool = False) -> Site:
        port = envoy.free_port()

        def start_controller():
            controller = control("--extension-port", port, "--discovery-address", f"127.0.0.1:{port}")
            until(controller.is_listed, within=WITHIN_S, what="the controller knows the cluster")
            return controller

        program = ENVOYS[version]
        assert program, "POINTSMAN_ENVOY_1_39 is not set: cargo xtask test sets it"
        made.append(Site(cluster, namespace, gateways, start_controller, tmp_path, program, fail_open=fail_open))
        until(made[-1].picker_is_healthy, within=WITHIN_S, what="the picker serves")
        return made[-1]

    yield site
    for one in made:
        one.close()


@pytest.mark.parametrize("version", ENVOYS)
def test_envoy_goes_where_the_picker_says(site, version):
    site = site(version)
    assert [site.ask().status_code for _ in range(8)] == [200] * 8
    assert {len(server.requests) for server in site.servers} == {4}, "by the picker, in turn"
    (picked,) = {seen.header("x-gateway-destination-endpoint").split(",")[0] for seen in site.servers[0].requests}
    assert picked == site.servers[0].address
    assert site.ads.refused == []
    assert version in httpx.get(f"{site.envoy.admin}/server_info", trust_env=False).json()["version"]


def test_a_pod_that_leaves_the_pool_leaves_envoy_within_a_second(site):
    site = site()
    site.namespace.kubectl("label", "pod", "server-0", "app=elsewhere", "--overwrite")
    until(lambda: site.endpoints() == {site.servers[1].address}, within=1, what="it is out")
    assert site.ask().status_code == 200
    site.namespace.kubectl("label", "pod", "server-0", "app=model-server", "--overwrite")
    until(lambda: len(site.endpoints()) == 2, within=1, what="it is in")


@pytest.mark.parametrize("fail_open", [False, True], ids=["FailClose", "FailOpen"])
def test_answers_outlive_their_picker(site, fail_open):
    site = site(fail_open=fail_open)
    for server in site.servers:
        server.answers(tokens=40, token_interval_s=0.05)
    words = []

    def ask() -> None:
        with site.client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as answer:
            words.extend(answer.iter_lines())

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: words, within=WITHIN_S, what="the answer begins")
    site.picker.kill()
    asking.join()
    assert "data: [DONE]" in words, words[-4:]


@pytest.mark.parametrize("fail_open, status, body", [(False, 503, "no healthy upstream"), (True, 200, None)], ids=["FailClose", "FailOpen"])
def test_without_a_picker(site, fail_open, status, body):
    site = site(fail_open=fail_open)
    site.picker.kill()
    answers = [site.ask() for _ in range(6)]
    assert {answer.status_code for answer in answers} == {status}
    assert body is None or {answer.text for answer in answers} == {body}
    assert sum(len(server.requests) for server in site.servers) == (6 if fail_open else 0)
    # Its Service leads to the next one.
    site.picker = site.start_picker()
    picked = lambda: site.ask().status_code == 200 and site.servers[0].requests[-1:] and "x-gateway-destination-endpoint" in dict(
        site.servers[0].requests[-1].headers
    )
    until(picked, within=WITHIN_S, what="the next picker picks")


def test_picked_endpoints_that_fail_are_passed_over(site):
    """Behind the pick stands a policy that knows no endpoint for what was not picked; for what was it knows all."""
    site = site()
    site.servers[0].down()
    assert [site.ask().status_code for _ in range(10)] == [200] * 10


@pytest.mark.parametrize("version", ENVOYS)
def test_without_a_controller(site, version):
    """Envoys keep the endpoints that they know; one that starts serves what leads to no pool. Once a controller is back, all know all."""
    site = site(version)
    site.controller.close()
    site.namespace.kubectl("label", "pod", "server-0", "app=elsewhere", "--overwrite")
    began = time.monotonic()
    with closing(site.second_envoy()) as second:
        assert time.monotonic() - began < 9, "it takes connections"
        ask = lambda: httpx.post(f"{second.url}/v1/completions", json=BODY, trust_env=False).status_code
        assert ask() == 503
        # Envoy's own way of trying again would be up to 30 s apart by now.
        time.sleep(10)
        assert len(site.endpoints()) == 2 and site.ask().status_code == 200
        site.controller = site.start_controller()
        until(lambda: site.endpoints() == {site.servers[1].address}, within=3, what="the first one learns what happened meanwhile")
        until(lambda: ask() == 200, within=3, what="the second serves the pool")
