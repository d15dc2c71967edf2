//! What is wrong with what was declared, as data: where, what, what was expected, what is used instead.

use std::fmt;
use std::sync::Arc;

/// A place in a file, as an editor counts: lines and columns (of characters) begin at 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The file as the caller named it.
    pub file: Arc<str>,
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
}

/// One thing that is wrong. Prints as `FILE:LINE:COL: KEY: what; expected …; using …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it is written.
    pub position: Position,
    /// Whether it makes the declaration unsound.
    pub severity: Severity,
    /// Which sort of fault it is: the reason that an Event or a metric would give.
    pub kind: FaultKind,
    /// The annotation key, field path or overlay key at fault.
    pub key: String,
    /// What was found there.
    pub what: String,
    /// What would have been right.
    pub expected: String,
    /// What is in force instead.
    pub using: String,
}

/// Whether a fault makes the declaration unsound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Unsound: `check` exits 1.
    Fault,
    /// Worth knowing, and sound.
    Note,
}

/// The sorts of faults, a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// A setting's value does not parse or is out of range.
    InvalidAnnotation,
    /// A key that is unknown under a prefix we own.
    UnknownAnnotation,
    /// A field is missing, of the wrong type or out of range: the document is not used.
    InvalidField,
    /// A field that the kind does not have: it is ignored.
    UnknownField,
    /// One of our kinds in a version that is not served: the document is not used.
    UnknownVersion,
    /// The data of an overlay ConfigMap is not what an overlay may be.
    InvalidOverlay,
    /// An overlay that is named and not among the files.
    OverlayMissing,
    /// Two objects of one kind, namespace and name: the first is used.
    DuplicateObject,
    /// Two InferenceModels of one pool claim a model name: the oldest has it.
    ModelNameInUse,
    /// A v1alpha2 pool whose name a v1 pool has: v1 rules.
    ShadowedByV1,
    /// The text is not YAML, or more of it than we read.
    Unparsable,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, key, what, expected, using, .. } = self;
        write!(f, "{position}: {key}: {what}; expected {expected}; using {using}")
    }
}
