//! Events: what `kubectl describe` shows. The same fact about the same object is one Event with a count.

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use serde_json::{Value, json};

use crate::render::names;

const COMPONENT: &str = "pointsman-controller";
/// What an Event's message may be long.
const MESSAGE_BYTES_MAX: usize = 1024;
const CONFLICT: u16 = 409;

/// How an Event is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    Normal,
    Warning,
}

/// What an Event says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fact {
    pub(super) severity: Severity,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// Of what it says it.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

impl Subject {
    pub(super) fn of(object: &DynamicObject) -> Subject {
        let types = object.types.clone().unwrap_or_default();
        let metadata = object.metadata.clone();
        Subject {
            api_version: types.api_version,
            kind: types.kind,
            namespace: metadata.namespace.unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
        }
    }

    fn reference(&self) -> Value {
        let Subject { api_version, kind, namespace, name, uid } = self;
        json!({ "apiVersion": api_version, "kind": kind, "namespace": namespace, "name": name, "uid": uid })
    }
}

/// Tells it: a new Event, or one more of the same.
pub(super) async fn tell(client: &Client, subject: &Subject, fact: &Fact) -> Result<(), Error> {
    let events: Api<Event> = Api::namespaced(client.clone(), &subject.namespace);
    let name = names::event(&subject.name, &format!("{}{}{}", subject.uid, fact.reason, fact.message));
    let now = Timestamp::now().to_string();
    let event = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": name, "namespace": subject.namespace },
        "involvedObject": subject.reference(),
        "type": match fact.severity { Severity::Normal => "Normal", Severity::Warning => "Warning" },
        "reason": fact.reason,
        "message": shorten(&fact.message),
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": { "component": COMPONENT },
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
    });
    let Ok(event) = serde_json::from_value(event) else { return Ok(()) };
    match events.create(&PostParams::default(), &event).await {
        Ok(_) => Ok(()),
        Err(Error::Api(status)) if status.code == CONFLICT => {
            let count = events.get(&name).await?.count.unwrap_or(1).saturating_add(1);
            let more = json!({ "count": count, "lastTimestamp": now });
            events.patch(&name, &PatchParams::default(), &Patch::Merge(more)).await.map(drop)
        }
        Err(error) => Err(error),
    }
}

fn shorten(message: &str) -> &str {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}
