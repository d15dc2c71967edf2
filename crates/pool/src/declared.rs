//! Everything that all files declare together.

use std::collections::{HashMap, HashSet};

use crate::fault::{Fault, FaultKind, Position, Severity, quoted};
use crate::manifest::{
    InferenceModel, InferenceModelRewrite, InferenceObjective, InferencePool, Manifest, PassedOver,
};
use crate::overlay::Overlay;
use crate::policy::{PoolId, PoolPolicy, PoolVersion};
use crate::slices::EndpointSlice;

/// What all files declare together: each object once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// InferencePools, one for each id, in the order declared.
    pub pools: Vec<InferencePool>,
    /// InferenceObjectives in the order declared.
    pub objectives: Vec<InferenceObjective>,
    /// InferenceModels, the oldest first: by creation timestamp where there is one, then in the order declared. One for
    /// each model name of a pool.
    pub models: Vec<InferenceModel>,
    /// InferenceModelRewrites, the oldest first, as `models` are.
    pub rewrites: Vec<InferenceModelRewrite>,
    /// EndpointSlices in the order declared.
    pub slices: Vec<EndpointSlice>,
    /// ConfigMaps that a pool names as its overlay, or whose keys say that they are one.
    pub overlays: Vec<Overlay>,
    /// What is wrong with the files and between them, in the order of positions. Annotations are judged by
    /// [`PoolPolicy::resolve`].
    pub faults: Vec<Fault>,
    /// What has no meaning here.
    pub passed_over: Vec<PassedOver>,
}

/// Everything declared over all files. Of two objects that are the same the first is used, except that v1 beats
/// v1alpha2 for a pool; the other is a fault.
pub fn assemble<'m>(manifests: impl IntoIterator<Item = &'m Manifest>) -> Declared {
    let manifests: Vec<&Manifest> = manifests.into_iter().collect();
    let mut faults: Vec<Fault> =
        manifests.iter().flat_map(|manifest| manifest.faults.iter().cloned()).collect();
    let mut declared = Declared {
        pools: distinct(&manifests, |manifest| &manifest.pools, &mut faults),
        objectives: distinct(&manifests, |manifest| &manifest.objectives, &mut faults),
        models: distinct(&manifests, |manifest| &manifest.models, &mut faults),
        rewrites: distinct(&manifests, |manifest| &manifest.rewrites, &mut faults),
        slices: distinct(&manifests, |manifest| &manifest.slices, &mut faults),
        overlays: distinct(&manifests, |manifest| &manifest.overlays, &mut faults),
        faults,
        passed_over: manifests.iter().flat_map(|manifest| manifest.passed_over.iter().cloned()).collect(),
    };
    declared.shadow_v1alpha2();
    declared.by_age();
    declared.one_model_per_name();
    declared.note_missing_pools();
    declared.sort_out_config_maps();
    declared.faults.sort_by(|one, other| one.position.cmp(&other.position));
    declared
}

impl Declared {
    /// The pool of that id.
    #[must_use]
    pub fn pool(&self, id: &PoolId) -> Option<&InferencePool> {
        self.pools.iter().find(|pool| pool.id == *id)
    }

