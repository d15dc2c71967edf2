"""The node does what a cluster does: pods, Services, DNS, and a Gateway whose proxy is Envoy Gateway's own."""

import httpx
import pytest

HELLO = {"name": "hello", "image": "local/hello:1", "imagePullPolicy": "Never", "args": ["serve", "8080"]}


@pytest.fixture(scope="module")
def hello(node) -> None:
    """Two pods behind a Service `hello`."""
    probe = {"httpGet": {"port": 8080}, "periodSeconds": 1}
    container = {**HELLO, "ports": [{"containerPort": 8080}], "readinessProbe": probe}
    template = {"metadata": {"labels": {"app": "hello"}}, "spec": {"containers": [container], "terminationGracePeriodSeconds": 1}}
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "hello"}}, "template": template}
    ports = [{"port": 80, "targetPort": 8080}]
    node.apply(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "hello"}, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hello"}, "spec": {"selector": {"app": "hello"}, "ports": ports}},
    )
    node.kubectl("-n", node.name, "rollout", "status", "deployment/hello", "--timeout=90s")


def status(url: str, **headers: str) -> int | str:
    try:
        return httpx.get(url, headers=headers, timeout=5).status_code
    except httpx.TransportError as error:
        return repr(error)


def test_pods_are_ready_and_reached_from_this_machine(node, hello, soon):
    pods = node.get("pods", "-l", "app=hello")["items"]
    assert len(pods) == 2
    for pod in pods:
        assert httpx.get(f"http://{pod['status']['podIP']}:8080").text.strip() == pod["metadata"]["name"]


def test_a_service_is_reached_by_its_address_from_this_machine_and_leads_to_every_pod(node, hello, soon):
    address = node.get("service", "hello")["spec"]["clusterIP"]
    soon(lambda: status(f"http://{address}"), 200)
    pods = {pod["metadata"]["name"] for pod in node.get("pods", "-l", "app=hello")["items"]}
    assert {httpx.get(f"http://{address}").text.strip() for _ in range(40)} == pods


@pytest.mark.parametrize("name", ["hello", "hello.{namespace}.svc.cluster.local."])
def test_a_pod_finds_a_service_by_name(node, hello, soon, name):
    url = f"http://{name.format(namespace=node.name)}/"

    def ask() -> str:
        try:
            return node.kubectl("-n", node.name, "exec", "deployment/hello", "--", "/usr/local/bin/hello", "get", url)[:4]
        except AssertionError as error:
            return str(error)

    soon(ask, "200 ")


def test_a_gateway_with_a_route_answers_through_envoy(node, hello, soon):
    address = node.gateway(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "route"},
            "spec": {
                "parentRefs": [{"name": "gateway"}],
                "hostnames": ["hello.example"],
                "rules": [{"backendRefs": [{"name": "hello", "port": 80}]}],
            },
        },
    )
    soon(lambda: status(f"http://{address}", host="hello.example"), 200)
    pods = {pod["metadata"]["name"] for pod in node.get("pods", "-l", "app=hello")["items"]}
    assert httpx.get(f"http://{address}", headers={"host": "hello.example"}).text.strip() in pods
    # Only that host has a route; Envoy itself says so.
    assert status(f"http://{address}", host="other.example") == 404
