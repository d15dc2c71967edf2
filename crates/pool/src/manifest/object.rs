//! What all objects have: metadata, and for ours a reference to a pool.

use crate::annotations::{Annotation, Annotations, Shape};
use crate::fault::Position;
use crate::fields::{Fields, Read, Reader};
use crate::names::{is_dns_label, is_dns_subdomain};
use crate::policy::PoolId;
use crate::yaml::{Node, Scalar, Value};

/// Kubernetes takes no more than this for all annotations of an object together.
const ANNOTATIONS_BYTES_MAX: usize = 256 << 10;

/// An object of ours while it is read.
pub(crate) struct Object<'t> {
    pub(crate) root: Fields<'t>,
    pub(crate) metadata: Fields<'t>,
    pub(crate) position: Position,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl<'t> Object<'t> {
    /// The object at `node`; `known` are the fields of its root besides those that all objects have.
    pub(crate) fn read(reader: &mut Reader, node: &'t Node, kind: &str, known: &[&str]) -> Read<Self> {
        let known: Vec<&str> = ["apiVersion", "kind", "metadata"].iter().chain(known).copied().collect();
        let root = Fields::open(reader, node, String::new(), &known)?;
        let metadata = root.child(reader, "metadata", &[]);
        let metadata = root.required(reader, "metadata", metadata)?;
        let name =
            metadata.text_that(reader, "name", is_dns_subdomain, "a name of small letters, digits, - and .");
        let namespace =
            metadata.text_that(reader, "namespace", is_dns_label, "a name of small letters, digits and -");
        let name = metadata.required(reader, "name", name)?.to_owned();
        let namespace = namespace?.unwrap_or("default").to_owned();
        reader.object = format!("{kind} {namespace}/{name}");
        Ok(Self { position: reader.position(root.place), root, metadata, namespace, name })
    }

    pub(crate) fn spec(&self, reader: &mut Reader, known: &[&str]) -> Read<Fields<'t>> {
        let spec = self.root.child(reader, "spec", known);
        self.root.required(reader, "spec", spec)
    }

    /// `metadata.creationTimestamp`: generators write a null where there is none.
    pub(crate) fn created(&self, reader: &mut Reader) -> Read<Option<String>> {
        Ok(self.metadata.text(reader, "creationTimestamp")?.map(str::to_owned))
    }

    /// `metadata.annotations`; their values are judged when they are resolved.
    pub(crate) fn annotations(&self, reader: &mut Reader) -> Read<Annotations> {
        let Some(fields) = self.metadata.child(reader, "annotations", &[])? else {
            return Ok(Annotations::default());
        };
        let annotations: Annotations = fields
            .entries
            .iter()
            .map(|(key, node)| {
                let (value, shape) = shape_of(node);
                let key_position = reader.position(key.place);
                let value_position = reader.position(node.place);
                (
                    key.name.clone(),
                    Annotation { value: value.to_owned(), shape, key_position, value_position },
                )
            })
            .collect();
        let bytes: usize =
            annotations.iter().map(|(key, annotation)| key.len() + annotation.value.len()).sum();
        if bytes > ANNOTATIONS_BYTES_MAX {
            let expected = format!("at most {ANNOTATIONS_BYTES_MAX}, as Kubernetes has it");
            return Err(self.metadata.invalid(
                reader,
                "annotations",
                format!("they hold {bytes} bytes"),
                expected,
            ));
        }
        Ok(annotations)
    }

    /// `spec.poolRef`: a pool in the object's own namespace.
    pub(crate) fn pool(&self, reader: &mut Reader, spec: &Fields<'_>) -> Read<PoolId> {
        let reference = spec.child(reader, "poolRef", &["group", "kind", "name"]);
        let reference = spec.required(reader, "poolRef", reference)?;
        let group = reference.word(reader, "group", &super::OWNED_GROUPS.map(|group| (group, ())));
        let kind = reference.word(reader, "kind", &[("InferencePool", ())]);
        let name = reference.text_that(reader, "name", is_dns_subdomain, "the name of an InferencePool");
        let name = reference.required(reader, "name", name)?;
        group?;
        kind?;
        Ok(PoolId::new(&self.namespace, name))
    }
}

/// The text of a value, empty where it is no scalar, and what YAML takes it for.
pub(crate) fn shape_of(node: &Node) -> (&str, Shape) {
    match &node.value {
        Value::Mapping(_) => ("", Shape::Mapping),
        Value::List(_) => ("", Shape::List),
        Value::Scalar { text, scalar, .. } => match scalar {
            Scalar::String => (text, Shape::String),
            Scalar::Null => ("", Shape::Null),
            Scalar::Boolean => (text, Shape::Boolean),
            Scalar::Number => (text, Shape::Number),
            // `010` and `1_000` are numbers to YAML 1.1, `on` and `y` are booleans.
            Scalar::Ambiguous if text.contains(|c: char| c.is_ascii_digit()) => (text, Shape::Number),
            Scalar::Ambiguous => (text, Shape::Boolean),
        },
    }
}

/// A text of an object's metadata, if it is there and is one.
pub(crate) fn peek_metadata<'t>(root: &Fields<'t>, name: &str) -> Option<&'t str> {
    let Value::Mapping(entries) = &root.find("metadata")?.value else {
        return None;
    };
    match &entries.iter().find(|(key, _)| key.name == name)?.1.value {
        Value::Scalar { text, scalar: Scalar::String, .. } => Some(text),
        _ => None,
    }
}
