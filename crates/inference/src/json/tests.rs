use proptest::prelude::*;

use super::*;
use crate::testing::{Dice, Json, json, text};

/// Lexes a text in the given pieces; what the events say, and how it ends.
fn lex(pieces: &[&[u8]]) -> (Vec<String>, Result<(), NotJson>) {
    let (mut lexer, mut said) = (Lexer::new(), Vec::new());
    for mut piece in pieces.iter().copied() {
        loop {
            match lexer.next(&mut piece, true) {
                Ok(Some(event)) => say(event, &mut said),
                Ok(None) => break,
                Err(fault) => return (said, Err(fault)),
            }
        }
    }
    let end = lexer.finish();
    (said, end)
}

/// Notes an event; pieces of a string or number are joined to the note of its start.
fn say(event: Event<'_>, said: &mut Vec<String>) {
    let piece = match event {
        Event::Text(text) => std::str::from_utf8(text).unwrap().to_owned(),
        Event::Char(char) => char.to_string(),
        Event::Digits(digits) => String::from_utf8(digits.to_vec()).unwrap(),
        other => return said.push(format!("{other:?} ")),
    };
    said.last_mut().unwrap().push_str(&piece);
}

/// The notes that a tree should give, numbers as they are written.
fn notes(json: &Json, said: &mut Vec<String>) {
    match json {
        Json::Null => said.push("Literal(Null) ".to_owned()),
        Json::Bool(true) => said.push("Literal(True) ".to_owned()),
        Json::Bool(false) => said.push("Literal(False) ".to_owned()),
        Json::Number(number) => {
            said.push(format!("NumberStart {number}"));
            said.push(format!(
                "NumberEnd({:?}) ",
                serde_json::from_str::<serde_json::Value>(number).unwrap().as_u64()
            ));
        }
        Json::String(string) => said.extend([format!("StringStart {string}"), "StringEnd ".to_owned()]),
        Json::Array(elements) => {
            said.push("ArrayStart ".to_owned());
            elements.iter().for_each(|element| notes(element, said));
            said.push("ArrayEnd ".to_owned());
        }
        Json::Object(fields) => {
            said.push("ObjectStart ".to_owned());
            for (key, value) in fields {
                said.extend([format!("KeyStart {key}"), "KeyEnd ".to_owned()]);
                notes(value, said);
            }
            said.push("ObjectEnd ".to_owned());
        }
    }
}

