//! What each fuzz target does with its bytes. A target fails by a panic; `cargo xtask fuzz` runs them.
//!
//! Invariants:
//! - A target compares with an oracle that shares no code with what is tested. Where the two differ on purpose, the
//!   difference is written down where it is allowed for.
//! - A target is a function of its bytes alone.

mod answer;
mod body;
mod exposition;
mod ext_proc;
mod input;
mod json;
mod manifest;
mod metrics;
#[path = "../../crates/inference/src/body/tests/oracle.rs"]
mod oracle;
mod settings;
mod testing;
mod tree;
mod yaml;

// The names that the shared oracle knows.
use inference::{Api, Asked};

use endpoints::LINE_BYTES_MAX;
use inference::{AnswerKind, LOOKAHEAD_BYTES, Need, TAIL_BYTES_MAX};
use input::Input;

const APIS: [Api; 5] =
    [Api::ChatCompletions, Api::Completions, Api::Embeddings, Api::Responses, Api::Messages];

/// Any bytes as a request body.
pub fn body(data: &[u8]) {
    let Some(input) = Input::take(data) else { return };
    let text = input.padded(2, b' ', LOOKAHEAD_BYTES);
    check_body(&input, &text);
}

/// Sound JSON of the keys that matter as a request body.
pub fn body_tree(data: &[u8]) {
    let Some(input) = Input::take(data) else { return };
    let text = tree::object(input.text, tree::REQUEST_KEYS);
    let input = input.with_text(text.as_bytes());
    let text = input.padded(2, b' ', LOOKAHEAD_BYTES);
    check_body(&input, &text);
}

fn check_body(input: &Input<'_>, text: &[u8]) {
    let need = Need {
        prompt_bytes_max: input.pick(1, &[1 << 20, 0, 1, 2, 3, 5, 8, 13, 30, 64, 200, 8192]),
        model_required: input.choice(4, 2) == 0,
        stream_wanted: input.choice(5, 2) == 1,
    };
    body::check(input.pick(0, &APIS), need, text, &input.cut(6, text));
}

/// Any bytes as an answer.
pub fn answer(data: &[u8]) {
    let Some(input) = Input::take(data) else { return };
    let text = input.padded(2, b'x', TAIL_BYTES_MAX);
    let pieces = input.cut(6, &text);
    answer::check_events(&text, &pieces);
    answer::check_usage(input.pick(0, &[AnswerKind::EventStream, AnswerKind::Json]), &text, &pieces);
}

/// Sound JSON of the keys that matter as an answer, or in the events of one.
pub fn answer_tree(data: &[u8]) {
    let Some(input) = Input::take(data) else { return };
    let kind = input.pick(0, &[AnswerKind::EventStream, AnswerKind::Json]);
    let text = match kind {
        AnswerKind::Json => tree::object(input.text, tree::ANSWER_KEYS),
        AnswerKind::EventStream => tree::events(input.text, tree::ANSWER_KEYS),
    };
    answer::check_usage(kind, text.as_bytes(), &input.cut(6, text.as_bytes()));
}

/// Any bytes as a metrics page.
pub fn metrics(data: &[u8]) {
    let Some(input) = Input::take(data) else { return };
    let runtime = input.pick(0, &[pool::Runtime::Vllm, pool::Runtime::Sglang, pool::Runtime::TrtLlm]);
    let text = input.padded(2, b'x', LINE_BYTES_MAX);
    metrics::check(runtime, &text, &input.cut(6, &text));
}

/// Any messages on a stream of Envoy's, and any decisions.
pub fn ext_proc(data: &[u8]) {
    ext_proc::check(data);
}

/// Any text as manifests.
pub fn manifest(data: &[u8]) {
    manifest::check(&String::from_utf8_lossy(data));
}

/// Any text as the value of each setting, and as a duration.
pub fn settings(data: &[u8]) {
    let Some(input) = Input::take(data) else { return };
    let text = String::from_utf8_lossy(input.text);
    settings::check_duration(&text);
    settings::check_setting(input.choice(0, 64), &text);
}
