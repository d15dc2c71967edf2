//! What is wrong with what was declared, as data: where, what, what was expected, what is used instead.
//!
//! Invariant: a fault prints on one line and shows at most an extract of what it speaks of, whatever was written.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// An extract of a text shows at most this many of its characters.
const EXTRACT_CHARS_MAX: usize = 80;

/// A name longer than this is near to nothing: it bounds the cost of comparing.
const NAME_BYTES_MAX: usize = 256;

/// From this similarity on (1 is the same) a name is near another.
const SIMILARITY_MIN: f64 = 0.6;

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

/// One thing that is wrong. Prints as `FILE:LINE:COL: KEY: what; expected …; using …`; a note says `note: ` before
/// what.
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
    /// A pool that is named and not among the files.
    PoolMissing,
    /// Two objects of one kind, namespace and name: the first is used.
    DuplicateObject,
    /// Two InferenceModels of one pool claim a model name: the oldest has it.
    ModelNameInUse,
    /// A v1alpha2 pool whose name a v1 pool has: v1 rules.
    ShadowedByV1,
    /// The text is not YAML, or more of it than we read.
    Unparsable,
}

impl Position {
    /// A place in `file`; lines and columns begin at 1.
    pub fn new(file: &Arc<str>, line: u32, column: u32) -> Self {
        Self { file: Arc::clone(file), line, column }
    }
}

impl FaultKind {
    /// Whether a fault of this kind leaves out the object that it is in: what was declared is then not all in force.
    #[must_use]
    pub fn leaves_out(self) -> bool {
        matches!(
            self,
            Self::InvalidField
                | Self::UnknownVersion
                | Self::DuplicateObject
                | Self::ModelNameInUse
                | Self::ShadowedByV1
                | Self::Unparsable
        )
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", printable(&self.file), self.line, self.column)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, severity, key, what, expected, using, .. } = self;
        let note = match severity {
            Severity::Fault => "",
            Severity::Note => "note: ",
        };
        let [key, what, expected, using] = [key, what, expected, using].map(|text| printable(text));
        write!(f, "{position}: {key}: {note}{what}; expected {expected}; using {using}")
    }
}

/// `text` in quotes and on one line, cut where it is long.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(EXTRACT_CHARS_MAX) {
        None => format!("{text:?}"),
        Some((cut, _)) => format!("{:?} (the first of {} bytes)", &text[..cut], text.len()),
    }
}

/// `text` with its control characters escaped, so that it stays on its line and moves no terminal.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(escape).collect())
}

/// The one of `known` that a person who wrote `name` most likely meant, if any is near.
pub(crate) fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    let similarity = |candidate: &str| {
        // A part of the name is near too: `lru-capacity` for `prefix-cache-lru-capacity`.
        let part = name.len() >= 4 && candidate.contains(name);
        let similarity = strsim::normalized_damerau_levenshtein(name, candidate);
        if part { similarity.max(SIMILARITY_MIN) } else { similarity }
    };
    known
        .into_iter()
        .map(|candidate| (similarity(candidate), candidate))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_prints_on_one_line_whatever_it_speaks_of() {
        let fault = Fault {
            position: Position::new(&Arc::from("a\nb.yaml"), 3, 7),
            severity: Severity::Fault,
            kind: FaultKind::InvalidAnnotation,
            key: "k\u{1b}[31m".to_owned(),
            what: quoted("two\nlines\0"),
            expected: "one".to_owned(),
            using: "none".to_owned(),
        };
        assert_eq!(
            fault.to_string(),
            r#"a\nb.yaml:3:7: k\u{1b}[31m: "two\nlines\0"; expected one; using none"#
        );
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let text = "é".repeat(81);
        assert_eq!(quoted(&text), format!("\"{}\" (the first of 162 bytes)", "é".repeat(80)));
        assert_eq!(quoted(&text[..160]), format!("\"{}\"", "é".repeat(80)));
    }

    #[test]
    fn nearest_finds_slips_and_parts_but_nothing_far() {
        let known = ["queue-ttl", "queueing", "prefix-cache-lru-capacity", "routing-strategy"];
        for (name, near) in [
            ("queue-tll", Some("queue-ttl")),
            ("queuing", Some("queueing")),
            ("lru-capacity", Some("prefix-cache-lru-capacity")),
            ("strategy", Some("routing-strategy")),
            ("Routing-Strategy", Some("routing-strategy")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), near, "{name}");
        }
        assert_eq!(nearest(&"queue-ttl".repeat(1000), known), None);
    }
}
