//! What a file declares: documents by their kind.
//!
//! A document with a field that is wrong is left out whole and its siblings stay; a text that is no YAML declares
//! nothing at all.

mod model;
mod object;
mod pool;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub(crate) use self::object::{Object, peek_metadata, shape_of};
use crate::annotations::Annotations;
use crate::fault::{Fault, FaultKind, Position, Severity, nearest, printable, quoted};
use crate::fields::{Fields, Read, Reader};
use crate::overlay::{self, Overlay};
use crate::policy::{AppProtocol, PoolId, PoolVersion};
use crate::slices::{self, EndpointSlice};
use crate::yaml::{self, Node, YamlError};

const POOL_V1: &str = "inference.networking.k8s.io/v1";
const POOL_V1ALPHA2: &str = "inference.networking.x-k8s.io/v1alpha2";
const SLICE_V1: &str = "discovery.k8s.io/v1";

/// Groups of which a kind that we do not know is a fault: it is most likely misspelled.
const OWNED_GROUPS: [&str; 2] = ["inference.networking.k8s.io", "inference.networking.x-k8s.io"];

/// A kind of those groups that has no meaning here.
const POOL_IMPORT: &str = "InferencePoolImport";

/// The kinds we read and the versions in which they are served.
const SERVED: [(&str, &[&str]); 5] = [
    ("InferencePool", &[POOL_V1, POOL_V1ALPHA2]),
    ("InferenceModel", &[POOL_V1ALPHA2]),
    ("InferenceObjective", &[POOL_V1ALPHA2]),
    ("InferenceModelRewrite", &[POOL_V1ALPHA2]),
    ("EndpointSlice", &[SLICE_V1]),
];

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
    /// The port that is written there.
    pub port: Option<u16>,
    /// `failureMode: FailOpen`: without a picker any endpoint will do.
    pub fail_open: bool,
}

impl PickerRef {
    /// Where a picker serves, unless its pool says otherwise.
    const PORT: u16 = 9002;

    /// Whether it names what it may: a Service.
    #[must_use]
    pub fn is_to_a_service(&self) -> bool {
        self.group.is_empty() && self.kind == "Service"
    }

    /// The port of its ext_proc server.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(Self::PORT)
    }
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
    /// ConfigMaps, whether or not they turn out to be overlays.
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
    pub fault: Box<Fault>,
}

/// Reads one file, YAML or JSON, of any number of documents; `file` is its name in positions.
///
/// # Errors
/// A text that is no YAML, gives a key twice, or passes the limits on size (16 MiB), nesting and aliases.
pub fn parse(file: &str, text: &str) -> Result<Manifest, Unparsable> {
    let file: Arc<str> = Arc::from(file);
    let documents = yaml::read(text).map_err(|error| Unparsable::new(&file, error))?;
    let mut reader = Reader::new(&file);
    let mut manifest = Manifest::default();
    for document in documents.iter().filter(|document| !document.is_null()) {
        // What is wrong has been told to the reader.
        let _ = manifest.take(&mut reader, document);
    }
    manifest.faults = reader.faults;
    Ok(manifest)
}

impl Manifest {
    /// Takes in one object, or those of a list.
    fn take(&mut self, reader: &mut Reader, node: &Node) -> Read<()> {
        reader.object = "the document".to_owned();
        let root = Fields::open(reader, node, String::new(), &[])?;
        let (kind, api_version) = (root.text(reader, "kind"), root.text(reader, "apiVersion"));
        let kind = root.required(reader, "kind", kind)?;
        let api_version = root.required(reader, "apiVersion", api_version)?;
        if kind.ends_with("List") && root.find("items").is_some() {
            for (_, item) in root.list(reader, "items")? {
                let _ = self.take(reader, item);
            }
            return Ok(());
        }
        if !is_served(reader, &root, kind, api_version)? {
            self.pass_over(reader, &root, kind);
            return Ok(());
        }
        match (kind, api_version) {
            ("InferencePool", POOL_V1) => self.pools.push(pool::read_v1(reader, node)?),
            ("InferencePool", _) => self.pools.push(pool::read_v1alpha2(reader, node)?),
            ("InferenceModel", _) => self.models.push(model::read_model(reader, node)?),
            ("InferenceObjective", _) => self.objectives.push(model::read_objective(reader, node)?),
            ("InferenceModelRewrite", _) => self.rewrites.push(model::read_rewrite(reader, node)?),
            _ => self.slices.push(slices::read(reader, node)?),
        }
        Ok(())
    }

    /// Notes an object whose kind has no meaning here; a ConfigMap may yet turn out to be an overlay.
    fn pass_over(&mut self, reader: &Reader, root: &Fields<'_>, kind: &str) {
        let config_map = if kind == "ConfigMap" { overlay::read(reader, root) } else { None };
        match config_map {
            Some(overlay) => self.overlays.push(overlay),
            None => {
                let name = peek_metadata(root, "name").unwrap_or_default().to_owned();
                self.passed_over.push(PassedOver {
                    position: reader.position(root.place),
                    kind: kind.to_owned(),
                    name,
                });
            }
        }
    }
}

/// Whether the object is one that we read; a kind of ours in another version, and one that is nearly ours, are faults.
fn is_served(reader: &mut Reader, root: &Fields<'_>, kind: &str, api_version: &str) -> Read<bool> {
    if let Some((_, versions)) = SERVED.iter().find(|(served, _)| *served == kind) {
        if versions.contains(&api_version) {
            return Ok(true);
        }
        let place = root.find("apiVersion").map_or(root.place, |node| node.place);
        let what = format!("{} is not served for {kind}", quoted(api_version));
        return Err(reader.leave_out(
            place,
            FaultKind::UnknownVersion,
            "apiVersion",
            what,
            versions.join(" or "),
        ));
    }
    let group = api_version.split('/').next().unwrap_or_default();
    if !OWNED_GROUPS.contains(&group) || kind == POOL_IMPORT {
        return Ok(false);
    }
    let known = SERVED.iter().map(|(kind, _)| *kind);
    let expected = match nearest(kind, known.clone()) {
        Some(near) => near.to_owned(),
        None => format!("one of {}", known.collect::<Vec<_>>().join(", ")),
    };
    Err(root.invalid(reader, "kind", format!("there is no {} in {group}", quoted(kind)), expected))
}

impl Criticality {
    /// The priority that stands for it.
    #[must_use]
    pub fn priority(self) -> i64 {
        match self {
            Self::Critical => 100,
            Self::Standard => 0,
            Self::Sheddable => -100,
        }
    }
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, kind, name } = self;
        write!(f, "{position}: {} {}: passed over, it has no meaning here", printable(kind), printable(name))
    }
}

impl Unparsable {
    fn new(file: &Arc<str>, error: YamlError) -> Self {
        let fault = Fault {
            position: Position::new(file, error.place.line, error.place.column),
            severity: Severity::Fault,
            kind: FaultKind::Unparsable,
            key: "file".to_owned(),
            what: error.what,
            expected: "YAML or JSON".to_owned(),
            using: "nothing of this file".to_owned(),
        };
        Self { fault: Box::new(fault) }
    }
}

/// For `check`: a file that declares nothing but its fault.
impl From<Unparsable> for Manifest {
    fn from(unparsable: Unparsable) -> Self {
        Self { faults: vec![*unparsable.fault], ..Self::default() }
    }
}
