//! What a pool's picker consists of: a pure function of the pool and the controller's options.

pub mod names;
pub mod shared;

use pool::{PoolId, PoolVersion};
use serde_json::{Value, json};

/// The container of the picker; overlays name it.
pub const CONTAINER: &str = "inference-gateway-ext-proc";
/// The label that names the pool.
pub const POOL_LABEL: &str = "inference-pool";
/// The label that names the pool's namespace.
pub const NAMESPACE_LABEL: &str = "inference-pool-namespace";
/// The annotation that names the pool in full, `namespace/name`: what an object with another value is, is not ours to change.
pub const POOL_ANNOTATION: &str = "pointsman.dev/inference-pool";

const GRPC_PORT: u16 = 9002;
const HEALTH_PORT: u16 = 9003;
const METRICS_PORT: u16 = 9090;
/// What the picker listens on.
pub(crate) const PORTS: [u16; 3] = [GRPC_PORT, HEALTH_PORT, METRICS_PORT];
/// The program's own drain (3 s of delay and 30 s) and what it does after.
const GRACE_S: u32 = 45;
/// Nobody's user.
const USER: u32 = 65532;

/// What the controller was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where pickers run.
    pub gateway_namespace: String,
    /// Their image.
    pub epp_image: String,
    /// They take part in upstream's conformance suite.
    pub conformance: bool,
}

/// A picker's objects, as they are applied.
#[derive(Clone, Debug, PartialEq)]
pub struct PickerObjects {
    /// In the pool's namespace: what the picker may read.
    pub role: Value,
    /// In the pool's namespace: that it is the picker who may.
    pub role_binding: Value,
    /// The rest is in the gateway's namespace.
    pub service_account: Value,
    /// The pods.
    pub deployment: Value,
    /// Where they are asked.
    pub service: Value,
    /// How many may be away.
    pub pod_disruption_budget: Value,
}

impl PickerObjects {
    /// All, in the order in which each finds what it needs.
    #[must_use]
    pub fn in_order(&self) -> [&Value; 6] {
        [
            &self.service_account,
            &self.role,
            &self.role_binding,
            &self.pod_disruption_budget,
            &self.service,
            &self.deployment,
        ]
    }
}

/// The objects of the picker of that pool, without an overlay.
#[must_use]
pub fn render(id: &PoolId, version: PoolVersion, options: &Options) -> PickerObjects {
    let own = Own::of(id, options);
    PickerObjects {
        role: role(id, version, &own),
        role_binding: role_binding(id, &own),
        service_account: service_account(&own),
        deployment: deployment(id, version, options, &own),
        service: service(&own),
        pod_disruption_budget: pod_disruption_budget(&own),
    }
}

/// What the objects of one picker have in common.
struct Own<'a> {
    name: String,
    namespace: &'a str,
    labels: Value,
    selector: Value,
    annotations: Value,
}

impl<'a> Own<'a> {
    fn of(id: &PoolId, options: &'a Options) -> Self {
        let name = names::picker(id);
        let selector =
            json!({ POOL_LABEL: names::label(&id.name), NAMESPACE_LABEL: names::label(&id.namespace) });
        let labels = json!({
            "app.kubernetes.io/name": "pointsman",
            "app.kubernetes.io/component": "endpoint-picker",
            "app.kubernetes.io/instance": name,
            "app.kubernetes.io/managed-by": "pointsman-controller",
            POOL_LABEL: selector[POOL_LABEL],
            NAMESPACE_LABEL: selector[NAMESPACE_LABEL],
        });
        let annotations = json!({ POOL_ANNOTATION: id.to_string() });
        Self { name, namespace: &options.gateway_namespace, labels, selector, annotations }
    }

    fn metadata(&self, namespace: &str) -> Value {
        json!({
            "name": self.name,
            "namespace": namespace,
            "labels": self.labels,
            "annotations": self.annotations,
        })
    }
}

fn service_account(own: &Own<'_>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": own.metadata(own.namespace),
        "automountServiceAccountToken": false,
    })
}

/// Its own pool, and what an InferencePool's namespace holds besides: pods, objectives, models and rewrites. No secrets.
fn role(id: &PoolId, version: PoolVersion, own: &Own<'_>) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": own.metadata(&id.namespace),
        "rules": read_rules(&[group(version)], Some(&id.name)),
    })
}

/// What a picker reads: the pools of those groups, or the one of that name, and what speaks of their models, and pods.
pub(crate) fn read_rules(groups: &[&str], pool: Option<&str>) -> [Value; 3] {
    let read = ["get", "list", "watch"];
    let mut pools = json!({ "apiGroups": groups, "resources": ["inferencepools"] });
    if let Some(pool) = pool {
        pools["resourceNames"] = json!([pool]);
    }
    pools["verbs"] = json!(read);
    [
        pools,
        json!({
            "apiGroups": ["inference.networking.x-k8s.io"],
            "resources": ["inferencemodelrewrites", "inferencemodels", "inferenceobjectives"],
            "verbs": read,
        }),
        json!({ "apiGroups": [""], "resources": ["pods"], "verbs": read }),
    ]
}

