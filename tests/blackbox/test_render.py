"""What the controller makes of a pool, and what an overlay may make of that (annotations.md, sections 3 and 4), by `pointsman render`."""

from pathlib import Path

import pytest
import yaml

from harness.manifests import OVERLAY, pool_v1, pool_v1alpha2
from harness.pointsman import run

GOLDEN = Path(__file__).parent / "golden"
CONTAINER = "inference-gateway-ext-proc"
REFERENCE = """
spec:
  replicas: 1
  template:
    spec:
      affinity:
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
          - weight: 100
            podAffinityTerm:
              labelSelector:
                matchLabels:
                  inference-pool: qwen-pool
                  inference-pool-namespace: default
              topologyKey: kubernetes.io/hostname
      containers:
      - name: inference-gateway-ext-proc
        resources:
          limits: {cpu: '4', memory: 4G}
          requests: {cpu: 500m, memory: 1G}
"""


class Rendered:
    """What `pointsman render` printed."""

    def __init__(self, folder: Path, pool: dict, overlay: dict[str, str] | None = None, *flags: object) -> None:
        documents = [pool]
        if overlay is not None:
            pool["metadata"]["annotations"] = {OVERLAY: "shape"}
            documents.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shape"}, "data": overlay})
        file = folder / "pool.yaml"
        file.write_text(yaml.safe_dump_all(documents))
        outcome = run("render", "-f", file, *flags)
        self.code, self.text, self.faults = outcome.returncode, outcome.stdout, outcome.stderr.splitlines()

    def __getitem__(self, kind: str) -> dict:
        (found,) = [document for document in yaml.safe_load_all(self.text) if document["kind"] == kind]
        return found

    @property
    def pod(self) -> dict:
        return self["Deployment"]["spec"]["template"]["spec"]

    @property
    def container(self) -> dict:
        (container,) = self.pod["containers"]
        return container


@pytest.fixture
def render(tmp_path):
    def render(overlay: dict[str, str] | None = None, *flags: object, pool: dict | None = None) -> Rendered:
        return Rendered(tmp_path, pool or pool_v1(name="qwen-pool"), overlay, *flags)

    return render


def deployment(fields: object, *, pod: bool = True) -> dict[str, str]:
    """An overlay of the deployment: these fields of its pod, or of itself."""
    return {"deployment": yaml.safe_dump({"spec": {"template": {"spec": fields}}} if pod else fields)}


def container(**fields: object) -> dict[str, str]:
    return deployment({"containers": [{"name": CONTAINER, **fields}]})


# ---- the default


@pytest.mark.parametrize(
    "name, pool, overlay",
    [
        ("default", pool_v1(name="qwen-pool"), None),
        ("v1alpha2-with-the-references-overlay", pool_v1alpha2(name="qwen-pool"), {"deployment": REFERENCE}),
        ("long-name", pool_v1(name="a-pool.with-a-name-that-is-much-longer-than-any-label-of-kubernetes-may-be"), None),
    ],
)
def test_it_is_what_was_agreed_on(name, pool, overlay, render):
    """A change of what every installation runs is looked at: copy what is printed over the file."""
    rendered = render(overlay, "--epp-image", "example.com/pointsman:1", pool=pool)
    assert (rendered.code, rendered.faults) == (0, [])
    assert rendered.text == (GOLDEN / f"{name}.yaml").read_text(), rendered.text


def test_names_labels_and_ports_are_the_contracts(render):
    rendered = render()
    labels = {"inference-pool": "qwen-pool", "inference-pool-namespace": "default"}
    for kind in ("Deployment", "Service", "PodDisruptionBudget", "ServiceAccount", "Role", "RoleBinding"):
        assert labels.items() <= rendered[kind]["metadata"]["labels"].items()
        namespace = "default" if kind.startswith("Role") else "envoy-gateway-system"
        assert rendered[kind]["metadata"]["namespace"] == namespace
    assert rendered.container["name"] == CONTAINER
    assert [port["containerPort"] for port in rendered.container["ports"]] == [9002, 9003, 9090]
    assert rendered["Service"]["spec"]["selector"] == rendered["Deployment"]["spec"]["selector"]["matchLabels"] == labels


