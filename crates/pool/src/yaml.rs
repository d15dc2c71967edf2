//! Text to a tree of values, each with its place: the YAML that Kubernetes reads, JSON among it.
//!
//! Invariants
//! - Time and memory are bounded by the size of the text, which is bounded itself: aliases are expanded within a
//!   budget, nesting has a limit (so recursion over a tree is safe).
//! - Nothing is guessed: a key given twice, a key that is no scalar, a tag of somebody's own are refused.
//! - What YAML 1.1 (Kubernetes) and 1.2 read differently is known as [`Scalar::Ambiguous`].

use std::collections::{HashMap, HashSet};

use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, Span, Tag};

use crate::fault::quoted;

/// Longest text that is read.
pub(crate) const TEXT_BYTES_MAX: usize = 16 << 20;

/// Deepest nesting, aliases expanded.
const DEPTH_MAX: usize = 64;

/// Most values in one text, aliases expanded; each copy made for an anchor counts too.
const NODES_MAX: usize = 1_000_000;

/// Most bytes of scalars in one text, aliases expanded.
const SCALAR_BYTES_MAX: usize = 2 * TEXT_BYTES_MAX;

/// A line and a column, from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
}

/// A value and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub value: Value,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Anything that is one text.
    Scalar {
        /// As written, quotes and escapes resolved.
        text: String,
        /// What it is taken for.
        scalar: Scalar,
        /// It is a literal block (`|`): its lines are lines of the file, and the node's place is that of its first character
        /// that is no line feed.
        literal: bool,
    },
    /// Keys are unique.
    Mapping(Vec<(Key, Node)>),
    /// In order.
    List(Vec<Node>),
}

/// The key of a mapping's entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// Where it begins.
    pub place: Place,
    /// Its text.
    pub name: String,
    /// What it is taken for.
    pub scalar: Scalar,
}

/// What a scalar is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// A text, quoted or not.
    String,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// `null`, `~` or nothing.
    Null,
    /// A string to YAML 1.2, a boolean or another number to YAML 1.1 (`on`, `y`, `010`, `1_000`).
    Ambiguous,
}

/// A text that is no YAML, or more of it than is read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct YamlError {
    /// Where.
    pub place: Place,
    /// What is wrong.
    pub what: String,
}

/// The documents of `text`; one without content is a null.
///
/// # Errors
/// The first thing that is not YAML, and the limits of this module.
pub fn read(text: &str) -> Result<Vec<Node>, YamlError> {
    if text.len() > TEXT_BYTES_MAX {
        let what = format!("{} bytes are more than the {TEXT_BYTES_MAX} that are read", text.len());
        return Err(YamlError { place: Place { line: 1, column: 1 }, what });
    }
    let options = granit_parser::options! { flow_nesting_limit: DEPTH_MAX, block_nesting_limit: DEPTH_MAX };
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| scan_error(&error))?;
        builder.take(event, span)?;
    }
    Ok(builder.documents)
}

impl Node {
    /// What the value is, in words: `a list`, `the number "64"`.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Mapping(_) => "a mapping".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Scalar { text, scalar, .. } => match scalar {
                Scalar::String => quoted(text),
                Scalar::Number => format!("the number {}", quoted(text)),
                Scalar::Boolean => format!("the boolean {}", quoted(text)),
                Scalar::Null => "empty".to_owned(),
                Scalar::Ambiguous => format!("{} (no string to YAML 1.1)", quoted(text)),
            },
        }
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Scalar { scalar: Scalar::Null, .. })
    }

    fn measure(&self) -> Size {
        let children: &mut dyn Iterator<Item = (usize, &Node)> = match &self.value {
            Value::Scalar { text, .. } => return Size { nodes: 1, bytes: text.len(), height: 1 },
            Value::Mapping(entries) => &mut entries.iter().map(|(key, node)| (key.name.len(), node)),
            Value::List(items) => &mut items.iter().map(|node| (0, node)),
        };
        children.fold(Size { nodes: 1, bytes: 0, height: 1 }, |size, (key_bytes, node)| {
            let child = node.measure();
            Size {
                nodes: size.nodes + child.nodes,
                bytes: size.bytes + child.bytes + key_bytes,
                height: size.height.max(child.height + 1),
            }
        })
    }
}

/// How much a tree holds.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    nodes: usize,
    bytes: usize,
    height: usize,
}

/// A collection that is not yet complete.
struct Open {
    place: Place,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Mapping { entries: Vec<(Key, Node)>, key: Option<Key> },
}

