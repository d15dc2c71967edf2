//! One pool: what is there is made what should be there. Nothing is remembered between two calls but what was told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use envoy_gateway::Serving;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, ValidationDirective,
};
use kube::{Client, Error};
use parking_lot::Mutex;
use pool::{FaultKind, InferencePool, PickerRef, PoolId, PoolPolicy, PoolVersion};
use serde_json::{Value, json};
use telemetry::ControllerMetrics;
use tokio::time::Instant;

use super::events::{self, Fact, Severity, Subject};
use super::gateways::{self, Bound};
use super::live::{Kind, Live, covers};
use super::shape::Shape;
use super::status::{self, Condition, Entry, Parent};
use super::{START_MAX, Settings};
use crate::overlay::Overlay;
use crate::render::{self, PickerObjects, names, shared};
use crate::resources;
use crate::watch::Key;

pub(super) const FIELD_MANAGER: &str = "pointsman-controller";
/// The digest of what was applied: says that fields which only it had are to go.
const APPLIED: &str = "pointsman.dev/applied";
/// Of a pool's invalid annotations so many are told by an Event each; the condition lists the others, too.
const EVENTS_MAX: usize = 16;
/// From when a pool's own picker is asked until ours goes. Envoy Gateway and its Envoys take about a second for it.
const MOVE: Duration = Duration::from_secs(3);
/// How often it is looked at whether that time has come.
const LOOK: Duration = Duration::from_secs(1);
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

/// What every reconcile is done with.
pub(super) struct Means {
    pub(super) client: Client,
    pub(super) settings: Settings,
    pub(super) metrics: Arc<ControllerMetrics>,
    told: Mutex<HashMap<PoolId, BTreeSet<Fact>>>,
    /// Of each pool the overlay that was in force last, by its name.
    pub(super) good: Mutex<HashMap<PoolId, (String, Overlay)>>,
    /// Pools that brought their own picker when they were looked at last.
    self_hosted: Mutex<HashMap<PoolId, SelfHosted>>,
}

/// A pool that brings its own picker.
#[derive(Clone)]
struct SelfHosted {
    /// The name of its Service; none where it names none.
    service: Option<String>,
    /// When ours goes.
    goes: Instant,
    /// Whether it served.
    serving: Serving,
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
    /// … and it is asked: it serves, or ours does not.
    pub(super) own_is_asked: bool,
    /// Whether the picker that it is to have serves.
    pub(super) serving: Serving,
    pub(super) named: Named,
    /// The Gateways of Envoy Gateway by which HTTPRoutes lead to the pool, each with whether it took one.
    pub(super) gateways: BTreeMap<Key, Bound>,
    /// The picker of the installation serves.
    pub(super) shared_is_ready: bool,
}

/// What a pool names as its picker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Nothing,
    /// Something of a kind that is no Service.
    NoService,
    /// A Service that is not there.
    Missing,
    /// A Service that has not that port, and which it has.
    WithoutPort(Vec<u16>),
    Service,
}

impl Named {
    /// Whether there is a Service.
    pub(super) fn is_there(&self) -> bool {
        matches!(self, Named::WithoutPort(_) | Named::Service)
    }
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

