//! The controller: InferencePools in, running pickers out.
//!
//! ```text
//! watches (pools, ConfigMaps, Services, what we made) ──> which pools to look at ──> reconcile, some at a time, one for a pool
//! ```
//!
//! Invariants
//! - Level, not edge: a reconcile compares what is there with what should be; an event only says where to look.
//! - Nothing is written that is there already, and nothing at all before everything was listed once.
//! - Nothing is deleted of a pool that is gone unless the API server says so, asked again; of one that brings its own picker, not before
//!   Envoys had time to ask that one, or it had time to start.

mod concerned;
mod events;
mod gateways;
mod live;
mod models;
mod reconcile;
mod shape;
mod status;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use envoy_gateway::{PickerOwner, Serving};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Client, Error};
use pool::{InferencePool, Manifest, PoolId, PoolPolicy, PoolVersion};
use serde_json::Value;
use telemetry::ControllerMetrics;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::http_route::HttpRoute;
use crate::render::{Options, names, shared};
use crate::resources;
use crate::watch::{Collection, Key};
use live::{Kind, Live};
use models::Model;
use reconcile::{Job, Known, Means, Named};

/// Pools that are looked at together.
const PARALLEL: usize = 16;
/// Changes that come within this of the first are looked at together.
const GATHER: Duration = Duration::from_millis(50);
/// How long until a pool whose reconcile failed is looked at again: twice as long after each failure, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// How long after a change Envoy Gateway is woken: it may ask any replica, and the others hear of the change a little later.
const WAKE_AFTER: Duration = Duration::from_millis(300);
/// How long the picker that a pool had is asked in place of its own, which serves nobody yet.
pub(crate) const START_MAX: Duration = Duration::from_secs(20);
const OURS: &str = "app.kubernetes.io/managed-by=pointsman-controller";

/// Whose picker a pool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pickers {
    /// The pool's, where the Service that it names is there; else ours.
    Auto,
    /// Ours.
    Managed,
    /// The pool's.
    SelfHosted,
}

impl Pickers {
    /// Whether a pool has its own picker, by whether the Service that it names is there.
    pub(crate) fn brings_its_own(self, is_there: bool) -> bool {
        match self {
            Pickers::Auto => is_there,
            Pickers::Managed => false,
            Pickers::SelfHosted => true,
        }
    }
}

/// What the controller was told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How pickers are made.
    pub options: Options,
    /// Whether they are made.
    pub pickers: Pickers,
    /// Pools without an overlay are served by the one picker of the installation.
    pub shared_picker: bool,
    /// Fields that overlays may set though they are closed.
    pub allow_overlay: Vec<String>,
}

/// The controller.
pub struct Controller {
    means: Arc<Means>,
    pickers: Pickers,
    pools: [Collection<DynamicObject, Option<Seen>>; 2],
    config_maps: Collection<PartialObjectMeta<ConfigMap>, ()>,
    /// Each with its ports.
    services: Collection<Service, Vec<u16>>,
    own: BTreeMap<Kind, Collection<DynamicObject, Live>>,
    models: Collection<DynamicObject, Option<Model>>,
    routes: Collection<DynamicObject, Option<HttpRoute>>,
    /// Each with the digest that it carries.
    gateways: Collection<DynamicObject, Option<String>>,
    /// The pools that each HTTPRoute named when it was looked at last.
    bound: BTreeMap<Key, BTreeSet<PoolId>>,
    /// What Envoy Gateway is answered by.
    known: watch::Receiver<Arc<envoy_gateway::Known>>,
    /// … as it was when pools were looked at for it.
    looked_at: Arc<envoy_gateway::Known>,
    /// The picker of the installation, and whether it is ready.
    shared: Option<Collection<Deployment, bool>>,
    /// To be done.
    marked: BTreeSet<Work>,
    under_way: BTreeSet<Work>,
    failed: HashMap<Work, Failed>,
    /// To be done again, and when.
    later: HashMap<Work, Instant>,
}

/// What a change asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Work {
    /// To make a pool's picker what it should be.
    Picker(PoolId),
    /// To tell a pool's InferenceModels who has which name.
    Models(PoolId),
    /// To have Envoy Gateway translate a Gateway again.
    Gateway(Key),
}

