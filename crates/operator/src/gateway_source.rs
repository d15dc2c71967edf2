//! What Envoy Gateway and its Envoys are answered by: the HTTPRoutes that name pools, whose picker each pool has, and where the
//! endpoints of pools and of pickers are. Every replica of the controller knows it, whichever of them leads.
//!
//! Invariants
//! - Nothing is published before all of it was listed once; from then on what is known stays in force while the API server is away.
//! - A change is looked at where it matters: a pod at the pools that select it or did, a Service and its slices at the pools whose
//!   picker they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_gateway::{
    Address, Backend, Endpoints, Known, KnownPool, PickerOwner, RouteName, Serving, StampedPool, picker_name,
    pool_name,
};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::watcher;
use pool::{InferencePool, Manifest, Pod, PoolId, PoolVersion};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::controller::{Pickers, START_MAX};
use crate::http_route::HttpRoute;
use crate::pods::{Labelled, PodObject, read_labelled};
use crate::pool_source::{GATHER, read, wait_until};
use crate::render::names;
use crate::resources;
use crate::watch::{Change, Collection, Key};

/// Where pickers of ours serve.
const PICKER_PORT: u16 = 9002;
/// HTTPRoutes that change within this are taken in together: Envoy Gateway sees them when we do, and asks at once.
const ROUTES_GATHER: Duration = Duration::from_millis(5);
/// How long it is known what an HTTPRoute was before: Envoy Gateway, when it is busy, takes seconds.
const FORMER_MAX: Duration = Duration::from_secs(60);
/// The label by which slices name their Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// What a Service's port says that is spoken to in the clear.
const CLEARTEXT: [&str; 3] = ["kubernetes.io/h2c", "grpc", "http"];

/// Where that is learned.
pub struct GatewaySource {
    pickers: Pickers,
    gateway_namespace: String,
    routes: Collection<DynamicObject, Option<HttpRoute>>,
    pools: [Collection<DynamicObject, Manifest>; 2],
    pods: Collection<PodObject, Labelled>,
    services: Collection<Service, Ports>,
    slices: Collection<EndpointSlice, Option<Slice>>,
    /// To be looked at.
    marked: BTreeSet<PoolId>,
    /// Of each pool the names of its pods.
    selected: BTreeMap<PoolId, BTreeSet<String>>,
    /// Of each pool that brings its own picker, or did, the Service that is asked and its port.
    brought: BTreeMap<PoolId, (String, u16)>,
    /// Of each pool that names another Service than that, until when it is asked.
    leaves: BTreeMap<PoolId, Instant>,
    known: Known,
    /// Since when each of what was known of HTTPRoutes is no longer so.
    former: BTreeMap<RouteName, Instant>,
    endpoints: Endpoints,
}

/// Of each HTTPRoute's rules the backends.
type Routes = BTreeMap<RouteName, Vec<Vec<Backend>>>;

/// A Service.
struct Ports {
    uid: Option<String>,
    /// Number, name, and whether it is spoken to over TLS.
    ports: Vec<(u16, String, bool)>,
}

/// Ready endpoints of a Service.
struct Slice {
    service: String,
    /// Which Service of that name it was made for; none where somebody wrote it by hand. It outlives that by some seconds.
    owner: Option<String>,
    ports: Vec<(String, u16)>,
    addresses: Vec<IpAddr>,
}