/// Makes trees of the parser's events.
#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Open>,
    /// Complete anchored values by the parser's id, with their size.
    anchors: HashMap<usize, (Node, Size)>,
    spent: Size,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), YamlError> {
        let place = place(&span.start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let scalar = scalar_kind(&text, style, tag.as_deref(), place)?;
                self.spend(Size { nodes: 1, bytes: text.len(), height: 1 }, place)?;
                let literal = style == ScalarStyle::Literal;
                let value = Value::Scalar { text: text.into_owned(), scalar, literal };
                self.complete(Node { place, value }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                expect_tag(tag.as_deref(), "seq", place)?;
                self.begin(Open { place, anchor, content: Content::List(Vec::new()) })
            }
            Event::MappingStart(_, anchor, tag) => {
                expect_tag(tag.as_deref(), "map", place)?;
                self.begin(Open {
                    place,
                    anchor,
                    content: Content::Mapping { entries: Vec::new(), key: None },
                })
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(id) => {
                let (mut node, size) = match self.anchors.get(&id) {
                    Some((_, size)) => {
                        let size = *size;
                        self.spend(size, place)?;
                        (self.anchors[&id].0.clone(), size)
                    }
                    None => return Err(error(place, "an alias within the value that it stands for")),
                };
                if self.open.len() + size.height > DEPTH_MAX {
                    return Err(too_deep(place));
                }
                node.place = place;
                self.complete(node, 0)
            }
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open) -> Result<(), YamlError> {
        self.spend(Size { nodes: 1, bytes: 0, height: 1 }, open.place)?;
        if self.open.len() == DEPTH_MAX {
            return Err(too_deep(open.place));
        }
        self.open.push(open);
        Ok(())
    }

    fn end(&mut self) -> Result<(), YamlError> {
        let Some(Open { place, anchor, content }) = self.open.pop() else {
            return Ok(());
        };
        let value = match content {
            Content::List(items) => Value::List(items),
            Content::Mapping { entries, .. } => Value::Mapping(merge(unique(entries)?)?),
        };
        self.complete(Node { place, value }, anchor)
    }

    /// Puts a complete value where it belongs.
    fn complete(&mut self, node: Node, anchor: usize) -> Result<(), YamlError> {
        if anchor != 0 {
            let size = node.measure();
            self.spend(size, node.place)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.documents.push(node),
            Some(Content::List(items)) => items.push(node),
            Some(Content::Mapping { entries, key }) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => *key = Some(as_key(node)?),
            },
        }
        Ok(())
    }

    fn spend(&mut self, size: Size, place: Place) -> Result<(), YamlError> {
        self.spent.nodes += size.nodes;
        self.spent.bytes += size.bytes;
        if self.spent.nodes > NODES_MAX {
            return Err(error(place, format!("more than {NODES_MAX} values, aliases expanded")));
        }
        if self.spent.bytes > SCALAR_BYTES_MAX {
            return Err(error(
                place,
                format!("more than {SCALAR_BYTES_MAX} bytes of text, aliases expanded"),
            ));
        }
        Ok(())
    }
}

fn as_key(node: Node) -> Result<Key, YamlError> {
    match node.value {
        Value::Scalar { text, scalar, .. } => Ok(Key { place: node.place, name: text, scalar }),
        _ => Err(error(node.place, format!("a key must be a scalar, this one is {}", node.describe()))),
    }
}

/// `entries`, if no key is given twice; else the first place where one is given again.
fn unique(entries: Vec<(Key, Node)>) -> Result<Vec<(Key, Node)>, YamlError> {
    let mut keys: Vec<&Key> = entries.iter().map(|(key, _)| key).collect();
    keys.sort_by(|one, other| (&one.name, one.place).cmp(&(&other.name, other.place)));
    let again = keys.windows(2).filter(|pair| pair[0].name == pair[1].name).min_by_key(|pair| pair[1].place);
    match again {
        None => Ok(entries),
        Some(pair) => {
            let Place { line, column } = pair[0].place;
            let what = format!("the key {} is given twice, first at {line}:{column}", quoted(&pair[0].name));
            Err(error(pair[1].place, what))
        }
    }
}

