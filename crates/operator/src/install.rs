//! A whole installation of the controller, as manifests: a pure function of how it is to run.

pub mod chart;

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::crds;
use crate::render::{Options, container_security, disruption_spec, pod_security, read_rules, shared};

/// The namespace of the controller.
pub const NAMESPACE: &str = "pointsman-system";
const NAME: &str = "pointsman-controller";
/// Where the controller's admin door is.
const METRICS_PORT: u16 = 9090;
/// Where it answers Envoy Gateway and Envoys.
pub const EXTENSION_PORT: u16 = 5005;
const GATEWAY_API: &str = "gateway.networking.k8s.io";
/// What Envoy Gateway may besides, and the account that its chart makes for it.
const ENVOY_GATEWAY_ROLE: &str = "pointsman-envoy-gateway";
const ENVOY_GATEWAY_ACCOUNT: &str = "envoy-gateway";
const RBAC: &str = "rbac.authorization.k8s.io";

/// How the controller is to run.
#[derive(Clone, Debug)]
pub struct Installation {
    /// Its namespace.
    pub namespace: String,
    /// How it makes pickers. Their image is also its own.
    pub options: Options,
    /// How many, of which one leads.
    pub replicas: Value,
    /// With the picker that serves all pools.
    pub shared_picker: bool,
    /// Flags besides those that this says already.
    pub arguments: Vec<String>,
}

/// The name by which the controllers of that namespace are reached.
#[must_use]
pub fn discovery_host(namespace: &str) -> String {
    format!("{NAME}.{namespace}.svc")
}

impl Installation {
    /// All of it, in the order in which each finds what it needs: namespaces and definitions of kinds first.
    #[must_use]
    pub fn manifests(&self) -> Vec<Value> {
        let mut all = vec![own_namespace(&self.namespace)];
        if self.options.gateway_namespace != self.namespace {
            all.push(namespace(&self.options.gateway_namespace));
        }
        all.extend(crds::all());
        all.extend(self.objects());
        all
    }

    /// What is left where the namespaces and the definitions of kinds are there.
    #[must_use]
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = self.controller();
        if self.shared_picker {
            objects.extend(shared::picker(&self.options));
        }
        objects
    }

    fn controller(&self) -> Vec<Value> {
        vec![
            self.service_account(),
            cluster_role(),
            self.binding("ClusterRole", None),
            gateway_role(&self.options.gateway_namespace),
            self.binding("Role", Some(&self.options.gateway_namespace)),
            envoy_gateways_role(),
            envoy_gateways_binding(&self.options.gateway_namespace),
            self.pod_disruption_budget(),
            self.service(),
            self.deployment(),
        ]
    }

    fn metadata(&self) -> Value {
        json!({ "name": NAME, "namespace": self.namespace, "labels": labels() })
    }

    fn service_account(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": self.metadata(),
            "automountServiceAccountToken": false,
        })
    }

    /// That the controller may what the role of that kind says.
    fn binding(&self, role: &str, namespace: Option<&str>) -> Value {
        let mut metadata = json!({ "name": NAME, "labels": labels() });
        if let Some(namespace) = namespace {
            metadata["namespace"] = namespace.into();
        }
        json!({
            "apiVersion": format!("{RBAC}/v1"),
            "kind": format!("{role}Binding"),
            "metadata": metadata,
            "roleRef": { "apiGroup": RBAC, "kind": role, "name": NAME },
            "subjects": [{ "kind": "ServiceAccount", "name": NAME, "namespace": self.namespace }],
        })
    }

    fn deployment(&self) -> Value {
        let mut arguments = vec![
            "controller".to_owned(),
            "--leader-elect".to_owned(),
            format!("--gateway-namespace={}", self.options.gateway_namespace),
            format!("--epp-image={}", self.options.epp_image),
            format!("--discovery-address={}:{EXTENSION_PORT}", discovery_host(&self.namespace)),
        ];
        if self.options.conformance {
            arguments.push("--conformance".to_owned());
        }
        arguments.extend(self.arguments.iter().cloned());
        let probe = |path: &str, period_s: u32, failures: u32| {
            json!({
                "httpGet": { "path": path, "port": "http-metrics" },
                "periodSeconds": period_s,
                "failureThreshold": failures,
            })
        };
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": self.metadata(),
            "spec": {
                "replicas": self.replicas,
                "selector": { "matchLabels": selector() },
                "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
                "template": {
                    "metadata": { "labels": labels() },
                    "spec": {
                        "serviceAccountName": NAME,
                        "automountServiceAccountToken": true,
                        "enableServiceLinks": false,
                        "securityContext": pod_security(),
                        "topologySpreadConstraints": [{
                            "maxSkew": 1,
                            "topologyKey": "kubernetes.io/hostname",
                            "whenUnsatisfiable": "ScheduleAnyway",
                            "labelSelector": { "matchLabels": selector() },
                        }],
                        "containers": [{
                            "name": "controller",
                            "image": self.options.epp_image,
                            "args": arguments,
                            "ports": [
                                { "name": "http-metrics", "containerPort": METRICS_PORT, "protocol": "TCP" },
                                { "name": "grpc-extension", "containerPort": EXTENSION_PORT, "protocol": "TCP" },
                            ],
                            "livenessProbe": probe("/healthz", 10, 3),
                            "readinessProbe": probe("/readyz", 2, 1),
                            "resources": {
                                "requests": { "cpu": "100m", "memory": "128Mi" },
                                "limits": { "memory": "1Gi" },
                            },
                            "securityContext": container_security(),
                        }],
                    },
                },
            },
        })
    }

    fn service(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": self.metadata(),
            "spec": {
                "type": "ClusterIP",
                "selector": selector(),
                "ports": [
                    { "name": "http-metrics", "port": METRICS_PORT, "protocol": "TCP", "targetPort": "http-metrics", "appProtocol": "http" },
                    { "name": "grpc-extension", "port": EXTENSION_PORT, "protocol": "TCP", "targetPort": "grpc-extension", "appProtocol": "kubernetes.io/h2c" },
                ],
            },
        })
    }

    fn pod_disruption_budget(&self) -> Value {
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": self.metadata(),
            "spec": disruption_spec(&selector()),
        })
    }
}

