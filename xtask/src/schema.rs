//! The fields of the objects that an overlay may change, with how Kubernetes merges them: cut out of the OpenAPI document that the
//! pinned Kubernetes publishes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::parts;

/// The file that the operator is built with.
const FILE: &str = "crates/operator/src/overlay/schema.json";
const ROOTS: [&str; 3] = [
    "io.k8s.api.apps.v1.Deployment",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.policy.v1.PodDisruptionBudget",
];
/// What status holds is nobody's to merge.
const LEFT_OUT: [&str; 1] = ["status"];

/// Writes the file, or checks that it is what it should be.
///
/// # Errors
/// The document has a form that is not known here; with `check`, the file differs.
pub(crate) fn run(root: &Path, check: bool) -> anyhow::Result<()> {
    let document = fs::read(parts::openapi(root)?).context("the OpenAPI document cannot be read")?;
    let document: Value = serde_json::from_slice(&document)?;
    let text = cut(&document["definitions"])?;
    let file = root.join(FILE);
    if fs::read_to_string(&file).is_ok_and(|there| there == text) {
        return Ok(());
    }
    if check {
        bail!("{FILE} is not what Kubernetes publishes; run `cargo xtask schema`");
    }
    fs::write(&file, text).with_context(|| format!("{FILE} cannot be written"))?;
    println!("{FILE} written");
    Ok(())
}

/// A line for each definition that the roots reach, as JSON.
fn cut(definitions: &Value) -> anyhow::Result<String> {
    let mut made: BTreeMap<String, Value> = BTreeMap::new();
    let mut wanted: BTreeSet<&str> = ROOTS.into();
    while let Some(name) = wanted.pop_first() {
        let Some(properties) = definitions[name]["properties"].as_object() else {
            bail!("{name} has no properties");
        };
        let mut fields = serde_json::Map::new();
        for (field, property) in properties.iter().filter(|(field, _)| !LEFT_OUT.contains(&field.as_str())) {
            let (form, reached) =
                form(definitions, property).with_context(|| format!("{name}, field {field}"))?;
            wanted.extend(reached.filter(|reached| !made.contains_key(short(reached)) && *reached != name));
            fields.insert(field.clone(), with_strategy(&form, property)?);
        }
        made.insert(short(name).to_owned(), Value::Object(fields));
    }
    let mut text = String::from("{\n");
    for (number, (name, fields)) in made.iter().enumerate() {
        let comma = if number + 1 < made.len() { "," } else { "" };
        writeln!(text, "{}: {fields}{comma}", json!(name))?;
    }
    text.push_str("}\n");
    Ok(text)
}

/// What a property may hold, and the definition that it leads to.
fn form<'a>(
    definitions: &'a Value,
    property: &'a Value,
) -> anyhow::Result<(Value, std::option::IntoIter<&'a str>)> {
    if let Some(name) = property["$ref"].as_str().and_then(|path| path.strip_prefix("#/definitions/")) {
        let definition = &definitions[name];
        if definition["properties"].is_object() {
            return Ok((json!({ "object": short(name) }), Some(name).into_iter()));
        }
        let form = match (short(name), definition["type"].as_str()) {
            ("resource.Quantity", _) => "quantity",
            ("util.intstr.IntOrString", _) => "intOrString",
            (_, Some("string")) => "string",
            (_, Some("object")) => "any",
            other => bail!("{other:?} is not known here"),
        };
        return Ok((json!(form), None.into_iter()));
    }
    let of = |inner: &'a Value| form(definitions, inner);
    Ok(match property["type"].as_str() {
        Some(plain @ ("string" | "integer" | "boolean")) => (json!(plain), None.into_iter()),
        Some("array") => {
            let (items, reached) = of(&property["items"])?;
            (json!({ "list": items }), reached)
        }
        Some("object") if property["additionalProperties"].is_object() => {
            let (values, reached) = of(&property["additionalProperties"])?;
            (json!({ "map": values }), reached)
        }
        other => bail!("{other:?} is not known here"),
    })
}

fn with_strategy(form: &Value, property: &Value) -> anyhow::Result<Value> {
    let mut field = json!({ "form": form });
    let Some(strategies) = property["x-kubernetes-patch-strategy"].as_str() else { return Ok(field) };
    for strategy in strategies.split(',') {
        match strategy {
            "merge" => {
                field["merge"] = property["x-kubernetes-patch-merge-key"].as_str().unwrap_or_default().into();
            }
            "retainKeys" => field["retainKeys"] = true.into(),
            "replace" => field["replace"] = true.into(),
            other => bail!("the patch strategy {other} is not known here"),
        }
    }
    Ok(field)
}

/// A definition's name without what all have in common.
fn short(name: &str) -> &str {
    [
        "io.k8s.api.",
        "io.k8s.apimachinery.pkg.apis.",
        "io.k8s.apimachinery.pkg.api.",
        "io.k8s.apimachinery.pkg.",
    ]
    .into_iter()
    .find_map(|prefix| name.strip_prefix(prefix))
    .unwrap_or(name)
}
