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
from harness.controller import Controller
from harness.envoy_gateway import Ads, bootstrap, translate
from harness.load import Load
from harness.picked_pool import WITHIN_S, PickedPool
from harness.wait import until

ENVOYS = {"1.40.0": envoy.ENVOY, "1.39.1": os.environ.get("POINTSMAN_ENVOY_1_39", "")}
"""That of `cargo xtask cluster up`, and the one that Envoy Gateway 1.9.1 names."""
BODY = {"model": "tiny", "prompt": "Which track?", "max_tokens": 4}


class Site:
    """A pool with its picker, and an Envoy with what the controller made for it."""

    def __init__(self, pool: PickedPool, namespace: str, controller: Controller, folder, program: str, *, fail_open: bool) -> None:
        self.pool, self._of, self._folder, self._program = pool, f"{namespace}/{pool.name}", folder, program
        self.controller = controller
        self.servers = pool.servers
        self.translate = lambda: translate(controller.extension, namespace, pool.name, fail_open=fail_open)
        self.ads = Ads(self.translate())
        self.envoy = self.new_envoy(folder)
        self.client = httpx.Client(base_url=self.envoy.url, timeout=30, trust_env=False)
        until(lambda: len(self.endpoints()) == 2, within=WITHIN_S, what="Envoy knows both endpoints")
        until(self.picker_is_healthy, within=WITHIN_S, what="the picker serves")

    def new_envoy(self, folder) -> envoy.Envoy:
        return envoy.Envoy(folder, bootstrap(self.ads), program=self._program, listener="default/gw/http")

    def second_envoy(self) -> envoy.Envoy:
        """Beside the first, and without what that one knows."""
        folder = self._folder / "second"
        folder.mkdir()
        return self.new_envoy(folder)

    def endpoints(self) -> set[str]:
        """Of the pool, as Envoy has them."""
        page = httpx.get(f"{self.envoy.admin}/clusters", trust_env=False).text
        cluster = f"httproute/default/sole/rule/0/pool/{self._of}::127."
        return {line.split("::")[1] for line in page.splitlines() if line.startswith(cluster)}

    def picker_is_healthy(self) -> bool:
        return self.envoy.stat(f"cluster.pointsman/picker/{self._of}.membership_healthy") == 1

    def change_pickers(self, name: str) -> None:
        """Gives Envoy the translation that asks that one, once there is that."""
        self.ads.give(until(lambda: self.asks(name, made := self.translate()) and made, within=WITHIN_S, what=f"{name} is asked"))
        before = self.requests(name)
        until(lambda: self.requests(name) > before + 8, within=WITHIN_S, what=f"Envoy asks {name}")

    def asks(self, name: str, translation: dict) -> bool:
        return any(f"pointsman/{name}/{self._of}" in str(each) for each in translation["routes"])

    def requests(self, name: str) -> int:
        """That Envoy has made to that picker."""
        return self.envoy.stat(f"cluster.pointsman/{name}/{self._of}.upstream_rq_total")

    def ask(self) -> httpx.Response:
        return self.client.post("/v1/completions", json=BODY)

    def close(self) -> None:
        self.client.close()
        self.envoy.close()
        self.ads.close()
        self.pool.close()