impl GatewaySource {
    /// A source that has seen nothing yet; pickers of ours are in that namespace.
    #[must_use]
    pub fn new(client: &Client, pickers: Pickers, gateway_namespace: &str) -> Self {
        let config = watcher::Config::default;
        let dynamic = |resource: &ApiResource| Api::all_with(client.clone(), resource);
        let pools = [PoolVersion::V1, PoolVersion::V1Alpha2].map(|version| {
            let resource = resources::pools(version);
            let what = format!("{}s ({})", resource.kind, resource.api_version);
            Collection::new(what, dynamic(&resource), config(), read)
        });
        let pods = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        let of_services = config().labels(SERVICE_NAME);
        Self {
            pickers,
            gateway_namespace: gateway_namespace.to_owned(),
            routes: Collection::new(
                "HTTPRoutes".to_owned(),
                dynamic(&resources::routes()),
                config(),
                |route| HttpRoute::read(&route),
            ),
            pools,
            pods: Collection::new(
                "Pods".to_owned(),
                Api::all_with(client.clone(), &pods),
                config(),
                read_labelled,
            ),
            services: Collection::new("Services".to_owned(), Api::all(client.clone()), config(), ports),
            slices: Collection::new(
                "EndpointSlices".to_owned(),
                Api::all(client.clone()),
                of_services,
                slice,
            ),
            marked: BTreeSet::new(),
            selected: BTreeMap::new(),
            brought: BTreeMap::new(),
            leaves: BTreeMap::new(),
            known: Known::default(),
            former: BTreeMap::new(),
            endpoints: Endpoints::new(),
        }
    }

    /// Publishes what is known and each change of it, for ever. `listed` tells when all of it was listed once.
    pub async fn run(
        mut self,
        known: watch::Sender<Arc<Known>>,
        endpoints: watch::Sender<Arc<Endpoints>>,
        listed: watch::Sender<bool>,
    ) {
        let mut due: Option<Instant> = None;
        loop {
            let [v1, v1alpha2] = &mut self.pools;
            let change = tokio::select! {
                change = self.routes.changed() => if change == Change::Nothing { Concerned::Nobody } else { Concerned::Routes },
                change = v1.changed() => of_pool(change),
                change = v1alpha2.changed() => of_pool(change),
                change = self.pods.changed() => of(change, Concerned::Pod),
                change = self.services.changed() => of(change, Concerned::Service),
                change = self.slices.changed() => match change {
                    Change::Set(key) => Concerned::Slice(key),
                    Change::Gone((namespace, _), slice) => slice.map_or(Concerned::Nobody, |slice| {
                        Concerned::Service((namespace, slice.service))
                    }),
                    Change::Any => Concerned::All,
                    Change::Nothing => Concerned::Nobody,
                },
                () = wait_until(due.into_iter().chain(self.leaves.values().copied()).min()) => {
                    due = None;
                    let now = Instant::now();
                    let left = self.leaves.iter().filter(|(_, until)| **until <= now).map(|(id, _)| id.clone());
                    self.marked.extend(left);
                    if self.is_ready() {
                        self.take_in();
                        publish(&known, &self.known);
                        publish(&endpoints, &self.endpoints);
                        listed.send_if_modified(|listed| !std::mem::replace(listed, true));
                    }
                    continue;
                }
            };
            let gather = match change {
                Concerned::Nobody => continue,
                Concerned::Routes => ROUTES_GATHER,
                _ => GATHER,
            };
            self.mark(change);
            due = due.into_iter().chain([Instant::now() + gather]).min();
        }
    }

    fn is_ready(&self) -> bool {
        self.routes.has_answered()
            && self.pools.iter().all(Collection::has_answered)
            && self.pods.has_answered()
            && self.services.has_answered()
            && self.slices.has_answered()
    }

    fn mark(&mut self, change: Concerned) {
        let ids: Vec<PoolId> = match change {
            Concerned::Nobody => return,
            Concerned::Routes => {
                let routes = self.routes.objects().iter();
                let named = routes.filter_map(|((namespace, name), route)| {
                    let rules = route.as_ref()?.rules.clone();
                    Some((RouteName { namespace: namespace.clone(), name: name.clone() }, rules))
                });
                let routes = named.collect();
                keep_former(&mut self.known, &mut self.former, &routes, Instant::now());
                self.known.routes = routes;
                return;
            }
            Concerned::Pool(id) => vec![id],
            Concerned::Pod((namespace, name)) => {
                let pod = self.pods.objects().get(&(namespace.clone(), name.clone()));
                let concerns = |pool: &&InferencePool| {
                    pod.is_some_and(|pod| pod.is_selected(pool))
                        || self.selected.get(&pool.id).is_some_and(|pods| pods.contains(&name))
                };
                self.pools_in(&namespace).filter(concerns).map(|pool| pool.id.clone()).collect()
            }
            Concerned::Service((namespace, name)) => self.whose_picker(&namespace, &name),
            Concerned::Slice(key) => match self.slices.objects().get(&key) {
                Some(Some(slice)) => self.whose_picker(&key.0, &slice.service),
                _ => return,
            },
            Concerned::All => {
                let keys = self.pools.iter().flat_map(|pools| pools.objects().keys());
                let there = keys.map(|(namespace, name)| PoolId::new(namespace, name));
                there.chain(self.selected.keys().cloned()).collect()
            }
        };
        self.marked.extend(ids);
    }