    /// After how long to do it again, where nothing changes until then.
    ///
    /// # Errors
    /// What the API server said; to be tried again.
    pub(super) async fn reconcile(&self, job: &Job) -> Result<Option<Duration>, Error> {
        let Some(known) = &job.pool else { return self.take_away(job).await.map(|()| None) };
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
            self.leave_to(job, known, &mut facts).await
        } else {
            self.make(job, known, &mut facts).await.map(|()| None)
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

    /// The pool brings its own picker. Ours stays until that one serves and Envoys ask it, for a while.
    async fn leave_to(
        &self,
        job: &Job,
        known: &Known,
        facts: &mut BTreeSet<Fact>,
    ) -> Result<Option<Duration>, Error> {
        let now = Instant::now();
        let before = self.self_hosted.lock().get(&job.id).cloned();
        let service = known.pool.picker.as_ref().map(|picker| picker.name.clone());
        let changed = match &before {
            None => !job.live.is_empty(),
            Some(before) => before.service != service,
        };
        let fails =
            job.serving == Serving::No && before.as_ref().is_some_and(|before| before.serving != Serving::No);
        let mut goes = before.map_or(now + START_MAX, |before| before.goes);
        if job.own_is_asked || !job.named.is_there() {
            goes = goes.min(now + MOVE);
        }
        if changed {
            let message = format!("{}: that one is asked from when it serves", named_as(&known.pool));
            self.tell_change(job, known, "PickerSelfHosted", message).await?;
        }
        if fails {
            let message = format!(
                "{}, behind which nothing is ready now, and no other picker is asked: its pods have to get Ready",
                named_as(&known.pool)
            );
            tracing::warn!(pool = %job.id, "{message}");
            let fact = Fact { severity: Severity::Warning, reason: "PickerNotServing", message };
            self.event(&known.subject, &fact).await?;
        }
        let serving = job.serving.clone();
        self.self_hosted.lock().insert(job.id.clone(), SelfHosted { service, goes, serving });
        let resolved = PoolPolicy::resolve(&known.pool.annotations, None);
        self.judge_settings(known, &resolved.faults, facts).await?;
        self.say(known, &gateways::entries(job, &known.pool)).await?;
        if job.live.is_empty() {
            return Ok(None);
        }
        let left = goes.saturating_duration_since(now);
        if !left.is_zero() {
            return Ok(Some(left.min(LOOK)));
        }
        self.delete_all(job, |_| true).await?;
        Ok(None)
    }

    async fn tell_change(
        &self,
        job: &Job,
        known: &Known,
        reason: &'static str,
        message: String,
    ) -> Result<(), Error> {
        tracing::info!(pool = %job.id, "{message}");
        self.event(&known.subject, &Fact { severity: Severity::Normal, reason, message }).await
    }

    async fn make(&self, job: &Job, known: &Known, facts: &mut BTreeSet<Fact>) -> Result<(), Error> {
        let pool = &known.pool;
        if self.self_hosted.lock().contains_key(&job.id) {
            let why = match job.named {
                Named::Missing => ", which is not there",
                Named::NoService => ", which is no Service",
                _ => "",
            };
            let message = format!("{}{why}: a picker of Pointsman's is made", named_as(pool));
            self.tell_change(job, known, "PickerManaged", message).await?;
            self.self_hosted.lock().remove(&job.id);
        }
        let resolved = PoolPolicy::resolve(&pool.annotations, None);
        let settings = self.judge_settings(known, &resolved.faults, facts).await?;
        let default = render::render(&pool.id, pool.version, &self.settings.options);
        let (shape, unjudged) = self.shape_of(job, pool, &resolved, &default).await;
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
        let is_new =
            status::message(known.pool.version, &known.status, kind) != Some(&status::shown(&message));
        for (fault, line) in faults.iter().zip(lines).take(EVENTS_MAX) {
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

    pub(super) async fn put(
        &self,
        kind: Kind,
        object: &Value,
        dry_run: bool,
    ) -> Result<DynamicObject, Error> {
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

    pub(super) async fn tell_once(&self, id: &PoolId, subject: &Subject, fact: &Fact) -> Result<(), Error> {
        if self.told.lock().get(id).is_some_and(|told| told.contains(fact)) {
            return Ok(());
        }
        self.event(subject, fact).await?;
        self.told.lock().entry(id.clone()).or_default().insert(fact.clone());
        Ok(())
    }

    pub(super) async fn event(&self, subject: &Subject, fact: &Fact) -> Result<(), Error> {
        self.metrics.count_write("Event");
        events::tell(&self.client, subject, fact).await
    }

    fn api(&self, resource: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, resource)
    }
}

/// What a pool names as its picker, in words.
fn named_as(pool: &InferencePool) -> String {
    match &pool.picker {
        Some(PickerRef { kind, name, .. }) => {
            format!("its endpoint picker is the {kind} {}/{name}", pool.id.namespace)
        }
        None => "it names no endpoint picker".to_owned(),
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
pub(super) fn is_applied(live: Option<&Live>, object: &Value) -> bool {
    live.is_some_and(|live| {
        live.object["metadata"]["annotations"][APPLIED] == digest(object) && covers(&live.object, object)
    })
}

fn digest(object: &Value) -> String {
    names::hash(&object.to_string())
}

pub(super) fn kind_of(object: &Value) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| object["kind"] == kind.resource().kind)
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
