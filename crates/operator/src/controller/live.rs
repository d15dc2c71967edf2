//! Objects as the API server has them, beside those that should be.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{ApiResource, DynamicObject};
use pool::PoolId;
use serde_json::Value;

use crate::render::POOL_ANNOTATION;

/// The kinds that pickers consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    ServiceAccount,
    Role,
    RoleBinding,
    PodDisruptionBudget,
    Service,
    Deployment,
}

impl Kind {
    pub(super) const ALL: [Kind; 6] = [
        Kind::ServiceAccount,
        Kind::Role,
        Kind::RoleBinding,
        Kind::PodDisruptionBudget,
        Kind::Service,
        Kind::Deployment,
    ];

    pub(super) fn resource(self) -> ApiResource {
        match self {
            Kind::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
            Kind::Role => ApiResource::erase::<Role>(&()),
            Kind::RoleBinding => ApiResource::erase::<RoleBinding>(&()),
            Kind::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
            Kind::Service => ApiResource::erase::<Service>(&()),
            Kind::Deployment => ApiResource::erase::<Deployment>(&()),
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Kind::ServiceAccount => "ServiceAccount",
            Kind::Role => "Role",
            Kind::RoleBinding => "RoleBinding",
            Kind::PodDisruptionBudget => "PodDisruptionBudget",
            Kind::Service => "Service",
            Kind::Deployment => "Deployment",
        }
    }

    /// Whether it lies in the pool's namespace, and not in the gateway's.
    pub(super) fn is_beside_the_pool(self) -> bool {
        matches!(self, Kind::Role | Kind::RoleBinding)
    }

    /// Whether an overlay can reshape it.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Kind::PodDisruptionBudget | Kind::Service | Kind::Deployment)
    }
}

/// An object that carries our label.
#[derive(Clone, Debug)]
pub(super) struct Live {
    /// Whose it is, by its annotation.
    pub(super) pool: Option<PoolId>,
    pub(super) uid: String,
    pub(super) object: Value,
}

impl Live {
    pub(super) fn read(mut object: DynamicObject) -> Live {
        object.metadata.managed_fields = None;
        let annotation = object.metadata.annotations.as_ref().and_then(|all| all.get(POOL_ANNOTATION));
        Live {
            pool: annotation
                .and_then(|id| id.split_once('/'))
                .map(|(namespace, name)| PoolId::new(namespace, name)),
            uid: object.metadata.uid.clone().unwrap_or_default(),
            object: serde_json::to_value(object).unwrap_or_default(),
        }
    }
}

/// Lists of which a neighbour may own items; all others are one value.
const SHARED_LISTS: [&str; 8] = [
    "containers",
    "env",
    "imagePullSecrets",
    "ports",
    "tolerations",
    "topologySpreadConstraints",
    "volumeMounts",
    "volumes",
];

/// Whether everything desired is there. What is there besides is a neighbour's, or the API server's.
pub(super) fn covers(live: &Value, desired: &Value) -> bool {
    let Value::Object(fields) = desired else { return field_covers("", live, desired) };
    // In a list the API server leaves out what all items are.
    let told = fields.iter().filter(|(field, _)| *field != "apiVersion" && *field != "kind");
    told.into_iter().all(|(field, desired)| match live.get(field) {
        Some(live) => field_covers(field, live, desired),
        None => is_nothing(desired),
    })
}

fn field_covers(field: &str, live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => {
            desired.iter().all(|(key, desired)| match live.get(key) {
                Some(live) => field_covers(key, live, desired),
                None => is_nothing(desired),
            })
        }
        (Value::Array(live), Value::Array(desired)) if SHARED_LISTS.contains(&field) => {
            desired.iter().all(|desired| live.iter().any(|live| field_covers("", live, desired)))
        }
        (Value::Array(live), Value::Array(desired)) => {
            let both = live.iter().zip(desired);
            live.len() == desired.len()
                && both.into_iter().all(|(live, desired)| field_covers("", live, desired))
        }
        _ => live == desired || is_same_quantity(live, desired),
    }
}

/// What the API server leaves out.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_i64() == Some(0),
        Value::String(value) => value.is_empty(),
        Value::Array(value) => value.is_empty(),
        Value::Object(value) => value.values().all(is_nothing),
    }
}

/// `4`, `"4"` and `"4000m"` are one quantity in three spellings, and the API server has its own.
fn is_same_quantity(one: &Value, other: &Value) -> bool {
    let (Some(one), Some(other)) = (quantity(one), quantity(other)) else { return false };
    (one - other).abs() <= one.abs().max(other.abs()) * 1e-9
}

fn quantity(value: &Value) -> Option<f64> {
    let text = match value {
        Value::Number(number) => return number.as_f64(),
        Value::String(text) => text,
        _ => return None,
    };
    const SUFFIXES: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let with_suffix = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some(text.strip_suffix(suffix)?.parse::<f64>().ok()? * factor));
    with_suffix.or_else(|| text.parse().ok()).filter(|number| number.is_finite())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_desired_has_to_be_there_and_more_may_be() {
        let live = json!({ "spec": { "replicas": 2, "containers": [
            { "name": "sidecar" }, { "name": "own", "image": "i", "resources": { "limits": { "cpu": "4", "memory": "1Gi" } } }
        ], "more": true }, "rules": [{ "verbs": ["get", "list"] }] });
        let yes = [
            json!({ "spec": { "replicas": 2 } }),
            json!({ "spec": { "containers": [{ "name": "own", "image": "i" }] } }),
            json!({ "spec": { "containers": [{ "name": "own", "resources": { "limits": { "cpu": "4000m", "memory": "1024Mi" } } }] } }),
            json!({ "spec": { "containers": [{ "name": "own", "resources": { "limits": { "cpu": 4 } } }] } }),
            json!({ "spec": { "paused": false, "affinity": {} } }),
        ];
        let no = [
            json!({ "spec": { "replicas": 1 } }),
            json!({ "spec": { "containers": [{ "name": "own", "image": "other" }] } }),
            json!({ "spec": { "containers": [{ "name": "own", "resources": { "limits": { "cpu": "3" } } }] } }),
            json!({ "spec": { "paused": true } }),
            json!({ "spec": { "containers": [{ "name": "new" }] } }),
            json!({ "rules": [{ "verbs": ["get"] }] }),
            json!({ "rules": [{ "verbs": ["get", "list"] }, { "verbs": [] }] }),
        ];
        for desired in yes {
            assert!(covers(&live, &desired), "{desired}");
        }
        for desired in no {
            assert!(!covers(&live, &desired), "{desired}");
        }
    }
}
