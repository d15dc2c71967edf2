//! The kinds of the inference extension that are read.

use kube::api::ApiResource;
use pool::PoolVersion;

use crate::crds::kinds;

/// The annotation that names an overlay.
pub(crate) const OVERLAY: &str = "inference.networking.x-k8s.io/epp-overlay";

pub(crate) fn pools(version: PoolVersion) -> ApiResource {
    match version {
        PoolVersion::V1 => ApiResource {
            group: "inference.networking.k8s.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "inference.networking.k8s.io/v1".to_owned(),
            kind: "InferencePool".to_owned(),
            plural: "inferencepools".to_owned(),
        },
        PoolVersion::V1Alpha2 => ApiResource::erase::<kinds::InferencePool>(&()),
    }
}

/// HTTPRoutes.
pub(crate) fn routes() -> ApiResource {
    gateway_api("HTTPRoute", "httproutes")
}

/// Gateways.
pub(crate) fn gateways() -> ApiResource {
    gateway_api("Gateway", "gateways")
}

fn gateway_api(kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: "gateway.networking.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "gateway.networking.k8s.io/v1".to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// InferenceModels.
pub(crate) fn models() -> ApiResource {
    ApiResource::erase::<kinds::InferenceModel>(&())
}

/// What speaks of a pool's models and priorities.
pub(crate) fn related() -> [ApiResource; 3] {
    [
        ApiResource::erase::<kinds::InferenceObjective>(&()),
        models(),
        ApiResource::erase::<kinds::InferenceModelRewrite>(&()),
    ]
}
