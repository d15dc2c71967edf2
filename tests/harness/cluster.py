"""A real Kubernetes API (tests/kubernetes/cluster.sh), as a user with kubectl meets it."""

import json
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from harness.manifests import LABELS
from harness.pointsman import ROOT, run
from harness.relay import Relay

CACHE = Path(os.environ.get("POINTSMAN_CACHE", Path.home() / ".cache/pointsman"))
PROGRAMS = Path(os.environ.get("POINTSMAN_KUBERNETES", CACHE / "kubernetes"))
CRDS = Path(os.environ.get("POINTSMAN_CRDS", CACHE / "kubernetes-crds"))
RUN = CACHE / "kubernetes-run"
CONTROLLERS = "pointsman-system"
"""The namespace of the controller."""
SCRIPT = ROOT / "tests/kubernetes/cluster.sh"


def installation(*kinds: str, flags: tuple = ()) -> list[dict]:
    """What `pointsman controller --install` prints of those kinds."""
    printed = run("controller", "--install", *flags)
    assert printed.returncode == 0, printed.stderr
    return [document for document in yaml.safe_load_all(printed.stdout) if not kinds or document["kind"] in kinds]


class Cluster:
    """The cluster that `cargo xtask api up` starts: used where it runs, else started and stopped again."""

    def __init__(self) -> None:
        for needed, command in ((PROGRAMS / "kubectl", "install"), (CRDS, "install")):
            assert needed.exists(), f"{needed} is missing: `cargo xtask {command}` makes it"
        self.kubeconfig = RUN / "admin.kubeconfig"
        self._ours = not (self.kubeconfig.exists() and self._kubectl("get", "--raw", "/readyz").returncode == 0)
        self._script("up")
        self.apply_crds()

    def close(self) -> None:
        if self._ours:
            self._script("down")

    def apply_crds(self) -> None:
        """Those of our installation: upstream's, or made of our types."""
        crds = yaml.safe_dump_all(installation("CustomResourceDefinition"))
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=crds)
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", "-", stdin=crds)

    def as_controller(self, gateway_namespace: str, path: Path, *flags: object) -> Path:
        """A kubeconfig with what an installation grants the controller, and no more."""
        kinds = ("Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
        self.apply(*installation(*kinds, flags=("--gateway-namespace", gateway_namespace, *flags)))
        return self.with_token_of(CONTROLLERS, "pointsman-controller", path)

    def kubectl(self, *arguments: object, stdin: str | None = None) -> str:
        """Runs kubectl; what it printed. It must succeed."""
        outcome = self._kubectl(*arguments, stdin=stdin)
        assert outcome.returncode == 0, f"kubectl {' '.join(map(str, arguments))}\n{outcome.stdout}{outcome.stderr}"
        return outcome.stdout

    def refused(self, *arguments: object, stdin: str | None = None) -> str:
        """Runs kubectl, which must fail; what it said."""
        outcome = self._kubectl(*arguments, stdin=stdin)
        assert outcome.returncode != 0, outcome.stdout
        return outcome.stderr

    def apply(self, *documents: dict) -> None:
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump_all(documents))

    def get(self, *arguments: object) -> dict:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def config(self, **changes: str) -> dict:
        """The administrator's kubeconfig, with fields of its cluster changed."""
        config = yaml.safe_load(self.kubeconfig.read_text())
        config["clusters"][0]["cluster"].update(changes)
        return config

    def through(self, relay: Relay, path: Path) -> Path:
        """A kubeconfig by which the API server is reached through the relay."""
        changes = {"server": f"https://127.0.0.1:{relay.port}", "tls-server-name": "kubernetes"}
        path.write_text(yaml.safe_dump(self.config(**changes)))
        return path

    def address(self) -> tuple[str, int]:
        server = urlsplit(self.config()["clusters"][0]["cluster"]["server"])
        return server.hostname, server.port

    def as_account(self, namespace: str, name: str, path: Path) -> Path:
        """A kubeconfig of that service account, which is made."""
        self.kubectl("create", "serviceaccount", name, "-n", namespace)
        return self.with_token_of(namespace, name, path)

    def with_token_of(self, namespace: str, name: str, path: Path) -> Path:
        config = self.config()
        config["users"][0]["user"] = {"token": self.kubectl("create", "token", name, "-n", namespace).strip()}
        path.write_text(yaml.safe_dump(config))
        return path

    def requests(self, verb: str, resource: str) -> float:
        """How often the API server was asked for that, by its own count."""
        page = self.kubectl("get", "--raw", "/metrics")
        lines = (line for line in page.splitlines() if line.startswith("apiserver_request_total{"))
        asked = (line for line in lines if f'verb="{verb}"' in line and f'resource="{resource}"' in line)
        return sum(float(line.rsplit(" ", 1)[1]) for line in asked)

    def _kubectl(self, *arguments: object, stdin: str | None = None) -> subprocess.CompletedProcess:
        command = [PROGRAMS / "kubectl", "--kubeconfig", self.kubeconfig, *map(str, arguments)]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=90)

    def _script(self, verb: str) -> None:
        environment = {**os.environ, "BIN": str(PROGRAMS), "RUN": str(RUN)}
        done = subprocess.run([SCRIPT, verb], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{SCRIPT} {verb}:\n{done.stdout}{done.stderr}"


class Namespace:
    """A namespace of one test."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, re.sub("[^a-z0-9]+", "-", name.lower())[:50].strip("-")
        cluster.kubectl("create", "namespace", self.name)

    def close(self) -> None:
        self.cluster.kubectl("delete", "namespace", self.name, "--wait=false")

    def apply(self, *documents: dict) -> None:
        for document in documents:
            document["metadata"]["namespace"] = self.name
        self.cluster.apply(*documents)

    def kubectl(self, *arguments: object) -> str:
        return self.cluster.kubectl("-n", self.name, *arguments)

    def annotate(self, pool: str, **annotations: str | None) -> None:
        """Underscores in names stand for themselves; None takes the annotation away."""
        words = [f"{key}-" if value is None else f"{key}={value}" for key, value in annotations.items()]
        self.kubectl("annotate", "--overwrite", pool, *words)

    def pod(
        self, name: str, address: str, *, ready: bool = True, annotations: dict | None = None, labels: dict = LABELS
    ) -> None:
        """A pod that nobody runs: the test plays its kubelet."""
        metadata = {"name": name, "labels": labels, "annotations": annotations or {}}
        containers = [{"name": "vllm", "image": "vllm"}]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
        # A finalizer, so that the test says how long it terminates.
        pod["metadata"]["finalizers"] = ["pointsman.test/kubelet"]
        self.apply({**pod, "spec": {"schedulerName": "nobody", "containers": containers}})
        self.status(name, address, ready=ready)

    def status(self, pod: str, address: str, *, ready: bool) -> None:
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions}
        self.kubectl("patch", "pod", pod, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))

    def gone(self, pod: str) -> None:
        """Ends the pod's termination."""
        self.kubectl("patch", "pod", pod, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
