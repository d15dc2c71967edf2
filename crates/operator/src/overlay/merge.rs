//! Kubernetes' strategic merge of a part of an object over the object. The oracle is
//! `kubectl patch --type=strategic --local --dry-run=client`.
//!
//! Maps merge by key, lists with a merge key by it, sets of scalars as sets; other lists are replaced; `null` removes. A list that is
//! merged keeps its order where the patch has none, and new items go first.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::directive::{self, Key, PATCH, RETAIN_KEYS};
use super::schema::{self, Field, Fields, Form};

type Object = Map<String, Value>;

/// A patch that cannot be merged: the field, from the innermost outwards, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unmergeable {
    pub(super) field: Vec<String>,
    pub(super) what: String,
}

type Merged<T> = Result<T, Unmergeable>;

/// What the keys of a map are.
#[derive(Clone, Copy)]
enum Keys<'s> {
    /// Fields of an object.
    Fields(&'s Fields),
    /// The writer's.
    Own,
}

impl<'s> Keys<'s> {
    fn of(form: &'s Form) -> Self {
        match form {
            Form::Object(name) => schema::fields(name).map_or(Keys::Own, Keys::Fields),
            _ => Keys::Own,
        }
    }

    fn field(self, name: &str) -> Option<&'s Field> {
        match self {
            Keys::Fields(fields) => fields.get(name),
            Keys::Own => None,
        }
    }
}

/// The patch over the original, both parts of the object of that name.
///
/// # Errors
/// A directive that is none, an item without its merge key, fields that `$retainKeys` does not list.
pub(super) fn merge(original: Object, patch: Object, object: &str) -> Merged<Object> {
    maps(original, patch, Keys::of(&Form::Object(object.to_owned())))
}

fn maps(mut original: Object, mut patch: Object, keys: Keys<'_>) -> Merged<Object> {
    match patch.remove(PATCH) {
        None => {}
        Some(Value::String(word)) if word == "replace" => {
            let mut whole = Value::Object(patch);
            drop_nulls(&mut whole);
            return Ok(into_object(whole));
        }
        Some(Value::String(word)) if word == "delete" => return Ok(Object::new()),
        Some(other) => return Err(unmergeable(format!("$patch is {other}: expected replace or delete"))),
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(&mut original, &mut patch, keys)?;
    for (key, value) in patch {
        let deletes = match directive::of(&key) {
            Some(Key::DeleteFromPrimitiveList(list)) => Some(list.to_owned()),
            _ => None,
        };
        if let Some(list) = deletes {
            delete_from(&mut original, &list, &value);
        } else {
            entry(&mut original, key, value, keys)?;
        }
    }
    Ok(original)
}

/// Takes one entry of a patch over.
fn entry(original: &mut Object, key: String, patch: Value, keys: Keys<'_>) -> Merged<()> {
    let field = keys.field(&key);
    let within = |merged: Merged<Value>| {
        merged.map_err(|mut error| {
            error.field.push(key.clone());
            error
        })
    };
    let merged = match (original.get_mut(&key).map(Value::take), patch) {
        (_, Value::Null) => {
            original.shift_remove(&key);
            return Ok(());
        }
        (Some(Value::Object(before)), Value::Object(patch)) => {
            if field.is_some_and(|field| field.replace) {
                Value::Object(patch)
            } else {
                let keys = field.map_or(Keys::Own, |field| Keys::of(&field.form));
                within(maps(before, patch, keys).map(Value::Object))?
            }
        }
        (Some(Value::Array(before)), Value::Array(patch)) => match field {
            Some(Field { merge: Some(by), form: Form::List(of), .. }) => {
                within(lists(before, patch, by, Keys::of(of)).map(Value::Array))?
            }
            _ => Value::Array(patch),
        },
        (_, patch) => match without_directives(patch) {
            Some(mut new) => {
                drop_nulls(&mut new);
                new
            }
            None => {
                original.shift_remove(&key);
                return Ok(());
            }
        },
    };
    original.insert(key, merged);
    Ok(())
}

/// Merges two lists: maps by the value of their key `by`, scalars as a set where `by` is empty.
fn lists(mut before: Vec<Value>, patch: Vec<Value>, by: &str, keys: Keys<'_>) -> Merged<Vec<Value>> {
    if by.is_empty() {
        let mut all = before.clone();
        for item in &patch {
            if !all.contains(item) {
                all.push(item.clone());
            }
        }
        return Ok(ordered(all, &patch, &before, by));
    }
    let mut changes = Vec::with_capacity(patch.len());
    let mut replaced = false;
    for item in patch {
        let Value::Object(item) = item else {
            return Err(unmergeable(format!("an item of a list that is merged by `{by}` is no mapping")));
        };
        match item.get(PATCH) {
            None => changes.push(item),
            Some(Value::String(word)) if word == "delete" => {
                let key = item.get(by).ok_or_else(|| without_key(by))?;
                before.retain(|there| there.get(by) != Some(key));
            }
            Some(Value::String(word)) if word == "replace" => replaced = true,
            Some(other) => return Err(unmergeable(format!("$patch is {other}: expected replace or delete"))),
        }
    }
    if replaced {
        before.clear();
    }
    let order: Vec<Value> = changes.iter().cloned().map(Value::Object).collect();
    let mut all = before.clone();
    for item in changes {
        let key = item.get(by).ok_or_else(|| without_key(by))?;
        match all.iter_mut().find(|there| there.get(by) == Some(key)) {
            Some(there) => *there = Value::Object(maps(into_object(there.take()), item, keys)?),
            None => all.extend(without_directives(Value::Object(item)).map(|mut new| {
                drop_nulls(&mut new);
                new
            })),
        }
    }
    Ok(ordered(all, &order, &before, by))
}

/// The items in the patch's order among themselves; the others keep their places as far as both orders allow.
fn ordered(items: Vec<Value>, patch: &[Value], before: &[Value], by: &str) -> Vec<Value> {
    let place = |order: &[Value], item: &Value| order.iter().position(|other| is_same(other, item, by));
    let (mut named, mut others): (Vec<_>, Vec<_>) =
        items.into_iter().partition(|item| place(patch, item).is_some());
    named.sort_by_key(|item| place(patch, item));
    others.sort_by_key(|item| place(before, item));
    let mut merged = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(ours), Some(other)) = (named.peek(), others.peek()) {
        let other_first = match (place(before, other), place(before, ours)) {
            (Some(other), Some(ours)) => other.cmp(&ours) == Ordering::Less,
            _ => false,
        };
        merged.extend(if other_first { others.next() } else { named.next() });
    }
    merged.extend(named);
    merged.extend(others);
    merged
}

