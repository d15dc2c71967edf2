//! Overlays: parts of a picker's objects that a pool's owner writes into a ConfigMap, merged over the default.
//!
//! ```text
//! text ── pool::yaml ──> document (fields known, types right) ──> open (may it be set?) ──> merge (over the default)
//! ```
//!
//! Invariants
//! - One fault anywhere, and no part of the overlay is used.
//! - What is not listed in [`open`](self::open) and not allowed by an administrator is what it was without the overlay.

mod directive;
mod document;
mod merge;
mod open;
mod schema;

use std::fmt;

use pool::OverlayEntry;
use pool::yaml::{self, Node, Place};
use serde_json::{Map, Value};

use crate::render::PickerObjects;
use document::Wrong;
use schema::Form;

/// One of a picker's objects that an overlay can reshape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The pods.
    Deployment,
    /// Where they are asked.
    Service,
    /// How many may be away.
    PodDisruptionBudget,
}

impl Part {
    /// The part of that data key.
    #[must_use]
    pub fn of_key(key: &str) -> Option<Part> {
        match key {
            "deployment" => Some(Part::Deployment),
            "service" => Some(Part::Service),
            "podDisruptionBudget" | "pdb" => Some(Part::PodDisruptionBudget),
            _ => None,
        }
    }

    /// Its data key, as `--allow-overlay` begins.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Part::Deployment => "deployment",
            Part::Service => "service",
            Part::PodDisruptionBudget => "podDisruptionBudget",
        }
    }

    fn object(self) -> &'static str {
        match self {
            Part::Deployment => "apps.v1.Deployment",
            Part::Service => "core.v1.Service",
            Part::PodDisruptionBudget => "policy.v1.PodDisruptionBudget",
        }
    }

    fn of(self, objects: &mut PickerObjects) -> &mut Value {
        match self {
            Part::Deployment => &mut objects.deployment,
            Part::Service => &mut objects.service,
            Part::PodDisruptionBudget => &mut objects.pod_disruption_budget,
        }
    }
}

/// One thing that is wrong with an overlay. Prints as `KEY:LINE:COL: FIELD: what; expected …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayFault {
    /// The data key.
    pub key: String,
    /// Within its value, from 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// The field, `spec.replicas`; empty for the whole value.
    pub field: String,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub expected: String,
}

impl fmt::Display for OverlayFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, line, column, field, what, expected } = self;
        write!(f, "{key}:{line}:{column}: ")?;
        if !field.is_empty() {
            write!(f, "{field}: ")?;
        }
        write!(f, "{what}; expected {expected}")
    }
}

/// An overlay whose every field is known, of its type, and open.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    parts: Vec<Patch>,
}

#[derive(Clone, Debug)]
struct Patch {
    key: String,
    part: Part,
    document: Node,
    object: Map<String, Value>,
    /// An administrator opened affinity wholly.
    affinity_is_open: bool,
}

/// Longer than any overlay that was meant, and short enough that the API server takes the object.
const VALUE_BYTES_MAX: usize = 128 * 1024;
const AFFINITY: &str = "deployment.spec.template.spec.affinity";
const KEPT_AWAY: [&str; 6] = [
    "spec",
    "template",
    "spec",
    "affinity",
    "podAntiAffinity",
    "requiredDuringSchedulingIgnoredDuringExecution",
];

