//! Every setting at its edges, and what stands in for one that is bad.

use std::sync::Arc;
use std::time::Duration;

use pool::{
    Annotations, FaultKind, MetricsScheme, Origin, PoolPolicy, Resolved, RoutingStrategy, Runtime, parse,
    settings_reference,
};

const ROUTING: &str = "inference.networking.x-k8s.io/routing-strategy";
const BLOCK_SIZE: &str = "inference-epp-env.networking.x-k8s.io/prefix-cache-hash-block-size";
const BLOCKS_MAX: &str = "inference-epp-env.networking.x-k8s.io/prefix-cache-max-prefix-blocks";
const LRU: &str = "inference-epp-env.networking.x-k8s.io/prefix-cache-lru-capacity";
const QUEUEING: &str = "inference.networking.x-k8s.io/queueing";
const CAPACITY: &str = "inference-epp-env.networking.x-k8s.io/total-queue-capacity";
const TTL: &str = "inference-epp-env.networking.x-k8s.io/queue-ttl";
const RUNTIME: &str = "inference.networking.x-k8s.io/model-server-runtime";
const OVERLAY: &str = "inference.networking.x-k8s.io/epp-overlay";
const SCHEME: &str = "inference-epp-env.networking.x-k8s.io/model-server-metrics-scheme";
const PORT: &str = "inference-epp-env.networking.x-k8s.io/model-server-metrics-port";
const PATH: &str = "inference-epp-env.networking.x-k8s.io/model-server-metrics-path";
const SKIP_VERIFY: &str =
    "inference-epp-env.networking.x-k8s.io/model-server-metrics-https-insecure-skip-verify";

const KEYS: [&str; 13] = [
    ROUTING,
    BLOCK_SIZE,
    BLOCKS_MAX,
    LRU,
    QUEUEING,
    CAPACITY,
    TTL,
    RUNTIME,
    SCHEME,
    PORT,
    PATH,
    SKIP_VERIFY,
    OVERLAY,
];

fn resolve(pairs: &[(&str, &str)]) -> Resolved {
    PoolPolicy::resolve(&annotations(pairs), None)
}

fn annotations(pairs: &[(&str, &str)]) -> Annotations {
    Annotations::from_pairs(&Arc::from("test"), pairs.iter().copied())
}

/// The setting's value as shown, and where it comes from.
fn shown(resolved: &Resolved, key: &str) -> (String, Origin) {
    let setting = resolved.settings.iter().find(|setting| setting.key == key).expect("a known key");
    (setting.value.clone(), setting.origin)
}

#[test]
fn nothing_annotated_is_the_contracts_defaults() {
    let resolved = resolve(&[]);
    assert_eq!(resolved.policy, PoolPolicy::default());
    assert_eq!(resolved.faults, []);
    let values: Vec<(&str, &str)> =
        resolved.settings.iter().map(|setting| (setting.key, setting.value.as_str())).collect();
    let defaults = [
        "DEFAULT",
        "64",
        "128",
        "50000",
        "disabled",
        "104857600",
        "30s",
        "vllm",
        "http",
        "",
        "/metrics",
        "true",
        "",
    ];
    assert_eq!(values, KEYS.into_iter().zip(defaults).collect::<Vec<_>>());
    assert!(resolved.settings.iter().all(|setting| setting.origin == Origin::Default));
}

#[test]
fn every_setting_reaches_its_field() {
    let resolved = resolve(&[
        (ROUTING, "PREFIX_CACHE"),
        (BLOCK_SIZE, "16"),
        (BLOCKS_MAX, "256"),
        (LRU, "31250"),
        (QUEUEING, "enabled"),
        (CAPACITY, "1024"),
        (TTL, "1.5h"),
        (RUNTIME, "trt-llm"),
        (SCHEME, "https"),
        (PORT, "8002"),
        (PATH, "/prometheus?all=1"),
        (SKIP_VERIFY, "false"),
        (OVERLAY, "custom-epp"),
    ]);
    assert_eq!(resolved.faults, []);
    assert!(resolved.settings.iter().all(|setting| setting.origin == Origin::Annotation));
    let policy = resolved.policy;
    assert_eq!(policy.routing_strategy, RoutingStrategy::PrefixCache);
    let prefix = policy.prefix_cache;
    assert_eq!(
        (prefix.block_size_bytes, prefix.prefix_blocks_max, prefix.lru_capacity_blocks),
        (16, 256, 31_250)
    );
    let queueing = policy.queueing;
    assert_eq!((queueing.enabled, queueing.capacity_bytes), (true, 1024));
    assert_eq!(queueing.ttl, Duration::from_secs(5400));
    assert_eq!(policy.runtime, Runtime::TrtLlm);
    let metrics = policy.metrics;
    assert_eq!(
        (metrics.scheme, metrics.port, metrics.path.as_str()),
        (MetricsScheme::Https, Some(8002), "/prometheus?all=1")
    );
    assert!(!metrics.https_insecure_skip_verify);
    assert_eq!(policy.epp_overlay.as_deref(), Some("custom-epp"));
}