/// Takes in what the merge key `<<` names: a mapping, or a list of them, whose entries yield to those that stand beside it.
fn merge(mut entries: Vec<(Key, Node)>) -> Result<Vec<(Key, Node)>, YamlError> {
    let is_merge = |(key, _): &(Key, Node)| key.name == "<<" && key.scalar == Scalar::String;
    let Some(at) = entries.iter().position(is_merge) else {
        return Ok(entries);
    };
    let (_, merged) = entries.remove(at);
    let place = merged.place;
    let sources = match merged.value {
        Value::List(sources) => sources,
        value => vec![Node { place, value }],
    };
    let mut seen: HashSet<String> = entries.iter().map(|(key, _)| key.name.clone()).collect();
    for source in sources {
        let Value::Mapping(more) = source.value else {
            return Err(error(place, "only a mapping, or a list of mappings, can be merged with <<"));
        };
        entries.extend(more.into_iter().filter(|(key, _)| seen.insert(key.name.clone())));
    }
    Ok(entries)
}

fn scalar_kind(text: &str, style: ScalarStyle, tag: Option<&Tag>, place: Place) -> Result<Scalar, YamlError> {
    match tag.map(|tag| (tag.core_suffix(), tag)) {
        None if style == ScalarStyle::Plain => Ok(plain_kind(text)),
        None | Some((Some("str"), _)) => Ok(Scalar::String),
        Some((Some("int" | "float"), _)) => Ok(Scalar::Number),
        Some((Some("bool"), _)) => Ok(Scalar::Boolean),
        Some((Some("null"), _)) => Ok(Scalar::Null),
        Some((_, tag)) => Err(unknown_tag(tag, place)),
    }
}

/// What a plain scalar is taken for by YAML 1.2's core schema, and whether YAML 1.1 agrees.
fn plain_kind(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Scalar::Null,
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Scalar::Boolean,
        "y" | "Y" | "yes" | "Yes" | "YES" | "n" | "N" | "no" | "No" | "NO" | "on" | "On" | "ON" | "off"
        | "Off" | "OFF" => Scalar::Ambiguous,
        _ => number_kind(text),
    }
}

fn number_kind(text: &str) -> Scalar {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Scalar::Number;
    }
    if !unsigned.starts_with(|c: char| c == '.' || c.is_ascii_digit()) {
        return Scalar::String;
    }
    let all = |digits: &str, of: fn(&u8) -> bool| !digits.is_empty() && digits.bytes().all(|byte| of(&byte));
    if let Some(hex) = unsigned.strip_prefix("0x") {
        return if all(hex, u8::is_ascii_hexdigit) { Scalar::Number } else { Scalar::String };
    }
    let leading_zero = unsigned.len() > 1 && all(unsigned, u8::is_ascii_digit) && unsigned.starts_with('0');
    let octal =
        unsigned.strip_prefix("0o").is_some_and(|digits| all(digits, |byte| (b'0'..=b'7').contains(byte)));
    let binary =
        unsigned.strip_prefix("0b").is_some_and(|digits| all(digits, |byte| matches!(byte, b'0' | b'1')));
    let underscores = text.contains('_') && is_decimal(&unsigned.replace('_', ""));
    if leading_zero || octal || binary || underscores {
        return Scalar::Ambiguous;
    }
    if is_decimal(unsigned) { Scalar::Number } else { Scalar::String }
}

/// `12`, `1.5`, `.5`, `5.`, `1e3`, without a sign.
fn is_decimal(text: &str) -> bool {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let exponent_is_sound = exponent.is_none_or(|exponent| {
        let unsigned = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !unsigned.is_empty() && digits(unsigned)
    });
    digits(whole) && digits(fraction) && whole.len() + fraction.len() > 0 && exponent_is_sound
}

fn expect_tag(tag: Option<&Tag>, expected: &str, place: Place) -> Result<(), YamlError> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema_tag(expected) => Err(unknown_tag(tag, place)),
        _ => Ok(()),
    }
}

fn unknown_tag(tag: &Tag, place: Place) -> YamlError {
    error(place, format!("the tag {} has no meaning here", quoted(&tag.original())))
}

fn too_deep(place: Place) -> YamlError {
    error(place, format!("nested deeper than {DEPTH_MAX}"))
}

fn error(place: Place, what: impl Into<String>) -> YamlError {
    YamlError { place, what: what.into() }
}

fn scan_error(scan: &ScanError) -> YamlError {
    match scan.kind() {
        ErrorKind::RecursionLimitExceeded => too_deep(place(scan.marker())),
        _ => error(place(scan.marker()), scan.info()),
    }
}

fn place(marker: &Marker) -> Place {
    Place { line: saturating(marker.line()), column: saturating(marker.col()).saturating_add(1) }
}

/// A text is shorter than u32 counts.
fn saturating(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