    /// Whether nothing that was declared is left out for a fault.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        !self.faults.iter().any(|fault| fault.kind.leaves_out())
    }

    fn shadow_v1alpha2(&mut self) {
        let is_v1 = |pool: &&InferencePool| pool.version == PoolVersion::V1;
        let v1: HashMap<PoolId, Position> =
            self.pools.iter().filter(is_v1).map(|pool| (pool.id.clone(), pool.position.clone())).collect();
        let faults = &mut self.faults;
        self.pools.retain(|pool| match v1.get(&pool.id) {
            Some(position) if pool.version != PoolVersion::V1 => {
                faults.push(Fault {
                    position: pool.position.clone(),
                    severity: Severity::Fault,
                    kind: FaultKind::ShadowedByV1,
                    key: "apiVersion".to_owned(),
                    what: format!("the InferencePool {} is declared in v1 too, at {position}", pool.id),
                    expected: "one of the two".to_owned(),
                    using: "the v1 one".to_owned(),
                });
                false
            }
            _ => true,
        });
    }

    fn by_age(&mut self) {
        // Kubernetes writes timestamps in one form (RFC 3339, UTC, whole seconds), which sorts as text; without one an
        // object is taken for new.
        let age = |created: &Option<String>| (created.is_none(), created.clone());
        self.models.sort_by_key(|model| age(&model.created));
        self.rewrites.sort_by_key(|rewrite| age(&rewrite.created));
    }

    fn one_model_per_name(&mut self) {
        let mut oldest: HashMap<(PoolId, String), String> = HashMap::new();
        let faults = &mut self.faults;
        self.models.retain(|model| {
            let name = (model.pool.clone(), model.model_name.clone());
            let holder = oldest.entry(name).or_insert_with(|| model.name.clone());
            if *holder == model.name {
                return true;
            }
            let (pool, model_name) = (&model.pool, quoted(&model.model_name));
            faults.push(Fault {
                position: model.position.clone(),
                severity: Severity::Fault,
                kind: FaultKind::ModelNameInUse,
                key: "spec.modelName".to_owned(),
                what: format!(
                    "{model_name} is taken in the pool {pool} by the older InferenceModel {holder}"
                ),
                expected: "a name of its own".to_owned(),
                using: "the older one".to_owned(),
            });
            false
        });
    }

    /// A pool that is named and not declared may be in the cluster, or misspelled.
    fn note_missing_pools(&mut self) {
        let models = self.models.iter().map(|model| (&model.position, &model.pool));
        let rewrites = self.rewrites.iter().map(|rewrite| (&rewrite.position, &rewrite.pool));
        let objectives = self.objectives.iter().map(|objective| (&objective.position, &objective.pool));
        let known: HashSet<&PoolId> = self.pools.iter().map(|pool| &pool.id).collect();
        let missing = models.chain(rewrites).chain(objectives).filter(|(_, id)| !known.contains(id));
        let notes: Vec<Fault> = missing
            .map(|(position, id)| Fault {
                position: position.clone(),
                severity: Severity::Note,
                kind: FaultKind::PoolMissing,
                key: "spec.poolRef.name".to_owned(),
                what: format!("the InferencePool {id} is not among these files"),
                expected: "it in the cluster".to_owned(),
                using: "nothing of this object until it is there".to_owned(),
            })
            .collect();
        self.faults.extend(notes);
    }

    /// Keeps the ConfigMaps that are overlays and judges them; the others are passed over.
    fn sort_out_config_maps(&mut self) {
        let config_maps = std::mem::take(&mut self.overlays);
        let present: HashSet<(&str, &str)> = config_maps.iter().map(Overlay::id).collect();
        let mut named: HashSet<(&str, String)> = HashSet::new();
        for pool in &self.pools {
            if let Some(name) = PoolPolicy::resolve(&pool.annotations, None).policy.epp_overlay {
                if !present.contains(&(pool.id.namespace.as_str(), name.as_str())) {
                    self.faults.push(overlay_missing(pool, &name));
                }
                named.insert((&pool.id.namespace, name));
            }
        }
        for config_map in config_maps {
            if named.contains(&(config_map.namespace.as_str(), config_map.name.clone()))
                || config_map.looks_like_one()
            {
                self.faults.extend(config_map.faults());
                self.overlays.push(config_map);
            } else {
                let Overlay { position, name, .. } = config_map;
                self.passed_over.push(PassedOver { position, kind: "ConfigMap".to_owned(), name });
            }
        }
        self.passed_over.sort_by(|one, other| one.position.cmp(&other.position));
    }
}

/// An object that is declared at most once.
trait Declaration: Clone {
    /// What no two may share: kind, version, namespace and name, in words.
    fn identity(&self) -> String;

    fn position(&self) -> &Position;
}

macro_rules! declaration {
    ($($kind:ident),*) => { $(
        impl Declaration for $kind {
            fn identity(&self) -> String {
                format!(concat!(stringify!($kind), " {}/{}"), self.namespace, self.name)
            }

            fn position(&self) -> &Position {
                &self.position
            }
        }
    )* };
}

declaration!(InferenceModel, InferenceModelRewrite, InferenceObjective, EndpointSlice);

impl Declaration for InferencePool {
    fn identity(&self) -> String {
        format!("InferencePool {} ({})", self.id, self.version)
    }

    fn position(&self) -> &Position {
        &self.position
    }
}

impl Declaration for Overlay {
    fn identity(&self) -> String {
        format!("ConfigMap {}/{}", self.namespace, self.name)
    }

    fn position(&self) -> &Position {
        &self.position
    }
}

/// The objects of one kind, the first of each identity.
fn distinct<'m, T: Declaration + 'm>(
    manifests: &[&'m Manifest],
    of: impl Fn(&'m Manifest) -> &'m Vec<T>,
    faults: &mut Vec<Fault>,
) -> Vec<T> {
    let mut first: HashMap<String, &Position> = HashMap::new();
    let mut kept = Vec::new();
    for object in manifests.iter().flat_map(|manifest| of(manifest)) {
        let identity = object.identity();
        match first.get(&identity) {
            None => {
                first.insert(identity, object.position());
                kept.push(object.clone());
            }
            Some(position) => faults.push(Fault {
                position: object.position().clone(),
                severity: Severity::Fault,
                kind: FaultKind::DuplicateObject,
                key: "metadata.name".to_owned(),
                what: format!("{identity} is declared again, first at {position}"),
                expected: "it once".to_owned(),
                using: "the first".to_owned(),
            }),
        }
    }
    kept
}

fn overlay_missing(pool: &InferencePool, name: &str) -> Fault {
    let key = crate::settings::OVERLAY_KEY;
    let position = pool.annotations.get(key).map_or(&pool.position, |annotation| &annotation.value_position);
    Fault {
        position: position.clone(),
        severity: Severity::Note,
        kind: FaultKind::OverlayMissing,
        key: key.to_owned(),
        what: format!("the ConfigMap {}/{name} is not among these files", pool.id.namespace),
        expected: "it in the cluster".to_owned(),
        using: "the default picker until it is there".to_owned(),
    }
}
