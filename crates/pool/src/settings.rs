//! The table of settings: one row for each annotation, from which values are read, shown and documented.

use std::fmt::Write as _;
use std::num::IntErrorKind;
use std::ops::RangeInclusive;

use crate::duration::{format_duration, parse_duration};
use crate::fault::quoted;
use crate::names::is_dns_subdomain;
use crate::policy::{MetricsScheme, PoolPolicy, RoutingStrategy, Runtime};

/// Prefixes under which a key that is not in the table is a fault.
pub(crate) const OWNED_PREFIXES: [&str; 2] =
    ["inference.networking.x-k8s.io/", "inference-epp-env.networking.x-k8s.io/"];

/// The annotation that names an overlay.
pub(crate) const OVERLAY_KEY: &str = "inference.networking.x-k8s.io/epp-overlay";

/// One row.
pub(crate) struct Definition {
    /// The whole annotation key.
    pub(crate) key: &'static str,
    /// The type, in the words of the contract.
    pub(crate) kind: &'static str,
    /// What is valid, to stand after "expected".
    pub(crate) expected: &'static str,
    /// What it means that nothing is set, where the default is that.
    pub(crate) unset: &'static str,
    pub(crate) meaning: &'static str,
    /// Reads a trimmed value into a policy, or says what is wrong with it.
    pub(crate) read: fn(&str, &mut PoolPolicy) -> Result<(), String>,
    /// The value in a policy as an operator would write it; empty where nothing is set.
    pub(crate) show: fn(&PoolPolicy) -> String,
    /// Copies the value from one policy to another.
    pub(crate) keep: fn(&PoolPolicy, &mut PoolPolicy),
}

const STRATEGIES: &[(&str, RoutingStrategy)] =
    &[("DEFAULT", RoutingStrategy::Default), ("PREFIX_CACHE", RoutingStrategy::PrefixCache)];
const QUEUEING: &[(&str, bool)] = &[("disabled", false), ("enabled", true)];
const RUNTIMES: &[(&str, Runtime)] =
    &[("vllm", Runtime::Vllm), ("sglang", Runtime::Sglang), ("trt-llm", Runtime::TrtLlm)];
const SCHEMES: &[(&str, MetricsScheme)] = &[("http", MetricsScheme::Http), ("https", MetricsScheme::Https)];
const BOOLEANS: &[(&str, bool)] = &[("true", true), ("false", false)];

