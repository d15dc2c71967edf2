//! InferenceModels: which of those that claim a name has it.

use k8s_openapi::jiff::Timestamp;
use kube::Error;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use pool::{Manifest, PoolId};
use serde_json::{Value, json};

use super::reconcile::{FIELD_MANAGER, Means, code};
use crate::resources;

const NOT_FOUND: u16 = 404;
const ACCEPTED: &str = "Accepted";

/// An InferenceModel as the API server has it.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) namespace: String,
    pub(super) name: String,
    /// The pool that it is for.
    pub(super) pool: PoolId,
    /// The name that it claims.
    claims: String,
    created: Option<Timestamp>,
    generation: i64,
    accepted: Option<(String, String)>,
}

/// What a model is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Model {
    /// None where it is not sound, which the API server's own rules keep out.
    pub(super) fn read(mut object: DynamicObject) -> Option<Model> {
        object.metadata.managed_fields = None;
        let conditions = object.data["status"]["conditions"].as_array();
        let accepted = conditions.and_then(|all| all.iter().find(|one| one["type"] == ACCEPTED)).map(|one| {
            let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
            (text("status"), text("message"))
        });
        let text = serde_json::to_string(&object).unwrap_or_default();
        let model =
            pool::parse("InferenceModel", &text).unwrap_or_else(Manifest::from).models.into_iter().next()?;
        Some(Model {
            namespace: model.namespace,
            name: model.name,
            pool: model.pool,
            claims: model.model_name,
            created: object.metadata.creation_timestamp.map(|time| time.0),
            generation: object.metadata.generation.unwrap_or(0),
            accepted,
        })
    }
}

/// What each of the models of one pool is told: of those that claim a name the oldest has it, of the same age the first by name.
pub(super) fn judge<'m>(models: impl IntoIterator<Item = &'m Model>) -> Vec<(&'m Model, Verdict)> {
    let mut models: Vec<&Model> = models.into_iter().collect();
    models.sort_by(|one, other| (one.created, &one.name).cmp(&(other.created, &other.name)));
    let owner =
        |of: &Model| models.iter().find(|model| model.claims == of.claims).map(|model| model.name.clone());
    let verdict = |model: &Model| match owner(model).filter(|owner| *owner != model.name) {
        None => Verdict {
            holds: true,
            reason: ACCEPTED,
            message: format!("requests for `{}` are served by it", model.claims),
        },
        Some(owner) => Verdict {
            holds: false,
            reason: "ModelNameInUse",
            message: format!(
                "`{}` is the name of the older InferenceModel {owner} of the same pool",
                model.claims
            ),
        },
    };
    let verdicts: Vec<Verdict> = models.iter().map(|model| verdict(model)).collect();
    models.into_iter().zip(verdicts).collect()
}

/// Writes the verdict, if it is not there.
pub(super) async fn tell(means: &Means, model: &Model, verdict: &Verdict) -> Result<(), Error> {
    let status = if verdict.holds { "True" } else { "False" };
    if model.accepted.as_ref().is_some_and(|(there, message)| there == status && *message == verdict.message)
    {
        return Ok(());
    }
    let resource = resources::models();
    let now = Timestamp::now();
    let change: Value = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": { "name": model.name, "namespace": model.namespace },
        "status": { "conditions": [{
            "type": ACCEPTED,
            "status": status,
            "reason": verdict.reason,
            "message": verdict.message,
            "observedGeneration": model.generation,
            "lastTransitionTime": Timestamp::from_second(now.as_second()).unwrap_or(now).to_string(),
        }] },
    });
    means.metrics.count_write("Status");
    let api: Api<DynamicObject> = Api::namespaced_with(means.client.clone(), &model.namespace, &resource);
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch_status(&model.name, &parameters, &Patch::Apply(&change)).await {
        Ok(_) => Ok(()),
        Err(error) if code(&error) == Some(NOT_FOUND) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, claims: &str, created_s: i64) -> Model {
        Model {
            namespace: "n".into(),
            name: name.into(),
            pool: PoolId::new("n", "p"),
            claims: claims.into(),
            created: Timestamp::from_second(created_s).ok(),
            generation: 1,
            accepted: None,
        }
    }

    #[test]
    fn the_oldest_has_the_name() {
        let models = [model("c", "m", 3), model("b", "m", 1), model("a", "m", 1), model("d", "other", 9)];
        let told = judge(&models);
        let holding: Vec<_> =
            told.iter().filter(|(_, verdict)| verdict.holds).map(|(model, _)| &*model.name).collect();
        assert_eq!(holding, ["a", "d"]);
        let (_, verdict) = told.iter().find(|(model, _)| model.name == "c").unwrap();
        assert!(verdict.reason == "ModelNameInUse" && verdict.message.contains("older InferenceModel a"));
    }
}
