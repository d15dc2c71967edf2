//! Reads typed fields out of a tree, and tells each that is not as it should be.
//!
//! A getter gives `Ok(None)` for a field that is absent (or null, which Kubernetes takes for absent) and
//! [`Reported`] for one that is wrong. An object collects all its fields before it gives up on the first that was
//! wrong, so that a person sees every fault at once.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::fault::{Fault, FaultKind, Position, Severity, nearest, quoted};
use crate::names::{is_label_key, is_label_value};
use crate::yaml::{Key, Node, Place, Scalar, Value};

/// Most faults that are told of one file: what comes after is counted as one.
const FAULTS_MAX: usize = 1000;

/// A fault has been told: the object that it is in is left out.
#[derive(Debug)]
pub(crate) struct Reported;

pub(crate) type Read<T> = Result<T, Reported>;

/// Reads one file and collects what is wrong with it.
pub(crate) struct Reader {
    file: Arc<str>,
    /// What is being read, in words: `InferencePool default/qwen`.
    pub(crate) object: String,
    pub(crate) faults: Vec<Fault>,
}

/// The fields of a mapping.
pub(crate) struct Fields<'t> {
    /// Where they stand in the object: `spec.targetPorts[0]`; empty at its root.
    path: String,
    pub(crate) place: Place,
    pub(crate) entries: &'t [(Key, Node)],
}

impl Reader {
    pub(crate) fn new(file: &Arc<str>) -> Self {
        Self { file: Arc::clone(file), object: "the document".to_owned(), faults: Vec::new() }
    }

    pub(crate) fn position(&self, place: Place) -> Position {
        Position::new(&self.file, place.line, place.column)
    }

    /// Tells a fault for which the object is left out.
    pub(crate) fn leave_out(
        &mut self,
        place: Place,
        kind: FaultKind,
        key: &str,
        what: impl Into<String>,
        expected: impl Into<String>,
    ) -> Reported {
        if self.has_room() {
            let using = format!("nothing: {} is left out", self.object);
            self.tell(place, kind, key, what.into(), expected.into(), using);
        }
        Reported
    }

    /// Tells that a field is not as it should be.
    pub(crate) fn invalid(
        &mut self,
        place: Place,
        key: &str,
        what: impl Into<String>,
        expected: impl Into<String>,
    ) -> Reported {
        self.leave_out(place, FaultKind::InvalidField, key, what, expected)
    }

    fn unknown(&mut self, key: &Key, path: &str, known: &[&str]) {
        if !self.has_room() {
            return;
        }
        let expected = match nearest(&key.name, known.iter().copied()) {
            Some(near) => near.to_owned(),
            None => format!("one of {}", known.join(", ")),
        };
        let what = "there is no such field".to_owned();
        self.tell(
            key.place,
            FaultKind::UnknownField,
            path,
            what,
            expected,
            "nothing: it is ignored".to_owned(),
        );
    }

    /// Whether one more fault may be told; the one that may not is told as the last.
    fn has_room(&mut self) -> bool {
        if self.faults.len() + 1 == FAULTS_MAX {
            let place = Place { line: 1, column: 1 };
            let what = format!("it has more than {} faults", FAULTS_MAX - 1);
            let (expected, using) =
                ("fewer".to_owned(), "what is sound; the other faults are not shown".to_owned());
            self.tell(place, FaultKind::InvalidField, "file", what, expected, using);
        }
        self.faults.len() < FAULTS_MAX
    }

    fn tell(
        &mut self,
        place: Place,
        kind: FaultKind,
        key: &str,
        what: String,
        expected: String,
        using: String,
    ) {
        let (position, key) = (self.position(place), key.to_owned());
        self.faults.push(Fault { position, severity: Severity::Fault, kind, key, what, expected, using });
    }
}

impl<'t> Fields<'t> {
    /// The fields of `node`, which stands at `path`. What is not among `known` is told; an empty `known` is anything.
    pub(crate) fn open(reader: &mut Reader, node: &'t Node, path: String, known: &[&str]) -> Read<Self> {
        let Value::Mapping(entries) = &node.value else {
            let key = if path.is_empty() { "document" } else { &path };
            return Err(reader.invalid(node.place, key, format!("found {}", node.describe()), "a mapping"));
        };
        let fields = Self { path, place: node.place, entries };
        if !known.is_empty() {
            for (key, _) in entries.iter().filter(|(key, _)| !known.contains(&key.name.as_str())) {
                reader.unknown(key, &fields.path_of(&key.name), known);
            }
        }
        Ok(fields)
    }

