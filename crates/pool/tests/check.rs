//! What `check` says of files, whole; and what counts when files declare the same.

use pool::{Declared, FaultKind, Manifest, Severity, assemble, parse, report};

fn declare(files: &[(&str, &str)]) -> Declared {
    let manifests: Vec<Manifest> =
        files.iter().map(|(file, text)| parse(file, text).unwrap_or_else(Manifest::from)).collect();
    assemble(&manifests)
}

fn told(declared: &Declared) -> Vec<String> {
    declared.faults.iter().map(ToString::to_string).collect()
}

const POOL: &str = "apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: p, annotations: {inference.networking.x-k8s.io/epp-overlay: custom-epp}}
spec: {selector: {matchLabels: {a: b}}, targetPorts: [{number: 8000}]}
";

const REFERENCE_OVERLAY: &str = include_str!("data/check/reference-overlay.yaml");

#[test]
fn the_report_reads_as_its_golden_text() {
    let declared = declare(&[
        ("pool.yaml", include_str!("data/check/pool.yaml")),
        ("more.json", include_str!("data/check/more.json")),
        ("broken.yaml", include_str!("data/check/broken.yaml")),
    ]);
    let report = report(&declared);
    // UPDATE_GOLDEN=1 writes what is said now; the difference is for a person to judge.
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/check/report.txt");
        std::fs::write(path, report.to_string()).expect("the golden file is written");
    }
    assert_eq!(report.to_string(), include_str!("data/check/report.txt"));
    assert!(!report.is_sound());
    let passed: Vec<&str> = declared.passed_over.iter().map(|passed| passed.name.as_str()).collect();
    assert_eq!(passed, ["unrelated"]);
}

#[test]
fn the_reference_overlay_passes_as_it_stands() {
    let declared = declare(&[("pool.yaml", POOL), ("overlay.yaml", REFERENCE_OVERLAY)]);
    assert_eq!(told(&declared), [""; 0]);
    assert_eq!(declared.overlays.len(), 1);
    assert!(report(&declared).is_sound());
}

#[test]
fn an_overlay_that_is_not_among_the_files_is_a_note() {
    let declared = declare(&[("pool.yaml", POOL)]);
    assert_eq!(declared.faults[0].severity, Severity::Note);
    assert_eq!(
        told(&declared),
        [
            "pool.yaml:3:78: inference.networking.x-k8s.io/epp-overlay: note: the ConfigMap default/custom-epp is not among these files; expected it in the cluster; using the default picker until it is there"
        ]
    );
    assert!(report(&declared).is_sound() && declared.is_whole());
}

#[test]
fn an_overlay_is_found_in_the_pools_namespace_alone() {
    let elsewhere = REFERENCE_OVERLAY.replace("name: custom-epp", "name: custom-epp\n  namespace: other");
    let declared = declare(&[("pool.yaml", POOL), ("overlay.yaml", &elsewhere)]);
    assert_eq!(declared.faults[0].kind, FaultKind::OverlayMissing);
}

#[test]
fn a_named_config_map_is_judged_whatever_its_keys_and_others_only_by_theirs() {
    let map = |name: &str, data: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {data}\n")
    };
    for (text, faults, overlays) in [
        (
            map("custom-epp", "{deploy: 'a: b'}"),
            &["o:4:8: deploy: there is no such part of a picker; expected deployment"][..],
            1,
        ),
        (map("custom-epp", "{}"), &[], 1),
        (map("any", "{deploy: 'a: b'}"), &[], 0),
        (map("any", "{service: 'a: b', other: x}"), &["o:4:25: other: there is no such part"], 1),
        (map("any", "{service: }"), &["o:4:15: service: it is empty; expected YAML as a text"], 1),
        (map("any", "{service: ''}"), &["service: it is empty"], 1),
        (map("any", "{service: '# nothing'}"), &["service: it is empty"], 1),
        (map("any", "{service: {a: b}}"), &["o:4:17: service: found a mapping, not its text"], 1),
        (map("any", "{service: 7}"), &["service: found \"7\""], 1),
        (map("any", "{service: text}"), &["o:4:17: service:1:1: found \"text\"; expected a mapping"], 1),
        (map("any", "{service: '[a]'}"), &["service:1:1: found a list; expected a mapping"], 1),
        (
            map("any", "{service: \"a: b\\n---\\nc: d\"}"),
            &["o:4:17: service:3:1: a second document begins"],
            1,
        ),
        (map("any", "{service: \"a: b\\nc: *d\"}"), &["service:2:4: "], 1),
        (
            map("any", "{pdb: 'a: b', podDisruptionBudget: 'a: b'}"),
            &["o:4:8: pdb: podDisruptionBudget, which means the same, is given too; expected one of the two"],
            1,
        ),
        (
            map("any", "\n  service: |\n    a: b\n    on: [yes, 'no', 010, x]"),
            &[
                "o:7:5: service:2:1: YAML 1.1 and 1.2 read \"on\" differently; expected it in quotes",
                "o:7:10: service:2:6: ",
                "o:7:21: service:2:17: YAML 1.1 and 1.2 read \"010\"",
            ],
            1,
        ),
        (map("any", "\n  service: |\n\n    # why\n    on: x"), &["o:8:5: service:3:1: "], 1),
    ] {
        let declared = declare(&[("a", POOL), ("o", &text)]);
        let told: Vec<String> = declared
            .faults
            .iter()
            .filter(|fault| fault.kind == FaultKind::InvalidOverlay)
            .map(ToString::to_string)
            .collect();
        assert_eq!((told.len(), declared.overlays.len()), (faults.len(), overlays), "{text}{told:?}");
        for (told, fault) in told.iter().zip(faults) {
            assert!(told.contains(fault), "{text}{told}\n{fault}");
        }
    }
}

