//! The table of every metric: name, kind, labels, help. Names without `pointsman_` are upstream's (Gateway API
//! Inference Extension), kept so that its dashboards work unchanged.

use std::fmt::Write as _;

/// What a metric counts, by Prometheus type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
}

/// One metric family.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// The family's name as it is printed (counters with their `_total`).
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Label names, in the order they are printed.
    pub labels: &'static [&'static str],
    /// One sentence, with the unit.
    pub help: &'static str,
}

impl Definition {
    /// The name without `_total`: the encoder adds it to counters.
    #[must_use]
    pub fn base_name(&self) -> &'static str {
        match self.kind {
            Kind::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            Kind::Gauge | Kind::Histogram => self.name,
        }
    }
}

macro_rules! definitions {
    ($(#[$doc:meta])* $list:ident: $($ident:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $ident: Definition =
                Definition { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )*
        $(#[$doc])*
        pub const $list: &[Definition] = &[$($ident),*];
    };
}

definitions! {
    /// What gateways and pickers print, in the order of the reference.
    ALL:
    REQUESTS = Counter "inference_objective_request_total" ["model_name", "target_model_name"] "Requests that ended, whatever came of them";
    REQUEST_ERRORS = Counter "inference_objective_request_error_total" ["model_name", "target_model_name", "error_code"] "Requests that ended in an error, by the reason also told to the client";
    REQUEST_DURATION = Histogram "inference_objective_request_duration_seconds" ["model_name", "target_model_name"] "From the request's head to the end of its answer";
    REQUEST_SIZES = Histogram "inference_objective_request_sizes" ["model_name", "target_model_name"] "Bytes of request bodies";
    RESPONSE_SIZES = Histogram "inference_objective_response_sizes" ["model_name", "target_model_name"] "Bytes of answers' bodies";
    INPUT_TOKENS = Histogram "inference_objective_input_tokens" ["model_name", "target_model_name"] "Prompt tokens, as the model server counted them in `usage`";
    OUTPUT_TOKENS = Histogram "inference_objective_output_tokens" ["model_name", "target_model_name"] "Generated tokens, as the model server counted them in `usage`";
    RUNNING_REQUESTS = Gauge "inference_objective_running_requests" ["model_name"] "Requests sent to a model server and not ended";
    TIME_PER_OUTPUT_TOKEN = Histogram "inference_objective_normalized_time_per_output_token_seconds" ["model_name", "target_model_name"] "A request's duration divided by its output tokens";

    POOL_KV_CACHE = Gauge "inference_pool_average_kv_cache_utilization" ["name"] "Mean KV cache use (0 to 1) over endpoints with fresh metrics";
    POOL_QUEUE_SIZE = Gauge "inference_pool_average_queue_size" ["name"] "Mean of requests waiting in engines, over endpoints with fresh metrics";
    POOL_PER_POD_QUEUE = Gauge "inference_pool_per_pod_queue_size" ["name", "model_server_pod"] "Requests waiting in one engine by its last fresh metrics";
    POOL_READY_PODS = Gauge "inference_pool_ready_pods" ["name"] "Endpoints the pool has now";

    SCHEDULER_DURATION = Histogram "inference_extension_scheduler_e2e_duration_seconds" [] "Time of one decision: match, score, pick, book";
    PREFIX_INDEXER_SIZE = Gauge "inference_extension_prefix_indexer_size" [] "Blocks in the prefix index, summed over endpoints";
    PREFIX_HIT_RATIO = Histogram "inference_extension_prefix_indexer_hit_ratio" [] "Share of a request's blocks that the picked endpoint is believed to hold";
    PREFIX_HIT_BYTES = Histogram "inference_extension_prefix_indexer_hit_bytes" [] "Prompt bytes that the picked endpoint is believed to hold";
    FLOW_QUEUE_SIZE = Gauge "inference_extension_flow_control_queue_size" [] "Requests that wait in Pointsman";
    FLOW_QUEUE_BYTES = Gauge "inference_extension_flow_control_queue_bytes" [] "Bytes of the bodies of requests that wait in Pointsman";
    FLOW_SATURATION = Gauge "inference_extension_flow_control_pool_saturation" ["name"] "Share of endpoints without room (0 to 1); 1 is a saturated pool";
    FLOW_QUEUE_DURATION = Histogram "inference_extension_flow_control_request_queue_duration_seconds" [] "Time that requests waited in Pointsman, whatever became of them; without those that did not wait";
    INFO = Gauge "inference_extension_info" ["version"] "Always 1; tells the version that runs";

    OUTCOMES = Counter "pointsman_requests_total" ["reason"] "Requests by how they ended: `served` or the reason word of x-pointsman-reason";
    INSIDE = Histogram "pointsman_inside_duration_seconds" [] "Time spent inside Pointsman before a request was sent on: scan and decision, without waiting for the client's bytes";
    PICKS = Counter "pointsman_picks_total" ["endpoint", "reason"] "Picks by endpoint and by what settled them: prefix, adapter, load, only, retry";
    RETRIES = Counter "pointsman_retries_total" ["reason"] "Attempts given up before the first byte and sent to the next endpoint, by what failed";
    RETRIES_REFUSED = Counter "pointsman_retry_budget_exhausted_total" [] "Retries not made because the retry budget was spent";
    TIME_TO_FIRST_TOKEN = Histogram "pointsman_time_to_first_token_seconds" ["model_name"] "From the request's head to the first byte of the answer's body";
    TOKENS_IN = Counter "pointsman_input_tokens_total" ["model_name"] "Prompt tokens, as model servers counted them";
    TOKENS_CACHED = Counter "pointsman_cached_input_tokens_total" ["model_name"] "Prompt tokens that model servers found in their prefix cache, as they counted them";
    TOKENS_OUT = Counter "pointsman_output_tokens_total" ["model_name"] "Generated tokens, as model servers counted them";
    LIMIT_REACHED = Counter "pointsman_limit_reached_total" ["limit"] "Times that a limit refused, closed or held up something, by the limit (docs/operations.md)";
    CONNECTIONS = Gauge "pointsman_connections" [] "Connections of clients open now";
    REQUESTS_IN_FLIGHT = Gauge "pointsman_requests_in_flight" [] "Requests sent on to model servers and not ended; bounded by --requests-max";
    BODIES_BYTES = Gauge "pointsman_bodies_bytes" [] "Memory held for the bodies of requests; bounded by --bodies-bytes-max";
    INVALID_SETTINGS = Gauge "pointsman_invalid_settings" ["pool"] "Settings of the pool that are invalid now";
    RELOAD_FAILURES = Counter "pointsman_manifest_reload_failures_total" [] "Changes of manifest files that were refused; what ran kept running";

    QUEUE_WAITING = Gauge "pointsman_queue_waiting_requests" ["priority"] "Requests that wait, by priority; beyond 32 priorities the lowest read `other`";
    QUEUE_OLDEST = Gauge "pointsman_queue_oldest_seconds" [] "How long the request has waited that waits longest; 0 where none does";
    QUEUE_DISPATCH_RATE = Gauge "pointsman_queue_dispatch_rate" [] "Requests a second that left the queue for an endpoint, lately; what Retry-After is computed from";
    QUEUE_LEFT = Counter "pointsman_queue_left_total" ["reason"] "Requests that waited, by how that ended: dispatched, or the reason word";

    ENDPOINT_IN_FLIGHT = Gauge "pointsman_endpoint_in_flight_requests" ["endpoint"] "The in-flight ledger: requests booked on the endpoint and not ended";
    ENDPOINT_PREFILL = Gauge "pointsman_endpoint_prefill_pending_tokens" ["endpoint"] "The in-flight ledger: estimated prompt tokens booked on the endpoint and not answered by a first byte";
    ENDPOINT_STANDING = Gauge "pointsman_endpoint_standing" ["endpoint", "standing"] "1 for what the endpoint is now: fresh, unknown (no fresh metrics) or left_out (failed again and again)";
    SCRAPE_AGE = Gauge "pointsman_scrape_age_seconds" ["endpoint"] "Age of the last good scrape";
    SCRAPES = Counter "pointsman_scrapes_total" ["endpoint"] "Good scrapes of the endpoint's metrics page";
    SCRAPE_FAILURES = Counter "pointsman_scrape_failures_total" ["endpoint", "reason"] "Failed scrapes of the endpoint's metrics page";
}

definitions! {
    /// What the controller prints.
    CONTROLLER:
    CONTROLLER_LEADS = Gauge "pointsman_controller_leads" [] "1 while this controller works, 0 while it waits for the Lease";
    CONTROLLER_POOLS = Gauge "pointsman_controller_pools" ["version"] "InferencePools that are known, by API version";
    CONTROLLER_PENDING = Gauge "pointsman_controller_pending" [] "Pools that are to be looked at";
    CONTROLLER_FAILING = Gauge "pointsman_controller_failing" [] "Pools whose picker, or whose models' status, could not be made what it should be: tried again, the log says why";
    CONTROLLER_WATCHES_FAILING = Gauge "pointsman_controller_watches_failing" [] "Kinds that cannot be read now: the API server is away, or denies them; what was known of them stays in force";
    CONTROLLER_RECONCILES = Counter "pointsman_controller_reconciles_total" ["of", "outcome"] "Looks at a pool, at its `picker` or its `models`, or at a `gateway` of which Envoy Gateway may have to be told; `done` or `failed`";
    CONTROLLER_RECONCILE_DURATION = Histogram "pointsman_controller_reconcile_duration_seconds" [] "Time of one look at a pool";
    CONTROLLER_WRITES = Counter "pointsman_controller_writes_total" ["kind"] "Objects that were written, by kind; `Status` and `Event` beside them";
}

/// Upstream's older names of the `inference_objective_` families: the same numbers under both.
pub const OLDER_TWIN: (&str, &str) = ("inference_objective_", "inference_model_");

/// docs/metrics.md: the table as markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = String::from(
        "# Metrics\n\nWritten by `cargo xtask docs` from crates/telemetry/src/definitions.rs: do not edit.\n\n\
         `/metrics` on the admin address, OpenMetrics text. Every `inference_objective_` family is printed under its\n\
         older name `inference_model_` too. Label values that clients choose are capped at 1000, then `other`. A family\n\
         appears once it has something to show.\n\n\
         | name | type | labels | meaning |\n|---|---|---|---|\n",
    );
    rows(&mut page, ALL);
    page.push_str("\n## Of the controller\n\n| name | type | labels | meaning |\n|---|---|---|---|\n");
    rows(&mut page, CONTROLLER);
    page
}

fn rows(page: &mut String, definitions: &[Definition]) {
    for definition in definitions {
        let labels = definition.labels.join(", ");
        let kind = format!("{:?}", definition.kind).to_lowercase();
        // Writing to a String cannot fail.
        let _ = writeln!(page, "| `{}` | {kind} | {labels} | {} |", definition.name, definition.help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_counters_end_in_total() {
        let mut names: Vec<_> = ALL.iter().chain(CONTROLLER).map(|definition| definition.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for definition in ALL.iter().chain(CONTROLLER) {
            assert_eq!(
                definition.kind == Kind::Counter,
                definition.name.ends_with("_total"),
                "{}",
                definition.name
            );
        }
    }
}
