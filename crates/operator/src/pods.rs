//! Pods as the API server has them, and what is read of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::core::{NotUsed, Object};
use pool::{InferencePool, Pod};
use serde::{Deserialize, Serialize};

/// The part of a Pod that is read.
pub(crate) type PodObject = Object<NotUsed, PodStatus>;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodStatus {
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(default)]
    conditions: Vec<PodCondition>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct PodCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

/// A pod and what selectors see of it.
pub(crate) struct Labelled {
    labels: BTreeMap<String, String>,
    pub(crate) pod: Pod,
}

impl Labelled {
    pub(crate) fn is_selected(&self, pool: &InferencePool) -> bool {
        pool.selector.iter().all(|(key, value)| self.labels.get(key) == Some(value))
    }
}

pub(crate) fn read_labelled(mut object: PodObject) -> Labelled {
    let labels = object.metadata.labels.take().unwrap_or_default();
    Labelled { labels, pod: read_pod(object) }
}

pub(crate) fn read_pod(object: PodObject) -> Pod {
    let PodStatus { pod_ip, conditions } = object.status.unwrap_or_default();
    let is_ready = conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True");
    Pod {
        ready: is_ready && object.metadata.deletion_timestamp.is_none(),
        address: pod_ip.filter(|ip| !ip.is_empty()).map(Arc::from),
        active_ports: object.metadata.annotations.and_then(|mut all| all.remove(Pod::ACTIVE_PORTS)),
        name: object.metadata.name.unwrap_or_default(),
    }
}
