//! Whom an event concerns: which pools and Gateways are to be looked at for it.

use std::sync::Arc;

use futures_util::stream::{StreamExt as _, select_all};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::DynamicObject;
use pool::PoolId;

use super::models::Model;
use super::{Controller, Seen, Work};
use crate::http_route::HttpRoute;
use crate::watch::{Change, Collection, Key};

/// Whom an event concerns.
enum Concerned {
    Nobody,
    /// All Gateways, and the pools whose picker serves now or does no more.
    Known,
    /// The InferenceModels of that namespace.
    Models(String),
    Pool(Option<PoolId>),
    /// Whoever owns the object of that name.
    Owner(Key),
    /// Whoever names it as overlay.
    Overlay(Option<Key>),
    /// Whoever names it as picker.
    Picker(Option<Key>),
    /// The pools that it names, or did.
    Route(Key),
    /// Itself, and whoever is led to by it.
    Gateway(Key),
}

impl Controller {
    /// Waits for the next event, and marks the pools that it concerns.
    pub(super) async fn changed(&mut self) {
        let Controller {
            pools: [v1, v1alpha2],
            config_maps,
            services,
            own,
            models,
            routes,
            gateways,
            shared,
            known,
            ..
        } = self;
        let own = own.values_mut().map(|kind| Box::pin(futures_util::stream::once(kind.changed())));
        let mut own = select_all(own);
        let (concerned, all) = tokio::select! {
            change = v1.changed() => pool_of(change),
            change = v1alpha2.changed() => pool_of(change),
            change = config_maps.changed() => (Concerned::Overlay(key_of(&change)), change == Change::Any),
            change = services.changed() => (Concerned::Picker(key_of(&change)), change == Change::Any),
            change = models.changed() => match change {
                Change::Set((namespace, _)) | Change::Gone((namespace, _), _) => (Concerned::Models(namespace), false),
                Change::Any => (Concerned::Nobody, true),
                Change::Nothing => (Concerned::Nobody, false),
            },
            change = routes.changed() => match change {
                Change::Set(key) | Change::Gone(key, _) => (Concerned::Route(key), false),
                Change::Any => (Concerned::Nobody, true),
                Change::Nothing => (Concerned::Nobody, false),
            },
            // They come and go seldom.
            change = gateways.changed() => match change {
                Change::Set(key) => (Concerned::Gateway(key), false),
                Change::Gone(..) | Change::Any => (Concerned::Nobody, true),
                Change::Nothing => (Concerned::Nobody, false),
            },
            Ok(()) = known.changed() => (Concerned::Known, false),
            change = changed(shared) => (Concerned::Nobody, change != Change::Nothing),
            Some(change) = own.next() => match change {
                Change::Set(key) => (Concerned::Owner(key), false),
                Change::Gone(_, live) => (Concerned::Pool(live.pool), false),
                Change::Any => (Concerned::Nobody, true),
                Change::Nothing => (Concerned::Nobody, false),
            },
        };
        drop(own);
        if all {
            return self.mark_all();
        }
        let ids: Vec<PoolId> = match concerned {
            Concerned::Nobody => Vec::new(),
            Concerned::Known => {
                let all = self.gateways.objects().keys().cloned().map(Work::Gateway);
                self.marked.extend(all);
                let now = Arc::clone(&self.known.borrow_and_update());
                let before = std::mem::replace(&mut self.looked_at, Arc::clone(&now));
                let pools = now.pools.iter().filter(|(id, known)| before.pools.get(*id) != Some(*known));
                return self.marked.extend(pools.map(|(id, _)| Work::Picker(id.clone())));
            }
            Concerned::Models(namespace) => {
                let pools: Vec<_> =
                    self.models_of(&namespace).map(|model| Work::Models(model.pool.clone())).collect();
                return self.marked.extend(pools);
            }
            Concerned::Pool(id) => id.into_iter().collect(),
            Concerned::Owner(key) => {
                self.own.values().filter_map(|kind| kind.objects().get(&key)?.pool.clone()).collect()
            }
            Concerned::Overlay(key) => self.seen_by(key, |seen| seen.overlay.as_deref()),
            Concerned::Picker(key) => {
                self.seen_by(key, |seen| seen.known.pool.picker.as_ref().map(|picker| picker.name.as_str()))
            }
            Concerned::Gateway(key) => {
                let routes = self.routes.objects().values().flatten();
                let routes = routes.filter(|route| route.parents.iter().any(|to| to.gateway == key));
                let ids = routes.flat_map(HttpRoute::pools).collect();
                self.marked.insert(Work::Gateway(key));
                ids
            }
            Concerned::Route(key) => {
                let named = self.routes.objects().get(&key).and_then(Option::as_ref).map(HttpRoute::pools);
                let before = match named.clone() {
                    Some(named) => self.bound.insert(key, named),
                    None => self.bound.remove(&key),
                };
                named.into_iter().chain(before).flatten().collect()
            }
        };
        for id in ids {
            let gateways = self.gateways_of(&id).into_keys().map(Work::Gateway);
            self.marked.extend(gateways);
            self.marked.insert(Work::Picker(id));
        }
    }

