//! Documents as libyaml reads them (the parser that Kubernetes' own descends from), or as `serde_json` does.

use std::collections::HashMap;
use std::panic;

use libyaml_safer::{Event, EventData, Parser, ScalarStyle};

use crate::json::{Spanned, Value as Json};

/// Values in one text beyond which the oracle does not look: aliases multiply.
const NODES_MAX: usize = 50_000;
const DEPTH_MAX: usize = 60;

/// A value and where it begins, from 1.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Unknown in JSON, and with an anchor: to libyaml the value begins there, to others behind it.
    place: Option<(u32, u32)>,
    pub(crate) value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Scalar { text: String, kind: Scalar },
    List(Vec<Node>),
    Mapping(Vec<(Node, Node)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scalar {
    /// Quoted or a block, or a plain word that is nothing else to any version of YAML.
    String,
    Null,
    /// What it is depends on whom one asks.
    Unsure,
}

impl Node {
    pub(crate) fn find(&self, name: &str) -> Option<&Node> {
        let Value::Mapping(entries) = &self.value else { return None };
        let named = |key: &Node| matches!(&key.value, Value::Scalar { text, .. } if text == name);
        entries.iter().find(|(key, _)| named(key)).map(|(_, value)| value)
    }

    /// Whether the value may begin there.
    pub(crate) fn may_be_at(&self, line: u32, column: u32) -> bool {
        self.place.is_none_or(|place| place == (line, column))
    }

    pub(crate) fn string(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, kind: Scalar::String } => Some(text),
            _ => None,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self.value, Value::Scalar { kind: Scalar::Null, .. })
    }

    pub(crate) fn is_unsure(&self) -> bool {
        matches!(self.value, Value::Scalar { kind: Scalar::Unsure, .. })
    }
}

/// The documents that are not empty. None for what is no YAML to libyaml, and for what we read differently on purpose:
/// tags, merge keys, keys that are no scalars or come twice, more values than the oracle looks at, characters that end
/// a line in YAML 1.1 alone, a `?` before a word in braces or brackets (1.1: what follows is a key; 1.2: a part of it).
///
/// The oracle panics where a text ends in the middle of things; then it has no say, and the fuzzer does not hear of it.
pub(crate) fn read(text: &str) -> Option<Vec<Node>> {
    if text.contains(['\u{85}', '\u{2028}', '\u{2029}']) || has_question_mark_at_word(text) {
        return None;
    }
    let fuzzers = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let documents = panic::catch_unwind(|| read_documents(text));
    panic::set_hook(fuzzers);
    documents.ok().flatten()
}

/// Whether a `?` begins a word in what may be braces or brackets.
fn has_question_mark_at_word(text: &str) -> bool {
    let mut before = '\n';
    text.contains(['{', '['])
        && text.chars().zip(text.chars().skip(1)).any(|(char, next)| {
            let begins = before.is_whitespace() || matches!(before, '{' | '[' | ',');
            before = char;
            char == '?' && begins && !next.is_whitespace()
        })
}

fn read_documents(text: &str) -> Option<Vec<Node>> {
    let mut bytes = text.as_bytes();
    let mut parser = Parser::new();
    parser.set_input_string(&mut bytes);
    let mut builder = Builder::default();
    loop {
        let event = parser.parse().ok()?;
        if event.data == EventData::StreamEnd {
            break;
        }
        builder.take(event)?;
    }
    builder.documents.retain(|document| !document.is_null());
    Some(builder.documents)
}

/// JSON as a document; places are not known.
pub(crate) fn of_json(tree: &Spanned) -> Option<Node> {
    let scalar = |text: &str, kind| Value::Scalar { text: text.to_owned(), kind };
    let value = match &tree.value {
        Json::Null => scalar("null", Scalar::Null),
        Json::Bool(_) => scalar("", Scalar::Unsure),
        Json::Number(number) => scalar(number, Scalar::Unsure),
        Json::String(text) => scalar(text, Scalar::String),
        Json::Array(elements) => Value::List(elements.iter().map(of_json).collect::<Option<_>>()?),
        Json::Object(fields) => {
            let mut entries: Vec<(Node, Node)> = Vec::new();
            for field in fields {
                let key = Node { place: None, value: scalar(&field.key, Scalar::String) };
                entries.push((key, of_json(&field.value)?));
            }
            Value::Mapping(unique(entries)?)
        }
    };
    Some(Node { place: None, value })
}

