"""An InferencePool of two model servers on a real API server, with its picker where Kubernetes believes it to run."""

from pathlib import Path

from harness import envoy
from harness.cluster import Cluster, Namespace
from harness.manifests import pool_v1
from harness.upstream import Upstream
from harness.wait import until

HOST = "198.18.0.2"
"""This machine, as pods see it (tests/kubernetes/cluster.sh)."""
WITHIN_S = 20.0


class PickedPool:
    """The controller makes what a picker needs; the picker itself is started here. `network` is the third byte of its servers' addresses."""

    def __init__(
        self, cluster: Cluster, namespace: Namespace, gateways: Namespace, folder: Path, name: str = "pool", *, network: int = 1, fail_open: bool = False
    ) -> None:
        self._cluster, self._namespace, self._gateways, self._folder, self.name = cluster, namespace, gateways, folder, name
        self.servers = [Upstream(host=f"127.0.{network}.1").up()]
        self.servers.append(Upstream(host=f"127.0.{network}.2", port=self.servers[0].port).up())
        self.labels = {"app": name}
        reference = {"name": f"{name}-epp", "port": {"number": 9002}, "failureMode": "FailOpen" if fail_open else "FailClose"}
        self.manifest = pool_v1(
            name=name, port=self.servers[0].port, selector={"matchLabels": self.labels}, endpointPickerRef=reference
        )
        namespace.apply(self.manifest)
        for number, server in enumerate(self.servers):
            namespace.pod(self.pod(number), server.host, labels=self.labels)
        self.start_picker()

    def pod(self, number: int) -> str:
        return f"{self.name}-{number}"

    def start_picker(self) -> None:
        """A picker where Envoy finds it: an EndpointSlice of the Service that the controller made names it."""
        named = ("--pool-name", self.name, "--pool-namespace", self._namespace.name, "--kubeconfig", self._cluster.kubeconfig)
        ports = ("--grpc-port", 0, "--grpc-health-port", 0, "--metrics-port", 0)
        self.picker = envoy.Process(self._folder / f"epp-{self.name}.log", *envoy.command("epp", *named, "--bind", HOST, *ports))
        (port,) = self.picker.ready(r"ready grpc=\S+:(\d+) health=")
        labels = f"inference-pool={self.name},inference-pool-namespace={self._namespace.name}"
        found = lambda: self._cluster.get("services", "-n", self._gateways.name, "-l", labels)["items"]
        (service,) = until(found, within=WITHIN_S, what="the controller made the picker's Service")
        (name,) = [each["name"] for each in service["spec"]["ports"] if each["port"] == 9002]
        self._gateways.apply(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": f"here-{self.name}", "labels": {"kubernetes.io/service-name": service["metadata"]["name"]}},
                "addressType": "IPv4",
                "ports": [{"name": name, "port": int(port), "protocol": "TCP"}],
                "endpoints": [{"addresses": [HOST], "conditions": {"ready": True}}],
            }
        )

    def select(self, number: int, *, selected: bool) -> None:
        """Takes a pod out of the pool, or back in."""
        app = self.name if selected else "elsewhere"
        self._namespace.kubectl("label", "pod", self.pod(number), f"app={app}", "--overwrite")

    def served(self) -> list[int]:
        """Requests that each of the servers has seen."""
        return [len(server.requests) for server in self.servers]

    def close(self) -> None:
        self.picker.close()
        for number, server in enumerate(self.servers):
            self._namespace.gone(self.pod(number))
            server.down()