def test_the_picker_may_read_its_own_pool_and_no_secrets(render):
    rules = render()["Role"]["rules"]
    assert {verb for rule in rules for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert "secrets" not in {resource for rule in rules for resource in rule["resources"]}
    (pools,) = [rule for rule in rules if "inferencepools" in rule["resources"]]
    assert pools["resourceNames"] == ["qwen-pool"]


@pytest.mark.parametrize("flags, image", [((), "pointsman:"), (("--epp-image", "r/i@sha256:0"), "r/i@sha256:0")])
def test_the_image_is_the_one_that_was_named(flags, image, render):
    assert render(None, *flags).container["image"].startswith(image)


def test_the_gateways_namespace_is_the_one_that_was_named(render):
    assert render(None, "--gateway-namespace", "gateways")["Deployment"]["metadata"]["namespace"] == "gateways"


# ---- what is open

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
OWN = {"matchLabels": {"inference-pool": "qwen-pool", "inference-pool-namespace": "default"}}


def apart(**term: object) -> dict:
    """A required anti-affinity."""
    return {"affinity": {"podAntiAffinity": {REQUIRED: [{"topologyKey": "kubernetes.io/hostname", **term}]}}}


OPEN = {
    "replicas": ({"spec": {"replicas": 5}}, False),
    "strategy": ({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}, False),
    "pod labels": ({"spec": {"template": {"metadata": {"labels": {"team": "a", "example.com/cost": "b"}}}}}, False),
    "pod annotations": ({"spec": {"template": {"metadata": {"annotations": {"prometheus.io/scrape": "true"}}}}}, False),
    "nodeSelector": ({"nodeSelector": {"kubernetes.io/arch": "arm64"}}, True),
    "tolerations": ({"tolerations": [{"operator": "Exists"}]}, True),
    "affinity": ({"affinity": {"nodeAffinity": {}}}, True),
    "away from its own": (apart(labelSelector=OWN), True),
    "rather away from others": ({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": {"topologyKey": "zone", "labelSelector": {}}}]}}}, True),
    "near others": ({"affinity": {"podAffinity": {REQUIRED: [{"topologyKey": "zone", "namespaces": ["gateways"], "labelSelector": {}}]}}}, True),
    "topologySpreadConstraints": ({"topologySpreadConstraints": [{"topologyKey": "zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}]}, True),
    "grace": ({"terminationGracePeriodSeconds": 90}, True),
    "volumes": ({"volumes": [{"name": "a", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "b", "downwardAPI": {"items": []}}]}, True),
    "env": ({"containers": [{"name": CONTAINER, "env": [{"name": "RUST_LOG", "value": "debug"}, {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]}]}, True),
    "resources": ({"containers": [{"name": CONTAINER, "resources": {"limits": {"cpu": 4}}}]}, True),
    "ports": ({"containers": [{"name": CONTAINER, "ports": [{"containerPort": 8080, "name": "more"}]}]}, True),
    "mounts": ({"containers": [{"name": CONTAINER, "volumeMounts": [{"name": "a", "mountPath": "/cache", "subPath": "x"}]}]}, True),
    "probes": ({"containers": [{"name": CONTAINER, "readinessProbe": {"periodSeconds": 1}, "livenessProbe": {"failureThreshold": 9}}]}, True),
    "kind": ({"apiVersion": "apps/v1", "kind": "Deployment"}, False),
}


@pytest.mark.parametrize("fields, pod", OPEN.values(), ids=OPEN.keys())
def test_what_is_open_to_an_overlay_is_taken(fields, pod, render):
    rendered = render(deployment(fields, pod=pod))
    assert (rendered.code, rendered.faults) == (0, [])


def test_lists_merge_by_their_keys_and_null_takes_away(render):
    rendered = render(container(ports=[{"containerPort": 8080, "name": "more"}], resources={"limits": None, "requests": {"cpu": "1"}}))
    assert [port["containerPort"] for port in rendered.container["ports"]] == [8080, 9002, 9003, 9090]
    assert rendered.container["resources"] == {"requests": {"cpu": "1", "memory": "256Mi"}}


def test_the_service_and_the_budget_too(render):
    service = {"metadata": {"annotations": {"example.com/a": "b"}}, "spec": {"sessionAffinity": "ClientIP", "internalTrafficPolicy": "Local"}}
    rendered = render({"service": yaml.safe_dump(service), "pdb": "spec: {minAvailable: 50%}"})
    assert rendered.faults == []
    assert rendered["Service"]["spec"]["sessionAffinity"] == "ClientIP"
    budget = rendered["PodDisruptionBudget"]["spec"]
    assert budget["minAvailable"] == "50%" and "maxUnavailable" not in budget, "a budget has one bound"


# ---- what is not

POD = "deployment", ("spec", "template", "spec")
META = "deployment", ("spec", "template", "metadata")
SELF = "deployment", ()
PICKER = "deployment", ("spec", "template", "spec", "containers", 0)
REFUSED = {
    "name": (*SELF, {"metadata": {"name": "other"}}),
    "namespace": (*SELF, {"metadata": {"namespace": "kube-system"}}),
    "labels": (*SELF, {"metadata": {"labels": {"a": "b"}}}),
    "finalizers": (*SELF, {"metadata": {"finalizers": ["a/b"]}}),
    "owner": (*SELF, {"metadata": {"ownerReferences": [{"uid": "1", "kind": "A", "name": "b", "apiVersion": "v1"}]}}),
    "kind": (*SELF, {"kind": "DaemonSet"}),
    "selector": (*SELF, {"spec": {"selector": {"matchLabels": {"a": "b"}}}}),
    "paused": (*SELF, {"spec": {"paused": True}}),
    "template gone": (*SELF, {"spec": {"template": None}}),
    "spec replaced": (*SELF, {"spec": {"$patch": "replace", "replicas": 1}}),
    "spec deleted": (*SELF, {"spec": {"$patch": "delete"}}),
    "retained keys": (*SELF, {"spec": {"$retainKeys": ["replicas"], "replicas": 1}}),
    "pool label": (*SELF, {"spec": {"template": {"metadata": {"labels": {"inference-pool": "other"}}}}}),
    "namespace label": (*SELF, {"spec": {"template": {"metadata": {"labels": {"inference-pool-namespace": "other"}}}}}),
    "label gone": (*SELF, {"spec": {"template": {"metadata": {"labels": {"inference-pool": None}}}}}),
    "labels replaced": (*SELF, {"spec": {"template": {"metadata": {"labels": {"$patch": "replace", "a": "b"}}}}}),
    "labels gone": (*SELF, {"spec": {"template": {"metadata": {"labels": None}}}}),
    "label of a Service": (*SELF, {"spec": {"template": {"metadata": {"labels": {"control-plane": "envoy-gateway"}}}}}),
    "label of an app": (*SELF, {"spec": {"template": {"metadata": {"labels": {"app": "envoy"}}}}}),
    "label of a proxy": (*SELF, {"spec": {"template": {"metadata": {"labels": {"gateway.envoyproxy.io/owning-gateway-name": "x"}}}}}),
    "app label": (*SELF, {"spec": {"template": {"metadata": {"labels": {"app.kubernetes.io/name": "envoy"}}}}}),
    "seccomp by annotation": (*SELF, {"spec": {"template": {"metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "x"}}}}}),
    "apparmor by annotation": (*SELF, {"spec": {"template": {"metadata": {"annotations": {f"container.apparmor.security.beta.kubernetes.io/{CONTAINER}": "unconfined"}}}}}),
    "another network": (*SELF, {"spec": {"template": {"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": "other"}}}}}),
    "a sidecar": (*SELF, {"spec": {"template": {"metadata": {"annotations": {"sidecar.istio.io/inject": "true"}}}}}),
    "a cloud's role": (*SELF, {"spec": {"template": {"metadata": {"annotations": {"iam.amazonaws.com/role": "admin"}}}}}),
    "secrets by annotation": (*SELF, {"spec": {"template": {"metadata": {"annotations": {"vault.hashicorp.com/agent-inject": "true"}}}}}),
    "serviceAccountName": (*POD, {"serviceAccountName": "envoy-gateway"}),
    "serviceAccount": (*POD, {"serviceAccount": "envoy-gateway"}),
    "all kept away": (*POD, apart(labelSelector={})),
    "others kept away": (*POD, apart(labelSelector={"matchLabels": {**OWN["matchLabels"], "inference-pool": "other"}})),
    "other namespaces kept away": (*POD, apart(labelSelector=OWN, namespaces=["other"])),
    "all namespaces kept away": (*POD, apart(labelSelector=OWN, namespaceSelector={})),
    "token": (*POD, {"automountServiceAccountToken": False}),
    "hostNetwork": (*POD, {"hostNetwork": True}),
    "hostPID": (*POD, {"hostPID": True}),
    "hostIPC": (*POD, {"hostIPC": True}),
    "hostUsers": (*POD, {"hostUsers": True}),
    "hostAliases": (*POD, {"hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a"]}]}),
    "hostname": (*POD, {"hostname": "a"}),
    "subdomain": (*POD, {"subdomain": "a"}),
    "dnsPolicy": (*POD, {"dnsPolicy": "None"}),
    "dnsConfig": (*POD, {"dnsConfig": {"nameservers": ["1.2.3.4"]}}),
    "nodeName": (*POD, {"nodeName": "control-plane"}),
    "schedulerName": (*POD, {"schedulerName": "mine"}),
    "priorityClassName": (*POD, {"priorityClassName": "system-node-critical"}),
    "priority": (*POD, {"priority": 2000000000}),
    "runtimeClassName": (*POD, {"runtimeClassName": "other"}),
    "shared processes": (*POD, {"shareProcessNamespace": True}),
    "restartPolicy": (*POD, {"restartPolicy": "Always"}),
    "imagePullSecrets": (*POD, {"imagePullSecrets": [{"name": "a"}]}),
    "resourceClaims": (*POD, {"resourceClaims": [{"name": "a", "resourceClaimName": "b"}]}),
    "enableServiceLinks": (*POD, {"enableServiceLinks": True}),
    "readinessGates": (*POD, {"readinessGates": [{"conditionType": "a/b"}]}),
    "initContainers": (*POD, {"initContainers": [{"name": "a", "image": "b"}]}),
    "ephemeralContainers": (*POD, {"ephemeralContainers": [{"name": "a", "image": "b"}]}),
    "an extra container": (*POD, {"containers": [{"name": "mine", "image": "b"}]}),
    "containers replaced": (*POD, {"containers": [{"$patch": "replace"}, {"name": CONTAINER}]}),
    "container deleted": (*POD, {"containers": [{"$patch": "delete", "name": CONTAINER}]}),
    "container without a name": (*POD, {"containers": [{"image": "b"}]}),
    "containers gone": (*POD, {"containers": None}),
    "runAsUser": (*POD, {"securityContext": {"runAsUser": 0}}),
    "runAsNonRoot": (*POD, {"securityContext": {"runAsNonRoot": False}}),
    "fsGroup": (*POD, {"securityContext": {"fsGroup": 0}}),
    "sysctls": (*POD, {"securityContext": {"sysctls": [{"name": "a", "value": "b"}]}}),
    "seLinux": (*POD, {"securityContext": {"seLinuxOptions": {"level": "s0"}}}),
    "security gone": (*POD, {"securityContext": None}),
    "hostPath": (*POD, {"volumes": [{"name": "a", "hostPath": {"path": "/"}}]}),
    "secret": (*POD, {"volumes": [{"name": "a", "secret": {"secretName": "tls"}}]}),
    "configMap": (*POD, {"volumes": [{"name": "a", "configMap": {"name": "envoy"}}]}),
    "projected": (*POD, {"volumes": [{"name": "a", "projected": {"sources": [{"serviceAccountToken": {"audience": "vault", "path": "t"}}]}}]}),
    "csi": (*POD, {"volumes": [{"name": "a", "csi": {"driver": "secrets-store.csi.k8s.io"}}]}),
    "nfs": (*POD, {"volumes": [{"name": "a", "nfs": {"server": "a", "path": "/"}}]}),
    "iscsi": (*POD, {"volumes": [{"name": "a", "iscsi": {"targetPortal": "a", "iqn": "b", "lun": 0}}]}),
    "pvc": (*POD, {"volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "b"}}]}),
    "ephemeral volume": (*POD, {"volumes": [{"name": "a", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]}),
    "image volume": (*POD, {"volumes": [{"name": "a", "image": {"reference": "b"}}]}),
    "flex volume": (*POD, {"volumes": [{"name": "a", "flexVolume": {"driver": "b"}}]}),
    "image": (*PICKER, {"image": "mine"}),
    "imagePullPolicy": (*PICKER, {"imagePullPolicy": "Never"}),
    "command": (*PICKER, {"command": ["sh"]}),
    "args": (*PICKER, {"args": ["up"]}),
    "workingDir": (*PICKER, {"workingDir": "/"}),
    "privileged": (*PICKER, {"securityContext": {"privileged": True}}),
    "capabilities": (*PICKER, {"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}),
    "escalation": (*PICKER, {"securityContext": {"allowPrivilegeEscalation": True}}),
    "writable root": (*PICKER, {"securityContext": {"readOnlyRootFilesystem": False}}),
    "procMount": (*PICKER, {"securityContext": {"procMount": "Unmasked"}}),
    "container's security gone": (*PICKER, {"securityContext": None}),
    "preStop": (*PICKER, {"lifecycle": {"preStop": {"exec": {"command": ["sh"]}}}}),
    "envFrom a secret": (*PICKER, {"envFrom": [{"secretRef": {"name": "a"}}]}),
    "envFrom a ConfigMap": (*PICKER, {"envFrom": [{"configMapRef": {"name": "a"}}]}),
    "env of a secret": (*PICKER, {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]}),
    "env of a ConfigMap": (*PICKER, {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}]}),
    "the API server": (*PICKER, {"env": [{"name": "KUBERNETES_SERVICE_HOST", "value": "evil"}]}),
    "the kubeconfig": (*PICKER, {"env": [{"name": "KUBECONFIG", "value": "/x"}]}),
    "a proxy": (*PICKER, {"env": [{"name": "https_proxy", "value": "http://evil"}]}),
    "trust": (*PICKER, {"env": [{"name": "SSL_CERT_FILE", "value": "/x"}]}),
    "preloading": (*PICKER, {"env": [{"name": "LD_PRELOAD", "value": "/x"}]}),
    "an exec probe": (*PICKER, {"livenessProbe": {"exec": {"command": ["sh"]}}}),
    "an http probe": (*PICKER, {"readinessProbe": {"httpGet": {"host": "evil", "port": 1}}}),
    "no probe": (*PICKER, {"readinessProbe": None}),
    "probe replaced": (*PICKER, {"readinessProbe": {"$patch": "replace", "periodSeconds": 1}}),
    "hostPort": (*PICKER, {"ports": [{"containerPort": 8080, "hostPort": 80}]}),
    "hostIP": (*PICKER, {"ports": [{"containerPort": 8080, "hostIP": "0.0.0.0"}]}),
    "its own port": (*PICKER, {"ports": [{"containerPort": 9002, "name": "other"}]}),
    "ports replaced": (*PICKER, {"ports": [{"$patch": "replace"}]}),
    "resource claims": (*PICKER, {"resources": {"claims": [{"name": "a"}]}}),
    "the token's folder": (*PICKER, {"volumeMounts": [{"name": "a", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]}),
    "a way to it": (*PICKER, {"volumeMounts": [{"name": "a", "mountPath": "/cache/../var/run"}]}),
    "the root": (*PICKER, {"volumeMounts": [{"name": "a", "mountPath": "/"}]}),
    "a way out": (*PICKER, {"volumeMounts": [{"name": "a", "mountPath": "/a", "subPath": "../b"}]}),
    "what looks like a way out": (*PICKER, {"volumeMounts": [{"name": "a", "mountPath": "/a", "subPath": "a..b"}]}),
    "expanded paths": (*PICKER, {"volumeMounts": [{"name": "a", "mountPath": "/a", "subPathExpr": "$(A)"}]}),
    "propagation": (*PICKER, {"volumeMounts": [{"name": "a", "mountPath": "/a", "mountPropagation": "Bidirectional"}]}),
    "devices": (*PICKER, {"volumeDevices": [{"name": "a", "devicePath": "/dev/sda"}]}),
    "over the program": (*PICKER, {"volumeMounts": [{"name": "a", "mountPath": "/pointsman", "subPath": "pointsman"}]}),
    "over its loader": (*PICKER, {"volumeMounts": [{"name": "a", "mountPath": "/lib64"}]}),
    "above the token": (*PICKER, {"volumeMounts": [{"name": "a", "mountPath": "/var/"}]}),
    "two paths": (*PICKER, {"volumeMounts": [{"name": "a", "mountPath": "/tmp:/etc"}]}),
    "dapr's sidecar": (*META, {"annotations": {"dapr.io/sidecar-image": "evil:1"}}),
    "an injector's": (*META, {"annotations": {"any.example.com/inject": "evil"}}),
    "an image": (*META, {"annotations": {"any.example.com/custom-image": "evil"}}),
    "a runtime's": (*META, {"annotations": {"io.katacontainers.config.hypervisor.path": "/x"}}),
    "a runtime's devices": (*META, {"annotations": {"io.kubernetes.cri-o.Devices": "/dev/sda"}}),
    "another network": (*META, {"annotations": {"v1.multus-cni.io/default-network": "tenant/evil"}}),
    "a gateway's label": (*META, {"labels": {"istio": "ingressgateway"}}),
    "an identity": (*META, {"labels": {"azure.workload.identity/use": "true"}}),
    "any spelling of app": (*META, {"labels": {"App": "other"}}),
    "a name search": (*PICKER, {"env": [{"name": "LOCALDOMAIN", "value": "evil"}]}),
    "global service": ("service", (), {"metadata": {"annotations": {"io.cilium/global-service": "true"}}}),
    "exposed service": ("service", (), {"metadata": {"annotations": {"tailscale.com/expose": "true"}}}),
    "stdin": (*PICKER, {"stdin": True}),
    "termination log": (*PICKER, {"terminationMessagePath": "/etc/passwd"}),
    "service type": ("service", (), {"spec": {"type": "LoadBalancer"}}),
    "externalIPs": ("service", (), {"spec": {"externalIPs": ["1.2.3.4"]}}),
    "externalName": ("service", (), {"spec": {"externalName": "evil"}}),
    "loadBalancerIP": ("service", (), {"spec": {"loadBalancerIP": "1.2.3.4"}}),
    "clusterIP": ("service", (), {"spec": {"clusterIP": "10.0.0.10"}}),
    "service selector": ("service", (), {"spec": {"selector": {"app": "other"}}}),
    "service ports": ("service", (), {"spec": {"ports": [{"port": 9002, "nodePort": 30000}]}}),
    "not ready addresses": ("service", (), {"spec": {"publishNotReadyAddresses": True}}),
    "service labels": ("service", (), {"metadata": {"labels": {"a": "b"}}}),
    "service name": ("service", (), {"metadata": {"name": "envoy-gateway"}}),
    "a name in DNS": ("service", (), {"metadata": {"annotations": {"external-dns.alpha.kubernetes.io/hostname": "evil.com"}}}),
    "whose it is": ("service", (), {"metadata": {"annotations": {"pointsman.dev/inference-pool": "other/pool"}}}),
    "budget's selector": ("podDisruptionBudget", (), {"spec": {"selector": {"matchLabels": {}}}}),
    "budget's name": ("pdb", (), {"metadata": {"name": "a"}}),
    "budget's eviction": ("pdb", (), {"spec": {"unhealthyPodEvictionPolicy": "IfHealthyBudget"}}),
}


def at(path: tuple, fields: dict) -> dict:
    for step in reversed(path):
        if step == 0:
            fields = [{"name": CONTAINER, **fields}]
        else:
            fields = {step: fields}
    return fields


@pytest.mark.parametrize("key, path, fields", REFUSED.values(), ids=REFUSED.keys())
def test_what_an_overlay_may_not_set_is_refused_and_nothing_of_it_is_used(key, path, fields, render):
    overlay = {key: yaml.safe_dump(at(path, fields), sort_keys=False)}
    overlay["service" if key != "service" else "pdb"] = "spec: {sessionAffinity: ClientIP}" if key != "service" else "spec: {maxUnavailable: 2}"
    rendered = render(overlay)
    assert rendered.code == 1
    (fault, *more) = rendered.faults
    assert fault.startswith(f"ConfigMap default/shape: {key}:") and "not open" in fault and "--allow-overlay" in fault
    assert all("not open" in other for other in more)
    assert rendered.text == render().text


@pytest.mark.parametrize(
    "fields, said",
    [
        ("replicas: 4294967299", 'spec.replicas: found the number "4294967299"; expected a whole number of 32 bits'),
        (f"template: {{spec: {{containers: [{{name: {CONTAINER}, resources: {{limits: {{memory: 10GB}}}}}}]}}}}", "resources.limits.memory: found"),
        (f"template: {{spec: {{containers: [{{name: {CONTAINER}, env: [{{name: A, value: a}}, {{name: A, value: b}}]}}]}}}}", "env: a second one with name A; expected each once"),
        ("paused: '" + "x" * 131_072 + "'", "bytes long; expected at most 131072"),
    ],
    ids=["wrapping", "quantity", "twice", "long"],
)
def test_what_the_api_server_could_not_even_read_is_told_before(fields, said, render):
    rendered = render({"deployment": f"spec: {{{fields}}}"})
    assert rendered.code == 1 and said in "\n".join(rendered.faults), rendered.faults
    assert rendered.text == render().text


def test_every_quantity_that_kubernetes_reads_is_one(render):
    for quantity in ("1", "1.5", ".5", "5.", "100m", "1Ki", "2Gi", "1e3", "1E-3", "12E", "3n", "+1", "'4'"):
        rendered = render(container(resources={"limits": {"cpu": yaml.safe_load(quantity)}}))
        assert rendered.code == 0, (quantity, rendered.faults)
    for wrong in ("10GB", "10Gx", "1..5", "Gi", "1 Gi", "1KI", "''"):
        assert render(container(resources={"limits": {"cpu": wrong.strip("'")}})).code == 1, wrong


def test_every_spelling_of_its_own_port_is_its_own(render):
    for port in ("0x232A", "+9002", "!!int 9002"):
        overlay = f"spec: {{template: {{spec: {{containers: [{{name: {CONTAINER}, ports: [{{containerPort: {port}, name: x}}]}}]}}}}}}"
        rendered = render({"deployment": overlay})
        assert rendered.code == 1 and rendered.text == render().text, (port, rendered.faults)


def test_an_administrator_opens_fields_by_name(render):
    overlay = deployment({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"})
    path = "deployment.spec.template.spec."
    one = render(overlay, "--allow-overlay", path + "hostNetwork")
    assert one.code == 1 and len(one.faults) == 1 and "dnsPolicy" in one.faults[0]
    both = render(overlay, "--allow-overlay", path + "hostNetwork", "--allow-overlay", path + "dnsPolicy")
    assert both.faults == [] and both.pod["hostNetwork"] is True
    secret = container(env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}])
    opened = render(secret, "--allow-overlay", path + "containers.env.valueFrom.secretKeyRef")
    assert opened.faults == [] and opened.container["env"][0]["valueFrom"]["secretKeyRef"]["name"] == "a"
    for wrong in ("deployment.spec.template.spec.host", "service.spec.template", "deployment.", "deployment", "", "Deployment.spec", path + "hostNetwork ", "pdb.spec"):
        refused = render(overlay, "--allow-overlay", wrong)
        assert refused.code == 2 and "--allow-overlay" in "".join(refused.faults), wrong


# ---- what is wrong


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("deployment", "spec: {replicas: many}", "deployment:1:18: spec.replicas: found"),
        ("deployment", "spec:\n  replicas: '1'", "deployment:2:13: spec.replicas: found"),
        ("deployment", "spec:\n  replicsa: 1", "deployment:2:3: spec.replicsa: there is no such field"),
        ("deployment", "spec: [", "deployment:1:"),
        ("deployment", "spec: {replicas: 1, replicas: 2}", "deployment:1:21"),
        ("deployment", "spec: {template: {metadata: {labels: {a: 1}}}}", "deployment:1:42: spec.template.metadata.labels.a: found"),
        ("deployment", "spec: {template: {metadata: {labels: {a: on}}}}", "deployment:1:42"),
        ("deployment", "spec: {template: []}", "deployment:1:18: spec.template: found a list; expected a mapping"),
        ("deployment", "- a", "deployment:1:1"),
        ("deployment", "spec: {replicas: 1.5}", "deployment:1:18"),
        ("deployment", f"spec: {{strategy: {{$retainKeys: [type], type: Recreate, rollingUpdate: {{}}}}}}", "$retainKeys does not list it"),
        ("deployment", "spec: {strategy: {$patch: merge}}", "$patch is"),
        ("deployments", "spec: {}", "deployments: there is no such part"),
        ("service", "spec: {sessionAfinity: ClientIP}", "service:1:8: spec.sessionAfinity: there is no such field"),
    ],
)
def test_what_is_wrong_is_told_by_line_and_column_and_nothing_is_used(key, value, said, render):
    rendered = render({key: value})
    assert rendered.code == 1
    assert any(said in fault for fault in rendered.faults), rendered.faults
    assert rendered.text == render().text
