//! Text to tokens and tokens to block hashes: the one definition of what "the same prefix" means here.
//!
//! A token is four bytes of text, about what a real tokenizer makes of English. Every segment of a prompt (a header,
//! a message) starts a token of its own, as special tokens make it in a real template; so an answer that comes back
//! as part of the next prompt has the tokens that it was generated with.

use twox_hash::XxHash3_64;

/// Bytes of text in a token.
pub const TOKEN_BYTES: usize = 4;

/// Appends the tokens of one segment of text.
pub fn tokenize(text: &[u8], tokens: &mut Vec<u32>) {
    tokens.extend(text.chunks(TOKEN_BYTES).map(|chunk| {
        let mut bytes = [0; TOKEN_BYTES];
        bytes[..chunk.len()].copy_from_slice(chunk);
        u32::from_le_bytes(bytes)
    }));
}

/// Chained hashes of the full blocks of `tokens`: equal hashes mean equal tokens from the first on, for one
/// `adapter` (the base model is the empty name).
pub fn block_hashes(tokens: &[u32], block_size: u32, adapter: &str) -> Vec<u64> {
    let mut chain = XxHash3_64::oneshot(adapter.as_bytes());
    let mut bytes = Vec::with_capacity(block_size as usize * TOKEN_BYTES);
    let blocks = tokens.chunks_exact(block_size.max(1) as usize);
    blocks
        .map(|block| {
            bytes.clear();
            bytes.extend(block.iter().flat_map(|token| token.to_le_bytes()));
            chain = XxHash3_64::oneshot_with_seed(chain, &bytes);
            chain
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(text: &str, adapter: &str) -> Vec<u64> {
        let mut tokens = Vec::new();
        tokenize(text.as_bytes(), &mut tokens);
        block_hashes(&tokens, 2, adapter)
    }

    #[test]
    fn only_full_blocks_have_a_hash_and_it_covers_everything_before() {
        assert_eq!(hashes("aaaabbbbccccddddeeee", "").len(), 2);
        assert_eq!(hashes("aaaabbbbcccc", ""), hashes("aaaabbbbXXXX", "")[..1]);
        let (one, other) = (hashes("aaaabbbbccccdddd", ""), hashes("XaaabbbbccccddddZ", ""));
        assert_ne!(one[0], other[0]);
        assert_ne!(one[1], other[1], "the same block behind another prefix");
    }

    #[test]
    fn an_adapter_has_blocks_of_its_own() {
        assert_ne!(hashes("aaaabbbb", ""), hashes("aaaabbbb", "lora-a"));
    }

    #[test]
    fn a_short_last_chunk_is_a_token() {
        let mut tokens = Vec::new();
        tokenize(b"abcde", &mut tokens);
        assert_eq!(tokens, [u32::from_le_bytes(*b"abcd"), u32::from(b'e')]);
        tokenize(b"", &mut tokens);
        assert_eq!(tokens.len(), 2);
    }
}
