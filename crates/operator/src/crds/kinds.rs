//! The kinds of `inference.networking.x-k8s.io/v1alpha2`.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::condition::{Condition, pending};

/// A pool of model servers, as written before v1.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "inference.networking.x-k8s.io",
    version = "v1alpha2",
    kind = "InferencePool",
    namespaced,
    shortname = "xinfpool",
    status = "InferencePoolStatus",
    annotation("api-approved.kubernetes.io", "unapproved, experimental-only"),
    doc = "InferencePool: model servers that serve the same models, and the endpoint picker in front of them."
)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InferencePoolSpec {
    /// The endpoint picker that the pool brings.
    extension_ref: ExtensionRef,
    /// Labels of the pool's pods, all of which a pod must have.
    selector: BTreeMap<String, LabelValue>,
    /// The port on which the model servers listen.
    #[schemars(range(min = 1, max = 65535))]
    target_port_number: i32,
}

/// The Service of an endpoint picker, in the pool's namespace.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct ExtensionRef {
    /// What becomes of requests while the picker does not answer.
    #[serde(default)]
    failure_mode: FailureMode,
    /// The API group; empty is the core group.
    #[serde(default)]
    #[schemars(with = "Group")]
    group: String,
    /// The kind.
    #[serde(default = "service")]
    #[schemars(with = "Kind")]
    kind: String,
    /// The name.
    #[schemars(with = "Name")]
    name: String,
    /// The port of ext_proc; 9002 unless named.
    #[schemars(range(min = 1, max = 65535))]
    port_number: Option<i32>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
enum FailureMode {
    FailOpen,
    #[default]
    FailClose,
}

/// What became of the pool, by gateway and picker.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("default" = json!({ "parent": [{ "conditions": pending("Accepted"), "parentRef": { "kind": "Status", "name": "default" } }] })))]
pub(crate) struct InferencePoolStatus {
    /// One entry for each.
    #[schemars(length(max = 32))]
    parent: Option<Vec<PoolParent>>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct PoolParent {
    /// What the parent says of the pool.
    #[schemars(
        length(max = 8),
        extend("default" = pending("Accepted"), "x-kubernetes-list-map-keys" = ["type"], "x-kubernetes-list-type" = "map")
    )]
    conditions: Option<Vec<Condition>>,
    /// The parent.
    parent_ref: ParentRef,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
struct ParentRef {
    /// The API group.
    #[serde(default = "gateway_group")]
    #[schemars(with = "Group")]
    group: String,
    /// The kind.
    #[serde(default = "gateway")]
    #[schemars(with = "Kind")]
    kind: String,
    /// The name.
    #[schemars(with = "Name")]
    name: String,
    /// The namespace; the pool's unless named.
    #[schemars(with = "Option<Namespace>")]
    namespace: Option<String>,
}

/// How urgent a model name is and what serves it.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "inference.networking.x-k8s.io",
    version = "v1alpha2",
    kind = "InferenceModel",
    namespaced,
    status = "InferenceModelStatus",
    printcolumn = r#"{"name":"Model Name","jsonPath":".spec.modelName","type":"string"}"#,
    printcolumn = r#"{"name":"Inference Pool","jsonPath":".spec.poolRef.name","type":"string"}"#,
    printcolumn = r#"{"name":"Criticality","jsonPath":".spec.criticality","type":"string"}"#,
    printcolumn = r#"{"name":"Age","jsonPath":".metadata.creationTimestamp","type":"date"}"#,
    doc = "InferenceModel: how urgent the requests for a model name are, and which models of a pool serve them."
)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InferenceModelSpec {
    /// How urgent its requests are; Standard unless said.
    criticality: Option<Criticality>,
    /// The `model` of requests; of several of one pool with the same name the oldest has it.
    #[schemars(
        length(max = 256),
        extend("x-kubernetes-validations" = [{ "message": "modelName is immutable", "rule": "self == oldSelf" }])
    )]
    model_name: String,
    /// The pool, in the same namespace.
    pool_ref: OlderPoolRef,
    /// The models that serve it, by weight; the name itself unless said.
    #[schemars(
        length(max = 10),
        extend("x-kubernetes-validations" = [{
            "message": "Weights should be set for all models, or none of the models.",
            "rule": "self.all(model, has(model.weight)) || self.all(model, !has(model.weight))",
        }])
    )]
    target_models: Option<Vec<TargetModel>>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
