//! What the status of every kind consists of.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// One fact about an object, as `metav1.Condition`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Condition {
    /// When the status became what it is.
    #[schemars(extend("format" = "date-time"))]
    last_transition_time: String,
    /// For people.
    #[schemars(length(max = 32768))]
    message: String,
    /// The generation of the object that it speaks of.
    #[schemars(range(min = 0))]
    observed_generation: Option<i64>,
    /// Why, in one word.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"))]
    reason: String,
    /// Whether it holds.
    status: Holds,
    /// Which fact.
    #[serde(rename = "type")]
    #[schemars(
        length(max = 316),
        regex(
            pattern = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
        )
    )]
    kind: String,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
enum Holds {
    True,
    False,
    Unknown,
}

/// What the API server writes until somebody judges the object: one condition of that type.
pub(crate) fn pending(kind: &str) -> Value {
    json!([{
        "lastTransitionTime": "1970-01-01T00:00:00Z",
        "message": "Waiting for controller",
        "reason": "Pending",
        "status": "Unknown",
        "type": kind,
    }])
}