impl Overlay {
    /// Reads the data of a ConfigMap. `allowed` are the fields that an administrator opened besides,
    /// `deployment.spec.template.spec.hostNetwork`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(overlay: &pool::Overlay, allowed: &[String]) -> Result<Overlay, Vec<OverlayFault>> {
        let faults: Vec<_> = overlay.faults().iter().map(text_fault).collect();
        if !faults.is_empty() {
            return Err(faults);
        }
        let (mut parts, mut faults) = (Vec::new(), Vec::new());
        for entry in &overlay.entries {
            if entry.value.len() > VALUE_BYTES_MAX {
                let what = format!("it is {} bytes long", entry.value.len());
                let expected = format!("at most {VALUE_BYTES_MAX}");
                let place = Place { line: 1, column: 1 };
                faults.push(fault(&entry.key, Wrong { place, field: String::new(), what, expected }));
                continue;
            }
            match Patch::read(entry, allowed) {
                Ok(patch) => parts.extend(patch),
                Err(wrong) => faults.extend(wrong.into_iter().map(|wrong| fault(&entry.key, wrong))),
            }
        }
        if faults.is_empty() { Ok(Overlay { parts }) } else { Err(faults) }
    }

    /// The objects with the overlay over them.
    ///
    /// # Errors
    /// What cannot be merged.
    pub fn apply(&self, objects: &PickerObjects) -> Result<PickerObjects, Vec<OverlayFault>> {
        let (mut reshaped, mut faults) = (objects.clone(), Vec::new());
        for patch in &self.parts {
            let object = patch.part.of(&mut reshaped);
            match patch.over(object.take()) {
                Ok(merged) => *object = merged,
                Err(wrong) => faults.push(fault(&patch.key, wrong)),
            }
        }
        if faults.is_empty() { Ok(reshaped) } else { Err(faults) }
    }
}

impl Overlay {
    /// Where it speaks of a field of that object, as the API server writes fields (`spec.containers[0].image`): data key, line, column of
    /// the field or of what it is in. None where it says nothing of the object.
    #[must_use]
    pub fn locate(&self, part: Part, field: &str) -> Option<(&str, u32, u32)> {
        let patch = self.parts.iter().find(|patch| patch.part == part)?;
        let words = field.split('.').map(|word| word.split('[').next().unwrap_or_default().to_owned());
        let place = place_of(&patch.document, &words.collect::<Vec<_>>());
        Some((&patch.key, place.line, place.column))
    }
}

/// A field that an administrator opens, `deployment.spec.template.spec.hostNetwork`: lists are passed through, and whatever is below a
/// map of the writer's keys is a key.
///
/// # Errors
/// There is no such field.
pub fn field_path(path: &str) -> Result<String, String> {
    let mut words = path.split('.');
    let key = words.next().unwrap_or_default();
    let part = Part::of_key(key).filter(|part| part.key() == key).ok_or_else(|| {
        "expected a field such as deployment.spec.template.spec.hostNetwork, of deployment, service or \
         podDisruptionBudget"
            .to_owned()
    })?;
    let mut fields = schema::fields(part.object());
    let (mut walked, mut is_field) = (key.to_owned(), false);
    for word in words {
        let Some(field) = fields.and_then(|fields| fields.get(word)) else {
            return Err(format!("{walked} has no field `{word}`"));
        };
        walked = format!("{walked}.{word}");
        is_field = true;
        let mut form = &field.form;
        while let Form::List(of) = form {
            form = of;
        }
        match form {
            Form::Object(name) => fields = schema::fields(name),
            Form::Map(_) => return Ok(path.to_owned()),
            _ => fields = None,
        }
    }
    if is_field { Ok(path.to_owned()) } else { Err(format!("{key} is all of it: name a field of it")) }
}

/// What is wrong with an overlay whose text is sound, as faults of the file that it is in.
#[must_use]
pub fn faults(overlay: &pool::Overlay, allowed: &[String], default: &PickerObjects) -> Vec<pool::Fault> {
    if !overlay.faults().is_empty() {
        return Vec::new();
    }
    let applied = Overlay::read(overlay, allowed).and_then(|read| read.apply(default));
    let found = applied.err().unwrap_or_default();
    let in_file = |fault: OverlayFault| {
        let entry = overlay.entries.iter().find(|entry| entry.key == fault.key)?;
        let place = Place { line: fault.line, column: fault.column };
        Some(entry.fault_at(place, format!("{}: {}", fault.field, fault.what), &fault.expected))
    };
    found.into_iter().filter_map(in_file).collect()
}

impl Patch {
    fn read(entry: &OverlayEntry, allowed: &[String]) -> Result<Option<Patch>, Vec<Wrong>> {
        // Both were found sound before.
        let Some(part) = Part::of_key(&entry.key) else { return Ok(None) };
        let Some(document) = yaml::read(&entry.value).ok().and_then(|documents| documents.into_iter().next())
        else {
            return Ok(None);
        };
        let object = document::read(&document, part.object())?;
        let closed = open::closed(part, &document, allowed);
        if closed.is_empty() {
            let affinity_is_open = allowed.iter().any(|path| AFFINITY.starts_with(path.as_str()));
            Ok(Some(Patch { key: entry.key.clone(), part, document, object, affinity_is_open }))
        } else {
            Err(closed)
        }
    }