enum Criticality {
    Critical,
    Standard,
    Sheddable,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
struct TargetModel {
    /// The model that servers know.
    #[schemars(length(max = 253))]
    name: String,
    /// Its share is this over the sum of all.
    #[schemars(range(min = 1, max = 1_000_000))]
    weight: Option<i32>,
}

/// A named priority.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "inference.networking.x-k8s.io",
    version = "v1alpha2",
    kind = "InferenceObjective",
    namespaced,
    status = "InferenceObjectiveStatus",
    printcolumn = r#"{"name":"Inference Pool","jsonPath":".spec.poolRef.name","type":"string"}"#,
    printcolumn = r#"{"name":"Priority","jsonPath":".spec.priority","type":"string"}"#,
    printcolumn = r#"{"name":"Age","jsonPath":".metadata.creationTimestamp","type":"date"}"#,
    doc = "InferenceObjective: a priority that requests name by the header x-gateway-inference-objective."
)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InferenceObjectiveSpec {
    /// The pool, in the same namespace.
    pool_ref: PoolRef,
    /// Higher goes first, negative may be shed; 0 unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "integer")]
    priority: Option<i64>,
}

/// Which model a request's model becomes.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "inference.networking.x-k8s.io",
    version = "v1alpha2",
    kind = "InferenceModelRewrite",
    namespaced,
    status = "InferenceModelRewriteStatus",
    printcolumn = r#"{"name":"Inference Pool","jsonPath":".spec.poolRef.name","type":"string"}"#,
    printcolumn = r#"{"name":"Age","jsonPath":".metadata.creationTimestamp","type":"date"}"#,
    doc = "InferenceModelRewrite: which model the model of a request becomes, by weight."
)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InferenceModelRewriteSpec {
    /// The pool, in the same namespace.
    pool_ref: PoolRef,
    /// The first that matches; an exact match goes before one of every model.
    rules: Vec<RewriteRule>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
struct RewriteRule {
    /// Any of them; every model unless said.
    matches: Option<Vec<RewriteMatch>>,
    /// What the model becomes.
    #[schemars(length(min = 1))]
    targets: Option<Vec<RewriteTarget>>,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
struct RewriteMatch {
    /// The `model` of requests.
    model: ModelMatch,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
struct ModelMatch {
    /// How it is compared.
    #[serde(rename = "type", default)]
    kind: MatchType,
    /// With what.
    #[schemars(length(min = 1))]
    value: String,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
enum MatchType {
    #[default]
    Exact,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct RewriteTarget {
    /// The model that servers know.
    model_rewrite: String,
    /// Its share is this over the sum of all.
    #[schemars(range(min = 1, max = 1_000_000))]
    weight: Option<i32>,
}

/// What became of an object, and what is said until somebody judges it.
macro_rules! statuses {
    ($($name:ident: $pending:literal;)*) => {
        $(
            /// What became of the object.
            #[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
            pub(crate) struct $name {
                /// Whether it is accepted.
                #[schemars(
                    length(max = 8),
                    extend("default" = pending($pending), "x-kubernetes-list-map-keys" = ["type"], "x-kubernetes-list-type" = "map")
                )]
                conditions: Option<Vec<Condition>>,
            }
        )*
    };
}

statuses! {
    InferenceModelStatus: "Ready";
    InferenceObjectiveStatus: "Ready";
    InferenceModelRewriteStatus: "Accepted";
}

/// A pool, of that group unless said.
macro_rules! pool_refs {
    ($($name:ident: $group:literal;)*) => {
        $(
            #[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
            struct $name {
                /// The API group.
                #[serde(default = $group)]
                #[schemars(with = "Group")]
                group: String,
                /// The kind.
                #[serde(default = "pool_kind")]
                #[schemars(with = "Kind")]
                kind: String,
                /// The name.
                #[schemars(with = "Name")]
                name: String,
            }
        )*
    };
}

pool_refs! {
    PoolRef: "pool_group";
    OlderPoolRef: "older_pool_group";
}

/// A string with limits of its own.
macro_rules! text {
    ($($name:ident($($limits:tt)*);)*) => {
        $(
            #[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
            struct $name(#[schemars($($limits)*)] String);
        )*
    };
}

text! {
    Group(length(max = 253), regex(pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"));
    Kind(length(min = 1, max = 63), regex(pattern = r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"));
    Name(length(min = 1, max = 253));
    Namespace(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"));
    LabelValue(length(min = 0, max = 63), regex(pattern = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"));
}

/// An integer without a width, as upstream has it.
fn integer(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer" })
}

fn service() -> String {
    "Service".to_owned()
}

fn gateway() -> String {
    "Gateway".to_owned()
}

fn gateway_group() -> String {
    "gateway.networking.k8s.io".to_owned()
}

fn pool_kind() -> String {
    "InferencePool".to_owned()
}

fn pool_group() -> String {
    "inference.networking.k8s.io".to_owned()
}

fn older_pool_group() -> String {
    "inference.networking.x-k8s.io".to_owned()
}
