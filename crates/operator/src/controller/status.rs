//! Our entries in a pool's status. One speaks of its picker: is what the pool's owner wrote in force, and does it serve? One for each
//! Gateway by which a route leads to the pool: does it take the pool?

use k8s_openapi::jiff::Timestamp;
use pool::PoolVersion;
use serde_json::{Value, json};

/// Who wrote an entry.
const CONTROLLER: &str = "pointsman.dev/controller";
const GATEWAY_API: &str = "gateway.networking.k8s.io";
/// What the list holds (upstream's limit).
const ENTRIES_MAX: usize = 32;
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

/// Of whom an entry speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    group: &'static str,
    kind: &'static str,
    namespace: String,
    name: String,
}

/// What stands in the status for one parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) parent: Parent,
    pub(super) conditions: Vec<Condition>,
}

impl Parent {
    /// The picker's Deployment.
    pub(super) fn deployment(namespace: &str, name: &str) -> Parent {
        Parent { group: "apps", kind: "Deployment", namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// A Gateway.
    pub(super) fn gateway(namespace: &str, name: &str) -> Parent {
        Parent { group: GATEWAY_API, kind: "Gateway", namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn reference(&self) -> Value {
        json!({ "group": self.group, "kind": self.kind, "namespace": self.namespace, "name": self.name })
    }
}

/// The status' list of entries in that version.
pub(super) fn list(version: PoolVersion) -> &'static str {
    match version {
        PoolVersion::V1 => "parents",
        PoolVersion::V1Alpha2 => "parent",
    }
}

/// The entries with ours as they should be, and no others of ours; none where nothing changes.
pub(super) fn entries(version: PoolVersion, status: &Value, own: &[Entry], generation: i64) -> Option<Value> {
    let there = match &status[list(version)] {
        Value::Array(there) => there.clone(),
        _ => Vec::new(),
    };
    let others: Vec<Value> = there.iter().filter(|entry| !is_ours(version, entry)).cloned().collect();
    let written = own.iter().map(|Entry { parent, conditions }| {
        let before = there.iter().find(|entry| is_ours(version, entry) && is_of(entry, parent));
        let known = |kind: &str| {
            let all = before.and_then(|entry| entry["conditions"].as_array());
            all.and_then(|all| all.iter().find(|condition| condition["type"] == kind))
        };
        let conditions =
            conditions.iter().map(|condition| written(condition, known(condition.kind), generation));
        let mut entry =
            json!({ "parentRef": parent.reference(), "conditions": conditions.collect::<Vec<_>>() });
        if version == PoolVersion::V1 {
            entry["controllerName"] = CONTROLLER.into();
        }
        entry
    });
    let room = ENTRIES_MAX.saturating_sub(others.len());
    let now: Vec<Value> = others.into_iter().chain(written.take(room)).collect();
    (now != there).then_some(Value::Array(now))
}

/// What our entry about the picker says of that condition.
pub(super) fn message<'s>(version: PoolVersion, status: &'s Value, kind: &str) -> Option<&'s str> {
    let all = status[list(version)].as_array()?;
    let ours =
        all.iter().find(|entry| is_ours(version, entry) && entry["parentRef"]["kind"] == "Deployment")?;
    let condition = ours["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)?;
    condition["message"].as_str()
}

/// By who wrote it. v1alpha2 does not say that: there the entries about Deployments are ours, and those about Gateways, which we write for
/// all of Envoy Gateway's; and its default, which says that no controller has come yet, goes when one has.
fn is_ours(version: PoolVersion, entry: &Value) -> bool {
    let parent = &entry["parentRef"];
    let is_picker = parent["group"] == "apps" && parent["kind"] == "Deployment";
    match version {
        PoolVersion::V1 => is_picker || entry["controllerName"] == CONTROLLER,
        PoolVersion::V1Alpha2 => {
            is_picker
                || (parent["kind"] == "Gateway" && parent["group"] == GATEWAY_API)
                || (parent["kind"] == "Status" && parent["name"] == "default")
        }
    }
}

fn is_of(entry: &Value, parent: &Parent) -> bool {
    entry["parentRef"] == parent.reference()
}

fn written(condition: &Condition, known: Option<&Value>, generation: i64) -> Value {
    let status = if condition.holds { "True" } else { "False" };
    let since = known
        .filter(|known| known["status"] == status)
        .and_then(|known| known["lastTransitionTime"].as_str());
    let since = since.map_or_else(now, str::to_owned);
    json!({
        "type": condition.kind,
        "status": status,
        "reason": condition.reason,
        "message": shown(&condition.message),
        "observedGeneration": generation,
        "lastTransitionTime": since,
    })
}

/// A message as a condition has it: as many of its lines as there is room for, and how many more there are.
pub(super) fn shown(message: &str) -> String {
    if message.len() <= MESSAGE_BYTES_MAX {
        return message.to_owned();
    }
    let room = MESSAGE_BYTES_MAX - 32;
    let cut = message.floor_char_boundary(room);
    let (whole, shown) = match message[..cut].rfind('\n') {
        Some(end) => (end + 1, &message[..end]),
        None => (cut, &message[..cut]),
    };
    match message[whole..].lines().count() {
        1 if whole == cut => format!("{shown}…"),
        more => format!("{shown}\n… and {more} more"),
    }
}

/// Whole seconds, as the API server keeps them.
fn now() -> String {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_message_without_room_whole_lines_are_shown_and_the_others_counted() {
        let line = "x".repeat(999);
        let of = |lines: usize| vec![line.as_str(); lines].join("\n");
        assert_eq!(shown(&of(4)), of(4));
        assert_eq!(shown(&of(9)), format!("{}\n… and 5 more", of(4)));
        assert_eq!(shown(&"ä".repeat(4000)), format!("{}…", "ä".repeat(2032)));
        assert!(shown(&of(2000)).len() <= MESSAGE_BYTES_MAX);
    }

    fn ready(holds: bool) -> Condition {
        Condition { kind: "PickerReady", holds, reason: "Reason", message: format!("ready: {holds}") }
    }

    fn picker(holds: bool) -> Entry {
        Entry { parent: Parent::deployment("gateways", "epp-pool"), conditions: vec![ready(holds)] }
    }

    fn gateway(name: &str) -> Entry {
        let accepted =
            Condition { kind: "Accepted", holds: true, reason: "Accepted", message: String::new() };
        Entry { parent: Parent::gateway("a", name), conditions: vec![accepted] }
    }

    #[test]
    fn others_entries_stay_and_ours_are_written_only_when_they_change() {
        let others = json!([{ "parentRef": { "name": "gateway", "namespace": "a" }, "controllerName": "other.io/c", "conditions": [] }]);
        let status = json!({ "parents": others });
        let own = [picker(false), gateway("gateway")];
        let first = entries(PoolVersion::V1, &status, &own, 1).unwrap();
        assert_eq!(first.as_array().unwrap().len(), 3);
        assert_eq!(first[0], others[0]);
        assert_eq!(
            (
                &first[1]["controllerName"],
                &first[1]["parentRef"]["kind"],
                &first[2]["parentRef"]["namespace"]
            ),
            (&json!(CONTROLLER), &json!("Deployment"), &json!("a"))
        );
        let status = json!({ "parents": first });
        assert_eq!(entries(PoolVersion::V1, &status, &own, 1), None);
        let later = entries(PoolVersion::V1, &status, &[picker(true), gateway("gateway")], 2).unwrap();
        assert_eq!(later[1]["conditions"][0]["status"], "True");
        assert_eq!(message(PoolVersion::V1, &status, "PickerReady"), Some("ready: false"));
        assert_eq!(entries(PoolVersion::V1, &status, &[], 1), Some(others.clone()));
        assert_eq!(entries(PoolVersion::V1, &json!({ "parents": others }), &[], 1), None);
    }

    #[test]
    fn the_entry_by_which_a_pool_of_v1alpha2_waits_for_a_controller_goes() {
        let waiting = json!({ "parentRef": { "kind": "Status", "name": "default" }, "conditions": [] });
        let status = json!({ "parent": [waiting] });
        let now = entries(PoolVersion::V1Alpha2, &status, &[picker(true)], 1).unwrap();
        assert_eq!(now.as_array().unwrap().len(), 1);
        assert_eq!(now[0]["parentRef"]["kind"], "Deployment");
    }

    #[test]
    fn what_has_no_room_is_left_out() {
        let others: Vec<Value> =
            (0..31).map(|it| json!({ "parentRef": { "name": it }, "controllerName": "o.io/c" })).collect();
        let own = [picker(true), gateway("g")];
        let all = entries(PoolVersion::V1, &json!({ "parents": others }), &own, 1).unwrap();
        assert_eq!(all.as_array().unwrap().len(), 32);
        assert_eq!(all[31]["parentRef"]["kind"], "Deployment");
    }

    #[test]
    fn the_time_is_that_of_the_last_change() {
        let old =
            json!({ "type": "PickerReady", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z" });
        assert_eq!(written(&ready(true), Some(&old), 1)["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert_ne!(written(&ready(false), Some(&old), 1)["lastTransitionTime"], "2020-01-01T00:00:00Z");
    }
}