    /// The field `name`, unless it is null.
    pub(crate) fn find(&self, name: &str) -> Option<&'t Node> {
        let (_, node) = self.entries.iter().find(|(key, _)| key.name == name)?;
        (!node.is_null()).then_some(node)
    }

    pub(crate) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Tells that the field `name` has the wrong value.
    pub(crate) fn invalid(
        &self,
        reader: &mut Reader,
        name: &str,
        what: impl Into<String>,
        expected: impl Into<String>,
    ) -> Reported {
        let place = self.find(name).map_or(self.place, |node| node.place);
        reader.invalid(place, &self.path_of(name), what, expected)
    }

    /// The value of a field that must be there.
    pub(crate) fn required<T>(&self, reader: &mut Reader, name: &str, value: Read<Option<T>>) -> Read<T> {
        value?.ok_or_else(|| self.invalid(reader, name, "it is missing", "it to be given"))
    }

    pub(crate) fn child(&self, reader: &mut Reader, name: &str, known: &[&str]) -> Read<Option<Fields<'t>>> {
        self.find(name).map(|node| Fields::open(reader, node, self.path_of(name), known)).transpose()
    }

    pub(crate) fn text(&self, reader: &mut Reader, name: &str) -> Read<Option<&'t str>> {
        self.find(name).map(|node| text(reader, node, &self.path_of(name))).transpose()
    }

    /// A text that `is_sound` accepts, which `expected` describes.
    pub(crate) fn text_that(
        &self,
        reader: &mut Reader,
        name: &str,
        is_sound: impl Fn(&str) -> bool,
        expected: &str,
    ) -> Read<Option<&'t str>> {
        match self.text(reader, name)? {
            Some(text) if !is_sound(text) => {
                Err(self.invalid(reader, name, format!("found {}", quoted(text)), expected))
            }
            text => Ok(text),
        }
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(
        &self,
        reader: &mut Reader,
        name: &str,
        words: &[(&str, T)],
    ) -> Read<Option<T>> {
        let Some(text) = self.text(reader, name)? else {
            return Ok(None);
        };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                Err(self.invalid(reader, name, format!("found {}", quoted(text)), known.join(" or ")))
            }
        }
    }

    /// A whole number within `range`, which lies within `T`.
    pub(crate) fn whole<T: TryFrom<i64>>(
        &self,
        reader: &mut Reader,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Read<Option<T>> {
        let Some(node) = self.find(name) else {
            return Ok(None);
        };
        let number = match &node.value {
            Value::Scalar { text, scalar: Scalar::Number, .. } => text.parse().ok(),
            _ => None,
        };
        let value =
            number.filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
        value.map(Some).ok_or_else(|| {
            let expected = format!("a whole number from {} to {}", range.start(), range.end());
            self.invalid(reader, name, format!("found {}", node.describe()), expected)
        })
    }

    pub(crate) fn boolean(&self, reader: &mut Reader, name: &str) -> Read<Option<bool>> {
        let Some(node) = self.find(name) else {
            return Ok(None);
        };
        match &node.value {
            Value::Scalar { text, scalar: Scalar::Boolean, .. } => {
                Ok(Some(text.eq_ignore_ascii_case("true")))
            }
            _ => Err(self.invalid(reader, name, format!("found {}", node.describe()), "true or false")),
        }
    }

    /// The items of a list with their paths; empty where the field is absent.
    pub(crate) fn list(&self, reader: &mut Reader, name: &str) -> Read<Vec<(String, &'t Node)>> {
        let Some(node) = self.find(name) else {
            return Ok(Vec::new());
        };
        let Value::List(items) = &node.value else {
            return Err(self.invalid(reader, name, format!("found {}", node.describe()), "a list"));
        };
        let path = self.path_of(name);
        Ok(items.iter().enumerate().map(|(index, item)| (format!("{path}[{index}]"), item)).collect())
    }

    /// A mapping of label keys to label values.
    pub(crate) fn labels(&self, reader: &mut Reader, name: &str) -> Read<Option<BTreeMap<String, String>>> {
        let Some(fields) = self.child(reader, name, &[])? else {
            return Ok(None);
        };
        let labels: Vec<Read<_>> =
            fields.entries.iter().map(|(key, node)| fields.label(reader, key, node)).collect();
        labels.into_iter().collect::<Read<_>>().map(Some)
    }

    fn label(&self, reader: &mut Reader, key: &Key, node: &Node) -> Read<(String, String)> {
        let path = self.path_of(&key.name);
        if !is_label_key(&key.name) {
            return Err(reader.invalid(
                key.place,
                &path,
                "it cannot be a label's key",
                "a key that Kubernetes allows",
            ));
        }
        let value = text(reader, node, &path)?;
        if !is_label_value(value) {
            let expected =
                "a label's value: at most 63 letters, digits, -, _ and ., a letter or digit at each end";
            return Err(reader.invalid(node.place, &path, format!("found {}", quoted(value)), expected));
        }
        Ok((key.name.clone(), value.to_owned()))
    }
}

/// The items that were read, once none of them was wrong.
pub(crate) fn all<T>(items: impl IntoIterator<Item = Read<T>>) -> Read<Vec<T>> {
    // Each is read before the first that was wrong ends it.
    let items: Vec<Read<T>> = items.into_iter().collect();
    items.into_iter().collect()
}

/// A string.
pub(crate) fn text<'t>(reader: &mut Reader, node: &'t Node, path: &str) -> Read<&'t str> {
    match &node.value {
        Value::Scalar { text, scalar: Scalar::String, .. } => Ok(text),
        Value::Scalar { scalar: Scalar::Null, .. } | Value::Mapping(_) | Value::List(_) => {
            Err(reader.invalid(node.place, path, format!("found {}", node.describe()), "a string"))
        }
        Value::Scalar { .. } => {
            Err(reader.invalid(node.place, path, format!("found {}", node.describe()), "a string: quote it"))
        }
    }
}
