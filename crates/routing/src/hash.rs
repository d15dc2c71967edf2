//! A prompt as a chain of block hashes.
//!
//! Invariant: hash `i` stands for the *whole* prompt up to the end of block `i`, because each block is hashed
//! under the hash of the one before it. Two prompts whose hash `i` is equal therefore share all blocks up to
//! there (but for chance, 2^-64 a comparison). The prefix index rests on this.

use pool::PrefixCachePolicy;
use twox_hash::XxHash3_64;

/// Cuts `prompt` (bytes of UTF-8) into blocks as `policy` says and writes one chained hash a block to `out`,
/// which is emptied first. A tail shorter than a block is ignored, and so is all that follows the policy's
/// largest number of blocks.
///
/// `seed` keeps apart what must not match: pass a hash of the model's name where one engine serves several.
/// Hashes of different block sizes never meet either.
pub fn block_hashes(prompt: &[u8], seed: u64, policy: &PrefixCachePolicy, out: &mut Vec<u64>) {
    out.clear();
    let block_bytes = policy.block_size_bytes as usize;
    let blocks_max = policy.prefix_blocks_max as usize;
    let mut chain = XxHash3_64::oneshot_with_seed(seed, &policy.block_size_bytes.to_le_bytes());
    out.extend(prompt.chunks_exact(block_bytes.max(1)).take(blocks_max).map(|block| {
        chain = XxHash3_64::oneshot_with_seed(chain, block);
        chain
    }));
}
