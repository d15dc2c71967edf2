//! No text panics, and whatever is wrong is told: random bytes, sound manifests with a few bytes changed, and what is
//! known to bring parsers down.

use std::fmt::Write as _;

use pool::{Manifest, assemble, parse, report};
use proptest::prelude::*;

const SEEDS: [&str; 4] = [
    include_str!("data/check/pool.yaml"),
    include_str!("data/check/more.json"),
    include_str!("data/check/reference-overlay.yaml"),
    "apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModelRewrite
metadata: &m {name: r, creationTimestamp: 2025-01-01T00:00:00Z}
spec: {poolRef: {name: p}, rules: [{matches: [{model: {value: a}}], targets: [{modelRewrite: b, weight: 1}]}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {<<: {name: s}, labels: {app: a}}
addressType: IPv6
ports: [{port: 8000}]
endpoints: [&e {addresses: ['fd00::1'], conditions: {ready: true}}, *e]
",
];

/// Everything that can be done with a text, done; true when it was YAML.
fn exercise(text: &str) -> bool {
    let parsed = parse("f", text);
    let is_yaml = parsed.is_ok();
    let manifest = parsed.unwrap_or_else(Manifest::from);
    let declared = assemble([&manifest, &manifest]);
    for pool in &declared.pools {
        let _ = pool.endpoints(&declared.slices);
    }
    let printed = report(&declared).to_string();
    let lines = report(&declared).settings.len() + declared.faults.len();
    assert!(printed.lines().count() >= lines, "each fault has its line");
    assert!(!printed.contains(|c: char| c.is_control() && c != '\n'), "nothing reaches the terminal");
    for fault in &declared.faults {
        assert!(fault.position.line >= 1 && fault.position.column >= 1);
    }
    is_yaml
}

#[derive(Clone, Debug)]
enum Change {
    Put(usize, String),
    Cut(usize, usize),
    Copy(usize, usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let fragment = prop_oneof![
        "[-\\[\\]{}:,?&*!|>'\"%@`#~<\\n\\t ]{1,3}",
        "\\PC{1,4}",
        prop::sample::select(vec![
            "\u{0}",
            "\u{feff}",
            "\r\n",
            "---\n",
            "...\n",
            "<<: *m\n",
            "&m ",
            "*m",
            "!!int ",
            "null",
            "on",
            "9999999999999999999999",
            "\"\\ud800\"",
            "\u{1b}[2J",
            "|2-\n"
        ])
        .prop_map(str::to_owned),
    ];
    let at = 0..4096_usize;
    prop_oneof![
        (at.clone(), fragment).prop_map(|(at, text)| Change::Put(at, text)),
        (at.clone(), 1..40_usize).prop_map(|(at, count)| Change::Cut(at, count)),
        (at.clone(), 1..200_usize, at).prop_map(|(from, count, to)| Change::Copy(from, count, to)),
    ]
}

fn changed(seed: &str, changes: &[Change]) -> String {
    let mut text: Vec<char> = seed.chars().collect();
    for change in changes {
        let within = |at: &usize, text: &[char]| at % (text.len() + 1);
        match change {
            Change::Put(at, fragment) => {
                let at = within(at, &text);
                text.splice(at..at, fragment.chars());
            }
            Change::Cut(at, count) => {
                let at = within(at, &text);
                text.drain(at..(at + count).min(text.len()));
            }
            Change::Copy(from, count, to) => {
                let from = within(from, &text);
                let copy = text[from..(from + count).min(text.len())].to_vec();
                let to = within(to, &text);
                text.splice(to..to, copy);
            }
        }
    }
    text.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_text(text in "\\PC{0,200}") {
        exercise(&text);
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        exercise(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn manifests_with_changes(seed in 0..SEEDS.len(), changes in prop::collection::vec(change(), 1..6)) {
        exercise(&changed(SEEDS[seed], &changes));
    }
}

#[test]
fn the_seeds_themselves_are_yaml() {
    assert!(SEEDS.iter().all(|seed| exercise(seed)));
}

#[test]
fn what_brings_parsers_down() {
    let many = 1 << 20;
    let mut laughs = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for n in 1..30 {
        writeln!(laughs, "a{n}: &a{n} [{}]", vec![format!("*a{}", n - 1); 9].join(", ")).expect("written");
    }
    for text in [
        laughs,
        "[".repeat(many),
        "{".repeat(many),
        "- ".repeat(many),
        "? ".repeat(many),
        "&a ".repeat(many),
        "a: &a [*a]".to_owned(),
        format!("[{}]", "a,".repeat(many)),
        "!".repeat(many),
        "'".repeat(many),
        format!("a: |\n{}", " \n".repeat(many)),
        format!("{{{}}}", "\"a\":1,".repeat(many)),
    ] {
        assert!(!exercise(&text) || !parse("f", &text).expect("YAML").faults.is_empty(), "{}", &text[..20]);
    }
    exercise(&"---\n".repeat(many));
    exercise(&"kind: A\napiVersion: b\n---\n".repeat(many / 32));
}

#[test]
fn faults_are_counted_and_not_told_without_end() {
    let mut fields = String::new();
    for n in 0..100_000 {
        writeln!(fields, "  selectorr{n}: 1").expect("written");
    }
    let text = format!(
        "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {{name: p}}\nspec:\n  selector: {{matchLabels: {{a: b}}}}\n  targetPorts: [{{number: 1}}]\n{fields}"
    );
    let manifest = parse("f", &text).expect("YAML");
    assert_eq!((manifest.pools.len(), manifest.faults.len()), (1, 1000));
    assert_eq!(
        manifest.faults[999].to_string(),
        "f:1:1: file: it has more than 999 faults; expected fewer; using what is sound; the other faults are not shown"
    );
}
