//! Manifests: never a panic, every place within the file, and the same objects as another parser finds.

use pool::{Annotations, Manifest, Position, Severity, Shape, assemble, parse, report};

use crate::json;
use crate::yaml::{self, Node, Value};

/// Does all that can be done with a text and holds it against the oracles.
pub(crate) fn check(text: &str) {
    let parsed = parse("f", text);
    let unreadable = parsed.as_ref().err().map(|unparsable| unparsable.fault.to_string());
    let manifest = parsed.unwrap_or_else(Manifest::from);
    check_report(text, &manifest);

    let tree = json::parse(text.as_bytes());
    if let Some(document) = tree.as_ref().filter(|tree| is_plain(text, tree)).and_then(yaml::of_json) {
        assert_eq!(unreadable, None, "JSON was refused");
        let documents: Vec<Node> = Some(document).into_iter().filter(|node| !node.is_null()).collect();
        Differ { manifest: &manifest }.check(&documents);
    }
    if unreadable.is_none()
        && let Some(documents) = yaml::read(text)
    {
        Differ { manifest: &manifest }.check(&documents);
    }
}

/// JSON that is YAML too: within the limit on nesting, no character that YAML has no room for, and no key so long that
/// YAML does not look for its colon.
fn is_plain(text: &str, tree: &json::Spanned) -> bool {
    fn height(tree: &json::Spanned) -> usize {
        1 + match &tree.value {
            json::Value::Array(elements) => elements.iter().map(height).max().unwrap_or(0),
            json::Value::Object(fields) => fields.iter().map(|field| height(&field.value)).max().unwrap_or(0),
            _ => 0,
        }
    }
    let is_printable = |char: char| matches!(char, ' '..='~' | '\n' | 'é');
    text.chars().all(is_printable) && text.len() < 1000 && height(tree) < 60 && !text.contains("\\ud")
}

/// What `check` would print.
fn check_report(text: &str, manifest: &Manifest) {
    let declared = assemble([manifest, manifest]);
    for pool in &declared.pools {
        let endpoints = pool.endpoints(&declared.slices);
        let mut names: Vec<_> = endpoints.iter().map(|endpoint| &endpoint.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), endpoints.len(), "names are unique");
    }
    let report = report(&declared);
    let printed = report.to_string();
    assert!(
        !printed.contains(|char: char| char.is_control() && char != '\n'),
        "nothing reaches the terminal"
    );
    let blank = usize::from(!report.settings.is_empty() && !report.faults.is_empty());
    assert_eq!(printed.lines().count(), report.settings.len() + report.faults.len() + blank);
    assert_eq!(report.is_sound(), report.faults.iter().all(|fault| fault.severity == Severity::Note));

    let widths = widths(text);
    for fault in &report.faults {
        assert_within(&widths, &fault.position, &fault.to_string());
    }
    for (position, object) in objects(manifest) {
        assert_within(&widths, position, &format!("{object:?}"));
    }
    for annotations in manifest.pools.iter().map(|pool| &pool.annotations) {
        for (key, annotation) in annotations.iter() {
            assert_within(&widths, &annotation.key_position, key);
            assert_within(&widths, &annotation.value_position, key);
        }
    }
}

/// How many characters each line has.
fn widths(text: &str) -> Vec<u32> {
    let text = text.replace("\r\n", "\n");
    text.split(['\n', '\r']).map(|line| line.chars().count() as u32).collect()
}

/// A place may be the end of a line, and the end of the file.
fn assert_within(widths: &[u32], position: &Position, what: &str) {
    let line = position.line.checked_sub(1).and_then(|line| widths.get(line as usize));
    let is_within = line.is_some_and(|&width| (1..=width + 1).contains(&position.column));
    assert!(is_within, "{position} of {} lines, {line:?} wide: {what}", widths.len());
}

/// An object by kind, namespace and name; without what nobody knows.
type Object<'a> = (&'a str, Option<&'a str>, &'a str);

/// Every object of a manifest, in the order of the file.
fn objects(manifest: &Manifest) -> Vec<(&Position, Object<'_>)> {
    let mut objects: Vec<(&Position, Object<'_>)> = Vec::new();
    for pool in &manifest.pools {
        objects.push((&pool.position, ("InferencePool", Some(&pool.id.namespace), &pool.id.name)));
    }
    for object in &manifest.models {
        objects.push((&object.position, ("InferenceModel", Some(&object.namespace), &object.name)));
    }
    for object in &manifest.objectives {
        objects.push((&object.position, ("InferenceObjective", Some(&object.namespace), &object.name)));
    }
    for object in &manifest.rewrites {
        objects.push((&object.position, ("InferenceModelRewrite", Some(&object.namespace), &object.name)));
    }
    for object in &manifest.slices {
        objects.push((&object.position, ("EndpointSlice", Some(&object.namespace), &object.name)));
    }
    for object in &manifest.overlays {
        objects.push((&object.position, ("ConfigMap", Some(&object.namespace), &object.name)));
    }
    for object in &manifest.passed_over {
        objects.push((&object.position, (&object.kind, None, &object.name)));
    }
    objects.sort_by_key(|(position, _)| *position);
    objects
}

/// Compares a manifest with the documents of an oracle.
struct Differ<'a> {
    manifest: &'a Manifest,
}