/// Found by fuzzing: such a value was said to begin at a column of an empty line.
#[test]
fn a_literal_block_with_blank_lines_first_is_placed_at_its_text() {
    let told = told(&declare(&[(
        "f",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata:\n  deployment: |\n\n\n    a: 1\n    b: on\n  \
         pdb: |\n\n    - 1\n",
    )]));
    let starts: Vec<&str> = told.iter().map(|told| told.split(": ").next().expect("a position")).collect();
    assert_eq!(starts, ["f:9:8", "f:12:5"], "{told:?}");
}

#[test]
fn v1_rules_over_v1alpha2_in_whatever_order_they_come() {
    let alpha = "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferencePool\nmetadata: {name: p}\nspec: {selector: {a: b}, targetPortNumber: 1}\n";
    let v1 = POOL.replace(", annotations: {inference.networking.x-k8s.io/epp-overlay: custom-epp}", "");
    for files in [[("a", alpha), ("b", v1.as_str())], [("b", &v1), ("a", alpha)]] {
        let declared = declare(&files);
        assert_eq!(declared.pools.len(), 1);
        assert_eq!(declared.pools[0].target_ports, [8000]);
        assert_eq!(declared.faults[0].kind, FaultKind::ShadowedByV1);
        assert_eq!(
            told(&declared),
            [
                "a:1:1: apiVersion: the InferencePool default/p is declared in v1 too, at b:1:1; expected one of the two; using the v1 one"
            ]
        );
        assert!(!declared.is_whole());
    }
    let other = alpha.replace("name: p", "name: p, namespace: other");
    assert_eq!(declare(&[("a", &other), ("b", &v1)]).pools.len(), 2);
}

#[test]
fn the_first_of_two_that_are_the_same_is_used() {
    let slice =
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: IPv4\n";
    let again = POOL.replace("8000", "9000");
    let declared = declare(&[
        ("a", POOL),
        ("b", &again),
        ("c", slice),
        ("d", slice),
        ("o", REFERENCE_OVERLAY),
        ("q", REFERENCE_OVERLAY),
    ]);
    assert_eq!(declared.pools[0].target_ports, [8000]);
    assert_eq!((declared.slices.len(), declared.overlays.len()), (1, 1));
    assert_eq!(
        told(&declared),
        [
            "b:1:1: metadata.name: InferencePool default/p (v1) is declared again, first at a:1:1; expected it once; using the first",
            "d:1:1: metadata.name: EndpointSlice default/s is declared again, first at c:1:1; expected it once; using the first",
            "q:1:1: metadata.name: ConfigMap default/custom-epp is declared again, first at o:1:1; expected it once; using the first",
        ]
    );
}

#[test]
fn the_oldest_model_has_the_name() {
    let model = |name: &str, created: &str, pool: &str| {
        format!(
            "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModel\nmetadata: {{name: {name}, creationTimestamp: {created}}}\nspec: {{modelName: m, poolRef: {{name: {pool}}}}}\n"
        )
    };
    let pools = format!("{POOL}---\n{}", POOL.replace("name: p", "name: q"));
    let files = [
        ("1", model("undated", "null", "p")),
        ("2", model("younger", "'2025-02-01T00:00:00Z'", "p")),
        ("3", model("oldest", "'2025-01-01T00:00:00Z'", "p")),
        ("4", model("elsewhere", "'2026-01-01T00:00:00Z'", "q")),
    ];
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(file, text)| (*file, text.as_str()))
        .chain([("p", pools.as_str()), ("r", REFERENCE_OVERLAY)])
        .collect();
    let declared = declare(&files);
    let names: Vec<&str> = declared.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["oldest", "elsewhere"]);
    assert_eq!(
        told(&declared),
        [
            "1:1:1: spec.modelName: \"m\" is taken in the pool default/p by the older InferenceModel oldest; expected a name of its own; using the older one",
            "2:1:1: spec.modelName: \"m\" is taken in the pool default/p by the older InferenceModel oldest; expected a name of its own; using the older one",
        ]
    );
}

#[test]
fn a_pool_that_is_named_and_not_declared_is_a_note() {
    let objective = "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceObjective\nmetadata: {name: o}\nspec: {poolRef: {name: nowhere}}\n";
    let declared = declare(&[("a", objective)]);
    assert_eq!((declared.objectives.len(), declared.faults[0].kind), (1, FaultKind::PoolMissing));
    assert!(report(&declared).is_sound());
}

#[test]
fn nothing_declared_is_sound_and_says_nothing() {
    let report = report(&declare(&[("a", ""), ("b", "---\n---\n")]));
    assert!(report.is_sound());
    assert_eq!(report.to_string(), "");
}
