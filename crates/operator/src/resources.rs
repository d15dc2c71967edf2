//! The kinds of the inference extension that are read.

use kube::api::ApiResource;
use pool::PoolVersion;

const V1: &str = "inference.networking.k8s.io";
/// The annotation that names an overlay.
pub(crate) const OVERLAY: &str = "inference.networking.x-k8s.io/epp-overlay";

const X: &str = "inference.networking.x-k8s.io";

pub(crate) fn pools(version: PoolVersion) -> ApiResource {
    match version {
        PoolVersion::V1 => resource(V1, "v1", "InferencePool", "inferencepools"),
        PoolVersion::V1Alpha2 => resource(X, "v1alpha2", "InferencePool", "inferencepools"),
    }
}

/// InferenceModels.
pub(crate) fn models() -> ApiResource {
    resource(X, "v1alpha2", "InferenceModel", "inferencemodels")
}

/// What speaks of a pool's models and priorities.
pub(crate) fn related() -> [ApiResource; 3] {
    [
        resource(X, "v1alpha2", "InferenceObjective", "inferenceobjectives"),
        models(),
        resource(X, "v1alpha2", "InferenceModelRewrite", "inferencemodelrewrites"),
    ]
}

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: format!("{group}/{version}"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}