impl Differ<'_> {
    fn check(&self, documents: &[Node]) {
        let mut theirs = Vec::new();
        let sure = documents.iter().all(|document| flatten(document, &mut theirs));
        let ours = objects(self.manifest);
        for (position, object) in &ours {
            let candidates: Vec<&Node> = theirs
                .iter()
                .filter(|node| node.may_be_at(position.line, position.column))
                .copied()
                .collect();
            assert!(
                !sure || candidates.iter().any(|node| is(node, object)),
                "{position}: {object:?}: {candidates:?}"
            );
        }
        if sure && self.manifest.faults.is_empty() {
            assert_eq!(ours.len(), theirs.len(), "{ours:?} but {theirs:?}");
        }
        if !sure {
            return;
        }
        for pool in &self.manifest.pools {
            self.check_pool(pool, &theirs);
        }
        for overlay in &self.manifest.overlays {
            let node = self.find(&theirs, &overlay.position, &overlay.name);
            let data = node.and_then(|node| node.find("data"));
            for entry in &overlay.entries {
                let value = data.and_then(|data| data.find(&entry.key));
                if let (Some(value), Shape::String) = (value, entry.shape)
                    && !value.is_unsure()
                {
                    assert_eq!(value.string(), Some(entry.value.as_str()));
                }
            }
        }
    }

    fn check_pool(&self, pool: &pool::InferencePool, theirs: &[&Node]) {
        let Some(node) = self.find(theirs, &pool.position, &pool.id.name) else { return };
        let spec = node.find("spec").expect("a pool has a spec");
        let selector = spec.find("selector").expect("a pool has a selector");
        let labels = selector.find("matchLabels").filter(|labels| matches!(labels.value, Value::Mapping(_)));
        for (key, value) in &pool.selector {
            let label = labels.unwrap_or(selector).find(key);
            assert!(label.is_some_and(|label| label.is_unsure() || label.string() == Some(value)), "{key}");
        }
        let annotations = node.find("metadata").and_then(|metadata| metadata.find("annotations"));
        self.check_annotations(&pool.annotations, annotations);
    }

    fn check_annotations(&self, ours: &Annotations, theirs: Option<&Node>) {
        for (key, annotation) in ours.iter() {
            let value = theirs.and_then(|theirs| theirs.find(key)).expect("the oracle has it too");
            if annotation.shape == Shape::String && !value.is_unsure() {
                assert_eq!(value.string(), Some(annotation.value.as_str()), "{key}");
            }
            if let (Value::Mapping(_), shape) = (&value.value, annotation.shape) {
                assert_eq!(shape, Shape::Mapping);
            }
        }
    }

    /// The oracle's object there, if there is but one of that name.
    fn find<'n>(&self, theirs: &[&'n Node], position: &Position, name: &str) -> Option<&'n Node> {
        let matches = |node: &&&Node| node.may_be_at(position.line, position.column) && name_of(node) == name;
        let mut found = theirs.iter().filter(matches);
        let first = found.next().copied();
        if found.next().is_some() { None } else { first }
    }
}

/// Adds the objects of a document, those of a list one by one. False if it is not sure what they are.
fn flatten<'n>(node: &'n Node, objects: &mut Vec<&'n Node>) -> bool {
    let field = |name| node.find(name).filter(|node| !node.is_null());
    let (Some(kind), Some(api_version)) = (field("kind"), field("apiVersion")) else {
        // It is a fault, unless nobody knows what stands there.
        return true;
    };
    if kind.is_unsure() || api_version.is_unsure() {
        return false;
    }
    let (Some(kind), Some(_)) = (kind.string(), api_version.string()) else { return true };
    match field("items").map(|items| &items.value) {
        Some(Value::List(items)) if kind.ends_with("List") => items.iter().all(|item| flatten(item, objects)),
        Some(_) if kind.ends_with("List") => true,
        _ => {
            objects.push(node);
            true
        }
    }
}

fn is(node: &Node, (kind, namespace, name): &Object<'_>) -> bool {
    let metadata = |field| node.find("metadata").and_then(|metadata| metadata.find(field));
    let is_unsure = |field| metadata(field).is_some_and(Node::is_unsure);
    node.find("kind").and_then(Node::string) == Some(kind)
        && (is_unsure("name") || name_of(node) == *name)
        && namespace.is_none_or(|namespace| {
            is_unsure("namespace")
                || metadata("namespace").and_then(Node::string).unwrap_or("default") == namespace
        })
}

fn name_of(node: &Node) -> &str {
    node.find("metadata")
        .and_then(|metadata| metadata.find("name"))
        .and_then(Node::string)
        .unwrap_or_default()
}