    /// The pools whose picker is, or would be, behind that Service.
    fn whose_picker(&self, namespace: &str, service: &str) -> Vec<PoolId> {
        if namespace == self.gateway_namespace {
            let all = self.pools.iter().flat_map(|pools| pools.objects().keys());
            let all = all.map(|(namespace, name)| PoolId::new(namespace, name));
            let named: Vec<PoolId> = all.filter(|id| names::picker(id) == service).collect();
            if !named.is_empty() {
                return named;
            }
        }
        let names = |pool: &&InferencePool| {
            pool.picker.as_ref().is_some_and(|picker| picker.name == service)
                || self.brought.get(&pool.id).is_some_and(|(brought, _)| brought == service)
        };
        self.pools_in(namespace).filter(names).map(|pool| pool.id.clone()).collect()
    }

    fn pools_in<'s>(&'s self, namespace: &'s str) -> impl Iterator<Item = &'s InferencePool> {
        let manifests = self.pools.iter().flat_map(move |pools| pools.of_namespace(namespace));
        manifests.flat_map(|manifest| &manifest.pools)
    }

    fn take_in(&mut self) {
        for id in std::mem::take(&mut self.marked) {
            let key = (id.namespace.clone(), id.name.clone());
            let found = self.pools.iter().find_map(|pools| pools.objects().get(&key)?.pools.first().cloned());
            let Some(pool) = found else {
                // One that is there and not sound leaves what is known as it is.
                if !self.pools.iter().any(|pools| pools.objects().contains_key(&key)) {
                    self.selected.remove(&id);
                    self.known.pools.remove(&id);
                    self.brought.remove(&id);
                    self.leaves.remove(&id);
                    self.endpoints.remove(&pool_name(&id));
                    for owner in [PickerOwner::Ours, PickerOwner::Pool] {
                        self.endpoints.remove(&picker_name(&id, owner));
                    }
                }
                continue;
            };
            let pods = self.pods.of_namespace(&id.namespace).filter(|pod| pod.is_selected(&pool));
            let pods: Vec<&Pod> = pods.map(|labelled| &labelled.pod).collect();
            self.selected.insert(id.clone(), pods.iter().map(|pod| pod.name.clone()).collect());
            let endpoints = pool.pod_endpoints(pods);
            let endpoints = endpoints.iter().filter_map(|it| {
                Some(Address { ip: it.host.parse().ok()?, port: it.port, is_cleartext: false })
            });
            self.endpoints.insert(pool_name(&id), endpoints.collect());
            self.take_in_pickers(&pool);
        }
    }