/// How it went: when it is to be done again, or what the API server said.
type Outcome = Result<Option<Duration>, Error>;

/// A pool, and what of it says whom else it concerns.
struct Seen {
    known: Known,
    overlay: Option<String>,
}

struct Failed {
    times: u32,
    again: Instant,
}

impl Controller {
    /// A controller that has seen nothing yet; of `known` it tells Envoy Gateway.
    #[must_use]
    pub fn new(
        client: Client,
        settings: Settings,
        known: watch::Receiver<Arc<envoy_gateway::Known>>,
        metrics: Arc<ControllerMetrics>,
    ) -> Controller {
        let everywhere = |version| {
            let resource = resources::pools(version);
            let what = format!("{}s ({})", resource.kind, resource.api_version);
            Collection::new(what, Api::all_with(client.clone(), &resource), watcher::Config::default(), see)
        };
        let own = Kind::ALL.into_iter().map(|kind| {
            let resource = kind.resource();
            let api = if kind.is_beside_the_pool() {
                Api::all_with(client.clone(), &resource)
            } else {
                Api::namespaced_with(client.clone(), &settings.options.gateway_namespace, &resource)
            };
            let config = watcher::Config::default().labels(OURS);
            (kind, Collection::new(format!("{}s of ours", resource.kind), api, config, Live::read))
        });
        let config = watcher::Config::default;
        let of_gateway_api = |resource: &ApiResource| Api::all_with(client.clone(), resource);
        let routes = of_gateway_api(&resources::routes());
        let gateways = of_gateway_api(&resources::gateways());
        let shared = settings.shared_picker.then(|| {
            let api = Api::namespaced(client.clone(), &settings.options.gateway_namespace);
            let this_one = config().fields(&format!("metadata.name={}", shared::NAME));
            Collection::new(format!("the Deployment {}", shared::NAME), api, this_one, is_ready)
        });
        Controller {
            looked_at: Arc::default(),
            known,
            shared,
            pickers: settings.pickers,
            pools: [everywhere(PoolVersion::V1), everywhere(PoolVersion::V1Alpha2)],
            config_maps: Collection::new("ConfigMaps".to_owned(), Api::all(client.clone()), config(), |_| ()),
            services: Collection::new("Services".to_owned(), Api::all(client.clone()), config(), ports),
            own: own.collect(),
            models: Collection::new(
                "InferenceModels".to_owned(),
                Api::all_with(client.clone(), &resources::models()),
                config(),
                Model::read,
            ),
            routes: Collection::new("HTTPRoutes".to_owned(), routes, config(), |route| {
                HttpRoute::read(&route)
            }),
            gateways: Collection::new("Gateways".to_owned(), gateways, config(), gateways::read),
            bound: BTreeMap::new(),
            marked: BTreeSet::new(),
            under_way: BTreeSet::new(),
            failed: HashMap::new(),
            later: HashMap::new(),
            means: Arc::new(Means::new(client, settings, metrics)),
        }
    }

    /// Makes pickers of pools, for ever. `listed` is called when everything was listed once.
    pub async fn run(mut self, listed: impl FnOnce()) {
        let mut listed = Some(listed);
        let mut running: FuturesUnordered<BoxFuture<'static, (Work, Outcome)>> = FuturesUnordered::new();
        let mut due: Option<Instant> = None;
        loop {
            let again = self.failed.values().map(|failed| failed.again).chain(self.later.values().copied());
            let wake = due.into_iter().chain(again).min();
            tokio::select! {
                () = self.changed() => {
                    due = due.or_else(|| Some(Instant::now() + GATHER));
                    let again = Instant::now() + WAKE_AFTER;
                    let wakes = self.marked.extract_if(.., |work| matches!(work, Work::Gateway(_)));
                    for work in wakes {
                        self.later.entry(work).or_insert(again);
                    }
                }
                Some((work, outcome)) = running.next() => {
                    self.under_way.remove(&work);
                    self.end(work, outcome);
                }
                () = until(wake) => {
                    due = None;
                    let now = Instant::now();
                    self.marked.extend(self.later.extract_if(|_, again| *again <= now).map(|(work, _)| work));
                    for (work, failed) in self.failed.iter_mut().filter(|(_, failed)| failed.again <= now) {
                        self.marked.insert(work.clone());
                        failed.again = now + RETRY.1;
                    }
                }
            }
            self.show();
            if due.is_some() || !self.is_ready() {
                continue;
            }
            if let Some(listed) = listed.take() {
                listed();
            }
            while running.len() < PARALLEL
                && let Some(work) = self.marked.iter().find(|work| !self.under_way.contains(work)).cloned()
            {
                self.marked.remove(&work);
                self.under_way.insert(work.clone());
                running.push(self.begin(work));
            }
        }
    }