fn role_binding(id: &PoolId, own: &Own<'_>) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": own.metadata(&id.namespace),
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": own.name },
        "subjects": [{ "kind": "ServiceAccount", "name": own.name, "namespace": own.namespace }],
    })
}

fn deployment(id: &PoolId, version: PoolVersion, options: &Options, own: &Own<'_>) -> Value {
    let mut arguments = vec![
        "epp".to_owned(),
        format!("--pool-name={}", id.name),
        format!("--pool-namespace={}", id.namespace),
        format!("--pool-group={}", group(version)),
    ];
    if options.conformance {
        arguments.push("--conformance".to_owned());
    }
    let template = json!({ "labels": own.labels, "annotations": own.annotations });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": own.metadata(own.namespace),
        "spec": deployment_spec(&own.name, &own.selector, &template, &options.epp_image, &arguments),
    })
}

/// Two pickers that are replaced one by one, and pods with that metadata.
fn deployment_spec(account: &str, selector: &Value, pod: &Value, image: &str, arguments: &[String]) -> Value {
    json!({
        "replicas": 2,
        "selector": { "matchLabels": selector },
        "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
        "template": {
            "metadata": pod,
            "spec": {
                "serviceAccountName": account,
                "automountServiceAccountToken": true,
                "enableServiceLinks": false,
                "terminationGracePeriodSeconds": GRACE_S,
                "securityContext": pod_security(),
                "topologySpreadConstraints": [{
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": { "matchLabels": selector },
                }],
                "containers": [container(image, arguments)],
            },
        },
    })
}

fn container(image: &str, arguments: &[String]) -> Value {
    let probe = |service: &str, period_s: u32, failures: u32| {
        json!({
            "grpc": { "port": HEALTH_PORT, "service": service },
            "periodSeconds": period_s,
            "failureThreshold": failures,
        })
    };
    json!({
        "name": CONTAINER,
        "image": image,
        "args": arguments,
        "ports": [
            { "name": "grpc-ext-proc", "containerPort": GRPC_PORT, "protocol": "TCP" },
            { "name": "grpc-health", "containerPort": HEALTH_PORT, "protocol": "TCP" },
            { "name": "http-metrics", "containerPort": METRICS_PORT, "protocol": "TCP" },
        ],
        "startupProbe": probe("liveness", 1, 60),
        "livenessProbe": probe("liveness", 10, 3),
        "readinessProbe": probe("readiness", 2, 1),
        "resources": {
            "requests": { "cpu": "250m", "memory": "256Mi" },
            // No limit on CPU: a picker that is throttled delays every request of its pool.
            "limits": { "memory": "3Gi" },
        },
        "securityContext": container_security(),
    })
}

/// As the strictest of the Pod Security Standards asks.
pub(crate) fn pod_security() -> Value {
    json!({
        "runAsNonRoot": true,
        "runAsUser": USER,
        "runAsGroup": USER,
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

pub(crate) fn container_security() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "readOnlyRootFilesystem": true,
    })
}

fn service(own: &Own<'_>) -> Value {
    service_to(own, &own.selector)
}

/// The Service of a pool, whoever serves it.
fn service_to(own: &Own<'_>, selector: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": own.metadata(own.namespace),
        "spec": {
            "type": "ClusterIP",
            "selector": selector,
            "ports": [
                { "name": "grpc-ext-proc", "port": GRPC_PORT, "protocol": "TCP", "targetPort": "grpc-ext-proc", "appProtocol": "grpcs" },
                { "name": "grpc-health", "port": HEALTH_PORT, "protocol": "TCP", "targetPort": "grpc-health", "appProtocol": "grpc" },
                { "name": "http-metrics", "port": METRICS_PORT, "protocol": "TCP", "targetPort": "http-metrics", "appProtocol": "http" },
            ],
        },
    })
}

/// One at a time may be away, also where there is one only; who is not ready holds up nobody.
fn pod_disruption_budget(own: &Own<'_>) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": own.metadata(own.namespace),
        "spec": disruption_spec(&own.selector),
    })
}

pub(crate) fn disruption_spec(selector: &Value) -> Value {
    json!({
        "maxUnavailable": 1,
        "selector": { "matchLabels": selector },
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    })
}

fn group(version: PoolVersion) -> &'static str {
    match version {
        PoolVersion::V1 => "inference.networking.k8s.io",
        PoolVersion::V1Alpha2 => "inference.networking.x-k8s.io",
    }
}
