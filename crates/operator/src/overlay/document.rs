//! An overlay's text as the object that it is a part of: every field known, every value of its type, every place kept.

use std::collections::HashSet;

use pool::yaml::{Node, Place, Scalar, Value as Yaml};
use serde_json::{Map, Number, Value};

use super::directive;
use super::schema::{self, Fields, Form};

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) place: Place,
    /// The field, `spec.replicas`.
    pub(super) field: String,
    pub(super) what: String,
    pub(super) expected: String,
}

/// The document as JSON, if it is a part of the object of that name.
///
/// # Errors
/// Every field that is not known and every value of a wrong type.
pub(super) fn read(document: &Node, object: &str) -> Result<Map<String, Value>, Vec<Wrong>> {
    let mut reader = Reader { wrong: Vec::new(), field: Vec::new() };
    let read = reader.value(document, &Form::Object(object.to_owned()));
    match read {
        Value::Object(read) if reader.wrong.is_empty() => Ok(read),
        _ => Err(reader.wrong),
    }
}

struct Reader {
    wrong: Vec<Wrong>,
    field: Vec<String>,
}

impl Reader {
    fn value(&mut self, node: &Node, form: &Form) -> Value {
        if node.is_null() {
            return Value::Null;
        }
        match (form, &node.value) {
            (Form::Object(name), Yaml::Mapping(entries)) => match schema::fields(name) {
                Some(fields) => self.object(entries, fields),
                None => Value::Null,
            },
            (Form::Map(of), Yaml::Mapping(entries)) => self.map(entries, |_| Some(of)),
            (Form::List(of), Yaml::List(items)) => {
                Value::Array(items.iter().map(|item| self.value(item, of)).collect())
            }
            (Form::Any, _) => any(node),
            (form, Yaml::Scalar { text, scalar, .. }) => match scalar_of(text, *scalar, form) {
                Some(value) => value,
                None => self.unfit(node, form),
            },
            _ => self.unfit(node, form),
        }
    }

    fn object(&mut self, entries: &[(pool::yaml::Key, Node)], fields: &Fields) -> Value {
        for (key, node) in entries {
            if let Some(merge) = fields.get(&key.name).and_then(|field| field.merge.as_deref()) {
                self.field.push(key.name.clone());
                self.once_each(node, merge);
                self.field.pop();
            }
        }
        self.map(entries, |name| fields.get(name).map(|field| &field.form))
    }

    /// Of a list that is merged by a key each is there once: the API server cannot read another.
    fn once_each(&mut self, list: &Node, merge: &str) {
        let Yaml::List(items) = &list.value else { return };
        let mut seen = HashSet::new();
        for item in items {
            let Yaml::Mapping(fields) = &item.value else { continue };
            let Some((_, key)) = fields.iter().find(|(key, _)| key.name == merge) else { continue };
            if let Yaml::Scalar { text, .. } = &key.value
                && !seen.insert(text)
            {
                self.say(key.place, format!("a second one with {merge} {text}"), "each once");
            }
        }
    }

    fn map<'f>(
        &mut self,
        entries: &[(pool::yaml::Key, Node)],
        form_of: impl Fn(&str) -> Option<&'f Form>,
    ) -> Value {
        let strings = Form::List(Box::new(Form::String));
        let mut map = Map::new();
        for (key, node) in entries {
            self.field.push(key.name.clone());
            let value = match directive::of(&key.name) {
                Some(directive::Key::Patch) => Some(self.value(node, &Form::String)),
                Some(directive::Key::RetainKeys) => Some(self.value(node, &strings)),
                Some(directive::Key::SetElementOrder(_) | directive::Key::DeleteFromPrimitiveList(_)) => {
                    Some(any(node))
                }
                None => form_of(&key.name).map(|form| self.value(node, form)),
            };
            match value {
                Some(value) => drop(map.insert(key.name.clone(), value)),
                None => {
                    self.say(key.place, "there is no such field".to_owned(), "a field that the object has");
                }
            }
            self.field.pop();
        }
        Value::Object(map)
    }

    fn unfit(&mut self, node: &Node, form: &Form) -> Value {
        self.say(node.place, format!("found {}", node.describe()), in_words(form));
        Value::Null
    }

    fn say(&mut self, place: Place, what: String, expected: &str) {
        self.wrong.push(Wrong { place, field: self.field.join("."), what, expected: expected.to_owned() });
    }
}

/// The scalar, if it is one of that form.
fn scalar_of(text: &str, scalar: Scalar, form: &Form) -> Option<Value> {
    let string = || Value::String(text.to_owned());
    match (form, scalar) {
        (Form::String | Form::IntOrString, Scalar::String) => Some(string()),
        (Form::Integer | Form::IntOrString, Scalar::Number) => number(text).filter(is_i32).map(Value::Number),
        (Form::Quantity, Scalar::String) if is_quantity(text) => Some(string()),
        (Form::Quantity, Scalar::Number) => number(text).map(Value::Number),
        (Form::Boolean, Scalar::Boolean) => Some(Value::Bool(text.eq_ignore_ascii_case("true"))),
        _ => None,
    }
}

/// Kubernetes wraps what is larger, and says nothing.
fn is_i32(number: &Number) -> bool {
    number.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
}

/// Whether Kubernetes reads it: a number, and a unit or an exponent (`resource.ParseQuantity`).
fn is_quantity(text: &str) -> bool {
    const UNITS: [&str; 16] =
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = text.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let is_number = number.contains(|char: char| char.is_ascii_digit()) && number.matches('.').count() <= 1;
    let exponent = unit.strip_prefix(['e', 'E']).is_some_and(|exponent| exponent.parse::<i16>().is_ok());
    is_number && (UNITS.contains(&unit) || exponent)
}

/// The number that a scalar is.
pub(super) fn number(text: &str) -> Option<Number> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(hexadecimal) = text.strip_prefix("0x") {
        return i64::from_str_radix(hexadecimal, 16).ok().map(Number::from);
    }
    text.parse::<i64>().map(Number::from).ok().or_else(|| Number::from_f64(text.parse().ok()?))
}

fn any(node: &Node) -> Value {
    match &node.value {
        Yaml::Mapping(entries) => {
            Value::Object(entries.iter().map(|(key, node)| (key.name.clone(), any(node))).collect())
        }
        Yaml::List(items) => Value::Array(items.iter().map(any).collect()),
        Yaml::Scalar { text, scalar, .. } => match scalar {
            Scalar::Null => Value::Null,
            Scalar::Boolean => Value::Bool(text.eq_ignore_ascii_case("true")),
            Scalar::Number => number(text).map_or_else(|| Value::String(text.clone()), Value::Number),
            Scalar::String | Scalar::Ambiguous => Value::String(text.clone()),
        },
    }
}

fn in_words(form: &Form) -> &'static str {
    match form {
        Form::String => "a string, in quotes where it looks like something else",
        Form::Integer => "a whole number of 32 bits",
        Form::Boolean => "true or false",
        Form::Quantity => "a quantity such as 500m or 4Gi",
        Form::IntOrString => "a whole number or a string",
        Form::Any => "a value",
        Form::Object(_) | Form::Map(_) => "a mapping",
        Form::List(_) => "a list",
    }
}
