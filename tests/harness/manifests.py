"""Manifests as an operator writes them."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from harness.http2 import Http2Server
from harness.upstream import Upstream

ROUTING = "inference.networking.x-k8s.io/"
ENV = "inference-epp-env.networking.x-k8s.io/"
STRATEGY = ROUTING + "routing-strategy"
QUEUEING = ROUTING + "queueing"
RUNTIME = ROUTING + "model-server-runtime"
OVERLAY = ROUTING + "epp-overlay"
BLOCK_SIZE = ENV + "prefix-cache-hash-block-size"
MAX_BLOCKS = ENV + "prefix-cache-max-prefix-blocks"
LRU_CAPACITY = ENV + "prefix-cache-lru-capacity"
QUEUE_CAPACITY = ENV + "total-queue-capacity"
QUEUE_TTL = ENV + "queue-ttl"
METRICS_PORT = ENV + "model-server-metrics-port"
METRICS_PATH = ENV + "model-server-metrics-path"

LABELS = {"app": "model-server"}


def pool_v1(annotations: dict[str, str] | None = None, name: str = "pool", port: int = 8000, **spec: object) -> dict:
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": name, "namespace": "default", "annotations": annotations or {}},
        "spec": {"selector": {"matchLabels": LABELS}, "targetPorts": [{"number": port}], **spec},
    }


def pool_v1alpha2(annotations: dict[str, str] | None = None, name: str = "pool", port: int = 8000) -> dict:
    return {
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
        "kind": "InferencePool",
        "metadata": {"name": name, "namespace": "default", "annotations": annotations or {}},
        "spec": {"selector": LABELS, "targetPortNumber": port, "extensionRef": {"name": "epp"}},
    }


def slice_of(
    upstream: Upstream | Http2Server,
    *,
    labels: dict[str, str] | None = None,
    namespace: str = "default",
    ready: bool | None = True,
    port: int | None = -1,
) -> dict:
    """An EndpointSlice with one endpoint; `port` None leaves the ports out."""
    conditions = {} if ready is None else {"conditions": {"ready": ready}}
    family = "IPv6" if ":" in upstream.host else "IPv4"
    name = "slice-" + re.sub("[^0-9]+", "-", upstream.address).strip("-")
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": LABELS if labels is None else labels},
        "addressType": family,
        "endpoints": [{"addresses": [upstream.host], **conditions}],
        **({} if port is None else {"ports": [{"port": upstream.port if port == -1 else port}]}),
    }


class ManifestFile:
    """A manifest file that a test writes as an editor does: whole, by a rename."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *documents: dict) -> None:
        self.write_text(yaml.safe_dump_all(documents, sort_keys=False))

    def write_text(self, text: str | bytes) -> None:
        new = self.path.with_name(f".{self.path.name}.new")
        new.write_bytes(text.encode() if isinstance(text, str) else text)
        os.replace(new, self.path)


class PoolFile(ManifestFile):
    """One pool and its servers; every change is written at once."""

    def __init__(self, path: Path, upstreams: Iterable[Upstream], annotations: dict[str, str] | None = None) -> None:
        super().__init__(path)
        self.upstreams = list(upstreams)
        self.annotations = dict(annotations or {})
        self.make_pool = pool_v1
        self.save()

    def save(self) -> None:
        self.write(self.make_pool(self.annotations), *map(slice_of, self.upstreams))

    def annotate(self, changes: dict[str, str | None]) -> None:
        """Sets annotations; None takes one away."""
        merged = {**self.annotations, **changes}
        self.annotations = {key: value for key, value in merged.items() if value is not None}
        self.save()
