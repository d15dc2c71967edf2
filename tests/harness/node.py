"""A namespace on the node that `cargo xtask cluster up` starts, as a user with kubectl meets it."""

import json
import os
import subprocess
from uuid import uuid4

import yaml


class Node:
    """A namespace of its own on the node, as a user with kubectl meets it."""

    def __init__(self) -> None:
        self.name = f"test-{uuid4().hex[:8]}"
        for needed in ("KUBECONFIG", "KUBECTL"):
            assert needed in os.environ, f"{needed} is not set; `cargo xtask cluster up` prints it"
        self.kubectl("create", "namespace", self.name)

    def close(self) -> None:
        self.kubectl("delete", "namespace", self.name, "--wait=false")

    def kubectl(self, *arguments: object, stdin: str | None = None) -> str:
        command = [os.environ["KUBECTL"], *map(str, arguments)]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def apply(self, *documents: dict) -> None:
        self.kubectl("-n", self.name, "apply", "-f", "-", stdin=yaml.safe_dump_all(documents))

    def gateway(self, *documents: dict) -> str:
        """A Gateway `gateway` with these objects; its address, once it is programmed."""
        listener = {"name": "http", "port": 80, "protocol": "HTTP"}
        self.apply(
            {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "metadata": {"name": "gateway"},
                "spec": {"gatewayClassName": "eg", "listeners": [listener]},
            },
            *documents,
        )
        self.wait("Programmed", "gateway/gateway")
        return self.get("gateway", "gateway")["status"]["addresses"][0]["value"]

    def get(self, *arguments: object) -> dict:
        return json.loads(self.kubectl("-n", self.name, "get", *arguments, "-o", "json"))

    def items(self, kind: str, *arguments: object) -> list[dict]:
        """Of whatever namespace the arguments say."""
        return json.loads(self.kubectl("get", kind, *arguments, "-o", "json"))["items"]

    def wait(self, condition: str, *what: object) -> None:
        self.kubectl("-n", self.name, "wait", f"--for=condition={condition}", "--timeout=90s", *what)
