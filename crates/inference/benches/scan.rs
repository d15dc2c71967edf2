//! Bytes a second through the scans, in chunks of 16 KiB as a connection gives them.
//!
//! `cargo bench -p inference`

use divan::Bencher;
use divan::counter::BytesCount;
use inference::{AnswerKind, Api, BodyScan, EventSplitter, Need, UsageScan};

const CHUNK_BYTES: usize = 16 * 1024;
/// 128 blocks of 64 bytes, the defaults.
const NEED: Need = Need { prompt_bytes_max: 8192, model_required: true, stream_wanted: false };

fn main() {
    divan::main();
}

/// A chat of about `bytes`, mostly in its last message, with an escape every 24 characters.
fn chat(bytes: usize) -> String {
    let head = r#"{"messages":[{"role":"system","content":"You are a helpful assistant. Answer in one sentence."},{"role":"user","content":""#;
    let tail = r#""}],"temperature":0.7,"stream":true,"stream_options":{"include_usage":true},"max_tokens":256,"model":"Qwen/Qwen3-32B"}"#;
    let line = r#"The quick brown fox says \"hello\" to the lazy dog and jumps over it.\n"#;
    let mut body = head.to_owned();
    while body.len() + line.len() + tail.len() < bytes {
        body.push_str(line);
    }
    body + tail
}

fn scan(body: &str, need: Need) -> BodyScan {
    let mut scan = BodyScan::new(Api::ChatCompletions, need);
    for chunk in body.as_bytes().chunks(CHUNK_BYTES) {
        scan.push(chunk).expect("the body is sound");
    }
    scan.finish().expect("the body is whole");
    scan
}

/// Read to its end: the model comes last.
#[divan::bench(args = [1_000, 10_000, 220_000])]
fn chat_to_its_end(bencher: Bencher<'_, '_>, bytes: usize) {
    let body = chat(bytes);
    bencher.counter(BytesCount::of_str(&body)).bench(|| scan(&body, NEED).into_asked());
}

/// The same without model in demand: read as far as the lookahead.
#[divan::bench]
fn chat_220_kb_until_enough(bencher: Bencher<'_, '_>) {
    let body = chat(220_000);
    bencher.bench(|| scan(&body, Need { model_required: false, ..NEED }).into_asked());
}

/// The same body through a parser that keeps nothing, for scale.
#[divan::bench(args = [1_000, 220_000])]
fn chat_parsed_by_serde_json(bencher: Bencher<'_, '_>, bytes: usize) {
    let body = chat(bytes);
    bencher
        .counter(BytesCount::of_str(&body))
        .bench(|| serde_json::from_str::<serde::de::IgnoredAny>(&body).expect("the body is sound"));
}

#[divan::bench]
fn prompt_of_2048_tokens(bencher: Bencher<'_, '_>) {
    let tokens: Vec<_> = (0..2048).map(|token| (token * 61 % 150_000).to_string()).collect();
    let body = format!(r#"{{"model":"m","prompt":[{}]}}"#, tokens.join(", "));
    bencher.counter(BytesCount::of_str(&body)).bench(|| {
        let mut scan = BodyScan::new(Api::Completions, NEED);
        scan.push(body.as_bytes()).expect("the body is sound");
        scan.into_asked()
    });
}

/// An event as vLLM sends one for each token, with `"usage":null`.
const EVENT: &[u8] = br#"data: {"id":"chatcmpl-7f9c","object":"chat.completion.chunk","created":1760000000,"model":"Qwen/Qwen3-32B","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}],"usage":null}

"#;

#[divan::bench]
fn usage_in_200_events(bencher: Bencher<'_, '_>) {
    bencher.counter(BytesCount::new(EVENT.len() * 200)).bench(|| {
        let mut scan = UsageScan::new(AnswerKind::EventStream);
        for _ in 0..200 {
            scan.push(EVENT);
        }
        scan.data_lines()
    });
}

#[divan::bench]
fn splitting_200_events(bencher: Bencher<'_, '_>) {
    bencher.counter(BytesCount::new(EVENT.len() * 200)).bench(|| {
        let mut splitter = EventSplitter::new();
        let chunk = bytes::Bytes::from_static(EVENT);
        (0..200).map(|_| splitter.push(chunk.clone()).map(|bytes| bytes.len()).sum::<usize>()).sum::<usize>()
    });
}
