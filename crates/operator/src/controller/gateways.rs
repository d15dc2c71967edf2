//! Gateways: which of them lead to a pool, what they say of it, and what wakes Envoy Gateway.
//!
//! Of what its Envoys are told Envoy Gateway watches HTTPRoutes and pools, and not whose picker a pool has, nor which revision of us answers; and
//! of an HTTPRoute it may have heard before we did. So each Gateway that leads to pools carries a digest of what its translation is made of
//! here: when that changes the annotation does, and Envoy Gateway asks again.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use envoy_gateway::{REVISION, RouteName, Serving};
use kube::Error;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use pool::{InferencePool, PickerRef, PoolId};
use serde_json::json;

use super::reconcile::{Job, Means, Named, code};
use super::status::{Condition, Entry, Parent};
use super::{Controller, START_MAX};
use crate::render::names;
use crate::resources;
use crate::watch::Key;

/// Envoy Gateway translates a Gateway again when an annotation with this prefix changes.
const ANNOTATION: &str = "gateway.envoyproxy.io/pointsman";
const NOT_FOUND: u16 = 404;

/// The digest that a Gateway carries.
pub(super) fn read(gateway: DynamicObject) -> Option<String> {
    gateway.metadata.annotations.and_then(|mut all| all.remove(ANNOTATION))
}

/// How a Gateway stands to a pool, by its HTTPRoutes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) accepted: bool,
    /// An HTTPRoute that it took; where it took none, one that it did not take.
    pub(super) route: String,
    pub(super) message: String,
}

/// What a Gateway is to carry.
pub(super) struct Wake {
    gateway: Key,
    digest: String,
}

impl Controller {
    /// The Gateways by which routes lead to a pool.
    pub(super) fn gateways_of(&self, id: &PoolId) -> BTreeMap<Key, Bound> {
        let mut gateways: BTreeMap<Key, Bound> = BTreeMap::new();
        let routes = self.routes.objects().iter().filter_map(|(key, route)| Some((key, route.as_ref()?)));
        for ((namespace, name), route) in routes {
            if !route.rules.iter().flatten().any(|backend| backend.pool.as_ref() == Some(id)) {
                continue;
            }
            for parent in &route.parents {
                // Who may not use a pool is not to write into its status either.
                let may = *namespace == id.namespace || !parent.lacks_grant;
                if !may || !self.gateways.objects().contains_key(&parent.gateway) {
                    continue;
                }
                let (accepted, message) = (parent.accepted, parent.message.clone());
                let bound = Bound { accepted, route: format!("{namespace}/{name}"), message };
                match gateways.get(&parent.gateway) {
                    Some(there) if there.accepted || !bound.accepted => {}
                    _ => drop(gateways.insert(parent.gateway.clone(), bound)),
                }
            }
        }
        gateways
    }

    /// What that Gateway is to carry from now on; none where it does already, or leads to no pool.
    pub(super) fn wake(&self, gateway: &Key) -> Option<Wake> {
        let there = self.gateways.objects().get(gateway)?;
        let known = self.known.borrow();
        let mut made_of = format!("{REVISION} {:?}", self.pickers);
        let mut leads_to_pools = false;
        for (key, route) in self.routes.objects() {
            let Some(route) =
                route.as_ref().filter(|route| route.parents.iter().any(|to| to.gateway == *gateway))
            else {
                continue;
            };
            leads_to_pools = true;
            let _ = write!(made_of, "\n{key:?} {:?}", route.rules);
            // What Envoy Gateway is answered by: it is known here a moment later than the route.
            let name = RouteName { namespace: key.0.clone(), name: key.1.clone() };
            known.routes.get(&name).filter(|rules| **rules == route.rules)?;
            for id in route.pools() {
                let picker = known.pools.get(&id).map(|known| known.picker);
                let _ = write!(made_of, " {id}:{picker:?}");
            }
            // Envoy Gateway does not look at pools whose weight is 0.
            let idle = route.rules.iter().flatten().filter(|backend| backend.weight == 0);
            for idle in idle.filter_map(|backend| known.pools.get(backend.pool.as_ref()?)) {
                let _ = write!(made_of, " {:?}", idle.pool);
            }
        }
        let digest = names::hash(&made_of);
        (leads_to_pools && *there != Some(digest.clone())).then(|| Wake { gateway: gateway.clone(), digest })
    }
}

