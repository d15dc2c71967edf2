//! Which picker a pool is to have: its overlay read, put over the default, and shown to the API server.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Error;
use kube::api::Api;
use kube::core::Status;
use pool::{InferencePool, PoolId, Resolved};
use serde_json::{Value, json};

use super::events::{Fact, Severity, Subject};
use super::live::Kind;
use super::reconcile::{Job, Known, Means, is_applied, kind_of, said};
use super::status::{self, Condition};
use crate::overlay::{Overlay, Part};
use crate::render::{PickerObjects, shared};
use crate::resources;

const CLIENT_ERRORS: std::ops::Range<u16> = 400..500;
const TOO_MANY_REQUESTS: u16 = 429;

/// Which picker the pool is to have, by its overlay.
pub(super) enum Shape {
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
    /// The shape that the pool's annotations ask for; beside it what the API server said where that is to be tried again.
    pub(super) async fn shape_of(
        &self,
        job: &Job,
        pool: &InferencePool,
        resolved: &Resolved,
        default: &PickerObjects,
    ) -> (Shape, Option<Error>) {
        let is_unreadable = resolved.faults.iter().any(|fault| fault.key == resources::OVERLAY);
        let (mut unjudged, mut name) = (None, resolved.policy.epp_overlay.clone());
        if is_unreadable {
            name = self.good.lock().get(&job.id).map(|(name, _)| name.clone());
        }
        let shape = match &name {
            Some(name) => match self.shape(&pool.id, name, default, job).await {
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
        (shape, unjudged)
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

    pub(super) async fn judge_overlay(
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
                (true, "Applied", "the picker's objects have the shape of its overlay; kubectl rollout status tells of its pods".to_owned(), None)
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
            if status::message(known.pool.version, &known.status, kind) != Some(&status::shown(&message)) {
                if let Some(config_map) = config_map {
                    self.event(config_map, &fact).await?;
                }
                self.tell_once(&known.pool.id, &known.subject, &fact).await?;
            }
            facts.insert(fact);
        }
        Ok(Condition { kind, holds, reason, message })
    }
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
