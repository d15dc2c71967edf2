//! Random requests against the oracle, and cuts that must not matter.

use proptest::prelude::*;

use super::*;
use crate::testing::{Dice, Json, json, number, text};

/// Keys that mean something somewhere, and some that do not.
const KEYS: [&str; 24] = [
    "role",
    "content",
    "text",
    "type",
    "name",
    "id",
    "input",
    "url",
    "data",
    "image_url",
    "source",
    "file",
    "thinking",
    "tool_calls",
    "tool_call_id",
    "arguments",
    "output",
    "reasoning",
    "summary",
    "cache_control",
    "title",
    "x",
    "",
    "a_key_that_is_longer_than_any_of_ours",
];

fn key() -> BoxedStrategy<String> {
    prop_oneof![9 => prop::sample::select(&KEYS).prop_map(str::to_owned), 1 => text()].boxed()
}

/// Numbers as serde_json prints them, so that both sides keep the same digits.
fn plain(value: Json) -> Json {
    match value {
        Json::Number(number) => match serde_json::from_str::<Json>(&number) {
            Ok(Json::Number(number)) => {
                Json::Number(number.parse::<u64>().map_or("7".to_owned(), |n| n.to_string()))
            }
            _ => Json::Null,
        },
        Json::Array(elements) => Json::Array(elements.into_iter().map(plain).collect()),
        Json::Object(fields) => {
            Json::Object(fields.into_iter().map(|(key, value)| (key, plain(value))).collect())
        }
        other => other,
    }
}

fn any_value() -> BoxedStrategy<Json> {
    json(key()).prop_map(plain).boxed()
}

fn string() -> BoxedStrategy<Json> {
    text().prop_map(Json::String).boxed()
}

fn integer() -> BoxedStrategy<Json> {
    number().prop_map(|number| plain(Json::Number(number))).boxed()
}

fn array(element: BoxedStrategy<Json>) -> BoxedStrategy<Json> {
    prop::collection::vec(element, 0..4).prop_map(Json::Array).boxed()
}

fn object(fields: BoxedStrategy<(String, Json)>) -> BoxedStrategy<Json> {
    prop::collection::vec(fields, 0..5).prop_map(Json::Object).boxed()
}

fn entry(keys: &'static [&'static str], value: BoxedStrategy<Json>) -> BoxedStrategy<(String, Json)> {
    (prop::sample::select(keys).prop_map(str::to_owned), value).boxed()
}

fn content() -> BoxedStrategy<Json> {
    let part = object(
        prop_oneof![
            3 => entry(&["text", "thinking", "type", "id", "name"], string()),
            1 => entry(&["image_url", "source", "file", "content", "input"], any_value()),
            1 => (key(), any_value()),
        ]
        .boxed(),
    );
    prop_oneof![2 => string(), 3 => array(prop_oneof![4 => part, 1 => any_value()].boxed()), 1 => any_value()]
        .boxed()
}

fn messages() -> BoxedStrategy<Json> {
    let message = object(
        prop_oneof![
            3 => entry(&["role", "role", "name", "tool_call_id"], string()),
            3 => entry(&["content", "content", "output", "summary"], content()),
            1 => (key(), any_value()),
        ]
        .boxed(),
    );
    array(prop_oneof![8 => message, 1 => any_value()].boxed())
}

fn prompts() -> BoxedStrategy<Json> {
    let tokens = array(integer());
    let elements = prop_oneof![array(string()), array(tokens.clone()), array(any_value())];
    prop_oneof![string(), tokens, elements].boxed()
}

fn request_field(api: Api, model: bool) -> BoxedStrategy<(String, Json)> {
    let prompt = match api {
        Api::Completions => entry(&["prompt"], prompts()),
        // They stand for each other: with both a field comes twice, and that must not be when it may be enough early.
        Api::Embeddings if !model => {
            prop_oneof![3 => entry(&["input"], prompts()), 1 => entry(&["messages"], messages())].boxed()
        }
        Api::Embeddings => entry(&["input"], prompts()),
        Api::Responses => entry(&["input"], prop_oneof![3 => messages(), 1 => string()].boxed()),
        Api::ChatCompletions | Api::Messages => entry(&["messages"], messages()),
    };
    let limits: &[&str] = &["max_tokens", "max_completion_tokens", "max_output_tokens", "n"];
    prop_oneof![
        4 => prompt,
        if model { 3 } else { 0 } => entry(&["model"], prop_oneof![5 => string(), 1 => any_value()].boxed()),
        1 => entry(&["tools"], any_value()),
        1 => entry(&["system", "instructions"], content()),
        2 => entry(limits, prop_oneof![4 => integer(), 1 => any_value()].boxed()),
        1 => entry(&["stream"], prop_oneof![3 => any::<bool>().prop_map(Json::Bool), 1 => any_value()].boxed()),
        1 => (text(), any_value()),
    ]
    .boxed()
}

