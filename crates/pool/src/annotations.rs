//! A pool's annotations, each with its position, and what they resolve to.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::fault::{Fault, FaultKind, Position, Severity, nearest, quoted};
use crate::policy::{Origin, PoolPolicy, Resolved, Setting};
use crate::settings::{Definition, OWNED_PREFIXES, SETTINGS};

/// The domain of InferencePool v1 itself, which differs from that of our settings by two letters.
const POOL_PREFIX: &str = "inference.networking.k8s.io/";

/// The annotations of one object by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations(BTreeMap<String, Annotation>);

/// One annotation as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Annotation {
    /// The text of the value; empty where it is no scalar.
    pub value: String,
    /// What YAML takes the value for.
    pub shape: Shape,
    /// Where the key begins.
    pub key_position: Position,
    /// Where the value begins.
    pub value_position: Position,
}

/// What YAML takes an annotation's value for. Kubernetes accepts strings alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// A string.
    String,
    /// A number that is not quoted.
    Number,
    /// A boolean that is not quoted: `true`, or `on`, which is one to YAML 1.1.
    Boolean,
    /// Nothing at all, `~` or `null`.
    Null,
    /// A mapping.
    Mapping,
    /// A list.
    List,
}

impl Annotations {
    /// Annotations that stand in no file, as an API server hands them out: every position is the first of `source`.
    pub fn from_pairs<K, V>(source: &Arc<str>, pairs: impl IntoIterator<Item = (K, V)>) -> Self
    where
        K: Into<String>,
        V: Into<String>,
    {
        let position = Position::new(source, 1, 1);
        let annotation = |value: V| Annotation {
            value: value.into(),
            shape: Shape::String,
            key_position: position.clone(),
            value_position: position.clone(),
        };
        pairs.into_iter().map(|(key, value)| (key.into(), annotation(value))).collect()
    }

    /// The annotation of that key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Annotation> {
        self.0.get(key)
    }

    /// All of them, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Annotation)> {
        self.0.iter().map(|(key, annotation)| (key.as_str(), annotation))
    }
}

impl FromIterator<(String, Annotation)> for Annotations {
    fn from_iter<I: IntoIterator<Item = (String, Annotation)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl PoolPolicy {
    /// What `annotations` put in force, setting by setting. A bad value leaves that one setting as it was in `last`
    /// (without `last`: at its default) and is a fault; a setting that is not annotated has its default.
    #[must_use]
    pub fn resolve(annotations: &Annotations, last: Option<&PoolPolicy>) -> Resolved {
        let mut policy = PoolPolicy::default();
        let mut faults = Vec::new();
        let mut settings = Vec::with_capacity(SETTINGS.len());
        for definition in SETTINGS {
            let origin = match annotations.get(definition.key) {
                None => Origin::Default,
                Some(annotation) => apply(definition, annotation, last, &mut policy, &mut faults),
            };
            settings.push(Setting { key: definition.key, value: (definition.show)(&policy), origin });
        }
        let others = annotations.iter().filter(|(key, _)| SETTINGS.iter().all(|known| known.key != *key));
        faults.extend(others.filter_map(|(key, annotation)| judge_other(key, annotation)));
        faults.sort_by(|one, other| one.position.cmp(&other.position));
        Resolved { policy, settings, faults }
    }
}

/// Puts one annotation in force, or what stands in for it.
fn apply(
    definition: &Definition,
    annotation: &Annotation,
    last: Option<&PoolPolicy>,
    policy: &mut PoolPolicy,
    faults: &mut Vec<Fault>,
) -> Origin {
    let mut fault = |what: String, expected: &str, using: String| {
        faults.push(Fault {
            position: annotation.value_position.clone(),
            severity: Severity::Fault,
            kind: FaultKind::InvalidAnnotation,
            key: definition.key.to_owned(),
            what,
            expected: expected.to_owned(),
            using,
        });
    };
    let read = match annotation.shape {
        Shape::Mapping | Shape::List | Shape::Null => Err(annotation.describe()),
        Shape::String | Shape::Number | Shape::Boolean => match annotation.value.trim() {
            "" => Err("the value is empty".to_owned()),
            text => (definition.read)(text, policy),
        },
    };
    match (read, last) {
        (Ok(()), _) => {
            if annotation.shape != Shape::String {
                fault(annotation.describe(), "a string: quote it", (definition.show)(policy));
            }
            Origin::Annotation
        }
        (Err(what), Some(last)) => {
            (definition.keep)(last, policy);
            fault(what, definition.expected, format!("{} (last valid)", definition.in_words(policy)));
            Origin::LastValid
        }
        (Err(what), None) => {
            fault(what, definition.expected, format!("{} (default)", definition.in_words(policy)));
            Origin::Default
        }
    }
}

/// A key that is no setting of ours: a fault under our prefixes, and where Kubernetes would not take the value.
fn judge_other(key: &str, annotation: &Annotation) -> Option<Fault> {
    let fault = |position: &Position, kind, what, expected| {
        let using = "nothing: it is ignored".to_owned();
        let (position, key) = (position.clone(), key.to_owned());
        Fault { position, severity: Severity::Fault, kind, key, what, expected, using }
    };
    let named = OWNED_PREFIXES.iter().find_map(|prefix| key.strip_prefix(prefix));
    // Who writes a setting below the domain of the pool itself means ours.
    let is_known = |name: &&str| SETTINGS.iter().any(|known| known.key.ends_with(&format!("/{name}")));
    let misplaced = || key.strip_prefix(POOL_PREFIX).filter(is_known);
    if let Some(name) = named.or_else(misplaced) {
        let what = "there is no such setting".to_owned();
        return Some(fault(&annotation.key_position, FaultKind::UnknownAnnotation, what, near_keys(name)));
    }
    if annotation.shape == Shape::String {
        return None;
    }
    let expected = "a string: quote it".to_owned();
    Some(fault(&annotation.value_position, FaultKind::InvalidAnnotation, annotation.describe(), expected))
}

/// The known key that `name` was most likely meant for, or all of them.
fn near_keys(name: &str) -> String {
    let known = || SETTINGS.iter().filter_map(|known| Some((known.key, known.key.split_once('/')?.1)));
    match nearest(name, known().map(|(_, known)| known)) {
        Some(near) => known().filter(|(_, name)| *name == near).map(|(key, _)| key).collect(),
        None => format!("one of {}", known().map(|(key, _)| key).collect::<Vec<_>>().join(", ")),
    }
}

impl Annotation {
    fn describe(&self) -> String {
        match self.shape {
            Shape::String => quoted(&self.value),
            Shape::Number => format!("the number {} is not a string", quoted(&self.value)),
            Shape::Boolean => format!("the boolean {} is not a string", quoted(&self.value)),
            Shape::Null => "the value is empty".to_owned(),
            Shape::Mapping => "a mapping is not a string".to_owned(),
            Shape::List => "a list is not a string".to_owned(),
        }
    }
}
