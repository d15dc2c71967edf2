//! Request bodies: [`BodyScan`] against `serde_json` and the oracle of its own property tests.

use inference::{BodyScan, LOOKAHEAD_BYTES, MODEL_BYTES_MAX, Malformed, Need, NotJson, Progress};

use crate::json::{self, Spanned, Value, Verdict};
use crate::oracle;
use crate::testing::Json;
use crate::{Api, Asked};

type Outcome = Result<(), Malformed>;

/// Scans `body` in these pieces, in one and byte by byte, and holds what comes out against the oracles.
pub(crate) fn check(api: Api, need: Need, body: &[u8], pieces: &[&[u8]]) {
    let (outcome, asked) = scan(api, need, pieces.iter().copied());
    assert_eq!(scan(api, need, [body]), (outcome.clone(), asked.clone()), "cuts matter");
    let (bytewise, enough_at) = scan_bytes(api, need, body);
    assert_eq!(bytewise, (outcome.clone(), asked.clone()), "cuts matter");
    assert!(asked.prompt.len() <= need.prompt_bytes_max);

    match json::parse(body) {
        None => check_broken(&outcome, enough_at, body),
        Some(tree) => {
            let judged = Judged { api, need, body, tree, outcome, asked, enough_at };
            judged.check();
        }
    }
}

fn scan<'a>(api: Api, need: Need, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Outcome, Asked) {
    let mut scan = BodyScan::new(api, need);
    for piece in pieces {
        let _ = scan.push(piece);
    }
    (scan.finish(), scan.into_asked())
}

/// The same byte by byte, and how many it takes until it is enough.
fn scan_bytes(api: Api, need: Need, body: &[u8]) -> ((Outcome, Asked), Option<usize>) {
    let mut scan = BodyScan::new(api, need);
    let enough = body.chunks(1).position(|byte| scan.push(byte) == Ok(Progress::Enough));
    ((scan.finish(), scan.into_asked()), enough.map(|at| at + 1))
}

/// A body that is no JSON: refused where `serde_json` stumbles, or before, or never read so far.
fn check_broken(outcome: &Outcome, enough_at: Option<usize>, body: &[u8]) {
    let is_sound = |len: usize| json::judge(&body[..len]) != Verdict::Broken;
    match outcome {
        Ok(()) => assert!(is_sound(enough_at.expect("no JSON was taken") - 1), "read past a fault"),
        Err(Malformed::NotJson(fault)) => match *fault {
            NotJson::Unexpected { at, .. } | NotJson::ControlCharacter { at } | NotJson::TooDeep { at } => {
                assert!(is_sound(at), "the fault is before byte {at}");
                assert!(!is_sound(at + 1), "byte {at} is no fault");
            }
            NotJson::BadEscape { at } => {
                assert!(is_sound(at), "the fault is before byte {at}");
                // serde_json reads the digits of an escape all at once: they must not end too early.
                let upto = [&body[..=at], b"0000"].concat();
                assert_eq!(json::judge(&upto), Verdict::Broken, "byte {at} is no fault");
            }
            NotJson::NotUtf8 { at } => {
                let fault = std::str::from_utf8(body).expect_err("it is UTF-8");
                assert_eq!(fault.valid_up_to(), at);
            }
            NotJson::Truncated { at, .. } => {
                assert_eq!((at, json::judge(body)), (body.len(), Verdict::Begun));
            }
            NotJson::ByteOrderMark => assert_eq!(body[0], 0xEF),
        },
        Err(Malformed::NotAnObject) => assert_ne!(body.trim_ascii_start()[0], b'{'),
        Err(Malformed::ModelNotAString { at } | Malformed::NotAPrompt { at, .. }) => {
            assert!(is_sound(*at), "a fault before byte {at} was passed over");
        }
        Err(Malformed::ModelTooLong) => assert!(body.len() > MODEL_BYTES_MAX),
        Err(Malformed::MissingPrompt { .. } | Malformed::MissingModel) => {
            unreachable!("the end of what is no JSON was read");
        }
    }
}

/// A body that `serde_json` takes, and what we say of it.
struct Judged<'a> {
    api: Api,
    need: Need,
    body: &'a [u8],
    tree: Spanned,
    outcome: Outcome,
    asked: Asked,
    enough_at: Option<usize>,
}