    /// What is known and what is to be done, as metrics.
    fn show(&self) {
        let Controller {
            pools: [v1, v1alpha2], config_maps, services, own, models, routes, gateways, ..
        } = self;
        let metrics = &self.means.metrics;
        metrics.set_pools("v1", v1.objects().len());
        metrics.set_pools("v1alpha2", v1alpha2.objects().len());
        let watches =
            [v1.is_failing(), v1alpha2.is_failing(), config_maps.is_failing(), services.is_failing()];
        let own = own.values().map(Collection::is_failing);
        let failing = watches.into_iter().chain(own).chain([
            models.is_failing(),
            routes.is_failing(),
            gateways.is_failing(),
        ]);
        let failing = failing.filter(|fails| *fails).count();
        for (gauge, count) in [
            (&metrics.watches_failing, failing),
            (&metrics.pending, self.marked.len()),
            (&metrics.failing, self.failed.len()),
        ] {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    fn begin(&self, work: Work) -> BoxFuture<'static, (Work, Outcome)> {
        let means = Arc::clone(&self.means);
        let started = Instant::now();
        match &work {
            Work::Picker(id) => {
                let job = self.job(id);
                Box::pin(async move {
                    let outcome = means.reconcile(&job).await;
                    means.metrics.reconcile_duration.observe(started.elapsed().as_secs_f64());
                    (work, outcome)
                })
            }
            Work::Gateway(key) => {
                let wake = self.wake(key);
                Box::pin(async move {
                    let outcome = match &wake {
                        Some(wake) => gateways::tell(&means, wake).await.map(|()| None),
                        None => Ok(None),
                    };
                    (work, outcome)
                })
            }
            Work::Models(id) => {
                let told: Vec<_> =
                    models::judge(self.models_of(&id.namespace).filter(|model| model.pool == *id))
                        .into_iter()
                        .map(|(model, verdict)| (model.clone(), verdict))
                        .collect();
                Box::pin(async move {
                    for (model, verdict) in &told {
                        if let Err(error) = models::tell(&means, model, verdict).await {
                            return (work, Err(error));
                        }
                    }
                    (work, Ok(None))
                })
            }
        }
    }

    /// Whether what is known suffices to act on.
    fn is_ready(&self) -> bool {
        self.pools.iter().all(Collection::has_answered)
            && self.services.has_answered()
            && self.config_maps.has_answered()
            && self.own.values().all(Collection::has_answered)
            && self.models.is_tried()
            && self.routes.is_tried()
            && self.gateways.is_tried()
            && self.shared.as_ref().is_none_or(Collection::has_answered)
    }

    fn job(&self, id: &PoolId) -> Job {
        let key = (id.namespace.clone(), id.name.clone());
        let [v1, v1alpha2] = self
            .pools
            .each_ref()
            .map(|pools| pools.objects().get(&key).and_then(Option::as_ref).map(|seen| seen.known.clone()));
        let (pool, shadowed) = match (v1, v1alpha2) {
            (Some(v1), shadowed) => (Some(v1), shadowed),
            (None, v1alpha2) => (v1alpha2, None),
        };
        let live = self.own.iter().filter_map(|(kind, objects)| {
            let namespace = if kind.is_beside_the_pool() {
                &id.namespace
            } else {
                &self.means.settings.options.gateway_namespace
            };
            let live = objects.objects().get(&(namespace.clone(), names::picker(id)))?;
            (live.pool.as_ref() == Some(id)).then(|| (*kind, live.clone()))
        });
        let named = pool.as_ref().map_or(Named::Nothing, |known| self.named(&known.pool));
        let brings_picker = self.pickers.brings_its_own(named.is_there());
        let shared_is_ready =
            self.shared.as_ref().is_some_and(|shared| shared.objects().values().any(|ready| *ready));
        let known = self.known.borrow();
        let standing = known.pools.get(id);
        Job {
            id: id.clone(),
            shadowed,
            live: live.collect(),
            own_is_asked: standing.is_some_and(|it| it.picker == PickerOwner::Pool),
            serving: standing.map_or(Serving::No, |it| it.serving.clone()),
            brings_picker,
            named,
            gateways: self.gateways_of(id),
            shared_is_ready,
            pool,
        }
    }

    /// What a pool names as its picker.
    fn named(&self, pool: &InferencePool) -> Named {
        let Some(picker) = &pool.picker else { return Named::Nothing };
        match self.services.objects().get(&(pool.id.namespace.clone(), picker.name.clone())) {
            _ if !picker.is_to_a_service() => Named::NoService,
            None => Named::Missing,
            Some(ports) if !ports.contains(&picker.port()) => Named::WithoutPort(ports.clone()),
            Some(_) => Named::Service,
        }
    }

    fn end(&mut self, work: Work, outcome: Outcome) {
        let of = match work {
            Work::Picker(_) => "picker",
            Work::Models(_) => "models",
            Work::Gateway(_) => "gateway",
        };
        self.means.metrics.count_reconcile(of, outcome.is_ok());
        let error = match outcome {
            Ok(again) => {
                self.failed.remove(&work);
                if let Some(again) = again {
                    self.later.insert(work, Instant::now() + again);
                }
                return;
            }
            Err(error) => error,
        };
        let times = self.failed.get(&work).map_or(0, |failed| failed.times);
        let (first, most) = RETRY;
        let wait = first.saturating_mul(1 << times.min(16)).min(most);
        // A conflict is no more than somebody else's change, which is on its way here.
        if reconcile::code(&error) != Some(409) {
            let said = reconcile::said(&error);
            match &work {
                Work::Picker(id) => {
                    tracing::warn!(pool = %id, retry_in = ?wait, "its picker is not as it should be: {said}");
                }
                Work::Models(id) => {
                    tracing::warn!(pool = %id, retry_in = ?wait, "its models' status is not as it should be: {said}");
                }
                Work::Gateway((namespace, name)) => {
                    tracing::warn!(gateway = %format!("{namespace}/{name}"), retry_in = ?wait, "Envoy Gateway is not woken: {said}");
                }
            }
        }
        self.failed.insert(work, Failed { times: times.saturating_add(1), again: Instant::now() + wait });
    }
}

/// The pool of an object; none where it is not sound, which the API server's own rules keep out.
fn see(mut object: DynamicObject) -> Option<Seen> {
    object.metadata.managed_fields = None;
    let subject = events::Subject::of(&object);
    let status = object.data.get("status").cloned().unwrap_or(Value::Null);
    let name = format!("{} {}/{}", subject.kind, subject.namespace, subject.name);
    let text = serde_json::to_string(&object).unwrap_or_default();
    let manifest = pool::parse(&name, &text).unwrap_or_else(Manifest::from);
    let Some(pool) = manifest.pools.into_iter().next() else {
        manifest.faults.iter().for_each(|fault| tracing::error!("{fault}"));
        return None;
    };
    let overlay = PoolPolicy::resolve(&pool.annotations, None).policy.epp_overlay;
    let known = Known {
        pool,
        subject,
        generation: object.metadata.generation.unwrap_or(0),
        resource_version: object.metadata.resource_version.unwrap_or_default(),
        status,
    };
    Some(Seen { known, overlay })
}

fn ports(service: Service) -> Vec<u16> {
    let ports = service.spec.and_then(|spec| spec.ports).into_iter().flatten();
    ports.filter_map(|port| u16::try_from(port.port).ok()).collect()
}

fn is_ready(deployment: Deployment) -> bool {
    deployment.status.and_then(|status| status.ready_replicas).unwrap_or(0) > 0
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
