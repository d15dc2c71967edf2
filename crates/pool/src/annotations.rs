//! A pool's annotations, each with its position.

use std::collections::BTreeMap;

use crate::fault::Position;

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
    /// `true` or `false`, not quoted.
    Boolean,
    /// Nothing at all, `~` or `null`.
    Null,
    /// A mapping.
    Mapping,
    /// A list.
    List,
}
