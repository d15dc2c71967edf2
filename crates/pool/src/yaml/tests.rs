//! Places, kinds of scalars, limits. That no text panics is in `tests/hostile.rs`.

use super::*;

fn one(text: &str) -> Node {
    let documents = read(text).expect("YAML");
    let [node] = <[Node; 1]>::try_from(documents).expect("one document");
    node
}

fn entry<'n>(node: &'n Node, name: &str) -> (&'n Key, &'n Node) {
    let Value::Mapping(entries) = &node.value else { panic!("no mapping: {node:?}") };
    let (key, node) = entries.iter().find(|(key, _)| key.name == name).expect("the key");
    (key, node)
}

fn scalar(node: &Node) -> (&str, Scalar) {
    match &node.value {
        Value::Scalar { text, scalar, .. } => (text, *scalar),
        _ => panic!("no scalar: {node:?}"),
    }
}

fn places(text: &str, name: &str) -> ((u32, u32), (u32, u32)) {
    let documents = read(text).expect("YAML");
    let (key, node) = entry(documents.last().expect("a document"), name);
    ((key.place.line, key.place.column), (node.place.line, node.place.column))
}

fn refusal(text: &str) -> (u32, u32, String) {
    let error = read(text).expect_err("refused");
    (error.place.line, error.place.column, error.what)
}

#[test]
fn places_count_lines_and_characters_from_one() {
    assert_eq!(places("a: 1\nkey:  value\n", "key"), ((2, 1), (2, 7)));
    assert_eq!(places("é: 1\n'ké': 'v'\n", "ké"), ((2, 1), (2, 7)));
    assert_eq!(places("a: 1\r\nkey: v\r\n", "key"), ((2, 1), (2, 6)));
    assert_eq!(places("\u{feff}key: v\n", "key"), ((1, 1), (1, 6)));
    assert_eq!(places("a: 1\n---\n# more\nkey: v\n", "key"), ((4, 1), (4, 6)));
    assert_eq!(places("{\n\t\"key\": \"v\"\n}\n", "key"), ((2, 2), (2, 9)));
    assert_eq!(places("key: |\n    text\n", "key"), ((1, 1), (2, 5)));
    assert_eq!(places("a: &x [1]\nkey: *x\n", "key"), ((2, 1), (2, 6)));
}

#[test]
fn a_literal_block_begins_at_its_first_character_that_is_no_line_feed() {
    for (text, place) in [
        ("k: |-\n  a: 1\n", (2, 3)),
        ("k: |\n\n\n  a: 1\n", (4, 3)),
        ("k: |2-\n   a: 1\n", (2, 3)),
        ("k: | # why\n  a: 1\n", (2, 3)),
    ] {
        assert_eq!(places(text, "k").1, place, "{text:?}");
    }
}

#[test]
fn scalars_are_what_yaml_takes_them_for() {
    use Scalar::{Ambiguous, Boolean, Null, Number, String};
    for (text, kind) in [
        ("text", String),
        ("'64'", String),
        ("\"true\"", String),
        ("!!str 64", String),
        ("1.2.3", String),
        ("1e", String),
        ("30s", String),
        ("2024-01-01", String),
        ("0xZZ", String),
        ("64", Number),
        ("-1", Number),
        ("+.5", Number),
        ("1e3", Number),
        ("0x1F", Number),
        (".inf", Number),
        ("0", Number),
        ("0.5", Number),
        ("!!int '64'", Number),
        ("true", Boolean),
        ("False", Boolean),
        ("", Null),
        ("~", Null),
        ("null", Null),
        ("y", Ambiguous),
        ("No", Ambiguous),
        ("ON", Ambiguous),
        ("010", Ambiguous),
        ("0o10", Ambiguous),
        ("0b1", Ambiguous),
        ("1_000", Ambiguous),
        ("yEs", String),
        ("_1", String),
    ] {
        assert_eq!(scalar(entry(&one(&format!("k: {text}\n")), "k").1).1, kind, "{text:?}");
    }
}

