//! What speaks of models and priorities: InferenceModel, InferenceModelRewrite, InferenceObjective.

use super::{
    Criticality, InferenceModel, InferenceModelRewrite, InferenceObjective, ModelTarget, Object, RewriteRule,
};
use crate::fields::{Fields, Read, Reader, all};
use crate::yaml::Node;

const TARGETS_MAX: usize = 10;
const MODEL_NAME_BYTES_MAX: usize = 256;
const WEIGHT_MAX: i64 = 1_000_000;

const CRITICALITIES: [(&str, Criticality); 3] = [
    ("Critical", Criticality::Critical),
    ("Standard", Criticality::Standard),
    ("Sheddable", Criticality::Sheddable),
];

pub(super) fn read_model(reader: &mut Reader, node: &Node) -> Read<InferenceModel> {
    let object = Object::read(reader, node, "InferenceModel", &["spec", "status"])?;
    let spec = object.spec(reader, &["modelName", "criticality", "targetModels", "poolRef"])?;
    let model_name = model_name(reader, &spec, "modelName");
    let criticality = spec.word(reader, "criticality", &CRITICALITIES);
    let targets = targets(reader, &spec, "targetModels", "name", 1).and_then(|targets| {
        if targets.len() > TARGETS_MAX {
            let (what, expected) =
                (format!("found {} targets", targets.len()), format!("at most {TARGETS_MAX}"));
            return Err(spec.invalid(reader, "targetModels", what, expected));
        }
        Ok(targets)
    });
    let pool = object.pool(reader, &spec);
    let created = object.created(reader);
    Ok(InferenceModel {
        position: object.position,
        namespace: object.namespace,
        name: object.name,
        created: created?,
        model_name: model_name?,
        criticality: criticality?,
        targets: targets?,
        pool: pool?,
    })
}

pub(super) fn read_objective(reader: &mut Reader, node: &Node) -> Read<InferenceObjective> {
    let object = Object::read(reader, node, "InferenceObjective", &["spec", "status"])?;
    let spec = object.spec(reader, &["priority", "poolRef"])?;
    let priority = spec.whole(reader, "priority", i64::MIN..=i64::MAX);
    let pool = object.pool(reader, &spec);
    Ok(InferenceObjective {
        position: object.position,
        namespace: object.namespace,
        name: object.name,
        priority: priority?.unwrap_or_default(),
        pool: pool?,
    })
}

pub(super) fn read_rewrite(reader: &mut Reader, node: &Node) -> Read<InferenceModelRewrite> {
    let object = Object::read(reader, node, "InferenceModelRewrite", &["spec", "status"])?;
    let spec = object.spec(reader, &["poolRef", "rules"])?;
    let rules = spec.list(reader, "rules").and_then(|items| {
        if items.is_empty() {
            return Err(spec.invalid(reader, "rules", "there are none", "at least one rule"));
        }
        all(items.into_iter().map(|(path, item)| rule(reader, item, path)))
    });
    let pool = object.pool(reader, &spec);
    let created = object.created(reader);
    Ok(InferenceModelRewrite {
        position: object.position,
        namespace: object.namespace,
        name: object.name,
        created: created?,
        pool: pool?,
        rules: rules?,
    })
}

fn rule(reader: &mut Reader, node: &Node, path: String) -> Read<RewriteRule> {
    let fields = Fields::open(reader, node, path, &["matches", "targets"])?;
    let models = fields
        .list(reader, "matches")
        .and_then(|items| all(items.into_iter().map(|(path, item)| exact_match(reader, item, path))));
    let targets = targets(reader, &fields, "targets", "modelRewrite", 0)?;
    if targets.is_empty() {
        return Err(fields.invalid(reader, "targets", "there are none", "at least one target"));
    }
    Ok(RewriteRule { models: models?, targets })
}

/// `{model: {type: Exact, value: NAME}}`
fn exact_match(reader: &mut Reader, node: &Node, path: String) -> Read<String> {
    let fields = Fields::open(reader, node, path, &["model"])?;
    let model = fields.child(reader, "model", &["type", "value"]);
    let model = fields.required(reader, "model", model)?;
    let kind = model.word(reader, "type", &[("Exact", ())]);
    let value = model_name(reader, &model, "value");
    kind?;
    value
}

/// Models by weight: all have one or none has; none, and nothing but zeros, is evenly.
fn targets(
    reader: &mut Reader,
    fields: &Fields<'_>,
    list: &str,
    name: &str,
    weight_min: i64,
) -> Read<Vec<ModelTarget>> {
    let items = fields.list(reader, list)?;
    let targets: Vec<(String, Option<u32>)> = all(items.into_iter().map(|(path, item)| {
        let target = Fields::open(reader, item, path, &[name, "weight"])?;
        let model = model_name(reader, &target, name);
        let weight = target.whole(reader, "weight", weight_min..=WEIGHT_MAX);
        Ok((model?, weight?))
    }))?;
    let weighted = targets.iter().filter(|(_, weight)| weight.is_some()).count();
    if weighted != 0 && weighted != targets.len() {
        let what = format!("{weighted} of {} targets have a weight", targets.len());
        return Err(fields.invalid(reader, list, what, "all or none to have one"));
    }
    let evenly = targets.iter().all(|(_, weight)| weight.unwrap_or_default() == 0);
    let weight = |weight: Option<u32>| if evenly { 1 } else { weight.unwrap_or_default() };
    Ok(targets.into_iter().map(|(model, given)| ModelTarget { model, weight: weight(given) }).collect())
}

fn model_name(reader: &mut Reader, fields: &Fields<'_>, name: &str) -> Read<String> {
    let is_sound = |name: &str| !name.is_empty() && name.len() <= MODEL_NAME_BYTES_MAX;
    let model = fields.text_that(reader, name, is_sound, "the name of a model, 1 to 256 bytes");
    fields.required(reader, name, model).map(str::to_owned)
}
