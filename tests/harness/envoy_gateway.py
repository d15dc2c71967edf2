"""Envoy Gateway's part, played from what a real one asked (crates/envoy-gateway/tests/captures): its extension server is asked to put pools
into a translation, and a real Envoy is given what comes back, over ADS as Envoy Gateway does."""

import contextlib
import itertools
import json
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from harness.pointsman import ROOT

CAPTURE = ROOT / "crates/envoy-gateway/tests/captures/translation.bin"
HOOK = "/envoygateway.extension.EnvoyGatewayExtension/PostTranslateModify"
ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
TYPE = "type.googleapis.com/"
ASKED = {"clusters": 2, "listeners": 4, "routes": 5}
"""Fields of a PostTranslateModifyRequest."""
ANSWERED = {"clusters": 1, "listeners": 3, "routes": 4}
"""The same of its answer."""
KINDS = {"clusters": Cluster, "listeners": Listener, "routes": RouteConfiguration}
SAME = lambda payload: payload
OTHERS, OVER = "other resources", "the stream is over"


def translate(extension: str, namespace: str, name: str, *, fail_open: bool) -> dict[str, list]:
    """What the extension server at that address makes of the captured translation, with that pool in the place of its `qwen-pool`."""
    pool = {"namespace": namespace, "name": name, "fail_open": fail_open, "h2c": False}
    asked = read(CAPTURE.read_bytes(), ASKED)
    for configuration in asked["routes"]:
        for route in (route for host in configuration.virtual_hosts for route in host.routes):
            stamp(route, pool)
    with grpc.insecure_channel(extension) as channel:
        hook = channel.unary_unary(HOOK, request_serializer=SAME, response_deserializer=SAME)
        return read(hook(written(asked, ASKED), timeout=30), ANSWERED)


def stamp(route, pool: dict) -> None:
    """Pools are told from hook to hook in the route's metadata, as the first hook left them there."""
    if "pointsman.dev" in route.metadata.filter_metadata:
        left = route.metadata.filter_metadata["pointsman.dev"]
        pools = json.loads(left["pools"])
        left["pools"] = json.dumps([pool if each["name"] == "qwen-pool" else each for each in pools])


def read(payload: bytes, fields: dict[str, int]) -> dict[str, list]:
    """The messages of those fields. Every field of both messages is one of bytes."""
    found: dict[str, list] = {name: [] for name in fields}
    names = {number: name for name, number in fields.items()}
    at = 0
    while at < len(payload):
        tag, at = varint(payload, at)
        size, at = varint(payload, at)
        if name := names.get(tag >> 3):
            found[name].append(KINDS[name].FromString(payload[at : at + size]))
        at += size
    return found


def varint(payload: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = payload[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at


def written(messages: dict[str, list], fields: dict[str, int]) -> bytes:
    return b"".join(
        bytes([fields[name] << 3 | 2]) + length(len(each.SerializeToString())) + each.SerializeToString()
        for name, all in messages.items()
        for each in all
    )


def length(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


class Ads:
    """Serves those resources; what an Envoy refused, and why, is in `refused`."""

    def __init__(self, resources: dict[str, list]) -> None:
        self.refused: list[str] = []
        self._streams: list[queue.SimpleQueue[DiscoveryRequest | str]] = []
        self.give(resources)
        self._server = grpc.server(ThreadPoolExecutor(4))
        handler = grpc.stream_stream_rpc_method_handler(
            self._serve, request_deserializer=DiscoveryRequest.FromString, response_serializer=DiscoveryResponse.SerializeToString
        )
        service, method = ADS.strip("/").split("/")
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def give(self, resources: dict[str, list]) -> None:
        """Those from now on: clusters and routes at once, as Envoy Gateway does."""
        for listener in resources["listeners"]:
            listener.address.socket_address.address, listener.address.socket_address.port_value = "127.0.0.1", 0
            listener.ClearField("additional_addresses")
        self._resources = {TYPE + KINDS[name].DESCRIPTOR.full_name: all for name, all in resources.items()}
        for stream in self._streams:
            stream.put(OTHERS)

    def close(self) -> None:
        self._server.stop(0).wait()

    def _serve(self, requests: Iterator[DiscoveryRequest], _context) -> Iterator[DiscoveryResponse]:
        events: queue.SimpleQueue[DiscoveryRequest | str] = queue.SimpleQueue()
        self._streams.append(events)
        threading.Thread(target=pass_on, args=(requests, events), daemon=True).start()
        told: dict[str, tuple] = {}
        for version in itertools.count():
            request = events.get()
            if request == OVER:
                return
            if request == OTHERS:
                kinds = [kind for kind in self._resources if kind in told]
            elif request.HasField("error_detail"):
                self.refused.append(f"{request.type_url}: {request.error_detail.message}")
                continue
            else:
                # An acknowledgement asks for nothing; for other names than before it is a request.
                names = tuple(request.resource_names)
                if request.response_nonce and told.get(request.type_url) == names:
                    continue
                told[request.type_url] = names
                kinds = [request.type_url]
            for kind in kinds:
                answer = DiscoveryResponse(version_info=str(version), type_url=kind, nonce=f"{kind} {version}")
                for resource in self._of(kind, told[kind]):
                    answer.resources.add().Pack(resource)
                yield answer

    def _of(self, kind: str, names: tuple) -> list:
        if kind == TYPE + ClusterLoadAssignment.DESCRIPTOR.full_name:
            # Those of Envoy Gateway's own clusters, which nobody asks here.
            return [ClusterLoadAssignment(cluster_name=name) for name in names]
        return self._resources.get(kind, [])


def pass_on(requests: Iterator[DiscoveryRequest], to: queue.SimpleQueue) -> None:
    with contextlib.suppress(grpc.RpcError):
        for request in requests:
            to.put(request)
    to.put(OVER)


def bootstrap(ads: Ads) -> str:
    """An Envoy's configuration by which it asks there for all else."""
    http2 = {"explicit_http_config": {"http2_protocol_options": {}}}
    options = {"@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions", **http2}
    address = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ads.port}}}}
    cluster = {
        "name": "ads",
        "type": "STATIC",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "load_assignment": {"cluster_name": "ads", "endpoints": [{"lb_endpoints": [address]}]},
    }
    ask = {"ads": {}, "resource_api_version": "V3"}
    api = {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "ads"}}]}
    return json.dumps(
        {
            "node": {"id": "test", "cluster": "test"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
            "dynamic_resources": {"ads_config": api, "cds_config": ask, "lds_config": ask},
            "static_resources": {"clusters": [cluster]},
        }
    )