    pub(super) fn models_of(&self, namespace: &str) -> impl Iterator<Item = &Model> {
        let range = (namespace.to_owned(), String::new())..;
        let there = self.models.objects().range(range).take_while(move |((other, _), _)| other == namespace);
        there.filter_map(|(_, model)| model.as_ref())
    }

    /// The pools of that namespace that name it.
    fn seen_by(&self, key: Option<Key>, names: impl Fn(&Seen) -> Option<&str>) -> Vec<PoolId> {
        let Some((namespace, name)) = key else { return Vec::new() };
        let of_namespace = |pools: &Collection<DynamicObject, Option<Seen>>| {
            let range = (namespace.clone(), String::new())..;
            let there = pools.objects().range(range).take_while(|((other, _), _)| *other == namespace);
            let named = there.filter_map(|(_, seen)| seen.as_ref()).filter(|seen| names(seen) == Some(&name));
            named.map(|seen| seen.known.pool.id.clone()).collect::<Vec<_>>()
        };
        self.pools.iter().flat_map(of_namespace).collect()
    }

    fn mark_all(&mut self) {
        let pools = self.pools.iter().flat_map(|pools| pools.objects().keys());
        let pools = pools.map(|(namespace, name)| PoolId::new(namespace, name));
        let own =
            self.own.values().flat_map(|kind| kind.objects().values()).filter_map(|live| live.pool.clone());
        let pickers = pools.chain(own).map(Work::Picker);
        let models = self.models.objects().values().flatten().map(|model| Work::Models(model.pool.clone()));
        let gateways = self.gateways.objects().keys().cloned().map(Work::Gateway);
        let all: Vec<Work> = pickers.chain(models).chain(gateways).collect();
        self.marked.extend(all);
        let routes = self.routes.objects().iter();
        self.bound = routes.filter_map(|(key, route)| Some((key.clone(), route.as_ref()?.pools()))).collect();
    }
}

fn pool_of(change: Change<Option<Seen>>) -> (Concerned, bool) {
    match change {
        Change::Set((namespace, name)) | Change::Gone((namespace, name), _) => {
            (Concerned::Pool(Some(PoolId::new(namespace, name))), false)
        }
        Change::Any => (Concerned::Nobody, true),
        Change::Nothing => (Concerned::Nobody, false),
    }
}

fn key_of<V>(change: &Change<V>) -> Option<Key> {
    match change {
        Change::Set(key) | Change::Gone(key, _) => Some(key.clone()),
        Change::Any | Change::Nothing => None,
    }
}

async fn changed(shared: &mut Option<Collection<Deployment, bool>>) -> Change<bool> {
    match shared {
        Some(shared) => shared.changed().await,
        None => std::future::pending().await,
    }
}
