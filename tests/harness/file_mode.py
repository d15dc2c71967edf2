"""A real Envoy Gateway without a cluster: its standalone mode, which reads resources from a file and runs an Envoy on this machine."""

import os
import signal
import subprocess
from pathlib import Path

import yaml

from harness import envoy

CACHE = Path(os.environ.get("POINTSMAN_CACHE", Path.home() / ".cache/pointsman"))
PROGRAM = Path(os.environ.get("POINTSMAN_ENVOY_GATEWAY", CACHE / "envoy-gateway/envoy-gateway"))
VALUES = envoy.ROOT / "examples/envoy-gateway/values.yaml"
VERSION = "1.40.0"
"""Of the Envoy that it runs."""
SYSTEM = "envoy-gateway-system"


class EnvoyGateway:
    """With the values that users are told, and its extension server at that address. Its own ports are fixed: one at a time."""

    def __init__(self, folder: Path, extension: str) -> None:
        assert PROGRAM.exists(), f"{PROGRAM} is missing: `cargo xtask test --envoy-gateway` builds it"
        self._folder = folder / "envoy-gateway"
        self._resources, places = self._folder / "resources", {}
        for name in ("configHome", "dataHome", "stateHome", "runtimeDir"):
            places[name] = str(self._folder / name)
        # Where it looks before it downloads one.
        program = self._folder / f"dataHome/envoy-versions/{VERSION}/bin/envoy"
        for made in (self._resources, program.parent):
            made.mkdir(parents=True)
        program.symlink_to(envoy.ENVOY)
        host, port = extension.rsplit(":", 1)
        manager = yaml.safe_load(VALUES.read_text())["config"]["envoyGateway"]["extensionManager"]
        manager["service"] = {"fqdn": {"hostname": host.replace("127.0.0.1", "localhost"), "port": int(port)}}
        config = {
            "apiVersion": "gateway.envoyproxy.io/v1alpha1",
            "kind": "EnvoyGateway",
            "gateway": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
            "provider": {
                "type": "Custom",
                "custom": {
                    "resource": {"type": "File", "file": {"paths": [str(self._resources)]}},
                    "infrastructure": {"type": "Host", "host": places},
                },
            },
            "extensionApis": {"enableBackend": True},
            "extensionManager": manager,
        }
        file = self._folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        environment = {**os.environ, "ENVOY_GATEWAY_NAMESPACE": SYSTEM}
        keys = (PROGRAM, "certgen", "--local", "--config-home", places["configHome"])
        subprocess.run(keys, env=environment, check=True, capture_output=True, timeout=60)
        with (self._folder / "log").open("wb") as log:
            command = ("setpriv", "--pdeathsig", "TERM", PROGRAM, "server", "--config-path", file)
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def declare(self, *documents: dict) -> None:
        """All that it is to know from now on."""
        new = self._folder / "new.yaml"
        new.write_text(yaml.safe_dump_all(documents))
        new.rename(self._resources / "resources.yaml")

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def gateway(namespace: str, **listeners: int) -> tuple[dict, ...]:
    """A Gateway with these listeners by their ports, and what stands behind one."""
    api, own = "gateway.networking.k8s.io/v1", "gateway.envoyproxy.io/v1alpha1"
    proxy = {"group": "gateway.envoyproxy.io", "kind": "EnvoyProxy", "name": "proxy", "namespace": SYSTEM}
    kind = {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller", "parametersRef": proxy}
    of_host = {"provider": {"type": "Host", "host": {"envoyVersion": VERSION}}}
    ports = [{"name": name, "protocol": "HTTP", "port": port} for name, port in listeners.items()]
    return (
        {"apiVersion": api, "kind": "GatewayClass", "metadata": {"name": "eg"}, "spec": kind},
        {"apiVersion": own, "kind": "EnvoyProxy", "metadata": {"name": "proxy", "namespace": SYSTEM}, "spec": of_host},
        {
            "apiVersion": api,
            "kind": "Gateway",
            "metadata": {"name": "gateway", "namespace": namespace},
            "spec": {"gatewayClassName": "eg", "listeners": ports},
        },
    )