    /// Whose picker is asked, and where both are. It is the one that was asked while the other serves nobody yet and it still does: what is
    /// made takes seconds to start. So it is where a pool that brings its own names another Service, for a while.
    fn take_in_pickers(&mut self, pool: &InferencePool) {
        let id = &pool.id;
        let ours = self.behind(&self.gateway_namespace, &names::picker(id), PICKER_PORT);
        let own = |(service, port): &(String, u16)| self.behind(&id.namespace, service, *port);
        let named = pool.picker.as_ref().filter(|it| it.is_to_a_service());
        let named = named.map(|it| (it.name.clone(), it.port()));
        let is_there =
            named.as_ref().is_some_and(|(service, _)| self.ports(&id.namespace, service).is_some());
        let wanted =
            if self.pickers.brings_its_own(is_there) { PickerOwner::Pool } else { PickerOwner::Ours };
        let asked = self.known.pools.get(id).map(|known| known.picker);
        let named_serves = named.as_ref().is_some_and(|named| !own(named).is_empty());
        let before = self.brought.get(id);
        let leaves = before.filter(|before| {
            let is_asked = wanted == PickerOwner::Pool && asked == Some(PickerOwner::Pool);
            is_asked && !named_serves && named.as_ref() != Some(*before) && !own(before).is_empty()
        });
        let now = Instant::now();
        let until = leaves.map(|_| self.leaves.get(id).copied().unwrap_or(now + START_MAX));
        let until = until.filter(|until| now < *until);
        let brought = match (wanted, before) {
            (PickerOwner::Pool, Some(before)) if until.is_some() => Some(before.clone()),
            (PickerOwner::Pool, _) => named,
            (PickerOwner::Ours, before) => before.cloned(),
        };
        // Who takes the Service away to have ours leaves its pods behind for a while: they are asked until ours are, by Envoys too.
        let is_gone = |(service, _): &(String, u16)| self.ports(&id.namespace, service).is_none();
        let own = match &brought {
            Some(brought) if wanted == PickerOwner::Ours && is_gone(brought) => {
                self.endpoints.get(&picker_name(id, PickerOwner::Pool)).cloned().unwrap_or_default()
            }
            Some(brought) => own(brought),
            None => Arc::default(),
        };
        let serves = |owner| match owner {
            PickerOwner::Ours => !ours.is_empty(),
            PickerOwner::Pool => !own.is_empty(),
        };
        let picker = match asked {
            Some(asked) if !serves(wanted) && serves(asked) => asked,
            // Nobody remembers who was asked, and ours is there.
            None if !serves(wanted) && serves(PickerOwner::Ours) => PickerOwner::Ours,
            _ => wanted,
        };
        let wanted_serves = if wanted == PickerOwner::Pool { named_serves } else { serves(wanted) };
        let serving = match (picker, &brought) {
            _ if wanted_serves => Serving::Yes,
            _ if !serves(picker) => Serving::No,
            (PickerOwner::Pool, Some((service, _))) => {
                Serving::Meanwhile(format!("{}/{service}", id.namespace))
            }
            _ => Serving::Meanwhile(format!("{}/{}", self.gateway_namespace, names::picker(id))),
        };
        match until {
            Some(until) => self.leaves.insert(id.clone(), until),
            None => self.leaves.remove(id),
        };
        match brought {
            Some(brought) => self.brought.insert(id.clone(), brought),
            None => self.brought.remove(id),
        };
        self.known.pools.insert(id.clone(), KnownPool { pool: StampedPool::from(pool), picker, serving });
        self.endpoints.insert(picker_name(id, PickerOwner::Ours), ours);
        self.endpoints.insert(picker_name(id, PickerOwner::Pool), own);
    }

    /// A Service's ports; none where it is not there.
    fn ports(&self, namespace: &str, service: &str) -> Option<&Ports> {
        self.services.objects().get(&(namespace.to_owned(), service.to_owned()))
    }

