"""One real Kubernetes API for all of these tests; a namespace for each."""

from collections.abc import Callable, Iterator

import pytest

from harness.cluster import Cluster, Namespace
from harness.controller import Controller
from harness.envoy import free_port
from harness.epp import Picker
from harness.wait import until


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    namespace = Namespace(cluster, request.node.name.removeprefix("test_"))
    yield namespace
    namespace.close()


@pytest.fixture
def pick(cluster: Cluster, namespace: Namespace, tmp_path) -> Iterator[Callable[..., Picker]]:
    """Starts a picker for the pool `pool` of the test's namespace."""
    started: list[Picker] = []

    def pick(*arguments: object, kubeconfig: object = None) -> Picker:
        named = ("--pool-name", "pool", "--pool-namespace", namespace.name)
        started.append(Picker(tmp_path, "--kubeconfig", kubeconfig or cluster.kubeconfig, *named, *arguments))
        return started[-1]

    yield pick
    for picker in started:
        picker.close()


@pytest.fixture
def gateways(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """The gateway's namespace of one test."""
    gateways = Namespace(cluster, "gw-" + request.node.name.removeprefix("test_"))
    yield gateways
    gateways.close()


@pytest.fixture
def control(cluster: Cluster, gateways: Namespace, tmp_path) -> Iterator[Callable[..., Controller]]:
    """Starts a controller with the rights of an installation. One at a time: all see all pools."""
    started: list[Controller] = []
    granted = cluster.as_controller(gateways.name, tmp_path / "controller.kubeconfig")

    def control(*arguments: object, kubeconfig: object = None) -> Controller:
        started.append(Controller(tmp_path, kubeconfig or granted, gateways.name, *arguments))
        return started[-1]

    yield control
    for controller in started:
        controller.close()


@pytest.fixture
def start_controller(control) -> Callable[[], Controller]:
    """Starts a controller that has seen everything, each time at the same port, which Envoys are told."""
    port = free_port()

    def start_controller() -> Controller:
        controller = control("--extension-port", port, "--discovery-address", f"127.0.0.1:{port}")
        until(controller.is_listed, within=20, what="the controller knows the cluster")
        return controller

    return start_controller
