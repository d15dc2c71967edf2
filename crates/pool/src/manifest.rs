//! What a file declares.

use std::collections::BTreeMap;

use crate::annotations::Annotations;
use crate::fault::{Fault, Position};
use crate::policy::{AppProtocol, PoolId, PoolVersion};
use crate::slices::EndpointSlice;

/// An InferencePool of either version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferencePool {
    /// Its namespace and name.
    pub id: PoolId,
    /// In which version it was written.
    pub version: PoolVersion,
    /// Where the document begins.
    pub position: Position,
    /// Labels that a pod (or an EndpointSlice) must have, 1 to 64, in the pool's own namespace.
    pub selector: BTreeMap<String, String>,
    /// 1 to 8 ports, unique, in the order written: each is an endpoint of its own on every pod.
    pub target_ports: Vec<u16>,
    /// What the endpoints speak.
    pub app_protocol: AppProtocol,
    /// The picker that the pool brings, if it names one.
    pub picker: Option<PickerRef>,
    /// Its annotations.
    pub annotations: Annotations,
}

/// `spec.endpointPickerRef` (v1) or `spec.extensionRef` (v1alpha2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PickerRef {
    /// API group; empty is the core group.
    pub group: String,
    /// `Service` unless written otherwise.
    pub kind: String,
    /// The object's name, in the pool's namespace.
    pub name: String,
    /// The port of its ext_proc server.
    pub port: Option<u16>,
    /// `failureMode: FailOpen`: without a picker any endpoint will do.
    pub fail_open: bool,
}

/// An InferenceModel (v1alpha2): how urgent a model name is and what serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferenceModel {
    /// Where the document begins.
    pub position: Position,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.creationTimestamp` as written (RFC 3339, UTC), where there is one.
    pub created: Option<String>,
    /// The `model` of a request that it speaks of; unique in a pool.
    pub model_name: String,
    /// How urgent; absent counts as [`Criticality::Standard`].
    pub criticality: Option<Criticality>,
    /// What the model is rewritten to, at most 10; empty: the name itself.
    pub targets: Vec<ModelTarget>,
    /// The pool it belongs to, in its own namespace.
    pub pool: PoolId,
}

/// How urgent the requests of an InferenceModel are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Criticality {
    /// Priority 100.
    Critical,
    /// Priority 0.
    Standard,
    /// Priority -100: may be shed.
    Sheddable,
}

/// A model and its share of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelTarget {
    /// The model that the server knows.
    pub model: String,
    /// Its share is this over the sum of the list's, which is never 0.
    pub weight: u32,
}

/// An InferenceObjective (v1alpha2): a named priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferenceObjective {
    /// Where the document begins.
    pub position: Position,
    /// Its namespace.
    pub namespace: String,
    /// Its name, as `x-gateway-inference-objective` has it.
    pub name: String,
    /// Higher goes first, negative may be shed; unset is 0.
    pub priority: i64,
    /// The pool it belongs to, in its own namespace.
    pub pool: PoolId,
}

/// An InferenceModelRewrite (v1alpha2): which model a request's model becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferenceModelRewrite {
    /// Where the document begins.
    pub position: Position,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.creationTimestamp` as written (RFC 3339, UTC), where there is one.
    pub created: Option<String>,
    /// The pool it belongs to, in its own namespace.
    pub pool: PoolId,
    /// In the order written.
    pub rules: Vec<RewriteRule>,
}

/// One rule of an InferenceModelRewrite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteRule {
    /// The exact model names it matches; empty: every model.
    pub models: Vec<String>,
    /// What they become, by weight; never empty.
    pub targets: Vec<ModelTarget>,
}

/// A ConfigMap: an overlay if a pool names it or its keys say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Where the document begins.
    pub position: Position,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its `data`, in the order written.
    pub entries: Vec<OverlayEntry>,
}

/// One key of a ConfigMap's `data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayEntry {
    /// The data key.
    pub key: String,
    /// The value: for an overlay YAML in its own right.
    pub value: String,
    /// Where the key begins.
    pub position: Position,
}

/// An object whose kind has no meaning here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// Where the document begins.
    pub position: Position,
    /// Its kind.
    pub kind: String,
    /// Its name; empty where it has none.
    pub name: String,
}

/// Everything that one file declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// InferencePools of both versions.
    pub pools: Vec<InferencePool>,
    /// InferenceObjectives.
    pub objectives: Vec<InferenceObjective>,
    /// InferenceModels.
    pub models: Vec<InferenceModel>,
    /// InferenceModelRewrites.
    pub rewrites: Vec<InferenceModelRewrite>,
    /// EndpointSlices.
    pub slices: Vec<EndpointSlice>,
    /// ConfigMaps, whether or not they are overlays.
    pub overlays: Vec<Overlay>,
    /// What is wrong with the documents themselves; annotations are judged by [`crate::PoolPolicy::resolve`].
    pub faults: Vec<Fault>,
    /// What has no meaning here.
    pub passed_over: Vec<PassedOver>,
}

/// A file that cannot be read as YAML: it declares nothing, not even its sound documents.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault}")]
pub struct Unparsable {
    /// Where and why.
    pub fault: Fault,
}
