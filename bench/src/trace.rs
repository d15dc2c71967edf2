//! The Mooncake conversation trace, as requests to route.

use std::io::{BufRead, BufReader};
use std::path::Path;

use flate2::bufread::GzDecoder;
use sim::replay::{TRACE_BLOCK_TOKENS, TraceRequest};

/// Bytes of a token, as routing estimates them.
const TOKEN_BYTES: u32 = 4;

/// All requests of the trace, by arrival.
pub(crate) fn load() -> anyhow::Result<Vec<TraceRequest>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/mooncake_conversation.jsonl.gz");
    let file = BufReader::new(std::fs::File::open(path)?);
    let lines = BufReader::new(GzDecoder::new(file)).lines();
    lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

/// The blocks that hashing the request's prompt would give, at most `blocks_max`: equal trace ids give equal blocks.
/// Another `salt` is another day, on which all prompts are new.
pub(crate) fn blocks(request: &TraceRequest, salt: u64, block_bytes: u32, blocks_max: usize) -> Vec<u64> {
    let per_id = u64::from(TRACE_BLOCK_TOKENS * TOKEN_BYTES / block_bytes);
    let whole = (request.input_length * TOKEN_BYTES / block_bytes) as usize;
    let ids = request.hash_ids.iter();
    ids.flat_map(|&id| (0..per_id).map(move |block| mix(salt ^ (id * per_id + block) << 8)))
        .take(whole.min(blocks_max))
        .collect()
}

/// How many requests [`documents`] has.
pub(crate) const QUESTIONS: usize = 1500;

/// Questions of 1,200 tokens about one of 150 documents of 6,144 tokens, in random order, answers of 1,000 tokens: the
/// shape of llm-d's published benchmark of prefix routing.
pub(crate) fn documents(per_second: f64) -> Vec<TraceRequest> {
    const DOCUMENTS: u64 = 150;
    const DOCUMENT_TOKENS: u32 = 6144;
    let ids = u64::from(DOCUMENT_TOKENS / TRACE_BLOCK_TOKENS);
    let question = |number: usize| {
        let (number, random) = (number as u64, mix(number as u64));
        let document = (0..ids).map(|id| random % DOCUMENTS * ids + id);
        let own = (0..3).map(|id| DOCUMENTS * ids + number * 3 + id);
        // Evenly spaced but for half a space to either side.
        let jitter = (random >> 32) as f64 / f64::from(u32::MAX);
        TraceRequest {
            timestamp: ((number as f64 + jitter) / per_second * 1000.0) as u64,
            input_length: DOCUMENT_TOKENS + 1200,
            output_length: 1000,
            hash_ids: document.chain(own).collect(),
        }
    };
    (0..QUESTIONS).map(question).collect()
}

/// The finalizer of SplitMix64: different numbers stay different, and look random.
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
