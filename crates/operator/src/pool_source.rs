//! What a picker on Kubernetes reads: its own pool, the pods that the pool selects, and what speaks of the pool's models and
//! priorities, all in one namespace. Every change is in force within a fraction of a second.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use director::{Declaration, Director};
use kube::api::{DynamicObject, ObjectMeta};
use kube::runtime::watcher;
use kube::{Api, Client, api::ApiResource};
use pool::{Catalog, Declared, InferencePool, Manifest, Pod, PoolId, PoolVersion};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::pods::{PodObject, read_pod};
use crate::resources;
use crate::watch::{Change, Collection};

/// Changes that come within this of the first are taken in force together.
pub(crate) const GATHER: Duration = Duration::from_millis(50);

/// Where a picker on Kubernetes learns of its pool.
pub struct PoolSource {
    id: PoolId,
    version: PoolVersion,
    client: Client,
    pools: Collection<DynamicObject, Manifest>,
    /// With the selector; none until the pool says whose pods.
    pods: Option<(String, Collection<PodObject, Pod>)>,
    related: [Collection<DynamicObject, Manifest>; 3],
    /// What was said of objects that are not used.
    told: BTreeSet<String>,
}

impl PoolSource {
    /// The source of the pool of that id and version.
    #[must_use]
    pub fn new(client: Client, id: PoolId, version: PoolVersion) -> Self {
        let this_one = watcher::Config::default().fields(&format!("metadata.name={}", id.name));
        let pools = collection(&client, &id, &resources::pools(version), this_one);
        let related = resources::related()
            .map(|resource| collection(&client, &id, &resource, watcher::Config::default()));
        Self { id, version, client, pools, pods: None, related, told: BTreeSet::new() }
    }

    /// Which pool that is, in words.
    #[must_use]
    pub fn pool_in_words(&self) -> String {
        let ApiResource { kind, api_version, .. } = resources::pools(self.version);
        format!("the {kind} {} of {api_version}", self.id)
    }

    /// Takes the pool in force as it is, and each change of it, for ever. `known` tells whether the pool is in service.
    pub async fn run(mut self, director: Arc<Director>, known: watch::Sender<bool>) {
        let mut due: Option<Instant> = None;
        loop {
            let [objectives, models, rewrites] = &mut self.related;
            let changed = tokio::select! {
                change = self.pools.changed() => change != Change::Nothing,
                change = pods_changed(&mut self.pods) => change != Change::Nothing,
                change = objectives.changed() => change != Change::Nothing,
                change = models.changed() => change != Change::Nothing,
                change = rewrites.changed() => change != Change::Nothing,
                () = wait_until(due) => {
                    due = None;
                    self.take_in_force(&director, &known);
                    continue;
                }
            };
            if changed {
                self.follow_selector();
                due = due.or_else(|| Some(Instant::now() + GATHER));
            }
        }
    }

    /// The pods to watch are those that the pool selects now.
    fn follow_selector(&mut self) {
        let Some(pool) = self.pool() else { return };
        let labels: Vec<String> = pool.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let labels = labels.join(",");
        let config = watcher::Config::default().labels(&labels);
        match &mut self.pods {
            Some((selector, _)) if *selector == labels => {}
            Some((selector, pods)) => {
                pods.select(pod_api(&self.client, &self.id), config);
                *selector = labels;
            }
            pods @ None => {
                let what = format!("Pods in {}", self.id.namespace);
                let of = Collection::new(what, pod_api(&self.client, &self.id), config, read_pod);
                *pods = Some((labels, of));
            }
        }
    }

    fn pool(&self) -> Option<&InferencePool> {
        self.pools.objects().values().flat_map(|manifest| &manifest.pools).find(|pool| pool.id == self.id)
    }

    fn take_in_force(&mut self, director: &Arc<Director>, known: &watch::Sender<bool>) {
        let declared = self.declared();
        self.tell_unused(&declared);
        let Some(pool) = declared.pool(&self.id) else {
            // An object that is there and not sound leaves what ran running, as a file does.
            if self.pools.objects().is_empty() && director.withdraw(&self.id) {
                known.send_replace(false);
                tracing::warn!(
                    "the InferencePool {} is gone; requests are refused until it is back",
                    self.id
                );
            }
            return;
        };
        // At the start: not before all of it has been heard of, or requests would meet half a pool.
        let Some((_, pods)) = self.pods.as_ref().filter(|(_, pods)| pods.has_answered()) else { return };
        if self.related.iter().all(Collection::is_tried) {
            let endpoints = pool.pod_endpoints(pods.objects().values());
            let catalog = Catalog::of(&self.id, &declared);
            let pods = Some(pods.objects().len());
            director.declare(&Declaration { pool: pool.clone(), catalog, endpoints, pods });
            known.send_if_modified(|known| !std::mem::replace(known, true));
        }
    }

    fn declared(&self) -> Declared {
        let related = self.related.iter().flat_map(|kind| kind.objects().values());
        pool::assemble(self.pools.objects().values().chain(related))
    }

    /// Tells what is wrong with objects, each fact once.
    fn tell_unused(&mut self, declared: &Declared) {
        let mut facts = BTreeSet::new();
        for fault in &declared.faults {
            let fact = fault.to_string();
            if !self.told.contains(&fact) {
                tracing::warn!("{fact}");
            }
            facts.insert(fact);
        }
        self.told = facts;
    }
}

pub(crate) async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn pods_changed(pods: &mut Option<(String, Collection<PodObject, Pod>)>) -> Change<Pod> {
    match pods {
        Some((_, pods)) => pods.changed().await,
        None => std::future::pending().await,
    }
}

fn collection(
    client: &Client,
    id: &PoolId,
    resource: &ApiResource,
    config: watcher::Config,
) -> Collection<DynamicObject, Manifest> {
    let api = Api::namespaced_with(client.clone(), &id.namespace, resource);
    let what = format!("{}s ({}) in {}", resource.kind, resource.api_version, id.namespace);
    Collection::new(what, api, config, read)
}

fn pod_api(client: &Client, id: &PoolId) -> Api<PodObject> {
    let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
    Api::namespaced_with(client.clone(), &id.namespace, &resource)
}

/// The object as a manifest file would hold it: what a file may say and what is wrong with it are judged in one place.
pub(crate) fn read(mut object: DynamicObject) -> Manifest {
    object.metadata.managed_fields = None;
    let ObjectMeta { name, namespace, .. } = &object.metadata;
    let name = format!(
        "{} {}/{}",
        object.types.as_ref().map(|types| types.kind.as_str()).unwrap_or_default(),
        namespace.as_deref().unwrap_or_default(),
        name.as_deref().unwrap_or_default()
    );
    let text = serde_json::to_string(&object).unwrap_or_default();
    pool::parse(&name, &text).unwrap_or_else(Manifest::from)
}