#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<(Open, Option<String>)>,
    anchors: HashMap<String, Node>,
    nodes: usize,
}

struct Open {
    place: Option<(u32, u32)>,
    is_mapping: bool,
    children: Vec<Node>,
}

impl Builder {
    fn take(&mut self, event: Event) -> Option<()> {
        let place = Some((event.start_mark.line as u32 + 1, event.start_mark.column as u32 + 1));
        let mut open = |is_mapping, anchor, tag: Option<String>| {
            self.open.push((Open { place, is_mapping, children: Vec::new() }, anchor));
            (tag.is_none() && self.open.len() <= DEPTH_MAX).then_some(())
        };
        match event.data {
            EventData::SequenceStart { anchor, tag, .. } => open(false, anchor, tag),
            EventData::MappingStart { anchor, tag, .. } => open(true, anchor, tag),
            EventData::SequenceEnd | EventData::MappingEnd => {
                let (Open { place, is_mapping, children }, anchor) = self.open.pop()?;
                let value = if is_mapping { mapping(children)? } else { Value::List(children) };
                self.complete(Node { place, value }, anchor)
            }
            EventData::Scalar { anchor, tag, value, style, .. } => {
                let kind = if style == ScalarStyle::Plain { plain_kind(&value) } else { Scalar::String };
                if tag.is_some() {
                    return None;
                }
                self.complete(Node { place, value: Value::Scalar { text: value, kind } }, anchor)
            }
            EventData::Alias { anchor } => {
                let node = self.anchors.get(&anchor)?.clone();
                self.complete(Node { place, ..node }, None)
            }
            EventData::DocumentEnd { .. } => {
                self.anchors.clear();
                Some(())
            }
            _ => Some(()),
        }
    }

    fn complete(&mut self, node: Node, anchor: Option<String>) -> Option<()> {
        self.nodes += count(&node);
        if self.nodes > NODES_MAX {
            return None;
        }
        let place = node.place.filter(|_| anchor.is_none());
        let node = Node { place, ..node };
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.documents.push(node),
            Some((open, _)) => open.children.push(node),
        }
        Some(())
    }
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::Scalar { .. } => 0,
        Value::List(items) => items.iter().map(count).sum(),
        Value::Mapping(entries) => entries.iter().map(|(_, node)| 1 + count(node)).sum(),
    }
}

fn mapping(children: Vec<Node>) -> Option<Value> {
    let mut children = children.into_iter();
    let mut entries = Vec::new();
    while let (Some(key), Some(value)) = (children.next(), children.next()) {
        entries.push((key, value));
    }
    unique(entries).map(Value::Mapping)
}

fn unique(entries: Vec<(Node, Node)>) -> Option<Vec<(Node, Node)>> {
    let mut seen = std::collections::HashSet::new();
    let mut sound = |(key, _): &(Node, Node)| match &key.value {
        Value::Scalar { text, .. } => text != "<<" && seen.insert(text.clone()),
        _ => false,
    };
    let all_sound = entries.iter().all(&mut sound);
    all_sound.then_some(entries)
}

/// A word that no version of YAML takes for anything but a string begins with a letter and is none of a few.
fn plain_kind(text: &str) -> Scalar {
    let words = ["y", "yes", "n", "no", "on", "off", "true", "false", "null"];
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Scalar::Null,
        _ if words.contains(&text.to_ascii_lowercase().as_str()) => Scalar::Unsure,
        _ if text.starts_with(|first: char| first.is_ascii_alphabetic()) => Scalar::String,
        _ => Scalar::Unsure,
    }
}