/// Manifests one after the other.
///
/// # Errors
/// An object that cannot be written as YAML, which a test keeps from happening.
pub fn to_yaml(objects: &[Value]) -> Result<String, serde_saphyr::ser::Error> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        for line in serde_saphyr::to_string(object)?.lines() {
            match line.split_once(": ").filter(|(_, value)| is_time(value)) {
                Some((key, time)) => writeln!(text, "{key}: \"{time}\""),
                None => writeln!(text, "{line}"),
            }
            .unwrap_or_default();
        }
    }
    Ok(text)
}

/// Whether a reader of YAML 1.1 would take the text for a time.
fn is_time(value: &str) -> bool {
    let is_digit = |at: usize| value.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    [0, 1, 2, 3, 5, 6, 8, 9].into_iter().all(is_digit) && value.as_bytes().get(4) == Some(&b'-')
}

fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

/// Nothing there needs more than the strictest of the Pod Security Standards.
fn own_namespace(name: &str) -> Value {
    let mut namespace = namespace(name);
    namespace["metadata"]["labels"] = json!({ "pod-security.kubernetes.io/enforce": "restricted" });
    namespace
}

fn selector() -> Value {
    json!({ "app.kubernetes.io/name": "pointsman", "app.kubernetes.io/component": "controller" })
}

fn labels() -> Value {
    let mut labels = selector();
    labels["app.kubernetes.io/instance"] = NAME.into();
    labels
}

/// What it reads of all namespaces, what it writes beside pools, and what it passes on to pickers: nobody may grant what they
/// may not do themselves.
fn cluster_role() -> Value {
    let read = ["get", "list", "watch"];
    let make = ["get", "list", "watch", "create", "patch", "delete"];
    let groups = ["inference.networking.k8s.io", "inference.networking.x-k8s.io"];
    let own = [
        json!({ "apiGroups": groups, "resources": ["inferencepools/status"], "verbs": ["patch"] }),
        json!({ "apiGroups": [groups[1]], "resources": ["inferencemodels/status"], "verbs": ["patch"] }),
        json!({ "apiGroups": [""], "resources": ["configmaps", "services"], "verbs": read }),
        // What its answers to Envoy Gateway and Envoys are made of.
        json!({ "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read }),
        json!({ "apiGroups": [GATEWAY_API], "resources": ["gateways", "httproutes"], "verbs": read }),
        // The annotation that wakes Envoy Gateway.
        json!({ "apiGroups": [GATEWAY_API], "resources": ["gateways"], "verbs": ["patch"] }),
        json!({ "apiGroups": [""], "resources": ["events"], "verbs": ["get", "create", "patch"] }),
        json!({ "apiGroups": [RBAC], "resources": ["rolebindings", "roles"], "verbs": make }),
    ];
    let rules: Vec<Value> = read_rules(&groups, None).into_iter().chain(own).collect();
    json!({
        "apiVersion": format!("{RBAC}/v1"),
        "kind": "ClusterRole",
        "metadata": { "name": NAME, "labels": labels() },
        "rules": rules,
    })
}

/// What Envoy Gateway needs to know of pools that routes name; its own chart grants it nothing of them.
fn envoy_gateways_role() -> Value {
    let groups = ["inference.networking.k8s.io", "inference.networking.x-k8s.io"];
    let read = ["get", "list", "watch"];
    json!({
        "apiVersion": format!("{RBAC}/v1"),
        "kind": "ClusterRole",
        "metadata": { "name": ENVOY_GATEWAY_ROLE, "labels": labels() },
        "rules": [{ "apiGroups": groups, "resources": ["inferencepools"], "verbs": read }],
    })
}

fn envoy_gateways_binding(namespace: &str) -> Value {
    json!({
        "apiVersion": format!("{RBAC}/v1"),
        "kind": "ClusterRoleBinding",
        "metadata": { "name": ENVOY_GATEWAY_ROLE, "labels": labels() },
        "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": ENVOY_GATEWAY_ROLE },
        "subjects": [{ "kind": "ServiceAccount", "name": ENVOY_GATEWAY_ACCOUNT, "namespace": namespace }],
    })
}

/// What it makes where pickers run.
fn gateway_role(namespace: &str) -> Value {
    let make = ["get", "list", "watch", "create", "patch", "delete"];
    json!({
        "apiVersion": format!("{RBAC}/v1"),
        "kind": "Role",
        "metadata": { "name": NAME, "namespace": namespace, "labels": labels() },
        "rules": [
            { "apiGroups": [""], "resources": ["serviceaccounts", "services"], "verbs": make },
            { "apiGroups": ["apps"], "resources": ["deployments"], "verbs": make },
            { "apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "verbs": make },
            // Who leads.
            { "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"] },
        ],
    })
}
