"""kubernetes.py FOLDER ENDPOINTS PID: as much of an API server as a Go picker reads: one InferencePool and a Pod for each endpoint.
Writes FOLDER/kubeconfig; ends when process PID has ended."""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

V1, ALPHA = "inference.networking.k8s.io/v1", "inference.networking.x-k8s.io/v1alpha2"
HOUR_S = 3600

folder, pid = Path(sys.argv[1]), int(sys.argv[3])
endpoints = [endpoint.split(":") for endpoint in sys.argv[2].split(",")]


def meta(name: str, **fields: object) -> dict:
    return {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1", "generation": 1, **fields}


PODS = [
    {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta(f"pod-{number}", labels={"app": "bench"}),
        "spec": {"containers": [{"name": "engine", "image": "none"}]},
        "status": {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}]},
    }
    for number, (address, _) in enumerate(endpoints)
]
POOL = {
    "apiVersion": V1,
    "kind": "InferencePool",
    "metadata": meta("bench"),
    "spec": {
        "selector": {"matchLabels": {"app": "bench"}},
        "targetPorts": [{"number": int(endpoints[0][1])}],
        "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
    },
}
# As the benchmark of queueing has them.
OBJECTIVES = [
    {
        "apiVersion": ALPHA,
        "kind": "InferenceObjective",
        "metadata": meta(name),
        "spec": {"priority": priority, "poolRef": {"group": V1.split("/")[0], "kind": "InferencePool", "name": "bench"}},
    }
    for name, priority in (("critical", 100), ("standard", 0), ("sheddable", -50))
]
# group/version: resource -> kind and what there is of it
RESOURCES = {
    V1: {"inferencepools": ("InferencePool", [POOL])},
    ALPHA: {
        "inferencepools": ("InferencePool", []),
        "inferenceobjectives": ("InferenceObjective", OBJECTIVES),
        "inferencemodelrewrites": ("InferenceModelRewrite", []),
    },
    "v1": {"pods": ("Pod", PODS)},
}


def groups() -> dict:
    versions = [dict(groupVersion=it, version=it.split("/")[1]) for it in (V1, ALPHA)]
    named = [{"name": it["groupVersion"].split("/")[0], "versions": [it], "preferredVersion": it} for it in versions]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": named}


def resources(version: str) -> dict:
    verbs = ["get", "list", "watch"]
    listed = [
        {"name": name, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs}
        for name, (kind, _) in RESOURCES[version].items()
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": listed}


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body: dict, status: int = 200) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.answer({}, 201)

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        version, _, rest = path.partition("/")[2].partition("/namespaces/default/")
        if path == "api":
            return self.answer({"kind": "APIVersions", "versions": ["v1"]})
        if path == "apis":
            return self.answer(groups())
        if version in RESOURCES and not rest:
            return self.answer(resources(version))
        for known, kinds in RESOURCES.items():
            name = rest or version.removeprefix(known).strip("/")
            if version.startswith(known) and name in kinds:
                return self.objects(known, *kinds[name])
        self.answer({"kind": "Status", "apiVersion": "v1", "code": 404, "status": "Failure", "reason": "NotFound"}, 404)

    def objects(self, version: str, kind: str, items: list[dict]) -> None:
        if "watch=" not in self.path:
            listed = {"kind": f"{kind}List", "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": items}
            return self.answer(listed)
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if "sendInitialEvents=true" in self.path:
            for item in items:
                self.event("ADDED", item)
            mark = {"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}}
            self.event("BOOKMARK", {"apiVersion": version, "kind": kind, "metadata": mark})
        time.sleep(HOUR_S)

    def event(self, what: str, item: dict) -> None:
        line = json.dumps({"type": what, "object": item}).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()


server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
config = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "bench", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
    "users": [{"name": "bench", "user": {}}],
    "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
    "current-context": "bench",
}
(folder / "kubeconfig").write_text(json.dumps(config))
while os.path.exists(f"/proc/{pid}"):
    time.sleep(0.5)