impl Judged<'_> {
    fn check(&self) {
        let fault = self.first_fault();
        match (&self.outcome, self.enough_at) {
            (Err(ours), _) => assert_eq!(Some(ours), fault.as_ref().map(|(_, fault)| fault)),
            (Ok(()), None) => {
                assert_eq!(fault, None);
                assert_eq!(Some(&self.asked), self.wanted(&Cut::NOWHERE).as_ref());
            }
            (Ok(()), Some(at)) => {
                assert!(fault.as_ref().is_none_or(|(known, _)| *known >= at), "{fault:?} before byte {at}");
                self.check_enough(at);
            }
        }
        let span = self.asked.model_span.clone().map(|span| &self.body[span]);
        let spanned = span.map(|written| match json::parse(written).map(|tree| tree.value) {
            Some(Value::String(model)) => model,
            other => unreachable!("the model's span holds {other:?}"),
        });
        assert_eq!(spanned, self.asked.model);
    }

    /// What was known at byte `at` is what was asked up to there; and within the lookahead nothing that came after, but
    /// a field that came again, could have changed the prompt or the model.
    fn check_enough(&self, at: usize) {
        // Whether a key that is read while its value is not is text depends on where it stands.
        let cuts = [false, true].map(|keyed| Cut { at, keyed, again_only: false });
        let wanted = cuts.map(|cut| self.wanted(&cut));
        assert!(
            wanted.iter().flatten().any(|wanted| *wanted == self.asked),
            "enough at {at}: {:?}, not {wanted:?}",
            self.asked
        );
        if at < LOOKAHEAD_BYTES {
            let whole = self.wanted(&Cut { at, keyed: false, again_only: true });
            if let Some(Asked { model, prompt, .. }) = whole {
                assert_eq!((&self.asked.model, &self.asked.prompt), (&model, &prompt), "enough at {at}");
            }
        }
    }

    fn wanted(&self, cut: &Cut) -> Option<Asked> {
        // What is no object had not begun, or it would have been refused.
        let fields = match cut.apply(&self.tree, true) {
            Json::Object(fields) => fields,
            _ => Vec::new(),
        };
        let asked = oracle::asked(self.api, self.need.prompt_bytes_max, &fields)?;
        // That the span holds the model is checked apart.
        Some(Asked { model_span: self.asked.model_span.clone(), ..asked })
    }

    /// The first fault of the body and how many bytes it takes to know it.
    fn first_fault(&self) -> Option<(usize, Malformed)> {
        let Value::Object(fields) = &self.tree.value else {
            return Some((self.tree.start, Malformed::NotAnObject));
        };
        let wrong = fields.iter().find_map(|field| {
            let Spanned { start: at, end, value } = &field.value;
            let fault = self.fault_of(&field.key, *at, value)?;
            let is_word = matches!(value, Value::Null | Value::Bool(_));
            // A name is too long at a byte that only a scan can tell.
            let known = if is_word || fault == Malformed::ModelTooLong { *end } else { at + 1 };
            Some((known, fault))
        });
        let Json::Object(plain) = Cut::NOWHERE.apply(&self.tree, true) else { return wrong };
        let absent = match oracle::required(self.api, &plain) {
            None => Some(Malformed::MissingPrompt { field: self.api.prompt_field() }),
            Some(_) => {
                let last = plain.iter().rev().find(|(name, _)| name == "model");
                let has_model = last.is_some_and(|(_, model)| *model != Json::Null);
                (self.need.model_required && !has_model).then_some(Malformed::MissingModel)
            }
        };
        wrong.or(absent.map(|fault| (self.body.len() + 1, fault)))
    }

    fn fault_of(&self, key: &str, at: usize, value: &Value) -> Option<Malformed> {
        let wants_messages = match self.api {
            Api::Responses => key == "input",
            Api::ChatCompletions | Api::Messages | Api::Embeddings => key == "messages",
            Api::Completions => false,
        };
        let wants_prompts = match self.api {
            Api::Completions => key == "prompt",
            Api::Embeddings => key == "input",
            _ => false,
        };
        let takes_strings = wants_prompts || self.api == Api::Responses;
        match value {
            Value::String(model) if key == "model" => {
                (model.len() > MODEL_BYTES_MAX).then_some(Malformed::ModelTooLong)
            }
            Value::Null | Value::Array(_) if key != "model" => None,
            Value::Null => None,
            _ if key == "model" => Some(Malformed::ModelNotAString { at }),
            Value::String(_) if takes_strings => None,
            _ if wants_messages || wants_prompts => {
                let field = if wants_messages && self.api == Api::Embeddings {
                    "messages"
                } else {
                    self.api.prompt_field()
                };
                let expected = if takes_strings { "a string or an array" } else { "an array" };
                Some(Malformed::NotAPrompt { field, expected, at })
            }
            _ => None,
        }
    }
}

/// What of a tree counts when it was enough at byte `at`.
struct Cut {
    at: usize,
    /// Whether a field counts whose key has begun and whose value has not.
    keyed: bool,
    /// Leave out only what came after that byte and was there before.
    again_only: bool,
}

impl Cut {
    const NOWHERE: Self = Self { at: usize::MAX, keyed: false, again_only: false };

    fn apply(&self, tree: &Spanned, is_request: bool) -> Json {
        match &tree.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Number(number) => Json::Number(number.clone()),
            Value::String(text) => Json::String(text.clone()),
            Value::Array(elements) => {
                let counts = |element: &&Spanned| self.again_only || self.has_begun(element);
                Json::Array(
                    elements.iter().filter(counts).map(|element| self.apply(element, false)).collect(),
                )
            }
            Value::Object(fields) => {
                let mut kept: Vec<(String, Json)> = Vec::new();
                for field in fields {
                    let is_again = || kept.iter().any(|(key, _)| same_field(key, &field.key));
                    let counts = if self.again_only {
                        self.has_begun(&field.value) || !is_again()
                    } else {
                        self.has_begun(&field.value) || self.keyed && !is_request && field.key_start < self.at
                    };
                    if counts && !(is_request && self.is_open_model(field)) {
                        let is_limit = is_request && field.key.starts_with("max_");
                        let value = if is_limit && !self.again_only && field.value.end >= self.at {
                            // A number that has not ended is not known.
                            Json::Null
                        } else {
                            self.apply(&field.value, false)
                        };
                        kept.push((field.key.clone(), value));
                    }
                }
                Json::Object(kept)
            }
        }
    }

    /// A name counts when its string has ended.
    fn is_open_model(&self, field: &json::Field) -> bool {
        let is_string = matches!(field.value.value, Value::String(_));
        field.key == "model" && is_string && !self.again_only && field.value.end > self.at
    }

    /// A word counts when it has ended, anything else when it has begun.
    fn has_begun(&self, value: &Spanned) -> bool {
        match value.value {
            Value::Null | Value::Bool(_) => value.end <= self.at,
            _ => value.start < self.at,
        }
    }
}

/// `input` and `messages` of an embeddings request stand for each other.
fn same_field(one: &str, other: &str) -> bool {
    let alike = |key: &str| key == "input" || key == "messages";
    one == other || alike(one) && alike(other)
}