@pytest.fixture
def site(cluster, namespace, gateways, start_controller, tmp_path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def site(version: str = "1.40.0", *, fail_open: bool = False) -> Site:
        program = ENVOYS[version]
        assert program, "POINTSMAN_ENVOY_1_39 is not set: cargo xtask test sets it"
        controller = start_controller()
        pool = PickedPool(cluster, namespace, gateways, tmp_path, fail_open=fail_open)
        made.append(Site(pool, namespace.name, controller, tmp_path, program, fail_open=fail_open))
        return made[-1]

    yield site
    for one in made:
        one.close()


@pytest.mark.parametrize("version", ENVOYS)
def test_envoy_goes_where_the_picker_says(site, version):
    site = site(version)
    assert [site.ask().status_code for _ in range(8)] == [200] * 8
    assert site.pool.served() == [4, 4], "by the picker, in turn"
    (picked,) = {seen.header("x-gateway-destination-endpoint").split(",")[0] for seen in site.servers[0].requests}
    assert picked == site.servers[0].address
    assert site.ads.refused == []
    assert version in httpx.get(f"{site.envoy.admin}/server_info", trust_env=False).json()["version"]


def test_a_pod_that_leaves_the_pool_leaves_envoy_within_a_second(site):
    site = site()
    site.pool.select(0, selected=False)
    until(lambda: site.endpoints() == {site.servers[1].address}, within=1, what="it is out")
    assert site.ask().status_code == 200
    site.pool.select(0, selected=True)
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
    site.pool.picker.kill()
    asking.join()
    assert "data: [DONE]" in words, words[-4:]


@pytest.mark.parametrize("fail_open, status, body", [(False, 503, "no healthy upstream"), (True, 200, None)], ids=["FailClose", "FailOpen"])
def test_without_a_picker(site, fail_open, status, body):
    site = site(fail_open=fail_open)
    site.pool.picker.kill()
    answers = [site.ask() for _ in range(6)]
    assert {answer.status_code for answer in answers} == {status}
    assert body is None or {answer.text for answer in answers} == {body}
    assert sum(site.pool.served()) == (6 if fail_open else 0)
    # Its Service leads to the next one, which is asked as soon as it is healthy.
    until(lambda: not site.picker_is_healthy(), within=WITHIN_S, what="Envoy sees that it is gone")
    site.pool.start_picker()
    until(site.picker_is_healthy, within=WITHIN_S, what="the next picker serves")
    assert [site.ask().status_code for _ in range(4)] == [200] * 4
    assert all("x-gateway-destination-endpoint" in dict(server.requests[-1].headers) for server in site.servers)


@pytest.mark.parametrize("version, tls", [("1.40.0", True), ("1.40.0", False), ("1.39.1", True)])
def test_a_change_of_pickers_loses_no_request(site, version, tls):
    """From ours to the pool's own, which speaks TLS or does not, and back to ours, which starts anew."""
    site = site(version)
    with Load(lambda: site.ask().status_code) as load:
        for _ in range(2):
            site.pool.bring_service(tls=tls)
            # Longer than ours would be left for.
            time.sleep(5)
            site.pool.bring_picker()
            site.change_pickers("own-picker")
            site.pool.picker.close()
            site.pool.take_picker_back()
            site.pool.start_picker()
            site.change_pickers("picker")
            site.pool.own_picker.close()
    assert load.outcomes.keys() == {200}, load.outcomes
    assert site.ads.refused == []


def test_a_picker_that_the_pool_names_no_more_is_not_asked_again(site, cluster, namespace):
    """Back at ours, the pool names a Service behind which nothing is ready: ours is asked for a while, and then it is told that it goes."""
    site = site()
    site.pool.bring_service(tls=True)
    site.pool.bring_picker()
    with Load(lambda: site.ask().status_code) as load:
        site.change_pickers("own-picker")
        site.pool.picker.close()
        site.pool.name_service("nobody")
        site.pool.start_picker()
        site.change_pickers("picker")
        before = site.requests("own-picker")
        site.pool.bring_service(tls=True)
        time.sleep(6)
        translation = site.translate()
        assert site.asks("picker", translation) and not site.asks("own-picker", translation)
        site.ads.give(translation)
        time.sleep(1)
    assert load.outcomes.keys() == {200}, load.outcomes
    assert site.requests("own-picker") == before
    (event,) = until(lambda: not_serving(cluster, namespace), within=25, what="it is told that ours is gone")
    assert event["type"] == "Warning" and f"Service {namespace.name}/nobody" in event["message"]


def test_the_picker_that_a_pool_brought_stands_in_for_its_next_for_a_while(site, cluster, namespace):
    site = site()
    first = site.pool.own_service
    site.pool.bring_service(tls=True)
    site.pool.bring_picker()
    with Load(lambda: site.ask().status_code) as load:
        site.change_pickers("own-picker")
        site.pool.bring_service("nobody", tls=True)
        site.pool.name_service("nobody")
        time.sleep(10)
        assert load.outcomes.keys() == {200}, load.outcomes
        until(lambda: not_serving(cluster, namespace), within=20, what="it is told")
        until(lambda: site.ask().status_code == 500, within=5, what="nobody picks")
    site.pool.name_service(first)
    until(lambda: site.ask().status_code == 200, within=5, what="that one is asked again")


def not_serving(cluster, namespace) -> list[dict]:
    return [event for event in cluster.get("events", "-n", namespace.name)["items"] if event["reason"] == "PickerNotServing"]


def test_picked_endpoints_that_fail_are_passed_over(site):
    """Behind the pick stands a policy that knows no endpoint for what was not picked; for what was it knows all."""
    site = site()
    site.servers[0].down()
    assert [site.ask().status_code for _ in range(10)] == [200] * 10


@pytest.mark.parametrize("version", ENVOYS)
def test_without_a_controller(site, start_controller, version):
    """Envoys keep the endpoints that they know; one that starts serves what leads to no pool. Once a controller is back, all know all."""
    site = site(version)
    site.controller.close()
    site.pool.select(0, selected=False)
    began = time.monotonic()
    with closing(site.second_envoy()) as second:
        assert time.monotonic() - began < 9, "it takes connections"
        ask = lambda: httpx.post(f"{second.url}/v1/completions", json=BODY, trust_env=False).status_code
        assert ask() == 503
        # Envoy's own way of trying again would be up to 30 s apart by now.
        time.sleep(10)
        assert len(site.endpoints()) == 2 and site.ask().status_code == 200
        start_controller()
        until(lambda: site.endpoints() == {site.servers[1].address}, within=3, what="the first one learns what happened meanwhile")
        until(lambda: ask() == 200, within=3, what="the second serves the pool")