#[test]
fn whole_numbers_hold_at_their_edges_and_nowhere_beyond() {
    for (key, largest, beyond) in [
        (BLOCK_SIZE, "65536", "65537"),
        (BLOCKS_MAX, "65536", "65537"),
        (LRU, "10000000", "10000001"),
        (CAPACITY, "1099511627776", "1099511627777"),
        (PORT, "65535", "65536"),
    ] {
        for (written, value) in [
            ("1", "1"),
            (largest, largest),
            (" 64 ", "64"),
            ("\t64\n", "64"),
            ("\u{a0}64\u{3000}", "64"),
            ("+64", "64"),
            ("0064", "64"),
        ] {
            let resolved = resolve(&[(key, written)]);
            assert_eq!(shown(&resolved, key), (value.to_owned(), Origin::Annotation), "{key} {written:?}");
            assert_eq!(resolved.faults, [], "{key} {written:?}");
        }
        for (written, what) in [
            ("0", "\"0\" is out of range"),
            ("-1", "\"-1\" is out of range"),
            ("-0", "\"-0\" is out of range"),
            (beyond, "is out of range"),
            ("9223372036854775808", "is out of range"),
            ("-9223372036854775809", "is out of range"),
            ("1e3", "\"1e3\" is not a whole number"),
            ("0x10", "is not a whole number"),
            ("1_000", "is not a whole number"),
            ("64.0", "is not a whole number"),
            ("++64", "is not a whole number"),
            ("+", "is not a whole number"),
            ("6 4", "is not a whole number"),
            ("６４", "is not a whole number"),
            ("٦٤", "is not a whole number"),
            ("64\0", "\"64\\0\" is not a whole number"),
            ("", "the value is empty"),
            (" ", "the value is empty"),
        ] {
            is_refused(key, written, what);
        }
    }
}

#[test]
fn words_are_taken_as_they_are_spelled_and_not_otherwise() {
    for (key, words) in [
        (ROUTING, &["DEFAULT", "PREFIX_CACHE"][..]),
        (QUEUEING, &["disabled", "enabled"]),
        (RUNTIME, &["vllm", "sglang", "trt-llm"]),
        (SCHEME, &["http", "https"]),
        (SKIP_VERIFY, &["true", "false"]),
    ] {
        for word in words {
            let resolved = resolve(&[(key, &format!(" {word}\n"))]);
            assert_eq!(shown(&resolved, key), ((*word).to_owned(), Origin::Annotation));
            let swapped: String = word
                .chars()
                .map(|c| if c.is_uppercase() { c.to_ascii_lowercase() } else { c.to_ascii_uppercase() })
                .collect();
            is_refused(key, &swapped, "is none of its values");
        }
        for written in ["default,PREFIX_CACHE", "1", "yes", "\u{200b}vllm", "vllm\0"] {
            is_refused(key, written, "is none of its values");
        }
        is_refused(key, "", "the value is empty");
    }
}