    /// What is ready behind that port of a Service.
    fn behind(&self, namespace: &str, service: &str, number: u16) -> Arc<[Address]> {
        let Some(found) = self.ports(namespace, service) else { return Arc::new([]) };
        let named = found.ports.iter().find(|(port, ..)| *port == number);
        let Some((_, name, tls)) = named else { return Arc::new([]) };
        let address = |ip, port| Address { ip, port, is_cleartext: !tls };
        let slices =
            self.slices.of_namespace(namespace).flatten().filter(|slice| {
                slice.service == service && (slice.owner.is_none() || slice.owner == found.uid)
            });
        let endpoints = slices.flat_map(|slice| {
            let target = slice.ports.iter().find(|(port, _)| port == name).map(|(_, number)| *number);
            target.into_iter().flat_map(|target| slice.addresses.iter().map(move |ip| address(*ip, target)))
        });
        // One may be in two slices while it moves from one to the other.
        endpoints.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// HTTPRoutes as they were before these, for as long as Envoy Gateway may take to see what changed.
fn keep_former(known: &mut Known, since: &mut BTreeMap<RouteName, Instant>, routes: &Routes, now: Instant) {
    for (name, rules) in known.routes.iter().filter(|(name, rules)| routes.get(name) != Some(rules)) {
        known.former.insert(name.clone(), rules.clone());
        since.insert(name.clone(), now);
    }
    since.retain(|_, since| now.duration_since(*since) < FORMER_MAX);
    known.former.retain(|name, _| since.contains_key(name));
}

/// Whom an event concerns.
enum Concerned {
    Nobody,
    Routes,
    Pool(PoolId),
    Pod(Key),
    Service(Key),
    Slice(Key),
    All,
}

fn of_pool(change: Change<Manifest>) -> Concerned {
    of(change, |(namespace, name)| Concerned::Pool(PoolId::new(namespace, name)))
}

fn of<V>(change: Change<V>, one: impl FnOnce(Key) -> Concerned) -> Concerned {
    match change {
        Change::Set(key) | Change::Gone(key, _) => one(key),
        Change::Any => Concerned::All,
        Change::Nothing => Concerned::Nobody,
    }
}

fn publish<T: Clone + PartialEq>(to: &watch::Sender<Arc<T>>, now: &T) {
    to.send_if_modified(|published| {
        let differs = **published != *now;
        if differs {
            *published = Arc::new(now.clone());
        }
        differs
    });
}

fn ports(service: Service) -> Ports {
    let uid = service.metadata.uid;
    let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
    let ports = ports.into_iter().filter_map(|port| {
        let tls = port.app_protocol.is_none_or(|protocol| !CLEARTEXT.contains(&&*protocol));
        Some((u16::try_from(port.port).ok()?, port.name.unwrap_or_default(), tls))
    });
    Ports { uid, ports: ports.collect() }
}

fn slice(slice: EndpointSlice) -> Option<Slice> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?.clone();
    let owners = slice.metadata.owner_references.into_iter().flatten();
    let owner = owners.filter(|owner| owner.kind == "Service").map(|owner| owner.uid).next();
    let ports = slice
        .ports
        .unwrap_or_default()
        .into_iter()
        .filter_map(|port| Some((port.name.unwrap_or_default(), u16::try_from(port.port?).ok()?)));
    let ready = slice.endpoints.into_iter().filter(|endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    });
    let addresses = ready.flat_map(|endpoint| endpoint.addresses).filter_map(|address| address.parse().ok());
    Some(Slice { service, owner, ports: ports.collect(), addresses: addresses.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_http_route_was_is_known_for_a_while() {
        let name = |name: &str| RouteName { namespace: "a".into(), name: name.into() };
        let rules = |weight| vec![vec![Backend { pool: Some(PoolId::new("a", "p")), weight }]];
        let (mut known, mut since) = (Known::default(), BTreeMap::new());
        known.routes =
            [(name("gone"), rules(1)), (name("changed"), rules(2)), (name("same"), rules(3))].into();
        let routes = [(name("changed"), rules(7)), (name("same"), rules(3))].into();
        let now = Instant::now();
        keep_former(&mut known, &mut since, &routes, now);
        known.routes = routes.clone();
        assert_eq!(known.former, [(name("gone"), rules(1)), (name("changed"), rules(2))].into());
        keep_former(&mut known, &mut since, &routes, now + FORMER_MAX - Duration::from_millis(1));
        assert_eq!(known.former.len(), 2);
        keep_former(&mut known, &mut since, &routes, now + FORMER_MAX);
        assert_eq!((known.former, since), (BTreeMap::new(), BTreeMap::new()));
    }
}
