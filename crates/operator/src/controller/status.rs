//! Our own entry in a pool's status: is what its owner wrote in force, and does its picker serve?

use k8s_openapi::jiff::Timestamp;
use pool::PoolVersion;
use serde_json::{Value, json};

/// Who wrote an entry.
const CONTROLLER: &str = "pointsman.dev/controller";
const GROUP: &str = "apps";
const KIND: &str = "Deployment";
/// What a condition's message may be long.
const MESSAGE_BYTES_MAX: usize = 4096;

/// One condition, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) kind: &'static str,
    pub(super) holds: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// The status' list of entries in that version.
pub(super) fn list(version: PoolVersion) -> &'static str {
    match version {
        PoolVersion::V1 => "parents",
        PoolVersion::V1Alpha2 => "parent",
    }
}

/// The entries with ours as it should be; none where nothing changes.
pub(super) fn entries(
    version: PoolVersion,
    status: &Value,
    deployment: (&str, &str),
    conditions: &[Condition],
    generation: i64,
) -> Option<Value> {
    let there = match &status[list(version)] {
        Value::Array(there) => there.clone(),
        _ => Vec::new(),
    };
    let before = there.iter().find(|entry| is_ours(entry));
    let known = |kind: &str| {
        let all = before.and_then(|entry| entry["conditions"].as_array());
        all.and_then(|all| all.iter().find(|condition| condition["type"] == kind))
    };
    let conditions = conditions.iter().map(|condition| written(condition, known(condition.kind), generation));
    let (namespace, name) = deployment;
    let mut entry = json!({
        "parentRef": { "group": GROUP, "kind": KIND, "namespace": namespace, "name": name },
        "conditions": conditions.collect::<Vec<_>>(),
    });
    if version == PoolVersion::V1 {
        entry["controllerName"] = CONTROLLER.into();
    }
    if before == Some(&entry) {
        return None;
    }
    let others = there.iter().filter(|entry| !is_ours(entry)).cloned();
    Some(Value::Array(others.chain([entry]).collect()))
}

/// The entries without ours; none where it is not there.
pub(super) fn without(version: PoolVersion, status: &Value) -> Option<Value> {
    let Value::Array(there) = &status[list(version)] else { return None };
    let others: Vec<Value> = there.iter().filter(|entry| !is_ours(entry)).cloned().collect();
    (others.len() < there.len()).then_some(Value::Array(others))
}

/// What our entry says of that condition.
pub(super) fn message<'s>(version: PoolVersion, status: &'s Value, kind: &str) -> Option<&'s str> {
    let ours = status[list(version)].as_array()?.iter().find(|entry| is_ours(entry))?;
    let condition = ours["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)?;
    condition["message"].as_str()
}

fn is_ours(entry: &Value) -> bool {
    let parent = &entry["parentRef"];
    parent["group"] == GROUP && parent["kind"] == KIND
}

fn written(condition: &Condition, known: Option<&Value>, generation: i64) -> Value {
    let status = if condition.holds { "True" } else { "False" };
    let since = known
        .filter(|known| known["status"] == status)
        .and_then(|known| known["lastTransitionTime"].as_str());
    let since = since.map_or_else(now, str::to_owned);
    let mut end = condition.message.len().min(MESSAGE_BYTES_MAX);
    while !condition.message.is_char_boundary(end) {
        end -= 1;
    }
    json!({
        "type": condition.kind,
        "status": status,
        "reason": condition.reason,
        "message": condition.message[..end],
        "observedGeneration": generation,
        "lastTransitionTime": since,
    })
}

/// Whole seconds, as the API server keeps them.
fn now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PICKER: (&str, &str) = ("gateways", "epp-pool");

    fn ready(holds: bool) -> Condition {
        Condition { kind: "PickerReady", holds, reason: "Reason", message: format!("ready: {holds}") }
    }

    #[test]
    fn others_entries_stay_and_ours_is_written_only_when_it_changes() {
        let others = json!([{ "parentRef": { "name": "gateway", "namespace": "a" }, "conditions": [] }]);
        let status = json!({ "parents": others });
        let first = entries(PoolVersion::V1, &status, PICKER, &[ready(false)], 1).unwrap();
        assert_eq!(first.as_array().unwrap().len(), 2);
        assert_eq!(first[0], others[0]);
        assert_eq!(
            (&first[1]["controllerName"], &first[1]["parentRef"]["kind"]),
            (&json!(CONTROLLER), &json!(KIND))
        );
        let status = json!({ "parents": first });
        assert_eq!(entries(PoolVersion::V1, &status, PICKER, &[ready(false)], 1), None);
        let later = entries(PoolVersion::V1, &status, PICKER, &[ready(true)], 2).unwrap();
        assert_eq!(later[1]["conditions"][0]["status"], "True");
        assert_eq!(message(PoolVersion::V1, &status, "PickerReady"), Some("ready: false"));
        assert_eq!(without(PoolVersion::V1, &status), Some(others.clone()));
        assert_eq!(without(PoolVersion::V1, &json!({ "parents": others })), None);
    }

    #[test]
    fn the_time_is_that_of_the_last_change() {
        let old =
            json!({ "type": "PickerReady", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z" });
        assert_eq!(written(&ready(true), Some(&old), 1)["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert_ne!(written(&ready(false), Some(&old), 1)["lastTransitionTime"], "2020-01-01T00:00:00Z");
    }
}