#[test]
fn the_ttl_is_a_go_duration_above_zero() {
    for (written, value) in [
        ("300ms", "300ms"),
        ("1.5h", "1h30m"),
        ("2h45m", "2h45m"),
        (".5s", "500ms"),
        ("5.s", "5s"),
        ("0h1s", "1s"),
        ("+30s", "30s"),
        (" 30s ", "30s"),
        ("1ns", "1ns"),
        ("1µs", "1us"),
        ("1μs", "1us"),
        ("9223372036854775807ns", "2562047h47m16.854775807s"),
    ] {
        assert_eq!(
            shown(&resolve(&[(TTL, written)]), TTL),
            (value.to_owned(), Origin::Annotation),
            "{written}"
        );
    }
    for (written, what) in [
        ("5", "lacks a unit"),
        ("1d", "unknown unit"),
        ("1h-2m", "unknown unit"),
        ("30 s", "unknown unit"),
        ("0", "is not above 0"),
        ("0s", "is not above 0"),
        ("0.1ns", "is not above 0"),
        ("-1s", "is below zero"),
        ("9223372036854775808ns", "longer than"),
        ("3000000h", "longer than"),
        ("", "the value is empty"),
    ] {
        is_refused(TTL, written, what);
    }
}

#[test]
fn paths_and_names_are_held_to_what_can_be_asked_for() {
    for path in ["/", "/metrics", "/a/b?c=d&e", "/%20"] {
        assert_eq!(shown(&resolve(&[(PATH, path)]), PATH).0, path);
    }
    for path in ["metrics", "http://host/metrics", "/a b", "/\u{e9}", "/a#b", "/a\r\nHost: b", "/a\0"] {
        is_refused(PATH, path, "is not the path of a URL");
    }
    for name in ["Custom", "a_b", "-a", "a..b", &"a".repeat(254)] {
        is_refused(OVERLAY, name, "cannot be the name of a ConfigMap");
    }
}

/// Refused with that reason, the last valid value kept for this setting alone.
fn is_refused(key: &str, written: &str, what: &str) {
    let other = if key == QUEUEING { (ROUTING, "PREFIX_CACHE") } else { (QUEUEING, "enabled") };
    let bad = annotations(&[(key, written), other]);
    let at_start = PoolPolicy::resolve(&bad, None);
    let default = shown(&resolve(&[]), key).0;
    assert_eq!(shown(&at_start, key), (default, Origin::Default), "{key} {written:?}");

    let last = resolve(&[(key, valid_and_not_default(key))]);
    let later = PoolPolicy::resolve(&bad, Some(&last.policy));
    assert_eq!(
        shown(&later, key),
        (valid_and_not_default(key).to_owned(), Origin::LastValid),
        "{key} {written:?}"
    );
    assert_eq!(shown(&later, other.0).1, Origin::Annotation, "its neighbours are read");
    for (resolved, origin) in [(&at_start, "(default)"), (&later, "(last valid)")] {
        assert_eq!(resolved.faults.len(), 1, "{key} {written:?}: {:?}", resolved.faults);
        let fault = &resolved.faults[0];
        assert_eq!((fault.kind, fault.key.as_str()), (FaultKind::InvalidAnnotation, key));
        assert!(fault.what.contains(what), "{key} {written:?}: {fault}");
        assert!(fault.using.ends_with(origin), "{fault}");
    }
}

fn valid_and_not_default(key: &str) -> &'static str {
    match key {
        ROUTING => "PREFIX_CACHE",
        QUEUEING => "enabled",
        TTL => "7s",
        RUNTIME => "sglang",
        OVERLAY => "mine",
        SCHEME => "https",
        PATH => "/other",
        SKIP_VERIFY => "false",
        _ => "7",
    }
}

#[test]
fn an_annotation_that_is_taken_away_leaves_the_default_not_the_last_value() {
    let last = resolve(&[(BLOCK_SIZE, "16"), (OVERLAY, "mine"), (PORT, "1")]).policy;
    assert_eq!(PoolPolicy::resolve(&annotations(&[]), Some(&last)).policy, PoolPolicy::default());
}

#[test]
fn an_unknown_key_under_our_prefixes_names_the_nearest_known_one() {
    for (key, expected) in [
        ("inference.networking.x-k8s.io/routing-stratgy", ROUTING),
        ("inference-epp-env.networking.x-k8s.io/queue-tll", TTL),
        ("inference.networking.x-k8s.io/queue-ttl", TTL),
        ("inference-epp-env.networking.x-k8s.io/queueing", QUEUEING),
        ("inference-epp-env.networking.x-k8s.io/lru-capacity", LRU),
        // The pool's own domain.
        ("inference.networking.k8s.io/queueing", QUEUEING),
        ("inference.networking.k8s.io/queue-ttl", TTL),
    ] {
        let resolved = resolve(&[(key, "1")]);
        let [fault] = &resolved.faults[..] else { panic!("one fault for {key}") };
        assert_eq!(fault.kind, FaultKind::UnknownAnnotation);
        assert_eq!(
            fault.to_string(),
            format!(
                "test:1:1: {key}: there is no such setting; expected {expected}; using nothing: it is ignored"
            )
        );
    }
    let resolved = resolve(&[("inference.networking.x-k8s.io/colour", "blue")]);
    assert!(resolved.faults[0].expected.starts_with(&format!("one of {ROUTING}, {BLOCK_SIZE}, ")));
}