#[test]
fn json_is_read_with_its_escapes() {
    let node = one("{\"k\": \"a\\/b\\ud83d\\ude00\\u00e9\", \"n\": 1}");
    assert_eq!(scalar(entry(&node, "k").1), ("a/b😀é", Scalar::String));
    assert_eq!(scalar(entry(&node, "n").1), ("1", Scalar::Number));
}

#[test]
fn merge_keys_yield_to_what_stands_beside_them() {
    let node = one("base: &b {x: 1, y: 2}\nmore: &m {y: 3, z: 4}\nk:\n  x: 0\n  <<: [*b, *m]\n");
    let merged = entry(&node, "k").1;
    let value = |name| scalar(entry(merged, name).1).0;
    assert_eq!([value("x"), value("y"), value("z")], ["0", "2", "4"]);
}

#[test]
fn what_is_unclear_is_refused_where_it_stands() {
    for (text, place, what) in [
        ("a: 1\nb: 2\na: 3\n", (3, 1), "the key \"a\" is given twice, first at 1:1"),
        ("{\"a\": 1, \"a\": 2}", (1, 10), "the key \"a\" is given twice, first at 1:2"),
        ("[a]: 1\n", (1, 1), "a key must be a scalar, this one is a list"),
        ("k: !mine 1\n", (1, 10), "the tag \"!mine\" has no meaning here"),
        ("k: !!map [1]\n", (1, 10), "the tag \"!!map\" has no meaning here"),
        ("k: &a [*a]\n", (1, 8), "an alias within the value that it stands for"),
        ("k: *none\n", (1, 4), "unknown anchor"),
        ("<<: 1\n", (1, 5), "only a mapping, or a list of mappings, can be merged with <<"),
        ("a:\n\tb: 1\n", (2, 2), "tabs disallowed"),
        ("a: \"open\n", (1, 4), "unclosed quote"),
        ("a: b: c\n", (1, 5), "mapping values are not allowed"),
        ("a: \u{0}\n", (1, 4), "unexpected character"),
    ] {
        let (line, column, said) = refusal(text);
        assert_eq!((line, column), place, "{text:?}: {said}");
        assert!(said.contains(what), "{text:?}: {said}");
    }
}

#[test]
fn nesting_has_a_limit_however_it_comes_about() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(read(&nested(DEPTH_MAX)).is_ok());
    let stairs: String = (0..=DEPTH_MAX).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let chain: String = (1..=DEPTH_MAX).map(|n| format!("- &a{n} [*a{}]\n", n - 1)).collect();
    // Blocks and flows each within the parser's own limit.
    let mixed = format!("{}{}", "- ".repeat(DEPTH_MAX - 1), nested(2));
    for text in [nested(DEPTH_MAX + 1), stairs, format!("- &a0 []\n{chain}"), mixed] {
        assert_eq!(refusal(&text).2, "nested deeper than 64");
    }
}

#[test]
fn aliases_are_expanded_within_a_budget() {
    let mut laughs = "- &a0 [lol,lol,lol,lol,lol,lol,lol,lol,lol]\n".to_owned();
    for n in 1..10 {
        let aliases = vec![format!("*a{}", n - 1); 9].join(",");
        laughs.push_str(&format!("- &a{n} [{aliases}]\n"));
    }
    assert_eq!(refusal(&laughs).2, "more than 1000000 values, aliases expanded");
    let long = format!("- &a {}\n{}", "x".repeat(1 << 20), "- *a\n".repeat(64));
    assert_eq!(refusal(&long).2, "more than 33554432 bytes of text, aliases expanded");
}

#[test]
fn size_has_a_limit() {
    assert!(read(&" ".repeat(TEXT_BYTES_MAX)).is_ok());
    assert_eq!(
        refusal(&" ".repeat(TEXT_BYTES_MAX + 1)).2,
        "16777217 bytes are more than the 16777216 that are read"
    );
    assert_eq!(refusal(&"-\n".repeat(NODES_MAX)).2, "more than 1000000 values, aliases expanded");
}
