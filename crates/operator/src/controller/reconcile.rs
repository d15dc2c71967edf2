//! One pool: what is there is made what should be there. Nothing is remembered between two calls but what was told.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, ValidationDirective,
};
use kube::core::Status;
use kube::{Client, Error};
use parking_lot::Mutex;
use pool::{FaultKind, InferencePool, PoolId, PoolPolicy, PoolVersion};
use serde_json::{Value, json};
use telemetry::ControllerMetrics;

use super::Settings;
use super::events::{self, Fact, Severity, Subject};
use super::gateways::{self, Bound};
use super::live::{Kind, Live, covers};
use super::status::{self, Condition, Entry, Parent};
use crate::overlay::{Overlay, Part};
use crate::render::{self, PickerObjects, names, shared};
use crate::resources;
use crate::watch::Key;

pub(super) const FIELD_MANAGER: &str = "pointsman-controller";
/// The digest of what was applied: says that fields which only it had are to go.
const APPLIED: &str = "pointsman.dev/applied";
const NOT_FOUND: u16 = 404;
const CLIENT_ERRORS: std::ops::Range<u16> = 400..500;
const TOO_MANY_REQUESTS: u16 = 429;
const CONFLICT: u16 = 409;

/// What every reconcile is done with.
pub(super) struct Means {
    pub(super) client: Client,
    pub(super) settings: Settings,
    pub(super) metrics: Arc<ControllerMetrics>,
    told: Mutex<HashMap<PoolId, BTreeSet<Fact>>>,
    /// Of each pool the overlay that was in force last, by its name.
    good: Mutex<HashMap<PoolId, (String, Overlay)>>,
    /// Pools that brought their own picker when they were looked at last.
    self_hosted: Mutex<HashSet<PoolId>>,
}

/// A pool as the API server has it.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) pool: InferencePool,
    pub(super) subject: Subject,
    pub(super) generation: i64,
    pub(super) resource_version: String,
    pub(super) status: Value,
}

/// What is to be looked at.
pub(super) struct Job {
    pub(super) id: PoolId,
    /// The pool; none: it is gone.
    pub(super) pool: Option<Known>,
    /// A v1alpha2 pool of the same name, behind that of v1.
    pub(super) shadowed: Option<Known>,
    pub(super) live: BTreeMap<Kind, Live>,
    /// The pool's own picker is used, and not ours.
    pub(super) brings_picker: bool,
    /// The Service that the pool names is there.
    pub(super) names_a_service: bool,
    /// The Gateways of Envoy Gateway by which HTTPRoutes lead to the pool, each with whether it took one.
    pub(super) gateways: BTreeMap<Key, Bound>,
    /// The picker of the installation serves.
    pub(super) shared_is_ready: bool,
}

/// Which picker the pool is to have, by its overlay.
enum Shape {
    /// None of its own: the installation's.
    Shared(Value),
    Default,
    Reshaped(Box<PickerObjects>),
    /// Why not, in lines; with the last good one, where that is known.
    Broken(Subject, Vec<String>, Option<Box<PickerObjects>>),
    /// Nobody knows: why.
    Unjudged(String),
    Missing(String),
}

impl Means {
    pub(super) fn new(client: Client, settings: Settings, metrics: Arc<ControllerMetrics>) -> Means {
        Means {
            client,
            settings,
            metrics,
            told: Mutex::default(),
            good: Mutex::default(),
            self_hosted: Mutex::default(),
        }
    }

    /// # Errors
    /// What the API server said; to be tried again.
    pub(super) async fn reconcile(&self, job: &Job) -> Result<(), Error> {
        let Some(known) = &job.pool else { return self.take_away(job).await };
        let mut facts = BTreeSet::new();
        if let Some(shadowed) = &job.shadowed {
            let message =
                format!("the InferencePool {} of v1 rules; this one of v1alpha2 is not used", job.id);
            let fact = Fact { severity: Severity::Warning, reason: "ShadowedByV1", message };
            self.tell_once(&job.id, &shadowed.subject, &fact).await?;
            facts.insert(fact);
            // What was true while it ruled.
            self.say(shadowed, &[]).await?;
        }
        let outcome = if job.brings_picker {
            self.leave_to(job, known).await
        } else {
            self.make(job, known, &mut facts).await
        };
        self.told.lock().entry(job.id.clone()).or_default().retain(|fact| facts.contains(fact));
        outcome
    }

