//! HTTPRoutes as far as they are read here: which pools their rules name, and which Gateways of Envoy Gateway took them.

use std::collections::BTreeSet;

use envoy_gateway::Backend;
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use pool::{PoolId, PoolVersion};
use serde_json::Value;

use crate::resources;
use crate::watch::Key;

/// Who writes the statuses of Envoy Gateway's routes.
const ENVOY_GATEWAY: &str = "gateway.envoyproxy.io/gatewayclass-controller";
const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// An HTTPRoute that names a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpRoute {
    /// Of each rule, in order, its backends.
    pub(crate) rules: Vec<Vec<Backend>>,
    /// The Gateways that it names and of which Envoy Gateway has judged.
    pub(crate) parents: Vec<Parent>,
}

/// A Gateway that a route names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) gateway: Key,
    /// Whether it took the route.
    pub(crate) accepted: bool,
    /// Why it did not.
    pub(crate) message: String,
    /// A backend of another namespace is named without a ReferenceGrant there.
    pub(crate) lacks_grant: bool,
}

impl HttpRoute {
    /// None where it names no pool.
    pub(crate) fn read(route: &DynamicObject) -> Option<HttpRoute> {
        let own = route.namespace().unwrap_or_default();
        let spec = &route.data["spec"];
        let rules = spec["rules"].as_array()?.iter().map(|rule| {
            let backends = rule["backendRefs"].as_array();
            backends.into_iter().flatten().map(|backend| read_backend(backend, &own)).collect::<Vec<_>>()
        });
        let rules: Vec<Vec<Backend>> = rules.collect();
        if rules.iter().flatten().all(|backend| backend.pool.is_none()) {
            return None;
        }
        // Envoy Gateway leaves what it said of a `parentRef` that is no longer there.
        let named = spec["parentRefs"].as_array().into_iter().flatten();
        let named: BTreeSet<Listeners> = named.filter_map(|it| listeners(it, &own)).collect();
        let parents = route.data["status"]["parents"].as_array();
        let judged = parents.into_iter().flatten().filter(|parent| parent["controllerName"] == ENVOY_GATEWAY);
        let judged = judged.filter(|parent| {
            listeners(&parent["parentRef"], &own).is_some_and(|judged| named.contains(&judged))
        });
        Some(HttpRoute { rules, parents: judged.filter_map(|parent| read_parent(parent, &own)).collect() })
    }

    /// The pools that it names.
    pub(crate) fn pools(&self) -> BTreeSet<PoolId> {
        self.rules.iter().flatten().filter_map(|backend| backend.pool.clone()).collect()
    }
}

fn read_backend(backend: &Value, own: &str) -> Backend {
    let is_group = |version: PoolVersion| backend["group"] == resources::pools(version).group;
    let is_pool = backend["kind"] == "InferencePool"
        && [PoolVersion::V1, PoolVersion::V1Alpha2].into_iter().any(is_group);
    let namespace = backend["namespace"].as_str().unwrap_or(own);
    Backend {
        pool: is_pool.then(|| PoolId::new(namespace, backend["name"].as_str().unwrap_or_default())),
        weight: backend["weight"].as_u64().map_or(1, |weight| u32::try_from(weight).unwrap_or(u32::MAX)),
    }
}

/// A Gateway, and of its listeners the name and the port, where a `parentRef` says them.
type Listeners = (Key, Option<String>, Option<u64>);

fn listeners(reference: &Value, own: &str) -> Option<Listeners> {
    let section = reference["sectionName"].as_str().map(str::to_owned);
    Some((gateway(reference, own)?, section, reference["port"].as_u64()))
}

/// The Gateway that a `parentRef` means; none where it means something else.
fn gateway(reference: &Value, own: &str) -> Option<Key> {
    let is = |field: &str, default: &str| reference[field].as_str().unwrap_or(default) == default;
    let namespace = reference["namespace"].as_str().unwrap_or(own).to_owned();
    (is("group", GATEWAY_API) && is("kind", "Gateway"))
        .then_some((namespace, reference["name"].as_str()?.to_owned()))
}

fn read_parent(parent: &Value, own: &str) -> Option<Parent> {
    let conditions = parent["conditions"].as_array()?;
    let accepted = conditions.iter().find(|condition| condition["type"] == "Accepted")?;
    // Several reasons are joined by commas.
    let lacks_grant = conditions.iter().any(|condition| {
        condition["type"] == "ResolvedRefs"
            && condition["reason"].as_str().is_some_and(|reason| reason.contains("RefNotPermitted"))
    });
    Some(Parent {
        gateway: gateway(&parent["parentRef"], own)?,
        accepted: accepted["status"] == "True",
        message: accepted["message"].as_str().unwrap_or_default().to_owned(),
        lacks_grant,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(object: &str) -> Option<HttpRoute> {
        HttpRoute::read(&serde_json::from_str(object).unwrap())
    }

    #[test]
    fn what_names_a_pool_is_read_as_kubernetes_fills_it_in() {
        let route = read(
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"r","namespace":"a"},
            "spec":{"parentRefs":[{"name":"gw"},{"name":"other","namespace":"b"}],"rules":[{"backendRefs":[
            {"group":"inference.networking.k8s.io","kind":"InferencePool","name":"p"},{"name":"svc","weight":0},
            {"group":"inference.networking.x-k8s.io","kind":"InferencePool","name":"q","namespace":"c","weight":7}]},{}]},
            "status":{"parents":[
            {"controllerName":"gateway.envoyproxy.io/gatewayclass-controller","parentRef":{"name":"gw"},"conditions":[
              {"type":"Accepted","status":"True"},{"type":"ResolvedRefs","status":"False","reason":"BackendNotFound,RefNotPermitted"}]},
            {"controllerName":"gateway.envoyproxy.io/gatewayclass-controller","parentRef":{"name":"gone"},"conditions":[{"type":"Accepted","status":"True"}]},
            {"controllerName":"gateway.envoyproxy.io/gatewayclass-controller","parentRef":{"name":"gw","sectionName":"former"},"conditions":[{"type":"Accepted","status":"True"}]},
            {"controllerName":"another.io/controller","parentRef":{"name":"other","namespace":"b"},"conditions":[{"type":"Accepted","status":"True"}]}]}}"#,
        )
        .unwrap();
        let pool = |namespace: &str, name: &str, weight| Backend {
            pool: Some(PoolId::new(namespace, name)),
            weight,
        };
        assert_eq!(
            route.rules,
            [vec![pool("a", "p", 1), Backend { pool: None, weight: 0 }, pool("c", "q", 7)], vec![]]
        );
        assert_eq!(route.pools(), [PoolId::new("a", "p"), PoolId::new("c", "q")].into());
        let gateways: Vec<_> =
            route.parents.iter().map(|parent| (&*parent.gateway.0, &*parent.gateway.1)).collect();
        assert_eq!(gateways, [("a", "gw")]);
        assert!(route.parents[0].accepted && route.parents[0].lacks_grant);
    }

    #[test]
    fn what_names_none_is_none_of_ours() {
        assert_eq!(
            read(r#"{"metadata":{"name":"r"},"spec":{"rules":[{"backendRefs":[{"name":"svc"}]}]}}"#),
            None
        );
        assert_eq!(read(r#"{"metadata":{"name":"r"},"spec":{}}"#), None);
    }
}
