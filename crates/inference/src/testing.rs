//! What the property tests share: JSON as a tree that keeps order and duplicates, written in many styles, cut anywhere.

use proptest::prelude::*;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A JSON value with its keys in the order in which they came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    /// As serde_json prints it.
    Number(String),
    String(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    pub(crate) fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }

    /// Writes the value with spaces and escapes as the dice fall.
    pub(crate) fn write(&self, dice: &mut Dice) -> String {
        let mut text = dice.space();
        match self {
            Self::Null => text += "null",
            Self::Bool(value) => text += &value.to_string(),
            Self::Number(number) => text += number,
            Self::String(string) => text += &quoted(string, dice),
            Self::Array(elements) => {
                let elements: Vec<_> = elements.iter().map(|element| element.write(dice)).collect();
                text += &format!("[{}{}]", elements.join(","), dice.space());
            }
            Self::Object(fields) => {
                let fields: Vec<_> = fields
                    .iter()
                    .map(|(key, value)| {
                        format!("{}{}{}:{}", dice.space(), quoted(key, dice), dice.space(), value.write(dice))
                    })
                    .collect();
                text += &format!("{{{}{}}}", fields.join(","), dice.space());
            }
        }
        text + &dice.space()
    }
}

fn quoted(text: &str, dice: &mut Dice) -> String {
    let mut quoted = String::from('"');
    for char in text.chars() {
        let short = "\"\"\\\\//\u{8}b\u{c}f\nn\rr\tt".chars().collect::<Vec<_>>();
        let short = short.chunks(2).find(|pair| pair[0] == char).map(|pair| pair[1]);
        let must = matches!(char, '"' | '\\' | '\0'..='\x1F');
        match (dice.roll(8), short) {
            (0..3, Some(letter)) => quoted.extend(['\\', letter]),
            (roll, _) if must || roll == 3 => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    let digits = format!("{unit:04x}");
                    quoted += "\\u";
                    quoted += &if dice.roll(2) == 0 { digits } else { digits.to_uppercase() };
                }
            }
            _ => quoted.push(char),
        }
    }
    quoted + "\""
}

/// A small random source that proptest seeds and shrinks.
#[derive(Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// 0 to `sides - 1`.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn space(&mut self) -> String {
        let spaces = ["", "", "", "", " ", "\n", "\t\r\n", "   "];
        spaces[self.roll(spaces.len() as u64) as usize].to_owned()
    }

    /// Cuts `bytes` into pieces, empty ones among them.
    pub(crate) fn cut<'a>(&mut self, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let longest = [1, 4, 50, 5000][self.roll(4) as usize];
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at((self.roll(longest + 1) as usize).min(bytes.len()));
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }
}

/// Short strings of all sorts of characters.
pub(crate) fn text() -> impl Strategy<Value = String> {
    let char = prop_oneof![
        8 => prop::char::range(' ', '~'),
        1 => prop::char::range('\0', '\x1F'),
        1 => prop::sample::select(vec!['"', '\\', '/', '\n', '\u{7f}', 'é', 'ß', '漢', '字', '\u{fffd}', '😀', '\u{10ffff}']),
    ];
    prop::collection::vec(char, 0..20).prop_map(String::from_iter)
}

pub(crate) fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => (0..200_000u64).prop_map(|number| number.to_string()),
        1 => any::<u64>().prop_map(|number| number.to_string()),
        1 => "-?(0|[1-9][0-9]{0,8})(\\.[0-9]{1,4})?([eE][+-]?[0-9]{1,2})?",
    ]
}

/// Any value, its keys taken from `keys`.
pub(crate) fn json(keys: BoxedStrategy<String>) -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        number().prop_map(Json::Number),
        text().prop_map(Json::String),
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::Array),
            prop::collection::vec((keys.clone(), inner), 0..4).prop_map(Json::Object),
        ]
    })
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(format!("{value:?}")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Json, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = array.next_element()? {
            elements.push(element);
        }
        Ok(Json::Array(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Json, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = object.next_entry()? {
            fields.push(field);
        }
        Ok(Json::Object(fields))
    }
}