    /// The pool is gone: so is its picker.
    async fn take_away(&self, job: &Job) -> Result<(), Error> {
        self.told.lock().remove(&job.id);
        self.self_hosted.lock().remove(&job.id);
        self.good.lock().remove(&job.id);
        if job.live.is_empty() {
            return Ok(());
        }
        // What a watch says may be older than what is deleted for it.
        for version in [PoolVersion::V1, PoolVersion::V1Alpha2] {
            let api = self.api(&resources::pools(version), &job.id.namespace);
            match api.get_opt(&job.id.name).await {
                Ok(None) => {}
                Ok(Some(_)) => return Ok(()),
                Err(error) if code(&error) == Some(NOT_FOUND) => {}
                Err(error) => return Err(error),
            }
        }
        tracing::info!(pool = %job.id, "the pool is gone: its picker is taken away");
        self.delete_all(job, |_| true).await
    }

    async fn delete_all(&self, job: &Job, which: impl Fn(Kind) -> bool) -> Result<(), Error> {
        for (kind, live) in job.live.iter().rev().filter(|(kind, _)| which(**kind)) {
            let metadata = &live.object["metadata"];
            let (Some(namespace), Some(name)) = (metadata["namespace"].as_str(), metadata["name"].as_str())
            else {
                continue;
            };
            let only_this = Preconditions { uid: Some(live.uid.clone()), resource_version: None };
            let parameters = DeleteParams { preconditions: Some(only_this), ..DeleteParams::background() };
            self.metrics.count_write(kind.word());
            match self.api(&kind.resource(), namespace).delete(name, &parameters).await {
                Ok(_) => {}
                // Another one by now, or none.
                Err(error) if matches!(code(&error), Some(NOT_FOUND | CONFLICT)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The pool brings its own picker.
    async fn leave_to(&self, job: &Job, known: &Known) -> Result<(), Error> {
        self.self_hosted.lock().insert(job.id.clone());
        if !job.live.is_empty() {
            let message =
                "the Service that the pool names is there: its picker is used, and ours is taken away";
            let fact =
                Fact { severity: Severity::Normal, reason: "PickerSelfHosted", message: message.to_owned() };
            self.event(&known.subject, &fact).await?;
            self.delete_all(job, |_| true).await?;
        }
        self.say(known, &gateways::entries(job, &known.pool)).await
    }

    async fn make(&self, job: &Job, known: &Known, facts: &mut BTreeSet<Fact>) -> Result<(), Error> {
        let pool = &known.pool;
        if self.self_hosted.lock().contains(&job.id) {
            let message =
                "the Service that the pool names is not there any more: a picker of Pointsman's is made";
            let fact =
                Fact { severity: Severity::Normal, reason: "PickerManaged", message: message.to_owned() };
            self.event(&known.subject, &fact).await?;
            self.self_hosted.lock().remove(&job.id);
        }
        let resolved = PoolPolicy::resolve(&pool.annotations, None);
        let settings = self.judge_settings(known, &resolved.faults, facts).await?;
        let default = render::render(&pool.id, pool.version, &self.settings.options);
        let is_unreadable = resolved.faults.iter().any(|fault| fault.key == resources::OVERLAY);
        let (mut unjudged, mut name) = (None, resolved.policy.epp_overlay.clone());
        if is_unreadable {
            name = self.good.lock().get(&job.id).map(|(name, _)| name.clone());
        }
        let shape = match &name {
            Some(name) => match self.shape(&pool.id, name, &default, job).await {
                Ok(shape) => shape,
                Err(error) => {
                    let why = format!("the overlay {name} could not be judged: {}", said(&error));
                    unjudged = Some(error);
                    Shape::Unjudged(why)
                }
            },
            // It was never read: what runs may have a shape that nobody knows.
            None if is_unreadable => {
                Shape::Unjudged(format!("the annotation {} cannot be read", resources::OVERLAY))
            }
            None if self.settings.shared_picker => {
                Shape::Shared(shared::service(&pool.id, &self.settings.options))
            }
            None => Shape::Default,
        };
        if name.is_none() && !is_unreadable {
            self.good.lock().remove(&job.id);
        }
        let overlay = self.judge_overlay(known, &shape, facts).await?;
        let applied = self.apply(job, &default, &shape).await;
        let is_shared = matches!(shape, Shape::Shared(_));
        let ready = ready(job, is_shared, &applied);
        let name = if is_shared { shared::NAME.to_owned() } else { names::picker(&pool.id) };
        let parent = Parent::deployment(&self.settings.options.gateway_namespace, &name);
        let mut entries = vec![Entry { parent, conditions: vec![settings, overlay, ready] }];
        entries.extend(gateways::entries(job, pool));
        self.say(known, &entries).await?;
        unjudged.map_or(applied, Err)
    }

    /// What is wrong with the annotations.
    async fn judge_settings(
        &self,
        known: &Known,
        faults: &[pool::Fault],
        facts: &mut BTreeSet<Fact>,
    ) -> Result<Condition, Error> {
        let lines: Vec<String> = faults
            .iter()
            .map(|fault| {
                // What was valid before is the picker's to know.
                let using = match fault.kind {
                    FaultKind::UnknownAnnotation => fault.using.clone(),
                    _ => format!("the last valid value, or {} where there was none", fault.using),
                };
                format!("{}: {}; expected {}; using {using}", fault.key, fault.what, fault.expected)
            })
            .collect();
        let message = lines.join("\n");
        let kind = "SettingsValid";
        let is_new = status::message(known.pool.version, &known.status, kind) != Some(&message);
        for (fault, line) in faults.iter().zip(lines) {
            let reason = match fault.kind {
                FaultKind::UnknownAnnotation => "UnknownAnnotation",
                _ => "InvalidAnnotation",
            };
            let fact = Fact { severity: Severity::Warning, reason, message: line };
            if is_new {
                self.tell_once(&known.pool.id, &known.subject, &fact).await?;
            }
            facts.insert(fact);
        }
        let reason = if faults.is_empty() { "Valid" } else { "InvalidAnnotation" };
        let message =
            if faults.is_empty() { "every annotation of ours is understood".to_owned() } else { message };
        Ok(Condition { kind, holds: faults.is_empty(), reason, message })
    }

    /// The default with the pool's overlay over it.
    async fn shape(
        &self,
        id: &PoolId,
        name: &str,
        default: &PickerObjects,
        job: &Job,
    ) -> Result<Shape, Error> {
        let config_maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &id.namespace);
        let Some(config_map) = config_maps.get_opt(name).await? else {
            return Ok(Shape::Missing(name.to_owned()));
        };
        let subject = Subject {
            api_version: "v1".to_owned(),
            kind: "ConfigMap".to_owned(),
            namespace: id.namespace.clone(),
            name: name.to_owned(),
            uid: config_map.metadata.uid.clone().unwrap_or_default(),
        };
        let document = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": name, "namespace": id.namespace },
            "data": config_map.data.unwrap_or_default(),
        });
        let parsed = pool::parse(name, &document.to_string()).ok();
        let Some(overlay) = parsed.and_then(|manifest| manifest.overlays.into_iter().next()) else {
            return Ok(self.broken(subject, vec!["it cannot be read".to_owned()], id, default));
        };
        let read = Overlay::read(&overlay, &self.settings.allow_overlay)
            .and_then(|overlay| overlay.apply(default).map(|reshaped| (overlay, reshaped)));
        let (overlay, reshaped) = match read {
            Ok(read) => read,
            Err(faults) => {
                let lines = faults.iter().map(ToString::to_string).collect();
                return Ok(self.broken(subject, lines, id, default));
            }
        };
        // The API server knows more than a schema says.
        for object in reshaped.in_order() {
            let Some(kind) = kind_of(object).filter(|kind| kind.is_open()) else { continue };
            if is_applied(job.live.get(&kind), object) {
                continue;
            }
            if let Err(error) = self.put(kind, object, true).await {
                match &error {
                    Error::Api(status)
                        if CLIENT_ERRORS.contains(&status.code) && status.code != TOO_MANY_REQUESTS =>
                    {
                        return Ok(self.broken(subject, rejections(status, kind, &overlay), id, default));
                    }
                    _ => return Err(error),
                }
            }
        }
        self.good.lock().insert(id.clone(), (name.to_owned(), overlay));
        Ok(Shape::Reshaped(Box::new(reshaped)))
    }

    /// The overlay is not used; the last good one is.
    fn broken(&self, subject: Subject, lines: Vec<String>, id: &PoolId, default: &PickerObjects) -> Shape {
        let good = self.good.lock().get(id).map(|(_, overlay)| overlay.clone());
        let last = good.and_then(|overlay| overlay.apply(default).ok()).map(Box::new);
        Shape::Broken(subject, lines, last)
    }

    async fn judge_overlay(
        &self,
        known: &Known,
        shape: &Shape,
        facts: &mut BTreeSet<Fact>,
    ) -> Result<Condition, Error> {
        let kind = "OverlayApplied";
        let (holds, reason, message, config_map) = match shape {
            Shape::Default | Shape::Shared(_) => {
                (true, "NoOverlay", "the picker has its default shape".to_owned(), None)
            }
            Shape::Reshaped(_) => {
                (true, "Applied", "the picker has the shape of its overlay".to_owned(), None)
            }
            Shape::Missing(name) => {
                let id = &known.pool.id.namespace;
                let message = format!(
                    "the ConfigMap {id}/{name} that {} names is not there: the default is used",
                    resources::OVERLAY
                );
                (false, "OverlayMissing", message, None)
            }
            Shape::Unjudged(why) => {
                (false, "OverlayNotJudged", format!("{why}; what runs stays, and it is tried again"), None)
            }
            Shape::Broken(config_map, lines, _) => {
                let of = format!("ConfigMap {}/{}", config_map.namespace, config_map.name);
                let message = format!("{of}: {}; no part of it is used", lines.join("\n"));
                (false, "InvalidOverlay", message, Some(config_map))
            }
        };
        if !holds && !matches!(shape, Shape::Unjudged(_)) {
            let fact = Fact { severity: Severity::Warning, reason, message: message.clone() };
            if status::message(known.pool.version, &known.status, kind) != Some(&message) {
                if let Some(config_map) = config_map {
                    self.event(config_map, &fact).await?;
                }
                self.tell_once(&known.pool.id, &known.subject, &fact).await?;
            }
            facts.insert(fact);
        }
        Ok(Condition { kind, holds, reason, message })
    }

    /// Applies what is not there as it should be.
    async fn apply(&self, job: &Job, default: &PickerObjects, shape: &Shape) -> Result<(), Error> {
        let own = match shape {
            Shape::Shared(service) => return self.leave_to_shared(job, default, service).await,
            Shape::Reshaped(reshaped) | Shape::Broken(_, _, Some(reshaped)) => reshaped,
            Shape::Default | Shape::Broken(_, _, None) | Shape::Unjudged(_) | Shape::Missing(_) => default,
        };
        let is_unknown = matches!(shape, Shape::Broken(_, _, None) | Shape::Unjudged(_));
        for object in own.in_order() {
            let Some(kind) = kind_of(object) else { continue };
            let live = job.live.get(&kind);
            let stays = is_unknown && kind.is_open() && live.is_some();
            // What is asked of the installation's picker goes on there until this one serves.
            let waits = kind == Kind::Service && !own_is_ready(job) && selects(live, &shared::selector());
            if !stays && !waits {
                self.apply_one(job, kind, object).await?;
            }
        }
        Ok(())
    }

    /// The pool's requests go to the installation's picker, when that serves; one of its own goes then.
    async fn leave_to_shared(&self, job: &Job, own: &PickerObjects, service: &Value) -> Result<(), Error> {
        let live = job.live.get(&Kind::Service);
        if !job.shared_is_ready && selects(live, &own.service["spec"]["selector"]) {
            return Ok(());
        }
        self.apply_one(job, Kind::Service, service).await?;
        self.delete_all(job, |kind| kind != Kind::Service).await
    }

    async fn apply_one(&self, job: &Job, kind: Kind, object: &Value) -> Result<(), Error> {
        if !is_applied(job.live.get(&kind), object) {
            self.metrics.count_write(kind.word());
            self.put(kind, object, false).await?;
            tracing::info!(pool = %job.id, "{kind:?} applied");
        }
        Ok(())
    }

    async fn put(&self, kind: Kind, object: &Value, dry_run: bool) -> Result<DynamicObject, Error> {
        let mut object = object.clone();
        let digest = digest(&object);
        object["metadata"]["annotations"][APPLIED] = digest.into();
        let parameters = PatchParams {
            dry_run,
            force: true,
            field_manager: Some(FIELD_MANAGER.to_owned()),
            field_validation: Some(ValidationDirective::Strict),
        };
        let metadata = &object["metadata"];
        let (namespace, name) = (
            metadata["namespace"].as_str().unwrap_or_default(),
            metadata["name"].as_str().unwrap_or_default(),
        );
        self.api(&kind.resource(), namespace).patch(name, &parameters, &Patch::Apply(&object)).await
    }

    /// Writes our entries of a pool's status, where they differ.
    async fn say(&self, known: &Known, entries: &[Entry]) -> Result<(), Error> {
        match status::entries(known.pool.version, &known.status, entries, known.generation) {
            Some(entries) => self.write_status(known, entries).await,
            None => Ok(()),
        }
    }

    /// Fails where the pool changed meanwhile: its change is on its way here.
    async fn write_status(&self, known: &Known, entries: Value) -> Result<(), Error> {
        let (id, version) = (&known.pool.id, known.pool.version);
        let change = json!({
            "metadata": { "resourceVersion": known.resource_version },
            "status": { status::list(version): entries },
        });
        self.metrics.count_write("Status");
        let api = self.api(&resources::pools(version), &id.namespace);
        match api.patch_status(&id.name, &PatchParams::default(), &Patch::Merge(&change)).await {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == Some(NOT_FOUND) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn tell_once(&self, id: &PoolId, subject: &Subject, fact: &Fact) -> Result<(), Error> {
        if self.told.lock().get(id).is_some_and(|told| told.contains(fact)) {
            return Ok(());
        }
        self.event(subject, fact).await?;
        self.told.lock().entry(id.clone()).or_default().insert(fact.clone());
        Ok(())
    }

    async fn event(&self, subject: &Subject, fact: &Fact) -> Result<(), Error> {
        self.metrics.count_write("Event");
        events::tell(&self.client, subject, fact).await
    }

    fn api(&self, resource: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, resource)
    }
}

/// Whether the picker serves, by its Deployment.
fn ready(job: &Job, is_shared: bool, applied: &Result<(), Error>) -> Condition {
    let kind = "PickerReady";
    if let Err(error) = applied {
        let message = format!("the API server refused an object of the picker: {}", said(error));
        return Condition { kind, holds: false, reason: "ApplyFailed", message };
    }
    if if is_shared { job.shared_is_ready } else { own_is_ready(job) } {
        return Condition { kind, holds: true, reason: "PodsReady", message: "a picker is ready".to_owned() };
    }
    let message = if is_shared {
        let meanwhile = if own_is_ready(job) { "; the pool's own picker serves until it is" } else { "" };
        format!(
            "no pod of the Deployment {} is ready: kubectl describe it; if it is not there, apply what \
             `pointsman controller --install --epp-mode=shared` prints{meanwhile}",
            shared::NAME
        )
    } else {
        let name = names::picker(&job.id);
        let there = deployment_count(job, "replicas");
        format!("no pod of the Deployment {name} is ready ({there} are there): kubectl describe it")
    };
    Condition { kind, holds: false, reason: "NoPodReady", message }
}

fn own_is_ready(job: &Job) -> bool {
    deployment_count(job, "readyReplicas") > 0
}

fn deployment_count(job: &Job, field: &str) -> u64 {
    let deployment = job.live.get(&Kind::Deployment);
    deployment.and_then(|live| live.object["status"][field].as_u64()).unwrap_or(0)
}

/// Whether the Service sends to those pods.
fn selects(service: Option<&Live>, pods: &Value) -> bool {
    service.is_some_and(|live| live.object["spec"]["selector"] == *pods)
}

/// Whether the object was applied as it should be, and nobody changed it since.
fn is_applied(live: Option<&Live>, object: &Value) -> bool {
    live.is_some_and(|live| {
        live.object["metadata"]["annotations"][APPLIED] == digest(object) && covers(&live.object, object)
    })
}

fn digest(object: &Value) -> String {
    names::hash(&object.to_string())
}

fn kind_of(object: &Value) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| object["kind"] == kind.resource().kind)
}

/// What the API server has against an object, each where the overlay says it.
fn rejections(status: &Status, kind: Kind, overlay: &Overlay) -> Vec<String> {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let located = causes.filter(|cause| !cause.field.is_empty()).filter_map(|cause| {
        let (key, line, column) = overlay.locate(part_of(kind), &cause.field)?;
        let (field, message) = (&cause.field, &cause.message);
        Some(format!("{key}:{line}:{column}: {field}: the API server rejects it: {message}"))
    });
    let located: Vec<String> = located.collect();
    if !located.is_empty() {
        return located;
    }
    let key = part_of(kind).key();
    vec![format!("{key}:1:1: the API server rejects it: {}", status.message)]
}

fn part_of(kind: Kind) -> Part {
    match kind {
        Kind::Service => Part::Service,
        Kind::PodDisruptionBudget => Part::PodDisruptionBudget,
        _ => Part::Deployment,
    }
}

/// What the API server said, or why it said nothing.
pub(super) fn said(error: &Error) -> String {
    match error {
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// The status code of the API server's answer.
pub(super) fn code(error: &Error) -> Option<u16> {
    match error {
        Error::Api(status) => Some(status.code),
        _ => None,
    }
}