#[test]
fn keys_of_others_are_none_of_our_business() {
    let resolved = resolve(&[
        ("inference.networking.k8s.io/active-ports", "8000"),
        ("example.com/routing-strategy", "x"),
        ("routing-strategy", ""),
        ("inference.networking.x-k8s.iox/queueing", ""),
    ]);
    assert_eq!(resolved.faults, []);
}

#[test]
fn a_value_that_is_no_string_is_a_fault_and_its_text_is_used() {
    let text = format!(
        "apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: p
  annotations:
    {BLOCK_SIZE}: 16
    {SKIP_VERIFY}: false
    {QUEUEING}: on
    {LRU}: 0
    {TTL}:
    {PATH}: [/a]
    {ROUTING}: {{a: b}}
    example.com/mine: 1
    example.com/text: text
spec:
  selector: {{matchLabels: {{app: a}}}}
  targetPorts: [{{number: 8000}}]
"
    );
    let manifest = parse("p.yaml", &text).expect("YAML");
    assert_eq!(manifest.faults, []);
    let resolved = PoolPolicy::resolve(&manifest.pools[0].annotations, None);
    assert_eq!(shown(&resolved, BLOCK_SIZE), ("16".to_owned(), Origin::Annotation));
    assert_eq!(shown(&resolved, SKIP_VERIFY), ("false".to_owned(), Origin::Annotation));
    let faults: Vec<String> = resolved.faults.iter().map(ToString::to_string).collect();
    let column = |key: &str| 7 + key.len();
    assert_eq!(
        faults,
        [
            format!(
                "p.yaml:6:{}: {BLOCK_SIZE}: the number \"16\" is not a string; expected a string: quote it; using 16",
                column(BLOCK_SIZE)
            ),
            format!(
                "p.yaml:7:{}: {SKIP_VERIFY}: the boolean \"false\" is not a string; expected a string: quote it; using false",
                column(SKIP_VERIFY)
            ),
            format!(
                "p.yaml:8:{}: {QUEUEING}: \"on\" is none of its values; expected disabled or enabled; using disabled (default)",
                column(QUEUEING)
            ),
            format!(
                "p.yaml:9:{}: {LRU}: \"0\" is out of range; expected a whole number from 1 to 10000000; using 50000 (default)",
                column(LRU)
            ),
            format!(
                "p.yaml:10:{}: {TTL}: the value is empty; expected a duration above 0 such as 300ms, 1.5h or 2h45m (units ns, us, ms, s, m, h); using 30s (default)",
                column(TTL) - 2
            ),
            format!(
                "p.yaml:11:{}: {PATH}: a list is not a string; expected a path that begins with / and holds what a URL may; using /metrics (default)",
                column(PATH)
            ),
            format!(
                "p.yaml:12:{}: {ROUTING}: a mapping is not a string; expected DEFAULT or PREFIX_CACHE; using DEFAULT (default)",
                column(ROUTING)
            ),
            format!(
                "p.yaml:13:{}: example.com/mine: the number \"1\" is not a string; expected a string: quote it; using nothing: it is ignored",
                column("example.com/mine")
            ),
        ]
    );
}

#[test]
fn the_reference_has_a_row_for_each_setting() {
    let reference = settings_reference();
    let rows: Vec<&str> = reference.lines().skip(2).collect();
    assert_eq!(rows.len(), KEYS.len());
    for (row, key) in rows.iter().zip(KEYS) {
        assert!(row.starts_with(&format!("| `{key}` | ")) && row.matches(" | ").count() == 4, "{row}");
    }
    assert!(rows[6].contains("| Duration | `30s` |"), "{}", rows[6]);
    assert!(rows[9].contains("| int64 | the endpoint's own port |"), "{}", rows[9]);
}
