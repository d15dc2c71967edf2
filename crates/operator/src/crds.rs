//! The definitions of the kinds that are read.
//!
//! InferencePool v1 is upstream's own text. Upstream ships the kinds of v1alpha2 no more: they are made of the types of
//! [`kinds`], which say what upstream's last releases said (pools 1.4.0, models 0.5.1, objectives and rewrites 1.5.0), so that
//! objects, defaults and refusals stay what they were. Tests hold each against the published text. They do not say of which
//! release they are: tools, upstream's conformance suite among them, take what the definitions say for the one release that
//! is installed, and refuse several.

mod condition;
pub(crate) mod kinds;

use kube::CustomResourceExt;
use serde_json::Value;

/// As the Gateway API Inference Extension 1.6.0 publishes it (Apache License 2.0).
const POOL_V1: &str = include_str!("crds/inference.networking.k8s.io_inferencepools.yaml");

/// All of them, InferencePool v1 first.
///
/// # Panics
/// Never: a test reads every one.
#[must_use]
pub fn all() -> Vec<Value> {
    let v1 = serde_saphyr::from_str(POOL_V1).unwrap_or_default();
    let of_types = [
        of::<kinds::InferencePool>(),
        of::<kinds::InferenceModel>(),
        of::<kinds::InferenceObjective>(),
        of::<kinds::InferenceModelRewrite>(),
    ];
    std::iter::once(v1).chain(of_types).collect()
}

/// The definition of a type, as upstream's tools would write it: an optional field may be left out and is never null, and the
/// API server adds the default to an object without a spec before it judges it.
fn of<Kind: CustomResourceExt>() -> Value {
    let mut definition = serde_json::to_value(Kind::crd()).unwrap_or_default();
    if let Some(versions) = definition.pointer_mut("/spec/versions").and_then(Value::as_array_mut) {
        for version in versions {
            let schema = &mut version["schema"]["openAPIV3Schema"];
            if let Some(root) = schema.as_object_mut() {
                root.remove("required");
                root.remove("title");
                let texts = [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")];
                for (name, kind) in texts {
                    root["properties"][name]["type"] = kind.into();
                }
            }
            never_null(schema);
        }
    }
    let names = &mut definition["spec"]["names"];
    if let Some(list) = names["kind"].as_str().map(|kind| format!("{kind}List")) {
        names["listKind"] = list.into();
    }
    definition
}

fn never_null(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.remove("nullable");
            if let Some(Value::Array(values)) = fields.get_mut("enum") {
                values.retain(|value| !value.is_null());
            }
            fields.values_mut().for_each(never_null);
        }
        Value::Array(items) => items.iter_mut().for_each(never_null),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_release_is_said_to_be_installed() {
        let said: Vec<Value> = all()
            .iter()
            .map(|definition| {
                definition["metadata"]["annotations"]["inference.networking.k8s.io/bundle-version"].clone()
            })
            .filter(|version| !version.is_null())
            .collect();
        assert_eq!(said, ["v1.6.0"]);
    }
}
