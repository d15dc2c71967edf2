//! What Kubernetes says of an object's fields: what each may hold, and how it is merged.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde::Deserialize;

/// Written by `cargo xtask schema` from Kubernetes' OpenAPI document.
const TEXT: &str = include_str!("schema.json");

static SCHEMA: LazyLock<HashMap<String, Fields>> =
    LazyLock::new(|| serde_json::from_str(TEXT).unwrap_or_default());

/// The fields of an object, by name.
pub(super) type Fields = HashMap<String, Field>;

/// One field.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Field {
    pub(super) form: Form,
    /// A list is merged: by the value of this key in its items, or, where it is empty, as a set of scalars.
    pub(super) merge: Option<String>,
    /// A map is replaced and not merged.
    #[serde(default)]
    pub(super) replace: bool,
}

/// What may stand in a place.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Form {
    String,
    Integer,
    Boolean,
    /// A number with a unit, as a text or a number.
    Quantity,
    IntOrString,
    Any,
    /// An object of that name.
    Object(String),
    /// Keys of the writer's, and such values.
    Map(Box<Form>),
    List(Box<Form>),
}

/// The fields of the object of that name.
pub(super) fn fields(name: &str) -> Option<&'static Fields> {
    SCHEMA.get(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_that_is_named_is_there() {
        fn follow(form: &Form) {
            match form {
                Form::Object(name) => assert!(fields(name).is_some(), "{name}"),
                Form::Map(of) | Form::List(of) => follow(of),
                _ => {}
            }
        }
        assert!(SCHEMA.len() > 100);
        SCHEMA.values().flat_map(HashMap::values).for_each(|field| follow(&field.form));
    }
}
