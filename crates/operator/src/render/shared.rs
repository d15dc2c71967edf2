//! One picker for many pools: a Deployment that an installation holds, and for each pool the Service by which it is asked.

use pool::PoolId;
use serde_json::{Value, json};

use super::{Options, Own, deployment_spec, disruption_spec, read_rules, service_to};

/// The name of all its objects.
pub const NAME: &str = "pointsman-picker";
const RBAC: &str = "rbac.authorization.k8s.io";

/// The picker, in the gateway's namespace. It reads the pools of every namespace.
pub(crate) fn picker(options: &Options) -> Vec<Value> {
    let Options { gateway_namespace, epp_image, conformance } = options;
    let metadata = json!({ "name": NAME, "namespace": gateway_namespace, "labels": labels() });
    let cluster_wide = json!({ "name": NAME, "labels": labels() });
    let groups = ["inference.networking.k8s.io", "inference.networking.x-k8s.io"];
    let mut arguments = vec!["epp".to_owned(), "--all-pools".to_owned()];
    if *conformance {
        arguments.push("--conformance".to_owned());
    }
    vec![
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata,
            "automountServiceAccountToken": false,
        }),
        json!({
            "apiVersion": format!("{RBAC}/v1"),
            "kind": "ClusterRole",
            "metadata": cluster_wide,
            "rules": read_rules(&groups, None),
        }),
        json!({
            "apiVersion": format!("{RBAC}/v1"),
            "kind": "ClusterRoleBinding",
            "metadata": cluster_wide,
            "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": NAME },
            "subjects": [{ "kind": "ServiceAccount", "name": NAME, "namespace": gateway_namespace }],
        }),
        json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata,
            "spec": disruption_spec(&selector()),
        }),
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": deployment_spec(NAME, &selector(), &json!({ "labels": labels() }), epp_image, &arguments),
        }),
    ]
}

/// By what the pool's requests reach it.
#[must_use]
pub fn service(id: &PoolId, options: &Options) -> Value {
    service_to(&Own::of(id, options), &selector())
}

/// Its pods.
pub(crate) fn selector() -> Value {
    json!({ "app.kubernetes.io/name": "pointsman", "app.kubernetes.io/component": "shared-endpoint-picker" })
}

fn labels() -> Value {
    let mut labels = selector();
    labels["app.kubernetes.io/instance"] = NAME.into();
    labels
}