fn api() -> impl Strategy<Value = Api> {
    let all = [Api::ChatCompletions, Api::Completions, Api::Embeddings, Api::Responses, Api::Messages];
    prop::sample::select(all.to_vec())
}

fn request(model: bool) -> impl Strategy<Value = (Api, Vec<(String, Json)>)> {
    api().prop_flat_map(move |api| (Just(api), prop::collection::vec(request_field(api, model), 0..8)))
}

fn bytes_max() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), 0..40usize, 0..400usize, Just(1 << 20)]
}

/// The first of each name.
fn without_duplicates(value: Json) -> Json {
    match value {
        Json::Object(fields) => {
            let mut seen = std::collections::HashSet::new();
            let fields = fields.into_iter().filter(|(key, _)| seen.insert(key.clone()));
            Json::Object(fields.map(|(key, value)| (key, without_duplicates(value))).collect())
        }
        Json::Array(elements) => Json::Array(elements.into_iter().map(without_duplicates).collect()),
        other => other,
    }
}

/// What the oracle makes of a whole body; `None` when it must be refused.
fn wanted(api: Api, need: Need, body: &str) -> Option<Asked> {
    let Ok(Json::Object(request)) = Json::parse(body.as_bytes()) else { return None };
    let asked = oracle::asked(api, need.prompt_bytes_max, &request)?;
    let complete =
        oracle::required(api, &request).is_some() && (asked.model.is_some() || !need.model_required);
    complete.then_some(asked)
}

/// Everything about a scan that may not depend on the cuts.
fn all_of(api: Api, need: Need, pieces: &[&[u8]]) -> (Result<(), Malformed>, Asked) {
    let mut scan = BodyScan::new(api, need);
    for piece in pieces {
        let _ = scan.push(piece);
    }
    (scan.finish(), scan.into_asked())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Without a model it is never enough before the end, so duplicates and all else must come out as from a tree.
    #[test]
    fn a_whole_body_is_read_as_from_a_tree((api, fields) in request(false), bytes_max in bytes_max(), seed: u64) {
        let mut dice = Dice(seed);
        let body = Json::Object(fields).write(&mut dice);
        let need = Need { prompt_bytes_max: bytes_max, model_required: false, stream_wanted: false };
        let ours = scan(api, need, dice.cut(body.as_bytes()));
        let wanted = wanted(api, need, &body);
        prop_assert_eq!(ours.as_ref().ok(), wanted.as_ref(), "{:?} {}", ours, body);
    }

    /// With a model it may be enough early: without duplicates what is then known holds for the whole body.
    #[test]
    fn enough_is_never_too_early((api, fields) in request(true), bytes_max in bytes_max(), model_required: bool, seed: u64) {
        let mut dice = Dice(seed);
        let body = without_duplicates(Json::Object(fields)).write(&mut dice);
        let need = Need { prompt_bytes_max: bytes_max, model_required, stream_wanted: false };
        let ours = scan(api, need, dice.cut(body.as_bytes()));
        let wanted = wanted(api, need, &body);
        let enough = enough_at(api, need, body.as_bytes());
        match (&ours, wanted) {
            (Ok(ours), Some(wanted)) => {
                prop_assert_eq!((&ours.model, &ours.prompt), (&wanted.model, &wanted.prompt), "{}", body);
                if enough.is_none() {
                    prop_assert_eq!((ours.stream, ours.max_tokens), (wanted.stream, wanted.max_tokens), "{}", body);
                }
                let span = ours.model_span.clone().map(|span| serde_json::from_str::<String>(&body[span]).unwrap());
                prop_assert_eq!(&ours.model, &span);
            }
            (Ok(_), None) => prop_assert!(enough.is_some(), "{}", body),
            (Err(fault), Some(_)) => prop_assert!(false, "{fault} {body}"),
            (Err(_), None) => {}
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn cuts_do_not_matter(
        (api, fields) in request(true), bytes_max in bytes_max(), model_required: bool,
        faults in 0..3, padding in prop_oneof![Just(0), 32_000..33_000usize], seed: u64,
    ) {
        let mut dice = Dice(seed);
        let mut fields = fields;
        fields.insert(dice.roll(fields.len() as u64 + 1) as usize, ("x".into(), Json::String("é".repeat(padding / 2))));
        let mut body = Json::Object(fields).write(&mut Dice(seed)).into_bytes();
        for _ in 0..faults {
            let at = dice.roll(body.len() as u64) as usize;
            body[at] = b"\"\\{}[],:0\x00\xFF u"[dice.roll(13) as usize];
        }
        let need = Need { prompt_bytes_max: bytes_max, model_required, stream_wanted: false };
        let whole = all_of(api, need, &[&body]);
        prop_assert_eq!(&all_of(api, need, &dice.cut(&body)), &whole);
        let bytes: Vec<_> = body.chunks(1).collect();
        prop_assert_eq!(&all_of(api, need, &bytes), &whole);
        prop_assert!(whole.1.prompt.len() <= bytes_max);
    }
}