/// `$retainKeys`: every field that it does not name goes.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Merged<()> {
    let Some(kept) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(kept) = kept else { return Err(unmergeable("$retainKeys is no list".to_owned())) };
    let is_kept = |key: &str| kept.iter().any(|kept| kept == key);
    let stray = patch.iter().find(|(key, value)| {
        !value.is_null()
            && !is_kept(key)
            && !matches!(directive::of(key), Some(Key::SetElementOrder(_) | Key::DeleteFromPrimitiveList(_)))
    });
    if let Some((key, _)) = stray {
        return Err(unmergeable(format!("`{key}` is set, and $retainKeys does not list it")));
    }
    original.retain(|key, _| is_kept(key));
    Ok(())
}

/// `$setElementOrder/LIST`: merges that list and puts it in this order.
fn set_element_orders(original: &mut Object, patch: &mut Object, keys: Keys<'_>) -> Merged<()> {
    let wanted: Vec<String> = patch
        .keys()
        .filter(|key| matches!(directive::of(key), Some(Key::SetElementOrder(_))))
        .cloned()
        .collect();
    for key in wanted {
        let order = patch.shift_remove(&key);
        let Some(Key::SetElementOrder(list)) = directive::of(&key) else { continue };
        let Some(Value::Array(order)) = order else { return Err(unmergeable(format!("{key} is no list"))) };
        let by = keys.field(list).and_then(|field| field.merge.as_deref()).unwrap_or_default();
        let (before, changes) = (original.get(list).cloned(), patch.shift_remove(list));
        if let Some(changes) = changes {
            in_that_order(&changes, &order, by, &key)?;
            entry(original, list.to_owned(), changes, keys)?;
        }
        let before = match before {
            Some(Value::Array(before)) => before,
            _ => Vec::new(),
        };
        if let Some(Value::Array(items)) = original.get_mut(list) {
            *items = ordered(std::mem::take(items), &order, &before, by);
        }
    }
    Ok(())
}

/// The items that a list brings have to come as its `$setElementOrder` says.
fn in_that_order(changes: &Value, order: &[Value], by: &str, key: &str) -> Merged<()> {
    let Value::Array(changes) = changes else { return Ok(()) };
    let mut rest = order.iter();
    let is_there = |item: &&Value| item.get(PATCH).is_none();
    for item in changes.iter().filter(is_there) {
        if !rest.any(|other| is_same(other, item, by)) {
            return Err(unmergeable(format!("the list's items are not in the order of {key}")));
        }
    }
    Ok(())
}

/// Whether two items of a list stand for one.
fn is_same(one: &Value, other: &Value, by: &str) -> bool {
    if by.is_empty() { one == other } else { one.get(by) == other.get(by) }
}

fn delete_from(original: &mut Object, list: &str, gone: &Value) {
    if let (Some(Value::Array(items)), Value::Array(gone)) = (original.get_mut(list), gone) {
        items.retain(|item| !gone.contains(item));
    }
}

/// What is new to the original, without what only speaks of merging; nothing where that is all it does.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(key, _)| directive::of(key).is_none());
            Some(Value::Object(
                kept.filter_map(|(key, value)| Some((key, without_directives(value)?))).collect(),
            ))
        }
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(without_directives).collect())),
        scalar => Some(scalar),
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn into_object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        _ => Object::new(),
    }
}

fn without_key(by: &str) -> Unmergeable {
    unmergeable(format!("an item has no `{by}`, by which this list is merged"))
}

fn unmergeable(what: String) -> Unmergeable {
    Unmergeable { field: Vec::new(), what }
}
