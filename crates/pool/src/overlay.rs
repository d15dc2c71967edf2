//! Overlay ConfigMaps: which ConfigMap is one, and whether its values are YAML that an overlay may hold.
//!
//! Only the text is judged here. Merging an overlay over the picker's objects, and which of their fields it may
//! touch, belong to those who know these objects.

use crate::annotations::Shape;
use crate::fault::{Fault, FaultKind, Position, Severity, nearest, quoted};
use crate::fields::{Fields, Reader};
use crate::manifest::{peek_metadata, shape_of};
use crate::yaml::{self, Node, Place, Scalar, Value};

/// The data keys that mean something.
const DATA_KEYS: [&str; 4] = ["deployment", "service", "podDisruptionBudget", "pdb"];

/// Most faults that are told of one overlay.
const FAULTS_MAX: usize = 100;

/// A ConfigMap: an overlay if a pool names it or its keys say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Where the document begins.
    pub position: Position,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its `data`, in the order written.
    pub entries: Vec<OverlayEntry>,
}

/// One key of a ConfigMap's `data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayEntry {
    /// The data key.
    pub key: String,
    /// Where the key begins.
    pub position: Position,
    /// The value: for an overlay YAML in its own right. Empty where it is no scalar.
    pub value: String,
    /// What the value is to the file.
    pub shape: Shape,
    /// Where the value begins; for a literal block its first character that is no line feed.
    pub value_position: Position,
    /// Whether it is a literal block (`|`), whose lines are lines of the file.
    pub literal: bool,
}

/// The ConfigMap at `root`, if it has a name; nothing is told of one that is not sound.
pub(crate) fn read(reader: &Reader, root: &Fields<'_>) -> Option<Overlay> {
    let entries = match root.find("data").map(|data| &data.value) {
        Some(Value::Mapping(entries)) => entries.as_slice(),
        _ => &[],
    };
    let entry = |(key, node): &(yaml::Key, Node)| {
        let (value, shape) = shape_of(node);
        OverlayEntry {
            key: key.name.clone(),
            position: reader.position(key.place),
            value: value.to_owned(),
            shape,
            value_position: reader.position(node.place),
            literal: matches!(node.value, Value::Scalar { literal: true, .. }),
        }
    };
    Some(Overlay {
        position: reader.position(root.place),
        namespace: peek_metadata(root, "namespace").unwrap_or("default").to_owned(),
        name: peek_metadata(root, "name")?.to_owned(),
        entries: entries.iter().map(entry).collect(),
    })
}

impl Overlay {
    /// Its namespace and name.
    pub(crate) fn id(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }

    /// Whether its keys say that it is an overlay.
    pub(crate) fn looks_like_one(&self) -> bool {
        self.entries.iter().any(|entry| DATA_KEYS.contains(&entry.key.as_str()))
    }

    /// Everything that is wrong with its text.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults: Vec<Fault> =
            self.entries.iter().flat_map(OverlayEntry::faults).take(FAULTS_MAX).collect();
        let find = |key: &str| self.entries.iter().find(|entry| entry.key == key);
        if let (Some(_), Some(pdb)) = (find("podDisruptionBudget"), find("pdb")) {
            let what = "podDisruptionBudget, which means the same, is given too";
            faults.push(pdb.fault(&pdb.position, &pdb.key, what.to_owned(), "one of the two"));
        }
        faults
    }
}

impl OverlayEntry {
    fn faults(&self) -> Vec<Fault> {
        if !DATA_KEYS.contains(&self.key.as_str()) {
            let known = DATA_KEYS.join(", ");
            let expected = nearest(&self.key, DATA_KEYS).map_or(format!("one of {known}"), str::to_owned);
            return vec![self.fault(
                &self.position,
                &self.key,
                "there is no such part of a picker".to_owned(),
                &expected,
            )];
        }
        match self.shape {
            Shape::String => {}
            Shape::Null => return vec![self.not_text("it is empty")],
            Shape::Mapping => return vec![self.not_text("found a mapping, not its text")],
            Shape::List => return vec![self.not_text("found a list, not its text")],
            Shape::Number | Shape::Boolean => {
                return vec![self.not_text(&format!("found {}", quoted(&self.value)))];
            }
        }
        let documents = match yaml::read(&self.value) {
            Ok(documents) => documents,
            Err(error) => return vec![self.fault_at(error.place, error.what, "YAML")],
        };
        match documents.as_slice() {
            [document @ Node { value: Value::Mapping(_), .. }] => {
                let mut faults = Vec::new();
                self.refuse_ambiguous(document, &mut faults);
                faults
            }
            [] => vec![self.not_text("it is empty")],
            [document] if document.is_null() => vec![self.not_text("it is empty")],
            [document] => {
                vec![self.fault_at(document.place, format!("found {}", document.describe()), "a mapping")]
            }
            [_, second, ..] => {
                vec![self.fault_at(second.place, "a second document begins".to_owned(), "one document")]
            }
        }
    }

    /// Words that YAML 1.1 and 1.2 read differently: whoever wrote one may have meant either.
    fn refuse_ambiguous(&self, node: &Node, faults: &mut Vec<Fault>) {
        if faults.len() >= FAULTS_MAX {
            return;
        }
        let mut refuse = |text: &str, place: Place| {
            let what = format!("YAML 1.1 and 1.2 read {} differently", quoted(text));
            faults.push(self.fault_at(place, what, "it in quotes"));
        };
        match &node.value {
            Value::Scalar { text, scalar: Scalar::Ambiguous, .. } => refuse(text, node.place),
            Value::Scalar { .. } => {}
            Value::List(items) => items.iter().for_each(|item| self.refuse_ambiguous(item, faults)),
            Value::Mapping(entries) => {
                for (key, _) in entries.iter().filter(|(key, _)| key.scalar == Scalar::Ambiguous) {
                    refuse(&key.name, key.place);
                }
                entries.iter().for_each(|(_, node)| self.refuse_ambiguous(node, faults));
            }
        }
    }

    fn not_text(&self, what: &str) -> Fault {
        self.fault(&self.value_position, &self.key, what.to_owned(), "YAML as a text, such as after `|-`")
    }

    /// A fault at a place within the value; the file's position is exact where the value's lines are the file's.
    #[must_use]
    pub fn fault_at(&self, place: Place, what: String, expected: &str) -> Fault {
        let mut position = self.value_position.clone();
        if self.literal {
            let blank = self.value.bytes().take_while(|&byte| byte == b'\n').count() as u32;
            position.line = position.line.saturating_add(place.line - 1).saturating_sub(blank).max(1);
            position.column = position.column.saturating_add(place.column - 1);
        }
        let key = format!("{}:{}:{}", self.key, place.line, place.column);
        self.fault(&position, &key, what, expected)
    }

    fn fault(&self, position: &Position, key: &str, what: String, expected: &str) -> Fault {
        Fault {
            position: position.clone(),
            severity: Severity::Fault,
            kind: FaultKind::InvalidOverlay,
            key: key.to_owned(),
            what,
            expected: expected.to_owned(),
            using: "the picker as it is, or the default one: no part of this overlay".to_owned(),
        }
    }
}