/// Whether `serde_json` takes the text; `None` where we differ on purpose.
fn oracle_accepts(text: &[u8]) -> Option<bool> {
    match serde_json::from_slice::<serde_json::Value>(text) {
        Ok(_) => Some(true),
        Err(fault) => {
            let fault = fault.to_string();
            let differs =
                fault.contains("surrogate") || fault.contains("hex escape") || fault.contains("out of range");
            (!differs).then_some(false)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn events_say_what_was_written_however_it_is_cut(tree in json(text().boxed()), seed: u64) {
        let mut dice = Dice(seed);
        let written = tree.write(&mut dice);
        let mut wanted = Vec::new();
        notes(&tree, &mut wanted);
        let (mut said, end) = lex(&dice.cut(written.as_bytes()));
        if matches!(tree, Json::Number(_)) && said.len() == 1 {
            said.push(wanted[1].clone()); // The end of a number at the top is the end of the text.
        }
        prop_assert_eq!(end, Ok(()));
        prop_assert_eq!(said, wanted);
    }

    #[test]
    fn accepts_what_serde_json_accepts(tree in json(text().boxed()), seed: u64, faults in 0..4) {
        let mut dice = Dice(seed);
        let mut written = tree.write(&mut dice).into_bytes();
        for _ in 0..faults {
            let at = dice.roll(written.len() as u64 + 1) as usize;
            let alphabet = b"{}[]\",:\\u0123456789aDd8DC.eE+-tfn \n\x00\x1f\x7f\x80\xbf\xc3\xe2\xed\xa0\xf0\xf5\xff";
            let byte = alphabet[dice.roll(alphabet.len() as u64) as usize];
            match dice.roll(4) {
                0 => written.insert(at, byte),
                1 if at < written.len() => written[at] = byte,
                2 if at < written.len() => drop(written.remove(at)),
                3 => written.truncate(at),
                _ => {}
            }
        }
        let pieces = dice.cut(&written);
        let ours = lex(&pieces);
        if let Some(accepted) = oracle_accepts(&written) {
            prop_assert_eq!(ours.1.is_ok(), accepted, "{:?}: {:?}", String::from_utf8_lossy(&written), ours.1);
        }
        prop_assert_eq!(lex(&[&written]), ours, "one piece and many differ");
    }

    #[test]
    fn any_bytes_are_judged_as_by_serde_json(bytes in prop::collection::vec(any::<u8>(), 0..12), seed: u64) {
        let ours = lex(&Dice(seed).cut(&bytes)).1;
        if let Some(accepted) = oracle_accepts(&bytes) {
            prop_assert_eq!(ours.is_ok(), accepted, "{:?}", ours);
        }
    }
}

#[test]
fn a_fault_is_named_with_its_place() {
    let cases: [(&[u8], &str); 22] = [
        (b"", "the body ends at byte 0 where a value is due"),
        (b"{", "the body ends at byte 1 where a key or '}' is due"),
        (b"{\"a\"", "the body ends at byte 4 where ':' after a key is due"),
        (b"{\"a\" 1}", "expected ':' after a key at byte 5"),
        (b"{\"a\":1 \"b\"", "expected ',' or '}' at byte 7"),
        (b"{\"a\":1,}", "expected a key after ',' at byte 7"),
        (b"{a:1}", "expected a key or '}' at byte 1"),
        (b"[1 2]", "expected ',' or ']' at byte 3"),
        (b"[1,]", "expected a value at byte 3"),
        (b"[}", "expected a value or ']' at byte 1"),
        (b"[01]", "expected ',' or ']' at byte 2"),
        (b"[-]", "expected a digit at byte 2"),
        (b"[1.]", "expected a digit at byte 3"),
        (b"[1e+]", "expected a digit at byte 4"),
        (b"[nul]", "expected 'null' at byte 4"),
        (b"{} x", "expected nothing more after the JSON value at byte 3"),
        (b"[\"a", "the body ends at byte 3 where the end of a string is due"),
        (b"[\"a\nb\"]", "control character in a string at byte 3: write it as an escape"),
        (b"[\"\\x\"]", "bad escape in a string at byte 3"),
        (b"[\"\\u12G4\"]", "bad escape in a string at byte 6"),
        (b"[\"ab\xC3(\"]", "invalid UTF-8 in a string at byte 4"),
        (b"\xEF\xBB\xBF{}", "the body begins with a byte order mark: send plain UTF-8"),
    ];
    for (text, message) in cases {
        let bytes: Vec<_> = text.chunks(1).collect();
        for pieces in [vec![text], bytes] {
            assert_eq!(lex(&pieces).1.unwrap_err().to_string(), message, "{}", String::from_utf8_lossy(text));
        }
    }
}

#[test]
fn lone_surrogates_read_as_replacement_characters() {
    let cases = [
        (r#""\ud83d\ude00""#, "😀"),
        (r#""\uD83D""#, "\u{fffd}"),
        (r#""\ude00x""#, "\u{fffd}x"),
        (r#""\ud83dx""#, "\u{fffd}x"),
        (r#""\ud83d\n""#, "\u{fffd}\n"),
        (r#""\ud83dA""#, "\u{fffd}A"),
        (r#""\ud83d\u0041""#, "\u{fffd}A"),
        (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
        (r#""\ud83d漢""#, "\u{fffd}漢"),
    ];
    for (text, decoded) in cases {
        let bytes: Vec<_> = text.as_bytes().chunks(1).collect();
        for pieces in [vec![text.as_bytes()], bytes] {
            assert_eq!(
                lex(&pieces),
                (vec![format!("StringStart {decoded}"), "StringEnd ".to_owned()], Ok(())),
                "{text}"
            );
        }
    }
}

#[test]
fn nesting_is_bounded_as_in_serde_json() {
    let nested = |depth: usize| [b"[".repeat(depth), b"]".repeat(depth)].concat();
    for depth in [1, 126, 127, 128, 129, 100_000] {
        let ours = lex(&[&nested(depth)]).1;
        assert_eq!(ours.is_ok(), depth <= usize::from(DEPTH_MAX), "{depth}");
        assert_eq!(oracle_accepts(&nested(depth)), Some(ours.is_ok()), "{depth}");
    }
    assert_eq!(lex(&[&nested(128)]).1, Err(NotJson::TooDeep { at: 127 }));
}

#[test]
fn every_control_character_is_refused_also_behind_other_scripts() {
    for control in 0..0x20 {
        for before in ["", "a", "é", "漢字 a"] {
            let text = [b"\"", before.as_bytes(), &[control], b"\""].concat();
            let fault = NotJson::ControlCharacter { at: 1 + before.len() };
            assert_eq!(lex(&[&text]).1, Err(fault), "{before} {control}");
        }
    }
}

#[test]
fn a_control_character_is_found_anywhere_in_a_long_string() {
    for at in [0, 1, 15, 63, 64, 65, 127, 128, 1000] {
        let mut text = [b"[\"".as_slice(), &[b'x'; 1001], b"\"]"].concat();
        text[2 + at] = 0x1F;
        assert_eq!(lex(&[&text]).1, Err(NotJson::ControlCharacter { at: 2 + at }));
    }
}
