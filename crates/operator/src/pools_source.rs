//! What a picker of many reads: every InferencePool of the cluster with its pods, and what speaks of their models.
//!
//! Invariants
//! - A change is looked at where it matters: a pod at the pools that select it or did, all else in its namespace.
//! - An object that is there and not sound leaves what ran running.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use director::{Declaration, Director};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::watcher;
use pool::{Catalog, Declared, InferencePool, Manifest, Pod, PoolId, PoolVersion};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::pods::{Labelled, PodObject, read_labelled};
use crate::pool_source::{GATHER, read, wait_until};
use crate::resources;
use crate::watch::{Change, Collection, Key};

/// Where a picker of many learns of its pools.
pub struct PoolsSource {
    pools: [Collection<DynamicObject, Manifest>; 2],
    pods: Collection<PodObject, Labelled>,
    related: [Collection<DynamicObject, Manifest>; 3],
    /// To be taken in force.
    marked: BTreeSet<PoolId>,
    /// In service, each with the names of its pods.
    served: BTreeMap<PoolId, BTreeSet<String>>,
    /// What was said of objects that are not used, by namespace.
    told: BTreeMap<String, BTreeSet<String>>,
}

impl PoolsSource {
    /// The source of all pools.
    #[must_use]
    pub fn new(client: &Client) -> Self {
        let all = |resource: ApiResource| {
            let what = format!("{}s ({})", resource.kind, resource.api_version);
            let api = Api::all_with(client.clone(), &resource);
            Collection::new(what, api, watcher::Config::default(), read)
        };
        let pods = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        let pods = Api::all_with(client.clone(), &pods);
        Self {
            pools: [PoolVersion::V1, PoolVersion::V1Alpha2].map(|version| all(resources::pools(version))),
            pods: Collection::new("Pods".to_owned(), pods, watcher::Config::default(), read_labelled),
            related: resources::related().map(all),
            marked: BTreeSet::new(),
            served: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    /// Takes the pools in force as they are, and each change of them, for ever. `known` tells whether they are known.
    pub async fn run(mut self, director: Arc<Director>, known: watch::Sender<bool>) {
        let mut due: Option<Instant> = None;
        loop {
            let [v1, v1alpha2] = &mut self.pools;
            let [objectives, models, rewrites] = &mut self.related;
            let change = tokio::select! {
                change = v1.changed() => of_pool(change),
                change = v1alpha2.changed() => of_pool(change),
                change = self.pods.changed() => match change {
                    Change::Set(key) => Concerned::Pod(key),
                    Change::Gone(key, _) => Concerned::Pod(key),
                    Change::Any => Concerned::All,
                    Change::Nothing => continue,
                },
                change = objectives.changed() => of_namespace(change),
                change = models.changed() => of_namespace(change),
                change = rewrites.changed() => of_namespace(change),
                () = wait_until(due) => {
                    due = None;
                    if self.is_ready() {
                        self.take_in_force(&director);
                        known.send_if_modified(|known| !std::mem::replace(known, true));
                    }
                    continue;
                }
            };
            self.mark(change);
            due = due.or_else(|| Some(Instant::now() + GATHER));
        }
    }

    fn is_ready(&self) -> bool {
        self.pools.iter().all(Collection::has_answered)
            && self.pods.has_answered()
            && self.related.iter().all(Collection::is_tried)
    }

    fn mark(&mut self, concerned: Concerned) {
        let ids: Vec<PoolId> = match concerned {
            Concerned::Nobody => return,
            Concerned::Pool(id) => vec![id],
            Concerned::Namespace(namespace) => {
                self.pools_in(&namespace).map(|pool| pool.id.clone()).collect()
            }
            Concerned::Pod((namespace, name)) => {
                let labelled = self.pods.objects().get(&(namespace.clone(), name.clone()));
                let selects = |pool: &&InferencePool| {
                    labelled.is_some_and(|pod| pod.is_selected(pool))
                        || self.served.get(&pool.id).is_some_and(|pods| pods.contains(&name))
                };
                self.pools_in(&namespace).filter(selects).map(|pool| pool.id.clone()).collect()
            }
            Concerned::All => {
                let keys = self.pools.iter().flat_map(|pools| pools.objects().keys());
                let there = keys.map(|(namespace, name)| PoolId::new(namespace, name));
                there.chain(self.served.keys().cloned()).collect()
            }
        };
        self.marked.extend(ids);
    }

    fn pools_in<'s>(&'s self, namespace: &'s str) -> impl Iterator<Item = &'s InferencePool> {
        let manifests = self.pools.iter().flat_map(move |pools| pools.of_namespace(namespace));
        manifests.flat_map(|manifest| &manifest.pools)
    }

    fn take_in_force(&mut self, director: &Arc<Director>) {
        let marked = std::mem::take(&mut self.marked);
        let namespaces: BTreeSet<&str> = marked.iter().map(|id| id.namespace.as_str()).collect();
        for namespace in namespaces {
            let objects =
                self.pools.iter().chain(&self.related).flat_map(|kind| kind.of_namespace(namespace));
            let declared = pool::assemble(objects);
            self.tell_unused(namespace, &declared);
            for id in marked.iter().filter(|id| id.namespace == namespace) {
                self.take_one(id, &declared, director);
            }
        }
    }

    fn take_one(&mut self, id: &PoolId, declared: &Declared, director: &Arc<Director>) {
        if let Some(pool) = declared.pool(id) {
            let pods = self.pods.of_namespace(&id.namespace).filter(|pod| pod.is_selected(pool));
            let pods: Vec<&Pod> = pods.map(|labelled| &labelled.pod).collect();
            self.served.insert(id.clone(), pods.iter().map(|pod| pod.name.clone()).collect());
            let (count, endpoints) = (Some(pods.len()), pool.pod_endpoints(pods));
            let catalog = Catalog::of(id, declared);
            director.declare_beside(&Declaration { pool: pool.clone(), catalog, endpoints, pods: count });
            return;
        }
        let key = (id.namespace.clone(), id.name.clone());
        if !self.pools.iter().any(|pools| pools.objects().contains_key(&key)) {
            self.served.remove(id);
            if director.withdraw(id) {
                tracing::warn!(pool = %id, "the InferencePool is gone; its requests are refused until it is back");
            }
        }
    }

    /// Tells what is wrong with objects, each fact once.
    fn tell_unused(&mut self, namespace: &str, declared: &Declared) {
        let told = self.told.remove(namespace).unwrap_or_default();
        let facts: BTreeSet<String> = declared.faults.iter().map(ToString::to_string).collect();
        facts.difference(&told).for_each(|fact| tracing::warn!("{fact}"));
        if !facts.is_empty() {
            self.told.insert(namespace.to_owned(), facts);
        }
    }
}

/// Whom an event concerns.
enum Concerned {
    Nobody,
    Pool(PoolId),
    /// The pools of a pod.
    Pod(Key),
    /// All pools there.
    Namespace(String),
    All,
}

fn of_pool(change: Change<Manifest>) -> Concerned {
    match change {
        Change::Set((namespace, name)) | Change::Gone((namespace, name), _) => {
            Concerned::Pool(PoolId::new(namespace, name))
        }
        Change::Any => Concerned::All,
        Change::Nothing => Concerned::Nobody,
    }
}

fn of_namespace(change: Change<Manifest>) -> Concerned {
    match change {
        Change::Set((namespace, _)) | Change::Gone((namespace, _), _) => Concerned::Namespace(namespace),
        Change::Any => Concerned::All,
        Change::Nothing => Concerned::Nobody,
    }
}