/// Writes it.
///
/// # Errors
/// What the API server said; to be tried again.
pub(super) async fn tell(means: &Means, wake: &Wake) -> Result<(), Error> {
    let resource = resources::gateways();
    let (namespace, name) = &wake.gateway;
    // Not applied: that would make a Gateway which has just gone.
    let change = json!({ "metadata": { "annotations": { ANNOTATION: wake.digest } } });
    means.metrics.count_write("Gateway");
    let api: Api<DynamicObject> = Api::namespaced_with(means.client.clone(), namespace, &resource);
    match api.patch(name, &PatchParams::default(), &Patch::Merge(&change)).await {
        Ok(_) => Ok(()),
        Err(error) if code(&error) == Some(NOT_FOUND) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What each Gateway says of the pool (`Accepted`), and whether what the pool names is there (`ResolvedRefs`).
pub(super) fn entries(job: &Job, pool: &InferencePool) -> Vec<Entry> {
    let named = pool.picker.as_ref();
    let accepted = |bound: &Bound| {
        let (holds, reason, message) = match bound {
            _ if job.brings_picker && named.is_none() => (
                false,
                "EndpointPickerRefMissing",
                "the pool names no endpoint picker, and under --pickers=self-hosted none is made".to_owned(),
            ),
            Bound { accepted: true, route, .. } => {
                (true, "Accepted", format!("the HTTPRoute {route} leads to it"))
            }
            Bound { route, message, .. } => (
                false,
                "HTTPRouteNotAccepted",
                format!("the Gateway does not accept the HTTPRoute {route}: {message}"),
            ),
        };
        Condition { kind: "Accepted", holds, reason, message }
    };
    let resolved = references(job, pool);
    let entry = |((namespace, name), bound): (&Key, &Bound)| Entry {
        parent: Parent::gateway(namespace, name),
        conditions: vec![accepted(bound), resolved.clone()],
    };
    job.gateways.iter().map(entry).collect()
}

/// Whether what the pool names as its picker can be used. What is not asked for may be missing: ours is made then.
fn references(job: &Job, pool: &InferencePool) -> Condition {
    let namespace = &pool.id.namespace;
    let (holds, message) = match (&job.named, &pool.picker) {
        (Named::NoService, Some(PickerRef { kind, name, .. })) => {
            let instead = if job.brings_picker { "" } else { "; Pointsman's picker is used" };
            (
                false,
                format!(
                    "it names the {kind} {name} as its endpoint picker, and that has to be a Service{instead}"
                ),
            )
        }
        (Named::Missing, Some(PickerRef { name, .. })) if job.brings_picker => (
            false,
            format!("the Service {namespace}/{name} that it names as its endpoint picker is not there"),
        ),
        (Named::WithoutPort(ports), Some(picker)) if job.brings_picker => (
            false,
            format!(
                "the Service {namespace}/{} that it names as its endpoint picker has no port {}; it has {ports:?}{}",
                picker.name,
                picker.port(),
                meanwhile(job)
            ),
        ),
        (_, Some(picker)) if job.brings_picker => {
            let name = &picker.name;
            (true, format!("its endpoint picker is the Service {namespace}/{name}{}", meanwhile(job)))
        }
        (_, None) if job.brings_picker => (true, "it names no endpoint picker".to_owned()),
        _ => (true, "its picker is made by Pointsman".to_owned()),
    };
    let reason = if holds { "ResolvedRefs" } else { "InvalidExtensionRef" };
    Condition { kind: "ResolvedRefs", holds, reason, message }
}

/// Who is asked where a pool's own picker does not serve.
fn meanwhile(job: &Job) -> String {
    match &job.serving {
        Serving::Yes => String::new(),
        Serving::Meanwhile(service) => {
            let most = START_MAX.as_secs();
            format!("; it serves nobody yet, and the Service {service} is asked, for {most} s at most")
        }
        Serving::No => "; it serves nobody".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pool::PoolId;

    use super::*;

    #[test]
    fn a_reference_that_cannot_be_used_is_told_with_what_is_there() {
        let told_while = |kind: &str, named: Named, brings_picker: bool, serving: Serving| {
            let text = format!(
                "{{apiVersion: inference.networking.k8s.io/v1, kind: InferencePool, metadata: {{name: p, namespace: ns}}, \
                 spec: {{selector: {{matchLabels: {{a: b}}}}, targetPorts: [{{number: 1}}], \
                 endpointPickerRef: {{name: s, kind: {kind}, port: {{number: 9}}}}}}}}"
            );
            let pool = pool::parse("p", &text).unwrap().pools.remove(0);
            let job = Job {
                id: PoolId::new("ns", "p"),
                pool: None,
                shadowed: None,
                live: BTreeMap::new(),
                brings_picker,
                own_is_asked: brings_picker,
                serving,
                named,
                gateways: BTreeMap::new(),
                shared_is_ready: false,
            };
            let condition = references(&job, &pool);
            (condition.holds, condition.message)
        };
        let told = |kind: &str, named, brings_picker| told_while(kind, named, brings_picker, Serving::Yes);
        let not = |message: &str| (false, message.to_owned());
        let yes = |message: &str| (true, message.to_owned());
        assert_eq!(told("Service", Named::Service, true), yes("its endpoint picker is the Service ns/s"));
        assert_eq!(
            told_while("Service", Named::Service, true, Serving::Meanwhile("ns/former".to_owned())),
            yes(
                "its endpoint picker is the Service ns/s; it serves nobody yet, and the Service ns/former is asked, for 20 s at most"
            )
        );
        assert_eq!(
            told_while("Service", Named::WithoutPort(vec![80]), true, Serving::No),
            not(
                "the Service ns/s that it names as its endpoint picker has no port 9; it has [80]; it serves nobody"
            )
        );
        assert_eq!(told("Service", Named::Missing, false), yes("its picker is made by Pointsman"));
        assert_eq!(
            told("Service", Named::Missing, true),
            not("the Service ns/s that it names as its endpoint picker is not there")
        );
        assert_eq!(
            told("Service", Named::WithoutPort(vec![80, 443]), true),
            not("the Service ns/s that it names as its endpoint picker has no port 9; it has [80, 443]")
        );
        assert_eq!(
            told("Pod", Named::NoService, false),
            not(
                "it names the Pod s as its endpoint picker, and that has to be a Service; Pointsman's picker is used"
            )
        );
    }
}