/// Every setting, in the order in which they are shown.
pub(crate) const SETTINGS: &[Definition] = &[
    Definition {
        key: "inference.networking.x-k8s.io/routing-strategy",
        kind: "string",
        expected: "DEFAULT or PREFIX_CACHE",
        unset: "",
        meaning: "`DEFAULT`: by the live load of the model servers. `PREFIX_CACHE`: the same, and requests that share \
                  a prompt prefix go to the server that already holds it, as long as load allows.",
        read: |text, policy| word(text, STRATEGIES).map(|value| policy.routing_strategy = value),
        show: |policy| spelled(policy.routing_strategy, STRATEGIES),
        keep: |from, to| to.routing_strategy = from.routing_strategy,
    },
    Definition {
        key: "inference-epp-env.networking.x-k8s.io/prefix-cache-hash-block-size",
        kind: "int64",
        expected: "a whole number from 1 to 65536",
        unset: "",
        meaning: "A prompt is cut in blocks of this many bytes (of UTF-8); a tail shorter than a block is ignored. \
                  Best when it matches the block size of the model server (16 tokens x about 4 bytes = 64).",
        read: |text, policy| {
            whole(text, 1..=65_536).map(|value| policy.prefix_cache.block_size_bytes = value)
        },
        show: |policy| policy.prefix_cache.block_size_bytes.to_string(),
        keep: |from, to| to.prefix_cache.block_size_bytes = from.prefix_cache.block_size_bytes,
    },
    Definition {
        key: "inference-epp-env.networking.x-k8s.io/prefix-cache-max-prefix-blocks",
        kind: "int64",
        expected: "a whole number from 1 to 65536",
        unset: "",
        meaning: "At most this many leading blocks of one request are matched; the rest of the prompt is ignored for \
                  matching.",
        read: |text, policy| {
            whole(text, 1..=65_536).map(|value| policy.prefix_cache.prefix_blocks_max = value)
        },
        show: |policy| policy.prefix_cache.prefix_blocks_max.to_string(),
        keep: |from, to| to.prefix_cache.prefix_blocks_max = from.prefix_cache.prefix_blocks_max,
    },
    Definition {
        key: "inference-epp-env.networking.x-k8s.io/prefix-cache-lru-capacity",
        kind: "int64",
        expected: "a whole number from 1 to 10000000",
        unset: "",
        meaning: "How many blocks are remembered for each endpoint, least recently used out first.",
        read: |text, policy| {
            whole(text, 1..=10_000_000).map(|value| policy.prefix_cache.lru_capacity_blocks = value)
        },
        show: |policy| policy.prefix_cache.lru_capacity_blocks.to_string(),
        keep: |from, to| to.prefix_cache.lru_capacity_blocks = from.prefix_cache.lru_capacity_blocks,
    },
    Definition {
        key: "inference.networking.x-k8s.io/queueing",
        kind: "string",
        expected: "disabled or enabled",
        unset: "",
        meaning: "Whether requests wait while every endpoint is saturated.",
        read: |text, policy| word(text, QUEUEING).map(|value| policy.queueing.enabled = value),
        show: |policy| spelled(policy.queueing.enabled, QUEUEING),
        keep: |from, to| to.queueing.enabled = from.queueing.enabled,
    },
    Definition {
        key: "inference-epp-env.networking.x-k8s.io/total-queue-capacity",
        kind: "int64",
        expected: "a whole number from 1 to 1099511627776",
        unset: "",
        meaning: "Sum of the bytes of all queued prompts. Past it the earliest requests are discarded, of the lowest \
                  priority first and never a higher one for a lower. A request that cannot fit is itself refused.",
        read: |text, policy| whole(text, 1..=1 << 40).map(|value| policy.queueing.capacity_bytes = value),
        show: |policy| policy.queueing.capacity_bytes.to_string(),
        keep: |from, to| to.queueing.capacity_bytes = from.queueing.capacity_bytes,
    },
    Definition {
        key: "inference-epp-env.networking.x-k8s.io/queue-ttl",
        kind: "Duration",
        expected: "a duration above 0 such as 300ms, 1.5h or 2h45m (units ns, us, ms, s, m, h)",
        unset: "",
        meaning: "Longest wait, in the grammar of Go's `time.ParseDuration`.",
        read: |text, policy| ttl(text, policy),
        show: |policy| format_duration(policy.queueing.ttl),
        keep: |from, to| to.queueing.ttl = from.queueing.ttl,
    },
    Definition {
        key: "inference.networking.x-k8s.io/model-server-runtime",
        kind: "string",
        expected: "vllm, sglang or trt-llm",
        unset: "",
        meaning: "Which engine's metrics are read.",
        read: |text, policy| word(text, RUNTIMES).map(|value| policy.runtime = value),
        show: |policy| spelled(policy.runtime, RUNTIMES),
        keep: |from, to| to.runtime = from.runtime,
    },
    Definition {
        key: "inference-epp-env.networking.x-k8s.io/model-server-metrics-scheme",
        kind: "string",
        expected: "http or https",
        unset: "",
        meaning: "Whether metrics are read in the clear or over TLS.",
        read: |text, policy| word(text, SCHEMES).map(|value| policy.metrics.scheme = value),
        show: |policy| spelled(policy.metrics.scheme, SCHEMES),
        keep: |from, to| to.metrics.scheme = from.metrics.scheme,
    },
    Definition {
        key: "inference-epp-env.networking.x-k8s.io/model-server-metrics-port",
        kind: "int64",
        expected: "a whole number from 1 to 65535",
        unset: "the endpoint's own port",
        meaning: "The port on which metrics are read.",
        read: |text, policy| whole(text, 1..=65_535).map(|value| policy.metrics.port = Some(value)),
        show: |policy| policy.metrics.port.map(|port| port.to_string()).unwrap_or_default(),
        keep: |from, to| to.metrics.port = from.metrics.port,
    },
    Definition {
        key: "inference-epp-env.networking.x-k8s.io/model-server-metrics-path",
        kind: "string",
        expected: "a path that begins with / and holds what a URL may",
        unset: "",
        meaning: "The path (and query) at which metrics are read.",
        read: |text, policy| url_path(text).map(|value| policy.metrics.path = value),
        show: |policy| policy.metrics.path.clone(),
        keep: |from, to| to.metrics.path.clone_from(&from.metrics.path),
    },
    Definition {
        key: "inference-epp-env.networking.x-k8s.io/model-server-metrics-https-insecure-skip-verify",
        kind: "bool",
        expected: "true or false",
        unset: "",
        meaning: "Whether, over TLS, any certificate will do: pods rarely hold one for their IP.",
        read: |text, policy| {
            word(text, BOOLEANS).map(|value| policy.metrics.https_insecure_skip_verify = value)
        },
        show: |policy| spelled(policy.metrics.https_insecure_skip_verify, BOOLEANS),
        keep: |from, to| to.metrics.https_insecure_skip_verify = from.metrics.https_insecure_skip_verify,
    },
    Definition {
        key: OVERLAY_KEY,
        kind: "string",
        expected: "the name of a ConfigMap in the pool's namespace",
        unset: "none",
        meaning: "The ConfigMap that overrides the picker's own Deployment, Service and PodDisruptionBudget.",
        read: |text, policy| config_map(text).map(|value| policy.epp_overlay = Some(value)),
        show: |policy| policy.epp_overlay.clone().unwrap_or_default(),
        keep: |from, to| to.epp_overlay.clone_from(&from.epp_overlay),
    },
];

