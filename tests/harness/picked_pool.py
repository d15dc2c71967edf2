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
        self.own_service, self.own_picker = f"{name}-epp", None
        reference = {"name": self.own_service, "port": {"number": 9002}, "failureMode": "FailOpen" if fail_open else "FailClose"}
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
        self.picker, port = self._run_picker("ours")
        labels = f"inference-pool={self.name},inference-pool-namespace={self._namespace.name}"
        found = lambda: self._cluster.get("services", "-n", self._gateways.name, "-l", labels)["items"]
        (service,) = until(found, within=WITHIN_S, what="the controller made the picker's Service")
        (name,) = [each["name"] for each in service["spec"]["ports"] if each["port"] == 9002]
        self._gateways.apply(endpoint_slice(service["metadata"]["name"], name, port))

    def bring_service(self, name: str | None = None, *, tls: bool) -> None:
        """The Service that the pool names, or will: of a picker of its own, which speaks TLS or does not."""
        self._tls = tls
        grpc = {"port": 9002, "name": "grpc", **({} if tls else {"appProtocol": "kubernetes.io/h2c"})}
        service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name or self.own_service}, "spec": {"ports": [grpc]}}
        self._namespace.apply(service)

    def name_service(self, name: str) -> None:
        """As the one of its picker."""
        self.own_service = self.manifest["spec"]["endpointPickerRef"]["name"] = name
        self._namespace.apply(self.manifest)

    def bring_picker(self) -> None:
        """That picker."""
        self.own_picker, port = self._run_picker("own", f"--secure-serving={str(self._tls).lower()}")
        self._namespace.apply(endpoint_slice(self.own_service, "grpc", port))

    def take_picker_back(self) -> None:
        self._namespace.kubectl("delete", "service,endpointslice", self.own_service, f"here-{self.own_service}", "--ignore-not-found")

    def _run_picker(self, whose: str, *flags: str) -> tuple[envoy.Process, int]:
        named = ("--pool-name", self.name, "--pool-namespace", self._namespace.name, "--kubeconfig", self._cluster.kubeconfig)
        ports = ("--grpc-port", 0, "--grpc-health-port", 0, "--metrics-port", 0)
        log = self._folder / f"epp-{self.name}-{whose}.log"
        picker = envoy.Process(log, *envoy.command("epp", *named, "--bind", HOST, *ports, *flags))
        (port,) = picker.ready(r"ready grpc=\S+:(\d+) health=")
        return picker, int(port)

    def select(self, number: int, *, selected: bool) -> None:
        """Takes a pod out of the pool, or back in."""
        app = self.name if selected else "elsewhere"
        self._namespace.kubectl("label", "pod", self.pod(number), f"app={app}", "--overwrite")

    def served(self) -> list[int]:
        """Requests that each of the servers has seen."""
        return [len(server.requests) for server in self.servers]

    def close(self) -> None:
        self.picker.close()
        if self.own_picker:
            self.own_picker.close()
        for number, server in enumerate(self.servers):
            self._namespace.gone(self.pod(number))
            server.down()


def endpoint_slice(service: str, port_name: str, port: int) -> dict:
    """A picker of this machine behind that Service."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"here-{service}", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [HOST], "conditions": {"ready": True}}],
    }