    fn over(&self, default: Value) -> Result<Value, Wrong> {
        let Value::Object(mut default) = default else { return Ok(default) };
        self.make_way(&mut default);
        let merged = merge::merge(default, self.object.clone(), self.part.object());
        let merged = merged.map(Value::Object).map_err(|error| {
            let field: Vec<String> = error.field.into_iter().rev().collect();
            self.wrong(&field, error.what, "what kubectl patch --type=strategic takes")
        })?;
        if self.part == Part::Deployment && !self.affinity_is_open && keeps_others_away(&merged) {
            let what = "it is not open to an overlay: a required anti-affinity holds both ways, and this one would keep \
                        pods of others away from nodes";
            let expected = "terms whose matchLabels are the picker's own (inference-pool and inference-pool-namespace), \
                            preferred ones, topologySpreadConstraints, or --allow-overlay at the controller";
            return Err(self.wrong(&KEPT_AWAY.map(str::to_owned), what.to_owned(), expected));
        }
        Ok(merged)
    }

    fn wrong(&self, field: &[String], what: String, expected: &str) -> Wrong {
        let place = place_of(&self.document, field);
        Wrong { place, field: field.join("."), what, expected: expected.to_owned() }
    }

    /// A budget has one bound. Who gives the other one means it in place of the default's.
    fn make_way(&self, default: &mut Map<String, Value>) {
        let Some(Value::Object(spec)) = self.object.get("spec") else { return };
        let gives = |bound: &str| spec.get(bound).is_some_and(|bound| !bound.is_null());
        if self.part == Part::PodDisruptionBudget
            && gives("minAvailable")
            && !gives("maxUnavailable")
            && let Some(Value::Object(bounds)) = default.get_mut("spec")
        {
            bounds.shift_remove("maxUnavailable");
        }
    }
}

/// Whether a required anti-affinity of the Deployment's pods speaks of other pods than their own: the scheduler keeps those away
/// from their nodes too.
fn keeps_others_away(deployment: &Value) -> bool {
    let path = KEPT_AWAY.iter().fold(String::new(), |path, field| path + "/" + field);
    let Some(Value::Array(terms)) = deployment.pointer(&path) else { return false };
    let own = &deployment["spec"]["selector"]["matchLabels"];
    let is_own = |term: &Value| {
        let selected = &term["labelSelector"]["matchLabels"];
        let is_nothing = |field: &str| term[field].is_null() || term[field] == Value::Array(Vec::new());
        let own = own.as_object();
        own.is_some_and(|own| own.iter().all(|(key, value)| selected[key] == *value))
            && is_nothing("namespaces")
            && is_nothing("namespaceSelector")
    };
    !terms.iter().all(is_own)
}

/// Where the field is written, or the innermost map around it.
fn place_of(document: &Node, field: &[String]) -> Place {
    let mut place = document.place;
    let mut node = document;
    for name in field {
        let entries = match &node.value {
            yaml::Value::Mapping(entries) => entries,
            _ => return place,
        };
        let Some((key, value)) = entries.iter().find(|(key, _)| key.name == *name) else { return place };
        (place, node) = (key.place, value);
    }
    place
}

fn fault(key: &str, wrong: Wrong) -> OverlayFault {
    let Wrong { place, field, what, expected } = wrong;
    OverlayFault { key: key.to_owned(), line: place.line, column: place.column, field, what, expected }
}

/// A fault of the text: its key is `KEY:LINE:COL`, or the data key alone where that is at fault.
fn text_fault(fault: &pool::Fault) -> OverlayFault {
    let mut parts = fault.key.splitn(3, ':');
    let key = parts.next().unwrap_or_default().to_owned();
    let mut number = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(1);
    let (line, column) = (number(), number());
    OverlayFault {
        key,
        line,
        column,
        field: String::new(),
        what: fault.what.clone(),
        expected: fault.expected.clone(),
    }
}