impl Definition {
    /// The value in a policy, in words where nothing is set.
    pub(crate) fn in_words(&self, policy: &PoolPolicy) -> String {
        let value = (self.show)(policy);
        if value.is_empty() { self.unset.to_owned() } else { value }
    }
}

/// The settings as a Markdown table: annotation, type, default, valid values, meaning.
#[must_use]
pub fn settings_reference() -> String {
    let default = PoolPolicy::default();
    let mut text = "| annotation | type | default | valid | meaning |\n|---|---|---|---|---|\n".to_owned();
    for Definition { key, kind, expected, unset, meaning, show, .. } in SETTINGS {
        let shown = show(&default);
        let default = if shown.is_empty() { (*unset).to_owned() } else { format!("`{shown}`") };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| `{key}` | {kind} | {default} | {expected} | {meaning} |");
    }
    text
}

fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value).ok_or_else(|| format!("{} is none of its values", quoted(text)))
}

fn spelled<T: Copy + PartialEq>(value: T, words: &[(&str, T)]) -> String {
    words.iter().find(|(_, known)| *known == value).map(|(word, _)| (*word).to_owned()).unwrap_or_default()
}

/// A decimal number within `range`, which lies within `T`.
fn whole<T: TryFrom<i64>>(text: &str, range: RangeInclusive<i64>) -> Result<T, String> {
    let out_of_range = || format!("{} is out of range", quoted(text));
    let number: i64 = text.parse().map_err(|error: std::num::ParseIntError| match error.kind() {
        IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => out_of_range(),
        _ => format!("{} is not a whole number", quoted(text)),
    })?;
    let in_range = range.contains(&number).then_some(number).ok_or_else(out_of_range)?;
    T::try_from(in_range).map_err(|_| out_of_range())
}

fn ttl(text: &str, policy: &mut PoolPolicy) -> Result<(), String> {
    let ttl = parse_duration(text).map_err(|error| error.to_string())?;
    if ttl.is_zero() {
        return Err(format!("{} is not above 0", quoted(text)));
    }
    policy.queueing.ttl = ttl;
    Ok(())
}

/// Path and query as RFC 3986 allows them.
fn url_path(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%?".contains(&byte);
    if text.starts_with('/') && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!("{} is not the path of a URL", quoted(text)))
    }
}

fn config_map(text: &str) -> Result<String, String> {
    if is_dns_subdomain(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("{} cannot be the name of a ConfigMap", quoted(text)))
    }
}
