//! Against a parser that is slow and obvious.

use proptest::prelude::*;

use super::*;

type Parsed = (Vec<(String, String)>, f64);

/// Reads what follows the name character by character, as the format's description reads.
fn slow_parse(text: &str) -> Option<Parsed> {
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    let blanks = |at: &mut usize| {
        while matches!(chars.get(*at), Some(' ' | '\t')) {
            *at += 1;
        }
    };
    let mut labels = Vec::new();
    blanks(&mut at);
    if chars.get(at) == Some(&'{') {
        at += 1;
        loop {
            blanks(&mut at);
            if chars.get(at) == Some(&'}') {
                at += 1;
                break;
            }
            let mut name = String::new();
            while chars.get(at).is_some_and(|c| c.is_ascii_alphanumeric() || *c == '_') {
                name.push(chars[at]);
                at += 1;
            }
            blanks(&mut at);
            if name.is_empty() || chars.get(at) != Some(&'=') {
                return None;
            }
            at += 1;
            blanks(&mut at);
            if chars.get(at) != Some(&'"') {
                return None;
            }
            at += 1;
            let mut value = String::new();
            loop {
                match (*chars.get(at)?, chars.get(at + 1)) {
                    ('"', _) => break,
                    ('\\', Some('n')) => value.push('\n'),
                    ('\\', Some('\\')) => value.push('\\'),
                    ('\\', Some('"')) => value.push('"'),
                    ('\\', Some(other)) => value.extend(['\\', *other]),
                    ('\\', None) => return None,
                    (plain, _) => {
                        value.push(plain);
                        at += 1;
                        continue;
                    }
                }
                at += 2;
            }
            at += 1;
            labels.push((name, value));
            blanks(&mut at);
            match chars.get(at) {
                Some(',') => at += 1,
                Some('}') => {}
                _ => return None,
            }
        }
    }
    let rest: String = chars[at..].iter().collect();
    let words: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |word: &str| word.parse::<f64>().ok();
    match words[..] {
        [value] => Some((labels, number(value)?)),
        [value, second, ..] if second.starts_with('#') => Some((labels, number(value)?)),
        [value, time] => number(time).and(number(value)).map(|value| (labels, value)),
        [value, time, third, ..] if third.starts_with('#') => {
            number(time).and(number(value)).map(|value| (labels, value))
        }
        _ => None,
    }
}

fn fast_parse(text: &str) -> Option<Parsed> {
    let sample = Sample::parse(text.as_bytes()).ok()?;
    let labels = sample.labels.iter().map(|(name, value)| (name.to_owned(), value.into_owned()));
    Some((labels.collect(), sample.value))
}

fn same(a: Option<&Parsed>, b: Option<&Parsed>) -> bool {
    match (a, b) {
        (Some((labels, value)), Some((others, other))) => {
            labels == others && value.to_bits() == other.to_bits()
        }
        (None, None) => true,
        _ => false,
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_written_is_read_back(
        labels in prop::collection::vec(("[a-zA-Z_][a-z0-9_]{0,8}", ".{0,12}"), 0..5),
        value in any::<f64>(),
        time in prop::option::of(any::<i64>()),
    ) {
        let written: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let time = time.map(|time| format!(" {time}")).unwrap_or_default();
        let line = format!("{{{}}} {value:e}{time}", written.join(","));
        let read = fast_parse(&line);
        prop_assert!(same(read.as_ref(), Some(&(labels, value))), "{line}: {read:?}");
        prop_assert!(same(read.as_ref(), slow_parse(&line).as_ref()), "{line}");
    }

    #[test]
    fn near_samples_are_judged_as_the_slow_parser_judges(
        line in r#"( |\t)?(\{( |a|_1|=|"|"x"|\\|\\"|\\n|\\\\|\\t|,|\}|é|b="y"|c="z",){0,8}\})?( |\t)?(1|0\.5|-3e2|NaN|\+Inf|x|)( 17|\t1e9| # \{a="b"\} 1| y|){0,3}"#
    ) {
        let (fast, slow) = (fast_parse(&line), slow_parse(&line));
        prop_assert!(same(fast.as_ref(), slow.as_ref()), "{line}: {fast:?} {slow:?}");
    }

    #[test]
    fn lines_are_those_of_the_whole_page(
        page in "[a\r\n]{0,60}",
        cuts in prop::collection::vec(0_usize..60, 0..6),
    ) {
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(page.len())).collect();
        cuts.sort_unstable();
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        let mut from = 0;
        for to in cuts.into_iter().chain([page.len()]) {
            let keep = |line: &[u8]| { seen.push(line.to_vec()); Ok::<_, LineError>(()) };
            lines.feed(&page.as_bytes()[from..to], keep).unwrap();
            from = to;
        }
        seen.push(lines.unended().to_vec());
        let expected: Vec<Vec<u8>> = page.split('\n').map(|line| line.as_bytes().to_vec()).collect();
        prop_assert_eq!(seen, expected);
    }
}

#[test]
fn names_end_at_labels_or_blanks_and_comments_have_none() {
    assert_eq!(split_name(b"a:b{c} 1"), Some((&b"a:b"[..], &b"{c} 1"[..])));
    assert_eq!(split_name(b"  a 1"), Some((&b"a"[..], &b" 1"[..])));
    for line in [&b"# HELP a b"[..], b"", b"   ", b"a"] {
        assert_eq!(split_name(line), None);
    }
}
